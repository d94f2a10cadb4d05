"""softxent.explain: text in a terminal, a page in a notebook, and what it says of wrong arguments and missing extras."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import environment
from test_cli import command
from test_page import HOSTILE, browser  # noqa: F401

import softxent

Z, NAMES = [2.0, 1.0, 0.1], ["cat", "dog", "owl"]


# ---------------------------------------------------------------- as the command

SAME = [
    ({"label": 0}, "--label 0"),
    ({"label": "owl", "names": NAMES, "j": "dog", "k": 0}, "--label owl --names cat,dog,owl --j dog --k 0"),
    ({"truth": [0.7, 0.2, 0.1]}, "--truth 0.7,0.2,0.1"),
    ({"truth": np.array([0.7, 0.2, 0.1], np.float32)}, "--truth 0.7,0.2,0.1"),
    ({"label": 1, "derivations": "result1"}, "result1 --label 1"),
    ({"label": 1, "derivations": ["result1", "hessian_same"]}, "result1 hessian_same --label 1"),
    ({"label": 1, "everything": True}, "--all --label 1"),
]


@pytest.mark.parametrize(("options", "arguments"), SAME, ids=[x for _, x in SAME])
def test_it_is_what_the_command_shows(options, arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    asked = ["explain", "--logits", "2,1,0.1", *arguments.split()]
    result = softxent.explain(Z, **options)
    code, out, _ = command(asked, capsys)
    assert code == 0 and result.agrees
    assert str(result) == repr(result) == "\n".join(line.rstrip() for line in out.splitlines())
    assert result.to_dict() == json.loads(command([*asked, "--json"], capsys)[1])


@pytest.mark.parametrize("arguments", ["--label 1", "--label 2 --j 0 --k 1", "result1 --label 1", "--all --label 0"])
def test_its_page_is_the_one_that_the_command_writes(arguments, tmp_path, capsys):
    assert command(["explain", "--logits", "2,1,0.1", "--html", str(tmp_path / "x.html"), *arguments.split()], capsys)[0] == 0
    options = {name: int(n) for name, n in re.findall(r"--(\w+) (\d)", arguments)}
    more = {"derivations": "result1"} if "result1" in arguments else {"everything": "--all" in arguments}
    result = softxent.explain(Z, **options, **more)
    result.save(tmp_path / "y.html")
    assert result.to_html() == (tmp_path / "x.html").read_text("utf-8") == (tmp_path / "y.html").read_text("utf-8")


# ---------------------------------------------------------------- arguments

LOGITS = {
    "a tuple": ((2.0, 1.0, 0.1), "float64"),
    "integers": ([2, 1, 0], "float64"),
    "float32": (np.array(Z, np.float32), "float32"),
    "float16": (np.array(Z, np.float16), "float16"),
    "bfloat16": (np.array(Z).astype(ml_dtypes.bfloat16), "bfloat16"),
    "strides": (np.array([Z, Z]).T[:, 1], "float64"),
    "a tensor": (torch.tensor(Z), "float32"),
    "a tensor of bfloat16": (torch.tensor(Z, dtype=torch.bfloat16), "bfloat16"),
}


@pytest.mark.parametrize("logits", LOGITS)
def test_logits_of_many_types(logits):
    z, dtype = LOGITS[logits]
    row = softxent.explain(z, 0).to_dict()["row"]
    assert row["dtype"] == dtype and row["scores"] == [float(x) for x in z]


@pytest.mark.parametrize("label", [2, np.int8(2), np.array(2), torch.tensor(2), torch.tensor([0, 2])[1], "owl", np.str_("owl")], ids=repr)
def test_labels_of_many_types(label):
    assert softxent.explain(Z, label, names=np.array(NAMES)).to_dict()["row"]["label"] == 2


def test_a_str_is_a_name_and_an_int_is_an_index():
    names = ["2", "0", "1"]
    for label, place in ((0, 0), ("0", 1), (1, 1), ("1", 2)):
        assert softxent.explain(Z, label, names=names).to_dict()["row"]["label"] == place


def test_names_that_are_numbers_are_written_out():
    assert softxent.explain(Z, "30", names=[10, 20, 30]).to_dict()["row"]["names"] == ["10", "20", "30"]


def test_a_masked_class():
    result = softxent.explain([2.0, -np.inf, 0.0], "cat", names=NAMES)
    assert result.agrees and result.to_dict()["row"]["masked"] == [1] and re.search(r"^ dog +−inf +0 +masked$", str(result), re.MULTILINE)


def test_what_is_done_to_the_array_afterwards_changes_nothing():
    z = np.array(Z)
    result = softxent.explain(z, 0)
    before = str(result), result.to_dict()
    z += 1
    assert (str(result), result.to_dict()) == before


WRONG = [
    ((Z,), {}, ValueError, "one of label and truth must be given; got neither"),
    ((Z, 0), {"truth": [1, 0, 0]}, ValueError, "one of label and truth must be given; got both"),
    (([Z, Z], 0), {}, ValueError, "logits must be one row, of shape (classes,); got shape (2, 3)"),
    ((1.0, 0), {}, ValueError, "logits must be one row, of shape (classes,); got shape ()"),
    (([1.0], 0), {}, ValueError, "logits must have at least 2 classes; got 1"),
    (([1.0, np.nan], 0), {}, ValueError, "logits must be finite and of size 1e+09 at most, or -inf; got nan at class 1"),
    ((Z, 3), {}, ValueError, "label must lie in [0, 3); got 3"),
    ((Z, -1), {}, ValueError, "label must lie in [0, 3); got -1"),
    ((Z, 1.0), {}, TypeError, "label must be the index of a class (an int) or its name; got 1.0"),
    ((Z, True), {}, TypeError, "label must be the index of a class (an int) or its name; got True"),
    ((Z, [1]), {}, TypeError, "label must be the index of a class (an int) or its name; got [1]"),
    ((Z, "cat"), {}, ValueError, "label must be the index of a class or the name of one class; got 'cat' (close to it: none)"),
    ((Z, 0), {"j": "owls", "names": NAMES}, ValueError, "j must be the index of a class or the name of one class; got 'owls' (close"),
    ((Z, 0), {"names": "abc"}, TypeError, "names must be a sequence of names, one for each class; got 'abc'"),
    ((Z, 0), {"names": ["a"]}, ValueError, "names must be 3, one for each class; got 1"),
    ((Z,), {"truth": [[1, 0, 0]]}, ValueError, "truth must be probabilities of shape (classes,); got shape (1, 3)"),
    ((Z,), {"truth": [1, 0]}, ValueError, "truth must be 3 numbers, one for each class; got 2"),
    ((Z,), {"truth": [1, 0, -1]}, ValueError, "truth must be finite, not negative and 1e+09 at most; got -1.0 at class 2"),
    ((Z, 0), {"derivations": "result9"}, ValueError, "name must be one that softxent explain --list shows; got 'result9'"),
    ((Z, 0), {"derivations": "result1", "everything": True}, ValueError, "derivations must not come with everything=True; got result1"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_a_wrong_argument_is_named(arguments, options, error, words):
    with pytest.raises(error, match=re.escape(f"explain: {words}")):
        softxent.explain(*arguments, **options)


# ---------------------------------------------------------------- a terminal


def test_the_text_has_the_width_of_the_terminal_and_no_escape_codes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = softxent.explain(Z, 0)
    for width in (60, 110):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = str(result).splitlines()
        assert width - 5 <= max(map(len, lines)) <= width and "\x1b" not in str(result)


def test_the_interpreter_shows_the_text():
    code = b"import softxent\nsoftxent.explain([2, 1, 0.1], 0, derivations='result1')\n"
    done = subprocess.run([sys.executable, "-i", "-q"], input=code, capture_output=True, env=environment(PYTHONIOENCODING="utf-8"))
    out = done.stdout.decode()
    assert "Result 1: " in out and "0.224719" in out and "\\n" not in out and "<" not in out


# ---------------------------------------------------------------- extras

ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import softxent
try:
    result = softxent.explain([2, 1, 0.1], 0, names=["a<b", "c", "d"])
    print("Result 1" in str(result))
    print(result._repr_html_()[:200])
    result.to_html()
except Exception as error:
    print(type(error).__name__, error)
"""


