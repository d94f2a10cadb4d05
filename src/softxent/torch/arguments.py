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

from .. import contract, truth
from ..contract import fail
from ..kernels import IGNORED, LARGEST
from ..truth import Options as Options
from ..truth import options as options
from . import compute, cpu, operators
from .compute import plain as plain
from .operators import differentiated
from .sharded_operators import Shards, most_probable, my_columns

RANGES = (
    (0, 1),
    (0, truth.BIGGEST),
    (truth.SMALLEST, truth.BIGGEST),
    (truth.SMALLEST, math.inf),
)  # label_smoothing, z_loss, temperature, cap
NUMBERS = (float, int)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Truth(NamedTuple):
    """What the operators take beside the logits."""

    label: Tensor  # [*lead]
    y: Tensor  # float64, [*lead] or 0-dim
    r: Tensor
    q: Tensor
    off: Tensor | None  # with the shape of the logits, or [C]


# ---- options become numbers ----


def truth_of(
    fn: str, z: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, axis: int, options: Options,
    shards: Shards | None = None,
) -> tuple[Truth, Tensor | None]:  # fmt: skip
    """Return the truth of the rows of logits z, and for a mean the sum of their weights. Only shape, dtype and device of z are read.

    With `shards`, z has the classes of this process, as probabilities have; labels and class weights are those of all classes.
    """
    shape, wide = z.shape, compute.compute_dtype(z)
    lead, here = shape[:axis] + shape[axis + 1 :], shape[axis]
    if not torch.compiler.is_compiling() and torch._C._is_tracing():
        here = int(here)  # it is a tensor there, and a number divided by it would be float32
    classes = here if shards is None else shards.classes
    each = None if sample is None else sample.double().expand(lead)
    w = None if weight is None else weight.double()
    e, device = options.label_smoothing, target.device
    if target.is_floating_point():
        label = torch.full((), LARGEST, device=device).expand(lead)
        found = truth.row_numbers(None, None, each, 0.0, options.z_loss, classes)
        w = w if w is None or shards is None else my_columns(w, shards)
        off: Tensor | None = target if w is None and not e else _soft(target, w, e, axis, wide, classes)
        if shards is not None and off is not None:
            label = most_probable(off, shards, axis)
    else:
        label = operators.class_labels(fn, target, classes, options.ignore_index)
        found = truth.row_numbers(label, w, each, e, options.z_loss, classes, _at)
        # A label out of range is an error on the CPU. On other devices, it would take time to wait for the labels.
        if not target.is_cpu or compute.forced():
            outside = (label != IGNORED) & ((label < 0) | (label >= classes))
            y = torch.where(outside, math.nan, _number(found.y, device))
            found = truth.RowNumbers(y, found.r, found.q, found.off, found.weight)
        off = found.off if found.off is None else _number(found.off, device)
        off = my_columns(off, shards) if off is not None and off.ndim and shards is not None else off
        off = off if off is None else off.to(wide).expand(here)
    total = None
    if options.reduction == "mean":
        live = label != IGNORED
        total = compute.summed(live if isinstance(found.weight, float) else torch.where(live, found.weight, 0.0))
    return Truth(label, _number(found.y, device), _number(found.r, device), _number(found.q, device), off), total


class QuickNumbers(NamedTuple):
    """What `cpu.quick` takes, if the numbers y, r and q are the same for all rows except for factors."""

    numbers: tuple[float, ...]  # y, r, q, temperature and cap
    factors: Tensor | None  # of y by class
    sample: Tensor | None  # factors of y, r and q by row
    off: Tensor | None


def quick_numbers(z: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, options: Any) -> QuickNumbers | None:
    """Return the truth of logits as `cpu.quick` takes it.

    Returns None if a tensor or an option is none that the most frequent calls have, or if one is not allowed.
    """
    ignore_index, reduction, e, z_loss, temperature, cap = options
    whole = type(ignore_index) is int and -(2**63) <= ignore_index < 2**63
    if not whole or type(reduction) is not str or not all(type(x) in NUMBERS for x in (e, z_loss, temperature, cap)):
        return None
    axis, probable, wide = cpu.class_axis(z), target.is_floating_point(), compute.compute_dtype(z)
    classes = z.shape[axis]
    if not classes:
        return None
    found = _same_for_all_rows(reduction, e, z_loss, temperature, cap, classes, probable, wide)
    if found is None or (weight is None and sample is None and not probable):
        return found
    if probable and (ignore_index >= 0 or target.shape != z.shape or not target.data_ptr() or differentiated(target)):
        return None
    off, factors = found.off, None
    if sample is not None:
        if not _constant(sample, cpu.rows_shape(z)):
            return None
        sample = cpu.in_memory(sample).double()
    if weight is not None:
        if not _constant(weight, z.shape[axis : axis + 1]):
            return None
        factors = cpu.in_memory(weight).double().contiguous()
        off = None if off is None else truth.everywhere(factors, e, classes).to(wide)
    if probable:
        off = target if target.dtype == z.dtype and weight is None and not e else _soft(target, factors, e, axis, wide, classes)
        factors = None
    return QuickNumbers(found.numbers, factors, sample, off)


