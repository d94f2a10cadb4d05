"""Random calls of the compiled kernel, with every array beside a page that must not be touched: `make fuzz`, or `python tests/fuzz.py`.

An array ends where such a page begins, or begins where it ends, so that one byte too far is a crash; arguments are on pages that cannot be
written to. Shapes, dtypes, strides, addresses, labels, options, outputs and the number of threads are drawn at random, and the results are
compared with the definitions, in extended precision (`definition`, below, and softxent.conformance.definition), within derived bounds.

A call is drawn from the seed and its number alone: `--seed S --only N` repeats call N.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
from cases import DTYPES, OFFS, Problem, computed, problem, within
from guarded import Memory
from test_waist import allowed, with_all_numbers

import softxent
from softxent import kernels
from softxent.conformance import definition as of_case
from softxent.conformance.case import Case
from softxent.kernels import IGNORED, LARGEST
from softxent.partials import times
from softxent.proof import bounds

WIDE = np.longdouble
CLASSES = [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 66, 100, 127, 129, 255, 257, 300, 1000, 1025, 4095, 4096, 4097, 9001]


# ---- the definitions, in extended precision ----


def definition(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return loss, lse, log-probability and entropy, [4, R], and the gradient [R, C]. `p.label` has no LARGEST, and no row is IGNORED."""
    x, cap = p.z.astype(WIDE), WIDE(p.transform[1])
    with np.errstate(over="ignore", invalid="ignore"):
        z = (x if np.isinf(cap) else cap * np.tanh(x / cap)) / WIDE(p.transform[0])
        slope = (1 if np.isinf(cap) else np.cosh(x / cap) ** -2) / WIDE(p.transform[0])
        top = z.max(axis=1, keepdims=True)
        away = (top - z) + np.log(np.exp(z - top).sum(axis=1, keepdims=True))  # lse - z_k
    lse, yhat = (z.max(axis=1, keepdims=True) + away.min(axis=1, keepdims=True))[:, 0], np.exp(-away)
    hot = p.label[:, None] == np.arange(z.shape[1])
    numbers = np.zeros((7, len(z)), WIDE)
    numbers[: len(p.truth)] = p.truth
    y, r, q, g, l, b, n = numbers[:, :, None]  # noqa: E741
    truth = r * (0 if p.off is None else p.off.astype(WIDE)) + y * hot
    nll = np.where(hot.any(axis=1), np.where(hot, away, 0).sum(axis=1), np.inf)
    entropy = times(yhat, away).sum(axis=1)
    loss = times(truth, away).sum(axis=1) + q[:, 0] * lse**2 / 2 + np.where(hot.any(axis=1), 0, times(y[:, 0], nll))
    mass = (r * (0 if p.off is None else p.off.astype(WIDE)) * np.ones_like(z)).sum(axis=1, keepdims=True) + y
    dz = g * ((mass + q * lse[:, None]) * yhat - truth) + l * yhat + b * (hot - yhat) + n * times(yhat, away - entropy[:, None])
    return np.array([loss, lse, -nll, entropy]), times(slope * np.ones_like(z), dz)


# ---- one call ----


def drawn(memory: Memory) -> Problem:
    """Return a random problem for the kernel, in ordinary memory."""
    rng, seen = memory.rng, memory.seen
    classes = int(rng.choice(CLASSES)) if rng.random() < 0.7 else int(rng.integers(1, 200))
    rows = int(rng.integers(0, 40)) if classes < 400 else int(rng.integers(1, 4))
    dtype, off = str(rng.choice(list(DTYPES))), str(rng.choice(OFFS))
    p = problem(rows, classes, DTYPES[dtype], off, int(rng.integers(1 << 30)))
    p = p._replace(transform=(float(rng.choice([1, 0.7, 2.5])), float(rng.choice([np.inf, np.inf, 5, 30]))))
    if memory.chance(0.4, "all numbers"):
        p = with_all_numbers(p, int(rng.integers(1 << 30)))
    if memory.chance(0.2, "numbers for all rows") and rows:
        p = p._replace(truth=p.truth[:, :1] * np.ones((1, rows)))
        inside = (p.label >= 0) & (p.label < classes)
        p = p._replace(truth=p.truth * np.array([1] * 5 + [inside.all()] + [1])[: len(p.truth), None])
    label = p.label.copy()
    if memory.chance(0.3, "ignored rows"):
        label[rng.random(rows) < 0.3] = IGNORED
    if memory.chance(0.15, "the largest as label"):
        label[:] = LARGEST
    seen.update(
        [dtype, f"off: {off}", "softcap" if np.isfinite(p.transform[1]) else "no softcap", f"{'many' if classes > 64 else 'few'} classes"]
    )
    return p._replace(label=label)


