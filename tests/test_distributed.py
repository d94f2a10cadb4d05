"""Laws of logits and heads that are divided among processes: the results are those of one process, whatever the division.

Each test runs in one to four processes (processes.py). The whole problem is made in every process from one seed, and each takes its part.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from unittest import mock

import numpy as np
import processes as workers
import pytest
from tolerances import FLOAT32, FLOAT64, HIGHER

torch = pytest.importorskip("torch")
import torch.autograd.forward_ad as forward_ad  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor.debug import CommDebugMode  # noqa: E402

import softxent.torch as st  # noqa: E402
from softxent.call import Call, Static  # noqa: E402
from softxent.kernels import IGNORED  # noqa: E402
from softxent.shards import BLOCK, Columns, evenly, merge_order, nodes  # noqa: E402
from softxent.torch import arguments, compute, distributed, linear, operators, sharding  # noqa: E402
from softxent.torch import processes as divided  # noqa: E402

WORLDS = [1, 2, 3, 4]
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.1},
    {"z_loss": 1e-2, "reduction": "sum"},
    {"softcap": 3.0, "temperature": 0.7},
    {"sample_weight": True, "weight": True, "label_smoothing": 0.2, "z_loss": 1e-3},
    {"reduction": "none"},
]
OUTPUTS = dict.fromkeys(("return_lse", "return_entropy", "return_logprobs", "return_correct", "return_predicted"), True)


@pytest.fixture(scope="module")
def processes():
    found = workers.Processes()
    yield found
    found.close()


# ---- problems ----


def problem(classes, dtype=torch.float64, rows=12, probable=False, peaked=False):
    """Logits, labels, weights of classes and rows, for all processes."""
    generator = torch.Generator().manual_seed(classes)
    z = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * (20 if peaked else 2)
    z[0, 0] = -torch.inf
    t = torch.randint(0, classes, (rows,), generator=generator)
    t[rows // 2] = -100
    if probable:
        t = torch.softmax(torch.randn(rows, classes, generator=generator, dtype=torch.float64), 1)
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5
    sample = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    return z.to(dtype), t if t.dtype == torch.int64 else t.to(dtype), weight, sample


def filled(options, weight, sample):
    given = {"weight": weight, "sample_weight": sample}
    return {name: given[name] if name in given else value for name, value in options.items()}


def uneven(classes, world):
    """Shards of different length, one of them empty if there are three or more."""
    ends = sorted([0, *[(k * k * classes) // (world * world) for k in range(1, world)], classes])
    if world > 2:
        ends[1] = 0
    return [Columns(a, b) for a, b in itertools.pairwise(ends)]


def loss_of(result):
    return result if isinstance(result, torch.Tensor) else result.loss


def upstream(loss):
    return torch.linspace(0.5, 2.0, loss.numel(), dtype=torch.float64).reshape(loss.shape).to(loss.dtype)


def scalar(found, whole=lambda t: t):
    """A sum of all outputs with different upstream gradients."""
    if isinstance(found, torch.Tensor):
        return (whole(found) * upstream(whole(found))).sum()
    total = (whole(found.loss) * upstream(whole(found.loss))).sum()
    for k, name in enumerate(("lse", "entropy", "logprobs")):
        t = whole(getattr(found, name))
        total = total + ((k + 1.5) * t * upstream(t)).sum()
    return total


def close(found, expected, tolerance=FLOAT64):
    assert found.shape == expected.shape
    scale = expected.detach().abs().nan_to_num(0, 0, 0).max() if expected.numel() else torch.tensor(0.0)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(scale), equal_nan=True)


def full(t):
    """The tensor of all processes. torch 2.6 fails at the gradient of full_tensor() where nothing is gathered on a mesh of two axes."""
    return t.to_local() if all(where.is_replicate() for where in t.placements) else t.full_tensor()


def same_everywhere(t, world):
    """Whether all processes have the same bits."""
    every = [torch.empty_like(t) for _ in range(world)]
    dist.all_gather(every, t.detach().contiguous(), group=workers.groups[world])
    return all(torch.equal(other.nan_to_num(7), every[0].nan_to_num(7)) for other in every)


# ---- given logits, a group ----


def _with_a_group(world, options, classes, probable, outputs):
    z, t, weight, sample = problem(classes, probable=probable)
    if probable or "label_smoothing" in options:
        z[0, 0] = 1  # else the loss is infinite
    shards = uneven(classes, world)
    mine = shards[dist.get_rank(workers.groups[world])]
    more = {k: v for k, v in OUTPUTS.items() if not (probable and k == "return_logprobs")} if outputs else {}
    leaves = {"z": z, "weight": weight, "sample": sample, **({"t": t} if probable else {})}
    whole = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    expected = st.cross_entropy(whole["z"], whole.get("t", t), **filled(options, whole["weight"], whole["sample"]), **more)
    here = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    own = {name: here[name][:, mine.first : mine.end] for name in here if name in ("z", "t")}
    found = st.cross_entropy(
        own["z"], own.get("t", t), **filled(options, here["weight"], here["sample"]), **more,
        group=workers.groups[world], first_class=mine.first,
    )  # fmt: skip
    close(loss_of(found), loss_of(expected))
    assert same_everywhere(loss_of(found), world)
    if more:
        for name in ("lse", "entropy", *([] if probable else ["logprobs"])):
            close(getattr(found, name), getattr(expected, name))
            assert same_everywhere(getattr(found, name), world)
        assert int(found.correct) == int(expected.correct) and torch.equal(found.predicted, expected.predicted)
        total = lambda f: sum((k + 1.5) * (x * upstream(x)).sum() for k, x in enumerate((f.loss, f.lse, f.entropy)))  # noqa: E731
    else:
        total = scalar
    total(expected).backward()
    total(found).backward()
    for name in leaves:
        if whole[name].grad is None:
            assert here[name].grad is None or not here[name].grad.any()
        elif name in ("z", "t"):
            close(here[name].grad[:, mine.first : mine.end], whole[name].grad[:, mine.first : mine.end])
        else:
            close(here[name].grad, whole[name].grad)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("outputs", [False, True], ids=["loss", "outputs"])
@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
def test_uneven_shards_have_the_losses_and_gradients_of_one_process(processes, world, outputs, probable):
    for options in OPTIONS:
        processes(_with_a_group, world, options, 37, probable, outputs)


def _bits(world, dtype, classes, shards, options):
    z, t, weight, sample = problem(classes, dtype, rows=5)
    mine = shards[dist.get_rank(workers.groups[world])]
    given = filled(options, weight.to(dtype), sample.to(dtype))
    whole, here = (x.clone().requires_grad_() for x in (z, z[:, mine.first : mine.end]))
    expected = st.cross_entropy(whole, t, **given, **OUTPUTS)
    found = st.cross_entropy(here, t, **given, **OUTPUTS, group=workers.groups[world], first_class=mine.first)
    for name in ("loss", "lse", "entropy", "logprobs"):
        assert torch.equal(getattr(found, name).nan_to_num(7), getattr(expected, name).nan_to_num(7)), name
    scalar(expected).backward()
    scalar(found).backward()
    assert torch.equal(here.grad, whole.grad[:, mine.first : mine.end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("blocks", "missing"), [((2, 2, 1), 777), ((1, 3), 4060), ((3, 2, 4), 0), ((0, 5, 1, 2), 3500), ((9,), 777)])
def test_shards_that_begin_at_multiples_of_4096_have_the_bits_of_one_process(processes, dtype, blocks, missing):
    ends = [0, *itertools.accumulate(BLOCK * b for b in blocks)]
    ends[-1] -= missing
    shards = [Columns(a, b) for a, b in itertools.pairwise(ends)]
    softcap = None if dtype == torch.float64 else 5.0  # tanh(z / c) of float64 logits is multiplied by c, and so rounded, for the merge
    transform = {"softcap": softcap, "temperature": 0.7}
    for options in ({"reduction": "none"}, {"reduction": "none", "label_smoothing": 0.1, "weight": True, **transform}):
        processes(_bits, len(shards), dtype, ends[-1], shards, options)


def _sums(world, last):
    z, t, *_ = problem(2 * BLOCK + last, torch.float32, rows=5)
    t = torch.where(t == -100, IGNORED, t)
    shards = divided.shards_of(workers.groups[world], [Columns(0, 2 * BLOCK), Columns(2 * BLOCK, 2 * BLOCK + last)])
    whole, expected = torch.empty(7, 5, dtype=torch.float64), [torch.empty(5, dtype=torch.float64) for _ in range(5)]
    compute.run("forward", Call(z, t, y=1.0), Static(axis=1), result=expected, parts=whole)
    own = z[:, shards.mine.first : shards.mine.end]
    result, parts, _ = compute.merged(Call(own, t, y=1.0), Static(axis=1, shards=shards), True)
    assert torch.equal(parts, whole)
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize("last", [1, 3, 40, 64, 65, 1000])
def test_sums_over_a_short_shard_have_the_bits_of_the_end_of_a_long_row(processes, last):
    processes(_sums, 2, last)


@pytest.mark.parametrize("seed", range(50))
def test_nodes_merge_as_the_blocks_of_a_whole_row(seed):
    """The merges of nodes and, within each of them, of its blocks are those of all blocks in one process."""

    def tree(low, high):
        half = 1 << max(0, (high - low - 1).bit_length() - 1)
        return low if high - low == 1 else (tree(low, low + half), tree(low + half, high))

    rng = np.random.default_rng(seed)
    blocks = int(rng.integers(1, 60))
    ends = [0, *sorted(BLOCK * int(b) for b in rng.integers(0, blocks, rng.integers(0, 6))), BLOCK * blocks - int(rng.integers(0, BLOCK))]
    ranges = [node for shard in nodes([Columns(a, b) for a, b in itertools.pairwise(ends)]) for node in shard]
    found = [tree(node.first // BLOCK, -(-node.end // BLOCK)) for node in ranges]
    for i, j in merge_order(ranges):
        found[i] = (found[i], found[j])
    assert found[0] == tree(0, blocks)


# ---- DTensors ----

PLACEMENTS = {
    "classes": lambda: [Shard(1)],
    "rows": lambda: [Shard(0)],
    "replicated": lambda: [Replicate()],
    "rows x classes": lambda: [Shard(0), Shard(1)],
    "classes x rows": lambda: [Shard(1), Shard(0)],
    "replicated x classes": lambda: [Replicate(), Shard(1)],
    "classes twice": lambda: [Shard(1), Shard(1)],
}


def _of_dtensors(world, placed, options, targets, probable):
    mesh = workers.meshes["2x2" if " x " in placed or "twice" in placed else world]
    placements = PLACEMENTS[placed]()
    z, t, weight, sample = problem(37, rows=10, probable=probable)
    if probable or "label_smoothing" in options:
        z[0, 0] = 1
    more = {k: v for k, v in OUTPUTS.items() if not (probable and k == "return_logprobs")}
    whole = [x.clone().requires_grad_() for x in (z, weight, sample)]
    expected = st.cross_entropy(whole[0], t, **filled(options, *whole[1:]), **more)
    replicated = [Replicate()] * mesh.ndim
    input = distribute_tensor(z, mesh, placements).requires_grad_()
    given = [weight.clone(), sample.clone()]
    if targets == "dtensors":
        t = distribute_tensor(t, mesh, placements if probable else replicated)
        given = [distribute_tensor(x, mesh, replicated) for x in given]
    given = [x.requires_grad_() for x in given]
    found = st.cross_entropy(input, t, **filled(options, *given), **more)
    close(full(found.loss), expected.loss)
    names = ("loss", "lse", "entropy", *([] if probable else ["logprobs"]))
    for name in names:
        assert isinstance(getattr(found, name), DTensor)
        close(full(getattr(found, name)), getattr(expected, name))
    assert int(full(found.correct)) == int(expected.correct) and torch.equal(full(found.predicted), expected.predicted)

    def total(result, whole):
        return sum((k + 1.5) * (whole(x) * upstream(whole(x))).sum() for k, x in enumerate(getattr(result, n) for n in names))

    total(expected, lambda x: x).backward()
    total(found, full).backward()
    assert input.grad.placements == input.placements
    close(full(input.grad), whole[0].grad)
    for x, y in zip(given, whole[1:], strict=True):
        if y.grad is not None:
            close(full(x.grad) if isinstance(x.grad, DTensor) else x.grad, y.grad)


@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize(
    ("world", "placed"),
    [*itertools.product([1, 2, 3, 4], ["classes", "rows"]), (2, "replicated"), *((4, name) for name in PLACEMENTS if " " in name)],
)
def test_dtensors_of_any_placement_have_the_losses_and_gradients_of_one_process(processes, world, placed, probable):
    for options in OPTIONS:
        processes(_of_dtensors, world, placed, options, "dtensors", probable)
    processes(_of_dtensors, world, placed, {"label_smoothing": 0.1, "reduction": "sum"}, "plain", probable)


def _bits_of_dtensors(world):
    classes = 4 * BLOCK * world if world != 3 else 3 * BLOCK
    for dtype in (torch.float32, torch.float64):
        z, t, *_ = problem(classes, dtype, rows=4)
        z[0, 0] = 1
        whole = z.clone().requires_grad_()
        expected = st.cross_entropy(whole, t, label_smoothing=0.1)
        input = distribute_tensor(z, workers.meshes[world], [Shard(1)]).requires_grad_()
        found = st.cross_entropy(input, t, label_smoothing=0.1)
        assert torch.equal(found.full_tensor(), expected)
        expected.backward()
        found.backward()  # an upstream gradient other than 1 multiplies the gradient of one process, and the coefficients of shards
        assert torch.equal(input.grad.full_tensor(), whole.grad)


@pytest.mark.parametrize("world", WORLDS)
def test_a_mean_over_divided_classes_has_the_bits_of_one_process(processes, world):
    processes(_bits_of_dtensors, world)


def _second_derivatives(world, options, masked):
    z, t, weight, sample = problem(23, rows=6)
    z[0, 0] = 0
    if masked:
        z[t >= 5, :5] = -torch.inf
    mine = (uneven if masked else evenly)(23, world)[dist.get_rank(workers.groups[world])]
    v = torch.linspace(-1, 1, z.numel(), dtype=torch.float64).reshape(z.shape)
    found, sums = [], []
    for part, group in ((slice(None), {}), (slice(mine.first, mine.end), {"group": workers.groups[world], "first_class": mine.first})):
        x = z[:, part].clone().requires_grad_()
        g = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        result = st.cross_entropy(x, t, **filled(options, weight, sample), **OUTPUTS, **group)
        upstreams = [g * (k + 1) * upstream(o) for k, o in enumerate((result.loss, result.lse, result.entropy, result.logprobs))]
        (dz,) = torch.autograd.grad((result.loss, result.lse, result.entropy, result.logprobs), x, upstreams, create_graph=True)
        hv, by_g = torch.autograd.grad(dz, (x, g), v[:, part])
        found.append(hv)
        sums.append(by_g)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x.detach(), v[:, part].contiguous())
            result = st.cross_entropy(dual, t, **filled(options, weight, sample), **OUTPUTS, **group)
            sums[-1] = [sums[-1], *(torch.autograd.forward_ad.unpack_dual(o).tangent for o in result[:4])]
    close(found[1], found[0][:, mine.first : mine.end], HIGHER)
    for one, other in zip(sums[1], sums[0], strict=True):
        close(one, other, HIGHER)


@pytest.mark.parametrize("masked", [False, True], ids=["finite", "masked"])
@pytest.mark.parametrize("world", WORLDS)
def test_second_derivatives_and_forward_mode_are_those_of_one_process(processes, world, masked):
    """Also where all classes of a process have probability 0 in a row, and where a process has none."""
    for options in (*OPTIONS, {"softcap": 4.0, "z_loss": 1e-2, "weight": True, "label_smoothing": 0.1}):
        if not (masked and "label_smoothing" in options):  # which gives a masked class a loss of inf
            processes(_second_derivatives, world, options, masked)


# ---- linear heads ----


def head(classes, rows=10, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(classes)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(rows, width), draw(classes, width), draw(classes)


def _linear_with_a_group(world, options, probable, frozen, outputs, budget):
    x, w, b = head(37)
    _, t, weight, sample = problem(37, rows=10, probable=probable)
    shards = uneven(37, world)
    mine = shards[dist.get_rank(workers.groups[world])]
    more = {k: v for k, v in OUTPUTS.items() if not (probable and k == "return_logprobs")} if outputs else {}
    given = filled(options, weight, sample)
    part = slice(mine.first, mine.end)
    whole = [y.clone().requires_grad_(name not in frozen) for name, y in zip("xwb", (x, w, b), strict=True)]
    here = [y.clone().requires_grad_(name not in frozen) for name, y in zip("xwb", (x, w[part], b[part]), strict=True)]
    expected = st.linear_cross_entropy(whole[0], whole[1], t, linear_bias=whole[2], **given, **more)
    found = st.linear_cross_entropy(
        here[0], here[1], t[:, part] if probable else t, linear_bias=here[2], budget=budget, **given, **more,
        group=workers.groups[world], first_class=mine.first,
    )  # fmt: skip
    close(loss_of(found), loss_of(expected))
    names = ("loss", "lse", "entropy", *([] if probable else ["logprobs"]))
    total = scalar
    if more:
        for name in names:
            close(getattr(found, name), getattr(expected, name))
        assert int(found.correct) == int(expected.correct) and torch.equal(found.predicted, expected.predicted)
        total = lambda f: sum((k + 1.5) * (y * upstream(y)).sum() for k, y in enumerate(getattr(f, n) for n in names))  # noqa: E731
    total(expected).backward(retain_graph=True)
    total(found).backward(retain_graph=True)
    for k, (mine_, whole_) in enumerate(zip(here, whole, strict=True)):
        if whole_.grad is None:
            assert mine_.grad is None
        else:
            close(mine_.grad, whole_.grad if k == 0 else whole_.grad[part])
    first = [y.grad.clone() for y in here if y.grad is not None]
    for y in here:
        y.grad = None
    total(found).backward()
    assert all(torch.equal(a, y.grad) for a, y in zip(first, [y for y in here if y.grad is not None], strict=True))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("outputs", [False, True], ids=["loss", "outputs"])
@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
def test_a_head_in_uneven_shards_has_the_losses_and_gradients_of_one_process(processes, world, outputs, probable):
    for options, frozen in zip(OPTIONS, ("", "x", "w", "b", "xb", "", "wb", ""), strict=True):
        processes(_linear_with_a_group, world, options, probable, frozen, outputs, 600)


def _teacher(world, options, budget):
    """The prediction of a teacher whose classes are divided as the student's are is the truth."""
    x, w, b = head(37)
    tx, tw, tb = (t.roll(1, 0) for t in head(37, width=4))
    mine = uneven(37, world)[dist.get_rank(workers.groups[world])]
    part, found = slice(mine.first, mine.end), []
    along = torch.linspace(-1, 1, w.numel(), dtype=torch.float64).reshape(w.shape)
    for cut, more in ((slice(None), {}), (part, {"group": workers.groups[world], "first_class": mine.first, "budget": budget})):
        leaves = [t.clone().requires_grad_() for t in (x, w[cut], b[cut])]
        teacher = (tx, tw[cut], tb[cut])
        loss = st.linear_cross_entropy(leaves[0], leaves[1], teacher, linear_bias=leaves[2], **options, **more)
        first = torch.autograd.grad(scalar(loss), leaves, create_graph=True)
        second = torch.autograd.grad(first[1], leaves, along[cut])
        found.append([loss, *first, *second])
    for k, (one, several) in enumerate(zip(*found, strict=True)):
        close(several, one if k in (0, 1, 4) else one[part], HIGHER)


