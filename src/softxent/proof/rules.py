"""The rules that a line of the derivation may name as its reason, and a checker for each rule.

A rule that rewrites, such as a definition, a derivative or a split sum, must transform the line before into the line by that rewriting
alone, at any place in the line. A rule of algebra must suffice to make the two lines equal, with everything else treated as atoms, and it
must be needed: a line that follows by a weaker rule is refused. Every line must also be defined (no division by 0, no logarithm of a number
that may not be positive) and, independently of its rule, be accepted by symbolic.py, or by squares.py if it is an inequality. Each checker
refuses false lines alone, whatever the others would say. prove.py calls `refusal` for every line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from .derivation import DERIVATIONS, POSITIVE, TWO_CLASSES, Derivation, Step
from .expr import (
    RANGES,
    ROW_NAMES,
    D,
    Definition,
    E,
    Fact,
    Sum,
    bare,
    children,
    delta,
    exp,
    fresh,
    in_row,
    inside,
    letters,
    lift,
    matches,
    names,
    rebuild,
    reindex,
    same,
    tanh,
    unfold,
    walk,
)  # fmt: skip
from .squares import refusal_by_squares
from .symbolic import Meaning, refusal_by_sympy
from .wellformed import ill_formed, may_use

ZERO, ONE = lift(0), lift(1)
Pairs = frozenset[frozenset[str]]


class Rule(NamedTuple):
    """A rule: what it says, the lemma of Softmax.v or of Coq's library that states it, and its checker."""

    says: str
    lemma: str
    holds: Callable[[Line], bool]


@dataclass(frozen=True)
class Line:
    """A step from a line to the next, with the facts that it may use."""

    derivation: Derivation
    before: E
    step: Step

    @property
    def after(self) -> E:
        return self.step.expr

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(filter(self.derivation.usable, (*self.derivation.given, *self.step.given)))

    @cached_property
    def apart(self) -> Pairs:
        return frozenset(frozenset((a, b)) for a, b in self.derivation.distinct if a != b)

    def meaning(self, **off: bool) -> Meaning:
        return replace(Meaning(self.derivation, self.facts), **off)  # type: ignore[arg-type]

    def rewrites(self, rewrite: Callable[[E, E, Pairs], Iterator[E]], before: E | None = None, after: E | None = None) -> bool:
        """Whether `after` is `before` with some nodes rewritten. `rewrite` receives a node, its counterpart, and which indices differ."""
        before, after = before or self.before, after or self.after
        return not same(before, after) and _leads(before, after, rewrite, self.apart)


def _leads(before: E, after: E, rewrite: Callable[[E, E, Pairs], Iterator[E]], apart: Pairs) -> bool:
    b, a = inside(before), inside(after)
    if same(b, a) or any(same(x, a) for x in rewrite(b, a, apart)):
        return True
    if b.op != a.op or len(b.args) != len(a.args):
        return False
    if b.op == "sum":
        (i, but, f), (j, but_too, h) = b.args, a.args
        if but != but_too or RANGES[i] != RANGES[j]:
            return False
        own = fresh(i, {*letters(f), *letters(h), *(x for pair in apart for x in pair)})  # not an index from outside the sum
        return _leads(reindex(f, {i: own}), reindex(h, {j: own}), rewrite, apart | ({frozenset((own, but))} if but else set()))
    return all(_leads(x, y, rewrite, apart) if isinstance(x, E) else x == y for x, y in zip(b.args, a.args, strict=True))


# ---------------------------------------------------------------- rules that rewrite


def _unfolded(e: E, uses: tuple[str, ...], definitions: dict[str, Definition]) -> E:
    """Return `e` with the names in `uses` replaced by their definitions, except inside a derivative with respect to them."""
    if e.op == "sum":
        index, but, body = e.args
        outside = {i for u in uses for i in letters(definitions[u].body) - set(definitions[u].head.args[1:])}
        if index in outside:  # the index t of a definition is the label, and not the index of this sum
            own = fresh(index, outside | letters(body))
            index, body = own, reindex(body, {index: own})
        return Sum(index, _unfolded(body, uses, definitions), but)
    if e.op == "D":
        by = e.args[1].args[0]
        return D(_unfolded(e.args[0], tuple(u for u in uses if u != by), definitions), e.args[1])
    if e.op == "at" and e.args[0] in uses:
        return _unfolded(unfold(e, definitions[e.args[0]]), tuple(u for u in uses if u != e.args[0]), definitions)
    return rebuild(e, lambda x: _unfolded(x, uses, definitions))


