"""A patched model trains as the stock model under DDP, FSDP2, PEFT and transformers' Trainer. GRPO and DPO losses by
`linear_cross_entropy` are those of trl.

DDP and FSDP2 run in two processes (processes.py). All models have random weights, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import os

import processes as workers
import pytest
import torch
import torch.distributed as dist
from cases import fsdp2_on_the_cpu
from test_examples import EXAMPLES
from tolerances import FLOAT32, TRAINED32

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers as hf

from softxent.bench import training
from softxent.torch import patch
from softxent.torch.lazy_logits import Logits

V, D, WORLD = 211, 32, 2


@pytest.fixture(scope="module")
def processes():
    found = workers.Processes(WORLD)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(**more):
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False, **more,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def lora(model, **more):
    """Return a model of peft with adapters whose values are not 0."""
    peft = importlib.import_module("peft")
    torch.manual_seed(1)
    given = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "lora_dropout": 0.0} | more
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **given))


def texts(count, seed=0):
    """Return texts of 12 tokens, with different numbers of ignored labels."""
    ids = torch.randint(3, V, (count, 12), generator=torch.Generator().manual_seed(seed))
    ignored = torch.arange(12) < (torch.arange(count) % 5 + 1)[:, None]
    return {"input_ids": ids, "labels": ids.masked_fill(ignored, -100)}


def whole(t):
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()


def steps(model, batches):
    """Train, a list of micro-batches a step. Return the losses, the gradients of all steps, and whether no logits were computed."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses, gradients, lazy = [], [], True
    for parts in batches:
        for k, part in enumerate(parts):
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(k == len(parts) - 1)
            elif hasattr(model, "require_backward_grad_sync"):
                model.require_backward_grad_sync = k == len(parts) - 1
            out = model(**part)
            lazy &= isinstance(out.logits, Logits) and out.logits.computed is None
            out.loss.backward()
            losses.append(whole(out.loss))
        gradients.append({name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, lazy


def same(found, expected, tolerance=TRAINED32):
    """The losses agree, and each gradient relative to its norm."""
    torch.testing.assert_close(torch.stack(found[0]), torch.stack(expected[0]), rtol=tolerance, atol=tolerance)
    assert len(found[1]) == len(expected[1])
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert mine.keys() == theirs.keys() and theirs
        for name, want in theirs.items():
            assert (mine[name] - want).norm() <= tolerance * want.norm() + 1e-9, name  # a gradient that is nearly 0


def as_near(found, expected, exact):
    """In bfloat16: losses and gradients are as near to those of float32 as the stock model's."""
    eps = torch.finfo(torch.bfloat16).eps
    mine, theirs, right = (torch.stack(x[0]) for x in (found, expected, exact))
    assert ((mine - right).abs() <= 1.5 * (theirs - right).abs() + eps * right / 4).all()

    def far(run):
        assert [x.keys() for x in run[1]] == [x.keys() for x in exact[1]]
        errors = [(x[name] - want).norm() / want.norm() for x, y in zip(run[1], exact[1], strict=True) for name, want in y.items()]
        return torch.stack(errors).square().mean().sqrt()

    assert 0 < far(found) <= 1.5 * far(expected)


# ---- DDP and FSDP2 ----


def parts_of_rank(world):
    """Two steps of two micro-batches. The losses are divided by the labels of all processes, as the Trainer does."""
    rank, found = dist.get_rank(workers.groups[world]), []
    for step in range(2):
        every = [[texts(3, 100 * step + 10 * k + r) for r in range(world)] for k in range(2)]
        items = sum((part["labels"][:, 1:] != -100).sum() for parts in every for part in parts)
        found.append([parts[rank] | {"num_items_in_batch": items} for parts in every])
    return found


def _under_ddp(world, adapted, options):
    found, parts = [], parts_of_rank(world)
    if "static_graph" in options:
        parts = [every[-1:] for every in parts]  # torch does not accumulate gradients of a static graph
    for patched in (False, True):
        model = lora(llama()) if adapted else llama()
        if patched:
            patch(model.get_base_model() if adapted else model)
        model = torch.nn.parallel.DistributedDataParallel(model, process_group=workers.groups[world], **options)
        found.append(steps(model, parts))
    assert [lazy for *_, lazy in found] == [False, True]
    same(found[1], found[0])


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=lambda o: "".join(o))
@pytest.mark.parametrize("adapted", [False, True], ids=["", "lora"])
def test_ddp(processes, adapted, options):
    processes(_under_ddp, WORLD, adapted, options)


def _a_loss_of_the_logits_under_ddp(world, options):
    found = []
    for patched in (False, True):
        model = patch(llama()) if patched else llama()
        model = torch.nn.parallel.DistributedDataParallel(model, process_group=workers.groups[world], **options)
        out = model(**texts(3, dist.get_rank(workers.groups[world])))
        with torch.no_grad():
            out.logits.argmax(-1)
        loss = out.loss + out.logits.logsumexp(-1).mean()
        loss.backward()
        found.append(([whole(loss)], [{name: whole(p.grad) for name, p in model.named_parameters()}]))
    same(found[1], found[0])


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=lambda o: "".join(o))
def test_ddp_with_a_loss_of_the_logits(processes, options):
    processes(_a_loss_of_the_logits_under_ddp, WORLD, options)


