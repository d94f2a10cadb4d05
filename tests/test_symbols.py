"""The code of formula.py and partials.py, run on symbols, gives lines of the derivation, for N up to 4 columns.

Each input number is a pair of an expression and a sample value. The sample decides comparisons in the code: which number is larger, or
whether it is 0. So one run proves equality for all numbers in the same order as the samples, and the runs for all orders together prove it
for all numbers. The expected results are lines of proof/derivation.py, which Coq proves, evaluated for N columns. A score is written log E
with E > 0. The results are then fractions in these E and in logarithms of their sums, which are compared at a random point, modulo a prime.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import operator
from dataclasses import dataclass
from functools import cache, partial, reduce
from itertools import combinations, permutations, product
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import sympy

from softxent import formula, partials
from softxent.formula import Numbers
from softxent.kernels import reference
from softxent.kernels.reference import IGNORED, LARGEST
from softxent.partials import LIBRARIES, Partials, identity
from softxent.proof.derivation import ALPHA, DERIVATIONS, OUTPUTS, Derivation
from softxent.proof.expr import E, unfold

# ---- arrays of symbols, for NumPy's functions ----


@dataclass(frozen=True)
class Value:
    expr: Any  # an expression of SymPy; None if the sample is infinite or NaN
    sample: float


def lift(x: Any) -> Value:
    if isinstance(x, Value):
        return x
    return Value(sympy.Rational(float(x)) if math.isfinite(x) else None, float(x))


@cache
def log_of(x: Any) -> Any:
    """Return log x as a sum over the factors of x, which is a unique form."""
    total = sympy.S.Zero
    for part, sign in zip(sympy.fraction(sympy.cancel(x)), (1, -1), strict=True):
        number, factors = sympy.factor_list(part)
        total += sign * (sympy.log(number) + sum(n * sympy.log(f) for f, n in factors))
    return total


def arithmetic(f, *x):
    """Return an operation on values. Infinite values and NaN have no expression, and an operation that would make them finite fails."""
    with np.errstate(all="ignore"):
        sample = float(f(*(np.float64(one.sample) for one in x)))
    return Value(f(*(one.expr for one in x)) if math.isfinite(sample) else None, sample)


def exp(x):
    return Value(sympy.exp(x.expr) if x.sample > -math.inf else sympy.S.Zero, np.exp(x.sample)) if x.sample < math.inf else x


def log(x):
    return Value(log_of(x.expr), np.log(x.sample)) if 0 < x.sample < math.inf else lift(-math.inf if x.sample == 0 else x.sample)


def logaddexp(a, b):
    low, high = sorted((a, b), key=lambda one: one.sample)
    plain = low.sample == -math.inf or not math.isfinite(low.sample + high.sample)
    return high if plain else log(arithmetic(operator.add, exp(a), exp(b)))


def larger(a, b):
    return b if b.sample > a.sample or math.isnan(b.sample) else a


def equal(a, b):
    assert (a.sample == b.sample) == (a.expr == b.expr) or not math.isfinite(a.sample), f"the sample is a special case: {a}, {b}"
    return a.sample == b.sample


def ordinary(f, symbolic=None):
    """Return an operation that is applied to both the samples and the expressions."""
    return lambda *x: arithmetic(f if symbolic is None else lambda *one: (f if isinstance(one[0], float) else symbolic)(*one), *x)


ELEMENTWISE = {
    np.exp: exp, np.log: log, np.logaddexp: logaddexp, np.maximum: larger,
    np.tanh: ordinary(np.tanh, sympy.tanh), np.cosh: ordinary(np.cosh, sympy.cosh), np.square: ordinary(lambda x: x * x),
    np.absolute: lambda x: x if x.sample >= 0 else arithmetic(operator.neg, x),
    np.add: ordinary(operator.add), np.subtract: ordinary(operator.sub), np.negative: ordinary(operator.neg),
    np.multiply: ordinary(operator.mul), np.divide: ordinary(operator.truediv), np.power: ordinary(operator.pow),
}  # fmt: skip
COMPARED = {
    np.equal: equal, np.not_equal: lambda a, b: not equal(a, b),
    np.greater: lambda a, b: a.sample > b.sample, np.less: lambda a, b: a.sample < b.sample,
    np.greater_equal: lambda a, b: a.sample >= b.sample, np.less_equal: lambda a, b: a.sample <= b.sample,
}  # fmt: skip


class Symbols(np.ndarray):
    """An array of `Value`s to which NumPy's functions can be applied, together with ordinary arrays and numbers."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [boxed(x).view(np.ndarray) for x in inputs]
        f = np.frompyfunc(ELEMENTWISE.get(ufunc) or COMPARED[ufunc], 2 if method == "reduce" else len(plain), 1)
        if "initial" in options:
            options["initial"] = lift(options["initial"])
        with np.errstate(all="ignore"):  # comparisons with NaN
            out = getattr(f, method)(*plain, **{name: x for name, x in options.items() if x is not None})
        return out.astype(bool) if ufunc in COMPARED else out.view(Symbols)

    def __array_function__(self, func, types, args, kwargs):
        if func is np.where:
            where, a, b = args
            return np.where(where, boxed(a).view(np.ndarray), boxed(b).view(np.ndarray)).view(Symbols)
        if func is np.zeros_like:
            return boxed(np.zeros(self.shape))
        if func is np.max:
            return args[0].max(**kwargs)
        raise NotImplementedError(func)

    def argmax(self, axis):
        return np.vectorize(lambda one: one.sample)(self.view(np.ndarray)).argmax(axis)


def boxed(x: Any) -> Symbols:
    if isinstance(x, Symbols):
        return x
    x = np.asarray(x)
    out = np.empty(x.shape, object)
    for at in np.ndindex(x.shape):
        out[at] = lift(x[at])
    return out.view(Symbols)


def symbols(name: str, samples: Any, of=lambda s: s) -> Symbols:
    """Return an array of symbols, named by their positions, so that all of them differ."""
    samples = np.asarray(samples, float)
    out = np.empty(samples.shape, object)
    for at in np.ndindex(samples.shape):
        out[at] = Value(of(sympy.Symbol("_".join([name, *map(str, at)]), positive=True)), float(samples[at]))
    return out.view(Symbols)


