"""The interface of the kernels (kernels/__init__.py), for Triton's kernels with NumPy arrays: the laws of test_tangents.py run on it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from softxent.torch.compute import triton  # where merge, which is formula.py's, takes tensors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def view(a: np.ndarray) -> torch.Tensor:
    """Return a tensor with the memory of the array."""
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == ml_dtypes.bfloat16 else torch.from_numpy(a)


def call(function: str, *arguments: Any) -> None:
    """Call a function of Triton's backend. An array that is given twice is one tensor."""
    views = {id(a): view(a) for a in arguments if isinstance(a, np.ndarray)}
    tensors = {at: t.to(DEVICE) for at, t in views.items()}
    getattr(triton, function)(*(tensors.get(id(a), a) for a in arguments))
    if DEVICE != "cpu":
        for at, t in views.items():
            t.copy_(tensors[at])


def forward(*arguments: Any) -> None:
    call("forward", *arguments)


def backward(*arguments: Any) -> None:
    call("backward", *arguments)


def curvature(*arguments: Any) -> None:
    call("curvature", *arguments)


def tangent_sums(*arguments: Any) -> None:
    call("tangent_sums", *arguments)


def hessian(*arguments: Any) -> None:
    call("hessian", *arguments)


def merge(*arguments: Any) -> None:
    call("merge", *arguments)
