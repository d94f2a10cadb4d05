"""Linear cross-entropy gives the loss and gradients of all logits at once, in chunks and with bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from cases import OPTIONS, option_cases
from definition_in_torch import definition
from tolerances import DIFFERENCES, FEW64, FLOAT32, FLOAT64

import softxent
from softxent import chunks, linear
from softxent.proof import bounds

F32, F64 = np.dtype("f4"), np.dtype("f8")


def head(rng, rows, classes, width, dtype, bias=True):
    x, w = rng.standard_normal((rows, width)).astype(dtype), (rng.standard_normal((classes, width)) / np.sqrt(width)).astype(dtype)
    return x, w, rng.standard_normal(classes).astype(dtype) if bias else None


def close(got, want, dtype, terms, what):
    """Compare sums of `terms` products in any order: sqrt(terms) roundings of the largest entry are allowed, and that of the gradient."""
    u = bounds.unit(dtype)
    # 1e-30: no division by 0
    np.testing.assert_allclose(got, want, atol=(40 + 4 * terms**0.5) * u * max(np.abs(want).max(), 1e-30), rtol=200 * u, err_msg=what)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", (F32, F64), ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_the_loss_of_the_whole_logits(backend, option, dtype, reduction, rng):
    """The reference is autograd through x W^T + b in float64. The budgets give different numbers of chunks."""
    rows, classes, width = 23, 11, 5
    x, w, b = head(rng, rows, classes, width, dtype)
    labels, options = option_cases(rng, rows, classes)[option]
    up = rng.uniform(-2, 2, rows) if reduction == "none" else -0.75
    tx, tw, tb = (torch.tensor(a.astype(F64), requires_grad=True) for a in (x, w, b))
    want = definition(tx @ tw.T + tb, labels, reduction=reduction, **options)
    (want.loss * torch.as_tensor(up)).sum().backward()
    row = classes * dtype.itemsize
    for budget in (1, 3 * row, 7 * row, chunks.BUDGET):
        loss, dx, dw, db = softxent.linear_cross_entropy_and_grad(
            x, w, labels, bias=b, reduction=reduction, upstream=up, budget=budget, **options
        )
        close(loss, want.loss.detach().numpy(), dtype, rows, "loss")
        for got, true, terms in ((dx, tx, classes), (dw, tw, rows), (db, tb, rows)):
            close(got, true.grad.numpy(), dtype, terms, f"budget {budget}")
            assert got.dtype == dtype and got.shape == true.shape


def test_the_gradient_of_the_bias_is_summed_in_float64(backend, rng):
    """2^12 equal rows have 2^12 times the gradient of one, to the last bit, in one chunk or in 2^12."""
    x, w, b = np.zeros((1 << 12, 1), F32), np.zeros((11, 1), F32), rng.standard_normal(11).astype(F32)
    one = softxent.linear_cross_entropy_and_grad(x[0], w, 3, bias=b)[3]
    for budget in (1, chunks.BUDGET):
        db = softxent.linear_cross_entropy_and_grad(x, w, np.full(len(x), 3), bias=b, reduction="sum", budget=budget)[3]
        np.testing.assert_array_equal(db, len(x) * one)


def test_a_label_of_class_weight_0_leaves_the_z_loss(backend, rng):
    x, w, b = head(rng, 9, 5, 3, F64)
    t, options = np.arange(9) % 5, dict(class_weight=np.array([1.0, 0, 2, 0, 1]), z_loss=0.1, reduction="sum")
    loss, dx, dw, db = softxent.linear_cross_entropy_and_grad(x, w, t, bias=b, **options)
    want, dz = softxent.cross_entropy_and_grad(x @ w.T + b, t, **options)
    for got, true, what in ((loss, want, "loss"), (dx, dz @ w, "dX"), (dw, dz.T @ x, "dW"), (db, dz.sum(axis=0), "db")):
        close(got, true, F64, 9, what)


@pytest.mark.parametrize("dtype", (F32, F64), ids=str)
def test_it_is_the_layer_after_a_matrix_product(backend, dtype, rng):
    """With one chunk the loss has the bits of cross_entropy_and_grad of the same logits."""
    x, w, _ = head(rng, 9, 200, 8, dtype, bias=False)
    t = rng.integers(0, 200, 9)
    z = x @ w.T
    loss, dz = softxent.cross_entropy_and_grad(z, t, upstream=2.5)
    got, dx, dw = softxent.linear_cross_entropy_and_grad(x, w, t, upstream=2.5)
    assert got == loss
    close(dx, dz @ w, dtype, 200, "dX")
    close(dw, dz.T @ x, dtype, 9, "dW")


def test_gradients_are_derivatives(backend, rng):
    x, w, b = head(rng, 6, 7, 4, F64)
    t, h = rng.integers(0, 7, 6), 2.0**-8
    options = dict(label_smoothing=0.1, z_loss=0.02, softcap=3.0, temperature=0.7)

    def loss(x, w, b):
        return softxent.linear_cross_entropy_and_grad(x, w, t, bias=b, **options)[0]

    _, dx, dw, db = softxent.linear_cross_entropy_and_grad(x, w, t, bias=b, upstream=-2.0, **options)
    for i, grad in enumerate((dx, dw, db)):
        v = rng.standard_normal(grad.shape)
        f = lambda s, i=i, v=v: loss(*(a + s * v if i == j else a for j, a in enumerate((x, w, b))))  # noqa: E731
        slope = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
        assert (grad * v).sum() == pytest.approx(-2 * slope, rel=DIFFERENCES)


def test_shapes_and_edges(backend, rng):
    x, w, _ = head(rng, 12, 5, 3, F32, bias=False)
    t = rng.integers(0, 5, 12)
    loss, dx, dw = softxent.linear_cross_entropy_and_grad(x.reshape(3, 4, 3), w, t.reshape(3, 4), reduction="none")
    flat = softxent.linear_cross_entropy_and_grad(x, w, t, reduction="none")
    assert loss.shape == (3, 4) and dx.shape == (3, 4, 3)
    np.testing.assert_array_equal(loss.ravel(), flat[0])
    np.testing.assert_array_equal(dx.reshape(12, 3), flat[1])
    np.testing.assert_array_equal(dw, flat[2])
    one = softxent.linear_cross_entropy_and_grad(x[0], w, t[0])
    assert np.ndim(one[0]) == 0 and one[1].shape == (3,)
    loss, dx, dw = softxent.linear_cross_entropy_and_grad(x[:0], w, t[:0])
    assert np.isnan(loss) and dx.shape == (0, 3) and dw.shape == w.shape and (dw == 0).all()
    for options in ({}, dict(softcap=2.0), dict(temperature=2.0)):  # an ignored row contributes nothing, whatever its values
        t2, x2 = t.copy(), x.copy()
        t2[7] = -100
        want = softxent.linear_cross_entropy_and_grad(x2, w, t2, **options)
        x2[7] = np.nan
        got = softxent.linear_cross_entropy_and_grad(x2, w, t2, **options)
        assert got[0] == pytest.approx(want[0], rel=FLOAT32) and (got[1][7] == 0).all(), options
        np.testing.assert_allclose(got[1], want[1], rtol=FLOAT32)
    loss, dx, dw = softxent.linear_cross_entropy_and_grad(x, w, np.full(12, -100), empty_value=0.0)
    assert loss == 0 and (dx == 0).all() and (dw == 0).all()
    for strided in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1][::-1]):
        got = softxent.linear_cross_entropy_and_grad(strided, np.asfortranarray(w), t)
        close(got[1], softxent.linear_cross_entropy_and_grad(x, w, t)[1], F32, 5, "layout")


def test_a_wrong_label_is_found_before_any_work(backend, rng):
    x, w, _ = head(rng, 12, 5, 3, F32, bias=False)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\) or be ignore_index=-100; got 5 at row 11$"):
        softxent.linear_cross_entropy_and_grad(x, w, np.array([0] * 11 + [5]), budget=1)


def test_chunks_share_the_rows_evenly():
    for rows in (1, 2, 7, 100, 1023, 4096):
        for row_bytes in (4, 1000, 80_000):
            for budget in (1, 5000, 1 << 20):
                step = chunks.chunk_rows(rows, row_bytes, budget)
                assert 1 <= step <= rows and (step * row_bytes <= budget or step == 1)
                count = -(-rows // step)
                assert count == -(-rows // max(1, budget // row_bytes)), "no more chunks than the budget asks for"
                even = step * count - rows < count  # the last chunk lacks fewer rows than there are chunks
                assert even or step % chunks.TILE == 0, "the rows are spread evenly, or in whole tiles"


def test_a_chunk_is_a_multiple_of_a_tile_if_that_makes_no_more_chunks():
    assert chunks.chunk_rows(4 * 293, 1, 330) == 5 * chunks.TILE == 320
    assert chunks.chunk_rows(4 * 293, 1, 319) == 293  # five tiles do not fit
    assert chunks.chunk_rows(1000, 1, 800) == 8 * chunks.TILE


def test_a_product_that_is_added_takes_the_memory_that_is_given():
    rng = np.random.default_rng(0)
    a, b, out = rng.standard_normal((4000, 10)), rng.standard_normal((10, 100)), np.ones((4000, 100))
    tracemalloc.start()
    try:
        linear.NumPyProducts(100_000).product(a, b, out, True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 50_000 < peak < 110_000
    np.testing.assert_allclose(out, 1 + a @ b, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("missing", ["dx", "dw", "db", "w", "x", "bias"])
def test_a_sum_that_is_not_wanted_is_left_out(missing, rng):
    g, x, w = rng.standard_normal((3, 4)), rng.standard_normal((3, 2)), rng.standard_normal((4, 2))
    sums = chunks.Sums(*(np.zeros(shape) for shape in ((3, 2), (4, 2), 4)), linear.NumPyProducts(1000))
    sums = sums._replace(**{missing: None}) if missing in sums._fields else sums
    sums.add(slice(0, 3), g, None if missing == "x" else x, None if missing == "w" else w, bias=missing != "bias")
    left_out = {"w": "dx", "x": "dw", "bias": "db"}.get(missing)
    for name, want in {"dx": g @ w, "dw": g.T @ x, "db": g.sum(0)}.items():
        if name != missing:
            np.testing.assert_allclose(getattr(sums, name), 0 * want if name == left_out else want, rtol=FLOAT64)


@pytest.mark.parametrize("copies", (1, 3))
def test_logits_take_seven_eighths_of_the_budget(copies):
    """The other eighth is for products that are added."""
    budget = 80_000
    head = linear._head("f", np.zeros((999, 4)), np.zeros((100, 4)), np.zeros(999, int), None, budget, 1.0, None)
    sizes = [copies * z.nbytes for _, z in head.chunks(copies)]
    assert 0.8 * budget < max(sizes) <= budget - budget // 8
    assert head.budget == budget and head.products.fold == budget // 8
    assert linear.budget_beside_filter(budget) == budget - budget // 16


def test_memory_is_flat_in_the_rows(backend):
    """All logits of 16 384 rows would be 1.3 GB. The peak is the budget, the gradients, and the memory of the backend."""
    classes, width, budget = 20_000, 32, 16 << 20
    rng = np.random.default_rng(0)
    w = rng.standard_normal((classes, width), dtype=np.float32)
    works_in = {"formula": 40 << 20, "cpu": 1 << 20}[backend]  # formula: a dozen float64 temporaries of 2 MiB
    for rows in (512, 1024) if backend == "formula" else (1024, 4096, 16_384):
        x, t = rng.standard_normal((rows, width), dtype=np.float32), rng.integers(0, classes, rows)
        softxent.linear_cross_entropy_and_grad(x[:2], w, t[:2])
        tracemalloc.start()
        try:
            _, dx, dw = softxent.linear_cross_entropy_and_grad(x, w, t, budget=budget)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < budget + (1 << 20) + dx.nbytes + dw.nbytes + 200 * rows + works_in, f"{rows} rows: {peak / 2**20:.1f} MiB"


def test_memory_of_a_second_derivative_is_within_the_budget():
    """Two arrays of the size of the logits are held at once."""
    x, w, t, budget = np.ones((3000, 8)), np.ones((1000, 8)), np.zeros(3000, int), 4 << 20
    tracemalloc.start()
    try:
        softxent.linear_cross_entropy_hvp(x, w, t, x, w, budget=budget)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.7 * budget < peak < budget + (1 << 20)


# ---- the loss alone, and second derivatives ----


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_loss_alone_is_the_loss_with_gradients(backend, reduction, option, rng):
    x, w, b = head(rng, 23, 11, 5, F64)
    labels, options = option_cases(rng, 23, 11)[option]
    for budget in (1, 7 * 11 * 8, chunks.BUDGET):
        alone = softxent.linear_cross_entropy(x, w, labels, bias=b, reduction=reduction, budget=budget, **options)
        np.testing.assert_array_equal(
            alone, softxent.linear_cross_entropy_and_grad(x, w, labels, bias=b, reduction=reduction, budget=budget, **options)[0]
        )


def by_autograd(x, w, b, labels, options, v, gauss_newton):
    """Compute the product with the Hessian in (x, W, b), or with J^T H J, by torch's autograd from the definitions."""
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    v = [torch.tensor(a) for a in v]
    seen_of = lambda x, w, b: definition(x @ w.T + b, labels, **options).seen  # noqa: E731
    if not gauss_newton:
        g = torch.autograd.grad(definition(inputs[0] @ inputs[1].T + inputs[2], labels, **options).loss, inputs, create_graph=True)
        return torch.autograd.grad(sum((a * c).sum() for a, c in zip(g, v, strict=True)), inputs)
    seen, tangent = torch.func.jvp(seen_of, tuple(a.detach() for a in inputs), tuple(v))
    z, plain = seen.requires_grad_(), {name: o for name, o in options.items() if name not in ("softcap", "temperature")}
    g = torch.autograd.grad(definition(z, labels, **plain).loss, z, create_graph=True)[0]
    product = torch.autograd.grad((g * tangent).sum(), z)[0]
    return torch.func.vjp(seen_of, *(a.detach() for a in inputs))[1](product)


