"""The public functions for logits that are given as a NumPy array: the loss, its gradient, Hessian products and log-probabilities.

These functions check their arguments (contract.py), turn the options into a `Truth` (truth.py) and call the kernels (sweep.py). They
contain no formulas of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt

from . import contract
from .partials import Array
from .sweep import curvature, forward, fused, output, reduce, shaped
from .truth import problem


def cross_entropy(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    class_weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    empty_value: float = math.nan,
    weight: None = None,
) -> Any:
    """Compute the softmax cross-entropy of logits and labels.

    The loss of a row is `loss = - sum_k y_k log softmax(z)_k = mass * lse(z) - <y, z>`, where z are its logits, y its truth (the target
    probabilities: 1 at the label and 0 elsewhere, unless an option changes it), mass the sum of y, and lse(z) = log sum_k exp(z_k).

    Args:
        logits: [*rows, C], or with the classes on another axis (`axis`). float32, float64, float16 or bfloat16 (from ml_dtypes), with any
            strides. float64 is computed in float64, the other types in float32. The loss of each row is a float64.
        labels: class indices [*rows] of any integer type, or probabilities of the shape of `logits`, of any float type, which need not
            sum to 1. They are rounded to the type of the computation.
        axis: the axis of `logits` that holds the classes.
        class_weight: [C]; multiplies the truth at each class (torch's `weight`).
        label_smoothing: e in [0, 1]; the truth becomes (1 - e) y + e/C, and is then multiplied by class_weight, as in torch.
        ignore_index: rows with this label have loss 0 and gradient 0, whatever their logits, and do not count in a mean.
        sample_weight: broadcasts to [*rows]; multiplies the loss of each row.
        reduction: "none" returns an array [*rows], "sum" their sum. "mean" divides the sum by the sum of the rows' weights: class_weight of
            the label times sample_weight, or sample_weight alone if the labels are probabilities, as in torch.
        z_loss: L >= 0; adds L lse(z)^2, times sample_weight, to each row that is not ignored.
        temperature: T > 0; divides the logits, after the softcap.
        softcap: c > 0; the logits become c tanh(z / c).
        empty_value: the result of a mean over no rows (NaN in torch).
        weight: PyTorch's name of class_weight, which is refused.

    Returns:
        A float64, or a float64 array [*rows] if reduction is "none".

    Raises:
        ValueError, TypeError: if a shape, label, dtype or option does not fit. Nothing has been written then.

    Cost: one read of the logits and O(rows + threads x C) bytes. Where the classes are not adjacent in memory, each thread copies
    256 KiB of the logits, or 16 rows, at a time.

    A loss near 0 keeps its digits: if the label's logit is larger than the others by 20, the loss is 2e-9 in float32, and not 0. The result
    of a row is the same to the last bit for any batch, number of threads and instruction set.

    Source: Parts 1 to 3 of the derivation; for the options, the table in truth.py.
    """
    if weight is not None:
        contract.renamed("cross_entropy", "weight", weight, "class_weight")
    z, t, s = problem(
        "cross_entropy", logits, labels, axis, class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, temperature,
        softcap, empty_value,
    )  # fmt: skip
    return reduce(forward(z, t, s)[0], reduction, t.total, empty_value, z.shape[:-1])


def cross_entropy_and_grad(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
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
    out: Array | None = None,
    weight: None = None,
) -> tuple[Any, Array]:
    """Compute the loss of `cross_entropy` and its gradient with respect to the logits, in one pass.

    The gradient of a row is `dz_k = mass * softmax(z)_k - y_k`: prediction - truth, if the mass is 1.

    Args:
        logits, labels, axis, ..., empty_value: as in `cross_entropy`.
        upstream: the upstream gradient, which multiplies the gradient but not the loss. A scalar, or an array that broadcasts to [*rows] if
            reduction is "none". None means 1.
        out: an array of the shape and dtype of `logits` into which the gradient is written. It may be `logits` itself, but may not
            overlap them in another way, nor the labels.

    Returns:
        (loss, gradient): the loss as `cross_entropy` returns it, and the gradient with the shape and dtype of `logits` (`out`, if given).

    Raises:
        ValueError, TypeError: as in `cross_entropy`, before anything is written.

    Cost: one read of the logits, one write of the gradient and one exponential for each element; with `out`, O(rows + threads x C) bytes.
    A large gradient uses the memory of an earlier one of its size that is not referenced any more; `softxent.empty_cache` releases it.
    Such an array cannot be resized in place.

    Source: Part 3 of the derivation. At the label, the gradient is computed from 1 - yhat, which is a sum over the other classes, so that
    it keeps its digits when yhat is close to 1 (`partials.finish`).
    """
    fn = "cross_entropy_and_grad"
    if weight is not None:
        contract.renamed(fn, "weight", weight, "class_weight")
    z, t, s = problem(
        fn, logits, labels, axis, class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, temperature, softcap,
        empty_value, upstream,
    )  # fmt: skip
    dz = output(fn, out, z, axis, labels, t.label, t.dense)
    loss = reduce(fused(z, t, s, dz)[0], reduction, t.total, empty_value, z.shape[:-1])
    return loss, out if out is not None else contract.from_last(dz, axis)


def cross_entropy_hvp(
    logits: npt.ArrayLike,
    v: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    class_weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    upstream: npt.ArrayLike | None = None,
    weight: None = None,
) -> Array:
    """Compute the product of the Hessian of `cross_entropy` and a vector, without forming the Hessian.

    For a row, `H v = mass * yhat o (v - <yhat, v>)`, where yhat = softmax(z) and o is the product of corresponding elements.

    Args:
        v: the vector, with the shape of `logits`.
        logits, labels, ...: as in `cross_entropy_and_grad`. With reduction="none", the product is that of each row's own loss.

    Returns:
        H v, with the shape and dtype of `logits`.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: one read of logits and v, one write, one exponential for each element, and O(rows) bytes.

    Source: Results 1 and 2 of the derivation; theorem `hessian_entry`. Without a softcap, H is positive semi-definite.
    """
    fn = "cross_entropy_hvp"
    if weight is not None:
        contract.renamed(fn, "weight", weight, "class_weight")
    z, t, s = problem(
        fn, logits, labels, axis, class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, temperature, softcap,
        upstream=upstream,
    )  # fmt: skip
    hv = output(fn, None, z, axis)
    curvature(z, contract.direction(fn, v, z, axis), t, s, hv)
    return contract.from_last(hv, axis)


def token_logprobs(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Any:
    """Compute the log-probability of each row's label, `log softmax(z)_t = z_t - lse(z)`.

    Arguments, errors and cost are those of `cross_entropy`.

    Returns:
        float64 [*rows]; 0 for ignored rows. A row has the same bits in every batch, so a sampler and a trainer that call this function
        agree exactly.
    """
    z, t, s = problem("token_logprobs", logits, labels, axis, ignore_index=ignore_index, temperature=temperature, softcap=softcap)
    return shaped(-forward(z, t, s)[0], z.shape[:-1])


def token_logprobs_and_grad(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    upstream: npt.ArrayLike = 1.0,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Compute `token_logprobs` and its gradient with respect to the logits, `one_hot - softmax(z)`.

    Arguments, errors and cost are those of `cross_entropy_and_grad`; `upstream` broadcasts to [*rows] and multiplies the gradient.

    Returns:
        (log-probabilities, gradient): float64 [*rows], and an array with the shape and dtype of `logits` (`out`, if given).
    """
    fn = "token_logprobs_and_grad"
    z, t, s = problem(fn, logits, labels, axis, ignore_index=ignore_index, temperature=temperature, softcap=softcap, upstream=upstream)
    dz = output(fn, out, z, axis, labels, t.label, t.dense)
    *others, g = t.numbers
    minus = t._replace(numbers=(*others, -g if isinstance(g, float) else (-g[0], *g[1:])))  # truth - prediction
    return shaped(-fused(z, minus, s, dz)[0], z.shape[:-1]), out if out is not None else contract.from_last(dz, axis)
