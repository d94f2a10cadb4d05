"""CPU tensors for the kernels: NumPy views of their memory, memory for gradients, and the quick call for the most frequent arguments."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..partials import Array

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
    """Return an uninitialized tensor for a gradient with respect to `input`, on any device."""
    return empty(input.shape, input.dtype) if input.is_cpu and input.is_contiguous() else torch.empty_like(input, requires_grad=False)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor. A large one uses memory that is kept for this (see `kernels.empty`)."""
    if math.prod(shape) * dtype.itemsize < kernels.LARGE or kernels.cpu is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    if dtype == torch.bfloat16:
        return torch.from_numpy(kernels.empty(shape, np.dtype(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(kernels.empty(shape, np.dtype(str(dtype).removeprefix("torch."))))


def threads() -> int:
    """Return how many threads a kernel may use: at most torch's number and at most softxent's."""
    return min(kernels.get_num_threads(), torch.get_num_threads())


def quick(
    z: Tensor, label: Tensor, ignored: int, y: float, r: float, q: float, class_factor: Tensor | None, off: Tensor | None,
    temperature: float, cap: float, *, mean: bool, gradient: bool, losses: bool = False, upstream: Tensor | None = None,
) -> tuple[float, Tensor | None, Tensor | None] | None:  # fmt: skip
    """Return a reduced loss, its gradient and the losses of the rows, of contiguous tensors, in one call that takes no arrays.

    z: [N, C]; label: [N] int64, where `ignored` stands for ignored rows. y, r and q are the same for all rows; class_factor [C], float64,
    multiplies y; off is [C] in the type in which is computed. upstream: [N] float64, of the losses. Returns None if something does not fit, or if
    a label is out of range; the general functions say what is wrong.
    """
    type_, native = TYPES.get(z.dtype), kernels.cpu
    if native is None or kernels.active() is not native or type_ is None or label.dtype != torch.int64 or z.dim() != 2:
        return None
    (n, classes), shape = z.shape, label.shape
    if not n or not classes or len(shape) != 1 or shape[0] != n or not label.is_contiguous() or not z.is_contiguous():
        return None
    if lazy(z) or lazy(label):
        return None
    dz = empty(z.shape, z.dtype) if gradient else None
    each = torch.empty(n, dtype=torch.float64, device="cpu") if losses else None
    loss = native.quick(
        z.data_ptr(), label.data_ptr(), 0 if dz is None else dz.data_ptr(), 0 if each is None else each.data_ptr(), n, classes, type_, ignored,
        y, r, q, 0 if class_factor is None else class_factor.data_ptr(), 0 if off is None else off.data_ptr(), mean,
        0 if upstream is None else upstream.data_ptr(), temperature, cap, threads(),
    )  # fmt: skip
    return None if loss is None else (loss, dz, each)
