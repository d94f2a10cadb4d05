"""One row to explain: scores, truth and names, typed in or from a file. Of a vocabulary the classes that matter stand apart.

Classes put together keep everything else as it was: the exponentials of the rest add up to that of their log-sum-exp, so that the other
predictions and the other gradients do not change, and the gradient of the one is the sum of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation, localcontext
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from .. import contract
from ..partials import Array
from ..proof.replay import CONTEXT

APART = 12  # rows of more classes show this many, the rest as the last of them
LARGEST = 1e9  # of a score or a truth: the decimals of replay.py reach as far as e^(10^18), but 50 digits must reach over the differences
EXAMPLE, EXAMPLE_NAMES = "2, 1, 0.1", "cat, dog, owl"


class Row(NamedTuple):
    """A row as it is shown, place by place: the classes `shown` in their order, and then, if there are more, the rest as one."""

    logits: Array  # [C], in its own dtype: what softxent is given
    labels: Any  # what softxent is given as labels: a class, or float64 probabilities [C]
    shown: tuple[int, ...]
    names: tuple[str, ...]
    scores: tuple[Any, ...]  # floats, and a Decimal for the rest
    truth: tuple[Decimal, ...]
    label: int  # places: of the label, and of the classes that play j and k
    j: int
    k: int
    astray: Decimal  # the loss of all classes is that of the places, and this: not 0 only where the rest holds truth

    @property
    def rest(self) -> int:
        return len(self.logits) - len(self.shown)

    def places(self, values: Array) -> list[float]:
        """Values of all classes [C] as those of the places: the rest's are summed."""
        return [*map(float, values[list(self.shown)]), *([math.fsum(np.delete(values, self.shown))] if self.rest else [])]


def arrange(
    logits: Array,  # [C]
    *,
    label: int | None = None,
    truth: Sequence[Decimal] | None = None,
    names: Sequence[str] | None = None,
    j: int | None = None,
    k: int | None = None,
) -> Row:
    """Check one row and arrange it. `k` is the label if it is not given, `j` the likeliest other class."""
    classes = len(logits)
    if classes < 2:
        contract.fail("explain", "logits", "have at least 2 classes", classes)
    for n in np.flatnonzero(~(np.abs(logits.astype(np.float64)) <= LARGEST))[:1]:
        contract.fail("explain", "logits", f"be finite and of size {LARGEST:g} at most", f"{logits[n]:g} at class {n}")
    if (label is None) == (truth is None):
        contract.fail("explain", "truth", "be given once, as a label or as probabilities", "neither" if label is None else "both")
    if truth is not None:
        _check(truth, classes)
        label = max(range(classes), key=truth.__getitem__)
    assert label is not None
    for argument, value in (("label", label), ("j", j), ("k", k)):
        if value is not None and not 0 <= value < classes:
            contract.fail("explain", argument, f"lie in [0, {classes})", value)
    if names is not None and len(names) != classes:
        contract.fail("explain", "names", f"be {classes}, one for each class", len(names))
    ranked = np.argsort(-logits.astype(np.float64), kind="stable").tolist()  # likeliest first
    k = k if k is not None else label if j != label else next(n for n in ranked if n != j)
    j = j if j is not None else next(n for n in ranked if n != k)
    if j == k:
        contract.fail("explain", "j and k", "be two classes", f"{j} for both")
    y = truth if truth is not None else [Decimal(n == label) for n in range(classes)]
    return _together(logits, label if truth is None else np.array([float(t) for t in y]), y, label, j, k, names, ranked)


def _check(truth: Sequence[Decimal], classes: int) -> None:
    if len(truth) != classes:
        contract.fail("explain", "truth", f"be {classes} numbers, one for each class", len(truth))
    for n, t in enumerate(truth):
        if not (t.is_finite() and 0 <= t <= LARGEST):
            contract.fail("explain", "truth", f"be finite, not negative and {LARGEST:g} at most", f"{t} at class {n}")


