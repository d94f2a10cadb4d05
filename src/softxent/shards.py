"""How the columns of logits are divided among processes, and the order in which the sums over them are merged.

The kernel sums a row by blocks of BLOCK columns, and merges neighbouring blocks in pairs, then pairs of these, and so on. A `node` is a
range of columns whose blocks are merged with one another before they are merged with others. If every shard begins at a multiple of BLOCK,
the shards send the sums over their nodes, and merging these gives the sums of one process, to the last bit. Else each shard sends the sums
over all of its columns, and the result differs from that of one process in the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .shared import BLOCK


class Columns(NamedTuple):
    """Columns of a row: first, first + 1, ..., end - 1."""

    first: int
    end: int


def nodes(shards: Sequence[Columns]) -> list[list[Columns]]:
    """Return the ranges over which each shard sums. The shards are adjacent, in the order of their columns, and may be empty."""
    if any(shard.first % BLOCK for shard in shards if shard.first < shard.end):
        return [[shard] if shard.first < shard.end else [] for shard in shards]
    return [_nodes(shard, shards[-1].end) for shard in shards]


def _nodes(shard: Columns, end: int) -> list[Columns]:
    """Return the fewest nodes of rows with `end` columns that make up the shard."""
    found, first = [], shard.first
    while first < shard.end:
        block = first // BLOCK
        size = BLOCK * (block & -block) or end  # the largest node that begins here
        while first + size > shard.end and shard.end < end:
            size = BLOCK * _half(-(-size // BLOCK))
        found.append(Columns(first, min(first + size, shard.end)))
        first += size
    return found


def merge_order(ranges: Sequence[Columns]) -> list[tuple[int, int]]:
    """Return the pairs (i, j) in which sums over these adjacent columns are merged, those of j into those of i. All end up in the first."""

    def of(low: int, high: int) -> list[tuple[int, int]]:
        if high - low < 2:
            return []
        blocks = -(-(ranges[high - 1].end - ranges[low].first) // BLOCK)
        split = ranges[low].first + BLOCK * _half(blocks)
        for k in range(low + 1, high):
            if ranges[k].first == split:
                return [*of(low, k), *of(k, high), (low, k)]
        return [(low, k) for k in range(low + 1, high)]

    return of(0, len(ranges))


def _half(blocks: int) -> int:
    """Return the largest power of two below the number of blocks, or 1."""
    return 1 << max(0, (blocks - 1).bit_length() - 1)


def evenly(columns: int, shards: int) -> list[Columns]:
    """Return the columns of each shard as `torch.chunk` divides them: all of the same length, except for the last ones."""
    size = -(-columns // shards) if columns else 0
    return [Columns(min(i * size, columns), min((i + 1) * size, columns)) for i in range(shards)]
