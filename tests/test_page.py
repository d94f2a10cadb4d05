"""The page of `softxent explain --html`, in a real browser: its numbers are Python's, and everyone can use it."""

from __future__ import annotations

import functools
import hashlib
import html as markup
import math
import re
import shutil
import struct
from decimal import Decimal, localcontext
from html.parser import HTMLParser
from pathlib import Path

import pytest

from softxent.explanation import _clean, reference, terminal
from softxent.explanation.formulas import formula
from softxent.explanation.page import HERE, page, places
from softxent.proof.derivation import ARTICLE, DERIVATIONS, GRADIENT, PARTS, RESULT_1, RESULT_2, y, yhat
from softxent.proof.expr import E, letters
from softxent.proof.reading import text, tree
from softxent.proof.replay import CONTEXT, Numbers, short

SCORES, LABEL, NAMES = [1.7, -0.31415926, 0.55, 2.25, -2.0], 3, ["cat", "dog", "owl", "newt", "elephant"]
INF = math.inf
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

    def visit(scores=SCORES, label=LABEL, names=NAMES, address="", j=None, k=None, **options):
        file = tmp_path / "page.html"
        file.write_text(html(tuple(scores), label, tuple(names), j=j, k=k), encoding="utf-8")
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(120_000)  # ends a test that hangs; no working test comes near it, however busy the machine
        tab = contexts[-1].new_page()
        for event in ("console", "pageerror", "dialog", "websocket"):
            tab.on(event, lambda x: told.append(str(getattr(x, "text", x))))
        tab.on("request", lambda request: asked.add(re.split("[?#]", request.url)[0]))
        tab.goto(file.as_uri() + address)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert told == []
    assert asked <= {(tmp_path / "page.html").as_uri(), "data:,"}


STATE = """({
  ...state,
  typed: [...document.querySelectorAll('.score [type=text]')].map(x => x.value),
  slid: [...document.querySelectorAll('.score [type=range]')].map(x => [Number(x.min), Number(x.value), Number(x.max)]),
  selected: [...document.querySelectorAll('select')].map(x => Number(x.value)),
  disabled: [...document.querySelectorAll('select')].map(x => [...x.options].filter(x => x.disabled).map(x => Number(x.value))),
})"""
LINES = """[...document.querySelectorAll('.derivation')].map(one => [
  one.id,
  one.querySelector('.check').textContent,
  [...one.querySelectorAll('.numbers')].filter(x => x.closest('.derivation') === one)
    .map(x => [x.querySelector('.filled'), x.querySelector('data')])
    .map(([filled, data]) => [filled.textContent, data.value, data.textContent]),
])"""
TABLE = "rows => rows.map(row => [...row.querySelectorAll('data')].map(x => [x.value, x.textContent]))"


def settled(tab):
    """The page has computed all its numbers."""
    tab.wait_for_selector("main[aria-busy=false]")
    return tab


def near(got, want):
    """Both have 17 digits at least; where 50 digits leave nothing after a subtraction, what is left is no number."""
    with localcontext(CONTEXT):
        return abs(Decimal(got) - want) <= abs(want) * Decimal("1e-16") + Decimal("1e-40")


def kept(state):
    """The classes that are not masked."""
    return [n for n, score in enumerate(state["scores"]) if score != -INF]


def numbers(derivation, state):
    scores, label = [state["scores"][n] for n in kept(state)], kept(state).index(state["t"])
    return Numbers(derivation, scores, [float(k == label) for k in range(len(scores))], label)


def as_terminal(value, values, covered):
    """What the terminal writes for the value of a line."""
    with localcontext(CONTEXT):
        return terminal._value(_clean(value, values), _clean(values[-1], values), covered).removeprefix("= ")


def indices(one, chosen):
    """Where the free indices of a derivation are; in a case j = k both are where k is."""
    free = {i for line in one.lines for i in letters(line)}
    return {i: chosen.get("k" if i == "j" and "k" not in free else i, 0) for i in free}


def in_document_order(part, one):
    """The lines of a derivation and, before the line that uses it, those of each lemma that is shown inside."""
    for n, line in enumerate(one.lines):
        for lemma in part.lemmas(one, n - 1) if n else ():
            yield from in_document_order(part, lemma)
        yield one, line


