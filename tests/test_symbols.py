"""The code of partials.py, formula.py, functional.py and kernels/reference.py computes lines of the derivation, for any number of classes.

tests/traced.py runs the code on a row with any number of columns. The results are expressions, which symbolic.py compares with the lines of
proof/derivation.py, as it compares the lines with each other. Coq proves these lines. The hypotheses of a trace are a `Case`. The cases
cover all finite logits: the label has a larger logit than all others, the same as the largest other, or a smaller one, or it is the only
class. Further cases have a masked class, or no label among the columns, as in a shard.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import traced
from traced import ANY, LABEL, MASKED, ONE, OTHER, PARTS, ZERO, Case, Columns, Label, Output, Table, columns, m, number, off, v, z

from softxent import formula, functional, partials
from softxent.formula import Numbers
from softxent.kernels import reference
from softxent.partials import LIBRARIES, Partials, Tangents, identity
from softxent.proof.derivation import ALPHA, DERIVATIONS, GIVEN_TRUTH, OUTPUTS, SLOPE, Derivation, L, N, T, c, dz, eps, eta, g1, g2, g3, g4

from softxent.proof.derivation import i, j, k, lse, mu, q, r0, t, y0, yhat  # isort: skip
from softxent.proof.expr import D, Definition, E, Name, Sum, exp, log, rebuild, reindex
from softxent.shared import IGNORED, LARGEST, LARGEST_LOGIT

CODE = SimpleNamespace(formula=formula, partials=partials, functional=functional, reference=reference)
ABOVE, TIED, BELOW = Case(), Case(LABEL + OTHER + ANY, 0, OTHER), Case(LABEL + OTHER + ANY, -1, OTHER)  # the label's logit, and the others
ONLY, MASK = Case(LABEL), Case(LABEL + OTHER + ANY + MASKED, -1, OTHER)
CASES = {"above": ABOVE, "tied": TIED, "below": BELOW, "only": ONLY, "mask": MASK}
LETTERS = {"y": y0, "r": r0, "q": q, "g": g1, "l": g2, "b": g3, "n": g4}  # of the numbers of a row, in the derivation


class Row(NamedTuple):
    """A row with any number of classes, and its numbers, which stand for those of the derivation."""

    case: Case
    z: Columns
    label: Label
    numbers: Numbers
    off: Columns | None
    letters: dict[E, E]  # what the letters of the derivation are

    def derivation(self, name: str) -> Derivation:
        """Return a derivation with the definitions for the truth and the numbers of the row."""
        whole = DERIVATIONS[name]
        where = whole.where if "y" in whole.definitions else (*whole.where, GIVEN_TRUTH)
        return whole._replace(where=tuple(one._replace(body=traced.replaced(one.body, self.letters)) for one in where))

    def is_line(self, got: Columns, name: str, line: int | E = -1, derivation: Derivation | None = None, **at: str) -> None:
        """Assert that `got` is a line of a derivation, or another expression with its definitions, at every column k that is not masked."""
        derivation = self.derivation(name) if derivation is None else derivation
        want = traced.replaced(reindex(derivation.lines[line] if isinstance(line, int) else line, at), self.letters)
        for column, entry in got.entries.items():
            if column != MASKED:
                there = reindex(want, {k: column}) if column else want
                assert traced.equal(self.case, entry, there, derivation), f"{name}, column {column}"


def row(case: Case, without: tuple[str, ...] = (), shared: bool = False, label: str | int = LABEL, **numbers: E) -> Row:
    """Return a row of a case. The numbers in `without` are 0, and others may be given."""
    given = {name: numbers.get(name, ZERO if name in without else letter) for name, letter in LETTERS.items()}
    scores = columns(case, lambda column: -math.inf if column == MASKED else z[column])
    offs = columns(case, lambda column: ZERO if column == MASKED else off[column], "C" if shared else "RC")
    return Row(case, scores, Label(case, label), Numbers(*(number(case, x) for x in given.values())), offs,
               {letter: given[name] for name, letter in LETTERS.items()})  # fmt: skip


def parts(code, of: Row) -> Partials:
    return code.formula.partials(of.z, of.label, of.off)


def tangents(code, of: Row) -> Tangents:
    return code.formula.tangents(of.z, direction(of), of.label, of.off)


def gradient(code, of: Row, x: Partials | None = None) -> Columns:
    x = parts(code, of) if x is None else x
    return code.formula.gradient(of.z, x, of.label, code.formula.coefficients(x, of.numbers), of.off)


def direction(of: Row) -> Columns:
    return columns(of.case, lambda column: v[column])


# ---- the laws; `code` is formula.py, partials.py, functional.py and kernels/reference.py, or a version with a mistake ----


def outputs_are_the_theorems(code, case: Case) -> None:
    """The loss with its z-loss, lse, the log-probability of the label and the entropy are the four terms of OUTPUTS."""
    for shared in (True, False):
        of = row(case, shared=shared)
        loss, lse_, logprob, entropy, correct = code.formula.outputs(parts(code, of), *of.numbers[:3])
        of.is_line(loss, "backward_truth", L + q / 2 * lse**2)
        of.is_line(loss - of.numbers.q * lse_**2 / 2, "loss_by_lse")
        of.is_line(lse_, "read_lse")
        of.is_line(logprob, "log_probability", j=LABEL)
        of.is_line(entropy, "entropy_by_lse")
        upstream = zip(of.numbers[3:], (loss, lse_, logprob, entropy), strict=True)
        of.is_line(sum(g * output for g, output in upstream), "backward_truth", OUTPUTS)
        assert correct.number is (case.order >= 0)


def partials_are_the_sums(code, case: Case) -> None:
    """m is the largest logit apart from the label's. The other fields are sums that do not depend on m, once it is taken out."""
    of = row(case)
    x = parts(code, of)
    top, scale = (number(case, e) for e in ((m, exp(m)) if ANY in case.columns else (ZERO, ONE)))
    assert x.m.number == (m if ANY in case.columns else -math.inf)
    every = {"zt": z[t], "wt": off[t], "o": Sum(i, off[i], but=t)}
    for name, want in every.items():
        of.is_line(getattr(x, name), "sum_of_u", want)
    of.is_line(top * x.o - x.d, "sum_of_u", Sum(i, off[i] * z[i], but=t))
    of.is_line(scale * x.s, "label_apart", exp(z[t]) * DERIVATIONS["label_apart"].lines[-1])
    of.is_line(scale * (top * x.s - x.u) + number(case, exp(z[t]) * z[t]), "sum_of_u")


