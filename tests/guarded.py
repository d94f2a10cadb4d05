"""Arrays beside pages of memory that must not be touched, for fuzz.py: an access outside of one ends the process."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(size: int, at_end: bool, shift: int = 0) -> tuple[np.ndarray, Callable[[], None]]:
    """Return `size` bytes that end (or begin, and then `shift` bytes later) at such a page, and a function that forbids writing to them."""
    pages = -(-(size + shift) // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages - 1):
        assert protect(address + page * PAGE, PAGE, 0) == 0
    begin = (pages - 1) * PAGE - size - shift if at_end else PAGE + shift
    inner = address + PAGE, (pages - 2) * PAGE
    return np.frombuffer(memory, np.uint8)[begin : begin + size], lambda: protect(*inner, mmap.PROT_READ)


class Memory:
    """Places arrays for one call, and counts how. `worst` is for the caller's own notes."""

    def __init__(self, rng: np.random.Generator, seen: Counter[str], worst: Any = None) -> None:
        self.rng, self.seen, self.worst = rng, seen, worst
        self.locks: list[Callable[[], None]] = []

    def chance(self, p: float, what: str) -> bool:
        found = bool(self.rng.random() < p)
        self.seen[what] += found
        return found

    def place(self, a: np.ndarray, written: bool = False, strides: bool = True) -> np.ndarray:
        """Return an array with these values at a random place: with any step between rows, at odd addresses, in any order of the rows."""
        if a.size == 0:
            return np.zeros(a.shape, a.dtype)
        at_end = bool(self.rng.random() < 0.7)
        shift = int(self.rng.integers(1, a.itemsize)) if strides and a.itemsize > 1 and self.chance(0.15, "at an odd address") else 0
        gap = 0
        if a.ndim == 2 and strides:
            gap = int(self.rng.choice([0, 0, 1, 3, 16]))
            self.seen["gaps between rows"] += gap > 0
        step = (a.shape[-1] + gap) * a.itemsize
        size = a.nbytes if a.ndim == 1 else step * (a.shape[0] - 1) + a.shape[1] * a.itemsize
        raw, lock = guarded(size, at_end, shift)
        placed: np.ndarray = np.ndarray(a.shape, a.dtype, raw, strides=(step, a.itemsize)[2 - a.ndim :])
        if a.ndim == 2 and strides and len(a) > 1 and self.chance(0.1, "rows in reverse"):
            placed = placed[::-1]
        placed[...] = a
        if not written:
            self.locks.append(lock)
        return placed

    def lock(self) -> None:
        """Forbid writing to all arguments."""
        for lock in self.locks:
            assert lock() == 0
