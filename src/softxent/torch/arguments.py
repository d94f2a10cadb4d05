"""The arguments of the public functions: their checks, and how options become the numbers of rows that the operators take.

This is the lowest file of softxent.torch that knows the options. truth.py says what they mean; here they become operations of torch on
arrays that are small beside the logits, so that autograd has the derivatives by weights and probabilities.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import contract, kernels, truth
from ..call import Call
from ..contract import fail
from ..kernels import IGNORED, LARGEST
from ..truth import Options as Options
from ..truth import options as options
from . import compute, cpu, operators, private
from .modes import differentiated, readable
from .modes import plain as plain
from .processes import Shards, most_probable, my_columns

FLOATS = tuple(getattr(torch, name) for name in contract.FLOATS)
_DTYPES = {dtype: str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}  # as NumPy's

MOST_PROBABLE = cpu.record(torch.full((), LARGEST, device="cpu"))


# ---- options become numbers ----


def truth_of(
    fn: str, z: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, axis: int, options: Options,
    shards: Shards | None = None,
) -> tuple[Call, Tensor | None, int | None]:  # fmt: skip
    """Return the call of logits z, for a mean the sum of the rows' weights, and how many rows are ignored, if that is known.

    Only shape and dtype of z are read. The numbers y, r and q of the call are tensors, float64, [*lead] or 0-dim. With `shards`, z has the
    classes of this process, as probabilities have; labels and class weights are those of all classes.
    """
    shape, wide = z.shape, compute.compute_dtype(z)
    ignored: int | None
    here, known = shape[axis], target.is_cpu and readable(target)
    if not torch.compiler.is_compiling() and private.jit_tracing():
        here = int(here)  # it is a tensor there, and a number divided by it would be float32
    classes = here if shards is None else shards.classes
    if known and weight is sample is None and not target.is_floating_point() and not compute.forced():
        label, ignored = operators.labelled(fn, target, classes, options.ignore_index)
        y, r, q, everywhere = _same_for_all_rows(options.label_smoothing, options.z_loss, classes, here, wide)
        rows = _constant(label.numel() - ignored) if options.reduction == "mean" else None
        return Call(z, label, everywhere, y=y, r=r, q=q), rows, ignored
    lead = shape[:axis] + shape[axis + 1 :]
    each = None if sample is None else sample.double().expand(lead)
    w = None if weight is None else weight.double()
    e, device = options.label_smoothing, target.device
    if target.is_floating_point():
        label, ignored = torch.full((), LARGEST, device=device).expand(lead), 0 if known else None
        found = truth.row_numbers(None, None, each, 0.0, options.z_loss, classes)
        w = w if w is None or shards is None else my_columns(w, shards)
        off: Tensor | None = target if w is None and not e else _soft(target, w, e, axis, wide, classes)
        if shards is not None and off is not None:
            label = most_probable(off, shards, axis)
    else:
        given = (fn, target, classes, options.ignore_index)
        label, ignored = operators.labelled(*given) if known else (operators.class_labels(*given), None)
        found = truth.row_numbers(label, w, each, e, options.z_loss, classes, _at)
        # A label out of range is an error on the CPU. On other devices, it would take time to wait for the labels.
        if not target.is_cpu or compute.forced():
            outside = (label != IGNORED) & ((label < 0) | (label >= classes))
            y = torch.where(outside, math.nan, _number(found.y, device))
            found = truth.RowNumbers(y, found.r, found.q, found.off, found.weight)
        off = found.off if found.off is None else _number(found.off, device)
        off = my_columns(off, shards) if off is not None and off.ndim and shards is not None else off
        off = off if off is None else off.to(wide).expand(here)
    call = Call(z, label, 0.0 if off is None else off, **{k: _number(getattr(found, k), device) for k in ("y", "r", "q")})
    total = None
    if options.reduction == "mean":
        live = label != IGNORED
        total = compute.summed(live if isinstance(found.weight, float) else torch.where(live, found.weight, 0.0))
    return call, total, ignored


@lru_cache(maxsize=1024)
def _same_for_all_rows(e: float, z_loss: float, classes: int, here: int, wide: torch.dtype) -> tuple[Any, ...]:
    """Return y, r, q and off of class indices on a CPU that have no weights."""
    y, r, q, off, _ = truth.row_numbers((), None, None, e, z_loss, classes)
    with torch.inference_mode(False):  # so that it can be saved for a backward pass
        return _constant(y), _constant(r), _constant(q), 0.0 if off is None else _constant(off).to(wide).expand(here)


class Settled(NamedTuple):
    """What is known of a call from its shapes, dtypes and options, which are checked."""

    axis: int  # of the classes
    options: Options
    transform: tuple[float, float]
    mean: bool
    losses: bool  # whether the losses are not reduced
    numbers: truth.RowNumbers | None  # Columns; off is the record of a tensor [C] if there are no weights of classes
    scalars: tuple[float, ...] | None = None  # y, r, q and the weight, if they are the same for all rows


Kind = tuple[torch.Size, torch.dtype]


@lru_cache(maxsize=1024, typed=True)
def _settled(
    fn: str, input: torch.Size, dtype: torch.dtype, target: torch.Size, dtype_of_target: torch.dtype, weight: Kind | None,
    sample: Kind | None, *given: Any,  # the options
) -> Settled:  # fmt: skip
    """Check shapes, dtypes and options, those of calls before in half a microsecond."""
    weights = (None if a is None else kind(*a) for a in (weight, sample))
    kinds = contract.Kinds(kind(input, dtype), kind(target, dtype_of_target), *weights)
    axis, probable = check(fn, contract.TORCH, kinds, min(1, len(input) - 1), given[0])
    o, classes = options(fn, *given), input[axis]
    numbers = truth.columns(probable, weight is not None, sample is not None, o.label_smoothing, o.z_loss, classes)
    if isinstance(numbers.off, float):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        numbers = numbers._replace(off=_of_every_class(numbers.off, classes, wide))
    y, r, q, _, total = numbers
    scalars = (y.scalar, r.scalar, q.scalar, total.scalar) if weight is sample is None else None
    return checked(axis, o)._replace(numbers=numbers, scalars=scalars)


@lru_cache(maxsize=16)
def _of_every_class(number: float, classes: int, dtype: torch.dtype) -> cpu.Record:
    """Return the record of a tensor [C]. Calls of all shapes share it, for they are many, and C may be large."""
    return cpu.record(torch.full((classes,), number, dtype=dtype, device="cpu"))


def checked(axis: int, o: Options) -> Settled:
    """Return what is known of a call whose truth is one of tensors."""
    return Settled(axis, o, (o.temperature, o.cap), o.reduction == "mean", o.reduction == "none", None)


def settled(fn: str, input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, *given: Any) -> Settled:
    """Return `_settled` for dense tensors of a CPU, which looks up what it was given before."""
    of_weights = None if weight is None else known(weight), None if sample is None else known(sample)
    found: Settled = looked_up(_settled, fn, input.shape, input.dtype, target.shape, target.dtype, *of_weights, *given)
    return found


def known(t: Tensor) -> Kind:
    """Return by what the checks of a dense tensor of a CPU are looked up."""
    return t.shape, t.dtype


def kind(shape: torch.Size, dtype: torch.dtype) -> contract.Kind:
    """Return what is checked of a tensor of this shape and dtype."""
    return contract.Kind(tuple(shape), _DTYPES[dtype])


def kinds_of(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return what is checked of tensors."""
    return tuple(None if t is None else kind(t.shape, t.dtype) for t in tensors)


