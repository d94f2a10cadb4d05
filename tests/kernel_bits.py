"""Compares the compiled kernel's exp, log, log1p, tanh, and its loss and gradient, with tests/mirror.py, bit for bit.

`make proof-bits` runs it with COUNT inputs (1e7) for each function and type, and with every float32 from -104 to -2^-25 for exp. The
functions are compiled from cpp/vec.h. The kernel computes log and log1p in float64 only. The sign and the payload of a NaN may differ.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mirror
import numpy as np
from cases import Problem, fused
from mirror import F32, F64

import softxent

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-shared", "-fPIC", "-I", str(ROOT / "cpp")]
CHUNK = 1 << 17  # inputs at a time; the arrays of a step then fit into a cache
KINDS = {"float32": F32, "float64": F64}


def compiled(folder: Path) -> ctypes.CDLL:
    """Compile the functions for this processor. A hardware fma gives the bits of the emulated one and is faster."""
    library = folder / "functions.so"
    processor = Path("/proc/cpuinfo")
    flags = ["-mavx2", "-mfma"] if processor.exists() and " fma " in processor.read_text() else []
    subprocess.run(["g++", *FLAGS, *flags, str(ROOT / "tests/native/functions.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


# ---- inputs: those in the range of a call, those near 0 with subnormals, and the ends of the range ----


def any_bits(rng: np.random.Generator, k: mirror.Constants, n: int) -> np.ndarray:
    return rng.integers(0, np.iinfo(k.bits).max, n, k.bits, endpoint=True).view(k.dtype)


def near_0(rng: np.random.Generator, k: mirror.Constants, n: int) -> np.ndarray:
    """Return positive numbers below 1 of any exponent. An eighth of them are subnormal."""
    small = rng.integers(0, k.dtype(1).view(k.bits), n, k.bits)
    small[: n // 8] %= k.bits(1 << k.mantissa)
    return small.view(k.dtype)


def around(k: mirror.Constants, *points: float) -> np.ndarray:
    """Return each of the points with its neighbours."""
    return (np.array(points, k.dtype).view(k.bits)[:, None] + np.arange(-4, 5).astype(k.bits)).view(k.dtype).ravel()


def inputs(name: str, k: mirror.Constants, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs, and the second argument: a power of two for exps, 1 / (1 + x) for log1p."""
    second = np.zeros(n, k.dtype)
    most, few = n - n // 4, n // 8
    tiny, wide = near_0(rng, k, few), any_bits(rng, k, n - most - few)
    if name in ("exps", "exp"):
        x, tiny, wide = 0.4 - rng.random(most) * (k.reach + 2), -tiny, -np.abs(wide)
        points = around(k, -1, -k.reach, -np.log(2) / 2, 0.5 * np.log(2))
        if name == "exps":
            second[: most // 2] = rng.integers(-k.reach, k.reach, most // 2)
            x[: most // 2] += second[: most // 2] * np.log(2)
    elif name == "tanh":
        x = rng.standard_normal(most) * rng.choice([0.3, 1, 5, 200], most)
        tiny *= rng.choice([-1, 1], few).astype(k.dtype)
        points = around(k, mirror.TANH[k][0] ** 0.5, -(mirror.TANH[k][0] ** 0.5), mirror.TANH[k][1], -mirror.TANH[k][1])
    else:
        x, wide = np.exp(rng.uniform(-1 if name == "log" else -740, 20, most)), np.abs(wide)
        points = around(k, 1, 2**0.5, 0.5**0.5, 2)
    x[-len(points) :] = points
    x = np.concatenate([x.astype(k.dtype), tiny, wide])
    with np.errstate(all="ignore"):
        return x, 1 / (1 + x) if name == "log1p" else second


# ---- comparisons ----


def different(a: np.ndarray, b: np.ndarray, bits: Any) -> int:
    return int(((a.view(bits) != b.view(bits)) & ~(np.isnan(a) & np.isnan(b))).sum())


def compare(library: ctypes.CDLL, name: str, k: mirror.Constants, x: np.ndarray, second: np.ndarray) -> int:
    """Return how many results of the kernel differ from those of the mirror."""
    got, also = x.copy(), second.copy()
    arguments: list[Any] = [a.ctypes.data_as(ctypes.c_void_p) for a in (got, also)] + [ctypes.c_int64(len(x))]
    getattr(library, f"{name}_{k.dtype.__name__}")(*arguments)
    with np.errstate(all="ignore"):
        if name == "tanh":
            tanh, slope = mirror.tanh_and_slope(k, x)
            return different(got, tanh, k.bits) + different(also, slope, k.bits)
        if name == "exps":
            want = mirror.exps(k, x, k.dtype(k.magic) - second, second * k.dtype(1 / k.dtype(k.log2e)) - k.dtype(k.reach))
        else:
            want = {"exp": mirror.exp, "log": mirror.log}[name](x) if name != "log1p" else mirror.log1p(x, second)
    return different(got, want, k.bits)


FUNCTIONS = [("exps", F32), ("exps", F64), ("exp", F64), ("log", F64), ("log1p", F64), ("tanh", F32), ("tanh", F64)]


def chunks_of(name: str, k: mirror.Constants, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(-(-count // CHUNK)):
        yield inputs(name, k, rng, CHUNK)


def every_float32() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every float32 from -104 to -2^-25. Closer to 0, e^x is rounded to 1 or the number before it."""
    first, last = (int(np.float32(x).view(np.uint32)) for x in (-(2.0**-25), -104))
    for start in range(first, last + 1, CHUNK):
        yield np.arange(start, start + CHUNK, dtype=np.uint32).view(np.float32), np.zeros(CHUNK, np.float32)


def rows(dtype: Any, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes + count)
    z = rng.standard_normal((count, classes)) * rng.choice([0.1, 1, 10, 40], (count, 1)) + rng.choice([0, -50, 30, 1000, -3000], (count, 1))
    label = rng.integers(0, classes, count)
    z[np.arange(count), label] += rng.choice([0, 0, 20, -20, 90, 600], count)
    return z.astype(dtype), label


def compare_rows(dtype: Any, classes: int, count: int) -> int:
    """Return how many sums, losses and entries of the gradient of the compiled kernel differ from those of the mirror."""
    z, label = rows(dtype, classes, count)
    truth = np.ones((4, len(z))) * [[1], [0], [0], [1]]
    with softxent.use_backend("cpu"):
        got = fused(Problem(z, label, truth, None))
    s, loss, dz = mirror.loss_and_gradient(z, label)
    pairs = ((got.parts[1], s, np.uint64), (got.result[0], loss, np.uint64), (got.dz, dz, KINDS[np.dtype(dtype).name].bits))
    return sum(different(np.ascontiguousarray(a), b, bits) for a, b, bits in pairs)


# ---- make proof-bits ----


def shown(title: str, steps: int, counted: Iterator[tuple[int, int]]) -> int:
    """Run the steps, which yield how many inputs were compared and how many results differ, behind a bar. Return how many differ."""
    start, inputs_, wrong = time.process_time(), 0, 0
    for n, (count, bad) in enumerate(counted, 1):
        inputs_, wrong = inputs_ + count, wrong + bad
        if sys.stderr.isatty():
            done = 30 * n // max(steps, n)
            print(f"\r{title:<18} {'#' * done}{'.' * (30 - done)}", end="", file=sys.stderr)
    print(f"\r{title:<18} {inputs_:>13,} inputs, {wrong} differ, {time.process_time() - start:.0f} s of one core")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=lambda text: int(float(text)), default=10**7)
    count, wrong = parser.parse_args().count, 0
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))

        def run(title: str, name: str, k: mirror.Constants, steps: int, chunks: Iterator[tuple[np.ndarray, np.ndarray]]) -> int:
            compared = ((len(x), compare(library, name, k, x, second)) for x, second in chunks)
            return shown(title, steps, compared)

        for name, k in FUNCTIONS:
            wrong += run(f"{name} {k.dtype.__name__}", name, k, -(-count // CHUNK), chunks_of(name, k, count))
        wrong += run("exps every float32", "exps", F32, 31 * 2**23 // CHUNK, every_float32())
        for dtype in ("float32", "float64"):
            sizes = [(classes, CHUNK // classes) for classes in (65, 100, 1000, 1025, 4096)]
            turns = -(-count // (5 * CHUNK))
            compared = ((c * n, compare_rows(dtype, c, n + turn)) for turn in range(turns) for c, n in sizes)
            wrong += shown(f"rows {dtype}", 5 * turns, compared)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
