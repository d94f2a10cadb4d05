"""The layer for PyTorch: `cross_entropy` in place of `torch.nn.functional.cross_entropy`, right in every derivative.

A front end only: it says which rows, classes and options there are, and truth.py, the kernels and autograd.py do the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Module, Parameter

from .. import contract, kernels, truth
from ..contract import fail
from ..kernels import Backend
from . import cpu, ops, tensors
from .autograd import batched_by_autograd, devices, gradient_of, linear, rows_of, wide
from .tensors import use_backend

__all__ = ["CrossEntropyLoss", "Result", "backends", "cross_entropy", "empty_cache", "log_softmax", "logsumexp", "use_backend"]

FN = "cross_entropy"
_TENSORS = (Tensor, Parameter)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Result(NamedTuple):
    """The loss, and what else was asked for (None: it was not)."""

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
) -> Any:
    """`torch.nn.functional.cross_entropy`: `loss = mass * lse(z) - <y, z>`, with the gradient `mass * softmax(z) - y`.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...]; float32, float64, bfloat16 or float16, any strides.
        target: class indices of the shape of `input` without its class axis, or probabilities of the shape of `input`.
        weight, ignore_index, reduction, label_smoothing, size_average, reduce: as in torch.
        z_loss: L >= 0, adds L lse(z)^2 to every row that is not ignored.
        softcap: c > 0, the logits become c tanh(z / c).
        temperature: T > 0, divides the logits (after softcap).
        sample_weight: broadcasts to the rows, multiplies each row's loss; a mean divides by the sum of the weights.
        return_lse, return_entropy, return_logprobs: also lse(z), the entropy of the prediction, and log softmax(z) at the label, each with
            the shape of the rows and differentiable; 0 where the row is ignored.
        return_correct: also in how many rows the likeliest class is the true one (a tie counts, an ignored row does not).
        check: on a GPU, wait for the labels and refuse one that is out of range (not under torch.compile). On the CPU that is always done.
            Unchecked, such a row's loss and gradient are NaN.

    Returns:
        The loss, in the dtype of `input` (float32 under autocast); or a `Result`, if anything more is asked for.

    Raises:
        ValueError, TypeError: a shape, label, dtype or option that does not fit.

    Every derivative is in closed form: backward, double backward and beyond, forward mode, torch.func. A second backward, a frozen
    input, a hook or checkpointing change nothing. `input` is never written to.

    Cost: a scalar loss and its gradient are made in one pass in the forward, and the gradient is kept until the backward; one buffer of the
    size of `input`, and O(rows) beyond it.

    Mathematics: Results 1 to 3 and "prediction - truth" of the derivation.
    """
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    more = return_lse or return_entropy or return_logprobs or return_correct
    eager = _plain(input, target)
    if (
        eager
        and input.is_cpu
        and tensors.forced() is None
        and not more
        and weight is None
        and sample_weight is None
        and softcap is None
        and label_smoothing == z_loss == 0
        and temperature == 1
    ):
        quick = cpu.quick(input, target, ignore_index, reduction)
        if quick is not None:
            return _scalar(input, quick, (target, None, None, reduction, 1, ignore_index, 0.0, 0.0))
    axis, options = _checked(input, target, weight, sample_weight, ignore_index, reduction, label_smoothing, z_loss)
    if check and not input.is_cpu and not target.is_floating_point():
        tensors.check(input, target, axis, ignore_index)
    z = _squashed(input, softcap, temperature)
    if eager and not more and reduction != "none" and not _differentiable(target, weight, sample_weight):
        found = devices(z).scalar(z, target, weight, axis, *options, sample=sample_weight, reduction=reduction)
        return _scalar(z, found, (target, weight, sample_weight, reduction, axis, *options)).to(cpu.result_dtype(input))
    p = _problem(eager, z, target, weight, axis, *options)
    loss, lse, correct = _rows(*p)
    if sample_weight is not None:
        loss = loss * sample_weight.double()
    if reduction != "none":
        loss = loss.sum() / (1 if reduction == "sum" else _total(z, target, weight, sample_weight, axis, ignore_index))
    dtype = cpu.result_dtype(input)
    if not more:
        return loss.to(dtype)
    logprobs = entropy = None
    if return_logprobs:
        if target.is_floating_point():
            fail(FN, "return_logprobs", "be False where the target is probabilities", True)
        logprobs = -_rows(z, target, None, axis, ignore_index, 0.0, 0.0)[0].to(dtype)
    dead = None if target.is_floating_point() else target == ignore_index
    if dead is not None:  # a row that is ignored has no part in anything, whatever its logits
        lse = lse.masked_fill(dead, 0)
    if return_entropy:
        entropy = _entropy(z, axis, dead).to(dtype)
    return Result(loss.to(dtype), lse.to(dtype) if return_lse else None, entropy, logprobs, correct.sum() if return_correct else None)


class CrossEntropyLoss(Module):
    """`cross_entropy` as a module: `torch.nn.CrossEntropyLoss` and its arguments, and the keyword options of `cross_entropy`."""

    def __init__(
        self, weight: Tensor | None = None, size_average: bool | None = None, ignore_index: int = -100, reduce: bool | None = None,
        reduction: str = "mean", label_smoothing: float = 0.0, *, z_loss: float = 0.0,
        softcap: float | None = None, temperature: float = 1.0,
        return_lse: bool = False, return_entropy: bool = False, return_logprobs: bool = False, return_correct: bool = False,
    ):  # fmt: skip
        super().__init__()
        options = {"z_loss": z_loss, "softcap": softcap, "temperature": temperature, "return_lse": return_lse}
        options |= {"return_entropy": return_entropy, "return_logprobs": return_logprobs, "return_correct": return_correct}
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


def logsumexp(input: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """`lse(z) = log sum_k exp(z_k)` over one axis, in the dtype of `input`; its gradient is softmax. As `torch.logsumexp`."""
    if _on_axis("logsumexp", input, dim):
        return torch.logsumexp(input, dim, keepdim)
    lse = _rows(input, _first(input, dim), None, dim % input.ndim, -100, 0.0, 0.0)[1].to(input.dtype)
    return lse.unsqueeze(dim) if keepdim else lse


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """`log softmax(z)_k = z_k - lse(z)` over one axis, as (z_k - max z) - (lse - max z): no digit is lost near probability 1."""
    if _on_axis("log_softmax", input, dim):
        return torch.log_softmax(input, dim)
    top = input.argmax(dim)
    nll = _rows(input, top, None, dim % input.ndim, -100, 0.0, 0.0)[0].unsqueeze(dim)
    return ((wide(input) - wide(input.gather(dim, top.unsqueeze(dim)))) - nll).to(input.dtype)


def empty_cache() -> None:
    """Give back the memory of the last large gradient, which is kept for the next one."""
    if kernels.cpu:
        kernels.cpu.trim()


def backends() -> list[Backend]:
    """What computes for which tensors here, and why. `active`: without `use_backend`.

    "cpu" serves CPU tensors, "triton" CUDA tensors, and "formula", torch's operations in float64, all others.
    """
    forced, gpu = tensors.forced(), torch.cuda.is_available()
    native = next(b for b in kernels.backends() if b.name == "cpu")
    device = torch.cuda.get_device_name() if gpu else "no CUDA device here"
    detail = tensors.missing or f"Triton {tensors.triton.version}, for CUDA tensors: {device}"
    for_cuda = tensors.triton is not None and gpu
    return [
        Backend("cpu", native.available, forced is None and native.active, f"{native.detail}, for CPU tensors"),
        Backend("triton", for_cuda, forced == "triton" or (forced is None and for_cuda), detail),
        Backend(
            "formula",
            True,
            forced == "formula" or (forced is None and gpu and not for_cuda),
            "torch's operations in float64, for other tensors",
        ),
    ]


def _on_axis(fn: str, input: Tensor, dim: int) -> bool:
    """Refuse what has no such axis. -> Whether it has no classes: there is nothing to compute then."""
    if not isinstance(input, Tensor) or input.dtype not in FLOATS:
        fail(fn, "input", "be a float32, float64, bfloat16 or float16 tensor", getattr(input, "dtype", type(input).__name__), TypeError)
    if not isinstance(dim, int) or not -input.ndim <= dim < input.ndim:
        fail(fn, "dim", f"be an int between {-input.ndim} and {input.ndim - 1} for input of shape {tuple(input.shape)}", dim)
    return not input.shape[dim]


def _first(input: Tensor, dim: int) -> Tensor:
    """The first class as the label of every row."""
    return torch.zeros_like(input.select(dim, 0), dtype=torch.int64)


def _rows(*p: Any) -> tuple[Tensor, Tensor, Tensor]:
    """loss, lse and correct of every row: as a function of autograd and torch.func, or as the operator that a compiler sees."""
    compiling = torch.compiler.is_compiling()
    if compiling and forward_ad._current_level >= 0:  # operators of torch.library have no forward mode, and drop a tangent without a word
        beside: Any = torch.compiler.disable  # for torch's own types it is untyped
        found: tuple[Tensor, Tensor, Tensor] = beside(rows_of)(*p)
        return found
    plain = type(p[0]) in _TENSORS and not p[0].is_meta and not compiling
    transformed = not compiling and torch._C._are_functorch_transforms_active()
    found = rows_of(*p) if plain or transformed else ops.rows(*p)
    return found


def _entropy(z: Tensor, axis: int, dead: Tensor | None) -> Tensor:
    """The cross-entropy whose truth is the prediction. A masked class has a finite logit here: 0 times -inf has no gradient."""
    masked = z == -torch.inf
    z = z.masked_fill(masked & ~masked.all(axis, keepdim=True), -6e4 if z.dtype == torch.float16 else -1e30)
    z = z if dead is None else z.masked_fill(dead.unsqueeze(axis), 0)
    rows = _rows(z, torch.softmax(wide(z), axis), None, axis, -100, 0.0, 0.0)[0]
    return rows if dead is None else rows.masked_fill(dead, 0)


def _problem(
    eager: bool, z: Tensor, target: Tensor, weight: Tensor | None, axis: int, ignore_index: int, smoothing: float, z_loss: float
) -> tuple[Any, ...]:
    """What the rows are computed from. A truth that is differentiated is written out first, so that its own derivatives are torch's."""
    probable = target.is_floating_point()
    written = (weight is not None or smoothing > 0) if probable and not eager else _differentiable(weight) or (
        probable and target.requires_grad and (weight is not None or smoothing > 0)
    )  # fmt: skip
    if written:
        classes, w = z.shape[axis], None if weight is None else weight.to(wide(z).dtype)
        if probable:
            target = truth.soft(wide(target).movedim(axis, -1), w, smoothing, classes)
        else:
            target = truth.written_out(target, torch.arange(classes, device=z.device), w, smoothing, ignore_index)
        target, weight, smoothing = target.to(wide(z).dtype).movedim(-1, axis), None, 0.0
    return z, target, weight, axis, ignore_index, smoothing, z_loss


