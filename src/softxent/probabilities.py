"""Softmax and its kin, and their derivatives: Results 1 and 2 of the derivation as functions of an array of logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import contract
from .partials import Array
from .sweep import DENSE, apart, bare, count, curve, forward, fused, partial_sums, pieces, shaped, wide


def softmax(logits: npt.ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
    """`yhat_k = exp(z_k - lse(z))`, of the shape and dtype of `logits`, into `out` if given (it may be `logits` itself).

    Rows as in `cross_entropy`: -inf gives 0, a row with NaN, +inf or only -inf gives NaN. Raises as `cross_entropy`.
    Cost: one read, one write. Mathematics: the definition of softmax in Part 1 of the derivation.
    """
    z = contract.logits("softmax", logits, axis)
    yhat = contract.out("softmax", out, z, axis)
    fused(z, bare(z), None, yhat)
    return out if out is not None else contract.from_last(yhat, axis)


def log_softmax(logits: npt.ArrayLike, *, axis: int = -1) -> Array:
    """`log yhat_k = z_k - lse(z)`, of the shape and dtype of `logits`.

    Formed as (z_k - max z) - (lse - max z), where the second is summed from the other classes: the value of a class with
    yhat = 0.999999 keeps all its digits, and so does every value under a common offset of 1e8. Raises as `cross_entropy`.
    Cost: two reads, one write; a few MiB of scratch.
    """
    z = contract.logits("log_softmax", logits, axis)
    out = contract.out("log_softmax", None, z, axis)
    for _, (zi, o) in pieces(False, z, out):
        zi = wide(zi)
        nll, x = apart(zi)
        with np.errstate(over="ignore"):
            o[...] = (zi - x.zt[:, None]) - nll[:, None]
    return contract.from_last(out, axis)


def logsumexp(logits: npt.ArrayLike, *, axis: int = -1) -> Any:
    """`lse(z) = log sum_k exp(z_k)`: float64, of the shape of `logits` without the class axis.

    Its gradient is `softmax`. Raises as `cross_entropy`. Cost: one read; O(rows) extra memory.
    """
    z = contract.logits("logsumexp", logits, axis)
    return shaped(forward(z, bare(z), None)[1], z.shape[:-1])


def softmax_vjp(logits: npt.ArrayLike, v: npt.ArrayLike, *, axis: int = -1) -> Array:
    """`J^T v = yhat o (v - <yhat, v>)`, J = d softmax / d logits; of the shape and dtype of `logits`. J is symmetric: also J v.

    Raises as `cross_entropy`. Cost: three reads; a few MiB of scratch. Mathematics: Results 1 and 2, summed over the outputs.
    """
    z = contract.logits("softmax_vjp", logits, axis)
    out = contract.out("softmax_vjp", None, z, axis)
    for _, (zi, vi, o) in pieces(False, z, contract.direction("softmax_vjp", v, z, axis), out):
        o[...] = curve(wide(zi), vi)[1]
    return contract.from_last(out, axis)


def softmax_jacobian(logits: npt.ArrayLike, *, axis: int = -1) -> Array:
    """`d yhat_j / d z_k = yhat_j (1 - yhat_j)` for j = k, `- yhat_j yhat_k` else: float64 [*rows, C, C].

    Raises as `cross_entropy`. Cost: C x C a row, for looking at; products with it are `softmax_vjp`.
    Mathematics: Results 1 and 2 of the derivation.
    """
    z = contract.logits("softmax_jacobian", logits, axis)
    flat = np.ascontiguousarray(z.reshape(-1, z.shape[-1]), dtype=np.float64)
    yhat, (nll, _), rows, top = softmax(flat), apart(flat), np.arange(len(flat)), flat.argmax(axis=1)
    miss = 1 - yhat
    miss[rows, top] = -np.expm1(-nll)  # 1 - yhat cancels at one class only
    jacobian = -yhat[:, :, None] * yhat[:, None, :]
    jacobian[:, np.arange(z.shape[-1]), np.arange(z.shape[-1])] = yhat * miss
    return jacobian.reshape(*z.shape, z.shape[-1])


def entropy(logits: npt.ArrayLike, *, axis: int = -1) -> Any:
    """`H = - sum_k yhat_k log yhat_k`, in nats: float64 [*rows]. It is the cross-entropy whose truth is the prediction.

    Raises as `cross_entropy`. Cost: three reads; a few MiB of scratch.
    """
    return _entropy("entropy", logits, axis, 1.0)[0]


def entropy_and_grad(logits: npt.ArrayLike, *, axis: int = -1, upstream: npt.ArrayLike = 1.0) -> tuple[Any, Array]:
    """`entropy` and its gradient by the logits, `dH_k = - yhat_k (z_k - <yhat, z>)`, times `upstream` (broadcasts to [*rows])."""
    return _entropy("entropy_and_grad", logits, axis, upstream)


def _entropy(fn: str, logits: npt.ArrayLike, axis: int, upstream: npt.ArrayLike) -> tuple[Any, Array]:
    z = contract.logits(fn, logits, axis)
    dz, h = contract.out(fn, None, z, axis), np.empty(count(z))
    up = contract.broadcast(fn, "upstream", upstream, z.shape[:-1]).reshape(-1)
    for i, (zi, o) in pieces(False, z, dz):
        zi = wide(zi)
        yhat, product, _, _ = curve(zi, zi)
        h[i] = partial_sums(zi, zi.argmax(axis=1), DENSE, yhat)[0][0]
        with np.errstate(over="ignore", invalid="ignore"):
            o[...] = -up[i, None] * product
    return shaped(h, z.shape[:-1]), contract.from_last(dz, axis)
