"""The public function for a linear head and its loss. It checks the arguments and turns the options into the truth of the rows.

linear_operators.py computes the rows and their derivatives, a chunk of logits at a time.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from .. import contract
from ..call import Static
from ..chunks import BUDGET, chunk_rows
from ..contract import NUMPY_LINEAR
from . import arguments, devices
from .call import operands
from .linear_operators import Head, head_mean, head_rows
from .private import varies_over

FN = "linear_cross_entropy"


def linear_cross_entropy(
    x: Any,
    weight: Any,
    labels: Any,
    *,
    bias: Any = None,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: Any = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_logprobs: bool = False,
    return_correct: bool = False,
    return_predicted: bool = False,
    check: bool = False,
    budget: int = BUDGET,
    axis_name: str | tuple[str, ...] | None = None,
) -> Any:
    """Compute the cross-entropy of `logits = x W^T + b` and labels, with the logits computed a chunk of rows at a time.

    With G the gradient with respect to the logits, prediction - truth, the gradients are dX = G W, dW = G^T X and db = sum_i G_i.

    Args:
        x: [*rows, D], such as [B, T, D]; float32, float64, bfloat16 or float16.
        weight: W, [C, D], of the dtype of `x`. A kernel [D, C], as Flax has it, is passed as `kernel.T`.
        labels: class indices [*rows], or probabilities [*rows, C].
        bias: b, [C].
        class_weight, ..., check: as in `cross_entropy`.
        budget: the bytes of logits that are held at once; 64 MiB by default. Larger chunks are faster, because each adds to all of dW.
        axis_name: as in `cross_entropy`: `weight` and `bias` have the classes of this device, and `x` is the same on all devices along
            these axes. The gradient by `x` is added up over them.

    Returns:
        The loss in the dtype of `x`, or a `Result`.

    Raises:
        ValueError, TypeError: if a shape, dtype or option does not fit.

    All transforms of JAX can be applied, in any order, and every derivative is computed by chunks.

    Cost: for a scalar loss, the gradients are computed in the forward pass, with three matrix products and `budget` bytes beyond the
    gradients. If x or W is not differentiated, its product is skipped. With a `return_` option, reduction="none" or float16, the gradients
    are computed in the backward pass, with a fourth product.

    Source: Part 3 of the derivation, and its part on linear heads.
    """
    names = arguments.names_of(FN, axis_name)
    given = arguments.options(FN, ignore_index, reduction, label_smoothing, z_loss, temperature, softcap)
    contract.integer(FN, "budget", budget, low=1)
    head, lead, logits = _head(x, weight, bias)
    rows, classes = math.prod(lead), len(head.w)
    of_all = devices.classes_of(names, classes)
    t, w, sample = arguments.check(FN, NUMPY_LINEAR, logits, -1, labels, class_weight, sample_weight, of_all)
    arguments.check_devices(FN, names, {"weight": head.w, "bias": head.b}, t, w, sample)
    devices.check_divided(FN, names, {}, {"x": head.x})
    sample = None if sample is None else jnp.broadcast_to(sample, lead).reshape(rows)
    like = jax.ShapeDtypeStruct((rows, classes), head.x.dtype)
    call, total = arguments.call_of(FN, like, t.reshape(rows, *t.shape[len(lead) :]), w, sample, given, check, names)
    over = varies_over(*head, *operands(call._replace(z=0.0))[0])
    head = Head(*(None if a is None else devices.cast(a, over) for a in head))
    call, total = devices.varying(call._replace(z=0.0), names, over), devices.cast(total, over.difference(names))
    step = max(1, chunk_rows(rows, classes * head.x.dtype.itemsize, budget))
    wanted = arguments.wanted(
        lse=return_lse, logprob=return_logprobs, entropy=return_entropy, correct=return_correct, predicted=return_predicted
    )
    static = Static(given.temperature, given.cap, shards=names)
    if arguments.in_one_pass(given.reduction, wanted, head.x.dtype):
        arrays, fixed = operands(call)
        return head_mean(fixed, static, step, head, arrays, arguments.divisor(given.reduction, total)).astype(head.x.dtype)
    found = head_rows(head, call, static, arguments.needed(wanted), step)
    return arguments.results([a.reshape(lead) for a in found], total, given.reduction, wanted, head.x.dtype)


def _head(x: Any, weight: Any, bias: Any) -> tuple[Head, tuple[int, ...], contract.Kind]:
    """Check the head. Returns it with its rows on one axis, the shape of the rows, and what its logits are."""
    a, w, b = (
        arguments.array(FN, "x", x),
        arguments.array(FN, "weight", weight),
        None if bias is None else arguments.array(FN, "bias", bias),
    )
    logits = contract.check_head(FN, contract.HEAD, arguments.kind(a), arguments.kind(w), None if b is None else arguments.kind(b))
    return Head(a.reshape(-1, a.shape[-1]), w, None if b is None else b.astype(a.dtype)), a.shape[:-1], logits
