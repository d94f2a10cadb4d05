"""The interface of the kernels, and the choice of the backend that implements it. sweep.py and the front ends call the active backend.

A backend is a module with the functions of `Kernel`. They compute the equations of formula.py; their arguments are:

    z         [*rows, C] logits as the caller gave them, float32, float64, float16 or bfloat16, with at least one axis of rows. Like off, v
              and out it has any strides that are whole numbers of elements. R is the number of rows
    label     [R] int64; one outside 0..C-1 matches no column. A row with the label IGNORED is not read, and all that it gives is 0.
              LARGEST stands for the column with the largest off of the row, if off is [*rows, C], or else for that with the largest
              logit, and LARGEST_LOGIT for the latter in any case
    numbers   [4, R], [7, R], [4, 1] or [7, 1] float64, formula.Numbers: y (truth at the label), r (weight of off), q (twice z-loss), and
              the upstream gradients g (of the loss), l (lse), b (log-probability of the label) and n (entropy). Or, for NumPy, a tuple,
              of floats or (float, [R] or None, [C] or None): the product of these, where [C] has a number for each label
    off       [C], [*rows, C] or None: the truth at every class, in z's dtype or in the one in which is computed
    transform (T, cap): softmax is applied to (cap / T) tanh(z / cap), or to z / T if cap is inf
    result    float64, written. [2, R]: loss and lse; [5, R]: formula.Outputs; [6, R]: these, and the first class with the largest logit, -1
              in a row with the label IGNORED. Of `curvature`: [4, R]
    parts     [7, R] float64: the fields of `partials.Partials`, in which z is cap tanh(logit / cap) or the logit; written by
              `forward` and `fused`, read by `backward`. u is 0 if neither the entropy nor its gradient is wanted
    out       [*rows, C] in z's dtype, written; may be z itself
    threads   the largest number of threads

A gradient is 0 in a row where all coefficients (formula.Coefficients) are 0, even if its logits are NaN.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..messages import fail, shown
from ..partials import Array
from ..shared import IGNORED as IGNORED
from ..shared import LARGEST as LARGEST
from ..shared import LARGEST_LOGIT as LARGEST_LOGIT
from ..shared import NO_LABEL as NO_LABEL
from . import reference

try:
    from . import cpu
except ImportError as error:  # pragma: no cover - a wheel that was built without a compiler
    if "subinterpreter" in str(error):
        raise
    cpu = None  # type: ignore[assignment]
    _why = (
        f"the compiled kernel is missing ({error}); install a C++17 compiler, and then softxent again"
        " with pip install --force-reinstall --no-cache-dir"
    )
else:
    _why = ""


Transform = tuple[float, float]


class Kernel(Protocol):
    """The functions of a backend.

    `forward` computes what the rows give, and the partial sums; `backward` the gradient from the partial sums; `fused` both in one pass.

    `curvature` computes the derivative of the gradient along v [*rows, C], which has the dtype in which is computed; with `gauss_newton`,
    the second derivative of the logits' transform is taken as 0. v may be out. Its result has, of each row, with v multiplied by the slope
    of the transform: mean = <yhat, v>, v_t - mean, sum_k off_k (v_k - mean), and the derivative of the entropy along v (0 if four numbers
    are given). They are, or give, the derivatives of <dz, v> by the numbers.

    `tangent_sums` and `hessian` are the two steps of `curvature`, for columns that may be some of all. The first writes the sums, with u,
    and `tangents` [5, R] float64, the fields of `partials.Tangents`, for v times the slope of the transform; a row with the label IGNORED
    gets the sums of no columns. The second takes those of whole rows. Its result has the same bits for all columns of a row; v_t - mean
    is 0 where no column is the label, or its logit is -inf. Both compute in float64.

    `merge` merges the sums [K, 7, R] over different columns in the order of the `pairs` [K - 1, 2] of indices (see shards.py), and writes
    what the rows give, and their parts. Sums are overwritten. `tangents` [K, 5, R], if given, are merged too, into the first.

    `log_softmax` computes scale log yhat_k, for a scale [R] or [1] float64.

    `labels` looks through labels of any integer type: it returns the index of the first that is neither a class nor `ignored`, or -1, how
    many are `ignored`, and the sum of the weights of the others. `out`, [R] int64, gets the labels as the other functions take them.
    """

    def forward(
        self, z: Any, label: Array, numbers: Any, off: Array | None, transform: Transform, result: Array, parts: Array | None,
        threads: int,
    ) -> None: ...  # fmt: skip
    def backward(
        self, z: Any, label: Array, numbers: Any, off: Array | None, transform: Transform, parts: Array, out: Array, threads: int
    ) -> None: ...
    def fused(
        self, z: Any, label: Array, numbers: Any, off: Array | None, transform: Transform, out: Array, result: Array,
        parts: Array | None, threads: int,
    ) -> None: ...  # fmt: skip
    def curvature(
        self, z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Transform, gauss_newton: bool, out: Array,
        result: Array, threads: int,
    ) -> None: ...  # fmt: skip
    def tangent_sums(
        self, z: Array, v: Array, label: Array, off: Array | None, transform: Transform, parts: Array, tangents: Array, threads: int
    ) -> None: ...
    def hessian(
        self, z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Transform, gauss_newton: bool, parts: Array,
        tangents: Array, out: Array, result: Array, threads: int,
    ) -> None: ...  # fmt: skip
    def merge(
        self, sums: Array, pairs: Array, label: Array, numbers: Array, temperature: float, result: Array, parts: Array,
        tangents: Array | None, threads: int,
    ) -> None: ...  # fmt: skip
    def log_softmax(self, z: Array, scale: Array, transform: Transform, out: Array, threads: int) -> None: ...
    def labels(self, label: Array, classes: int, ignored: int, weight: Any, out: Array | None = None) -> tuple[int, int, float]: ...


class Backend(NamedTuple):
    """A backend, as listed by `softxent.backends()`: its name, whether it is available, whether calls use it, and details."""

    name: str
    available: bool
    active: bool
    detail: str


_NAMES: dict[str, Kernel] = {"formula": reference, **({"cpu": cpu} if cpu else {})}
_chosen: ContextVar[Kernel | None] = ContextVar("softxent_kernel", default=None)
_at_most: ContextVar[int] = ContextVar("softxent_threads", default=1 << 30)
_warned = False
LARGE = 1 << 20  # bytes; the memory of smaller arrays is used again by malloc
MOST_THREADS = 4096  # beyond, an operating system refuses to start them


def _threads_of_the_environment() -> int:
    """SOFTXENT_NUM_THREADS, or the number of cores that this process may run on, also where it is no such number: that costs time alone."""
    cores = len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    text = os.environ.get("SOFTXENT_NUM_THREADS", "").strip() or "0"
    if text.isdecimal() and len(digits := text.lstrip("0")) <= len(str(MOST_THREADS)) and int(digits or "0") <= MOST_THREADS:
        return int(digits or "0") or cores
    expected = f"be an int from 1 to {MOST_THREADS}, or 0 for one on each core"
    warnings.warn(f"softxent: SOFTXENT_NUM_THREADS must {expected}; got {shown(text)}, and {cores} is used", RuntimeWarning, stacklevel=2)
    return cores


_threads = _threads_of_the_environment()


def active() -> Kernel:
    """Return the backend that the next call uses. Warns once if the compiled kernel is missing and no backend was selected."""
    global _warned
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if cpu:
        return cpu
    if not _warned:
        _warned = True
        warnings.warn(f"softxent runs on plain NumPy, slowly: {_why}", RuntimeWarning, stacklevel=4)
    return reference


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select a backend within a `with` block: "cpu", the compiled kernel, or "formula", the equations in NumPy and float64.

    Raises:
        ValueError: if the backend does not exist or is not available.
    """
    if not isinstance(name, str) or name not in _NAMES:
        fail("use_backend", "name", f"be one of {', '.join(sorted(_NAMES))}", shown(name) + (f" ({_why})" if _why else ""))
    token = _chosen.set(_NAMES[name])
    try:
        yield
    finally:
        _chosen.reset(token)


