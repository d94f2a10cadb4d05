"""The command `softxent explain`: the values are right, every line agrees with the one before, and what does not is said."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
import pytest
from cases import environment, python
from test_cli import BLOCK, command
from tolerances import FEW64, FLOAT64

import softxent
from softxent import explanation as explain
from softxent.explanation import reference, terminal
from softxent.explanation import row as rows
from softxent.proof import derivation as book
from softxent.proof.replay import CONTEXT, Numbers, agree

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


def derivations(got):
    """All derivations of the JSON in the order in which they are read: a lemma before the line that it is shown inside."""

    def inside(one):
        for line in one["lines"]:
            for lemma in line["lemmas"]:
                yield from inside(lemma)
        yield one

    return [one for part in got["parts"] for whole in part["derivations"] for one in inside(whole)]


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
    assert np.allclose(got["yhat"], yhat, rtol=FEW64, atol=0)
    for gradient in (got["gradient"], got["central_difference"]["values"], got["ours"]["gradient"]):
        assert np.abs(np.array(gradient) - dz).max() < FEW64
    assert abs(got["loss"] - loss) < FEW64 and abs(got["ours"]["loss"] - loss) < FEW64
    assert got["agrees"] and got["line"]["text"] == "ŷ_k - y_k" and sum(got["y"]) == 1


@pytest.mark.parametrize("y", TRUTHS, ids=str)
def test_any_truth_ends_in_its_mass_times_the_prediction(y, capsys):
    got = as_json(["--truth", ",".join(map(str, y))], capsys)
    _, dz, loss = naive([2, 1, 0.1], y)
    for gradient in (got["gradient"], got["central_difference"]["values"], got["ours"]["gradient"]):
        assert np.abs(np.array(gradient) - dz).max() < FEW64
    assert abs(got["loss"] - loss) < FEW64 and abs(got["mass"] - sum(y)) < FEW64
    assert got["line"]["text"] == ("ŷ_k - y_k" if y == [0.7, 0.2, 0.1] else "p ŷ_k - y_k")


def test_known_values_stand_in_the_lines(capsys):
    got = as_json(["--all"], capsys)
    values = {one["name"]: one["lines"][-1]["value"] for one in derivations(got)}
    yhat, dz, loss = naive([2, 1, 0.1], [1, 0, 0])
    want = {
        "result1": yhat[0] * (1 - yhat[0]), "result2": -yhat[0] * yhat[1], "result3": -1 / yhat[0], "denominator": np.e**2,
        "prediction_minus_truth": dz[0], "short_way": dz[0], "loss_by_lse": loss, "softmax_sums_to_1": 1, "other_terms": 0,
        "smoothed_gradient": yhat[0] - 0.9 - 0.1 / 3, "miss": 1 - yhat[0], "tiny_loss": loss, "weighted_gradient": dz[0],
    }  # fmt: skip
    # a value that is 0 may be as large as the 50 digits of the replay leave
    assert {name: pytest.approx(value, rel=FEW64, abs=1e-30) for name, value in want.items()} == {name: values[name] for name in want}


# ---------------------------------------------------------------- the lines


@pytest.mark.parametrize(("z", "label"), ROWS)
def test_every_line_agrees_with_the_one_before_at_every_choice_of_indices(z, label):
    account = replays(rows.arrange(np.array(z), label=label))
    assert account.agrees and {one.derivation.name for one in account.replays} == set(book.DERIVATIONS)
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
        at = {one["name"]: one["at"] for one in derivations(got)}
        assert at["result2"] == {"j": j, "k": k, "t": 2} and at["result1"] == {"j": k, "t": 2}  # "case j = k"


def test_a_chain_that_is_0_shows_0_and_nothing_that_rounding_left(capsys, monkeypatch):
    on = Numbers(book.CENTRED, [0.3, -1.7, 2.2], [1, 0, 0], 0)
    assert any(0 < abs(v) < 1e-40 for v in on.values()), "choose scores at which rounding leaves something"  # replay.FLOOR is 1e-45
    arguments = ["centred", "--logits", "0.3,-1.7,2.2", "--label", "0"]
    assert [line["decimal"] for line in derivations(as_json(arguments, capsys))[0]["lines"]] == ["0"] * 5
    assert not re.search(r"= -?[\d.]+e-", shown(capsys, arguments, 100, monkeypatch))


def test_small_values_that_are_no_rounding_stay(capsys):
    got = as_json(["result2", "--logits", "0,-400", "--label", "0"], capsys)
    assert [line["value"] for line in derivations(got)[-1]["lines"]] == [pytest.approx(-np.exp(-400.0), rel=FEW64, abs=0)] * 6


@pytest.mark.parametrize("label", (0, 1, 2))
@pytest.mark.parametrize("z", ("2000,0,-2000", "110,0,-3", "-1e9,0,1e9", "60,0,0", "-745,0,3"))
def test_gaps_that_no_float_reaches(z, label, capsys):
    got = as_json(["--all", "--logits", z, "--label", str(label)], capsys)
    by_name = {one["name"]: one["lines"] for one in derivations(got)}
    inverse, slope = (Decimal(line["decimal"]) for line in by_name["log_same"])
    assert inverse == slope > 0 and all(line["filled"] for line in by_name["log_same"])
    if z == "2000,0,-2000" and label == 1:
        assert by_name["log_same"][1]["value"] is None and by_name["log_same"][1]["decimal"].endswith("E+868")
        assert got["loss"] == 2000


TINY_LOSSES = [([400.0, 0, 1], 0), ([1000.0, 0], 0), ([0, 3000.0, -7], 1), ([1e9, 0], 0), ([0, -1e9, 1e9], 2), ([800.0, 400, 0, -1e9], 0)]


@pytest.mark.parametrize(("z", "label"), TINY_LOSSES, ids=str)
def test_a_loss_that_is_almost_0_has_all_its_digits(z, label, capsys, monkeypatch):
    """The reference: log(1 + sum of e^(z_k - z_t)), which is that sum up to its square, and the same without z_t's own in the gradient."""
    with localcontext(CONTEXT):
        others = sum(Decimal(x - z[label]).exp() for n, x in enumerate(z) if n != label)
        got = softxent.explain(z, label).to_dict()
        gradient, loss = [Decimal(x) for x in got["decimals"]["gradient"]], Decimal(got["decimals"]["loss"])
        near = Decimal("1e-45")  # of 50 digits
        assert got["agrees"] and abs(loss - others) <= others * near and abs(gradient[label] + others) <= others * near
        assert abs(sum(gradient)) <= others * near and all(g > 0 for n, g in enumerate(gradient) if n != label)
        assert got["loss"] == float(loss) and got["gradient"] == [*map(float, gradient)]
    out = shown(capsys, ["--logits", listed(z), "--label", str(label)], 120, monkeypatch)
    assert f"with 50 digits it is {terminal.short(loss, 8)}" in " ".join(out.split())
    lines = [line for one in derivations(got) for line in one["lines"] if one["name"] in ("miss", "tiny_loss")]
    for line in lines:
        assert not line["covered"] or Decimal(line["decimal"]) != 0


