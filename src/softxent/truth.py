"""Options of the loss are turned into what the kernels take. This is the only file that computes with an option.

The front ends call `truth` and `logit_transform`. A kernel takes four numbers for each row, y, r, q and g, and an array `off`; the truth of
a row, its target probabilities, is y at the label plus r off_k at every class k. With class weights w (1 if not given) and C classes:

    integer label t               y = w_t
    label smoothing e             y = (1 - e) w_t, r = 1, off_k = e/C w_k
    probabilities u               the label LARGEST, y = 0, r = 1, off_k = w_k ((1 - e) u_k + e/C)
    ignore_index                  the label IGNORED
    sample weight                 multiplies y, r and q
    z-loss L lse^2                q = 2 L
    reduction, upstream           g
    temperature, softcap          a function of the logits, `LogitTransform`, which is not part of the truth

formula.py computes the loss and the gradient from these numbers. The derivation's part on options proves that this is what each option
means.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import lru_cache
from operator import getitem
from typing import Any, NamedTuple

import numpy as np

from . import contract, kernels
from .partials import Array

BIGGEST = sys.float_info.max
SMALLEST = 2.0**-126  # the smallest normal number of float32; the inverse of a smaller one overflows


class Truth(NamedTuple):
    """The truth of R rows over C classes. `piece` returns what a kernel takes for some of the rows."""

    label: Array  # [R] int64
    rows: Array  # [4, R] or [4, 1] float64: y, r, q, g
    shared: Array | None = None  # [C]: off, if it is the same for every row
    dense: Array | None = None  # [R, C]: probabilities, as the caller gave them
    class_weight: Array | None = None  # [C], to be applied to dense
    smoothing: float = 0.0  # to be applied to dense
    total: float = 1.0  # the sum of the rows' weights, by which a mean is divided

    def piece(self, i: slice, dtype: np.dtype[Any]) -> tuple[Array, Array, Array | None]:
        """Return label, (y, r, q, g) and off of the rows `i`, for logits of this dtype."""
        t = self.rows_of(i)
        return t.label, t.rows, self.shared if self.dense is None else t._off(dtype)

    def rows_of(self, i: Any) -> Truth:
        """Return the truth of the rows `i`."""
        rows = self.rows if self.rows.shape[1] == 1 else self.rows[:, i]
        return self._replace(label=self.label[i], rows=rows, dense=None if self.dense is None else self.dense[i])

    def mass(self) -> Array:
        """Return the sum of the truth of each row, [R] float64. It is 0 in ignored rows."""
        off = 0.0 if self.shared is None else self.shared.sum(dtype=np.float64)
        if self.dense is not None:
            off = soft(self.dense.astype(np.float64), self.class_weight, self.smoothing, self.dense.shape[1]).sum(axis=1)
        return np.where(self.label == kernels.IGNORED, 0.0, self.rows[0] + self.rows[1] * off)

    def usable(self, dtype: np.dtype[Any]) -> bool:
        """Whether a kernel can read the caller's probabilities, for logits of this dtype; True if the labels are class indices."""
        u = self.dense
        if u is None:
            return True
        plain = self.smoothing == 0 and self.class_weight is None and u.dtype in (dtype, computed_in(dtype))
        return plain and adjacent(u)

    def _off(self, dtype: np.dtype[Any]) -> Array:
        u = self.dense
        assert u is not None
        if self.usable(dtype):
            return u
        off = soft(u.astype(np.float64), self.class_weight, self.smoothing, u.shape[1])
        return np.ascontiguousarray(off, dtype=computed_in(dtype))


class LogitTransform(NamedTuple):
    """The function that is applied to the logits before softmax: z -> (c/T) tanh(z/c), or z/T if c is infinite, which means no softcap."""

    temperature: float = 1.0
    softcap: float = math.inf


IDENTITY = LogitTransform()


def logit_transform(fn: str, temperature: float, softcap: float | None) -> LogitTransform:
    """Check temperature and softcap. Returns their `LogitTransform`."""
    if type(temperature) is float and temperature == 1 and softcap is None:
        return IDENTITY
    c = math.inf if softcap is None else contract.number(fn, "softcap", softcap, low=SMALLEST)
    return LogitTransform(contract.number(fn, "temperature", temperature, low=SMALLEST), c)


class Options(NamedTuple):
    """The options of a loss, checked."""

    ignore_index: int
    reduction: str
    label_smoothing: float
    z_loss: float
    temperature: float
    cap: float  # the softcap, or inf


def options(
    fn: str, ignore_index: int, reduction: str, label_smoothing: float, z_loss: float, temperature: float, softcap: float | None
) -> Options:
    """Check the options, which are numbers and not arrays."""
    number = contract.number
    return Options(
        contract.integer(fn, "ignore_index", ignore_index),
        contract.choice(fn, "reduction", reduction, contract.REDUCTIONS),
        number(fn, "label_smoothing", label_smoothing, low=0, high=1),
        number(fn, "z_loss", z_loss, low=0),
        number(fn, "temperature", temperature, low=SMALLEST),
        math.inf if softcap is None else number(fn, "softcap", softcap, low=SMALLEST),
    )


