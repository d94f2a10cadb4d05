"""Train a small language model on four processes, and on one. The losses are the same.

The processes form a mesh of 2 x 2. One axis divides the text and, by FSDP2, the parameters. The other divides the matrices of every layer,
and the classes of the head: W is a DTensor, `linear_cross_entropy` computes the loss of its columns, and no process has the logits of all
classes. After half of the steps, the model and the optimizer are saved and loaded again. PyTorch 2.6 has no FSDP2 on CPUs.

    python examples/tensor_parallel.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from softxent.torch import linear_cross_entropy

CLASSES, WIDTH, HEADS, LAYERS, LENGTH, BATCH = 997, 64, 4, 2, 32, 8


class Block(nn.Module):
    """A layer of the Llama kind: attention and a gated product, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """A language model that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(CLASSES, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position.weight
        for block in self.blocks:
            x = block(x)
        loss = linear_cross_entropy(self.norm(x), self.head.weight, tokens, shift=True, label_smoothing=0.1, z_loss=1e-4)
        return loss.full_tensor() if hasattr(loss, "full_tensor") else loss


def divided(model: Model) -> None:
    """Divide a model among four processes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    plan = dict.fromkeys(["q", "k", "v", "gate", "up"], ColwiseParallel()) | dict.fromkeys(["o", "down"], RowwiseParallel())
    for block in model.blocks:
        parallelize_module(block, mesh["classes"], plan)
    parallelize_module(model, mesh["classes"], {"head": ColwiseParallel(output_layouts=Replicate())})
    for block in model.blocks:
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])


def train(rank: int, processes: int, steps: int, folder: str) -> None:
    """Train in one of the processes, and write the losses to a file."""
    losses = []
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{processes}", rank=rank, world_size=processes)
    torch.manual_seed(0)
    model = Model()
    if processes > 1:
        divided(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    parts = 2 if processes > 1 else 1  # of the batch
    for step in range(steps):
        start = torch.randint(0, CLASSES, (BATCH, 1), generator=generator)
        tokens = (start + 7 * torch.arange(LENGTH)) % CLASSES  # a sequence that can be learned
        loss = model(tokens.chunk(parts)[rank // 2 if processes > 1 else 0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / processes)
        if step == steps // 2:
            of_model, of_optimizer = get_state_dict(model, optimizer)
            state = {"model": of_model, "optimizer": of_optimizer}
            checkpoint.save(state, checkpoint_id=f"{folder}/checkpoint{processes}")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            checkpoint.load(state, checkpoint_id=f"{folder}/checkpoint{processes}")
            set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, f"losses{processes}").write_text(" ".join(map(str, losses)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small language model on four processes, and on one.")
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 4):
            torch.multiprocessing.spawn(train, (processes, steps, folder), processes)
        one, four = ([float(x) for x in Path(folder, f"losses{n}").read_text().split()] for n in (1, 4))
    print("step  one process  four processes")
    for step, (a, b) in enumerate(zip(one, four, strict=True)):
        print(f"{step:4}  {a:11.6f}  {b:14.6f}")
    worst = max(abs(a - b) / a for a, b in zip(one, four, strict=True))
    print(f"largest relative difference {worst:.1e}; the loss fell from {one[0]:.3f} to {one[-1]:.3f}")
    if worst > 1e-3:
        raise SystemExit("the losses differ")


if __name__ == "__main__":
    main()
