"""softxent.jax: every transform of JAX gives the derivatives of the definition, with the bits of NumPy, and the signatures of optax."""

from __future__ import annotations

from functools import partial
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from cases import OPTIONS, option_cases, python
from tolerances import FEW64, FLOAT32

import softxent

jax = pytest.importorskip("jax")  # a wheel is tested without it
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from jax.experimental import checkify  # noqa: E402

from softxent import jax as sj  # noqa: E402
from softxent.jax import native, operators  # noqa: E402

ROWS, CLASSES = 5, 4
INTEGERS = optax.softmax_cross_entropy_with_integer_labels


@pytest.fixture(params=["default", "formula"])
def computed_by(request):
    """Compute in float64, with the compiled kernel or with jax.numpy."""
    with jax.enable_x64(True), sj.use_backend(request.param):
        yield request.param


def definition(
    z, labels, class_weight=None, label_smoothing=0.0, ignore_index=-100, sample_weight=None, z_loss=0.0, temperature=1.0, softcap=None
):
    """Return -sum y log softmax + L lse^2 of each row, written with jax.numpy, and the weight of each row."""
    x = (z if softcap is None else softcap * jnp.tanh(z / softcap)) / temperature
    w = jnp.ones(z.shape[1]) if class_weight is None else class_weight
    sample = jnp.ones(len(z)) if sample_weight is None else sample_weight
    live, weight = jnp.ones(len(z)), sample
    if labels.dtype.kind != "f":
        live = labels != ignore_index
        inside = jnp.where(live, labels, 0)
        labels, weight = jax.nn.one_hot(inside, z.shape[1]), sample * live * w[inside]
    y = w * ((1 - label_smoothing) * labels + label_smoothing / z.shape[1])
    loss = -(y * jax.nn.log_softmax(x)).sum(1) + z_loss * jax.nn.logsumexp(x, 1) ** 2
    return loss * sample * live, weight


def case(rng, option: str):
    """Return logits, arrays by which can be differentiated, and functions of both: softxent's loss of each row, and the definition's."""
    labels, options = option_cases(rng, ROWS, CLASSES)[option]
    z, varied = jnp.asarray(2 * rng.standard_normal((ROWS, CLASSES))), {}
    for name in ("class_weight", "sample_weight"):
        if name in options:
            varied[name] = jnp.asarray(options.pop(name))
    if labels.dtype.kind == "f":
        varied["labels"], labels = jnp.asarray(labels), None

    def losses(function):
        def of(z, varied):
            given = dict(varied)
            t = given.pop("labels", labels)
            return function(z, t, **given, **options)

        return of

    def mean(z, labels, **given):
        loss, weight = definition(z, labels, **given)
        return loss.sum() / weight.sum()

    return z, varied, (losses(sj.cross_entropy), losses(mean)), options


def near(got, want, rtol=FEW64):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=0))


# ---- derivatives ----


@pytest.mark.parametrize("option", OPTIONS)
def test_value_and_gradients_are_those_of_the_definition(computed_by, option, rng):
    """The gradients are by the logits, the weights of classes and rows, and the probabilities."""
    z, varied, functions, _ = case(rng, option)
    found = (jax.jit(jax.value_and_grad(lambda z, v, f=f: 1.75 * f(z, v), (0, 1)))(z, varied) for f in functions)
    near(*found)


@pytest.mark.parametrize(
    "computed_by, option", [("default", "everything"), ("default", "soft"), ("formula", "everything")], indirect=["computed_by"]
)
def test_second_and_third_derivatives_in_every_mode_are_those_of_the_definition(computed_by, option, rng):
    z, varied, functions, _ = case(rng, option)
    v, w = (
        {"z": jnp.asarray(rng.standard_normal(z.shape)), "varied": jax.tree.map(lambda a: a * rng.uniform(-1, 1, a.shape), varied)}
        for _ in "vw"
    )

    def of(f):
        def all_modes(x):
            f1 = lambda x: f(x["z"], x["varied"])  # noqa: E731
            along = lambda g, u: lambda x: jax.jvp(g, (x,), (u,))[1]  # noqa: E731
            dot = lambda g, u: lambda x: sum(map(jnp.vdot, jax.tree.leaves(g(x)), jax.tree.leaves(u)))  # noqa: E731
            gradient = jax.grad(f1)
            second = [along(f1, v)(x), along(gradient, v)(x), jax.grad(dot(gradient, v))(x)]
            if computed_by == "formula":  # the rules are the same, and XLA takes a minute to compile them
                return second
            second.append(along(along(f1, v), w)(x))
            third = [jax.grad(along(f1, v)), along(along(gradient, v), w), jax.grad(dot(jax.grad(dot(gradient, v)), w))]
            return second, [function(x) for function in third]

        compiled = jax.jit(all_modes)
        return [compiled({"z": z, "varied": at}) for at in (varied, jax.tree.map(lambda a: a.at[0].set(0), varied))]

    near(*map(of, functions))  # at numbers that are exactly 0, too


