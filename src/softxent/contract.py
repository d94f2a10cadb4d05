"""Checks of the arguments of the public functions: shapes, dtypes, labels and options.

All front ends call these functions. Checks of shapes and dtypes take a `Kind`, which PyTorch and JAX have as well. Those that take arrays
are NumPy's, and return them in the form that the rest of the package assumes. All error messages are composed by `fail` and have one form:
`function: argument must EXPECTED; got WHAT`. In every function, `fn` is the name of the public function and `argument` the name of its
argument.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import numpy as np

from .messages import fail as fail
from .messages import printable as printable
from .messages import printable_lines as printable_lines
from .messages import shortened as shortened
from .messages import shown as shown
from .partials import Array

if TYPE_CHECKING:
    from pathlib import Path

FLOATS = ("float32", "float64", "float16", "bfloat16")
REDUCTIONS = ("none", "sum", "mean")
_EXTRAS = {
    "cli": {"typer", "click", "shellingham", "rich", "matplotlib"},
    "proof": {"sympy", "mpmath", "latex2mathml"},
    "torch": {"torch"},
    "dev": {"transformers", "trl", "peft", "accelerate"},
    "sklearn": {"sklearn", "scipy"},
    "boosting": {"xgboost", "lightgbm", "catboost"},
    "jax": {"jax", "optax"},
}


Shape = tuple[int, ...]


class Kind(NamedTuple):
    """What is checked of an array of any library."""

    shape: Shape
    dtype: str  # as NumPy would name it


class Kinds(NamedTuple):
    """The arrays of a call."""

    logits: Kind
    labels: Kind | None  # None where a teacher has the probabilities
    class_weight: Kind | None = None
    sample_weight: Kind | None = None


class Names(NamedTuple):
    """What a front end calls its arguments, and what its users pass if the classes are along another axis."""

    logits: str
    labels: str
    elsewhere: str | None  # None where the classes are always along the last axis
    class_weight: str = "class_weight"
    sample_weight: str = "sample_weight"


NUMPY, NUMPY_LINEAR = Names("logits", "labels", "axis={other}"), Names("logits", "labels", None)
TORCH, TORCH_LINEAR = Names("input", "target", "input.movedim({other}, {axis})", "weight"), Names("logits", "target", None, "weight")
HEAD, TORCH_HEAD = ("x", "weight", "bias"), ("input", "linear_weight", "linear_bias")


def extra(error: ModuleNotFoundError) -> str | None:
    """The extra of softxent that holds the package that is missing."""
    return next((extra for extra, packages in _EXTRAS.items() if (error.name or "").partition(".")[0] in packages), None)


def needs_extra(what: str, extra: str) -> str:
    """Say what to type where a package is missing: softxent is on no package index, so it is a clone that knows the extra."""
    return f'{what} needs the extra "{extra}"; in a clone of softxent: {install(extra)}'


def install(extra: str) -> str:
    return f"pip install '.[{extra}]'"


def to_last(a: Array, axis: int) -> Array:
    """Return a view with the class axis last."""
    return a if axis in (-1, a.ndim - 1) else np.moveaxis(a, axis, -1)


def from_last(a: Array, axis: int) -> Array:
    """Return a view with the last axis moved back to `axis`, where the caller has the classes."""
    return a if axis in (-1, a.ndim - 1) else np.moveaxis(a, -1, axis)


def array(fn: str, argument: str, x: Any) -> Array:
    """Return `x` as a NumPy array. Arrays and DLPack tensors are not copied; bfloat16 tensors need ml_dtypes."""
    if type(x) is np.ndarray and x.dtype.kind != "O":
        return x
    if not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__") and "bfloat16" in str(getattr(x, "dtype", "")):
        return _bfloat16(fn, argument, x)
    try:
        a: Array = np.asanyarray(x)
    except Exception as error:
        _not_an_array(fn, argument, x, error)
    if type(a) is not np.ndarray and np.ma.is_masked(a):
        filled = f"{argument}.filled({'ignore_index' if argument == 'labels' else 'value'})"
        fail(fn, argument, f"have no masked entries ({filled} has none)", f"{np.ma.getmaskarray(a).sum()} masked of {a.size}")
    if a.dtype.kind == "O":
        _objects(fn, argument, x, a)
    return a


def _bfloat16(fn: str, argument: str, x: Any) -> Array:
    _of_torch(fn, argument, [x])
    try:
        import ml_dtypes

        from ._kernel import bits16
    except ImportError as error:
        fail(fn, argument, "come with ml_dtypes installed to be bfloat16 (pip install ml_dtypes)", error, TypeError)
    try:
        bits: Array = bits16(x).view(ml_dtypes.bfloat16)
    except TypeError:
        fail(fn, argument, "be a dense array on the CPU", type(x).__name__, TypeError)
    return bits


def _of_torch(fn: str, argument: str, items: Iterable[Any]) -> None:
    """Refuse tensors that only softxent.torch can take."""
    for x in items:
        device = getattr(x, "device", None)
        if getattr(device, "type", "cpu") != "cpu":
            fail(fn, argument, "be an array on the CPU (softxent.torch takes tensors of every device)", f"a tensor on {device}", TypeError)
        if getattr(x, "requires_grad", False):
            fail(
                fn,
                argument,
                "be an array without gradients (softxent.torch takes tensors with them)",
                "a tensor that requires grad",
                TypeError,
            )


def _not_an_array(fn: str, argument: str, x: Any, error: Exception) -> NoReturn:
    """Refuse what NumPy makes no array of, and say what would be one."""
    many = isinstance(x, (list, tuple))
    _of_torch(fn, argument, x if many else [x])
    if many and isinstance(error, ValueError):
        fail(fn, argument, "be a rectangular array of numbers, its rows of one length", "rows of different lengths", TypeError)
    fail(fn, argument, "be an array on the CPU", f"{type(x).__name__} ({error})", TypeError)


def _objects(fn: str, argument: str, x: Any, a: Array) -> NoReturn:
    """Refuse what NumPy holds as Python objects: nullable integers, strings, sparse matrices, None."""
    got, expected = "None" if x is None else type(x).__name__, "be a rectangular array of numbers"
    if hasattr(x, "toarray"):
        fail(fn, argument, f"be a dense array ({argument}.toarray() is one)", got, TypeError)
    if a.size and isinstance(a.flat[0], str):
        fail(fn, argument, expected, f"{got} of strings", TypeError)
    if a.ndim:
        to = "int" if argument == "labels" else "float"
        fail(fn, argument, f"{expected} (cast it to {to}, with missing values filled in)", f"{got} of Python objects", TypeError)
    fail(fn, argument, expected, got, TypeError)


def floats(fn: str, argument: str, x: Any) -> Array:
    """Return `x` as an array of a floating-point type that the kernels support; integers become float64."""
    a = array(fn, argument, x)
    if a.dtype.kind in "iu":
        a = a.astype(np.float64)
    if not is_float(a.dtype):
        float_dtype(fn, argument, kind(a.shape, a.dtype).dtype)
    if not a.dtype.isnative:
        a = a.astype(a.dtype.newbyteorder("="))
    return a


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the kernels have this floating-point type, in either byte order."""
    return dtype.char in "fde" or dtype.name == "bfloat16"


