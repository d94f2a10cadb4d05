"""The Triton kernels, on a GPU if there is one and otherwise in Triton's interpreter, and their compilation for sm_90."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import NamedTuple
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import DTYPES, OFFS, SHAPES, Problem, allowed, computed, cooled, exact, problem, python, within
from extended import Worst, expected
from test_waist import check_product, far_out

from softxent import contract, formula
from softxent import torch as st
from softxent.kernels import IGNORED, LARGEST, LARGEST_LOGIT, reference, triton
from softxent.partials import finish, lse, times
from softxent.proof import bounds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = {"triton": triton, "formula": reference}
TRANSFORMS = {"as_given": (1.0, np.inf), "temperature": (0.7, np.inf), "softcap": (1.3, 5.0)}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
CASES = [(dtype, off) for off in OFFS for dtype in DTYPES if off != "dense_narrow" or dtype in ("bf16", "f16")]  # else it is dense
each_case = pytest.mark.parametrize(("dtype", "off"), [(DTYPES[dtype], off) for dtype, off in CASES], ids=map("-".join, CASES))
# a transform does not depend on the type of the logits, and the interpreter takes its time
TRANSFORMED = [
    (*case, name) for case in CASES for name in TRANSFORMS if DEVICE == "cuda" or name == "as_given" or case[0] in ("f32", "f64")
]
each_transformed_case = pytest.mark.parametrize(
    ("dtype", "off", "transform"),
    [(DTYPES[dtype], off, TRANSFORMS[name]) for dtype, off, name in TRANSFORMED],
    ids=map("-".join, TRANSFORMED),
)
each_off = pytest.mark.parametrize("off", OFFS)
# the interpreter takes its time
FEW_SHAPES = SHAPES if DEVICE == "cuda" else [(3, 1), (5, 2), (9, 5), (70, 10), (9, 33), (8, 129), (7, 1000), (2, 4097), (1, 9001)]
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def wider(p: Problem, transform=(1.0, np.inf)) -> Problem:
    """Return the problem with this transform, and with upstream gradients of lse, the log-probability and the entropy, some of them 0."""
    rng = np.random.default_rng(p.z.shape)
    upstream = rng.standard_normal((3, len(p.z))) * rng.choice([0, 1], (3, len(p.z)), p=[0.2, 0.8])
    return p._replace(truth=np.concatenate([p.truth, upstream]), transform=transform)


def direction(p: Problem) -> np.ndarray:
    """Return a direction [R, C] in which the gradient is differentiated. In every other row, its mean is large; that does not matter."""
    rng = np.random.default_rng(p.z.shape)
    v = rng.standard_normal(p.z.shape) + 100 * (np.arange(len(p.z)) % 2)[:, None]
    return v.astype(computed(p.z.dtype))


def cases_of(kernel, dtype, off: str, transform):
    """Return problems, one of them with several tiles of columns, where the largest logits of some rows are in the last one."""
    few, many = [(17, 16)], [(17, 16), (9, 1), (8, 129)]
    cases = [wider(problem(*shape, dtype, off), transform) for shape in (many if kernel is triton else few)]
    if kernel is triton and off == "dense" and (transform[1] != np.inf or dtype == np.float32):  # the interpreter takes its time
        p = wider(problem(4, 4200, dtype, off), transform)
        p.z[::2, -50:] += 3
        p.z[2, -7] += 40  # the product with the Hessian is small, if nothing cancels
        p.truth[2, 2] = 0
        cases.append(p)
    return cases


def tensor(a):
    if a is None:
        return None
    a = np.ascontiguousarray(a)
    bits = torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16) if a.dtype == ml_dtypes.bfloat16 else torch.from_numpy(a.copy())
    return bits.to(DEVICE)


def array(t):
    return (t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy()


def arguments(p: Problem, ready=tensor):
    return [*map(ready, (p.label, p.truth, p.off)), p.transform]


def rows_of(n: int, z):
    return torch.full((n, len(z)), -7.0, dtype=torch.float64, device=DEVICE)


def fused(kernel, p: Problem, out=None, outputs: int = 2):
    z = tensor(p.z)
    out = torch.empty_like(z) if out is None else out
    result, parts = rows_of(outputs, z), rows_of(7, z)
    kernel.fused(z, *arguments(p), out, result, parts, 1)
    return result, parts, out


def two_calls(kernel, p: Problem, outputs: int = 2):
    z = tensor(p.z)
    result, parts, out = rows_of(outputs, z), rows_of(7, z), torch.empty_like(z)
    kernel.forward(z, *arguments(p), result, parts, 1)
    kernel.backward(z, *arguments(p), parts, out, 1)
    return result, parts, out


def curvature(kernel, p: Problem, gauss_newton: bool = False, v=None):
    z = tensor(p.z)
    out, result = torch.empty_like(z), rows_of(4, z)
    kernel.curvature(z, tensor(direction(p) if v is None else v), *arguments(p), gauss_newton, out, result, 1)
    return result, out


def tangent_sums(kernel, p: Problem):
    z = tensor(p.z)
    sums = rows_of(7, z), rows_of(5, z)
    kernel.tangent_sums(z, tensor(direction(p)), tensor(p.label), tensor(p.off), p.transform, *sums, 1)
    return sums


def hessian(kernel, p: Problem, sums=None):
    z = tensor(p.z)
    sums, out, result = sums or (rows_of(7, z), rows_of(5, z)), torch.empty_like(z), rows_of(4, z)
    kernel.hessian(z, tensor(direction(p)), *arguments(p), False, *sums, out, result, 1)
    return result, out


def log_softmax(kernel, z, scale, transform):
    z = tensor(z)
    out = torch.empty_like(z)
    kernel.log_softmax(z, tensor(scale), transform, out, 1)
    return out


def same(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


class Exact(NamedTuple):
    """What kernels/reference.py computes with 11 bits more than float64 has, or in float64 for the other dtypes, which is 29 bits more."""

    hv: np.ndarray  # [R, C]
    along: np.ndarray  # [4, R], the result of `curvature`
    gauss_newton: np.ndarray  # [R, C]
    log_softmax: np.ndarray  # [R, C]


def exact_derivatives(p: Problem, scale: np.ndarray) -> Exact:
    wide = np.longdouble if p.z.dtype == np.float64 else np.float64

    def widened(a):
        return a if a is None or a.dtype == np.int64 else a.astype(wide)

    z, v, label, numbers, off = map(widened, (p.z, direction(p), p.label, p.truth, p.off))
    a = Exact(np.empty_like(z), np.empty((4, len(z)), wide), np.empty_like(z), np.empty_like(z))
    with mock.patch.object(reference, "_wide", widened), np.errstate(all="ignore"):
        reference.curvature(z, v, label, numbers, off, p.transform, True, a.gauss_newton, a.along, 1)
        reference.curvature(z, v, label, numbers, off, p.transform, False, a.hv, a.along, 1)
        reference.log_softmax(z, scale.astype(wide), p.transform, a.log_softmax, 1)
    return a


class Sizes(NamedTuple):
    """Bounds of the errors of what the kernels give, each a multiple of the sum of its terms without their signs."""

    result: np.ndarray  # [5, R]
    parts: np.ndarray  # [7, R]
    dz: np.ndarray  # [R, C]
    hv: np.ndarray
    along: np.ndarray  # [4, R]
    gauss_newton: np.ndarray
    log_softmax: np.ndarray
    apart: np.ndarray  # [R] a difference of logits below which the largest of them is not determined


def bounds_of(p: Problem, scale: np.ndarray) -> Sizes:
    """`e` is the relative error of the sums over a row and of their functions (proof/bounds.py), of an exponential and of three products.

    An error of d in all logits changes it by 2 d. The slope of a transform has an error of 8 units, and 4 |z| / cap more in float64.
    """
    dtype, classes = p.z.dtype, p.z.shape[1]
    u, store = bounds.unit(dtype), bounds.UNIT[dtype.name]
    if dtype == ml_dtypes.bfloat16 and DEVICE == "cpu":
        store = 2.0**-7  # the interpreter truncates
    roundings = 0 if p.transform == (1, np.inf) else 2 if p.transform[1] == np.inf else 6  # of a transformed logit
    y, r, q, g, l, b, n = np.abs(p.truth)  # noqa: E741
    off = np.zeros(p.z.shape) if p.off is None else np.abs(p.off.astype(np.float64)) + np.zeros(p.z.shape)
    with np.errstate(all="ignore"):
        z, slope, second = cooled(p.z.astype(np.float64), *p.transform)
        slope, second = np.abs(slope) + np.zeros(z.shape), np.abs(second) + np.zeros(z.shape)
        x = formula.partials(z, p.label, off)
        hot = formula.at_label(z, p.label)
        nll, miss, over = finish(x)
        yhat_t, gap = np.exp(-nll), np.abs(x.m - x.zt)
        d = 2 * roundings * u * np.abs(np.where(np.isfinite(z), z, 0)).max(1)
        e = (8 + 2 * np.log(classes)) * u + 2 * bounds.loss_bound(dtype, classes, np.where(np.isfinite(gap), gap, 0.0)) + d
        level, h = np.abs(lse(x)), formula.entropy(x)
        yhat, away = formula.softmax(z, x), formula.surprisal(z, x)
        each = e[:, None] + 2 * u * np.where(yhat > 0, away, 0)  # of yhat_k
        truth_t, rest = y + r * x.wt, r * x.o + times(q, 1 + level)
        loss = times(truth_t, nll) + times(r, x.d + times(x.o, np.abs(over))) + times(q, level**2 / 2) + rest
        h = h + miss  # lse - m, where m is not the label's, has an absolute error
        result = np.array([e * loss, e + 2.0**-50 * level, e * nll, 3 * e * h, 0 * h])
        parts = np.array([d, 2 * e * x.s, 2 * e * x.o, 2 * e * (x.d + x.o), d, 2 * u * x.wt, 3 * e * (x.u + x.s)])

        total = g * (truth_t + rest) + l + b + 3 * n * h
        terms = times(yhat, total[:, None] + times(n[:, None] + 0 * away, away))
        at_label = g * (rest * yhat_t + truth_t * miss) + (l + 3 * n * h + times(n, nll)) * yhat_t + b * miss
        by_off = (g * r)[:, None] * off
        value = np.where(hot, at_label[:, None], terms + by_off)
        near = at_label - (g * truth_t + b) * miss * (1 - yhat_t)  # miss has the relative error e yhat_t
        dz = np.where(hot, (e * near + 2.0**-48 * (at_label + g * rest))[:, None], each * terms + 4 * u * by_off)
        bent = 4 * bounds.UNIT["float64"] * np.abs(np.where(np.isfinite(p.z), p.z, 0).astype(np.float64)) / p.transform[1]
        dz += ((8 * u + bent) * (roundings > 0) + store) * value

        v = p_v = direction(p).astype(np.float64)
        v = v * slope
        vj = np.take_along_axis(v, yhat.argmax(1)[:, None], 1)
        spread = np.abs(v - vj) + times(yhat, np.abs(v - vj)).sum(1)[:, None]
        spread += 3 * (np.abs(v) + np.abs(vj) + times(yhat, np.abs(v)).sum(1)[:, None]) * (roundings > 0)  # each slope is rounded
        mean = np.abs(vj[:, 0]) + spread.max(1)
        dentropy = times(yhat * spread, away).sum(1)
        along = np.array([mean, np.where(hot, spread, 0).sum(1), times(off, spread).sum(1), dentropy])
        moved = times(yhat, (total + n)[:, None] * spread + times(n[:, None] * spread, away) + (times(g * q, mean) + n * dentropy)[:, None])
        curved = value * np.abs(p_v) * second
        largest = formula.partials(z, z.argmax(1))
        logs = (3 * e[:, None] + store) * np.abs(scale)[:, None] * formula.surprisal(z, largest)
        floor = bounds.TINY[dtype.name] + 2.0**-120 * (dtype != np.float64)
        return Sizes(
            result, parts, slope * dz + floor, (3 * each + 2 * bent + store) * (moved * slope + 3 * curved) + floor, 3 * e * along + floor,
            (3 * each + 2 * bent + store) * moved * slope + floor, logs + floor, d,
        )  # fmt: skip


@each_case
@each_kernel
def test_loss_and_gradient_are_the_formula(kernel, dtype, off):
    """The results are within the bounds of the compiled kernel, with allowances: the interpreter truncates to bfloat16, and a GPU flushes
    subnormals to 0."""
    for shape in FEW_SHAPES if kernel is triton else SHAPES[::3]:
        p = problem(*shape, dtype, off)
        result, parts, dz = fused(kernel, p)
        want, (loss_bound, dz_bound) = exact(p), allowed(p)
        factor = 6 if dtype == np.float32 and kernel is triton else 1
        dz_bound = dz_bound + 2.0**-120 * (dtype != np.float64)
        if dtype == ml_dtypes.bfloat16 and DEVICE == "cpu":
            dz_bound = dz_bound + 2.0**-7 * np.abs(np.where(np.isfinite(want.dz), want.dz, 0))
        within(array(result[0]), want.result[0], loss_bound, f"loss {shape}")
        within(array(dz), want.dz, factor * dz_bound, f"gradient {shape}")
        lse = want.result[1].astype(float)
        near = loss_bound + np.where(np.isfinite(lse), np.abs(lse), 0) * 2.0**-50 + 2.0**-22 * (dtype != np.float64)
        within(array(result[1]), want.result[1], near, f"lse {shape}")
        same((result, parts, dz), two_calls(kernel, p))


@pytest.mark.parametrize("of_r", [-140, -240])
@each_kernel
def test_a_subnormal_weight_of_a_large_truth_keeps_its_digits(kernel, of_r):
    """g r is subnormal in float32 or 0 there, but not its product with off."""
    z = np.array([[20, 0, 1, -3.0], [-3, 0, 1, 0.0]] * 3, np.float32)
    off = (np.array([1, 0.5, 0.7, 0.2]) * 2.0**120 * np.ones((6, 1))).astype(np.float32)
    truth = np.array([[0.0] * 6, np.array([1.37, 1.9, 1.01] * 2) * 2.0**of_r, [0.0] * 6, [1.0] * 6])
    p = Problem(z, np.array([-1, 0, 1, 2, 3, -1]), truth, off)
    within(array(fused(kernel, p)[2]), exact(p).dz, 6 * allowed(p)[1])


@each_transformed_case
@each_kernel
def test_all_outputs_and_all_upstream_gradients_are_the_formula(kernel, dtype, off, transform):
    for p in cases_of(kernel, dtype, off, transform):
        shape = p.z.shape
        got, want, bound = fused(kernel, p, outputs=5), exact(p, 5), bounds_of(p, np.ones(len(p.z)))
        for name, i in zip(formula.Outputs._fields[:4], range(4), strict=True):
            within(array(got[0][i]), want.result[i], bound.result[i], f"{name} {shape}")
        clear = np.abs(want.parts[4] - want.parts[0]) > bound.apart
        assert (array(got[0][4]) == want.result[4])[clear | (transform[1] == np.inf)].all()
        within(array(got[1]), want.parts, bound.parts, f"partial sums {shape}")
        within(array(got[2]), want.dz, bound.dz, f"gradient {shape}")
        same(got, two_calls(kernel, p, outputs=5))


@each_transformed_case
@each_kernel
def test_curvature_and_log_softmax_are_the_formula(kernel, dtype, off, transform):
    for p in cases_of(kernel, dtype, off, transform):
        shape = p.z.shape
        scale = np.random.default_rng(0).standard_normal(len(p.z))
        want, bound = exact_derivatives(p, scale), bounds_of(p, scale)
        along, hv = curvature(kernel, p)
        within(array(hv), want.hv, bound.hv, f"curvature {shape}")
        within(array(along), want.along, bound.along, f"numbers of curvature {shape}")
        again, gauss_newton = curvature(kernel, p, gauss_newton=True)
        within(array(gauss_newton), want.gauss_newton, bound.gauss_newton, f"Gauss-Newton {shape}")
        same([again], [along])
        within(array(log_softmax(kernel, p.z, scale, transform)), want.log_softmax, bound.log_softmax, f"log_softmax {shape}")


@pytest.mark.parametrize("dtype", [DTYPES["f32"], DTYPES["f64"]], ids=["f32", "f64"])
@pytest.mark.parametrize("cap", [5.0, 0.3])
def test_a_softcap_and_its_slope_are_accurate_for_logits_of_any_size(dtype, cap):
    """With one class, lse is the transformed logit, and its gradient is the slope."""
    size = np.concatenate([np.linspace(1e-3, 3, 3001), np.geomspace(1e-30, 1e-3, 500), np.geomspace(3, 40, 1000)])
    z = (cap * np.concatenate([size, -size, [0.0, np.inf, -np.inf]])).astype(dtype)[:, None]
    label, numbers = np.full(len(z), -1), np.array([0, 0, 0, 0, 1, 0, 0.0])[:, None]
    p = Problem(z, label, numbers, None, (1.3, cap))
    result, _, slope = fused(triton, p)
    want, want_slope, _ = cooled(z.astype(np.longdouble), *p.transform)
    u, tiny = bounds.unit(dtype), 2.0**-120 if dtype == np.float32 else 2.0**-1000
    exactly = DEVICE == "cpu"  # a GPU's quotient has an error of 4 units
    within(array(result[1]), want[:, 0], (4 if exactly else 8) * u * np.abs(want[:, 0]), "the logit")
    away = (
        np.abs(np.where(np.isfinite(z), z, 0).astype(float)) / cap * (dtype == np.float64 or not exactly)
    )  # the rounding of z / cap counts
    within(array(slope), want_slope, ((6 if exactly else 12) + 4 * away) * u * want_slope + tiny, "the slope")


@pytest.mark.parametrize("cap", [1e-30, 1e-3, 1e10, 1e20, 1e30, 1e39, 1e45, 1e280])
@pytest.mark.parametrize("dtype", [DTYPES["f32"], DTYPES["f64"]], ids=["f32", "f64"])
def test_a_softcap_may_be_far_larger_or_smaller_than_the_logits(dtype, cap):
    rng = np.random.default_rng(0)
    for temperature in (1.0, 1e-3, 1e3):
        z = (rng.standard_normal((9, 33)) * min(1e30, cap * 3, temperature * 50)).astype(dtype)
        p = Problem(z, rng.integers(0, 33, 9), np.array([[1.0], [0], [0], [1.0]]), None, (temperature, cap))
        (result, _, dz), want = fused(triton, p), exact(p)
        near = 2.0**10 * bounds.unit(dtype)
        within(array(result[0]), want.result[0], near * (1 + want.result[0]), f"loss {temperature}")
        within(array(dz), want.dz, near * np.abs(want.dz).max() + 1e-37, f"gradient {temperature}")  # subnormal slopes


@pytest.mark.parametrize("classes", [2, 70])
@pytest.mark.parametrize("dtype", [DTYPES["f32"], DTYPES["f64"]], ids=["f32", "f64"])
def test_logits_and_temperatures_and_softcaps_and_directions_of_any_size(dtype, classes):
    """The law of the compiled kernel (test_waist.py), with its bounds."""
    rng = np.random.default_rng(classes)
    for _ in range(8 if DEVICE == "cpu" else 400):
        p, v = far_out(rng, dtype, classes)
        got, found = fused(triton, p, outputs=5), expected(p, v)
        same(got, two_calls(triton, p, outputs=5))
        for kind, x in zip(("loss", "lse", "log-probability", "entropy"), array(got[0]), strict=False):
            Worst().check(kind, x, found[kind], str(p.transform))
        Worst().check("gradient", array(got[2]), found["gradient"], str(p.transform))
        check_product(p, v, array(curvature(triton, p, v=v)[1]), found["Hessian product"], str(p.transform))


@each_kernel
@each_transform
def test_an_ignored_row_is_not_looked_at(kernel, transform):
    p = wider(problem(9, 33, DTYPES["f32"], "dense"), transform)
    v = direction(p)
    clean = [*fused(kernel, p, outputs=5), *curvature(kernel, p)]
    p.label[4] = IGNORED
    p.z[4], p.off[4], p.truth[:, 4], v[4] = np.nan, np.nan, np.nan, np.nan
    got = [*fused(kernel, p, outputs=5), *curvature(kernel, p, v=v)]
    same(got[:3], two_calls(kernel, p, outputs=5))
    result, parts, dz, along, hv = got
    assert (result[:, 4] == 0).all() and (dz[4] == 0).all() and (along[:, 4] == 0).all() and (hv[4] == 0).all()
    assert parts[:, 4].tolist() == [-np.inf, 0, 0, 0, -np.inf, 0, 0]
    others = [i for i in range(9) if i != 4]
    same([x[:, others] for x in (result, parts, along)], [x[:, others] for x in (clean[0], clean[1], clean[3])])
    same([dz[others], hv[others]], [clean[2][others], clean[4][others]])


@each_kernel
@each_transform
@each_off
def test_the_label_may_be_the_class_with_the_largest_truth_or_logit(kernel, transform, off):
    """Of equal ones, it is the first."""
    for shape in [(9, 33)] + [(4, 5000)] * (transform == TRANSFORMS["as_given"]):
        classes = shape[1]
        p = wider(problem(*shape, DTYPES["f32"], off), transform)
        of, rows, largest = p.off if off.startswith("dense") else p.z, [0, 2, 3], [classes - 1, 3, 0]
        of[2, [3, 7, classes - 1]] = of[rows, largest] = 1000
        for special, columns in ((LARGEST, largest), (LARGEST_LOGIT, p.z[rows].argmax(1).tolist())):
            p.label[rows] = torch.as_tensor(columns)
            want = [*fused(kernel, p, outputs=5), *curvature(kernel, p)]
            p.label[rows] = special
            same([*fused(kernel, p, outputs=5), *curvature(kernel, p)], want)
            same(two_calls(kernel, p, outputs=5), want[:3])


@each_kernel
@each_transform
def test_a_row_without_coefficients_has_no_gradient(kernel, transform):
    """Even if its logits are NaN."""
    p = wider(problem(8, 33, DTYPES["f32"]), transform)
    p.z[3] = np.nan
    p.truth[3:, 3] = 0
    assert (fused(kernel, p)[2][3] == 0).all()
    p.truth[:, 3] = 0
    assert (curvature(kernel, p)[1][3] == 0).all()
    loss, lse, *_ = fused(kernel, p, outputs=5)[0][:, 3]
    assert loss == 0 and lse.isnan()


@each_kernel
@each_transform
def test_one_column_of_numbers_is_for_all_rows(kernel, transform):
    for n in (4, 7):
        p = wider(problem(9, 33, DTYPES["f32"], "shared"), transform)
        one = p._replace(truth=p.truth[:n, :1])
        each = p._replace(truth=np.repeat(p.truth[:n, :1], 9, axis=1))
        same([*fused(kernel, one), *curvature(kernel, one)], [*fused(kernel, each), *curvature(kernel, each)])
    scale = np.array([-0.7])
    same([log_softmax(kernel, p.z, scale, transform)], [log_softmax(kernel, p.z, np.repeat(scale, 9), transform)])


@each_off
def test_what_is_not_asked_for_changes_nothing_else(off):
    """The same numbers, with and without zeros for the other upstream gradients, and two or five outputs, give the same values."""
    p = problem(9, 129, DTYPES["f32"], off)
    zeros = p._replace(truth=np.concatenate([p.truth, np.zeros((3, 9))]))
    few, more, all_outputs = fused(triton, p), fused(triton, zeros), fused(triton, p, outputs=5)
    assert (few[1][6] == 0).all() and (more[1][6] > 0).any() and (all_outputs[1][6] > 0).any()
    for other in (more, all_outputs):
        same([few[0], few[1][:6], few[2]], [other[0][:2], other[1][:6], other[2]])
    along, hv = curvature(triton, p)
    assert (along[3] == 0).all()
    more_along, more_hv = curvature(triton, zeros)
    same([along[:3], hv], [more_along[:3], more_hv])


@each_kernel
@pytest.mark.parametrize("columns", [slice(None), 5], ids=["all", "one"])
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_what_is_wrong_with_a_row_stays_in_it(kernel, value, columns):
    p = wider(problem(8, 33, DTYPES["f32"]))
    scale = np.ones(8)
    clean = [*fused(kernel, p, outputs=5), *curvature(kernel, p), log_softmax(kernel, p.z, scale, p.transform)]
    p.z[3, columns] = value
    spoilt = [*fused(kernel, p, outputs=5), *curvature(kernel, p), log_softmax(kernel, p.z, scale, p.transform)]
    bad = value != -np.inf or columns != 5  # one class may be masked
    assert (spoilt[0][:4, 3].isnan() == bad).all() and all((x[3].isnan() == bad).all() for x in (spoilt[2], spoilt[4], spoilt[5]))
    others = [i for i in range(8) if i != 3]
    for i in (0, 1, 3):
        same([clean[i][:, others]], [spoilt[i][:, others]])
    for i in (2, 4, 5):
        same([clean[i][others]], [spoilt[i][others]])


@each_kernel
def test_no_label_is_right_next_to_nan(kernel):
    z = np.array([[3.0, 1, 1], [3, np.nan, 1], [np.nan, 1, 1], [-np.inf, -np.inf, -np.inf], [2, 2, 1], [1, 2, 1]], np.float32)
    p = Problem(z, np.zeros(6, np.int64), np.ones((4, 1)), None)
    assert fused(kernel, p, outputs=5)[0][4].tolist() == [1, 0, 0, 0, 1, 0]


@each_kernel
def test_the_gradient_may_be_written_over_the_logits_and_rows_may_lie_apart(kernel):
    p = wider(problem(7, 1000, DTYPES["f32"], "shared"), TRANSFORMS["softcap"])
    want = fused(kernel, p, outputs=5)
    wide, more = torch.full((7, 1100), 5.0, device=DEVICE), torch.full((12, 9), 5.0, dtype=torch.float64, device=DEVICE)
    wide[:, :1000] = tensor(p.z)
    z, result, parts = wide[:, :1000], more[:5, 1:8], more[5:, 1:8]
    kernel.fused(z, *arguments(p), z, result, parts, 1)
    same((result, parts, z), want)
    wide[:, :1000] = tensor(p.z)
    kernel.forward(z, *arguments(p), result, parts, 1)
    kernel.backward(z, *arguments(p), parts, z, 1)
    same((result, parts, z), want)
    assert (wide[:, 1000:] == 5).all() and (more[:, [0, 8]] == 5).all()


@each_kernel
def test_a_product_may_be_written_over_the_direction(kernel):
    p = wider(problem(7, 5000, DTYPES["f32"], "shared"), TRANSFORMS["softcap"])
    want = curvature(kernel, p)
    v, result = tensor(direction(p)), rows_of(4, p.z)
    kernel.curvature(tensor(p.z), v, *arguments(p), False, v, result, 1)
    same((result, v), want)
    z = tensor(p.z)
    kernel.log_softmax(z, torch.ones(1, dtype=torch.float64, device=DEVICE), p.transform, z, 1)
    same([z], [log_softmax(kernel, p.z, np.ones(1), p.transform)])


@pytest.mark.parametrize("shape", [(70, 10), (65, 100), (4, 5000)], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(shape):
    p = wider(problem(*shape, DTYPES["f32"], "dense"), TRANSFORMS["softcap"])
    scale, v = np.random.default_rng(0).standard_normal(len(p.z)), direction(p)
    whole = [*fused(triton, p, outputs=5), *curvature(triton, p), log_softmax(triton, p.z, scale, p.transform)]
    for i in (slice(0, 1), slice(2, 5), slice(3, shape[0])):
        few = p.rows(i)
        some = [*fused(triton, few, outputs=5), *curvature(triton, few, v=v[i]), log_softmax(triton, few.z, scale[i], p.transform)]
        same(some, [x[:, i] if n in (0, 1, 3) else x[i] for n, x in enumerate(whole)])


@each_dtype
def test_a_tile_has_one_shape_whatever_the_batch(monkeypatch, dtype):
    """On a GPU, the order of additions depends on the shape of the tile. The interpreter's order is always that of NumPy."""
    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, ROWS, BLOCK, **__: seen.append((ROWS, BLOCK))

    for name in ("_layer", "_curvature", "_tangent_sums", "_hessian", "_log_softmax"):
        monkeypatch.setattr(triton, name, Kernel())
    for call in (fused, two_calls, curvature, tangent_sums, hessian, lambda kernel, p: log_softmax(kernel, p.z, np.ones(1), p.transform)):
        seen.clear()
        for classes in (10, 100, 9001):
            before = len(seen)
            for rows in (1, 3, 70):
                call(triton, problem(rows, classes, dtype))
            assert len(set(seen[before:])) == 1
        assert len(set(seen)) == 3


