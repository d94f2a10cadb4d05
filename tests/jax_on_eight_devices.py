"""A script that test_jax.py runs: logits that are divided among eight devices give what one device gives, and are not gathered."""

import os

os.environ |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from softxent import jax as sj

mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
ROWS, CLASSES, WIDTH = 8, 96, 4


def put(a, *spec):
    return jax.device_put(a, NamedSharding(mesh, P(*spec)))


def near(got, want, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance * np.abs(b).max())


def gathered(compiled) -> list[str]:
    """Return the lines of the compiled function that gather an array with all classes."""
    lines = (line.split("all-gather")[0] for line in compiled.as_text().splitlines() if " all-gather(" in line)
    return [line for line in lines if f"{CLASSES}]" in line or f"{CLASSES}," in line]


z = jnp.asarray(3 * rng.standard_normal((ROWS, CLASSES)), jnp.float32)
labels = jnp.asarray(rng.integers(0, CLASSES, ROWS)).at[3].set(-100)
soft, weight = jax.nn.softmax(z[::-1]), jnp.asarray(rng.random(CLASSES), jnp.float32)


def losses(z, labels, soft):
    options = dict(class_weight=weight, label_smoothing=0.1, z_loss=0.01, softcap=20.0)
    each = sj.cross_entropy(z, soft, reduction="none", return_entropy=True)
    return sj.cross_entropy(z, labels, **options) + (each.loss * jnp.arange(ROWS)).sum() + each.entropy[2]


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

hessian = lambda z: jax.jvp(jax.grad(lambda z: losses(z, labels, soft)), (z,), (z * z,))[1]  # noqa: E731
near(jax.jit(hessian)(put(z, "data", "model")), jax.jit(hessian)(z), 1e-5)

# In shard_map, a row is a row, and the mean of the devices is taken by the user.
mapped = jax.shard_map(
    lambda z, t: jax.lax.psum(sj.softmax_cross_entropy_with_integer_labels(z, t).sum(), "data"),
    mesh=mesh,
    in_specs=(P("data"), P("data")),
    out_specs=P(),
)
clean = jnp.abs(labels) % CLASSES
near(
    jax.jit(jax.value_and_grad(mapped))(put(z, "data"), put(clean, "data")),
    jax.value_and_grad(lambda z: sj.softmax_cross_entropy_with_integer_labels(z, clean).sum())(z),
)

x, w = (jnp.asarray(rng.standard_normal((n, WIDTH)), jnp.float32) for n in (ROWS, CLASSES))
head = jax.value_and_grad(lambda x, w: sj.linear_cross_entropy(x, w, labels, budget=4 * CLASSES * 4), (0, 1))
near(jax.jit(head)(put(x, None, None), put(w, "model", None)), jax.jit(head)(x, w))
print("equal")
