"""Classes that are given by their index or by their name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from .. import contract


def typed(text: int | str | None) -> int | str | None:
    """A class as it is typed in: a whole number is its index, even where a class has that name; everything else is its name."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"-?\d+", text) else text


def named(argument: str, name: str, names: Sequence[str]) -> int:
    """The index of the class of that name."""
    found = [n for n, one in enumerate(names) if one == name]
    if len(found) != 1:
        what = f"the name of {len(found)} classes" if found else f"close to it: {close_to(name, names)}"
        contract.fail("explain", argument, "be the index of a class or the name of one class", f"{name!r} ({what})")
    return found[0]


def close_to(name: str, known: Iterable[str]) -> str:
    """The known names that a mistyped one may have meant."""
    return ", ".join(get_close_matches(name, list(known), 4, 0.5)) or "none"