def tangents_are_the_sums(code, case: Case) -> None:
    """The fields are sums that depend neither on m nor on c, once these are taken out."""
    of = row(case)
    x, y = parts(code, of), tangents(code, of)
    top, scale = (number(case, e) for e in ((m, exp(m)) if ANY in case.columns else (ZERO, ONE)))
    of.is_line(y.vt, "sum_of_u", v[t])
    of.is_line(y.c * x.o - y.o, "sum_of_u", Sum(i, off[i] * v[i], but=t))
    along_v = y.c * x.s - y.s
    at_label = number(case, exp(z[t]) * v[t])
    of.is_line(scale * along_v + at_label, "tangent_s")
    of.is_line(scale * (top * along_v - (y.c * x.u - y.u)) + at_label * number(case, z[t]), "tangent_u")


def merged_tangents_are_the_sums_of_both(code, case: Case) -> None:
    """What the fields are, once m and c are taken out, is added, whichever of both c is taken."""

    def part(n: int) -> tuple[Partials, Tangents]:
        x = Partials(*(number(case, -math.inf if name == "zt" else Name(f"{name}{n}")[()]) for name in Partials._fields[:-1]))
        letters = {"c": "h", "s": "A", "u": "B"}
        return x, Tangents(*(number(case, Name(f"{letters.get(name, name)}{n}")[()]) for name in Tangents._fields))

    (a, da), (b, db) = part(1), part(2)
    if not case.order:  # two maxima that are equal are one number with two names
        return
    for one, other in (((a, da), (b, db)), ((b, db), (a, da))):
        x, y = code.partials.merge(one[0], other[0]), code.partials.merge_tangents(*one, *other)
        of, scale = row(case), number(case, exp(x.m.number))
        assert y.c.number in (da.c.number, db.c.number)
        of.is_line(y.vt, "merge_parts", (da.vt + db.vt).number)
        of.is_line(y.c * x.o - y.o, "merge_parts", (da.c * a.o - da.o + db.c * b.o - db.o).number)
        s = y.c * x.s - y.s
        of.is_line(scale * s, "merge_tangent_s")
        of.is_line(scale * (x.m * s - (y.c * x.u - y.u)), "merge_tangent_u")


