"""The model of the demo, a log-bilinear language model, and its training step. It is small, so that the head is most of the work.

    x = [sum_j A_j o E[token_-j], 1]        logits = x W^T

Because of the 1, the last column of W is the bias, and the head needs no other. E [C, D] is initialized randomly, and A [context, D] with
1/j. W is 0 except for the bias, which has the logarithms of the frequencies of the tokens, so that training starts with the perplexity of
the unigram.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .corpus import Examples, Ids
from .heads import F32, Head

WIDTH, CONTEXT = 127, 8  # 127 + the 1 = 128 columns of W
RATE = 0.2  # the learning rate of Adagrad; of 0.05, 0.1, 0.2, 0.3 and 0.5 it was the best after 154,000 tokens
_SLOW = 0.1  # A has this fraction of the rate, because every token changes it


class Step(NamedTuple):
    loss: float
    head: float  # seconds in the head
    whole: float  # seconds of the whole step


class Model:
    def __init__(self, frequency: NDArray[np.float64], seed: int) -> None:
        classes = len(frequency)
        rng = np.random.default_rng(seed)
        self.E: F32 = rng.standard_normal((classes, WIDTH), dtype=np.float32) * np.float32(0.1)
        self.A: F32 = np.ones((CONTEXT, WIDTH), np.float32) / np.arange(1, CONTEXT + 1, dtype=np.float32)[:, None]
        self.W: F32 = np.zeros((classes, WIDTH + 1), np.float32)
        self.W[:, -1] = np.log(frequency)

    def features(self, context: Ids) -> F32:  # [N, CONTEXT] -> [N, WIDTH + 1]
        x = np.ones((len(context), WIDTH + 1), np.float32)
        np.einsum("nkd,kd->nd", self.E[context], self.A, out=x[:, :-1])
        return x

    def logits(self, context: Ids) -> NDArray[np.float64]:  # [N, CONTEXT] -> [N, C]
        return self.features(context).astype(np.float64) @ self.W.T.astype(np.float64)


class Trainer:
    """Trains a model with a head, by Adagrad. It holds the sums of squares of the gradients and the times of the steps."""

    def __init__(self, model: Model, head: Head) -> None:
        self.model, self.head = model, head
        self.steps: list[Step] = []
        self._squares = {name: np.zeros_like(getattr(model, name)) for name in "EAW"}
        self._work = np.empty_like(model.W)

    def step(self, seen: Examples, rate: float) -> None:
        start = perf_counter()
        x = self.model.features(seen.context)
        before = perf_counter()
        loss, dx, dw = self.head.gradients(x, self.model.W, seen.labels)
        after = perf_counter()
        self._descend(seen.context, dx[:, :-1], dw, np.float32(rate))
        self.steps.append(Step(float(loss), after - before, perf_counter() - start))

    def losses(self, at: Examples) -> NDArray[np.float64]:
        """Return -log yhat of each label, as computed by the head."""
        return self.head.losses(self.model.features(at.context), self.model.W, at.labels)

    def _descend(self, context: Ids, dx: F32, dw: F32, rate: np.float32) -> None:
        E, A, W, s = self.model.E, self.model.A, self.model.W, self._squares
        dA = np.einsum("nd,nkd->kd", dx, E[context])
        ids, dE = _sum_by_id(context.ravel(), (dx[:, None, :] * A).reshape(-1, dx.shape[1]))
        _adagrad(W, dw, s["W"], rate, self._work)
        s["A"] += dA * dA
        A -= rate * np.float32(_SLOW) * dA / (np.sqrt(s["A"]) + _TINY)
        s["E"][ids] += dE * dE
        E[ids] -= rate * dE / (np.sqrt(s["E"][ids]) + _TINY)


_TINY = np.float32(1e-8)


def _adagrad(p: F32, g: F32, squares: F32, rate: np.float32, work: F32) -> None:
    """Compute p -= rate g / sqrt(sum of g^2 so far), in place; `g` and `work` are overwritten."""
    squares += np.multiply(g, g, out=work)
    np.sqrt(squares, out=work)
    work += _TINY
    g *= rate
    g /= work
    p -= g


def _sum_by_id(ids: Ids, rows: F32) -> tuple[Ids, F32]:
    """Add up rows with the same id. Returns the sorted ids and their sums. Faster than np.add.at, and with a fixed order of addition."""
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    return ids[first], np.add.reduceat(rows[order], first, axis=0)
