"""The computations for CPU tensors. Their NumPy views, which share their memory, are passed to truth.py, sweep.py and the kernels.

`p` stands for the arguments input, target, weight, axis, ignore_index, smoothing and z_loss, as in the other files of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import contract, kernels, sweep
from ..partials import Array, Partials
from ..truth import Truth, truth

FN = "cross_entropy"
T = TypeVar("T")
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # as in cpp/kernel.h


def array(t: Tensor) -> Array:
    """Return a NumPy view of the tensor's memory; bfloat16 as uint16, which the kernels take for it."""
    t = in_memory(t.detach())
    a: Array = t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()
    return a


def lazy(t: Tensor) -> bool:
    """Whether the values of the tensor are not in its memory: lazy zeros and lazy negation."""
    return t._is_zerotensor() or t.is_neg()


def in_memory(t: Tensor) -> Tensor:
    """Return the tensor, or a copy if its values are not in its memory."""
    return t.clone() if lazy(t) else t


def like(input: Tensor) -> Tensor:
    """Return an uninitialized tensor for a gradient with respect to `input`."""
    return empty(input.shape, input.dtype) if input.is_contiguous() else torch.empty_like(input)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor. A large one uses memory that is kept for this (see `kernels.empty`)."""
    if math.prod(shape) * dtype.itemsize < kernels.LARGE or kernels.cpu is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    if dtype == torch.bfloat16:
        return torch.from_numpy(kernels.empty(shape, np.dtype(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(kernels.empty(shape, np.dtype(str(dtype).removeprefix("torch."))))


def problem(*p: Any, sample: Tensor | None = None, upstream: Tensor | None = None, reduction: str = "none") -> tuple[Array, Truth]:
    """Return the logits, with the class axis last, and the truth of their rows."""
    input, target, weight, axis, ignore_index, smoothing, z_loss = p
    z = contract.to_last(array(input), axis)
    labels = array(target.float() if target.dtype in (torch.bfloat16, torch.float16) else target)
    w, s, g = (None if t is None else array(t.double()) for t in (weight, sample, upstream))
    return z, truth(
        FN, labels, z, axis, class_weight=w, label_smoothing=smoothing, ignore_index=ignore_index, sample_weight=s, reduction=reduction,
        z_loss=z_loss, upstream=g, names=contract.TORCH,
    )  # fmt: skip


def quick(input: Tensor, target: Tensor, ignore_index: int, reduction: str) -> tuple[Tensor, Tensor | None] | None:
    """As `scalar`, for the most frequent call: a contiguous matrix and its labels, without options. Returns None for other calls."""
    type_, native = TYPES.get(input.dtype), kernels.active()
    if native is not kernels.cpu or type_ is None or target.dtype != torch.int64 or input.dim() != 2 or not input.is_contiguous():
        return None
    (n, classes), shape = input.shape, target.shape
    if not n or not classes or len(shape) != 1 or shape[0] != n or not target.is_contiguous() or type(ignore_index) is not int:
        return None
    scale = 1 / n if reduction == "mean" else 1.0 if reduction == "sum" else None
    if scale is None or not -(2**63) <= ignore_index < 2**63 or lazy(input) or lazy(target):
        return None
    dz = like(input) if gradient_in_forward(input) else None
    threads = min(kernels.get_num_threads(), torch.get_num_threads())
    at = 0 if dz is None else dz.data_ptr()
    loss = native.scalar(input.data_ptr(), target.data_ptr(), at, n, classes, type_, ignore_index, scale, threads)
    return None if loss is None else (torch.scalar_tensor(loss, dtype=result_dtype(input), device="cpu"), dz)


def threads() -> int:
    """Return how many threads a kernel may use: at most torch's number and at most softxent's."""
    return min(kernels.get_num_threads(), torch.get_num_threads())


def _on_torchs_threads(f: Callable[..., T]) -> Callable[..., T]:
    @wraps(f)
    def limited(*args: Any, **kwargs: Any) -> T:
        with kernels.at_most(torch.get_num_threads()):
            return f(*args, **kwargs)

    return limited


@_on_torchs_threads
def rows(*p: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and lse of every row, in float64, and whether its most probable class is the label."""
    z, t = problem(*p)
    parts = np.empty((6, sweep.count(z)))
    result = sweep.forward(z, t, None, parts)
    correct = Partials(*parts)
    found = (*result, (correct.zt >= correct.m) & (correct.zt > -np.inf))  # an ignored row has -inf for both
    loss, lse, right = (torch.from_numpy(x.reshape(z.shape[:-1])) for x in found)  # not views of one tensor, which forward mode restricts
    return loss, lse, right


@_on_torchs_threads
def gradient(*p: Any) -> Tensor:
    """Return the gradient of the logits. The last two arguments, upstream gradients of the rows' losses and lse, may be None."""
    *p, g, g_lse = p  # type: ignore[assignment]
    dz = like(p[0])
    axis = p[3]
    if g is not None:
        z, t = problem(*p, upstream=g)
        sweep.fused(z, t, None, contract.to_last(array(dz), axis))
    if g_lse is not None:  # the gradient of lse is softmax: that of a truth with mass 1 whose label matches no class
        z = contract.to_last(array(p[0]), axis)
        more = dz if g is None else torch.empty_like(dz)
        sweep.fused(z, sweep.softmax_truth(z, array(g_lse.double())), None, contract.to_last(array(more), axis))
        dz = dz if g is None else dz.add_(more)
    return dz


@_on_torchs_threads
def in_place(*p: Any) -> Tensor:
    """Overwrite the logits with their gradient for the upstream gradients g, the last argument. Returns the loss of each row."""
    *p, g = p  # type: ignore[assignment]
    z, t = problem(*p, upstream=g)
    return torch.from_numpy(sweep.fused(z, t, None, z)[0])


@_on_torchs_threads
def scalar(*p: Any, sample: Tensor | None, reduction: str, gradient_in_forward: bool) -> tuple[Tensor, Tensor | None]:
    """Return the reduced loss and, if `gradient_in_forward` is set, its gradient, computed in the same pass."""
    z, t = problem(*p, sample=sample, reduction=reduction)
    dz = like(p[0]) if gradient_in_forward else None
    result = sweep.forward(z, t, None) if dz is None else sweep.fused(z, t, None, contract.to_last(array(dz), p[3]))
    loss = sweep.reduce(result[0], reduction, t.total, np.nan, ())
    return torch.scalar_tensor(loss, dtype=result_dtype(p[0]), device="cpu"), dz


def gradient_in_forward(input: Tensor) -> bool:
    """Whether a scalar loss computes its gradient in the same pass. Not in float16: with loss scaling, the upstream gradient is large
    (65536), and keeps small entries of the gradient from being rounded to 0."""
    return input.requires_grad and input.dtype != torch.float16 and torch.is_grad_enabled()


def scaled(dz: Tensor, g: Tensor) -> Tensor:
    """Multiply dz by an upstream gradient, in place. An entry of 0 stays 0 even if g is not finite, as ignored rows require."""
    by = g.item()
    if by == 1:
        return dz
    return dz.mul_(by) if math.isfinite(by) else torch.where(dz == 0, dz, dz * by)


def result_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of a loss: that of the logits, or float32 under autocast."""
    narrow = input.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow and torch.is_autocast_enabled(input.device.type) else input.dtype
