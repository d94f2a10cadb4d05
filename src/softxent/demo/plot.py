"""The picture of the demo: the loss, the time and the memory of both heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .baselines import Baselines
from .memory import Size
from .model import Trainer
from .train import Glance, times_as_quick

_COLORS = ("#0072b2", "#e69f00")  # can be distinguished with every kind of color vision
_DARK = ("#0072b2", "#9a6700")  # the same colors for text, with enough contrast on white
_GREY = "0.35"


def save(path: Path, trainers: Sequence[Trainer], counted: Baselines, glances: Sequence[Glance], sizes: Sequence[Size], batch: int) -> None:
    """Write the PNG. No display is needed, and the state of pyplot does not change."""
    figure = Figure(figsize=(13, 4.2), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(figure)
    loss, time, memory = figure.subplots(1, 3, width_ratios=(1.5, 1, 1.25))
    _loss(loss, trainers, counted, glances)
    _time(time, trainers, batch)
    _memory(memory, [t.head.name for t in trainers], sizes)
    for axes in (loss, time, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontweight("bold")
    figure.savefig(path)


def _loss(axes: Axes, trainers: Sequence[Trainer], counted: Baselines, glances: Sequence[Glance]) -> None:
    """Draw NumPy's curve with a wide line and softxent's with a thin one on top, so that both are visible where they agree."""
    for i, (trainer, line, mark) in enumerate(zip(trainers, (1.3, 5.0), (4, 8), strict=True)):
        losses = _smooth([s.loss for s in trainer.steps])
        axes.plot(np.arange(1, len(losses) + 1), losses, color=_COLORS[i], lw=line, zorder=4 - i, label=f"{trainer.head.name}, training")
        seen = [g.step for g in glances], [np.log(g.perplexities[i]) for g in glances]
        axes.plot(*seen, "os"[i], color=_COLORS[i], ms=mark, zorder=4 - i, clip_on=False, label=f"{trainer.head.name}, held out")
    for name, value in (("unigram", counted.unigram), ("bigram", counted.bigram)):
        axes.axhline(np.log(value), color=_GREY, lw=1, ls="--")
        axes.annotate(
            f"{name}, held out: perplexity {value:.0f}", (1, np.log(value)), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", color=_GREY, fontsize=9,
        )  # fmt: skip
    top = max(trainers[0].steps[0].loss, np.log(counted.unigram))
    axes.set(title="Loss", xlabel="step", ylabel="cross-entropy, nats a token", xlim=(0, len(trainers[0].steps)))
    axes.set_ylim(top=top + 0.35 * (top - axes.get_ylim()[0]))  # room for the legend
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)


def _smooth(losses: Sequence[float], keep: float = 0.95) -> list[float]:
    """Return the exponential moving average of the losses, corrected for its start."""
    out, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def _time(axes: Axes, trainers: Sequence[Trainer], batch: int) -> None:
    names = [t.head.name for t in trainers]
    head, rest = ([1e3 * median(s.head if inside else s.whole - s.head for s in t.steps) for t in trainers] for inside in (True, False))
    bars = axes.bar(names, head, 0.6, color=_COLORS)
    labels = axes.bar_label(bars, [f"head\n{h:.0f} ms" for h in head], label_type="center", fontweight="bold")
    labels[0].set_color("white")
    axes.bar(names, rest, 0.6, bottom=head, color="0.8")
    for i, (h, r) in enumerate(zip(head, rest, strict=True)):
        axes.annotate(f"the rest {r:.0f} ms", (i, h + r), (0, 3), textcoords="offset points", ha="center", color=_GREY, fontsize=9)
    axes.set(title=f"Time: NumPy's head takes {times_as_quick(trainers, head=True):.2f} x", ylabel=f"ms for {batch:,} tokens, median")


def _memory(axes: Axes, names: Sequence[str], sizes: Sequence[Size]) -> None:
    tokens = [s.tokens for s in sizes]
    for i, (name, color) in enumerate(zip(names, _COLORS, strict=True)):
        peaks = [s.peaks[i] / 2**20 for s in sizes]
        axes.plot(tokens, peaks, "o-", color=color, lw=2, clip_on=False)
        below = i == 1  # the name of the steep line is left of its end, that of the flat line above it
        axes.annotate(
            f"{name}\n{peaks[-1]:.0f} MiB", (tokens[-1], peaks[-1]), (-28, 4) if below else (0, 8), textcoords="offset points",
            ha="right", va="top" if below else "bottom", color=_DARK[i], fontweight="bold",
        )  # fmt: skip
    axes.set(
        title="Peak memory of loss and gradients", xlabel="tokens at once", ylabel="MiB", xticks=tokens, xlim=(0, None), ylim=(0, None)
    )
    axes.set_xticklabels([f"{t:,}" for t in tokens])
