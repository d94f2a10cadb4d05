"""The placements with which DTensors enter the operators of torch.library.

`cross_entropy` calls the operators with the tensors of one process. A DTensor reaches them only where somebody calls torch.ops.softxent
directly. The operators then compute the rows of each process; an axis of the mesh that divides the classes is gathered first.
"""

from __future__ import annotations

import functools
from typing import Any

from .operators import gradient_operator, log_softmax_operator, rows_operator

OFF = 4  # the position, after the logits, of the numbers of classes


@functools.cache
def register() -> None:
    """Register the placements of each operator with torch.distributed.tensor, which is imported for it."""
    from torch.distributed.tensor.experimental import register_sharding

    for operator in (rows_operator, gradient_operator, log_softmax_operator):
        register_sharding(operator._opoverload)(_placements)


def _placements(z: Any, *others: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return what an axis of the mesh may divide, nothing or one axis of the rows: the placements of the results and of the arguments."""
    from torch.distributed.tensor import Replicate, Shard

    tensors = next(k for k, other in enumerate(others) if type(other) is int)
    axis, more = others[tensors] % z.ndim, others[-1]
    found = []
    for divided in (None, *(k for k in range(z.ndim) if k != axis)):
        logits = Replicate() if divided is None else Shard(divided)
        rows = Replicate() if divided is None else Shard(divided - (divided > axis))
        given: list[Any] = [logits]
        for k, t in enumerate(others[:tensors]):
            if t is None or t.ndim == z.ndim:
                given.append(None if t is None else logits)
            else:
                given.append(Replicate() if t.ndim == 0 or k == OFF else rows)
        results = [rows, rows, *[rows if more else Replicate()] * 3] if type(more) is bool else [logits]
        found.append((results, [*given, *[None] * (len(others) - tensors)]))
    return found
