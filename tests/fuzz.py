"""Random calls of the compiled kernel and of the public functions, with numbers of any size, and with every array beside a page that must
not be touched: `make fuzz`, or `python tests/fuzz.py`.

An array ends where such a page begins, or begins where it ends, so that one byte too far is a crash; arguments are on pages that cannot be
written to. Shapes, dtypes, strides, addresses, labels, options, outputs and the number of threads are drawn at random. Logits, temperature,
softcap, weights, upstream gradients and the vector of a product are drawn from all of their type: of any magnitude, 0, subnormal, the
largest, and -inf for a logit. The results are compared with the definitions, in extended precision, within derived bounds (extended.py).

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
from typing import Any

import ml_dtypes
import numpy as np
from cases import DTYPES, OFFS, Problem, computed, problem
from extended import WIDE, Value, Worst, expected
from guarded import Memory
from test_waist import with_all_numbers

import softxent
from softxent import kernels
from softxent.conformance import definition as of_case
from softxent.conformance.case import Case
from softxent.kernels import IGNORED, LARGEST, LARGEST_LOGIT
from softxent.partials import times
from softxent.proof import bounds
from softxent.truth import SMALLEST

CLASSES = [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 66, 100, 127, 129, 255, 257, 300, 1000, 1025, 4095, 4096, 4097, 9001]


# ---- numbers of any size ----


def magnitudes(rng: np.random.Generator, dtype: Any, shape: Any = (), low: float = 0.0) -> np.ndarray:
    """Draw numbers from all that are not negative: of any exponent, more often of one near 0; 0; subnormal; the largest; 1."""
    info = ml_dtypes.finfo(dtype)
    most = float(info.max)
    exponents = np.where(rng.random(shape) < 0.5, np.log2(max(low, float(info.tiny))), np.log2(most)) * rng.random(shape) ** 2
    special = [0, float(info.smallest_subnormal) * rng.integers(1, 1000, shape), float(info.tiny), most, 1]
    drawn = np.choose(rng.choice(6, shape, p=[0.04, 0.05, 0.03, 0.03, 0.15, 0.7]), [*special, np.exp2(exponents)])
    return np.clip(drawn, low, most).astype(dtype)


def room(dtype: Any) -> Any:
    """The largest truth at a class that is drawn: float32, in which is computed, holds the sum of 2^24 of them."""
    return np.asarray(float(ml_dtypes.finfo(dtype).max) / 2**24, dtype)


def signed(rng: np.random.Generator, dtype: Any, shape: Any = ()) -> np.ndarray:
    return magnitudes(rng, dtype, shape) * rng.choice([-1, 1], shape).astype(dtype)


def transform(memory: Memory) -> tuple[float, float]:
    """Draw a temperature and a softcap (inf: none)."""
    rng = memory.rng
    temperature = (
        float(magnitudes(rng, float, (), SMALLEST)) if memory.chance(0.35, "any temperature") else float(rng.choice([1, 1, 0.7, 2.5]))
    )
    if memory.chance(0.25, "any softcap"):
        return temperature, float(magnitudes(rng, float, (), SMALLEST))
    return temperature, float(rng.choice([np.inf, np.inf, np.inf, 5, 30]))


def logits(memory: Memory, rows: int, classes: int, dtype: np.dtype, scale: float) -> np.ndarray:
    """Draw rows of several kinds. `scale` is about the difference that changes a prediction: the temperature."""
    rng, most = memory.rng, float(ml_dtypes.finfo(dtype).max)
    z = np.empty((rows, classes))
    for i in range(rows):
        kind = rng.integers(4)
        if kind == 0:  # a common offset
            z[i] = float(signed(rng, dtype)) + min(scale, most / 50) * rng.standard_normal(classes) * rng.choice([0.3, 3, 30])
        elif kind == 1:
            z[i] = rng.standard_normal(classes) * min(float(magnitudes(rng, dtype)), most / 8)
        elif kind == 2:
            z[i] = signed(rng, dtype, classes)
        else:  # whole multiples
            z[i] = float(signed(rng, dtype)) + rng.integers(-3, 4, classes) * min(scale * rng.choice([1, 8]), most / 50)
    z[(rng.random(z.shape) < 0.1) & (np.arange(rows) % 3 == 1)[:, None] & (np.arange(classes) > 0)] = -np.inf
    return np.where(np.isneginf(z), z, np.clip(z, -most, most)).astype(dtype)


def held(z: np.ndarray, by: tuple[float, float]) -> np.ndarray:
    """Return the logits without -inf where a softcap makes it a number that float32 does not hold."""
    return np.where(np.isneginf(z.astype(float)) & (by[1] < np.inf) & (by[1] / by[0] > 1e37), np.asarray(0, z.dtype), z)


# ---- the kernel ----


def drawn(memory: Memory) -> Problem:
    """Return a random problem for the kernel, in ordinary memory."""
    rng, seen = memory.rng, memory.seen
    classes = int(rng.choice(CLASSES)) if rng.random() < 0.7 else int(rng.integers(1, 200))
    rows = int(rng.integers(0, 40)) if classes < 400 else int(rng.integers(1, 4))
    dtype, off = str(rng.choice(list(DTYPES))), str(rng.choice(OFFS))
    p = problem(rows, classes, DTYPES[dtype], off, int(rng.integers(1 << 30)))._replace(transform=transform(memory))
    if memory.chance(0.4, "all numbers"):
        p = with_all_numbers(p, int(rng.integers(1 << 30)))
    if memory.chance(0.4, "any logits"):
        p = p._replace(z=logits(memory, rows, classes, p.z.dtype, p.transform[0]))
    p = p._replace(z=held(p.z, p.transform))
    if memory.chance(0.3, "any numbers"):
        any_size = np.where(rng.random(p.truth.shape) < 0.5, magnitudes(rng, float, p.truth.shape), np.abs(p.truth))
        p = p._replace(truth=np.copysign(any_size * (p.truth != 0), p.truth))
    if p.off is not None and memory.chance(0.2, "any truth at every class"):
        p = p._replace(
            off=np.where(rng.random(p.off.shape) < 0.5, np.minimum(magnitudes(rng, p.off.dtype, p.off.shape), room(p.off.dtype)), p.off)
        )
    if memory.chance(0.2, "numbers for all rows") and rows:
        p = p._replace(truth=p.truth[:, :1] * np.ones((1, rows)))
        inside = (p.label >= 0) & (p.label < classes)
        p = p._replace(truth=p.truth * np.array([1] * 5 + [inside.all()] + [1])[: len(p.truth), None])
    label = p.label.copy()
    if memory.chance(0.3, "ignored rows"):
        label[rng.random(rows) < 0.3] = IGNORED
    if memory.chance(0.15, "the largest as label"):
        label[:] = LARGEST if memory.chance(0.5, "the largest truth, if there is one of each row") else LARGEST_LOGIT
    seen.update(
        [dtype, f"off: {off}", "softcap" if np.isfinite(p.transform[1]) else "no softcap", f"{'many' if classes > 64 else 'few'} classes"]
    )
    return p._replace(label=label)


def resolved(p: Problem) -> Problem:
    """Return the rows that are not ignored, with a class for LARGEST and LARGEST_LOGIT."""
    p = p.rows(p.label != IGNORED)
    by_off, by_logit = (
        np.nan_to_num(of.astype(np.float64), nan=-np.inf, neginf=-np.inf).argmax(axis=1) if of.size else p.label
        for of in (p.off if p.off is not None and p.off.ndim == 2 else p.z, p.z)
    )
    return p._replace(label=np.where(p.label == LARGEST, by_off, np.where(p.label == LARGEST_LOGIT, by_logit, p.label)))


def kernel_call(memory: Memory) -> None:
    """Call forward, backward, fused, both one after the other, curvature or log_softmax of the kernel."""
    rng, kernel = memory.rng, kernels.active()
    p, threads = drawn(memory), int(rng.integers(1, 4))
    rows, wide = len(p.z), computed(p.z.dtype)
    op = str(rng.choice(["forward", "fused", "forward and backward", "curvature", "log_softmax"]))
    memory.seen.update([op, f"{threads} threads"])
    in_place = op != "forward" and memory.chance(0.2, "in place")
    z = memory.place(p.z, written=in_place)
    label, numbers = memory.place(p.label), memory.place(p.truth)
    off = None if p.off is None else memory.place(p.off)
    one_row = rows and op != "log_softmax" and (p.truth == p.truth[:, :1]).all()
    numbers = numbers[:, :1] if one_row and memory.chance(0.8, "one column of numbers") else numbers
    out = z if in_place else memory.place(np.empty_like(p.z), written=True)
    outputs = 5 if op == "forward and backward" and len(p.truth) == 7 else int(rng.choice([2, 5]))  # the entropy's gradient needs its sums
    result = memory.place(np.full((outputs, rows), -7.0), written=True, strides=False)
    parts = memory.place(np.full((7, rows), -7.0), written=True, strides=False)
    live, q = p.label != IGNORED, resolved(p)
    if op == "log_softmax":
        scale = memory.place(rng.standard_normal(rows), strides=False)
        memory.lock()
        kernel.log_softmax(z, scale, p.transform, out, threads)
        want, bound = expected(p._replace(label=np.full(rows, -1), truth=0 * p.truth, off=None))["log-softmax"]
        size = np.abs(scale[:, None]).astype(WIDE)
        memory.worst.check("log-softmax", out, Value(times(scale[:, None].astype(WIDE), want), times(size, bound)))
        return
    if op == "curvature":
        v = rng.standard_normal(p.z.shape).astype(wide) if memory.chance(0.5, "usual v") else directions(memory, p.z.shape, wide)
        products, gauss_newton = memory.place(np.full((4, rows), -7.0), written=True, strides=False), memory.chance(0.2, "Gauss-Newton")
        placed = memory.place(v)
        memory.lock()
        kernel.curvature(z, placed, label, numbers, off, p.transform, gauss_newton, out, products, threads)
        assert (out[~live].astype(float) == 0).all() and (products[:, ~live] == 0).all(), "an ignored row is not 0"
        found, kinds = expected(q, v[live], gauss_newton), ("mean of v", "v less its mean", "off along v", "entropy along v")
        memory.worst.check("Hessian product", out[live], found["Hessian product"])
        for kind, x in zip(kinds[: 3 + (len(p.truth) == 7)], products[:, live], strict=False):
            memory.worst.check(kind, x, found[kind])
        return
    memory.lock()
    if op == "fused":
        kernel.fused(z, label, numbers, off, p.transform, out, result, parts if memory.chance(0.5, "parts") else None, threads)
    else:
        kernel.forward(z, label, numbers, off, p.transform, result, parts, threads)
        if op != "forward":
            kernel.backward(z, label, numbers, off, p.transform, parts, out, threads)
    found = expected(q)
    for kind, x in zip(("loss", "lse", "log-probability", "entropy"), result, strict=False):
        assert (x[~live] == 0).all(), "an ignored row is not 0"
        memory.worst.check(kind, x[live], found[kind])
    if op != "forward":
        assert (out[~live].astype(float) == 0).all(), "an ignored row is not 0"
        memory.worst.check("gradient", out[live], found["gradient"])


def directions(memory: Memory, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Draw a vector whose rows have one scale, or entries of any size."""
    rng, most = memory.rng, float(ml_dtypes.finfo(dtype).max)
    of_rows = np.clip(rng.standard_normal(shape) * np.minimum(magnitudes(rng, dtype, (shape[0], 1)), most / 8), -most, most)
    return np.where(memory.chance(0.5, "any v"), signed(rng, dtype, shape), of_rows).astype(dtype)


