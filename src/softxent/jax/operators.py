"""The layer as differentiable operators of JAX: what a row gives (`rows`), its gradient, the product with its Hessian, and log_softmax.

Their argument is a `Call`. Each is a primitive of JAX, with closed derivatives by z, y, r, q, off and the upstream gradients:

    rows         its derivative along v is `along`
    along        linear in v; its transpose is `gradient`
    gradient     linear in the upstream gradients; its transpose is `along`, and its derivative along v is `curvature`
    curvature    linear in v, and its own transpose
    mean         sums of losses divided by `total`; where it is differentiated, the gradient is computed in the same pass

The derivatives of `along` and `curvature` by the logits, of second and third order, are those of expressions of the other operators. On the
CPU the operators are computed by the compiled kernel (native.py), elsewhere by formula.py (reference.py); JAX chooses when it lowers a
function for a platform.

`static.shards` are axes of the mesh of a `jax.shard_map` by which the classes are divided. Each device has the logits, v and off of its
classes. The other arguments, and what the rows give, are the same on all devices along these axes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import contract, derivatives, formula
from ..call import NUMBERS, OF_CLASSES, UPSTREAM, Call, Static
from . import devices, native, private, reference, steps
from .arrays import Array, as_rows, computed_in, widest
from .call import FIRST, IGNORED, PLAIN, SMOOTH, TYPES, Fixed, averaged, by_row, inverse, labelled, off_by_row, operands, restored, rows_of
from .private import Primitive
from .steps import Names, added_up

Tangents = Any  # a Call whose fields are tangents, or None for 0

_formula = False  # whether functions that are traced now use formula.py on every platform
_warned = False


# ---- the operators ----


def rows(call: Call, static: Static = PLAIN, outputs: tuple[str, ...] = FIRST) -> list[Array]:
    """Return these outputs of each row, the first ones of formula.Outputs; `correct` is bool. All are 0 in rows with the label IGNORED."""
    return list(_bound(rows_p, call, static, outputs=outputs))


def along(call: Call, static: Static = PLAIN, outputs: tuple[str, ...] = FIRST) -> list[Array]:
    """Return the derivatives of these outputs along v."""
    return list(_bound(along_p, call, static, outputs=outputs))


def gradient(call: Call, static: Static = PLAIN) -> Array:
    """Return the gradient of sum g loss + l lse + b logprob + n entropy by the logits."""
    return _bound(gradient_p, call, static)


def curvature(call: Call, static: Static = PLAIN) -> Array:
    """Return the derivative of `gradient` along v."""
    return _bound(curvature_p, call, static)


def log_softmax(call: Call, static: Static = PLAIN) -> Array:
    """Return y log softmax(z), in the type of z. It is 0 where y is 0."""
    return _bound(log_softmax_p, call, static)


def mean(call: Call, static: Static = PLAIN, kept: int = 0) -> Array:
    """Return the losses divided by `total`, added up over the axes of the rows except for the first `kept` ones."""
    return _bound(mean_p, call, static, kept=kept)


def mean_and_gradient(call: Call, static: Static = PLAIN, kept: int = 0) -> list[Array]:
    """Return `mean` and the gradient of its sum by the logits, computed in one pass."""
    return list(_bound(mean_and_gradient_p, call, static, kept=kept))


def _bound(primitive: Primitive, call: Call, static: Static, **how: Any) -> Any:
    arrays, fixed = operands(devices.varying(call, static.shards))
    return primitive.bind(*arrays, fixed=fixed, static=static, by_formula=_formula, **how)


def by_formula() -> bool:
    """Whether functions that are traced now use formula.py on every platform."""
    return _formula


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use the backend "formula", the equations in jax.numpy, for functions that JAX traces within a `with` block, on every platform.

    Raises:
        ValueError: if the name is not "formula" or "default".
    """
    global _formula
    before, _formula = _formula, contract.choice("use_backend", "name", name, ("formula", "default")) == "formula"
    try:
        yield
    finally:
        _formula = before


# ---- primitives ----


