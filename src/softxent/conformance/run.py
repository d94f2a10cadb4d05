"""A check of a subject in a process of its own: a crash or a call that does not return is a finding, and the next laws are tried anew."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from .. import contract
from .check import BROKEN, CRASHED, Finding, applicable
from .laws import LAWS

Progress = Callable[[str, int, int], None]
START = 60.0  # seconds for the imports of a subject, at least
TIMEOUT = 300.0  # seconds without an event, after which a call counts as one that does not return


@dataclass
class Report:
    """What a check has found."""

    subject: str
    dialect: str = ""
    options: list[str] = field(default_factory=list)
    reductions: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no law is broken, and the subject did not crash."""
        return not any(f.status in (BROKEN, CRASHED) for f in self.findings)

    def count(self, status: str) -> int:
        return sum(f.status == status for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        own = {"subject": self.subject, "dialect": self.dialect, "options": self.options, "reductions": self.reductions}
        return own | {"passed": self.passed, "findings": [f.as_dict() for f in self.findings]}


def check(
    subject: str,
    as_: str | None = None,
    *,
    quick: bool = False,
    laws: list[str] | None = None,
    timeout: float = TIMEOUT,
    ranks: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Try the laws of cross-entropy on a function, in a process of its own.

    Args:
        subject: MODULE:FUNCTION. The module is searched in the working directory too.
        as_: what the function is called like: "numpy", "torch", "jax" or "sklearn", with "-linear" for a linear head, or "-log_softmax" for
            a function whose results are log-probabilities. None: by the names of its parameters.
        quick: whether to leave out large cases and most of the dtypes.
        laws: the names of the laws, or None for all of them.
        timeout: seconds in which a call must return, compilation included.
        ranks: the number of processes of torch.distributed (gloo) among which the classes are divided. With more than one, a function of
            torch's signature is given DTensors, and all processes must have the same result.
        progress: called with the name of a law, its number and the number of laws, before the law is tried.

    Returns:
        The findings, one a law. `Report.passed` says whether no law is broken.

    Raises:
        ValueError: if the subject cannot be imported, or an argument does not fit.
    """
    names = [law.name for law in applicable(laws)]
    report, left = Report(subject), names
    while left:
        given = {"subject": subject, "as_": as_, "laws": left, "quick": quick, "ranks": ranks}
        done = _some(report, left, given, timeout, progress, len(names))
        left = left[done:]
    return report


def _some(report: Report, names: list[str], given: dict[str, Any], timeout: float, progress: Progress | None, total: int) -> int:
    """Try laws in one process until all are done or it ends. Returns the number of laws that have a finding."""
    found, law, script, started = 0, "", "", False
    events = _events(json.dumps(given), timeout)
    for event in events:
        kind = event.pop("event")
        if kind == "error":
            raise ValueError(event["text"])
        if kind == "subject":
            started = True
            report.dialect, report.options, report.reductions = event["dialect"], event["options"], event["reductions"]
        elif kind == "law":
            law, script = event["law"], ""
            if progress is not None:
                progress(law, total - len(names) + found, total)
        elif kind == "call":
            script = event["script"]
        elif kind == "finding":
            report.findings.append(Finding(**event))
            found += 1
            if found == len(names):
                events.close()
        elif kind == "end":
            if not started:
                contract.fail("check", "subject", "be a function that can be called", f"{contract.shown(report.subject)} ({event['how']})")
            one = LAWS[law or names[found]]
            crash = Finding(
                one.name, one.group, one.statement, CRASHED, what="the process", expected="a result", got=event["how"], script=script
            )
            report.findings.append(crash)
            found += 1
    return found


def _events(given: str, timeout: float) -> Generator[dict[str, Any], None, None]:
    """Yield the events of a new process, and "end" with what ended it."""
    read, write = os.pipe()
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "softxent.conformance.child", str(write), given]
        child = subprocess.Popen(command, pass_fds=[write], stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        os.close(write)
        how, pending, ended, limit = "", b"", False, max(timeout, START)
        try:
            while not ended:
                if not select.select([read], [], [], limit)[0]:
                    how = f"no result within {limit:g} seconds"
                    break
                data = os.read(read, 1 << 16)
                ended = not data
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    limit = timeout
                    yield json.loads(line)
        finally:
            os.close(read)
            if not ended:  # also if the reader stops: a process that hangs must not remain
                child.kill()
            code = child.wait()
        said.seek(0)
        last = (said.read().strip().splitlines() or [""])[-1]
    if not how:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}" + (f": {last}" if code else "")
    yield {"event": "end", "how": how}