def looked_up(function: Any, *given: Any) -> Any:
    """Call a function with an lru_cache, also if an argument cannot be looked up."""
    try:
        return function(*given)
    except TypeError:
        pass
    return function.__wrapped__(*given)


def truth_of_constants(
    fn: str, z: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, s: Settled
) -> tuple[cpu.Record, int | None, Any, Any, Any, cpu.Record | None, float]:
    """Return `truth_of` for the compiled kernel, which multiplies the weights, if nothing is differentiated by them or probabilities.

    Returns label, the label of ignored rows if there are any, y, r, q and off as it takes them, and the sum of the rows' weights.
    """
    axis, o, _, _, _, numbers, scalars = s
    assert numbers is not None
    classes, off = z.shape[axis], numbers.off
    if scalars is None:
        lead = z.shape[:axis] + z.shape[axis + 1 :]
        each = None if sample is None else cpu.given(sample if sample.shape == lead else sample.expand(lead))
        table = None if weight is None else cpu.given(weight)
        y, r, q, of_total = numbers.y.of(each, table), numbers.r.of(each, table), numbers.q.of(each, table), numbers.weight.of(each, table)
    else:
        y, r, q, of_total = scalars
    if target.is_floating_point():
        label, e, wide = MOST_PROBABLE, o.label_smoothing, compute.compute_dtype(z)
        total = float(z.numel() // classes) if sample is None else compute.summed(sample.double().expand(lead)).item()
        if target.dtype not in FLOATS or weight is not None or e:
            target = _soft(target, None if weight is None else weight.double(), e, axis, wide, classes)
        return label, None, y, r, q, cpu.record(target), total
    label = cpu.record(target)
    first, count, total = kernels.cpu.labels(label, classes, o.ignore_index, of_total)
    if first >= 0:
        operators.check_labels(fn, target, classes, o.ignore_index)
    if isinstance(off, truth.Column) and weight is not None:
        off = cpu.record((weight.double() * off.scalar).to(compute.compute_dtype(z)))
    return label, o.ignore_index if count else None, y, r, q, off, total


def _at(t: Tensor, i: Tensor) -> Tensor:
    """Return t[i] for a vector t. Indexing would wait for the value of an i without axes, and its derivative has no batches."""
    return t.gather(0, i.reshape(-1).clamp(0, len(t) - 1)).reshape(i.shape)


@lru_cache(maxsize=256)
def _constant(x: float) -> Tensor:
    """Return a number as a tensor of a CPU, which calls share."""
    with torch.inference_mode(False):  # so that it can be saved for a backward pass
        return torch.full((), x, dtype=torch.float64, device="cpu")


def _number(x: Tensor | float, device: torch.device) -> Tensor:
    return x if isinstance(x, Tensor) else operators.number(x, device)


def _soft(u: Tensor, w: Tensor | None, e: float, axis: int, wide: torch.dtype, classes: int) -> Tensor:
    """Return probabilities after label smoothing and class weights, which are computed in float64."""
    last = u.movedim(axis, -1)
    if u.ndim == 1 or not plain(u) or differentiated(u, w):
        soft: Tensor = truth.soft(last.double(), w, e, classes)
        return soft.to(wide).movedim(-1, axis)
    found = torch.empty_like(last, dtype=wide)
    step = max(1, (1 << 18) // max(1, last[:1].numel()))
    for i in range(0, len(last), step):
        found[i : i + step] = truth.soft(last[i : i + step].double(), w, e, classes)
    return found.movedim(-1, axis)


def scale_and_shift(weight: Tensor | None, e: float, classes: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Return two factors, 0-dim or [C] float64 or None, by which probabilities u become their truth, scale u + shift (`truth.soft`)."""
    if weight is None and not e:
        return None, None
    w = _number(1.0 if weight is None else weight.double(), device)
    return w * (1 - e), truth.everywhere(w, e, classes) if e else None


def reduced(losses: Tensor, reduction: str, total: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the losses of the rows, their sum, or their sum divided by `total`."""
    if reduction == "none":
        return losses.to(dtype)
    return compute.mean(compute.summed(losses), total).to(dtype)


def result_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of a loss: that of the logits, or float32 under autocast."""
    dtype = input.dtype
    if dtype == torch.float32 or dtype == torch.float64 or not torch.is_autocast_enabled(input.device.type):
        return dtype
    return torch.float32


# ---- checks ----


def tensor(fn: str, name: str, t: Any, input: Tensor) -> None:
    """Refuse what is no dense tensor on the device of `input`, or has lost its memory."""
    if not isinstance(t, Tensor):
        instead = " (softxent's own functions take NumPy arrays)" if isinstance(t, np.ndarray) else ""
        fail(fn, name, f"be a torch.Tensor{instead}", type(t).__name__, TypeError)
    if t.layout != torch.strided:
        fail(fn, name, f"be a dense tensor ({name}.to_dense() is one)", t.layout, TypeError)
    if t.device != input.device:
        fail(fn, name, f"be on {input.device} as input is", t.device)
    if plain(t) and not cpu.has_memory(t):
        cpu.no_memory(fn, name, t)


def class_axis(
    fn: str, input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, ignore_index: int, shards: Shards | None = None
) -> int:
    """Check the tensors. Returns the class axis. With `shards`, `input` and probabilities have the classes of this process."""
    given: dict[str, Any] = {"input": input, "target": target, "weight": weight, "sample_weight": sample}
    for name, t in given.items():
        if t is not None or name in ("input", "target"):
            tensor(fn, name, t, input)
    return check(fn, contract.TORCH, contract.Kinds(*kinds_of(*given.values())), min(1, input.ndim - 1), ignore_index, shards)[0]


def check(
    fn: str, names: contract.Names, kinds: contract.Kinds, axis: int, ignore_index: int, shards: Shards | None = None
) -> tuple[int, bool]:
    """Check shapes and dtypes. Returns the class axis, not negative, and whether the target is probabilities."""
    axis, probabilities = contract.check(fn, names, kinds, axis, None if shards is None else shards.classes)
    if probabilities and isinstance(ignore_index, int) and ignore_index >= 0:
        fail(fn, "ignore_index", "be left alone where the target is probabilities", ignore_index)
    return axis, probabilities
