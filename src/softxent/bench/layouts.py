"""Contenders of `softxent bench --options` whose logits have any shape and lie in memory in any way: beside torch, and a copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import softxent

from .contenders import Call

COPY, TORCH, ALONE = "memcpy", "torch: ", ", loss alone"
BASE = "[1024, 1000]"

# name: shape, the axes in memory (the order of the others' strides), a step between rows
Layout = tuple[tuple[int, ...], tuple[int, ...] | None, int]
LAYOUTS: dict[str, Layout] = {
    "[10]": ((10,), None, 1),
    "[32, 10]": ((32, 10), None, 1),
    "[2, 3, 8, 8]": ((2, 3, 8, 8), None, 1),
    "[8, 10, 20]": ((8, 10, 20), None, 1),
    "[8, 1000, 128]": ((8, 1000, 128), None, 1),
    "[8, 128, 1000] transposed": ((8, 1000, 128), (0, 2, 1), 1),
    "[2, 21, 256, 256]": ((2, 21, 256, 256), None, 1),
    "[2, 21, 256, 256] channels_last": ((2, 21, 256, 256), (0, 2, 3, 1), 1),
    "every second row of [1024, 32000]": ((512, 32000), None, 2),
    "[131072, 21]": ((131072, 21), None, 1),
    "[65536, 100]": ((65536, 100), None, 1),
    "[8192, 1000]": ((8192, 1000), None, 1),
}
OPTIONS = {"weight, ignore_index": ("[2, 21, 256, 256]",), "weight": ("[32, 10]",), "probabilities": ("[32, 10]",)}


def pytorch(small: bool, dtype: str, quick: bool) -> dict[str, Call]:
    """Return the loss with its gradient, and alone, of small or large logits; softxent's, torch's, and a copy of the logits."""
    torch = import_module("torch")
    calls: dict[str, Call] = {}
    for name, layout in _some(small, quick).items():
        z, target = _tensors(*layout, getattr(torch, dtype))
        calls |= _calls(name, z, target)
        for options, names in OPTIONS.items():
            if name in names:
                calls |= _calls(f"{name} {options}", z, *_with(options, z, target))
    return calls


def _some(small: bool, quick: bool) -> dict[str, Layout]:
    chosen = {name: layout for name, layout in LAYOUTS.items() if (np.prod(layout[0]) < 4096) == small}
    if not quick:
        return chosen
    return {name: (tuple(min(n, 16) for n in shape), order, step) for name, (shape, order, step) in chosen.items()}


def _tensors(shape: tuple[int, ...], order: tuple[int, ...] | None, step: int, dtype: Any) -> tuple[Any, Any]:
    torch = import_module("torch")
    torch.manual_seed(0)
    order = order or tuple(range(len(shape)))
    memory = 3 * torch.randn([shape[0] * step, *(shape[k] for k in order[1:])] if len(shape) > 1 else shape)
    z = memory.to(dtype).permute(*np.argsort(order).tolist())[::step].requires_grad_()
    axis = 1 if len(shape) > 1 else 0
    return z, torch.randint(0, shape[axis], shape[:axis] + shape[axis + 1 :])


def _with(options: str, z: Any, target: Any) -> tuple[Any, dict[str, Any]]:
    torch = import_module("torch")
    if options == "probabilities":
        return torch.randn_like(z).softmax(1), {}
    weight = {"weight": torch.linspace(0.5, 2, z.shape[1], dtype=z.dtype)}
    if options == "weight":
        return target, weight
    return torch.where(torch.rand(target.shape) < 0.1, 255, target), {**weight, "ignore_index": 255}


def _calls(name: str, z: Any, target: Any, options: dict[str, Any] | None = None) -> dict[str, Call]:
    torch, front = import_module("torch"), import_module("softxent.torch")
    held, copy = z.detach(), torch.empty_like(z.detach())

    def both(function: Callable[..., Any]) -> None:
        torch.autograd.grad(function(z, target, **(options or {})), z)

    calls: dict[str, Call] = {f"{COPY} {name}": lambda: copy.copy_(held)}
    for who, function in (("", front.cross_entropy), (TORCH, torch.nn.functional.cross_entropy)):
        calls[who + name] = partial(both, function)
        calls[who + name + ALONE] = partial(function, held, target, **(options or {}))
    return calls


def numpy(quick: bool) -> dict[str, Call]:
    """Return the loss and gradient of NumPy arrays: large ones, and small calls."""
    calls: dict[str, Call] = {}
    for name, axis in ((BASE, 1), ("[131072, 21]", 1), ("[2, 21, 256, 256]", 1), ("[8, 1000, 128]", 1), *((n, -1) for n in SMALL)):
        rng = np.random.default_rng(0)
        shape = [min(int(n), 32) if quick else int(n) for n in name.split("]")[0].strip("[").split(",")]
        z = 3 * rng.standard_normal(shape, np.float32)
        labels: Any = rng.integers(0, shape[axis], np.delete(shape, axis))
        out = np.empty_like(z)
        options = SMALL.get(name, {})
        if "ignored" in name:
            labels[...] = -100
        if "probabilities" in name:
            labels = rng.dirichlet(np.ones(shape[axis]), len(z)).astype(np.float32)
        calls[name] = partial(softxent.cross_entropy_and_grad, z, labels, axis=axis, out=out, **options)
    return calls


SMALL: dict[str, dict[str, Any]] = {
    "[1, 10]": {},
    "[1, 10] label_smoothing": {"label_smoothing": 0.1},
    "[1, 10] class_weight": {"class_weight": np.linspace(0.5, 2, 10)},
    "[1, 10] sample_weight": {"sample_weight": np.array([0.5])},
    "[1, 10] z_loss": {"z_loss": 1e-4},
    "[1, 10] temperature": {"temperature": 0.7},
    "[1, 10] softcap": {"softcap": 30.0},
    "[1, 10] probabilities": {},
    "[1, 10] ignored": {},
}


def rows(seconds: dict[str, list[float | None]], ratio: Callable[[str, str], str]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table of `pytorch`."""
    names = [name for name in seconds if not name.startswith((TORCH, COPY)) and not name.endswith(ALONE)]
    columns = ["logits", "softxent : torch", "loss alone", "softxent : memcpy", "torch : memcpy"]
    of = [(name, name + ALONE, f"{COPY} {name}") for name in names]
    return columns, [
        [name, ratio(name, TORCH + name), ratio(alone, TORCH + alone), ratio(name, copy), ratio(TORCH + name, copy)]
        for name, alone, copy in of
    ]
