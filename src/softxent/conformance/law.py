"""The laws: statements that hold for every right implementation of softmax cross-entropy, each with the cases that it is tried on.

A law is a function of a subject and a case that raises `Broken` where its statement does not hold. Its docstring is the statement. `needs`
names what the subject must have for the law to apply: a mode of its dialect ("gradients", "jvp", ...), an option, "exact logits" (and not
probabilities), "logits" (and not a linear head), "labels" or "probabilities", a reduction, and what the system must tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..partials import Array
from ..proof import bounds
from . import definition
from .case import Case, case, option_values
from .dialects import CallError
from .subjects import DTYPES, Subject

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
        precise = subject.dialect.name != "sklearn" and subject.dtypes[0] in ("float64", "float32")
        has |= {"exact logits"} if precise else set()
        has |= {"logits"} if not subject.linear and subject.dialect.name != "sklearn" else set()
        has |= {"the memory of the process"} if resident() else set()
        return sorted(self.needs - has)


LAWS: dict[str, Law] = {}


def law(
    group: str, cases: Cases, *needs: str, must: bool = False, shrinks: bool = True
) -> Callable[[Callable[[Subject, Case], None]], Law]:
    """Make a law of a function, whose docstring is its statement."""

    def made(f: Callable[[Subject, Case], None]) -> Law:
        name = f.__name__.replace("_", " ")
        LAWS[name] = Law(name, " ".join((f.__doc__ or "").split()), f, _supported(cases), frozenset(needs), group, must, shrinks)
        return LAWS[name]

    return made


def _supported(cases: Cases) -> Cases:
    """Return the cases in the dtypes of the subject: a wider one becomes its widest, and a case of another narrow one is left out."""

    def supported(subject: Subject, quick: bool) -> Iterator[Case]:
        for one in cases(subject, quick):
            if one.dtype in subject.dtypes:
                yield one
            elif DTYPES.index(one.dtype) < DTYPES.index(subject.dtypes[0]):
                yield one.with_dtype(subject.dtypes[0])

    return supported


def resident() -> int:
    """Return the bytes of memory of this process, or 0 if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


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
        raise Broken(f"{what}{list(at) if at else ''}", text(want[at]), text(got[at]))


def same_bits(what: str, got: list[Array], want: list[Array]) -> None:
    for n, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            raise Broken(f"the shape of the {what}", b.shape, a.shape)
        wrong = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise Broken(what + (f" {n}" if len(want) > 1 else "") + (str(list(at)) if at else ""), repr(float(b[at])), repr(float(a[at])))


def text(x: Any) -> str:
    return f"{float(x) + 0.0:.9g}"


def check_loss(subject: Subject, one: Case, of: Case | None = None) -> None:
    """Compare the loss with the definition, for the case `of` if there is one."""
    of = seen(subject, of or one)
    near("loss", subject.run("loss", one)[0], definition.loss(of), definition.tolerance(of)[0])


def check_gradients(subject: Subject, one: Case, of: Case | None = None, names: str = "zxWb") -> None:
    """Compare the gradients by these inputs with the definition, for the case `of` if there is one; nothing if the subject has none."""
    if "gradients" in subject.can:
        of = of or one
        found = counted("gradients", subject.run("gradients", one), len(one.inputs))
        for name, got, want, bound in zip(one.inputs, found, definition.gradients(of), definition.tolerance(of)[1], strict=True):
            if name in names:
                near(f"gradient by {name}", got, want, bound)


def check_both(subject: Subject, one: Case, of: Case | None = None) -> None:
    check_loss(subject, one, of)
    check_gradients(subject, one, of)


def counted(what: str, found: list[Array], count: int) -> list[Array]:
    if len(found) != count:
        raise Broken(f"the number of {what}", count, len(found))
    return found


DERIVATIVE = 1e-8  # of derivatives in float64, relative to the largest entry: the rounding of both is below 1e-10
ROUNDINGS = 64  # the same in a narrower dtype, in units of its roundoff: the cases have 5 rows and 5 classes at most


def close(one: Case, what: str, got: list[Array], want: list[Array], *, relative: float = DERIVATIVE) -> None:
    """Compare derivatives, within DERIVATIVE of the largest entry of each, or ROUNDINGS of the dtype."""
    relative = max(relative, ROUNDINGS * bounds.UNIT[one.dtype])
    for n, (a, b) in enumerate(zip(counted(f"{what}s", got, len(want)), want, strict=True)):
        # an entry that should be 0 may be as large as rounding leaves
        near(f"{what} {n}" if len(want) > 1 else what, a, b, relative * (np.abs(b).max(initial=0) + 1e-6))


def seen(subject: Subject, one: Case) -> Case:
    """Return the case that the subject sees: a function of probabilities sees their logarithms, after rounding."""
    if subject.dialect.name != "sklearn":
        return one
    p = subject.probabilities(one)
    with np.errstate(divide="ignore"):
        return replace(one, inputs={"z": np.log(p.astype(np.float64))})


def results(subject: Subject, one: Case) -> list[Array]:
    gradients = [g.copy() for g in subject.run("gradients", one)] if "gradients" in subject.can else []
    return [subject.run("loss", one)[0].copy(), *gradients]


def check_same(subject: Subject, one: Case, want: list[Array]) -> None:
    """Compare the loss of a case, and then its gradients if `want` has some, with `results` of another call, bit for bit."""
    same_bits("loss", subject.run("loss", one)[:1], want[:1])
    if want[1:]:
        same_bits("gradient", subject.run("gradients", one), want[1:])


# ---- cases ----


def make(subject: Subject, rows: int, classes: int, **more: Any) -> Case:
    """Return a case of the kind of truth that the subject takes."""
    options = {"reduction": subject.reductions[0]} | more
    soft = options.pop("soft", not subject.hard)
    return case(rows, classes, linear=subject.linear, bias=bool(subject.bias), soft=soft, **options)


@lru_cache(maxsize=64)
def right(subject: Subject, option: str) -> bool:
    """Whether the loss with this option alone is right. If it is not, only the laws of options are about it."""
    try:
        check_loss(subject, option_values(make(subject, 4, 5, dtype=subject.dtypes[0]), (option,)))
    except (Broken, CallError):
        return False
    return True


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
        if reduction == "mean" and "class_weight" in options:  # not with a z-loss, which some divide by the number of rows
            options = tuple(name for name in options if name != "z_loss")
        options = tuple(name for name in options if right(subject, name))
        if options and subject.hard:
            yield option_values(make(subject, 4, 5, reduction=reduction), options)


def at(subject: Subject, logits: list[list[float]], labels: list[int], dtype: str, **options: Any) -> Case:
    """Return a case with these logits; of a linear head, they are its bias, or a column of W, and all but the first row are left out."""
    z = np.array(logits, np.float64)
    target: Array = np.array(labels)
    options = {"reduction": subject.reductions[0]} | options
    if subject.linear:
        inputs = {"x": np.zeros((1, 2)), "W": np.ones((z.shape[1], 2)), "b": z[0]}
        if not subject.bias:
            inputs = {"x": np.array([[1.0, 0.0]]), "W": np.stack([z[0], np.ones(z.shape[1])], axis=1)}
        return Case(inputs, target[:1] if subject.hard else np.eye(z.shape[1])[target[:1]], options, dtype)
    return Case({"z": z}, target if subject.hard else np.eye(z.shape[1])[target], options, dtype)


def directions(one: Case) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {name: np.round(rng.standard_normal(a.shape), 2) for name, a in one.differentiated().items()}