def agrees_with_python(tab):
    """Every number on the page is that of replay.py at the scores, the label and the indices that the controls show. -> these"""
    state = settled(tab).evaluate(STATE)
    controls_show(state)
    chosen = {letter: kept(state).index(state[letter]) for letter in "tjk"}
    on_page = tab.evaluate(LINES)
    assert [name for name, _, _ in on_page] == list(places()) and {one.name for one in places().values()} == set(DERIVATIONS)
    for name, check, lines in on_page:
        one, python = places()[name], numbers(places()[name], state)
        at = indices(one, chosen)
        assert at in [{i: n for i, n in place.items() if i in at} for place in python.places()], (name, at)
        assert [filled for filled, _, _ in lines] == [text(python.fill(line, at)) for line in one.lines], name
        values = python.values(at)
        for (_, got, shown), want in zip(lines, values, strict=True):
            assert near(got, want), (name, got, want)
            assert shown == as_terminal(want, values, python.covered), name
        assert check == f"✓ {len(one.lines)} lines agree", name
    tables_agree_with_python(tab, state)
    return state


def controls_show(state):
    """Fields, sliders and lists show the state; a masked class cannot be chosen."""
    masked = [n for n, score in enumerate(state["scores"]) if score == -INF]
    assert [float(words.replace("−", "-")) for words in state["typed"]] == state["scores"]
    assert state["selected"] == [state["t"], state["j"], state["k"]] and state["disabled"] == [masked] * 3
    for score, (low, slid, high) in zip(state["scores"], state["slid"], strict=True):
        assert low == -high and slid == pytest.approx(max(score, low), 1e-14) and high >= 10


def tables_agree_with_python(tab, state):
    classes, python = kept(state), {one: numbers(one, state) for one in (GRADIENT, RESULT_1, RESULT_2)}
    scores = [Decimal(state["scores"][n]) for n in classes]
    gradient = reference.gradient(scores, [Decimal(n == state["t"]) for n in classes])
    bars, heat = (tab.eval_on_selector_all(f"#{table} tbody tr", TABLE) for table in ("bars", "heat"))
    assert len(bars) == len(heat) == len(state["scores"])
    for n, row in enumerate(bars):
        at = {"k": classes.index(n)} if n in classes else None
        wanted = [python[GRADIENT].value(e, at) if at else Decimal(0) for e in (yhat["k"], y["k"])]
        wanted.append(gradient[at["k"]] if at else Decimal(0))
        assert all(near(got, want) and shown == text(E("val", (short(want),))) for (got, shown), want in zip(row, wanted, strict=True)), n
    for j, row in enumerate(heat):
        assert len(row) == len(heat)
        for k, (got, shown) in enumerate(row):
            one, both = RESULT_1 if j == k else RESULT_2, {j, k} <= {*classes}
            want = python[one].value(one.lines[-1], {"j": classes.index(j), "k": classes.index(k)}) if both else Decimal(0)
            if j == k and both:  # yhat (1 - yhat), where 1 - yhat may need more digits than the line has
                label = [Decimal(n == k) for n in classes]
                with localcontext(CONTEXT):
                    want = -python[GRADIENT].value(yhat["k"], {"k": classes.index(k)}) * reference.gradient(scores, label)[classes.index(k)]
            assert near(got, want) and shown == text(E("val", (short(want, 2),))), (j, k)


@pytest.mark.parametrize("scores", [(400.0, 0.0, 1.0), (1000.0, 0.0), (-3000.0, 0.0, -1.0), (1e9, 0.0), (1e9, 0.0, -1e9)], ids=str)
def test_a_loss_that_is_almost_0_is_not_shown_as_0(visit, scores):
    """Where 1 - yhat_t is e^-400 or e^-1e9, the loss, the gradient and the slope at the label keep their digits."""
    label = scores.index(max(scores))
    tab = visit(scores, label, [f"class {n}" for n in range(len(scores))])
    agrees_with_python(tab)
    gradient = [Decimal(row[2][0]) for row in tab.eval_on_selector_all("#bars tbody tr", TABLE)]
    truth = [Decimal(n == label) for n in range(len(scores))]
    with localcontext(CONTEXT):
        loss = reference.loss([*map(Decimal, scores)], truth)
        # 17 digits are in the page
        assert gradient[label] < 0 and abs(sum(gradient)) < abs(gradient[label]) * Decimal("1e-15")
        miss = loss if loss < Decimal("1e-17") else 1 - (-loss).exp()  # 1 - yhat_t is the loss up to its square
        assert abs(gradient[label] + miss) < loss * Decimal("1e-15")
    tab.wait_for_selector(f"#summary:has-text('loss {text(E('val', (short(loss),)))}.')")


