"""The accuracy of the results in ULP (units in the last place) of the exact value, and examples in which other libraries lose accuracy.

The exact values come from long double, which has 11 bits more than float64, so that their error is C / 2^64 < 1e-14, a ten-millionth of a
float32 ULP. mpmath would take 10 us for each exponential; `test_the_reference_is_right` compares long double with it for small C.
"""

from __future__ import annotations

import ml_dtypes
import mpmath
import numpy as np
import pytest
from cases import Problem, computed, torch
from extended import expected

import softxent
from softxent.proof import bounds

F32, F64, BF16, F16 = (np.dtype(t) for t in ("f4", "f8", ml_dtypes.bfloat16, "f2"))
wide = np.longdouble
GAPS = (1, 2, 5, 10, 15, 20, 30, 50, 70, 80, 100)


def truth(z, t):
    """Return the loss [R] and the gradient [R, C] of rows z with labels t, in long double."""
    one, zero = np.ones(len(z)), np.zeros(len(z))
    found = expected(Problem(z, t, np.array([one, zero, zero, one]), None))
    return found["loss"].want, found["gradient"].want


def truth_by_mpmath(z, t):
    with mpmath.workprec(200):
        x = [mpmath.mpf(float(v)) for v in z]
        e = [mpmath.exp(v - x[t]) for v in x]
        odds = mpmath.fsum(v for k, v in enumerate(e) if k != t)
        dz = [v / (1 + odds) for v in e]
        dz[t] = -odds / (1 + odds)
        return mpmath.log1p(odds), dz


def ulps(got, want, dtype, subnormal=False):
    """Return the largest error in units in the last place of `want` in this dtype.

    Values below the normal numbers are left out or, with `subnormal`, measured as if the dtype had no smallest exponent.
    """
    got, want = np.asarray(got).astype(wide), np.asarray(want).astype(wide)
    size = np.abs(want)
    ulp = 2 * wide(bounds.UNIT[dtype.name]) * 2.0 ** np.floor(np.log2(np.where(size == 0, 1, size)))
    smallest = 0 if subnormal else bounds.TINY[dtype.name] / (2 * bounds.UNIT[dtype.name])
    return np.where((size >= smallest) & np.isfinite(want), np.abs(got - want) / ulp, 0).max()


def repr_of(x):
    return np.format_float_scientific(x, precision=25, unique=False)


def check(z, t, loss_ulp, grad_ulp, want=None):
    """Check the loss, in ULPs of the compute type, and the gradient, in ULPs of the logits' dtype, with reduction "none"."""
    loss, dz = softxent.cross_entropy_and_grad(z, t, reduction="none")
    want_loss, want_dz = truth(z, t) if want is None else want
    off, bent = ulps(loss, want_loss, computed(z.dtype), subnormal=True), ulps(dz, want_dz, z.dtype)
    assert off <= loss_ulp and bent <= grad_ulp, f"loss {off:.2f} ULP of {loss_ulp}, gradient {bent:.2f} of {grad_ulp}"


def with_gap(rng, gap, rows, classes, dtype, step=0.0, offset=0.0):
    """Return logits whose label is `gap` above the largest other class, and the labels.

    With `step`, the logits are multiples of it before the offset is added, so that the sum is exact.
    """
    z = rng.standard_normal((rows, classes))
    t = rng.integers(0, classes, rows)
    z[np.arange(rows), t] = -np.inf
    z[np.arange(rows), t] = z.max(axis=1) + gap
    if step:
        z = np.round(z / step) * step
    return (z + offset).astype(dtype), t


def limits(backend, dtype, reach, classes):
    """Return the allowed ULPs of loss and gradient. In float64 the formula rounds z - m, which costs `reach` ULP at a distance of `reach`.
    The kernel only rounds the distance between blocks of 4096 columns."""
    if dtype == F32:
        return 2, 4
    if backend == "cpu":
        return 16, 8 + (reach if classes > 4096 else 0)
    return 16 + 2 * reach, 40 + 2 * reach


def test_the_reference_is_right(rng):
    for gap in (1, 20, 100, -30):
        for offset in (0, 1e8):
            z, t = with_gap(rng, gap, 2, 300, F64, 2.0**-20, offset)
            loss, dz = truth(z, t)
            for i in range(2):
                exact_loss, exact_dz = truth_by_mpmath(z[i], t[i])
                # 300 sums of long double, which has a roundoff of 2^-64; measured with a spare factor of 16
                assert abs(mpmath.mpf(repr_of(loss[i])) / exact_loss - 1) < 300 * 2.0**-60
                # 300 sums of long double, which has a roundoff of 2^-64; measured with a spare factor of 16
                assert max(abs(mpmath.mpf(repr_of(a)) / b - 1) for a, b in zip(dz[i], exact_dz, strict=True)) < 300 * 2.0**-60


