"""The two ways to compute the loss of a linear head and its gradients that the demo compares, and the measurement of their memory.

Both compute, in float32, for hidden states x [N, D], W [C, D] and labels [N]:

    loss = mean_i -log softmax(x_i W^T)[label_i],    G = (yhat - y) / N,    dX = G W,    dW = G^T x.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import softxent

from .corpus import Ids

F32 = NDArray[np.float32]


class Gradients(NamedTuple):
    loss: float
    dx: F32  # [N, D]
    dw: F32  # [C, D]


class Head(Protocol):
    """A way to compute the loss of a head: the mean loss with its gradients, and the losses [N] of all rows."""

    @property
    def name(self) -> str: ...
    def gradients(self, x: F32, W: F32, labels: Ids) -> Gradients: ...
    def losses(self, x: F32, W: F32, labels: Ids) -> NDArray[np.float64]: ...


class Fused:
    """The head by softxent, which holds `budget` bytes of logits at once."""

    name = "softxent"

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def gradients(self, x: F32, W: F32, labels: Ids) -> Gradients:
        return Gradients(*softxent.linear_cross_entropy_and_grad(x, W, labels, budget=self.budget))

    def losses(self, x: F32, W: F32, labels: Ids) -> NDArray[np.float64]:  # -> [N]
        losses: NDArray[np.float64] = softxent.linear_cross_entropy(x, W, labels, reduction="none", budget=self.budget)
        return losses


class Plain:
    """The head by NumPy, with all N x C logits in one matrix, on which all further steps work in place."""

    name = "plain NumPy"

    def gradients(self, x: F32, W: F32, labels: Ids) -> Gradients:
        n, at_label = len(x), (np.arange(len(x)), labels)
        z: F32 = x @ W.T
        z -= z.max(axis=1, keepdims=True)
        z_label = z[at_label]
        np.exp(z, out=z)
        total = z.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(total[:, 0]) - z_label, dtype=np.float64)
        z *= 1 / (n * total)  # yhat / n
        z[at_label] -= np.float32(1 / n)  # (yhat - y) / n
        return Gradients(float(loss), np.matmul(z, W), np.matmul(z.T, x))

    def losses(self, x: F32, W: F32, labels: Ids, rows: int = 512) -> NDArray[np.float64]:  # -> [N]
        """Compute the losses in batches of `rows`, because all logits of 20,000 held-out tokens and 20,000 classes would be 1.6 GB."""
        return np.concatenate([self._losses(x[i : i + rows], W, labels[i : i + rows]) for i in range(0, len(x), rows)])

    def _losses(self, x: F32, W: F32, labels: Ids) -> NDArray[np.float64]:
        z = x @ W.T
        z -= z.max(axis=1, keepdims=True)
        z_label = z[np.arange(len(x)), labels]
        total = np.exp(z, out=z).sum(axis=1)
        return np.asarray(np.log(total) - z_label, np.float64)


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak memory of `call` beyond what was allocated before, in bytes, with its result.

    It is measured by tracemalloc, to which NumPy reports its arrays. Not included are the buffers of BLAS, which both heads use, and the
    scratch memory of the compiled kernel, a row of C floats for each thread.
    """
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        result = call()  # kept until the peak is read
        _, peak = tracemalloc.get_traced_memory()
        del result
        return peak - before
    finally:
        if not tracing:
            tracemalloc.stop()
