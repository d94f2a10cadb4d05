"""The formulas of the page as MathML that breaks over several rows where there is no room for one.

A browser breaks no <math> element, so a line becomes several, one for each piece that stays whole. They stand in nested boxes
(CSS `inline-block`): a sum breaks before a product does, and a bracket breaks inside only where it is longer than a row. These
are the rules of `terminal.fold`.
"""

from __future__ import annotations

import re
from html import escape

from ..proof.expr import E, walk
from ..proof.reading import latex, mathml_of, prose, rank, text

HAT = '<mi class="hat">ŷ</mi>'  # as one letter: some fonts misplace the accent
TALL = "/D"  # operations that are drawn as a fraction, over two rows


def formula(e: E) -> str:
    """A line in pieces. Those who hear the page hear the whole line at once."""
    return f'<span class="pieces" role="math" aria-label="{escape(text(e))}">{_pieces(e)}</span>'


def sentence(words: str) -> str:
    """A sentence of the derivation as HTML, with raised exponents and lowered indices."""
    lowered = re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", escape(prose(words), quote=False))
    return re.sub(r"\^(\w(?:<sub>\w+</sub>)?)", r"<sup>\1</sup>", lowered)


def _pieces(e: E, before: str = "", after: str = "") -> str:
    """`e` as boxes; `before` and `after` are LaTeX that stays with its first and its last piece."""
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
    """The left operand; a + b + c are three boxes side by side."""
    pieces = _pieces(_bracketed(e, least), before)
    return pieces if e.op in same else _box(pieces)


def _breaks(e: E) -> bool:
    """Whether there is an operator to break before, in a fraction above its bar. A power or a function stays whole."""
    if e.op in ("+", "-", "*"):
        return True
    if e.op == "/":
        return _breaks(_inside(e.args[0]))
    if e.op == "D":
        return e.args[0].op not in ("at", "exp") and _breaks(e.args[0])
    inner = {"()": (0,), "neg": (0,), "@": (0, 1), "sum": (2,)}.get(e.op, ())
    return any(_breaks(e.args[n]) for n in inner)


def _inside(e: E) -> E:
    """Above or below a bar no outer bracket is needed."""
    return _inside(e.args[0]) if e.op == "()" else e


def _bracketed(e: E, least: int) -> E:
    """`e` in the brackets that it needs as an operand. A sum may come last without."""
    return E("()", (e,)) if rank(e) < least and e.op not in ("/", "sum") else e


def _brackets(e: E) -> tuple[str, str]:
    """A bracket that is broken cannot stretch over what it holds, so its height is given."""
    size = r"\Big" if any(x.op in TALL for x in walk(e)) else r"\big" if any(x.op == "sum" for x in walk(e)) else ""
    return f"{size}(", f"{size})"


def _box(pieces: str) -> str:
    return f'<span class="box">{pieces}</span>'


def _piece(written: str) -> str:
    """One <math>. A first operator stands between this piece and the one before, and the index of a sum below its sign."""
    drawn = re.sub(r"<msub>(<mo>&#x02211;</mo><mrow>.*?</mrow>)</msub>", r"<munder>\1</munder>", mathml_of(written))
    drawn = re.sub(r"<mover accent=.true.><mrow><mi>y</mi></mrow>.*?</mover>", HAT, drawn)
    if written.startswith(("+ ", "- ", r"\cdot ")):
        drawn = drawn.replace("<mo", '<mo form="infix"', 1)
    return drawn.replace("<math ", '<math aria-hidden="true" ', 1)
