"""The derivation as statements for Coq: what each line says, generated from its data and compared with the theorem in Softmax.v.

A derivative is a relation there, not a value: `partial f k z d` says that f has the derivative d by the k-th coordinate at z. So a line
whose start is a derivative becomes `partial ... (the line)`, and a derivative inside a line becomes a number d1 (in a sum: a family) of
which it is given that it is that derivative.
"""

from __future__ import annotations

from collections.abc import Iterator

from .derivation import POSITIVE, Derivation
from .expr import RANGES, E, Fact, children, in_row, letters, reindex, same, walk

SIZES = {"N": "n", "D": "nd", "R": "nr"}
VECTORS = ("z", "y", "yhat", "v", "w", "u", "x", "b")
SCALARS = ("eps", "lam", "T", "c", "m", "m1", "m2", "s1", "s2", "a")
BEYOND = {  # theorems of Softmax.v that are no line of a derivation
    "softmax_positive": "Every prediction is positive.",
    "softmax_le_1": "No prediction is above 1.",
    "softmax_jacobian": "Results 1 and 2 in one: the derivative of yhat_j by z_k is yhat_j (delta_jk - yhat_k).",
    "chain_rule": "The chain rule of Part 3, whatever names the two factors go by.",
    "sum_one_is_needed": "The gradient is yhat_k - y_k if and only if the truth sums to one.",
    "loss_nonneg": "A truth without a negative entry has a loss that is not negative.",
    "gradient_sums_to_0": "The gradient's entries sum to zero.",
    "gradient_bounded": "No entry of yhat - y is larger than 1 in size, where 0 <= y_k <= 1.",
    "loss_shift_invariant": "The loss does not change when one number is added to every score.",
    "gradient_shift_invariant": "Nor does the gradient.",
    "hessian_exists": "The second derivatives exist.",
    "hessian_entry": "They are p yhat_k (delta_kj - yhat_j).",
    "hessian_symmetric": "The Hessian is symmetric.",
    "hessian_is_variance": "v H v is p times the variance of v under the prediction.",
    "hessian_nonneg": "So it is not negative, where p is not.",
    "lse_above_tangent": "log-sum-exp lies above each of its tangent planes.",
    "loss_above_tangent": "So does the loss.",
    "loss_convex": "The loss is convex in the scores.",
    "one_hot_nonneg": "A label's truth is not negative.",
    "one_hot_picks": "A label's truth picks one term of a sum.",
    "merge_correct": "Merging the partial sums (m, s) of two parts loses nothing: e^m s adds up.",
    "merge_commutative": "The order of two parts does not matter.",
    "merge_associative": "Nor does the bracketing of three.",
    "merge_identity": "No columns at all are the unit.",
    "any_plan_same_state": "Any tree of merges over the scores in any order arrives at the same (m, s).",
    "run_max": "Its m is the largest score.",
    "run_safe": "Its s is at least 1 and at most the number of scores: nothing overflows, and no logarithm is of 0.",
    "online_chunks": "A pass over two chunks, merged, is the pass over the whole.",
    "online_is_any_plan": "The pass that takes one score after another arrives there too.",
    "streaming_lse": "m + log s is the log-sum-exp of the whole row.",
    "streaming_softmax": "e^(z_k - m) / s is its softmax.",
}
_DEFINED = {"yhat": "softmax z", "L": "loss y z", "lse": "lse z", "p": "sum y", "g": "gradient y z", "mu": "mean z v"}
_OPERATORS = {"+": 1, "-": 1, "*": 3, "@": 3, "/": 3}


