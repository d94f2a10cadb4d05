"""Trying the laws on a subject: what holds, and the smallest input found that breaks one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .case import Case, smaller
from .dialects import CallError
from .laws import LAWS, Broken, Law
from .subjects import Subject

HOLDS, BROKEN, REFUSED, LACKING, CRASHED = "holds", "broken", "refused", "not applicable", "crashed"
REFUSALS = (NotImplementedError, RuntimeError, ValueError, TypeError)  # errors by which a function says that it does not support a call
TRIALS = 60  # of smaller inputs


@dataclass
class Finding:
    """What a law gives for a subject."""

    law: str
    group: str
    statement: str
    status: str  # HOLDS, BROKEN, REFUSED (an error says that it is not supported), LACKING or CRASHED
    cases: int = 0
    what: str = ""  # what was compared, or the error
    expected: str = ""
    got: str = ""
    script: str = ""  # a script that prints what was got
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def attempt(law: Law, subject: Subject, one: Case) -> tuple[str, str, str, str]:
    """Return what the law gives for one case: its status, what was compared, what was expected, and what was got."""
    try:
        law.holds(subject, one)
    except Broken as error:
        return BROKEN, error.what, error.expected, error.got
    except CallError as error:
        refused = isinstance(error.__cause__, REFUSALS) and not law.must
        return (REFUSED if refused else BROKEN), "the call", "a result", str(error)
    return HOLDS, "", "", ""


def try_law(law: Law, subject: Subject, quick: bool = False) -> Finding:
    """Try a law on all its cases, up to the first that breaks it, which is then made smaller."""
    started = time.monotonic()
    found = Finding(law.name, law.group, law.statement, HOLDS)
    if missing := law.missing(subject):
        found.status, found.what = LACKING, "needs " + ", ".join(missing)
        return found
    for one in law.cases(subject, quick):
        found.cases += 1
        result = attempt(law, subject, one)
        if result[0] == HOLDS or (result[0] == REFUSED and found.status == REFUSED):
            continue
        if result[0] == BROKEN and law.shrinks:
            result, one = shrink(law, subject, one, result)
            attempt(law, subject, one)  # so that `last` is the call that breaks it
        found.status, found.what, found.expected, found.got = result
        found.script = subject.script(*subject.last) if subject.last else ""
        if " after " in found.what:  # an argument that was written to
            found.script += f"\nprint({found.what.partition(' ')[0]})"
        if found.status == BROKEN:
            break
    if not found.cases:
        found.status, found.what = LACKING, "no cases"
    found.seconds = time.monotonic() - started
    return found


def shrink(law: Law, subject: Subject, one: Case, result: tuple[str, str, str, str]) -> tuple[tuple[str, str, str, str], Case]:
    """Return a smaller case that breaks the law in the same way, by up to `TRIALS` trials."""
    trials, again = 0, True
    while again:
        again = False
        for other in smaller(one):
            trials += 1
            if trials > TRIALS:
                return result, one
            tried = attempt(law, subject, other)
            if tried[0] == BROKEN and _kind(tried) == _kind(result):
                result, one, again = tried, other, True
                break
    return result, one


def _kind(result: tuple[str, str, str, str]) -> tuple[str, bool, bool]:
    """Return what was compared, without its index, and whether NaN or infinity was expected: a smaller case must break in the same way."""
    _, what, expected, _ = result
    return what.partition("[")[0], expected == "nan", expected.endswith("inf")


def applicable(names: list[str] | None = None) -> list[Law]:
    """Return the laws of these names, or all of them."""
    from .. import contract

    for name in names or []:
        if name not in LAWS:
            contract.fail("check", "law", "be the name of a law (softxent check --list)", contract.shown(name))
    return [law for law in LAWS.values() if not names or law.name in names]


def findings(subject: Subject, quick: bool = False, names: list[str] | None = None) -> Iterator[Finding]:
    """Try the laws one after another, in this process."""
    for law in applicable(names):
        yield try_law(law, subject, quick)
