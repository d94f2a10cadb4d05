"""Both models trained side by side on the same batches, so that whatever else the machine does meets both alike."""

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

_WARM_UP = 10  # steps to the full rate
_DECAY = 0.3  # the last part of the training, in which the rate falls to 0
_GLANCES = 10  # held-out perplexities on the way
_SOME = 5  # ... over one held-out token in so many
_RECENT = 20  # steps that the shown loss and speed are taken over


class Glance(NamedTuple):
    step: int
    perplexities: list[float]  # held-out, one a trainer


def train(
    trainers: Sequence[Trainer], ids: Ids, held_out: Examples, *, steps: int, batch: int, seed: int, console: Console
) -> list[Glance]:  # fmt: skip
    """Take `steps` steps with each trainer, the order of the two turned every step. -> held-out perplexities on the way."""
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
    """By the median of the `recent` last steps, of all for 0."""
    return batch / median(s.whole for s in trainer.steps[-recent:])


def times_as_quick(trainers: Sequence[Trainer], *, head: bool) -> float:
    """The second trainer's time over the first one's, head or whole step: the median over the steps of the ratio within a step,
    which a busy machine disturbs less than the times themselves.
    """
    first, second = ([s.head if head else s.whole for s in t.steps] for t in trainers)
    return median(b / a for a, b in zip(first, second, strict=True))


def _batches(at: Positions, batch: int, seed: int) -> Iterator[Positions]:
    """Positions in random order, each once before any comes again."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(at)
        yield from (order[i : i + batch] for i in range(0, max(1, len(order) - batch + 1), batch))


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP, (steps - step) / (_DECAY * steps))


class _Display:
    """In a terminal a bar for each model; in a pipe or a file a line for each glance."""

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
        """The loss and the speed of each trainer's last steps."""
        return [(fmean(s.loss for s in t.steps[-_RECENT:]), tokens_per_second(t, self._batch, _RECENT)) for t in self._trainers]