class Statement:
    """One equation of a derivation, said in Coq. Gathers on the way which variables it speaks of."""

    def __init__(self, derivation: Derivation, before: E, after: E, rel: str = "=", given: tuple[Fact, ...] = ()):
        self.bodies = {one.name: one for one in derivation.where}
        self.bound = frozenset({"yhat"} if POSITIVE in derivation.given else ())  # Part 2: yhat is any positive vector
        self.rows = any(RANGES[i] == "R" for line in (before, after) for i in _bound_letters(line))
        self.used: set[str] = set()
        self.indices: set[str] = set(letters(before) | letters(after))
        self.families: list[tuple[E, str | None, str]] = []  # a derivative, its bound index, its Coq name
        whole = before.op == "D"
        for e in (after,) if whole else (before, after):
            self._find(e, None)
        for e in (after,) if whole else (before, after):
            self._find(e, None, free=True)
        if whole:
            self.says = self._partial(before, f"({self.term(after)})" if not self.term(after).isalnum() else self.term(after), self.bound)
        else:
            self.says = f"{self.term(before)} {rel} {self.term(after)}"
        hypotheses = []
        for d, index, name in self.families:
            if index is None:
                hypotheses.append(self._partial(d, name, self.bound))
            else:
                size = self._size(index)
                hypotheses.append(f"(forall {index}, ({index} < {size})%nat -> {self._partial(d, f'({name} {index})', self.bound)})")
        facts = [self._fact(fact) for fact in (*derivation.given, *given)]
        apart = [f"{a} <> {b}" for a, b in derivation.distinct]
        bounds = [f"({i} < {self._size(i)})%nat" for i in sorted(self.indices)]
        if "n" in self.used and not any(RANGES[i] == "N" for i in self.indices):
            bounds = ["(0 < n)%nat", *bounds]
        self.hypotheses = [*bounds, *apart, *facts, *hypotheses]

    def __str__(self) -> str:
        groups: list[tuple[list[str], str]] = [
            ([s for s in SIZES.values() if s in self.used], "nat"),
            ([v for v in VECTORS if v in self.used and not (self.rows and v in ("x", "y"))], "vec"),
            ([v for v in ("W", "x", "y") if v in self.used and (self.rows or v == "W")], "nat -> vec"),
            ([s for s in SCALARS if s in self.used], "R"),
            (sorted(self.indices), "nat"),
            ([name for _, index, name in self.families if index is None], "R"),
            ([name for _, index, name in self.families if index is not None], "vec"),
        ]
        variables = " ".join(f"({' '.join(names)} : {kind})" for names, kind in groups if names)
        return f"forall {variables},\n  " + " ->\n  ".join([*self.hypotheses, self.says])

    # ---- terms

    def term(self, e: E, bound: frozenset[str] | None = None, level: int = 0) -> str:
        bound = self.bound if bound is None else bound
        text, own = self._term(e, bound)
        return f"({text})" if own < level else text

    def _term(self, e: E, bound: frozenset[str]) -> tuple[str, int]:
        o, a = e.op, e.args
        if o == "num":
            return str(a[0]), 9
        if o == "()":
            return self._term(a[0], bound)
        if o == "at":
            return self._at(a[0], a[1:], bound)
        if o in _OPERATORS:
            n = _OPERATORS[o]
            return f"{self.term(a[0], bound, n)} {'*' if o == '@' else o} {self.term(a[1], bound, n + 1)}", n
        if o == "neg":
            return f"- {self.term(a[0], bound, 4)}", 2  # - a * b is (- a) * b in Coq
        if o == "^":
            return f"{self.term(a[0], bound, 9)} ^ {self.term(a[1], bound, 9)}", 8
        if o == "delta":
            return f"delta {a[0]} {a[1]}", 8
        if o == "sum":
            body = f"(fun {a[0]} => {self.term(a[2], bound)})" if a[0] in letters(a[2]) else f"(fun _ => {self.term(a[2], bound)})"
            size = self._size(a[0])
            return (f"sum {size} {body}" if a[1] is None else f"sum_but {a[1]} {size} {body}"), 8
        if o == "D":
            return self._family(e), 8
        return f"{ {'log': 'ln'}.get(o, o) } {self.term(a[0], bound, 9)}", 8

    def _at(self, name: str, index: tuple[str, ...], bound: frozenset[str]) -> tuple[str, int]:
        row, index = (index[0], index[1:]) if index and RANGES[index[0]] == "R" else (None, index)
        if name == "N":
            return f"INR {self._size('i')}", 8
        if name in bound or name in ("v", "w", "u", "b", "W") or (name in SCALARS and name not in self.bodies):
            if name in self.bound or name not in bound:
                self.used.add(name)
            return " ".join((name, *index)), 8 if index else 9
        if name in self.bodies and row is None:
            head, body = self.bodies[name]
            self.indices |= letters(body) - set(head.args[1:])
            return self._term(reindex(body, dict(zip(head.args[1:], index, strict=True))), bound)
        if name not in _DEFINED:
            return " ".join((self.vec(name, bound, row).strip("()"), *index)), 8 if index else 9
        function, *vectors = _DEFINED[name].split() if name != "L" or "yhat" not in bound else ("cross_entropy", "y", "yhat")
        self.used |= {"v"} & set(vectors)
        return " ".join((function, self._size("i"), *(v if v == "v" else self.vec(v, bound, row) for v in vectors), *index)), 8

    def vec(self, name: str, bound: frozenset[str], row: str | None = None) -> str:
        """A whole vector."""
        if name == "yhat" and name not in bound:
            return f"(softmax {self._size('i')} {self.vec('z', bound, row)})"
        if name in self.bodies and name not in bound:
            head, body = self.bodies[name]
            inner = head.args[1]
            self.indices |= letters(body) - {inner}
            text = self.term(in_row(body, row) if row else body, bound)
            return f"(fun {inner if inner in letters(body) else '_'} => {text})"
        if row is not None and name in ("x", "y"):
            self.used.add(name)
            return f"({name} {row})"
        if name in self.bound or name not in bound:
            self.used.add(name)
        return name

    # ---- derivatives

    def _partial(self, d: E, value: str, bound: frozenset[str]) -> str:
        f, x = d.args
        name, *index = x.args
        function = f"(fun {name} => {self.term(f, bound | {name})})"
        where = self.vec(name, bound) if name != "W" else "W"
        self.used |= {"W"} if name == "W" else set()
        return f"partial{'2' if len(index) == 2 else ''} {function} {' '.join(index)} {where} {value}"

    def _find(self, e: E, index: str | None, free: bool = False) -> None:
        """Gather the derivatives in e: first those that run with a sum, as families, then the free ones."""
        if e.op == "D":
            runs = index is not None and index in letters(e)
            if runs and not free and self._known(e) is None:
                assert index is not None
                self.families.append((e, index, f"d{len(self.families) + 1}"))
            if not runs and free and self._known(e) is None:
                self.families.append((e, None, f"d{len(self.families) + 1}"))
            return
        for x in children(e):
            self._find(x, e.args[0] if e.op == "sum" else index, free)

    def _known(self, e: E) -> str | None:
        for d, index, name in self.families:
            if index is None and same(d, e):
                return name
            if index is not None:
                for i in sorted(letters(e)):
                    if RANGES[i] == RANGES[index] and same(reindex(d, {index: i}), e):
                        return f"{name} {i}"
        return None

    def _family(self, e: E) -> str:
        name = self._known(e)
        assert name is not None, e
        return name

    # ---- the rest

    def _fact(self, fact: Fact) -> str:
        says = f"{self.term(fact.left)} {fact.rel.replace('!=', '<>')} {self.term(fact.right)}"
        if fact.every is None:
            return says
        self.indices -= {fact.every} - self.indices
        return f"(forall {fact.every}, ({fact.every} < {self._size(fact.every)})%nat -> {says})"

    def _size(self, index: str) -> str:
        size = SIZES[RANGES[index]]
        self.used.add(size)
        return size


def _bound_letters(e: E) -> Iterator[str]:
    return (x.args[0] for x in walk(e) if x.op == "sum")


def statements(derivation: Derivation) -> Iterator[tuple[str, str]]:
    """(theorem, statement) of each line, and last of the whole: start = last line."""
    lines = derivation.lines
    for n, step in enumerate(derivation.steps, 1):
        yield derivation.theorem(n), str(Statement(derivation, lines[n - 1], step.expr, step.rel, step.given))
    given = tuple(dict.fromkeys(fact for step in derivation.steps for fact in step.given))
    yield derivation.name, str(Statement(derivation, lines[0], lines[-1], derivation.steps[-1].rel, given))