def definition(line: Line) -> bool:
    uses, known = line.step.uses, line.derivation.known
    if not uses or not set(uses) <= set(known) or same(line.before, line.after):
        return False

    def alike(some: tuple[str, ...]) -> bool:
        return same(_unfolded(line.before, some, known), _unfolded(line.after, some, known))

    return alike(uses) and not any(alike(tuple(u for u in uses if u != left_out)) for left_out in uses)


def recognise(line: Line) -> bool:
    """A name replaces its definition, with the use of v/v = 1."""
    uses, known = line.step.uses, line.derivation.known
    if not uses or not set(uses) <= set(known):
        return False

    def alike(some: tuple[str, ...]) -> bool:
        before, after = (_unfolded(e, some, known) for e in (line.before, line.after))
        return not same(before, after) and _equal(line, "fractions", before, after)

    return alike(uses) and not any(alike(tuple(u for u in uses if u != left_out)) for left_out in uses)


def quotient_rule(line: Line) -> bool:
    def rewrite(e: E, _: E, __: Pairs) -> Iterator[E]:
        if e.op == "D":
            f, x = e.args
            known = line.derivation.known
            f = _unfolded(f, (f.args[0],), known) if f.op == "at" and f.args[0] in known and f.args[0] != x.args[0] else f
            if f.op == "/":
                u, v = f.args
                yield (D(u, x) * v - u * D(v, x)) / v**2

    return line.rewrites(rewrite)


def _mentions(line: Line, f: E, x: E) -> list[E]:
    """Return the entries of the vector of x that occur in f, with definitions substituted."""
    if any(e.op == "D" for e in walk(f)):
        raise NotImplementedError("a derivative inside another")
    known = {n: d for n, d in line.derivation.known.items() if n != x.args[0]}
    while open_ := names(f) & set(known):
        f = _unfolded(f, tuple(open_), known)
    return [e for e in walk(bare(f)) if e.op == "at" and e.args[0] == x.args[0]]


def _free_of(line: Line, f: E, x: E, apart: Pairs) -> bool:
    """Whether f does not contain x, because none of the entries in it can be x."""
    mentioned = _mentions(line, f, x)
    if any(len(e.args) != len(x.args) for e in mentioned):  # an entry of one row and of any row
        return False
    return all(any(frozenset(pair) in apart for pair in zip(e.args[1:], x.args[1:], strict=True)) for e in mentioned)


def constant(line: Line) -> bool:
    def rewrite(e: E, _: E, apart: Pairs) -> Iterator[E]:
        if e.op == "D" and _free_of(line, e.args[0], e.args[1], apart):
            yield ZERO

    return line.rewrites(rewrite)


def coordinate(line: Line) -> bool:
    def rewrite(e: E, _: E, apart: Pairs) -> Iterator[E]:
        if e.op != "D":
            return
        f, x = e.args
        if same(f, x):
            yield ONE
        elif f.op == "at" and f.args[0] == x.args[0]:
            if _free_of(line, f, x, apart):
                yield ZERO
            elif len(x.args) == 2:
                yield from (delta(*at) for at in ((f.args[1], x.args[1]), (x.args[1], f.args[1])))
        elif f.op == "/" and same(f.args[0], x) and _free_of(line, f.args[1], x, apart):
            yield 1 / f.args[1]

    return line.rewrites(rewrite)


def _derivative_of(op: str, outer: Callable[[E], E]) -> Callable[[Line], bool]:
    """d g(f)/dx = g'(f) df/dx."""

    def holds(line: Line) -> bool:
        def rewrite(e: E, _: E, apart: Pairs) -> Iterator[E]:
            if e.op != "D" or inside(e.args[0]).op != op:
                return
            f, x = inside(e.args[0]).args[0], e.args[1]
            if op == "^" and inside(e.args[0]).args[1] != lift(2):
                return
            yield outer(f) * D(f, x)
            if same(f, x):
                yield outer(f)
            if _free_of(line, f, x, apart):
                yield ZERO

        return line.rewrites(rewrite)

    return holds


