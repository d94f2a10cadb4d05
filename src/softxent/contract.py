"""The door: shapes, dtypes, labels and options are checked here, and every error is composed here.

The form of an error is fixed: `function: argument must EXPECTED; got WHAT`. What passes the door is what the inner files assume.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn, cast

import numpy as np

from .partials import Array

_FLOATS = ("float32", "float64", "float16", "bfloat16")
REDUCTIONS = ("none", "sum", "mean")
_EXTRAS = {"cli": {"typer", "click", "shellingham", "rich", "matplotlib"}, "proof": {"sympy", "mpmath", "latex2mathml"}}


def fail(fn: str, argument: str, expected: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{fn}: {argument} must {expected}; got {got}")


def extra(error: ModuleNotFoundError) -> str | None:
    """The extra of softxent that holds the package that is missing."""
    return next((extra for extra, packages in _EXTRAS.items() if (error.name or "").partition(".")[0] in packages), None)


def needs_extra(what: str, extra: str) -> str:
    return f'{what} needs the extra "{extra}": pip install "softxent[{extra}]"'


def to_last(a: Array, axis: int) -> Array:
    """A view with the class axis last."""
    return a if axis in (-1, a.ndim - 1) else np.moveaxis(a, axis, -1)


def from_last(a: Array, axis: int) -> Array:
    """The way back."""
    return a if axis in (-1, a.ndim - 1) else np.moveaxis(a, -1, axis)


def array(fn: str, argument: str, x: Any) -> Array:
    """`x` as a NumPy array, without a copy where it is one or speaks DLPack (bfloat16 too, with ml_dtypes)."""
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "__dlpack__") and "bfloat16" in str(getattr(x, "dtype", "")):
        return _bfloat16(fn, argument, x)
    try:
        a = np.asarray(x)
    except Exception as error:
        raise TypeError(f"{fn}: {argument} must be an array on the CPU; got {type(x).__name__} ({error})") from error
    if a.dtype == object:
        fail(fn, argument, "be a rectangular array of numbers", type(x).__name__, TypeError)
    return a


def _bfloat16(fn: str, argument: str, x: Any) -> Array:
    try:
        import ml_dtypes

        from ._kernel import bits16
    except ImportError as error:
        raise TypeError(
            f"{fn}: {argument} must come with ml_dtypes installed to be bfloat16 (pip install ml_dtypes); got {error}"
        ) from error
    bits: Array = bits16(x).view(ml_dtypes.bfloat16)
    return bits


def floats(fn: str, argument: str, x: Any) -> Array:
    """A floating-point array with at least one axis; integers become float64."""
    a = array(fn, argument, x)
    if a.dtype.kind in "iu":
        a = a.astype(np.float64)
    if a.dtype.name not in _FLOATS:
        fail(fn, argument, f"have dtype {', '.join(_FLOATS[:-1])} or {_FLOATS[-1]}", a.dtype, TypeError)
    if not a.dtype.isnative:
        a = a.astype(a.dtype.newbyteorder("="))
    return a


def logits(fn: str, z: Any, axis: int, argument: str = "logits") -> Array:
    """-> a view of the logits with the class axis last."""
    a = floats(fn, argument, z)
    if a.ndim == 0:
        fail(fn, argument, "have a class axis, such as shape (rows, classes)", "a scalar")
    if not isinstance(axis, (int, np.integer)) or not -a.ndim <= axis < a.ndim:
        fail(fn, "axis", f"be an int between {-a.ndim} and {a.ndim - 1} for {argument} of shape {a.shape}", axis)
    if a.shape[axis] == 0:
        fail(fn, argument, "have at least one class", f"shape {a.shape} with class axis {axis}")
    return to_last(a, axis)


def truth(fn: str, labels: Any, z: Array, axis: int) -> tuple[Array, bool]:
    """-> (integer labels [*lead], False), or (probabilities [*lead, C], True); `z` has its class axis last."""
    a = array(fn, "labels", labels)
    if a.dtype.kind in "iu":
        same_shape(fn, "labels", a, z.shape[:-1], from_last(z, axis).shape)
        return a, False
    if a.dtype.name not in _FLOATS:
        fail(fn, "labels", "be integers (class indices) or floats (probabilities)", a.dtype, TypeError)
    same_shape(fn, "probability labels", a, from_last(z, axis).shape, from_last(z, axis).shape)
    return to_last(a, axis), True


def direction(fn: str, v: Any, z: Array, axis: int) -> Array:
    """A vector of the shape of the logits, its class axis last."""
    a = floats(fn, "v", v)
    same_shape(fn, "v", a, from_last(z, axis).shape, from_last(z, axis).shape)
    return to_last(a, axis)


def same_shape(fn: str, argument: str, a: Array, shape: tuple[int, ...], like: tuple[int, ...]) -> None:
    if a.shape != shape:
        fail(fn, argument, f"have shape {shape} to match logits {like}", a.shape)


def inside(fn: str, argument: str, labels: Array, first: int, classes: int, ignore_index: int) -> None:
    """Raise for `first`, the flat index of the first label outside [0, classes) that is not ignore_index (-1: none)."""
    if first >= 0:
        where: Any = tuple(int(i) for i in np.unravel_index(first, labels.shape)) if labels.ndim > 1 else first
        fail(fn, argument, f"lie in [0, {classes}) or be ignore_index={ignore_index}", f"{labels.ravel()[first]} at row {where}")


def number(fn: str, argument: str, x: Any, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False) -> float:
    """A finite real number in [low, high]; in (low, high] where open_low."""
    expected = "be a finite number" + ("" if low == -math.inf else f" {'above' if open_low else 'of at least'} {low:g}")
    expected += "" if high == math.inf else f" and at most {high:g}"
    if isinstance(x, (str, bytes)):  # a compiler of torch 2.6 cannot follow str | bytes
        fail(fn, argument, expected, repr(x), TypeError)
    try:
        value = float(x)
    except (TypeError, ValueError):
        fail(fn, argument, expected, repr(x), TypeError)
    if value - value != 0 or not low <= value <= high or (open_low and value == low):  # inf - inf is NaN; a compiler can follow this
        fail(fn, argument, expected, f"{value:g}")
    return value


def integer(fn: str, argument: str, x: Any) -> int:
    """An int, whatever its type; one that no int64 holds is refused."""
    if not isinstance(x, (int, np.integer)) or isinstance(x, bool) or not -(2**63) <= x < 2**63:
        fail(fn, argument, "be an int of at most 64 bits", repr(x), TypeError)
    return int(x)


def choice(fn: str, argument: str, x: Any, allowed: tuple[str, ...]) -> str:
    if x not in allowed:
        fail(fn, argument, "be " + " or ".join(map(repr, allowed)), repr(x))
    return str(x)


def broadcast(fn: str, argument: str, x: Any, shape: tuple[int, ...]) -> Array:
    """`x` as float64, broadcast to `shape`."""
    a = array(fn, argument, x)
    if a.dtype.kind not in "iufb" and a.dtype.name != "bfloat16":
        fail(fn, argument, "hold real numbers", a.dtype, TypeError)
    try:
        return np.broadcast_to(a.astype(np.float64), shape)
    except ValueError:
        fail(fn, argument, f"broadcast to shape {shape}", a.shape)


def out(fn: str, a: Any, z: Array, axis: int) -> Array:
    """An output like `z` (class axis last): a new one for None, else the caller's, which may be the logits themselves."""
    if a is None:
        return to_last(np.empty_like(from_last(z, axis), subok=False), axis)
    if not isinstance(a, np.ndarray) or a.dtype != z.dtype:
        fail(fn, "out", f"be an array of dtype {z.dtype}", getattr(a, "dtype", type(a).__name__), TypeError)
    same_shape(fn, "out", a, from_last(z, axis).shape, from_last(z, axis).shape)
    if not a.flags.writeable:
        fail(fn, "out", "be writeable", "a read-only array")
    o = to_last(a, axis)
    if np.may_share_memory(o, z) and not _same(o, z) and _overlap(o, z):
        fail(fn, "out", "be the logits themselves or share no memory with them", "a partly overlapping array")
    if _overlap_self(o):
        fail(fn, "out", "have one place for each entry", f"strides {a.strides} for shape {a.shape}")
    return o


def _same(a: Array, b: Array) -> bool:
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides


def _overlap(a: Array, b: Array) -> bool:
    try:
        return bool(cast(Any, np.shares_memory)(a, b, max_work=100_000))  # numpy's stub knows only two of the numbers
    except np.exceptions.TooHardError:
        return True


def _overlap_self(a: Array) -> bool:
    return any(stride == 0 and n > 1 for stride, n in zip(a.strides, a.shape, strict=True))
