"""The formulas of the page as MathML that can be broken into several rows.

Browsers do not break a <math> element. Therefore a formula consists of several, one for each piece that is not to be broken, in nested
boxes (CSS `inline-block`). Sums are broken before products, and the inside of brackets only if it is longer than a row, as in
`terminal.fold`.
"""

from __future__ import annotations

import re
from html import escape

from ..proof.expr import E, walk
from ..proof.reading import latex, mathml_of, prose, rank, text

HAT = '<mi class="hat">ŷ</mi>'  # a single letter, because some fonts misplace the accent
TALL = "/D"  # operations that are drawn as a fraction


def formula(e: E) -> str:
    """Return a formula in pieces. A screen reader reads it as one text."""
    return f'<span class="pieces" role="math" aria-label="{escape(text(e))}">{_pieces(e)}</span>'


def sentence(words: str) -> str:
    """Return a sentence of the derivation as HTML, with superscripts and subscripts."""
    lowered = re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", escape(prose(words), quote=False))
    return re.sub(r"\^(\w(?:<sub>\w+</sub>)?)", r"<sup>\1</sup>", lowered)


def _pieces(e: E, before: str = "", after: str = "") -> str:
    """Return `e` as nested boxes. `before` and `after` are LaTeX that is joined to its first and last piece."""
    o, a = e.op, e.args
    if not _breaks(e):
        return _piece(before + latex(e) + after)
    if o == "()":
        opening, closing = _brackets(a[0])
        return _box(_pieces(a[0], before + opening, closing + after))
    if o in ("+", "-"):
        return _operand(a[0], 1, "+-", before) + _box(_pieces(_bracketed(a[1], 2), f"{o} ", after))
    if o == "*":
        return _operand(a[0], 2, "*", before) + _box(_pieces(_bracketed(a[1], 3), r"\cdot ", after))
    if o == "/":
        over, under = _pieces(_inside(a[0])), _pieces(_inside(a[1]))
        sides = [_piece(side) if side else "" for side in (before, after)]
        return f'{sides[0]}<span class="fraction"><span>{over}</span><span>{under}</span></span>{sides[1]}'
    if o == "@" and _breaks(a[0]):
        return _pieces(_bracketed(a[0], 2), before) + _box(_pieces(_bracketed(a[1], 3), "", after))
    if o == "@":
        return _pieces(_bracketed(a[1], 3), f"{before}{latex(_bracketed(a[0], 2))} ", after)
    if o == "neg":
        return _pieces(_bracketed(a[0], 2), before + "-", after)
    if o == "sum":
        index = a[0] + (rf" \neq {a[1]}" if a[1] else "")
        return _pieces(_bracketed(a[2], 2), rf"{before}\sum_{{{index}}} ", after)
    opening, closing = _brackets(a[0])  # a derivative of a long expression
    return _pieces(a[0], rf"{before}\frac{{\partial}}{{\partial {latex(a[1])}}} {opening}", closing + after)


def _operand(e: E, least: int, same: str, before: str) -> str:
    """Return the left operand. The terms of a + b + c are three boxes side by side."""
    pieces = _pieces(_bracketed(e, least), before)
    return pieces if e.op in same else _box(pieces)


def _breaks(e: E) -> bool:
    """Return whether `e` has an operator before which it can be broken; a fraction is broken in its numerator."""
    if e.op in ("+", "-", "*"):
        return True
    if e.op == "/":
        return _breaks(_inside(e.args[0]))
    if e.op == "D":
        return e.args[0].op not in ("at", "exp") and _breaks(e.args[0])
    inner = {"()": (0,), "neg": (0,), "@": (0, 1), "sum": (2,)}.get(e.op, ())
    return any(_breaks(e.args[n]) for n in inner)


def _inside(e: E) -> E:
    """Return `e` without outer brackets, which a numerator or denominator does not need."""
    return _inside(e.args[0]) if e.op == "()" else e


def _bracketed(e: E, least: int) -> E:
    """Return `e` with the brackets that it needs as an operand. A sum as the last operand needs none."""
    return E("()", (e,)) if rank(e) < least and e.op not in ("/", "sum") else e


def _brackets(e: E) -> tuple[str, str]:
    """Return brackets of the height of `e`: a bracket in a separate piece does not stretch by itself."""
    size = r"\Big" if any(x.op in TALL for x in walk(e)) else r"\big" if any(x.op == "sum" for x in walk(e)) else ""
    return f"{size}(", f"{size})"


def _box(pieces: str) -> str:
    return f'<span class="box">{pieces}</span>'


def _piece(written: str) -> str:
    """Return a <math> element. A leading operator has the spacing of an infix, and the index of a sum is below its sign."""
    drawn = re.sub(r"<msub>(<mo>&#x02211;</mo><mrow>.*?</mrow>)</msub>", r"<munder>\1</munder>", mathml_of(written))
    drawn = re.sub(r"<mover accent=.true.><mrow><mi>y</mi></mrow>.*?</mover>", HAT, drawn)
    if written.startswith(("+ ", "- ", r"\cdot ")):
        drawn = drawn.replace("<mo", '<mo form="infix"', 1)
    return drawn.replace("<math ", '<math aria-hidden="true" ', 1)
