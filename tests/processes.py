"""Processes of torch.distributed (gloo), four by default, for tests: `processes(function, world, ...)` calls the function in the first
`world`.

The processes are started once for all tests of a file. Each has the groups of the first 1, 2, ... of them, and meshes of these.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import traceback
from typing import Any

SIZE = 4
group: Any = None  # of the current call
meshes: dict[Any, Any] = {}
groups: dict[int, Any] = {}


class Processes:
    """Calls functions in all processes; an error in one of them is raised here."""

    def __init__(self, size: int = SIZE) -> None:
        context: Any = multiprocessing.get_context(os.environ.get("SOFTXENT_TEST_START", "spawn"))  # tools/mutate.py: "fork"
        self.folder = tempfile.TemporaryDirectory()
        self.pipes, self.children = [], []
        for rank in range(size):
            here, there = context.Pipe()
            child = context.Process(target=_serve, args=(rank, size, os.path.join(self.folder.name, "store"), there), daemon=True)
            child.start()
            self.pipes.append(here)
            self.children.append(child)

    def __call__(self, function: Any, world: int, *arguments: Any) -> list[Any]:
        for pipe in self.pipes[:world]:
            pipe.send((function, world, arguments))
        found = [pipe.recv() for pipe in self.pipes[:world]]
        failed = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(found) if not ok]
        assert not failed, "\n".join(failed)
        return [result for _, result in found]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for child in self.children:
            child.join(20)
            child.kill()
        self.folder.cleanup()


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=int(os.environ.get("SOFTXENT_TEST_TIMEOUT", 30)))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)

    def new_group(*ranks: int) -> Any:  # that of a DeviceMesh itself would wait for half an hour for a process that has failed
        return dist.new_group(list(ranks), timeout=timeout)

    for n in range(1, size + 1):
        groups[n] = new_group(*range(n))
        if rank < n:
            meshes[n] = DeviceMesh.from_group(groups[n], "cpu", mesh_dim_names=("classes",))
    if size == 4:
        rows, classes = ([new_group(*ranks) for ranks in each] for each in (((0, 2), (1, 3)), ((0, 1), (2, 3))))
        mine = [rows[rank % 2], classes[rank // 2]]
        meshes["2x2"] = DeviceMesh.from_group(mine, "cpu", mesh=[[0, 1], [2, 3]], mesh_dim_names=("rows", "classes"))
    while (call := pipe.recv()) is not None:
        function, world, arguments = call
        try:
            pipe.send((True, function(world, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()
