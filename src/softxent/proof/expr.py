"""The expressions of the derivation: trees that represent a line exactly as it is written, with its brackets.

An expression has no value and no rules of its own. reading.py converts it to text and LaTeX, rules.py and symbolic.py check it, replay.py
evaluates it for numbers, coq.py states it for Coq, and the page of `softxent explain --html` displays it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple


class _Ranges(dict[str, str]):
    """The range of each letter. A letter with primes, which only a renamed bound index has, has the range of the letter."""

    def __missing__(self, index: str) -> str:
        if not index.endswith("'"):
            raise KeyError(index)
        return self[index[:-1]]


# The letter of an index determines its range: N classes, D features of a linear head, or R rows of a batch.
RANGES = _Ranges(i="N", j="N", k="N", l="N", t="N", d="D", e="D", r="R")


kept = lru_cache(maxsize=1 << 16)  # keeps what a function of a node returned


@dataclass(frozen=True)
class E:
    """A node of an expression: an operation and its arguments, which are nodes, or names and indices in `at`, `sum` and `delta`."""

    op: str
    args: tuple[Any, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # kept, because a node is a key of many dictionaries, and its hash takes its whole tree
        return hash((self.op, self.args))

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
    """The name of a vector or matrix, whose entries are written z[j] or W[k, d], or of a number, which is written p[()]."""

    def __getitem__(self, index: Any) -> E:  # type: ignore[override]
        return E("at", (str(self), *(index if isinstance(index, tuple) else (index,))))


def exp(x: E) -> E:
    return E("exp", (x,))


def log(x: E) -> E:
    return E("log", (x,))


def tanh(x: E) -> E:
    return E("tanh", (x,))


def P(x: E | int) -> E:  # brackets that are displayed
    return E("()", (lift(x),))


def D(f: E, x: E) -> E:  # the partial derivative of f with respect to x
    return E("D", (f, x))


def Sum(index: str, body: E | int, but: str | None = None) -> E:  # the sum over the range of the index, except `but` if given
    return E("sum", (index, but, lift(body)))


def delta(a: str, b: str) -> E:  # 1 if a = b, else 0
    return E("delta", (a, b))


def children(e: E) -> Iterator[E]:
    return (x for x in e.args if isinstance(x, E))


def rebuild(e: E, change: Callable[[E], E]) -> E:
    """Return `e` with `change` applied to each of its children."""
    return E(e.op, tuple(change(x) if isinstance(x, E) else x for x in e.args))


def walk(e: E) -> Iterator[E]:
    yield e
    for x in children(e):
        yield from walk(x)


@kept
def names(e: E) -> frozenset[str]:
    return frozenset(x.args[0] for x in walk(e) if x.op == "at")


@kept
def letters(e: E) -> frozenset[str]:
    """Return the free indices of `e`."""
    if e.op == "at":
        return frozenset(e.args[1:])
    if e.op == "delta":
        return frozenset(e.args)
    inner = frozenset(x for child in children(e) for x in letters(child))
    return inner - {e.args[0]} | ({e.args[1]} if e.args[1] else set()) if e.op == "sum" else inner


def fresh(index: str, taken: Collection[str]) -> str:
    """Return `index` with primes, so that it is none of `taken`."""
    index += "'"
    return fresh(index, taken) if index in taken else index


def reindex(e: E, to: Mapping[str, str]) -> E:
    """Return `e` with its free indices renamed. A bound index is renamed too if it would capture a new one."""
    if e.op == "at":
        return E("at", (e.args[0], *(to.get(i, i) for i in e.args[1:])))
    if e.op == "delta":
        return E("delta", tuple(to.get(i, i) for i in e.args))
    if e.op == "sum":
        index, but, body = e.args
        but = to.get(but, but)
        moved = {a: b for a, b in to.items() if a != index and a in letters(body)}
        if index in (but, *moved.values()):
            other = fresh(index, {but, *moved.values(), *letters(body)})
            body, index = reindex(body, {index: other}), other
        return E("sum", (index, but, reindex(body, moved)))
    return rebuild(e, lambda x: reindex(x, to))


@kept
def bare(e: E, depth: int = 0) -> E:
    """Return `e` without notation: without brackets, with one kind of product, and with bound indices named by their depth."""
    if e.op == "()":
        return bare(e.args[0], depth)
    if e.op == "@":
        return E("*", tuple(bare(x, depth) for x in e.args))
    if e.op == "sum":
        index, but, body = e.args
        bound = f"{index[0] if '#' in index else RANGES[index]}#{depth}"  # an index of depth 0, N#0, may be renamed again
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
    """Return `e` without its outer brackets, and with one kind of product."""
    while e.op == "()":
        e = e.args[0]
    return E("*", e.args) if e.op == "@" else e


def matches(pattern: E, e: E, found: dict[str, str], bound: Mapping[str, str | None] | None = None) -> bool:
    """Whether `e` is `pattern` for some values of its free indices, which are stored in `found`.

    `bound` maps the bound indices of the pattern to those of `e`, or to None if an inner sum of `e` has the same index.
    """
    p, e, bound = inside(pattern), inside(e), bound or {}
    if p.op != e.op or len(p.args) != len(e.args):
        return False
    if p.op == "sum":
        (i, but, f), (j, but_too, h) = p.args, e.args
        if RANGES[i] != RANGES[j] or (but is None) != (but_too is None):
            return False
        visible = {a: None if b == j else b for a, b in bound.items()}
        return (but is None or _bind(but, but_too, found, bound)) and matches(f, h, found, {**visible, i: j})
    if p.op in ("at", "delta"):
        skip = int(p.op == "at")
        return p.args[:skip] == e.args[:skip] and all(_bind(x, y, found, bound) for x, y in zip(p.args[skip:], e.args[skip:], strict=True))
    return all(matches(x, y, found, bound) if isinstance(x, E) else x == y for x, y in zip(p.args, e.args, strict=True))


def _bind(i: str, j: str, found: dict[str, str], bound: Mapping[str, str | None]) -> bool:
    if i in bound:
        return bound[i] == j
    return RANGES[i] == RANGES[j] and j not in bound.values() and found.setdefault(i, j) == j


class Definition(NamedTuple):
    """A definition: `head` is the name with its indices, and `body` is what it stands for."""

    head: E
    body: E

    @property
    def name(self) -> str:
        name: str = self.head.args[0]
        return name


def unfold(e: E, definition: Definition) -> E:
    """Return the body of the definition at the indices of the node `e`. If it has one index more, the first is a row; see `in_row`."""
    own, given = definition.head.args[1:], e.args[1:]
    if len(given) == len(own) + 1:
        return reindex(in_row(definition.body, "r"), dict(zip(("r", *own), given, strict=True)))
    return reindex(definition.body, dict(zip(own, given, strict=True)))


ROW_NAMES = {"z", "y", "yhat", "x", "L", "lse", "p", "g", "mu", "H"}  # these differ between the rows of a batch


def in_row(e: E, row: str) -> E:
    """Return `e` for a row of a batch: the names in ROW_NAMES get the row as their first index."""
    if e.op == "at" and e.args[0] in ROW_NAMES:
        return E("at", (e.args[0], row, *e.args[1:]))
    return rebuild(e, lambda x: in_row(x, row))


@dataclass(frozen=True)
class Fact:
    """The relation `left rel right`, for every value of the index `every`, if it is not None."""

    left: E
    rel: str  # = != > >=
    right: E
    every: str | None = None
