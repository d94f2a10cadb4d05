"""Calls in relation to the process: forks, Ctrl-C, the GIL, and simultaneous calls."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import BACKENDS, python

import softxent
from softxent import kernels
from softxent.truth import IDENTITY

FORK = """
import os, signal, sys, threading, numpy as np
{first}
import softxent
softxent.set_num_threads(4)
rng = np.random.default_rng(0)
z, t = rng.standard_normal((3000, 500)), rng.integers(0, 500, 3000)
wide, tw = rng.standard_normal((1, 40_000)), np.array([7])
with softxent.use_backend({backend!r}):
    def everything():
        return softxent.cross_entropy_and_grad(z, t)[1].tobytes() + softxent.cross_entropy_and_grad(wide, tw)[1].tobytes()
    want = everything()
    for _ in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(300)  # ends a child that hangs
            os._exit(0 if everything() == want == everything() else 1)
        assert os.waitpid(child, 0)[1] == 0, "the child did not give the same bits"
        assert everything() == want
print("ok")
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", ["", "import torch; torch.ones(1000, 1000).exp()"], ids=["alone", "after_torch"])
def test_a_forked_child_can_call(backend, first):
    """The parent has used threads before, with and without an OpenMP runtime in the process, whose threads the child lacks."""
    assert python(FORK.format(first=first, backend=backend)) == "ok\n"


FIRST_IN_A_CHILD = """
import os, signal, torch
torch.set_num_threads(2)
torch.ones(2000, 2000).exp()
{parent}
z, t = torch.randn(2000, 500), torch.zeros(2000, dtype=torch.int64)
{begin}
"""
BEGIN = {
    "os.fork": """
child = os.fork()
if child == 0:
    signal.alarm(300)  # ends a child that hangs
    import softxent.torch
    os._exit(softxent.torch.cross_entropy(z, t) > 0)
print(os.waitpid(child, 0)[1] >> 8)
""",
    "torch.multiprocessing": """
import torch.multiprocessing as mp
def work(found):
    import softxent.torch
    found.value = softxent.torch.cross_entropy(z, t) > 0
found = mp.get_context("fork").Value("i", 0)
child = mp.get_context("fork").Process(target=work, args=(found,))
child.start()
child.join(300)
child.kill()
print(found.value)
""",
}


@pytest.mark.parametrize("begin", BEGIN)
@pytest.mark.parametrize("parent", ["import softxent", "import softxent.torch", "pass"])
def test_the_first_call_may_be_in_a_forked_child(parent, begin):
    """The parent has used torch's threads, but none here, and may not even have imported this package."""
    if parent == "pass" and sys.platform != "linux":
        pytest.skip("a child that imports the package knows by /proc that it was forked")
    assert python(FIRST_IN_A_CHILD.format(parent=parent, begin=BEGIN[begin])) == "1\n"


ROW = np.linspace(-3, 3, 100_000, dtype=np.float32)


class Watched:
    """A long call of a kernel, without memory: it reads the same row again and again. `done()` says how many rows have their loss."""

    def __init__(self, rows: int) -> None:
        self.z, self.label = np.broadcast_to(ROW, (rows, ROW.size)), np.zeros(rows, np.int64)
        self.result = np.full((2, rows), np.nan)

    def done(self) -> int:
        return int(np.count_nonzero(~np.isnan(self.result[0])))

    def call(self, threads: int) -> None:
        kernels.active().forward(self.z, self.label, (1.0, 0.0, 0.0, 1.0), None, IDENTITY, self.result, None, threads)


CTRL_C = """
import os, signal, threading, time, numpy as np, softxent
from test_process import ROW, Watched
signal.signal(signal.SIGINT, signal.default_int_handler)
watched = Watched({rows})
def interrupt_in_the_middle():
    while not watched.done():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
with softxent.use_backend({backend!r}):
    threading.Thread(target=interrupt_in_the_middle).start()
    try:
        watched.call({threads})
        print("ended")
    except KeyboardInterrupt:
        print("interrupted")
    print(0 < watched.done() < {rows} // 2, watched.done())
    loss = softxent.cross_entropy(watched.z[:10], watched.label[:10], reduction="none")
    x = ROW.astype(float)
    print(abs(loss - (np.log(np.exp(x).sum()) - x[0])).max() < 1e-5)
"""


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_ends_a_long_call(backend, threads):
    """Ctrl-C ends a call before half of its rows are computed, and the next call is correct."""
    out = python(CTRL_C.format(backend=backend, threads=threads, rows=200_000 if backend == "cpu" else 4000))
    assert re.fullmatch(r"interrupted\nTrue \d+\nTrue\n", out), out


