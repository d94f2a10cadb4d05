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
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import contract, kernels
from .partials import Array

NO_LABEL = -1  # a label that matches no class
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
        rows = self.rows if self.rows.shape[1] == 1 else self.rows[:, i]
        return self.label[i], rows, self.shared if self.dense is None else self._off(i, dtype)

    def rows_of(self, i: slice) -> Truth:
        """Return the truth of the rows `i`."""
        rows = self.rows if self.rows.shape[1] == 1 else self.rows[:, i]
        return self._replace(label=self.label[i], rows=rows, dense=None if self.dense is None else self.dense[i])

    def usable(self, dtype: np.dtype[Any]) -> bool:
        """Whether a kernel can read the caller's probabilities, for logits of this dtype; True if the labels are class indices."""
        u = self.dense
        if u is None:
            return True
        plain = self.smoothing == 0 and self.class_weight is None and u.dtype in (dtype, computed_in(dtype))
        return plain and adjacent(u)

    def _off(self, i: slice, dtype: np.dtype[Any]) -> Array:
        assert self.dense is not None
        u = self.dense[i]
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
    sample: Any = 1.0 if sample_weight is None else contract.broadcast(fn, "sample_weight", sample_weight, lead).reshape(n)
    up: Any = 1.0
    if upstream is not None:
        up = contract.broadcast(fn, "upstream", upstream, lead if reduction == "none" else ()).reshape(-1)
    penalty = contract.number(fn, "z_loss", z_loss, low=0)
    if type(empty_value) is not float:
        contract.broadcast(fn, "empty_value", empty_value, ())
    if probable:
        # The class with the largest probability serves as a label of weight 0. A kernel keeps it apart from the sums over the other classes,
        # so that the loss keeps its digits if that class has nearly all of the probability.
        label, live = np.broadcast_to(np.int64(kernels.LARGEST), n), None
    else:
        signed = np.minimum(a, np.iinfo(np.int64).max) if a.dtype == np.uint64 else a
        label = np.ascontiguousarray(signed, dtype=np.int64).reshape(n)
        contract.inside(fn, names.labels, a, kernels.active().first_outside(label, classes, ignore_index), classes, ignore_index)
        live = label != ignore_index
        if live.all():
            live = None
        else:
            label = np.where(live, label, kernels.IGNORED)
    if probable:
        numbers = row_numbers(None, 0.0, None, sample, 0.0, penalty, classes)
    else:
        numbers = row_numbers(label, None, w, sample, e, penalty, classes)
    weight = numbers.weight if live is None else numbers.weight * live
    total = float(weight.sum() if isinstance(weight, np.ndarray) else weight * n)
    scale = 1.0 if reduction != "mean" else (1 / total if total else 0.0)
    rows = _stack(n, numbers.y, numbers.r, numbers.q, scale * up)
    if probable:
        return Truth(label, rows, None, a.reshape(n, classes), w, e, total)
    off = None if numbers.off is None else np.broadcast_to(numbers.off, classes).astype(computed_in(z.dtype))
    return Truth(label, rows, off, total=total)


# The functions below take the arrays of any library, with the classes on the last axis.


class RowNumbers(NamedTuple):
    """The truth of rows, as the kernels take it (kernels/__init__.py). A number that is the same for all rows is a float."""

    y: Any  # [*rows] or a float
    r: Any
    q: Any
    off: Any  # [*rows, C], [C] or None
    weight: Any  # by the sum of which, over the rows that are not ignored, a mean is divided


def row_numbers(
    label: Any, probabilities: Any, class_weight: Any, sample_weight: Any, smoothing: float, z_loss: float, classes: int
) -> RowNumbers:
    """Return the numbers of rows whose truth is class indices or probabilities, in the arrays of any library, classes last.

    label: [*rows] int64, IGNORED for ignored rows, or None where the truth is probabilities [*rows, C]. class_weight: [C], or None, which
    stands for ones. sample_weight: [*rows] or None. With class indices, `off` is a float if it is the same for all classes.
    """
    sample = 1.0 if sample_weight is None else sample_weight
    q = 2 * z_loss * sample
    if label is None:
        return RowNumbers(0.0, sample, q, soft(probabilities, class_weight, smoothing, classes), sample)
    weight = sample if class_weight is None else sample * class_weight[label.clip(0, classes - 1)]
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


@lru_cache(maxsize=64)
def plain(g: float) -> Array:
    """Return (y, r, q, g) for class indices without options: y = 1, and g, the factor of the reduction."""
    numbers = np.array([[1.0], [0.0], [0.0], [g]])
    numbers.flags.writeable = False
    return numbers


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which the kernels compute for logits of this dtype: float64 for float64, and float32 for the others."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
