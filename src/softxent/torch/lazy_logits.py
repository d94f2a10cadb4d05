"""`Logits`: the logits of a head as a tensor whose values are computed only when they are read. huggingface.py uses it.

A `Source` holds what the logits are computed from: the hidden states, the head, and the operations applied to the logits since (casts,
scaling, a softcap). Any other operation computes the values, once, as the head would have, and continues with an ordinary tensor. This
happens in `__torch_function__`, above autograd, so that views, writes and gradients are those of the ordinary tensor. `__torch_dispatch__`
handles code that bypasses it, such as functions of autograd; gradients work there too.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only

from ..contract import fail
from . import private
from .modes import PLAIN


class Source(NamedTuple):
    """What lazy logits are computed from."""

    x: Tensor  # [*rows, D]
    w: Tensor  # [C, D]
    b: Tensor | None  # [C]
    autocast: torch.dtype | None  # the type of autocast when the head was called
    grad: bool  # whether gradients were enabled then
    versions: tuple[Any, ...]
    steps: tuple[tuple[str, Any], ...] = ()  # names of STEPS, and their arguments

    def dtype(self) -> torch.dtype:
        casts = [value for name, value in self.steps if name == "cast"]
        found: torch.dtype = casts[-1] if casts else self.autocast or self.x.dtype
        return found

    def after(self, step: tuple[str, Any]) -> Source:
        return self._replace(steps=(*self.steps, step), grad=self.grad and torch.is_grad_enabled())

    def casting(self, to: torch.dtype | None) -> AbstractContextManager[Any]:
        return torch.autocast(self.x.device.type, dtype=to or torch.bfloat16, enabled=to is not None)

    def whole(self) -> Tensor:
        """Compute the logits, with the autocast setting of the head's call."""
        with self.casting(self.autocast):
            z = F.linear(self.x, self.w, self.b)
            for name, value in self.steps:
                z = STEPS[name](z, value)
        return z

    def current(self) -> Source:
        """Return itself. Raises an error if the tensors have changed since the head was called."""
        if self.versions != _versions(self.x, self.w, self.b):
            expected = "be read before the weights change, for they are computed when read"
            fail("patch", "output.logits", expected, "new weights", RuntimeError)
        return self

    def squash(self) -> tuple[float | None, float] | None:
        """Return softcap and temperature, if the operations are equivalent to them, else None."""
        cap, divisor = None, 1.0
        for name, value in self.steps:
            if name == "tanh":
                if cap is not None:
                    return None
                cap = divisor  # tanh(z / cap) is cap tanh(z / cap) divided by cap, and the divisor stays cap
            elif name != "cast":
                divisor = divisor * value if name == "div" else divisor / value
        return cap, divisor


