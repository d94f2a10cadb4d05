"""The operators for logits whose classes are divided among the processes of a group. arguments.py and distributed.py describe the shards.

Each process has some columns of all rows. `rows` sums over them with the kernel, gathers the sums of all processes, [7, R] float64, and
merges them in the same order everywhere, so that all processes get the same bits. The gradient of a process's columns needs the merged sums
and no communication. Second derivatives and forward mode gather the sums again with their derivatives along v, [12, R]. Third derivatives
are refused.

Labels are those of the whole row; the upstream gradients, y, r and q must be the same in all processes, and their gradients are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import contract, formula, partials
from ..kernels import IGNORED
from ..partials import Partials
from ..shards import Columns, merge_order, nodes
from ..shared import SHORT_ROW
from . import compute, cpu, operators
from .operators import no_labels, times, transformed, without_ignored

Optional = Tensor | None
equations: Any = formula  # whose functions take tensors too (arrays.py)
sums: Any = partials
NO_COLUMNS = [float(x[0]) for x in partials.identity(1)[:-1]]
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13


class Shards(NamedTuple):
    """The classes of each process of a group, in the order of its ranks."""

    group: Any  # a ProcessGroup
    columns: tuple[Columns, ...]

    @property
    def classes(self) -> int:
        """The number of classes of a whole row."""
        return self.columns[-1].end

    @property
    def mine(self) -> Columns:
        """The classes of this process."""
        return self.columns[dist.get_rank(self.group)]


def gathered(mine: Tensor, group: Any) -> Tensor:
    """Return the tensors of all processes of a group, stacked in the order of ranks. All have the same shape."""
    found = mine.new_empty((dist.get_world_size(group), *mine.shape))
    try:
        _all_gather(found.view(-1), mine.contiguous().view(-1), group=group)
    except RuntimeError as error:
        expected = "take part in the call, with as many rows, within the time-out of the group"
        contract.fail("softxent.torch", "the other processes", expected, error, RuntimeError)
    return found


# ---- what the operators compute ----


def local_labels(label: Tensor, mine: Columns) -> Tensor:
    """Return labels as columns of this process; those of others match no column."""
    return torch.where(label == IGNORED, IGNORED, label - mine.first)


@functools.lru_cache
def _merges(columns: tuple[Columns, ...]) -> tuple[int, Tensor]:
    """Return the most nodes that a process has, and the pairs of gathered sums [P, 2] in the order in which they are merged."""
    each = nodes(columns)
    most = max(1, *map(len, each))
    at = [rank * most + k for rank, ranges in enumerate(each) for k in range(len(ranges))]
    pairs = [(at[i], at[j]) for i, j in merge_order([node for ranges in each for node in ranges])]
    if at[0]:
        pairs.append((0, at[0]))  # the first process has no column
    return most, torch.tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2)


def merged(
    own: Sequence[Tensor], shards: Shards, label: Tensor, given: Tensor, temperature: float, more: bool, fields: int = 7
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather and merge the sums of the nodes of this process, [fields, R]: 7, or 12 with their derivatives along v.

    Returns what the rows give, [2, R] or [5, R], their sums [7, R], and the derivatives of these, [5, R] or [0, R].
    """
    most, pairs = _merges(shards.columns)
    nothing = label.new_tensor([*NO_COLUMNS, *[0.0] * 5][:fields], dtype=torch.float64)[:, None].expand(fields, len(label))
    every = gathered(torch.stack([*own, *[nothing] * (most - len(own))]), shards.group).flatten(0, 1)
    result, parts = compute.new((5 if more else 2, len(label)), given), compute.new((7, len(label)), given)
    tangents = every[:, 7:]
    compute.call("merge", every[:, :7], pairs, label, given, temperature, result, parts, tangents if fields > 7 else None)
    return result, parts, tangents[0]


