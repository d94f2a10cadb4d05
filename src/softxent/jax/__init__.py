"""Softmax cross-entropy for JAX.

`softmax_cross_entropy_with_integer_labels` and `softmax_cross_entropy` replace the functions of these names in optax. `cross_entropy` has
the options of `softxent.cross_entropy`, and `linear_cross_entropy` computes a linear head and its loss together, a chunk of rows at a time.
docs/jax.md is the guide.
"""

from __future__ import annotations

try:
    import jax
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    from ..contract import install

    message = f"softxent.jax needs JAX: pip install jax, or in a clone of softxent: {install('jax')}"
    raise ModuleNotFoundError(message, name="jax") from None

from .. import kernels as _kernels
from ..kernels import Backend
from . import native as _native
from .arguments import Result
from .linear import linear_cross_entropy
from .loss import (
    cross_entropy,
    entropy,
    log_softmax,
    logsumexp,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from .operators import by_formula as _by_formula
from .operators import use_backend

__all__ = [
    "Result", "backends", "cross_entropy", "entropy", "linear_cross_entropy", "log_softmax", "logsumexp", "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels", "use_backend",
]  # fmt: skip


def backends() -> list[Backend]:
    """List the backends, whether each is available here, and whether functions that JAX traces now for its default platform use it.

    "cpu", the compiled kernel, is called by XLA on CPUs. "formula", the equations in jax.numpy, is for all other platforms, and for CPUs
    where the kernel is missing or jaxlib refuses it; `detail` then says why.
    """
    kernel = next(b for b in _kernels.backends() if b.name == "cpu")
    active = jax.default_backend() == "cpu" and not _native.missing and not _by_formula()
    return [
        Backend("cpu", not _native.missing, active, _native.missing or f"{kernel.detail}, called by XLA"),
        Backend("formula", True, not active, "jax.numpy, for other platforms"),
    ]
