"""The checks of the derivation: each line by its rule and by SymPy or sums of squares, and its theorem by Coq; and of two further files.

`softxent prove` and the tests call it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from . import frechet, rounding
from .coq import BEYOND, INDUCTIVE, MEANINGS, meant, of_softmax_v, proof_of, same_definitions, statements
from .derivation import DERIVATIONS, Derivation

SOURCE = Path(__file__).with_name("Softmax.v")
AXIOMS = {  # the axioms of the real numbers of Coq's standard library; no others may be used
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
    "Classical_Prop.classic",
}
_HEAD = [
    "From Coq Require Import Reals List Permutation.",
    "Import ListNotations.",
    "From Softxent Require Softmax.",
    "Open Scope R_scope.",
]
_SAME = "the definition of "
HOW_TO_GET_COQ = "on Debian or Ubuntu: apt-get install --no-install-recommends coq; elsewhere: https://rocq-prover.org/install"


class Further(NamedTuple):
    """A file of theorems that are not lines of a derivation and need a library of Coq."""

    source: Path
    title: str
    library: str
    package: str  # of Debian
    theorems: dict[str, tuple[str, str]]
    lines_file: Callable[[], str]

    @property
    def how_to_get(self) -> str:
        opam = f"coq-{self.library.lower()}"
        return f"on Debian or Ubuntu: apt-get install --no-install-recommends {self.package}; elsewhere: opam install {opam}"


ROUNDING = Further(SOURCE.with_name("Rounding.v"), "Rounding errors", "Flocq", "libcoq-flocq", rounding.THEOREMS, rounding.lines_file)
FRECHET = Further(
    SOURCE.with_name("Frechet.v"), "The derivative on R^n", "Coquelicot", "libcoq-coquelicot", frechet.THEOREMS, frechet.lines_file
)  # fmt: skip


@dataclass
class Checked:
    """The result for a line, counted from 1, or for a whole derivation (line 0)."""

    derivation: Derivation
    line: int
    theorem: str
    refused: str | None = None  # by its form or its rule, by SymPy, or as a sum of squares
    sympy_seconds: float | None = None  # of these checks together
    coq_refused: str | None = None
    coq_seconds: float | None = None  # of its proof

    @property
    def judge(self) -> str:
        """What checks the line independently of its rule: SymPy's normal form, or for an inequality sums of squares."""
        return "squares" if self.line and self.derivation.steps[self.line - 1].rel != "=" else "sympy"

    @property
    def by(self) -> list[str]:
        """The checks that accept it."""
        rule = ["rule", self.judge] if self.line and self.refused is None and self.sympy_seconds is not None else []
        return rule + (["coq"] if self.coq_seconds is not None and self.coq_refused is None else [])

    @property
    def proved(self) -> bool:
        return self.refused is None and "coq" in self.by


@dataclass
class CheckedFile:
    """The result for a further file: what Coq refuses, or that the library is missing."""

    file: Further
    error: str | None = None
    missing: bool = False
    axioms: set[str] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def proved(self) -> bool:
        return self.error is None and not self.missing and bool(self.axioms) and self.axioms <= AXIOMS


@dataclass
class Proof:
    """The results of all checks. `coq` is the version of Coq, or None if it is not installed; `further` is empty if not asked for."""

    lines: list[Checked]
    further: list[CheckedFile] = field(default_factory=list)
    coq: str | None = None
    coq_error: str | None = None  # of the file as a whole
    axioms: set[str] = field(default_factory=set)

    @property
    def refused(self) -> list[Checked]:
        return [x for x in self.lines if x.refused or x.coq_refused]

    @property
    def proved(self) -> bool:
        lines = bool(self.lines) and all(x.proved for x in self.lines)
        further = all(x.proved for x in self.further)
        return self.coq is not None and self.coq_error is None and lines and self.axioms <= AXIOMS and further


def counts() -> dict[str, int]:
    """How many derivations, lines and theorems there are: a theorem for each line and for each derivation as a whole."""
    lines = sum(len(d.steps) for d in DERIVATIONS.values())
    return {"derivations": len(DERIVATIONS), "lines": lines, "theorems": lines + len(DERIVATIONS)}


def silent(what: str, n: int, of: int) -> None:
    pass