def linearity(line: Line) -> bool:
    """Compare the lines after moving every derivative inside sums and constant factors."""

    def pushed(e: E, within: Pairs = line.apart) -> E:
        apart = frozenset(pair for pair in within if e.op != "sum" or e.args[0] not in pair)
        if e.op != "D":
            return rebuild(e, lambda y: pushed(y, apart))
        f, x = inside(e.args[0]), e.args[1]
        free = [isinstance(y, E) and _free_of(line, y, x, apart) for y in f.args]
        if _free_of(line, f, x, apart):
            return ZERO
        if f.op in ("+", "-", "neg"):
            return rebuild(f, lambda y: pushed(D(y, x), apart))
        if f.op == "sum" and f.args[1] is None and f.args[0] not in x.args:
            return pushed(Sum(f.args[0], D(f.args[2], x)), apart)
        if f.op == "*" and any(free):
            a, b = f.args[0], f.args[1]
            return E("*", (a, pushed(D(b, x), apart)) if free[0] else (pushed(D(a, x), apart), b))
        if f.op == "/" and free[1]:
            return E("/", (pushed(D(f.args[0], x), apart), f.args[1]))
        return D(f, x)

    before, after = line.before, line.after
    return _alike(pushed(before), pushed(after), 1) and not _alike(before, after, 1)


def product_rule(line: Line) -> bool:
    def rewrite(e: E, _: E, __: Pairs) -> Iterator[E]:
        if e.op == "D" and inside(e.args[0]).op == "*":
            (f, h), x = inside(e.args[0]).args, e.args[1]
            yield D(f, x) * h + f * D(h, x)

    return line.rewrites(rewrite)


def tanh_by_exp(line: Line) -> bool:
    def rewrite(e: E, _: E, __: Pairs) -> Iterator[E]:
        if e.op == "tanh":
            w = exp(-(2 * e.args[0]))
            yield (1 - w) / (1 + w)

    return line.rewrites(rewrite)


def chain_rule(line: Line) -> bool:
    """dF/dx = sum_j dF/dw_j dw_j/dx, where F contains x only through the vector w."""

    def rewrite(e: E, after: E, _: Pairs) -> Iterator[E]:
        if e.op != "D" or after.op != "sum" or after.args[1] is not None:
            return
        f, x = e.args
        product = inside(after.args[2])
        if product.op != "*" or product.args[0].op != "D":
            return
        w = product.args[0].args[1]
        through = [u for u in _mentions(line, f, w) if u.args[0] == w.args[0]]
        known = {n: d for n, d in line.derivation.known.items() if n != w.args[0]}
        while open_ := names(f) & set(known):
            f = _unfolded(f, tuple(open_), known)
        if after.args[0] in letters(e):  # it would not be the index of this sum
            return
        if w.args[1:] == (after.args[0],) and w.args[0] in line.derivation.known and through and x.args[0] not in names(f):
            yield Sum(after.args[0], D(e.args[0], w) * D(w, x))

    return line.rewrites(rewrite)


def _split(e: E, after: E, _: Pairs) -> Iterator[E]:
    if e.op == "sum" and e.args[1] is None and after.op == "+":
        rest = inside(after.args[1])
        if rest.op == "sum" and rest.args[1] is not None and RANGES[rest.args[1]] == RANGES[e.args[0]]:
            i, _, body = e.args
            yield reindex(body, {i: rest.args[1]}) + Sum(i, body, but=rest.args[1])


def split(line: Line) -> bool:
    return line.rewrites(_split)


def join(line: Line) -> bool:
    return line.rewrites(_split, line.after, line.before)


