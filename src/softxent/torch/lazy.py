"""`Logits`: a head's logits without storage, computed when somebody wants more than their shape.

`Source` is what they are made of: hidden states, head, and the steps done to them since (casts, a scale, a softcap). Anything else
finds a plain tensor, computed once, as the head would have. That is decided above autograd, in `__torch_function__`, so that views,
writes and gradients are those of the plain tensor; what reaches torch past it, as a function of autograd does, still has the gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map_only

from ..contract import fail
from .rows import PLAIN


class Source(NamedTuple):
    """What lazy logits are made of."""

    x: Tensor  # [*rows, D]
    w: Tensor  # [C, D]
    b: Tensor | None  # [C]
    autocast: torch.dtype | None  # the type that autocast had set
    grad: bool  # whether autograd recorded
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
        """The logits, under the autocast that the head was called under."""
        with self.casting(self.autocast):
            z = F.linear(self.x, self.w, self.b)
            for name, value in self.steps:
                z = STEPS[name](z, value)
        return z

    def current(self) -> Source:
        """Itself, if what it is made of is still what it was when the head was called."""
        if self.versions != _versions(self.x, self.w, self.b):
            fail(
                "patch", "output.logits", "be read before the weights change, for they are computed when read", "new weights", RuntimeError
            )
        return self

    def squash(self) -> tuple[float | None, float] | None:
        """-> softcap and temperature, if that is what the steps are."""
        cap, divisor = None, 1.0
        for name, value in self.steps:
            if name == "tanh":
                if cap is not None:
                    return None
                cap = divisor  # tanh(z / cap) is cap tanh(z / cap), divided by cap
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


def _step(func: Any, z: Any, rest: tuple[Any, ...]) -> tuple[str, Any] | None:
    """What a function does to lazy logits z, where it is one of STEPS."""
    if not rest:
        if func in _CASTS or func is Tensor.contiguous:
            return "cast", _CASTS.get(func, z.dtype)
        return ("tanh", None) if func in _TANH else None
    (value, *more) = rest
    if more:
        return None
    if func is Tensor.to:
        return ("cast", value) if isinstance(value, torch.dtype) and value.is_floating_point else None
    name = "div" if func in _DIV else "mul" if func in _MUL else None
    return (name, value) if name and type(value) in (int, float) and 0 < value < float("inf") else None


class Logits(Tensor):
    """Lazy logits [*rows, C]."""

    source: Source
    computed: Tensor | None

    @staticmethod
    def __new__(cls, source: Source) -> Any:
        x, make = source.x, Tensor._make_wrapper_subclass
        made: Any = make(cls, (*x.shape[:-1], len(source.w)), dtype=source.dtype(), device=x.device)
        made.source, made.computed = source, None
        return made

    def whole(self) -> Tensor:
        if self.computed is None:
            with torch.set_grad_enabled(self.source.grad):  # whoever reads first may be under no_grad, and the next not
                self.computed = self.source.current().whole()
        return self.computed

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, first = kwargs or {}, args[0] if args else None
        if isinstance(first, Logits) and first.computed is None and not kwargs:
            if func in _ASKED:
                base: Any = super().__torch_function__  # untyped
                return base(func, types, args, kwargs)
            step = _step(func, first, args[1:])
            if step == ("cast", first.dtype):
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
    """The head and the steps, for autograd: (source, x, W, b) -> Logits."""

    @staticmethod
    def forward(ctx: Any, source: Source, *_: Any) -> Any:
        ctx.source = source
        return Logits(source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        source, needs = ctx.source.current(), ctx.needs_input_grad[1:]
        leaves = [None if t is None else t.detach().requires_grad_(need) for t, need in zip(source[:3], needs, strict=True)]
        with torch.enable_grad():
            z = source._replace(x=leaves[0], w=leaves[1], b=leaves[2]).whole()
        found = iter(torch.autograd.grad(z, [t for t in leaves if t is not None and t.requires_grad], grads))
        return None, *(next(found) if need else None for need in needs)


def _lazy(source: Source) -> Any:
    apply: Any = _Lazy.apply  # untyped
    return apply(source, *source[:3])


def _versions(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What changes with a tensor: how often it was written to, and whether it is there at all, which sharding ends."""
    return tuple(None if t is None else (0 if t.is_inference() else t._version, t.untyped_storage().nbytes()) for t in tensors)


def logits(x: Tensor, w: Tensor, b: Tensor | None) -> Any:
    """F.linear(x, w, b), lazy if they are plain tensors that nothing looks at from outside."""
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else None
    given = [t for t in (x, w, b) if t is not None]
    odd = any(type(t) not in PLAIN or t.is_meta or t.device != x.device or (autocast is None and t.dtype != x.dtype) for t in given)
    seen = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if odd or seen or x.ndim < 2 or w.ndim != 2 or x.shape[-1] != w.shape[-1]:
        return F.linear(x, w, b)
    return _lazy(Source(x, w, b, autocast, torch.is_grad_enabled(), _versions(x, w, b)))
