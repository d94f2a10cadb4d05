"""`python -m softxent.bench` runs the benchmark. Subcommands are the further benchmarks; `readme`, which writes the table of README.md; and
the workers, which the benchmarks run in processes of their own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import Job, distributed, filtering, fits, jax, linear, measure, options, readme, run, training

FURTHER: dict[str, tuple[Callable[..., None], str]] = {
    "linear": (linear.run, "linear cross-entropy"),
    "options": (options.run, "every option, output and derivative"),
    "distributed": (distributed.run, "classes that are divided among processes"),
    "training": (training.run, "steps of transformers' Trainer, and the losses of GRPO and DPO,"),
    "jax": (jax.run, "softxent.jax beside optax"),
    "sklearn": (partial(fits.run, "sklearn"), "SoftmaxRegression beside LogisticRegression"),
    "boosting": (partial(fits.run, "boosting"), "XGBoost, LightGBM and CatBoost"),
}
WORKERS: dict[str, Callable[..., None]] = {  # what the benchmark runs in processes of their own
    "linear": linear.work, "options": options.work, "distributed": distributed.work, "training": training.work, "jax": jax.work,
    "fits": fits.work,
}  # fmt: skip


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
    for name, (start, text) in FURTHER.items():
        further = commands.add_parser(name, help=f"{text} instead")
        further.set_defaults(todo=lambda a, start=start: start(a.repeats, a.output, a.quick))
    for name, work in WORKERS.items():
        of_jobs = commands.add_parser(f"{name}-worker")
        of_jobs.add_argument("jobs", type=json.loads, nargs="+")
        of_jobs.set_defaults(todo=lambda a, work=work: [work(*job) for job in a.jobs])
    arguments = parser.parse_args()
    try:
        arguments.todo(arguments)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
