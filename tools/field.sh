#!/bin/sh
# field.sh UV [NAME ...]: tools/field.py in .venv-field, which has Keras, TensorFlow, Liger and cut-cross-entropy, and the packages of .venv.
set -eu
uv=$1
shift
cd "$(dirname "$0")/.."
venv=.venv-field
"$uv" venv --quiet --clear --python .venv/bin/python "$venv"
"$uv" pip install --quiet --python "$venv/bin/python" --constraint .venv/locked.txt keras tensorflow-cpu
# they need PyTorch and Triton, which .venv has: requirements/torch.txt says why their build differs by machine
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps liger-kernel cut-cross-entropy
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$packages')" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages-of-venv.pth"
"$venv/bin/python" tools/field.py "$@"
