"""What error messages and terminals show of values and of text from outside: printable, on one line, and not long."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np

LONGEST = 400  # characters of a value


def fail(fn: str, argument: str, expected: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
    """Raise an error: `function: argument must EXPECTED; got WHAT`. `got` is text or a value."""
    raise error(printable(f"{fn}: {argument} must {expected}; got {shown(got) if isinstance(got, (int, np.generic)) else got}"))


def shown(x: object) -> str:
    """Return the repr of a value on one line, without the names of NumPy's types of scalars."""
    x = x.item() if isinstance(x, np.generic) else x
    if isinstance(x, int) and x.bit_length() > 128:
        return f"an int of {x.bit_length()} bits"
    if isinstance(x, (list, tuple)):
        return shortened(("[{}]" if isinstance(x, list) else "({})").format(", ".join(map(shown, x[:LONGEST]))))
    return shortened(repr(x) if isinstance(x, str) else " ".join((str if isinstance(x, np.generic) else repr)(x).split()))


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}... ({len(text):,} characters)"


def printable(text: str) -> str:
    """Return text with its control characters escaped, so that it cannot control a terminal or add lines to a message."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def as_json(data: Any) -> str:
    """Return JSON, with text as it is apart from control characters, which are escaped in JSON's way."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, indent=1)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
