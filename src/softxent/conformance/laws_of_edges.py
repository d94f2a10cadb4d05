"""Laws of edge cases: masked classes, NaN, ignored rows, labels out of range, empty batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import definition
from .case import Case
from .dialects import CallError
from .law import (
    Broken,
    at,
    check_both,
    check_gradients,
    check_loss,
    law,
    make,
    near,
    text,
)
from .subjects import Subject


def _masked(subject: Subject, quick: bool) -> Iterator[Case]:
    for dtype in ("float64", "float32"):
        yield at(subject, [[-np.inf, 1.0, 0.5], [0.25, 1.0, -np.inf]], [1, 0], dtype)


@law("edges", _masked)
def a_masked_class_has_no_part(subject: Subject, one: Case) -> None:
    """A class whose logit is -inf has softmax 0 and gradient 0, and a truth of 0 times its log-probability counts 0."""
    check_loss(subject, one)
    check_gradients(subject, one, names="zb")


def _masked_soft(subject: Subject, quick: bool) -> Iterator[Case]:
    one = at(subject, [[-np.inf, 1.0, 0.5], [0.25, 1.0, -np.inf]], [1, 0], "float64")
    yield replace(one, labels=np.array([[0.0, 0.75, 0.25], [0.5, 0.5, 0.0]])[: one.rows])


@law("edges", _masked_soft, "probabilities")
def a_masked_class_of_probability_0_has_no_part(subject: Subject, one: Case) -> None:
    """Where the truth is probabilities, a class with logit -inf and probability 0 adds 0 to the loss, and not NaN."""
    check_loss(subject, one)
    check_gradients(subject, one, names="zb")


def _masked_label(subject: Subject, quick: bool) -> Iterator[Case]:
    yield at(subject, [[-np.inf, 1.0, 0.5]], [0], "float64")


@law("edges", _masked_label, "labels")
def a_masked_label_costs_infinity(subject: Subject, one: Case) -> None:
    """If the logit of the label is -inf, the loss is +inf, and the gradient is softmax(z) - y all the same."""
    near("loss", subject.run("loss", one)[0], definition.loss(one), 0)
    check_gradients(subject, one, names="zb")


def _nan_row(subject: Subject, quick: bool) -> Iterator[Case]:
    for bad in (np.nan, -np.inf):
        one = make(subject, 3, 4, reduction="none")
        one.inputs["x" if subject.linear else "z"][1] = bad if not subject.linear else np.nan
        yield one


@law("edges", _nan_row, "none")
def a_row_of_NaN_is_alone(subject: Subject, one: Case) -> None:
    """A row that holds NaN, or -inf only, has a loss of NaN, and the losses and gradients of the other rows are as without it."""
    others = np.arange(one.rows) != 1
    fine = replace(one, inputs={name: np.nan_to_num(a, neginf=0.0) for name, a in one.inputs.items()})
    got, want = subject.run("loss", one)[0], subject.run("loss", fine)[0]
    if one.rows == 3:
        near("loss", got[1:2], np.array([np.nan]), 0)
        near("loss of the other rows", got[others], want[others], definition.tolerance(fine)[0][others])
        if "gradients" in subject.can and not subject.linear:
            got, want = subject.run("gradients", one)[0], subject.run("gradients", fine)[0]
            near("gradient of the other rows", got[others], want[others], definition.tolerance(fine)[1][0][others])


def _ignored(subject: Subject, quick: bool) -> Iterator[Case]:
    for index in (-100, 0, 2, -1, 255) if not quick else (-100, 0):
        for reduction in subject.reductions:
            one = make(subject, 4, 3, reduction=reduction)
            labels = np.where(np.arange(4) % 2 == 1, index, np.where(one.labels == index, 1, one.labels))
            yield replace(one.with_options(ignore_index=index), labels=labels)


def _ignored_or_near(subject: Subject, quick: bool) -> Iterator[Case]:
    yield from _ignored(subject, quick)
    if subject.dialect.name != "numpy":
        one = make(subject, 4, 259, dtype="bfloat16")  # which has 256 and 258, and rounds 257 to 256
        yield replace(one.with_options(ignore_index=257), labels=np.array([256, 257, 258, 0]))


@law("edges", _ignored_or_near, "ignore_index", "labels")
def an_ignored_row_counts_for_nothing(subject: Subject, one: Case) -> None:
    """A row whose label is ignore_index, a class or not, has loss 0 and gradient 0, and does not count in a mean."""
    if one.dtype != "bfloat16":  # how it rounds is another law
        check_both(subject, one)
    if "gradients" in subject.can:
        counts = subject.run("gradients", one)[0].any(axis=1).astype(float)
        near("whether a row has a gradient", counts, (one.labels != one.options["ignore_index"]).astype(float), 0)


@law("edges", _ignored, "ignore_index", "labels")
def an_ignored_row_may_hold_NaN(subject: Subject, one: Case) -> None:
    """The logits of an ignored row may be NaN: the loss and all gradients are as if they were not."""
    name = "x" if subject.linear else "z"
    ignored = one.labels == one.options.get("ignore_index", -100)
    spoilt = replace(one, inputs=one.inputs | {name: np.where(ignored[:, None], np.nan, one.inputs[name])})
    check_both(subject, spoilt, of=one)


def _all_ignored(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        one = make(subject, 2, 3, reduction=reduction).with_options(ignore_index=-100)
        yield replace(one, labels=np.full(2, -100))


@law("edges", _all_ignored, "ignore_index", "labels")
def all_rows_may_be_ignored(subject: Subject, one: Case) -> None:
    """If all rows are ignored, their losses, their sum and its gradient are 0, and a mean is NaN or 0, without an error."""
    try:
        got = subject.run("loss", one)[0]
        gradients = subject.run("gradients", one) if "gradients" in subject.can else []
    except CallError as error:
        raise Broken("the call", "a result", error) from error
    for what, a in [("loss", got), *(("gradient", g) for g in gradients)]:
        zero = (a == 0) | (np.isnan(a) & (one.options["reduction"] == "mean"))
        if not zero.all():
            raise Broken(what, 0, text(a[~zero][0]))


def _outside(subject: Subject, quick: bool) -> Iterator[Case]:
    for wrong in (3, -1, 1000) if not quick else (3, -1):
        for reduction in subject.reductions:
            one = make(subject, 2, 3, reduction=reduction)
            yield replace(one, labels=np.array([0, wrong]))


@law("edges", _outside, "a label check")
def a_label_out_of_range_is_refused(subject: Subject, one: Case) -> None:
    """A label that is no class, and is not ignored, raises an error or makes the loss NaN: it is no loss of another class."""
    valid = (one.labels >= 0) & (one.labels < one.classes) | (one.labels == one.options.get("ignore_index", -100))
    if valid.all():
        return
    try:
        got = subject.run("loss", one)[0]
        gradients = subject.run("gradients", one)[0] if "gradients" in subject.can and not subject.linear else np.array([np.nan])
    except CallError:
        return
    where = ~valid if got.ndim else ()
    if not np.isnan(got[where]).all():
        raise Broken("loss", "an error or NaN", got)
    if not np.isnan(gradients).any():
        raise Broken("gradient", "an error or NaN", gradients.tolist())


def _no_rows(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        if reduction != "mean":
            yield make(subject, 2, 3, reduction=reduction).with_rows(slice(0, 0))


@law("edges", _no_rows)
def there_may_be_no_rows(subject: Subject, one: Case) -> None:
    """A batch of no rows has no losses, and a sum of 0."""
    check_both(subject, one)


def _one_class(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        yield make(subject, 2, 1, reduction=reduction)


@law("edges", _one_class)
def one_class_costs_nothing(subject: Subject, one: Case) -> None:
    """With a single class, the loss and the gradient are 0."""
    check_both(subject, one)