def truth(
    fn: str,
    labels: Any,
    z: Array,  # class axis last
    axis: int,
    *,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: Any = None,
    reduction: str = "none",
    z_loss: float = 0.0,
    upstream: Any = None,
    empty_value: float = math.nan,
    names: contract.Names = contract.NUMPY,
) -> Truth:
    """Check the labels and options of `cross_entropy` and return their `Truth`. `names` has the argument names in error messages."""
    lead, classes = z.shape[:-1], z.shape[-1]
    ignore_index = contract.integer(fn, "ignore_index", ignore_index)
    contract.choice(fn, "reduction", reduction, contract.REDUCTIONS)
    a, probable = contract.truth(fn, labels, z, axis, names)
    e = contract.number(fn, "label_smoothing", label_smoothing, low=0, high=1)
    w = None if class_weight is None else contract.floats(fn, "class_weight", class_weight).astype(np.float64)
    if w is not None and w.shape != (classes,):
        contract.fail(fn, "class_weight", f"have shape ({classes},), one number a class", w.shape)
    n = math.prod(lead)
    sample: Any = None if sample_weight is None else contract.broadcast(fn, "sample_weight", sample_weight, lead).reshape(n)
    up: Any = 1.0
    if upstream is not None:
        up = contract.broadcast(fn, "upstream", upstream, lead if reduction == "none" else ()).reshape(-1)
    penalty = contract.number(fn, "z_loss", z_loss, low=0)
    if type(empty_value) is not float:
        contract.broadcast(fn, "empty_value", empty_value, ())
    if not probable:
        top = np.iinfo(np.int64).max
        signed = np.where(a > top, top - (ignore_index == top), a) if a.dtype == np.uint64 else a  # out of range, and not ignore_index
        label = np.ascontiguousarray(signed, dtype=np.int64).reshape(n)
        contract.inside(fn, names.labels, a, kernels.active().first_outside(label, classes, ignore_index), classes, ignore_index)
        live = label != ignore_index
        every = bool(live.all())
        label = label if every else np.where(live, label, kernels.IGNORED)
        return _of_indices(label, every, w, sample, e, penalty, classes, reduction, up, z.dtype)
    # The class with the largest probability serves as a label of weight 0. A kernel keeps it apart from the sums over the other classes, so
    # that the loss keeps its digits if that class has nearly all of the probability.
    label, numbers = np.broadcast_to(np.int64(kernels.LARGEST), n), row_numbers(None, None, sample, 0.0, penalty, classes)
    rows, total = _rows(n, numbers, numbers.weight, reduction, up)
    return Truth(label, rows, None, a.reshape(n, classes), w, e, total)


def _of_indices(
    label: Array, every: bool, w: Any, sample: Any, smoothing: float, z_loss: float, classes: int, reduction: str, up: Any,
    dtype: np.dtype[Any],
) -> Truth:  # fmt: skip
    """Return the truth of class indices; `every` tells that no row is ignored."""
    numbers = row_numbers(label, w, sample, smoothing, z_loss, classes)
    rows, total = _rows(len(label), numbers, numbers.weight if every else numbers.weight * (label >= 0), reduction, up)
    if smoothing == 0:
        return Truth(label, rows, total=total)
    wide = computed_in(dtype)
    off = _smoothed(smoothing, classes, wide.char) if w is None else numbers.off.astype(wide)
    return Truth(label, rows, off, total=total)


def _rows(n: int, numbers: RowNumbers, weight: Any, reduction: str, up: Any) -> tuple[Array, float]:
    """Return y, r, q and g of the rows, and the sum of their weights."""
    total = float(weight.sum() if isinstance(weight, np.ndarray) else weight * n)
    scale = 1.0 if reduction != "mean" else (1 / total if total else 0.0)
    given = (numbers.y, numbers.r, numbers.q, scale * up)
    return constant(*given) if all(type(x) is float for x in given) else _stack(n, *given), total


# The functions below take the arrays of any library, with the classes on the last axis.


class RowNumbers(NamedTuple):
    """The truth of rows, as the kernels take it (kernels/__init__.py). A number that is the same for all rows is a float."""

    y: Any  # [*rows] or a float
    r: Any
    q: Any
    off: Any  # [C], a float if it is the same for all classes, or None
    weight: Any  # by the sum of which, over the rows that are not ignored, a mean is divided


