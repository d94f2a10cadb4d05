"""Train a small language model in Flax NNX and in Equinox, each with optax's loss on all logits, and with softxent's linear_cross_entropy,
which computes the head and the loss in chunks. The losses are the same, and the chunks need less memory.

The text is the source of Python's standard library, so nothing is downloaded. The script needs the extra `bench`, flax and equinox:

    python examples/train_jax.py --steps 30
"""

import argparse
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from softxent.demo.corpus import load
from softxent.jax import linear_cross_entropy

CONTEXT, WIDTH = 3, 64


def whole(x: jax.Array, weight: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(x @ weight.T, labels).mean()


class FlaxModel(nnx.Module):
    """A model that maps tokens to hidden states; `head` is the last layer, which the loss applies."""

    def __init__(self, classes: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(classes, WIDTH, rngs=rngs)
        self.body = nnx.Linear(CONTEXT * WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, classes, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jnp.tanh(self.body(self.embedding(tokens).reshape(len(tokens), -1)))


def train_flax(loss: Callable[..., jax.Array], batches: jax.Array, classes: int) -> list[float]:
    model = FlaxModel(classes, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: FlaxModel, optimizer: Any, batch: jax.Array) -> jax.Array:
        def of(model: FlaxModel) -> jax.Array:
            return loss(model(batch[:, :CONTEXT]), model.head.kernel[...].T, batch[:, CONTEXT])

        value, gradients = nnx.value_and_grad(of)(model)
        optimizer.update(model, gradients)
        return value

    return [float(step(model, optimizer, batch)) for batch in batches]


class EquinoxModel(eqx.Module):
    embedding: eqx.nn.Embedding
    body: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, classes: int, key: jax.Array):
        first, second, third = jax.random.split(key, 3)
        self.embedding = eqx.nn.Embedding(classes, WIDTH, key=first)
        self.body = eqx.nn.Linear(CONTEXT * WIDTH, WIDTH, key=second)
        self.head = eqx.nn.Linear(WIDTH, classes, use_bias=False, key=third)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jnp.tanh(self.body(jax.vmap(self.embedding)(tokens).reshape(-1)))


def train_equinox(loss: Callable[..., jax.Array], batches: jax.Array, classes: int) -> list[float]:
    model, optimizer = EquinoxModel(classes, jax.random.key(0)), optax.adam(2e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model: EquinoxModel, state: Any, batch: jax.Array) -> tuple[EquinoxModel, Any, jax.Array]:
        def of(model: EquinoxModel) -> jax.Array:
            return loss(jax.vmap(model)(batch[:, :CONTEXT]), model.head.weight, batch[:, CONTEXT])

        value, gradients = eqx.filter_value_and_grad(of)(model)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state, value

    curve = []
    for batch in batches:
        model, state, value = step(model, state, batch)
        curve.append(float(value))
    return curve


def main(steps: int, batch: int, classes: int) -> dict[str, tuple[list[float], list[float]]]:
    text = jnp.asarray(load(classes, CONTEXT).train)
    first = jax.random.randint(jax.random.key(1), (steps, batch), 0, len(text) - CONTEXT)
    batches = text[first[..., None] + jnp.arange(CONTEXT + 1)]
    curves = {}
    for name, train in (("Flax NNX", train_flax), ("Equinox", train_equinox)):
        stock, chunks = (train(loss, batches, classes) for loss in (whole, linear_cross_entropy))
        curves[name] = stock, chunks
        difference = max(abs(a - b) for a, b in zip(stock, chunks, strict=True))
        print(f"{name}: the loss fell from {chunks[0]:.4f} to {chunks[-1]:.4f}; the curves differ by at most {difference:.1e}")
    return curves


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--batch", type=int, default=2048)
    options.add_argument("--classes", type=int, default=20_000)
    main(**vars(options.parse_args()))
