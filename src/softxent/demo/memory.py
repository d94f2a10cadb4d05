"""One gradient step at growing batches: the peak memory and the time of each head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

from .corpus import Examples, Ids
from .heads import F32, Gradients, Head, peak_bytes
from .model import Model

TIMES = (0.5, 1, 2, 4)  # the batch of the training
_REPEATS = 3


class Size(NamedTuple):
    tokens: int
    peaks: list[int]  # bytes, one a head
    seconds: list[float]  # one a head, median


def grow(heads: Sequence[Head], model: Model, seen: Examples, batch: int) -> list[Size]:
    """Batches from half to 4 times that of the training, cut from `seen`. Time and memory are measured in calls of their own."""
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
