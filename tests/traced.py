"""Arrays with any number of columns, on which the code of formula.py runs: a trace of what it computes, as expressions of proof/expr.py.

One row stands for all rows. Its N columns are not listed. An array holds its entry at the label's column t, at another named column if the
case has one, and at any other column k, as an expression with the index k. A sum over the columns is then the entry at t plus a `Sum` over
all k but t, for any N. An entry is an expression, a boolean, or inf, -inf or NaN. NaN also stands for a value that is not known, and equals
nothing.

Comparisons are decided by a `Case`: which columns there are, whether z_t is larger than the largest other logit m, and which class is the
most probable. The name m is only used for that maximum; a maximum of anything else fails. A comparison with 0 that the case does not
decide, as in `times`, remains open. `where` then requires that both branches agree where the compared numbers are equal, so that the other
branch is right in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from softxent.partials import LIBRARIES
from softxent.proof.derivation import READ_LSE, TWO_CLASSES, Derivation
from softxent.proof.expr import E, Name, Sum, exp, lift, log, rebuild, reindex, tanh, unfold, walk
from softxent.proof.symbolic import Meaning

Value = Any  # an expression, a boolean, inf, -inf or NaN
ZERO, ONE = lift(0), lift(1)
LABEL, OTHER, ANY, MASKED = "tlkj"  # the label, another class that is named, any other class, and a class beside the N with a logit of -inf
z, off, v = Name("z"), Name("off"), Name("v")
m = Name("m")[()]


@dataclass(frozen=True)
class Case:
    """The hypotheses of a trace: the columns of the row, the sign of z_t - m, and the columns of the largest logit and off."""

    columns: str = LABEL + ANY
    order: int = 1
    top: str = LABEL
    top_of_off: str = LABEL

    def sign(self, a: E, b: E) -> int | None:
        """Return the sign of a - b, or None."""
        if a == b:
            return 0
        for x, y, sign in ((a, b, 1), (b, a, -1)):
            if x == z[LABEL] and y == m:
                return sign * self.order
            if x == z[self.top] and y == Name(f"m but {self.top}")[()]:
                return sign
            if y == ZERO and positive(x):
                return sign
            if {x, y} <= set(PARTS) and self.order:
                return sign * self.order * (1 if x == PARTS[0] else -1)
        return 0 if {a, b} == set(PARTS) and not self.order else None


PARTS = Name("m1")[()], Name("m2")[()]  # the maxima of two parts, in this order if `order` is 1


def positive(e: E) -> bool:
    """Whether an expression is positive by its form. A sum over the classes but the label is not empty: there are two classes or more."""
    if e.op in ("+", "*", "sum"):
        return all(positive(x) for x in e.args if isinstance(x, E))
    return e.op == "exp" or (e.op == "num" and e.args[0] > 0)


@dataclass(frozen=True)
class Undecided:
    """A comparison of pairs of expressions: that all are equal, or that some differ."""

    pairs: tuple[tuple[E, E], ...]
    equal: bool

    def __or__(self, other: Undecided) -> Undecided:
        assert not self.equal and not other.equal
        return Undecided(self.pairs + other.pairs, False)

    def where(self, case: Case, a: Value, b: Value) -> Value:
        """Return the branch for numbers that differ, after a check that the other one is its value where they are equal."""
        special, general = (a, b) if self.equal else (b, a)
        if not isinstance(special, E) or not isinstance(general, E):
            return special if special is general else math.nan
        zero = {one: other for pair in self.pairs for one, other in _equations(*pair)}
        x, y = (replaced(e, zero) for e in (special, general))
        assert x == y or equal(case, x, y, READ_LSE), "the code treats a special case differently"
        return general


def _equations(a: E, b: E) -> list[tuple[E, E]]:
    """Split: a sum of squares is 0 where each of the squares is."""
    squares = _terms(a)
    return [(e.args[0], ZERO) for e in squares] if b == ZERO and all(e.op == "^" for e in squares) else [(a, b)]


def _terms(e: E) -> list[E]:
    return _terms(e.args[0]) + _terms(e.args[1]) if e.op == "+" else [e]


def replaced(e: E, by: dict[E, E]) -> E:
    if e in by:
        return by[e]
    new = rebuild(e, lambda x: replaced(x, by))
    if new.op in FOLDED:
        return FOLDED[new.op](*new.args)
    return ZERO if new.op == "sum" and new.args[2] == ZERO else new


# ---- operations on entries; 0 and 1 are folded, so that what is 0 in any case is seen to be 0 ----


def _product(a: E, b: E) -> E:
    return ZERO if ZERO in (a, b) else b if a == ONE else a if b == ONE else a * b


FOLDED: dict[str, Callable[..., E]] = {
    "+": lambda a, b: b if a == ZERO else a if b == ZERO else a + b,
    "-": lambda a, b: ZERO if a == b else a if b == ZERO else -b if a == ZERO else a - b,
    "*": _product,
    "/": lambda a, b: ZERO if a == ZERO else a if b == ONE else a / b,
    "neg": lambda a: ZERO if a == ZERO else -a,
    "exp": lambda a: ONE if a == ZERO else exp(a),
    "^": lambda a, b: ZERO if a == ZERO else E("^", (a, b)),
}
INFINITE: dict[str, Callable[..., float]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "neg": lambda a: -a, "^": lambda a, b: math.nan,
    "*": lambda a, b: math.nan, "/": lambda a, b: math.nan, "exp": lambda a: math.exp(a),
}  # fmt: skip


def operation(op: str) -> Callable[..., Value]:
    def f(*values: Value) -> Value:
        if all(isinstance(x, E) for x in values):
            return FOLDED[op](*values)
        if op in "*/" and isinstance(values[1], E) and positive(values[1]):
            return values[0]
        assert not any(isinstance(x, bool) for x in values)
        found = INFINITE[op](*(0.0 if isinstance(x, E) else x for x in values))  # a finite number changes no infinity
        return ZERO if found == 0 else math.nan if math.isnan(found) else found

    return f


def logarithm(x: Value) -> Value:
    return log(x) if isinstance(x, E) and x != ZERO else -math.inf if x == ZERO else x


def log_add_exp(a: Value, b: Value) -> Value:
    if a != a or b != b or math.inf in (a, b):
        return math.nan if a != a or b != b else math.inf
    return b if a == -math.inf else a if b == -math.inf else log(FOLDED["+"](FOLDED["exp"](a), FOLDED["exp"](b)))


def power(x: Value, n: Value) -> Value:
    square = FOLDED["^"](x, lift(2))
    return square if n == lift(2) else 1 / square if n == -lift(2) else math.nan


def compared(case: Case, holds: Callable[[int], bool], a: Value, b: Value) -> Value:
    """Return whether a condition on the sign of a - b holds. Comparisons with NaN are false, except !=."""
    if isinstance(a, E) and isinstance(b, E):
        sign = case.sign(a, b)
        if sign is None:
            assert holds(1) == holds(-1), f"the case does not say which is larger, {a} or {b}"
            return Undecided(((a, b),), holds(0))
        return holds(sign)
    a, b = (0.0 if isinstance(x, E) else x for x in (a, b))
    return holds(1) and holds(-1) if math.isnan(a) or math.isnan(b) else holds((a > b) - (a < b))


def maximum(case: Case, a: Value, b: Value) -> Value:
    return math.nan if a != a or b != b else a if compared(case, lambda sign: sign >= 0, a, b) else b


def either(a: Value, b: Value) -> Value:
    if True in (a, b):
        return True
    return b if a is False else a if b is False else a | b


def both(a: Value, b: Value) -> Value:
    assert isinstance(a, bool) or isinstance(b, bool)
    return b if a is True else a if b is True else False


def comparison(holds: Callable[[int], bool]) -> Callable[[Case, Value, Value], Value]:
    return lambda case, a, b: compared(case, holds, a, b)


ELEMENTWISE: dict[Any, Callable[..., Value]] = {
    np.add: operation("+"), np.subtract: operation("-"), np.multiply: operation("*"), np.divide: operation("/"),
    np.negative: operation("neg"), np.exp: operation("exp"), np.log: logarithm, np.logaddexp: log_add_exp, np.power: power,
    np.absolute: lambda x: power(x, lift(2)),  # only compared with 0: a square is 0 where the number is, and not negative
    np.tanh: tanh, np.cosh: lambda x: (exp(x) + exp(-x)) / 2,
    np.bitwise_or: either, np.bitwise_and: both, np.invert: lambda x: {True: False, False: True}[x],
}  # fmt: skip
COMPARED: dict[Any, Callable[[Case, Value, Value], Value]] = {
    np.maximum: maximum, np.equal: comparison(lambda sign: sign == 0), np.not_equal: comparison(lambda sign: sign != 0),
    np.greater: comparison(lambda sign: sign > 0), np.less: comparison(lambda sign: sign < 0),
    np.greater_equal: comparison(lambda sign: sign >= 0), np.less_equal: comparison(lambda sign: sign <= 0),
}  # fmt: skip
PLUS, MINUS = ELEMENTWISE[np.add], ELEMENTWISE[np.subtract]


# ---- arrays ----


class Size(int):
    """The number of columns, where the code asks for a shape. It is only passed on to `arange`."""


@dataclass(frozen=True, eq=False)
class Columns(NDArrayOperatorsMixin):
    """An array: its entry at each column, or one entry, with the key "", if it is a number of the row."""

    case: Case
    entries: dict[str, Value]
    axes: str  # R rows, C columns, 1; "" is a number of the call

    @property
    def number(self) -> Value:
        return self.entries[""]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(Size(1) if axis == "C" else 1 for axis in self.axes)

    @property
    def ndim(self) -> int:
        return len(self.axes)

    def __len__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        assert self.axes == "" and isinstance(self.number, bool)
        return self.number

    def __getitem__(self, key: Any) -> Columns:
        if isinstance(key, slice):
            return self
        rows, column = key
        assert rows == slice(None) and self.axes == ("R" if column is None else "R1")
        return replace(self, axes="R1" if column is None else "R")

    def argmax(self, axis: int) -> Label:
        if self.entries.get(LABEL) == -math.inf:  # without the label, no column of a case need be the largest
            return Label(self.case, OTHER if OTHER in self.entries else -1)
        return Label(self.case, self.case.top_of_off if self.entries.get(LABEL) == off[LABEL] else self.case.top)

    def sum(self, axis: int) -> Columns:
        assert axis == 1 and self.axes == "RC"
        entries = dict(self.entries)
        total = entries.pop(ANY, ZERO)
        but = OTHER if entries.get(OTHER) == ZERO else LABEL if LABEL in entries else None
        for column in {LABEL, OTHER} & set(entries) - {but}:  # the sum over any k includes it
            entries[column] = MINUS(entries[column], reindex(total, {ANY: column}) if isinstance(total, E) else total)
        if isinstance(total, E) and total != ZERO:
            total = Sum(ANY, total, but)
        for entry in entries.values():
            total = PLUS(entry, total)
        return number(self.case, total)

    def __array_ufunc__(self, ufunc: Any, method: str, *arrays: Any) -> Columns:
        f = ELEMENTWISE.get(ufunc)
        return elementwise(f or partial(COMPARED[ufunc], self.case), *arrays)


@dataclass(frozen=True, eq=False)
class Label:
    """The label of the row: a column, or a number that is no column."""

    case: Case
    column: str | int

    def __getitem__(self, key: Any) -> Label:
        return self

    def __eq__(self, other: object) -> Columns:  # type: ignore[override]
        if isinstance(other, int):
            return number(self.case, self.column == other)
        assert isinstance(other, Range)
        return columns(self.case, lambda column: column == self.column)

    def __ge__(self, least: int) -> Columns:
        assert least == 0
        return number(self.case, isinstance(self.column, str) or self.column >= 0)

    def __lt__(self, size: Size) -> Columns:
        assert isinstance(size, Size)
        return number(self.case, isinstance(self.column, str) or self.column < 0)  # a number that is no column is a special label


class Range:
    """The numbers of the columns."""

    def __init__(self, size: Size, like: Label):
        assert isinstance(size, Size)


def number(case: Case, x: Any, axes: str = "R") -> Columns:
    return Columns(case, {"": lifted(x)}, axes)


def columns(case: Case, entry: Callable[[str], Any], axes: str = "RC") -> Columns:
    return Columns(case, {column: lifted(entry(column)) for column in case.columns}, axes)


def lifted(x: Any) -> Value:
    if isinstance(x, E | bool) or (isinstance(x, float) and not math.isfinite(x)):
        return x
    assert x == int(x)
    return lift(int(x)) if x >= 0 else -lift(int(-x))


def elementwise(f: Callable[..., Value], *arrays: Any) -> Columns:
    """Apply `f` to the entries of each column, with NumPy's rules for the shapes."""
    case = next(x.case for x in arrays if isinstance(x, Columns))
    arrays = tuple(x if isinstance(x, Columns) else number(case, x, "") for x in arrays)
    axes = max((x.axes for x in arrays), key=lambda axes: (len(axes), "C" in axes))
    axes = "RC" if axes == "R1" and any(x.axes == "C" for x in arrays) else axes
    assert all(x.axes in ("", axes, axes.replace("C", "1"), axes.replace("R", "")) for x in arrays), [x.axes for x in arrays]
    keys = next((x.entries for x in arrays if "C" in x.axes), {"": None})
    return Columns(case, {key: f(*(x.entries.get(key, x.entries.get("")) for x in arrays)) for key in keys}, axes)


