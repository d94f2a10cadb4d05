"""Linear heads whose rows do not depend on their batch (`batch_invariant=True`): the same bits beside any other rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import softxent
from softxent import linear
from softxent import torch as st

ROWS, FEATURES, CLASSES = 300, 333, 1100  # more than two products of rows, and sums that are cut
CHOSEN = {
    "one": [7],
    "the last": [ROWS - 1],
    "a few": list(range(5)),
    "others before": list(range(100, 250)),
    "reversed": list(range(ROWS))[::-3],
}
HOW = [(1 << 26, 1), (1 << 26, 2), (1 << 19, 2), (1 << 26, 5)]  # the budget and the number of threads
OPTIONS = {
    "plain": {}, "smoothed": {"label_smoothing": 0.1, "z_loss": 0.01}, "softcap": {"softcap": 5.0, "temperature": 0.7},
}  # fmt: skip
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


def problem(dtype, rng):
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((ROWS, FEATURES), (CLASSES, FEATURES)))
    return x, w, rng.standard_normal(CLASSES).astype(dtype), rng.integers(0, CLASSES, ROWS)


@pytest.fixture
def threads():
    """Set the numbers of threads of softxent and torch, and set them back. That of NumPy's products stays: their bits may depend on it."""
    before, of_torch = softxent.get_num_threads(), torch.get_num_threads()

    def of(n):
        softxent.set_num_threads(n)
        torch.set_num_threads(n)

    yield of
    softxent.set_num_threads(before)
    torch.set_num_threads(of_torch)


def same_bits(compute, threads):
    """Compare what the chosen rows give with what they give beside all others. `compute` takes the rows and the budget."""
    threads(2)
    whole = compute(list(range(ROWS)), 1 << 26)
    for name, rows in CHOSEN.items():
        for budget, n in HOW:
            threads(n)
            for got, want in zip(compute(rows, budget), whole, strict=True):
                assert np.array_equal(got, want[rows]), (name, budget, n)


def refused(compute):
    """Whether the library gives equal rows different bits: OpenBLAS with AVX-512 in either dtype, MKL on AMD in float64."""
    try:
        compute()
    except RuntimeError as error:
        assert "gives equal rows of one product different bits" in str(error)
        return True
    return False


@each_option
@each_dtype
def test_a_row_of_numpy_has_the_same_bits_in_every_batch(dtype, options, threads, rng):
    x, w, b, t = problem(dtype, rng)
    if refused(lambda: softxent.linear_cross_entropy_and_grad(x[:1], w, t[:1], batch_invariant=True)):
        return

    def compute(rows, budget):
        how = {"bias": b, "budget": budget, "batch_invariant": True, **options}
        alone = softxent.linear_cross_entropy(x[rows], w, t[rows], reduction="none", **how)
        loss, dx, *_ = softxent.linear_cross_entropy_and_grad(x[rows], w, t[rows], reduction="none", **how)
        assert np.array_equal(alone, loss)
        return loss, dx

    same_bits(compute, threads)


@each_option
@each_dtype
def test_a_row_of_pytorch_has_the_same_bits_in_every_batch(dtype, options, threads, rng):
    x, w, b, t = map(torch.as_tensor, problem(dtype, rng))
    if refused(lambda: st.linear_cross_entropy(x[:1].clone().requires_grad_(), w, t[:1], batch_invariant=True)):
        assert dtype == np.float64, "torch had equal rows in float32 wherever it was tried: say so in docs/training.md"
        return

    def compute(rows, budget):
        z = x[rows].clone().requires_grad_()
        how = {"linear_bias": b, "budget": budget, "batch_invariant": True, **options}
        outputs = {f"return_{name}": True for name in ("lse", "entropy", "logprobs")}
        found = st.linear_cross_entropy(z, w, t[rows], reduction="none", **how, **outputs)[:4]
        of_rows = torch.autograd.grad(sum(y.sum() for y in found), z)[0]
        of_sum = torch.autograd.grad(st.linear_cross_entropy(z, w, t[rows], reduction="sum", **how), z)[0]
        return [y.detach().numpy() for y in (*found, of_rows, of_sum)]

    same_bits(compute, threads)


