"""Softmax cross-entropy of logits that are given: the NumPy front end. No mathematics here: truth.py and the kernels have it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from . import contract, kernels
from .partials import Array, Partials, times
from .truth import NO_LABEL, Squash, Truth, computed_in, plain, squash, truth

SCRATCH = 1 << 20  # bytes of logits worked on at once where they cannot be used in place: strided classes, softcap
_F64 = np.dtype(np.float64)


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
) -> Any:
    """Softmax cross-entropy, `loss = mass * lse(z) - <y, z> = - sum_k y_k log softmax(z)_k`, of logits z against a truth y.

    Args:
        logits: [*rows, C], or with the class axis elsewhere (`axis`); float32, float64, float16 or bfloat16 (ml_dtypes), any
            strides. Computed in float32 (float64 for float64); every row's result is a float64.
        labels: class indices [*rows] of any integer type, or probabilities of the shape of `logits` (any mass, not only 1).
        axis: which axis of `logits` holds the classes.
        class_weight: [C], multiplies each class's truth (torch's `weight`).
        label_smoothing: e in [0, 1]: the truth becomes (1 - e) y + e/C at every class, weights included (torch's rule).
        ignore_index: rows with this label have loss 0 and gradient 0 whatever their logits, and do not count in a mean.
        sample_weight: broadcasts to [*rows], multiplies each row's loss.
        reduction: "none" (an array [*rows]), "sum", or "mean": the sum divided by the summed weights of the rows' labels
            (class_weight and sample_weight; for probabilities sample_weight only), as torch does.
        z_loss: L >= 0, adds L lse(z)^2 to every row that is not ignored (times its sample_weight).
        temperature: T > 0, divides the logits (after softcap).
        softcap: c > 0, the logits become c tanh(z / c).
        empty_value: what a mean over no rows at all is (torch: NaN).

    Returns:
        float64: a scalar, or [*rows] for reduction="none".

    Raises:
        ValueError, TypeError: a shape, label, dtype or option that does not fit. Nothing has been written then.

    Cost: one read of the logits; O(rows) extra memory (plus 1 MiB where the classes are strided or squashed).

    A tiny loss keeps all its digits: at a gap of 20 it is 2e-9 in float32, not 0 (the label is summed apart from the rest).
    A row's result does not depend on the batch, the threads or the processor, to the last bit (softcap: on NumPy's tanh).

    Mathematics: Results 1 to 3 and "prediction - truth" of the derivation; options: truth.py.
    """
    z, lead, t, s = _problem(
        "cross_entropy", logits, labels, axis, class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, None, temperature, softcap
    )  # fmt: skip
    result = _forward(z, t, s)
    return _reduce(result[0], reduction, t.total, empty_value, lead)


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
) -> tuple[Any, Array]:
    """The loss of `cross_entropy` and its gradient, `dz_k = mass * softmax(z)_k - y_k`: prediction - truth, in one pass.

    Args:
        logits, labels, axis, class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, temperature,
            softcap, empty_value: as in `cross_entropy`.
        upstream: what the gradient is multiplied by (not the loss), 1 if None: a scalar, or for reduction="none" one that
            broadcasts to [*rows].
        out: an array of the shape and dtype of `logits` to write the gradient into; it may be `logits` itself.

    Returns:
        (loss, gradient): the loss as `cross_entropy` returns it; the gradient like `logits` (`out`, if given).

    Raises:
        ValueError, TypeError: as `cross_entropy`, before anything is written.

    Cost: one read of the logits and one write of the gradient, one exp an element; with `out` O(rows + threads x C)
        extra memory. A fresh gradient costs page faults: for large matrices pass `out` and use it again.

    Mathematics: Part 3 of the derivation. At the label the gradient is formed as mass of the rest - mass * (1 - yhat), where
    1 - yhat is summed from the other classes, so that it keeps its digits at yhat = 0.999999.
    """
    fn = "cross_entropy_and_grad"
    kernel = kernels.active()
    if (  # the layer as everybody uses it: nothing to prepare, a few microseconds
        type(logits) is np.ndarray and type(labels) is np.ndarray and logits.ndim == 2 and labels.ndim == 1
        and logits.dtype.char in "fd" and logits.dtype.isnative and labels.dtype == np.int64 and labels.shape[0] == logits.shape[0] > 0
        and logits.strides[1] == logits.itemsize and axis == -1 and reduction == "mean" and not 0 <= ignore_index < logits.shape[1]
        and class_weight is sample_weight is upstream is softcap is out is None and label_smoothing == z_loss == 0 and temperature == 1
        and kernel.first_outside(labels, logits.shape[1], NO_LABEL + 1) < 0
    ):  # fmt: skip
        dz, result = np.empty(logits.shape, logits.dtype), np.empty((2, len(logits)))
        kernel.fused(logits, labels, plain(1 / len(logits)), None, dz, result, None, kernels.get_num_threads())
        return result[0].sum() / len(logits), dz
    z, lead, t, s = _problem(
        fn, logits, labels, axis, class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, upstream, temperature, softcap
    )  # fmt: skip
    dz = contract.out(fn, out, z, axis)
    result = _fused(z, t, s, dz)
    return _reduce(result[0], reduction, t.total, empty_value, lead), out if out is not None else np.moveaxis(dz, -1, axis)


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
) -> Array:
    """The Hessian of `cross_entropy` by a vector, `H v = mass * yhat o (v - <yhat, v>)`, without the Hessian.

    Args:
        v: the direction, of the shape of `logits`.
        logits, labels, ...: as in `cross_entropy_and_grad`; with reduction="none" rows do not mix, so that this is each row's own product.

    Returns:
        H v, of the shape and dtype of `logits`.

    Raises:
        ValueError, TypeError: as `cross_entropy`.

    Cost: three reads of logits and v; 3 MiB of scratch.

    Mathematics: Results 1 and 2 are the Jacobian of softmax, hence the Hessian of the loss; it is positive semi-definite where softcap is None.
    """
    fn = "cross_entropy_hvp"
    z, _, t, s = _problem(
        fn, logits, labels, axis, class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, upstream, temperature, softcap
    )  # fmt: skip
    hv = contract.out(fn, None, z, axis)
    for i, (zi, vi, out) in _pieces(False, z, contract.direction(fn, v, z, axis), hv):
        _, rows, _ = t.piece(i, zi.dtype)
        _, _, q, g = rows
        slope, bend = (s.slope(zi), s.bend(zi)) if s else (1.0, 0.0)
        yhat, product, mean, lse = _curve(s(zi) if s else zi, vi * slope)
        with np.errstate(invalid="ignore", over="ignore"):
            hess = slope * g[:, None] * ((t.mass(i) + times(q, lse))[:, None] * product + times(q, mean)[:, None] * yhat)
            if s and s.softcap:
                dz, _ = _gradient(s(zi), t, i)
                hess += bend * vi * dz
            out[...] = np.where(rows[:3].any(axis=0)[:, None], hess, 0)
    return np.moveaxis(hv, -1, axis)


def softmax(logits: npt.ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
    """`yhat_k = exp(z_k - lse(z))`, of the shape and dtype of `logits`, into `out` if given (it may be `logits` itself).

    Rows as in `cross_entropy`: -inf gives 0, a row with NaN, +inf or only -inf gives NaN. Raises as `cross_entropy`.
    Cost: one read, one write. Mathematics: the definition of softmax in Part 1 of the derivation.
    """
    z = contract.logits("softmax", logits, axis)
    yhat = contract.out("softmax", out, z, axis)
    _fused(z, _bare(z), None, yhat)
    return out if out is not None else np.moveaxis(yhat, -1, axis)


def log_softmax(logits: npt.ArrayLike, *, axis: int = -1) -> Array:
    """`log yhat_k = z_k - lse(z)`, of the shape and dtype of `logits`.

    Formed as (z_k - max z) - (lse - max z), where the second is summed from the other classes: the value of a class with
    yhat = 0.999999 keeps all its digits, and so does every value under a common offset of 1e8. Raises as `cross_entropy`.
    Cost: two reads, one write; 1 MiB of scratch.
    """
    z = contract.logits("log_softmax", logits, axis)
    out = contract.out("log_softmax", None, z, axis)
    for _, (zi, o) in _pieces(False, z, out):
        nll, x = _apart(zi)
        with np.errstate(over="ignore"):
            o[...] = (zi - x.zt[:, None]) - nll[:, None]
    return np.moveaxis(out, -1, axis)


def logsumexp(logits: npt.ArrayLike, *, axis: int = -1) -> Any:
    """`lse(z) = log sum_k exp(z_k)`: float64, of the shape of `logits` without the class axis.

    Its gradient is `softmax`. Raises as `cross_entropy`. Cost: one read; O(rows) extra memory.
    """
    z = contract.logits("logsumexp", logits, axis)
    return _shaped(_forward(z, _bare(z), None)[1], z.shape[:-1])


def softmax_vjp(logits: npt.ArrayLike, v: npt.ArrayLike, *, axis: int = -1) -> Array:
    """`J^T v = yhat o (v - <yhat, v>)`, J = d softmax / d logits; of the shape and dtype of `logits`. J is symmetric: also J v.

    Raises as `cross_entropy`. Cost: three reads; 3 MiB of scratch. Mathematics: Results 1 and 2, summed over the outputs.
    """
    z = contract.logits("softmax_vjp", logits, axis)
    out = contract.out("softmax_vjp", None, z, axis)
    for _, (zi, vi, o) in _pieces(False, z, contract.direction("softmax_vjp", v, z, axis), out):
        o[...] = _curve(zi, vi)[1]
    return np.moveaxis(out, -1, axis)


def softmax_jacobian(logits: npt.ArrayLike, *, axis: int = -1) -> Array:
    """`d yhat_j / d z_k = yhat_j (1 - yhat_j)` for j = k, `- yhat_j yhat_k` else: float64 [*rows, C, C].

    Raises as `cross_entropy`. Cost: C x C a row, for looking at; products with it are `softmax_vjp`.
    Mathematics: Results 1 and 2 of the derivation.
    """
    z = contract.logits("softmax_jacobian", logits, axis)
    flat = np.ascontiguousarray(z.reshape(-1, z.shape[-1]), dtype=_F64)
    yhat, (nll, _), rows, top = softmax(flat), _apart(flat), np.arange(len(flat)), flat.argmax(axis=1)
    miss = 1 - yhat
    miss[rows, top] = -np.expm1(-nll)  # 1 - yhat cancels at one class only
    jacobian = -yhat[:, :, None] * yhat[:, None, :]
    jacobian[:, np.arange(z.shape[-1]), np.arange(z.shape[-1])] = yhat * miss
    return jacobian.reshape(*z.shape, z.shape[-1])


def token_logprobs(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Any:
    """`log yhat_t = z_t - lse(z)` of each row's label: float64 [*rows]; 0 where ignored. Arguments, errors, cost: `cross_entropy`.

    The same bits whatever the batch a row comes in: a sampler and a trainer that call this agree exactly.
    """
    return -np.asarray(cross_entropy(
        logits, labels, axis=axis, ignore_index=ignore_index, temperature=temperature, softcap=softcap, reduction="none"
    ))[()]  # fmt: skip


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
    """`token_logprobs` and its gradient by the logits, `truth - prediction`, times `upstream` (broadcasts to [*rows])."""
    minus = -contract.broadcast("token_logprobs_and_grad", "upstream", upstream, np.shape(upstream))
    loss, dz = cross_entropy_and_grad(
        logits, labels, axis=axis, ignore_index=ignore_index, temperature=temperature, softcap=softcap, reduction="none",
        upstream=minus, out=out,
    )  # fmt: skip
    return -loss, dz


def entropy(logits: npt.ArrayLike, *, axis: int = -1) -> Any:
    """`H = - sum_k yhat_k log yhat_k`, in nats: float64 [*rows]. It is the cross-entropy whose truth is the prediction.

    Raises as `cross_entropy`. Cost: three reads; 3 MiB of scratch.
    """
    return entropy_and_grad(logits, axis=axis)[0]


def entropy_and_grad(logits: npt.ArrayLike, *, axis: int = -1, upstream: npt.ArrayLike = 1.0) -> tuple[Any, Array]:
    """`entropy` and its gradient by the logits, `dH_k = - yhat_k (z_k - <yhat, z>)`, times `upstream` (broadcasts to [*rows])."""
    fn = "entropy_and_grad"
    z = contract.logits(fn, logits, axis)
    dz, h = contract.out(fn, None, z, axis), np.empty(_rows(z))
    up = contract.broadcast(fn, "upstream", upstream, z.shape[:-1]).reshape(-1)
    for i, (zi, o) in _pieces(False, z, dz):
        yhat, product, _, _ = _curve(zi, zi)
        h[i] = _run(zi, zi.argmax(axis=1), _DENSE, yhat)[0][0]
        with np.errstate(over="ignore", invalid="ignore"):
            o[...] = -up[i, None] * product
    return _shaped(h, z.shape[:-1]), np.moveaxis(dz, -1, axis)


# ---- how a call reaches the kernels ----

_UNIT = plain(1.0)  # y = 1 and no column matched: lse and softmax themselves
_DENSE = np.array([[0.0], [1.0], [0.0], [1.0]])  # all of the truth is in off


def _problem(
    fn: str, logits: Any, labels: Any, axis: int, class_weight: Any, label_smoothing: float, ignore_index: int,
    sample_weight: Any, reduction: str, z_loss: float, upstream: Any, temperature: float, softcap: float | None,
) -> tuple[Array, tuple[int, ...], Truth, Squash | None]:  # fmt: skip
    """The arguments, checked: logits with the class axis last, the rows' shape, the truth, the squash."""
    z = contract.logits(fn, logits, axis)
    s = squash(fn, temperature, softcap)
    t = truth(
        fn, labels, z, axis, class_weight=class_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        sample_weight=sample_weight, reduction=reduction, z_loss=z_loss, upstream=1.0 if upstream is None else upstream,
    )  # fmt: skip
    return z, z.shape[:-1], t, s


