"""The public functions for logits that are given as a tensor: `cross_entropy`, `CrossEntropyLoss`, `log_softmax` and `logsumexp`.

They check their arguments (rows.py) and choose how the loss is computed. autograd.py has the derivatives, and cpu.py and tensors.py call
the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from ..contract import fail, renamed
from . import cpu, tensors
from .autograd import batched_by_autograd, devices, first_backward, gradient_of, in_compute_dtype, linear
from .rows import FLOATS, RETURNS, checked, differentiable, outputs, plain, rows, tensor, total, transformed_logits

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
    try:
        without_options = label_smoothing == z_loss == 0 and temperature == 1 and tensors.forced() is None and not more
        without_options = without_options and weight is None and sample_weight is None and softcap is None and class_weight is None
    except (RuntimeError, ValueError):  # a tensor or an array is no number: `checked` says which argument it is
        without_options = False
    if eager and without_options and input.is_cpu and target.is_cpu:
        quick = cpu.quick(input, target, ignore_index, reduction)
        if quick is not None:
            return _scalar(input, quick, (target, None, None, reduction, 1, ignore_index, 0.0, 0.0))
    if class_weight is not None:
        renamed(FN, "class_weight", class_weight, "weight")
    axis, options = checked(FN, input, target, weight, sample_weight, ignore_index, reduction, label_smoothing, z_loss)
    if check and not input.is_cpu and not target.is_floating_point():
        tensors.check(input, target, axis, ignore_index)
    z = transformed_logits(FN, input, softcap, temperature)
    if eager and not more and reduction != "none" and not differentiable(target, weight, sample_weight):
        computed = devices(z).scalar(
            z, target, weight, axis, *options, sample=sample_weight, reduction=reduction, gradient_in_forward=cpu.gradient_in_forward(z)
        )
        return _scalar(z, computed, (target, weight, sample_weight, reduction, axis, *options)).to(cpu.result_dtype(input))
    if return_logprobs and target.is_floating_point():
        fail(FN, "return_logprobs", "be False where the target is probabilities", True)
    wanted = [name for name, flag in zip(RETURNS, (return_lse, return_entropy, return_logprobs, return_correct), strict=True) if flag]
    found = outputs(z, target, weight, axis, options, ("loss", *wanted), eager)
    scale = 1.0 if reduction != "mean" else total(z, target, weight, sample_weight, axis, ignore_index)
    return reduced(found, sample_weight, reduction, scale, cpu.result_dtype(input), bool(wanted))


def reduced(found: dict[str, Tensor], sample: Tensor | None, reduction: str, total: Any, dtype: torch.dtype, more: bool) -> Any:
    """Return the reduced loss, or a `Result` if `more` is set. A mean is divided by `total`."""
    loss = found.pop("loss") if sample is None else found.pop("loss") * sample.double()
    loss = (loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.sum() / total).to(dtype)
    if not more:
        return loss
    return Result(loss, **{name: rows.sum() if name == "correct" else rows.to(dtype) for name, rows in found.items()})


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


class _Scalar(torch.autograd.Function):
    """A reduced loss with its gradient dz from the forward pass, or None. The first backward pass returns dz; another computes it again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, found: tuple[Tensor, Tensor | None], problem: tuple[Any, ...]) -> Tensor:
        loss, dz = found
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(input, *problem[:3], dz)
            ctx.options, ctx.unused = problem[3:], [True]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (input, target, weight, sample, dz), (g,) = ctx.saved_tensors, grads
        batched = batched_by_autograd(g)
        reduction, axis, ignore_index, *_ = ctx.options
        if dz is not None and not batched and not torch.is_grad_enabled():
            if first_backward(ctx):
                dz = dz.data  # an in-place change of the result is not one of the saved dz
            else:
                _, dz = devices(dz).scalar(
                    input, target, weight, *ctx.options[1:], sample=sample, reduction=reduction, gradient_in_forward=True
                )
            return devices(dz).scaled(dz, g), None, None
        up = g.double() / (1 if reduction == "sum" else total(input, target, weight, sample, axis, ignore_index))
        up = (up if sample is None else up * sample.double()).expand([n for i, n in enumerate(input.shape) if i != axis])
        return (linear if batched else gradient_of)(input, target, weight, *ctx.options[1:], up, None), None, None


_scalar: Callable[..., Tensor] = _Scalar.apply


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
    lse = rows(input, _first(input, dim), None, dim % input.ndim, -100, 0.0, 0.0)[1].to(input.dtype)
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

    Cost: three reads and one write; derivatives of any order, as in `cross_entropy`.
    """
    if _on_axis("log_softmax", input, dim):
        return torch.log_softmax(input, dim)
    top = input.argmax(dim)
    nll = rows(input, top, None, dim % input.ndim, -100, 0.0, 0.0)[0].unsqueeze(dim)
    return ((in_compute_dtype(input) - in_compute_dtype(input.gather(dim, top.unsqueeze(dim)))) - nll).to(input.dtype)


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


def _first(input: Tensor, dim: int) -> Tensor:
    """Return the first class as the label of every row."""
    return torch.zeros_like(input.select(dim, 0), dtype=torch.int64)
