"""Small changes of a line of the derivation: of a sign, a term, a factor, an index, a name, a number, or the range of a sum.

test_proof.py checks that each change that makes a line false is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from softxent.proof.derivation import Derivation
from softxent.proof.expr import RANGES, E, letters, walk


def _here(e: E, scope: set[str]) -> Iterator[tuple[str, E]]:
    """Yield (kind, changed expression) for each change of the top node of e."""
    o, a = e.op, e.args
    if o in "+-":
        yield "flipped sign", E("-" if o == "+" else "+", a)
        yield "dropped term", a[0]
        yield "dropped term", a[1] if o == "+" else -a[1]
    if o == "-":
        yield "swapped sides", E("-", a[::-1])
    if o in "*@/":
        yield "dropped factor", a[0]
        yield ("dropped factor", a[1]) if o != "/" else ("swapped sides", E("/", a[::-1]))
    if o == "neg":
        yield "flipped sign", a[0]
    if o in ("at", "exp", "log", "tanh", "sum", "D", "delta", "/"):
        yield "flipped sign", E("()", (-e,))
    if o == "^":
        yield "dropped power", a[0]
        yield "another power", E("^", (a[0], E("num", (a[1].args[0] + 1,))))
    if o in ("exp", "log", "tanh"):
        yield "dropped function", a[0]
    if o == "num":
        yield "another number", E("num", (a[0] + 1,))
    if o in ("at", "delta"):
        for n in range(o == "at", len(a)):
            for i in sorted(scope):
                if i != a[n] and RANGES[i] == RANGES[a[n]]:
                    yield "swapped index", E(o, (*a[:n], i, *a[n + 1 :]))
    if o == "at" and a[0] in ("y", "yhat", "w", "u", "v") and len(a) == 2:
        yield "swapped vector", E("at", ("yhat" if a[0] != "yhat" else "y", a[1]))
    if o == "sum":
        others = [i for i in sorted(scope) if RANGES[i] == RANGES[a[0]] and i not in a[:2]]
        for but in [*others, None] if a[1] else others:
            yield "another range", E("sum", (a[0], but, a[2]))


def mutants(e: E, scope: set[str]) -> Iterator[tuple[str, E]]:
    yield from _here(e, scope)
    for n, child in enumerate(e.args):
        if isinstance(child, E):
            inner = scope | ({e.args[0]} if e.op == "sum" else set())
            for kind, m in mutants(child, inner):
                if not (e.op == "D" and n == 1 and m.op != "at"):  # the variable of a derivative must be an entry of a vector
                    yield kind, replace(e, args=(*e.args[:n], m, *e.args[n + 1 :]))


def mutated(derivation: Derivation) -> Iterator[tuple[int, str, Derivation]]:
    """Yield (line, kind, changed derivation) for every change of every line."""
    scope = {i for line in derivation.lines for i in letters(line)}
    for n, step in enumerate(derivation.steps):
        for kind, m in dict.fromkeys(mutants(step.expr, scope)):
            steps = (*derivation.steps[:n], step._replace(expr=m), *derivation.steps[n + 1 :])
            yield n + 1, kind, derivation._replace(steps=steps)


def nodes(e: E) -> int:
    return sum(1 for _ in walk(e))
