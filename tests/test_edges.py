"""Special values and invalid arguments: each row of the table in docs/guide.md, on every backend, and the text of every error."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import traceback
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from cases import DTYPES
from tolerances import FLOAT32

import softxent
import softxent.torch as st
from softxent import contract
from softxent.proof.bounds import TINY, UNIT, loss_bound

INF, NAN = np.inf, np.nan
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_width = pytest.mark.parametrize("classes", (3, 40, 130, 5000))  # numbers of classes for which the kernel stores rows in different ways


def rows(dtype, classes, rng, n=9):
    return (2 * rng.standard_normal((n, classes))).astype(dtype), rng.integers(0, classes, n)


def bits(a):
    return np.ascontiguousarray(a).tobytes()


# ---- ignored and invalid rows ----

BAD = {
    "all_-inf": (-INF, -INF),
    "nan": (NAN, 0),
    "all_nan": (NAN, NAN),
    "inf": (INF, 0),
    "two_inf": (INF, INF),
    "inf_and_-inf": (INF, -INF),
}


@each_width
@each_dtype
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_row_is_nan_and_the_others_keep_their_bits(backend, dtype, classes, bad, rng):
    z, t = rows(dtype, classes, rng)
    good = softxent.cross_entropy_and_grad(z, t, reduction="none")
    one, others = bad
    for at, label in ((0, 0), (0, 1), (classes - 1, 0), (classes // 2, classes - 1)):  # at the label and at another class
        z2, t2 = z.copy(), t.copy()
        z2[4], t2[4] = (others if others else z[4]), label
        z2[4, at] = one
        loss, dz = softxent.cross_entropy_and_grad(z2, t2, reduction="none")
        assert np.isnan(loss[4]) and np.isnan(dz[4].astype(float)).all()
        rest = np.arange(9) != 4
        assert bits(loss[rest]) == bits(good[0][rest]) and bits(dz[rest]) == bits(good[1][rest])
        assert np.isnan(softxent.cross_entropy(z2, t2)) and np.isnan(softxent.logsumexp(z2)[4] if others != -INF or one == INF else NAN)
        assert np.isnan(softxent.softmax(z2)[4].astype(float)).all() and not np.isnan(softxent.softmax(z2)[rest].astype(float)).any()


@each_dtype
def test_all_rows_ignored(backend, dtype, rng):
    z, t = rows(dtype, 5, rng)[0], np.full(9, -100)
    loss, dz = softxent.cross_entropy_and_grad(z, t)
    assert np.isnan(loss) and torch.nn.functional.cross_entropy(torch.zeros(9, 5), torch.tensor(t)).isnan()
    assert (dz == 0).all()
    assert softxent.cross_entropy(z, t, empty_value=0.0) == 0 == softxent.cross_entropy(z, t, reduction="sum")
    assert softxent.cross_entropy_and_grad(z, t, empty_value=0.0)[0] == 0
    assert (softxent.cross_entropy(z, t, reduction="none") == 0).all()


# ---- small and odd shapes ----


@each_dtype
def test_no_rows(backend, dtype):
    for shape in ((0, 5), (3, 0, 5), (0, 3, 5)):
        z, t = np.empty(shape, dtype), np.empty(shape[:-1], int)
        loss, dz = softxent.cross_entropy_and_grad(z, t)
        assert np.isnan(loss) and dz.shape == shape and dz.dtype == dtype
        assert softxent.cross_entropy(z, t, reduction="sum") == 0
        assert softxent.cross_entropy(z, t, reduction="none").shape == shape[:-1]
        for f in (softxent.softmax, softxent.log_softmax):
            assert f(z).shape == shape
        assert softxent.logsumexp(z).shape == softxent.entropy(z).shape == shape[:-1]
        assert softxent.cross_entropy_hvp(z, z, t).shape == softxent.softmax_vjp(z, z).shape == shape


@each_dtype
def test_one_class(backend, dtype):
    z, t = np.array([[3.0], [-7.0], [0.0]], dtype), np.zeros(3, int)
    for labels in (t, np.ones((3, 1))):
        loss, dz = softxent.cross_entropy_and_grad(z, labels, reduction="none")
        assert loss.tolist() == [0, 0, 0] and (dz == 0).all()
    np.testing.assert_allclose(softxent.logsumexp(z), [3, -7, 0], rtol=0, atol=loss_bound(dtype, 1) + 8 * UNIT["float64"])
    assert (softxent.softmax(z) == 1).all() and (softxent.log_softmax(z) == 0).all()
    loss, dz = softxent.cross_entropy_and_grad(z, t, reduction="none", z_loss=0.5)
    assert loss.tolist() == [4.5, 24.5, 0] and dz.ravel().tolist() == [3, -7, 0]
    assert (softxent.cross_entropy_hvp(z, z, t) == 0).all() and (softxent.entropy(z) == 0).all()


# ---- labels out of range ----


@pytest.mark.parametrize("bad", [7, -1, 2**40, -(2**62), 100], ids=str)
def test_a_label_outside_names_its_row_and_value_and_nothing_is_written(backend, bad, rng):
    z, t = rows(np.float32, 7, rng)
    t[[5, 7]] = bad, 99
    out, place = np.full_like(z, 42), z.copy()
    for kwargs in ({}, dict(out=out), dict(reduction="sum"), dict(label_smoothing=0.1)):
        with pytest.raises(ValueError) as e:
            softxent.cross_entropy_and_grad(z, t, **kwargs)
        assert str(e.value) == f"cross_entropy_and_grad: labels must lie in [0, 7) or be ignore_index=-100; got {bad} at row 5"
    with pytest.raises(ValueError, match=rf"^cross_entropy: labels must lie in \[0, 7\) or be ignore_index=3; got {bad} at row 5$"):
        softxent.cross_entropy(z, t, ignore_index=3)
    with pytest.raises(ValueError):
        softxent.cross_entropy_and_grad(place, t, out=place)
    assert (out == 42).all() and bits(place) == bits(z), "written before the labels were checked"
    with pytest.raises(ValueError, match=rf"got {bad} at row \(1, 2\)$"):
        softxent.cross_entropy(z.reshape(3, 3, 7), t.reshape(3, 3))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"])
def test_a_label_of_any_type_is_judged_by_its_value(backend, dtype):
    """The largest value of each type is out of range. A uint64 that would be -100 as an int64 is not ignored."""
    z, info = np.zeros((3, 5)), np.iinfo(dtype)
    for value in {int(info.max), int(info.min), int(info.max) - 99} - set(range(5)) - {-100}:
        with pytest.raises(ValueError, match=f"got {value} at row 1$"):
            softxent.cross_entropy(z, np.array([1, value, 2], dtype))
    value = min(int(info.max), 2**63 - 1)
    assert softxent.cross_entropy(z, np.array([1, value, 2], dtype), ignore_index=value, reduction="none")[1] == 0


# ---- out ----


def test_an_out_that_overlaps_is_refused(backend):
    base = np.zeros(200, np.float32)
    z, t = base[:50].reshape(5, 10), np.zeros(5, int)
    refused = "cross_entropy_and_grad: out must be the logits themselves or share no memory with them; got a partly overlapping array"
    for out in (base[1:51].reshape(5, 10), base[10:60].reshape(5, 10), z[::-1], z[:, ::-1], base[:100:2].reshape(5, 10)):
        with pytest.raises(ValueError) as e:
            softxent.cross_entropy_and_grad(z, t, out=out)
        assert str(e.value) == refused
    two = base.reshape(10, 20)
    for ours, out in (
        (z, base[50:100].reshape(5, 10)),
        (two[:5, :10], two[:5, 10:]),
        (two[::2, :10], two[1::2, :10]),
    ):  # after, beside, between
        softxent.cross_entropy_and_grad(ours, t, out=out)
    assert softxent.cross_entropy_and_grad(z, t, out=z)[1] is z


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("argument", ["labels", "small labels", "probabilities", "class_weight", "sample_weight", "upstream"])
def test_an_out_that_shares_memory_with_an_argument_is_refused_or_right(backend, argument, dtype, rng):
    """Labels and probabilities are refused; the other arguments are read before anything is written."""
    base = np.zeros(64, dtype)
    z = rng.standard_normal((5, 5)).astype(dtype)
    options = {"reduction": "none"} if argument == "upstream" else {}
    kinds = {"labels": np.int64, "small labels": np.int32, "probabilities": dtype}
    for gap in (-7, -1, 0, 1, 7, 30):
        values = rng.integers(0, 5, 5) if "labels" in argument else rng.random((5, 5) if argument == "probabilities" else 5)
        values = values.astype(kinds.get(argument, np.float64))
        place = base.view(values.dtype)[8 * dtype().itemsize // values.itemsize :][: values.size].reshape(values.shape)
        out = base[8 + gap : 33 + gap].reshape(5, 5)
        place[...] = values
        others = options if argument in kinds else {argument: values, **options}
        want = softxent.cross_entropy_and_grad(z, values if argument in kinds else [1, 2, 3, 4, 0], **others)
        given = (z, place) if argument in kinds else (z, [1, 2, 3, 4, 0])
        others = options if argument in kinds else {argument: place, **options}
        if argument in kinds and np.shares_memory(out, place):
            with pytest.raises(ValueError, match=r"^cross_entropy_and_grad: out must share no memory with the labels; got "):
                softxent.cross_entropy_and_grad(*given, out=out, **others)
            assert bits(place) == bits(values)
        else:
            assert [*map(bits, softxent.cross_entropy_and_grad(*given, out=out, **others))] == [*map(bits, want)]


@pytest.mark.parametrize(
    ("shape", "strides", "apart"),
    [
        ((4, 6), (4, 4), False),
        ((4, 6), (8, 4), False),
        ((4, 6), (20, 4), False),
        ((4, 6), (24, 4), True),
        ((4, 6), (4, 16), True),
        ((4, 6), (4, 12), False),
        ((4, 6), (2, 8), False),  # half an entry
        ((4, 6), (-28, 4), True),
        ((4, 6), (-4, 4), False),
        ((2, 2), (12, 8), True),  # each row between the entries of the other
        ((3, 4, 6), (96, 24, 4), True),
        ((3, 4, 6), (24, 24, 4), False),
        ((3, 4, 6), (96, 8, 4), False),  # within an index of the widest axis
        ((1, 6), (0, 4), True),
    ],
)
def test_an_out_whose_entries_share_memory_is_refused(backend, shape, strides, apart):
    base = np.zeros(400, np.float32)
    out = np.lib.stride_tricks.as_strided(base[150:], shape, strides)
    z = np.arange(out.size, dtype=np.float32).reshape(shape) / 9
    if apart:
        assert bits(softxent.softmax(z, out=out)) == bits(softxent.softmax(z))
    else:
        with pytest.raises(ValueError, match=r"^softmax: out must have one place for each entry; got strides "):
            softxent.softmax(z, out=out)
        assert not base.any()


def test_what_fails_is_written_nowhere(backend):
    z, t = np.zeros((4, 6), np.float32), np.zeros(4, int)
    locked = np.ones_like(z)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match=r"^cross_entropy_and_grad: out must be writeable; got a read-only array$"):
        softxent.cross_entropy_and_grad(z, t, out=locked)
    assert (locked == 1).all()
    with pytest.raises(ValueError, match=r"^softmax: out must be writeable"):
        softxent.softmax(z, out=locked)
    out = np.ones_like(z)
    for wrong in (dict(label_smoothing=2), dict(reduction="x"), dict(softcap=0), dict(class_weight=np.ones(5)), dict(upstream=[1, 2])):
        with pytest.raises(ValueError):
            softxent.cross_entropy_and_grad(z, t, out=out, **wrong)
    assert (out == 1).all()


# ---- every error ----


class Odd:  # an object that refuses to become an array
    def __array__(self, *args, **kwargs):
        raise RuntimeError("on another device")


Z, T, P = np.zeros((4, 6)), np.zeros(4, int), np.full((4, 6), 1 / 6)
_locked = Z.copy()
_locked.flags.writeable = False
grad, loss, linear = softxent.cross_entropy_and_grad, softxent.cross_entropy, softxent.linear_cross_entropy_and_grad
LOSS, GRAD, LINEAR = "cross_entropy: ", "cross_entropy_and_grad: ", "linear_cross_entropy_and_grad: "
# fmt: off
ERRORS = {
    "no_array": (lambda: loss(Odd(), T), TypeError, LOSS + "logits must be an array on the CPU; got Odd (on another device)"),
    "ragged": (lambda: loss([[1.0], None], [0]), TypeError, LOSS + "logits must be "),
    "object": (
        lambda: loss([[object()]], [0]), TypeError,
        LOSS + "logits must be a rectangular array of numbers (cast it to float, with missing values filled in); "
        "got list of Python objects",
    ),
    "strings_as_objects": (
        lambda: loss(Z, np.array(["cat", "dog", "cat", "owl"], object)), TypeError,
        LOSS + "labels must be a rectangular array of numbers; got ndarray of strings",
    ),
    "none": (lambda: loss(None, T), TypeError, LOSS + "logits must be a rectangular array of numbers; got None"),
    "ragged_rows": (
        lambda: loss([[1.0, 2.0], [3.0]], [0, 0]), TypeError,
        LOSS + "logits must be a rectangular array of numbers, its rows of one length; got rows of different lengths",
    ),
    "ragged_labels": (
        lambda: grad(Z, [[0], [1, 2], [3], [0]]), TypeError,
        GRAD + "labels must be a rectangular array of numbers, its rows of one length; got rows of different lengths",
    ),
    "sparse": (
        lambda: loss(scipy.sparse.csr_array(Z), T), TypeError,
        LOSS + "logits must be a dense array (logits.toarray() is one); got csr_array",
    ),
    "strings": (
        lambda: loss([["a", "b"]], [0]), TypeError,
        LOSS + "logits must have dtype float32, float64, float16 or bfloat16; got strings",
    ),
    "requires_grad": (
        lambda: loss(torch.zeros(4, 6, requires_grad=True), T), TypeError,
        LOSS + "logits must be an array without gradients (softxent.torch takes tensors with them); got a tensor that requires grad",
    ),
    "requires_grad_bfloat16": (
        lambda: grad(torch.zeros(4, 6, dtype=torch.bfloat16, requires_grad=True), T), TypeError,
        GRAD + "logits must be an array without gradients (softxent.torch takes tensors with them); got a tensor that requires grad",
    ),
    "requires_grad_in_a_list": (
        lambda: softxent.softmax([torch.zeros(3), torch.zeros(3, requires_grad=True)]), TypeError,
        "softmax: logits must be an array without gradients (softxent.torch takes tensors with them); got a tensor that requires grad",
    ),
    "on_another_device": (
        lambda: loss(torch.zeros(4, 6, device="meta"), T), TypeError,
        LOSS + "logits must be an array on the CPU (softxent.torch takes tensors of every device); got a tensor on meta",
    ),
    "on_another_device_bfloat16": (
        lambda: loss(torch.zeros(4, 6, device="meta", dtype=torch.bfloat16), T), TypeError,
        LOSS + "logits must be an array on the CPU (softxent.torch takes tensors of every device); got a tensor on meta",
    ),
    "sparse_bfloat16": (
        lambda: loss(torch.zeros(4, 6, dtype=torch.bfloat16).to_sparse(), T), TypeError,
        LOSS + "logits must be a dense array on the CPU; got Tensor",
    ),
    "masked_logits": (
        lambda: loss(np.ma.masked_array(Z, Z == 0), T), ValueError,
        LOSS + "logits must have no masked entries (logits.filled(value) has none); got 24 masked of 24",
    ),
    "masked_labels": (
        lambda: grad(Z, np.ma.masked_array(T, [0, 1, 0, 0])), ValueError,
        GRAD + "labels must have no masked entries (labels.filled(ignore_index) has none); got 1 masked of 4",
    ),
    "complex": (lambda: loss(Z * 1j, T), TypeError, LOSS + "logits must have dtype float32, float64, float16 or bfloat16; got complex128"),
    "bool": (lambda: loss(Z > 0, T), TypeError, LOSS + "logits must have dtype float32, float64, float16 or bfloat16; got bool"),
    "longdouble": (lambda: loss(Z.astype(np.longdouble), T), TypeError, LOSS + "logits must have dtype "),
    "scalar": (lambda: loss(1.0, 0), ValueError, LOSS + "logits must have a class axis, such as shape (rows, classes); got a scalar"),
    "axis": (lambda: loss(Z, T, axis=2), ValueError, LOSS + "axis must be an int between -2 and 1 for logits of shape (4, 6); got 2"),
    "axis_type": (
        lambda: loss(Z, T, axis=1.0), ValueError,
        LOSS + "axis must be an int between -2 and 1 for logits of shape (4, 6); got 1.0",
    ),
    "no_class": (lambda: loss(Z[:, :0], T), ValueError, LOSS + "logits must have at least one class; got shape (4, 0) with class axis 1"),
    "label_type": (lambda: loss(Z, T > 0), TypeError, LOSS + "labels must be integers (class indices) or floats (probabilities); got bool"),
    "label_floats": (
        lambda: loss(Z, [0.0, 1.0, 2.0, 0.0]), TypeError,
        LOSS + "labels must be cast to int to be class indices, with ignore_index for missing ones, "
        "or have shape (4, 6) to be probabilities; got float64 of shape (4,)",
    ),
    "label_nullable": (
        lambda: loss(Z, np.array([0, 1, None, 2], object)), TypeError,
        LOSS + "labels must be a rectangular array of numbers (cast it to int, with missing values filled in); "
        "got ndarray of Python objects",
    ),
    "label_one_hot": (
        lambda: grad(Z, np.eye(6, dtype=int)[T]), TypeError,
        GRAD + "labels must be cast to float to be probabilities, such as one-hot rows, or have shape (4,) to be class indices; "
        "got int64 of shape (4, 6)",
    ),
    "label_one_hot_bool": (lambda: loss(Z, np.eye(6, dtype=bool)[T]), TypeError, LOSS + "labels must be cast to float to be probabilities"),
    "label_first": (lambda: loss(T, Z), ValueError, LOSS + "logits must come before labels; got arrays of shapes (4,) and (4, 6)"),
    "label_first_images": (
        lambda: grad(np.zeros((2, 3, 3), int), np.zeros((2, 6, 3, 3)), axis=1), ValueError,
        GRAD + "logits must come before labels; got arrays of shapes (2, 3, 3) and (2, 6, 3, 3)",
    ),
    "images": (
        lambda: loss(np.zeros((2, 6, 3, 4)), np.zeros((2, 3, 4), int)), ValueError,
        LOSS + "labels must have shape (2, 6, 3) to match logits (2, 6, 3, 4), whose classes are along axis 3 "
        "(pass axis=1 if they are along axis 1); got (2, 3, 4)",
    ),
    "weight": (
        lambda: loss(Z, T, weight=np.ones(6)), TypeError,
        LOSS + "weight must be passed as class_weight, as it is called here; got ndarray",
    ),
    "weight_grad": (lambda: grad(Z, T, weight=np.ones(6)), TypeError, GRAD + "weight must be passed as class_weight"),
    "weight_hvp": (
        lambda: softxent.cross_entropy_hvp(Z, Z, T, weight=[1.0] * 6), TypeError,
        "cross_entropy_hvp: weight must be passed as class_weight, as it is called here; got list",
    ),
    "linear_weight": (
        lambda: linear(Z, Z, T, weight=np.ones(4)), TypeError,
        LINEAR + "a second weight must be passed as class_weight, as it is called here; got ndarray",
    ),
    "linear_option": (
        lambda: softxent.linear_cross_entropy_hvp(Z, Z, T, Z, Z, clas_weight=1), TypeError,
        "linear_cross_entropy_hvp: keyword arguments must be among class_weight, empty_value, ignore_index, label_smoothing, reduction, "
        "sample_weight, softcap, temperature, upstream, z_loss; got clas_weight",
    ),
    "linear_images": (
        lambda: linear(np.zeros((2, 3, 5)), np.zeros((6, 5)), np.zeros((2, 6), int)), ValueError,
        LINEAR + "labels must have shape (2, 3) to match logits (2, 3, 6); got (2, 6)",
    ),
    "budget": (lambda: linear(Z, Z, T, budget=0), ValueError, LINEAR + "budget must be an int of at least 1; got 0"),
    "budget_type": (lambda: linear(Z, Z, T, budget=1e6), TypeError, LINEAR + "budget must be an int of at most 64 bits; got 1000000.0"),
    "place": (
        lambda: contract.place("demo", "output", Path(__file__) / "below", folder=True), ValueError,
        f"demo: output must be a folder that files can be written to; got {__file__}/below (Not a directory)",
    ),
    "label_shape": (lambda: loss(Z, T[:3]), ValueError, LOSS + "labels must have shape (4,) to match logits (4, 6); got (3,)"),
    "label_shape_3d": (
        lambda: grad(np.zeros((8, 6, 2)), np.zeros((8, 3), int), axis=1), ValueError,
        GRAD + "labels must have shape (8, 2) to match logits (8, 6, 2); got (8, 3)",
    ),
    "soft_shape": (
        lambda: loss(Z, P[:3]), ValueError,
        LOSS + "probability labels must have shape (4, 6) to match logits (4, 6); got (3, 6)",
    ),
    "label_range": (lambda: loss(Z, T - 1), ValueError, LOSS + "labels must lie in [0, 6) or be ignore_index=-100; got -1 at row 0"),
    "v_shape": (
        lambda: softxent.cross_entropy_hvp(Z, Z[:3], T), ValueError,
        "cross_entropy_hvp: v must have shape (4, 6) to match logits (4, 6); got (3, 6)",
    ),
    "smoothing_type": (
        lambda: loss(Z, T, label_smoothing="a"), TypeError,
        LOSS + "label_smoothing must be a finite number of at least 0 and at most 1; got 'a'",
    ),
    "smoothing_huge": (
        lambda: loss(Z, T, label_smoothing=10**400), ValueError,
        LOSS + "label_smoothing must be a finite number of at least 0 and at most 1; got an int of 1329 bits",
    ),
    "smoothing": (
        lambda: loss(Z, T, label_smoothing=1.5), ValueError,
        LOSS + "label_smoothing must be a finite number of at least 0 and at most 1; got 1.5",
    ),
    "smoothing_list": (
        lambda: loss(Z, T, label_smoothing=[0.1]), TypeError,
        LOSS + "label_smoothing must be a finite number of at least 0 and at most 1; got [0.1]",
    ),
    "smoothing_array": (
        lambda: loss(Z, T, label_smoothing=np.array([0.1, 0.2])), TypeError,
        LOSS + "label_smoothing must be a finite number of at least 0 and at most 1; got array([0.1, 0.2])",
    ),
    "temperature_array": (lambda: grad(Z, T, temperature=Z), TypeError, GRAD + "temperature must be a finite number of at least 1.17"),
    "reduction_array": (lambda: grad(Z, T, reduction=np.array(["sum", "mean"])), ValueError, GRAD + "reduction must be 'none' or 'sum'"),
    "empty_value": (lambda: loss(Z, T - 100, empty_value="a"), TypeError, LOSS + "empty_value must hold real numbers; got strings"),
    "smoothing_nan": (lambda: grad(Z, T, label_smoothing=NAN), ValueError, GRAD + "label_smoothing must be a finite number"),
    "temperature": (lambda: loss(Z, T, temperature=0), ValueError, LOSS + "temperature must be a finite number of at least 1.17"),
    "softcap": (lambda: loss(Z, T, softcap=-1), ValueError, LOSS + "softcap must be a finite number of at least 1.17"),
    "z_loss": (lambda: loss(Z, T, z_loss=-1), ValueError, LOSS + "z_loss must be a finite number of at least 0; got -1"),
    "ignore_index": (lambda: loss(Z, T, ignore_index="x"), TypeError, LOSS + "ignore_index must be a"),
    "ignore_index_grad": (lambda: grad(Z, T, ignore_index="x"), TypeError, GRAD + "ignore_index must be a"),
    "ignore_index_none": (lambda: grad(Z, T, ignore_index=None), TypeError, GRAD + "ignore_index must be a"),
    "ignore_index_float": (lambda: loss(Z, T, ignore_index=2.5), (TypeError, ValueError), LOSS + "ignore_index must be a"),
    "reduction": (lambda: grad(Z, T, reduction="avg"), ValueError, GRAD + "reduction must be 'none' or 'sum' or 'mean'; got 'avg'"),
    "class_weight": (
        lambda: loss(Z, T, class_weight=[1.0, 2.0]), ValueError,
        LOSS + "class_weight must have shape (6,), one number a class; got (2,)",
    ),
    "linear_weight_type": (
        lambda: softxent.linear_cross_entropy(Z, [["a"] * 6], T), TypeError,
        "linear_cross_entropy: weight must have dtype",
    ),
    "linear_bias_type": (
        lambda: softxent.linear_cross_entropy(Z, Z, T, bias=["a"] * 4), TypeError,
        "linear_cross_entropy: bias must have dtype",
    ),
    "linear_vw": (
        lambda: softxent.linear_cross_entropy_hvp(Z, np.eye(6), T, Z, ["a"]), TypeError,
        "linear_cross_entropy_hvp: vw must hold real numbers; got strings",
    ),
    "class_weight_type": (lambda: loss(Z, T, class_weight=["a"] * 6), TypeError, LOSS + "class_weight must hold real numbers; got strings"),
    "sample_weight": (
        lambda: loss(Z, T, sample_weight=[1.0, 2.0]), ValueError,
        LOSS + "sample_weight must broadcast to shape (4,); got (2,)",
    ),
    "sample_weight_type": (
        lambda: loss(Z, T, sample_weight=["a"] * 4), TypeError,
        LOSS + "sample_weight must hold real numbers; got strings",
    ),
    "upstream": (lambda: grad(Z, T, upstream=np.ones(4)), ValueError, GRAD + "upstream must broadcast to shape (); got (4,)"),
    "upstream_token": (
        lambda: softxent.token_logprobs_and_grad(Z, T, upstream=["a"]), TypeError,
        "token_logprobs_and_grad: upstream must hold real numbers; got strings",
    ),
    "out_type": (lambda: grad(Z, T, out=Z.astype("f4")), TypeError, GRAD + "out must be an array of dtype float64; got float32"),
    "out_tensor": (
        lambda: grad(Z, T, out=torch.zeros(4, 6, dtype=torch.float64)), TypeError,
        GRAD + "out must be an array of dtype float64; got Tensor",
    ),
    "out_no_array": (lambda: grad(Z, T, out=[1]), TypeError, GRAD + "out must be an array of dtype float64; got list"),
    "out_shape": (lambda: grad(Z, T, out=Z[:3].copy()), ValueError, GRAD + "out must have shape (4, 6) to match logits (4, 6); got (3, 6)"),
    "out_locked": (lambda: grad(Z, T, out=_locked), ValueError, GRAD + "out must be writeable; got a read-only array"),
    "out_overlap": (
        lambda: grad(Z, T, out=Z[::-1]), ValueError,
        GRAD + "out must be the logits themselves or share no memory with them; got ",
    ),
    "out_labels": (
        lambda: grad(Z[:1, :2], T[:1], out=T[:2].view(float)[None]), ValueError,
        GRAD + "out must share no memory with the labels; got an overlapping array",
    ),
    "out_itself": (
        lambda: grad(Z, T, out=np.lib.stride_tricks.as_strided(np.zeros(6), (4, 6), (0, 8))), ValueError,
        GRAD + "out must have one place for each entry; got strides (0, 8) for shape (4, 6)",
    ),
    "x_types": (
        lambda: linear(Z, Z.astype("f4"), T), TypeError,
        LINEAR + "weight must be float64 as x is; got float32",
    ),
    "x_half": (lambda: linear(Z.astype("f2"), Z.astype("f2"), T), TypeError, LINEAR + "x must have dtype float32 or float64; got float16"),
    "weight_shape": (
        lambda: linear(Z, np.zeros((5, 4)), T), ValueError,
        LINEAR + "weight must have shape (classes, 6) to match x (4, 6); got (5, 4)",
    ),
    "no_features": (
        lambda: linear(Z[:, :0], np.zeros((5, 0)), T), ValueError, LINEAR + "x must have at least one feature; got shape (4, 0)"
    ),
    "weight_transposed": (
        lambda: linear(Z, np.zeros((6, 5)), T), ValueError,
        LINEAR + "weight must have shape (classes, 6) to match x (4, 6) (weight.T has it); got (6, 5)",
    ),
    "bias_shape": (
        lambda: linear(Z, Z, T, bias=np.zeros(3)), ValueError,
        LINEAR + "bias must have shape (4,) to match weight (4, 6); got (3,)",
    ),
    "linear_labels": (lambda: linear(Z, Z, T[:2]), ValueError, LINEAR + "labels must have shape (4,) to match logits (4, 4); got (2,)"),
    "linear_range": (lambda: linear(Z, Z, T + 4), ValueError, LINEAR + "labels must lie in [0, 4) or be ignore_index=-100; got 4 at row 0"),
    "linear_softcap": (lambda: linear(Z, Z, T, softcap=-1), ValueError, LINEAR + "softcap must be a finite number of at least 1.17"),
    "backend": (lambda: softxent.use_backend("gpu").__enter__(), ValueError, "use_backend: name must be one of "),
    "backend_type": (lambda: softxent.use_backend(["cpu"]).__enter__(), ValueError, "use_backend: name must be one of "),
    "threads": (lambda: softxent.set_num_threads(0), ValueError, "set_num_threads: threads must be an int from 1 to 4096; got 0"),
    "threads_many": (
        lambda: softxent.set_num_threads(10**6), ValueError,
        "set_num_threads: threads must be an int from 1 to 4096; got 1000000",
    ),
    "threads_type": (lambda: softxent.set_num_threads(1.5), ValueError, "set_num_threads: threads must be an int from 1 to 4096; got 1.5"),
}
# fmt: on


def no_ml_dtypes():
    hidden, sys.modules["ml_dtypes"] = sys.modules["ml_dtypes"], None
    try:
        loss(torch.zeros(4, 6, dtype=torch.bfloat16), T)
    finally:
        sys.modules["ml_dtypes"] = hidden


ERRORS["no_ml_dtypes"] = (
    no_ml_dtypes,
    TypeError,
    "cross_entropy: logits must come with ml_dtypes installed to be bfloat16 (pip install ml_dtypes); got ",
)


@pytest.mark.parametrize("case", ERRORS)
def test_every_error_says_function_argument_expected_got(case):
    call, kind, text = ERRORS[case]
    with pytest.raises(kind) as e:
        call()
    assert type(e.value) in (kind if isinstance(kind, tuple) else (kind,))
    assert re.fullmatch(r"[a-z_]+: [a-z_ ]+ must .+; got .+", str(e.value), re.S), str(e.value)
    assert str(e.value).startswith(text)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cross_entropy", (Z, T)),
        ("cross_entropy_and_grad", (Z, T)),
        ("cross_entropy_hvp", (Z, Z, T)),
        ("linear_cross_entropy", (Z, Z, T)),
        ("linear_cross_entropy_and_grad", (Z, Z, T)),
        ("linear_cross_entropy_hvp", (Z, Z, T, Z, Z)),
        ("linear_cross_entropy_ggn", (Z, Z, T, Z, Z)),
    ],
)
def test_every_loss_refuses_an_unknown_reduction_and_two_empty_values(name, arguments):
    with pytest.raises(ValueError, match=rf"^{name}: reduction must be"):
        getattr(softxent, name)(*arguments, reduction="average")
    if "empty_value" in inspect.signature(getattr(softxent, name)).parameters:
        with pytest.raises(ValueError, match=rf"^{name}: empty_value must"):
            getattr(softxent, name)(*arguments, empty_value=np.zeros(2))


def test_every_line_that_raises_has_its_case():
    """ERRORS contains a case for each line of contract.py that raises an error, and no others."""
    tree = ast.parse(open(contract.__file__).read())
    raises = {
        (node.lineno, node.end_lineno)
        for node in ast.walk(tree)
        if node.__class__ is ast.Raise or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fail")
    }
    seen = set()
    for call, _, _ in ERRORS.values():
        try:
            call()
        except Exception as e:
            seen.update(f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == contract.__file__)
    missing = {span for span in raises if not seen & set(range(span[0], span[1] + 1))}
    assert raises and not missing, f"contract.py: no case in ERRORS for the errors of lines {sorted(missing)}"


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in softxent.__all__
        if callable(getattr(softxent, n))
        and n
        not in ("Backend", "Explanation", "FilterStats", "backends", "empty_cache", "get_num_threads", "set_num_threads", "use_backend")
    ],
)
def test_an_error_names_the_function_that_was_called(name):
    arguments = {"cross_entropy_hvp": (Z > 0, Z, T), "softmax_vjp": (Z > 0, Z)}
    arguments |= {f"linear_cross_entropy{kind}": (Z > 0, Z, T) for kind in ("", "_and_grad")}
    arguments |= {f"linear_cross_entropy{kind}": (Z > 0, Z, T, Z, Z) for kind in ("_hvp", "_ggn")}
    takes_labels = name.startswith(("cross_entropy", "token"))
    with pytest.raises(TypeError) as e:
        getattr(softxent, name)(*arguments.get(name, (Z > 0, T) if takes_labels else (Z > 0,)))
    assert str(e.value).startswith(f"{name}: "), str(e.value)


def test_bfloat16_is_ml_dtypes(backend):
    """bfloat16 may be the NumPy type of ml_dtypes or a torch tensor, with the same bits as the result."""
    z = np.random.default_rng(0).standard_normal((4, 6)).astype(ml_dtypes.bfloat16)
    theirs = torch.tensor(z.astype(np.float32)).to(torch.bfloat16)
    ours = softxent.cross_entropy_and_grad(z, T)
    assert ours[1].dtype == ml_dtypes.bfloat16
    other = softxent.cross_entropy_and_grad(theirs, torch.tensor(T))
    assert ours[0] == other[0] and bits(ours[1]) == bits(other[1])


def test_logits_near_the_largest_float32(backend):
    """m - z overflows in float32, but the loss is a float64 and does not."""
    z = np.array([[3e38, -3e38, 0, 1]], np.float32)
    loss, dz = softxent.cross_entropy_and_grad(z, [0], label_smoothing=0.1)
    assert loss == pytest.approx(3e37, rel=4 * UNIT["float32"])
    np.testing.assert_allclose(dz[0], [0.075, -0.025, -0.025, -0.025], rtol=4 * UNIT["float32"])
    loss, _ = softxent.cross_entropy_and_grad(np.repeat(z, 100, axis=1), [0], label_smoothing=0.1)  # more columns than rows in a lane
    assert np.isfinite(loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_huge_softcap_changes_nothing_and_tiny_ones_are_refused(backend, dtype, rng):
    z, t = (rng.standard_normal((5, 9)) * 1e-3).astype(dtype), rng.integers(0, 9, 5)
    want = softxent.cross_entropy_and_grad(z, t, temperature=0.5)
    for softcap in (1e19, 1e37, 1e39, 1e300):
        loss, dz = softxent.cross_entropy_and_grad(z, t, softcap=softcap, temperature=0.5)
        assert loss == pytest.approx(want[0], rel=4 * UNIT["float32"], abs=0)
        np.testing.assert_allclose(dz, want[1], rtol=4 * UNIT["float32"])
        tensor = torch.tensor(z, requires_grad=True)
        got = st.cross_entropy(tensor, torch.tensor(t), softcap=softcap, temperature=0.5)
        got.backward()
        assert got.item() == pytest.approx(want[0], rel=4 * UNIT["float32"], abs=0)
        np.testing.assert_allclose(tensor.grad.numpy(), want[1], rtol=4 * UNIT["float32"])
    for options in ({"softcap": 1e-46}, {"temperature": 1e-46}):
        with pytest.raises(ValueError, match=r"must be a finite number of at least 1\.17549e-38; got 1e-46"):
            softxent.cross_entropy(z, t, **options)


def test_an_out_whose_overlap_takes_too_long_to_exclude_is_refused(monkeypatch):
    """np.shares_memory gives up after a number of steps. What it did not exclude may overlap, as these do."""

    def gives_up(*_, **__):
        raise np.exceptions.TooHardError

    monkeypatch.setattr(np, "shares_memory", gives_up)
    memory = np.zeros((5, 6))
    with pytest.raises(ValueError, match="out must be the logits themselves or share no memory with them"):
        grad(memory[:4], T, out=memory[1:])


@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize(("label", "upstream"), [(1e12, 1e-46), (1e3, 1e-41), (1e30, 1e-60)])
def test_large_truths_with_a_tiny_upstream_gradient(backend, label, upstream, classes):
    """upstream * r is subnormal or 0 in float32, but the gradient is not."""
    z, y = np.zeros((1, classes), np.float32), np.zeros((1, classes), np.float32)
    z[0, 0], y[0, :2] = 0.5, label
    yhat = np.exp(z.astype(float)) / np.exp(z.astype(float)).sum()
    got = softxent.cross_entropy_and_grad(z, y, upstream=upstream, reduction="sum")[1]
    np.testing.assert_allclose(got, upstream * (2 * float(np.float32(label)) * yhat - y), rtol=FLOAT32, atol=2 * TINY["float32"])


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e8), ("float64", 1e16)])
def test_quotients_of_large_logits_and_a_small_temperature_keep_their_differences(backend, dtype, size):
    """The products of 1e8, 1e8 + 8 and 1e8 + 16 with 100 are no float32 numbers, and their differences are."""
    z = np.array([[size, size + 8, size + 16]], dtype)
    loss, dz = softxent.cross_entropy_and_grad(z, [0], temperature=0.01)
    assert loss == pytest.approx(1600, rel=4 * UNIT[dtype])
    np.testing.assert_allclose(dz, [[-100, 0, 100]], rtol=4 * UNIT[dtype])
    small = np.array([[1, 2, 3]], dtype)
    assert softxent.cross_entropy(small, [0], temperature=1e-10) == pytest.approx(2e10, rel=4 * UNIT["float32"])
    for options in (dict(temperature=1e46), dict(temperature=1.7e308, softcap=1)):
        assert softxent.cross_entropy(small, [0], **options) == pytest.approx(np.log(3), rel=4 * UNIT["float32"])
    tiny = dict(temperature=2.0**-126, softcap=1e300)
    assert softxent.cross_entropy(small, [0], **tiny) == pytest.approx(2.0**127, rel=4 * UNIT["float32"])


@pytest.mark.parametrize(
    ("z", "label", "loss"),
    [([1.6e308, -1.6e308], 0, 1.6e307), ([0, 1.6e308, -1.6e308], 0, 1.6e308), ([0, 1.6e308, -1.6e308], 1, 1.6e307)],
)
def test_a_float64_loss_is_finite_where_a_difference_of_logits_is_not(backend, z, label, loss):
    """A difference to the label, and one between others."""
    assert softxent.cross_entropy([z], [label], label_smoothing=0.1) == pytest.approx(loss, rel=8 * UNIT["float64"])
    soft = 0.9 * np.eye(len(z))[label] + 0.1 / len(z)
    assert softxent.cross_entropy([z], [soft]) == pytest.approx(loss, rel=8 * UNIT["float64"])


def test_a_float64_loss_is_finite_where_a_difference_of_logits_is_divided(backend):
    z = np.array([[1.6e308, -1.6e308]])
    assert softxent.cross_entropy(z, [0], temperature=2.0**20) == 0
    assert softxent.cross_entropy(z, [1], temperature=4) == pytest.approx(0.8e308, rel=8 * UNIT["float64"])


def test_hessian_products_of_large_vectors_and_tiny_upstream_gradients(backend):
    z, exact = np.array([[0, 1]], np.float32), np.exp(1) / (1 + np.exp(1)) ** 2
    large = np.array([[1e25, -1e25]], np.float32)
    hv = softxent.cross_entropy_hvp(z, large, [0])
    np.testing.assert_allclose(hv, [[2e25 * exact, -2e25 * exact]], rtol=8 * UNIT["float32"])
    for v, upstream in ((4e8, 1e-44), (1e15, 1e-50), (1e-30, 1e60)):
        hv = softxent.cross_entropy_hvp(z, np.array([[v, 0]], np.float32), [0], upstream=upstream)
        want = upstream * float(np.float32(v)) * exact
        np.testing.assert_allclose(hv, [[want, -want]], rtol=16 * UNIT["float32"], atol=TINY["float32"])
    hv = softxent.cross_entropy_hvp(z.astype(float), np.array([[1e305, -1e305]]), [0])
    np.testing.assert_allclose(hv, [[2e305 * exact, -2e305 * exact]], rtol=8 * UNIT["float64"])
