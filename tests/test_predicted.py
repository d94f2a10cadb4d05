"""The most probable class of each row is the first one with the largest logit, on every backend, in every layout and mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import FLOAT32

import softxent.torch as st
from softxent import kernels, shared
from softxent.kernels import IGNORED

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def problem(shape, dtype=torch.float32, axis=1):
    """Logits with ties and masked classes, labels of which one is ignored, and the predictions."""
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(shape, generator=generator) * 3).round().to(dtype)  # so that classes tie
    z.movedim(axis, -1).reshape(-1, shape[axis])[0, 0] = -torch.inf
    lead = [n for i, n in enumerate(shape) if i != axis]
    t = torch.randint(0, shape[axis], lead, generator=generator)
    t.view(-1)[-1] = -100
    want = torch.from_numpy(np.asarray(z.float().numpy().argmax(axis)))
    want.view(-1)[-1] = -1
    return z, t, want


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("classes", [1, 2, 10, 64, 65, 300, 5000, 70000])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_the_kernel(dtype, classes, threads):
    rng = np.random.default_rng(classes)
    z = np.round(3 * rng.standard_normal((9, classes))).astype(dtype)
    z[3] = -np.inf
    label = rng.integers(0, classes, 9)
    label[5] = IGNORED
    want = z.argmax(1)
    want[5] = -1
    for transform in ((1.0, np.inf), (2.0, 3.0), (1e-30, np.inf)):  # the last is computed in wide numbers
        for op, logits in (("FORWARD", z), ("FUSED", z.copy()), ("FORWARD", np.asfortranarray(z)), ("FUSED", np.asfortranarray(z))):
            result, short = np.full((6, 9), 7.0), np.full((5, 9), 7.0)
            for each in (short, result):
                out = None if op == "FORWARD" else np.empty_like(logits)
                numbers = (1.0, 0.0, 0.0, 1.0)
                kernels.cpu.call(shared.OPS[op], logits, -1, label, numbers, None, transform, out, each, None, threads)
            np.testing.assert_array_equal(result[5], want)
            np.testing.assert_array_equal(result[:5], short)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (5, 3), (5, 300), (4, 9, 3, 2)], ids=str)
def test_every_layout_and_path(shape, dtype):
    axis = min(1, len(shape) - 1)
    z, t, want = problem(shape, dtype, axis)
    if len(shape) == 1:
        t, want = torch.tensor(2), torch.from_numpy(np.array(z.float().numpy().argmax()))
    for x in (z, z.clone().requires_grad_(), z.transpose(0, -1).contiguous().transpose(0, -1)):
        for options in (
            {},
            {"label_smoothing": 0.1, "return_entropy": True, "reduction": "none"},
            {"softcap": 2.0, "return_correct": True},
        ):
            found = st.cross_entropy(x, t, return_predicted=True, **options)
            assert found.predicted.dtype == torch.int64 and torch.equal(found.predicted, want)
            assert torch.equal(found.loss, st.cross_entropy(x, t, **{k: v for k, v in options.items() if "return" not in k}))
    with st.use_backend("formula"):
        assert torch.equal(st.cross_entropy(z, t, return_predicted=True).predicted, want)


def test_probabilities_and_weights():
    z, t, want = problem((6, 4))
    want[-1] = z[-1].argmax()
    assert torch.equal(st.cross_entropy(z, z.softmax(1), return_predicted=True).predicted, want)
    weight = torch.rand(4).requires_grad_()
    assert torch.equal(st.cross_entropy(z, t, weight, return_predicted=True).predicted[:-1], want[:-1])


def test_every_mode():
    z, t, want = problem((6, 4))
    predicted = lambda z: st.cross_entropy(z, t, return_predicted=True).predicted  # noqa: E731
    assert torch.equal(torch.compile(predicted, backend="aot_eager")(z), want)
    assert torch.equal(torch.func.vmap(predicted)(torch.stack([z, z])), torch.stack([want, want]))
    loss = lambda z: (lambda r: (r.loss, r.predicted))(st.cross_entropy(z, t, return_predicted=True, return_lse=True))  # noqa: E731
    gradient, found = torch.func.grad(loss, has_aux=True)(z)
    assert torch.equal(found, want) and gradient.isfinite().all()
    assert torch.equal(st.CrossEntropyLoss(return_predicted=True)(z, t).predicted, want)


@pytest.mark.parametrize("budget", [100, 1 << 20])
def test_a_linear_head(budget):
    _, t, _ = problem((12, 5), torch.float64)
    x, w = torch.randn(12, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    want = torch.cat([(x @ w.T)[:-1].argmax(1), torch.tensor([-1])])
    for leaf in (x, x.clone().requires_grad_()):
        found = st.linear_cross_entropy(leaf, w, t, budget=budget, return_predicted=True)
        assert found.predicted.dtype == torch.int64 and torch.equal(found.predicted, want)
    shifted = st.linear_cross_entropy(x.reshape(2, 6, -1), w, t.reshape(2, 6), budget=budget, shift=True, return_predicted=True)
    labels = t.reshape(2, 6)[:, 1:]
    assert torch.equal(shifted.predicted, torch.where(labels == -100, -1, (x @ w.T).argmax(1).reshape(2, 6)[:, :-1]))
    compiled = torch.compile(lambda x: st.linear_cross_entropy(x, w, t, return_predicted=True).predicted, backend="aot_eager")
    assert torch.equal(compiled(x), want)


@pytest.mark.parametrize("backend", ["default", "formula"])
@pytest.mark.parametrize("shape", [(6, 4), (5, 300), (3, 4, 2)], ids=str)
def test_jax(shape, backend):
    jax = pytest.importorskip("jax")
    from softxent import jax as sj

    z, t, want = (x.numpy() for x in problem(shape))
    options = {"axis": 1, "return_predicted": True}
    with sj.use_backend(backend):
        found = sj.cross_entropy(z, t, **options)
        jitted = jax.jit(lambda z: sj.cross_entropy(z, t, **options, return_entropy=True, label_smoothing=0.1))(z)
        loss = lambda z: (lambda r: (r.loss, r.predicted))(sj.cross_entropy(z, t, **options))  # noqa: E731
        gradient, beside = jax.grad(loss, has_aux=True)(z)
        many = jax.vmap(lambda z: sj.cross_entropy(z, t, **options).predicted)(np.stack([z, z]))
    for predicted in (found.predicted, jitted.predicted, beside, many[1]):
        assert predicted.dtype == np.int32
        np.testing.assert_array_equal(predicted, want)
    np.testing.assert_allclose(found.loss, sj.cross_entropy(z, t, axis=1), rtol=FLOAT32)
    assert np.isfinite(gradient).all()
    if len(shape) == 2:
        x, w = np.random.default_rng(0).standard_normal((2, shape[0], 8)).astype("f4")[0], np.eye(8, dtype="f4")[:5]
        predicted = sj.linear_cross_entropy(x, w, np.minimum(t, 4), budget=200, return_predicted=True).predicted
        np.testing.assert_array_equal(predicted, np.where(t == -100, -1, (x @ w.T).argmax(1)))
