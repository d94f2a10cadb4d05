"""Calls of the kernels for tensors on any device. operators.py and linear_operators.py call these functions, which know no derivative.

CPU tensors are passed to the kernels as NumPy views (cpu.py), others as tensors. The arguments are those of the kernels
(kernels/__init__.py), with two differences: the logits have their classes on any `axis`, and label, y, r, q and the upstream gradients g,
l, b and n have the shape of the other axes, `lead`, or no axes if they are the same for all rows. No function waits for a GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import contract, formula, kernels, partials
from ..call import Call, Static
from ..kernels import reference
from ..shared import IGNORED, NO_LABEL, SHORT_ROW
from ..shared import OPS as CODES
from . import arrays as arrays  # registers the functions with which formula.py computes on tensors
from . import cpu, private, processes
from .modes import PLAIN, plain, readable, traced

try:
    from ..kernels import triton as triton
except ImportError as error:
    triton = None  # type: ignore[assignment]
    missing = f"Triton is missing ({error})"
else:
    missing = ""

OUTPUTS = (*formula.Outputs._fields, "predicted")  # what a row gives; predicted is the most probable class
TYPES = {"correct": torch.bool, "predicted": torch.int64}  # of those that are no float64, which have no derivative
SHORT = 2  # of these, without the sums that the entropy needs
NO_COLUMNS = [float(x[0]) for x in partials.identity(1)[:-1]]
OPS = {name.lower(): code for name, code in CODES.items()}
NAMES: dict[str, Any] = {"formula": reference, **({"triton": triton} if triton else {})}
SCRATCH, SCRATCH_ON_A_GPU = 1 << 21, 1 << 27  # bytes of logits in a chunk, where the strides or types are none that a kernel takes
STRIDED = torch.strided
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


def backend_call(function: str, *arguments: Any) -> None:
    """Call a function of the backend; the first argument is a tensor. The number of threads is added."""
    z = arguments[0]
    if z.is_cpu and _forced is None:
        arguments = tuple(cpu.array(a) if isinstance(a, Tensor) else a for a in arguments)
    getattr(backend(z), function)(*arguments, cpu.threads())


def native(z: Tensor) -> bool:
    """Whether the backend for this tensor is the compiled kernel."""
    return z.is_cpu and _forced is None and cpu.native()


def run(
    op: str, call: Call, static: Static, *, out: Tensor | None = None, result: Sequence[Tensor | None] = (), parts: Tensor | None = None,
    tangents: Tensor | None = None,
) -> Any:  # fmt: skip
    """Call a function of the backend for all rows, with the columns of this process. Returns the sum of the losses.

    `result` are tensors [*lead] for what the rows give, or None for those not wanted; `parts` is [7, R], and `tangents` [5, R].
    """
    z, axis, wide, transform = call.z, static.axis, compute_dtype(call.z), (static.temperature, static.cap)
    label = None if op == "log_softmax" else labels_of(call, static)
    off, v = (x if given(x) else None for x in (call.off, call.v))
    if off is not None and off.shape != z.shape:
        off = off.to(wide).contiguous()
    of_rows = numbers_of(op, call)
    if native(z) and (off is None or off.dtype in (z.dtype, wide)) and (v is None or v.dtype == wide):
        z_, label_, off_, parts_, v_, tangents_ = [None if t is None else cpu.record(t) for t in (z, label, off, parts, v, tangents)]
        out_ = z_ if out is z else None if out is None else cpu.record(out)
        rows, numbers_ = tuple([None if t is None else cpu.record(t) for t in result]), tuple(map(cpu.given, of_rows))
        how = (numbers_, off_, transform, out_, rows, parts_, cpu.threads(), v_)
        return kernels.cpu.call(OPS[op], z_, axis, label_, *how, tangents=tangents_)[0]
    _, n = shape_of_rows(z, axis)
    by, label = numbers(n, z, *of_rows), label if label is None else label.reshape(n)
    found = new((4 if op in ("curvature", "hessian") else max(SHORT, len(result)), n), z)
    for i, zi, offi, *others in row_chunks(axis, z, off, v, out=out):
        some, part, along = (t if t is None else t[:, i] for t in (found, parts, tangents))
        if label is None:
            backend_call(op, zi, cut(by, i)[0], transform, *others)
            continue
        rows_of, truth = label[i], (cut(by, i), offi, transform)
        if op == "tangent_sums":
            backend_call(op, zi, *others, rows_of, offi, transform, part, along)
        elif op == "curvature":
            backend_call(op, zi, others[0], rows_of, *truth, False, others[1], some)
        elif op == "hessian":
            backend_call(op, zi, others[0], rows_of, *truth, False, part, along, others[1], some)
        elif op == "backward":
            backend_call(op, zi, rows_of, *truth, part, *others)
        else:
            backend_call(op, zi, rows_of, *truth, *others, some, part)
    for t, row in zip(result, found, strict=False):
        if t is not None:
            t.copy_(row.view(t.shape))
    return summed(found[0]) if op in ("forward", "fused") else 0.0


# ---- what the operators compute ----


def outputs_for(names: Collection[str]) -> int:
    """Return how many of OUTPUTS are computed for these."""
    if OUTPUTS[-1] in names:
        return len(OUTPUTS)
    return SHORT if {*names} <= {*OUTPUTS[:SHORT]} else len(OUTPUTS) - 1


def computed(call: Call, static: Static, result: Sequence[Tensor | None], out: Tensor | None = None) -> Any:
    """Compute what the rows give and, if `out` is given, their gradient, from whole rows or from those of all processes.

    result: tensors [*lead] for the first of OUTPUTS; None for one that is not wanted.
    out: for the gradient, of the shape of the logits; may be the logits themselves.

    Returns the sum of the losses.
    """
    if not static.shards:
        return run("forward" if out is None else "fused", call, static, out=out, result=result)
    losses, parts = put_divided(call, static, result)
    if out is not None and out.numel():
        run("backward", of_this_process(call, static), static, out=out, parts=flat(parts))
    return summed(losses)


def rows(call: Call, static: Static, outputs: int, parts: Tensor | None = None) -> tuple[Any, ...]:
    """Return the first `outputs` of OUTPUTS, and, of divided rows, their sums, or else None."""
    lead = shape_of_rows(call.z, static.axis)[0]
    found = [new(lead, call.z) for _ in range(outputs)]
    if static.shards:
        parts = put_divided(call, static, found, parts)[1]
    else:
        run("forward", call, static, result=found)
    if outputs > SHORT:
        found[4:] = [t.to(dtype) for t, dtype in zip(found[4:], TYPES.values(), strict=False)]
    return *found, parts


def gradient(call: Call, static: Static, parts: Tensor | None = None) -> Tensor:
    """Return the gradient of the logits, for the upstream gradients of loss, lse, log-probability and entropy."""
    dz = cpu.like(call.z)
    if not static.shards:
        run("fused", call, static, out=dz)
        return dz
    if parts is None:
        parts = merged(call, static, given(call.n))[1]
    if dz.numel():
        run("backward", of_this_process(call, static), static, out=dz, parts=flat(parts))
    return dz


def curvature(call: Call, static: Static) -> tuple[Tensor, ...]:
    """Return the derivative of `gradient` along v, and of each row mean, v_t - mean, sum_k off_k (v_k - mean) and that of the entropy."""
    if not static.shards:
        hv, found = cpu.like(call.z), [new(shape_of_rows(call.z, static.axis)[0], call.z) for _ in range(4)]
        run("curvature", call, static, out=hv, result=found)
        return hv, *found
    _, parts, tangents = merged(call, static, False)
    label, along = labels_of(call, static), partials.along(as_partials(parts, static), partials.Tangents(*tangents))
    products: Any = (along.lse, along.logprob, along.off, along.entropy)
    hv = torch.zeros_like(call.z)
    if any(map(given, call[-4:])) and call.z.numel():
        run("hessian", of_this_process(call, static), static, out=hv, parts=flat(parts), tangents=flat(tangents))
    return hv, *(row.masked_fill(label == IGNORED, 0) for row in products)


def log_softmax(call: Call, static: Static, parts: Tensor | None = None) -> Tensor:
    """Return y log softmax(z), for a number y of each row."""
    z, out = call.z, cpu.like(call.z)
    if not static.shards:
        run("log_softmax", call, static, out=out)
        return out
    if parts is None:  # the most probable class is kept apart in the sums, so that values near 0 keep their digits
        label = processes.most_probable(z, static.shards, static.axis)
        parts = merged(Call(z, label), static, False)[1]
    if not z.numel():
        return out
    sums, scale = flat(parts), numbers(parts[0].numel(), z, call.y)
    for i, zi, _, to in row_chunks(static.axis, z, None, out=out, matrices=True):
        step = max(1, SCRATCH // (8 * zi.shape[1]))  # rows, so that the float64 logits are few
        for k in range(0, len(zi), step):
            scores: Any = formula.transformed(zi[k : k + step].double(), static.temperature, static.cap)[0]
            some: Any = as_partials(sums[:, i][:, k : k + step], static)
            by: Any = cut(cut(scale, i), slice(k, k + step))[0, :, None]
            to[k : k + step] = -partials.times(by, formula.surprisal(scores, some))
    return out


# ---- the classes of several processes ----


def put_divided(call: Call, static: Static, result: Sequence[Tensor | None], parts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Write what rows give whose classes are divided. Returns the losses and the sums of the rows."""
    found, parts, _ = merged(call, static, len(result) > SHORT, parts)
    for t, row in zip(result, found, strict=False):
        if t is not None:
            t.copy_(row)
    if len(result) == len(OUTPUTS) and (predicted := result[-1]) is not None:
        largest = processes.most_probable(call.z, static.shards, static.axis)
        predicted.copy_(torch.where(labels_of(call, static) == IGNORED, NO_LABEL, largest))
    return found[0], parts


