"""The demo's picture: loss, time and memory of both heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .baselines import Baselines
from .memory import Size
from .model import Trainer
from .train import Glance

_COLORS = ("#0072b2", "#e69f00")  # told apart by every kind of colour vision
_GREY = "0.4"


def save(path: Path, trainers: Sequence[Trainer], counted: Baselines, glances: Sequence[Glance], sizes: Sequence[Size], batch: int) -> None:
    """Write the PNG. No display is needed, and no state of pyplot is touched."""
    figure = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss, time, memory = figure.subplots(1, 3, width_ratios=(1.5, 1, 1.2))
    _loss(loss, trainers, counted, glances)
    _time(time, trainers, batch)
    _memory(memory, [t.head.name for t in trainers], sizes, batch)
    for axes in (loss, time, memory):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _loss(axes: Axes, trainers: Sequence[Trainer], counted: Baselines, glances: Sequence[Glance]) -> None:
    steps = np.arange(1, len(trainers[0].steps) + 1)
    for trainer, color, wide, i in zip(trainers, _COLORS, (1.2, 5), range(2)):
        axes.plot(steps, _smooth([s.loss for s in trainer.steps]), color=color, lw=wide, zorder=3 - i, label=f"{trainer.head.name}, training")
        points = [g.step for g in glances], [np.log(g.perplexities[i]) for g in glances]
        axes.plot(*points, "o" if i == 0 else "s", color=color, ms=4 if i == 0 else 8, zorder=5 - i, label=f"{trainer.head.name}, held out")
    for name, value in (("unigram", counted.unigram), ("bigram", counted.bigram)):
        axes.axhline(np.log(value), color=_GREY, lw=1, ls="--")
        axes.annotate(f"{name}, perplexity {value:.0f}", (1, np.log(value)), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", color=_GREY, fontsize=9)  # fmt: skip
    axes.set(title="Loss: the same, step by step", xlabel="step", ylabel="cross-entropy, nats a token", xlim=(0, len(steps)))
    axes.legend(frameon=False, fontsize=9, loc="upper center", ncols=2)


def _smooth(losses: Sequence[float]) -> Sequence[float]:
    """Exponential average of the losses, corrected for its start."""
    out, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean, weight = 0.95 * mean + 0.05 * loss, 0.95 * weight + 0.05
        out.append(mean / weight)
    return out


def _time(axes: Axes, trainers: Sequence[Trainer], batch: int) -> None:
    names = [t.head.name for t in trainers]
    head = [1e3 * median(s.head for s in t.steps) for t in trainers]
    rest = [1e3 * median(s.whole - s.head for s in t.steps) for t in trainers]
    axes.bar_label(axes.bar(names, head, 0.55, color=_COLORS), [f"head {h:.0f} ms" for h in head], label_type="center", color="white")
    axes.bar(names, rest, 0.55, bottom=head, color="0.8")
    for i, (h, r) in enumerate(zip(head, rest)):
        axes.annotate(f"the rest {r:.0f} ms", (i, h + r), (0, 3), textcoords="offset points", ha="center", color=_GREY, fontsize=9)
    axes.set(title=f"Time of a step: head {head[1] / head[0]:.2f}x", ylabel=f"ms, {batch:,} tokens, median")


def _memory(axes: Axes, names: Sequence[str], sizes: Sequence[Size], batch: int) -> None:
    tokens = [s.tokens for s in sizes]
    for i, (name, color) in enumerate(zip(names, _COLORS)):
        peaks = [s.peaks[i] / 2**20 for s in sizes]
        axes.plot(tokens, peaks, "o-", color=color, lw=2)
        axes.annotate(f"{name}\n{peaks[-1]:.0f} MiB", (tokens[-1], peaks[-1]), (-6, 8), textcoords="offset points", ha="right", color=color)
    axes.set(title="Peak memory of loss and gradients", xlabel="tokens at once", ylabel="MiB", xticks=tokens, xlim=(0, None), ylim=(0, None))
