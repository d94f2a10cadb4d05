"""Completion of a line of code by the model, which always takes its most probable token."""

from __future__ import annotations

from collections.abc import Sequence
from keyword import iskeyword

import numpy as np

from .corpus import START, UNKNOWN, encode, tokens
from .model import CONTEXT, Model

_OPENS = {  # keywords that begin a statement; the text has no line ends, so such a word marks the end of a line
    "assert", "async", "break", "class", "continue", "def", "del", "elif", "except", "finally", "from", "global", "import", "pass",
    "raise", "return", "try", "while", "with",
}  # fmt: skip


def complete(model: Model, vocab: Sequence[str], prompt: str, most: int = 10) -> list[str]:
    """Return the tokens of the prompt and up to `most` further tokens of the line. Unknown tokens and starts of files are not predicted."""
    index = {token: i for i, token in enumerate(vocab)}
    line = tokens(prompt)
    for _ in range(most):
        context = ([START] * CONTEXT + encode(line, index))[: -CONTEXT - 1 : -1]
        (z,) = model.logits(np.array([context], np.int32))
        z[[UNKNOWN, START]] = -np.inf
        token = vocab[int(z.argmax())]
        if _next_line(line, token):
            return line
        line.append(token)
        if token == ":" and not _depth(line):
            return line
    return [*line, "..."]


def pretty(line: Sequence[str]) -> str:
    """Join tokens with spaces where Python's style has them, as far as two adjacent tokens show."""
    return "".join(token if _joined(before, token) else f" {token}" for before, token in zip(["", *line[:-1]], line, strict=True))


def _next_line(line: Sequence[str], token: str) -> bool:
    names = all(word.isidentifier() and not iskeyword(word) for word in (line[-1], token))
    return names or (token in _OPENS and not _depth(line) and not (token == "import" and "from" in line))


def _depth(line: Sequence[str]) -> int:
    return sum((token in "([{") - (token in ")]}") for token in line)


def _joined(before: str, token: str) -> bool:
    if before in ("", "(", "[", "{", ".", "@", "~") or token in (".", ",", ":", ";", ")", "]", "}"):
        return True
    if token in ("(", "["):
        return before in (")", "]") or (before.isidentifier() and not iskeyword(before))
    return (token == "=" and before in "=!<>+-*/%|&^") or before == token == '"' or before + token in ("**", "//", "<<", ">>", "->")
