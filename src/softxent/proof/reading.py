"""Conversion of the lines of the derivation to text, LaTeX, MathML and JSON, for the terminal, the page and the documentation."""

from __future__ import annotations

import re

from .expr import E, children

LATEX = {
    "yhat": r"\hat{y}", "lam": r"\lambda", "mu": r"\mu", "eps": r"\varepsilon", "alpha": r"\alpha", "eta": r"\eta",
    "lse": r"\operatorname{lse}", "off": r"\operatorname{off}",
}  # fmt: skip
TEXT = {"yhat": "ŷ", "lam": "λ", "mu": "μ", "eps": "ε", "alpha": "α", "eta": "η"}  # noqa: RUF001
SIGNS = {"=": "=", "!=": "≠", ">": ">", ">=": "≥"}
_RANK = {"+": 1, "-": 1, "neg": 1, "sum": 1, "*": 2, "@": 2, "/": 2, "exp": 4, "^": 4}  # precedence; other operations never need brackets


def rank(e: E) -> int:
    """Return the precedence of the outermost operation of `e`. An operand with a lower one needs brackets."""
    if e.op == "val":
        return 1 if e.args[0].startswith("-") else 9
    return _RANK.get(e.op, 9)


def latex(e: E) -> str:
    """Return the line in LaTeX, with the brackets of the expression and those that precedence requires."""
    o, a = e.op, e.args

    def part(x: E, least: int) -> str:
        return rf"\left({latex(x)}\right)" if rank(x) < least and x.op != "/" else latex(x)

    def last(x: E, least: int) -> str:  # a sum at the end needs no brackets
        return part(x, 1 if x.op == "sum" else least)

    if o in ("num", "val"):
        return str(a[0])
    if o == "at":
        name = LATEX.get(a[0], a[0])
        return f"{name}_{{{''.join(a[1:])}}}" if len(a) > 1 else f"{name[0]}_{{{name[1:]}}}" if name[-1].isdigit() else name
    if o == "delta":
        return rf"\delta_{{{a[0]}{a[1]}}}"
    if o in "+-":
        return f"{part(a[0], 1)} {o} {last(a[1], 2)}"
    if o == "*":
        return rf"{part(a[0], 2)} \cdot {last(a[1], 3)}"
    if o == "@":
        return f"{part(a[0], 2)} {part(a[1], 3)}"
    if o == "/":
        return rf"\frac{{{latex(a[0])}}}{{{latex(a[1])}}}"
    if o == "^":
        if a[0].op == "tanh":
            return rf"\tanh^{{{latex(a[1])}}}\left({latex(a[0].args[0])}\right)"
        return f"{part(a[0], 5)}^{{{latex(a[1])}}}"
    if o == "neg":
        return f"-{last(a[0], 2)}"
    if o == "()":
        return rf"\left({latex(a[0])}\right)"
    if o == "exp":
        return f"e^{{{latex(a[0])}}}"
    if o in ("log", "tanh"):
        return rf"\{o}\left({latex(a[0])}\right)"
    if o == "sum":
        return rf"\sum_{{{a[0]}" + (rf" \neq {a[1]}" if a[1] else "") + f"}} {part(a[2], 2)}"
    f, x = a
    if f.op in ("at", "exp"):
        return rf"\frac{{\partial {latex(f)}}}{{\partial {latex(x)}}}"
    return rf"\frac{{\partial}}{{\partial {latex(x)}}} \left({latex(f)}\right)"


def text(e: E) -> str:
    """Return the line as plain text."""
    o, a = e.op, e.args

    def part(x: E, least: int) -> str:
        return f"({text(x)})" if rank(x) < least else text(x)

    def last(x: E, least: int) -> str:
        return part(x, 1 if x.op == "sum" else least)

    if o == "num":
        return str(a[0])
    if o == "val":
        return str(a[0]).replace("-", "−")
    if o == "at":
        name = TEXT.get(a[0], a[0])
        return f"{name}_{''.join(a[1:])}" if len(a) > 1 else f"{name[0]}_{name[1:]}" if name[-1].isdigit() else name
    if o == "delta":
        return f"δ_{a[0]}{a[1]}"
    if o in "+-":
        return f"{part(a[0], 1)} {'−' if o == '-' else o} {last(a[1], 2)}"
    if o == "*":
        return f"{part(a[0], 2)} · {last(a[1], 3)}"
    if o == "@":
        return f"{part(a[0], 2)} {part(a[1], 3)}"
    if o == "/":
        flat = all(x.op in ("num", "val", "at", "exp", "()") for x in a)
        return f"{part(a[0], 2)}{'/' if flat else ' / '}{part(a[1], 3)}"
    if o == "^":
        return f"{part(a[0], 5)}{'²' if a[1].args[0] == 2 else '^' + text(a[1])}"
    if o == "neg":
        return f"−{last(a[0], 2)}"
    if o == "()":
        return f"({text(a[0])})"
    if o == "exp":
        return f"e^{text(a[0])}" if a[0].op in ("at", "val", "()") else f"e^({text(a[0])})"
    if o in ("log", "tanh"):
        return f"{o}({text(a[0])})" if a[0].op != "()" else f"{o}{text(a[0])}"
    if o == "sum":
        return f"Σ_{a[0]}{'≠' + a[1] if a[1] else ''} {part(a[2], 2)}"
    f, x = a
    return f"∂{text(f)}/∂{text(x)}" if f.op in ("at", "exp") else f"∂/∂{text(x)} ({text(f)})"


def mathml(e: E) -> str:
    """Return the line as MathML, which browsers display without a script."""
    return mathml_of(latex(e))


def mathml_of(formula: str) -> str:
    """Return a formula in LaTeX as MathML."""
    from latex2mathml.converter import convert

    out: str = convert(formula)
    if "\\" in out:
        raise ValueError(f"latex2mathml left something of {formula!r} over: {out!r}")
    return out


def prose(reason: str) -> str:
    """Return a reason with its names in the notation of the lines."""
    words = {
        r"\byhat": "ŷ",
        r"\blambda\b": "λ",
        r"\beps\b": "ε",
        r"\balpha\b": "α",  # noqa: RUF001
        r"\beta\b": "η",
        r"\bmu\b": "μ",
        r"\bdelta_": "δ_",
        "!=": "≠",
        r"\^2": "²",
        " - ": " − ",
    }
    for pattern, sign in words.items():
        reason = re.sub(pattern, sign, reason)
    return reason


def tree(e: E) -> list[object]:
    """Return the line for JSON, as nested lists [operation, arguments...]."""
    return [e.op, *(tree(x) if isinstance(x, E) else x for x in e.args)]


def size(e: E) -> int:
    return 1 + sum(map(size, children(e)))
