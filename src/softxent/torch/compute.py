"""Calls of the kernels for tensors on any device. operators.py and linear_operators.py call these functions, which know no derivative.

CPU tensors are passed to the kernels as NumPy views (cpu.py), others as tensors. The arguments are those of the kernels
(kernels/__init__.py), with two differences: the logits have their classes on any `axis`, and label, y, r, q and the upstream gradients g,
l, b and n have the shape of the other axes, `lead`, or no axes if they are the same for all rows. No function waits for a GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.nn import Parameter

from .. import contract, kernels
from ..kernels import reference
from ..shared import OPS as CODES
from . import arrays as arrays  # registers the functions with which formula.py computes on tensors
from . import cpu

try:
    from ..kernels import triton as triton
except ImportError as error:
    triton = None  # type: ignore[assignment]
    missing = f"Triton is missing ({error})"
else:
    missing = ""

OPS = {name.lower(): code for name, code in CODES.items()}
NAMES: dict[str, Any] = {"formula": reference, **({"triton": triton} if triton else {})}
SCRATCH, SCRATCH_ON_A_GPU = 1 << 21, 1 << 27  # bytes of logits in a chunk, where the strides or types are none that a kernel takes
PLAIN, STRIDED = (Tensor, Parameter), torch.strided
FLOAT32 = torch.finfo(torch.float32).max
_forced: str | None = None  # not a ContextVar, because the threads of autograd must see it
_warned = False


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
        why = f" ({missing})" if missing else ""
        contract.fail("use_backend", "name", "be " + " or ".join(map(repr, sorted(NAMES))), contract.shown(name) + why)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def backend(t: Tensor) -> Any:
    """Return the backend for this tensor. Warns once if Triton is missing on a GPU."""
    global _warned
    if _forced is not None:
        return NAMES[_forced]
    if t.is_cpu:
        return kernels.active()
    if triton and t.is_cuda:
        return triton
    if t.device.type == "mps":
        contract.fail("softxent", "input", "be on a device that has float64", t.device)
    if t.is_cuda and not _warned:
        _warned = True
        warnings.warn(f"softxent runs on torch's operations, slowly: {missing}; pip install triton", RuntimeWarning, stacklevel=2)
    return reference


def call(function: str, *arguments: Any) -> None:
    """Call a function of the backend; the first argument is a tensor. The number of threads is added."""
    z = arguments[0]
    if z.is_cpu and _forced is None:
        arguments = tuple(cpu.array(a) if isinstance(a, Tensor) else a for a in arguments)
    getattr(backend(z), function)(*arguments, cpu.threads())


def native(z: Tensor) -> bool:
    """Whether the backend for this tensor is the compiled kernel."""
    return z.is_cpu and _forced is None and cpu.native()


def run(
    op: str, z: Tensor, axis: int, label: Tensor | None, given: Sequence[Any], off: Tensor | None, transform: tuple[float, float], *,
    out: Tensor | None = None, result: Sequence[Tensor | None] = (), parts: Tensor | None = None, v: Tensor | None = None,
) -> Any:  # fmt: skip
    """Call a function of the backend for all rows. `result` are tensors [*lead] for what the rows give, or None for those not wanted.

    The numbers `given` are tensors, [*lead] or 0-dim, floats, or None for 0. Returns the sum of the losses.
    """
    wide = compute_dtype(z)
    if off is not None and off.shape != z.shape:
        off = off.to(wide).contiguous()
    if native(z) and (off is None or off.dtype in (z.dtype, wide)) and (v is None or v.dtype == wide):
        z_, label_, off_, parts_, v_ = [None if t is None else cpu.record(t) for t in (z, label, off, parts, v)]
        out_ = z_ if out is z else None if out is None else cpu.record(out)
        rows, numbers_ = tuple([None if t is None else cpu.record(t) for t in result]), tuple(map(cpu.given, given))
        return kernels.cpu.call(OPS[op], z_, axis, label_, numbers_, off_, transform, out_, rows, parts_, cpu.threads(), v_)[0]
    _, n = shape_of_rows(z, axis)
    by, label = numbers(n, *given), label if label is None else label.reshape(n)
    found = new((4 if op == "curvature" else max(2, len(result)), n), z)
    for i, zi, offi, *others in row_chunks(axis, z, off, v, out=out):
        some, part = found[:, i], parts if parts is None else parts[:, i]
        if label is None:
            call(op, zi, cut(by, i)[0], transform, *others)
            continue
        of_rows = (label[i], cut(by, i), offi, transform)
        if op == "curvature":
            call(op, zi, others[0], *of_rows, False, others[1], some)
        elif op == "backward":
            call(op, zi, *of_rows, part, *others)
        else:
            call(op, zi, *of_rows, *others, some, part)
    for t, row in zip(result, found, strict=False):
        if t is not None:
            t.copy_(row.view(t.shape))
    return summed(found[0]) if op in ("forward", "fused") else 0.0


# ---- what the operators compute ----


def rows(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Tensor | None, axis: int, temperature: float, cap: float, more: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return loss, lse and, if `more`, the log-probability of the label, the entropy, and whether the label is a most probable class."""
    lead, _ = shape_of_rows(z, axis)
    found = [new(lead, z) for _ in range(5 if more else 2)]
    run("forward", z, axis, label, (y, r, q, None), off, (temperature, cap), result=found)
    loss, lse, logprob, entropy, correct = found if more else (*found, *(new((0,), z) for _ in range(3)))
    return loss, lse, logprob, entropy, correct != 0