def merged(call: Call, static: Static, more: bool, parts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over the classes of this process, gather the sums of all processes, and merge them.

    Returns what the rows give, [2, *lead] or [5, *lead], their sums [7, *lead] and the derivatives of these along v, [5, *lead] or [0,
    *lead]. If the sums are given, nothing is gathered.
    """
    label, fields = labels_of(call, static), 12 if given(call.v) else 7
    of_rows, t = numbers(label.numel(), call.z, *call[5:9]), label.reshape(-1)
    if parts is None:
        _, most, pairs = processes.merges(static.shards.columns)
        own = _sums_of_nodes(call, static, more or given(call.n), fields)
        nothing = of_rows.new_tensor([*NO_COLUMNS, *[0.0] * 5][:fields])[:, None].expand(fields, len(t))
        every = processes.all_gather(torch.stack([*own, *[nothing] * (most - len(own))]), static.shards.group).flatten(0, 1)
    else:
        every, pairs = flat(parts).clone()[None], torch.empty((0, 2), dtype=torch.int64, device="cpu")
    result, found, tangents = new((len(formula.Outputs._fields) if more else SHORT, len(t)), call.z), new((7, len(t)), call.z), every[:, 7:]
    along = tangents if fields > 7 else None
    backend_call("merge", every[:, :7], pairs, t, of_rows, static.temperature, result, found, along)
    of_result, of_parts, of_tangents = (a.reshape(len(a), *label.shape) for a in (result, found, tangents[0]))
    return of_result, of_parts, of_tangents


def _sums_of_nodes(call: Call, static: Static, more: bool, fields: int) -> list[Tensor]:
    """Return the sums over each node of this process (softxent/shards.py), [fields, R]."""
    z, axis, shards, label, found = call.z, static.axis, static.shards, labels_of(call, static), []
    for node in processes.merges(shards.columns)[0][shards.rank]:
        begin, length = node.first - shards.mine.first, node.end - node.first
        sums = new((fields, label.numel()), z)
        of_node = Call(
            z.narrow(axis, begin, length), processes.local_labels(label, node),
            call.off.narrow(axis if call.off.shape == z.shape else 0, begin, length) if given(call.off) else 0.0,
            call.v.narrow(axis, begin, length) if fields > 7 else 0.0,
        )  # fmt: skip
        if fields > 7:
            run("tangent_sums", of_node, static, parts=sums[:7], tangents=sums[7:])
        else:
            if length <= SHORT_ROW < shards.classes:  # so that the kernel sums in the order in which it sums the end of a long row
                of_node = _lengthened(of_node, axis, SHORT_ROW + 1 - length)
            wanted = [None] * 3 + [new(label.shape, z), None]  # of the entropy, with which u is computed
            run("forward", of_node, static, result=wanted if more else (), parts=sums)
        found.append(sums)
    return found


def _lengthened(call: Call, axis: int, columns: int) -> Call:
    """Return the call with so many columns more, of probability 0."""
    z, off = call.z, call.off
    z = torch.cat([z, z.new_full((), -math.inf).expand(*z.shape[:axis], columns, *z.shape[axis + 1 :])], axis)
    if given(off):
        at = axis if off.ndim == z.ndim else 0
        off = torch.cat([off, off.new_zeros(()).expand(*off.shape[:at], columns, *off.shape[at + 1 :])], at)
    return call._replace(z=z, off=off)


def of_this_process(call: Call, static: Static) -> Call:
    """Return the call with labels as columns of this process."""
    return call._replace(label=processes.local_labels(labels_of(call, static), static.shards.mine))


def as_partials(parts: Tensor, static: Static) -> Any:
    """Return sums [7, ...] as formula.py takes them."""
    sums: Any = parts
    return partials.Partials(*sums)._replace(temperature=static.temperature)


def flat(parts: Tensor) -> Tensor:
    """Return sums [K, *lead] as [K, R], in adjacent memory."""
    return parts.reshape(len(parts), -1).contiguous()


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


def direct(*tensors: Tensor) -> bool:
    """Whether these are plain, and dense tensors of a CPU with memory, whose backend is the compiled kernel."""
    if torch.compiler.is_compiling() or private.transforming() or traced() or private.forward_mode():
        return False
    for t in tensors:
        if type(t) not in PLAIN or not t.is_cpu or t.layout is not STRIDED or not t.data_ptr():
            return False
    return _forced is None and kernels.active() is kernels.cpu


def saved(ctx: Any) -> tuple[Any, ...]:
    """Return the tensors that were saved for a backward pass, after a check that nobody has freed or shortened their memory since then.

    A function that torch.func.vjp returns is called after its transform has ended: the wrappers of the transform are removed.
    """
    found = private.alive(ctx.saved_tensors)
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


def given(x: Any) -> bool:
    """Whether a field of a call is given. A number that is 0 for all rows, and known to be so, is not."""
    return isinstance(x, Tensor) or bool(x)


def labels_of(call: Call, static: Static) -> Tensor:
    """Return the labels of the rows, NO_LABEL if there are none."""
    return call.label if given(call.label) else same_label(call.z, static.axis, NO_LABEL)


def same_label(z: Tensor, axis: int, label: int) -> Tensor:
    """Return this label for each row of logits z."""
    return z.new_full((), label, dtype=torch.int64).expand(shape_of_rows(z, axis)[0])


def numbers_of(op: str, call: Call) -> tuple[Any, ...]:
    """Return the numbers of the rows that a kernel takes: y alone, none, (y, r, q, g) or all.

    The derivative of the entropy is computed only if all are given.
    """
    if op == "log_softmax":
        return (call.y,)
    if op == "tangent_sums":
        return ()
    return call[5:] if op == "curvature" or any(map(given, call[9:])) else call[5:9]


def numbers(rows: int, like: Tensor, *each: Tensor | float) -> Tensor:
    """Return numbers of the rows as the backends take them: [K, R], or [K, 1] if none differs."""
    n = rows if any(isinstance(x, Tensor) and x.numel() != 1 for x in each) else 1
    if not each:
        return new((0, n), like)
    of_rows = [x.detach().reshape(-1).double() if isinstance(x, Tensor) else new((1,), like).fill_(x) for x in each]
    return torch.stack([x.expand(n) for x in of_rows])


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
