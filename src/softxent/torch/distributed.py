"""Logits and heads that are divided among processes: DTensors, or the tensors of each process and a group.

loss.py and linear.py call this file. It describes the shards (`Shards`), brings labels and weights to the process that has their rows, and
wraps what is computed of a process's tensors into DTensors again. processes.py has the messages of divided classes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from ..contract import fail, shown
from ..shards import Columns, evenly
from . import compute, private, sharding
from .processes import Shards, all_gather, one_at_a_time, shards_of

Placements = Sequence[Any]  # one of each axis of a mesh


def is_dtensor(*tensors: Any) -> bool:
    """Whether one of these is a DTensor. torch.distributed.tensor is not imported for it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(t, module.DTensor) for t in tensors)


def not_divided(fn: str, argument: str, t: Any, instead: str) -> None:
    """Refuse a DTensor where it is not supported."""
    if is_dtensor(t):
        fail(fn, argument, instead, "a DTensor", TypeError)


# ---- tensors of each process, and a group ----


def shards_of_group(fn: str, group: Any, columns: int, first_class: int | None, like: Tensor) -> Shards:
    """Return the shards, of which this process has `columns` classes.

    Without `first_class`, every process has as many classes, in the order of ranks. With it, the processes tell each other their classes.
    """
    if not dist.is_initialized():
        fail(fn, "group", "be a process group; call torch.distributed.init_process_group first", shown(group), RuntimeError)
    size = dist.get_world_size(group)
    if dist.get_rank(group) < 0:
        fail(fn, "group", "be a group that this process belongs to", shown(group))
    if first_class is None:
        return shards_of(group, [Columns(k * columns, (k + 1) * columns) for k in range(size)])
    mine = torch.tensor([first_class, columns], dtype=torch.int64, device=like.device)
    every = [Columns(first, first + length) for first, length in all_gather(mine, group).tolist()]
    end = 0
    for rank, (first, last) in enumerate(every):
        if first != end:
            where = f"on rank {rank}, where the classes of rank {rank - 1} end" if rank else "on rank 0"
            fail(fn, "first_class", f"be {end} {where}", first)
        end = last
    return shards_of(group, every)


def check_agreement(fn: str, group: Any, **given: Any) -> None:
    """Raise an error on all processes if the arguments of one differ from those of the first. It takes a gather."""
    texts = [""] * dist.get_world_size(group)
    dist.all_gather_object(texts, "; ".join(f"{name}={value}" for name, value in given.items()), group=group)
    for rank, other in enumerate(texts):
        if other != texts[0]:
            fail(fn, f"the arguments of rank {rank}", f"be those of rank 0 ({texts[0]})", other)


# ---- DTensors ----


class Layout(NamedTuple):
    """How the logits of a call are divided."""

    mesh: Any
    logits: Placements
    rows: Placements  # of the numbers of rows
    shards: Shards | None  # None if no axis of the mesh divides the classes
    lead: torch.Size  # the shape of the rows of all processes

    def shifted(self, shift: int) -> Layout:
        """Return the layout of rows whose last axis is `shift` positions shorter."""
        if not shift:
            return self
        if any(where.is_shard() and where.dim % len(self.lead) == len(self.lead) - 1 for where in self.rows):
            fail("linear_cross_entropy", "shift", "be False where the positions are divided among processes", shift)
        return self._replace(lead=torch.Size([*self.lead[:-1], max(0, self.lead[-1] - shift)]))

    def local(self, t: Any, placements: Placements) -> Any:
        """Return this process's part of a tensor or DTensor, or None. A plain tensor is taken to be the same in all processes."""
        return None if t is None else entering(_of_mesh(t, self.mesh), self.mesh, placements, placements)

    def local_sample(self, t: Any) -> Any:
        """Return the sample weights of this process's rows, or None. They broadcast to the rows, as `t` does to all rows."""
        if t is None or t.ndim > len(self.lead):
            return t
        from torch.distributed.tensor import Partial, Replicate, Shard

        placements, of_gradient, missing = [], [], len(self.lead) - t.ndim
        for where in self.rows:
            axis = where.dim - missing if where.is_shard() else -1
            divided = axis >= 0 and t.shape[axis] != 1
            placements.append(Shard(axis) if divided else Replicate())
            of_gradient.append(Partial() if where.is_shard() and not divided else placements[-1])
        return entering(_of_mesh(t, self.mesh), self.mesh, placements, of_gradient)

    def class_weight(self, t: Any) -> Any:
        """Return the weights of all classes. Their gradient is added up over the processes that have other rows."""
        if t is None:
            return None
        return entering(_of_mesh(t, self.mesh), self.mesh, _replicated(self.mesh), self._partial())

    def of_rows(self, t: Tensor) -> Any:
        """Return the DTensor [*lead] of what this process's rows give."""
        return leaving(t, self.mesh, self.rows, self.lead, self.rows)

    def of_logits(self, t: Tensor, shape: torch.Size) -> Any:
        """Return the DTensor of all processes' logits, of this shape, of which t are this process's."""
        return leaving(t, self.mesh, self.logits, shape, self.logits)

    def total(self, t: Tensor) -> Any:
        """Return the sum of a number of each process over those that have other rows, a replicated DTensor."""
        return leaving(t, self.mesh, self._partial(), t.shape, _replicated(self.mesh))

    def _partial(self) -> Placements:
        from torch.distributed.tensor import Partial

        return [Partial() if where.is_shard() else where for where in self.rows]


