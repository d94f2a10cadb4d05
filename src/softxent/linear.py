"""Linear cross-entropy for NumPy: the loss of logits = x W^T + b, and its derivatives, a chunk of rows at a time (chunks.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from . import contract, kernels
from .chunks import BUDGET, ROWS_OF_A_PRODUCT, BatchInvariant, Products, Sums, budget_beside_filter, chunks
from .filtering import Filter, FilterStats
from .partials import Array
from .sweep import curvature, reduce
from .truth import LogitTransform, Truth, logit_transform, truth

_OPTIONS = {"temperature", "softcap", *(truth.__kwdefaults__ or ())} - {"names"}
Function = TypeVar("Function", bound=Callable[..., Any])


def filtered(fn: str, tol: Any, stats: Any) -> tuple[float | None, FilterStats]:
    """Check the arguments of the gradient filter. Returns the tolerance and the statistics, which are cleared."""
    if tol is stats is None:
        return None, FilterStats()
    if stats is not None and not isinstance(stats, FilterStats):
        contract.fail(fn, "filter_stats", "be a FilterStats", type(stats).__name__, TypeError)
    stats = FilterStats() if stats is None else stats
    stats.clear()
    if tol is not None and not (tol := contract.number(fn, "filter_tol", tol, low=0)) < 1:
        contract.fail(fn, "filter_tol", "be below 1", f"{tol:g}")
    return tol, stats


def invariant(fn: str, batch_invariant: Any, **others: Any) -> bool:
    """Check `batch_invariant`. The other arguments must not be given beside it."""
    if batch_invariant is False:
        return False
    if not isinstance(batch_invariant, (bool, np.bool_)):
        contract.fail(fn, "batch_invariant", "be True or False", contract.shown(batch_invariant), TypeError)
    for name, given in others.items():
        if batch_invariant and given is not None:
            contract.fail(fn, name, "be None where batch_invariant is True", contract.shown(given))
    return bool(batch_invariant)


class NumPyProducts(NamedTuple):
    """The products of NumPy. np.matmul cannot add to an array, so a product is added a block of rows of `fold` bytes at a time."""

    fold: int

    def size(self, x: Array) -> int:
        return x.itemsize

    def empty(self, like: Array, rows: int, classes: int) -> Array:
        return kernels.empty((rows, classes), like.dtype)

    def logits(self, x: Array, w: Array, b: Array | None, out: Array) -> None:
        np.matmul(x, w.T, out=out)
        if b is not None:
            out += b

    def product(self, a: Array, b: Array, out: Array, add: bool) -> None:
        if not add:
            np.matmul(a, b, out=out)
            return
        block = max(1, self.fold // max(1, out.shape[1] * out.itemsize))
        for c in range(0, len(out), block):
            out[c : c + block] += a[c : c + block] @ b

    def of_rows(self, a: Array, b: Array, out: Array, add: bool) -> None:
        self.product(a, b, out, add)

    def columns(self, g: Array) -> Array:
        total: Array = g.sum(axis=0, dtype=np.float64)
        return total


class Head(NamedTuple):
    """The checked arguments, as a matrix of rows. Rows without weight, such as ignored ones, are left out."""

    x: Any  # [n, D], an array, or what `products` takes in its place
    w: Array  # [C, D]
    b: Array | None
    t: Truth
    s: LogitTransform
    live: Array | None  # [N] bool: which of the caller's rows are in x; None means all
    lead: tuple[int, ...]
    budget: int  # bytes of scratch memory: 7/8 for logits, 1/8 for products that are added
    products: Products

    def chunks(self, copies: int = 1) -> Iterator[tuple[slice, Array]]:
        """Yield the slices of the rows and their logits, in chunks such that `copies` arrays of their size fit into the budget."""
        return chunks(self.x, self.w, self.b, self.products, (self.budget - self.budget // 8) // copies)

    def gradients(self, losses: Array) -> Iterator[tuple[slice, Array]]:
        """Yield the slices of the rows, and their G in a buffer that the next chunk overwrites. Writes the losses of the rows."""
        for i, z in self.chunks():
            losses[i] = self.gradient(i, z)
            yield i, z

    def gradient(self, i: slice, z: Array) -> Array:
        """Overwrite the logits z of the rows `i` with their G. Returns their losses."""
        result = np.empty((2, len(z)))
        kernels.active().fused(z, *self.t.rows_of(i).given(z.dtype), self.s, z, result, None, kernels.get_num_threads())
        losses: Array = result[0]
        return losses

    def sums(self, fixed_x: bool = False) -> Sums:
        db = None if self.b is None else np.zeros(len(self.w))
        return Sums(None if fixed_x else np.empty_like(self.x), np.zeros_like(self.w), db, self.products)

    def losses_and_sums(self, fixed_x: bool = False) -> tuple[Array, Sums]:
        """Return the losses of the rows of x, and the gradients; without that of x, if x is fixed."""
        sums, losses = self.sums(fixed_x), np.empty(len(self.t.label))
        for i, g in self.gradients(losses):
            sums.add(i, g, self.x[i], self.w)
        return losses, sums

    def curvature_sums(self, vx: Array | None, vw: Array, vb: Array | None, whole: bool) -> Sums:
        """Return the products of the Hessian, if `whole`, or the Gauss-Newton matrix, and (vx, vw, vb). A vx of None tells that x is fixed.

        If x is fixed and there is no softcap, both matrices are the same.
        """
        sums = self.sums(fixed_x=vx is None)
        for i, z in self.chunks(copies=2):
            v = np.empty_like(z)
            self.products.logits(self.x[i], vw, vb, v)
            if vx is not None:
                self.products.of_rows(vx[i], self.w.T, v, True)
            curvature(z, v, self.t.rows_of(i), self.s, v, gauss_newton=not whole)
            sums.add(i, v, self.x[i], self.w)
            if whole and vx is not None:
                self.gradient(i, z)
                sums.add(i, z, vx[i], vw, first=False, bias=False)
        return sums

    def rows(self, found: Array) -> Array:
        """Return results [..., n] of the rows of x as results [..., N] of all rows, with 0 for those left out."""
        if self.live is None:
            return found
        every = np.zeros((*found.shape[:-1], len(self.live)), found.dtype)
        every[..., self.live] = found
        return every

    def grads(self, sums: Sums, shape: tuple[int, ...]) -> tuple[Any, ...]:
        dx = self.rows(sums.dx.T).T if self.live is not None else sums.dx
        return dx.reshape(shape), sums.dw, *(() if sums.db is None else (sums.db.astype(self.w.dtype),))


def _head(
    fn: str, x: Any, weight: Any, labels: Any, bias: Any, budget: int, temperature: float, softcap: float | None,
    batch_invariant: bool = False, **options: Any,
) -> Head:  # fmt: skip
    contract.integer(fn, "budget", budget, low=1)
    x, w = contract.floats(fn, "x", x), contract.floats(fn, "weight", weight)
    contract.float_dtype(fn, "x", x.dtype.name, ("float32", "float64"))
    b = None if bias is None else contract.floats(fn, "bias", bias)
    of_bias = None if b is None else contract.kind(b.shape, b.dtype)
    logits = contract.check_head(fn, contract.HEAD, contract.kind(x.shape, x.dtype), contract.kind(w.shape, w.dtype), of_bias)
    products: Products = NumPyProducts(budget // 8)
    if batch_invariant:
        products = BatchInvariant(NumPyProducts(ROWS_OF_A_PRODUCT * x.shape[-1] * x.itemsize))  # a product is added at once
    b = None if b is None else b.astype(x.dtype, copy=False)
    like = np.broadcast_to(np.zeros((), x.dtype), logits.shape)  # has the shape of the logits, and needs no memory
    s = logit_transform(fn, temperature, softcap)
    t = truth(fn, labels, like, -1, names=contract.NUMPY_LINEAR, **options)
    t = t if t.dense is None else t._replace(dense=t.dense.reshape(-1, t.dense.shape[-1]))  # as the logits of x [N, D]
    flat = x.reshape(-1, w.shape[1])
    live = None if t.dense is not None else (t.label != kernels.IGNORED) & (t.rows[:3] != 0).any(axis=0)
    if live is None or live.all():
        return Head(flat, w, b, t, s, None, x.shape[:-1], budget, products)
    return Head(flat[live], w, b, t.rows_of(live), s, live, x.shape[:-1], budget, products)


def _with_one_weight(f: Function) -> Function:
    """`f`, whose `weight` is the head's matrix: a second one is PyTorch's name of class_weight, and refused."""

    @wraps(f)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 1 and "weight" in kwargs:
            contract.renamed(f.__name__, "a second weight", kwargs["weight"], "class_weight")
        return f(*args, **kwargs)

    return cast(Function, checked)


@_with_one_weight
def linear_cross_entropy(
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
    budget: int = BUDGET,
    batch_invariant: bool = False,
) -> Any:
    """Compute the cross-entropy of `logits = x W^T + b` and labels, with the logits computed a chunk of rows at a time.

    Arguments and errors are those of `linear_cross_entropy_and_grad`.

    Returns:
        The loss, as `cross_entropy` returns it.

    Cost: one matrix product, and one read of each chunk; `budget` + O(rows) bytes.
    """
    head = _head(
        "linear_cross_entropy", x, weight, labels, bias, budget, temperature, softcap, class_weight=class_weight,
        label_smoothing=label_smoothing, ignore_index=ignore_index, sample_weight=sample_weight, reduction=reduction, z_loss=z_loss,
        empty_value=empty_value, batch_invariant=invariant("linear_cross_entropy", batch_invariant),
    )  # fmt: skip
    result = np.empty((2, len(head.x)))
    for i, z in head.chunks():
        kernels.active().forward(z, *head.t.rows_of(i).given(z.dtype), head.s, result[:, i], None, kernels.get_num_threads())
    return reduce(head.rows(result[0]), reduction, head.t.total, empty_value, head.lead)


@_with_one_weight
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
    filter_tol: float | None = None,
    filter_stats: FilterStats | None = None,
    batch_invariant: bool = False,
) -> tuple[Any, ...]:
    """Compute the cross-entropy of `logits = x W^T + b` and labels, and its gradients, a chunk of rows at a time.

    With G the gradient with respect to the logits, prediction - truth, they are `dX = G W`, `dW = G^T X` and `db = sum_i G_i`.

    Args:
        x: [*rows, D], float32 or float64.
        weight: [C, D]: the weight W of the head, with the dtype of x.
        labels: class indices [*rows], or probabilities [*rows, C]. Ignored rows are left out of every product.
        bias: [C], or None.
        class_weight, label_smoothing, ignore_index, sample_weight, reduction, z_loss, temperature, softcap, empty_value, upstream:
            as in `cross_entropy_and_grad`.
        budget: the bytes of scratch memory; 64 MiB by default. Larger chunks are faster, because each adds to all of dW.
        filter_tol: None, or a tolerance in [0, 1) for the gradient filter. Blocks of 128 classes may then be left out of the products, if
            it is proved that ||dX - exact||_F <= filter_tol ||exact||_F, and the same for dW, apart from the rounding of the products. The
            loss and db are not affected.
        filter_stats: a `FilterStats` that receives what the filter left out, and the proved bounds.
        batch_invariant: True if the loss and dX of a row must have the same bits in every batch and budget. The products have 128 rows each
            then, of which the last are filled up. dW and db are sums over the batch. The number of threads of NumPy's own products may
            still matter. Not with filter_tol.

    Returns:
        (loss, dX, dW), or (loss, dX, dW, db) if there is a bias. Each gradient has the shape and dtype of its argument.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.
        RuntimeError: if `batch_invariant` is True and equal rows of a product of NumPy differ, as with OpenBLAS in float64 on AVX-512.

    Cost: three matrix products and one pass of the kernel; beyond the gradients, `budget` + O(rows) bytes.

    Source: Part 3 of the derivation, and its part on linear heads; for the filter, the theorem in `proof.bounds.filter_losses`.
    """
    head = _head(
        "linear_cross_entropy_and_grad", x, weight, labels, bias, budget, temperature, softcap, class_weight=class_weight,
        label_smoothing=label_smoothing, ignore_index=ignore_index, sample_weight=sample_weight, reduction=reduction, z_loss=z_loss,
        empty_value=empty_value, upstream=upstream,
        batch_invariant=invariant("linear_cross_entropy_and_grad", batch_invariant, filter_tol=filter_tol),
    )  # fmt: skip
    tol, stats = filtered("linear_cross_entropy_and_grad", filter_tol, filter_stats)
    if tol is not None:
        losses, sums = _by_filter(head._replace(budget=budget_beside_filter(budget)), tol, stats)
    else:
        losses, sums = head.losses_and_sums()
    loss = reduce(head.rows(losses), reduction, head.t.total, empty_value, head.lead)
    return loss, *head.grads(sums, np.shape(x))


def _by_filter(head: Head, tol: float, stats: FilterStats) -> tuple[Array, Sums]:
    """Return the losses of the rows, and the gradients by the gradient filter."""
    sums, losses = head.sums(), np.empty(len(head.x))
    label = head.t.label  # LARGEST, no class, for probabilities
    Filter(tol, stats, sums, head.x, head.w, np.asarray).add_all(lambda: head.gradients(losses), label)
    return losses, sums


@_with_one_weight
def linear_cross_entropy_hvp(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    labels: npt.ArrayLike,
    vx: npt.ArrayLike,
    vw: npt.ArrayLike,
    *,
    bias: npt.ArrayLike | None = None,
    vb: npt.ArrayLike | None = None,
    budget: int = BUDGET,
    **options: Any,
) -> tuple[Any, ...]:
    """Compute the product of the Hessian of `linear_cross_entropy` in (x, W, b) and the vector (vx, vW, vb), a chunk of rows at a time.

    With H and G the Hessian and the gradient of the loss with respect to the logits, the products for x, W and b are:

        V = vx W^T + x vW^T + vb,   K = H V,   -> K W + G vW,   K^T x + G^T vx,   sum_i K_i

    Args:
        vx, vw, vb: the vector, in the shapes of x, weight and bias. None for vb means 0.
        x, weight, labels, bias, budget, and the options: as in `linear_cross_entropy_and_grad`.

    Returns:
        The products for x and weight, and for bias if there is one, each in the shape of its argument.

    Raises:
        ValueError, TypeError: as in `cross_entropy`.

    Cost: seven matrix products; beyond the result, `budget` + O(rows) bytes.

    Source: the chain rule, applied twice; for H, Results 1 and 2 of the derivation.
    """
    return _curvature("linear_cross_entropy_hvp", x, weight, labels, vx, vw, vb, bias, budget, True, options)


@_with_one_weight
def linear_cross_entropy_ggn(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    labels: npt.ArrayLike,
    vx: npt.ArrayLike,
    vw: npt.ArrayLike,
    *,
    bias: npt.ArrayLike | None = None,
    vb: npt.ArrayLike | None = None,
    budget: int = BUDGET,
    **options: Any,
) -> tuple[Any, ...]:
    """Compute the product of the Gauss-Newton matrix of `linear_cross_entropy`, `J^T H J`, and the vector (vx, vW, vb).

    J is the Jacobian of the logits with respect to (x, W, b), and H the Hessian of the loss with respect to the logits. The matrix is
    positive semi-definite. It is the Hessian without the second derivatives of the logits: without the terms G vW and G^T vx of
    `linear_cross_entropy_hvp`, and without the second derivative of a softcap. Arguments, results and errors are those of
    `linear_cross_entropy_hvp`.

    Cost: five matrix products; beyond the result, `budget` + O(rows) bytes.
    """
    return _curvature("linear_cross_entropy_ggn", x, weight, labels, vx, vw, vb, bias, budget, False, options)


def _curvature(
    fn: str, x: Any, weight: Any, labels: Any, vx: Any, vw: Any, vb: Any, bias: Any, budget: int, whole: bool, options: dict[str, Any]
) -> tuple[Any, ...]:
    contract.known(fn, options, _OPTIONS)
    options = {"temperature": 1.0, "softcap": None, "reduction": "mean"} | options
    head = _head(fn, x, weight, labels, bias, budget, **options)
    named = {"vx": (vx, np.shape(x)), "vw": (vw, head.w.shape), "vb": (0.0 if vb is None else vb, (len(head.w),))}
    vx, vw, vb = (contract.broadcast(fn, name, v, shape).astype(head.w.dtype) for name, (v, shape) in named.items())
    vx = vx.reshape(-1, head.w.shape[1])
    vx = vx if head.live is None else vx[head.live]
    sums = head.curvature_sums(vx, vw, vb, whole)
    return head.grads(sums, np.shape(x))
