# Everything lives in .venv. Outside it, only missing Debian packages are installed, and only for root.
PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/.created
INSTALLED := .venv/.installed

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1 -- /p' Makefile | awk -F ' -- ' '{printf "  %-12s %s\n", $$1, $$2}'

build: $(INSTALLED) ## prepare .venv: softxent, compiled, and all that development needs (PyTorch among it)

demo: build ## show the layer at work
	$(BIN)/softxent demo

test: build ## all rules (make check) and all tests
	@[ "$$(uname -m)" != x86_64 ] || { command -v qemu-aarch64 && command -v aarch64-linux-gnu-g++ && command -v nm; } >/dev/null \
		|| tools/system.sh "for the tests of the ARM kernel, an emulator and a cross compiler" qemu-user g++-aarch64-linux-gnu binutils || true
	@command -v coqc >/dev/null || tools/system.sh "for the tests of the proof, Coq" coq || true
	@{ command -v chromium || command -v google-chrome; } >/dev/null || tools/system.sh "for the tests of the page, a browser" chromium || true
	@$(MAKE) --no-print-directory check
	$(BIN)/pytest

check: build ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: build ## times beside memcpy, NumPy, SciPy, scikit-learn and PyTorch (a quarter of an hour), into bench/results
	$(BIN)/softxent bench

wheels: ## the sdist, and wheels for Linux on x86-64 and 64-bit ARM, into dist/; those that run here are tested (a quarter of an hour)
	$(PYTHON) tools/wheels.py

docs: build ## the documentation, into site/
	$(BIN)/mkdocs build --quiet --strict

vendor: ## fetch the JavaScript library of the page again, as it is published (npm)
	tools/vendor.sh 10.6.0

clean: ## remove all that make made
	rm -rf .venv build dist site demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools examples -name __pycache__ -prune -exec rm -rf {} +

$(VENV):
	@command -v $(PYTHON) >/dev/null || { echo "softxent needs Python 3.11 or newer, and there is no $(PYTHON): make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"softxent needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=/path/to/python3" if v < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/system.sh "Python's venv module" python3-venv
	@$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || tools/system.sh "Python's C headers" python3-dev
	@{ command -v "$${CXX:-c++}" || command -v g++ || command -v clang++; } >/dev/null || tools/system.sh "a C++17 compiler" g++
	$(PYTHON) -m venv --clear .venv
	@touch $@

# No build isolation: the C++ build finds nanobind in the same place every time, and compiles only what changed.
$(INSTALLED): $(VENV) pyproject.toml CMakeLists.txt $(wildcard cpp/*)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' >.venv/build.txt
	@for tool in cmake ninja; do command -v $$tool >/dev/null || echo $$tool; done >>.venv/build.txt
	$(BIN)/python -m pip install --quiet -r .venv/build.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	@touch $@

.PHONY: help build demo test check bench wheels docs vendor clean
.DEFAULT_GOAL := help
