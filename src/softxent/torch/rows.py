"""The checks of the arguments for tensors, and the loss, lse, entropy and log-probability of each row.

loss.py and chunked.py use this file. The rows are computed by a function of autograd (autograd.py) or, under torch.compile and for tensors
of other types, by an operator of torch.library (ops.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .. import contract, truth
from ..contract import fail
from . import ops
from .autograd import in_compute_dtype, rows_of

PLAIN = (Tensor, Parameter)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RETURNS = ("lse", "entropy", "logprobs", "correct")


def rows(*p: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, lse and correct of every row, by the function of autograd or by the operator."""
    found: tuple[Tensor, Tensor, Tensor]
    if torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        # operators of torch.library have no forward mode, and drop a tangent without an error
        beside: Any = torch.compiler.disable  # untyped
        found = beside(rows_of)(*p)
        return found
    found = (rows_of if eagerly(p[0]) else ops.rows)(*p)
    return found


def eagerly(t: Tensor) -> bool:
    """Whether the function of autograd is used for this tensor, and not the operator."""
    compiling = torch.compiler.is_compiling()
    plain = type(t) in PLAIN and not t.is_meta and not compiling
    return plain or (not compiling and torch._C._are_functorch_transforms_active())


def plain(input: Tensor, target: Tensor) -> bool:
    """Whether these are ordinary tensors: no transform of torch.func, no compiler, no forward-mode tangent and no subclass is involved."""
    return (
        type(input) in PLAIN and type(target) in PLAIN and not input.is_meta and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active() and not torch._C._len_torch_dispatch_stack() and forward_ad._current_level < 0
    )  # fmt: skip


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether a derivative with respect to one of these tensors may be wanted, in reverse or in forward mode."""
    return any(t is not None and (t.requires_grad or _has_tangent(t)) for t in tensors)


def _has_tangent(t: Tensor) -> bool:
    """Whether forward mode may differentiate with respect to this tensor. For tensors inside torch.func, only True is a safe answer."""
    if forward_ad._current_level < 0:
        return False
    unpack: Any = forward_ad.unpack_dual  # untyped
    return torch._C._functorch.is_functorch_wrapped_tensor(t) or unpack(t).tangent is not None


def outputs(
    z: Tensor,
    target: Tensor,
    weight: Tensor | None,
    axis: int,
    options: tuple[int, float, float],
    wanted: tuple[str, ...],
    eager: bool = False,
) -> dict[str, Tensor]:
    """Return the wanted outputs of every row by name: loss and lse (float64), entropy, logprobs, correct. z: logits after the softcap."""
    loss, lse, correct = rows(*problem(eager, z, target, weight, axis, *options))
    dead = None if target.is_floating_point() else target == options[0]
    found = {"loss": loss, "correct": correct}
    if "lse" in wanted:  # lse of an ignored row is 0, whatever its logits
        found["lse"] = lse if dead is None else lse.masked_fill(dead, 0)
    if "logprobs" in wanted:
        found["logprobs"] = -rows(z, target, None, axis, options[0], 0.0, 0.0)[0]
    if "entropy" in wanted:
        found["entropy"] = entropy(z, axis, dead)
    return {name: found[name] for name in wanted}


def entropy(z: Tensor, axis: int, dead: Tensor | None) -> Tensor:
    """Return the entropy of each row: the cross-entropy with softmax itself as the truth.

    A masked class gets a finite logit here, because the gradient of 0 times -inf is NaN.
    """
    masked = z == -torch.inf
    z = z.masked_fill(masked & ~masked.all(axis, keepdim=True), -6e4 if z.dtype == torch.float16 else -1e30)
    z = z if dead is None else z.masked_fill(dead.unsqueeze(axis), 0)
    found = rows(z, torch.softmax(in_compute_dtype(z), axis), None, axis, -100, 0.0, 0.0)[0]
    return found if dead is None else found.masked_fill(dead, 0)


def problem(
    eager: bool, z: Tensor, target: Tensor, weight: Tensor | None, axis: int, ignore_index: int, smoothing: float, z_loss: float
) -> tuple[Any, ...]:
    """Return the arguments from which the rows are computed.

    If probabilities or class weights require a gradient, the truth is first computed as an array over all classes by torch's operations,
    which then give those derivatives.
    """
    probable = target.is_floating_point()
    written = (weight is not None or smoothing > 0) if probable and not eager else differentiable(weight) or (
        probable and differentiable(target) and (weight is not None or smoothing > 0)
    )  # fmt: skip
    if written:
        classes, w = z.shape[axis], None if weight is None else weight.to(in_compute_dtype(z).dtype)
        if probable:
            target = truth.soft(in_compute_dtype(target).movedim(axis, -1), w, smoothing, classes)
        else:
            target = truth.written_out(target, torch.arange(classes, device=z.device), w, smoothing, ignore_index)
        target, weight, smoothing = target.to(in_compute_dtype(z).dtype).movedim(-1, axis), None, 0.0
    return z, target, weight, axis, ignore_index, smoothing, z_loss


def total(input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, axis: int, ignore_index: int) -> Any:
    """Return the sum of the rows' weights, by which a mean is divided."""
    lead = [n for i, n in enumerate(input.shape) if i != axis]
    each: Any = 1 if sample is None else sample.double().expand(lead)
    if target.is_floating_point():
        return math.prod(lead) if sample is None else each.sum()
    return truth.weights(target, target != ignore_index, None if weight is None else weight.double(), each, input.shape[axis]).sum()


