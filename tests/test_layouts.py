"""The layout of arrays: any axes, permuted, sliced and stepped. The bits of a row are those of the same row of a matrix in C order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import BACKENDS, DTYPES, OFFS, computed, problem

import softxent
from softxent import kernels

equal = np.testing.assert_array_equal
TRANSFORMS = [(1.0, math.inf), (0.7, math.inf), (1.0, 5.0), (2.0**-60, 30.0)]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with softxent.use_backend(request.param):
        yield request.param


def laid_out(a: np.ndarray, rng: np.random.Generator, writeable: bool = False) -> np.ndarray:
    """Return an array like `a` whose axes are in any order in memory, with any steps: also negative ones and, if rows repeat, 0."""
    order, steps = rng.permutation(a.ndim), rng.choice([1, 1, 2, -1, -3], a.ndim)
    room = np.zeros([a.shape[k] * abs(steps[k]) for k in order], a.dtype)
    view = room.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    view[...] = a
    for k in range(0 if writeable else a.ndim - 1):
        first = view[(*[slice(None)] * k, slice(1))]
        view = np.broadcast_to(first, a.shape) if (view == first).all() else view
    return view


def repeated(a: np.ndarray, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a matrix whose rows `lead` are perhaps the same along some axes."""
    rows = np.arange(len(a)).reshape(lead)
    for k in range(len(lead)):
        if len(a) and rng.random() < 0.3:
            rows = np.broadcast_to(rows.take([0], axis=k), lead)
    return a[rows.reshape(-1)]


def shapes(rng: np.random.Generator):
    """Yield shapes of rows and numbers of classes: none to six axes of rows; short rows, a tile's, and rows of several blocks."""
    yield from [
        ((), 7),
        ((), 300),
        ((3,), 1),
        ((1, 1), 70),
        ((4, 1, 33), 5),
        ((2, 40), 21),
        ((3, 2, 2, 1, 2, 2), 9),
        ((2, 3), 9001),
        ((0, 4), 3),
    ]
    for _ in range(6):
        yield tuple(rng.integers(1, 9, rng.integers(1, 4))), int(rng.choice([2, 10, 64, 65, 200, 1000]))


