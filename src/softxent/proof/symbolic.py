"""The normal form of a line in SymPy, for any number of classes and with indices that are symbols. rules.py uses it.

A sum is an atom `total(f)`, after all factors that do not depend on its index are moved outside (linearity). In a sum, `delta(i, m)`
selects the term i = m. A sum over j != k is the whole sum minus its term at k. With all switches on, definitions are substituted and
derivatives are evaluated, so two lines are equal for every N if the difference of their normal forms is 0 (`residual`). The rules of
algebra use the normal form with some switches off. Definitions, derivatives, reciprocals, exponentials or logarithms are then atoms, so
that only the laws of the rule apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from .derivation import TWO_CLASSES, Derivation
from .expr import RANGES, Definition, E, Fact, bare, in_row, letters, lift, reindex

delta = sp.Function("delta")
INVERSE, EXP, LOG, TANH = (sp.Function(name) for name in ("inverse", "exp_", "log_", "tanh_"))
BOUND = {size: sp.Symbol(f"_{size}") for size in ("N", "D", "R")}
TOTAL = {size: sp.Function(f"total_{size}") for size in BOUND}
SIZE = {size: sp.Symbol(size, positive=True) for size in BOUND}
OTHERS = {size: sp.Function(f"others_{size}") for size in BOUND}  # a sum over all indices but one, if the switch `pick` is off
_RANGE_OF = {total: size for size, total in TOTAL.items()}
TWO = lift(2)
Index = dict[str, Any]


@lru_cache(maxsize=64)
def _memo(*_: Any) -> dict[Any, Any]:
    return {}


@dataclass(frozen=True)
class Meaning:
    """The computation of the normal form. What a switch turns off is treated as an atom."""

    derivation: Derivation
    given: tuple[Fact, ...] = ()
    unfold: bool = True  # definitions
    differentiate: bool = True
    divide: bool = True  # x/x = 1
    exps: bool = True  # e^(a + b) = e^a e^b
    logs: bool = True  # log (a b) = log a + log b
    tanhs: bool = False  # tanh f is (1 - w) / (1 + w), where w = e^(-2f)
    pick: bool = True  # a sum is a term plus the others; a delta is 1 or 0, or selects its term; N equal terms are N times one of them

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """The normal forms found before by this computation and all that are equal to it."""
        switches = (self.differentiate, self.divide, self.exps, self.logs, self.tanhs, self.pick)
        return _memo(tuple(self.definitions.values()), frozenset(self.apart), self.two, switches)

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        return self.derivation.known if self.unfold else {}

    @cached_property
    def apart(self) -> set[frozenset[Any]]:
        return {frozenset(map(sp.Symbol, pair)) for pair in self.derivation.distinct}

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.given if self.unfold and self.derivation.usable(fact))

    @cached_property
    def two(self) -> bool:
        """Whether there are two classes or more."""
        return TWO_CLASSES in (*self.given, *self.derivation.given)

    @classmethod
    def of_line(cls, derivation: Derivation, n: int) -> Meaning:
        """The full normal form for line `n`, counted from 1, with the facts that it is given."""
        step = derivation.steps[n - 1]
        return cls(derivation, (*derivation.given, *step.given), tanhs=step.rule == "tanh")

    def __call__(self, e: E) -> Any:
        """Return the normal form of a line."""
        if e not in self.memo:
            self.memo[e] = self.form(e, {}, frozenset())
        return self.memo[e]

    def residual(self, before: E, after: E) -> Any:
        """Return after - before as a reduced fraction. It is 0 if the two are equal for every N, given the facts."""
        key = (before, after, self.facts)
        if key not in self.memo:
            self.memo[key] = self._residual(before, after)
        return self.memo[key]

    def _residual(self, before: E, after: E) -> Any:
        difference = self(after) - self(before)
        for fact in self.facts:
            if fact.rel == "=":
                difference = difference.subs(self(fact.left), self(fact.right))
        difference = reduced(difference) if self.divide else sp.expand(difference)
        return reduced(settled(difference)) if self.pick and difference.has(delta) else difference

    # ---- the normal form; ix: the value of each index; kept: the names that stay atoms, because of a derivative with respect to them

    def form(self, e: E, ix: Index, kept: frozenset[str]) -> Any:
        o, a = e.op, e.args
        if (o == "num" and (type(a[0]) is not int or a[0] < 0)) or (o == "^" and a[1] != TWO):
            raise NotImplementedError("a number that is not a natural one, or a power that is not a square")
        if o == "num":
            return sp.Integer(a[0])
        if o == "()":
            return self.form(a[0], ix, kept)
        if o == "at":
            return self._at(a[0], a[1:], ix, kept)
        if o == "delta":
            if {RANGES[i] for i in a} != {"N"}:
                raise NotImplementedError("delta compares classes")
            return self._delta(*(self._letter(i, ix) for i in a))
        if o == "sum":
            return self._sum(e, ix, kept)
        if o == "D":
            return self._derivative(e, ix, kept)
        x, *y = (self.form(arg, ix, kept) for arg in a)
        if o == "/":
            return x / y[0] if self.divide else x * INVERSE(sp.expand(y[0]))
        if o == "exp":
            return self._exp(sp.expand(x)) if self.exps else EXP(sp.expand(x))
        if o == "log":
            return self._log(x) if self.logs else LOG(sp.expand(x))
        if o == "tanh":
            w = self._exp(sp.expand(-2 * x)) if self.tanhs else None
            return TANH(reduced(x)) if w is None else (1 - w) / (1 + w)
        return {"neg": lambda: -x, "+": lambda: x + y[0], "-": lambda: x - y[0], "^": lambda: x ** y[0]}.get(o, lambda: x * y[0])()

    def _letter(self, i: str, ix: Index) -> Any:
        return ix.get(i, sp.Symbol(i))

    def _delta(self, a: Any, b: Any) -> Any:
        if self.pick and a == b:
            return sp.Integer(1)
        if self.pick and frozenset((a, b)) in self.apart:
            return sp.Integer(0)
        return delta(*sorted((a, b), key=sp.default_sort_key))

    def _at(self, name: str, index: tuple[str, ...], ix: Index, kept: frozenset[str]) -> Any:
        at = [self._letter(i, ix) for i in index]
        if name == "N":
            return SIZE["N"]
        if name in self.definitions and name not in kept:
            return self._body(self.definitions[name], at, kept)
        return sp.Function(name)(*at) if at else sp.Symbol(name)

    def _body(self, definition: Definition, at: list[Any], kept: frozenset[str]) -> Any:
        own, body = definition.head.args[1:], definition.body
        if len(at) == len(own) + 1:
            own, body = ("r", *own), in_row(body, "r")
        return self.form(body, dict(zip(own, at, strict=True)), kept)

    def _sum(self, e: E, ix: Index, kept: frozenset[str]) -> Any:
        key = ("sum", e, tuple(self._letter(i, ix) for i in sorted(letters(e))), kept)
        if key not in self.memo:
            self.memo[key] = self._sum_over(e, ix, kept)
        return self.memo[key]

    def _sum_over(self, e: E, ix: Index, kept: frozenset[str]) -> Any:
        index, but, body = e.args
        i = sp.Dummy(index)
        if but is not None and RANGES[but] != RANGES[index]:
            raise NotImplementedError("a sum over all indices but one of another range")
        if but is not None and not self.pick:
            return self.add_up(RANGES[index], i, self.form(body, {**ix, index: i}, kept), self._letter(but, ix))
        whole = self.add_up(RANGES[index], i, self.form(body, {**ix, index: i}, kept))
        return whole if but is None else whole - self.form(body, {**ix, index: self._letter(but, ix)}, kept)

    def add_up(self, size: str, i: Any, f: Any, but: Any = None) -> Any:
        """Return the sum of f over i, with factors that do not depend on i moved outside."""
        total = sp.Integer(0)
        for term in sp.Add.make_args(sp.expand(reduced(f) if self.divide else f)):
            pick = next((d for d in sp.Mul.make_args(term) if d.func == delta and i in d.args), None)
            if pick is not None and self.pick:
                total += (term / pick).subs(i, next(x for x in pick.args if x != i))
                continue
            outside, inside = term.as_independent(i, as_Add=False)
            if any(t.has(i) for t in inside.atoms(TOTAL[size])):
                raise NotImplementedError("a sum inside a sum over the same range, tied to its index")
            inside = inside.subs(i, BOUND[size])
            if but is not None:
                total += outside * OTHERS[size](but, inside)
            else:
                total += outside * (SIZE[size] if inside == 1 and self.pick else TOTAL[size](inside))
        return total

    def _exp(self, x: Any) -> Any:
        """Apply e^(a + b) = e^a e^b and e^log a = a."""
        logs = [(sign, sign * term) for term in sp.Add.make_args(x) for sign in (1, -1) if (sign * term).func == LOG]
        rest = x - sp.Add(*(sign * log for sign, log in logs))
        return sp.expand(sp.exp(rest), power_exp=True) * sp.Mul(*(log.args[0] ** sign for sign, log in logs))

    def _log(self, x: Any) -> Any:
        """Return the sum of the logarithms of the factors, all of which must be positive; NaN if one is not."""
        if ("log", x) not in self.memo:
            self.memo["log", x] = self._sum_of_logs(x)
        return self.memo["log", x]

    def _sum_of_logs(self, x: Any) -> Any:
        over, under = sp.fraction(sp.factor(reduced(x)))
        factors = [(sign, f) for sign, product in ((1, over), (-1, under)) for f in sp.Mul.make_args(product)]
        for minus in [one for one in factors if one[1] == -1]:  # SymPy writes (a - b) / c as -(b - a) / c
            factors.remove(minus)
            n = next((n for n, (_, f) in enumerate(factors) if f.is_Add and not self.positive(f)), None)
            if n is None:
                return sp.nan
            factors[n] = factors[n][0], sp.expand(-factors[n][1])
        total = sp.Integer(0)
        for sign, f in factors:
            base, power = (f, 1) if isinstance(f, sp.exp) else f.as_base_exp()
            if not self.positive(base):
                return sp.nan
            total += sign * power * (base.args[0] if isinstance(base, (sp.exp, EXP)) else sp.log(base))
        return sp.expand(total)

    def positive(self, x: Any) -> bool:
        """Whether an atom or a sum of atoms is known to be positive."""
        if isinstance(x, (sp.exp, EXP)) or x.is_positive or x.func == sp.Function("yhat"):
            return True
        if x.func in (TOTAL["N"], OTHERS["N"]):  # there may be no features or rows, but there is at least one class
            inside = all(self.positive(f) for f in sp.Mul.make_args(x.args[-1]))
            return inside and (x.func == TOTAL["N"] or self.two)
        if x.is_Mul or x.is_Pow:
            return all(self.positive(f) for f in (x.args if x.is_Mul else x.args[:1]))
        if x.is_Add and all(self.positive(term) for term in x.args):
            return True
        # a sum over all classes but one, total(f) - f(t), if there are at least two
        for t in x.atoms(TOTAL["N"]) if self.two and x.is_Add else ():
            rest = sp.expand(t - x)
            if self.positive(t) and any(sp.expand(rest - _term(t, i)) == 0 for i in x.free_symbols):
                return True
        return False

    # ---- derivatives

    def _derivative(self, e: E, ix: Index, kept: frozenset[str]) -> Any:
        f, x = e.args
        if not self.differentiate:  # an atom, identified by its expression and its indices
            free = sorted(letters(e))
            said = bare(reindex(e, {i: f"#{n}" for n, i in enumerate(free)}))
            return sp.Function(str(said))(*(self._letter(i, ix) for i in free))
        name = x.args[0]
        by = sp.Function(name)(*(self._letter(i, ix) for i in x.args[1:]))
        inside = kept | {name}
        d = self._diff(self.form(f, ix, inside), by)
        return d if name in kept or name not in self.definitions else self._unfolded(d, name, kept)

    def _diff(self, f: Any, x: Any) -> Any:
        """Return df/dx, by the chain rule over the entries and sums in f."""
        if f.has(sp.nan):
            return sp.nan
        names = {a: sp.Dummy() for a in f.atoms(*TOTAL.values())}
        names |= {a: sp.Dummy() for a in f.xreplace(names).atoms(AppliedUndef) if a.func not in (delta, TANH)}
        flat = f.xreplace(names).replace(TANH, sp.tanh)
        back = {d: a for a, d in names.items()}
        out = (flat.diff(d).replace(sp.tanh, TANH).xreplace(back) * self._diff_atom(a, x) for d, a in back.items() if flat.has(d))
        return sp.Add(*out)

    def _diff_atom(self, a: Any, x: Any) -> Any:
        if a.func in _RANGE_OF:
            size, i = _RANGE_OF[a.func], sp.Dummy()
            return self.add_up(size, i, self._diff(_term(a, i), x))
        if a.func != x.func:
            return sp.Integer(0)
        if len(a.args) != len(x.args):
            raise NotImplementedError("an entry of one row and of any row in one line")
        return sp.Mul(*(self._delta(i, j) for i, j in zip(a.args, x.args, strict=True)))

    def _unfolded(self, f: Any, name: str, kept: frozenset[str]) -> Any:
        """Return `f` with the entries of `name` replaced by their definition."""
        names = {a: sp.Dummy() for a in f.atoms(*TOTAL.values())}
        flat = f.xreplace(names)
        entries = {a: self._body(self.definitions[name], list(a.args), kept) for a in flat.atoms(AppliedUndef) if a.func.__name__ == name}
        flat = flat.xreplace(entries)
        for total, dummy in names.items():
            size, i = _RANGE_OF[total.func], sp.Dummy()
            flat = flat.xreplace({dummy: self.add_up(size, i, self._unfolded(_term(total, i), name, kept))})
        return flat


def refusal_by_sympy(derivation: Derivation, n: int) -> str | None:
    """Return why SymPy refuses the equation of line `n`, counted from 1, with the line before, or None if it accepts it."""
    try:
        residual = Meaning.of_line(derivation, n).residual(derivation.lines[n - 1], derivation.lines[n])
    except (NotImplementedError, ValueError) as error:
        return str(error)
    return None if residual == 0 else "its normal form differs from that of the line before"


def _term(total: Any, i: Any) -> Any:
    """Return the term at i of a sum. A sum inside it keeps its own index."""
    inner = {t: sp.Dummy() for t in total.args[0].atoms(total.func)}
    return total.args[0].xreplace(inner).subs(BOUND[_RANGE_OF[total.func]], i).xreplace({d: t for t, d in inner.items()})


def settled(f: Any) -> Any:
    """Return `f` with delta(a, b) f(b) written as delta(a, b) f(a)."""
    total = sp.Integer(0)
    for term in sp.Add.make_args(sp.expand(f)):
        for d in term.atoms(delta):
            a, b = d.args
            if d in sp.Mul.make_args(term):
                term = d * (term / d).subs(b, a)
        total += term
    return total


@lru_cache(maxsize=1 << 12)
def reduced(f: Any) -> Any:
    """Return a fraction in lowest terms."""
    return sp.cancel(sp.together(f))
