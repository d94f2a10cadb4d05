"""Contenders of `softxent bench --options` in the modes of PyTorch: eager, compiled, the transforms of torch.func, higher derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from .contenders import Call
from .layouts import TORCH


def pytorch(rows: int, classes: int) -> dict[str, Call]:
    """Return the loss of a matrix in every mode, softxent's and torch's. The first call of what is compiled compiles it."""
    torch = import_module("torch")
    torch.manual_seed(0)
    z, v = (3 * torch.randn(rows, classes)).requires_grad_(), torch.randn(rows, classes)
    target = torch.randint(0, classes, (rows,))
    calls: dict[str, Call] = {}
    for who, library in (("", import_module("softxent.torch")), (TORCH, torch.nn.functional)):
        calls |= {who + mode: call for mode, call in _in_each_mode(library, z, target, v).items()}
    return calls


def _in_each_mode(library: Any, z: Any, target: Any, v: Any) -> dict[str, Call]:
    torch, forward_ad = import_module("torch"), import_module("torch.autograd.forward_ad")
    loss, held = library.cross_entropy, z.detach()

    def of_rows(z: Any, target: Any) -> Any:
        return loss(z, target, reduction="none").sum()

    def chosen(z: Any, target: Any) -> Any:
        return library.log_softmax(z, 1).gather(1, target[:, None]).sum()

    def backward(function: Callable[..., Any]) -> None:
        torch.autograd.grad(function(z, target), z)

    def twice() -> None:
        (g,) = torch.autograd.grad(loss(z, target), z, create_graph=True)
        torch.autograd.grad(g, z, v)

    def forward() -> None:
        with forward_ad.dual_level():
            forward_ad.unpack_dual(loss(forward_ad.make_dual(held, v), target))

    def of_held(z: Any) -> Any:
        return loss(z, target)

    compiled, rows_compiled, alone = (torch.compile(function, fullgraph=True) for function in (loss, of_rows, of_held))
    return {
        "eager": partial(backward, loss),
        "compiled": partial(backward, compiled),
        "reduction none": partial(backward, of_rows),
        "reduction none, compiled": partial(backward, rows_compiled),
        "loss alone": partial(of_held, held),
        "loss alone, compiled": partial(alone, held),
        "log_softmax, gather": partial(backward, chosen),
        "double backward": twice,
        "forward mode": forward,
        "torch.func.grad": partial(torch.func.grad(of_held), held),
        "torch.func.jvp": partial(torch.func.jvp, of_held, (held,), (v,)),
        "torch.func.jvp of grad": partial(torch.func.jvp, torch.func.grad(of_held), (held,), (v,)),
        "torch.func.vmap of grad": partial(torch.func.vmap(torch.func.grad(loss)), held, target),
    }
