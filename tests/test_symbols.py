"""The code of formula.py and partials.py, run on symbols, gives the last lines of the derivation, for N up to 4 columns.

Each input number is a pair of an expression and a sample value. The sample decides comparisons in the code: which number is larger, or
whether it is 0. So one run proves equality for all numbers in the same order as the samples, and the runs for all orders together prove it
for all numbers. The expected results are lines of proof/derivation.py, which Coq proves, evaluated for N columns. A score is written log E
with E > 0. The results are then fractions in these E and in logarithms of their sums, and SymPy decides equality by expanding them.
"""

from __future__ import annotations

import inspect
import math
import operator
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, permutations, product
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import sympy
from sympy.polys.fields import sfield

from softxent import formula, partials
from softxent.partials import Partials, identity
from softxent.proof.derivation import DERIVATIONS, Derivation
from softxent.proof.expr import E, unfold
from softxent.truth import LogitTransform

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
    np.add: ordinary(operator.add), np.subtract: ordinary(operator.sub), np.negative: ordinary(operator.neg),
    np.multiply: ordinary(operator.mul), np.divide: ordinary(operator.truediv), np.power: ordinary(operator.pow),
}  # fmt: skip
COMPARED = {
    np.equal: equal, np.not_equal: lambda a, b: not equal(a, b),
    np.greater: lambda a, b: a.sample > b.sample, np.less: lambda a, b: a.sample < b.sample,
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


def same(got: Any, want: Any) -> bool:
    """Compare as fractions of polynomials in the symbols and logarithms, which is exact and three times as fast as sympy.cancel."""
    return None not in (got, want) and (got == want or sfield(got - want)[1] == 0)


# ---- the lines of the theorems, for N columns ----


class Line:
    """The values of the lines of a derivation, for given vectors and numbers. Definitions are substituted; derivatives do not occur."""

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
        arithmetic = {
            "()": lambda x: x, "neg": operator.neg, "+": operator.add, "-": operator.sub, "*": operator.mul, "@": operator.mul,
            "/": operator.truediv, "^": operator.pow, "exp": sympy.exp, "log": log_of, "tanh": sympy.tanh,
        }  # fmt: skip
        return arithmetic[e.op](*(self.value(x, at) for x in a))


# ---- the rows: every order of N scores, every label ----


class Rows(NamedTuple):
    z: Symbols  # [R, N]
    label: np.ndarray  # [R]
    y: Symbols  # [R]
    r: Symbols
    q: Symbols
    g: Symbols
    off: Symbols | None  # [N], [R, N] or None

    def truth(self, i: int) -> list[Any]:
        """Return the truth of the row i at each class: y at the label plus r off."""
        n = self.z.shape[1]
        off = [0] * n if self.off is None else [o.expr for o in (self.off if self.off.ndim == 1 else self.off[i])]
        return [self.r[i].expr * off[k] + self.y[i].expr * int(k == self.label[i]) for k in range(n)]

    def line(self, name: str, i: int, **more: Any) -> Line:
        """Return a derivation for the row i. q is twice the coefficient of the z-loss."""
        return Line(name, z=[s.expr for s in self.z[i]], y=self.truth(i), lam=self.q[i].expr / 2, t=self.label[i], **more)

    def columns(self, k: list[int]) -> tuple[Symbols, np.ndarray, Symbols | None]:
        """Return z, label and off of some columns. A label that is not among them matches none."""
        label = np.array([k.index(t) if t in k else -1 for t in self.label])
        return self.z[:, k], label, None if self.off is None else self.off[..., k]


OFFS = ("none", "shared", "rows")
SAMPLE = (0.3, 1.9, -0.8, 1.1)


def rows_of(n: int, off: str = "rows") -> Rows:
    orders = list(permutations(SAMPLE[:n]))
    every = list(product(orders, range(n))) if n < 4 else [(order, i % n) for i, order in enumerate(orders)]
    z = symbols("E", [order for order, _ in every], sympy.log)
    count = len(every)
    y, r, q, g = (symbols(name, np.linspace(a, 2 * a, count)) for name, a in (("y", 0.7), ("r", 0.9), ("q", 0.1), ("g", 1.3)))
    shape = {"none": None, "shared": n, "rows": (count, n)}[off]
    return Rows(z, np.array([t for _, t in every]), y, r, q, g, None if shape is None else symbols("off", np.full(shape, 0.25)))


CODE = SimpleNamespace(formula=formula, partials=partials)


def parts(code, p: Rows) -> Partials:
    return code.formula.partials(p.z, p.label, p.off)


# ---- the laws; `code` is formula.py and partials.py, or a version with a mistake ----


def everywhere(got: Symbols, line, times: Symbols | None = None, columns: list[int] | None = None) -> None:
    """Assert got[i, k] = times[i] * (the last line of line(i) at k). `columns` are the columns of got."""
    for i in range(len(got)):
        want = line(i)
        for k, of in enumerate(columns or range(got.shape[1])):
            assert same(got[i, k].expr, (1 if times is None else times[i].expr) * want(k=of)), f"row {i}, column {of}"


def loss_is_the_theorem(code, p: Rows) -> None:
    """The loss is - sum truth log yhat + q/2 lse^2, and without z-loss the line p lse - <truth, z> of loss_by_lse."""
    got = code.formula.loss(parts(code, p), p.y, p.r, p.q)
    for i in range(len(p.z)):
        whole, short = p.line("z_loss_gradient", i), p.line("loss_by_lse", i)
        differentiated = whole.derivation.start.args[0]
        assert same(got[i].expr, whole(differentiated)), f"row {i}"
        assert same(got[i].expr, short() + p.q[i].expr / 2 * log_of(sum(sympy.exp(s.expr) for s in p.z[i])) ** 2), f"row {i}"


def gradient_is_the_theorem(code, p: Rows) -> None:
    """The gradient is g ((p + q lse) yhat_k - truth_k)."""
    got = code.formula.gradient(p.z, parts(code, p), p.label, p.y, p.r, p.q, p.g, p.off)
    everywhere(got, lambda i: p.line("z_loss_gradient", i), p.g)


def gradient_without_z_loss_is_the_theorem(code, p: Rows) -> None:
    """The gradient is g (p yhat_k - truth_k)."""
    p = p._replace(q=boxed(np.zeros(len(p.z))))
    got = code.formula.gradient(p.z, parts(code, p), p.label, p.y, p.r, p.q, p.g, p.off)
    everywhere(got, lambda i: p.line("general_gradient", i), p.g)


def gradient_is_the_derivative_of_the_loss(code, p: Rows) -> None:
    """The gradient is the derivative of the loss that the code computes; d/dz = E d/dE."""
    x = parts(code, p)
    loss, dz = code.formula.loss(x, p.y, p.r, p.q), code.formula.gradient(p.z, x, p.label, p.y, p.r, p.q, p.g, p.off)
    for i, k in np.ndindex(dz.shape):
        symbol = sympy.exp(p.z[i, k].expr)
        assert same(dz[i, k].expr, p.g[i].expr * symbol * sympy.diff(loss[i].expr, symbol)), f"row {i}, column {k}"


def softmax_and_lse_are_the_definitions(code, p: Rows) -> None:
    x = parts(code, p)
    everywhere(code.formula.softmax(p.z, x), lambda i: p.line("lse_gradient", i))
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


def hessian_product_is_the_theorem(code, p: Rows) -> None:
    """The Hessian product is mass yhat o (v - <yhat, v>), with the mass of the row's truth."""
    v, mass = symbols("v", np.ones(p.z.shape)), boxed(np.ones(len(p.z)))
    for i in range(len(p.z)):
        mass[i] = Value(sum(p.truth(i)), 1.0)
    got = code.formula.hessian_product(code.formula.softmax(p.z, parts(code, p)), v, mass)
    everywhere(got, lambda i: p.line("hessian_product", i, v=[s.expr for s in v[i]]))


def parts_merge_into_the_whole(code, p: Rows) -> None:
    """Every split of the columns in two, in both orders. Loss and gradient depend on the partial sums only, so they agree too."""
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
                    line = p.line("merge_parts", i, **{name: x.expr for name, x in given.items()})
                    assert same(line(0), line()) and same(sympy.exp(whole.m[i].expr) * whole.s[i].expr, line())


def shards_hold_their_columns_of_the_gradient(code, p: Rows) -> None:
    """The gradient of a shard, from the partial sums of the whole row, consists of its columns, whether it contains the label or not."""
    whole, columns = parts(code, p), range(p.z.shape[1])
    for mine in (list(c) for size in columns[1:] for c in combinations(columns, size)):
        z, label, off = p.columns(mine)
        got = code.formula.gradient(z, whole, label, p.y, p.r, p.q, p.g, off)
        everywhere(got, lambda i: p.line("z_loss_gradient", i), p.g, mine)


def without_a_label_the_truth_is_off_alone(code, p: Rows) -> None:
    """The label matches no column and y = 0, as for a shard without the label."""
    for nowhere in (-1, p.z.shape[1]):
        q = p._replace(label=np.full(len(p.z), nowhere), y=boxed(np.zeros(len(p.z))))
        loss_is_the_theorem(code, q)
        gradient_is_the_theorem(code, q)
        softmax_and_lse_are_the_definitions(code, q)


def an_ignored_row_is_exactly_0(code, p: Rows) -> None:
    """With y = r = q = 0 the results are the number 0, not an expression, and a NaN among the logits has no effect."""
    nothing = boxed(np.zeros(len(p.z)))
    for bad in (p.z[0, 0], lift(math.nan), lift(math.inf), lift(-math.inf)):
        z = p.z.copy()
        z[:, 0] = bad
        q = p._replace(z=z, y=nothing, r=nothing, q=nothing)
        x = parts(code, q)
        zeros = [*code.formula.loss(x, q.y, q.r, q.q), *code.formula.gradient(z, x, q.label, q.y, q.r, q.q, q.g, q.off).ravel()]
        assert all(lift(one) == Value(sympy.S.Zero, 0.0) for one in zeros)


def a_masked_class_is_not_there(code, p: Rows) -> None:
    """With a logit of -inf at another class than the label, the partial sums are those of the other columns. Its gradient is 0."""
    for k in range(p.z.shape[1]):
        z, others = p.z.copy(), [c for c in range(p.z.shape[1]) if c != k]
        z[:, k] = lift(-math.inf)
        rows = p.label != k
        if rows.any():
            x = code.formula.partials(z[rows], p.label[rows])
            want = code.formula.partials(*p._replace(z=p.z[rows], label=p.label[rows]).columns(others)[:2])
            assert all(a == b or same(a.expr, b.expr) for got, field in zip(x, want, strict=True) for a, b in zip(got, field, strict=True))
            dz = code.formula.gradient(z[rows], x, p.label[rows], p.y[rows], p.r[rows], p.q[rows], p.g[rows])
            assert all(one.expr == 0 for one in dz[:, k])


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
        q = p._replace(y=y, r=r, q=zero, g=one, off=off)
        got = code.formula.gradient(q.z, parts(code, q), q.label, y, r, zero, one, off)
        line = partial(option_line, p, f"{name}_gradient", eps=eps, w=w, u=u)
        everywhere(got, line)


def option_line(p: Rows, name: str, i: int, *, eps: Symbols, w: Symbols, u: Symbols) -> Line:
    z, w, u = ([s.expr for s in vector] for vector in (p.z[i], w, u[i]))
    return Line(name, z=z, w=w, u=u, eps=eps[i].expr, N=len(z), t=p.label[i])


LAWS = (
    loss_is_the_theorem,
    gradient_is_the_theorem,
    gradient_without_z_loss_is_the_theorem,
    gradient_is_the_derivative_of_the_loss,
    softmax_and_lse_are_the_definitions,
    finish_reads_the_theorems,
    hessian_product_is_the_theorem,
    parts_merge_into_the_whole,
    shards_hold_their_columns_of_the_gradient,
    without_a_label_the_truth_is_off_alone,
    an_ignored_row_is_exactly_0,
    a_masked_class_is_not_there,
    every_option_is_its_theorem,
)
each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)