def isa() -> str | None:
    """The instruction set of the compiled kernel, if there is one. Raises ValueError where SOFTXENT_ISA names none of this machine."""
    return str(cpu.isa()) if cpu else None


def backends() -> list[Backend]:
    """List the backends, whether each is available here, and which one calls use.

    The compiled kernel uses the widest instruction set of the processor. The environment variable SOFTXENT_ISA selects another one:
    generic, avx2, avx512 or neon.

    Raises:
        ValueError: if SOFTXENT_ISA names an instruction set that this machine does not have.
    """
    now = active()
    detail = f"C++, {isa()}, up to {_threads} threads" if cpu else _why
    return [
        Backend("cpu", bool(cpu), now is cpu, detail),
        Backend("formula", True, now is reference, "NumPy in float64, one thread: the equations of formula.py"),
    ]


def as_array(given: tuple[Any, ...], label: Array) -> Array:
    """Return numbers of rows with these labels, given as a tuple, as an array [K, R], or [K, 1] if they are the same for all rows."""
    found = np.empty((len(given), 1 if all(isinstance(x, float) for x in given) else len(label)))
    for row, x in zip(found, given, strict=True):
        row[:] = reference.number(x, label)
    return found


def total(a: Array) -> float:
    """Return the sum of an array [R] of float64, as NumPy computes it."""
    return cpu.sum(a) if cpu and a.strides == (8,) else float(a.sum())


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a new array in C order, with arbitrary entries. A large one uses the memory of a large array that is not used any more.

    The reason is that new memory takes longer to get than to fill: the system maps its pages one by one.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or cpu is None:
        return np.empty(shape, dtype)
    memory: Array = cpu.buffer(size).view(dtype).reshape(shape)
    return memory


def empty_cache() -> None:
    """Release the memory of large gradients that are not referenced any more, which is otherwise kept for the next ones."""
    if cpu is not None:
        cpu.trim()


def get_num_threads() -> int:
    """Return how many threads a call may use.

    Initially it is the environment variable SOFTXENT_NUM_THREADS or, if that is not set, the number of cores that the process may use.
    """
    most = _at_most.get()
    return most if most < _threads else _threads


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Use at most this many threads within a `with` block. A front end passes the number of threads of its framework."""
    token = _at_most.set(threads)
    try:
        yield
    finally:
        _at_most.reset(token)


def set_num_threads(threads: int) -> None:
    """Set how many threads a call may use, from 1 to 4096. The results are the same to the last bit for any number.

    Raises:
        ValueError: if the number is not an int from 1 to 4096.
    """
    global _threads
    if not isinstance(threads, Integral) or isinstance(threads, bool) or not 1 <= threads <= MOST_THREADS:
        fail("set_num_threads", "threads", f"be an int from 1 to {MOST_THREADS}", shown(threads))
    _threads = int(threads)
    if cpu is not None:
        cpu.set_xla_threads(_threads)
