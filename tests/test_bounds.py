"""The rounding bounds of proof/bounds.py: a search finds no row whose error exceeds them, and rows whose error comes close to them. Kernels
that are less accurate exceed them.

The search changes rows of different kinds at random and keeps the rows with the largest |error| / bound for each target. The targets are
the loss, the gradient at the label, the gradient at the label if it has nearly all of the probability, the gradient at another class, and
the sum of exponentials. The reference is formula.py in long double (float64 for the other dtypes). For the rows that the search ends with,
mpmath computes the results again from the definitions.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import ml_dtypes
import mpmath
import numpy as np
import pytest
from cases import BACKENDS, DTYPES, Problem, allowed, computed, exact, fused
from test_symbols import mutant

import softxent
from softxent.kernels import reference
from softxent.proof import bounds

CLASSES = (1, 2, 3, 10, 65, 100, 1000, 5000, 20000)
TARGETS = ("loss", "label", "sure", "other", "sum")
GENERATIONS = 25
each_classes = pytest.mark.parametrize("classes", CLASSES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


# ---- rows ----


def first(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype) -> Problem:
    """Return rows of different kinds with truths of different kinds, in turn. 60 rows have all combinations."""
    i, z = np.arange(rows), rng.standard_normal((rows, classes))
    label = np.where(i % 10 == 9, -1, rng.integers(0, classes, rows))  # -1 matches no column
    up, above = np.zeros((2, rows, classes))
    up[i, label] = rng.uniform(0, 90, rows)
    above[i, label] = 18 + np.log(classes) + rng.uniform(0, 2, rows)  # the label has nearly all of the probability
    subnormal = np.where(up > 0, np.where(i % 2, 745, 103)[:, None] * rng.uniform(0.9, 1, (rows, 1)), 0)
    shift = {"float16": 3e4}.get(dtype.name, 1e8) * (-1.0) ** i
    kinds = (
        z, z + up, z - up, 0 * z + z[:, :1] * rng.choice([1, 30], (rows, 1)), 40 * z, z + subnormal, z - subnormal, 300 + z, z + above,
        np.where(np.arange(classes) % 2, z[:, :1], z[:, -1:]), np.round(z * 8) * 8 + shift[:, None], np.linspace(-80, 0, classes) + 0 * z,
    )  # fmt: skip
    z = np.choose((i % 12)[:, None], kinds).astype(dtype)
    y, r, q, g = rng.random(rows), rng.random(rows), 0.1 * rng.random(rows), rng.uniform(-3, 3, rows)
    g[rng.random(rows) < 0.1] = 1e-40
    truths = [1, 0, 0, 1], [0.9, 0.1, 0, 1], [0, 1, 0, 1], [1, 0, 0.02, 1]  # a label, smoothing, probabilities, z-loss; below, all together
    truth = np.choose(i // 12 % 5, [*(np.array([t]).T for t in truths), np.array([y, r, q, g])])
    truth[0, label < 0] = 0  # otherwise the loss would be infinite
    off = np.where(rng.random(z.shape) < 0.8, rng.random(z.shape) / classes, 0)
    off[i // 12 % 5 == 1] = 1 / classes
    return Problem(z, label, truth, off.astype(computed(dtype)))


def varied(rng: np.random.Generator, p: Problem) -> Problem:
    """Change each row at random: the last digits, some entries, the scale, the distance of the label, or the truth."""
    z, off, truth = p.z.astype(float), p.off.astype(float), p.truth.copy()
    rows, classes = z.shape
    i, how = np.arange(rows), rng.integers(0, 5, rows)
    eps = 2 * bounds.UNIT[p.z.dtype.name]
    some = rng.random(z.shape) < rng.random((rows, 1)) ** 2
    z = np.where((how == 0)[:, None] & some, z * (1 + eps * rng.integers(-9, 10, z.shape)), z)
    z = np.where((how == 1)[:, None], z * (1 + 0.1 * rng.standard_normal((rows, 1))), z)
    z = np.where((how == 2)[:, None] & some, z[i, rng.integers(0, classes, rows)][:, None], z)
    here = (how == 3) & (p.label >= 0)
    z[i[here], p.label[here]] += rng.standard_normal(here.sum()) * rng.choice([1e-3, 1, 20], here.sum())
    truth = np.where(how == 4, truth * (1 + 0.2 * rng.standard_normal(truth.shape)) ** 2, truth)
    off = np.where((how == 4)[:, None] & some, off * (1 + 0.2 * rng.random(z.shape)), off)
    most = float(ml_dtypes.finfo(p.z.dtype).max)
    return Problem(z.clip(-most, most).astype(p.z.dtype), p.label, truth, off.astype(p.off.dtype))


def together(*some: Problem) -> Problem:
    z, label, truth, off, _ = zip(*some, strict=True)
    return Problem(np.concatenate(z), np.concatenate(label), np.concatenate(truth, axis=1), np.concatenate(off))


# ---- the search ----


def measured(p: Problem) -> np.ndarray:  # -> [5, R] |error| / bound of each target, the worst entry of a row
    got, want, (loss, dz) = fused(p), exact(p), allowed(p)
    of_loss = np.abs(got.result[0] - want.result[0]) / loss
    fits = np.abs(want.dz) < float(ml_dtypes.finfo(p.z.dtype).max)
    of_dz = np.where(fits, np.abs(np.where(fits, got.dz.astype(want.dz.dtype), 0) - want.dz) / dz, 0)
    hot = p.label[:, None] == np.arange(p.z.shape[1])
    label = np.where(hot, of_dz, 0).max(axis=1)
    gap = want.parts[4] - np.maximum(want.parts[0], -1e30)
    sure = (gap > 14 + np.log(p.z.shape[1])) & (p.truth[1] == 0) & (p.truth[2] == 0)
    s, live = want.parts[1], (p.truth[:3] != 0).any(axis=0)
    of_sum = np.where(live, np.abs(got.parts[1] - s) / (bounds.sum_bound(p.z.dtype, p.z.shape[1]) * np.where(s == 0, 1, s)), 0)
    ratio = np.array([of_loss, label, np.where(sure, label, 0), np.where(hot, 0, of_dz).max(axis=1), of_sum], float)
    assert not np.isnan(ratio).any()
    return ratio


class Found(NamedTuple):
    ratio: np.ndarray  # [5] the largest of each target
    rows: Problem  # the rows that reach it


@cache
def search(backend: str, dtype: np.dtype, classes: int) -> Found:
    rng = np.random.default_rng([classes, dtype.itemsize, dtype.kind == "f"])
    with softxent.use_backend(backend):
        p = first(rng, max(60, min(360, 60_000 // classes)), classes, dtype)
        ratio = measured(p)
        for _ in range(GENERATIONS if classes < 5000 else 10):
            best = np.unique(np.argsort(ratio, axis=1)[:, -max(1, len(p.z) // 20) :])
            children = varied(rng, p.rows(np.resize(best, max(8, min(100, 40_000 // classes)))))
            p, ratio = together(p.rows(best), children), np.concatenate([ratio[:, best], measured(children)], axis=1)
    return Found(ratio.max(axis=1), p.rows(ratio.argmax(axis=1)))


@each_classes
@each_dtype
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_row_is_beyond_its_bounds(backend, dtype, classes):
    assert dict(zip(TARGETS, search(backend, dtype, classes).ratio <= 1, strict=True)) == dict.fromkeys(TARGETS, True)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the formula computes in float64 whatever the type")
@each_classes
@each_dtype
def test_rows_reach_a_hundredth_of_each_bound(dtype, classes):
    """At least one backend comes as close; the bound has to hold for both."""
    ratio = np.max([search(backend, dtype, classes).ratio for backend in BACKENDS], axis=0)
    vacuous = [target for target, x in zip(TARGETS, ratio, strict=True) if x < 0.01]  # a hundredth
    assert vacuous == (["sure"] if classes == 1 else []), ratio  # with one class, miss is exactly 0


def by_definition(p: Problem, i: int) -> tuple[Any, list[Any]]:
    """Compute the loss and gradient of the row i by mpmath. The label must match a column or have no weight."""
    with mpmath.workdps(700):  # enough digits for 1 - yhat
        z, off = ([mpmath.mpf(float(v)) for v in x[i]] for x in (p.z, p.off))
        y, r, q, g = (mpmath.mpf(float(v)) for v in p.truth[:, i])
        truth = [r * o + (y if k == p.label[i] else 0) for k, o in enumerate(off)]
        lse = mpmath.log(mpmath.fsum(map(mpmath.exp, z)))
        mass = mpmath.fsum(truth)
        loss = mass * lse - mpmath.fdot(truth, z) + q / 2 * lse**2
        return loss, [g * ((mass + q * lse) * mpmath.exp(v - lse) - t) for v, t in zip(z, truth, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [2, 3, 10, 65])
@each_dtype
def test_the_worst_rows_are_as_bad_by_the_definitions(backend, dtype, classes):
    """The errors of the rows with the largest errors are confirmed with 700 digits and without formula.py."""
    found = search(backend, dtype, classes)
    with softxent.use_backend(backend):
        got, (loss, dz) = fused(found.rows), allowed(found.rows)
    for i, target in enumerate(TARGETS[:4]):
        want_loss, want_dz = by_definition(found.rows, i)
        k = np.arange(classes)
        k = [] if target == "loss" else k[(k == found.rows.label[i]) == (target != "other")]
        errors = [abs(mpmath.mpf(float(got.dz[i, n])) - want_dz[n]) / float(dz[i, n]) for n in k]
        worst = max(errors, default=0) if target != "loss" else abs(mpmath.mpf(got.result[0, i]) - want_loss) / float(loss[i])
        # the errors of mpmath's comparison, where the search has longdouble, and of a ratio near 0
        assert float(worst) == pytest.approx(found.ratio[i], rel=0.02, abs=1e-3) and worst <= 1, target


# ---- the bounds themselves ----


@pytest.mark.parametrize("bound", [bounds.sum_bound, bounds.loss_bound, bounds.grad_bound], ids=lambda f: f.__name__)
def test_bounds_grow_with_classes_roundoff_and_distance(bound):
    sizes = [1, 2, 3, 7, 8, 31, 32, 33, 64, 65, 128, 129, 1000, 4096, 4097, 8193, 20000, 128_256, 10**7]
    by_size = {name: [bound(dtype, c) for c in sizes] for name, dtype in DTYPES.items()}
    for name, row in by_size.items():
        # of 1e7 classes; a bound beyond would be of no use
        assert row == sorted(row) and 0 < row[0] and row[-1] < {"f64": 1e-12}.get(name, 1e-6)
    assert all(a < b == c == d for a, b, c, d in zip(*(by_size[n] for n in ("f64", "f32", "bf16", "f16")), strict=True))
    if bound is not bounds.sum_bound:
        by_gap = [bound(np.float64, 10, gap) for gap in (0.0, 1.0, 100.0, 1e4)]
        # of a gap of 1e4
        assert by_gap == sorted(by_gap) and by_gap[0] < by_gap[-1] < 1e-10


@each_dtype
def test_bounds_of_finite_rows_are_finite_and_the_gradient_s_grow_with_upstream(dtype, rng):
    p = first(rng, 110, 10, dtype)
    (loss, dz), (same, more) = allowed(p), allowed(p._replace(truth=p.truth * [[1], [1], [1], [-4]]))
    for bound in (loss, dz, more):
        assert np.isfinite(bound).all() and (bound > 0).all()
    assert (same == loss).all() and (dz <= more).all() and (more <= 4 * dz).all()


# ---- a worse kernel ----

EXPS, F32, F64, BOTH = "e = xp.exp(-below)", ("f32",), ("f64",), ("f32", "f64")
WORSE = {  # code of formula.py or partials.py, its replacement by less accurate code, the dtypes for which it exceeds the bounds, classes
    "exponentials in bfloat16": (EXPS, "e = xp.exp(-below).astype(__import__('ml_dtypes').bfloat16).astype(float)", F32, 10),
    "8u more": (EXPS, "e = xp.exp(-below) * (1 + 8 * 2.0**-24)", F32, 10),
    "exponentials in float32": (EXPS, "e = xp.exp(-below).astype(np.float32).astype(float)", F64, 10),
    "one accumulator": ("s, u = e.sum(axis=1)", "s, u = e.cumsum(axis=1)[:, -1]", F64, 20000),
    "1 - yhat at the label": ("xp.exp(-xp.logaddexp(0, -a))", "1 - xp.exp(-xp.logaddexp(0, a))", BOTH, 10),
    "log of a rounded yhat": ("return xp.logaddexp(0, a),", "return -np.log(xp.exp(-xp.logaddexp(0, a))),", BOTH, 10),
    "lse saved alone": (
        "away: Array = difference(xp.where(top == -np.inf, 0, top)[:, None], z, x.temperature) + lift[:, None]",
        "away = (top + lift).astype(np.float32)[:, None] - z", F32, 10,
    ),
    "a gradient of float32": ("(h != 0), dz, 0.0)", "(h != 0), dz.astype(np.float32).astype(float), 0.0)", F64, 10),
    "a float32 z-loss": ("lse(x) ** 2 / 2", "lse(x).astype(np.float32).astype(float) ** 2 / 2", F64, 10),
    "the mass in float32": ("times(g, at + rest)", "times(g, (at + rest).astype(np.float32).astype(float))", F64, 10),
}  # fmt: skip


@pytest.mark.parametrize("worse", WORSE)
def test_a_worse_kernel_is_beyond_the_bounds(worse, monkeypatch):
    was, now, dtypes, classes = WORSE[worse]
    for name in dtypes:
        p = first(np.random.default_rng(1), 55, classes, DTYPES[name])
        with softxent.use_backend("formula"), monkeypatch.context() as patch:
            assert measured(p).max() <= 1
            patch.setattr(reference, "functional", mutant(was, now).functional)
            assert measured(p).max() > 1
