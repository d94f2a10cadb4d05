"""Linear cross-entropy: logits = x W^T + b by row chunks in one scratch buffer, never whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import contract, kernels
from .partials import Array, times
from .sweep import reduce
from .truth import squash, truth

BUDGET = 64 << 20  # bytes of logits held at once
_FOLD = 16 << 20  # bytes of dW added up at once, from the second chunk on


def linear_cross_entropy_and_grad(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    bias: npt.ArrayLike | None = None,
    class_weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    empty_value: float = math.nan,
    upstream: npt.ArrayLike | None = None,
    budget: int = BUDGET,
) -> tuple[Any, ...]:
    """The cross-entropy of `logits = x W^T + b`, and its gradients `dX = G W, dW = G^T X, db = sum_i G_i`, G = prediction - truth.

    Args:
        x: [*rows, D], float32 or float64.
        weight: [C, D], the head's weight W, the dtype of x.
        labels: class indices [*rows], or probabilities [*rows, C].
        bias: [C], or None.
        class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, temperature, softcap, empty_value, upstream:
            as in `cross_entropy_and_grad`.
        budget: bytes of logits held at once (64 MiB). Few tall chunks are quick: every chunk adds to all of dW.

    Returns:
        (loss, dX, dW), and db where there is a bias: gradients in the shape and dtype of what they belong to.

    Raises:
        ValueError, TypeError: as `cross_entropy`.

    Cost: three matrix products and one pass of the kernel; `budget` + 16 MiB + O(rows) bytes beyond the gradients (softcap: twice).

    Mathematics: the derivation's Part 3, then the chain rule through x W^T + b (design: section 5).
    """
    fn = "linear_cross_entropy_and_grad"
    x, w = contract.floats(fn, "x", x), contract.floats(fn, "weight", weight)
    if x.dtype not in (np.float32, np.float64) or w.dtype != x.dtype:
        contract.fail(fn, "x and weight", "both be float32 or both float64", f"{x.dtype} and {w.dtype}", TypeError)
    if x.ndim == 0 or w.ndim != 2 or w.shape[1] != x.shape[-1] or not w.shape[0]:
        contract.fail(fn, "weight", f"have shape (classes, D) to match x {x.shape}", w.shape)
    classes, width = w.shape
    b = None if bias is None else contract.floats(fn, "bias", bias).astype(x.dtype, copy=False)
    if b is not None and b.shape != (classes,):
        contract.fail(fn, "bias", f"have shape ({classes},) to match weight {w.shape}", b.shape)
    like = np.broadcast_to(np.zeros((), x.dtype), (*x.shape[:-1], classes))  # the logits' shape, without the logits
    s = squash(fn, temperature, softcap)
    t = truth(
        fn, labels, like, -1, class_weight=class_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        sample_weight=sample_weight, reduction=reduction, z_loss=z_loss, upstream=upstream,
    )  # fmt: skip
    flat = x.reshape(-1, width)
    dx, dw, db = np.empty_like(flat), np.zeros(w.shape, w.dtype), None if b is None else np.zeros(classes)
    result = np.empty((2, len(flat)))
    step = max(1, chunk_rows(len(flat), classes * x.itemsize, budget))
    scratch = np.empty((step, classes), x.dtype)
    for at in range(0, len(flat), step):
        i = slice(at, min(at + step, len(flat)))
        z = np.matmul(flat[i], w.T, out=scratch[: i.stop - at])
        if b is not None:
            z += b
        slope: Any = s.slope(z) if s else None
        if s:
            z[...] = s(z)
        kernels.active().fused(z, *t.piece(i, x.dtype), z, result[:, i], None, kernels.get_num_threads())
        if s:
            z[...] = times(z, slope)
        np.matmul(z, w, out=dx[i])
        _add_product(dw, z, flat[i], first=at == 0)
        if db is not None:
            db += z.sum(axis=0, dtype=np.float64)
    loss = reduce(result[0], reduction, t.total, empty_value, x.shape[:-1])
    grads = (loss, dx.reshape(x.shape), dw)
    return grads if db is None else (*grads, db.astype(x.dtype))


def chunk_rows(rows: int, row_bytes: int, budget: int) -> int:
    """Rows a chunk, the remainder spread evenly over as few chunks as the budget allows."""
    chunks = math.ceil(rows / max(1, budget // row_bytes))
    return math.ceil(rows / max(1, chunks))


def _add_product(dw: Array, g: Array, x: Array, first: bool) -> None:
    """dw += g^T x; NumPy's matmul cannot add, so from the second chunk on a block at a time goes through a small buffer."""
    if first:
        np.matmul(g.T, x, out=dw)
        return
    block = max(1, _FOLD // max(1, dw.shape[1] * dw.itemsize))
    for c in range(0, len(dw), block):
        dw[c : c + block] += g[:, c : c + block].T @ x
