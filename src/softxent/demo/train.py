"""The training of both models, in turns and on the same batches, so that other load of the machine affects both alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean, median
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .baselines import perplexity
from .corpus import Examples, Ids, Positions, examples, positions
from .model import CONTEXT, RATE, Trainer

_WARM_UP = 10  # steps until the learning rate is reached
_DECAY = 0.3  # the last part of the training, in which the rate decreases to 0
_GLANCES = 10  # how often the held-out perplexity is measured during the training
_SOME = 5  # one held-out token in so many is used for that
_RECENT = 20  # the displayed loss and speed are averages over so many steps


class Glance(NamedTuple):
    step: int
    perplexities: list[float]  # the held-out perplexity of each trainer


def train(
    trainers: Sequence[Trainer], ids: Ids, held_out: Examples, *, steps: int, batch: int, seed: int, console: Console
) -> list[Glance]:  # fmt: skip
    """Take `steps` steps with each trainer, in alternating order. Returns the held-out perplexities during the training."""
    glances: list[Glance] = []
    some, every = held_out.part(slice(None, None, _SOME)), max(1, steps // _GLANCES)
    with _Display(console, trainers, steps, batch) as display:
        for step, at in enumerate(islice(_batches(positions(ids), batch, seed), steps)):
            seen = examples(ids, at, CONTEXT)
            for trainer in trainers if step % 2 else reversed(trainers):
                trainer.step(seen, RATE * _schedule(step, steps))
            if (step + 1) % every == 0:
                glances.append(Glance(step + 1, [perplexity(t.losses(some)) for t in trainers]))
                display.say(glances[-1])
            display.advance()
    return glances


def tokens_per_second(trainer: Trainer, batch: int, recent: int = 0) -> float:
    """Return the speed by the median time of the last `recent` steps, or of all steps if 0."""
    return batch / median(s.whole for s in trainer.steps[-recent:])


def times_as_quick(trainers: Sequence[Trainer], *, head: bool) -> float:
    """Return the time of the second trainer divided by that of the first, for the head or for whole steps.

    It is the median of the ratios within each step, which the load of the machine affects less than the times.
    """
    first, second = ([s.head if head else s.whole for s in t.steps] for t in trainers)
    return median(b / a for a, b in zip(first, second, strict=True))


def _batches(at: Positions, batch: int, seed: int) -> Iterator[Positions]:
    """Yield batches of positions in random order. Each position is used once before any is used again."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(at)
        yield from (order[i : i + batch] for i in range(0, max(1, len(order) - batch + 1), batch))


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP, (steps - step) / (_DECAY * steps))


class _Display:
    """Shows the progress: a bar for each model on a terminal, and otherwise a line for each measurement of the perplexity."""

    def __init__(self, console: Console, trainers: Sequence[Trainer], steps: int, batch: int) -> None:
        self._console, self._trainers, self._steps, self._batch = console, trainers, steps, batch
        columns = (
            TextColumn("{task.description:<11}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f} {task.fields[speed]:>7,.0f} tokens/s"), TimeRemainingColumn(compact=True),
        )  # fmt: skip
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks = [self._bars.add_task(t.head.name, total=steps, loss=float("nan"), speed=0.0) for t in trainers]

    def __enter__(self) -> _Display:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def advance(self) -> None:
        for task, (loss, speed) in zip(self._tasks, self._recent(), strict=True):
            self._bars.update(task, advance=1, loss=loss, speed=speed)

    def say(self, glance: Glance) -> None:
        if self._console.is_terminal:
            return
        at = f"step {glance.step:>{len(str(self._steps))}}/{self._steps}"
        for t, (loss, speed), p in zip(self._trainers, self._recent(), glance.perplexities, strict=True):
            line = f"{at:<15}  {t.head.name:<11}  loss {loss:.3f}  held-out perplexity {p:>7,.1f}  {speed:>7,.0f} tokens/s"
            self._console.print(line, highlight=False, soft_wrap=True)
            at = ""

    def _recent(self) -> list[tuple[float, float]]:
        """Return the loss and the speed of the last steps of each trainer."""
        return [(fmean(s.loss for s in t.steps[-_RECENT:]), tokens_per_second(t, self._batch, _RECENT)) for t in self._trainers]
