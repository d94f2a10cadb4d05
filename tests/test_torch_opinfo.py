"""softxent.torch with PyTorch's own sample inputs (OpInfo and ModuleInfo) of the loss, log_softmax and logsumexp.

PyTorch lists no invalid inputs for cross_entropy, so this file has its own.
"""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from tolerances import FEW64, FLOAT32
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from softxent import torch as st

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# the least number of samples; fewer would mean that PyTorch's lists were not read correctly
AT_LEAST = {"nn.functional.cross_entropy": 20, "logsumexp": 7, "log_softmax": 5}
(INFO,) = (m for m in module_db if m.name == "nn.CrossEntropyLoss")
NAMES = list(AT_LEAST)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def leaf(a):
    """Return the tensor of a sample as a leaf, without the operations from which PyTorch computed it."""
    return a.detach().clone().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a


def samples(name, dtype=torch.float64):
    """Yield (input, args, kwargs) of every sample and reference input for one axis that is not empty."""
    (op,) = (op for op in op_db if op.name == name and not op.variant_test_name)
    found = []
    for s in (*op.sample_inputs("cpu", dtype), *(op.reference_inputs("cpu", dtype) if op.reference_inputs_func else ())):
        args = tuple(leaf(a) for a in s.args)
        if name != "nn.functional.cross_entropy":
            dim, *rest = args
            if s.input.ndim == 0 or (isinstance(dim, tuple) and len(dim) != 1):
                continue
            args = (dim[0] if isinstance(dim, tuple) else dim, *rest)
            if not s.input.shape[args[0]]:
                continue  # see test_an_axis_without_classes_is_torchs
        kwargs = {k: leaf(a) for k, a in s.kwargs.items()}
        if "weight" in kwargs and not args[0].is_floating_point():
            kwargs["weight"] = kwargs["weight"].detach()  # with class indices, torch has no derivative with respect to the weight
        found.append((leaf(s.input), args, kwargs))
    assert len(found) >= AT_LEAST[name]
    return found


def functions(name):
    return {
        "nn.functional.cross_entropy": (st.cross_entropy, F.cross_entropy),
        "logsumexp": (st.logsumexp, torch.logsumexp),
        "log_softmax": (st.log_softmax, torch.log_softmax),
    }[name]


def leaves(input, args, kwargs):
    return [a for a in (input, *args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.requires_grad]


def widened(value):
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().double().requires_grad_(value.requires_grad) if floats else value


def with_gradients(f, input, args, kwargs):
    result = f(input, *args, **kwargs)
    up = ((torch.arange(result.numel()) % 7 - 2.5) / 2).to(result.dtype).reshape(result.shape)  # exact in every dtype
    return result, *torch.autograd.grad(result, leaves(input, args, kwargs), up)


def near(mine, want, dtype, parts=1):
    """Compare within the rounding of the result and of the compute type. The parts of a sum are rounded before they may cancel."""
    assert mine.shape == want.shape and mine.dtype == dtype
    info, largest = torch.finfo(dtype), want.nan_to_num().abs().max().item() if want.numel() else 0.0
    slack = 2**-44 * largest if dtype == torch.float64 else max(2 * info.smallest_normal * info.eps, 2**-20 * largest)
    slack = max(slack, (parts - 1) * info.eps / 2 * largest)
    torch.testing.assert_close(mine.double(), want.double(), rtol=2 * info.eps, atol=slack, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_torchs_in_float64(name, dtype):
    mine, theirs = functions(name)
    for input, args, kwargs in samples(name, dtype):
        found = with_gradients(mine, input, args, kwargs)
        want = with_gradients(theirs, widened(input), tuple(map(widened, args)), {k: widened(a) for k, a in kwargs.items()})
        assert len(found) == len(want) >= 2
        for a, b in zip(found, want, strict=True):
            near(a, b, dtype, parts=3 if name == "log_softmax" else 1)


def as_functions(name, small=40):
    """Yield each small sample as a function of the arguments that can be differentiated."""
    f, _ = functions(name)
    for input, args, kwargs in samples(name):
        if not 0 < input.numel() <= small:
            continue
        given = leaves(input, args, kwargs)

        def call(*new, input=input, args=args, kwargs=kwargs, given=given):
            swap = {id(old): x for old, x in zip(given, new, strict=True)}
            return f(swap.get(id(input), input), *(swap.get(id(a), a) for a in args), **{k: swap.get(id(a), a) for k, a in kwargs.items()})

        yield call, tuple(given)


@pytest.mark.parametrize("name", NAMES)
def test_first_derivatives_are_those_of_the_values(name):
    checked = 0
    for call, given in as_functions(name):
        torch.autograd.gradcheck(call, given, check_forward_ad=True, check_batched_grad=True)
        checked += 1
    assert checked >= AT_LEAST[name] - 1


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_those_of_the_first(name):
    checked = 0
    for call, given in as_functions(name, small=12):
        torch.autograd.gradgradcheck(call, given, check_fwd_over_rev=True, check_rev_over_rev=True)
        checked += 1
    assert checked >= {"nn.functional.cross_entropy": 15, "logsumexp": 0, "log_softmax": 1}[name]


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_a_loop(name):
    f, _ = functions(name)
    for input, args, kwargs in samples(name):
        many = torch.stack([input.detach() + shift for shift in (0.0, 0.5, -1.0)])

        def each(z, args=args, kwargs=kwargs):
            return f(z, *args, **kwargs)

        def gradient(z, each=each):
            return torch.func.grad(lambda z: (each(z) ** 2).sum())(z)

        for g in (each, gradient):
            torch.testing.assert_close(torch.func.vmap(g)(many), torch.stack([g(z) for z in many]), rtol=FEW64, atol=FEW64)


def test_a_first_backward_may_be_a_batch():
    """gradcheck only tests batches after a first backward pass, when the gradient from the forward pass is no longer used."""
    for input, args, kwargs in samples("nn.functional.cross_entropy"):
        found = []
        for f in functions("nn.functional.cross_entropy"):
            loss = f(input, *args, **kwargs)
            up = torch.stack([torch.full_like(loss, k) for k in (1.0, -2.0, 0.0)])
            found.append(torch.autograd.grad(loss, input, up, is_grads_batched=True)[0])
        torch.testing.assert_close(*found, rtol=FEW64, atol=FEW64)


def test_vmap_over_targets_is_a_loop():
    for z, (target, *_), kwargs in samples("nn.functional.cross_entropy"):
        zs, targets = torch.stack([z, z + 1]).detach(), torch.stack([target, target.flip(-1)]).detach()
        found = torch.func.vmap(lambda z, t, kwargs=kwargs: st.cross_entropy(z, t, **kwargs))(zs, targets)
        want = torch.stack([st.cross_entropy(a, b, **kwargs) for a, b in zip(zs, targets, strict=True)])
        torch.testing.assert_close(found, want, rtol=FEW64, atol=FEW64)


def compiled_alike(f, compiled, sample):
    for a, b in zip(with_gradients(compiled, *sample), with_gradients(f, *sample), strict=True):
        torch.testing.assert_close(a, b, rtol=FEW64, atol=FEW64)


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "chosen"), [("nn.functional.cross_entropy", (0, 1, 4, 14, 20)), ("logsumexp", (1,)), ("log_softmax", (2,))]
)
def test_samples_compile_in_one_piece(name, chosen, dynamo):
    f, _ = functions(name)
    for i in chosen:
        compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True)
        compiled_alike(f, compiled, samples(name)[i])


