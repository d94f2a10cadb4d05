"""Derivatives that are written with the operators of a framework, and so can be differentiated again, to any order.

softxent.torch and softxent.jax have the same operators, whose arguments are a `Call` and a `Static`. They pass themselves as `of`, a module
with

    rows, gradient, log_softmax     the operators
    numbers(call)                   y, r, q, g, l, b and n, which broadcast to the rows
    by_row(number, call, static)    a number of the rows, with an axis of length 1 for the classes
    off_by_row(call, static, like)  off in the shape of the logits and the dtype of another array, 0 if there is none
    over_classes(a, static)         the sum over all classes, of the devices or processes that have them, [*rows]
    at_largest(a, z, static)        the entry of a in the column of the largest logit, [*rows]
    transformed(z, static)          logits after the softcap, in a wide enough type, and the first two derivatives of their quotients by T
    blank(call, static)             whether what a row gives is 0 whatever its logits, with an axis of length 1 for the classes
    where, times, cast(a, like)     as in NumPy and partials.py; and a in the dtype of another array
"""

from __future__ import annotations

import math
from typing import Any

from .call import Call, Static


def loss_along(call: Call, lse: Any, mean: Any, at_label: Any, by_off: Any, times: Any) -> Any:
    """Return the derivative of the loss along v, from lse and what `curvature` returns; y, r and q have the axes of the rows."""
    return times(call.q, lse) * mean - times(call.y, at_label) - times(call.r, by_off)


def curvature(call: Call, static: Static, of: Any) -> tuple[Any, ...]:
    """Return the derivative of the gradient along v, v_k - mean at every class, and of each row mean and the derivative of the entropy.

    This is formula.hessian, for any axis. v is used in operations of the framework alone.
    """
    plain, blank = static._replace(cap=math.inf), of.blank(call, static)  # of logits that are capped already
    x, slope, bend = of.transformed(of.where(blank, 0, call.z), static)
    v = of.cast(of.where(blank, 0, call.v), x)
    along, off = v * slope, of.off_by_row(call, static, x)
    yhat = of.gradient(Call(x, l=static.temperature), plain)  # the temperature is kept, for a quotient x / T may lose digits
    away = -of.log_softmax(Call(x, y=1.0), plain)
    away = of.where(away == math.inf, 0.0, away)  # where yhat is 0
    lse = of.rows(Call(x), plain)[1]

    top = of.at_largest(along, x, static)
    below = of.by_row(top, call, static) - along
    lead = of.over_classes(yhat * below, static)  # v - mean at the most probable class, where a subtraction may cancel
    mean, apart = top - lead, of.by_row(lead, call, static) - below
    entropy, dentropy = of.over_classes(yhat * away, static), of.over_classes(yhat * apart * away, static)
    y, r, q, g, l, b, n = of.numbers(call)  # noqa: E741
    a = g * (y + r * of.over_classes(off, static) + of.times(q, lse)) + l - b - n * entropy
    by_apart = of.by_row(a - n, call, static) + of.by_row(n, call, static) * away
    hv = slope * yhat * (by_apart * apart + of.by_row(g * q * mean - n * dentropy, call, static))
    if static.cap != math.inf:
        hv = hv + static.temperature * bend * v * of.gradient(call._replace(z=x, v=0.0), plain)
    return of.where(blank, 0, hv), apart, mean, dentropy
