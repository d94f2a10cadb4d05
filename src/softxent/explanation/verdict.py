"""The output of `softxent prove`: for each line its rule, its reason, what accepts it, and the time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..proof.derivation import DERIVATIONS, PARTS, Derivation
from ..proof.prove import HOW_TO_GET_COQ, Checked, CheckedFile, Proof, prove
from ..proof.reading import SIGNS, latex, prose, text
from . import chosen

OK, NO = ("✓", "green"), ("✗", "bold red")
JUDGES = {"sympy": "SymPy", "squares": "squares"}


def run(wanted: Sequence[str], as_json_: bool) -> int:
    """Prove these derivations, or all if there are none, and print the result. Returns the exit code."""
    console = Console(stderr=as_json_)
    named = [one for _, derivations in chosen("prove", wanted) for one in derivations] if wanted else list(DERIVATIONS.values())
    proof = with_progress(named, console, further=not wanted)
    if as_json_:
        print(json.dumps(as_json(proof), ensure_ascii=False, indent=1))
    else:
        show(console, proof)
    return 0 if proof.proved else 1 if wrong(proof) else 3


def wrong(proof: Proof) -> bool:
    """Whether something is refused, and not only missing."""
    return bool(proof.refused or proof.coq_error or any(not x.proved and not x.missing for x in proof.further))


def with_progress(derivations: Sequence[Derivation], console: Console, *, further: bool = False) -> Proof:
    """Prove the derivations, and check the further files if `further` is true, with a progress bar on a terminal."""
    if not console.is_terminal:
        return prove(derivations, further=further)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        return prove(derivations, further=further, tell=lambda what, n, of: bar.update(task, description=what, completed=n, total=of))


def show(console: Console, proof: Proof) -> None:
    console.width = min(console.width, 140)
    for part in PARTS:
        here = {one.name for one in part.derivations}
        mine = [x for x in proof.lines if x.derivation.name in here]
        if mine:
            console.print("\n", Text(part.title, "bold"), sep="")
        for one in dict.fromkeys(x.derivation.name for x in mine):
            console.print(_table([x for x in mine if x.derivation.name == one], proof))
    for x in proof.further:
        console.print("\n", Text(x.file.title, "bold"), sep="")
        mark = OK if x.proved else ("not run", "yellow") if x.missing else NO
        for name, (words, _) in x.file.theorems.items():
            console.print(Text.assemble("  ", mark, " ", name, (f"  {prose(words)}", "dim")))
    console.print(Text(summary(proof), "bold green" if proof.proved else "bold red" if wrong(proof) else "bold yellow"))
    for line in proof.refused:
        console.print(Text(f"  {line.theorem}: {line.refused or line.coq_refused}", "red"))


def _table(lines: list[Checked], proof: Proof) -> Table:
    d = lines[0].derivation
    table = Table(box=box.SIMPLE_HEAD, title=Text(prose(d.title)), title_justify="left", pad_edge=False)
    for name, wide in (("line", 5), ("rule and reason", 4), ("rule", 0), ("algebra", 0), ("Coq", 0), ("ms", 0)):
        table.add_column(name, ratio=wide or None, justify="right" if name == "ms" else "left", no_wrap=not wide)
    table.add_row(Text(f"  {text(d.start)}"))
    for x in lines:
        ms = f"{1000 * ((x.sympy_seconds or 0) + (x.coq_seconds or 0)):.0f}"
        if not x.line:
            table.add_row(Text("all of it", "dim"), "", "", "", _coq(x, proof), ms)
            continue
        step = d.steps[x.line - 1]
        mark = OK if x.refused is None else NO
        algebra = Text.assemble(mark, " ", JUDGES[x.judge])
        reason = Text.assemble((step.rule, "italic"), ": ", prose(step.why), style="dim")
        table.add_row(Text(f"{SIGNS[step.rel]} {text(step.expr)}"), reason, Text(*mark), algebra, _coq(x, proof), ms)
    return table


def _coq(x: Checked, proof: Proof) -> Text:
    if proof.coq is None:
        return Text("not run", "yellow")
    return Text.assemble(OK if "coq" in x.by else NO, " ", x.theorem)


def summary(proof: Proof) -> str:
    lines, theorems = sum(1 for x in proof.lines if x.line), len(proof.lines)
    seconds = sum(x.sympy_seconds or 0 for x in proof.lines)
    squares = sum(1 for x in proof.lines if x.judge == "squares")
    checked = f"{lines} lines: each follows by its rule, and each equation by SymPy for every number of classes ({seconds:.1f} s)"
    if squares:
        from ..proof.squares import CLASSES  # loads SymPy, which the checks did by now

        checked += f". SymPy does not check inequalities: {squares} is a sum of squares, shown for up to {max(CLASSES)} classes"
    if any(x.refused for x in proof.lines):
        checked = f"{sum(1 for x in proof.lines if x.refused)} of {lines} lines do not follow"
    if proof.coq is None:
        return f"{checked}. Not proved: there is no coqc here to check the theorems ({HOW_TO_GET_COQ})."
    if proof.coq_error:
        return f"{checked}. Not proved: Coq {proof.coq} stopped: {proof.coq_error}"
    if any(x.coq_refused for x in proof.lines):
        return f"{checked}. Not proved: Coq {proof.coq} refuses {sum(1 for x in proof.lines if x.coq_refused)} of {theorems} theorems"
    return (
        f"{checked}. Proved: Coq {proof.coq} accepts {theorems} theorems, for the real numbers of its standard library "
        f"({', '.join(sorted(a.split('.')[-1] for a in proof.axioms))}).{''.join(map(_of_file, proof.further))}"
    )


def _of_file(x: CheckedFile) -> str:
    if x.missing:
        return f" {x.file.source.name} is not proved: {x.file.library}, a library of Coq, is missing ({x.file.how_to_get})."
    if not x.proved:
        return f" Not proved: {x.error or f'{x.file.source.name} rests on other axioms'}."
    return f" {x.file.source.name}, with {x.file.library}: {len(x.file.theorems)} theorems ({x.seconds:.0f} s)."


def as_json(proof: Proof) -> dict[str, Any]:
    return {
        "proved": proof.proved,
        "coq": proof.coq,
        "coq_error": proof.coq_error,
        "axioms": sorted(proof.axioms),
        "summary": summary(proof),
        "further": [_file(x) for x in proof.further],
        "lines": [_line(x) for x in proof.lines],
    }


def _file(x: CheckedFile) -> dict[str, Any]:
    return {
        "file": x.file.source.name,
        "library": x.file.library,
        "proved": x.proved,
        "missing": x.file.how_to_get if x.missing else None,
        "error": x.error,
        "axioms": sorted(x.axioms),
        "seconds": x.seconds,
        "theorems": {name: words for name, (words, _) in x.file.theorems.items()},
    }


def _line(x: Checked) -> dict[str, Any]:
    step = x.derivation.steps[x.line - 1] if x.line else None
    return {
        "derivation": x.derivation.name,
        "line": x.line,
        "theorem": x.theorem,
        "text": text(step.expr) if step else None,
        "latex": latex(step.expr) if step else None,
        "rule": step.rule if step else None,
        "reason": prose(step.why) if step else None,
        "checked_by": x.by,
        "proved": x.proved,
        "refused": x.refused or x.coq_refused,
        "seconds": {"sympy": x.sympy_seconds, "coq": x.coq_seconds},
    }
