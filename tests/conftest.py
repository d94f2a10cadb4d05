"""The settings of the test suite. A test with the argument `backend` runs once on each backend."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from cases import BACKENDS

import softxent

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before softxent.torch is imported: without a GPU its kernel runs on NumPy


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
