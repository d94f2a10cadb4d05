"""Laws of the values: losses and gradients, options, precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import definition
from .case import KINDS, Case, any_options, combinations, exact_probabilities, option_values
from .law import (
    Cases,
    at,
    check_both,
    check_gradients,
    check_loss,
    counted,
    law,
    make,
    near,
    right,
)
from .subjects import Subject


def plain(subject: Subject, quick: bool) -> Iterator[Case]:
    shapes = [(1, 2), (3, 5), (5, 17), (2, 130)] + ([] if quick else [(4, 1), (70, 10), (2, 4100), (3, 9001)])
    for rows, classes in shapes:
        for kind in KINDS:
            for dtype in ("float64", "float32"):
                for reduction in subject.reductions:
                    yield make(subject, rows, classes, kind=kind, dtype=dtype, reduction=reduction)


def _optional(count: int) -> Cases:
    def cases(subject: Subject, quick: bool) -> Iterator[Case]:
        for n, names in enumerate(combinations(subject.options, count)):
            soft = "probabilities" in names or not subject.hard
            if soft and "ignore_index" in names:
                continue
            for m, kind in enumerate(("flat", "peaked")):
                reductions = subject.reductions if count == 1 else subject.reductions[(n + m) % len(subject.reductions) :][:1]
                for reduction in reductions:
                    dtype = "float32" if (n + m) % 3 == 2 and not quick else "float64"
                    yield option_values(make(subject, 5, 7, kind=kind, soft=soft, reduction=reduction, dtype=dtype), names)

    return cases


@law("values", plain, must=True)
def the_loss_is_the_definition(subject: Subject, one: Case) -> None:
    """The loss of a row is - sum_k y_k log softmax(z)_k, for flat, peaked and spread logits and every reduction."""
    check_loss(subject, one)


@law("values", plain, "gradients", must=True)
def the_gradient_is_prediction_minus_truth(subject: Subject, one: Case) -> None:
    """The gradient with respect to the logits is softmax(z) - y, times the upstream gradient, here -1.75."""
    check_gradients(subject, one)


def _per_row(subject: Subject, quick: bool) -> Iterator[Case]:
    for kind in KINDS:
        one = make(subject, 5, 7, kind=kind, reduction="none")
        yield replace(one, upstream=np.array([1.0, -2.5, 0.0, 0.375, 7.0]))


@law("values", _per_row, "gradients", "none")
def each_row_has_its_upstream_gradient(subject: Subject, one: Case) -> None:
    """Without a reduction, the gradient of each row is multiplied by the upstream gradient of that row, which may be 0 or negative."""
    check_gradients(subject, one)


@law("values", _optional(1))
def each_option_is_its_definition(subject: Subject, one: Case) -> None:
    """With one option, the loss and the gradients are those of the truth that the option stands for."""
    check_both(subject, one)


@law("values", _optional(2))
def each_pair_of_options_is_its_definition(subject: Subject, one: Case) -> None:
    """With two options, the loss and the gradients are those of the truth that both together stand for."""
    check_both(subject, one)


def _any_options(subject: Subject, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(20261126)
    for n in range(12 if quick else 60):
        soft = not subject.hard or ("probabilities" in subject.options and n % 3 == 0)
        kind, reduction = KINDS[n % 2], subject.reductions[n % len(subject.reductions)]
        one = make(subject, 5, 7, kind=kind, soft=soft, reduction=reduction)
        yield any_options(one, subject.options, rng)


@law("values", _any_options)
def any_combination_of_options_is_its_definition(subject: Subject, one: Case) -> None:
    """With random values of random options, extreme ones among them, the loss and the gradients are those of the truth they stand for."""
    check_both(subject, one)


def _unnormalised(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        one = make(subject, 3, 4, soft=True, reduction=reduction)
        yield replace(one, labels=one.labels * np.array([[0.5], [2.0], [0.0]]))


@law("values", _unnormalised, "probabilities")
def a_truth_need_not_sum_to_1(subject: Subject, one: Case) -> None:
    """If the probabilities sum to p, the gradient is p softmax(z) - y."""
    check_both(subject, one)


def _gaps(subject: Subject, quick: bool) -> Iterator[Case]:
    for dtype, gap in (("float32", 50.0), ("float32", 200.0), ("float64", 1000.0), ("float32", 1e4)):
        yield at(subject, [[0.0, -gap]], [1], dtype)
        yield at(subject, [[-gap, 0.0, -1.0]], [0], dtype)


@law("values", _gaps)
def an_improbable_label_costs_its_gap(subject: Subject, one: Case) -> None:
    """If the label's logit is 50, 200 or 10000 below another, the loss is that gap, and neither infinite nor clipped."""
    check_both(subject, one)