def tensor(fn: str, name: str, t: Any, input: Tensor) -> None:
    """Refuse what is no dense tensor on the device of `input`."""
    if not isinstance(t, Tensor):
        instead = " (softxent's own functions take NumPy arrays)" if isinstance(t, np.ndarray) else ""
        fail(fn, name, f"be a torch.Tensor{instead}", type(t).__name__, TypeError)
    if t.layout != torch.strided:
        fail(fn, name, f"be a dense tensor ({name}.to_dense() is one)", t.layout, TypeError)
    if t.device != input.device:
        fail(fn, name, f"be on {input.device} as input is", t.device)


def labels(fn: str, names: contract.Names, target: Tensor, shape: tuple[int, ...], axis: int) -> None:
    """Refuse a target that is neither class indices nor probabilities for logits of this shape."""
    kind = "float" if target.is_floating_point() else "bool" if target.dtype == torch.bool else "int"
    if kind == "bool" or tuple(target.shape) != (shape if kind == "float" else shape[:axis] + shape[axis + 1 :]):
        contract.wrong_labels(fn, names, kind, target.dtype, tuple(target.shape), shape, axis)


def checked(
    fn: str, input: Tensor, target: Tensor, weight: Tensor | None, sample: Tensor | None, ignore_index: int, reduction: str,
    smoothing: float, z_loss: float,
) -> tuple[int, tuple[int, float, float]]:  # fmt: skip
    """Check the arguments. Returns the class axis and the options (ignore_index, label_smoothing, z_loss)."""
    given: dict[str, Any] = {"input": input, "target": target, "weight": weight, "sample_weight": sample}
    for name, t in given.items():
        if t is None and name in ("weight", "sample_weight"):
            continue
        tensor(fn, name, t, input)
        if t.is_complex() and name != "input":
            fail(fn, name, "hold real numbers", t.dtype, TypeError)
    if input.dtype not in FLOATS:
        contract.in_order(fn, contract.TORCH, tuple(input.shape), tuple(target.shape))
        fail(fn, "input", "be float32, float64, bfloat16 or float16", input.dtype, TypeError)
    if input.ndim == 0:
        fail(fn, "input", "have a class axis", f"shape {tuple(input.shape)}")
    axis = min(1, input.ndim - 1)
    if not input.shape[axis]:
        fail(fn, "input", "have at least one class", f"shape {tuple(input.shape)}")
    lead = tuple(n for i, n in enumerate(input.shape) if i != axis)
    labels(fn, contract.TORCH, target, tuple(input.shape), axis)
    if target.is_floating_point() and isinstance(ignore_index, int) and ignore_index >= 0:
        fail(fn, "ignore_index", "be left alone where the target is probabilities", ignore_index)
    if weight is not None and tuple(weight.shape) != (input.shape[axis],):
        fail(fn, "weight", f"have shape ({input.shape[axis]},), one number a class", tuple(weight.shape))
    if sample is not None and (
        sample.ndim > len(lead) or any(n not in (1, m) for n, m in zip(sample.shape[::-1], lead[::-1], strict=False))
    ):
        fail(fn, "sample_weight", f"broadcast to shape {lead}", tuple(sample.shape))
    contract.choice(fn, "reduction", reduction, contract.REDUCTIONS)
    number = contract.number
    e, penalty = number(fn, "label_smoothing", smoothing, low=0, high=1), number(fn, "z_loss", z_loss, low=0)
    return axis, (contract.integer(fn, "ignore_index", ignore_index), e, penalty)


def transformed_logits(fn: str, input: Tensor, softcap: float | None, temperature: float) -> Tensor:
    """Return the logits after softcap and temperature."""
    s = truth.logit_transform(fn, temperature, softcap)
    return input if s is None else s(in_compute_dtype(input))