def result(line: Line) -> bool:
    """The start of another derivation is replaced by its end, the last line whose facts are given here, or the end by the start."""

    def found_equations() -> Iterator[tuple[Derivation, E, E]]:
        for name in line.step.uses:
            used = DERIVATIONS.get(name)
            if used is None or not may_use(line.derivation, used, line.facts):
                continue
            yield from _reached(line, used)
            if {one.name for one in used.where} <= ROW_NAMES:
                yield from _reached(line, _of_a_row(used))

    equations = tuple(found_equations())

    def rewriter(backwards: bool) -> Callable[[E, E, Pairs], Iterator[E]]:
        def rewrite(e: E, _: E, apart: Pairs) -> Iterator[E]:
            for used, start, end in equations:
                left, right = (end, start) if backwards else (start, end)
                label = {"t", *(i for one in used.where for i in letters(one.body) - set(one.head.args[1:]))}
                found: dict[str, str] = {}
                fits = matches(left, e, found) and all(found.get(i, i) == i for i in label)
                if fits and all(frozenset((found.get(a, a), found.get(b, b))) in apart for a, b in used.distinct):
                    yield reindex(right, found)

        return rewrite

    return line.rewrites(rewriter(False)) or line.rewrites(rewriter(True))


def _of_a_row(used: Derivation) -> Derivation:
    """Return the derivation for a row r of a batch."""

    def facts(given: tuple[Fact, ...]) -> tuple[Fact, ...]:
        return tuple(
            fact if fact == POSITIVE else replace(fact, left=in_row(fact.left, "r"), right=in_row(fact.right, "r")) for fact in given
        )

    steps = tuple(step._replace(expr=in_row(step.expr, "r"), given=facts(step.given)) for step in used.steps)
    return used._replace(start=in_row(used.start, "r"), steps=steps, given=facts(used.given))


def _reached(line: Line, used: Derivation) -> Iterator[tuple[Derivation, E, E]]:
    """Yield the equation of the start with the last line whose facts are given in `line`, if there is one."""
    stop = (n for n, step in enumerate(used.steps) if not set(step.given) <= set(line.facts) or step.rel != "=")
    last = next(stop, len(used.steps))
    if last and set(used.given) - {POSITIVE} <= set(line.facts):
        yield used, *used.upto(last)


def given(line: Line) -> bool:
    def rewrite(e: E, _: E, __: Pairs) -> Iterator[E]:
        for fact in set(line.step.given) & set(line.facts):
            if fact.rel == "=" and same(e, fact.left):
                yield fact.right

    # a fact about the values at a point must not be used inside a derivative
    derived = any(x.op == "D" for x in walk(line.before))
    return not derived and line.rewrites(rewrite)


def one_hot(line: Line) -> bool:
    def rewrite(e: E, _: E, apart: Pairs) -> Iterator[E]:
        if e.op == "delta" and (e.args[0] == e.args[1] or frozenset(e.args) in apart):
            yield ONE if e.args[0] == e.args[1] else ZERO

    return line.rewrites(rewrite)


def one_term(line: Line) -> bool:
    def rewrite(e: E, after: E, _: Pairs) -> Iterator[E]:
        if e.op == "sum" and e.args[1] is None:
            i, _, body = e.args
            factors = _factors(body)
            pick = next((f for f in factors if f.op == "delta" and i in f.args and len(set(f.args)) == 2), None)
            if pick is not None and len({RANGES[x] for x in pick.args}) == 1:
                factors.remove(pick)
                rest = ONE
                for f in factors:
                    rest = rest * f if rest != ONE else f
                other = next(x for x in pick.args if x != i)
                if _alike(reindex(rest, {i: other}), after, 0):
                    yield after

    return line.rewrites(rewrite)


def _factors(e: E) -> list[E]:
    e = inside(e)
    return [f for x in e.args for f in _factors(x)] if e.op == "*" else [e]


def count(line: Line) -> bool:
    def rewrite(e: E, _: E, __: Pairs) -> Iterator[E]:
        if e.op == "sum" and e.args[1] is None and e.args[0] not in letters(e.args[2]):
            yield E("at", (RANGES[e.args[0]],)) * e.args[2]

    return line.rewrites(rewrite)


# ---------------------------------------------------------------- rules of algebra, from the weakest to the strongest

_ATOMS = {"unfold": False, "differentiate": False, "exps": False, "logs": False, "pick": False}
_LEVELS = ("regroup", "zero and one", "opposites", "distribute", "fractions")


def _equal(line: Line, level: str, before: E, after: E) -> bool:
    """Whether the two are equal by the laws up to `level`, with everything else treated as atoms."""
    n = _LEVELS.index(level)
    if n < 3:
        return _alike(before, after, n)
    return bool(line.meaning(**_ATOMS, divide=level == "fractions").residual(before, after) == 0)


