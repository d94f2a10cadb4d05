"""The perplexities of counting tokens and pairs of tokens in all of the training text. A trained model has to be better."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .corpus import START, Ids, Positions

_DISCOUNT = 0.75  # the usual value for absolute discounting


class Baselines(NamedTuple):
    unigram: float  # the held-out perplexity of the frequencies of the tokens
    bigram: float  # that of their frequencies given the previous token
    frequency: NDArray[np.float64]  # [C], with add-one smoothing, sums to 1; its logarithm is the initial bias of the model


def count(train: Ids, held_out: Ids, at: Positions, classes: int) -> Baselines:
    """Compute the perplexities of the tokens at the positions `at` of `held_out`."""
    p1 = np.add(np.bincount(train[train != START], minlength=classes), 1, dtype=np.float64)
    p1 /= p1.sum()
    p2 = bigram(train, held_out[at - 1].astype(np.int64), held_out[at], p1)
    return Baselines(perplexity(-np.log(p1[held_out[at]])), perplexity(-np.log(p2)), p1)


def perplexity(nll: NDArray[np.float64]) -> float:
    """Return exp of the mean negative log-likelihood: a uniform distribution over so many tokens has the same loss."""
    return float(np.exp(nll.mean()))


def bigram(train: Ids, before: NDArray[np.int64], label: Ids, p1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of the labels given the tokens before them, with absolute discounting d:

    (count(before, label) - d + d kinds(before) p1(label)) / count(before), or p1(label) if `before` does not occur in the training text.
    """
    classes = len(p1)
    pairs = train[:-1].astype(np.int64) * classes + train[1:]
    pair, times = np.unique(pairs[train[1:] != START], return_counts=True)
    total = np.bincount(pair // classes, weights=times, minlength=classes)[before]
    kinds = np.bincount(pair // classes, minlength=classes)[before]
    want = before * classes + label
    i = np.searchsorted(pair, want).clip(max=len(pair) - 1)
    seen = np.where(pair[i] == want, times[i] - _DISCOUNT, 0.0)
    p2: NDArray[np.float64] = np.where(total > 0, (seen + _DISCOUNT * kinds * p1[label]) / np.maximum(total, 1), p1[label])
    return p2
