"""The tables and lines that the demo prints. Text from the corpus is not interpreted as rich markup, because it contains brackets."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .checks import Check
from .complete import pretty
from .memory import Size
from .model import Trainer
from .one_token import OneToken
from .train import times_as_quick, tokens_per_second


def compared(console: Console, trainers: Sequence[Trainer], perplexities: Sequence[float], batch: int) -> None:
    table = _table("The same model, trained twice", "", *(t.head.name for t in trainers), "NumPy / softxent")
    _row(table, "held-out perplexity", perplexities, ".2f", perplexities[1] / perplexities[0])
    _row(table, "head, ms a step", [1e3 * median(s.head for s in t.steps) for t in trainers], ".1f", times_as_quick(trainers, head=True))
    best = [1e3 * min(s.head for s in t.steps) for t in trainers]
    _row(table, "head, ms, the quickest", best, ".1f", best[1] / best[0])
    _row(table, "whole step, ms", [1e3 * median(s.whole for s in t.steps) for t in trainers], ".1f", times_as_quick(trainers, head=False))
    _row(table, "tokens a second", [tokens_per_second(t, batch) for t in trainers], ",.0f")
    console.print(table)


def grown(console: Console, names: Sequence[str], sizes: Sequence[Size]) -> None:
    titles = [f"{name}, {unit}" for unit in ("MiB", "ms") for name in names]
    table = _table("Loss and gradients of one batch: peak memory and time", "tokens", *titles)
    for s in sizes:
        table.add_row(f"{s.tokens:,}", *(f"{p / 2**20:.1f}" for p in s.peaks), *(f"{1e3 * t:.1f}" for t in s.seconds))
    console.print(table)


def taken_apart(console: Console, token: OneToken) -> None:
    before, label = pretty(token.context), (token.label, "bold green")
    console.print(Text.assemble(("One real token", "bold"), f"   {before}  ", label, f"   loss {token.loss:.4f}"), soft_wrap=True)
    table = _table("", "class", "yhat", "y", "yhat - y", "central difference")
    for e in token.entries:
        table.add_row(Text(e.token), f"{e.yhat:.6f}", f"{e.y:.0f}", f"{e.gradient:+.9f}", f"{e.slope:+.9f}")
    table.add_section()
    table.add_row(f"{token.others:,} others", f"{token.rest:.6f}", "0", f"{token.rest:+.9f}", "")
    table.add_row("sum", "1", "1", f"{token.total:+.0e}", "")
    console.print(table)


def completed(console: Console, lines: Sequence[tuple[str, list[str]]]) -> None:
    console.print(Text("Lines of code that the model completes; the prompt is bold", "bold"))
    for prompt, line in lines:
        whole = pretty(line)
        console.print(Text.assemble("    ", (whole[: len(prompt)], "bold"), whole[len(prompt) :]), soft_wrap=True)
    console.print()


def checked(console: Console, checks: Sequence[Check]) -> bool:
    """Print the claims. Returns whether all of them hold."""
    for c in checks:
        word, style = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "dim")}[c.holds]
        console.print(Text.assemble((f"{word:>6}", style), f"  {c.claim}: ", (c.measured, "dim")), soft_wrap=True)
    return all(c.holds is not False for c in checks)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _row(table: Table, name: str, values: Sequence[float], form: str, ratio: float | None = None) -> None:
    table.add_row(name, *(format(v, form) for v in values), "" if ratio is None else f"{ratio:.2f}")
