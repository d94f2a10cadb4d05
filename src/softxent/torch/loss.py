"""The public functions for logits that are given as a tensor: `cross_entropy`, `CrossEntropyLoss`, `log_softmax` and `logsumexp`.

arguments.py checks their arguments and turns the options into numbers; operators.py has what is computed from them, with its derivatives. A
loss alone, in eager mode, has a function of autograd of its own here, `CrossEntropy`: its gradient is computed in the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module

from .. import kernels
from ..contract import fail, renamed, shown
from ..shared import SMALL_CALL
from . import arguments, compute, cpu, distributed, operators
from .arguments import FLOATS, plain, tensor
from .operators import no_labels
from .sharded_operators import sharded_log_softmax, sharded_rows

FN = "cross_entropy"
FORWARD, BACKWARD, FUSED = (compute.OPS.get(name, -1) for name in ("forward", "backward", "fused"))
NOTHING: tuple[Any, ...] = ()
ONLY_LOSS = (False,) * 4  # the outputs that are wanted: lse, log-probability, entropy, correct


class Result(NamedTuple):
    """What `cross_entropy` and `linear_cross_entropy` return if a `return_` option is set. A field that was not requested is None."""

    loss: Tensor
    lse: Tensor | None = None
    entropy: Tensor | None = None
    logprobs: Tensor | None = None
    correct: Tensor | None = None


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_logprobs: bool = False,
    return_correct: bool = False,
    check: bool = False,
    group: Any = None,
    first_class: int | None = None,
    class_weight: None = None,
) -> Any:
    """Compute the softmax cross-entropy of logits and labels; replaces `torch.nn.functional.cross_entropy`.

    The loss of a row is `- sum_k y_k log softmax(z)_k = mass * lse(z) - <y, z>`, where z are its logits, y its truth (the target
    probabilities), mass the sum of y, and lse(z) = log sum_k exp(z_k). Its gradient is `mass * softmax(z) - y`.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...]; float32, float64, bfloat16 or float16, with any strides. Or a DTensor of any
            placements; the other tensors are then DTensors too, or the same in all processes.
        target: class indices, with the shape of `input` without the class axis, or probabilities with the shape of `input`.
        weight, ignore_index, reduction, label_smoothing, size_average, reduce: as in torch.
        z_loss: L >= 0; adds L lse(z)^2 to each row that is not ignored.
        softcap: c > 0; the logits become c tanh(z / c).
        temperature: T > 0; divides the logits, after the softcap.
        sample_weight: broadcasts to the rows; multiplies the loss of each row. A mean is divided by the sum of the weights.
        return_lse, return_entropy, return_logprobs: also return lse(z), the entropy of the prediction, or log softmax(z) at the label, for
            each row. They are differentiable, and 0 for ignored rows.
        return_correct: also return the number of rows whose most probable class is the label. A tie counts, an ignored row does not.
        check: on a GPU, wait for the labels and raise an error if one is out of range (not under torch.compile). Otherwise the loss and the
            gradient of its row are NaN. On the CPU, labels are always checked. Of classes in shards, also raise an error in all processes
            if their arguments differ.
        group: a process group among which the classes are divided: `input`, and probabilities, have the classes of this process. Labels and
            weights are those of all classes, and the same in all processes. So is the result.
        first_class: the index of the first class of this process; None if all processes have equally many, in the order of ranks.
        class_weight: the name of weight in softxent's functions for NumPy, which is refused.

    Returns:
        The loss, in the dtype of `input` (float32 under autocast), or a `Result` if a `return_` option is set.

    Raises:
        ValueError, TypeError: if a shape, label, dtype or option does not fit.

    Derivatives of any order are computed from closed formulas: backward, double backward and higher, forward mode, and torch.func. `input`
    is never written to.

    Cost: a scalar loss and its gradient are computed in the forward pass, in one pass over the logits. The gradient, an array of the size
    of `input`, is kept until the backward pass. Beyond it, O(rows) bytes.

    Source: Parts 1 to 3 of the derivation.
    """
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    if class_weight is not None:
        renamed(FN, "class_weight", class_weight, "weight")
    wanted = ONLY_LOSS
    if return_lse or return_logprobs or return_entropy or return_correct:
        wanted = (return_lse, return_logprobs, return_entropy, return_correct)
    given = (ignore_index, reduction, label_smoothing, z_loss, temperature, softcap)
    others: tuple[Tensor, ...] = ()
    if weight is not None or sample_weight is not None:
        others = tuple(t for t in (weight, sample_weight) if t is not None)
    if group is None and compute.direct(input, target, *others) and not (return_logprobs and target.is_floating_point()):
        if not (others or target.requires_grad) or not operators.differentiated(target, *others):
            settled = arguments.settled(FN, input, target, weight, sample_weight, *given)
            return _result(input, Given(target, weight, sample_weight, settled, wanted))
    eager = plain(input, target)
    if group is not None or (not eager and distributed.is_dtensor(input, target)):
        return _distributed(input, target, weight, sample_weight, given, wanted, check, group, first_class)
    axis = arguments.class_axis(FN, input, target, weight, sample_weight, ignore_index)
    options = arguments.options(FN, *given)
    if check and not input.is_cpu and not target.is_floating_point():
        operators.check_labels(FN, target, input.shape[axis], options.ignore_index)
    if eager and not any(wanted) and plain(*others) and not operators.differentiated(target, *others):
        return _result(input, Given(target, weight, sample_weight, arguments.checked(axis, options), wanted))
    if return_logprobs and target.is_floating_point():
        fail(FN, "return_logprobs", "be False where the target is probabilities", True)
    truth, total, _ = arguments.truth_of(FN, input, target, weight, sample_weight, axis, options)
    losses, *rows, correct = operators.rows(input, *truth, axis, options.temperature, options.cap, any(wanted[1:]))
    dtype = arguments.result_dtype(input)
    loss = arguments.reduced(losses, reduction, total, dtype)
    if not any(wanted):
        return loss
    lse, logprobs, entropy = (t.to(dtype) if want else None for t, want in zip(rows, wanted[:3], strict=True))
    return Result(loss, lse, entropy, logprobs, correct.sum() if return_correct else None)


def _distributed(
    input: Any, target: Any, weight: Any, sample: Any, given: tuple[Any, ...], wanted: tuple[bool, ...], check: bool, group: Any,
    first_class: int | None,
) -> Any:  # fmt: skip
    """Compute the loss of logits that are divided among processes."""
    options = arguments.options(FN, *given)
    axis, place, shards, reduction = min(1, input.ndim - 1), None, None, options.reduction
    if group is None:
        if not distributed.is_dtensor(input):
            fail(FN, "input", "be a DTensor as target is", type(input).__name__, TypeError)
        input, place = distributed.layout(input, axis)
        target = place.local(target, place.logits if target.is_floating_point() else place.rows)
        weight, sample, shards = place.class_weight(weight), place.local_sample(sample), place.shards
    else:
        distributed.not_divided(FN, "input", input, "be a torch.Tensor where a group is given; a DTensor has its own")
        shards = distributed.shards_of_group(FN, group, input.shape[axis], first_class, input)
    if check and shards is not None:
        shapes = {"shape of input": tuple(n for i, n in enumerate(input.shape) if i != axis), "dtype": input.dtype}
        distributed.check_agreement(FN, shards.group, **shapes, options=tuple(options), outputs=wanted)
    arguments.class_axis(FN, input, target, weight, sample, options.ignore_index, shards)
    if wanted[1] and target.is_floating_point():
        fail(FN, "return_logprobs", "be False where the target is probabilities", True)
    truth, total, _ = arguments.truth_of(FN, input, target, weight, sample, axis, options, shards)
    of_truth = [t for t in (target, weight, sample) if t is not None]
    if shards is None and reduction != "none" and not any(wanted) and plain(input, *of_truth) and not operators.differentiated(*of_truth):
        divisor = truth.y.new_ones(()) if total is None else distributed.whole_sum(total, place).to_local()
        part = Given(target, weight, sample, arguments.checked(axis, options), ONLY_LOSS, divisor)
        loss = distributed.whole_sum(_result(input, part, (truth, divisor)), place)
        return loss.to(arguments.result_dtype(input))
    transform, more = (options.temperature, options.cap), any(wanted[1:])
    if shards is None:
        losses, *rows, correct = operators.rows(input, *truth, axis, *transform, more)
    else:
        losses, *rows, correct = sharded_rows(input, *truth, shards, axis, *transform, more)
    dtype = arguments.result_dtype(input)
    loss = distributed.reduced(losses, reduction, total, dtype, place)
    if not any(wanted):
        return loss
    of_rows = [distributed.of_all_rows(t.to(dtype), place) if want else None for t, want in zip(rows, wanted[:3], strict=True)]
    lse, logprobs, entropy = of_rows
    return Result(loss, lse, entropy, logprobs, distributed.whole_sum(correct.sum(), place) if wanted[3] else None)


class CrossEntropyLoss(Module):
    """`cross_entropy` as a module; replaces `torch.nn.CrossEntropyLoss`.

    Args:
        weight, size_average, ignore_index, reduce, reduction, label_smoothing: as in `torch.nn.CrossEntropyLoss`.
        z_loss, softcap, ..., check: as in `cross_entropy`.
    """

    def __init__(
        self, weight: Tensor | None = None, size_average: bool | None = None, ignore_index: int = -100, reduce: bool | None = None,
        reduction: str = "mean", label_smoothing: float = 0.0, *, z_loss: float = 0.0,
        softcap: float | None = None, temperature: float = 1.0,
        return_lse: bool = False, return_entropy: bool = False, return_logprobs: bool = False, return_correct: bool = False,
        check: bool = False, class_weight: None = None,
    ):  # fmt: skip
        super().__init__()
        if class_weight is not None:
            renamed("CrossEntropyLoss", "class_weight", class_weight, "weight")
        options = {"z_loss": z_loss, "softcap": softcap, "temperature": temperature, "return_lse": return_lse}
        options |= {"return_entropy": return_entropy, "return_logprobs": return_logprobs, "return_correct": return_correct, "check": check}
        if size_average is not None or reduce is not None:
            reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing
        self.options: dict[str, Any] = options

    def forward(self, input: Tensor, target: Tensor) -> Any:
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction, label_smoothing=self.label_smoothing,
            **self.options,
        )  # fmt: skip


class Given(NamedTuple):
    """The arguments of `cross_entropy`, except for the logits, for `CrossEntropy`."""

    target: Tensor
    weight: Tensor | None
    sample: Tensor | None
    settled: arguments.Settled
    wanted: tuple[bool, ...]  # lse, log-probability, entropy, correct
    divisor: Tensor | None = None  # if these are the rows of one of several processes, what the sum is divided by; the loss is float64


# What is computed in the forward pass: the loss and, if they are wanted, lse, log-probability and entropy; the number of correct rows; the
# gradient of a reduced loss; and the partial sums of the rows [7, N], if there are such outputs, for the backward pass.
Found = tuple[Sequence[Tensor | None], Any, Tensor | None, Tensor | None]


def _result(input: Tensor, given: Given, known: tuple[arguments.Truth, Any] | None = None) -> Any:
    """Return what `cross_entropy` returns, with the function of autograd if there is something to differentiate."""
    found = _computed(input, given, known)
    outputs: Any = found[0]
    if input.requires_grad and torch.is_grad_enabled():
        outputs = _differentiable(input, found, given)
        if given.wanted is ONLY_LOSS:
            return outputs
    if given.wanted is ONLY_LOSS:
        return outputs[0]
    loss, lse, logprobs, entropy = outputs
    correct = torch.scalar_tensor(found[1], dtype=torch.int64, device="cpu") if given.wanted[3] else None
    return Result(loss, lse, entropy, logprobs, correct)


def _computed(input: Tensor, given: Given, known: tuple[arguments.Truth, Any] | None = None) -> Found:
    """Return the loss and, computed in the same pass, its gradient if `_with_gradient`. `known` is what `_truth_of` gives, if anything."""
    target, weight, sample, settled, wanted, _ = given
    axis, _, transform, mean, losses, numbers, _ = settled
    if numbers is None:
        return _computed_by_tensors(input, given, *(known or _truth_of(input, given)))
    label, ignored, y, r, q, off, total = arguments.truth_of_constants(FN, input, target, weight, sample, settled)
    g = 1.0 if not mean else 1 / total if total else 0.0
    dtype, threads, result = arguments.result_dtype(input), 1 if input.numel() < SMALL_CALL else cpu.threads(), NOTHING
    dz = parts = None
    if losses or wanted is not ONLY_LOSS:
        lead, wide = input.shape[:axis] + input.shape[axis + 1 :], torch.float32 if input.dtype == torch.float32 else torch.float64
        outputs = [torch.empty(lead, dtype=wide, device="cpu") if want else None for want in (losses, *wanted)]
        result = tuple(None if t is None else cpu.record(t) for t in outputs)
    if losses or (result and any(wanted[:3])):
        if any(wanted[:3]) and input.numel() >= SMALL_CALL and input.requires_grad and torch.is_grad_enabled():
            parts = compute.new((7, input.numel() // input.shape[axis]), input)
    elif _with_gradient(input, given):
        dz = cpu.like(input)
    of_dz, of_parts = None if dz is None else cpu.record(dz), None if parts is None else cpu.record(parts)
    loss, correct = kernels.cpu.call(
        FORWARD if dz is None else FUSED, cpu.record(input), axis, label, (y, r, q, g), off, transform, of_dz, result, of_parts, threads,
        ignored=ignored,
    )  # fmt: skip
    if not losses:
        if mean:
            loss = loss / total if total else math.nan
        reduced = compute.scalar(loss, dtype)
        if not result:
            return (reduced, None, None, None), correct, dz, parts
    found = [t if t is None else t.to(dtype) for t in outputs[:4]]
    return found if losses else [reduced, *found[1:]], correct, dz, parts


def _computed_by_tensors(input: Tensor, given: Given, truth: arguments.Truth, total: Tensor | None) -> Found:
    axis, options, transform, *_ = given.settled
    losses = compute.new(compute.shape_of_rows(input, axis)[0], input)
    dz = cpu.like(input) if _with_gradient(input, given) else None
    label, y, r, q, off = truth
    g = y.new_ones(()) if total is None else torch.where(total == 0, 0.0, 1 / total)
    compute.run("forward" if dz is None else "fused", input, axis, label, (y, r, q, g), off, transform, out=dz, result=(losses,))
    dtype = arguments.result_dtype(input) if given.divisor is None else torch.float64
    return (arguments.reduced(losses, options.reduction, total, dtype),), 0, dz, None


def _truth_of(input: Tensor, given: Given) -> tuple[arguments.Truth, Tensor | None]:
    """Return the truth of the rows, and what the sum of their losses is divided by."""
    axis, options, *_ = given.settled
    truth, total, _ = arguments.truth_of(FN, input, given.target, given.weight, given.sample, axis, options)
    return truth, total if given.divisor is None else given.divisor


def _with_gradient(input: Tensor, given: Given) -> bool:
    """Whether the gradient is computed in the forward pass.

    That of float16 is not, because an upstream gradient, which a loss scaler makes large, could not bring back what is rounded to 0.
    """
    return input.requires_grad and torch.is_grad_enabled() and not given.settled.losses and input.dtype != torch.float16


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
        g, batched, once = grads[0], operators.batched_by_autograd(*grads), not torch.is_grad_enabled()
        known = None
        if dz is not None and g is not None and not batched:
            first = operators.first_backward(ctx)
            if not (first and once):
                _unchanged(ctx.of_weights, input, target, weight, sample)
                dz = dz if first else _again(input, Given(target, weight, sample, *ctx.given))
            known = compute.scaled(dz.data, g.detach())  # an in-place change of the result is not one of the saved dz
            if once:
                return known, None, None
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
        truth, total = _truth_of(input, given)
        up = [None if t is None else t.double() for t in grads] + [None] * (4 - len(grads))
        if g is not None and total is not None:
            up[0] = torch.where(total == 0, 0.0, g.double() / total)
        of_gradient = (input, *truth, *up, axis, *transform)
        if known is not None:
            return operators.known_gradient(*of_gradient, (known,)), None, None
        return (operators.multiplied_gradient if batched else operators.gradient)(*of_gradient), None, None


def _unchanged(of_weights: list[torch.Size | None] | None, input: Tensor, target: Tensor, *weights: Tensor | None) -> None:
    """Raise an error if a tensor that was saved has lost its memory since then, or its shape, where broadcasting would hide it."""
    compute.need_memory(input, target, *weights)
    for name, t, shape in zip(("weight", "sample_weight"), weights, of_weights or (None, None), strict=True):
        if t is not None and t.shape != shape:
            fail(FN, name, f"keep its shape {tuple(shape or ())} until the backward pass", tuple(t.shape), RuntimeError)


def _again(input: Tensor, given: Given) -> Tensor:
    """Compute the gradient of the forward pass again."""
    with torch.enable_grad():
        dz = _computed(input, given)[2]
    assert dz is not None
    return dz


_differentiable: Callable[..., tuple[Tensor | None, ...]] = super(
    Function, CrossEntropy
).apply  # of the tensors of torch.func, which Function.apply looks for, there are none


def logsumexp(input: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Compute log-sum-exp over one axis, `lse(z) = log sum_k exp(z_k)`, as `torch.logsumexp` does. Its gradient is softmax.

    Args:
        input: float32, float64, bfloat16 or float16, of any shape with at least one axis. Or a DTensor of any placements.
        dim: the axis.
        keepdim: whether the result keeps the axis, with length 1.

    Returns:
        A tensor with the dtype of `input`. Of a DTensor, a DTensor.

    Raises:
        ValueError, TypeError: if the dtype or the axis does not fit.

    Cost: one read and O(rows) bytes; derivatives of any order, as in `cross_entropy`.
    """
    if _on_axis("logsumexp", input, dim):
        return torch.logsumexp(input, dim, keepdim)
    local, place = _of_this_process(input, dim)
    axis, shards = dim % local.ndim, None if place is None else place.shards
    zero = torch.zeros((), dtype=torch.float64, device=local.device)
    of_rows = (local, no_labels(local, axis), zero, zero, zero, None)
    lse = operators.rows(*of_rows, axis)[1] if shards is None else sharded_rows(*of_rows, shards, axis, 1.0, math.inf, False)[1]
    found: Tensor = distributed.of_all_rows(lse.to(local.dtype), place)
    return found.unsqueeze(dim) if keepdim else found


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Compute the logarithm of softmax over one axis, `log softmax(z)_k = z_k - lse(z)`, as `torch.log_softmax` does.

    It is computed as (z_k - max z) - (lse - max z), so that values near 0 keep their digits.

    Args:
        input: float32, float64, bfloat16 or float16, of any shape with at least one axis. Or a DTensor of any placements.
        dim: the axis.

    Returns:
        A tensor with the shape and dtype of `input`. Of a DTensor, a DTensor with its placements.

    Raises:
        ValueError, TypeError: if the dtype or the axis does not fit.

    Cost: two reads and one write; derivatives of any order, as in `cross_entropy`.
    """
    if _on_axis("log_softmax", input, dim):
        return torch.log_softmax(input, dim)
    local, place = _of_this_process(input, dim)
    axis, shards = dim % local.ndim, None if place is None else place.shards
    if shards is None:
        found = operators.log_softmax(local, torch.ones((), dtype=torch.float64, device=local.device), axis)
    else:
        found = sharded_log_softmax(local, None, shards, axis, 1.0, math.inf)
    return found if place is None else place.of_logits(found, input.shape)


def _of_this_process(input: Any, dim: int) -> tuple[Tensor, distributed.Layout | None]:
    """Return the logits of this process, and their layout if they are a DTensor."""
    return distributed.layout(input, dim % input.ndim) if distributed.is_dtensor(input) else (input, None)


def _on_axis(fn: str, input: Tensor, dim: int) -> bool:
    """Raise an error if the input has no such axis. Returns whether the axis is empty; torch's own function is used then."""
    tensor(fn, "input", input, input)
    if input.dtype not in FLOATS:
        fail(fn, "input", "be float32, float64, bfloat16 or float16", input.dtype, TypeError)
    if not input.ndim:
        fail(fn, "input", "have a class axis", "shape ()")
    if not isinstance(dim, int) or isinstance(dim, bool) or not -input.ndim <= dim < input.ndim:
        fail(fn, "dim", f"be an int between {-input.ndim} and {input.ndim - 1} for input of shape {tuple(input.shape)}", shown(dim))
    return not input.shape[dim]
