"""The settings of the test suite. A test with the argument `backend` runs once on each backend."""

from __future__ import annotations

import gc
import os
from importlib.metadata import version
from importlib.util import find_spec

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported: its threads do not poll, for other tests need the cores

import numpy as np
import pytest
from cases import BACKENDS, torch

import softxent

if torch and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before softxent.torch is imported: without a GPU its kernel runs on NumPy

if torch and find_spec("triton") and version("triton").startswith("3.2."):
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def fma(self, x, y, z):
        """Return x y + z, rounded once, as a GPU does. Triton's interpreter rounds the product too in version 3.2."""
        wide = np.longdouble if z.data.dtype == np.float64 else np.float64
        return TensorHandle((x.data.astype(wide) * y.data + z.data).astype(z.data.dtype), z.dtype.scalar)

    InterpreterBuilder.create_fma = fma


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skipped test fails, unless its decorator `skipif` gives the reason: a platform, or a version of torch."""
    return unless_skipped((yield), any(item.iter_markers("skipif")))


LONGEST = ["test_torch_linear.py", "test_triton.py", "test_proof.py", "test_bench.py", "test_native.py", "test_explain.py", "test_page.py"]


def pytest_collection_modifyitems(items):
    """Run the files that take the longest first, so that the processes end at about the same time. Three of them keep two cores busy."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """Leave the objects of all imported modules out of garbage collections, which would take a second each."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same for a whole file."""
    return unless_skipped((yield), False)


def unless_skipped(report, allowed):
    if report.skipped and not hasattr(report, "wasxfail") and not allowed and torch:  # a wheel is tested without torch
        report.outcome, report.longrepr = "failed", f"{report.longrepr[2]}: a test that is skipped fails; install what it needs"
    return report


@pytest.fixture(params=BACKENDS)
def backend(request):
    with softxent.use_backend(request.param):
        yield request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20261124)


@pytest.fixture(autouse=True)
def threads():
    """Restore the number of threads after each test."""
    before = softxent.get_num_threads()
    yield
    softxent.set_num_threads(before)
