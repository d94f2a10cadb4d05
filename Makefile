# Everything lives in .venv. Outside it, only missing Debian packages are installed, and only for root.
PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/.created
DEMO := .venv/.demo
INSTALLED := .venv/.installed
READY := $(INSTALLED) $(DEMO) # in this order: the first makes both
PIP := $(BIN)/python -m pip install --quiet
EDITABLE := $(PIP) --no-deps --no-build-isolation -e .
# PyTorch must leave the locked versions as they are; pip wants hashes for all requirements or for none.
TORCH := $(PIP) --no-compile -r requirements/torch.txt -c .venv/locked.txt
UV := .venv-uv/bin/uv
unexport PYTHONDONTWRITEBYTECODE # where it is set, each process of the tests would compile PyTorch's Python files anew

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1 -- /p' Makefile | awk -F ' -- ' '{printf "  %-16s %s\n", $$1, $$2}'

build: $(DEMO) ## prepare .venv: softxent, compiled, and what softxent demo needs

demo: build ## show the layer at work
	$(BIN)/softxent demo

programs: # of Debian, which the tests run
	@[ "$$(uname -m)" != x86_64 ] || { command -v qemu-aarch64 && command -v aarch64-linux-gnu-g++ && command -v nm; } >/dev/null \
		|| tools/system.sh "for the tests of the ARM kernel, an emulator and a cross compiler" qemu-user g++-aarch64-linux-gnu binutils || true
	@{ command -v coqc >/dev/null && coqlib=$$(coqc -where) && [ -d "$$coqlib/user-contrib/Flocq" ] && [ -d "$$coqlib/user-contrib/Coquelicot" ]; } \
		|| tools/system.sh "for the tests of the proof, Coq and two of its libraries" coq libcoq-flocq libcoq-coquelicot || true
	@{ command -v chromium || command -v google-chrome; } >/dev/null || tools/system.sh "for the tests of the page, a browser" chromium || true

test: $(READY) programs ## all rules (make check) and all tests
	@$(MAKE) --no-print-directory check
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(READY) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror cpp/*
	$(BIN)/mypy

mutate: $(READY) ## change the sources in one place at a time; the tests must notice (hours; SAMPLE=40 tries so many changes of each file)
	nice $(BIN)/python tools/mutate.py --sample $(or $(SAMPLE),0)

sanitize: $(READY) ## the tests of the C++ code with address, undefined behaviour and thread sanitizers (a quarter of an hour)
	nice $(BIN)/python tools/sanitize.py

fuzz: $(READY) ## random calls of the compiled kernel beside guard pages, for SECONDS (60)
	cd tests && ../$(BIN)/python fuzz.py --seconds $(or $(SECONDS),60)

proof-bits: $(READY) ## the kernel's functions, loss and gradient beside tests/mirror.py, bit for bit, on COUNT (1e7) inputs each (some minutes)
	nice $(BIN)/python tests/kernel_bits.py --count $(or $(COUNT),1e7)

test-newest: $(UV) programs ## the tests with the newest versions of everything, in .venv-newest
	tools/test-ends.sh newest $(UV)

test-oldest: $(UV) programs ## the tests with the oldest versions that softxent allows, in .venv-oldest
	tools/test-ends.sh oldest $(UV)

field: $(READY) $(UV) ## docs/field.md, what the laws find in other libraries, in .venv-field (an hour; NAMES="keras tf.nn" tries these only)
	tools/field.sh $(UV) $(NAMES)

bench: $(READY) ## times beside memcpy, NumPy, SciPy, scikit-learn and PyTorch (a quarter of an hour), into bench/results
	$(BIN)/softxent bench

wheels: ## the sdist, and wheels for Linux on x86-64 and 64-bit ARM, into dist/; those that run here are tested (a quarter of an hour)
	$(PYTHON) tools/wheels.py

docs: $(READY) ## the documentation, into site/
	$(BIN)/mkdocs build --quiet --strict

lock: $(UV) ## resolve what .venv is made of anew, into requirements/
	tools/lock.sh $(UV)

vendor: ## fetch the JavaScript library of the page again, as it is published (npm)
	tools/vendor.sh 10.6.0

clean: ## remove all that make made
	rm -rf .venv .venv-* build dist site demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools examples -name __pycache__ -prune -exec rm -rf {} +

$(VENV):
	@command -v $(PYTHON) >/dev/null || { [ "$(PYTHON)" = python3 ] && tools/system.sh "Python 3.11 or newer" python3 python3-venv python3-dev; } \
		|| { echo "softxent needs Python 3.11 or newer, and there is no $(PYTHON): make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"softxent needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=/path/to/python3" if v < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/system.sh "Python's venv module" python3-venv
	@$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || tools/system.sh "Python's C headers" python3-dev
	@{ command -v "$${CXX:-c++}" || command -v g++ || command -v clang++; } >/dev/null || tools/system.sh "a C++17 compiler" g++
	$(PYTHON) -m venv --clear .venv
	@touch $@

# What `softxent demo` needs. No build isolation: the C++ build finds nanobind in the same place every time, and compiles only what changed.
$(DEMO): $(VENV) requirements/demo.txt pyproject.toml CMakeLists.txt $(wildcard cpp/*)
	$(PIP) --no-compile --require-hashes --no-deps -r requirements/demo.txt
	$(EDITABLE)
	@$(BIN)/python -m pip check >/dev/null
	@touch $@

# All that development needs, also what the demo needs. The kernel is compiled, with handlers for JAX, while PyTorch is fetched.
$(INSTALLED): requirements/dev.txt requirements/torch.txt | $(VENV)
	$(PIP) --no-compile --require-hashes --no-deps -r requirements/dev.txt
	@sed -n 's/ *\\$$//; /^[a-z]/p' requirements/dev.txt >.venv/locked.txt
	$(TORCH) & torch=$$!; $(EDITABLE) && wait $$torch
	@$(BIN)/python -m pip check
	@touch $(DEMO) $@

$(UV):
	@$(MAKE) --no-print-directory $(VENV)
	$(BIN)/python -m venv --clear .venv-uv
	.venv-uv/bin/python -m pip install --quiet uv

.PHONY: help build demo programs test mutate sanitize fuzz proof-bits test-newest test-oldest field check bench wheels docs lock vendor clean
.NOTPARALLEL:
.DEFAULT_GOAL := help
