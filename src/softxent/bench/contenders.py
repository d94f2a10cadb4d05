"""The contenders of the benchmark. Each computes the mean loss and its gradient, as an experienced user of the library would write it.

A contender is a function without arguments. Those of other libraries, the peers, return (loss, gradient). Output arrays are allocated in
advance if the library can take them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import softxent

from .. import kernels
from ..partials import Array
from ..truth import IDENTITY

Call = Callable[[], Any]
MEMCPY, FUSED, NEW, ONE = "memcpy", "fused", "fused, new dz", "fused, 1 thread"
FRONT = "softxent.torch"
COMPILED = "torch compiled"
HUGE_PAGES = "huge pages"  # torch uses them if THP_MEM_ALLOC_ENABLE=1; NumPy requests them for large arrays without a setting


class Case(NamedTuple):
    """The arrays that all contenders use."""

    z: Array  # [R, C]
    labels: Array  # [R] int64
    dz: Array  # [R, C], the output
    threads: int


class Unsupported(Exception):
    """Raised if a peer does not support the dtype."""


def case(shape: tuple[int, int], dtype: str, threads: int) -> Case:
    rng = np.random.default_rng(0)
    z = rng.standard_normal(shape, np.float32)
    z *= 3
    if dtype == "bf16":
        z = z.astype(import_module("ml_dtypes").bfloat16)
    return Case(z, rng.integers(0, shape[1], shape[0]), z.copy(), threads)  # a copy has its memory pages already, unlike zeros


def fused(c: Case) -> Call:
    return lambda: softxent.cross_entropy_and_grad(c.z, c.labels, out=c.dz)


def ours(c: Case) -> dict[str, Call]:
    kernel, rows, parts = kernels.active(), (1.0, 0.0, 0.0, 1 / len(c.z)), np.empty((7, len(c.z)))
    kernel.forward(c.z, c.labels, rows, None, IDENTITY, np.empty((2, len(c.z))), parts, c.threads)
    calls: dict[str, Call] = {
        FUSED: fused(c),
        NEW: lambda: softxent.cross_entropy_and_grad(c.z, c.labels),
        "forward": lambda: softxent.cross_entropy(c.z, c.labels),
        "backward": lambda: kernel.backward(c.z, c.labels, rows, None, IDENTITY, parts, c.dz, c.threads),
    }
    if find_spec("torch"):
        calls[FRONT] = _torch(c, import_module("softxent.torch").cross_entropy)
    return calls | ({ONE: lambda: _on_one_thread(c)} if c.threads > 1 else {})


def _on_one_thread(c: Case) -> Any:
    softxent.set_num_threads(1)
    try:
        return fused(c)()
    finally:
        softxent.set_num_threads(c.threads)


def memcpy(c: Case) -> Call:
    """Return a copy of the logits into dz: np.copyto on one thread, torch's copy_ on more."""
    z, dz = (a.view(np.uint16) if a.itemsize == 2 else a for a in (c.z, c.dz))  # NumPy would copy bfloat16 element by element
    if c.threads == 1 or find_spec("torch") is None:
        return lambda: np.copyto(dz, z)
    torch = import_module("torch")
    torch.set_num_threads(c.threads)
    source, target = torch.from_numpy(z), torch.from_numpy(dz)
    return lambda: target.copy_(source)


def _only_float32(c: Case) -> None:
    if c.z.dtype != np.float32:
        raise Unsupported


def _numpy(c: Case) -> Call:
    _only_float32(c)
    z, labels, dz, rows = c.z, c.labels, c.dz, np.arange(len(c.z))

    def call() -> Any:
        np.subtract(z, z.max(axis=1, keepdims=True), out=dz)
        at_label = dz[rows, labels]
        np.exp(dz, out=dz)
        s = dz.sum(axis=1, keepdims=True)
        np.multiply(dz, 1 / (s * len(z)), out=dz)
        dz[rows, labels] -= 1 / len(z)
        return (np.log(s[:, 0]) - at_label).mean(), dz

    return call


def _scipy(c: Case) -> Call:
    _only_float32(c)
    log_softmax, rows = import_module("scipy.special").log_softmax, np.arange(len(c.z))

    def call() -> Any:
        logp = log_softmax(c.z, axis=1)
        np.exp(logp, out=c.dz)
        c.dz[rows, c.labels] -= 1
        np.divide(c.dz, len(c.z), out=c.dz)
        return -logp[rows, c.labels].mean(), c.dz

    return call


def _sklearn(c: Case) -> Call:
    """Its gradient is that of the sum of the losses. It is not divided by the number of rows, which saves it a pass."""
    _only_float32(c)
    loss = import_module("sklearn._loss").HalfMultinomialLoss(n_classes=c.z.shape[1])
    labels, losses = c.labels.astype(np.float32), np.empty(len(c.z), np.float32)

    def call() -> Any:
        loss.loss_gradient(y_true=labels, raw_prediction=c.z, loss_out=losses, gradient_out=c.dz, n_threads=c.threads)
        return losses.mean(), c.dz

    return call


def _torch(c: Case, cross_entropy: Callable[..., Any] | None = None) -> Call:
    torch = import_module("torch")
    cross_entropy = cross_entropy or import_module("torch.nn.functional").cross_entropy
    torch.set_num_threads(c.threads)
    bits = c.z.view(np.uint16) if c.z.itemsize == 2 else c.z
    z = torch.from_numpy(bits).view(torch.bfloat16 if c.z.itemsize == 2 else torch.float32).requires_grad_()
    labels = torch.from_numpy(c.labels)

    def call() -> Any:
        z.grad = None
        loss = cross_entropy(z, labels)
        loss.backward()
        return loss, z.grad

    return call


def _compiled(c: Case) -> Call:
    torch, cross_entropy = import_module("torch"), import_module("torch.nn.functional").cross_entropy
    torch._dynamo.reset()
    return _torch(c, torch.compile(lambda z, labels: cross_entropy(z, labels), dynamic=False))


PEERS: dict[str, Callable[[Case], Call]] = {"numpy": _numpy, "scipy": _scipy, "sklearn": _sklearn, "torch": _torch, COMPILED: _compiled}


def peers(c: Case, skip: tuple[str, ...] = ()) -> tuple[dict[str, Call], dict[str, str]]:
    """Return the peers that are installed and support the dtype, after calling each once, and the errors of those that failed."""
    calls: dict[str, Call] = {}
    failed: dict[str, str] = {}
    for name, make in PEERS.items():
        try:
            if name not in skip:
                call = make(c)
                call()
                calls[name] = call
        except (ImportError, Unsupported):
            pass
        except Exception as error:  # torch.compile can fail in many ways, for example without a compiler
            failed[name] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:200]
    return calls, failed
