"""The narrow waist: three functions, four numbers a row. This file picks who computes them.

A backend is a module with `forward`, `backward`, `fused` and `first_outside`:

    z       [R, C] logits, float32, float64, float16 or bfloat16; columns adjacent, any stride between rows
    label   [R] int64; one outside 0..C-1 matches no column
    truth   [4, R] or [4, 1] float64: y (weight at the label), r (weight of off), q (2 x z-loss), g (upstream of the gradient)
    off     [C] or [R, C] or None: the truth away from the label, in z's dtype or in the one computed in
    result  [2, R] float64, written: loss, lse
    parts   [6, R] float64: the fields of `partials.Partials`
    out     [R, C], z's dtype, written; may be z itself
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import NamedTuple, Protocol

from ..partials import Array
from . import reference

try:
    from . import cpu
except ImportError as error:  # pragma: no cover - a wheel without its extension module
    cpu = None  # type: ignore[assignment]
    _why = f"the compiled kernel is missing ({error}); reinstall softxent with a C++17 compiler at hand"
else:
    _why = ""


class Kernel(Protocol):
    def forward(
        self, z: Array, label: Array, truth: Array, off: Array | None, result: Array, parts: Array | None, threads: int
    ) -> None: ...
    def backward(self, z: Array, label: Array, truth: Array, off: Array | None, parts: Array, out: Array, threads: int) -> None: ...
    def fused(
        self, z: Array, label: Array, truth: Array, off: Array | None, out: Array, result: Array, parts: Array | None, threads: int
    ) -> None: ...
    def first_outside(self, label: Array, classes: int, ignore_index: int) -> int: ...


class Backend(NamedTuple):
    """One way to compute the layer, as listed by `softxent.backends()`."""

    name: str
    available: bool
    active: bool
    detail: str


_NAMES: dict[str, Kernel] = {"formula": reference, **({"cpu": cpu} if cpu else {})}
_chosen: ContextVar[Kernel | None] = ContextVar("softxent_kernel", default=None)
_at_most: ContextVar[int] = ContextVar("softxent_threads", default=1 << 30)
_warned = False
MOST_THREADS = 4096  # beyond, an operating system refuses to start them


def _threads_of_the_environment() -> int:
    """SOFTXENT_NUM_THREADS, or the number of cores that this process may run on, also where it is no such number: that costs time alone."""
    cores = len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    text = os.environ.get("SOFTXENT_NUM_THREADS", "").strip() or "0"
    if text.isdecimal() and int(text) <= MOST_THREADS:
        return int(text) or cores
    expected = f"be an int from 1 to {MOST_THREADS}, or 0 for one on each core"
    warnings.warn(f"softxent: SOFTXENT_NUM_THREADS must {expected}; got {text!r}, and {cores} is used", RuntimeWarning, stacklevel=2)
    return cores


_threads = _threads_of_the_environment()


def active() -> Kernel:
    """The backend that the next call uses; warns once where the compiled kernel is missing and nobody chose another."""
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
    """Within the `with` block, compute by the named backend: "cpu" (compiled) or "formula" (NumPy, float64)."""
    if not isinstance(name, str) or name not in _NAMES:
        raise ValueError(f"use_backend: name must be one of {', '.join(sorted(_NAMES))}; got {name!r}" + (f" ({_why})" if _why else ""))
    token = _chosen.set(_NAMES[name])
    try:
        yield
    finally:
        _chosen.reset(token)


def isa() -> str | None:
    """The instruction set of the compiled kernel, if there is one. Raises ValueError where SOFTXENT_ISA names none of this machine."""
    return str(cpu.isa()) if cpu else None


def backends() -> list[Backend]:
    """What can compute the layer here, which one does, and why.

    The compiled kernel picks the widest instruction set of the processor; SOFTXENT_ISA=generic|avx2|avx512|neon forces one.

    Raises:
        ValueError: SOFTXENT_ISA names no instruction set of this machine.
    """
    now = active()
    detail = f"C++, {isa()}, up to {_threads} threads" if cpu else _why
    return [
        Backend("cpu", bool(cpu), now is cpu, detail),
        Backend("formula", True, now is reference, "NumPy in float64, one thread: the equations of formula.py"),
    ]


def get_num_threads() -> int:
    """How many threads a call may use. Starts as SOFTXENT_NUM_THREADS, else the cores that this process may run on."""
    return min(_threads, _at_most.get())


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Within the `with` block, no more threads than a framework's own."""
    token = _at_most.set(threads)
    try:
        yield
    finally:
        _at_most.reset(token)


def set_num_threads(threads: int) -> None:
    """Set how many threads a call may use (1 to 4096). The results are the same bits for any number."""
    global _threads
    if not isinstance(threads, Integral) or not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"set_num_threads: threads must be an int from 1 to {MOST_THREADS}; got {threads!r}")
    _threads = int(threads)
