"""How an implementation is called: what its signature says, and the code for each framework."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .. import contract
from ..partials import Array

FN = "check"


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
    running: Callable[[], AbstractContextManager[Any]] = nullcontext  # the settings of the framework, while code runs


NAMES = {  # the names that an option may have
    "class_weight": ("class_weight", "weight", "weights", "class_weights"), "label_smoothing": ("label_smoothing", "smoothing"),
    "ignore_index": ("ignore_index",), "sample_weight": ("sample_weight",), "z_loss": ("z_loss", "lse_square_scale"),
    "temperature": ("temperature",), "softcap": ("softcap",), "reduction": ("reduction",),
}  # fmt: skip
OPTIONS = frozenset(NAMES) - {"reduction"}
FRAMEWORKS, KINDS = ("numpy", "torch", "jax", "sklearn"), ("", "linear", "log_softmax")
LINEAR = {"linear_weight", "lin_weight"}
BIAS = ("linear_bias", "bias")


def load(name: str) -> tuple[Callable[..., Any], str]:
    """Return the function MODULE:FUNCTION and its name in that module."""
    module, colon, path = name.partition(":")
    if not (colon and module and path):
        contract.fail(FN, "subject", "be MODULE:FUNCTION, such as torch.nn.functional:cross_entropy", contract.shown(name))
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        contract.fail(FN, "subject", "be a function that can be imported", f"{contract.shown(name)} ({error})")
    if not callable(found):
        contract.fail(FN, "subject", "be a function", f"{contract.shown(name)}, {type(found).__name__}")
    return found, path.rpartition(".")[2]


def called_like(f: Callable[..., Any], name: str, sibling: bool) -> tuple[str, str]:
    """Return the framework of a function and its kind, by the names of its parameters and the modules that its module uses.

    `sibling` says whether its module has a function for its gradient, as NumPy's need.
    """
    try:
        parameters = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        contract.fail(FN, "subject", "have a signature", name)
    first = parameters[:3]
    scope: dict[str, Any] = getattr(inspect.unwrap(f), "__globals__", {})
    used = set(str(getattr(f, "__module__", "")).split("."))
    used |= {value.__name__.partition(".")[0] for value in scope.values() if isinstance(value, ModuleType)}
    kind = "log_softmax" if name == "log_softmax" else "linear" if set(first) & LINEAR or {"weight", "labels"} <= set(first) else ""
    if "y_true" in first:
        return "sklearn", ""
    if {"target", "linear_weight"} & set(first) or "dim" in parameters:
        return "torch", kind
    if sibling:
        return "numpy", kind
    return next((framework for framework in ("jax", "torch") if framework in used), "numpy"), kind


def parsed(as_: str) -> tuple[str, str]:
    """Return the framework and the kind of an argument such as "torch-linear"."""
    framework, _, kind = as_.partition("-")
    if framework not in FRAMEWORKS or kind not in KINDS:
        contract.fail(FN, "as", "be numpy, torch, jax or sklearn, with -linear or -log_softmax", contract.shown(as_))
    return framework, kind


def dialect(name: str) -> Dialect:
    if name == "torch":
        from .of_torch import TORCH

        return TORCH
    if name == "jax":
        from .of_jax import JAX

        return JAX
    return SKLEARN if name == "sklearn" else NUMPY


def numpy_array(a: Array, dtype: str) -> Array:
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
    numpy_array,
    lambda a: np.asarray(a).astype(np.float64),
)
SKLEARN = NUMPY._replace(name="sklearn", code={"loss": "result = f({call})"}, layouts={"contiguous": "{a}"})
