"""Every private interface of torch that softxent.torch uses does what private.py says.

A test that fails says what a new torch has changed.
"""

from __future__ import annotations

import ast
import pathlib

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import softxent.torch
from softxent.torch import private

FOLDER = pathlib.Path(softxent.torch.__file__).parent
PRIVATE = {"_C", "_functorch", "_current_level", "_is_zerotensor", "_version", "_make_wrapper_subclass", "_reduction", "_opoverload"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.name)
def test_private_interfaces_stand_in_one_file(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    modules = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    used = (names & PRIVATE) | {m for m in modules if m.split(".")[0] == "torch" and any(part[:1] == "_" for part in m.split("."))}
    assert path.name == "private.py" or not used - {"torch.utils._pytree"}


def seen_within(function, see):
    """What `see` returns where a transform calls the function."""
    found = []

    def f(x):
        found.append(see(x))
        return x.sin().sum()

    function(f)(torch.ones(2))
    return found[0]


def jvp(f):
    return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))


def test_transforms_are_seen():
    assert not private.transforming() and not private.forward_mode()
    assert seen_within(torch.func.grad, lambda _: private.transforming())
    assert seen_within(jvp, lambda _: (private.forward_mode(), private.forward_levels())) == (True, 1)
    assert seen_within(lambda f: jvp(lambda x: jvp(f)(x)[1]), lambda _: private.forward_levels()) == 2
    assert seen_within(torch.func.grad, lambda _: private.forward_levels()) == 0
    with forward_ad.dual_level():
        assert private.forward_mode() and not private.transforming()


def test_forward_mode_does_not_record_within_a_function_of_autograd():
    seen = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(private.forward_mode_records())
            return x.clone()

        @staticmethod
        def jvp(ctx, dx):
            return dx.clone()

    with forward_ad.dual_level():
        Identity.apply(forward_ad.make_dual(torch.ones(2), torch.ones(2)))
        assert private.forward_mode_records()
    assert seen == [False]


def test_tracers_are_seen():
    seen = []

    def f(x):
        seen.append((private.jit_tracing(), private.dispatching()))
        return x + 1

    torch.jit.trace(f, torch.ones(2), check_trace=False)
    torch.fx.experimental.proxy_tensor.make_fx(f)(torch.ones(2))
    assert seen == [(True, False), (False, True)]
    assert not private.jit_tracing() and not private.dispatching()


def test_tensors_of_a_transform_are_unwrapped():
    x = torch.ones(2)
    assert not private.is_wrapped(x)
    assert seen_within(torch.func.grad, lambda t: private.is_wrapped(t) and not private.is_wrapped(private.wrapped(t)))
    kept = []
    torch.func.grad(lambda t: (kept.append(t), t.sum())[1])(x)
    (alive,) = private.alive(kept)
    assert private.is_wrapped(kept[0]) and not private.is_wrapped(alive) and torch.equal(alive, x)


def test_a_function_of_autograd_is_called():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(x, by):
            return x * by

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.by = inputs[1]

        @staticmethod
        def backward(ctx, g):
            return g * ctx.by, None

    x = torch.ones(2, requires_grad=True)
    private.apply_unbound(Double, x, 2).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_batches_of_upstream_gradients_become_an_axis_and_batches_again():
    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            assert private.is_batch(g)
            level = private.level_of_batches()
            plain = private.without_batch(g, level)
            assert not private.is_batch(plain) and plain.shape == (3, 2)
            return private.with_batch(2 * plain, level)

    assert not private.is_batch(torch.ones(2))
    x = torch.ones(2, requires_grad=True)
    (found,) = torch.autograd.grad(Seen.apply(x), x, torch.eye(3)[:, :2], is_grads_batched=True)
    assert torch.equal(found, 2 * torch.eye(3)[:, :2])


def test_memory():
    assert private.is_zero(torch._efficientzerotensor(2)) and not private.is_zero(torch.zeros(2))
    x = torch.zeros(2)
    before = private.version(x)
    x.add_(1)
    assert private.version(x) == before + 1
    with torch.inference_mode():
        assert private.version(torch.zeros(2)) == 0


def test_the_legacy_arguments_of_torch():
    assert [private.legacy_reduction(*given, emit_warning=False) for given in ((False, None), (None, False), (True, True))] == [
        "sum",
        "none",
        "mean",
    ]


def test_a_subclass_has_a_shape_without_memory_and_can_be_ignored():
    class Lazy(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("called")

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("called")

    x = private.subclass_without_memory(Lazy, (2, 3), dtype=torch.float32)
    with private.without_subclasses():
        assert type(x) is Lazy and x.shape == (2, 3) and x.untyped_storage().nbytes() == 24


def test_an_operator_has_an_overload():
    from softxent.torch.operators import rows_operator

    assert private.overload(rows_operator) is torch.ops.softxent.rows.default


def test_a_group_is_found_by_its_name(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert private.process_group(dist.group.WORLD.group_name) is dist.group.WORLD
    finally:
        dist.destroy_process_group()
