"""What the rows of logits = x W^T + b give, and its derivatives, a chunk of logits at a time.

linear.py uses this file. `HeadRows` computes the outputs of every row, and `HeadGradient` their gradients with respect to x, W and b, by
calls of the kernel on a buffer of logits, which it overwrites. Higher derivatives, those with respect to the truth, forward mode and vmap
come from by_chunks.py, which applies torch.func to the operators of operators.py on one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import derivatives
from ..call import UPSTREAM, Call, Static
from ..chunks import COLUMNS, BatchInvariant, Products, Sums, budget_beside_filter, chunk_rows, chunks, rows_of
from ..filtering import Filter, FilterStats
from . import compute, cpu, modes, operators, private
from .by_chunks import RowFunction, Tensors, by_chunks, computed, summed_in
from .compute import OUTPUTS, TYPES, outputs_for
from .processes import local_labels, most_probable

COPIES = 4  # arrays of the size of the logits that the function of a chunk holds at once
FOLD = 16 << 20  # bytes of a product held at once, if it is added to a gradient of another dtype


class Head(NamedTuple):
    """A linear head and the truth of its rows. The truth is y at the label, plus r times `off` at every class."""

    x: Tensor  # [N, D]
    w: Tensor  # [C, D]
    b: Tensor | None  # [C]
    label: Tensor  # [N]
    y: Tensor  # [] or [N]
    r: Tensor  # [] or [N]
    q: Tensor  # [] or [N]
    off: Tensor | None  # [C] or [N, C]
    scale: Tensor | None  # [] or [C]; off, or the teacher's prediction, becomes scale off + shift
    shift: Tensor | None  # [] or [C]
    teacher_x: Tensor | None  # [N, D']; the prediction of this head is off, if there is one
    teacher_w: Tensor | None  # [C, D']
    teacher_b: Tensor | None  # [C]

    def rows(self, i: slice | Tensor) -> Head:
        """Return the head with the rows `i` alone."""
        picked: list[Any] = [t[i] if by_row else t for t, by_row in zip(self, self.by_row(), strict=True)]  # type: ignore[index]
        return Head(*picked)

    def by_row(self) -> tuple[bool, ...]:
        """Return which of the fields have an entry for each row."""
        return tuple(t is not None and t.ndim == axes for t, axes in zip(self, AXES, strict=True))


FIELDS = len(Head._fields)
AXES = tuple({"x": 2, "label": 1, "y": 1, "r": 1, "q": 1, "off": 2, "teacher_x": 2}.get(name) for name in Head._fields)  # of those by row


class Settings(NamedTuple):
    """How the rows of a head are computed."""

    temperature: float
    cap: float  # inf without a softcap
    outputs: str  # some of formula.Outputs, with spaces between
    budget: int  # bytes of logits held at once
    batch_invariant: bool = False  # whether a row must not depend on the rows beside it
    shards: Any = ()  # `Shards` if W has the classes of this process alone

    @property
    def static(self) -> Static:
        """What is static of the operators of a chunk of logits."""
        return Static(self.temperature, self.cap, 1, self.shards)

    @property
    def products(self) -> Products:
        """The matrix products of a chunk."""
        return INVARIANT if self.batch_invariant else PRODUCTS


class _Tensors:
    """The products of torch. If the result has a wider type, which torch does not support everywhere, it is computed a block at a time."""

    def size(self, x: Tensor) -> int:
        return x.element_size()

    def empty(self, like: Tensor, rows: int, classes: int) -> Tensor:
        return cpu.empty((rows, classes), like.dtype) if like.is_cpu else like.new_empty((rows, classes))

    def logits(self, x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> None:
        if out.is_cpu and len(w) > COLUMNS:
            for k in (slice(c, c + COLUMNS) for c in range(0, len(w), COLUMNS)):
                self.logits(x, w[k], None if b is None else b[k], out[:, k])
            return
        torch.mm(x, w.t(), out=out) if b is None else torch.addmm(b, x, w.t(), out=out)

    def product(self, a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
        if out.dtype == a.dtype:
            out.addmm_(a, b) if add else torch.mm(a, b, out=out)
            return
        block = max(1, FOLD // max(1, out.shape[1] * out.element_size()))
        for c in range(0, len(out), block):
            part = a[c : c + block] @ b
            out[c : c + block].add_(part) if add else out[c : c + block].copy_(part)

    def of_rows(self, a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
        self.product(a, b, out, add)

    def columns(self, g: Tensor) -> Tensor:
        return g.sum(0, dtype=torch.float64)


PRODUCTS = _Tensors()
INVARIANT = BatchInvariant(PRODUCTS)


class HeadRows(RowFunction):
    """The function of a `Head` whose outputs are those of its rows, each [N] float64; `correct` is bool."""

    def __init__(self, head: Head, settings: Settings) -> None:
        self.settings, self.outputs = settings, settings.outputs.split()
        row = max(1, settings.shards.most if settings.shards else len(head.w)) * head.w.element_size()
        differentiable = [k for k, name in enumerate(self.outputs) if name not in TYPES]
        step = chunk_rows(len(head.x), row, settings.budget // COPIES)
        super().__init__(self._of_a_chunk, head.by_row(), [True] * len(self.outputs), step, differentiable)

    def _of_a_chunk(self, *head: Any) -> Tensors:
        h, s = Head(*head), self.settings
        found = operators.rows(_call(h, s, F.linear(h.x, h.w, h.b), {}), s.static, outputs_for(self.outputs))
        return tuple(found[OUTPUTS.index(name)] for name in self.outputs)

    def compute(self, *head: Any) -> Tensors:
        h, s = Head(*head), self.settings
        found = {name: compute.new(h.label.shape, h.x) for name in self.outputs}
        for i, _, call in _chunks(h, s, {}):
            compute.computed(call, s.static, _results(found, i))
        return tuple(found[name].to(TYPES.get(name, torch.float64)) for name in self.outputs)

    def gradient(self, needed: Sequence[int], given: Sequence[int]) -> RowFunction:
        general = super().gradient(needed, given)
        fields = [Head._fields[k] for k in needed]
        if {*fields} <= {"x", "w", "b", "y", "q"}:
            return HeadGradient(self, general, fields, given)
        return general

    def tangent(self, moving: Sequence[int]) -> RowFunction:
        general = super().tangent(moving)
        along, fields = [Head._fields[k] for k in moving], [self.outputs[k] for k in self.differentiable]
        whole = {*along} <= {"x", "w", "b"}
        return HeadHessian(self.settings, general, (), along, fields) if whole else general


class HeadGradient(RowFunction):
    """The function of a `Head` and upstream gradients of some outputs that computes the gradients of some of x, w, b, y and q."""

    def __init__(self, rows: HeadRows, general: RowFunction, fields: Sequence[str], given: Sequence[int]) -> None:
        super().__init__(general.of_a_chunk, general.by_row, general.per_row, general.step)
        self.settings, self.fields, self.given = rows.settings, fields, [rows.outputs[k] for k in given]

    def compute(self, *arguments: Any) -> Tensors:
        head, upstream = Head(*arguments[:FIELDS]), arguments[FIELDS:]
        return gradients(head, self.settings, dict(zip(self.given, upstream, strict=True)), self.fields)[1]

    def gradient(self, needed: Sequence[int], given: Sequence[int]) -> RowFunction:
        general = super().gradient(needed, given)
        fields, along = [(*Head._fields, *self.given)[k] for k in needed], [self.fields[k] for k in given]
        whole = {*fields, *along} <= {"x", "w", "b", *OUTPUTS}
        return HeadHessian(self.settings, general, self.given, along, fields) if whole else general


class HeadHessian(RowFunction):
    """The function of a `Head`, upstream gradients of the outputs `given`, and a vector with the shapes of `along`, some of x, w and b.

    It computes `fields`: for x, w and b the product of the Hessian and the vector, and for an output its derivative along the vector.

    The formulas are those of `softxent.linear_cross_entropy_hvp`.
    """

    def __init__(self, settings: Settings, general: RowFunction, given: Sequence[str], along: Sequence[str], fields: Sequence[str]) -> None:
        super().__init__(general.of_a_chunk, general.by_row, general.per_row, general.step)
        self.settings, self.given, self.along, self.fields = settings, given, along, fields

    def compute(self, *arguments: Any) -> Tensors:
        h, rest = Head(*arguments[:FIELDS]), arguments[FIELDS:]
        upstream = dict(zip(self.given, rest, strict=False))
        v = dict(zip(self.along, rest[len(self.given) :], strict=True))
        vx, vw, vb = (v.get(name) for name in ("x", "w", "b"))
        sums, lse = _sums(h, self.settings, self.fields), compute.new(h.label.shape, h.x)
        mean, at_label, by_off, dentropy = (torch.empty_like(lse) for _ in range(4))
        static, beside = self.settings.static, 2 * compute.compute_dtype(h.x).itemsize // h.x.element_size()
        for i, part, call in _chunks(h, self.settings, upstream, beside):
            z = call.z
            tangent = _logit_tangent(part.x, h.w, None if vx is None else vx[i], vw, vb).to(compute.compute_dtype(z))
            product, *of_rows = compute.curvature(call._replace(v=tangent), static)
            del tangent
            for t, row in zip((mean, at_label, by_off, dentropy), of_rows, strict=True):
                t[i] = row
            sums.add(i, product, part.x, h.w)
            compute.computed(call, static, _results({"lse": lse}, i), z)
            sums.add(i, z, None if vx is None else vx[i], vw, first=False, bias=False)
        by_upstream = {"lse": mean, "logprob": at_label, "entropy": dentropy}
        by_upstream["loss"] = derivatives.loss_along(Call(h.x, y=h.y, r=h.r, q=h.q), lse, mean, at_label, by_off, operators.times)
        by_head = {"x": sums.dx, "w": sums.dw, "b": sums.db}
        return tuple(by_head[name].to(h.x.dtype) if name in by_head else by_upstream[name] for name in self.fields)


def _logit_tangent(x: Tensor, w: Tensor, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Tensor:
    """Return the derivative of the logits of the rows x along (vx, vw, vb)."""
    total = x.new_zeros((len(x), len(w))) if vx is None else vx @ w.t()
    total = total if vw is None else total.addmm_(x, vw.t())
    return total if vb is None else total.add_(vb)


def gradients(
    h: Head,
    settings: Settings,
    upstream: dict[str, Any],  # of the outputs: [], [N] or a float
    fields: Sequence[str],  # of x, w, b, y and q
    filter_tol: float | None = None,
    filter_stats: FilterStats | None = None,
) -> tuple[Any, Tensors]:
    """Return the sum of the losses, and the gradients of sum_i g_i output_i with respect to the `fields`, with three products.

    Autograd must not record it.
    """
    sums = _sums(h, settings, fields)
    loss: Any = 0.0
    found = {name: compute.new(h.label.shape, h.x) for name, field in (("lse", "q"), ("logprob", "y")) if field in fields}

    def overwritten(s: Settings) -> Iterator[tuple[slice, Tensor, Head]]:
        nonlocal loss
        for i, part, call in _chunks(h, s, upstream):
            if part is not h and "loss" not in found:
                found["loss"] = compute.new(h.label.shape, h.x)  # so that the sum does not depend on the chunks
            loss = compute.computed(call, s.static, _results(found, i), call.z if fields else None)
            yield i, call.z, part

    with compute.without_autocast(h.x.device.type):
        if fields and filter_tol is not None and filter_stats is not None and h.x.is_cpu and h.x.dtype in (torch.float32, torch.float64):
            _filtered(h, sums, settings, overwritten, filter_tol, filter_stats)
        else:
            for i, g, part in overwritten(settings):
                _add(sums, part, i, g, settings.shards)
    by_head: dict[str, Any] = {"x": sums.dx, "w": sums.dw, "b": sums.db}
    g = upstream.get("loss", 0.0)
    for name, number in (("y", h.y), ("q", h.q)):
        if name in fields:
            value = g * (-found["logprob"] if name == "y" else found["lse"] ** 2 / 2)
            by_head[name] = value if number.ndim else value.sum()
    loss = compute.summed(found["loss"]) if "loss" in found else loss
    return loss, tuple(by_head[name].to(getattr(h, name).dtype) for name in fields)


def _filtered(
    h: Head, sums: Sums, s: Settings, overwritten: Callable[[Settings], Iterator[tuple[slice, Tensor, Head]]], tol: float,
    stats: FilterStats,
) -> None:  # fmt: skip
    """Add up the gradients with blocks of classes left out within the tolerance (softxent/filtering.py)."""
    s = s._replace(budget=budget_beside_filter(s.budget))
    if sums.dw is not None:
        sums.dw.zero_()
    label = None if _dense(h) else cpu.array(h.label)
    Filter(tol, stats, sums, h.x, h.w, cpu.array).add_all(lambda: ((i, g) for i, g, _ in overwritten(s)), label)


def _sums(h: Head, s: Settings, fields: Sequence[str]) -> Sums:
    begun = torch.empty if h.x.shape[0] else torch.zeros  # the products of the first chunk are written, not added
    return Sums(
        torch.empty_like(h.x, memory_format=torch.contiguous_format) if "x" in fields else None,
        begun(h.w.shape, dtype=summed_in(h.w.dtype), device=h.w.device) if "w" in fields else None,
        torch.zeros_like(h.b, dtype=torch.float64) if "b" in fields and h.b is not None else None,
        s.products,
    )


def _add(sums: Sums, h: Head, i: slice, g: Tensor, shards: Any) -> None:
    """Add the products of the gradient g of a chunk h, whose rows are `i`. If g has 16 bits, it is overwritten.

    A product of 16-bit matrices is rounded to 16 bits before it is added. Most of dW is in the rows of the labels, which are few. With
    these in float32, the error for any number of chunks is that of one chunk, 7 to 20 % less than with all logits at once (measured).
    """
    if sums.dw is None or sums.dw.dtype == g.dtype or _dense(h):
        sums.add(i, g, h.x, h.w)
        return
    sums._replace(dw=None).add(i, g, h.x, h.w)
    label = local_labels(h.label, shards.mine) if shards else h.label
    held = torch.zeros(g.shape[1] + 1, dtype=torch.bool, device=g.device)
    held[label.clamp(-1, g.shape[1])] = True  # labels out of range set the last element, which is not used
    at = held[:-1].nonzero()[:, 0]
    part = g[:, at].float().t() @ h.x.float()
    g[:, at] = 0
    sums._replace(dx=None, db=None).add(i, g, h.x, h.w)
    sums.dw.index_add_(0, at, part)


# ---- chunks ----


def _results(found: dict[str, Tensor], i: slice) -> list[Tensor | None]:
    """Return where the outputs of the rows `i` are written, in the order of OUTPUTS."""
    return [rows_of(found[name], i) if name in found else None for name in OUTPUTS[: outputs_for(found)]]


def _chunks(h: Head, s: Settings, upstream: dict[str, Any], beside: int = 0) -> Iterator[tuple[slice, Head, Call]]:
    """Yield the slices of the rows, the head with these rows alone, and their call, with logits in a buffer.

    The budget has room for `beside` more arrays of the size of the logits.
    """
    wide = compute.compute_dtype(h.x)
    made = _dense(h) and (h.off is None or h.scale is not None or h.off.dtype not in (h.x.dtype, wide))
    copies = 1 + beside + (3 * wide.itemsize // h.x.element_size() if made else 0)
    part, of_rows = h, {field: upstream[name] for field, name in zip(UPSTREAM, OUTPUTS, strict=False) if name in upstream}
    most = s.shards.most if s.shards else 0  # all processes must have as many rows in a chunk
    for i, z in chunks(h.x, h.w, h.b, s.products, s.budget // copies, most):
        up = of_rows
        if z.shape[0] < h.x.shape[0]:
            part, up = h.rows(i), {name: g[i] if isinstance(g, Tensor) and g.ndim else g for name, g in of_rows.items()}
        yield i, part, _call(part, s, z, up, s.products)


def _call(h: Head, s: Settings, z: Tensor, upstream: dict[str, Any], products: Products | None = None) -> Call:
    """Return the call of logits, with the truth of a head. `products` are those of `_off`."""
    off, label = _off(h, s, products), h.label
    if h.teacher_x is not None and off is not None and s.shards:
        label = most_probable(off, s.shards, 1)
    return Call(z, label, 0.0 if off is None else off, y=h.y, r=h.r, q=h.q, **upstream)


def _dense(h: Head) -> bool:
    """Whether the truth is at every class of every row: probabilities, or a teacher's prediction."""
    return h.teacher_x is not None or (h.off is not None and h.off.ndim == 2)


