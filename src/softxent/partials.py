"""The partial sums of a row and the one operation that merges them.

A row's columns may be split among SIMD lanes, blocks, threads, chunks or ranks. Each part is summed up as a
`Partials`; `merge` joins two of them and is associative and commutative, with `identity` as its unit. `finish` reads
the loss off the whole. The label is kept apart from the other columns, which is what makes a tiny loss exact: nothing is ever
computed as 1 - (something near 1).

The equations of this file and of formula.py are written once for the arrays of every library, which `library` finds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LIBRARIES: dict[type, Any] = {}  # other arrays than NumPy's: a front end says here what speaks for them, by NumPy's names


def library(x: Any) -> Any:
    """NumPy, or what stands for it where `x` is another library's array."""
    return LIBRARIES.get(type(x), np)


class Partials(NamedTuple):
    """Sums over some of a row's columns k; each field has one float64 a row. `t` is the row's label."""

    m: Array  # max of z_k, k != t
    s: Array  # sum of exp(z_k - m), k != t
    o: Array  # sum of off_k, k != t
    d: Array  # sum of off_k (m - z_k), k != t: never negative terms, so shifts cancel nothing
    zt: Array  # z_t, or -inf where the label is none of these columns
    wt: Array  # off_t, or 0


def identity(rows: int) -> Partials:
    """The partial sums of no columns: merging with them changes nothing."""
    return Partials(*(np.full(rows, v) for v in (-np.inf, 0.0, 0.0, 0.0, -np.inf, 0.0)))


def merge(a: Partials, b: Partials) -> Partials:
    """The partial sums of the columns of `a` and of `b` together (disjoint parts of the same rows)."""
    xp = library(a.m)
    m = xp.maximum(a.m, b.m)
    down_a, down_b = _below(a.m, m), _below(b.m, m)
    return Partials(
        m,
        a.s * xp.exp(-down_a) + b.s * xp.exp(-down_b),
        a.o + b.o,
        (a.d + times(a.o, down_a)) + (b.d + times(b.o, down_b)),
        xp.maximum(a.zt, b.zt),
        a.wt + b.wt,
    )


def finish(x: Partials) -> tuple[Array, Array, Array]:
    """-> (nll, miss, over): with a = log odds against the label = (m - z_t) + log s,

    nll = -log yhat_t = log(1 + e^a);   miss = 1 - yhat_t = 1 / (1 + e^-a);   over = lse - m = log s + log(1 + e^-a).
    """
    xp = library(x.s)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_s = xp.log(x.s)
        a = xp.where(x.zt == np.inf, np.nan, x.m - x.zt + log_s)
        # s = 0: the label is alone, and lse is its own logit
        over = xp.where(x.s == 0, x.zt - x.m, log_s + xp.logaddexp(0, -a))
        return xp.logaddexp(0, a), xp.exp(-xp.logaddexp(0, -a)), over


def peak(x: Partials) -> tuple[Array, Array]:
    """-> (top, lse - top), where top = max over all columns, the label's too."""
    xp = library(x.m)
    nll, _, over = finish(x)
    return xp.maximum(x.m, x.zt), xp.where(x.zt > x.m, nll, over)


def lse(x: Partials) -> Array:
    """log sum exp over all columns."""
    top, lift = peak(x)
    with np.errstate(invalid="ignore"):
        return top + lift


def times(weight: Array, value: Array | float) -> Array:
    """weight * value, where 0 * anything = 0: a class that the truth does not hold cannot spoil the row."""
    with np.errstate(invalid="ignore"):
        product: Array = library(weight).where(weight == 0, 0.0, weight * value)
        return product


def _below(m: Array, top: Array) -> Array:
    """How far m lies below top; 0 where both are -inf."""
    with np.errstate(invalid="ignore"):
        below: Array = library(m).where(m == top, 0.0, top - m)
        return below
