"""The benchmark on a GPU, `softxent bench --gpu`: softxent.torch, PyTorch, compiled PyTorch, Liger if it is installed, and a copy of the
logits.

The time is that of a mean loss and its backward pass, with the launch of the kernels and the wait for the device. The copy is the lower
limit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import date
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import contract
from . import progress, read_shapes
from .measure import interleave
from .report import ratio, table

SHAPES = [(8192, 32000), (4096, 128256), (16384, 50257), (65536, 1000), (1 << 20, 10)]
QUICK = [(64, 1000), (256, 10)]
COPY, OURS, EAGER, COMPILED, LIGER = "copy", "softxent.torch", "torch", "torch compiled", "Liger"
PEERS = [EAGER, COMPILED, LIGER]
Call = Callable[[], Any]


def run(shapes: str | None, dtypes: str, repeats: int, output: Path, quick: bool) -> None:
    """Time the layer on the GPU, print the table and write gpu.json and gpu.md.

    Raises:
        ValueError: if PyTorch finds no GPU, if a shape or dtype cannot be read, or if the folder cannot be written to.
    """
    torch = import_module("torch")
    if not torch.cuda.is_available():
        contract.fail("bench", "--gpu", "be given where PyTorch finds a CUDA device", f"torch {torch.__version__} without one")
    sizes, types = read_shapes(shapes, QUICK if quick else SHAPES), dtypes.split(",")
    contract.place("bench", "output", output, folder=True)
    records = []
    with progress(len(sizes) * len(types)) as step:
        for shape in sizes:
            for dtype in types:
                records.append(measure(shape, dtype, torch.device("cuda"), repeats, quick))
                step(records[-1])
    results = {"machine": machine(torch), "repeats": repeats, "records": records}
    (output / "gpu.json").write_text(json.dumps(results) + "\n")
    (output / "gpu.md").write_text(text(results))
    print(text(results))
    print("written:", *sorted(output.glob("gpu.*")), file=sys.stderr)


def machine(torch: Any) -> str:
    front = import_module("softxent.torch")
    backend = next(f"{b.name} ({b.detail})" for b in front.backends() if b.active and b.name != "cpu")
    return f"{torch.cuda.get_device_name()}; torch {torch.__version__}; backend {backend}; {date.today().isoformat()}"


def measure(shape: tuple[int, int], dtype: str, device: Any, repeats: int, quick: bool) -> dict[str, Any]:
    """Return the seconds of each contender in every round, its peak memory beyond the logits and one gradient (on CUDA), and the errors."""
    torch = import_module("torch")
    torch.manual_seed(0)
    z = torch.randn(shape, device=device).mul_(3).to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype]).requires_grad_()
    labels = torch.randint(shape[1], (shape[0],), device=device)
    calls: dict[str, Call] = {COPY: copy_of(z)}
    failed = {}
    for name, loss in losses(quick).items():
        call = both(loss, z, labels)
        try:
            call()
            calls[name] = call
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:200]
    extra = {name: peak(call, z) for name, call in calls.items()}
    waited = {name: wait(call, device) for name, call in calls.items()}
    return {
        "kind": "times", "shape": list(shape), "dtype": dtype, "threads": 1, "isa": str(device), "seconds": interleave(waited, repeats, 0),
        "extra": extra, "failed": failed,
    }  # fmt: skip


def losses(quick: bool) -> dict[str, Callable[..., Any]]:
    torch, functional = import_module("torch"), import_module("torch.nn.functional")
    found = {OURS: import_module("softxent.torch").cross_entropy, EAGER: functional.cross_entropy}
    if not quick:
        found[COMPILED] = torch.compile(functional.cross_entropy, dynamic=False)
    if find_spec("liger_kernel"):
        liger = import_module("liger_kernel.transformers.functional").liger_cross_entropy
        found[LIGER] = lambda z, labels: liger(z.clone(), labels)  # Liger overwrites its input, which is still needed here
    return found


def copy_of(z: Any) -> Call:
    """Return a copy of the logits, which reads them and writes as much as the gradient."""
    source, target = z.detach(), z.detach().clone()
    return lambda: target.copy_(source)


def both(loss: Callable[..., Any], z: Any, labels: Any) -> Call:
    def call() -> None:
        z.grad = None
        loss(z, labels).backward()

    return call


def wait(call: Call, device: Any) -> Call:
    if device.type != "cuda":
        return call
    synchronize = import_module("torch").cuda.synchronize

    def waited() -> None:
        call()
        synchronize()

    return waited


def peak(call: Call, z: Any) -> int | None:
    if z.device.type != "cuda":
        return None
    cuda = import_module("torch").cuda
    z.grad = None
    cuda.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    call()
    cuda.synchronize()
    beyond: int = cuda.max_memory_allocated() - before - z.numel() * z.element_size()
    return max(0, beyond)


def text(results: dict[str, Any]) -> str:
    rows = []
    for r in results["records"]:
        pairs = [(OURS, COPY), *((peer, OURS) for peer in PEERS)]
        cells = ["fails" if a in r["failed"] else f"{found[0]:.3g}" if (found := ratio(r, a, b)) else "-" for a, b in pairs]
        memory = [f"{r['extra'][name] / 2**20:.1f}" if r["extra"].get(name) is not None else "-" for name in (OURS, EAGER)]
        rows.append([str(tuple(r["shape"])), r["dtype"], *cells, *memory])
    columns = ["logits", "dtype", f"{OURS} : copy", *(f"{peer} : {OURS}" for peer in PEERS), f"{OURS}, MiB", "torch, MiB"]
    heading = "cross_entropy and backward(): ratios of times, and memory at the peak beyond logits and gradient"
    failed = sorted({f"- {who} fails: {why}" for r in results["records"] for who, why in r["failed"].items()})
    return "\n".join([results["machine"] + ".\n", table(heading, columns, rows), *failed]).rstrip() + "\n"
