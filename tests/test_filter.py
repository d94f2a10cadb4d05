"""The gradient filter: ||error||_F <= filter_tol ||gradient||_F for dX and dW, for any rows, truth and upstream gradient.

The reference is the call without the filter in float64. The rounding of the products is not part of the bound; `aside` is the error of the
same call without the filter.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tolerances import FEW64, FLOAT64

import softxent
from softxent import FilterStats, filtering, linear
from softxent.proof import bounds
from softxent.torch import linear_cross_entropy

DTYPES = {"f32": np.dtype("f4"), "f64": np.dtype("f8")}
FRONTS = ("numpy", "torch")
TOLS = (1e-4, 1e-2, 0.3, 0.9)
ROWS, CLASSES, WIDTH = 48, 3000, 12


class Case(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    labels: np.ndarray
    options: dict[str, Any]


def peaked(rng, rows=ROWS, classes=CLASSES, width=WIDTH, frequent=300) -> Case:
    """Return a head as of a trained model, with most of the probability and of the labels in the first classes."""
    x, w = rng.standard_normal((rows, width)), rng.standard_normal((classes, width)) / np.sqrt(width)
    x[:, -1], w[:, -1] = 1, -8 * np.log1p(np.arange(classes) / frequent)
    return Case(x, w, (frequent * rng.random(rows) ** 3).astype(int), {})


def kinds(rng) -> dict[str, Case]:
    p = peaked(rng)
    x, w, labels, _ = p
    somewhere = rng.integers(0, CLASSES, ROWS)
    sizes = rng.choice([-1, 1], ROWS) * 10.0 ** rng.uniform(-4, 4, ROWS)
    soft = np.exp(rng.standard_normal((ROWS, CLASSES)) * 3 - 8 * np.arange(CLASSES) / CLASSES)
    some = labels % (WIDTH - 1)  # the probabilities of these labels are about 0.999995: 1 - p is 2e-7 to 6e-6
    sure = p._replace(w=w * (np.arange(WIDTH) < WIDTH - 1) + 5.5 * np.eye(CLASSES, WIDTH), x=4 * np.eye(WIDTH)[some], labels=some)
    twice = np.repeat(x[: ROWS // 2], 2, axis=0)
    return {
        "plain": p,
        "rare labels": p._replace(labels=somewhere),
        "flat": p._replace(w=w * 1e-3),
        "upstream": p._replace(options=dict(upstream=sizes, reduction="none")),
        "tiny upstream": p._replace(options=dict(upstream=1e-30)),
        "huge upstream": p._replace(options=dict(upstream=1e30)),
        "z-loss of sure rows": sure._replace(options=dict(z_loss=0.1)),  # prediction - truth is nearly 0, the z-loss is not
        "z-loss": p._replace(options=dict(z_loss=1.0)),
        "smoothing": p._replace(options=dict(label_smoothing=0.1)),
        "class weights": p._replace(options=dict(class_weight=np.where(np.arange(CLASSES) > 1500, 1e4, 1.0) * rng.random(CLASSES))),
        "sample weights": p._replace(options=dict(sample_weight=rng.random(ROWS) ** 20)),
        "ignored": p._replace(labels=np.where(rng.random(ROWS) < 0.4, -100, labels)),
        "all ignored": p._replace(labels=np.full(ROWS, -100), options=dict(reduction="sum")),
        "probabilities": p._replace(labels=soft / soft.sum(1, keepdims=True)),
        "huge rows of rare classes": p._replace(w=w * np.where(rng.random((CLASSES, 1)) < 0.002, 30.0, 1.0)),  # a row of 500
        "huge, rare, orthogonal": p._replace(
            w=np.where((np.arange(CLASSES) == 2500)[:, None], 1e4 * np.eye(WIDTH)[0], w), x=x * (np.arange(WIDTH) > 0)
        ),
        "huge rows of x": p._replace(x=x * np.where(rng.random((ROWS, 1)) < 0.1, 1e3, 1.0)),
        "tiny rows of x": p._replace(x=x * 10.0 ** rng.uniform(-6, 0, (ROWS, 1))),
        # the same row with upstream 1 and -0.999
        "dW cancels": p._replace(
            x=twice, labels=np.repeat(somewhere[: ROWS // 2], 2), options=dict(upstream=np.tile([1, -0.999], ROWS // 2), reduction="none")
        ),
        # all rows of W are nearly equal: dX is nearly (sum of G) times that row, and the sum of G is 0
        "dX cancels": p._replace(w=np.ones(WIDTH) + 1e-3 * w),
        # each of 48 classes is the label of one row and has the same probability in all rows, so that the sums of the columns nearly cancel
        "calibrated": Case(
            1 + 1e-2 * x,
            np.where(np.arange(CLASSES) % (CLASSES // ROWS) == 0, 0, -3)[:, None] + 1e-3 * w,
            np.arange(ROWS) * (CLASSES // ROWS) % CLASSES,
            {},
        ),
        "late cancellation": p._replace(
            x=np.concatenate([x[:24], x[:24]]), labels=np.tile(labels[:24], 2),
            options=dict(upstream=np.repeat([1, -0.999], 24), reduction="none"),
        ),
        "quiet first": p._replace(options=dict(upstream=np.where(np.arange(ROWS) < 24, 1e3, 1e-3), reduction="none")),
    }  # fmt: skip


def gradients(front: str, case: Case, dtype: np.dtype, budget: int, tol: float | None = None, stats: Any = None) -> tuple[np.ndarray, ...]:
    x, w, labels = case.x.astype(dtype), case.w.astype(dtype), case.labels
    if front == "numpy":
        return softxent.linear_cross_entropy_and_grad(x, w, labels, **case.options, budget=budget, filter_tol=tol, filter_stats=stats)[1:]
    options = dict(case.options)
    up, reduction = options.pop("upstream", 1.0), options.pop("reduction", "mean")
    each = options.pop("sample_weight", None)
    if np.ndim(up):  # an upstream gradient for each row is a weight of a sum in torch
        each, reduction = up, "sum"
    weight = options.pop("class_weight", None)
    to = lambda a: None if a is None else torch.as_tensor(a)  # noqa: E731
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    loss = linear_cross_entropy(
        tx, tw, to(labels), reduction=reduction, sample_weight=to(each), weight=None if weight is None else to(weight.astype(dtype)),
        budget=budget, filter_tol=tol, filter_stats=stats, **options,
    )  # fmt: skip
    return tuple(g.numpy() * (1.0 if np.ndim(up) else up) for g in torch.autograd.grad(loss, (tx, tw)))


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Return ||a - b|| / ||b||."""
    a, b = a.astype("f8"), b.astype("f8")
    scale = max(np.abs(b).max(), 1e-300)
    return float(np.linalg.norm((a - b) / scale) / max(np.linalg.norm(b / scale), 1e-300))


