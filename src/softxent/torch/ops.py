"""The layer as operators of torch.library, for torch.compile, torch.export and subclasses of Tensor.

Each operator calls the same computations and derivatives as the functions of autograd in autograd.py and chunked.py.
"""

from __future__ import annotations

from typing import Any, List  # noqa: UP035 - torch 2.6 accepts no other name in the signature of an operator

import torch
from torch import Tensor

from .autograd import devices, gradient_backward, keep, rows_backward


@torch.library.custom_op("softxent::old_rows", mutates_args=())
def rows(
    input: Tensor, target: Tensor, weight: Tensor | None, axis: int, ignore_index: int, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = devices(input).rows(input, target, weight, axis, ignore_index, smoothing, z_loss)
    return found


@torch.library.custom_op("softxent::old_gradient", mutates_args=())
def gradient(
    input: Tensor, target: Tensor, weight: Tensor | None, axis: int, ignore_index: int, smoothing: float, z_loss: float,
    g: Tensor | None, g_lse: Tensor | None,
) -> Tensor:  # fmt: skip
    dz: Tensor = devices(input).gradient(input, target, weight, axis, ignore_index, smoothing, z_loss, g, g_lse)
    return dz


@rows.register_fake
def _(input: Tensor, target: Tensor, weight: Any, axis: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lead = [n for i, n in enumerate(input.shape) if i != axis]
    loss = input.new_empty(lead, dtype=torch.float64)
    return loss, torch.empty_like(loss), input.new_empty(lead, dtype=torch.bool)


@gradient.register_fake
def _(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    keep(ctx, (*inputs[:3], output[1]), inputs[3:])


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    keep(ctx, (*inputs[:3], *inputs[7:]), inputs[3:7])


rows.register_autograd(lambda ctx, *grads: rows_backward(ctx, grads, gradient), setup_context=_keep_rows)
gradient.register_autograd(lambda ctx, *grads: gradient_backward(ctx, grads, gradient), setup_context=_keep_gradient)


@torch.library.custom_op("softxent::linear_rows", mutates_args=())
def linear_rows(
    x: Tensor, w: Tensor, b: Tensor | None, target: Tensor | None, teacher_x: Tensor | None, teacher_w: Tensor | None,
    teacher_b: Tensor | None, weight: Tensor | None, ignore_index: int, smoothing: float, z_loss: float, softcap: float | None,
    temperature: float, wanted: str, budget: int,
) -> List[Tensor]:  # noqa: UP006 # fmt: skip
    from .chunked import Problem, rows_by_chunks

    return rows_by_chunks(
        Problem(
            x, w, b, target, teacher_x, teacher_w, teacher_b, weight, ignore_index, smoothing, z_loss, softcap, temperature, wanted, budget
        )
    )


@linear_rows.register_fake
def _(x: Tensor, *p: Any) -> list[Tensor]:
    types = {"correct": torch.bool}
    return [x.new_empty(x.shape[0], dtype=types.get(name, torch.float64)) for name in p[-2].split()]


@torch.library.custom_op("softxent::linear_gradient", mutates_args=())
def linear_gradient(
    x: Tensor, w: Tensor, b: Tensor | None, target: Tensor | None, teacher_x: Tensor | None, teacher_w: Tensor | None,
    teacher_b: Tensor | None, weight: Tensor | None, ignore_index: int, smoothing: float, z_loss: float, softcap: float | None,
    temperature: float, wanted: str, budget: int, needs: int, gs: List[Tensor],  # noqa: UP006
) -> List[Tensor]:  # noqa: UP006 # fmt: skip
    from .chunked import gradients_as_asked

    return gradients_as_asked(
        x, w, b, target, teacher_x, teacher_w, teacher_b, weight, ignore_index, smoothing, z_loss, softcap, temperature, wanted, budget,
        needs, *gs,
    )  # fmt: skip


@linear_gradient.register_fake
def _(x: Tensor, w: Tensor, b: Tensor | None, *rest: Any) -> list[Tensor]:
    needs = rest[-2]
    return [torch.empty_like(t) if t is not None and needs & bit else x.new_empty(0) for t, bit in zip((x, w, b), (1, 2, 4), strict=True)]


def _linear_backward(ctx: Any, grads: list[Tensor | None]) -> Any:
    from .chunked import required_gradients, wants

    tensors, options = ctx.saved_tensors, ctx.options
    names, rows = options[-2].split(), tensors[0].shape[0]
    gs = [
        tensors[0].new_zeros(rows, dtype=torch.float64) if g is None else g
        for g, name in zip(grads, names, strict=True)
        if name != "correct"
    ]
    found = linear_gradient(*tensors, *options, wants(ctx), gs)
    return required_gradients(found, wants(ctx), len(tensors) + len(options))


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep(ctx, inputs[:8], inputs[8:])


linear_rows.register_autograd(_linear_backward, setup_context=_keep_linear)
