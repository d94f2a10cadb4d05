"""How a function with the signature of torch is called, differentiated, transformed and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..partials import Array
from .dialects import Dialect


def _tensor(a: Array, dtype: str) -> torch.Tensor:
    return torch.tensor(np.array(a, order="C"), dtype=getattr(torch, dtype))


def _array(a: Any) -> Array:
    found: Array = torch.as_tensor(a).detach().double().numpy()
    return found


GRAD = "torch.autograd.grad({of}, inputs, {upstream}, materialize_grads=True{more})"
WITH_GRAD = "loss = call(*[t.requires_grad_() for t in inputs])\n"
UPSTREAM = "upstream.to(loss.dtype).expand(loss.shape)"
VALUE = "value = lambda *args: (upstream * call(*args)).sum()\n"
SQUARE = "value = lambda *args: (upstream * call(*args)).sum() ** 2\n"
EACH = "tuple(range(len(inputs)))"
STACKED = "stacked = [torch.stack([t, 2 * t]) for t in inputs]\n"


def _grad(of: str = "loss", upstream: str = UPSTREAM, more: str = "") -> str:
    return GRAD.format(of=of, upstream=upstream, more=more)


TORCH = Dialect(
    "torch",
    "import torch",
    "torch.tensor({data}, dtype=torch.{dtype})",
    {
        "loss": "result = call(*inputs)",
        "gradients": WITH_GRAD + "result = " + _grad(),
        "gradients twice": WITH_GRAD + f"result = {_grad(more=', retain_graph=True')} + {_grad()}",
        "gradients of each alone": "result = []\nfor n, moving in enumerate(inputs):\n"
        "    moving = moving.detach().clone().requires_grad_()\n"
        "    loss = call(*[moving if k == n else t.detach() for k, t in enumerate(inputs)])\n"
        f"    result += torch.autograd.grad(loss, moving, {UPSTREAM})",
        "undefined upstream": WITH_GRAD
        + "undefined = torch._C._functions.UndefinedGrad()(loss)\nresult = "
        + _grad("undefined", "torch.ones_like(loss)"),
        "batched upstream": WITH_GRAD
        + f"many = torch.stack([{UPSTREAM}, -2 * {UPSTREAM}])\nresult = "
        + _grad("loss", "many", ", is_grads_batched=True"),
        "torch.func.grad": VALUE + f"result = torch.func.grad(value, {EACH})(*inputs)",
        "jvp": "result = torch.func.jvp(call, tuple(inputs), tuple(directions))[1]",
        "double backward": SQUARE
        + "square = value(*[t.requires_grad_() for t in inputs])\n"
        + "first = torch.autograd.grad(square, inputs, create_graph=True, materialize_grads=True)\n"
        + "result = torch.autograd.grad(first, inputs, directions, materialize_grads=True)",
        "forward over reverse": SQUARE + f"result = torch.func.jvp(torch.func.grad(value, {EACH}), tuple(inputs), tuple(directions))[1]",
        "vmap": STACKED + "result = torch.func.vmap(call)(*stacked)",
        "vmap of gradients": STACKED + VALUE + f"result = torch.func.vmap(torch.func.grad(value, {EACH}))(*stacked)",
        "compile": "call = torch.compile(call, backend='aot_eager')\n" + WITH_GRAD + "result = [loss, *" + _grad() + "]",
        "log_softmax": "-f(z, dim=-1).gather(-1, labels[:, None])[:, 0]",
    },
    {
        "contiguous": "{a}",
        "transposed": "{a}.T.contiguous().T",
        "every second": "{a}.repeat_interleave(2, -1)[..., ::2]",
        "misaligned": "torch.cat([{a}.new_zeros(1), {a}.flatten()])[1:].view({a}.shape)",
    },
    _tensor,
    _array,
    1,
)
