"""The benchmark of classes that are divided among processes: `softxent bench --distributed`.

The processes run on this machine with one thread each, and communicate by gloo. All contenders of a case run in the same processes, in
rounds of random order, between barriers: softxent and PyTorch's `loss_parallel` in all processes, and one process alone on as many threads.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .measure import PAUSE, growth
from .report import header, machine, ratio, table

DIVIDED, ONE, FUSED, PARALLEL = "softxent, divided", "softxent, one process", "softxent, one process, in one pass", "torch loss_parallel"


class Case(NamedTuple):
    """What a group of processes measures."""

    kind: str  # "logits", "options" or "head"
    processes: int
    rows: int
    classes: int
    width: int = 0  # of the hidden states of a head

    def title(self) -> str:
        width = f", D = {self.width}" if self.width else ""
        return f"{self.kind}, N = {self.rows}, V = {self.classes}{width}, {self.processes} processes"


CASES = [Case(kind, n, rows, 128256, width) for n in (2, 4) for kind, rows, width in (("logits", 2048, 0), ("head", 1024, 512))]
CASES.append(Case("options", 2, 1024, 32000))
QUICK = [Case("logits", 2, 64, 1000), Case("options", 2, 16, 1000), Case("head", 2, 64, 1000, 16)]
ALONE = ", one process"  # after the name of an option


def run(repeats: int, output: Path, quick: bool) -> None:
    """Run the benchmark, print its tables, and write distributed.json and distributed.md."""
    from . import progress, written

    output.mkdir(parents=True, exist_ok=True)
    cases, records = QUICK if quick else CASES, []
    with progress(len(cases)) as step:
        for case, record in zip(cases, _measured(cases, repeats, quick), strict=True):
            records.append(record)
            step({"kind": "distributed", "shape": case.title(), "dtype": "f32", "threads": 1, "isa": ""})
    results = {"machine": machine(), "repeats": repeats, "records": records}
    written("distributed", results, text(results), output)


def _measured(cases: list[Case], repeats: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the records of cases, each measured in processes of its own; if quick, all in the same processes."""
    for some in [cases] if quick else [[case] for case in cases]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "softxent.bench", "distributed-worker"]
            jobs = [json.dumps([rank, os.path.join(folder, "store"), repeats, some]) for rank in range(some[0].processes)]
            workers = [subprocess.Popen([*command, job], stdout=subprocess.PIPE, text=True) for job in jobs]
            found = [worker.communicate()[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise ValueError(f"bench: {some[0].title()}: the processes ended with {[worker.returncode for worker in workers]}")
        of_ranks: list[list[dict[str, Any]]] = [list(map(json.loads, out.splitlines()[-len(some) :])) for out in found]
        for case, lines in zip(some, zip(*of_ranks, strict=True), strict=True):
            yield {"case": case, "seconds": lines[0]["seconds"], "extra": [line["extra"] for line in lines]}


def work(rank: int, store: str, repeats: int, cases: list[Any]) -> None:
    """Measure in one of the processes, and print a line of JSON for each case."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=Case(*cases[0]).processes)
    for case in cases:
        _measure(Case(*case), rank, repeats)
    dist.destroy_process_group()


def _measure(c: Case, rank: int, repeats: int) -> None:
    import torch.distributed as dist

    calls, leaves = {"logits": _logits, "options": _options, "head": _heads}[c.kind](c, rank)

    def clear() -> None:  # not within a time: to release the memory of a gradient of torch takes long
        for leaf in leaves:
            leaf.grad = None

    extra = {}
    for name, call in calls.items():
        dist.barrier()
        if name in (DIVIDED, PARALLEL):
            extra[name] = growth(call)
        clear()
        call()
        clear()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            time.sleep(PAUSE)
            dist.barrier()
            begin = time.perf_counter()
            calls[name]()
            dist.barrier()
            seconds[name].append(time.perf_counter() - begin)
            clear()
    print(json.dumps({"seconds": seconds, "extra": extra}), flush=True)


def _alone(c: Case, rank: int, call: Any) -> Any:
    """Return the call for the first process, on as many threads as there are processes; the others wait."""
    import torch

    def called() -> None:
        if rank:
            return
        torch.set_num_threads(c.processes)
        call()
        torch.set_num_threads(1)

    return called


def _logits(c: Case, rank: int) -> tuple[dict[str, Any], list[Any]]:
    import torch
    import torch.nn.functional as F
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    from ..shards import evenly
    from ..torch import cross_entropy

    mine = evenly(c.classes, c.processes)[rank]
    labels = torch.randint(0, c.classes, (c.rows,), generator=torch.Generator().manual_seed(0))
    local = torch.randn(c.rows, mine.end - mine.first, generator=torch.Generator().manual_seed(rank))
    mesh = init_device_mesh("cpu", (c.processes,))
    z: Any = DTensor.from_local(
        local, mesh, [Shard(1)], run_check=False, shape=torch.Size((c.rows, c.classes)), stride=(c.classes, 1)
    ).requires_grad_()
    whole = torch.randn(c.rows, c.classes).requires_grad_() if not rank else None

    def divided() -> None:
        cross_entropy(z, labels).backward()

    def parallel() -> None:
        with loss_parallel():
            loss: Any = F.cross_entropy(z, labels)
            loss.backward()

    def one(reduction: str) -> None:
        assert whole is not None
        cross_entropy(whole, labels, reduction=reduction).sum().backward()

    in_two, in_one = _alone(c, rank, lambda: one("none")), _alone(c, rank, lambda: one("mean"))
    return {DIVIDED: divided, PARALLEL: parallel, ONE: in_two, FUSED: in_one}, [z, *([] if whole is None else [whole])]


def _options(c: Case, rank: int) -> tuple[dict[str, Any], list[Any]]:
    """Return a call for each option and derivative, of divided classes and of one process."""
    import torch
    import torch.distributed as dist

    from ..shards import evenly
    from ..torch import cross_entropy

    mine = evenly(c.classes, c.processes)[rank]
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(c.rows, c.classes, generator=draw)
    labels = torch.randint(0, c.classes, (c.rows,), generator=draw)
    truth = torch.randn(c.rows, c.classes, generator=draw).softmax(1)
    weight = torch.rand(c.classes, generator=draw) + 0.5
    along = torch.randn(c.rows, c.classes, generator=draw)
    part = slice(mine.first, mine.end)
    group = {"group": dist.group.WORLD, "first_class": mine.first}
    outputs: Any = {f"return_{name}": True for name in ("lse", "entropy", "logprobs", "correct")}
    leaves = [whole[:, part].clone().requires_grad_(), whole.requires_grad_()]

    def reverse(**options: Any) -> Any:
        def call(z: Any, group: dict[str, Any]) -> None:
            cross_entropy(z, labels, **options, **group).backward()

        return call

    def losses_of_rows(z: Any, group: dict[str, Any]) -> None:
        cross_entropy(z, labels, reduction="none", **group).sum().backward()

    def probabilities(z: Any, group: dict[str, Any]) -> None:
        cross_entropy(z, own[z.shape[1]], **group).backward()

    def all_outputs(z: Any, group: dict[str, Any]) -> None:
        found = cross_entropy(z, labels, **outputs, **group)
        (found.loss + found.lse.sum() + found.entropy.sum() + found.logprobs.sum()).backward()

    def double_backward(z: Any, group: dict[str, Any]) -> None:
        (dz,) = torch.autograd.grad(cross_entropy(z, labels, **group), z, create_graph=True)
        torch.autograd.grad(dz, z, v[z.shape[1]])

    def forward_mode(z: Any, group: dict[str, Any]) -> None:
        make_dual: Any = torch.autograd.forward_ad.make_dual  # untyped
        with torch.autograd.forward_ad.dual_level():
            cross_entropy(make_dual(z.detach(), v[z.shape[1]]), labels, **group)

    own = {truth.shape[1]: truth, mine.end - mine.first: truth[:, part].contiguous()}
    v = {along.shape[1]: along, mine.end - mine.first: along[:, part].contiguous()}
    every = {
        DIVIDED: reverse(), "losses of rows": losses_of_rows,
        "label smoothing": reverse(label_smoothing=0.1), "class weights": reverse(weight=weight),
        "softcap": reverse(softcap=30.0), "z-loss": reverse(z_loss=1e-4), "probabilities as labels": probabilities,
        "all outputs": all_outputs, "double backward": double_backward, "forward mode": forward_mode,
    }  # fmt: skip
    calls = {}
    for name, call in every.items():
        calls[name] = functools.partial(call, leaves[0], group)
        calls[name + ALONE] = _alone(c, rank, functools.partial(call, leaves[1], {}))
    return calls, leaves


def _heads(c: Case, rank: int) -> tuple[dict[str, Any], list[Any]]:
    import torch
    import torch.distributed as dist

    from ..shards import evenly
    from ..torch import linear_cross_entropy

    mine = evenly(c.classes, c.processes)[rank]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(c.rows, c.width, generator=draw).requires_grad_()
    labels = torch.randint(0, c.classes, (c.rows,), generator=draw)
    w = torch.randn(mine.end - mine.first, c.width).mul_(c.width**-0.5).requires_grad_()
    whole = torch.randn(c.classes, c.width).mul_(c.width**-0.5).requires_grad_() if not rank else None

    def divided() -> None:
        linear_cross_entropy(x, w, labels, group=dist.group.WORLD, first_class=mine.first).backward()

    def one() -> None:
        assert whole is not None
        linear_cross_entropy(x, whole, labels).backward()

    return {DIVIDED: divided, FUSED: _alone(c, rank, one)}, [x, w, *([] if whole is None else [whole])]


def text(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    parts = [header(results), ""]
    columns = ["", "ms", "multiples of softxent, divided", "most memory beyond logits and parameters (gradients included), MiB a process"]
    for record in results["records"]:
        if Case(*record["case"]).kind == "options":
            parts.append(_table_of_options(record))
            continue
        rows = []
        for name, seconds in record["seconds"].items():
            multiple = ratio(record, name, DIVIDED)
            rows.append([name, f"{median(seconds) * 1e3:.4g}", f"{multiple[0]:.3g}" if multiple else "-", _memory(record, name)])
        heading = f"{Case(*record['case']).title()} (gloo, one thread each): loss and backward, float32"
        parts.append(table(heading, columns, rows))
    return "\n".join(parts)


def _table_of_options(record: dict[str, Any]) -> str:
    rows = []
    for name, seconds in record["seconds"].items():
        if not name.endswith(ALONE):
            multiples = (ratio(record, name, DIVIDED), ratio(record, name, name + ALONE))
            rows.append([name, f"{median(seconds) * 1e3:.4g}", *(f"{multiple[0]:.3g}" if multiple else "-" for multiple in multiples)])
    columns = ["", "ms", "multiples of softxent, divided", "multiples of one process, in one pass where it can be"]
    return table(f"{Case(*record['case']).title()} (gloo, one thread each): loss and backward, float32", columns, rows)


def _memory(record: dict[str, Any], name: str) -> str:
    found = [extra[name] for extra in record["extra"] if extra.get(name) is not None]
    return f"{max(found) / 2**20:.0f}" if found else "-"