@pytest.mark.parametrize("world", [2, 3])
def test_a_teacher_may_be_divided_too(processes, world):
    for options in ({}, {"label_smoothing": 0.1, "temperature": 2.0}, {"softcap": 3.0, "reduction": "none"}):
        processes(_teacher, world, options, 600)


def _linear_of_dtensors(world, placed, options, shift):
    x_placed, w_placed = {
        "replicated": ([Replicate()], [Shard(0)]),
        "sequence": ([Shard(0)], [Shard(0)]),
        "rows": ([Shard(0)], [Replicate()]),
        "rows x classes": ([Shard(0), Replicate()], [Replicate(), Shard(0)]),
        "rows x sequence": ([Shard(0), Shard(1)], [Replicate(), Shard(0)]),
        "width": ([Replicate()], [Shard(1)]),
    }[placed]
    mesh = workers.meshes["2x2" if " x " in placed else world]
    x, w, b = head(37, rows=12)
    x = x.reshape(4, 3, 6)
    _, t, weight, sample = problem(37, rows=12)
    t, sample = t.reshape(4, 3), sample.reshape(4, 3)
    whole = [y.clone().requires_grad_() for y in (x, w, b)]
    given = filled(options, weight, sample)
    expected = st.linear_cross_entropy(whole[0], whole[1], t, linear_bias=whole[2], shift=shift, **given)
    of_b = [where if where == Shard(0) else Replicate() for where in w_placed]
    here = [distribute_tensor(y, mesh, p).requires_grad_() for y, p in zip((x, w, b), (x_placed, w_placed, of_b), strict=True)]
    found = st.linear_cross_entropy(here[0], here[1], t, linear_bias=here[2], shift=shift, budget=900, **given)
    close(full(found), expected)
    scalar(expected).backward()
    scalar(found, full).backward()
    for k, (mine, one) in enumerate(zip(here, whole, strict=True)):
        if k:
            assert mine.grad.placements == mine.placements
        close(mine.grad.full_tensor(), one.grad)


