"""An implementation under test: what its signature says, and the code that calls it.

A `Dialect` is a table of code. The laws run this code on the arrays of a case, and a report prints the same code with the arrays written
out. So what is printed is what was run.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from .. import contract
from ..partials import Array
from . import definition
from .case import Case, case, option_values

FN = "check"
LINES: dict[str, CodeType] = {}  # compiled code


class CallError(Exception):
    """An error that the subject raised, which is the cause of this one."""


class Dialect(NamedTuple):
    """How a framework is called. Code reads f, call, inputs, directions, upstream and the named arrays, and sets `result`."""

    name: str
    imports: str
    array: str  # a literal of {data} and {dtype}
    code: dict[str, str]  # from a mode ("loss", "gradients", ...) to the code
    layouts: dict[str, str]  # from a layout to an expression of the array {a}
    array_of: Callable[[Array, str], Any]  # from an array and a dtype to the framework's
    to_numpy: Callable[[Any], Array]
    class_axis: int = -1  # of logits with further axes of rows


NAMES = {  # the names that an option may have
    "class_weight": ("class_weight", "weight", "weights", "class_weights"), "label_smoothing": ("label_smoothing", "smoothing"),
    "ignore_index": ("ignore_index",), "sample_weight": ("sample_weight",), "z_loss": ("z_loss", "lse_square_scale"),
    "temperature": ("temperature",), "softcap": ("softcap",), "reduction": ("reduction",),
}  # fmt: skip
OPTIONS = frozenset(NAMES) - {"reduction"}
POSITIONAL = {  # the names of the first parameters, by the dialect: for logits, and for a linear head
    "numpy": (("logits", "labels"), ("x", "weight", "labels")),
    "torch": (("input", "target"), ("input", "linear_weight", "target")),
    "jax": (("logits", "labels"), ("x", "weight", "labels")),
    "sklearn": (("y_true", "y_proba"), ()),
}
LINEAR = {"linear_weight", "lin_weight"}
BIAS = ("linear_bias", "bias")


def load(name: str) -> tuple[Callable[..., Any], str]:
    """Return the function MODULE:FUNCTION and its name in that module."""
    module, colon, path = name.partition(":")
    if not (colon and module and path):
        contract.fail(FN, "subject", "be MODULE:FUNCTION, such as torch.nn.functional:cross_entropy", repr(name))
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        contract.fail(FN, "subject", "be a function that can be imported", f"{name!r} ({error})")
    if not callable(found):
        contract.fail(FN, "subject", "be a function", f"{name!r}, {type(found).__name__}")
    return found, path.rpartition(".")[2]


def dialect_of(f: Callable[..., Any], name: str) -> tuple[str, bool, bool]:
    """Return the dialect of a function, whether it computes a linear head, and whether it is log_softmax."""
    try:
        parameters = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        contract.fail(FN, "subject", "have a signature (say what it is called like with --as)", name)
    scope: dict[str, Any] = getattr(inspect.unwrap(f), "__globals__", {})
    modules = {value.__name__.partition(".")[0] for value in scope.values() if isinstance(value, ModuleType)}
    modules |= {str(getattr(value, "__module__", "")).partition(".")[0] for value in scope.values() if callable(value)}
    first = parameters[:3]
    linear = bool(set(first) & LINEAR) or ("weight" in first and "labels" in first)
    if set(first) & {"y_true"}:
        return "sklearn", False, False
    if name == "log_softmax":
        framework = "torch" if "dim" in parameters else "jax" if "jax" in modules else "numpy"
        return framework, False, True
    if "target" in first or "linear_weight" in first or ("torch" in modules and "jax" not in modules and "labels" not in first):
        return "torch", linear, False
    own = str(getattr(f, "__module__", "")).split(".")
    if "jax" in modules or "jax" in own or own[0] in ("optax", "jax"):
        return "jax", linear, False
    if "torch" in modules:
        return "torch", linear, False
    return "numpy", linear, False


def _dialect(name: str) -> Dialect:
    if name == "torch":
        from .of_torch import TORCH

        return TORCH
    if name == "jax":
        from .of_jax import JAX

        return JAX
    return SKLEARN if name == "sklearn" else NUMPY


class Subject:
    """A function under test.

    Args:
        subject: the function, or its name as MODULE:FUNCTION.
        as_: "numpy", "torch", "jax" or "sklearn", with "-linear" for a linear head or "-log_softmax"; None: by the signature.
    """

    def __init__(self, subject: str | Callable[..., Any], as_: str | None = None) -> None:
        if isinstance(subject, str):
            self.f, self.short = load(subject)
            self.name = subject
        else:
            self.f, self.short = subject, getattr(subject, "__name__", "f")
            self.name = f"{getattr(subject, '__module__', '')}:{self.short}"
        if as_ is None:
            framework, self.linear, self.log_softmax = dialect_of(self.f, self.short)
        else:
            framework, _, kind = as_.partition("-")
            if framework not in POSITIONAL or kind not in ("", "linear", "log_softmax"):
                contract.fail(FN, "as", "be numpy, torch, jax or sklearn, with -linear or -log_softmax", repr(as_))
            self.linear, self.log_softmax = kind == "linear", kind == "log_softmax"
        self.dialect = _dialect(framework)
        parameters = inspect.signature(self.f).parameters
        self.parameters = list(parameters)
        positional = self.parameters[: 3 if self.linear else 2]
        spelled = {option: [n for n in names if n in parameters and n not in positional] for option, names in NAMES.items()}
        self.spelled = {option: names[0] if names else "" for option, names in spelled.items()}
        self.gradient_of = self._sibling("_and_grad") if framework == "numpy" else None
        self.can = frozenset(mode for mode in self.dialect.code if mode != "gradients" or framework != "numpy" or self.gradient_of)
        self.can |= {"strides"} if len(self.dialect.layouts) > 1 else set()
        self.can |= set() if framework == "sklearn" or self.log_softmax else {"axes"}
        self.last: tuple[str, Case, dict[str, Array] | None] | None = None  # what was run last
        self.announce: Callable[[], None] = lambda: None  # called before each run
        self.reductions = self._reductions()
        for option in (option for option, names in spelled.items() if len(names) > 1):
            self.spelled[option] = self._name_of(option, spelled[option])
        options = {option for option in OPTIONS if self.spelled[option]}
        self.hard, soft = self._takes(False), self._takes(True)
        self.options = frozenset(options | ({"probabilities"} if soft else set()))

    def _sibling(self, suffix: str) -> Callable[..., Any] | None:
        module = sys.modules.get(getattr(self.f, "__module__", ""))
        if ":" in self.name:
            module = sys.modules.get(self.name.partition(":")[0], module)
        return getattr(self.f, "and_grad", None) or getattr(module, self.short + suffix, None)

    def _reductions(self) -> tuple[str, ...]:
        if self.spelled["reduction"]:
            return ("none", "sum", "mean")
        return ("sum", "mean") if "normalize" in self.parameters else ("none",)

    def _takes(self, soft: bool) -> bool:
        """Whether the loss of labels, or of probabilities, is about right. If the reduction is no option, find out which one it is."""
        one = replace(case(2, 3, linear=self.linear, soft=soft), upstream=1.0)
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
            try:
                self.run("loss", option_values(case(2, 3, linear=self.linear), (option,)))
            except CallError:
                continue
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
        if "b" in one.inputs and (bias := next((n for n in BIAS if n in self.parameters), None)):
            named.insert(0, f"{bias}=b")
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

    def arrays(self, one: Case, directions: dict[str, Array] | None = None) -> dict[str, Any]:
        """Return the arrays of a case in the framework, by name."""
        make, dtype = self.dialect.array_of, one.dtype
        found = {name: make(a, dtype) for name, a in one.inputs.items()}
        found["labels"] = make(one.labels, dtype if one.soft else "int64")
        found |= {name: make(x, dtype) for name, x in one.options.items() if isinstance(x, np.ndarray)}
        found["upstream"] = make(np.asarray(one.upstream, np.float64), dtype)
        if directions is not None:
            found["directions"] = [make(directions[name], dtype) for name in one.differentiated()]
        if self.dialect.name == "sklearn":
            found = {"p": self.probabilities(one), "labels": found["labels"]} | {
                name: a for name, a in found.items() if name == "sample_weight"
            }
        return found

    def run(self, mode: str, one: Case, directions: dict[str, Array] | None = None, arrays: dict[str, Any] | None = None) -> list[Array]:
        """Run the code of this mode and return its results in float64 (in which all others are exact)."""
        self.last = (mode, one, directions)
        self.announce()
        text = self.code(mode, one)
        if text not in LINES or mode == "compile":  # torch.compile remembers a code object, with the variables of its first run
            LINES[text] = compile(text, f"<{mode} of {self.name}>", "exec")
        scope = {"f": self.f, "f_and_grad": self.gradient_of} | (self.arrays(one, directions) if arrays is None else arrays)
        exec(self.dialect.imports, scope)
        try:
            exec(LINES[text], scope)
        except Exception as error:
            raise CallError(f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}") from error
        result = scope["result"]
        results = result if isinstance(result, (tuple, list)) else [result]
        found = [self.dialect.to_numpy(a) for a in results]
        if mode != "compile":  # which keeps the variables
            scope.clear()  # `call` refers to it: without this, the arrays would live until the next garbage collection
        return found

    def probabilities(self, one: Case) -> Array:
        """Return the probabilities that a function of probabilities is given in place of logits."""
        z = one.inputs["z"]
        with np.errstate(invalid="ignore"):
            e = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
        return _numpy_array(e / e.sum(axis=1, keepdims=True), one.dtype)

    def script(self, mode: str, one: Case, directions: dict[str, Array] | None = None) -> str:
        """Return a script that prints what this mode gives for a case."""
        module, _, path = self.name.partition(":")
        scalar, outer = self.dialect.array, path.partition(".")[0]
        lines = ["from math import inf, nan", self.dialect.imports, f"from {module} import {outer}", f"f = {path}"]
        if one.dtype == "bfloat16" and self.dialect.imports == NUMPY.imports:
            lines.append("import ml_dtypes")
        if self.gradient_of is not None and "f_and_grad" in self.dialect.code[mode]:
            lines += [f"from {module} import {path}_and_grad", f"f_and_grad = {path}_and_grad"]
        arrays: dict[str, tuple[Array, str]] = {name: (a, one.dtype) for name, a in one.inputs.items()}
        arrays["labels"] = (one.labels, one.dtype if one.soft else "int64")
        arrays |= {name: (x, one.dtype) for name, x in one.options.items() if isinstance(x, np.ndarray)}
        if self.dialect.name == "sklearn":
            arrays = {"p": (self.probabilities(one).astype(np.float64), one.dtype)} | {
                n: a for n, a in arrays.items() if n in ("labels", "sample_weight")
            }
        text = self.code(mode, one)
        if "upstream" in text:
            arrays["upstream"] = (np.asarray(one.upstream, np.float64), one.dtype)
        lines += [f"{name} = {scalar.format(data=a.tolist(), dtype=dtype)}" for name, (a, dtype) in arrays.items()]
        if directions is not None:
            listed = [scalar.format(data=directions[name].tolist(), dtype=one.dtype) for name in one.differentiated()]
            lines.append(f"directions = [{', '.join(listed)}]")
        return "\n".join([*lines, text, "print(result)"])


def _numpy_array(a: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise CallError("NumPy has bfloat16 only with ml_dtypes") from error
        return a.astype(ml_dtypes.bfloat16)
    return a.astype(dtype)


STRIDES = {
    "contiguous": "{a}",
    "transposed": "{a}.T.copy().T",
    "every second": "np.repeat({a}, 2, axis=-1)[..., ::2]",
    "reversed": "{a}[..., ::-1].copy()[..., ::-1]",
    "misaligned": "np.frombuffer(b'-' + {a}.tobytes(), {a}.dtype, offset=1).reshape({a}.shape)",
}
NUMPY = Dialect(
    "numpy",
    "import numpy as np",
    "np.array({data}, '{dtype}')",
    {
        "loss": "result = call(*inputs)",
        "gradients": "result = list(f_and_grad({call}, upstream=upstream)[1:])",
        "log_softmax": "-np.take_along_axis(f(z, axis=-1), labels[:, None], axis=-1)[:, 0]",
    },
    STRIDES,
    _numpy_array,
    lambda a: np.asarray(a).astype(np.float64),
)
SKLEARN = NUMPY._replace(name="sklearn", code={"loss": "result = f({call})"}, layouts={"contiguous": "{a}"})
