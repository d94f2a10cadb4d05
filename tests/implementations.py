"""Right implementations of cross-entropy, written from the formula in NumPy and in torch, and mutants of them, each with one fault.

test_conformance.py checks that the laws pass the right ones, and that each mutant breaks its law.
"""

from __future__ import annotations

import numpy as np
import torch

# ---- right ----


def _truth(xp, labels, one_hot, classes, weight, smoothing, live, sample):
    """Return y [R, C] and the number that a mean is divided by."""
    w = xp.ones(classes) if weight is None else weight
    s = live if sample is None else live * sample
    y = s[:, None] * w * ((1 - smoothing) * one_hot + smoothing / classes)
    return y, (s * (one_hot * w).sum(1)).sum() if labels else s.sum()


def cross_entropy_and_grad(
    logits, labels, *, class_weight=None, label_smoothing=0.0, ignore_index=-100, sample_weight=None, reduction="mean", upstream=None
):
    """Return the loss and its gradient: sum_k y_k (lse - z_k) and mass softmax(z) - y, with the largest logit apart."""
    z, labels = np.asarray(logits).astype(np.float64), np.asarray(labels)
    shape, classes = z.shape, z.shape[-1]
    z = z.reshape(-1, classes)
    hard = labels.dtype.kind in "iu"
    live, one_hot = np.ones(len(z)), labels.reshape(z.shape if not hard else -1).astype(np.float64)
    if hard:
        t = labels.reshape(-1)
        live = (t != ignore_index).astype(float)
        if ((t < 0) | (t >= classes))[live > 0].any():
            raise ValueError("a label is out of range")
        one_hot = (t[:, None] == np.arange(classes)) * live[:, None]
    sample = None if sample_weight is None else np.asarray(sample_weight, float).reshape(-1)
    weight = None if class_weight is None else np.asarray(class_weight, float)
    y, total = _truth(np, hard, one_hot, classes, weight, label_smoothing, live, sample)
    with np.errstate(invalid="ignore", divide="ignore"):
        top = z.argmax(1, keepdims=True)
        at_top = np.arange(classes) == top
        zj = np.take_along_axis(z, top, 1)
        others = np.where(at_top, 0, np.exp(z - zj))
        s = others.sum(1, keepdims=True)
        away = (zj - z) + np.log1p(s)
        dead = (y == 0).all(1)
        rows = np.where(y == 0, 0, y * away).sum(1)
        bad = np.isnan(away).any(1) & ~dead
        rows = np.where(bad, np.nan, rows)
        yhat = np.where(at_top, 1, others) / (1 + s)
        mass = y.sum(1, keepdims=True)
        dz = np.where(at_top, (mass - y) * yhat - y * (s / (1 + s)), mass * yhat - y)
        dz[dead] = 0
        scale = 1 / total if reduction == "mean" else 1.0
        g = np.asarray(1.0 if upstream is None else upstream, float).reshape(-1, 1) * scale
        loss = rows.reshape(shape[:-1]) if reduction == "none" else rows.sum() * scale
        return loss, (dz * g).reshape(shape).astype(np.asarray(logits).dtype)


def cross_entropy(logits, labels, *, class_weight=None, label_smoothing=0.0, ignore_index=-100, sample_weight=None, reduction="mean"):
    return cross_entropy_and_grad(
        logits, labels, class_weight=class_weight, label_smoothing=label_smoothing, ignore_index=ignore_index, sample_weight=sample_weight,
        reduction=reduction,
    )[0]  # fmt: skip


