"""The benchmark of options and outputs: `softxent bench --options`.

Every option, output and derivative is timed in multiples of the plain loss and gradient, beside the same composed of PyTorch's operations.
All contenders of a table run in one process, in rounds of random order (measure.interleave).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import softxent

from . import layouts, modes
from .contenders import Call
from .report import machine, ratio, table

PLAIN, COPY = "plain", "memcpy"
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
TORCH = "torch: "  # begins the name of a contender that is composed of PyTorch's operations


class Case(NamedTuple):
    """What one process measures."""

    kind: str  # a key of KINDS
    rows: int  # of layouts: 0, or not 0 to try it with small ones
    classes: int
    dtype: str  # a key of DTYPES
    threads: int
    width: int = 0  # of the hidden states of a linear head
    isa: str = ""  # the instruction set of the kernel, if it is not the widest

    def title(self) -> str:
        head = f", D = {self.width}" if self.width else ""
        isa = f", {self.isa}" if self.isa else ""
        if "layouts" in self.kind:
            return f"{KINDS[self.kind][0]}, {self.dtype}, {self.threads} thread(s)"
        return f"{KINDS[self.kind][0]}, [{self.rows}, {self.classes}]{head} {self.dtype}, {self.threads} thread(s){isa}"


def cases(quick: bool) -> list[Case]:
    if quick:
        return [
            Case("numpy", 64, 1000, "f32", 1),
            Case("torch", 64, 1000, "f32", 1),
            Case("head", 64, 1000, "f32", 1, 16),
            Case("numpy head", 64, 1000, "f32", 1, 16),
            Case("small", 32, 10, "f32", 1),
            Case("layouts", 64, 10, "f32", 1),
            Case("numpy layouts", 64, 10, "f32", 1),
        ]
    large = [Case(kind, 1024, 32000, dtype, n) for n in (1, 2) for kind in ("numpy", "torch") for dtype in DTYPES]
    sizes = [Case("sizes", 1024, 32000, "f32", n) for n in (1, 2)]
    heads = [Case(kind, 1024, 32000, "f32", n, 256) for n in (1, 2) for kind in ("head", "numpy head")]
    narrower = [Case("numpy", 1024, 32000, "f32", 1, isa="avx2")] if softxent.kernels.isa() == "avx512" else []
    short = [Case("numpy", 65536, 10, "f32", n) for n in (1, 2)]
    any_layout = [Case("small layouts", 0, 0, "f32", 1), *(Case("layouts", 0, 0, dtype, n) for n in (1, 2) for dtype in DTYPES)]
    any_layout += [Case("numpy layouts", 0, 0, "f32", n) for n in (1, 2)]
    in_modes = [Case("modes", *shape, "f32", 1) for shape in ((32, 10), (256, 1000), (1024, 32000))]
    return [*large, *short, *narrower, *heads, Case("small", 32, 10, "f32", 1), *in_modes, *sizes, *any_layout]


def run(repeats: int, output: Path, quick: bool) -> None:
    """Run the benchmark, print its tables, and write options.json and options.md.

    Args:
        repeats: the number of rounds. Slow contenders take part in every fourth.
        output: the folder to write to.
        quick: whether to use small shapes, to try the benchmark.
    """
    from . import measured, progress, written

    output.mkdir(parents=True, exist_ok=True)
    every, records = cases(quick), []
    jobs = [[repeats, *case] for case in every]
    with progress(len(every)) as step:
        for case, record in zip(
            every, measured("options-worker", jobs, quick, [{"SOFTXENT_ISA": c.isa} if c.isa else {} for c in every]), strict=True
        ):
            records.append(record)
            step({"kind": "options", "shape": case.title(), "dtype": case.dtype, "threads": case.threads, "isa": case.isa})
    results = {"machine": machine(), "repeats": repeats, "records": records}
    written("options", results, text(results), output)


def work(repeats: int, *case: Any) -> None:
    """Measure a case in this process, and print its times as a line of JSON."""
    from .measure import PAUSE, interleave

    c = Case(*case)
    softxent.set_num_threads(c.threads)
    import_module("torch").set_num_threads(c.threads)
    seconds = interleave(KINDS[c.kind][1](c), repeats, PAUSE if c.threads > 1 else 0)
    print(json.dumps({"case": list(c), "seconds": seconds}))


# ---- contenders ----


def _numpy(c: Case) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    z = (3 * rng.standard_normal((c.rows, c.classes), np.float32)).astype(_numpy_dtype(c))
    labels, dz = rng.integers(0, c.classes, c.rows), np.empty_like(z)
    v, u = rng.standard_normal(z.shape, np.float32), rng.random(z.shape, np.float32)
    u /= u.sum(axis=1, keepdims=True)
    some = np.where(np.arange(c.rows) % 10 == 0, -100, labels)
    both = partial(softxent.cross_entropy_and_grad, z, out=dz)
    bits = (z.view(np.uint16), dz.view(np.uint16)) if z.itemsize == 2 else (z, dz)
    return {
        COPY: lambda: np.copyto(bits[1], bits[0]),
        PLAIN: partial(both, labels),
        "loss alone": partial(softxent.cross_entropy, z, labels),
        "without out": partial(softxent.cross_entropy_and_grad, z, labels),
        "reduction none": partial(both, labels, reduction="none"),
        "an ignored row in ten": partial(both, some),
        "label smoothing": partial(both, labels, label_smoothing=0.1),
        "class weights": partial(both, labels, class_weight=np.linspace(0.5, 2, c.classes)),
        "sample weights": partial(both, labels, sample_weight=np.linspace(0.5, 2, c.rows)),
        "z-loss": partial(both, labels, z_loss=1e-4),
        "temperature": partial(both, labels, temperature=0.7),
        "softcap": partial(both, labels, softcap=30.0),
        "probabilities": partial(both, u),
        "probabilities, float64": partial(both, u.astype(np.float64)),
        "logsumexp": partial(softxent.logsumexp, z),
        "entropy": partial(softxent.entropy, z),
        "entropy_and_grad": partial(softxent.entropy_and_grad, z),
        "softmax": partial(softxent.softmax, z, out=dz),
        "log_softmax": partial(softxent.log_softmax, z),
        "softmax_vjp": partial(softxent.softmax_vjp, z, v),
        "token_logprobs_and_grad": partial(softxent.token_logprobs_and_grad, z, labels, out=dz),
        "cross_entropy_hvp": partial(softxent.cross_entropy_hvp, z, v, labels),
        "cross_entropy_hvp, softcap": partial(softxent.cross_entropy_hvp, z, v, labels, softcap=30.0),
        **({} if z.size > LARGEST_OF_ANY_SIZE else {"numbers of any size": partial(both, labels, upstream=3e38)}),
    }


def _numpy_dtype(c: Case) -> Any:
    return import_module("ml_dtypes").bfloat16 if c.dtype == "bf16" else DTYPES[c.dtype]


LARGEST_OF_ANY_SIZE = 1 << 20  # elements, of which each takes up to a microsecond (cpp/wide.h)
OUTPUTS = ("return_lse", "return_logprobs", "return_entropy", "return_correct")


def _torch(c: Case) -> dict[str, Call]:
    torch = import_module("torch")
    functional, front = torch.nn.functional, import_module("softxent.torch")
    torch.manual_seed(0)
    z = (3 * torch.randn(c.rows, c.classes)).to(getattr(torch, DTYPES[c.dtype])).requires_grad_()
    copy, v, target = torch.empty_like(z.detach()), torch.randn_like(z), torch.randint(0, c.classes, (c.rows,))
    u = torch.rand(c.rows, c.classes).softmax(1).to(z.dtype)
    some = torch.where(torch.arange(c.rows) % 10 == 0, -100, target)
    weight, sample, lse = torch.linspace(0.5, 2, c.classes).to(z.dtype), torch.linspace(0.5, 2, c.rows), torch.logsumexp
    options: dict[str, tuple[tuple[Any, ...], dict[str, Any], Callable[[], Any]]] = {  # ours: target and options; the same in torch
        PLAIN: ((target,), {}, lambda: functional.cross_entropy(z, target)),
        "reduction none": ((target,), {"reduction": "none"}, lambda: functional.cross_entropy(z, target, reduction="none").sum()),
        "an ignored row in ten": ((some,), {}, lambda: functional.cross_entropy(z, some)),
        "label smoothing": ((target,), {"label_smoothing": 0.1}, lambda: functional.cross_entropy(z, target, label_smoothing=0.1)),
        "class weights": ((target,), {"weight": weight}, lambda: functional.cross_entropy(z, target, weight)),
        "sample weights": (
            (target,),
            {"sample_weight": sample},
            lambda: (functional.cross_entropy(z, target, reduction="none") * sample).sum(),
        ),
        "z-loss": ((target,), {"z_loss": 1e-4}, lambda: functional.cross_entropy(z, target) + 1e-4 * (lse(z, 1) ** 2).mean()),
        "temperature": ((target,), {"temperature": 0.7}, lambda: functional.cross_entropy(z / 0.7, target)),
        "softcap": ((target,), {"softcap": 30.0}, lambda: functional.cross_entropy(30 * torch.tanh(z / 30), target)),
        "probabilities": ((u,), {}, lambda: functional.cross_entropy(z, u)),
    }
    calls: dict[str, Call] = {COPY: lambda: copy.copy_(z.detach())}

    def backward(loss: Callable[[], Any]) -> None:
        z.grad = None
        found = loss()
        (found.sum() if found.ndim else found).backward()

    for name, (arguments, keywords, stock) in options.items():
        calls[name] = partial(backward, partial(front.cross_entropy, z, *arguments, **keywords))
        calls[TORCH + name] = partial(backward, stock)

    def outputs(*wanted: str) -> Any:
        r = front.cross_entropy(z, target, **dict.fromkeys(wanted, True))
        return r.loss + sum(
            rows.mean() for name, rows in r._asdict().items() if rows is not None and name in ("lse", "entropy", "logprobs")
        )

    def stock_outputs(*wanted: str) -> Any:
        logp = functional.log_softmax(z, 1)
        own = logp.gather(1, target[:, None])
        each = {
            "return_lse": lambda: lse(z, 1).mean(),
            "return_logprobs": own.mean,
            "return_entropy": lambda: -(logp.exp() * logp).sum(1).mean(),
        }
        predicted = z.detach().argmax(1) if {"return_correct", "return_predicted"} & {*wanted} else None
        if predicted is not None and "return_correct" in wanted:
            (predicted == target).sum()
        return -own.mean() + sum(each[name]() for name in wanted if name in each)

    for name in (*OUTPUTS[:3], "return_predicted", "all outputs"):
        wanted = OUTPUTS if name == "all outputs" else (name,)
        calls[name.replace("return_", "with ")] = partial(backward, partial(outputs, *wanted))
        calls[TORCH + name.replace("return_", "with ")] = partial(backward, partial(stock_outputs, *wanted))

    def twice(loss: Callable[..., Any]) -> None:
        (g,) = torch.autograd.grad(loss(z, target), z, create_graph=True)
        torch.autograd.grad(g, z, v)

    calls["double backward"], calls[TORCH + "double backward"] = (
        partial(twice, front.cross_entropy),
        partial(twice, functional.cross_entropy),
    )
    dual: Any = import_module("torch.autograd.forward_ad")

    def along(loss: Callable[..., Any]) -> None:
        with dual.dual_level():
            dual.unpack_dual(loss(dual.make_dual(z.detach(), v), target))

    calls["forward mode"], calls[TORCH + "forward mode"] = partial(along, front.cross_entropy), partial(along, functional.cross_entropy)
    calls["log_softmax, backward"] = partial(backward, lambda: (front.log_softmax(z, 1) * v).sum())
    calls[TORCH + "log_softmax, backward"] = partial(backward, lambda: (torch.log_softmax(z, 1) * v).sum())
    return calls


def _head(c: Case) -> dict[str, Call]:
    torch = import_module("torch")
    functional, front = torch.nn.functional, import_module("softxent.torch")
    torch.manual_seed(0)
    x, w = torch.randn(c.rows, c.width).requires_grad_(), (3 * torch.randn(c.classes, c.width) * c.width**-0.5).requires_grad_()
    target = torch.randint(0, c.classes, (c.rows,))

    def backward(loss: Callable[[], Any]) -> None:
        x.grad = w.grad = None
        loss().backward()

    def outputs(*wanted: str) -> Any:
        r = front.linear_cross_entropy(x, w, target, **dict.fromkeys(wanted, True))
        return r.loss + sum(
            rows.mean() for name, rows in r._asdict().items() if rows is not None and name in ("lse", "entropy", "logprobs")
        )

    def stock(name: str) -> Any:
        z = functional.linear(x, w)
        z = z / 0.7 if name == "temperature" else 30 * torch.tanh(z / 30) if name == "softcap" else z
        loss = functional.cross_entropy(z, target, label_smoothing=0.1 if name == "label smoothing" else 0.0)
        if not name.startswith("with ") and name != "all outputs":
            return loss
        logp = functional.log_softmax(z, 1)
        if name in ("with lse", "all outputs"):
            loss = loss + torch.logsumexp(z, 1).mean()
        if name in ("with logprobs", "all outputs"):
            loss = loss + logp.gather(1, target[:, None]).mean()
        return loss - (logp.exp() * logp).sum(1).mean() if name in ("with entropy", "all outputs") else loss

    given: dict[str, dict[str, Any]] = {
        PLAIN: {},
        "label smoothing": {"label_smoothing": 0.1},
        "temperature": {"temperature": 0.7},
        "softcap": {"softcap": 30.0},
        "batch_invariant": {"batch_invariant": True},
    }
    calls: dict[str, Call] = {}
    for name, keywords in given.items():
        calls[name] = partial(backward, partial(front.linear_cross_entropy, x, w, target, **keywords))
    for name in (*OUTPUTS[:3], "return_predicted", "all outputs"):
        wanted = OUTPUTS if name == "all outputs" else (name,)
        calls[name.replace("return_", "with ")] = partial(backward, partial(outputs, *wanted))
    return calls | {TORCH + name: partial(backward, partial(stock, name)) for name in list(calls)}


def _numpy_head(c: Case) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((c.rows, c.width), np.float32)
    w = (3 * rng.standard_normal((c.classes, c.width), np.float32) * np.float32(c.width**-0.5)).astype(np.float32)
    labels = rng.integers(0, c.classes, c.rows)
    both = partial(softxent.linear_cross_entropy_and_grad, x, w, labels)
    vx, vw = rng.standard_normal(x.shape, np.float32), rng.standard_normal(w.shape, np.float32)
    return {
        PLAIN: both,
        "loss alone": partial(softxent.linear_cross_entropy, x, w, labels),
        "label smoothing": partial(both, label_smoothing=0.1),
        "z-loss": partial(both, z_loss=1e-4),
        "temperature": partial(both, temperature=0.7),
        "softcap": partial(both, softcap=30.0),
        "linear_cross_entropy_hvp": partial(softxent.linear_cross_entropy_hvp, x, w, labels, vx, vw),
        "linear_cross_entropy_ggn": partial(softxent.linear_cross_entropy_ggn, x, w, labels, vx, vw),
    }


def _small(c: Case) -> dict[str, Call]:
    """Return calls on a small matrix: those of `_torch`, those of `_numpy`, the loss alone, and a linear head."""
    torch, front = import_module("torch"), import_module("softxent.torch")
    mine = {name: call for name, call in _torch(c).items() if "all" not in name and "double" not in name and name != COPY}
    z, target = torch.randn(c.rows, c.classes), torch.randint(0, c.classes, (c.rows,))
    mine["loss alone"], mine[TORCH + "loss alone"] = (
        partial(front.cross_entropy, z, target),
        partial(torch.nn.functional.cross_entropy, z, target),
    )
    heads = _head(c._replace(width=16))
    mine |= {name.replace(PLAIN, f"linear head [{c.rows}, 16] x [{c.classes}, 16]"): heads[name] for name in (PLAIN, TORCH + PLAIN)}
    return mine | {f"NumPy: {name}": call for name, call in _numpy(c).items() if name != COPY}


def _sizes(c: Case) -> dict[str, Call]:
    """Return the plain loss and backward in PyTorch on matrices of other shapes, with cold caches: each call uses another matrix."""
    torch, front = import_module("torch"), import_module("softxent.torch")
    calls: dict[str, Call] = {}
    for rows, classes in ((1024, 32000), (8192, 1000), (65536, 100)):
        many = [torch.randn(rows, classes).requires_grad_() for _ in range(max(2, (256 << 20) // (4 * rows * classes)))]
        target = torch.randint(0, classes, (rows,))

        def call(many: list[Any] = many, target: Any = target, at: list[int] = [0]) -> None:  # noqa: B006 - it counts the calls
            z = many[at[0] % len(many)]
            at[0] += 1
            front.cross_entropy(z, target).backward()
            z.grad = None  # gives its memory to the next call

        calls[f"[{rows}, {classes}]"] = call
    return calls


KINDS: dict[str, tuple[str, Callable[[Case], dict[str, Call]]]] = {
    "numpy": ("NumPy", _numpy),
    "torch": ("PyTorch, loss and backward", _torch),
    "head": ("PyTorch, linear head, loss and backward", _head),
    "numpy head": ("NumPy, linear head", _numpy_head),
    "small": ("Small calls", _small),
    "modes": ("PyTorch, the loss in every mode", lambda c: modes.pytorch(c.rows, c.classes)),
    "sizes": ("PyTorch, plain loss and backward, cold caches", _sizes),
    "layouts": ("PyTorch, logits of any layout", lambda c: layouts.pytorch(False, DTYPES[c.dtype], bool(c.rows))),
    "small layouts": ("PyTorch, small logits of any layout", lambda c: layouts.pytorch(True, DTYPES[c.dtype], bool(c.rows))),
    "numpy layouts": ("NumPy, arrays of any layout", lambda c: layouts.numpy(bool(c.rows))),
}


# ---- tables ----


def text(results: dict[str, Any]) -> str:
    """Return options.md: a table for each case, and the machine."""
    from .report import header

    return "\n".join([header(results), *(_table(Case(*r["case"]), r["seconds"]) for r in results["records"])]).rstrip() + "\n"


def _table(c: Case, seconds: dict[str, list[float | None]]) -> str:
    record = {"seconds": seconds}

    def in_multiples(a: str, b: str) -> str:
        found = ratio(record, a, b) if a in seconds and b in seconds else None
        return f"{found[0]:.3g}" if found else "-"

    if c.kind in ("layouts", "small layouts"):
        return table(c.title(), *layouts.rows(seconds, in_multiples))
    if c.kind in ("sizes", "numpy layouts"):
        small = {name: took for name, took in seconds.items() if name in layouts.SMALL}
        seconds = {name: took for name, took in seconds.items() if name not in small}
        names = list(seconds)
        elements = [float(np.prod(json.loads(name))) for name in names]
        times = [ratio(record, name, names[0]) for name in names]
        rows = [[name, f"{x[0] * elements[0] / n:.3g}" if x else "-"] for name, x, n in zip(names, times, elements, strict=True)]
        found = table(f"{c.title()}: time an element, in multiples of {names[0]}", ["logits", "multiples"], rows)
        if not small:
            return found
        return (
            found
            + "\n"
            + table(f"{c.title()}: microseconds a call", ["", "softxent"], [[name, _microseconds(x)] for name, x in small.items()])
        )
    if c.kind in ("small", "modes"):
        rows = [
            [name, _microseconds(seconds[name]), _microseconds(seconds.get(TORCH + name)), in_multiples(name, TORCH + name)]
            for name in _ours(seconds)
        ]
        return table(f"{c.title()}: microseconds a call (median), and ours : torch", ["", "softxent", "torch", "softxent : torch"], rows)
    rows = [[name, in_multiples(name, PLAIN), in_multiples(TORCH + name, PLAIN)] for name in _ours(seconds)]
    return table(f"{c.title()}: multiples of the plain loss and gradient", ["", "softxent", "composed of torch's operations"], rows)


def _ours(seconds: dict[str, Any]) -> list[str]:
    return [name for name in seconds if not name.startswith(TORCH)]


def _microseconds(found: list[float | None] | None) -> str:
    took = [x for x in found or [] if x]
    return f"{np.median(took) * 1e6:.3g}" if took else "-"