def merged_parts_are_the_sums_of_both(code, case: Case) -> None:
    """m is the larger one. What the other fields are, once m is taken out, is added. The identity changes nothing."""

    def part(n: int, zt: Any) -> Partials:
        return Partials(*(number(case, zt if name == "zt" else Name(f"{name}{n}")[()]) for name in Partials._fields[:-1]))

    a, b, of = part(1, z[t]), part(2, -math.inf), row(case)
    for x in (code.partials.merge(a, b), code.partials.merge(b, a)):
        assert x.m.number in PARTS and case.sign(x.m.number, PARTS[0]) in (0, 1) and case.sign(x.m.number, PARTS[1]) in (0, 1)
        assert x.zt.number == z[t]
        of.is_line(x.o, "merge_parts", a.o.number + b.o.number)
        of.is_line(x.wt, "merge_parts", a.wt.number + b.wt.number)
        if case.order:  # two maxima that are equal are one number with two names
            of.is_line(x.m * x.o - x.d, "merge_parts", (a.m * a.o - a.d + b.m * b.o - b.d).number)
            scale = number(case, exp(x.m.number))
            of.is_line(scale * x.s, "merge_parts")
            of.is_line(scale * (x.m * x.s - x.u), "merge_u")
    nothing = Partials(*(number(case, float(field[0])) for field in identity(1)[:-1]))
    for x in (code.partials.merge(a, nothing), code.partials.merge(nothing, a)):
        for got, want in zip(x[:-1], a[:-1], strict=True):
            of.is_line(got, "merge_parts", want.number)


def finish_reads_the_theorems(code, case: Case) -> None:
    """nll = log(1 + e^a), miss = 1 - yhat_t, over = lse - m; top + lift = lse, where top is the largest logit."""
    of = row(case)
    x = parts(code, of)
    (nll, miss, over), (top, lift_) = code.partials.finish(x), code.partials.peak(x)
    of.is_line(nll, "tiny_loss", 0)
    of.is_line(miss, "miss")
    if ANY in case.columns:
        of.is_line(nll, "tiny_loss")
        of.is_line(over, "read_lse", lse - m)
    assert top.number in [e for sign, e in ((1, z[t]), (-1, m)) if case.order * sign >= 0]
    of.is_line(lift_, "read_lse", lse - top.number)


def softmax_and_lse_are_the_definitions(code, case: Case) -> None:
    of = row(case)
    x = parts(code, of)
    yhat_, away = code.formula.softmax(of.z, x), code.formula.surprisal(of.z, x)
    for line in (0, -1):
        of.is_line(yhat_, "lse_gradient", line)
        of.is_line(-away, "log_probability", line, j=k)
    of.is_line(away, "loss_by_truth")
    of.is_line(code.partials.lse(x), "read_lse")
    assert yhat_.entries.get(MASKED, ZERO) == ZERO


def entropy_is_the_theorem(code, case: Case) -> None:
    of = row(case)
    entropy = code.partials.entropy(parts(code, of))
    for line in (0, -1):
        of.is_line(entropy, "entropy_apart", line)


def coefficients_are_the_theorems(code, case: Case) -> None:
    """a is alpha, e and c are n and g r, and h + e yhat_t nll is the gradient at the label."""
    of = row(case)
    a, e, c, h = code.formula.coefficients(parts(code, of), of.numbers)
    for got, want in ((a, ALPHA), (e, g4), (c, g1 * r0)):
        of.is_line(got, "backward_truth", want)
    of.is_line(h, "backward_label", DERIVATIONS["backward_label"].lines[-1] + g4 * yhat[t] * log(yhat[t]))


def gradient_is_the_theorem(code, case: Case) -> None:
    """The gradient, at every class, is the derivative of OUTPUTS, and at the label it is backward_label. It is 0 at a masked class."""
    for shared in (True, False):
        of = row(case, shared=shared)
        got = gradient(code, of)
        for line in (0, -1):
            of.is_line(got, "backward_truth", line)
        of.is_line(number(case, got.entries[LABEL]), "backward_label")
        assert got.entries.get(MASKED, ZERO) == ZERO


