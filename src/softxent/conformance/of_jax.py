"""How a function with the signature of optax or JAX is called, differentiated, transformed and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..partials import Array
from .dialects import Dialect


@contextmanager
def _with_float64() -> Iterator[None]:
    """Restore JAX's setting of 64-bit types at the end: a law may run in the process of somebody's tests."""
    import jax

    config: Any = jax.config
    before = config.jax_enable_x64
    config.update("jax_enable_x64", True)  # the laws in float64 need it
    try:
        yield
    finally:
        config.update("jax_enable_x64", before)


def _jax_array(a: Array, dtype: str) -> Any:
    import jax

    with _with_float64():
        return jax.numpy.asarray(a, dtype)


def _array(a: Any) -> Array:
    return np.asarray(a).astype(np.float64)


VALUE = "value = lambda *args: (upstream * call(*args)).sum()\n"
SQUARE = "value = lambda *args: (upstream * call(*args)).sum() ** 2\n"
EACH = "tuple(range(len(inputs)))"
STACKED = "stacked = [jnp.stack([t, 2 * t]) for t in inputs]\n"

JAX = Dialect(
    "jax",
    "import jax, jax.numpy as jnp\njax.config.update('jax_enable_x64', True)",
    "jnp.array({data}, '{dtype}')",
    {
        "loss": "result = call(*inputs)",
        "gradients": "loss, pull = jax.vjp(call, *inputs)\nresult = pull(jnp.broadcast_to(upstream, loss.shape).astype(loss.dtype))",
        "jvp": "result = jax.jvp(call, tuple(inputs), tuple(directions))[1]",
        "double backward": SQUARE + f"first, pull = jax.vjp(jax.grad(value, {EACH}), *inputs)\nresult = pull(tuple(directions))",
        "forward over reverse": SQUARE + f"result = jax.jvp(jax.grad(value, {EACH}), tuple(inputs), tuple(directions))[1]",
        "vmap": STACKED + "result = jax.vmap(call)(*stacked)",
        "vmap of gradients": STACKED + VALUE + f"result = jax.vmap(jax.grad(value, {EACH}))(*stacked)",
        "compile": VALUE + f"result = [jax.jit(call)(*inputs), *jax.jit(jax.grad(value, {EACH}))(*inputs)]",
        "log_softmax": "-jnp.take_along_axis(f(z, axis=-1), labels[:, None], axis=-1)[:, 0]",
    },
    {"contiguous": "{a}"},
    _jax_array,
    _array,
    running=_with_float64,
)