def _off(h: Head, s: Settings, products: Products | None) -> Tensor | None:
    """Return the truth at every class, [C] or [N, C], in the type of the logits or the one in which is computed.

    `products` computes the logits of a teacher, in memory of its own; without it, they are an operation that can be transformed.
    """
    off, wide = h.off, compute.compute_dtype(h.x)
    if h.teacher_x is not None and h.teacher_w is not None:
        if products is None:
            z = F.linear(h.teacher_x, h.teacher_w, h.teacher_b)
        else:
            z = products.empty(h.teacher_x, h.teacher_x.shape[0], h.teacher_w.shape[0])
            products.logits(h.teacher_x, h.teacher_w, h.teacher_b, z)
        z = z.to(wide)
        off = operators.log_softmax(Call(z, y=1.0), s.static).exp()
    if off is None:
        return None
    off = off if off.dtype in (h.x.dtype, wide) and h.scale is None else off.to(wide)
    off = off if h.scale is None else off * h.scale.to(wide)
    return off if h.shift is None else off + h.shift.to(wide)


# ---- a reduced loss ----


class Reduction(NamedTuple):
    """How the losses of the rows of a head become a number."""

    settings: Settings
    total: Tensor | None  # [] float64, by which their sum is divided
    dtype: torch.dtype  # of the result
    filter_tol: float | None = None
    filter_stats: FilterStats | None = None

    def upstream(self) -> Any:
        """Return the derivative by the loss of a row."""
        if self.total is None:
            return 1.0
        if self.total.is_cpu:
            return 1 / total if (total := self.total.item()) else 0.0
        return torch.where(self.total == 0, 0.0, 1 / self.total)

    def of(self, head: Head, fields: Sequence[str]) -> tuple[Tensor, Tensors]:
        """Return the number, and its gradients with respect to the `fields`."""
        settings, total, dtype, tol, stats = self
        loss, found = gradients(head, settings, {"loss": self.upstream()}, fields, tol, stats)
        if not head.x.is_cpu:
            return compute.mean(loss, total).to(dtype), found
        loss, divisor = float(loss), 1.0 if total is None else total.item()
        return compute.scalar(compute.divided(loss, divisor), dtype), found


