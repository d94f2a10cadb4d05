"""fuzz.py: random calls of the compiled kernel agree with the definitions, and its pages catch an access outside an array."""

from __future__ import annotations

import signal
import subprocess
import sys

import fuzz
import pytest
from cases import BACKENDS, environment

needs_the_kernel = pytest.mark.skipif("cpu" not in BACKENDS, reason="there is no compiled kernel")


SEED, CALLS = 20261201, 400


@needs_the_kernel
def test_random_calls_agree_with_the_definitions():
    """Of numbers of any size; the calls are the same in every run."""
    seen, worst = fuzz.fuzz(SEED, seconds=600, most=CALLS)
    assert seen["calls"] == CALLS
    assert all(seen[what] for what in ("softcap", "all numbers", "ignored rows", "at an odd address", "in place", "probabilities", "parts"))
    assert all(seen[f"any {what}"] for what in ("temperature", "softcap", "logits", "numbers", "upstream", "v", "z_loss", "sample_weight"))
    assert all(0 < worst[kind] <= 1 for kind in ("loss", "lse", "log-probability", "entropy", "gradient", "log-softmax", "Hessian product"))


OUTSIDE = """
import ctypes
import numpy as np
from collections import Counter
from guarded import Memory
class Draws:  # in place of random numbers
    random = staticmethod(lambda: {random})
memory = Memory(Draws, Counter())
a = memory.place(np.zeros(24, np.uint8), strides=False)
memory.lock()
assert ctypes.string_at(a.ctypes.data, 24) == bytes(24)
{access}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages by mprotect")
@pytest.mark.parametrize(
    ("random", "access"),
    [(0, "ctypes.string_at(a.ctypes.data + 24, 1)"), (1, "ctypes.string_at(a.ctypes.data - 1, 1)"), (0, "a[0] = 1")],
    ids=["after it", "before it", "written to"],
)
def test_a_wrong_access_is_a_crash(random, access):
    code = OUTSIDE.format(random=random, access=access)
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, timeout=600)
    assert done.returncode == -signal.SIGSEGV, done.stderr.decode()
