"""Compile the extension with sanitizers, and run the tests of the C++ code with it: `make sanitize`, or `python tools/sanitize.py [NAME]`.

NAME is `address` (AddressSanitizer and UndefinedBehaviorSanitizer) or `thread` (ThreadSanitizer); both without. The extension is put into a
copy of the package in build/sanitize/NAME, and the process loads the sanitizer first, because Python itself is not compiled with it. Leaks
are not looked for: Python ends without freeing what it has. ThreadSanitizer runs without PyTorch, whose OpenMP runtime it cannot see into.
The exit status is 1 if a test fails, or a sanitizer reports something.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from extension import Extension, compiler

ROOT = Path(__file__).parent.parent
# without tests of large or refused memory, of the other backend, and of PyTorch's threads
ALONE = "not few_long_rows and not refus and not without_more and not formula and not after_torch and not within_a_call"
# an editable installation would come before PYTHONPATH
NO_JAX = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.modules["jax_backend"] = None
"""
NO_TORCH = NO_JAX + "sys.modules['torch'] = None\n"


class Sanitizer(NamedTuple):
    flags: list[str]
    library: str  # loaded first
    environment: dict[str, str]
    before: str  # what a process runs first
    tests: list[str]  # arguments of pytest, one run each


SANITIZERS = {
    "address": Sanitizer(
        # arrays are read where they lie, also at odd addresses, which all processors allow that the kernel is for
        ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
        "libasan.so",
        {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
        NO_JAX,
        [
            "tests/test_fuzz.py tests/test_kept_memory.py tests/test_properties.py -k 'not wrong_access and not gives_all_back'",
            "tests/test_laws.py -k 'cpu or split or option'",
            "tests/test_edges.py -k 'cpu or not formula'",
            "tests/test_waist.py -k 'not formula and not instruction_set'",
            "tests/test_frontend.py -k 'cpu and not scipy'",
            "tests/test_layouts.py -k 'cpu'",
            "tests/test_tangents.py -k 'cpu'",
            "tests/test_torch_front.py -k 'not compiles and not operators_are and not torch_func and not third'",
            f"tests/test_process.py -k '{ALONE}'",
        ],
    ),
    "thread": Sanitizer(
        ["-O1", "-g1", "-fsanitize=thread"],
        "libtsan.so",
        {"TSAN_OPTIONS": "exitcode=66:halt_on_error=1:die_after_fork=0"},
        NO_TORCH,
        [
            "tests/test_bits.py -k 'thread'",
            "tests/test_waist.py -k 'threads and f32'",
            f"tests/test_process.py -k '{ALONE} and not first_call'",  # whose parents use PyTorch
            "tests/test_fuzz.py tests/test_kept_memory.py -k 'not wrong_access and not gives_all_back and not library and not torch'",
        ],
    ),
}


def loaded(library: str) -> str:
    """Return the paths of a sanitizer's library and of the C++ library, whose exceptions it must see."""
    return " ".join(
        subprocess.check_output([compiler(), f"-print-file-name={name}"], text=True).strip() for name in (library, "libstdc++.so")
    )


def sanitized(name: str) -> int:
    """Build, run the tests, and return how many runs failed."""
    one, folder = SANITIZERS[name], ROOT / "build" / "sanitize" / name
    package = folder / "src" / "softxent"
    shutil.rmtree(folder / "src", ignore_errors=True)
    shutil.copytree(ROOT / "src" / "softxent", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    print(f"{name}: compiling", flush=True)
    Extension(ROOT / "cpp", folder / "objects", *one.flags).all(package)
    (folder / "src" / "sitecustomize.py").write_text(one.before)  # also in the processes that tests start
    log = f":log_path={folder / 'report'}"  # pytest would not show what is reported
    environment = os.environ | {name: options + log for name, options in one.environment.items()} | {"LD_PRELOAD": loaded(one.library)}
    environment["PYTHONPATH"] = os.pathsep.join(str(p) for p in (folder, folder / "src", ROOT / "tests"))
    start = ["setarch", "-R"] if shutil.which("setarch") else []  # the shadow memory needs fixed addresses
    failed = 0
    for tests in one.tests:
        print(f"{name}: {tests}", flush=True)
        command = [*start, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
        done = subprocess.run(command, env=environment, cwd=ROOT)
        reports = list(folder.glob("report.*"))
        for report in reports:
            print(report.read_text(errors="replace")[:5000])
            report.unlink()
        failed += done.returncode != 0 or bool(reports)
    return failed


def main() -> int:
    names = sys.argv[1:] or list(SANITIZERS)
    failed = {name: sanitized(name) for name in names}
    print(", ".join(f"{name}: {count} of {len(SANITIZERS[name].tests)} runs failed" for name, count in failed.items()))
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
