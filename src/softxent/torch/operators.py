"""The layer as differentiable operators: what a row gives (`rows`), its gradient, the product with its Hessian, and log_softmax.

Their arguments are a `Call`, whose label and numbers have the shape of the axes of the rows, or no axes if they are the same for all rows,
and a `Static`, whose `shards` say how the classes are divided among processes: the tensors with an axis of classes then have those of this
process, and the others, as what the rows give, are the same in all of them.

Each operator is differentiable by z, y, r, q, off and its upstream gradients, from closed formulas and to any order: the derivative of
`rows` is `gradient`, and that of `gradient` is `curvature`, which is written with the first two where it is differentiated again
(softxent/derivatives.py). None is obtained by differentiating a sequence of operations that computes the loss.

In eager mode and in torch.func they are functions of autograd, which have a `jvp` and a `vmap`. Under torch.compile and for subclasses of
Tensor they are operators of torch.library with the same arguments and derivatives.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import logsigmoid

from .. import contract, derivatives
from ..call import NUMBERS, UPSTREAM, Call, Static
from ..kernels import IGNORED, LARGEST, LARGEST_LOGIT
from . import compute, cpu, private, processes
from .compute import OUTPUTS, SHORT, TYPES, given, same_label
from .modes import applied, batched_by_autograd, by_operator, of_batches, readable, traced
from .processes import Shards, same_input, total

Optional = Tensor | None
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


# ---- the operators ----


def rows(call: Call, static: Static, outputs: int = SHORT, parts: Optional = None) -> tuple[Tensor, ...]:
    """Return loss, lse, log-probability of the label, entropy, correct (bool) and predicted (int64) of each row, the others float64.

    They are the first `outputs` of these: 2, 5 or 6. In rows with the label IGNORED, all are 0 and predicted is -1.

    `parts` are the sums of the rows, if the classes are divided and the sums are known: nothing is gathered then.
    """
    found: tuple[Tensor, ...] = _called("rows", call, static, parts, outputs)[:outputs]
    return found


def gradient(call: Call, static: Static, parts: Optional = None) -> Tensor:
    """Return the gradient of sum g loss + l lse + b logprob + n entropy by the logits."""
    found: Tensor = _called("gradient", call, static, parts)
    return found


def log_softmax(call: Call, static: Static, parts: Optional = None) -> Tensor:
    """Return y log softmax(z), in the dtype of z. It is 0 where y is 0."""
    found: Tensor = _called("log_softmax", call, static, parts)
    return found


def curvature(call: Call, static: Static) -> Five:
    """Return the derivative of `gradient` along v, and four numbers of each row, in float64 or as z is computed:

    mean = <yhat, v'>, v'_t - mean, sum_k off_k (v'_k - mean) and the derivative of the entropy along v, where v' is v times the slope
    of the transform of the logits. They are the derivatives of <gradient, v> by l, b and n; those by g, y, r and q are sums of their
    products.
    """
    found: Five = of_batches(lambda *fields: _curvature(_restored(fields), static), *_tensors(call))
    return found


def _curvature(call: Call, static: Static) -> Five:
    found: Five = composed_curvature(call, static) if by_operator(call.z) else _called("curvature", call, static, None)
    return found


def composed_curvature(call: Call, static: Static) -> Five:
    """Return `curvature`, written with the other operators, which can be differentiated again."""
    hv, apart, *of_rows = derivatives.curvature(call, static, sys.modules[__name__])
    by_off = over_classes(off_by_row(call, static, apart) * apart, static)
    live = compute.labels_of(call, static) != IGNORED
    each = (of_rows[0], at_label(apart, labels(call, static), static), by_off, of_rows[1])
    mean, of_label, by_off, dentropy = (row.where(live, 0) for row in each)
    return hv.to(call.z.dtype), mean, of_label, by_off, dentropy


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


def _called(name: str, call: Call, static: Static, parts: Optional, *outputs: int) -> Any:
    """Call the operator of torch.library or the function of autograd of this name, which have the same arguments."""
    if by_operator(call.z):
        return OPERATORS[name](*_tensors(call), parts, *_how(static), *outputs)
    return applied(FUNCTIONS[name], *_tensors(call), parts, static, *outputs)


# ---- the arguments of the functions and operators ----

FIELDS, TENSORS = len(Call._fields), len(Call._fields) + 1  # those of a call, and with the sums of the rows


def _tensors(call: Call) -> tuple[Optional, ...]:
    """Return the fields of a call: None for one that is not given, and a tensor for a number."""
    return tuple([x if isinstance(x, Tensor) else number(x, call.z.device) if x else None for x in call])


def number(x: float, device: torch.device) -> Tensor:
    """Return a number of all rows as a tensor."""
    return torch.full((), x, dtype=torch.float64, device=device)


def _restored(fields: Sequence[Any]) -> Call:
    return Call(*[0.0 if x is None else x for x in fields])


def _how(static: Static) -> tuple[Any, ...]:
    """Return the fields of a `Static` in types that an operator of torch.library takes."""
    name, ends, rank = static.shards or ("", (), 0)
    return static.temperature, static.cap, static.axis, name, list(ends), rank


def _arguments(given: Sequence[Any]) -> tuple[Call, Static, Optional, tuple[Any, ...]]:
    """Return the call, what is static, the sums of the rows, and the other arguments, of a function or an operator."""
    static, others = given[TENSORS], given[TENSORS + 1 :]
    if not isinstance(static, Static):
        temperature, cap, axis, name, ends, rank, *others = given[TENSORS:]
        static = Static(temperature, cap, axis, Shards(name, tuple(ends), rank) if name else ())
    return _restored(given[:FIELDS]), static, given[FIELDS], tuple(others)


def _saved(ctx: Any) -> tuple[Call, Static, Optional, tuple[Any, ...]]:
    return _arguments((*compute.saved(ctx), *ctx.how))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the arguments. That of an operator of torch.library has no `save_for_forward`."""
    _keep(ctx, inputs, inputs[FIELDS])


def _keep(ctx: Any, inputs: tuple[Any, ...], parts: Optional) -> None:
    tensors = (*inputs[:FIELDS], parts)
    ctx.save_for_backward(*tensors)
    ctx.how = inputs[TENSORS:]
    if hasattr(ctx, "save_for_forward"):
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)


