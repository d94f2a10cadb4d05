"""Train a small language model on fixed completions, by GRPO and by DPO. `linear_cross_entropy` computes the log-probability and the
entropy of each token from the hidden states, so the logits are never all in memory.

The weights and the texts are random, so nothing is downloaded. The script needs the extra `bench`, and transformers:

    python examples/grpo_dpo.py --steps 20
"""

import argparse
import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from softxent.torch import linear_cross_entropy

WIDTH, LAYERS, PROMPT, LENGTH = 64, 2, 4, 16


def token_logprobs(model: LlamaForCausalLM, ids: Tensor, completion: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the log-probability and the entropy of the tokens ids [B, L] after the first, both [B, L - 1], and 0 outside of completions.

    `completion` [B, L] is true at the tokens of completions.
    """
    hidden = model.model(ids, use_cache=False).last_hidden_state
    labels = ids.masked_fill(~completion, -100)
    found = linear_cross_entropy(
        hidden, model.lm_head.weight, labels, shift=True, temperature=temperature, reduction="none",
        return_logprobs=True, return_entropy=True,
    )  # fmt: skip
    return found.logprobs, found.entropy


def grpo_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, tokens: Tensor, epsilon: float = 0.2) -> Tensor:
    """Return the clipped loss, the mean over the tokens of all completions. Advantages are [B], the others [B, L - 1]."""
    ratio = (logprobs - old).exp()
    gain = torch.min(ratio * advantages[:, None], ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None])
    return -(gain * tokens).sum() / tokens.sum()


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float = 0.1) -> Tensor:
    """Return the loss of pairs. The first half of the texts [B, L - 1] is chosen, the second half is rejected."""
    chosen, rejected = (logprobs - reference).sum(1).chunk(2)
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


def policy(classes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=classes, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=PROMPT + LENGTH,
        )
    )  # fmt: skip


def texts(classes: int, group: int) -> tuple[Tensor, Tensor]:
    """Return a group of completions of one prompt, of different lengths, and where their tokens are."""
    draw = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, classes, (1, PROMPT), generator=draw).expand(group, -1)
    ids = torch.cat([prompt, torch.randint(0, classes, (group, LENGTH), generator=draw)], 1)
    ends = torch.randint(LENGTH // 2, LENGTH + 1, (group, 1), generator=draw) + PROMPT
    place = torch.arange(PROMPT + LENGTH)
    return ids, (place >= PROMPT) & (place < ends)


def main(steps: int, group: int, classes: int) -> dict[str, list[list[float]]]:
    """Train by each loss, and return the mean log-probability of a token of each text, before and after every step."""
    ids, completion = texts(classes, group)
    tokens = completion[:, 1:]
    rewards = (torch.arange(group) < group // 2).float()  # the first half is better
    advantages = (rewards - rewards.mean()) / rewards.std()
    found: dict[str, list[list[float]]] = {}
    for name in ("GRPO", "DPO"):
        model = policy(classes)
        with torch.no_grad():
            reference, _ = token_logprobs(copy.deepcopy(model), ids, completion)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        curve = []
        for _ in range(steps):
            logprobs, entropy = token_logprobs(model, ids, completion)
            if name == "GRPO":
                loss = grpo_loss(logprobs, logprobs.detach(), advantages, tokens) - 1e-3 * entropy.sum() / tokens.sum()
            else:
                loss = dpo_loss(logprobs, reference)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append((logprobs.detach().sum(1) / tokens.sum(1)).tolist())
        found[name] = curve
    table = Table("loss", "texts", "log-probability of a token: first step", "last step")
    for name, curve in found.items():
        for which, part in (("better", slice(0, group // 2)), ("worse", slice(group // 2, group))):
            first, last = (sum(each[part]) / len(each[part]) for each in (curve[0], curve[-1]))
            table.add_row(name, which, f"{first:.3f}", f"{last:.3f}")
    Console().print(table)
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--group", type=int, default=8, help="completions of the prompt; the first half of them is better")
    options.add_argument("--classes", type=int, default=20_000, help="tokens of the vocabulary")
    main(**vars(options.parse_args()))
