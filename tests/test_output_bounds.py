"""The rounding bounds of the entropy, the log-probability, their gradients and the Hessian product: no row exceeds them, and less accurate
code does.

The reference is the equation of the derivation in long double (float64 for the other dtypes), with the largest logit kept apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from cases import BACKENDS, DTYPES, computed, within
from test_bounds import first

import softxent
from softxent import formula
from softxent.partials import finish, lse, times
from softxent.proof import bounds

CLASSES = (1, 2, 3, 10, 65, 1000, 5000)
OPTIONS = {  # of cross_entropy_hvp: the options, y, r, q and g, and off times the number of classes
    "label": ({}, (1, 0, 0, 1), None),
    "z-loss": (dict(z_loss=0.01), (1, 0, 0.02, 1), None),
    "smoothing": (dict(label_smoothing=0.1, upstream=-2.5), (0.9, 1, 0, -2.5), 0.1),
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_case = [each_dtype, pytest.mark.parametrize("classes", CLASSES), pytest.mark.parametrize("backend", BACKENDS)]


def over_cases(test):
    for mark in each_case:
        test = mark(test)
    return test


class Exact(NamedTuple):
    z: np.ndarray  # [R, C]
    yhat: np.ndarray
    far: np.ndarray  # [R, C] lse - z_k
    top: np.ndarray  # [R, C] one-hot: the largest logit
    entropy: np.ndarray  # [R]


def exact(z: np.ndarray) -> Exact:
    z = z.astype(np.longdouble if z.dtype == np.float64 else np.float64)
    x = formula.partials(z, z.argmax(axis=1))
    nll, _, _ = finish(x)
    top = formula.at_label(z, z.argmax(axis=1))
    far = np.where(top, nll[:, None], (x.zt[:, None] - z) + nll[:, None])
    yhat = formula.softmax(z, x)
    return Exact(z, yhat, far, top, times(yhat, far).sum(axis=1))


def centred(x: Exact, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return v - mean [R, C] and mean = <yhat, v> [R]. The mean is computed from the distances to the entry at the largest logit."""
    own = np.where(x.top, v, 0).sum(axis=1)
    lead = times(np.where(x.top, 0, x.yhat), own[:, None] - v).sum(axis=1)
    return np.where(x.top, lead[:, None], v - (own - lead)[:, None]), own - lead


def entropy_gradient(x: Exact) -> np.ndarray:
    """Return yhat_k (lse - z_k - H), which is - yhat_k (z_k - <yhat, z>)."""
    return -x.yhat * centred(x, x.z - x.z.max(axis=1, keepdims=True))[0]