def _algebra(level: str, needed: Callable[[E, E], bool] = lambda before, after: True) -> Callable[[Line], bool]:
    def holds(line: Line) -> bool:
        weaker = _LEVELS[: _LEVELS.index(level)]
        b, a = line.before, line.after
        return not same(b, a) and needed(b, a) and not any(_equal(line, w, b, a) for w in weaker) and _equal(line, level, b, a)

    return holds


def _brackets(e: E) -> int:
    """Return how many factors are sums."""
    parts = {"*": e.args, "@": e.args, "/": e.args[:1]}.get(e.op, ())
    return sum(inside(x).op in ("+", "-", "sum") for x in parts) + sum(map(_brackets, children(e)))


def _size(e: E) -> int:
    return sum(1 for x in walk(e) if x.op != "()")


def _alike(a: E, b: E, level: int) -> bool:
    return bool(_normal(a, level) == _normal(b, level))


def _normal(e: E, level: int) -> Any:
    """Return a normal form up to order and grouping (level 0), also up to zeros and ones (1), also up to opposites that cancel (2)."""
    terms = _terms(bare(e), level)
    return tuple(sorted(((key, n) for key, n in terms.items() if n), key=str))


def _terms(e: E, level: int) -> Counter[Any]:
    """Return e as a sum: how often each product occurs in it."""
    if e.op in ("+", "-"):
        left, right = (_terms(x, level) for x in e.args)
        out: Counter[Any] = Counter(left)
        for key, n in right.items():
            sign = -1 if e.op == "-" else 1
            if level < 2 and n * out[key] * sign < 0:  # opposites do not cancel at this level
                key = (*key, ("opposite", 1))
            out[key] += sign * n
        return out
    if e.op == "neg" and (level == 2 or e.args[0].op not in ("+", "-")):
        return Counter({key: -n for key, n in _terms(e.args[0], level).items()})
    sign, factors = _product(e, level)
    if level and factors.get("0", 0) > 0:
        return Counter()
    inner = [f for f, n in factors.items() if n]
    if len(inner) == 1 and factors[inner[0]] == 1 and isinstance(inner[0], tuple) and inner[0][0] == "+":
        return Counter({key: sign * n for key, n in inner[0][1]})
    return Counter({tuple(sorted(((f, n) for f, n in factors.items() if n), key=str)): sign})


def _product(e: E, level: int) -> tuple[int, Counter[Any]]:
    """Return e as a product: its sign, and how often each factor occurs in it."""
    if e.op == "neg":
        sign, factors = _product(e.args[0], level)
        return -sign, factors
    if e.op == "*":
        (s, a), (t, b) = (_product(x, level) for x in e.args)
        return s * t, a + b
    if e.op == "/":
        (s, a), (t, b) = (_product(x, level) for x in e.args)
        a = Counter() if a == Counter({"1": 1}) else a  # 1/b is the factor b in the denominator; that b/b = 1 is a law of fractions
        return s * t, a + Counter({("below", tuple(sorted(b.items(), key=str))): 1})
    if e.op in ("+", "-", "()"):
        terms = _terms(e, level)
        key = tuple(sorted(((k, n) for k, n in terms.items() if n), key=str))
        if not key:
            return 1, Counter({"0": 1})
        if len(key) == 1 and abs(key[0][1]) == 1:
            return key[0][1], Counter(dict(key[0][0]))
        return 1, Counter({("+", key): 1})
    if e.op == "num":
        return 1, Counter() if level and e.args[0] == 1 else Counter({str(e.args[0]): 1})
    if e.op == "sum":
        body = _normal(e.args[2], level)
        return 1, Counter({"0": 1}) if level and not body else Counter({("sum", *e.args[:2], body): 1})
    if e.op in ("at", "delta"):
        return 1, Counter({(e.op, *e.args): 1})
    return 1, Counter({(e.op, *(_normal(x, level) if isinstance(x, E) else x for x in e.args)): 1})


