"""Evaluate the derivation for a row of scores: every line with the numbers inserted, and its value.

The last line is compared with central differences of the loss and with the gradient of `cross_entropy_and_grad`. The result, an `Account`,
is shown by terminal.py as text and by `as_json` as JSON. The page (page.py) evaluates the lines in the browser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import numpy as np

from .. import contract, cross_entropy_and_grad
from ..partials import Array
from ..proof import bounds
from ..proof import derivation as book
from ..proof.derivation import Derivation, Part
from ..proof.expr import Definition, E, Fact, letters, names, walk
from ..proof.reading import SIGNS, latex, prose, text
from ..proof.replay import CONTEXT, EXAMPLE, Numbers, agree, short
from ..truth import truth as as_kernels_take_it
from . import reference
from .classes import close_to
from .row import Row

STEP = Decimal("1e-12")  # h of the central difference
NOUGHT = Decimal("1e-40")  # a smaller value, computed with 50 digits, may be an exact 0 plus rounding
ROUNDING = Decimal("1e-47")  # the relative rounding error of a sum of a few positive numbers, with 50 digits
GIVEN = (
    "N",
    "v",
    "w",
    "u",
    "W",
    "b",
    "x",
    *EXAMPLE,
    "m",
    "m1",
    "m2",
    "s1",
    "s2",
    "u1",
    "u2",
    *("A1", "A2", "B1", "B2"),
    "off",
)  # names that a derivation may use besides the scores and the truth


class Line(NamedTuple):
    """A line of a derivation with its value. `step` is None for the first line. `lemmas` are shown inside the step."""

    expr: E
    step: book.Step | None
    filled: E
    value: Decimal
    holds: bool  # whether the conditions of the line are satisfied by this row
    agrees: bool  # whether its value is that of the line before, for all values of the indices; True if the line does not hold
    covered: bool  # whether the digits cover every cancellation; if not, a value of 0 may be a small one
    lemmas: list[Replay]


class Replay(NamedTuple):
    """A derivation with its values. `at` has the places of its indices."""

    derivation: Derivation
    at: dict[str, int]
    given: list[tuple[E, Any]]  # the names that it uses besides the scores and the truth, and their values: Decimals or lists of them
    lines: list[Line]
    choices: int  # the number of values of the indices for which all lines were compared
    apart: Decimal  # the largest relative difference between a line and the line before

    @property
    def agrees(self) -> bool:
        return all(line.agrees and all(lemma.agrees for lemma in line.lemmas) for line in self.lines)


class Formula(NamedTuple):
    """A formula of a remark, with the numbers inserted, and its value if it has one."""

    formula: Definition | E
    filled: E | None = None
    value: Decimal | None = None


class Section(NamedTuple):
    """A part of the derivation with its values: its remarks and its derivations."""

    part: Part
    remarks: list[tuple[str, list[Formula]]]
    replays: list[Replay]


class End(NamedTuple):
    """Prediction - truth at every place, and the two gradients with which it is compared."""

    line: E
    mass: Decimal
    yhat: list[Decimal]
    gradient: list[Decimal]
    slopes: list[Decimal]  # central differences of the loss
    slope_error: Decimal  # a bound on the error of the slopes
    loss: Decimal
    ours: list[float]  # the gradient of cross_entropy_and_grad
    masked: list[float]  # the same at the masked classes, where it must be 0
    bound: list[Decimal]  # bounds on |ours - gradient|
    our_loss: float
    loss_bound: Decimal

    @property
    def slopes_agree(self) -> bool:
        return all(abs(a - b) <= self.slope_error for a, b in zip(self.gradient, self.slopes, strict=True))

    @property
    def ours_agrees(self) -> bool:
        entries = zip([*self.gradient, self.loss], [*self.ours, self.our_loss], [*self.bound, self.loss_bound], strict=True)
        return not any(self.masked) and all(abs(Decimal(b) - a) <= limit for a, b, limit in entries)


class Account(NamedTuple):
    """All that `softxent explain` shows."""

    row: Row
    definitions: list[tuple[Definition, E, Decimal]]  # those that no remark introduces, with the numbers inserted, and their values
    sections: list[Section]
    end: End

    @property
    def replays(self) -> list[Replay]:
        """All derivations in the order of reading: a lemma comes before the derivation inside which it is shown."""
        return [one for section in self.sections for whole in section.replays for one in _with_lemmas(whole)]

    @property
    def agrees(self) -> bool:
        return self.end.slopes_agree and self.end.ours_agrees and all(one.agrees for one in self.replays)

    @property
    def truth_note(self) -> str:
        """A sentence for a row whose truth is not one-hot, or an empty string."""
        if _one_hot(self.row):
            return ""
        if self.end.mass == 1:
            return "The truth of this row is not one-hot, but its entries sum to 1 as well, so that the last steps hold."
        p = short(self.end.mass, 6)
        return f"The truth of this row is not one-hot: its entries sum to p = {p}, and p takes the place of 1 in the last steps."


def _with_lemmas(one: Replay) -> Iterator[Replay]:
    for line in one.lines:
        for lemma in line.lemmas:
            yield from _with_lemmas(lemma)
    yield one


def _one_hot(row: Row) -> bool:
    return sorted(row.truth) == [0] * (len(row.truth) - 1) + [1]


def chosen(fn: str, wanted: Sequence[str], everything: bool = False) -> list[tuple[Part, tuple[Derivation, ...]]]:
    """Return the derivations with these names, without remarks. Without names, return all parts, or those of the article."""
    parts = {one.name: (part._replace(remarks=()), (one,)) for part in book.PARTS for one in part.derivations}
    for name in wanted:
        if name not in parts:
            contract.fail(
                fn, "name", "be one that softxent explain --list shows", f"{contract.shown(name)} (close to it: {close_to(name, parts)})"
            )
    return [parts[name] for name in wanted] or [(part, part.chains) for part in (book.PARTS if everything else book.ARTICLE)]


def account(row: Row, parts: Iterable[tuple[Part, tuple[Derivation, ...]]]) -> Account:
    """Evaluate the derivations for a row, and compare the last line with the slopes of the loss and with cross_entropy_and_grad."""
    with localcontext(CONTEXT):
        end = _end(row)
        sections = [_section(row, part, derivations, end) for part, derivations in parts]
        result = Account(row, [], sections, end)
        introduced = {f.formula for section in sections for _, formulas in section.remarks for f in formulas}
        needed = [one for one in _definitions(row, [one.derivation for one in result.replays]) if one[0] not in introduced]
        return result._replace(definitions=needed)


def _section(row: Row, part: Part, derivations: tuple[Derivation, ...], end: End) -> Section:
    if part.remarks and book.GRADIENT in derivations and end.mass != 1:
        derivations = (*derivations, book.GENERAL)  # it has p where the article has 1
    remarks = [(one.words, [_formula(row, f) for f in one.formulas]) for one in part.remarks]
    return Section(part, remarks, [_replay(row, part, one, _roles(row, one)) for one in derivations])


def _formula(row: Row, formula: Definition | E) -> Formula:
    """Evaluate a formula of a remark, unless it depends on j or k, which have no value before a case is chosen."""
    if isinstance(formula, E) or letters(formula.body) or not names(formula.body) <= {"z", "y", "yhat"}:
        return Formula(formula)
    on = _numbers(row, book.GENERAL)
    return Formula(formula, _bare(on.fill(formula.body)), on.value(formula.body))


def _roles(row: Row, derivation: Derivation) -> dict[str, int]:
    """Return the places of the indices. If a derivation has j but not k, j has the place of k, so that the case j = k keeps one class."""
    free = {i for line in derivation.lines for i in letters(line)}
    return {"j": row.j if "k" in free else row.k, "k": row.k, "t": row.label}


def _numbers(row: Row, derivation: Derivation, scores: Sequence[Any] | None = None) -> Numbers:
    truth: Sequence[Any] = row.truth
    return Numbers(derivation, row.scores if scores is None else scores, truth, row.label)


def _spoken_of(derivation: Derivation) -> set[str]:
    """Return the names in the lines, in the definitions of these names, and so on."""
    known, found = derivation.definitions, {n for line in derivation.lines for n in names(line)}
    while more := {n for name in found & set(known) for n in names(known[name].body)} - found:
        found |= more
    return found


def _definitions(row: Row, derivations: list[Derivation]) -> list[tuple[Definition, E, Decimal]]:
    used = {name for one in derivations for name in _spoken_of(one)}
    at, on = {"t": row.label, "j": row.j, "k": row.k}, _numbers(row, book.GENERAL)
    return [(one, _bare(on.fill(one.body, at)), on.value(one.body, at)) for one in book.DEFINITIONS if one.name in used]


def _replay(row: Row, part: Part, derivation: Derivation, roles: dict[str, int]) -> Replay:
    on = _numbers(row, derivation)
    places = on.places()
    at = {i: roles.get(i, 0) for i in places[0]}
    holds = [all(_so(on, fact) for fact in derivation.given)]
    for step in derivation.steps:
        holds.append(holds[-1] and all(_so(on, fact) for fact in step.given))
    rels = [step.rel for step in derivation.steps]
    good, apart = [True] * len(holds), Decimal(0)
    for place in places:
        values = on.values(place)
        for n, (a, b, rel) in enumerate(zip(values, values[1:], rels, strict=False), 1):
            if holds[n]:
                good[n] = good[n] and agree(a, b, rel)
                apart = max(apart, abs(a - b) / (1 + abs(a)) if rel == "=" else Decimal(0))
    values = on.values(at)
    lines = [
        Line(e, step, _bare(on.fill(e, at)), _clean(value, values), held, fits, on.covered, lemmas)
        for e, step, value, held, fits, lemmas in zip(
            derivation.lines, (None, *derivation.steps), values, holds, good, _lemmas(row, part, derivation, roles), strict=True
        )
    ]
    return Replay(derivation, at, _given(on, derivation), lines, len(places), apart)


def _lemmas(row: Row, part: Part, derivation: Derivation, roles: dict[str, int]) -> Iterator[list[Replay]]:
    """Evaluate the lemmas inside each line. The lemma that the truth is one-hot is left out if the truth of the row is not."""
    yield []
    for n, step in enumerate(derivation.steps):
        shown = [one for one in part.lemmas(derivation, n) if one.name not in step.because or _one_hot(row)]
        yield [_replay(row, part, one, roles) for one in shown]


def _bare(e: E) -> E:
    inner = e.args[0] if e.op == "()" else None
    return inner if isinstance(inner, E) else e


def _clean(value: Decimal, values: list[Decimal]) -> Decimal:
    """Return 0 for a value that is 0 apart from rounding."""
    return Decimal(0) if value == 0 or (values[-1] == 0 and abs(value) < NOUGHT) else value


def _so(on: Numbers, fact: Fact) -> bool:
    places = [{fact.every: n} for n in range(on.classes)] if fact.every else [{}]
    pairs = [(on.value(fact.left, at), on.value(fact.right, at)) for at in places]
    if fact.rel in ("=", "!="):
        return all(agree(a, b) == (fact.rel == "=") for a, b in pairs)
    return all(a > b if fact.rel == ">" else a >= b for a, b in pairs)


def _given(on: Numbers, derivation: Derivation) -> list[tuple[E, Any]]:
    used = _spoken_of(derivation) - set(derivation.definitions)
    of_a_batch = any("r" in e.args for line in derivation.lines for e in walk(line))
    values = on.given | {"N": Decimal(on.classes)} | ({"x": on.given["x/rows"]} if of_a_batch else {})
    return [(E("at", (name,)), values[name]) for name in GIVEN if name in used]


def _end(row: Row) -> End:
    on = _numbers(row, book.GRADIENT)
    classes = range(len(row.scores))
    sums_to_1 = all(_so(on, fact) for step in book.GRADIENT.steps for fact in step.given)
    line = (book.GRADIENT if sums_to_1 else book.GENERAL).lines[-1]
    scores = [Decimal(s) for s in row.scores]
    mass, loss, gradient = on.value(book.p), reference.loss(scores, row.truth), reference.gradient(scores, row.truth)
    yhat = [on.value(book.yhat[book.k], {"k": n}) for n in classes]
    dz, our_loss, bounds_of_dz, loss_bound = _ours(row)
    slopes = [(_moved(row, n, STEP) - _moved(row, n, -STEP)) / (2 * STEP) for n in classes]
    error = mass * STEP**2 / 60 + loss * ROUNDING / STEP  # |L'''| = mass q(1-q)|1-2q| < mass/10, q = yhat_k; and the rounding of two losses
    typed = Decimal(
        0.0 if isinstance(row.labels, int) else bounds.unit(row.logits.dtype)
    )  # the rounding of probabilities to the dtype of the logits
    lump = Decimal(bounds.sum_bound("float64", len(row.logits)) if row.rest else 0.0)  # the rounding of the log-sum-exp of the rest
    limits = [
        Decimal(b) + typed * (t + mass * q) + lump * mass * q + abs(g) * ROUNDING
        for b, t, q, g in zip(row.places(bounds_of_dz), row.truth, yhat, gradient, strict=True)
    ]
    limit = Decimal(loss_bound) + typed * (loss + row.astray) + lump * mass * yhat[-1] + loss * ROUNDING
    ours = row.places(dz)
    return End(line, mass, yhat, gradient, slopes, error, loss + row.astray, ours, row.at_masked(dz), limits, our_loss, limit)


def _moved(row: Row, place: int, by: Decimal) -> Decimal:
    """Return the loss with one score changed. It does not use the gradient."""
    with localcontext(reference.EXACT):
        scores = [Decimal(s) + (by if n == place else 0) for n, s in enumerate(row.scores)]
    return reference.loss(scores, row.truth)


def _ours(row: Row) -> tuple[Array, float, Array, float]:
    """Return the gradient [C] and the loss of cross_entropy_and_grad, and bounds on their rounding errors."""
    z, labels = row.logits[None], np.asarray(row.labels)[None]
    loss, dz = cross_entropy_and_grad(z, labels, reduction="sum")
    taken = as_kernels_take_it("explain", labels, z, -1, reduction="sum")
    label, _, off = taken.given(z.dtype)
    loss_bound, bound = bounds.row_bounds(z, label, taken.rows, off)
    return dz[0].astype(np.float64), float(loss), bound[0], float(loss_bound[0])


# ---------------------------------------------------------------- HTML and JSON


def as_html(row: Row, only: Sequence[str] = (), beyond: bool = False) -> str:
    """Return the page of a row, with all derivations or those named. `beyond` opens the parts beyond the article."""
    from .page import page

    if not isinstance(row.labels, int):
        contract.fail("explain", "the page", "come with a label, which it lets one change", "probabilities")
    place = {entry.place: n for n, entry in enumerate(row.entries)}
    return page(
        [entry.score for entry in row.entries], place[row.label], [entry.name for entry in row.entries],
        j=place[row.j], k=place[row.k], only=only, beyond=beyond, note=" ".join(row.notes),
    )  # fmt: skip


def as_json(account: Account) -> dict[str, Any]:
    """Return an account as dicts, lists, strings and numbers. A value is given as a float (None beyond its range) and as a string."""
    row, end = account.row, account.end
    return {
        "agrees": account.agrees,
        "row": {
            "classes": len(row.logits), "dtype": str(row.logits.dtype), "shown": list(row.shown), "rest": row.rest,
            "masked": list(row.masked), "names": list(row.names), "scores": [_number(Decimal(s)) for s in row.scores],
            "label": row.label, "j": row.j, "k": row.k,
        },
        "definitions": [
            {"name": one.name, **_both(one.head, one.body), "filled": text(filled), **_value(value)}
            for one, filled, value in account.definitions
        ],
        "truth_note": account.truth_note,
        "parts": [_part(section) for section in account.sections],
        "line": {"text": text(end.line), "latex": latex(end.line)},
        "mass": _number(end.mass),
        "yhat": [*map(_number, end.yhat)],
        "y": [*map(_number, row.truth)],
        "gradient": [*map(_number, end.gradient)],
        "loss": _number(end.loss),
        "decimals": {"gradient": [*map(str, end.gradient)], "loss": str(end.loss)},
        "central_difference": {
            "step": float(STEP), "values": [*map(_number, end.slopes)], "error": _number(end.slope_error), "agrees": end.slopes_agree,
        },
        "ours": {
            "function": "softxent.cross_entropy_and_grad", "gradient": end.ours, "masked": end.masked, "bound": [*map(_number, end.bound)],
            "loss": end.our_loss, "loss_bound": _number(end.loss_bound), "agrees": end.ours_agrees,
        },
    }  # fmt: skip


def _part(section: Section) -> dict[str, Any]:
    return {
        "title": section.part.title,
        "remarks": [{"words": prose(words), "formulas": [_shown(one) for one in formulas]} for words, formulas in section.remarks],
        "derivations": [_derivation(one) for one in section.replays],
    }


def _shown(one: Formula) -> dict[str, Any]:
    f = one.formula
    written = {"text": text(f), "latex": latex(f)} if isinstance(f, E) else _both(f.head, f.body)
    return written | ({} if one.value is None or one.filled is None else {"filled": text(one.filled), **_value(one.value)})


def _derivation(one: Replay) -> dict[str, Any]:
    return {
        "name": one.derivation.name, "title": prose(one.derivation.title), "result": prose(one.derivation.result), "at": one.at,
        "agrees": one.agrees, "choices": one.choices, "apart": _number(one.apart),
        "where": [_both(own.head, own.body) for own in one.derivation.where],
        "with": {text(name): _plain(value) for name, value in one.given}, "lines": [_line(line) for line in one.lines],
    }  # fmt: skip


def _line(line: Line) -> dict[str, Any]:
    step = line.step
    return {
        "text": text(line.expr), "latex": latex(line.expr), "relation": step and step.rel, "rule": step and step.rule,
        "reason": step and prose(step.why), "uses": list(step.uses) if step else [],
        "given": [fact(one) for one in step.given] if step else [], "because": list(step.because) if step else [],
        "lemmas": [_derivation(one) for one in line.lemmas],
        "filled": text(line.filled), **_value(line.value), "holds": line.holds, "agrees": line.agrees, "covered": line.covered,
    }  # fmt: skip


def fact(one: Fact) -> str:
    every = f" for every {one.every}" if one.every else ""
    return f"{text(one.left)} {SIGNS[one.rel]} {text(one.right)}{every}"


def _both(head: E, body: E) -> dict[str, str]:
    return {"text": f"{text(head)} = {text(body)}", "latex": f"{latex(head)} = {latex(body)}"}


def _value(value: Decimal) -> dict[str, Any]:
    return {"value": _number(value), "decimal": str(value)}


def _number(x: Decimal) -> float | None:
    return float(x) if math.isfinite(float(x)) else None


def _plain(value: Any) -> Any:
    return [*map(_plain, value)] if isinstance(value, list) else _number(value)
