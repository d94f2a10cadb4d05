"""Hooks for mkdocs. They replace comments in the pages by text that is generated from the source, so that it is always current, and
convert formulas to MathML, which browsers display without a script.

<!-- quote: src/softxent/formula.py gradient -->    the source of the function with that name
<!-- include: bench/results/*.md -->                the contents of files
<!-- derivation: 1 -->                              a part of the derivation, its lines with reason, value and theorem
<!-- rules -->  <!-- theorems -->  <!-- axioms -->  tables about the proof
<!-- definitions -->  <!-- counts -->               the definitions of the derivation, and how many lines it has
"""

from __future__ import annotations

import ast
import functools
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from softxent.explanation import Account, Formula, Replay, chosen
from softxent.explanation import account as work_out
from softxent.explanation.formulas import sentence
from softxent.explanation.page import page as explained
from softxent.explanation.row import arrange
from softxent.proof.coq import BEYOND
from softxent.proof.derivation import DEFINITIONS, DERIVATIONS, Step
from softxent.proof.expr import E
from softxent.proof.prove import AXIOMS, FRECHET, ROUNDING, SOURCE, Further, counts, lines_file
from softxent.proof.reading import SIGNS, mathml, prose
from softxent.proof.replay import short
from softxent.proof.rules import RULES

ROOT = Path(__file__).parent.parent
PROOFS = {file.name: file for file in (SOURCE, ROUNDING.source, FRECHET.source)}
PICTURES = {"img/bench.png": ROOT / "bench/results/bench.png", **PROOFS}
HEAD = "<thead><tr><th>line</th><th>rule and reason</th><th>value</th><th>proved by</th></tr></thead>"
SCORES, LABEL, NAMES = (2, 1, 0.1), 0, ("cat", "dog", "owl")


def on_files(files: Files, config: Any) -> Files:
    for place, source in PICTURES.items():
        if source.exists():
            files.append(File.generated(config, place, abs_src_path=str(source)))
    files.append(File.generated(config, "explain.html", content=explained(SCORES, LABEL, NAMES)))
    files.append(File.generated(config, "Lines.v", content=lines()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = re.sub(r"<!-- quote: (\S+) (\w+) -->", lambda m: f"```python\n{definition(ROOT / m[1], m[2])}\n```", markdown)
    markdown = re.sub(r"<!-- include: (\S+) -->", lambda m: included(m[1]), markdown)
    markdown = re.sub(r"<!-- derivation: (\d+) -->", lambda m: part(int(m[1]) - 1), markdown)
    return re.sub(rf"<!-- ({'|'.join(TABLES)}) -->", lambda m: TABLES[m[1]](), markdown)


def on_page_content(content: str, **_: Any) -> str:
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: convert(html.unescape(m[1])), content, flags=re.S)
    return re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>', lambda m: convert(html.unescape(m[1]), display="block"), content, flags=re.S
    )


def definition(source: Path, name: str) -> str:
    """Return the source of the function or class with this name."""
    text = source.read_text()
    nodes = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
    if len(nodes) != 1:
        raise ValueError(f"docs: {source} must define {name} once; got {len(nodes)} definitions")
    return "\n".join(text.splitlines()[nodes[0].lineno - 1 : nodes[0].end_lineno])


def included(pattern: str) -> str:
    """Return the contents of the files, and the pictures that are made from the same results."""
    files = sorted(ROOT.glob(pattern))
    pictures = [f"![]({place})" for place, source in PICTURES.items() if source.exists() and source.with_suffix(".md") in files]
    return "\n\n".join([file.read_text() for file in files] + pictures) if files else "No results yet: `make bench` writes them."


@functools.cache
def account() -> Account:
    """Return the whole derivation, evaluated for the example of the article."""
    return work_out(arrange(np.array(SCORES), label=LABEL, names=NAMES), chosen("docs", (), everything=True))