def gradient(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Tensor | None,
    g: Tensor | None, l: Tensor | None, b: Tensor | None, n: Tensor | None,  # noqa: E741
    axis: int, temperature: float, cap: float,
) -> Tensor:  # fmt: skip
    """Return the gradient of the logits, for the upstream gradients of loss, lse, log-probability and entropy. None stands for 0."""
    dz = cpu.like(z)
    run("fused", z, axis, label, (y, r, q, g, l, b, n), off, (temperature, cap), out=dz)
    return dz


def curvature(z: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the derivative of `gradient` along v, and of each row mean, v_t - mean, sum_k off_k (v_k - mean) and that of the entropy.

    The other arguments are those of `gradient`, label to cap.
    """
    label, y, r, q, off, g, l, b, n, axis, *transform = others  # noqa: E741
    hv, found = cpu.like(z), [new(shape_of_rows(z, axis)[0], z) for _ in range(4)]
    n = torch.zeros_like(q) if n is None else n  # the kernel computes the derivative of the entropy only if it is given this number
    run("curvature", z, axis, label, (y, r, q, g, l, b, n), off, tuple(transform), out=hv, result=found, v=v)
    mean, at_label, by_off, dentropy = found
    return hv, mean, at_label, by_off, dentropy


def log_softmax(z: Tensor, scale: Tensor, axis: int, temperature: float, cap: float) -> Tensor:
    """Return scale log softmax(z), for a scale of each row."""
    out = cpu.like(z)
    run("log_softmax", z, axis, None, (scale,), None, (temperature, cap), out=out)
    return out


def scaled(dz: Tensor, g: Tensor) -> Tensor:
    """Multiply dz by the number g, in place if possible. An entry of 0 stays 0 even if g is not finite, as ignored rows require."""
    if dz.is_cpu and _forced is None:
        by = g.item()
        if by == 1:
            return dz
        return dz.mul_(by) if math.isfinite(by) else torch.where(dz == 0, dz, dz * by)
    kernel = backend(dz)
    return torch.where(dz == 0, dz, dz * g) if kernel is reference else kernel.scale(dz, cpu.in_memory(g))  # does nothing if g is 1


def divided(loss: float, weights: float) -> float:
    """Return loss / weights, and NaN where the weights are 0, as torch does."""
    return loss / weights if weights else math.nan


def scalar(x: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor of a CPU."""
    if abs(x) > FLOAT32:  # torch refuses it as a float32, where it is infinite
        return torch.scalar_tensor(x, dtype=torch.float64, device="cpu").to(dtype)
    return torch.scalar_tensor(x, dtype=dtype, device="cpu")


def without_autocast(device: str) -> Any:
    """Return the context in which products have the types of their arguments."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


# ---- kinds of tensors ----


def readable(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors with values: no transform of torch.func, no compiler, no tracer and no subclass is involved."""
    for t in tensors:
        if type(t) not in PLAIN or t.is_meta:
            return False
    if torch.compiler.is_compiling():  # first, for the compiler cannot trace the others
        return False
    return not torch._C._are_functorch_transforms_active() and not traced()


def traced() -> bool:
    """Whether a tracer records operators: torch.jit.trace, or a mode such as that of make_fx."""
    return torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def direct(*tensors: Tensor) -> bool:
    """Whether these are plain, and dense tensors of a CPU with memory, whose backend is the compiled kernel."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or traced() or forward_ad._current_level >= 0:
        return False
    for t in tensors:
        if type(t) not in PLAIN or not t.is_cpu or t.layout is not STRIDED or not t.data_ptr():
            return False
    return _forced is None and kernels.active() is kernels.cpu


def plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors with values, and no forward-mode tangent is involved either."""
    return forward_ad._current_level < 0 and readable(*tensors)


def saved(ctx: Any) -> tuple[Any, ...]:
    """Return the tensors that were saved for a backward pass, after a check that nobody has freed or shortened their memory since then.

    A function that torch.func.vjp returns is called after its transform has ended: the wrappers of the transform are removed.
    """
    found: tuple[Any, ...] = unwrap_dead_wrappers(ctx.saved_tensors)
    need_memory(*found)
    return found


def need_memory(*tensors: Tensor | None) -> None:
    """Raise an error if the memory of a tensor was freed, or is shorter than its shape needs."""
    for t in tensors:
        if t is not None and readable(t) and not cpu.has_memory(t):
            cpu.no_memory("softxent.torch", "a tensor that was saved for the backward pass", t)


# ---- rows and their numbers ----


def compute_dtype(t: Tensor) -> torch.dtype:
    """Return the type in which the kernels compute for logits t: float64 for float64, float32 for the others."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def shape_of_rows(z: Tensor, axis: int) -> tuple[list[int], int]:
    """Return the shape without the class axis, and the number of rows."""
    lead = [n for i, n in enumerate(z.shape) if i != axis]
    return lead, math.prod(lead)


def new(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def summed(t: Tensor) -> Tensor:
    """Return the sum in float64, on the CPU with the bits of NumPy's sum, if there are values to sum and nothing to differentiate."""
    if plain(t) and t.is_cpu and not t.requires_grad:
        return torch.scalar_tensor(t.numpy().sum(), dtype=torch.float64, device="cpu")
    return t.sum(dtype=torch.float64)


def mean(loss: Tensor, total: Tensor | None) -> Tensor:
    """Return a sum of losses, divided by the sum of the rows' weights, if there is one. Where that is 0, it is NaN, as torch's, with
    derivatives of 0."""
    if total is None:
        return loss
    empty = total == 0
    return torch.where(empty, math.nan, loss / torch.where(empty, 1.0, total))


def numbers(rows: int, *given: Tensor | float | None) -> Tensor:
    """Return numbers of the rows, (y, r, q, g) or (y, r, q, g, l, b, n), as the kernels take them: [K, R], or [K, 1] if none differs."""
    there = [x.detach() for x in given if isinstance(x, Tensor)]
    n = 1 if all(x.numel() == 1 for x in there) else rows
    needed = given if any(x is not None for x in given[4:]) else given[:4]
    each = [x.detach().reshape(-1) if isinstance(x, Tensor) else there[0].new_full((), x or 0.0, dtype=torch.float64) for x in needed]
    return torch.stack([x.expand(n) for x in each]).double()


def cut(given: Tensor, i: slice) -> Tensor:
    """Return the numbers of the rows i."""
    return given if given.shape[1] == 1 else given[:, i]


def row_chunks(
    axis: int, z: Tensor, off: Tensor | None, v: Tensor | None = None, *, out: Tensor | None = None, matrices: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows as a kernel takes them: a slice i, and z, off, v and out (those that were given, and always off), classes last.

    They are all rows and the tensors' own memory if the types allow it, and otherwise matrices [n, C], chunks that are copied; those of
    `out` are copied back. With `matrices`, and for Triton, they are matrices in any case, which are copied if the strides need it.
    """
    wide, shared = compute_dtype(z), off is not None and off.shape != z.shape
    if shared:
        off = off.detach().to(wide).contiguous()  # type: ignore[union-attr]
    given = [t for t in (z, None if shared else off, v, out) if t is not None]
    types = [t.dtype if t is z or t is out or (t is not v and t.dtype in (z.dtype, wide)) else wide for t in given]
    last = [_classes_last(t, axis) for t in given]
    strided = not matrices and backend(z) is not triton
    whole = all(t.dtype == dtype and (strided or _viewed(t) is not None) for t, dtype in zip(last, types, strict=True))
    step = max(1, (SCRATCH if z.is_cpu else SCRATCH_ON_A_GPU) // (z.element_size() * max(1, last[0].shape[-1])))
    first = 0
    for parts in [last] if whole else _blocks(step, last):
        rows = parts if whole and strided else [_matrix(part, dtype) for part, dtype in zip(parts, types, strict=True)]
        n = math.prod(rows[0].shape[:-1])
        if n:
            head = rows[:1] + ([off] if shared or off is None else [])
            yield (slice(first, first + n), *head, *rows[1:])
        if out is not None and rows[-1].data_ptr() != parts[-1].data_ptr():
            parts[-1].copy_(rows[-1].view(parts[-1].shape))
        first += n


def _classes_last(t: Tensor, axis: int) -> Tensor:
    t = cpu.in_memory(t.detach())
    last = t if axis == t.ndim - 1 else t.movedim(axis, -1)
    return last if last.ndim > 1 else last[None]


def _blocks(step: int, tensors: list[Any]) -> Iterator[Any]:
    """Yield parts of the tensors [*lead, C], of at most `step` rows but at least one, in order."""
    first, *others = tensors[0].shape[:-1]
    rows = max(1, math.prod(others))
    if rows > step:
        for i in range(first):
            yield from _blocks(step, [t[i] for t in tensors])
    else:
        yield from zip(*(t.split(max(1, step // rows)) for t in tensors), strict=True)


def _viewed(t: Tensor) -> Tensor | None:
    """Return a view [n, C] with adjacent columns of a tensor [*lead, C], or None if the strides do not allow it."""
    if t.stride(-1) != 1 and t.shape[-1] != 1:
        return None
    if t.ndim == 2:
        return t
    try:
        return t.view(t.shape[:-1].numel(), t.shape[-1])
    except RuntimeError:
        return None


def _matrix(t: Tensor, dtype: torch.dtype) -> Tensor:
    found = _viewed(t) if t.dtype == dtype else None
    return t.to(dtype).reshape(t.shape[:-1].numel(), t.shape[-1]).contiguous() if found is None else found
