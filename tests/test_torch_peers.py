"""Laws for faults that implementations of this layer have had. softxent.torch obeys each law, and an implementation with the fault breaks
it.

A law takes an implementation f(z, target, **options) and raises AssertionError if f breaks it. The implementation that breaks it is
PyTorch, SciPy or scikit-learn if one of them has the fault, and otherwise a few lines that have this fault only.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from cases import composite
from sklearn._loss import HalfMultinomialLoss
from tolerances import FLOAT32
from torch.autograd import forward_ad, grad

import softxent
from softxent import torch as st

INF, NAN = float("inf"), float("nan")
SURE = -np.log1p(np.exp(-20.0))  # the log-probability of the label if its logit is larger by 20


@pytest.fixture(autouse=True)
def torch_threads():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- helpers ----


# float64, by default
def near(got, want, what, rtol=1e-10, atol=1e-12):
    got, want = torch.as_tensor(got).detach().double(), torch.as_tensor(want).detach().double()
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    worse = ~((got - want).abs() <= atol + rtol * want.abs())
    assert not worse.any(), f"{what}: {got[worse][0]:.9g}, not {want[worse][0]:.9g}"


def same(got, want, what):
    assert torch.equal(got, want), f"{what}: other bits in {(got != want).sum()} of {got.numel()}"


def done(call):
    """Turn an error of a computation that the law requires into an AssertionError."""
    try:
        return call()
    except (ArithmeticError, RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"raised {type(error).__name__}: {error}") from error


def rows(n=6, classes=7, dtype=torch.float64):
    """Return rows of different kinds: small or large spread, most of the probability at the label or another class, logits far from 0."""
    z = torch.randn(n, classes, dtype=dtype) * torch.tensor([0.1, 6, 1, 1, 2, 3], dtype=dtype).repeat(n)[:n, None]
    t = torch.randint(0, classes, (n,))
    z[2, t[2]] += 9
    z[3, (t[3] + 1) % classes] += 9
    z[4] += 300
    return z, t


def agrees(f, z, target, upstream=1.0, **options):
    """Compare loss and gradient with the float64 reference, for a mean and a sum."""
    for reduction in ("mean", "sum"):
        x, w = z.clone().requires_grad_(), z.clone().double().requires_grad_()
        loss = done(lambda x=x, r=reduction: f(x, target, reduction=r, **options))
        want = composite(w, target.numpy(), reduction=reduction, **options).loss
        near(loss, want, "loss")
        near(grad(loss, x, torch.full_like(loss, upstream))[0], grad(want, w, torch.full_like(want, upstream))[0], "gradient")


# ---- laws: accuracy ----


def a_sure_prediction_keeps_its_loss(f):
    near(f(torch.tensor([[20.0, 0.0]]), torch.tensor([0]), reduction="sum"), -SURE, "loss", FLOAT32, 0)


def a_sure_prediction_keeps_its_gradient(f):
    z = torch.tensor([[20.0, 0.0]], requires_grad=True)
    near(grad(f(z, torch.tensor([0])), z)[0], [[np.expm1(SURE), -np.expm1(SURE)]], "gradient", FLOAT32, 0)


def a_common_offset_costs_no_digit(f):
    loss = f(torch.tensor([[1e4, 1e4 - 5, 1e4 - 8]]), torch.tensor([0]), reduction="sum")
    near(loss, np.log1p(np.exp(-5) + np.exp(-8)), "loss", 10 * FLOAT32, 0)


def a_tie_costs_log_2_however_large(f):
    near(f(torch.tensor([[1e8, 1e8]]), torch.tensor([0]), reduction="sum"), np.log(2), "loss", FLOAT32, 0)


def a_common_offset_costs_no_digit_of_the_gradient(f):
    z = torch.tensor([[1e4, 1e4 - 5, 1e4 - 8]], requires_grad=True)
    want = torch.softmax(z.detach().double(), 1) - torch.tensor([[0.0, 1, 0]])
    near(grad(f(z, torch.tensor([1])), z)[0], want, "gradient", 10 * FLOAT32, 0)


def a_wide_gap_is_a_large_loss(f):
    z = torch.tensor([[200.0, 0.0], [0.0, -200.0], [200.0, 200.0]], requires_grad=True)
    loss = f(z, torch.tensor([1, 1, 0]), reduction="sum")
    near(loss, 400 + np.log(2), "loss", FLOAT32)
    near(grad(loss, z)[0], [[1.0, -1], [1, -1], [-0.5, 0.5]], "gradient", FLOAT32)


def a_saturated_softcap_keeps_its_slope(f):
    z, t = torch.tensor([[60.0, 0.5, 1.0]], requires_grad=True), torch.tensor([1])
    w = z.detach().double().requires_grad_()
    want = grad(composite(w, t.numpy(), softcap=5.0).loss, w)[0]
    near(grad(f(z, t, softcap=5.0), z)[0], want, "gradient", 10 * FLOAT32, 0)


# ---- laws: memory, arguments are not written, bits ----


def no_probabilities_are_saved(f):
    """For reduction "none". For a mean the gradient itself is saved, which becomes z.grad."""
    z, t = torch.randn(16, 1000, requires_grad=True), torch.randint(0, 1000, (16,))
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.setdefault(x.data_ptr(), x), lambda x: x):
        f(z, t, reduction="none")
    beside = sum(x.numel() for at, x in saved.items() if at not in (z.data_ptr(), t.data_ptr()))
    assert beside <= 4 * 16, f"saved {beside} numbers for 16 rows"


def the_logits_are_left_alone(f):
    z, t = rows()
    x = z.clone().requires_grad_()
    version = x._version
    f(x, t).backward()
    same(x.detach(), z, "logits")
    assert x._version == version, "logits: written to"


def a_row_has_its_bits_in_any_batch(f):
    z, t = torch.randn(64, 5000) * 3, torch.randint(0, 5000, (64,))

    def found(first, last, threads=2, others=None):
        """Return the results of the last rows, at most 7."""
        torch.set_num_threads(threads)
        softxent.set_num_threads(threads)
        x, y = z[first:last].clone(), t[first:last]
        if others is not None:
            x[:-7] = others
        x.requires_grad_()
        result = f(x, y, reduction="none", return_logprobs=True)
        return [a[-7:] for a in (result.logprobs, result.loss, grad(result.loss.sum(), x)[0])]

    want = found(0, 64, threads=1)
    again = {
        "2 threads": found(0, 64),
        "a batch of 7": found(57, 64),
        "batches of 1": [torch.cat(a) for a in zip(*(found(i, i + 1) for i in range(57, 64)), strict=True)],
        "other company": found(0, 64, others=1e4),
    }
    for where, got in again.items():
        for what, a, b in zip(("log-probability", "loss", "gradient"), got, want, strict=True):
            same(a, b, f"{what} in {where}")


def a_row_has_its_bits_in_any_layout(f):
    z, t = torch.randn(64, 1000) * 3, torch.randint(0, 1000, (64,))
    same(f(z.T.contiguous()[None], t[None], reduction="none")[0], f(z, t, reduction="none"), "loss")


# ---- laws: gradients ----


def the_gradient_is_right_away_from_flat_logits(f):
    agrees(f, *rows())


def the_upstream_gradient_counts(f):
    agrees(f, *rows(), upstream=-2.5)


def each_row_has_its_own_upstream_gradient(f):
    z, t = rows()
    up = torch.linspace(-1, 2, 6, dtype=z.dtype)
    x = z.clone().requires_grad_()
    near(grad(f(x, t, reduction="none"), x, up)[0], up[:, None] * (z.softmax(1) - F.one_hot(t, 7)), "gradient")


def soft_targets_have_any_mass(f):
    agrees(f, rows()[0], torch.rand(6, 7, dtype=torch.float64), upstream=0.5)


def a_second_backward_is_like_the_first(f):
    z, t = rows()
    z.requires_grad_()
    loss = f(z, t)
    up = torch.full_like(loss, 2)
    first = grad(loss, z, up, retain_graph=True)[0]
    want = first.clone()
    near(grad(loss, z, up)[0], want, "gradient")


def a_tangent_goes_forward(f):
    z, t = rows()
    v, x = torch.randn_like(z), z.clone().requires_grad_()
    want = (grad(f(x, t), x)[0] * v).sum()
    with forward_ad.dual_level():
        tangent = done(lambda: forward_ad.unpack_dual(f(forward_ad.make_dual(z, v), t)).tangent)
        assert tangent is not None, "tangent: None"
        near(tangent, want, "tangent")


def the_hessian_product_of_the_square_is_whole(f):
    """H v of loss^2 is 2 <dz, v> dz + 2 loss H v. An implementation that treats the gradient as a constant omits the second term."""
    z, t = rows()
    v, found = torch.randn_like(z), []
    for g in (f, lambda z, t: composite(z, t.numpy()).loss):
        x = z.clone().requires_grad_()
        dz = grad(g(x, t) ** 2, x, create_graph=True)[0]
        found.append(done(lambda dz=dz, x=x: grad((dz * v).sum(), x)[0]))
    near(*found, "Hessian product")


def frozen_logits_leave_the_targets_their_gradient(f):
    z, u = rows()[0], torch.rand(6, 7, dtype=torch.float64, requires_grad=True)
    (du,) = done(lambda: grad(f(z, u), u, allow_unused=True))
    assert du is not None, "gradient of the targets: None"
    near(du, -z.log_softmax(1) / 6, "gradient of the targets")


def a_scaled_loss_keeps_small_gradients(f):
    """With loss scaling in float16, gradients below the range of the dtype are within it after multiplication by the scale."""
    z, t = torch.randn(64, 20000).half().requires_grad_(), torch.zeros(64, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = f(z, t)
    scale = 65536.0  # the initial scale of GradScaler
    want = z.detach().double().softmax(1) * scale / 64
    error = (grad(loss, z, torch.full_like(loss, scale))[0].double() - want)[:, 1:].norm() / want[:, 1:].norm()
    assert error < torch.finfo(torch.float16).eps, f"gradient: {error:.2g} off"


# ---- laws: options ----


def smoothing_is_spread_over_all_classes(f):
    z, t = rows(classes=8)
    agrees(f, z, t, label_smoothing=0.1)


def classes_that_fill_no_block_are_counted_once(f):
    for classes in (7, 13, 1001):
        agrees(f, *rows(classes=classes), label_smoothing=0.1)


def z_loss_has_its_gradient_where_the_prediction_is_sure(f):
    """At p = 0.999995 all entries of yhat - y are close to 0, but the gradient of the z-loss is not."""
    z = torch.zeros(4, 3, dtype=torch.float64) + 10
    z[:, 0] += np.log(2 * 0.999995 / 0.000005)
    agrees(f, z, torch.zeros(4, dtype=torch.int64), z_loss=1e-2)


def z_loss_softcap_and_smoothing_go_together(f):
    agrees(f, *rows(), upstream=-2.5, z_loss=0.01, softcap=5.0, label_smoothing=0.1)


def log_probability_and_entropy_come_from_one_call(f):
    """The objective of a policy in reinforcement learning: weighted log-probabilities plus a multiple of the entropy."""
    z, t = rows()
    ratio = torch.linspace(-1, 2, 6, dtype=z.dtype)
    x, w = z.clone().requires_grad_(), z.clone().requires_grad_()
    got = f(x, t, return_logprobs=True, return_entropy=True)
    logp = w.log_softmax(1)
    logprobs, entropy = logp.gather(1, t[:, None])[:, 0], -(logp.exp() * logp).sum(1)
    near(got.logprobs, logprobs, "log-probability")
    near(got.entropy, entropy, "entropy")
    mine, want = ((ratio * a).sum() + 0.3 * b.sum() for a, b in ((got.logprobs, got.entropy), (logprobs, entropy)))
    near(grad(mine, x)[0], grad(want, w)[0], "gradient")


# ---- laws: edges ----


def a_label_out_of_range_is_no_label(f):
    """It raises an error, or the loss is not finite."""
    z = rows()[0]
    for bad in (7, 8, -1, 10**9):
        try:
            loss = f(z, torch.tensor([0, 1, bad, 3, 4, 5]), reduction="none")
        except (ValueError, IndexError):
            continue
        assert loss[2].isnan(), f"label {bad}: loss {loss[2]:.9g}"


def rows_that_are_all_ignored_sum_to_0(f):
    """Their mean is 0 / 0, which is NaN as in torch. The gradient of the logits is 0."""
    for reduction, want in (("sum", 0.0), ("mean", NAN)):
        z = rows()[0].requires_grad_()
        loss = done(lambda z=z, r=reduction: f(z, torch.full((6,), -100), reduction=r))
        assert loss == want or (np.isnan(want) and loss.isnan()), f"{reduction}: {loss}, not {want}"
        near(grad(loss, z)[0], torch.zeros(6, 7), f"gradient of the {reduction}", 0, 0)


def an_ignored_row_is_not_read(f):
    z, t = rows()
    z[1], t[1] = NAN, -100
    z.requires_grad_()
    loss = f(z, t)
    (dz,) = grad(loss, z)
    near(dz[1], torch.zeros(7), "gradient of the ignored row", 0, 0)
    assert loss.isfinite() and dz.isfinite().all(), "NaN in other rows"


def ignored_rows_have_no_part_in_what_is_returned(f):
    z, t = rows()
    t = torch.where(torch.arange(6) % 2 == 0, z.argmax(1), -100)
    result = f(z, t, return_correct=True, return_lse=True)
    assert result.correct == 3, f"correct: {result.correct} of 3"
    near(result.lse, z.logsumexp(1).where(t != -100, 0), "lse")


def masked(z, t):
    """Set two classes of every row to -inf, but not the label. Returns the logits and which are masked."""
    off = torch.zeros_like(z, dtype=torch.bool).scatter_(1, torch.stack([t + 1, t + 3], 1) % z.shape[1], True)
    return z.masked_fill(off, -INF), off


def masked_classes_have_no_probability(f, target=lambda t: t):
    z, t = rows()
    z, off = masked(z, t)
    z.requires_grad_()
    loss = f(z, target(t))
    dz = grad(loss, z, create_graph=True)[0]
    near(loss, -z.log_softmax(1).gather(1, t[:, None]).mean(), "loss")
    near(dz[off], torch.zeros(12), "gradient of the masked", 0, 0)
    near(dz, (z.softmax(1) - F.one_hot(t, 7)) / 6, "gradient")
    h = grad(dz[:, 0].sum(), z)[0]
    assert h.isfinite().all(), "second derivative: not finite"


def masked_classes_with_a_soft_target_of_0_cost_nothing(f):
    masked_classes_have_no_probability(f, lambda t: F.one_hot(t, 7).double())


def masked_classes_leave_the_entropy_its_gradient(f):
    z, t = rows()
    z, off = masked(z, t)
    z.requires_grad_()
    entropy = f(z, t, return_entropy=True).entropy
    p = z.detach().softmax(1)
    logp = p.log().masked_fill(off, 0)
    want = -(p * logp).sum(1)
    near(entropy, want, "entropy")
    near(grad(entropy.sum(), z)[0], -p * (logp + want[:, None]), "gradient of the entropy")


# ---- implementations that break laws: libraries ----


def reduced(loss, reduction):
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def torch_composite(z, target, *, z_loss=0.0, softcap=None, return_entropy=False, return_logprobs=False, **options):
    """The options that torch does not have, in terms of torch's operations."""
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    loss = F.cross_entropy(z, target, **options)
    if z_loss:
        loss = loss + z_loss * reduced(z.logsumexp(1) ** 2, options.get("reduction"))
    if not (return_entropy or return_logprobs):
        return loss
    logp = z.log_softmax(1)
    return st.Result(loss, entropy=-(logp.exp() * logp).sum(1), logprobs=logp.gather(1, target[:, None])[:, 0])


