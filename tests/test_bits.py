"""The result of a row has the same bits for any function, number of threads, batch, place in memory and instruction set."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from cases import BACKENDS, DTYPES, OFFS, SHAPES, Problem, digest, fused, problem, python, two_calls
from tolerances import FEW64

import softxent
from softxent import kernels

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_off = pytest.mark.parametrize("off", OFFS)
MORE = [
    (40, 3),
    (37, 96),
    (37, 97),
    (33, 257),
    (21, 1025),
    (3, 8192),
    (1, 20000),
    (1, 40000),
    (3, 30001),
    (5, 9001),
]  # the limits of tiles; one long row
THREADS = (2, 5)


def problems(dtype, off):
    return (problem(*shape, dtype, off) for shape in SHAPES + MORE)


def same(got, want, what):
    """Assert that the results have the same bits, also for NaN. The message says where they differ first."""
    for name, ours, theirs in zip(("result", "parts", "gradient"), got, want, strict=True):
        a, b = (np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") for x in (ours, theirs))
        assert (a == b).all(), (
            f"{what}: {name} differs in {(a != b).sum()} of {a.size} places, first at {[int(i[0]) for i in (a != b).nonzero()]}"
        )


@each_off
@each_dtype
def test_fused_is_forward_then_backward(backend, dtype, off):
    for p in problems(dtype, off):
        same(two_calls(p), fused(p), p.z.shape)


@each_off
@each_dtype
def test_any_number_of_threads(backend, dtype, off):
    for p in problems(dtype, off):
        want = fused(p)
        for threads in THREADS:
            same(fused(p, threads), want, (p.z.shape, threads))
            same(two_calls(p, threads), want, (p.z.shape, threads))


@each_dtype
@pytest.mark.parametrize("threads", (1, *THREADS))
def test_large_matrices(backend, dtype, threads, rng):
    """There are several parts for each thread. Above 48 MB, the gradient is written past the caches."""
    past = [(410, 124_013 // dtype.itemsize)] if backend == "cpu" else []  # 50.8 MB
    for rows, classes in [(30_000, 10), (700, 1003), *past]:
        z = np.tile(rng.standard_normal((10, classes), dtype=np.float32).astype(dtype), (rows // 10, 1))
        p = Problem(z, rng.integers(0, classes, rows), np.array([[1.0], [0.0], [0.0], [0.5]]), None)
        got = fused(p, threads)
        same(two_calls(p, threads), got, (rows, classes))
        apart = np.full((rows, classes + 5), 7, dtype)  # rows at every alignment, with gaps between them that must not be written
        same(fused(p, threads, out=apart[:, 2:-3]), got, (rows, classes))
        assert (apart[:, [0, 1, -3, -2, -1]] == 7).all(), "written beyond a row"
        some = np.sort(rng.choice(rows, 40, replace=False))
        alone = fused(p._replace(z=z[some], label=p.label[some]))
        same((got.result[:, some], got.parts[:, some], got.dz[some]), alone, (rows, classes))


@each_off
@each_dtype
def test_any_batch(backend, dtype, off, rng):
    """Single rows, parts of the rows, and rows in another order, so that they are computed in other lanes and tiles."""
    for p in problems(dtype, off):
        rows, want = len(p.z), fused(p)
        order = rng.permutation(rows)
        batches = [order, np.arange(rows // 3), np.arange(rows // 3, rows)] + [np.array([i]) for i in order[:4]]
        for batch in batches:
            if len(batch):
                same(fused(p.rows(batch)), (want.result[:, batch], want.parts[:, batch], want.dz[batch]), (p.z.shape, batch[:3]))


@each_off
@pytest.mark.parametrize("transform", [(1.0, np.inf), (0.7, 5.0)])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "formula"], indirect=True)
def test_logits_of_16_bits_have_the_sums_of_the_same_numbers_in_float32(backend, dtype, off, transform):
    """The gradient is that of float32, rounded; the formula backend rounds that of float64."""
    for p in problems(DTYPES[dtype], off):
        p = p._replace(transform=transform)
        wide = fused(p._replace(z=p.z.astype(np.float32), off=None if p.off is None else p.off.astype(np.float32)))
        same(fused(p), (wide.result, wide.parts, wide.dz.astype(p.z.dtype)), (p.z.shape, transform))


@each_dtype
def test_any_place_in_memory(backend, dtype):
    """Every alignment of the logits and the gradient, rows with gaps between them, and the gradient in place of the logits."""
    for classes in (1, 2, 5, 10, 16, 17, 33, 64, 100, 128, 129, 1000, 1003, 9001):
        p = problem(9, classes, dtype, "shared")
        want = fused(p)
        for shift in (*range(1, 18), 31, 33):
            raw = np.zeros(p.z.size + 64, dtype)
            z = raw[shift : shift + p.z.size].reshape(p.z.shape)
            z[:] = p.z
            apart = np.zeros((9, classes + shift), dtype)
            view = apart[:, shift // 2 : shift // 2 + classes]
            view[:] = p.z
            same(
                fused(p._replace(z=z), out=np.zeros_like(raw)[-z.size - shift :][: z.size].reshape(z.shape)),
                want,
                (classes, shift, "unaligned"),
            )
            same(fused(p._replace(z=z), out=z), want, (classes, shift, "in place"))
            same(fused(p._replace(z=view), out=view), want, (classes, shift, "rows apart, in place"))
            around = np.ones(apart.shape, bool)
            around[:, shift // 2 : shift // 2 + classes] = False
            assert not apart[around].any(), "written beyond the rows"


@each_dtype
def test_a_result_that_is_not_wanted_changes_nothing(backend, dtype):
    for off in OFFS:
        p = problem(9, 100, dtype, off)
        want, result, dz = fused(p), np.empty((2, 9)), np.empty_like(p.z)
        kernels.active().fused(p.z, p.label, p.truth, p.off, p.transform, dz, result, None, 1)
        same((result, want.parts, dz), want, off)
        kernels.active().forward(p.z, p.label, p.truth, p.off, p.transform, result, None, 1)
        same((result, want.parts, dz), want, off)


@each_dtype
def test_one_number_for_all_rows_is_that_number_for_each(backend, dtype):
    p = problem(20, 33, dtype, "dense")
    one = p._replace(truth=np.array([[0.5], [0.25], [0.125], [3.0]]))
    same(fused(one), fused(one._replace(truth=np.repeat(one.truth, 20, axis=1))), "truth [4, 1]")


@each_dtype
def test_a_power_of_two_upstream_scales_the_gradient_exactly(backend, dtype):
    """This holds for any power for which the gradient is a normal number of its dtype."""
    for off in OFFS:
        for classes in (10, 100, 5000):
            p = problem(9, classes, dtype, off)
            p.truth[3] = 1
            one, info = fused(p).dz.astype(np.float64), np.finfo(np.float32 if dtype.itemsize == 2 and dtype.kind != "f" else dtype)
            for k in (-20, 3, 15, 70, 100):
                p.truth[3] = 2.0**k
                got, size = fused(p).dz.astype(np.float64), np.abs(one) * 2.0**k
                fits = (size < float(info.max)) & (size > 2 * float(info.tiny)) & (np.abs(one) > 2 * float(info.tiny))
                np.testing.assert_array_equal(got[fits], one[fits] * 2.0**k, err_msg=f"{off}, {classes} classes, upstream 2^{k}")


@pytest.mark.parametrize("threads", (1, *THREADS))
def test_the_whole_layer(backend, threads, rng):
    """The public functions: the most frequent call, which is handled separately, in place, with threads, and row by row."""
    softxent.set_num_threads(threads)
    for rows, classes in ((7, 10), (40, 1000), (3, 20000)):
        for dtype in (np.float32, np.float64):
            z, t = rng.standard_normal((rows, classes)).astype(dtype), rng.integers(0, classes, rows)
            loss, dz = softxent.cross_entropy_and_grad(z, t)
            general, out = softxent.cross_entropy_and_grad(z, t, out=np.empty_like(z))
            w = z.copy()
            inside, _ = softxent.cross_entropy_and_grad(w, t, out=w)
            assert loss == general == inside and dz.tobytes() == out.tobytes() == w.tobytes()
            assert loss == softxent.cross_entropy(z, t)
            batch = softxent.token_logprobs(z, t)
            assert [softxent.token_logprobs(z[i], t[i]) for i in range(rows)] == batch.tolist()
            assert batch.sum() / -rows == pytest.approx(loss, rel=FEW64)


# ---- processors ----

HASH = "import cases, softxent; from softxent.kernels import cpu; print(cpu.isa(), cases.digest())"


def isas() -> list[str]:
    """Return the instruction sets of the kernel that this machine supports."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["generic"]
    with open("/proc/cpuinfo") as f:
        flags = set(next(line for line in f if line.startswith("flags")).split())
    wants = {"generic": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}
    return [name for name, needs in wants.items() if needs <= flags]


@pytest.mark.parametrize("isa", isas() if "cpu" in BACKENDS else [])
def test_any_instruction_set(isa):
    with softxent.use_backend("cpu"):
        want = digest()
    name, got = python(HASH, SOFTXENT_ISA=isa).split()
    assert name == isa
    assert got == want, f"{isa} gives other bits than {kernels.cpu.isa()}"