# ---- the public functions ----


def options_of(memory: Memory, rows: int, classes: int) -> dict[str, Any]:
    rng, found = memory.rng, {}
    temperature, cap = transform(memory)
    for name, usual, any_size in [
        ("class_weight", rng.random(classes) + 0.1, magnitudes(rng, float, classes)),
        ("sample_weight", rng.random(rows) + 0.1, magnitudes(rng, float, rows)),
        ("label_smoothing", 0.2, float(rng.choice([1.0, 1e-300, 1e-40, 1 - 2.0**-53]))),
        ("z_loss", 0.05, float(magnitudes(rng, float))),
    ]:
        if memory.chance(0.25, name):
            found[name] = any_size if memory.chance(0.4, f"any {name}") else usual
    found |= {} if temperature == 1 else {"temperature": temperature}
    return found | ({} if np.isinf(cap) else {"softcap": cap})


def of_options(case: Case, z: np.ndarray) -> tuple[Problem, Any]:
    """Return the problem that the options mean, its numbers in 80 bits, and what a reduced loss multiplies the sum by."""
    r = of_case.rows(case)
    numbers = np.array([np.broadcast_to(x, len(z)) for x in r.numbers[:4]], WIDE)
    label = r.off.argmax(axis=1) if case.soft else r.label
    p = Problem(z, label, numbers, r.off, (case.options.get("temperature", 1.0), case.options.get("softcap") or np.inf))
    return p, r.scale


