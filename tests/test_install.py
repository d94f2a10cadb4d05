"""The installation: without a compiler it succeeds and the first call says so; the sdist is complete; the wheels' settings fit together.

Nothing is downloaded: the tools of the environment that runs the tests build. `make wheels` builds and tests the wheels themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

HOOK = """
import json, sys, scikit_build_core.build as hooks
getattr(hooks, sys.argv[1])(sys.argv[2], json.loads(sys.argv[3]))
"""


def build(hook: str, source: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Do what pip does with a source: call a function of the build backend. No compiler works."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-c", HOOK, hook, str(folder), json.dumps({"build-dir": str(folder / "build")})],
        cwd=source,
        env={**os.environ, "PATH": path, "CXX": "/bin/false", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    done = build("build_sdist", ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_sdist_has_what_a_wheel_is_made_of(sdist):
    files = ["CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", *(f"cpp/{f.name}" for f in ROOT.glob("cpp/*"))]
    files += [str(f.relative_to(ROOT)) for f in ROOT.glob("src/**/*") if f.is_file() and "__pycache__" not in f.parts]
    assert len(files) > 60
    for name in files:
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes(), name


COMPUTES = """
import sys, warnings
sys.path[:0] = sys.argv[1:]
import softxent
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        print(round(float(softxent.cross_entropy([[1.0, 2.0]], [0])), 6))
    backends = softxent.backends()
print(*(w.message for w in seen), sep="\\n")
print([b[:3] for b in backends], backends[0].detail)
"""


def test_without_a_compiler_the_library_installs_and_the_first_call_says_so(sdist, tmp_path):
    done = build("build_wheel", sdist, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "softxent was built without its compiled kernel" in done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "installed")
    # -S: without the packages of this environment, among which is the softxent under test
    numpy = os.path.dirname(os.path.dirname(np.__file__))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", COMPUTES, tmp_path / "installed", numpy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, warning, backends = done.stdout.splitlines()
    assert first == second == "1.313262"
    assert warning.startswith("softxent runs on plain NumPy, slowly: the compiled kernel is missing (")
    assert warning.endswith("install a C++17 compiler, and then softxent again with pip install --force-reinstall --no-cache-dir")
    assert backends.startswith("[('cpu', False, False), ('formula', True, True)] the compiled kernel is missing (")


@pytest.mark.parametrize("hook, environment", [("build_editable", {}), ("build_wheel", {"SOFTXENT_REQUIRE_KERNEL": "1"})])
def test_developers_and_releases_get_the_kernel_or_an_error(hook, environment, tmp_path):
    """`make build` installs editable; the wheels of a release are built with SOFTXENT_REQUIRE_KERNEL=1."""
    done = build(hook, ROOT, tmp_path, **environment)
    assert done.returncode != 0 and not list(tmp_path.glob("*.whl"))
    assert "The compiled kernel of softxent could not be built" in done.stdout + done.stderr


# ---- the wheels' settings ----


def test_there_is_a_wheel_for_every_python_of_the_project():
    oldest = int(PROJECT["project"]["requires-python"].removeprefix(">=3."))
    stable = int(PROJECT["tool"]["scikit-build"]["wheel"]["py-api"].removeprefix("cp3"))
    settings = PROJECT["tool"]["cibuildwheel"]
    assert settings["build"] == [f"cp3{minor}-manylinux_*" for minor in range(oldest, stable + 1)]
    assert settings["environment"] == {"SOFTXENT_REQUIRE_KERNEL": "1"}
    assert '"SOFTXENT_REQUIRE_KERNEL": "1"' in (ROOT / "tools/wheels.py").read_text()


COLLECT = """
import sys
for name in ("torch", "scipy", "sympy", "sklearn", "rich", "typer", "matplotlib", "transformers", "triton"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_the_tests_of_a_wheel_need_no_more_than_they_say():
    tests = [word for word in PROJECT["tool"]["cibuildwheel"]["test-command"].split() if word.startswith("tests/")]
    done = subprocess.run([sys.executable, "-c", COLLECT, *tests], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(tests) > 3
