"""Train a small causal language model of transformers twice, as it is and with `softxent.torch.patch`. The losses are the same, and the
patched model never holds all of its logits.

The weights are random and the text is the source of Python's standard library, so nothing is downloaded. Each training runs in its own
process, so that its peak memory can be measured. The script needs the extra `bench`, and transformers:

    python examples/finetune_causal_lm.py --steps 20
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from softxent.demo.corpus import load
from softxent.torch import patch

WIDTH, LAYERS = 64, 2


def model(classes: int, length: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=classes, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=length, tie_word_embeddings=True,
        )
    )  # fmt: skip


def memory(what: str) -> float:
    """Return the resident memory ("VmRSS") or its peak ("VmHWM") in MiB. Without /proc both are the peak, or that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(what)) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def train(name: str, ids: Tensor, classes: int, steps: int, batch: int, length: int) -> tuple[list[float], float, float]:
    """Return the losses, the seconds, and the memory beyond that before the first step, in MiB."""
    net = model(classes, length)
    if name == "patched":
        patch(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(1)
    windows = ids.unfold(0, length, length)
    curve, before, start = [], memory("VmRSS"), time.perf_counter()
    for _ in track(range(steps), description=f"training the {name} model"):
        text = windows[torch.randint(len(windows), (batch,), generator=order)]
        optimizer.zero_grad()
        loss = net(input_ids=text, labels=text).loss
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve, time.perf_counter() - start, memory("VmHWM") - before


def main(steps: int, batch: int, length: int, classes: int) -> dict[str, tuple[list[float], float, float]]:
    ids = torch.from_numpy(load(classes, 1).train.astype("int64"))
    found = {}
    for name in ("stock", "patched"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            found[name] = alone.submit(train, name, ids, classes, steps, batch, length).result()
    (stock, stock_seconds, stock_peak), (ours, our_seconds, our_peak) = found.values()
    table = Table("step", "loss, stock", "loss, patched")
    for n in range(0, steps, max(1, steps // 10)):
        table.add_row(str(n), f"{stock[n]:.5f}", f"{ours[n]:.5f}")
    console = Console()
    console.print(table)
    console.print(f"the curves differ by at most {max(abs(a - b) for a, b in zip(stock, ours, strict=True)):.1e}")
    console.print(f"the logits of a step are {4 * batch * length * classes / 2**20:.0f} MiB")
    console.print(f"peak of the steps: stock {stock_peak:.0f} MiB, patched {our_peak:.0f} MiB: {stock_peak / our_peak:.1f} times less")
    console.print(f"a step: stock {stock_seconds / steps:.2f} s, patched {our_seconds / steps:.2f} s")
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--batch", type=int, default=16, help="texts a step")
    options.add_argument("--length", type=int, default=128, help="tokens a text")
    options.add_argument("--classes", type=int, default=20_000, help="words of the vocabulary")
    main(**vars(options.parse_args()))
