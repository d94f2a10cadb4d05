"""The gradient filter of linear cross-entropy: it leaves blocks of classes out of the products dX = G W and dW = G^T X, and bounds the
error.

linear.py and torch/linear_operators.py use it. G is the gradient with respect to the logits, of which most entries are close to 0 in a
trained model. A block K is BLOCK adjacent classes. By the triangle inequality, the error of leaving blocks out is at most

    in row i of dX:  the sum over the blocks left out of  a_iK = (sum_{k in K} |G_ik|) max_{k in K} ||W_k||
    in row k of dW:  the sum over the chunks that left it out of  c_k = sum_i |G_ik| ||X_i||

If e bounds the error so far, the norm of the exact gradient is at least that of the computed one, minus e. So the relative error can be
bounded after the products, however the blocks were chosen. The entry of each row at its label is never small; it is taken out of G and its
products are added exactly. proof/bounds.py proves the bound, with rounding (`filter_losses`). In this file "lost" and "loss" mean this
bound of the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .partials import Array

BLOCK = 128
PIECE = 1 << 17  # elements of G processed at once: 512 KiB of float32 stay in the cache between |G| and its two sums
GAP = 8  # blocks: leaving out fewer adjacent blocks than this saves less than splitting the product costs
ALMOST = 1 - 2.0**-30  # the choice stays below the limit by this factor, so that the same sums in another order are within it too
LEAST = 2.0**-460  # below this limit nothing is left out, because squares of the errors underflow
GROWTH = 0.9  # the final norm of dW is predicted as growing with sqrt(rows), times this; if it is smaller, dW is computed again


@dataclass
class FilterStats:
    """What the gradient filter did in the last call that received this object as `filter_stats`.

    Attributes:
        blocks: the number of blocks of 128 classes, over all chunks.
        skipped_dx, skipped_dw: how many of them were left out of the product for dX and of that for dW.
        bound_dx, bound_dw: proved bounds of ||error||_F / ||exact||_F of dX and dW.
        recomputed: whether dW was computed again without the filter, because too many blocks had been left out.
    """

    blocks: int = 0
    skipped_dx: int = 0
    skipped_dw: int = 0
    bound_dx: float = 0.0
    bound_dw: float = 0.0
    recomputed: bool = False

    def clear(self) -> None:
        for field in fields(self):
            setattr(self, field.name, field.default)


def room(dtype: Any, rows: int, classes: int, width: int) -> float:
    """Return a factor such that a sum of non-negative terms, as it is computed here, times the factor is at least the exact sum."""
    u, v = np.finfo(dtype).eps / 2, np.finfo(np.float64).eps / 2
    return float(1 + 2 * u * (BLOCK + PIECE // BLOCK + width + 8) + 2 * v * (rows + 2 * classes + 16))


def norms(a: Array) -> Array:  # [n, D] -> [n] float64
    """Return the norms of the rows. An allowance for squares that underflow is added, so that a norm is too small by rounding only."""
    tiny = float(np.finfo(a.dtype).tiny) * a.shape[1]
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", a, a).astype(np.float64) + tiny))


def size(v: Array) -> float:
    """Return the norm of a vector. np.linalg.norm uses BLAS, whose threads took 8 ms for a sum of 20 us on a busy machine."""
    return float(np.sqrt(np.einsum("i,i", v, v)))


def block_max(values: Array) -> Array:  # [C] -> [blocks]
    return np.asarray(np.maximum.reduceat(values, np.arange(0, len(values), BLOCK)))


def block_sum(values: Array) -> Array:  # [C] -> [blocks]
    return np.asarray(np.add.reduceat(values, np.arange(0, len(values), BLOCK)))


def magnitudes(g: Array, x_norm: Array) -> tuple[Array, Array]:  # g [r, C], x_norm [r] -> [r, blocks], [C] float64
    """Return sum_{k in K} |g_ik| and sum_i |g_ik| ||x_i||, in one pass over g. The smallest normal number is added for each term, because
    it may have underflowed."""
    rows, classes = g.shape
    blocks, tiny = -(-classes // BLOCK), float(np.finfo(g.dtype).tiny)
    step = min(rows, max(1, PIECE // (blocks * BLOCK)))
    buffer, ones, near = np.zeros((step, blocks * BLOCK), g.dtype), np.ones(BLOCK, g.dtype), x_norm.astype(g.dtype)
    a, c = np.empty((rows, blocks)), np.zeros(blocks * BLOCK)
    for at in range(0, rows, step):
        piece = buffer[: min(step, rows - at)]
        np.abs(g[at : at + step], out=piece[:, :classes])
        a[at : at + step] = (piece.reshape(-1, BLOCK) @ ones).reshape(len(piece), blocks)
        c += near[at : at + step] @ piece
    a += tiny * BLOCK
    c += tiny * rows
    return a, c[:classes]


def runs(chosen: Array, classes: int) -> list[slice]:
    """Return the columns of the chosen blocks, with adjacent blocks joined into one slice."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
    return [slice(a * BLOCK, min(b * BLOCK, classes)) for a, b in edges.reshape(-1, 2).tolist()]


