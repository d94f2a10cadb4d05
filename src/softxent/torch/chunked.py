"""The loss and other outputs of each row of logits = x W^T + b, and their derivatives of any order, a chunk of logits at a time.

linear.py and ops.py use this file. `LinearRows` computes the outputs of each row. Its derivative with respect to x, W and b is
`LinearGradient`, and the derivative of that is `curvature`. Each applies torch.func to the functions of rows.py for a chunk of logits, so
options and outputs mean the same here and there.

`p` is a `Problem`. Functions of autograd and operators take its fields as separate arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vjp

from ..linear import FOLD, Sums, chunks
from . import cpu
from .autograd import batched_by_autograd, devices, in_compute_dtype, keep
from .rows import outputs, transformed_logits

FN = "linear_cross_entropy"
X, W, B = 1, 2, 4  # bits that say which gradients are required
COLUMNS = 1024  # columns of logits in a product: 128 and 320 rows of float32 take 20 and 25 % less time than with all columns at once (CPU)
TENSORS = 8  # the first fields of a problem are tensors, or None

T = TypeVar("T")
Row = tuple[Tensor, ...]  # the outputs, each [N]


class Problem(NamedTuple):
    """The arguments of linear cross-entropy, with the rows on one axis."""

    x: Tensor  # [N, D]
    w: Tensor  # [C, D]
    b: Tensor | None  # [C]
    target: Tensor | None  # [N] labels, [N, C] probabilities, or None
    teacher_x: Tensor | None  # [N, D'], if target is None
    teacher_w: Tensor | None  # [C, D']
    teacher_b: Tensor | None
    weight: Tensor | None  # [C]
    ignore_index: int
    smoothing: float
    z_loss: float
    softcap: float | None
    temperature: float
    wanted: str  # the names of the outputs (rows.outputs), separated by blanks
    budget: int

    def names(self, differentiable: bool = True) -> tuple[str, ...]:
        return tuple(name for name in self.wanted.split() if name != "correct" or not differentiable)

    def of(self, i: slice) -> Tensor:
        """Return the labels or probabilities of the rows `i`."""
        if self.target is not None:
            return self.target[i]
        assert self.teacher_x is not None and self.teacher_w is not None
        z = F.linear(self.teacher_x[i], self.teacher_w, self.teacher_b).detach()
        return torch.softmax(in_compute_dtype(transformed_logits(FN, z, self.softcap, self.temperature)), 1)

    def rows(self, i: slice, differentiable: bool = True) -> Callable[[Tensor], Row]:
        """Return the function that computes the outputs of the rows `i` from their logits."""
        target, names, options = self.of(i), self.names(differentiable), (self.ignore_index, self.smoothing, self.z_loss)

        def f(z: Tensor) -> Row:
            return tuple(
                outputs(transformed_logits(FN, z, self.softcap, self.temperature), target, self.weight, 1, options, names).values()
            )

        return f

    def lean(self) -> bool:
        """Whether one kernel call turns a chunk's logits into their gradient: only the loss is wanted, without softcap and temperature."""
        return self.softcap is None and self.temperature == 1 and self.names() == ("loss",)

    def chunks(self, copies: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Yield the slices of the rows and their logits, in chunks such that `copies` arrays of their size fit into the budget."""
        x, w, b = (None if t is None else t.detach() for t in self[:3])
        return chunks(x, w, b, PRODUCTS, self.budget // copies)

    def sums(self, needs: int) -> Sums:
        x, w, b = self[:3]
        acc = w.dtype if w.dtype in (torch.float32, torch.float64) else torch.float32
        begun = torch.empty if len(x) else torch.zeros  # the products of the first chunk are written, not added
        return Sums(
            torch.empty_like(x, memory_format=torch.contiguous_format) if needs & X else None,
            begun(w.shape, dtype=acc, device=w.device) if needs & W else None,
            torch.zeros_like(b, dtype=torch.float64) if needs & B and b is not None else None,
            PRODUCTS,
        )


class _Tensors:
    """The products of torch. If the result has a wider type, which torch does not support everywhere, it is computed a block at a time."""

    def size(self, x: Tensor) -> int:
        return x.element_size()

    def empty(self, like: Tensor, rows: int, classes: int) -> Tensor:
        return cpu.empty((rows, classes), like.dtype) if like.is_cpu else like.new_empty((rows, classes))

    def logits(self, x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> None:
        step = COLUMNS if out.is_cpu else max(1, len(w))
        for c in range(0, len(w), step):
            k = slice(c, c + step)
            torch.mm(x, w[k].t(), out=out[:, k]) if b is None else torch.addmm(b[k], x, w[k].t(), out=out[:, k])

    def product(self, a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
        if out.dtype == a.dtype:
            out.addmm_(a, b) if add else torch.mm(a, b, out=out)
            return
        block = max(1, FOLD // max(1, out.shape[1] * out.element_size()))
        for c in range(0, len(out), block):
            part = a[c : c + block] @ b
            out[c : c + block].add_(part) if add else out[c : c + block].copy_(part)

    def columns(self, g: Tensor) -> Tensor:
        return g.sum(0, dtype=torch.float64)


PRODUCTS = _Tensors()


def _in_its_own_types(f: Callable[..., T]) -> Callable[..., T]:
    """Decorate a function of a problem so that it runs without autocast, which linear.py has already applied to the arguments."""

    @wraps(f)
    def plain(p: Problem, *rest: Any) -> T:
        with torch.autocast(p.x.device.type, enabled=False):
            return f(p, *rest)

    return plain


@torch.no_grad()
@_in_its_own_types
def rows_by_chunks(p: Problem) -> list[Tensor]:
    """Return the outputs of every row."""
    found: list[Tensor] = []
    for i, z in p.chunks(1 if p.lean() else 8):
        some = p.rows(i, differentiable=False)(z)
        found = found or [row.new_empty(len(p.x)) for row in some]
        for row, part in zip(found, some, strict=True):
            row[i] = part
    return found or list(p.rows(slice(0, 0), differentiable=False)(p.x.new_empty((0, len(p.w)))))


@torch.no_grad()
@_in_its_own_types
def gradients(p: Problem, gs: tuple[Tensor | None, ...], needs: int) -> tuple[Tensor, Sums]:
    """Return the loss of each row, and the gradients of sum_i g_i . outputs_i with respect to x, W and b."""
    sums, losses = p.sums(needs), torch.empty(len(p.x), dtype=torch.float64, device=p.x.device)
    lean, options = p.lean(), (p.ignore_index, p.smoothing, p.z_loss)
    for i, z in p.chunks(1 if lean else 8):
        some = tuple(None if g is None else g[i] for g in gs)
        if lean:
            losses[i] = devices(z).in_place(z, p.of(i), p.weight, 1, *options, some[0])
            g = z
        else:
            rows, g = outputs_and_gradient(p.rows(i), z, some)
            losses[i] = rows[0].double()
        if sums.dw is not None and sums.dw.dtype != g.dtype and p.target is not None and not p.target.is_floating_point():
            _add_exactly(sums, i, g, p.x[i], p.w, p.target[i])
        else:
            sums.add(i, g, p.x[i], p.w)
    return losses, sums


def _add_exactly(sums: Sums, i: slice, g: Tensor, x: Tensor, w: Tensor, labels: Tensor) -> None:
    """Add a chunk's products for 16-bit tensors, with the rows of dW that belong to labels computed in float32.

    A product of 16-bit matrices is rounded to 16 bits before it is added. Most of dW is in the rows of the labels, which are few. With
    these in float32, the error for any number of chunks is that of one chunk, 7 to 20 % less than with all logits at once (measured).
    """
    sums._replace(dw=None).add(i, g, x, w)
    held = torch.zeros(g.shape[1] + 1, dtype=torch.bool, device=g.device)
    held[labels.clamp(-1, g.shape[1])] = True  # labels out of range set the last element, which is not used
    at = held[:-1].nonzero()[:, 0]
    part = g[:, at].float().t() @ x.float()
    g[:, at] = 0
    sums._replace(dx=None, db=None).add(i, g, x, w)
    sums.dw.index_add_(0, at, part)


def outputs_and_gradient(f: Callable[[Tensor], Row], z: Tensor, gs: tuple[Tensor | None, ...]) -> tuple[Row, Tensor]:
    """Return f(z), and the gradient of sum g . f(z) with respect to z."""
    rows, pull = vjp(f, z)[:2]
    return rows, pull(tuple(torch.zeros_like(r) if g is None else g.to(r.dtype) for r, g in zip(rows, gs, strict=True)))[0]


def hessian_product(f: Callable[[Tensor], Row], z: Tensor, v: Tensor, gs: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Row]:
    """Return G, the gradient of sum g . f(z); H v, its derivative along v; and the derivatives of the outputs along v.

    Reverse mode is used twice. H is symmetric, so the derivative of <G, v> with respect to z is H v; its derivatives with respect to g are
    those of the outputs.
    """

    def slope(z: Tensor, gs: Row) -> tuple[Tensor, Tensor]:
        g = outputs_and_gradient(f, z, gs)[1]
        return (g * v).sum(), g

    given = tuple(z.new_zeros(len(z)) if g is None else g for g in gs)
    (product, dots), g = grad(slope, argnums=(0, 1), has_aux=True)(z, given)
    return g, product, dots


def logit_tangent(p: Problem, i: slice, v: Row | tuple[Any, ...]) -> Tensor:
    """Return the derivative of the logits of the rows `i` along (vx, vW, vb)."""
    vx, vw, vb = v
    total = torch.zeros((i.stop - i.start, len(p.w)), dtype=p.x.dtype, device=p.x.device)
    total = total if vx is None else total + vx[i] @ p.w.t()
    total = total if vw is None else total + p.x[i] @ vw.t()
    return total if vb is None else total + vb


@_in_its_own_types
def curvature(p: Problem, gs: tuple[Tensor | None, ...], v: tuple[Any, ...], needs: int) -> tuple[tuple[Any, ...], list[Any]]:
    """Return the product of the Hessian of sum_i g_i . outputs_i in (x, W, b) and v, and the derivatives of the outputs along v.

    It is computed in chunks, or with all logits at once if the result is itself to be differentiated.
    """
    if torch.is_grad_enabled():
        return _whole(p, gs, v)
    sums, dots = p.sums(needs), [torch.zeros(len(p.x), dtype=torch.float64, device=p.x.device) for _ in gs]
    for i, z in p.chunks(16):
        g, product, some = hessian_product(p.rows(i), z, logit_tangent(p, i, v), tuple(None if one is None else one[i] for one in gs))
        sums.add(i, product, p.x[i], p.w)
        sums.add(i, g, None if v[0] is None else v[0][i], v[1], first=False, bias=False)
        for dot, part in zip(dots, some, strict=True):
            dot[i] = part.double()
    return narrowed(p, sums), [None if g is None else dot.to(g.dtype) for g, dot in zip(gs, dots, strict=True)]


def _whole(p: Problem, gs: tuple[Tensor | None, ...], v: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any]]:
    every = slice(0, len(p.x))
    g, product, dots = hessian_product(p.rows(every), F.linear(p.x, p.w, p.b), logit_tangent(p, every, v), gs)
    vx, vw, _ = v
    dx, dw = product @ p.w, product.t() @ p.x
    dx, dw = dx if vw is None else dx + g @ vw, dw if vx is None else dw + g.t() @ vx
    return (dx, dw, None if p.b is None else product.sum(0)), [None if s is None else d.to(s.dtype) for s, d in zip(gs, dots, strict=True)]


def narrowed(p: Problem, sums: Sums) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the sums in the types of x, W and b."""
    dx, dw, db = (None if total is None else total.to(p.x.dtype) for total in (sums.dx, sums.dw, sums.db))
    return dx, dw, db


# ---- functions of autograd ----


def wants(ctx: Any) -> int:
    """Return which gradients autograd requires, as bits, of a function whose first arguments are x, W and b."""
    return sum(bit for bit, needed in zip((X, W, B), ctx.needs_input_grad, strict=False) if needed)


class LinearRows(torch.autograd.Function):
    """Function of autograd: the fields of a problem -> the outputs of every row."""

    @staticmethod
    def forward(*p: Any) -> Row:
        return tuple(rows_by_chunks(Problem(*p)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Row) -> None:
        keep(ctx, inputs[:TENSORS], inputs[TENSORS:])
        ctx.mark_non_differentiable(*(row for row in output if row.dtype == torch.bool))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        p = Problem(*ctx.saved_tensors, *ctx.options)
        gs = [g for g, name in zip(grads, p.wanted.split(), strict=True) if name != "correct"]
        if all(g is None for g in gs):
            return (None,) * len(p)
        found = _of_a_batch(p, gs) if batched_by_autograd(*gs) else gradient_of(*p, wants(ctx), *gs)
        return required_gradients(found, wants(ctx), len(p))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        p = Problem(*ctx.saved_tensors, *ctx.options)
        _, dots = curvature(p, tuple(p.x.new_zeros(len(p.x), dtype=torch.float64) for _ in p.names()), tangents[:3], 0)
        names = iter(dots)
        return tuple(None if name == "correct" else next(names) for name in p.wanted.split())

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *p: Any) -> Any:
        return _each(info.batch_size, in_dims, p, rows_of)


class LinearGradient(torch.autograd.Function):
    """Function of autograd: the fields of a problem, the required gradients as bits, and the upstream gradients of the outputs -> the
    gradients with respect to x, W and b, empty if not required."""

    @staticmethod
    def forward(*arguments: Any) -> Row:
        return tuple(gradients_as_asked(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Row) -> None:
        p, needs, gs = _taken(inputs)
        keep(ctx, (*p[:TENSORS], *gs), (p[TENSORS:], needs))

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> Any:
        tensors, (options, needs) = ctx.saved_tensors, ctx.options
        p, gs = Problem(*tensors[:TENSORS], *options), tensors[TENSORS:]
        v = tuple(one if needs & bit else None for one, bit in zip(v, (X, W, B), strict=True))
        found, dots = curvature(p, gs, v, wants(ctx))
        return (*required_gradients(found, wants(ctx), len(p)), None, *dots)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        tensors, (options, needs) = ctx.saved_tensors, ctx.options
        p, gs = Problem(*tensors[:TENSORS], *options), tensors[TENSORS:]
        found, _ = curvature(p, gs, tangents[:3], needs)
        found = tuple(found)
        if any(t is not None for t in tangents[len(p) + 1 :]):
            more = gradient_of(*p, needs, *tangents[len(p) + 1 :])
            found = tuple(m if one is None else one + m for one, m in zip(found, more, strict=True))
        return tuple(one if needs & bit else p.x.new_empty(0) for one, bit in zip(found, (X, W, B), strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _each(info.batch_size, in_dims, arguments, gradient_of)


def _of_a_batch(p: Problem, gs: list[Tensor | None]) -> tuple[Any, ...]:
    """Return the gradients of x, W and b for a batch of upstream gradients of is_grads_batched. It holds all logits.

    Such a batch cannot be passed to a function of autograd, so the gradients of the logits are computed for upstream gradients of 1.
    """
    z, f = F.linear(p.x, p.w, p.b), p.rows(slice(0, len(p.x)))
    dz: Any = 0
    for n, g in enumerate(gs):
        if g is not None:
            one = tuple(g.new_ones(len(p.x)) if m == n else None for m in range(len(gs)))
            dz = dz + outputs_and_gradient(f, z, one)[1] * g.to(z.dtype).unsqueeze(1)
    return dz @ p.w, dz.mT @ p.x, None if p.b is None else dz.sum(-2)


rows_of: Callable[..., Row] = LinearRows.apply
gradient_of: Callable[..., Row] = LinearGradient.apply


def gradients_as_asked(*arguments: Any) -> list[Tensor]:
    """Compute what `LinearGradient` returns, from its arguments."""
    p, needs, gs = _taken(arguments)
    found = narrowed(p, gradients(p, gs, needs)[1])
    return [p.x.new_empty(0) if one is None else one for one in found]


def _taken(arguments: tuple[Any, ...]) -> tuple[Problem, int, tuple[Tensor | None, ...]]:
    n = len(Problem._fields)
    return Problem(*arguments[:n]), arguments[n], arguments[n + 1 :]


def required_gradients(found: tuple[Any, ...], needs: int, length: int) -> tuple[Any, ...]:
    """Return the gradients of the `length` arguments of which the first are x, W and b: None where not required, and for the others."""
    return (*(one if needs & bit else None for one, bit in zip(found, (X, W, B), strict=True)), *[None] * (length - 3))


def _each(size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...], f: Callable[..., Row]) -> Any:
    """Compute a batch under vmap one problem after the other, because each has the work of a whole head."""
    cases = ([t if dim is None else t.select(dim, n) for t, dim in zip(arguments, in_dims, strict=True)] for n in range(size))
    found = [f(*case) for case in cases]
    return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])
