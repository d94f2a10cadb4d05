"""The loss and its gradient for decimals, with all 50 digits whatever the scores are.

The lines of the derivation subtract nearly equal numbers where a prediction is near the truth: with scores 400 and 0, the first digit of
1 - yhat is at the 174th place. Here nothing cancels that is not computed again with more digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext

from ..proof.replay import CONTEXT, DIGITS

EXACT = Context(prec=3000, Emax=MAX_EMAX, Emin=MIN_EMIN)  # more digits than sums of scores and products of truths have
SERIES = Decimal("1e-26")  # below, log(1 + x) = x (1 - x/2) up to x^2/3, less than the 50 digits


def loss(scores: Sequence[Decimal], truth: Sequence[Decimal]) -> Decimal:
    """Return sum_k y_k (lse - z_k) = p log sum_i exp(z_i - m) + sum_k y_k (m - z_k), where m is the largest score. No term is negative."""
    with localcontext(EXACT):
        top, away = max(scores), sum((y * (max(scores) - z) for y, z in zip(truth, scores, strict=True)), Decimal(0))
        mass, below = sum(truth, Decimal(0)), [z - top for z in scores if z != top]
    with localcontext(CONTEXT):
        rest = sum((x.exp() for x in below), Decimal(len(scores) - len(below) - 1))
        return mass * _log_1_plus(rest) + away


def _log_1_plus(x: Decimal) -> Decimal:
    if x < SERIES:
        return x * (1 - x / 2)
    with localcontext(CONTEXT) as context:
        context.prec = 2 * DIGITS
        return (1 + x).ln()


def gradient(scores: Sequence[Decimal], truth: Sequence[Decimal]) -> list[Decimal]:
    """Return p yhat_k - y_k = sum_i (p [i = k] - y_k) exp(z_i) / sum_i exp(z_i) at every class.

    Equal scores are collected first. What is left is 0 only if every coefficient is: exponentials of different numbers are linearly
    independent (Lindemann and Weierstrass). So with enough digits the sum has 50 that are right.
    """
    counts = Counter(scores)
    with localcontext(EXACT):
        mass = sum(truth, Decimal(0))
        coefficients = [{z: mass * (z == own) - y * n for z, n in counts.items()} for own, y in zip(scores, truth, strict=True)]
    total = _sum(counts)
    with localcontext(CONTEXT):
        return [_sum(each) / total for each in coefficients]


def _sum(coefficients: dict[Decimal, Decimal] | Counter[Decimal]) -> Decimal:
    """Return the sum of coefficient * exp(score - m), with 50 digits after what cancels; m is the largest of all scores."""
    top, digits = max(coefficients), 2 * DIGITS
    while True:
        with localcontext(CONTEXT) as context:
            context.prec = digits
            terms = [c * (z - top).exp() for z, c in coefficients.items() if c]
            total = sum(terms, Decimal(0))
            if not terms or (total and total.adjusted() > max(t.adjusted() for t in terms) + DIGITS - digits):
                return total
        digits *= 2
