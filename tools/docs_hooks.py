"""Hooks of mkdocs: pages quote the source instead of copying it, and formulas become MathML, which browsers draw by themselves.

<!-- quote: src/softxent/formula.py gradient -->    the function of that name, as it stands there
<!-- include: bench/results/*.md -->                 files as they are
<!-- derivation: 1 -->                               a part of the derivation, its lines with reason, value and theorem
<!-- rules -->  <!-- theorems -->  <!-- axioms -->   tables of the proof
"""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from softxent.explanation.page import page as explained
from softxent.proof.coq import BEYOND
from softxent.proof.derivation import DEFINITIONS, PARTS, Derivation
from softxent.proof.prove import AXIOMS, SOURCE
from softxent.proof.reading import SIGNS, mathml, prose
from softxent.proof.replay import Numbers, short
from softxent.proof.rules import RULES

ROOT = Path(__file__).parent.parent
PICTURES = {"img/bench.png": ROOT / "bench/results/bench.png", "Softmax.v": SOURCE}
SCORES, LABEL = (2, 1, 0.1), 0


def on_files(files: Files, config: Any) -> Files:
    for place, source in PICTURES.items():
        if source.exists():
            files.append(File.generated(config, place, abs_src_path=str(source)))
    files.append(File.generated(config, "explain.html", content=explained(SCORES, LABEL, ("cat", "dog", "owl"))))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = re.sub(r"<!-- quote: (\S+) (\w+) -->", lambda m: f"```python\n{definition(ROOT / m[1], m[2])}\n```", markdown)
    markdown = re.sub(r"<!-- include: (\S+) -->", lambda m: included(m[1]), markdown)
    markdown = re.sub(r"<!-- derivation: (\d+) -->", lambda m: part(int(m[1]) - 1), markdown)
    return re.sub(r"<!-- (rules|theorems|axioms|definitions) -->", lambda m: TABLES[m[1]](), markdown)


def on_page_content(content: str, **_: Any) -> str:
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: convert(html.unescape(m[1])), content, flags=re.S)
    return re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>', lambda m: convert(html.unescape(m[1]), display="block"), content, flags=re.S
    )


def definition(source: Path, name: str) -> str:
    text = source.read_text()
    nodes = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
    if len(nodes) != 1:
        raise ValueError(f"docs: {source} must define {name} once; got {len(nodes)} definitions")
    return "\n".join(text.splitlines()[nodes[0].lineno - 1 : nodes[0].end_lineno])


def included(pattern: str) -> str:
    files = sorted(ROOT.glob(pattern))
    pictures = [f"![]({place})" for place, source in PICTURES.items() if source.exists()]
    return "\n\n".join([file.read_text() for file in files] + pictures) if files else "No results yet: `make bench` writes them."


def part(n: int) -> str:
    """A part of the derivation: its title, and each derivation as a table."""
    return f"## {PARTS[n].title}\n\n{prose(PARTS[n].about)}\n\n" + "\n\n".join(map(derived, PARTS[n].derivations))


def derived(d: Derivation) -> str:
    numbers = Numbers(d, SCORES, [float(n == LABEL) for n in range(len(SCORES))], LABEL)
    at = numbers.places()[0]
    last = numbers.value(d.lines[-1], at)
    value = lambda e: "0" if last == 0 and abs(numbers.value(e, at)) < 1e-40 else short(numbers.value(e, at))  # noqa: E731
    rows = [f"<tr><td>{mathml(d.start)}</td><td></td><td>{value(d.start)}</td><td></td></tr>"]
    for line, step in enumerate(d.steps, 1):
        reason = f"<em>{step.rule}</em>: {html.escape(prose(step.why))}"
        cells = (f"{SIGNS[step.rel]} {mathml(step.expr)}", reason, value(step.expr), theorem(d.theorem(line)))
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    rows.append(f"<tr><td><strong>from first to last</strong></td><td></td><td></td><td>{theorem(d.name)}</td></tr>")
    where = "".join(f" {mathml(one.head)} = {mathml(one.body)}" for one in d.where)
    head = "<thead><tr><th>line</th><th>rule and reason</th><th>value</th><th>proved by</th></tr></thead>"
    about = f"<p>Where{where}.</p>\n\n" if where else ""
    return f"### {prose(d.title)} {{#{d.name}}}\n\n{about}<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def theorem(name: str) -> str:
    source = SOURCE.read_text()
    found = re.search(rf"^(Theorem|Lemma) {name}\b", source, re.M)
    if not found:
        raise ValueError(f"docs: Softmax.v has no theorem {name}")
    return f'<a href="../Softmax.v" title="Softmax.v, line {source[: found.start()].count(chr(10)) + 1}"><code>{name}</code></a>'


def rows(head: str, cells: list[tuple[str, ...]]) -> str:
    bar = "| " + " | ".join("---" for _ in head.split("|")) + " |"
    return "\n".join([f"| {head} |", bar, *("| " + " | ".join(row) + " |" for row in cells)])


TABLES = {
    "definitions": lambda: rows("name | stands for", [(mathml(one.head), mathml(one.body)) for one in DEFINITIONS]),
    "rules": lambda: rows(
        "rule | what it says | in Coq", [(n, prose(r.says), f"`{r.lemma}`" if r.lemma else "") for n, r in RULES.items()]
    ),
    "theorems": lambda: rows("theorem | what it states", [(theorem(name), prose(words)) for name, (words, _) in BEYOND.items()]),
    "axioms": lambda: "\n".join(f"- `{name}`" for name in sorted(AXIOMS)),
}
