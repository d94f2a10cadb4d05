"""The inputs that a law is tried on: logits, or a linear head, with labels, options and an upstream gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..partials import Array

ARRAYS = ("class_weight", "sample_weight")  # the options that are arrays
UPSTREAM = -1.75


@dataclass(frozen=True)
class Case:
    """The arguments of one call. All arrays hold float64, in which the values of every dtype are exact."""

    inputs: dict[str, Array]  # "z" [R, C], or "x" [R, D], "W" [C, D] and "b" [C]
    labels: Array  # int64 [R], or float64 [R, C]: probabilities
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    upstream: float | Array = UPSTREAM  # a number, or [R]
    layout: str = "contiguous"
    by: tuple[str, ...] = ()  # the differentiated arguments; () means all inputs

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return self.inputs["z"].shape[1] if "z" in self.inputs else len(self.inputs["W"])

    @property
    def soft(self) -> bool:
        return self.labels.dtype.kind == "f"

    @property
    def size(self) -> int:
        return sum(a.size for a in self.inputs.values())

    def differentiated(self) -> dict[str, Array]:
        """Return the arguments by which the loss is differentiated."""
        given = self.inputs | {name: self.options[name] for name in ARRAYS if name in self.options} | {"labels": self.labels}
        return {name: given[name] for name in self.by or tuple(self.inputs)}

    def moved(self, directions: dict[str, Array], step: Any) -> Case:
        """Return the case with `step` times these directions added to its arguments."""
        inputs, options, labels = dict(self.inputs), dict(self.options), self.labels
        for name, v in directions.items():
            if name == "labels":
                labels = labels + step * v
            else:
                of = inputs if name in inputs else options
                of[name] = of[name] + step * v
        return replace(self, inputs=inputs, options=options, labels=labels)

    def with_dtype(self, dtype: str) -> Case:
        """Return the case in a narrower dtype, with its arrays rounded."""
        inputs = {name: _stored(a, dtype) for name, a in self.inputs.items()}
        options = {name: _stored(x, dtype) if isinstance(x, np.ndarray) else x for name, x in self.options.items()}
        upstream = self.upstream if np.ndim(self.upstream) == 0 else _stored(np.asarray(self.upstream), dtype)
        labels = _stored(self.labels, dtype) if self.soft else self.labels
        return replace(self, inputs=inputs, options=options, labels=labels, upstream=upstream, dtype=dtype)

    def with_options(self, **options: Any) -> Case:
        return replace(self, options=self.options | options)

    def with_rows(self, i: Any) -> Case:
        inputs = {name: a[i] if name in "zx" else a for name, a in self.inputs.items()}
        options = {name: x[i] if name == "sample_weight" else x for name, x in self.options.items()}
        upstream = self.upstream if np.ndim(self.upstream) == 0 else np.asarray(self.upstream)[i]
        return replace(self, inputs=inputs, options=options, labels=self.labels[i], upstream=upstream)

    def with_classes(self, keep: Array) -> Case:
        """Return the case with these classes only, in ascending order. They must have the labels of all rows.

        The probabilities of the others are added to the first, so that their sum is kept.
        """
        inputs = {name: a if name == "x" else a[:, keep] if name == "z" else a[keep] for name, a in self.inputs.items()}
        options = {name: x[keep] if name == "class_weight" else x for name, x in self.options.items()}
        inside = (self.labels >= 0) & (self.labels < self.classes)
        if self.soft:
            labels = self.labels[:, keep]
            labels[:, 0] = _stored(labels[:, 0] + np.delete(self.labels, keep, axis=1).sum(axis=1), self.dtype)
        else:
            labels = np.where(inside, np.searchsorted(keep, self.labels), self.labels)
        return replace(self, inputs=inputs, options=options, labels=labels)


def smaller(case: Case) -> Iterator[Case]:
    """Yield simpler cases: with fewer rows, classes or options, and with rounder numbers."""
    for half in (slice(0, case.rows // 2), slice(case.rows // 2, case.rows)):
        if case.rows > 2:
            yield case.with_rows(half)
    if 1 < case.rows <= 12:
        for i in range(case.rows):
            yield case.with_rows(np.delete(np.arange(case.rows), i))
    for name in case.options:
        if name not in ("reduction", "ignore_index") and name not in case.by:
            yield replace(case, options={other: x for other, x in case.options.items() if other != name})
    if case.options.get("ignore_index", -100) < 0:  # else it may be one of the classes
        classes = np.arange(case.classes)
        used = np.zeros(case.classes, bool) if case.soft else np.isin(classes, case.labels)
        if case.classes > 16:
            yield case.with_classes(classes[used | (classes < case.classes // 2)])
        elif case.classes > 2:
            yield from (case.with_classes(np.delete(classes, k)) for k in classes[~used])
    if np.ndim(case.upstream):
        yield replace(case, upstream=UPSTREAM)
    for digits in (0, 1):
        rounded = {name: _stored(np.round(a, digits) + 0.0, case.dtype) for name, a in case.inputs.items()}
        if any((rounded[name] != a).any() and not np.isnan(a).any() for name, a in case.inputs.items()):
            yield replace(case, inputs=rounded)


def _stored(a: Array, dtype: str) -> Array:
    """Return float64 values that the dtype holds exactly."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
        kept: Array = (bits & 0xFFFF0000).view(np.float32).astype(np.float64)
        return kept
    return a.astype(dtype).astype(np.float64)


