"""A script that test_jax.py runs: logits that are divided among eight devices give what one device gives, and are not gathered."""

import os

os.environ |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tolerances import FLOAT32

from softxent import jax as sj

mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
ROWS, CLASSES, WIDTH = 8, 96, 4


def put(a, *spec):
    return jax.device_put(a, NamedSharding(mesh, P(*spec)))


def near(got, want, tolerance=FLOAT32):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance * np.abs(b).max())


def gathered(compiled) -> list[str]:
    """Return the lines of the compiled function that gather an array with all classes."""
    lines = (line.split("all-gather")[0] for line in compiled.as_text().splitlines() if " all-gather(" in line)
    return [line for line in lines if f"{CLASSES}]" in line or f"{CLASSES}," in line]


z = jnp.asarray(3 * rng.standard_normal((ROWS, CLASSES)), jnp.float32)
labels = jnp.asarray(rng.integers(0, CLASSES, ROWS)).at[3].set(-100)
soft, weight = jax.nn.softmax(z[::-1]), jnp.asarray(rng.random(CLASSES), jnp.float32)


def losses(z, labels, soft, weight=weight):
    options = dict(class_weight=weight, label_smoothing=0.1, z_loss=0.01, softcap=20.0)
    each = sj.cross_entropy(z, soft, reduction="none", return_entropy=True)
    return sj.cross_entropy(z, labels, **options) + (each.loss * jnp.arange(ROWS)).sum() + (each.entropy * (jnp.arange(ROWS) == 2)).sum()


want = jax.jit(jax.value_and_grad(losses, (0, 2)))(z, labels, soft)
specs = [("data", None), (None, "model"), ("data", "model"), (None, ("data", "model"))]
for backend, spec in [*(("default", spec) for spec in specs), ("formula", ("data", "model"))]:
    with sj.use_backend(backend):
        arguments = put(z, *spec), put(labels, spec[0]), put(soft, *spec)
        compiled = jax.jit(jax.value_and_grad(lambda *a: losses(*a), (0, 2))).lower(*arguments).compile()
        loss, gradients = compiled(*arguments)
        near((loss, gradients), want)
        assert all(g.sharding.is_equivalent_to(NamedSharding(mesh, P(*spec)), 2) for g in gradients)
        with sj.use_backend(backend):
            plain = jax.jit(jax.grad(lambda z, t: sj.cross_entropy(z, t, label_smoothing=0.1))).lower(*arguments[:2]).compile()
        assert not gathered(plain), gathered(plain)

# The same where types have the placement: axes of the mesh that are Explicit.
typed = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
for spec in specs:
    places = NamedSharding(typed, P(*spec)), NamedSharding(typed, P(spec[0])), NamedSharding(typed, P(*spec))
    arguments = [jax.device_put(a, place) for a, place in zip((z, labels, soft), places, strict=True)]
    loss, gradients = jax.jit(jax.value_and_grad(losses, (0, 2)))(*arguments, jax.device_put(weight, NamedSharding(typed, P())))
    near((loss, gradients), want)
    assert all(jax.typeof(g).sharding.spec == P(*spec) for g in gradients)

weights, tangent = jnp.cos(z), z * z


def product(z, labels, soft):
    """The product with the Hessian, and a derivative through log_softmax."""
    scaled = lambda z: losses(z, labels, soft) + (sj.log_softmax(z) * weights).sum()  # noqa: E731
    return jax.jvp(jax.grad(scaled), (z,), (tangent,))[1]


arguments = put(z, "data", "model"), put(labels), put(soft, "data", "model")
compiled = jax.jit(product).lower(*arguments).compile()
# second derivatives, or sums over the rows, in float32
near(compiled(*arguments), jax.jit(product)(z, labels, soft), 10 * FLOAT32)
assert not gathered(compiled), gathered(compiled)

# In shard_map, a row is a row, and the sum over the devices is taken by the user. The classes are divided where `axis_name` says so.


def of_rows(z, labels, soft, weight, sample, name=None):
    """A function of every output, for some of the rows."""
    options = dict(class_weight=weight, label_smoothing=0.1, z_loss=0.01, softcap=20.0, temperature=1.3, axis_name=name)
    outputs = dict(return_lse=True, return_entropy=True, return_logprobs=True)
    hard = sj.cross_entropy(z, labels, reduction="none", sample_weight=sample, **options, **outputs)
    given = sj.cross_entropy(z, soft, reduction="none", class_weight=weight, axis_name=name, return_entropy=True)
    spread = (sj.log_softmax(z, axis_name=name) * jnp.cos(z)).sum()
    spread = jax.lax.psum(spread, name) if name else spread
    sums = [(k + 1.5) * (a * sample).sum() for k, a in enumerate((*hard[:4], *given[:1], given.entropy, sj.entropy(z, axis_name=name)))]
    return sum(sums) + spread + sj.cross_entropy(z, labels, reduction="sum", sample_weight=sample, **options)