@pytest.mark.parametrize(
    ("world", "placed"),
    [*itertools.product([1, 2, 3, 4], ["replicated", "sequence", "rows"]), (2, "width"), (4, "rows x classes"), (4, "rows x sequence")],
)
def test_a_head_of_dtensors_has_the_loss_and_gradients_of_one_process(processes, world, placed):
    for options in OPTIONS:
        processes(_linear_of_dtensors, world, placed, options, False)
    processes(_linear_of_dtensors, world, placed, {"label_smoothing": 0.1}, "sequence" not in placed or " x " not in placed)


# ---- communication, agreement ----


def _messages(world):
    z, t, *_ = problem(4096, torch.float32, rows=8)
    mine = evenly(4096, world)[dist.get_rank(workers.groups[world])]
    x = z[:, mine.first : mine.end].clone().requires_grad_()
    with CommDebugMode() as forward:
        loss = st.cross_entropy(x, t, label_smoothing=0.1, group=workers.groups[world])
    with CommDebugMode() as backward:
        loss.backward()
    input = distribute_tensor(z, workers.meshes[world], [Shard(1)]).requires_grad_()
    with CommDebugMode() as of_dtensor:
        found = st.cross_entropy(input, t)
    with CommDebugMode() as backward_of_dtensor:
        found.backward()
    weight = torch.rand(4096).requires_grad_()
    with CommDebugMode() as by_weight:
        torch.autograd.grad(st.cross_entropy(x, t, weight, group=workers.groups[world]), weight)
    (dz,) = torch.autograd.grad(st.cross_entropy(x, t, group=workers.groups[world]), x, create_graph=True)
    with CommDebugMode() as second:
        torch.autograd.grad(dz, x, torch.ones_like(x))
    return [mode.get_total_counts() for mode in (forward, backward, of_dtensor, backward_of_dtensor, by_weight, second)]