def exact_probabilities(one: Case) -> Case:
    """Return the case with probabilities that are multiples of 1/128, so that they sum to 1 in every dtype."""
    rng = np.random.default_rng(5)
    counts = rng.multinomial(128, one.labels / one.labels.sum(axis=1, keepdims=True))
    return replace(one, labels=counts / 128)


KINDS = ("flat", "peaked", "spread")


def case(
    rows: int, classes: int, *, kind: str = "flat", dtype: str = "float64", linear: bool = False, bias: bool = True, soft: bool = False,
    **options: Any,
) -> Case:  # fmt: skip
    """Return a case whose logits are flat, peaked (12 above the others at the label, or at the class after it) or spread (to +-20)."""
    rng = np.random.default_rng([rows, classes])
    labels = rng.integers(0, classes, rows)
    if linear:
        features = 3
        inputs = {
            "x": rng.standard_normal((rows, features)),
            "W": rng.standard_normal((classes, features)),
            "b": rng.standard_normal(classes),
        }
        if not bias:
            del inputs["b"]
        if kind == "peaked":
            inputs["W"][labels[:1]] *= 5
        elif kind != "flat":
            inputs["x"] *= 4
    else:
        z = rng.standard_normal((rows, classes))
        if kind == "peaked":
            z[np.arange(rows), (labels + np.arange(rows) % 2) % classes] += 12
        elif kind == "spread":
            z *= 7
        inputs = {"z": z}
    inputs = {name: _stored(a, dtype) for name, a in inputs.items()}
    if soft:
        q = rng.random((rows, classes)) * rng.choice([0, 1], (rows, classes), p=[0.2, 0.8]) + 1e-3
        return Case(inputs, _stored(q / q.sum(axis=1, keepdims=True), dtype), options, dtype)
    return Case(inputs, labels, options, dtype)


def option_values(one: Case, names: tuple[str, ...]) -> Case:
    """Return the case with these options at values that matter: weights far from 1, and a row that is ignored."""
    rng = np.random.default_rng(7)
    for name in names:
        if name == "class_weight":
            one = one.with_options(class_weight=_stored(rng.random(one.classes) + 0.2, one.dtype))
        elif name == "sample_weight":
            one = one.with_options(sample_weight=_stored(rng.random(one.rows) + 0.1, one.dtype))
        elif name == "ignore_index":
            one = replace(one.with_options(ignore_index=-100), labels=np.where(np.arange(one.rows) % 3 == 1, -100, one.labels))
        elif name != "probabilities":
            one = one.with_options(**{name: {"label_smoothing": 0.1, "z_loss": 0.02, "temperature": 1.75, "softcap": 4.0}[name]})
    return one


def any_options(one: Case, options: frozenset[str], rng: np.random.Generator) -> Case:
    """Return the case with random values of about half of the options, other than probabilities."""
    values: dict[str, Any] = {
        "class_weight": _stored(rng.random(one.classes) * rng.choice([0, 1], one.classes, p=[0.1, 0.9]), one.dtype),
        "label_smoothing": float(rng.choice([0.05, 0.3, 1])),
        "sample_weight": _stored(rng.random(one.rows) + 0.05, one.dtype),
        "z_loss": float(rng.choice([1e-4, 0.1])),
        "temperature": float(rng.choice([0.5, 1.3, 4])),
        "softcap": float(rng.choice([2, 10, 50])),
    }
    chosen = {name: value for name, value in values.items() if rng.random() < 0.5 and name in options}
    index = int(rng.choice([-100, -1, 0, one.classes - 1, 255]))
    if one.soft or "ignore_index" not in options:
        return one.with_options(**chosen)
    kept = np.where(one.labels == index, 1, one.labels)  # the first row is not ignored, and its weight is not 0
    labels = np.where((rng.random(one.rows) < 0.3) & (np.arange(one.rows) > 0), index, kept)
    return replace(one.with_options(**chosen, ignore_index=index), labels=labels)


def combinations(options: frozenset[str], count: int) -> Iterator[tuple[str, ...]]:
    """Yield the combinations of `count` options, except for ignored labels that are probabilities."""
    for names in itertools.combinations(sorted(options), count):
        if not {"ignore_index", "probabilities"} <= set(names):
            yield names
