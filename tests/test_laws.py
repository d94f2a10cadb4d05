"""The laws of the kernels, for the cases of cases.py and within the bounds of proof/bounds.py.

Those of the public functions are in softxent.conformance, and test_conformance.py tries them.
"""

from __future__ import annotations

from functools import partial, reduce

import numpy as np
import pytest
from cases import (
    DTYPES,
    OFFS,
    OPTIONS,
    SHAPES,
    WITH_JAX,
    Answer,
    allowed,
    cuts_of,
    exact,
    fused,
    merged,
    option_cases,
    problem,
    shapes_of,
    within,
)  # fmt: skip
from extended import expected
from tolerances import DIFFERENCES, FEW64, FLOAT32, FLOAT64

import softxent
from softxent import formula, kernels
from softxent.partials import Partials, along, finish, identity, merge, merge_tangents
from softxent.proof import bounds
from softxent.truth import truth

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_off = pytest.mark.parametrize("off", OFFS)
each_shape = pytest.mark.parametrize(
    "backend, shape",
    [pytest.param(name, shape, id=f"{name}-{shape[0]}x{shape[1]}") for name in WITH_JAX for shape in shapes_of(name)],
    indirect=["backend"],
)
each_option = pytest.mark.parametrize("option", OPTIONS)


@pytest.fixture(params=WITH_JAX)
def backend(request):
    with softxent.use_backend(request.param):
        yield request.param


# ---- prediction - truth ----


@each_off
@each_dtype
@each_shape
def test_loss_and_gradient_are_the_formula(backend, dtype, shape, off):
    p = problem(*shape, dtype, off)
    got, want, (loss, dz) = fused(p), exact(p), allowed(p)
    within(got.result[0], want.result[0], loss, "loss")
    within(got.dz, want.dz, dz, "gradient")
    lse = want.result[1].astype(float)
    near = bounds.loss_bound(dtype, shape[1]) + 4 * np.where(np.isfinite(lse), np.abs(lse), 0) * 2.0**-53
    within(got.result[1], want.result[1], near, "lse")


@pytest.mark.parametrize("dtype", [DTYPES["f32"], DTYPES["f64"]], ids=["f32", "f64"])
def test_rows_of_many_blocks_are_the_formula(backend, dtype):
    """The sums of 41 blocks are merged, four pairs at a time, through several levels of a tree."""
    p = problem(3, 40 * 4096 + 5, dtype, "shared")
    got, want, (loss, dz) = fused(p, outputs=5), exact(p, outputs=5), allowed(p)
    within(got.result[0], want.result[0], loss, "loss")
    within(got.dz, want.dz, dz, "gradient")
    np.testing.assert_allclose(got.result[3], want.result[3].astype(float), rtol=2 * FLOAT32 if dtype == np.float32 else FEW64)


@each_off
@each_dtype
@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="there are no numbers with more digits than float64")
def test_the_formula_is_the_definition(dtype, off):
    """formula.py, which `exact` evaluates as the reference of the kernels, has the results of extended.py, within the bounds of float64."""
    for shape in SHAPES:
        p = problem(*shape, dtype, off)
        wide = p._replace(z=p.z.astype(float))
        got, want, (loss, dz) = exact(p, outputs=4), expected(p), allowed(wide)
        within(got.result[0], want["loss"].want, loss, f"{shape} loss")
        within(got.dz, want["gradient"].want, dz, f"{shape} gradient")
        lse = want["lse"].want
        near = bounds.loss_bound(np.dtype("f8"), shape[1]) + 4 * np.abs(lse) * 2.0**-53  # 4 roundings of numbers of the size of lse
        within(got.result[1], lse, near, f"{shape} lse")
        within(got.result[3], want["entropy"].want, bounds.entropy_bounds(wide.z, p.label)[0], f"{shape} entropy")