def _together(
    z: Array, labels: Any, y: Sequence[Decimal], label: int, j: int, k: int, names: Sequence[str] | None, ranked: list[int]
) -> Row:
    shown = list(range(len(z)))
    if len(z) > APART:  # classes with truth before those with none: while they all stand apart, the loss is the row's own
        true = sorted((n for n in shown if y[n]), key=lambda n: -y[n])
        shown = sorted(list(dict.fromkeys((label, j, k, *true, *ranked)))[: APART - 1])
    called = [_printable(names[n]) if names is not None else f"class {n}" for n in shown]
    scores: list[Any] = [float(z[n]) for n in shown]
    truth, astray = [y[n] for n in shown], Decimal(0)
    if len(shown) < len(z):
        rest = np.delete(z, shown).astype(np.float64)
        others = [t for t in np.delete(np.array(y, dtype=object), shown)]
        with localcontext(CONTEXT):
            top = rest.max()
            scores.append(Decimal(float(top)) + Decimal(math.fsum(np.exp(rest - top))).ln())
            truth.append(sum(others, Decimal(0)))
            astray = sum((t * (scores[-1] - Decimal(float(s))) for t, s in zip(others, rest, strict=True) if t), Decimal(0))
        called.append(f"{len(rest):,} others")
    at = shown.index
    return Row(z, labels, tuple(shown), tuple(called), tuple(scores), tuple(truth), at(label), at(j), at(k), astray)


def _printable(name: str) -> str:
    """A name that cannot move the cursor or ring the bell."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


# ---------------------------------------------------------------- what is typed in, and files


def read(
    *, logits: str | None = None, file: Path | None = None, row: int | None = None, label: int | None = None, truth: str | None = None,
    labels: Path | None = None, names: str | None = None, names_file: Path | None = None, j: int | None = None, k: int | None = None,
) -> Row:  # fmt: skip
    """The row that the options of `softxent explain` speak of; the article's example without any."""
    _not_both(logits=logits, file=file)
    _not_both(label=label, truth=truth, labels=labels)
    _not_both(names=names, names_file=names_file)
    for option, value in (("row", row), ("labels", labels)):
        if value is not None and file is None:
            contract.fail("explain", f"--{option}", "come with --file", value)
    if logits is None and file is None:
        logits, names = EXAMPLE, names or (EXAMPLE_NAMES if names_file is None else None)
        label = 0 if truth is None and label is None else label
    z, rows = _logits_in(file, row or 0) if file else (np.array(_numbers("logits", logits or "", float)), 1)
    return arrange(
        z,
        label=_label_in(labels, row or 0, rows) if labels else label,
        truth=None if truth is None else _numbers("truth", truth, Decimal),  # as decimals 0.7, 0.2 and 0.1 sum to exactly 1
        names=_names_in(names_file) if names_file else names and [name.strip() for name in names.split(",")],
        j=j,
        k=k,
    )


def _not_both(**options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        contract.fail("explain", " and ".join(given), "not come together", "both" if len(given) == 2 else "all")


def _numbers(argument: str, text: str, of: Callable[[str], Any]) -> list[Any]:
    try:
        return [of(part.strip()) for part in text.split(",")]
    except (InvalidOperation, ValueError):
        contract.fail("explain", argument, "be numbers with commas between them", repr(text))


def _names_in(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        contract.fail("explain", "names-file", "be a text file in UTF-8", _what(path, error))


def _array_in(argument: str, path: Path) -> Array:
    """The array of an .npy file, or the only one of an .npz."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            if len(found.files) == 1:
                only: Array = found[found.files[0]]
                return only
            got = f"{path} with {', '.join(found.files) or 'none'}"
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        contract.fail("explain", argument, "be a file of one NumPy array (.npy, .npz)", _what(path, error))
    contract.fail("explain", argument, "hold one array", got)


def _logits_in(path: Path, row: int) -> tuple[Array, int]:
    """-> the row [C] of an array [N, C] or [C], and N."""
    a = _array_in("file", path)
    if a.ndim not in (1, 2):
        contract.fail("explain", "file", "hold an array [classes] or [rows, classes]", f"shape {a.shape}")
    a = a if a.ndim == 2 else a[None]
    if not 0 <= row < len(a):
        contract.fail("explain", "row", f"lie in [0, {len(a)})", row)
    return np.array(contract.floats("explain", "file", a[row])), len(a)


def _label_in(path: Path, row: int, rows: int) -> int:
    a = _array_in("labels", path)
    if a.shape != (rows,) or a.dtype.kind not in "iu":
        contract.fail("explain", "labels", f"hold integers of shape ({rows},), one for each row", f"{a.dtype} of shape {a.shape}")
    return int(a[row])


def _what(path: Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or str(error).partition(". ")[0]
    pickled = "pickle" in why or "object" in why  # NumPy has a sentence for each way of finding out
    return f"{path} ({'no array of numbers; files of pickled Python objects are not loaded' if pickled else why})"