def public_call(memory: Memory) -> None:
    """Call a public function of NumPy or PyTorch with random options."""
    rng = memory.rng
    dtype = DTYPES[str(rng.choice(list(DTYPES)))]
    classes, rows = int(rng.choice([1, 2, 7, 33, 64, 65, 200, 1000])), int(rng.integers(1, 12))
    any_logits = memory.chance(0.4, "any logits")
    z = (rng.standard_normal((rows, classes)) * float(rng.choice([0.5, 3, 15]))).astype(dtype)
    if dtype.itemsize > 2 and memory.chance(0.15, "linear head"):
        return head_call(memory, rows, min(classes, 200), dtype)
    if memory.chance(0.4, "without labels"):
        return without_labels(memory, logits(memory, rows, classes, dtype, 1.0) if any_logits else z)
    soft = memory.chance(0.3, "probabilities")
    options = options_of(memory, rows, classes)
    if any_logits:
        z = logits(memory, rows, classes, dtype, options.get("temperature", 1.0))
    z = held(z, (options.get("temperature", 1.0), options.get("softcap", np.inf)))
    any_truth = memory.chance(0.3, "any probabilities")
    labels = rng.integers(0, classes, rows)
    if soft:
        labels = (np.minimum(magnitudes(rng, dtype, z.shape), room(dtype)) if any_truth else rng.random(z.shape).astype(dtype)) * (
            z.astype(float) > -np.inf
        )
    if not soft and memory.chance(0.3, "ignore_index"):
        labels[1::2], options["ignore_index"] = -100, -100
    options["reduction"] = str(rng.choice(["none", "sum", "mean"]))
    each = rows if options["reduction"] == "none" else ()
    in_torch = memory.chance(0.4, "PyTorch") and sys.modules.get("torch") and dtype.name != "bfloat16"
    up = signed(rng, dtype if in_torch else float, each) if memory.chance(0.3, "any upstream") else rng.standard_normal(each).round(2)
    v = None
    if memory.chance(0.4, "Hessian product"):
        v = directions(memory, z.shape, computed(dtype)) if memory.chance(0.5, "any v") else rng.standard_normal(z.shape).astype(dtype)
    up = np.asarray(up)
    if in_torch:
        up, most = up.astype(dtype), float(ml_dtypes.finfo(dtype).max)
        v = None if v is None else np.clip(v, -most, most).astype(dtype)
    given = {k: memory.place(x, strides=False) if isinstance(x, np.ndarray) else x for k, x in options.items()}
    placed, target = memory.place(z), memory.place(labels)
    p, scale = of_options(Case({"z": z.astype(float)}, labels.astype(float) if soft else labels, options, dtype.name, up.astype(float)), z)
    if not usable(p, scale, dtype):
        memory.seen["not compared: weights, or their products, beyond the type"] += 1
        return
    if in_torch:
        memory.lock()
        loss, dz, hv = by_torch(z, labels, given, up, v)
    else:
        out = memory.place(np.empty_like(z), written=True) if memory.chance(0.5, "out") else None
        direction = None if v is None else memory.place(v)
        memory.lock()
        loss, dz = softxent.cross_entropy_and_grad(placed, target, upstream=up, out=out, **given)
        hv = None if v is None else softxent.cross_entropy_hvp(placed, direction, target, upstream=up, **given)
    found = expected(p, v, rounded=True)
    memory.worst.check("loss", loss, reduced(found["loss"], scale, options["reduction"]))
    memory.worst.check("gradient", dz, multiplied_later(found["gradient"], up, dtype) if in_torch else found["gradient"])
    if v is not None:
        memory.worst.check("Hessian product", hv, found["Hessian product"])