@each_off
@each_dtype
def test_the_gradient_sums_to_the_z_loss_alone(backend, dtype, off):
    """sum_k dz_k = g (mass + q lse - sum of the truth) = g q lse. It is 0 without a z-loss, if the label matches a column."""
    for shape in shapes_of(backend):
        p = problem(*shape, dtype, off)
        got, want, (_, dz) = fused(p), exact(p), allowed(p)
        q_lse = np.where(p.truth[2] == 0, 0, p.truth[2] * want.result[1])
        elsewhere = np.where((p.label >= 0) & (p.label < shape[1]), 0, p.truth[0])  # the label matches no column
        within(got.dz.astype(np.longdouble).sum(axis=1), p.truth[3] * (q_lse + elsewhere), dz.sum(axis=1) + 1e-18, str(shape))


@each_dtype
@pytest.mark.parametrize("shift", [1e4, -1e4, 1e8, -1e8], ids=lambda s: f"{s:g}")
def test_a_common_shift_changes_nothing(backend, dtype, shift):
    """The logits are chosen so that z + shift is exact, in every dtype that can represent the shift."""
    if dtype.itemsize == 2:
        shift = {2: np.sign(shift) * 256.0}[dtype.itemsize]  # 8 and 11 bits: the integers around 256 are even
    spacing = float(np.spacing(np.asarray(abs(shift), dtype=dtype)).astype(np.float64)) if dtype.kind == "f" else 2.0
    for classes in (5, 100, 5000):
        p = problem(8, classes, dtype)
        z = np.clip(np.round(np.nan_to_num(p.z.astype(np.float64), neginf=-40) % 80 / spacing), 0, 80) * spacing
        here, there = p._replace(z=z.astype(dtype)), p._replace(z=(z + shift).astype(dtype))
        assert (there.z.astype(np.float64) - shift == here.z.astype(np.float64)).all(), "the shift is not exact: the test is void"
        truth = p.truth * [[1], [1], [0], [1]]  # without the z-loss, which changes with a shift
        want, got, (loss, dz) = exact(here._replace(truth=truth)), fused(there._replace(truth=truth)), allowed(there._replace(truth=truth))
        within(got.result[0], want.result[0], loss)
        within(got.dz, want.dz, dz)


