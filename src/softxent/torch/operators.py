"""The layer as differentiable operators: what a row gives (`rows`), its gradient, the product with its Hessian, and log_softmax.

Their arguments are those of the kernels (kernels/__init__.py), all of them tensors: logits z with their classes on `axis`; label with the
shape of the other axes, `lead`; y, r and q too, or with no axes if they are the same for all rows; off with the shape of z, or [C].

Each operator is differentiable by z, y, r, q, off and its upstream gradients, from closed formulas and to any order: the
derivative of `rows` is `gradient`, and that of `gradient` is `curvature`, which is written with the first two where it is differentiated
again. None is obtained by differentiating a sequence of operations that computes the loss.

In eager mode and in torch.func they are functions of autograd, which have a `jvp` and a `vmap`. Under torch.compile and for subclasses of
Tensor they are operators of torch.library with the same arguments and derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad
from torch.nn.functional import logsigmoid

from .. import contract
from ..kernels import IGNORED, LARGEST, LARGEST_LOGIT, NO_LABEL
from . import compute, cpu
from .compute import PLAIN, readable

Optional = Tensor | None
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


# ---- the operators ----


def rows(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Optional,
    axis: int, temperature: float = 1.0, cap: float = math.inf, more: bool = False,
) -> Five:  # fmt: skip
    """Return loss, lse, log-probability of the label, entropy and correct of each row, float64 (correct: bool).

    The last three are empty unless `more` is set. All are 0 in rows with the label IGNORED.
    """
    found: Five = _either(Rows, rows_operator, z, label, y, r, q, off, axis, temperature, cap, more)
    return found


def gradient(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Optional,
    g: Optional, l: Optional, b: Optional, n: Optional,  # noqa: E741
    axis: int, temperature: float = 1.0, cap: float = math.inf,
) -> Tensor:  # fmt: skip
    """Return the gradient of sum g loss + l lse + b logprob + n entropy by the logits; g, l, b and n are None, [*lead] or 0-dim."""
    found: Tensor = _either(Gradient, gradient_operator, z, label, y, r, q, off, g, l, b, n, axis, temperature, cap)
    return found


def log_softmax(z: Tensor, scale: Tensor, axis: int, temperature: float = 1.0, cap: float = math.inf) -> Tensor:
    """Return scale log softmax(z), in the dtype of z, for a float64 scale [*lead] or 0-dim. It is 0 where scale is 0."""
    found: Tensor = _either(LogSoftmax, log_softmax_operator, z, scale, axis, temperature, cap)
    return found


def curvature(z: Tensor, v: Tensor, *others: Any) -> Five:
    """Return the derivative of `gradient` along v (of the shape of z), and four numbers of each row, in float64 or as z is computed:

    mean = <yhat, v'>, v'_t - mean, sum_k off_k (v'_k - mean) and the derivative of the entropy along v, where v' is v times the slope
    of the transform of the logits. They are the derivatives of <gradient, v> by l, b and n; those by g, y, r and q are sums
    of their products. The other arguments are those of `gradient`, label to cap.
    """
    found: Five = of_batches(_curvature, z, v, *others)
    return found


def _curvature(z: Tensor, v: Tensor, *others: Any) -> Five:
    found: Five = _either(Curvature, _composed_curvature, z, v, *others)
    return found


def class_labels(fn: str, target: Tensor, classes: int, ignored: int) -> Tensor:
    """Return class indices as labels: int64, and IGNORED where the target is `ignored`. On a CPU, raise an error if one is out of range."""
    found: Tensor = (_labels if readable(target) else labels_operator)(fn, target, classes, ignored)
    return found


def _labels(fn: str, target: Tensor, classes: int, ignored: int) -> Tensor:
    if not target.is_cpu:
        return torch.where(target == ignored, IGNORED, target.long())
    label, _ = labelled(fn, target, classes, ignored)
    return label.clone() if label is target else label


def labelled(fn: str, target: Tensor, classes: int, ignored: int) -> tuple[Tensor, int]:
    """Return labels of a CPU as the kernels take them, the target itself if no row is ignored, and how many are."""
    first, count, _ = cpu.labels(target, classes, ignored)
    if first >= 0:
        contract.outside(fn, contract.TORCH.labels, cpu.in_memory(target.detach()).numpy(), first, classes, ignored)
    if not count and target.dtype == torch.int64:
        return cpu.in_memory(target), count
    label = torch.empty(target.shape, dtype=torch.int64, device="cpu")
    cpu.labels(target, classes, ignored, out=label.view(-1))
    return label, count


def check_labels(fn: str, target: Tensor, classes: int, ignored: int) -> None:
    """Raise an error if a label is out of range. On a GPU this waits for the labels."""
    labelled(fn, target.detach().cpu(), classes, ignored)


# ---- which implementation ----


def eagerly(t: Tensor) -> bool:
    """Whether the function of autograd is used for this tensor, and not the operator of torch.library."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or (type(t) in PLAIN and not t.is_meta and not torch._C._is_tracing())


def _transforms() -> bool:
    """Whether forward mode or a transform of torch.func is active. The operators of torch.library know neither, and drop a tangent."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


_constant: Any = torch.compiler.assume_constant_result  # untyped
transforms: Callable[[], bool] = _constant(_transforms)  # a compiler guards the transforms that were active when it traced


def beside_the_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that a compiler does not trace: the graph ends before the call."""
    disable: Any = torch.compiler.disable  # untyped
    found: Callable[..., Any] = disable(function)
    return found


def by_operator(t: Tensor) -> bool:
    """Whether the operator of torch.library is called, because a compiler or a subclass of Tensor must see it."""
    return not (torch.compiler.is_compiling() and transforms()) and not eagerly(t)


def called(function: Any, z: Tensor, *others: Any) -> Any:
    """Call the function of autograd."""
    if torch.compiler.is_compiling():
        return beside_the_graph(function.apply)(z, *others)
    if torch._C._are_functorch_transforms_active():
        if forward_levels() > 1:
            expected = "not be nested, for torch would return 0; use torch.func.grad for one of the two"
            contract.fail("softxent.torch", "forward mode", expected, "jvp of jvp", RuntimeError)
        return function.apply(z, *others)
    return quickly(function, z, *others)


def quickly(function: Any, *arguments: Any) -> Any:
    """Call a function of autograd where no transform of torch.func is active."""
    quick: Any = super(Function, function)  # Function.apply first binds the arguments to a signature, which takes 25 us
    return quick.apply(*unwrap_dead_wrappers(arguments))


def _either(function: Any, operator: Any, z: Tensor, *others: Any) -> Any:
    """Call the operator of torch.library or the function of autograd."""
    return operator(z, *others) if by_operator(z) else called(function, z, *others)


def forward_levels() -> int:
    """Return how many transforms of torch.func that are active now are in forward mode."""
    return sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters())


