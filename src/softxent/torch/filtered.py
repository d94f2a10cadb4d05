"""The gradient filter of linear cross-entropy for CPU tensors: softxent/filtering.py, applied to their NumPy views."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..filtering import Filter, FilterStats
from ..linear import Sums, budget_beside_filter
from . import cpu
from .chunked import Problem


def filters(p: Problem) -> bool:
    """Whether the filter can be used: the kernel computes G in place, on the CPU, in float32 or float64."""
    return p.lean() and p.x.is_cpu and p.x.dtype in (torch.float32, torch.float64)


@torch.no_grad()
def filtered_gradients(p: Problem, g: Tensor, needs: int, tol: float, stats: FilterStats) -> tuple[Tensor, Sums]:
    """As `chunked.gradients`, for the upstream gradients g of the losses, with blocks of classes left out within the tolerance."""
    p = p._replace(budget=budget_beside_filter(p.budget), x=p.x.detach(), w=p.w.detach())
    sums, losses = p.sums(needs), torch.empty(len(p.x), dtype=torch.float64)
    if sums.dw is not None:
        sums.dw.zero_()
    label = None if p.target is None or p.target.is_floating_point() else cpu.array(p.target)
    filter = Filter(tol, stats, sums, p.x, p.w, cpu.array)
    with torch.autocast("cpu", enabled=False):
        for i, some, z in _in_place(p, g):
            losses[i] = some
            filter.add(i, z, label)
        if filter.failed:
            filter.anew()
            for i, _, z in _in_place(p, g):
                sums._replace(dx=None, db=None).add(i, z, p.x[i], None)
    return losses, sums


def _in_place(p: Problem, g: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield the slices of the rows, their losses, and their G in a buffer that the next chunk overwrites."""
    for i, z in p.chunks():
        yield i, cpu.in_place(z, p.of(i), p.weight, 1, p.ignore_index, p.smoothing, p.z_loss, g[i]), z