def test_no_argument_is_written(rng):
    arrays = [rng.standard_normal(5).astype(np.float32), rng.random(5)]
    before = [a.tobytes() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    result = softxent.explain(arrays[0], truth=arrays[1])
    assert result.agrees and repr(result) and result.to_dict() and [a.tobytes() for a in arrays] == before


def without(package):
    done = subprocess.run(
        [sys.executable, "-c", ABSENT.format(package=package)], capture_output=True, text=True, env=environment(PYTHONIOENCODING="utf-8")
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_without_the_extra_cli_it_says_what_to_install():
    assert without("rich") == ["ImportError softxent.explain needs the extra \"cli\"; in a clone of softxent: pip install '.[cli]'"]


def test_without_the_extra_proof_a_notebook_shows_the_text_and_why():
    needs = "the page of softxent.explain needs the extra \"proof\"; in a clone of softxent: pip install '.[proof]'"
    text, first, *_, last = without("latex2mathml")
    assert text == "True" and html.unescape(first) == f"<p>{needs}</p><pre>The row" and last == f"ImportError {needs}"


def test_another_missing_package_is_not_blamed_on_an_extra():
    assert without("difflib")[0].startswith("ModuleNotFoundError No module named 'difflib'")


# ---------------------------------------------------------------- a notebook


def test_probabilities_are_shown_as_text_with_the_reason():
    result = softxent.explain(Z, truth=[1, 0, 0], names=[HOSTILE, "b", "c"])
    html = result._repr_html_()
    assert html.startswith("<p>explain: the page must come with a label, which it lets one change; got probabilities</p><pre>The row")
    assert "<img" not in html and html.isascii()
    with pytest.raises(ValueError, match="the page must come with a label"):
        result.to_html()


# What VS Code allows in the document around the outputs of a notebook; Jupyter allows more.
VSCODE = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src https: data:; font-src https:; connect-src https:; child-src https: data:\">"
)
OUTPUTS = [
    ((Z, 0), {"names": NAMES}, "cat is predicted with 0.659"),
    (([0.0, 0.0], 1), {"names": ["a", HOSTILE]}, f"{HOSTILE} is predicted with 0.5"),
    ((Z, 2), {"derivations": "result1"}, "class 2 is predicted with 0.09857"),
]


@pytest.fixture
def notebook(browser, tmp_path):  # noqa: F811
    """Opens a document that has the outputs of three cells in it. Nothing in it may complain or load anything."""
    told, asked, file = [], set(), tmp_path / "notebook.html"
    context = browser.new_context(viewport={"width": 900, "height": 800})
    context.set_default_timeout(600_000)  # ends a test that hangs; no working test comes near it, however busy the machine
    tab = context.new_page()
    for event in ("console", "pageerror", "dialog"):
        tab.on(event, lambda x: told.append(str(getattr(x, "text", x))))
    tab.on("request", lambda request: asked.add(request.url))

    def notebook(head=""):
        cells = [softxent.explain(*arguments, **options)._repr_html_() for arguments, options, _ in OUTPUTS]
        between = "<script>document.currentScript.previousElementSibling.dataset.seen = 1</script><p>Next cell</p>"
        file.write_text(f"<!doctype html><title>Notebook</title>{head}<link rel=icon href=data:,>{between.join(cells)}{between}", "ascii")
        tab.goto(file.as_uri())
        return tab, [frame for frame in tab.frames if frame != tab.main_frame]

    yield notebook
    context.close()
    assert told == [] and asked <= {file.as_uri(), "about:srcdoc", "data:,"}


@pytest.mark.parametrize("head", ["", VSCODE], ids=["jupyter", "vscode"])
def test_pages_work_side_by_side_inside_a_notebook(notebook, head):
    tab, frames = notebook(head)
    assert len(frames) == len(OUTPUTS)
    for frame, (_, _, words) in zip(frames, OUTPUTS, strict=True):
        frame.locator("#summary").filter(has_text=words).wait_for()
        assert frame.evaluate("[innerWidth, innerHeight]") == [882, 638]
        assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    first, second, _ = frames
    first.focus("#score-1")
    tab.keyboard.press("ArrowRight")
    first.locator("#summary").filter(has_not_text=OUTPUTS[0][2]).wait_for()
    assert first.text_content("#summary").startswith("cat is predicted with ") and OUTPUTS[1][2] in second.text_content("#summary")


def test_a_link_in_the_page_stays_in_the_page(notebook):
    tab, frames = notebook()
    outside = tab.url
    for frame in frames[:2]:
        link = frame.eval_on_selector("nav a[href^='#']", "link => link.getAttribute('href')")
        assert frame.evaluate("scrollY") == 0
        frame.click(f"nav a[href='{link}']")
        frame.wait_for_url(f"about:srcdoc{link}")
        frame.locator(link).filter(visible=True).wait_for()
        assert frame.evaluate("scrollY") > 0
    assert tab.url == outside and len(tab.frames) == 1 + len(OUTPUTS)


def test_the_scripts_of_the_page_cannot_reach_the_notebook(notebook):
    _, frames = notebook()
    for frame in frames:
        assert frame.evaluate("origin") == "null"
        assert frame.evaluate("() => { try { return parent.document.title } catch (error) { return error.name } }") == "SecurityError"


@pytest.mark.parametrize(
    ("options", "seen", "not_seen"),
    [
        ({}, ["result1", "prediction_minus_truth"], ["hessian_product"]),
        ({"everything": True}, ["result1", "hessian_product", "linear_rows"], []),
        ({"derivations": ["result1", "hessian_product"]}, ["result1", "hessian_product"], ["result2", "hessian_same"]),
    ],
    ids=["article", "everything", "named"],
)
def test_the_page_shows_at_first_what_is_asked_for(browser, options, seen, not_seen, tmp_path):  # noqa: F811
    softxent.explain(Z, 0, **options).save(tmp_path / "page.html")
    tab = browser.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    assert [name for name in (*seen, *not_seen) if tab.is_visible(f"#{name}")] == seen
    tab.close()
