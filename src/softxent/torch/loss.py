"""The public functions for logits that are given as a tensor: `cross_entropy`, `CrossEntropyLoss`, `log_softmax` and `logsumexp`.

arguments.py checks their arguments and turns the options into numbers; operators.py has what is computed from them, with its derivatives. A
loss alone, in eager mode, has a function of autograd of its own here, `CrossEntropy`: its gradient is computed in the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module

from ..contract import fail, renamed
from ..kernels import NO_LABEL
from . import arguments, compute, cpu, operators
from .arguments import FLOATS, plain, tensor

FN = "cross_entropy"


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
    class_weight: None = None,
) -> Any:
    """Compute the softmax cross-entropy of logits and labels; replaces `torch.nn.functional.cross_entropy`.

    The loss of a row is `- sum_k y_k log softmax(z)_k = mass * lse(z) - <y, z>`, where z are its logits, y its truth (the target
    probabilities), mass the sum of y, and lse(z) = log sum_k exp(z_k). Its gradient is `mass * softmax(z) - y`.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...]; float32, float64, bfloat16 or float16, with any strides.
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
            gradient of its row are NaN. On the CPU, labels are always checked.
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
    more = return_lse or return_entropy or return_logprobs or return_correct
    eager = plain(input, target)
    gradient = eager and input.requires_grad and torch.is_grad_enabled()
    endless = type(softcap) is float and math.isinf(softcap)  # is refused, although the kernels take inf for no softcap
    if eager and not more and sample_weight is None and class_weight is None and not endless:
        given: Given = (
            target,
            weight,
            None,
            1,
            (ignore_index, reduction, label_smoothing, z_loss, temperature, math.inf if softcap is None else softcap),
        )
        found = _quick(input, *given, gradient and reduction != "none" and input.dtype != torch.float16)
        if found is not None:
            return _loss(input, found, given) if gradient else found[0]
    if class_weight is not None:
        renamed(FN, "class_weight", class_weight, "weight")
    axis = arguments.class_axis(FN, input, target, weight, sample_weight, ignore_index)
    options = arguments.options(FN, ignore_index, reduction, label_smoothing, z_loss, temperature, softcap)
    if check and not input.is_cpu and not target.is_floating_point():
        operators.check_labels(FN, target, input.shape[axis], options.ignore_index)
    others = [t for t in (weight, sample_weight) if t is not None]
    if eager and not more and plain(*others) and not operators.differentiated(target, *others):
        given = (target, weight, sample_weight, axis, options)
        found = _computed(input, *given, gradient and reduction != "none" and input.dtype != torch.float16)
        return _loss(input, found, given) if gradient else found[0]
    if return_logprobs and target.is_floating_point():
        fail(FN, "return_logprobs", "be False where the target is probabilities", True)
    truth, total = arguments.truth_of(FN, input, target, weight, sample_weight, axis, options)
    losses, lse, logprobs, entropy, correct = operators.rows(
        input, *truth, axis, options.temperature, options.cap, return_entropy or return_logprobs or return_correct
    )
    dtype = arguments.result_dtype(input)
    loss = arguments.reduced(losses, reduction, total, dtype)
    if not more:
        return loss
    flags = (return_lse, return_entropy, return_logprobs)
    rows = [t.to(dtype) if flag else None for t, flag in zip((lse, entropy, logprobs), flags, strict=True)]
    return Result(loss, rows[0], rows[1], rows[2], correct.sum() if return_correct else None)


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


Found = tuple[Tensor, Tensor | None]  # a loss, and its gradient if that was computed with it
Given = tuple[Tensor, Tensor | None, Tensor | None, int, Any]  # target, weight, sample weight, class axis, options


def _quick(
    input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, axis: int, options: Any, gradient: bool,
    upstream: Tensor | None = None,
) -> Found | None:  # fmt: skip
    """As `_computed`, for the most frequent calls; None for others. With `upstream`, the gradient is of the losses of the rows."""
    if not (input.is_cpu and target.is_cpu and sample is None and input.dim() == 2 and input.shape[1]) or compute.forced() is not None:
        return None
    numbers = arguments.quick_numbers(input, weight, options)
    if numbers is None:
        return None
    each = options[1] == "none" and upstream is None
    found = cpu.quick(input, target, options[0], *numbers, options[1] == "mean", gradient, each, upstream)
    if found is None:
        return None
    loss, dz, losses = found
    dtype = arguments.result_dtype(input)
    return input.new_full((), loss, dtype=dtype) if losses is None else losses.to(dtype), dz


