"""The demo from the corpus to the picture."""

from __future__ import annotations

import platform
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console

from .. import __version__, backends
from . import baselines, checks, corpus, memory, one_token, plot, report
from .corpus import Corpus, Examples
from .heads import Fused, Plain
from .model import CONTEXT, Model, Trainer
from .train import train

_PROMPTS = ("for i in", "import", "def __init__(", "if x is", "from collections import", "if not isinstance(", "return self.")


def run(
    *,
    steps: int,
    batch: int,
    classes: int,
    held_out: int,
    seed: int,
    budget: int,
    output: Path,
    console: Console | None = None,
) -> bool:
    """Train both models, show what came out, save output/demo.png. -> whether everything that is claimed held.

    Args:
        steps, batch: the training: so many steps of so many tokens.
        classes: the size of the vocabulary.
        held_out: how many held-out tokens the perplexities are taken over, at most.
        seed: of the start, the batches and the completions.
        budget: bytes of logits that softxent holds at once.
        output: the folder of the picture.
        console: where to print; the standard output if None.
    """
    start = perf_counter()
    console = Console() if console is None else console
    text = corpus.load(classes, CONTEXT)
    test = _held_out(text, held_out)
    counted = baselines.count(text.train, text.held_out, _at(text, held_out), len(text.vocab))
    _introduce(console, text, counted)

    trainers = [Trainer(Model(counted.frequency, seed), head) for head in (Fused(budget), Plain())]
    glances = train(trainers, text.train, test, steps=steps, batch=batch, seed=seed, console=console)
    losses = [t.losses(test) for t in trainers]
    perplexities = [baselines.perplexity(nll) for nll in losses]
    model, heads = trainers[0].model, [t.head for t in trainers]
    seen = corpus.examples(text.train, corpus.positions(text.train)[: 4 * batch], CONTEXT)
    sizes = memory.grow(heads, model, seen, batch)
    report.compared(console, trainers, perplexities, batch)
    report.grown(console, [h.name for h in heads], sizes)

    rng = np.random.default_rng(seed)
    report.completed(console, [(p, one_token.complete(model, text.vocab, p, rng, _TEMPERATURE, _MOST)) for p in _PROMPTS])
    token = one_token.examine(model, text.vocab, test, losses[0])
    report.taken_apart(console, token)

    some = seen.part(slice(0, batch))
    x = model.features(some.context)
    claims = [
        checks.finite([s.loss for t in trainers for s in t.steps]),
        checks.same_gradients(*(h.gradients(x, model.W, some.labels) for h in heads)),
        *checks.perplexities(*perplexities, counted, steps * batch),
        checks.memory(sizes),
        *checks.slopes(token),
    ]
    good = report.checked(console, claims)
    plot.save(output / "demo.png", trainers, counted, glances, sizes, batch)
    console.print(f"Plot: {output / 'demo.png'}   {perf_counter() - start:.0f} s", highlight=False, soft_wrap=True)
    return good


def _at(text: Corpus, most: int):
    at = corpus.positions(text.held_out)
    return np.sort(np.random.default_rng(1).choice(at, min(most, len(at)), replace=False))


def _held_out(text: Corpus, most: int) -> Examples:
    return corpus.examples(text.held_out, _at(text, most), CONTEXT)


def _introduce(console: Console, text: Corpus, counted: baselines.Baselines) -> None:
    active = next(b for b in backends() if b.active)
    console.print(f"softxent {__version__}, kernel {active.name} ({active.detail}); NumPy {np.__version__}", highlight=False)
    train, test = (len(corpus.positions(ids)) for ids in (text.train, text.held_out))
    console.print(
        f"Corpus: the standard library of Python {platform.python_version()}, {len(text.train_files)} files, {train:,} tokens;"
        f" held out {len(text.held_out_files)} files, {test:,} tokens.", highlight=False,
    )  # fmt: skip
    report.baselines(console, counted, len(text.vocab))
