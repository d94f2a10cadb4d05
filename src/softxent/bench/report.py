"""The tables of the benchmark, for the terminal and Markdown, and its plot. They are made from the results in bench.json."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from .. import kernels
from .contenders import HUGE_PAGES

Results = dict[str, Any]
OURS = ["fused", "fused, new dz", "forward", "backward"]
PEERS = ["numpy", "scipy", "sklearn", "torch", "torch compiled"]
FRONT = "softxent.torch"
SMALL = [[1, 10], [32, 10]]  # here the cost of the call itself dominates
PACKAGES = ["numpy", "torch", "scipy", "scikit-learn"]


def machine() -> dict[str, str]:
    """Describe the machine, the versions and the date of a measurement."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    system = platform.freedesktop_os_release()["PRETTY_NAME"] if sys.platform == "linux" else platform.platform()
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
        "system": f"{system}, {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "backend": next(f"{b.name} ({b.detail})" for b in kernels.backends() if b.active),
        "isa": kernels.cpu.isa() if kernels.cpu else "-",
        "date": date.today().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def title(record: Results) -> str:
    return (
        f"{record['kind']} {_size(record)} {record['dtype']}, {record['threads']} thread(s) {record['isa']}"
        if "shape" in record
        else record["note"]
    )


def _size(record: Results) -> str:
    return str(record["shape"])


def ratio(record: Results, a: str, b: str) -> tuple[float, float] | None:
    """Return the median over the rounds of the time of a divided by that of b, and the ratio of their shortest times."""
    seconds = record["seconds"]
    pairs = [(x, y) for x, y in zip(seconds.get(a, []), seconds.get(b, []), strict=False) if x and y]
    return (median(x / y for x, y in pairs), min(x for x, _ in pairs) / min(y for _, y in pairs)) if pairs else None


# ---- tables ----


def summary(results: Results) -> str:
    """Return the table of the most important ratios, with a row for each matrix, and a number for each number of threads, as `1 / 2`."""
    peers = ["torch", "torch compiled", "sklearn", "numpy"]
    rows = []
    for here in _matrices(results):
        auto, avx2, huge = ([r for r in here if r["isa"] == isa] for isa in ("", "avx2", HUGE_PAGES))
        cells = [ratios(auto, "fused", "memcpy"), ratios(avx2, "fused", "memcpy"), *(ratios(auto, p, "fused") for p in peers)]
        cells.insert(3, ratios(huge, "torch", "fused"))
        rows.append([_size(here[0]), here[0]["dtype"], *cells, ratios([r for r in auto if r["threads"] > 1], "fused, 1 thread", "fused")])
    threads = " / ".join(str(n) for n in sorted({r["threads"] for r in times(results)}))
    names = [peers[0], f"{peers[0]}, {HUGE_PAGES}", *peers[1:]]
    columns = ["logits", "dtype", "fused : memcpy", "on AVX2", *(f"{p} : fused" for p in names), "fused, 1 thread : fused"]
    return table(f"Ratios of times, {threads} thread(s): median of the rounds", columns, rows)


def details(results: Results) -> str:
    """Return the table of the times of all contenders as multiples of memcpy."""
    rows = []
    for r in (r for here in _matrices(results) for r in here):
        took = _time(r["seconds"]["memcpy"], 1e3)
        cells = ("fails" if c in r["failed"] else _pair(ratio(r, c, "memcpy")) for c in OURS + PEERS)
        rows.append([_size(r), r["dtype"], str(r["threads"]), r["isa"] or results["machine"]["isa"], took, *cells])
    columns = ["logits", "dtype", "threads", "isa", "memcpy, ms", *OURS, *PEERS]
    return table("Times as multiples of memcpy of the same matrix: median of the rounds (shortest : shortest)", columns, rows)


def pytorch(results: Results) -> str:
    """Return the table of the PyTorch front end beside PyTorch, for forward and backward together."""
    rows = []
    for here in _matrices(results):
        auto, huge = ([r for r in here if r["isa"] == isa] for isa in ("", HUGE_PAGES))
        cells = [ratios(auto, p, FRONT) for p in ("torch", "torch compiled")]
        rows.append([_size(here[0]), here[0]["dtype"], cells[0], ratios(huge, "torch", FRONT), cells[1], ratios(auto, FRONT, "memcpy")])
    columns = ["logits", "dtype", f"torch : {FRONT}", f"torch : {FRONT}, {HUGE_PAGES}", f"torch compiled : {FRONT}", f"{FRONT} : memcpy"]
    return table("In PyTorch: cross_entropy and backward()", columns, rows)


def memory(results: Results) -> str:
    """Return the table of the peak memory."""
    rows = []
    for r in (r for r in results["records"] if r["kind"] == "memory"):
        logits = r["shape"][0] * r["shape"][1] * (4 if r["dtype"] == "f32" else 2)
        mib = ("-" if n is None else f"{n / 2**20:.1f}" for n in (logits, *(r["extra"].get(c) for c in ("fused", FRONT, *PEERS))))
        rows.append([_size(r), r["dtype"], *mib])
    columns = ["logits", "dtype", "logits, MiB", "fused", FRONT, *PEERS]
    return table("Memory in MiB beyond logits, labels and one gradient at the peak of a call (resident, to about 0.3)", columns, rows)


