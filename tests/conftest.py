"""Every law runs on every backend: a test that takes `backend` runs once on each."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BACKENDS

import softxent


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")  # a NumPy warning that leaks out of the library is a defect
    # ... without its compiled kernel the library warns, and test_architecture.py fails; the other tests then speak of the formula
    config.addinivalue_line("filterwarnings", "ignore:softxent runs on plain NumPy:RuntimeWarning")
    # ... torch warns of parts of itself that it still uses
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")
    # ... pytest's own workings are not the library's
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=BACKENDS)
def backend(request):
    with softxent.use_backend(request.param):
        yield request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20261124)


@pytest.fixture(autouse=True)
def threads():
    """Tests start with the threads that the suite started with, and may change them."""
    before = softxent.get_num_threads()
    yield
    softxent.set_num_threads(before)