def multiplied_later(gradient: Value, up: np.ndarray, dtype: np.dtype) -> Value:
    """Return the gradient that PyTorch gives: a forward pass computes it for an upstream gradient of 1, in the type of the logits."""
    info, size = ml_dtypes.finfo(dtype), np.abs(up.astype(WIDE)).reshape(-1, 1)
    bound = gradient.bound + size * float(info.smallest_subnormal)
    return Value(gradient.want, np.where(np.abs(gradient.want) > size * float(info.max), np.inf, bound))


def reduced(loss: Value, scale: Any, reduction: str) -> Value:
    """Return the sum of the rows, times `scale`. It is added up in float64, where it may overflow."""
    if reduction == "none":
        return loss
    size = np.abs(loss.want).sum()
    error = loss.bound.sum() + (len(loss.want) + 12) * bounds.UNIT["float64"] * size
    return Value(loss.want.sum() * scale, error * abs(scale) if size < 1e307 else np.inf)


def usable(p: Problem, scale: Any, dtype: np.dtype) -> bool:
    """Whether float64 holds the numbers of the rows, and the type of the computation the truth at every class."""
    off = np.zeros(1) if p.off is None else p.off
    with np.errstate(all="ignore"):
        numbers = np.abs([*p.truth.ravel(), scale, *(p.truth[3] * p.truth[:3]).ravel()])
        mass = p.truth[0] + p.truth[1] * off.sum(axis=-1)
    return bool((numbers < 1e307).all() and (mass < 1e307).all() and (off <= room(computed(dtype))).all())


