"""The computations for tensors that have no NumPy view, such as those on a GPU. cpu.py has the same functions for CPU tensors.

The truth of the rows is computed on the tensor's device, and no function except `check` waits for the device. So a label out of range
cannot raise an error: the loss and the gradient of its row are NaN. `p` stands for the arguments input, target, weight, axis, ignore_index,
smoothing and z_loss, as in the other files of this package.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import contract, truth
from ..kernels import reference
from ..truth import NO_LABEL
from . import arrays as arrays  # registers the functions with which formula.py computes on tensors
from .cpu import in_memory, result_dtype

try:
    from ..kernels import triton as triton
except ImportError as error:
    triton = None  # type: ignore[assignment]
    missing = f"Triton is missing ({error})"
else:
    missing = ""

FN = "cross_entropy"
NAMES: dict[str, Any] = {"formula": reference, **({"triton": triton} if triton else {})}
_forced: str | None = None  # not a ContextVar, because the threads of autograd must see it
_warned = False


class Truth(NamedTuple):
    """The truth of R rows, as the kernels take it (kernels/__init__.py), in tensors on the device."""

    label: Tensor  # [R]
    rows: Tensor  # [4, R]
    off: Tensor | None  # [C] or [R, C]
    total: Tensor  # the sum of the rows' weights, by which a mean is divided


def forced() -> str | None:
    """Return the name of the backend that use_backend selected, or None."""
    return _forced


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select a backend for the tensors of all devices, CPU included, within a `with` block: "triton" or "formula".

    The selection holds for the whole process, because autograd has its own threads. Triton runs on a CPU only in its interpreter, which the
    environment variable TRITON_INTERPRET=1 enables if it is set before Triton is imported.

    Raises:
        ValueError: if the backend does not exist or is not available.
    """
    global _forced
    if not isinstance(name, str) or name not in NAMES:
        contract.fail(
            "use_backend", "name", "be " + " or ".join(map(repr, sorted(NAMES))), repr(name) + (f" ({missing})" if missing else "")
        )
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def kernel(z: Tensor) -> Any:
    """Return the backend for tensors on the device of z. Warns once if Triton is missing on a GPU."""
    global _warned
    if _forced is not None:
        return NAMES[_forced]
    if triton and z.is_cuda:
        return triton
    if z.device.type == "mps":
        contract.fail(FN, "input", "be on a device that has float64", z.device)
    if z.is_cuda and not _warned:
        _warned = True
        warnings.warn(f"softxent runs on torch's operations, slowly: {missing}; pip install triton", RuntimeWarning, stacklevel=2)
    return reference


def problem(*p: Any, sample: Tensor | None = None, upstream: Tensor | None = None, reduction: str = "none") -> tuple[Tensor, Truth]:
    """Return the logits [R, C] and the truth of their rows."""
    input, target, weight, axis, ignore_index, smoothing, z_loss = p
    z, n = _matrix(input.detach(), axis), _count(input, axis)
    classes = z.shape[1]
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    w = None if weight is None else weight.detach().double()
    one = torch.ones((), dtype=torch.float64, device=z.device)
    each = (one if sample is None else sample.detach().double()).expand(_lead(input, axis)).reshape(n)
    off = None
    if target.is_floating_point():
        off, live, y, r, weights = _matrix(target.detach(), axis), one, 0 * each, each, each
        if w is not None or smoothing or off.dtype not in (z.dtype, wide):
            off = truth.soft(off.to(wide), None if w is None else w.to(wide), smoothing, classes)
        label = off.argmax(1)
    else:
        if input.is_cpu:
            check(input, target, axis, ignore_index)
        label = in_memory(target).reshape(n).long()
        counted = label != ignore_index
        live = counted.double()
        weights, y, r = truth.of_label(label, live, w, each, smoothing, classes)
        y = torch.where(counted & ((label < 0) | (label >= classes)), math.nan, y)
        if smoothing > 0:
            off = truth.everywhere(one.expand(classes) if w is None else w, smoothing, classes).to(wide)
    total = weights.sum()
    scale = torch.where(total == 0, 0.0, 1 / total) if reduction == "mean" else one
    rows = torch.empty((4, n), dtype=torch.float64, device=z.device)
    up = scale if upstream is None else scale * upstream.detach().double().reshape(n)
    for row, number in zip(rows, (y, r, 2 * z_loss * each * live, up), strict=True):
        row.copy_(number if isinstance(number, Tensor) else one * number)
    return z, Truth(label, rows, off, total)


