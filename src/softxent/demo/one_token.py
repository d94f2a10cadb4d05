"""One prediction of the model in detail: yhat, y and yhat - y of a held-out token, compared with a difference quotient of the loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import softxent

from .corpus import START, UNKNOWN, Examples
from .model import Model

F64 = NDArray[np.float64]
STEP = 1e-5  # the step h of a logit; the error is h^2/60 (the third derivative is below 0.1) plus about 5e-17 loss / h from rounding


class Entry(NamedTuple):
    token: str
    yhat: float
    y: float
    gradient: float  # yhat - y, as computed by softxent
    slope: float  # (loss(z_k + h) - loss(z_k - h)) / 2h


class OneToken(NamedTuple):
    context: list[str]  # the oldest token first
    label: str
    loss: float
    entries: list[Entry]  # ordered by |yhat - y|, the largest first
    others: int  # the number of classes that are not among the entries
    rest: float  # the sum of yhat - y over them
    total: float  # the sum over all classes, which is 0 apart from rounding
    apart: float  # the largest difference between the gradient and yhat - y, over all classes


def examine(model: Model, vocab: list[str], held_out: Examples, losses: F64, shown: int = 6) -> OneToken:
    """Examine the held-out token whose loss is the median of `losses` [N], in float64."""
    known = np.flatnonzero(held_out.labels != UNKNOWN)
    i = known[np.argsort(losses[known], kind="stable")[len(known) // 2]]
    t, z = int(held_out.labels[i]), model.logits(held_out.context[i : i + 1])
    loss, (dz,) = softxent.cross_entropy_and_grad(z, [t])
    yhat, y = softxent.softmax(z[0]), np.arange(len(vocab)) == t
    top = np.argsort(-abs(dz))[:shown]
    slopes = central_differences(z[0], t, top)
    entries = [Entry(vocab[k], float(yhat[k]), float(y[k]), float(dz[k]), float(d)) for k, d in zip(top, slopes, strict=True)]
    before = [vocab[k] for k in held_out.context[i][::-1] if k != START]
    rest, total, apart = np.delete(dz, top).sum(), dz.sum(), abs(yhat - y - dz).max()
    return OneToken(before, vocab[t], float(loss), entries, len(vocab) - shown, float(rest), float(total), float(apart))


def central_differences(z: F64, label: int, at: NDArray[np.int64]) -> F64:  # z [C] -> [len(at)]
    """Return the difference quotients of the loss with respect to the logits `at`. Only losses are computed, no gradient."""
    up, down = np.tile(z, (len(at), 1)), np.tile(z, (len(at), 1))
    each = (np.arange(len(at)), at)
    up[each] += STEP
    down[each] -= STEP
    above, below = (softxent.cross_entropy(moved, np.full(len(at), label), reduction="none") for moved in (up, down))
    slopes: F64 = (above - below) / (up[each] - down[each])  # the denominator is 2 STEP with the rounding of the logits
    return slopes
