"""Every way to differentiate, by every differentiable argument: undefined and batched upstream gradients, forward mode, repeated passes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from definition_in_torch import definition
from tolerances import FLOAT64, HIGHER
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from softxent import kernels
from softxent import torch as st
from softxent.shared import OPS
from softxent.torch import operators

F64 = torch.float64
ROWS, CLASSES, FEATURES = 3, 4, 2


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tensors():
    """Return the differentiable arguments by name."""
    probable = torch.rand(ROWS, CLASSES, dtype=F64)
    return {
        "z": torch.randn(ROWS, CLASSES, dtype=F64), "x": torch.randn(ROWS, FEATURES, dtype=F64),
        "W": torch.randn(CLASSES, FEATURES, dtype=F64), "b": torch.randn(CLASSES, dtype=F64),
        "weight": torch.rand(CLASSES, dtype=F64) + 0.2, "sample_weight": torch.rand(ROWS, dtype=F64) + 0.2,
        "target": probable / probable.sum(1, keepdim=True),
    }  # fmt: skip


LABELS = torch.tensor([2, -100, 0])


def loss(function, given, **options):
    """Return the loss, of the labels if no probabilities are given."""
    target = given.get("target", LABELS)
    options |= {name: given[name] for name in ("weight", "sample_weight") if name in given}
    if function == "plain":
        return st.cross_entropy(given["z"], target, **options)
    return st.linear_cross_entropy(given["x"], given["W"], target, linear_bias=given["b"], budget=1, **options)


def written_out(function, given, **options):
    """Return the same from the definition, in torch's operations."""
    z = given["z"] if function == "plain" else F.linear(given["x"], given["W"], given["b"])
    options |= {name: given[name] for name in ("weight", "sample_weight") if name in given}
    return definition(z, given.get("target", LABELS), **options).loss


OTHERS = [(), ("weight",), ("sample_weight",), ("target",), ("target", "weight")]
CASES = [(function, first + others) for function, first in (("plain", ("z",)), ("linear", ("x", "W", "b"))) for others in OTHERS]
name_of = lambda x: "-".join(x) if isinstance(x, tuple) else str(x)  # noqa: E731
each_case = pytest.mark.parametrize(("function", "names"), CASES, ids=name_of)
REDUCTIONS = ["none", "mean", "sum"]
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


