"""The public functions for logits that are given as a tensor: `cross_entropy`, `CrossEntropyLoss`, `log_softmax` and `logsumexp`.

arguments.py checks their arguments and turns the options into numbers. loss_and_gradient.py computes a loss with its gradient, and
operators.py what else the rows give, with derivatives of any order.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .. import contract
from ..call import Call, Static
from ..contract import fail, renamed
from . import arguments, compute, distributed, loss_and_gradient, modes, operators, private
from .arguments import plain, tensor
from .loss_and_gradient import FN, ONLY_LOSS, Given
from .loss_and_gradient import Result as Result


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_logprobs: bool = False,
    return_correct: bool = False,
    return_predicted: bool = False,
    check: bool = False,
    group: Any = None,
    first_class: int | None = None,
    class_weight: None = None,
) -> Any:
    """Compute the softmax cross-entropy of logits and labels; replaces `torch.nn.functional.cross_entropy`.

    The loss of a row is `- sum_k y_k log softmax(z)_k = mass * lse(z) - <y, z>`, where z are its logits, y its truth (the target
    probabilities), mass the sum of y, and lse(z) = log sum_k exp(z_k). Its gradient is `mass * softmax(z) - y`.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...]; float32, float64, bfloat16 or float16, with any strides. Or a DTensor of any
            placements; the other tensors are then DTensors too, or the same in all processes.
        target: class indices, with the shape of `input` without the class axis, or probabilities with the shape of `input`.
        weight, ignore_index, reduction, label_smoothing, size_average, reduce: as in torch.
        z_loss: L >= 0; adds L lse(z)^2 to each row that is not ignored.
        softcap: c > 0; the logits become c tanh(z / c).
        temperature: T > 0; divides the logits, after the softcap.
        sample_weight: broadcasts to the rows; multiplies the loss of each row. A mean is divided by the sum of the weights.
        return_lse, return_entropy, return_logprobs: also return lse(z), the entropy of the prediction, or log softmax(z) at the label, for
            each row. They are differentiable, and 0 for ignored rows.
        return_correct: also return the number of rows whose most probable class is the label. A tie counts, an ignored row does not.
        return_predicted: also return the most probable class of each row, int64; of several, the first. It is -1 for ignored rows, and any
            class where a logit is NaN.
        check: on a GPU, wait for the labels and raise an error if one is out of range (not under torch.compile). Otherwise the loss and the
            gradient of its row are NaN. On the CPU, labels are always checked. Of classes in shards, also raise an error in all processes
            if their arguments differ.
        group: a process group among which the classes are divided: `input`, and probabilities, have the classes of this process. Labels and
            weights are those of all classes, and the same in all processes. So is the result.
        first_class: the index of the first class of this process; None if all processes have equally many, in the order of ranks.
        class_weight: the name of weight in softxent's functions for NumPy, which is refused.

    Returns:
        The loss, in the dtype of `input` (float32 under autocast), or a `Result` if a `return_` option is set.

    Raises:
        ValueError, TypeError: if a shape, label, dtype or option does not fit.

    Derivatives of any order are computed from closed formulas: backward, double backward and higher, forward mode, and torch.func. `input`
    is never written to.

    Cost: a scalar loss and its gradient are computed in the forward pass, in one pass over the logits. The gradient, an array of the size
    of `input`, is kept until the backward pass. Beyond it, O(rows) bytes.

    Source: Parts 1 to 3 of the derivation.
    """
    if size_average is not None or reduce is not None:
        reduction = private.legacy_reduction(size_average, reduce)
    if class_weight is not None:
        renamed(FN, "class_weight", class_weight, "weight")
    wanted = ONLY_LOSS
    if return_lse or return_logprobs or return_entropy or return_correct or return_predicted:
        wanted = (return_lse, return_logprobs, return_entropy, return_correct, return_predicted)
    given = (ignore_index, reduction, label_smoothing, z_loss, temperature, softcap)
    others: tuple[Tensor, ...] = ()
    if weight is not None or sample_weight is not None:
        others = tuple(t for t in (weight, sample_weight) if t is not None)
    if group is None and compute.direct(input, target, *others) and not (return_logprobs and target.is_floating_point()):
        if not (others or target.requires_grad) or not modes.differentiated(target, *others):
            settled = arguments.settled(FN, input, target, weight, sample_weight, *given)
            return loss_and_gradient.result(input, Given(target, weight, sample_weight, settled, wanted, arguments.result_dtype(input)))
    eager = plain(input, target)
    if group is not None or (not eager and distributed.is_dtensor(input, target)):
        return _distributed(input, target, weight, sample_weight, given, wanted, check, group, first_class)
    axis = arguments.class_axis(FN, input, target, weight, sample_weight, ignore_index)
    options = arguments.options(FN, *given)
    if check and not input.is_cpu and not target.is_floating_point():
        operators.check_labels(FN, target, input.shape[axis], options.ignore_index)
    if eager and not any(wanted) and plain(*others) and not modes.differentiated(target, *others):
        dtype = arguments.result_dtype(input)
        return loss_and_gradient.result(input, Given(target, weight, sample_weight, arguments.checked(axis, options), wanted, dtype))
    if return_logprobs and target.is_floating_point():
        fail(FN, "return_logprobs", "be False where the target is probabilities", True)
    if not any(wanted) and reduction != "none" and loss_and_gradient.are_constant(input, target, *others):
        return loss_and_gradient.reduced(input, target, weight, sample_weight, *given)
    call, total, _ = arguments.truth_of(FN, input, target, weight, sample_weight, axis, options)
    losses, *rows = operators.rows(call, Static(options.temperature, options.cap, axis), _outputs(wanted))
    dtype = arguments.result_dtype(input)
    return _result(arguments.reduced(losses, reduction, total, dtype), rows, wanted, dtype, None)


def _distributed(
    input: Any, target: Any, weight: Any, sample: Any, given: tuple[Any, ...], wanted: tuple[bool, ...], check: bool, group: Any,
    first_class: int | None,
) -> Any:  # fmt: skip
    """Compute the loss of logits that are divided among processes."""
    options = arguments.options(FN, *given)
    axis, place, shards, reduction = min(1, input.ndim - 1), None, None, options.reduction
    if group is None:
        if not distributed.is_dtensor(input):
            fail(FN, "input", "be a DTensor as target is", type(input).__name__, TypeError)
        input, place = distributed.layout(input, axis)
        target = place.local(target, place.logits if target.is_floating_point() else place.rows)
        weight, sample, shards = place.class_weight(weight), place.local_sample(sample), place.shards
    else:
        distributed.not_divided(FN, "input", input, "be a torch.Tensor where a group is given; a DTensor has its own")
        shards = distributed.shards_of_group(FN, group, input.shape[axis], first_class, input)
    if check and shards is not None:
        shapes = {"shape of input": tuple(n for i, n in enumerate(input.shape) if i != axis), "dtype": input.dtype}
        distributed.check_agreement(FN, shards.group, **shapes, options=tuple(options), outputs=wanted)
    arguments.class_axis(FN, input, target, weight, sample, options.ignore_index, shards)
    if wanted[1] and target.is_floating_point():
        fail(FN, "return_logprobs", "be False where the target is probabilities", True)
    call, total, _ = arguments.truth_of(FN, input, target, weight, sample, axis, options, shards)
    of_truth = [t for t in (target, weight, sample) if t is not None]
    if shards is None and reduction != "none" and not any(wanted) and plain(input, *of_truth) and not modes.differentiated(*of_truth):
        divisor = call.y.new_ones(()) if total is None else distributed.whole_sum(total, place).to_local()
        part = Given(target, weight, sample, arguments.checked(axis, options), ONLY_LOSS, torch.float64, divisor)
        loss = distributed.whole_sum(loss_and_gradient.result(input, part, (call, divisor)), place)
        return loss.to(arguments.result_dtype(input))
    losses, *rows = operators.rows(call, Static(options.temperature, options.cap, axis, shards or ()), _outputs(wanted))
    dtype = arguments.result_dtype(input)
    return _result(distributed.reduced(losses, reduction, total, dtype, place), rows, wanted, dtype, place)


def _outputs(wanted: tuple[bool, ...]) -> int:
    """Return how many of compute.OUTPUTS are computed."""
    return compute.outputs_for([name for name, want in zip(compute.OUTPUTS[1:], wanted, strict=True) if want])


def _result(loss: Any, rows: list[Tensor], wanted: tuple[bool, ...], dtype: torch.dtype, place: distributed.Layout | None) -> Any:
    """Return the loss, or a `Result` with what is wanted of the rows."""
    if not any(wanted):
        return loss
    lse, logprobs, entropy, correct, predicted = (t if want else None for t, want in zip_longest(rows, wanted))
    lse, entropy, logprobs = (t if t is None else distributed.of_all_rows(t.to(dtype), place) for t in (lse, entropy, logprobs))
    correct = correct if correct is None else distributed.whole_sum(correct.sum(), place)
    return Result(loss, lse, entropy, logprobs, correct, predicted if predicted is None else distributed.of_all_rows(predicted, place))


class CrossEntropyLoss(Module):
    """`cross_entropy` as a module; replaces `torch.nn.CrossEntropyLoss`.

    Args:
        weight, size_average, ignore_index, reduce, reduction, label_smoothing: as in `torch.nn.CrossEntropyLoss`.
        z_loss, softcap, ..., check: as in `cross_entropy`.
    """

    def __init__(
        self, weight: Tensor | None = None, size_average: bool | None = None, ignore_index: int = -100, reduce: bool | None = None,
        reduction: str = "mean", label_smoothing: float = 0.0, *, z_loss: float = 0.0,
        softcap: float | None = None, temperature: float = 1.0,
        return_lse: bool = False, return_entropy: bool = False, return_logprobs: bool = False, return_correct: bool = False,
        return_predicted: bool = False, check: bool = False, class_weight: None = None,
    ):  # fmt: skip
        super().__init__()
        if class_weight is not None:
            renamed("CrossEntropyLoss", "class_weight", class_weight, "weight")
        options = {"z_loss": z_loss, "softcap": softcap, "temperature": temperature, "return_lse": return_lse}
        options |= {"return_entropy": return_entropy, "return_logprobs": return_logprobs, "return_correct": return_correct}
        options |= {"return_predicted": return_predicted, "check": check}
        if size_average is not None or reduce is not None:
            reduction = private.legacy_reduction(size_average, reduce)
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing
        self.options: dict[str, Any] = options

    def forward(self, input: Tensor, target: Tensor) -> Any:
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction, label_smoothing=self.label_smoothing,
            **self.options,
        )  # fmt: skip


def logsumexp(input: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Compute log-sum-exp over one axis, `lse(z) = log sum_k exp(z_k)`, as `torch.logsumexp` does. Its gradient is softmax.

    Args:
        input: float32, float64, bfloat16 or float16, of any shape with at least one axis. Or a DTensor of any placements.
        dim: the axis.
        keepdim: whether the result keeps the axis, with length 1.

    Returns:
        A tensor with the dtype of `input`. Of a DTensor, a DTensor.

    Raises:
        ValueError, TypeError: if the dtype or the axis does not fit.

    Cost: one read and O(rows) bytes; derivatives of any order, as in `cross_entropy`.
    """
    if _on_axis("logsumexp", input, dim):
        return torch.logsumexp(input, dim, keepdim)
    local, place = _of_this_process(input, dim)
    lse = operators.rows(Call(local), _static(local, dim, place))[1]
    found: Tensor = distributed.of_all_rows(lse.to(local.dtype), place)
    return found.unsqueeze(dim) if keepdim else found


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """Compute the logarithm of softmax over one axis, `log softmax(z)_k = z_k - lse(z)`, as `torch.log_softmax` does.

    It is computed as (z_k - max z) - (lse - max z), so that values near 0 keep their digits.

    Args:
        input: float32, float64, bfloat16 or float16, of any shape with at least one axis. Or a DTensor of any placements.
        dim: the axis.

    Returns:
        A tensor with the shape and dtype of `input`. Of a DTensor, a DTensor with its placements.

    Raises:
        ValueError, TypeError: if the dtype or the axis does not fit.

    Cost: two reads and one write; derivatives of any order, as in `cross_entropy`.
    """
    if _on_axis("log_softmax", input, dim):
        return torch.log_softmax(input, dim)
    local, place = _of_this_process(input, dim)
    found = operators.log_softmax(Call(local, y=1.0), _static(local, dim, place))
    return found if place is None else place.of_logits(found, input.shape)


def _of_this_process(input: Any, dim: int) -> tuple[Tensor, distributed.Layout | None]:
    """Return the logits of this process, and their layout if they are a DTensor."""
    return distributed.layout(input, dim % input.ndim) if distributed.is_dtensor(input) else (input, None)


def _static(local: Tensor, dim: int, place: distributed.Layout | None) -> Static:
    return Static(axis=dim % local.ndim, shards=(place and place.shards) or ())


def _on_axis(fn: str, input: Tensor, dim: int) -> bool:
    """Raise an error if the input has no such axis. Returns whether the axis is empty; torch's own function is used then."""
    tensor(fn, "input", input, input)
    shape, dtype = arguments.kind(input.shape, input.dtype)
    contract.float_dtype(fn, "input", dtype)
    return not shape[contract.class_axis(fn, "input", shape, dim, "dim", classes=1)]