@pytest.mark.parametrize("gauss_newton", [False, True], ids=["hessian", "gauss_newton"])
@pytest.mark.parametrize("option", OPTIONS)
def test_second_derivatives_are_those_of_the_whole_logits(backend, option, gauss_newton, rng):
    x, w, b = head(rng, 13, 7, 4, F64)
    v = [rng.standard_normal(a.shape) for a in (x, w, b)]
    labels, options = option_cases(rng, 13, 7)[option]
    product = softxent.linear_cross_entropy_ggn if gauss_newton else softxent.linear_cross_entropy_hvp
    want = by_autograd(x, w, b, labels, options, v, gauss_newton)
    for budget in (1, 5 * 7 * 8, chunks.BUDGET):
        got = product(x, w, labels, v[0], v[1], bias=b, vb=v[2], budget=budget, **options)
        for a, c in zip(got, want, strict=True):
            np.testing.assert_allclose(a, c.numpy(), rtol=FEW64, atol=FEW64)


def test_gauss_newton_is_positive_and_both_are_symmetric(backend, rng):
    x, w, _ = head(rng, 9, 7, 4, F64, bias=False)
    t, options = rng.integers(0, 7, 9), dict(softcap=2.0, z_loss=0.1, label_smoothing=0.1)
    vectors = [[rng.standard_normal(a.shape) for a in (x, w)] for _ in range(6)]
    for product in (softxent.linear_cross_entropy_ggn, softxent.linear_cross_entropy_hvp):
        images = [product(x, w, t, *v, **options) for v in vectors]
        matrix = np.array([[sum((a * c).sum() for a, c in zip(v, image, strict=True)) for image in images] for v in vectors])
        np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=FLOAT64)
        if product is softxent.linear_cross_entropy_ggn:
            assert np.linalg.eigvalsh(matrix).min() > -FLOAT64


