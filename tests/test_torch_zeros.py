"""Derivatives up to third order where weights, coefficients and probabilities are exactly 0, in every mode, compared with torch's own.

A number that multiplies a value has this value as derivative, also where it is 0.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from definition_in_torch import definition, of_rows, transformed
from test_torch_operators import call_of, static
from tolerances import FLOAT64, HIGHER
from torch.func import grad, jvp

from softxent import torch as st
from softxent.call import Call
from softxent.kernels import IGNORED, LARGEST
from softxent.torch import operators

F64 = torch.float64
ROWS, CLASSES, FEATURES = 4, 3, 2  # of a head
LABELS = torch.tensor([2, 0, IGNORED, 1])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def back(f, v):
    """Return the derivative of f along v, by reverse mode."""
    return lambda *given: sum((g * d).sum() for g, d in zip(grad(f, tuple(range(len(v))))(*given), v, strict=True))


def forth(f, v):
    """Return the derivative of f along v, by forward mode."""
    return lambda *given: jvp(f, given, v)[1]


def same_derivatives(f, wanted, given):
    """Compare the gradients of f, and those of its first and second derivatives along random directions, by all arguments."""
    v = tuple(map(torch.randn_like, given))
    every = tuple(range(len(given)))
    plain = back(wanted, v)
    pairs = {"f": (f, wanted), "reverse": (back(f, v), plain), "forward": (forth(f, v), plain)}
    pairs |= {"reverse, reverse": (back(back(f, v), v), back(plain, v)), "reverse, forward": (back(forth(f, v), v), back(plain, v))}
    pairs |= {"forward, reverse": (forth(back(f, v), v), back(plain, v))}
    found = {of: [grad(one, every)(*given) for one in pair] for of, pair in pairs.items()}
    found["in forward mode"] = [forth(grad(one, every), v)(*given) for one in (back(f, v), plain)]
    for of, (got, want) in found.items():
        for k, (a, b) in enumerate(zip(got, want, strict=True)):
            torch.testing.assert_close(a, b, rtol=HIGHER, atol=FLOAT64, msg=lambda m, of=of, k=k: f"{of}, by argument {k}: {m}")


def some_zero(t):
    return t * (torch.rand(t.shape) < 0.5)


def some(t):
    return t * (torch.rand(t.shape) < 0.5)


each_zeros = pytest.mark.parametrize("zeros", [some, torch.zeros_like], ids=["some", "all"])
TRUTHS = {
    "labels": (LABELS, None, 1.0, math.inf),
    "a shared truth": (LABELS, (CLASSES,), 0.7, math.inf),
    "a truth of each row": (torch.full((ROWS,), LARGEST), (ROWS, CLASSES), 0.7, 1.3),
}


@each_zeros
@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS)
def test_outputs_of_rows(truth, zeros):
    label, shape, *transform = truth
    numbers = [zeros(torch.rand(ROWS, dtype=F64)) for _ in range(7)]
    offs = [] if shape is None else [zeros(torch.rand(shape, dtype=F64))]

    def total(rows):
        def f(z, y, r, q, g, l, b, n, off=None):  # noqa: E741
            return sum((up * t).sum() for up, t in zip((g, l, b, n), rows(z, label, y, r, q, off), strict=True))

        return f

    mine = total(lambda *given: operators.rows(call_of(*given), static(*transform), 5)[:4])
    same_derivatives(mine, total(lambda *given: of_rows(*given, *transform)), (torch.randn(ROWS, CLASSES, dtype=F64), *numbers, *offs))


@each_zeros
@pytest.mark.parametrize("transform", [(1.0, math.inf), (0.7, 1.3)], ids=str)
def test_log_softmax(transform, zeros):
    z, scale, weight = (
        torch.randn(ROWS, CLASSES, dtype=F64),
        zeros(torch.rand(ROWS, dtype=F64)),
        zeros(torch.rand(ROWS, CLASSES, dtype=F64)),
    )

    def composed(z, scale):
        return scale[:, None] * transformed(z, *transform).log_softmax(1)

    mine = lambda z, scale, weight: (weight * operators.log_softmax(Call(z, y=scale), static(*transform))).sum()  # noqa: E731
    same_derivatives(mine, lambda z, scale, weight: (weight * composed(z, scale)).sum(), (z, scale, weight))


@each_zeros
def test_logsumexp(zeros):
    z, coefficient = torch.randn(ROWS, CLASSES, dtype=F64), zeros(torch.rand(ROWS, dtype=F64))
    f, g = (lambda z, c, lse=lse: (c * lse(z, 1)).sum() for lse in (st.logsumexp, torch.logsumexp))
    same_derivatives(f, g, (z, coefficient))


@each_zeros
@pytest.mark.parametrize(("soft", "smoothing"), [(False, 0.0), (False, 0.1), (True, 0.1)])
@pytest.mark.parametrize("function", ["plain", "linear"])
def test_a_loss_by_weights_and_probabilities(function, soft, smoothing, zeros):
    shapes = {"z": (ROWS, CLASSES)} if function == "plain" else {"x": (ROWS, FEATURES), "W": (CLASSES, FEATURES), "b": (CLASSES,)}
    given = {name: torch.randn(shape, dtype=F64) for name, shape in shapes.items()}
    weights = {"weight": (CLASSES,), "sample_weight": (ROWS,), **({"target": (ROWS, CLASSES)} if soft else {})}
    given |= {name: zeros(torch.rand(shape, dtype=F64)) for name, shape in weights.items()}

    def total(of):
        return lambda *values: of(function, dict(zip(given, values, strict=True)))

    def options(given):
        found = {name: given[name] for name in ("weight", "sample_weight")} | {"z_loss": 0.5, "label_smoothing": smoothing}
        return found | {"reduction": "sum", "ignore_index": -100 if soft else IGNORED}

    def ours(function, given):
        target = given.get("target", LABELS)
        if function == "plain":
            return st.cross_entropy(given["z"], target, **options(given))
        return st.linear_cross_entropy(given["x"], given["W"], target, linear_bias=given["b"], budget=1, **options(given))

    def composed(function, given):
        z = given["z"] if function == "plain" else given["x"] @ given["W"].T + given["b"]
        return definition(z, given.get("target", LABELS), **options(given)).loss

    same_derivatives(total(ours), total(composed), tuple(given.values()))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("function", ["plain", "linear"])
def test_nan_in_an_ignored_row_reaches_no_derivative(function, softcap):
    """The derivatives are those of a finite row: 0 by the row itself, and by weights that all rows share what the other rows give."""
    ignored = (LABELS == IGNORED)[:, None]
    shapes = [(ROWS, CLASSES)] if function == "plain" else [(ROWS, FEATURES), (CLASSES, FEATURES)]
    given = (*(torch.randn(shape, dtype=F64) for shape in shapes), torch.rand(CLASSES, dtype=F64), torch.rand(ROWS, dtype=F64))

    def loss(value):
        def f(rows, *others):
            rows, (*head, weight, sample) = rows + torch.where(ignored, value, 0.0), others
            options = {"weight": weight, "sample_weight": sample, "ignore_index": IGNORED, "softcap": softcap, "label_smoothing": 0.1}
            loss = functools.partial(st.linear_cross_entropy, budget=1) if head else st.cross_entropy
            return loss(rows, *head, LABELS, z_loss=0.5, **options)

        return f

    same_derivatives(loss(math.nan), loss(0.0), given)