def kind(shape: Shape, dtype: np.dtype[Any]) -> Kind:
    """Return what is checked of a NumPy array of this shape and dtype."""
    return Kind(shape, "strings" if dtype.kind in "US" else dtype.name)


def logits(fn: str, z: Any, axis: int) -> Array:
    """Check the logits and the class axis. Returns a view of the logits with the class axis last."""
    a = floats(fn, "logits", z)
    return to_last(a, class_axis(fn, "logits", a.shape, axis))


# ---- shapes and dtypes, of arrays of any library ----


def check(fn: str, names: Names, kinds: Kinds, axis: int, classes: int | None = None) -> tuple[int, bool]:
    """Check the arrays of a call.

    Returns the class axis, not negative, and whether the labels are probabilities. Where classes are divided among devices, there are
    `classes` of them, and the logits and the probabilities have a part.
    """
    z, t, class_weight, sample_weight = kinds
    if z.dtype not in FLOATS and t is not None:
        in_order(fn, names, z.shape, t.shape)
    float_dtype(fn, names.logits, z.dtype)
    axis = class_axis(fn, names.logits, z.shape, axis, classes=classes)
    probabilities = t is not None and label_kind(t.dtype) == "float"
    rows = z.shape[:axis] + z.shape[axis + 1 :]
    if t is not None and (t.shape != (z.shape if probabilities else rows) or label_kind(t.dtype) not in ("int", "float")):
        wrong_labels(fn, names, t, z.shape, axis)
    classes = z.shape[axis] if classes is None else classes
    if class_weight is not None:
        real_dtype(fn, names.class_weight, class_weight.dtype)
        if class_weight.shape != (classes,):
            fail(fn, names.class_weight, f"have shape ({classes},), one number a class", class_weight.shape)
    if sample_weight is not None:
        real_dtype(fn, names.sample_weight, sample_weight.dtype)
        broadcasts(fn, names.sample_weight, sample_weight.shape, rows)
    return axis, probabilities


