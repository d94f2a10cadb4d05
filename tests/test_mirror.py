"""The compiled kernel takes the steps of tests/mirror.py, of which Rounding.v speaks: their results have the same bits.

`make proof-bits` compares more inputs.
"""

from __future__ import annotations

import kernel_bits
import mirror
import numpy as np
import pytest
from cases import BACKENDS
from mirror import F32

from softxent.proof import bounds


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled kernel is what is mirrored")
@pytest.mark.parametrize("classes", [65, 100, 1000, 1025, 4096])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kernel_has_the_bits_of_its_mirror(dtype, classes):
    assert kernel_bits.compare_rows(dtype, classes, 200_000 // classes) == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return kernel_bits.compiled(tmp_path_factory.mktemp("functions"))


@pytest.mark.parametrize("name,kind", kernel_bits.FUNCTIONS, ids=[f"{name}-{kind.dtype.__name__}" for name, kind in kernel_bits.FUNCTIONS])
def test_the_functions_have_the_bits_of_their_mirror(library, name, kind):
    for x, second in kernel_bits.chunks_of(name, kind, kernel_bits.CHUNK):
        assert kernel_bits.compare(library, name, kind, x, second) == 0


def test_the_functions_have_the_errors_that_the_theorems_assume():
    """exp, log and log1p within 2, 2 and 4 units (Rounding.v, elementary), and exp of float32 within 2."""
    rng = np.random.default_rng(0)
    v = bounds.UNIT["float64"]
    x = -(rng.random(300_000) * 708)
    far = np.exp(np.longdouble(x))
    assert np.abs(mirror.exp(x) / far - 1).max() < 2 * v
    x = np.exp(rng.uniform(-1, 40, 300_000))
    assert np.abs(mirror.log(x) / np.log(np.longdouble(x)) - 1).max() < 2 * v
    x = np.exp(rng.uniform(-700, 1, 300_000))
    assert np.abs(mirror.log1p(x, 1 / (1 + x)) / np.log1p(np.longdouble(x)) - 1).max() < 4 * v
    x = -(rng.random(1_000_000) * 87).astype(np.float32)
    got = mirror.exps(F32, x, np.float32(F32.magic), np.float32(-104)).astype(np.float64) / F32.lift
    assert np.abs(got / np.exp(x.astype(np.float64)) - 1).max() < 2 * bounds.UNIT["float32"]
