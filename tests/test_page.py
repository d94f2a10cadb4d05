"""The page of `softxent explain --html`, in a real browser: its numbers are Python's, and everyone can use it."""

from __future__ import annotations

import functools
import re
import shutil
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from softxent.explanation.page import page
from softxent.proof.derivation import DERIVATIONS, GRADIENT, RESULT_1, RESULT_2, y, yhat
from softxent.proof.expr import E, letters
from softxent.proof.reading import text, tree
from softxent.proof.replay import Numbers, short

SCORES, LABEL, NAMES = [1.7, -0.31415926, 0.55, 2.25, -2.0], 3, ["cat", "dog", "owl", "newt", "elephant"]
HOSTILE = '</script><img src=x onerror=alert(1)>&"'
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if path is None:
        pytest.fail("the page is tested in a real browser, and there is none: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.fail("the page is driven by Playwright: pip install playwright axe-playwright-python")
    with sync_playwright() as tool:
        one = tool.chromium.launch(executable_path=path, args=FLAGS)
        yield one
        one.close()


html = functools.cache(page)


@pytest.fixture
def visit(browser, tmp_path):
    """Opens the page of a prediction. Whatever the test does there, the browser has nothing to complain of and asks nobody for anything."""
    contexts, told, asked = [], [], set()

    def visit(scores=SCORES, label=LABEL, names=NAMES, **options):
        file = tmp_path / "page.html"
        file.write_text(html(tuple(scores), label, tuple(names)), encoding="utf-8")
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(5000)
        tab = contexts[-1].new_page()
        for event in ("console", "pageerror", "dialog", "websocket"):
            tab.on(event, lambda x: told.append(str(getattr(x, "text", x))))
        tab.on("request", lambda request: asked.add(request.url))
        tab.goto(file.as_uri())
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert told == []
    assert asked <= {(tmp_path / "page.html").as_uri(), "data:,"}


STATE = "({...state, shown: ['#scores input', 'select'].flatMap(x => [...document.querySelectorAll(x)].map(x => Number(x.value)))})"
LINES = """[...document.querySelectorAll('.derivation')].map(one => [
  one.id,
  one.querySelector('.check').textContent,
  [...one.querySelectorAll('.numbers')].map(x => [x.querySelector('.filled').textContent, Number(x.querySelector('data').value)]),
])"""
TABLE = "rows => rows.map(row => [...row.querySelectorAll('data')].map(x => [Number(x.value), x.textContent]))"


def near(got, want):
    return abs(got - float(want)) <= 1e-6 * abs(float(want)) + 1e-12


def numbers(derivation, state):
    classes = range(len(state["scores"]))
    return Numbers(derivation, state["scores"], [float(k == state["t"]) for k in classes], state["t"])


def agrees_with_python(tab):
    """Every number on the page is that of replay.py at the scores, the label and the indices that the controls show. -> these"""
    state = tab.evaluate(STATE)
    assert state["shown"] == [*state["scores"], state["t"], state["j"], state["k"]]
    on_page = tab.evaluate(LINES)
    assert [name for name, _, _ in on_page] == list(DERIVATIONS)
    for name, check, lines in on_page:
        one, python = DERIVATIONS[name], numbers(DERIVATIONS[name], state)
        at = {i: state.get(i, 0) for line in one.lines for i in letters(line)}
        assert at in [{i: n for i, n in place.items() if i in at} for place in python.places()], (name, at)
        assert [filled for filled, _ in lines] == [text(python.fill(line, at)) for line in one.lines], name
        for (_, got), want in zip(lines, python.values(at), strict=True):
            assert near(got, want), (name, got, want)
        assert check == f"✓ {len(one.lines)} lines agree", name
    classes, python = range(len(state["scores"])), {one: numbers(one, state) for one in (GRADIENT, RESULT_1, RESULT_2)}
    for k, row in enumerate(tab.eval_on_selector_all("#bars tbody tr", TABLE)):
        wanted = [python[GRADIENT].value(e, {"k": k}) for e in (yhat["k"], y["k"], GRADIENT.lines[-1])]
        assert all(near(got, want) for (got, _), want in zip(row, wanted, strict=True)), (k, row)
    heat = tab.eval_on_selector_all("#heat tbody tr", TABLE)
    for j, row in enumerate(heat):
        for k, (got, shown) in enumerate(row):
            one = RESULT_1 if j == k else RESULT_2
            assert near(got, python[one].value(one.start, {"j": j, "k": k}))
            assert shown == text(E("val", (short(Decimal(got), 2),)))
    assert [len(row) for row in heat] == [len(classes)] * len(classes)
    return state


def by_keyboard(tab):
    tab.focus("#score-1")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        tab.keyboard.press(key)


def by_value(tab):
    tab.eval_on_selector("#score-4", "slider => { slider.value = 4.321; slider.dispatchEvent(new Event('input')) }")


def by_cell(tab):
    tab.click("#heat tbody tr:nth-child(5) td:nth-of-type(1)")


def by_select(letter, n):
    return lambda tab: tab.select_option(f"#choose-{letter}", str(n))


@pytest.mark.parametrize(
    ("act", "changes"),
    [
        (by_keyboard, {"scores"}),
        (by_value, {"scores"}),
        (by_select("t", 0), {"t"}),
        (by_select("j", 2), {"j"}),
        (by_select("k", 4), {"k"}),
        (by_select("k", 0), {"j", "k"}),
        (by_cell, {"j", "k"}),
    ],
    ids=["keyboard", "value", "label", "j", "k", "k_onto_j", "cell"],
)
def test_every_number_is_pythons_after(visit, act, changes):
    tab = visit()
    before = tab.evaluate(STATE)
    act(tab)
    after = agrees_with_python(tab)
    assert {name for name in ("scores", "t", "j", "k") if before[name] != after[name]} == changes


@pytest.mark.parametrize("scores", [[0.5, -0.25], [9.5, -10, 3], [-4.0, 1.5, 3.3, 25, 7, 8.125, -6.5, 0]], ids=len)
def test_every_number_is_pythons_for_any_number_of_classes(visit, scores):
    tab = visit(scores, 1, [f"class {k}" for k in range(len(scores))])
    assert agrees_with_python(tab)["scores"] == scores


def test_the_numbers_stand_there_before_any_script_runs():
    values = [float(x) for x in re.findall(r'<data value="([^"]+)"', page(SCORES, LABEL, NAMES))]
    state = {"scores": SCORES, "t": LABEL, "k": LABEL, "j": 0}
    wanted = [numbers(one, state).values({i: state.get(i, 0) for i in "jkd"}) for one in DERIVATIONS.values()]
    assert values == [float(value) for line in wanted for value in line]


def test_j_and_k_are_never_one(visit):
    tab = visit()
    for letter, n in zip("jkjjkkjk", (3, 3, 3, 0, 0, 4, 4, 4), strict=True):
        tab.select_option(f"#choose-{letter}", str(n))
        state = tab.evaluate(STATE)
        assert state[letter] == n and state["j"] != state["k"], (letter, n)
    tab.click("#heat tbody tr:nth-child(5) td:nth-of-type(5)")  # the diagonal: Result 1 at j
    state = agrees_with_python(tab)
    assert state["j"] == 4 != state["k"]


def test_a_wrong_line_is_seen(visit):
    tab = visit()
    tab.evaluate("line => { data.derivations.result1.lines[5] = line; update() }", tree(yhat["j"] * (1 + yhat["j"])))
    assert tab.text_content("#result1 .check") == "✗ lines differ"
    tab.wait_for_selector(f"text={len(DERIVATIONS) - 1} of {len(DERIVATIONS)} derivations agree")


def test_the_summary_speaks_once_the_hand_rests(visit):
    tab = visit()
    tab.wait_for_selector(f"text=All {len(DERIVATIONS)} derivations agree")
    tab.evaluate("new MutationObserver(x => { window.spoken = (window.spoken ?? 0) + 1 }).observe($('#summary'), { childList: true })")
    by_keyboard(tab)
    tab.select_option("#choose-t", "4")
    tab.wait_for_selector("#summary:has-text('elephant is predicted with')")
    assert tab.evaluate("spoken") == 1 and tab.get_attribute("#summary", "role") == "status"


def test_what_no_double_holds_is_said_and_not_invented(visit):
    tab = visit([1000.0, 0, -3], 0, ["a", "b", "c"])
    assert tab.get_attribute("#score-0", "max") == "1000"
    assert tab.text_content("#result1 .check") == "beyond a double"
    assert tab.text_content("#log_other .check") == "beyond a double"
    assert (
        "= 1" in tab.text_content("#softmax_sums_to_1 li:last-child .numbers")
        or tab.text_content("#softmax_sums_to_1 li:last-child data") == "1"
    )


@pytest.mark.parametrize(
    ("options", "parts"),  # axe takes as long as a page is: once all of it, and then what shows every style
    [({"color_scheme": "light"}, 99), ({"color_scheme": "dark"}, 1), ({"viewport": {"width": 360, "height": 740}}, 1)],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing(visit, options, parts):
    from axe_playwright_python.sync_playwright import Axe

    tab = visit(reduced_motion="reduce", **options)
    tab.eval_on_selector_all(".part", "(all, parts) => all.slice(parts).forEach(part => part.remove())", parts)
    tab.eval_on_selector_all("details", "folds => folds.forEach(fold => { fold.open = true })")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    quick = {"context": {"exclude": [["math > *"]]}, "options": {"resultTypes": ["violations"]}}  # three times as fast
    found = Axe().run(tab, **quick)
    assert found.violations_count == 0, found.generate_report()


REACHABLE = """() => [...document.querySelectorAll('a[href], button, select, input, summary, [tabindex="0"]')]
  .filter(x => x.checkVisibility()).map((x, n) => x.dataset.n = n)"""


def test_tab_reaches_every_control(visit):
    tab = visit()
    wanted, reached = tab.evaluate(REACHABLE), []
    assert len(wanted) > 60
    for _ in wanted:
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("Number(document.activeElement.dataset.n)"))
    assert reached == wanted
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_it_works_without_a_mouse(visit):
    tab = visit()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # the skip link
    assert tab.evaluate("document.activeElement.id") == "main"
    for key, reason in (("Enter", 2), ("Space", 3)):
        tab.focus(f"#result1 > ol > li:nth-child({reason}) summary")
        assert not tab.is_visible(f"#result1 > ol > li:nth-child({reason}) details p")
        tab.keyboard.press(key)
        assert tab.is_visible(f"#result1 > ol > li:nth-child({reason}) details p")
    tab.focus("#heat td[tabindex='0']")
    before = tab.evaluate(STATE)
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        tab.keyboard.press(key)
    after = tab.evaluate(STATE)
    assert (after["j"], after["k"]) == (before["j"] + 1, before["k"] + 1)
    tab.focus('a[href="#part-6"]')
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#hessian_product li:last-child .formula")


def test_on_paper_all_folds_are_open_and_no_control_is_left(visit):
    tab = visit(color_scheme="dark")
    hidden = "[...document.querySelectorAll('.derivation details p')].filter(p => !p.checkVisibility()).length"
    before = tab.evaluate(hidden)
    assert before > 100
    tab.emulate_media(media="print")
    tab.wait_for_selector("#linear_rows li:last-child details p")
    assert tab.evaluate(hidden) == 0
    assert not [x for x in ("#theme", "#score-0", "nav", ".skip") if tab.is_visible(x)]
    assert tab.is_visible(".score span") and tab.is_visible("#choose-t")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.emulate_media(media="screen")
    tab.wait_for_selector("#linear_rows", state="hidden")
    assert tab.evaluate(hidden) == before


def test_the_theme_follows_the_system_and_the_button(visit):
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        tab = visit(color_scheme=scheme)
        seen[scheme] = tab.evaluate(background)
        assert tab.get_attribute("#theme", "aria-pressed") == str(scheme == "dark").lower()
    tab.click("#theme")
    assert tab.evaluate(background) == seen["light"] != seen["dark"]


@pytest.mark.parametrize(("motion", "seconds"), [("reduce", "0s"), ("no-preference", "0.12s, 0.12s")])
def test_nothing_moves_for_those_who_asked_for_rest(visit, motion, seconds):
    tab = visit(reduced_motion=motion)
    assert tab.evaluate("getComputedStyle(document.querySelector('.bar span')).transitionDuration") == seconds


def test_a_hostile_name_is_text(visit):
    tab = visit(names=[HOSTILE, *NAMES[1:]], label=0)
    tab.wait_for_selector("text=derivations agree")
    assert tab.evaluate("document.images.length") == 0 and tab.evaluate("document.scripts.length") == 2
    for where in ("label[for=score-0]", "#bars tbody th", "#heat tbody th", "#choose-j option", "#heat thead th"):
        assert tab.text_content(where) == HOSTILE, where
    assert tab.text_content("#summary").startswith(HOSTILE) and tab.text_content("#denominator .at") == f"k = {HOSTILE}"
    agrees_with_python(tab)


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "input", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


@pytest.mark.parametrize("names", [NAMES, [HOSTILE] * 5], ids=["plain", "hostile"])
def test_every_tag_is_closed_and_every_link_has_its_target(names):
    seen, written = Balance(), page(SCORES, LABEL, names)
    seen.feed(written)
    seen.close()
    assert seen.open == [] and len(seen.ids) == len(set(seen.ids))
    assert set(re.findall(r'(?:href="#|for="|labelledby=")([^"]+)"', written)) <= set(seen.ids)


@pytest.mark.parametrize(
    ("scores", "label", "names", "words"),
    [
        ([1.0], 0, ["a"], "scores must be 2 to 24 numbers; got 1"),
        ([0.0] * 25, 0, ["a"] * 25, "scores must be 2 to 24 numbers; got 25"),
        ([1.0, float("nan")], 0, ["a", "b"], "scores must be finite"),
        ([1.0, 2.0], 2, ["a", "b"], r"label must be in \[0, 2\); got 2"),
        ([1.0, 2.0], 0, ["a"], "names must be 2, one for each score; got 1"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(scores, label, names, words):
    with pytest.raises(ValueError, match=words):
        page(scores, label, names)
