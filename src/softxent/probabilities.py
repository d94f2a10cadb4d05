"""The public functions of logits without labels: softmax, log-softmax, log-sum-exp and entropy, and their derivatives, for NumPy arrays.

They check their arguments by contract.py and call the kernels by sweep.py, as loss.py does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import contract, sweep
from .partials import Array
from .sweep import curvature, entropy_truth, forward, fused, output, shaped, softmax_truth
from .truth import IDENTITY


def softmax(logits: npt.ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
    """Compute softmax, `yhat_k = exp(z_k) / sum_i exp(z_i)`.

    Args:
        logits, axis: as in `cross_entropy`.
        out: an array of the shape and dtype of `logits` for the result. It may be `logits` itself.

    Returns:
        An array with the shape and dtype of `logits` (`out`, if given). A logit of -inf gives 0; a row with NaN or +inf, or with -inf only,
        gives NaN.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: one read and one write. Source: the definition in Part 1 of the derivation.
    """
    z = contract.logits("softmax", logits, axis)
    yhat = output("softmax", out, z, axis)
    fused(z, softmax_truth(z), IDENTITY, yhat)
    return out if out is not None else contract.from_last(yhat, axis)


def log_softmax(logits: npt.ArrayLike, *, axis: int = -1) -> Array:
    """Compute the logarithm of softmax, `log yhat_k = z_k - lse(z)`.

    It is computed as (z_k - max z) - (lse - max z), where lse - max z comes from a sum over the other classes. So a value near 0 keeps its
    digits, and an offset that is common to all logits of a row costs none.

    Args:
        logits, axis: as in `cross_entropy`.

    Returns:
        An array with the shape and dtype of `logits`.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: one read and one write.
    """
    z = contract.logits("log_softmax", logits, axis)
    out = output("log_softmax", None, z, axis)
    sweep.log_softmax(z, out)
    return contract.from_last(out, axis)


def logsumexp(logits: npt.ArrayLike, *, axis: int = -1) -> Any:
    """Compute log-sum-exp, `lse(z) = log sum_k exp(z_k)`. Its gradient is `softmax`.

    Args:
        logits, axis: as in `cross_entropy`.

    Returns:
        float64, with the shape of `logits` without the class axis.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: one read and O(rows) bytes.
    """
    z = contract.logits("logsumexp", logits, axis)
    return shaped(forward(z, softmax_truth(z), IDENTITY)[1], z.shape[:-1])


def softmax_vjp(logits: npt.ArrayLike, v: npt.ArrayLike, *, axis: int = -1) -> Array:
    """Compute the product of the Jacobian J of softmax and a vector, `J^T v = yhat o (v - <yhat, v>)`, without forming J.

    J is symmetric, so this is also J v.

    Args:
        logits, axis: as in `cross_entropy`.
        v: the vector, with the shape of `logits`.

    Returns:
        An array with the shape and dtype of `logits`.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: one read of logits and v and one write. Source: Results 1 and 2 of the derivation, summed over the outputs.
    """
    z = contract.logits("softmax_vjp", logits, axis)
    out = output("softmax_vjp", None, z, axis)
    curvature(z, contract.direction("softmax_vjp", v, z, axis), softmax_truth(z), IDENTITY, out)
    return contract.from_last(out, axis)


def softmax_jacobian(logits: npt.ArrayLike, *, axis: int = -1) -> Array:
    """Compute the Jacobian of softmax: `d yhat_j / d z_k = yhat_j (1 - yhat_j)` if j = k, and `- yhat_j yhat_k` otherwise.

    Args:
        logits, axis: as in `cross_entropy`.

    Returns:
        float64 [*rows, C, C], with j on the axis before the last and k on the last.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: C^2 numbers for each row. To multiply it by a vector, use `softmax_vjp`. Source: Results 1 and 2 of the derivation.
    """
    z = contract.logits("softmax_jacobian", logits, axis)
    flat = np.ascontiguousarray(z.reshape(-1, z.shape[-1]), dtype=np.float64)
    yhat, rows, top = softmax(flat), np.arange(len(flat)), flat.argmax(axis=1)
    miss = 1 - yhat
    miss[rows, top] = -np.expm1(log_softmax(flat)[rows, top])  # 1 - yhat loses digits at the most probable class only
    jacobian = -yhat[:, :, None] * yhat[:, None, :]
    jacobian[:, np.arange(z.shape[-1]), np.arange(z.shape[-1])] = yhat * miss
    return jacobian.reshape(*z.shape, z.shape[-1])


def entropy(logits: npt.ArrayLike, *, axis: int = -1) -> Any:
    """Compute the entropy of each row's softmax, `H = - sum_k yhat_k log yhat_k`, in nats.

    Args:
        logits, axis: as in `cross_entropy`.

    Returns:
        float64 [*rows].

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: one read and O(rows) bytes. Source: theorem `entropy_from_sums` of the derivation.
    """
    z = contract.logits("entropy", logits, axis)
    return shaped(forward(z, entropy_truth(z, 0.0), IDENTITY, outputs=5)[3], z.shape[:-1])


def entropy_and_grad(logits: npt.ArrayLike, *, axis: int = -1, upstream: npt.ArrayLike = 1.0) -> tuple[Any, Array]:
    """Compute `entropy` and its gradient with respect to the logits, `dH_k = - yhat_k (z_k - <yhat, z>)`.

    Args:
        logits, axis: as in `cross_entropy`.
        upstream: broadcasts to [*rows]; multiplies the gradient.

    Returns:
        (entropy, gradient): float64 [*rows], and an array with the shape and dtype of `logits`.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: one read and one write.
    """
    z = contract.logits("entropy_and_grad", logits, axis)
    dz = output("entropy_and_grad", None, z, axis)
    up = contract.broadcast("entropy_and_grad", "upstream", upstream, z.shape[:-1]).reshape(-1)
    h = fused(z, entropy_truth(z, up), IDENTITY, dz, outputs=5)[3]
    return shaped(h, z.shape[:-1]), contract.from_last(dz, axis)