def stencil(f, h):
    """Return the derivative at 0 by a five-point formula, whose error is h^4/30 times the fifth derivative."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


H = 2.0**-8  # h^4 / 30 = 8e-12 of the fifth derivative; rounding: 1e-15 / h = 3e-13 of the loss


def logits_of(kind, rng, rows, classes, labels):
    z = rng.standard_normal((rows, classes))
    if kind == "peaked":  # a large logit at the label or at another class
        at = labels.argmax(axis=1) if labels.ndim == 2 else labels.clip(0, classes - 1)
        z[np.arange(rows), np.where(np.arange(rows) % 2, at, (at + 1) % classes)] += 12
    return z


# ---- merging partial sums ----


def random_parts(rng, rows=64):
    """Return partial sums of several columns, of the label alone, of no columns, and of masked columns."""
    s = rng.random(rows) * 50
    x = Partials(
        rng.standard_normal(rows) * 30,
        s,
        rng.random(rows),
        rng.random(rows) * 9,
        np.where(rng.random(rows) < 0.3, rng.standard_normal(rows), -np.inf),
        rng.random(rows),
        rng.random(rows) * 20,
        0.7,
    )
    empty = rng.random(rows) < 0.2
    return Partials(*(np.where(empty, unit, field) for field, unit in zip(x[:-1], identity(rows)[:-1], strict=True)), 0.7)


def test_merge_is_a_commutative_monoid(rng):
    for _ in range(20):
        a, b, c = (random_parts(rng) for _ in range(3))
        for ours, theirs in zip(merge(a, formula.partials(np.zeros((64, 0)), np.zeros(64, int), None, 0.7)), a, strict=True):
            np.testing.assert_array_equal(ours, theirs)  # a shard without classes is the identity
        for ours, theirs in zip(merge(a, b), merge(b, a), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for ours, theirs in zip(merge(merge(a, b), c), merge(a, merge(b, c)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=60 * 2.0**-53)  # the difference of two maxima is rounded, by up to 60 v


def test_the_formula_warns_of_no_logits():
    """Rows with NaN or infinities give what the edge contract says, without a warning of an invalid operation."""
    z = np.array([[1, 2, -np.inf], [np.inf, 0, 1], [-np.inf, -np.inf, -np.inf], [np.nan, 0, 1], [np.inf, np.inf, -np.inf]])
    ones, label = np.ones(5), np.array([0, 0, 1, 2, 1])
    of = formula.Numbers(ones, ones, ones, ones, ones, ones, ones)
    with np.errstate(all="ignore", invalid="raise"):
        x = formula.partials(z, label, np.ones(3))
        formula.softmax(z, x), formula.surprisal(z, x)
        formula.gradient(z, x, label, formula.coefficients(x, of), np.ones(3))
        large = formula.coefficients(x, formula.Numbers(1e300 * ones, 0 * ones, 0 * ones, 1e300 * ones))  # inf times a probability of 0
        formula.gradient(z, x, label, large)


@each_off
@each_dtype
def test_any_split_of_the_columns_gives_the_loss_and_gradient_of_the_whole(backend, dtype, off, rng):
    """Shards of the vocabulary: forward on each, merge, finish, and backward on each with the merged sums."""
    for shape in shapes_of(backend):
        p = problem(*shape, dtype, off)
        if shape[1] > 4:
            p.z[-1, : shape[1] // 2] = -np.inf  # a shard that is masked completely
            p.label[-1] = shape[1] - 1
            if off != "label":
                p.off[..., : shape[1] // 2] = 0
        shards = cuts_of(rng.integers(0, shape[1] + 1, rng.integers(1, 6)), shape[1])
        parts = []
        for k in shards:
            shard, got = p.columns(k), np.full((7, shape[0]), -7.0)
            kernels.active().forward(shard.z, shard.label, shard.truth, shard.off, p.transform, np.empty((5, shape[0])), got, 1)
            parts.append(got)
        whole, want, (loss, dz) = merged([parts[i] for i in rng.permutation(len(parts))]), exact(p), allowed(p)
        within(formula.outputs(Partials(*whole), *p.truth[:3]).loss, want.result[0], 2 * loss, f"{shape} loss")
        for k in shards:
            shard = p.columns(k)
            out = np.empty(shard.z.shape, dtype)
            kernels.active().backward(shard.z, shard.label, shard.truth, shard.off, p.transform, whole, out, 1)
            within(out, want.dz[:, k], 2 * dz[:, k], f"{shape} gradient of {k}")


def _sums_and_tangents(z, v, t, off, temperature, k: slice):
    given = t - k.start, off[:, k], temperature
    return formula.partials(z[:, k], *given), formula.tangents(z[:, k], v[:, k], *given)


def test_any_split_of_the_columns_gives_the_hessian_product_of_the_whole(rng):
    """Shards of the vocabulary: sums and their tangents on each, merge, finish, and the product on each; with a temperature."""
    for temperature in np.repeat([1.0, 0.3, 20.0], 20):
        classes = int(rng.integers(2, 40))
        z, v, off = 9 * rng.standard_normal((8, classes)), rng.standard_normal((8, classes)), rng.random((8, classes))
        z[1, : classes // 2], off[1, : classes // 2] = -np.inf, 0  # perhaps a shard that is masked completely
        t, of = rng.integers(classes // 2, classes, 8), formula.Numbers(*rng.standard_normal((7, 8)))

        sums = partial(_sums_and_tangents, z, v, t, off, temperature)
        x, y = sums(slice(0, classes))
        want, product = along(x, y), formula.hessian(z, v, t, x, along(x, y), of)
        shards = cuts_of(rng.integers(0, classes + 1, 3), classes)
        total = reduce(lambda a, b: (merge(a[0], b[0]), merge_tangents(*a, *b)), (sums(shards[i]) for i in rng.permutation(len(shards))))
        got = along(*total)
        for name in ("lse", "logprob", "off", "entropy"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=FLOAT64, atol=FLOAT64, err_msg=name)
        for k in shards:
            found = formula.hessian(z[:, k], v[:, k], t - k.start, total[0], got, of)
            np.testing.assert_allclose(found, product[:, k], rtol=FLOAT64, atol=FLOAT64)


@each_off
@each_dtype
def test_the_parts_of_a_row_are_its_sums(backend, dtype, off):
    for shape in shapes_of(backend):
        p = problem(*shape, dtype, off)
        got, want = Partials(*fused(p).parts), Partials(*exact(p).parts)
        near = bounds.loss_bound(dtype, shape[1])
        for exactly in ("m", "zt", "wt"):
            np.testing.assert_array_equal(getattr(got, exactly), getattr(want, exactly).astype(float), err_msg=exactly)
        for closely in ("s", "o", "d"):
            value = getattr(want, closely)
            within(getattr(got, closely), value, near * np.abs(np.where(np.isfinite(value), value, 0)), f"{shape} {closely}")


def test_finish_reads_nll_miss_and_lse_off_the_parts(rng):
    z, t = 20 * rng.standard_normal((200, 6)), rng.integers(0, 6, 200)
    x = Partials(*exact(problem(1, 6, np.dtype("f8"))._replace(z=z, label=t, truth=np.ones((4, 200)))).parts)
    nll, miss, _ = finish(Partials(*(part.astype(float) for part in x[:-1])))
    yhat = np.exp((z - z.max(1, keepdims=True)).astype(np.longdouble))
    yhat = (yhat / yhat.sum(1, keepdims=True))[np.arange(200), t]
    near = bounds.loss_bound(np.dtype("f8"), 6, np.abs(x.m - x.zt).astype(float))
    reference = 4 * np.finfo(np.longdouble).eps  # yhat near 1 is rounded in the reference, by up to 4 units
    within(nll, -np.log(yhat), near * nll + reference, "nll")
    within(miss, 1 - yhat, near * miss + reference, "miss")


# ---- curvature ----


@each_option
@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_hvp_is_the_derivative_of_the_gradient(backend, option, kind, rng):
    labels, options = option_cases(rng, 6, 7)[option]
    z, v, up = logits_of(kind, rng, 6, 7, labels), rng.standard_normal((6, 7)), rng.uniform(-3, 3, 6)
    hv = softxent.cross_entropy_hvp(z, v, labels, reduction="none", upstream=up, **options)
    want = stencil(lambda h: softxent.cross_entropy_and_grad(z + h * v, labels, reduction="none", upstream=up, **options)[1], H)
    dz = softxent.cross_entropy_and_grad(z, labels, reduction="none", upstream=up, **options)[1]
    near = 1e-8 * np.abs(want).max(axis=1, keepdims=True) + 8 * 2.0**-53 / H * np.abs(dz).max(axis=1, keepdims=True)
    within(hv, want, near)


def test_a_label_of_class_weight_0_leaves_the_hessian_of_the_z_loss(backend, rng):
    z, v, t = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), np.array([0, 1, 2, 1])
    options = dict(class_weight=np.array([1.0, 0.0, 2.0]), z_loss=0.1, reduction="none")
    want = stencil(lambda h: softxent.cross_entropy_and_grad(z + h * v, t, **options)[1], H)
    np.testing.assert_allclose(softxent.cross_entropy_hvp(z, v, t, **options), want, rtol=DIFFERENCES, atol=DIFFERENCES / 100)


@each_option
def test_the_hessian_is_symmetric_and_semi_definite(backend, option, rng):
    labels, options = option_cases(rng, 6, 7)[option]
    z = rng.standard_normal((6, 7)) + 3  # lse > 0: the z-loss is convex there
    basis = np.eye(7)[:, None, :].repeat(6, axis=1)
    h = np.stack([softxent.cross_entropy_hvp(z, v, labels, reduction="none", **options) for v in basis], axis=2)  # [R, C, C]
    np.testing.assert_allclose(h, h.swapaxes(1, 2), rtol=0, atol=FEW64 * max(1, np.abs(h).max()))
    if "softcap" not in options:
        assert np.linalg.eigvalsh((h + h.swapaxes(1, 2)) / 2).min() >= -FEW64


@each_dtype
def test_hvp_keeps_its_digits_where_the_row_is_sure(backend, dtype, rng):
    """With yhat = 1 - 1e-6, v - <yhat, v> would cancel at the most probable class."""
    z = rng.standard_normal((4, 9)).astype(dtype)
    z[:, 2] = 14
    v = rng.standard_normal((4, 9)).astype(dtype)
    x, w = z.astype(np.longdouble), v.astype(np.longdouble)
    yhat = np.exp(x - x.max(1, keepdims=True))
    yhat /= yhat.sum(1, keepdims=True)
    spread = w[:, :, None] - w[:, None, :]
    want = yhat * (yhat[:, None, :] * spread).sum(2)
    got = softxent.cross_entropy_hvp(z, v, np.full(4, 2), reduction="none")
    u = {"float64": 2.0**-53}.get(dtype.name, 2.0**-24)
    size = yhat * (yhat[:, None, :] * np.abs(spread)).sum(2)
    within(
        got, want, (2 * bounds.grad_bound(dtype, 9, 14) + 40 * u) * size + bounds.UNIT[dtype.name] * np.abs(want) + bounds.TINY[dtype.name]
    )


# ---- the truth ----


@each_option
def test_every_option_is_a_truth(option, rng):
    """The truth at every class, from the four numbers and off of truth.py, is that of the definition."""
    torch = pytest.importorskip("torch")  # a wheel is tested without it
    from definition_in_torch import definition

    labels, options = option_cases(rng, 6, 7)[option]
    z = rng.standard_normal((6, 7))
    inner = {k: v for k, v in options.items() if k not in ("temperature", "softcap")}
    t = truth(
        "f",
        labels,
        z,
        -1,
        **{
            **dict(
                class_weight=None, label_smoothing=0.0, ignore_index=-100, sample_weight=None, reduction="sum", z_loss=0.0, upstream=2.5
            ),
            **inner,
        },
    )
    label, _, off = t.given(np.dtype("f8"))
    y, r, q, g = t.rows
    y, r, q = (number * (label != kernels.IGNORED) for number in (y, r, q))
    dense = y[:, None] * (label[:, None] == np.arange(7)) + (0 if off is None else r[:, None] * off)
    want = definition(torch.tensor(z), labels, **inner)
    # 9 roundoffs
    np.testing.assert_allclose(dense, want.y.numpy(), rtol=1e-15, atol=1e-17)
    # 9 roundoffs
    np.testing.assert_allclose(np.broadcast_to(q, 6), 2 * want.zl.numpy(), rtol=1e-15)
    np.testing.assert_array_equal(g, np.broadcast_to(2.5, g.shape))


def test_a_wrong_answer_is_beyond_the_bounds():
    """An error of 20 units of roundoff in float32 exceeds the bounds."""
    p = problem(70, 10, np.dtype("f4"))
    want, (_, dz) = exact(p), allowed(p)
    wrong = Answer(want.result, want.parts, want.dz * (1 + 20 * 2.0**-24))
    with pytest.raises(AssertionError, match="beyond the bound"):
        within(wrong.dz, want.dz, dz)
