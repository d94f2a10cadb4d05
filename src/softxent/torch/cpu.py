"""CPU tensors for the kernels: NumPy views of their memory, memory for gradients, and the quick call for the most frequent arguments."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..partials import Array

SMALL = kernels.LARGE // 8  # elements, below which a gradient takes new memory
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
    z: Tensor, label: Tensor, ignored: int, numbers: tuple[float, ...], factors: Tensor | None, off: Tensor | None, mean: bool,
    gradient: bool, losses: bool, upstream: Tensor | None = None,
) -> tuple[float, Tensor | None, Tensor | None] | None:  # fmt: skip
    """Return a reduced loss, its gradient and the losses of the rows, of contiguous tensors, in one call that takes no arrays.

    z: [N, C], with C > 0; label: [N] int64, where `ignored` stands for ignored rows. numbers: y, r, q, temperature and cap, of all rows;
    factors [C], float64, multiply y; off is [C], in the type in which is computed. upstream: [N], upstream gradients of the losses,
    whose gradient is then returned. Losses are float32 for float32 logits, else float64. Returns None if something does not fit, or if a
    label is out of range; the general functions say what is wrong.
    """
    native, type_ = kernels.cpu, TYPES.get(z.dtype)
    n, classes = z.shape
    if native is None or kernels.active() is not native or type_ is None or label.dtype != torch.int64 or label.shape != (n,) or not n:
        return None
    if not (z.is_contiguous() and label.is_contiguous()) or lazy(z) or lazy(label):
        return None
    small = n * classes < SMALL
    dz = None if not gradient else torch.empty_like(z) if small else empty(z.shape, z.dtype)
    wide = z.dtype if type_ == 0 else torch.float64
    each = z.new_empty(n, dtype=wide) if losses else None
    if upstream is not None:
        upstream = in_memory(upstream).to(wide).contiguous()
    y, r, q, temperature, cap = numbers
    loss = native.quick(
        z.data_ptr(), label.data_ptr(), 0 if dz is None else dz.data_ptr(), 0 if each is None else each.data_ptr(), n, classes,
        type_, ignored, y, r, q, 0 if factors is None else factors.data_ptr(), 0 if off is None else off.data_ptr(), mean,
        0 if upstream is None else upstream.data_ptr(), temperature, cap, 1 if n * classes < 4096 else threads(),
    )  # fmt: skip
    return None if loss is None else (loss, dz, each)