@pytest.mark.parametrize(
    ("function", "names", "reduction", "smoothing"),
    [(*case, r, s) for (case, r), s in zip(itertools.product(CASES, REDUCTIONS), itertools.cycle([0.0, 0.1]), strict=False)],
    ids=name_of,
)
def test_gradcheck_with_undefined_and_batched_gradients_and_forward_mode(function, names, smoothing, reduction):
    values = tensors()
    given = tuple(values[name].requires_grad_() for name in names)

    def f(*args):
        return loss(function, dict(zip(names, args, strict=True)), label_smoothing=smoothing, reduction=reduction)

    assert gradcheck(f, given, check_undefined_grad=True, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize(
    ("function", "names", "smoothing"), [(*case, s) for case, s in zip(CASES, itertools.cycle([0.0, 0.1]), strict=False)], ids=name_of
)
def test_the_hessian_by_batches_in_forward_mode_is_the_hessian(function, names, smoothing):
    values = tensors()
    given = tuple(values[name] for name in names)

    def f(*args):
        return loss(function, dict(zip(names, args, strict=True)), label_smoothing=smoothing, z_loss=0.1)

    want = torch.autograd.functional.hessian(f, given)
    got = torch.autograd.functional.hessian(f, given, vectorize=True, outer_jacobian_strategy="forward-mode")
    torch.testing.assert_close(got, want, rtol=HIGHER, atol=FLOAT64)


@each_case
def test_second_derivatives_in_every_mode(function, names):
    values = tensors()
    given = tuple(values[name].requires_grad_() for name in names)

    def f(*args):
        return loss(function, dict(zip(names, args, strict=True)), label_smoothing=0.1, reduction="sum")

    assert gradgradcheck(f, given, check_undefined_grad=True, check_fwd_over_rev=True, fast_mode=function == "linear")


@each_reduction
@each_case
def test_forward_mode_by_each_argument_alone(function, names, reduction):
    """The other arguments have no tangent and require no gradient."""
    values = {name: t for name, t in tensors().items() if name in names}
    for moving in names:
        direction = torch.randn_like(values[moving])
        with forward_ad.dual_level():
            dual = values | {moving: forward_ad.make_dual(values[moving], direction)}
            got = forward_ad.unpack_dual(loss(function, dual, label_smoothing=0.1, reduction=reduction)).tangent
            want = forward_ad.unpack_dual(written_out(function, dual, label_smoothing=0.1, reduction=reduction)).tangent
        torch.testing.assert_close(got, want, rtol=HIGHER, atol=FLOAT64)

        def f(t, of=loss, moving=moving):
            return of(function, values | {moving: t}, label_smoothing=0.1, reduction="sum")

        by_func = torch.func.jvp(f, (values[moving],), (direction,))[1]
        forward_over_reverse = torch.func.jvp(torch.func.grad(f), (values[moving],), (direction,))[1]
        wanted = torch.func.jvp(lambda t: f(t, written_out), (values[moving],), (direction,))[1]
        wanted_too = torch.func.jvp(torch.func.grad(lambda t: f(t, written_out)), (values[moving],), (direction,))[1]
        torch.testing.assert_close(by_func, wanted, rtol=HIGHER, atol=FLOAT64)
        torch.testing.assert_close(forward_over_reverse, wanted_too, rtol=HIGHER, atol=FLOAT64)


@each_reduction
def test_a_masked_class_whose_probability_stays_0_adds_nothing_in_forward_mode(reduction):
    """The derivative by its probability is inf, and its tangent is 0."""
    values, direction = tensors(), torch.randn(ROWS, CLASSES, dtype=F64)
    z, target = values["z"], values["target"]
    z[:, 1], target[:, 1], direction[:, 1] = -torch.inf, 0, 0
    found = []
    for kept in ([0, 1, 2, 3], [0, 2, 3]):
        f = lambda u, kept=kept: st.cross_entropy(z[:, kept], u, reduction=reduction)  # noqa: E731
        found.append(torch.func.jvp(f, (target[:, kept],), (direction[:, kept],))[1])
    torch.testing.assert_close(*found, rtol=FLOAT64, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"weight": True}, {"sample_weight": True}, {"label_smoothing": 0.1}, {"z_loss": 0.1}],
    ids=lambda o: next(iter(o), "plain"),
)
@each_reduction
@pytest.mark.parametrize("function", ["plain", "linear"])
def test_a_second_backward_gives_the_same_bits(function, reduction, options, dtype):
    rows, classes, features = 50, 300, 20
    target = torch.randint(0, classes, (rows,))
    target[3] = -100
    made = {"weight": torch.rand(classes, dtype=dtype) + 0.1, "sample_weight": torch.rand(rows, dtype=dtype) + 0.1}
    options = {name: made.get(name, value) for name, value in options.items()}
    if function == "plain":
        given = (torch.randn(rows, classes, dtype=dtype).requires_grad_(),)
        value = st.cross_entropy(*given, target, reduction=reduction, **options)
    else:
        given = tuple(torch.randn(shape, dtype=dtype).requires_grad_() for shape in ((rows, features), (classes, features)))
        value = st.linear_cross_entropy(*given, target, reduction=reduction, budget=50_000, **options)
    upstream = torch.full_like(value, 0.7)
    first = torch.autograd.grad(value, given, upstream, retain_graph=True)
    second = torch.autograd.grad(value, given, upstream, retain_graph=True)
    third = torch.autograd.grad(value, given, upstream)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, third, strict=True))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}])
