"""Checks of the form of a derivation, before its rules are checked: its names, indices, ranges and definitions must be consistent."""

from __future__ import annotations

from collections.abc import Iterator

from .derivation import DEFINITIONS, DERIVATIONS, Derivation
from .expr import RANGES, ROW_NAMES, E, children, letters, names, walk

SHAPES = {  # the ranges of a name's indices
    **dict.fromkeys(("z", "y", "yhat", "g", "v", "w", "u", "b", "off", "dz"), ("N",)),
    **dict.fromkeys(("L", "lse", "p", "mu", "H", "N", "eps", "lam", "T", "c", "m", "m1", "m2", "s1", "s2", "u1", "u2", "a"), ()),
    **dict.fromkeys(("g1", "g2", "g3", "g4", "y0", "r0", "q", "alpha", "eta"), ()),
    "W": ("N", "D"),
    "x": ("N",),  # raw scores; in a linear head, features
}
FACTS = {"=", "!=", ">", ">="}


def ill_formed(d: Derivation) -> str | None:
    """Return the first fault of the derivation, or None."""
    return next(_faults(d), None)


def _faults(d: Derivation) -> Iterator[str]:
    everywhere = [*d.lines, *(one.body for one in d.where)]
    linear = any("W" in names(one.body) for one in d.where)
    shapes = SHAPES | ({"x": ("D",)} if linear else {})
    taken = {i for pair in d.distinct for i in pair} | {i for one in d.where for i in letters(one.body) - set(one.head.args[1:])}
    free = {i for line in everywhere for i in letters(line)}
    for line in everywhere:
        yield from _of(line, shapes, frozenset())
        bound = {x.args[0] for x in walk(line) if x.op == "sum"}
        if bound & (letters(line) | taken):
            yield f"the index {min(bound & (letters(line) | taken))} is both bound and free"
    for a, b in d.distinct:
        if a == b or not {a, b} <= free or RANGES[a] != RANGES[b]:
            yield f"{a} and {b} cannot be said to differ"
    for one in d.where:
        if one.name in {other.name for other in DEFINITIONS} or one.name not in shapes or one.name == "N" or one.name in names(one.body):
            yield f"{one.name} cannot be defined here"
        if len(set(one.head.args[1:])) != len(one.head.args) - 1:
            yield f"the indices of {one.name} must differ"
    for fact in (*d.given, *(fact for step in d.steps for fact in step.given)):
        if fact.rel not in FACTS or letters(fact.left) | letters(fact.right) != ({fact.every} if fact.every else set()):
            yield "a fact must speak of every value of its indices"
        yield from (fault for e in (fact.left, fact.right) for fault in _of(e, shapes, frozenset()))
    order = list(DERIVATIONS)
    for n, step in enumerate(d.steps):
        if step.rel != "=" and (step.rel != ">=" or n < len(d.steps) - 1):
            yield f"{step.rel} may stand in the last line only, and be >= only"
        for used in step.uses:
            if used not in DERIVATIONS and used not in d.definitions:
                yield f"there is no {used}"
            elif step.rule == "result" and used in order and d.name in order and order.index(used) >= order.index(d.name):
                yield f"{used} does not come before {d.name}"
        for reason in step.because:
            shown = DERIVATIONS.get(reason)
            if shown is None or (d.name in order and order.index(reason) >= order.index(d.name)):
                yield f"{reason} does not come before {d.name}"
            elif not any(fact.rel == "=" and (fact.left, fact.right) == shown.upto(len(shown.steps)) for fact in step.given):
                yield f"{reason} does not show what is given"


def _of(e: E, shapes: dict[str, tuple[str, ...]], bound: frozenset[str], inside: bool = False) -> Iterator[str]:
    o, a = e.op, e.args
    if o in ("at", "delta", "sum"):
        unknown = {i for i in (a[1:] if o == "at" else [x for x in a[:2] if isinstance(x, str)]) if i not in RANGES}
        if unknown:
            yield f"{min(unknown)} is no index"
            return
    if o == "at":
        got = tuple(RANGES[i] for i in a[1:])
        if a[0] not in shapes or (got != shapes[a[0]] and not (a[0] in ROW_NAMES and got == ("R", *shapes[a[0]]))):
            yield f"{a[0]} with indices {', '.join(a[1:]) or 'none'} is nothing that is known"
    if o == "delta" and {RANGES[i] for i in a} != {"N"}:
        yield "delta compares classes"
    if o == "num" and (type(a[0]) is not int or a[0] < 0):
        yield f"{a[0]} is no whole number"
    if o == "^" and (a[1].op != "num" or a[1].args[0] != 2):
        yield "there are squares, and no other powers"
    if o == "D" and (inside or a[1].op != "at" or len(a[1].args) == 1):
        yield "a derivative is by an entry of a vector, and not inside another"
    if o == "sum" and (a[0] in bound or a[0] == a[1] or (a[1] is not None and RANGES[a[1]] != RANGES[a[0]])):
        yield f"the sum over {a[0]} takes the index of another"
    for x in children(e):
        yield from _of(x, shapes, bound | ({a[0]} if o == "sum" else set()), inside or o == "D")
