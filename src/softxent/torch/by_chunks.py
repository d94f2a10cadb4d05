"""Functions of many rows, computed a chunk of rows at a time, and their derivatives of any order and in every mode.

linear_operators.py uses this file. A `RowFunction` takes tensors with an entry for each row, and tensors that all rows share; it returns
tensors with an entry for each row, and sums over the rows. So it can be computed by chunks. Its derivatives are functions of the same kind:

    argument with an entry for each row    its gradient has an entry for each row
    argument that all rows share           its gradient is a sum over the rows
    output with an entry for each row      its upstream gradient has an entry for each row
    sum over the rows                      its upstream gradient is shared by all rows

`ByChunks`, the function of autograd that computes a `RowFunction`, therefore has itself as derivative, in reverse and in forward mode, and
under vmap. None of them holds more than a chunk of what is computed in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import private
from .compute import saved, without_autocast
from .modes import traced

Tensors = tuple[Tensor, ...]


class RowFunction:
    """A function of rows.

    Args:
        of_a_chunk: computes it for any number of rows, by operations that torch.func can differentiate.
        by_row: for each argument, whether its first axis is that of the rows; the argument may be None.
        per_row: for each output, whether its first axis is that of the rows; otherwise it is a sum over the rows.
        step: the number of rows of a chunk.
        differentiable: the indices of the outputs that can be differentiated; None means all.
    """

    def __init__(
        self, of_a_chunk: Callable[..., Tensors], by_row: Sequence[bool], per_row: Sequence[bool], step: int,
        differentiable: Sequence[int] | None = None,
    ):  # fmt: skip
        self.of_a_chunk, self.by_row, self.per_row, self.step = of_a_chunk, tuple(by_row), tuple(per_row), max(1, step)
        self.differentiable = tuple(range(len(per_row)) if differentiable is None else differentiable)

    def compute(self, *arguments: Tensor | None) -> Tensors:
        """Return the outputs for all rows."""
        rows = next(len(t) for t, by_row in zip(arguments, self.by_row, strict=True) if by_row and t is not None)
        totals: list[Tensor] = []
        types: list[torch.dtype] = []
        for first in range(0, max(1, rows), self.step):
            i = slice(first, first + self.step)
            chunk = [t[i] if by_row and t is not None else t for t, by_row in zip(arguments, self.by_row, strict=True)]
            parts = self.of_a_chunk(*chunk)
            if not first:
                types = [part.dtype for part in parts]
                totals = [
                    part.new_empty((rows, *part.shape[1:])) if per_row else torch.zeros_like(part, dtype=summed_in(part.dtype))
                    for part, per_row in zip(parts, self.per_row, strict=True)
                ]
            for total, part, per_row in zip(totals, parts, self.per_row, strict=True):
                total[i].copy_(part) if per_row else total.add_(part)
        return tuple(total.to(dtype) for total, dtype in zip(totals, types, strict=True))

    def gradient(self, needed: Sequence[int], given: Sequence[int]) -> RowFunction:
        """Return the function of the arguments and the upstream gradients of the outputs `given` that computes the gradients of the
        arguments `needed`."""

        def pulled_back(*arguments: Any) -> Tensors:
            arguments, upstream = arguments[: len(self.by_row)], arguments[len(self.by_row) :]
            found, pull_back, *_ = torch.func.vjp(self._of_some(arguments, needed, given), *(arguments[k] for k in needed))
            gradients: Tensors = pull_back(tuple(g.to(output.dtype) for g, output in zip(upstream, found, strict=True)))
            return gradients

        by_row = (*self.by_row, *(self.per_row[k] for k in given))
        return RowFunction(pulled_back, by_row, [self.by_row[k] for k in needed], self.step // 2)

    def tangent(self, moving: Sequence[int]) -> RowFunction:
        """Return the function of the arguments, and of tangents of those that are `moving`, that computes the tangents of the outputs
        that can be differentiated.

        Reverse mode is used twice, for forward mode cannot be nested: the gradients are linear in the upstream gradients, and the
        transpose of that map takes the tangents of the arguments to those of the outputs.
        """

        def pushed_forward(*arguments: Any) -> Tensors:
            arguments, tangents = arguments[: len(self.by_row)], arguments[len(self.by_row) :]
            of_some, at = self._of_some(arguments, moving, self.differentiable), tuple(arguments[k] for k in moving)
            found, pull_back, *_ = torch.func.vjp(of_some, *at)
            push_forward = torch.func.vjp(lambda *upstream: pull_back(upstream), *map(torch.ones_like, found))[1]
            tangents_found: Tensors = push_forward(tangents)
            return tangents_found

        by_row = (*self.by_row, *(self.by_row[k] for k in moving))
        return RowFunction(pushed_forward, by_row, [self.per_row[k] for k in self.differentiable], self.step // 2)

    def batched(self, size: int, batched: Sequence[bool]) -> RowFunction:
        """Return the function of a batch of some arguments. The axis of the batch follows that of the rows, and is the first one of what
        has none."""
        in_dims = tuple(int(by_row) if yes else None for by_row, yes in zip(self.by_row, batched, strict=True))
        of_a_chunk = torch.func.vmap(self.of_a_chunk, in_dims, tuple(map(int, self.per_row)))
        return RowFunction(of_a_chunk, self.by_row, self.per_row, self.step // max(1, size), self.differentiable)

    def _of_some(self, arguments: Sequence[Any], varied: Sequence[int], wanted: Sequence[int]) -> Callable[..., Tensors]:
        """Return the function of the arguments `varied` alone that computes the outputs `wanted`."""

        def of_some(*values: Tensor) -> Tensors:
            given = list(arguments)
            for k, value in zip(varied, values, strict=True):
                given[k] = value
            found = self.of_a_chunk(*given)
            return tuple(found[k] for k in wanted)

        return of_some


class ByChunks(torch.autograd.Function):
    """Function of autograd: (a `RowFunction`, its arguments) -> its outputs."""

    @staticmethod
    def forward(function: RowFunction, *arguments: Any) -> Tensors:
        return computed(function, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.function, *arguments = inputs
        ctx.save_for_backward(*arguments)
        ctx.save_for_forward(*arguments)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for k, t in enumerate(output) if k not in ctx.function.differentiable))

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        function, arguments = ctx.function, saved(ctx)
        needed = [k for k, need in enumerate(ctx.needs_input_grad[1:]) if need]
        given = [k for k in function.differentiable if upstream[k] is not None]
        found = iter(applied(function.gradient(needed, given), *arguments, *(upstream[k] for k in given)) if given else ())
        return None, *(next(found, None) if k in needed else None for k in range(len(arguments)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        function = ctx.function
        moving = [k for k, t in enumerate(tangents) if t is not None]
        found = iter(applied(function.tangent(moving), *saved(ctx), *(tangents[k] for k in moving)))
        return tuple(next(found) if k in function.differentiable else None for k in range(len(function.per_row)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: RowFunction, *arguments: Any) -> Any:
        batched = [dim is not None for dim in in_dims[1:]]
        there = zip(arguments, in_dims[1:], function.by_row, strict=True)
        moved = [t if dim is None else t.movedim(dim, int(by_row)) for t, dim, by_row in there]
        return by_chunks(function.batched(info.batch_size, batched), *moved), tuple(map(int, function.per_row))


def by_chunks(function: RowFunction, *arguments: Any) -> Tensors:
    """Return the outputs for all rows, which can be differentiated."""
    if not private.transforming():
        plain: Tensors = private.apply_unbound(ByChunks, function, *arguments)
        return plain
    with_transforms: Any = ByChunks.apply  # untyped; may be nested in forward mode, unlike the functions of operators.py
    found: Tensors = with_transforms(function, *arguments)
    return found


def computed(function: RowFunction, *arguments: Any) -> Tensors:
    """Return the outputs for all rows, in the types of the arguments: without autocast."""
    device = next(t.device.type for t in arguments if t is not None)
    compute = RowFunction.compute if traced() else type(function).compute  # what a tracer records must consist of operators
    with without_autocast(device):
        return compute(function, *arguments)


def applied(function: RowFunction, *arguments: Any) -> Tensors:
    """Call `by_chunks`. Some arguments may be batches of upstream gradients of is_grads_batched, which cannot be passed to a function of
    autograd: the batch becomes an ordinary axis."""
    is_batch = [t is not None and private.is_batch(t) for t in arguments]
    if not any(is_batch):
        return by_chunks(function, *arguments)
    level = private.level_of_batches()
    there = zip(arguments, is_batch, function.by_row, strict=True)
    plain = [private.without_batch(t, level, int(by_row)) if batch else t for t, batch, by_row in there]
    size = next(t.shape[int(by_row)] for t, batch, by_row in zip(plain, is_batch, function.by_row, strict=True) if batch)
    found = applied(function.batched(size, is_batch), *plain)
    outputs = zip(found, function.per_row, strict=True)  # with the axis of the batch first in memory too, which forward mode requires
    return tuple(private.with_batch(t.movedim(int(per_row), 0).contiguous(), level) for t, per_row in outputs)


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over the rows are added up: at least float32."""
    return dtype if dtype == torch.float64 else torch.float32