def sums_of(
    z: Tensor, label: Tensor, off: Optional, shards: Shards, axis: int, transform: tuple[float, float], more: bool, v: Optional = None
) -> list[Tensor]:
    """Return the sums over each node of this process, [7, R], or [12, R] with their derivatives along v; label [R] is of whole rows."""
    rows, found = len(label), []
    zero = z.new_zeros((), dtype=torch.float64)
    given, mine = compute.numbers(rows, zero, zero, zero, None), shards.mine
    for node in nodes(shards.columns)[dist.get_rank(shards.group)]:
        parts, result = compute.new((7 if v is None else 12, rows), z), compute.new((5 if more else 2, rows), z)
        begin, length = node.first - mine.first, node.end - node.first
        offs = off if off is None else off.narrow(axis if off.shape == z.shape else 0, begin, length)
        along = v if v is None else v.narrow(axis, begin, length)
        for i, zi, offi, *vi in compute.row_chunks(axis, z.narrow(axis, begin, length), offs, along):
            t = local_labels(label[i], node)
            if v is not None:
                compute.call("tangent_sums", zi, *vi, t, offi, transform, parts[:7, i], parts[7:, i])
                continue
            if length <= SHORT_ROW < shards.classes:  # so that the kernel sums in the order in which it sums the end of a long row
                zi = F.pad(zi, (0, SHORT_ROW + 1 - length), value=-math.inf)
                offi = None if offi is None else F.pad(offi, (0, SHORT_ROW + 1 - length))
            compute.call("forward", zi, t, compute.cut(given, i), offi, transform, result[:, i], parts[:, i])
        found.append(parts)
    return found


class _Rows(NamedTuple):
    """The arguments of `rows`."""

    z: Tensor
    label: Tensor  # [*lead]
    y: Tensor  # [*lead] or 0-dim
    r: Tensor
    q: Tensor
    off: Optional  # with the shape of z, or [columns of this process]


def _gradient(of: _Rows, up: Sequence[Optional], parts: Tensor, shards: Shards, axis: int, *transform: float) -> Tensor:
    """Return the gradient of this process's logits, from the merged sums."""
    z, label, y, r, q, off = of
    rows = label.numel()
    dz = cpu.like(z)
    t, given = local_labels(label.reshape(rows), shards.mine), compute.numbers(rows, y, r, q, *up)
    if z.numel():
        for i, zi, offi, out in compute.row_chunks(axis, z, off, out=dz):
            compute.call("backward", zi, t[i], compute.cut(given, i), offi, tuple(transform), parts[:, i], out)
    return dz


class _Curvature(NamedTuple):
    hv: Optional  # the derivative of the gradient of this process's logits; None without upstream gradients
    mean: Tensor  # [*lead], and the next three: as operators.curvature returns them
    at_label: Tensor
    by_off: Tensor
    dentropy: Tensor


def _curvature(of: _Rows, v: Tensor, up: Sequence[Optional], shards: Shards, axis: int, temperature: float, cap: float) -> _Curvature:
    """Return the derivative of `_gradient` along v, and that of what the rows give. It takes one more gather, [12, R]."""
    z, label, y, r, q, off = of
    rows = label.numel()
    t, given = label.reshape(rows), compute.numbers(rows, y, r, q, *up)
    own = sums_of(z.detach(), t, off, shards, axis, (temperature, cap), False, v)
    _, parts, tangents = merged(own, shards, t, given[:4], temperature, False, 12)
    found = sums.along(_sums(parts, temperature), partials.Tangents(*tangents))
    ignored = t == IGNORED
    mean, at_label, by_off, dentropy = (
        n.masked_fill(ignored, 0).reshape(label.shape) for n in (found.lse, found.logprob, found.off, found.entropy)
    )
    if all(g is None for g in up):
        return _Curvature(None, mean, at_label, by_off, dentropy)
    hv, mine, products = cpu.like(z), local_labels(t, shards.mine), compute.new((4, rows), z)
    if z.numel():
        for i, zi, offi, vi, out in compute.row_chunks(axis, z, off, v, out=hv):
            of_rows = (mine[i], compute.cut(given, i), offi, (temperature, cap), False, parts[:, i], tangents[:, i])
            compute.call("hessian", zi, vi, *of_rows, out, products[:, i])
    return _Curvature(hv, mean, at_label, by_off, dentropy)


def _sums(parts: Tensor, temperature: float) -> Any:
    return Partials(*parts)._replace(temperature=temperature)


def _lse(parts: Tensor, label: Tensor, temperature: float) -> Tensor:
    found: Tensor = sums.lse(_sums(parts, temperature)).reshape(label.shape).where(label != IGNORED, 0)
    return found


