"""The partial sums of a row, and the operation that merges them.

The columns of a row, its classes, can be split among vector lanes, blocks, threads, chunks or processes. `Partials` holds the sums over one
part. `merge` returns the sums over two parts together; it is associative and commutative, and `identity` is its identity element. `finish`
computes what the loss and the gradient need from the sums over the whole row. The label's column is kept apart from the sums, so that no
digits are lost where the label has nearly all of the probability: nothing is computed as 1 - (a number near 1).

formula.py and the backends use this file. Its functions, and those of formula.py, take the arrays of NumPy or of another library, which
`library` looks up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LIBRARIES: dict[type, Any] = {}  # type of an array -> module with NumPy's function names; a front end registers its arrays here


def library(x: Any) -> Any:
    """Return the module that computes with `x`: NumPy, or the one registered in LIBRARIES for its type."""
    return LIBRARIES.get(type(x), np)


class Partials(NamedTuple):
    """Sums over some columns k of each row. Each field but the last is a float64 array [R]; t is the label of the row.

    The logits are z / T. Numbers z are kept, and their differences divided by T, because z / T may be so large that its rounding matters.
    """

    m: Array  # max of z_k, k != t
    s: Array  # sum of exp((z_k - m) / T), k != t
    o: Array  # sum of off_k, k != t
    d: Array  # sum of off_k (m - z_k) / T, k != t; no term is negative, so nothing cancels
    zt: Array  # z_t, or -inf if the label is not among these columns
    wt: Array  # off_t, or 0
    u: Array  # sum of exp((z_k - m) / T) (m - z_k) / T, k != t; no term is negative. It is 0 if the entropy is not wanted
    temperature: Any = 1.0  # T, the same for all rows


def identity(rows: int, temperature: float = 1.0) -> Partials:
    """Return the partial sums of no columns. Merging them with others changes nothing."""
    return Partials(*(np.full(rows, v) for v in (-np.inf, 0.0, 0.0, 0.0, -np.inf, 0.0, 0.0)))._replace(temperature=temperature)


def merge(a: Partials, b: Partials) -> Partials:
    """Return the partial sums over the columns of `a` and `b` together, which must be disjoint columns of the same rows."""
    xp = library(a.m)
    m = xp.maximum(a.m, b.m)
    down_a, down_b = _below(a.m, m, a.temperature), _below(b.m, m, a.temperature)
    factor_a, factor_b = xp.exp(-down_a), xp.exp(-down_b)
    return Partials(
        m,
        a.s * factor_a + b.s * factor_b,
        a.o + b.o,
        (a.d + times(a.o, down_a)) + (b.d + times(b.o, down_b)),
        xp.maximum(a.zt, b.zt),
        a.wt + b.wt,
        times(factor_a, a.u + times(a.s, down_a)) + times(factor_b, b.u + times(b.s, down_b)),
        a.temperature,
    )


class Tangents(NamedTuple):
    """The derivatives of `Partials` along v, a direction of the logits z / T, with sums of differences of v. Each field is an array [R].

    c is any number, the same in all fields: if it is the v of the largest logit, the sums keep their digits where that is most probable.
    """

    c: Array  # v_j at the column j of m
    s: Array  # sum of exp((z_k - m) / T) (c - v_k), k != t
    u: Array  # sum of exp((z_k - m) / T) (m - z_k) / T (c - v_k), k != t
    o: Array  # sum of off_k (c - v_k), k != t
    vt: Array  # v_t, or 0


class Along(NamedTuple):
    """The derivatives along v of what a row gives. Each field is an array [R]."""

    lse: Array  # the mean of v, <yhat, v>
    logprob: Array  # v_t - mean
    off: Array  # sum of off_k (v_k - mean)
    entropy: Array
    c: Array  # of the tangents
    lead: Array  # c - mean


def merge_tangents(a: Partials, da: Tangents, b: Partials, db: Tangents) -> Tangents:
    """Return the tangents of the columns of `a` and `b` together."""
    xp = library(a.m)
    m = xp.maximum(a.m, b.m)
    c = xp.where(a.m == m, da.c, db.c)

    def moved(x: Partials, y: Tangents) -> tuple[Array, Array, Array]:
        down, more = _below(x.m, m, x.temperature), c - y.c
        factor, s = xp.exp(-down), y.s + times(x.s, more)
        return times(factor, s), times(factor, y.u + times(x.u, more) + times(s, down)), y.o + times(x.o, more)

    (s, u, o), (other_s, other_u, other_o) = moved(a, da), moved(b, db)
    return Tangents(c, s + other_s, u + other_u, o + other_o, da.vt + db.vt)


def merge_all(parts: Sequence[Partials], tangents: Sequence[Tangents] | None, order: Any) -> tuple[Partials, Tangents | None]:
    """Return the sums over all columns, and their tangents, if given. `order` has pairs (i, j): the sums j are merged into the sums i."""
    merged, along = list(parts), list(tangents or [])
    for i, j in order:
        if along:
            along[i] = merge_tangents(merged[i], along[i], merged[j], along[j])
        merged[i] = merge(merged[i], merged[j])
    return merged[0], along[0] if along else None


def along(x: Partials, y: Tangents) -> Along:
    """Return the derivatives of what a row gives, from the sums over the whole row.

    That of the log-probability is (v_t - c) miss + e^(m/T - lse) s, in which nothing cancels where the label is most probable.
    """
    xp = library(x.s)
    nll, miss, over = finish(x)
    hit, unit, away = xp.exp(-nll), xp.exp(-over), y.c - y.vt
    lead = times(unit, y.s) + times(hit, away)
    by_off = times(lead, x.o + x.wt) - y.o - times(x.wt, away)
    by_entropy = times(lead, entropy(x)) - times(unit, y.u + times(y.s, over)) - times(hit, times(away, nll))
    return Along(y.c - lead, times(unit, y.s) - times(miss, away), by_off, by_entropy, y.c, lead)


def finish(x: Partials) -> tuple[Array, Array, Array]:
    """Return (nll, miss, over), each [R], from the sums over the whole row. With the log-odds against the label,
    a = (m - z_t) / T + log s:

    nll = -log yhat_t = log(1 + e^a),   miss = 1 - yhat_t = 1 / (1 + e^-a),   over = lse - m / T = log s + log(1 + e^-a).
    """
    xp = library(x.s)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_s = xp.log(x.s)
        a = xp.where(x.zt == np.inf, np.nan, difference(x.m, x.zt, x.temperature) + log_s)
        # if s = 0, the label is the only class with a positive probability, and lse is its logit
        over = xp.where(x.s == 0, difference(x.zt, x.m, x.temperature), log_s + xp.logaddexp(0, -a))
        return xp.logaddexp(0, a), xp.exp(-xp.logaddexp(0, -a)), over


def halves(x: Partials) -> tuple[Array, Array]:
    """Return nll / 2 and over / 2, finite where a difference of logits is beyond the range of float64, and its half is not."""
    xp = library(x.s)
    nll, _, over = finish(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = (x.m / 2 - x.zt / 2) / x.temperature
        return xp.where(nll == np.inf, gap + xp.log(x.s) / 2, nll / 2), xp.where(over == np.inf, -gap, over / 2)


def peak(x: Partials) -> tuple[Array, Array]:
    """Return (top, lse - top / T), where top is the largest z, the label's included."""
    xp = library(x.m)
    nll, _, over = finish(x)
    return xp.maximum(x.m, x.zt), xp.where(x.zt > x.m, nll, over)


