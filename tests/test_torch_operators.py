"""The operators of softxent.torch: derivatives of every order and in every mode, by every argument, compared with the definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from definition_in_torch import of_rows as definition
from tolerances import FEW64, FLOAT64, HIGHER
from torch.autograd import gradcheck, gradgradcheck

from softxent import torch as st
from softxent.call import Call, Static
from softxent.kernels import IGNORED, LARGEST, NO_LABEL
from softxent.torch import operators

F64 = torch.float64
ROWS, CLASSES = 3, 3
CASES = {
    "labels": (torch.tensor([2, IGNORED, NO_LABEL]), None, 1.0, math.inf),
    "a shared truth": (torch.tensor([0, IGNORED, 1]), (CLASSES,), 0.7, math.inf),
    "a truth of each row": (torch.tensor([LARGEST, IGNORED, LARGEST]), (ROWS, CLASSES), 1.0, 1.3),
    "all": (torch.tensor([1, 1, LARGEST]), (ROWS, CLASSES), 0.7, 1.3),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def tensors(case):
    """Return z, y, r, q and off (or None), which require a gradient."""
    torch.manual_seed(0)
    _, shape, _, _ = case
    numbers = [torch.rand(ROWS, dtype=F64).requires_grad_() for _ in range(3)]
    off = None if shape is None else torch.rand(shape, dtype=F64).requires_grad_()
    return torch.randn(ROWS, CLASSES, dtype=F64).requires_grad_(), *numbers, off


def upstream():
    return [torch.randn(ROWS, dtype=F64).requires_grad_() for _ in range(4)]


def given(*arguments):
    return tuple(t for t in arguments if t is not None)


def call_of(z, label, y, r, q, off, *upstream):
    return Call(z, label, 0.0 if off is None else off, 0.0, 0.0, y, r, q, *upstream)


def static(temperature=1.0, cap=math.inf, axis=1):
    return Static(temperature, cap, axis)


@each_case
def test_what_a_row_gives_is_the_definitions(case):
    label, _, *transform = case
    z, y, r, q, off = tensors(case)
    if (label == NO_LABEL).any():
        y = y.detach() * (label != NO_LABEL)
    found = operators.rows(call_of(z, label, y, r, q, off), static(*transform), 5)
    want = definition(z, label, y, r, q, off, *transform)
    wanted = [
        (a, b) if i != 2 else (a[label != NO_LABEL], b[label != NO_LABEL]) for i, (a, b) in enumerate(zip(found[:4], want, strict=True))
    ]
    for a, b in wanted:
        torch.testing.assert_close(a, b, rtol=FEW64, atol=FEW64)
    short = operators.rows(call_of(z, label, y, r, q, off), static(*transform))
    assert torch.equal(short[0], found[0]) and torch.equal(short[1], found[1]) and len(short) == 2
    ups = [torch.randn(ROWS, dtype=F64) * (label != NO_LABEL) for _ in range(4)]
    arguments = given(z, *(t for t in (y, r, q, off) if t is not None and t.requires_grad))
    mine, theirs = (torch.autograd.grad(f[:4], arguments, ups, create_graph=True) for f in (found, want))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=FEW64, atol=FEW64)
    seconds = [torch.autograd.grad(sum((t**2).sum() for t in first), arguments, create_graph=True) for first in (mine, theirs)]
    thirds = [torch.autograd.grad(sum((t**2).sum() for t in second), arguments) for second in seconds]
    for a, b in (*zip(*seconds, strict=True), *zip(*thirds, strict=True)):
        torch.testing.assert_close(a, b, rtol=FEW64, atol=FEW64)


@each_case
def test_rows_have_derivatives_in_every_mode(case):
    label, _, *transform = case
    arguments = tensors(case)

    def f(z, y, r, q, off=None):
        return operators.rows(call_of(z, label, y, r, q, off), static(*transform), 5)[:4]

    if case[1] is None:
        arguments = arguments[:-1]
        label = label.where(label != NO_LABEL, 1)  # the loss of a row whose label is no class is infinite
    assert gradcheck(
        f, arguments, check_forward_ad=True, check_undefined_grad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(f, arguments, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@each_case
def test_the_gradient_has_second_derivatives_by_every_argument(case):
    label, _, *transform = case
    z, y, r, q, off = tensors(case)
    arguments, label = given(z, y, r, q, *upstream(), off), label.where(label != NO_LABEL, 1)

    def f(z, y, r, q, g, l, b, n, off=None):  # noqa: E741
        return operators.gradient(call_of(z, label, y, r, q, off, g, l, b, n), static(*transform))

    assert gradcheck(f, arguments, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, arguments)


@pytest.mark.parametrize("transform", [(1.0, math.inf), (0.7, 1.3)], ids=str)
def test_log_softmax_has_derivatives_in_every_mode(transform):
    z, scale = torch.randn(3, 4, dtype=F64).requires_grad_(), torch.tensor([0.5, -2.0, 1.0], dtype=F64).requires_grad_()

    def f(z, scale):
        return operators.log_softmax(Call(z, y=scale), static(*transform))

    assert gradcheck(f, (z, scale), check_forward_ad=True, check_undefined_grad=True, check_batched_grad=True)
    assert gradgradcheck(f, (z, scale), check_fwd_over_rev=True, check_rev_over_rev=True)


@each_case
def test_the_curvature_is_the_same_by_the_kernel_and_composed(case):
    label, _, *transform = case
    z, y, r, q, off = (t if t is None else t.detach() for t in tensors(case))
    z[0, 1] = -math.inf
    v, ups = torch.randn(ROWS, CLASSES, dtype=F64), [t.detach() for t in upstream()]
    arguments = (call_of(z, label, y, r, q, off, *ups)._replace(v=v), static(*transform))
    for a, b in zip(operators.compute.curvature(*arguments), operators.composed_curvature(*arguments), strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=FEW64, atol=FEW64)
    z[2] = math.nan
    for t in (y, r, q, *ups):
        t[2] = 0
    for found in (operators.compute.curvature(*arguments), operators.composed_curvature(*arguments)):
        assert (found[0][2] == 0).all() and found[0][0].isfinite().all()


@each_case
def test_vmap_over_any_argument_is_a_loop(case):
    label, _, *transform = case
    z, y, r, q, off = (t if t is None else t.detach() for t in tensors(case))
    ups = [t.detach() for t in upstream()]
    arguments = [z, label, y, r, q, off, *ups]

    def gradient(*arguments):
        return operators.gradient(call_of(*arguments), static(*transform))

    def rows(*arguments):
        return operators.rows(call_of(*arguments[:6]), static(*transform), 5)

    def short(*arguments):
        return operators.rows(call_of(*arguments[:6]), static(*transform))[:2]

    for moving in range(len(arguments)):
        if arguments[moving] is None:
            continue
        many = [arguments[moving], arguments[moving].flip(0)]
        for f, dim in itertools.product((gradient, rows, short), (0, -1)):
            in_dims = tuple(dim if i == moving else None for i in range(len(arguments)))
            found = torch.func.vmap(f, in_dims)(*arguments[:moving], torch.stack(many, dim), *arguments[moving + 1 :])
            want = [f(*arguments[:moving], one, *arguments[moving + 1 :]) for one in many]
            want = torch.stack(want) if f is gradient else tuple(map(torch.stack, zip(*want, strict=True)))
            torch.testing.assert_close(found, want, rtol=FEW64, atol=FEW64)


@pytest.mark.parametrize("shape", [(CLASSES,), (2, CLASSES, 2)], ids=str)
def test_vmap_over_a_number_that_is_the_same_for_all_rows_is_a_loop(shape):
    axis = min(1, len(shape) - 1)
    lead = shape[:axis] + shape[axis + 1 :]
    z, label, off = torch.randn(shape, dtype=F64), torch.ones(lead, dtype=torch.int64), torch.rand(CLASSES, dtype=F64)
    numbers = list(torch.rand(7, dtype=F64))  # y, r, q, g, l, b, n
    for moving in range(7):

        def f(x, moving=moving):
            y, r, q, *ups = [x if i == moving else number for i, number in enumerate(numbers)]
            return operators.gradient(call_of(z, label, y, r, q, off, *ups), static(axis=axis))

        many = torch.tensor([0.5, -2.0], dtype=F64)
        torch.testing.assert_close(torch.func.vmap(f)(many), torch.stack([f(x) for x in many]), rtol=FEW64, atol=FEW64)


# ---- what the outputs are, with the options of the public function ----


def test_outputs_do_not_depend_on_weights():
    """A class weight or a sample weight of 0 leaves lse, entropy and log-probability those of the row, and their gradients."""
    z, t = torch.randn(4, 3, dtype=F64).requires_grad_(), torch.tensor([0, 1, 2, -100])
    weight, sample = torch.tensor([0.0, 1.0, 2.0], dtype=F64), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)
    flags = dict.fromkeys(("return_lse", "return_entropy", "return_logprobs", "return_correct", "return_predicted"), True)
    found = []
    for options in ({}, {"weight": weight}, {"sample_weight": sample}, {"weight": weight, "sample_weight": sample, "z_loss": 0.1}):
        outputs = st.cross_entropy(z, t, **options, **flags)[1:]
        found.append((*outputs, *(torch.autograd.grad(a.sum(), z, retain_graph=True)[0] for a in outputs[:3])))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    *_, predicted = found[0][:5]
    assert predicted[3] == -1 and all((a[3] == 0).all() for a in found[0] if a.ndim and a is not predicted)


def test_second_derivatives_of_an_output_without_the_loss_by_what_it_does_not_depend_on():
    """lse depends on no weight or probability; only its second derivative by the logits differs from 0."""
    z, target = torch.randn(2, 3, dtype=F64).requires_grad_(), torch.rand(2, 3, dtype=F64).requires_grad_()
    sample = torch.rand(2, dtype=F64).requires_grad_()
    lse = st.cross_entropy(z, target, sample_weight=sample, z_loss=0.1, return_lse=True).lse
    (dz,) = torch.autograd.grad(lse.sum(), z, create_graph=True)
    by_z, *others = torch.autograd.grad((dz**2).sum(), (z, target, sample), materialize_grads=True)
    (want,) = torch.autograd.grad((z.softmax(1) ** 2).sum(), z)
    torch.testing.assert_close(by_z, want, rtol=FEW64, atol=FEW64)
    assert not any(t.any() for t in others)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_row_without_upstream_gradients_is_not_read(dtype):
    """Its gradient is 0 even if its logits are NaN, for every output."""
    z, t = torch.randn(3, 4, dtype=dtype), torch.tensor([0, 1, 2])
    z[1] = math.nan
    z.requires_grad_()
    up = torch.tensor([1.0, 0.0, 2.0], dtype=dtype)
    result = st.cross_entropy(z, t, reduction="none", return_lse=True, return_entropy=True, return_logprobs=True)
    for output in result[:4]:
        (dz,) = torch.autograd.grad(output, z, up, retain_graph=True)
        assert (dz[1] == 0).all() and dz[0].isfinite().all() and (dz[2] != 0).any()


@pytest.mark.parametrize("case", [CASES["a shared truth"], CASES["all"]], ids=["a shared truth", "all"])
def test_float32_has_the_derivatives_of_float64(case):
    """In both, what a row gives is float64, and so are its tangents."""
    label, _, *transform = case
    jvp, grad = torch.func.jvp, torch.func.grad

    def results(dtype):
        z, y, r, q, off = (t.detach() for t in tensors(case))
        v, w, u = (torch.randn_like(t) for t in (z, y, off))
        z, off, v, u = (t.to(dtype) for t in (z, off, v, u))

        def rows(z, y, off):
            return operators.rows(call_of(z, label, y, r, q, off), static(*transform), 5)[:4]

        def total(z, y, off):
            return sum(a * t.sum() for a, t in zip((0.5, 2.0, -1.5, 3.0), rows(z, y, off), strict=True))

        def scaled(z, y):
            return operators.log_softmax(Call(z, y=y), static(*transform))

        by_each = grad(total, (0, 1, 2))(z, y, off)
        again = grad(lambda *given: sum(g.square().sum() for g in grad(total, (0, 2))(*given)), (0, 1, 2))(z, y, off)
        by_scale = grad(lambda z, y: scaled(z, y).square().sum(), (0, 1))(z, y)
        tangents = [jvp(lambda z: rows(z, y, off), (z,), (v,))[1], jvp(lambda y: rows(z, y, off), (y,), (w,))[1]]
        tangents.append(jvp(lambda off: rows(z, y, off), (off,), (u,))[1])
        assert all(t.dtype == F64 for each in tangents for t in each)
        forward_over_reverse = jvp(lambda z: grad(total)(z, y, off), (z,), (v,))[1]
        of_log_softmax = jvp(scaled, (z, y), (v, w))[1]
        return *by_each, *again, *by_scale, *(t for each in tangents for t in each), forward_over_reverse, of_log_softmax

    for got, want in zip(results(torch.float32), results(F64), strict=True):
        # float32: third derivatives subtract terms of 100 times their size
        torch.testing.assert_close(got.to(F64), want, rtol=2e-4, atol=2e-5)


@each_case
def test_tangents_are_those_of_the_definition(case):
    label, _, *transform = case
    z, *numbers = (None if t is None else t.detach() for t in tensors(case))
    v = torch.randn_like(z)
    found = torch.func.jvp(lambda z: operators.rows(call_of(z, label, *numbers), static(*transform), 5)[:4], (z,), (v,))[1]
    want = torch.func.jvp(lambda z: definition(z, label, *numbers, *transform), (z,), (v,))[1]
    for k in (0, 1, 3) if (label == NO_LABEL).any() else range(4):
        torch.testing.assert_close(found[k][label != NO_LABEL], want[k][label != NO_LABEL], rtol=HIGHER, atol=FLOAT64)


@pytest.mark.parametrize("axis", range(4))
def test_logits_of_any_axes_are_read_and_their_gradient_written_in_place(axis):
    z, out = torch.randn(2, 3, 4, 5).transpose(1, 2), torch.empty(2, 4, 3, 5)
    ((i, read, off, written),) = operators.compute.row_chunks(axis, z, None, out=out)
    assert (i, off) == (slice(0, 120 // z.shape[axis]), None) and read.shape == written.shape == z.movedim(axis, -1).shape
    assert read.data_ptr() == z.data_ptr() and written.data_ptr() == out.data_ptr()


def test_labels_of_any_type_are_int64_for_a_compiler_too():
    with torch._subclasses.FakeTensorMode():
        assert operators.labels_operator("f", torch.zeros(3, dtype=torch.int32), 4, -100).dtype == torch.int64
