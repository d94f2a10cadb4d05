"""The tests of one file of the sources, run with one change of it after another: a part of tools/mutate.py, in a process of its own.

pytest collects the tests once, in a copy of src/ and tests/. Each change is made in a child of that process: of Python by new code for the
functions that are there, of C++ by a number that switches it on (switches.py), or by a new extension. The child runs the tests that execute
the changed lines until one fails: first those that take little time and noticed many changes before. A change of what runs at import is
tried in a new process, with all tests.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import gc
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

import switches
from mutations import Mutation

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "build" / "mutation-tests.json"  # file -> test -> what it takes and executes
MEMORY = 12 << 30  # bytes of addresses that a change may take
ALIKE = 3  # of the parameters of a test that execute the same lines, so many run first
LATER = 20.0  # seconds of the others
LONG = 8.0  # seconds of a test that is not run if there are others
NOTICED, UNNOTICED, FRESH = 1, 0, 9  # exit statuses of a child
# Processes that tests start must import the copy, too, and not what is installed.
FOR_PROCESSES = 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]'


class Test(NamedTuple):
    seconds: float
    lines: list[int] | None  # that the test executes, or switches; None if it runs what cannot be seen: another process, or a compiler
    digest: str  # of the file of the test


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class Trials:
    """A copy of the sources and the tests of one file, in which changes of the file are tried."""

    def __init__(self, file: str, text: str, changes: list[Mutation], tests: str, kills: Counter[str], slow: bool) -> None:
        self.file, self.text, self.arguments, self.kills, self.slow = file, text, shlex.split(tests), kills, slow
        self.root = Path(tempfile.mkdtemp(prefix="softxent-mutate-"))
        for name in ("src", "tests", "cpp"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        shutil.copy(ROOT / "pyproject.toml", self.root)
        (self.root / "tests" / "sitecustomize.py").write_text(FOR_PROCESSES)
        self.path = self.root / file
        self.path.write_text(text)
        self.measured: dict[str, Test] = {}
        self.extension = Extensions(self.root, self.path, text, changes) if file.startswith("cpp/") else None
        if not self.extension:
            shutil.copy(compiled_kernel(), self.root / "src" / "softxent")
        self.here, there = Pipe()
        self.process = os.fork()
        if self.process == 0:
            self._pytest(lambda items: self._serve(items, there))
        there.close()
        try:
            self.measured = self.here.recv()
        except EOFError:
            logs = [path.read_text()[-3000:] for name in ("output", "log") if (path := self.root / name).exists()]
            raise SystemExit(f"{file}: the tests fail without a change: " + "\n".join(logs)) from None

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        shutil.rmtree(self.root, ignore_errors=True)

    def attempt(self, m: Mutation) -> tuple[str, str]:
        """Return what becomes of a change: "noticed", "unnoticed" or "too long", and the test that noticed it."""
        self.path.write_text(m.applied(self.text))
        self.here.send((m, self.kills))
        status, by = self.here.recv()
        if status == "fresh":
            status, by = self._outcome(lambda: self._pytest(self._all))
        self.path.write_text(self.text)
        self.kills[by] += "::" in by
        return status, by

    # ---- in the process that has collected the tests ----

    def _serve(self, items: list[Any], there: Any) -> None:
        gc.unfreeze()  # tests/conftest.py hides all objects from gc.get_objects
        self._measure(items)
        there.send(self.measured)
        functions = [] if self.extension else functions_of(self.path)
        while True:
            m, self.kills = there.recv()
            if m.where == "module":
                there.send(("fresh", ""))
                continue
            kernel = None
            if self.extension and m.key not in self.extension.switches and not (kernel := self.extension.made()):
                there.send(("noticed", "the compiler"))
                continue
            some = self._ordered([item for item in items if self._runs(item, m)])
            if not some:
                there.send(("unnoticed", "") if self.extension else ("fresh", ""))
                continue

            def change(m: Mutation = m, kernel: Path | None = kernel) -> None:
                if kernel:
                    self.extension.load(kernel)
                elif self.extension:
                    self.extension.switch(m)
                else:
                    patch(functions, self.path, self.text, m)

            there.send(self._outcome(lambda: self._child(some, change)))  # noqa: B023

    def _runs(self, item: Any, m: Mutation) -> bool:
        lines = self.measured[item.nodeid].lines
        if self.extension:
            return m.key not in self.extension.switches or lines is None or self.extension.switches[m.key] in lines
        return lines is None or any(m.first <= line <= m.last for line in lines)

    def _ordered(self, items: list[Any]) -> list[Any]:
        def cost(item: Any) -> float:
            return (self.measured[item.nodeid].seconds + 0.003) / (self.kills[item.nodeid] + 0.05)

        if self.slow:
            return sorted(items, key=cost)
        alike, first, later = Counter[Any](), [], list[Any]()
        for item in sorted([item for item in items if self.measured[item.nodeid].seconds < LONG] or items, key=cost):
            lines = self.measured[item.nodeid].lines
            kind = item.nodeid if lines is None else (item.nodeid.partition("[")[0], tuple(lines))
            alike[kind] += 1
            (first if alike[kind] <= ALIKE else later).append(item)
        seconds = accumulate(self.measured[item.nodeid].seconds for item in later)
        return first + [item for item, until in zip(later, seconds, strict=True) if until < LATER]

    def _all(self, items: list[Any]) -> None:
        self._child(self._ordered(items), lambda: None)

    def _measure(self, items: list[Any]) -> None:
        """Run the tests without a change, unless it is known how long they take and which lines of the file they execute."""
        known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
        state = digest(self.path)
        tests = {name: Test(*test) for name, test in known.get(self.file, {}).get("tests", {}).items()}
        if known.get(self.file, {}).get("state") != state:
            tests = {}
        now = {path: digest(path) for path in {item.path for item in items}}
        missing = [item for item in items if item.nodeid not in tests or tests[item.nodeid].digest != now[item.path]]
        if missing:
            out = self.root / "measured"
            status, by = self._outcome(lambda: self._child(missing, lambda: None, out))
            assert status == "unnoticed", f"{self.file}: {by} without a change: {status}"
            new = json.loads(out.read_text())
            tests.update({item.nodeid: Test(*new[item.nodeid], now[item.path]) for item in missing})
            known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
            MEASURED.parent.mkdir(exist_ok=True)
            MEASURED.write_text(json.dumps(known | {self.file: {"state": state, "tests": tests}}))
        self.measured = tests

    # ---- children ----

    def _outcome(self, child: Callable[[], None]) -> tuple[str, str]:
        """Run a function that ends the process in a child. Returns what became of the change, and the last test."""
        running = self.root / "running"
        running.write_text("the import")
        pid = os.fork()
        if pid == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(300)  # until the first test sets it
            try:
                child()
            except BaseException as error:
                running.write_text(f"the import: {error!r}")
            finally:
                os._exit(NOTICED)
        _, status = os.waitpid(pid, 0)
        try:
            os.killpg(pid, signal.SIGKILL)  # what the tests started
        except ProcessLookupError:
            pass
        by = running.read_text()
        if os.WIFSIGNALED(status):
            return ("too long" if os.WTERMSIG(status) == signal.SIGALRM else "noticed"), by
        code = os.WEXITSTATUS(status)
        return {UNNOTICED: "unnoticed", FRESH: "fresh"}.get(code, "noticed"), by * (code != UNNOTICED)

    def _child(self, items: list[Any], change: Callable[[], None], measure: Path | None = None) -> None:
        """Make a change, run tests until one fails, and end the process."""
        from _pytest.runner import runtestprotocol

        try:
            change()
        except BaseException:  # a function with another number of outer variables, say
            os._exit(FRESH)
        running, taken = self.root / "running", {}
        kept = caches() if measure else []
        for item, following in zip(items, [*items[1:], None], strict=True):
            running.write_text(item.nodeid)
            known = self.measured.get(item.nodeid)
            signal.setitimer(signal.ITIMER_REAL, 5 * known.seconds + 10 if known else 600)
            started = time.monotonic()
            lines: Any = (self.extension or Lines(str(self.path))) if measure else None
            for cache in kept:
                cache.cache_clear()
            if lines:
                lines.start()
            reports = runtestprotocol(item, nextitem=following, log=False)
            if lines:
                lines.stop()
            taken[item.nodeid] = time.monotonic() - started, None if not lines or lines.unseen else sorted(lines.seen)
            if any(report.failed for report in reports):
                (self.root / "log").write_text("\n".join(report.longreprtext for report in reports))
                os._exit(NOTICED)
        if measure:
            measure.write_text(json.dumps(taken))
        os._exit(UNNOTICED)

    def _pytest(self, then: Callable[[list[Any]], None]) -> None:
        """Collect the tests, call a function that ends the process, and end the process."""
        import pytest

        class Plugin:
            def pytest_runtestloop(self, session: Any) -> bool:
                assert not session.testsfailed, "tests cannot be collected"
                assert str(sys.modules["softxent"].__file__).startswith(os.getcwd())
                then(session.items)
                return True

        os.chdir(self.root)
        out = os.open(self.root / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        exec(FOR_PROCESSES)
        sys.path[:0] = [str(self.root / "src"), str(self.root / "tests")]
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        sys.modules["jax_backend"] = None  # type: ignore[assignment]  # importing JAX would take seconds
        try:
            options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:faulthandler"]
            pytest.main([*options, *self.arguments], plugins=[Plugin()])
        finally:
            os._exit(NOTICED)


class Lines:
    """The lines of a file that are executed between start and stop."""

    def __init__(self, path: str) -> None:
        self.path, self.seen, self.unseen = path, set[int](), False

    def start(self) -> None:
        threading.settrace(self._called)
        sys.settrace(self._called)

    def stop(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _called(self, frame: types.FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name == self.path:
            self.seen.add(frame.f_lineno)
            return self._line
        self.unseen |= name.endswith(("/_dynamo/convert_frame.py", "/subprocess.py", "multiprocessing/process.py", "/tests/processes.py"))
        return None

    def _line(self, frame: types.FrameType, event: str, _: Any) -> Any:
        self.seen.add(frame.f_lineno)
        return self._line


# ---- changes in a process ----


def functions_of(path: Path) -> list[types.FunctionType]:
    """Return the functions of an imported file."""
    return [f for f in gc.get_objects() if type(f) is types.FunctionType and f.__code__.co_filename == str(path)]


def patch(functions: list[types.FunctionType], path: Path, text: str, m: Mutation) -> None:
    """Give the functions of an imported file the code or the default arguments of the changed file."""
    changed = m.applied(text)
    old, new = (codes(compile(source, str(path), "exec", dont_inherit=True)) for source in (text, changed))
    into = {old[key]: new[key] for key in old if key in new}
    for f in functions:
        f.__code__ = into[f.__code__]
    if m.where == "default":
        nodes = {(node.name, node.lineno): node for node in ast.walk(ast.parse(changed)) if isinstance(node, ast.FunctionDef)}
        for f in functions:
            if (node := nodes.get((f.__name__, f.__code__.co_firstlineno))) and f.__qualname__ == f.__name__:
                args, make = node.args, functools.partial(_value, f.__globals__)
                f.__defaults__ = tuple(map(make, args.defaults)) or None
                f.__kwdefaults__ = {a.arg: make(d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d} or None
    for cache in caches():
        cache.cache_clear()


def caches() -> list[Any]:
    """Return the functions of softxent that keep results for the next call."""
    return [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper and str(o.__module__).startswith("softxent")]


def _value(names: dict[str, Any], node: ast.expr) -> Any:
    return eval(ast.unparse(node), names)


def codes(code: types.CodeType) -> dict[tuple[str, int, int], types.CodeType]:
    """Return the code of each function in a module, by its name, its first line, and its number among equals."""
    found: dict[tuple[str, int, int], types.CodeType] = {}
    seen, todo = Counter[tuple[str, int]](), [code]
    while todo:
        one = todo.pop()
        name = one.co_qualname, one.co_firstlineno
        found[*name, seen[name]] = one
        seen[name] += 1
        todo += [c for c in one.co_consts if isinstance(c, types.CodeType)]
    return found


def compiled_kernel() -> Path:
    """Return the compiled kernel of the package that Python would import."""
    built = importlib.machinery.PathFinder.find_spec("softxent", [str(ROOT / "src"), *sys.path])
    folders = [Path(p) for p in [*((built and built.submodule_search_locations) or []), *(f"{p}/softxent" for p in sys.path)]]
    return next(found for folder in folders for found in folder.glob("_kernel*.so"))


class Extensions:
    """The compiled extension of a copy, and others of a changed source."""

    unseen = False

    def __init__(self, root: Path, source: Path, text: str, changes: list[Mutation]) -> None:
        from extension import Extension

        self.root, self.source, self.count = root, source, 0
        self.extension = Extension(root / "cpp", root / "objects", "-O0", "-g0")
        for name in ("nanobind", "bind", "run", "xla", "kernel"):
            assert name == source.stem or not self._compile(name), "the sources cannot be compiled without a change"
        self.switches = self._switches(text, changes)
        self.extension.link(root / "src" / "softxent")

    def _switches(self, text: str, changes: list[Mutation]) -> dict[str, int]:
        """Compile the source with all changes that a number can switch on. Returns the number of each."""
        some = changes
        while True:
            switched, places = switches.switched(text, some)
            self.source.write_text(switched)
            if not (wrong := self._compile(self.source.stem)):
                return {some[k].key: k for k in places}
            lines = {int(line) for line in re.findall(rf"{self.source.name}:(\d+):\d+: error", wrong)}
            less = [m for m in some if m.number not in lines]
            assert len(less) < len(some), wrong[:3000]
            some = less

    def _compile(self, name: str) -> str:
        """Compile a source. Returns what the compiler says if it does not accept it."""
        source = self.root / "cpp" / f"{name}.cpp"
        if name == "kernel":  # 16-bit types would take two thirds of the time of the compiler
            source.write_text(re.sub(r"\{OPS_OF\(b?f16, b?f16\), OPS_OF\(b?f16, f32\)\}", "{}", source.read_text()))
        done = self.extension.compile(name, limit=300)
        return done.stderr if done.returncode else ""

    def _variable(self, kind: Any, name: str) -> Any:
        library = ctypes.CDLL(str(sys.modules["softxent._kernel"].__file__))
        return kind.in_dll(library, name)

    def switch(self, m: Mutation) -> None:
        self._variable(ctypes.c_int, "softxent_change").value = self.switches[m.key]
        os.environ["SOFTXENT_CHANGE"] = str(self.switches[m.key])  # for processes that the test starts

    def start(self) -> None:
        ctypes.memset(self._variable(switches.Seen, "softxent_seen"), 0, ctypes.sizeof(switches.Seen))

    def stop(self) -> None:
        self.seen = {k for k, reached in enumerate(self._variable(switches.Seen, "softxent_seen")) if reached}

    def made(self) -> Path | None:
        """Compile the changed source, and return the new extension, or None if the compiler does not accept the change."""
        if self._compile(self.source.stem):
            return None
        folder = self.root / "objects" / str(self.count)  # a new name, because Python imports an extension once
        shutil.rmtree(self.root / "objects" / str(self.count - 1), ignore_errors=True)
        self.count += 1
        folder.mkdir()
        self.extension.link(folder)
        made = next(folder.iterdir())
        shutil.copy(made, self.root / "objects" / "copy")
        (self.root / "objects" / "copy").replace(self.root / "src" / "softxent" / made.name)  # for processes that the tests start
        return made

    def load(self, kernel: Path) -> None:
        """Put another extension in the place of the imported one, and of its functions, in all modules."""
        old = sys.modules["softxent._kernel"]
        spec = importlib.util.spec_from_file_location("softxent._kernel", kernel)
        assert spec and spec.loader
        new = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(new)
        assert new is not old and new.forward is not old.forward
        into = {id(old): new} | {id(value): getattr(new, name) for name, value in vars(old).items() if callable(value)}
        for module in list(sys.modules.values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if id(value) in into:
                    setattr(module, name, into[id(value)])
        sys.modules["softxent._kernel"] = new