@pytest.mark.parametrize("world", [2, 4])
def test_a_reduction_takes_one_gather_and_the_first_backward_none(processes, world):
    """The gradient by class weights is not divided, and needs none either; a second derivative is one reduction."""
    for counts in processes(_messages, world):
        assert counts == [1, 0, 1, 0, 1, 1]


def _offset(world):
    z, t, *_ = problem(64, rows=6)
    z = (z * 64).round() / 64  # so that an offset of 2^40 rounds nothing
    z[0, 0] = 0
    mine = evenly(64, world)[dist.get_rank(workers.groups[world])]
    found = []
    for offset in (0.0, 2.0**40):
        x = (z + offset)[:, mine.first : mine.end].clone().requires_grad_()
        result = st.cross_entropy(x, t, reduction="none", group=workers.groups[world], return_entropy=True, return_logprobs=True)
        total = sum((k + 1) * y.sum() for k, y in enumerate((result.loss, result.entropy, result.logprobs)))
        (dz,) = torch.autograd.grad(total, x, create_graph=True)
        (hv,) = torch.autograd.grad(dz, x, z[:, mine.first : mine.end].contiguous(), create_graph=True)
        (third,) = torch.autograd.grad(hv, x, z[:, mine.first : mine.end].contiguous())
        found.append((result.loss, result.entropy, result.logprobs, dz, hv, third))
    for one, other in zip(*found, strict=True):
        close(other, one)


def test_a_common_offset_of_the_logits_costs_no_digit(processes):
    processes(_offset, 2)


def _disagree(world, how):
    rank = dist.get_rank(workers.groups[world])
    z, t, *_ = problem(16, rows=6)
    options = {"label_smoothing": 0.1 * rank} if how == "options" else {}
    if how == "rows" and rank:
        z, t = z[:5], t[:5]
    with pytest.raises(ValueError, match=r"cross_entropy: the arguments of rank 1 must be those of rank 0 .*; got "):
        st.cross_entropy(z[:, :4], t, group=workers.groups[world], check=True, **options)


@pytest.mark.parametrize("how", ["options", "rows"])
def test_arguments_that_differ_are_an_error_in_all_processes_if_check_is_set(processes, how):
    processes(_disagree, 2, how)


def _wrong(world):
    group, rank = workers.groups[world], dist.get_rank(workers.groups[world])
    z, t, *_ = problem(16, rows=6)
    with pytest.raises(ValueError, match=r"cross_entropy: first_class must be 8 on rank 1, where the classes of rank 0 end; got 9"):
        st.cross_entropy(z[:, :8], t, group=group, first_class=9 * rank)
    with pytest.raises(ValueError, match=r"cross_entropy: target must lie in \[0, 16\) or be ignore_index=-100; got 16"):
        st.cross_entropy(z[:, :8], t.masked_fill(t == t[0], 16), group=group)


def _not_supported(world):
    mesh, group = workers.meshes[world], workers.groups[world]
    z, t, *_ = problem(16, rows=6)
    z = distribute_tensor(z, mesh, [Shard(1)])
    with pytest.raises(TypeError, match=r"cross_entropy: input must be a torch.Tensor where a group is given; .*; got a DTensor"):
        st.cross_entropy(z, t, group=group)


def test_dtensors_are_refused_where_they_are_not_supported(processes):
    processes(_not_supported, 2)


def _second_derivative_of_a_dtensor(world, placement, function):
    z, t, *_ = problem(23, rows=6)
    z[0, 0] = 0
    losses = {
        "cross_entropy": lambda x: st.cross_entropy(x, t, z_loss=0.1),
        "log_softmax": lambda x: (st.log_softmax(x, 1) ** 2).sum(),
        "logsumexp": lambda x: (st.logsumexp(x, 1, keepdim=True) ** 2).sum(),
    }
    found = []
    for x in (z.clone().requires_grad_(), distribute_tensor(z, workers.meshes[world], [placement]).requires_grad_()):
        loss = losses[function](x)
        (dz,) = torch.autograd.grad(loss, x, create_graph=True)
        found.append((loss, dz, torch.autograd.grad((dz * dz).sum(), x)[0]))
    for one, several in zip(*found, strict=True):
        close(several.full_tensor(), one, HIGHER)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1)], ids=["rows", "classes"])