PRIME = 2**521 - 1


@cache
def at_a_point(e: Any) -> int:
    """Return a fraction of polynomials in symbols, and in functions of them, at a random point, modulo the prime.

    The functions are logarithms of irreducible polynomials (`log_of`) and tanh. They are algebraically independent of each other and of the
    symbols, so that each is a coordinate of the point. Two different fractions agree there with a probability below 1e-150.
    """
    if e.is_Rational:
        return e.p * pow(e.q, -1, PRIME) % PRIME
    if e.is_Add or e.is_Mul:
        return reduce(lambda a, b: (a + b if e.is_Add else a * b) % PRIME, map(at_a_point, e.args))
    if e.is_Pow and e.exp.is_Integer:
        return pow(at_a_point(e.base), int(e.exp), PRIME)
    assert e.is_Symbol or e.func in (sympy.log, sympy.tanh), e
    return int.from_bytes(hashlib.sha512(sympy.srepr(e).encode()).digest() * 2, "big") % PRIME


def same(got: Any, want: Any) -> bool:
    return None not in (got, want) and at_a_point(sympy.sympify(got)) == at_a_point(sympy.sympify(want))


def by_score(f: Any, z: Any) -> Any:
    """Return the derivative of f with respect to the score z = log E: E times the derivative with respect to E."""
    return sympy.exp(z) * sympy.diff(f, sympy.exp(z))


# ---- the lines of the theorems, for N columns ----


class Line:
    """The values of the lines of a derivation, for given vectors and numbers. Definitions are substituted."""

    def __init__(self, name: str, **given: Any):
        self.derivation: Derivation = DERIVATIONS[name]
        self.given, self.memo = given, {}

    def __call__(self, line: int | E = -1, **at: int) -> Any:
        at = {"t": self.given.get("t", -1), **at}
        return self.value(self.derivation.lines[line] if isinstance(line, int) else line, tuple(sorted(at.items())))

    def value(self, e: E, at: tuple) -> Any:
        if (e, at) not in self.memo:
            self.memo[e, at] = self.compute(e, at)
        return self.memo[e, at]

    def compute(self, e: E, at: tuple) -> Any:
        index, a = dict(at), e.args
        if e.op == "num":
            return sympy.Integer(a[0])
        if e.op == "delta":
            return sympy.Integer(index[a[0]] == index[a[1]])
        if e.op == "sum":
            inner = lambda n: self.value(a[2], tuple(sorted({**index, a[0]: n}.items())))  # noqa: E731
            return sum((inner(n) for n in range(len(self.given["z"])) if a[1] is None or n != index[a[1]]), sympy.S.Zero)
        if e.op == "at":
            if a[0] in self.given:
                value = self.given[a[0]]
                return value[index[a[1]]] if a[1:] else value
            return self.value(unfold(e, self.derivation.definitions[a[0]]), at)
        if e.op == "D":
            f, by = (self.value(x, at) for x in a)
            return sympy.diff(f, by) if by.is_Symbol else by_score(f, by)
        arithmetic = {
            "()": lambda x: x, "neg": operator.neg, "+": operator.add, "-": operator.sub, "*": operator.mul, "@": operator.mul,
            "/": operator.truediv, "^": operator.pow, "exp": sympy.exp, "log": log_of, "tanh": sympy.tanh,
        }  # fmt: skip
        return arithmetic[e.op](*(self.value(x, at) for x in a))


# ---- the rows: every order of N scores, every label ----


class Rows(NamedTuple):
    z: Symbols  # [R, N]
    label: np.ndarray  # [R]
    numbers: Numbers  # of Symbols [R]
    off: Symbols | None  # [N], [R, N] or None

    def with_numbers(self, **numbers: Any) -> Rows:
        """Return the rows with other numbers, each for all rows or for each of them."""
        return self._replace(numbers=self.numbers._replace(**{name: x + boxed(np.zeros(len(self.z))) for name, x in numbers.items()}))

    def truth(self, i: int) -> list[Any]:
        """Return the truth of the row i at each class: y at the label plus r off."""
        y, r = self.numbers.y[i].expr, self.numbers.r[i].expr
        return [r * off + y * int(k == self.label[i]) for k, off in enumerate(self.off_of(i))]

    def off_of(self, i: int) -> list[Any]:
        return [sympy.S.Zero] * self.z.shape[1] if self.off is None else [o.expr for o in (self.off if self.off.ndim == 1 else self.off[i])]

    def line(self, name: str, i: int, **more: Any) -> Line:
        """Return a derivation for the row i, with its letters for the numbers. q is twice the coefficient of the z-loss."""
        y0, r0, q, *upstream = (number[i].expr for number in self.numbers)
        numbers = {"y0": y0, "r0": r0, "q": q, "lam": q / 2, **{f"g{n}": g for n, g in enumerate(upstream, 1)}}
        return Line(name, z=[s.expr for s in self.z[i]], y=self.truth(i), off=self.off_of(i), t=self.label[i], **{**numbers, **more})

    def columns(self, k: list[int]) -> tuple[Symbols, np.ndarray, Symbols | None]:
        """Return z, label and off of some columns. A label that is not among them matches none."""
        label = np.array([k.index(t) if t in k else -1 for t in self.label])
        return self.z[:, k], label, None if self.off is None else self.off[..., k]


OFFS = ("none", "shared", "rows")
SAMPLE = (0.3, 1.9, -0.8, 1.1)
NUMBERS = {"y": 0.7, "r": 0.9, "q": 0.1, "g": 1.3, "l": 0.4, "b": 0.6, "n": 0.2}


def rows_of(n: int, off: str = "rows") -> Rows:
    orders = list(permutations(SAMPLE[:n]))
    every = list(product(orders, range(n))) if n < 4 else [(order, i % n) for i, order in enumerate(orders)]
    z = symbols("E", [order for order, _ in every], sympy.log)
    count = len(every)
    numbers = Numbers(*(symbols(name, np.linspace(a, 2 * a, count)) for name, a in NUMBERS.items()))
    shape = {"none": None, "shared": n, "rows": (count, n)}[off]
    return Rows(z, np.array([t for _, t in every]), numbers, None if shape is None else symbols("off", np.full(shape, 0.25)))