def test_the_reference_is_judged_up_to_its_last_digits():
    """A loss of 0 where it is 7e-174 is no agreement, whatever the rounding of a sum of numbers near 1 is."""
    end = softxent.explain([400.0, 0, 1], 0)._account.end
    assert end.ours_agrees and end.loss_bound < end.loss / 10**10
    assert not end._replace(our_loss=0.0).ours_agrees and not end._replace(ours=[0.0, *end.ours[1:]]).ours_agrees


@pytest.mark.parametrize(
    ("z", "y"),
    [([0, 0, -400.0], [".5", ".5", "0"]), ([5e-324, 0, 0], ["0", ".5", ".5"]), ([3, 3, 3], ["0.25", "0.25", "0.25"]), ([1, 2], ["0", "0"])],
    ids=str,
)
def test_the_reference_of_probabilities_has_all_its_digits(z, y):
    """It is compared with the same numbers from 2,000 digits."""
    scores, truth = [*map(Decimal, z)], [*map(Decimal, y)]
    with localcontext(CONTEXT) as context:
        context.prec = 2000
        e = [x.exp() for x in scores]
        want = [sum(truth) * x / sum(e) - t for x, t in zip(e, truth, strict=True)]
        loss = sum((t * ((sum(e)).ln() - x) for t, x in zip(truth, scores, strict=True)), Decimal(0))
        for a, b in zip([*reference.gradient(scores, truth), reference.loss(scores, truth)], [*want, loss], strict=True):
            # 50 digits, and an exact 0 leaves only what 2,000 digits round
            assert abs(a - b) <= abs(a) * Decimal("1e-48") + Decimal("1e-1990")


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
    assert np.abs(np.array([*map(float, account.end.gradient)]) - [*dz[shown], np.delete(dz, shown).sum()]).max() < FEW64
    assert np.abs(np.array([*map(float, account.end.yhat)]) - [*yhat[shown], np.delete(yhat, shown).sum()]).max() < FEW64
    assert abs(float(account.end.loss) - loss) < FLOAT64 and abs(account.end.our_loss - loss) < FLOAT64
    assert sum(account.end.ours) == pytest.approx(0, abs=FEW64)


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
    assert np.abs(np.array(got["gradient"]) - [*dz[apart], np.delete(dz, apart).sum()]).max() < FEW64
    of_the_lines = next(
        f["value"] for part in got["parts"] for one in part["remarks"] for f in one["formulas"] if f["text"].startswith("L =")
    )
    assert got["loss"] == pytest.approx(loss, rel=FEW64) and of_the_lines < loss - 1
    assert "The truth of the merged classes is not 0" in shown(capsys, arguments, 120, monkeypatch)


