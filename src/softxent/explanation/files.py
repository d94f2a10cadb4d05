"""Read a row of logits from an .npy, .npz or .csv file, with its label and the names of the classes if the file has them."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy

from .. import contract
from ..partials import Array
from .classes import named, typed

LOGITS, LABELS = ("logits", "z", "scores"), ("labels", "label", "y", "targets", "target")  # names of the arrays in an .npz
LABEL_COLUMNS = ("label", "labels", "target", "targets")  # names of the column of labels in a .csv
SEPARATORS = {".csv": ",", ".tsv": "\t"}
ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the first bytes of an .npz, as np.load tells them
LIMIT, AT_MOST = 2**31, "2 GiB"  # what is read into memory: an array of an .npz, a row, or a file of text


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
    if a[row].nbytes > LIMIT:
        contract.fail("explain", "file", f"have rows of at most {AT_MOST}", f"{a[row].nbytes:,} bytes")
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


def _check_size(what: str, size: int) -> None:
    if size > LIMIT:
        raise ValueError(f"{what} has {size:,} bytes, and at most {AT_MOST} are read")


def names_in(path: Path) -> list[str]:
    try:
        _check_size("it", path.stat().st_size)
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
    if before and not _exists(path):
        arrays, _ = _arrays(argument, Path(before), (*known, name))
        return arrays, name
    try:
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file:  # of NumPy, about the syntax of a header
            if file.read(4) in ZIP:
                return _members(path, known), None
            return Arrays(path, [""], {"": np.load(path, mmap_mode="r", allow_pickle=False)}), None
    except Exception as error:  # zipfile, zlib, lzma and the parser of NumPy's headers raise many kinds
        contract.fail("explain", argument, "be a file of one NumPy array (.npy, .npz)", _what(path, error))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def _members(path: Path, known: tuple[str, ...]) -> Arrays:
    """Read the arrays of an .npz that may be wanted."""
    with ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        wanted = {name: member for name, member in members.items() if len(members) <= 2 or name in known}
        return Arrays(path, list(members), {name: _member(archive, member) for name, member in wanted.items()})


def _member(archive: ZipFile, name: str) -> Array:
    """Read one array. Its header says what NumPy would allocate, whatever the member holds."""
    with archive.open(name) as file:
        version = npy.read_magic(file)
        shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    size = math.prod(shape) * dtype.itemsize
    _check_size(f"the array {name.removesuffix('.npy')}", size)
    if size > archive.getinfo(name).file_size:
        raise ValueError(f"the array {name.removesuffix('.npy')} is cut off")
    with archive.open(name) as file:
        a: Array = npy.read_array(file, allow_pickle=False)
        return a


def _chosen(argument: str, arrays: Arrays, names: list[str]) -> str:
    """Return the name of the only candidate, or raise an error."""
    if len(names) != 1 or names[0] not in arrays.read:
        known = LABELS[0] if argument == "labels" else LOGITS[0]
        expected = f"hold one array or one named {known}, or be given as {arrays.path}:NAME"
        contract.fail("explain", argument, expected, contract.shortened(f"{arrays.path} with {', '.join(arrays.names) or 'none'}"))
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
            contract.fail("explain", "file", f"hold a number on line {line}, column {n + 1}{called}", contract.shown(cell))
    label = typed(cells[labels[0]]) if labels else None
    if isinstance(label, str):
        label = named(f"the label on line {line}", label, names)
    return Found(np.array([float(cell) for n, cell in enumerate(cells) if n not in labels]), len(lines), label, names or None)


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the other lines with their line numbers. A first line of numbers only is not a header."""
    try:
        _check_size("it", path.stat().st_size)
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
