"""Laws of calls: the layout of arrays, purity, repetition."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import definition
from .case import Case, option_values
from .law import (
    Broken,
    check_both,
    check_same,
    counted,
    law,
    make,
    near,
    resident,
    results,
    same_bits,
)
from .subjects import Subject


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
        found = counted("gradients", subject.run("gradients", one), len(one.inputs))
        for name, got, want, bound in zip(one.inputs, found, definition.gradients(one), bounds, strict=True):
            if name == "z" and got.ndim == 3:
                got = np.moveaxis(got, subject.dialect.class_axis, -1)
            near(f"gradient by {name}", got.reshape(want.shape), want, bound)


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


def _repeated(subject: Subject, quick: bool) -> Iterator[Case]:
    for rows, classes in [(3, 5), (65, 130)] + ([] if quick else [(9, 9001)]):
        for dtype in ("float32", "float64"):
            for reduction in subject.reductions:
                yield make(subject, rows, classes, kind="spread", dtype=dtype, reduction=reduction)


@law("repetition", _repeated)
def a_call_is_repeated_to_the_bit(subject: Subject, one: Case) -> None:
    """The same call gives the same bits, with other calls in between."""
    first = results(subject, one)
    results(subject, one.moved({name: np.ones(a.shape) for name, a in one.inputs.items()}, 0.5))
    check_same(subject, one, first)


def _batches(subject: Subject, quick: bool) -> Iterator[Case]:
    for rows, classes in [(3, 5), (9, 33), (17, 130)] + ([] if quick else [(5, 5000)]):
        for dtype in ("float32", "float64"):
            one = make(subject, rows, classes, kind="spread", dtype=dtype, reduction="none")
            yield replace(one, inputs={name: np.round(a) for name, a in one.inputs.items()}) if subject.linear else one


@law("repetition", _batches, "none", "exact logits")
def a_row_does_not_depend_on_its_batch(subject: Subject, one: Case) -> None:
    """The loss and the gradient of a row have the same bits whether it is alone or among others; of a linear head, the loss, for integers,
    whose products are exact."""
    whole = results(subject, one)[: 1 if subject.linear else None]
    for i in [slice(0, 1), slice(one.rows - 1, one.rows), slice(1, max(2, one.rows - 1))]:
        check_same(subject, one.with_rows(i), [a[i] for a in whole])


def _memory(subject: Subject, quick: bool) -> Iterator[Case]:
    yield make(subject, 64, 250)


CALLS, WARM = 100, 20


@law("repetition", _memory, "the memory of the process", shrinks=False)
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