def _forward(z: Array, t: Truth, s: Squash | None) -> Array:
    """-> [2, R]: loss and lse of every row."""
    result = np.empty((2, _rows(z)))
    for i, (zi,) in _pieces(s is None and t.usable(z.dtype), z):
        _run(s(zi) if s else zi, *t.piece(i, zi.dtype), result=result[:, i])
    return result


def _fused(z: Array, t: Truth, s: Squash | None, dz: Array) -> Array:
    """Writes the gradient into dz (which may be z); -> [2, R]: loss and lse of every row."""
    result = np.empty((2, _rows(z)))
    in_place = s is None and t.usable(z.dtype) and _adjacent(dz)
    for i, (zi, o) in _pieces(in_place, z, dz):
        if in_place:
            _gradient(zi, t, i, out=o, result=result[:, i])
            continue
        work, _ = _gradient(s(zi) if s else zi, t, i, result=result[:, i])
        with np.errstate(over="ignore", invalid="ignore"):
            o[...] = work * s.slope(zi) if s else work
    return result


def _gradient(z: Array, t: Truth, i: slice, out: Array | None = None, result: Array | None = None) -> tuple[Array, Array]:
    """dz and [loss, lse] of the rows `i`, whose logits are z."""
    out = np.empty_like(z) if out is None else out
    result = np.empty((2, len(z))) if result is None else result
    kernels.active().fused(z, *t.piece(i, z.dtype), out, result, None, kernels.get_num_threads())
    return out, result


