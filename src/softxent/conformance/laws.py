"""The laws: statements that hold for every right implementation of softmax cross-entropy, each with the cases that it is tried on.

A law is a function of a subject and a case that raises `Broken` where its statement does not hold. Its docstring is the statement. `needs`
names what the subject must have for the law to apply: a mode of its dialect ("gradients", "jvp", ...), an option, "logits" (and not a
linear head), "labels" or "probabilities", a reduction.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..partials import Array
from . import definition
from .case import ARRAYS, KINDS, Case, case, combinations, option_values
from .subjects import CallError, Subject

Cases = Callable[[Subject, bool], Iterator[Case]]


class Broken(Exception):
    """A statement that does not hold: what was compared, what it must be, and what it is."""

    def __init__(self, what: str, expected: Any, got: Any) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")
        self.what, self.expected, self.got = what, str(expected), str(got)


class Law(NamedTuple):
    """A law, as `law` makes it from a function."""

    name: str
    statement: str
    holds: Callable[[Subject, Case], None]
    cases: Cases
    needs: frozenset[str]
    group: str
    must: bool  # whether the subject must support it: an error that it raises breaks the law, and does not merely refuse
    shrinks: bool  # whether smaller cases are tried, once one breaks it

    def missing(self, subject: Subject) -> list[str]:
        """Return what the subject lacks for the law to apply."""
        has = subject.can | subject.options | set(subject.reductions) | ({"linear"} if subject.linear else set())
        has |= {"labels"} if subject.hard else set()
        has |= {"a label check"} if subject.hard and not subject.log_softmax else set()
        has |= {"logits"} if not subject.linear and subject.dialect.name != "sklearn" else set()
        return sorted(self.needs - has)


LAWS: dict[str, Law] = {}


def law(
    group: str, cases: Cases, *needs: str, must: bool = False, shrinks: bool = True
) -> Callable[[Callable[[Subject, Case], None]], Law]:
    """Make a law of a function, whose docstring is its statement."""

    def made(f: Callable[[Subject, Case], None]) -> Law:
        name = f.__name__.replace("_", " ")
        LAWS[name] = Law(name, " ".join((f.__doc__ or "").split()), f, cases, frozenset(needs), group, must, shrinks)
        return LAWS[name]

    return made


# ---- comparisons ----


def near(what: str, got: Array, want: Array, allowed: Any) -> None:
    """Raise Broken unless |got - want| <= allowed everywhere, and NaN and infinity are where they must be."""
    if got.shape != want.shape:
        raise Broken(f"the shape of the {what}", want.shape, got.shape)
    real = np.isfinite(want)
    with np.errstate(invalid="ignore"):
        wrong = np.where(real, ~(np.abs(got - np.where(real, want, 0)) <= allowed), ~((got == want) | (np.isnan(got) & np.isnan(want))))
    if wrong.any():
        excess = np.where(wrong, np.nan_to_num(np.abs(got - want).astype(float) / np.maximum(allowed, 1e-300), nan=np.inf), -1)
        at = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
        raise Broken(f"{what}{list(at) if at else ''}", _text(want[at]), _text(got[at]))


def same_bits(what: str, got: list[Array], want: list[Array]) -> None:
    for n, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            raise Broken(f"the shape of the {what}", b.shape, a.shape)
        wrong = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise Broken(what + (f" {n}" if len(want) > 1 else "") + (str(list(at)) if at else ""), repr(float(b[at])), repr(float(a[at])))


def _text(x: Any) -> str:
    return f"{float(x):.9g}"


def check_loss(subject: Subject, one: Case) -> None:
    one = seen(subject, one)
    allowed, _ = definition.tolerance(one)
    near("loss", subject.run("loss", one)[0], definition.loss(one), allowed)


def check_gradients(subject: Subject, one: Case, mode: str = "gradients") -> None:
    _, allowed = definition.tolerance(one)
    for name, got, want, bound in zip(one.inputs, subject.run(mode, one), definition.gradients(one), allowed, strict=True):
        near(f"gradient by {name}", got, want, bound)


def check_both(subject: Subject, one: Case) -> None:
    check_loss(subject, one)
    if "gradients" in subject.can:
        check_gradients(subject, one)


def close(what: str, got: list[Array], want: list[Array], *, relative: float = 1e-8) -> None:
    """Compare derivatives in float64, within 1e-8 of the largest entry of each: the rounding of both is below 1e-10."""
    if len(got) != len(want):
        raise Broken(f"the number of the {what}", len(want), len(got))
    for n, (a, b) in enumerate(zip(got, want, strict=True)):
        near(f"{what} {n}" if len(want) > 1 else what, a, b, relative * (np.abs(b).max(initial=0) + 1e-6))


def seen(subject: Subject, one: Case) -> Case:
    """Return the case that the subject sees: a function of probabilities sees their logarithms, after rounding."""
    if subject.dialect.name != "sklearn":
        return one
    p = subject.probabilities(one)
    with np.errstate(divide="ignore"):
        return replace(one, inputs={"z": np.log(p.astype(np.float64))})


# ---- cases ----


def make(subject: Subject, rows: int, classes: int, **more: Any) -> Case:
    """Return a case of the kind of truth that the subject takes."""
    options = {"reduction": subject.reductions[0]} | more
    return case(rows, classes, linear=subject.linear, soft=options.pop("soft", not subject.hard), **options)


def plain(subject: Subject, quick: bool) -> Iterator[Case]:
    shapes = [(1, 2), (3, 5), (5, 17), (2, 130)] + ([] if quick else [(4, 1), (70, 10), (2, 4100), (3, 9001)])
    for rows, classes in shapes:
        for kind in KINDS[:3]:
            for dtype in ("float64", "float32"):
                for reduction in subject.reductions:
                    yield make(subject, rows, classes, kind=kind, dtype=dtype, reduction=reduction)


def small(subject: Subject, quick: bool) -> Iterator[Case]:
    """Yield a few small cases in float64: of every reduction, of labels and of probabilities, with options where there are some."""
    for reduction in subject.reductions:
        yield make(subject, 3, 4, reduction=reduction)
        yield make(subject, 4, 3, kind="peaked", reduction=reduction)
        if "probabilities" in subject.options and subject.hard:
            yield make(subject, 3, 4, soft=True, reduction=reduction)
        options = tuple(
            name for name in ("class_weight", "ignore_index", "label_smoothing", "softcap", "z_loss") if name in subject.options
        )
        if options and subject.hard:
            yield option_values(make(subject, 4, 5, reduction=reduction), options)


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


def at(subject: Subject, logits: list[list[float]], labels: list[int], dtype: str, **options: Any) -> Case:
    """Return a case with these logits; of a linear head, they are its bias, and all but the first row are left out."""
    z = np.array(logits, np.float64)
    target: Array = np.array(labels)
    options = {"reduction": subject.reductions[0]} | options
    if subject.linear:
        inputs = {"x": np.zeros((1, 2)), "W": np.ones((z.shape[1], 2)), "b": z[0]}
        return Case(inputs, target[:1] if subject.hard else np.eye(z.shape[1])[target[:1]], options, dtype)
    return Case({"z": z}, target if subject.hard else np.eye(z.shape[1])[target], options, dtype)


# ---- values ----


@law("values", plain, must=True)
def the_loss_is_the_definition(subject: Subject, one: Case) -> None:
    """The loss of a row is - sum_k y_k log softmax(z)_k, for flat, peaked and spread logits and every reduction."""
    check_loss(subject, one)


@law("values", plain, "gradients", must=True)
def the_gradient_is_prediction_minus_truth(subject: Subject, one: Case) -> None:
    """The gradient with respect to the logits is softmax(z) - y, times the upstream gradient, here -1.75."""
    check_gradients(subject, one)


def _per_row(subject: Subject, quick: bool) -> Iterator[Case]:
    for kind in KINDS[:3]:
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


# ---- precision ----


def _certain(subject: Subject, quick: bool) -> Iterator[Case]:
    for dtype, gaps in (("float32", (12.0, 16.5, 20.0, 60.0)), ("float64", (20.0, 30.0, 40.0, 300.0))):
        for gap in gaps:
            yield at(subject, [[gap, 0.0]], [0], dtype)
            yield at(subject, [[0.25, gap, -0.5]], [1], dtype)


@law("precision", _certain, "logits")
def a_loss_near_0_keeps_its_digits(subject: Subject, one: Case) -> None:
    """If the label's logit is 20 above the others, the loss is 2e-9 and not 0: its error is relative to the loss itself."""
    allowed, _ = definition.sharp(one)
    near("loss", subject.run("loss", one)[0], definition.loss(one), allowed)


