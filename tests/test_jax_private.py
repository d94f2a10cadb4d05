"""The private and unstable interfaces of JAX do what softxent.jax relies on, and stand in jax/private.py alone. A test says what broke."""

from __future__ import annotations

import pathlib
import re
from functools import partial

import numpy as np
import pytest

import softxent

jax = pytest.importorskip("jax")  # a wheel is tested without it
import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from softxent.jax import private  # noqa: E402

seen: list[tuple[tuple[str, ...], bool, bool]] = []  # of each lowering: its platforms, several devices, and whether z may be overwritten


def _lowered(context, z, w):
    seen.append((private.platforms(context), private.several_devices(context), private.may_be_overwritten(z)))
    return private.lowered_function(lambda z, w: z * w, False, context, (z, w))


def _batched(arrays, dims):
    moved = [jnp.moveaxis(a, d, 0) if d is not None else jnp.broadcast_to(a, (2, *a.shape)) for a, d in zip(arrays, dims, strict=True)]
    return product_p.bind(*moved), 0


def _along(operands, tangents):
    z, w = operands
    dz, dw = tangents
    terms = [product_p.bind(*each) for each in ((dz, w), (z, dw)) if None not in each]
    return product_p.bind(z, w), sum(terms[1:], terms[0]) if terms else None


def _transpose(cotangents, operands):
    types = [private.unknown(x) for x in operands]
    mine = types.index(next(t for t in types if t is not None))
    assert types[mine].shape == (2,)
    back = product_p.bind(cotangents[0], operands[1 - mine])
    return [back if k == mine else None for k in range(2)]


product_p = private.primitive("test_product", False, lambda z, w: private.result(z, z.ndim, z.dtype, frozenset()), _lowered, _batched)
product_p.def_impl(jax.jit(product_p.bind))
private.differentiated(product_p, _along)
private.transposed(product_p, _transpose)
Z, W = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])


def test_a_primitive_has_derivatives_in_every_mode_and_order_and_vmap():
    f = lambda z, w: product_p.bind(z, w).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(f, (0, 1))(Z, W), (W, Z))
    np.testing.assert_array_equal(jax.jvp(f, (Z, W), (W, Z))[1], (W * W + Z * Z).sum())
    np.testing.assert_array_equal(jax.jit(jax.jacfwd(jax.grad(f), 1))(Z, W), np.eye(2))
    np.testing.assert_array_equal(jax.vmap(product_p.bind, (0, None))(jnp.stack([Z, W]), W), [Z * W, W * W])
    assert jax.grad(lambda z: product_p.bind(jax.lax.stop_gradient(z), W).sum())(Z).tolist() == [0, 0]  # a tangent that is None


def test_a_lowering_knows_the_platform_and_is_not_cached():
    f = jax.jit(lambda z: product_p.bind(z, W) + product_p.bind(z, W + 1))
    for platform in ("cpu", "cuda"):
        seen.clear()
        f.trace(Z).lower(lowering_platforms=(platform,))
        assert [each[:2] for each in seen] == [((platform,), False)] * 2


@pytest.mark.parametrize(
    "function, how, may",
    [
        (lambda z: product_p.bind(z, W), {}, False),
        (lambda z: product_p.bind(z, W), {"donate_argnums": 0}, True),
        (lambda z: product_p.bind(z + 1, W), {}, True),
        (lambda z: product_p.bind(jnp.moveaxis(z.reshape(1, 2), 0, 1).reshape(2), W), {}, False),
        (lambda z: jax.lax.scan(lambda c, x: (c, product_p.bind(x, W)), 0, jnp.stack([z, z]))[1], {}, True),
    ],
    ids=["given", "donated", "computed", "moved", "of_a_loop"],
)
def test_it_is_seen_whether_logits_are_needed_by_the_caller(function, how, may):
    seen.clear()
    jax.jit(function, **how).lower(Z)
    assert [each[2] for each in seen] == [may]


def test_the_arguments_of_a_custom_jvp_that_are_not_differentiated_are_symbolic_zeros():
    @jax.custom_jvp
    def f(x, y):
        return x * y

    f.defjvp(
        lambda primals, tangents: (f(*primals), jnp.float32(sum(not isinstance(t, private.SymbolicZero) for t in tangents))),
        symbolic_zeros=True,
    )
    assert [jax.jvp(lambda x: f(x, 2.0), (1.0,), (1.0,))[1], jax.jvp(lambda x: f(x, x), (1.0,), (1.0,))[1]] == [1, 2]


def test_types_say_over_which_axes_of_a_shard_map_an_array_varies_and_how_it_is_sharded():
    mesh, name = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,)), PartitionSpec("model")
    found = []

    def f(z, w):
        found.extend([private.varies_over(z), private.varies_over(w, None), private.varies_over(z, w), private.varies_over()])
        kept, dropped = (private.result(jax.typeof(z), 1, jnp.dtype("int32"), frozenset(over)) for over in ({"model"}, ()))
        found.extend([private.varies_over(kept), private.varies_over(dropped), kept.shape, kept.dtype.name])
        return z

    jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(name, PartitionSpec()), out_specs=name))(Z[:, None], W)
    model, none = frozenset({"model"}), frozenset()
    assert found == [model, none, model, none, model, none, (2,), "int32"]
    typed = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Explicit,))
    z = jax.device_put(Z[:, None], NamedSharding(typed, PartitionSpec("rows")))
    assert private.result(jax.typeof(z), 1, z.dtype, none).sharding.spec == PartitionSpec("rows")


def test_a_partitioned_function_is_computed_by_each_device_with_its_rule():
    mesh, places = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,)), []

    def partition(mesh, arguments, result):
        places.append(arguments[0].sharding.spec)
        return mesh, lambda z: 2 * z, result.sharding, (arguments[0].sharding,)

    rule = private.SdyShardingRule((("r",),), (("r",),))
    f = private.partitioned(lambda z: 3 * z, partition, lambda *_: rule)
    found = jax.jit(f)(jax.device_put(Z, NamedSharding(mesh, PartitionSpec("rows"))))
    np.testing.assert_array_equal(found, 2 * Z if places else 3 * Z)  # XLA asks where there are several devices: jax_on_eight_devices.py


PRIVATE = r"jax\._src|jax\.interpreters|jax\.extend|jax\.core|jax\.experimental\.custom_|custom_derivatives|manual_axis_type|module_context"


def test_no_other_file_uses_one():
    files = {p.name: p.read_text() for p in (pathlib.Path(softxent.__file__).parent / "jax").glob("*.py")}
    assert [name for name, text in files.items() if re.search(PRIVATE, text)] == ["private.py"]
    assert partial(re.search, PRIVATE)("from jax._src import core")
