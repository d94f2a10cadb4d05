"""The C++ kernel without Python: every instruction set and processor gives the same bits, and the linker cannot merge its symbols."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-I", str(ROOT / "cpp")]
BUILDS = {  # name: compiler, flags, and emulator. test_bits.py compares avx2 with the others, through the extension module.
    "generic": ("g++", [], []),
    "avx512": ("g++", ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"], []),
    "neon": ("aarch64-linux-gnu-g++", ["-static", "-O0"], ["qemu-aarch64"]),  # a sixth of the time of -O3; the bits do not depend on it
}
HELP = "apt-get install g++ binutils g++-aarch64-linux-gnu qemu-user"


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.fail(f"{tool} is missing: {HELP}")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the kernel of an instruction set: that of the package, or it compiles cpp/kernel.cpp, once."""
    folder = tmp_path_factory.mktemp("kernel")
    changed = max(path.stat().st_mtime for path in [*(ROOT / "cpp").iterdir(), ROOT / "CMakeLists.txt"])

    def build(name: str) -> Path:
        compiler, flags, runner = BUILDS[name]
        need(compiler, "nm", *runner)
        for built in (ROOT / "build").glob(f"*/CMakeFiles/kernel_{name}.dir/cpp/kernel.cpp.o"):
            if built.stat().st_mtime > changed:
                return built
        target = folder / f"{name}.o"
        if not target.exists():
            source = str(ROOT / "cpp/kernel.cpp")
            subprocess.run([compiler, *FLAGS, *flags, f"-DSOFTXENT_NAME={name}", "-c", source, "-o", str(target)], check=True)
        return target

    return build


def hash_of(name: str, kernel: Path, folder: Path) -> str:
    compiler, flags, runner = BUILDS[name]
    program = folder / name
    main = str(ROOT / "tests/native/bits.cpp")
    subprocess.run([compiler, *FLAGS, *flags, f"-DSOFTXENT_NAME={name}", main, str(kernel), "-o", str(program)], check=True)
    return subprocess.run([*runner, str(program)], check=True, capture_output=True, text=True).stdout.strip()


def can_run(name: str) -> bool:
    return name != "avx512" or " avx512dq " in Path("/proc/cpuinfo").read_text()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares x86-64 with aarch64, from x86-64")
def test_one_hash_from_every_processor(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    hashes = {name: hash_of(name, kernel(name), tmp_path) for name in BUILDS if can_run(name)}
    assert len(hashes["neon"]) == 16 and len(set(hashes.values())) == 1, hashes


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an object for each of x86-64's instruction sets")
@pytest.mark.parametrize("name", ["generic", "avx512"])
def test_no_symbol_can_be_merged_across_instruction_sets(name: str, kernel: Callable[[str], Path]) -> None:
    """There are only local symbols and the table. A weak symbol with AVX-512 code could replace the copies for other processors."""
    lines = subprocess.run(["nm", "-C", str(kernel(name))], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) > 20
    assert [line[19:] for line in lines if line[17] in "WVuTDBRi"] == [f"softxent::isa_{name}"]


def test_elementary_functions_are_as_near_as_the_bounds_count_on(tmp_path: Path) -> None:
    """proof/bounds.py assumes two units for exp and log, and four for log1p. All instruction sets have the same bits, so one is
    measured."""
    need("g++")
    program = tmp_path / "elementary"
    subprocess.run(["g++", *FLAGS, str(ROOT / "tests/native/elementary.cpp"), "-o", str(program)], check=True)
    single, exp, log, log1p = map(float, subprocess.run([program], check=True, capture_output=True, text=True).stdout.split())
    assert 0.5 < single < 2 and 0.5 < exp < 2 and 0.5 < log < 2 and 0.5 < log1p < 4


def test_the_declarations_of_xla_are_those_of_jaxlib():
    """cpp/ffi.h has what xla.cpp uses of the interface, so that a build needs no jaxlib. The installed one may be newer."""
    need("g++")
    headers = jax.ffi.include_dir()
    subprocess.run(["g++", *FLAGS, "-fsyntax-only", "-isystem", headers, str(ROOT / "tests/native/ffi.cpp")], check=True)