def _recorded(function: Callable[..., Any], operator: Any) -> Callable[..., Any]:
    """Return the operator while a tracer records operators, and else the function."""
    return operator if compute.traced() else function


def differentiated(*tensors: Optional) -> bool:
    """Whether a derivative with respect to one of these tensors may be wanted, in reverse or in forward mode."""
    reverse = torch.is_grad_enabled()
    for t in tensors:
        if t is not None and ((reverse and t.requires_grad) or has_tangent(t)):
            return True
    return False


def has_tangent(t: Tensor) -> bool:
    """Whether forward mode differentiates with respect to this tensor."""
    if forward_ad._current_level < 0:
        return False
    unpack: Any = forward_ad.unpack_dual  # untyped
    return unpack(t).tangent is not None


def batched_by_autograd(*grads: Optional) -> bool:
    """Whether these are upstream gradients of is_grads_batched, which cannot call a function of autograd."""
    for g in grads:
        if g is not None and torch._C._functorch.is_legacy_batchedtensor(g):
            return True
    return False


def first_backward(ctx: Any) -> bool:
    """Whether this is the first backward pass, and the only one that may return the gradient of the forward pass.

    `ctx.unused` is a list with one entry until then. Of several threads, only one succeeds in removing it.
    """
    try:
        ctx.unused.pop()
    except IndexError:
        return False
    return True