def resolved(p: Problem) -> Problem:
    """Return the rows that are not ignored, with a class for LARGEST."""
    p = p.rows(p.label != IGNORED)
    of = p.off if p.off is not None and p.off.ndim == 2 else p.z
    largest = np.nan_to_num(of.astype(np.float64), nan=-np.inf, neginf=-np.inf).argmax(axis=1) if of.size else p.label
    return p._replace(label=np.where(p.label == LARGEST, largest, p.label))


def check(p: Problem, result: np.ndarray | None, dz: np.ndarray | None) -> None:
    """Compare what a kernel gave with the definitions."""
    live = p.label != IGNORED
    for a in (result, None if dz is None else dz.T):
        assert a is None or (np.asarray(a[:, ~live]).astype(float) == 0).all(), "an ignored row is not 0"
    p = resolved(p)
    if not len(p.z):
        return
    (loss, lse, logprob, entropy), gradient = definition(p)
    all_numbers = p if len(p.truth) == 7 else p._replace(truth=np.concatenate([p.truth, np.zeros((3, len(p.z)))]))
    of_loss, of_entropy, of_dz = allowed(all_numbers)
    unit, small = bounds.UNIT[computed(p.z.dtype).name], 1e-17  # extended precision loses digits near probability 1
    if dz is not None:
        size = np.abs(p.truth).sum(axis=0)[:, None] * (1 + np.abs(np.where(np.isfinite(lse), lse, 0)))[:, None].astype(float)
        within(dz[live], gradient, of_dz + small * size * (1 + np.abs(p.truth[3][:, None])), "gradient")
    if result is not None:
        size = 1 + np.abs(np.where(np.isfinite(lse), lse, 0)).astype(float)
        within(result[0, live], loss, 2 * of_loss + small * size * np.abs(p.truth[:3]).sum(axis=0), "loss")
        within(result[1, live], lse, 16 * unit * size + bounds.loss_bound(p.z.dtype, p.z.shape[1]), "lse")
    if result is not None and len(result) == 5:
        far = np.where(np.isfinite(logprob), np.abs(logprob), 0).astype(float)
        moved = 12 * unit * np.where(np.isfinite(p.z.astype(float)), np.abs(p.z.astype(float)), 0).max(axis=1) / p.transform[0]
        within(
            result[2, live],
            logprob,
            bounds.loss_bound(p.z.dtype, p.z.shape[1], 200) * far + 2 * of_loss + 2 * moved + small,
            "log-probability",
        )
        within(result[3, live], entropy, of_entropy + small, "entropy")


def kernel_call(memory: Memory) -> None:
    """Call forward, backward, fused, both one after the other, or log_softmax of the kernel."""
    rng, kernel = memory.rng, kernels._NAMES["cpu"]
    p, threads = drawn(memory), int(rng.integers(1, 4))
    rows = len(p.z)
    op = str(rng.choice(["forward", "fused", "forward and backward", "curvature", "log_softmax"]))
    memory.seen[op] += 1
    memory.seen[f"{threads} threads"] += 1
    in_place = op != "forward" and memory.chance(0.2, "in place")
    z = memory.place(p.z, written=in_place)
    label, numbers = memory.place(p.label), memory.place(p.truth)
    off = None if p.off is None else memory.place(p.off)
    one_row = rows and op != "log_softmax" and (p.truth == p.truth[:, :1]).all()
    numbers = numbers[:, :1] if one_row and memory.chance(0.8, "one column of numbers") else numbers
    out = z if in_place else memory.place(np.empty_like(p.z), written=True)
    result = memory.place(np.full((int(rng.choice([2, 5])), rows), -7.0), written=True, strides=False)
    parts = memory.place(np.full((7, rows), -7.0), written=True, strides=False)
    if op == "log_softmax":
        scale = memory.place(rng.standard_normal(rows), strides=False)
        memory.lock()
        kernel.log_softmax(z, scale, p.transform, out, threads)
        return check_log_softmax(p, scale, out)
    if op == "curvature":
        v = memory.place(rng.standard_normal(p.z.shape).astype(computed(p.z.dtype)))
        products = memory.place(np.full((4, rows), -7.0), written=True, strides=False)
        memory.lock()
        kernel.curvature(z, v, label, numbers, off, p.transform, False, out, products, threads)
        return check_curvature(p, v, out)
    memory.lock()
    if op == "fused":
        kernel.fused(z, label, numbers, off, p.transform, out, result, parts if memory.chance(0.5, "parts") else None, threads)
    else:
        if op == "forward and backward" and len(p.truth) == 7:
            result = memory.place(np.full((5, rows), -7.0), written=True, strides=False)  # the gradient of the entropy needs its sums
        kernel.forward(z, label, numbers, off, p.transform, result, parts, threads)
        if op != "forward":
            kernel.backward(z, label, numbers, off, p.transform, parts, out, threads)
    check(p, result, None if op == "forward" else out)