LONG_ROWS = """
import signal, numpy as np, softxent
from softxent import kernels
from softxent.truth import IDENTITY
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
z = np.broadcast_to(np.zeros(1 << 29, np.float32), (7, 1 << 29))  # 2 GiB that are never written, and so take no memory
result = np.full((2, 7), np.nan)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    kernels.cpu.forward(z, np.zeros(7, np.int64), (1.0, 0.0, 0.0, 1.0), None, IDENTITY, result, None, {threads})
    print("ended")
except KeyboardInterrupt:
    print("interrupted", np.isnan(result[0]).any())
"""


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the formula works on few elements at a time; test_architecture.py requires the kernel")
@pytest.mark.parametrize("threads", (1, 2))
def test_ctrl_c_ends_a_call_on_a_few_long_rows(threads):
    """The signal of a timer comes at the beginning of the call, and ends it before all rows are computed."""
    assert python(LONG_ROWS.format(threads=threads)) == "interrupted True\n"


NESTED = """
import signal, numpy as np, softxent
import torch
import softxent.torch
rng, inner = np.random.default_rng(0), 0
small, large = rng.standard_normal((1000, 100)), rng.standard_normal((3, 300_000))
t, tl = rng.integers(0, 100, 1000), rng.integers(0, 300_000, 3)
def call(z, t):
    return softxent.cross_entropy_and_grad(z, t, reduction="none")
want, wanted = [x.tobytes() for x in call(large, tl)], [x.tobytes() for x in call(small, t)]
def handler(*_):
    global inner
    inner += 1
    for _ in range(3):
        assert [x.tobytes() for x in call(large, tl)] == want
        assert softxent.torch.cross_entropy(torch.tensor(large), torch.tensor(tl)).item() == mean
mean = softxent.torch.cross_entropy(torch.tensor(large), torch.tensor(tl)).item()
signal.signal(signal.SIGALRM, handler)
zs, ts = np.tile(small, (200, 1)), np.tile(t, 200)
tensors = torch.tensor(zs), torch.tensor(ts)
whole = softxent.torch.cross_entropy(*tensors).item()
softxent.set_num_threads({threads})
torch.set_num_threads({threads})
while inner < 6:
    signal.setitimer(signal.ITIMER_REAL, 0.03)  # one signal; the call takes longer, also on an idle machine
    loss, dz = call(zs, ts)
    assert loss.tobytes() == 200 * wanted[0] and dz.tobytes() == 200 * wanted[1]
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    assert softxent.torch.cross_entropy(*tensors).item() == whole
signal.setitimer(signal.ITIMER_REAL, 0)  # none arrives while the interpreter ends
print("ok")
"""


@pytest.mark.parametrize("threads", (1, 2))
def test_a_signal_handler_may_call_the_library_within_a_call(threads):
    assert python(NESTED.format(threads=threads)) == "ok\n"


# ---- the end of the process, and what the system refuses ----

needs_the_kernel = pytest.mark.skipif("cpu" not in BACKENDS, reason="the formula is NumPy's; test_architecture.py requires the kernel")

EXIT = """
import threading, time, numpy as np, softxent
from softxent import kernels
from softxent.truth import IDENTITY
z = np.broadcast_to(np.linspace(-3, 3, 100_000, dtype=np.float32), (1_000_000, 100_000))  # minutes of work
results = [np.full((2, len(z)), np.nan) for _ in range(3)]
def call(result):
    kernels.cpu.forward(z, np.zeros(len(z), int), (1.0, 0.0, 0.0, 1.0), None, IDENTITY, result, None, 2)
for result in results:
    threading.Thread(target=call, args=(result,), daemon=True).start()
while any(np.isnan(result[0]).all() for result in results):
    time.sleep(0.01)
print("ends")
"""


@needs_the_kernel
def test_the_process_may_end_while_daemon_threads_are_in_a_call():
    """They ask for the GIL now and then, which Python would answer by unwinding them."""
    assert python(EXIT) == "ends\n"


