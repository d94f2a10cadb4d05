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
from typing import Any, NamedTuple

import numpy as np

from . import contract, kernels
from .partials import Array

BIGGEST = sys.float_info.max
SMALLEST = 2.0**-126  # the smallest normal number of float32; the inverse of a smaller one overflows


class Column:
    """A number of each row: `scalar`, times the weight of the row if `by_row`, and that of its label's class if `by_class`.

    With such numbers in place of weights, `row_numbers` says what a kernel has to multiply.
    """

    def __init__(self, scalar: float = 1.0, by_row: bool = False, by_class: bool = False) -> None:
        self.scalar, self.by_row, self.by_class = scalar, by_row, by_class

    def __mul__(self, other: Any) -> Column:
        if not isinstance(other, Column):
            return Column(self.scalar * other, self.by_row, self.by_class)
        return Column(self.scalar * other.scalar, self.by_row or other.by_row, self.by_class or other.by_class)

    __rmul__ = __mul__

    def of(self, of_row: Any, of_class: Any) -> Any:
        """Return the number for these weights, as kernels/__init__.py describes it."""
        if not (self.by_row or self.by_class):
            return self.scalar
        return self.scalar, of_row if self.by_row else None, of_class if self.by_class else None


class Truth(NamedTuple):
    """The truth of R rows over C classes. `given` returns what a kernel takes."""

    label: Array  # [R] int64
    numbers: tuple[Any, ...]  # y, r, q, g: each a float, or (float, [R] or None, [C] or None), as the kernels take them
    shared: Array | None = None  # [C]: off, if it is the same for every row
    dense: Array | None = None  # [*rows, C]: probabilities, as the caller gave them
    class_weight: Array | None = None  # [C], to be applied to dense
    smoothing: float = 0.0  # to be applied to dense
    total: float = 1.0  # the sum of the rows' weights, by which a mean is divided

    @property
    def rows(self) -> Array:
        """The numbers as an array [4, R], or [4, 1] if they are the same for all rows."""
        return kernels.as_array(self.numbers, self.label)

    def given(self, dtype: np.dtype[Any]) -> tuple[Array, Any, Array | None]:
        """Return label, numbers and off, as a kernel takes them for logits of this dtype."""
        return self.label, self.numbers, self.shared if self.dense is None else self._off(dtype)

    def rows_of(self, i: Any, at: Any = None) -> Truth:
        """Return the truth of the rows `i`; `at` is their index in arrays [*rows, C], if that is another one."""
        numbers = tuple(x if isinstance(x, float) or x[1] is None else (x[0], x[1][i], x[2]) for x in self.numbers)
        dense = None if self.dense is None else self.dense[i if at is None else at]
        return self._replace(label=self.label[i], numbers=numbers, dense=dense)

    def mass(self) -> Array:
        """Return the sum of the truth of each row, [R] float64. It is 0 in ignored rows."""
        off = 0.0 if self.shared is None else self.shared.sum(dtype=np.float64)
        if self.dense is not None:
            off = soft(self.dense.astype(np.float64), self.class_weight, self.smoothing, self.dense.shape[-1]).sum(axis=-1).reshape(-1)
        y, r, *_ = self.rows
        return np.where(self.label == kernels.IGNORED, 0.0, y + r * off)

    def usable(self) -> bool:
        """Whether a kernel can read the caller's probabilities; True if the labels are class indices."""
        u = self.dense
        if u is None:
            return True
        plain = self.smoothing == 0 and self.class_weight is None and contract.is_float(u.dtype) and u.dtype.isnative
        return plain and in_elements(u)

    def _off(self, dtype: np.dtype[Any]) -> Array:
        u = self.dense
        assert u is not None
        if self.usable():
            return u
        off = soft(u.astype(np.float64), self.class_weight, self.smoothing, u.shape[-1])
        return np.ascontiguousarray(off, dtype=computed_in(dtype))


class LogitTransform(NamedTuple):
    """The function that is applied to the logits before softmax: z -> (c/T) tanh(z/c), or z/T if c is infinite, which means no softcap."""

    temperature: float = 1.0
    softcap: float = math.inf


IDENTITY = LogitTransform()


def logit_transform(fn: str, temperature: float, softcap: float | None) -> LogitTransform:
    """Check temperature and softcap. Returns their `LogitTransform`."""
    number = contract.number
    cap = math.inf if softcap is None else number(fn, "softcap", softcap, low=SMALLEST)
    return LogitTransform(number(fn, "temperature", temperature, low=SMALLEST), cap)


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
        *logit_transform(fn, temperature, softcap),
    )


class Settled(NamedTuple):
    """What is known of a call from its shapes, dtypes and options, which are checked."""

    as_it_is: bool  # whether the logits have a dtype that the kernels take
    probable: bool  # whether the labels are probabilities
    classes: int
    lead: tuple[int, ...]  # the shape of the rows
    options: Options
    transform: LogitTransform
    numbers: RowNumbers  # Columns or floats; off is an array [C] if there are no weights of classes


