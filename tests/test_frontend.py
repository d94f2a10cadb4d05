"""The public NumPy functions compared with torch and SciPy, for all options and memory layouts. Arguments are not written to."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import scipy.special
import torch
from cases import DTYPES, OPTIONS, computed, option_cases, within
from tolerances import DIFFERENCES, FEW64, FLOAT64

import softxent
from softxent import kernels, truth
from softxent.proof import bounds

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def as_torch(z):
    """Return an array as a float64 tensor, which is exact."""
    return torch.tensor(z.astype(np.float64))


# ---- the functions by their definitions ----


@each_dtype
@pytest.mark.parametrize("shape,axis", [((9, 7), -1), ((3, 7, 4), 1), ((7,), 0), ((40, 300), 1)], ids=str)
def test_scipy_has_the_same_functions(backend, dtype, shape, axis, rng):
    z = (3 * rng.standard_normal(shape)).astype(dtype)
    x, u, store = z.astype(np.float64), bounds.unit(dtype), bounds.UNIT[dtype.name]
    near = bounds.grad_bound(dtype, shape[axis], 20) + store
    within(softxent.softmax(z, axis=axis), s := scipy.special.softmax(x, axis=axis), near * s + bounds.TINY[dtype.name])
    within(softxent.log_softmax(z, axis=axis), s := scipy.special.log_softmax(x, axis=axis), (near + 4 * u) * (1 + np.abs(s)))
    within(softxent.logsumexp(z, axis=axis), s := scipy.special.logsumexp(x, axis=axis), near * (1 + np.abs(s)))
    p = scipy.special.softmax(x, axis=axis)
    within(softxent.entropy(z, axis=axis), s := scipy.special.entr(p).sum(axis=axis), 40 * u * (1 + s))
    assert softxent.softmax(z, axis=axis).dtype == softxent.log_softmax(z, axis=axis).dtype == dtype
    assert np.asarray(softxent.logsumexp(z, axis=axis)).dtype == np.float64


def derivative(f, z, v, h=2.0**-8):
    return (8 * (f(z + h * v) - f(z - h * v)) - (f(z + 2 * h * v) - f(z - 2 * h * v))) / (12 * h)


def test_the_other_gradients_are_derivatives(backend, rng):
    z, v, t, up = rng.standard_normal((5, 6)), rng.standard_normal((5, 6)), rng.integers(0, 6, 5), rng.uniform(-2, 2, 5)
    t[2] = -100
    jacobian = softxent.softmax_jacobian(z)
    np.testing.assert_allclose(softxent.softmax_vjp(z, v), derivative(softxent.softmax, z, v), rtol=DIFFERENCES, atol=FLOAT64)
    np.testing.assert_allclose(
        softxent.softmax_vjp(z, v), np.einsum("rij,rj->ri", jacobian, v), rtol=8 * bounds.UNIT["float64"], atol=8 * bounds.UNIT["float64"]
    )
    np.testing.assert_allclose(jacobian, jacobian.swapaxes(1, 2), rtol=1e-15)  # 9 roundoffs
    np.testing.assert_allclose((softxent.softmax(z) * v).sum(1), derivative(softxent.logsumexp, z, v), rtol=DIFFERENCES)
    h, dh = softxent.entropy_and_grad(z, upstream=up)
    np.testing.assert_array_equal(h, softxent.entropy(z))
    np.testing.assert_allclose((dh * v).sum(1), up * derivative(softxent.entropy, z, v), rtol=DIFFERENCES)
    np.testing.assert_array_equal(softxent.entropy_and_grad(z)[1], softxent.entropy_and_grad(z, upstream=np.ones(5))[1])
    np.testing.assert_array_equal(softxent.token_logprobs_and_grad(z, t)[1], softxent.token_logprobs_and_grad(z, t, upstream=np.ones(5))[1])
    lp, dlp = softxent.token_logprobs_and_grad(z, t, upstream=up, softcap=4.0)
    np.testing.assert_array_equal(lp, softxent.token_logprobs(z, t, softcap=4.0))
    np.testing.assert_allclose(
        (dlp * v).sum(1), up * derivative(lambda x: softxent.token_logprobs(x, t, softcap=4.0), z, v), rtol=DIFFERENCES, atol=FLOAT64
    )
    live = t != -100
    np.testing.assert_allclose(softxent.token_logprobs(z, t)[live], softxent.log_softmax(z)[live, t[live]], rtol=FEW64)
    assert lp[2] == 0 and (dlp[2] == 0).all()


def test_the_jacobian_keeps_1_minus_yhat(backend):
    z = np.array([[30.0, 0.0, 1.0]])
    odds = np.exp(-30.0) + np.exp(-29.0)
    assert softxent.softmax_jacobian(z)[0, 0, 0] == pytest.approx(odds / (1 + odds) ** 2, rel=FEW64, abs=0)


# ---- layouts ----


def layouts(z):
    """Return the same numbers in other memory layouts, as name -> (array, class axis)."""
    rows, classes = z.shape

    def strided(step_r, step_c, flip_r=1, flip_c=1):
        big = np.full((rows * step_r, classes * step_c), 99, z.dtype)
        view = big[::step_r, ::step_c][::flip_r, ::flip_c]
        view[...] = z
        return view

    cube = np.ascontiguousarray(z.T)
    locked = z.copy()
    locked.flags.writeable = False
    yield "fortran", np.asfortranarray(z), 1
    yield "class axis first", cube, 0
    yield "class axis -2", cube, -2
    yield "rows apart", strided(2, 1), 1
    yield "columns apart", strided(1, 3), 1
    yield "rows backwards", strided(1, 1, -1), 1
    yield "columns backwards", strided(1, 1, 1, -1), -1
    yield "both apart and backwards", strided(3, 2, -1, -1), 1
    yield "read-only", locked, 1
    if z.dtype.kind == "f":
        yield "big-endian", z.astype(z.dtype.newbyteorder(">")), 1
    yield "broadcast rows", np.broadcast_to(z[0], z.shape), 1
    raw = np.zeros(z.nbytes + 1, np.uint8)[1:].view(z.dtype).reshape(z.shape)
    raw[...] = z
    yield "at an odd address", raw, 1
    record = np.zeros(rows, [("number", "i1"), ("logits", z.dtype, classes)])["logits"]
    record[...] = z
    yield "in packed records", record, 1


@each_dtype
@pytest.mark.parametrize("option", ["plain", "label_smoothing", "soft", "softcap", "ignore_index"])
def test_any_layout_gives_the_contiguous_result(backend, dtype, option, rng):
    for rows, classes in ((6, 7), (5, 200)):
        z = rng.standard_normal((rows, classes)).astype(dtype)
        labels, options = option_cases(rng, rows, classes)[option]
        for name, a, axis in layouts(z):
            same = np.ascontiguousarray(np.moveaxis(a, axis, -1)).astype(dtype)
            t = labels if labels.ndim == 1 else np.moveaxis(labels, -1, axis)
            want = softxent.cross_entropy_and_grad(same, labels, reduction="none", **options)
            got = softxent.cross_entropy_and_grad(a, t, axis=axis, reduction="none", **options)
            np.testing.assert_array_equal(got[0], want[0], err_msg=name)
            np.testing.assert_array_equal(np.moveaxis(got[1], axis, -1), want[1], err_msg=name)
            np.testing.assert_array_equal(softxent.cross_entropy(a, t, axis=axis, reduction="none", **options), want[0], err_msg=name)
            np.testing.assert_array_equal(np.moveaxis(softxent.softmax(a, axis=axis), axis, -1), softxent.softmax(same), err_msg=name)
            if a.flags.writeable and a.dtype.isnative and name != "broadcast rows":  # out has this layout, or is the logits
                out = np.moveaxis(next(b for n, b, _ in layouts(z) if n == name), axis, -1)
                out = np.moveaxis(out, -1, axis)
                assert softxent.cross_entropy_and_grad(a, t, axis=axis, reduction="none", out=out, **options)[1] is out
                np.testing.assert_array_equal(np.moveaxis(out, axis, -1), want[1], err_msg=name)
                softxent.cross_entropy_and_grad(a, t, axis=axis, out=a, reduction="none", **options)
                np.testing.assert_array_equal(np.moveaxis(a, axis, -1), want[1], err_msg=f"{name}, in place")


@each_dtype
def test_a_mean_without_options_takes_any_layout(backend, dtype, rng):
    """This call is the most frequent one and skips the preparation, if the layouts allow it."""
    z, t = rng.standard_normal((6, 7)).astype(dtype), rng.integers(0, 7, 6)
    for name, a, axis in layouts(z):
        same = np.ascontiguousarray(np.moveaxis(a, axis, -1)).astype(dtype)
        axis = -1 if axis == 1 else axis
        loss, want = softxent.cross_entropy_and_grad(same, t)
        assert softxent.cross_entropy(a, t, axis=axis) == loss, name
        got = softxent.cross_entropy_and_grad(a, t, axis=axis)
        assert got[0] == loss, name
        np.testing.assert_array_equal(np.moveaxis(got[1], axis, -1), want, err_msg=name)
        if a.flags.writeable and a.dtype.isnative and axis == -1:  # `a` as the output of contiguous logits
            assert softxent.cross_entropy_and_grad(same, t, out=a)[1] is a
            np.testing.assert_array_equal(a, want, err_msg=f"{name}, as the output")


def test_rows_with_gaps_give_the_contiguous_result(backend, rng):
    """They are not copied if they have one stride over both leading axes. A new gradient has the layout of the logits."""
    whole, labels = rng.standard_normal((3, 2, 16)), rng.integers(0, 11, (3, 2))
    for z, t in ((whole[..., :11], labels), (whole[:, :1, :11], labels[:, :1])):
        same = np.ascontiguousarray(z)
        assert softxent.cross_entropy(z, t) == softxent.cross_entropy(same, t)
        np.testing.assert_array_equal(softxent.logsumexp(z), softxent.logsumexp(same))
    columns = np.asfortranarray(whole[0])
    assert softxent.cross_entropy_and_grad(columns, labels[0])[1].flags.f_contiguous


def test_windows_that_overlap_are_read_as_their_copy(backend, rng):
    """The step between matrices is that of three classes, as if the rows were shorter than they are, or that of four rows and not three."""
    raw = rng.standard_normal(60)
    for step in (3 * 8, 4 * 5 * 8):
        z = np.lib.stride_tricks.as_strided(raw, (2, 3, 4), (step, 5 * 8, 8), writeable=False)
        np.testing.assert_array_equal(softxent.softmax(z), softxent.softmax(z.copy()))
        np.testing.assert_array_equal(softxent.logsumexp(z), softxent.logsumexp(z.copy()))


def test_a_row_may_be_larger_than_what_is_copied_at_a_time(backend):
    """256 KiB of logits whose classes are not adjacent are copied at a time, or one row."""
    z = np.zeros((70_000, 3), np.float32).T
    assert (softxent.softmax(z) == np.float32(1 / 70_000)).all()


def test_a_large_gradient_may_be_written_to_an_odd_address():
    """From 48 MiB and rows of 8 KiB on, gradients are stored past the caches, which needs aligned addresses."""
    z = np.zeros((4200, 3000), np.float32)
    raw, probabilities, labels = np.zeros(z.nbytes + 4, np.uint8), np.zeros_like(z), np.full(len(z), 7)
    probabilities[:, 7] = 1
    with_entropy = np.array([[1.0, 0, 0, 1, 0, 0, 1]]).T
    assert z.nbytes > 48 << 20
    for shift in (0, 1, 4):
        out = raw[shift : z.nbytes + shift].view(np.float32).reshape(z.shape)
        for write in (
            lambda out: softxent.cross_entropy_and_grad(z, labels, out=out, reduction="sum"),
            lambda out: softxent.cross_entropy_and_grad(z, probabilities, out=out, reduction="sum"),
            lambda out: kernels.active().fused(z, labels, with_entropy, None, truth.IDENTITY, out, np.empty((5, len(z))), None, 1),
        ):
            out[:] = 7
            write(out)
            out[:, 7] += 1
            assert np.abs(out - 1 / 3000).max() < 2.0**-24  # half a unit of 1, to which the label's entry was added
        assert np.abs(softxent.softmax(z, out=out) - 1 / 3000).max() < 2.0**-24 / 3000  # half a unit of 1/3000


def test_no_rows_in_any_order(backend):
    for order in "CF":
        z, out = np.zeros((0, 5), order=order), np.zeros((0, 5), order=order)
        loss, dz = softxent.cross_entropy_and_grad(z, np.zeros(0, int), out=out, reduction="sum")
        assert loss == 0 and dz is out
        assert softxent.softmax(z, out=out) is out


@each_dtype
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (1, 2, 1, 3)], ids=str)
def test_the_class_axis_may_be_any_of_k(backend, dtype, shape, rng):
    z = rng.standard_normal(shape).astype(dtype)
    for axis in range(-len(shape), len(shape)):
        flat = np.ascontiguousarray(np.moveaxis(z, axis, -1))
        t = rng.integers(0, flat.shape[-1], flat.shape[:-1])
        want = softxent.cross_entropy_and_grad(flat.reshape(-1, flat.shape[-1]), t.ravel(), reduction="none")
        got = softxent.cross_entropy_and_grad(z, t, axis=axis, reduction="none")
        np.testing.assert_array_equal(got[0].ravel(), want[0])
        np.testing.assert_array_equal(np.moveaxis(got[1], axis, -1).reshape(want[1].shape), want[1])
        hv = softxent.cross_entropy_hvp(z, z, t, axis=axis, reduction="none")
        flat_hv = softxent.cross_entropy_hvp(flat, flat, t, reduction="none")
        np.testing.assert_array_equal(np.moveaxis(hv, axis, -1), flat_hv)


@each_dtype
def test_one_row_without_an_axis_for_it(backend, dtype, rng):
    z, soft = rng.standard_normal(7).astype(dtype), rng.random(7)
    for label, labels in ((np.int64(3), np.array([3])), (3, np.array([3])), (soft, soft[None])):
        loss, dz = softxent.cross_entropy_and_grad(z, label)
        want, dz2 = softxent.cross_entropy_and_grad(z[None], labels)
        assert loss == want and dz.shape == (7,) and (dz == dz2[0]).all()
    assert np.ndim(softxent.cross_entropy(z, 3, reduction="none")) == 0 and softxent.softmax(z).shape == (7,)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", "list"])
def test_labels_of_any_integer_type(backend, dtype, rng):
    z, t = rng.standard_normal((6, 90)), rng.integers(0, 90, 6)
    labels = t.tolist() if dtype == "list" else t.astype(dtype)
    want = softxent.cross_entropy_and_grad(z, t, label_smoothing=0.1)
    record = np.zeros(6, [("letter", "S1"), ("label", "i8" if dtype == "list" else dtype)])["label"]
    record[...] = labels
    for given in (labels, np.repeat(labels, 3).reshape(6, 3)[:, 1], record):  # contiguous, strided and in packed records
        loss, dz = softxent.cross_entropy_and_grad(z, given, label_smoothing=0.1)
        assert loss == want[0] and (dz == want[1]).all()
        plain = softxent.cross_entropy_and_grad(z, given)
        assert plain[0] == softxent.cross_entropy(z, t)


def test_lists_and_integers_and_other_libraries_arrays(backend):
    loss, dz = softxent.cross_entropy_and_grad([[2, 1, 0]], [0])
    assert dz.dtype == np.float64 and loss == softxent.cross_entropy(np.array([[2.0, 1, 0]]), 0 * np.ones(1, int))
    z, t = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    assert softxent.cross_entropy(z, t) == softxent.cross_entropy(z.numpy(), t.numpy())


def test_a_masked_array_without_masked_entries_is_an_array(backend, rng):
    z, t = rng.standard_normal((4, 5)), np.array([0, 1, 2, 3])
    assert softxent.cross_entropy(np.ma.masked_array(z), np.ma.masked_array(t, [0] * 4)) == softxent.cross_entropy(z, t)


@each_dtype
def test_negative_probabilities_are_computed_to_absolute_accuracy(backend, dtype, rng):
    """The loss is linear in them: what the guide says of truths below 0, where no relative accuracy is promised."""
    z, y = rng.standard_normal((20, 30)).astype(dtype), rng.standard_normal((20, 30))
    loss, dz = softxent.cross_entropy_and_grad(z, y, reduction="none")
    x = z.astype(np.float64)
    level, size = scipy.special.logsumexp(x, axis=1), np.abs(y).sum(axis=1)
    near = bounds.grad_bound(dtype, 30, 10) + 3 * bounds.unit(dtype)
    within(loss, y.sum(1) * level - (y * x).sum(1), near * size * (1 + level + np.abs(x).max(axis=1)), "loss")
    want = y.sum(1, keepdims=True) * scipy.special.softmax(x, axis=1) - y
    within(dz, want, near * size[:, None] + bounds.UNIT[dtype.name] * np.abs(want), "gradient")


# ---- arguments are not written ----


def index(t):  # class indices, for functions that take nothing else
    return t if t.ndim == 1 else t.argmax(axis=1)


def head(z):  # x and weight for these logits: the linear layer has no 16-bit types
    x = z if z.dtype.char in "fd" else z.astype(np.float32)
    return x, np.eye(x.shape[1], dtype=x.dtype)


CALLS = {
    "cross_entropy": lambda z, v, t, kw: softxent.cross_entropy(z, t, **kw),
    "cross_entropy_and_grad": lambda z, v, t, kw: softxent.cross_entropy_and_grad(z, t, **kw),
    "cross_entropy_hvp": lambda z, v, t, kw: softxent.cross_entropy_hvp(z, v, t, **kw),
    "softmax": lambda z, v, t, kw: softxent.softmax(z),
    "log_softmax": lambda z, v, t, kw: softxent.log_softmax(z),
    "logsumexp": lambda z, v, t, kw: softxent.logsumexp(z),
    "softmax_vjp": lambda z, v, t, kw: softxent.softmax_vjp(z, v),
    "softmax_jacobian": lambda z, v, t, kw: softxent.softmax_jacobian(z),
    "token_logprobs": lambda z, v, t, kw: softxent.token_logprobs(z, index(t)),
    "token_logprobs_and_grad": lambda z, v, t, kw: softxent.token_logprobs_and_grad(z, index(t), upstream=v[:, 0].astype(float)),
    "entropy": lambda z, v, t, kw: softxent.entropy(z),
    "entropy_and_grad": lambda z, v, t, kw: softxent.entropy_and_grad(z, upstream=v[:, 0].astype(float)),
    "linear_cross_entropy": lambda z, v, t, kw: softxent.linear_cross_entropy(*head(z), t, bias=head(v)[0][0], **kw),
    "linear_cross_entropy_and_grad": lambda z, v, t, kw: softxent.linear_cross_entropy_and_grad(*head(z), t, bias=head(v)[0][0], **kw),
    "linear_cross_entropy_hvp": lambda z, v, t, kw: softxent.linear_cross_entropy_hvp(*head(z), t, *head(v), bias=head(v)[0][0], **kw),
    "linear_cross_entropy_ggn": lambda z, v, t, kw: softxent.linear_cross_entropy_ggn(*head(z), t, *head(v), vb=head(v)[0][0], **kw),
}  # fmt: skip


@each_dtype
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CALLS)
def test_no_argument_is_ever_written(backend, name, option, dtype, rng):
    """The bytes of all arguments are the same after the call, read-only arguments are accepted, and results do not share their memory."""
    labels, options = option_cases(rng, 6, 9)[option]
    arrays = [rng.standard_normal((6, 9)).astype(dtype), rng.standard_normal((6, 9)).astype(dtype), labels.copy()]
    options = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in options.items()}
    everything = arrays + [v for v in options.values() if isinstance(v, np.ndarray)]
    before = [a.tobytes() for a in everything]
    for writeable in (True, False):
        for a in everything:
            a.flags.writeable = writeable
        result = CALLS[name](*arrays, options)
        assert [a.tobytes() for a in everything] == before
        for r in result if isinstance(result, tuple) else (result,):
            assert not any(np.shares_memory(r, a) for a in everything if isinstance(r, np.ndarray))
            assert not isinstance(r, np.ndarray) or r.flags.writeable


def test_every_function_is_among_the_pure_ones():
    functions = {n for n in softxent.__all__ if inspect.isfunction(getattr(softxent, n))}
    in_test_notebook = {"explain"}
    assert functions - set(CALLS) - in_test_notebook == {"backends", "empty_cache", "get_num_threads", "set_num_threads", "use_backend"}


@each_dtype
def test_what_comes_back_has_the_documented_type(backend, dtype, rng):
    z, t = rng.standard_normal((4, 5)).astype(dtype), rng.integers(0, 5, 4)
    for options in ({}, dict(label_smoothing=0.1), dict(softcap=2.0), dict(sample_weight=np.ones(4, np.float32))):
        for reduction, shape in (("none", (4,)), ("sum", ()), ("mean", ())):
            loss, dz = softxent.cross_entropy_and_grad(z, t, reduction=reduction, **options)
            alone = softxent.cross_entropy(z, t, reduction=reduction, **options)
            assert loss.dtype == alone.dtype == np.float64 and np.shape(loss) == shape and dz.dtype == dtype and dz.shape == z.shape
            np.testing.assert_array_equal(loss, alone)
    assert computed(dtype) == softxent.cross_entropy_and_grad(z.astype(computed(dtype)), t)[1].dtype
    assert softxent.softmax_jacobian(z).dtype == np.float64


# ---- backends ----


def test_backends_say_what_runs(backend):
    now = {b.name: b for b in softxent.backends()}
    assert [b.name for b in now.values() if b.active] == [backend] and now[backend].available and now[backend].detail
    with softxent.use_backend("formula"):
        assert next(b for b in softxent.backends() if b.active).name == "formula"
    assert next(b for b in softxent.backends() if b.active).name == backend


def test_the_number_of_threads_is_what_was_set():
    softxent.set_num_threads(3)
    assert softxent.get_num_threads() == 3


@pytest.mark.parametrize("classes", [5, 100, 5000])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_probabilities_may_lie_in_any_order_and_have_any_float_type(backend, dtype, classes, rng):
    z, u = rng.normal(size=(6, classes)).astype(dtype), rng.integers(0, 65, (6, classes)) / 64  # numbers of every type
    want = None
    for of in DTYPES.values():
        p = u.astype(of)
        for order in (p, np.asfortranarray(p), p[::-1].copy()[::-1], np.repeat(p, 2, axis=1)[:, ::2]):
            got = *softxent.cross_entropy_and_grad(z, order), softxent.cross_entropy_hvp(z, z, order, softcap=3.0)
            want = got if want is None else want
            for found, right in zip(got, want, strict=True):
                assert np.array_equal(found, right)


@pytest.mark.parametrize("classes", [5, 100, 5000])
def test_the_kernel_rounds_probabilities_to_the_type_of_the_computation(classes, rng):
    z, u = rng.normal(size=(6, classes)).astype(np.float32), rng.dirichlet(np.ones(classes), 6)
    for options in ({}, {"temperature": 2.0**-100}, {"softcap": 3.0}):  # the second is computed in wide numbers
        got, want = (
            (*softxent.cross_entropy_and_grad(z, p, **options), softxent.cross_entropy_hvp(z, z, p, **options))
            for p in (u, u.astype(np.float32))
        )
        for found, right in zip(got, want, strict=True):
            assert np.array_equal(found, right, equal_nan=True)


# ---- the truth of a call ----

Z, LABELS, ONES = np.ones((3, 4), np.float32), np.array([0, 3, 1]), np.ones(4)
SAME_HASH = [("ignore_index", -1, -1.0), ("ignore_index", 1, True), ("axis", 1, True), ("axis", 1, 1.0)]


@pytest.mark.parametrize(("name", "right", "wrong"), SAME_HASH)
def test_an_option_is_not_taken_for_one_of_another_type_that_was_checked_before(name, right, wrong):
    assert right == wrong
    softxent.cross_entropy(Z, LABELS, **{name: right})
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            softxent.cross_entropy(Z, LABELS, **{name: wrong})


def test_options_may_be_arrays_without_axes():
    want = softxent.cross_entropy(Z, LABELS, label_smoothing=0.5, temperature=2.0)
    assert softxent.cross_entropy(Z, LABELS, label_smoothing=np.array(0.5), temperature=np.float32(2)) == want


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">i8"])
def test_labels_of_any_integer_type_and_layout(backend, dtype, rng):
    z, t = rng.standard_normal((3, 4, 5)), rng.integers(0, 5, (3, 4))
    weight, sample = rng.random(5), rng.random((3, 4))
    t[1, 2] = 4
    options = [{}, {"ignore_index": 4}, {"ignore_index": 4, "class_weight": weight, "sample_weight": sample}, {"ignore_index": -(2**63)}]
    packed = np.zeros((3, 4), [("a", "S1"), ("t", dtype)])["t"]
    packed[:] = t
    for given in options:
        want = softxent.cross_entropy_and_grad(z, t, **given)
        for a in (t.astype(dtype), t.astype(dtype).T.copy().T, np.repeat(t, 2, 1).astype(dtype)[:, ::2], packed):
            for got, right in zip(softxent.cross_entropy_and_grad(z, a, **given), want, strict=True):
                assert np.array_equal(got, right)
        a = t.astype(dtype)
        a[2, 3] = 7
        with pytest.raises(ValueError, match=r"got 7 at row \(2, 3\)$"):
            softxent.cross_entropy(z, a, **given)


def test_the_gradient_of_a_log_probability_is_minus_that_of_the_loss(backend, rng):
    z, t, up = rng.standard_normal((5, 4)), np.array([0, 1, 4, 2]), rng.standard_normal(4)
    options, out = dict(axis=0, ignore_index=1, temperature=0.5, softcap=3.0, upstream=up), np.empty_like(z)
    loss, dz = softxent.cross_entropy_and_grad(z, t, reduction="none", **options)
    logprob, found = softxent.token_logprobs_and_grad(z, t, out=out, **options)
    assert found is out and (found == -dz).all() and (logprob == -loss).all() and logprob[1] == 0


@pytest.mark.parametrize("option", OPTIONS)
def test_the_mass_of_a_row_is_the_sum_of_its_truth(option, rng):
    labels, options = option_cases(rng, 6, 9)[option]
    of = truth.truth("test", labels, np.zeros((6, 9)), -1, **{k: v for k, v in options.items() if k not in ("temperature", "softcap")})
    label, _, off = of.given(np.dtype(np.float64))
    y, r, *_ = of.rows
    want = y + r * (0 if off is None else off.sum(axis=-1))
    np.testing.assert_allclose(of.mass(), np.where(label == kernels.IGNORED, 0, want), rtol=FEW64)


def test_numbers_that_calls_share_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        truth.truth("f", LABELS, Z, -1, label_smoothing=0.1).shared[:] = 0


def test_calls_of_different_shapes_share_what_smoothing_adds_at_every_class():
    """What is kept of calls before has no array of its own for each shape."""
    of = [truth.truth("f", np.zeros(n, int), np.ones((n, 4), np.float32), -1, label_smoothing=0.1).shared for n in (1, 2)]
    assert of[0] is of[1]
    arguments = pytest.importorskip("softxent.torch.arguments")
    torch = pytest.importorskip("torch")
    given = (-100, "mean", 0.1, 0.0, 1.0, None)
    each = [arguments.settled("f", torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64), None, None, *given) for n in (1, 2)]
    assert each[0].numbers.off is each[1].numbers.off


def test_which_arrays_a_kernel_reads_in_place():
    packed = np.zeros(3, [("a", "S1"), ("z", "f4", 4)])["z"]
    assert [truth.in_elements(a) for a in (Z, Z[:, :2], Z[::-1], Z.T, Z[:, ::2], packed)] == [True] * 5 + [False]
    assert truth.truth("f", LABELS, Z, -1).usable()
    assert all(truth.truth("f", Z.astype(dtype), Z, -1).usable() for dtype in DTYPES.values())
    assert not truth.truth("f", Z.astype(">f4"), Z, -1).usable()
    assert not truth.truth("f", Z, Z, -1, label_smoothing=0.1).usable()


def test_class_weights_of_labels_that_were_not_checked():
    """On a GPU, a label that is out of range is a row of NaN, and no error."""
    assert (truth.row_numbers(np.array([-1, 0, 3, 9]), ONES + LABELS.repeat([1, 1, 2]), None, 0.0, 0.0, 4).weight == [1, 1, 2, 2]).all()


def test_options_are_checked_for_every_front_end():
    right = dict(ignore_index=-1, reduction="sum", label_smoothing=0.25, z_loss=0.5, temperature=2.0, softcap=3.0)
    assert truth.options("f", **right) == tuple(right.values())
    assert truth.options("f", **right | dict(softcap=None)).cap == np.inf
    for name, wrong in itertools.product(right, (-0.5, "wrong")):
        with pytest.raises((TypeError, ValueError), match=f"^f: {name} must be .*; got {wrong!r}"):
            truth.options("f", **right | {name: wrong})