def test_forward_mode_of_vmap_is_a_loop(options):
    z, t, v = torch.randn(2, 3, 4, dtype=F64), torch.randint(4, (2, 3)), torch.randn(2, 3, 4, dtype=F64)
    many = lambda z: torch.func.vmap(lambda z, t: st.cross_entropy(z, t, **options))(z, t)  # noqa: E731
    found = torch.func.jvp(many, (z,), (v,))
    each = [torch.func.jvp(lambda z, i=i: st.cross_entropy(z, t[i], **options), (z[i],), (v[i],)) for i in range(2)]
    for got, *want in zip(found, *each, strict=True):
        assert torch.equal(got, torch.stack(want))


def test_forward_mode_over_two_backward_passes_is_torchs():
    """The tangent of the product with the Hessian, of which only the last backward pass is not recorded."""
    z, t, v, w = torch.randn(3, 4, dtype=F64), torch.tensor([2, 0, 1]), torch.randn(3, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    found = []
    for f in (st.cross_entropy, F.cross_entropy):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(z.clone().requires_grad_(), w)
            (first,) = torch.autograd.grad(f(dual, t), dual, create_graph=True)
            (second,) = torch.autograd.grad((first * v).sum(), dual)
            found.append(forward_ad.unpack_dual(second))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=HIGHER, atol=FLOAT64)


