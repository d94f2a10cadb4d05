"""Inequalities as sums of squares: a line `>= 0` is written as a sum of squares whose factors are not negative, and multiplied out again.

This is done for 1 to 4 classes, with symbols for all numbers. It is exact for these numbers of classes, for all values of the symbols, and
says nothing about more classes. It shares no code with the rule "no negative term" of rules.py, and Coq proves the line for every number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import combinations
from typing import Any

import sympy as sp

from .derivation import Derivation
from .expr import RANGES, E, lift, unfold

CLASSES = (1, 2, 3, 4)
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "()": lambda x: x, "neg": operator.neg, "+": operator.add, "-": operator.sub, "*": operator.mul, "@": operator.mul,
    "/": operator.truediv, "^": operator.pow,
}  # fmt: skip


def refusal_by_squares(derivation: Derivation, n: int) -> str | None:
    """Return why the inequality of line `n`, counted from 1, is not shown by sums of squares, or None if it is."""
    before, step = derivation.lines[n - 1], derivation.steps[n - 1]
    if step.rel != ">=":
        return f"it is {step.rel}, and not >="
    facts = (*derivation.given, *step.given)
    not_negative = {fact.left.args[0] for fact in facts if fact.rel in (">", ">=") and fact.left.op == "at" and derivation.usable(fact)}
    try:
        for classes in CLASSES:
            difference = _Columns(derivation, classes, not_negative)(before - step.expr, {})
            if not is_sum_of_squares(difference):
                return f"for {classes} classes no sum of squares is found"
    except (NotImplementedError, KeyError, ValueError) as error:
        return f"no sum of squares is found: {error}"
    return None


def is_sum_of_squares(f: Any) -> bool:
    """Whether f is a sum of squares with factors that are not negative, over a positive denominator.

    Symbols that may be negative must occur in squares or products of two. If M is the matrix of this quadratic form, f is the sum of
    -M_ij (x_i - x_j)^2 over i < j, and of r_i x_i^2, where r_i is the sum of row i, and of the terms without x. Each factor must be a
    polynomial without a negative coefficient, in symbols that are not negative.
    """
    over, under = sp.fraction(sp.cancel(sp.together(f)))
    signed = sorted((x for x in over.free_symbols if not x.is_nonnegative), key=str)
    if _sign(under) != 1:
        over, under = -over, -under
    if _sign(under) != 1 or not all(x.is_positive for x in under.free_symbols):
        return False
    form = sp.Poly(over, *signed) if signed else None
    if form is None:
        return _sign(over) >= 0
    if any(sum(powers) not in (0, 2) for powers in form.monoms()):
        return False
    half = sp.Rational(1, 2)
    m = [[form.coeff_monomial(x * y) * (1 if x == y else half) for y in signed] for x in signed]
    terms = [(form.coeff_monomial(1), sp.S.One)]
    terms += [(sum(row), x**2) for row, x in zip(m, signed, strict=True)]
    terms += [(-m[i][j], (signed[i] - signed[j]) ** 2) for i, j in combinations(range(len(signed)), 2)]
    return all(_sign(factor) >= 0 for factor, _ in terms) and sp.expand(sum(a * square for a, square in terms) - over) == 0


def _sign(f: Any) -> int:
    """Return 1 or 0 for a polynomial without negative coefficients in symbols that are not negative, 0 if it is 0, and otherwise -1."""
    f = sp.expand(f)
    if f == 0:
        return 0
    terms = [term.as_coeff_Mul() for term in sp.Add.make_args(f)]
    return 1 if all(c > 0 and all(x.is_nonnegative for x in rest.free_symbols) for c, rest in terms) else -1


class _Columns:
    """The value of an expression for a number of classes, as a fraction of polynomials in the symbols e^z_k and the other names."""

    def __init__(self, derivation: Derivation, classes: int, not_negative: set[str]):
        self.known, self.classes, self.not_negative = derivation.known, classes, not_negative

    def __call__(self, e: E, at: dict[str, int]) -> Any:
        o, a = e.op, e.args
        if o == "num" and type(a[0]) is int:
            return sp.Integer(a[0])
        if o == "sum":
            if RANGES[a[0]] != "N":
                raise NotImplementedError("a sum over features or rows")
            return reduce(operator.add, self._terms(e, at), sp.S.Zero)
        if o == "at" and a[0] == "N":
            return sp.Integer(self.classes)
        if o == "at":
            return self(unfold(e, self.known[a[0]]), at) if a[0] in self.known else self._symbol(a[0], [at[i] for i in a[1:]])
        if o == "exp" and a[0].op == "at" and a[0].args[0] == "z" and "z" not in self.known:
            return sp.Symbol("_".join(["exp_z", *(str(at[i]) for i in a[0].args[1:])]), positive=True)
        if o not in _OPERATIONS or (o == "^" and a[1] != lift(2)):
            raise NotImplementedError(f"{o} is no polynomial")
        return _OPERATIONS[o](*(self(x, at) for x in a))

    def _terms(self, e: E, at: dict[str, int]) -> Iterator[Any]:
        index, but, body = e.args
        return (self(body, {**at, index: n}) for n in range(self.classes) if but is None or n != at[but])

    def _symbol(self, name: str, at: list[int]) -> Any:
        return sp.Symbol("_".join([name, *map(str, at)]), **{"nonnegative" if name in self.not_negative else "real": True})
