"""The derivation as one HTML page with live numbers: what `softxent explain --html` writes.

The lines are rendered here (MathML), with the numbers of the given scores. page.js then computes every number anew from the same trees
whenever a score, the label or an index changes: it reads them as data, and no formula of the derivation is written in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ..proof.derivation import DERIVATIONS, GRADIENT, PARTS, RESULT_1, RESULT_2, Derivation, L, Part, Step, y, yhat
from ..proof.expr import RANGES, Definition, E, Fact, Name, Sum, exp, in_row, letters
from ..proof.reading import SIGNS, mathml, prose, text, tree
from ..proof.replay import Numbers, short

FEWEST, MOST = 2, 24  # classes: j != k needs two, and the heat map has a cell for each pair
REACH = 10  # of the sliders, where no score lies beyond
OPEN = 3  # parts: the article's
BAR = '<td><data></data><span class="bar"><span></span></span></td>'
CELL = '<td tabindex="-1"><data></data></td>'
HERE = Path(__file__).parent

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
    """The whole HTML document: every derivation at these scores and this label, with controls to change them.

    `j` and `k` are the classes that are chosen at first, `only` are the names of the derivations that are shown (all, if there are none),
    `beyond` opens the parts beyond the article, and `note` is a sentence about the scores.

    One file that asks nothing of the network. It takes 2 to 24 classes, each with a finite score and a name; ValueError otherwise.
    """
    values = [float(s) for s in scores]
    _check(values, label, names)
    k = label if k is None else k
    chosen = {"t": label, "k": k, "j": j if j is not None else 1 if k == 0 else 0}
    shown = [part._replace(derivations=tuple(one for one in part.derivations if not only or one.name in only)) for part in PARTS]
    parts = [(n, part) for n, part in enumerate(shown, 1) if part.derivations]
    style, script = _file("page.css"), _file("page.js")
    whole = Template(_file("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}",
        style=style,
        script=script,
        data=_json(_data(values, names, chosen)),
        contents="".join(f'<li><a href="#part-{n}">{escape(part.title)}</a></li>' for n, part in parts),
        lines=sum(len(one.lines) for _, part in parts for one in part.derivations),
        derivations=sum(len(part.derivations) for _, part in parts),
        note=f'<p id="note">{escape(note)}</p>' if note else "",
        same=RESULT_1.name,
        other=RESULT_2.name,
        labels=_options(names, label),
        choices="".join(_choice(letter, names, chosen[letter]) for letter in "jk"),
        scores="".join(_slider(n, name, values) for n, name in enumerate(names)),
        bars="".join(f'<tr><th scope="row">{escape(name)}</th>{BAR * 3}</tr>' for name in names),
        columns="".join(f'<th scope="col">{escape(name)}</th>' for name in names),
        cells="".join(f'<tr><th scope="row">{escape(name)}</th>{CELL * len(names)}</tr>' for name in names),
        parts="".join(_part(n, part, values, chosen, bool(only) or beyond) for n, part in parts),
    )
    here = {one.name for _, part in parts for one in part.derivations} | {f"part-{n}" for n, _ in parts} | {"main"}
    return re.sub(r'<a href="#([\w-]+)">(.*?)</a>', lambda m: m[0] if m[1] in here else m[2], whole)  # no link without its target


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
        "derivations": {name: _chain(one) | {"setting": list(settings).index(one.where)} for name, one in DERIVATIONS.items()},
        "shown": {"same": RESULT_1.name, "other": RESULT_2.name, "gradient": GRADIENT.name}
        | {name: tree(e) for name, e in (("yhat", yhat["k"]), ("y", y["k"]), ("loss", L))},
    }


def _chain(derivation: Derivation) -> dict[str, Any]:
    lines = [tree(line) for line in derivation.lines]
    return {"lines": lines, "rels": ["=", *(step.rel for step in derivation.steps)], "free": _free(derivation)}


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


def _free(derivation: Derivation) -> list[str]:
    return sorted({letter for line in derivation.lines for letter in letters(line)})


# ---- HTML ----


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


def _math(e: E) -> str:
    """MathML with a name for those who cannot see it; the index of a sum stands below it, as in a displayed formula."""
    drawn = re.sub(r"<msub>(<mo>&#x02211;</mo><mrow>.*?</mrow>)</msub>", r"<munder>\1</munder>", mathml(e))
    return drawn.replace("<math ", f'<math alttext="{escape(text(e))}" ', 1)


def _part(n: int, part: Part, scores: Sequence[float], chosen: dict[str, int], beyond: bool) -> str:
    links = "".join(f'<li><a href="#{one.name}">{_words(one.title)}</a></li>' for one in part.derivations)
    return (
        f'<details class="part"{" open" * (beyond or n <= OPEN)}><summary><h2 id="part-{n}">{escape(part.title)}</h2></summary>'
        f'<p>{escape(part.about)}</p><ul class="links">{links}</ul>'
        f"{''.join(_derivation(one, scores, chosen) for one in part.derivations)}</details>"
    )


def _words(words: str) -> str:
    """Prose with its exponents raised and its indices lowered."""
    lowered = re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", escape(prose(words)))
    return re.sub(r"\^(\w(?:<sub>\w+</sub>)?)", r"<sup>\1</sup>", lowered)


def _derivation(one: Derivation, scores: Sequence[float], chosen: dict[str, int]) -> str:
    numbers, at = _numbers(one, scores, chosen["t"]), {letter: chosen.get(letter, 0) for letter in _free(one)}
    steps = (None, *one.steps)
    lines = "".join(_line(one, step, e, numbers, at) for step, e in zip(steps, one.lines, strict=True))
    conditions = "".join(f"<span>{x}</span>" for x in _conditions(one))
    return (
        f'<section class="derivation" id="{one.name}" aria-labelledby="{one.name}-title">'
        f'<h3 id="{one.name}-title">{_words(one.title)}</h3><p class="check"></p>'
        f'<p class="where">{conditions}<span class="at"></span></p><ol>{lines}</ol></section>'
    )


def _conditions(one: Derivation) -> list[str]:
    where = [f"where {_definition(x)}" for x in one.where]
    given = [f"if {_fact(fact)}" for fact in one.given]
    return [*where, *given, *(f"for <i>{a}</i> ≠ <i>{b}</i>" for a, b in one.distinct)]


def _definition(one: Definition) -> str:
    return f"{_math(one.head)} = {_math(one.body)}"


def _fact(fact: Fact) -> str:
    every = f" for every <i>{fact.every}</i>" if fact.every else ""
    return f"{_math(fact.left)} {escape(SIGNS[fact.rel])} {_math(fact.right)}{every}"


def _line(one: Derivation, step: Step | None, e: E, numbers: Numbers, at: dict[str, int]) -> str:
    value = numbers.value(e, at)
    filled = numbers.fill(e, at)
    plain = " plain" * (filled.op in ("num", "val"))
    name = escape(f"{'Line' if step else 'Start'} of {one.title}")
    shown = f'<data value="{float(value)!r}">{_shown(value, 6)}</data>'
    sign = f'<span class="sign">{escape(SIGNS[step.rel])}</span>' if step else ""
    return (
        f'<li><div class="formula">{sign}<div class="scroll" role="group" aria-label="{name}">{_math(e)}</div></div>'
        f'<p class="numbers{plain}"><span class="filled">{escape(text(filled))}</span> {shown}</p>'
        f"{_reason(one, step) if step else ''}</li>"
    )


def _reason(one: Derivation, step: Step) -> str:
    used = [_used(one, name) for name in step.uses] + [_fact(fact) for fact in step.given]
    links = f"<ul>{''.join(f'<li>{x}</li>' for x in used)}</ul>" if used else ""
    return f"<details><summary>{escape(step.rule)}</summary><p>{_words(step.why)}</p>{links}</details>"


def _used(one: Derivation, name: str) -> str:
    other = DERIVATIONS.get(name)
    return f'<a href="#{name}">{_words(other.title)}</a>' if other else _definition(one.definitions[name])
