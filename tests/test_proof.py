"""The proof: every line of the derivation is accepted, false lines are refused, and Coq proves the statement of each line."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from decimal import DecimalException

import pytest
from cases import command
from mutants import mutated
from test_proof_attacks import FALSE

from softxent.proof import coq as coq_module
from softxent.proof import derivation as data
from softxent.proof.derivation import ARTICLE, DERIVATIONS, PARTS, Derivation
from softxent.proof.expr import RANGES, Definition, E, letters, same, walk
from softxent.proof.prove import AXIOMS, HOW_TO_GET_COQ, SOURCE, prove
from softxent.proof.reading import latex, mathml, text
from softxent.proof.replay import Numbers, agree
from softxent.proof.rules import RULES, refusal, refusal_by_rule
from softxent.proof.symbolic import refusal_by_sympy

ALL = list(DERIVATIONS.values())
STEPS = [(d, n) for d in ALL for n in range(1, len(d.steps) + 1)]
SCORES, LABEL = [0.3, -1.2, 2.0, 0.7], 3  # the label is not the largest
UNBALANCED, BALANCED = [0.2, 0.5, 0.3, 0.7], [0.125, 0.25, 0.375, 0.25]  # 1.7, and exactly 1

VALUES: dict[tuple[str, bool], dict] = defaultdict(dict)  # what `Numbers` of a derivation has computed, whatever its lines


def changed(d: Derivation, n: int, **fields) -> Derivation:
    return d._replace(steps=(*d.steps[: n - 1], d.steps[n - 1]._replace(**fields), *d.steps[n:]))


def differs(d: Derivation, n: int) -> bool:
    """Whether line n has another value than the line before, for some numbers. The truth sums to 1 only if that is given."""
    step = d.steps[n - 1]
    numbers = Numbers(d, SCORES, BALANCED if step.given else UNBALANCED, LABEL)
    numbers.memo = VALUES[d.name, bool(step.given)]
    try:
        return not all(agree(numbers.value(d.lines[n - 1], at), numbers.value(step.expr, at), step.rel) for at in numbers.places())
    except (DecimalException, ValueError):  # 0/0, or a derivative of a derivative
        return True


# ---- every line is accepted


@pytest.mark.parametrize("d", ALL, ids=lambda d: d.name)
def test_every_line_follows_by_its_rule_for_every_number_of_classes(d):
    assert [refusal(d, n) for n in range(1, len(d.steps) + 1)] == [None] * len(d.steps)


@pytest.mark.parametrize("scores", [[2, 1, 0.1], [0.0, 0.0], [900, -900, 3, 3.5], [-5] * 7])
def test_every_line_has_the_value_of_the_line_before(scores):
    for truth, upto_given in (([1.0] + [0.0] * (len(scores) - 1), False), ([0.3] * len(scores), True)):
        for d in ALL:
            numbers = Numbers(d, scores, truth, 0)
            for at in numbers.places():
                values = numbers.values(at)
                for n, step in enumerate(d.steps):
                    if upto_given and data.SUM_IS_1 in step.given:
                        break
                    assert agree(values[n], values[n + 1], step.rel), (d.name, n + 1, at)


def test_the_article_is_all_there():
    """Results 1 to 3, both cases, the four steps of Part 2, and Part 3 from the chain rule to prediction - truth."""
    ends = {d.name: text(d.lines[-1]) for part in ARTICLE for d in part.derivations}
    assert ends == {
        "numerator_same": "e^z_j",
        "denominator": "e^z_k",
        "result1": "ŷ_j (1 − ŷ_j)",
        "numerator_other": "0",
        "result2": "−ŷ_j · ŷ_k",
        "log_same": "1/ŷ_k",
        "log_other": "0",
        "result3": "−y_k/ŷ_k",
        "own_term": "−y_k + y_k ŷ_k",
        "other_terms": "Σ_j≠k (y_j ŷ_k)",
        "one_hot_sum": "1",
        "prediction_minus_truth": "ŷ_k − y_k",
    }
    rules = [step.rule for step in data.GRADIENT.steps]
    assert rules == ["chain rule", "split the sum", "result", "regroup", "factor", "join the sum", "given", "zero and one"]
    assert [d for d in ALL if any(step.given == (data.SUM_IS_1,) for step in d.steps)] == [data.GRADIENT]


def test_every_line_has_a_reason_and_every_rule_is_used():
    assert all(step.why.endswith(".") and step.rule in RULES for d in ALL for step in d.steps)
    assert {step.rule for d in ALL for step in d.steps} == set(RULES)
    assert all(name in DERIVATIONS or name in d.definitions for d in ALL for step in d.steps for name in step.uses)


def test_nothing_rests_on_what_comes_later():
    order = list(DERIVATIONS)
    for d in ALL:
        used = {name for step in d.steps for name in step.uses if step.rule == "result"}
        assert all(order.index(name) < order.index(d.name) for name in used), d.name


def test_no_formula_stands_twice():
    seen = Counter((latex(d.start), latex(d.lines[-1]), d.where) for d in ALL)
    twice = (latex(data.GENERAL.start), latex(data.GENERAL.lines[-1]), ())  # also by the short way
    assert {key: n for key, n in seen.items() if n > 1} == {twice: 2}


# ---- false lines are refused


def test_every_real_mutant_is_refused():
    """A line with a changed sign, term, factor, index, name, number or range is refused if its value differs."""
    real, kinds, equal = 0, Counter(), 0
    for d in ALL:
        for n, kind, mutant in mutated(d):
            if differs(mutant, n):
                assert refusal(mutant, n), (d.name, n, kind, text(mutant.steps[n - 1].expr))
                real, kinds[kind] = real + 1, kinds[kind] + 1
            else:
                equal += 1
    assert real > 7000 and equal < real / 6 and min(kinds.values()) > 10, (real, equal, kinds)


def test_each_judge_alone_refuses_every_real_mutant():
    """SymPy's normal form and the rules, each without the other, refuse a sample of the changed lines; all of them would take a minute."""
    everyone = [(n, mutant) for d in ALL for n, _, mutant in mutated(d) if mutant.steps[n - 1].rel == "="]
    real = [(n, m) for n, m in random.Random(0).sample(everyone, 200) if differs(m, n)]
    for n, m in real:
        assert refusal_by_sympy(m, n) and refusal_by_rule(m, n), (m.name, n, text(m.steps[n - 1].expr))
    assert len(real) > 150


