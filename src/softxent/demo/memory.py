"""The peak memory and the time of each head, for one gradient step with batches of growing size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

from .corpus import Examples, Ids
from .heads import F32, Gradients, Head, peak_bytes
from .model import Model

TIMES = (0.5, 1, 2, 4)  # batch sizes, as multiples of that of the training
_REPEATS = 3


class Size(NamedTuple):
    tokens: int
    peaks: list[int]  # bytes, for each head
    seconds: list[float]  # the median, for each head


def grow(heads: Sequence[Head], model: Model, seen: Examples, batch: int) -> list[Size]:
    """Measure batches of the sizes TIMES, taken from `seen`. Time and memory are measured in separate calls."""
    x = model.features(seen.part(slice(0, int(TIMES[-1] * batch))).context)
    return [measure(heads, x[:n], model.W, seen.labels[:n]) for n in (max(1, int(t * batch)) for t in TIMES)]


def measure(heads: Sequence[Head], x: F32, W: F32, labels: Ids) -> Size:
    calls = [partial(head.gradients, x, W, labels) for head in heads]
    return Size(len(x), [peak_bytes(call) for call in calls], [median(_seconds(call)) for call in calls])


def _seconds(call: partial[Gradients]) -> Iterator[float]:
    for _ in range(_REPEATS):
        start = perf_counter()
        call()
        yield perf_counter() - start