def test_forward_mode_of_a_compiled_function_is_that_of_the_function():
    z, t, v = torch.randn(3, 4, dtype=F64), torch.tensor([2, 0, 1]), torch.randn(3, 4, dtype=F64)
    f = lambda z: st.cross_entropy(z, t, label_smoothing=0.1)  # noqa: E731
    tangents = []
    for g in (f, torch.compile(f, backend="aot_eager")):
        with forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(g(forward_ad.make_dual(z, v))).tangent)
    torch.testing.assert_close(*tangents, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("function", ["plain", "linear"])
@pytest.mark.parametrize("transform", ["grad", "vmap of grad", "forward mode"])
def test_a_compiled_transform_is_the_transform(transform, function):
    """The operators of torch.library know no transform, so the graph ends before them."""
    z, t, w = torch.randn(2, 3, 4, dtype=F64), torch.randint(4, (2, 3)), torch.rand(4, dtype=F64)
    eye = torch.eye(4, dtype=F64)

    def f(z, t):
        if function == "plain":
            return st.cross_entropy(z, t, w, label_smoothing=0.1)
        return st.linear_cross_entropy(z, eye, t, weight=w, label_smoothing=0.1, budget=1)

    def forward_mode(z, t):
        return torch.func.jvp(lambda z: f(z, t), (z,), (z.flip(0),))[1]

    many = {"grad": torch.func.grad(f), "vmap of grad": torch.func.vmap(torch.func.grad(f)), "forward mode": forward_mode}[transform]
    given = (z, t) if transform == "vmap of grad" else (z[0], t[0])
    torch.testing.assert_close(torch.compile(many, backend="aot_eager")(*given), many(*given), rtol=FLOAT64, atol=FLOAT64)


def second_derivatives(f, z, v):
    """Return products of the Hessian and v, or the Hessian, in every mode that needs no third derivative."""
    leaf = z.clone().requires_grad_()
    gradient = torch.autograd.grad(f(leaf), leaf, create_graph=True)[0]
    forward = forward_ad.dual_level
    with forward():
        dual = forward_ad.make_dual(z.clone().requires_grad_(), v)
        of_forward = forward_ad.unpack_dual(f(dual)).tangent
    with forward():
        over_reverse = forward_ad.unpack_dual(torch.func.grad(f)(forward_ad.make_dual(z, v))).tangent
    return {
        "along v": (of_forward, torch.func.jvp(f, (z,), (v,))[1], (gradient * v).sum()),
        "products": (
            torch.autograd.grad(gradient, leaf, v, create_graph=True)[0], over_reverse, torch.func.jvp(torch.func.grad(f), (z,), (v,))[1],
            torch.func.vjp(torch.func.grad(f), z)[1](v)[0],
        ),
        "Hessians": (
            torch.autograd.functional.hessian(f, z), torch.autograd.functional.hessian(f, z, vectorize=True), torch.func.hessian(f)(z),
            torch.func.jacrev(torch.func.jacrev(f))(z),
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, CLASSES)}, {"z_loss": 0.1, "softcap": 2.0}]
)
@each_reduction
def test_second_derivatives_are_the_kernels_in_every_mode(options, reduction, monkeypatch):
    """The composition of operations, which takes many passes, is for third derivatives alone."""
    z, v = torch.randn(ROWS, CLASSES, dtype=F64), torch.randn(ROWS, CLASSES, dtype=F64)
    f = lambda z: st.cross_entropy(z, LABELS, reduction=reduction, **options).sum()  # noqa: E731
    monkeypatch.setattr(operators, "composed_curvature", lambda *_: pytest.fail("composed"))
    for found in second_derivatives(f, z, v).values():
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "weight": torch.ones(CLASSES)}, {"reduction": "sum", "softcap": 2.0}])
def test_a_compiled_loss_is_one_operator_that_returns_its_gradient(options):
    graphs = []

    def record(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if "softxent" in str(node.target)])
        return graph.forward

    z, infinite = torch.randn(ROWS, CLASSES, requires_grad=True), torch.tensor(torch.inf)
    f = lambda z: st.cross_entropy(z, LABELS, **options)  # noqa: E731
    loss = torch.compile(f, backend=aot_autograd(fw_compiler=record), fullgraph=True)(z)
    found = torch.autograd.grad(loss, z, infinite, retain_graph=True)[0]
    assert graphs == [["softxent.cross_entropy.default"], []]
    assert torch.equal(loss, f(z))
    assert torch.equal(found, torch.autograd.grad(f(z), z, infinite)[0])  # 0, not NaN, in the row that is ignored
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.autograd.grad(f(z), z)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_func_computes_a_gradient_once(dtype, monkeypatch):
    calls, call = [], kernels.cpu.call
    monkeypatch.setattr(kernels.cpu, "call", lambda op, *given, **more: (calls.append(op), call(op, *given, **more))[1])
    z = torch.randn(ROWS, CLASSES).to(dtype)
    found = torch.func.grad(st.cross_entropy)(z, LABELS)
    assert calls == ([OPS["FUSED"]] if dtype != torch.float16 else [OPS["FORWARD"], OPS["FUSED"]])
    assert torch.equal(found, torch.autograd.grad(st.cross_entropy(z.requires_grad_(), LABELS), z)[0])
    pulled_back = torch.func.vjp(lambda z: st.cross_entropy(z, LABELS), z.detach())[1]
    one = torch.ones((), dtype=dtype)
    assert [torch.equal(pulled_back(k * one)[0], pulled_back(k * one)[0]) for k in (1, 2)] == [True, True]
    assert torch.equal(pulled_back(2 * one)[0], 2 * found)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_row_under_vmap_and_a_compiler_has_class_weights(smoothing):
    """The label has no axis there, and its value is not known."""
    z, t, w = torch.randn(3, 4, dtype=F64), torch.tensor([2, 0, 1]), torch.rand(4, dtype=F64)
    f, g = (lambda z, t, f=f: f(z, t, w, label_smoothing=smoothing) for f in (st.cross_entropy, F.cross_entropy))
    each = torch.stack([torch.func.grad(g)(z[i], t[i]) for i in range(3)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(z, t), each, rtol=FLOAT64, atol=FLOAT64)
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z[0], t[0]), g(z[0], t[0]), rtol=FLOAT64, atol=FLOAT64)


def test_a_traced_function_has_our_operators_and_computes_other_values():
    from torch.fx.experimental.proxy_tensor import make_fx

    z, t = torch.randn(3, 4, dtype=F64), torch.tensor([2, 0, 1])
    f = lambda z: torch.func.grad(lambda z: st.cross_entropy(z, t, reduction="none", z_loss=0.1).square().sum())(z)  # noqa: E731
    traced = make_fx(f)(z)
    names = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert {"softxent.rows.default", "softxent.gradient.default"} <= names
    other = torch.randn(3, 4, dtype=F64)
    torch.testing.assert_close(traced(other), f(other), rtol=FLOAT64, atol=FLOAT64)