def test_a_row_of_weight_0_has_gradient_0_if_its_logits_are_nan(backend):
    """One logit overflows and is masked by the bias. With probabilities as labels, such a row is not left out."""
    x, w, b, soft = np.array([[1.0], [1e200]]), np.array([[1.0], [1e200]]), np.array([0.0, -np.inf]), np.full((2, 2), 0.5)
    with np.errstate(over="ignore", invalid="ignore"):
        _, dx, *rest = softxent.linear_cross_entropy_and_grad(x, w, soft, bias=b, sample_weight=[1.0, 0.0], softcap=3.0)
    assert (dx[1] == 0).all() and all(np.isfinite(a).all() for a in (dx, *rest))


def test_ignored_rows_are_left_out_whatever_stands_in_them(backend, rng):
    x, w, b = head(rng, 12, 5, 3, F64)
    t = rng.integers(0, 5, 12)
    t[::3] = -100
    v = [rng.standard_normal(a.shape) for a in (x, w)]
    calls = [
        lambda x, v: softxent.linear_cross_entropy_and_grad(x, w, t, bias=b),
        lambda x, v: softxent.linear_cross_entropy_hvp(x, w, t, v, np.ones_like(w), bias=b),
        lambda x, v: [softxent.linear_cross_entropy(x, w, t, bias=b, reduction="none")],
    ]
    spoilt, direction = x.copy(), v[0].copy()
    spoilt[::3] = direction[::3] = np.nan
    for call in calls:
        for a, c in zip(call(spoilt, direction), call(x, v[0]), strict=True):
            np.testing.assert_array_equal(a, c)
    assert (calls[0](spoilt, direction)[1][::3] == 0).all()