def check_head(fn: str, names: Sequence[str], x: Kind, weight: Kind, bias: Kind | None, *, empty: bool = False) -> Kind:
    """Check a linear head. Returns what its logits are. `empty` says whether it may have no class, because others have them."""
    float_dtype(fn, names[0], x.dtype)
    if weight.dtype != x.dtype:
        fail(fn, names[1], f"be {x.dtype} as {names[0]} is", weight.dtype, TypeError)
    if not x.shape or x.shape[-1] == 0 or len(weight.shape) != 2 or weight.shape[1] != x.shape[-1] or not (weight.shape[0] or empty):
        wrong_head(fn, names[1], weight.shape, names[0], x.shape)
    if bias is not None:
        float_dtype(fn, names[2], bias.dtype)
        if bias.shape != weight.shape[:1]:
            fail(fn, names[2], f"have shape ({weight.shape[0]},) to match {names[1]} {weight.shape}", bias.shape)
    return Kind((*x.shape[:-1], weight.shape[0]), x.dtype)


def float_dtype(fn: str, argument: str, dtype: str, allowed: tuple[str, ...] = FLOATS) -> None:
    """Refuse an array of another dtype."""
    if dtype not in allowed:
        fail(fn, argument, f"have dtype {', '.join(allowed[:-1])} or {allowed[-1]}", dtype, TypeError)


def real_dtype(fn: str, argument: str, dtype: str) -> None:
    """Refuse an array of anything else than real numbers."""
    if not dtype.startswith(("float", "bfloat", "longdouble", "int", "uint", "bool")):
        fail(fn, argument, "hold real numbers", dtype, TypeError)


def class_axis(fn: str, argument: str, shape: Shape, axis: int, name: str = "axis", classes: int | None = None) -> int:
    """Check the class axis, which is not empty unless others have `classes`. Returns it, not negative."""
    n = len(shape)
    if n == 0:
        fail(fn, argument, "have a class axis, such as shape (rows, classes)", "a scalar")
    if not _is_int(axis) or not -n <= axis < n:
        fail(fn, name, f"be an int between {-n} and {n - 1} for {argument} of shape {shape}", shown(axis))
    if not (shape[axis] if classes is None else classes):
        fail(fn, argument, "have at least one class", f"shape {shape} with class axis {axis % n}")
    return int(axis % n)


def label_kind(dtype: str) -> str:
    """Return what labels of this dtype are: "int" (class indices), "float" (probabilities), "bool" or "other"."""
    return "float" if dtype in FLOATS else "int" if dtype.startswith(("int", "uint")) else "bool" if dtype == "bool" else "other"


def broadcasts(fn: str, argument: str, shape: Shape, to: Shape) -> None:
    """Refuse a shape that does not broadcast to another."""
    if len(shape) > len(to) or any(n not in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False)):
        fail(fn, argument, f"broadcast to shape {to}", shape)


def wrong_labels(fn: str, names: Names, labels: Kind, logits: Shape, axis: int) -> NoReturn:
    """Refuse labels of this shape and dtype, and say what would make labels of them."""
    shape, kind = labels.shape, label_kind(labels.dtype)
    rows, got = logits[:axis] + logits[axis + 1 :], f"{labels.dtype} of shape {shape}"
    in_order(fn, names, logits, shape)
    if kind == "other" or (kind == "bool" and shape != logits):
        fail(fn, names.labels, "be integers (class indices) or floats (probabilities)", labels.dtype, TypeError)
    if kind != "float" and shape == logits:
        or_else = f"or have shape {rows} to be class indices"
        fail(fn, names.labels, f"be cast to float to be probabilities, such as one-hot rows, {or_else}", got, TypeError)
    if kind == "float" and len(shape) < len(logits):
        or_else = f"or have shape {logits} to be probabilities"
        fail(fn, names.labels, f"be cast to int to be class indices, with ignore_index for missing ones, {or_else}", got, TypeError)
    argument, expected = (names.labels, rows) if kind == "int" else (f"probability {names.labels}", logits)
    fail(fn, argument, f"have shape {expected} to match {names.logits} {logits}" + _elsewhere(names, shape, logits, axis), shape)