CODE = SimpleNamespace(formula=formula, partials=partials, reference=reference)
UPSTREAM = ("g", "l", "b", "n")  # of the loss, lse, the log-probability and the entropy
LIBRARIES[Symbols] = SimpleNamespace(**{**vars(np), "float64": lambda a: a})


def parts(code, p: Rows) -> Partials:
    return code.formula.partials(p.z, p.label, p.off)


def gradient(code, p: Rows, x: Partials | None = None) -> Symbols:
    x = parts(code, p) if x is None else x
    return code.formula.gradient(p.z, x, p.label, code.formula.coefficients(x, p.numbers), p.off)


def directions(p: Rows) -> Symbols:
    return symbols("v", np.sqrt(np.arange(1, p.z.size + 1)).reshape(p.z.shape))


def expressions(row: Symbols) -> list[Any]:
    return [one.expr for one in row]


# ---- the laws; `code` is formula.py, partials.py and kernels/reference.py, or a version with a mistake ----


def everywhere(got: Symbols, line, columns: list[int] | None = None, line_number: int = -1) -> None:
    """Assert that got[i, k] is the last line of line(i) at k, or another one. `columns` are the columns of got."""
    for i in range(len(got)):
        want = line(i)
        for k, of in enumerate(columns or range(got.shape[1])):
            assert same(got[i, k].expr, want(line_number, k=of)), f"row {i}, column {of}"


def outputs_are_the_theorems(code, p: Rows) -> None:
    """The loss is - sum truth log yhat + q/2 lse^2, and without z-loss the line p lse - <truth, z> of loss_by_lse.

    lse, the log-probability of the label and the entropy are the lines of their derivations. All together are OUTPUTS.
    """
    x = parts(code, p)
    loss, lse, logprob, entropy, correct = code.formula.outputs(x, *p.numbers[:3])
    for i, t in enumerate(p.label):
        whole, z = p.line("z_loss_gradient", i), p.line("read_lse", i)
        assert same(loss[i].expr, whole(whole.derivation.start.args[0])), f"row {i}"
        assert same(loss[i].expr, p.line("loss_by_lse", i)() + p.numbers.q[i].expr / 2 * z() ** 2), f"row {i}"
        assert same(lse[i].expr, z()), f"row {i}"
        assert all(same(logprob[i].expr, p.line("log_probability", i)(n, j=t)) for n in (0, -1)), f"row {i}"
        assert all(same(entropy[i].expr, p.line("entropy_by_lse", i)(n)) for n in (0, -1)), f"row {i}"
        assert bool(correct[i]) == all(one.sample <= p.z[i, t].sample for one in p.z[i])
        together = sum(p.numbers._asdict()[g][i].expr * out[i].expr for g, out in zip(UPSTREAM, (loss, lse, logprob, entropy), strict=True))
        assert same(together, p.line("backward", i)(OUTPUTS)), f"row {i}"


def entropy_is_the_theorem(code, p: Rows) -> None:
    """The entropy is computed from the sums apart from the label: entropy_apart."""
    x = parts(code, p)
    for i, h in enumerate(code.partials.entropy(x)):
        alone = p.z.shape[1] == 1
        assert same(h.expr, 0 if alone else p.line("entropy_apart", i, m=x.m[i].expr)()), f"row {i}"
        if not alone:
            m, s, u, zt = (field[i].expr for field in (x.m, x.s, x.u, x.zt))
            every, others = p.line("sum_of_u", i, m=m), sympy.exp(m) * (m * s - u)
            assert same(others, every() - sympy.exp(zt) * zt) and same(every(0), every()), f"row {i}"


def gradient_is_the_theorem(code, p: Rows) -> None:
    """The gradient for all upstream gradients, at every class and at the label: backward, backward_truth and backward_label."""
    got = gradient(code, p)
    for name in ("backward", "backward_truth"):
        everywhere(got, lambda i, name=name: p.line(name, i))
    for i, t in enumerate(p.label):
        assert same(got[i, t].expr, p.line("backward_label", i)()), f"row {i}"


def gradient_of_each_output_is_the_theorem(code, p: Rows) -> None:
    """With one upstream gradient of 1, the gradient is that of the derivation of this output."""
    names = ("z_loss_gradient", "lse_gradient", "log_probability_gradient", "entropy_gradient")
    for only, name in zip(UPSTREAM, names, strict=True):
        got = gradient(code, p.with_numbers(**{one: float(one == only) for one in UPSTREAM}))
        everywhere(got, lambda i, name=name: partial(p.line(name, i), j=p.label[i]))


def gradient_without_z_loss_is_the_theorem(code, p: Rows) -> None:
    """With q = 0 and an upstream gradient of the loss alone, the gradient is g (p yhat_k - truth_k). The others need not be given."""
    p = p.with_numbers(q=0, l=0, b=0, n=0)
    x = parts(code, p)
    few = code.formula.Numbers(*p.numbers[:4])
    got = code.formula.gradient(p.z, x, p.label, code.formula.coefficients(x, few), p.off)
    for i, k in np.ndindex(got.shape):
        assert same(got[i, k].expr, p.numbers.g[i].expr * p.line("general_gradient", i)(k=k)), f"row {i}, column {k}"


def gradient_is_the_derivative_of_the_outputs(code, p: Rows) -> None:
    """The gradient is the derivative of the outputs that the code computes, each times its upstream gradient."""
    x = parts(code, p)
    outputs, dz = code.formula.outputs(x, *p.numbers[:3]), gradient(code, p, x)
    for i, k in np.ndindex(dz.shape):
        total = sum(p.numbers._asdict()[g][i].expr * out[i].expr for g, out in zip(UPSTREAM, outputs[:4], strict=True))
        assert same(dz[i, k].expr, by_score(total, p.z[i, k].expr)), f"row {i}, column {k}"