def part(n: int) -> str:
    """Return a part of the derivation: its title, its remarks with their formulas, and each derivation as a table."""
    section = account().sections[n]
    remarks = [f"<p>{sentence(words)}</p>" + "".join(map(shown, formulas)) for words, formulas in section.remarks]
    chains = [f"### {prose(one.derivation.title)} {{#{one.derivation.name}}}\n\n{derived(one)}" for one in section.replays]
    return "\n\n".join([f"## {section.part.title}", *remarks, *chains])


def shown(one: Formula) -> str:
    f = one.formula
    return f"<p>{mathml(f) if isinstance(f, E) else f'{mathml(f.head)} = {mathml(f.body)}'}</p>"


def derived(one: Replay, head: str = HEAD) -> str:
    d = one.derivation
    rows = []
    for n, line in enumerate(one.lines):
        rows += [f'<tr><td colspan="4">{lemma(x)}</td></tr>' for x in line.lemmas]
        sign, reason = ("", "") if line.step is None else (SIGNS[line.step.rel], because(line.step))
        cells = (f"{sign} {mathml(line.expr)}", reason, short(line.value), theorem(d.theorem(n)) if n else "")
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    name = f"<strong>{prose(d.result)}: </strong>" if d.result else ""
    whole = f"{name}{mathml(d.start)} {SIGNS[d.steps[-1].rel]} {mathml(d.lines[-1])}"
    rows.append(f"<tr><td>{whole}</td><td>from first to last</td><td></td><td>{theorem(d.name)}</td></tr>")
    where = "".join(f" {mathml(own.head)} = {mathml(own.body)}" for own in d.where)
    about = f"<p>Where{where}.</p>" if where else ""
    return f"{about}<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def lemma(one: Replay) -> str:
    anchor = (
        f' id="{one.derivation.name}"' if one.derivation == DERIVATIONS[one.derivation.name] else ""
    )  # with other letters it comes again
    return f"<strong{anchor}>{sentence(one.derivation.title)}</strong>{derived(one, '')}"


def because(step: Step) -> str:
    return f"<em>{step.rule}</em>: {sentence(step.why)}"


def theorem(name: str, file: Path = SOURCE) -> str:
    """Return a link to a theorem, with its line: in a file of Coq, or in the generated one."""
    for place, source in ((file.name, file.read_text()), ("Lines.v", lines())):
        if found := re.search(rf"^(Theorem|Lemma) (line_)?{name}\b", source, re.M):
            at = source[: found.start()].count("\n") + 1
            return f'<a href="../{place}" title="{place}, line {at}"><code>{name}</code></a>'
    raise ValueError(f"docs: {file.name} has no theorem {name}")


@functools.cache
def lines() -> str:
    return lines_file()


def further(file: Further) -> str:
    return rows("theorem | what it states", [(theorem(name, file.source), prose(words)) for name, (words, _) in file.theorems.items()])


def rows(head: str, cells: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    bar = "| " + " | ".join("---" for _ in head.split("|")) + " |"
    return "\n".join([f"| {head} |", bar, *("| " + " | ".join(row) + " |" for row in cells)])


TABLES = {
    "definitions": lambda: rows("name | stands for", [(mathml(one.head), mathml(one.body)) for one in DEFINITIONS]),
    "rules": lambda: rows(
        "rule | what it says | in Coq", [(n, prose(r.says), f"`{r.lemma}`" if r.lemma else "") for n, r in RULES.items()]
    ),
    "theorems": lambda: rows("theorem | what it states", [(theorem(name), prose(words)) for name, (words, _) in BEYOND.items()]),
    "rounding": lambda: further(ROUNDING),
    "frechet": lambda: further(FRECHET),
    "axioms": lambda: "\n".join(f"- `{name}`" for name in sorted(AXIOMS)),
    "counts": lambda: (
        "There are {lines} lines in {derivations} derivations. Coq proves {theorems} theorems about them, one for each line and one for "
        "each derivation as a whole, and {more} further theorems.".format(**counts(), more=len(BEYOND))
    ),
}
