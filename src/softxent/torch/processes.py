"""How the classes of logits are divided among the processes of a group, and what the processes tell each other.

Each process has some columns of all rows. compute.py sums over them, gathers the sums of all processes, [7, R] float64, or [12, R] with
their derivatives along a vector, and merges them in the same order everywhere, so that all processes get the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from .. import contract
from ..shards import Columns, merge_order, nodes
from ..shared import IGNORED
from . import private
from .modes import applied, batched_by_autograd, by_operator

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13


class Shards(NamedTuple):
    """The classes of each process of a group, in the order of its ranks."""

    name: str  # of the group
    ends: tuple[int, ...]  # the class after the last one of each process
    rank: int  # of this process

    @property
    def group(self) -> Any:
        """The group of processes."""
        return private.process_group(self.name)

    @property
    def columns(self) -> tuple[Columns, ...]:
        """The classes of each process."""
        return tuple(map(Columns, (0, *self.ends[:-1]), self.ends))

    @property
    def classes(self) -> int:
        """The number of classes of a whole row."""
        return self.ends[-1]

    @property
    def mine(self) -> Columns:
        """The classes of this process."""
        return self.columns[self.rank]

    @property
    def most(self) -> int:
        """The most classes that a process has."""
        return max(columns.end - columns.first for columns in self.columns)


def shards_of(group: Any, columns: Sequence[Columns]) -> Shards:
    """Return the shards of processes that have these columns, which are adjacent."""
    return Shards(group.group_name, tuple(each.end for each in columns), dist.get_rank(group))


def all_gather(mine: Tensor, group: Any) -> Tensor:
    """Return the tensors of all processes of a group, stacked in the order of ranks. All have the same shape."""
    found = mine.new_empty((dist.get_world_size(group), *mine.shape))
    try:
        _all_gather(found.view(-1), mine.contiguous().view(-1), group=group)
    except RuntimeError as error:
        expected = "take part in the call, with as many rows, within the time-out of the group"
        contract.fail("softxent.torch", "the other processes", expected, error, RuntimeError)
    return found


class Gathered(Function):
    """(a tensor of each process of a group, its name) -> those of all, stacked, as constants."""

    @staticmethod
    def forward(t: Tensor, name: str) -> Tensor:
        return all_gather(t, private.process_group(name))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], t: Tensor, name: str) -> Any:
        return applied(Gathered, t.movedim(in_dims[0], 0), name), 1


class Total(Function):
    """(a tensor of each process of a group, its name) -> its sum, in the order of ranks. `SameInput` is its derivative, and conversely."""

    @staticmethod
    def forward(t: Tensor, name: str) -> Tensor:
        found: Tensor = all_gather(t, private.process_group(name)).sum(0)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return applied(SameInput, grads[0], ctx.name), None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor, _: None) -> Any:
        return applied(Total, dt, ctx.name)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], t: Tensor, name: str) -> Any:
        return applied(Total, t, name), in_dims[0]


class SameInput(Function):
    """(a tensor that is the same in all processes of a group, its name) -> itself. Its backward adds up the gradients of all processes."""

    @staticmethod
    def forward(x: Tensor, name: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        one_at_a_time(*grads)
        # an all-reduce takes less memory, but has no derivative
        if torch.is_grad_enabled() or private.forward_mode() or private.transforming():
            return applied(Total, grads[0], ctx.name), None
        found = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found, group=private.process_group(ctx.name))
        return found, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Any:
        return applied(SameInput, dx, ctx.name)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, name: str) -> Any:
        return applied(SameInput, x, name), in_dims[0]


def total(t: Tensor, shards: Shards) -> Tensor:
    """Return the sum of a tensor over the processes, in the order of ranks. Its gradient is the same in all processes."""
    found: Tensor = _gathered(t, shards).sum(0) if by_operator(t) else applied(Total, t, shards.name)
    return found


def same_input(x: Tensor, shards: Shards) -> Tensor:
    """Return a tensor that is the same in all processes, whose gradients are added up."""
    if by_operator(x):
        copy: Tensor = same_input_operator(x, shards.name, len(shards.ends), shards.rank)
        return copy
    found: Tensor = applied(SameInput, x, shards.name)
    return found


def my_columns(numbers: Tensor, shards: Shards) -> Tensor:
    """Return the numbers of this process's classes, from those of all classes [C]."""
    return same_input(numbers, shards)[shards.mine.first : shards.mine.end]


def one_at_a_time(*grads: Tensor | None) -> None:
    """Refuse a batch of upstream gradients (is_grads_batched), for messages of torch.distributed do not take it."""
    if batched_by_autograd(*grads):
        expected = "be False where tensors are divided among processes; call backward once for each upstream gradient"
        contract.fail("softxent.torch", "is_grads_batched", expected, True)


def _gathered(t: Tensor, shards: Shards) -> Tensor:
    """Return the tensors of all processes, stacked in the order of ranks, in every mode."""
    if by_operator(t):
        stacked: Tensor = gathered_operator(t, shards.name, len(shards.ends), shards.rank)
        return stacked
    found: Tensor = applied(Gathered, t, shards.name)
    return found


def local_labels(label: Tensor, mine: Columns) -> Tensor:
    """Return labels as columns of this process; those of others match no column."""
    return torch.where(label == IGNORED, IGNORED, label - mine.first)


@functools.lru_cache
def merges(columns: tuple[Columns, ...]) -> tuple[list[list[Columns]], int, Tensor]:
    """Return the nodes of each process, the most that one has, and the pairs [P, 2] of gathered sums in the order of their merges."""
    each = nodes(columns)
    most = max(1, *map(len, each))
    at = [rank * most + k for rank, ranges in enumerate(each) for k in range(len(ranges))]
    pairs = [(at[i], at[j]) for i, j in merge_order([node for ranges in each for node in ranges])]
    if at[0]:
        pairs.append((0, at[0]))  # the first process has no column
    return each, most, torch.tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2)


def most_probable(scores: Tensor, shards: Shards, axis: int) -> Tensor:
    """Return the class with the largest of scores or probabilities, [*lead], of all processes. It takes a gather of 16 bytes a row."""
    first = scores.new_zeros([n for i, n in enumerate(scores.shape) if i != axis], dtype=torch.float64)
    found = torch.stack([first - math.inf, first])
    if scores.shape[axis]:
        at = scores.detach().argmax(axis)  # max takes longer
        best = scores.detach().gather(axis, at.unsqueeze(axis)).squeeze(axis)
        found = torch.stack([best.double(), (at + shards.mine.first).double()])
    every = _gathered(found, shards)
    at_process = every[:, 0].argmax(0, keepdim=True)
    return every[:, 1].gather(0, at_process)[0].long()


# ---- operators of torch.library, which have first derivatives alone ----


@torch.library.custom_op("softxent::gathered", mutates_args=())
def gathered_operator(t: Tensor, group: str, size: int, rank: int) -> Tensor:
    return all_gather(t, private.process_group(group))


@torch.library.custom_op("softxent::same_input", mutates_args=())
def same_input_operator(x: Tensor, group: str, size: int, rank: int) -> Tensor:
    return x.clone()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.group = inputs[1:]


gathered_operator.register_fake(lambda t, group, size, rank: t.new_empty((size, *t.shape)))
same_input_operator.register_fake(lambda x, *_: torch.empty_like(x))
gathered_operator.register_autograd(lambda ctx, g: (g[ctx.group[2]], None, None, None), setup_context=_keep)
same_input_operator.register_autograd(lambda ctx, g: (gathered_operator(g, *ctx.group).sum(0), None, None, None), setup_context=_keep)
