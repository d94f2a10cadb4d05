"""Options of the loss are turned into what the kernels take. This is the only file that computes with an option.

The front ends call `truth` and `logit_transform`. A kernel takes four numbers for each row, y, r, q and g, and an array `off`; the truth of
a row, its target probabilities, is y at the label plus r off_k at every class k. With class weights w (1 if not given) and C classes:

    integer label t               y = w_t
    label smoothing e             y = (1 - e) w_t, r = 1, off_k = e/C w_k
    probabilities u               y = 0, r = 1, off_k = w_k ((1 - e) u_k + e/C)
    ignore_index                  y = r = q = 0
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
        if self.dense is None:
            return self.label[i], rows, self.shared
        off = self._off(i, dtype)
        # With probabilities, the class with the largest one is used as a label of weight 0. A kernel keeps it apart from the sums over
        # the other classes, so that the loss keeps its digits if that class has nearly all of the probability.
        return off.argmax(axis=1), rows, off

    def usable(self, dtype: np.dtype[Any]) -> bool:
        """Whether a kernel can read the caller's probabilities, for logits of this dtype; True if the labels are class indices."""
        u = self.dense
        if u is None:
            return True
        plain = self.smoothing == 0 and self.class_weight is None and u.dtype in (dtype, computed_in(dtype))
        return plain and adjacent(u)

    def mass(self, i: slice) -> Array:
        """Return the sums over the classes of the truth of the rows `i`, in float64: the factor of softmax in the gradient."""
        label, (y, r, _, _), off = self.piece(i, np.dtype(np.float64))
        mass: Array = np.broadcast_to(y if off is None else y + r * off.sum(axis=-1), len(label))
        return mass

    def _off(self, i: slice, dtype: np.dtype[Any]) -> Array:
        assert self.dense is not None
        u = self.dense[i]
        if self.usable(dtype):
            return u
        off = soft(u.astype(np.float64), self.class_weight, self.smoothing, u.shape[1])
        return np.ascontiguousarray(off, dtype=computed_in(dtype))


class LogitTransform(NamedTuple):
    """The function that is applied to the logits before softmax: z -> (c/T) tanh(z/c), or z/T if there is no softcap c."""

    temperature: float
    softcap: float | None

    def __call__(self, z: Any) -> Any:
        """Return the logits to which softmax is applied."""
        if self.softcap is None:
            return z / self.temperature
        if self.softcap < 1e18 or z.dtype.itemsize == 8:
            return _tanh(z / self.softcap) * (self.softcap / self.temperature)
        # In float32, the quotient may be subnormal, and the softcap itself infinite.
        double = z.astype(np.float64) if isinstance(z, np.ndarray) else z.double()
        capped = _tanh(double / self.softcap) * (self.softcap / self.temperature)
        return capped.astype(z.dtype) if isinstance(z, np.ndarray) else capped.to(z.dtype)

    def slope(self, z: Array) -> Array | float:
        """Return the first derivative at z: 1/T, times 1 - tanh^2, which is computed as 1 / cosh^2 to avoid cancellation."""
        if self.softcap is None:
            return 1 / self.temperature
        with np.errstate(over="ignore"):  # of cosh, or of a softcap that is infinite in float32
            return np.cosh(z / self.softcap) ** -2.0 / self.temperature

    def second_derivative(self, z: Array) -> Array | float:
        """Return the second derivative at z."""
        return 0.0 if self.softcap is None else np.tanh(z / self.softcap) * self.slope(z) * (-2 / self.softcap)


def _tanh(x: Any) -> Any:
    """tanh of an array or a tensor. The derivative of torch's tanh is 1 - tanh^2, which cancels for large |x|; that of (1 - t) / (1 + t)
    does not."""
    if isinstance(x, (np.ndarray, float)):
        return np.tanh(x)
    t = (-2 * x.abs()).exp()
    return x.tanh().where(x.abs() < 1, x.sign() * ((1 - t) / (1 + t)))