@pytest.mark.parametrize("function", ["cross_entropy", "log_softmax", "logsumexp"])
def test_functions_of_dtensors_have_first_and_second_derivatives(processes, world, placement, function):
    processes(_second_derivative_of_a_dtensor, world, placement, function)


def _log_softmax(world, dtype):
    z, *_ = problem(3 * 37, dtype, rows=37, peaked=True)
    z = z.reshape(37, 3, 37)
    input = distribute_tensor(z, workers.meshes[world], [Shard(1)])
    found = st.log_softmax(input, 1)
    assert found.placements == input.placements
    eps, wide = torch.finfo(dtype).eps, z.double()
    expected = st.log_softmax(wide, 1)
    assert (expected.abs() < eps / 2).any()  # where it is as precise as elsewhere
    torch.testing.assert_close(found.full_tensor(), expected.to(dtype), rtol=100 * eps, atol=0)
    torch.testing.assert_close(st.logsumexp(input, 1).full_tensor(), st.logsumexp(wide, 1).to(dtype), rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_log_softmax_over_divided_classes_is_that_of_one_process(processes, dtype):
    processes(_log_softmax, 3, dtype)


def derivatives(function, leaves, along, forward=True):
    """The first derivatives of a number by each leaf, and those of these along a vector, by each mode and mixture of modes."""
    at = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    v = [along[name] for name in at]

    def gradient(of, upstream=None, **how):
        return torch.autograd.grad(of, list(at.values()), upstream, allow_unused=True, materialize_grads=True, **how)

    found = {"reverse": gradient(function(**at), create_graph=True)}
    linear = [(g, d) for g, d in zip(found["reverse"], v, strict=True) if g.requires_grad]
    found["reverse twice"] = gradient(*zip(*linear, strict=True))
    if not forward:
        return found
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(leaf, along[name]) for name, leaf in leaves.items()}
        found["forward"] = [forward_ad.unpack_dual(function(**dual)).tangent]
        value = function(**{name: forward_ad.make_dual(leaf, along[name]) for name, leaf in at.items()})
        found["reverse of forward"] = gradient(forward_ad.unpack_dual(value).tangent, retain_graph=True)
        tangents = [forward_ad.unpack_dual(g).tangent for g in gradient(value)]
        found["forward of reverse"] = [torch.zeros_like(x) if t is None else t for x, t in zip(at.values(), tangents, strict=True)]
    return found


def number(result):
    """A number that all outputs have a part in. In torch 2.6, full_tensor() and to_local() of DTensors have no second derivative."""
    return sum((k + 1.5) * t.sin().sum() for k, t in enumerate(result[:3]))


def random_like(leaves):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for name, leaf in leaves.items()}


def agree(found, expected, names, cut=lambda name, t: t, tolerance=HIGHER):
    assert found.keys() == expected.keys()
    for mode, each in expected.items():
        for name, one, several in zip([""] if mode == "forward" else names, each, found[mode], strict=True):
            close(full(several) if isinstance(several, DTensor) else several, cut(name, one), tolerance)


ROW_OUTPUTS = {"return_lse": True, "return_entropy": True}


def mixtures_of_logits(world, options, probable, given, **group):
    """All derivatives of the outputs by z, and by the weights and probabilities that are among `given`."""
    mine = evenly(23, world)[dist.get_rank(workers.groups[world])]
    group = {"group": workers.groups[world], "first_class": mine.first} if group else {}

    def part(name, t):
        return t[:, mine.first : mine.end].contiguous() if group and name in ("input", "target") else t

    leaves = {name: part(name, t) for name, t in given.items() if t.is_floating_point()}
    labels = {} if probable else {"target": given["target"]}
    along = {name: part(name, t) for name, t in random_like({n: given[n] for n in leaves}).items()}
    f = lambda **at: number(st.cross_entropy(**at, **labels, **options, **ROW_OUTPUTS, **group))  # noqa: E731
    return derivatives(f, leaves, along), part, list(leaves)


def _mixtures(world, options, probable, names):
    z, t, weight, sample = problem(23, rows=6, probable=probable)
    z[0, 0] = 0
    given = {"input": z, "target": t, "weight": weight, "sample_weight": sample}
    given = {name: given[name] for name in ("input", "target", *names)}
    expected, *_ = mixtures_of_logits(world, options, probable, given)
    found, part, leaves = mixtures_of_logits(world, options, probable, given, group=True)
    agree(found, expected, leaves, part)


@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("world", [2, 3])
def test_logits_weights_and_probabilities_have_second_derivatives_in_every_mixture_of_modes(processes, world, probable):
    for names, options in (
        (("weight", "sample_weight"), {}),
        (("weight",), {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 4.0}),
        (("sample_weight",), {"label_smoothing": 0.1, "z_loss": 1e-2, "temperature": 0.7, "reduction": "none"}),
        ((), {"reduction": "sum"}),
    ):
        processes(_mixtures, world, options, probable, names)


def _limits(world):
    """At weights of 0 the derivatives are those at small weights; at NaN in ignored rows, those at finite logits."""
    for probable, options in itertools.product([False, True], [{}, {"label_smoothing": 0.1, "z_loss": 0.2, "softcap": 3.0}]):
        z, t, weight, sample = problem(23, rows=6, probable=probable)
        z[0, 0] = 0
        found = []
        for small, ignored in ((0.0, torch.nan), (1e-13, 0.0)):
            z[3] = z[3] if probable else ignored
            weight[5] = sample[1] = small
            given = {"input": z.clone(), "target": t, "weight": weight.clone(), "sample_weight": sample.clone()}
            each, _, leaves = mixtures_of_logits(world, options, probable, given, group=True)
            found.append(each)
        agree(*found, leaves, tolerance=1e-9)  # 10,000 times the small weights


def test_weights_of_0_and_nan_in_ignored_rows_leave_no_derivative_out(processes):
    processes(_limits, 2)


def third_derivatives(f, leaves, along):
    """Derivatives of a number of third order along three directions: by reverse mode alone, with forward mode, and by torch.func."""
    at, (u, v, w) = [x.clone().requires_grad_() for x in leaves], along

    def gradient(of, x):
        return torch.autograd.grad(of, x, create_graph=True, allow_unused=True, materialize_grads=True)

    def dot(gradients, direction):
        return sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    found = [*gradient(dot(gradient(dot(gradient(f(*at), at), u), at), v), at)]
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(x.clone().requires_grad_(), d) for x, d in zip(leaves, w, strict=True)]
        second = gradient(dot(gradient(f(*dual), dual), u), dual)
        found += [forward_ad.unpack_dual(g).tangent for g in second]
    every = tuple(range(len(leaves)))
    hv = lambda *x: torch.func.grad(lambda *x: dot(torch.func.grad(f, every)(*x), u), every)(*x)  # noqa: E731
    found += torch.func.grad(lambda *x: dot(hv(*x), v), every)(*leaves)
    return found


