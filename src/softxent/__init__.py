"""Softmax cross-entropy for NumPy arrays: the loss, its gradient and related functions.

The same layer for PyTorch is in `softxent.torch`, and the command `softxent` shows, proves and measures it. Importing this package loads
NumPy and nothing else; `softxent.torch` and the other submodules are loaded when they are used. Options are described at `cross_entropy`.

>>> import numpy as np, softxent
>>> loss, dz = softxent.cross_entropy_and_grad(np.array([[2.0, 1.0, 0.1]]), np.array([0]))
>>> print(round(float(loss), 6), dz.round(6))
0.41703 [[-0.340999  0.242433  0.098566]]
"""

import typing as _typing

from ._explain import Explanation, explain
from .filtering import FilterStats
from .kernels import Backend, backends, empty_cache, get_num_threads, set_num_threads, use_backend
from .linear import linear_cross_entropy, linear_cross_entropy_and_grad, linear_cross_entropy_ggn, linear_cross_entropy_hvp
from .loss import cross_entropy, cross_entropy_and_grad, cross_entropy_hvp, token_logprobs, token_logprobs_and_grad
from .probabilities import entropy, entropy_and_grad, log_softmax, logsumexp, softmax, softmax_jacobian, softmax_vjp

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "Explanation",
    "FilterStats",
    "backends",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_hvp",
    "empty_cache",
    "entropy",
    "entropy_and_grad",
    "explain",
    "get_num_threads",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "linear_cross_entropy_ggn",
    "linear_cross_entropy_hvp",
    "log_softmax",
    "logsumexp",
    "set_num_threads",
    "softmax",
    "softmax_jacobian",
    "softmax_vjp",
    "token_logprobs",
    "token_logprobs_and_grad",
    "use_backend",
]

_NEEDS = {"boosting": "numpy", "conformance": "numpy", "jax": "jax", "proof": "numpy", "sklearn": "sklearn", "torch": "torch"}

if _typing.TYPE_CHECKING:  # a type checker that saw __getattr__ would accept every name
    from . import boosting as boosting
    from . import conformance as conformance
    from . import jax as jax
    from . import proof as proof
    from . import sklearn as sklearn
    from . import torch as torch
else:

    def __getattr__(name: str) -> object:
        """Import a submodule when it is used first. Where its framework is missing, the ImportError says what to install."""
        if name not in _NEEDS:
            raise AttributeError(f"module 'softxent' has no attribute {name!r}")
        from importlib import import_module

        return import_module(f".{name}", __name__)

    def __dir__() -> list[str]:
        """Leave out submodules whose framework is missing, so that inspect.getmembers, which gets every name, raises nothing."""
        from importlib.util import find_spec

        return sorted({*globals(), *(name for name, package in _NEEDS.items() if find_spec(package))})