DIVISIONS = {  # the modules that fully_shard divides before the rest of the model
    "layers": lambda model: model.model.layers,
    "all in one": lambda model: [],
    "all, resharded": lambda model: [],
    "head": lambda model: [model.lm_head],
    "norm and head": lambda model: [[model.model.norm, model.lm_head]],
}


def _divided(world, division, adapted, patched, precision=None):
    """Return a model that fully_shard divides, patched "first", "later" or never (None)."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = lora(llama()) if adapted else llama()
    base = model.get_base_model() if adapted else model
    if patched == "first":
        patch(base)
    options = {
        "mesh": workers.meshes[world],
        "mp_policy": MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32),
    }
    for module in DIVISIONS[division](base):
        fully_shard(module, **options)
    fully_shard(model, **options | ({"reshard_after_forward": True} if "resharded" in division else {}))
    if patched == "later":
        patch(base)
    return model


def _under_fsdp2(world, division, adapted, patched):
    expected, found = (steps(_divided(world, division, adapted, p), parts_of_rank(world)) for p in (None, patched))
    assert [expected[2], found[2]] == [False, True]
    same(found, expected)


def _under_fsdp2_in_bfloat16(world):
    parts = parts_of_rank(world)
    exact = steps(_divided(world, "layers", False, None), parts)
    expected, found = (steps(_divided(world, "layers", False, p, torch.bfloat16), parts) for p in (None, "first"))
    assert [expected[2], found[2]] == [False, True]
    as_near(found, expected, exact)


@fsdp2_on_the_cpu
@pytest.mark.parametrize(
    ("division", "adapted", "patched"),
    [
        ("layers", False, "first"),
        ("layers", False, "later"),
        ("layers", True, "first"),
        ("all in one", False, "first"),
        ("all, resharded", False, "first"),
    ],
)
def test_fsdp2(processes, division, adapted, patched):
    processes(_under_fsdp2, WORLD, division, adapted, patched)


@fsdp2_on_the_cpu
def test_fsdp2_in_bfloat16(processes):
    processes(_under_fsdp2_in_bfloat16, WORLD)


def _a_head_of_its_own_under_fsdp2(world, division):
    expected = steps(_divided(world, division, False, None), parts_of_rank(world))
    with pytest.warns(RuntimeWarning, match="the logits of a patched model are whole, for its head is one that is sharded apart"):
        found = steps(_divided(world, division, False, "first"), parts_of_rank(world))
    assert not found[2]
    same(found, expected)


@fsdp2_on_the_cpu
@pytest.mark.parametrize("division", ["head", "norm and head"])
def test_a_head_that_fsdp2_divides_apart_has_the_stock_loss_and_says_so(processes, division):
    processes(_a_head_of_its_own_under_fsdp2, WORLD, division)


def _logits_after_the_weights_are_gone(world):
    out = _divided(world, "all, resharded", False, "first")(**texts(3))
    with pytest.raises(RuntimeError, match=r"^patch: output\.logits must be read before the weights change"):
        out.logits.argmax(-1)


@fsdp2_on_the_cpu
def test_logits_cannot_be_read_when_fsdp2_has_freed_the_weights(processes):
    processes(_logits_after_the_weights_are_gone, WORLD)


# ---- PEFT ----


def test_adapters_train_the_same_and_a_frozen_head_has_no_gradient():
    found = []
    for when in ("stock", "before", "after"):
        model = llama()
        model = lora(patch(model) if when == "before" else model, lora_dropout=0.1)
        if when == "after":
            patch(model.get_base_model())
        torch.manual_seed(2)  # of the dropout
        found.append(steps(model, [[texts(3, k)] for k in range(3)]))
    assert [lazy for *_, lazy in found] == [False, True, True]
    assert all("lora" in name for name in found[0][1][0])
    same(found[1], found[0])
    same(found[2], found[0])


def test_a_model_of_peft_is_refused_with_what_to_pass_instead():
    with pytest.raises(
        TypeError, match=r"^patch: model must be a transformers\.PreTrainedModel, such as its get_base_model\(\); got PeftModel"
    ):
        patch(lora(llama()))


HEADS = {  # what peft makes of the head, and its class
    "adapter": ({"target_modules": ["q_proj", "lm_head"]}, r"peft\.tuners\.lora\.layer\.Linear"),
    "copy": ({"modules_to_save": ["lm_head"]}, r"peft\.utils\.other\.ModulesToSaveWrapper"),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_peft_trains_has_the_stock_loss_and_says_so(head):
    given, name = HEADS[head]
    batches = [[texts(3, k)] for k in range(2)]
    model = lora(llama(), **given)
    with pytest.raises(TypeError, match=rf"^patch: model must have an nn\.Linear as its head; got {name}$"):
        patch(model.get_base_model())
    expected = steps(model, batches)
    with pytest.warns(RuntimeWarning, match=rf"^patch: the logits of a patched model are whole, for its head is {name}$"):
        found = steps(lora(patch(llama()), **given), batches)
    assert any("lm_head" in name for name in found[1][0])
    same(found, expected)


# ---- transformers.Trainer ----

CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(hf.TrainingArguments, name)
)  # the first is the name since transformers 5
CHECKPOINTED = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}  # adapters on frozen weights need it


def trained(folder, patched, adapted=False, **given):
    """Train by the Trainer. Return the losses that it logs, the gradients of each step, and its evaluation."""
    model = llama()
    if patched:
        patch(model)
    if adapted:
        model = lora(model)
    gradients, lazy = [], []

    class Watch(hf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **_):
            gradients.append({name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})

    class Trainer(hf.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **more):
            loss, out = super().compute_loss(model, inputs, return_outputs=True, **more)
            lazy.append(isinstance(out.logits, Logits) and out.logits.computed is None)
            return (loss, out) if return_outputs else loss

    arguments = hf.TrainingArguments(
        output_dir=folder, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1, optim="sgd",
        logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", seed=0, disable_tqdm=True, dataloader_pin_memory=False, **given,
    )  # fmt: skip
    every = texts(12, 7)
    rows = [{name: t[k] for name, t in every.items()} for k in range(12)]
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=[Watch()],
        compute_metrics=lambda found: {"right": float((found.predictions.argmax(-1)[:, :-1] == found.label_ids[:, 1:]).mean())},
    )  # fmt: skip
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # transformers 4 leaves it to the next Trainer
    trainer.train()
    losses = [torch.tensor(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == len(gradients) == 3
    steps_lazy = all(lazy)
    return losses, gradients, steps_lazy, {name: x for name, x in trainer.evaluate().items() if name in ("eval_loss", "eval_right")}


TRAINERS = {
    "accumulated": {},
    "checkpointed": CHECKPOINTED,
    "bf16": {"bf16": True},
    "lora": {"adapted": True},
    "lora, bf16, checkpointed": {"adapted": True, "bf16": True} | CHECKPOINTED,
}


@pytest.mark.parametrize("given", TRAINERS)
def test_trainer(tmp_path, given):
    options = TRAINERS[given]
    expected, found = (trained(tmp_path, patched, **options) for patched in (False, True))
    assert [expected[2], found[2]] == [False, True]
    # bfloat16 has 2^-9
    assert found[3] == pytest.approx(expected[3], rel=1e-2 if "bf16" in options else TRAINED32)
    if "bf16" in options:
        as_near(found, expected, trained(tmp_path, False, **options | {"bf16": False}))
    else:
        same(found, expected)


# ---- GRPO and DPO of trl ----
def tokenizer():
    """Return a tokenizer whose words are the numbers of the tokens, for trl's trainers need one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({str(k): k for k in range(V)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", bos_token="1", eos_token="2")