def coefficients_are_the_theorems(code, p: Rows) -> None:
    """a is alpha, e and c are n and g r, and h + e yhat_t nll is the gradient at the label."""
    a, e, c, h = code.formula.coefficients(parts(code, p), p.numbers)
    for i, t in enumerate(p.label):
        line, at_label = p.line("backward", i), p.line("backward_label", i)
        assert same(a[i].expr, line(ALPHA)) and same(e[i].expr, p.numbers.n[i].expr), f"row {i}"
        assert same(c[i].expr, p.numbers.g[i].expr * p.numbers.r[i].expr), f"row {i}"
        entropy_there = p.numbers.n[i].expr * p.line("softmax_by_lse", i)(j=t) * -p.line("log_probability", i)(j=t)
        assert same(h[i].expr, at_label() - entropy_there), f"row {i}"


def softmax_and_lse_are_the_definitions(code, p: Rows) -> None:
    x = parts(code, p)
    yhat, away = code.formula.softmax(p.z, x), code.formula.surprisal(p.z, x)
    everywhere(yhat, lambda i: p.line("lse_gradient", i))
    everywhere(yhat, lambda i: p.line("lse_gradient", i), line_number=0)
    everywhere(-away, lambda i: lambda line, k: p.line("log_probability", i)(line, j=k))
    for i, lse in enumerate(code.partials.lse(x)):
        assert same(lse.expr, p.line("read_lse", i)()), f"row {i}"


def finish_reads_the_theorems(code, p: Rows) -> None:
    """nll = log(1 + e^a), miss = 1 - yhat_t, over = lse - m; top + lift = lse, top the largest score."""
    x = parts(code, p)
    (nll, miss, over), (top, lift_) = code.partials.finish(x), code.partials.peak(x)
    for i in range(len(p.z)):
        lse = p.line("read_lse", i)()
        assert top[i] == max(p.z[i], key=lambda s: s.sample) and same(lift_[i].expr, lse - top[i].expr)
        alone = p.z.shape[1] == 1  # without other classes, loss and miss are 0
        assert same(nll[i].expr, 0 if alone else p.line("tiny_loss", i, m=x.m[i].expr)())
        assert same(miss[i].expr, 0 if alone else p.line("miss", i)())
        assert alone or same(over[i].expr, lse - x.m[i].expr)


def curvature_is_the_theorem(code, p: Rows) -> None:
    """The second derivative of all outputs times v is second_product, with the mean of mean_apart and the product of entropy_along."""
    v, x = directions(p), parts(code, p)
    product, mean, dentropy = code.formula.curvature(p.z, v, x, p.numbers)
    everywhere(product, lambda i: p.line("second_product", i, v=expressions(v[i])))
    for i in range(len(p.z)):
        apart, along = (p.line(name, i, v=expressions(v[i])) for name in ("mean_apart", "entropy_along"))
        assert same(mean[i].expr, apart()) and all(same(mean[i].expr, apart(0, j=j)) for j in range(p.z.shape[1])), f"row {i}"
        assert all(same(dentropy[i].expr, along(n)) for n in (0, -1)), f"row {i}"


def curvature_of_the_loss_is_the_theorem(code, p: Rows) -> None:
    """Without z-loss, and with upstream gradients 1, 0, 0, 0, the product is p yhat o (v - <yhat, v>)."""
    p, v = p.with_numbers(q=0, g=1, l=0, b=0, n=0), directions(p)
    product, _, _ = code.formula.curvature(p.z, v, parts(code, p), p.numbers)
    everywhere(product, lambda i: p.line("hessian_product", i, v=expressions(v[i])))


def curvature_is_the_derivative_of_the_gradient(code, p: Rows) -> None:
    """The product with v is the derivative, along v, of the gradient that the code computes; and so for the entropy."""
    v, x = directions(p), parts(code, p)
    dz, entropy = gradient(code, p, x), code.partials.entropy(x)
    product, _, dentropy = code.formula.curvature(p.z, v, x, p.numbers)

    def along(f: Any, i: int) -> Any:
        return sum(by_score(f, z.expr) * one.expr for z, one in zip(p.z[i], v[i], strict=True))

    for i, k in np.ndindex(dz.shape):
        assert same(product[i, k].expr, along(dz[i, k].expr, i)), f"row {i}, column {k}"
    assert all(same(dentropy[i].expr, along(entropy[i].expr, i)) for i in range(len(p.z)))


def derivatives_by_the_numbers_are_the_theorems(code, p: Rows) -> None:
    """<dz, v> is gradient_along. Its derivatives by the numbers and by off are what `curvature` and `centred` give.

    The loss is linear in the truth, with the factors lse - z_k of loss_by_truth.
    """
    v, x = directions(p), parts(code, p)
    dz, loss = gradient(code, p, x), code.formula.outputs(x, *p.numbers[:3]).loss
    _, mean, dentropy = code.formula.curvature(p.z, v, x, p.numbers)
    apart, centre = code.formula.centred(code.formula.softmax(p.z, x), v)
    for i, t in enumerate(p.label):
        given = p.numbers._asdict()
        y, r, q, g, l, b, n = (number[i].expr for number in p.numbers)  # noqa: E741
        dot = sum(one.expr * by.expr for one, by in zip(dz[i], v[i], strict=True))
        assert same(dot, p.line("gradient_along", i, v=expressions(v[i]))()) and same(mean[i].expr, centre[i].expr), f"row {i}"
        lse, off = p.line("read_lse", i)(), p.off_of(i)
        by_off = sum(o * one.expr for o, one in zip(off, apart[i], strict=True))
        wanted = {
            y: -g * apart[i, t].expr, r: -g * by_off, q: g * lse * mean[i].expr,
            l: mean[i].expr, b: apart[i, t].expr, n: dentropy[i].expr,
        }  # fmt: skip
        assert len(wanted) + 1 == len(given) and all(same(sympy.diff(dot, number), by) for number, by in wanted.items()), f"row {i}"
        assert same(sympy.diff(loss[i].expr, y), p.line("loss_by_truth", i)(k=t)), f"row {i}"
        for k, o in enumerate(off):
            if o != 0:
                assert same(sympy.diff(dot, o), -g * r * apart[i, k].expr), f"row {i}, column {k}"
                assert same(sympy.diff(loss[i].expr, o), r * p.line("loss_by_truth", i)(k=k)), f"row {i}, column {k}"


EXP = sympy.exp
HYPERBOLIC = (
    (sympy.tanh, lambda x: (EXP(2 * x) - 1) / (EXP(2 * x) + 1)),
    (sympy.sinh, lambda x: (EXP(x) - EXP(-x)) / 2),
    (sympy.cosh, lambda x: (EXP(x) + EXP(-x)) / 2),
)