def by_keyboard(tab):
    tab.focus("#score-1")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        tab.keyboard.press(key)


def by_value(tab):
    tab.eval_on_selector("#score-4", "slider => { slider.value = 4.321; slider.dispatchEvent(new Event('input')) }")


def by_typing(n, words):
    return lambda tab: tab.fill(f"#typed-{n}", words)


def by_cell(tab):
    tab.click("#heat tbody tr:nth-child(5) td:nth-of-type(1)")


def by_select(letter, n):
    return lambda tab: tab.select_option(f"#choose-{letter}", str(n))


@pytest.mark.parametrize(
    ("act", "changes"),
    [
        (by_keyboard, {"scores"}),
        (by_value, {"scores"}),
        (by_typing(2, "-745.125"), {"scores"}),
        (by_typing(2, "-inf"), {"scores"}),
        (by_typing(0, "-inf"), {"scores", "j"}),
        (by_select("t", 0), {"t"}),
        (by_select("j", 2), {"j"}),
        (by_select("k", 4), {"k"}),
        (by_select("k", 0), {"j", "k"}),
        (by_cell, {"j", "k"}),
    ],
    ids=["keyboard", "value", "typed", "masked", "masked_j", "label", "j", "k", "k_onto_j", "cell"],
)
def test_every_number_is_pythons_after(visit, act, changes):
    tab = visit()
    before = tab.evaluate(STATE)
    act(tab)
    after = agrees_with_python(tab)
    assert {name for name in ("scores", "t", "j", "k") if before[name] != after[name]} == changes


@pytest.mark.parametrize(
    "scores",
    [
        [0.5, -0.25],
        [9.5, -10, 3],
        [-4.0, 1.5, 3.3, 25, 7, 8.125, -6.5, 0],
        [math.sin(k) * 9 for k in range(13)],
        [0, 0, 0],
        [0, 1000],
        [400, 0, 1],
        [0, 400, 290],
        [345, 0, -0.25],
        [123456789.1, 123456789.3, 0.7],
        [1e9, 0, -1e9],
        [-745, 0, 3],
        [2, 0.1, -INF],
        [-INF, 1000, -INF, 0, -INF],
    ],
    ids=lambda scores: " ".join(f"{s:g}" for s in scores) if len(scores) < 8 else f"{len(scores)} classes",
)
def test_every_number_is_pythons_for_any_row(visit, scores):
    tab = visit(scores, 1, [f"class {k}" for k in range(len(scores))])
    assert agrees_with_python(tab)["scores"] == scores
    tab.wait_for_selector("text=The lines of every derivation agree.")


DOUBLES = [
    0.125,
    1.3875,
    0.00625,
    2.5,
    99995.0,
    99994.999,
    0.000099995,
    1e-5,
    12345.0,
    9.9995,
    1e299,
    1e300,
    -1e-300,
    1e-299,
    0.0,
    -0.0,
    1e22,
]
DECIMALS = ["1.2345e434294481", "-9.99996e-400", "1e1000000", "2.5e299", "0.1", "1.3875", "-0.00625", "123450000"]


def test_a_number_is_as_short_as_in_python(visit):
    spread = [struct.unpack("d", hashlib.sha256(b"%d" % n).digest()[:8])[0] for n in range(500)]
    doubles = DOUBLES + [x for x in spread if math.isfinite(x)]
    written = (
        "([doubles, decimals]) => [...doubles.map(exact), ...decimals.map(x => new Decimal(x))].map(x => [2, 4, 6].map(n => short(x, n)))"
    )
    got = visit().evaluate(written, [doubles, DECIMALS])
    for x, row in zip([*map(Decimal, doubles), *map(Decimal, DECIMALS)], got, strict=True):
        assert row == [short(x, n) for n in (2, 4, 6)], x


def test_the_numbers_stand_there_before_any_script_runs():
    values = [float(x) for x in re.findall(r'<data value="([^"]+)"', page(SCORES, LABEL, NAMES))]
    state = {"scores": SCORES, "t": LABEL, "k": LABEL, "j": 0}
    lines = [x for part in PARTS for one in part.chains for x in in_document_order(part, one)]
    assert values == [float(numbers(one, state).value(line, indices(one, state))) for one, line in lines]


