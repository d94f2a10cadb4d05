"""The derivatives of the loss and lse of each row, from closed formulas and of any order.

`Rows` computes the loss and lse of every row. Its derivative is `Gradient`, prediction - truth, and the derivative of that is a product
with the Hessian, which is written with softmax and `Gradient` again. So a derivative of any order is available, and none is obtained by
differentiating a sequence of operations that computes the loss. For torch.func and forward mode, each class has a `jvp` and a `vmap`.

The operators of ops.py use the same functions; their `gradient` argument is then the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import truth
from . import cpu, tensors

Grads = tuple[Tensor | None, ...]


def devices(input: Tensor) -> Any:
    """Return the module that computes for these tensors: cpu.py, tensors.py, or ops.py while a tracer records operators."""
    if torch._C._len_torch_dispatch_stack():
        from . import ops

        return ops
    return cpu if input.is_cpu and tensors.forced() is None else tensors


class Rows(torch.autograd.Function):
    """(input, target, weight, axis, ignore_index, smoothing, z_loss) -> loss, lse, correct of every row."""

    @staticmethod
    def forward(*p: Any) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = devices(p[0]).rows(*p)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        keep(ctx, (*inputs[:3], output[1]), inputs[3:])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return rows_backward(ctx, grads, linear if batched_by_autograd(*grads) else gradient_of)

    @staticmethod
    def jvp(ctx: Any, dinput: Tensor | None, dtarget: Tensor | None, *_: Any) -> Any:
        input, target, weight, lse = ctx.saved_tensors
        axis = ctx.options[0]
        p, one = (input, target, weight, *ctx.options), torch.ones_like(lse)
        dloss, dlse = torch.zeros_like(lse), torch.zeros_like(lse)
        if dinput is not None:
            dloss = (gradient_of(*p, one, None) * dinput).sum(axis).to(lse.dtype)
            dlse = (gradient_of(*p, None, one) * dinput).sum(axis).to(lse.dtype)
        if dtarget is not None:
            by = by_target(input, lse, axis)
            dloss = dloss + (by.masked_fill((by == torch.inf) & (dtarget == 0), 0) * dtarget).sum(axis)  # a masked class adds 0, not NaN
        return dloss, dlse, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *p: Any) -> Any:
        return rows_of(*batched(info.batch_size, in_dims, p)), (0, 0, 0)


class Gradient(torch.autograd.Function):
    """(..., g, g_lse) -> g (mass yhat - truth) + g_lse yhat, for upstream gradients g and g_lse of the rows' losses and lse."""

    @staticmethod
    def forward(*p: Any) -> Tensor:
        dz: Tensor = devices(p[0]).gradient(*p)
        return dz

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(ctx, (*inputs[:3], *inputs[7:]), inputs[3:7])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return gradient_backward(ctx, grads, gradient_of)

    @staticmethod
    def jvp(ctx: Any, dinput: Tensor | None, dtarget: Tensor | None, *rest: Any) -> Any:
        input, target, weight, g, g_lse = ctx.saved_tensors
        axis = ctx.options[0]
        dg, dg_lse = rest[-2:]
        total = torch.zeros_like(input)
        if dinput is not None:
            total = total + hessian(input, target, weight, ctx.options, g, g_lse, dinput)[0]
        if dg is not None or dg_lse is not None:
            total = total + gradient_of(input, target, weight, *ctx.options, dg, dg_lse)
        if dtarget is not None and g is not None:
            up = g.unsqueeze(axis)
            total = total + up * (dtarget.sum(axis, keepdim=True) * torch.softmax(in_compute_dtype(input), axis) - dtarget)
        return total.to(input.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *p: Any) -> Any:
        return gradient_of(*batched(info.batch_size, in_dims, p)), 0


rows_of: Callable[..., tuple[Tensor, Tensor, Tensor]] = Rows.apply
gradient_of: Callable[..., Tensor] = Gradient.apply