def _offsets(subject: Subject, quick: bool) -> Iterator[Case]:
    for dtype, offset in (("float32", 1e4), ("float32", -1e4), ("float64", 1e8), ("float64", -1e8), ("float32", 1e8)):
        yield at(subject, [[offset, offset]], [0], dtype)
        if offset != 1e8 or dtype == "float64":
            yield at(subject, [[offset, offset - 5, offset - 8]], [1], dtype)


@law("values", _offsets, "logits")
def a_common_offset_changes_nothing(subject: Subject, one: Case) -> None:
    """A number that is added to all logits of a row changes neither its loss nor its gradient."""
    check_both(subject, one)


def _certain(subject: Subject, quick: bool) -> Iterator[Case]:
    for dtype, gaps in (("float32", (12.0, 16.5, 20.0, 60.0)), ("float64", (20.0, 30.0, 40.0, 300.0))):
        for gap in gaps:
            yield at(subject, [[gap, 0.0]], [0], dtype)
            yield at(subject, [[0.25, gap, -0.5]], [1], dtype)


@law("precision", _certain, "exact logits")
def a_loss_near_0_keeps_its_digits(subject: Subject, one: Case) -> None:
    """If the label's logit is 20 above the others, the loss is 2e-9 and not 0: its error is relative to the loss itself."""
    allowed, _ = definition.sharp(one)
    near("loss", subject.run("loss", one)[0], definition.loss(one), allowed)


@law("precision", _certain, "exact logits", "gradients", "labels")
def a_gradient_near_0_keeps_its_digits(subject: Subject, one: Case) -> None:
    """If softmax is near 1 at the label, the label's entry of the gradient is 1 - softmax with all its digits, and not 0."""
    _, allowed = definition.sharp(one)
    found = counted("gradients", subject.run("gradients", one), len(one.inputs))
    for name, got, want, bound in zip(one.inputs, found, definition.gradients(one), allowed, strict=True):
        near(f"gradient by {name}", got, want, bound)


def _narrow(subject: Subject, quick: bool) -> Iterator[Case]:
    for rows, classes in [(2, 3), (5, 33)] + ([] if quick else [(20, 1000)]):
        for kind in ("flat", "peaked"):
            for dtype in ("bfloat16", "float16"):
                for reduction in subject.reductions:
                    one = make(subject, rows, classes, kind=kind, dtype=dtype, reduction=reduction)
                    yield exact_probabilities(one) if one.soft else one
    for (name,) in combinations(subject.options, 1):
        soft = name == "probabilities" or not subject.hard
        if not (soft and name == "ignore_index") and (name == "probabilities" or not subject.hard or right(subject, name)):
            for dtype in ("bfloat16", "float16"):
                one = option_values(make(subject, 5, 7, soft=soft, dtype=dtype), (name,))
                yield exact_probabilities(one) if one.soft else one


@law("precision", _narrow)
def reduced_precision_is_rounded_once(subject: Subject, one: Case) -> None:
    """In bfloat16 and float16 the loss and the gradients are those of float32, rounded to the dtype."""
    check_both(subject, one)