def without_gaps(skip: Array) -> Array:
    """Skip fewer blocks: only runs of at least GAP blocks between two that are kept."""
    found = np.zeros_like(skip)
    for run in runs(skip, len(skip) * BLOCK):
        a, b = run.start // BLOCK, run.stop // BLOCK
        found[a:b] = b - a >= GAP or a == 0 or b == len(skip)
    return found


def dx_loss(a: Array, skip: Array) -> float:
    """Return the bound of the error of a chunk's dX, in the Frobenius norm."""
    return size(a[:, skip].sum(axis=1))


def choose_dx(a: Array, among: Array, limit: float) -> Array:
    """Choose as many blocks `among` these as the limit of the error allows, those with the smallest bounds first."""
    order = np.flatnonzero(among)
    order = order[np.argsort(np.einsum("ij,ij->j", a, a)[order], kind="stable")]
    total = a[:, order]
    np.cumsum(total, axis=1, out=total)
    loss = np.sqrt(np.square(total, out=total).sum(axis=0))
    return _first(order, loss, limit, len(among))


def choose_dw(lost: Array, c: Array, among: Array, limit: float) -> Array:
    """As `choose_dx`, for dW: `c` bounds the error of each row that is left out, and `lost` the error of each row so far."""
    more = block_sum(c * (2 * lost + c))  # ||lost + c||^2 - ||lost||^2
    order = np.flatnonzero(among)
    order = order[np.argsort(more[order], kind="stable")]
    return _first(order, np.sqrt(size(lost) ** 2 + np.cumsum(more[order])), limit, len(among))


def _first(order: Array, loss: Array, limit: float, blocks: int) -> Array:
    """Choose as many blocks in this order as the limit allows; `loss` is the bound with each further block."""
    chosen = np.zeros(blocks, bool)
    if limit > LEAST:
        chosen[order[: int((loss <= limit * ALMOST).sum())]] = True
    return chosen