def _third(world, options, probable, linear):
    z, t, weight, _ = problem(23, rows=6, probable=probable)
    z[0, 0] = 0
    x, w, b = head(23, rows=6)
    mine = evenly(23, world)[dist.get_rank(workers.groups[world])]
    group = {"group": workers.groups[world], "first_class": mine.first}
    here = slice(mine.first, mine.end)

    def of(part, **more):
        target = t[:, part] if probable else t
        if linear:
            f = lambda x, w, b, weight: number(st.linear_cross_entropy(x, w, target, linear_bias=b, weight=weight, **options, **more))  # noqa: E731
            leaves = [x, w[part], b[part], weight]
        else:
            f = lambda z, weight: number(st.cross_entropy(z, target, weight, **options, **ROW_OUTPUTS, **more))  # noqa: E731
            leaves = [z[:, part].contiguous(), weight]
        return f, leaves

    def number(found):
        return sum((k + 1.5) * y.sin().sum() for k, y in enumerate((found,) if isinstance(found, torch.Tensor) else found[:3]))

    def cut(k, y):
        return (y[:, here] if k == 0 else y) if not linear else (y[here] if k in (1, 2) else y)

    f, leaves = of(slice(None))
    along = [[torch.linspace(-1, 1, x.numel(), dtype=x.dtype).roll(shift).reshape(x.shape) for x in leaves] for shift in (0, 3, 5)]
    expected = third_derivatives(f, leaves, along)
    f, leaves = of(here, **group)
    found = third_derivatives(f, leaves, [[cut(k, x).contiguous() for k, x in enumerate(each)] for each in along])
    for k, (one, several) in enumerate(zip(expected, found, strict=True)):
        close(several, cut(k % len(leaves), one), HIGHER)


@pytest.mark.parametrize("linear", [False, True], ids=["logits", "head"])
@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
def test_third_derivatives_are_those_of_one_process_in_every_mixture_of_modes(processes, probable, linear):
    for options in ({"label_smoothing": 0.1, "z_loss": 0.2}, {"softcap": 3.0, "temperature": 0.7, "reduction": "none"}):
        processes(_third, 2, options, probable, linear)


def _batches(world):
    """A batch of upstream gradients of logits is a loop; that of the input of a head, which would be a message for each, is refused."""
    z, t, *_ = problem(16, rows=6)
    z[0, 0] = 0
    mine = evenly(16, world)[dist.get_rank(workers.groups[world])]
    group, x = {"group": workers.groups[world]}, z[:, mine.first : mine.end].clone().requires_grad_()
    losses, each = st.cross_entropy(x, t, reduction="none", **group), torch.eye(6, dtype=torch.float64)
    (found,) = torch.autograd.grad(losses, x, each, is_grads_batched=True, retain_graph=True)
    close(found, torch.stack([torch.autograd.grad(losses, x, g, retain_graph=True)[0] for g in each]))
    many = torch.func.vmap(lambda x: st.cross_entropy(x, t, reduction="none", **group))(torch.stack([x, 2 * x]))
    close(many, torch.stack([st.cross_entropy(k * x, t, reduction="none", **group) for k in (1, 2)]))
    losses = st.linear_cross_entropy(x, torch.eye(8, 8, dtype=torch.float64), t, reduction="none", **group)
    with pytest.raises(ValueError, match=r"is_grads_batched"):
        torch.autograd.grad(losses, x, each, is_grads_batched=True)


def test_batches_of_upstream_gradients_and_of_logits(processes):
    processes(_batches, 2)


# ---- derivatives of heads, of DTensors, and of one output alone


def _head_derivatives(world, options, probable, names, divided):
    x, w, b = head(23)
    _, t, weight, sample = problem(23, rows=10, probable=probable)
    mine = evenly(23, world)[dist.get_rank(workers.groups[world])]
    given = {"input": x, "linear_weight": w, "linear_bias": b, "weight": weight, "sample_weight": sample, "target": t}
    given = {name: t for name, t in given.items() if name in ("target", *names)}
    group = {"group": workers.groups[world], "first_class": mine.first} if divided == "group" else {}
    fixed = {"input": x, "linear_weight": w, "linear_bias": b, "target": t}
    options = {**options, **(ROW_OUTPUTS if options.get("reduction") == "none" else {})}

    def part(name, t):
        if name in ("linear_weight", "linear_bias"):
            t = t[mine.first : mine.end].contiguous() if group else t
        if name == "target" and probable and group:
            t = t[:, mine.first : mine.end].contiguous()
        return distribute_tensor(t, workers.meshes[world], [Shard(0)]) if divided == "dtensors" else t

    def of(cut, more):
        leaves = {name: cut(name, t) for name, t in given.items() if t.is_floating_point()}
        along = {name: cut(name, t) for name, t in random_like({n: given[n] for n in leaves}).items()}
        rest = {name: cut(name, t) for name, t in fixed.items() if name not in leaves}

        def loss(**at):
            found = st.linear_cross_entropy(**at, **rest, **options, **more)
            return number(found if isinstance(found, tuple) else (found,))

        return derivatives(loss, leaves, along, forward=divided == "group"), list(leaves)

    (expected, leaves), (found, _) = of(lambda _, t: t, {}), of(part, {**group, "budget": 600})
    agree(found, expected, leaves, part if group else lambda _, t: t)


@pytest.mark.parametrize("divided", ["group", "dtensors"])
@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
def test_a_head_has_first_and_second_derivatives_by_every_argument(processes, probable, divided):
    all_of_it = ("input", "linear_weight", "linear_bias")
    for names, options in (
        (all_of_it, {}),
        ((*all_of_it, "weight", "sample_weight"), {"label_smoothing": 0.1, "z_loss": 0.2, "softcap": 3.0, "reduction": "none"}),
        (("weight",), {"label_smoothing": 0.1}),
        (("sample_weight",), {"label_smoothing": 0.1, "reduction": "sum"}),
    ):
        processes(_head_derivatives, 2, options, probable, names, divided)


def _one_output(world, placement, probable):
    """Each output alone has the derivatives of one process, although the gradients of the others are not defined."""
    mesh = workers.meshes[world]
    z, t, weight, sample = problem(9, rows=6, probable=probable)
    z[0, 0] = 0
    names = ["loss", "lse", "entropy", *([] if probable else ["logprobs"])]
    leaves = {"input": z, "weight": weight, "sample_weight": sample, **({"target": t} if probable else {})}
    along = random_like(leaves)
    divide = lambda name, t: distribute_tensor(t, mesh, [placement if name in ("input", "target") else Replicate()])  # noqa: E731

    def of(output):
        def function(**at):
            result = getattr(
                st.cross_entropy(**{"target": t, **at}, label_smoothing=0.1, **dict.fromkeys(map(flag, names[1:]), True)), output
            )
            return number((result,))

        return function

    flag = "return_{}".format
    for output in names:
        expected = derivatives(of(output), leaves, along, forward=False)
        here = {name: divide(name, leaf) for name, leaf in leaves.items()}
        found = derivatives(of(output), here, {name: divide(name, v) for name, v in along.items()}, forward=False)
        agree(found, expected, list(leaves))


