"""The kernels with all that they take: upstream gradients of every output, temperature, softcap, curvature, log-softmax, special labels."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BACKENDS, DTYPES, OFFS, Problem, computed, cooled, exact, fused, problem, python, two_calls, within
from extended import Value, Worst, expected, transformed
from guarded import guarded
from test_bits import isas
from tolerances import FEW64, FLOAT32, FLOAT64

import softxent
from softxent import formula, kernels
from softxent.partials import times
from softxent.proof import bounds

SHAPES = [
    (5, 1),
    (9, 2),
    (33, 10),
    (17, 64),
    (9, 65),
    (8, 1024),
    (10, 300),
    (9, 1000),
    (5, 4097),
    (3, 9001),
]  # (8, 1024): all rows of a tile
TRANSFORMS = {"none": (1.0, np.inf), "temperature": (0.7, np.inf), "softcap": (1.0, 5.0), "both": (2.5, 30.0)}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_off = pytest.mark.parametrize("off", OFFS)
each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with softxent.use_backend(request.param):
        yield request.param


def with_all_numbers(p: Problem, seed: int = 0) -> Problem:
    """Return the problem with upstream gradients of lse, the log-probability and the entropy too, 0 in some rows.

    A row without a label has a log-probability of -inf, and no upstream gradient of it.
    """
    rng = np.random.default_rng([seed, len(p.z)])
    more = rng.standard_normal((3, len(p.z))) * rng.choice([0, 1], (3, len(p.z)), p=[0.3, 0.7])
    more[1] *= (p.label >= 0) & (p.label < p.z.shape[1])
    return p._replace(truth=np.concatenate([p.truth, more]))


def cases(dtype, off, transform):
    for shape in SHAPES:
        yield with_all_numbers(problem(*shape, dtype, off))._replace(transform=transform)


def allowed(p: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bounds of the errors of the loss, of the entropy and of the gradient.

    They are the sums of the bounds for each upstream gradient, and of what an error of the transformed logits changes: 6 units of them.
    """
    z, slope, _ = cooled(p.z.astype(np.float64), *p.transform)
    z = z.astype(computed(p.z.dtype))
    one, zero = np.ones(len(z)), np.zeros(len(z))
    g, lse, logprob, entropy = p.truth[3:]
    loss, by_loss = bounds.row_bounds(z, p.label, p.truth[:4], p.off)
    of_entropy, by_entropy = bounds.entropy_bounds(z, p.label)
    total = by_loss + np.abs(entropy)[:, None] * by_entropy
    total = total + bounds.row_bounds(z, p.label, np.array([one, zero, zero, logprob]), None)[1]
    total = total + bounds.row_bounds(z, np.full_like(p.label, -1), np.array([one, zero, zero, lse]), None)[1]
    unit = bounds.UNIT[computed(p.z.dtype).name]
    size = np.where(np.isfinite(z), np.abs(z), 0).max(axis=1, initial=0)
    moved = 6 * unit * size if p.transform != TRANSFORMS["none"] else zero
    x = formula.partials(z.astype(np.float64), p.label, None if p.off is None else np.abs(p.off.astype(np.float64)))
    y, r, q, _ = np.abs(p.truth[:4])
    mass = y + r * (x.o + x.wt) + q * (1 + np.where(np.isfinite(x.m), np.abs(x.m), 0) + 10)
    amount = np.abs(g) * mass + np.abs(lse) + np.abs(logprob) + np.abs(entropy) * (1 + size) ** 2
    yhat = formula.softmax(z.astype(np.float64), x)
    hot = formula.at_label(z, p.label)
    share = np.where(hot, 1, yhat) + (0 if p.off is None else np.abs(p.off))
    total = (2 * total + 4 * (moved + 4 * unit)[:, None] * amount[:, None] * share) * np.abs(slope)
    total = total + 2 * bounds.UNIT[p.z.dtype.name] * np.abs(exact(p).dz).astype(np.float64) + 2 * bounds.TINY[p.z.dtype.name] + 1e-37
    return loss + 3 * moved * (mass + 1), of_entropy + 4 * moved * (1 + size), total


