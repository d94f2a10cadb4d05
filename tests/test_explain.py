"""The command `softxent explain`: the values are right, every line agrees with the one before, and what does not is said."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from cases import environment, python
from test_cli import BLOCK, command  # without the extra "cli" this skips

import softxent
from softxent import explanation as explain
from softxent.explanation import row as rows
from softxent.explanation import terminal
from softxent.proof import derivation as book
from softxent.proof.replay import Numbers, agree

ROWS = [
    ([2.0, 1.0, 0.1], 0),
    ([0.0, 0.0], 1),
    ([-3.5, 7.25, 7.25, 0.5, -20.0], 3),
    ([30.0, -30.0, 1.0, 2.0], 1),
    (list(np.random.default_rng(5).normal(0, 4, 12)), 7),
]
TRUTHS = [[0.7, 0.2, 0.1], [0, 0, 0], [1, 1, 1], [0.5, 0, 0.25], [3, 0, 2.5]]


def listed(numbers):
    return ",".join(repr(float(x)) for x in numbers)


def as_json(arguments, capsys):
    code, out, err = command(["explain", "--json", *arguments], capsys)
    assert (code, err) == (0, "")
    return json.loads(out.replace(terminal.MINUS, "-"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def naive(z, y):
    """-> softmax, gradient, loss in plain float64."""
    z, y = np.asarray(z, np.float64), np.asarray(y, np.float64)
    e = np.exp(z - z.max())
    yhat = e / e.sum()
    loss = y.sum() * (z.max() + np.log(e.sum())) - (y * z).sum()
    return yhat, y.sum() * yhat - y, loss


def shown(capsys, arguments, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = command(["explain", *arguments], capsys)
    assert (code, err) == (0, "")
    return out.replace(terminal.MINUS, "-")


def packed(words):
    return "".join(words.split()).replace(terminal.MINUS, "-")


def replays(row, names=(), everything=True):
    return explain.account(row, explain.chosen("explain", names, everything))


# ---------------------------------------------------------------- the values


@pytest.mark.parametrize(("z", "label"), ROWS)
def test_the_end_is_prediction_minus_truth_of_numpy(z, label, capsys):
    got = as_json(["--logits", listed(z), "--label", str(label)], capsys)
    yhat, dz, loss = naive(z, np.arange(len(z)) == label)
    assert np.allclose(got["yhat"], yhat, rtol=1e-13, atol=0)
    for gradient in (got["gradient"], got["central_difference"]["values"], got["ours"]["gradient"]):
        assert np.abs(np.array(gradient) - dz).max() < 1e-14
    assert abs(got["loss"] - loss) < 1e-13 and abs(got["ours"]["loss"] - loss) < 1e-13
    assert got["agrees"] and got["line"]["text"] == "ŷ_k - y_k" and sum(got["y"]) == 1


@pytest.mark.parametrize("y", TRUTHS, ids=str)
def test_any_truth_ends_in_its_mass_times_the_prediction(y, capsys):
    got = as_json(["--truth", ",".join(map(str, y))], capsys)
    _, dz, loss = naive([2, 1, 0.1], y)
    for gradient in (got["gradient"], got["central_difference"]["values"], got["ours"]["gradient"]):
        assert np.abs(np.array(gradient) - dz).max() < 1e-14
    assert abs(got["loss"] - loss) < 1e-13 and abs(got["mass"] - sum(y)) < 1e-15
    assert got["line"]["text"] == ("ŷ_k - y_k" if y == [0.7, 0.2, 0.1] else "p ŷ_k - y_k")


def test_known_values_stand_in_the_lines(capsys):
    got = as_json(["--all"], capsys)
    values = {one["name"]: one["lines"][-1]["value"] for one in got["derivations"]}
    yhat, dz, loss = naive([2, 1, 0.1], [1, 0, 0])
    want = {
        "result1": yhat[0] * (1 - yhat[0]), "result2": -yhat[0] * yhat[1], "result3": -1 / yhat[0], "denominator": np.e**2,
        "prediction_minus_truth": dz[0], "short_way": dz[0], "loss_by_lse": loss, "softmax_sums_to_1": 1, "other_terms": 0,
        "smoothed_gradient": yhat[0] - 0.9 - 0.1 / 3, "miss": 1 - yhat[0], "tiny_loss": loss, "weighted_gradient": dz[0],
    }  # fmt: skip
    assert {name: pytest.approx(value, rel=1e-14, abs=1e-30) for name, value in want.items()} == {name: values[name] for name in want}


# ---------------------------------------------------------------- the lines


@pytest.mark.parametrize(("z", "label"), ROWS)
def test_every_line_agrees_with_the_one_before_at_every_choice_of_indices(z, label):
    account = replays(rows.arrange(np.array(z), label=label))
    assert account.agrees and len(account.replays) == len(book.DERIVATIONS)
    for one in account.replays:
        on = Numbers(one.derivation, z, [float(n == label) for n in range(len(z))], label)
        assert one.choices == len(on.places()) > 0 and one.apart < Decimal("1e-30")
        assert [line.value for line in one.lines] == [pytest.approx(v, abs=Decimal("1e-40")) for v in on.values(one.at)]
        assert all(line.holds and line.agrees for line in one.lines)


@pytest.mark.parametrize("y", TRUTHS, ids=str)
def test_for_a_truth_of_another_mass_all_lines_hold_up_to_the_given_one(y):
    truth = [Decimal(str(t)) for t in y]
    account = replays(rows.arrange(np.array([2, 1, 0.1]), truth=truth))
    assert account.agrees
    for one in account.replays:
        held = [line.holds for line in one.lines]
        first = book.BEFORE_SUM_IS_1 + 1 if one.derivation is book.GRADIENT and sum(truth) != 1 else len(held)
        assert held == [n < first for n in range(len(held))]
        assert all(agree(a.value, b.value, b.step.rel) for a, b in zip(one.lines, one.lines[1:first], strict=False))


def test_what_does_not_hold_is_said_and_has_no_value(capsys, monkeypatch):
    out = shown(capsys, ["--truth", "0.7,0.2,0.2"], 100, monkeypatch)
    assert re.search(r"= -y_k \+ ŷ_k · \(1\) +not here: it needs Σ_j y_j = 1 ", out)
    assert re.search(r"= ŷ_k - y_k +not here ", out) and "the first 7 of 9 lines" in out and "k: p ŷ_k - y_k, p = 1.1" in out
    assert "not here" not in shown(capsys, ["--truth", "0.7,0.2,0.1"], 100, monkeypatch)


def test_j_and_k_are_who_the_caller_says_or_the_label_and_the_likeliest_other(capsys):
    z = ["--logits", "0,3,1,2", "--label", "2"]
    for options, j, k in (([], 1, 2), (["--k", "1"], 3, 1), (["--j", "2"], 2, 1), (["--j", "0", "--k", "3"], 0, 3)):
        got = as_json([*z, *options], capsys)
        assert (got["row"]["j"], got["row"]["k"]) == (j, k)
        at = {one["name"]: one["at"] for one in got["derivations"]}
        assert at["result2"] == {"j": j, "k": k, "t": 2} and at["result1"] == {"j": k, "t": 2}  # "case j = k"


def test_a_chain_that_is_0_shows_0_and_nothing_that_rounding_left(capsys, monkeypatch):
    on = Numbers(book.CENTRED, [0.3, -1.7, 2.2], [1, 0, 0], 0)
    assert any(0 < abs(v) < 1e-40 for v in on.values()), "choose scores at which rounding leaves something"
    arguments = ["centred", "--logits", "0.3,-1.7,2.2", "--label", "0"]
    assert [line["decimal"] for line in as_json(arguments, capsys)["derivations"][0]["lines"]] == ["0"] * 5
    assert not re.search(r"= -?[\d.]+e-", shown(capsys, arguments, 100, monkeypatch))


def test_small_values_that_are_no_rounding_stay(capsys):
    got = as_json(["result2", "--logits", "0,-400", "--label", "0"], capsys)
    assert [line["value"] for line in got["derivations"][0]["lines"]] == [pytest.approx(-np.exp(-400.0), rel=1e-12, abs=0)] * 6


@pytest.mark.parametrize("label", (0, 1, 2))
@pytest.mark.parametrize("z", ("2000,0,-2000", "110,0,-3", "-1e9,0,1e9", "60,0,0", "-745,0,3"))
def test_gaps_that_no_float_reaches(z, label, capsys):
    got = as_json(["--all", "--logits", z, "--label", str(label)], capsys)
    by_name = {one["name"]: one["lines"] for one in got["derivations"]}
    inverse, slope = (Decimal(line["decimal"]) for line in by_name["log_same"])
    assert inverse == slope > 0 and all(line["filled"] for line in by_name["log_same"])
    if z == "2000,0,-2000" and label == 1:
        assert by_name["log_same"][1]["value"] is None and by_name["log_same"][1]["decimal"].endswith("E+868")
        assert got["loss"] == 2000


# ---------------------------------------------------------------- a vocabulary


@pytest.mark.parametrize("classes", (13, 100, 1000, 50257))
def test_putting_classes_together_changes_no_other_gradient(classes, rng):
    z = rng.normal(0, 3, classes)
    row = rows.arrange(z, label=5)
    account = replays(row, everything=False)
    yhat, dz, loss = naive(z, np.arange(classes) == 5)
    shown = list(row.shown)
    assert account.agrees and row.rest == classes - len(shown) and len(row.names) == rows.APART
    assert set(np.argsort(-z)[:9]) <= set(shown) and 5 in shown
    assert np.abs(np.array([*map(float, account.end.gradient)]) - [*dz[shown], np.delete(dz, shown).sum()]).max() < 1e-14
    assert np.abs(np.array([*map(float, account.end.yhat)]) - [*yhat[shown], np.delete(yhat, shown).sum()]).max() < 1e-14
    assert abs(float(account.end.loss) - loss) < 1e-12 and abs(account.end.our_loss - loss) < 1e-12
    assert sum(account.end.ours) == pytest.approx(0, abs=1e-12)


def test_classes_with_truth_stand_apart_while_there_is_room(rng):
    z = rng.normal(0, 3, 40)
    last = np.argsort(z)[:4]
    truth = [Decimal("0.25") if n in last else Decimal(0) for n in range(40)]
    row = rows.arrange(z, truth=truth)
    assert set(last) <= set(row.shown) and row.astray == 0 and replays(row).agrees


def test_truth_all_over_the_vocabulary_keeps_the_gradient_and_the_loss(rng, capsys, monkeypatch):
    z, y = rng.normal(0, 2, 30).round(3), rng.random(30).round(3)
    arguments = ["--logits", listed(z), "--truth", listed(y)]
    got = as_json(arguments, capsys)
    _, dz, loss = naive(z, y)
    apart = got["row"]["shown"]
    assert np.abs(np.array(got["gradient"]) - [*dz[apart], np.delete(dz, apart).sum()]).max() < 1e-13
    assert got["loss"] == pytest.approx(loss, rel=1e-13) and got["definitions"][1]["value"] < loss - 1
    assert "They hold truth of their own" in shown(capsys, arguments, 120, monkeypatch)


def test_a_row_of_a_vocabulary_is_quick(tmp_path):
    import time

    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(0, 3, (20, 50257)).astype(np.float32))
    start = time.perf_counter()
    account = replays(rows.read(file=tmp_path / "z.npy", row=7, label=11), everything=False)
    assert account.agrees and time.perf_counter() - start < 2


@pytest.mark.parametrize("classes", (2, 12))
def test_few_classes_all_stand_apart(classes):
    row = rows.arrange(np.arange(float(classes)), label=0)
    assert row.rest == 0 and row.shown == tuple(range(classes))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ("f2", "f4", "f8", ">f4", "i4"))
@pytest.mark.parametrize("shape", ((3, 5), (5,)))
def test_a_row_of_a_file_in_its_own_dtype(dtype, shape, tmp_path, capsys, rng):
    z = (4 * rng.normal(size=shape)).astype(dtype)
    np.save(tmp_path / "z.npy", z)
    np.save(tmp_path / "y.npy", np.array([1, 4, 2][: len(z) if z.ndim == 2 else 1]))
    n = 2 if z.ndim == 2 else 0
    got = as_json(["--file", str(tmp_path / "z.npy"), "--row", str(n), "--labels", str(tmp_path / "y.npy")], capsys)
    z, label = np.atleast_2d(z)[n], (1, 4, 2)[n]
    assert got["row"]["scores"] == z.astype(float).tolist() and got["row"]["label"] == label
    assert got["row"]["dtype"] == {"i4": "float64", ">f4": "float32"}.get(dtype, z.dtype.name)
    loss, dz = softxent.cross_entropy_and_grad(z[None].astype(got["row"]["dtype"]), np.array([label]))
    assert got["ours"]["gradient"] == dz[0].astype(float).tolist() and got["ours"]["loss"] == loss
    assert np.abs(naive(z, np.arange(5) == label)[1] - got["gradient"]).max() < 1e-14


def test_an_npz_of_one_array_and_names_from_a_file(tmp_path, capsys):
    np.savez(tmp_path / "z.npz", z=np.array([[1.0, 2.0]]))
    (tmp_path / "names").write_text(" the\nMäuse \n", encoding="utf-8")
    got = as_json(["--file", str(tmp_path / "z.npz"), "--label", "1", "--names-file", str(tmp_path / "names")], capsys)
    assert got["row"]["names"] == [" the", "Mäuse "]


# ---------------------------------------------------------------- JSON


def test_the_json_holds_every_derivation_and_every_line(capsys):
    got = as_json(["--all"], capsys)
    assert [one["name"] for one in got["derivations"]] == list(book.DERIVATIONS)
    for one in got["derivations"]:
        derivation = book.DERIVATIONS[one["name"]]
        assert len(one["lines"]) == len(derivation.lines) and one["agrees"] and len(one["where"]) == len(derivation.where)
        assert [line["rule"] for line in one["lines"]] == [None, *(step.rule for step in derivation.steps)]
        for line in one["lines"]:
            assert set(line) == {
                "text", "latex", "relation", "rule", "reason", "uses", "given", "filled", "value", "decimal", "holds", "agrees",
            }  # fmt: skip
            assert line["text"] and line["latex"] and line["filled"] and float(line["decimal"]) == line["value"]
            assert line["rule"] is None or line["reason"]
    assert [one["name"] for one in got["definitions"]] == [one.name for one in book.DEFINITIONS]
    given = next(one for one in got["derivations"] if one["name"] == "prediction_minus_truth")["lines"][7]["given"]
    assert given == ["Σ_j y_j = 1"]


def test_only_what_is_asked_for(capsys):
    names = ["result1", "smoothed_gradient"]
    assert [one["name"] for one in as_json(names, capsys)["derivations"]] == names
    article = [one.name for part in book.ARTICLE for one in part.derivations]
    assert [one["name"] for one in as_json([], capsys)["derivations"]] == article
    code, out, _ = command(["explain", "result1"], capsys)
    assert code == 0 and "Result 1 (case j = k)" in out and "Result 2" not in out and "prediction - truth" not in out


def test_list_names_every_derivation_with_its_title(capsys):
    code, out, _ = command(["explain", "--list"], capsys)
    assert code == 0 and all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in book.DERIVATIONS)
    assert all(part.title in out for part in book.PARTS) and "Label smoothing with class weights" in out


# ---------------------------------------------------------------- how it looks


def test_the_page_goes_from_the_row_to_prediction_minus_truth(capsys, monkeypatch):
    out = shown(capsys, [], 100, monkeypatch)
    order = [
        "The row",
        "What the names stand for",
        *(part.title for part in book.ARTICLE),
        "prediction - truth",
        "central difference",
        "softxent.",
    ]
    places = [out.rindex(words) if words.startswith("softxent") else out.index(f"{words}") for words in order[:-3]]
    end = out.rindex("prediction - truth ─")
    assert places == sorted(places) and places[-1] < end < out.index("central difference") < out.index("softxent.cross_entropy_and_grad")
    assert re.search(r"^= ŷ_j \(1 - ŷ_j\) +factor: ŷ_j is in both terms\.", out, re.MULTILINE)
    assert re.search(r"^  0\.659 · \(1 - 0\.659\) += 0\.224719", out, re.MULTILINE)
    assert re.search(r"^ cat +-0\.340998861114 +-0\.340998861114 +-0\.340998861114 *$", out, re.MULTILINE)
    assert re.search(r"^ cat +0\.6590 +█+.* +1\.0000 +█+ +-0\.3410 +█+ *$", out, re.MULTILINE)


@pytest.mark.parametrize("width", (40, 60, 80, 100, 120, 200))
def test_it_fits_the_width_and_loses_no_number(width, capsys, monkeypatch):
    out = shown(capsys, ["--all", "--names", "a very long name of a cat,dog,owl"], width, monkeypatch)
    assert max(map(len, out.splitlines())) <= min(width, 120)
    table = out[out.rindex("prediction - truth ─") :]
    assert not re.search(r"\d…", table) and len(re.findall(r"-0\.34\d*", table)) == 4
    column = width if width < terminal.WIDE else min(width, 120) * 3 // 5  # reasons stand in a column of their own
    words = packed("".join(line[:column] for line in out.splitlines()))
    for one in book.DERIVATIONS.values():
        for step in one.steps:
            assert packed(terminal.text(step.expr)) in words
            if width < terminal.WIDE:
                assert packed(terminal.prose(step.why)) in words


def test_every_row_of_a_broken_line_starts_with_an_operator():
    for one in book.DERIVATIONS.values():
        for line in map(terminal.text, one.lines):
            for width in (20, 40, 70):
                first, *more = terminal.fold(line, width)
                assert " ".join(x.strip() for x in (first, *more)) == line
                assert all(x.strip()[0] in "+·/=≥" + terminal.MINUS for x in more)


def test_a_pipe_gets_plain_text():
    code = "from softxent.cli import main; main(['explain'])"
    for terminal_is in ({}, {"TERM": "xterm-256color"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment(PYTHONIOENCODING="utf-8", **terminal_is),
        )
        assert done.returncode == 0 and "\x1b" not in done.stdout and "prediction - truth" in done.stdout and done.stderr == ""


def test_an_ascii_terminal_is_no_crash():
    code = "from softxent.cli import main; main(['explain', 'result1'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(PYTHONIOENCODING="ascii"))
    assert done.returncode == 0 and done.stdout.isascii() and b"0.224719" in done.stdout


@pytest.mark.parametrize("no_color", (False, True))
def test_a_terminal_gets_colour_unless_it_says_no(no_color, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    console = terminal.Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=100, highlight=False)
    terminal.show(console, replays(rows.read(), everything=False))
    out = console.file.getvalue()
    assert "\x1b[1m" in out and bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", out)) is not no_color


def test_names_are_printed_as_they_are(capsys, monkeypatch):
    for width in (80, 120):
        out = shown(capsys, ["--names", "[bold]x,[/red],:cat:", "--label", "1"], width, monkeypatch)
        assert all(out.count(name) >= 3 for name in ("[bold]x", "[/red]", ":cat:"))


def test_names_move_no_cursor(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        terminal_main(["explain", "--names", "a\x1b[31mb,c\nd,e\x07"])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and r"a\x1b[31mb" in out and r"c\nd" in out


def terminal_main(arguments):
    from softxent.cli import main

    main(arguments)


# ---------------------------------------------------------------- what is wrong


def wrong_step(name, line, expr):
    """The parts, with one line of a derivation replaced."""

    def changed(one):
        if one.name != name:
            return one
        steps = [step._replace(expr=expr) if n == line else step for n, step in enumerate(one.steps, 1)]
        return one._replace(steps=tuple(steps))

    return tuple(part._replace(derivations=tuple(map(changed, part.derivations))) for part in book.PARTS)


def test_a_wrong_line_is_found_and_ends_in_1(monkeypatch, capsys):
    parts = wrong_step("result1", 4, book.yhat["j"] * 1 - book.yhat["j"])
    monkeypatch.setattr(book, "PARTS", parts)
    monkeypatch.setattr(book, "ARTICLE", parts[:3])
    code, out, err = command(["explain", "result1"], capsys)
    assert code == 1 and "✗ line 5 does not agree with the line before" in out and "= 0  does not agree" in out
    assert err.startswith("softxent explain: ") and err.count("\n") == 1
    code, out, _ = command(["explain", "--json"], capsys)
    agrees = [line["agrees"] for one in json.loads(out)["derivations"] if one["name"] == "result1" for line in one["lines"]]
    assert code == 1 and not json.loads(out)["agrees"] and agrees == [True, True, True, True, False, False]


@pytest.mark.parametrize("label", (0, 2))
def test_a_line_that_is_wrong_elsewhere_only_is_found(label, monkeypatch, capsys):
    """Where k is the label, yhat_k - 1 is right: the other choices of k find it, before it and after."""
    monkeypatch.setattr(book, "PARTS", wrong_step("prediction_minus_truth", 8, book.yhat["k"] - 1))
    code, out, _ = command(["explain", "prediction_minus_truth", "--label", str(label)], capsys)
    assert code == 1 and "✗ line 9 does not agree" in out


@pytest.mark.parametrize("off", (1e-13, -1e-3))
def test_a_gradient_of_ours_beyond_its_bound_ends_in_1(off, monkeypatch, capsys):
    def crooked(z, labels, **options):
        loss, dz = softxent.cross_entropy_and_grad(z, labels, **options)
        dz[0, 1] += off
        return loss, dz

    monkeypatch.setattr(explain, "cross_entropy_and_grad", crooked)
    for arguments in ([], ["result1"]):
        code, out, err = command(["explain", *arguments], capsys)
        assert code == 1 and "✗ FAILED: softxent.cross_entropy_and_grad" in out and err.count("\n") == 1


def test_a_loss_of_ours_beyond_its_bound_ends_in_1(monkeypatch, capsys):
    def crooked(z, labels, **options):
        loss, dz = softxent.cross_entropy_and_grad(z, labels, **options)
        return loss + 1e-12, dz

    monkeypatch.setattr(explain, "cross_entropy_and_grad", crooked)
    assert command(["explain"], capsys)[0] == 1


def test_slopes_that_are_not_the_gradient_end_in_1(monkeypatch, capsys):
    moved = explain._moved
    monkeypatch.setattr(explain, "_moved", lambda row, n, by: moved(row, n, by) + by * Decimal("1e-24"))
    code, out, _ = command(["explain"], capsys)
    assert code == 1 and "✗ FAILED: central difference" in out


ERRORS = {
    "--logits 1,nan --label 0": "logits must be finite and of size 1e+09 at most; got nan at class 1",
    "--logits inf,1 --label 0": "logits must be finite and of size 1e+09 at most; got inf at class 0",
    "--logits 1e30,1 --label 0": "logits must be finite and of size 1e+09 at most; got 1e+30 at class 0",
    "--logits 1,x --label 0": "logits must be numbers with commas between them; got '1,x'",
    "--logits 1 --label 0": "logits must have at least 2 classes; got 1",
    "--logits 1,2 --label 2": "label must lie in [0, 2); got 2",
    "--logits 1,2 --label -1": "label must lie in [0, 2); got -1",
    "--logits 1,2": "truth must be given once, as a label or as probabilities; got neither",
    "--logits 1,2 --label 0 --names a": "names must be 2, one for each class; got 1",
    "--logits 1,2 --file Z --label 0": "--logits and --file must not come together; got both",
    "--label 0 --truth 1,0,0": "--label and --truth must not come together; got both",
    "--file Z --label 0 --truth 1,0,0 --labels Y": "--label and --truth and --labels must not come together; got all",
    "--names a,b,c --names-file Z": "--names and --names-file must not come together; got both",
    "--truth 1,-1,0": "truth must be finite, not negative and 1e+09 at most; got -1 at class 1",
    "--truth 1,nan,0": "truth must be finite, not negative and 1e+09 at most; got NaN at class 1",
    "--truth 1,0": "truth must be 3 numbers, one for each class; got 2",
    "--j 1 --k 1": "j and k must be two classes; got 1 for both",
    "--k 3": "k must lie in [0, 3); got 3",
    "--j -1": "j must lie in [0, 3); got -1",
    "--row 1": "--row must come with --file; got 1",
    "--file Z --row 4 --label 0": "row must lie in [0, 4); got 4",
    "--file Z --row -1 --label 0": "row must lie in [0, 4); got -1",
    "--file none --label 0": "file must be a file of one NumPy array (.npy, .npz); got none (No such file or directory)",
    "--file TEXT --label 0": "file must be a file of one NumPy array (.npy, .npz); got TEXT (",
    "--file EMPTY --label 0": "file must be a file of one NumPy array (.npy, .npz); got EMPTY (",
    "--file . --label 0": "file must be a file of one NumPy array (.npy, .npz); got . (Is a directory)",
    "--file TWO --label 0": "file must hold one array; got TWO with a, b",
    "--file CUBE --label 0": "file must hold an array [classes] or [rows, classes]; got shape (2, 2, 2)",
    "--file WORDS --label 0": "file must have dtype float32, float64, float16 or bfloat16; got strings",
    "--file OBJECTS --label 0": "file must be a file of one NumPy array (.npy, .npz); got OBJECTS (no array of numbers; files of pickled",
    "--file PICKLE --label 0": "file must be a file of one NumPy array (.npy, .npz); got PICKLE (no array of numbers; files of pickled",
    "--file Z --labels OBJECTS": "labels must be a file of one NumPy array (.npy, .npz); got OBJECTS (no array of numbers; files of",
    "--file Z --labels Z": "labels must hold integers of shape (4,), one for each row; got float64 of shape (4, 3)",
    "--names-file Z": "names-file must be a text file in UTF-8; got Z (",
    "result9": "name must be one that softxent explain --list shows; got 'result9' (close to it: result",
    "xyz": "name must be one that softxent explain --list shows; got 'xyz' (close to it: none)",
    "result1 --all": "names of derivations must not come with --all; got result1",
    "--json --html x.html": "--html and --json must not come together; got both",
    "--html no/x.html": "--html must name a file that can be written; got no/x.html (No such file or directory)",
    "--html x.html --truth 1,0,0": "--html must come with a label, which the page lets one change; got --truth",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, save in {
        "Z": lambda f: np.save(f, np.ones((4, 3))),
        "Y": lambda f: np.save(f, np.zeros(4, int)),
        "CUBE": lambda f: np.save(f, np.ones((2, 2, 2))),
        "WORDS": lambda f: np.save(f, np.array(["a", "b"])),
        "OBJECTS": lambda f: np.save(f, np.array([1, None])),
        "PICKLE": lambda f: pickle.dump([1.0, 2.0], f),
        "TWO": lambda f: np.savez(f, a=np.ones(2), b=np.ones(2)),
        "TEXT": lambda f: f.write(b"1, 2, 3"),
        "EMPTY": lambda f: None,
    }.items():
        with open(name, "wb") as f:
            save(f)


@pytest.mark.parametrize("arguments", ERRORS)
def test_a_wrong_call_is_one_line_and_2(arguments, files, capsys):
    if "--html" in arguments and "no/" in arguments:
        pytest.importorskip("latex2mathml")
    code, out, err = command(["explain", *arguments.split()], capsys)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"softxent explain: {ERRORS[arguments]}")


# ---------------------------------------------------------------- the page, and what is loaded


def test_html_is_written_where_it_says(tmp_path, capsys):
    pytest.importorskip("latex2mathml")
    path = tmp_path / "out.html"
    code, out, _ = command(["explain", "--html", str(path), "--names", "a<b,dog,owl", "--label", "1"], capsys)
    assert code == 0 and out == f"{path}: written, open it in a browser\n"
    page = path.read_text(encoding="utf-8")
    assert "a&lt;b" in page and "<math" in page and page.lstrip().lower().startswith("<!doctype html>")


def test_html_of_a_vocabulary(tmp_path, capsys, rng):
    pytest.importorskip("latex2mathml")
    np.save(tmp_path / "z.npy", rng.normal(0, 3, 1000))
    code, _, err = command(["explain", "--html", str(tmp_path / "out.html"), "--file", str(tmp_path / "z.npy"), "--label", "1"], capsys)
    assert (code, err) == (0, "") and "988 others" not in err and "989 others" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_without_its_extra_the_page_says_what_to_install(tmp_path):
    code = BLOCK.format(package="latex2mathml", arguments=["explain", "--html", str(tmp_path / "x.html")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "softxent: this command needs the extra \"proof\"; in a clone of softxent: pip install '.[proof]'\n"


def test_neither_softxent_nor_its_command_loads_any_of_it():
    code = "import sys, softxent, softxent.cli; print([m for m in sys.modules if 'explain' in m or 'proof' in m or m in ('rich', 'sympy')])"
    loaded = python(code)
    assert not [m for m in ("explain", "proof", "sympy") if m in loaded]