def test_a_sample_compiles_with_inductor(dynamo):
    sample = samples("nn.functional.cross_entropy")[14]
    assert "weight" in sample[2]
    compiled_alike(st.cross_entropy, torch.compile(st.cross_entropy, fullgraph=True), sample)


Z, T, U = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0]), torch.full((6, 5), 0.2)
REFUSED = {
    "labels of too few rows": (Z, T[:3], {}),
    "labels of two axes": (Z, T[:, None], {}),
    "labels for a row": (Z[0], T, {}),
    "labels for columns of another length": (Z[:, :, None].expand(6, 5, 3), T[:, None].expand(6, 4), {}),
    "probabilities of another shape": (Z, U[:, :4], {}),
    "probabilities without classes": (Z, U[:, 0], {}),
    "boolean labels": (Z, T > 0, {}),
    "a label past the last class": (Z, T + 1, {}),
    "a negative label": (Z, T - 1, {}),
    "weights of too few classes": (Z, T, {"weight": torch.ones(4)}),
    "weights of two axes": (Z, T, {"weight": torch.ones(1, 5)}),
    "an unknown reduction": (Z, T, {"reduction": "avg"}),
    "smoothing above 1": (Z, T, {"label_smoothing": 1.5}),
    "integers as logits": (Z.long(), T, {}),
    "complex logits": (Z.to(torch.complex64), T, {}),
    "complex probabilities": (Z, U.to(torch.complex64), {}),
    "a scalar": (Z[0, 0], T[0], {}),
    "a list as labels": (Z, T.tolist(), {}),
    "an array as logits": (Z.numpy(), T, {}),
    "ignore_index as a string": (Z, T, {"ignore_index": "1"}),
    "labels with an ignore_index of another kind": (Z, T, {"ignore_index": 1.5}),
}


def test_a_string_is_no_number():
    with pytest.raises(TypeError, match=r"^cross_entropy: label_smoothing"):
        st.cross_entropy(Z, T, label_smoothing="0.1")


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
@pytest.mark.parametrize(("input", "target", "options"), REFUSED.values(), ids=REFUSED)
def test_what_torch_refuses_is_refused_by_name(input, target, options):
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
        F.cross_entropy(input, target, **options)
    with pytest.raises((ValueError, TypeError), match=r"^cross_entropy: "):
        st.cross_entropy(input, target, **options)


