"""The cases that the tests run on, and the reference results. Cases are the combinations of backend, dtype, shape and options.

There are cases on two levels: `problem` returns the arguments of a kernel (z, label, the four numbers of a row, off), and `option_cases`
those of a public function (labels and keyword options). `exact` evaluates formula.py with more digits than the case has. The definitions,
without formula.py, are in extended.py and definition_in_torch.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import softxent
from softxent import formula, kernels
from softxent.partials import Partials, merge, times
from softxent.proof import bounds

try:
    import torch
except ModuleNotFoundError:
    torch = None  # a wheel is tested without it

fsdp2_on_the_cpu = pytest.mark.skipif(
    torch is None or not hasattr(torch.cpu.Stream, "record_event"), reason="PyTorch 2.6 has no fsdp2 on the CPU"
)

try:
    import jax_backend
except ModuleNotFoundError:
    jax_backend = None  # a wheel is tested without JAX
else:
    kernels._NAMES["jax"] = jax_backend

BACKENDS = [b.name for b in softxent.backends() if b.available]
WITH_JAX = BACKENDS + ["jax"] * (jax_backend is not None)  # for the laws; the other tests of the kernels would say the same of it
DTYPES = {"f32": np.dtype("float32"), "f64": np.dtype("float64"), "bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype("float16")}
# rows x classes: one class; fewer, as many and more classes than a vector of any width, a tile, or a block of 4096; several blocks
SHAPES = [
    (3, 1), (5, 2), (9, 5), (70, 10), (17, 16), (11, 17), (9, 33), (10, 64), (65, 100), (7, 128), (8, 129), (7, 1000), (3, 4096), (4, 4097),
    (2, 9001), (2, 20000),
]  # fmt: skip
SHAPES_OF_JAX = [(5, 2), (11, 17), (7, 1000), (4, 4097)]  # JAX compiles a call for each shape


def shapes_of(backend: str) -> list[tuple[int, int]]:
    return SHAPES_OF_JAX if backend == "jax" else SHAPES


OFFS = ["label", "shared", "dense", "dense_narrow"]  # off: None, a vector, a matrix in the compute type, a matrix in z's dtype


def computed(dtype: np.dtype) -> np.dtype:
    return np.dtype("float64" if dtype == np.float64 else "float32")


# ---- cases for the kernels ----


class Problem(NamedTuple):
    z: np.ndarray  # [R, C]
    label: np.ndarray  # [R] int64
    truth: np.ndarray  # [4, R] or [7, R] float64: formula.Numbers
    off: np.ndarray | None  # [C], [R, C] or None
    transform: tuple[float, float] = (1.0, np.inf)

    def rows(self, i: Any) -> Problem:
        off = self.off if self.off is None or self.off.ndim == 1 else self.off[i]
        return self._replace(z=self.z[i], label=self.label[i], truth=self.truth[:, i], off=off)

    def columns(self, k: slice) -> Problem:
        """Return the problem of a shard of the columns. Labels that are not in the shard match no column."""
        off = None if self.off is None else np.ascontiguousarray(self.off[..., k])
        return self._replace(z=np.ascontiguousarray(self.z[:, k]), label=self.label - k.start, off=off)


def problem(rows: int, classes: int, dtype: np.dtype, off: str = "label", seed: int = 0) -> Problem:
    """Return a problem with rows of different kinds, in turn: logits with a small or large spread; nearly all of the probability at the
    label or at another class; masked classes; logits far above or below 0; a label that matches no column."""
    rng = np.random.default_rng([rows, classes, OFFS.index(off), seed])
    z = rng.standard_normal((rows, classes)) * rng.choice([0.3, 1.0, 6.0], (rows, 1))
    label = rng.integers(0, classes, rows)
    for i in range(rows):
        kind, at = i % 8, label[i]
        if kind == 1:
            z[i, at] += 15
        elif kind == 2:
            z[i, (at + 1) % classes] += 12
        elif kind == 3:
            z[i, (rng.random(classes) < 0.3) & (np.arange(classes) != at)] = -np.inf
        elif kind == 4:
            z[i] += 300
        elif kind == 5:
            z[i] = 7 * z[i] - 1000
        elif kind == 6:
            label[i] = rng.choice([-1, classes, -100, 10**9])
        elif kind == 7:
            z[i] *= 10
    z = z.astype(dtype)
    y, r, q, g = rng.random(rows) + 0.1, rng.random(rows), rng.choice([0, 1e-3, 0.1], rows), rng.choice([-2.5, 1, 0.37], rows)
    if off == "label":
        return Problem(z, label, np.array([y, 0 * r, q, g]), None)
    narrow = dtype if off == "dense_narrow" else computed(dtype)
    o = rng.random(classes if off == "shared" else (rows, classes)) * rng.choice([0, 1], classes, p=[0.2, 0.8]) / classes
    if off != "shared":
        o = np.where(np.isinf(z.astype(np.float64)) & (rng.random(z.shape) < 0.99), 0, o)
    return Problem(z, label, np.array([y * rng.choice([0, 1], rows), r, q, g]), o.astype(narrow))


class Answer(NamedTuple):
    result: np.ndarray  # [2, R]: loss, lse, or [5, R]: formula.Outputs
    parts: np.ndarray  # [7, R]
    dz: np.ndarray

    def bits(self) -> bytes:
        return self.result.tobytes() + self.parts.tobytes() + np.ascontiguousarray(self.dz).tobytes()


def _empty(p: Problem, outputs: int, out: np.ndarray | None = None) -> Answer:
    dz = np.empty(p.z.shape, p.z.dtype) if out is None else out
    return Answer(np.full((outputs, len(p.z)), -7.0), np.full((7, len(p.z)), -7.0), dz)


def fused(p: Problem, threads: int = 1, out: np.ndarray | None = None, outputs: int = 2) -> Answer:
    a = _empty(p, outputs, out)
    kernels.active().fused(p.z, p.label, p.truth, p.off, p.transform, a.dz, a.result, a.parts, threads)
    return a


def two_calls(p: Problem, threads: int = 1, outputs: int = 2) -> Answer:
    a = _empty(p, outputs)
    kernels.active().forward(p.z, p.label, p.truth, p.off, p.transform, a.result, a.parts, threads)
    kernels.active().backward(p.z, p.label, p.truth, p.off, p.transform, a.parts, a.dz, threads)
    return a


def exact(p: Problem, outputs: int = 2) -> Answer:
    """Evaluate formula.py with 11 bits more than float64 has, or in float64 for the other dtypes, which is 29 bits more."""
    wide = np.longdouble if p.z.dtype == np.float64 else np.float64
    z, off, numbers = p.z.astype(wide), None if p.off is None else p.off.astype(wide), formula.Numbers(*p.truth.astype(wide))
    with np.errstate(invalid="ignore", over="ignore"):
        z, slope, _ = formula.transformed(z, *p.transform)
        x = formula.partials(z, p.label, off, p.transform[0])
        dz = formula.gradient(z, x, p.label, formula.coefficients(x, numbers), off)
        return Answer(np.array(formula.outputs(x, *numbers[:3])[:outputs]), np.array(x[:-1]), times(slope, dz))


def cooled(x: np.ndarray, temperature: float, cap: float) -> tuple[np.ndarray, Any, Any]:
    """Return logits after softcap and temperature, and their first and second derivative."""
    with np.errstate(invalid="ignore", over="ignore"):
        z, slope, bend = formula.transformed(x, temperature, cap)
        return z / temperature, slope, bend


def allowed(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the derived bounds of the errors of the loss [R] and the gradient [R, C]."""
    return bounds.row_bounds(*p[:4])


