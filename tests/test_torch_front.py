"""softxent.torch.cross_entropy compared with torch's: values, derivatives of all kinds and orders, torch.compile and torch.export."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from cases import python
from definition_in_torch import definition
from tolerances import FEW64, FLOAT32
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from softxent import kernels
from softxent import torch as st
from softxent.torch import compute

REDUCTIONS = ["none", "sum", "mean"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def problem(shape, dtype=torch.float64):
    z = torch.randn(shape, dtype=dtype) * 3
    lead = shape[:1] + shape[2:] if len(shape) > 1 else ()
    return (
        z.requires_grad_(),
        torch.randint(0, 5, lead),
        torch.softmax(torch.randn(shape, dtype=torch.float64), min(1, len(shape) - 1)).to(dtype),
    )


def close(a, b, tol=FEW64):
    assert a.shape == b.shape and a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_the_signature_is_torchs():
    mine, theirs = (list(inspect.signature(f).parameters.values()) for f in (st.cross_entropy, F.cross_entropy))
    assert [(p.name, p.default) for p in mine[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    assert all(p.kind == p.KEYWORD_ONLY for p in mine[len(theirs) :])


def test_the_second_derivative_of_a_sure_prediction_keeps_its_digits():
    """For two classes, H v = yhat_0 yhat_1 (v_0 - v_1) at class 0. There, yhat_0 (v_0 - <yhat, v>) would cancel."""
    z, v = torch.tensor([[12.0, 0.0]], requires_grad=True), torch.tensor([[3.0, -0.7]])
    (dz,) = torch.autograd.grad(st.cross_entropy(z, torch.tensor([0])), z, create_graph=True)
    (hv,) = torch.autograd.grad(dz, z, v)
    want = np.exp(-12.0) / (1 + np.exp(-12.0)) ** 2 * 3.7
    assert hv[0].tolist() == pytest.approx([want, -want], rel=FLOAT32, abs=0)


def test_torch_func_is_torchs():
    z, t, _ = problem((4, 5))
    z, v, many = z.detach(), torch.randn(4, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    for transform in (
        lambda f: hessian(lambda z: f(z, t))(z),
        lambda f: jacrev(jacfwd(lambda z: f(z, t)))(z),
        lambda f: vmap(grad(f))(z, t),
        lambda f: vmap(lambda w: f(z, t, w))(many),
        lambda f: jvp(grad(lambda z: f(z, t)), (z,), (v,))[1],
    ):
        close(transform(st.cross_entropy), transform(F.cross_entropy))


def test_a_second_backward_is_right_whatever_became_of_the_first():
    z, t, _ = problem((6, 5))
    loss = st.cross_entropy(z, t)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0]
    want = first.clone()
    first.zero_()
    close(torch.autograd.grad(loss, z, retain_graph=True)[0], want)
    close(torch.autograd.grad(loss, z, torch.tensor(-3.0, dtype=torch.float64))[0], -3 * want)


def test_the_input_is_never_written_to():
    z, t, u = problem((6, 5), torch.float32)
    before, version = z.detach().clone(), z._version
    for target in (t, u):
        st.cross_entropy(z, target, z_loss=0.1).backward()
    assert torch.equal(z, before) and z._version == version


def test_what_more_there_is_to_return_is_differentiable():
    z, t, _ = problem((6, 5))
    t[2] = -100
    result = st.cross_entropy(z, t, return_lse=True, return_entropy=True, return_logprobs=True, return_correct=True)
    want = definition(z, t)
    for name in ("lse", "entropy", "logprobs"):
        close(getattr(result, name), getattr(want, name))
    assert result.correct == ((z.argmax(1) == t) & (t != -100)).sum()
    for name in ("lse", "entropy", "logprobs"):
        torch.autograd.gradcheck(lambda z, name=name: getattr(st.cross_entropy(z, t, **{f"return_{name}": True}), name), (z,))
    close(st.log_softmax(z, 1), z.log_softmax(1))
    close(st.logsumexp(z, 1, keepdim=True), z.logsumexp(1, keepdim=True))


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_masked_classes_have_no_probability_and_second_derivatives_that_are_finite(soft):
    z, t, _ = problem((6, 5))
    off = torch.zeros(6, 5, dtype=torch.bool).scatter_(1, torch.stack([t + 1, t + 3], 1) % 5, True)
    z = z.detach().masked_fill(off, -math.inf).requires_grad_()
    result = st.cross_entropy(z, F.one_hot(t, 5).double() if soft else t, return_entropy=True)
    p = z.detach().softmax(1)
    logp = p.log().masked_fill(off, 0)
    close(result.loss, F.cross_entropy(z, t))
    close(result.entropy, -(p * logp).sum(1))
    first, of_entropy = (torch.autograd.grad(a.sum(), z, create_graph=True)[0] for a in (result.loss, result.entropy))
    close(first, (p - F.one_hot(t, 5)) / 6)
    close(of_entropy, -p * (logp + result.entropy[:, None]))
    assert not first[off].any() and not of_entropy[off].any()
    assert all(torch.autograd.grad(dz[:, 0].sum(), z, retain_graph=True)[0].isfinite().all() for dz in (first, of_entropy))


def test_under_autocast_a_narrow_loss_is_float32():
    z = torch.randn(4, 5).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = st.cross_entropy(z, torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert loss.dtype == torch.float32 and z.grad.dtype == torch.bfloat16


def test_it_compiles_in_one_piece_for_any_number_of_rows():
    seen = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    f = torch.compile(lambda z, t: st.cross_entropy(z, t, label_smoothing=0.1), fullgraph=True, dynamic=True, backend=seen)
    frames = set()
    for n in (7, 9, 33):
        z, t = torch.randn(n, 11, requires_grad=True), torch.randint(0, 11, (n,))
        mine, theirs = torch.autograd.grad(f(z, t), z)[0], torch.autograd.grad(F.cross_entropy(z, t, label_smoothing=0.1), z)[0]
        torch.testing.assert_close(mine, theirs, rtol=FLOAT32, atol=FLOAT32)
        frames.add(seen.frame_count)
    assert len(frames) == 1


COMPILED = {
    "smoothing": {"label_smoothing": 0.1, "z_loss": 0.1},
    "class weights": {"weight": torch.rand(5, dtype=torch.float64)},
    "sample weights": {"sample_weight": torch.rand(4, dtype=torch.float64)},
    "transformed": {"softcap": 3.0, "temperature": 0.7},
    "all outputs": {"reduction": "none", **dict.fromkeys(("return_lse", "return_entropy", "return_correct"), True)},
}


# half of them with a backend that was asked for, with which labels out of range are NaN, as on a GPU
COMPILING = itertools.product(COMPILED, ["labels", "probabilities"], ["loss", "head"])
COMPILING = [(*which, backend) for which, backend in zip(COMPILING, itertools.cycle(["cpu", "formula", "formula", "cpu"]), strict=False)]


@pytest.mark.parametrize(("options", "target", "function", "backend"), COMPILING, ids=map("-".join, COMPILING))
def test_every_option_compiles_in_one_piece(options, target, function, backend):
    z, w, t = torch.randn(4, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 3, -100, 4])
    target = t if target == "labels" else torch.rand(4, 5, dtype=torch.float64)

    def f(z, w, target):
        given = COMPILED[options]
        return st.cross_entropy(z @ w.T, target, **given) if function == "loss" else st.linear_cross_entropy(z, w, target, **given)

    torch._dynamo.reset()
    with contextlib.nullcontext() if backend == "cpu" else st.use_backend(backend):
        want, found = f(z, w, target), torch.compile(f, fullgraph=True, backend="eager")(z, w, target)
    for a, b in zip(*((x,) if torch.is_tensor(x) else x for x in (found, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=FEW64, atol=FEW64)  # None is equal to None


def test_a_mean_over_weights_of_0_is_torchs():
    """It is NaN, also where label smoothing makes the sum of the losses positive."""
    z, t = torch.randn(4, 5, requires_grad=True), torch.tensor([2, 2, 2, 2])
    for smoothing, differentiated in itertools.product((0.0, 0.1), (False, True)):
        w = torch.tensor([1.0, 2, 0, 1, 1], requires_grad=differentiated)
        want = F.cross_entropy(z, t, w.detach(), label_smoothing=smoothing)
        assert want.isnan()
        plain = lambda z, w=w, e=smoothing: st.cross_entropy(z, t, w, label_smoothing=e)  # noqa: E731
        head = lambda z, w=w, e=smoothing: st.linear_cross_entropy(z, torch.eye(5), t, weight=w, label_smoothing=e)  # noqa: E731
        compiled = [torch.compile(plain, backend="aot_eager")] if differentiated == (smoothing > 0) else []  # takes seconds
        for f in (plain, head, *compiled):
            for given in (z, z.detach()):
                found = f(given)
                torch.testing.assert_close(found.detach(), want.detach(), rtol=0, atol=0, equal_nan=True)
                by = [x for x in (given, w) if x.requires_grad]
                assert all(not dx.any() for dx in torch.autograd.grad(found, by)) if by else not found.requires_grad


def test_the_operators_are_what_torch_expects_of_operators():
    z, label = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 3, kernels.IGNORED, -1])
    y, r, g, n = (torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    q, off = torch.tensor(0.2, dtype=torch.float64), torch.rand(4, 5)
    ops = torch.ops.softxent
    none, whole = (None,) * 4, ("", [], 0)  # upstream gradients; the classes of one process
    for outputs in (2, 5, 6):
        torch.library.opcheck(ops.rows.default, (z, label, off, None, None, y, r, q, *none, None, 2.0, 3.0, 1, *whole, outputs))
        z2, label2, off2, y2, r2 = (t.detach().expand(2, *t.shape) for t in (z, label, off, y, r))
        torch.library.opcheck(ops.rows.default, (z2, label2, off2, None, None, y2, r2, q, *none, None, 2.0, 3.0, 2, *whole, outputs))
    for upstream in ((g, None, None, None), (g, g, None, n)):
        of_rows = (z, label, None, None, None, y, r, q, *upstream, None)
        torch.library.opcheck(ops.gradient.default, (*of_rows, 1.0, torch.inf, 1, *whole))
    torch.library.opcheck(ops.log_softmax.default, (z, *[None] * 4, g, *[None] * 7, 1.0, torch.inf, 1, *whole))
    torch.library.opcheck(ops.class_labels.default, ("cross_entropy", torch.tensor([3, 1, -100]), 5, -100))
    for weight, each in ((None, None), (torch.rand(5), torch.rand(4))):
        options = ("mean", 0.1, 0.01, 2.0, 3.0)
        for target in (torch.tensor([0, 3, -100, 4]), torch.rand(4, 5)):
            for with_gradient in (False, True):
                torch.library.opcheck(ops.cross_entropy.default, (z, target, weight, each, -100, *options, with_gradient))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda z, t: st.cross_entropy(z, t[:3]), ValueError, r"target must have shape \(6,\) to match input \(6, 5\); got \(3,\)"),
        (lambda z, t: st.cross_entropy(z, t + 5), ValueError, r"target must lie in \[0, 5\) or be ignore_index=-100; got \d at row 0"),
        (lambda z, t: st.cross_entropy(z.long(), t), TypeError, "input must have dtype float32, float64, float16 or bfloat16; got int64"),
        (lambda z, t: st.cross_entropy(z, t.tolist()), TypeError, "target must be a torch.Tensor; got list"),
        (lambda z, t: st.cross_entropy(z, t, torch.ones(4)), ValueError, r"weight must have shape \(5,\), one number a class; got \(4,\)"),
        (lambda z, t: st.cross_entropy(z, t, reduction="avg"), ValueError, "reduction must be 'none' or 'sum' or 'mean'; got 'avg'"),
        (
            lambda z, t: st.cross_entropy(z, t.double()),
            TypeError,
            "target must be cast to int to be class indices, with ignore_index for missing ones, "
            r"or have shape \(6, 5\) to be probabilities; got float64 of shape \(6,\)",
        ),
        (
            lambda z, t: st.cross_entropy(z, F.one_hot(t, 5)),
            TypeError,
            r"target must be cast to float to be probabilities, such as one-hot rows, or have shape \(6,\) to be class indices; "
            r"got int64 of shape \(6, 5\)",
        ),
        (lambda z, t: st.cross_entropy(z, F.one_hot(t, 5).bool()), TypeError, "target must be cast to float to be probabilities"),
        (lambda z, t: st.cross_entropy(z, t.bool()), TypeError, r"target must be integers \(class indices\) or floats .*; got bool"),
        (
            lambda z, t: st.cross_entropy(z, z[:3]),
            ValueError,
            r"probability target must have shape \(6, 5\) to match input \(6, 5\); got \(3",
        ),
        (lambda z, t: st.cross_entropy(t, z), ValueError, r"input must come before target; got arrays of shapes \(6,\) and \(6, 5\)"),
        (lambda z, t: st.cross_entropy(t.double(), z), ValueError, "input must come before target; got arrays of shapes"),
        (
            lambda z, t: st.cross_entropy(z.reshape(2, 3, 5), t.reshape(2, 3)),
            ValueError,
            r"target must have shape \(2, 5\) to match input \(2, 3, 5\), whose classes are along axis 1 "
            r"\(pass input.movedim\(2, 1\) if they are along axis 2\); got \(2, 3\)",
        ),
        (
            lambda z, t: st.cross_entropy(z, t, class_weight=torch.ones(5)),
            TypeError,
            "class_weight must be passed as weight, as it is called here; got Tensor",
        ),
        (
            lambda z, t: st.cross_entropy(z.detach().numpy(), t),
            TypeError,
            r"input must be a torch.Tensor \(softxent's own functions take NumPy arrays\); got ndarray",
        ),
        (lambda z, t: st.cross_entropy(z, t.to("meta")), ValueError, "target must be on cpu as input is; got meta"),
        (
            lambda z, t: st.cross_entropy(z.to_sparse(), t),
            TypeError,
            r"input must be a dense tensor \(input.to_dense\(\) is one\); got torch.sp",
        ),
        (
            lambda z, t: st.cross_entropy(z, t, label_smoothing=torch.ones(2)),
            TypeError,
            r"label_smoothing must be a finite number of at least 0 and at most 1; got tensor\(\[1., 1.\]\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, error, says):
    z, t, _ = problem((6, 5))
    with pytest.raises(error, match=f"^cross_entropy: {says}"):
        call(z, t)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: st.CrossEntropyLoss(class_weight=torch.ones(5)), "CrossEntropyLoss: class_weight must be passed as weight"),
        (
            lambda: st.LinearCrossEntropyLoss(4, 5, class_weight=torch.ones(5)),
            "LinearCrossEntropyLoss: class_weight must be passed as weight",
        ),
        (
            lambda: st.LinearCrossEntropyLoss(4, 5, label_smoothin=0.1),
            "LinearCrossEntropyLoss: keyword arguments must be among .*label_smoothing, .*; got label_smoothin$",
        ),
        (
            lambda: st.logsumexp(np.zeros((4, 5))),
            r"logsumexp: input must be a torch.Tensor \(softxent's own functions take NumPy arrays\); got ndarray",
        ),
        (lambda: st.use_backend(["formula"]).__enter__(), "use_backend: name must be 'formula' or "),
    ],
)
def test_a_wrong_argument_of_the_others_is_refused_by_name(call, says):
    with pytest.raises((TypeError, ValueError), match=f"^{says}"):
        call()


def test_log_softmax_of_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"^log_softmax: input must have a class axis, such as .*; got a scalar$"):
        st.log_softmax(torch.tensor(1.0))


def test_without_torch_it_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\ntry: import softxent.torch\nexcept ModuleNotFoundError as e: print(e.name, e)"
    assert python(code) == "torch softxent.torch needs PyTorch: pip install torch, or in a clone of softxent: pip install '.[torch]'\n"


def test_the_last_large_gradient_is_kept_for_the_next_and_can_be_given_back():
    z, t = torch.randn(300, 2000, requires_grad=True), torch.randint(0, 2000, (300,))
    st.cross_entropy(z, t).backward()
    first = z.grad.data_ptr()
    z.grad = None
    st.cross_entropy(z, t).backward()
    assert z.grad.data_ptr() == first
    z.grad = None
    st.empty_cache()


@pytest.mark.parametrize("softcap", [0, 0.0, -1.0, math.inf, math.nan, 1e-40])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_softcap_that_is_no_positive_finite_number_is_refused(softcap, reduction):
    with pytest.raises(ValueError, match="softcap must be a finite number of at least"):
        st.cross_entropy(torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), softcap=softcap, reduction=reduction)


def bits(t):
    return t.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


EVERY_OUTPUT = ("lse", "entropy", "logprobs", "correct")
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("shape", [(7, 10), (64, 130)], ids=str)  # fewer and more elements than `cpu.SMALL_CALL`
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_contiguous_logits_which_one_call_of_the_kernel_computes_give_the_bits_of_others(dtype, shape):
    """Logits whose rows are not adjacent in memory go through the general functions."""
    n, classes = shape
    wider = (torch.randn(n, classes + 3) * 3).to(dtype).requires_grad_()
    labels = torch.randint(0, classes, (n,))
    labels[1] = -100
    u = torch.rand(n, classes).softmax(1)
    weight, sample = torch.linspace(0.5, 2, classes), torch.linspace(0, 2, n)
    options = [{}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"weight": weight, "label_smoothing": 0.2}, {"sample_weight": sample}]
    options += [{"sample_weight": sample.double(), "weight": weight}, {"temperature": 0.7, "softcap": 5.0}]

    def found(z, target, wanted, **given):
        result = st.cross_entropy(z, target, **given, **{f"return_{name}": True for name in wanted})
        every = [t for t in (result if wanted else (result,)) if t is not None]
        upstream = [torch.linspace(0.3, 1.7, t.numel()).reshape(t.shape).to(t.dtype) for t in every if t.is_floating_point()]
        (dz,) = torch.autograd.grad([t for t in every if t.is_floating_point()], wider, upstream)
        assert not any(name in str(t.grad_fn) for t in every for name in ("Rows", "Gradient")) or not z.is_contiguous()
        if given["reduction"] != "none":
            every = every[1:]  # torch's sum has another order than the kernel's
        return result if not wanted else result[0], [bits(t) for t in (*every, dz)]

    for target in (labels, u.to(dtype), u.double()):
        for wanted in ((), ("lse",), ("entropy",), EVERY_OUTPUT):
            wanted = [name for name in wanted if name != "logprobs" or target is labels]
            for given in options:
                for reduction in REDUCTIONS:
                    (loss, one), (same, other) = (
                        found(z, target, wanted, reduction=reduction, **given)
                        for z in (wider[:, :classes].contiguous(), wider[:, :classes])
                    )
                    torch.testing.assert_close(loss, same, rtol=4 * torch.finfo(dtype).eps, atol=0)
                    assert one == other, (target.dtype, wanted, given, reduction)


@pytest.mark.parametrize("scratch", [1, 150, 400])
def test_chunks_of_logits_with_other_strides_give_what_all_rows_give(scratch, monkeypatch):
    """With the classes on another axis than the last, the rows are copied a chunk at a time; each takes its own numbers and truth."""
    torch.manual_seed(0)
    z, target, weight = torch.randn(4, 7, 3, 2), torch.randint(0, 7, (4, 3, 2)), torch.rand(4, 3, 2)
    truths = target, torch.softmax(torch.randn(4, 7, 3, 2), 1)

    def found():
        results = []
        for truth in truths:
            x = z.clone().requires_grad_()
            loss = st.cross_entropy(x, truth, sample_weight=weight, reduction="none", label_smoothing=0.1)
            (dz,) = torch.autograd.grad(loss, x, weight.cos(), create_graph=True)
            results += [loss, dz, *torch.autograd.grad(dz, x, z.sin())]
        return results

    want = found()
    monkeypatch.setattr(compute, "SCRATCH", scratch)
    for a, b in zip(found(), want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", [contextlib.nullcontext(), st.use_backend("formula")], ids=["cpu", "formula"])
def test_an_infinite_upstream_gradient_leaves_entries_that_are_0(backend):
    """0 times infinity would be NaN: ignored rows and classes whose logit is -inf keep their 0."""
    z = torch.tensor([[0.0, -math.inf, 1.0], [1.0, 2.0, 3.0]], requires_grad=True)
    with backend:
        loss = st.cross_entropy(z, torch.tensor([0, -100]), reduction="sum")
        (dz,) = torch.autograd.grad(loss, z, torch.tensor(math.inf))
    assert dz.tolist() == [[-math.inf, 0, math.inf], [0, 0, 0]]


HUGE = torch.tensor([1e300, 1, 1], dtype=torch.float64)


@pytest.mark.parametrize("options", [{"z_loss": 1e300}, {"weight": HUGE}, {"sample_weight": HUGE}], ids=lambda o: next(iter(o)))
@pytest.mark.parametrize("more", [{}, {"return_lse": True}], ids=["loss", "more"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_loss_beyond_the_range_of_its_type_is_infinite(dtype, reduction, more, options):
    z, t = torch.randn(3, 3).to(dtype), torch.tensor([0, 1, 2])
    losses = [st.cross_entropy(x, t, reduction=reduction, **options, **more) for x in (z, z.double())]
    got, want = (loss.loss if more else loss for loss in losses)
    close(got, want.to(dtype), max(FLOAT32, torch.finfo(dtype).eps))
    x, w = torch.eye(3).to(dtype), z.T
    head = st.linear_cross_entropy(x, w, t, reduction=reduction, **options)
    close(head, want.to(head.dtype), max(FLOAT32, torch.finfo(dtype).eps))


def test_no_classes_have_the_results_of_torch():
    z = torch.empty(3, 0)
    assert torch.equal(st.log_softmax(z, -1), z.log_softmax(-1)) and torch.equal(st.logsumexp(z, -1), z.logsumexp(-1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tensors_without_values_have_a_loss_and_a_gradient_without_values(reduction):
    z, t = torch.empty(6, 5, device="meta", requires_grad=True), torch.empty(6, device="meta", dtype=torch.int64)
    for truth in (t, z.detach()):
        loss = st.cross_entropy(z, truth, reduction=reduction)
        (dz,) = torch.autograd.grad(loss, z, torch.ones_like(loss))
        assert loss.is_meta and loss.shape == ((6,) if reduction == "none" else ()) and dz.is_meta and dz.shape == z.shape


def test_the_losses_of_the_guide_have_the_derivatives_of_their_definitions():
    page = (Path(__file__).parent.parent / "docs/training.md").read_text()
    names = {"torch": torch}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        if "def dft(" in block or "def focal(" in block:
            exec(block, names)
    z, t = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, -100, 4, 1, 1])
    kept, at = t != -100, t.clamp(min=0)[:, None]

    def mean(loss_of_p):
        p = z.softmax(1).gather(1, at)[:, 0]
        return loss_of_p(p)[kept].sum() / kept.sum()

    wants = {
        "dft": lambda p: -p.detach() * p.log(),
        "focal": lambda p: -((1 - p) ** 2) * p.log(),
    }
    for name, of_p in wants.items():
        found, want = names[name](z, t), mean(of_p)
        torch.testing.assert_close(found, want, rtol=FEW64, atol=0)
        v = torch.randn_like(z)
        of_found, of_want = (torch.autograd.grad(loss, z, create_graph=True)[0] for loss in (found, want))
        torch.testing.assert_close(of_found, of_want, rtol=FEW64, atol=FEW64)
        second = (torch.autograd.grad((dz * v).sum(), z)[0] for dz in (of_found, of_want))
        torch.testing.assert_close(*second, rtol=FEW64, atol=FEW64)
    certain, label = torch.tensor([[12.0, 0.0]], requires_grad=True), torch.tensor([0])
    (dz,) = torch.autograd.grad(names["focal"](certain, label), certain)
    miss = 1 / (1 + math.exp(12.0))
    want = 2 * miss**2 * (1 - miss) * math.log1p(-miss) - miss**3
    assert float(dz[0, 0]) == pytest.approx(want, rel=FLOAT32, abs=0)
