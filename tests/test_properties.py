"""Properties that hold for all shapes, values and options, tested by hypothesis, with the same examples in every run."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BACKENDS, DTYPES, cuts_of, merged
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import FEW64, FLOAT64

import softxent
from softxent import kernels
from softxent.partials import Partials, finish
from softxent.proof import bounds

every = settings(max_examples=250, deadline=None, derandomize=True, database=None)
backends = st.sampled_from(BACKENDS)
dtypes = st.sampled_from(list(DTYPES.values()))


@st.composite
def problems(draw, low=-60.0, high=60.0, few=1, many=40):
    """Draw a backend, logits [R, C] and labels [R]."""
    rows, c = draw(st.integers(1, 6)), draw(st.integers(few, many))
    values = st.floats(low, high, width=32) if draw(st.booleans()) else st.sampled_from([0.0, 1.0, -1.0, high, low])
    z = draw(hnp.arrays(np.float64, (rows, c), elements=values, fill=values))
    t = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, c - 1)))
    return draw(backends), z.astype(draw(dtypes)), t


def room(z):
    """Return the tolerance for an entry between 0 and 1, or for a sum of such entries."""
    return bounds.grad_bound(z.dtype, z.shape[1], 200) + bounds.UNIT[z.dtype.name]


@every
@given(problems())
def test_softmax_is_a_distribution(p):
    backend, z, _ = p
    with softxent.use_backend(backend):
        yhat = softxent.softmax(z).astype(np.float64)
    assert (yhat >= 0).all() and (yhat <= 1 + room(z)).all()
    np.testing.assert_allclose(yhat.sum(axis=1), 1, rtol=0, atol=room(z) * 2 + z.shape[1] * bounds.TINY[z.dtype.name])
    order = np.argsort(z.astype(np.float64), axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(yhat, order, axis=1), axis=1) >= -room(z) * yhat.max()).all(), (
        "softmax keeps the order of the logits"
    )


@every
@given(problems())
def test_loss_and_gradient_of_a_label(p):
    backend, z, t = p
    rows = np.arange(len(z))
    with softxent.use_backend(backend):
        loss, dz = softxent.cross_entropy_and_grad(z, t, reduction="none")
    dz = dz.astype(np.float64)
    assert np.isfinite(loss).all() and (loss >= 0).all()
    assert (np.abs(dz) <= 1 + room(z)).all() and (dz[rows, t] <= 0).all()
    assert (np.delete(dz, 0, axis=1) >= 0)[t == 0].all(), "only the label's entry is negative"
    assert (np.abs(dz.sum(axis=1)) <= 3 * room(z) + z.shape[1] * bounds.TINY[z.dtype.name]).all()
    x = z.astype(np.float64)
    top = x.max(axis=1)
    # the rounding of a float32 loss of up to 100
    assert (loss <= top - x[rows, t] + np.log(z.shape[1]) + 1e-5).all() and (loss >= top - x[rows, t] - 1e-5).all(), (
        "max - z_t <= loss <= max - z_t + ln C"
    )


@every
@given(problems(few=2), st.floats(1, 8))
def test_the_loss_falls_as_the_labels_logit_rises(p, step):
    backend, z, t = p
    higher = z.copy()
    higher[np.arange(len(z)), t] += z.dtype.type(step)
    with softxent.use_backend(backend):
        before, after = (softxent.cross_entropy(a, t, reduction="none") for a in (z, higher))
    moved = higher[np.arange(len(z)), t] > z[np.arange(len(z)), t]
    assert (after <= before).all() and (after[moved] < before[moved]).all()


@every
@given(problems(), st.data())
def test_a_permutation_of_the_classes_permutes_the_gradient(p, data):
    backend, z, t = p
    order = np.array(data.draw(st.permutations(range(z.shape[1]))))
    with softxent.use_backend(backend):
        loss, dz = softxent.cross_entropy_and_grad(z, t, reduction="none")
        loss2, dz2 = softxent.cross_entropy_and_grad(z[:, order], np.argsort(order)[t], reduction="none")
    np.testing.assert_allclose(loss2, loss, rtol=2 * room(z) + FLOAT64)
    np.testing.assert_allclose(dz2.astype(float), dz[:, order].astype(float), rtol=3 * room(z), atol=2 * bounds.TINY[z.dtype.name])


@st.composite
def options(draw, rows, classes):
    weights = st.just(0.0) | st.floats(0.01, 2)  # a mean divides by their sum, and float16 ends at 65504
    some = {
        "label_smoothing": st.floats(0, 1),
        "z_loss": st.floats(0, 0.1),
        "temperature": st.floats(0.25, 4),
        "softcap": st.floats(1, 50),
        "class_weight": hnp.arrays(np.float64, classes, elements=weights),
        "sample_weight": hnp.arrays(np.float64, rows, elements=weights),
        "reduction": st.sampled_from(["none", "sum", "mean"]),
    }
    return {name: draw(value) for name, value in some.items() if draw(st.booleans())}


@every
@given(problems(low=-20, high=20), st.data())
def test_any_options_give_a_finite_loss_and_a_gradient_that_sums_to_the_z_loss(p, data):
    backend, z, t = p
    kw = data.draw(options(*z.shape))
    soft = data.draw(st.booleans())
    labels = data.draw(hnp.arrays(np.float64, z.shape, elements=st.floats(0, 1))) if soft else t
    with softxent.use_backend(backend):
        loss, dz = softxent.cross_entropy_and_grad(z, labels, empty_value=0.0, **kw)
        assert np.isfinite(loss).all() and (np.asarray(loss) >= 0).all()
        assert np.isfinite(dz.astype(float)).all() and dz.dtype == z.dtype
        np.testing.assert_array_equal(softxent.cross_entropy(z, labels, empty_value=0.0, **kw), loss)
        if "softcap" not in kw and "z_loss" not in kw:
            size = np.abs(dz.astype(float)).sum(axis=1)
            mass = (labels.sum(1) if soft else 1) * 4 * 2 / kw.get("temperature", 1.0) + 8
            assert (np.abs(dz.astype(float).sum(axis=1)) <= room(z) * (4 * size + 4 * mass) + z.shape[1] * bounds.TINY[z.dtype.name]).all()


@every
@given(problems(), st.data())
def test_any_cut_into_shards_gives_the_same_loss(p, data):
    backend, z, t = p
    edges = data.draw(st.lists(st.integers(0, z.shape[1]), max_size=4))
    truth, parts = np.array([[1.0], [0.0], [0.0], [1.0]]), []
    with softxent.use_backend(backend):
        for k in cuts_of(edges, z.shape[1]):
            part = np.empty((7, len(z)))
            kernels.active().forward(np.ascontiguousarray(z[:, k]), t - k.start, truth, None, (1.0, np.inf), np.empty((2, len(z))), part, 1)
            parts.append(part)
        want = softxent.cross_entropy(z, t, reduction="none")
    np.testing.assert_allclose(finish(Partials(*merged(parts)))[0], want, rtol=2 * bounds.loss_bound(z.dtype, z.shape[1], 200))


@every
@given(problems(low=-10, high=10, few=2, many=20), st.data())
def test_the_hessian_is_positive_and_knows_no_constant(p, data):
    backend, z, t = p
    z = z.astype(np.float64)
    v = data.draw(hnp.arrays(np.float64, z.shape, elements=st.floats(-3, 3)))
    with softxent.use_backend(backend):
        hv = softxent.cross_entropy_hvp(z, v, t, reduction="none")
        assert ((hv * v).sum(axis=1) >= -FEW64).all()
        np.testing.assert_allclose(softxent.cross_entropy_hvp(z, v + 2.0, t, reduction="none"), hv, rtol=0, atol=FEW64)
        h, _ = softxent.entropy_and_grad(z)
    assert (h >= 0).all() and (h <= np.log(z.shape[1]) + FLOAT64).all(), "0 <= entropy <= ln C"


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_drawn(name):
    """The strategies draw every dtype, so that each property is tested for it."""
    seen = set()

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(problems())
    def look(p):
        seen.add((p[0], p[1].dtype))

    look()
    assert {(b, DTYPES[name]) for b in BACKENDS} <= seen