def within(got: np.ndarray, want: np.ndarray, bound: np.ndarray, what: str = "") -> None:
    """Assert |got - want| <= bound, and equality where the exact value is NaN or infinite."""
    got, want = np.asarray(got).astype(np.longdouble), np.asarray(want).astype(np.longdouble)
    real = np.isfinite(want)
    np.testing.assert_array_equal(got[~real], want[~real], err_msg=what)
    error = np.abs(got - np.where(real, want, 0))
    worse = real & ~(error <= bound)
    if worse.any():
        at = tuple(int(i[0]) for i in worse.nonzero())
        values = (
            f"got {got[at]!r}, want {want[at]!r}, error {float(error[at]):.3g}, bound {float(np.broadcast_to(bound, got.shape)[at]):.3g}"
        )
        raise AssertionError(f"{what}: {worse.sum()} of {worse.size} beyond the bound, first at {at}: {values}")


def merged(parts: list[np.ndarray]) -> np.ndarray:
    return np.array(reduce(merge, (Partials(*x) for x in parts))[:-1])


def cuts_of(edges, classes: int) -> list[slice]:
    """Return slices that split the columns at these edges, without empty slices."""
    return [slice(a, b) for a, b in pairwise([0, *sorted(int(e) for e in edges), classes]) if b > a]


