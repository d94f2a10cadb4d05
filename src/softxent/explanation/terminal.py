"""Show an account in the terminal. The names of the classes are never interpreted as markup of rich."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from decimal import Decimal, localcontext
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .. import contract
from ..messages import as_json as json
from ..proof import derivation as book
from ..proof.expr import E
from ..proof.reading import SIGNS, prose, text
from ..proof.replay import CONTEXT, TOLERANCE, short
from . import STEP, Account, End, Formula, Line, Replay, as_html, as_json, chosen, fact
from . import account as work_out
from .row import Row, read

WIDE, WIDEST = 96, 120  # in columns: from WIDE on, the reasons are to the right of the lines
MEANING = {
    "yhat": "the prediction: softmax", "L": "the loss: cross-entropy", "lse": "log-sum-exp", "p": "the mass of the truth",
    "g": "the gradient", "mu": "the mean of v under the prediction", "H": "the entropy of the prediction",
}  # fmt: skip
MINUS = "\N{MINUS SIGN}"
REASON, RULE, VALUE, WRONG = "dim", "italic", "cyan", "bold red"


def run(
    wanted: Sequence[str], *, everything: bool, listed: bool, html: Path | None, as_json_: bool, **options: Any
) -> bool:  # options: of row.read
    """Run `softxent explain`. Returns whether all lines and gradients agree."""
    if not (sys.stdout.encoding or "").lower().startswith("utf") and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    if wanted and everything:
        contract.fail("explain", "names of derivations", "not come with --all", " ".join(wanted))
    if html and as_json_:
        contract.fail("explain", "--html and --json", "not come together", "both")
    if listed:
        listing(console)
        return True
    if html:
        contract.place("explain", "--html", html, folder=False)
    account = work_out(read(**options), chosen("explain", wanted, everything))
    if html:
        _write(html, as_html(account.row, wanted, everything))
        console.out(f"{contract.printable(str(html))}: written, open it in a browser", highlight=False)
    elif as_json_:
        console.out(json(as_json(account)), highlight=False)
    else:
        show(console, account, ending=not wanted)
    return account.agrees


def _write(html: Path, page: str) -> None:
    try:
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        contract.fail("explain", "--html", "name a file that can be written", f"{html} ({error.strerror})")


def listing(console: Console) -> None:
    """Print the names and titles of all derivations."""
    for part in book.PARTS:
        console.print(Text(part.title, "bold"))
        table = Table.grid(padding=(0, 3, 0, 0))
        for one in part.derivations:
            table.add_row(f"  {one.name}", Text(prose(one.title), REASON))
        console.print(table)


def show(console: Console, account: Account, ending: bool = True) -> None:
    """Print an account. Its end is printed if `ending` is set, or if a comparison in it fails."""
    with localcontext(CONTEXT):  # its values are beyond the exponents of the usual context
        _show(console, account, ending)


def _show(console: Console, account: Account, ending: bool) -> None:
    console.width = min(console.width, WIDEST)
    _row(console, account.row, any(one.given for one in account.replays))
    _definitions(console, account)
    for section in account.sections:
        if section.remarks:
            _heading(console, section.part.title)
        for words, formulas in section.remarks:
            _remark(console, words, formulas)
        if account.truth_note and book.RESULT_3 in section.part.derivations and section.remarks:
            _say(console, account.truth_note)
        for one in section.replays:
            _replay(console, one, account.row)
    if ending or not (account.end.ours_agrees and account.end.slopes_agree):
        _end(console, account.row, account.end)


def _heading(console: Console, title: str) -> None:
    console.print()
    console.rule(Text(title, "bold"), align="left", style=REASON)


def _row(console: Console, row: Row, options: bool) -> None:
    console.print(Text("The row", "bold"))
    table = _table("class", "score z", "truth y", "")
    for (name, z, n), y in zip(row.entries, _listed(row, row.truth), strict=True):
        roles = [letter for letter, place in (("the label t", row.label), ("k", row.k), ("j", row.j)) if place == n]
        table.add_row(Text(name), _short(Decimal(z), 6), _short(y, 6), Text("masked" if n is None else ", ".join(roles), REASON))
    console.print(table)
    for note in row.notes:
        _say(console, note.replace("-inf", f"{MINUS}inf"))
    if options and row.notes:
        _say(console, f"The values of the options (N, w, ...) are examples for these {len(row.names)} classes.")
    if row.astray:
        less = f"the loss in the lines is less than that of the row, by {_short(row.astray, 6)}"
        _say(console, f"The truth of the merged classes is not 0. Therefore {less}; the gradients are those of the row.")


def _definitions(console: Console, account: Account) -> None:
    if account.definitions:
        console.print("\n", Text("What the names stand for", "bold"), sep="")
    for one, filled, value in account.definitions:
        name = Text.assemble(
            (MEANING[one.name], REASON), (f", here for j = {account.row.names[account.row.j]}" if "j" in one.head.args else "", REASON)
        )
        _block(console, f"{text(one.head)} = {text(one.body)}", text(filled), (f"= {_short(value, 6)}", VALUE), name, first=True)


def _remark(console: Console, words: str, formulas: Sequence[Formula]) -> None:
    _say(console, prose(words))
    for one in formulas:
        line = text(one.formula) if isinstance(one.formula, E) else f"{text(one.formula.head)} = {text(one.formula.body)}"
        value = ("", "") if one.value is None else (f"= {_short(one.value, 6)}", VALUE)
        _block(console, line, text(one.filled) if one.filled else "", value, None, first=True, left=4)


def _replay(console: Console, one: Replay, row: Row, left: int = 0) -> None:
    """Print a derivation. A lemma inside a step is indented."""
    here = [f"{i} = " + (row.names[n] if i in "jk" else f"{n + 1}") for i, n in sorted(one.at.items()) if i != "t"]
    named = Text.assemble((prose(one.derivation.title), "bold"), (f"   {one.derivation.name}   {', '.join(here)}", REASON))
    console.print("" if left == 0 else Text(), Padding(named, (0, 0, 0, left)), sep="\n")
    about = [f"{text(own.head)} = {text(own.body)}" for own in one.derivation.where] + [
        f"{text(name)} = {_plain(x)}" for name, x in one.given
    ]
    if about:
        _say(console, Text(f"where {', '.join(about)}", REASON), left + 2)
    for n, line in enumerate(one.lines):
        for lemma in line.lemmas:
            _replay(console, lemma, row, left + 4)
        if line.lemmas:
            console.print()
        _line(console, line, one.lines, last=n > 0 and n == len(one.lines) - 1, left=left)
    _checked(console, one, left)


def _line(console: Console, line: Line, lines: Sequence[Line], last: bool, left: int) -> None:
    step, value = line.step, (_value(line.value, lines[-1].value, line.covered), VALUE)
    reason = Text.assemble((step.rule, RULE), ": ", prose(step.why), style=REASON) if step else None
    if not line.holds:
        value = (f"not here: it needs {' and '.join(map(fact, step.given))}" if step and step.given else "not here", "yellow")
    elif not line.agrees:
        value = (value[0] + "  does not agree", WRONG)
    sign = f"{SIGNS[step.rel]} " if step else "  "
    filled = "" if line.filled.op in ("val", "num") or not line.holds else text(line.filled)
    _block(console, sign + text(line.expr), filled, value, reason, first=step is None, strong=last and line.holds, left=left)


def _block(
    console: Console, line: str, filled: str, value: tuple[str, str], reason: Text | None,
    *, first: bool = False, strong: bool = False, left: int = 0,
) -> None:  # fmt: skip
    """Print a line, its numbers, its value, and the reason: beside the line or, in a narrow terminal, before it."""
    beside = console.width >= WIDE
    width = (console.width * 3 // 5 if beside else console.width - 2) - left
    rows = [(x, "bold" if strong else "") for x in fold(line, width)] + (
        [(f"  {x}", "") for x in fold(filled, width - 2)] if filled else []
    )
    end, style = value
    if len(rows[-1][0]) + 3 + len(end) > width:
        rows += [(x, "") for x in textwrap.wrap(end, width)[:-1]] + [("", "")]
        end = textwrap.wrap(end, width)[-1]
    lines = Text("\n").join(Text(x, look) for x, look in rows)
    lines.append(" " * (width - len(rows[-1][0]) - len(end)))
    lines.append(end, f"bold {style}" if strong else style)
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(width=width, no_wrap=beside)
    if beside:
        table.add_column(width=console.width - width - left - 5)
        table.add_row(lines, reason or "")
    else:
        if reason:
            table.add_row(Padding(reason, (0 if first else 1, 0, 0, 2)))
        table.add_row(lines)
    console.print(Padding(table, (0, 0, 0, left)))


def fold(line: str, width: int) -> list[str]:
    """Break a formula before operators: at sums rather than at products, and inside brackets only if they are longer than the width."""
    for deepest, last in ((depth, signs) for depth in range(20) for signs in ("+=≥" + MINUS, "+=≥·/" + MINUS)):
        glued, depth = "", 0
        for n, c in enumerate(line):
            depth += (c == "(") - (c == ")")
            breaks = depth <= deepest and line[n + 1 : n + 2] in (last if depth == deepest else "+=≥·/" + MINUS)
            glued += "\xa0" if c == " " and not breaks else c
        rows = textwrap.wrap(glued, width, subsequent_indent="\xa0" * 4, break_on_hyphens=False, break_long_words=False)
        if all(len(row) <= width for row in rows):
            break
    return [row.replace("\xa0", " ") for row in rows]


def _checked(console: Console, one: Replay, left: int) -> None:
    """Print whether the lines agree, and the result. For a lemma, print only that a line does not agree."""
    wrong = [n for n, line in enumerate(one.lines, 1) if not line.agrees]
    if wrong:
        return _say(console, Text(f"✗ line {wrong[0]} does not agree with the line before", WRONG), left + 2)
    if left:
        return
    held = sum(line.holds for line in one.lines)
    if one.derivation.result and held == len(one.lines):
        equation = f"{text(one.derivation.start)} = {text(one.derivation.lines[-1])}"
        _say(console, Text.assemble((f"{prose(one.derivation.result)}: ", "bold"), (equation, "bold")))
    lines = f"{held} lines" if held == len(one.lines) else f"the first {held} of {len(one.lines)} lines"
    near = f"they differ by at most {float(one.apart):.0e}" if one.apart else "to the last of 50 digits"
    more = f", for each of the {one.choices} choices of {' and '.join(sorted(i for i in one.at if i != 't'))}" if one.choices > 1 else ""
    _say(console, Text.assemble(("✓ ", "green"), f"{lines}, one value: {near}{more}", style=REASON))


# ---------------------------------------------------------------- the end


def _end(console: Console, row: Row, end: End) -> None:
    _heading(console, "prediction - truth")
    mass = "" if end.mass == 1 else f", p = {_short(end.mass, 6)}"
    _say(console, Text(f"The last line at every class k: {text(end.line)}{mass}", REASON))
    sign = text(end.line).replace("_k", "")
    _bars(console, row, end, sign)
    _witnesses(console, row, end, sign)


def _bars(console: Console, row: Row, end: End, sign: str) -> None:
    every = console.width >= 72  # in a narrow terminal, only yhat - y has bars
    width = max(4, min(24, (console.width - 56) // 3 if every else console.width - 50))
    size, most = max(1.0, *map(float, row.truth)), max(abs(float(g)) for g in end.gradient) or 1.0
    table = _table(
        *(("class", "ŷ", "", "y", "", sign, "") if every else ("class", "ŷ", "y", sign, "")),
        called=16 if every else max(4, min(10, console.width - 36)),
    )
    columns = (_listed(row, values) for values in (end.yhat, row.truth, end.gradient))
    for (name, _, _), q, y, g in zip(row.entries, *columns, strict=True):
        signed = Bar(2 * most, most + min(0.0, float(g)), most + max(0.0, float(g)), width=width, color="red" if g < 0 else "green")
        pairs = [(_fixed(x, 4).lstrip("+"), Bar(size, 0, float(x), width=width, color="blue")) for x in (q, y)]
        table.add_row(Text(name), *(x for pair in pairs for x in (pair if every else pair[:1])), _fixed(g, 4), signed)
    console.print(table)


def _witnesses(console: Console, row: Row, end: End, sign: str) -> None:
    digits = 12 if console.width >= 76 else 8 if console.width >= 60 else 5
    table = _table("class", sign, "central difference" if digits > 8 else "slope", "softxent", called=max(4, min(16, console.width - 36)))
    columns = (_listed(row, end.gradient), _listed(row, end.slopes), _listed(row, end.ours, end.masked))
    for (name, _, _), *values in zip(row.entries, *columns, strict=True):
        table.add_row(Text(name), *(_fixed(x, digits) for x in values))
    table.add_section()
    table.add_row("sum", *(_fixed(sum(x, Decimal(0)), digits) for x in (end.gradient, end.slopes, [*map(Decimal, end.ours)])))
    console.print(table)
    far = max(abs(a - b) for a, b in zip(end.gradient, end.slopes, strict=True))
    rule = f"(L(z_k + h) {MINUS} L(z_k {MINUS} h)) / 2h, h = {STEP:.0e}, in 50 digits"
    off = f"It differs from the last line by at most {_short(far, 2)}; its error is at most {_short(end.slope_error, 2)}"
    _claim(console, end.slopes_agree, f"central difference: {rule}. It uses the loss only. {off}.")
    apart = [abs(Decimal(b) - a) for a, b in zip(end.gradient, end.ours, strict=True)]
    used = max(a / limit for a, limit in zip(apart, end.bound, strict=True))
    off = f"it differs from the last line by at most {_short(max(apart), 2)}, {100 * used:.0f} % of the bound on its rounding error"
    losses = f"Its loss is {_short(Decimal(end.our_loss), 8)}; with 50 digits it is {_short(end.loss, 8)}"
    _claim(console, end.ours_agrees, f"softxent.cross_entropy_and_grad, {row.logits.dtype}: {off}. {losses}.")


def _listed(row: Row, values: Sequence[Any], masked: Sequence[float] = ()) -> list[Decimal]:
    """Return the values in the order of the tables: those of the places and those of the masked classes, which are 0 by default."""
    at_masked = iter(masked)
    return [Decimal(next(at_masked, 0) if place is None else values[place]) for _, _, place in row.entries]


def _claim(console: Console, holds: bool, claim: str) -> None:
    _say(console, Text.assemble(("✓ " if holds else "✗ FAILED: ", "green" if holds else WRONG), claim))


def _say(console: Console, words: str | Text, left: int = 2) -> None:
    console.print(Padding(Text(words) if isinstance(words, str) else words, (0, 0, 0, left)))


def _table(*columns: str, called: int = 16) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i and name else "left", no_wrap=True, max_width=None if i else called)
    return table


def _value(x: Decimal, last: Decimal, covered: bool = True) -> str:
    """Return the value of a line. After a cancellation that the digits do not cover, it is shown as approximately 0."""
    if x == 0 and not covered:
        return "≈ 0"
    return "≈ 0" if max(abs(x), abs(last)) < TOLERANCE and abs(x - last) > abs(last) / 10**6 else f"= {_short(x, 6)}"


def _short(x: Decimal, digits: int) -> str:
    return short(x, digits).replace("-", MINUS)


def _fixed(x: Decimal, digits: int) -> str:
    digits = max(0, digits - max(0, x.adjusted()))
    return f"{x:+.{digits}f}".replace("-", MINUS) if round(x, digits) else f"{0:.{digits}f}"


def _plain(x: Any) -> str:
    if not isinstance(x, list):
        return _short(x, 4)
    return f"({', '.join(map(_plain, x if len(x) <= 4 else x[:3]))}{', …' if len(x) > 4 else ''})"