def _log_softmax(z: Tensor, parts: Tensor, axis: int, *transform: float) -> Tensor:
    """Return log softmax of this process's columns from the merged sums, in the shape and dtype of z. Computed in float64."""
    found = cpu.like(z)
    if z.numel():
        for i, zi, _, out in compute.row_chunks(axis, z, None, out=found, matrices=True):
            step = max(1, compute.SCRATCH // (8 * zi.shape[1]))  # rows, so that the float64 logits are few
            for k in range(0, len(zi), step):
                scores = equations.transformed(zi[k : k + step].double(), *transform)[0]
                out[k : k + step] = -equations.surprisal(scores, _sums(parts[:, i][:, k : k + step], transform[0]))
    return found


# ---- the functions of autograd ----


class ShardedRows(Function):
    """(z, label, y, r, q, off, shards, axis, temperature, cap, more) -> loss, lse, log-probability, entropy, correct."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        z, label, y, r, q, off, shards, axis, *transform, more = arguments
        lead, rows = compute.shape_of_rows(z, axis)
        t, given = label.reshape(rows), compute.numbers(rows, y, r, q, None)
        own = sums_of(z.detach(), t, None if off is None else off.detach(), shards, axis, tuple(transform), more)
        result, parts, _ = merged(own, shards, t, given, transform[0], more)
        ctx.save_for_backward(z, label, y, r, q, off, parts)
        ctx.save_for_forward(z, label, y, r, q, off, parts)
        ctx.options = (shards, axis, *transform)
        ctx.set_materialize_grads(False)
        loss, lse, *others = (row.clone().reshape(lead) for row in result)
        logprob, entropy, correct = others if more else (compute.new((0,), z) for _ in range(3))
        correct = correct != 0
        ctx.mark_non_differentiable(correct, *(() if more else (logprob, entropy)))
        ctx.more = more
        return loss, lse, logprob, entropy, correct

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        *of, parts = compute.saved(ctx)
        axis = ctx.options[1]
        label = of[1]
        up = list(one_at_a_time(*grads[:4])) if ctx.more else [*one_at_a_time(*grads[:2]), None, None]
        needs, g = ctx.needs_input_grad, up[0]
        found: list[Optional] = [None] * 11
        if needs[0] and any(t is not None for t in up):
            found[0] = sharded_gradient(*of, *up, parts, *ctx.options)
        if g is not None and any(needs[2:5]):
            again = torch.is_grad_enabled() or forward_ad._current_level >= 0
            every = _by_numbers(_Rows(*of), needs[2:5], parts, again, *ctx.options)
            for k, by in zip((2, 3, 4), every, strict=True):
                found[k] = None if by is None else operators.shaped(g * by, of[k], axis)
        if g is not None and needs[5]:
            by = same_input((g * of[3]).expand(label.shape), ctx.options[0].group).unsqueeze(axis)
            each = _log_probabilities(_Rows(*of), parts, *ctx.options)
            found[5] = operators.shaped(-times(by, each), of[5], axis)
        return tuple(found)

    @staticmethod
    def jvp(ctx: Any, dz: Optional, _: None, dy: Optional, dr: Optional, dq: Optional, doff: Optional, *__: Any) -> Any:
        *of, parts = compute.saved(ctx)
        shards, axis = ctx.options[:2]
        z, label, y, r, q, _ = of
        zero: Any = z.new_zeros(label.shape, dtype=torch.float64)
        dloss = dlse = dlogprob = dentropy = zero
        again = _recorded(*of, dz, dy, dr, dq, doff)
        if dz is not None and again:
            dloss, dlse, *others = _tangents(_Rows(*of), dz, parts, 4 if ctx.more else 2, *ctx.options)
            dlogprob, dentropy = others if ctx.more else (zero, zero)
        elif dz is not None:
            dlse, dlogprob, by_off, dentropy = _curvature(_Rows(*of), dz, [None] * 4, *ctx.options)[1:]
            dloss = operators.loss_along(y, r, q, _lse(parts, label, ctx.options[2]), dlse, dlogprob, by_off)
        wanted = [d is not None for d in (dy, dr, dq)]
        for d, by in zip((dy, dr, dq), _by_numbers(_Rows(*of), wanted, parts, again, *ctx.options), strict=True):
            dloss = dloss if d is None else dloss + d * by
        if doff is not None:
            by, each = operators.along_axis(doff, z, axis), _log_probabilities(_Rows(*of), parts, *ctx.options)
            dloss = dloss - r * total_over_processes(times(by, each).double().sum(axis), shards.group)
        return (dloss, dlse, dlogprob, dentropy, None) if ctx.more else (dloss, dlse, None, None, None)


def _recorded(*tensors: Optional) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _tangents(of: _Rows, dz: Tensor, parts: Tensor, outputs: int, shards: Shards, axis: int, *transform: float) -> list[Tensor]:
    """Return the derivatives of the first of loss, lse, log-probability and entropy along dz, to be differentiated again.

    They are products of the gradients and dz. `_curvature` computes them faster, and so that less cancels, but has no derivative.
    """
    of = of._replace(z=of.z.to(compute.compute_dtype(of.z)))
    one, found = of.y.new_ones(()), []
    for k in range(outputs):
        dz_k = sharded_gradient(*of, *(one if i == k else None for i in range(4)), parts, shards, axis, *transform)
        found.append(total_over_processes((dz_k.double() * dz).sum(axis), shards.group))
    return found


def _by_numbers(of: _Rows, needs: Sequence[bool], parts: Tensor, again: bool, *options: Any) -> list[Any]:
    """Return the derivatives of the loss by y, r and q, in which it is linear; None for those not needed.

    If they are differentiated `again`, each takes a gather. Otherwise they are constants.
    """
    zero, one = of.y.new_zeros(()), of.y.new_ones(())
    x, live = _sums(parts, options[2]), of.label != IGNORED

    def by(*number: Tensor) -> Tensor:
        if again:
            return sharded_rows(of.z, of.label, *number, of.off, *options, False)[0]
        loss: Tensor = equations.outputs(x, *(n.expand(x.m.shape) for n in number)).loss
        return loss.reshape(of.label.shape).where(live, 0)

    numbers = ((one, zero, zero), (zero, one, zero), (zero, zero, one))
    return [by(*number) if need else None for need, number in zip(needs, numbers, strict=True)]


def _log_probabilities(of: _Rows, parts: Tensor, shards: Shards, axis: int, *transform: float) -> Tensor:
    """Return log softmax of this process's columns in a wide enough type to multiply off, and 0 in ignored rows."""
    wide = compute.compute_dtype(of.z) if of.off is None else torch.promote_types(compute.compute_dtype(of.z), of.off.dtype)
    found = sharded_log_softmax(without_ignored(of.z, of.label, axis).to(wide), parts, shards, axis, *transform)
    return without_ignored(found, of.label, axis)


class ShardedGradient(Function):
    """(z, label, y, r, q, off, g, l, b, n, parts, shards, axis, temperature, cap) -> the gradient of this process's logits."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        of, up, parts, options = arguments[:6], arguments[6:10], arguments[10], arguments[11:]
        ctx.save_for_backward(*arguments[:11])
        ctx.save_for_forward(*arguments[:11])
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _gradient(_Rows(*of), up, parts, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), saved = grads, compute.saved(ctx)
        if v is None:
            return (None,) * 15
        if torch.is_grad_enabled():
            too_high()
        of, up, parts, (shards, axis, *transform) = _Rows(*saved[:6]), saved[6:10], saved[10], ctx.options
        along = _curvature(of, v, up, shards, axis, *transform)
        found = operators.derivatives_of_gradient(
            saved[:10], v, along, lambda: _lse(parts, of.label, transform[0]), ctx.needs_input_grad, axis, *transform
        )
        return *found, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, dz: Optional, _: None, dy: Optional, dr: Optional, dq: Optional, doff: Optional, *others: Any) -> Tensor:
        saved, dup = compute.saved(ctx), others[:4]
        of, up, parts, (shards, axis, *transform) = _Rows(*saved[:6]), saved[6:10], saved[10], ctx.options
        zero, of_loss, terms = of.y.new_zeros(()), (up[0], None, None, None), []
        if dz is not None and any(t is not None for t in up):
            terms.append(_curvature(of, dz, up, *ctx.options).hv)
        if any(d is not None for d in dup):
            terms.append(_gradient(of, dup, parts, *ctx.options))
        if up[0] is not None and not (dy is None and dr is None and dq is None):
            changed = of._replace(y=zero if dy is None else dy, r=zero if dr is None else dr, q=zero if dq is None else dq)
            terms.append(_gradient(changed, of_loss, parts, *ctx.options))
        if up[0] is not None and doff is not None:
            changed, label = of._replace(y=zero, q=zero, off=doff), of.label.reshape(-1)
            own = sums_of(of.z.detach(), label, doff.detach(), shards, axis, tuple(transform), False)
            given = compute.numbers(len(label), zero, of.r, zero, None)
            terms.append(_gradient(changed, of_loss, merged(own, shards, label, given, transform[0], False)[1], *ctx.options))
        return highest(sum(terms), *saved[:10], dz, dy, dr, dq, doff, *dup)


class ShardedLogSoftmax(Function):
    """(z, merged sums [7, R] or None, shards, axis, temperature, cap) -> log softmax of this process's columns."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, parts: Optional, *options: Any) -> Tensor:
        shards, axis, *transform = options
        if parts is None:
            label = most_probable(z, shards, axis).reshape(-1)  # is kept apart in the sums, so that values near 0 keep their digits
            zero = z.new_zeros((), dtype=torch.float64)
            own = sums_of(z.detach(), label, None, shards, axis, tuple(transform), False)
            parts = merged(own, shards, label, compute.numbers(len(label), zero, zero, zero, None), transform[0], False)[1]
        ctx.save_for_backward(z, parts)
        ctx.save_for_forward(z, parts)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _log_softmax(z, parts, axis, *transform)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Any:
        (v,), (z, parts), (shards, axis, *transform) = grads, compute.saved(ctx), ctx.options
        if v is None:
            return (None,) * 6
        total, zero = total_over_processes(v.double().sum(axis), shards.group), z.new_zeros((), dtype=torch.float64)
        of_lse = (None, total, None, None)
        mean = sharded_gradient(z, no_labels(z, axis), zero, zero, zero, None, *of_lse, parts, *ctx.options)
        return (transformed(z, *transform)[1] * v - mean).to(z.dtype), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: Any) -> Tensor:
        (z, parts), (_, axis, *transform) = compute.saved(ctx), ctx.options
        zero = z.new_zeros((), dtype=torch.float64)
        of = _Rows(z, no_labels(z, axis), zero, zero, zero, None)
        if _recorded(z, dz):
            mean = _tangents(of, dz, parts, 2, *ctx.options)[1]
        else:
            mean = _curvature(of, dz, [None] * 4, *ctx.options).mean
        return (transformed(z, *transform)[1] * dz - mean.unsqueeze(axis)).to(z.dtype)