def _total(input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, axis: int, ignore_index: int) -> Any:
    """What a mean divides by."""
    lead = [n for i, n in enumerate(input.shape) if i != axis]
    each: Any = 1 if sample is None else sample.double().expand(lead)
    if target.is_floating_point():
        return math.prod(lead) if sample is None else each.sum()
    return truth.weights(target, target != ignore_index, None if weight is None else weight.double(), each, input.shape[axis]).sum()


def _checked(
    input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, ignore_index: int, reduction: str, smoothing: float,
    z_loss: float,
) -> tuple[int, tuple[int, float, float]]:  # fmt: skip
    """The class axis, and the options."""
    given = {"input": input, "target": target, "weight": weight, "sample_weight": sample}
    for name, t in given.items():
        if not isinstance(t, Tensor) and (t is not None or name in ("input", "target")):
            fail(FN, name, "be a torch.Tensor", type(t).__name__, TypeError)
        if t is not None and t.device != input.device:
            fail(FN, name, f"be on {input.device} as input is", t.device)
        if t is not None and t.is_complex() and name != "input":
            fail(FN, name, "hold real numbers", t.dtype, TypeError)
    if input.dtype not in FLOATS:
        fail(FN, "input", "be float32, float64, bfloat16 or float16", input.dtype, TypeError)
    if input.ndim == 0:
        fail(FN, "input", "have a class axis", f"shape {tuple(input.shape)}")
    axis = min(1, input.ndim - 1)
    if not input.shape[axis]:
        fail(FN, "input", "have at least one class", f"shape {tuple(input.shape)}")
    lead = tuple(n for i, n in enumerate(input.shape) if i != axis)
    if target.is_floating_point():
        if target.shape != input.shape:
            fail(FN, "target probabilities", f"have shape {tuple(input.shape)} to match input", tuple(target.shape))
        if isinstance(ignore_index, int) and ignore_index >= 0:
            fail(FN, "ignore_index", "be left alone where the target is probabilities", ignore_index)
    elif target.dtype == torch.bool:
        fail(FN, "target", "be integers (class indices) or floats (probabilities)", target.dtype, TypeError)
    elif tuple(target.shape) != lead:
        fail(FN, "target", f"have shape {lead} to match input {tuple(input.shape)}", tuple(target.shape))
    if weight is not None and tuple(weight.shape) != (input.shape[axis],):
        fail(FN, "weight", f"have shape ({input.shape[axis]},), one number a class", tuple(weight.shape))
    if sample is not None and (
        sample.ndim > len(lead) or any(n not in (1, m) for n, m in zip(sample.shape[::-1], lead[::-1], strict=False))
    ):
        fail(FN, "sample_weight", f"broadcast to shape {lead}", tuple(sample.shape))
    contract.choice(FN, "reduction", reduction, contract.REDUCTIONS)
    number = contract.number
    e, penalty = number(FN, "label_smoothing", smoothing, low=0, high=1), number(FN, "z_loss", z_loss, low=0)
    return axis, (contract.integer(FN, "ignore_index", ignore_index), e, penalty)