# ---- cases for the public functions ----


def probabilities(rng, rows: int, classes: int) -> np.ndarray:
    """Return probabilities as labels whose sums differ from 1, with 0 for some classes."""
    u = rng.random((rows, classes)) * rng.choice([0, 1], (rows, classes), p=[0.3, 0.7])
    return u / classes * 2


def option_cases(rng, rows: int, classes: int) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Return name -> (labels, options), for each option alone and for all of them together."""
    label = rng.integers(0, classes, rows)
    ignored = np.where(np.arange(rows) % 3 == 1, -100, label)
    soft, w, s = probabilities(rng, rows, classes), rng.random(classes) + 0.2, rng.random(rows) + 0.1
    common = dict(class_weight=w, label_smoothing=0.2, sample_weight=s, z_loss=0.03, temperature=0.8, softcap=6.0)
    return {
        "plain": (label, {}),
        "class_weight": (label, dict(class_weight=w)),
        "label_smoothing": (label, dict(label_smoothing=0.1)),
        "smoothing_all": (label, dict(label_smoothing=1.0)),
        "ignore_index": (ignored, {}),
        "ignore_a_class": (label, dict(ignore_index=1)),
        "sample_weight": (label, dict(sample_weight=s)),
        "z_loss": (label, dict(z_loss=0.02)),
        "temperature": (label, dict(temperature=1.7)),
        "softcap": (label, dict(softcap=4.0)),
        "soft": (soft, {}),
        "soft_weighted": (soft, dict(class_weight=w, label_smoothing=0.1)),
        "everything": (ignored, common),
        "everything_soft": (soft, common),
    }


OPTIONS = list(option_cases(np.random.default_rng(0), 3, 4))


# ---- separate processes ----

HERE, SRC = os.path.dirname(__file__), os.path.dirname(os.path.dirname(softxent.__file__))


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([SRC, HERE]), "PYTHONWARNINGS": "ignore", **more}


def python(code: str, **env: str) -> str:
    """Run code in a new interpreter and return what it prints. It must succeed. The timeout only ends a test that hangs."""
    done = subprocess.run([sys.executable, "-c", code], env=environment(**env), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def digest(threads: int = 1) -> str:
    """Return a hash of all results of the kernels for all cases."""
    h = hashlib.sha256()
    for dtype in DTYPES.values():
        for shape in SHAPES:
            for off in OFFS:
                p = problem(*shape, dtype, off)
                h.update(fused(p, threads).bits())
                h.update(two_calls(p, threads).bits())
    return h.hexdigest()


def command(arguments: list[str], capsys: Any) -> tuple[int, str, str]:
    """Run the command `softxent` and return its exit code, its output without colors, and its error output."""
    from softxent.cli import main

    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    return end.value.code or 0, re.sub(r"\x1b\[[0-9;]*m", "", out), err
