"""Change the sources of softxent in one place at a time, and find out whether the tests notice.

Run it as `make mutate`, or as `python tools/mutate.py [--sample N] [--file NAME] [--jobs N]`. Each change (mutations.py) is made in a copy
of src/ and tests/, whose tests run until one fails (trials.py). What was found is kept in build/mutation.json, from which
the next run goes on, and written to docs/mutation.md. A change that no test notices must be explained in tools/mutation.toml: either it
changes no result, or a test is missing. The exit status is 1 if one is neither noticed nor explained.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import multiprocessing
import os
import random
import re
import sys
import textwrap
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from mutations import Mutation, chosen, mutations
from trials import Trials

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "build" / "mutation.json", ROOT / "docs" / "mutation.md"
SRC = "src/softxent/"
SETTINGS = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text())
TESTS: dict[str, str] = SETTINGS["tests"]
SLOW: dict[str, str] = SETTINGS["slow"]  # tests that are run for changes that those of TESTS do not notice
EXPLANATIONS: list[dict[str, str]] = SETTINGS["unnoticed"]
PER_LINE = {".py": 2, ".cpp": 1}  # so many places of a line, at most


def preload() -> None:
    """Import what tests need, but not softxent, so that each child has it."""
    # a change within a second would not be seen in a file of bytecode; a process that tests/processes.py forks has the change
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", TRITON_INTERPRET="1", SOFTXENT_TEST_START="fork")
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401
    import ml_dtypes  # noqa: F401
    import pytest  # noqa: F401
    import scipy.special  # noqa: F401
    import sympy  # noqa: F401
    import torch
    import torch._dynamo

    torch.set_num_threads(1)


def work(todo: Any, done: Any, texts: dict[str, str], every: dict[str, list[Mutation]], results: dict[str, Any], slow: bool) -> None:
    """Try changes from one queue and put what becomes of them into the other: what a process of `--jobs` does."""
    tests = SLOW if slow else TESTS
    trials: Trials | None = None
    try:
        while (m := todo.get()) is not None:
            if trials is None or trials.file != m.file:
                if trials:
                    trials.close()
                by = (r["by"] for key, r in results.items() if key.startswith(m.file) and "::" in r["by"])
                trials = Trials(m.file, texts[m.file], every[m.file], tests[m.file], Counter(by), slow)
            started = time.monotonic()
            status, by = trials.attempt(m)
            done.put((m, status, by, time.monotonic() - started))
    except BaseException as error:
        done.put((None, "error", repr(error), 0.0))
        raise
    finally:
        if trials:
            trials.close()


# ---- which, and what is reported ----


def text_of(file: str) -> str:
    """Return the text of a file; that of cpp/kernel.cpp has the headers of the phases in place of their `#include`."""
    phases = r'#include "((?:scratch|columns|finish|blocks|short|curvature)\.h)"\n'
    text = (ROOT / file).read_text()
    return re.sub(phases, lambda m: (ROOT / "cpp" / m[1]).read_text(), text) if file == "cpp/kernel.cpp" else text


def explains(e: dict[str, str], m: Mutation) -> bool:
    """Whether this entry of tools/mutation.toml is about this change."""
    return m.file.endswith(e["file"]) and m.line == e["line"] and ("change" not in e or m.key == f"{m.file}: {m.line}: {e['change']}")


def explained(m: Mutation) -> str:
    """Return why a change has no effect, or ""."""
    return next((e["why"] for e in EXPLANATIONS if explains(e, m)), "")


def page(every: dict[str, list[Mutation]], results: dict[str, Any]) -> list[Mutation]:
    """Write docs/mutation.md. Returns the changes that were neither noticed nor explained."""
    rows, lines, open_ = [], [], list[Mutation]()
    for file, all_ in every.items():
        of = {
            status: [m for m in all_ if results.get(m.key, {}).get("status") == status] for status in ("noticed", "unnoticed", "too long")
        }
        why = {m.key: explained(m) for m in of["unnoticed"]}
        open_ += [m for m in of["unnoticed"] if not why[m.key]]
        count = {status: len(some) for status, some in of.items()}
        left = sum(not w for w in why.values())
        rows.append(
            f"| {file} | {len(all_)} | {sum(count.values())} | {count['noticed']} | {count['too long']} | {len(why) - left} | {left} |"
        )
        for m in of["unnoticed"]:
            old, new = (textwrap.shorten(" ".join(text.split()), 90, placeholder=" ...") for text in (m.old, m.new))
            code = f"{m.kind}: `` {old} `` → `` {new} ``".replace("|", "\\|")
            lines.append(f"| {file.removeprefix(SRC)}:{m.number} | {code} | {why[m.key] or '**not explained**'} |")
    PAGE.write_text(HEAD.format(rows="\n".join(rows), unnoticed="\n".join(lines), date=datetime.date.today()))
    return open_


HEAD = """# Changes that the tests notice