def curvature_is_the_theorem(code, case: Case) -> None:
    """The second derivative of all outputs times v is second_product, with the mean of mean_apart and the product of entropy_along."""
    of = row(case)
    x, y = parts(code, of), tangents(code, of)
    along = code.partials.along(x, y)
    product = code.formula.hessian(of.z, direction(of), of.label, x, along, of.numbers)
    for line in (0, -1):
        of.is_line(product, "second_product", line)
        of.is_line(along.lse, "mean_apart", line, j=LABEL)
        of.is_line(along.entropy, "entropy_along", line)
    of.is_line(y.c - along.lead, "mean_apart", j=LABEL)
    assert product.entries.get(MASKED, ZERO) == ZERO


def derivatives_by_the_numbers_are_the_theorems(code, case: Case) -> None:
    """<dz, v> is gradient_along, whose factors of the numbers and of off are what `along` gives."""
    of = row(case)
    x, along = parts(code, of), direction(of)
    dot = (gradient(code, of, x) * along).sum(axis=1)
    found = code.partials.along(x, tangents(code, of))
    for line in (0, -1):
        of.is_line(dot, "gradient_along", line)
        of.is_line(found.lse, "mean_apart", line, j=LABEL)
    of.is_line(found.logprob, "mean_apart", v[t] - mu)
    of.is_line(found.off, "gradient_along", Sum(j, off[j] * (v[j] - mu)))


def transform_is_the_theorem(code, case: Case) -> None:
    """z / T as a function of the caller's logits, its first and second derivative: temperature_* and softcap_*."""
    of, x = row(case), columns(case, lambda column: Name("x")[column])
    temperature, cap = number(case, T, ""), number(case, c, "")
    score, slope, second = code.formula.transformed(x, temperature, math.inf)
    of.is_line(score / temperature, "temperature_same", z[k])
    score, capped_slope, capped_second = code.formula.transformed(x, temperature, cap)
    of.is_line(score / temperature, "softcap_same", z[k])
    for line in (0, -1):
        of.is_line(slope + number(case, 0, ""), "temperature_same", line)
        of.is_line(capped_slope, "softcap_same", line)
        of.is_line(capped_slope, "softcap_slope", line)
        of.is_line(capped_second, "softcap_second", line)
    assert second == 0


def shards_hold_their_columns_of_the_gradient(code, case: Case) -> None:
    """The gradient of a shard, from the partial sums of the whole row, consists of its columns, whether it contains the label or not."""
    of = row(case)
    x = parts(code, of)
    for mine in {case.columns.replace(LABEL, ""), LABEL, ANY, LABEL + ANY} - {"", case.columns}:
        shard = row(replace(case, columns=mine))
        shard = shard._replace(label=Label(shard.case, LABEL if LABEL in mine else -1), numbers=of.numbers)
        of.is_line(gradient(code, shard, x), "backward_truth")


def without_a_label_the_truth_is_off_alone(code, case: Case) -> None:
    """The label matches no column and y = 0, as for a shard without the label. There is no log-probability of it."""
    if ANY in case.columns:
        case = Case(OTHER + ANY, -1, OTHER)
        of = row(case, without=("y", "b"), label=-1)
        x = parts(code, of)
        loss, lse_, logprob, entropy, correct = code.formula.outputs(x, *of.numbers[:3])
        of.is_line(loss, "backward_truth", L + q / 2 * lse**2)
        of.is_line(lse_, "read_lse")
        of.is_line(entropy, "entropy_by_lse")
        assert logprob.number == -math.inf and correct.number is False
        of.is_line(gradient(code, of, x), "backward_truth")
        of.is_line(code.formula.softmax(of.z, x), "lse_gradient")
        of.is_line(number(case, exp(m)) * (x.m * x.s - x.u), "sum_of_u")
        of.is_line(x.m * x.o - x.d, "sum_of_u", Sum(i, off[i] * z[i]))
        of.is_line(x.o, "sum_of_u", Sum(i, off[i]))
        assert x.zt.number == -math.inf and x.wt.number == ZERO


def without_coefficients_the_gradient_is_exactly_0(code, case: Case) -> None:
    """If the truth or the upstream gradients are 0, the gradient is the number 0, not an expression, whatever the logits."""
    for zero in (("y", "r", "q", "l", "b", "n"), ("g", "l", "b", "n")):
        of = row(case, without=zero)
        for bad in (None, math.nan, math.inf, -math.inf):
            scores = of.z if bad is None else columns(case, lambda column, bad=bad: bad)
            got = gradient(code, of._replace(z=scores))
            assert all(entry == ZERO for entry in got.entries.values())