def test_triton_takes_the_numbers_of_the_transform_in_float64():
    """Triton passes a float of Python as float32. 1 + 2^-40 is 1 in float32."""
    p = problem(9, 5, DTYPES["f64"])
    for transform in ((1 + 2.0**-40, np.inf), (1.0, 5 + 5 * 2.0**-40)):
        near = p._replace(transform=transform)
        # 32 times nearer than 2^-40
        within(array(fused(triton, near)[0][0]), exact(near).result[0], 2.0**-45 * np.abs(exact(near).result[0]) + 2.0**-45)
        assert not torch.equal(fused(triton, near)[0], fused(triton, p._replace(transform=tuple(map(np.float32, transform))))[0])


@pytest.mark.parametrize("g", [1.0, -2.5, 0.0])
def test_a_gradient_is_scaled_in_place(g):
    x = torch.randn(3, 5000, device=DEVICE)
    want, at = x * g, x.data_ptr()
    assert triton.scale(x, torch.tensor(g, device=DEVICE)).data_ptr() == at
    torch.testing.assert_close(x, want, rtol=0, atol=0)


COMPILE = """
import json, math, subprocess
from contextlib import nullcontext
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from softxent.kernels import triton as kernels

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
made = []


class Device:
    # stands for a GPU of compute capability 9.0, on which nothing runs
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)


class OnlyCompiled:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid):
        return lambda *arguments, **options: made.append(self.kernel.run(*arguments, grid=grid, warmup=True, **options))


triton.runtime.driver.set_active(Device())
kernels._on = nullcontext
for name in ("_layer", "_curvature", "_tangent_sums", "_hessian", "_log_softmax", "_scale"):
    setattr(kernels, name, OnlyCompiled(getattr(kernels, name)))


def arguments(rows, classes, dtype, numbers=4, outputs=2, transform=(1.0, math.inf), off=None):
    z, label = torch.zeros(rows, classes, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    numbers, result, parts = (torch.zeros(n, rows, dtype=torch.float64) for n in (numbers, outputs, 7))
    return [z, label, numbers, off, transform], result, parts, torch.zeros_like(z)


def plain(rows, classes, dtype):
    truth, result, parts, out = arguments(rows, classes, dtype)
    kernels.fused(*truth, out, result, parts, 1)
    kernels.forward(*truth, result, parts, 1)
    kernels.backward(*truth, parts, out, 1)


def more(rows, classes, dtype):
    off = torch.zeros(rows, classes, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    truth, result, parts, out = arguments(rows, classes, dtype, 7, 5, (0.7, 5.0), off)
    kernels.fused(*truth, out, result, parts, 1)
    kernels.curvature(truth[0], off, *truth[1:], False, out, result[:4], 1)
    kernels.log_softmax(truth[0], result[0], truth[4], out, 1)
    tangents = torch.zeros(5, rows, dtype=torch.float64)
    kernels.tangent_sums(truth[0], off, truth[1], *truth[3:], parts, tangents, 1)
    kernels.hessian(truth[0], off, *truth[1:], False, parts, tangents, out, result[:4], 1)


def used(kernel):
    Path("kernel.cubin").write_bytes(kernel.asm["cubin"])
    text = subprocess.run([TOOL, "-res-usage", "kernel.cubin"], capture_output=True, text=True, check=True).stdout
    found = dict(w.split(":") for w in text.split() if w.startswith(("REG:", "STACK:")))
    return int(found["REG"]), int(found["STACK"]), ".v4.b32" in kernel.asm["ptx"]


def of(functions, shapes, dtypes):
    made.clear()
    for function in functions:
        for shape in shapes:
            for dtype in dtypes:
                function(*shape, dtype)
    return [used(kernel) for kernel in made]


print(json.dumps([
    of([plain], [(48, 4096)], [torch.float32, torch.bfloat16]),
    of([plain], [(304, 16)], [torch.bfloat16, torch.float64]),
    of([more], [(48, 4096)], [torch.bfloat16, torch.float64]) + of([more], [(304, 16)], [torch.bfloat16]),
    of([plain], [(1, 1)], [torch.float32]),
]))
"""


