"""Softmax cross-entropy for JAX.

`softmax_cross_entropy_with_integer_labels` and `softmax_cross_entropy` replace the functions of these names in optax. `cross_entropy` has
the options of `softxent.cross_entropy`, and `linear_cross_entropy` computes a linear head and its loss together, a chunk of rows at a time.
docs/jax.md is the guide.
"""

from __future__ import annotations

try:
    import jax  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    from ..contract import install

    message = f"softxent.jax needs JAX: pip install jax, or in a clone of softxent: {install('jax')}"
    raise ModuleNotFoundError(message, name="jax") from None

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
from .operators import use_backend

__all__ = [
    "Result", "cross_entropy", "entropy", "linear_cross_entropy", "log_softmax", "logsumexp", "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels", "use_backend",
]  # fmt: skip