def every_option_is_its_theorem(code, case: Case) -> None:
    """With the numbers that truth.py has for an option, the code gives the last line of the derivation of that option."""
    w, u = Name("w"), Name("u")
    options = {
        "one_hot": (ONE, ZERO, None),
        "weighted": (w[t], ZERO, None),
        "smoothed": (1 - eps, ONE, eps / N),
        "smoothed_weighted": ((1 - eps) * w[t], ONE, eps / N * w[k]),
        "probabilities": (ZERO, ONE, w[k] * ((1 - eps) * u[k] + eps / N)),
        "ignored": (ZERO, ZERO, None),
    }
    for name, (y, r, truth) in options.items():
        of = row(case, without=("q", "l", "b", "n"), y=y, r=r, g=ONE)
        shared = truth and columns(case, lambda column, e=truth: ZERO if column == MASKED else reindex(e, {k: column}))
        of.is_line(gradient(code, of._replace(off=shared)), f"{name}_gradient")


# ---- the backend `formula`


class Computed(NamedTuple):
    result: Table
    parts: Table
    dz: Output
    product: Output
    gauss_newton: Output
    numbers: Table


def run(code, of: Row, transform=(1, math.inf)) -> Computed:
    got = Computed(*(Table(Output() for _ in range(n)) if n else Output() for n in (5, 7, 0, 0, 0, 4)))
    common = (of.label, Table(of.numbers), of.off, transform)
    code.reference.fused(of.z, *common, got.dz, got.result, got.parts, 1)
    for gauss_newton, out in ((True, got.gauss_newton), (False, got.product)):
        code.reference.curvature(of.z, direction(of), *common, gauss_newton, out, got.numbers, 1)
    return got


def the_backend_applies_the_transform(code, case: Case) -> None:
    """functional.py gives the outputs at the transformed logits, and by the chain rule the derivatives by the others.

    The transformed logits are z, their slope is w and its derivative is b. With those of a softcap, the product is softcap_hessian.
    """
    w, b = Name("w"), Name("b")
    slope, second = (columns(case, lambda column, by=by: by[column]) for by in (w, b))
    whole = DERIVATIONS["second_product"]

    def along(e: E) -> E:  # v is a direction of the logits that are given
        if e.op == "at" and e.args[0] in ("mu", "eta"):
            return along(whole.definitions[e.args[0]].body)
        return e * w[e.args[1]] if e.op == "at" and e.args[0] == "v" else rebuild(e, along)

    for of in (row(case), row(case, without=("q", "l", "b", "n"), g=ONE)):
        with patch.object(code.formula, "transformed", lambda *_, of=of: (of.z, slope, second)):
            got = run(code, of, (1.0, 3.0))
        for output, wanted in zip(got.result, code.formula.outputs(parts(code, of), *of.numbers[:3]), strict=True):
            assert output.value.number == wanted.number
        product = w[k] * along(whole.lines[-1])
        of.is_line(got.dz.value, "second_product", w[k] * dz[k])
        of.is_line(got.gauss_newton.value, "second_product", product)
        of.is_line(got.product.value, "second_product", product + dz[k] * b[k] * v[k])
        for found, want in zip(got.numbers, (mu, v[t] - mu, Sum(j, off[j] * (v[j] - mu)), eta), strict=True):
            of.is_line(found.value, "second_product", along(want))
    softcap = of.derivation("softcap_hessian")
    softcap = softcap._replace(where=(GIVEN_TRUTH, Definition(w[k], SLOPE), Definition(b[k], D(SLOPE, Name("x")[k]))))
    of.is_line(got.product.value, "softcap_hessian", -1, softcap)


def special_labels_of_the_backend(code, case: Case) -> None:
    """An ignored row is not read, and all that it gives is the number 0. LARGEST is the class with the largest off, or else logit, and
    LARGEST_LOGIT the latter."""
    for bad in (None, math.nan, math.inf, -math.inf):
        of = row(case, label=IGNORED)
        got = run(code, of if bad is None else of._replace(z=columns(case, lambda column, bad=bad: bad)))
        assert [part.value.number for part in got.parts] == [traced.lifted(float(nothing[0])) for nothing in identity(1)[:-1]]
        written = (*got.result, *got.numbers, got.dz, got.product, got.gauss_newton)
        assert all(entry in (ZERO, False) for one in written for entry in one.value.entries.values())
    for kept in (True, False):
        for shared in (True, False):
            of = row(case, label=LARGEST, shared=shared)
            of = of if kept else of._replace(off=None)
            largest = case.top_of_off if kept and not shared else case.top
            for special, column in ((LARGEST, largest), (LARGEST_LOGIT, case.top)):
                got, want = (run(code, of._replace(label=Label(case, label))) for label in (special, column))
                for one, other in zip(flat(got), flat(want), strict=True):
                    assert one.value.entries == other.value.entries