@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=["rows", "classes", "replicated"])
def test_each_output_of_dtensors_alone_has_its_derivatives(processes, placement, probable):
    processes(_one_output, 2, placement, probable)


def _placements(world):
    """Logits, labels, and weights that broadcast, of any placement."""
    mesh, generator = workers.meshes[world], torch.Generator().manual_seed(0)
    z, t = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64), torch.randint(0, 6, (4, 3), generator=generator)
    weight = torch.rand(6, generator=generator, dtype=torch.float64)

    def placed(x, placement):
        if placement.is_partial():
            return DTensor.from_local(x / world if x.is_floating_point() else x * (dist.get_rank() == 0), mesh, [placement])
        return distribute_tensor(x, mesh, [placement])

    def every(x):
        return [Replicate(), Partial(), *map(Shard, range(x.ndim))]

    for shape in ((), (1,), (3,), (1, 3), (4, 1), (1, 1), (4, 3)):
        sample = torch.rand(shape, generator=generator, dtype=torch.float64)
        whole = [x.clone().requires_grad_() for x in (z, weight, sample)]
        reduction = "mean" if sample.numel() > 1 else "sum"  # a mean does not depend on one weight of all rows
        expected = st.cross_entropy(whole[0], t, whole[1], sample_weight=whole[2], reduction=reduction)
        expected.backward()
        of_each = [every(x) for x in (z, t, weight, sample)]
        several = list(itertools.product(of_each[0], of_each[3]))
        for k, (of_z, of_sample) in enumerate(several):
            of_t, of_weight = of_each[1][k % len(of_each[1])], of_each[2][k % len(of_each[2])]
            here = [placed(x, p).requires_grad_() for x, p in ((z, of_z), (weight, of_weight), (sample, of_sample))]
            found = st.cross_entropy(here[0], placed(t, of_t), here[1], sample_weight=here[2], reduction=reduction)
            close(full(found), expected)
            found.backward()
            for mine, one in zip(here, whole, strict=True):
                close(full(mine.grad), one.grad)


def test_arguments_that_broadcast_may_have_any_placement(processes):
    processes(_placements, 2)


def _one_pass(world):
    z, t, weight, _ = problem(16)
    input = distribute_tensor(z, workers.meshes[world], [Shard(0)]).requires_grad_()
    with mock.patch.object(compute, "run", wraps=compute.run) as call:
        loss = st.cross_entropy(input, t, weight, label_smoothing=0.1)
        loss.backward()
    assert [each.args[0] for each in call.call_args_list] == ["fused"]


def test_the_gradient_of_divided_rows_is_computed_with_the_loss(processes):
    processes(_one_pass, 3)


def _operators(world):
    mesh, one, zero = workers.meshes[world], torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    z, t, weight, _ = problem(6, rows=6)
    z, t = z.reshape(3, 2, 6).movedim(1, 2).contiguous(), torch.where(t == -100, IGNORED, t).reshape(3, 2)
    whole = z.clone().requires_grad_()
    numbers = (one, zero, zero, weight)
    nothing, plain = [None] * 5, (1.0, math.inf, 1, "", [], 0)  # upstream gradients and sums; what is static

    def called(z, label, y, r, q, off):
        return torch.ops.softxent.rows(z, label, off, None, None, y, r, q, *nothing, *plain, 5)

    expected = called(whole, t, *numbers)
    expected[0].nan_to_num(0, 0, 0).sum().backward()
    sharding.register()
    numbers = [distribute_tensor(x, mesh, [Replicate()]) for x in numbers]
    for placement, rows, gathers in (
        (Shard(0), Shard(0), 0),
        (Shard(2), Shard(1), 0),
        (Replicate(), Replicate(), 0),
        (Shard(1), Replicate(), 1),
    ):
        input = distribute_tensor(z, mesh, [placement]).requires_grad_()
        label = distribute_tensor(t, mesh, [rows])
        with CommDebugMode() as messages:
            found = called(input, label, *numbers)
        assert messages.get_total_counts() == gathers
        found[0].nan_to_num(0, 0, 0).sum().backward()
        for one, several in zip((*expected[:5], whole.grad), (*found[:5], input.grad), strict=True):
            assert torch.equal(several.full_tensor(), one)
        assert found[0].placements == (rows,)


def test_operators_take_dtensors(processes):
    processes(_operators, 2)


def _compiled(world, placement):
    z, t, *_ = problem(37, torch.float32)
    z[0, 0] = 1
    whole = z.clone().requires_grad_()
    expected = st.cross_entropy(whole, t, label_smoothing=0.1)
    expected.backward()
    input = distribute_tensor(z, workers.meshes[world], [placement]).requires_grad_()
    found = torch.compile(lambda x: st.cross_entropy(x, t, label_smoothing=0.1), backend="aot_eager")(input)
    found.backward()
    close(found.full_tensor(), expected, FLOAT32)
    close(input.grad.full_tensor(), whole.grad, FLOAT32)


@pytest.mark.parametrize("placement", [Shard(0), Shard(1)], ids=["rows", "classes"])
def test_dtensors_under_compile(processes, placement):
    processes(_compiled, 2, placement)


def _compiled_with_a_group(world, probable, options):
    z, t, weight, _ = problem(37, probable=probable)
    z[0, 0] = 1
    mine = evenly(37, world)[dist.get_rank(workers.groups[world])]
    t = t[:, mine.first : mine.end].contiguous() if probable else t

    def loss(z, weight):
        return scalar(st.cross_entropy(z, t, weight, group=workers.groups[world], first_class=mine.first, **options))

    found = []
    for f in (loss, torch.compile(loss, backend="aot_eager")):
        leaves = [y.clone().requires_grad_() for y in (z[:, mine.first : mine.end], weight)]
        value = f(*leaves)
        value.backward()
        found.append([value, *(y.grad for y in leaves)])
    for one, other in zip(*found, strict=True):
        close(other, one)


@pytest.mark.parametrize("probable", [False, True], ids=["labels", "probabilities"])
def test_divided_logits_under_compile(processes, probable):
    options = {"label_smoothing": 0.1, "z_loss": 0.1}
    for given in ({}, options if probable else {**options, **OUTPUTS}):
        processes(_compiled_with_a_group, 2, probable, given)


