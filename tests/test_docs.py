"""The README and the documentation are correct: snippets run, commands exist, counts are right, links resolve, and the site builds."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cases import command

import softxent.boosting
import softxent.jax
import softxent.sklearn
import softxent.torch
from softxent.proof.derivation import DERIVATIONS
from softxent.proof.prove import counts

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
GENERATED = {"explain.html", "Softmax.v", "Lines.v", "Rounding.v", "Frechet.v"}  # by tools/docs_hooks.py
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
    """The examples in the docstring of a module run."""
    assert not doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS).failed


def test_every_public_function_has_its_place_in_the_docs():
    listed = re.findall(r"^::: softxent\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(listed) == sorted(softxent.__all__)
    listed = re.findall(r"^::: softxent\.torch\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(listed) == sorted(softxent.torch.__all__)
    for module in (softxent.jax, softxent.sklearn, softxent.boosting):
        listed = re.findall(rf"^::: {module.__name__}\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
        assert sorted(listed) == sorted(module.__all__)


def test_the_readme_has_at_most_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


# ---- commands ----


def commands_of(text):
    """The commands of a page, as lists of words: those of its sh blocks, and those in backticks that begin with one of our programs."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    inline = re.findall(r"`((?:make|pip install|(?:\.venv/bin/)?softxent|python -m softxent\S*) [^`\n]+)`", text)
    return [words for line in [*"".join(blocks).splitlines(), *inline] if (words := shlex.split(line, comments=True))]


def refuse(words, capsys):
    """What is wrong with a command, or None. Raises KeyError for a program that this test does not know."""
    program, *rest = words
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        if re.fullmatch(r"dist/softxent-\*[\w.*-]*\.(whl|tar\.gz)", rest[-1]):  # a file of make wheels
            return None
        wanted = re.fullmatch(r"\.(?:\[([\w,]+)\])?", rest[-1])
        return None if wanted and set((wanted[1] or "").split(",")) <= {"", *extras} else f"no such extra: {words}"
    if program == "make":
        missing = set(rest) - set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        return f"no target {missing}" if missing else None
    if program == "python" and rest[0].startswith("examples/"):
        return None if (ROOT / rest[0]).exists() else f"no file {rest[0]}"
    if words[:3] == ["python", "-m", "softxent.bench"]:
        return missing_options(rest[2:], subprocess.run([sys.executable, *rest[:2], "--help"], capture_output=True, text=True).stdout)
    if Path(program).name != "softxent":
        raise KeyError(program)
    code, text, _ = command([*(word for word in rest[:1] if word[0] != "-"), "--help"], capsys)
    return f"no subcommand: {words}" if code else missing_options(rest[1:], text)


def missing_options(words, text):
    """The options and subcommands among the words that the help does not have."""
    missing = [word for word in words if word.startswith("-") and not re.search(rf"{re.escape(word)}\b", text)]
    return f"no option {missing}" if missing else None


@pytest.mark.parametrize("page", [p for p in PAGES if commands_of(p.read_text())], ids=name)
def test_every_command_of_a_page_exists(page, capsys, monkeypatch):
    """Makefile targets, extras, subcommands and their options. A program of another project is allowed, but not in the README."""
    monkeypatch.setenv("COLUMNS", "200")
    for words in commands_of(page.read_text()):
        try:
            assert refuse(words, capsys) is None, words
        except KeyError:
            assert page.name != "README.md", f"unknown program: {words}"


@pytest.mark.parametrize(
    "line",
    [
        "make tests",
        "pip install '.[torches]'",
        "pip install softxent",
        "softxent explan",
        "softxent explain --logit 1",
        "python examples/no.py",
    ],
)
def test_a_command_that_does_not_exist_is_found(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert refuse(commands_of(f"```sh\n{line}  # a comment\n```\n")[0], capsys)
    assert refuse(commands_of("`softxent explain --logits 1,2`")[0], capsys) is None


# ---- counts ----


def wrong_counts(text):
    """The counts of a text, such as `202 lines`, that are not those of the proof."""
    found = re.findall(rf"\b([\d,]+) ({'|'.join(counts())})\b", text)
    return [(n, what) for n, what in found if int(n.replace(",", "")) != counts()[what]]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_count_of_the_proof_is_right(page):
    assert not wrong_counts(page.read_text())


def test_the_readme_counts_the_lines_of_the_proof():
    text = (ROOT / "README.md").read_text()
    assert all(f"{counts()[what]} {what}" in text for what in ("lines", "derivations"))
    assert wrong_counts(text.replace(f"{counts()['lines']} lines", "7 lines")) == [("7", "lines")]


# ---- links and the site ----


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for target in set(re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())) - GENERATED:
        assert (page.parent / target).exists(), target


def test_site_builds_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    mathematics = (tmp_path / "mathematics/index.html").read_text()
    assert "below = difference(shift, rest, temperature)".replace(" ", "") in re.sub(r"<[^>]+>|\s", "", mathematics)  # formula.py, quoted
    derivation = (tmp_path / "derivation/index.html").read_text()
    theorems = {x for d in DERIVATIONS.values() for x in (d.name, *(d.theorem(n + 1) for n in range(len(d.steps))))}
    assert theorems <= set(re.findall(r"<code>(\w+)</code></a>", derivation))
    assert all((tmp_path / name).stat().st_size > 4_000 for name in GENERATED)
    assert "<math" in mathematics and 'class="arithmatex"' not in mathematics
