"""The demo as a whole: it loads the text, trains both models, prints the results and draws the picture."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console

from .. import __version__, backends, contract
from ..partials import Array
from . import baselines, checks, corpus, memory, plot, report
from .checks import Check
from .complete import complete
from .corpus import UNKNOWN, Corpus, Examples
from .heads import Fused, Plain
from .model import CONTEXT, Model, Trainer
from .one_token import examine
from .train import train

_PROMPTS = ("for i in", "import", "from collections import", "def __init__(", "if x is", "if not isinstance(", "return self.")


def run(
    *, steps: int, batch: int, classes: int, held_out: int, seed: int, budget: int, output: Path, console: Console | None = None
) -> bool:  # fmt: skip
    """Train both models, print the results and save output/demo.png.

    Args:
        steps: the number of training steps of each model.
        batch: the number of tokens in a step.
        classes: the size of the vocabulary.
        held_out: the largest number of held-out tokens over which the perplexities are computed.
        seed: the seed of the model's initialization and of the batches.
        budget: the bytes of logits that softxent holds at once.
        output: the folder of the picture.
        console: where to print; None means the standard output.

    Returns:
        Whether all claims hold.

    Raises:
        RuntimeError: if this Python has no readable standard library.
        ValueError: if the folder cannot be made or written to.
        OSError: if the picture cannot be written.
    """
    start = perf_counter()
    console = console or Console()
    contract.place("demo", "output", output, folder=True)
    text = corpus.load(classes, CONTEXT)
    at = _some(corpus.positions(text.held_out), held_out)
    test = corpus.examples(text.held_out, at, CONTEXT)
    counted = baselines.count(text.train, text.held_out, at, len(text.vocab))
    _introduce(console, text, counted)

    trainers = [Trainer(Model(counted.frequency, seed), head) for head in (Fused(budget), Plain())]
    glances = train(trainers, text.train, test, steps=steps, batch=batch, seed=seed, console=console)
    losses = [t.losses(test) for t in trainers]
    claims = _compare(console, trainers, [baselines.perplexity(nll) for nll in losses], counted, _first(text, batch))
    sizes = memory.grow([t.head for t in trainers], trainers[0].model, _first(text, 4 * batch), batch)
    report.grown(console, [t.head.name for t in trainers], sizes)
    claims += [checks.memory(sizes, budget, len(text.vocab)), *_look(console, trainers[0].model, text, test, losses[0])]

    plot.save(output / "demo.png", trainers, counted, glances, sizes, batch)
    holds = report.checked(console, claims)
    console.print(f"\nPlot: {output / 'demo.png'}. All of it took {perf_counter() - start:.0f} s.", highlight=False, soft_wrap=True)
    return holds


def _introduce(console: Console, text: Corpus, counted: baselines.Baselines) -> None:
    active = next(b for b in backends() if b.active)
    parts = [
        f"{len(names)} files, {len(corpus.positions(ids)):,} tokens ({np.mean(ids == UNKNOWN):.1%} outside the vocabulary)"
        for names, ids in ((text.train_files, text.train), (text.held_out_files, text.held_out))
    ]
    for line in (
        f"softxent {__version__}, kernel {active.name} ({active.detail}); NumPy {np.__version__}",
        f"Text: the standard library of Python {platform.python_version()}, {parts[0]}; held out: {parts[1]}",
        f"Perplexities to beat: {len(text.vocab):,} uniform, {counted.unigram:.1f} unigram, {counted.bigram:.1f} bigram\n",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _compare(
    console: Console, trainers: Sequence[Trainer], perplexities: Sequence[float], counted: baselines.Baselines, seen: Examples
) -> list[Check]:  # fmt: skip
    """Compare the loss, gradients, perplexity, time and memory of both trainings. `seen` is a batch as in the training."""
    fused, plain = trainers
    report.compared(console, trainers, perplexities, len(seen.labels))
    x, W = fused.model.features(seen.context), fused.model.W
    return [
        checks.same_gradients(fused.head.gradients(x, W, seen.labels), plain.head.gradients(x, W, seen.labels)),
        *checks.perplexities(perplexities, counted, len(seen.labels) * len(fused.steps)),
    ]


def _look(console: Console, model: Model, text: Corpus, test: Examples, losses: Array) -> list[Check]:
    """Show completions of the model that was trained with softxent, and one of its predictions in detail."""
    report.completed(console, [(prompt, complete(model, text.vocab, prompt)) for prompt in _PROMPTS])
    token = examine(model, text.vocab, test, losses)
    report.taken_apart(console, token)
    return checks.slopes(token)


def _first(text: Corpus, n: int) -> Examples:
    return corpus.examples(text.train, corpus.positions(text.train)[:n], CONTEXT)


def _some(at: corpus.Positions, most: int) -> corpus.Positions:
    """Return at most `most` positions, the same for every seed of the demo, so that the perplexities of different seeds are comparable."""
    return np.sort(np.random.default_rng(1).choice(at, min(most, len(at)), replace=False))
