"""A call needs O(rows + threads x classes) bytes beyond its arguments, as measured by NumPy's allocator and the operating system."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from cases import BACKENDS, DTYPES, environment, python

import softxent

MIB = 1 << 20
A_ROW = 8 * (2 + 4 + 1 + 1) + 16  # bytes for each row: result, truth, label, another float64, and masks of the checks
WORKS_IN = {
    "formula": 40 * MIB,
    "cpu": MIB // 4,
}  # the formula has about twelve temporary float64 arrays of 2 MiB; the scratch memory of the kernel is not allocated by NumPy


def peak(call):
    call()  # imports, caches
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rows,classes", [(300, 50_000), (20_000, 500), (100_000, 10)], ids=lambda n: str(n))
def test_a_call_with_out_takes_o_of_rows(backend, rows, classes, dtype):
    if backend == "formula":
        rows //= 8
    rng = np.random.default_rng(0)
    z, t = rng.standard_normal((rows, classes), dtype=np.float32).astype(dtype), rng.integers(0, classes, rows)
    out = np.empty_like(z)
    allowed = rows * A_ROW + WORKS_IN[backend]
    for options in ({}, dict(label_smoothing=0.1), dict(z_loss=0.1, ignore_index=1)):
        assert peak(lambda o=options: softxent.cross_entropy_and_grad(z, t, out=out, **o)) < allowed + 32 * classes
        assert peak(lambda o=options: softxent.cross_entropy(z, t, **o)) < allowed + 32 * classes
    assert peak(lambda: softxent.cross_entropy_and_grad(z, t, out=z)) < allowed
    assert peak(lambda: softxent.softmax(z, out=z)) < allowed
    assert peak(lambda: softxent.logsumexp(z)) < allowed


@pytest.mark.parametrize("name", ["strided", "softcap", "soft", "soft_wide", "soft_smoothed", "hvp", "entropy", "log_softmax", "vjp"])
def test_what_cannot_be_done_in_place_is_done_in_pieces(backend, name, rng):
    """Chunks of 1 MiB, with up to 16 temporary arrays, for any size. The returned arrays are added."""
    rows, classes = (2000, 1000) if backend == "formula" else (10_000, 1000)  # 40 MB
    z, t = rng.standard_normal((rows, classes), dtype=np.float32), rng.integers(0, classes, rows)
    apart, out = np.asfortranarray(z), np.empty_like(z)
    soft = np.full((rows, classes), 1 / classes, np.float64 if name == "soft_wide" else np.float32) if name.startswith("soft") else None
    call, returned = {
        "strided": (lambda: softxent.cross_entropy_and_grad(apart, t, out=apart), 0),
        "softcap": (lambda: softxent.cross_entropy_and_grad(z, t, out=out, softcap=5.0), 0),
        "soft": (lambda: softxent.cross_entropy_and_grad(z, soft, out=out), 0),
        "soft_wide": (lambda: softxent.cross_entropy_and_grad(z, soft, out=out), 0),
        "soft_smoothed": (lambda: softxent.cross_entropy_and_grad(z, soft, out=out, label_smoothing=0.1), 0),
        "hvp": (lambda: softxent.cross_entropy_hvp(z, z, t), z.nbytes),
        "entropy": (lambda: softxent.entropy_and_grad(z), z.nbytes),
        "log_softmax": (lambda: softxent.log_softmax(z), z.nbytes),
        "vjp": (lambda: softxent.softmax_vjp(z, z), z.nbytes),
    }[name]
    assert peak(call) - returned < rows * A_ROW + WORKS_IN[backend] + 16 * MIB


# The peak memory of the process in bytes. ru_maxrss is used only where there is no /proc, because a child process inherits its parent's
# value, here that of pytest with torch, which hides smaller peaks.
MOST = """
def most():
    try:
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
    except OSError:
        import resource, sys
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""
RSS = (
    MOST
    + """
import sys, numpy as np, softxent
dtype, rows, classes, threads, backend = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
softxent.set_num_threads(threads)
z = np.empty((rows, classes), dtype); z[:] = np.linspace(-5, 5, classes)  # touched, and nothing larger ever was
out, t = np.zeros_like(z), np.zeros(rows, np.int64); out += 1
with softxent.use_backend(backend):
    softxent.cross_entropy_and_grad(z[:4, :64], t[:4])  # code is paged in
    before = most()
    softxent.cross_entropy_and_grad(z, t, out=out)
    softxent.cross_entropy(z, t)
print(most() - before)
"""
)


@pytest.mark.parametrize(
    "dtype,rows,classes,threads",
    [("f4", 500, 50_000, 2), ("f8", 40, 400_000, 2), ("f4", 300_000, 64, 2), ("f4", 40_000, 500, 5), ("f4", 2, 8_000_000, 2)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_process_does_not_grow(backend, dtype, rows, classes, threads):
    """This includes the kernel's scratch memory: for each thread the exponentials of the rows it works on, at most 8 bytes each."""
    if backend == "formula":
        rows = max(1, rows // 8)
    done = subprocess.run(
        [sys.executable, "-c", RSS, dtype, str(rows), str(classes), str(threads), backend],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    row = 8 * classes
    allowed = rows * A_ROW + 4 * MIB + (threads * max(row, 16 * 8 * 4096) if backend == "cpu" else 12 * max(2 * MIB, row))
    assert int(done.stdout) < allowed, f"{int(done.stdout) / MIB:.1f} MiB, allowed {allowed / MIB:.1f}"


def test_memory_does_not_leak(backend):
    """The memory does not grow in a thousand further calls."""
    grown = python(
        MOST
        + f"""
import numpy as np, softxent
z, t = np.zeros((50, 300), np.float32), np.zeros(50, int)
with softxent.use_backend({backend!r}):
    def some(n):
        for _ in range(n):
            softxent.cross_entropy_and_grad(z, t); softxent.cross_entropy(z, t, label_smoothing=0.1); softxent.softmax(z)
            try: softxent.cross_entropy(z, t - 1)
            except ValueError: pass
        return most()
    before = some(1000)  # the collector of cycles has run by then
    print(some(1000) - before)
"""
    )
    assert int(grown) < MIB // 2