def transform_is_the_theorem(code, p: Rows) -> None:
    """z as a function of the caller's logits, its first and second derivative: temperature_* and softcap_*."""
    x, t, c = (symbols(name, [s]) for name, s in (("x", 0.4), ("T", 1.7), ("c", 2.5)))
    raw, w = x[0].expr, sympy.Symbol("w", positive=True)

    def agree(a: Any, b: Any) -> bool:
        """Compare after x = c log w, with which e^(x/c) is w."""
        return same(
            *(reduce(lambda f, by: f.replace(*by), HYPERBOLIC, sympy.sympify(f).subs(raw, c[0].expr * sympy.log(w))) for f in (a, b))
        )

    for name, temperature, cap in (("temperature", t, math.inf), ("softcap", boxed([1.0]), c), ("softcap", t, c)):
        given = {"x": [raw], "T": temperature[0].expr, "c": c[0].expr}
        same_line = Line(f"{name}_same", **given)
        z, slope, second = ((f + boxed([0.0]))[0].expr for f in code.formula.transformed(x, temperature, cap))
        assert agree(z, same_line(same_line.derivation.definitions["z"].body, k=0))
        assert agree(slope, same_line(k=0)) and agree(slope, sympy.diff(z, raw)) and agree(second, sympy.diff(slope, raw))
        if name == "softcap":
            assert all(agree(slope, Line("softcap_slope", **given)(n, k=0)) for n in (0, -1))
            assert all(agree(second, Line("softcap_second", **given)(n, k=0)) for n in (0, -1))


def parts_merge_into_the_whole(code, p: Rows) -> None:
    """Every split of the columns in two, in both orders. Outputs and gradient depend on the partial sums only, so they agree too."""
    merge, whole, columns = code.partials.merge, parts(code, p), range(p.z.shape[1])
    for size in columns:
        for mine in combinations(columns, size):
            shards = [p.columns([k for k in columns if (k in mine) == side]) for side in (True, False)]
            a, b = (code.formula.partials(*shard) if shard[0].size else identity(len(p.z)) for shard in shards)
            for both in (merge(a, b), merge(b, a)):
                for field, got, want in zip(Partials._fields, both, whole, strict=True):
                    for x, w in zip(boxed(got), boxed(want), strict=True):
                        assert x == w or same(x.expr, w.expr), f"{field} of {mine}"
            for i in range(len(p.z)):
                given = {"m1": a.m[i], "s1": a.s[i], "m2": b.m[i], "s2": b.s[i], "m": whole.m[i]}
                if all(math.isfinite(lift(x).sample) for x in given.values()):
                    sums = p.line("merge_parts", i, **{name: x.expr for name, x in given.items()})
                    us = p.line("merge_u", i, **{name: x.expr for name, x in (given | {"u1": a.u[i], "u2": b.u[i]}).items()})
                    (m, s, u), scale = (x[i].expr for x in (whole.m, whole.s, whole.u)), sympy.exp(whole.m[i].expr)
                    assert same(sums(0), sums()) and same(scale * s, sums())
                    assert same(us(0), us()) and same(scale * (m * s - u), us())


def shards_hold_their_columns_of_the_gradient(code, p: Rows) -> None:
    """The gradient of a shard, from the partial sums of the whole row, consists of its columns, whether it contains the label or not."""
    whole, columns = parts(code, p), range(p.z.shape[1])
    k = code.formula.coefficients(whole, p.numbers)
    for mine in (list(c) for size in columns[1:] for c in combinations(columns, size)):
        z, label, off = p.columns(mine)
        everywhere(code.formula.gradient(z, whole, label, k, off), lambda i: p.line("backward", i), mine)


def without_a_label_the_truth_is_off_alone(code, p: Rows) -> None:
    """The label matches no column and y = 0, as for a shard without the label. There is no log-probability of it."""
    for nowhere in (-1, p.z.shape[1]):
        q = p.with_numbers(y=0, b=0)._replace(label=np.full(len(p.z), nowhere))
        x = parts(code, q)
        out = code.formula.outputs(x, *q.numbers[:3])
        for i in range(len(q.z)):
            whole = q.line("z_loss_gradient", i)
            assert same(out.loss[i].expr, whole(whole.derivation.start.args[0])) and same(out.lse[i].expr, q.line("read_lse", i)())
            assert same(out.entropy[i].expr, q.line("entropy_by_lse", i)()) and not out.correct[i]
            assert out.logprob[i].sample == -math.inf
        everywhere(gradient(code, q, x), lambda i, q=q: q.line("backward", i))
        softmax_and_lse_are_the_definitions(code, q)


BAD = (lift(math.nan), lift(math.inf), lift(-math.inf))


def without_coefficients_the_gradient_is_exactly_0(code, p: Rows) -> None:
    """If the truth or the upstream gradients are 0, the gradient is the number 0, not an expression, even if there is a NaN in the row."""
    for zero in (dict.fromkeys(("y", "r", "q", "l", "b", "n"), 0), dict.fromkeys(UPSTREAM, 0)):
        for bad in (p.z[0, 0], *BAD):
            z = p.z.copy()
            z[:, 0] = bad
            assert all(lift(one) == Value(sympy.S.Zero, 0.0) for one in gradient(code, p.with_numbers(**zero)._replace(z=z)).ravel())


def coefficients_may_cancel(code, p: Rows) -> None:
    """If the first coefficient is 0 and another one is not, the gradient is not 0 but the line `backward`."""
    down = p.numbers.n * code.partials.entropy(parts(code, p))
    for numbers in ({"g": 0, "l": p.numbers.b, "n": 0}, {"g": 0, "l": down, "b": 0}):
        q = p.with_numbers(**numbers)
        assert (code.formula.coefficients(parts(code, q), q.numbers).a == 0).all()
        everywhere(gradient(code, q), lambda i, q=q: q.line("backward", i))


