"""The functions of NumPy that formula.py and partials.py use, for tensors. Importing this file registers it in `partials.LIBRARIES`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from ..partials import LIBRARIES

exp, log, tanh, cosh = torch.exp, torch.log, torch.tanh, torch.cosh
where, maximum, zeros_like, asarray = torch.where, torch.maximum, torch.zeros_like, torch.asarray


def float64(x: Tensor) -> Tensor:
    return x.double()


def logaddexp(a: float, b: Tensor) -> Tensor:
    return torch.logaddexp(torch.full_like(b, a), b)


def max(x: Tensor, axis: int, initial: float) -> Tensor:
    return torch.amax(x, axis)  # `initial` is -inf and there is at least one class, so it does not matter


def arange(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_empty(shape)


LIBRARIES[Tensor] = sys.modules[__name__]
