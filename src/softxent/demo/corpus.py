"""The text of the demo: the source of Python's standard library, which every installation has.

A token is a word (an identifier or keyword, with its case), a sequence of digits, or one punctuation mark. One file in ten, by the checksum
of its path, is held out as a whole, so that the model has not seen any part of it. The vocabulary is taken from the other files.

With Python 3.11 and 20,000 classes, 1.6 % of the training tokens and 6 % of the held-out tokens are unknown. An unknown token is easier to
predict than the rare tokens that it replaces, so the held-out loss starts below that of the training.
"""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNKNOWN, START = 0, 1  # the ids of a token outside the vocabulary, and of the padding before the first token of a file
HELD_OUT = 10  # one file in so many is held out

# Not read: folders that some distributions do not include, third-party code, and encodings/, whose generated tables are easy to predict.
_SKIP = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "turtledemo", "tkinter", "ensurepip",
    "encodings", "distutils",
}  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[^\w\s]")

Ids = NDArray[np.int32]
Positions = NDArray[np.int64]  # in a stream of ids


class Examples(NamedTuple):
    context: Ids  # [N, context], the most recent token first
    labels: Ids  # [N], the token that comes next

    def part(self, i: slice) -> Examples:
        return Examples(self.context[i], self.labels[i])


class Corpus(NamedTuple):
    """The token ids of the training and held-out files. Each file begins with `context` START tokens."""

    train: Ids
    held_out: Ids
    vocab: list[str]  # the token of each id: unknown, start of file, then the tokens by frequency, the most frequent first
    train_files: list[str]  # paths below the library's folder
    held_out_files: list[str]


def load(classes: int, context: int, root: Path | None = None) -> Corpus:
    """Read the *.py files below `root`, or the standard library of this Python if None. The vocabulary is the `classes` - 2 most frequent
    tokens.

    Raises:
        RuntimeError: if there are too few files to hold one out, as in a Python that has its library in compiled form only.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    texts = dict(_texts(root))
    held_out = [name for name in texts if is_held_out(name)]
    train = [name for name in texts if not is_held_out(name)]
    if not held_out or not train:
        raise RuntimeError(f"softxent demo: reads the Python source below {root}, and finds {len(texts)} files there: too few")
    count = Counter(token for name in train for token in texts[name])
    common = sorted(count, key=lambda token: (-count[token], token))[: classes - 2]
    vocab = ["<unk>", "<file>", *common]
    index = {token: i for i, token in enumerate(vocab)}

    def ids(names: list[str]) -> Ids:
        return np.array([i for name in names for i in [START] * context + encode(texts[name], index)], dtype=np.int32)

    return Corpus(ids(train), ids(held_out), vocab, train, held_out)


def tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def encode(words: list[str], index: dict[str, int]) -> list[int]:
    return [index.get(token, UNKNOWN) for token in words]


def is_held_out(name: str) -> bool:
    """Decide by the checksum of the path, so that the answer is the same on every machine and does not depend on other files."""
    return zlib.crc32(name.encode()) % HELD_OUT == 0


def positions(ids: Ids) -> Positions:
    """Return the positions of the tokens to predict: all except the padding."""
    return np.flatnonzero(ids != START)


def examples(ids: Ids, at: Positions, context: int) -> Examples:
    return Examples(ids[at[:, None] - np.arange(1, context + 1)], ids[at])


def _texts(root: Path) -> Iterator[tuple[str, list[str]]]:
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _SKIP.isdisjoint(name.parts) or path.name.startswith("_sysconfigdata"):
            continue
        try:
            yield name.as_posix(), tokens(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError):  # a few files have other encodings on purpose
            continue
