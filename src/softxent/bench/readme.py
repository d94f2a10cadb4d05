"""The table of the README, from the results of the benchmark and of that of linear cross-entropy."""

from __future__ import annotations

import json
from pathlib import Path

from . import linear
from .contenders import HUGE_PAGES
from .report import FRONT, Results, header, ratios, table, times

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
README_ROWS = [  # function, contender, logits, dtype; the rows with ten classes are the least favourable ones
    ("`cross_entropy_and_grad`", "fused", [1024, 32000], "f32"),
    ("`cross_entropy_and_grad`", "fused", [1024, 32000], "bf16"),
    ("`cross_entropy_and_grad`", "fused", [65536, 10], "f32"),
    (f"`{FRONT}.cross_entropy`", FRONT, [1024, 32000], "f32"),
    (f"`{FRONT}.cross_entropy`", FRONT, [65536, 10], "f32"),
]
README_PEERS = [  # column, contender, the setting it ran under
    ("PyTorch", "torch", ""),
    ("PyTorch with huge pages", "torch", HUGE_PAGES),
    ("PyTorch compiled", "torch compiled", ""),
    ("NumPy", "numpy", ""),
    ("memcpy", "memcpy", ""),
]


def readme_table(results: Results, of_heads: Results | None) -> str:
    """The table of the README: at most six rows, from the results of `softxent bench` and, if given, of `softxent bench --linear`."""
    rows, notes = [], [header(results)]
    for function, ours, shape, dtype in README_ROWS:
        here = sorted((r for r in times(results) if r["shape"] == shape and r["dtype"] == dtype), key=lambda r: r["threads"])
        cells = [ratios([r for r in here if r["isa"] == isa], peer, ours) for _, peer, isa in README_PEERS]
        rows += [[function, str(shape), dtype, *cells]] if here else []
    if of_heads:
        rows.append([*linear.readme_row(of_heads), *["-"] * (len(README_PEERS) - 1)])
        notes.append(f"The last row, beside `F.linear` and `F.cross_entropy`: {linear.header(of_heads)}")
    if not rows:
        raise ValueError(f"bench: the results must hold a row of the README such as {README_ROWS[0][2]} f32; got none of its rows")
    threads = " / ".join(str(n) for n in sorted({r["threads"] for r in times(results)}))
    heading = f"Time of each divided by the time of softxent, on {threads} thread(s): above 1, softxent is faster"
    return "\n".join([table(heading, ["function", "logits", "dtype", *(column for column, *_ in README_PEERS)], rows), *notes])


def into_readme(source: Path, readme: Path) -> None:
    """Write `readme_table` between the markers of the README, from `source`, a bench.json, and from the linear.json beside it, if any."""
    results, page = json.loads(source.read_text()), readme.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"bench: {readme} must have {BEGIN} and {END} once each; got {page.count(BEGIN)} and {page.count(END)}")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    of_heads = source.with_name("linear.json")
    shown = readme_table(results, json.loads(of_heads.read_text()) if of_heads.exists() else None)
    readme.write_text(f"{before}{BEGIN}\n\n{shown}\n{END}{after}")