def head_call(memory: Memory, rows: int, classes: int, dtype: np.dtype) -> None:
    """Call the linear cross-entropy of NumPy. An error of a logit is as that of a sum of D + 1 products, and moves the results."""
    rng, u, features = memory.rng, bounds.UNIT[dtype.name], int(memory.rng.integers(1, 6))
    size = float(magnitudes(rng, dtype)) if memory.chance(0.4, "any features") else 1.0
    x = (rng.standard_normal((rows, features)) * min(size, float(ml_dtypes.finfo(dtype).max) / 2**40)).astype(dtype)
    w = (rng.standard_normal((classes, features)) * rng.choice([1, 3, 30]) / max(size, 2.0**-100)).astype(dtype)
    labels, options = rng.integers(0, classes, rows), options_of(memory, rows, classes) | {"reduction": "sum"}
    up = float(signed(rng, float)) if memory.chance(0.3, "any upstream") else 1.5
    wide_x, wide_w = x.astype(WIDE), w.astype(WIDE)
    terms = np.abs(wide_x) @ np.abs(wide_w).T
    case = Case({"x": x.astype(float), "W": w.astype(float)}, labels, options, dtype.name, up)
    p, scale = of_options(case, wide_x @ wide_w.T)
    if not usable(p, scale, dtype):
        return
    placed = [memory.place(a) for a in (x, w, labels)]
    given = {k: memory.place(a, strides=False) if isinstance(a, np.ndarray) else a for k, a in options.items()}
    memory.lock()
    loss, dx, dw = softxent.linear_cross_entropy_and_grad(*placed, upstream=up, **given)
    blur = (features + 2) * (u * terms + bounds.TINY[dtype.name])
    found = expected(p, rounded=True, blur=blur, dtype=dtype)
    memory.worst.check("loss", loss, reduced(found["loss"], scale, "sum"))
    dz, d_dz = found["gradient"]
    d_dz = d_dz + (classes + rows + 4) * (u * (np.abs(dz) + d_dz) + bounds.TINY[dtype.name])
    if not (np.abs(dz) + d_dz < ml_dtypes.finfo(dtype).max).all():
        return
    memory.worst.check("gradient of a head", dx, Value(dz @ wide_w, d_dz @ np.abs(wide_w) + classes * bounds.TINY[dtype.name]))
    memory.worst.check("gradient of a head", dw, Value(dz.T @ wide_x, d_dz.T @ np.abs(wide_x) + rows * bounds.TINY[dtype.name]))


def by_torch(z: np.ndarray, labels: np.ndarray, options: dict, up: Any, v: np.ndarray | None) -> tuple[Any, Any, Any]:
    """Return loss, gradient, and the product of the second backward pass."""
    import torch

    from softxent.torch import cross_entropy

    named = {
        "weight" if k == "class_weight" else k: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x for k, x in options.items()
    }
    x = torch.from_numpy(z.copy()).requires_grad_()
    loss = cross_entropy(x, torch.from_numpy(labels.copy()), **named)
    (dz,) = torch.autograd.grad(loss, x, torch.as_tensor(up, dtype=loss.dtype), create_graph=v is not None)
    hv = None if v is None else torch.autograd.grad(dz, x, torch.from_numpy(v))[0].numpy()
    return loss.detach().numpy(), dz.detach().numpy(), hv


