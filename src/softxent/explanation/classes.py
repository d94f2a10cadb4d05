"""Find a class by its index or its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from .. import contract


def typed(text: int | str | None) -> int | str | None:
    """Return a class from the command line: a whole number is an index, even if a class has that name; any other text is a name."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"-?\d{1,18}", text) else text


def named(argument: str, name: str, names: Sequence[str]) -> int:
    """Return the index of the class with this name."""
    found = [n for n, one in enumerate(names) if one == name]
    if len(found) != 1:
        what = f"the name of {len(found)} classes" if found else f"close to it: {close_to(name, names)}"
        contract.fail("explain", argument, "be the index of a class or the name of one class", f"{contract.shown(name)} ({what})")
    return found[0]


def close_to(name: str, known: Iterable[str]) -> str:
    """Return the known names that are similar to a mistyped one."""
    return ", ".join(get_close_matches(name, list(known), 4, 0.5)) or "none"