def scipy_log_softmax(z, target, **_):
    return -torch.from_numpy(scipy.special.log_softmax(z.numpy(), axis=1))[torch.arange(len(z)), target].sum()


def scipy_logsumexp(z, target, **_):
    return (torch.from_numpy(scipy.special.logsumexp(z.numpy(), axis=1)) - z[torch.arange(len(z)), target]).sum()


def sklearn_loss(z, target, **_):
    return torch.from_numpy(HalfMultinomialLoss(n_classes=z.shape[1]).loss(target.numpy().astype(np.float32), z.numpy())).sum()


# ---- implementations that break laws: rules with one fault each ----


def exp_without_the_max(z, target, reduction="mean"):
    return reduced(z.exp().sum(1).log() - z.gather(1, target[:, None])[:, 0], reduction)


def log_of_the_probability(z, target, reduction="mean"):
    return reduced(-z.softmax(1).gather(1, target[:, None])[:, 0].log(), reduction)


def lse_in_parts(z, target, parts, reduction="mean", return_logprobs=False):
    m = z.amax(1, keepdim=True)
    s = sum(part.exp().sum(1) for part in (z - m).chunk(parts, 1))
    loss = s.log() - (z - m).gather(1, target[:, None])[:, 0]
    return st.Result(reduced(loss, reduction), logprobs=-loss) if return_logprobs else reduced(loss, reduction)


