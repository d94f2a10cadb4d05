"""Large gradients of the NumPy functions: their memory is used again, and only when nothing refers to it any more."""

from __future__ import annotations

import gc
import pickle
import sys
import weakref

import numpy as np
import pytest
from cases import BACKENDS, python

import softxent
from softxent import kernels

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled kernel keeps the memory; test_architecture.py requires it")
ROWS, CLASSES = 140, 2000  # 1.07 MiB in float32


@pytest.fixture(autouse=True)
def empty_cache():
    yield
    gc.collect()
    softxent.empty_cache()


def problem(dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, CLASSES)).astype(dtype), rng.integers(0, CLASSES, ROWS)


CALLS = {
    "plain": lambda z, t: softxent.cross_entropy_and_grad(z, t)[1],
    "smoothing": lambda z, t: softxent.cross_entropy_and_grad(z, t, label_smoothing=0.1)[1],
    "softmax": lambda z, t: softxent.softmax(z),
    "log_softmax": lambda z, t: softxent.log_softmax(z),
    "hvp": lambda z, t: softxent.cross_entropy_hvp(z, z, t),
}
VIEWS = {
    "itself": lambda a: a,
    "a view": lambda a: a[::2, 1:],
    "a transposed view": lambda a: a.T,
    "a flat view": lambda a: a.ravel(),
    "another dtype": lambda a: a.view(np.uint8),
    "a memoryview": lambda a: memoryview(a),
    "another library": lambda a: __import__("torch").from_numpy(a),
    "DLPack": lambda a: np.from_dlpack(a),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_memory_of_the_last_gradient_is_used_again(call):
    z, t = problem()
    first = CALLS[call](z, t)
    assert first.nbytes >= kernels.LARGE and first.flags.c_contiguous and first.flags.writeable and first.flags.aligned
    address = first.ctypes.data
    del first
    assert CALLS[call](z, t).ctypes.data == address


def test_a_block_is_kept_for_each_size():
    """A gradient that is much larger does not take the place of a smaller one, nor a smaller one that of a larger one."""
    sizes = [np.zeros((rows, CLASSES)) for rows in (ROWS, 6 * ROWS, 30 * ROWS)]
    addresses = [softxent.softmax(z).ctypes.data for z in sizes]
    assert [softxent.softmax(z).ctypes.data for z in sizes[::-1]] == addresses[::-1]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("view", VIEWS)
def test_it_is_not_used_again_while_anything_refers_to_it(view, call):
    z, t = problem()
    kept = VIEWS[view](CALLS[call](z, t))
    before = np.asarray(kept).copy()
    gc.collect()
    for scale in (-1.0, 2.0, 0.5):
        CALLS[call](z * scale, t)
    softxent.empty_cache()
    CALLS[call](-z, t)
    assert np.array_equal(np.asarray(kept), before)


def test_an_exception_keeps_no_gradient():
    z, _ = problem()
    address = softxent.softmax(z).ctypes.data
    with pytest.raises(ValueError, match="softmax: out must"):
        softxent.softmax(z, out=np.empty((1, 1)))
    assert softxent.softmax(z).ctypes.data == address


def test_it_is_an_array_like_any_other():
    z, t = problem(np.float32)
    dz = softxent.cross_entropy_and_grad(z, t)[1]
    dz += 1
    assert np.array_equal(pickle.loads(pickle.dumps(dz)), dz) and np.array_equal(dz.copy(), dz) and type(dz) is np.ndarray
    seen = weakref.ref(dz)
    del dz
    gc.collect()
    assert seen() is None


RESIDENT = """
import numpy as np, softxent
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
z = np.zeros((1, 30_000_000), np.float16)  # its exponentials take 120 MB, and its gradient 60 MB
softxent.cross_entropy_and_grad(z[:, :100_000].copy(), np.array([1]))
before = resident()
softxent.softmax(z[:, :29_999_999])
kept = resident() - before
softxent.empty_cache()
print(kept > 100e6, resident() - before < 16e6, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_empty_cache_gives_all_back():
    assert python(RESIDENT).startswith("True True ")