def test_other_outputs_have_their_derivatives(computed_by, rng):
    labels = jnp.asarray(rng.integers(0, CLASSES, ROWS))
    z, up = jnp.asarray(2 * rng.standard_normal((ROWS, CLASSES))), jnp.asarray(rng.uniform(-2, 2, (4, ROWS)))

    def ours(z):
        found = sj.cross_entropy(
            z, labels, reduction="none", label_smoothing=0.1, z_loss=0.1, softcap=4.0, temperature=0.7, return_lse=True,
            return_entropy=True, return_logprobs=True, return_correct=True,
        )  # fmt: skip
        return sum((u * a).sum() for u, a in zip(up, found, strict=False)), found

    def theirs(z):
        x = 4 * jnp.tanh(z / 4) / 0.7
        logp = jax.nn.log_softmax(x)
        logprob = jnp.take_along_axis(logp, labels[:, None], 1)[:, 0]
        loss = -0.9 * logprob - 0.1 * logp.mean(1) + 0.1 * jax.nn.logsumexp(x, 1) ** 2
        found = (loss, jax.nn.logsumexp(x, 1), -(jnp.exp(logp) * logp).sum(1), logprob, (z.argmax(1) == labels).sum())
        return sum((u * a).sum() for u, a in zip(up, found, strict=False)), found

    def of(f):
        gradient = jax.grad(f, has_aux=True)
        along = jax.jvp(lambda z: gradient(z)[0], (z,), (z * z,))[1]
        return gradient(z), along, jax.jvp(lambda z: f(z)[1][:4], (z,), (z - 1,))

    near(*(jax.jit(of, static_argnums=0)(f) for f in (ours, theirs)))


@pytest.mark.parametrize("axis", [0, 1])
def test_log_softmax_logsumexp_and_entropy_are_the_definitions(computed_by, axis, rng):
    z, v = (jnp.asarray(2 * rng.standard_normal((3, 4))) for _ in "zv")
    ours = (sj.log_softmax, sj.logsumexp, sj.entropy)
    theirs = (jax.nn.log_softmax, jax.nn.logsumexp, lambda z, axis: -(jax.nn.softmax(z, axis) * jax.nn.log_softmax(z, axis)).sum(axis))

    def of(functions):
        each = [lambda z, f=f: f(z, axis=axis) for f in functions]
        return [(f(z), jax.jacrev(f)(z), jax.jacfwd(f)(z), jax.jacrev(lambda z, f=f: jax.jvp(f, (z,), (v,))[1])(z)) for f in each]

    near(*(jax.jit(of, static_argnums=0)(f) for f in (ours, theirs)))


def test_transforms_of_jax_give_what_calls_without_them_give(rng):
    """vmap over any axis and nested, linearize, checkpoint, scan, and arguments that are traced or not."""
    z, t = jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, (3, 4)))
    off = jax.nn.softmax(z[::-1])
    one = jax.jit(jax.value_and_grad(lambda z, t: sj.cross_entropy(z, t, label_smoothing=0.1, z_loss=0.1)))
    each = [one(a, b) for a, b in zip(z, t, strict=True)]
    want = [jnp.stack(parts) for parts in zip(*each, strict=True)]
    for axis in range(3):
        found = jax.jit(jax.vmap(one, (axis, 0), (0, 0)))(jnp.moveaxis(z, 0, axis), t)
        near(found, want, FLOAT32)
    rows = jax.vmap(jax.vmap(sj.softmax_cross_entropy_with_integer_labels, (0, 0)), (0, 0))(z, t)
    near(rows, INTEGERS(z, t), FLOAT32)
    shared = jax.vmap(sj.softmax_cross_entropy, (None, 0))(z[0], off)
    near(shared, optax.softmax_cross_entropy(z[0], off), FLOAT32)
    looped = jax.jit(jax.grad(lambda z: jax.lax.scan(lambda c, x: (c + one(*x)[0], None), 0.0, (z, t))[0]))
    near(looped(z), want[1], FLOAT32)
    near(jax.jit(jax.grad(jax.checkpoint(lambda z: one(z, t[0])[0])))(z[0]), want[1][0], FLOAT32)
    near(jax.linearize(lambda z: one(z, t[0])[0], z[0])[1](z[1]), (want[1][0] * z[1]).sum(), FLOAT32)