ALSO_RIGHT = {  # other rules that justify a line too: more general ones, or the same in another form
    ("factor", "distribute"), ("expand", "distribute"), ("distribute", "factor"), ("distribute", "expand"),
    ("cancel", "fractions"), ("fractions", "cancel"),
    ("constant", "linearity"), ("constant", "derivative of exp"), ("constant", "derivative of log"),
    ("result", "derivative of log"),
}  # fmt: skip


def test_a_reason_that_does_not_justify_its_line_is_refused():
    accepted = {(d.steps[n - 1].rule, rule) for d, n in STEPS for rule in RULES if not refusal(changed(d, n, rule=rule), n)}
    assert accepted - {(rule, rule) for rule in RULES} == ALSO_RIGHT


def test_a_line_that_uses_less_is_refused():
    for d, n in STEPS:
        step = d.steps[n - 1]
        for left_out in step.uses:
            assert refusal(changed(d, n, uses=tuple(x for x in step.uses if x != left_out)), n), (d.name, n, left_out)
        for left_out in step.given:
            assert refusal(changed(d, n, given=tuple(x for x in step.given if x != left_out)), n), (d.name, n)


@pytest.mark.parametrize("d", [d for d in ALL if d.distinct or (d.given and d.given != (data.POSITIVE,))], ids=lambda d: d.name)
def test_a_derivation_needs_what_it_is_given(d):
    for missing in ("distinct", "given"):
        if getattr(d, missing) and getattr(d, missing) != (
            data.POSITIVE,
        ):  # here yhat is a softmax and therefore positive; in Coq it is any vector
            assert any(refusal(d._replace(**{missing: ()}), n) for n in range(1, len(d.steps) + 1)), missing


@pytest.mark.parametrize("name", [one.name for one in data.DEFINITIONS])
def test_a_wrong_definition_breaks_a_derivation(name, monkeypatch):
    wrong = tuple(Definition(one.head, -one.body) if one.name == name else one for one in data.DEFINITIONS)
    monkeypatch.setattr(data, "DEFINITIONS", wrong)
    assert any(refusal(d, n) for d, n in STEPS)


