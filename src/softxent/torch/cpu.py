"""CPU tensors for the kernels: NumPy views of their memory, memory for gradients, and the quick call for the most frequent arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..contract import fail
from ..partials import Array
from ..shared import DTYPES, SMALL_CALL

SMALL = kernels.LARGE // 8  # elements, below which a gradient takes new memory
STRIDED = {torch.strided}
TYPES = {getattr(torch, name): code for name, code in DTYPES.items()}


def array(t: Tensor) -> Array:
    """Return a NumPy view of the tensor's memory; bfloat16 as uint16, which the kernels take for it."""
    t = in_memory(t.detach())
    if not has_memory(t):
        no_memory("softxent.torch", "a tensor", t)
    a: Array = t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()
    return a


def lazy(t: Tensor) -> bool:
    """Whether the values of the tensor are not in its memory: lazy zeros and lazy negation."""
    return t._is_zerotensor() or t.is_neg()


def in_memory(t: Tensor) -> Tensor:
    """Return the tensor, or a copy if its values are not in its memory."""
    return t.clone() if lazy(t) else t


def has_memory(t: Tensor) -> bool:
    """Whether the storage of the tensor is as large as its shape needs. `untyped_storage().resize_()` makes it smaller, or frees it."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(t):  # such a tensor has no storage to look at
        return True
    size, first = t.untyped_storage().nbytes(), t.storage_offset() * t.itemsize
    if t.is_contiguous() and first + t.nbytes <= size:
        return True
    last = first + t.itemsize * sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return bool(last + t.itemsize <= size or not t.numel() or t._is_zerotensor())


def no_memory(fn: str, argument: str, t: Tensor) -> NoReturn:
    """Refuse a tensor without its memory, as torch does, which has a RuntimeError for it."""
    fail(fn, argument, f"have memory for its shape {tuple(t.shape)}", f"a storage of {t.untyped_storage().nbytes()} bytes", RuntimeError)


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


NOTHING = (False,) * 5  # `wanted` where no output is
NO_OUTPUTS = (None,) * 4


def quick(
    z: Tensor, target: Tensor, ignored: int, numbers: tuple[float, ...], factors: Tensor | None, sample: Tensor | None, off: Tensor | None,
    mean: bool, wanted: tuple[bool, ...], gradient: bool, keep_parts: bool, parts: Tensor | None = None,
    upstream: Sequence[Tensor | None] | None = None,
) -> tuple[float, int, Sequence[Tensor | None], Tensor | None, Tensor | None] | None:  # fmt: skip
    """Return a reduced loss, the number of correct rows, outputs of the rows, the gradient and the partial sums, in one call of the kernel.

    The kernel gets the addresses of the tensors, because arrays would cost microseconds.

    z: logits with C > 0 classes on `class_axis` and any strides; `lead` is the shape of its N rows. target: [*lead] int64, where `ignored`
    stands for ignored rows, or probabilities with the shape of z.
    numbers: y, r, q, temperature and cap, of all rows; factors [C], float64, multiply y; sample [*lead], float64, multiplies y, r and q.
    off: [C] or with the shape of z, in the type in which is computed or, if it is the target, in that of z.
    wanted: loss, lse, log-probability and entropy of each row, and the number of correct rows.
    gradient: whether to return that of the sum or mean or, if `upstream` is given, that for these gradients of the four outputs, each
    [*lead], 0-dim or None.
    parts: [7, N], the partial sums of the forward pass, or None. With `keep_parts` they are returned, unless there are few elements.

    Outputs are float32 for float32 logits, else float64. Returns None if something does not fit, or if a label is out of range; the general
    functions say what is wrong. Whether storages are shorter than before is looked at in a backward pass alone, for it takes a microsecond.
    """
    native = kernels.cpu
    type_ = TYPES.get(z.dtype)
    shape, axis, size = z.shape, class_axis(z), z.numel()
    lead = rows_shape(z)
    if native is None or kernels.active() is not native or type_ is None or not size or {z.layout, target.layout} != STRIDED:
        return None
    indices, each = target.dtype == torch.int64 and target.shape == lead, off is not None and off.shape == shape
    if not (indices or (off is not None and each and not lazy(off))) or lazy(z) or lazy(target):
        return None
    if upstream is not None and not _unchanged(z, target, factors, sample, off, parts, upstream):
        return None
    labels = target.contiguous() if indices else None
    n = size // shape[axis]
    dz = None if not gradient else torch.empty_like(z) if size < SMALL else like(z)
    wide = z.dtype if type_ == 0 else torch.float64
    outputs: Any = NO_OUTPUTS
    addresses: tuple[int | None, ...] = NO_OUTPUTS
    if wanted is not NOTHING:
        outputs = [z.new_empty(lead, dtype=wide) if want else None for want in wanted[:4]]
        addresses = tuple(map(_address, outputs))
    if keep_parts and size >= SMALL_CALL:
        parts = z.new_empty((7, n), dtype=torch.float64)
    columns = None
    if upstream is not None:
        given = [_of_rows(None if g is None else in_memory(g).to(wide)) for g in upstream] + [None] * (4 - len(upstream))
        columns = tuple(map(_column, given))
    y, r, q, temperature, cap = numbers
    sample = _of_rows(sample)
    found = native.quick(
        z.data_ptr(), _address(labels), _address(dz), _address(parts), addresses, wanted[4],
        shape, axis, z.stride(), None if dz is None else dz.stride(), type_, ignored, y, r, q, _address(factors), _column(sample),
        _address(off), off.stride() if off is not None and each else None, off is not None and off.dtype != z.dtype, mean, columns,
        temperature, cap, 1 if size < SMALL_CALL else threads(),
    )  # fmt: skip
    return None if found is None else (found[0], found[1], outputs, dz, parts)


def class_axis(z: Tensor) -> int:
    """Return the axis of the classes: the second or, of one row, the only one."""
    return 1 if z.ndim > 1 else 0


def rows_shape(z: Tensor) -> torch.Size:
    """Return the shape without the class axis."""
    return z.shape[:1] if z.ndim == 2 else z.shape[: class_axis(z)] + z.shape[2:]


def _of_rows(t: Tensor | None) -> Tensor | None:
    """Return numbers of the rows on one axis, or without one."""
    return t if t is None or t.ndim < 2 else t.reshape(-1)


def _unchanged(
    z: Tensor, target: Tensor, factors: Tensor | None, sample: Tensor | None, off: Tensor | None, parts: Tensor | None,
    upstream: Sequence[Tensor | None],
) -> bool:  # fmt: skip
    """Whether the tensors that were saved for a backward pass fit each other, as they did in the forward pass, and have their memory."""
    lead, classes = rows_shape(z), z.shape[class_axis(z)]
    of_off = z.shape if off is not None and off.ndim == z.ndim else (classes,)
    for t, shape in ((factors, (classes,)), (sample, lead), (parts, (7, lead.numel())), (off, of_off)):
        if t is not None and (t.shape != shape or not has_memory(t)):
            return False
    return has_memory(z) and has_memory(target) and all(g is None or not g.ndim or g.shape == lead for g in upstream)


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _column(t: Tensor | None) -> tuple[int, int] | None:
    """Return the address of numbers of the rows, [N] or 0-dim, and the step between them."""
    return None if t is None else (t.data_ptr(), t.stride(0) if t.ndim else 0)