# ---- the same numbers as elsewhere ----


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_results_have_the_bits_of_numpy(dtype, rng):
    """Entries below the smallest normal number are among them, which XLA itself would flush to 0."""
    z = (3 * rng.standard_normal((7, 133))).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    z[2] = z[2] * 20
    t = rng.integers(0, 133, 7)
    t[4] = -100
    for given in ({}, dict(label_smoothing=0.1, z_loss=0.01, softcap=5.0, temperature=0.7)):
        for reduction in ("mean", "sum", "none"):
            loss, dz = softxent.cross_entropy_and_grad(z, t, reduction=reduction, **given)
            with jax.enable_x64(dtype == "float64"):
                f = lambda z: sj.cross_entropy(z, t, reduction=reduction, **given)  # noqa: B023, E731
                found, gradient = jax.jit(lambda z, f=f: (f(z), jax.grad(lambda z: f(z).sum())(z)))(z)
            np.testing.assert_array_equal(np.asarray(found), np.asarray(loss).astype(z.dtype))
            np.testing.assert_array_equal(np.asarray(gradient), dz)
    assert dtype == "bfloat16" or ((dz != 0) & (np.abs(dz) < np.finfo(dtype).tiny)).any() or given


def test_threads_do_not_change_the_bits_and_are_those_of_set_num_threads(rng):
    z, t = jnp.asarray(rng.standard_normal((64, 1000)), jnp.float32), jnp.asarray(rng.integers(0, 1000, 64))
    f = jax.jit(jax.grad(lambda z: sj.cross_entropy(z, t)))
    found = []
    for threads in (1, 2, 5):
        softxent.set_num_threads(threads)
        found.append(np.asarray(f(z)))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_signatures_of_optax(rng):
    z, u = (jnp.asarray(rng.random((3, 4, 5)), jnp.float32) for _ in "zu")
    where = jnp.asarray(rng.random((3, 4, 5)) < 0.7).at[0].set(True).at[:, 0].set(True).at[:, :, 0].set(True)
    cases = [(-1, rng.integers(0, 1, (3, 4))), (0, rng.integers(0, 1, (4, 5))), ((0, 2), rng.integers(0, 3, 4))]

    def all_cases(of_probabilities, of_integers):
        found = []
        for axis, t in cases:
            for given in ({}, {"where": where}):
                for f, labels in ((of_probabilities, u), (of_integers, t)):
                    loss = lambda z: (f(z, labels, axis, **given), (f(z, labels, axis, **given) ** 2).sum())  # noqa: B023, E731
                    found.append((loss(z)[0], jax.grad(lambda z: loss(z)[1])(z)))  # noqa: B023
        return found

    ours = (sj.softmax_cross_entropy, sj.softmax_cross_entropy_with_integer_labels)
    near(*(jax.jit(all_cases, static_argnums=(0, 1))(*f) for f in (ours, (optax.softmax_cross_entropy, INTEGERS))), FLOAT32)


# ---- memory ----


def copies(function, z, **how) -> int:
    """Return how many copies of an array of this shape the compiled function makes, apart from those that it makes as it computes one."""
    text = jax.jit(function, **how).lower(z).compile().as_text()
    assert "softxent" in text
    return sum(" copy(" in line and "ROOT" not in line and str(list(z.shape)).replace(" ", "") in line for line in text.splitlines())


