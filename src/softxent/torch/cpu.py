"""CPU tensors for the kernels: their memory, memory for gradients, and the call of the compiled kernel."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..contract import fail
from ..partials import Array
from ..shared import DTYPES
from . import private

SMALL = kernels.LARGE // 8  # elements, below which a gradient takes new memory
TYPES = {getattr(torch, name): code for name, code in DTYPES.items()}
WIDE = (torch.float64, torch.float32)


def array(t: Tensor) -> Array:
    """Return a NumPy view of the tensor's memory; bfloat16 as uint16, which the kernels take for it."""
    t = in_memory(t.detach())
    if not has_memory(t):
        no_memory("softxent.torch", "a tensor", t)
    a: Array = t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()
    return a


def lazy(t: Tensor) -> bool:
    """Whether the values of the tensor are not in its memory: lazy zeros and lazy negation."""
    return private.is_zero(t) or t.is_neg()


def in_memory(t: Tensor) -> Tensor:
    """Return the tensor, or a copy if its values are not in its memory."""
    return t.clone() if lazy(t) else t


def has_memory(t: Tensor) -> bool:
    """Whether the storage of the tensor is as large as its shape needs. `untyped_storage().resize_()` makes it smaller, or frees it."""
    if torch.compiler.is_compiling() or private.is_wrapped(t):  # such a tensor has no storage to look at
        return True
    size, first = t.untyped_storage().nbytes(), t.storage_offset() * t.itemsize
    if t.is_contiguous() and first + t.nbytes <= size:
        return True
    last = first + t.itemsize * sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return bool(last + t.itemsize <= size or not t.numel() or private.is_zero(t))


def no_memory(fn: str, argument: str, t: Tensor) -> NoReturn:
    """Refuse a tensor without its memory, as torch does, which has a RuntimeError for it."""
    fail(fn, argument, f"have memory for its shape {tuple(t.shape)}", f"a storage of {t.untyped_storage().nbytes()} bytes", RuntimeError)


def like(input: Tensor) -> Tensor:
    """Return an uninitialized tensor for a gradient with respect to `input`, on any device."""
    if input.numel() < SMALL or not input.is_cpu or not input.is_contiguous():
        return torch.empty_like(input)
    return empty(input.shape, input.dtype)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor. A large one uses memory that is kept for this (see `kernels.empty`)."""
    if kernels.cpu is None or math.prod(shape) * dtype.itemsize < kernels.LARGE:
        return torch.empty(shape, dtype=dtype, device="cpu")
    if dtype == torch.bfloat16:
        return torch.from_numpy(kernels.empty(shape, np.dtype(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(kernels.empty(shape, np.dtype(str(dtype).removeprefix("torch."))))


def threads() -> int:
    """Return how many threads a kernel may use: at most torch's number and at most softxent's."""
    return min(kernels.get_num_threads(), torch.get_num_threads())


Record = tuple[Any, ...]


def record(t: Tensor) -> Record:
    """Return a tensor as the compiled kernel takes it. An array of NumPy would cost a microsecond."""
    try:
        address = t.data_ptr()
    except RuntimeError:  # of torch.func, whose tensors wrap those with memory
        return record(private.wrapped(t))
    if not address or t.is_neg():
        t = in_memory(t)
        if not has_memory(t):
            no_memory("softxent.torch", "a tensor", t)
        address = t.data_ptr()
    return address, TYPES[t.dtype], t.shape, t.stride(), t  # which keeps the memory


def given(x: Any) -> Any:
    """Return a number of the rows as the compiled kernel takes it: a tensor [*lead] as a record, one without axes as a float, and others
    as they are."""
    if not isinstance(x, Tensor):
        return x
    return record(x if x.dtype in WIDE else x.double()) if x.ndim else x.item()


def labels(target: Tensor, classes: int, ignored: int, out: Tensor | None = None) -> tuple[int, int, float]:
    """Look through labels, as a backend does it (kernels/__init__.py)."""
    if native():
        return kernels.cpu.labels(record(target), classes, ignored, 0.0, None if out is None else record(out))
    return kernels.active().labels(array(target), classes, ignored, 0.0, None if out is None else array(out))


def native() -> bool:
    """Whether the active backend is the compiled kernel."""
    return kernels.active() is kernels.cpu
