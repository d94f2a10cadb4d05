"""What a case must give: the loss and its derivatives by formula.py in extended precision, and how far a result may be from them.

A case becomes the numbers of formula.py here and not by truth.py, so that the laws do not test softxent with itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import formula
from ..partials import Array, lse, times
from ..proof import bounds
from .case import Case

WIDE = np.longdouble
STEP = WIDE(2.0**-13)  # of differences: the error is STEP^4 times a fifth derivative, 2e-16, and 1e-19 / STEP by rounding


class Rows(NamedTuple):
    """The arguments of formula.py for a case."""

    z: Array  # [R, C], after softcap and temperature
    slope: Any  # of z by the logits
    label: Array  # [R]; -1 where no class is the label
    numbers: formula.Numbers
    off: Array | None
    scale: Any  # what a reduced loss multiplies the sum by


def rows(case: Case) -> Rows:
    """Return the numbers of each row, by the table of options in docs/mathematics.md."""
    given = {name: a.astype(WIDE) for name, a in case.inputs.items()}
    x = given["z"] if "z" in given else given["x"] @ given["W"].T + given.get("b", WIDE(0))
    options = case.options
    temperature = options.get("temperature", 1.0)
    z, slope, _ = formula.transformed(x, temperature, options.get("softcap") or np.inf)
    z = z / WIDE(temperature)
    w = np.asarray(options.get("class_weight", np.ones(case.classes)), WIDE)
    sample = np.asarray(options.get("sample_weight", np.ones(case.rows)), WIDE)
    e = WIDE(options.get("label_smoothing", 0.0))
    if case.soft:
        label, y, live, total = np.full(case.rows, -1), np.zeros(case.rows, WIDE), sample, sample.sum()
        off: Array | None = w * ((1 - e) * case.labels + e / case.classes)
    else:
        seen = case.labels != options.get("ignore_index", -100)
        label, live = np.where(seen, case.labels, -1), sample * seen
        own = live * w[np.where(seen, case.labels, 0)]
        y, total = (1 - e) * own, own.sum()
        off = None if e == 0 else w * (e / case.classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = WIDE(1) / total if options.get("reduction", "mean") == "mean" else WIDE(1)
        g = np.asarray(case.upstream, WIDE) * scale * np.ones(case.rows, WIDE)
    return Rows(z, slope, label, formula.Numbers(y, live, 2 * WIDE(options.get("z_loss", 0)) * live, g), off, scale)


def _reduced(each: Array, case: Case, scale: Any) -> Array:
    reduced: Array = each if case.options.get("reduction", "mean") == "none" else np.asarray(each.sum() * scale)
    return reduced


def loss(case: Case) -> Array:
    """Return the loss, [R] or a scalar."""
    r = rows(case)
    with np.errstate(invalid="ignore", over="ignore"):
        return _reduced(formula.outputs(formula.partials(r.z, r.label, r.off), *r.numbers[:3]).loss, case, r.scale)


def of_logits(case: Case) -> Array:
    """Return the gradient with respect to the logits, [R, C]."""
    r = rows(case)
    with np.errstate(invalid="ignore", over="ignore"):
        x = formula.partials(r.z, r.label, r.off)
        dz: Array = times(r.slope, formula.gradient(r.z, x, r.label, formula.coefficients(x, r.numbers), r.off))
        return dz


def gradients(case: Case) -> list[Array]:
    """Return the gradients by `case.differentiated()`: by the logits in closed form, by weights and probabilities as differences."""
    dz, found = of_logits(case), []
    for name, a in case.differentiated().items():
        if name in case.inputs:
            found.append(_to_input(name, case.inputs, dz))
            continue
        slopes = np.zeros(a.size, WIDE)
        for k in range(a.size):
            unit = np.eye(1, a.size, k).reshape(a.shape)
            slopes[k] = (np.asarray(case.upstream, WIDE) * along(case, {name: unit})).sum()
        found.append(slopes.reshape(a.shape))
    return found


def _to_input(name: str, inputs: dict[str, Array], dz: Array) -> Array:
    """Return the gradient by an input for this gradient by the logits."""
    if name == "x":
        return dz @ inputs["W"]
    if name == "W":
        return dz.T @ inputs["x"]
    return dz if name == "z" else np.asarray(dz.sum(axis=0))


def along(case: Case, directions: dict[str, Array]) -> Array:
    """Return the derivative of the loss along these directions."""
    at = [loss(case.moved(directions, n * STEP)) for n in (1, -1, 2, -2)]
    slope: Array = (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * STEP)
    return slope


def squared(case: Case) -> list[Array]:
    """Return the gradients of v^2, where v is the sum of upstream times the loss."""
    v = (np.asarray(case.upstream, WIDE) * loss(case)).sum()
    return [2 * v * g for g in gradients(case)]


def hessian_product(case: Case, directions: dict[str, Array]) -> list[Array]:
    """Return the product of the Hessian of v^2 (see `squared`) and the directions."""
    at = [squared(case.moved(directions, n * STEP)) for n in (1, -1, 2, -2)]
    return [(8 * (a - b) - (c - d)) / (12 * STEP) for a, b, c, d in zip(*at, strict=True)]


# ---- how far a result may be from it ----


def tolerance(case: Case) -> tuple[Array, list[Array]]:
    """Return bounds of the errors of the loss and its gradients for a stable algorithm that computes in the dtype throughout.

    With u the unit roundoff of the computation, log yhat_k = (z_k - m) - log s has an error of E_k = u (C + 6 + 4 (|z_k - m| + log C)): a
    sum of C terms in any order, two differences, an exponential and a logarithm. The loss weights E_k with the truth, and the gradient with
    mass yhat_k. The products of a row add 8u, and a sum over R rows R u. An error d_k of a logit adds d_k and the largest d. It comes from
    temperature and softcap (8u), and from the products of a linear head, D + 1 terms. Results are rounded to the dtype, twice at most.
    """
    store = bounds.UNIT[case.dtype]
    u = bounds.UNIT["float64" if case.dtype == "float64" else "float32"]
    r, tiny = rows(case), WIDE(bounds.TINY["float64" if case.dtype == "float64" else "float32"])
    count = case.rows + 8
    with np.errstate(invalid="ignore", over="ignore"):
        x = formula.partials(r.z, r.label, r.off)
        y, live, q, g = (np.abs(n) for n in r.numbers[:4])
        away, level = _finite(formula.surprisal(r.z, x)), np.abs(_finite(lse(x)))
        at_logits = _logit_errors(case, r, u, store)
        error = u * (case.classes + 6 + 4 * (away + np.log(case.classes))) + at_logits + at_logits.max(axis=1, keepdims=True)
        truth = np.where(formula.at_label(r.z, r.label), y[:, None], 0) + live[:, None] * (0 if r.off is None else r.off)
        each = (truth * (error + 8 * u * away)).sum(axis=1) + q * (level + 1) * (error.max(axis=1) + 8 * u * level)
        size = (truth * away).sum(axis=1) + q * level**2 / 2
        mass = truth.sum(axis=1) + q * level
        yhat = _finite(formula.softmax(r.z, x))
        dz = mass[:, None] * yhat * (error + (case.classes + count) * u) + truth * count * u
        dz += (q * (error.max(axis=1) + 8 * u * level))[:, None] * yhat
        value = np.abs(_finite(of_logits(case)))
        dz = np.abs(r.slope) * g[:, None] * dz + 8 * u * value + 2 * store * value + (tiny + bounds.TINY[case.dtype]) * (1 + g[:, None])
        each = each + count * u * size + 2 * store * size + tiny
        allowed = _reduced(each, case, np.abs(r.scale))
    return allowed * (1 + 8 * u), [_of_input(name, case, value, dz, u, store) for name in case.inputs]


def _finite(a: Array) -> Array:
    return np.where(np.isfinite(a), a, 0)


def _logit_errors(case: Case, r: Rows, u: float, store: float) -> Array:
    """Return bounds of the errors of the logits that are not given: those of a linear head, a softcap or a temperature."""
    error = np.zeros(r.z.shape, WIDE)
    if {"temperature", "softcap"} & set(case.options):
        error += 8 * u * np.abs(_finite(r.z))
    if "z" not in case.inputs:
        x, w, b = (np.abs(_finite(case.inputs[name])) if name in case.inputs else np.zeros(1) for name in "xWb")
        terms = x @ w.T + b
        error += np.abs(r.slope) * ((x.shape[1] + 2) * u + (store if store > u else 0)) * terms
    return error


def _of_input(name: str, case: Case, dz: Array, error: Array, u: float, store: float) -> Array:
    """Return the bound of the gradient by an input: that of the logits, times the other matrix, and the rounding of a sum of n terms."""
    if name == "z":
        return error
    inputs = {name: np.abs(_finite(a)) for name, a in case.inputs.items()}
    terms = max(case.rows, case.classes) + 2
    stored = error + (store if store > u else 0) * dz
    return _to_input(name, inputs, stored) + (terms * u + 2 * store) * _to_input(name, inputs, dz)


def sharp(case: Case) -> tuple[Array, list[Array]]:
    """Return the bounds of proof/bounds.py, which softxent's kernels keep: relative ones, also where the loss is near 0.

    They are for logits that are given, or that a linear head computes without rounding, in float32 or float64, without softcap and
    temperature.
    """
    r = rows(case)
    numbers = np.array([np.broadcast_to(n, case.rows) for n in r.numbers[:4]], np.float64)
    each, dz = bounds.row_bounds(r.z.astype(case.dtype), r.label, numbers, None if r.off is None else np.asarray(r.off, np.float64))
    size = np.abs(_finite(loss(replace(case, options=case.options | {"reduction": "none"}))))
    each = each + (case.rows + 2) * bounds.UNIT[case.dtype] * size + bounds.TINY[case.dtype]
    value, u = np.abs(_finite(of_logits(case))), bounds.UNIT[case.dtype]
    return _reduced(each, case, np.abs(r.scale)), [_of_input(name, case, value, dz, u, u) for name in case.inputs]
