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
from ..proof.prove import HOW_TO_GET_COQ, HOW_TO_GET_FLOCQ, Checked, Proof, Rounding, prove
from ..proof.reading import SIGNS, latex, prose, text
from ..proof.rounding import THEOREMS
from . import chosen

OK, NO = ("✓", "green"), ("✗", "bold red")
JUDGES = {"sympy": "SymPy", "squares": "squares"}


def run(wanted: Sequence[str], as_json_: bool) -> int:
    """Prove these derivations, or all if there are none, and print the result. Returns the exit code."""
    console = Console(stderr=as_json_)
    named = [one for _, derivations in chosen("prove", wanted) for one in derivations] if wanted else list(DERIVATIONS.values())
    proof = with_progress(named, console, rounding=not wanted)
    if as_json_:
        print(json.dumps(as_json(proof), ensure_ascii=False, indent=1))
    else:
        show(console, proof)
    return 0 if proof.proved else 1 if wrong(proof) else 3


def wrong(proof: Proof) -> bool:
    """Whether something is refused, and not only missing."""
    return bool(proof.refused or proof.coq_error or (proof.rounding and not proof.rounding.proved and not proof.rounding.missing))


def with_progress(derivations: Sequence[Derivation], console: Console, *, rounding: bool = False) -> Proof:
    """Prove the derivations, and the bounds of rounding errors if `rounding` is true, with a progress bar on a terminal."""
    if not console.is_terminal:
        return prove(derivations, rounding=rounding)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        return prove(derivations, rounding=rounding, tell=lambda what, n, of: bar.update(task, description=what, completed=n, total=of))


def show(console: Console, proof: Proof) -> None:
    console.width = min(console.width, 140)
    for part in PARTS:
        here = {one.name for one in part.derivations}
        mine = [x for x in proof.lines if x.derivation.name in here]
        if mine:
            console.print("\n", Text(part.title, "bold"), sep="")
        for one in dict.fromkeys(x.derivation.name for x in mine):
            console.print(_table([x for x in mine if x.derivation.name == one], proof))
    if proof.rounding:
        console.print("\n", Text("Rounding errors", "bold"), sep="")
        mark = OK if proof.rounding.proved else ("not run", "yellow") if proof.rounding.missing else NO
        for name, (words, _) in THEOREMS.items():
            console.print(Text.assemble("  ", mark, " ", name, (f"  {words}", "dim")))
    console.print(Text(summary(proof), "bold green" if proof.proved else "bold red" if wrong(proof) else "bold yellow"))
    for x in proof.refused:
        console.print(Text(f"  {x.theorem}: {x.refused or x.coq_refused}", "red"))


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
        f"({', '.join(sorted(a.split('.')[-1] for a in proof.axioms))}).{_of_rounding(proof.rounding)}"
    )


def _of_rounding(found: Rounding | None) -> str:
    if found is None:
        return ""
    if found.missing:
        return f" The bounds of rounding errors are not proved: Flocq, a library of Coq, is missing ({HOW_TO_GET_FLOCQ})."
    if not found.proved:
        return f" The bounds of rounding errors are not proved: {found.error or 'they rest on other axioms'}"
    return f" {len(THEOREMS)} theorems about rounding errors are proved with Flocq ({found.seconds:.0f} s)."


def as_json(proof: Proof) -> dict[str, Any]:
    return {
        "proved": proof.proved,
        "coq": proof.coq,
        "coq_error": proof.coq_error,
        "axioms": sorted(proof.axioms),
        "summary": summary(proof),
        "rounding": _rounding_json(proof.rounding),
        "lines": [_line(x) for x in proof.lines],
    }


def _rounding_json(found: Rounding | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "proved": found.proved,
        "missing": HOW_TO_GET_FLOCQ if found.missing else None,
        "error": found.error,
        "axioms": sorted(found.axioms),
        "seconds": found.seconds,
        "theorems": {name: words for name, (words, _) in THEOREMS.items()},
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