def prove(
    derivations: Iterable[Derivation] = DERIVATIONS.values(), *, further: bool = False, tell: Callable[[str, int, int], None] = silent
) -> Proof:
    """Check every line of the derivations, and if `further` is true the further files. `tell(what, n, of)` is called with the progress."""
    lines = [Checked(d, n, d.theorem(n) if n else d.name) for d in derivations for n in (*range(1, len(d.steps) + 1), 0)]
    proof = Proof(lines)
    _by_rules(lines, tell)
    if coqc := shutil.which("coqc"):
        _by_coq(coqc, proof, tell)
        for file in (ROUNDING, FRECHET) if further else ():
            tell(f"Coq: {file.source.name}", 1, 2)
            proof.further.append(check_file(coqc, file))
    return proof


def check_file(coqc: str, file: Further) -> CheckedFile:
    """Compile a further file, and compare its definitions and theorems with those that are stated in Python."""
    softmax, name = SOURCE.read_text(), file.source.name
    compiled, error, seconds = _compiled_file(coqc, softmax, name, file.source.read_text())
    if error:
        missing = f"prefix {file.library}" in error
        return CheckedFile(file, None if missing else f"{name}: {error}", missing)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "Softmax.vo").write_bytes(_compiled(coqc, softmax)[0])
        (where / f"{name}o").write_bytes(compiled)
        (where / "Lines.v").write_text(file.lines_file())
        done = _coqc(coqc, where, "Lines.v")
    if done.returncode:
        return CheckedFile(file, f"{name} states something else: {_message(done)}")
    return CheckedFile(file, axioms=_assumed(done.stdout), seconds=seconds)


@lru_cache(maxsize=4)
def _compiled_file(coqc: str, softmax: str, name: str, text: str) -> tuple[bytes, str | None, float]:
    """Return a further file compiled, or the error, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        compiled, error, _ = _compiled(coqc, softmax)
        if error:
            return b"", f"Softmax.v: {error}", 0.0
        (where / "Softmax.vo").write_bytes(compiled)
        (where / name).write_text(text)
        start = time.perf_counter()
        done = _coqc(coqc, where, name)
        return (b"", _message(done), 0.0) if done.returncode else ((where / f"{name}o").read_bytes(), None, time.perf_counter() - start)


def _by_rules(lines: list[Checked], tell: Callable[[str, int, int], None]) -> None:
    from .rules import refusal  # SymPy takes half a second to load

    for n, x in enumerate(lines):
        tell("rules and algebra", n + 1, len(lines))
        if x.line:
            start = time.perf_counter()
            x.refused = refusal(x.derivation, x.line)
            x.sympy_seconds = time.perf_counter() - start


def _by_coq(coqc: str, proof: Proof, tell: Callable[[str, int, int], None]) -> None:
    version = subprocess.run([coqc, "--version"], capture_output=True, text=True, check=False).stdout
    proof.coq = " ".join(version.split("\n")[0].split()[-1:]) or "?"
    source_text = SOURCE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        tell("Coq: Softmax.v", 0, 2)
        compiled, error, seconds = _compiled(coqc, source_text)
        if error:
            proof.coq_error = f"Softmax.v: {error}"
            return
        (where / "Softmax.vo").write_bytes(compiled)
        wanted = {name: says for x in proof.lines if not x.line for name, says in statements(x.derivation)}
        checked = {x.theorem: x for x in proof.lines}
        while wanted:
            tell("Coq: what each line says", 1, 2)
            source, at = _lines_file(wanted, set(theorems(source_text)))
            (where / "Lines.v").write_text(source)
            done = _coqc(coqc, where, "Lines.v")
            if not done.returncode:
                break
            culprit = _culprit(done.stderr, at)
            if culprit not in wanted:
                proof.coq_error = f"{culprit or 'Lines.v'}: {_message(done)}"
                if (name := (culprit or "").removeprefix(_SAME)) != culprit:
                    proof.coq_error = f"Softmax.v does not define {name} as the statements mean it: {_message(done)}"
                return
            checked[culprit].coq_refused = _message(done)
            del wanted[culprit]
        generated = _seconds(source, done.stdout)
        for name in wanted:
            checked[name].coq_seconds = seconds.get(name, 0.0) or generated.get(f"line_{name}", 0.0)
        proof.axioms = _assumed(done.stdout)
        tell("Coq", 2, 2)


@lru_cache(maxsize=8)
def _compiled(coqc: str, source: str) -> tuple[bytes, str | None, dict[str, float]]:
    """Return Softmax.v compiled, or the error, and the seconds of each theorem. A process compiles it once."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "Softmax.v").write_text(source)
        done = _coqc(coqc, where, "Softmax.v")
        if done.returncode:
            return b"", _message(done), {}
        return (where / "Softmax.vo").read_bytes(), None, _seconds(source, done.stdout)