STEPS: dict[str, Any] = {"cast": Tensor.to, "div": Tensor.div, "mul": Tensor.mul, "tanh": lambda z, _: z.tanh()}
_CASTS: dict[Any, Any] = {
    Tensor.float: torch.float32,
    Tensor.double: torch.float64,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
}
_DIV = {Tensor.div, Tensor.true_divide, Tensor.__truediv__, torch.div, torch.true_divide}
_MUL = {Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__, torch.mul, torch.multiply}
_TANH = {Tensor.tanh, torch.tanh}
_ASKED: set[Any] = {Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.__len__}
_ASKED |= {Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex, Tensor.get_device, torch.numel}
_ASKED |= {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu")}
_ASKED |= {Tensor.register_hook, *(getattr(Tensor, name).__get__ for name in ("_base", "grad_fn", "is_leaf"))}  # by DDP and FSDP2


def _step(func: Any, z: Any, rest: tuple[Any, ...]) -> tuple[str, Any] | None:
    """Return the name and the argument in STEPS of what `func` does to lazy logits z, or None if it is another operation."""
    if not rest:
        if func in _CASTS or func is Tensor.contiguous:
            return "cast", _CASTS.get(func, z.dtype)
        if func is Tensor.clone and not private.forward_mode_records():  # in a function of autograd, as in that of DDP
            return "cast", z.dtype
        return ("tanh", None) if func in _TANH else None
    (value, *more) = rest
    if more:
        return None
    if func is Tensor.to:
        return ("cast", value) if isinstance(value, torch.dtype) and value.is_floating_point else None
    name = "div" if func in _DIV else "mul" if func in _MUL else None
    return (name, value) if name and type(value) in (int, float) and 0 < value < float("inf") else None


class Logits(Tensor):
    """Logits [*rows, C] that are computed when they are read."""

    source: Source
    computed: Tensor | None

    @staticmethod
    def __new__(cls, source: Source) -> Any:
        x, make = source.x, private.subclass_without_memory
        made: Any = make(cls, (*x.shape[:-1], len(source.w)), dtype=source.dtype(), device=x.device)
        made.source, made.computed = source, None
        return made

    def whole(self) -> Tensor:
        with private.without_subclasses():
            differentiable, hooked = self.requires_grad, bool(self._backward_hooks)
        if self.computed is None:
            # the first reader may use no_grad although a later one does not
            with torch.set_grad_enabled(self.source.grad and not hooked):
                self.computed = self.source.current().whole()
        if differentiable and not self.computed.requires_grad:  # gradients must pass a hook, or a function of autograd as that of DDP
            apply: Any = _Values.apply  # untyped
            self.computed = apply(self)
        return self.computed

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, first = kwargs or {}, args[0] if args else None
        if isinstance(first, Logits) and first.computed is None and not kwargs:
            if func in _ASKED:
                base: Any = super().__torch_function__  # untyped
                return base(func, types, args, kwargs)
            step = _step(func, first, args[1:])
            if step == ("cast", first.dtype) and func is not Tensor.clone:
                return first
            if step is not None:
                return _lazy(first.source.current().after(step))
        args, kwargs = tree_map_only(Logits, Logits.whole, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        def value(z: Logits) -> Tensor:
            return z.source.current().whole() if z.computed is None else z.computed.detach()

        args, kwargs = tree_map_only(Logits, value, (args, kwargs or {}))
        return func(*args, **kwargs)


class _Lazy(torch.autograd.Function):
    """Function of autograd for the head and the operations after it: (source, x, W, b) -> Logits."""

    @staticmethod
    def forward(ctx: Any, source: Source, *_: Any) -> Any:
        ctx.source = source
        return Logits(source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        source, needs = ctx.source.current(), ctx.needs_input_grad[1:]
        leaves = [None if t is None else t.detach().requires_grad_(need) for t, need in zip(source[:3], needs, strict=True)]
        with torch.enable_grad():
            z = source._replace(x=leaves[0], w=leaves[1], b=leaves[2]).whole()
        found = iter(torch.autograd.grad(z, [t for t in leaves if t is not None and t.requires_grad], grads))
        return None, *(next(found) if need else None for need in needs)


class _Values(torch.autograd.Function):
    """Function of autograd for the values of computed logits: Logits -> Tensor."""

    @staticmethod
    def forward(ctx: Any, z: Logits) -> Any:
        assert z.computed is not None
        return z.computed.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads


def _lazy(source: Source) -> Any:
    apply: Any = _Lazy.apply  # untyped
    return apply(source, *source[:3])


def _versions(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return numbers that change with a tensor: how often it was written to, and the size of its storage, which sharding frees."""
    return tuple(None if t is None else (private.version(t), t.untyped_storage().nbytes()) for t in tensors)


def logits(x: Tensor, w: Tensor, b: Tensor | None) -> Any:
    """Return F.linear(x, w, b), lazily if these are ordinary tensors outside of a compiler, a transform and forward mode."""
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else None
    given = [t for t in (x, w, b) if t is not None]
    odd = any(type(t) not in PLAIN or t.is_meta or t.device != x.device or (autocast is None and t.dtype != x.dtype) for t in given)
    seen = torch.compiler.is_compiling() or private.jit_tracing() or private.transforming() or private.forward_mode()
    if odd or seen or x.ndim < 2 or w.ndim != 2 or x.shape[-1] != w.shape[-1]:
        return F.linear(x, w, b)
    return _lazy(Source(x, w, b, autocast, torch.is_grad_enabled(), _versions(x, w, b)))