def test_the_gradient_takes_the_memory_of_logits_that_are_not_needed_any_more(rng):
    z, t = jnp.asarray(rng.standard_normal((16, 300)), jnp.float32), jnp.asarray(rng.integers(0, 300, 16))
    f = jax.value_and_grad(lambda z: sj.cross_entropy(z, t))
    before = np.array(z)
    assert copies(f, z) == copies(f, z, donate_argnums=0) == copies(lambda z: f(3 * z), z) == 0
    want = jax.jit(f)(z)
    np.testing.assert_array_equal(z, before)  # the caller's logits are not written to
    mine = jnp.array(z)
    place = mine.unsafe_buffer_pointer()
    _, dz = jax.jit(f, donate_argnums=0)(mine)
    assert dz.unsafe_buffer_pointer() == place and mine.is_deleted()
    np.testing.assert_array_equal(dz, want[1])
    both = jax.jit(lambda z: (f(3 * z), 3 * z))(z)  # the logits are a result too
    np.testing.assert_array_equal(both[1], 3 * z)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_classes_on_any_axis_are_read_where_they_lie_and_give_the_bits_of_the_last_axis(axis, rng):
    z, v = (jnp.asarray(rng.standard_normal((5, 6, 7)), jnp.float32) for _ in "zv")
    t = jnp.asarray(rng.integers(0, z.shape[axis], np.delete(z.shape, axis)))
    u = jnp.abs(v)

    def all_of(z, v, u, axis):
        def losses(z):
            return [
                sj.cross_entropy(z, t, axis=axis, softcap=5.0),
                sj.cross_entropy(z, u, axis=axis, label_smoothing=0.1),
                sj.softmax_cross_entropy_with_integer_labels(z, t, axis=axis).sum(),
                sj.softmax_cross_entropy(z, u, axis=axis).sum(),
                sj.logsumexp(z, axis).sum(),
                sj.entropy(z, axis).sum(),
            ]

        gradients = jax.jacrev(losses)(z)
        products = jax.jvp(jax.grad(lambda z: losses(z)[1]), (z,), (v,))[1]
        return losses(z), [jnp.moveaxis(a, axis, -1) for a in (*gradients, products, sj.log_softmax(z, axis))]

    last = [jnp.moveaxis(a, axis, -1) for a in (z, v, u)]
    for a, b in zip(*(jax.tree.leaves(all_of(*given)) for given in ((z, v, u, axis), (*last, 2))), strict=True):
        np.testing.assert_array_equal(a, b)
    vmapped = jax.vmap(jax.grad(lambda z: sj.logsumexp(z, axis).sum()))(jnp.stack([z, v]))
    np.testing.assert_array_equal(vmapped[1], jax.grad(lambda z: sj.logsumexp(z, axis).sum())(v))
    for f in (lambda z: sj.cross_entropy(z, t, axis=axis), lambda z: sj.cross_entropy(z, u, axis=axis)):
        compiled = jax.jit(jax.value_and_grad(f)).lower(z).compile().as_text()
        assert "softxent" in compiled and "transpose(" not in compiled.replace("/transpose(", "") and " copy(" not in compiled


def test_several_class_axes_are_read_where_they_lie_if_they_are_adjacent(rng):
    z = jnp.asarray(rng.standard_normal((4, 5, 6, 7)), jnp.float32)
    for axes in ((1, 2), (2, 3), (0, 1), (2, 1), (1, 3), (0, 1, 2, 3)):
        rows = [n for k, n in enumerate(z.shape) if k not in axes]
        t = jnp.asarray(rng.integers(0, z.size // np.prod(rows, dtype=int), rows))
        f = jax.jit(jax.value_and_grad(lambda z: sj.softmax_cross_entropy_with_integer_labels(z, t, axes).sum()))  # noqa: B023
        near(f(z), jax.value_and_grad(lambda z: INTEGERS(z, t, axes).sum())(z), FLOAT32)  # noqa: B023
        if axes in ((1, 2), (2, 3), (0, 1)):
            assert " copy(" not in f.lower(z).compile().as_text()


# ---- a linear head ----


def head(rng, dtype=jnp.float64):
    arrays = dict(
        x=rng.standard_normal((2, 5, 3)), weight=rng.standard_normal((4, 3)), bias=rng.standard_normal(4), class_weight=rng.random(4)
    )
    return {name: jnp.asarray(a, dtype) for name, a in arrays.items()}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_a_linear_head_by_chunks_has_the_derivatives_of_whole_logits(reduction, soft, rng):
    """Chunks of two rows, and a last one that is not full. First and second derivatives, in reverse and in forward mode."""
    with jax.enable_x64(True):
        labels = jnp.asarray(rng.random((2, 5, 4)) if soft else np.where(rng.random((2, 5)) < 0.2, -100, rng.integers(0, 4, (2, 5))))
        given, options = head(rng), dict(z_loss=0.1, label_smoothing=0.1, softcap=3.0, reduction=reduction)
        up = jnp.asarray(rng.uniform(1, 2, (2, 5) if reduction == "none" else ()))
        v = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), given)

        def by_chunks(given):
            return (up * sj.linear_cross_entropy(labels=labels, budget=3 * 4 * 8, **given, **options)).sum()

        def whole(given):
            z = given["x"] @ given["weight"].T + given["bias"]
            return (up * sj.cross_entropy(z, labels, class_weight=given["class_weight"], **options)).sum()

        def of(f):
            gradient = jax.grad(f)
            pull_back = jax.grad(lambda given: sum(map(jnp.vdot, jax.tree.leaves(gradient(given)), jax.tree.leaves(v))))
            along = jnp.stack(jax.jvp(f, (given,), (v,)))  # the derivative is a sum whose terms cancel, and have the size of the loss
            return gradient(given), along, jax.jvp(gradient, (given,), (v,))[1], pull_back(given)

        near(*(jax.jit(of, static_argnums=0)(f) for f in (by_chunks, whole)))