def _replicated(mesh: Any) -> Placements:
    from torch.distributed.tensor import Replicate

    return [Replicate()] * mesh.ndim


def _of_mesh(t: Any, mesh: Any) -> Any:
    """Return a DTensor. A plain tensor is taken to be the same in all processes."""
    return t if is_dtensor(t) else leaving(t, mesh, _replicated(mesh), t.shape, _replicated(mesh))


def layout(input: Any, axis: int) -> tuple[Any, Layout]:
    """Return this process's logits and their layout. Partial sums, and classes that two axes of the mesh divide, are brought together."""
    from torch.distributed.tensor import Replicate, Shard

    sharding.register()
    mesh, divided = input.device_mesh, None
    found: list[Any] = []
    for k, where in enumerate(input.placements):
        keep = type(where) is Shard and not (where.dim % input.ndim == axis and divided is not None)
        if keep and where.dim % input.ndim == axis:
            divided = k
        found.append(where if keep else Replicate())
    rows = [
        where if not where.is_shard() else Replicate() if where.dim % input.ndim == axis else Shard(where.dim - (where.dim > axis))
        for where in found
    ]
    classes, shards = input.shape[axis], None
    if divided is not None:
        shards = shards_of(mesh.get_group(divided), evenly(classes, mesh.size(divided)))
    lead = torch.Size(n for i, n in enumerate(input.shape) if i != axis)
    return entering(input, mesh, found, found), Layout(mesh, found, rows, shards, lead)


class DividedHead(NamedTuple):
    """A linear head and its labels, as a process has them."""

    x: Tensor
    w: Tensor
    b: Tensor | None
    target: Tensor
    weight: Tensor | None
    sample: Tensor | None
    layout: Layout


def head_layout(fn: str, x: Any, w: Any, b: Any, target: Any, weight: Any, sample: Any) -> DividedHead:
    """Return this process's part of a head of DTensors.

    An axis of the mesh that divides the classes of W has all rows of x: rows that it divides are gathered, and their gradient is scattered.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    sharding.register()
    if not is_dtensor(w):
        fail(fn, "linear_weight", "be a DTensor as input is; DTensor.from_local makes one", type(w).__name__, TypeError)
    mesh = w.device_mesh
    x, b = (None if t is None else _of_mesh(t, mesh) for t in (x, b))
    divides = [type(where) is Shard and where.dim % w.ndim == 0 for where in w.placements]
    divides = [yes and not any(divides[:k]) for k, yes in enumerate(divides)]
    shard_of_w = [Shard(0) if yes else Replicate() for yes in divides]
    rows = [
        where if type(where) is Shard and not yes and where.dim % x.ndim < x.ndim - 1 else Replicate()
        for where, yes in zip(x.placements, divides, strict=True)
    ]
    lead, logits = x.shape[:-1], [Shard(x.ndim - 1) if yes else where for where, yes in zip(rows, divides, strict=True)]
    of_parameters = [Partial() if where.is_shard() else mine for where, mine in zip(rows, shard_of_w, strict=True)]
    shards = None
    if any(divides):
        axis = divides.index(True)
        shards = shards_of(mesh.get_group(axis), evenly(w.shape[0], mesh.size(axis)))
    place = Layout(mesh, logits, rows, shards, lead)
    target = place.local(target, logits if target.is_floating_point() else rows)
    of_x = [Partial() if yes else where for where, yes in zip(rows, divides, strict=True)]
    return DividedHead(
        entering(x, mesh, rows, of_x),
        entering(w, mesh, shard_of_w, of_parameters),
        None if b is None else entering(b, mesh, shard_of_w, of_parameters),
        target, place.class_weight(weight), place.local_sample(sample), place,
    )  # fmt: skip


class OrderedSum(Function):
    """The sum of the losses of the rows, in the order of `compute.summed`, in which the sum of one process is computed."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor) -> Tensor:
        ctx.shape = losses.shape
        return compute.summed(losses.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].expand(ctx.shape)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].sum()