`make mutate` changes the sources in one place at a time: another comparison or operation, a term or a statement less, a constant that is
one larger, two arguments swapped, a condition negated. The tests must notice. This page is written by `tools/mutate.py` ({date}); do not
edit it.

It makes one change at each of at most two places of a line of Python, and at one place of a line of C++; the text of the line says which.
Annotations, messages, imports, assertions, the arguments of templates, declarations of types, prefetches and advice on pages are left as
they are. The tests of a file that execute the changed lines run until one fails: of a test's parameters with which it executes the same
lines, three and then others for twenty seconds; tests of more than eight seconds only if there are no others. What these do not notice and
is not explained is tried with further tests of any length. The C++ kernel is compiled for one instruction set and without 16-bit types.
Where fewer changes were tried than there are, they are a random sample. `cpp/run.cpp` is left out: most
of their tests start processes, which take seconds.

*Too long* means that a test did not end within five times its usual time and ten seconds; it counts as noticed. *No effect* means that no
test fails, and that the table below says why the result is the same.

| file | changes | tried | noticed | too long | no effect | not explained |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

## Changes without effect

| line | change | why no test fails |
| --- | --- | --- |
{unnoticed}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, help="try so many changes of each file (0: all of them)")
    parser.add_argument("--file", action="append", help="a part of the name of a file; all of them without")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="try again what no test noticed and is not explained")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    given = parser.parse_args()
    texts = {file: text_of(file) for file in TESTS}
    every = {file: chosen(mutations(file, text), PER_LINE[Path(file).suffix]) for file, text in texts.items()}
    if stale := [e for e in EXPLANATIONS if not any(explains(e, m) for all_ in every.values() for m in all_)]:
        raise SystemExit("mutate: tools/mutation.toml explains changes that are not made:\n" + "\n".join(map(str, stale)))
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wanted = {file: all_ for file, all_ in every.items() if not given.file or any(part in file for part in given.file)}
    tried = {m.key for all_ in wanted.values() for m in all_ if m.key in results}
    if given.again:
        tried = {m.key for all_ in wanted.values() for m in all_ if results.get(m.key, {}).get("status") != "unnoticed" or explained(m)}
    some = [random.Random(file).sample(all_, len(all_))[: given.sample or None] for file, all_ in wanted.items()]
    todo = [m for changes in some for m in changes if m.key not in tried]
    if todo and not given.page:
        run(todo, texts, every, given.jobs, results)
        results = json.loads(RESULTS.read_text())
    again = [m for file, all_ in wanted.items() if file in SLOW for m in all_ if not results.get(m.key, {"slow": True}).get("slow")]
    again = [m for m in again if results[m.key]["status"] == "unnoticed" and not explained(m)]
    if again and not given.page:
        run(again, texts, every, given.jobs, results, slow=True)
        results = json.loads(RESULTS.read_text())
    unexplained = page(every, results)
    for m in unexplained:
        print(f"not noticed: {m.file}:{m.number}: {m.line}\n    {m.old!r} -> {m.new!r}")
    return 1 if unexplained else 0


def keep(found: dict[str, Any]) -> None:
    """Add to the results, to which another run may add at the same time."""
    with RESULTS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        new = RESULTS.with_suffix(".new")
        new.write_text(json.dumps(before | found, indent=1))
        new.replace(RESULTS)


def run(
    todo: list[Mutation], texts: dict[str, str], every: dict[str, list[Mutation]], jobs: int, results: dict[str, Any], slow: bool = False
) -> None:
    """Try the changes, and keep what is found in the file of the results."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    preload()
    context = multiprocessing.get_context("fork")
    queue, done = context.Queue(), context.Queue()
    queue.cancel_join_thread()  # if a process ends with an error, nobody reads what is left
    for m in [*todo, *[None] * jobs]:
        queue.put(m)
    workers = [context.Process(target=work, args=(queue, done, texts, every, results, slow)) for _ in range(jobs)]
    for w in workers:
        w.start()
    RESULTS.parent.mkdir(exist_ok=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(todo))
        for _ in todo:
            m, status, by, seconds = done.get()
            if m is None:
                raise SystemExit(f"mutate: {by}")
            keep({m.key: {"status": status, "by": by, "seconds": round(seconds, 1), "line": m.number, "slow": slow}})
            if status == "unnoticed":
                progress.console.print(f"{m.file}:{m.number}: {m.line}: {m.old} -> {m.new}", highlight=False, markup=False)
            progress.update(task, advance=1, description=f"{m.file} {status} {by[-40:]}")
    for w in workers:
        w.join()


if __name__ == "__main__":
    sys.exit(main())
