"""Real text that every Python installation already has: the source of its standard library.

A token is a word (identifier or keyword, case kept), a run of digits, or one punctuation mark. Whole files are held out, one in ten
by the checksum of their path, so that no held-out token has been seen in its own file. The vocabulary comes from the other files only.

With Python 3.11 and 20,000 classes 1.6 % of the training's tokens are unknown and 6 % of the held-out ones. An unknown token is easier to
guess than the rare ones it stands for, so that the held-out loss starts below the training's.
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

UNKNOWN, START = 0, 1  # ids: a token outside the vocabulary; the padding before a file's first token
HELD_OUT = 10  # one file in so many

# Left out: what some distributions do not ship, third-party code, and encodings/ (generated tables, which would flatter the perplexity).
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
    """Token ids of the training and held-out files, each file behind `context` START tokens."""

    train: Ids
    held_out: Ids
    vocab: list[str]  # by id: unknown, start of file, then the commonest token first
    train_files: list[str]  # paths below the library's folder
    held_out_files: list[str]


def load(classes: int, context: int, root: Path | None = None) -> Corpus:
    """Read the *.py files below `root` (None: the running Python's standard library), cut to the `classes` - 2 commonest tokens.

    Raises RuntimeError where there is too little source to hold a file out, as in a Python that ships its library compiled.
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
    """By the path's checksum: the same answer on every machine and in every run, whatever other files there are."""
    return zlib.crc32(name.encode()) % HELD_OUT == 0


def positions(ids: Ids) -> Positions:
    """Where a token can be predicted: everywhere but at the padding."""
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
        except (UnicodeDecodeError, OSError):  # a few files test other encodings on purpose
            continue