def _compiled_head(world):
    x, w, _ = head(16)
    t, mine = torch.arange(10), evenly(16, world)[dist.get_rank()]
    whole, here = [x.clone().requires_grad_() for _ in range(2)], w[mine.first : mine.end]
    expected = st.linear_cross_entropy(whole[0], w, t)
    found = torch.compile(lambda x: st.linear_cross_entropy(x, here, t, group=workers.groups[world]), backend="aot_eager")(whole[1])
    close(found, expected)
    for loss in (expected, found):
        loss.backward()
    close(whole[1].grad, whole[0].grad)


def test_a_divided_head_under_compile(processes):
    processes(_compiled_head, 2)


def test_errors_say_what_to_change(processes):
    processes(_wrong, 2)


def _nan_in_one_process(world):
    z, t, *_ = problem(16, rows=6)
    t = t.clamp(min=0)
    mine = evenly(16, world)[dist.get_rank(workers.groups[world])]
    z[1, 15] = torch.nan
    x = z[:, mine.first : mine.end].clone().requires_grad_()
    losses = st.cross_entropy(x, t, reduction="none", group=workers.groups[world])
    losses.sum().backward()
    assert losses.isnan().tolist() == [k == 1 for k in range(6)]
    assert x.grad.isnan().any(1).tolist() == [k == 1 for k in range(6)]


@pytest.mark.parametrize("world", [2, 4])
def test_nan_of_one_process_stays_in_its_row(processes, world):
    processes(_nan_in_one_process, world)


# ---- faults, and many processes ----

DIES = """
import datetime, sys, torch, torch.distributed as dist
import softxent.torch as st
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=10))
dist.barrier()
if rank:
    import os
    os._exit(3)
try:
    st.cross_entropy(torch.randn(4, 8), torch.arange(4), group=dist.group.WORLD)
except RuntimeError as error:
    print(error)
"""


def test_a_process_that_dies_is_an_error_in_the_others(tmp_path):
    command = [sys.executable, "-c", DIES]
    children = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=-1, stderr=-1, text=True) for rank in (0, 1)]
    out, errors = children[0].communicate(timeout=60)
    assert children[1].wait(60) == 3
    assert out.startswith("softxent.torch: the other processes must take part in the call"), errors


FAKE = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore
import softxent.torch as st
import softxent.torch.processes as operators
dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=64)
mesh = init_device_mesh("cpu", (64,))
local = torch.randn(16, 2048)
z = DTensor.from_local(local, mesh, [Shard(1)], run_check=False).requires_grad_()
with CommDebugMode() as counted:
    st.cross_entropy(z, torch.randint(0, 64 * 2048, (16,)), label_smoothing=0.1).backward()
w = DTensor.from_local(torch.randn(2048, 8), mesh, [Shard(0)], run_check=False).requires_grad_()
x = torch.randn(16, 8, requires_grad=True)
gather, gathers = operators._all_gather, []  # a mode that counts would change how the head is computed
operators._all_gather = lambda *given, **options: gathers.append(given[1].numel()) or gather(*given, **options)
st.linear_cross_entropy(x, w, torch.randint(0, 64 * 2048, (16,))).backward()
print(z.grad.to_local().shape, w.grad.placements, x.grad.shape, counted.get_total_counts(), gathers)
"""


def test_64_processes_of_a_fake_group():
    """The code runs as one of 64 processes. Logits and a head take one gather, of seven numbers a row."""
    done = subprocess.run([sys.executable, "-c", FAKE], capture_output=True, text=True, timeout=120)
    expected = "torch.Size([16, 2048]) (Shard(dim=0),) torch.Size([16, 8]) 1 [112]"
    assert done.stdout.strip() == expected, done.stderr


# ---- the faults of other libraries ----


def _smoothing_of_a_shard(world):
    """Megatron: label smoothing is divided by the classes of the shard."""
    right = arguments.truth_of

    def wrong(*given):
        found, *others = right(*given)
        return (found._replace(off=found.off * world) if given[-1] is not None and len(given) == 8 else found), *others

    return mock.patch.object(arguments, "truth_of", wrong)


def _mean_of_means(world):
    """F.cross_entropy of a DTensor: the mean of the means of the processes."""

    def wrong(losses, reduction, total, dtype, layout):
        return distributed.whole_sum(distributed.ordered_sum(losses) / total / world, layout).to(dtype)

    return mock.patch.object(distributed, "reduced", wrong)


def _upstream_of_one(world):
    """torchtitan: the upstream gradient is taken as 1."""
    right = operators.gradient
    return mock.patch.object(operators, "gradient", lambda call, *given: right(call._replace(g=torch.ones_like(call.g)), *given))


def _ignored_rows_count(world):
    """A mean is divided by all rows."""
    right = arguments.truth_of

    def wrong(fn, z, *others):
        found, total, ignored = right(fn, z, *others)
        return found, None if total is None else torch.tensor(float(z.shape[0]), dtype=torch.float64), ignored

    return mock.patch.object(arguments, "truth_of", wrong)


def _labels_of_the_shard(world):
    """Labels are taken as columns of the process."""
    return mock.patch.object(divided, "local_labels", lambda label, mine: label)


def _no_scatter(world):
    """The gradient of the input of a head is that of the classes of one process."""
    return mock.patch.object(linear, "same_input", lambda x, shards: x)


def _with_a_fault(world, fault, law, *given):
    with fault(world):
        try:
            law(world, *given)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(
    ("fault", "law", "given"),
    [
        (_smoothing_of_a_shard, _with_a_group, ({"label_smoothing": 0.1}, 37, False, False)),
        (_mean_of_means, _of_dtensors, ("rows", {}, "dtensors", False)),
        (_upstream_of_one, _with_a_group, ({"reduction": "sum"}, 37, False, False)),
        (_ignored_rows_count, _with_a_group, ({}, 37, False, False)),
        (_labels_of_the_shard, _with_a_group, ({}, 37, False, False)),
        (_no_scatter, _linear_with_a_group, ({}, False, "", False, 600)),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_the_laws_see_the_faults_of_other_libraries(processes, fault, law, given):
    assert any(processes(_with_a_fault, 2, fault, law, *given))


# ---- what is refused ----


def _refused(world):
    mesh = workers.meshes[world]
    z = distribute_tensor(torch.randn(2, 4), mesh, [Shard(1)])
    with pytest.raises(TypeError, match="cross_entropy: class_weight"):
        st.cross_entropy(z, torch.tensor([0, 1]), class_weight=torch.ones(4))
    x, w = (DTensor.from_local(torch.randn(4, 3), mesh, [Replicate()], run_check=False).requires_grad_() for _ in range(2))
    divided = w.redistribute(placements=[Shard(0)])
    loss = st.linear_cross_entropy(x, divided, torch.tensor([0, 1, 2, 3]), reduction="none").full_tensor()
    with pytest.raises(ValueError, match="is_grads_batched must be False where tensors are divided"):
        torch.autograd.grad(loss, w, torch.ones(2, 4), is_grads_batched=True)


def test_what_torch_would_compute_wrongly_or_ignore_is_refused(processes):
    processes(_refused, 2)