NO_THREADS = """
import os, resource, sys
if "again" not in os.environ:  # the size of a thread's stack is that of the limit when the program starts
    resource.setrlimit(resource.RLIMIT_STACK, (64 << 30, resource.RLIM_INFINITY))
    os.execve(sys.executable, [sys.executable, "-c", sys.orig_argv[2]], os.environ | {"again": "", "OPENBLAS_NUM_THREADS": "1"})
resource.setrlimit(resource.RLIMIT_AS, (32 << 30, resource.RLIM_INFINITY))
FIRST
import numpy as np, softxent
rng = np.random.default_rng(0)
z, t, wide = rng.standard_normal((3000, 500)), rng.integers(0, 500, 3000), rng.standard_normal((1, 60_000))
found = []
for threads in (4, 1):
    softxent.set_num_threads(threads)
    found.append([softxent.cross_entropy_and_grad(z, t)[1].tobytes(), softxent.cross_entropy_and_grad(wide, t[:1])[1].tobytes()])
    print(len(os.listdir("/proc/self/task")))
print(found[0] == found[1])
"""


@needs_the_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
@pytest.mark.parametrize("first", ["", "import torch"])
def test_without_more_threads_a_call_takes_longer_and_is_right(first):
    """With torch in the process, too, whose OpenMP runtime ends the process if a thread is refused."""
    assert python(NO_THREADS.replace("FIRST", first)) == "1\n1\nTrue\n"


NO_MEMORY = """
import resource, numpy as np, softxent
z, t = np.broadcast_to(np.zeros(20_000_000, np.float32), ({rows}, 20_000_000)), np.zeros({rows}, int)
softxent.set_num_threads({threads})
softxent.cross_entropy(z[:, :100], t)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), -1))
for call in (softxent.cross_entropy, softxent.cross_entropy_and_grad, lambda z, t: softxent.softmax(z)):
    try:
        call(z, t)
    except MemoryError:
        print("none")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(abs(softxent.cross_entropy(z, t) - np.log(20_000_000)) < 1e-12)
"""


@needs_the_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")
@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (3, 2)])
def test_memory_that_is_refused_is_a_memory_error(rows, threads):
    assert python(NO_MEMORY.format(rows=rows, threads=threads)) == "none\nnone\nnone\nTrue\n"