@each_transform
@each_off
@each_dtype
def test_all_outputs_and_the_gradient_by_all_of_them(backend, dtype, off, transform):
    for p in cases(dtype, off, transform):
        got, want, (loss, entropy, dz) = fused(p, outputs=5), exact(p, outputs=5), allowed(p)
        labelled = (p.label >= 0) & (p.label < p.z.shape[1])
        where = f"{p.z.shape}"
        within(got.result[0], want.result[0], 2 * loss, f"{where} loss")
        size = np.where(np.isfinite(want.result[1]), np.abs(want.result[1]), 0).astype(float)
        within(got.result[1], want.result[1], 8 * bounds.UNIT[computed(dtype).name] * (1 + size) * (transform[0] != 1 or 1), f"{where} lse")
        nll = -want.result[2][labelled]
        unit = bounds.loss_bound(dtype, p.z.shape[1], 200) * np.where(np.isfinite(nll), nll, 0) + 2 * loss[labelled]
        within(-got.result[2][labelled], nll, unit, f"{where} log-probability")
        within(got.result[3], want.result[3], entropy, f"{where} entropy")
        within(got.dz, want.dz, dz, f"{where} gradient")
        # a tie of float32
        tied = np.abs(want.parts[0] - want.parts[4]) < 1e-5 * (1 + np.abs(np.where(np.isfinite(want.parts[0]), want.parts[0], 0)))
        np.testing.assert_array_equal(got.result[4][~tied], want.result[4][~tied])


@each_transform
@each_off
@each_dtype
def test_fused_is_forward_and_backward_to_the_last_bit(dtype, off, transform):
    for p in cases(dtype, off, transform):
        assert fused(p, outputs=5).bits() == two_calls(p, outputs=5).bits(), p.z.shape