def test_it_compiles_for_a_gpu_without_spilling(tmp_path, monkeypatch):
    """Calls of all kinds are compiled for sm_90 by Triton's compiler. The logits are read 16 bytes at a time, and the registers suffice.

    On the stack are only a few words: of the largest kernels, and of those that compute on many rows in each program, where the assembler
    prefers that more programs run at the same time.
    """
    monkeypatch.chdir(tmp_path)
    wide, narrow, more, one = json.loads(python(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).splitlines()[-1])
    assert [len(x) for x in (wide, narrow, more, one)] == [6, 6, 15, 3]
    assert all(vector for _, _, vector in wide)
    assert all(stack == 0 for _, stack, _ in wide + one)
    assert all(stack <= 32 for _, stack, _ in narrow), narrow
    assert all(stack <= 128 for _, stack, _ in more), more
    registers = 80 if version("triton").startswith("3.2.") else 64  # three, or four, programs of 256 threads run at the same time
    assert all(used <= registers for used, _, _ in wide), wide


# ---- the front end over both ----

each_backend = pytest.mark.parametrize("backend", KERNELS)


@each_backend
def test_nothing_waits_for_the_device(backend, monkeypatch):
    """Neither the loss nor its gradient nor the scaling by an upstream gradient reads a number from the device."""
    monkeypatch.setattr(contract, "outside", lambda *_: None)
    z, t = torch.randn(6, 5, device=DEVICE, requires_grad=True), torch.randint(0, 5, (6,), device=DEVICE)
    with st.use_backend(backend), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        (st.cross_entropy(z, t, weight=torch.rand(5, device=DEVICE), label_smoothing=0.1) * 3).backward()
        st.cross_entropy(z, t, reduction="none", return_lse=True).loss.sum().backward()
    names = {e.name for e in seen.events()}
    assert ("aten::mul" in names) and ("aten::empty_like" in names)
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