# ---- the functions of autograd ----


def _saving(tensors: int) -> Callable[..., None]:
    """Return a `setup_context` that saves the first arguments, which are `tensors` or None, and the others as `ctx.options`."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]
        if hasattr(ctx, "save_for_forward"):  # that of an operator may have none
            ctx.save_for_forward(*inputs[:tensors])
            ctx.set_materialize_grads(False)

    return setup_context


class Rows(Function):
    """(z, label, y, r, q, off, axis, temperature, cap, more) -> loss, lse, logprob, entropy, correct."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _saving(6)(ctx, inputs, output)
        if hasattr(ctx, "mark_non_differentiable"):
            ctx.mark_non_differentiable(*output[4 if inputs[-1] else 2 :])

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _recorded(compute.rows, rows_operator)(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        z, label, _, r, _, off = given = compute.saved(ctx)
        *options, more = ctx.options
        up: Any = grads[:4] if more else (*grads[:2], None, None)
        needs, g = ctx.needs_input_grad, up[0]
        found: list[Optional] = [None] * len(needs)
        if needs[0] and any(t is not None for t in up):
            found[0] = (multiplied_gradient if batched_by_autograd(*up) else gradient)(*given, *up, *options)
        if g is not None:
            by_numbers = _loss_by_numbers(needs[2:5], z, label, off, *options)
            found[2:5] = (None if by is None else shaped(g * by, t, options[0]) for by, t in zip(by_numbers, given[2:5], strict=True))
        if g is not None and needs[5]:
            found[5] = shaped(_loss_by_off(z, label, g * r, off, *options), off, options[0])
        return tuple(found)

    @staticmethod
    def jvp(ctx: Any, dz: Optional, _: None, dy: Optional, dr: Optional, dq: Optional, doff: Optional, *__: Any) -> Any:
        z, label, y, r, q, off = given = compute.saved(ctx)
        axis, *transform, more = ctx.options
        dloss: Any = z.new_zeros(label.shape, dtype=torch.float64)
        dlse = dlogprob = dentropy = dloss
        if dz is not None:
            along = curvature(z, dz, *given[1:], None, None, None, None, axis, *transform)[1:]
            dlse, dlogprob, by_off, dentropy = (t.double() for t in along)
            zero = dloss.new_zeros(())
            lse = rows(z, label, zero, zero, zero, None, axis, *transform)[1]
            dloss = loss_along(y, r, q, lse, dlse, dlogprob, by_off)
        numbers = (dy, dr, dq)  # may be batches of torch.autograd.functional.jacobian, which no function of autograd takes
        for d, by in zip(numbers, _loss_by_numbers([d is not None for d in numbers], z, label, off, axis, *transform), strict=True):
            dloss = dloss if d is None else dloss + times(d, by)
        if doff is not None:
            by_classes, each = _loss_by_off(z, label, r, off, axis, *transform), along_axis(doff, z, axis)
            dloss = dloss + (by_classes.masked_fill((by_classes == math.inf) & (each == 0), 0) * each).sum(axis)  # a masked class adds 0
        return (dloss, dlse, dlogprob, dentropy, None) if more else (dloss, dlse, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        found = rows(*_folded(info.batch_size, in_dims, 6, arguments))
        return found, (0, 0, 0, 0, 0) if arguments[-1] else (0, 0, None, None, None)


class Gradient(Function):
    """(z, label, y, r, q, off, g, l, b, n, axis, temperature, cap) -> the gradient of the logits."""

    setup_context = _saving(10)

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _recorded(compute.gradient, gradient_operator)(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), none = grads, (None,) * 13
        if v is None:
            return none
        z, label, *_ = given = compute.saved(ctx)
        zero, options = z.new_zeros((), dtype=torch.float64), ctx.options
        lse = lambda: rows(z, label, zero, zero, zero, None, *options)[1]  # noqa: E731
        along = curvature(z, v, *given[1:], *options)
        return *derivatives_of_gradient(given, v, along, lse, ctx.needs_input_grad, *options), *none[10:]

    @staticmethod
    def jvp(ctx: Any, dz: Optional, _: None, dy: Optional, dr: Optional, dq: Optional, doff: Optional, *others: Any) -> Any:
        given = compute.saved(ctx)
        z, label, r, off, g = (given[i] for i in (0, 1, 3, 5, 6))
        up, options = others[:4], ctx.options
        total, zero = torch.zeros_like(z), z.new_zeros((), dtype=torch.float64)
        if dz is not None:
            total = total + curvature(z, dz, *given[1:], *options)[0]
        if any(d is not None for d in up):
            total = total + of_batches(gradient, *given[:6], *up, *options)
        of_loss: Any = (g, None, None, None)
        if g is not None and not (dy is None and dr is None and dq is None):
            changed: Any = (*(zero if d is None else d for d in (dy, dr, dq)), off)
            total = total + of_batches(gradient, z, label, *changed, *of_loss, *options)
        if g is not None and doff is not None:
            total = total + of_batches(gradient, z, label, zero, r, zero, doff, *of_loss, *options)
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return gradient(*_folded(info.batch_size, in_dims, 10, arguments)), 0


class Curvature(Function):
    """(z, v, label, y, r, q, off, g, l, b, n, axis, temperature, cap) -> what `curvature` returns."""

    setup_context = _saving(11)

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _recorded(compute.curvature, _composed_curvature)(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        given = compute.saved(ctx)
        at = [k for k, need in enumerate(ctx.needs_input_grad) if need]
        found, pull_back = _composed_vjp(given, at, ctx.options)
        upstream = (torch.zeros_like(t) if g is None else g.to(t.dtype) for g, t in zip(grads, found, strict=True))
        gradients = dict(zip(at, pull_back(tuple(upstream)), strict=True))
        return tuple(gradients.get(k) for k in range(len(ctx.needs_input_grad)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Any:
        given = compute.saved(ctx)
        at = [k for k, t in enumerate(tangents) if t is not None]
        found, pull_back = _composed_vjp(given, at, ctx.options)
        # The transpose of the linear map of upstream gradients to gradients: torch.func.jvp cannot be nested in forward mode.
        push_forward = torch.func.vjp(lambda *upstream: pull_back(upstream), *map(torch.ones_like, found))[1]
        moving: Any = [tangents[k] for k in at]
        hv, *numbers = push_forward(tuple(t.to(given[k].dtype) for k, t in zip(at, moving, strict=True)))
        return hv, *(t.double() for t in numbers)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], z: Tensor, v: Tensor, *others: Any) -> Any:
        folded = _folded(info.batch_size, (in_dims[0], *in_dims[2:]), 10, (z, *others))
        return curvature(folded[0], _front(v, in_dims[1], info.batch_size), *folded[1:]), (0,) * 5


def _composed_vjp(given: Sequence[Any], at: Sequence[int], options: Sequence[Any]) -> tuple[Five, Callable[[Any], tuple[Tensor, ...]]]:
    """Return what `_composed_curvature` returns, and the function of upstream gradients that gives those of the arguments `at`."""
    given = unwrap_dead_wrappers(tuple(given))

    def of_some(*values: Tensor) -> Five:
        arguments: list[Any] = list(given)
        for k, value in zip(at, values, strict=True):
            arguments[k] = value
        return _composed_curvature(*arguments, *options)

    found, pull_back, *_ = torch.func.vjp(of_some, *(given[k] for k in at))
    return found, pull_back


class LogSoftmax(Function):
    """(z, scale, axis, temperature, cap) -> scale log softmax(z)."""

    setup_context = _saving(2)

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _recorded(compute.log_softmax, log_softmax_operator)(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), (z, scale) = grads, compute.saved(ctx)
        axis, *transform = ctx.options
        if v is None:
            return (None,) * 5
        dz = dscale = None
        if ctx.needs_input_grad[0]:
            dz = _log_softmax_vjp(z, v, scale, axis, *transform)
        if ctx.needs_input_grad[1]:
            one = z.new_ones((), dtype=torch.float64)
            dscale = shaped(times(v, log_softmax(z, one, axis, *transform)).sum(axis), scale, axis)
        return dz, dscale, None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Optional, dscale: Optional, *_: Any) -> Tensor:
        z, scale = compute.saved(ctx)
        axis, *transform = ctx.options
        total = torch.zeros_like(z)
        if dz is not None:
            label, zero = no_labels(z, axis), z.new_zeros((), dtype=torch.float64)
            mean = curvature(z, dz, label, zero, zero, zero, None, None, None, None, None, axis, *transform)[1]
            slope = transformed(z, *transform)[1]
            total = total + times(_columns(scale, label, axis), slope * dz - mean.unsqueeze(axis))
        if dscale is not None:
            total = total + of_batches(log_softmax, z, dscale, axis, *transform)
        return total.to(z.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        z, scale, axis, *transform = arguments
        z = _front(z, in_dims[0], info.batch_size)
        scale = _row_numbers(scale, in_dims[1], compute.shape_of_rows(z, axis + 1)[0])
        return log_softmax(z, scale, axis + 1, *transform), 0


# ---- derivatives ----


def derivatives_of_gradient(
    given: Sequence[Any], v: Tensor, along: Sequence[Any], lse: Callable[[], Tensor], needs: Sequence[bool], axis: int, *transform: float
) -> list[Optional]:
    """Return the derivatives of <gradient, v> by z, label, ... n, `given`, from what `curvature` returns; None for those not needed."""
    z, label, y, r, q, _, g, *_ = given
    hv, mean, at_label, by_off, dentropy = along
    found = {0: hv, 7: mean, 8: at_label, 9: dentropy}
    if g is not None:
        found |= {2: -g * at_label, 3: -g * by_off}
    if g is not None and (needs[4] or needs[6]):
        of_lse = lse()
        found |= {4: g * of_lse * mean, 6: loss_along(y, r, q, of_lse, mean, at_label, by_off)}
    if g is not None and needs[5]:
        slope = transformed(without_ignored(z, label, axis), *transform)[1]
        apart = mean.unsqueeze(axis) - slope * without_ignored(v, label, axis).to(mean.dtype)
        found[5] = times(_columns(g * r * (label != IGNORED), label, axis), apart)
    return [shaped(found[k], given[k], axis) if k in found and needs[k] else None for k in range(len(given))]


def loss_along(y: Tensor, r: Tensor, q: Tensor, lse: Tensor, mean: Tensor, at_label: Tensor, by_off: Tensor) -> Tensor:
    """Return the derivative of the loss along a vector, from the numbers of `curvature`."""
    return times(q, lse) * mean - times(y, at_label) - times(r, by_off)


def of_batches(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function. Some arguments may be batches of torch.autograd.functional, for which torch.func.vmap is used."""
    dims = tuple(0 if isinstance(t, Tensor) and batched_by_autograd(t) else None for t in arguments)
    if not any(dim == 0 for dim in dims):
        return function(*arguments)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    plain = [t if dim is None else torch._remove_batch_dim(t, level, 1, 0) for t, dim in zip(arguments, dims, strict=True)]
    found = torch.func.vmap(function, dims)(*plain)
    batch: Any = lambda t: torch._add_batch_dim(t, 0, level)  # noqa: E731
    return tuple(map(batch, found)) if isinstance(found, tuple) else batch(found)


def multiplied_gradient(*arguments: Any) -> Tensor:
    """Compute `gradient` for upstream gradients of 1 and multiply it by the given ones, in which it is linear.

    This calls no function of autograd with them, so it works for a batch of upstream gradients.
    """
    z, label, y, *_ = arguments
    upstream, options = arguments[6:10], arguments[10:]
    one, parts = y.new_ones(()), []
    for k, up in enumerate(upstream):
        if up is not None:
            dz = gradient(*arguments[:6], *(one if i == k else None for i in range(4)), *options)
            parts.append(dz * _columns(up, label, options[0]).to(z.dtype))
    return sum(parts[1:], parts[0])


def _loss_by_numbers(needs: Sequence[bool], z: Tensor, label: Tensor, off: Optional, axis: int, *transform: Any) -> list[Any]:
    """Return the derivatives of the loss by y, r and q, in which it is linear, and None for those that are not needed."""
    zero, one = z.new_zeros((), dtype=torch.float64), z.new_ones((), dtype=torch.float64)
    nll = loss = lse = None
    if needs[0] or needs[2]:
        nll, lse, *_ = rows(z, label, one, zero, zero, off, axis, *transform)
    if needs[1]:
        loss = rows(z, label, zero, one, zero, off, axis, *transform)[0]
    return [nll if needs[0] else None, loss, lse**2 / 2 if lse is not None and needs[2] else None]


def _loss_by_off(z: Tensor, label: Tensor, r: Tensor, off: Tensor, axis: int, *transform: Any) -> Tensor:
    """Return - r log yhat, the derivative of the loss by off, with the shape of z. r may be a batch of is_grads_batched."""
    live = label != IGNORED
    wide = without_ignored(z, label, axis).to(torch.promote_types(compute.compute_dtype(z), off.dtype))
    if batched_by_autograd(r):
        return _columns(r, label, axis) * -log_softmax(wide, live.double(), axis, *transform)
    return -log_softmax(wide, torch.where(live, r, 0.0), axis, *transform)


def _log_softmax_vjp(z: Tensor, v: Tensor, scale: Tensor, axis: int, *transform: Any) -> Tensor:
    """Return scale v - yhat sum_k scale v_k, times the slope of the transform: less the gradient of the truth scale v.

    The most probable class is the label, of weight 0, so that its entry keeps its digits.
    """
    zero, one = z.new_zeros((), dtype=torch.float64), z.new_ones((), dtype=torch.float64)
    top = same_label(z, axis, LARGEST_LOGIT)
    wide = compute.compute_dtype(z)
    if batched_by_autograd(v):
        by = -(_columns(scale, top, axis) * v).to(wide)
        yhat = gradient(z, top, zero, zero, zero, None, None, one, None, None, axis, *transform)
        return yhat * by.sum(axis, keepdim=True) - transformed(z, *transform)[1] * by
    return gradient(z, top, zero, scale, zero, v, -one, None, None, None, axis, *transform)


def _composed_curvature(z: Tensor, v: Tensor, *others: Any) -> Five:
    """Return `curvature`, written with `gradient`, `log_softmax` and torch's operations, which can be differentiated again.

    This is formula.hessian, for any axis. v is used in torch's operations only, so it may be a batch of is_grads_batched.
    """
    label, y, r, q, off, *upstream, axis, temperature, cap = others
    zero, one = z.new_zeros((), dtype=torch.float64), z.new_ones((), dtype=torch.float64)
    wide = compute.compute_dtype(z) if cap == math.inf and temperature == 1 else torch.float64
    live = label != IGNORED
    unused = sum(t != 0 for t in (y, r, q, *upstream) if t is not None) == 0
    # rows that are ignored, and those that have neither weights nor finite logits, give 0
    blank = (~live | (unused & ~z.detach().amax(axis).isfinite())).unsqueeze(axis)
    z, v = (torch.where(blank, 0, t) for t in (z, v))
    x, slope, bend = transformed(z.to(wide), temperature, cap)
    v = v.to(x.dtype)
    along = v * slope
    hidden = no_labels(z, axis)
    yhat = gradient(x, hidden, zero, zero, zero, None, None, one, None, None, axis)
    away = -log_softmax(x, one, axis)
    away = away.masked_fill(away == math.inf, 0)  # where yhat is 0
    _, lse, *_ = rows(x, hidden, zero, zero, zero, None, axis)

    top = along.gather(axis, x.detach().argmax(axis, keepdim=True))
    lead = (yhat * (top - along)).sum(axis, keepdim=True)  # v - mean at the most probable class, where a subtraction may cancel
    apart, mean = (along - top) + lead, top - lead
    entropy = (yhat * away).sum(axis, keepdim=True)
    dentropy = (yhat * apart * away).sum(axis, keepdim=True)

    everywhere = zero.to(x.dtype) if off is None else along_axis(off, z, axis).to(x.dtype)
    mass = y + r * everywhere.expand(z.shape).sum(axis)
    numbers = (mass + times(q, lse), q, *(zero if t is None else t for t in upstream))
    total, qs, gs, ls, bs, ns = (_columns(t, label, axis) for t in numbers)
    a = gs * total + ls - bs - ns * entropy
    hv = slope * yhat * ((a - ns + ns * away) * apart + gs * qs * mean - ns * dentropy)
    if cap != math.inf:
        hv = hv + bend * v * gradient(x, *others[:10])
    hv = torch.where(blank, 0, hv).to(z.dtype)

    by_logit = z.detach().argmax(axis)
    by_off = by_logit if off is None or off.shape != z.shape else off.detach().argmax(axis)
    t = torch.where(label == LARGEST, by_off, torch.where(label == LARGEST_LOGIT, by_logit, label))
    hot = along_axis(torch.arange(z.shape[axis], device=z.device), z, axis) == t.unsqueeze(axis)
    sums = (mean.squeeze(axis), (apart * hot).sum(axis), (everywhere * apart).sum(axis), dentropy.squeeze(axis))
    mean, at_label, by_off, dentropy = (t.where(live, 0) for t in sums)
    return hv, mean, at_label, by_off, dentropy


def transformed(z: Tensor, temperature: float, cap: float) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Return (cap / T) tanh(z / cap), or z / T if cap is inf, and its first two derivatives. None cancels where |z / cap| is large."""
    if cap == math.inf:
        return (z if temperature == 1 else z / temperature), 1 / temperature, 0.0
    u = z.double() / cap
    t = (-2 * u.abs()).exp()
    tanh = u.tanh().where(u.abs() < 1, u.sign() * ((1 - t) / (1 + t)))  # the derivative of torch's tanh is 1 - tanh^2, which cancels
    slope = 4 / temperature * (logsigmoid(2 * u) + logsigmoid(-2 * u)).exp()  # 1 / cosh^2
    return tanh * (cap / temperature), slope, (-2 / cap) * tanh * slope


# ---- shapes ----


def same_label(z: Tensor, axis: int, label: int) -> Tensor:
    """Return this label for each row of logits z."""
    return z.new_full((), label, dtype=torch.int64).expand(compute.shape_of_rows(z, axis)[0])


def no_labels(z: Tensor, axis: int) -> Tensor:
    """Return a label NO_LABEL for each row of logits z."""
    return same_label(z, axis, NO_LABEL)


def without_ignored(t: Tensor, label: Tensor, axis: int) -> Tensor:
    """Return t, of the shape of the logits, with 0 in ignored rows. A NaN there would reach the derivatives by weights that rows share."""
    return torch.where((label == IGNORED).unsqueeze(axis), 0, t)


def times(factor: Tensor, value: Tensor) -> Tensor:
    """Return factor * value, and 0 where the factor is 0, even if the value is infinite or NaN.

    The derivative by the factor is the value, also where the factor is 0; the derivatives are 0 where such a value is infinite or NaN.
    """
    return factor * torch.where((factor == 0) & ~value.isfinite(), torch.zeros_like(value), value)


def _columns(number: Tensor, label: Tensor, axis: int) -> Tensor:
    """Return numbers of the rows, [*lead] or 0-dim, with an axis of length 1 for the classes."""
    return number.expand(label.shape).unsqueeze(axis)


def along_axis(classes: Tensor, z: Tensor, axis: int) -> Tensor:
    """Return a number of each class, with axes of length 1 for the rows if it is [C]."""
    return classes if classes.shape == z.shape else classes.reshape([-1 if i == axis else 1 for i in range(z.ndim)])


def shaped(value: Tensor, argument: Tensor, axis: int) -> Tensor:
    """Return a gradient as one of an argument that all rows may share: summed over the rows then, and in its dtype."""
    if argument.ndim < value.ndim:
        value = value.sum([i for i in range(value.ndim) if i != axis or not argument.ndim])
    return value.to(argument.dtype)


# ---- vmap ----


def _front(t: Tensor, dim: int | None, size: int) -> Tensor:
    return t.movedim(dim, 0) if dim is not None else t.unsqueeze(0).expand(size, *t.shape)


def _row_numbers(t: Any, dim: int | None, lead: Sequence[int]) -> Any:
    """Return numbers of the rows with the batch as the first of their axes; those that are the same for all rows stay so."""
    if t is None or (dim is None and not t.ndim):
        return t
    t = _front(t, dim, lead[0])
    return t.reshape(*t.shape, *[1] * (len(lead) - t.ndim)).expand(lead)


def _folded(size: int, in_dims: tuple[Any, ...], tensors: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments under vmap, with the batch as the first axis, which becomes one more axis of rows."""
    z, label, y, r, q, off, *upstream = arguments[:tensors]
    axis, *others = arguments[tensors:]
    z, label = _front(z, in_dims[0], size), _front(label, in_dims[1], size)
    lead = compute.shape_of_rows(z, axis + 1)[0]
    y, r, q, *upstream = (
        _row_numbers(t, dim, lead) for t, dim in zip((y, r, q, *upstream), (*in_dims[2:5], *in_dims[6:tensors]), strict=True)
    )
    if off is not None and (in_dims[5] is not None or off.ndim > 1 or z.ndim == 2):  # and not one [C] that all rows share
        off = _front(off, in_dims[5], size)
        off = off if off.ndim == z.ndim else off.reshape(size, *[-1 if i == axis else 1 for i in range(z.ndim - 1)]).expand(z.shape)
    return (z, label, y, r, q, off, *upstream, axis + 1, *others)


# ---- the operators of torch.library ----

TRUTH = "Tensor z, Tensor label, Tensor y, Tensor r, Tensor q, Tensor? off"
UPSTREAM = "Tensor? g, Tensor? l, Tensor? b, Tensor? n"
HOW = "int axis, float temperature, float cap"

rows_operator = torch.library.custom_op(
    "softxent::rows", compute.rows, mutates_args=(), schema=f"({TRUTH}, {HOW}, bool more) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
gradient_operator = torch.library.custom_op(
    "softxent::gradient", compute.gradient, mutates_args=(), schema=f"({TRUTH}, {UPSTREAM}, {HOW}) -> Tensor"
)
log_softmax_operator = torch.library.custom_op("softxent::log_softmax", compute.log_softmax, mutates_args=())
labels_operator = torch.library.custom_op("softxent::class_labels", _labels, mutates_args=())

for _operator, _function in ((rows_operator, Rows), (gradient_operator, Gradient), (log_softmax_operator, LogSoftmax)):
    _operator.register_autograd(_function.backward, setup_context=_function.setup_context)


@rows_operator.register_fake
def _(z: Tensor, label: Tensor, y: Any, r: Any, q: Any, off: Any, axis: int, t: float, cap: float, more: bool) -> tuple[Tensor, ...]:
    lead = compute.shape_of_rows(z, axis)[0]
    *found, correct = (z.new_empty(shape, dtype=torch.float64) for shape in (lead, lead, *[lead if more else [0]] * 3))
    return *found, correct != 0


@gradient_operator.register_fake
@log_softmax_operator.register_fake
def _(z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z)


@labels_operator.register_fake
def _(fn: str, target: Tensor, classes: int, ignored: int) -> Tensor:
    return torch.empty_like(target, dtype=torch.int64)


@labels_operator.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], fn: str, target: Tensor, classes: int, ignored: int) -> tuple[Tensor, int]:
    return labels_operator(fn, target, classes, ignored), in_dims[1]
