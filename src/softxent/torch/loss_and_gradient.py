"""The loss of logits that are given as a tensor, with its gradient computed in the forward pass.

`result` has a function of autograd for plain tensors, `CrossEntropy`: it calls the kernel once, and keeps what it found for the backward
pass. `reduced` has the same for compilers, tracers and the transforms of torch.func, of a mean or sum alone: an operator of torch.library
that returns the loss and its gradient, and the functions of autograd `ReducedLoss` and `LossGradient`. What is differentiated again comes
from operators.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .. import derivatives, kernels
from ..call import UPSTREAM, Call, Static
from ..contract import fail
from ..shared import SMALL_CALL
from . import arguments, compute, cpu, distributed, modes, operators, private

FN = "cross_entropy"
FORWARD, BACKWARD, FUSED = (compute.OPS.get(name, -1) for name in ("forward", "backward", "fused"))
NOTHING: tuple[Any, ...] = ()
ONLY_LOSS = (False,) * 5  # the outputs that are wanted beside the loss, in the order of compute.OUTPUTS


class Result(NamedTuple):
    """What `cross_entropy` and `linear_cross_entropy` return if a `return_` option is set. A field that was not requested is None."""

    loss: Tensor
    lse: Tensor | None = None
    entropy: Tensor | None = None
    logprobs: Tensor | None = None
    correct: Tensor | None = None
    predicted: Tensor | None = None


class Given(NamedTuple):
    """The arguments of `cross_entropy`, except for the logits, for `CrossEntropy`."""

    target: Tensor
    weight: Tensor | None
    sample: Tensor | None
    settled: arguments.Settled
    wanted: tuple[bool, ...]  # as ONLY_LOSS
    dtype: torch.dtype  # of the loss
    divisor: Tensor | None = None  # if these are the rows of one of several processes, what the sum is divided by


# What is computed in the forward pass: the loss and, if they are wanted, lse, log-probability and entropy; the number of correct rows, and
# the most probable classes; the gradient of a reduced loss; and the partial sums of the rows [7, N], if there are such outputs, for the
# backward pass.
Found = tuple[Sequence[Tensor | None], Any, Tensor | None, Tensor | None]


def result(input: Tensor, given: Given, known: tuple[Call, Any] | None = None) -> Any:
    """Return what `cross_entropy` returns, with the function of autograd if there is something to differentiate."""
    found = _computed(input, given, _with_gradient(input) and not given.settled.losses, known)
    outputs: Any = found[0]
    if input.requires_grad and torch.is_grad_enabled():
        outputs = _differentiable(input, found, given)
        if given.wanted is ONLY_LOSS:
            return outputs
    if given.wanted is ONLY_LOSS:
        return outputs[0]
    loss, lse, logprobs, entropy = outputs
    correct, predicted = found[1]
    correct = torch.scalar_tensor(correct, dtype=torch.int64, device="cpu") if given.wanted[3] else None
    return Result(loss, lse, entropy, logprobs, correct, predicted)


def _computed(input: Tensor, given: Given, with_gradient: bool, known: tuple[Call, Any] | None = None) -> Found:
    """Return the loss and, computed in the same pass, its gradient. `known` is what `_truth_of` gives, if anything."""
    target, weight, sample, settled, wanted, dtype, _ = given
    axis, _, transform, mean, losses, numbers, _ = settled
    if numbers is None:
        return _computed_by_tensors(input, given, with_gradient, *(known or _truth_of(input, given)))
    label, ignored, y, r, q, off, total = arguments.truth_of_constants(FN, input, target, weight, sample, settled)
    g = 1.0 if not mean else 1 / total if total else 0.0
    threads, result = 1 if input.numel() < SMALL_CALL else cpu.threads(), NOTHING
    dz = parts = None
    if losses or wanted is not ONLY_LOSS:
        lead, wide = input.shape[:axis] + input.shape[axis + 1 :], torch.float32 if input.dtype == torch.float32 else torch.float64
        each = zip((losses, *wanted), (*[wide] * len(wanted), torch.float64), strict=True)  # float64 holds every index of a class
        outputs = [torch.empty(lead, dtype=dtype, device="cpu") if want else None for want, dtype in each]
        result = tuple(None if t is None else cpu.record(t) for t in outputs)
    if losses or (result and any(wanted[:3])):
        if any(wanted[:3]) and input.numel() >= SMALL_CALL and input.requires_grad and torch.is_grad_enabled():
            parts = compute.new((7, input.numel() // input.shape[axis]), input)
    elif with_gradient:
        dz = cpu.like(input)
    of_dz, of_parts = None if dz is None else cpu.record(dz), None if parts is None else cpu.record(parts)
    loss, correct = kernels.cpu.call(
        FORWARD if dz is None else FUSED, cpu.record(input), axis, label, (y, r, q, g), off, transform, of_dz, result, of_parts, threads,
        ignored=ignored,
    )  # fmt: skip
    if not losses:
        if mean:
            loss = compute.divided(loss, total)
        reduced = compute.scalar(loss, dtype)
        if not result:
            return (reduced, None, None, None), (correct, None), dz, parts
    found, predicted = [t if t is None else t.to(dtype) for t in outputs[:4]], outputs[-1]
    predicted = predicted if predicted is None else predicted.long()
    return found if losses else [reduced, *found[1:]], (correct, predicted), dz, parts


def _computed_by_tensors(input: Tensor, given: Given, with_gradient: bool, call: Call, total: Tensor | None) -> Found:
    axis, options, transform, *_ = given.settled
    losses = compute.new(compute.shape_of_rows(input, axis)[0], input)
    dz = cpu.like(input) if with_gradient else None
    g = 1.0 if total is None else torch.where(total == 0, 0.0, 1 / total)
    compute.computed(call._replace(g=g), Static(*transform, axis), (losses,), dz)
    return (arguments.reduced(losses, options.reduction, total, given.dtype),), (0, None), dz, None


def _truth_of(input: Tensor, given: Given) -> tuple[Call, Tensor | None]:
    """Return the call of the rows, and what the sum of their losses is divided by."""
    axis, options, *_ = given.settled
    call, total, _ = arguments.truth_of(FN, input, given.target, given.weight, given.sample, axis, options)
    return call, total if given.divisor is None else given.divisor


def _with_gradient(input: Tensor) -> bool:
    """Whether the gradient of a reduced loss is computed in the forward pass.

    That of float16 is not, because an upstream gradient, which a loss scaler makes large, could not bring back what is rounded to 0.
    """
    return input.requires_grad and torch.is_grad_enabled() and input.dtype != torch.float16


class CrossEntropy(Function):
    """(logits, what was computed of them, the other arguments) -> loss, lse, log-probability, entropy; None if one was not wanted.

    The first backward pass returns the gradient of the forward pass, if there is one; another computes it again.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, found: Found, given: Given) -> Any:
        ctx.save_for_backward(input, given[0], given[1], given[2], found[2], found[3])
        ctx.given, ctx.unused = given[3:], [True]
        ctx.of_weights = None if given[1] is given[2] is None else [t if t is None else t.shape for t in given[1:3]]
        ctx.set_materialize_grads(False)
        return found[0][0] if given.wanted is ONLY_LOSS else tuple(found[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        input, target, weight, sample, dz, parts = ctx.saved_tensors
        g, batched, once = grads[0], modes.batched_by_autograd(*grads), not torch.is_grad_enabled()
        if dz is not None and g is not None and not batched:
            first = modes.first_backward(ctx)
            if not (first and once):
                _unchanged(ctx.of_weights, input, target, weight, sample)
            if not once:
                known = Known(ctx.given[0], ctx.given[3], True, *([dz.data] if first else []))
                return loss_gradient(input, target, weight, sample, g, known), None, None
            dz = dz if first else _computed(input, Given(target, weight, sample, *ctx.given), True)[2]
            assert dz is not None
            return compute.scaled(dz.data, g.detach()), None, None  # an in-place change of the result is not one of the saved dz
        given = Given(target, weight, sample, *ctx.given)
        _unchanged(ctx.of_weights, input, target, weight, sample)
        axis, _, transform, mean, _, numbers, _ = given.settled
        if once and not batched and numbers is not None:
            label, ignored, y, r, q, off, weights = arguments.truth_of_constants(FN, input, target, weight, sample, given.settled)
            dz = cpu.like(input)
            of_loss: Any = (g.item() / weights if weights else 0.0) if g is not None and mean else g
            of_rows = (y, r, q, *map(cpu.given, (of_loss, *grads[1:])))
            kernels.cpu.call(
                FUSED if parts is None else BACKWARD, cpu.record(input), axis, label, of_rows, off, transform,
                cpu.record(dz), (), None if parts is None else cpu.record(parts), cpu.threads(), ignored=ignored,
            )  # fmt: skip
            return dz, None, None
        return _gradient(input, given, *grads), None, None


def _gradient(input: Tensor, given: Given, *grads: Tensor | None) -> Tensor:
    """Return the gradient of the outputs by the logits, to be differentiated again."""
    gradient: Callable[..., Tensor] = operators.multiplied_gradient if modes.batched_by_autograd(*grads) else operators.gradient
    return gradient(_upstream(input, given, *grads), _static(given))


def _upstream(input: Tensor, given: Given, *grads: Tensor | None) -> Call:
    """Return the call of the rows, with the upstream gradients of what they give."""
    call, total = _truth_of(input, given)
    up = {name: t.double() for name, t in zip(UPSTREAM, grads, strict=False) if t is not None}
    if "g" in up and total is not None:
        up["g"] = torch.where(total == 0, 0.0, up["g"] / total)
    return call._replace(**up)


def _static(given: Given) -> Static:
    return Static(*given.settled.transform, given.settled.axis)


def _unchanged(of_weights: list[torch.Size | None] | None, input: Tensor, target: Tensor, *weights: Tensor | None) -> None:
    """Raise an error if a tensor that was saved has lost its memory since then, or its shape, where broadcasting would hide it."""
    compute.need_memory(input, target, *weights)
    for name, t, shape in zip(("weight", "sample_weight"), weights, of_weights or (None, None), strict=True):
        if t is not None and t.shape != shape:
            fail(FN, name, f"keep its shape {tuple(shape or ())} until the backward pass", tuple(t.shape), RuntimeError)


_differentiable: Callable[..., tuple[Tensor | None, ...]] = super(
    Function, CrossEntropy
).apply  # of the tensors of torch.func, which Function.apply looks for, there are none


# ---- a reduced loss for compilers, tracers and the transforms of torch.func ----


def are_constant(input: Tensor, target: Tensor, *weights: Tensor) -> bool:
    """Whether no derivative by the target and the weights may be wanted, and the gradient of the logits may be computed beforehand."""
    if input.dtype == torch.float16 or distributed.is_dtensor(*weights):
        return False
    others = (target, *weights) if target.is_floating_point() else weights
    if torch.compiler.is_compiling():
        return not modes.transforms() and not any(t.requires_grad for t in others)
    return not modes.differentiated(*others) and not any(map(private.is_wrapped, others))


def reduced(input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, *options: Any) -> Tensor:
    """Return the mean or sum of the losses."""
    tensors, with_gradient = (input, target, weight, sample), _with_gradient(input)
    if modes.by_operator(input):
        loss = reduced_loss_operator(*tensors, *options, with_gradient)[0]
    else:
        loss = modes.applied(ReducedLoss, *tensors, Known(arguments.settled(FN, *tensors, *options), None, with_gradient))
    found: Tensor = loss.to(arguments.result_dtype(input))
    return found


def _reduced_loss(input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    """Return the loss in float64, and its gradient or an empty tensor; `others` are the options and whether the gradient is wanted."""
    *options, with_gradient = others
    known = Known(arguments.settled(FN, input, target, weight, sample, *options), None, with_gradient)
    (loss, *_), _, dz, _ = _computed(input, known.given(input, target, weight, sample), with_gradient)
    assert loss is not None
    return loss, input.new_empty(0) if dz is None else dz


class Known:
    """What is known of a call of `ReducedLoss`: how the losses are reduced, and the gradient, which the first backward pass overwrites."""

    def __init__(self, settled: arguments.Settled, divisor: Tensor | None, wanted: bool = False, *gradients: Tensor) -> None:
        self.settled, self.divisor, self.wanted, self.gradients = settled, divisor, wanted, list(gradients)

    def given(self, *tensors: Any) -> Given:
        """Return the arguments, of which the first are logits, target, weight and sample_weight."""
        settled = self.settled
        if settled.numbers is not None and not compute.direct(*(t for t in tensors[:4] if t is not None)):
            settled = settled._replace(numbers=None)
        _, target, weight, sample, *_ = tensors
        return Given(target, weight, sample, settled, ONLY_LOSS, torch.float64, self.divisor)

    def taken(self) -> Tensor | None:
        """Return the gradient, once. Of several threads, only one gets it."""
        try:
            return self.gradients.pop()
        except IndexError:
            return None

    def recorded(self, tensors: Sequence[Any], with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Compute the loss and its gradient by the operator that a tracer records."""
        *options, cap = self.settled.options
        found: tuple[Tensor, Tensor] = reduced_loss_operator(*tensors, *options, None if cap == math.inf else cap, with_gradient)
        return found


class ReducedLoss(Function):
    """(logits, target, weight, sample_weight, `Known`) -> the loss in float64."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        *tensors, known = arguments
        if modes.traced():
            return known.recorded(tensors, False)[0]
        (loss, *_), _, dz, _ = _computed(tensors[0], known.given(*tensors), known.wanted)
        if dz is not None:
            known.gradients.append(dz)
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.known = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        found = None if g is None else modes.of_batches(loss_gradient, *compute.saved(ctx), g, ctx.known)
        return found, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, v: Tensor, *_: Any) -> Any:
        return _loss_along(compute.saved(ctx), v, ctx.known)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        *tensors, known = arguments
        return torch.func.vmap(lambda *each: _loss_along(each, None, known)[0], in_dims[:4])(*tensors), 0


class LossGradient(Function):
    """(logits, target, weight, sample_weight, upstream gradient, `Known`) -> the gradient of `ReducedLoss`."""

    setup_context = ReducedLoss.setup_context

    @staticmethod
    def forward(*arguments: Any) -> Any:
        *tensors, g, known = arguments
        if modes.traced():
            return _multiplied(known.recorded(tensors, True)[1], g)
        dz = known.taken()
        if dz is None:
            dz = _computed(tensors[0], known.given(*tensors), True)[2]
        return compute.scaled(dz, g)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> Any:
        dz = dg = None
        if v is not None and ctx.needs_input_grad[0]:
            dz = _hessian_product(compute.saved(ctx), v, ctx.known)
        if v is not None and ctx.needs_input_grad[4]:
            dg = _loss_along(compute.saved(ctx), v, ctx.known)[1]
        return dz, None, None, None, dg, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *tensors, g = compute.saved(ctx)
        v, dg, total = tangents[0], tangents[4], torch.zeros_like(tensors[0])
        if v is not None:
            total = total + _hessian_product((*tensors, g), v, ctx.known)
        if dg is not None:
            total = total + modes.of_batches(loss_gradient, *tensors, dg, Known(ctx.known.settled, ctx.known.divisor))
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        def each(*tensors: Any) -> Tensor:
            return _gradient(tensors[0], known.given(*tensors), tensors[4])

        *tensors, known = arguments
        return torch.func.vmap(each, in_dims[:5])(*tensors), 0


def loss_gradient(input: Tensor, *others: Any) -> Tensor:
    """Return the gradient of a reduced loss, multiplied by the upstream gradient."""
    found: Tensor = modes.applied(LossGradient, input, *others)
    return found


def _loss_along(tensors: Sequence[Any], v: Tensor | None, known: Known) -> tuple[Tensor, Any]:
    """Return the loss and its derivative along v, by operators.py."""
    input, given = tensors[0], known.given(*tensors)
    reduction, (call, total) = given.settled.options.reduction, _truth_of(input, given)
    losses, lse, *_ = operators.rows(call, _static(given))
    loss = arguments.reduced(losses, reduction, total, torch.float64)
    if v is None:
        return loss, None
    mean, at_label, by_off = operators.curvature(call._replace(v=v), _static(given))[1:4]
    along = derivatives.loss_along(call, lse, mean, at_label, by_off, operators.times)
    return loss, arguments.reduced(along, reduction, total, torch.float64)


def _hessian_product(tensors: Sequence[Any], v: Tensor, known: Known) -> Tensor:
    """Return the derivative of `loss_gradient` along v."""
    input, given = tensors[0], known.given(*tensors)
    return operators.curvature(_upstream(input, given, tensors[4])._replace(v=v), _static(given))[0]


def _multiplied(dz: Tensor, g: Tensor) -> Tensor:
    return torch.where(dz == 0, dz, (dz * g).to(dz.dtype))  # in a row that is ignored, dz is 0 even if g is not finite


reduced_loss_operator = torch.library.custom_op(
    "softxent::cross_entropy", _reduced_loss, mutates_args=(),
    schema="(Tensor input, Tensor target, Tensor? weight, Tensor? sample, int ignore_index, str reduction, float label_smoothing, "
    "float z_loss, float temperature, float? softcap, bool with_gradient) -> (Tensor, Tensor)",
)  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.options = inputs[4:]


def _backward(ctx: Any, g: Tensor, _: Tensor) -> Any:
    *tensors, dz = compute.saved(ctx)
    *options, with_gradient = ctx.options
    if with_gradient and not torch.is_grad_enabled():
        found = _multiplied(dz, g)
    else:
        settled = arguments.checked(min(1, tensors[0].ndim - 1), arguments.options(FN, *options))
        found = _gradient(tensors[0], Known(settled, None).given(*tensors), g)
    return found, *[None] * 10


reduced_loss_operator.register_autograd(_backward, setup_context=_save)


@reduced_loss_operator.register_fake
def _(input: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return input.new_empty((), dtype=torch.float64), torch.empty_like(input) if others[-1] else input.new_empty(0)
