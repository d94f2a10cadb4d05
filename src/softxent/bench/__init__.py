"""The benchmark: the time and memory of softxent and of other libraries. It runs by `softxent bench` or `python -m softxent.bench`.

All contenders run in one process, in rounds of random order, so that other load of the machine affects all of them. The result is the
median over the rounds of a ratio within a round. Each number of threads has its own process, which thread pools and torch.compile require,
and so has each instruction set that is selected by SOFTXENT_ISA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from .. import contract, kernels
from . import report
from .contenders import HUGE_PAGES

SHAPES = [(1024, 32000), (512, 128256), (65536, 10), (8192, 1000), (1, 50257), (4, 128256)]
QUICK = [(64, 1000), (256, 10), (1, 5000)]
CALLS = [(1, 10), (32, 10)]  # so small that the cost of the call itself dominates
DTYPES = ("f32", "bf16")
EXTRA = {
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "ml_dtypes": "ml_dtypes",
    "matplotlib": "matplotlib",
    "rich": "rich",
}

Record = dict[str, Any]


class Job(NamedTuple):
    """What one process measures."""

    kind: str  # "times" or "memory"
    threads: int
    shapes: list[tuple[int, int]]
    dtypes: list[str]
    repeats: int
    quick: bool
    isa: str = ""  # an instruction set, for memcpy and fused only; or HUGE_PAGES, for torch


def run(shapes: str | None, dtypes: str, threads: str, repeats: int, output: Path | None, quick: bool) -> None:
    """Run the benchmark, print its tables and write bench.json, bench.md and bench.png.

    Args:
        shapes: such as "1024x32000,65536x10"; None means the shapes of the recorded results.
        dtypes: "f32", "bf16" or "f32,bf16".
        threads: such as "1,2"; the numbers of threads, which are measured one after the other.
        repeats: the number of rounds. Slow contenders take part in every fourth.
        output: the folder to write to; bench/results if None.
        quick: whether to use small shapes and to leave out torch.compile, to try the benchmark.

    Raises:
        ValueError: if a shape, dtype or number cannot be read, or if the folder cannot be written to.
    """
    jobs, output = plan(shapes, dtypes, threads, repeats, quick), output or Path("bench/results")
    contract.place("bench", "output", output, folder=True)
    notes = [
        f"left out: {p}, not installed (pip install {EXTRA[p]}; all of them, in a clone of softxent: {contract.install('bench')})"
        for p in EXTRA
        if find_spec(p) is None
    ]
    print(*notes, sep="\n", end="\n" * bool(notes), file=sys.stderr)
    records = []
    with progress(sum(len(job.shapes) * len(job.dtypes) for job in jobs)) as step:
        for record in (record for job in jobs for record in _work(job)):
            records.append(record) if "shape" in record else notes.append(record["note"])
            step(record)
    results = {"machine": report.machine(), "repeats": repeats, "notes": notes, "records": records}
    report.show(results)
    report.write(results, output)


def plan(shapes: str | None, dtypes: str, threads: str, repeats: int, quick: bool) -> list[Job]:
    """Return the processes to run, in order."""
    sizes = read_shapes(shapes, QUICK if quick else SHAPES)
    types = _read("dtypes", dtypes, lambda text: DTYPES[DTYPES.index(text.strip())], "be among f32,bf16")
    counts = sorted(_read("threads", threads, _positive, "be positive integers such as 1,2"))
    contract.number("bench", "repeats", repeats, low=1)
    if find_spec("ml_dtypes") is None:
        types = [t for t in types if t != "bf16"]
    jobs = [Job("times", n, CALLS, ["f32"], repeats, quick) for n in counts]
    jobs += [Job("times", n, sizes, types, repeats, quick) for n in counts]
    if kernels.active() is kernels.cpu and kernels.cpu.isa() == "avx512":
        jobs += [Job("times", n, sizes, types, repeats, quick, "avx2") for n in counts]
    if find_spec("torch"):
        jobs += [Job("times", n, [s for s in sizes if s[0] * s[1] >= 1 << 20], types, repeats, quick, HUGE_PAGES) for n in counts]
    return [*jobs, Job("memory", counts[-1], sizes, types, 1, quick)]


def read_shapes(shapes: str | None, default: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return _read("shapes", shapes, _shape, "look like 1024x32000,65536x10") if shapes else default


def _read(argument: str, text: str, one: Callable[[str], Any], expected: str) -> list[Any]:
    try:
        return list(dict.fromkeys(map(one, text.split(","))))
    except ValueError:
        contract.fail("bench", argument, expected, repr(text))


def _shape(text: str) -> tuple[int, int]:
    rows, classes = map(_positive, text.lower().split("x"))
    return rows, classes


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _work(job: Job) -> Iterator[Record]:
    """Run a job in its own process, and yield its records as they arrive."""
    env = os.environ | {
        "SOFTXENT_NUM_THREADS": str(job.threads),
    }
    if job.isa == HUGE_PAGES:
        env["THP_MEM_ALLOC_ENABLE"] = "1"
    elif job.isa:
        env["SOFTXENT_ISA"] = job.isa
    if job.kind == "memory":
        env["MALLOC_MMAP_THRESHOLD_"] = str(1 << 17)  # memory is released when it is freed, and not reused by the next contender
    command = [sys.executable, "-m", "softxent.bench", "worker", json.dumps(job)]
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stdout=-1, stderr=errors, text=True, env=env) as worker:
        yield from (json.loads(line) for line in worker.stdout or () if line.startswith("{"))
        if worker.wait():
            errors.seek(0)
            last = [line for line in errors if line.strip()][-1:]
            yield {"note": f"{job.kind} on {job.threads} thread(s) {job.isa} ended with {worker.returncode}: {''.join(last).strip()}"}


def measured(worker: str, jobs: Sequence[Any], together: bool, environments: Sequence[dict[str, str]] = ()) -> Iterator[Any]:
    """Yield the records of jobs, which `python -m softxent.bench worker` prints: of each in a process of its own, or of all in one.

    `environments` has the environment variables of each job; one process takes those of the first.
    """
    for first in [0] if together else range(len(jobs)):
        some = jobs if together else jobs[first : first + 1]
        command = [sys.executable, "-m", "softxent.bench", worker, *map(json.dumps, some)]
        environment = os.environ | (environments[first] if environments else {})
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            yield from (json.loads(line) for line in process.stdout or () if line.startswith("{"))
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)


def written(name: str, results: Record, text: str, output: Path) -> None:
    """Write NAME.json and NAME.md, and print the text."""
    (output / f"{name}.json").write_text(json.dumps(results) + "\n")
    (output / f"{name}.md").write_text(text)
    print(text)
    print("written:", *sorted(output.glob(f"{name}.*")), file=sys.stderr)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[Record], None]]:
    """Show a progress bar on stderr, or without rich a line for each step. Yields the function that takes each record."""
    if find_spec("rich") is None:
        yield lambda record: print(report.title(record), file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:45}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=steps)
        yield lambda record: bar.update(task, advance="shape" in record, description=report.title(record))
