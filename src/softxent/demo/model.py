"""What is trained: a log-bilinear language model. It is small on purpose, so that the head is nearly all of the work.

    x = [sum_j A_j o E[token_-j], 1]        logits = x W^T

the 1 makes the last column of W the bias, so that the head is the plain linear cross-entropy. E [C, D] and A [context, D] start
random and as 1/j; W starts at 0 with the log frequencies in its bias, so that training starts at the unigram's perplexity.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .corpus import Examples, Ids
from .heads import F32, Head

WIDTH, CONTEXT = 127, 8  # 127 + the 1 = 128 columns of W
RATE = 0.2  # Adagrad; of 0.05, 0.1, 0.2, 0.3 and 0.5 the best after 154,000 tokens
_SLOW = 0.1  # A's share of the rate: every token moves it


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
    """A model, its head, and Adagrad's sums of squares."""

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
        """-log yhat of each label, by this trainer's own head."""
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
    """p -= rate g / sqrt(sum of g^2 so far), without a temporary of p's size; `g` is used up."""
    squares += np.multiply(g, g, out=work)
    np.sqrt(squares, out=work)
    work += _TINY
    g *= rate
    g /= work
    p -= g


def _sum_by_id(ids: Ids, rows: F32) -> tuple[Ids, F32]:
    """Rows with the same id added up -> (the ids, one row each). Quicker than np.add.at, and in a fixed order."""
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    return ids[first], np.add.reduceat(rows[order], first, axis=0)