def reduced_loss(head: Head, how: Reduction) -> Tensor:
    """Return sum_i loss_i / total. The gradients with respect to x, W and b are computed in the same pass, if they are required.

    The truth is constant.
    """
    if not modes.differentiated(*head[:3]):
        return how.of(head, ())[0]
    return _differentiable(how, head, *head[:3])


class _Reduced(torch.autograd.Function):
    """(how, head, x, w, b) -> a reduced loss. The first backward pass returns the gradients of the forward pass; another one computes them
    again."""

    @staticmethod
    def forward(ctx: Any, how: Reduction, head: Head, *_: Any) -> Tensor:
        loss, found = how.of(head, [name for name, need in zip("xwb", ctx.needs_input_grad[2:], strict=True) if need])
        ctx.save_for_backward(*head, *found)
        ctx.how, ctx.unused = how, [True]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved, (g,), how = ctx.saved_tensors, grads, ctx.how
        head, found = Head(*saved[:FIELDS]), saved[FIELDS:]
        needed = [k for k, need in enumerate(ctx.needs_input_grad[2:]) if need]
        again = torch.is_grad_enabled() or not modes.first_backward(ctx)
        if again:
            compute.need_memory(*head)
        if modes.batched_by_autograd(g):
            found = [t * g.to(t.dtype) for t in found]
        elif torch.is_grad_enabled():
            of_rows = HeadRows(head, how.settings).gradient(needed, [0])
            found = by_chunks(of_rows, *head, (how.upstream() * g.double()).expand(len(head.x)))
        else:
            if again:
                found = how._replace(filter_tol=None).of(head, [Head._fields[k] for k in needed])[1]
            found = [compute.scaled(t.data, g) for t in found]  # an in-place change of the result is not one of the saved gradient
        gradient = dict(zip(needed, found, strict=True))
        return None, None, *map(gradient.get, range(3))


