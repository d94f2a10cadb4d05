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
