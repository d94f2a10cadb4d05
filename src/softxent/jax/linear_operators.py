"""What the rows of logits = x W^T + b give, and its derivatives, a chunk of logits at a time.

linear.py uses this file. `head_rows` computes the outputs of every row. `head_mean` computes the mean of the losses and, where that is
differentiated, the gradients in the same pass. Both are loops (`lax.scan`) over chunks of rows. The body of a loop is under
`jax.checkpoint`, so that derivatives of any order and in every mode hold no more than a chunk of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..call import Call, Static
from . import devices, operators
from .arrays import Array, widest
from .call import FIRST, IGNORED, Fixed, averaged, operands, restored, special
from .private import SymbolicZero, varies_over
from .steps import added_up


class Head(NamedTuple):
    """A linear head: logits = x W^T + b."""

    x: Array  # [N, D]
    w: Array  # [C, D]
    b: Array | None  # [C]

    def logits(self) -> Array:
        z = lax.dot_general(self.x, self.w, (((1,), (1,)), ((), ())))
        return z if self.b is None else z + self.b


def head_rows(head: Head, truth: Call, static: Static, outputs: tuple[str, ...], step: int) -> list[Array]:
    """Return the outputs of every row, as `operators.rows`. The logits of `truth` are not read."""
    arrays, fixed = operands(truth)
    found: list[Array] = _head_rows(fixed, static, outputs, step, operators.by_formula(), head, arrays)
    return found


# Under jit, so that calls outside of it do not compile the loop anew each time. The backend is an argument because it is chosen when JAX
# traces.
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _head_rows(
    fixed: Fixed, static: Static, outputs: tuple[str, ...], step: int, by_formula: bool, head: Head, arrays: list[Array]
) -> list[Array]:  # fmt: skip
    truth = restored(arrays, fixed)

    def of_a_chunk(carry: None, x: Array, truth: Call) -> tuple[None, list[Array]]:
        return None, operators.rows(truth._replace(z=head._replace(x=x).logits()), static, outputs)

    found: list[Array] = _by_chunks(of_a_chunk, None, head.x, truth, step)[1]
    return found


def head_mean(fixed: Fixed, static: Static, step: int, head: Head, truth: list[Array], total: Array) -> Array:
    """Return the sum of the losses divided by `total`. `truth` has the arrays of a call whose logits are not read, `fixed` its numbers."""
    return _head_mean_under_jit(fixed, static, step, operators.by_formula(), head, truth, total)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _head_mean_under_jit(
    fixed: Fixed, static: Static, step: int, by_formula: bool, head: Head, truth: list[Array], total: Array
) -> Array:  # fmt: skip
    return _head_mean(fixed, static, step, head, truth, total)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _head_mean(fixed: Fixed, static: Static, step: int, head: Head, truth: list[Array], total: Array) -> Array:
    return averaged(head_rows(head, restored(truth, fixed), static, FIRST, step)[0], total, 0)


@partial(_head_mean.defjvp, symbolic_zeros=True)
def _head_mean_jvp(fixed: Fixed, static: Static, step: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (head, truth, total), (dhead, dtruth, dtotal) = primals, tangents
    moving = [t is not None and not isinstance(t, SymbolicZero) for t in dhead]
    loss, found = mean_and_gradients(head, restored(truth, fixed), total, static, step, moving)
    moved = jnp.zeros((), loss.dtype)
    for gradient, tangent in zip(found, (t for t, yes in zip(dhead, moving, strict=True) if yes), strict=True):
        moved += added_up((gradient * tangent).sum(dtype=loss.dtype), static.shards)
    if not all(isinstance(t, SymbolicZero) for t in (*dtruth, dtotal)):

        def of(truth: list[Array], total: Array) -> Array:
            return averaged(head_rows(head, restored(truth, fixed), static, FIRST, step)[0], total, 0)

        moved += jax.jvp(of, (truth, total), jax.tree.map(_instantiated, (dtruth, dtotal), is_leaf=_is_zero))[1]
    return loss, moved


def _is_zero(t: Any) -> bool:
    return isinstance(t, SymbolicZero)


def _instantiated(t: Any) -> Any:
    return jnp.zeros(t.shape, t.dtype) if _is_zero(t) else t


def mean_and_gradients(head: Head, truth: Call, total: Array, static: Static, step: int, wanted: list[bool]) -> tuple[Array, list[Array]]:
    """Return the sum of the losses divided by `total`, and its gradients by those of x, W and b that are wanted, in one pass.

    With G the gradient by the logits, they are dX = G W, dW = G^T X and db = sum_i G_i. dW and db are added up at least in float32.
    """
    sums = jnp.promote_types(head.x.dtype, jnp.float32)
    of_x, of_w, of_b = wanted
    over, names = varies_over(head.w), static.shards
    start = (
        devices.cast(jnp.zeros((), widest()), over.difference(names)),
        devices.cast(jnp.zeros(head.w.shape, sums), over) if of_w else None,
        devices.cast(jnp.zeros(head.w.shape[:1], sums), over) if of_b else None,
    )

    def of_a_chunk(carry: Any, x: Array, truth: Call) -> Any:
        loss, dw, db = carry
        call = truth._replace(z=head._replace(x=x).logits(), total=total)
        part, g = operators.mean_and_gradient(call, static)
        dw = dw + lax.dot_general(g, x, (((0,), (0,)), ((), ())), preferred_element_type=sums) if of_w else None
        db = db + g.sum(0, dtype=sums) if of_b else None
        return (loss + part, dw, db), (g @ head.w if of_x else None)

    (loss, dw, db), dx = _by_chunks(of_a_chunk, start, head.x, truth, step)
    found = [None if t is None else t.astype(of.dtype) for t, of in zip((dx, dw, db), head, strict=True) if of is not None]
    return loss, [t for t in found if t is not None]


# ---- chunks of rows ----


def _by_chunks(of_a_chunk: Callable[..., Any], carry: Any, x: Array, truth: Call, step: int) -> Any:
    """Call `of_a_chunk(carry, x, truth)` for chunks of `step` rows. Returns the carry, and the results of all rows.

    The last chunk is filled up with rows that are ignored. If one label, LARGEST, stands for all rows, it does so in every chunk, and rows
    that fill up have no truth.
    """
    rows = len(x)
    by_row = {name: a for name, a in truth._asdict().items() if not isinstance(a, float) and a.ndim == 1 + (name == "off")}
    if not truth.label.ndim:
        numbers = {name: getattr(truth, name) for name in ("y", "r", "q")}
        by_row |= {name: jnp.broadcast_to(a, (rows,)) for name, a in numbers.items() if not isinstance(a, float) or a}
    count = max(1, -(-rows // step))
    filled = count * step - rows

    def cut(a: Array, fill: Any = 0) -> Array:
        a = jnp.concatenate([a, jnp.full((filled, *a.shape[1:]), fill, a.dtype)]) if filled else a
        return a.reshape(count, step, *a.shape[1:])

    def of(carry: Any, chunk: Any) -> Any:
        x, by_row = chunk
        if "label" in by_row:
            x = jnp.where((by_row["label"] == ignored)[:, None], 0, x)  # 0 times what an ignored row holds may be NaN in dW
        return of_a_chunk(carry, x, truth._replace(**by_row))

    ignored = special(IGNORED, truth.label.dtype)
    chunks = (cut(x), {name: cut(a, ignored if name == "label" else 0) for name, a in by_row.items()})
    carry, found = lax.scan(jax.checkpoint(of, prevent_cse=False), carry, chunks)
    return carry, jax.tree.map(lambda a: a.reshape(count * step, *a.shape[2:])[:rows], found)