PROMPT, LENGTH, GROUP = 5, 9, 6


def completions():
    """Return texts [GROUP, PROMPT + LENGTH] whose completions have different lengths, and the mask of these."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(3, V, (GROUP, PROMPT + LENGTH), generator=draw)
    ends = PROMPT + torch.tensor([9, 4, 7, 1, 9, 6])[:, None]
    place = torch.arange(PROMPT + LENGTH)
    return ids, (place >= PROMPT) & (place < ends)


def losses_and_gradients(model, loss, *more):
    model.zero_grad()
    loss.backward()
    return [whole(loss), *map(whole, more)], [{name: whole(p.grad) for name, p in model.named_parameters()}]


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(EXAMPLES)
        return importlib.import_module("grpo_dpo")


QUIET = {"report_to": [], "use_cpu": True, "bf16": False, CHECKPOINTING: False, "disable_tqdm": True, "save_strategy": "no"}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.05])
def test_grpo_is_trls(tmp_path, example, temperature, entropy_weight):
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    arguments = trl.GRPOConfig(
        output_dir=tmp_path, temperature=temperature, entropy_coef=entropy_weight, num_generations=GROUP,
        per_device_train_batch_size=GROUP, max_completion_length=LENGTH, **QUIET,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        llama(), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments, processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["3 4 5"] * GROUP}),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # training sets it
    model, (ids, completion) = trainer.model, completions()
    mask = completion[:, PROMPT:].long()
    advantages = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.9, -0.3])
    logprobs, entropy = example.token_logprobs(model, ids, completion, temperature)
    old = logprobs.detach() + 0.4 * torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(4))  # some ratios are clipped
    tokens = completion[:, 1:]
    loss = example.grpo_loss(logprobs, old, advantages, tokens) - entropy_weight * (entropy * tokens).sum() / tokens.sum()
    found = losses_and_gradients(model, loss)
    inputs = {
        "prompt_ids": ids[:, :PROMPT], "prompt_mask": torch.ones(GROUP, PROMPT, dtype=torch.long), "completion_ids": ids[:, PROMPT:],
        "completion_mask": mask, "advantages": advantages, "old_per_token_logps": old[:, PROMPT - 1 :], "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    expected = losses_and_gradients(model, trainer.compute_loss(model, inputs))
    same(found, expected)
    attended = torch.cat([inputs["prompt_mask"], mask], 1)
    theirs = trainer._get_per_token_logps_and_entropies(model, ids, attended, LENGTH, compute_entropy=True)[:2]
    for mine, want in zip((logprobs, entropy), theirs, strict=True):
        torch.testing.assert_close(mine[:, PROMPT - 1 :], want, rtol=TRAINED32, atol=FLOAT32)
    ratio = (logprobs - old).exp()[tokens]
    assert (ratio > 1.2).any() and (ratio < 0.8).any()


def test_dpo_is_trls(tmp_path, example):
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    rows = datasets.Dataset.from_dict({"prompt": ["3 4 5"], "chosen": ["6 7"], "rejected": ["8"]})
    arguments = trl.DPOConfig(output_dir=tmp_path, beta=0.3, **QUIET)
    reference = llama()
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    trainer = trl.DPOTrainer(llama(), copy.deepcopy(reference), args=arguments, train_dataset=rows, processing_class=tokenizer())
    model, (ids, completion) = trainer.model, completions()
    with torch.no_grad():
        of_reference, _ = example.token_logprobs(reference, ids, completion)
    logprobs, _ = example.token_logprobs(model, ids, completion)
    found = losses_and_gradients(model, example.dpo_loss(logprobs, of_reference, beta=0.3))
    attended = ((torch.arange(PROMPT + LENGTH) < PROMPT) | completion).long()
    inputs = {"input_ids": ids, "attention_mask": attended, "completion_mask": completion.long()}
    same(found, losses_and_gradients(model, trainer.compute_loss(model, inputs)))


def test_the_example_prefers_the_better_texts(example, capsys):
    for curve in example.main(steps=6, group=4, classes=500).values():
        margins = [sum(each[:2]) - sum(each[2:]) for each in (curve[0], curve[-1])]
        assert margins[1] > margins[0] + 0.1
    assert "better" in capsys.readouterr().out


# ---- the benchmark ----


def test_the_contenders_of_the_benchmark_have_the_same_losses(tmp_path, monkeypatch):
    def in_this_process(worker, jobs, *_):
        for job in jobs:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                training.work(*json.loads(json.dumps(job)))
            yield json.loads(out.getvalue().splitlines()[-1])

    monkeypatch.setattr(training, "measured", in_this_process)
    training.run(1, tmp_path, quick=True)
    records = json.loads((tmp_path / "training.json").read_text())["records"]
    assert [len(r["losses"]) for r in records] == [len(r["seconds"]) for r in records] == [2, 2, 3, 3]
    for r in records:
        first, *others = r["losses"].values()
        assert others == pytest.approx([first] * len(others), rel=TRAINED32)
    assert (tmp_path / "training.md").read_text().count("\n| ") == 2 * 2 + 4