def check_log_softmax(p: Problem, scale: np.ndarray, out: np.ndarray) -> None:
    """The gradient of the log-probabilities is checked elsewhere; here each log-probability is that of `definition`."""
    wide = p._replace(label=np.zeros(len(p.z), int), truth=np.ones((4, len(p.z))), off=None)
    for k in {0, p.z.shape[1] // 2, p.z.shape[1] - 1}:
        if len(p.z):
            want = times(scale, definition(wide._replace(label=np.full(len(p.z), k)))[0][2])
            unit = bounds.UNIT[computed(p.z.dtype).name]
            finite = np.where(np.isfinite(p.z.astype(float)), np.abs(p.z.astype(float)), 0).max(axis=1)
            log_of = bounds.loss_bound(p.z.dtype, p.z.shape[1], 100) + bounds.UNIT[p.z.dtype.name] + 3 * unit
            moved = 24 * unit * finite / p.transform[0] * (p.transform != (1.0, np.inf))
            bound = log_of * np.abs(np.where(np.isfinite(want), want, 0)) + moved * np.abs(scale) + bounds.TINY[p.z.dtype.name] + 1e-17
            within(out[:, k], want, bound.astype(float), f"log-probability of class {k}")


def check_curvature(p: Problem, v: np.ndarray, out: np.ndarray) -> None:
    """Compare with a difference quotient of the gradient in `definition`."""
    live = p.label != IGNORED
    assert (out[~live].astype(float) == 0).all(), "an ignored row is not 0"
    p, out, h = resolved(p), out[live], WIDE(2) ** -13
    near = np.abs(np.where(np.isfinite(p.z.astype(float)), p.z.astype(float), 0)).max(axis=1, initial=0) < 60
    p, out, v = p.rows(near), out[near], np.where(np.isfinite(p.z[near].astype(float)), v[live][near].astype(WIDE), 0)
    if not len(p.z):
        return
    a, b, c, d = (definition(p._replace(z=p.z.astype(WIDE) + k * h * v))[1] for k in (-2, -1, 1, 2))
    want = (8 * (c - b) - (d - a)) / (12 * h)
    unit, size = bounds.UNIT[computed(p.z.dtype).name], 61 / p.transform[0] + np.log(p.z.shape[1])
    o = np.zeros(1) if p.off is None else np.abs(p.off.astype(float))
    amount = np.abs(p.truth).sum(axis=0) * (1 + np.abs(p.truth[3])) * (1 + o.sum(axis=-1)) * (1 + np.abs(v).max(axis=1).astype(float))
    stored = 4 * bounds.UNIT[p.z.dtype.name] * np.abs(want).astype(float) + bounds.TINY[p.z.dtype.name]
    # the fifth derivative times h^4, and the rounding of the differences, are below 1e-12
    within(out, want, 100 * unit * (amount * size**3 * (1 + 1 / p.transform[0]) ** 2)[:, None] + 1e-12 + stored, "curvature")


def public_call(memory: Memory) -> None:
    """Call the loss and gradient of NumPy or PyTorch with random options."""
    rng = memory.rng
    dtype, soft = str(rng.choice(["float32", "float64"])), memory.chance(0.3, "probabilities")
    classes = int(rng.choice([1, 2, 7, 33, 64, 65, 200, 1000]))
    rows = int(rng.integers(1, 12))
    z = (rng.standard_normal((rows, classes)) * float(rng.choice([0.5, 3, 15]))).astype(dtype)
    labels = rng.random((rows, classes)).astype(dtype) if soft else rng.integers(0, classes, rows)
    options: dict[str, object] = {"reduction": str(rng.choice(["none", "sum", "mean"]))}
    if not soft and memory.chance(0.3, "ignore_index"):
        labels[1::2], options["ignore_index"] = -100, -100
    for name, value in {
        "class_weight": rng.random(classes) + 0.1, "sample_weight": rng.random(rows) + 0.1, "label_smoothing": 0.2, "z_loss": 0.05,
        "temperature": 1.5, "softcap": 9.0,
    }.items():  # fmt: skip
        if memory.chance(0.25, name):
            options[name] = memory.place(value, strides=False) if isinstance(value, np.ndarray) else value
    up = rng.standard_normal(rows).round(2) if options["reduction"] == "none" else float(rng.choice([1, -1.75]))
    one = Case({"z": z.astype(float)}, labels.astype(float) if soft else labels, dict(options), dtype, up)
    placed, target = memory.place(z), memory.place(labels)
    if memory.chance(0.3, "PyTorch") and sys.modules.get("torch"):
        loss, dz = by_torch(memory, np.ascontiguousarray(z), np.ascontiguousarray(labels), options, up)
    else:
        out = memory.place(np.empty_like(z), written=True) if memory.chance(0.5, "out") else None
        memory.lock()
        loss, dz = softxent.cross_entropy_and_grad(placed, target, upstream=up, out=out, **options)
    (of_loss, (of_dz,)), (want,) = of_case.tolerance(one), of_case.gradients(one)
    r = of_case.rows(one)
    y, live, q, g = (np.abs(number) for number in r.numbers[:4])
    mass = y + live * (0 if r.off is None else r.off.sum(axis=-1)) + q * (1 + np.abs(r.z).max(axis=1) + np.log(classes))
    within(loss, of_case.loss(one), of_loss, "loss")
    within(dz, want, of_dz + (28 * 2.0**-53 * g * mass * np.max(np.abs(r.slope)))[:, None], "gradient")  # bounds.row_bounds: dz_t


def by_torch(memory: Memory, z: np.ndarray, labels: np.ndarray, options: dict, up) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from softxent.torch import cross_entropy

    named = {"weight" if k == "class_weight" else k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in options.items()}
    x = torch.from_numpy(memory.place(z, written=True, strides=False)).requires_grad_()  # torch knows no arrays that cannot be written to
    loss = cross_entropy(x, torch.from_numpy(memory.place(labels, written=True, strides=False)), **named)
    (dz,) = torch.autograd.grad(loss, x, torch.as_tensor(up, dtype=loss.dtype))
    return loss.detach().numpy(), dz.numpy()


def call(seed: int, number: int, seen: Counter[str]) -> None:
    """Make call number `number` of a seed."""
    rng = np.random.default_rng([seed, number])
    memory = Memory(rng, seen)
    with np.errstate(invalid="ignore", over="ignore"):
        (public_call if rng.random() < 0.35 else kernel_call)(memory)
    seen["calls"] += 1


def fuzz(seed: int, seconds: float, most: int = 1 << 60, report: Callable[[int], None] = lambda n: None) -> Counter[str]:
    """Make calls for so many seconds, or so many calls. Returns how often each thing was drawn."""
    seen: Counter[str] = Counter()
    end, number = time.monotonic() + seconds, 0
    while number < most and time.monotonic() < end:
        report(number)
        try:
            call(seed, number, seen)
        except Exception as error:
            raise AssertionError(f"call {number} of seed {seed} (python tests/fuzz.py --seed {seed} --only {number}): {error}") from error
        number += 1
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--only", type=int, help="the number of one call")
    given = parser.parse_args()
    if given.only is not None:
        call(given.seed, given.only, Counter())
        return 0
    at = mmap.mmap(-1, 8)  # shared: the number of the call, for the case of a crash
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX, which is imported but not used, warns of forks
        child = os.fork()
    if child == 0:
        code = 1
        try:
            seen = fuzz(given.seed, given.seconds, report=lambda n: at.__setitem__(slice(0, 8), n.to_bytes(8, "little")))
            show(seen, given)
            code = 0
        finally:
            sys.stdout.flush()
            if code:
                sys.excepthook(*sys.exc_info())
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        number = int.from_bytes(at[:8], "little")
        print(f"signal {-status} in call {number}: python tests/fuzz.py --seed {given.seed} --only {number}")
    return int(status != 0)


def show(seen: Counter[str], given: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("drawn", "calls", title=f"{seen.pop('calls')} calls in {given.seconds:g} s, seed {given.seed}: no difference, no crash")
    for name, count in sorted(seen.items(), key=lambda item: -item[1]):
        table.add_row(name, str(count))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