def _elsewhere(names: Names, rows: Shape, logits: Shape, axis: int) -> str:
    """What to pass if it is along another axis that the logits have more than these rows."""
    other = next((n for n in range(len(logits)) if rows == logits[:n] + logits[n + 1 :]), None)
    if other is None or names.elsewhere is None:
        return ""
    passed = names.elsewhere.format(other=other, axis=axis)
    return f", whose classes are along axis {axis} (pass {passed} if they are along axis {other})"


def in_order(fn: str, names: Names, first: Shape, second: Shape) -> None:
    """Refuse arrays of which the second has the first's shape and an axis more: it is the logits, and the first is the labels."""
    if any(length > 1 and second[:n] + second[n + 1 :] == first for n, length in enumerate(second)):
        fail(fn, names.logits, f"come before {names.labels}", f"arrays of shapes {first} and {second}")


def direction(fn: str, v: Any, z: Array, axis: int) -> Array:
    """Check the vector of a Hessian or Jacobian product, which has the shape of the logits. Returns it with the class axis last."""
    a = floats(fn, "v", v)
    same_shape(fn, "v", a, from_last(z, axis).shape, from_last(z, axis).shape)
    return to_last(a, axis)


def wrong_head(fn: str, argument: str, shape: Shape, x: str, x_shape: Shape) -> NoReturn:
    """Refuse a head's matrix of this shape for features `x`."""
    features = x_shape[-1] if x_shape else "D"
    if features == 0:
        fail(fn, x, "have at least one feature", f"shape {x_shape}")
    transposed = f" ({argument}.T has it)" if len(shape) == 2 and shape[:1] == x_shape[-1:] else ""
    fail(fn, argument, f"have shape (classes, {features}) to match {x} {x_shape}{transposed}", shape)


def same_shape(fn: str, argument: str, a: Array, shape: Shape, like: Shape) -> None:
    """Raise unless `a` has this shape; the message names `like`, the shape of the logits."""
    if a.shape != shape:
        fail(fn, argument, f"have shape {shape} to match logits {like}", a.shape)


def outside(fn: str, argument: str, labels: Array, first: int, classes: int, ignore_index: int) -> NoReturn:
    """Refuse the label at the flat index `first`, the first that is neither in [0, classes) nor ignore_index."""
    where: Any = tuple(int(i) for i in np.unravel_index(first, labels.shape)) if labels.ndim > 1 else first
    fail(fn, argument, f"lie in [0, {classes}) or be ignore_index={ignore_index}", f"{labels.ravel()[first]} at row {where}")


def number(fn: str, argument: str, x: Any, *, low: float = -math.inf, high: float = math.inf, or_else: str = "") -> float:
    """Return `x` as a float. It must be finite and in [low, high]. `or_else` names in an error what the caller accepts beside numbers."""
    if type(x) is float and low <= x <= high and x - x == 0:  # most calls; inf - inf is NaN, which torch.compile supports
        return x
    # torch.compile of torch 2.6 does not support str | bytes here; NumPy before 2.4 takes an array of one number for it
    if isinstance(x, (str, bytes, complex)) or (isinstance(x, np.ndarray) and x.ndim):
        fail(fn, argument, _finite(low, high, or_else), shown(x), TypeError)
    try:
        value = float(x)
    except OverflowError:
        fail(fn, argument, _finite(low, high, or_else), shown(x))
    except (TypeError, ValueError):
        fail(fn, argument, _finite(low, high, or_else), shown(x), TypeError)
    if value - value != 0 or not low <= value <= high:
        fail(fn, argument, _finite(low, high, or_else), f"{value:g}")
    return value


def _finite(low: float, high: float, or_else: str) -> str:
    """Return the text for a number in [low, high]. With dynamic=True, torch.compile cannot format `low`, so only errors call this."""
    return (
        f"be {or_else}a finite number"
        + ("" if low == -math.inf else f" of at least {low:g}")
        + ("" if high == math.inf else f" and at most {high:g}")
    )