def test_j_and_k_are_never_one(visit):
    tab = visit()
    for letter, n in zip("jkjjkkjk", (3, 3, 3, 0, 0, 4, 4, 4), strict=True):
        tab.select_option(f"#choose-{letter}", str(n))
        state = tab.evaluate(STATE)
        assert state[letter] == n and state["j"] != state["k"], (letter, n)
    tab.click("#heat tbody tr:nth-child(5) td:nth-of-type(5)")  # the diagonal: case 1, where j and k are one class, is shown at k
    state = agrees_with_python(tab)
    assert state["k"] == 4 != state["j"]


def test_a_wrong_line_is_seen(visit):
    tab = visit()
    tab.evaluate("line => { data.derivations.result1.lines[5] = line; update() }", tree(yhat["j"] * (1 + yhat["j"])))
    settled(tab)
    assert tab.text_content("#result1 .check") == "✗ lines differ"
    tab.wait_for_selector("text=The lines of 1 derivations do not agree.")


def test_the_summary_speaks_once_the_hand_rests(visit):
    tab = visit()
    tab.wait_for_selector("text=The lines of every derivation agree.")
    tab.clock.install(time="2026-01-01")
    tab.clock.pause_at("2100-01-01")  # from here on, the page's clock runs only as far as it is told to
    tab.evaluate("new MutationObserver(x => { window.spoken = (window.spoken ?? 0) + 1 }).observe($('#summary'), { childList: true })")
    by_keyboard(tab)
    tab.clock.run_for(249)
    tab.select_option("#choose-t", "4")
    tab.clock.run_for(249)
    assert not tab.evaluate("window.spoken")
    tab.clock.run_for(1)
    tab.wait_for_selector("#summary:has-text('elephant is predicted with')")
    assert tab.evaluate("spoken") == 1 and tab.get_attribute("#summary", "role") == "status"


def test_j_and_k_are_chosen_as_in_the_terminal(visit):
    for options, j, k in [({}, 0, 3), ({"k": 1}, 3, 1), ({"j": 3}, 3, 0), ({"j": 4, "k": 2}, 4, 2)]:
        state = agrees_with_python(visit(**options))
        assert (state["j"], state["k"]) == (j, k), options


# ---- scores that are typed, and masked classes ----


def test_a_score_can_be_typed(visit):
    tab = visit()
    tab.click("label[for=score-1]")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "typed-1"
    tab.keyboard.press("Control+A")
    tab.keyboard.type("1e3")
    state = agrees_with_python(tab)
    assert state["scores"][1] == 1000 and state["slid"][1] == [-1000, 1000, 1000] and state["slid"][0] == [-10, 1.7, 10]
    assert tab.input_value("#typed-1") == "1e3"  # as it was typed
    tab.focus("#score-1")
    tab.keyboard.press("Home")
    assert agrees_with_python(tab)["scores"][1] == -1000 and tab.input_value("#typed-1") == "-1000"


def test_what_is_no_score_changes_nothing(visit):
    tab = settled(visit())
    before = tab.evaluate(STATE)
    for words in ("", "two", "1,5", "1e10", "-1000000001", "inf", "NaN", "0x10", "1_0", "-"):
        tab.fill("#typed-2", words)
        tab.keyboard.press("Tab")
        assert tab.get_attribute("#typed-2", "aria-invalid") == "true" and tab.get_attribute("#typed-2", "aria-describedby") == "error"
        expected = "a score must be a number of size 1e9 at most, or -inf to mask the class"
        assert tab.text_content("#error") == f"“{words}” is not used for owl: {expected}. The score stays 0.55."
        assert {**tab.evaluate(STATE), "typed": before["typed"]} == before
        tab.fill("#typed-2", "0.550")
        assert tab.get_attribute("#typed-2", "aria-invalid") is None and tab.text_content("#error") == ""
    tab.fill("#typed-2", "5e")
    assert tab.get_attribute("#typed-2", "aria-invalid") is None  # not yet: more may be typed
    tab.fill("#typed-2", " +.5E1 ")
    assert agrees_with_python(tab)["scores"][2] == 5


