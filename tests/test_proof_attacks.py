"""False lines that a checker of the proof has accepted, or could accept. Each names the checkers that must refuse it alone.

The checkers are the form (wellformed.py), the rule (rules.py), and the judge: SymPy's normal form (symbolic.py) for an equation, and
sums of squares (squares.py) for an inequality. A checker that is not named cannot see the fault: the form knows no values, a rule knows
no facts that contradict each other, and SymPy does not ask whether a divisor may be 0.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from softxent.proof import derivation as data
from softxent.proof.derivation import Derivation
from softxent.proof.expr import D, Definition, E, Fact, P, Sum, bare, delta, exp, fresh, log, matches, reindex, same, tanh
from softxent.proof.rules import refusal, refusal_by_rule
from softxent.proof.squares import refusal_by_squares
from softxent.proof.symbolic import refusal_by_sympy
from softxent.proof.wellformed import ill_formed

x, y, z, v, w, W, yhat, p, L, ZERO, ONE = (getattr(data, name) for name in ("x", "y", "z", "v", "w", "W", "yhat", "p", "L", "ZERO", "ONE"))
I, J, K, T, R = "ijktr"  # noqa: E741 - indices, in capitals as the names beside them are small
LSE_ROW, H_ROW, L_ROW = (data.Name(name)[R] for name in ("lse", "H", "L"))
X_POSITIVE, POSITIVE_Z, POSITIVE_W = Fact(x[K], ">", ZERO, every=K), Fact(z[K], ">", ZERO), Fact(W[K, "e"], ">", ZERO, every=K)
LABEL, NOTHING = Definition(y[K], delta(K, T)), Definition(y[K], ZERO)
FORM, RULE, JUDGE = "form", "rule", "judge"
ALL, VALUE = (FORM, RULE, JUDGE), (RULE, JUDGE)


class Line(NamedTuple):
    """A false line. `by` names the checkers that must refuse it."""

    by: tuple[str, ...]
    before: E
    after: E
    rule: str
    uses: tuple[str, ...] = ()
    given: tuple[Fact, ...] = ()
    rel: str = "="
    distinct: tuple[tuple[str, str], ...] = ()
    facts: tuple[Fact, ...] = ()
    where: tuple[Definition, ...] = ()

    def derivation(self) -> Derivation:
        step = data.Step(self.after, self.rule, "So it is said.", self.uses, self.given, self.rel)
        return Derivation("a_line", "A line", self.before, (step,), self.distinct, self.facts, self.where)


FALSE = {
    # indices: a bound index is no free one
    "a renamed sum captures a free index": Line(ALL, Sum(I, y[I] * y[I]), Sum(J, y[J] * y[I]), "one-hot"),
    "a sum captures the label of a definition": Line(
        ALL, Sum(T, y[T]), Sum(T, w[T] * delta(T, T)), "definition", ("y",), where=(Definition(y[K], w[T] * delta(K, T)),)),
    "a sum captures the label of a result": Line(
        ALL, Sum(T, D(L, z[K])), Sum(T, yhat[K] - delta(K, T)), "result", ("one_hot_gradient",), where=(LABEL,)),
    "an index becomes the one left out": Line(
        ALL, delta(J, K) * Sum(I, z[I], but=K), delta(J, K) * Sum(I, z[I], but=I), "one-hot"),
    "the chain rule's index is in the function": Line(
        ALL, D(y[J] * yhat[J], z[K]), Sum(J, D(y[J] * yhat[J], yhat[J]) * D(yhat[J], z[K])), "chain rule"),
    "the chain rule's index is in the variable": Line(
        ALL, D(L, x[J]), Sum(J, D(L, z[J]) * D(z[J], x[J])), "chain rule", where=(Definition(z[K], x[K] / data.T),),
        facts=(data.TEMPERATURE_IS_NOT_0,)),
    "a bound index is not said to differ: constant": Line(ALL, D(Sum(J, exp(z[J])), z[K]), ZERO, "constant", distinct=((J, K),)),
    "a bound index is not said to differ: logarithm": Line(
        ALL, D(log(Sum(J, x[J])), x[K]), ZERO, "constant", distinct=((J, K),), facts=(X_POSITIVE,)),
    "a bound index is not said to differ: linearity": Line(ALL, D(Sum(J, exp(z[J])), z[K]), Sum(J, ZERO), "linearity", distinct=((J, K),)),
    "a bound index is not said to differ: one-hot": Line(ALL, Sum(J, delta(J, K)), Sum(J, ZERO), "one-hot", distinct=((J, K),)),
    "an index that is no index": Line(ALL, Sum(J, delta(J, K)), Sum(J, ZERO), "one-hot", distinct=(("_j", K),)),
    "an index differs from itself": Line(ALL, D(log(x[J]), x[J]), ZERO, "constant", distinct=((J, J),), facts=(X_POSITIVE,)),
    "an index left out differs from itself": Line(ALL, Sum(I, D(z[I], z[I]), but=I), Sum(I, ZERO, but=I), "coordinate"),
    "a delta that equates other indices": Line(VALUE, delta(J, K) * z[J], delta(J, K) * z[I], "distribute"),
    "another entry's derivative": Line(VALUE, D(z[J], z[K]) * y[I], delta(J, I) * y[I], "coordinate"),
    "a delta of an index and itself picks no term": Line(ALL, Sum(J, delta(J, J) * y[J]), y[J], "one term"),
    # ranges: a class is no feature and no row
    "a feature is no class": Line(ALL, Sum("d", delta("d", K) * x["d"]), x[K], "one term"),
    "a class is no feature that is split off": Line(ALL, Sum("d", x["d"]), x[K] + Sum("d", x["d"], but=K), "split the sum"),
    "a fact of classes is none of features": Line(
        ALL, Sum("d", y["d"]), ZERO, "no negative term", rel=">=", facts=(data.TRUTH,)),
    "of features there may be none": Line((FORM, RULE), Sum("d", exp(x["d"])) / Sum("e", exp(x["e"])), ONE, "cancel"),
    "an entry of one row is none of another": Line(VALUE, D(z[R, K], z[K]), ZERO, "constant"),
    "the mean has a row": Line(VALUE, Sum(R, Sum(K, yhat[R, K] @ P(v[K] - data.mu))), Sum(R, ZERO), "result", ("centred",)),
    "the mean at the end of a result has a row": Line(
        VALUE, Sum(R, v[J] - Sum(K, yhat[R, K] @ P(v[J] - v[K]), but=J)), Sum(R, data.mu), "result", ("mean_apart",)),
    "the entropy has a row": Line(
        VALUE, Sum(R, Sum(J, yhat[R, J] @ P(LSE_ROW - z[R, J]))), Sum(R, data.H), "result", ("entropy_by_lse",)),
    "eta has a row": Line(
        VALUE, Sum(R, Sum(J, yhat[R, J] @ P(LSE_ROW - z[R, J] - H_ROW) @ v[J])), Sum(R, data.eta), "result", ("entropy_along",),
        where=(data.ALONG,)),
    "the truth of each row sums to 1, and not that of one": Line(
        VALUE, Sum(R, D(L_ROW, z[R, K])), Sum(R, yhat[R, K] - y[R, K]), "result", ("prediction_minus_truth",), (data.SUM_IS_1,)),
    # definitions
    "the truth depends on the scores": Line(
        ALL, D(L, z[K]), p @ yhat[K] - y[K], "result", ("general_gradient",), where=(Definition(y[K], yhat[K]),)),
    "the truth depends on the scores by another name": Line(
        ALL, D(L, z[K]), p @ yhat[K] - y[K], "result", ("general_gradient",), where=(Definition(y[K], w[K]), Definition(w[K], yhat[K]))),
    "two definitions of one name in a result": Line(
        ALL, D(L, z[K]), yhat[K] - delta(K, T), "result", ("one_hot_gradient",), where=(LABEL, NOTHING)),
    "two definitions of one name": Line(ALL, y[K], ZERO, "definition", ("y",), where=(LABEL, NOTHING)),
    "two names are defined by each other": Line(
        ALL, y[K], w[K] + 1, "definition", ("y",), where=(Definition(y[K], w[K] + 1), Definition(w[K], y[K]))),
    "a derivative of names that are defined by each other": Line(
        ALL, D(y[K], z[K]), ZERO, "constant", where=(Definition(y[K], w[K] + 1), Definition(w[K], y[K]))),
    "a name is defined by itself": Line(ALL, z[K], z[K] + 1, "definition", ("z",), where=(Definition(z[K], z[K] + 1),)),
    "softmax is redefined": Line(ALL, yhat[K] / yhat[K], ONE, "cancel", where=(Definition(yhat[K], z[K]),)),
    "any positive vector is no softmax": Line(ALL, Sum(J, yhat[J]), ONE, "result", ("softmax_sums_to_1",), facts=(data.POSITIVE,)),
    "a definition that is not needed": Line((RULE,), p, Sum(J, y[J]), "definition", ("p", "lse")),
    "algebra is no recognising": Line((RULE,), y[K] + z[K], z[K] + y[K], "recognise", ("yhat",)),
    # facts
    "a fact contradicts a definition": Line(ALL, y[K], ZERO, "given", given=(Fact(y[K], "=", ZERO, every=K),), where=(LABEL,)),
    "a sum contradicts a definition": Line(ALL, Sum(J, y[J]) * z[K], 1 * z[K], "given", given=(data.SUM_IS_1,), where=(NOTHING,)),
    "a prediction is 0": Line(ALL, yhat[K] * z[K], 0 * z[K], "given", given=(Fact(yhat[K], "=", ZERO, every=K),)),
    "an exponential is 0": Line(ALL, exp(z[K]) * z[K], 0 * z[K], "given", given=(Fact(exp(z[K]), "=", ZERO, every=K),)),
    "1 is 0": Line(ALL, z[K] * 1, z[K] * 0, "given", given=(Fact(ONE, "=", ZERO),)),
    "there are no classes": Line(ALL, data.N * z[K], 0 * z[K], "given", given=(Fact(data.N, "=", ZERO),)),
    "facts contradict each other": Line(
        (FORM,), y[K], ZERO, "given", given=(Fact(y[K], "=", ZERO, every=K),), facts=(Fact(y[K], "!=", ZERO, every=K),)),
    "a truth of zeros sums to 1": Line(
        (FORM,), y[K], ZERO, "given", given=(Fact(y[K], "=", ZERO, every=K),), facts=(data.SUM_IS_1,)),
    "a fact of one entry is not of all": Line(
        ALL, p, ZERO, "no negative term", ("p",), (Fact(y[J], ">=", ZERO),), ">="),
    "what is divided by may be 0": Line((FORM, RULE), Sum(K, z[K]) / Sum(K, z[K]), ONE, "cancel", facts=(POSITIVE_Z,)),
    "a fact of another entry": Line((FORM, RULE), W[K, "d"] / W[K, "d"], ONE, "cancel", facts=(POSITIVE_W,)),
    "of others there may be none": Line(
        (FORM, RULE), Sum(I, exp(z[I]), but=T) / Sum(I, exp(z[I]), but=T), ONE, "cancel", facts=(Fact(data.N, ">", ZERO),)),
    "a fact inside a derivative": Line(
        (RULE,), D(z[K] * z[K], z[K]), D(z[K] * ZERO, z[K]), "given", given=(Fact(z[K], "=", ZERO, every=K),)),
    # derivatives
    "a derivative in a derivative": Line(ALL, D(D(log(x[K]), x[K]), x[K]), ZERO, "constant", facts=(X_POSITIVE,)),
    "a derivative of a derivative is not followed forever": Line((FORM, RULE), D(D(L, z[K]), yhat[J]), ZERO, "constant"),
    "a derivative by a number": Line((FORM, RULE), D(data.T, data.T), ZERO, "constant"),
    "a derivative of a product is no product of derivatives": Line(
        VALUE, D(exp(z[K]) * z[K], z[K]), D(exp(z[K]), z[K]) * D(z[K], z[K]), "product rule"),
    # numbers, powers and functions
    "a third power is no square": Line(ALL, z[K] ** 3, ZERO, "no negative term", rel=">="),
    "a power below the line": Line(ALL, z[K] ** -1 * z[K], ONE, "distribute"),
    "no whole number": Line(ALL, E("num", (0.5,)), ZERO, "distribute"),
    "half of the exponent of tanh": Line(VALUE, tanh(z[K]), (1 - exp(-z[K])) / (1 + exp(-z[K])), "tanh"),
    "e^(-log a) is not a": Line(VALUE, exp(-log(x[K])), x[K], "exponential", facts=(X_POSITIVE,)),
    # relations
    "a relation that no rule gives": Line(ALL, z[K] + y[K], y[K] + z[K], "regroup", rel="<"),
    "a result that is an inequality": Line(VALUE, data.CURVATURE.start, ZERO, "result", ("hessian_psd",), facts=(data.TRUTH,)),
    "a truth may be negative": Line(VALUE, data.CURVATURE.lines[4], ZERO, "no negative term", ("p",), rel=">="),
    "the opposite of a variance": Line(VALUE, -data.CURVATURE.lines[4], ZERO, "no negative term", ("p",), (data.TRUTH,), ">="),
    "a covariance": Line(
        VALUE, Sum(K, yhat[K] @ P(v[K] - data.mu) @ P(w[K] - data.mu)), ZERO, "no negative term", rel=">="),
    # scopes
    "a sum inside its own sum": Line((FORM,), Sum(J, y[J] * Sum(J, z[J])), Sum(J, y[J]) * Sum(J, z[J]), "factor"),
}  # fmt: skip


def refused_by(checker: str, d: Derivation) -> str | None:
    judge = refusal_by_sympy if d.steps[0].rel == "=" else refusal_by_squares
    return ill_formed(d) if checker == FORM else {RULE: refusal_by_rule, JUDGE: judge}[checker](d, 1)


@pytest.mark.parametrize("why", FALSE)
def test_each_checker_that_can_see_it_refuses_a_false_line_alone(why):
    d = FALSE[why].derivation()
    accepted = [checker for checker in FALSE[why].by if not refused_by(checker, d)]
    assert not accepted and refusal(d, 1)


def test_an_index_is_not_captured():
    """`reindex` renames a bound index that would become the free one, or the one left out. `matches` sees which sum an index belongs to."""
    captured = reindex(Sum(J, y[J] * z[K]), {K: J})
    assert same(captured, Sum(I, y[I] * z[J])) and not same(captured, Sum(J, y[J] * z[J]))
    left_out = reindex(Sum(J, y[J], but=K), {K: J})
    assert left_out.args[0] == fresh(J, ()) and left_out.args[1] == J and same(left_out, Sum(I, y[I], but=J))
    assert not matches(Sum(I, Sum(K, y[I] * y[K])), Sum(J, Sum(J, y[J] * y[J])), {})
    assert matches(Sum(I, Sum(K, y[I] * y[K])), Sum(J, Sum(K, y[J] * y[K])), {})
    assert bare(Sum(J, y[J], but=K)) == bare(Sum(I, y[I], but=K))


def test_a_result_may_be_used_where_a_name_is_defined_by_constants():
    """This is what the refusals above must leave: general_gradient for a label, and for each row of a batch."""
    label = Line((), D(L, z[K]), p @ yhat[K] - y[K], "result", ("general_gradient",), where=(LABEL,))
    row = Line((), Sum(R, D(L_ROW, z[R, K])), Sum(R, P(data.Name("p")[R] @ yhat[R, K] - y[R, K])), "result", ("general_gradient",))
    mean = Line((), Sum(R, Sum(K, yhat[R, K] @ P(v[K] - data.Name("mu")[R]))), Sum(R, ZERO), "result", ("centred",))
    assert [refusal(one.derivation(), 1) for one in (label, row, mean)] == [None] * 3