def where(condition: Columns, a: Any, b: Any) -> Any:
    if condition.axes == "R" and isinstance(condition.number, bool):
        chosen = a if condition.number else b
        return chosen if isinstance(chosen, Columns | Label) else number(condition.case, chosen)
    return elementwise(partial(chosen_entry, condition.case), condition, a, b)


def chosen_entry(case: Case, condition: Value, a: Value, b: Value) -> Value:
    return condition.where(case, a, b) if isinstance(condition, Undecided) else a if condition else b


def largest(x: Columns, axis: int, initial: float) -> Columns:
    """Return the maximum over the columns: the only one that is not -inf, or the name of the maximum over the logits but one."""
    found = {column: entry for column, entry in x.entries.items() if entry != -math.inf}
    if any(isinstance(entry, float) for entry in found.values()):
        return number(x.case, math.nan)
    if not found or (len(found) == 1 and ANY not in found):
        return number(x.case, next(iter(found.values()), initial))
    assert found == {column: z[column] for column in found}, "this is not the maximum over logits"
    but = sorted(set(x.case.columns) - {MASKED} - set(found))
    return number(x.case, m if but == [LABEL] or LABEL not in x.case.columns else Name("m but " + ", ".join(but))[()])


LIBRARY = SimpleNamespace(**{
    **vars(np), "where": where, "max": largest, "zeros_like": lambda x: number(x.case, 0, x.axes), "asarray": lambda x: x,
    "arange": Range, "float64": lambda x: x, "empty": lambda shape, like: Table(Output() for _ in range(shape[0])),
})  # fmt: skip


