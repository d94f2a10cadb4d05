"""The benchmark of softxent.jax, `softxent bench --jax`: the loss and its gradient under `jax.jit`, beside optax.

Logits are given ("a fresh gradient"), or donated, so that the gradient can take their memory ("in place"), or their classes are divided
among two devices. The limits are a copy of the logits, and for a linear head its three matrix products in XLA.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import softxent

from .. import contract
from . import measured, progress, written
from .measure import PAUSE, interleave
from .report import header, machine, ratio, table

Call = Callable[[], Any]
COPY, OPTAX, MEAN, ROWS, PRODUCTS = "memcpy", "optax", "cross_entropy", "softmax_cross_entropy_with_integer_labels", "three products"
HEAD = "linear_cross_entropy"
DIVIDED, ONE_DEVICE = "axis_name", "one device"
LOGITS = [(1024, 32000), (8192, 1000), (65536, 10), (32, 10)]
HEADS = [(1024, 256, 32000), (2048, 768, 50257)]
GROWTH = [(rows, 64, 32000) for rows in (1024, 4096, 16384)]
OF_SHARDS = ("divided", "divided, in place")
SHARDS = [(1024, 32000), (8192, 1000)]
QUICK: tuple[list[Any], ...] = ([(64, 1000), (32, 10)], [(64, 16, 300)], [(64, 8, 300), (256, 8, 300)], [(64, 1000)])
TWO_DEVICES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
MIB = 1 << 20


def run(repeats: int, output: Path, quick: bool) -> None:
    """Measure, print the tables and write jax.json and jax.md."""
    contract.place("bench", "output", output, folder=True)
    import_module("optax")  # before the work, for what is missing is said
    logits, heads, growth, shards = QUICK if quick else (LOGITS, HEADS, GROWTH, SHARDS)
    jobs = [(shape, place) for shape in logits for place in ("fresh", "in place")] + [(shape, "time") for shape in heads]
    jobs += [(shape, "memory") for shape in growth]
    processes: list[Any] = [[jobs, repeats], [[(shape, kind) for shape in shards for kind in OF_SHARDS], repeats]]
    records = []
    with progress(sum(len(some) for some, _ in processes)) as step:
        for record in measured("jax-worker", processes, False, [{"JAX_PLATFORMS": "cpu"}, TWO_DEVICES]):
            records.append(record)
            step(record)
    results = {"machine": machine() | {"jax": import_module("jax").__version__}, "repeats": repeats, "records": records}
    written("jax", results, text(results), output)


def work(jobs: list[tuple[list[int], str]], repeats: int) -> None:
    threads = softxent.get_num_threads()
    for shape, kind in jobs:
        record = {"kind": kind, "shape": shape, "dtype": "f32", "threads": threads, "isa": ""}
        if kind == "memory":
            record["extra"] = memory(shape)
        else:
            donated = kind.endswith("in place")
            calls = head(shape) if kind == "time" else divided(shape, donated) if kind.startswith("divided") else logits(shape, donated)
            record["seconds"] = interleave(calls, repeats, PAUSE if threads > 1 else 0)
        print(json.dumps(record), flush=True)


def logits(shape: list[int], donated: bool) -> dict[str, Call]:
    """Return the contenders. In place, each takes its last gradient as its next logits."""
    jax, ours = (import_module(name) for name in ("jax", "softxent.jax"))
    rng = np.random.default_rng(0)
    z, target = 3 * rng.standard_normal(shape, np.float32), np.empty(shape, np.float32)
    labels = jax.numpy.asarray(rng.integers(0, shape[1], shape[0]))
    losses = {
        OPTAX: mean_by_optax,
        ROWS: lambda z, labels: ours.softmax_cross_entropy_with_integer_labels(z, labels).mean(),
        MEAN: ours.cross_entropy,
    }

    calls = {name: stepping(loss, jax.numpy.array(z), labels, donated) for name, loss in losses.items()}
    return {COPY: lambda: np.copyto(target, z), **calls}


def mean_by_optax(z: Any, labels: Any) -> Any:
    return import_module("optax").softmax_cross_entropy_with_integer_labels(z, labels).mean()


def stepping(loss: Callable[[Any, Any], Any], z: Any, labels: Any, donated: bool) -> Call:
    """Return a function that computes the loss and its gradient, in place if the logits are donated."""
    jax = import_module("jax")
    function, state = jax.jit(jax.value_and_grad(loss), donate_argnums=0 if donated else ()), [z]

    def call() -> None:
        _, dz = jax.block_until_ready(function(state[0], labels))
        if donated:
            state[0] = dz

    return call


def divided(shape: list[int], donated: bool) -> dict[str, Call]:
    """Return the contenders whose logits have half of the classes on each of two devices, and `cross_entropy` on one device."""
    jax, ours = (import_module(name) for name in ("jax", "softxent.jax"))
    rng, place = np.random.default_rng(0), jax.sharding.PartitionSpec
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))  # optax does not take explicit ones
    halves, whole = jax.sharding.NamedSharding(mesh, place(None, "model")), jax.sharding.NamedSharding(mesh, place())
    z, labels = 3 * rng.standard_normal(shape, np.float32), rng.integers(0, shape[1], shape[0])

    by_classes = jax.shard_map(
        partial(ours.cross_entropy, axis_name="model"), mesh=mesh, in_specs=(place(None, "model"), place()), out_specs=place()
    )
    losses = {OPTAX: mean_by_optax, MEAN: ours.cross_entropy, DIVIDED: by_classes}
    calls = {name: stepping(loss, jax.device_put(z, halves), jax.device_put(labels, whole), donated) for name, loss in losses.items()}
    return calls | {ONE_DEVICE: stepping(ours.cross_entropy, jax.numpy.array(z), jax.numpy.asarray(labels), donated)}


def head(shape: list[int]) -> dict[str, Call]:
    jax = import_module("jax")
    functions, arguments = _of_head(shape)
    return {name: partial(_called, jax, jax.jit(function), *arguments) for name, function in functions.items()}


def _of_head(shape: list[int]) -> tuple[dict[str, Callable[..., Any]], tuple[Any, ...]]:
    """Return the contenders as functions of x, W and labels, and these."""
    jax, ours = (import_module(name) for name in ("jax", "softxent.jax"))
    rows, width, classes = shape
    rng, array = np.random.default_rng(0), jax.numpy.asarray
    x, w = (array(rng.standard_normal((n, width), np.float32) / width**0.5) for n in (rows, classes))
    labels = array(rng.integers(0, classes, rows))

    def products(x: Any, w: Any, labels: Any) -> Any:
        z = x @ w.T
        return z @ w, z.T @ x

    def whole(x: Any, w: Any, labels: Any) -> Any:
        return mean_by_optax(x @ w.T, labels)

    head = ours.linear_cross_entropy
    return {PRODUCTS: products, OPTAX: jax.value_and_grad(whole, (0, 1)), HEAD: jax.value_and_grad(head, (0, 1))}, (x, w, labels)


def _called(jax: Any, function: Any, *arguments: Any) -> None:
    jax.block_until_ready(function(*arguments))


def memory(shape: list[int]) -> dict[str, int]:
    """Return the bytes that the compiled functions hold beside arguments and results, as XLA says."""
    jax = import_module("jax")
    functions, arguments = _of_head(shape)
    compiled = {name: jax.jit(function).lower(*arguments).compile() for name, function in functions.items() if name != PRODUCTS}
    return {name: c.memory_analysis().temp_size_in_bytes for name, c in compiled.items()}


def text(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    parts, records = (
        [header(results), f"jax {results['machine']['jax']}, {results['records'][0]['threads']} thread(s).", ""],
        results["records"],
    )
    for kind, heading in (("fresh", "a fresh gradient"), ("in place", "a gradient in place of the logits (donated)")):
        rows = []
        for r in (r for r in records if r["kind"] == kind):
            cells = [_milliseconds(r, name) for name in (OPTAX, MEAN, ROWS)]
            cells += [_ratio(r, *pair) for pair in ((OPTAX, MEAN), (OPTAX, ROWS), (MEAN, COPY))]
            rows.append([str(r["shape"]), *cells])
        columns = [
            "",
            "optax, ms",
            "cross_entropy, ms",
            "optax's signature, ms",
            "optax / cross_entropy",
            "optax / its signature",
            "cross_entropy / memcpy",
        ]
        parts.append(table(f"Loss and gradient under jit, float32: {heading}", columns, rows))
    names = OPTAX, MEAN, DIVIDED, ONE_DEVICE
    rows = [
        [
            f"{r['shape']}{r['kind'].removeprefix('divided')}", *(_milliseconds(r, name) for name in names),
            _ratio(r, OPTAX, DIVIDED), _ratio(r, DIVIDED, ONE_DEVICE),
        ]
        for r in records if r["kind"] in OF_SHARDS
    ]  # fmt: skip
    columns = [
        "",
        "optax under jit, ms",
        "cross_entropy under jit, ms",
        "cross_entropy with axis_name, ms",
        "cross_entropy on one device, ms",
        "optax / axis_name",
        "axis_name / one device",
    ]
    parts.append(table("Loss and gradient, float32: the classes divided among two devices of one process", columns, rows))
    rows = [
        [_sizes(r), *(_milliseconds(r, name) for name in (PRODUCTS, HEAD, OPTAX)), _ratio(r, HEAD, PRODUCTS), _ratio(r, OPTAX, HEAD)]
        for r in records if r["kind"] == "time"
    ]  # fmt: skip
    columns = [
        "",
        "three products, ms",
        "linear_cross_entropy, ms",
        "optax on all logits, ms",
        "linear_cross_entropy / products",
        "optax / linear_cross_entropy",
    ]
    parts.append(table("Linear head: loss and gradients under jit, float32", columns, rows))
    rows = [
        [_sizes(r), *(f"{r['extra'][name] / MIB:.0f}" for name in (HEAD, OPTAX))]
        for r in records if r["kind"] == "memory"
    ]  # fmt: skip
    parts.append(table("Linear head: memory beside arguments and results, MiB", ["", "linear_cross_entropy", "optax on all logits"], rows))
    return "\n".join(parts)


def _sizes(record: dict[str, Any]) -> str:
    return "N={} D={} V={}".format(*record["shape"])


def _milliseconds(record: dict[str, Any], name: str) -> str:
    return f"{median(s for s in record['seconds'][name] if s) * 1e3:.4g}"


def _ratio(record: dict[str, Any], a: str, b: str) -> str:
    found = ratio(record, a, b)
    return f"{found[0]:.2f} ({found[1]:.2f})" if found else "-"
