"""Write docs/field.md: the laws of softxent.conformance for the implementations of other libraries, as far as they are installed.

Run it as `python tools/field.py [--quick]`. It takes some minutes. The findings are those of this machine and of the installed versions.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
FENCE = "```"


def torch_in_chunks(
    input, linear_weight, target, *, linear_bias=None, weight=None, reduction="mean", ignore_index=None, label_smoothing=0.0
):  # fmt: skip
    """torch's linear_cross_entropy, with the logits computed in chunks of two rows."""
    import torch

    warnings.simplefilter("ignore")  # it warns where it computes all logits at once
    return torch.nn.functional.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight, reduction=reduction, ignore_index=ignore_index,
        label_smoothing=label_smoothing, options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2, allow_retain_graph=True),
    )  # fmt: skip


SUBJECTS = {  # what is checked, and its distribution; each shape of a case is compiled for optax, so it has the small ones
    "torch.nn.functional:cross_entropy": "torch",
    "torch.nn.functional:linear_cross_entropy": "torch",
    "field:torch_in_chunks": "torch",
    "scipy.special:log_softmax": "scipy",
    "sklearn.metrics:log_loss": "scikit-learn",
    "optax:softmax_cross_entropy_with_integer_labels": "optax",
    "optax:softmax_cross_entropy": "optax",
    "softxent:cross_entropy": "softxent",
    "softxent:linear_cross_entropy": "softxent",
    "softxent.torch:cross_entropy": "softxent",
    "softxent.torch:linear_cross_entropy": "softxent",
    "softxent.jax:cross_entropy": "softxent",
    "softxent.jax:linear_cross_entropy": "softxent",
}
OPTIONS = "options=LinearCrossEntropyOptions(batch_chunk_size=2, allow_retain_graph=True)"
TITLES = {"field:torch_in_chunks": f"`torch.nn.functional:linear_cross_entropy` with `{OPTIONS}`"}

HEAD = """# The field

What `softxent check` finds in the implementations of other libraries ([how it is checked](conformance.md)). This page is written by
`tools/field.py`, on {machine}; do not edit it. A finding is a statement about one version, and about the laws: a library may have decided
otherwise, such as `log_loss`, whose documentation says that it clips.

| function | version | holds | broken | refused | not applicable |
| --- | --- | --- | --- | --- | --- |
{rows}

*Refused* means that the function raises an error that says so. *Not applicable* means that it has no such argument or derivative.
"""


def section(report, name: str) -> str:
    """Return the findings of a subject: a table, and the script of each."""
    from softxent.conformance import BROKEN, CRASHED, REFUSED

    lines = [f"\n## {TITLES.get(name, name)}\n"]
    broken = [f for f in report.findings if f.status in (BROKEN, CRASHED)]
    refused = [f for f in report.findings if f.status == REFUSED]
    for f in broken:
        lines.append(f"**{f.law}** ({f.status}). {f.statement}\n\n{f.what}: expected `{f.expected}`, got `{f.got}`.\n")
        lines.append(f"{FENCE} {{ .python }}\n{f.script}\n{FENCE}\n" if f.script else "")
    for f in refused:
        lines.append(f"*{f.law}*: refused, `{f.got}`\n")
    return "\n".join(lines) if broken or refused else ""


def main(quick: bool) -> None:
    import platform

    from softxent.conformance import BROKEN, CRASHED, HOLDS, LACKING, REFUSED, check

    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    rows, sections = [], []
    for name, distribution in SUBJECTS.items():
        if not importlib.util.find_spec(distribution.replace("scikit-learn", "sklearn")):
            print(f"{name}: {distribution} is not installed", file=sys.stderr)
            continue
        report = check(name, quick=quick or distribution == "optax" or "jax" in name, progress=lambda law, n, total: None)
        counts = [report.count(HOLDS), report.count(BROKEN) + report.count(CRASHED), report.count(REFUSED), report.count(LACKING)]
        rows.append(f"| {TITLES.get(name, f'`{name}`')} | {version(distribution)} | " + " | ".join(map(str, counts)) + " |")
        sections.append(section(report, name))
        print(rows[-1], file=sys.stderr)
    machine = f"Python {platform.python_version()}, {platform.machine()}"
    text = HEAD.format(machine=machine, rows="\n".join(rows)) + "".join(sections)
    (HERE.parent / "docs" / "field.md").write_text(text)


if __name__ == "__main__":
    main("--quick" in sys.argv)