def lse(x: Partials) -> Array:
    """Return log-sum-exp over all columns."""
    top, lift = peak(x)
    found: Array = top / x.temperature + lift
    return found


def entropy(x: Partials) -> Array:
    """Return the entropy of the prediction, yhat_t nll + e^(m/T - lse) (u + s over). No term is negative."""
    xp = library(x.s)
    nll, _, over = finish(x)
    return times(xp.exp(-nll), nll) + times(xp.exp(-over), x.u + times(x.s, over))


def times(weight: Array, value: Array | float) -> Array:
    """Return weight * value, and 0 where the weight is 0, even if the value is infinite or NaN."""
    with np.errstate(invalid="ignore"):
        product: Array = library(weight).where(weight == 0, 0.0, weight * value)
        return product


def difference(a: Array, b: Array, temperature: Any) -> Array:
    """Return (a - b) / T, also where a - b is beyond the range of the type and the quotient is not."""
    difference: Array = (a / 2 - b / 2) / temperature * 2
    return difference


def _below(m: Array, top: Array, temperature: Any) -> Array:
    """Return (top - m) / T, and 0 where both are -inf."""
    with np.errstate(invalid="ignore", over="ignore"):
        below: Array = library(m).where(m == top, 0.0, difference(top, m, temperature))
        return below