def test_a_row_of_a_vocabulary_costs_no_more_than_one_of_13_classes(tmp_path):
    """Counted are the calls of functions, since seconds depend on what else the machine does."""
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(0, 3, (20, 50257)).astype(np.float32))

    def calls(row: Callable[[], rows.Row]) -> int:
        count = 0

        def add(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(add)
        try:
            assert replays(row(), everything=False).agrees
        finally:
            sys.setprofile(None)
        return count

    few = calls(lambda: rows.arrange(np.random.default_rng(0).normal(0, 3, 13), label=5))
    assert calls(lambda: rows.read(file=tmp_path / "z.npy", row=7, label=11)) < 1.1 * few


@pytest.mark.parametrize("classes", (2, 12))
def test_few_classes_all_stand_apart(classes):
    row = rows.arrange(np.arange(float(classes)), label=0)
    assert row.rest == 0 and row.shown == tuple(range(classes))


# ---------------------------------------------------------------- classes by name


@pytest.mark.parametrize(
    ("arguments", "label", "j", "k"),
    [
        ("--label cat", 0, 1, 0),
        ("--label owl --j dog --k cat", 2, 1, 0),
        ("--label 2 --j dog", 2, 1, 2),
        ("--logits 1,2,3 --names a,b,c --label b --k c", 1, 1, 2),
        ("--logits 1,2,3 --k class_1 --label class_2", 2, 2, 1),  # default names
        ("--logits 1,2,3 --names 2,0,1 --label 0 --j 2 --k 1", 0, 2, 1),  # a whole number is an index, even where it is a name
        ("--logits 1,2,3 --names 02,-1,1.0 --label 1.0", 2, 1, 2),
    ],
)
def test_a_class_goes_by_its_index_or_its_name(arguments, label, j, k, capsys):
    row = as_json([x.replace("_", " ") for x in arguments.split()], capsys)["row"]
    assert (row["label"], row["j"], row["k"]) == (label, j, k)


# ---------------------------------------------------------------- masked classes

INF = np.inf
MASKED = [
    ([2.0, -INF, 0.0], 0),
    ([-INF, -INF, 1.5, 2.0, -INF], 3),
    ([*[-INF] * 13, 1.0, 2.0], 13),  # too many to stand one by one
    ([-INF, *np.random.default_rng(7).normal(0, 3, 40), -INF], 9),  # beside a rest
    ([*np.random.default_rng(7).normal(0, 3, 40), *[-INF] * 60], 9),
]


SHORT, LONG = MASKED[:3], MASKED[3:]  # a long row takes seconds


@pytest.mark.parametrize(
    ("z", "label", "dtype"),
    [
        *((z, label, dtype) for z, label in SHORT for dtype in (np.float64, np.float32, np.float16)),
        (*LONG[0], np.float32),
        (*LONG[1], np.float16),
    ],
)
def test_a_masked_class_has_no_gradient_and_takes_no_part(z, label, dtype):
    z = np.array(z, dtype)
    row, kept = rows.arrange(z, label=label), np.flatnonzero(z > -INF)
    got, alone = replays(row), replays(rows.arrange(z[kept], label=int(np.searchsorted(kept, label))))
    assert got.agrees and row.masked == tuple(np.flatnonzero(z == -INF))
    assert got.end.masked == [0.0] * sum(entry.place is None for entry in row.entries) != []
    assert (sum(row.places(np.ones(len(z)))), sum(row.at_masked(np.ones(len(z))))) == (len(kept), len(z) - len(kept))
    assert [kept.tolist().index(n) for n in row.shown] == list(alone.row.shown) and row.rest == alone.row.rest
    for one, other in zip(got.replays, alone.replays, strict=True):
        assert [line.value for line in one.lines] == [line.value for line in other.lines]
    assert (got.end.gradient, got.end.slopes, got.end.loss) == (alone.end.gradient, alone.end.slopes, alone.end.loss)


def test_masked_classes_stand_in_the_tables_with_0(capsys, monkeypatch):
    arguments = ["--logits", "2,-inf,0,-inf", "--names", "cat,dog,owl,elk", "--label", "owl"]
    out = shown(capsys, arguments, 100, monkeypatch)
    assert re.search(r"^ dog +-inf +0 +masked *$", out, re.MULTILINE) and "2 classes are masked (score -inf)" in out
    assert len(re.findall(r"^ dog +0\.0{12} +0\.0{12} +0\.0{12} *$", out, re.MULTILINE)) == 1
    assert re.search(r"^ elk +0\.0000 +0\.0000 +0\.0000 *$", out, re.MULTILINE)
    assert [line.split()[0] for line in re.findall(r"^ (?:cat|dog|owl|elk) .*$", out, re.MULTILINE)] == ["cat", "dog", "owl", "elk"] * 3
    got = as_json(arguments, capsys)
    assert got["row"]["masked"] == [1, 3] and got["row"]["names"] == ["cat", "owl"] and got["ours"]["masked"] == [0, 0]
    many = shown(capsys, ["--logits", ",".join(["-inf"] * 2000 + ["1", "2"]), "--label", "2001"], 100, monkeypatch)
    assert re.search(r"^ 2,000 masked +-inf +0 +masked *$", many, re.MULTILINE) and many.count("2,000 masked ") == 3


@pytest.mark.parametrize("masked", (1, 20))
def test_a_gradient_of_ours_at_a_masked_class_ends_in_1(masked, monkeypatch, capsys):
    def crooked(z, labels, **options):
        loss, dz = softxent.cross_entropy_and_grad(z, labels, **options)
        dz[z == -INF] = [*[1e-300, -1e-300] * 10][:masked]
        return loss, dz

    monkeypatch.setattr(explain, "cross_entropy_and_grad", crooked)
    code, out, _ = command(["explain", "--logits", ",".join(["1", "2", *["-inf"] * masked]), "--label", "1"], capsys)
    assert code == 1 and "✗ FAILED: softxent.cross_entropy_and_grad" in out


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
    assert np.abs(naive(z, np.arange(5) == label)[1] - got["gradient"]).max() < FEW64


def test_an_npz_of_one_array_and_names_from_a_file(tmp_path, capsys):
    np.savez(tmp_path / "z.npz", z=np.array([[1.0, 2.0]]))
    (tmp_path / "names").write_text(" the\nMäuse \n", encoding="utf-8")
    got = as_json(["--file", str(tmp_path / "z.npz"), "--label", "1", "--names-file", str(tmp_path / "names")], capsys)
    assert got["row"]["names"] == [" the", "Mäuse "]


Z4, Y4 = np.arange(12.0).reshape(4, 3) % 5, np.array([2, 0, 1, 1])
BATCHES = {
    "names": ({"z": Z4, "y": Y4}, "", {}),
    "longer names": ({"extra": Z4 + 1, "logits": Z4, "more": np.array([7]), "targets": Y4}, "", {}),
    "kinds": ({"a": Y4, "b": Z4.astype(np.float32)}, "", {}),
    "chosen": ({"a": Z4, "scores": Z4 + 1, "labels": Y4}, ":a", {}),
    "labels chosen": ({"a": Z4, "b": Y4, "c": Y4 + 1}, ":a", {"--labels": ":b"}),
    "one name": ({"a": Z4.astype(np.int32), "labels": Y4}, ":a", {}),
    "a pickled array beside": ({"a": Z4, "y": Y4, "names": np.array(["x", "y", "z"], dtype=object)}, ":a", {}),
}


@pytest.mark.parametrize("arrays", BATCHES)
def test_logits_and_labels_of_one_npz(arrays, tmp_path, capsys):
    arrays, name, others = BATCHES[arrays]
    np.savez(tmp_path / "batch.npz", **arrays)
    more = [x for option, value in others.items() for x in (option, f"{tmp_path}/batch.npz{value}")]
    for n in (0, 3):
        row = as_json(["--file", f"{tmp_path}/batch.npz{name}", "--row", str(n), *more], capsys)["row"]
        assert (row["scores"], row["label"]) == (Z4[n].tolist(), Y4[n])


def test_of_two_arrays_a_known_name_comes_before_what_fits(tmp_path, capsys):
    np.savez(tmp_path / "batch.npz", a=Z4 + 1, logits=Z4)
    assert as_json(["--file", str(tmp_path / "batch.npz"), "--label", "1"], capsys)["row"]["scores"] == Z4[0].tolist()


def test_a_label_that_is_given_comes_before_the_files(tmp_path, capsys):
    np.savez(tmp_path / "batch.npz", z=Z4, y=Y4)
    (tmp_path / "batch.csv").write_text("cat,dog,label\n1,2,cat\n")
    for file, names in (("batch.npz", ["class 0", "class 1", "class 2"]), ("batch.csv", ["cat", "dog"])):
        asked = ["--file", str(tmp_path / file)]
        assert as_json([*asked, "--label", "1"], capsys)["row"]["label"] == 1
        got = as_json([*asked, "--truth", ",".join("1" * len(names))], capsys)
        assert got["mass"] == len(names) and got["row"]["names"] == names


TABLES = {
    "numbers": ("1,2.5,-3\n4,5,6\n", ["--row", "1", "--label", "2"], [4, 5, 6], 2, ["class 0", "class 1", "class 2"]),
    "names": ("cat,dog,owl\n1,2.5,-3\n", ["--label", "owl"], [1, 2.5, -3], 2, ["cat", "dog", "owl"]),
    "a label by name": ("cat,Label,dog\n1,dog,2\n3,cat,4\n", ["--row", "1"], [3, 4], 0, ["cat", "dog"]),
    "a label by index": ("cat,dog,target\n1,2,0\n3,4,1\n", ["--row", "1"], [3, 4], 1, ["cat", "dog"]),
    "other names": ("cat,dog,target\n1,2,dog\n", ["--names", "x,y"], [1, 2], 1, ["x", "y"]),
    "quotes, spaces, blank lines": ('"cat ""big""", dog\r\n\r\n 1, 2\r\n', ["--label", 'cat "big"'], [1, 2], 0, ['cat "big"', "dog"]),
    "a byte order mark": ("\ufeffcat,dog\n1,2\n", ["--label", "cat"], [1, 2], 0, ["cat", "dog"]),
    "a comma in a name": ('"cat, big",dog\n1,2\n', ["--label", "1"], [1, 2], 1, ["cat, big", "dog"]),
    "a bad cell elsewhere": ("1,2\nx,y\n", ["--label", "0"], [1, 2], 0, ["class 0", "class 1"]),
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_a_row_of_a_csv(table, tmp_path, capsys):
    text, arguments, scores, label, names = TABLES[table]
    for file, written in (("a.csv", text), ("a.CSV", text), ("a.tsv", re.sub(",(?! big)", "\t", text))):
        (tmp_path / file).write_text(written, encoding="utf-8", newline="")
        row = as_json(["--file", str(tmp_path / file), *arguments], capsys)["row"]
        assert (row["scores"], row["label"], row["names"]) == (scores, label, names)


def test_a_masked_class_of_a_csv(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("cat,dog,owl,label\n1,-inf,2,owl\n")
    row = as_json(["--file", str(tmp_path / "a.csv")], capsys)["row"]
    assert (row["names"], row["masked"], row["label"]) == (["cat", "owl"], [1], 1)


WRONG_TABLES = {
    "1,2\n3,x\n": "file must hold a number on line 2, column 2; got 'x'",
    "cat,dog\n\n1,2\n\n3,\n": "file must hold a number on line 5, column 2 (dog); got ''",
    "1,2\n3,4,5\n": "file must have 2 columns on line 2, as on its first; got 3",
    "cat,dog\n1,2\n3\n": "file must have 2 columns on line 3, as on its first; got 1",
    "cat,dog,label\n1,2,cat\n1,2,dgo\n": "the label on line 3 must be the index of a class or the name of one class; got 'dgo' (close",
    "cat,dog,label\n1,2,0\n1,2,2\n": "label must lie in [0, 2); got 2",
    "cat,dog,label,target\n1,2,0,0\n1,2,0,0\n": "file must have one column of labels; got label, target",
    ",cat,dog\n0,1,2\n1,3,4\n": "file must name every column in its header (pandas: index=False); got no name of column 1",
    "cat,dog\n1,2\n": "row must lie in [0, 1); got 1",
    "": "row must lie in [0, 0); got 1",
    "cat,dog\n1,2\n1,nan\n": "logits must be finite and of size 1e+09 at most, or -inf; got nan at class 1",
    "cat,dog\n1,2\n1,2\n": "one of label and truth must be given; got neither",
    "\udcff": "file must be a table in UTF-8 with a row of numbers on each line; got a.csv (",
}


@pytest.mark.parametrize("text", WRONG_TABLES)
def test_a_wrong_csv_is_named_by_line_and_column(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    code, out, err = command(["explain", "--file", "a.csv", "--row", "1"], capsys)
    assert code == 2 and out == "" and err.startswith(f"softxent explain: {WRONG_TABLES[text]}") and err.count("\n") == 1


# ---------------------------------------------------------------- JSON


def test_the_json_holds_every_derivation_and_every_line(capsys):
    got = as_json(["--all"], capsys)
    assert {one["name"] for one in derivations(got)} == set(book.DERIVATIONS)
    for one in derivations(got):
        derivation = book.DERIVATIONS[one["name"]]
        assert len(one["lines"]) == len(derivation.lines) and one["agrees"] and len(one["where"]) == len(derivation.where)
        assert [line["rule"] for line in one["lines"]] == [None, *(step.rule for step in derivation.steps)]
        for line in one["lines"]:
            assert set(line) == {
                "text", "latex", "relation", "rule", "reason", "uses", "given", "because", "lemmas", "filled", "value", "decimal", "holds",
                "agrees", "covered",
            }  # fmt: skip
            assert line["text"] and line["latex"] and line["filled"] and float(line["decimal"]) == line["value"]
            assert line["rule"] is None or line["reason"]
    introduced = {
        formula["text"].split("_")[0].split(" ")[0] for part in got["parts"] for one in part["remarks"] for formula in one["formulas"]
    }
    assert {one["name"] for one in got["definitions"]} == {one.name for one in book.DEFINITIONS} - {"yhat", "L"} and {
        "ŷ",
        "L",
    } <= introduced
    line = next(one for one in derivations(got) if one["name"] == "prediction_minus_truth")["lines"][7]
    assert line["given"] == ["Σ_j y_j = 1"] and [one["name"] for one in line["lemmas"]] == line["because"] == ["one_hot_sum"]


def test_only_what_is_asked_for(capsys):
    names = ["result1", "smoothed_gradient"]
    got = as_json(names, capsys)
    assert [one["name"] for part in got["parts"] for one in part["derivations"]] == names and not any(
        part["remarks"] for part in got["parts"]
    )
    article = {one.name for part in book.ARTICLE for one in part.derivations}
    assert {one["name"] for one in derivations(as_json([], capsys))} == article
    code, out, _ = command(["explain", "result1"], capsys)
    assert code == 0 and "Case 1: j = k" in out and "Case 2" not in out and "Objective" not in out and "prediction - truth" not in out
    assert "What the names stand for" in out and "ŷ_j = e^z_j / (Σ_i e^z_i)" in out


def test_list_names_every_derivation_with_its_title(capsys):
    code, out, _ = command(["explain", "--list"], capsys)
    assert code == 0 and all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in book.DERIVATIONS)
    assert all(part.title in out for part in book.PARTS) and packed("label smoothing and class weights") in packed(out)


# ---------------------------------------------------------------- how it looks


def test_the_page_goes_from_the_row_to_prediction_minus_truth(capsys, monkeypatch):
    out = shown(capsys, [], 100, monkeypatch)
    order = [
        "The row",
        *(part.title for part in book.ARTICLE),
        "prediction - truth",
        "central difference",
        "softxent.",
    ]
    places = [out.rindex(words) if words.startswith("softxent") else out.index(f"{words}") for words in order[:-3]]
    end = out.rindex("prediction - truth ─")
    assert places == sorted(places) and places[-1] < end < out.index("central difference") < out.index("softxent.cross_entropy_and_grad")
    assert re.search(r"^= ŷ_j \(1 - ŷ_j\) +factor: ŷ_j is a factor of", out, re.MULTILINE)
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
    agrees = [line["agrees"] for one in derivations(json.loads(out)) if one["name"] == "result1" for line in one["lines"]]
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
    "--logits 1,nan --label 0": "logits must be finite and of size 1e+09 at most, or -inf; got nan at class 1",
    "--logits inf,1 --label 0": "logits must be finite and of size 1e+09 at most, or -inf; got inf at class 0",
    "--logits 1e30,1 --label 0": "logits must be finite and of size 1e+09 at most, or -inf; got 1e+30 at class 0",
    "--logits -inf,-inf,1 --label 2": "logits must have at least 2 classes that are not masked (-inf); got 1",
    "--logits 2,-inf,0 --label 1": "label must be a class that is not masked; got 1, whose score is -inf: its loss is infinite",
    "--logits 2,-inf,0 --label 0 --j 1": "j must be a class that is not masked; got 1, whose score is -inf",
    "--logits 2,-inf,0 --label 0 --k 1": "k must be a class that is not masked; got 1, whose score is -inf",
    "--logits 2,-inf,0 --truth 0.5,0.5,0": "truth must be 0 at a masked class; got 0.5 at class 1, whose score is -inf",
    "--logits 1,x --label 0": "logits must be numbers with commas between them; got '1,x'",
    "--logits 1 --label 0": "logits must have at least 2 classes; got 1",
    "--logits 1,2 --label 2": "label must lie in [0, 2); got 2",
    "--logits 1,2 --label -1": "label must lie in [0, 2); got -1",
    "--logits 1,2": "one of label and truth must be given; got neither",
    "--label cow": "label must be the index of a class or the name of one class; got 'cow' (close to it: owl)",
    "--label 1.0": "label must be the index of a class or the name of one class; got '1.0' (close to it: none)",
    "--j doge": "j must be the index of a class or the name of one class; got 'doge' (close to it: dog)",
    "--k Cat": "k must be the index of a class or the name of one class; got 'Cat' (close to it: cat)",
    "--names a,b,a --label a": "label must be the index of a class or the name of one class; got 'a' (the name of 2 classes)",
    "--logits 1,2 --label 1st": "label must be the index of a class or the name of one class; got '1st' (close to it: none)",
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
    "--file TWO --label 0": "file must hold one array or one named logits, or be given as TWO:NAME; got TWO with a, b",
    "--file TWO:c --label 0": "file must hold one array or one named logits, or be given as TWO:NAME; got TWO with a, b",
    "--file SOFT --label 0": "file must hold one array or one named logits, or be given as SOFT:NAME; got SOFT with a, b, y",
    "--file SOFT:a": "file must hold labels that are integers of shape (2,), one for each row; got float64 of shape (2, 2)",
    "--file none:c --label 0": "file must be a file of one NumPy array (.npy, .npz); got none (No such file or directory)",
    "--file Z --label 0 --labels TWO": "--label and --labels must not come together; got both",
    "--file Z --labels TWO": "labels must hold one array or one named labels, or be given as TWO:NAME; got TWO with a, b",
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
    "--html x.html --truth 1,0,0": "the page must come with a label, which it lets one change; got probabilities",
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
        "SOFT": lambda f: np.savez(f, a=np.ones((2, 2)), b=np.ones((2, 2)), y=np.ones((2, 2))),
        "TEXT": lambda f: f.write(b"1, 2, 3"),
        "EMPTY": lambda f: None,
    }.items():
        with open(name, "wb") as f:
            save(f)


@pytest.mark.parametrize("arguments", ERRORS)
def test_a_wrong_call_is_one_line_and_2(arguments, files, capsys):
    code, out, err = command(["explain", *arguments.split()], capsys)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"softxent explain: {ERRORS[arguments]}")


# ---------------------------------------------------------------- the page, and what is loaded


def test_html_is_written_where_it_says(tmp_path, capsys):
    path = tmp_path / "out.html"
    code, out, _ = command(["explain", "--html", str(path), "--names", "a<b,dog,owl", "--label", "1"], capsys)
    assert code == 0 and out == f"{path}: written, open it in a browser\n"
    page = path.read_text(encoding="utf-8")
    assert "a&lt;b" in page and "<math" in page and page.lstrip().lower().startswith("<!doctype html>")


def test_html_of_a_vocabulary(tmp_path, capsys, rng):
    np.save(tmp_path / "z.npy", rng.normal(0, 3, 1000))
    code, _, err = command(["explain", "--html", str(tmp_path / "out.html"), "--file", str(tmp_path / "z.npy"), "--label", "1"], capsys)
    assert (code, err) == (0, "") and "988 others" not in err and "989 others" in (tmp_path / "out.html").read_text(encoding="utf-8")


def written(tmp_path, capsys, *arguments):
    """-> the page, and the data in it."""
    code, _, err = command(["explain", "--html", str(tmp_path / "out.html"), *arguments], capsys)
    assert (code, err) == (0, "")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    return page, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ("", {"t": 0, "j": 1, "k": 0}),
        ("--logits 0,3,1,2 --label 2", {"t": 2, "j": 1, "k": 2}),
        ("--j owl", {"t": 0, "j": 2, "k": 0}),
        ("--k owl --j dog --label 2", {"t": 2, "j": 1, "k": 2}),
        ("--k 1", {"t": 0, "j": 0, "k": 1}),
    ],
)
def test_html_starts_at_the_j_and_k_that_are_asked_for(arguments, chosen, tmp_path, capsys):
    page, data = written(tmp_path, capsys, *arguments.split())
    assert data["chosen"] == chosen
    for letter, n in chosen.items():
        options = re.search(rf'<select id="choose-{letter}".*?</select>', page)[0]
        assert re.findall(r'<option value="(\d+)" selected', options) == [str(n)]


