"""The placements with which DTensors enter the operators of torch.library.

`cross_entropy` calls the operators with the tensors of one process. A DTensor reaches them only where somebody calls torch.ops.softxent
directly. The operators then compute the rows of each process; an axis of the mesh that divides the classes is gathered first.
"""

from __future__ import annotations

import functools
from typing import Any

from ..call import OF_CLASSES, Call
from . import private
from .compute import OUTPUTS
from .operators import LAST, TENSORS, gradient_operator, log_softmax_operator, rows_operator


@functools.cache
def register() -> None:
    """Register the placements of each operator with torch.distributed.tensor, which is imported for it."""
    from torch.distributed.tensor.experimental import register_sharding

    for operator in (rows_operator, gradient_operator, log_softmax_operator):
        register_sharding(private.overload(operator))(_placements)


def _placements(*arguments: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return what an axis of the mesh may divide, nothing or one axis of the rows: the placements of the results and of the arguments."""
    from torch.distributed.tensor import Replicate, Shard

    z, axis, found = arguments[0], arguments[TENSORS + 2], []
    outputs = arguments[LAST] if len(arguments) > LAST else 0  # of `rows`
    for divided in (None, *(k for k in range(z.ndim) if k != axis)):
        logits = Replicate() if divided is None else Shard(divided)
        rows = Replicate() if divided is None else Shard(divided - (divided > axis))

        def place(name: str, t: Any, logits: Any = logits, rows: Any = rows) -> Any:
            if t is None:
                return None
            if name in OF_CLASSES:
                return logits if t.ndim == z.ndim else Replicate()
            return rows if t.ndim else Replicate()

        given = [place(*each) for each in zip(Call._fields, arguments, strict=False)]
        of_rows = [*(rows if k < outputs else Replicate() for k in range(len(OUTPUTS))), Replicate()]
        found.append((of_rows if outputs else [logits], [*given, *[None] * (len(arguments) - len(given))]))
    return found