TRACED = {
    "a mean": lambda z, t, x, w: st.cross_entropy(z, t),
    "of each row": lambda z, t, x, w: st.cross_entropy(z, t, w, reduction="none", label_smoothing=0.1, softcap=3.0),
    "outputs": lambda z, t, x, w: torch.stack(
        st.cross_entropy(z, t, reduction="none", return_lse=True, return_entropy=True, return_logprobs=True)[:4]
    ),
    "probabilities": lambda z, t, x, w: st.cross_entropy(z, torch.where(t[:, None] == torch.arange(CLASSES), 0.7, 0.1), z_loss=0.1),
    "log_softmax": lambda z, t, x, w: st.log_softmax(z),
    "logsumexp": lambda z, t, x, w: st.logsumexp(z),
    "a module": lambda z, t, x, w: st.CrossEntropyLoss(w)(z, t),
    "a small head": lambda z, t, x, w: st.linear_cross_entropy(z, x, t),
    "a head": lambda z, t, x, w: st.linear_cross_entropy(z, x, t, budget=1),
    "a head of each row": lambda z, t, x, w: st.linear_cross_entropy(z, x, t, weight=w, reduction="none", return_lse=True, budget=1).lse,
}


checks_are_not_recorded = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning:torch")


@checks_are_not_recorded
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("tracer", ["torch.jit.trace", "make_fx"])
@pytest.mark.parametrize("f", TRACED.values(), ids=TRACED)
def test_a_traced_function_computes_other_values(f, tracer, requires_grad):
    from torch.fx.experimental.proxy_tensor import make_fx

    def given(rows):
        z, x = torch.randn(rows, CLASSES, dtype=F64), torch.randn(CLASSES, CLASSES, dtype=F64)
        return z.requires_grad_(requires_grad), torch.randint(CLASSES, (rows,)), x, torch.rand(CLASSES, dtype=F64)

    rows = ROWS
    if tracer == "make_fx":
        traced = make_fx(f)(*given(ROWS))
    else:
        traced, rows = torch.jit.trace(f, given(ROWS), check_trace=False), ROWS + 2
    other = given(rows)
    got, want = traced(*other), f(*other)
    torch.testing.assert_close(got, want, rtol=FLOAT64, atol=FLOAT64)
    if requires_grad:
        gradients = [torch.autograd.grad(value.sum(), other[0]) for value in (got, want)]
        torch.testing.assert_close(*gradients, rtol=FLOAT64, atol=FLOAT64)


@checks_are_not_recorded
def test_a_traced_module_is_saved_with_our_operators(tmp_path):
    z, t = torch.randn(ROWS, CLASSES), torch.tensor([2, 0, 1])
    torch.jit.trace(st.CrossEntropyLoss(), (z, t)).save(tmp_path / "loss.pt")
    loaded = torch.jit.load(tmp_path / "loss.pt")
    assert "softxent::cross_entropy" in str(loaded.inlined_graph)
    assert torch.equal(loaded(z + 1, t), st.cross_entropy(z + 1, t))
    with pytest.raises(RuntimeError, match="must lie in"):
        loaded(z, t + CLASSES)


def test_nested_forward_mode_is_refused_and_not_0():
    """torch gives 0 for functions of autograd in nested forward mode, without an error."""
    z, t, v = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3]), torch.ones(4, 5, dtype=torch.float64)
    inner = lambda z: torch.func.jvp(lambda z: st.cross_entropy(z, t), (z,), (v,))[1]  # noqa: E731
    with pytest.raises(RuntimeError, match=r"softxent\.torch: forward mode must not be nested"):
        torch.func.jvp(inner, (z,), (v,))
    torch.func.grad(lambda z: torch.func.jvp(lambda z: st.cross_entropy(z, t), (z,), (v,))[1])(z)  # forward mode once
