"""Train a small language model twice, with torch's cross_entropy and with softxent's. The losses are the same, and softxent takes less
time.

The text is the source of Python's standard library, so nothing is downloaded. The script needs the extra `bench`:

    python examples/train_text.py --steps 100
"""

import argparse
import time

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

import softxent.torch
from softxent.demo.corpus import load

CONTEXT, WIDTH = 3, 64


def model(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(classes, WIDTH), nn.Flatten(), nn.Linear(CONTEXT * WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, classes)
    )  # fmt: skip


def train(
    name: str, loss_of, contexts: torch.Tensor, labels: torch.Tensor, classes: int, steps: int, batch: int
) -> tuple[list[float], float]:
    net = model(classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(1)
    curve, seconds = [], 0.0
    for _ in track(range(steps), description=f"training with {name}"):
        pick = torch.randint(len(labels), (batch,), generator=order)
        logits = net(contexts[pick])
        start = time.perf_counter()
        loss = loss_of(logits, labels[pick])
        dlogits = torch.autograd.grad(loss, logits)[0]  # only the loss and its gradient are timed; the rest of the model is the same
        seconds += time.perf_counter() - start
        optimizer.zero_grad()
        logits.backward(dlogits)
        optimizer.step()
        curve.append(loss.item())
    return curve, seconds


def main(steps: int, batch: int, classes: int) -> tuple[list[float], list[float]]:
    tokens = torch.from_numpy(load(classes, CONTEXT).train.astype("int64"))
    windows = tokens.unfold(0, CONTEXT + 1, 1)
    contexts, labels = windows[:, :CONTEXT], windows[:, CONTEXT]
    stock, stock_seconds = train("torch", F.cross_entropy, contexts, labels, classes, steps, batch)
    ours, our_seconds = train("softxent", softxent.torch.cross_entropy, contexts, labels, classes, steps, batch)
    print(f"{'step':>6} {'torch':>10} {'softxent':>10}")
    for n in range(0, steps, max(1, steps // 10)):
        print(f"{n:>6} {stock[n]:>10.5f} {ours[n]:>10.5f}")
    apart = max(abs(a - b) for a, b in zip(stock, ours, strict=True))
    print(f"the curves differ by at most {apart:.1e}")
    ratio = stock_seconds / our_seconds
    print(f"loss and gradient took {stock_seconds:.2f} s with torch, {our_seconds:.2f} s with softxent: {ratio:.1f} times less")
    return stock, ours


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--batch", type=int, default=1024)
    options.add_argument("--classes", type=int, default=20_000)
    main(**vars(options.parse_args()))
