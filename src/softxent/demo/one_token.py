"""One prediction taken apart: yhat, y and yhat - y of a real held-out token, and the slope of the loss as a second witness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import softxent

from .corpus import START, UNKNOWN, Examples
from .model import Model

F64 = NDArray[np.float64]
STEP = 1e-5  # h, of a logit: the error is h^2/60 (the third derivative is below 0.1) and, from rounding, about 5e-17 loss / h


class Entry(NamedTuple):
    token: str
    yhat: float
    y: float
    gradient: float  # yhat - y, as softxent's gradient has it
    slope: float  # (loss(z_k + h) - loss(z_k - h)) / 2h


class OneToken(NamedTuple):
    context: list[str]  # oldest first
    label: str
    loss: float
    entries: list[Entry]  # by the size of yhat - y
    others: int  # classes not among the entries
    rest: float  # their summed yhat - y
    total: float  # the sum over all classes, 0 but for rounding
    apart: float  # how far the gradient lies from yhat - y at most, over all classes


def examine(model: Model, vocab: list[str], held_out: Examples, losses: F64, shown: int = 6) -> OneToken:
    """The held-out token whose loss is the median one of `losses` [N]: neither easy nor hopeless. In float64."""
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
    """Slopes of softxent's loss along the logits `at`. They know nothing of the gradient: only losses are evaluated."""
    up, down = np.tile(z, (len(at), 1)), np.tile(z, (len(at), 1))
    each = (np.arange(len(at)), at)
    up[each] += STEP
    down[each] -= STEP
    above, below = (softxent.cross_entropy(moved, np.full(len(at), label), reduction="none") for moved in (up, down))
    slopes: F64 = (above - below) / (up[each] - down[each])  # divided by what the two were rounded to
    return slopes
