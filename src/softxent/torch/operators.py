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
from torch.autograd import Function, forward_ad
from torch.nn import Parameter
from torch.nn.functional import logsigmoid

from .. import contract
from ..kernels import IGNORED, LARGEST, NO_LABEL, reference
from . import compute, cpu

PLAIN = (Tensor, Parameter)
Optional = Tensor | None


# ---- the operators ----


def rows(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Optional,
    axis: int = -1, temperature: float = 1.0, cap: float = math.inf, more: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return loss, lse, log-probability of the label, entropy and correct of each row, float64 (correct: bool).

    The last three are empty unless `more` is set. All are 0 in rows with the label IGNORED.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _chosen(z, Rows, rows_operator)(
        z, label, y, r, q, off, axis % z.ndim, temperature, cap, more
    )
    return found


def gradient(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Optional,
    g: Optional, l: Optional, b: Optional, n: Optional,  # noqa: E741
    axis: int = -1, temperature: float = 1.0, cap: float = math.inf,
) -> Tensor:  # fmt: skip
    """Return the gradient of sum g loss + l lse + b logprob + n entropy by the logits; g, l, b and n are None, [*lead] or 0-dim."""
    found: Tensor = _chosen(z, Gradient, gradient_operator)(z, label, y, r, q, off, g, l, b, n, axis % z.ndim, temperature, cap)
    return found


def log_softmax(z: Tensor, scale: Tensor, axis: int = -1, temperature: float = 1.0, cap: float = math.inf) -> Tensor:
    """Return scale log softmax(z), in the dtype of z, for a float64 scale [*lead] or 0-dim. It is 0 where scale is 0."""
    found: Tensor = _chosen(z, LogSoftmax, log_softmax_operator)(z, scale, axis % z.ndim, temperature, cap)
    return found


def curvature(
    z: Tensor, v: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Optional,
    g: Optional, l: Optional, b: Optional, n: Optional,  # noqa: E741
    axis: int = -1, temperature: float = 1.0, cap: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the derivative of `gradient` along v (of the shape of z), and four numbers of each row, in float64 or as z is computed:

    mean = <yhat, v'>, v'_t - mean, sum_k off_k (v'_k - mean) and the derivative of the entropy along v, where v' is v times the slope
    of the transform of the logits. They are the derivatives of <gradient, v> by l, b and n; those by g, y, r and q are sums
    of their products.
    """
    given = (z, v, label, y, r, q, off, g, l, b, n)
    if _directly(z) and not batched_by_autograd(v) and not differentiated(*given):
        return compute.curvature(*given, axis % z.ndim, temperature, cap)
    return _composed_curvature(*given, axis % z.ndim, temperature, cap)


def class_labels(fn: str, target: Tensor, classes: int, ignored: int) -> Tensor:
    """Return class indices as labels: int64, and IGNORED where the target is `ignored`. On a CPU, raise an error if one is out of range."""
    found: Tensor = (_labels if _directly(target) else labels_operator)(fn, target, classes, ignored)
    return found


def check_labels(fn: str, target: Tensor, classes: int, ignored: int) -> None:
    """Raise an error if a label is out of range. On a GPU this waits for the labels."""
    labels = cpu.in_memory(target.detach()).cpu().numpy()
    bad = reference.first_outside(labels.reshape(-1), classes, ignored)
    contract.inside(fn, contract.TORCH.labels, labels, bad, classes, ignored)


# ---- which implementation ----


def eagerly(t: Tensor) -> bool:
    """Whether the function of autograd is used for this tensor, and not the operator of torch.library."""
    compiling = torch.compiler.is_compiling()
    plain = type(t) in PLAIN and not t.is_meta and not compiling
    return plain or (not compiling and torch._C._are_functorch_transforms_active())


def _directly(t: Tensor) -> bool:
    """Whether the values of this tensor can be computed with now: no transform of torch.func and no tracer is active."""
    return eagerly(t) and not torch._C._are_functorch_transforms_active() and not torch._C._len_torch_dispatch_stack()


def _chosen(z: Tensor, function: type[Function], operator: Any) -> Callable[..., Any]:
    if torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        # operators of torch.library have no forward mode, and drop a tangent without an error
        beside: Any = torch.compiler.disable  # untyped
        found: Callable[..., Any] = beside(function.apply)
        return found
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active() and forward_levels() > 1:
        expected = "not be nested, for torch would return 0; use torch.func.grad for one of the two"
        contract.fail("softxent.torch", "forward mode", expected, "jvp of jvp", RuntimeError)
    chosen: Callable[..., Any] = function.apply if eagerly(z) else operator
    return chosen


def forward_levels() -> int:
    """Return how many transforms of torch.func that are active now are in forward mode."""
    return sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters())


def _recorded(function: Callable[..., Any], operator: Any) -> Callable[..., Any]:
    """Return the operator while a tracer records operators, and else the function."""
    return operator if torch._C._len_torch_dispatch_stack() else function


def differentiated(*tensors: Optional) -> bool:
    """Whether a derivative with respect to one of these tensors may be wanted, in reverse or in forward mode."""
    reverse = torch.is_grad_enabled()
    for t in tensors:
        if t is not None and ((reverse and t.requires_grad) or has_tangent(t)):
            return True
    return False


def has_tangent(t: Tensor) -> bool:
    """Whether forward mode may differentiate with respect to this tensor. For tensors inside torch.func, only True is a safe answer."""
    if forward_ad._current_level < 0:
        return False
    unpack: Any = forward_ad.unpack_dual  # untyped
    return torch._C._functorch.is_functorch_wrapped_tensor(t) or unpack(t).tangent is not None


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


# the same for arguments that are unpacked, whose types are not known
rows_of: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = rows
gradient_of: Callable[..., Tensor] = gradient
curvature_of: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = curvature


# ---- the functions of autograd ----


class Rows(Function):
    """(z, label, y, r, q, off, axis, temperature, cap, more) -> loss, lse, logprob, entropy, correct."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _recorded(compute.rows, rows_operator)(*arguments)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs[:6], inputs[6:])
        if hasattr(ctx, "mark_non_differentiable"):
            ctx.mark_non_differentiable(*output[4 if inputs[-1] else 2 :])

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        given: Any = ctx.saved_tensors
        *options, more = ctx.options
        up, needs = grads[: 4 if more else 2], ctx.needs_input_grad
        up = (*up, *(None,) * (4 - len(up)))
        dz: Optional = None
        if needs[0] and any(g is not None for g in up):
            dz = (multiplied_gradient if batched_by_autograd(*up) else gradient_of)(*given, *up, *options)
        by_numbers: Any = (None,) * 4 if up[0] is None else _loss_by_numbers(needs[2:6], *given, up[0], *options)  # type: ignore[arg-type]
        return dz, None, *by_numbers, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Optional, _: None, dy: Optional, dr: Optional, dq: Optional, doff: Optional, *__: Any) -> Any:
        z, label, y, r, q, off = given = ctx.saved_tensors
        axis, *transform, more = ctx.options
        dloss: Any = torch.zeros(label.shape, dtype=torch.float64, device=z.device)
        dlse = dlogprob = dentropy = dloss
        zero = dloss.new_zeros(())
        if dz is not None:
            found = curvature_of(z, dz, *given[1:], None, None, None, zero if more else None, axis, *transform)
            dlse, dlogprob, by_off, dentropy = (t.double() for t in found[1:])
            lse = rows_of(z, label, zero, zero, zero, None, axis, *transform)[1]
            dloss = times(q, lse) * dlse - y * dlogprob - r * by_off
        if dy is not None or dq is not None:
            nll, lse = rows_of(z, label, zero + 1, zero, zero, off, axis, *transform)[:2]
            dloss = dloss + (0 if dy is None else dy * nll) + (0 if dq is None else dq * lse**2 / 2)
        if dr is not None:
            dloss = dloss + dr * rows_of(z, label, zero, zero + 1, zero, off, axis, *transform)[0]
        if doff is not None:
            by = -log_softmax(_compute(z), r * _live(label), axis, *transform)
            each = _along(doff, z, axis)
            dloss = dloss + (by.masked_fill((by == math.inf) & (each == 0), 0) * each).sum(axis)  # a masked class adds 0, not NaN
        return (dloss, dlse, dlogprob, dentropy, None) if more else (dloss, dlse, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        more = arguments[-1]
        found = rows_of(*_folded(info.batch_size, in_dims, 6, arguments))
        return found, (0, 0, 0, 0, 0) if more else (0, 0, None, None, None)


class Gradient(Function):
    """(z, label, y, r, q, off, g, l, b, n, axis, temperature, cap) -> the gradient of the logits."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        dz: Tensor = _recorded(compute.gradient, gradient_operator)(*arguments)
        return dz

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs[:10], inputs[10:])

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), none = grads, (None,) * 13
        if v is None:
            return none
        z, label, y, r, q, off, g, *_ = given = ctx.saved_tensors
        axis, *transform = ctx.options
        needs = ctx.needs_input_grad
        hv, mean, at_label, by_off, dentropy = curvature_of(z, v, *given[1:], axis, *transform)
        found: list[Optional] = [hv if needs[0] else None, *none[1:]]
        for place, value in ((7, mean), (8, at_label), (9, dentropy)):
            if needs[place]:
                found[place] = _as(value, given[place])
        if g is not None and any(needs[i] for i in (2, 3, 4, 5, 6)):
            zero = torch.zeros((), dtype=torch.float64, device=z.device)
            lse = rows_of(z, label, zero, zero, zero, None, axis, *transform)[1] if needs[4] or needs[6] else zero
            values = {2: -g * at_label, 3: -g * by_off, 4: g * lse * mean, 6: times(q, lse) * mean - y * at_label - r * by_off}
            for place, value in values.items():
                if needs[place]:
                    found[place] = _as(value, given[place])
            if needs[5]:
                apart = mean.unsqueeze(axis) - transformed(z, *transform)[1] * v.to(mean.dtype)
                found[5] = _off_like(_columns(g * r * _live(label), label, axis) * apart, off, axis)
        return tuple(found)

    @staticmethod
    def jvp(ctx: Any, dz: Optional, _: None, dy: Optional, dr: Optional, dq: Optional, doff: Optional, *rest: Any) -> Any:
        given = ctx.saved_tensors
        z, label, r, off, g = (given[i] for i in (0, 1, 3, 5, 6))
        axis, *transform = ctx.options
        dup, zero = rest[:4], torch.zeros((), dtype=torch.float64, device=z.device)
        total = torch.zeros_like(z)
        if dz is not None:
            total = total + curvature_of(z, dz, *given[1:], axis, *transform)[0]
        if any(d is not None for d in dup):
            total = total + gradient_of(*given[:6], *dup, axis, *transform)
        if g is not None and not (dy is None and dr is None and dq is None):
            changed = (zero if d is None else d for d in (dy, dr, dq))
            total = total + gradient_of(z, label, *changed, off, g, None, None, None, axis, *transform)
        if g is not None and doff is not None:
            total = total + gradient_of(z, label, zero, r, zero, doff, g, None, None, None, axis, *transform)
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return gradient_of(*_folded(info.batch_size, in_dims, 10, arguments)), 0


class KnownGradient(Gradient):
    """(the arguments of Gradient, a tuple with its result) -> its result, which has been computed before."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        dz: Tensor = arguments[-1][0]
        return dz

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Gradient.setup_context(ctx, inputs[:-1], output)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        return *Gradient.backward(ctx, *grads), None


class LogSoftmax(Function):
    """(z, scale, axis, temperature, cap) -> scale log softmax(z)."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        found: Tensor = _recorded(compute.log_softmax, log_softmax_operator)(*arguments)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs[:2], inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), (z, scale) = grads, ctx.saved_tensors
        axis, *transform = ctx.options
        if v is None:
            return (None,) * 5
        dz = dscale = None
        if ctx.needs_input_grad[0]:
            dz = _log_softmax_vjp(z, v, scale, axis, *transform)
        if ctx.needs_input_grad[1]:
            one = torch.ones((), dtype=torch.float64, device=z.device)
            dscale = _as(times(v, log_softmax(z, one, axis, *transform)).sum(axis), scale)
        return dz, dscale, None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Optional, dscale: Optional, *_: Any) -> Tensor:
        z, scale = ctx.saved_tensors
        axis, *transform = ctx.options
        zero = torch.zeros((), dtype=torch.float64, device=z.device)
        total = torch.zeros_like(z)
        if dz is not None:
            label = torch.full(_lead(z, axis), NO_LABEL, device=z.device)
            mean = curvature_of(z, dz, label, zero, zero, zero, None, None, None, None, None, axis, *transform)[1]
            slope = transformed(z, *transform)[1]
            total = total + _columns(scale, label, axis) * (slope * dz - mean.unsqueeze(axis))
        if dscale is not None:
            total = total + log_softmax(z, dscale, axis, *transform)
        return total.to(z.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        z, scale, axis, *transform = arguments
        lead = _lead(_front(z, in_dims[0], info.batch_size), axis + 1)
        z = _front(z, in_dims[0], info.batch_size)
        return log_softmax(z, _row_numbers(scale, in_dims[1], lead), axis + 1, *transform), 0


def _keep(ctx: Any, tensors: tuple[Any, ...], options: tuple[Any, ...]) -> None:
    """Save what the derivatives need, of a function of autograd or of an operator."""
    ctx.save_for_backward(*tensors)
    if hasattr(ctx, "save_for_forward"):
        ctx.save_for_forward(*tensors)
    ctx.options = options
    if hasattr(ctx, "set_materialize_grads"):
        ctx.set_materialize_grads(False)


known_gradient: Callable[..., Tensor] = KnownGradient.apply


# ---- derivatives ----


def multiplied_gradient(*arguments: Any) -> Tensor:
    """Compute `gradient` for upstream gradients of 1 and multiply it by the given ones, in which it is linear.

    This calls no function of autograd with them, so it works for a batch of upstream gradients.
    """
    z, label, y, r, q, off, *upstream, axis, temperature, cap = arguments
    total = None
    for k, up in enumerate(upstream):
        if up is not None:
            one = [torch.ones((), dtype=torch.float64, device=z.device) if i == k else None for i in range(4)]
            part = gradient_of(z, label, y, r, q, off, *one, axis, temperature, cap) * _columns(up, label, axis).to(z.dtype)
            total = part if total is None else total + part
    assert total is not None
    return total


def _loss_by_numbers(
    needs: Sequence[bool], z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Optional, g: Tensor, axis: int, *transform: float
) -> list[Optional]:
    """Return the gradients of sum g loss by y, r, q and off."""
    zero = torch.zeros((), dtype=torch.float64, device=z.device)
    found: list[Optional] = [None] * 4
    if needs[0] or needs[2]:
        nll, lse, *_ = rows_of(z, label, zero + 1, zero, zero, off, axis, *transform)
        found[0] = _as(g * nll, y) if needs[0] else None
        found[2] = _as(g * lse**2 / 2, q) if needs[2] else None
    if needs[1]:
        found[1] = _as(g * rows_of(z, label, zero, zero + 1, zero, off, axis, *transform)[0], r)
    if needs[3]:
        assert off is not None
        wide = z.to(torch.promote_types(z.dtype, off.dtype))
        if batched_by_autograd(g):
            by = _columns(g * r, label, axis) * -log_softmax(wide, _live(label), axis, *transform)
        else:
            by = -log_softmax(wide, g * r * _live(label), axis, *transform)
        found[3] = _off_like(by, off, axis)
    return found


def _log_softmax_vjp(z: Tensor, v: Tensor, scale: Tensor, axis: int, *transform: float) -> Tensor:
    """Return scale v - yhat sum_k scale v_k, times the slope of the transform: less the gradient of the truth scale v.

    The most probable class is the label, of weight 0, so that its entry keeps its digits. Rows with scale 0 are ignored.
    """
    zero = torch.zeros((), dtype=torch.float64, device=z.device)
    top = torch.where(scale == 0, IGNORED, z.detach().argmax(axis))
    if batched_by_autograd(v):
        by = -(_columns(scale, top, axis) * v).to(compute.compute_dtype(z))
        yhat = gradient_of(z, top, zero, zero, zero, None, None, zero + 1, None, None, axis, *transform)
        return yhat * by.sum(axis, keepdim=True) - transformed(z, *transform)[1] * by
    wide = v if v.dtype in (z.dtype, compute.compute_dtype(z)) else v.to(compute.compute_dtype(z))
    return gradient_of(z, top, zero, scale, zero, wide, zero - 1, None, None, None, axis, *transform)


def _composed_curvature(
    z: Tensor, v: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Optional,
    g: Optional, l: Optional, b: Optional, n: Optional,  # noqa: E741
    axis: int, temperature: float, cap: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return `curvature`, written with `gradient`, `log_softmax` and torch's operations, which can be differentiated again.

    This is formula.curvature, for any axis. v is used in torch's operations only, so it may be a batch of is_grads_batched.
    """
    zero = torch.zeros((), dtype=torch.float64, device=z.device)
    x, slope, bend = transformed(_compute(z) if cap == math.inf else z.double(), temperature, cap)
    v = v.to(x.dtype)
    along = v * slope
    live = _live(label)
    hidden = torch.where(live, NO_LABEL, IGNORED)
    yhat = gradient_of(x, hidden, zero, zero, zero, None, None, zero + 1, None, None, axis)
    away = -log_softmax(x, live.double(), axis)
    away = away.masked_fill(away == math.inf, 0)  # where yhat is 0
    _, lse, *_ = rows_of(x, hidden, zero, zero, zero, None, axis)

    top = along.gather(axis, x.detach().argmax(axis, keepdim=True))
    lead = (yhat * (top - along)).sum(axis, keepdim=True)  # v - mean at the most probable class, where a subtraction may cancel
    apart, mean = (along - top) + lead, top - lead
    entropy = (yhat * away).sum(axis, keepdim=True)
    dentropy = (yhat * apart * away).sum(axis, keepdim=True)

    everywhere = None if off is None else _along(off, x, axis).to(x.dtype)
    mass = zero if everywhere is None else _columns(r, label, axis) * everywhere.sum(axis, keepdim=True)
    gs, ls, bs, ns = (_columns(zero if t is None else t, label, axis) for t in (g, l, b, n))
    slack = _columns(times(q, lse), label, axis)
    a = gs * (_columns(y, label, axis) + mass + slack) + ls - bs - ns * entropy
    hv = yhat * ((a - ns + ns * away) * apart + gs * _columns(q, label, axis) * mean - ns * dentropy)
    hv = hv * slope
    if cap != math.inf:
        hv = hv + bend * v * gradient_of(x, label, y, r, q, off, g, l, b, n, axis)
    wanted = torch.zeros((), dtype=torch.bool, device=z.device)
    for number in (y, r, q, g, l, b, n):
        wanted = wanted if number is None else wanted | (number != 0)
    hv = torch.where((live & wanted).unsqueeze(axis), hv, torch.zeros_like(hv)).to(z.dtype)

    classes = torch.arange(z.shape[axis], device=z.device).reshape([-1 if i == axis else 1 for i in range(z.ndim)])
    t = label if off is None or off.shape != z.shape else torch.where(label == LARGEST, off.detach().argmax(axis), label)
    at_label = (apart * (classes == t.unsqueeze(axis))).sum(axis)
    by_off = torch.zeros_like(at_label) if everywhere is None else (everywhere * apart).sum(axis)
    mean, at_label, by_off, dentropy = (
        torch.where(live, t, torch.zeros_like(t)) for t in (mean.squeeze(axis), at_label, by_off, dentropy.squeeze(axis))
    )
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


def times(factor: Tensor, value: Tensor) -> Tensor:
    """Return factor * value, and 0 where the factor is 0, even if the value is infinite or NaN."""
    return torch.where(factor == 0, torch.zeros_like(value), factor * value)


def _live(label: Tensor) -> Tensor:
    return label != IGNORED


def _compute(z: Tensor) -> Tensor:
    return z.to(compute.compute_dtype(z))


def _lead(z: Tensor, axis: int) -> list[int]:
    return compute.shape_of_rows(z, axis)[0]


def _columns(number: Tensor, label: Tensor, axis: int) -> Tensor:
    """Return numbers of the rows, [*lead] or 0-dim, with an axis of length 1 for the classes."""
    return number.expand(label.shape).unsqueeze(axis)


def _along(off: Tensor, z: Tensor, axis: int) -> Tensor:
    """Return off with axes of length 1 for the rows if it is [C]."""
    return off if off.shape == z.shape else off.reshape([-1 if i == axis else 1 for i in range(z.ndim)])


def _as(value: Tensor, number: Tensor) -> Tensor:
    """Return a gradient of the rows as one of a number of each row, or of all rows."""
    return (value if number.ndim or not value.ndim else value.sum()).to(number.dtype)


def _off_like(value: Tensor, off: Tensor, axis: int) -> Tensor:
    """Return a gradient of the shape of the logits as one of off."""
    if off.ndim == 1 and value.ndim > 1:
        value = value.sum([i for i in range(value.ndim) if i != axis])
    return value.to(off.dtype)


# ---- vmap ----


def _front(t: Tensor, dim: int | None, size: int) -> Tensor:
    return t.movedim(dim, 0) if dim is not None else t.unsqueeze(0).expand(size, *t.shape)


def _row_numbers(t: Any, dim: int | None, lead: Sequence[int]) -> Any:
    """Return numbers of the rows with the batch as the first of their axes; those that are the same for all rows stay so."""
    if t is None or (dim is None and not t.ndim):
        return t
    t = _front(t, dim, lead[0])
    return t if t.ndim > 1 or len(lead) == 1 else t.reshape(-1, *[1] * (len(lead) - 1)).expand(lead)


def _folded(size: int, in_dims: tuple[Any, ...], tensors: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments under vmap, with the batch as the first axis, which becomes one more axis of rows."""
    z, label, y, r, q, off, *upstream = arguments[:tensors]
    axis, *others = arguments[tensors:]
    dense = off is not None and (
        off.ndim - (in_dims[5] is not None) > 1 or in_dims[5] is not None or z.ndim - (in_dims[0] is not None) == 1
    )
    z, label = _front(z, in_dims[0], size), _front(label, in_dims[1], size)
    lead = _lead(z, axis + 1)
    if dense:
        off = _front(off, in_dims[5], size)
        off = off if off.ndim == z.ndim else off.reshape(size, *[-1 if i == axis else 1 for i in range(z.ndim - 1)]).expand(z.shape)
    numbers = [_row_numbers(t, in_dims[i], lead) for i, t in ((2, y), (3, r), (4, q))]
    upstream = [_row_numbers(t, in_dims[6 + i], lead) for i, t in enumerate(upstream)]
    return (z, label, *numbers, off, *upstream, axis + 1, *others)


# ---- the operators of torch.library ----


@torch.library.custom_op("softxent::rows", mutates_args=())
def rows_operator(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Tensor | None, axis: int, temperature: float, cap: float, more: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return compute.rows(z, label, y, r, q, off, axis, temperature, cap, more)


@torch.library.custom_op("softxent::gradient", mutates_args=())
def gradient_operator(
    z: Tensor, label: Tensor, y: Tensor, r: Tensor, q: Tensor, off: Tensor | None,
    g: Tensor | None, l: Tensor | None, b: Tensor | None, n: Tensor | None,  # noqa: E741
    axis: int, temperature: float, cap: float,
) -> Tensor:  # fmt: skip
    return compute.gradient(z, label, y, r, q, off, g, l, b, n, axis, temperature, cap)


@torch.library.custom_op("softxent::log_softmax", mutates_args=())
def log_softmax_operator(z: Tensor, scale: Tensor, axis: int, temperature: float, cap: float) -> Tensor:
    return compute.log_softmax(z, scale, axis, temperature, cap)


@torch.library.custom_op("softxent::class_labels", mutates_args=())
def labels_operator(fn: str, target: Tensor, classes: int, ignored: int) -> Tensor:
    return _labels(fn, target, classes, ignored).clone()


def _labels(fn: str, target: Tensor, classes: int, ignored: int) -> Tensor:
    target = cpu.in_memory(target)
    if target.is_cpu:
        check_labels(fn, target, classes, ignored)
    label = target.long()
    return torch.where(label == ignored, IGNORED, label)


@rows_operator.register_fake
def _(z: Tensor, label: Tensor, y: Any, r: Any, q: Any, off: Any, axis: int, t: float, cap: float, more: bool) -> tuple[Tensor, ...]:
    lead = _lead(z, axis)
    shapes = [lead, lead, *[lead if more else [0]] * 3]
    loss, lse, logprob, entropy, correct = (z.new_empty(shape, dtype=torch.float64) for shape in shapes)
    return loss, lse, logprob, entropy, correct != 0


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


rows_operator.register_autograd(Rows.backward, setup_context=Rows.setup_context)
gradient_operator.register_autograd(Gradient.backward, setup_context=Gradient.setup_context)
log_softmax_operator.register_autograd(LogSoftmax.backward, setup_context=LogSoftmax.setup_context)