def a_masked_class_is_not_there(code, p: Rows) -> None:
    """With a logit of -inf at another class than the label, the partial sums are those of the other columns, and so is the curvature.

    Its gradient is 0.
    """
    for k in range(p.z.shape[1]):
        z, others = p.z.copy(), [c for c in range(p.z.shape[1]) if c != k]
        z[:, k] = lift(-math.inf)
        rows = p.label != k
        if rows.any():
            numbers, v = Numbers(*(number[rows] for number in p.numbers)), directions(p)[rows]
            q = Rows(z[rows], p.label[rows], numbers, None)
            z_there, label_there, _ = p._replace(z=p.z[rows], label=p.label[rows], off=None).columns(others)
            x, want = parts(code, q), code.formula.partials(z_there, label_there)
            assert all(a == b or same(a.expr, b.expr) for got, field in zip(x, want, strict=True) for a, b in zip(got, field, strict=True))
            there = Rows(z_there, label_there, numbers, None)
            for got, wanted in (
                (gradient(code, q, x), gradient(code, there, want)),
                (code.formula.curvature(q.z, v, x, numbers)[0], code.formula.curvature(z_there, v[:, others], want, numbers)[0]),
            ):
                assert all(one.expr == 0 for one in got[:, k])
                assert all(same(a.expr, b.expr) for a, b in zip(got[:, others].ravel(), wanted.ravel(), strict=True))


def every_option_is_its_theorem(code, p: Rows) -> None:
    """With the numbers that truth.py has for an option, the code gives the last line of the derivation of that option."""
    n, rows = p.z.shape[1], len(p.z)
    eps, w, u = symbols("eps", np.full(rows, 0.1)), symbols("w", np.ones(n)), symbols("u", np.full((rows, n), 0.4))
    one, zero, row = boxed(np.ones(rows)), boxed(np.zeros(rows)), (slice(None), None)
    smooth = eps[row] / n
    options = {
        "one_hot": (one, zero, None),
        "weighted": (w[p.label], zero, None),
        "smoothed": (1 - eps, one, smooth + boxed(np.zeros((rows, n)))),
        "smoothed_weighted": ((1 - eps) * w[p.label], one, smooth * w),
        "probabilities": (zero, one, w * ((1 - eps)[row] * u + smooth)),
        "ignored": (zero, zero, None),
    }
    for name, (y, r, off) in options.items():
        got = gradient(code, p.with_numbers(y=y, r=r, q=0, g=1, l=0, b=0, n=0)._replace(off=off))
        everywhere(got, partial(option_line, p, f"{name}_gradient", eps=eps, w=w, u=u))


def option_line(p: Rows, name: str, i: int, *, eps: Symbols, w: Symbols, u: Symbols) -> Line:
    z, w, u = ([s.expr for s in vector] for vector in (p.z[i], w, u[i]))
    return Line(name, z=z, w=w, u=u, eps=eps[i].expr, N=len(z), t=p.label[i])


# ---- the backend `formula`


class Computed(NamedTuple):
    result: Symbols  # [5, R]
    parts: Symbols  # [7, R]
    dz: Symbols
    product: Symbols
    gauss_newton: Symbols
    numbers: Symbols  # [4, R], the result of curvature


def run(code, p: Rows, label: np.ndarray, v: Symbols, transform=(1.0, math.inf)) -> Computed:
    rows, numbers = len(p.z), np.array([number.view(np.ndarray) for number in p.numbers]).view(Symbols)
    got = Computed(*(boxed(np.full(shape, 7.0)) for shape in ((5, rows), (7, rows), *[p.z.shape] * 3, (4, rows))))
    common = (label, numbers, p.off, transform)
    code.reference.fused(p.z, *common, got.dz, got.result, got.parts, 1)
    for gauss_newton, out in ((True, got.gauss_newton), (False, got.product)):
        code.reference.curvature(p.z, v, *common, gauss_newton, out, got.numbers, 1)
    return got


def the_backend_applies_the_transform(code, p: Rows) -> None:
    """kernels/reference.py gives the outputs at the transformed logits, and by the chain rule the derivatives by the others.

    Here, the transformed logits are log E, and their derivatives with respect to the symbols x are those of a softcap.
    """
    x, t, c, v = symbols("x", np.full(p.z.shape, 0.4)), symbols("T", [1.7]), symbols("c", [2.5]), directions(p)
    tanh = np.tanh(x / c)
    slope, second = (1 - tanh * tanh) / t, (-2 / c) * tanh * ((1 - tanh * tanh) / t)
    raw = p._replace(z=x)
    for q in (p, p.with_numbers(q=0, g=1, l=0, b=0, n=0)):
        with patch.object(code.formula, "transformed", lambda *given: (p.z, slope, second)):
            got = run(code, raw._replace(numbers=q.numbers), p.label, v, (t, c))
        outputs = code.formula.outputs(parts(code, q), *q.numbers[:3])
        for row, output in zip(got.result, outputs, strict=True):
            assert all(same(lift(a).expr, lift(b).expr) for a, b in zip(row, output, strict=True))
        for i, k in np.ndindex(p.z.shape):
            along = [one.expr * by.expr for one, by in zip(v[i], slope[i], strict=True)]
            line = q.line("softcap_hessian", i, v=expressions(v[i]), x=expressions(x[i]), T=t[0].expr, c=c[0].expr)
            first, hessian = q.line("backward", i)(k=k), slope[i, k].expr * q.line("second_product", i, v=along)(k=k)
            assert same(got.dz[i, k].expr, slope[i, k].expr * first) and same(got.gauss_newton[i, k].expr, hessian), f"row {i}, column {k}"
            assert same(got.product[i, k].expr, hessian + first * second[i, k].expr * v[i, k].expr), f"row {i}, column {k}"
            if q is not p:
                assert same(got.product[i, k].expr, line(k=k)), f"row {i}, column {k}"
            mean, at_label, by_off, dentropy = expressions(got.numbers[:, i])
            mu = q.line("mean_apart", i, v=along)()
            assert same(mean, mu) and same(at_label, along[p.label[i]] - mu)
            assert same(by_off, sum(o * (one - mu) for o, one in zip(p.off_of(i), along, strict=True)))
            assert same(dentropy, q.line("entropy_along", i, v=along)())


