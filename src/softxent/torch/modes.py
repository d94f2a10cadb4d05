"""Which mode is active, and how a function of autograd is called in it: eager mode, torch.compile, a tracer, a transform of torch.func.

In eager mode and in torch.func, the operators are functions of autograd. Under torch.compile, for tracers and for subclasses of Tensor,
they are operators of torch.library, which these can see; they know neither forward mode nor transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .. import contract
from . import private

PLAIN = (Tensor, Parameter)


exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # from torch 2.7 on


def traced() -> bool:
    """Whether a tracer records operators: torch.jit.trace, or a mode such as that of make_fx."""
    return private.jit_tracing() or private.dispatching()


def readable(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors with values: no transform of torch.func, no compiler, no tracer and no subclass is involved."""
    for t in tensors:
        if type(t) not in PLAIN or t.is_meta:
            return False
    if torch.compiler.is_compiling():  # first, for the compiler cannot trace the others
        return False
    return not private.transforming() and not traced()


def plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors with values, and no forward-mode tangent is involved either."""
    return not private.forward_mode() and readable(*tensors)


def eagerly(t: Tensor) -> bool:
    """Whether the function of autograd is used for this tensor, and not the operator of torch.library."""
    if torch.compiler.is_compiling():
        return False
    return private.transforming() or (type(t) in PLAIN and not t.is_meta and not private.jit_tracing())


def _transforms() -> bool:
    """Whether forward mode or a transform of torch.func is active."""
    return private.forward_mode() or private.transforming()


_constant: Any = torch.compiler.assume_constant_result  # untyped
transforms: Callable[[], bool] = _constant(_transforms)  # a compiler guards the transforms that were active when it traced


def beside_the_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that a compiler does not trace: the graph ends before the call."""
    disable: Any = torch.compiler.disable  # untyped
    found: Callable[..., Any] = disable(function)
    return found


def by_operator(t: Tensor) -> bool:
    """Whether the operator of torch.library is called, because a compiler or a subclass of Tensor must see it."""
    return not (torch.compiler.is_compiling() and transforms()) and not eagerly(t)


def applied(function: Any, *arguments: Any) -> Any:
    """Call a function of autograd."""
    if torch.compiler.is_compiling():
        return beside_the_graph(function.apply)(*arguments)
    if private.transforming():
        if private.forward_levels() > 1:
            expected = "not be nested, for torch would return 0; use torch.func.grad for one of the two"
            contract.fail("softxent.torch", "forward mode", expected, "jvp of jvp", RuntimeError)
        return function.apply(*arguments)
    return private.apply_unbound(function, *arguments)


# ---- what is differentiated ----


def differentiated(*tensors: Any) -> bool:
    """Whether a derivative with respect to one of these tensors may be wanted, in reverse or in forward mode."""
    reverse = torch.is_grad_enabled()
    for t in tensors:
        if isinstance(t, Tensor) and ((reverse and t.requires_grad) or has_tangent(t)):
            return True
    return False


def has_tangent(t: Tensor) -> bool:
    """Whether forward mode differentiates with respect to this tensor."""
    if not private.forward_mode():
        return False
    unpack: Any = forward_ad.unpack_dual  # untyped
    return unpack(t).tangent is not None


def batched_by_autograd(*grads: Any) -> bool:
    """Whether these are upstream gradients of is_grads_batched, which cannot call a function of autograd."""
    for g in grads:
        if isinstance(g, Tensor) and private.is_batch(g):
            return True
    return False


def of_batches(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function. Some arguments may be batches of torch.autograd.functional, for which torch.func.vmap is used."""
    dims = tuple(0 if batched_by_autograd(t) else None for t in arguments)
    if not any(dim == 0 for dim in dims):
        return function(*arguments)
    level = private.level_of_batches()
    plain = [t if dim is None else private.without_batch(t, level) for t, dim in zip(arguments, dims, strict=True)]
    found = torch.func.vmap(function, dims)(*plain)
    batch: Any = lambda t: private.with_batch(t, level)  # noqa: E731
    return tuple(map(batch, found)) if isinstance(found, tuple) else batch(found)


def first_backward(ctx: Any) -> bool:
    """Whether this is the first backward pass, and the only one that may return the gradient of the forward pass.

    `ctx.unused` is a list with one entry until then. Of several threads, only one succeeds in removing it.
    """
    try:
        ctx.unused.pop()
    except IndexError:
        return False
    return True
