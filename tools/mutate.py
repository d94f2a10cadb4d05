"""Change the sources of softxent in one place at a time, and find out whether the tests notice.

Run it as `make mutate`, or as `python tools/mutate.py [--sample N] [--file NAME] [--jobs N]`. Each change (mutations.py) is made in a copy
of src/ and tests/; the tests that should notice it run there until one fails. What was found is kept in build/mutation.json, from which
the next run goes on, and written to docs/mutation.md. A change that no test notices must be explained in tools/mutation.toml: either it
changes no result, or a test is missing. The exit status is 1 if one is neither noticed nor explained.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.machinery
import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import tomllib
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mutations import Mutation, mutations

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "build" / "mutation.json", ROOT / "docs" / "mutation.md"
SRC = "src/softxent/"
SETTINGS = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text())
TESTS: dict[str, list[list[str]]] = {file: [shlex.split(line) for line in lines] for file, lines in SETTINGS["tests"].items()}
SECONDS = "seconds of tests"  # a key of the results
FIRST = 12  # so many tests, those that noticed most changes of a file before, run first
MEMORY = 12 << 30  # bytes of addresses that a change may take
LONG = 60.0  # seconds beyond three times what the tests take without a change


# ---- in a copy ----


class Copy:
    """A copy of src/ and tests/, in which a process of its own runs tests with one change after another."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="softxent-mutate-"))
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        for name in ("src", "tests", "cpp"):
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        built = importlib.machinery.PathFinder.find_spec("softxent", [str(ROOT / "src"), *sys.path])
        folders = [Path(p) for p in [*(built.submodule_search_locations or []), *(f"{p}/softxent" for p in sys.path)]]
        kernel = next(found for folder in folders for found in folder.glob("_kernel*.so"))
        shutil.copy(kernel, self.root / SRC)
        self.extension: Any = None

    def compiled(self, source: str) -> bool:
        """Compile a source of C++, the first time all of them. Returns whether the compiler accepts it."""
        from extension import Extension

        if self.extension is None:
            self.extension = Extension(self.root / "cpp", self.root / "objects", "-O0", "-g0")
            for name in ("nanobind", "bind", "run"):
                assert self.extension.compile(name).returncode == 0
        done = self.extension.compile(Path(source).stem, limit=300)
        if done.returncode == 0:
            self.extension.link(self.root / SRC)
        return bool(done.returncode == 0)

    def put(self, file: str, text: str) -> bool:
        """Write a source. Returns whether it can be run."""
        if file.startswith("cpp/"):  # 16-bit types would take two thirds of the time of the compiler
            text = re.sub(r"\{OPS_OF\(b?f16, b?f16\), OPS_OF\(b?f16, f32\)\}", "{}", text)
        (self.root / file).write_text(text)
        return self.compiled(file) if file.startswith("cpp/") else True

    def test(self, arguments: list[str], limit: float) -> tuple[str, str]:
        """Run pytest in a child. Returns "passed", "failed" or "too long", and the first test that failed."""
        log = self.root / "log"
        child = os.fork()
        if child == 0:
            self._in_child(arguments, log)
        end, status = time.monotonic() + limit, None
        while status is None and time.monotonic() < end:
            pid, code = os.waitpid(child, os.WNOHANG)
            status = code if pid else None
            time.sleep(0.02)
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if status is None:
            os.waitpid(child, 0)
            return "too long", ""
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", log.read_text(errors="replace"), re.MULTILINE)
        by = failed[1] if failed else "the process"
        return {0: "passed", 4 << 8: "no such test"}.get(status, "failed"), by

    def _in_child(self, arguments: list[str], log: Path) -> None:
        import pytest

        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(self.root)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]  # an editable installation
        sys.path[:0] = [str(self.root / "src"), str(self.root / "tests")]
        sys.modules["jax_backend"] = None  # type: ignore[assignment]  # importing JAX would take seconds
        code: int = 3
        try:
            code = pytest.main(["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments])
            assert str(sys.modules["softxent"].__file__).startswith(str(self.root))
        finally:
            os._exit(code)


def preload() -> None:
    """Import what tests need, but not softxent, so that each child has it."""
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", TRITON_INTERPRET="1")  # a change within a second would not be seen in a file of bytecode
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401
    import ml_dtypes  # noqa: F401
    import pytest  # noqa: F401
    import scipy.special  # noqa: F401
    import sympy  # noqa: F401
    import torch
    import torch._dynamo

    torch.set_num_threads(1)


def work(todo: Any, done: Any, usual: dict[str, float], noticed: Counter[tuple[str, str]]) -> None:
    """Try changes from one queue and put what becomes of them into the other: what a process of `--jobs` does."""
    copy, current = Copy(), ""
    try:
        while (m := todo.get()) is not None:
            text = (ROOT / m.file).read_text()
            if current and current != m.file:
                copy.put(current, (ROOT / current).read_text())
            if current != m.file:
                current = m.file
                measure(copy, m.file, text, usual)
            started = time.monotonic()
            status, by = attempt(
                copy, m, text, usual, [[test for (file, test), count in noticed.most_common() if file == m.file and count][:FIRST]]
            )
            noticed[m.file, by] += "::" in by
            if m.file.endswith(".py"):
                copy.put(m.file, text)
            done.put((m, status, by, time.monotonic() - started, usual))
    except BaseException as error:
        done.put((None, "error", repr(error), 0.0, {}))
        raise
    finally:
        shutil.rmtree(copy.root, ignore_errors=True)


def measure(copy: Copy, file: str, text: str, usual: dict[str, float]) -> None:
    """Run the tests of a file without a change, unless it is known how long they take."""
    missing = [tests for tests in TESTS[file] if str(tests) not in usual]
    if not missing:
        return
    assert copy.put(file, text), "the source does not compile without a change"
    for tests in missing:
        started = time.monotonic()
        outcome = copy.test(tests, 1200)
        assert outcome[0] == "passed", f"{tests} without a change: {outcome}: {(copy.root / 'log').read_text()[-2000:]}"
        usual[str(tests)] = time.monotonic() - started


def attempt(copy: Copy, m: Mutation, text: str, usual: dict[str, float], first: list[list[str]]) -> tuple[str, str]:
    """Return whether a change is noticed, and by what."""
    if not copy.put(m.file, m.applied(text)):
        return "noticed", "the compiler"
    for tests in [*filter(None, first), *TESTS[m.file]]:
        outcome, by = copy.test(tests, LONG / 3 if tests in first else 3 * usual[str(tests)] + LONG)
        if outcome == "failed" or (outcome != "passed" and tests not in first):
            return ("too long" if outcome == "too long" else "noticed"), by
    return "unnoticed", ""


# ---- which, and what is reported ----


def explained(m: Mutation) -> str:
    """Return why a change has no effect, or ""."""
    for e in SETTINGS.get("unnoticed", []):
        change = e.get("change")
        if m.file.endswith(e["file"]) and m.line == e["line"] and (change is None or m.key == f"{m.file}: {m.line}: {change}"):
            return str(e["why"])
    return ""


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
edit it. The changes that were tried are a random sample where they are fewer than the possible ones.

*Too long* means that the tests did not end within three times their usual time and a minute; it counts as noticed. *No effect* means that
no test fails, and that the table below says why the result is the same. Changes of the C++ kernel are tested with float32 and float64.

| file | possible changes | tried | noticed | too long | no effect | not explained |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

## Changes without effect

| line | change | why no test fails |
| --- | --- | --- |
{unnoticed}
"""


def chosen(every: dict[str, list[Mutation]], sample: int, seed: int) -> list[Mutation]:
    """Return the changes to try: all of them, or so many of each file."""
    some = [random.Random(f"{seed} {file}").sample(all_, len(all_))[: sample or None] for file, all_ in every.items()]
    return [m for tier in zip_longest(*some) for m in tier if m]  # the files in turn, so that a run that is stopped has tried all of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, help="try so many changes of each file (0: all of them)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--file", action="append", help="a part of the name of a file; all of them without")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="try again what no test noticed and is not explained")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    given = parser.parse_args()
    every = {file: mutations(file, (ROOT / file).read_text()) for file in TESTS}
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wanted = {file: all_ for file, all_ in every.items() if not given.file or any(part in file for part in given.file)}
    todo = chosen(wanted, given.sample, given.seed)
    if given.again:
        todo = [m for m in todo if results.get(m.key, {}).get("status") == "unnoticed" and not explained(m)]
    else:
        todo = [m for m in todo if m.key not in results]
    if todo and not given.page:
        run(todo, given.jobs, results)
    unexplained = page(every, json.loads(RESULTS.read_text()) if RESULTS.exists() else {})
    for m in unexplained:
        print(f"not noticed: {m.file}:{m.number}: {m.line}\n    {m.old!r} -> {m.new!r}")
    return 1 if unexplained else 0


def run(todo: list[Mutation], jobs: int, results: dict[str, Any]) -> None:
    """Try the changes, and keep what is found in the results and their file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    preload()
    context = multiprocessing.get_context("fork")
    queue, done = context.Queue(), context.Queue()
    queue.cancel_join_thread()  # if a process ends with an error, nobody reads what is left
    for m in [*todo, *[None] * jobs]:
        queue.put(m)
    usual, noticed = results.get(SECONDS, {}), Counter[tuple[str, str]]()
    for key, before in results.items():
        noticed[key.partition(": ")[0], before.get("by", "")] += "::" in before.get("by", "")
    workers = [context.Process(target=work, args=(queue, done, usual, noticed), daemon=True) for _ in range(jobs)]
    for w in workers:
        w.start()
    RESULTS.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(todo))
        for _ in todo:
            m, status, by, seconds, measured = done.get()
            if m is None:
                raise SystemExit(f"mutate: {by}")
            usual.update(measured)
            found[m.key] = {"status": status, "by": by, "seconds": round(seconds, 1), "line": m.number}
            others = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # of a run beside this one
            known = others.get(SECONDS, {}) | usual
            RESULTS.write_text(json.dumps(others | found | {SECONDS: known}, indent=1))
            if status == "unnoticed":
                progress.console.print(f"{m.file}:{m.number}: {m.line}: {m.old} -> {m.new}", highlight=False, markup=False)
            progress.update(task, advance=1, description=f"{m.file} {status} {by[-40:]}")
    for w in workers:
        w.join()


if __name__ == "__main__":
    sys.exit(main())
