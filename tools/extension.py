"""Compile the extension of softxent for one instruction set, without CMake: for changes of its source, and for sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

import nanobind

ISA = {"x86_64": ("avx2", ["-mavx2", "-mfma", "-mf16c"]), "aarch64": ("neon", []), "arm64": ("neon", [])}
NAME, TARGET = ISA.get(platform.machine(), ("generic", []))
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-w", "-DNB_COMPACT_ASSERTIONS"]


def compiler() -> str:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"


class Extension:
    """The extension, compiled from `source` (the folder cpp) into the folder `build`."""

    def __init__(self, source: Path, build: Path, *flags: str) -> None:
        self.source, self.build, self.flags = source, build, list(flags)
        build.mkdir(parents=True, exist_ok=True)

    def compile(self, name: str, limit: float | None = None) -> subprocess.CompletedProcess[str]:
        """Compile one source: kernel, run, xla, bind, or nanobind itself."""
        source = self.source / f"{name}.cpp"
        more = []
        if name == "kernel":
            more = [f"-DSOFTXENT_NAME={NAME}", *TARGET]
        elif name == "run":
            more = [f"-DSOFTXENT_BASE=isa_{NAME}"]
        if name in ("bind", "nanobind"):
            include = Path(nanobind.include_dir())
            robin = include.parent / "ext" / "robin_map" / "include"
            more = ["-fno-strict-aliasing", "-DNB_BUILD=1" * (name == "nanobind") or "-DNB_STATIC=1"]
            more += [f"-I{include}", f"-I{robin}", f"-I{sysconfig.get_path('include')}"]
            source = Path(nanobind.source_dir()) / "nb_combined.cpp" if name == "nanobind" else source
        command = [compiler(), *COMMON, *self.flags, *more, "-c", str(source), "-o", str(self.build / f"{name}.o")]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit)

    def link(self, to: Path) -> None:
        objects = [str(self.build / f"{name}.o") for name in ("kernel", "run", "xla", "bind", "nanobind")]
        whole = to / ("_kernel" + sysconfig.get_config_var("EXT_SUFFIX"))
        for old in to.glob("_kernel*.so"):
            old.unlink()
        subprocess.run([compiler(), "-shared", *self.flags, *objects, "-o", str(whole), "-lpthread", "-ldl"], check=True)

    def all(self, to: Path) -> None:
        """Compile what is older than the sources, and put the extension into the folder `to`."""
        for name in ("nanobind", "bind", "run", "xla", "kernel"):
            there = self.build / f"{name}.o"
            sources = [*self.source.glob("*.h"), *self.source.glob(f"{name}.cpp")]
            if there.exists() and there.stat().st_mtime > max(file.stat().st_mtime for file in sources):
                continue
            done = self.compile(name)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-3000:]}")
        self.link(to)