def theorems(source: str) -> Iterator[str]:
    """Yield the name of each theorem in a file of Coq."""
    return (m[1] for m in re.finditer(r"^(?:Theorem|Lemma) (\w+)", source, re.M))


def lines_file() -> str:
    """Return the Coq file of the theorems of all lines."""
    wanted = {name: says for d in DERIVATIONS.values() for name, says in statements(d)}
    return _lines_file(wanted, set(theorems(SOURCE.read_text())))[0]


def _lines_file(wanted: dict[str, str], by_hand: set[str]) -> tuple[str, list[tuple[int, int, str]]]:
    """Return a Coq file that compares the definitions of Softmax.v with those of the statements, and proves the generated statement of each
    line: by the theorem of Softmax.v with its name if there is one (`by_hand`), and else by a tactic. Return also where each comparison and
    statement begins.
    """
    # each name is imported alone, so that the notations of Softmax.v have no effect here
    text, at = [*_HEAD, *meant()], []

    def add(name: str, *commands: str) -> None:
        start = sum(t.count("\n") + 1 for t in text) + 1
        text.extend(commands)
        at.append((start, start + sum(t.count("\n") + 1 for t in commands), name))

    for name, same in same_definitions():
        add(_SAME + name, same)
    text += of_softmax_v((*chain(*INDUCTIVE), *MEANINGS))
    everything = wanted | {name: says for name, (_, says) in BEYOND.items()}
    for name, says in everything.items():
        if name in by_hand or name in BEYOND:
            add(name, f"Definition says_{name} : Prop := {says}.", f"Definition line_{name} : says_{name} := @Softmax.{name}.")
        else:
            add(name, f"Theorem line_{name} : {says}.", f"Proof. {proof_of(name, wanted)} Qed.")
    names = [f"line_{name}" for name in everything]
    some = range(0, len(names), 16)
    text += [f"Definition all_{n} := ({', '.join(names[n : n + 16])}, tt)." for n in some]
    text += [f"Definition everything := ({', '.join(f'all_{n}' for n in some)}, tt).", "Print Assumptions everything.", ""]
    return "\n".join(text), at


def _assumed(output: str) -> set[str]:
    """Return what Print Assumptions lists: the names of axioms, and other assumptions as they are printed."""
    lines = [line for line in output.partition("Axioms:")[2].splitlines() if line.strip() and not line.startswith((" ", "Chars "))]
    return {named[1] if (named := re.match(r"(\S+)\s*:", line)) else line for line in lines}


def _culprit(errors: str, at: list[tuple[int, int, str]]) -> str | None:
    found = re.search(r'Lines\.v", line (\d+)', errors)
    return next((name for start, end, name in at if found and start <= int(found[1]) < end), None)


def _coqc(coqc: str, where: Path, file: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [coqc, "-q", "-time", "-R", ".", "Softxent", file], cwd=where, capture_output=True, text=True, check=False, timeout=600
    )


def _message(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.partition("Error:")[2].split()) or done.stderr.strip() or f"coqc ended with {done.returncode}"


def _seconds(source: str, timing: str) -> dict[str, float]:
    """Return the seconds of each theorem's statement and proof, from the output of coqc -time, whose positions are in bytes."""
    text = source.encode()
    theorems = re.finditer(rb"^(?:Theorem|Lemma)\s+(\w+)", text, re.M)
    spans = [(m.start(), text.find(b"Qed.", m.end()) + 4, m[1].decode()) for m in theorems]
    total = {name: 0.0 for *_, name in spans}
    for start, took in _timings(timing):
        for a, b, name in spans:
            if a <= start < b:
                total[name] += took
                break
    return total


def _timings(timing: str) -> Iterator[tuple[int, float]]:
    for m in re.finditer(r"^Chars (\d+) - \d+ \[.*?\] ([\d.]+) secs", timing, re.M):
        yield int(m[1]), float(m[2])
