"""The second derivative of rows that are cut into shards of their columns: the sums of each, their merge, and the product on each.

The reference is formula.py in float64, on whole rows (kernels/reference.py, curvature). Triton's kernels take NumPy arrays here.
"""

from __future__ import annotations

from itertools import product as combinations
from typing import Any

import numpy as np
import pytest
import triton_backend
from cases import BACKENDS, DTYPES, OFFS, Problem, computed, cuts_of, problem, two_calls, within
from extended import expected
from guarded import guarded
from test_waist import TRANSFORMS, check_product, curved, far_out, with_all_numbers
from tolerances import FEW64, FLOAT64

import softxent
from softxent import kernels
from softxent.kernels import IGNORED, reference
from softxent.proof import bounds

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_off = pytest.mark.parametrize("off", OFFS)
WITH_TRITON = [*BACKENDS, "triton"]
INTERPRETED = triton_backend.DEVICE == "cpu"  # which takes its time, and truncates to bfloat16
FEW_SHAPES = [(17, 10), (3, 1100)]  # a tile of float64 has up to 1024 columns


@pytest.fixture(params=WITH_TRITON, autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setitem(kernels._NAMES, "triton", triton_backend)
    with softxent.use_backend(request.param):
        yield request.param


def shapes_of(backend: str, *shapes: tuple[int, int]) -> list[tuple[int, int]]:
    return FEW_SHAPES if INTERPRETED and backend == "triton" else list(shapes)


def rounding(backend: str, dtype: np.dtype) -> float:
    """Return the relative error of a number that is stored."""
    return 2.0**-7 if INTERPRETED and backend == "triton" and dtype == DTYPES["bf16"] else bounds.UNIT[dtype.name]


def cases_of_shards() -> list[Any]:
    """Return (backend, dtype, off, transform, gauss_newton): all, but of Triton's interpreter those for which its code differs."""
    found = []
    for backend, dtype, off, transform, gauss_newton in combinations(WITH_TRITON, DTYPES, OFFS, TRANSFORMS, (False, True)):
        alike = transform == "softcap" or (gauss_newton and transform != "both") or (transform != "none" and dtype not in ("f32", "f64"))
        if not (backend == "triton" and INTERPRETED and alike):
            name = "-".join((backend, dtype, off, transform, "Gauss-Newton" if gauss_newton else "Hessian"))
            found.append(pytest.param(backend, DTYPES[dtype], off, TRANSFORMS[transform], gauss_newton, id=name))
    return found


def sums_of(p: Problem, v: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    parts, tangents = np.full((7, len(p.z)), -7.0), np.full((5, len(p.z)), -7.0)
    kernels.active().tangent_sums(p.z, v, p.label, p.off, p.transform, parts, tangents, threads)
    return parts, tangents


def product(p: Problem, v: np.ndarray, sums, gauss_newton: bool = False, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    out, result = np.empty_like(p.z), np.full((4, len(p.z)), -7.0)
    kernels.active().hessian(p.z, v, p.label, p.truth, p.off, p.transform, gauss_newton, *sums, out, result, threads)
    return out, result


def in_shards(p: Problem, v: np.ndarray, shards: list[slice], rng, gauss_newton: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the product and the results of `hessian`, computed on each shard from the sums of all, which are merged in a random order."""
    each = [p.columns(k) for k in shards]
    for one in each:
        one.label[p.label == IGNORED] = IGNORED
    parts, tangents = (
        np.array(all_of) for all_of in zip(*(sums_of(one, v[:, k]) for one, k in zip(each, shards, strict=True)), strict=True)
    )
    left, pairs = list(range(len(shards))), []
    while len(left) > 1:
        a, b = sorted(rng.choice(left, 2, replace=False))
        pairs.append((a, b))
        left.remove(b)
    result, merged = np.empty((5, len(p.z))), np.empty((7, len(p.z)))
    order = np.array(pairs, np.int64).reshape(-1, 2)
    kernels.active().merge(parts, order, p.label, p.truth, p.transform[0], result, merged, tangents, 1)
    found = [product(one, v[:, k], (merged, tangents[0]), gauss_newton) for one, k in zip(each, shards, strict=True)]
    for _, others in found[1:]:
        np.testing.assert_array_equal(others, found[0][1])
    return np.concatenate([hv for hv, _ in found], axis=1), found[0][1]


def of_formula(p: Problem, v: np.ndarray, gauss_newton: bool = False) -> tuple[np.ndarray, np.ndarray]:
    z, off = p.z.astype(float), None if p.off is None else p.off.astype(float)
    hv, result = np.empty_like(z), np.empty((4, len(z)))
    reference.curvature(z, v.astype(float), p.label, p.truth, off, p.transform, gauss_newton, hv, result, 1)
    return hv, result


@pytest.mark.parametrize(("backend", "dtype", "off", "transform", "gauss_newton"), cases_of_shards(), indirect=["backend"])
def test_any_shards_of_the_columns_give_the_product_of_the_whole(backend, dtype, off, transform, gauss_newton, rng):
    for shape in shapes_of(backend, (9, 1), (9, 2), (17, 10), (9, 70), (9, 1000), (9, 9001)):
        p = with_all_numbers(problem(*shape, dtype, off))._replace(transform=transform)
        shards = cuts_of(rng.integers(0, shape[1] + 1, rng.integers(0, 5)), shape[1])
        masked = shards[rng.integers(len(shards))]  # may have the label, and may be the whole row, which is NaN
        p.z[::3, masked] = -np.inf
        if off != "label" and p.off.ndim > 1:
            p.off[::3, masked] = 0
        p.label[-1] = IGNORED
        v = rng.standard_normal(shape).astype(computed(dtype))
        v[:, -1] *= 0
        want, wanted = of_formula(p, v, gauss_newton)
        labelled = (p.label >= 0) & (p.label < shape[1])
        z = p.z.astype(float)  # first, for NumPy 2.0 may crash in where with bfloat16 and a number
        impossible = labelled & (z[np.arange(shape[0]), np.where(labelled, p.label, 0)] == -np.inf)
        if p.transform[1] == np.inf:
            wanted[1, impossible] = 0  # the sums do not tell such a label from none
        got, result = in_shards(p, v, shards, rng, gauss_newton)
        size = np.nanmax(np.abs(np.where(np.isfinite(want), want, 0)), axis=1, keepdims=True, initial=0)
        near = FLOAT64 * (1 + np.abs(np.where(np.isfinite(z), z, 0)).max(axis=1, keepdims=True)) ** 2
        stored = rounding(backend, dtype) * np.abs(want) + bounds.TINY[dtype.name]
        within(got, want, near * (1 + size) + stored, f"{shape} {shards} product")
        within(result, wanted, near[:, 0] * (1 + np.abs(np.where(np.isfinite(wanted), wanted, 0))), f"{shape} {shards} results")


@each_off
@each_dtype
def test_one_shard_gives_what_curvature_gives(backend, dtype, off, rng):
    """Both are derivatives of the same row, one computed in the type of the computation and one in float64."""
    for shape in shapes_of(backend, (9, 2), (17, 10), (9, 1000), (5, 5000)):
        p = with_all_numbers(problem(*shape, dtype, off)).rows(slice(0, 4))  # larger logits would cost more digits
        v = rng.standard_normal(p.z.shape).astype(computed(dtype))
        (got, result), (want, wanted) = product(p, v, sums_of(p, v)), curved(p, v)
        near = 2048 * bounds.UNIT[computed(dtype).name]
        size = np.abs(want).max(axis=1, keepdims=True).astype(float)
        within(got, want, near * (1 + size) + 2 * rounding(backend, dtype) * np.abs(want.astype(float)), f"{shape} product")
        within(result, wanted, near * (1 + np.abs(wanted)), f"{shape} results")


@each_off
@each_dtype
def test_the_sums_are_those_of_forward_of_the_row_in_float64(backend, dtype, off, rng):
    """With more than 64 classes and no softcap to the last bit: vector lanes are columns then, as here."""
    for shape in shapes_of(backend, (17, 10), (9, 65), (9, 5000)):
        p = problem(*shape, dtype, off)._replace(transform=TRANSFORMS["temperature"])
        wide = p._replace(z=p.z.astype(float), off=None if off == "label" else p.off.astype(float))
        got, want = sums_of(p, rng.standard_normal(shape).astype(computed(dtype)))[0], two_calls(wide, outputs=5).parts
        np.testing.assert_allclose(got, want, rtol=0 if backend == "cpu" and shape[1] > 64 else FEW64)


@each_dtype
def test_a_row_has_the_same_bits_in_any_batch_on_any_threads_and_in_place(backend, dtype, rng):
    for shape in [(39, 3), *shapes_of(backend, (39, 64), (9, 100), (9, 5000))]:
        p = with_all_numbers(problem(*shape, dtype, "dense"))._replace(transform=(0.7, 9.0))
        v = rng.standard_normal(shape).astype(computed(dtype))
        sums = sums_of(p, v)
        hv, result = product(p, v, sums)
        i = slice(shape[0] // 2, shape[0] // 2 + 1)
        one, other = p.rows(i), [a[:, i] for a in sums]
        for got, want in zip((*sums_of(one, v[i]), *product(one, v[i], other)), (*other, hv[i], result[:, i]), strict=True):
            assert got.tobytes() == want.tobytes()
        for got, want in zip((*sums_of(p, v, 3), *product(p, v, sums, threads=3)), (*sums, hv, result), strict=True):
            assert got.tobytes() == want.tobytes()
        z = p.z.copy()
        kernels.active().hessian(z, v, p.label, p.truth, p.off, p.transform, False, *sums, z, result, 1)
        assert z.tobytes() == hv.tobytes()


@pytest.mark.parametrize("classes", (2, 5, 70))
@pytest.mark.parametrize("backend", [name for name in WITH_TRITON if name != "formula"], indirect=True)
@pytest.mark.parametrize("dtype", [DTYPES["f32"], DTYPES["f64"]], ids=["f32", "f64"])
def test_logits_and_temperatures_and_softcaps_and_directions_of_any_size(backend, dtype, classes, rng):
    """As test_waist.py has it, where the tangents are within the range of float64: v / T and its sums."""
    for _ in range(8 if INTERPRETED and backend == "triton" else 40):
        p, v = far_out(rng, dtype, classes, 800)
        along = np.abs(v.astype(np.longdouble)) / p.transform[0]
        i = ((along > 2.0**-960) & (along < 2.0**960)).all(axis=1)  # so that the tangents are numbers with all digits
        shards = cuts_of(rng.integers(0, classes + 1, rng.integers(0, 3)), classes)
        where = f"{shards} {p.transform} {p.z.tolist()} {p.label} {p.truth[3]} {v.tolist()}"
        check_product(p.rows(i), v[i], in_shards(p, v, shards, rng)[0][i], expected(p.rows(i), v[i])["Hessian product"], where)


@each_dtype
def test_a_masked_class_may_have_any_v_and_nan_stays_in_its_row(backend, dtype, rng):
    for _, classes in shapes_of(backend, (3, 10), (3, 64), (3, 5000)):
        p = with_all_numbers(problem(8, classes, dtype, "dense")).rows(slice(0, 3))
        p.label[:] = 1
        p.z[:, 5:8], p.off[:, 5:8] = -np.inf, 0
        v = rng.standard_normal(p.z.shape).astype(computed(dtype))
        shards = [slice(0, 5), slice(5, 8), slice(8, classes)]
        want, wanted = in_shards(p, v, shards, rng)
        v[:, 5:8] = np.inf, -np.inf, np.nan
        got, result = in_shards(p, v, shards, rng)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(result, wanted)
        for a in (p.z, v):
            before, a[1, 9] = a[1, 9], np.nan
            got, result = in_shards(p, v, shards, rng)
            assert np.isnan(got[1].astype(float)).any() and np.isnan(result[0, 1])
            np.testing.assert_array_equal(got[::2], want[::2])
            np.testing.assert_array_equal(result[:, ::2], wanted[:, ::2])
            a[1, 9] = before


@each_dtype
def test_ignored_rows_are_not_read_and_have_the_sums_of_no_columns(dtype, rng):
    p = with_all_numbers(problem(5, 70, dtype, "dense"))
    p.label[2], p.z[2] = IGNORED, np.nan
    v = np.full(p.z.shape, np.nan, computed(dtype))
    parts, tangents = sums_of(p, v)
    np.testing.assert_array_equal(parts[:, 2], [-np.inf, 0, 0, 0, -np.inf, 0, 0])
    hv, result = product(p, v, (parts, tangents))
    assert not tangents[:, 2].any() and not hv[2].any() and not result[:, 2].any()


@each_off
@each_dtype
def test_nothing_behind_an_array_is_read_or_written(backend, dtype, off, rng):
    """Behind each array is a page of memory that must not be touched."""

    def placed(a):
        copy = guarded(a.nbytes, at_end=True)[0].view(a.dtype).reshape(a.shape)
        copy[:] = a
        return copy

    for rows, classes in shapes_of(backend, (9, 3), (17, 33), (9, 130), (2, 5001)):
        p = with_all_numbers(problem(rows, classes, dtype, off))
        v = rng.standard_normal(p.z.shape).astype(computed(dtype))
        q = Problem(placed(p.z), placed(p.label), placed(p.truth), None if p.off is None else placed(p.off), p.transform)
        sums, out, result = (
            (placed(np.zeros((7, rows))), placed(np.zeros((5, rows)))),
            placed(np.zeros_like(p.z)),
            placed(np.zeros((4, rows))),
        )
        kernels.active().tangent_sums(q.z, placed(v), q.label, q.off, q.transform, *sums, 1)
        kernels.active().hessian(q.z, placed(v), q.label, q.truth, q.off, q.transform, False, *sums, out, result, 1)
        want = sums_of(p, v)
        assert [a.tobytes() for a in (*sums, out, result)] == [a.tobytes() for a in (*want, *product(p, v, want))]


def test_the_log_probability_of_an_impossible_label_has_a_derivative(rng):
    p = with_all_numbers(problem(3, 10, DTYPES["f64"], "label"))
    p.label[:] = 4
    p.z[:, 4] = -np.inf
    v = rng.standard_normal(p.z.shape)
    _, (mean, at_label, *_) = curved(p, v)
    np.testing.assert_allclose(at_label, v[:, 4] - mean, rtol=FLOAT64)


def test_a_masked_row_reads_nothing_where_a_label_of_another_shard_would_be(rng):
    p = with_all_numbers(problem(3, 10, DTYPES["f32"], "label"))
    p.z[1], p.label[1] = -np.inf, 10**12
    v = rng.standard_normal(p.z.shape).astype(np.float32)
    for hv, result in (curved(p, v), product(p, v, sums_of(p, v))):
        assert np.isnan(hv[1]).all() and np.isnan(result[0, 1]) and result[1, 1] == 0
        assert np.isfinite(hv[::2]).all() and np.isfinite(result[:, ::2]).all()
