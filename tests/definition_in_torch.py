"""The loss from its definition, - sum_k y_k log softmax(z)_k + L lse^2, with the truth y at every class, in torch's operations.

torch's autograd gives the derivatives, of every order and by every argument. extended.py has the definition in NumPy, with more digits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from softxent.kernels import IGNORED, LARGEST


class Outputs(NamedTuple):
    loss: torch.Tensor  # [R]
    lse: torch.Tensor  # [R]
    logprobs: torch.Tensor  # [R] the log-probability of the label; for probabilities, the sum of all by them
    entropy: torch.Tensor  # [R]


class Definition(NamedTuple):
    loss: torch.Tensor  # the reduced loss
    lse: torch.Tensor  # as in Outputs
    logprobs: torch.Tensor
    entropy: torch.Tensor
    rows: torch.Tensor  # [R] the losses of the rows
    seen: torch.Tensor  # [R, C] the logits after softcap and temperature
    y: torch.Tensor  # [R, C] the truth at every class
    zl: torch.Tensor  # [R] the z-loss coefficient of the row
    scale: torch.Tensor  # the factor of the reduction


def tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh with an accurate derivative. That of torch's tanh, 1 - tanh^2, cancels for large |x|; the other form has no derivative at 0."""
    return torch.where(x.abs() < 0.1, torch.tanh(x), x.sign() * (1 - 2 / (torch.exp(2 * x.abs()) + 1)))


def of_truth(z: torch.Tensor, y: torch.Tensor, q: Any, label: torch.Tensor, live: Any) -> Outputs:
    """Return what rows of transformed logits give for a truth y [R, C], a label [R, C] and q = 2 L [R]; 0 where a row is not live."""
    logp, lse = torch.log_softmax(z, 1), torch.logsumexp(z, 1)
    found = (q / 2 * lse**2 - (y * logp).sum(1), lse, (label * logp).sum(1), -(logp.exp() * logp).sum(1))
    return Outputs(*(live * each for each in found))


def transformed(z: torch.Tensor, temperature: float, cap: float | None) -> torch.Tensor:
    return (z if cap in (None, math.inf) else cap * tanh(z / cap)) / temperature


def of_rows(z: torch.Tensor, label: torch.Tensor, y: Any, r: Any, q: Any, off: Any, temperature: float, cap: float) -> Outputs:
    """Return what the rows give by the arguments of softxent's operators: the truth is y at the label, and r off at every class."""
    off = torch.zeros_like(z) if off is None else off.expand_as(z)
    hot = (label.where(label != LARGEST, off.argmax(1))[:, None] == torch.arange(z.shape[1])).to(z.dtype)
    return of_truth(transformed(z, temperature, cap), y[:, None] * hot + r[:, None] * off, q, hot, (label != IGNORED).to(z.dtype))


def definition(
    z: torch.Tensor, labels: Any, class_weight: Any = None, label_smoothing: float = 0.0, ignore_index: int = -100,
    sample_weight: Any = None, reduction: str = "mean", z_loss: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    weight: Any = None,
) -> Definition:  # fmt: skip
    """Return the loss and its parts for logits z [R, C]. Labels and weights are tensors, or arrays; `weight` is class_weight in torch."""
    rows, classes = z.shape
    as_z = lambda a, n: torch.ones(n, dtype=z.dtype) if a is None else torch.as_tensor(a, dtype=z.dtype)  # noqa: E731
    w, sample, t = as_z(class_weight if weight is None else weight, classes), as_z(sample_weight, rows), torch.as_tensor(labels)
    if t.is_floating_point():
        live, q, total = torch.ones(rows, dtype=z.dtype), t.to(z.dtype), sample.sum()
    else:
        live = (t != ignore_index).to(z.dtype)
        q = F.one_hot(t.long().where(t != ignore_index, 0), classes).to(z.dtype)
        total = (live * sample * (q @ w)).sum()
    y = (w * ((1 - label_smoothing) * q + label_smoothing / classes)) * (live * sample)[:, None]
    seen, zl = transformed(z, temperature, softcap), z_loss * live * sample
    each, *others = of_truth(seen, y, 2 * zl, q, live)
    scale = 1 / total if reduction == "mean" else torch.ones((), dtype=z.dtype)
    return Definition(each if reduction == "none" else each.sum() * scale, *others, each, seen, y, zl, scale)