def test_a_masked_class_takes_no_part(visit):
    tab = visit()
    tab.fill("#typed-1", "-inf")
    state = agrees_with_python(tab)
    assert state["disabled"] == [[1]] * 3 and tab.get_attribute("#score-1", "aria-valuetext") == "-inf, masked"
    assert tab.locator("#bars tbody tr:nth-child(2) data").all_text_contents() == ["0"] * 3
    assert tab.get_attribute("#heat tbody tr:nth-child(2) td:nth-of-type(4)", "aria-disabled") == "true"
    tab.click("#heat tbody tr:nth-child(2) td:nth-of-type(4)", force=True)
    assert tab.evaluate(STATE) == state
    tab.fill("#typed-1", "0.5")
    state = agrees_with_python(tab)
    assert state["scores"][1] == 0.5 and state["disabled"] == [[]] * 3 and tab.get_attribute("#score-1", "aria-valuetext") is None


def test_a_slider_unmasks_its_class(visit):
    tab = visit([2, -INF, 0], 0, ["a", "b", "c"])
    tab.focus("#score-1")
    tab.keyboard.press("End")
    assert agrees_with_python(tab)["scores"] == [2, 10, 0]


def test_masked_classes_give_j_and_k_away(visit):
    tab = visit(j=1, k=2)
    tab.fill("#typed-2", "-inf")
    state = agrees_with_python(tab)
    assert (state["j"], state["k"]) == (1, 3)  # k: the label
    tab.fill("#typed-1", "-inf")
    state = agrees_with_python(tab)
    assert (state["j"], state["k"]) == (0, 3)  # j: the likeliest other class


@pytest.mark.parametrize(
    ("scores", "n", "wrong"),
    [
        ([2, 1, 0], 0, "the label t must be a class whose score is not -inf, since its loss would be infinite"),
        ([2, 1, -INF], 1, "at least two classes must have a score other than -inf"),
    ],
    ids=["label", "all_but_one"],
)
def test_what_must_not_be_masked(visit, scores, n, wrong):
    tab = visit(scores, 0, ["a", "b", "c"])
    tab.fill(f"#typed-{n}", "-inf")
    tab.keyboard.press("Enter")
    assert tab.text_content("#error") == f"“-inf” is not used for {'abc'[n]}: {wrong}. The score stays {scores[n]}."
    assert settled(tab).evaluate(STATE)["scores"] == scores


def test_axe_finds_nothing_in_the_controls_where_something_is_wrong(visit):
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        tab = visit(reduced_motion="reduce", color_scheme=scheme, address="?z=1")
        tab.evaluate("Object.assign(state, { scores: [1, -Infinity, 2, 3, 4] }); update()")
        tab.fill("#typed-0", "two")
        tab.keyboard.press("Tab")
        assert tab.is_visible("#error") and tab.is_visible("#address")
        found = Axe().run(settled(tab), context="aside")
        assert found.violations_count == 0, found.generate_report()


# ---- the state in the address ----


def changed_by_hand(tab):
    """Change everything. -> the state"""
    for n, words in enumerate(("1000", "-inf", "0.1", "-2.5", "1e-7")):
        tab.fill(f"#typed-{n}", words)
    for letter, n in (("t", 2), ("j", 4), ("k", 0)):
        tab.select_option(f"#choose-{letter}", str(n))
    return agrees_with_python(tab)


ADDRESS = "?z=1000,-inf,0.1,-2.5,1e-7&t=2&j=4&k=0"
HERE_IS = "address => location.search + location.hash === address"


def test_the_state_is_in_the_address(visit):
    tab = visit(address="#result1")
    settled(tab)
    assert tab.evaluate("location.search") == ""
    state = changed_by_hand(tab)
    tab.wait_for_function(HERE_IS, arg=ADDRESS + "#result1")
    tab.reload()
    assert agrees_with_python(tab) == state
    assert agrees_with_python(visit(address=ADDRESS)) == state  # as it was sent