def ordered_sum(losses: Tensor) -> Tensor:
    """Return the sum of the losses of the rows, in the order of one process where no transform of torch.func is active."""
    apply: Any = OrderedSum.apply  # untyped
    found: Tensor = losses.sum() if private.transforming() else apply(losses)
    return found


class Entering(Function):
    """(a DTensor, mesh, placements, placements of the gradient) -> this process's part of it, redistributed to the placements.

    `Leaving` is its derivative, and it is that of `Leaving`. torch's own redistribute and to_local fail at a gradient that is not defined,
    and in torch 2.6 at that of a partial sum.
    """

    @staticmethod
    def forward(ctx: Any, t: Any, mesh: Any, placements: Placements, of_gradient: Placements) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.back = (mesh, of_gradient, t.shape, _of_gradient(t.placements))
        local: Tensor = t.redistribute(mesh, placements).to_local()
        return local

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None if grads[0] is None else leaving(grads[0], *ctx.back), None, None, None


class Leaving(Function):
    """(this process's part of a tensor, mesh, placements, shape of the tensor, other placements) -> the DTensor with the other placements.

    A batch of its upstream gradients (is_grads_batched) is refused: a DTensor would be redistributed as if it had no axis of the batch.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, mesh: Any, placements: Placements, shape: torch.Size, target: Placements) -> Any:
        from torch.distributed.tensor import DTensor

        ctx.set_materialize_grads(False)
        ctx.back = (mesh, _of_gradient(placements), placements)
        stride = torch.empty(shape, device="meta").stride()
        whole = DTensor.from_local(t.detach().contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride)
        return whole.redistribute(mesh, target)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        if g is None:
            return (None,) * 5
        if not torch.compiler.is_compiling():
            one_at_a_time(g.to_local())
        return entering(g, *ctx.back), None, None, None, None


def _of_gradient(placements: Placements) -> Placements:
    """Return the placements of a gradient: that of a partial sum is the same in all processes."""
    from torch.distributed.tensor import Replicate

    return [Replicate() if where.is_partial() else where for where in placements]


entering: Callable[..., Any] = Entering.apply
leaving: Callable[..., Any] = Leaving.apply


# ---- results ----


def whole_sum(t: Tensor | None, layout: Layout | None) -> Any:
    """Return the sum of a number of each process over those that have other rows; the number itself where all have the same rows."""
    return t if t is None or layout is None else layout.total(t)


def of_all_rows(t: Tensor, layout: Layout | None) -> Any:
    """Return what this process's rows give as a DTensor, if the logits are one."""
    return t if layout is None else layout.of_rows(t)


def reduced(losses: Tensor, reduction: str, total: Tensor | None, dtype: torch.dtype, layout: Layout | None) -> Any:
    """Return the losses of the rows of all processes, their sum, or their sum divided by that of `total`."""
    if reduction == "none":
        return of_all_rows(losses.to(dtype), layout)
    loss, weight = whole_sum(ordered_sum(losses), layout), whole_sum(total, layout)
    return compute.mean(loss, weight).to(dtype)