def test_a_linear_head_holds_a_chunk_of_logits(rng):
    """Beside the results, the memory of the compiled function does not grow with the rows. What is not differentiated costs no product."""
    w, sizes, products = jnp.zeros((1000, 16)), [], []

    def memory(rows, f):
        compiled = jax.jit(f).lower(jnp.zeros((rows, 16)), w).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def loss(x, w, **options):
        return sj.linear_cross_entropy(x, w, jnp.zeros(len(x), jnp.int32), budget=64 * 4000, **options)

    for reduced in (jax.value_and_grad(loss, (0, 1)), jax.grad(lambda x, w: loss(x, w, reduction="none").sum(), (0, 1))):
        sizes = [memory(rows, reduced) for rows in (640, 6400)]
        assert sizes[1] - sizes[0] <= 5760 * 16 * 4 * 4 + 65536, sizes  # copies of x, and none of 5760 rows of logits, 23 MB
    for argnums in (0, 1, (0, 1)):
        text = jax.jit(jax.grad(loss, argnums)).lower(jnp.zeros((640, 16)), w).as_text()
        products.append(text.count("stablehlo.dot_general"))
    assert products == [2, 2, 3]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_linear_head_in_narrow_types(dtype, rng):
    """The gradient is near that in float32, over 300 chunks."""
    x, w, t = (
        jnp.asarray(rng.random((600, 3)), dtype),
        jnp.asarray(rng.standard_normal((4, 3)), dtype),
        jnp.zeros(600, int),
    )
    f = lambda x, w, **o: sj.linear_cross_entropy(x, w, t, reduction="sum", **o)  # noqa: E731
    dw = jax.jit(jax.grad(lambda w: f(x, w, budget=16)))(w)
    want = jax.jit(jax.grad(lambda w: f(x.astype(jnp.float32), w)))(w.astype(jnp.float32))
    assert dw.dtype == dtype
    near(dw, want, 2**-7)  # half precision has 2^-9 or 2^-12; 600 rows are added


# ---- what a user can get wrong ----