def _seen_through(name: str) -> Callable[[Line], bool]:
    """Return the checker of the laws of exponentials or logarithms: the lines are equal with these laws and not without them."""

    def holds(line: Line) -> bool:
        without = line.meaning(**_ATOMS).residual(line.before, line.after)
        return bool(without != 0 and line.meaning(**{**_ATOMS, name: True}).residual(line.before, line.after) == 0)

    return holds


def no_negative_term(line: Line) -> bool:
    return line.step.rel == ">=" and same(line.after, ZERO) and not_negative(line, line.before)


# ---------------------------------------------------------------- signs, and whether a line is defined


def positive(line: Line, e: E) -> bool:
    e = inside(e)
    o, a = e.op, e.args
    if o == "num":
        return bool(a[0] > 0)
    if o == "at":
        softmax = a[0] == "yhat" and "yhat" in line.derivation.known
        return softmax or a[0] == "N" or any(f.rel == ">" and _states(f, e) for f in line.facts)
    if o in ("*", "/"):
        return all(positive(line, x) for x in a)
    if o == "+":
        return all(positive(line, x) for x in a)
    if o == "-":
        return False
    if o == "sum":  # there may be no features or rows, but there is at least one class
        return RANGES[a[0]] == "N" and positive(line, a[2]) and (a[1] is None or TWO_CLASSES in line.facts)
    return o == "exp" or (o == "^" and positive(line, a[0]))


def not_negative(line: Line, e: E) -> bool:
    e = inside(e)
    o, a = e.op, e.args
    if positive(line, e) or (o == "^" and a[1] == lift(2)):
        return True
    if o == "at":
        body = line.derivation.known.get(a[0])
        known = any(f.rel == ">=" and _states(f, e) for f in line.facts)
        return known or (body is not None and a[0] in line.step.uses and not_negative(line, unfold(e, body)))
    if o in ("*", "/", "+"):
        return all(not_negative(line, x) for x in a)
    return not_negative(line, a[2]) if o == "sum" else o == "num" and a[0] >= 0


def _states(fact: Fact, e: E) -> bool:
    """Whether the fact compares e with 0."""
    if fact.every is None or not same(fact.right, ZERO):
        return same(fact.right, ZERO) and same(fact.left, e)
    return any(RANGES[i] == RANGES[fact.every] and same(reindex(fact.left, {fact.every: i}), e) for i in letters(e))


def defined(line: Line, e: E) -> bool:
    """Whether each logarithm's argument is positive, each divisor is not 0, each number is a natural one and each power is a square."""
    if e.op == "num" and (type(e.args[0]) is not int or e.args[0] < 0):
        return False
    if e.op == "^" and e.args[1] != lift(2):
        return False
    if e.op == "log" and not positive(line, e.args[0]):
        return False
    if e.op == "/" and not positive(line, e.args[1]) and not any(f.rel == "!=" and _states(f, inside(e.args[1])) for f in line.facts):
        return False
    return all(defined(line, x) for x in children(e))