def _needed(ctx: Any) -> set[str]:
    return {name for name, need in zip(Call._fields, ctx.needs_input_grad, strict=False) if need}


def _gradients(ctx: Any, call: Call, static: Static, found: dict[str, Any]) -> tuple[Optional, ...]:
    """Return the gradients of the arguments of a function, in their order and shapes."""
    by_field = [None if (g := found.get(name)) is None else shaped(g, x, static.axis) for name, x in call._asdict().items()]
    return *by_field, *[None] * (len(ctx.needs_input_grad) - FIELDS)


def _upstream(*grads: Optional) -> dict[str, Tensor]:
    return {name: g for name, g in zip(UPSTREAM, grads, strict=False) if g is not None}


# ---- the functions of autograd ----


class Rows(Function):
    """(a call, sums or None, what is static, how many outputs) -> what `rows` returns, and the sums of divided rows."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *_, parts = output
        _keep(ctx, inputs, None if parts is None or not parts.ndim else parts)
        if hasattr(ctx, "mark_non_differentiable"):
            ctx.mark_non_differentiable(*(t for t in output[_differentiable(inputs[-1]) :] if t is not None))

    @staticmethod
    def forward(*arguments: Any) -> Any:
        call, static, parts, (outputs,) = _arguments(arguments)
        if traced() and not static.shards:
            return *rows_operator(*arguments[:TENSORS], *_how(static), outputs)[:outputs], None
        return compute.rows(call, static, outputs, parts)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        call, static, parts, (outputs,) = _saved(ctx)
        up, needs, found = _upstream(*grads[: _differentiable(outputs)]), _needed(ctx), {}
        if "z" in needs and up:
            of = multiplied_gradient if batched_by_autograd(*up.values()) else gradient
            found["z"] = of(call._replace(**up), static, parts)
        if "g" in up:
            g = up["g"]
            found |= {name: g * by for name, by in _loss_by_numbers(needs, call, static, parts).items()}
            if "off" in needs:
                found["off"] = _loss_by_off(call._replace(r=g * call.r), static, parts)
        return _gradients(ctx, call, static, found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        call, static, parts, (outputs,) = _saved(ctx)
        moving = dict(zip(Call._fields, tangents, strict=False))
        dloss: Any = call.z.new_zeros(compute.labels_of(call, static).shape, dtype=torch.float64)
        dlse = dlogprob = dentropy = dloss
        if moving["z"] is not None:
            along = curvature(call._replace(v=moving["z"]), static)[1:]
            dlse, dlogprob, by_off, dentropy = (t.double() for t in along)
            dloss = derivatives.loss_along(call, _lse(call, static, parts), dlse, dlogprob, by_off, times)
        wanted = {name for name in ("y", "r", "q") if moving[name] is not None}
        for name, by in _loss_by_numbers(wanted, call, static, parts).items():
            dloss = dloss + times(moving[name], by)  # which may be a batch of torch.autograd.functional.jacobian
        if moving["off"] is not None:
            by_classes, each = _loss_by_off(call, static, parts), along_axis(moving["off"], call.z, static.axis)
            masked = (by_classes == math.inf) & (each == 0)  # a masked class adds 0
            dloss = dloss + over_classes(by_classes.masked_fill(masked, 0) * each, static)
        found = [dloss, dlse, dlogprob, dentropy][: _differentiable(outputs)]
        return *found, *[None] * (outputs + 1 - len(found))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        call, static, parts, (outputs,) = _folded(info, in_dims, arguments)
        *found, sums = _called("rows", call, static, parts, outputs)
        return (*found[:outputs], sums if static.shards else None), (*[0] * outputs, 1 if static.shards else None)


def _differentiable(outputs: int) -> int:
    """Return how many of so many outputs can be differentiated."""
    return min(outputs, len(UPSTREAM))


class Gradient(Function):
    """(a call, sums or None, what is static) -> the gradient of the logits."""

    setup_context: Any = _save

    @staticmethod
    def forward(*arguments: Any) -> Any:
        call, static, parts, _ = _arguments(arguments)
        if traced() and not static.shards:
            return gradient_operator(*arguments[:TENSORS], *_how(static))
        return compute.gradient(call, static, parts)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), (call, static, parts, _) = grads, _saved(ctx)
        if v is None:
            return (None,) * len(ctx.needs_input_grad)
        along = curvature(call._replace(v=v), static)
        return _gradients(ctx, call, static, _derivatives_of_gradient(call._replace(v=v), along, _needed(ctx), static, parts))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        call, static, parts, _ = _saved(ctx)
        moving = {name: t for name, t in zip(Call._fields, tangents, strict=False) if t is not None}
        of_loss, terms = call._replace(l=0.0, b=0.0, n=0.0), []
        if moving.keys() & {*UPSTREAM}:
            terms.append((call._replace(**{name: moving.get(name, 0.0) for name in UPSTREAM}), parts))
        if given(call.g) and moving.keys() & {"y", "r", "q"}:
            terms.append((of_loss._replace(**{name: moving.get(name, 0.0) for name in ("y", "r", "q")}), parts))
        if given(call.g) and "off" in moving:
            terms.append((of_loss._replace(y=0.0, q=0.0, off=moving["off"]), None))
        found = curvature(call._replace(v=moving["z"]), static)[0] if "z" in moving else torch.zeros_like(call.z)
        for changed, sums in terms:
            found = found + of_batches(lambda *fields, sums=sums: gradient(_restored(fields), static, sums), *_tensors(changed))
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _called("gradient", *_folded(info, in_dims, arguments)[:3]), 0


class Curvature(Function):
    """(a call, None, what is static) -> what `curvature` returns."""

    setup_context: Any = _save

    @staticmethod
    def forward(*arguments: Any) -> Any:
        call, static, *_ = _arguments(arguments)
        return (composed_curvature if traced() and not static.shards else compute.curvature)(call, static)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        call, static, *_ = _saved(ctx)
        at = [name for name in Call._fields if name in _needed(ctx)]
        found, pull_back = _composed_vjp(call, static, at)
        upstream = (torch.zeros_like(t) if g is None else g.to(t.dtype) for g, t in zip(grads, found, strict=True))
        return _gradients(ctx, call, static, dict(zip(at, pull_back(tuple(upstream)), strict=True)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Any:
        call, static, *_ = _saved(ctx)
        moving = {name: t for name, t in zip(Call._fields, tangents, strict=False) if t is not None}
        found, pull_back = _composed_vjp(call, static, list(moving))
        # The transpose of the linear map of upstream gradients to gradients: torch.func.jvp cannot be nested in forward mode.
        push_forward = torch.func.vjp(lambda *upstream: pull_back(upstream), *map(torch.ones_like, found))[1]
        hv, *numbers = push_forward(tuple(t.to(getattr(call, name).dtype) for name, t in moving.items()))
        return hv, *(t.double() for t in numbers)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return curvature(*_folded(info, in_dims, arguments)[:2]), (0,) * 5


def _composed_vjp(call: Call, static: Static, at: Sequence[str]) -> tuple[Five, Callable[[Any], tuple[Tensor, ...]]]:
    """Return what `composed_curvature` returns, and the function of upstream gradients that gives those of the fields `at`."""
    call = Call(*private.alive(call))

    def of_some(*values: Tensor) -> Five:
        return composed_curvature(call._replace(**dict(zip(at, values, strict=True))), static)

    found, pull_back, *_ = torch.func.vjp(of_some, *(getattr(call, name) for name in at))
    return found, pull_back


class LogSoftmax(Function):
    """(a call, sums or None, what is static) -> y log softmax(z)."""

    setup_context: Any = _save

    @staticmethod
    def forward(*arguments: Any) -> Any:
        call, static, parts, _ = _arguments(arguments)
        if traced() and not static.shards:
            return log_softmax_operator(*arguments[:TENSORS], *_how(static))
        return compute.log_softmax(call, static, parts)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), (call, static, parts, _) = grads, _saved(ctx)
        needs, found = _needed(ctx), {}
        if v is not None and "z" in needs:
            found["z"] = _log_softmax_vjp(call, v, static)
        if v is not None and "y" in needs:
            found["y"] = over_classes(times(v, log_softmax(call._replace(y=1.0), static, parts)), static)
        return _gradients(ctx, call, static, found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        call, static, parts, _ = _saved(ctx)
        moving, total = Call(*tangents[:FIELDS]), torch.zeros_like(call.z)
        if moving.z is not None:
            mean = curvature(Call(call.z, v=moving.z), static)[1]
            slope = _transformed(call.z, static)[1]
            total = total + times(by_row(call.y, call, static), slope * moving.z - by_row(mean, call, static))
        if moving.y is not None:
            scaled = lambda y: log_softmax(call._replace(y=y), static, parts)  # noqa: E731
            total = total + of_batches(scaled, moving.y)
        return total.to(call.z.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _called("log_softmax", *_folded(info, in_dims, arguments)[:3]), 0


# ---- derivatives ----


def _derivatives_of_gradient(call: Call, along: Sequence[Any], needs: set[str], static: Static, parts: Optional) -> dict[str, Any]:
    """Return the derivatives of <gradient, v> by the fields of a call that are needed, from what `curvature` returns."""
    hv, mean, at_label, by_off, dentropy = along
    found = {"z": hv, "l": mean, "b": at_label, "n": dentropy}
    if given(call.g):
        found |= {"y": -call.g * at_label, "r": -call.g * by_off}
    if given(call.g) and needs & {"q", "g"}:
        lse = _lse(call, static, parts)
        found |= {"q": call.g * lse * mean, "g": derivatives.loss_along(call, lse, mean, at_label, by_off, times)}
    if given(call.g) and "off" in needs:
        label = compute.labels_of(call, static)
        z, v = (without_ignored(t, label, static.axis) for t in (call.z, call.v))
        apart = by_row(mean, call, static) - _transformed(z, static)[1] * v.to(mean.dtype)
        found["off"] = times(by_row(call.g * call.r * (label != IGNORED), call, static), apart)
    return {name: value for name, value in found.items() if name in needs}


def _lse(call: Call, static: Static, parts: Optional) -> Tensor:
    bare = call._replace(v=0.0, **dict.fromkeys(NUMBERS, 0.0))
    return rows(bare if parts is not None else bare._replace(off=0.0), static, parts=parts)[1]


def multiplied_gradient(call: Call, static: Static, parts: Optional = None) -> Tensor:
    """Compute `gradient` for upstream gradients of 1 and multiply it by the given ones, in which it is linear.

    This calls no function of autograd with them, so it works for a batch of upstream gradients.
    """
    terms: list[Any] = []
    none = dict.fromkeys(UPSTREAM, 0.0)
    for name in UPSTREAM:
        up = getattr(call, name)
        if given(up):
            dz = gradient(call._replace(**{**none, name: 1.0}), static, parts)
            terms.append(dz * _columns(up, call, static).to(call.z.dtype))
    found: Tensor = sum(terms[1:], terms[0])
    return found


def _loss_by_numbers(needs: set[str], call: Call, static: Static, parts: Optional) -> dict[str, Tensor]:
    """Return the derivatives of the loss by those of y, r and q that are needed, in which it is linear."""
    bare, found = call._replace(**dict.fromkeys(NUMBERS, 0.0)), {}
    if needs & {"y", "q"}:
        found["y"], lse, *_ = rows(bare._replace(y=1.0), static, parts=parts)
        found["q"] = lse**2 / 2
    if "r" in needs:
        found["r"] = rows(bare._replace(r=1.0), static, parts=parts)[0]
    return {name: by for name, by in found.items() if name in needs}


def _loss_by_off(call: Call, static: Static, parts: Optional) -> Any:
    """Return - r log yhat, the derivative of the loss by off, with the shape of z. r may be a batch of is_grads_batched."""
    label = compute.labels_of(call, static)
    live = label != IGNORED
    wide = without_ignored(call.z, label, static.axis).to(torch.promote_types(compute.compute_dtype(call.z), call.off.dtype))
    parts = None if parts is None else torch.where(live, parts, 1.0)  # any that are finite
    if batched_by_autograd(call.r):
        return _columns(call.r, call, static) * -log_softmax(Call(wide, y=live.double()), static, parts)
    return -log_softmax(Call(wide, y=torch.where(live, call.r, 0.0)), static, parts)


def _log_softmax_vjp(call: Call, v: Tensor, static: Static) -> Any:
    """Return y v - yhat sum_k y v_k, times the slope of the transform: less the gradient of the truth y v.

    The most probable class is the label, of weight 0, so that its entry keeps its digits.
    """
    top = Call(call.z, largest(call.z, static) if static.shards else same_label(call.z, static.axis, LARGEST_LOGIT))
    if batched_by_autograd(v):
        by = -(_columns(call.y, call, static) * v).to(compute.compute_dtype(call.z))
        yhat = gradient(top._replace(l=1.0), static)
        return yhat * _columns(over_classes(by, static), call, static) - _transformed(call.z, static)[1] * by
    return gradient(top._replace(off=v, r=call.y, g=-1.0), static)


# ---- what softxent/derivatives.py needs ----

where = torch.where


def times(factor: Any, value: Tensor) -> Any:
    """Return factor * value, and 0 where the factor is 0, even if the value is infinite or NaN.

    The derivative by the factor is the value, also where the factor is 0; the derivatives are 0 where such a value is infinite or NaN.
    """
    return factor * torch.where((factor == 0) & ~value.isfinite(), torch.zeros_like(value), value)


def cast(a: Tensor, like: Tensor) -> Tensor:
    return a.to(like.dtype)


def numbers(call: Call) -> tuple[Any, ...]:
    return call[-len(NUMBERS) :]


def by_row(number: Any, call: Call, static: Static) -> Any:
    """Return numbers of the rows, [*lead] or 0-dim, with an axis of length 1 for the classes."""
    if not isinstance(number, Tensor):
        return number
    return _columns(same_input(number, static.shards) if static.shards else number, call, static)


def _columns(number: Any, call: Call, static: Static) -> Any:
    """Return `by_row`, without the derivative by numbers that multiply the classes of several processes."""
    lead = compute.shape_of_rows(call.z, static.axis)[0]
    return number.expand(lead).unsqueeze(static.axis) if isinstance(number, Tensor) else number


def over_classes(a: Tensor, static: Static) -> Tensor:
    """Return the sum over all classes, in at least the precision of a."""
    found = a.sum(static.axis)
    return total(found.double(), static.shards) if static.shards else found


def largest(z: Tensor, static: Static) -> Tensor:
    """Return the class with the largest logit of each row."""
    z = z.detach()
    return processes.most_probable(z, static.shards, static.axis) if static.shards else z.argmax(static.axis)


def at_largest(a: Tensor, z: Tensor, static: Static) -> Tensor:
    """Return the entry of a in the column of the largest logit of each row."""
    return at_label(a, largest(z, static), static)


def labels(call: Call, static: Static) -> Tensor:
    """Return the labels, with classes in place of LARGEST and LARGEST_LOGIT. Divided rows have neither."""
    label = compute.labels_of(call, static)
    if static.shards:
        return label
    by_logit = largest(call.z, static)
    by_off = call.off.detach().argmax(static.axis) if given(call.off) and call.off.shape == call.z.shape else by_logit
    return torch.where(label == LARGEST, by_off, torch.where(label == LARGEST_LOGIT, by_logit, label))


def at_label(a: Tensor, label: Tensor, static: Static) -> Tensor:
    """Return the entry of a at the label of each row, and 0 without one."""
    first = static.shards.mine.first if static.shards else 0
    column = along_axis(torch.arange(first, first + a.shape[static.axis], device=a.device), a, static.axis)
    return over_classes(torch.where(column == label.unsqueeze(static.axis), a, 0), static)


def off_by_row(call: Call, static: Static, like: Tensor) -> Tensor:
    """Return off in the shape of the logits and the dtype of `like`, 0 if there is none."""
    off = along_axis(call.off, call.z, static.axis) if given(call.off) else call.z.new_zeros(())
    return off.to(like.dtype).expand(call.z.shape)


def blank(call: Call, static: Static) -> Tensor:
    """Return which rows give 0: those that are ignored, and those that have neither weights nor finite logits."""
    unused: Any = sum(number != 0 for number in call[-len(NUMBERS) :] if given(number)) == 0
    z = call.z.detach()
    count = over_classes(torch.where(z.isfinite(), 1.0, torch.where(z == -math.inf, 0.0, math.inf)), static)
    ignored = compute.labels_of(call, static) == IGNORED
    found: Tensor = (ignored | (unused & ((count == 0) | (count == math.inf)))).unsqueeze(static.axis)
    return found


def transformed(z: Tensor, static: Static) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Return `_transformed` of logits in the type in which they are computed, float64 if they have a transform."""
    wide = compute.compute_dtype(z) if static.cap == math.inf and static.temperature == 1 else torch.float64
    return _transformed(z.to(wide), static)


