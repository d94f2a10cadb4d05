"""Read a row of logits from an .npy, .npz or .csv file, with its label and the names of the classes if the file has them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from .. import contract
from ..partials import Array
from .classes import named, typed

LOGITS, LABELS = ("logits", "z", "scores"), ("labels", "label", "y", "targets", "target")  # names of the arrays in an .npz
LABEL_COLUMNS = ("label", "labels", "target", "targets")  # names of the column of labels in a .csv
SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Found(NamedTuple):
    """A row as it is in a file."""

    logits: Array  # [C]
    rows: int = 1  # the number of rows of the file
    label: int | None = None
    names: list[str] | None = None


def row_of(path: Path, row: int) -> Found:
    """Read one row of a file of logits."""
    if path.suffix.lower() in SEPARATORS:
        return _csv_row(path, row)
    arrays, name = _arrays("file", path, (*LOGITS, *LABELS))
    chosen = _chosen("file", arrays, [name] if name is not None else arrays.like(LOGITS, "f", 2))
    labels = [n for n in arrays.like(LABELS, "iu", 1) if n != chosen]
    a = arrays.read[chosen]
    if a.ndim not in (1, 2):
        contract.fail("explain", "file", "hold an array [classes] or [rows, classes]", f"shape {a.shape}")
    a = a if a.ndim == 2 else a[None]
    _check_row(row, len(a))
    z = np.array(contract.floats("explain", "file", a[row]))
    return Found(z, len(a), _label("file", arrays.read[_chosen("file", arrays, labels)], row, len(a)) if labels else None)


def label_in(path: Path, row: int, rows: int) -> int:
    """Read the label of one row from a file of labels."""
    arrays, name = _arrays("labels", path, LABELS)
    chosen = _chosen("labels", arrays, [name] if name is not None else arrays.like(LABELS, "iu", 1))
    return _label("labels", arrays.read[chosen], row, rows)


def _label(argument: str, a: Array, row: int, rows: int) -> int:
    if a.shape != (rows,) or a.dtype.kind not in "iu":
        what = "labels that are integers" if argument == "file" else "integers"
        contract.fail("explain", argument, f"hold {what} of shape ({rows},), one for each row", f"{a.dtype} of shape {a.shape}")
    return int(a[row])


def _check_row(row: int, rows: int) -> None:
    if not 0 <= row < rows:
        contract.fail("explain", "row", f"lie in [0, {rows})", row)


def names_in(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        contract.fail("explain", "names-file", "be a text file in UTF-8", _what(path, error))


# ---------------------------------------------------------------- .npy and .npz


class Arrays(NamedTuple):
    """The arrays of an .npz by their names. The array of an .npy has the name ""."""

    path: Path
    names: list[str]  # of all arrays in the file
    read: dict[str, Array]  # the arrays that were read: all, if there are at most two, and otherwise those with a known name

    def like(self, known: tuple[str, ...], kinds: str, axes: int) -> list[str]:
        """Return the names of the candidates: the only array; or those with a known name; or, of two arrays, those of this kind and
        number of axes."""
        if len(self.names) == 1:
            return self.names
        named = [name for name in self.read if name in known]
        fit = [name for name, a in self.read.items() if a.dtype.kind in kinds and a.ndim == axes]
        return named or (fit if len(self.names) == 2 else [])


def _arrays(argument: str, path: Path, known: tuple[str, ...]) -> tuple[Arrays, str | None]:
    """Read a file of arrays. `batch.npz:name` selects an array of batch.npz, and its name is returned too."""
    before, _, name = str(path).rpartition(":")
    if before and not path.exists():
        arrays, _ = _arrays(argument, Path(before), (*known, name))
        return arrays, name
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return Arrays(path, [""], {"": found}), None
        with found:
            few = len(found.files) <= 2
            return Arrays(path, found.files, {name: found[name] for name in found.files if few or name in known}), None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        contract.fail("explain", argument, "be a file of one NumPy array (.npy, .npz)", _what(path, error))


def _chosen(argument: str, arrays: Arrays, names: list[str]) -> str:
    """Return the name of the only candidate, or raise an error."""
    if len(names) != 1 or names[0] not in arrays.read:
        known = LABELS[0] if argument == "labels" else LOGITS[0]
        expected = f"hold one array or one named {known}, or be given as {arrays.path}:NAME"
        contract.fail("explain", argument, expected, f"{arrays.path} with {', '.join(arrays.names) or 'none'}")
    return names[0]


# ---------------------------------------------------------------- .csv


def _csv_row(path: Path, row: int) -> Found:
    header, lines = _table(path)
    _check_row(row, len(lines))
    line, cells = lines[row]
    columns = len(header or lines[0][1])
    if len(cells) != columns:
        contract.fail("explain", "file", f"have {columns} columns on line {line}, as on its first", len(cells))
    labels, names = _label_columns(header), [name for n, name in enumerate(header) if n not in _label_columns(header)]
    for n, cell in enumerate(cells):
        if n not in labels and not _is_number(cell):
            called = f" ({header[n]})" if header else ""
            contract.fail("explain", "file", f"hold a number on line {line}, column {n + 1}{called}", repr(cell))
    label = typed(cells[labels[0]]) if labels else None
    if isinstance(label, str):
        label = named(f"the label on line {line}", label, names)
    return Found(np.array([float(cell) for n, cell in enumerate(cells) if n not in labels]), len(lines), label, names or None)


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the other lines with their line numbers. A first line of numbers only is not a header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=SEPARATORS[path.suffix.lower()])
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except (OSError, ValueError, csv.Error) as error:
        contract.fail("explain", "file", "be a table in UTF-8 with a row of numbers on each line", _what(path, error))
    header = lines.pop(0)[1] if lines and not all(map(_is_number, lines[0][1])) else []
    if not all(header):
        contract.fail(
            "explain", "file", "name every column in its header (pandas: index=False)", f"no name of column {header.index('') + 1}"
        )
    if len(_label_columns(header)) > 1:
        contract.fail("explain", "file", "have one column of labels", ", ".join(header[n] for n in _label_columns(header)))
    return header, lines


def _label_columns(header: list[str]) -> list[int]:
    return [n for n, name in enumerate(header) if name.lower() in LABEL_COLUMNS]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _what(path: Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or str(error).partition(". ")[0]
    pickled = "pickle" in why or "object" in why  # NumPy's messages for pickles
    return f"{path} ({'no array of numbers; files of pickled Python objects are not loaded' if pickled else why})"