def without_labels(memory: Memory, z: np.ndarray) -> None:
    """Call a function of logits alone."""
    rng, rows = memory.rng, len(z)
    up = signed(rng, float, rows) if memory.chance(0.4, "any upstream") else rng.standard_normal(rows)
    v = directions(memory, z.shape, z.dtype if rng.random() < 0.5 else computed(z.dtype))
    name = str(rng.choice(["softmax", "log_softmax", "logsumexp", "entropy", "softmax_vjp", "token_logprobs"]))
    memory.seen[name] += 1
    temperature, cap = transform(memory)
    z = held(z, (temperature, cap))
    place, truth, label = memory.place(z), np.zeros((7, rows)), rng.integers(0, z.shape[1], rows)
    placed_v = memory.place(v)
    memory.lock()
    if name == "token_logprobs":
        truth[5] = up
        found = expected(Problem(z, label, truth, None, (temperature, cap)))
        got = softxent.token_logprobs_and_grad(place, label, upstream=up, temperature=temperature, softcap=None if np.isinf(cap) else cap)
        memory.worst.check("log-probability", got[0], found["log-probability"])
        return memory.worst.check("gradient", got[1], found["gradient"])
    if name == "entropy":
        truth[6] = up
        found = expected(resolved(Problem(z, np.full(rows, LARGEST), truth, None)))
        h, dh = softxent.entropy_and_grad(place, upstream=up)
        memory.worst.check("entropy", h, found["entropy"])
        return memory.worst.check("gradient", dh, found["gradient"])
    truth[4] = 1
    found = expected(Problem(z, np.full(rows, -1), truth, None), v)
    kind = {"softmax": "gradient", "log_softmax": "log-softmax", "logsumexp": "lse", "softmax_vjp": "Hessian product"}[name]
    more = (placed_v,) if name == "softmax_vjp" else ()
    memory.worst.check(kind, getattr(softxent, name)(place, *more), found[kind])


def call(seed: int, number: int, seen: Counter[str], worst: Worst) -> None:
    """Make call number `number` of a seed."""
    rng = np.random.default_rng([seed, number])
    memory = Memory(rng, seen, worst)
    with np.errstate(all="ignore"):
        (public_call if rng.random() < 0.4 else kernel_call)(memory)
    seen["calls"] += 1


def fuzz(
    seed: int, seconds: float, most: int = 1 << 60, report: Callable[[int], None] = lambda n: None, failures: int = 1
) -> tuple[Counter[str], Worst]:  # fmt: skip
    """Make calls for so many seconds, or so many calls. Returns how often each thing was drawn, and the worst errors.

    Raises the errors at the end, or when there are `failures` of them.
    """
    seen, worst, errors = Counter[str](), Worst(), []
    end, number = time.monotonic() + seconds, 0
    while number < most and time.monotonic() < end and len(errors) < failures:
        report(number)
        try:
            call(seed, number, seen, worst)
        except Exception as error:
            errors.append(f"call {number} of seed {seed} (python tests/fuzz.py --seed {seed} --only {number}): {error!r}")
        number += 1
    if errors:
        raise AssertionError("\n".join([*errors, f"{len(errors)} of {number} calls"]))
    return seen, worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--only", type=int, help="the number of one call")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    given = parser.parse_args()
    if given.only is not None:
        call(given.seed, given.only, Counter(), Worst())
        return 0
    at = mmap.mmap(-1, 8)  # shared: the number of the call, for the case of a crash
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX, which is imported but not used, warns of forks
        child = os.fork()
    if child == 0:
        code = 1
        try:
            report = lambda n: at.__setitem__(slice(0, 8), n.to_bytes(8, "little"))  # noqa: E731
            show(*fuzz(given.seed, given.seconds, report=report, failures=given.failures), given)
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


def show(seen: Counter[str], worst: Worst, given: argparse.Namespace) -> None:
    """Print the lines of docs/robustness.md."""
    print(f"{seen.pop('calls'):,} calls in {given.seconds:g} seconds (seed {given.seed}) gave no difference and no crash.\n")
    print("| result | largest error / bound |\n| --- | --- |")
    print("\n".join(f"| {kind} | {ratio:.2f} |" for kind, ratio in worst.items()))
    print("\n| drawn | calls |\n| --- | --- |")
    print("\n".join(f"| {name} | {count:,} |" for name, count in seen.most_common()))


if __name__ == "__main__":
    sys.exit(main())
