"""Linear heads a chunk of rows at a time: the logits of a chunk in one buffer, and the sums of the gradients.

linear.py, sklearn.py and torch/linear_operators.py use these with the matrix products of their library (`Products`), and jax/linear.py cuts
the rows as `chunk_rows` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from . import contract

BUDGET = 64 << 20  # bytes of logits held at once
TILE = 64  # a chunk has a multiple of so many rows: 320 in place of 293 made the three products 9 % faster (oneDNN, D = 768, C = 50257)
ROWS_OF_A_PRODUCT = 128  # of BatchInvariant
TERMS = {4: 512, 8: 128}  # of a sum in its products, by the bytes of a number: MKL does not cut so many among up to 16 threads (tried)
COLUMNS = 1024  # columns of logits in a product: 128 and 320 rows of float32 take 20 and 25 % less time than with all columns at once (CPU)
TRIED: set[tuple[Any, ...]] = set()  # the kinds of products whose equal rows have been found to be equal


class Products(Protocol):
    """The matrix products of a library."""

    def size(self, x: Any) -> int:
        """Return the bytes of one element."""

    def empty(self, like: Any, rows: int, classes: int) -> Any:
        """Return a new array [rows, classes] of the type of `like`."""

    def logits(self, x: Any, w: Any, b: Any, out: Any) -> None:
        """Compute out = x w^T + b."""

    def product(self, a: Any, b: Any, out: Any, add: bool) -> None:
        """Compute out = a b, or out += a b."""

    def of_rows(self, a: Any, b: Any, out: Any, add: bool) -> None:
        """The same where the rows of a and out are those of x."""

    def columns(self, g: Any) -> Any:
        """Return the sums of the columns, in float64."""


class BatchInvariant(NamedTuple):
    """Products in which a row does not depend on the rows beside it.

    A library chooses its algorithm by the shapes and the number of threads, and may add up in another order for others: MKL cuts long sums
    among threads. Here each product has ROWS_OF_A_PRODUCT rows that are adjacent in memory, the last one is filled up with zeros, and sums
    of more than TERMS are cut. So a row of x, or of G, has a result with the same bits in every batch, chunk and place, if the
    library computes the rows of such a product in the same way. Not every library does: the first product of a shape is tried with equal
    rows, and refused if their results differ.
    """

    products: Products

    def size(self, x: Any) -> int:
        return self.products.size(x)

    def empty(self, like: Any, rows: int, classes: int) -> Any:
        return self.products.empty(like, rows, classes)

    def logits(self, x: Any, w: Any, b: Any, out: Any) -> None:
        first, *others = self._terms(x)

        def compute(some: Any, to: Any) -> None:
            for at in range(0, w.shape[0], COLUMNS):  # so that what is added to stays in the cache
                c = slice(at, at + COLUMNS)
                self.products.logits(some[:, first], w[c, first], None if b is None else b[c], to[:, c])
                for k in others:
                    self.products.of_rows(some[:, k], w[c, k].T, to[:, c], True)

        self._in_tiles("logits", x, out, compute)

    def product(self, a: Any, b: Any, out: Any, add: bool) -> None:
        self.products.product(a, b, out, add)

    def of_rows(self, a: Any, b: Any, out: Any, add: bool) -> None:
        def compute(some: Any, to: Any) -> None:
            for k in self._terms(a):
                self.products.of_rows(some[:, k], b[k], to, add or k.start > 0)

        self._in_tiles("of_rows", a, out, compute)

    def columns(self, g: Any) -> Any:
        return self.products.columns(g)

    def _try(self, some: Any, found: Any, compute: Callable[[Any, Any], None]) -> None:
        """Raise an error if equal rows of a product differ."""
        for k in range(61):
            some[:, k::61] = math.sin(k + 1)
        found[:] = 0
        compute(some, found)
        if ((found != found[:1]) & (found == found)).any():
            expected = "be False here: the library of the matrix products gives equal rows of one product different bits"
            contract.fail("linear cross-entropy", "batch_invariant", expected, True, RuntimeError)

    def _terms(self, a: Any) -> list[slice]:
        step = TERMS[self.size(a)]
        return [slice(k, k + step) for k in range(0, max(1, a.shape[1]), step)]

    def _in_tiles(self, name: str, a: Any, out: Any, compute: Callable[[Any, Any], None]) -> None:
        """Call compute(rows of a, rows of out) for all rows."""
        some, last = (self.empty(a, ROWS_OF_A_PRODUCT, t.shape[1]) for t in (a, out))
        kind = (type(self.products), name, a.dtype, a.shape[1], out.shape[1])
        if kind not in TRIED:
            self._try(some, last, compute)
            TRIED.add(kind)
        for at in range(0, a.shape[0], ROWS_OF_A_PRODUCT):
            to = out[at : at + ROWS_OF_A_PRODUCT]
            rows = to.shape[0]
            some[:rows] = a[at : at + rows]
            if rows == ROWS_OF_A_PRODUCT:
                compute(some, to)
                continue
            some[rows:] = 0
            last[:rows], last[rows:] = to, 0
            compute(some, last)
            to[:] = last[:rows]


@lru_cache(maxsize=1024)
def chunk_rows(rows: int, row_bytes: int, budget: int) -> int:
    """Return the rows of a chunk: as few chunks as the budget allows, with the rows spread evenly over them or a multiple of TILE."""
    limit = max(1, budget // row_bytes)
    count = max(1, math.ceil(rows / limit))
    even = math.ceil(rows / count)
    tiled = min(math.ceil(even / TILE), limit // TILE) * TILE
    return min(tiled, rows) if tiled and math.ceil(rows / tiled) == count else even


def chunks(x: Any, w: Any, b: Any, products: Products, budget: int, classes: int = 0) -> Iterator[tuple[slice, Any]]:
    """Yield the slices of the rows and their logits, in a buffer that the next chunk overwrites.

    Chunks are as large as the budget allows, because each of them adds to all of dW. Among processes that have different classes, `classes`
    is the largest number that one has, so that all have the same chunks.
    """
    rows = x.shape[0]  # a sparse matrix has no len
    step = max(1, chunk_rows(rows, max(classes, w.shape[0]) * products.size(x), budget))
    scratch = products.empty(x, min(step, rows), w.shape[0])
    for at in range(0, rows, step):
        i = slice(at, min(at + step, rows))
        z = rows_of(scratch, slice(0, i.stop - at))
        products.logits(x[i], w, b, z)
        yield i, z


def rows_of(t: Any, i: slice) -> Any:
    """Return the rows i, which start and end within those of t: t itself if they are all."""
    return t if i.stop - i.start == t.shape[0] else t[i]


class Sums(NamedTuple):
    """The gradients dX = G W, dW = G^T X and db = sum_i G_i, added up chunk by chunk. G is the gradient with respect to the logits.

    A gradient that is not required is None, and its product is skipped.
    """

    dx: Any  # [N, D]
    dw: Any  # [C, D]
    db: Any  # [C]
    products: Products

    def add(self, i: slice, g: Any, x: Any, w: Any, first: bool = True, bias: bool = True) -> None:
        """Add the products of a chunk's G, whose rows are `i`.

        If `first`, dx of these rows is written, not added to, and so is dw in the first chunk. A None for x or w skips their product.
        """
        if self.dx is not None and w is not None:
            self.products.of_rows(g, w, rows_of(self.dx, i), not first)
        if self.dw is not None and x is not None:
            self.products.product(g.T, x, self.dw, not first or i.start > 0)
        if self.db is not None and bias:
            self.db[...] += self.products.columns(g)


def budget_beside_filter(budget: int) -> int:
    """Return the part of the budget for logits, if the gradient filter is on: its sums, one for each block of each row, need the rest."""
    return budget - budget // 16