def of_head(x, w, bias, labels, soft, weight, name=None):
    options = dict(bias=bias, class_weight=weight, budget=3 * CLASSES * 4, axis_name=name)
    given = sj.linear_cross_entropy(x, w, soft, reduction="none", return_lse=True, return_entropy=True, **options)
    rows = sj.linear_cross_entropy(x, w, labels, reduction="none", return_entropy=True, **options)
    return (
        sj.linear_cross_entropy(x, w, labels, reduction="sum", label_smoothing=0.1, **options)
        + (rows.entropy**2).sum()
        + sum(a.sum() for a in given[:3])
    )


def everything(function, *given):
    """The value, the gradients by the arrays of floats, and the derivative of these along a direction."""
    moving = [k for k, a in enumerate(given) if a.dtype.kind == "f"]

    def derivatives(*floats):
        whole = [floats[moving.index(k)] if k in moving else a for k, a in enumerate(given)]
        return jax.value_and_grad(function, moving)(*whole)

    floats = [given[k] for k in moving]
    return jax.jvp(derivatives, floats, [jnp.sin(3 * a) for a in floats])


def same_in_shard_map(function, given, specs):
    halves = lambda *a: sum(function(*(x[i] if spec[:1] == ("data",) else x for x, spec in zip(a, specs, strict=True))) for i in HALVES)  # noqa: E731
    want = jax.jit(partial(everything, halves))(*given)
    for name in (None, "model"):
        of = lambda *a, name=name: jax.lax.psum(function(*a, name=name), "data")  # noqa: E731
        divided = tuple(P(*spec) if name else P(*spec[:1] if spec[:1] == ("data",) else ()) for spec in specs)
        mapped = jax.shard_map(of, mesh=mesh, in_specs=divided, out_specs=P())
        # second derivatives, or sums over the rows, in float32
        near(jax.jit(partial(everything, mapped))(*given), want, 10 * FLOAT32)


