"""The page of `softxent explain --html`: the derivation as one HTML document whose scores, label and indices can be changed.

The lines are rendered here as MathML, with the values for the given scores. The expressions of the lines are in the page as JSON trees.
When a score, the label or an index changes, numbers.js evaluates these trees in decimal arithmetic (vendor/decimal.js), as replay.py does;
it contains no formula of the derivation. page.js handles the controls.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .. import contract
from ..proof.derivation import (
    ARTICLE,
    DERIVATIONS,
    GRADIENT,
    LABEL_APART,
    MISS,
    PARTS,
    RESULT_1,
    RESULT_2,
    Derivation,
    Part,
    Remark,
    Step,
    y,
    yhat,
)
from ..proof.expr import RANGES, Definition, E, Fact, Name, Sum, delta, exp, in_row, letters
from ..proof.reading import SIGNS, text, tree
from ..proof.replay import Numbers, short
from .formulas import formula, sentence
from .row import LARGEST

FEWEST, MOST = 2, 24  # classes: j != k needs two, and the heat map has a cell for each pair
REACH = 10  # the sliders range from -REACH to REACH, or further if a score does
OPEN = len(ARTICLE)
BAR = '<td><data></data><span class="bar"><span></span></span></td>'
CELL = '<td tabindex="-1"><data></data></td>'
HERE = Path(__file__).parent
At = Callable[[Derivation], tuple[Numbers, dict[str, int]]]  # from a derivation to its values and the places of its indices
SCRIPTS = {"theme": "theme.js", "decimal": "vendor/decimal.js", "numbers": "numbers.js", "script": "page.js"}
MASKED = -math.inf  # the score of a masked class

# The example values of replay.py as expressions of the scores, the label and the number of classes, so that the page can compute them when
# these change. The operations `max` and `rolled` occur only here, and place[k] is k + 1.
_score, _place, _W, _x, _z, _v = Name("score"), Name("place"), Name("W"), Name("x"), Name("z"), Name("v")
_FOLLOW = {
    "z": (("k",), _score["k"]),
    "x": (("k",), _score["k"]),
    "y": (("k",), delta("k", "t")),
    "y/rows": (("r", "k"), E("rolled", ("t", "r", "k"))),
    "u": (("k",), _place["k"] / Sum("i", _place["i"])),
    "b": (("k",), _score["k"] - Sum("d", _W["k", "d"] * _x["d"])),
    "m": ((), E("max", ("i", None, _score["i"]))),
} | {
    name + n: ((), body)
    for n, part in (("1", "first"), ("2", "last"))
    for name, body in (
        ("m", E("max", (part, None, _score[part]))),
        ("s", Sum(part, exp(_score[part] - Name("m" + n)[()]))),
        ("u", Sum(part, exp(_score[part] - Name("m" + n)[()]) * (Name("m" + n)[()] - _score[part]))),
        ("A", Sum(part, exp(_score[part] - Name("m" + n)[()]) * (Name("h" + n)[()] - _v[part]))),
        ("B", Sum(part, exp(_score[part] - Name("m" + n)[()]) * (Name("m" + n)[()] - _score[part]) * (Name("h" + n)[()] - _v[part]))),
    )
}

# What the tables show where yhat is near 1, in forms that do not cancel: LABEL_APART and MISS say that they are the same.
_OTHERS = Sum("i", exp(_z["i"]), but="k")
_APART = {
    "odds": LABEL_APART.lines[-1],  # the loss is log(1 + odds)
    "at_label": -MISS.lines[-1],  # yhat_t - 1
    "slope": yhat["k"] * (_OTHERS / Sum("i", exp(_z["i"]))),  # yhat_k (1 - yhat_k)
}


def page(
    scores: Sequence[float | Decimal],
    label: int,
    names: Sequence[str],
    *,
    j: int | None = None,
    k: int | None = None,
    only: Sequence[str] = (),
    beyond: bool = False,
    note: str = "",
) -> str:
    """Return the HTML document, with the derivation for these scores and this label, and with controls to change them.

    The document needs no other file and no network.

    Args:
        scores: 2 to 24 numbers, one for each class. A score of -inf masks its class: its prediction and gradient are 0, and the derivation
            is that of the other classes, of which there must be at least two.
        label: the index of the true class.
        names: the names of the classes.
        j, k: the indices that are chosen at first. The default of `k` is the label, that of `j` the most probable other class.
        only: the names of the derivations that are shown; all, if it is empty.
        beyond: whether the parts beyond the article are open at first.
        note: a sentence about the scores.

    Raises:
        ValueError: if an argument is not as described.
    """
    values = [float(s) for s in scores]
    _check(values, label, names, j, k)
    chosen = {"t": label} | _indices(values, label, j, k)
    kept = [n for n, s in enumerate(values) if s != MASKED]
    row, at = [values[n] for n in kept], {letter: kept.index(n) for letter, n in chosen.items()}

    def on(one: Derivation) -> tuple[Numbers, dict[str, int]]:
        return _numbers(one, row, at["t"]), {letter: at.get(role, 0) for letter, role in _roles(one).items()}

    style, scripts = _file("page.css"), {name: _file(source) for name, source in SCRIPTS.items()}
    whole = Template(_file("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {' '.join(map(_digest, scripts.values()))}",
        style=style,
        **scripts,
        data=_json(_data(values, row, names, chosen)),
        note=f'<p id="note">{escape(note)}</p>' if note else "",
        same=RESULT_1.name,
        other=RESULT_2.name,
        labels=_options(names, values, label),
        choices="".join(_choice(letter, names, values, chosen[letter]) for letter in "jk"),
        scores="".join(_score_control(n, name, values[n]) for n, name in enumerate(names)),
        bars="".join(f'<tr><th scope="row">{escape(name)}</th>{BAR * 3}</tr>' for name in names),
        columns="".join(f'<th scope="col">{escape(name)}</th>' for name in names),
        cells="".join(f'<tr><th scope="row">{escape(name)}</th>{CELL * len(names)}</tr>' for name in names),
        **(_named(only, on) if only else _parts(on, beyond)),
    )
    here = set(re.findall(r' id="([\w-]+)"', whole))
    return re.sub(r'<a href="#([\w-]+)">(.*?)</a>', lambda m: m[0] if m[1] in here else m[2], whole)  # a link without a target becomes text


def _parts(on: At, beyond: bool) -> dict[str, str]:
    """Return the parts of the article and, behind a switch, the parts beyond it."""
    return {
        "contents": _contents(1, PARTS[:OPEN]) + '<li><a href="#beyond">Beyond the article</a></li>',
        "article": "".join(_part(n, part, on) for n, part in enumerate(PARTS[:OPEN], 1)),
        "contents_beyond": _contents(OPEN + 1, PARTS[OPEN:]),
        "beyond": "".join(_part(n, part, on) for n, part in enumerate(PARTS[OPEN:], OPEN + 1)),
        "switch": " open" * beyond,
    }


def _named(only: Sequence[str], on: At) -> dict[str, str]:
    """Return the derivations with these names, without remarks. One that is shown inside another is not shown again."""
    wanted = [(part, one) for part in PARTS for one in part.derivations if one.name in only]
    inside = {lemma.name for part, one in wanted for lemmas in _inside(part, one) for _, lemma in lemmas}
    shown = [(part, one) for part, one in wanted if one.name not in inside]
    body = "".join(_derivation(part, one, on, one.name) for part, one in shown)
    contents = "".join(f'<li><a href="#{one.name}">{sentence(one.title)}</a></li>' for _, one in shown)
    article = f'<section class="part" aria-label="Derivations">{body}</section>'
    return {"contents": contents, "article": article, "contents_beyond": "", "beyond": "", "switch": " hidden"}


def _check(scores: Sequence[float], label: int, names: Sequence[str], j: int | None, k: int | None) -> None:
    classes = len(scores)
    if not FEWEST <= classes <= MOST:
        contract.fail("page", "scores", f"be {FEWEST} to {MOST} numbers", classes)
    for n, s in enumerate(scores):
        if s != MASKED and not abs(s) <= LARGEST:
            contract.fail("page", "scores", f"be finite and of size {LARGEST:g} at most, or -inf for a masked class", f"{s:g} at class {n}")
    if (left := classes - scores.count(MASKED)) < FEWEST:
        contract.fail("page", "scores", f"leave {FEWEST} classes that are not masked (-inf)", left)
    if len(names) != classes:
        contract.fail("page", "names", f"be {classes}, one for each score", len(names))
    for argument, at in (("label", label), ("j", j), ("k", k)):
        if at is not None and not 0 <= at < classes:
            contract.fail("page", argument, f"be in [0, {classes})", at)
        if at is not None and scores[at] == MASKED:
            why = ": its loss is infinite" if argument == "label" else ""
            contract.fail("page", argument, "be a class that is not masked", f"{at}, whose score is -inf{why}")
    if j is not None and j == k:
        contract.fail("page", "j and k", "be two classes", f"{j} for both")


def _indices(scores: Sequence[float], label: int, j: int | None, k: int | None) -> dict[str, int]:
    """Return the classes of j and k at first, as row.arrange does."""
    ranked = sorted(range(len(scores)), key=lambda n: -scores[n])
    of_k = k if k is not None else next(n for n in (label, *ranked) if n != j)
    return {"j": j if j is not None else next(n for n in ranked if n != of_k), "k": of_k}


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    """Return the hash by which the content security policy allows a script, so that the name of a class cannot contain one that runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _json(data: object) -> str:
    """Return JSON that cannot end the <script> element that contains it."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _numbers(derivation: Derivation, scores: Sequence[float], label: int) -> Numbers:
    return Numbers(derivation, scores, [float(k == label) for k in range(len(scores))], label)


# ---- the data of the scripts ----


def _data(scores: Sequence[float], row: Sequence[float], names: Sequence[str], chosen: dict[str, int]) -> dict[str, Any]:
    settings = {one.where: one for one in DERIVATIONS.values()}  # derivations with the same definitions share the meaning of their names
    return {
        "scores": [None if s == MASKED else s for s in scores],
        "names": list(names),
        "chosen": chosen,
        "largest": LARGEST,
        "distinct": sorted({pair for one in DERIVATIONS.values() for pair in one.distinct}),
        "settings": [_setting(one, len(scores)) for one in settings.values()],
        "derivations": {place: _chain(one) | {"setting": list(settings).index(one.where)} for place, one in places().items()},
        "shown": {"same": RESULT_1.name, "other": RESULT_2.name, "gradient": GRADIENT.name}
        | {name: tree(e) for name, e in (("yhat", yhat["k"]), ("y", y["k"]), *_APART.items())},
    }


def _chain(derivation: Derivation) -> dict[str, Any]:
    lines, rels = [tree(line) for line in derivation.lines], ["=", *(step.rel for step in derivation.steps)]
    return {"lines": lines, "rels": rels, "free": _roles(derivation)}


def _setting(derivation: Derivation, classes: int) -> dict[str, Any]:
    """Return the meaning of the names of a derivation (definitions, expressions of the row, and constants) and the ranges of its indices.

    The constants are the example values of replay.py that do not depend on the row: those that are the same for another, longer row.
    """
    one, another = (_numbers(derivation, [n + (n + 1.0) * k * k for k in range(classes + n)], n) for n in (0, 1))
    moving = sorted(name for name, value in one.given.items() if value != _beginning(another.given[name], value))
    fixed = {name: value for name, value in one.given.items() if name not in moving} | {"place": list(range(1, classes + 1))}
    bodies = [(own.head.args[1:], own) for own in derivation.definitions.values()]
    names = {_arity(own.name, len(at)): _meaning(at, own.body) for at, own in bodies}
    in_rows = {_arity(own.name, len(at) + 1): _meaning(("r", *at), in_row(own.body, "r")) for at, own in bodies}
    return {
        "names": names | in_rows,
        "follow": {_arity(name, len(_FOLLOW[name][0])): _meaning(*_FOLLOW[name]) for name in moving} | {"N/0": _meaning((), Sum("i", 1))},
        "given": {_arity(name, _depth(value)): _written(value) for name, value in fixed.items()},
        "ranges": {letter: None if size == "N" else one.sizes[size] for letter, size in RANGES.items()},
    }


def _meaning(own: Sequence[str], body: E) -> dict[str, Any]:
    """Return the meaning of a name: its indices and its body."""
    return {"own": list(own), "body": tree(body)}


def _beginning(value: Any, like: Any) -> Any:
    return [_beginning(a, b) for a, b in zip(value, like, strict=False)] if isinstance(value, list) else value


def _arity(name: str, indices: int) -> str:
    """Return the key of a name, which includes the number of its indices: x[d] is an input, and x[r, d] that of row r."""
    return f"{name.removesuffix('/rows')}/{indices}"


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) else 0


def _written(value: Any) -> Any:
    """Return decimals as strings with all their digits, which numbers in JSON would lose."""
    return [_written(x) for x in value] if isinstance(value, list) else str(value)


def _roles(derivation: Derivation) -> dict[str, str]:
    """Return the chosen index of each letter. If a derivation has j but not k, j follows k, so that the case j = k keeps one class."""
    free = sorted({letter for line in derivation.lines for letter in letters(line)})
    return {letter: "k" if letter == "j" and "k" not in free else letter for letter in free}


# ---- HTML ----


def _contents(first: int, parts: Sequence[Part]) -> str:
    return "".join(f'<li><a href="#part-{n}">{escape(part.title)}</a></li>' for n, part in enumerate(parts, first))


def _options(names: Sequence[str], scores: Sequence[float], chosen: int) -> str:
    state = [" selected" * (n == chosen) + " disabled" * (s == MASKED) for n, s in enumerate(scores)]
    return "".join(f'<option value="{n}"{state[n]}>{escape(name)}</option>' for n, name in enumerate(names))


def _choice(letter: str, names: Sequence[str], scores: Sequence[float], chosen: int) -> str:
    options = _options(names, scores, chosen)
    return f'<label>Index <i>{letter}</i> <select id="choose-{letter}" data-letter="{letter}">{options}</select></label>'


def _score_control(n: int, name: str, score: float) -> str:
    """Return a slider and a text field for a score."""
    reach = REACH if score == MASKED else math.ceil(max(REACH, abs(score)))
    return (
        f'<div class="score"><label for="score-{n}">{escape(name)}</label>'
        f'<input type="range" id="score-{n}" min="{-reach}" max="{reach}" step="any" value="{max(score, -reach)!r}">'
        f'<input type="text" id="typed-{n}" aria-label="{escape(name)}, as a number or -inf" aria-describedby="error" autocomplete="off" '
        f'spellcheck="false" value="{repr(score).removesuffix(".0")}"></div>'
    )


def _shown(value: Decimal, digits: int = 4) -> str:
    return text(E("val", (short(value, digits),)))


def _part(n: int, part: Part, on: At) -> str:
    body = "".join(_remark(one) for one in part.remarks) + "".join(_derivation(part, one, on, one.name) for one in part.chains)
    return f'<section class="part" aria-labelledby="part-{n}"><h2 id="part-{n}">{escape(part.title)}</h2>{body}</section>'


def _remark(one: Remark) -> str:
    formulas = "".join(f'<div class="formula">{_defined(f) if isinstance(f, Definition) else formula(f)}</div>' for f in one.formulas)
    return f'<div class="remark"><p>{sentence(one.words)}</p>{formulas}</div>'


def _derivation(part: Part, one: Derivation, on: At, place: str, level: str = "h3") -> str:
    """Return a derivation, with its lemmas inside the lines that use them. `place` is its id."""
    numbers, at = on(one)
    lines = ""
    for step, e, lemmas in zip((None, *one.steps), one.lines, _inside(part, one), strict=True):
        shown = "".join(_derivation(part, lemma, on, where, "h4") for where, lemma in lemmas)
        reason = _reason(one, step, {lemma.name for _, lemma in lemmas}) if step else ""
        lines += f"<li>{shown}{_line(step, e, numbers, at, reason)}</li>"
    conditions = "".join(f"<span>{x}</span>" for x in _conditions(one))
    end = f'<p class="result"><b>{sentence(one.result)}:</b> {_defined(Definition(one.start, one.lines[-1]))}</p>' if one.result else ""
    tag, role = (
        ("section", "") if level == "h3" else ("div", ' role="group"')
    )  # a section is a landmark for screen readers, and lemmas should not be
    return (
        f'<{tag} class="derivation"{role} id="{place}" aria-labelledby="{place}-title">'
        f'<{level} id="{place}-title">{sentence(one.title)}</{level}><p class="check"></p>'
        f'<p class="where">{conditions}<span class="at"></span></p><ol>{lines}</ol>{end}</{tag}>'
    )


def _inside(part: Part, one: Derivation) -> list[list[tuple[str, Derivation]]]:
    """Return the lemmas inside each line, with their ids. A lemma that is shown again with other letters has another id."""
    lemmas = [[], *([*part.lemmas(one, n)] for n in range(len(one.steps)))]
    return [[(x.name if x in part.derivations else f"{x.name}-in-{one.name}", x) for x in some] for some in lemmas]


def places() -> dict[str, Derivation]:
    """Return all derivations of the page by their ids, in the order of the document."""
    found: dict[str, Derivation] = {}
    for part in PARTS:
        for one in part.chains:
            found[one.name] = one
            found |= {place: lemma for lemmas in _inside(part, one) for place, lemma in lemmas}
    return found


def _conditions(one: Derivation) -> list[str]:
    where = [f"where {_defined(x)}" for x in one.where]
    given = [f"if {_fact(fact)}" for fact in one.given]
    return [*where, *given, *(f"for <i>{a}</i> ≠ <i>{b}</i>" for a, b in one.distinct)]


def _defined(one: Definition) -> str:
    return f'{formula(one.head)} <span class="sign">=</span> {formula(one.body)}'


def _fact(fact: Fact) -> str:
    every = f" for every <i>{fact.every}</i>" if fact.every else ""
    return f"{formula(fact.left)} {escape(SIGNS[fact.rel])} {formula(fact.right)}{every}"


def _line(step: Step | None, e: E, numbers: Numbers, at: dict[str, int], reason: str) -> str:
    value = numbers.value(e, at)
    filled = numbers.fill(e, at)
    plain = " plain" * (filled.op in ("num", "val"))
    shown = f'<data value="{float(value)!r}">{_shown(value, 6)}</data>'
    sign = f'<span class="sign">{escape(SIGNS[step.rel])}</span>' if step else ""
    return (
        f'<div class="formula">{sign}{formula(e)}</div>{reason}'
        f'<p class="numbers{plain}"><span class="filled">{escape(text(filled))}</span> {shown}</p>'
    )


def _reason(one: Derivation, step: Step, shown: set[str]) -> str:
    """Return the rule, the reason, and what the step uses, apart from the lemmas that are shown inside it."""
    used = [_used(one, name) for name in (*step.uses, *step.because) if name not in shown]
    uses = f' <span class="uses">({", ".join(used)})</span>' if used else ""
    return f'<p class="reason"><b>{escape(step.rule)}:</b> {sentence(step.why)}{uses}</p>'


def _used(one: Derivation, name: str) -> str:
    other = DERIVATIONS.get(name)
    return f'<a href="#{name}">{sentence(other.citation)}</a>' if other else _defined(one.definitions[name])
