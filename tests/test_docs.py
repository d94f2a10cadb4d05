"""What the pages say holds: their snippets run, their links lead somewhere, and the site builds."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cases import command

import softxent.torch
from softxent.proof.derivation import DERIVATIONS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
GENERATED = {"explain.html", "Softmax.v"}  # by tools/docs_hooks.py
MODULES = sorted(m.name for m in pkgutil.walk_packages(softxent.__path__, "softxent.") if not m.name.endswith(("__main__", "._kernel")))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=name)
def test_snippets_of_a_page_run_in_turn(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "snippet"}
    for block in BLOCK.finditer(page.read_text()):
        line = page.read_text()[: block.start(1)].count("\n")
        if block[1].startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(block[1], names, name(page), str(page), line)
            assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, clear_globs=False).failed
        else:
            exec(compile("\n" * line + block[1], str(page), "exec"), names)


def test_the_commands_that_explain_a_row_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page, names = (ROOT / "docs/explain-a-row.md").read_text(), {"__name__": "snippet"}
    for block in BLOCK.finditer(page):  # they write the files
        exec(block[1], names)
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S) for line in block.splitlines()]
    assert len(lines) > 10
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "softxent" and command(arguments, capsys)[0] == 0, line


def test_every_python_block_is_found():
    for page in PAGES:
        assert len(BLOCK.findall(page.read_text())) == page.read_text().count("```py"), page


def test_a_wrong_snippet_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 + 1 == 3\n```\n")
    with pytest.raises(AssertionError):
        exec(BLOCK.search(page.read_text())[1], {})


@pytest.mark.parametrize("module", ["softxent", *MODULES])
def test_docstring_examples(module):
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        if "softxent" in str(error):
            raise
        pytest.skip(f"{error}")
    assert not doctest.testmod(loaded, optionflags=doctest.ELLIPSIS).failed


def test_every_public_function_has_its_place_in_the_docs():
    listed = re.findall(r"^::: softxent\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(listed) == sorted(softxent.__all__)
    listed = re.findall(r"^::: softxent\.torch\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(listed) == sorted(softxent.torch.__all__)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for target in set(re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())) - GENERATED:
        assert (page.parent / target).exists(), target


def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    mathematics = (tmp_path / "mathematics/index.html").read_text()
    assert "hot = at_label(z, label)".replace(" ", "") in re.sub(r"<[^>]+>|\s", "", mathematics)  # formula.py, quoted
    derivation = (tmp_path / "derivation/index.html").read_text()
    theorems = {x for d in DERIVATIONS.values() for x in (d.name, *(d.theorem(n + 1) for n in range(len(d.steps))))}
    assert theorems <= set(re.findall(r"<code>(\w+)</code></a>", derivation))
    assert all((tmp_path / name).stat().st_size > 50_000 for name in GENERATED)
    assert "<math" in mathematics and 'class="arithmatex"' not in mathematics