def integer(fn: str, argument: str, x: Any, low: int = -(2**63)) -> int:
    """Return `x` as an int. It must be of an integer type, at least `low`, and fit into 64 bits."""
    if not _is_int(x) or not -(2**63) <= x < 2**63:
        fail(fn, argument, "be an int of at most 64 bits", shown(x), TypeError)
    if x < low:
        fail(fn, argument, f"be an int of at least {low}", x)
    return int(x)


def _is_int(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def choice(fn: str, argument: str, x: Any, allowed: tuple[str, ...]) -> str:
    """Return `x`, which must be one of the allowed strings."""
    if not isinstance(x, str) or x not in allowed:
        fail(fn, argument, "be " + " or ".join(map(repr, allowed)), shown(x))
    return x


def known(fn: str, options: Collection[str], allowed: Collection[str]) -> None:
    """Refuse options that are handed on by name, where there are none of that name."""
    for option in options:
        if option not in allowed:
            fail(fn, "keyword arguments", f"be among {', '.join(sorted(allowed))}", option, TypeError)


def renamed(fn: str, argument: str, x: Any, name: str) -> NoReturn:
    """Refuse an argument by the name that it has in the other front end."""
    fail(fn, argument, f"be passed as {name}, as it is called here", type(x).__name__, TypeError)


def broadcast(fn: str, argument: str, x: Any, shape: Shape) -> Array:
    """Return `x` as float64, broadcast to `shape`."""
    wide = reals(fn, argument, x)
    if wide.shape == shape:
        return wide
    broadcasts(fn, argument, wide.shape, shape)
    return np.broadcast_to(wide, shape)


def reals(fn: str, argument: str, x: Any) -> Array:
    """Return `x` as float64: a copy, for the array may overlap with an output."""
    a = array(fn, argument, x)
    if a.dtype.kind not in "iufb":
        real_dtype(fn, argument, kind(a.shape, a.dtype).dtype)
    return a.astype(np.float64)


def out(fn: str, a: Any, z: Array, axis: int, *truth: Any) -> Array:
    """Check an output array for the logits `z`. Returns it with the class axis last.

    The caller's array may be the logits themselves, but may not overlap them in another way, nor an array of `truth`.
    """
    if not isinstance(a, np.ndarray) or a.dtype != z.dtype:
        fail(fn, "out", f"be an array of dtype {z.dtype}", a.dtype if isinstance(a, np.ndarray) else type(a).__name__, TypeError)
    same_shape(fn, "out", a, from_last(z, axis).shape, from_last(z, axis).shape)
    if not a.flags.writeable:
        fail(fn, "out", "be writeable", "a read-only array")
    o = to_last(a, axis)
    if not _same(o, z) and _overlap(o, z):
        fail(fn, "out", "be the logits themselves or share no memory with them", "a partly overlapping array")
    if any(isinstance(t, np.ndarray) and _overlap(o, t) for t in truth):
        fail(fn, "out", "share no memory with the labels", "an overlapping array")
    if not a.flags.forc and _overlap_self(a):
        fail(fn, "out", "have one place for each entry", f"strides {a.strides} for shape {a.shape}")
    return o


def _same(a: Array, b: Array) -> bool:
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides


def _overlap(a: Array, b: Array) -> bool:
    """Whether the arrays share memory, or it would take long to find out that they do not."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(cast(Any, np.shares_memory)(a, b, max_work=100_000))  # NumPy's type stub allows only two values of max_work
    except np.exceptions.TooHardError:
        return True


def _overlap_self(a: Array) -> bool:
    """Whether two entries share memory: one at index 0 of an axis and one further on, both at index 0 of the axes before."""
    widest_first = a.transpose(sorted(range(a.ndim), key=lambda k: -abs(a.strides[k])))  # then most have none at first sight
    return a.size > 0 and any(_overlap(b[:1], b[1:]) for b in (widest_first[(0,) * k] for k in range(a.ndim)))


def place(fn: str, argument: str, path: Path, *, folder: bool) -> None:
    """Refuse a folder (which is made) or a file that cannot be written to, before the work whose results it is for."""
    import tempfile  # not needed to import softxent

    expected = "be a folder that files can be written to" if folder else "name a file that can be written"
    try:
        if folder:
            path.mkdir(parents=True, exist_ok=True)
        if folder or not path.exists():
            tempfile.TemporaryFile(dir=path if folder else path.parent).close()
    except OSError as error:
        fail(fn, argument, expected, f"{path} ({error.strerror})")