def test_a_label_out_of_range_is_nan_in_its_row_and_an_error_of_checkify(computed_by, rng):
    z, t = jnp.asarray(rng.standard_normal((4, 3))), jnp.array([0, 3, -100, 2])
    loss, dz = jax.value_and_grad(lambda z: sj.cross_entropy(z, t, reduction="none").sum())(z)
    assert np.isnan(loss)
    np.testing.assert_array_equal(np.isnan(dz).all(1), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(sj.cross_entropy(z, t, reduction="none")), [False, True, False, False])
    np.testing.assert_array_equal(dz[2], 0)
    checked = checkify.checkify(jax.jit(lambda t: sj.cross_entropy(z, t, check=True)))
    with pytest.raises(checkify.JaxRuntimeError, match=r"labels must lie in \[0, 3\) or be ignore_index=-100; got 3 at flat row 1"):
        checked(t)[0].throw()
    checked(t.at[1].set(1))[0].throw()


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda z, t: sj.cross_entropy(z, t[1:]),
            "cross_entropy: labels must have shape (4,) to match logits (4, 3), whose classes are along axis 1 (pass axis=0 if they are"
            " along axis 0); got (3,)",
        ),
        (
            lambda z, t: sj.cross_entropy(z.astype(int), t),
            "cross_entropy: logits must have dtype float32, float64, float16 or bfloat16; got int32",
        ),
        (
            lambda z, t: sj.cross_entropy(z, t, axis=2),
            "cross_entropy: axis must be an int between -2 and 1 for logits of shape (4, 3); got 2",
        ),
        (
            lambda z, t: sj.cross_entropy(z, t, label_smoothing=2),
            "cross_entropy: label_smoothing must be a finite number of at least 0 and at most 1; got 2",
        ),
        (lambda z, t: sj.cross_entropy(z, t, sample_weight=z), "cross_entropy: sample_weight must broadcast to shape (4,); got (4, 3)"),
        (
            lambda z, t: sj.cross_entropy(z, t, class_weight=z[0, :2]),
            "cross_entropy: class_weight must have shape (3,), one number a class; got (2,)",
        ),
        (
            lambda z, t: sj.linear_cross_entropy(z[:, :0], z[:, :0], t),
            "linear_cross_entropy: x must have at least one feature; got shape (4, 0)",
        ),
        (
            lambda z, t: sj.linear_cross_entropy(z, z[:, :2], t),
            "linear_cross_entropy: weight must have shape (classes, 3) to match x (4, 3); got (4, 2)",
        ),
        (
            lambda z, t: sj.softmax_cross_entropy_with_integer_labels(z, z),
            "softmax_cross_entropy_with_integer_labels: labels must be integers; got float32",
        ),
        (lambda z, t: sj.logsumexp(z[0, 0]), "logsumexp: logits must have a class axis, such as shape (rows, classes); got a scalar"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises((ValueError, TypeError)) as error:
        jax.jit(call)(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32))
    assert str(error.value) == message


def test_no_rows_and_one_class(computed_by):
    none, labels = jnp.zeros((0, 3)), jnp.zeros(0, int)
    for reduction, want in (("mean", np.nan), ("sum", 0.0), ("none", np.zeros(0))):
        of_logits = jax.jit(partial(sj.cross_entropy, labels=labels, reduction=reduction))
        of_a_head = jax.jit(partial(sj.linear_cross_entropy, weight=jnp.ones((4, 3)), labels=labels, reduction=reduction))
        np.testing.assert_array_equal(of_logits(none), want)
        np.testing.assert_array_equal(of_a_head(none), want)
    assert jax.jit(jax.grad(lambda z: sj.cross_entropy(z, labels)))(none).shape == (0, 3)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda z: sj.cross_entropy(z, jnp.zeros(2, int))))(jnp.ones((2, 1))), 0)


def test_rows_of_nan_and_masked_classes(computed_by):
    inf, nan = jnp.inf, jnp.nan
    z, t = jnp.array([[0.0, -inf, 1.0], [nan, 0, 0], [-inf, -inf, -inf], [1.0, 2.0, 3.0]]), jnp.array([0, 1, 1, 2])
    loss, dz = jax.jit(
        lambda z: (sj.cross_entropy(z, t, reduction="none"), jax.grad(lambda z: sj.cross_entropy(z, t, reduction="sum"))(z))
    )(z)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(dz).any(1), [False, True, True, False])
    assert dz[0, 1] == 0
    none = jax.value_and_grad(lambda z: sj.cross_entropy(z, jnp.full(4, -100)))(z)
    assert np.isnan(none[0]) and (none[1] == 0).all()


def test_ignored_rows_may_hold_nan_whatever_is_differentiated(computed_by, rng):
    z, varied, labels = (
        jnp.asarray(rng.standard_normal((3, 4))),
        {"s": jnp.array([1.0, 2, 0.5]), "w": jnp.arange(4.0)},
        jnp.array([0, 3, 1]),
    )

    def derivatives(z, labels, varied):
        def f(z, v):
            options = dict(class_weight=v["w"], sample_weight=v["s"], label_smoothing=0.1, z_loss=0.1, softcap=3.0)
            return sj.cross_entropy(z, labels, **options)

        point = z, varied
        ahead = jax.tree.map(jnp.cos, (jnp.where(jnp.isnan(z), 0, z), varied))
        gradient = jax.grad(f, (0, 1))
        second = [lambda *x: jax.jvp(gradient, x, ahead)[1], jax.grad(lambda *x: jax.jvp(f, x, ahead)[1], (0, 1))]
        third = [jax.grad(lambda *x: jax.jvp(lambda *x: jax.jvp(f, x, ahead)[1], x, ahead)[1], (0, 1))] * (computed_by == "default")
        return [of(*point) for of in (gradient, *second, *third)]

    found = jax.jit(derivatives)(z.at[1].set(jnp.nan), labels.at[1].set(-100), varied)
    live = jnp.array([0, 2])
    want = jax.jit(derivatives)(z[live], labels[live], varied | {"s": varied["s"][live]})
    for (dz, by), (dz_live, by_live) in zip(found, want, strict=True):
        near((dz[live], by["w"], by["s"][live]), (dz_live, by_live["w"], by_live["s"]))
        assert (dz[1] == 0).all() and by["s"][1] == 0


