"""The laws of softmax cross-entropy, as a suite for any implementation of it.

`softxent check MODULE:FUNCTION` tries them in a terminal, `check` does the same in Python, and `laws` gives them to a test suite:

    import pytest
    from softxent import conformance

    @pytest.mark.parametrize("law", conformance.laws("my_library:cross_entropy"), ids=str)
    def test_cross_entropy(law):
        law()

Importing this module loads NumPy alone. A subject is loaded when it is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .check import BROKEN, CRASHED, HOLDS, LACKING, REFUSED, Finding, applicable, try_law
from .laws import LAWS, Broken, Law
from .run import Report, check
from .subjects import Subject

__all__ = [
    "BROKEN", "CRASHED", "HOLDS", "LACKING", "LAWS", "REFUSED", "Broken", "Finding", "Law", "LawOf", "Report", "Subject", "check", "laws",
]  # fmt: skip


class LawOf:
    """A law for one subject: calling it raises an AssertionError, with the smallest input that was found, if the subject breaks the law."""

    def __init__(self, law: Law, subject: Callable[[], Subject], quick: bool, strict: bool) -> None:
        self.law, self.subject, self.quick, self.strict = law, subject, quick, strict

    def __str__(self) -> str:
        return self.law.name.replace(" ", "_")

    def __call__(self) -> Finding:
        """Try the law and return the finding."""
        found = try_law(self.law, self.subject(), self.quick)
        if found.status == BROKEN or (self.strict and found.status == REFUSED):
            raise AssertionError(f"{found.statement}\n{found.what}: expected {found.expected}, got {found.got}\n\n{found.script}")
        return found


def laws(
    subject: str | Callable[..., Any], as_: str | None = None, *, quick: bool = True, strict: bool = False, names: list[str] | None = None
) -> list[LawOf]:
    """Return the laws for a function, to parametrize a test. They run in the process of the test.

    Args:
        subject: the function, or MODULE:FUNCTION, which is imported when the first law is called.
        as_, quick: as in `check`.
        strict: whether an error by which the function says that it does not support a call breaks the law.
        names: the names of the laws, or None for all of them. A law that does not apply to the subject passes.
    """
    made = cache(lambda: Subject(subject, as_))
    return [LawOf(law, made, quick, strict) for law in applicable(names)]