_differentiable: Callable[..., Tensor] = super(torch.autograd.Function, _Reduced).apply  # of tensors without a transform of torch.func


# ---- operators of torch.library, for torch.compile, torch.export and subclasses of Tensor ----


def rows(head: Head, settings: Settings) -> Tensors:
    """Return the outputs of every row, by the function of autograd or, while a compiler or tracer looks on, by the operator."""
    if modes.eagerly(head.x) and (private.transforming() or not modes.traced()):
        directly = not private.transforming() and not modes.differentiated(*head)
        return (computed if directly else by_chunks)(HeadRows(head, settings), *head)
    if settings.shards or (torch.compiler.is_compiling() and modes.transforms()):
        return tuple(modes.beside_the_graph(by_chunks)(HeadRows(head, settings), *head))
    *of_operator, _ = settings
    return tuple(linear_rows(*head, *of_operator))


def _rows(*arguments: Any) -> list[Tensor]:
    head, settings = Head(*arguments[:FIELDS]), Settings(*arguments[FIELDS:])
    return list(computed(HeadRows(head, settings), *head))


def _gradient(*arguments: Any) -> list[Tensor]:
    head, (*settings, needed, upstream) = Head(*arguments[:FIELDS]), arguments[FIELDS:]
    function = HeadRows(head, Settings(*settings))
    return list(computed(function.gradient(needed, function.differentiable), *head, *upstream))