def test_html_is_of_the_row_that_is_asked_for(tmp_path, capsys):
    np.savez(tmp_path / "batch.npz", z=Z4, y=Y4)
    for n in (0, 3):
        _, data = written(tmp_path, capsys, "--file", str(tmp_path / "batch.npz"), "--row", str(n))
        assert (data["scores"], data["chosen"]["t"]) == (Z4[n].tolist(), Y4[n])


@pytest.mark.parametrize(
    ("names", "lemmas"),
    [
        (["result1"], {"numerator_same"}),
        (["result2", "hessian_product"], {"numerator_other", "denominator"}),
        (["result1", "numerator_same"], set()),  # is shown inside, and only there
    ],
)
def test_html_shows_the_derivations_that_are_named_and_no_link_to_others(names, lemmas, tmp_path, capsys):
    page, _ = written(tmp_path, capsys, *names)
    every = re.findall(r'\sid="([^"]+)"', page)
    ids = set(every)
    assert ids & set(book.DERIVATIONS) == {*names, *lemmas} and len(every) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= ids


def test_html_says_what_is_put_together(tmp_path, capsys, rng):
    np.save(tmp_path / "z.npy", rng.normal(0, 3, 1000))
    page, _ = written(tmp_path, capsys, "--file", str(tmp_path / "z.npy"), "--label", "1")
    assert "989 classes are merged into one, whose score is their log-sum-exp." in page
    assert "merged" not in written(tmp_path, capsys)[0]