def _run(z: Array, label: Array, rows: Array, off: Array | None, result: Array | None = None) -> tuple[Array, Partials]:
    result, parts = np.empty((2, len(z))) if result is None else result, np.empty((6, len(z)))
    kernels.active().forward(z, label, rows, off, result, parts, kernels.get_num_threads())
    return result, Partials(*parts)


def _bare(z: Array) -> Truth:
    return Truth(np.broadcast_to(np.int64(NO_LABEL), _rows(z)), _UNIT)


def _apart(z: Array) -> tuple[Array, Partials]:
    """-> nll of each row's largest logit, and the row's partial sums with that one kept apart."""
    result, parts = _run(z, z.argmax(axis=1), _UNIT, None)
    return result[0], parts


def _curve(z: Array, v: Array) -> tuple[Array, Array, Array, Array]:
    """-> yhat, yhat o (v - mean), mean = <yhat, v>, lse, of rows z and v [n, C].

    The largest class t, the only one where v - mean may cancel, is kept apart: v_t - mean = sum_{k != t} yhat_k (v_t - v_k).
    """
    v = np.ascontiguousarray(v, dtype=z.dtype)
    yhat, (_, lse) = _gradient(z, _bare(z), slice(0, len(z)))
    top = z.argmax(axis=1)
    _, x = _run(v, top, _UNIT, yhat)
    lead = x.d + times(x.o, x.zt - x.m)
    with np.errstate(invalid="ignore"):
        mean = x.zt - lead
        product = times(yhat, v - mean[:, None])
        product[np.arange(len(z)), top] = x.wt * lead
    return yhat, product, mean, lse