HEAD = ", ".join(f"{'Tensor' if kind is Tensor else 'Tensor?'} {name}" for name, kind in get_type_hints(Head).items())
SETTINGS = "float temperature, float cap, str outputs, int budget, bool batch_invariant"
linear_rows = torch.library.custom_op("softxent::linear_rows", _rows, mutates_args=(), schema=f"({HEAD}, {SETTINGS}) -> Tensor[]")
linear_gradient = torch.library.custom_op(
    "softxent::linear_gradient", _gradient, mutates_args=(), schema=f"({HEAD}, {SETTINGS}, int[] needed, Tensor[] upstream) -> Tensor[]"
)


@linear_rows.register_fake
def _(x: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape[0], dtype=TYPES.get(name, torch.float64)) for name in rest[-3].split()]


@linear_gradient.register_fake
def _(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(arguments[k], memory_format=torch.contiguous_format) for k in arguments[-2]]


def _backward(ctx: Any, upstream: list[Tensor | None]) -> Any:
    head, settings = Head(*compute.saved(ctx)), ctx.settings
    needed = [k for k, need in enumerate(ctx.needs_input_grad[:FIELDS]) if need]
    zero = head.x.new_zeros(head.x.shape[0], dtype=torch.float64)
    given = [zero if g is None else g for g, name in zip(upstream, settings[2].split(), strict=True) if name not in TYPES]
    gradient = dict(zip(needed, linear_gradient(*head, *settings, needed, given), strict=True))
    return tuple(gradient.get(k) for k in range(FIELDS + len(settings)))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:FIELDS])
    ctx.settings = inputs[FIELDS:]


linear_rows.register_autograd(_backward, setup_context=_keep)