def test_links_and_the_back_button_keep_the_state(visit):
    tab = visit(address="?from=mail")
    tab.click('nav a[href="#part-2"]')
    state = changed_by_hand(tab)
    tab.wait_for_function(HERE_IS, arg=f"{ADDRESS.replace('?', '?from=mail&')}#part-2")
    tab.go_back()
    tab.wait_for_function(HERE_IS, arg=ADDRESS.replace("?", "?from=mail&"))
    assert agrees_with_python(tab) == state
    tab.reload()
    assert agrees_with_python(tab) == state


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("?z=1,2", "z must be 5 numbers of size 1e9 at most, or -inf"),
        ("?z=1,2,x,4,5", "z must be 5 numbers"),
        ("?z=1,2,nan,4,5&t=1", "z must be 5 numbers"),
        ("?z=1,2,3,4,2e9", "z must be 5 numbers"),
        ("?z=%ff&t=%", "z must be 5 numbers"),
        ("?z=1,2,3,-inf,5", "the label t must be a class whose score is not -inf"),
        ("?z=-inf,-inf,-inf,0,-inf", "at least two classes"),
        ("?t=5", "the label t must be a class"),
        ("?t=1.5", "the label t must be a class"),
        ("?t=", "the label t must be a class"),
        ("?j=1&k=1", "j and k must be two classes"),
        ("?k=constructor", "j and k must be two classes"),
    ],
)
def test_a_malformed_address_is_said_and_not_used(visit, address, wrong):
    tab = visit(address=address)
    state = settled(tab).evaluate(STATE)
    controls_show(state)
    assert (state["scores"], state["t"], state["j"], state["k"]) == (SCORES, LABEL, 0, 3)
    assert tab.text_content("#address").startswith(f"The scores and indices in the address are not used: {wrong}")
    assert tab.is_visible("#address") and tab.evaluate("location.search") == address
    tab.fill("#typed-0", "1")
    assert tab.text_content("#address") == ""


def test_the_address_changes_once_the_hand_rests(visit):
    """Browsers count such changes. The page's clock runs only as far as it is told to."""
    tab = visit()
    tab.wait_for_selector("text=The lines of every derivation agree.")
    tab.clock.install(time="2026-01-01")
    tab.clock.pause_at("2100-01-01")
    tab.evaluate(
        "() => { const f = history.replaceState.bind(history); window.calls = 0; history.replaceState = (...x) => { calls++; f(...x) } }"
    )
    by_keyboard(tab)
    tab.clock.run_for(249)
    by_keyboard(tab)
    tab.clock.run_for(249)
    assert tab.evaluate("calls") == 0
    tab.clock.run_for(1)
    assert tab.evaluate("calls") == 1
    assert tab.evaluate("location.search").startswith("?z=1.7,")


