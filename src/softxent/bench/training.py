"""The benchmark of training, `softxent bench --training`: steps of transformers' Trainer with a model as it is and patched, and the losses
of GRPO and DPO by `linear_cross_entropy` and by trl's functions.

Each case has its own process. All contenders of a case take part in rounds of random order. Models and texts are random.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .. import contract
from . import measured, progress, written
from .measure import growth, interleave
from .report import machine, ratio, table

STOCK, PATCHED = "stock", "patched"
OURS, FUSED, LOGITS = "softxent.torch", "trl, fused head", "trl, whole logits"
MIB, LEARNING_STEPS = 1 << 20, 3  # the steps of a training; the first is not timed
PACKAGES = ("transformers", "trl", "peft", "accelerate")


class Training(NamedTuple):
    """A small Llama model under the Trainer."""

    name: str
    classes: int
    width: int
    layers: int
    batch: int
    length: int
    bf16: bool = False
    checkpointing: bool = False
    lora: bool = False

    def title(self) -> str:
        return f"{self.name}, N = {self.batch * self.length}, V = {self.classes}, D = {self.width}, {self.layers} layers"


class Loss(NamedTuple):
    """The log-probabilities of the tokens of texts from given hidden states, and a loss of them."""

    name: str  # "GRPO" or "DPO"
    classes: int
    width: int
    batch: int
    length: int
    dtype: str = "float32"

    def title(self) -> str:
        return f"{self.name}, N = {self.batch * self.length}, V = {self.classes}, D = {self.width}, {self.dtype}"


CASES: list[Training | Loss] = [
    Training("float32", 32000, 128, 2, 2, 128),
    Training("float32, large vocabulary", 128256, 128, 2, 2, 128),
    Training("bfloat16 by autocast, checkpointing", 32000, 128, 2, 2, 128, bf16=True, checkpointing=True),
    Training("LoRA, frozen head", 128256, 128, 2, 2, 128, lora=True),
    Loss("GRPO", 128256, 128, 2, 128),
    Loss("DPO", 128256, 128, 2, 128),
    Loss("GRPO", 32000, 256, 4, 128),
    Loss("GRPO", 32000, 256, 4, 128, "bfloat16"),
]
QUICK: list[Training | Loss] = [
    Training("float32", 300, 16, 1, 2, 16), Training("LoRA, frozen head", 300, 16, 1, 2, 16, lora=True),
    Loss("GRPO", 300, 16, 4, 16), Loss("DPO", 300, 16, 4, 16),
]  # fmt: skip


def run(repeats: int, output: Path, quick: bool) -> None:
    """Run the benchmark, print its tables, and write training.json and training.md."""
    contract.place("bench", "output", output, folder=True)
    versions = {package: version(package) for package in PACKAGES}
    cases, records = QUICK if quick else CASES, []
    with progress(len(cases)) as step:
        jobs = [[type(case).__name__, repeats, *case] for case in cases]
        offline = [{"HF_HUB_OFFLINE": "1"}] * len(jobs)
        for case, record in zip(cases, measured("training-worker", jobs, quick, offline), strict=True):
            records.append({"kind": type(case).__name__, "case": case} | record)
            step({"kind": "training", "shape": case.title(), "dtype": "", "threads": 0, "isa": ""})
    results = {"machine": machine() | versions, "repeats": repeats, "records": records}
    written("training", results, text(results), output)


def work(kind: str, repeats: int, *case: Any) -> None:
    """Measure a case in this process, and print a line of JSON."""
    found = _trainings(Training(*case), repeats) if kind == "Training" else _losses(Loss(*case), repeats)
    print(json.dumps(found | {"threads": import_module("torch").get_num_threads()}))


# ---- the Trainer ----


def _trainings(c: Training, repeats: int) -> dict[str, Any]:
    front = import_module("softxent.torch")
    seconds: dict[str, list[float]] = {STOCK: [], PATCHED: []}
    with tempfile.TemporaryDirectory() as folder:
        models = {STOCK: _model(c), PATCHED: front.patch(_model(c))}
        trainings = {name: _training(c, model, folder) for name, model in models.items()}
        extra, found = {}, {}
        for name, training in trainings.items():
            found[name] = training()[1]  # creates threads and buffers too, and lets malloc adapt its threshold for mapped memory
            front.empty_cache()
            extra[name] = growth(training)
        order, shuffle = list(trainings), random.Random(0).shuffle
        for _ in range(0, repeats, 4):  # as measure.py does with other slow contenders
            shuffle(order)
            for name in order:
                seconds[name].append(trainings[name]()[0])
    return {"seconds": seconds, "extra": extra, "losses": found}


def _model(c: Training) -> Any:
    torch, hf = import_module("torch"), import_module("transformers")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=c.classes, hidden_size=c.width, intermediate_size=3 * c.width, num_hidden_layers=c.layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=c.length, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def _training(c: Training, model: Any, folder: str) -> Callable[[], tuple[float, float]]:
    """Return a function that trains the model for some steps, and returns the seconds of a step and the last loss."""
    torch, hf = import_module("torch"), import_module("transformers")
    if c.lora:
        peft = import_module("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    newer = "activation_checkpointing"
    checkpointing = newer if hasattr(hf.TrainingArguments, newer) else "gradient_checkpointing"
    ids = torch.randint(0, c.classes, (c.batch * LEARNING_STEPS, c.length), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = hf.TrainingArguments(
        output_dir=folder, max_steps=LEARNING_STEPS, per_device_train_batch_size=c.batch, logging_steps=1, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, bf16=c.bf16, learning_rate=1e-5,
        **{checkpointing: c.checkpointing},
    )  # fmt: skip

    base: Any = hf.TrainerCallback

    class Clock(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.begin, self.seconds = 0.0, list[float]()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.begin)

    def training() -> tuple[float, float]:
        clock = Clock()
        trainer = hf.Trainer(model, arguments, train_dataset=rows, callbacks=[clock])
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return median(clock.seconds[1:]), losses[-1]

    return training


# ---- GRPO and DPO ----


def _losses(c: Loss, repeats: int) -> dict[str, Any]:
    calls = contenders(c)
    extra = {}
    for name, call in calls.items():
        call()
        import_module("softxent.torch").empty_cache()
        extra[name] = growth(call)
    losses = {name: float(call()) for name, call in calls.items()}  # the test compares them
    return {"seconds": interleave(calls, repeats, 0.0), "extra": extra, "losses": losses}


def contenders(c: Loss) -> dict[str, Callable[[], Any]]:
    """Return functions that compute the loss and the gradients of the hidden states and the head, and return the loss."""
    torch, functional = import_module("torch"), import_module("torch.nn.functional")
    front, utils, kernels = import_module("softxent.torch"), import_module("trl.trainer.utils"), import_module("trl.kernels")
    torch.manual_seed(0)
    dtype = getattr(torch, c.dtype)
    hidden = torch.randn(c.batch, c.length, c.width).to(dtype).requires_grad_()
    weight = (torch.randn(c.classes, c.width) * c.width**-0.5).to(dtype).requires_grad_()
    ids = torch.randint(0, c.classes, (c.batch, c.length))
    entropy = c.name == "GRPO"
    advantages = torch.randn(c.batch, 1)

    def loss(logprobs: Any) -> Any:
        if c.name == "GRPO":
            ratio = (logprobs - logprobs.detach()).exp()
            return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        chosen, rejected = logprobs.sum(1).chunk(2)
        return -functional.logsigmoid(0.1 * (chosen - rejected)).mean()

    def ours() -> Any:
        more = {"return_entropy": True} if entropy else {}
        return front.linear_cross_entropy(hidden, weight, ids, reduction="none", return_logprobs=True, **more).logprobs

    def fused() -> Any:
        outputs = ("log_probs", "entropy") if entropy else ("log_probs",)
        rows, size = hidden.reshape(-1, c.width), utils._CHUNKED_LOGPROB_CHUNK_SIZE
        return kernels.ChunkedLogProbFunction.apply(rows, weight, None, ids.flatten(), 1.0, size, None, 1.0, outputs)[0].view(ids.shape)

    def whole() -> Any:
        logits = functional.linear(hidden, weight)
        if entropy:
            with torch.no_grad():
                utils.entropy_from_logits(logits)
        return utils.selective_log_softmax(logits, ids)

    def both(logprobs: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            hidden.grad = weight.grad = None
            found = loss(logprobs().float())
            found.backward()
            return found.detach()

        return call

    return {OURS: both(ours), FUSED: both(fused), LOGITS: both(whole)}


# ---- tables ----


def text(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    m = results["machine"]
    packages = ", ".join(f"{name} {m[name]}" for name in ("torch", *PACKAGES))
    threads = results["records"][0]["threads"]
    head = f"{m['cpu']}, {m['cores']} core(s), {threads} thread(s), {m['system']}; {packages}; {results['repeats']} rounds; {m['date']}.\n"
    titles = "Steps of transformers' Trainer, AdamW", "Loss and gradients from hidden states"
    memory = "MiB at the peak beyond the model (gradients and optimizer included)"
    of_trainer = ["", "steps a second, stock", "patched", "time of stock : patched", f"{memory}, stock", "patched"]
    of_losses = ["", f"{OURS}, s", *(f"time of {who} : {OURS}" for who in (FUSED, LOGITS)), *(f"MiB, {n}" for n in (OURS, FUSED, LOGITS))]
    trainings, losses = ([r for r in results["records"] if r["kind"] == kind] for kind in ("Training", "Loss"))
    rows = []
    for r in trainings:
        rates = [f"{1 / median(r['seconds'][who]):.3g}" for who in (STOCK, PATCHED)]
        rows.append([Training(*r["case"]).title(), *rates, _ratio(r, STOCK, PATCHED), *(_mib(r, who) for who in (STOCK, PATCHED))])
    parts = [head, table(titles[0], of_trainer, rows)]
    rows = []
    for r in losses:
        took = median(s for s in r["seconds"][OURS] if s)
        ratios = [_ratio(r, who, OURS) for who in (FUSED, LOGITS)]
        rows.append([Loss(*r["case"]).title(), f"{took:.3g}", *ratios, *(_mib(r, who) for who in (OURS, FUSED, LOGITS))])
    return "\n".join([*parts, table(titles[1], of_losses, rows)])


def _ratio(r: dict[str, Any], a: str, b: str) -> str:
    found = ratio(r, a, b)
    return f"{found[0]:.3g}" if found else "-"


def _mib(r: dict[str, Any], who: str) -> str:
    found = r["extra"].get(who)
    return f"{found / MIB:.0f}" if found is not None else "-"
