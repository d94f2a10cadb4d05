#!/bin/sh
# test-ends.sh newest|oldest UV: the tests with the newest, or the oldest, versions of everything that pyproject.toml allows, in .venv-newest or .venv-oldest.
set -eu
end=$1 uv=$2
cd "$(dirname "$0")/.."
venv=.venv-$end
tools="axe-playwright-python cmake expecttest hypothesis mkdocs mkdocs-material mkdocstrings mypy nanobind ninja packaging playwright pytest ruff scikit-build-core setuptools"
case $end in
newest)
    "$uv" venv --quiet --clear --python '>=3.13' "$venv"
    set --
    ;;
oldest) # of the dependencies that pyproject.toml names, except the tools, which are those of the lock
    "$uv" venv --quiet --clear --python 3.11 "$venv"
    for tool in $tools; do sed -nE "s/^($tool==[^ ]+).*/\1/p" requirements/dev.txt; done >"$venv/tools.txt"
    set -- --resolution lowest-direct --constraint "$venv/tools.txt" setuptools # torch 2.6 and triton 3.2 import setuptools without asking for it
    ;;
*) exit 2 ;;
esac
# An empty build-dir is a temporary one: that of `make build` is for one version of nanobind and of Python.
"$uv" pip install --quiet --python "$venv/bin/python" --config-setting build-dir= "$@" '.[dev]'
"$uv" pip freeze --quiet --python "$venv/bin/python" | grep -E '^(numpy|scipy|scikit-learn|matplotlib|rich|typer|sympy|ml-dtypes|torch|triton|transformers|jax|jaxlib|optax|flax|equinox|trl|peft|accelerate)=='
[ "$end" = oldest ] || "$venv/bin/mypy"
"$venv/bin/pytest"