def calls(results: Results) -> str:
    """Return the table of the times of calls with very small matrices."""
    who = [OURS[1], *PEERS, FRONT]
    small = [r for r in times(results) if r["shape"] in SMALL]
    rows = [[_size(r), str(r["threads"]), *(_time(r["seconds"].get(c), 1e6) for c in who)] for r in small]
    return table("Microseconds a call on small matrices, f32: median (shortest)", ["logits", "threads", *who], rows)


def times(results: Results) -> list[Results]:
    """Return the records of times."""
    return [r for r in results["records"] if r["kind"] == "times"]


def _matrices(results: Results) -> list[list[Results]]:
    """Group the times by dtype and shape, without the very small matrices."""
    groups: dict[str, list[Results]] = {}
    for r in sorted(times(results), key=lambda r: (r["dtype"] != "f32", r["isa"], r["threads"])):
        if r["shape"] not in SMALL:
            groups.setdefault(f"{r['dtype']} {r['shape']}", []).append(r)
    return list(groups.values())


def ratios(records: list[Results], a: str, b: str) -> str:
    """Return the ratios of the times of a to those of b, one for each record, as `1.2 / 3.4`."""
    if any(a in r["failed"] for r in records):
        return "fails"
    return " / ".join(_number(x[0]) for x in (ratio(r, a, b) for r in records) if x) or "-"


def _pair(x: tuple[float, float] | None) -> str:
    return f"{_number(x[0])} ({_number(x[1])})" if x else "-"


def _time(seconds: list[float | None] | None, unit: float) -> str:
    took = [x * unit for x in seconds or [] if x]
    return _pair((median(took), min(took)) if took else None)


def _number(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def table(heading: str, columns: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with a heading."""
    lines = ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([f"**{heading}**", "", *lines, ""])


# ---- output ----


def header(results: Results) -> str:
    """Return a line with the machine, the versions and the date."""
    m = results["machine"]
    packages = ", ".join(f"{package} {m[package]}" for package in ["python", *PACKAGES])
    return (
        f"{m['cpu']}, {m['cores']} core(s), {m['system']}; {packages}; backend {m['backend']}; {results['repeats']} rounds; {m['date']}.\n"
    )


def text(results: Results) -> str:
    """Return bench.md: all tables, and notes on what failed or was left out."""
    failed = {f"{who} fails: {why}" for r in results["records"] for who, why in r["failed"].items()}
    notes = [f"- {note}" for note in (*results["notes"], *sorted(failed))]
    return "\n".join([header(results), *(part(results) for part in (summary, pytorch, details, memory, calls)), *notes]).rstrip() + "\n"


def show(results: Results) -> None:
    """Print the tables, formatted on a terminal and as Markdown otherwise."""
    if sys.stdout.isatty() and find_spec("rich"):
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text(results)))
    else:
        print(text(results))


def write(results: Results, folder: Path) -> None:
    """Write bench.json, bench.md and, with matplotlib, bench.png."""
    (folder / "bench.json").write_text(json.dumps(results) + "\n")
    (folder / "bench.md").write_text(text(results))
    if find_spec("matplotlib"):
        plot(results, folder / "bench.png")
    print("written:", *sorted(folder.glob("bench.*")), file=sys.stderr)


def plot(results: Results, path: Path) -> None:
    """Draw the times as multiples of memcpy, with a panel for each matrix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [[r for r in here if not r["isa"]] for here in _matrices(results)]
    height = max(1, -(-len(panels) // 3))
    figure, axes = plt.subplots(height, 3, figsize=(15, 3.2 * height), squeeze=False, layout="constrained")
    for i, axis in enumerate(axes.flat):
        _panel(axis, panels[i]) if i < len(panels) else axis.set_axis_off()
    figure.suptitle("Time as a multiple of memcpy of the same matrix, log scale: shorter is better")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, records: list[Results]) -> None:
    shown = [c for c in OURS + PEERS if any(ratio(r, c, "memcpy") for r in records)]
    thick = 0.8 / len(records)
    for i, r in enumerate(records):
        found = [ratio(r, c, "memcpy") for c in shown]
        bars = axis.barh(
            [j + i * thick for j in range(len(shown))], [x[0] if x else 0 for x in found], thick, label=f"{r['threads']} thread(s)"
        )
        axis.bar_label(bars, [f"{x[0]:.3g}" if x else "" for x in found], padding=2, fontsize=7)
    axis.set_yticks([j + thick * (len(records) - 1) / 2 for j in range(len(shown))], shown, fontsize=8)
    axis.set_xscale("log")
    axis.set_title(f"{_size(records[0])} {records[0]['dtype']}", fontsize=10)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.axvline(1, color="black", linewidth=0.8)