@lru_cache(maxsize=1024, typed=True)
def _settled(fn: str, names: contract.Names, arrays: tuple[Any, ...], axis: int, *given: Any) -> Settled:
    """Check the options and the shapes and dtypes of logits, labels and weights, those of calls before in half a microsecond."""
    shape, dtype = arrays[0]
    taken = contract.floats(fn, names.logits, np.empty((), dtype)).dtype
    kinds = contract.Kinds(contract.kind(shape, taken), *(None if a is None else contract.kind(*a) for a in arrays[1:]))
    axis, probable = contract.check(fn, names, kinds, axis)
    o = options(fn, *given)
    found = columns(probable, arrays[2] is not None, arrays[3] is not None, o.label_smoothing, o.z_loss, shape[axis])
    if isinstance(found.off, float):
        found = found._replace(off=_of_every_class(found.off, shape[axis], computed_in(taken)))
    lead = shape[:axis] + shape[axis + 1 :]
    transform = LogitTransform(o.temperature, o.cap)
    return Settled(taken == dtype and dtype.isnative, probable, shape[axis], lead, o, transform, found)


@lru_cache(maxsize=16)
def _of_every_class(number: float, classes: int, dtype: np.dtype[Any]) -> Array:
    """Return an array [C] that cannot be written to. Calls of all shapes share it, for they are many, and C may be large."""
    off = np.full(classes, number, dtype)
    off.flags.writeable = False
    return off


def settled(*given: Any) -> Settled:
    """Return `_settled`, which looks up what it was given before."""
    try:
        return _settled(*given)
    except TypeError:  # also if an option, such as an array without axes, cannot be looked up
        pass
    return _settled.__wrapped__(*given)


def problem(
    fn: str, logits: Any, labels: Any, axis: int, class_weight: Any = None, label_smoothing: float = 0.0, ignore_index: int = -100,
    sample_weight: Any = None, reduction: str = "none", z_loss: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    empty_value: float = math.nan, upstream: Any = None,
) -> tuple[Array, Truth, LogitTransform]:  # fmt: skip
    """Check the arguments of `cross_entropy`. Returns the logits, class axis last, their `Truth` and their `LogitTransform`."""
    z = contract.array(fn, "logits", logits)
    arrays, known = _arrays(fn, z.shape, z.dtype, labels, class_weight, sample_weight)
    found = settled(fn, contract.NUMPY, known, axis, ignore_index, reduction, label_smoothing, z_loss, temperature, softcap)
    z = contract.to_last(z if found.as_it_is else contract.floats(fn, "logits", z), axis)
    return z, _truth(fn, contract.NUMPY, found, arrays, z.dtype, axis, upstream, empty_value), found.transform