def batched_by_autograd(*grads: Tensor | None) -> bool:
    """Whether these are upstream gradients of is_grads_batched, which cannot call a function of autograd."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return any(g is not None and legacy(g) for g in grads)


def first_backward(ctx: Any) -> bool:
    """Whether this is the first backward pass, and the only one that may return the gradient of the forward pass.

    `ctx.unused` is a list with one entry until then. Of several threads, only one succeeds in removing it.
    """
    try:
        ctx.unused.pop()
    except IndexError:
        return False
    return True


def linear(*p: Any) -> Tensor:
    """Compute `Gradient` for upstream gradients of 1 and multiply it by the given ones, in which it is linear.

    This uses no function of autograd on them, so it works for a batch of upstream gradients.
    """
    *problem, g, g_lse = p
    input, axis = p[0], p[3]
    one = torch.ones([n for i, n in enumerate(input.shape) if i != axis], dtype=torch.float64, device=input.device)
    parts = [(g, (one, None)), (g_lse, (None, one))]
    found = [gradient_of(*problem, *up) * by.to(input.dtype).unsqueeze(axis) for by, up in parts if by is not None]
    total: Tensor = found[0] if len(found) == 1 else found[0] + found[1]
    return total


def keep(ctx: Any, tensors: tuple[Any, ...], options: tuple[Any, ...]) -> None:
    """Save what the derivatives need, of a function of autograd or of an operator."""
    ctx.save_for_backward(*tensors)
    if hasattr(ctx, "save_for_forward"):
        ctx.save_for_forward(*tensors)
    ctx.options = options
    if hasattr(ctx, "set_materialize_grads"):
        ctx.set_materialize_grads(False)


def rows_backward(ctx: Any, grads: Grads, gradient: Callable[..., Any]) -> Grads:
    """Return the gradients of the arguments of `Rows`; `gradient` computes that of the logits."""
    g, g_lse = grads[:2]
    input, target, weight, lse = ctx.saved_tensors
    dz = du = None
    if ctx.needs_input_grad[0] and not (g is None and g_lse is None):
        dz = gradient(input, target, weight, *ctx.options, g, g_lse)
    if ctx.needs_input_grad[1] and g is not None:
        axis = ctx.options[0]
        du = (by_target(input, lse, axis) * g.unsqueeze(axis)).to(target.dtype)
    return dz, du, None, None, None, None, None


def by_target(input: Tensor, lse: Tensor, axis: int) -> Tensor:
    """Return d loss / d target_k = lse - z_k, for probabilities without label smoothing and class weights."""
    return lse.unsqueeze(axis) - input


def gradient_backward(ctx: Any, grads: Grads, gradient: Callable[..., Any]) -> Grads:
    """Return the gradients of the arguments of `Gradient`, whose upstream gradient is v."""
    (v,) = grads
    input, target, weight, g, g_lse = ctx.saved_tensors
    axis = ctx.options[0]
    none = (None,) * 7
    if v is None:
        return (*none, None, None)
    dz, mean = hessian(input, target, weight, ctx.options, g, g_lse, v)
    du = dg = dg_lse = None
    if g is not None and ctx.needs_input_grad[1]:
        du = (g.unsqueeze(axis) * (mean.unsqueeze(axis) - v)).to(target.dtype)
    if g is not None and ctx.needs_input_grad[7]:
        dg = (v * gradient(input, target, weight, *ctx.options, torch.ones_like(g), None)).sum(axis).to(g.dtype)
    if g_lse is not None and ctx.needs_input_grad[8]:
        dg_lse = mean.to(g_lse.dtype)
    return (dz.to(input.dtype), du, *none[2:], dg, dg_lse)


def hessian(
    input: Tensor, target: Tensor, weight: Tensor | None, options: Any, g: Tensor | None, g_lse: Tensor | None, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Return H v = a yhat o (v - mean) + b yhat and mean = <yhat, v>, where H is the Hessian of sum g loss + g_lse lse."""
    axis, ignore_index, smoothing, z_loss = options
    z, v = in_compute_dtype(input), in_compute_dtype(v)
    yhat = torch.softmax(z, axis)
    top = v.gather(axis, z.detach().argmax(axis, keepdim=True))
    lead = (yhat * (top - v)).sum(axis, keepdim=True)  # v - mean at the most probable class, where the subtraction may cancel
    mean = top - lead
    product = yhat * ((v - top) + lead)
    total = torch.zeros_like(z)
    if g is not None:
        up = g.to(z.dtype).unsqueeze(axis)
        probable = target.is_floating_point()
        last = target.movedim(axis, -1) if probable else target
        live, mass = truth.mass(last, probable, weight, smoothing, ignore_index, z.shape[axis])
        slope: Any = mass.to(z.dtype).unsqueeze(axis)
        if z_loss:
            slope = slope + 2 * z_loss * torch.logsumexp(z, axis, keepdim=True)
        total = up * (slope * product + 2 * z_loss * mean * yhat)
        if live is not None:
            total = torch.where(live.unsqueeze(axis), total, torch.zeros_like(total))
    if g_lse is not None:
        total = total + g_lse.to(z.dtype).unsqueeze(axis) * product
    return total, mean.squeeze(axis)


def in_compute_dtype(t: Tensor) -> Tensor:
    """Return the tensor in the type in which the kernels compute: float64 for float64, float32 for the others."""
    return t if t.dtype == torch.float64 else t.float()


def batched(size: int, in_dims: tuple[Any, ...], p: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments under vmap, with the batch as the first axis, which becomes one more axis of rows."""

    def front(t: Any, dim: int | None) -> Any:
        if not isinstance(t, Tensor):
            return t
        return t.movedim(dim, 0) if dim is not None else t.unsqueeze(0).expand(size, *t.shape)

    input, target, weight, axis, ignore_index, smoothing, z_loss, *up = p
    input, target = front(input, in_dims[0]), front(target, in_dims[1])
    up = [front(g, dim) for g, dim in zip(up, in_dims[7:], strict=True)]
    axis = axis + 1
    if weight is not None and in_dims[2] is not None:  # class weights differ between rows, so the truth becomes an array
        classes = input.shape[axis]
        each = front(weight, in_dims[2]).reshape(size, *[1] * (input.ndim - 2), classes)
        if target.is_floating_point():
            target = truth.soft(target.movedim(axis, -1), each, smoothing, classes)
        else:
            target = truth.written_out(target, torch.arange(classes, device=target.device), each, smoothing, ignore_index)
        target, weight, smoothing = target.to(in_compute_dtype(input).dtype).movedim(-1, axis), None, 0.0
    return (input, target, weight, axis, ignore_index, smoothing, z_loss, *up)
