"""Files and texts from outside: a damaged one gives an error of one line, and nothing in one controls the terminal."""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cases import command, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softxent.conformance.check import BROKEN, CRASHED, REFUSED, Finding
from softxent.conformance.report import page, show
from softxent.conformance.run import Report
from softxent.explanation import files

ESCAPES = "\x1b[2J\x1b]0;title\x07", "\x9b31m", "\u202egnp", "a\nsoftxent: done", "a\rb", "[bold]", "<b>$x_1$", "\udcff"
NPY = io.BytesIO()
np.save(NPY, np.arange(6.0).reshape(2, 3))


def npz(method: int = zipfile.ZIP_STORED, member: bytes = NPY.getvalue(), name: str = "z.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, member)
    return file.getvalue()


def header(shape: str, dtype: str = "'<f8'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def changed(data: bytes, *places: tuple[bytes, int, bytes]) -> bytes:
    """Return a zip file with bytes changed at offsets in all headers that begin with these four bytes."""
    out = bytearray(data)
    for mark, at, new in places:
        start = data.index(mark) + at
        out[start : start + len(new)] = new
    return bytes(out)


def encrypted(data: bytes) -> bytes:
    return changed(data, (b"PK\x03\x04", 6, b"\x01\x00"), (b"PK\x01\x02", 8, b"\x01\x00"))


def corrupt(method: int) -> bytes:
    data = bytearray(npz(method, NPY.getvalue() * 50))
    data[60:100] = b"\xff" * 40
    return bytes(data)


unknown = changed(npz(), (b"PK\x03\x04", 8, b"\x63\x00"), (b"PK\x01\x02", 10, b"\x63\x00"))
MALFORMED = {
    "deflate.npz": corrupt(zipfile.ZIP_DEFLATED),
    "lzma.npz": corrupt(zipfile.ZIP_LZMA),
    "bzip2.npz": corrupt(zipfile.ZIP_BZIP2),
    "encrypted.npz": encrypted(npz()),
    "unknown.npz": unknown,
    "empty.npz": b"PK\x05\x06" + bytes(18),
    "no_arrays.npz": npz(name="readme.txt"),
    "no_array.npz": npz(member=b"hello"),
    "cut.npz": npz()[:-30],
    "header.npy": b"\x93NUMPY\x01\x00\x05\x00{{{{{",
    "deep.npy": header("(" * 2000),
    "python2.npy": header("(2L, 3L)"),
    "version.npy": b"\x93NUMPY\x09\x00" + bytes(100),
    "long.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "huge.npy": header("(1152921504606846976,)") + bytes(64),
    "huger.npy": header("(1152921504606846976, 1152921504606846976)") + bytes(64),
    "negative.npy": header("(-1,)") + bytes(64),
    "huge.npz": npz(member=header("(1152921504606846976,)") + bytes(64)),
    "tebibytes.npz": npz(member=header("(1099511627776,)") + bytes(64)),
    "cut_off.npz": npz(member=header("(1000000,)") + bytes(64)),
    "fields.npy": header("(2,)", "[('a', '<f8'), ('b', '<i4')]") + bytes(64),
    "dates.npy": header("(2,)", "'<M8[s]'") + bytes(64),
    "void.npy": header("(2,)", "'|V0'") + bytes(64),
    "none.npy": header("(0, 3)"),
    "scalar.npy": header("()") + bytes(8),
    "label.csv": b"a,b,label\n1,2," + b"9" * 5000 + b"\n",
    "quote.csv": b'a,b\n"1,2\n',
    "field.csv": b"a,b\n" + b"1" * 200_000 + b",2\n",
    "null.csv": b"a,b\n1,\x00\n",
    "packed.csv.gz": gzip.compress(b"a,b\n1,2\n"),
}


def one_line(arguments, capsys):
    """The command gives a result, or one printable line and exit code 2. -> that line"""
    code, out, err = command(["explain", *arguments], capsys)
    assert "\x1b" not in out + err
    if code == 0:
        assert err == ""
        return ""
    assert (code, out, err.count("\n")) == (2, "", 1) and err[:-1].isprintable() and len(err) < 2000, err
    assert err.startswith("softxent explain: ") and " must " in err and "; got " in err, err
    return err


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(MALFORMED[name])
    assert one_line(["--file", name, "--label", "0"] if name != "label.csv" else ["--file", name], capsys)
    assert one_line(["--file", name, "--label", "0", "--row", "1"], capsys)
    if not name.endswith("csv"):
        np.save("z.npy", np.ones((2, 3)))
        assert one_line(["--file", "z.npy", "--labels", name], capsys)


@pytest.mark.parametrize("name", ["tebibytes.npz", "huge.npz"])
def test_the_message_names_the_limit(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(MALFORMED[name])
    assert f"bytes, and at most {files.AT_MOST} are read)" in one_line(["--file", name, "--label", "0"], capsys)
    sparse = Path("sparse.csv")
    with sparse.open("wb") as file:
        file.truncate(files.LIMIT + 1)
    assert f"at most {files.AT_MOST}" in one_line(["--file", "sparse.csv", "--label", "0"], capsys)
    assert f"at most {files.AT_MOST}" in one_line(["--names-file", "sparse.csv"], capsys)
    with Path("row.npy").open("wb") as file:
        file.write(header("(1000000000,)"))
        file.truncate(8 * 10**9 + 200)
    assert f"at most {files.AT_MOST}" in one_line(["--file", "row.npy", "--label", "0"], capsys)


def test_the_limit_is_the_size_that_the_message_says():
    assert files.LIMIT == 2 * 2**30 and files.AT_MOST == "2 GiB"
    files._check_size("it", files.LIMIT)
    with pytest.raises(ValueError, match="at most 2 GiB"):
        files._check_size("it", files.LIMIT + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is what Linux counts")
@pytest.mark.parametrize("name", ["tebibytes.npz", "huge.npz", "huge.npy", "cut_off.npz", "deep.npy"])
def test_no_memory_is_taken_for_what_a_header_claims(name, tmp_path):
    """In a process that may not take more than 3 GiB; what is refused says so, and not that memory is missing."""
    (tmp_path / name).write_bytes(MALFORMED[name])
    done = subprocess.run(
        [sys.executable, "-m", "softxent", "explain", "--file", name, "--label", "0"], env=environment(OPENBLAS_NUM_THREADS="1"),
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "llocate" not in done.stderr, done.stderr


VALID = {
    "a.npy": NPY.getvalue(),
    "a.npz": npz(),
    "deflated.npz": npz(zipfile.ZIP_DEFLATED),
    "lzma.npz": npz(zipfile.ZIP_LZMA),
    "a.csv": b"cat,dog,label\n1,2.5,cat\n-1e3,0,dog\n",
    "a.tsv": b"1\t2\n3\t4\n",
    "a.csv.gz": gzip.compress(b"cat,dog\n1,2\n"),
}


@pytest.mark.parametrize("name", VALID)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_changed_bytes_give_one_line_or_a_result(name, data, tmp_path, capsys):
    """The file is read, and a row of it checked; what follows is of the numbers alone."""
    content = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(("set", "cut", "insert", "flip")))
        if how == "set":
            content[at] = data.draw(st.sampled_from((0, 1, 9, 10, 27, 34, 44, 57, 127, 128, 255)))
        elif how == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif at:
            del content[at:]
    path = tmp_path / name
    path.write_bytes(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = files.row_of(path, 0)
        except (ValueError, TypeError) as error:
            assert str(error).isprintable() and str(error).startswith("explain: ") and " must " in str(error), str(error)
        else:
            assert found.logits.ndim == 1 and found.logits.dtype.kind == "f"


# ---------------------------------------------------------------- text from outside


@pytest.mark.parametrize("text", ESCAPES, ids=ascii)
def test_nothing_from_outside_controls_the_terminal(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    raw = text.encode("utf-8", "surrogateescape")
    quoted = b'"' + raw + b'"'
    for n, table in enumerate((
        b"a,b\n1," + quoted + b"\n", b"a," + quoted + b"\n1,x\n", quoted + b",b,label\n1,2,c\n", b"a,b,label\n1,2," + quoted + b"\n",
    )):  # fmt: skip
        Path(f"{n}.csv").write_bytes(table)
        assert one_line(["--file", f"{n}.csv"], capsys)
    if "\udcff" not in text:
        np.savez("batch.npz", **{text: np.ones(3), "b": np.ones(3)})
        assert one_line(["--file", "batch.npz", "--label", "0"], capsys)
    for arguments in (
        ["--names", f"{text},b,c", "--label", text + "x"], ["--names", f"{text},{text},c", "--label", text], ["--logits", text],
        ["--file", text, "--label", "0"], ["--file", f"{text}:x", "--label", "0"], ["--labels", text], ["--names-file", text], [text],
        ["--html", f"{text}/x/y.html"], ["--j", text], ["--truth", text],
    ):  # fmt: skip
        assert one_line(arguments, capsys)
    for program in ("prove", "bench --shapes", "bench --dtypes", "bench --threads", "check", "check --as", "check softxent:softmax --law"):
        code, out, err = command([*program.split(), text], capsys)
        assert code in (1, 2) and "\n".join((out + err).split("\n")).replace("\n", "").isprintable(), (program, out + err)


@pytest.mark.parametrize("text", ESCAPES[:-1], ids=ascii)
def test_names_of_classes_and_files_are_shown_and_control_nothing(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("names").write_text(f"{text.replace(chr(10), chr(11)).replace(chr(13), chr(12))}\nb\nc\n", encoding="utf-8")
    given = ["result1", "--names-file", "names", "--label", "1"]
    code, out, err = command(["explain", *given], capsys)
    assert (code, err) == (0, "") and out.replace("\n", "").isprintable()
    code, out, err = command(["explain", "--json", *given], capsys)
    assert (code, err) == (0, "") and out.replace("\n", "").isprintable() and len(json.loads(out)["row"]["names"]) == 3
    code, out, err = command(["explain", "--html", f"{text}.html", *given], capsys)
    assert (code, err) == (0, "") and out[:-1].isprintable() and Path(f"{text}.html").exists()


def test_a_report_of_a_function_with_a_hostile_message_controls_nothing():
    """The messages of the function that is checked come from outside, too."""
    from rich.console import Console

    text = "[/bold][red]\x1b[2J\x9b<script>alert(1)</script>"
    findings = [Finding(text, text, text, status, 1, text, text, text, f"{text}\n{text}") for status in (BROKEN, CRASHED, REFUSED)]
    report = Report(text, "torch", [text], findings=findings)
    file = io.StringIO()
    show(report, Console(file=file, width=300, color_system=None))
    assert file.getvalue().replace("\n", "").isprintable() and "<script>" not in page(report)
