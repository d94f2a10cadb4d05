"""Laws of derivatives: repeated, batched and higher ones, in every mode and under every transform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import definition
from .case import ARRAYS, Case, option_values
from .law import (
    close,
    directions,
    law,
    make,
    near,
    same_bits,
    small,
)
from .subjects import Subject


@law("derivatives", small, "gradients twice")
def a_second_backward_pass_has_the_bits_of_the_first(subject: Subject, one: Case) -> None:
    """With retain_graph, a second backward pass gives the gradients of the first, to the bit."""
    both = subject.run("gradients twice", one)
    count = len(both) // 2
    same_bits("gradient", both[count:], both[:count])
    close(one, "gradient", both[:count], definition.gradients(one))


@law("derivatives", small, "gradients of each alone")
def each_input_may_be_the_only_one_that_needs_a_gradient(subject: Subject, one: Case) -> None:
    """If the other inputs are frozen, the gradient by each input is the same."""
    close(one, "gradient", subject.run("gradients of each alone", one), definition.gradients(one))


@law("derivatives", small, "undefined upstream")
def an_undefined_upstream_gradient_is_0(subject: Subject, one: Case) -> None:
    """If nothing depends on the loss, its gradients are 0 or undefined."""
    close(one, "gradient", subject.run("undefined upstream", one), [np.zeros(a.shape) for a in one.inputs.values()])


@law("derivatives", small, "batched upstream")
def upstream_gradients_may_be_batched(subject: Subject, one: Case) -> None:
    """Two upstream gradients at once (is_grads_batched) give the gradients of each."""
    close(one, "gradient", subject.run("batched upstream", one), [np.stack([g, -2 * g]) for g in definition.gradients(one)])


@law("derivatives", small, "torch.func.grad")
def torch_func_grad_is_the_gradient(subject: Subject, one: Case) -> None:
    """torch.func.grad gives the gradients of autograd."""
    close(one, "gradient", subject.run("torch.func.grad", one), definition.gradients(one))


def _check_forward_mode(subject: Subject, one: Case) -> None:
    """Compare the derivative along a direction with that of the definition."""
    v = directions(one)
    close(one, "derivative", subject.run("jvp", one, v), [definition.along(one, v)])


@law("derivatives", small, "jvp")
def forward_mode_is_the_derivative(subject: Subject, one: Case) -> None:
    """The derivative along a direction in forward mode (jvp) is that of the loss, and not 0."""
    _check_forward_mode(subject, one)


@law("derivatives", small, "double backward")
def the_second_derivative_is_that_of_the_loss(subject: Subject, one: Case) -> None:
    """A backward pass through the backward pass gives the Hessian of the loss, here of its square, times a vector."""
    v = directions(one)
    # of a second derivative, an implementation may lose a few more digits to cancellation than of a first
    close(one, "Hessian product", subject.run("double backward", one, v), definition.hessian_product(one, v), relative=1e-7)


@law("derivatives", small, "forward over reverse")
def forward_over_reverse_is_the_second_derivative(subject: Subject, one: Case) -> None:
    """Forward mode through the gradient gives the Hessian of the loss, here of its square, times a vector."""
    v = directions(one)
    # of a second derivative, an implementation may lose a few more digits to cancellation than of a first
    close(one, "Hessian product", subject.run("forward over reverse", one, v), definition.hessian_product(one, v), relative=1e-7)


def _stacked(one: Case) -> list[Case]:
    return [replace(one, inputs={name: n * a for name, a in one.inputs.items()}) for n in (1, 2)]


@law("derivatives", small, "vmap")
def vmap_maps_the_loss(subject: Subject, one: Case) -> None:
    """vmap over a batch of logits gives the loss of each."""
    close(one, "loss", subject.run("vmap", one), [np.stack([definition.loss(c) for c in _stacked(one)])])


@law("derivatives", small, "vmap of gradients")
def vmap_maps_the_gradient(subject: Subject, one: Case) -> None:
    """vmap over the gradient gives the gradients of each."""
    each = [definition.gradients(c) for c in _stacked(one)]
    close(one, "gradient", subject.run("vmap of gradients", one), [np.stack(gs) for gs in zip(*each, strict=True)])


def _few(subject: Subject, quick: bool) -> Iterator[Case]:
    for n, one in enumerate(small(subject, quick)):
        if n in ((0,) if quick else (0, 2, 3, 7)):
            yield one


@law("derivatives", _few, "compile", shrinks=False)
def a_compiler_changes_nothing(subject: Subject, one: Case) -> None:
    """Under torch.compile (backend aot_eager) or jax.jit the loss and its gradients are the same."""
    got, (allowed, bounds) = subject.run("compile", one), definition.tolerance(one)
    near("loss", got[0], definition.loss(one), allowed)
    for name, a, want, bound in zip(one.inputs, got[1:], definition.gradients(one), bounds, strict=True):
        near(f"gradient by {name}", a, want, bound)


def _by_others(subject: Subject, quick: bool) -> Iterator[Case]:
    for reduction in subject.reductions:
        for name in ARRAYS:
            if name in subject.options and subject.hard:
                yield replace(
                    option_values(
                        make(subject, 3, 4, reduction=reduction), (name, "label_smoothing")[: 1 + ("label_smoothing" in subject.options)]
                    ),
                    by=(name,),
                )
        if "probabilities" in subject.options:
            yield replace(make(subject, 3, 4, soft=True, reduction=reduction), by=("labels",))


@law("derivatives", _by_others, "gradients", "torch.func.grad")
def weights_and_probabilities_have_gradients(subject: Subject, one: Case) -> None:
    """The gradients by class weights, sample weights and probabilities are those of the loss, in which all three are factors."""
    close(one, "gradient", subject.run("gradients", one), definition.gradients(one))


@law("derivatives", _by_others, "jvp")
def weights_and_probabilities_have_forward_mode(subject: Subject, one: Case) -> None:
    """The derivatives by class weights, sample weights and probabilities in forward mode are those of the loss."""
    _check_forward_mode(subject, one)
