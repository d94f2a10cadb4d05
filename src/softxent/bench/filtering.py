"""The benchmark of the gradient filter, `python -m softxent.bench filter`: for each tolerance, the share of blocks left out, the time and
the actual error.

The head is that of the demo's model after `steps` training steps, with the classes in the order of their frequency and with shuffled
classes. A larger width D is simulated by x Q and W Q with Q Q^T = 1, which have the same logits, norms, shares and errors, and the cost of
a head of that width.
"""

from __future__ import annotations

import io
import json
import platform
import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from .. import FilterStats, contract, linear_cross_entropy_and_grad
from ..partials import Array
from .report import table

TOLS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ORDERS = ("by frequency", "shuffled")
ROWS, WIDTHS = 2048, (128, 768)


class Head(NamedTuple):
    x: Array  # [N, D]
    w: Array  # [C, D]
    labels: Array  # [N]


def run(steps: int, repeats: int, output: Path, classes: int = 20_000, rows: int = ROWS) -> None:
    """Measure, print, and write filter.json, filter.md and filter.png."""
    contract.place("bench", "output", output, folder=True)
    head = trained(steps, classes, rows)
    records = [measure(turned(ordered(head, order), width), order, repeats) for width in WIDTHS for order in ORDERS]
    results = {"machine": f"{platform.machine()}, numpy {np.__version__}, {date.today().isoformat()}", "steps": steps, "records": records}
    (output / "filter.json").write_text(json.dumps(results) + "\n")
    (output / "filter.md").write_text(text(results))
    if find_spec("matplotlib"):
        plot(results, output / "filter.png")
    print(text(results))
    print("written:", *sorted(output.glob("filter.*")), file=sys.stderr)


def trained(steps: int, classes: int, rows: int) -> Head:
    """Train the demo's model. Returns its head, and hidden states and labels of training tokens."""
    from rich.console import Console

    from ..demo import BATCH, baselines, corpus
    from ..demo.heads import Fused
    from ..demo.model import CONTEXT, Model, Trainer
    from ..demo.train import train

    text = corpus.load(classes, CONTEXT)
    at = corpus.positions(text.held_out)[:1000]
    test = corpus.examples(text.held_out, at, CONTEXT)
    trainer = Trainer(Model(baselines.count(text.train, text.held_out, at, len(text.vocab)).frequency, 0), Fused(64 << 20))
    train([trainer], text.train, test, steps=steps, batch=BATCH, seed=0, console=Console(file=io.StringIO()))
    some = np.random.default_rng(1).permutation(corpus.positions(text.train))[:rows]
    seen = corpus.examples(text.train, some, CONTEXT)
    return Head(trainer.model.features(seen.context), trainer.model.W, seen.labels)


def ordered(head: Head, order: str) -> Head:
    """Return the head with its classes ordered by frequency, as they are, or shuffled."""
    if order == ORDERS[0]:
        return head
    to = np.random.default_rng(0).permutation(len(head.w))
    return Head(head.x, head.w[to], np.argsort(to)[head.labels])


def turned(head: Head, width: int) -> Head:
    """Return a head of this width with the same logits."""
    own = head.w.shape[1]
    if width <= own:
        return head
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((width, own)))[0].T.astype(head.w.dtype)
    return Head(head.x @ q, head.w @ q, head.labels)


def measure(head: Head, order: str, repeats: int) -> dict[str, Any]:
    """Measure all tolerances in rounds, each after a call without the filter, so that other load of the machine affects all alike."""
    exact = linear_cross_entropy_and_grad(*head)[1:]
    points: dict[float, dict[str, Any]] = {}
    for tol in TOLS:
        stats = FilterStats()
        got = linear_cross_entropy_and_grad(*head, filter_tol=tol, filter_stats=stats)[1:]
        error = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, exact, strict=True)]
        points[tol] = {"tol": tol, "error": error, "ratios": [], **vars(stats)}
    plain = []
    for _ in range(repeats):
        plain.append(_seconds(head))
        for tol in TOLS:
            points[tol]["ratios"].append(_seconds(head, filter_tol=tol) / plain[-1])
    rows, width = head.x.shape
    return {"order": order, "rows": rows, "classes": len(head.w), "width": width, "seconds": min(plain), "points": list(points.values())}


def _seconds(head: Head, **options: Any) -> float:
    start = perf_counter()
    linear_cross_entropy_and_grad(*head, **options)
    return perf_counter() - start


def text(results: dict[str, Any]) -> str:
    rows = []
    for r in results["records"]:
        for p in r["points"]:
            shares = [f"{p[name] / p['blocks']:.1%}" for name in ("skipped_dx", "skipped_dw")]
            errors = [f"{e:.1e}" for e in (p["error"][0], p["bound_dx"], p["error"][1], p["bound_dw"])]
            cells = [*shares, *errors, f"{median(p['ratios']):.2f} ({min(p['ratios']):.2f})"]
            rows.append([r["order"], str(r["width"]), f"{p['tol']:g}", *cells])
    columns = [
        "classes",
        "D",
        "filter_tol",
        "left out of dX",
        "of dW",
        "error of dX",
        "proven",
        "error of dW",
        "proven",
        "time : unfiltered",
    ]
    first = results["records"][0]
    heading = f"The gradient filter on the demo's model, {first['rows']} x {first['classes']} float32, {results['steps']} steps of training"
    note = "Shares of blocks of 128 classes; relative errors in the Frobenius norm; times: the median of the rounds (the best)."
    return f"{table(heading, columns, rows)}\n{note}\n\n{results['machine']}.\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw the shares of blocks left out, the errors and the times over the tolerance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (shares, errors, times) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for r in results["records"]:
        tols, points, line = [p["tol"] for p in r["points"]], r["points"], "-" if r["order"] == ORDERS[0] else "--"
        times.plot(tols, [median(p["ratios"]) for p in points], line, marker="o", label=f"{r['order']}, D = {r['width']}")
        if r["width"] != results["records"][0]["width"]:
            continue
        for i, product in enumerate(("dX", "dW")):
            label = f"{product}, {r['order']}"
            shares.plot(tols, [p[f"skipped_{product.lower()}"] / p["blocks"] for p in points], line, color=f"C{i}", marker="o", label=label)
            errors.plot(tols, [p["error"][i] or None for p in points], line, color=f"C{i}", marker="o", label=label)
    errors.plot(TOLS, TOLS, color="black", linewidth=0.8, label="filter_tol")
    errors.set_yscale("log")
    times.axhline(1, color="black", linewidth=0.8)
    for axis, title in ((shares, "Share of blocks left out"), (errors, "Error, relative"), (times, "Time : time without a filter")):
        axis.set_title(title)
        axis.set_xscale("log")
        axis.set_xlabel("filter_tol")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