HALVES = slice(0, ROWS // 2), slice(ROWS // 2, None)
sample = jnp.asarray(rng.random(ROWS), jnp.float32)
x, w = (jnp.asarray(rng.standard_normal((n, WIDTH)), jnp.float32) for n in (ROWS, CLASSES))
by_both = ("data", "model")
same_in_shard_map(of_rows, (z, labels, soft, weight, sample), (by_both, ("data",), by_both, (), ("data",)))
same_in_shard_map(of_head, (x, w, w[:, 0], labels, soft, weight), (("data",), ("model",), ("model",), ("data",), by_both, ()))

sure = z.at[:, 7].add(60) + 1e4  # a class with nearly all of the probability, and logits that are large
in_shards = jax.shard_map(partial(sj.log_softmax, axis_name="model"), mesh=mesh, in_specs=P(*by_both), out_specs=P(*by_both))
np.testing.assert_allclose(jax.jit(in_shards)(sure), sj.log_softmax(sure), rtol=FLOAT32, atol=0)

# What is divided is merged: derivatives up to the third order are those of whole rows, and a common offset of the logits costs no digit.


def without_lse(z, soft, weights, name=None):
    """A function of the outputs that a common offset of the logits does not change."""
    options = dict(reduction="none", temperature=0.7, axis_name=name, return_entropy=True, return_logprobs=True)
    hard, given = sj.cross_entropy(z, labels, label_smoothing=0.1, **options), sj.cross_entropy(z, soft, **options)
    spread = (sj.log_softmax(z, axis_name=name) * weights).sum()
    each = [(k + 1.5) * (jnp.cos(jnp.arange(ROWS)) * a).sum() for k, a in enumerate((*hard[:4:2], hard.logprobs, *given[:4:2]))]
    return sum(each) + (jax.lax.psum(spread, name) if name else spread)


def up_to_the_third(function, z, *others):
    v, w = jnp.cos(3 * z), jnp.sin(5 * z)
    along = lambda f, u: lambda z: jax.jvp(f, (z,), (u,))[1]  # noqa: E731
    f = lambda z: function(z, *others)  # noqa: E731
    first, second = along(f, v), along(along(f, v), w)
    return lambda z: (jax.grad(f)(z), first(z), along(jax.grad(f), v)(z), jax.grad(first)(z), second(z), jax.grad(second)(z))


CLOSE = 1e-13  # of float64, in sums of 96 terms; an offset of 1e12 leaves 4 digits to what is computed from the logits themselves
OFFSET = 1e12
with jax.enable_x64(True):
    wide = [np.asarray(a, float) for a in (np.round(np.asarray(z) * 1024) / 1024, soft, weights)]  # logits that the offset does not round
    want = jax.jit(up_to_the_third(without_lse, *map(jnp.asarray, wide)))(jnp.asarray(wide[0]))
    by_classes = jax.shard_map(partial(without_lse, name="model"), mesh=mesh, in_specs=P(None, "model"), out_specs=P())
    found = jax.jit(up_to_the_third(by_classes, *map(jnp.asarray, wide)))(jnp.asarray(wide[0] + OFFSET))
    near(found, want, CLOSE)

    masked = jnp.asarray(wide[0]).at[1, labels[1]].set(-jnp.inf)  # its sums are those of a row without a label
    logprobs = partial(sj.cross_entropy, labels=labels, reduction="none", return_logprobs=True)
    in_shards = jax.shard_map(lambda z: logprobs(z, axis_name="model").logprobs, mesh=mesh, in_specs=P(None, "model"), out_specs=P())
    v, live = jnp.cos(wide[2]), labels >= 0
    at_label = jnp.take_along_axis(v, jnp.where(live, labels, 0)[:, None], 1)[:, 0]
    along = jnp.where(live, at_label - (jax.nn.softmax(masked) * v).sum(1), 0)
    for f in (in_shards, lambda z: logprobs(z).logprobs):
        near(jax.jvp(f, (masked,), (v,))[1], along, CLOSE)


def gathers(function, *given) -> int:
    """Return how many times the devices gather something of each other."""
    return jax.jit(function).lower(*given).compile().as_text().count(" all-gather(")


mean = jax.shard_map(partial(sj.cross_entropy, axis_name="model"), mesh=mesh, in_specs=(P(None, "model"), P()), out_specs=P())
of_soft = jax.shard_map(partial(sj.cross_entropy, axis_name="model"), mesh=mesh, in_specs=P(None, "model"), out_specs=P())
logs = jax.shard_map(partial(sj.log_softmax, axis_name="model"), mesh=mesh, in_specs=P(None, "model"), out_specs=P(None, "model"))
assert gathers(mean, z, labels) == gathers(jax.value_and_grad(mean), z, labels) == 1
assert gathers(lambda z, v: jax.jvp(jax.grad(lambda z: mean(z, labels)), (z,), (v,))[1], z, tangent) == 1
assert gathers(jax.value_and_grad(of_soft), z, soft) == gathers(logs, z) == 2  # which class is the largest, and the sums

outside = labels.at[5].set(CLASSES)  # out of range: NaN in its row alone
loss = jax.shard_map(
    partial(sj.cross_entropy, reduction="none", axis_name="model"), mesh=mesh, in_specs=(P(*by_both), P("data")), out_specs=P("data")
)
of_outside = jax.jvp(jax.grad(lambda z: loss(z, outside).sum()), (z.astype(jnp.bfloat16),), (jnp.cos(z).astype(jnp.bfloat16),))
assert all(np.array_equal(np.isnan(np.asarray(a, float)).any(1), np.arange(ROWS) == 5) for a in of_outside)


def message(name, labels=labels, **specs):
    given = {"z": P("data", "model"), "of_rows": P("data")} | specs
    mapped = jax.shard_map(
        partial(sj.cross_entropy, reduction="none", axis_name=name), mesh=mesh, in_specs=tuple(given.values()), out_specs=P("data")
    )
    try:
        jax.jit(mapped)(z, labels)
    except ValueError as error:
        return str(error)


assert "logits must be divided by the axis 'model' of a jax.shard_map" in message("model", z=P("data"))
assert "labels must be the same on all devices along the axis 'model'" in message("model", jnp.tile(labels, 2), of_rows=P("model"))
assert "axis_name must name axes of the mesh" in message("classes")

# A head under jit.
head = jax.value_and_grad(lambda x, w: sj.linear_cross_entropy(x, w, labels, budget=4 * CLASSES * 4), (0, 1))
near(jax.jit(head)(put(x, None, None), put(w, "model", None)), jax.jit(head)(x, w))
head = jax.value_and_grad(lambda x, w, soft: sj.linear_cross_entropy(x, w, soft, budget=3 * CLASSES * 4), (0, 1, 2))
near(jax.jit(head)(put(x, None, None), put(w, "model", None), put(soft, None, "model")), jax.jit(head)(x, w, soft))
print("equal")
