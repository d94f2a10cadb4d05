"""The benchmark of linear cross-entropy, `softxent bench --linear`: the time of the loss and all gradients, and the memory.

It is compared with the three matrix products alone, which are the lower limit; with `F.linear` and `F.cross_entropy` on all logits ("whole
logits"); and with torch's chunked option. Memory and time are also measured for growing numbers of rows N and classes V.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .. import contract
from . import measured, progress, written
from .measure import growth, interleave
from .report import machine, ratio, table

Call = Callable[[], Any]
GEMMS, WHOLE, CHUNKED, TWO = "three products", "whole logits", "torch chunked", "two products"
OURS = "softxent.torch"
BUDGETS = (32, 64, 128)  # MiB
MIB = 1 << 20
TOO_MUCH = "does not fit"


class Case(NamedTuple):
    """The sizes of a head, and what requires no gradient."""

    rows: int
    width: int
    classes: int
    dtype: str
    frozen: str = ""  # "x" or "w" requires no gradient

    def title(self) -> str:
        return f"N={self.rows} D={self.width} V={self.classes}" + (f", {self.frozen.upper()} frozen" if self.frozen else "")


TIMES = [
    Case(2048, 768, 50257, "f32"), Case(1024, 512, 128256, "f32"), Case(2048, 768, 50257, "bf16"), Case(2048, 768, 50257, "f32", "w"),
    Case(2048, 768, 50257, "f32", "x"),
]  # fmt: skip
GROWTH = [Case(n, 64, v, "f32") for v in (32000, 128256) for n in (256, 1024, 4096, 16384)]
QUICK = [Case(64, 16, 300, "f32"), Case(64, 16, 300, "bf16"), Case(64, 16, 300, "f32", "w")]
QUICK_GROWTH = [Case(n, 8, 300, "f32") for n in (64, 256)]


def run(repeats: int, output: Path, quick: bool) -> None:
    """Measure, print the tables and write linear.json, linear.md and linear.png."""
    contract.place("bench", "output", output, folder=True)
    cases, growing = (QUICK, QUICK_GROWTH) if quick else (TIMES, GROWTH)
    records = []
    with progress(len(cases) + len(growing)) as step:
        every = [*(("times", c) for c in cases), *(("memory", c) for c in growing)]
        jobs = [[kind, repeats, *case] for kind, case in every]
        for (kind, case), record in zip(every, measured("linear-worker", jobs, quick), strict=True):
            records.append(record)
            step({"kind": f"linear {kind}", "shape": case.title(), "dtype": case.dtype, "threads": 0, "isa": ""})
    results = {"machine": machine() | {"date": date.today().isoformat()}, "repeats": repeats, "records": records}
    plot(results, output / "linear.png")
    written("linear", results, text(results), output)


def work(kind: str, repeats: int, *case: Any) -> None:
    """Measure the times or the memory of a case in this process, and print them as a line of JSON."""
    c = Case(*case)
    record = {"kind": kind, "shape": c.title(), "case": list(case), "threads": import_module("torch").get_num_threads()}
    print(json.dumps(record | (times(c, repeats) if kind == "times" else memory(c))))


def times(c: Case, repeats: int) -> dict[str, Any]:
    seconds = interleave(contenders(c), repeats, 0.0)
    return {"seconds": seconds, "failed": {}, "error": errors(c)}


def memory(c: Case) -> dict[str, Any]:
    """Return the peak memory beyond the gradients in bytes, and the seconds, of whole logits and of softxent; none if memory was
    insufficient.

    The gradients of the previous call are freed at the start of a call, and the new ones take their place, so they are not counted.
    """
    _keep_within_what_there_is()
    calls = contenders(c, only=(WHOLE, name(64)))
    found: dict[str, int | None] = {}
    for who in (name(64), WHOLE):
        try:
            for _ in range(2):  # creates threads and buffers, and lets malloc adapt its threshold for mapped memory
                calls[who]()
        except (RuntimeError, MemoryError):
            del calls[who]
            continue
        import_module("softxent.torch").empty_cache()
        found[who] = growth(calls[who])
    return {"extra": found, "seconds": interleave(calls, 2, 0.0), "failed": {}}


def _keep_within_what_there_is() -> None:
    """Limit the memory of the process, so that an allocation fails before the system kills a process."""
    if Path("/proc/meminfo").exists():
        import resource

        free = next(int(line.split()[1]) << 10 for line in Path("/proc/meminfo").open() if line.startswith("MemAvailable"))
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.8 * free), resource.getrlimit(resource.RLIMIT_DATA)[1]))


def tensors(c: Case) -> tuple[Any, Any, Any]:
    torch = import_module("torch")
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[c.dtype]
    x, w = torch.randn(c.rows, c.width).to(dtype), (torch.randn(c.classes, c.width) * c.width**-0.5).to(dtype)
    return x.requires_grad_("x" not in c.frozen), w.requires_grad_("w" not in c.frozen), torch.randint(0, c.classes, (c.rows,))


def name(budget: int) -> str:
    return f"{OURS}, {budget} MiB"


def contenders(c: Case, only: tuple[str, ...] = ()) -> dict[str, Call]:
    torch, functional, front = import_module("torch"), import_module("torch.nn.functional"), import_module("softxent.torch")
    x, w, t = tensors(c)

    def both(loss: Callable[[], Any]) -> Call:
        def call() -> None:
            x.grad = w.grad = None
            loss().backward()

        return call

    calls = {WHOLE: both(lambda: functional.cross_entropy(functional.linear(x, w), t))}
    for budget in BUDGETS:
        calls[name(budget)] = both(partial(front.linear_cross_entropy, x, w, t, budget=budget * MIB))
    if only:
        return {who: call for who, call in calls.items() if who in only}
    calls[GEMMS if not c.frozen else TWO] = products(c, x.detach(), w.detach(), torch)
    if hasattr(functional, "linear_cross_entropy") and not c.frozen:
        options = torch.nn.LinearCrossEntropyOptions()
        calls[CHUNKED] = both(lambda: functional.linear_cross_entropy(x, w, t, options=options))
    return calls


def products(c: Case, x: Any, w: Any, torch: Any) -> Call:
    g = torch.empty(c.rows, c.classes, dtype=x.dtype).normal_()

    def call() -> None:
        x @ w.t()
        if "x" not in c.frozen:
            g @ w
        if "w" not in c.frozen:
            g.t() @ x

    return call


def errors(c: Case) -> dict[str, list[float]]:
    """Return the relative errors of the loss and of W's gradient in bfloat16, for 512 rows, compared with float64."""
    if c.dtype != "bf16":
        return {}
    c = c._replace(rows=min(c.rows, 512))
    functional, front = import_module("torch.nn.functional"), import_module("softxent.torch")
    x, w, t = tensors(c)
    x64, w64 = (a.detach().double().requires_grad_() for a in (x, w))
    exact = functional.cross_entropy(functional.linear(x64, w64), t)
    exact.backward()

    def far(loss: Any) -> list[float]:
        w.grad = None
        loss.backward()
        return [abs(loss.item() / exact.item() - 1), float((w.grad.double() - w64.grad).norm() / w64.grad.norm())]

    row = c.classes * 2
    found = {WHOLE: far(functional.cross_entropy(functional.linear(x, w), t))}
    for chunks in (1, 8, 64):
        found[f"{OURS}, {chunks} chunks"] = far(front.linear_cross_entropy(x, w, t, budget=-(-c.rows // chunks) * row))
    return found


# ---- tables and plot ----


def text(results: dict[str, Any]) -> str:
    """Return linear.md: all tables and the machine."""
    return "\n".join([*(part(results["records"]) for part in (_times, _errors, _memory)), header(results)])


def header(results: dict[str, Any]) -> str:
    """Return a line with the machine, the version of torch and the date."""
    m = results["machine"]
    return f"{m['cpu']}, {m['cores']} core(s), {m['system']}; torch {m['torch']}; {results['repeats']} rounds; {m['date']}.\n"


def readme_row(results: dict[str, Any]) -> list[str]:
    """Return the row of the README's table: the ratio of whole logits to `linear_cross_entropy` in the first case."""
    r = next(r for r in results["records"] if r["kind"] == "times")
    rows, width, classes, dtype, _ = r["case"]
    ratio_ = f"{_ratio(r, WHOLE, name(64))} on {r['threads']} thread(s)"
    return [f"`{OURS}.linear_cross_entropy`", f"[{rows}, {classes}], D = {width}", dtype, ratio_]


def _times(records: list[dict[str, Any]]) -> str:
    rows = []
    for r in (r for r in records if r["kind"] == "times"):
        limit = GEMMS if GEMMS in r["seconds"] else TWO
        cells = [_ratio(r, name(b), limit) for b in BUDGETS] + [_ratio(r, who, name(64)) for who in (WHOLE, CHUNKED)]
        seconds = median(s for s in r["seconds"][limit] if s)
        rows.append([r["shape"], r["case"][3], f"{seconds:.3g}", _ratio(r, WHOLE, limit), *cells])
    columns = [
        "",
        "dtype",
        "products, s",
        f"{WHOLE} : products",
        *(f"{b} MiB : products" for b in BUDGETS),
        *(f"{who} : 64 MiB" for who in (WHOLE, CHUNKED)),
    ]
    return table("Linear cross-entropy, loss and all gradients: ratios of times, medians of the rounds", columns, rows)


def _ratio(r: dict[str, Any], a: str, b: str) -> str:
    found = ratio(r, a, b)
    return f"{found[0]:.3g}" if found else "-"


def _errors(records: list[dict[str, Any]]) -> str:
    rows = [[who, f"{loss:.1e}", f"{dw:.2e}"] for r in records for who, (loss, dw) in r.get("error", {}).items()]
    return table("Linear cross-entropy in bfloat16: how far from float64, relative", ["", "loss", "gradient of W"], rows)


def _memory(records: list[dict[str, Any]]) -> str:
    rows = []
    for r in (r for r in records if r["kind"] == "memory"):
        cells = [f"{x / MIB:.0f}" if (x := r["extra"].get(who)) is not None else TOO_MUCH for who in (name(64), WHOLE)]
        times = [f"{median(s for s in r['seconds'][who] if s):.3g}" if who in r["seconds"] else "-" for who in (name(64), WHOLE)]
        rows.append([r["shape"], *cells, *times])
    return table(
        "Linear cross-entropy: memory in MiB at the peak beyond the gradients, and seconds",
        ["", OURS, WHOLE, f"{OURS}, s", f"{WHOLE}, s"],
        rows,
    )


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    records = [r for r in results["records"] if r["kind"] == "memory"]
    for classes in sorted({r["case"][2] for r in records}):
        mine = [r for r in records if r["case"][2] == classes]
        for who, style in ((name(64), "-o"), (WHOLE, "--s")):
            label = f"{who.split(',')[0]}, V = {classes}"
            fits = [r for r in mine if r["extra"].get(who) is not None]
            rows = [r["case"][0] for r in fits]
            left.plot(rows, [r["extra"][who] / MIB for r in fits], style, label=label)
            right.plot(rows, [median(s for s in r["seconds"][who] if s) for r in fits], style, label=label)
    for axis, title in ((left, "MiB at the peak beyond the gradients"), (right, "seconds, loss and all gradients")):
        axis.set(xscale="log", yscale="log", xlabel="rows N", title=title)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
