"""Hooks of mkdocs: pages quote the source instead of copying it, and formulas become MathML, which browsers draw by themselves.

<!-- quote: src/softxent/formula.py gradient -->    the function of that name, as it stands there
<!-- include: bench/results/*.md -->                 files as they are
"""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PICTURES = {"img/bench.png": ROOT / "bench/results/bench.png"}


def on_files(files: Files, config: Any) -> Files:
    for place, source in PICTURES.items():
        if source.exists():
            files.append(File.generated(config, place, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = re.sub(r"<!-- quote: (\S+) (\w+) -->", lambda m: f"```python\n{definition(ROOT / m[1], m[2])}\n```", markdown)
    return re.sub(r"<!-- include: (\S+) -->", lambda m: included(m[1]), markdown)


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