def special_labels_of_the_backend(code, p: Rows) -> None:
    """An ignored row is not read, and all that it gives is the number 0. LARGEST is the class with the largest off, or else logit."""
    v = directions(p)
    for bad in (p.z[0, 0], *BAD):
        z = p.z.copy()
        z[:, 0] = bad
        got = run(code, p._replace(z=z), np.full(len(z), IGNORED), v)
        for part, nothing in zip(got.parts, identity(len(z)), strict=True):
            assert [lift(one).sample for one in part] == list(nothing)
        assert all(lift(one) == Value(sympy.S.Zero, 0.0) for out in got[:1] + got[2:] for one in out.ravel())
    by = p.z if p.off is None or p.off.ndim == 1 else p.off
    largest = by.argmax(axis=1)
    got, want = (run(code, p, label, v) for label in (np.full(len(p.z), LARGEST), largest))
    assert all(a == b for one, other in zip(got, want, strict=True) for a, b in zip(one.ravel(), other.ravel(), strict=True))


LAWS = (
    outputs_are_the_theorems,
    gradient_is_the_theorem,
    entropy_is_the_theorem,
    gradient_of_each_output_is_the_theorem,
    gradient_without_z_loss_is_the_theorem,
    gradient_is_the_derivative_of_the_outputs,
    coefficients_are_the_theorems,
    softmax_and_lse_are_the_definitions,
    finish_reads_the_theorems,
    curvature_is_the_theorem,
    curvature_of_the_loss_is_the_theorem,
    curvature_is_the_derivative_of_the_gradient,
    derivatives_by_the_numbers_are_the_theorems,
    transform_is_the_theorem,
    parts_merge_into_the_whole,
    shards_hold_their_columns_of_the_gradient,
    without_a_label_the_truth_is_off_alone,
    without_coefficients_the_gradient_is_exactly_0,
    coefficients_may_cancel,
    a_masked_class_is_not_there,
    every_option_is_its_theorem,
    the_backend_applies_the_transform,
    special_labels_of_the_backend,
)
each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)


@each_law
@pytest.mark.parametrize("n,off", [(1, "rows"), (2, "none"), (2, "shared"), (3, "none"), (3, "rows")])
def test_what_ships_is_the_theorem(law, n, off):
    law(CODE, rows_of(n, off))


@pytest.mark.parametrize("law", [outputs_are_the_theorems, gradient_is_the_theorem, curvature_is_the_theorem], ids=lambda law: law.__name__)
def test_four_columns_too(law):
    law(CODE, rows_of(4, "shared"))


def test_every_branch_is_taken():
    """The label is the largest logit, the smallest, between them, the only one, or in none of the columns."""
    p = rows_of(3)
    x = parts(CODE, p)
    assert {int(sum(a.sample < row[t].sample for a in row)) for row, t in zip(p.z, p.label, strict=True)} == {0, 1, 2}
    assert (x.zt > x.m).any() and (x.m > x.zt).any() and len({tuple(np.argsort([a.sample for a in row])) for row in p.z}) == 6
    assert (parts(CODE, rows_of(1)).s == 0).all() and (formula.partials(p.z, p.label - 9, p.off).zt == -np.inf).all()


# ---- the laws can fail ----