class Table(list[Any]):
    """The rows of an array [n, R], such as the numbers of a backend."""

    shape = ("n", 1)

    def __getitem__(self, key: Any) -> Any:
        return [row.value for row in self] if isinstance(key, tuple) else super().__getitem__(key)


class Output:
    """An array that a backend writes to."""

    value: Any = None
    dtype = None

    def __setitem__(self, rows: slice, value: Columns) -> None:
        self.value = value


LIBRARIES.update({Columns: LIBRARY, Table: LIBRARY, Label: LIBRARY})


# ---- the judge ----


@cache
def meaning(derivation: Derivation, tanhs: bool) -> Meaning:
    """Return the normal form for two classes or more, where different letters are different columns."""
    letters = tuple(combinations((LABEL, OTHER, ANY, MASKED), 2))
    return Meaning(derivation._replace(distinct=letters, given=(*derivation.given, TWO_CLASSES)), tanhs=tanhs)


def alone(e: E, derivation: Derivation) -> E:
    """Return a line where the label is the only class: a sum is its term at t, or 0 if it is over the other classes."""
    if e.op == "at" and e.args[0] == "N":
        return ONE
    if e.op == "at" and e.args[0] in derivation.definitions:
        return alone(unfold(e, derivation.definitions[e.args[0]]), derivation)
    if e.op == "sum":
        return ZERO if e.args[1] else alone(reindex(e.args[2], {e.args[0]: LABEL}), derivation)
    return rebuild(e, lambda x: alone(x, derivation))


def equal(case: Case, got: Value, want: E, derivation: Derivation) -> bool:
    """Whether the result of a trace is an expression with the names of a derivation."""
    if not isinstance(got, E):
        return False
    if case.columns == LABEL:
        got, want = (alone(e, derivation) for e in (got, want))
    read = (want, *(one.body for one in derivation.where))
    ways = (False, True) if any(x.op == "tanh" for e in read for x in walk(e)) else (False,)  # tanh as an atom, and by exponentials
    return any(meaning(derivation, tanhs).residual(got, want) == 0 for tanhs in ways)