def _pieces(whole: bool, *arrays: Array) -> Iterator[tuple[slice, list[Array]]]:
    """Cut arrays [*rows, C] into matrices [n, C], rows in order: `whole`, views as large as the strides allow; else of at most
    SCRATCH bytes, the first ones (all but the last, an output, where there are several) as contiguous copies in the type computed in.
    """
    whole = whole and _adjacent(arrays[0])
    first = 0
    for matrices in _matrices(arrays):
        rows, classes = matrices[0].shape
        step = max(1, rows if whole else SCRATCH // (classes * matrices[0].itemsize))
        for at in range(0, rows, step):
            cut = [m[at : at + step] for m in matrices]
            if not whole:
                inputs = max(1, len(cut) - 1)
                cut = [np.array(c, dtype=computed_in(c.dtype), order="C") for c in cut[:inputs]] + cut[inputs:]
            yield slice(first + at, first + at + len(cut[0])), cut
        first += rows


def _matrices(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    """The arrays [*rows, C] as matrices: one, if their leading axes can be merged without a copy, else one for each leading index."""
    lead = arrays[0].shape[:-1]
    if len(lead) < 2 or all(a.flags.c_contiguous for a in arrays):
        yield tuple(a.reshape(-1, a.shape[-1]) for a in arrays)
    elif all(a.strides[i] == a.strides[i + 1] * a.shape[i + 1] for a in arrays for i in range(len(lead) - 1)):
        shape = (math.prod(lead), arrays[0].shape[-1])
        yield tuple(as_strided(a, shape, (a.strides[-2], a.strides[-1])) for a in arrays)
    else:
        for i in range(lead[0]):
            yield from _matrices(tuple(a[i] for a in arrays))


def _adjacent(z: Array) -> bool:
    """Whether a row's columns lie side by side, as the kernels need them."""
    return z.shape[-1] == 1 or z.strides[-1] == z.itemsize


def _rows(z: Array) -> int:
    return math.prod(z.shape[:-1])


def _shaped(rows: Array, lead: tuple[int, ...]) -> Any:
    return rows.reshape(lead)[()]


def _reduce(loss: Array, reduction: str, total: float, empty_value: float, lead: tuple[int, ...]) -> Any:
    if reduction == "none":
        return _shaped(loss, lead)
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / total if total else np.float64(empty_value)