def test_no_logarithm_and_no_quotient_off_its_domain():
    d = data.LOSS_BY_LSE
    off = E("log", (-d.lines[1].args[0].args[2].args[1].args[0],))
    assert refusal_by_rule(changed(d, 1, expr=off), 1) == "it divides by what may be 0, or takes the logarithm of what may not be positive"
    assert "divides" in refusal(changed(data.RESULT_1, 5, expr=data.y[data.j] / data.y[data.j]), 5)


def test_a_derivation_may_not_rest_on_itself_or_a_later_one():
    assert refusal(changed(data.RESULT_2, 2, uses=("numerator_other", "denominator", "result2")), 2)
    assert "does not come before" in refusal(changed(data.RESULT_1, 2, uses=("numerator_same", "prediction_minus_truth")), 2)


@pytest.mark.parametrize(
    ("because", "fault"),
    [
        ("log_same", "log_same does not show what is given"),
        ("general_gradient", "does not come before"),
        ("nothing", "does not come before"),
    ],
)
def test_what_is_named_as_the_reason_of_a_fact_shows_that_fact(because, fault):
    assert fault in refusal(changed(data.GRADIENT, 7, because=(because,)), 7)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
def test_a_lemma_is_shown_inside_each_step_of_its_part_that_uses_it(part):
    """It starts in the line before that step, with the letters of that line, and every lemma is shown somewhere."""
    shown = set()
    for one in part.derivations:
        for n, step in enumerate(one.steps):
            lemmas = list(part.lemmas(one, n))
            mine = {x.name for x in part.derivations if x.lemma}
            assert [x.name for x in lemmas] == [name for name in (*step.uses, *step.because) if name in mine]
            assert all(any(same(x.start, e) for e in walk(one.lines[n])) for x in lemmas)
            shown |= {x.name for x in lemmas}
    assert {x.name for x in part.derivations} == shown | {x.name for x in part.chains}


def test_a_lemma_takes_the_letters_of_its_line():
    """In case 1 the derivative of the denominator is by z_j; where two indices differ, they differ in the line too."""
    first, second = (list(data.PARTS[0].lemmas(one, 1)) for one in (data.RESULT_1, data.RESULT_2))
    assert [text(x.start) for x in first] == ["∂e^z_j/∂z_j", "∂/∂z_j (Σ_i e^z_i)"] and text(first[1].lines[-1]) == "e^z_j"
    assert [text(x.start) for x in second] == ["∂e^z_j/∂z_k", "∂/∂z_k (Σ_i e^z_i)"]
    assert text(list(data.PARTS[1].lemmas(data.RESULT_3, 3))[1].start) == "∂/∂ŷ_k (log(ŷ_j))"


def test_an_inequality_stands_last():
    d = data.CURVATURE
    assert "last line" in refusal(d._replace(steps=(*d.steps, d.steps[-1]._replace(rel="="))), 1)


def test_what_is_ill_formed_is_not_said_in_coq():
    with pytest.raises(ValueError, match="a_line cannot be said in Coq"):
        list(coq_module.statements(FALSE["a derivative in a derivative"].derivation()))


# ---- text, LaTeX and MathML


@pytest.mark.parametrize("d", ALL, ids=lambda d: d.name)
def test_every_line_reads_as_mathml(d):
    for line in (*d.lines, *(one.body for one in d.where)):
        tree = ET.fromstring(mathml(line))
        assert tree.tag.endswith("math") and "\\" not in "".join(tree.itertext())
        assert latex(line).count("{") == latex(line).count("}")


def test_index_letters_have_a_range():
    assert all(i in RANGES for d in ALL for line in d.lines for i in letters(line))
    assert not same(data.y[data.j], data.y[data.k]) and same(E("()", (data.p,)), data.p)


# ---- Coq


@pytest.fixture(scope="module")
def proof():
    found = prove()
    assert found.coq, f"coqc is missing: {HOW_TO_GET_COQ}"
    return found


def test_coq_proves_every_line_and_every_whole(proof):
    assert proof.coq_error is None and [(x.theorem, x.refused, x.coq_refused) for x in proof.refused] == []
    assert proof.proved and all(x.proved for x in proof.lines) and len(proof.lines) == len(STEPS) + len(ALL)


def test_coq_rests_on_the_axioms_of_the_real_numbers_alone(proof):
    assert proof.axioms == AXIOMS
    assert not re.search(r"\b(Axiom|Parameter|Conjecture|Admitted|admit|Abort|Hypothesis|Unset|bypass_check)\b", SOURCE.read_text())