SOURCES = {"partials": inspect.getsource(partials), "formula": inspect.getsource(formula), "reference": inspect.getsource(reference)}
MUTATIONS = [  # code, the same code with a mistake, and the law that fails with it
    ("times(x.o, over))", "0)", outputs_are_the_theorems),
    ("lse(x) ** 2 / 2", "lse(x) ** 2", outputs_are_the_theorems),
    ("times(y + r * x.wt, nll)", "times(y, nll)", outputs_are_the_theorems),
    ("lse(x), -nll, entropy(x)", "lse(x), nll, entropy(x)", outputs_are_the_theorems),
    ("lse(x), -nll, entropy(x)", "x.m, -nll, entropy(x)", outputs_are_the_theorems),
    ("(x.zt >= x.m) &", "(x.zt <= x.m) &", outputs_are_the_theorems),
    ("& (x.zt > -np.inf)", "| (x.zt == -np.inf)", without_a_label_the_truth_is_off_alone),
    ("g * r, h)", "r, h)", coefficients_are_the_theorems),
    ("times(rest, hit) - times(at, miss)", "times(at, miss) - times(rest, hit)", gradient_is_the_theorem),
    ("at = y + r * x.wt", "at = y", gradient_without_z_loss_is_the_theorem),
    ("rest = r * x.o + times(q, lse(x))", "rest = r * x.o + q", gradient_is_the_theorem),
    ("a = times(g, at + rest) + l", "a = at + rest + l", gradient_is_the_theorem),
    ("+ l - b - down", "+ l + b - down", gradient_of_each_output_is_the_theorem),
    ("+ l - b - down", "- b - down", gradient_of_each_output_is_the_theorem),
    ("+ l - b - down", "+ l - b", gradient_is_the_derivative_of_the_outputs),
    ("down = times(n, entropy(x))", "down = entropy(x)", gradient_without_z_loss_is_the_theorem),
    ("hit = xp.exp(-nll)", "hit = miss", coefficients_are_the_theorems),
    ("times(b, miss) -", "times(b, hit) -", gradient_is_the_theorem),
    ("+ times(l, hit)", "+ times(l, miss)", gradient_of_each_output_is_the_theorem),
    ("- times(down, hit)", "- down", coefficients_are_the_theorems),
    ("times(e * yhat, surprisal(z, x))", "times(e * yhat, z)", gradient_of_each_output_is_the_theorem),
    ("h + times(e[:, 0] * xp.exp(-nll), nll)[:, None]", "h", gradient_is_the_theorem),
    ("times(c, off))", "off)", gradient_is_the_theorem),
    ("times(c, off))", "times(a, off))", gradient_is_the_derivative_of_the_outputs),
    ("xp.where(at_label(z, label), h", "xp.where(at_label(z, label + 1), h", shards_hold_their_columns_of_the_gradient),
    ("others = xp.where(hot, 0, off)", "others = xp.where(hot, off, off)", outputs_are_the_theorems),
    ("rest = xp.where(hot, -np.inf, z)", "rest = z + 0", outputs_are_the_theorems),
    ("rest = xp.where(hot, -np.inf, z)", "rest = xp.where(hot, 0, z)", outputs_are_the_theorems),
    ("xp.where(m == -np.inf, 0, m)[:, None]", "m[:, None]", a_masked_class_is_not_there),
    ("times(e, shift - rest)", "times(e, rest - shift)", entropy_is_the_theorem),
    ("times(e, shift - rest)", "(e * (shift - rest))", a_masked_class_is_not_there),
    ("times(others, shift - z)", "times(others, z - shift)", without_a_label_the_truth_is_off_alone),
    ("dz = xp.where((a != 0) | (e != 0) | (c != 0) | (h != 0), dz, 0.0)", "dz = dz + 0", without_coefficients_the_gradient_is_exactly_0),
    ("(a != 0) | (e != 0) |", "(a != 0) |", coefficients_may_cancel),
    ("(c != 0) | (h != 0)", "(c != 0)", coefficients_may_cancel),
    ("(a - e) * apart", "a * apart", curvature_is_the_theorem),
    ("times(e * apart, away) + da", "times(apart, away) + da", curvature_of_the_loss_is_the_theorem),
    ("times(e * apart, away) + da", "times(e * apart, away)", curvature_is_the_derivative_of_the_gradient),
    ("da = times(of.g * of.q, mean)", "da = times(of.q, mean)", curvature_is_the_theorem),
    ("- times(k.e, dentropy)", "+ times(k.e, dentropy)", curvature_is_the_derivative_of_the_gradient),
    ("dentropy = times(yhat * apart, away)", "dentropy = times(yhat * v, away)", derivatives_by_the_numbers_are_the_theorems),
    ("return (v - vj) + lead, (vj - lead)", "return (v - vj) - lead, (vj - lead)", curvature_of_the_loss_is_the_theorem),
    ("return (v - vj) + lead, (vj - lead)", "return (v - vj) + lead, (vj + lead)", derivatives_by_the_numbers_are_the_theorems),
    ("lead = times(yhat, vj - v)", "lead = times(yhat, v - vj)", curvature_is_the_derivative_of_the_gradient),
    (
        "yhat: Array = library(z).exp(-surprisal(z, x))",
        "yhat: Array = library(z).exp(surprisal(z, x))",
        softmax_and_lse_are_the_definitions,
    ),
    ("- z) + lift[:, None]", "- z)", softmax_and_lse_are_the_definitions),
    ("cap * tanh / temperature, slope", "cap * tanh, slope", transform_is_the_theorem),
    ("return x / temperature, 1 / temperature, 0.0", "return x / temperature, 1.0, 0.0", transform_is_the_theorem),
    ("** -2.0 / temperature", "** -2.0", transform_is_the_theorem),
    ("(-2 / cap) * tanh * slope", "(2 / cap) * tanh * slope", transform_is_the_theorem),
    ("(-2 / cap) * tanh * slope", "(-2 / cap) * tanh", transform_is_the_theorem),
    ("a.s * factor_a", "a.s", parts_merge_into_the_whole),
    ("a.d + times(a.o, down_a)", "a.d", parts_merge_into_the_whole),
    ("xp.maximum(a.m, b.m)", "a.m", parts_merge_into_the_whole),
    ("a.u + times(a.s, down_a)", "a.u", parts_merge_into_the_whole),
    ("+ times(factor_b, b.u", "+ times(factor_a, b.u", parts_merge_into_the_whole),
    ("times(xp.exp(-nll), nll) + times(xp.exp(-over)", "times(xp.exp(-over)", entropy_is_the_theorem),
    ("x.u + times(x.s, over))", "x.u + over)", entropy_is_the_theorem),
    ("x.zt > x.m, nll, over", "x.zt < x.m, nll, over", finish_reads_the_theorems),
    ("xp.exp(-xp.logaddexp(0, -a))", "xp.exp(-xp.logaddexp(0, a))", finish_reads_the_theorems),
    ("x.m - x.zt + log_s", "x.m - x.zt", finish_reads_the_theorems),
    ("log_s + xp.logaddexp(0, -a))", "log_s)", softmax_and_lse_are_the_definitions),
    ("_narrow(times(dz, slope), out.dtype)", "_narrow(dz, out.dtype)", the_backend_applies_the_transform),
    ("along = times(vi, slope)", "along = vi", the_backend_applies_the_transform),
    ("hv = times(hv, slope)", "hv = hv + 0", the_backend_applies_the_transform),
    ("times(vi, second)", "times(along, second)", the_backend_applies_the_transform),
    ("if not gauss_newton:", "if gauss_newton:", the_backend_applies_the_transform),
    ("row[i] = where(ignored, 0.0, found)", "row[i] = found", special_labels_of_the_backend),
    ("row[i] = where(t == IGNORED, 0.0, output)", "row[i] = output", special_labels_of_the_backend),
    ("where(t == IGNORED, none, part)", "part", special_labels_of_the_backend),
    ("xp.where(label == IGNORED, 0.0, number)", "number", special_labels_of_the_backend),
    ("where(live[:, None], hv, 0.0)", "hv", special_labels_of_the_backend),
    ("of = z if off is None or off.ndim == 1 else off", "of = z", special_labels_of_the_backend),
]


def mutant(was: str, now: str) -> SimpleNamespace:
    """Return formula.py, partials.py and kernels/reference.py, with one mistake in one of them."""
    assert sum(text.count(was) for text in SOURCES.values()) == 1, f"{was!r} is no longer written there, once"
    code = SimpleNamespace()
    for name, text in SOURCES.items():
        module = ModuleType(f"softxent.kernels.{name}" if name == "reference" else f"softxent.{name}")
        module.__package__ = module.__name__.rpartition(".")[0]
        exec(compile(text.replace(was, now), name, "exec"), vars(module))
        for below, ours in vars(code).items():  # what the module imports from the other two is theirs, with the mistake
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
        for n, off in ((1, "none"), (2, "shared"), (2, "rows"), (3, "shared")):
            law(code, rows_of(n, off))


def test_each_law_refuses_a_mistake():
    assert {law for *_, law in MUTATIONS} >= set(LAWS) - {every_option_is_its_theorem}


def test_an_unchanged_copy_is_not_refused():
    for law in LAWS:
        law(mutant("dz_k   = g", "dz_k   = g"), rows_of(2))