def logit_transform(fn: str, temperature: float, softcap: float | None) -> LogitTransform | None:
    """Check temperature and softcap. Returns their `LogitTransform`, or None if they do not change the logits."""
    t = contract.number(fn, "temperature", temperature, low=SMALLEST)
    c = None if softcap is None else contract.number(fn, "softcap", softcap, low=SMALLEST)
    return None if t == 1 and c is None else LogitTransform(t, c)


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
    q = 2 * contract.number(fn, "z_loss", z_loss, low=0)
    if type(empty_value) is not float:
        contract.broadcast(fn, "empty_value", empty_value, ())
    shared = None
    if probable:
        label, live, weight = np.broadcast_to(np.int64(NO_LABEL), n), 1.0, sample
        y, r = 0.0, sample
    else:
        signed = np.minimum(a, np.iinfo(np.int64).max) if a.dtype == np.uint64 else a
        label = np.ascontiguousarray(signed, dtype=np.int64).reshape(n)
        contract.inside(fn, names.labels, a, kernels.active().first_outside(label, classes, ignore_index), classes, ignore_index)
        live = label != ignore_index
        live = 1.0 if live.all() else live
        weight, y, r = of_label(label, live, w, sample, e, classes)
        if e > 0:
            shared = everywhere(np.ones(classes) if w is None else w, e, classes).astype(computed_in(z.dtype))
    total = float(weight.sum() if isinstance(weight, np.ndarray) else weight * n)
    scale = 1.0 if reduction != "mean" else (1 / total if total else 0.0)
    rows = _stack(n, y, r, q * sample * live, scale * up)
    return Truth(label, rows, shared, a.reshape(n, classes) if probable else None, w if probable else None, e if probable else 0.0, total)


# The functions below take NumPy arrays or tensors, with the classes on the last axis; torch/ uses them too.


def weights(label: Any, live: Any, class_weight: Any, sample: Any, classes: int) -> Any:
    """Return the weight of each row, by whose sum a mean is divided: the label's class weight times the sample weight; 0 if ignored."""
    return (sample if class_weight is None else sample * class_weight[label.clip(0, classes - 1)]) * live


def of_label(label: Any, live: Any, class_weight: Any, sample: Any, smoothing: float, classes: int) -> tuple[Any, Any, Any]:
    """Return the weight, y and r of each row, if the labels are class indices."""
    weight = weights(label, live, class_weight, sample, classes)
    return weight, (1 - smoothing) * weight, sample * live if smoothing > 0 else 0.0


def everywhere(class_weight: Any, smoothing: float, classes: int) -> Any:
    """Return off for class indices: what label smoothing adds at every class."""
    return class_weight * (smoothing / classes)


def soft(u: Any, class_weight: Any, smoothing: float, classes: int) -> Any:
    """Return the truth of probabilities u: w_k ((1 - e) u_k + e/C)."""
    u = u * (1 - smoothing) + smoothing / classes if smoothing else u
    return u if class_weight is None else u * class_weight


def mass(target: Any, probable: bool, class_weight: Any, smoothing: float, ignore_index: int, classes: int) -> tuple[Any, Any]:
    """Return which rows are not ignored (None if all), and the sum over the classes of their truth, which multiplies softmax."""
    if probable:
        return None, soft(target, class_weight, smoothing, classes).sum(-1)
    live = target != ignore_index
    everywhere = smoothing * (1.0 if class_weight is None else class_weight.sum(-1) / classes)
    return live, weights(target, live, class_weight, 1.0, classes) * (1 - smoothing) + everywhere * live


def written_out(target: Any, columns: Any, class_weight: Any, smoothing: float, ignore_index: int) -> Any:
    """Return the truth of class indices as an array over all classes; `columns` is 0..C-1."""
    hot = (target[..., None] == columns) * (class_weight * (1 - smoothing)) + class_weight * (smoothing / len(columns))
    return hot * (target != ignore_index)[..., None]


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


class RowNumbers(NamedTuple):
    """The truth of rows, as the kernels take it (kernels/__init__.py). y, r, q and weight are floats where they are the same for all rows."""

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