def convex_is_true(source: str) -> str:
    return re.sub(r"\bloss_convex\b", "was_convex", source) + "Theorem loss_convex : True. Proof. easy. Qed.\n"


def hessian_without_a_derivative(source: str) -> str:
    """Define a Hessian by its formula, and leave the words of the true definition in a comment."""
    true, formula = coq_module.MEANINGS["is_hessian"], "sum n y * (softmax n z k * (delta k j - softmax n z j))"
    false = f"{true.partition(':=')[0]}:= forall k j, (k < n)%nat -> (j < n)%nat -> H k j = {formula}."
    lemma = re.search(r"Lemma derivative_of_gradient .*?Proof\.", source, re.S)[0]
    proof = " intros D K J. rewrite D by auto. now apply gradient_derivative. Qed.\n"
    source = re.sub(r"Lemma derivative_of_gradient .*?Qed\.", "", source, count=1, flags=re.S).replace(true, f"(* {true} *)\n{false}")
    source = source.replace("Theorem hessian_entry", f"{lemma}{proof}Theorem hessian_entry")
    return re.sub(r"(Theorem hessian_exists .*?Proof\.).*?Qed\.", r"\1 now intros k j K J. Qed.", source, count=1, flags=re.S)


@pytest.mark.parametrize(
    ("spoil", "named"), [(convex_is_true, "loss_convex"), (hessian_without_a_derivative, "does not define is_hessian")]
)
def test_softmax_v_may_not_mean_something_else(spoil, named, monkeypatch, tmp_path):
    assert spoil(SOURCE.read_text()) != SOURCE.read_text()
    (tmp_path / "Softmax.v").write_text(spoil(SOURCE.read_text()))
    monkeypatch.setattr("softxent.proof.prove.SOURCE", tmp_path / "Softmax.v")
    found = prove([data.RESULT_3])
    assert found.coq_error and named in found.coq_error and not found.proved


def test_a_notation_of_softmax_v_does_not_reach_the_statements(monkeypatch, tmp_path):
    other = 'Notation "x = y" := (forall _ : @eq R x y, True) : type_scope.\n'
    false = changed(data.RESULT_1, 5, expr=data.yhat[data.j] + 1)
    theorems = "".join(f"Theorem no_{n} : {says}.\nProof. easy. Qed.\n" for n, says in coq_module.statements(false) if n == "result1_5")
    text = SOURCE.read_text() + other + theorems
    text = re.sub(r"\bresult1_5\b", "was_result1_5", text).replace("no_was_result1_5", "result1_5").replace("no_result1_5", "result1_5")
    (tmp_path / "Softmax.v").write_text(text)
    monkeypatch.setattr("softxent.proof.prove.SOURCE", tmp_path / "Softmax.v")
    found = prove([false])
    assert found.coq_error is None and "result1_5" in {x.theorem for x in found.lines if x.coq_refused}


def test_what_is_taken_for_granted_is_listed(monkeypatch, tmp_path):
    """Coq lists an unchecked fixpoint in words and not as an axiom."""
    endless = "#[bypass_check(guard)] Fixpoint oops (n : nat) : False := oops n.\n"
    text = SOURCE.read_text().replace("Definition vec", endless + "Definition vec", 1)
    text = re.sub(r"(Theorem softmax_le_1 .*?Proof\.).*?Qed\.", r"\1 destruct (oops 0). Qed.", text, count=1, flags=re.S)
    (tmp_path / "Softmax.v").write_text(text)
    monkeypatch.setattr("softxent.proof.prove.SOURCE", tmp_path / "Softmax.v")
    found = prove([data.MISS])
    assert "oops" in text and not found.proved and not found.axioms <= AXIOMS


@pytest.mark.parametrize("rule", [r for r in RULES if RULES[r].lemma])
def test_the_lemma_of_a_rule_is_there(rule):
    builtin = {"ring", "field", "exp_plus", "ln_mult", "delta"}
    assert RULES[rule].lemma in builtin or re.search(rf"^(Theorem|Lemma) {RULES[rule].lemma}\b", SOURCE.read_text(), re.M)