def _computed(
    input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, axis: int, options: arguments.Options, gradient: bool
) -> Found:
    """Return the loss and, if `gradient` is set, that of the sum or mean, computed in the same pass."""
    found = _quick(input, target, weight, sample, axis, options, gradient)
    if found is not None:
        return found
    truth, total = arguments.truth_of(FN, input, target, weight, sample, axis, options)
    transform = (options.temperature, options.cap)
    if gradient:
        one = truth.y.new_ones(())
        losses, dz = compute.fused(input, *truth, one if total is None else _inverse(total), None, None, None, axis, *transform)
    else:
        losses, dz = compute.rows(input, *truth, axis, *transform, False)[0], None
    return arguments.reduced(losses, options.reduction, total, arguments.result_dtype(input)), dz


class CrossEntropy(Function):
    """A loss with its gradient dz from the forward pass, or None. The first backward pass returns dz; another computes it again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, found: Found, given: Given) -> Tensor:
        loss, dz = found
        ctx.save_for_backward(input, *given[:3], dz)
        ctx.axis, ctx.options, ctx.unused = given[3], given[4], [True]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (input, target, weight, sample, dz), (g,) = ctx.saved_tensors, grads
        given = (target, weight, sample, ctx.axis, ctx.options)
        batched = torch._C._functorch.is_legacy_batchedtensor(g)
        if not batched and not torch.is_grad_enabled():
            if dz is not None:
                # an in-place change of the result is not one of the saved dz
                dz = dz.data if operators.first_backward(ctx) else _computed(input, *given, True)[1]
                assert dz is not None
                return compute.scaled(dz, g), None, None
            if g.ndim:
                found = _quick(input, *given, True, g)
                if found is not None:
                    return found[1], None, None
        options = arguments.Options(*ctx.options)
        truth, total = arguments.truth_of(FN, input, *given[:4], options)
        up = g.double() if total is None else g.double() * _inverse(total)
        gradient = operators.multiplied_gradient if batched else operators.gradient
        return gradient(input, *truth, up, None, None, None, ctx.axis, options.temperature, options.cap), None, None


_loss: Callable[..., Tensor] = super(
    Function, CrossEntropy
).apply  # of the tensors of torch.func, which Function.apply looks for, there are none


def _inverse(total: Tensor) -> Tensor:
    return torch.where(total == 0, 0.0, 1 / total)


def logsumexp(input: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Compute log-sum-exp over one axis, `lse(z) = log sum_k exp(z_k)`, as `torch.logsumexp` does. Its gradient is softmax.

    Args:
        input: float32, float64, bfloat16 or float16, of any shape with at least one axis.
        dim: the axis.
        keepdim: whether the result keeps the axis, with length 1.

    Returns:
        A tensor with the dtype of `input`.

    Raises:
        ValueError, TypeError: if the dtype or the axis does not fit.

    Cost: one read and O(rows) bytes; derivatives of any order, as in `cross_entropy`.
    """
    if _on_axis("logsumexp", input, dim):
        return torch.logsumexp(input, dim, keepdim)
    zero = torch.zeros((), dtype=torch.float64, device=input.device)
    label = torch.full_like(input.select(dim, 0), NO_LABEL, dtype=torch.int64)
    lse = operators.rows(input, label, zero, zero, zero, None, dim)[1].to(input.dtype)
    return lse.unsqueeze(dim) if keepdim else lse


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Compute the logarithm of softmax over one axis, `log softmax(z)_k = z_k - lse(z)`, as `torch.log_softmax` does.

    It is computed as (z_k - max z) - (lse - max z), so that values near 0 keep their digits.

    Args:
        input: float32, float64, bfloat16 or float16, of any shape with at least one axis.
        dim: the axis.

    Returns:
        A tensor with the shape and dtype of `input`.

    Raises:
        ValueError, TypeError: if the dtype or the axis does not fit.

    Cost: two reads and one write; derivatives of any order, as in `cross_entropy`.
    """
    if _on_axis("log_softmax", input, dim):
        return torch.log_softmax(input, dim)
    return operators.log_softmax(input, torch.ones((), dtype=torch.float64, device=input.device), dim)


def _on_axis(fn: str, input: Tensor, dim: int) -> bool:
    """Raise an error if the input has no such axis. Returns whether the axis is empty; torch's own function is used then."""
    tensor(fn, "input", input, input)
    if input.dtype not in FLOATS:
        fail(fn, "input", "be float32, float64, bfloat16 or float16", input.dtype, TypeError)
    if not input.ndim:
        fail(fn, "input", "have a class axis", "shape ()")
    if not isinstance(dim, int) or not -input.ndim <= dim < input.ndim:
        fail(fn, "dim", f"be an int between {-input.ndim} and {input.ndim - 1} for input of shape {tuple(input.shape)}", repr(dim))
    return not input.shape[dim]