def test_a_compiled_head_and_one_of_a_teacher_have_the_same_bits_in_every_batch(threads, rng):
    x, w, b, t = map(torch.as_tensor, problem(np.float32, rng))
    u = torch.as_tensor(rng.standard_normal((ROWS, 40)).astype(np.float32))
    of_teacher = torch.as_tensor(rng.standard_normal((CLASSES, 40)).astype(np.float32))

    def loss(z, target):
        return st.linear_cross_entropy(z, w, target, linear_bias=b, reduction="none", batch_invariant=True, budget=1 << 19)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)

    def compute(rows, _):
        z = x[rows].clone().requires_grad_()
        found = []
        for each in (compiled(z, t[rows]), loss(z, (u[rows], of_teacher))):
            found += [each.detach().numpy(), torch.autograd.grad(each.sum(), z)[0].numpy()]
        return found

    same_bits(compute, threads)


@pytest.mark.parametrize("classes", [CLASSES, FEATURES])  # with as many as features, both products of rows have one shape
@pytest.mark.parametrize("row", [0, 77, 127])
def test_products_with_unequal_rows_are_refused(row, classes, rng, monkeypatch):
    class Unequal(linear.NumPyProducts):
        def product(self, a, b, out, add):
            super().product(a, b, out, add)
            if len(out) == linear.ROWS_OF_A_PRODUCT:
                out[row] = np.nextafter(out[row], 0)

    x, w, _, t = problem(np.float32, rng)
    w, t = w[:classes], t % classes
    monkeypatch.setattr(linear, "NumPyProducts", Unequal)
    with pytest.raises(RuntimeError, match="batch_invariant must be False here: the library of the matrix products gives equal rows"):
        softxent.linear_cross_entropy_and_grad(x, w, t, batch_invariant=True)


def test_the_loss_and_all_gradients_are_those_of_the_head(rng):
    x, w, b, t = problem(np.float32, rng)
    by_numpy = not refused(lambda: softxent.linear_cross_entropy_and_grad(x, w, t, batch_invariant=True))
    for options in OPTIONS.values():
        want = softxent.linear_cross_entropy_and_grad(x, w, t, bias=b, **options)
        got = softxent.linear_cross_entropy_and_grad(x, w, t, bias=b, batch_invariant=by_numpy, **options)
        for a, c in zip(got, want, strict=True):
            np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-4)  # sums in another order
        leaves = [torch.as_tensor(y).requires_grad_() for y in (x, w, b)]
        loss = st.linear_cross_entropy(leaves[0], leaves[1], torch.as_tensor(t), linear_bias=leaves[2], batch_invariant=True, **options)
        for a, c in zip((loss.detach(), *torch.autograd.grad(loss, leaves)), want, strict=True):
            np.testing.assert_allclose(a.numpy(), c, rtol=1e-4, atol=1e-4)  # sums in another order


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"batch_invariant": 1}, TypeError, "batch_invariant must be True or False; got 1"),
        ({"batch_invariant": True, "filter_tol": 1e-3}, ValueError, "filter_tol must be None where batch_invariant is True; got 0.001"),
    ],
)
def test_what_is_refused(options, error, says, rng):
    x, w, _, t = problem(np.float32, rng)
    with pytest.raises(error, match=says):
        softxent.linear_cross_entropy_and_grad(x, w, t, **options)
    with pytest.raises(error, match=says):
        st.linear_cross_entropy(torch.as_tensor(x), torch.as_tensor(w), torch.as_tensor(t), **options)


def test_what_pytorch_refuses(rng):
    x, w, _, t = map(torch.as_tensor, problem(np.float32, rng))
    with pytest.raises(TypeError, match=r"input must be float32 or float64 where batch_invariant is True; got bfloat16"):
        st.linear_cross_entropy(x.bfloat16(), w.bfloat16(), t, batch_invariant=True)
    with pytest.raises(ValueError, match="batch_invariant must be False where linear_weight has more than two axes; got True"):
        st.linear_cross_entropy(x, w[:, None], t[:, None], batch_invariant=True)