class Right:
    """A right implementation in torch, with places at which a mutant differs."""

    def wide(self, input):
        return input.double()

    def live(self, target, ignore_index):
        return target != ignore_index

    def check(self, inside, live, classes):
        if inside.numel() and ((inside < 0) | (inside >= classes))[live].any():
            raise IndexError("a label is out of range")
        return inside

    def smoothing(self, smoothing, classes, weight):
        return smoothing / classes

    def weight(self, weight):
        return weight.double()

    def total(self, live, w_at):
        return (live * w_at).sum()

    def rest(self, away, y):
        return torch.where(y == 0, 0, y * torch.where(y == 0, 0, away))

    def rows(self, z, y, live):
        """Return sum_k y_k (lse - z_k), with the largest logit apart."""
        z = torch.where(live[:, None], z, 0)
        top = z.argmax(1, keepdim=True)
        at_top = torch.arange(z.shape[1]) == top
        zj = z.gather(1, top)
        s = torch.where(at_top, 0, torch.exp(torch.where(at_top, 0, z - zj))).sum(1, keepdim=True)
        return self.rest(torch.where(at_top, 0, zj - z) + torch.log1p(s), y).sum(1) + 0 * s[:, 0]

    def reduced(self, rows, reduction, total):
        return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.sum() / total

    def movable(self, input):
        return input.movedim(1, -1) if input.ndim > 2 else input

    def __call__(self, input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        z = self.movable(input)
        shape, classes = z.shape[:-1], z.shape[-1]
        z = self.wide(z).reshape(-1, classes)
        w = torch.ones(classes, dtype=torch.float64) if weight is None else self.weight(weight)
        if target.is_floating_point():
            q = self.movable(target).double().reshape(-1, classes)
            live, total = torch.ones(len(z), dtype=torch.bool), len(z)
        else:
            t = target.reshape(-1)
            live = self.live(t, ignore_index)
            inside = self.check(torch.where(live, t, 0), live, classes)
            q = (inside[:, None] == torch.arange(classes)).double()
            total = self.total(live, w[inside])
        y = live[:, None] * w * ((1 - label_smoothing) * q + self.smoothing(label_smoothing, classes, weight))
        loss = self.reduced(self.rows(z, y.to(z.dtype), live), reduction, total)
        return loss.reshape(shape if reduction == "none" else ()).to(input.dtype)


def function(implementation):
    """Return a function with torch's signature."""

    def cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        return implementation(input, target, weight, ignore_index, reduction, label_smoothing)

    return cross_entropy


def linear(implementation):
    def linear_cross_entropy(
        input, linear_weight, target, *, linear_bias=None, weight=None, reduction="mean", ignore_index=-100, label_smoothing=0.0
    ):
        x = input.double()
        if not target.is_floating_point():
            x = torch.where((target != ignore_index)[..., None], x, 0)
        z = torch.nn.functional.linear(x, linear_weight.double(), None if linear_bias is None else linear_bias.double())
        if target.is_floating_point():
            target = target.reshape(-1, z.shape[-1])
        loss = implementation(
            z.reshape(-1, z.shape[-1]),
            target.flatten() if target.ndim < z.ndim else target,
            weight,
            ignore_index,
            reduction,
            label_smoothing,
        )
        return loss.reshape(input.shape[:-1] if reduction == "none" else ()).to(input.dtype)

    return linear_cross_entropy


numpy_right, torch_right, linear_right = cross_entropy, function(Right()), linear(Right())

# ---- mutants of the right one: a place at which it differs ----


def _faulty(**places):
    return type("Mutant", (Right,), places)()


def _place(**places):
    return function(_faulty(**places))


def _after(change):
    """Return a mutant whose loss is changed afterwards."""

    def implementation(input, target, weight, ignore_index, reduction, label_smoothing):
        loss = torch_right(input, target, weight, ignore_index, reduction, label_smoothing)
        return change(loss, input, target, weight, reduction)

    return function(implementation)


def _gradient(backward):
    """Return a mutant whose gradient is `backward(ctx, upstream, dz)`, with the right gradient dz for an upstream gradient of 1."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input, loss, dz):
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(dz)
            return loss.clone()

        @staticmethod
        def backward(ctx, upstream):
            return backward(ctx, upstream, ctx.saved_tensors[0]), None, None

    def implementation(input, target, *options):
        with torch.enable_grad():
            z = input.detach().requires_grad_()
            loss = torch_right(z, target, *options)
            (dz,) = torch.autograd.grad(loss.sum(), z)
        return Own.apply(input, loss.detach(), dz)

    return function(implementation)


def _columns(upstream, dz):
    return upstream.reshape(-1, 1) if upstream.ndim else upstream


KEPT: list[torch.Tensor] = []


class _NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(loss):
        return loss.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, upstream):
        return upstream

    @staticmethod
    def jvp(ctx, tangent):
        return torch.zeros_like(tangent)


def _no_max(self, z, y, live):
    z = torch.where(live[:, None], z, 0)
    return self.rest(z.exp().sum(1, keepdim=True).log() - z, y).sum(1)


def _global_max(self, z, y, live):
    z = torch.where(live[:, None], z, 0)
    z = z - z.nan_to_num(-1e300, neginf=-1e300).max().detach() if z.numel() else z
    return self.rest(z.exp().sum(1, keepdim=True).log() - z, y).sum(1)


def _in_float32(self, z, y, live):
    return self.rest(-torch.log_softmax(torch.where(live[:, None], z.float(), 0), 1), y).sum(1)


def _clipped(self, z, y, live):
    p = torch.softmax(torch.where(live[:, None], z, 0), 1)
    return self.rest(-torch.log(torch.where(p < 1e-7, 1e-7, p)), y).sum(1)  # a clipped probability: the mistake itself


def _written(loss, input, *_):
    input.detach().sub_(1)
    return loss


def _keep(loss, input, *_):
    KEPT.extend(input.detach().clone() for _ in range(10))  # beyond what freed memory may hold
    return loss


def _twice(ctx, upstream, dz):
    dz.data.mul_(_columns(upstream, dz))
    return dz.clone()


def _times_0(loss, input, target, weight, reduction):
    return loss + (0 * input).sum(1 if reduction == "none" else None)


def _by_strides(self, z, y, live):
    return Right.rows(self, torch.as_strided(z, z.shape, (z.shape[1], 1), z.storage_offset()), y, live)


def _with_smoothing(self, smoothing, classes, weight):
    return smoothing / classes if weight is None or not smoothing else smoothing / classes / weight.double().mean()


class Three(Right):
    """Wrong where three options are given."""

    def __call__(self, input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        loss = super().__call__(input, target, weight, ignore_index, reduction, label_smoothing)
        given = (weight is not None) + (ignore_index != -100) + bool(label_smoothing)
        return loss * 1.01 if given == 3 else loss


def _frozen(input, linear_weight, target, *, linear_bias=None, weight=None, reduction="mean", ignore_index=-100, label_smoothing=0.0):
    w = linear_weight if input.requires_grad else linear_weight.detach() + 0 * linear_weight
    return linear_right(
        input,
        w,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def _is_batched(t):
    inner = torch._C._functorch.get_unwrapped(t) if torch._C._functorch.is_gradtrackingtensor(t) else t
    return torch._C._functorch.is_batchedtensor(inner) or torch._C._functorch.is_legacy_batchedtensor(inner)


def _if_batched(loss, input, *_):
    return loss * 1.01 if _is_batched(loss) else loss


def _if_transformed(loss, input, *_):
    return loss * 1.01 if torch._C._functorch.is_gradtrackingtensor(loss) else loss


def _if_compiled(loss, input, *_):
    return loss * 1.01 if torch.compiler.is_compiling() else loss


def _one_upstream(ctx, upstream, dz):
    return dz * upstream.mean()


def _batched(ctx, upstream, dz):
    up = _columns(upstream, dz)
    return dz * (up.abs() if _is_batched(upstream) else up)


def _undefined(ctx, upstream, dz):
    return dz if upstream is None else dz * _columns(upstream, dz)


def _no_check(self, inside, live, classes):
    return inside.clamp(0, classes - 1)


MUTANTS = {  # a fault: the mutant, and the law that it breaks
    "sums in float32": (_place(wide=lambda self, z: z.float()), "the loss is the definition"),
    "upstream ignored": (_gradient(lambda ctx, up, dz: dz), "the gradient is prediction minus truth"),
    "one upstream for all rows": (_gradient(_one_upstream), "each row has its upstream gradient"),
    "smoothing by the size of a shard": (_place(smoothing=lambda self, e, c, w: e / max(1, c // 2)), "each option is its definition"),
    "smoothing with other weights": (_place(smoothing=_with_smoothing), "each pair of options is its definition"),
    "three options": (function(Three()), "any combination of options is its definition"),
    "a mass of 1": (_gradient(lambda ctx, up, dz: dz - dz.mean(-1, keepdim=True) + 1e-3), "a truth need not sum to 1"),
    "clipped probabilities": (_place(rows=_clipped), "an improbable label costs its gap"),
    "no maximum": (_place(rows=_no_max), "a common offset changes nothing"),
    "log_softmax in float32": (_place(rows=_in_float32), "a loss near 0 keeps its digits"),
    "log_softmax of a head in float32": (linear(_faulty(rows=_in_float32)), "a loss near 0 keeps its digits"),
    "a gradient of a head by 1 - p": (linear(_faulty(rows=_in_float32)), "a gradient near 0 keeps its digits"),
    "a gradient by 1 - p": (_place(rows=_in_float32), "a gradient near 0 keeps its digits"),
    "sums in bfloat16": (_place(wide=lambda self, z: z if z.itemsize == 2 else z.double()), "reduced precision is rounded once"),
    "0 times infinity": (_place(rest=lambda self, away, y: y * away), "a masked class has no part"),
    "0 times infinity of probabilities": (_place(rest=lambda self, away, y: y * away), "a masked class of probability 0 has no part"),
    "finite masks": (_after(lambda loss, *_: torch.where(loss.isinf(), 1e9, loss)), "a masked label costs infinity"),
    "NaN that spreads": (_after(lambda loss, z, *_: loss + 0 * z.detach().sum()), "a row of NaN is alone"),
    "a mean over all rows": (_place(total=lambda self, live, w: live.new_ones(live.shape).sum()), "an ignored row counts for nothing"),
    "ignored rows counted": (_place(live=lambda self, t, i: t == t, check=_no_check), "an ignored row counts for nothing"),
    "NaN times 0": (_after(_times_0), "an ignored row may hold NaN"),
    "a division by no rows": (_place(total=lambda self, live, w: 1 / int(live.sum()) and live.sum()), "all rows may be ignored"),
    "labels clamped": (_place(check=_no_check), "a label out of range is refused"),
    "a sum of nothing is NaN": (_after(lambda loss, z, *_: loss if len(z) else loss * torch.nan), "there may be no rows"),
    "no class beside the label": (_after(lambda loss, z, *_: loss if z.shape[1] > 1 else loss + 1e-3), "one class costs nothing"),
    "strides ignored": (_place(rows=_by_strides), "strides change nothing"),
    "classes last": (_place(movable=lambda self, z: z.reshape(len(z), *z.shape[:0:-1])), "further axes are rows"),
    "logits overwritten": (_after(_written), "arguments are not written to"),
    "noise": (_after(lambda loss, *_: loss * (1 + 1e-15 * torch.rand(()).double())), "a call is repeated to the bit"),
    "the maximum of the batch": (_place(rows=_global_max), "a row does not depend on its batch"),
    "a leak": (_after(_keep), "repeated calls keep no memory"),
    "a gradient that is scaled in place": (_gradient(_twice), "a second backward pass has the bits of the first"),
    "nothing for a W alone": (_frozen, "each input may be the only one that needs a gradient"),
    "an undefined upstream of 1": (_gradient(_undefined), "an undefined upstream gradient is 0"),
    "a batched upstream without its sign": (_gradient(_batched), "upstream gradients may be batched"),
    "wrong under torch.func": (_after(_if_transformed), "torch func grad is the gradient"),
    "a tangent of 0": (_after(lambda loss, *_: _NoForwardMode.apply(loss)), "forward mode is the derivative"),
    "a gradient that is constant": (_gradient(lambda ctx, up, dz: dz * _columns(up, dz)), "the second derivative is that of the loss"),
    "wrong under two transforms": (_after(_if_transformed), "forward over reverse is the second derivative"),
    "wrong in a batch": (_after(_if_batched), "vmap maps the loss"),
    "a wrong gradient in a batch": (_after(_if_batched), "vmap maps the gradient"),
    "wrong when compiled": (_after(_if_compiled), "a compiler changes nothing"),
    "constant weights": (_place(weight=lambda self, w: w.detach().double() + 0 * w), "weights and probabilities have gradients"),
    "weights without tangent": (_place(weight=lambda self, w: w.detach().double() + 0 * w), "weights and probabilities have forward mode"),
}  # fmt: skip
