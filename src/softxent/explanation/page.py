"""The derivation as one HTML page with live numbers: what `softxent explain --html` writes.

The lines are rendered here (MathML), with the numbers of the given scores. page.js then computes every number anew from the same trees
whenever a score, the label or an index changes: it reads them as data, and no formula of the derivation is written in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ..proof.derivation import ARTICLE, DERIVATIONS, GRADIENT, PARTS, RESULT_1, RESULT_2, Derivation, L, Part, Remark, Step, y, yhat
from ..proof.expr import RANGES, Definition, E, Fact, Name, Sum, exp, in_row, letters
from ..proof.reading import SIGNS, text, tree
from ..proof.replay import Numbers, short
from .formulas import formula, sentence

FEWEST, MOST = 2, 24  # classes: j != k needs two, and the heat map has a cell for each pair
REACH = 10  # of the sliders, where no score lies beyond
OPEN = len(ARTICLE)
BAR = '<td><data></data><span class="bar"><span></span></span></td>'
CELL = '<td tabindex="-1"><data></data></td>'
HERE = Path(__file__).parent
At = Callable[[Derivation], tuple[Numbers, dict[str, int]]]  # the numbers of a derivation, and the places of its indices

# How replay.py's examples follow the scores when these move; `max` is an operation of these trees alone.
_score, _truth, _W, _x = Name("score"), Name("truth"), Name("W"), Name("x")
_FOLLOW = {
    "z": (("k",), _score["k"]),
    "x": (("k",), _score["k"]),
    "y": (("k",), _truth["t", "k"]),
    "y/rows": (("r", "k"), _truth["t", "r", "k"]),
    "b": (("k",), _score["k"] - Sum("d", _W["k", "d"] * _x["d"])),
    "m": ((), E("max", ("i", None, _score["i"]))),
} | {
    name + n: ((), body)
    for n, part in (("1", "first"), ("2", "last"))
    for name, body in (
        ("m", E("max", (part, None, _score[part]))),
        ("s", Sum(part, exp(_score[part] - Name("m" + n)[()]))),
    )
}


def page(scores: Sequence[float], label: int, names: Sequence[str]) -> str:
    """The whole HTML document: every derivation at these scores and this label, with controls to change them.

    One file that asks nothing of the network. It takes 2 to 24 classes, each with a finite score and a name; ValueError otherwise.
    """
    _check(scores, label, names)
    scores = [float(s) for s in scores]
    chosen = {"t": label, "k": label, "j": 1 if label == 0 else 0}

    def on(one: Derivation) -> tuple[Numbers, dict[str, int]]:
        return _numbers(one, scores, label), {letter: chosen.get(role, 0) for letter, role in _roles(one).items()}

    style, script = _file("page.css"), _file("page.js")
    return Template(_file("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}",
        style=style,
        script=script,
        data=_json(_data(scores, names, chosen)),
        contents=_contents(1, PARTS[:OPEN]),
        contents_beyond=_contents(OPEN + 1, PARTS[OPEN:]),
        same=RESULT_1.name,
        other=RESULT_2.name,
        labels=_options(names, label),
        choices="".join(_choice(letter, names, chosen[letter]) for letter in "jk"),
        scores="".join(_slider(n, name, scores) for n, name in enumerate(names)),
        bars="".join(f'<tr><th scope="row">{escape(name)}</th>{BAR * 3}</tr>' for name in names),
        columns="".join(f'<th scope="col">{escape(name)}</th>' for name in names),
        cells="".join(f'<tr><th scope="row">{escape(name)}</th>{CELL * len(names)}</tr>' for name in names),
        article="".join(_part(n, part, on) for n, part in enumerate(PARTS[:OPEN], 1)),
        beyond="".join(_part(n, part, on) for n, part in enumerate(PARTS[OPEN:], OPEN + 1)),
    )


def _check(scores: Sequence[float], label: int, names: Sequence[str]) -> None:
    if not FEWEST <= len(scores) <= MOST:
        raise ValueError(f"page: scores must be {FEWEST} to {MOST} numbers; got {len(scores)}")
    if not all(math.isfinite(s) for s in scores):
        raise ValueError(f"page: scores must be finite; got {list(scores)}")
    if not 0 <= label < len(scores):
        raise ValueError(f"page: label must be in [0, {len(scores)}); got {label}")
    if len(names) != len(scores):
        raise ValueError(f"page: names must be {len(scores)}, one for each score; got {len(names)}")


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    """The browser runs what has this hash and nothing else, whatever a class is called."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _json(data: object) -> str:
    """JSON that cannot end the <script> it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _one_hot(label: int, classes: int) -> list[float]:
    return [float(k == label) for k in range(classes)]


def _numbers(derivation: Derivation, scores: Sequence[float], label: int) -> Numbers:
    return Numbers(derivation, scores, _one_hot(label, len(scores)), label)


# ---- what page.js reads ----


def _data(scores: Sequence[float], names: Sequence[str], chosen: dict[str, int]) -> dict[str, Any]:
    half, classes = len(scores) // 2, range(len(scores))
    sizes = _numbers(GRADIENT, scores, 0).sizes
    ranges = {letter: list(range(sizes[size])) for letter, size in RANGES.items()}
    settings = {one.where: one for one in DERIVATIONS.values()}  # what the names mean is the same where the definitions are
    return {
        "scores": scores,
        "names": list(names),
        "chosen": chosen,
        "ranges": ranges | {"first": list(classes[:half]), "last": list(classes[half:])},
        "distinct": sorted({pair for one in DERIVATIONS.values() for pair in one.distinct}),
        "settings": [_setting(one, scores) for one in settings.values()],
        "derivations": {place: _chain(one) | {"setting": list(settings).index(one.where)} for place, one in _all_places().items()},
        "shown": {"same": RESULT_1.name, "other": RESULT_2.name, "gradient": GRADIENT.name}
        | {name: tree(e) for name, e in (("yhat", yhat["k"]), ("y", y["k"]), ("loss", L))},
    }


def _chain(derivation: Derivation) -> dict[str, Any]:
    lines = [tree(line) for line in derivation.lines]
    return {"lines": lines, "rels": ["=", *(step.rel for step in derivation.steps)], "free": _roles(derivation)}


def _setting(derivation: Derivation, scores: Sequence[float]) -> dict[str, Any]:
    """What the names of a derivation stand for: definitions, what follows the scores or the label, and fixed numbers."""
    given = _numbers(derivation, scores, 0).given
    elsewhere = _numbers(derivation, [s + 1 + k * k for k, s in enumerate(scores)], 1).given
    moving = sorted(name for name in given if given[name] != elsewhere[name])
    truths = [_numbers(derivation, scores, label).given for label in range(len(scores))]
    fixed: dict[str, Any] = {name: value for name, value in given.items() if name not in moving} | {"N": len(scores)}
    fixed |= {f"truth{name[1:]}": [one[name] for one in truths] for name in moving if name in ("y", "y/rows")}
    bodies = {one.name: (one.head.args[1:], one.body) for one in derivation.definitions.values()}
    return {
        "names": {name: [_said(own, body), _said(("r", *own), in_row(body, "r"))] for name, (own, body) in bodies.items()},
        "follow": {_arity(name, len(_FOLLOW[name][0])): _said(*_FOLLOW[name]) for name in moving},
        "given": {_arity(name, _depth(value)): _floats(value) for name, value in fixed.items()},
    }


def _said(own: Sequence[str], body: E) -> list[Any]:
    """What a name stands for: its indices and its body."""
    return [list(own), tree(body)]


def _arity(name: str, indices: int) -> str:
    """A name is looked up by its indices, too: x[d] is an input, x[r, d] that of row r."""
    return f"{name.removesuffix('/rows')}/{indices}"


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) else 0


def _floats(value: Any) -> Any:
    return [_floats(x) for x in value] if isinstance(value, list) else float(value)


def _roles(derivation: Derivation) -> dict[str, str]:
    """Which chosen index each letter follows. Where j stands alone it follows k: so a case j = k is at one class throughout."""
    free = sorted({letter for line in derivation.lines for letter in letters(line)})
    return {letter: "k" if letter == "j" and "k" not in free else letter for letter in free}


# ---- HTML ----


def _contents(first: int, parts: Sequence[Part]) -> str:
    return "".join(f'<li><a href="#part-{n}">{escape(part.title)}</a></li>' for n, part in enumerate(parts, first))


def _options(names: Sequence[str], chosen: int) -> str:
    return "".join(f'<option value="{n}"{" selected" * (n == chosen)}>{escape(name)}</option>' for n, name in enumerate(names))


def _choice(letter: str, names: Sequence[str], chosen: int) -> str:
    return f'<label>Index <i>{letter}</i> <select id="choose-{letter}" data-letter="{letter}">{_options(names, chosen)}</select></label>'


def _slider(n: int, name: str, scores: Sequence[float]) -> str:
    reach = math.ceil(max(REACH, *map(abs, scores)))
    return (
        f'<div class="score"><label for="score-{n}">{escape(name)}</label>'
        f'<input type="range" id="score-{n}" min="{-reach}" max="{reach}" step="any" value="{scores[n]!r}">'
        f"<span>{_shown(Decimal(scores[n]))}</span></div>"
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
    """A derivation, its lemmas inside the lines that use them. `place` is its id."""
    numbers, at = on(one)
    lines = ""
    for step, e, lemmas in zip((None, *one.steps), one.lines, _inside(part, one), strict=True):
        shown = "".join(_derivation(part, lemma, on, where, "h4") for where, lemma in lemmas)
        reason = _reason(one, step, {lemma.name for _, lemma in lemmas}) if step else ""
        lines += f"<li>{shown}{_line(step, e, numbers, at, reason)}</li>"
    conditions = "".join(f"<span>{x}</span>" for x in _conditions(one))
    end = f'<p class="result"><b>{sentence(one.result)}:</b> {_defined(Definition(one.start, one.lines[-1]))}</p>' if one.result else ""
    return (
        f'<section class="derivation" id="{place}" aria-labelledby="{place}-title">'
        f'<{level} id="{place}-title">{sentence(one.title)}</{level}><p class="check"></p>'
        f'<p class="where">{conditions}<span class="at"></span></p><ol>{lines}</ol>{end}</section>'
    )


def _inside(part: Part, one: Derivation) -> list[list[tuple[str, Derivation]]]:
    """The lemmas inside each line, with their ids: with other letters a lemma is shown once more, in another place."""
    lemmas = [[], *([*part.lemmas(one, n)] for n in range(len(one.steps)))]
    return [[(x.name if x in part.derivations else f"{x.name}-in-{one.name}", x) for x in some] for some in lemmas]


def _all_places() -> dict[str, Derivation]:
    """All derivations of the page by their ids."""
    whole = [(part, one) for part in PARTS for one in part.chains]
    lemmas = {place: lemma for part, one in whole for some in _inside(part, one) for place, lemma in some}
    return {one.name: one for _, one in whole} | lemmas


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
    """The rule, the sentence, and what the step uses beyond the lemmas that are shown inside it."""
    used = [_used(one, name) for name in (*step.uses, *step.because) if name not in shown]
    uses = f' <span class="uses">({", ".join(used)})</span>' if used else ""
    return f'<p class="reason"><b>{escape(step.rule)}</b> {sentence(step.why)}{uses}</p>'


def _used(one: Derivation, name: str) -> str:
    other = DERIVATIONS.get(name)
    return f'<a href="#{name}">{sentence(other.citation)}</a>' if other else _defined(one.definitions[name])