@law("precision", _certain, "logits", "gradients", "labels")
def a_gradient_near_0_keeps_its_digits(subject: Subject, one: Case) -> None:
    """If softmax is near 1 at the label, the label's entry of the gradient is 1 - softmax with all its digits, and not 0."""
    _, allowed = definition.sharp(one)
    near("gradient by z", subject.run("gradients", one)[0], definition.gradients(one)[0], allowed[0])


def _narrow(subject: Subject, quick: bool) -> Iterator[Case]:
    for rows, classes in [(2, 3), (5, 33)] + ([] if quick else [(20, 1000)]):
        for kind in ("flat", "peaked"):
            for dtype in ("bfloat16", "float16"):
                for reduction in subject.reductions:
                    yield make(subject, rows, classes, kind=kind, dtype=dtype, reduction=reduction)


@law("precision", _narrow)
def reduced_precision_is_rounded_once(subject: Subject, one: Case) -> None:
    """In bfloat16 and float16 the loss and the gradients are those of float32, rounded to the dtype."""
    check_both(subject, one)


# ---- edges ----


def _masked(subject: Subject, quick: bool) -> Iterator[Case]:
    for dtype in ("float64", "float32"):
        yield at(subject, [[-np.inf, 1.0, 0.5], [0.25, 1.0, -np.inf]], [1, 0], dtype)