def row_numbers(
    label: Any,
    class_weight: Any,
    sample_weight: Any,
    smoothing: float,
    z_loss: float,
    classes: int,
    at: Callable[[Any, Any], Any] = getitem,
) -> RowNumbers:
    """Return the numbers of rows whose truth is class indices or probabilities, in the arrays of any library, classes last.

    label: [*rows] int64, IGNORED for ignored rows, or None where the truth is probabilities, whose off is what `soft` returns.
    class_weight: [C], or None, which stands for ones. sample_weight: [*rows] or None. at(a, i) is a[i].
    """
    sample = 1.0 if sample_weight is None else sample_weight
    q = 2 * z_loss * sample
    if label is None:
        return RowNumbers(0.0, sample, q, None, sample)
    weight = sample if class_weight is None else sample * at(class_weight, label.clip(0, classes - 1))
    if not smoothing:
        return RowNumbers(weight, 0.0, q, None, weight)
    off = everywhere(1.0 if class_weight is None else class_weight, smoothing, classes)
    return RowNumbers((1 - smoothing) * weight, sample, q, off, weight)


def everywhere(class_weight: Any, smoothing: float, classes: int) -> Any:
    """Return off for class indices: what label smoothing adds at every class."""
    return class_weight * (smoothing / classes)


def soft(u: Any, class_weight: Any, smoothing: float, classes: int) -> Any:
    """Return the truth of probabilities u: w_k ((1 - e) u_k + e/C)."""
    u = u * (1 - smoothing) + smoothing / classes if smoothing else u
    return u if class_weight is None else u * class_weight


def _stack(n: int, *numbers: Any) -> Array:
    """Return the numbers as an array [4, n], or [4, 1] if each of them is the same for all rows."""
    each = any(isinstance(x, np.ndarray) and x.shape == (n,) for x in numbers)
    rows = np.empty((len(numbers), n if each else 1))
    for row, x in zip(rows, numbers, strict=True):
        row[:] = x
    return rows


def adjacent(a: Array) -> bool:
    """Whether a kernel can read or write `a` in place: the classes of a row are adjacent, and the strides are whole numbers of elements."""
    return (a.shape[-1] == 1 or a.strides[-1] == a.itemsize) and not any(stride % a.itemsize for stride in a.strides)


def frequent(
    z: Any, labels: Any, axis: Any, class_weight: Any, smoothing: Any, ignore_index: Any, sample_weight: Any, reduction: Any, z_loss: Any,
    temperature: Any, softcap: Any,
) -> tuple[Array, Truth, LogitTransform] | None:  # fmt: skip
    """Return the logits and what `truth` and `logit_transform` return, in a few microseconds, for the arguments of frequent calls.

    Returns None for others. Frequent are a matrix and its labels, as the kernels take them, and options of the types that the guide uses.
    """
    if not (
        type(z) is np.ndarray
        and type(labels) is np.ndarray
        and z.ndim == 2
        and type(axis) is int
        and axis in (-1, 1)
        and (z.dtype.char in "fde" or z.dtype.name == "bfloat16")
        and z.dtype.isnative
        and z.strides[1] == z.itemsize
        and z.strides[0] % z.itemsize == 0
        and labels.dtype == np.int64
        and labels.shape == z.shape[:1]
        and labels.flags.contiguous
        and z.size > 0
        and type(ignore_index) is int
        and (z.shape[1] <= ignore_index < 2**63 or -(2**63) <= ignore_index < 0)
        and type(smoothing) in (float, int)
        and 0 <= smoothing <= 1
        and type(z_loss) in (float, int)
        and 0 <= z_loss <= BIGGEST
        and type(temperature) in (float, int)
        and SMALLEST <= temperature <= BIGGEST
        and (softcap is None or (type(softcap) in (float, int) and SMALLEST <= softcap <= BIGGEST))
        and type(reduction) is str
        and reduction in contract.REDUCTIONS
    ):
        return None
    (n, classes), label, first_outside = z.shape, labels, kernels.active().first_outside
    if first_outside(labels, classes, 0) >= 0:
        if first_outside(labels, classes, ignore_index) >= 0:
            return None
        label = np.where(labels == ignore_index, kernels.IGNORED, labels)
    for weights, length in ((class_weight, classes), (sample_weight, n)):
        if weights is not None and not (type(weights) is np.ndarray and weights.dtype == np.float64 and weights.shape == (length,)):
            return None
    transform = IDENTITY if temperature == 1 and softcap is None else LogitTransform(temperature, math.inf if softcap is None else softcap)
    found = _of_indices(label, label is labels, class_weight, sample_weight, smoothing, z_loss, classes, reduction, 1.0, z.dtype)
    return (z, found, transform) if 0 < found.total < math.inf else None


@lru_cache(maxsize=64)
def constant(*numbers: float) -> Array:
    """Return the numbers of a row, such as (y, r, q, g), that are the same for all rows: an array [4, 1] that cannot be written to."""
    column = np.array([[number] for number in numbers])
    column.flags.writeable = False
    return column


@lru_cache(maxsize=16)
def _smoothed(smoothing: float, classes: int, dtype: str) -> Array:
    """Return off for label smoothing without class weights, as an array that cannot be written to."""
    off = np.broadcast_to(everywhere(1.0, smoothing, classes), classes).astype(dtype)
    off.flags.writeable = False
    return off


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which the kernels compute for logits of this dtype: float64 for float64, and float32 for the others."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