@pytest.mark.parametrize("dtype", (F32, F64), ids=str)
@pytest.mark.parametrize("gap", GAPS)
def test_every_digit_at_every_gap(backend, gap, dtype, rng):
    for classes in (2, 10, 90, 1000, 5000):
        z, t = with_gap(rng, gap, 20, classes, dtype)
        check(z, t, *limits(backend, dtype, gap, classes))


@pytest.mark.parametrize("gap", (3, 20, 60))
def test_a_row_against_mpmath(backend, gap, rng):
    for dtype in (F32, F64):
        z, t = with_gap(rng, gap, 3, 1000, dtype)
        for i in range(3):
            loss, dz = truth_by_mpmath(z[i], t[i])
            want = np.array([wide(mpmath.nstr(loss, 30))]), np.array([[wide(mpmath.nstr(v, 30)) for v in dz]])
            check(z[i : i + 1], t[i : i + 1], *limits(backend, dtype, gap, 1000), want)


@pytest.mark.parametrize(
    "dtype,offset,step", [(F32, 1e4, 2.0**-10), (F32, -1e4, 2.0**-10), (F32, 1e8, 8.0), (F32, 300, 2.0**-13), (F64, 1e8, 2.0**-25)]
)
@pytest.mark.parametrize("gap", (1, 16, 80))
def test_every_digit_under_an_offset(backend, gap, dtype, offset, step, rng):
    """Logits that stay exact with a large offset give results with the same accuracy as logits near 0."""
    for classes in (3, 50, 1000, 5000):
        z, t = with_gap(rng, gap, 12, classes, dtype, step, offset)
        assert (z.astype(wide) - offset == np.round((z.astype(wide) - offset) / step) * step).all() and np.abs(z).max() >= abs(offset) / 2
        check(z, t, *limits(backend, dtype, gap, classes))


