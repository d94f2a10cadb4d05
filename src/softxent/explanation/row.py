"""The row of scores that is explained, with its truth and the names of its classes.

If the row has many classes, only the most probable ones are shown one by one, and the others are merged into one class. The score of the
merged class is the log-sum-exp of its members. The predictions and gradients of the other classes are therefore unchanged, and the
prediction and the gradient of the merged class are the sums over its members. The code calls the merged class "the rest", and a class as
it appears in the derivation a "place".

A class with the score -inf is masked: its prediction and its gradient are 0, and the derivation is that of the other classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation, localcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import contract
from ..partials import Array
from ..proof.replay import CONTEXT
from . import files
from .classes import named, typed

APART = 12  # the largest number of classes, and of masked classes, that are shown one by one
LARGEST = 1e9  # the largest absolute value of a score or a truth, so that 50 digits suffice for their differences
EXAMPLE, EXAMPLE_NAMES = "2, 1, 0.1", "cat, dog, owl"


class Entry(NamedTuple):
    """A row of the tables: a class, the merged classes, or the masked classes together."""

    name: str
    score: Any  # a float, or a Decimal for the rest
    place: int | None  # None if the class is masked


class Row(NamedTuple):
    """A row as it is shown. Its places are the classes `shown` in their order and then, if there are more, the rest."""

    logits: Array  # [C], in the dtype in which they were given
    labels: Any  # the index of the class, or float64 probabilities [C]
    shown: tuple[int, ...]
    masked: tuple[int, ...]  # the classes with the score -inf, which have no place
    entries: tuple[Entry, ...]  # the places and the masked classes, in the order of the tables
    names: tuple[str, ...]
    scores: tuple[Any, ...]  # of the places: floats, and a Decimal for the rest
    truth: tuple[Decimal, ...]
    label: int  # the place of the label; j and k are the places of those indices
    j: int
    k: int
    astray: Decimal  # the loss of the row minus that of the places; 0 unless the truth of the rest is positive

    @property
    def rest(self) -> int:
        return len(self.logits) - len(self.shown) - len(self.masked)

    @property
    def notes(self) -> list[str]:
        """Sentences about the classes that are merged or masked."""
        together = (
            f"{self.rest:,} classes are merged into one, whose score is their log-sum-exp. This is exact: the predictions and gradients of "
            "the other classes do not change, and those of the merged class are sums."
        )
        masked = (
            f"{_count(len(self.masked), 'class is', 'classes are')} masked (score -inf): the prediction and the gradient are 0 there, and "
            "the sums run over the other classes."
        )
        return [together] * bool(self.rest) + [masked] * bool(self.masked)

    def places(self, values: Array) -> list[float]:
        """Return the values of the places, given those of all classes [C]. The value of the rest is a sum."""
        others = np.delete(values, [*self.shown, *self.masked])
        return [*map(float, values[list(self.shown)]), *([math.fsum(others)] if self.rest else [])]

    def at_masked(self, values: Array) -> list[float]:
        """Return the values of the masked entries, given those of all classes [C]. A shared entry has the sum of absolute values."""
        own = values[list(self.masked)]
        return [*map(float, own)] if len(own) <= APART else [math.fsum(np.abs(own))]


def _count(n: int, one: str, more: str) -> str:
    return f"{n:,} {one if n == 1 else more}"


def arrange(
    logits: Array,  # [C]
    *,
    label: int | str | None = None,
    truth: Sequence[Decimal] | None = None,
    names: Sequence[str] | None = None,
    j: int | str | None = None,
    k: int | str | None = None,
) -> Row:
    """Check a row and choose its places. Classes are given by index or name. `k` is the label by default, `j` the most probable other."""
    z = _checked(logits)
    if (label is None) == (truth is None):
        contract.fail("explain", "one of label and truth", "be given", "neither" if label is None else "both")
    if names is not None and len(names) != len(z):
        contract.fail("explain", "names", f"be {len(z)}, one for each class", len(names))
    t, j, k = (_index(argument, x, names, z) for argument, x in (("label", label), ("j", j), ("k", k)))
    ranked = [n for n in np.argsort(-z, kind="stable").tolist() if z[n] > -np.inf]  # the most probable first
    if truth is not None:
        _check_truth(truth, z)
        t = max(sorted(ranked), key=truth.__getitem__)
    assert t is not None
    k = k if k is not None else t if j != t else next(n for n in ranked if n != j)
    j = j if j is not None else next(n for n in ranked if n != k)
    if j == k:
        contract.fail("explain", "j and k", "be two classes", f"{j} for both")
    y = truth if truth is not None else [Decimal(n == t) for n in range(len(z))]
    return _together(logits, t if truth is None else np.array([float(p) for p in y]), y, t, j, k, names, ranked)


def _checked(logits: Array) -> Array:
    """Return the scores as float64. Each must be finite or, at a masked class, -inf."""
    z = logits.astype(np.float64)
    if len(z) < 2:
        contract.fail("explain", "logits", "have at least 2 classes", len(z))
    masked = z == -np.inf
    for n in np.flatnonzero(~masked & ~(np.abs(z) <= LARGEST))[:1]:
        contract.fail("explain", "logits", f"be finite and of size {LARGEST:g} at most, or -inf", f"{z[n]:g} at class {n}")
    if len(z) - masked.sum() < 2:
        contract.fail("explain", "logits", "have at least 2 classes that are not masked (-inf)", len(z) - masked.sum())
    return z


def _index(argument: str, value: int | str | None, names: Sequence[str] | None, z: Array) -> int | None:
    """Return the index of a class that is given by its index or its name. It must not be masked."""
    if isinstance(value, str):
        value = named(argument, value, names if names is not None else [f"class {n}" for n in range(len(z))])
    if value is not None and not 0 <= value < len(z):
        contract.fail("explain", argument, f"lie in [0, {len(z)})", value)
    if value is not None and z[value] == -np.inf:
        why = ": its loss is infinite" if argument == "label" else ""
        contract.fail("explain", argument, "be a class that is not masked", f"{value}, whose score is -inf{why}")
    return value


def _check_truth(truth: Sequence[Decimal], z: Array) -> None:
    if len(truth) != len(z):
        contract.fail("explain", "truth", f"be {len(z)} numbers, one for each class", len(truth))
    for n, t in enumerate(truth):
        if not (t.is_finite() and 0 <= t <= LARGEST):
            contract.fail("explain", "truth", f"be finite, not negative and {LARGEST:g} at most", f"{t} at class {n}")
        if t and z[n] == -np.inf:
            contract.fail("explain", "truth", "be 0 at a masked class", f"{t} at class {n}, whose score is -inf: the loss is infinite")


def _together(
    z: Array, labels: Any, y: Sequence[Decimal], label: int, j: int, k: int, names: Sequence[str] | None, ranked: list[int]
) -> Row:  # ranked: the classes that are not masked
    shown, masked = sorted(ranked), tuple(np.flatnonzero(z == -np.inf).tolist())
    if len(shown) > APART:  # classes with a positive truth first: if the rest has none, the loss of the places is that of the row
        true = sorted((n for n in shown if y[n]), key=lambda n: -y[n])
        shown = sorted(list(dict.fromkeys((label, j, k, *true, *ranked)))[: APART - 1])
    called = {n: contract.printable(names[n]) if names is not None else f"class {n}" for n in (*shown, *masked)}
    places = [Entry(called[n], float(z[n]), place) for place, n in enumerate(shown)]
    truth, astray = [y[n] for n in shown], Decimal(0)
    if others := sorted({*ranked} - {*shown}):
        score, mass, astray = _rest(z[others].astype(np.float64), [y[n] for n in others])
        places, truth = [*places, Entry(f"{len(others):,} others", score, len(shown))], [*truth, mass]
    at = shown.index
    return Row(
        z, labels, tuple(shown), masked, _entries(places, shown, {n: called[n] for n in masked}), tuple(one.name for one in places),
        tuple(one.score for one in places), tuple(truth), at(label), at(j), at(k), astray,
    )  # fmt: skip


def _rest(scores: Array, truth: Sequence[Decimal]) -> tuple[Decimal, Decimal, Decimal]:
    """Merge classes. Returns their score, their truth, and the part of the loss that is lost if their truth is positive."""
    top = scores.max()
    with localcontext(CONTEXT):
        score = Decimal(float(top)) + Decimal(math.fsum(np.exp(scores - top))).ln()
        astray = sum((t * (score - Decimal(float(s))) for t, s in zip(truth, scores, strict=True) if t), Decimal(0))
        return score, sum(truth, Decimal(0)), astray


def _entries(places: list[Entry], shown: list[int], masked: dict[int, str]) -> tuple[Entry, ...]:
    """Return the classes in their order, then the rest, and then the masked classes if they are too many to be shown one by one."""
    if len(masked) > APART:
        return *places, Entry(f"{len(masked):,} masked", -math.inf, None)
    one_by_one = [*zip(shown, places, strict=False), *((n, Entry(name, -math.inf, None)) for n, name in masked.items())]
    return *(entry for _, entry in sorted(one_by_one, key=lambda x: x[0])), *places[len(shown) :]


# ---------------------------------------------------------------- the options of the command


def read(
    *, logits: str | None = None, file: Path | None = None, row: int | None = None, label: int | str | None = None,
    truth: str | None = None, labels: Path | None = None, names: str | None = None, names_file: Path | None = None,
    j: int | str | None = None, k: int | str | None = None,
) -> Row:  # fmt: skip
    """Return the row that the options of `softxent explain` describe. The default is the example of the article."""
    _not_both(logits=logits, file=file)
    _not_both(label=label, truth=truth, labels=labels)
    _not_both(names=names, names_file=names_file)
    for option, value in (("row", row), ("labels", labels)):
        if value is not None and file is None:
            contract.fail("explain", f"--{option}", "come with --file", value)
    if logits is None and file is None:
        logits, names = EXAMPLE, names or (EXAMPLE_NAMES if names_file is None else None)
        label = 0 if truth is None and label is None else label
    found = files.row_of(file, row or 0) if file else files.Found(np.array(_numbers("logits", logits or "", float)))
    if labels:
        label = files.label_in(labels, row or 0, found.rows)
    elif label is None and truth is None:
        label = found.label
    return arrange(
        found.logits,
        label=typed(label),
        truth=None
        if truth is None
        else _numbers("truth", truth, Decimal),  # the decimals 0.7, 0.2 and 0.1 sum to exactly 1, the floats do not
        names=files.names_in(names_file) if names_file else [name.strip() for name in names.split(",")] if names else found.names,
        j=typed(j),
        k=typed(k),
    )


def _not_both(**options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        contract.fail("explain", " and ".join(given), "not come together", "both" if len(given) == 2 else "all")


def _numbers(argument: str, text: str, of: Callable[[str], Any]) -> list[Any]:
    try:
        return [of(part.strip()) for part in text.split(",")]
    except (InvalidOperation, ValueError):
        contract.fail("explain", argument, "be numbers with commas between them", contract.shown(text))