@each_backend
def test_an_unchecked_label_out_of_range_spoils_its_row_alone(backend, monkeypatch):
    z, t = torch.randn(6, 5, device=DEVICE, requires_grad=True), torch.randint(0, 5, (6,), device=DEVICE)
    t[2] = 7
    with st.use_backend(backend):
        if DEVICE == "cpu":
            with pytest.raises(ValueError, match=r"^cross_entropy: target must lie in \[0, 5\) or be ignore_index=-100; got 7 at row 2$"):
                st.cross_entropy(z, t)
            monkeypatch.setattr(contract, "outside", lambda *_: None)
        loss = st.cross_entropy(z, t, reduction="none")
        (dz,) = torch.autograd.grad(loss.sum(), z)
        mean = st.cross_entropy(z, t)
    bad = torch.arange(6, device=DEVICE) == 2
    assert (loss.isnan() == bad).all() and (dz.isnan() == bad[:, None]).all() and mean.isnan()


@each_backend
@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
        lambda z: z[:, None].expand(-1, 2, -1)[:, 1],
        lambda z: torch.stack([z, z], 2)[..., 1],
    ],
    ids=["columns", "expanded", "apart"],
)
def test_any_layout(backend, layout):
    z, t = torch.randn(6, 5, device=DEVICE), torch.randint(0, 5, (6,), device=DEVICE)
    found = []
    with st.use_backend(backend):
        for x in (z.clone(), layout(z)):
            x.requires_grad_()
            loss = st.cross_entropy(x, t, z_loss=0.1)
            found.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    same(*found)