class Found(NamedTuple):
    error: tuple[float, float]  # the relative errors of dX and dW
    aside: tuple[float, float]  # those without the filter
    stats: FilterStats


@cache
def search(front: str, name: str) -> dict[str, dict[tuple, Found]]:
    """Run all cases. Returns kind -> (tol, budget, seed) -> outcome."""
    dtype, found = DTYPES[name], {}
    row = CLASSES * dtype.itemsize
    for seed in range(1 if front == "torch" else 2):
        for kind, case in kinds(np.random.default_rng(seed)).items():
            case = case._replace(x=case.x.astype(dtype), w=case.w.astype(dtype))
            for budget in (64 << 20, 14 * row):
                exact = gradients("numpy", case, np.dtype("f8"), budget)
                plain = gradients(front, case, dtype, budget)
                aside = tuple(apart(a, b) for a, b in zip(plain, exact, strict=True))
                for tol in TOLS:
                    stats = FilterStats()
                    got = gradients(front, case, dtype, budget, tol, stats)
                    error = tuple(apart(a, b) for a, b in zip(got, exact, strict=True))
                    found.setdefault(kind, {})[tol, budget, seed] = Found(error, aside, stats)
    return found


each_front = pytest.mark.parametrize("front", FRONTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@each_front
@each_dtype
def test_no_error_is_beyond_its_tolerance(front, dtype):
    """It is also within the bound of the statistics. The factor 4 is for the rounding of the products, whose order of addition differs."""
    for kind, results in search(front, dtype).items():
        for key, f in results.items():
            for error, aside, bound in zip(f.error, f.aside, (f.stats.bound_dx, f.stats.bound_dw), strict=True):
                assert error <= bound + 4 * aside + FLOAT64, (kind, key, f)
                assert bound <= key[0], (kind, key, f)


def test_rows_are_as_sure_as_where_a_filter_by_probability_lost_the_z_loss():
    case = kinds(np.random.default_rng(0))["z-loss of sure rows"]
    p = softxent.softmax(case.x @ case.w.T)
    assert 1e-7 < (miss := 1 - p[np.arange(ROWS), case.labels]).min() and 5e-6 < miss.max() < 1e-5  # the sureness of trained models
    whole, without = (gradients("numpy", case._replace(options=o), np.dtype("f8"), linear.BUDGET)[0] for o in (case.options, {}))
    assert apart(without, whole) > 0.99, "z-loss is all of the gradient"
    got = gradients("numpy", case, np.dtype("f8"), linear.BUDGET, 1e-2)[0]
    assert apart(got, whole) <= 1e-2  # the tolerance asked for


@each_front
@each_dtype
def test_errors_reach_a_fair_part_of_the_tolerance(front, dtype):
    found = search(front, dtype)
    for which, name in enumerate(("dx", "dw")):
        for tol in TOLS[1:3]:
            reached = [f.error[which] / tol for results in found.values() for (t, *_), f in results.items() if t == tol]
            assert max(reached) > 0.3, (name, tol)
    some = [f.stats for (tol, *_), f in found["plain"].items() if 1e-2 <= tol < 0.5]
    assert all(s.skipped_dx > s.blocks / 5 and s.skipped_dw > s.blocks / 5 for s in some), "peaked logits are what it is for"


@each_front
@each_dtype
def test_what_cancels_is_not_skipped_or_made_anew(front, dtype):
    found = search(front, dtype)
    for kind, product in (("dX cancels", "skipped_dx"), ("dW cancels", "skipped_dw"), ("late cancellation", "skipped_dw")):
        was, now = (sum(getattr(f.stats, product) for f in found[k].values()) for k in ("plain", kind))
        assert now < was, kind
    assert any(f.stats.recomputed for f in found["late cancellation"].values())
    assert not any(f.stats.recomputed for f in found["plain"].values())


@each_dtype
def test_the_bounds_are_those_of_the_theorem(dtype, rng):
    """They are at least those of proof.bounds in float64, exceed them by at most the factor `room`, and no error exceeds them."""
    for scale in (1.0, 1e-30, 1e-42, 1e30):
        for rows, classes, width in ((1, 1, 1), (7, 128, 3), (5, 129, 40), (300, 1000, 8), (2, 70_000, 4)):
            g, x, w = (
                rng.standard_normal(s) * 10.0 ** rng.uniform(-3, 3, (s[0], 1)) for s in ((rows, classes), (rows, width), (classes, width))
            )
            g, x, w = (a.astype(DTYPES[dtype]) for a in (scale * g, x, w))
            a, c = filtering.magnitudes(g, filtering.norms(x))
            room = filtering.room(g.dtype, rows, classes, width) ** 2
            a, c = a * filtering.block_max(filtering.norms(w)) * room, c * room
            skip = rng.random(a.shape[1]) < 0.7
            columns = np.repeat(skip, filtering.BLOCK)[:classes]
            want_x, want_w = bounds.filter_losses(g, x, w, skip, filtering.BLOCK)
            for got, want in ((a[:, skip].sum(1), want_x), (np.where(columns, c, 0), want_w)):
                assert (got >= want).all() and (got <= want * room**2 + 1e-28).all()  # what the smallest numbers add
            g64 = np.where(columns, g.astype("f8"), 0)
            for lost, most in ((g64 @ w, want_x), (g64.T @ x, want_w)):
                assert (np.linalg.norm(lost, axis=1) <= most * (1 + FLOAT64)).all()


def test_norms_are_never_too_small(rng):
    for dtype in DTYPES.values():
        a = (rng.standard_normal((50, 700)) * 10.0 ** rng.uniform(-44, 15, (50, 1))).astype(dtype)
        true = np.array([np.sqrt(np.square(row.astype(np.longdouble)).sum()) for row in a])
        assert (filtering.norms(a) * filtering.room(dtype, 1, 1, 700) >= true).all()


@each_front
@each_dtype
def test_off_by_default(front, dtype, rng):
    """The default and filter_tol=None give the same bits as a call without the argument."""
    case = peaked(rng)
    stats = FilterStats(blocks=7, recomputed=True)
    for budget in (64 << 20, 14 * CLASSES * 8):
        want = gradients(front, case, DTYPES[dtype], budget)
        for a, b in zip(want, gradients(front, case, DTYPES[dtype], budget, None, stats), strict=True):
            np.testing.assert_array_equal(a, b)
    assert stats == FilterStats(), "nothing was filtered"


@each_front
@each_dtype
def test_the_statistics_tell_the_truth(front, dtype, rng, monkeypatch):
    """The statistics agree with the blocks that the products receive."""
    case, product = peaked(rng), {}
    kind = linear.NumPyProducts if front == "numpy" else type(__import__("softxent.torch.linear_operators", fromlist=["PRODUCTS"]).PRODUCTS)
    inner = kind.product

    def counted(self, a, b, out, add):
        columns, to = (
            (a.shape[0], "dw") if a.shape[0] != out.shape[0] or b.shape[0] == len(case.x) or b.shape[0] < 30 else (a.shape[1], "dx")
        )
        product[to] = product.get(to, 0) + -(-columns // filtering.BLOCK)
        return inner(self, a, b, out, add)

    rows = 16 if front == "numpy" else 14  # of the budget; NumPy keeps an eighth of it for products that are added
    for budget, chunks in ((64 << 20, 1), (rows * CLASSES * DTYPES[dtype].itemsize, 4)):
        product.clear()
        stats = FilterStats()
        with monkeypatch.context() as patch:
            patch.setattr(kind, "product", counted)
            gradients(front, case, DTYPES[dtype], budget, 1e-2, stats)
        blocks = -(-CLASSES // filtering.BLOCK) * chunks
        assert stats.blocks == blocks and not stats.recomputed
        assert product == dict(dx=blocks - stats.skipped_dx, dw=blocks - stats.skipped_dw)
        assert 0 < stats.skipped_dx < blocks and 0 < stats.bound_dx <= 1e-2 and 0 < stats.bound_dw <= 1e-2  # the tolerance asked for


@each_front
def test_dw_made_anew_is_dw(front, rng):
    case, stats = kinds(rng)["late cancellation"], FilterStats()
    budget = 14 * CLASSES * 8
    _, dw = gradients(front, case, np.dtype("f8"), budget, 0.1, stats)
    assert stats.recomputed and stats.skipped_dw == 0 == stats.bound_dw and stats.skipped_dx > 0
    assert apart(dw, gradients(front, case, np.dtype("f8"), budget)[1]) < FLOAT64


def test_dw_made_anew_leaves_db_as_it_was(rng):
    x, w, labels, options = kinds(rng)["late cancellation"]
    options |= dict(bias=np.zeros(CLASSES), budget=14 * CLASSES * 8)
    stats = FilterStats()
    found = softxent.linear_cross_entropy_and_grad(x, w, labels, **options, filter_tol=0.1, filter_stats=stats)[-1]
    assert stats.recomputed
    want = softxent.linear_cross_entropy_and_grad(x, w, labels, **options)[-1]
    np.testing.assert_allclose(found, want, rtol=FLOAT64, atol=FLOAT64 * np.abs(want).max())


def test_dw_made_anew_leaves_db_as_it_was_in_torch(rng):
    case, stats = kinds(rng)["late cancellation"], FilterStats()
    x, w, labels, bias = map(torch.tensor, (case.x, case.w, case.labels, np.zeros(CLASSES)))
    given = [t.requires_grad_() for t in (x, w, bias)]
    upstream = torch.tensor(case.options["upstream"])
    options = dict(linear_bias=bias, budget=14 * CLASSES * 8, reduction="sum", sample_weight=upstream)
    found = torch.autograd.grad(linear_cross_entropy(x, w, labels, filter_tol=0.1, filter_stats=stats, **options), given)[-1]
    assert stats.recomputed
    want = torch.autograd.grad(linear_cross_entropy(x, w, labels, **options), given)[-1]
    torch.testing.assert_close(found, want, rtol=FLOAT64, atol=FLOAT64 * float(want.abs().max()))


def test_the_loss_and_db_are_exact(rng, monkeypatch):
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, -1, dtype))  # not the losses of an earlier call
    x, w, labels, _ = peaked(rng)
    options = dict(bias=rng.standard_normal(CLASSES), label_smoothing=0.1, softcap=20.0)
    loss, *_, db = softxent.linear_cross_entropy_and_grad(x, w, labels, **options)
    got, dx, dw, found = softxent.linear_cross_entropy_and_grad(x, w, labels, **options, filter_tol=0.3)
    assert got == pytest.approx(loss, rel=FEW64)
    np.testing.assert_allclose(found, db, rtol=FLOAT64, atol=FLOAT64 * np.abs(db).max())
    whole = softxent.linear_cross_entropy_and_grad(x, w, labels, **options)
    assert 1e-4 < apart(dx, whole[1]) <= 0.3 and apart(dw, whole[2]) <= 0.3


def test_torch_filters_what_it_makes_ahead_and_nothing_else(rng):
    case = peaked(rng)
    x, w, labels = torch.tensor(case.x, requires_grad=True), torch.tensor(case.w, requires_grad=True), torch.tensor(case.labels)
    for options in (dict(softcap=5.0), dict(temperature=2.0)):
        stats = FilterStats()
        out = linear_cross_entropy(x, w, labels, filter_tol=0.3, filter_stats=stats, **options)
        want = linear_cross_entropy(x, w, labels, **options)
        got, exact = (torch.autograd.grad(o, (x, w)) for o in (out, want))
        assert torch.equal(out, want) and stats.skipped_dx > 0 < stats.skipped_dw
        for a, b, bound in zip(got, exact, (stats.bound_dx, stats.bound_dw), strict=True):
            assert 0 < apart(a.numpy(), b.numpy()) <= bound + FLOAT64 and bound <= 0.3
    for options in (dict(reduction="none"), dict(return_lse=True)):
        stats = FilterStats()
        options["budget"] = 14 * CLASSES * 8  # in chunks, as with a filter
        out = linear_cross_entropy(x, w, labels, filter_tol=0.3, filter_stats=stats, **options)
        want = linear_cross_entropy(x, w, labels, **options)
        for a, b in zip(*(torch.autograd.grad(getattr(o, "loss", o).sum(), (x, w)) for o in (out, want)), strict=True):
            assert torch.equal(a, b)
        assert stats == FilterStats(), options
    loss = linear_cross_entropy(x, w, labels, filter_tol=0.3)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    again = torch.autograd.grad(loss, x)[0]
    whole = torch.autograd.grad(linear_cross_entropy(x, w, labels), x)[0]
    assert not torch.equal(first, whole) and torch.allclose(again, whole, rtol=FLOAT64)
    stats = FilterStats()  # with a frozen head, the statistics are of dX only
    linear_cross_entropy(x, w.detach(), labels, filter_tol=0.01, filter_stats=stats)
    assert stats.skipped_dx > 0 == stats.skipped_dw


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(dtype, rng):
    case = peaked(rng)
    dtype = DTYPES[dtype]
    for x, labels in ((case.x[:0], case.labels[:0]), (case.x[0], case.labels[0])):
        stats = FilterStats()
        _, dx, dw = softxent.linear_cross_entropy_and_grad(
            x.astype(dtype), case.w.astype(dtype), labels, filter_tol=0.1, filter_stats=stats
        )
        assert dx.shape == x.shape and np.isfinite(dw).all() and not stats.recomputed
    for bad in (np.nan, np.inf):  # no error can be bounded then, so nothing is left out
        x = case.x.copy()
        x[40] = bad
        stats, budget = FilterStats(), 14 * CLASSES * dtype.itemsize
        with np.errstate(invalid="ignore"):
            want = gradients("numpy", case._replace(x=x), dtype, budget)
            got = gradients("numpy", case._replace(x=x), dtype, budget, 0.1, stats)
        for a, b in zip(want, got, strict=True):
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    small = case._replace(options=dict(upstream=1e-170 if dtype == np.float64 else 1e-42))  # the squares underflow to 0
    stats = FilterStats()
    gradients("numpy", small, dtype, 64 << 20, 0.5, stats)
    assert stats.skipped_dx == stats.skipped_dw == 0
    large = case._replace(options=dict(upstream=1e180 if dtype == np.float64 else 1e25))  # the squares overflow
    with np.errstate(over="ignore"):
        gradients("numpy", large, dtype, 64 << 20, 0.5, stats)
    assert stats.skipped_dx == stats.skipped_dw == 0


@pytest.mark.parametrize(
    "tol, error, message",
    [
        (1, ValueError, "filter_tol must be below 1; got 1"),
        (-0.1, ValueError, "filter_tol must be a finite number of at least 0; got -0.1"),
        (float("nan"), ValueError, "filter_tol must be a finite number of at least 0; got nan"),
        ("1e-3", TypeError, "filter_tol must be a finite number of at least 0; got '1e-3'"),
        ([0.1, 0.2], TypeError, r"filter_tol must be a finite number of at least 0; got \[0.1, 0.2\]"),
    ],
)
def test_errors(tol, error, message, rng):
    case = peaked(rng, classes=300)
    for front, fn in zip(FRONTS, ("linear_cross_entropy_and_grad", "linear_cross_entropy"), strict=True):
        with pytest.raises(error, match=f"^{fn}: {message}$"):
            gradients(front, case, np.dtype("f4"), 1 << 20, tol)
        with pytest.raises(TypeError, match=f"^{fn}: filter_stats must be a FilterStats; got dict$"):
            gradients(front, case, np.dtype("f4"), 1 << 20, 0.1, {})


def test_memory_is_within_the_budget_with_a_filter():
    import tracemalloc

    classes, width, budget, rows = 20_000, 32, 16 << 20, 8192
    case = peaked(np.random.default_rng(0), rows, classes, width)
    x, w = case.x.astype("f4"), case.w.astype("f4")
    softxent.linear_cross_entropy_and_grad(x[:2], w, case.labels[:2])
    tracemalloc.start()
    try:
        _, dx, dw = softxent.linear_cross_entropy_and_grad(x, w, case.labels, budget=budget, filter_tol=1e-2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < budget + (1 << 20) + dx.nbytes + dw.nbytes + 200 * (rows + classes), f"{peak / 2**20:.1f} MiB"


def test_the_curve_of_the_benchmark(tmp_path, rng):
    """It runs on a small head, gives consistent numbers for each width, and writes its files."""
    from softxent.bench import filtering as curve

    case = peaked(rng, rows=40, classes=3000)
    head = curve.Head(case.x, case.w, case.labels)
    records = [curve.measure(curve.turned(curve.ordered(head, order), width), order, 1) for width in (WIDTH, 20) for order in curve.ORDERS]
    for r in records:
        assert [p["tol"] for p in r["points"]] == list(curve.TOLS)
        for p in r["points"]:
            assert p["error"][0] <= p["bound_dx"] + FLOAT64 and p["bound_dx"] <= p["tol"]
            assert p["error"][1] <= p["bound_dw"] + FLOAT64 and p["bound_dw"] <= p["tol"]
    first, shuffled, wider, _ = records
    assert first["points"][3]["skipped_dx"] > shuffled["points"][3]["skipped_dx"]
    for p, q in zip(first["points"], wider["points"], strict=True):
        # the head is float32, and its classes have another order
        assert p["skipped_dw"] == q["skipped_dw"] and p["error"] == pytest.approx(q["error"], rel=1e-3, abs=FLOAT64)
    results = dict(machine="here", steps=0, records=records)
    assert curve.text(results).count("\n| ") == 2 + len(records) * len(curve.TOLS)
    curve.plot(results, tmp_path / "filter.png")
    assert (tmp_path / "filter.png").stat().st_size > 10_000