@law("edges", _masked)
def a_masked_class_has_no_part(subject: Subject, one: Case) -> None:
    """A class whose logit is -inf has softmax 0 and gradient 0, and a truth of 0 times its log-probability counts 0."""
    check_loss(subject, one)
    if "gradients" in subject.can:
        _near_finite(subject, one)


def _near_finite(subject: Subject, one: Case) -> None:
    """Compare the gradients by logits and bias, which are finite if a logit is infinite; those by x and W need not be."""
    _, allowed = definition.tolerance(one)
    for name, got, want, bound in zip(one.inputs, subject.run("gradients", one), definition.gradients(one), allowed, strict=True):
        if name in ("z", "b"):
            near(f"gradient by {name}", got, want, bound)


def _masked_soft(subject: Subject, quick: bool) -> Iterator[Case]:
    one = at(subject, [[-np.inf, 1.0, 0.5], [0.25, 1.0, -np.inf]], [1, 0], "float64")
    yield replace(one, labels=np.array([[0.0, 0.75, 0.25], [0.5, 0.5, 0.0]])[: one.rows])


@law("edges", _masked_soft, "probabilities")
def a_masked_class_of_probability_0_has_no_part(subject: Subject, one: Case) -> None:
    """Where the truth is probabilities, a class with logit -inf and probability 0 adds 0 to the loss, and not NaN."""
    check_loss(subject, one)
    if "gradients" in subject.can:
        _near_finite(subject, one)


def _masked_label(subject: Subject, quick: bool) -> Iterator[Case]:
    yield at(subject, [[-np.inf, 1.0, 0.5]], [0], "float64")


@law("edges", _masked_label, "labels")
def a_masked_label_costs_infinity(subject: Subject, one: Case) -> None:
    """If the logit of the label is -inf, the loss is +inf, and the gradient is softmax(z) - y all the same."""
    near("loss", subject.run("loss", one)[0], definition.loss(one), 0)
    if "gradients" in subject.can:
        _near_finite(subject, one)


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


@law("edges", _ignored, "ignore_index", "labels")
def an_ignored_row_counts_for_nothing(subject: Subject, one: Case) -> None:
    """A row whose label is ignore_index, a class or not, has loss 0 and gradient 0, and does not count in a mean."""
    check_both(subject, one)
    if "gradients" in subject.can:
        ignored = subject.run("gradients", one)[0][one.labels == one.options["ignore_index"]]
        near("gradient of ignored rows", ignored, np.zeros(ignored.shape), 0)