@pytest.mark.parametrize("dtype", (F32, F64), ids=str)
@pytest.mark.parametrize("classes", (2, 64, 1000, 4097, 128_256))
def test_every_digit_of_every_kind_of_row(backend, classes, dtype, rng):
    """Rows with a small or large spread, uniform rows, a label of average size, and equal values, whose errors have the same sign."""
    x = rng.standard_normal((9, classes))
    x[1] *= 8
    x[2] = 0
    x[3] = -5.3
    x[3, 0] = 0
    x[4] = rng.uniform(-30, 0, classes)
    x[5] = 0.7
    x[5, -1] = -9
    x[6] = -0.31
    x[6, classes // 2] = 12.7
    x[7] = 57.123
    x[8] = np.linspace(-80, 0, classes)
    t = np.array([0, 1, classes - 1, 0, int(x[4].argmax()), classes - 1, classes // 2, 0, classes // 3])
    check(x.astype(dtype), t, *limits(backend, dtype, 80, classes))


@pytest.mark.parametrize("dtype", (BF16, F16), ids=str)
def test_narrow_types_are_the_float32_result_rounded_once(backend, dtype, rng):
    for classes in (10, 100, 1000, 5000):
        z = (3 * rng.standard_normal((20, classes))).astype(dtype)
        t, soft = rng.integers(0, classes, 20), rng.random((20, classes)).astype(np.float32) / classes
        for labels, options in (
            (t, {}),
            (t, dict(label_smoothing=0.1, z_loss=0.01)),
            (soft, {}),
            (t, dict(temperature=2.0)),
            (t, dict(softcap=5.0)),
        ):
            loss, dz = softxent.cross_entropy_and_grad(z, labels, reduction="none", upstream=1.5, **options)
            loss32, dz32 = softxent.cross_entropy_and_grad(z.astype(F32), labels, reduction="none", upstream=1.5, **options)
            # the last bits of float32 may differ: the kernel adds 16-bit columns in another order, and the formula computes in float64
            assert (dz != dz32.astype(dtype)).mean() < 2e-3
            np.testing.assert_allclose(loss, loss32, rtol=2 * bounds.loss_bound(F32, classes))


def test_where_the_peers_fail(backend):
    z = np.array([[1e4, 1e4 - 5, 1e4 - 8]], F32)
    odds = np.exp(-5.0) + np.exp(-8.0)
    loss, dz = softxent.cross_entropy_and_grad(z, [0])
    assert loss == pytest.approx(np.log1p(odds), rel=2 * bounds.UNIT["float32"])
    np.testing.assert_allclose(dz[0], np.array([-odds, np.exp(-5.0), np.exp(-8.0)]) / (1 + odds), rtol=4 * bounds.UNIT["float32"])
    np.testing.assert_allclose(
        softxent.log_softmax(z)[0], [-np.log1p(odds), -5 - np.log1p(odds), -8 - np.log1p(odds)], rtol=2 * bounds.UNIT["float32"]
    )
    far = np.array([[1e8, 1e8]], F32)
    assert softxent.cross_entropy(far, [0]) == pytest.approx(np.log(2), rel=2 * bounds.UNIT["float32"])
    assert softxent.softmax(far).tolist() == [[0.5, 0.5]]
    sure = np.array([[20.0, 0, 0]], F32)
    loss, dz = softxent.cross_entropy_and_grad(sure, [0])
    assert loss == pytest.approx(2 * np.exp(-20.0), rel=2 * bounds.UNIT["float32"]) and dz[0, 0] == pytest.approx(
        -2 * np.exp(-20.0), rel=4 * bounds.UNIT["float32"]
    )
    if torch:
        assert torch.nn.functional.cross_entropy(torch.tensor(sure), torch.tensor([0])) == 0  # PyTorch loses all digits in float32


@pytest.mark.parametrize("dtype", (F32, F64), ids=str)
def test_a_saturated_softcap_keeps_its_slope(backend, dtype):
    """At z = 8c the slope is 4.5e-7, which 1 - tanh^2 cannot represent in float32; at z = 18c, not even in float64."""
    for at in (2.0, 8.0, 18.0):
        z = np.array([[at, 0.5, -at]], dtype)
        _, dz = softxent.cross_entropy_and_grad(z, [1], softcap=1.0)
        seen, slope = np.tanh(z.astype(wide)), np.cosh(z.astype(wide)) ** -2
        want = slope * (np.exp(seen) / np.exp(seen).sum() - [0, 1, 0])
        assert ulps(dz, want, dtype) <= 8 + 2 * at


def test_soft_targets_keep_their_digits_where_the_row_is_sure(backend, rng):
    """Probabilities that are 1 at one class give the loss and gradient of its index, with all digits."""
    for gap in (5, 20, 60):
        z, t = with_gap(rng, gap, 8, 50, F32)
        soft = np.eye(50)[t]
        check(z, t, 2, 4)
        loss, dz = softxent.cross_entropy_and_grad(z, soft, reduction="none")
        want_loss, want_dz = truth(z, t)
        assert ulps(loss, want_loss, F32) <= 2 and ulps(dz, want_dz, F32) <= 4


def without_label(z, t):
    """Return x = z - max z of each row, and exp(x) with 0 at the label, in extended precision."""
    x = z.astype(wide)
    x -= x.max(axis=1, keepdims=True)
    return x, np.where(np.arange(z.shape[1]) == t[:, None], 0, np.exp(x))


@pytest.mark.parametrize("dtype", (F32, F64), ids=str)
def test_a_tiny_entropy_keeps_its_digits(backend, dtype, rng):
    for gap in (5, 20, 60):
        z, t = with_gap(rng, gap, 8, 50, dtype)
        x, others = without_label(z, t)
        s = others.sum(axis=1)
        want = (np.log1p(s) - (others * x).sum(axis=1) / (1 + s)).astype(float)  # sum_k yhat_k (lse - z_k)
        np.testing.assert_allclose(softxent.entropy(z), want, rtol=(20 + gap) * bounds.unit(dtype))


@pytest.mark.parametrize("dtype", (F32, F64), ids=str)
def test_log_softmax_and_softmax_digits(backend, dtype, rng):
    for gap in (1, 20, 60):
        z, t = with_gap(rng, gap, 8, 300, dtype)
        x, others = without_label(z, t)
        rows = np.arange(8)
        want = x - np.log1p(others.sum(axis=1))[:, None]
        room = {F32: 4, F64: 3 * gap + 20}[dtype]
        assert ulps(softxent.log_softmax(z), want, dtype) <= room
        assert ulps(softxent.softmax(z), np.exp(want), dtype) <= room
        assert ulps(softxent.token_logprobs(z, t), want[rows, t], dtype) <= room
        assert ulps(softxent.logsumexp(z), want[rows, t] * -1 + z.astype(wide)[rows, t], dtype) <= 2
