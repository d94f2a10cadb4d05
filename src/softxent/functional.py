"""The rows of a call, in functional form: formula.py with the transform of the logits, the special labels, and rows that are ignored.

Where there is no compiled kernel, kernels/reference.py computes chunks of rows with it, and softxent.jax all rows. The arrays are those of
every library, with the shapes of formula.py. Gradients are those by the caller's logits, and v is a direction of these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import formula, partials
from .formula import Numbers, Outputs
from .partials import Along, Array, Partials, Tangents, identity, library, times
from .shared import IGNORED, LARGEST, LARGEST_LOGIT

_NO_COLUMNS = [float(x[0]) for x in identity(1)[:-1]]


class Rows(NamedTuple):
    """Rows, whose logits are transformed."""

    z: Array  # [R, C]
    label: Array  # [R], with a column in place of LARGEST and LARGEST_LOGIT
    off: Array | None  # [R, C] or [C]
    temperature: float
    slope: Any  # the first and the second derivative of z / T by the logits
    bend: Any
    ignored: Array  # [R], whether the label is IGNORED


def rows(x: Array, label: Array, off: Array | None, transform: tuple[float, float], least: int = IGNORED) -> Rows:
    """Return the rows with these logits. The special labels lie above `least`, the smallest number of the type of the labels."""
    z, slope, bend = formula.transformed(x, *transform)
    ignored, largest, largest_logit = (label == least + (which - IGNORED) for which in (IGNORED, LARGEST, LARGEST_LOGIT))
    where, of = library(z).where, z if off is None or off.ndim == 1 else off
    column = where(largest, of.argmax(axis=1), where(largest_logit, z.argmax(axis=1), label))
    return Rows(z, column, off, transform[0], slope, bend, ignored)


def numbers(of: Rows, given: Any) -> Numbers:
    """Return the numbers of the rows, which are 0 in ignored ones."""
    return Numbers(*_without(of.ignored, given))


def sums(of: Rows) -> Partials:
    """Return the sums of the rows, and those of no columns in ignored ones."""
    return blank(formula.partials(of.z, of.label, of.off, of.temperature), of.ignored)


def blank(x: Partials, ignored: Array) -> Partials:
    """Return the sums, and those of no columns in ignored rows."""
    where = library(ignored).where
    sums = (where(ignored, none, part) for none, part in zip(_NO_COLUMNS, x[:-1], strict=True))
    return Partials(*sums)._replace(temperature=x.temperature)


def outputs(x: Partials, of: Numbers, ignored: Array) -> Outputs:
    """Return what the rows give, 0 in ignored ones; `correct` is of bools."""
    found = Outputs(*_without(ignored, formula.outputs(x, of.y, of.r, of.q)))
    return found._replace(correct=found.correct != 0)


def gradient(of: Rows, x: Partials, n: Numbers) -> Array:
    """Return the gradient by the logits."""
    return times(formula.gradient(of.z, x, of.label, formula.coefficients(x, n), of.off), of.slope)


def tangents(of: Rows, v: Array) -> Tangents:
    """Return the derivatives of `sums` along v."""
    with np.errstate(over="ignore", invalid="ignore"):
        along = formula.tangents(of.z, times(v, of.slope), of.label, of.off, of.temperature)
    return Tangents(*_without(of.ignored, along))


def along(x: Partials, y: Tangents, ignored: Array) -> Along:
    """Return the derivatives of what the rows give. That of the log-probability is 0 without a label, or if its logit is -inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = partials.along(x, y)
    logprob = library(x.zt).where(x.zt == -np.inf, 0.0, found.logprob)
    return Along(*_without(ignored, found._replace(logprob=logprob)))


def hessian(of: Rows, v: Array, x: Partials, y: Tangents, n: Numbers, gauss_newton: bool = False) -> Array:
    """Return the derivative of `gradient` along v. It is 0 if all numbers are, whatever the logits.

    With `gauss_newton`, the second derivative of the transform is taken as 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        hv = times(formula.hessian(of.z, times(v, of.slope), of.label, x, partials.along(x, y), n), of.slope)
        if not gauss_newton:
            hv = hv + times(formula.gradient(of.z, x, of.label, formula.coefficients(x, n), of.off), times(v, of.bend))
        size: Any = sum(abs(number) for number in n)
    product: Array = library(hv).where((~of.ignored & (size != 0))[:, None], hv, 0.0)
    return product


def log_softmax(x: Array, scale: Array, transform: tuple[float, float]) -> Array:
    """Return scale log yhat_k. The largest logit is kept apart, so that a value near 0 keeps its digits."""
    z = formula.transformed(x, *transform)[0]
    apart = formula.partials(z, z.argmax(axis=1), None, transform[0])
    return times(-scale[:, None], formula.surprisal(z, apart))


def _without(ignored: Array, given: Any) -> Any:
    where = library(ignored).where
    return (where(ignored, 0.0, x) for x in given)