def flat(got: Computed) -> list[Output]:
    return [one for field in got for one in (field if isinstance(field, Table) else [field])]


def log_softmax_is_the_definition(code, case: Case) -> None:
    of, out = row(case), Output()
    code.reference.log_softmax(of.z, number(case, r0), (1, math.inf), out, 1)
    of.is_line(out.value, "log_probability", r0 * log(yhat[k]))


LAWS = [f for f in list(globals().values()) if inspect.isfunction(f) and list(inspect.signature(f).parameters) == ["code", "case"]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_what_ships_is_the_theorem(law, case):
    law(CODE, case)


# ---- the laws can fail ----

SOURCES = {name: inspect.getsource(getattr(CODE, name)) for name in ("partials", "formula", "functional", "reference")}
MUTATIONS = [  # code, the same code with a mistake, and the law that fails with it
    ("times(x.o, half_over))", "0)", outputs_are_the_theorems),
    ("lse(x) ** 2 / 2", "lse(x) ** 2", outputs_are_the_theorems),
    ("times(y + r * x.wt, half_nll)", "times(y, half_nll)", outputs_are_the_theorems),
    ("lse(x), -nll, entropy(x)", "lse(x), nll, entropy(x)", outputs_are_the_theorems),
    ("lse(x), -nll, entropy(x)", "x.m, -nll, entropy(x)", outputs_are_the_theorems),
    ("(x.zt >= x.m) &", "(x.zt <= x.m) &", outputs_are_the_theorems),
    ("& (x.zt > -np.inf)", "| (x.zt == -np.inf)", without_a_label_the_truth_is_off_alone),
    ("g * r, h)", "r, h)", coefficients_are_the_theorems),
    ("times(rest, hit) - times(at, miss)", "times(at, miss) - times(rest, hit)", gradient_is_the_theorem),
    ("at = y + r * x.wt", "at = y", gradient_is_the_theorem),
    ("rest = r * x.o + times(q, lse(x))", "rest = r * x.o + q", gradient_is_the_theorem),
    ("a = times(g, at + rest) + l", "a = at + rest + l", gradient_is_the_theorem),
    ("+ l - b - down", "+ l + b - down", gradient_is_the_theorem),
    ("+ l - b - down", "- b - down", gradient_is_the_theorem),
    ("+ l - b - down", "+ l - b", gradient_is_the_theorem),
    ("down = times(n, entropy(x))", "down = entropy(x)", gradient_is_the_theorem),
    ("hit = xp.exp(-nll)", "hit = miss", coefficients_are_the_theorems),
    ("times(b, miss) -", "times(b, hit) -", gradient_is_the_theorem),
    ("+ times(l, hit)", "+ times(l, miss)", gradient_is_the_theorem),
    ("- times(down, hit)", "- down", coefficients_are_the_theorems),
    ("times(e * yhat, surprisal(z, x))", "times(e * yhat, z)", gradient_is_the_theorem),
    ("h + times(e[:, 0] * xp.exp(-nll), nll)[:, None]", "h", gradient_is_the_theorem),
    ("times(c, off))", "off)", gradient_is_the_theorem),
    ("times(c, off))", "times(a, off))", gradient_is_the_theorem),
    ("xp.where(at_label(z, label), h", "xp.where(at_label(z, z.argmax(axis=1)), h", shards_hold_their_columns_of_the_gradient),
    ("others = xp.where(hot, 0, off)", "others = xp.where(hot, off, off)", outputs_are_the_theorems),
    ("rest = xp.where(hot, -np.inf, z)", "rest = z + 0", outputs_are_the_theorems),
    ("rest = xp.where(hot, -np.inf, z)", "rest = xp.where(hot, 0, z)", outputs_are_the_theorems),
    ("xp.where(m == -np.inf, 0, m)[:, None]", "m[:, None]", partials_are_the_sums),
    ("times(e, below)", "times(e, -below)", entropy_is_the_theorem),
    ("times(e, below)", "(e * below)", partials_are_the_sums),
    ("(shift / 2 - z / 2) / temperature", "(z / 2 - shift / 2) / temperature", without_a_label_the_truth_is_off_alone),
    ("dz = xp.where((a != 0) | (e != 0) | (c != 0) | (h != 0), dz, 0.0)", "dz = dz + 0", without_coefficients_the_gradient_is_exactly_0),
    ("(a != 0) | (e != 0) |", "(a != 0) |", gradient_is_the_theorem),
    ("(c != 0) | (h != 0)", "(c != 0)", gradient_is_the_theorem),
    ("(a - e) * apart", "a * apart", curvature_is_the_theorem),
    ("times(e * apart, surprisal(z, x)) + da", "times(apart, surprisal(z, x)) + da", curvature_is_the_theorem),
    ("times(e * apart, surprisal(z, x)) + da", "times(e * apart, surprisal(z, x))", curvature_is_the_theorem),
    ("da = times(of.g * of.q, y.lse)", "da = times(of.q, y.lse)", curvature_is_the_theorem),
    ("- times(k.e, y.entropy)", "+ times(k.e, y.entropy)", curvature_is_the_theorem),
    ("at, (v - c) + lead)", "at, (v - c) - lead)", curvature_is_the_theorem),
    ("where(at_label(z, label), at, (v", "where(at_label(z, label), lead, (v", curvature_is_the_theorem),
    ("s = times(xp.exp(-below), away)", "s = times(xp.exp(-below), v)", tangents_are_the_sums),
    ("times(s, below).sum(axis=1), o, xp", "s.sum(axis=1), o, xp", tangents_are_the_sums),
    ("times(xp.where(hot, 0, off), away)", "times(off, away)", tangents_are_the_sums),
    ("lead = times(unit, y.s) + times(hit, away)", "lead = times(unit, y.s)", curvature_is_the_theorem),
    ("times(unit, y.s) - times(miss, away)", "times(unit, y.s) - times(hit, away)", derivatives_by_the_numbers_are_the_theorems),
    ("- y.o - times(x.wt, away)", "- y.o", derivatives_by_the_numbers_are_the_theorems),
    ("times(lead, entropy(x)) - times(unit", "times(lead, entropy(x)) + times(unit", curvature_is_the_theorem),
    ("- times(hit, times(away, nll))", "- times(hit, away)", curvature_is_the_theorem),
    ("c = xp.where(a.m == m, da.c, db.c)", "c = da.c + db.c", merged_tangents_are_the_sums_of_both),
    ("y.s + times(x.s, more)", "y.s", merged_tangents_are_the_sums_of_both),
    ("y.u + times(x.u, more) + times(s, down)", "y.u + times(x.u, more)", merged_tangents_are_the_sums_of_both),
    ("y.o + times(x.o, more)", "y.o - times(x.o, more)", merged_tangents_are_the_sums_of_both),
    (
        "yhat: Array = library(z).exp(-surprisal(z, x))",
        "yhat: Array = library(z).exp(surprisal(z, x))",
        softmax_and_lse_are_the_definitions,
    ),
    (", z, x.temperature) + lift[:, None]", ", z, x.temperature)", softmax_and_lse_are_the_definitions),
    ("cap * tanh), slope", "tanh), slope", transform_is_the_theorem),
    ("return x, 1 / temperature, 0.0", "return x, 1.0, 0.0", transform_is_the_theorem),
    ("** -2.0 / temperature", "** -2.0", transform_is_the_theorem),
    ("(-2 / cap) * tanh * slope", "(2 / cap) * tanh * slope", transform_is_the_theorem),
    ("(-2 / cap) * tanh * slope", "(-2 / cap) * tanh", transform_is_the_theorem),
    ("    m = xp.maximum(a.m, b.m)\n    down_a", "    m = a.m\n    down_a", merged_parts_are_the_sums_of_both),
    ("a.s * factor_a", "a.s", merged_parts_are_the_sums_of_both),
    ("a.d + times(a.o, down_a)", "a.d", merged_parts_are_the_sums_of_both),
    ("a.u + times(a.s, down_a)", "a.u", merged_parts_are_the_sums_of_both),
    ("+ times(factor_b, b.u", "+ times(factor_a, b.u", merged_parts_are_the_sums_of_both),
    ("times(xp.exp(-nll), nll) + times(xp.exp(-over)", "times(xp.exp(-over)", entropy_is_the_theorem),
    ("x.u + times(x.s, over))", "x.u + over)", entropy_is_the_theorem),
    ("x.zt > x.m, nll, over", "x.zt < x.m, nll, over", finish_reads_the_theorems),
    ("xp.exp(-xp.logaddexp(0, -a))", "xp.exp(-xp.logaddexp(0, a))", finish_reads_the_theorems),
    ("x.m, x.zt, x.temperature) + log_s", "x.m, x.zt, x.temperature)", finish_reads_the_theorems),
    ("nll == np.inf, gap + xp.log(x.s) / 2, nll / 2)", "nll == np.inf, gap + xp.log(x.s) / 2, nll)", outputs_are_the_theorems),
    ("over == np.inf, -gap, over / 2)", "over == np.inf, -gap, over)", outputs_are_the_theorems),
    ("log_s + xp.logaddexp(0, -a))", "log_s)", softmax_and_lse_are_the_definitions),
    ("x, n), of.off), of.slope)", "x, n), of.off), 1)", the_backend_applies_the_transform),
    ("formula.hessian(of.z, times(v, of.slope)", "formula.hessian(of.z, v", the_backend_applies_the_transform),
    ("formula.tangents(of.z, times(v, of.slope)", "formula.tangents(of.z, v", the_backend_applies_the_transform),
    ("partials.along(x, y), n), of.slope)", "partials.along(x, y), n), 1)", the_backend_applies_the_transform),
    ("times(v, of.bend)", "times(times(v, of.slope), of.bend)", the_backend_applies_the_transform),
    ("if not gauss_newton:", "if gauss_newton:", the_backend_applies_the_transform),
    ("Along(*_without(ignored, found._replace(logprob=logprob)))", "found", special_labels_of_the_backend),
    (
        "Outputs(*_without(ignored, formula.outputs(x, of.y, of.r, of.q)))",
        "formula.outputs(x, of.y, of.r, of.q)",
        special_labels_of_the_backend,
    ),
    ("where(ignored, none, part)", "part", special_labels_of_the_backend),
    ("Numbers(*_without(of.ignored, given))", "Numbers(*given)", special_labels_of_the_backend),
    ("library(hv).where((~of.ignored & (size != 0))[:, None], hv, 0.0)", "hv", special_labels_of_the_backend),
    ("times(-scale[:, None], formula.surprisal(z, apart))", "times(-scale[:, None], z)", log_softmax_is_the_definition),
    ("z if off is None or off.ndim == 1 else off", "z", special_labels_of_the_backend),
    ("where(largest_logit, z.argmax(axis=1), label)", "label", special_labels_of_the_backend),
]


def mutant(was: str, now: str) -> SimpleNamespace:
    """Return formula.py, partials.py, functional.py and kernels/reference.py, with one mistake in one of them."""
    assert sum(text.count(was) for text in SOURCES.values()) == 1, f"{was!r} is no longer written there, once"
    code = SimpleNamespace()
    for name, text in SOURCES.items():
        module = ModuleType(f"softxent.kernels.{name}" if name == "reference" else f"softxent.{name}")
        module.__package__ = module.__name__.rpartition(".")[0]
        exec(compile(text.replace(was, now), name, "exec"), vars(module))
        for below, ours in vars(code).items():  # what the module imports from the others is theirs, with the mistake
            whole = vars(CODE)[below]
            imported = {one: vars(ours)[one] for one, x in vars(whole).items() if callable(x) and vars(module).get(one) is x}
            vars(module).update(imported | ({below: ours} if vars(module).get(below) is whole else {}))
        setattr(code, name, module)
        code.partials.LIBRARIES = LIBRARIES
    return code


@pytest.mark.parametrize("was,now,law", MUTATIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_mistake_in_the_code_is_refused(was, now, law):
    code = mutant(was, now)
    with pytest.raises(AssertionError):
        for case in CASES.values():
            law(code, case)


def test_each_law_refuses_a_mistake():
    assert {law for *_, law in MUTATIONS} >= set(LAWS) - {every_option_is_its_theorem}


def test_an_unchanged_copy_is_not_refused():
    for law in LAWS:
        law(mutant("dz_k   = g", "dz_k   = g"), BELOW)