REFUSE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
static atomic_long left = -1, once, refused;
void refuse(long after, long only_one) { refused = 0, once = only_one, left = after; }
long refusals(void) { return left = -1, refused; }
static int no(void) {
  if (left < 0) return 0;
  if (left > 0) return atomic_fetch_sub(&left, 1), 0;
  if (once) left = -1;
  return refused++, 1;
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
void* malloc(size_t n) { REAL(malloc); return no() ? errno = ENOMEM, NULL : real(n); }
void* aligned_alloc(size_t a, size_t n) { REAL(aligned_alloc); return no() ? errno = ENOMEM, NULL : real(a, n); }
int pthread_create(pthread_t* t, const pthread_attr_t* a, void* (*f)(void*), void* x) {
  REAL(pthread_create);
  return no() ? EAGAIN : real(t, a, f, x);
}
"""
REFUSED = """
import ctypes, numpy as np
FIRST
from softxent import kernels
from softxent.truth import IDENTITY
refuse, refusals = ctypes.CDLL(None).refuse, ctypes.CDLL(None).refusals
refuse.argtypes = [ctypes.c_long] * 2
for rows, classes in ((300, 1000), (3, 60_000)):
    z, label = np.random.default_rng(0).standard_normal((rows, classes)), np.zeros(rows, np.int64)
    def call(threads):
        result, dz = np.empty((2, rows)), np.empty_like(z)
        kernels.cpu.fused(z, label, (1.0, 0.0, 0.0, 1.0), None, IDENTITY, dz, result, None, threads)
        return result.tobytes() + dz.tobytes()
    want = call(1)
    assert call(3) == want  # libgomp has its threads from here on
    for once in (1, 0):
        for k in range(100):
            refuse(k, once)
            try:
                found = call(3)
            except MemoryError:
                found = None
            if not refusals():
                break
            assert found is None or found == want
        print(0 < k < 99)
"""


@needs_the_kernel
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="compiles a malloc that refuses memory, for LD_PRELOAD")
@pytest.mark.parametrize(
    "first", ["", "import torch; torch.set_num_threads(3); torch.ones(1000, 1000).exp()"], ids=["alone", "after_torch"]
)
def test_each_refusal_of_memory_or_a_thread_is_a_memory_error_or_costs_a_thread(first, tmp_path):
    """The first request of a call is refused, then the second, and so on: alone, and with all that follow."""
    library = tmp_path / "refuse.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-x", "c", "-", "-ldl"], input=REFUSE.encode(), check=True)
    assert python(REFUSED.replace("FIRST", first), LD_PRELOAD=str(library)) == 4 * "True\n"


SUBINTERPRETER = """
import sys
import IMPORTED as interpreters
one = interpreters.create()
code = f"import sys; sys.path[:0] = {sys.path}\\nimport warnings; warnings.simplefilter('ignore'); import softxent"
try:
    found = (interpreters.exec if hasattr(interpreters, "exec") else interpreters.run_string)(one, code)
    print(found.msg if found else "imported")
except Exception as error:
    print(error)
"""


@needs_the_kernel
def test_a_subinterpreter_gets_an_import_error():
    """And the process ends. NumPy refuses those with a lock of their own (Python 3.12), and here those that share it are refused."""
    name = next(name for name in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(name))
    out = python(SUBINTERPRETER.replace("IMPORTED", name))
    assert "ImportError" in out or "subinterpreter" in out, out


def test_other_threads_run_meanwhile(backend):
    """The GIL is released: while a call computes, another thread sees its rows become more."""
    watched, seen = Watched(10_000 if backend == "cpu" else 200), set()
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            seen.add(watched.done())
            time.sleep(0.0005)

    other = threading.Thread(target=watch)
    other.start()
    try:
        watched.call(1)
    finally:
        stop.set()
        other.join()
    between = seen - {0, len(watched.z)}
    assert len(between) >= 3, f"it saw {sorted(seen)} rows done"


def test_calls_from_several_threads_at_once(backend):
    """Each call gets its own result, whichever uses the thread pool. Labels, sizes and options differ."""
    rng = np.random.default_rng(5)
    softxent.set_num_threads(3)
    jobs = []
    for i in range(24):
        rows, classes = [(2000, 50), (60, 5000), (1, 50_000), (700, 301)][i % 4]
        z, t = rng.standard_normal((rows, classes)).astype([np.float32, np.float64][i % 2]), rng.integers(0, classes, rows)
        jobs.append((z, t, dict(label_smoothing=0.1 * (i % 3), softcap=[None, 5.0][i // 12])))

    def work(job):
        z, t, options = job
        with softxent.use_backend(backend):  # a new thread starts with the default backend
            return softxent.cross_entropy_and_grad(z, t, **options)

    want = [work(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for (z, _, options), got, true in zip(jobs, pool.map(work, jobs), want, strict=True):
                off = (got[1] != true[1]).sum()
                assert got[0] == true[0] and not off, (
                    f"{z.shape} {z.dtype} {options}: loss {got[0]}, want {true[0]}; {off} entries of dz differ"
                )


def test_the_backend_of_a_block_is_that_of_its_thread_alone():
    seen = []
    with softxent.use_backend("formula"):
        other = threading.Thread(target=lambda: seen.append(next(b.name for b in softxent.backends() if b.active)))
        other.start()
        other.join()
    assert seen == [next(b.name for b in softxent.backends() if b.active)]


def test_the_environment_sets_the_threads():
    assert python("import softxent; print(softxent.get_num_threads())", SOFTXENT_NUM_THREADS="3") == "3\n"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for every_core in ("0", "", " 0 "):
        assert int(python("import softxent; print(softxent.get_num_threads())", SOFTXENT_NUM_THREADS=every_core)) == cores


BAD_NUMBER = """
import warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import softxent
print(*(f"{w.category.__name__}: {w.message}" for w in seen))
import numpy as np
loss = softxent.cross_entropy(np.zeros((9000, 2)), np.zeros(9000, int))  # enough rows for several threads
print(softxent.get_num_threads(), loss == np.log(2))
"""


@pytest.mark.parametrize("value", ["-1", "abc", "2.5", "100000"])
def test_a_number_of_threads_that_is_none_is_warned_of_and_costs_nothing_else(value):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    warning, called = python(BAD_NUMBER, SOFTXENT_NUM_THREADS=value).splitlines()
    expected = "softxent: SOFTXENT_NUM_THREADS must be an int from 1 to 4096, or 0 for one on each core"
    assert warning == f"RuntimeWarning: {expected}; got '{value}', and {cores} is used"
    assert called == f"{cores} True"
