"""What the demo claims, as checks that run: one that fails ends it with an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .baselines import Baselines
from .heads import Gradients
from .memory import Size
from .one_token import OneToken

SAME_GRADIENTS = 1e-5  # of the largest entry: float32 sums of ~1,000 terms in another order differ by a few 1e-7
SAME_PERPLEXITY = 0.01  # relative: rounding differences grow through the training
SLOPE = 1e-9  # absolute: see the step of the central difference
ENOUGH = 150_000  # trained tokens from which the model must beat the bigram, which is counted from all of them


class Check(NamedTuple):
    claim: str
    measured: str
    holds: bool | None  # None: not claimed of this run


def same_gradients(a: Gradients, b: Gradients) -> Check:
    apart = max(float(abs(u - v).max() / abs(v).max()) for u, v in zip(a[1:], b[1:]))
    apart = max(apart, abs(a.loss / b.loss - 1))
    return Check("both heads give the same loss, dX and dW", f"{apart:.0e} of the largest entry apart, at most {SAME_GRADIENTS:.0e}", apart <= SAME_GRADIENTS)


def perplexities(fused: float, plain: float, counted: Baselines, trained: int) -> list[Check]:
    apart = abs(fused / plain - 1)
    worse = max(fused, plain)
    enough = trained >= ENOUGH
    why = "" if enough else f": not claimed below {ENOUGH:,} trained tokens"
    return [
        Check("both models reach the same held-out perplexity", f"{apart:.2%} apart, at most {SAME_PERPLEXITY:.0%}", apart <= SAME_PERPLEXITY),
        Check("they beat the bigram", f"{worse:,.1f} < {counted.bigram:,.1f}{why}", worse < counted.bigram if enough else None),
        Check("the bigram beats the unigram", f"{counted.bigram:,.1f} < {counted.unigram:,.1f}", counted.bigram < counted.unigram),
    ]


def memory(sizes: Sequence[Size]) -> Check:
    """The fused head grows only by dX and a few numbers a row; a tenth of the other's growth is more than that (width / classes)."""
    fused, plain = (sizes[-1].peaks[i] - sizes[0].peaks[i] for i in (0, 1))
    tokens = f"from {sizes[0].tokens:,} to {sizes[-1].tokens:,} tokens"
    measured = f"+{fused / 2**20:.1f} MiB and +{plain / 2**20:.1f} MiB {tokens}"
    return Check("softxent's memory hardly grows with the batch, the plain one's does", measured, fused < plain / 10)


def slopes(token: OneToken) -> list[Check]:
    apart = max(abs(e.slope - e.gradient) for e in token.entries)
    formed = max(abs(e.yhat - e.y - e.gradient) for e in token.entries)
    return [
        Check("the gradient is yhat - y", f"{formed:.0e} apart, at most {SLOPE:.0e}", formed <= SLOPE),
        Check("the central difference of the loss agrees", f"{apart:.0e} apart, at most {SLOPE:.0e}", apart <= SLOPE),
    ]


def finite(losses: Sequence[float]) -> Check:
    return Check("every loss of the training is finite", f"{len(losses):,} losses", bool(np.isfinite(losses).all()))
