"""Derivatives that are written with the operators of a framework, and so can be differentiated again, to any order.

softxent.torch and softxent.jax have the same operators, whose arguments are a `Call` and a `Static`. They pass themselves as `of`, a module
with

    rows, gradient, log_softmax     the operators
    aligned(call)                   the call with numbers that broadcast to the rows
    by_row(number, call, static)    a number of the rows, with an axis of length 1 for the classes
    off_by_row(call, static, like)  off in the shape of the logits and the dtype of another array, 0 if there is none
    over_classes(a, static)         the sum over all classes, of the devices or processes that have them, [*rows]
    at_label(a, label, static)      the entry of a at the label, 0 without one, [*rows]
    largest(z, static)              the class with the largest logit, [*rows]
    transformed(z, static)          softcap and temperature applied to logits, in a wide enough type, and the first two derivatives
    labels(call, static)            the labels, with classes in place of LARGEST and LARGEST_LOGIT
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
    """Return the derivative of the gradient along v, and of each row mean, v_t - mean, sum_k off_k (v_k - mean) and that of the entropy.

    This is formula.hessian, for any axis. v is used in operations of the framework alone.
    """
    plain, blank = Static(axis=static.axis, shards=static.shards), of.blank(call, static)
    x, slope, bend = of.transformed(of.where(blank, 0, call.z), static)
    v = of.cast(of.where(blank, 0, call.v), x)
    along, off, call = v * slope, of.off_by_row(call, static, x), of.aligned(call)
    yhat = of.gradient(Call(x, l=1.0), plain)
    away = -of.log_softmax(Call(x, y=1.0), plain)
    away = of.where(away == math.inf, 0.0, away)  # where yhat is 0
    lse = of.rows(Call(x), plain)[1]

    top = of.at_label(along, of.largest(x, static), static)
    lead = of.over_classes(
        yhat * (of.by_row(top, call, static) - along), static
    )  # v - mean at the most probable class, where a subtraction may cancel
    mean, apart = top - lead, (along - of.by_row(top, call, static)) + of.by_row(lead, call, static)
    entropy, dentropy = of.over_classes(yhat * away, static), of.over_classes(yhat * apart * away, static)
    mass = call.y + call.r * of.over_classes(off, static)
    a = call.g * (mass + of.times(call.q, lse)) + call.l - call.b - call.n * entropy
    steps = of.by_row(a - call.n, call, static) * apart + of.by_row(call.n, call, static) * away * apart
    hv = slope * yhat * (steps + of.by_row(call.g * call.q * mean - call.n * dentropy, call, static))
    if static.cap != math.inf:
        hv = hv + bend * v * of.gradient(call._replace(z=x, v=0.0), plain)
    hv = of.where(blank, 0, hv)
    return hv, mean, of.at_label(apart, of.labels(call, static), static), of.over_classes(off * apart, static), dentropy
