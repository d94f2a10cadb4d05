"""The public functions for a linear head and its loss: `linear_cross_entropy` and `LinearCrossEntropyLoss`.

They check their arguments, turn the options into the truth of the rows, and choose how the loss is computed. linear_operators.py computes
the rows and their derivatives, a chunk of logits at a time.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from .. import contract
from ..chunks import BUDGET
from ..contract import fail
from ..filtering import FilterStats
from ..kernels import IGNORED, NO_LABEL
from ..linear import filtered, invariant
from . import arguments, compute, distributed, operators
from .arguments import plain, tensor
from .linear_operators import COPIES, Head, Reduction, Settings, reduced_loss, rows
from .loss import Result, cross_entropy
from .modes import PLAIN, differentiated, exporting, readable
from .processes import Shards, my_columns, same_input

FN = "linear_cross_entropy"
OUTPUTS = ("lse", "entropy", "logprob", "correct", "predicted")  # in the order of `Result`
FIELD_OF = dict(zip(OUTPUTS, Result._fields[1:], strict=True))


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Any,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    shift: bool | int = False,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_logprobs: bool = False,
    return_correct: bool = False,
    return_predicted: bool = False,
    check: bool = False,
    budget: int = BUDGET,
    filter_tol: float | None = None,
    filter_stats: FilterStats | None = None,
    batch_invariant: bool = False,
    group: Any = None,
    first_class: int | None = None,
    class_weight: None = None,
) -> Any:
    """Compute the cross-entropy of `logits = input W^T + b` and labels, with the logits computed a chunk of rows at a time.

    With G the gradient with respect to the logits, prediction - truth, the gradients are dX = G W, dW = G^T X and db = sum_i G_i. The
    function has the arguments of `torch.nn.functional.linear_cross_entropy`, and further options.

    Args:
        input: [*rows, D], such as [B, T, D]; float32, float64, bfloat16 or float16.
        linear_weight: W, [C, D].
        target: class indices [*rows]; or probabilities [*rows, C]; or, for distillation, the hidden states and the head of a teacher,
            (input', W') or (input', W', b') with input' [*rows, D'], whose predictions are then the truth. softcap and temperature apply to
            the teacher's logits too, and the teacher gets no gradient. With a `group`, W' and b' have the classes of this process too.
        linear_bias: b, [C].
        weight, reduction, label_smoothing, z_loss, softcap, temperature, sample_weight, return_*, check: as in `cross_entropy`.
        ignore_index: as in `cross_entropy`; None means -100. On the CPU, ignored rows are left out of every matrix product.
        options: None, or torch's `LinearCrossEntropyOptions`, whose batch_chunk_size sets the rows of a chunk.
        shift: True if each position of the last axis of rows predicts the label of the next position, as in language models; n >= 0 if it
            predicts the label n positions on. The results then have n positions less.
        budget: the bytes of logits that are held at once; 64 MiB by default. Larger chunks are faster, because each adds to all of dW.
        filter_tol, filter_stats: the gradient filter, as in `softxent.linear_cross_entropy_and_grad`. It works if the gradients are
            computed in the forward pass, in float32 or float64 on the CPU. In other cases, and in a second backward pass, nothing is left
            out.
        batch_invariant: True if what a row gives, and its gradient, must have the same bits in every batch, budget and number of threads,
            as trainers and samplers of reinforcement learning need it. The matrix products have 128 rows each then, of which the last are
            filled up. The gradients of W and b are sums over the batch. On the CPU, in float32 or float64, for a head that is not divided,
            and for the first derivatives by input, W and b; not with filter_tol.
        group, first_class: as in `cross_entropy`: W and b have the classes of this process, and input and labels are the same in all. The
            gradient of input is added up over the processes. Or W is a DTensor, divided by classes, and input too, of any placements.
        class_weight: the name of weight in softxent's functions for NumPy, which is refused.

    Returns:
        The loss, in the dtype of `input` (float32 under autocast), or a `Result` if a `return_` option is set.

    Raises:
        ValueError, TypeError: if a shape, label, dtype or option does not fit.
        RuntimeError: if `batch_invariant` is True and equal rows of one of torch's products differ.

    Derivatives of any order with respect to input, W, b, weight, sample_weight and probabilities are available, in reverse and forward mode
    and by torch.func. If a gradient is not required, its matrix product is skipped. If W is bfloat16 or float16, its gradient is added up
    in float32.

    Cost: for a scalar loss, the gradients are computed in the forward pass, with three matrix products and `budget` bytes beyond the
    gradients. With a `return_` option, reduction="none" or float16, and under a transform or compiler, they are computed in the backward
    pass, with a fourth product. Every derivative, in every mode, is computed by chunks; only a W of more than two axes needs all logits in
    memory.

    Source: Part 3 of the derivation, and its part on linear heads.
    """
    if class_weight is not None:
        contract.renamed(FN, "class_weight", class_weight, "weight")
    tol, stats = filtered(FN, filter_tol, filter_stats)
    ignore_index = -100 if ignore_index is None else ignore_index
    given = (ignore_index, reduction, label_smoothing, z_loss, temperature, softcap)
    flags = (return_lse, return_entropy, return_logprobs, return_correct, return_predicted)
    shift = shift if isinstance(shift, bool) else contract.integer(FN, "shift", shift, low=0)
    if isinstance(linear_weight, Tensor) and linear_weight.ndim > 2:
        for name, value, default in (("shift", shift, False), ("group", group, None), ("batch_invariant", batch_invariant, False)):
            if value != default:
                fail(FN, name, f"be {default} where linear_weight has more than two axes", value)
        return cross_entropy(
            _of_many_axes(*_tensors(input, linear_weight, linear_bias)), target, weight, None, ignore_index, None, reduction,
            label_smoothing, z_loss=z_loss, softcap=softcap, temperature=temperature, sample_weight=sample_weight, check=check,
            return_lse=return_lse, return_entropy=return_entropy, return_logprobs=return_logprobs, return_correct=return_correct,
            return_predicted=return_predicted,
        )  # fmt: skip
    place = shards = None
    given_too = [t for t in (linear_bias, weight, sample_weight) if t is not None]
    direct = group is None and compute.direct(input, linear_weight, target, *given_too)
    if group is not None or (not direct and distributed.is_dtensor(input, linear_weight)):
        if tol is not None:
            fail(FN, "filter_tol", "be None", "a divided head")
        if group is None and isinstance(target, tuple):
            fail(FN, "target", "be a tensor where linear_weight is a DTensor", "a teacher's head")
        if group is None:
            divided = distributed.head_layout(FN, input, linear_weight, linear_bias, target, weight, sample_weight)
            input, linear_weight, linear_bias, target, weight, sample_weight, place = divided
            place, shards = place.shifted(shift), place.shards
        else:
            distributed.not_divided(FN, "linear_weight", linear_weight, "be a torch.Tensor where a group is given; a DTensor has its own")
            shards = distributed.shards_of_group(FN, group, len(linear_weight), first_class, linear_weight)
            input = same_input(input, shards)
        if check and shards is not None:
            named = {"shape of input": tuple(input.shape), "dtype": input.dtype, "reduction": reduction, "label_smoothing": label_smoothing}
            named |= {"z_loss": z_loss, "softcap": softcap, "temperature": temperature, "budget": budget, "outputs": flags, "shift": shift}
            distributed.check_agreement(FN, shards.group, **named)
    x, w, b = (_cast if direct else _tensors)(input, linear_weight, linear_bias)
    rows_alone = invariant(FN, batch_invariant, filter_tol=filter_tol, group=group)
    asked = (flags, getattr(options, "batch_chunk_size", None), budget, rows_alone, *given)
    if rows_alone and (shards is not None or not x.is_cpu):
        fail(FN, "batch_invariant", "be False for divided heads and on other devices than a CPU", True)
    if direct:
        known = tuple(None if t is None else arguments.known(t) for t in (x, w, b, target, weight, sample_weight))
        o, settings, like = arguments.looked_up(_settled, known, shift, *asked)
        h = _merged(x, w, b, target, NO_TEACHER, sample_weight, shift)
    else:
        teacher = _teacher(target)
        target = None if teacher else target
        for name, t in (("target", target), ("weight", weight), ("sample_weight", sample_weight)):
            if t is not None or (name == "target" and not teacher):
                tensor(FN, name, t, x)
        kinds = arguments.kinds_of(x, w, b, target, weight, sample_weight)
        o, settings = _checked(kinds, arguments.kinds_of(*teacher), shift, shards, *asked)
        h = _merged(x, w, b, target, teacher or NO_TEACHER, sample_weight, shift)
        like = h.x.new_zeros(()).expand(len(h.x), len(h.w))
    seen = like.float() if h.target is None else h.target  # the labels, or what has the shape of a teacher's probabilities
    if check and not h.x.is_cpu and not seen.is_floating_point():
        operators.check_labels(FN, seen, len(h.w) if shards is None else shards.classes, ignore_index)
    divided_or_filtered = shards is not None or place is not None or tol is not None
    whole = not divided_or_filtered and h.teacher[0] is None and not rows_alone and _is_small(like, budget)
    x = _features_of_all_rows(h, ignore_index) if whole else None
    if x is not None:
        found = cross_entropy(
            F.linear(x, h.w, h.b), seen, weight, None, ignore_index, None, reduction, label_smoothing, z_loss=z_loss, softcap=softcap,
            temperature=temperature, sample_weight=h.sample, return_lse=return_lse, return_entropy=return_entropy,
            return_logprobs=return_logprobs, return_correct=return_correct, return_predicted=return_predicted,
        )  # fmt: skip
        return _with_axes_of_rows(found, h.lead)
    eager = direct or (plain(h.x, seen) and type(linear_weight) in PLAIN)
    head, total, ignored = _head(h, like, seen, weight, o, shards)
    head, at = _without_ignored(head, eager, ignored)
    dtype = arguments.result_dtype(input)
    alone = eager and reduction != "none" and settings.outputs == "loss" and not differentiated(seen, weight, h.sample)
    if alone and not (h.x.dtype == torch.float16 and differentiated(*head[:3])):
        if place is None:
            return reduced_loss(head, Reduction(settings, total, dtype, tol, stats))
        weight_of_all = distributed.whole_sum(total, place)
        part = Reduction(settings, weight_of_all if total is None else weight_of_all.to_local(), torch.float64, tol, stats)
        return distributed.whole_sum(reduced_loss(head, part), place).to(dtype)
    found = rows(head, settings)
    if at is not None:
        fill = {"predicted": NO_LABEL}  # in ignored rows
        names = settings.outputs.split()
        found = tuple(t.new_full((len(h.x),), fill.get(name, 0)).index_put((at,), t) for name, t in zip(names, found, strict=True))
    losses, *others = (t.reshape(h.lead) for t in found)
    if shards is None and place is None:
        loss = arguments.reduced(losses, reduction, total, dtype)
    else:
        loss = distributed.reduced(losses, reduction, total, dtype, place)
    more = {}
    for name, t in zip(settings.outputs.split()[1:], others, strict=True):
        of_rows = t if name == "predicted" else t.to(dtype)
        counted = name == "correct"
        more[FIELD_OF[name]] = distributed.whole_sum(t.sum(), place) if counted else distributed.of_all_rows(of_rows, place)
    return Result(loss, **more) if more else loss


_OPTIONS = (linear_cross_entropy.__kwdefaults__ or {}).keys() - {"linear_bias", "class_weight"}


class LinearCrossEntropyLoss(Module):
    """A linear head and its loss as a module: `CrossEntropyLoss()(nn.Linear(D, C)(x), target)` is `LinearCrossEntropyLoss(D, C)(x,
    target)`.

    Its parameters are `weight` [num_classes, in_features] and `bias` [num_classes]. To share the weight of an embedding, assign it to
    `weight`.

    Args:
        in_features: D, the length of a hidden state.
        num_classes: C.
        bias: whether there is a bias.
        device, dtype: of the parameters.
        options: the keyword options of `linear_cross_entropy`. A call of the module may override them.
    """

    def __init__(
        self, in_features: int, num_classes: int, bias: bool = True, *, device: Any = None, dtype: Any = None, class_weight: None = None,
        **options: Any,
    ):  # fmt: skip
        super().__init__()
        if class_weight is not None:
            contract.renamed("LinearCrossEntropyLoss", "class_weight", class_weight, "weight")
        contract.known("LinearCrossEntropyLoss", options, _OPTIONS)
        head = torch.nn.Linear(in_features, num_classes, bias, device, dtype)
        self.weight, self.bias = head.weight, head.bias
        self.options: dict[str, Any] = options

    def forward(self, input: Tensor, target: Any, **options: Any) -> Any:
        return linear_cross_entropy(input, self.weight, target, linear_bias=self.bias, **{**self.options, **options})

    def extra_repr(self) -> str:
        classes, features = self.weight.shape
        return ", ".join([f"{features}, {classes}", f"bias={self.bias is not None}", *(f"{k}={v!r}" for k, v in self.options.items())])


class _Rows(NamedTuple):
    """The checked arguments, with the axes of rows merged into one."""

    x: Tensor  # [N, D]
    w: Tensor  # [C, D]
    b: Tensor | None
    target: Tensor | None  # [N] labels or [N, C] probabilities
    teacher: tuple[Tensor | None, Tensor | None, Tensor | None]  # x' [N, D'], W', b'
    sample: Tensor | None  # [N]
    lead: torch.Size


NO_TEACHER: tuple[Any, Any, Any] = (None, None, None)
_OF_TEACHER = tuple(f"teacher's {name}" for name in contract.TORCH_HEAD)


def _merged(x: Any, w: Any, b: Any, y: Any, teacher: tuple[Any, Any, Any], sample: Any, shift: int) -> _Rows:
    """Merge the axes of rows of checked arguments, and leave out the places for which a shift has no label."""
    tx, *of_teacher = teacher
    lead = x.shape[:-1]
    each = sample if sample is None or sample.shape == lead else sample.expand(lead)
    if shift:
        at, places = len(lead) - 1, max(0, lead[-1] - shift)
        x, tx = x.narrow(at, 0, places), None if tx is None else tx.narrow(at, 0, places)
        y, each = (None if t is None else t.narrow(at, min(int(shift), lead[-1]), places) for t in (y, each))
        lead = x.shape[:-1]
    if len(lead) != 1:
        n = math.prod(lead)
        x, tx = (None if t is None else t.reshape(n, t.shape[-1]) for t in (x, tx))
        y = None if y is None else y.reshape((n, len(w)) if y.is_floating_point() else (n,))
        each = None if each is None else each.reshape(n)
    return _Rows(x, w, b, y, (tx, *of_teacher), each, lead)


@lru_cache(maxsize=1024, typed=True)
def _settled(known: tuple[Any, ...], shift: int, *given: Any) -> tuple[arguments.Options, Settings, Tensor]:
    """Check shapes, dtypes and options, those of calls before in a microsecond.

    Also returns a tensor with the shape and dtype of the logits, which needs no memory.
    """
    x, w, b, target, weight, sample = (None if a is None else torch.empty(a[0], dtype=a[1], device="meta") for a in known)
    o, settings = _checked(arguments.kinds_of(x, w, b, target, weight, sample), (), shift, None, *given)
    h = _merged(x, w, b, target, NO_TEACHER, sample, shift)
    return o, settings, h.x.new_zeros(()).expand(len(h.x), len(h.w))


def _checked(
    kinds: tuple[Any, ...], teacher: tuple[Any, ...], shift: int, shards: Shards | None, flags: tuple[bool, ...], rows_of_a_chunk: Any,
    budget: int, batch_invariant: bool, *given: Any,
) -> tuple[arguments.Options, Settings]:  # fmt: skip
    """Check shapes, dtypes and options of the arguments and of a teacher's head. W may have no class, if others have them."""
    x, w, b, target, weight, sample = kinds
    logits = contract.check_head(FN, contract.TORCH_HEAD, x, w, b, empty=shards is not None)
    *lead, classes = logits.shape
    if teacher:
        of_teacher = contract.check_head(FN, _OF_TEACHER, *teacher, empty=shards is not None)
        if of_teacher.shape[:-1] != logits.shape[:-1]:
            expected = f"have shape {(*lead, *teacher[0].shape[-1:])} to match input {x.shape}"
            fail(FN, "teacher's input", expected, teacher[0].shape)
        if of_teacher.shape[-1] != classes:
            fail(FN, "teacher's weight", f"have {classes} classes as linear_weight", of_teacher.shape[-1])
    _, probable = arguments.check(FN, contract.TORCH_LINEAR, contract.Kinds(logits, target, weight, sample), -1, given[0], shards)
    if shift and not lead:
        fail(FN, "shift", "be False for an input without rows", shift)
    o = arguments.options(FN, *given)
    outputs = ("loss", *(name for name, flag in zip(OUTPUTS, flags, strict=True) if flag))
    if "logprob" in outputs and (probable or teacher):
        fail(FN, "return_logprobs", "be False where the target is not class indices", True)
    budget = contract.integer(FN, "budget", budget, low=1)
    bits = int(x.dtype[-2:])
    if isinstance(rows_of_a_chunk, int) and rows_of_a_chunk > 0:
        budget = rows_of_a_chunk * classes * bits // 8
    if batch_invariant and bits < 32:
        fail(FN, "input", "be float32 or float64 where batch_invariant is True", x.dtype, TypeError)
    return o, Settings(o.temperature, o.cap, " ".join(outputs), budget, batch_invariant, shards or ())


def _teacher(target: Any) -> tuple[Any, ...]:
    """Return the x, W and b of a teacher, if the target is one."""
    if not isinstance(target, tuple):
        return ()
    if len(target) not in (2, 3):
        fail(FN, "target", "be a tensor, or (input, weight) or (input, weight, bias) of a teacher", f"a tuple of {len(target)}", TypeError)
    return tuple(None if t is None else t.detach() for t in _tensors(*(*target, None)[:3], whose="teacher's "))


def _tensors(input: Any, weight: Any, bias: Any, *, whose: str = "") -> tuple[Any, Any, Any]:
    """Check that a head's arguments are tensors, and return them in one type."""
    for name, t in (("input", input), ("linear_weight", weight), ("linear_bias", bias)):
        if t is not None or name != "linear_bias":
            tensor(FN, whose + name, t, input)
    return _cast(input, weight, bias)


def _cast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, Any, Any]:
    """Return a head's arguments in one type: that of autocast, if it is enabled, as nn.Linear would."""
    device = "cpu" if input.is_cpu else input.device.type  # the first is quick
    if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
        to = torch.get_autocast_dtype(device)
        return input.to(to), weight.to(to), None if bias is None else bias.to(to)
    return input, weight, bias


def _of_many_axes(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Return the logits [N, C, d1, ...] of a W [C, d1, ..., D]."""
    z = F.linear(x, w.flatten(0, -2), None if b is None else b.flatten())
    return z.reshape(*x.shape[:-1], *w.shape[:-1])


def _is_small(logits: Tensor, budget: int) -> bool:
    """Whether all logits are one chunk, and the budget has room for what their derivatives hold. An exporter would restrict the shapes."""
    return not exporting() and COPIES * logits.numel() * logits.element_size() <= budget


def _features_of_all_rows(h: _Rows, ignore_index: int) -> Tensor | None:
    """Return x with 0 in ignored rows, where the labels cannot be read; None if rows are ignored, and can be left out of every product."""
    if h.target is None or h.target.is_floating_point():
        return h.x
    if not h.target.is_cpu or not readable(h.target):
        return h.x.masked_fill((h.target == ignore_index)[:, None], 0)
    return None if operators.labelled(FN, h.target, len(h.w), ignore_index)[1] else h.x


def _with_axes_of_rows(found: Any, lead: torch.Size) -> Any:
    """Return results of N rows with the axes of the rows."""
    if isinstance(found, Result):
        of_rows: list[Any] = [None if t is None else _with_axes_of_rows(t, lead) for t in found]
        return Result(*of_rows)
    return found if found.ndim == 0 or len(lead) == 1 else found.reshape(lead)


def _head(
    h: _Rows, like: Tensor, seen: Tensor, weight: Tensor | None, o: arguments.Options, shards: Shards | None
) -> tuple[Head, Tensor | None, int | None]:
    """Return the head with the truth of its rows, for a mean the sum of their weights, and how many are ignored, if that is known.

    Probabilities are not copied: class weights and label smoothing are applied to a chunk of them at a time.
    """
    scale = shift = None
    if not seen.is_floating_point():
        t, total, ignored = arguments.truth_of(FN, like, seen, weight, h.sample, 1, o, shards)
    else:
        given = arguments.Options(o.ignore_index, o.reduction, 0.0, o.z_loss, o.temperature, o.cap)
        t, total, ignored = arguments.truth_of(FN, like, seen, None, h.sample, 1, given, shards)
        classes = len(h.w) if shards is None else shards.classes
        weight = weight if weight is None or shards is None else my_columns(weight, shards)
        scale, shift = arguments.scale_and_shift(weight, o.label_smoothing, classes, seen.device)
    off = t.off if isinstance(t.off, Tensor) and h.target is not None else None
    return Head(h.x, h.w, h.b, t.label, t.y, t.r, t.q, off, scale, shift, *h.teacher), total, ignored


def _without_ignored(head: Head, eager: bool, ignored: int | None) -> tuple[Head, Tensor | None]:
    """Return the head without the ignored rows, and the indices of the rows that remain (None if no row was left out).

    Rows are left out of ordinary CPU tensors only. For other tensors x is set to 0 in the ignored rows.
    """
    if not eager or not head.x.is_cpu:
        others: list[Any]
        x, *others = head
        return Head(x.masked_fill((head.label == IGNORED)[:, None], 0), *others), None
    if not ignored:
        return head, None
    at = (head.label != IGNORED).nonzero()[:, 0]
    return head.rows(at), at