def _transformed(z: Tensor, static: Static) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Return x = cap tanh(z / cap), or z if cap is inf, and the first two derivatives of x / T. None cancels where |z / cap| is large."""
    temperature, cap = static.temperature, static.cap
    if cap == math.inf:
        return z, 1 / temperature, 0.0
    u = z.double() / cap
    t = (-2 * u.abs()).exp()
    tanh = u.tanh().where(u.abs() < 1, u.sign() * ((1 - t) / (1 + t)))  # the derivative of torch's tanh is 1 - tanh^2, which cancels
    slope = 4 / temperature * (logsigmoid(2 * u) + logsigmoid(-2 * u)).exp()  # 1 / cosh^2
    return tanh * cap, slope, (-2 / cap) * tanh * slope


# ---- shapes ----


def without_ignored(t: Tensor, label: Tensor, axis: int) -> Tensor:
    """Return t, of the shape of the logits, with 0 in ignored rows. A NaN there would reach the derivatives by weights that rows share."""
    return torch.where((label == IGNORED).unsqueeze(axis), 0, t)


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


def _row_numbers(t: Tensor, dim: int | None, lead: Sequence[int]) -> Tensor:
    """Return numbers of the rows with the batch as the first of their axes; those that are the same for all rows stay so."""
    if dim is None and not t.ndim:
        return t
    t = _front(t, dim, lead[0])
    return t.reshape(*t.shape, *[1] * (len(lead) - t.ndim)).expand(lead)


def _folded(info: Any, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Call, Static, Optional, tuple[Any, ...]]:
    """Return the arguments under vmap, with the batch as the first axis, which becomes one more axis of rows."""
    call, static, parts, outputs = _arguments(arguments)
    size, dims, axis = info.batch_size, dict(zip(Call._fields, in_dims, strict=False)), static.axis
    z = _front(call.z, dims["z"], size)
    lead = compute.shape_of_rows(z, axis + 1)[0]
    moved: dict[str, Any] = {name: _row_numbers(x, dims[name], lead) for name in NUMBERS if given(x := getattr(call, name))}
    moved |= {name: _front(x, dims[name], size) for name in ("z", "v", "label") if given(x := getattr(call, name))}
    if given(call.off):
        off = call.off
        if dims["off"] is not None or off.ndim > 1 or z.ndim == 2:  # and not one [C] that all rows share
            off = _front(off, dims["off"], size)
            off = off if off.ndim == z.ndim else off.reshape(size, *[-1 if i == axis else 1 for i in range(z.ndim - 1)]).expand(z.shape)
        moved["off"] = off
    if parts is not None:
        parts = _front(parts, in_dims[FIELDS], size).movedim(0, 1)
    return call._replace(**moved), static._replace(axis=axis + 1), parts, outputs


# ---- the operators of torch.library ----

CALL = ", ".join(f"Tensor{'' if name == 'z' else '?'} {name}" for name in Call._fields)
STATIC = "float temperature, float cap, int axis, str group, int[] ends, int rank"
LAST = TENSORS + len(STATIC.split(","))  # the place of what follows


def _operator(name: str, function: Any, computes: Any, further: str, results: str) -> Any:
    """Return the operator of torch.library with the derivatives of a function of autograd."""

    def compute_it(*arguments: Any) -> Any:
        call, static, parts, outputs = _arguments(arguments)
        return computes(call, static, *outputs, parts=parts)

    schema = f"({CALL}, Tensor? parts, {STATIC}{further}) -> {results}"
    operator = torch.library.custom_op(f"softxent::{name}", compute_it, mutates_args=(), schema=schema)
    operator.register_autograd(function.backward, setup_context=function.setup_context)
    return operator


def _all_rows(call: Call, static: Static, outputs: int, parts: Optional) -> tuple[Tensor, ...]:
    """Return what `Rows` returns with empty tensors for what is not computed, because an operator returns as many as its schema says."""
    *found, sums = compute.rows(call, static, outputs, parts)
    empty = [call.z.new_empty(0, dtype=TYPES.get(name, torch.float64)) for name in OUTPUTS[outputs:]]
    return *found, *empty, call.z.new_empty((), dtype=torch.float64) if sums is None else sums


rows_operator: Any = _operator("rows", Rows, _all_rows, ", int outputs", f"({', '.join(['Tensor'] * (len(OUTPUTS) + 1))})")
gradient_operator: Any = _operator("gradient", Gradient, compute.gradient, "", "Tensor")
log_softmax_operator: Any = _operator("log_softmax", LogSoftmax, compute.log_softmax, "", "Tensor")
FUNCTIONS: dict[str, Any] = {"rows": Rows, "gradient": Gradient, "log_softmax": LogSoftmax, "curvature": Curvature}
OPERATORS: dict[str, Any] = {"rows": rows_operator, "gradient": gradient_operator, "log_softmax": log_softmax_operator}
labels_operator = torch.library.custom_op("softxent::class_labels", _labels, mutates_args=())


def _fake_rows(*arguments: Any) -> tuple[Tensor, ...]:
    call, static, _, (outputs,) = _arguments(arguments)
    lead = compute.shape_of_rows(call.z, static.axis)[0]
    shapes = [*(lead if k < outputs else [0] for k in range(len(OUTPUTS))), [7, *lead] if static.shards else []]
    *found, correct, predicted, parts = (call.z.new_empty(shape, dtype=torch.float64) for shape in shapes)
    return *found, correct != 0, predicted.long(), parts


rows_operator.register_fake(_fake_rows)
for _each in (gradient_operator, log_softmax_operator):
    _each.register_fake(lambda z, *_: torch.empty_like(z))


@labels_operator.register_fake
def _(fn: str, target: Tensor, classes: int, ignored: int) -> Tensor:
    return torch.empty_like(target, dtype=torch.int64)


@labels_operator.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], fn: str, target: Tensor, classes: int, ignored: int) -> tuple[Tensor, int]:
    return labels_operator(fn, target, classes, ignored), in_dims[1]
