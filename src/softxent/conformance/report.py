"""The report of a check: a table in the terminal, JSON, and a page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .. import __version__, contract
from .check import BROKEN, CRASHED, HOLDS, LACKING, REFUSED, Finding
from .laws import LAWS
from .run import Report, check

STYLE = {HOLDS: "green", BROKEN: "bold red", CRASHED: "bold red", REFUSED: "yellow", LACKING: "dim"}
MEANING = {
    HOLDS: "the law holds for all cases that were tried",
    BROKEN: "a case breaks the law",
    CRASHED: "the process ended, or the call did not return",
    REFUSED: "the function raises an error that says that it does not support a case",
    LACKING: "the function has no such argument or derivative",
}


def run(
    subject: str,
    as_: str | None,
    *,
    quick: bool,
    as_json: bool,
    html: Path | None,
    laws: list[str],
    listed: bool,
    timeout: float,
    ranks: int,
) -> bool:
    """Check a subject and show the report. Returns whether no law is broken."""
    from rich.console import Console

    console = Console(highlight=False)
    if listed:
        _list(console)
        return True
    if html is not None:
        contract.place("check", "--html", html, folder=False)
    report = _with_progress(subject, as_, quick, laws, timeout, ranks)
    if html is not None:
        html.write_text(page(report), encoding="utf-8", errors="backslashreplace")
    if as_json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        show(report, console)
    return report.passed


def _with_progress(subject: str, as_: str | None, quick: bool, laws: list[str], timeout: float, ranks: int) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    ) as bar:  # fmt: skip
        task = bar.add_task(_plain(subject), total=None)

        def progress(law: str, done: int, total: int) -> None:
            bar.update(task, description=law, completed=done, total=total)

        return check(subject, as_, quick=quick, laws=laws or None, timeout=timeout, ranks=ranks, progress=progress)


def _list(console: Any) -> None:
    for law in LAWS.values():
        console.print(f"[bold]{law.name}[/] [dim]({law.group})[/]\n    {law.statement}", soft_wrap=True)


def show(report: Report, console: Any) -> None:
    """Print the table of laws, and below it each law that is broken with a script that prints what was got."""
    from rich import box
    from rich.table import Table

    table = Table("", "law", "", "cases", "expected", "got", box=box.SIMPLE_HEAD, title=None)
    group = ""
    for f in report.findings:
        expected, got = (f.expected, f.got) if f.status in (BROKEN, CRASHED) else ("", f.got if f.status == REFUSED else f.what)
        style = STYLE[f.status]
        first = f.group if f.group != group else ""
        table.add_row(_plain(first), _plain(f.law), f"[{style}]{f.status}[/]", str(f.cases or ""), _plain(expected[:30]), _plain(got[:90]))
        group = f.group
    named = f"{report.subject}, called like {report.dialect}; options: {', '.join(report.options) or 'none'}"
    console.print(_plain(named), soft_wrap=True)
    console.print(table)
    for f in report.findings:
        if f.status in (BROKEN, CRASHED):
            console.print(f"[{STYLE[f.status]}]{f.status}[/]: [bold]{_plain(f.law)}[/]\n{_plain(f.statement)}", soft_wrap=True)
            console.print(f"{_plain(f.what)}: expected {_plain(f.expected)}, got {_plain(f.got)}\n", soft_wrap=True)
            console.print(_plain(f.script) + "\n", soft_wrap=True)
    console.print(summary(report), soft_wrap=True)


def _plain(text: str) -> str:
    """Return text from outside, such as the message of an error, as rich shows it without reading markup or escapes in it."""
    from rich.markup import escape

    return escape(contract.printable_lines(text))


def summary(report: Report) -> str:
    """Return a sentence with the number of laws of each status."""
    counts = [f"{report.count(status)} {status}" for status in (HOLDS, BROKEN, CRASHED, REFUSED, LACKING) if report.count(status)]
    return f"{len(report.findings)} laws: " + ", ".join(counts)


def page(report: Report) -> str:
    """Return the report as a page that needs no other file."""
    rows = "\n".join(_row(f) for f in report.findings)
    title = escape(f"The laws of cross-entropy: {report.subject}")
    return Template((Path(__file__).parent / "page.html").read_text()).substitute(
        title=title, dialect=escape(report.dialect), summary=escape(summary(report)), version=__version__, rows=rows
    )


def _row(f: Finding) -> str:
    shown = f'<p class="{f.status.split()[0]}" title="{escape(MEANING[f.status])}">{f.status}</p>'
    if f.status in (BROKEN, CRASHED, REFUSED):
        shown += f"<p>{escape(f.what)}: expected {escape(f.expected)}, got {escape(f.got)}</p><pre>{escape(f.script)}</pre>"
    elif f.status == LACKING:
        shown += f"<small>{escape(f.what)}</small>"
    return f"<tr><td>{escape(f.law)}<br><small>{escape(f.statement)}</small></td><td>{shown}</td></tr>"