def one_at_a_time(*grads: Optional) -> tuple[Optional, ...]:
    """Return upstream gradients. A batch of them (is_grads_batched) is refused, for messages of torch.distributed do not take it."""
    if operators.batched_by_autograd(*grads):
        expected = "be False where tensors are divided among processes; call backward once for each upstream gradient"
        contract.fail("softxent.torch", "is_grads_batched", expected, True)
    return grads


def too_high() -> NoReturn:
    """Refuse a third derivative."""
    contract.fail("softxent.torch", "derivatives of sharded logits", "be of first or second order", "a third", RuntimeError)


class Highest(Function):
    """(a derivative of the highest order that is computed, the tensors it is a function of) -> the derivative."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, *of: Optional) -> Tensor:
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        too_high()


highest: Callable[..., Tensor] = Highest.apply


class TotalOverProcesses(Function):
    """(a tensor of each process of a group, the group) -> its sum, in the order of ranks. Its gradient is the same in all processes."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return gathered(t, group).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor, _: None) -> Tensor:
        return total_over_processes(dt, ctx.group)


class SameInput(Function):
    """(a tensor that is the same in all processes of a group, the group) -> itself. Its backward adds up the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        one_at_a_time(*grads)
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:  # an all-reduce takes less memory, but has no derivative
            return total_over_processes(grads[0], ctx.group), None
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        return dx.view_as(dx)


same_input: Callable[[Tensor, Any], Tensor] = SameInput.apply


total_over_processes: Callable[[Tensor, Any], Tensor] = TotalOverProcesses.apply
sharded_log_softmax: Callable[..., Tensor] = ShardedLogSoftmax.apply
sharded_rows: Callable[..., tuple[Tensor, ...]] = ShardedRows.apply
sharded_gradient: Callable[..., Tensor] = ShardedGradient.apply


class MyColumns(Function):
    """(numbers of all classes [C], shards) -> those of this process's classes. Its backward adds up the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return numbers[shards.mine.first : shards.mine.end].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,), shards = grads, ctx.shards
        whole = F.pad(g, (shards.mine.first, shards.classes - shards.mine.end))
        return total_over_processes(whole, shards.group), None

    @staticmethod
    def jvp(ctx: Any, dnumbers: Tensor, _: None) -> Tensor:
        return dnumbers[ctx.shards.mine.first : ctx.shards.mine.end].clone()


my_columns: Callable[..., Tensor] = MyColumns.apply


def most_probable(scores: Tensor, shards: Shards, axis: int) -> Tensor:
    """Return the class with the largest of scores or probabilities, [*lead], of all processes. It takes one more gather, 16 bytes a row."""
    first = scores.new_zeros(compute.shape_of_rows(scores, axis)[0], dtype=torch.float64)
    found = torch.stack([first - math.inf, first])
    if scores.shape[axis]:
        at = scores.detach().argmax(axis)  # max takes longer
        best = scores.detach().gather(axis, at.unsqueeze(axis)).squeeze(axis)
        found = torch.stack([best.double(), (at + shards.mine.first).double()])
    every = gathered(found, shards.group)
    at_process = every[:, 0].argmax(0, keepdim=True)
    return every[:, 1].gather(0, at_process)[0].long()