@pytest.mark.parametrize(
    ("masked", "scores", "names", "places"),
    [
        (1, [-INF, 3.0, 1.0], ["class 0", "class 1", "class 2"], (2, 1, 2)),
        (13, [3.0, 1.0, -INF], ["class 13", "class 14", "13 masked"], (1, 0, 1)),
    ],
)
def test_html_hands_masked_classes_to_the_page(masked, scores, names, places, tmp_path, capsys, monkeypatch):
    from softxent.explanation import page

    seen = []
    monkeypatch.setattr(page, "page", lambda *arguments, **options: seen.append((arguments, options)) or "")
    given = ["--logits", ",".join([*["-inf"] * masked, "3", "1"]), "--label", str(masked + 1)]
    assert command(["explain", "--html", str(tmp_path / "x.html"), "--all", *given], capsys)[0] == 0
    ((got_scores, label, got_names), options) = seen[0]
    assert (got_scores, got_names, (label, options["j"], options["k"])) == (scores, names, places)
    assert f"{masked} class" in options["note"] and options["beyond"] and not options["only"]


def test_without_its_extra_the_page_says_what_to_install(tmp_path):
    code = BLOCK.format(package="latex2mathml", arguments=["explain", "--html", str(tmp_path / "x.html")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "softxent: this command needs the extra \"proof\"; in a clone of softxent: pip install '.[proof]'\n"


def test_neither_softxent_nor_its_command_loads_any_of_it():
    loaded = python("import sys, softxent, softxent.cli; print(*sys.modules)").split()
    assert not {"explanation", "proof", "rich", "sympy"} & {part for name in loaded for part in name.split(".")}