def all_results(p, numbers, v, place, threads: int) -> list[np.ndarray]:
    """Return all that the functions of the active kernel give, for arrays [*rows, C] that `place` puts anywhere; matrices in C order."""
    kernel, given, (rows, classes) = kernels.active(), (p.label, numbers, place(p.off), p.transform), p.z.shape
    z, dz, result, sums, products = place(p.z), [], np.full((5, rows), -1.0), np.full((7, rows), -1.0), np.full((4, rows), -1.0)
    for call in (
        lambda out: kernel.fused(z, *given, out, result, sums, threads),
        lambda out: kernel.backward(z, *given, sums, out, threads),
        lambda out: kernel.curvature(z, place(v), *given, False, out, products, threads),
        lambda out: kernel.log_softmax(z, np.ones(1), p.transform, out, threads),
    ):
        out = place(np.zeros_like(p.z), writeable=True)
        call(out)
        dz.append(out.reshape(rows, classes))
    again = np.full((5, rows), -1.0), np.full((7, rows), -1.0)
    kernel.forward(z, *given, *again, threads)
    cut, out = (np.full((7, rows), -1.0), np.full((5, rows), -1.0)), place(np.zeros_like(p.z), writeable=True)
    kernel.tangent_sums(z, place(v), p.label, *given[2:], *cut, threads)
    kernel.hessian(z, place(v), *given, False, *cut, out, products_of_cut := np.full((4, rows), -1.0), threads)
    return [*dz, result, sums, products, *again, *cut, out.reshape(rows, classes), products_of_cut]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("off", OFFS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_bits_of_a_row_do_not_depend_on_the_layout(dtype, off, transform, rng):
    for lead, classes in shapes(rng):
        lead = lead or (1,)  # a kernel takes at least one axis of rows
        rows = math.prod(lead)
        p = problem(max(1, rows), classes, dtype, off).rows(slice(0, rows))._replace(transform=transform)
        if rows and rng.random() < 0.3:
            p = p.rows(np.zeros(rows, int))
        numbers = np.concatenate([p.truth, rng.standard_normal((3, rows))])
        numbers[5] *= (p.label >= 0) & (p.label < classes)
        numbers[3] *= np.where(rng.random(rows) < 0.2, 2.0**200, 1)  # large numbers are computed in another way
        if rng.random() < 0.5:
            largest = rng.choice([kernels.LARGEST, kernels.LARGEST_LOGIT], rows)
            p = p._replace(label=np.where((rng.random(rows) < 0.2) & (numbers[5] == 0), largest, p.label))
        v = rng.standard_normal((rows, classes)).astype(computed(dtype))
        v = repeated(v, lead, rng)
        if p.off is not None and p.off.ndim > 1:
            p = p._replace(off=repeated(p.off, lead, rng))

        def anywhere(a, shape=(*lead, classes), **options):
            return a if a is None or a.ndim == 1 else laid_out(a.reshape(shape), rng, **options)

        want = all_results(p, numbers, v, lambda a, **options: a, 1)
        for one, other in zip(want, all_results(p, numbers, v, anywhere, int(rng.integers(1, 4))), strict=True):
            equal(one, other, f"{lead}, {classes} classes")


@pytest.mark.parametrize("classes", [3, 40, 64, 70])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_large_arrays_with_adjacent_rows(dtype, classes, rng):
    """They are read and written a tile at a time, also where the tile is that of the logits, or the gradient lies otherwise."""
    rows = (1 << 18) // (classes * dtype.itemsize) + 7
    p = problem(2 * rows, classes, dtype, "dense")
    numbers = np.concatenate([p.truth, rng.standard_normal((3, 2 * rows))])
    numbers[5] *= (p.label >= 0) & (p.label < classes)

    def called(place, writable):
        result = np.empty((5, 2 * rows))
        kernels.active().fused(place(p.z), p.label, numbers, place(p.off), p.transform, writable, result, None, 2)
        return [result, writable.reshape(2 * rows, classes).copy()]

    def first(a):
        return np.moveaxis(np.moveaxis(a.reshape(2, rows, classes), -1, 1).copy(), 1, -1)

    want, z = called(lambda a: a, np.empty_like(p.z)), first(p.z)
    for found in (
        called(first, np.empty_like(z)),
        called(first, np.empty_like(z, order="C")),
        called(lambda a: a.reshape(z.shape), np.empty_like(z)),
        called(lambda a: z if a is p.z else first(a), z),
    ):
        for one, other in zip(want, found, strict=True):
            equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_gradient_in_the_memory_of_the_logits(dtype, rng):
    for lead, classes in shapes(rng):
        z = rng.standard_normal((*lead, classes)).astype(dtype)
        t = rng.integers(0, classes, lead)
        want = softxent.cross_entropy_and_grad(z.copy(), t, reduction="sum")
        place = laid_out(z, rng, writeable=True)
        loss, dz = softxent.cross_entropy_and_grad(place, t, reduction="sum", out=place)
        assert loss == want[0] and dz is place
        equal(dz, want[1])


@pytest.mark.parametrize("truth", ["labels", "smoothed", "probabilities", "smoothed probabilities"])
def test_public_functions_take_the_classes_on_any_axis(truth, rng):
    options = {"label_smoothing": 0.1} if "smoothed" in truth else {}
    for lead, classes in shapes(rng):
        axis = int(rng.integers(-len(lead) - 1, len(lead) + 1))
        z = rng.standard_normal((*lead, classes)).astype("f4")
        y = rng.random(z.shape).astype(rng.choice(["f4", "f8"])) if "prob" in truth else rng.integers(0, classes, lead)
        v = rng.standard_normal(z.shape).astype("f4")

        def moved(a, axis=axis, lead=lead):
            return np.moveaxis(laid_out(a, rng), -1, axis) if a.ndim > len(lead) else laid_out(a, rng) if lead else a

        def back(a, axis=axis):
            return np.moveaxis(a, axis, -1)

        loss, dz = softxent.cross_entropy_and_grad(z, y, reduction="none", **options)
        found, gradient = softxent.cross_entropy_and_grad(moved(z), moved(y), axis=axis, reduction="none", **options)
        equal(found, loss)
        equal(back(gradient), dz)
        equal(softxent.cross_entropy(moved(z), moved(y), axis=axis, reduction="none", **options), loss)
        equal(
            back(softxent.cross_entropy_hvp(moved(z), moved(v), moved(y), axis=axis, **options)),
            softxent.cross_entropy_hvp(z, v, y, **options),
        )
        equal(back(softxent.log_softmax(moved(z), axis=axis)), softxent.log_softmax(z))
        equal(softxent.logsumexp(moved(z), axis=axis), softxent.logsumexp(z))


def test_as_many_axes_as_an_array_may_have(rng):
    z = rng.standard_normal((2,) * 10 + (3,)).astype("f4")
    most = z.reshape((1,) * (32 - z.ndim) + z.shape).transpose()
    dz = softxent.cross_entropy_and_grad(most, np.zeros(most.shape[1:], int), axis=0, reduction="sum")[1]
    equal(dz.transpose().reshape(z.shape), softxent.cross_entropy_and_grad(z, np.zeros(z.shape[:-1], int), reduction="sum")[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_off_that_repeats_along_one_axis_of_rows_beside_logits_of_another_layout(axis, rng):
    """Adjacent classes of off, with a step of 0 between rows, while tiles of the logits are copied."""
    lead, classes = (3, 4), 70
    p = problem(12, classes, DTYPES["f32"], "dense")
    off = np.broadcast_to(p.off.reshape(*lead, classes).take([0], axis=axis), (*lead, classes))
    numbers, v = np.concatenate([p.truth, np.zeros((3, 12))]), rng.standard_normal((12, classes)).astype(np.float32)
    want = all_results(p._replace(off=off.reshape(12, classes)), numbers, v, lambda a, **options: a, 1)

    def apart(a, **options):
        return off if a is off else np.asfortranarray(a.reshape(*lead, classes))

    for one, other in zip(want, all_results(p._replace(off=off), numbers, v, apart, 1), strict=True):
        equal(one, other)