def rows(classes: int, dtype: np.dtype, offset: bool = True) -> np.ndarray:
    z = first(np.random.default_rng(classes), max(60, min(240, 60_000 // classes)), classes, dtype).z
    return z if offset or dtype != np.float64 else z[np.abs(z).max(axis=1) < 1e6]


def direction(z: np.ndarray) -> np.ndarray:
    """Return vectors of all sizes, some of them with an offset."""
    rng = np.random.default_rng(z.shape)
    size, offset = 10 ** rng.uniform(-3, 3, (len(z), 1)), rng.choice([0, 1000.0], (len(z), 1))
    return (rng.standard_normal(z.shape) * size + offset).astype(computed(z.dtype))


def fits(want: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.abs(want) < (60_000 if dtype == np.float16 else 1e38)


# ---- the functions are within their bounds


@over_cases
def test_no_entropy_is_beyond_its_bounds(backend, classes, dtype):
    z = rows(classes, dtype)
    x = exact(z)
    with softxent.use_backend(backend):
        h, dh = softxent.entropy_and_grad(z)
    of_h, of_dh = bounds.entropy_bounds(z, z.argmax(axis=1))
    within(h, x.entropy, of_h, "entropy")
    within(dh.astype(x.z.dtype), entropy_gradient(x), of_dh, "gradient")


@over_cases
def test_no_log_probability_is_beyond_the_bounds_of_the_loss(backend, classes, dtype):
    z = rows(classes, dtype)
    x, label = exact(z), np.random.default_rng(classes).integers(0, classes, len(z))
    g = np.linspace(-3, 3, len(z))
    with softxent.use_backend(backend):
        logp, dz = softxent.token_logprobs_and_grad(z, label, upstream=g)
    p = formula.partials(x.z, label)
    of_loss, of_dz = bounds.row_bounds(z, label, np.array([g * 0 + 1, 0 * g, 0 * g, -g]), None)
    within(logp, -finish(p)[0], of_loss, "log-probability")
    own = formula.at_label(z, label)
    within(dz.astype(x.z.dtype), g[:, None] * np.where(own, finish(p)[1][:, None], -formula.softmax(x.z, p)), of_dz, "gradient")


def hessian_product(x: Exact, v: np.ndarray, truth: tuple[float, ...], off: float | None) -> np.ndarray:
    y, r, q, g = (x.z.dtype.type(number) for number in truth)
    mass = y + r * x.z.dtype.type(off or 0) + times(q, lse(formula.partials(x.z, x.z.argmax(axis=1))))
    apart, mean = centred(x, v.astype(x.z.dtype))
    return g * x.yhat * (mass * apart.T + q * mean).T


@over_cases
@pytest.mark.parametrize("options", OPTIONS)
def test_no_hessian_product_is_beyond_its_bounds(backend, classes, dtype, options):
    keywords, truth, off = OPTIONS[options]
    z = rows(classes, dtype)
    v, label = direction(z), np.zeros(len(z), int)
    with softxent.use_backend(backend):
        got = softxent.cross_entropy_hvp(z, v, label, reduction="none", **keywords)
    want = hessian_product(exact(z), v, truth, off)
    shared = None if off is None else np.full(classes, off / classes)
    bound = bounds.hessian_bounds(z, np.tile(np.array(truth, float)[:, None], (1, len(z))), shared, v)
    kept = fits(want, dtype)
    within(np.where(kept, got.astype(want.dtype), 0), np.where(kept, want, 0), bound, options)


# ---- the equations of a kernel, with any label kept apart


def by_partial_sums(z: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the entropy and its gradient from m, s and u of the other classes, with terms in the compute type and sums in float64."""
    z = z.astype(computed(z.dtype))
    hot = formula.at_label(z, label)
    others = np.where(hot, -np.inf, z)
    m = others.max(axis=1, initial=-np.inf, keepdims=True)
    below = np.where(np.isfinite(others), m - np.where(np.isfinite(others), others, 0), 0)
    e = np.where(np.isfinite(others), np.exp(others.astype(np.longdouble) - np.where(m == -np.inf, 0, m)), 0).astype(z.dtype)
    zt, s, u = np.where(hot, z, -np.inf).max(axis=1), e.sum(axis=1, dtype=np.float64), (e * below).sum(axis=1, dtype=np.float64)
    x = formula.partials(z.astype(np.float64), label)._replace(m=m[:, 0].astype(np.float64), s=s, zt=zt.astype(np.float64))
    nll, miss, over = finish(x)
    with np.errstate(invalid="ignore"):
        scale = np.where(s > 0, miss / np.where(s > 0, s, 1), 0)  # e^(m - lse)
        own = np.exp(-nll)  # 1 - miss would lose its digits if the label is improbable
        h = times(own, nll) + scale * u + times(scale * s, over)
        far = np.where(hot, 0, below + over[:, None].astype(z.dtype))
    dz = times(e * scale[:, None].astype(z.dtype), far - h[:, None].astype(z.dtype))
    return h, np.where(hot, times(own, nll - h)[:, None], dz)


@each_dtype
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("kept", ["largest", "any"])
def test_the_entropy_from_the_partial_sums_is_within_its_bounds(classes, dtype, kept):
    z = rows(classes, dtype)
    x, any_label = exact(z), np.random.default_rng(classes).integers(0, classes, len(z))
    label = z.argmax(axis=1) if kept == "largest" else any_label
    h, dh = by_partial_sums(z, label)
    of_h, of_dh = bounds.entropy_bounds(z, label)
    within(h, x.entropy, of_h, "entropy")
    within(dh.astype(dtype).astype(x.z.dtype), entropy_gradient(x), of_dh, "gradient")


@each_dtype
@pytest.mark.parametrize("label", [0, 2])
def test_a_masked_class_has_no_part_in_the_bounds(dtype, label):
    z = np.array([[3, 1.5, -np.inf, 0.25]]).astype(dtype)
    kept = bounds.entropy_bounds(z[:, [0, 1, 3]], np.array([0]))
    masked = bounds.entropy_bounds(z, np.array([label]))
    assert np.isfinite(masked[0]).all() and np.isfinite(masked[1]).all() and masked[1][0, 2] <= 8 * bounds.TINY[dtype.name]
    if label == 0:
        np.testing.assert_allclose(masked[0], kept[0], rtol=0.1)
    h, dh = softxent.entropy_and_grad(z)
    within(h, exact(z[:, [0, 1, 3]]).entropy, masked[0])
    within(dh[:, [0, 1, 3]].astype(float), entropy_gradient(exact(z[:, [0, 1, 3]])), masked[1][:, [0, 1, 3]])


@each_dtype
def test_the_bound_of_an_entropy_is_relative_if_the_largest_logit_is_kept_apart(dtype):
    for classes in CLASSES[1:]:
        z = rows(classes, dtype, offset=False)
        top = z.argmax(axis=1)
        h, gap = exact(z).entropy.astype(float), z.max(axis=1).astype(float) - z.min(axis=1).astype(float)
        some = h > 1e-30  # below, predictions are lost, as e^-103 is in float32
        of_h, near = bounds.entropy_bounds(z, top)[0], bounds.loss_bound(dtype, classes, gap)
        assert (
            # below the smallest float32
            of_h[some] <= ((6 * bounds.unit(dtype) + 7 * near + 4 * bounds.UNIT["float64"] * gap) * h)[some] * 1.01 + 1e-38 * classes
        ).all()


# ---- less accurate code is beyond the bounds


def flat_in(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def more(dtype: np.dtype) -> float:
    """Return 1 and a few units: what the float64 sums of a row add to the bounds counts for float64 only."""
    return 1 + {"float32": 64, "float64": 1000}[np.dtype(dtype).name] * bounds.unit(dtype)


WORSE = {  # the entropy and its gradient (or None) from z in the compute type, by code that loses digits
    "- sum yhat log yhat": lambda z: (-(flat_in(z) * np.log(flat_in(z))).sum(axis=1), None),
    "lse - <yhat, z>": lambda z: (np.log(np.exp(z).sum(axis=1)) - (flat_in(z) * z).sum(axis=1), None),
    "- yhat (z - <yhat, z>)": lambda z: (None, -flat_in(z + 300) * (z + 300 - (flat_in(z) * (z + 300)).sum(axis=1, keepdims=True))),
    "a few units more": lambda z: tuple(a * z.dtype.type(more(z.dtype)) for a in softxent.entropy_and_grad(z)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("worse", WORSE)
def test_a_less_accurate_entropy_is_beyond_its_bounds(worse, dtype):
    z = np.random.default_rng(0).standard_normal((40, 10)).astype(dtype)
    z[::2, 3] += 12
    x, limits = exact(z), bounds.entropy_bounds(z, z.argmax(axis=1))

    def ratios(some):
        wanted = zip(some, (x.entropy, entropy_gradient(x)), limits, strict=True)
        return [(np.abs(got - want) / limit).max() for got, want, limit in wanted if got is not None]

    assert max(ratios(softxent.entropy_and_grad(z))) <= 1 < min(ratios(WORSE[worse](z)))


def plain_product(z: np.ndarray, v: np.ndarray) -> np.ndarray:
    return flat_in(z) * (v - (flat_in(z) * v).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("worse", ["<yhat, v> with the largest logit", "a few units more"])
def test_a_less_accurate_hessian_product_is_beyond_its_bounds(worse, dtype):
    rng = np.random.default_rng(0)
    z, v, label = rng.standard_normal((40, 10)).astype(dtype), rng.standard_normal((40, 10)).astype(dtype), np.zeros(40, int)
    z[::2, 3] += 12
    truth = np.tile([[1.0], [0], [0], [1]], (1, 40))
    want, bound = hessian_product(exact(z), v, (1, 0, 0, 1), None), bounds.hessian_bounds(z, truth, None, v)
    right = softxent.cross_entropy_hvp(z, v, label, reduction="none")
    wrong = right * dtype(more(dtype)) if "more" in worse else plain_product(z, v)
    assert (np.abs(right - want) <= bound).all() and (np.abs(wrong - want) > bound).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_log_probability_by_lse_alone_is_beyond_its_bound(dtype):
    z = np.random.default_rng(0).standard_normal((40, 10)).astype(dtype)
    z[:, 3] += 12
    label = np.full(40, 3)
    want = -finish(formula.partials(exact(z).z, label))[0]
    bound = bounds.row_bounds(z, label, np.tile([[1.0], [0], [0], [-1]], (1, 40)), None)[0]
    assert (np.abs(softxent.token_logprobs(z, label) - want) <= bound).all()
    assert (np.abs(z[:, 3] - np.log(np.exp(z).sum(axis=1)) - want) > bound).any()