@lru_cache(maxsize=1024)
def _compiled(primitive: Primitive, parameters: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(partial(primitive.bind, **dict(parameters)))


def _primitive(name: str, results: Callable[..., Any], computed_as: str = "") -> Primitive:
    """Return a primitive whose operands are the arrays of a `Call`.

    name: that of the function in steps.py and native.py, unless `computed_as` is.
    results: returns what it gives, one type or a list, from a Call, the axes by which the classes are divided and other parameters.
    """
    operator, several = computed_as or name, name in ("rows", "along", "mean_and_gradient")

    def lowered(context: Any, *values: Any, fixed: Fixed, static: Static, by_formula: bool, **how: Any) -> Any:
        by_kernel = private.platforms(context) == ("cpu",) and not by_formula and context.avals_in[0].size and not _kernel_missing()
        backend = native if by_kernel else reference
        if backend is native and operator in ("gradient", "mean_and_gradient"):
            how["in_place"] = private.may_be_overwritten(values[0])
        if private.several_devices(context) and not static.shards:
            compute = devices.divided(operator, backend, fixed, static, tuple(how.items()))
        else:
            compute = lambda *arrays: steps.computed(operator, backend, restored(arrays, fixed), static, **how)  # noqa: E731
        return private.lowered_function(compute, several, context, values)

    def abstract(*arrays: Any, fixed: Fixed, static: Static, by_formula: bool, **how: Any) -> Any:
        return results(restored(arrays, fixed), static.shards, **how)

    def batched(arrays: Sequence[Any], dims: Sequence[Any], **parameters: Any) -> Any:
        parameters |= {"kept": parameters["kept"] + 1} if "kept" in parameters else {}
        found = primitive.bind(*_batched(arrays, dims, parameters["fixed"]), **parameters)
        return found, [0] * len(found) if several else 0

    primitive = private.primitive(f"softxent_{name}", several, abstract, lowered, batched)
    primitive.def_impl(lambda *arrays, **parameters: _compiled(primitive, tuple(sorted(parameters.items())))(*arrays))
    return primitive


def _kernel_missing() -> bool:
    """Whether there are no handlers for XLA. Warns once."""
    global _warned
    if native.missing and not _warned:
        _warned = True
        warnings.warn(f"softxent.jax runs on jax.numpy, slowly: {native.missing}", RuntimeWarning, stacklevel=2)
    return bool(native.missing)


def _batched(arrays: Sequence[Array], dims: Sequence[int | None], fixed: Fixed) -> list[Array]:
    """Return the operands with the batch as the first axis of the rows. Those that all rows share stay as they are."""
    size = next(a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None)

    def moved(name: str, a: Array, dim: int | None) -> Array:
        if dim is not None:
            return jnp.moveaxis(a, dim, 0)
        shared = name not in ("z", "v") and a.ndim == (name in OF_CLASSES)
        return a if shared else jnp.broadcast_to(a, (size, *a.shape))

    there = (name for name, x in zip(Call._fields, fixed, strict=True) if x is None)
    return [moved(*each) for each in zip(there, arrays, dims, strict=True)]


def _result(call: Call, axes: int, dtype: Any, names: Names) -> Any:
    """Return the type of a result that has the first axes of the logits, with their sharding.

    In shard_map, it varies over the axes of the mesh over which the logits do, but for `names` if it has no axis of classes.
    """
    over = private.varies_over(call.z).difference(names if axes < call.z.ndim else ())
    return private.result(call.z, axes, jnp.dtype(dtype), over)


def _like_logits(call: Call, names: Names) -> Any:
    return _result(call, call.z.ndim, call.z.dtype, names)


def _of_kept(call: Call, names: Names, kept: int) -> Any:
    return _result(call, kept, widest(), names)


def _outputs(call: Call, names: Names, outputs: tuple[str, ...]) -> list[Any]:
    return [_result(call, call.z.ndim - 1, TYPES.get(name, widest()), names) for name in outputs]


rows_p = _primitive("rows", _outputs)
along_p = _primitive("along", _outputs)
gradient_p = _primitive("gradient", _like_logits)
curvature_p = _primitive("curvature", _like_logits, "product")
log_softmax_p = _primitive("log_softmax", _like_logits)
mean_p = _primitive("mean", _of_kept)
mean_and_gradient_p = _primitive("mean_and_gradient", lambda call, names, kept: [_of_kept(call, names, kept), _like_logits(call, names)])


# ---- derivatives ----


def _differentiated(primitive: Primitive) -> Callable[[Any], Any]:
    """Register a rule: from a call, its tangents (a Call; None is 0) and the parameters, to results and their tangents (None is 0)."""

    def register(rule: Callable[..., Any]) -> Any:
        def of_arrays(arrays: Any, tangents: Any, *, fixed: Fixed, by_formula: bool, **how: Any) -> Any:
            left = iter(tangents)
            return rule(restored(arrays, fixed), Call(*(next(left) if x is None else None for x in fixed)), **how)

        private.differentiated(primitive, of_arrays)
        return rule

    return register


def _transposed(primitive: Primitive) -> Callable[[Any], Any]:
    """Register a rule: from the cotangents (0.0 for 0), a call, and the types of its linear fields by name, to their cotangents."""

    def register(rule: Callable[..., Any]) -> Any:
        def of_arrays(cotangents: Any, arrays: Any, fixed: Fixed, by_formula: bool, **how: Any) -> Any:
            call = restored(arrays, fixed)
            unknown = {name: t for name, x in call._asdict().items() if (t := private.unknown(x)) is not None}
            found = rule(cotangents, call, unknown, **how)
            return [found.get(name) for name, x in zip(Call._fields, fixed, strict=True) if x is None]

        private.transposed(primitive, of_arrays)
        return rule

    return register


def _jvp_of(function: Callable[[Call], Any], call: Call, moving: Tangents) -> Any:
    """Return the results of a function of a call, and their tangents."""
    names = [name for name, t in zip(Call._fields, moving, strict=True) if t is not None]

    def of_moving(*values: Array) -> Any:
        return function(call._replace(**dict(zip(names, values, strict=True))))

    return jax.jvp(of_moving, [getattr(call, name) for name in names], [getattr(moving, name) for name in names])


@_differentiated(rows_p)
def _(call: Call, moving: Tangents, static: Static, outputs: tuple[str, ...]) -> Any:
    smooth = outputs[: len(SMOOTH)]
    moved = [None] * len(smooth) if moving.z is None else along(call._replace(v=moving.z), static, smooth)
    by_truth = _loss_along_truth(call, moving, static)
    if by_truth is not None:
        moved[0] = by_truth if moved[0] is None else moved[0] + by_truth
    return rows(call, static, outputs), moved + [None] * (len(outputs) - len(smooth))


def _loss_along_truth(call: Call, moving: Tangents, static: Static) -> Any:
    """Return the derivative of the loss along y, r, q and off, in which it is linear, or None."""
    bare, terms = call._replace(y=0.0, r=0.0, q=0.0), []
    if moving.y is not None:
        terms.append(by_row(moving.y, rows_of(call)) * rows(bare._replace(y=1.0, off=0.0), static)[0])
    if moving.r is not None:
        terms.append(by_row(moving.r, rows_of(call)) * rows(bare._replace(r=1.0), static)[0])
    if moving.q is not None:
        terms.append(by_row(moving.q, rows_of(call)) * rows(bare._replace(off=0.0), static)[1] ** 2 / 2)
    if moving.off is not None:
        wide = _without_ignored(call).z.astype(jnp.promote_types(computed_in(call.z.dtype), moving.off.dtype))
        scale = jnp.where(labelled(call, IGNORED), 0.0, by_row(call.r, rows_of(call))).astype(widest())
        by = -log_softmax(Call(wide, y=jnp.broadcast_to(scale, rows_of(call))), static)
        by = jnp.where(by == jnp.inf, 0, by)  # of a masked class, whose truth is 0
        terms.append(_over_classes(by * off_by_row(call._replace(off=moving.off)), static.shards))
    return sum(terms[1:], terms[0]) if terms else None


@_differentiated(along_p)
def _(call: Call, moving: Tangents, static: Static, outputs: tuple[str, ...]) -> Any:
    def of(call: Call) -> Any:
        bare = call._replace(v=0.0)
        each = [gradient(bare._replace(**{name: 1.0}), static) for name in UPSTREAM[: len(outputs)]]
        return [_over_classes(dz * call.v, static.shards) for dz in each]

    found, moved = along(call, static, outputs), None
    if any(t is not None for t in moving._replace(v=None)):
        _, moved = _jvp_of(of, call, moving._replace(v=None))
    if moving.v is not None:
        linear = along(call._replace(v=moving.v), static, outputs)
        moved = linear if moved is None else [a + b for a, b in zip(moved, linear, strict=True)]
    return found, moved or [None] * len(found)


@_transposed(along_p)
def _(cotangents: Any, call: Call, unknown: Any, static: Static, outputs: tuple[str, ...]) -> Any:
    upstream = dict(zip(UPSTREAM, cotangents, strict=False))
    return {"v": gradient(call._replace(v=0.0, **upstream), static)}


@_differentiated(gradient_p)
def _(call: Call, moving: Tangents, static: Static) -> Any:
    terms = []
    if moving.z is not None:
        terms.append(curvature(call._replace(v=moving.z), static))
    upstream = {name: getattr(moving, name) for name in UPSTREAM}
    if any(t is not None for t in upstream.values()):
        terms.append(gradient(call._replace(**{name: 0.0 if t is None else t for name, t in upstream.items()}), static))
    of_loss = call._replace(y=0.0, r=0.0, q=0.0, g=1.0, l=0.0, b=0.0, n=0.0)
    for name in ("y", "r", "q"):
        t = getattr(moving, name)
        if t is not None:
            by = gradient(of_loss._replace(**{name: 1.0}), static)
            terms.append((by_row(t, rows_of(call), True) * by_row(call.g, rows_of(call), True)).astype(by.dtype) * by)
    if moving.off is not None:
        yhat = gradient(of_loss._replace(off=0.0, g=0.0, l=1.0), static)
        gr = jnp.where(labelled(call, IGNORED), 0.0, by_row(call.g, rows_of(call)) * by_row(call.r, rows_of(call)))
        doff = off_by_row(call._replace(off=moving.off)).astype(yhat.dtype)
        at_each = doff * _transformed(_without_ignored(call).z.astype(yhat.dtype), static)[1]
        terms.append(
            by_row(gr, rows_of(call), True).astype(yhat.dtype)
            * (_over_classes(doff, static.shards)[..., None].astype(yhat.dtype) * yhat - at_each)
        )
    return gradient(call, static), sum(terms[1:], terms[0]) if terms else None


@_transposed(gradient_p)
def _(cotangents: Any, call: Call, unknown: Any, static: Static) -> Any:
    known = call._replace(v=cotangents[0], **dict.fromkeys(UPSTREAM, 0.0))
    outputs = FIRST if set(unknown) <= set(UPSTREAM[: len(FIRST)]) else SMOOTH
    found = dict(zip(UPSTREAM, along(known, static, outputs), strict=False))
    return {name: _summed_to(found[name], t) for name, t in unknown.items()}


def _summed_to(a: Array, like: Any) -> Array:
    """Return the sum over the axes of the rows that an operand of this type does not have."""
    return a.sum(tuple(range(like.ndim, a.ndim))).astype(like.dtype)


@_differentiated(curvature_p)
def _(call: Call, moving: Tangents, static: Static) -> Any:
    terms = []
    if any(t is not None for t in moving._replace(v=None)):
        terms.append(_jvp_of(lambda c: _composed_curvature(c, static), call, moving._replace(v=None))[1])
    if moving.v is not None:
        terms.append(curvature(call._replace(v=moving.v), static))
    return curvature(call, static), sum(terms[1:], terms[0])


@_transposed(curvature_p)
def _(cotangents: Any, call: Call, unknown: Any, static: Static) -> Any:
    return {"v": curvature(call._replace(v=cotangents[0]), static)}


def _without_ignored(call: Call) -> Call:
    """Return the call with 0 for the logits and v of ignored rows: if NaN is selected away after it was used, a derivative is 0 NaN."""
    ignored = labelled(call, IGNORED, True)
    v = call.v if isinstance(call.v, float) else jnp.where(ignored, 0, call.v)
    return call._replace(z=jnp.where(ignored, 0, call.z), v=v)


def _transformed(z: Array, static: Static) -> tuple[Array, Any, Any]:
    """Return logits of any shape after the softcap, and the first two derivatives of their quotients by T, arrays or numbers."""
    found: Any = formula.transformed(as_rows(z, 1), static.temperature, static.cap)
    scores, slope, bend = (x if isinstance(x, float) else x.reshape(z.shape) for x in found)
    return scores, slope, bend


def _composed_curvature(call: Call, static: Static) -> Array:
    """Return `curvature`, written with the other operators, which can be differentiated again."""
    hv, *_ = derivatives.curvature(_without_ignored(call), static, _JAX)
    return hv.astype(call.z.dtype)


class _JAX:
    """What softxent/derivatives.py needs."""

    rows, gradient, log_softmax = (staticmethod(operator) for operator in (rows, gradient, log_softmax))
    where = jnp.where

    @staticmethod
    def times(factor: Any, value: Array) -> Array:
        return factor * jnp.where((factor == 0) & ~jnp.isfinite(value), 0, value)

    @staticmethod
    def cast(a: Array, like: Array) -> Array:
        return a.astype(like.dtype)

    @staticmethod
    def numbers(call: Call) -> list[Array]:
        return [by_row(x, rows_of(call)) for x in call[-len(NUMBERS) :]]

    @staticmethod
    def by_row(number: Array, call: Call, static: Static) -> Array:
        return by_row(number, rows_of(call), True)

    @staticmethod
    def off_by_row(call: Call, static: Static, like: Array) -> Array:
        off = jnp.zeros((), like.dtype) if isinstance(call.off, float) else off_by_row(call).astype(like.dtype)
        return jnp.broadcast_to(off, call.z.shape)

    @staticmethod
    def over_classes(a: Array, static: Static) -> Array:
        return _over_classes(a, static.shards)

    @staticmethod
    def at_largest(a: Array, z: Array, static: Static) -> Array:
        z = lax.stop_gradient(z)
        at = jnp.take_along_axis(a, z.argmax(-1)[..., None], -1)[..., 0]
        return added_up(jnp.where(steps.largest(z, static.shards)[1], at, 0), static.shards)

    @staticmethod
    def transformed(z: Array, static: Static) -> tuple[Array, Any, Any]:
        return _transformed(z.astype(widest()), static)

    @staticmethod
    def blank(call: Call, static: Static) -> Array:
        return labelled(call, IGNORED, True)


@_differentiated(log_softmax_p)
def _(call: Call, moving: Tangents, static: Static) -> Any:
    found, terms = log_softmax(call, static), []
    if moving.z is not None:
        wide = computed_in(call.z.dtype)
        dz = moving.z.astype(wide) * _transformed(call.z.astype(wide), static)[1]
        dlse = along(Call(call.z, v=moving.z), static)[1]
        terms.append((by_row(call.y, rows_of(call), True) * (dz - dlse[..., None])).astype(found.dtype))
    if moving.y is not None:
        terms.append((by_row(moving.y, rows_of(call), True) * log_softmax(call._replace(y=1.0), static)).astype(found.dtype))
    return found, sum(terms[1:], terms[0])


@_differentiated(mean_p)
def _(call: Call, moving: Tangents, static: Static, kept: int) -> Any:
    found, moved = None, None
    if moving.z is not None:
        found, dz = mean_and_gradient(call, static, kept)
        moved = added_up((dz * moving.z).sum(tuple(range(kept, dz.ndim)), dtype=widest()), static.shards)
    if any(t is not None for t in moving._replace(z=None)):
        other, more = _jvp_of(lambda c: _composed_mean(c, static, kept), call, moving._replace(z=None))
        found, moved = (other, more) if moved is None else (found, moved + more)
    return found, moved


@_differentiated(mean_and_gradient_p)
def _(call: Call, moving: Tangents, static: Static, kept: int) -> Any:
    def of(call: Call) -> list[Array]:
        dz = gradient(call._replace(total=0.0, g=inverse(call.total)), static)
        return [_composed_mean(call, static, kept), dz]

    return mean_and_gradient(call, static, kept), _jvp_of(of, call, moving)[1]


def _composed_mean(call: Call, static: Static, kept: int) -> Array:
    return averaged(rows(call._replace(total=0.0), static)[0], call.total, kept)


def _over_classes(a: Array, names: Names) -> Array:
    """Return the sum over the last axis, on all devices along `names`."""
    return added_up(a.sum(-1, dtype=widest()), names)