def test_a_mean_over_rows_without_weight_is_a_constant(computed_by):
    z, s = jnp.cos(jnp.arange(6.0)).reshape(2, 3), jnp.array([1.0, 2.0])
    for labels, at in ((jnp.array([0, 1]), 0 * s), (jnp.array([-100, -100]), s)):
        f = lambda z, s, labels=labels: sj.cross_entropy(z, labels, sample_weight=s, z_loss=0.1)  # noqa: E731
        gradient = jax.grad(f, (0, 1))
        along = lambda z, s, f=f: jax.jvp(f, (z, s), (jnp.sin(z), s + 1))[1]  # noqa: E731
        assert np.isnan(f(z, at))
        for found in (gradient(z, at), along(z, at), jax.grad(along, (0, 1))(z, at), jax.jvp(gradient, (z, at), (z, s))[1]):
            assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"])
def test_rows_without_classes_have_loss_0_and_derivatives_0_as_in_optax(computed_by, name, rng):
    z, where = jnp.asarray(rng.standard_normal((3, 4))), jnp.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], bool)
    labels = jnp.array([3, 1, 0]) if "integer" in name else jax.nn.softmax(z[::-1])

    def derivatives(module):
        f = lambda z: getattr(module, name)(z, labels, where=where)  # noqa: E731
        return f(z), jax.jacrev(f)(z), jax.jvp(f, (z,), (z * z,))[1]

    near(derivatives(sj), derivatives(optax))
    along = jax.grad(lambda z: jax.jvp(lambda z: getattr(sj, name)(z, labels, where=where).sum(), (z,), (z * z,))[1])(z)
    assert np.isfinite(along).all() and (along[1] == 0).all()


def test_the_loss_of_a_label_that_is_left_out_is_inf():
    z, where = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[True, False, True]])
    loss, dz = jax.value_and_grad(lambda z: sj.softmax_cross_entropy_with_integer_labels(z, jnp.array([1]), where=where).sum())(z)
    assert loss == np.inf and np.isfinite(dz).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_labels_are_never_taken_for_negative_ones(dtype):
    """As int32, the label 2^32 - 100 would be the ignore_index -100, and 2^32 + 1 would be 1."""
    with jax.enable_x64(True):
        z, largest = jnp.arange(12.0).reshape(4, 3), int(np.iinfo(dtype).max)
        labels = np.array([0, 2, largest - 99, 2**32 + 1 if largest > 2**32 else largest], dtype)
        loss = sj.cross_entropy(z, jnp.asarray(labels), reduction="none")
        near(loss[:2], INTEGERS(z[:2], jnp.array([0, 2])))
        assert np.isnan(loss[2:]).all()


# ---- platforms ----


