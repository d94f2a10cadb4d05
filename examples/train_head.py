"""Train a small language model twice, with `F.linear` and `F.cross_entropy`, and with softxent's LinearCrossEntropyLoss, which computes the
head and the loss in chunks. The losses are the same, and softxent needs less memory.

The text is the source of Python's standard library, so nothing is downloaded. The script needs the extra `bench`:

    python examples/train_head.py --steps 50
"""

import argparse
import time

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

from softxent.demo.corpus import load
from softxent.torch import LinearCrossEntropyLoss

CONTEXT, WIDTH = 3, 64


class Model(nn.Module):
    """A model that maps tokens and labels to the loss. `head` is the last layer together with the loss."""

    def __init__(self, classes: int, whole: bool):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(classes, WIDTH), nn.Flatten(), nn.Linear(CONTEXT * WIDTH, WIDTH), nn.Tanh())
        self.head = LinearCrossEntropyLoss(WIDTH, classes)
        self.whole = whole

    def forward(self, contexts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.body(contexts)
        return F.cross_entropy(F.linear(x, self.head.weight, self.head.bias), labels) if self.whole else self.head(x, labels)


def train(name: str, whole: bool, windows: torch.Tensor, classes: int, steps: int, batch: int) -> tuple[list[float], float]:
    torch.manual_seed(0)
    model = Model(classes, whole)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(1)
    curve, start = [], time.perf_counter()
    for _ in track(range(steps), description=f"training with {name}"):
        pick = torch.randint(len(windows), (batch,), generator=order)
        loss = model(windows[pick, :CONTEXT], windows[pick, CONTEXT])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve, time.perf_counter() - start


def main(steps: int, batch: int, classes: int) -> tuple[list[float], list[float]]:
    windows = torch.from_numpy(load(classes, CONTEXT).train.astype("int64")).unfold(0, CONTEXT + 1, 1)
    whole, whole_seconds = train("whole logits", True, windows, classes, steps, batch)
    chunks, chunk_seconds = train("chunks of logits", False, windows, classes, steps, batch)
    print(f"{'step':>6} {'whole':>10} {'chunks':>10}")
    for n in range(0, steps, max(1, steps // 10)):
        print(f"{n:>6} {whole[n]:>10.5f} {chunks[n]:>10.5f}")
    print(f"the curves differ by at most {max(abs(a - b) for a, b in zip(whole, chunks, strict=True)):.1e}")
    print(f"{whole_seconds:.2f} s with whole logits, {chunk_seconds:.2f} s by chunks")
    print(f"the whole logits are {batch * classes * 4 / 2**20:.0f} MiB, and their gradient as much again; by chunks it is 64 MiB for both")
    return whole, chunks


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--batch", type=int, default=2048)
    options.add_argument("--classes", type=int, default=20_000)
    main(**vars(options.parse_args()))
