"""Write docs/field.md: the laws of softxent.conformance for the implementations of other libraries, as far as they are installed.

    python tools/field.py [--quick] [--timeout SECONDS] [NAME ...]

`make field` runs it with all of these libraries. With names, only the functions whose title contains one of them are tried, and the
findings of the others are those of the last run, which build/field.json keeps. The script of each finding is run, and a script that does
not print what the page says is reported at the end. The findings are those of this machine and of the installed versions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
KEPT = HERE.parent / "build" / "field.json"
PAGE = HERE.parent / "docs" / "field.md"
FENCE = "```"


class Entry(NamedTuple):
    """A function that is checked."""

    name: str
    distribution: str
    title: str = ""  # what the page calls it, if that is not its name
    quick: bool = False  # without large cases: each shape is compiled for optax, and an interpreter is slow
    interpreted: bool = False  # by Triton's interpreter
    ranks: int = 1  # processes among which the classes are divided


OPTIONS = "options=LinearCrossEntropyOptions(batch_chunk_size=2, allow_retain_graph=True)"
SUBJECTS = [
    Entry("torch.nn.functional:cross_entropy", "torch"),
    Entry("torch.nn.functional:linear_cross_entropy", "torch"),
    Entry("field_subjects:torch_in_chunks", "torch", f"`torch.nn.functional:linear_cross_entropy` with `{OPTIONS}`"),
    Entry(
        "field_subjects:torch_loss_parallel", "torch",
        "`torch.nn.functional:cross_entropy` with `loss_parallel`, classes divided among two processes", True, ranks=2,
    ),
    Entry("scipy.special:log_softmax", "scipy"),
    Entry("sklearn.metrics:log_loss", "scikit-learn"),
    Entry("optax:softmax_cross_entropy_with_integer_labels", "optax", quick=True),
    Entry("optax:softmax_cross_entropy", "optax", quick=True),
    Entry(
        "field_subjects:keras_sparse_categorical_crossentropy", "keras",
        "`keras.losses:sparse_categorical_crossentropy` with `from_logits=True`, on PyTorch",
    ),
    Entry(
        "field_subjects:keras_categorical_crossentropy", "keras",
        "`keras.losses:categorical_crossentropy` with `from_logits=True`, on PyTorch",
    ),
    Entry(
        "field_subjects:tf_sparse_softmax_cross_entropy_with_logits", "tensorflow-cpu",
        "`tf.nn.sparse_softmax_cross_entropy_with_logits`",
    ),
    Entry("field_subjects:tf_softmax_cross_entropy_with_logits", "tensorflow-cpu", "`tf.nn.softmax_cross_entropy_with_logits`"),
    Entry(
        "field_subjects:liger_cross_entropy", "liger-kernel", "`liger_kernel.transformers.functional:liger_cross_entropy`",
        True, True,
    ),
    Entry(
        "field_subjects:liger_fused_linear_cross_entropy", "liger-kernel",
        "`liger_kernel.transformers.functional:liger_fused_linear_cross_entropy`", True, True,
    ),
    Entry(
        "field_subjects:cut_cross_entropy", "cut-cross-entropy", '`cut_cross_entropy:linear_cross_entropy` with `impl="cce"`',
        True, True,
    ),
    Entry("softxent:cross_entropy", "softxent"),
    Entry("softxent:linear_cross_entropy", "softxent"),
    Entry("softxent.torch:cross_entropy", "softxent"),
    Entry("softxent.torch:linear_cross_entropy", "softxent"),
    Entry(
        "softxent.torch:cross_entropy", "softxent", "`softxent.torch:cross_entropy`, classes divided among two processes", True, ranks=2,
    ),
    Entry(
        "softxent.torch:linear_cross_entropy", "softxent", "`softxent.torch:linear_cross_entropy`, classes divided among two processes",
        True, ranks=2,
    ),
    Entry("softxent.jax:cross_entropy", "softxent", quick=True),
    Entry("softxent.jax:linear_cross_entropy", "softxent", quick=True),
]  # fmt: skip
NOT_INTERPRETED = {"a compiler changes nothing", "repeated calls keep no memory"}  # the memory is the interpreter's, too

HEAD = """# The field

What `softxent check` finds in the implementations of other libraries ([how it is checked](conformance.md)). This page is written by
`make field`, on {machine}; do not edit it. A finding is a statement about one version, and about the laws: a library may have decided
otherwise, such as `log_loss`, whose documentation says that it clips.

The functions of Keras, TensorFlow, Liger and cut-cross-entropy are called through `tools/field_subjects.py`, which adapts their signatures.
The kernels of Liger and cut-cross-entropy run on the CPU, in Triton's interpreter, without the laws about compilers and memory. They
compute in float32, so Liger is tried in float32 and float16. cut-cross-entropy is tried in float16, because it has no gradients in float32.
bfloat16 is left out, because the interpreter does not round it.

| function | version | holds | broken | refused | not applicable |
| --- | --- | --- | --- | --- | --- |
{rows}