@law("edges", _ignored, "ignore_index", "labels")
def an_ignored_row_may_hold_NaN(subject: Subject, one: Case) -> None:
    """The logits of an ignored row may be NaN: the loss and all gradients are as if they were not."""
    name = "x" if subject.linear else "z"
    ignored = one.labels == one.options.get("ignore_index", -100)
    spoilt = replace(one, inputs=one.inputs | {name: np.where(ignored[:, None], np.nan, one.inputs[name])})
    near("loss", subject.run("loss", spoilt)[0], definition.loss(one), definition.tolerance(one)[0])
    if "gradients" in subject.can:
        _, allowed = definition.tolerance(one)
        for of, got, want, bound in zip(one.inputs, subject.run("gradients", spoilt), definition.gradients(one), allowed, strict=True):
            near(f"gradient by {of}", got, want, bound)


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
            raise Broken(what, 0, _text(a[~zero][0]))


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
    near("loss", subject.run("loss", one)[0], definition.loss(one), 0)
    if "gradients" in subject.can:
        for got, a in zip(subject.run("gradients", one), one.inputs.values(), strict=True):
            near("gradient", got, np.zeros(a.shape), 0)


def _one_class(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        yield make(subject, 2, 1, reduction=reduction)


@law("edges", _one_class)
def one_class_costs_nothing(subject: Subject, one: Case) -> None:
    """With a single class, the loss and the gradient are 0."""
    check_both(subject, one)


# ---- memory layout ----


def _layouts(subject: Subject, quick: bool) -> Iterator[Case]:
    for layout in subject.dialect.layouts:
        if layout != "contiguous":
            for dtype in ("float64", "float32"):
                for shape in ((3, 5), (9, 40)):
                    yield replace(make(subject, *shape, dtype=dtype), layout=layout)


@law("layout", _layouts, "strides")
def strides_change_nothing(subject: Subject, one: Case) -> None:
    """Arrays that are transposed, every second element of others, reversed or misaligned have the loss and gradients of contiguous ones."""
    check_both(subject, one)


def _axes(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        for names in ((), ("ignore_index", "label_smoothing", "class_weight"), ("sample_weight",)):
            if set(names) <= subject.options and (subject.hard or "ignore_index" not in names):
                yield replace(option_values(make(subject, 6, 4, reduction=reduction), names), layout="two axes")
        if subject.hard and "probabilities" in subject.options:
            yield replace(make(subject, 6, 4, soft=True, reduction=reduction), layout="two axes")


@law("layout", _axes, "axes")
def further_axes_are_rows(subject: Subject, one: Case) -> None:
    """Rows may lie along two axes: the loss and the gradients are those of the rows one after the other."""
    allowed, bounds = definition.tolerance(one)
    near("loss", subject.run("loss", one)[0].reshape(np.shape(allowed)), definition.loss(one), allowed)
    if "gradients" in subject.can:
        for name, got, want, bound in zip(one.inputs, subject.run("gradients", one), definition.gradients(one), bounds, strict=True):
            if name == "z" and got.ndim == 3:
                got = np.moveaxis(got, subject.dialect.class_axis, -1)
            near(f"gradient by {name}", got.reshape(want.shape), want, bound)


# ---- purity ----


def _pure(subject: Subject, quick: bool) -> Iterator[Case]:
    for dtype in ("float32", "float64", "bfloat16") if subject.dialect.name != "numpy" else ("float32", "float64"):
        for reduction in subject.reductions:
            yield make(subject, 3, 5, dtype=dtype, reduction=reduction)
    names = tuple(subject.options & {"class_weight", "sample_weight", "ignore_index"})
    if names and subject.hard:
        yield option_values(make(subject, 4, 5, dtype="float32"), names)
    if "none" in subject.reductions:
        yield replace(make(subject, 3, 5, dtype="float32", reduction="none"), upstream=np.array([1.0, 2.0, -3.0]))


@law("purity", _pure)
def arguments_are_not_written_to(subject: Subject, one: Case) -> None:
    """The logits, the labels, the weights and the upstream gradient hold after a call, and after a backward pass, what they held before."""
    for mode in ("loss", "gradients"):
        if mode in subject.can:
            arrays = subject.arrays(one)
            before = {name: subject.dialect.to_numpy(a).copy() for name, a in arrays.items()}
            subject.run(mode, one, arrays=arrays)
            for name, a in arrays.items():
                same_bits(f"{name} after {mode}", [subject.dialect.to_numpy(a)], [before[name]])


# ---- repetition ----


def _repeated(subject: Subject, quick: bool) -> Iterator[Case]:
    for rows, classes in [(3, 5), (65, 130)] + ([] if quick else [(9, 9001)]):
        for dtype in ("float32", "float64"):
            for reduction in subject.reductions:
                yield make(subject, rows, classes, kind="spread", dtype=dtype, reduction=reduction)


def _results(subject: Subject, one: Case) -> list[Array]:
    gradients = [g.copy() for g in subject.run("gradients", one)] if "gradients" in subject.can else []
    return [subject.run("loss", one)[0].copy(), *gradients]


@law("repetition", _repeated)
def a_call_is_repeated_to_the_bit(subject: Subject, one: Case) -> None:
    """The same call gives the same bits, with other calls in between."""
    first = _results(subject, one)
    _results(subject, one.moved({name: np.ones(a.shape) for name, a in one.inputs.items()}, 0.5))
    same_bits("result", _results(subject, one), first)


def _batches(subject: Subject, quick: bool) -> Iterator[Case]:
    for rows, classes in [(3, 5), (9, 33), (17, 130)] + ([] if quick else [(5, 5000)]):
        for dtype in ("float32", "float64"):
            yield make(subject, rows, classes, kind="spread", dtype=dtype, reduction="none")


@law("repetition", _batches, "none", "logits")
def a_row_does_not_depend_on_its_batch(subject: Subject, one: Case) -> None:
    """The loss and the gradient of a row have the same bits whether it is alone or among others."""
    whole = _results(subject, one)
    for i in [slice(0, 1), slice(one.rows - 1, one.rows), slice(1, max(2, one.rows - 1))]:
        same_bits("result", _results(subject, one.with_rows(i)), [a[i] for a in whole])


def _memory(subject: Subject, quick: bool) -> Iterator[Case]:
    yield make(subject, 64, 250)


def resident() -> int:
    """Return the bytes of memory of this process, or 0 if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


CALLS, WARM = 100, 20


@law("repetition", _memory, shrinks=False)
def repeated_calls_keep_no_memory(subject: Subject, one: Case) -> None:
    """After warm-up, 100 calls do not add the memory of 50 copies of the logits."""
    mode = "gradients" if "gradients" in subject.can else "loss"
    for n in range(CALLS + WARM):
        if n == WARM:
            gc.collect()
            before = resident()
        subject.run(mode, one, arrays=subject.arrays(one))
    gc.collect()
    grown, limit = resident() - before, CALLS // 2 * 8 * one.rows * one.classes
    if grown > limit:
        raise Broken("growth of the process in bytes", f"at most {limit}", grown)


# ---- derivatives ----


@law("derivatives", small, "gradients twice")
def a_second_backward_pass_has_the_bits_of_the_first(subject: Subject, one: Case) -> None:
    """With retain_graph, a second backward pass gives the gradients of the first, to the bit."""
    both = subject.run("gradients twice", one)
    count = len(both) // 2
    same_bits("gradient", both[count:], both[:count])
    close("gradient", both[:count], definition.gradients(one))


@law("derivatives", small, "gradients of each alone")
def each_input_may_be_the_only_one_that_needs_a_gradient(subject: Subject, one: Case) -> None:
    """If the other inputs are frozen, the gradient by each input is the same."""
    close("gradient", subject.run("gradients of each alone", one), definition.gradients(one))


@law("derivatives", small, "undefined upstream")
def an_undefined_upstream_gradient_is_0(subject: Subject, one: Case) -> None:
    """If nothing depends on the loss, its gradients are 0 or undefined."""
    close("gradient", subject.run("undefined upstream", one), [np.zeros(a.shape) for a in one.inputs.values()])


@law("derivatives", small, "batched upstream")
def upstream_gradients_may_be_batched(subject: Subject, one: Case) -> None:
    """Two upstream gradients at once (is_grads_batched) give the gradients of each."""
    close("gradient", subject.run("batched upstream", one), [np.stack([g, -2 * g]) for g in definition.gradients(one)])


@law("derivatives", small, "torch.func.grad")
def torch_func_grad_is_the_gradient(subject: Subject, one: Case) -> None:
    """torch.func.grad gives the gradients of autograd."""
    close("gradient", subject.run("torch.func.grad", one), definition.gradients(one))


def directions(one: Case) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {name: np.round(rng.standard_normal(a.shape), 2) for name, a in one.differentiated().items()}


@law("derivatives", small, "jvp")
def forward_mode_is_the_derivative(subject: Subject, one: Case) -> None:
    """The derivative along a direction in forward mode (jvp) is that of the loss, and not 0."""
    v = directions(one)
    close("derivative", subject.run("jvp", one, v), [definition.along(one, v)])


@law("derivatives", small, "double backward")
def the_second_derivative_is_that_of_the_loss(subject: Subject, one: Case) -> None:
    """A backward pass through the backward pass gives the Hessian of the loss, here of its square, times a vector."""
    v = directions(one)
    close("Hessian product", subject.run("double backward", one, v), definition.hessian_product(one, v), relative=1e-7)


@law("derivatives", small, "forward over reverse")
def forward_over_reverse_is_the_second_derivative(subject: Subject, one: Case) -> None:
    """Forward mode through the gradient gives the Hessian of the loss, here of its square, times a vector."""
    v = directions(one)
    close("Hessian product", subject.run("forward over reverse", one, v), definition.hessian_product(one, v), relative=1e-7)


def _stacked(one: Case) -> list[Case]:
    return [replace(one, inputs={name: n * a for name, a in one.inputs.items()}) for n in (1, 2)]


@law("derivatives", small, "vmap")
def vmap_maps_the_loss(subject: Subject, one: Case) -> None:
    """vmap over a batch of logits gives the loss of each."""
    close("loss", subject.run("vmap", one), [np.stack([definition.loss(c) for c in _stacked(one)])])


@law("derivatives", small, "vmap of gradients")
def vmap_maps_the_gradient(subject: Subject, one: Case) -> None:
    """vmap over the gradient gives the gradients of each."""
    each = [definition.gradients(c) for c in _stacked(one)]
    close("gradient", subject.run("vmap of gradients", one), [np.stack(gs) for gs in zip(*each, strict=True)])


def _few(subject: Subject, quick: bool) -> Iterator[Case]:
    for n, one in enumerate(small(subject, quick)):
        if n in ((0,) if quick else (0, 2, 3, 7)):
            yield one


@law("derivatives", _few, "compile", shrinks=False)
def a_compiler_changes_nothing(subject: Subject, one: Case) -> None:
    """Under torch.compile (backend aot_eager) or jax.jit the loss and its gradients are the same."""
    got, (allowed, bounds) = subject.run("compile", one), definition.tolerance(one)
    near("loss", got[0], definition.loss(one), allowed)
    for name, a, want, bound in zip(one.inputs, got[1:], definition.gradients(one), bounds, strict=True):
        near(f"gradient by {name}", a, want, bound)


def _by_others(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        for name in ARRAYS:
            if name in subject.options and subject.hard:
                yield replace(
                    option_values(
                        make(subject, 3, 4, reduction=reduction), (name, "label_smoothing")[: 1 + ("label_smoothing" in subject.options)]
                    ),
                    by=(name,),
                )
        if "probabilities" in subject.options:
            yield replace(make(subject, 3, 4, soft=True, reduction=reduction), by=("labels",))


@law("derivatives", _by_others, "gradients", "torch.func.grad")
def weights_and_probabilities_have_gradients(subject: Subject, one: Case) -> None:
    """The gradients by class weights, sample weights and probabilities are those of the loss, in which all three are factors."""
    close("gradient", subject.run("gradients", one), definition.gradients(one))


@law("derivatives", _by_others, "jvp")
def weights_and_probabilities_have_forward_mode(subject: Subject, one: Case) -> None:
    """The derivatives by class weights, sample weights and probabilities in forward mode are those of the loss."""
    v = directions(one)
    close("derivative", subject.run("jvp", one, v), [definition.along(one, v)])