def _squashed(input: Tensor, softcap: float | None, temperature: float) -> Tensor:
    s = truth.squash(FN, temperature, softcap)
    return input if s is None else s(wide(input))


class _Scalar(torch.autograd.Function):
    """A reduced loss, with its gradient dz if that was made in the same pass. It is handed over in the first backward, and made anew in
    another."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, found: tuple[Tensor, Tensor | None], problem: tuple[Any, ...]) -> Tensor:
        loss, dz = found
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(input, *problem[:3], dz)
            ctx.options, ctx.fresh = problem[3:], dz is not None
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (input, target, weight, sample, dz), (g,) = ctx.saved_tensors, grads
        batched = batched_by_autograd(g)
        if ctx.fresh and not batched and not torch.is_grad_enabled():
            ctx.fresh = False
            return devices(dz).scaled(dz.data, g), None, None  # what is handed over may be written to: that is nothing to the saved one
        reduction, axis, ignore_index, *_ = ctx.options
        up = g.double() / (1 if reduction == "sum" else _total(input, target, weight, sample, axis, ignore_index))
        up = (up if sample is None else up * sample.double()).expand([n for i, n in enumerate(input.shape) if i != axis])
        return (linear if batched else gradient_of)(input, target, weight, *ctx.options[1:], up, None), None, None


_scalar: Callable[..., Tensor] = _Scalar.apply


def _plain(input: Tensor, target: Tensor) -> bool:
    """Whether these are tensors that nothing looks at from outside: no transform, no compiler, no dual number."""
    return (
        type(input) in _TENSORS and type(target) in _TENSORS and not input.is_meta and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active() and not torch._C._len_torch_dispatch_stack() and forward_ad._current_level < 0
    )  # fmt: skip


def _differentiable(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)
