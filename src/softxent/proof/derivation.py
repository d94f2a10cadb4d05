"""The derivation as data: the gradient of softmax cross-entropy, and all that softxent builds on it.

A `Derivation` is a chain of lines: a start, then steps, each with the line exactly as written, the rule that leads to it from the
line before, the reason in a sentence, and the facts that it is given. No formula of the derivation stands anywhere else. Five
readers take it from here: text and LaTeX (reading.py), SymPy and a checker for each rule (symbolic.py, rules.py), numbers (replay.py), Coq
(coq.py), and the page of `softxent explain --html`.

Vectors over the classes: z scores, y truth, yhat prediction, v a direction, w class weights, u probabilities, x raw scores, dz the gradient
of all outputs. The truth of a kernel is y_0 at the label plus r_0 off_k; q is twice the coefficient of its z-loss, and g_1 to g_4 are the
upstream gradients of the loss, of lse, of the label's log-probability and of the entropy. In a linear head, x [D] is the input, W [N, D]
and b [N] the weights. Different letters are different indices only where `distinct` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from .expr import D, Definition, E, Fact, Name, P, Sum, delta, exp, letters, lift, log, matches, names, reindex, tanh, walk

z, y, yhat, g, v, w, u, x, W, b = map(Name, ("z", "y", "yhat", "g", "v", "w", "u", "x", "W", "b"))
L, lse, p, mu, H, N = (Name(name)[()] for name in ("L", "lse", "p", "mu", "H", "N"))
eps, lam, T, c = (Name(name)[()] for name in ("eps", "lam", "T", "c"))
m, m1, m2, s1, s2, u1, u2, a = (Name(name)[()] for name in ("m", "m1", "m2", "s1", "s2", "u1", "u2", "a"))
h, h1, h2, A1, A2, B1, B2 = (Name(name)[()] for name in ("h", "h1", "h2", "A1", "A2", "B1", "B2"))  # of sums along v
g1, g2, g3, g4, y0, r0, q, alpha, eta = (Name(name)[()] for name in ("g1", "g2", "g3", "g4", "y0", "r0", "q", "alpha", "eta"))
off, dz = Name("off"), Name("dz")
i, j, k, t, d, e, r = "ijktder"
ZERO, ONE = lift(0), lift(1)

DEFINITIONS = (
    Definition(yhat[j], exp(z[j]) / Sum(i, exp(z[i]))),
    Definition(L, -Sum(j, y[j] * log(yhat[j]))),
    Definition(lse, log(Sum(i, exp(z[i])))),
    Definition(p, Sum(j, y[j])),
    Definition(g[k], p @ yhat[k] - y[k]),
    Definition(mu, Sum(j, yhat[j] @ v[j])),
    Definition(H, -Sum(j, yhat[j] * log(yhat[j]))),
)

SUM_IS_1 = Fact(Sum(j, y[j]), "=", ONE)
POSITIVE = Fact(yhat[k], ">", ZERO, every=k)  # of Part 2, where yhat need not be a softmax
TRUTH = Fact(y[k], ">=", ZERO, every=k)
TWO_CLASSES = Fact(N, ">", ONE)
FACTS = ("=", "!=", ">", ">=")


@lru_cache(maxsize=256)
def _by_name(definitions: tuple[Definition, ...]) -> dict[str, Definition]:
    found = {one.name: one for one in definitions}
    if twice := [name for name, n in Counter(one.name for one in definitions).items() if n > 1]:
        raise ValueError(f"{twice[0]} is defined twice")
    rests_on = {name: names(one.body) & set(found) for name, one in found.items()}
    while rests_on:
        settled = {name for name, on in rests_on.items() if not on & set(rests_on)}
        if not settled:
            raise ValueError(f"{min(rests_on)} is defined by itself")
        rests_on = {name: on for name, on in rests_on.items() if name not in settled}
    return found


class Step(NamedTuple):
    """One line: what follows from the line before by `rule`, which may use definitions or derivations.

    `because` names derivations that show why the facts in `given` hold in the classical case.
    """

    expr: E
    rule: str
    why: str
    uses: tuple[str, ...] = ()
    given: tuple[Fact, ...] = ()
    rel: str = "="
    because: tuple[str, ...] = ()


class Derivation(NamedTuple):
    """A chain of lines, each equal to the one before (the last may be >=). Its name is that of its theorem in Coq.

    `result` is what later parts call its first and last line together, such as "Result 1". A derivation with `lemma` is
    shown inside the step that uses it, where that step stands in the same part.
    """

    name: str
    title: str
    start: E
    steps: tuple[Step, ...]
    distinct: tuple[tuple[str, str], ...] = ()
    given: tuple[Fact, ...] = ()
    where: tuple[Definition, ...] = ()
    result: str = ""
    lemma: bool = False

    @property
    def lines(self) -> tuple[E, ...]:
        return (self.start, *(step.expr for step in self.steps))

    @property
    def definitions(self) -> dict[str, Definition]:
        """The definitions by name. Raises ValueError if a name has two, or if one is defined by itself."""
        return _by_name((*DEFINITIONS, *self.where))

    @property
    def known(self) -> dict[str, Definition]:
        """The definitions that may be used: where yhat is any positive vector, it is not softmax."""
        return {name: one for name, one in self.definitions.items() if not (name == "yhat" and POSITIVE in self.given)}

    def usable(self, fact: Fact) -> bool:
        """Whether a fact cannot contradict a definition.

        It compares an entry of a name without a definition, or the sum of such a vector, with 0 or 1, for every value of its index. Of the
        number of classes it may only say that there are two.
        """
        e = fact.left
        entry = e.args[2] if e.op == "sum" and e.args[1] is None and e.args[2].args[1:] == e.args[:1] else e
        named = entry.op == "at" and entry.args[0] not in (*self.known, "N")
        every = letters(e) == ({fact.every} if fact.every else set())
        return fact == TWO_CLASSES or (named and every and fact.right in (ZERO, ONE) and fact.rel in FACTS)

    def theorem(self, line: int) -> str:
        """The name, in Coq, of the theorem that says: line `line` follows from the one before (from 1)."""
        return f"{self.name}_{line}"

    @property
    def citation(self) -> str:
        """What a step that uses this derivation calls it."""
        return self.result or self.title

    def renamed(self, to: Mapping[str, str]) -> Derivation:
        """The same derivation with other letters for its free indices."""
        return self._replace(
            start=reindex(self.start, to),
            steps=tuple(step._replace(expr=reindex(step.expr, to)) for step in self.steps),
            distinct=tuple((to.get(a, a), to.get(b, b)) for a, b in self.distinct),
        )

    def upto(self, line: int) -> tuple[E, E]:
        """The equation start = line `line`."""
        return self.start, self.lines[line]


# ---------------------------------------------------------------- Part 1: the derivative of softmax

U, UK, V = exp(z[j]), exp(z[k]), Sum(i, exp(z[i]))

NUMERATOR_SAME = Derivation("numerator_same", "The derivative of the numerator, u'", D(U, z[j]), (
    Step(U, "derivative of exp", "The exponential function is its own derivative."),
), lemma=True)  # fmt: skip

DENOMINATOR = Derivation("denominator", "The derivative of the denominator, v'", D(V, z[k]), (
    Step(Sum(i, D(exp(z[i]), z[k])), "linearity", "The derivative of a sum is the sum of the derivatives."),
    Step(D(UK, z[k]) + Sum(i, D(exp(z[i]), z[k]), but=k), "split the sum",
         "The term of the score that changes is written apart from the other terms."),
    Step(UK + Sum(i, 0, but=k), "derivative of exp", "Only this term depends on that score. The derivative of every other term is 0."),
    Step(UK, "zero and one", "A sum of zeros is 0."),
), lemma=True)  # fmt: skip

RESULT_1 = Derivation("result1", "Case 1: j = k (derivative of an output with respect to its corresponding input)", D(yhat[j], z[j]), (
    Step((P(D(U, z[j])) * P(V) - P(U) * P(D(V, z[j]))) / P(V)**2, "quotient rule",
         "yhat_j is u/v, so its derivative is (u' v - u v') / v^2. Both u and v contain z_j."),
    Step((P(U) * P(V) - P(U) * P(U)) / P(V)**2, "result", "u' and v' are both e^z_j.", ("numerator_same", "denominator")),
    Step(U / V * (V / V) - U / V * (U / V), "fractions", "The fraction is split into two, and v^2 into v times v."),
    Step(yhat[j] * 1 - yhat[j] * yhat[j], "recognise", "u/v is yhat_j, and v/v is 1.", ("yhat",)),
    Step(yhat[j] @ P(1 - yhat[j]), "factor", "yhat_j is a factor of both terms."),
), result="Result 1")  # fmt: skip

NUMERATOR_OTHER = Derivation("numerator_other", "The derivative of the numerator, u'", D(U, z[k]), (
    Step(ZERO, "constant", "Since j is not k, e^z_j does not contain z_k: it is a constant."),
), distinct=((j, k),), lemma=True)  # fmt: skip

RESULT_2 = Derivation("result2", "Case 2: j != k (derivative of an output with respect to a different input)", D(yhat[j], z[k]), (
    Step((P(D(U, z[k])) * P(V) - P(U) * P(D(V, z[k]))) / P(V)**2, "quotient rule",
         "yhat_j is u/v, so its derivative is (u' v - u v') / v^2. This time only v contains z_k."),
    Step((P(0) * P(V) - P(U) * P(UK)) / P(V)**2, "result", "u' is 0, and v' is e^z_k.", ("numerator_other", "denominator")),
    Step(-(U * UK / P(V)**2), "zero and one", "0 times v is 0. The minus sign moves in front of the fraction."),
    Step(-(P(U / V) * P(UK / V)), "fractions", "The denominator v^2 is split: one v stands under each exponential."),
    Step(-(yhat[j] * yhat[k]), "definition", "The two fractions are yhat_j and yhat_k.", ("yhat",)),
), distinct=((j, k),), result="Result 2")  # fmt: skip

SOFTMAX_SUM = Derivation("softmax_sums_to_1", "The predictions sum to one", Sum(j, yhat[j]), (
    Step(Sum(j, U / V), "definition", "yhat_j is written out.", ("yhat",)),
    Step(Sum(j, U) / V, "factor", "The denominator does not depend on j."),
    Step(ONE, "cancel", "Numerator and denominator are the same sum, whatever its index is called. It is positive."),
))  # fmt: skip

# ---------------------------------------------------------------- Part 2: the derivative of cross-entropy

LOG_SAME = Derivation("log_same", "The inner derivative where j = k", D(log(yhat[k]), yhat[k]), (
    Step(1 / yhat[k], "derivative of log", "The derivative of log x is 1/x."),
), given=(POSITIVE,), lemma=True)  # fmt: skip

LOG_OTHER = Derivation("log_other", "The inner derivative where j != k", D(log(yhat[j]), yhat[k]), (
    Step(ZERO, "constant", "log yhat_j does not contain yhat_k."),
), distinct=((j, k),), given=(POSITIVE,), lemma=True)  # fmt: skip

RESULT_3 = Derivation("result3", "The derivative of the loss with respect to a prediction", D(L, yhat[k]), (
    Step(D(-Sum(j, y[j] * log(yhat[j])), yhat[k]), "definition", "The derivative is applied to the formula of the loss.", ("L",)),
    Step(-Sum(j, y[j] * D(log(yhat[j]), yhat[k])), "linearity", "The derivative moves inside the sum. Each y_j is a constant."),
    Step(-(y[k] * D(log(yhat[k]), yhat[k]) + Sum(j, y[j] * D(log(yhat[j]), yhat[k]), but=k)), "split the sum",
         "The inner derivative is not 0 only where j = k, so this term is written apart from the others."),
    Step(-(y[k] * (1 / yhat[k]) + Sum(j, y[j] * 0, but=k)), "result",
         "The inner derivative is 1/yhat_k where j = k, and 0 where j != k.", ("log_same", "log_other")),
    Step(-(y[k] * (1 / yhat[k])), "zero and one", "The sum of zeros is 0: of the whole sum, one term remains."),
    Step(-(y[k] / yhat[k]), "regroup", "y_k times 1/yhat_k is y_k/yhat_k."),
), given=(POSITIVE,), result="Result 3")  # fmt: skip

# ---------------------------------------------------------------- Part 3: the chain rule puts them together

CHAIN = D(L, yhat[j]) * D(yhat[j], z[k])

OWN_TERM = Derivation("own_term", "The term j = k", D(L, yhat[k]) * D(yhat[k], z[k]), (
    Step(P(-(y[k] / yhat[k])) * P(yhat[k] @ P(1 - yhat[k])), "result",
         "Result 3 gives the first factor, and Result 1, with k for j, the second.", ("result3", "result1")),
    Step(-(y[k] @ P(1 - yhat[k])), "cancel", "yhat_k in the numerator cancels yhat_k in the denominator, which is positive."),
    Step(-y[k] + y[k] @ yhat[k], "expand", "The bracket is multiplied out."),
), lemma=True)  # fmt: skip

OTHER_TERMS = Derivation("other_terms", "The sum of the terms j != k", Sum(j, P(CHAIN), but=k), (
    Step(Sum(j, P(-(y[j] / yhat[j])) * P(-(yhat[j] @ yhat[k])), but=k), "result",
         "Result 3 gives the first factor, and Result 2, since j != k, the second.", ("result3", "result2")),
    Step(Sum(j, P(y[j] @ yhat[k]), but=k), "cancel", "yhat_j cancels, and the product of two minus signs is plus."),
), lemma=True)  # fmt: skip

ONE_HOT_SUM = Derivation("one_hot_sum", "The sum of a one-hot vector", Sum(j, y[j]), (
    Step(Sum(j, delta(j, t)), "definition",
         "y is one-hot: y_j is 1 at the correct class j = t, and 0 at every other class. This is written delta_jt.", ("y",)),
    Step(delta(t, t) + Sum(j, delta(j, t), but=t), "split the sum", "The correct class t is written apart from the other classes."),
    Step(1 + Sum(j, 0, but=t), "one-hot", "The vector holds a single 1, at t. Every other entry is 0."),
    Step(ONE, "zero and one", "A sum of zeros is 0."),
), where=(Definition(y[k], delta(k, t)),), lemma=True)  # fmt: skip

GRADIENT = Derivation("prediction_minus_truth", "The derivative of the loss with respect to a score", D(L, z[k]), (
    Step(Sum(j, CHAIN), "chain rule",
         "The score z_k is in the denominator of every prediction yhat_j, so it changes the loss through each of them. "
         "The chain rule adds up these changes."),
    Step(P(D(L, yhat[k]) * D(yhat[k], z[k])) + Sum(j, P(CHAIN), but=k), "split the sum",
         "Results 1 and 2 differ, so the term j = k is written apart from the terms j != k. This is the key step of the proof."),
    Step(P(-y[k] + y[k] @ yhat[k]) + Sum(j, P(y[j] @ yhat[k]), but=k), "result",
         "Results 1, 2 and 3 are substituted into both parts.", ("own_term", "other_terms")),
    Step(-y[k] + P(y[k] @ yhat[k] + Sum(j, y[j] @ yhat[k], but=k)), "regroup", "The terms with yhat_k are grouped."),
    Step(-y[k] + yhat[k] @ P(y[k] + Sum(j, y[j], but=k)), "factor", "yhat_k does not depend on j, so it is a factor of the whole group."),
    Step(-y[k] + yhat[k] @ P(Sum(j, y[j])), "join the sum", "In the bracket are y_k and all the other entries of y: it is the sum of y."),
    Step(-y[k] + yhat[k] * P(1), "given", "The sum of y is 1, because y is one-hot.", (), (SUM_IS_1,), because=("one_hot_sum",)),
    Step(yhat[k] - y[k], "zero and one", "1 times yhat_k is yhat_k. The gradient is the prediction minus the truth."),
), result="Prediction - Truth")  # fmt: skip
BEFORE_SUM_IS_1 = 6  # the line of GRADIENT that holds for any truth

# ---------------------------------------------------------------- any truth, and the same without a division

GENERAL = Derivation("general_gradient", "The gradient for a truth of any mass p", D(L, z[k]), (
    Step(-y[k] + yhat[k] @ P(Sum(j, y[j])), "result",
         "This is the line of the last derivation that does not yet use that y sums to 1.", ("prediction_minus_truth",)),
    Step(-y[k] + yhat[k] @ p, "definition", "The sum of y is called its mass p.", ("p",)),
    Step(p @ yhat[k] - y[k], "regroup", "The terms are put in order: p times the prediction, minus the truth."),
))  # fmt: skip

LOSS_BY_LSE = Derivation("loss_by_lse", "The loss by log-sum-exp", L, (
    Step(-Sum(j, y[j] * log(yhat[j])), "definition", "The loss is written out.", ("L",)),
    Step(-Sum(j, y[j] * log(exp(z[j]) / Sum(i, exp(z[i])))), "definition", "yhat_j is written out.", ("yhat",)),
    Step(-Sum(j, y[j] * P(z[j] - log(Sum(i, exp(z[i]))))), "logarithm", "The logarithm of a quotient is a difference, and log e^x is x."),
    Step(-Sum(j, y[j] * P(z[j] - lse)), "definition", "The logarithm of the sum of exponentials is called lse.", ("lse",)),
    Step(Sum(j, y[j] @ lse) - Sum(j, y[j] @ z[j]), "expand", "The bracket is multiplied out, and each part is summed."),
    Step(P(Sum(j, y[j])) @ lse - Sum(j, y[j] @ z[j]), "factor", "lse does not depend on j."),
    Step(p @ lse - Sum(j, y[j] @ z[j]), "definition", "The sum of y is called its mass p.", ("p",)),
))  # fmt: skip

LSE_GRADIENT = Derivation("lse_gradient", "The derivative of log-sum-exp", D(lse, z[k]), (
    Step(D(log(V), z[k]), "definition", "lse is written out.", ("lse",)),
    Step((1 / V) * D(V, z[k]), "derivative of log", "The derivative of log v is v'/v; v is a sum of exponentials, hence positive."),
    Step((1 / V) * UK, "result", "The derivative of this sum was calculated in Part 1.", ("denominator",)),
    Step(UK / V, "regroup", "The product is one fraction."),
    Step(yhat[k], "definition", "The fraction is softmax.", ("yhat",)),
))  # fmt: skip

SHORT_WAY = Derivation("short_way", "The gradient again, the short way", D(L, z[k]), (
    Step(D(p @ lse - Sum(j, y[j] @ z[j]), z[k]), "result", "The loss is written by log-sum-exp, without a quotient.", ("loss_by_lse",)),
    Step(p @ D(lse, z[k]) - Sum(j, y[j] * D(z[j], z[k])), "linearity", "The truth does not depend on the scores."),
    Step(p @ yhat[k] - Sum(j, y[j] * D(z[j], z[k])), "result", "The derivative of log-sum-exp is softmax.", ("lse_gradient",)),
    Step(p @ yhat[k] - P(y[k] * D(z[k], z[k]) + Sum(j, y[j] * D(z[j], z[k]), but=k)), "split the sum",
         "The term j = k is written apart from the other terms."),
    Step(p @ yhat[k] - P(y[k] * 1 + Sum(j, y[j] * 0, but=k)), "coordinate",
         "The derivative of z_j by z_k is 1 where j is k, and 0 elsewhere."),
    Step(p @ yhat[k] - y[k], "zero and one", "One term remains."),
))  # fmt: skip

# ---------------------------------------------------------------- a shift of all scores changes nothing

SOFTMAX_SHIFT = Derivation("softmax_shift", "Softmax does not change when the scores are shifted", exp(z[j] + c) / Sum(i, exp(z[i] + c)), (
    Step(exp(z[j]) * exp(c) / Sum(i, exp(z[i]) * exp(c)), "exponential", "The exponential of a sum is a product."),
    Step(exp(z[j]) * exp(c) / (exp(c) * P(Sum(i, exp(z[i])))), "factor", "e^c does not depend on i."),
    Step(exp(z[j]) / Sum(i, exp(z[i])), "cancel", "e^c is positive."),
    Step(yhat[j], "definition", "This is softmax without the shift.", ("yhat",)),
))  # fmt: skip

LSE_SHIFT = Derivation("lse_shift", "Log-sum-exp shifts with the scores", log(Sum(i, exp(z[i] + c))), (
    Step(log(Sum(i, exp(z[i]) * exp(c))), "exponential", "The exponential of a sum is a product."),
    Step(log(exp(c) * P(Sum(i, exp(z[i])))), "factor", "e^c does not depend on i."),
    Step(c + log(Sum(i, exp(z[i]))), "logarithm", "The logarithm of a product is a sum, and log e^x is x."),
    Step(c + lse, "definition", "The second term is lse without the shift.", ("lse",)),
))  # fmt: skip

LOSS_SHIFT = Derivation("loss_shift", "The loss does not change when the scores are shifted", p @ P(c + lse) - Sum(j, y[j] @ P(z[j] + c)), (
    Step(p @ c + p @ lse - (Sum(j, y[j] @ z[j]) + Sum(j, y[j] @ c)), "expand", "Both brackets are multiplied out."),
    Step(p @ c + p @ lse - (Sum(j, y[j] @ z[j]) + P(Sum(j, y[j])) @ c), "factor", "c does not depend on j."),
    Step(p @ c + p @ lse - (Sum(j, y[j] @ z[j]) + p @ c), "definition", "The sum of y is called its mass p.", ("p",)),
    Step(p @ lse - Sum(j, y[j] @ z[j]), "opposites", "p c is added and subtracted."),
    Step(L, "result", "This is the loss without the shift.", ("loss_by_lse",)),
))  # fmt: skip

# ---------------------------------------------------------------- the second derivative

HESSIAN_SAME = Derivation("hessian_same", "The Hessian on its diagonal", D(g[k], z[k]), (
    Step(D(p @ yhat[k] - y[k], z[k]), "definition", "The gradient is written out.", ("g",)),
    Step(p @ D(yhat[k], z[k]), "linearity", "The truth and its mass do not depend on the scores."),
    Step(p @ P(yhat[k] @ P(1 - yhat[k])), "result", "Result 1 gives the derivative of yhat_k by its own score.", ("result1",)),
))  # fmt: skip

HESSIAN_OTHER = Derivation("hessian_other", "The Hessian off its diagonal", D(g[k], z[j]), (
    Step(D(p @ yhat[k] - y[k], z[j]), "definition", "The gradient is written out.", ("g",)),
    Step(p @ D(yhat[k], z[j]), "linearity", "The truth and its mass do not depend on the scores."),
    Step(p @ P(-(yhat[k] @ yhat[j])), "result", "Result 2 gives the derivative of yhat_k by another score.", ("result2",)),
), distinct=((j, k),))  # fmt: skip

HESSIAN_PRODUCT = Derivation("hessian_product", "The Hessian times a vector", Sum(j, D(g[k], z[j]) * v[j]), (
    Step(D(g[k], z[k]) * v[k] + Sum(j, D(g[k], z[j]) * v[j], but=k), "split the sum",
         "The Hessian differs on and off its diagonal, so the term j = k is written apart."),
    Step(p @ P(yhat[k] @ P(1 - yhat[k])) * v[k] + Sum(j, p @ P(-(yhat[k] @ yhat[j])) * v[j], but=k), "result",
         "Both entries of the Hessian are substituted.", ("hessian_same", "hessian_other")),
    Step(p @ yhat[k] @ P(v[k] - P(yhat[k] @ v[k] + Sum(j, yhat[j] @ v[j], but=k))), "distribute", "p yhat_k is a factor of every term."),
    Step(p @ yhat[k] @ P(v[k] - Sum(j, yhat[j] @ v[j])), "join the sum", "The term k and all the others are the whole sum."),
    Step(p @ yhat[k] @ P(v[k] - mu), "definition", "The sum is the mean of v under the prediction.", ("mu",)),
))  # fmt: skip

CENTRED = Derivation("centred", "The mean distance from the mean", Sum(k, yhat[k] @ P(v[k] - mu)), (
    Step(Sum(k, yhat[k] @ v[k]) - mu @ P(Sum(k, yhat[k])), "distribute", "The bracket is multiplied out. mu does not depend on k."),
    Step(mu - mu @ P(Sum(k, yhat[k])), "definition", "The first sum is the mean mu.", ("mu",)),
    Step(mu - mu @ P(1), "result", "The predictions sum to 1.", ("softmax_sums_to_1",)),
    Step(ZERO, "opposites", "mu is added and subtracted."),
))  # fmt: skip

CURVATURE = Derivation("hessian_psd", "The curvature is a variance", Sum(k, v[k] * P(p @ yhat[k] @ P(v[k] - mu))), (
    Step(p @ Sum(k, yhat[k] @ v[k] @ P(v[k] - mu)), "factor", "p does not depend on k."),
    Step(p @ P(Sum(k, yhat[k] @ P(v[k] - mu)**2) + mu @ Sum(k, yhat[k] @ P(v[k] - mu))), "distribute",
         "v_k is written as its distance from the mean, plus the mean."),
    Step(p @ P(Sum(k, yhat[k] @ P(v[k] - mu)**2) + mu @ P(0)), "result", "The mean distance from the mean is zero.", ("centred",)),
    Step(p @ Sum(k, yhat[k] @ P(v[k] - mu)**2), "zero and one", "p times the variance of v under the prediction."),
    Step(ZERO, "no negative term", "The mass, the predictions and the squares are not negative, so the loss is convex in the scores.",
         ("p",), (TRUTH,), ">="),
))  # fmt: skip

# ---------------------------------------------------------------- log-probability and entropy

LOG_PROBABILITY = Derivation("log_probability", "The logarithm of a prediction", log(yhat[j]), (
    Step(log(U / V), "definition", "yhat_j is written out.", ("yhat",)),
    Step(z[j] - log(V), "logarithm", "The logarithm of a quotient is a difference, and log e^x is x."),
    Step(z[j] - lse, "definition", "The logarithm of the sum of exponentials is lse. For the label, this is the loss with a minus sign.",
         ("lse",)),
))  # fmt: skip

LOG_PROBABILITY_GRADIENT = Derivation("log_probability_gradient", "The derivative of a log-probability", D(log(yhat[j]), z[k]), (
    Step(D(z[j] - lse, z[k]), "result", "The log-probability is written by log-sum-exp.", ("log_probability",)),
    Step(D(z[j], z[k]) - D(lse, z[k]), "linearity", "The derivative of a difference is the difference of the derivatives."),
    Step(delta(j, k) - D(lse, z[k]), "coordinate", "The derivative of z_j by z_k is 1 if j is k, and 0 otherwise. This is delta_jk."),
    Step(delta(j, k) - yhat[k], "result", "The derivative of log-sum-exp is softmax.", ("lse_gradient",)),
))  # fmt: skip

SOFTMAX_BY_LSE = Derivation("softmax_by_lse", "Softmax by log-sum-exp", exp(z[j] - lse), (
    Step(exp(z[j] - log(V)), "definition", "lse is written out.", ("lse",)),
    Step(U / V, "exponential", "The exponential of a difference is a quotient, and e^log v is v."),
    Step(yhat[j], "definition", "The fraction is softmax.", ("yhat",)),
))  # fmt: skip

JACOBIAN = Derivation("softmax_gradient", "Results 1 and 2 in one formula", D(yhat[j], z[k]), (
    Step(D(exp(z[j] - lse), z[k]), "result", "Softmax is written by log-sum-exp.", ("softmax_by_lse",)),
    Step(exp(z[j] - lse) * D(z[j] - lse, z[k]), "derivative of exp", "The derivative of e^f is e^f f'."),
    Step(yhat[j] * D(z[j] - lse, z[k]), "result", "The first factor is softmax.", ("softmax_by_lse",)),
    Step(yhat[j] * D(log(yhat[j]), z[k]), "result", "z_j - lse is the log-probability.", ("log_probability",)),
    Step(yhat[j] @ P(delta(j, k) - yhat[k]), "result", "Its derivative was calculated before.", ("log_probability_gradient",)),
))  # fmt: skip

SURPRISE = Sum(j, yhat[j] @ P(lse - z[j]))
ENTROPY = Derivation("entropy_by_lse", "The entropy of the prediction", H, (
    Step(-Sum(j, yhat[j] * log(yhat[j])), "definition", "The entropy is written out.", ("H",)),
    Step(-Sum(j, yhat[j] * P(z[j] - lse)), "result", "The log-probability is z_j - lse.", ("log_probability",)),
    Step(SURPRISE, "distribute", "No term is negative, because no score is above lse."),
))  # fmt: skip

HOTJK = delta(j, k)
ENTROPY_GRADIENT = Derivation("entropy_gradient", "The derivative of the entropy", D(H, z[k]), (
    Step(D(-Sum(j, yhat[j] * log(yhat[j])), z[k]), "definition", "The entropy is written out.", ("H",)),
    Step(-Sum(j, D(yhat[j] * log(yhat[j]), z[k])), "linearity", "The derivative moves inside the sum."),
    Step(-Sum(j, D(yhat[j], z[k]) * log(yhat[j]) + yhat[j] * D(log(yhat[j]), z[k])), "product rule", "Both factors contain z_k."),
    Step(-Sum(j, yhat[j] @ P(HOTJK - yhat[k]) * log(yhat[j]) + yhat[j] * P(HOTJK - yhat[k])), "result",
         "Both derivatives were calculated before.", ("softmax_gradient", "log_probability_gradient")),
    Step(-Sum(j, yhat[j] @ P(HOTJK - yhat[k]) * P(z[j] - lse) + yhat[j] * P(HOTJK - yhat[k])), "result",
         "The log-probability is z_j - lse.", ("log_probability",)),
    Step(Sum(j, yhat[j] @ P(lse - z[j]) @ HOTJK) - yhat[k] @ P(SURPRISE) - Sum(j, yhat[j] @ HOTJK) + yhat[k] @ P(Sum(j, yhat[j])),
         "distribute", "The brackets are multiplied out, and each part is summed."),
    Step(yhat[k] @ P(lse - z[k]) - yhat[k] @ P(SURPRISE) - yhat[k] + yhat[k] @ P(Sum(j, yhat[j])), "one term",
         "delta_jk picks the term j = k of two sums."),
    Step(yhat[k] @ P(lse - z[k]) - yhat[k] @ P(SURPRISE) - yhat[k] + yhat[k] @ P(1), "result", "The predictions sum to 1.",
         ("softmax_sums_to_1",)),
    Step(yhat[k] @ P(lse - z[k]) - yhat[k] @ P(H) - yhat[k] + yhat[k] @ P(1), "result", "The other sum is the entropy.",
         ("entropy_by_lse",)),
    Step(yhat[k] @ P(lse - z[k] - H), "distribute", "yhat_k is a factor of the terms that remain."),
))  # fmt: skip

ALONG = Definition(eta, Sum(j, yhat[j] @ P(lse - z[j]) @ P(v[j] - mu)))
ENTROPY_ALONG = Derivation("entropy_along", "The gradient of the entropy times a vector", Sum(j, yhat[j] @ P(lse - z[j] - H) @ v[j]), (
    Step(Sum(j, yhat[j] @ P(lse - z[j]) @ v[j]) - H @ P(Sum(j, yhat[j] @ v[j])), "distribute", "H does not depend on j."),
    Step(Sum(j, yhat[j] @ P(lse - z[j]) @ v[j]) - H @ mu, "definition", "The second sum is the mean of v.", ("mu",)),
    Step(Sum(j, yhat[j] @ P(lse - z[j]) @ v[j]) - P(SURPRISE) @ mu, "result", "The entropy is written by log-sum-exp.",
         ("entropy_by_lse",)),
    Step(Sum(j, yhat[j] @ P(lse - z[j]) @ P(v[j] - mu)), "distribute", "Both sums have the factor yhat_j (lse - z_j)."),
    Step(eta, "definition", "The sum is called eta.", ("eta",)),
), where=(ALONG,))  # fmt: skip

# ---------------------------------------------------------------- every option is a choice of truth

HOT, HOTJ = delta(k, t), delta(j, t)
GRADIENT_OF_TRUTH = Step(p @ yhat[k] - y[k], "result", "The gradient for any truth is used.", ("general_gradient",))
MASS = Step(P(Sum(j, y[j])) @ yhat[k] - y[k], "definition", "p is the sum of the truth.", ("p",))

ONE_HOT = Derivation("one_hot_gradient", "The gradient for a label t", D(L, z[k]), (
    GRADIENT_OF_TRUTH, MASS,
    Step(P(Sum(j, HOTJ)) @ yhat[k] - HOT, "definition", "The truth of a label is 1 at t and 0 elsewhere.", ("y",)),
    Step(P(1) @ yhat[k] - HOT, "one term", "The label picks one term of the sum, and that is 1."),
    Step(yhat[k] - HOT, "zero and one", "The gradient is the prediction, less 1 at the label."),
), where=(Definition(y[k], HOT),))  # fmt: skip

ONE_HOT_LOSS = Derivation("one_hot_loss", "The loss of a label t", L, (
    Step(p @ lse - Sum(j, y[j] @ z[j]), "result", "The loss by log-sum-exp.", ("loss_by_lse",)),
    Step(P(Sum(j, HOTJ)) @ lse - Sum(j, HOTJ @ z[j]), "definition", "The mass and the truth of a label are written out.", ("p", "y")),
    Step(P(1) @ lse - Sum(j, HOTJ @ z[j]), "one term", "The label picks one term of the first sum, and that is 1."),
    Step(P(1) @ lse - z[t], "one term", "The label picks the score z_t."),
    Step(lse - z[t], "zero and one", "1 times lse is lse."),
), where=(Definition(y[k], HOT),))  # fmt: skip

WEIGHTED = Derivation("weighted_gradient", "The gradient with class weights w", D(L, z[k]), (
    GRADIENT_OF_TRUTH, MASS,
    Step(P(Sum(j, w[t] @ HOTJ)) @ yhat[k] - w[t] @ HOT, "definition",
         "The truth of a label is multiplied by the weight of its class.", ("y",)),
    Step(P(w[t]) @ yhat[k] - w[t] @ HOT, "one term", "The label picks its own weight, which is the mass."),
    Step(w[t] @ P(yhat[k] - HOT), "factor", "The gradient of the row is multiplied by the weight."),
), where=(Definition(y[k], w[t] @ HOT),))  # fmt: skip

SMOOTH, SMOOTHJ = ((1 - eps) @ delta(n, t) + eps / N for n in (k, j))
SMOOTHED = Derivation("smoothed_gradient", "The gradient with label smoothing", D(L, z[k]), (
    GRADIENT_OF_TRUTH, MASS,
    Step(P(Sum(j, P(SMOOTHJ))) @ yhat[k] - P(SMOOTH), "definition", "The label is mixed with the uniform distribution.", ("y",)),
    Step(P((1 - eps) @ P(Sum(j, HOTJ)) + Sum(j, eps / N)) @ yhat[k] - P(SMOOTH), "distribute",
         "Each part is summed. 1 - eps does not depend on j."),
    Step(P((1 - eps) @ P(1) + Sum(j, eps / N)) @ yhat[k] - P(SMOOTH), "one term",
         "The label picks one term of the first sum, and that is 1."),
    Step(P((1 - eps) @ P(1) + N @ P(eps / N)) @ yhat[k] - P(SMOOTH), "count", "The sum of N equal terms is N times one of them."),
    Step(yhat[k] - P(SMOOTH), "cancel", "N cancels, and 1 - eps + eps is 1: a smoothed label still has mass 1."),
), where=(Definition(y[k], SMOOTH),))  # fmt: skip

BOTH, BOTHJ = ((1 - eps) @ w[t] @ delta(n, t) + eps / N @ w[n] for n in (k, j))
SMOOTHED_WEIGHTS = Derivation("smoothed_weighted_gradient", "The gradient with label smoothing and class weights", D(L, z[k]), (
    GRADIENT_OF_TRUTH, MASS,
    Step(P(Sum(j, P(BOTHJ))) @ yhat[k] - P(BOTH), "definition",
         "This is PyTorch's rule: the part at each class is multiplied by the weight of that class.", ("y",)),
    Step(P(Sum(j, (1 - eps) @ w[t] @ HOTJ) + eps / N @ P(Sum(j, w[j]))) @ yhat[k] - P(BOTH), "distribute", "Each part is summed."),
    Step(P((1 - eps) @ w[t] + eps / N @ P(Sum(j, w[j]))) @ yhat[k] - P(BOTH), "one term", "The label picks its own weight."),
), where=(Definition(y[k], BOTH),))  # fmt: skip

SOFT, SOFTJ = (w[n] @ P((1 - eps) @ u[n] + eps / N) for n in (k, j))
PROBABILITIES = Derivation("probabilities_gradient", "The gradient for probabilities u instead of a label", D(L, z[k]), (
    GRADIENT_OF_TRUTH, MASS,
    Step(P(Sum(j, SOFTJ)) @ yhat[k] - SOFT, "definition", "The truth is made of the probabilities u, smoothed and weighted.", ("y",)),
), where=(Definition(y[k], SOFT),))  # fmt: skip

IGNORED = Derivation("ignored_gradient", "The gradient of an ignored row", D(L, z[k]), (
    GRADIENT_OF_TRUTH, MASS,
    Step(P(Sum(j, 0)) @ yhat[k] - 0, "definition", "The truth of an ignored row is 0 at every class.", ("y",)),
    Step(ZERO, "zero and one", "The gradient is 0."),
), where=(Definition(y[k], ZERO),))  # fmt: skip

IGNORED_LOSS = Derivation("ignored_loss", "The loss of an ignored row", L, (
    Step(p @ lse - Sum(j, y[j] @ z[j]), "result", "The loss by log-sum-exp.", ("loss_by_lse",)),
    Step(P(Sum(j, 0)) @ lse - Sum(j, 0 @ z[j]), "definition", "The truth is 0 at every class.", ("p", "y")),
    Step(ZERO, "zero and one", "The loss is 0."),
), where=(Definition(y[k], ZERO),))  # fmt: skip

Z_LOSS = Derivation("z_loss_gradient", "The gradient with z-loss", D(L + lam @ lse**2, z[k]), (
    Step(D(L, z[k]) + lam @ D(lse**2, z[k]), "linearity", "The derivative of a sum is the sum of the derivatives. lambda is a constant."),
    Step(D(L, z[k]) + lam @ P(2 @ lse @ D(lse, z[k])), "derivative of a square", "The derivative of f^2 is 2 f f'."),
    Step(P(p @ yhat[k] - y[k]) + lam @ P(2 @ lse @ yhat[k]), "result",
         "Both derivatives were calculated before.", ("general_gradient", "lse_gradient")),
    Step((p + 2 @ lam @ lse) @ yhat[k] - y[k], "factor", "Like the mass p, the penalty multiplies the prediction."),
))  # fmt: skip


def _elementwise(name: str, title: str, score: Definition, slope: E, own: tuple[Step, ...]) -> tuple[Derivation, ...]:
    """z_k as a function of the raw score x_k alone: its slope, and the gradient by x."""
    where = (score,)
    same = Derivation(f"{name}_same", f"{title}: its slope", D(z[k], x[k]), (
        Step(D(score.body, x[k]), "definition", "z_k is written out.", ("z",)), *own,
    ), where=where)  # fmt: skip
    other = Derivation(f"{name}_other", f"{title}: the other scores", D(z[j], x[k]), (
        Step(ZERO, "constant", "z_j contains x_j only."),
    ), distinct=((j, k),), where=where)  # fmt: skip
    product = D(L, z[j]) * D(z[j], x[k])
    whole = Derivation(f"{name}_gradient", title, D(L, x[k]), (
        Step(Sum(j, product), "chain rule", "The raw score x_k changes the loss through the scores z_j."),
        Step(D(L, z[k]) * D(z[k], x[k]) + Sum(j, product, but=k), "split the sum",
         "Only z_k contains x_k, so the term j = k is written apart."),
        Step(P(p @ yhat[k] - y[k]) * P(slope) + Sum(j, P(p @ yhat[j] - y[j]) * 0, but=k), "result",
             "The gradient by the scores and the slope are substituted.", ("general_gradient", same.name, other.name)),
        Step(P(p @ yhat[k] - y[k]) * P(slope), "zero and one", "The gradient by the scores is multiplied by the slope."),
    ), where=where)  # fmt: skip
    return same, other, whole


TEMPERATURE = _elementwise("temperature", "Temperature", Definition(z[k], x[k] / T), 1 / T, (
    Step(D(x[k], x[k]) / T, "linearity", "T is a constant."),
    Step(1 / T, "coordinate", "The derivative of x_k by x_k is 1."),
))  # fmt: skip
CAPPED = tanh(x[k] / c)
SLOPE, SLOPEJ = ((1 - tanh(x[n] / c) ** 2) / T for n in (k, j))
SOFTCAP = _elementwise("softcap", "Softcap and temperature", Definition(z[k], c / T @ CAPPED), SLOPE, (
    Step(c / T @ D(CAPPED, x[k]), "linearity", "c and T are constants."),
    Step(c / T @ P((1 - CAPPED**2) * D(x[k] / c, x[k])), "derivative of tanh", "The derivative of tanh f is (1 - tanh^2 f) f'."),
    Step(c / T @ P((1 - CAPPED**2) * (1 / c)), "coordinate", "The derivative of x/c by x is 1/c."),
    Step(SLOPE, "cancel", "c is not zero."),
))  # fmt: skip
TEMPERATURE_IS_NOT_0, CAP_IS_NOT_0 = (Fact(number, "!=", ZERO) for number in (T, c))
CAP = (TEMPERATURE_IS_NOT_0, CAP_IS_NOT_0)
TEMPERATURE = tuple(one._replace(given=(TEMPERATURE_IS_NOT_0,)) for one in TEMPERATURE)
SOFTCAP = tuple(one._replace(given=CAP) for one in SOFTCAP)

SMALL = exp(-(2 * (x[k] / c)))
SOFTCAP_SLOPE = Derivation("softcap_slope", "The slope of the softcap without cancellation", SLOPE, (
    Step((1 - ((1 - SMALL) / (1 + SMALL)) ** 2) / T, "tanh", "tanh f is (1 - w) / (1 + w), where w = e^(-2f)."),
    Step(4 @ SMALL / (1 + SMALL) ** 2 / T, "fractions",
         "Far from 0, 1 - tanh^2 would lose its digits. tanh^2 is even, so that the sign of x may be chosen for which w is at most 1."),
), given=CAP)  # fmt: skip

SOFTCAP_SECOND = Derivation("softcap_second", "The second derivative of the softcap", D(SLOPE, x[k]), (
    Step(-D(CAPPED**2, x[k]) / T, "linearity", "T is a constant."),
    Step(-(2 @ CAPPED * D(CAPPED, x[k])) / T, "derivative of a square", "The derivative of f^2 is 2 f f'."),
    Step(-(2 @ CAPPED * P((1 - CAPPED**2) * D(x[k] / c, x[k]))) / T, "derivative of tanh",
         "The derivative of tanh f is (1 - tanh^2 f) f'."),
    Step(-(2 @ CAPPED * P((1 - CAPPED**2) * (1 / c))) / T, "coordinate", "The derivative of x/c by x is 1/c."),
    Step(-(2 / c @ CAPPED @ P(SLOPE)), "regroup", "The slope is a factor."),
), given=CAP)  # fmt: skip

BY_SCORES = D(g[k], z[i]) * D(z[i], x[j])
SOFTCAP_CHAIN = Derivation("softcap_chain", "The derivative of the gradient by a raw score", D(g[k], x[j]), (
    Step(Sum(i, BY_SCORES), "chain rule", "The raw score x_j changes the gradient through the scores z_i."),
    Step(D(g[k], z[j]) * D(z[j], x[j]) + Sum(i, BY_SCORES, but=j), "split the sum", "Only z_j contains x_j."),
    Step(D(g[k], z[j]) * P(SLOPEJ) + Sum(i, D(g[k], z[i]) * 0, but=j), "result", "The slope is substituted.",
         ("softcap_same", "softcap_other")),
    Step(D(g[k], z[j]) * P(SLOPEJ), "zero and one", "One term remains."),
), where=SOFTCAP[0].where, given=CAP)  # fmt: skip

OWN = P(D(SLOPE, x[k]) * v[k] + Sum(j, D(SLOPE, x[j]) * v[j], but=k))
SOFTCAP_HESSIAN = Derivation("softcap_hessian", "The Hessian by the raw scores times a vector", Sum(j, D(g[k] * P(SLOPE), x[j]) * v[j]), (
    Step(Sum(j, P(D(g[k], x[j]) * P(SLOPE) + g[k] * D(SLOPE, x[j])) * v[j]), "product rule",
         "The gradient by x_k is the gradient by z_k times the slope, and both contain x_k."),
    Step(P(SLOPE) * P(Sum(j, D(g[k], x[j]) * v[j])) + g[k] * P(Sum(j, D(SLOPE, x[j]) * v[j])), "distribute", "Each part is summed."),
    Step(P(SLOPE) * P(Sum(j, D(g[k], x[j]) * v[j])) + g[k] * OWN, "split the sum", "The slope at k contains x_k only."),
    Step(P(SLOPE) * P(Sum(j, D(g[k], x[j]) * v[j])) + g[k] * P(D(SLOPE, x[k]) * v[k] + Sum(j, 0 * v[j], but=k)), "constant",
         "The other derivatives are 0."),
    Step(P(SLOPE) * P(Sum(j, D(g[k], x[j]) * v[j])) + g[k] * P(D(SLOPE, x[k]) * v[k]), "zero and one", "One term remains."),
    Step(P(SLOPE) * P(Sum(j, D(g[k], z[j]) * P(SLOPEJ) * v[j])) + g[k] * P(P(-(2 / c @ CAPPED @ P(SLOPE))) * v[k]), "result",
         "The Hessian by the scores is multiplied by v times the slope, and the product by the slope at k. "
         "The second derivative of the score multiplies the gradient.", ("softcap_chain", "softcap_second")),
), where=SOFTCAP[0].where, given=CAP)  # fmt: skip

# ---------------------------------------------------------------- sums in parts: the online merge

MERGE = Derivation("merge_parts", "Merging the sums of two parts", exp(m) * P(exp(m1 - m) @ s1 + exp(m2 - m) @ s2), (
    Step(exp(m) @ exp(m1 - m) @ s1 + exp(m) @ exp(m2 - m) @ s2, "expand", "The bracket is multiplied out."),
    Step(exp(m1) @ s1 + exp(m2) @ s2, "exponential",
         "A product of exponentials is the exponential of the sum. m cancels, so any m gives the same sum. "
         "With the larger of m1 and m2, nothing overflows."),
))  # fmt: skip

SHIFTED = Sum(i, exp(z[i] - m) @ P(m - z[i]))
SUM_OF_U = Derivation("sum_of_u", "What the sum u of a part stands for", exp(m) * P(m @ Sum(i, exp(z[i] - m)) - SHIFTED), (
    Step(Sum(i, exp(m) @ exp(z[i] - m) @ z[i]), "distribute", "u is the sum of e^(z_i - m) (m - z_i), whose terms are not negative. "
         "In m s - u, the terms with m cancel."),
    Step(Sum(i, exp(z[i]) @ z[i]), "exponential", "m cancels, so any m gives the same sum."),
))  # fmt: skip

MERGED_S, MERGED_U = exp(m1 - m) @ s1 + exp(m2 - m) @ s2, exp(m1 - m) @ P(u1 + s1 @ P(m - m1)) + exp(m2 - m) @ P(u2 + s2 @ P(m - m2))
MERGE_U = Derivation("merge_u", "Merging the sums u of two parts", exp(m) * P(m @ P(MERGED_S) - P(MERGED_U)), (
    Step(exp(m) @ exp(m1 - m) @ P(m1 @ s1 - u1) + exp(m) @ exp(m2 - m) @ P(m2 @ s2 - u2), "distribute",
         "The terms with m s_1 and m s_2 cancel."),
    Step(exp(m1) @ P(m1 @ s1 - u1) + exp(m2) @ P(m2 @ s2 - u2), "exponential",
         "m cancels. The result is the sum of what the two parts stand for."),
))  # fmt: skip

AWAY, FAR_AWAY = Sum(i, exp(z[i] - m) @ P(h - v[i])), Sum(i, exp(z[i] - m) @ P(m - z[i]) @ P(h - v[i]))
TANGENT_S = Derivation("tangent_s", "What the derivative of the sum s along a vector stands for",
                       exp(m) * P(h @ Sum(i, exp(z[i] - m)) - AWAY), (
    Step(Sum(i, exp(m) @ exp(z[i] - m) @ v[i]), "distribute", "Differences of v to a number h are summed, which loses no digit if h is "
         "the v of the most probable class. h cancels."),
    Step(Sum(i, exp(z[i]) @ v[i]), "exponential", "m cancels. This is the derivative of the sum of exponentials along v."),
))  # fmt: skip
TANGENT_U = Derivation("tangent_u", "What the derivative of the sum u along a vector stands for",
                       exp(m) * P(m @ P(h @ Sum(i, exp(z[i] - m)) - AWAY) - P(h @ P(SHIFTED) - FAR_AWAY)), (
    Step(Sum(i, exp(m) @ exp(z[i] - m) @ z[i] @ v[i]), "distribute", "The terms with h and those with m cancel."),
    Step(Sum(i, exp(z[i]) @ z[i] @ v[i]), "exponential", "m cancels, so any m gives the same sum."),
))  # fmt: skip

MOVED_1, MOVED_2 = A1 + s1 @ P(h - h1), A2 + s2 @ P(h - h2)
MERGED_A = exp(m1 - m) @ P(MOVED_1) + exp(m2 - m) @ P(MOVED_2)
MERGED_B = exp(m1 - m) @ P(B1 + u1 @ P(h - h1) + P(MOVED_1) @ P(m - m1)) + exp(m2 - m) @ P(B2 + u2 @ P(h - h2) + P(MOVED_2) @ P(m - m2))
MERGE_TANGENT_S = Derivation("merge_tangent_s", "Merging the derivatives of the sums s of two parts",
                             exp(m) * P(h @ P(MERGED_S) - P(MERGED_A)), (
    Step(exp(m) @ exp(m1 - m) @ P(h1 @ s1 - A1) + exp(m) @ exp(m2 - m) @ P(h2 @ s2 - A2), "distribute", "The terms with h cancel."),
    Step(exp(m1) @ P(h1 @ s1 - A1) + exp(m2) @ P(h2 @ s2 - A2), "exponential",
         "m cancels. The result is the sum of what the two parts stand for."),
))  # fmt: skip
MERGE_TANGENT_U = Derivation("merge_tangent_u", "Merging the derivatives of the sums u of two parts",
                             exp(m) * P(m @ P(h @ P(MERGED_S) - P(MERGED_A)) - P(h @ P(MERGED_U) - P(MERGED_B))), (
    Step(exp(m) @ exp(m1 - m) @ P(m1 @ P(h1 @ s1 - A1) - P(h1 @ u1 - B1))
         + exp(m) @ exp(m2 - m) @ P(m2 @ P(h2 @ s2 - A2) - P(h2 @ u2 - B2)), "distribute", "The terms with h and those with m cancel."),
    Step(exp(m1) @ P(m1 @ P(h1 @ s1 - A1) - P(h1 @ u1 - B1)) + exp(m2) @ P(m2 @ P(h2 @ s2 - A2) - P(h2 @ u2 - B2)), "exponential",
         "m cancels. The result is the sum of what the two parts stand for."),
))  # fmt: skip

READ_LSE = Derivation("read_lse", "Log-sum-exp of a shifted sum", m + log(Sum(i, exp(z[i] - m))), (
    Step(log(exp(m) * P(Sum(i, exp(z[i] - m)))), "logarithm", "m is log e^m, and a sum of logarithms is the logarithm of the product."),
    Step(log(Sum(i, exp(m) @ exp(z[i] - m))), "expand", "The factor moves inside the sum."),
    Step(log(Sum(i, exp(z[i]))), "exponential", "m cancels."),
    Step(lse, "definition", "The logarithm of the sum of exponentials is lse.", ("lse",)),
))  # fmt: skip

REST = Sum(i, exp(z[i] - m), but=t)
ODDS = Definition(a, P(m - z[t]) + log(REST))
LABEL_APART = Derivation("label_apart", "The odds against the label", exp(a), (
    Step(exp(P(m - z[t]) + log(REST)), "definition",
         "a is written out: the logarithm of the sum of the other exponentials, less z_t.", ("a",)),
    Step(exp(m) / exp(z[t]) * P(REST), "exponential", "The exponential of a sum is a product, and e^log s is s."),
    Step(P(Sum(i, exp(m) @ exp(z[i] - m), but=t)) / exp(z[t]), "distribute", "The factor moves inside the sum."),
    Step(P(Sum(i, exp(z[i]), but=t)) / exp(z[t]), "exponential", "m cancels."),
), given=(TWO_CLASSES,), where=(ODDS,))  # fmt: skip

TINY_LOSS = Derivation("tiny_loss", "The loss of a label without cancellation", -log(yhat[t]), (
    Step(-log(exp(z[t]) / Sum(i, exp(z[i]))), "definition", "yhat_t is written out.", ("yhat",)),
    Step(log(Sum(i, exp(z[i])) / exp(z[t])), "logarithm", "The logarithm of the inverted fraction has the opposite sign."),
    Step(log((exp(z[t]) + Sum(i, exp(z[i]), but=t)) / exp(z[t])), "split the sum",
         "The term of the label is written apart from the others."),
    Step(log(1 + P(Sum(i, exp(z[i]), but=t)) / exp(z[t])), "fractions", "Both terms are divided by e^z_t."),
    Step(log(1 + exp(a)), "result",
         "In this form no nearly equal numbers are subtracted, so a loss of 1e-9 keeps all its digits.", ("label_apart",)),
), given=(TWO_CLASSES,), where=(ODDS,))  # fmt: skip

MISS = Derivation("miss", "The probability of a miss", 1 - yhat[t], (
    Step(1 - exp(z[t]) / Sum(i, exp(z[i])), "definition", "yhat_t is written out.", ("yhat",)),
    Step((Sum(i, exp(z[i])) - exp(z[t])) / Sum(i, exp(z[i])), "fractions", "1 is the sum divided by itself."),
    Step((exp(z[t]) + Sum(i, exp(z[i]), but=t) - exp(z[t])) / Sum(i, exp(z[i])), "split the sum",
         "The term of the label is written apart from the others."),
    Step(Sum(i, exp(z[i]), but=t) / Sum(i, exp(z[i])), "opposites",
         "Only positive terms remain, so that no digits are lost where yhat_t is near 1."),
))  # fmt: skip

ENTROPY_APART = Derivation("entropy_apart", "The entropy from the sums apart from the label", H, (
    Step(SURPRISE, "result", "The entropy is written by log-sum-exp.", ("entropy_by_lse",)),
    Step(yhat[t] @ P(lse - z[t]) + Sum(j, yhat[j] @ P(lse - z[j]), but=t), "split the sum",
         "The term of the label is written apart from the others. It is yhat_t times the loss of the label."),
    Step(yhat[t] @ P(lse - z[t]) + Sum(j, exp(z[j] - lse) @ P(lse - z[j]), but=t), "result", "The other predictions are written by lse.",
         ("softmax_by_lse",)),
    Step(yhat[t] @ P(lse - z[t]) + Sum(j, exp(m - lse) @ exp(z[j] - m) @ P(lse - z[j]), but=t), "exponential",
         "The exponential of a sum is a product."),
    Step(yhat[t] @ P(lse - z[t])
         + exp(m - lse) @ P(Sum(j, exp(z[j] - m) @ P(m - z[j]), but=t) + P(lse - m) @ P(Sum(j, exp(z[j] - m), but=t))),
         "distribute", "lse - z_j is m - z_j plus lse - m. The two sums are u and s over the other classes. If m is their largest score, "
         "no term is negative."),
))  # fmt: skip

# ---------------------------------------------------------------- all outputs together: what a kernel computes

AT = delta(t, k)
OUTPUTS = g1 @ P(L + q / 2 @ lse**2) + g2 @ lse + g3 @ log(yhat[t]) + g4 @ H
GIVEN_TRUTH = Definition(y[k], y0 @ HOT + r0 @ off[k])
COEFFICIENT = Definition(alpha, g1 @ P(p + q @ lse) + g2 - g3 - g4 @ H)
WHOLE = Definition(dz[k], yhat[k] @ P(alpha + g4 @ P(lse - z[k])) - g1 @ y[k] + g3 @ AT)
ALPHA = P(g1 @ P(p + q @ lse) + g2 - g3 - g4 @ H)

BACKWARD = Derivation("backward", "The gradient of all outputs", D(OUTPUTS, z[k]), (
    Step(g1 @ P(D(L, z[k]) + q / 2 @ D(lse**2, z[k])) + g2 @ D(lse, z[k]) + g3 @ D(log(yhat[t]), z[k]) + g4 @ D(H, z[k]), "linearity",
         "The upstream gradients are constants."),
    Step(g1 @ P(D(L, z[k]) + q / 2 @ P(2 @ lse @ D(lse, z[k]))) + g2 @ D(lse, z[k]) + g3 @ D(log(yhat[t]), z[k]) + g4 @ D(H, z[k]),
         "derivative of a square", "The derivative of f^2 is 2 f f'."),
    Step(g1 @ P(P(p @ yhat[k] - y[k]) + q / 2 @ P(2 @ lse @ yhat[k])) + g2 @ yhat[k] + g3 @ P(delta(t, k) - yhat[k])
         + g4 @ P(yhat[k] @ P(lse - z[k] - H)), "result", "All four derivatives were calculated before.",
         ("general_gradient", "lse_gradient", "log_probability_gradient", "entropy_gradient")),
    Step(yhat[k] @ P(ALPHA + g4 @ P(lse - z[k])) - g1 @ y[k] + g3 @ AT, "cancel", "2 cancels, and the terms with yhat_k are grouped."),
    Step(yhat[k] @ P(alpha + g4 @ P(lse - z[k])) - g1 @ y[k] + g3 @ AT, "definition", "The first coefficient is called alpha.", ("alpha",)),
    Step(dz[k], "definition", "This is the gradient from two coefficients, alpha and g_4, and the truth.", ("dz",)),
), where=(COEFFICIENT, WHOLE))  # fmt: skip

BACKWARD_TRUTH = Derivation("backward_truth", "The gradient of all outputs for the truth of a kernel", D(OUTPUTS, z[k]), (
    Step(dz[k], "result", "The gradient of all outputs.", ("backward",)),
    Step(yhat[k] @ P(alpha + g4 @ P(lse - z[k])) - g1 @ P(y0 @ HOT + r0 @ off[k]) + g3 @ AT, "definition",
         "The truth is y_0 at the label, plus r_0 off_k at every class.", ("dz", "y")),
    Step(alpha @ yhat[k] + g4 @ yhat[k] @ P(lse - z[k]) - g1 @ r0 @ off[k] + P(g3 - g1 @ y0) @ HOT, "distribute",
         "The last term is 0 at every class but the label."),
), where=(GIVEN_TRUTH, COEFFICIENT, WHOLE))  # fmt: skip

TRUTH_APART = Derivation("truth_apart", "The mass of the truth apart from the label", p - y[t], (
    Step(Sum(j, y[j]) - y[t], "definition", "p is the sum of the truth.", ("p",)),
    Step(y[t] + Sum(j, y[j], but=t) - y[t], "split the sum", "The term of the label is written apart from the others."),
    Step(Sum(j, y[j], but=t), "opposites", "y_t is added and subtracted."),
    Step(Sum(j, y0 @ HOTJ + r0 @ off[j], but=t), "definition", "The truth is y_0 at the label, plus r_0 off_k at every class.", ("y",)),
    Step(Sum(j, y0 * 0 + r0 @ off[j], but=t), "one-hot", "j is not the label."),
    Step(r0 @ Sum(j, off[j], but=t), "distribute", "r_0 does not depend on j."),
), where=(GIVEN_TRUTH,), lemma=True)  # fmt: skip

BACKWARD_LABEL = Derivation("backward_label", "The gradient at the label", D(OUTPUTS, z[t]), (
    Step(dz[t], "result", "The gradient of all outputs.", ("backward",)),
    Step(yhat[t] @ P(ALPHA + g4 @ P(lse - z[t])) - g1 @ y[t] + g3 @ delta(t, t), "definition", "dz_t and alpha are written out.",
         ("dz", "alpha")),
    Step(yhat[t] @ P(ALPHA + g4 @ P(lse - z[t])) - g1 @ y[t] + g3 * 1, "one-hot", "delta_tt is 1."),
    Step(g1 @ P(P(P(p - y[t]) + q @ lse) @ yhat[t] - y[t] @ P(1 - yhat[t])) + g2 @ yhat[t] + g3 @ P(1 - yhat[t]) - g4 @ H @ yhat[t]
         + g4 @ yhat[t] @ P(lse - z[t]), "distribute", "1 - yhat_t, the probability of a miss, is written apart."),
    Step(g1 @ P(P(P(r0 @ Sum(j, off[j], but=t)) + q @ lse) @ yhat[t] - y[t] @ P(1 - yhat[t])) + g2 @ yhat[t] + g3 @ P(1 - yhat[t])
         - g4 @ H @ yhat[t] + g4 @ yhat[t] @ P(lse - z[t]), "result",
         "yhat_t and 1 - yhat_t are both computed from the odds, so that no digits are lost where one of them is small.", ("truth_apart",)),
), where=(GIVEN_TRUTH, COEFFICIENT, WHOLE))  # fmt: skip

OF_ALPHA = P(g1 @ P(q @ yhat[j]) - g4 @ P(yhat[j] @ P(lse - z[j] - H)))
SECOND = Derivation("second_entry", "The second derivatives of all outputs", D(dz[k], z[j]), (
    Step(D(yhat[k] @ P(alpha + g4 @ P(lse - z[k])) - g1 @ y[k] + g3 @ AT, z[j]), "definition", "The gradient is written out.", ("dz",)),
    Step(D(yhat[k] @ P(alpha + g4 @ P(lse - z[k])), z[j]), "linearity", "The truth does not depend on the scores."),
    Step(D(yhat[k], z[j]) * P(alpha + g4 @ P(lse - z[k])) + yhat[k] * D(alpha + g4 @ P(lse - z[k]), z[j]), "product rule",
         "Both factors contain z_j."),
    Step(D(yhat[k], z[j]) * P(alpha + g4 @ P(lse - z[k])) + yhat[k] * D(ALPHA + g4 @ P(lse - z[k]), z[j]), "definition",
         "Inside the derivative, alpha is written out.", ("alpha",)),
    Step(D(yhat[k], z[j]) * P(alpha + g4 @ P(lse - z[k]))
         + yhat[k] * P(g1 @ P(q @ D(lse, z[j])) - g4 @ D(H, z[j]) + g4 @ P(D(lse, z[j]) - D(z[k], z[j]))), "linearity",
         "p and the upstream gradients are constants."),
    Step(yhat[k] @ P(delta(k, j) - yhat[j]) * P(alpha + g4 @ P(lse - z[k]))
         + yhat[k] * P(OF_ALPHA + g4 @ P(yhat[j] - D(z[k], z[j]))), "result",
         "The first derivatives are substituted.", ("softmax_gradient", "lse_gradient", "entropy_gradient")),
    Step(yhat[k] @ P(delta(k, j) - yhat[j]) * P(alpha + g4 @ P(lse - z[k])) + yhat[k] * P(OF_ALPHA + g4 @ P(yhat[j] - delta(k, j))),
         "coordinate", "The derivative of z_k by z_j is delta_kj."),
), where=(COEFFICIENT, WHOLE))  # fmt: skip

MEAN = Sum(j, yhat[j] @ v[j])
SECOND_PRODUCT = Derivation("second_product", "The Hessian of all outputs times a vector", Sum(j, D(dz[k], z[j]) * v[j]), (
    Step(Sum(j, P(SECOND.lines[-1]) * v[j]), "result", "The second derivatives are substituted.", ("second_entry",)),
    Step(yhat[k] @ P(Sum(j, delta(k, j) @ v[j]) - MEAN) @ P(alpha + g4 @ P(lse - z[k]))
         + yhat[k] @ P(g1 @ q @ P(MEAN) - g4 @ P(ENTROPY_ALONG.start) + g4 @ P(MEAN - Sum(j, delta(k, j) @ v[j]))), "distribute",
         "Each part is summed."),
    Step(yhat[k] @ P(v[k] - MEAN) @ P(alpha + g4 @ P(lse - z[k]))
         + yhat[k] @ P(g1 @ q @ P(MEAN) - g4 @ P(ENTROPY_ALONG.start) + g4 @ P(MEAN - v[k])), "one term", "delta_kj picks the term j = k."),
    Step(yhat[k] @ P(v[k] - MEAN) @ P(alpha + g4 @ P(lse - z[k])) + yhat[k] @ P(g1 @ q @ P(MEAN) - g4 @ eta + g4 @ P(MEAN - v[k])),
         "result",
         "The gradient of the entropy times v is eta.", ("entropy_along",)),
    Step(yhat[k] @ P(v[k] - mu) @ P(alpha + g4 @ P(lse - z[k])) + yhat[k] @ P(g1 @ q @ mu - g4 @ eta + g4 @ P(mu - v[k])), "definition",
         "The sum is the mean of v under the prediction.", ("mu",)),
    Step(yhat[k] @ P(P(alpha - g4) @ P(v[k] - mu) + g4 @ P(v[k] - mu) @ P(lse - z[k]) + P(g1 @ q @ mu - g4 @ eta)), "distribute",
         "yhat_k is a factor of every term."),
), where=(ALONG, COEFFICIENT, WHOLE))  # fmt: skip

APART = Sum(k, yhat[k] @ P(v[j] - v[k]), but=j)
MEAN_APART = Derivation("mean_apart", "The mean of a vector without cancellation", v[j] - APART, (
    Step(v[j] - P(yhat[j] @ P(v[j] - v[j]) + APART), "opposites", "The term k = j is 0, so that it may be added."),
    Step(v[j] - Sum(k, yhat[k] @ P(v[j] - v[k])), "join the sum", "The term and the others are the whole sum."),
    Step(v[j] - v[j] @ P(Sum(k, yhat[k])) + Sum(k, yhat[k] @ v[k]), "distribute", "v_j does not depend on k."),
    Step(v[j] - v[j] @ P(1) + Sum(k, yhat[k] @ v[k]), "result", "The predictions sum to 1.", ("softmax_sums_to_1",)),
    Step(Sum(k, yhat[k] @ v[k]), "opposites", "v_j is added and subtracted."),
    Step(mu, "definition", "The sum is the mean of v under the prediction. Where j has nearly all of the probability, "
         "the first line is v_j less a small number.", ("mu",)),
))  # fmt: skip

LOSS_BY_TRUTH = Derivation("loss_by_truth", "The derivative of the loss by the truth", D(L, y[k]), (
    Step(D(p @ lse - Sum(j, y[j] @ z[j]), y[k]), "result", "The loss is written by log-sum-exp.", ("loss_by_lse",)),
    Step(D(P(Sum(j, y[j])) @ lse - Sum(j, y[j] @ z[j]), y[k]), "definition", "p is the sum of the truth.", ("p",)),
    Step(P(Sum(j, D(y[j], y[k]))) @ lse - Sum(j, D(y[j], y[k]) @ z[j]), "linearity", "The scores do not depend on the truth."),
    Step(P(Sum(j, HOTJK)) @ lse - Sum(j, HOTJK @ z[j]), "coordinate", "The derivative of y_j by y_k is delta_jk."),
    Step(P(1) @ lse - z[k], "one term", "delta_jk picks one term of each sum."),
    Step(lse - z[k], "zero and one", "1 times lse is lse."),
))  # fmt: skip

MEANK, TRUTHV = Sum(k, yhat[k] @ v[k]), Sum(k, y[k] @ v[k])


def _and_other_outputs(of_loss: E) -> E:
    return g1 @ P(of_loss) + g2 @ mu + g3 @ P(v[t] - mu) + g4 @ eta


GRADIENT_ALONG = Derivation("gradient_along", "The gradient of all outputs times a vector", Sum(k, dz[k] @ v[k]), (
    Step(Sum(k, P(yhat[k] @ P(ALPHA + g4 @ P(lse - z[k])) - g1 @ y[k] + g3 @ AT) @ v[k]), "definition", "dz_k and alpha are written out.",
         ("dz", "alpha")),
    Step(g1 @ P(P(p + q @ lse) @ MEANK - TRUTHV) + g2 @ MEANK + g3 @ P(Sum(k, AT @ v[k]) - MEANK) + g4 @ ENTROPY_ALONG.start,
         "distribute", "Each part is summed, and the terms with each upstream gradient are grouped."),
    Step(g1 @ P(P(p + q @ lse) @ MEANK - TRUTHV) + g2 @ MEANK + g3 @ P(v[t] - MEANK) + g4 @ ENTROPY_ALONG.start, "one term",
         "The label picks v_t."),
    Step(g1 @ P(P(p + q @ lse) @ MEANK - TRUTHV) + g2 @ MEANK + g3 @ P(v[t] - MEANK) + g4 @ eta, "result",
         "The gradient of the entropy times v is eta.", ("entropy_along",)),
    Step(_and_other_outputs(P(p + q @ lse) @ mu - TRUTHV), "definition", "The sum is the mean of v under the prediction.", ("mu",)),
    Step(_and_other_outputs(P(Sum(k, y0 @ HOT + r0 @ off[k]) + q @ lse) @ mu - Sum(k, P(y0 @ HOT + r0 @ off[k]) @ v[k])), "definition",
         "The mass and the truth are written out.", ("p", "y")),
    Step(_and_other_outputs(y0 @ P(mu @ Sum(k, HOT) - Sum(k, HOT @ v[k])) + r0 @ P(mu @ Sum(k, off[k]) - Sum(k, off[k] @ v[k]))
         + q @ lse @ mu), "distribute", "The terms with y_0, r_0 and q are grouped."),
    Step(_and_other_outputs(y0 @ P(mu * 1 - v[t]) + r0 @ P(mu @ Sum(k, off[k]) - Sum(k, off[k] @ v[k])) + q @ lse @ mu), "one term",
         "The label picks one term of two sums."),
    Step(_and_other_outputs(y0 @ P(mu - v[t]) + r0 @ Sum(k, off[k] @ P(mu - v[k])) + q @ lse @ mu), "distribute",
         "This is linear in each upstream gradient, in y_0, in r_0, in q and in each off_k, so that their factors are its derivatives."),
), where=(GIVEN_TRUTH, ALONG, COEFFICIENT, WHOLE))  # fmt: skip

# ---------------------------------------------------------------- a linear head: z = W x + b

SCORE = (Definition(z[k], Sum(d, W[k, d] @ x[d]) + b[k]),)
SCOREJ = Sum(e, W[j, e] @ x[e]) + b[j]
SCOREK = Sum(e, W[k, e] @ x[e]) + b[k]

SCORE_BY_X = Derivation("score_by_x", "The derivative of a score by an input", D(z[k], x[d]), (
    Step(D(SCOREK, x[d]), "definition", "The score is written out.", ("z",)),
    Step(Sum(e, W[k, e] * D(x[e], x[d])), "linearity", "W and b do not depend on x."),
    Step(W[k, d] * D(x[d], x[d]) + Sum(e, W[k, e] * D(x[e], x[d]), but=d), "split the sum",
         "The term of the feature d is written apart from the others."),
    Step(W[k, d] * 1 + Sum(e, W[k, e] * 0, but=d), "coordinate", "The derivative of x_e by x_d is 1 where e is d, and 0 elsewhere."),
    Step(W[k, d], "zero and one", "One term remains."),
), where=SCORE)  # fmt: skip

SCORE_BY_W = Derivation("score_by_w", "The derivative of a score by a weight of its own row", D(z[k], W[k, d]), (
    Step(D(SCOREK, W[k, d]), "definition", "The score is written out.", ("z",)),
    Step(Sum(e, D(W[k, e], W[k, d]) * x[e]), "linearity", "x and b do not depend on W."),
    Step(D(W[k, d], W[k, d]) * x[d] + Sum(e, D(W[k, e], W[k, d]) * x[e], but=d), "split the sum",
         "The term of the feature d is written apart from the others."),
    Step(1 * x[d] + Sum(e, 0 * x[e], but=d), "coordinate", "The derivative of W_ke by W_kd is 1 where e is d, and 0 elsewhere."),
    Step(x[d], "zero and one", "One term remains."),
), where=SCORE)  # fmt: skip

SCORE_BY_OTHER_W = Derivation("score_by_other_w", "The derivative of a score by a weight of another row", D(z[j], W[k, d]), (
    Step(ZERO, "constant", "z_j contains the weights of row j only."),
), distinct=((j, k),), where=SCORE)  # fmt: skip

SCORE_BY_B = Derivation("score_by_b", "The derivative of a score by its bias", D(z[k], b[k]), (
    Step(D(SCOREK, b[k]), "definition", "The score is written out.", ("z",)),
    Step(D(b[k], b[k]), "linearity", "W and x do not depend on b."),
    Step(ONE, "coordinate", "The derivative of b_k by b_k is 1."),
), where=SCORE)  # fmt: skip

SCORE_BY_OTHER_B = Derivation("score_by_other_b", "The derivative of a score by another bias", D(z[j], b[k]), (
    Step(ZERO, "constant", "z_j contains b_j only."),
), distinct=((j, k),), where=SCORE)  # fmt: skip

LINEAR_X = Derivation("linear_x", "The gradient by the input", D(L, x[d]), (
    Step(Sum(k, D(L, z[k]) * D(z[k], x[d])), "chain rule", "An input changes the loss through every score."),
    Step(Sum(k, P(p @ yhat[k] - y[k]) @ W[k, d]), "result",
         "The gradient by the scores is multiplied by the weights: dX = dZ W.", ("general_gradient", "score_by_x")),
), where=SCORE)  # fmt: skip


def _own(name: str, title: str, by: E, slope: E, same: Derivation, other: Derivation, why: str) -> Derivation:
    """The gradient by a parameter that only the score k contains."""
    product = D(L, z[j]) * D(z[j], by)
    return Derivation(name, title, D(L, by), (
        Step(Sum(j, product), "chain rule", "A parameter changes the loss through the scores."),
        Step(D(L, z[k]) * D(z[k], by) + Sum(j, product, but=k), "split the sum",
         "Only the score z_k contains it, so the term j = k is written apart."),
        Step(P(p @ yhat[k] - y[k]) * slope + Sum(j, P(p @ yhat[j] - y[j]) * 0, but=k), "result",
             "The gradient by the scores and the derivatives of the scores are substituted.", ("general_gradient", same.name, other.name)),
        Step(P(p @ yhat[k] - y[k]) @ slope if slope != ONE else p @ yhat[k] - y[k], "zero and one", why),
    ), where=SCORE)  # fmt: skip


LINEAR_W = _own("linear_w", "The gradient by a weight", W[k, d], x[d], SCORE_BY_W, SCORE_BY_OTHER_W,
                "The gradient by the score is multiplied by the input.")  # fmt: skip
LINEAR_B = _own(
    "linear_b", "The gradient by a bias", b[k], ONE, SCORE_BY_B, SCORE_BY_OTHER_B, "The gradient by the bias is the gradient by the score."
)

LR, PR, YHATR, YR, XR = Name("L")[r], Name("p")[r], yhat[r, k], y[r, k], x[r, d]
LINEAR_ROWS = Derivation("linear_rows", "The gradient by a weight, over a batch", D(Sum(r, LR), W[k, d]), (
    Step(Sum(r, D(LR, W[k, d])), "linearity", "The loss of a batch is the sum of its rows' losses."),
    Step(Sum(r, P(PR @ YHATR - YR) @ XR), "result", "Each row adds its gradient: dW = dZ^T X.", ("linear_w",)),
), where=SCORE)  # fmt: skip


class Remark(NamedTuple):
    """A sentence between the derivations, and the formulas that it introduces: definitions (head = body), or expressions."""

    words: str
    formulas: tuple[Definition | E, ...] = ()


class Part(NamedTuple):
    title: str
    remarks: tuple[Remark, ...]
    derivations: tuple[Derivation, ...]  # in the order in which they rest on each other

    @property
    def chains(self) -> tuple[Derivation, ...]:
        """The derivations that stand by themselves. The others are shown inside the steps that use them."""
        inside = {lemma.name for one in self.derivations for n in range(len(one.steps)) for lemma in self.lemmas(one, n)}
        return tuple(one for one in self.derivations if one.name not in inside)

    def lemmas(self, one: Derivation, n: int) -> Iterator[Derivation]:
        """The lemmas of this part that are shown inside step `n` (from 0), with the letters that they have in its line."""
        for name in (*one.steps[n].uses, *one.steps[n].because):
            lemma = next((other for other in self.derivations if other.lemma and other.name == name), None)
            if lemma:
                yield lemma.renamed(_letters_in(one.lines[n], lemma))


def _letters_in(line: E, lemma: Derivation) -> dict[str, str]:
    """The letters that the indices of a lemma have where its start stands in a line."""
    for e in walk(line):
        found: dict[str, str] = {}
        if matches(lemma.start, e, found) and all(found[a] != found[b] for a, b in lemma.distinct):
            return found
    raise ValueError(f"{lemma.name} does not start in the line that uses it")


NUMERATOR, DENOMINATOR_OF = u[()], v[()]
QUOTIENT_RULE = Definition(
    Name("f'")[()], (Name("u'")[()] @ DENOMINATOR_OF - NUMERATOR @ Name("v'")[()]) / DENOMINATOR_OF**2
)  # of functions of one number; Softmax.v has it as d_div

PARTS = (
    Part("Part 1: Detailed proof of the Softmax Derivative", (
        Remark("Objective: to calculate how an output probability yhat_j changes when an input score z_k changes slightly.",
               (D(yhat[j], z[k]),)),
        Remark("The softmax function calculates the output probability of class j from all the scores z.", (DEFINITIONS[0],)),
        Remark("Its derivative needs the quotient rule: if f(x) = u(x)/v(x), then", (QUOTIENT_RULE,)),
        Remark("Here, u is the numerator of yhat_j, and v is its denominator.",
               (Definition(NUMERATOR, U), Definition(DENOMINATOR_OF, V))),
        Remark("There are two cases. Every score is in the denominator v, but z_j is the only score in the numerator u. "
               "So the derivative differs where k is j and where it is not."),
    ), (NUMERATOR_SAME, DENOMINATOR, RESULT_1, NUMERATOR_OTHER, RESULT_2)),
    Part("Part 2: Detailed proof of the Cross-Entropy Loss Derivative", (
        Remark("Objective: to calculate how the loss L changes when one predicted probability yhat_k changes and the others do not.",
               (D(L, yhat[k]),)),
        Remark("The cross-entropy loss compares the prediction yhat with the truth y.", (DEFINITIONS[1],)),
        Remark("Here, y_j is the ground-truth label: 1 for the correct class and 0 for the others (one-hot). "
               "Every prediction is positive, so that it has a logarithm."),
    ), (LOG_SAME, LOG_OTHER, RESULT_3)),
    Part("Part 3: Combining with the Chain Rule (the Convergence Point)", (
        Remark("Objective: to calculate how the loss changes when a score changes slightly. Results 1, 2 and 3 go into the chain rule.",
               (D(L, z[k]),)),
    ), (OWN_TERM, OTHER_TERMS, ONE_HOT_SUM, GRADIENT)),
    Part("Any truth", (Remark("The gradient for a truth y of any sum p, and the same gradient derived without a quotient."),),
         (SOFTMAX_SUM, GENERAL, LOSS_BY_LSE, LSE_GRADIENT, SHORT_WAY)),
    Part("Shifts", (Remark("If one number is added to every score, the prediction, the loss and the gradient stay the same."),),
         (SOFTMAX_SHIFT, LSE_SHIFT, LOSS_SHIFT)),
    Part("The second derivative", (Remark("Results 1 and 2 also give the Hessian of the loss, and show that the loss is convex."),),
         (HESSIAN_SAME, HESSIAN_OTHER, HESSIAN_PRODUCT, CENTRED, CURVATURE)),
    Part("Log-probability and entropy", (Remark("A row has further outputs besides the loss: log-probabilities, and the entropy H."),),
         (LOG_PROBABILITY, LOG_PROBABILITY_GRADIENT, SOFTMAX_BY_LSE, JACOBIAN, ENTROPY, ENTROPY_GRADIENT, ENTROPY_ALONG)),
    Part("Options", (
        Remark("Class weights, label smoothing, probabilities and ignored rows are choices of y. z-loss, temperature and softcap are not: "
               "z-loss adds to the loss, and the other two transform the scores."),),
         (ONE_HOT, ONE_HOT_LOSS, WEIGHTED, SMOOTHED, SMOOTHED_WEIGHTS, PROBABILITIES, IGNORED, IGNORED_LOSS, Z_LOSS,
          *TEMPERATURE, *SOFTCAP, SOFTCAP_SLOPE, SOFTCAP_SECOND, SOFTCAP_CHAIN, SOFTCAP_HESSIAN)),
    Part("Sums in parts", (
        Remark("A row can be summed in parts, and apart from its label, so that nothing overflows and small losses keep their digits."),),
         (MERGE, SUM_OF_U, MERGE_U, TANGENT_S, TANGENT_U, MERGE_TANGENT_S, MERGE_TANGENT_U, READ_LSE,
          LABEL_APART, TINY_LOSS, MISS, ENTROPY_APART)),
    Part("All outputs together", (
        Remark("One backward pass computes the gradient of the loss with z-loss, of lse, of the label's log-probability and of the "
               "entropy, for any upstream gradients g_1 to g_4.", (OUTPUTS,)),),
         (BACKWARD, BACKWARD_TRUTH, TRUTH_APART, BACKWARD_LABEL, SECOND, SECOND_PRODUCT, MEAN_APART, LOSS_BY_TRUTH, GRADIENT_ALONG)),
    Part("A linear head", (Remark("The scores are computed from an input x by a matrix and a bias: z = W x + b."),),
         (SCORE_BY_X, SCORE_BY_W, SCORE_BY_OTHER_W, SCORE_BY_B, SCORE_BY_OTHER_B, LINEAR_X, LINEAR_W, LINEAR_B, LINEAR_ROWS)),
)  # fmt: skip
ARTICLE = PARTS[:3]
DERIVATIONS = {one.name: one for part in PARTS for one in part.derivations}
