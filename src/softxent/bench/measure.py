"""One process of the benchmark. It measures times or memory and prints a line of JSON for each shape and dtype."""

from __future__ import annotations

import ctypes
import json
import random
import time
from pathlib import Path
from timeit import Timer
from typing import Any

import softxent

from . import Job
from .contenders import COMPILED, FRONT, FUSED, HUGE_PAGES, MEMCPY, PEERS, Call, case, fused, memcpy, ours, peers

SAMPLE = 1e-3  # seconds; a sample takes at least so long, and faster calls are repeated
SLOW = 0.1  # seconds; slower contenders take part in every fourth round
PAUSE = 0.02  # seconds between samples on several threads, because OpenMP threads poll for up to 15 ms after a call


def work(job: Job) -> None:
    softxent.set_num_threads(job.threads)
    for rows, classes in job.shapes:
        for dtype in job.dtypes:
            shape = (rows, classes)
            record = {"kind": job.kind, "shape": shape, "dtype": dtype, "threads": job.threads, "isa": job.isa}
            print(json.dumps(record | (times if job.kind == "times" else memory)(job, shape, dtype)), flush=True)


def times(job: Job, shape: tuple[int, int], dtype: str) -> dict[str, Any]:
    """Return the seconds of each contender in every round (None if it did not take part), and the errors of those that failed."""
    c = case(shape, dtype, job.threads)
    skip = set(PEERS) - {"torch"} if job.isa == HUGE_PAGES else set(PEERS) if job.isa else {COMPILED} if job.quick else set()
    calls, failed = peers(c, tuple(skip))
    kept = {FUSED, FRONT} if job.isa == HUGE_PAGES else {FUSED}
    calls |= {name: call for name, call in ours(c).items() if not job.isa or name in kept}
    return {"seconds": interleave({MEMCPY: memcpy(c)} | calls, job.repeats, PAUSE if job.threads > 1 else 0), "failed": failed}


def interleave(calls: dict[str, Call], repeats: int, pause: float) -> dict[str, list[float | None]]:
    once = {name: min(Timer(call).repeat(2, 1)) for name, call in calls.items()}
    number = {name: max(1, round(SAMPLE / t)) for name, t in once.items()}
    seconds: dict[str, list[float | None]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for i in range(repeats):
        shuffle(order)  # so that no contender always follows the same other one, and finds its data in the caches
        for name in order:
            if once[name] > SLOW and i % 4:
                seconds[name].append(None)
                continue
            time.sleep(pause)
            timer = Timer(calls[name])
            timer.timeit(number[name] if once[name] < SAMPLE else 1 if pause else 0)  # wakes up the threads before the measurement
            seconds[name].append(timer.timeit(number[name]) / number[name])
    return seconds


def memory(job: Job, shape: tuple[int, int], dtype: str) -> dict[str, Any]:
    """Return the peak memory of each contender beyond logits, labels and one gradient, in bytes (None on systems other than Linux)."""
    for call in ours(case((64, 100), dtype, job.threads)).values():
        call()  # loads code and thread stacks, which are not counted; the scratch memory for the real shape is
    c = case(shape, dtype, job.threads)
    extra = {FUSED: growth(fused(c))}
    calls, failed = peers(c, (COMPILED,) if job.quick else ())
    if front := ours(c).get(FRONT):
        front()
        calls[FRONT] = front
    for name, call in calls.items():
        extra[name] = growth(call)  # torch frees the gradient of the previous call, so its new one is not counted
    return {"extra": extra, "failed": failed}


def growth(call: Call) -> int | None:
    """Return by how much the resident memory grows at the peak of `call`, in bytes."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # resets the recorded peak to the present value
    before = _kib(status, "VmRSS")
    call()
    return max(0, _kib(status, "VmHWM") - before) << 10


def _kib(status: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field + ":"))
