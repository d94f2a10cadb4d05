"""Evaluation of the derivation for numbers: the value of each line for given scores and truth, and the line with the numbers in place of
names.

Values are computed from the expressions of the lines, in decimal arithmetic with at least 50 digits and a very large range of exponents, so
that a line can divide by a prediction of 1e-900. Derivatives are computed with dual numbers, (value, derivative), and are exact apart from
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, getcontext, localcontext
from functools import lru_cache
from itertools import product
from typing import Any

from .derivation import Derivation
from .expr import RANGES, E, letters, rebuild, unfold

Dual = tuple[Decimal, Decimal]
Index = Mapping[str, int]
Seed = tuple[Any, ...] | None  # (name, index...) of the variable of a derivative

ZERO, ONE, TWO = Decimal(0), Decimal(1), Decimal(2)
DIGITS = 50
CONTEXT = Context(prec=DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
MORE = 480  # at most so many further digits if the scores differ much, because 1 - yhat_t may be 1e-480 and still needs 50 digits
PRECISION_STEP = 16  # as in numbers.js, so that a difference of nearly equal numbers is 0 in both or in neither
TOLERANCE, FLOOR = Decimal("1e-30"), Decimal("1e-45")
EXAMPLE = {  # values of further numbers that some derivations need
    "eps": "0.1", "lam": "0.01", "T": "2", "c": "1.5", "y0": "0.8", "r0": "0.6", "q": "0.02",
    "g1": "0.7", "g2": "-0.3", "g3": "0.4", "g4": "1.1",
    "h": "0", "h1": "0", "h2": "-0.625",  # 0 is the v of the first class: with another number, all digits cancel if that class is certain
}  # fmt: skip
FEATURES, ROWS = 2, 2


class Numbers:
    """The values of the lines of a derivation, for the scores z and the truth y of one row and for examples of what else it needs."""

    def __init__(self, derivation: Derivation, scores: Sequence[float | Decimal], truth: Sequence[float | Decimal], label: int):
        more = digits_of(scores)
        self.covered = more is not None  # or else a value of 0 may be what the digits do not reach
        self.context = CONTEXT.copy()
        self.context.prec += more or 0
        with localcontext(CONTEXT):
            self.derivation, self.label, self.classes = derivation, label, len(scores)
            self.sizes = {"N": self.classes, "D": FEATURES, "R": ROWS}
            self.given = _given(derivation, [Decimal(s) for s in scores], [Decimal(t) for t in truth])
            self.memo: dict[Any, Dual] = {}

    def value(self, e: E, at: Index | None = None) -> Decimal:
        with localcontext(self.context):
            value = self._dual(e, dict(at or {}), None)[0]
        return CONTEXT.plus(value)

    def values(self, at: Index | None = None) -> list[Decimal]:
        """Return the value of each line, at the given indices."""
        return [self.value(line, at) for line in self.derivation.lines]

    def places(self) -> list[dict[str, int]]:
        """Return all values of the free indices of the derivation. The index t is always the label."""
        free = sorted({i for line in self.derivation.lines for i in letters(line)} - {"t"})
        where = [dict(zip(free, n, strict=True)) | {"t": self.label} for n in product(*(range(self.sizes[RANGES[i]]) for i in free))]
        return [x for x in where if all(x[a] != x[b] for a, b in self.derivation.distinct)]

    def fill(self, e: E, at: Index | None = None, digits: int = 4, terms: int = 4) -> E:
        """Return the line with numbers in place of its names. Of a long sum only the first terms and the last are shown."""
        ix = {"t": self.label, **(at or {})}
        if e.op == "sum":
            over = [n for n in range(self.sizes[RANGES[e.args[0]]]) if e.args[1] is None or n != ix[e.args[1]]]
            shown = over if len(over) <= terms else [*over[: terms - 2], None, over[-1]]
            parts = [E("val", ("…",)) if n is None else self.fill(e.args[2], {**ix, e.args[0]: n}, digits, terms) for n in shown]
            if not parts:
                return E("num", (0,))
            total = parts[0] if parts[0].op not in "+-" else E("()", (parts[0],))
            for part in parts[1:]:
                total = E("+", (total, part))
            return total if len(parts) == 1 else E("()", (total,))
        if e.op in ("at", "D", "delta") or e.op == "exp":
            return E("val", (short(self.value(e, ix), digits),))
        if e.op == "()" and e.args[0].op in ("at", "D", "exp", "sum", "delta", "log"):
            return self.fill(e.args[0], ix, digits, terms)
        filled = rebuild(e, lambda x: self.fill(x, ix, digits, terms))
        return E("*", filled.args) if e.op == "@" else filled  # a product without a sign would read as one number

    def _dual(self, e: E, ix: dict[str, int], seed: Seed) -> Dual:
        key = (e, tuple(ix[i] for i in sorted(letters(e)) if i in ix), seed)
        if key not in self.memo:
            self.memo[key] = self._compute(e, ix, seed)
        return self.memo[key]

    def _compute(self, e: E, ix: dict[str, int], seed: Seed) -> Dual:
        o, a = e.op, e.args
        if o == "num":
            return Decimal(a[0]), ZERO
        if o == "at":
            return self._at(e, ix, seed)
        if o == "delta":
            return Decimal(self._index(a[0], ix) == self._index(a[1], ix)), ZERO
        if o == "sum":
            over = (n for n in range(self.sizes[RANGES[a[0]]]) if a[1] is None or n != self._index(a[1], ix))
            parts = [self._dual(a[2], {**ix, a[0]: n}, seed) for n in over]
            return sum((v for v, _ in parts), ZERO), sum((d for _, d in parts), ZERO)
        if o == "D":
            if seed is not None:
                raise ValueError("a derivative inside a derivative has no replay")
            return self._dual(a[0], ix, (a[1].args[0], *(self._index(i, ix) for i in a[1].args[1:])))[1], ZERO
        return arithmetic(o, *(self._dual(x, ix, seed) for x in a))

    def _at(self, e: E, ix: dict[str, int], seed: Seed) -> Dual:
        name, index = e.args[0], tuple(self._index(i, ix) for i in e.args[1:])
        if seed is not None and name == seed[0]:
            return self._dual(e, ix, None)[0], Decimal(seed == (name, *index))
        if name == "N":
            return Decimal(self.classes), ZERO
        if name in self.derivation.definitions:
            body = unfold(e, self.derivation.definitions[name])
            return self._dual(body, {"t": self.label, **ix}, seed)
        value = self.given[f"{name}/rows" if len(index) == 2 and name in ("x", "y") else name]
        for i in index:
            value = value[i]
        return value, ZERO

    def _index(self, letter: str, ix: Index) -> int:
        return ix[letter] if letter in ix else self.label


def digits_of(scores: Sequence[float | Decimal]) -> int | None:
    """Return how many digits 1 - yhat loses: for the smallest prediction, or else the second; None if there are too many."""
    ranked = sorted({float(s) for s in scores}, reverse=True)
    gaps = [(ranked[0] - other) / 2.302 for other in (ranked[-1], ranked[min(1, len(ranked) - 1)])]
    return next((PRECISION_STEP * math.ceil(gap / PRECISION_STEP) for gap in gaps if gap < MORE), None)


@lru_cache(maxsize=4096)
def transcendental(name: str, x: Decimal, digits: int) -> Decimal:
    """Return x.exp() or x.ln(), which with hundreds of digits take milliseconds, in the current context, which has so many digits."""
    return x.exp() if name == "exp" else x.ln()


def arithmetic(o: str, u: Dual, v: Dual = (ZERO, ZERO)) -> Dual:
    """Apply an operation to dual numbers."""
    (a, da), (b, db) = u, v
    if o == "()":
        return u
    if o == "neg":
        return -a, -da
    if o == "+":
        return a + b, da + db
    if o == "-":
        return a - b, da - db
    if o in "*@":
        return a * b, da * b + a * db
    if o == "/":
        return a / b, (da * b - a * db) / (b * b)
    if o == "^":
        return a**b, b * a ** (b - 1) * da
    if o == "exp":
        value = transcendental("exp", a, getcontext().prec)
        return value, value * da
    if o == "log":
        return transcendental("ln", a, getcontext().prec), da / a
    if o == "tanh":
        q = (-TWO * abs(a)).exp()
        t = ((ONE - q) / (ONE + q)).copy_sign(a)
        return t, 4 * q / ((ONE + q) * (ONE + q)) * da  # 1 - t^2 would lose its digits far from 0
    raise ValueError(o)


def agree(a: Decimal, b: Decimal, rel: str = "=") -> bool:
    """Whether the values a and b of two consecutive lines agree with the relation between them."""
    with localcontext(CONTEXT):
        near = abs(a - b) <= TOLERANCE * abs(a) + FLOOR
        return near or (rel == ">=" and a > b)


def short(x: Decimal, digits: int = 4) -> str:
    """Return a number as text with a few digits."""
    f = f"{float(x):.{digits}g}" if x == 0 or -300 < x.adjusted() < 300 else f"{x:.{digits - 1}e}"
    return "0" if f == "-0" else f


def _given(derivation: Derivation, z: list[Decimal], y: list[Decimal]) -> dict[str, Any]:
    """Return the values of names without a definition. The examples differ from each other, so that a wrong line rarely agrees."""
    n, half = len(z), len(z) // 2
    given: dict[str, Any] = {name: Decimal(value) for name, value in EXAMPLE.items()}
    given |= {"z": z, "y": y, "v": [Decimal(k % 3) - Decimal(k) / 7 for k in range(n)], "w": [ONE + Decimal(k % 4) / 4 for k in range(n)]}
    given["off"] = [ONE / 8 + Decimal(k % 3) / 8 for k in range(n)]
    given["u"] = [Decimal(k + 1) * 2 / (n * (n + 1)) for k in range(n)]
    for name, columns in (("1", range(half or n)), ("2", range(half, n))):
        m, h = max(z[k] for k in columns), given[f"h{name}"]
        terms = [((z[k] - m).exp(), m - z[k], h - given["v"][k]) for k in columns]
        given[f"m{name}"] = m
        given[f"s{name}"] = sum((e for e, *_ in terms), ZERO)
        given[f"u{name}"] = sum((e * below for e, below, _ in terms), ZERO)
        given[f"A{name}"] = sum((e * away for e, _, away in terms), ZERO)
        given[f"B{name}"] = sum((e * below * away for e, below, away in terms), ZERO)
    given["m"] = max(z)
    given["x"] = z
    if any("W" in {x.args[0] for x in _at_nodes(one.body)} for one in derivation.where):
        given["W"] = [[Decimal((3 * k + 2 * d) % 5 - 2) / 4 for d in range(FEATURES)] for k in range(n)]
        given["x"] = [Decimal(1) / (1 + d) for d in range(FEATURES)]
        given["x/rows"] = [given["x"], [Decimal(d) - ONE / 2 for d in range(FEATURES)]]
        given["y/rows"] = [y, y[1:] + y[:1]]
        given["b"] = [s - sum((w * x for w, x in zip(row, given["x"], strict=True)), ZERO) for s, row in zip(z, given["W"], strict=True)]
    return given


def _at_nodes(e: E) -> list[E]:
    return ([e] if e.op == "at" else []) + [x for child in e.args if isinstance(child, E) for x in _at_nodes(child)]