def _arrays(fn: str, shape: tuple[int, ...], dtype: np.dtype[Any], labels: Any, class_weight: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Return labels and weights as arrays, and what is checked of these and of the logits."""
    a = contract.array(fn, "labels", labels)
    w = None if class_weight is None else contract.array(fn, "class_weight", class_weight)
    sample = None if sample_weight is None else contract.array(fn, "sample_weight", sample_weight)
    of_weights = None if w is None else (w.shape, w.dtype), None if sample is None else (sample.shape, sample.dtype)
    return (a, w, sample), ((shape, dtype), (a.shape, a.dtype), *of_weights)


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
    arrays, known = _arrays(fn, contract.from_last(z, axis).shape, z.dtype, labels, class_weight, sample_weight)
    found = settled(fn, names, known, axis, ignore_index, reduction, label_smoothing, z_loss, 1.0, None)
    return _truth(fn, names, found, arrays, z.dtype, axis, upstream, empty_value)


def _truth(
    fn: str, names: contract.Names, found: Settled, arrays: tuple[Any, ...], dtype: np.dtype[Any], axis: int, upstream: Any,
    empty_value: float,
) -> Truth:  # fmt: skip
    a, class_weight, sample_weight = arrays
    _, probable, classes, lead, o, _, (y, r, q, off, weight) = found
    w = None if class_weight is None else class_weight.astype(np.float64)
    sample = None if sample_weight is None else np.broadcast_to(sample_weight.astype(np.float64), lead).reshape(-1)
    if type(empty_value) is not float:
        contract.broadcast(fn, "empty_value", empty_value, ())
    weight = weight.of(sample, w)
    if probable:
        # The class with the largest probability serves as a label of weight 0. A kernel keeps it apart from the sums over the other
        # classes, so that the loss keeps its digits if that class has nearly all of the probability.
        label, shared, dense = same_label(kernels.LARGEST, math.prod(lead)), None, contract.to_last(a, axis) if a.ndim > 1 else a[None]
        total = len(label) * weight if sample is None else kernels.total(sample)
    else:
        label, total = labelled(fn, names, a, classes, o.ignore_index, weight)
        shared, dense = off if w is None or off is None else (w * off.scalar).astype(computed_in(dtype)), None
    g: Any = 1.0 if o.reduction != "mean" else 1 / total if total else 0.0
    if upstream is not None:
        up = contract.broadcast(fn, "upstream", upstream, lead if o.reduction == "none" else ())
        g = (g, up.reshape(-1), None) if up.ndim else g * float(up)
    return Truth(label, (y.of(sample, w), r.of(sample, w), q.of(sample, w), g), shared, dense, w, o.label_smoothing, total)


def labelled(fn: str, names: contract.Names, a: Array, classes: int, ignore_index: int, weight: Any) -> tuple[Array, float]:
    """Check class indices. Returns them as the kernels take them, [R] int64 and IGNORED, and the sum of the weights of rows not ignored."""
    labels, native = kernels.active().labels, a.dtype == np.int64
    if not (native or a.dtype.isnative) or not a.flags.aligned:
        a = a.astype(a.dtype.newbyteorder("="))
    first, ignored, total = labels(a, classes, ignore_index, weight)
    if first >= 0:
        contract.outside(fn, names.labels, a, first, classes, ignore_index)
    if not ignored and native and a.flags.c_contiguous:
        return a if a.ndim == 1 else a.reshape(-1), total
    label = np.empty(a.size, np.int64)
    labels(a, classes, ignore_index, 0.0, label)
    return label, total


@lru_cache(maxsize=64)
def same_label(label: int, rows: int) -> Array:
    return np.broadcast_to(np.int64(label), rows)


# The functions below take the arrays of any library, with the classes on the last axis.


class RowNumbers(NamedTuple):
    """The truth of rows, as the kernels take it (kernels/__init__.py). A number that is the same for all rows is a float."""

    y: Any  # [*rows] or a float
    r: Any
    q: Any
    off: Any  # [C], a float if it is the same for all classes, or None
    weight: Any  # by the sum of which, over the rows that are not ignored, a mean is divided


def _of_label(class_weight: Any, label: Any) -> Any:
    return class_weight[label.clip(0, len(class_weight) - 1)]


def row_numbers(
    label: Any,
    class_weight: Any,
    sample_weight: Any,
    smoothing: float,
    z_loss: float,
    classes: int,
    at: Callable[[Any, Any], Any] = _of_label,
) -> RowNumbers:
    """Return the numbers of rows whose truth is class indices or probabilities, in the arrays of any library, classes last.

    label: [*rows] int64, IGNORED for ignored rows, or None where the truth is probabilities, whose off is what `soft` returns.
    class_weight: [C], or None, which stands for ones. sample_weight: [*rows] or None. at(a, i) is a[i], and any number where i is no class.
    """
    sample = 1.0 if sample_weight is None else sample_weight
    q = 2 * z_loss * sample
    if label is None:
        return RowNumbers(0.0, sample, q, None, sample)
    weight = sample if class_weight is None else sample * at(class_weight, label)
    if not smoothing:
        return RowNumbers(weight, 0.0, q, None, weight)
    off = everywhere(1.0 if class_weight is None else class_weight, smoothing, classes)
    return RowNumbers((1 - smoothing) * weight, sample, q, off, weight)


@lru_cache(maxsize=1024)
def columns(probable: bool, by_class: bool, by_row: bool, smoothing: float, z_loss: float, classes: int) -> RowNumbers:
    """Return `row_numbers` as Columns, so that a kernel multiplies the weights; off is a float without weights of classes."""
    w, sample = Column(by_class=True) if by_class else None, Column(by_row=by_row)
    y, r, q, off, weight = row_numbers(None if probable else (), w, sample, smoothing, z_loss, classes, lambda w, _: w)
    y, r, q, weight = (x if isinstance(x, Column) else Column(x) for x in (y, r, q, weight))
    return RowNumbers(y, r, q, off, weight)


def everywhere(class_weight: Any, smoothing: float, classes: int) -> Any:
    """Return off for class indices: what label smoothing adds at every class."""
    return class_weight * (smoothing / classes)


def soft(u: Any, class_weight: Any, smoothing: float, classes: int) -> Any:
    """Return the truth of probabilities u: w_k ((1 - e) u_k + e/C)."""
    u = u * (1 - smoothing) + smoothing / classes if smoothing else u
    return u if class_weight is None else u * class_weight


def in_elements(*arrays: Array) -> bool:
    """Whether a kernel can read and write these arrays where they lie: their strides are whole numbers of elements."""
    return all(a.flags.forc or not any(stride % a.itemsize for stride in a.strides) for a in arrays)


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which the kernels compute for logits of this dtype: float64 for float64, and float32 for the others."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
