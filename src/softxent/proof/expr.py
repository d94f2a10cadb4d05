"""The expressions of the derivation: small trees that keep a line exactly as it is written, brackets and all.

They have no values and no rules. What reads them: reading.py (text, LaTeX), rules.py and symbolic.py (is it right?),
replay.py (numbers), coq.py (statements for Coq), and the page that `softxent explain --html` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# The range of an index is in its letter: classes, features of a linear head, rows of a batch.
RANGES = {"i": "N", "j": "N", "k": "N", "l": "N", "t": "N", "d": "D", "e": "D", "r": "R"}


@dataclass(frozen=True)
class E:
    """One node of a line: an operation and its arguments (nodes; names and letters in `at` and `sum`)."""

    op: str
    args: tuple[Any, ...]

    def __neg__(self) -> E:
        return E("neg", (self,))

    def __add__(self, other: E | int) -> E:
        return E("+", (self, lift(other)))

    def __sub__(self, other: E | int) -> E:
        return E("-", (self, lift(other)))

    def __rsub__(self, other: int) -> E:
        return E("-", (lift(other), self))

    def __radd__(self, other: int) -> E:
        return E("+", (lift(other), self))

    def __mul__(self, other: E | int) -> E:  # a * b is written a · b
        return E("*", (self, lift(other)))

    def __rmul__(self, other: int) -> E:
        return E("*", (lift(other), self))

    def __matmul__(self, other: E | int) -> E:  # a @ b is written a b
        return E("@", (self, lift(other)))

    def __rmatmul__(self, other: int) -> E:
        return E("@", (lift(other), self))

    def __truediv__(self, other: E | int) -> E:
        return E("/", (self, lift(other)))

    def __rtruediv__(self, other: int) -> E:
        return E("/", (lift(other), self))

    def __pow__(self, other: int) -> E:
        return E("^", (self, lift(other)))


def lift(x: E | int) -> E:
    return x if isinstance(x, E) else E("num", (x,))


class Name(str):
    """A vector, matrix or family: z[j], W[k, d]; with no index, z[()], a number."""

    def __getitem__(self, index: Any) -> E:  # type: ignore[override]
        return E("at", (str(self), *(index if isinstance(index, tuple) else (index,))))


def exp(x: E) -> E:
    return E("exp", (x,))


def log(x: E) -> E:
    return E("log", (x,))


def tanh(x: E) -> E:
    return E("tanh", (x,))


def P(x: E | int) -> E:  # brackets, where the writer wants them
    return E("()", (lift(x),))


def D(f: E, x: E) -> E:  # the partial derivative of f by x
    return E("D", (f, x))


def Sum(index: str, body: E | int, but: str | None = None) -> E:  # over all of the index's range, or all but one
    return E("sum", (index, but, lift(body)))


def delta(a: str, b: str) -> E:  # 1 where a = b, else 0
    return E("delta", (a, b))


def children(e: E) -> Iterator[E]:
    return (x for x in e.args if isinstance(x, E))


def rebuild(e: E, change: Callable[[E], E]) -> E:
    """`e` with each of its children changed."""
    return E(e.op, tuple(change(x) if isinstance(x, E) else x for x in e.args))


def walk(e: E) -> Iterator[E]:
    yield e
    for x in children(e):
        yield from walk(x)


def names(e: E) -> set[str]:
    return {x.args[0] for x in walk(e) if x.op == "at"}


def letters(e: E) -> set[str]:
    """The free indices."""
    if e.op == "at":
        return set(e.args[1:])
    if e.op == "delta":
        return set(e.args)
    inner = {x for child in children(e) for x in letters(child)}
    return inner - {e.args[0]} | ({e.args[1]} if e.args[1] else set()) if e.op == "sum" else inner


def reindex(e: E, to: Mapping[str, str]) -> E:
    """`e` with its free indices renamed; a bound one gives way where it would catch a new one."""
    if e.op == "at":
        return E("at", (e.args[0], *(to.get(i, i) for i in e.args[1:])))
    if e.op == "delta":
        return E("delta", tuple(to.get(i, i) for i in e.args))
    if e.op == "sum":
        index, but, body = e.args
        moved = {a: b for a, b in to.items() if a != index and a in letters(body)}
        if index in moved.values():
            fresh = next(x for x in RANGES if RANGES[x] == RANGES[index] and x not in {*moved.values(), *letters(body)})
            body, index = reindex(body, {index: fresh}), fresh
        return E("sum", (index, to.get(but, but), reindex(body, moved)))
    return rebuild(e, lambda x: reindex(x, to))


def bare(e: E, depth: int = 0) -> E:
    """What a line says, without how it is set: no brackets, one kind of product, bound indices by depth."""
    if e.op == "()":
        return bare(e.args[0], depth)
    if e.op == "@":
        return E("*", tuple(bare(x, depth) for x in e.args))
    if e.op == "sum":
        index, but, body = e.args
        bound = f"{RANGES.get(index, index)}#{depth}"
        return E("sum", (bound, but, bare(_letter(body, index, bound), depth + 1)))
    return rebuild(e, lambda x: bare(x, depth))


def _letter(e: E, old: str, new: str) -> E:
    if e.op in ("at", "delta"):
        return E(e.op, tuple(new if i == old and (n or e.op == "delta") else i for n, i in enumerate(e.args)))
    if e.op == "sum" and e.args[0] == old:
        return E("sum", (old, new if e.args[1] == old else e.args[1], e.args[2]))
    if e.op == "sum":
        return E("sum", (e.args[0], new if e.args[1] == old else e.args[1], _letter(e.args[2], old, new)))
    return rebuild(e, lambda x: _letter(x, old, new))


def same(a: E, b: E) -> bool:
    return bare(a) == bare(b)


def inside(e: E) -> E:
    """`e` without its outer brackets, and with one kind of product."""
    while e.op == "()":
        e = e.args[0]
    return E("*", e.args) if e.op == "@" else e


def matches(pattern: E, e: E, found: dict[str, str], bound: Mapping[str, str] | None = None) -> bool:
    """Whether `e` is `pattern` for some choice of its free indices. The choice is written into `found`."""
    p, e, bound = inside(pattern), inside(e), bound or {}
    if p.op != e.op or len(p.args) != len(e.args):
        return False
    if p.op == "sum":
        (i, but, f), (j, but_too, h) = p.args, e.args
        if RANGES[i] != RANGES[j] or (but is None) != (but_too is None):
            return False
        return (but is None or _bind(but, but_too, found, bound)) and matches(f, h, found, {**bound, i: j})
    if p.op in ("at", "delta"):
        skip = int(p.op == "at")
        return p.args[:skip] == e.args[:skip] and all(_bind(x, y, found, bound) for x, y in zip(p.args[skip:], e.args[skip:], strict=True))
    return all(matches(x, y, found, bound) if isinstance(x, E) else x == y for x, y in zip(p.args, e.args, strict=True))


def _bind(i: str, j: str, found: dict[str, str], bound: Mapping[str, str]) -> bool:
    if i in bound:
        return bound[i] == j
    return RANGES[i] == RANGES[j] and j not in bound.values() and found.setdefault(i, j) == j


class Definition(NamedTuple):
    """What a name stands for: `head` is the name with its indices, `body` what is written for it."""

    head: E
    body: E

    @property
    def name(self) -> str:
        name: str = self.head.args[0]
        return name


def unfold(e: E, definition: Definition) -> E:
    """The body at the indices of the node `e`, which has the definition's name. One index more is a row: see `in_row`."""
    own, given = definition.head.args[1:], e.args[1:]
    if len(given) == len(own) + 1:
        return reindex(in_row(definition.body, "r"), dict(zip(("r", *own), given, strict=True)))
    return reindex(definition.body, dict(zip(own, given, strict=True)))


ROW_NAMES = {"z", "y", "yhat", "x", "L", "lse", "p", "g"}  # what each row of a batch has for itself


def in_row(e: E, row: str) -> E:
    """`e` said of one row of a batch: each row has its own z, y, x, L, ..., and they share the rest."""
    if e.op == "at" and e.args[0] in ROW_NAMES:
        return E("at", (e.args[0], row, *e.args[1:]))
    return rebuild(e, lambda x: in_row(x, row))


@dataclass(frozen=True)
class Fact:
    """left rel right, for every value of the index `every` (None: as it stands)."""

    left: E
    rel: str  # = != > >=
    right: E
    every: str | None = None