@each_law
@pytest.mark.parametrize("n,off", [(1, "rows"), (2, "none"), (2, "shared"), (3, "none"), (3, "rows")])
def test_what_ships_is_the_theorem(law, n, off):
    law(CODE, rows_of(n, off))


@pytest.mark.parametrize("law", LAWS[:2], ids=lambda law: law.__name__)
def test_four_columns_too(law):
    law(CODE, rows_of(4, "shared"))


def test_every_branch_is_taken():
    """The label is the largest logit, the smallest, between them, the only one, or in none of the columns."""
    p = rows_of(3)
    x = parts(CODE, p)
    assert {int(sum(a.sample < row[t].sample for a in row)) for row, t in zip(p.z, p.label, strict=True)} == {0, 1, 2}
    assert (x.zt > x.m).any() and (x.m > x.zt).any() and len({tuple(np.argsort([a.sample for a in row])) for row in p.z}) == 6
    assert (parts(CODE, rows_of(1)).s == 0).all() and (formula.partials(p.z, p.label - 9, p.off).zt == -np.inf).all()


def test_squash_is_its_theorem():
    """The function of temperature and softcap in truth.py is that of the derivation, with its first and second derivatives."""
    x, t, c = (symbols(name, [s]) for name, s in (("x", 0.4), ("T", 1.7), ("c", 2.5)))
    raw = x[0].expr
    for name, squash, temperature in (
        ("temperature", LogitTransform(t, None), t[0].expr),
        ("softcap", LogitTransform(1, c), 1),
        ("softcap", LogitTransform(t, c), t[0].expr),
    ):
        line, *others = (
            Line(one, x=[raw], T=temperature, c=c[0].expr)
            for one in (f"{name}_same", *(("softcap_slope", "softcap_second") if name == "softcap" else ()))
        )
        z, slope, second = ((f(x) + boxed([0]))[0].expr for f in (squash, squash.slope, squash.second_derivative))
        for a, b in (
            (z, line(line.derivation.definitions["z"].body, k=0)),
            (slope, line(k=0)),
            (sympy.diff(z, raw), slope),
            (sympy.diff(slope, raw), second),
            *zip((slope, second), (one(k=0) for one in others), strict=False),
        ):
            assert sympy.simplify((a - b).rewrite(sympy.exp)) == 0