class Filter:
    """Adds up the gradients of linear.py with some blocks left out.

    `sums` are its `Sums`, with dw = 0. `view` returns a NumPy view of an array of the library.
    """

    def __init__(self, tol: float, stats: FilterStats, sums: Any, x: Any, w: Any, view: Any) -> None:
        self.tol, self.stats, self.sums, self.x, self.w, self.view = tol, stats, sums, x, w, view
        rows, (classes, width) = len(x), w.shape
        with np.errstate(all="ignore"):
            self.x_norm, self.w_norm = norms(view(x)), norms(view(w))
            self.w_most = block_max(self.w_norm)
        self.room = room(self.view(w).dtype, rows, classes, width)
        self.seen, self.count, self.lost, self.failed = 0, 0, np.zeros(classes), False
        self.near = 1.0  # ||dX|| of the last chunk divided by its upper bound
        self.norm_dw, self.rows_dw = 0.0, 0  # a lower bound of ||dW|| after so many rows
        self.square_dx = np.zeros(2)  # sums over the chunks of the squares of the error's bound, and of the lower bound of ||dX||

    def add_all(self, gradients: Callable[[], Iterator[tuple[slice, Any]]], label: Array | None) -> None:
        """Add up the gradients. `gradients()` yields the rows of each chunk and its G; it is called again if dW exceeds its tolerance."""
        for i, g in gradients():
            self.add(i, g, label)
        if self.failed:
            self.stats.skipped_dw, self.stats.bound_dw, self.stats.recomputed = 0, 0.0, True
            for i, g in gradients():
                self.sums._replace(dx=None, db=None).add(i, g, self.x[i], None)

    def add(self, i: slice, g: Any, label: Array | None) -> None:
        """Add the products of a chunk's G, which is overwritten. `label` [rows] are the labels of all rows, if they are class indices."""
        self.sums._replace(dx=None, dw=None).add(i, g, None, None)  # db
        self.seen, self.count = i.stop, self.count + 1
        values, at = self.view(g), _Labels(label, i, self.view(g))
        with np.errstate(all="ignore"):
            a, c = magnitudes(values, self.x_norm[i])
            a *= self.w_most * self.room**2  # the norm of W_k is a computed sum too, hence the square
            c *= self.room**2
            self.stats.blocks += a.shape[1]
            if self.sums.dx is not None:
                self._add_dx(i, g, a, at)
            del a
            if self.sums.dw is not None:
                self._add_dw(i, g, c, at)

    def _add_dx(self, i: slice, g: Any, a: Array, at: _Labels) -> None:
        dx = self.view(self.sums.dx)[i]
        most = size(a.sum(axis=1)) + size(at.value * self.w_norm[at.label])
        skip = without_gaps(choose_dx(a, np.ones(a.shape[1], bool), self.tol * most * self.near))
        self._product_dx(i, g, ~skip, False)
        at.into_dx(dx, self.view(self.w))
        norm = self._norm(dx)
        least = norm - dx_loss(a, skip)
        fewer = choose_dx(a, skip, self.tol * least)
        self._product_dx(i, g, skip & ~fewer, True)
        self.near = min(1.0, 0.98 * norm / most) if norm > 0 else 1.0
        self.square_dx += dx_loss(a, fewer) ** 2, max(least, 0.0) ** 2
        self.stats.skipped_dx += int(fewer.sum())
        self.stats.bound_dx = _ratio(*np.sqrt(self.square_dx).tolist())

    def _product_dx(self, i: slice, g: Any, blocks: Array, add: bool) -> None:
        if not add and not blocks.any():
            self.view(self.sums.dx)[i] = 0
        for n, k in enumerate(runs(blocks, len(self.w))):
            self.sums.products.product(g[:, k], self.w[k], self.sums.dx[i], add or n > 0)

    def _add_dw(self, i: slice, g: Any, c: Array, at: _Labels) -> None:
        rows, every = len(self.x), np.ones(len(self.w_most), bool)
        share, last = self.seen / rows, self.seen == rows
        if self.rows_dw:
            limit = self.tol * share * self.norm_dw * (rows / self.rows_dw) ** 0.5 * GROWTH
        else:
            limit = self.tol * (size(c) + size(at.value * self.x_norm[i][at.row]))
        skip = without_gaps(choose_dw(self.lost, c, every, limit))
        self._product_dw(i, g, ~skip, i.start > 0)
        at.into_dw(self.view(self.sums.dw), self.view(self.x)[i])
        if last or self.count & (self.count - 1) == 0:  # reads all of dW, and is therefore not done after every chunk
            after = self.lost + np.where(np.repeat(skip, BLOCK)[: len(c)], c, 0)
            self.norm_dw, self.rows_dw = self._norm(self.view(self.sums.dw)) - size(after), self.seen
            limit = self.tol * self.norm_dw * (1 if last else GROWTH * share**0.5)
            fewer = choose_dw(self.lost, c, skip, limit)
            self._product_dw(i, g, skip & ~fewer, True)
            skip = fewer
        self.lost += np.where(np.repeat(skip, BLOCK)[: len(c)], c, 0)
        self.stats.skipped_dw += int(skip.sum())
        if last:
            self.stats.bound_dw = _ratio(size(self.lost), self.norm_dw)
            self.failed = not self.stats.bound_dw <= self.tol

    def _product_dw(self, i: slice, g: Any, blocks: Array, add: bool) -> None:
        for k in runs(blocks, len(self.w)):
            self.sums.products.product(g[:, k].T, self.x[i], self.sums.dw[k], add)

    def _norm(self, a: Array) -> float:
        """Return a lower bound of the Frobenius norm, or 0 if there is none: the rounding of the rows' norms is subtracted."""
        tiny = float(np.finfo(a.dtype).tiny) * a.size
        square = float(np.square(norms(a)).sum()) / self.room**2 - 2 * tiny
        return square**0.5 if 0 < square < np.inf else 0.0


class _Labels:
    """The entries of G at the labels of its rows. They are replaced by 0 in G, and their products are added separately."""

    def __init__(self, label: Array | None, i: slice, g: Array) -> None:
        here = np.full(len(g), -1) if label is None else label[i]
        self.row = np.flatnonzero((here >= 0) & (here < g.shape[1]))
        self.label = here[self.row].astype(np.intp)
        self.value = g[self.row, self.label]
        g[self.row, self.label] = 0

    def into_dx(self, dx: Array, w: Array) -> None:
        for k in _pieces(len(self.row), w):
            dx[self.row[k]] += self.value[k, None] * w[self.label[k]]

    def into_dw(self, dw: Array, x: Array) -> None:
        order = np.argsort(self.label, kind="stable")
        for k in _pieces(len(self.row), x):
            at = order[k]
            label, first = np.unique(self.label[at], return_index=True)
            dw[label] += np.add.reduceat(self.value[at, None] * x[self.row[at]], first, axis=0)


def _pieces(rows: int, a: Array) -> list[slice]:
    step = max(1, 2 * PIECE // max(1, a.shape[1]))
    return [slice(k, k + step) for k in range(0, rows, step)]


def _ratio(loss: float, least: float) -> float:
    return loss / least if loss > 0 < least else 0.0 if loss == 0 else float("inf")