*Refused* means that the function raises an error that says so. *Not applicable* means that it has no such argument or derivative.
"""


def title(entry: Entry) -> str:
    return entry.title or f"`{entry.name}`"


def key(entry: Entry) -> str:
    return entry.name if entry.ranks == 1 else f"{entry.name} --ranks {entry.ranks}"


def section(entry: Entry, findings: list[dict]) -> str:
    """Return the findings of a subject: a table, and the script of each."""
    lines = [f"\n## {entry.title or entry.name}\n"]
    broken = [f for f in findings if f["status"] in ("broken", "crashed")]
    refused = [f for f in findings if f["status"] == "refused"]
    for f in broken:
        lines.append(f"**{f['law']}** ({f['status']}). {f['statement']}\n\n{f['what']}: expected `{f['expected']}`, got `{f['got']}`.\n")
        lines.append(f"{FENCE} {{ .python }}\n{f['script']}\n{FENCE}\n" if f["script"] else "")
    for f in refused:
        lines.append(f"*{f['law']}*: refused, `{f['got']}`\n")
    return "\n".join(lines) if broken or refused else ""


def row(entry: Entry, kept: dict) -> str:
    count = [f["status"] for f in kept["findings"]].count
    counts = [count("holds"), count("broken") + count("crashed"), count("refused"), count("not applicable")]
    return f"| {title(entry)} | {kept['version']} | " + " | ".join(map(str, counts)) + " |"


def page(kept: dict[str, dict]) -> str:
    """Return the page of the subjects whose findings are known."""
    import platform

    known = [entry for entry in SUBJECTS if key(entry) in kept]
    rows = "\n".join(row(entry, kept[key(entry)]) for entry in known)
    machine = f"Python {platform.python_version()}, {platform.machine()}"
    return HEAD.format(machine=machine, rows=rows) + "".join(section(entry, kept[key(entry)]["findings"]) for entry in known)


# ---- the scripts ----

NUMBER = re.compile(r"nan|inf|-?\d+\.?\d*(?:e[-+]?\d+)?")
DIGITS = """
import sys
if 'torch' in sys.modules: sys.modules['torch'].set_printoptions(precision=17, threshold=100000)
if 'numpy' in sys.modules: sys.modules['numpy'].set_printoptions(precision=17, threshold=100000)
"""
SECOND = {"a call is repeated to the bit", "repeated calls keep no memory"}  # these laws compare calls, and the script is one of them


def numbers(text: str) -> list[float]:
    return [float(x) for x in NUMBER.findall(re.sub(r"dtype=\S+|grad_fn=\S+|[a-z]+\d+", "", text))]


RUN = """
import contextlib, io, json, os, sys, traceback
for script in json.load(open(sys.argv[1])):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            exec(script, {})
        except Exception:
            print(traceback.format_exc())
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(said.getvalue()), flush=True)
"""


def printed(scripts: list[str], ranks: int) -> list[str]:
    """Return what each of these scripts prints, with all digits, in one process for all of them, or in one for each rank."""
    whole = ["\n".join([before, DIGITS, "result = " + after]) for before, _, after in (s.rpartition("\nresult = ") for s in scripts)]
    with tempfile.TemporaryDirectory() as folder:
        run, given = Path(folder, "run.py"), Path(folder, "scripts.json")
        run.write_text(RUN)
        given.write_text(json.dumps(whole))
        launch = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        done = subprocess.run([sys.executable, *launch, run, given], capture_output=True, text=True, timeout=1800)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]
    return lines + [done.stderr[-300:]] * (len(scripts) - len(lines))


def agrees(finding: dict, text: str) -> bool:
    """Whether what a script prints is what the finding says."""
    got = finding["got"]
    if re.match(r"\w+(Error|Exception)\b", got):
        return got.removesuffix(": no message")[:60] in text
    if finding["what"].startswith(("the shape", "the number")):
        return "Traceback" not in text
    if finding["expected"] == "an error or NaN":  # what was got may be read beyond an array
        return "Traceback" not in text
    wanted, found = numbers(got), numbers(text)
    near = [any(math.isclose(x, y, rel_tol=1e-6) or (math.isnan(x) and math.isnan(y)) for y in found) for x in wanted]
    return bool(near) and all(near)


def unlike(entry: Entry, findings: list[dict]) -> list[str]:
    """Return the findings whose scripts do not print what was got."""
    chosen = [f for f in findings if f["status"] == "broken" and f["script"] and f["law"] not in SECOND]
    told = zip(chosen, printed([f["script"] for f in chosen], entry.ranks), strict=True) if chosen else []
    return [f"{title(entry)}, {f['law']}: got {f['got']}, but its script prints\n{text[:600]}" for f, text in told if not agrees(f, text)]


# ---- the run ----


def tried(entry: Entry, quick: bool, timeout: float) -> dict:
    """Return the findings of a subject."""
    from softxent.conformance import LAWS, check

    laws = [law for law in LAWS if not (entry.interpreted and law in NOT_INTERPRETED)]
    started = time.monotonic()
    report = check(
        entry.name, quick=quick or entry.quick, laws=laws, timeout=timeout, ranks=entry.ranks, progress=lambda law, n, total: None
    )
    seconds = time.monotonic() - started
    return {"version": version(entry.distribution), "seconds": seconds, "findings": [f.as_dict() for f in report.findings]}


def main(names: list[str], quick: bool, timeout: float) -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    wrong = []
    for entry in SUBJECTS:
        if names and not any(name in title(entry) or name in entry.name for name in names):
            continue
        try:
            version(entry.distribution)
        except PackageNotFoundError:
            print(f"{title(entry)}: {entry.distribution} is not installed", file=sys.stderr)
            continue
        kept[key(entry)] = tried(entry, quick, timeout)
        print(row(entry, kept[key(entry)]), f"{kept[key(entry)]['seconds']:.0f} s", file=sys.stderr)
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1))
        PAGE.write_text(page(kept))
        wrong += unlike(entry, kept[key(entry)]["findings"])
    print("\n".join(wrong) or "all scripts print what was got", file=sys.stderr)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--timeout", type=float, default=300.0)
    given = arguments.parse_args()
    main(given.names, given.quick, given.timeout)