def rows_split_by_the_batch(z, target, **options):
    """The rows of a small batch are split into more parts, so that all cores are used."""
    return lse_in_parts(z, target, max(1, 64 // len(z)), **options)


def rows_split_by_the_threads(z, target, **options):
    return lse_in_parts(z, target, torch.get_num_threads(), **options)


class ByRule(torch.autograd.Function):
    """torch's loss with another gradient, rule(z, yhat, y, upstream, scale), where scale is the factor of the reduction."""

    @staticmethod
    def forward(ctx, z, target, rule, reduction):
        ctx.save_for_backward(z, target)
        ctx.rule, ctx.scale = rule, 1 / len(z) if reduction == "mean" else 1.0
        return F.cross_entropy(z, target, reduction=reduction)

    @staticmethod
    def backward(ctx, g):
        z, target = ctx.saved_tensors
        y = target if target.is_floating_point() else F.one_hot(target, z.shape[1])
        return ctx.rule(z, z.softmax(1), y, g, ctx.scale), None, None, None


def by(rule):
    def f(z, target, reduction="mean"):
        return ByRule.apply(z, target, rule, reduction)

    f.__name__ = rule.__name__
    return f


@by
def deaf_to_the_upstream(z, yhat, y, g, scale):
    return scale * (yhat - y)


@by
def one_upstream_for_all_rows(z, yhat, y, g, scale):
    return scale * g.flatten()[0] * (yhat - y)


@by
def right_for_flat_logits(z, yhat, y, g, scale):
    return scale * g * (torch.full_like(z, 1 / z.shape[1]) - y)


@by
def mass_taken_for_one(z, yhat, y, g, scale):
    return scale * g * (yhat - y)


@by
def lse_saved_without_its_maximum(z, yhat, y, g, scale):
    return scale * g * ((z - z.logsumexp(1, keepdim=True)).exp() - y)


class InForward(torch.autograd.Function):
    """The gradient is computed in the forward pass, in the dtype of the logits, and multiplied by the upstream gradient later."""

    @staticmethod
    def forward(ctx, z, target):
        ctx.dz = ((z.softmax(1) - F.one_hot(target, z.shape[1])) / len(z)).to(z.dtype)
        return F.cross_entropy(z, target)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.dz, None


class Rescaled(InForward):
    @staticmethod
    def backward(ctx, g):
        return ctx.dz.mul_(g), None


class Overwritten(InForward):
    @staticmethod
    def forward(ctx, z, target):
        loss = InForward.forward(ctx, z, target)
        z.data.copy_(ctx.dz)
        return loss


class WithoutTangent(InForward):
    @staticmethod
    def jvp(ctx, *_):
        return torch.zeros((), dtype=torch.float64)


def gradient_made_in_forward(z, target):
    return InForward.apply(z, target)


def gradient_rescaled_in_place(z, target):
    return Rescaled.apply(z, target)


def gradient_over_the_logits(z, target):
    return Overwritten.apply(z, target)


def tangent_of_zeros(z, target):
    return WithoutTangent.apply(z, target)


def targets_without_gradient(z, target):
    return torch_composite(z.clone().requires_grad_(), target.detach())


def filtered_by_the_prediction(z, target, **options):
    """Entries with a small yhat - y are skipped, whatever other terms they have."""
    small = (z.softmax(1) - F.one_hot(target, z.shape[1])).abs() < 2**-12  # the mistake itself
    return torch_composite(torch.where(small, z.detach(), z), target, **options)


def smoothed_over_a_shard(z, target, label_smoothing, reduction):
    """Each of two shards divides by its own number of classes."""
    sure = F.cross_entropy(z, target, reduction=reduction)
    flat = F.cross_entropy(z, target, reduction=reduction, label_smoothing=1.0)
    return (1 - label_smoothing) * sure + label_smoothing * 2 * flat


def padding_counted(z, target, **options):
    return torch_composite(F.pad(z, (0, -z.shape[1] % 8)), target, **options)


def z_loss_of_uncapped_logits(z, target, z_loss, reduction, **options):
    return torch_composite(z, target, reduction=reduction, **options) + z_loss * reduced(z.logsumexp(1) ** 2, reduction)


def softcap_without_its_slope(z, target, softcap, **options):
    return torch_composite(z + (softcap * torch.tanh(z / softcap) - z).detach(), target, **options)


def entropy_only_to_look_at(z, target, **options):
    result = torch_composite(z, target, **options)
    return result._replace(entropy=result.entropy.detach())


def no_such_label_no_loss(z, target, reduction):
    inside = (target >= 0) & (target < z.shape[1])
    return torch.where(inside, F.cross_entropy(z, target.where(inside, 0), reduction=reduction), 0)


def label_looked_up_in_memory(z, target, reduction):
    """The logit at the label is read at the address of the row plus the label, without a check."""
    at = torch.arange(len(z)) * z.shape[1] + target
    return reduced(z.logsumexp(1) - z.flatten()[at % z.numel()], reduction)


def mean_over_a_count(z, target, reduction):
    loss = F.cross_entropy(z, target, reduction="sum")
    return loss if reduction == "sum" else loss * (1 / (target != -100).sum().item())


def zero_times_infinity(z, target):
    return -(F.one_hot(target, z.shape[1]) * z.log_softmax(1)).sum(1).mean()


def label_of_minus_infinity(z, target, return_correct, return_lse, live_only=False):
    """The logit at the label and the largest logit of an ignored row are both -inf, so the row counts as correct."""
    live = target != -100
    label = z.gather(1, target.clamp(min=0)[:, None])[:, 0].where(live, -INF)
    correct = label >= z.amax(1).where(live, -INF)
    return st.Result(
        F.cross_entropy(z, target), lse=z.logsumexp(1).where(live, -INF), correct=(correct & live if live_only else correct).sum()
    )


def lse_of_minus_infinity(z, target, **options):
    return label_of_minus_infinity(z, target, live_only=True, **options)


# ---- the laws, each with an implementation that breaks it ----

TORCH = F.cross_entropy
BROKEN = [
    (a_sure_prediction_keeps_its_loss, TORCH, "loss: 0, not 2.06115"),
    (a_sure_prediction_keeps_its_loss, scipy_log_softmax, "loss: -?0, not 2.06115"),
    (a_sure_prediction_keeps_its_loss, scipy_logsumexp, "loss: 0, not 2.06115"),
    (a_sure_prediction_keeps_its_loss, sklearn_loss, "loss: 0, not 2.06115"),
    (a_sure_prediction_keeps_its_gradient, TORCH, "gradient: -?0, not -2.06115"),
    (a_common_offset_costs_no_digit, scipy_logsumexp, "loss: 0.0068.*, not 0.0070"),
    (a_common_offset_costs_no_digit, sklearn_loss, "loss: 0.0068.*, not 0.0070"),
    (a_tie_costs_log_2_however_large, scipy_logsumexp, "loss: 0, not 0.693"),
    (a_tie_costs_log_2_however_large, sklearn_loss, "loss: 0, not 0.693"),
    (a_common_offset_costs_no_digit_of_the_gradient, lse_saved_without_its_maximum, "gradient: "),
    (a_wide_gap_is_a_large_loss, exp_without_the_max, "loss: inf"),
    (a_wide_gap_is_a_large_loss, log_of_the_probability, "loss: inf"),
    (a_saturated_softcap_keeps_its_slope, torch_composite, "gradient: 0, not 1.4"),
    (no_probabilities_are_saved, TORCH, "saved 1600. numbers for 16 rows"),
    (the_logits_are_left_alone, gradient_over_the_logits, "logits: other bits in 42 of 42"),
    (a_row_has_its_bits_in_any_batch, rows_split_by_the_threads, ".* in 2 threads: other bits"),
    (a_row_has_its_bits_in_any_batch, rows_split_by_the_batch, ".* in a batch of 7: other bits"),
    (a_row_has_its_bits_in_any_layout, TORCH, "loss: other bits in .* of 64"),
    (the_gradient_is_right_away_from_flat_logits, right_for_flat_logits, "gradient: "),
    (the_upstream_gradient_counts, deaf_to_the_upstream, "gradient: "),
    (each_row_has_its_own_upstream_gradient, one_upstream_for_all_rows, "gradient: "),
    (soft_targets_have_any_mass, mass_taken_for_one, "gradient: "),
    (a_second_backward_is_like_the_first, gradient_rescaled_in_place, "gradient: "),
    (a_tangent_goes_forward, tangent_of_zeros, "tangent: 0, not"),
    (a_tangent_goes_forward, gradient_made_in_forward, "raised NotImplementedError: .*jvp"),
    (the_hessian_product_of_the_square_is_whole, gradient_made_in_forward, "Hessian product: "),
    (frozen_logits_leave_the_targets_their_gradient, targets_without_gradient, "gradient of the targets: None"),
    (a_scaled_loss_keeps_small_gradients, gradient_made_in_forward, "gradient: .* off"),
    (smoothing_is_spread_over_all_classes, smoothed_over_a_shard, "loss: "),
    (classes_that_fill_no_block_are_counted_once, padding_counted, "loss: "),
    (z_loss_has_its_gradient_where_the_prediction_is_sure, filtered_by_the_prediction, "gradient: 0, not 0.1"),
    (z_loss_softcap_and_smoothing_go_together, z_loss_of_uncapped_logits, "loss: "),
    (z_loss_softcap_and_smoothing_go_together, softcap_without_its_slope, "gradient: "),
    (log_probability_and_entropy_come_from_one_call, entropy_only_to_look_at, "gradient: "),
    (a_label_out_of_range_is_no_label, no_such_label_no_loss, "label 7: loss 0"),
    (a_label_out_of_range_is_no_label, label_looked_up_in_memory, "label 7: loss "),
    (rows_that_are_all_ignored_sum_to_0, mean_over_a_count, "raised ZeroDivisionError"),
    (an_ignored_row_is_not_read, TORCH, "gradient of the ignored row: nan, not 0"),
    (ignored_rows_have_no_part_in_what_is_returned, label_of_minus_infinity, "correct: 6 of 3"),
    (ignored_rows_have_no_part_in_what_is_returned, lse_of_minus_infinity, "lse: -inf, not 0"),
    (masked_classes_have_no_probability, zero_times_infinity, "loss: nan"),
    (masked_classes_with_a_soft_target_of_0_cost_nothing, TORCH, "loss: nan"),
    (masked_classes_leave_the_entropy_its_gradient, torch_composite, "entropy: nan"),
]
LAWS = list(dict.fromkeys(law for law, *_ in BROKEN))
TORCH_BREAKS = {law for law, faulty, _ in BROKEN if faulty in (TORCH, torch_composite)}
BEYOND_TORCH = {ignored_rows_have_no_part_in_what_is_returned}


def name(x):
    return getattr(x, "__name__", "")


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_softxent_obeys(law, backend):
    law(st.cross_entropy)


def by_log_softmax(z, target, reduction="mean"):
    return reduced(-st.log_softmax(z, 1).gather(1, target[:, None])[:, 0], reduction)


DIGITS = [
    a_sure_prediction_keeps_its_loss,
    a_sure_prediction_keeps_its_gradient,
    a_common_offset_costs_no_digit,
    a_tie_costs_log_2_however_large,
    a_common_offset_costs_no_digit_of_the_gradient,
    a_wide_gap_is_a_large_loss,
]
GRADIENTS = [the_upstream_gradient_counts, a_second_backward_is_like_the_first, a_tangent_goes_forward]


@pytest.mark.parametrize(
    "law", [*DIGITS, *GRADIENTS, the_hessian_product_of_the_square_is_whole, masked_classes_have_no_probability], ids=name
)
def test_log_softmax_obeys(law):
    law(by_log_softmax)


@pytest.mark.parametrize("law", [*DIGITS, *GRADIENTS, z_loss_has_its_gradient_where_the_prediction_is_sure], ids=name)
def test_softxent_obeys_when_compiled(law):
    torch._dynamo.reset()
    whole = law is not a_tangent_goes_forward  # operators of torch.library have no forward mode, which is computed outside the graph
    law(torch.compile(st.cross_entropy, backend="aot_eager", fullgraph=whole))


@pytest.mark.parametrize(("law", "faulty", "says"), BROKEN, ids=[f"{law.__name__}-{faulty.__name__}" for law, faulty, _ in BROKEN])
def test_the_fault_is_seen(law, faulty, says):
    with pytest.raises(AssertionError, match=f"^{says}"):
        law(faulty)


@pytest.mark.parametrize("law", [law for law in LAWS if law not in TORCH_BREAKS | BEYOND_TORCH], ids=name)
def test_a_law_asks_for_nothing_that_torch_could_not_give(law):
    law(torch_composite)


@pytest.mark.parametrize("faulty", [deaf_to_the_upstream, right_for_flat_logits, mass_taken_for_one], ids=name)
def test_upstream_1_and_flat_logits_see_no_fault(faulty):
    agrees(faulty, torch.zeros(6, 7, dtype=torch.float64), rows()[1])