def test_what_is_not_one_axis_is_refused_by_name():
    for f in (st.logsumexp, st.log_softmax):
        for z, dim in ((Z[0, 0], 0), (Z, 2), (Z, -3), (Z, (0, 1)), (Z, None)):
            with pytest.raises((ValueError, TypeError), match=f"^{f.__name__}: "):
                f(z, dim)


@pytest.mark.parametrize("shape", [(5, 0), (0, 0), (5, 0, 2)], ids=str)
@pytest.mark.parametrize("name", ["logsumexp", "log_softmax"])
def test_an_axis_without_classes_is_torchs(name, shape):
    mine, theirs = functions(name)
    near(mine(torch.ones(shape), 1), theirs(torch.ones(shape), 1), torch.float32)


def module_samples(dtype=torch.float64):
    found = INFO.module_inputs_func(INFO, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert len(found) >= 100
    return found


def test_the_constructor_is_torchs():
    mine, theirs = (list(inspect.signature(c.__init__).parameters.values()) for c in (st.CrossEntropyLoss, torch.nn.CrossEntropyLoss))
    assert [(p.name, p.default, p.kind) for p in mine[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert all(p.kind == p.KEYWORD_ONLY for p in mine[len(theirs) :])
    assert repr(st.CrossEntropyLoss(torch.ones(3))) == repr(torch.nn.CrossEntropyLoss(torch.ones(3)))


@pytest.mark.parametrize("dtype", INFO.dtypes, ids=str)
def test_the_module_gives_what_torchs_gives(dtype):
    for s in module_samples(dtype):
        mine, theirs = (
            c(*s.constructor_input.args, **s.constructor_input.kwargs) for c in (st.CrossEntropyLoss, torch.nn.CrossEntropyLoss)
        )
        for name in ("reduction", "ignore_index", "label_smoothing"):
            assert getattr(mine, name) == getattr(theirs, name)
        z, target = (leaf(a) for a in s.forward_input.args)
        wide = [widened(a) for a in (z, target)]
        found = with_gradients(mine, z, (target,), {})
        for a, b in zip(found, with_gradients(theirs.double(), wide[0], (wide[1],), {}), strict=True):
            near(a, b, dtype)
        if dtype == torch.float64:
            near(found[0].detach(), s.reference_fn(mine, z, target).detach(), dtype)


def test_the_modules_state_is_torchs_and_travels():
    weighted = 0
    for s in module_samples():
        mine, theirs = (
            c(*s.constructor_input.args, **s.constructor_input.kwargs) for c in (st.CrossEntropyLoss, torch.nn.CrossEntropyLoss)
        )
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        args = [a.detach() for a in s.forward_input.args]
        want = mine(*args)
        for other in (pickle.loads(pickle.dumps(mine)), copy.deepcopy(mine)):
            assert (torch.equal(other(*args), want) and other.weight is not mine.weight) or mine.weight is None
        if mine.weight is None:
            continue
        weighted += 1
        blank = st.CrossEntropyLoss(torch.zeros(3, dtype=torch.float64), reduction=mine.reduction)
        blank.load_state_dict(theirs.state_dict())
        assert torch.equal(blank(*args), want)
        theirs.load_state_dict(mine.state_dict())
        narrow = copy.deepcopy(mine).to(torch.float32)
        assert narrow.weight.dtype == torch.float32 and mine.weight.dtype == torch.float64
        z, target = args[0].float(), args[1].float() if args[1].is_floating_point() else args[1]
        torch.testing.assert_close(narrow(z, target).double(), want, rtol=3 * FLOAT32, atol=3 * FLOAT32)
    assert weighted >= 20


def test_the_module_keeps_options_that_torch_does_not_have():
    z = torch.randn(6, 5)
    m = pickle.loads(pickle.dumps(st.CrossEntropyLoss(z_loss=0.1, softcap=5.0, temperature=2.0, return_lse=True)))
    found, want = m(z, T), st.cross_entropy(z, T, z_loss=0.1, softcap=5.0, temperature=2.0, return_lse=True)
    assert torch.equal(found.loss, want.loss) and torch.equal(found.lse, want.lse)


LISTING = INFO.module_error_inputs_func or (lambda *_, **__: [])
LISTED = LISTING(INFO, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
lists_errors = pytest.mark.skipif(not INFO.module_error_inputs_func, reason="this version of torch lists no errors of the module")


@lists_errors
@pytest.mark.parametrize("listed", LISTED, ids=lambda e: e.error_regex[:30])
def test_what_torch_lists_as_errors_of_the_module_is_refused_by_name(listed):
    s = listed.module_error_input
    module = st.CrossEntropyLoss(*s.constructor_input.args, **s.constructor_input.kwargs)
    with pytest.raises((ValueError, TypeError), match=r"^cross_entropy: "):
        module(*s.forward_input.args)


@lists_errors
def test_there_are_errors_listed():
    assert len(LISTED) >= 5