# ---- the laws can fail ----

PARTIALS, FORMULA = inspect.getsource(partials), inspect.getsource(formula)
MUTATIONS = [  # code, the same code with a mistake, and the law that fails with it
    ("times(x.o, over))", "0)", loss_is_the_theorem),
    ("lse(x) ** 2 / 2", "lse(x) ** 2", loss_is_the_theorem),
    ("times(y + r * x.wt, nll)", "times(y, nll)", loss_is_the_theorem),
    ("g[:, None] * dz", "dz", gradient_is_the_theorem),
    ("rest - mass * finish(x)[1]", "mass * finish(x)[1] - rest", gradient_is_the_theorem),
    ("mass = y + r * x.wt + rest", "mass = y + rest", gradient_without_z_loss_is_the_theorem),
    ("rest = r * x.o + times(q, lse(x))", "rest = r * x.o + q", gradient_is_the_theorem),
    ("r[:, None] * off)", "off)", gradient_is_the_theorem),
    ("r[:, None] * off)", "y[:, None] * off)", gradient_is_the_derivative_of_the_loss),
    ("xp.where(at_label(z, label), (rest", "xp.where(at_label(z, label + 1), (rest", shards_hold_their_columns_of_the_gradient),
    ("others = xp.where(hot, 0, off)", "others = xp.where(hot, off, off)", loss_is_the_theorem),
    ("rest = xp.where(hot, -np.inf, z)", "rest = z + 0", loss_is_the_theorem),
    ("rest = xp.where(hot, -np.inf, z)", "rest = xp.where(hot, 0, z)", loss_is_the_theorem),
    ("xp.where(m == -np.inf, 0, m)[:, None]", "m[:, None]", a_masked_class_is_not_there),
    ("times(others, shift - z)", "times(others, z - shift)", without_a_label_the_truth_is_off_alone),
    ("dz = xp.where(live[:, None], g[:, None] * dz, 0.0)", "dz = g[:, None] * dz", an_ignored_row_is_exactly_0),
    ("(v - (yhat * v)", "(v + (yhat * v)", hessian_product_is_the_theorem),
    ("[:, None] - lift[:, None]", "[:, None]", softmax_and_lse_are_the_definitions),
    ("a.s * xp.exp(-down_a)", "a.s", parts_merge_into_the_whole),
    ("a.d + times(a.o, down_a)", "a.d", parts_merge_into_the_whole),
    ("xp.maximum(a.m, b.m)", "a.m", parts_merge_into_the_whole),
    ("x.zt > x.m, nll, over", "x.zt < x.m, nll, over", finish_reads_the_theorems),
    ("xp.exp(-xp.logaddexp(0, -a))", "xp.exp(-xp.logaddexp(0, a))", finish_reads_the_theorems),
    ("x.m - x.zt + log_s", "x.m - x.zt", finish_reads_the_theorems),
    ("log_s + xp.logaddexp(0, -a))", "log_s)", softmax_and_lse_are_the_definitions),
]


def mutant(was: str, now: str) -> SimpleNamespace:
    """Return formula.py and partials.py, with one mistake in one of them."""
    assert (FORMULA + PARTIALS).count(was) == 1, f"{was!r} is no longer written there, once"
    code = SimpleNamespace()
    for name, text in (("partials", PARTIALS), ("formula", FORMULA)):
        module = ModuleType(f"softxent.{name}")
        module.__package__ = "softxent"
        exec(compile(text.replace("from .partials import", "from softxent.partials import").replace(was, now), name, "exec"), vars(module))
        setattr(code, name, module)
    vars(code.formula).update({name: x for name, x in vars(code.partials).items() if not name.startswith("_")})
    return code


@pytest.mark.parametrize("was,now,law", MUTATIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_mistake_in_the_code_is_refused(was, now, law):
    code = mutant(was, now)
    with pytest.raises(AssertionError):
        for n, off in ((1, "none"), (2, "shared"), (3, "shared")):
            law(code, rows_of(n, off))


def test_an_unchanged_copy_is_not_refused():
    for law in LAWS:
        law(mutant("dz_k   = g", "dz_k   = g"), rows_of(2))
