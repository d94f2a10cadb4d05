"""The functions of NumPy that formula.py and partials.py use, for the arrays of JAX, and the types of JAX in which they are computed.

`as_rows` registers the type of its arrays in `partials.LIBRARIES`.
"""

from __future__ import annotations

import sys
from typing import Any

import jax.numpy as jnp

from ..partials import LIBRARIES

Array = Any  # jax.Array, or a tracer of it

exp, log, tanh, cosh, logaddexp, max = jnp.exp, jnp.log, jnp.tanh, jnp.cosh, jnp.logaddexp, jnp.max
where, maximum, zeros_like, asarray = jnp.where, jnp.maximum, jnp.zeros_like, jnp.asarray


def arange(n: int, like: Array) -> Array:
    return jnp.arange(n, dtype=like.dtype)


def widest() -> Any:
    """Return the type of the numbers and results of rows: float64 if JAX enables it, and else float32."""
    return jnp.result_type(float)


def computed_in(dtype: Any) -> Any:
    """Return the type in which the kernels compute for logits of this dtype."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def as_rows(a: Array, axes: int) -> Array:
    """Return `a` as an array in which the first axes are one, but for the last `axes` ones, for formula.py."""
    found = a.reshape(-1, *a.shape[a.ndim - axes :])
    LIBRARIES.setdefault(type(found), sys.modules[__name__])
    return found


LIBRARIES[type(jnp.zeros(()))] = sys.modules[__name__]