@each_backend
def test_every_derivative(backend):
    torch.manual_seed(0)
    z = torch.randn(2, 3, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    t = torch.randint(0, 3, (2, 2), device=DEVICE)

    def loss(z, reduction="none"):
        r = st.cross_entropy(z, t, reduction=reduction, label_smoothing=0.1, z_loss=0.01, return_lse=True)
        return r.loss.sum() + (r.lse**2).sum()

    with st.use_backend(backend):
        torch.autograd.gradcheck(loss, (z,), check_forward_ad=True)
        torch.autograd.gradgradcheck(loss, (z,))
        torch.autograd.gradcheck(lambda z: st.cross_entropy(z, t) * -2, (z,))


@each_backend
def test_logits_far_from_the_temperature_and_the_softcap(backend):
    """The products of 1e8, 1e8 + 8 and 1e8 + 16 with 100 are no float32 numbers, and their differences are."""

    def loss_and_gradient(z, dtype=torch.float32, **options):
        z = torch.tensor([z], dtype=dtype, device=DEVICE, requires_grad=True)
        with st.use_backend(backend):
            loss = st.cross_entropy(z, torch.tensor([0], device=DEVICE), **options)
        return loss.item(), torch.autograd.grad(loss, z)[0][0].tolist()

    def near(want, dtype="float32"):
        return pytest.approx(want, rel=8 * bounds.UNIT[dtype])

    assert loss_and_gradient([1e8, 1e8 + 8, 1e8 + 16], temperature=0.01) == (near(1600), near([-100, 0, 100]))
    assert loss_and_gradient([1, 2, 3], temperature=1e-10)[0] == near(2e10)
    for options in (dict(temperature=1e46), dict(temperature=1.7e308, softcap=1)):
        assert loss_and_gradient([1, 2, 3], **options)[0] == near(np.log(3))
    assert loss_and_gradient([1, 2, 3], temperature=2.0**-126, softcap=1e300)[0] == near(2.0**127)
    far = [1.6e308, -1.6e308]
    assert loss_and_gradient(far, torch.float64, label_smoothing=0.1)[0] == near(1.6e307, "float64")
    if backend == "formula":  # divides float64 logits by the temperature
        return
    assert loss_and_gradient(far[::-1], torch.float64, temperature=4)[0] == near(0.8e308, "float64")
    assert loss_and_gradient(far, torch.float64, temperature=1e308)[0] == near(np.log1p(np.exp(-3.2)), "float64")
    wide = [1e17, 1e17 + 16, 1e17 + 32]
    assert loss_and_gradient(wide, torch.float64, temperature=2.0**-7 / 3)[0] == near(32 * 3 * 2.0**7, "float64")
    tiny = dict(temperature=2.0**-126, softcap=1e308)
    assert loss_and_gradient([2.0**-17, 2.0**-16, 0], torch.float64, **tiny)[0] == near(2.0**109, "float64")


@each_kernel
@pytest.mark.parametrize(
    ("v", "upstream"), [((1e25, -1e25), 1.0), ((3e8, -1e8), 1e-44), ((1e15, 0), 1e-50), ((1e-30, 0), 1e60), ((3e38, -3e38), 1e-3)], ids=str
)
def test_hessian_products_of_large_vectors_and_tiny_upstream_gradients(kernel, v, upstream):
    v, truth = np.array([v], np.float32), np.array([[1.0], [0], [0], [upstream]])
    p = Problem(np.array([[0, 1]], np.float32), np.array([0]), truth, None)
    want = upstream * np.exp(1) / (1 + np.exp(1)) ** 2 * (float(v[0, 0]) - float(v[0, 1]))
    along, hv = curvature(kernel, p, v=v)
    within(array(hv), np.array([[want, -want]]), 16 * bounds.UNIT["float32"] * abs(want) + bounds.TINY["float32"])
    mean = (float(v[0, 0]) + np.exp(1) * float(v[0, 1])) / (1 + np.exp(1))
    assert along[0].item() == pytest.approx(mean, rel=16 * bounds.UNIT["float32"])


def test_backends_says_what_computes():
    names = {b.name: b for b in st.backends()}
    assert list(names) == ["cpu", "triton", "formula"]
    assert names["cpu"].active and names["triton"].available == names["triton"].active == torch.cuda.is_available()
    with st.use_backend("formula"):
        assert [b.name for b in st.backends() if b.active] == ["formula"]
    with pytest.raises(ValueError, match=r"^use_backend: name must be 'formula' or 'triton'; got 'cuda'"), st.use_backend("cuda"):
        pass


def test_without_triton_the_formula_computes_and_says_so():
    code = """
import sys, warnings
sys.modules["triton"] = None
import torch, softxent.torch as st
from softxent.torch import compute
print([(b.name, b.available) for b in st.backends()], st.backends()[1].detail)
class Cuda:
    is_cpu, is_cuda, device = False, True, torch.device("cuda")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    print(compute.backend(Cuda).__name__, compute.backend(Cuda).__name__, len(seen), str(seen[0].message)[:48])
"""
    listed, computed = python(code).splitlines()
    assert listed.startswith("[('cpu', True), ('triton', False), ('formula', True)] Triton is missing (")
    assert computed == "softxent.kernels.reference softxent.kernels.reference 1 softxent runs on torch's operations, slowly: Tri"


@pytest.mark.parametrize("kernel", [triton, reference], ids=["triton", "formula"])
def test_labels_with_a_stride_are_not_read_as_adjacent(kernel):
    """One label may stand for all rows, as LARGEST does for probabilities. What follows it in memory is not a label of these rows."""
    z = torch.linspace(-2, 2, 45, dtype=torch.float64, device=DEVICE).reshape(9, 5)
    one = torch.tensor([3, *[IGNORED] * 8], device=DEVICE)[:1].expand(9)
    truth = torch.tensor([[1.0], [0.0], [0.0], [0.7]], dtype=torch.float64, device=DEVICE)
    found = []
    for label in (one, one.contiguous()):
        result, parts, dz, hv, products = rows_of(2, z), rows_of(7, z), torch.empty_like(z), torch.empty_like(z), rows_of(4, z)
        sums, of_sums, products_of_sums = (rows_of(7, z), rows_of(5, z)), torch.empty_like(z), rows_of(4, z)
        kernel.forward(z, label, truth, None, (1.0, float("inf")), result, parts, 1)
        kernel.backward(z, label, truth, None, (1.0, float("inf")), parts, dz, 1)
        kernel.curvature(z, z, label, truth, None, (1.0, float("inf")), False, hv, products, 1)
        kernel.tangent_sums(z, z, label, None, (1.0, float("inf")), *sums, 1)
        kernel.hessian(z, z, label, truth, None, (1.0, float("inf")), False, *sums, of_sums, products_of_sums, 1)
        found.append((result, parts, dz, hv, products, *sums, of_sums, products_of_sums))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert (found[0][0][0] > 0).all()