@each_transform
@each_dtype
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_threads_and_in_place(dtype, transform):
    for p in cases(dtype, "dense", transform):
        whole = fused(p, outputs=5)
        assert fused(p, threads=3, outputs=5).bits() == whole.bits()
        for i in (0, len(p.z) // 2, len(p.z) - 1):
            one = fused(p.rows(slice(i, i + 1)), outputs=5)
            assert one.result.tobytes() == whole.result[:, i : i + 1].tobytes()
            assert one.dz.tobytes() == whole.dz[i : i + 1].tobytes()
        z = p.z.copy()
        assert fused(p._replace(z=z), out=z, outputs=5).dz.tobytes() == whole.dz.tobytes()


@each_dtype
def test_four_numbers_and_two_results_give_the_same_bits_as_all(dtype):
    for off in OFFS:
        for shape in SHAPES:
            p = problem(*shape, dtype, off)
            few, many = fused(p), fused(p._replace(truth=np.concatenate([p.truth, np.zeros((3, len(p.z)))])), outputs=5)
            assert few.result.tobytes() == many.result[:2].tobytes()
            np.testing.assert_array_equal(few.parts[:6], many.parts[:6])


@each_dtype
def test_a_softcap_has_the_same_gradient_with_four_numbers(dtype):
    """Which exponentials are stored depends on the numbers."""
    for shape in SHAPES:
        p = problem(*shape, dtype)._replace(transform=TRANSFORMS["both"])
        few, many = fused(p), fused(p._replace(truth=np.concatenate([p.truth, np.zeros((3, len(p.z)))])))
        near = 8 * bounds.UNIT[dtype.name]
        # entries far below the others are subnormal in float16
    np.testing.assert_allclose(few.dz.astype(float), many.dz.astype(float), rtol=near, atol=near * 1e-6)


@pytest.mark.parametrize("off", ["label", "dense"])
@each_dtype
def test_ignored_rows_among_others_are_0_and_change_nothing(dtype, off):
    for classes in (10, 64, 300, 5000):
        p = with_all_numbers(problem(21, classes, dtype, off))
        p.label[[1, 2, 5, 11, 12, 13, 20]] = kernels.IGNORED
        got = fused(p, outputs=5)
        for i in range(21):
            if p.label[i] == kernels.IGNORED:
                assert not got.dz[i].any() and not got.result[:, i].any()
            else:
                one = fused(p.rows(slice(i, i + 1)), outputs=5)
                assert one.bits() == got._replace(result=got.result[:, [i]], parts=got.parts[:, [i]], dz=got.dz[[i]]).bits(), (classes, i)


@pytest.mark.parametrize("transform", [TRANSFORMS["none"], (0.7, np.inf), (1e-9, np.inf)])
@pytest.mark.parametrize("off", ["label", "dense"])
def test_merged_shards_are_the_whole(backend, off, transform):
    """If shards begin at multiples of 4096 columns and are merged as the blocks of a row are, the bits are the same too."""
    p = with_all_numbers(problem(9, 3 * 4096 + 5, DTYPES["f64"], off))._replace(transform=transform)
    p.label[4] = kernels.IGNORED
    sums = []
    for first in range(0, p.z.shape[1], 4096):
        shard = p.columns(slice(first, first + 4096))
        shard.label[4] = kernels.IGNORED
        sums.append(two_calls(shard, outputs=5).parts)
    want, result, parts = two_calls(p, outputs=5), np.full((5, 9), -7.0), np.full((7, 9), -7.0)
    kernels.active().merge(np.array(sums), np.array([[0, 1], [2, 3], [0, 2]]), p.label, p.truth, transform[0], result, parts, None, 1)
    np.testing.assert_allclose(result, want.result, rtol=0 if backend == "cpu" else FLOAT64)
    np.testing.assert_allclose(parts, want.parts, rtol=0 if backend == "cpu" else FLOAT64)


@pytest.mark.parametrize("off", ["label", "dense"])
@each_dtype
def test_nothing_behind_an_array_is_read_or_written(dtype, off):
    """Behind each array is a page of memory that must not be touched."""

    def placed(a):
        copy = guarded(a.nbytes, at_end=True)[0].view(a.dtype).reshape(a.shape)
        copy[:] = a
        return copy

    for rows, classes in [(9, 3), (9, 6), (17, 33), (9, 130), (2, 5001)]:
        for count, last in [(7, 0), (4, kernels.IGNORED)]:
            p = with_all_numbers(problem(rows, classes, dtype, off))
            p = p._replace(label=np.append(p.label[:-1], last), truth=p.truth[:count])
            q = p._replace(z=placed(p.z), off=None if p.off is None else placed(p.off), label=placed(p.label), truth=placed(p.truth))
            assert fused(q, out=placed(p.z), outputs=5).bits() == fused(p, outputs=5).bits()
            v = p.z.astype(computed(dtype))
            hv, products = placed(np.zeros_like(p.z)), placed(np.zeros((4, rows)))
            kernels.active().curvature(q.z, placed(v), q.label, q.truth, q.off, q.transform, False, hv, products, 1)
            assert hv.tobytes() == curved(p, v)[0].tobytes()


@pytest.mark.parametrize("classes", [33, 200, 1500, 3000, 5000])
def test_the_label_largest_among_other_labels_is_that_of_its_row(classes, rng):
    """Rows of a tile are computed together, and some labels are looked for while the largest logit is."""
    p = problem(40, classes, DTYPES["f32"], "label")
    p = p._replace(label=rng.choice([kernels.LARGEST, kernels.LARGEST_LOGIT, -1, 3], 40))
    whole = fused(p)
    for i in range(40):
        assert fused(p.rows([i])).result.tobytes() == whole.result[:, [i]].tobytes()


@each_dtype
def test_the_largest_of_a_row_of_nan_is_looked_for_within_the_row(dtype):
    """Behind the row is a page of memory that must not be read."""
    for classes in (100, 5000):
        z = guarded(classes * dtype.itemsize, at_end=True)[0].view(dtype).reshape(1, classes)
        z[:] = np.nan
        assert np.isnan(fused(Problem(z, np.full(1, kernels.LARGEST), np.ones((4, 1)), None)).result).all()


@each_dtype
def test_a_very_large_softcap_is_none(dtype):
    p = problem(9, 300, dtype, "shared").rows([0, 1, 2, 4, 5, 7])  # a softcap makes -inf finite
    got, want = fused(p._replace(transform=(1.0, 1e280))), fused(p)
    near = FEW64 if dtype.itemsize == 8 else FLOAT32  # such a softcap is computed in float64
    np.testing.assert_allclose(got.result, want.result, rtol=near)
    np.testing.assert_allclose(
        got.dz.astype(float), want.dz.astype(float), rtol=near + bounds.UNIT[dtype.name], atol=near * np.abs(want.dz.astype(float)).max()
    )
    v = np.tile(np.arange(300), (6, 1)).astype(computed(dtype))
    hv = curved(p, v)[0]
    unit = 2048 * bounds.UNIT[computed(dtype).name] + 2 * bounds.UNIT[dtype.name]
    for cap in (1e25, 1e50, 1e280):
        capped = curved(p._replace(transform=(1.0, cap)), v)[0]
        np.testing.assert_allclose(capped.astype(float), hv.astype(float), rtol=unit, atol=unit * np.abs(hv.astype(float)).max())


def curved(p: Problem, v: np.ndarray, gauss_newton: bool = False, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    out, products = np.empty_like(p.z), np.full((4, len(p.z)), -7.0)
    kernels.active().curvature(p.z, v, p.label, p.truth, p.off, p.transform, gauss_newton, out, products, threads)
    return out, products


def curvature_of_formula(p: Problem, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate formula.py along v in long double, by a central difference whose error is below the digits that are compared."""
    wide, h = np.longdouble, np.longdouble(2) ** -13
    x, v = p.z.astype(wide), np.where(np.isfinite(p.z.astype(float)), v.astype(wide), 0)
    numbers, off = formula.Numbers(*p.truth.astype(wide)), None if p.off is None else p.off.astype(wide)

    def gradient(x):
        with np.errstate(invalid="ignore", over="ignore"):
            z, slope, _ = formula.transformed(x, *p.transform)
            sums = formula.partials(z, p.label, off, p.transform[0])
            dz = formula.gradient(z, sums, p.label, formula.coefficients(sums, numbers), off)
            return slope * dz, formula.outputs(sums, *numbers[:3]).entropy

    (a, ha), (b, hb), (c, hc), (d, hd) = (gradient(x + k * h * v) for k in (-2, -1, 1, 2))
    return (8 * (c - b) - (d - a)) / (12 * h), (8 * (hc - hb) - (hd - ha)) / (12 * h)


@each_transform
@each_off
@each_dtype
def test_curvature_is_the_derivative_of_the_gradient(dtype, off, transform):
    for rows, classes in [(5, 1), (9, 2), (9, 10), (9, 100), (4, 1000), (2, 5000)]:
        p = with_all_numbers(problem(rows, classes, dtype, off))._replace(transform=transform)
        near = np.abs(np.where(np.isfinite(p.z.astype(float)), p.z.astype(float), 0)).max(axis=1) < 60
        if classes > 1:
            p = p.rows(near)
        v = np.random.default_rng(classes).standard_normal(p.z.shape).astype(computed(dtype))
        got, (mean, at_label, by_off, by_entropy) = curved(p, v)
        want, dentropy = curvature_of_formula(p, v)
        z, slope, _ = cooled(p.z.astype(np.float64), *p.transform)
        size = 1 + np.abs(np.where(np.isfinite(z), z, 0)).max(axis=1, initial=0) + np.log(classes)
        unit = bounds.UNIT[computed(dtype).name]
        o = np.zeros(1) if p.off is None else np.abs(p.off.astype(float))
        amount = np.abs(p.truth).sum(axis=0) * (1 + np.abs(p.truth[3])) * (1 + o.sum(axis=-1))
        steep = np.max(np.abs(slope))
        stored = 4 * bounds.UNIT[dtype.name] * np.abs(want).astype(float) + bounds.TINY[dtype.name]
        bound = 100 * unit * (amount * size**3 * (1 + steep) ** 2)[:, None] + stored
        within(got, np.where(np.isfinite(z), want, 0), bound, f"{p.z.shape} product")
        sums = formula.partials(z, p.label)
        yhat, along = formula.softmax(z, sums), np.where(np.isfinite(z), v * slope, 0)
        exactly = (yhat * along).sum(axis=1)
        small = 50 * unit * size * (1 + steep)
        within(mean, exactly, small, "mean")
        hot = formula.at_label(z, p.label)
        own = np.where(hot, v * slope - exactly[:, None], 0).sum(axis=1)
        within(at_label, own, small * (1 + np.abs(np.where(hot, v * slope, 0)).max(axis=1)), "v_t - mean")
        if p.off is not None:
            share = (p.off.astype(float) * (v * slope - exactly[:, None])).sum(axis=1)
            within(by_off, share, small * (1 + np.abs(p.off.astype(float) * (1 + np.abs(v))).sum(axis=-1)), "off")
        within(by_entropy, dentropy, 50 * unit * size**2 * (1 + steep), "entropy")


def test_curvature_without_the_second_derivative_of_the_softcap_is_positive():
    p = problem(40, 33, np.dtype("f8"), "dense")._replace(transform=(0.9, 3.0))
    p = p._replace(truth=np.abs(p.truth), z=np.clip(p.z, -20, 20))
    v = np.random.default_rng(1).standard_normal(p.z.shape)
    gauss_newton, whole = curved(p, v, True)[0], curved(p, v)[0]
    assert ((v * gauss_newton).sum(axis=1) > -8 * bounds.UNIT["float64"]).all()
    assert np.abs(gauss_newton - whole).max() > 1e-3
    flat = p._replace(transform=(0.9, np.inf))
    assert curved(flat, v, True)[0].tobytes() == curved(flat, v)[0].tobytes()


@each_dtype
def test_curvature_has_the_same_bits_in_any_batch_and_its_result_may_be_in_place_of_v(dtype):
    for rows, classes in ((39, 3), (39, 64), (9, 100), (9, 5000)):  # short rows: more than two tiles
        p = with_all_numbers(problem(rows, classes, dtype, "dense"))._replace(transform=(0.7, 9.0))
        v = np.random.default_rng(2).standard_normal(p.z.shape).astype(computed(dtype))
        (hv, products), three = curved(p, v), curved(p, v, threads=3)
        assert (hv.tobytes(), products.tobytes()) == (three[0].tobytes(), three[1].tobytes())
        one = curved(p.rows(slice(4, 5)), v[4:5])
        assert (one[0].tobytes(), one[1].tobytes()) == (hv[4:5].tobytes(), products[:, 4:5].tobytes())
        if dtype == computed(dtype):
            kernels.active().curvature(p.z, v, p.label, p.truth, p.off, p.transform, False, v, products, 1)
            assert v.tobytes() == hv.tobytes()


@each_transform
@each_dtype
def test_log_softmax_keeps_its_digits(dtype, transform):
    for shape in SHAPES:
        p = problem(*shape, dtype)
        out, scale = np.empty_like(p.z), np.linspace(-2, 3, shape[0])
        kernels.active().log_softmax(p.z, scale, transform, out, 2)
        wide = np.longdouble if dtype == np.float64 else np.float64
        with np.errstate(invalid="ignore", over="ignore"):
            z = cooled(p.z.astype(wide), *transform)[0]
            want = formula.times(scale[:, None], -formula.surprisal(z, formula.partials(z, z.argmax(axis=1))))
        unit = bounds.UNIT[computed(dtype).name]
        moved = 0 if transform == TRANSFORMS["none"] else 12 * unit * np.where(np.isfinite(z), np.abs(z), 0).max(axis=1, keepdims=True)
        log_of = bounds.loss_bound(dtype, shape[1], 100) + bounds.UNIT[dtype.name] + 3 * unit
        bound = log_of * np.abs(np.where(np.isfinite(want), want, 0)) + moved * np.abs(scale)[:, None] * 2 + bounds.TINY[dtype.name]
        within(out, want, bound.astype(float), f"{shape}")


@pytest.mark.parametrize("classes", (5, 100, 5000))
def test_a_temperature_costs_no_digit_of_a_common_offset(classes, rng):
    """10000 / 0.7 is rounded to float32, by up to 5e-4, and the products with 1 / T are not."""
    wide = np.longdouble
    z, t = (1e4 + rng.integers(0, 4, (6, classes))).astype(np.float32), rng.integers(0, classes, 6)
    numbers = np.array([1, 0.5, 0, 1, 0.5, 0.25, 2.0])[:, None] * np.ones((1, 6))
    p = Problem(z, t, numbers, np.full(classes, 1 / classes, np.float32), (0.7, np.inf))
    got, want = fused(p, outputs=5), exact(p, outputs=5)
    for k in (0, 2, 3):
        np.testing.assert_allclose(got.result[k], want.result[k], rtol=FLOAT32)
    np.testing.assert_allclose(got.dz, want.dz.astype(float), rtol=FLOAT32, atol=FLOAT32)
    v, out = rng.standard_normal(z.shape).astype(np.float32), np.empty_like(z)
    product, _ = curved(p, v)
    exactly = curvature_of_formula(p._replace(z=z.astype(wide)), v.astype(wide))[0]
    np.testing.assert_allclose(product, exactly.astype(float), rtol=0, atol=4 * FLOAT32 * float(np.abs(exactly).max()))
    kernels.active().log_softmax(z, np.ones(1), p.transform, out, 1)
    sums = formula.partials(z, t, None, 0.7)
    np.testing.assert_allclose(out, -formula.surprisal(z.astype(float), sums), rtol=0, atol=2 * FLOAT32)


def any_size(rng: np.random.Generator, low: float, high: float, *more: float) -> float:
    """Return a number whose logarithm is uniform between those of 2^low and 2^high, or close to 1, or one of the others."""
    return float(rng.choice([2.0 ** rng.uniform(low, high), 2.0 ** rng.uniform(low / 10, high / 10), 2.0 ** rng.uniform(-9, 9), *more]))


def far_out(rng: np.random.Generator, dtype: np.dtype, classes: int, most_v: float = 1000) -> tuple[Problem, np.ndarray]:
    """Return rows with a temperature and a softcap of any size, with logits of any size: each of its own, all close to each other, or as
    large as the temperature or the softcap; with an upstream gradient of any size, and a vector of any size, at most 2^most_v."""
    most = 1020 if dtype == np.float64 else 126
    temperature = any_size(rng, -126, 1023, 1.0, 2.0**-126, np.finfo(np.float64).max)
    cap = np.inf if rng.random() < 0.5 else any_size(rng, -126, 1023, 2.0**-126, np.finfo(np.float64).max)
    sign, e = rng.choice([-1, 1], (8, classes)), 2.0 ** rng.uniform(-most, most, (8, 1))
    z = sign * 2.0 ** rng.uniform(-most, most, (8, classes))
    z[2:4] = (e * (1 + rng.standard_normal((8, classes)) * 2.0 ** rng.uniform(-50, 0, (8, 1))))[2:4] / 8
    z[4:] = (rng.standard_normal((8, classes)) * min(temperature * 2.0 ** rng.uniform(-3, 9), cap * 3, 2.0**most / 8))[4:]
    label = rng.integers(0, classes, 8)
    if cap == np.inf or cap < 2.0**100:  # beyond the range of float32, a softcap leaves -inf as it is
        z[1::3, 0], label[1::3] = -np.inf, 1
    truth = np.array([1, 1, 0, any_size(rng, -300, 300, 1.0, 0.0)])[:, None] * np.ones((1, 8))
    truth[1, ::2] = 0
    off = (rng.random((8, classes)) / classes * (z > -np.inf)).astype(dtype)
    size = rng.uniform(-140, 110) if dtype == np.float32 else rng.uniform(-most_v, most_v)
    v = (rng.choice([-1, 1], z.shape) * 2.0 ** (size + rng.uniform(-9, 9, z.shape))).astype(dtype)
    return Problem(z.astype(dtype), label, truth, off, (temperature, cap)), v


def check_product(p: Problem, v: np.ndarray, got: np.ndarray, product: Value, where: str) -> None:
    """Check the product of the Hessian and v within its bound, and within some roundings of its parts, which is less for a softcap.

    An exponential has an error of as many units as its exponent. Where a softcap rounds a row of logits by 1 % of 1, the bound is alone.
    """
    unit, tiny, (temperature, cap) = bounds.UNIT[p.z.dtype.name], bounds.TINY[p.z.dtype.name], np.longdouble(p.transform)
    with np.errstate(all="ignore"):
        seen = transformed(p)
        moved = 12 * unit * (cap < np.inf) * np.where(np.isfinite(seen.z), np.abs(seen.z), 0).max(axis=1, keepdims=True)
        slope, hot = seen.slope * np.ones_like(seen.z), formula.at_label(p.z, p.label)
        odds = np.exp(-seen.dist)
        yhat = odds / odds.sum(axis=1, keepdims=True)
        truth = np.where(hot, p.truth[0][:, None], 0) + p.truth[1][:, None] * p.off.astype(np.longdouble)
        along, mass = times(v.astype(np.longdouble), slope), truth.sum(axis=1, keepdims=True)
        apart = np.abs(along - times(yhat, along).sum(axis=1, keepdims=True))
        spread = times(yhat, apart).sum(axis=1, keepdims=True) + np.abs(along).max(axis=1, keepdims=True)
        steep, yhat = slope + tiny / unit / temperature, yhat + tiny / unit  # below the normal numbers, a result has no digits
        size = mass * yhat * spread + np.abs(np.where(slope > 0, seen.bend / slope, 0) * v) * (mass * yhat + truth)
        parts = (4 * (104 if unit > 1e-9 else 746) * unit + 8 * moved) * np.abs(p.truth[3])[:, None] * steep * size + 8 * tiny
    by_parts = np.where(moved < 1e-2, parts, np.inf)  # see above
    Worst().check("Hessian product", got, product._replace(bound=np.fmin(product.bound, by_parts)), where)


@pytest.mark.parametrize("classes", (2, 5, 70))
@pytest.mark.parametrize("backend", ["cpu"] if "cpu" in BACKENDS else [], indirect=True)
@pytest.mark.parametrize("dtype", [DTYPES["f32"], DTYPES["f64"]], ids=["f32", "f64"])
def test_logits_and_temperatures_and_softcaps_and_directions_of_any_size(dtype, classes, rng):
    for _ in range(20):
        p, v = far_out(rng, dtype, classes)
        got, found, where = fused(p, outputs=5), expected(p, v), f"{p.transform} {p.z.tolist()} {p.label} {p.truth[3]} {v.tolist()}"
        assert got.bits() == two_calls(p, outputs=5).bits(), where
        for kind, x in zip(("loss", "lse", "log-probability", "entropy"), got.result, strict=False):
            Worst().check(kind, x, found[kind], where)
        Worst().check("gradient", got.dz, found["gradient"], where)
        check_product(p, v, curved(p, v)[0], found["Hessian product"], where)


@pytest.mark.parametrize("classes", (5, 100))
@pytest.mark.parametrize("sign", (1, -1))
def test_a_positive_or_negative_upstream_gradient_may_be_beyond_float32(sign, classes):
    """Where a probability is small, its product with it is not."""
    z = np.full((2, classes), -70, np.float32) + np.linspace(-1, 1, classes, dtype=np.float32)
    z[:, 0] = 0
    numbers = np.array([0, 0, 0, 0, sign * 1e39, 0, 1e-3])[:, None] * np.ones((1, 2))
    p = Problem(z, np.zeros(2, np.int64), numbers, None, (1.0, np.inf))
    got, want = fused(p, outputs=5).dz[:, 1:], exact(p, outputs=5).dz[:, 1:].astype(float)
    np.testing.assert_allclose(got, want, rtol=2 * FLOAT32)


@pytest.mark.parametrize("classes", (5, 100, 5000))
def test_a_row_whose_numbers_are_all_0_has_a_product_of_0(classes, rng):
    z, v = (rng.standard_normal((9, classes)).astype(np.float32) for _ in range(2))
    out, products = np.full_like(z, 7), np.full((4, 9), 7.0)
    kernels.active().curvature(z, v, np.zeros(9, np.int64), np.zeros((7, 9)), None, (0.7, 5.0), False, out, products, 1)
    assert not out.any()


@pytest.mark.parametrize("classes", (5, 100))
def test_a_subnormal_weight_of_a_large_truth_keeps_its_digits_beside_that_of_the_entropy(classes, rng):
    """The product of g r = 2^-140 and off = 2^120 is no subnormal number, and the gradient of the entropy is as large."""
    z, off = rng.standard_normal((2, classes)).astype(np.float32), (2.0**120 * rng.random((2, classes))).astype(np.float32)
    p = Problem(z, np.full(2, -1), np.array([0, 2.0**-140, 0, 1, 0, 0, 1e-6])[:, None] * np.ones((1, 2)), off)
    got, want = fused(p, outputs=5).dz, exact(p, outputs=5).dz.astype(float)
    np.testing.assert_allclose(got, want, rtol=0, atol=2 * FLOAT32 * np.abs(want).max())


@pytest.mark.parametrize("classes", (2, 5, 100, 5000))
def test_the_largest_of_zeros_of_the_compiled_kernel_is_0_whatever_their_signs_and_order(classes, rng):
    z = np.where(rng.random((9, classes)) < 0.5, np.float32(0), np.float32(-0.0))
    z[0] = -0.0
    with softxent.use_backend("cpu"):
        largest = fused(Problem(z, np.full(9, -1), np.ones((4, 1)), None)).parts[0]
    assert not largest.any() and not np.signbit(largest).any()


@pytest.mark.parametrize("classes", (5, 100, 5000))
def test_a_truth_of_0_has_no_gradient_with_all_numbers(classes, rng):
    numbers = np.array([0, 0, 0, 1, 0, 0, 0.0])[:, None] * np.ones((1, 9))
    p = Problem(rng.standard_normal((9, classes)).astype(np.float32), np.arange(9) % classes, numbers, None, (0.7, np.inf))
    assert not fused(p).dz.any()


@pytest.mark.parametrize("transform", [TRANSFORMS["none"], TRANSFORMS["both"]], ids=str)
@each_dtype
def test_an_ignored_row_is_not_read_and_gives_0(dtype, transform):
    for shape in SHAPES:
        p = with_all_numbers(problem(*shape, dtype, "dense"))._replace(transform=transform)
        p = p._replace(z=p.z.copy(), label=np.where(np.arange(shape[0]) % 3 == 0, kernels.IGNORED, p.label))
        none = p.label == kernels.IGNORED
        p.z[none] = np.nan
        got = fused(p, outputs=5)
        assert (got.result[:, none] == 0).all() and (got.dz[none] == 0).all()
        hv, products = curved(p, np.ones(p.z.shape, computed(dtype)))
        assert (hv[none] == 0).all() and (products[:, none] == 0).all()
        if not none.all():
            assert fused(p.rows(~none), outputs=5).result.tobytes() == got.result[:, ~none].tobytes()


@each_dtype
def test_the_label_largest_is_the_column_of_the_largest_truth_or_logit(dtype):
    for shape in SHAPES:
        for off in ("dense", "shared", "label"):
            p = problem(*shape, dtype, off)
            logits = np.where(np.isnan(p.z.astype(float)), -np.inf, p.z.astype(float))
            for special, by in ((kernels.LARGEST, p.off if off == "dense" else logits), (kernels.LARGEST_LOGIT, logits)):
                largest = p._replace(label=np.full(shape[0], special))
                assert fused(largest).bits() == fused(p._replace(label=by.argmax(axis=1))).bits()


@each_dtype
def test_a_row_whose_numbers_are_all_0_has_gradient_0_even_if_its_logits_are_not_finite(dtype):
    for shape in SHAPES:
        p = problem(*shape, dtype)
        p.z[0, 0], p.truth[:3, 0] = np.nan, 0
        p.z[1, -1], p.truth[3, 1] = np.inf, 0
        got = fused(p)
        assert (got.dz[:2] == 0).all() and got.result[0, 0] == 0


@pytest.mark.parametrize("shape", [(9, 33), (3, 300), (2, 5000)], ids=str)
def test_softcap_and_temperature_far_out(backend, shape):
    """The softcaps and temperatures that NumPy's tanh has digits for, with logits of all sizes."""
    rng = np.random.default_rng(0)
    for cap in (1e-30, 1e-3, 1e3, 1e10, 1e20, 1e30, 1e39, 1e45):
        for temperature in (1.0, 1e-3, 1e3):
            size = min(1e30, cap * 3, temperature * 50)
            z = (rng.standard_normal(shape) * size).astype(np.float32)
            p = Problem(z, rng.integers(0, shape[1], shape[0]), np.array([[1.0], [0], [0], [1.0]]), None, (temperature, cap))
            got, want = fused(p), exact(p)
            # z / T is rounded to float32 where it is 50, and the loss to a part of that
            np.testing.assert_allclose(got.result[0], want.result[0], rtol=4 * FLOAT32, atol=10 * FLOAT32, err_msg=f"{cap} {temperature}")
            near = 4 * FLOAT32 * np.abs(want.dz).max(initial=0) + 1e-37  # as above, and a gradient may be subnormal
            np.testing.assert_allclose(got.dz, want.dz, rtol=4 * FLOAT32, atol=near, err_msg=f"{cap} {temperature}")


def test_tanh_has_a_few_units_of_error():
    """tanh and its slope are read off a row of one class: m is c tanh(z/c), and the gradient of lse the slope."""
    x = np.concatenate([np.linspace(-12, 12, 4001), np.geomspace(1e-30, 40, 2000), [0.0, 1e30]])
    for dtype in (np.float32, np.float64):
        only = np.array([[0.0], [0], [0], [0], [1], [0], [0]])
        for cap in (1.0, 3.0):
            p = Problem(x[:, None].astype(dtype) * dtype(cap), np.full(len(x), -1), only, None, (1.0, cap))
            got = fused(p, outputs=5)
            wide = p.z[:, 0].astype(np.longdouble) / cap
            unit = bounds.UNIT[np.dtype(dtype).name]
            # subnormal numbers
            within(got.parts[0], cap * np.tanh(wide), 8 * unit * np.abs(cap * np.tanh(wide)).astype(float) + 1e-44, "tanh")
            slope = np.cosh(wide[:-1].astype(np.longdouble)) ** -2
            relative = 4 * np.abs(wide[:-1]).astype(float) * unit + 10 * unit
            # subnormal numbers
            within(got.dz[:-1, 0], slope, relative * slope.astype(float) + (2e-37 if dtype == np.float32 else 1e-306), "slope")


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the instruction sets are those of the compiled kernel")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_every_instruction_set_has_the_same_bits_with_all_that_the_kernel_takes(backend):
    code = "import hashlib, test_waist; print(hashlib.sha256(test_waist.everything()).hexdigest())"
    found = {isa: python(code, SOFTXENT_ISA=isa).strip() for isa in isas()}
    assert len(set(found.values())) == 1, found


def everything() -> bytes:
    """Return all results of the kernels, for cases of each kind."""
    found = []
    for dtype in DTYPES.values():
        for transform in TRANSFORMS.values():
            for off in OFFS:
                for p in cases(dtype, off, transform):
                    v = np.random.default_rng(0).standard_normal(p.z.shape).astype(computed(dtype))
                    out = np.empty_like(p.z)
                    kernels.active().log_softmax(p.z, np.ones(1), transform, out, 1)
                    sums, hv, products = (np.zeros((7, len(v))), np.zeros((5, len(v)))), np.empty_like(p.z), np.zeros((4, len(v)))
                    kernels.active().tangent_sums(p.z, v, p.label, p.off, transform, *sums, 1)
                    kernels.active().hessian(p.z, v, p.label, p.truth, p.off, transform, False, *sums, hv, products, 1)
                    found += [fused(p, outputs=5).bits(), *(a.tobytes() for a in (*curved(p, v), out, *sums, hv, products))]
    return b"".join(found)


def test_the_numbers_that_python_and_the_kernel_share_are_those_of_the_kernel():
    """Without it, the formula backend has its own."""
    shared = {name: value for name, value in vars(softxent.shared).items() if name.isupper() and name != "NO_LABEL"}
    if kernels.cpu is not None:
        assert shared == {name: value for name, value in vars(kernels.cpu._kernel).items() if name.isupper()}
    code = """
import sys
sys.modules["softxent._kernel"] = None
import warnings, numpy as np, softxent
from softxent import shared
warnings.simplefilter("ignore")
assert softxent.kernels.cpu is None
softxent.cross_entropy_and_grad(np.eye(3), np.array([0, 1, -100]), label_smoothing=0.1)
softxent.cross_entropy(np.eye(3), np.eye(3))
print(sorted(name for name in vars(shared) if name.isupper()))
"""
    assert python(code).strip() == str(sorted([*shared, "NO_LABEL"]))
