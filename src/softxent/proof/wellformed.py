"""Checks of the form of a derivation, before its rules are checked: its names, indices, ranges and definitions must be consistent."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import product

from .derivation import DEFINITIONS, DERIVATIONS, POSITIVE, ZERO, Derivation
from .expr import RANGES, ROW_NAMES, Definition, E, Fact, children, letters, names, walk
from .replay import Numbers, agree

SHAPES = {  # the ranges of a name's indices
    **dict.fromkeys(("z", "y", "yhat", "g", "v", "w", "u", "b", "off", "dz"), ("N",)),
    **dict.fromkeys(("L", "lse", "p", "mu", "H", "N", "eps", "lam", "T", "c", "m", "m1", "m2", "s1", "s2", "u1", "u2", "a"), ()),
    **dict.fromkeys(("h", "h1", "h2", "A1", "A2", "B1", "B2"), ()),
    **dict.fromkeys(("g1", "g2", "g3", "g4", "y0", "r0", "q", "alpha", "eta"), ()),
    "W": ("N", "D"),
    "x": ("N",),  # raw scores; in a linear head, features
}


def ill_formed(d: Derivation) -> str | None:
    """Return the first fault of the derivation, or None."""
    return next(_faults(d), None)


def may_use(d: Derivation, used: Derivation, facts: Collection[Fact]) -> bool:
    """Whether the equations of the derivation `used` hold in `d`, where `facts` are given.

    Both must have the same definitions. `d` may define a further name that `used` leaves open, but not by what `used` differentiates with
    respect to: it would be no constant then. Softmax is positive, so that POSITIVE need not be given, unless yhat is any positive vector.
    """
    definitions = d.definitions
    if any(definitions.get(one.name) != one for one in used.where):
        return False
    if not set(used.given) - {POSITIVE} <= set(facts) or (POSITIVE in facts and POSITIVE not in used.given):
        return False
    by = {x.args[1].args[0] for line in used.lines for x in walk(line) if x.op == "D"}
    open_ = {one.name for one in d.where if one not in used.where} - by
    spoken_of = {name for line in used.lines for name in _reached(line, definitions, by)}
    return not any(by & _reached(definitions[name].body, definitions, set()) for name in open_ & spoken_of)


def _reached(e: E, definitions: dict[str, Definition], kept: Collection[str]) -> set[str]:
    """Return the names in `e` and in the definitions of these names, except those of `kept`."""
    found: set[str] = set()
    new: AbstractSet[str] = names(e)
    while new:
        found |= new
        new = {x for name in new - set(kept) if name in definitions for x in names(definitions[name].body)} - found
    return found


WITNESSES = (  # scores, and truths
    ([0.3, -1.2, 2.0, 0.7], [0.5, 0.25, 1.0, 0.75], [0.0] * 4),
    ([0.125, 0.25, 0.375, 0.25], [0.2, 0.5, 0.3, 0.7], [1.0, 0.0, 0.0, 0.0], [0.0] * 4),
)


@lru_cache(maxsize=256)
def _hold_together(d: Derivation, facts: tuple[Fact, ...]) -> bool:
    """Whether some numbers satisfy all these facts. Otherwise any line would follow from them."""
    rows = (Numbers(d, scores, truth, 0) for scores, truth in product(*WITNESSES))
    return any(all(_holds(fact, numbers) for fact in facts) for numbers in rows)


def _holds(fact: Fact, numbers: Numbers) -> bool:
    for n in range(numbers.sizes[RANGES[fact.every]] if fact.every else 1):
        left, right = (numbers.value(e, {fact.every: n} if fact.every else {}) for e in (fact.left, fact.right))
        equal = agree(left, right)
        if not {"=": equal, "!=": not equal, ">": left > right, ">=": left >= right}[fact.rel]:
            return False
    return True


def _faults(d: Derivation) -> Iterator[str]:
    try:
        definitions = d.definitions
    except ValueError as fault:
        yield str(fault)
        return
    everywhere = [*d.lines, *(one.body for one in d.where)]
    linear = any("W" in names(one.body) for one in d.where)
    shapes = SHAPES | ({"x": ("D",)} if linear else {})
    taken = {i for pair in d.distinct for i in pair} | {i for one in d.where for i in letters(one.body) - set(one.head.args[1:])}
    free = {i for line in everywhere for i in letters(line)}
    free_in_lines = {i for line in d.lines for i in letters(line)}  # a definition has its own bound indices
    for line in everywhere:
        yield from _of(line, shapes, frozenset())
        bound = {x.args[0] for x in walk(line) if x.op == "sum"}
        if clash := bound & (letters(line) | taken | (free_in_lines if line in d.lines else set())):
            yield f"the index {min(clash)} is both bound and free"
    for a, b in d.distinct:
        if a == b or not {a, b} <= free or RANGES[a] != RANGES[b]:
            yield f"{a} and {b} cannot be said to differ"
    for one in d.where:
        if one.name in {other.name for other in DEFINITIONS} or one.name not in shapes or one.name == "N":
            yield f"{one.name} cannot be defined here"
        if len(set(one.head.args[1:])) != len(one.head.args) - 1:
            yield f"the indices of {one.name} must differ"
    facts = (*d.given, *(fact for step in d.steps for fact in step.given))
    for fact in facts:
        if not d.usable(fact):
            yield "a fact compares any entry of a name without a definition, or the sum of all its entries, with 0 or 1"
        yield from (fault for e in (fact.left, fact.right) for fault in _of(e, shapes, frozenset()))
    if facts and not _hold_together(d._replace(name="", title="", start=ZERO, steps=()), facts):
        yield "the facts contradict each other"
    order = list(DERIVATIONS)
    for n, step in enumerate(d.steps):
        if step.rel != "=" and (step.rel != ">=" or n < len(d.steps) - 1):
            yield f"{step.rel} may stand in the last line only, and be >= only"
        for used in step.uses:
            if used not in DERIVATIONS and used not in definitions:
                yield f"there is no {used}"
            elif step.rule == "result" and used in DERIVATIONS and not may_use(d, DERIVATIONS[used], (*d.given, *step.given)):
                yield f"{used} has other definitions or needs other facts"
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