def test_coq_refuses_a_theorem_that_says_something_else(monkeypatch, tmp_path):
    """Lines with another sign or with fewer facts are named, and all others are proved. A line may have any name."""
    wrong = [
        changed(data.RESULT_1, 5, expr=data.yhat[data.j] @ E("()", (1 + data.yhat[data.j],))),
        data.RESULT_2._replace(distinct=()),
        changed(data.GRADIENT, 7, given=(), because=()),
        data.Z_LOSS._replace(name="another_name"),
        data.ONE_HOT,
    ]
    found = prove(wrong)
    refused = {x.theorem for x in found.lines if x.coq_refused}
    assert {"result1_5", "result1", "prediction_minus_truth_7", "prediction_minus_truth", "result2_2", "result2"} <= refused
    assert not found.proved and "result1_4" not in refused and not any(name.startswith(("one_hot", "another_name")) for name in refused)


def test_a_weaker_theorem_is_refused(monkeypatch, tmp_path):
    weaker = SOURCE.read_text() + (
        "\nTheorem result3 : forall (n : nat) (y yhat : vec) (k : nat), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->"
        "\n  yhat k = 1 -> partial (fun yhat => cross_entropy n y yhat) k yhat (- (y k / yhat k))."
        "\nProof. line. Qed.\n"
    )
    monkeypatch.setattr("softxent.proof.prove.SOURCE", tmp_path / "Softmax.v")
    (tmp_path / "Softmax.v").write_text(weaker)
    found = prove([data.RESULT_3])
    assert found.coq_error is None and [x.theorem for x in found.lines if x.coq_refused] == ["result3"]


# ---- the command


def test_prove_says_who_checked_what(capsys):
    code, out, err = command(["prove", "result1", "hessian_psd", "--json"], capsys)
    found = json.loads(out)
    assert code == 0 and found["proved"] and "1 is a sum of squares" in found["summary"] and set(found["axioms"]) == AXIOMS and not err
    lines = {x["theorem"]: x for x in found["lines"]}
    assert list(lines)[:6] == [*(f"result1_{n}" for n in range(1, 6)), "result1"]
    assert lines["result1_1"]["rule"] == "quotient rule" and lines["result1_1"]["checked_by"] == ["rule", "sympy", "coq"]
    assert lines["result1_1"]["seconds"]["sympy"] > 0 and lines["result1"]["checked_by"] == ["coq"]
    assert lines["hessian_psd_4"]["checked_by"] == ["rule", "sympy", "coq"] and lines["hessian_psd_5"]["checked_by"] == [
        "rule",
        "squares",
        "coq",
    ]
    code, out, _ = command(["prove", "result1"], capsys)
    assert code == 0 and "✓ result1_5" in out and "quotient rule" in out and "Proved: Coq" in out


def test_without_coq_nothing_is_called_proved(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    code, out, _ = command(["prove", "result1"], capsys)
    assert code == 3 and "Not proved" in out and "apt-get install" in out and "Proved:" not in out and "not run" in out
    code, out, _ = command(["prove", "result1", "--json"], capsys)
    found = json.loads(out)
    assert code == 3 and not found["proved"] and found["coq"] is None and not any(x["proved"] for x in found["lines"])


def test_a_wrong_line_is_named_and_1(monkeypatch, capsys):
    wrong = changed(data.RESULT_1, 5, rule="expand")
    monkeypatch.setattr(data, "PARTS", (data.PARTS[0]._replace(derivations=(wrong,)),))
    code, out, _ = command(["prove", "result1"], capsys)
    assert code == 1 and "result1_5: it does not follow by 'expand'" in out and "✗" in out


def test_prove_does_not_know_a_wrong_name(capsys):
    code, _, err = command(["prove", "result9"], capsys)
    assert code == 2 and "result1" in err and err.count("\n") == 1


def test_parts_hold_every_derivation_once():
    named = [d for part in PARTS for d in part.derivations]
    assert len(named) == len(set(d.name for d in named)) == len(ALL)


def test_a_sum_without_a_term_says_so_in_every_notation():
    """i != t, in LaTeX, in the MathML that is made of it, and as text."""
    from softxent.explanation.formulas import formula

    z = E("at", ("z", "i"))
    one = E("sum", ("i", "t", z))
    assert latex(one) == r"\sum_{i \neq t} z_{i}" and text(one) == "Σ_i≠t z_i"
    for markup in (formula(one), formula(E("sum", ("i", "t", E("()", (E("+", (z, z)),)))))):  # in one piece, and broken at the +
        assert "<mi>i</mi><mo>&#x02260;</mo><mi>t</mi>" in markup and "<mo>=</mo>" not in markup
    assert r"\neq" not in latex(E("sum", ("i", None, z)))
