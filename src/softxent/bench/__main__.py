"""`python -m softxent.bench` runs the benchmark. The subcommands are `linear`, `options`, `filter`, `distributed`, `training`, `sklearn`
and `boosting`, further benchmarks; `readme`, which writes the table of README.md; and `worker` and the names that end in it, which the
benchmark runs for its processes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import Job, distributed, filtering, fits, jax, linear, measure, options, readme, run, training


def each(work: Callable[..., None], jobs: list[Any]) -> None:
    for job in jobs:
        work(*job)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softxent.bench", description="Times softxent beside memcpy and its peers.")
    parser.add_argument("--shapes", help="such as 1024x32000,65536x10")
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    parser.add_argument("--quick", action="store_true", help="small shapes, no torch.compile")
    parser.set_defaults(todo=lambda a: run(a.shapes, a.dtypes, a.threads, a.repeats, a.output, a.quick))
    commands = parser.add_subparsers()
    page = commands.add_parser("readme", help="write the table of the last run between README.md's markers")
    page.add_argument("--readme", type=Path, default=Path("README.md"))
    page.set_defaults(todo=lambda a: readme.into_readme(a.output / "bench.json", a.readme))
    curve = commands.add_parser("filter", help="what the gradient filter is worth: tolerance, share left out, time and error")
    curve.add_argument("--steps", type=int, default=200, help="of training of the demo's model")
    curve.set_defaults(todo=lambda a: filtering.run(a.steps, a.repeats, a.output))
    worker = commands.add_parser("worker")
    worker.add_argument("job", type=lambda text: Job(*json.loads(text)))
    worker.set_defaults(todo=lambda a: measure.work(a.job))
    head = commands.add_parser("linear", help="linear cross-entropy instead")
    head.set_defaults(todo=lambda a: linear.run(a.repeats, a.output, a.quick))
    of_head = commands.add_parser("linear-worker")
    of_head.add_argument("jobs", type=json.loads, nargs="+")
    of_head.set_defaults(todo=lambda a: each(linear.work, a.jobs))
    every = commands.add_parser("options", help="every option, output and derivative instead")
    every.set_defaults(todo=lambda a: options.run(a.repeats, a.output, a.quick))
    of_options = commands.add_parser("options-worker")
    of_options.add_argument("jobs", type=json.loads, nargs="+")
    of_options.set_defaults(todo=lambda a: each(options.work, a.jobs))
    divided = commands.add_parser("distributed", help="classes that are divided among processes instead")
    divided.set_defaults(todo=lambda a: distributed.run(a.repeats, a.output, a.quick))
    of_processes = commands.add_parser("distributed-worker")
    of_processes.add_argument("job", type=json.loads)
    of_processes.set_defaults(todo=lambda a: distributed.work(*a.job))
    train = commands.add_parser("training", help="steps of transformers' Trainer, and the losses of GRPO and DPO, instead")
    train.set_defaults(todo=lambda a: training.run(a.repeats, a.output, a.quick))
    of_training = commands.add_parser("training-worker")
    of_training.add_argument("job", type=json.loads)
    of_training.set_defaults(todo=lambda a: training.work(*a.job))
    for which in fits.CASES:
        fitted = commands.add_parser(which, help="fits of models instead")
        fitted.set_defaults(todo=lambda a, which=which: fits.run(which, a.repeats, a.output, a.quick))
    of_fits = commands.add_parser("fits-worker")
    of_fits.add_argument("job", type=json.loads)
    of_fits.set_defaults(todo=lambda a: fits.work(*a.job))
    under_jit = commands.add_parser("jax", help="softxent.jax beside optax instead")
    under_jit.set_defaults(todo=lambda a: jax.run(a.repeats, a.output, a.quick))
    of_jax = commands.add_parser("jax-worker")
    of_jax.add_argument("job", type=json.loads)
    of_jax.set_defaults(todo=lambda a: jax.work(*a.job))
    arguments = parser.parse_args()
    try:
        arguments.todo(arguments)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