def check(input: Tensor, target: Tensor, axis: int, ignore_index: int, fn: str = FN) -> None:
    """Raise an error if a label is out of range. On a GPU this waits for the labels."""
    labels = in_memory(target.detach()).cpu().numpy()
    classes = input.shape[axis]
    contract.inside(fn, "target", labels, reference.first_outside(labels.reshape(-1), classes, ignore_index), classes, ignore_index)


def rows(*p: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and lse of every row, in float64, and whether its most probable class is the label."""
    z, t = problem(*p)
    parts = torch.empty((6, len(z)), dtype=torch.float64, device=z.device)
    loss, lse = _forward(z, t, parts)
    lead, (m, _, _, _, zt, _) = _lead(p[0], p[3]), parts
    return loss.view(lead).clone(), lse.view(lead).clone(), ((zt >= m) & (zt > -math.inf)).view(lead)


def gradient(*p: Any) -> Tensor:
    """Return the gradient of the logits. The last two arguments, upstream gradients of the rows' losses and lse, may be None."""
    *p, g, g_lse = p  # type: ignore[assignment]
    input, axis = p[0], p[3]
    found = []
    if g is not None:
        found.append(_fused(input, axis, *problem(*p, upstream=g))[1])
    if g_lse is not None:  # the gradient of lse is softmax: that of a truth with mass 1 whose label matches no class
        z, up = _matrix(input.detach(), axis), g_lse.detach().double().reshape(-1)
        t = Truth(torch.full_like(up, NO_LABEL, dtype=torch.int64), torch.stack([(up != 0).double(), 0 * up, 0 * up, up]), None, up)
        found.append(_fused(input, axis, z, t)[1])
    return found[0] if len(found) == 1 else found[0].add_(found[1])


def in_place(*p: Any) -> Tensor:
    """Overwrite the logits with their gradient for the upstream gradients g, the last argument. Returns the loss of each row."""
    *p, g = p  # type: ignore[assignment]
    z, t = problem(*p, upstream=g)
    result = torch.empty((2, len(z)), dtype=torch.float64, device=z.device)
    kernel(z).fused(z, *t[:3], z, result, None, 1)
    return result[0]


def scalar(*p: Any, sample: Tensor | None, reduction: str, gradient_in_forward: bool) -> tuple[Tensor, Tensor | None]:
    """Return the reduced loss and, if `gradient_in_forward` is set, its gradient, computed in the same pass."""
    z, t = problem(*p, sample=sample, reduction=reduction)
    if gradient_in_forward:
        (losses, _), dz = _fused(p[0], p[3], z, t)
    else:
        (losses, _), dz = _forward(z, t, None), None
    loss = losses.sum() / t.total if reduction == "mean" else losses.sum()
    return loss.to(result_dtype(p[0])), dz


def scaled(dz: Tensor, g: Tensor) -> Tensor:
    """Return dz times an upstream gradient g that is on the device. If g is 1, as in loss.backward(), the kernel does not touch dz."""
    by = kernel(dz)
    return torch.where(dz == 0, dz, dz * g) if by is reference else by.scale(dz, in_memory(g))


def _forward(z: Tensor, t: Truth, parts: Tensor | None) -> Tensor:
    result = torch.empty((2, len(z)), dtype=torch.float64, device=z.device)
    kernel(z).forward(z, *t[:3], result, parts, 1)
    return result


def _fused(input: Tensor, axis: int, z: Tensor, t: Truth) -> tuple[Tensor, Tensor]:
    """Return loss and lse of the rows, and the gradient, with the shape and strides of `input`."""
    dz, result = torch.empty_like(input, requires_grad=False), torch.empty((2, len(z)), dtype=torch.float64, device=z.device)
    place = _viewed(dz, axis)
    out = torch.empty_like(z) if place is None else place
    kernel(z).fused(z, *t[:3], out, result, None, 1)
    if place is None:
        last = dz.movedim(axis, -1)
        last.copy_(out.view(last.shape))
    return result, dz


def _lead(input: Tensor, axis: int) -> list[int]:
    return [n for i, n in enumerate(input.shape) if i != axis]


def _count(input: Tensor, axis: int) -> int:
    return math.prod(_lead(input, axis))


def _viewed(t: Tensor, axis: int) -> Tensor | None:
    """Return a view [R, C] with adjacent columns, or None if the strides do not allow it."""
    last = t.movedim(axis, -1)
    if last.stride(-1) != 1:
        return None
    try:
        return last.view(_count(t, axis), last.shape[-1])
    except RuntimeError:
        return None


def _matrix(t: Tensor, axis: int) -> Tensor:
    t = in_memory(t)
    found = _viewed(t, axis)
    return t.movedim(axis, -1).reshape(_count(t, axis), -1).contiguous() if found is None else found
