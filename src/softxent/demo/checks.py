"""The claims of the demo, as checks. If one fails, the demo exits with an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .baselines import Baselines
from .heads import Gradients
from .memory import Size
from .one_token import OneToken

SAME_GRADIENTS = 1e-4  # relative to the largest entry; other orders of float32 sums differed by 3e-7, and by 1e-5 with chunks of one row
SAME_PERPLEXITY = 1e-3  # relative; rounding changed it by less than 1e-5 in 400 steps
SLOPE = 1e-9  # absolute; ten times the error of the difference quotient (one_token.STEP) for a loss of 20
# The model is claimed to be better than a baseline if it was trained on at least so many tokens, although the bigram is counted from all
# 1.6 million. Measured with these numbers of tokens: perplexity 120 (the unigram has 250), and 65 and 66 for two seeds (the bigram has 80).
BEATS_UNIGRAM, BEATS_BIGRAM = 20_000, 150_000


class Check(NamedTuple):
    claim: str
    measured: str
    holds: bool | None  # None: not claimed of this run


def same_gradients(a: Gradients, b: Gradients) -> Check:
    apart = _largest([a.loss / b.loss - 1, *(float(abs(u - v).max() / abs(v).max()) for u, v in ((a.dx, b.dx), (a.dw, b.dw)))])
    measured = f"at most {apart:.0e} apart (allowed {SAME_GRADIENTS:.0e} of the largest entry)"
    return Check("both heads give the same loss, dX and dW", measured, apart <= SAME_GRADIENTS)


def perplexities(both: Sequence[float], counted: Baselines, trained: int) -> list[Check]:
    apart, worse = _largest(both) / min(both) - 1, _largest(both)
    return [
        Check("both models have the same perplexity", f"{apart:.3%} apart (allowed {SAME_PERPLEXITY:.1%})", apart <= SAME_PERPLEXITY),
        _beats("unigram", worse, counted.unigram, trained, BEATS_UNIGRAM),
        _beats("bigram", worse, counted.bigram, trained, BEATS_BIGRAM),
        Check("the bigram beats the unigram", f"{counted.bigram:,.1f} < {counted.unigram:,.1f}", counted.bigram < counted.unigram),
    ]


def _beats(name: str, model: float, baseline: float, trained: int, enough: int) -> Check:
    claim = f"both beat the {name}"
    if trained < enough:
        return Check(claim, f"{model:,.1f} and {baseline:,.1f}: claimed from {enough:,} trained tokens, here {trained:,}", None)
    return Check(claim, f"{model:,.1f} < {baseline:,.1f}", model < baseline)


def memory(sizes: Sequence[Size], budget: int, classes: int) -> Check:
    """Compare the growth of the memory of both heads, from the batch of the training to the largest one.

    softxent's head grows too: by dX, which is 6 % of the logits with 2,000 classes, and by at most half a budget, because its chunks have
    equal sizes. The latter is 17 % of the logits if the first batch has two chunks.
    """
    _, first, *_, last = sizes
    fused, plain = (last.peaks[i] - first.peaks[i] for i in (0, 1))
    claim = "softxent's memory is constant, NumPy's grows"
    measured = f"{fused / 2**20:+.1f} and {plain / 2**20:+.1f} MiB from {first.tokens:,} to {last.tokens:,} tokens"
    if first.tokens * classes * 4 <= budget:
        return Check(claim, f"{measured}; not claimed where the budget holds all {first.tokens:,} x {classes:,} logits", None)
    return Check(claim, measured, fused < plain / 4)


def slopes(token: OneToken) -> list[Check]:
    apart = _largest([e.slope - e.gradient for e in token.entries])
    return [
        Check("the gradient is yhat - y in every class", f"{token.apart:.0e} apart (allowed {SLOPE:.0e})", token.apart <= SLOPE),
        Check("the central difference agrees with it", f"{apart:.0e} apart (allowed {SLOPE:.0e})", apart <= SLOPE),
    ]


def _largest(values: Sequence[float]) -> float:
    """Return the largest magnitude, or NaN if any is NaN, which fails every comparison. Python's max may ignore a NaN."""
    return float(np.abs(values).max())