def test_other_platforms_get_jax_numpy_alone():
    f = jax.jit(jax.value_and_grad(lambda z: sj.cross_entropy(z, jnp.zeros(4, jnp.int32))))
    text = {name: f.trace(jnp.zeros((4, 3))).lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    assert "softxent_fused" in text["cpu"]
    assert "custom_call" not in text["cuda"] and "custom_call" not in text["tpu"]


def test_without_handlers_jax_numpy_computes_and_one_warning_says_so(monkeypatch):
    monkeypatch.setattr(native, "missing", "jaxlib refuses the kernel")
    monkeypatch.setattr(operators, "_warned", False)
    assert [b[:3] for b in sj.backends()] == [("cpu", False, False), ("formula", True, True)]
    assert sj.backends()[0].detail == "jaxlib refuses the kernel"
    z, t = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([0])
    with pytest.warns(RuntimeWarning, match=r"softxent\.jax runs on jax\.numpy, slowly: jaxlib refuses the kernel") as caught:
        found = jax.jit(lambda z: sj.cross_entropy(z, t) + sj.logsumexp(z).sum())(z)
    near(found, INTEGERS(z, t).mean() + jax.nn.logsumexp(z, 1).sum(), FLOAT32)
    assert len(caught) == 1


def test_backends_say_what_computes():
    kernel, formula = sj.backends()
    assert (kernel.name, formula.name) == ("cpu", "formula") and kernel.active and not formula.active, kernel.detail
    with sj.use_backend("formula"):
        assert [b.name for b in sj.backends() if b.active] == ["formula"]
    for platform, found in (("cpu", "cpu"), ("cuda", "formula")):
        with mock.patch.object(jax, "default_backend", lambda platform=platform: platform):
            assert [b.name for b in sj.backends() if b.active] == [found]


def test_importing_softxent_jax_without_jax_says_what_to_install():
    code = "import sys; sys.modules['jax'] = None\ntry:\n    import softxent.jax\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert python(code).strip() == "softxent.jax needs JAX: pip install jax, or in a clone of softxent: pip install '.[jax]'"


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_head_outside_jit_is_compiled_once(reduction, caplog):
    x, w, labels = jnp.ones((6, 3)), jnp.ones((5, 3)), jnp.zeros(6, jnp.int32)
    gradient = jax.grad(lambda x: sj.linear_cross_entropy(x, w, labels, reduction=reduction).sum())
    compiled = []
    for value in (1.0, 2.0):
        caplog.clear()
        with jax.log_compiles():
            gradient(value * x)
        compiled.append(caplog.text.count("Compiling "))
    assert compiled[0] > 0 == compiled[1], caplog.text


def test_logits_that_are_divided_among_devices_are_not_gathered():
    from cases import HERE

    with open(f"{HERE}/jax_on_eight_devices.py") as script:
        assert python(script.read()).strip() == "equal"


def test_an_ignored_row_of_a_head_may_hold_nan(computed_by):
    x = jnp.sin(jnp.arange(15.0).reshape(5, 3)).at[1].set(jnp.nan)
    w, labels, live = jnp.cos(jnp.arange(12.0).reshape(4, 3)), jnp.asarray([0, -100, 1, 2, 3]), jnp.asarray([0, 2, 3, 4])

    def gradients(x, labels):
        return jax.grad(partial(sj.linear_cross_entropy, budget=2 * 4 * 8), (0, 1))(x, w, labels)

    dx, dw = gradients(x, labels)
    expected_dx, expected_dw = gradients(x[live], labels[live])
    np.testing.assert_allclose(dw, expected_dw, rtol=FEW64)
    np.testing.assert_allclose(dx[live], expected_dx, rtol=FEW64)
    assert (dx[1] == 0).all()


@pytest.mark.parametrize("backend", ["default", "formula"])
def test_quotients_of_large_float32_logits_keep_their_differences(backend):
    """As in test_edges.py, on the formulas for other platforms too, which compute in float32."""
    z, t = jnp.array([[1e8, 1e8 + 8, 1e8 + 16]], jnp.float32), jnp.array([0])
    small = jnp.array([[1, 2, 3]], jnp.float32)
    with sj.use_backend(backend):
        loss, dz = jax.value_and_grad(partial(sj.cross_entropy, temperature=0.01))(z, t)
        assert loss == pytest.approx(1600, rel=FLOAT32)
        np.testing.assert_allclose(dz, [[-100, 0, 100]], rtol=FLOAT32)
        assert sj.cross_entropy(small, t, temperature=1e-10) == pytest.approx(2e10, rel=FLOAT32)
        for options in (dict(temperature=1e46), dict(temperature=1.7e308, softcap=1)):
            assert sj.cross_entropy(small, t, **options) == pytest.approx(np.log(3), rel=FLOAT32)
        for softcap in (1e30, 2.0**127, 1e300):  # z / softcap is subnormal or 0 in float32
            found, dz = jax.value_and_grad(partial(sj.cross_entropy, softcap=softcap))(small, t)
            want, dwant = jax.value_and_grad(sj.cross_entropy)(small, t)
            np.testing.assert_allclose([found, *dz[0]], [want, *dwant[0]], rtol=FLOAT32)