RULES = {
    "definition": Rule("A name and what it stands for may change places.", "", definition),
    "recognise": Rule("A fraction v/v is 1, and the rest is the definition of a name.", "", recognise),
    "quotient rule": Rule("(u/v)' = (u' v - u v') / v^2, where v is not 0.", "d_div", quotient_rule),
    "product rule": Rule("(u v)' = u' v + u v'.", "d_mul", product_rule),
    "linearity": Rule("(f + g)' = f' + g', and (c f)' = c f' for a constant c; so a derivative moves inside a sum.", "d_sum", linearity),
    "constant": Rule("The derivative of an expression that does not contain x is 0.", "d_const", constant),
    "coordinate": Rule(
        "With respect to x_k, the derivative of x_k is 1, that of x_k/c is 1/c, and that of any other x is 0. So that of x_j is delta_jk.",
        "coordinate_other",
        coordinate,
    ),
    "derivative of exp": Rule("(e^f)' = e^f f'.", "d_exp", _derivative_of("exp", exp)),
    "derivative of log": Rule("(log f)' = f'/f, where f > 0.", "d_ln", _derivative_of("log", lambda f: 1 / f)),
    "derivative of tanh": Rule("(tanh f)' = (1 - tanh^2 f) f'.", "d_tanh", _derivative_of("tanh", lambda f: 1 - tanh(f) ** 2)),
    "tanh": Rule("tanh f = (1 - w) / (1 + w), where w = e^(-2f).", "tanh_by_exp", tanh_by_exp),
    "derivative of a square": Rule("(f^2)' = 2 f f'.", "d_square", _derivative_of("^", lambda f: 2 * f)),
    "chain rule": Rule("If F contains x only through w_1, w_2, ..., then dF/dx = sum_j (dF/dw_j) (dw_j/dx).", "chain_rule", chain_rule),
    "split the sum": Rule("A sum is one of its terms, plus the sum of the others.", "sum_split", split),
    "join the sum": Rule("One term and the sum of the others is the whole sum.", "sum_split", join),
    "result": Rule("The result of another derivation.", "", result),
    "given": Rule("A fact that is given.", "", given),
    "one-hot": Rule("A one-hot truth is 1 at the class t and 0 at any other.", "delta", one_hot),
    "one term": Rule("Of a sum of terms times a one-hot truth, only the term at t remains.", "sum_delta", one_term),
    "count": Rule("N equal terms are N times one of them.", "sum_const", count),
    "regroup": Rule("The order and the grouping of terms and factors do not matter; a times 1/b is a/b.", "ring", _algebra("regroup")),
    "zero and one": Rule(
        "Adding 0 or multiplying by 1 changes nothing; 0 times anything is 0, and so is a sum of zeros.", "ring", _algebra("zero and one")
    ),
    "opposites": Rule("A term that is added and subtracted cancels.", "ring", _algebra("opposites")),
    "expand": Rule("a (b + c) = a b + a c, and so for sums.", "sum_scal", _algebra("distribute", lambda b, a: _brackets(a) < _brackets(b))),
    "factor": Rule("a b + a c = a (b + c), and so for sums.", "sum_scal", _algebra("distribute", lambda b, a: _brackets(a) > _brackets(b))),
    "distribute": Rule("a (b + c) = a b + a c, used in both directions in one line.", "sum_scal", _algebra("distribute")),
    "cancel": Rule(
        "A common factor of numerator and denominator that is not 0 cancels; then a bracket may be multiplied out.",
        "field",
        _algebra("fractions", lambda b, a: _size(a) < _size(b)),
    ),
    "fractions": Rule(
        "Fractions with the same denominator are added, fractions are multiplied, and v/v = 1.", "field", _algebra("fractions")
    ),
    "exponential": Rule("e^(a + b) = e^a e^b, and e^log a = a where a > 0.", "exp_plus", _seen_through("exps")),
    "logarithm": Rule(
        "log (a b) = log a + log b and log (a/b) = log a - log b for a, b > 0; log e^a = a.", "ln_mult", _seen_through("logs")
    ),
    "no negative term": Rule(
        "A sum of products without negative factors is not negative, and a square is not negative.", "sum_nonneg", no_negative_term
    ),
}


def refusal_by_rule(derivation: Derivation, n: int) -> str | None:
    """Return why line `n` of a derivation, counted from 1, does not follow by its rule from the line before, or None if it does."""
    line = Line(derivation, derivation.lines[n - 1], derivation.steps[n - 1])
    step = line.step
    if step.rule not in RULES:
        return f"there is no rule {step.rule!r}"
    if step.rel not in ("=", ">=") or (step.rel == ">=") != (step.rule == "no negative term"):
        return f"the rule {step.rule!r} does not give {step.rel}"
    try:
        if not all(defined(line, e) for e in (line.before, line.after, *(one.body for one in derivation.where))):
            return "it divides by what may be 0, or takes the logarithm of what may not be positive"
        holds = RULES[step.rule].holds(line)
    except (NotImplementedError, ValueError) as error:
        return str(error)
    return None if holds else f"it does not follow by {step.rule!r}" + (f" of {', '.join(step.uses)}" if step.uses else "")


def refusal(derivation: Derivation, n: int) -> str | None:
    """Return why line `n` of a derivation, counted from 1, is refused, or None if it is accepted.

    Its form and its rule are checked, and independently of them an equation by SymPy's normal form, and an inequality by sums of squares.
    """
    judge = refusal_by_sympy if derivation.steps[n - 1].rel == "=" else refusal_by_squares
    return ill_formed(derivation) or refusal_by_rule(derivation, n) or judge(derivation, n)
