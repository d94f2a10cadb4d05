"""Softmax cross-entropy for PyTorch compute.

`cross_entropy` replaces `torch.nn.functional.cross_entropy`, with its arguments and derivatives of any order. `linear_cross_entropy`
computes a linear head and its loss together, a chunk of rows at a time, so that the logits are never all in memory. `patch` makes a model
of transformers use it. docs/pytorch.md and docs/linear.md are the guides.
"""

from __future__ import annotations

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    from ..contract import install

    message = f"softxent.torch needs PyTorch: pip install torch, or in a clone of softxent: {install('torch')}"
    raise ModuleNotFoundError(message, name="torch") from None

from .. import kernels
from ..kernels import Backend, empty_cache
from . import compute
from .compute import use_backend
from .huggingface import patch, unpatch
from .linear import LinearCrossEntropyLoss, linear_cross_entropy
from .loss import CrossEntropyLoss, Result, cross_entropy, log_softmax, logsumexp

__all__ = [
    "CrossEntropyLoss", "LinearCrossEntropyLoss", "Result", "backends", "cross_entropy", "empty_cache", "linear_cross_entropy",
    "log_softmax", "logsumexp", "patch", "unpatch", "use_backend",
]  # fmt: skip


def backends() -> list[Backend]:
    """List the backends, whether each is available here, and whether calls use it.

    "cpu", the compiled kernel, is for CPU tensors, and "triton" for CUDA compute. "formula", the equations in torch's operations and
    float64, is for all others.
    """
    forced, gpu = compute.forced(), torch.cuda.is_available()
    native = next(b for b in kernels.backends() if b.name == "cpu")
    device = torch.cuda.get_device_name() if gpu else "no CUDA device here"
    detail = compute.missing or f"Triton {compute.triton.version}, for CUDA tensors: {device}"
    for_cuda = compute.triton is not None and gpu
    return [
        Backend("cpu", native.available, forced is None and native.active, f"{native.detail}, for CPU tensors"),
        Backend("triton", for_cuda, forced == "triton" or (forced is None and for_cuda), detail),
        Backend(
            "formula",
            True,
            forced == "formula" or (forced is None and gpu and not for_cuda),
            "torch's operations in float64, for other tensors",
        ),
    ]
