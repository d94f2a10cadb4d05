"""The compiled kernel takes the steps of tests/mirror.py, of which Rounding.v speaks: their results have the same bits."""

from __future__ import annotations

import mirror
import numpy as np
import pytest
from cases import BACKENDS, Problem, fused

import softxent
from softxent.proof import bounds

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled kernel is what is mirrored")


def rows(dtype, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    z = rng.standard_normal((count, classes)) * rng.choice([0.1, 1, 10, 40], (count, 1)) + rng.choice([0, -50, 30, 1000, -3000], (count, 1))
    label = rng.integers(0, classes, count)
    z[np.arange(count), label] += rng.choice([0, 0, 20, -20, 90, 600], count)
    return z.astype(dtype), label


@pytest.mark.parametrize("classes", [65, 100, 1000, 1025, 4096])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kernel_has_the_bits_of_its_mirror(dtype, classes):
    z, label = rows(dtype, classes, 200_000 // classes)
    truth = np.ones((4, len(z))) * [[1], [0], [0], [1]]
    with softxent.use_backend("cpu"):
        got = fused(Problem(z, label, truth, None))
    s, loss, dz = mirror.loss_and_gradient(z, label)
    assert np.array_equal(got.parts[1], s) and np.array_equal(got.result[0], loss) and np.array_equal(got.dz, dz)


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
    got = mirror.exps(mirror.F32, x, np.float32(mirror.F32.magic), np.float32(-104)).astype(np.float64) / mirror.F32.lift
    assert np.abs(got / np.exp(x.astype(np.float64)) - 1).max() < 2 * bounds.UNIT["float32"]