def test_it_works_in_a_frame_that_keeps_nothing(browser, tmp_path):
    """As in a notebook: there are no storage and no address."""
    file = tmp_path / "notebook.html"
    file.write_text(f'<iframe sandbox="allow-scripts" srcdoc="{markup.escape(page(SCORES, LABEL, NAMES))}"></iframe>', encoding="utf-8")
    tab, told = browser.new_page(), []
    tab.on("pageerror", lambda x: told.append(str(x)))
    tab.goto(file.as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator("#typed-0").fill("2")
    frame.locator("#theme").click()
    frame.locator("text=The lines of every derivation agree.").wait_for()
    assert frame.locator("#theme").get_attribute("aria-pressed") == "true"
    tab.close()
    assert told == []


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
    tab = settled(visit())
    tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # boxes that scroll become controls
    wanted, reached = tab.evaluate(REACHABLE), []
    assert len(wanted) > 25
    for _ in wanted:
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.dataset.n ?? document.activeElement.outerHTML.slice(0, 200)"))
    assert reached == [str(n) for n in wanted]
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_it_works_without_a_mouse(visit):
    tab = visit()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")  # the skip link
    assert tab.evaluate("document.activeElement.id") == "main"
    assert not tab.is_visible("#hessian_product")
    for key, visible in (("Enter", True), ("Space", False)):  # the switch for what goes beyond the article
        tab.focus("#beyond > summary")
        tab.keyboard.press(key)
        assert tab.is_visible("#hessian_product") == visible
    tab.focus("#heat td[tabindex='0']")
    before = tab.evaluate(STATE)
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        tab.keyboard.press(key)
    after = tab.evaluate(STATE)
    assert (after["j"], after["k"]) == (before["j"] + 1, before["k"] + 1)
    tab.evaluate("location.hash = '#hessian_product'")  # a link to what is hidden shows it
    tab.wait_for_selector("#hessian_product li:last-child .formula")


def test_definitions_and_reasons_need_no_click(visit):
    tab = visit()
    for part in ARTICLE:
        for one in part.derivations:
            for n, step in enumerate(one.steps, 2):
                reason = tab.locator(f"#{one.name} > ol > li:nth-child({n}) > .reason")
                assert reason.is_visible() and reason.inner_text().startswith(f"{step.rule}: "), (one.name, n)
    assert tab.locator(".remark:visible .formula").count() == sum(len(x.formulas) for part in ARTICLE for x in part.remarks) > 5


def test_what_goes_beyond_the_article_is_behind_one_switch_that_the_address_keeps(visit):
    tab = visit()
    headings = "[...document.querySelectorAll('.part h2')].filter(x => x.checkVisibility()).map(x => x.textContent)"
    assert tab.evaluate(headings) == [part.title for part in ARTICLE]
    tab.click("#beyond > summary")
    tab.wait_for_function("location.search.includes('beyond=1')")
    assert tab.evaluate(headings) == [part.title for part in PARTS]
    tab.reload()
    assert tab.evaluate(headings) == [part.title for part in PARTS]
    tab.click("#beyond > summary")
    tab.wait_for_function("!location.search.includes('beyond')")
    tab.reload()
    assert tab.evaluate(headings) == [part.title for part in ARTICLE]


@pytest.mark.parametrize("beyond", (False, True))
def test_print_is_the_article_on_at_most_8_pages_without_controls(visit, beyond):
    tab = settled(visit(color_scheme="dark"))
    if beyond:
        tab.click("#beyond > summary")
    paper = tab.pdf(prefer_css_page_size=True)
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 8
    tab.emulate_media(media="print")
    hidden = (
        "[...document.querySelectorAll('.part:not(#beyond *) :is(.formula, .reason, .numbers)')].filter(p => !p.checkVisibility()).length"
    )
    assert tab.evaluate(hidden) == 0 and not tab.is_visible("#hessian_product")
    assert not [x for x in ("#theme", "#score-0", "nav", ".skip") if tab.is_visible(x)]
    assert tab.is_visible("#typed-0") and tab.is_visible("#choose-t")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


OVERFLOWS = """() => [...document.querySelectorAll('main *')]
  .filter(x => x.checkVisibility() && x.getBoundingClientRect().right > innerWidth)
  .map(x => [x.className, x.textContent.slice(0, 60)])"""


@pytest.mark.parametrize("width", (320, 390, 768, 1280))
def test_no_formula_and_no_number_is_wider_than_the_page(visit, width):
    tab = settled(visit(viewport={"width": width, "height": 844}))
    tab.click("#beyond > summary")
    assert tab.evaluate(OVERFLOWS) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_formula_breaks_only_where_there_is_no_room(visit):
    """On a wide page this line is one row, and on a narrow one it takes several. Each piece after the first begins with an operator."""
    height = "document.querySelector('#result1 > ol > li:nth-child(4) > .formula').offsetHeight"
    wide, narrow = visit(), visit(viewport={"width": 320, "height": 800})
    assert narrow.evaluate(height) > 1.5 * wide.evaluate(height)
    first, *more = re.findall(r"<math .*?</math>", formula(RESULT_1.lines[3]))
    assert len(more) == 3 and all('<mrow><mo form="infix">' in piece for piece in more) and "infix" not in first


def test_the_theme_follows_the_system_and_the_button(visit):
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        tab = visit(color_scheme=scheme)
        seen[scheme] = tab.evaluate(background)
        assert tab.get_attribute("#theme", "aria-pressed") == str(scheme == "dark").lower()
    tab.click("#theme")
    assert tab.evaluate(background) == seen["light"] != seen["dark"]


def test_the_theme_survives_a_reload(visit):
    background = "getComputedStyle(document.body).backgroundColor"
    tab = visit(color_scheme="light")
    light = tab.evaluate(background)
    tab.click("#theme")
    dark = tab.evaluate(background)
    tab.reload()
    assert tab.evaluate(background) == dark != light and tab.get_attribute("#theme", "aria-pressed") == "true"
    tab.click("#theme")
    tab.reload()
    assert tab.evaluate(background) == light and tab.get_attribute("#theme", "aria-pressed") == "false"


@pytest.mark.parametrize("name", ["a class with quite a long name, number {}", "Donaudampfschifffahrtsgesellschaft{}", "{}"])
def test_no_control_is_wider_than_a_phone(visit, name):
    names = [name.format(n) for n in range(24)]
    tab = visit([*(1e9 / 3**k for k in range(23)), -INF], 0, names, viewport={"width": 390, "height": 844})
    tab.fill("#typed-1", "x")
    tab.keyboard.press("Enter")
    assert settled(tab).evaluate("document.documentElement.scrollWidth") == 390
    outside = """aside => [...aside.querySelectorAll('*')].filter(x => x.checkVisibility()).filter(x => {
      const a = aside.getBoundingClientRect(), b = (x.closest('.scroll') ?? x).getBoundingClientRect();
      return b.width && (b.left < a.left || b.right > a.right);
    }).map(x => x.outerHTML)"""
    assert tab.eval_on_selector("aside", outside) == []
    assert tab.eval_on_selector_all(".score [type=text]", "all => Math.min(...all.map(x => x.getBoundingClientRect().width))") > 60
    assert tab.eval_on_selector_all(".score [type=range]", "all => Math.min(...all.map(x => x.getBoundingClientRect().width))") > 60


@pytest.mark.parametrize(("motion", "seconds"), [("reduce", "0s"), ("no-preference", "0.12s, 0.12s")])
def test_nothing_moves_for_those_who_asked_for_rest(visit, motion, seconds):
    tab = visit(reduced_motion=motion)
    assert tab.evaluate("getComputedStyle(document.querySelector('.bar span')).transitionDuration") == seconds


def test_a_hostile_name_is_text(visit):
    tab = visit(names=[HOSTILE, *NAMES[1:]], label=0)
    tab.wait_for_selector("text=The lines of every derivation agree.")
    assert tab.evaluate("document.images.length") == 0 and tab.evaluate("document.scripts.length") == 5
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
    ("arguments", "options", "words"),
    [
        (([1.0], 0, "a"), {}, "scores must be 2 to 24 numbers; got 1"),
        (([0.0] * 25, 0, ["a"] * 25), {}, "scores must be 2 to 24 numbers; got 25"),
        (([1.0, math.nan], 0, "ab"), {}, "scores must be finite and of size 1e+09 at most, or -inf for a masked class; got nan at class 1"),
        (([INF, 1.0], 0, "ab"), {}, "scores must be finite and of size 1e+09 at most, or -inf for a masked class; got inf at class 0"),
        (([1.0, -2e9], 0, "ab"), {}, "scores must be finite and of size 1e+09 at most, or -inf for a masked class; got -2e+09 at class 1"),
        (([-INF, -INF], 0, "ab"), {}, "scores must leave 2 classes that are not masked (-inf); got 0"),
        (([1.0, -INF], 0, "ab"), {}, "scores must leave 2 classes that are not masked (-inf); got 1"),
        (([1.0, 2.0], 2, "ab"), {}, "label must be in [0, 2); got 2"),
        (([1.0, -INF, 2.0], 1, "abc"), {}, "label must be a class that is not masked; got 1, whose score is -inf: its loss is infinite"),
        (([1.0, -INF, 2.0], 0, "abc"), {"j": 1}, "j must be a class that is not masked; got 1, whose score is -inf"),
        (([1.0, 2.0], 0, "ab"), {"k": -1}, "k must be in [0, 2); got -1"),
        (([1.0, 2.0], 0, "ab"), {"j": 1, "k": 1}, "j and k must be two classes; got 1 for both"),
        (([1.0, 2.0], 0, "a"), {}, "names must be 2, one for each score; got 1"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments, options, words):
    with pytest.raises(ValueError) as caught:
        page(*arguments, **options)
    assert str(caught.value) == f"page: {words}"


def test_the_decimal_library_is_as_it_was_published():
    vendor = Path(HERE, "vendor")
    package, version, digest = re.search(
        r"\| \[(\S+)\]\(.*\) \| (\S+) \| MIT .* \| (\w{64}) \|", (vendor / "README.md").read_text()
    ).groups()
    source = (vendor / package).read_bytes()
    assert hashlib.sha256(source).hexdigest() == digest and f"{package} v{version}".encode() in source
    assert "MIT" in (vendor / f"{package}.LICENCE.md").read_text()
    assert (vendor / package).read_text() in page(SCORES, LABEL, NAMES)
