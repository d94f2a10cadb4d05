"""Functions of DTensors whose classes are divided among processes of torch.distributed (gloo), checked as functions of whole tensors.

The process that tries the laws is rank 0. It sends each call to the other ranks, which make it at the same time, and compares the results.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from .dialects import CallError, load
from .of_torch import TORCH

TIMEOUT = float(os.environ.get("SOFTXENT_RANKS_TIMEOUT", 20))  # seconds that a rank waits for the others


def divided(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of whole tensors that gives `f` its logits, or the weight and the bias of its head, divided by classes.

    `f` has the signature of torch's cross_entropy or linear_cross_entropy. It is called with DTensors, and with the labels and the weights
    of classes and rows as they are, in all processes of the default group, which is initialized as torchrun wants it if there is none.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    signature = inspect.signature(f)

    def placed(t: torch.Tensor, where: Placement) -> DTensor:
        return DTensor.from_local(t, mesh, [Replicate()]).redistribute(placements=[where])

    @functools.wraps(f)
    def whole(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options)
        if "linear_weight" in given.arguments:
            divide = {"input": Replicate(), "linear_weight": Shard(0), "linear_bias": Shard(0)}
        else:
            divide = {"input": Shard(min(1, given.arguments["input"].ndim - 1))}
        for name, where in divide.items():
            if given.arguments.get(name) is not None:
                given.arguments[name] = placed(given.arguments[name], where)
        found = f(*given.args, **given.kwargs)
        return found.full_tensor() if isinstance(found, DTensor) else found

    return whole


class Ranks:
    """The other ranks, in processes that end with this one.

    Args:
        size: the number of ranks, with this one.
        subject: the function, as MODULE:FUNCTION.
    """

    def __init__(self, size: int, subject: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        store = os.path.join(self.folder.name, "store")
        self.pipes, self.processes = [], []
        for rank in range(1, size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, store, subject, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        for pipe in self.pipes:  # all have imported torch
            pipe.recv()
        for pipe in self.pipes:
            pipe.send(None)
        _join(0, size, store)

    def begin(self, code: str, arrays: dict[str, Any]) -> None:
        """Make the other ranks run this code, in which `f` is the divided function."""
        for pipe in self.pipes:
            pipe.send((code, arrays))

    def end(self, error: str, results: list[Any]) -> None:
        """Compare the results of this rank, or its error, with those of the others.

        Raises:
            CallError: if the results differ.
            SystemExit: if one has an error and another one none, or the group does not work any more after an error.
        """
        answers = [(error, results)] + [pipe.recv() if pipe.poll(2 * TIMEOUT) else ("no answer", []) for pipe in self.pipes]
        if len({bool(one) for one, _ in answers}) > 1 or (error and not _in_step()):
            sys.exit("; ".join(f"rank {rank}: {one or 'a result'}" for rank, (one, _) in enumerate(answers)))
        for rank, (_, found) in enumerate(answers):
            for n, (a, b) in enumerate(zip(results, found, strict=True)):
                if not np.array_equal(a, b, equal_nan=True):
                    raise CallError(f"rank {rank} has another result {n} than rank 0")


def _join(rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT))


def _in_step() -> bool:
    """Whether the group still works: a rank that waited in vain has closed its connections. All ranks must call it."""
    try:
        dist.barrier()
    except RuntimeError:
        return False
    return True


def _serve(rank: int, size: int, store: str, subject: str, pipe: Any) -> None:
    """Run the calls that rank 0 sends."""
    pipe.send(None)
    pipe.recv()
    _join(rank, size, store)
    f = divided(load(subject)[0])
    while True:
        try:
            code, arrays = pipe.recv()
        except EOFError:
            return
        scope = {"f": f} | arrays
        exec(TORCH.imports, scope)
        try:
            exec(code, scope)
        except Exception as error:
            pipe.send((f"{type(error).__name__}: {error}", []))
            if not _in_step():
                return
            continue
        found = scope["result"] if isinstance(scope["result"], (tuple, list)) else [scope["result"]]
        pipe.send(("", [TORCH.to_numpy(a) for a in found]))
