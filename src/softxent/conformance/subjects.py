"""An implementation under test: what it takes, and the code that calls it.

The laws run the code of its dialect (dialects.py) on the arrays of a case, and a report prints the same code with the arrays written out.
So what is printed is what was run.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import contract
from ..partials import Array
from . import definition
from .case import Case, case, option_values
from .dialects import BIAS, FN, NAMES, NUMPY, OPTIONS, CallError, called_like, dialect, load, numpy_array, parsed

if TYPE_CHECKING:
    from .ranks import Ranks

DTYPES = ("float64", "float32", "bfloat16", "float16")
LINES: dict[str, CodeType] = {}  # compiled code


class Subject:
    """A function under test.

    Args:
        subject: the function, or its name as MODULE:FUNCTION.
        as_: "numpy", "torch", "jax" or "sklearn", with "-linear" for a linear head or "-log_softmax"; None: by the signature.
        ranks: the number of processes among which the classes are divided. With more than one, the function takes DTensors.
    """

    def __init__(self, subject: str | Callable[..., Any], as_: str | None = None, ranks: int = 1) -> None:
        if isinstance(subject, str):
            self.f, self.short = load(subject)
            self.name = subject
        else:
            self.f, self.short = subject, getattr(subject, "__name__", "f")
            self.name = f"{getattr(subject, '__module__', '')}:{self.short}"
        sibling = self._sibling()
        framework, kind = called_like(self.f, self.short, sibling is not None) if as_ is None else parsed(as_)
        self.linear, self.log_softmax = kind == "linear", kind == "log_softmax"
        self.dialect, self.kind = dialect(framework), f"{framework}-{kind}" if kind else framework
        self.gradient_of = sibling if framework == "numpy" else None
        self.ranks = self._divide(ranks) if ranks > 1 else None
        self.last: tuple[str, Case, dict[str, Array] | None] | None = None  # what was run last
        self.announce: Callable[[], None] = lambda: None  # called before each run
        self.dtypes: tuple[str, ...] = tuple(getattr(self.f, "dtypes", DTYPES))  # the first is the widest
        self.parameters = list(inspect.signature(self.f).parameters)
        others = self.parameters[3 if self.linear else 2 :]
        self.bias = next((name for name in BIAS if name in self.parameters), "") if self.linear else "b"
        spelled = {option: [name for name in names if name in others] for option, names in NAMES.items()}
        self.spelled = {option: names[0] if names else "" for option, names in spelled.items()}
        for option in (option for option, names in spelled.items() if len(names) > 1):
            self.spelled[option] = self._name_of(option, spelled[option])
        self.reductions = self._reductions()
        hard, soft = self._takes(False), self._takes(True)
        self.hard = hard or not soft
        self.options = frozenset({option for option in OPTIONS if self.spelled[option]} | ({"probabilities"} if soft else set()))
        self.can = frozenset(mode for mode in self.dialect.code if mode != "gradients" or framework != "numpy" or self.gradient_of)
        self.can |= {"strides"} if len(self.dialect.layouts) > 1 else set()
        self.can |= set() if framework == "sklearn" or self.log_softmax else {"axes"}
        self.can -= {"undefined upstream"} if self.ranks else set()  # torch's DTensor.redistribute cannot take one

    def _sibling(self) -> Callable[..., Any] | None:
        """Return the function of the same module that gives the gradient, if there is one."""
        module = sys.modules.get(self.name.partition(":")[0])
        found: Callable[..., Any] | None = getattr(module, self.short + "_and_grad", None)
        return found

    def _divide(self, ranks: int) -> Ranks:
        """Start the other ranks, and divide the classes of the function among all of them."""
        if self.dialect.name != "torch" or self.log_softmax:
            contract.fail(FN, "ranks", "be 1 for a function that does not have the signature of torch's", ranks)
        from .ranks import Ranks, divided

        others = Ranks(ranks, self.name)
        self.f = divided(self.f)
        return others

    def _small(self, soft: bool) -> Case:
        return case(2, 3, linear=self.linear, bias=bool(self.bias), soft=soft, dtype=self.dtypes[0])

    def _runs(self, one: Case) -> bool:
        try:
            self.run("loss", one)
        except CallError:
            return False
        return True

    def _reductions(self) -> tuple[str, ...]:
        """Return the reductions that the function accepts, or ("none",) where it has no choice, until `_takes` knows better."""
        if not self.spelled["reduction"]:
            return ("sum", "mean") if "normalize" in self.parameters else ("none",)
        both = [self._small(soft) for soft in (False, True)]
        accepted = [r for r in ("none", "sum", "mean") if any(self._runs(one.with_options(reduction=r)) for one in both)]
        return tuple(accepted) or ("none", "sum", "mean")

    def _takes(self, soft: bool) -> bool:
        """Whether the loss of labels, or of probabilities, is about right. If the reduction is no option, find out which one it is."""
        one = self._small(soft)
        named = self.reductions
        for reduction in named if len(named) > 1 else ("none", "sum", "mean"):
            one = one.with_options(reduction=reduction)
            if len(named) == 1:
                self.reductions = (reduction,)
            try:
                found, want = self.run("loss", one)[0], definition.loss(one)
            except CallError:
                continue
            if found.shape == want.shape and (np.abs(found - want) <= 0.2 * np.abs(want)).all():
                return True
        self.reductions = named
        return False

    def _name_of(self, option: str, names: list[str]) -> str:
        """Return the one of these names that is accepted: a function may have the name of another framework, to refuse it."""
        for name in names:
            self.spelled[option] = name
            if self._runs(option_values(self._small(False), (option,))):
                return name
        return names[0]

    # ---- what is run, and printed ----

    def _call(self, one: Case) -> str:
        """Return the code of the call, as a function of the differentiated arguments."""
        named = []
        for option, value in one.options.items():
            spelled = self.spelled.get(option)
            if option == "reduction" and not spelled:
                if "normalize" in self.parameters:
                    named.append(f"normalize={value == 'mean'}")
            elif spelled:
                named.append(f"{spelled}={option if isinstance(value, np.ndarray) else repr(value)}")
        if self.dialect.name == "sklearn":
            return ", ".join(["labels", "p", f"labels=range({one.classes})", *named])
        first = ["x", "W", "labels"] if self.linear else ["z", "labels"]
        if "b" in one.inputs and self.bias:
            named.insert(0, f"{self.bias}=b")
        return ", ".join([*first, *named])

    def code(self, mode: str, one: Case) -> str:
        """Return the code that is run in this mode, without the arrays."""
        names = list(one.differentiated())
        if self.dialect.name == "sklearn":
            return self.dialect.code[mode].format(call=self._call(one))
        lines = [] if one.layout == "contiguous" else self._laid_out(one)
        listed = ", ".join(names)
        body = f"f({self._call(one)})"
        if self.log_softmax:
            body = self.dialect.code["log_softmax"]
        lines += [f"inputs = [{listed}]", f"call = lambda {listed}: {body}", self.dialect.code[mode].format(call=self._call(one)).strip()]
        return "\n".join(lines)

    def _laid_out(self, one: Case) -> list[str]:
        """Return the lines that give the arrays the layout of the case."""
        if one.layout != "two axes":
            return [f"{name} = {self.dialect.layouts[one.layout].format(a=name)}" for name, a in one.inputs.items() if a.ndim > 1]
        of_rows = [*one.inputs, "labels", *one.options]
        lines = []
        for name in (name for name in of_rows if name in ("z", "x", "labels", "sample_weight")):
            classes = name == "z" or (name == "labels" and one.soft)
            last = f", {name}.shape[-1]" if classes or name == "x" else ""
            to_front = ".movedim(-1, 1)" if classes and self.dialect.class_axis == 1 and not self.linear else ""
            lines.append(f"{name} = {name}.reshape(2, -1{last}){to_front}")
        return lines

    def _given(self, one: Case) -> dict[str, tuple[Array, str]]:
        """Return the arrays of a case and their dtypes, by the names that they have in the code."""
        arrays = one.inputs | {"labels": one.labels} | {name: x for name, x in one.options.items() if isinstance(x, np.ndarray)}
        if self.dialect.name == "sklearn":
            arrays = {"p": self.probabilities(one)} | {name: a for name, a in arrays.items() if name != "z"}
        else:
            arrays["upstream"] = np.asarray(one.upstream, np.float64)
        return {name: (a, one.dtype if a.dtype.kind != "i" else "int64") for name, a in arrays.items()}

    def arrays(self, one: Case, directions: dict[str, Array] | None = None) -> dict[str, Any]:
        """Return the arrays of a case in the framework, by name."""
        found: dict[str, Any] = {name: self.dialect.array_of(a, dtype) for name, (a, dtype) in self._given(one).items()}
        if directions is not None:
            found["directions"] = [self.dialect.array_of(directions[name], one.dtype) for name in one.differentiated()]
        return found

    def run(self, mode: str, one: Case, directions: dict[str, Array] | None = None, arrays: dict[str, Any] | None = None) -> list[Array]:
        """Run the code of this mode and return its results in float64 (in which all others are exact)."""
        self.last = (mode, one, directions)
        self.announce()
        with self.dialect.running():
            return self._results(mode, one, directions, arrays)

    def _results(
        self, mode: str, one: Case, directions: dict[str, Array] | None, arrays: dict[str, Any] | None
    ) -> list[Array]:  # fmt: skip
        text = self.code(mode, one)
        if text not in LINES or mode == "compile":  # torch.compile remembers a code object, with the variables of its first run
            LINES[text] = compile(text, f"<{mode} of {self.name}>", "exec")
        arrays = self.arrays(one, directions) if arrays is None else arrays
        scope = {"f": self.f, "f_and_grad": self.gradient_of} | arrays
        exec(self.dialect.imports, scope)
        if self.ranks:
            self.ranks.begin(text, arrays)
        try:
            exec(LINES[text], scope)
        except Exception as error:
            short = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"
            if self.ranks:
                self.ranks.end(short, [])
            raise CallError(short) from error
        result = scope["result"]
        results = result if isinstance(result, (tuple, list)) else [result]
        found = [self.dialect.to_numpy(a) for a in results]
        if self.ranks:
            self.ranks.end("", found)
        if mode != "compile":  # which keeps the variables
            scope.clear()  # `call` refers to it: without this, the arrays would live until the next garbage collection
        return found

    def probabilities(self, one: Case) -> Array:
        """Return the probabilities that a function of probabilities is given in place of logits."""
        z = one.inputs["z"]
        with np.errstate(invalid="ignore"):
            e = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
        return numpy_array(e / e.sum(axis=1, keepdims=True), one.dtype)

    def script(self, mode: str, one: Case, directions: dict[str, Array] | None = None) -> str:
        """Return a script that prints what this mode gives for a case."""
        module, _, path = self.name.partition(":")
        lines = ["from math import inf, nan", self.dialect.imports, f"from {module} import {path.partition('.')[0]}", f"f = {path}"]
        if self.ranks:
            lines.insert(0, f"# torchrun --nproc-per-node {len(self.ranks.processes) + 1} THIS_FILE")
            lines += ["from softxent.conformance.ranks import divided", "f = divided(f)"]
        if one.dtype == "bfloat16" and self.dialect.imports == NUMPY.imports:
            lines.append("import ml_dtypes")
        text = self.code(mode, one)
        if "f_and_grad" in text:
            lines += [f"from {module} import {path}_and_grad", f"f_and_grad = {path}_and_grad"]
        lines += [f"{name} = {self._literal(a, dtype)}" for name, (a, dtype) in self._given(one).items() if name in text]
        if directions is not None:
            listed = [self._literal(directions[name], one.dtype) for name in one.differentiated()]
            lines.append(f"directions = [{', '.join(listed)}]")
        return "\n".join([*lines, text, "print(result)"])

    def _literal(self, a: Array, dtype: str) -> str:
        shaped = "" if a.size else f".reshape{a.shape}"  # an empty list has no shape
        return self.dialect.array.format(data=a.astype(np.float64).tolist() if a.dtype.kind != "i" else a.tolist(), dtype=dtype) + shaped