def _constant(t: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether this is an ordinary tensor of real numbers of this shape on the CPU, in memory, by which nothing is differentiated."""
    return plain(t) and t.shape == shape and t.is_cpu and t.data_ptr() != 0 and not t.is_complex() and not differentiated(t)


@lru_cache(maxsize=256)
def _same_for_all_rows(
    reduction: str, e: float, z_loss: float, temperature: float, cap: float, classes: int, probable: bool, wide: torch.dtype
) -> QuickNumbers | None:
    """Return the truth without weights of classes and rows."""
    allowed = all(
        low <= x <= min(high, truth.BIGGEST) or x == high for x, (low, high) in zip((e, z_loss, temperature, cap), RANGES, strict=True)
    )
    if not allowed or reduction not in contract.REDUCTIONS:
        return None
    y, r, q, off, _ = truth.row_numbers(None if probable else (), None, None, e, z_loss, classes)
    everywhere = None if off is None else torch.full((classes,), off, dtype=wide, device="cpu")
    return QuickNumbers((float(y), float(r), float(q), float(temperature), float(cap)), None, None, everywhere)


def _at(t: Tensor, i: Tensor) -> Tensor:
    """Return t[i] for a vector t. Indexing would wait for the value of an i without axes, and its derivative has no batches."""
    return t.gather(0, i.reshape(-1)).reshape(i.shape)


def _number(x: Tensor | float, device: torch.device) -> Tensor:
    return x if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64, device=device)


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
    loss = compute.summed(losses)
    return (loss if total is None else loss / total).to(dtype)


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


def labels(fn: str, names: contract.Names, target: Tensor, shape: tuple[int, ...], axis: int) -> None:
    """Refuse a target that is neither class indices nor probabilities for logits of this shape."""
    kind = "float" if target.is_floating_point() else "bool" if target.dtype == torch.bool else "int"
    if kind == "bool" or tuple(target.shape) != (shape if kind == "float" else shape[:axis] + shape[axis + 1 :]):
        contract.wrong_labels(fn, names, kind, target.dtype, tuple(target.shape), shape, axis)


def class_axis(
    fn: str, input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, ignore_index: int, shards: Shards | None = None
) -> int:
    """Check the tensors. Returns the class axis. With `shards`, `input` and probabilities have the classes of this process."""
    given: dict[str, Any] = {"input": input, "target": target, "weight": weight, "sample_weight": sample}
    for name, t in given.items():
        if t is None and name in ("weight", "sample_weight"):
            continue
        tensor(fn, name, t, input)
        if t.is_complex() and name != "input":
            fail(fn, name, "hold real numbers", t.dtype, TypeError)
    if input.dtype not in FLOATS:
        contract.in_order(fn, contract.TORCH, tuple(input.shape), tuple(target.shape))
        fail(fn, "input", "be float32, float64, bfloat16 or float16", input.dtype, TypeError)
    if input.ndim == 0:
        fail(fn, "input", "have a class axis", f"shape {tuple(input.shape)}")
    axis = min(1, input.ndim - 1)
    classes = input.shape[axis] if shards is None else shards.classes
    if not classes:
        fail(fn, "input", "have at least one class", f"shape {tuple(input.shape)}")
    labels(fn, contract.TORCH, target, tuple(input.shape), axis)
    if target.is_floating_point() and isinstance(ignore_index, int) and ignore_index >= 0:
        fail(fn, "ignore_index", "be left alone where the target is probabilities", ignore_index)
    weights(fn, weight, sample, classes, tuple(n for i, n in enumerate(input.shape) if i != axis))
    return axis


def weights(fn: str, weight: Tensor | None, sample: Tensor | None, classes: int, lead: tuple[int, ...]) -> None:
    """Refuse class weights and sample weights of another shape."""
    if weight is not None and tuple(weight.shape) != (classes,):
        fail(fn, "weight", f"have shape ({classes},), one number a class", tuple(weight.shape))
    if sample is not None and (
        sample.ndim > len(lead) or any(n not in (1, m) for n, m in zip(sample.shape[::-1], lead[::-1][: sample.ndim], strict=True))
    ):
        fail(fn, "sample_weight", f"broadcast to shape {lead}", tuple(sample.shape))
