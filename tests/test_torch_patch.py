"""A patched model of transformers behaves as the original one, except that its logits are computed only when they are read."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from test_examples import EXAMPLES
from tolerances import FLOAT32, TRAINED32
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers as hf

from softxent.torch import linear_cross_entropy
from softxent.torch.huggingface import patch, unpatch
from softxent.torch.lazy_logits import Logits
from softxent.torch.linear_operators import PRODUCTS

V, D = 97, 32
SMALL = dict(
    vocab_size=V, hidden_size=D, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2 = dict(
    vocab_size=V, n_embd=D, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=1, eos_token_id=2
)
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "qwen2, tied": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL)),
    "gpt2, tied": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gemma2, tied, softcap": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**SMALL, final_logit_softcapping=0.2)),
    "granite, scaled": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**SMALL, logits_scaling=0.3)),
    "cohere, scaled": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SMALL, logit_scale=3.0)),
    "phi, bias": lambda: hf.PhiForCausalLM(hf.PhiConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"})),
    "mixtral, auxiliary loss": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**SMALL, num_local_experts=4, output_router_logits=True)),
}


@pytest.fixture(autouse=True)
def seed_and_threads():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads do not make such a small model faster, and wait for each other on a busy machine
    yield
    torch.set_num_threads(before)


def inputs(**more):
    ids = torch.randint(3, V, (2, 11))
    labels = ids.clone()
    labels[0, :4] = labels[1, 6] = -100
    return {"input_ids": ids, "labels": labels, **more}


def result(model, **call):
    """Return the loss, the gradient of every parameter, and the output."""
    model.zero_grad()
    out = model(**call)
    out.loss.backward()
    return out.loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, out


def same(mine, theirs, tol=TRAINED32):
    (loss, grads, _), (want, wants, _) = mine, theirs
    assert loss.dtype == want.dtype and grads.keys() == wants.keys()
    torch.testing.assert_close(loss, want, rtol=tol, atol=tol)
    for name in wants:
        # a gradient that is nearly 0
        torch.testing.assert_close(grads[name], wants[name], rtol=tol, atol=tol * max(1e-2, wants[name].abs().max().item()), msg=name)


def lazy(out):
    return isinstance(out.logits, Logits) and out.logits.computed is None


CALLS = {
    "plain": lambda: inputs(),
    "padded": lambda: inputs(attention_mask=torch.tensor([[0] * 3 + [1] * 8, [1] * 11]), position_ids=torch.arange(11).expand(2, 11)),
    "items of a batch": lambda: inputs(num_items_in_batch=torch.tensor(37)),
    "items, an int": lambda: inputs(num_items_in_batch=37),
    "shifted": lambda: inputs(shift_labels=torch.randint(0, V, (2, 11))),
    "another ignore_index": lambda: inputs(ignore_index=5, labels=torch.arange(22).reshape(2, 11) % 7),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_gradient_are_the_stock_models(name, call):
    model, given = MODELS[name](), CALLS[call]()
    theirs = result(model, **given)
    mine = result(patch(model), **given)
    assert lazy(mine[2]) and not isinstance(theirs[2].logits, Logits)
    same(mine, theirs)
    assert torch.equal(mine[2].logits + 0, theirs[2].logits) and mine[2].logits.shape == theirs[2].logits.shape


@pytest.mark.parametrize("model", [MODELS["llama"], MODELS["gemma2, tied, softcap"]])
@pytest.mark.parametrize("how", ["bfloat16", "float16", "float64", "autocast"])
def test_in_other_types_the_loss_is_float32_and_as_near(how, model):
    model, given = model(), inputs()
    exact = result(copy.deepcopy(model).double(), **given)
    model = model if how == "autocast" else model.to(getattr(torch, how))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        theirs = result(model, **given)
        mine = result(patch(model), **given)
    assert lazy(mine[2]) and mine[0].dtype == theirs[0].dtype == torch.float32 and mine[2].logits.dtype == theirs[2].logits.dtype
    assert mine[0].to(torch.bfloat16) != mine[0]
    assert torch.equal(mine[2].logits + 0, theirs[2].logits)  # computed with autocast, although read outside of it
    eps = max(1e-6, torch.finfo(torch.bfloat16 if how == "autocast" else model.dtype).eps)  # the stock loss rounds to float32
    assert abs(mine[0] - exact[0]) <= abs(theirs[0] - exact[0]) + eps * exact[0]
    for name, want in exact[1].items():
        off = [(found[1][name].double() - want).norm() / want.norm() for found in (mine, theirs)]
        assert mine[1][name].dtype == theirs[1][name].dtype and off[0] <= 1.5 * off[1] + eps, (name, off)


def test_accumulated_gradients_and_checkpointed_layers():
    model = MODELS["llama"]().train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    parts = [inputs(num_items_in_batch=torch.tensor(34)) for _ in range(3)]

    def accumulated():
        model.zero_grad()
        losses = [model(**part).loss for part in parts]
        for loss in losses:
            loss.backward()
        return sum(losses).detach(), {name: p.grad for name, p in model.named_parameters()}, None

    theirs = accumulated()
    patch(model)
    same(accumulated(), theirs)


def test_labels_may_be_positional_and_the_result_a_tuple():
    model, given = MODELS["llama"](), inputs()
    names = list(inspect.signature(model.forward).parameters)
    args = [given.get(name) for name in names[: names.index("labels") + 1]]
    want = model(*args).loss
    patch(model)
    assert list(inspect.signature(model.forward).parameters) == names
    assert lazy(model(*args)) and torch.allclose(model(*args).loss, want, rtol=TRAINED32)
    loss, logits = model(**given, return_dict=False)[:2]
    assert torch.allclose(loss, want, rtol=TRAINED32) and isinstance(logits, Logits)


def test_all_rows_ignored_is_nan_and_no_gradient():
    model, given = MODELS["llama"](), inputs()
    given["labels"][:] = -100
    theirs, mine = result(model, **given), result(patch(model), **given)
    assert mine[0].isnan() and theirs[0].isnan()
    assert all(g.isnan().any() == theirs[1][name].isnan().any() for name, g in mine[1].items())


def test_what_has_no_labels_is_unchanged():
    model, given = MODELS["llama"]().eval(), inputs()
    ids = given.pop("input_ids")
    last = {"labels": given["labels"][:, -3:], "logits_to_keep": 3}
    plain, kept, tokens = model(ids), model(ids, **last), model.generate(ids, max_new_tokens=4, do_sample=False, num_beams=2)
    patch(model)
    assert type(model(ids).logits) is torch.Tensor and torch.equal(model(ids).logits, plain.logits)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, num_beams=2), tokens)
    assert torch.equal(model(ids, **last).logits[:], kept.logits) and torch.allclose(model(ids, **last).loss, kept.loss, rtol=TRAINED32)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_has_the_stock_loss_and_metrics(mode):
    model, given = MODELS["gemma2, tied, softcap"]().eval(), inputs()
    with mode():
        want, out = model(**given), patch(model)(**given)
        assert lazy(out) and torch.allclose(out.loss, want.loss, rtol=TRAINED32) and not out.logits.requires_grad
    assert torch.equal(out.logits.argmax(-1), want.logits.argmax(-1))


# ---- code that reads the logits ----

READS = {
    "argmax": lambda z: z.argmax(-1),
    "index": lambda z: z[..., :-1, :],
    "function": lambda z: torch.softmax(z, -1),
    "operator": lambda z: 2 - z,
    "list": lambda z: torch.cat([z, z]),
    "keyword": lambda z: torch.sum(input=z),
    "numpy": lambda z: torch.from_numpy(z.detach().numpy()),
    "cast": lambda z: z.float().contiguous().to(torch.float64).to(torch.bfloat16),
    "cast by keyword": lambda z: z.to(dtype=torch.float64),
    "to integers": lambda z: z.to(torch.int64),
    "scaled": lambda z: 3 * (z / 2).tanh() * 1.5,
    "scaled by a tensor": lambda z: z * torch.tensor(2.0),
    "negative scale": lambda z: z * -2,
    "rounded": lambda z: torch.div(z, 2, rounding_mode="floor"),
    "written to": lambda z: z.mul_(2) + z,
    "written to by index": lambda z: (z.__setitem__((0, 0), 7.0), z.double())[1],
    "a view written to": lambda z: (z[0].zero_(), z)[1] + 0,
    "rows": lambda z: torch.stack(list(z)),
    "deep copy": lambda z: copy.deepcopy(z.detach()),
    "pickle": lambda z: pickle.loads(pickle.dumps(z.detach())),
    "data": lambda z: z.data,
}


@pytest.mark.parametrize("read", READS)
def test_logits_are_the_stock_logits_to_any_reader(read):
    model, given = MODELS["llama"](), inputs()
    with torch.no_grad():
        want, mine = model(**given).logits, patch(model)(**given).logits
        assert isinstance(mine, Logits) and mine.computed is None
        found, want = READS[read](mine), READS[read](want)
    assert found.dtype == want.dtype and torch.equal(found + 0, want)


def test_a_question_of_shape_computes_nothing():
    out = patch(MODELS["llama"]())(**inputs())
    z = out.logits
    assert (z.shape, z.size(-1), z.ndim, z.dim(), len(z), z.numel()) == ((2, 11, V), V, 3, 3, 2, 22 * V)
    assert z.dtype == torch.float32 and z.device.type == "cpu" and z.requires_grad and z.is_floating_point() and z.float() is z
    assert lazy(out)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return (2 * z).sum()

    @staticmethod
    def backward(ctx, g):
        return g * torch.full((2, 11, V), 2.0)


class Copy(torch.autograd.Function):
    """A function that returns a copy, as DistributedDataParallel applies to outputs."""

    @staticmethod
    def forward(ctx, z, factor):
        ctx.factor = factor
        found = z.clone()
        return found if factor == 1 else found.mul_(factor)

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g, None


def hooked(z):
    z.register_hook(lambda g: 3 * g)
    return z.square().mean()


EXTRAS = {
    "a copy by a function of autograd": lambda z: Copy.apply(z, 1).logsumexp(-1).mean(),
    "a copy that was written to": lambda z: Copy.apply(z, 2).logsumexp(-1).mean(),
    "a copy, read without gradient before": lambda z: (lambda c: (torch.no_grad()(lambda: c.argmax(-1))(), c.square().mean())[1])(
        Copy.apply(z, 1)
    ),
    "a function": lambda z: z.logsumexp(-1).mean(),
    "a function of autograd": lambda z: Twice.apply(z) / 1000,
    "a function of autograd, of scaled logits": lambda z: Twice.apply((z / 3).tanh()) / 1000,
    "read without gradient before": lambda z: (torch.no_grad()(lambda: z.argmax(-1))(), z.square().mean())[1],
    "without gradient": lambda z: torch.no_grad()(lambda: z.float() * 2.0)().square().mean() * 0 + z.mean(),
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("frozen", ["nothing", "lm_head", "model"])
def test_a_loss_of_the_users_own_has_its_gradients(extra, frozen):
    model, given, found = MODELS["llama"](), inputs(), []
    getattr(model, frozen, nn.Module()).requires_grad_(False)
    for _ in range(2):
        model.zero_grad()
        out = model(**given)
        loss = out.loss + EXTRAS[extra](out.logits)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, out))
        patch(model)
    same(found[1], found[0])


def test_what_is_read_without_gradient_has_none():
    z = patch(MODELS["llama"]())(**inputs()).logits
    with torch.no_grad():
        scaled = z * 2
    assert not (scaled + 0).requires_grad and (z + 0).requires_grad


def test_logits_are_refused_once_the_weights_have_changed():
    model = patch(MODELS["llama"]())
    out, read = model(**inputs()), model(**inputs())
    early = read.logits.argmax(-1)
    (out.loss + read.loss).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    with pytest.raises(RuntimeError, match=r"^patch: output.logits must be read before the weights change"):
        out.logits.argmax(-1)
    assert torch.equal(read.logits.argmax(-1), early)


def test_a_hook_of_lazy_logits_gets_the_gradient_of_what_reads_them():
    model, given, found = MODELS["llama"](), inputs(), []
    for _ in range(2):
        model.zero_grad()
        hooked(model(**given).logits).backward()
        found.append((torch.zeros(()), {name: p.grad for name, p in model.named_parameters()}, None))
        patch(model)
    same(found[1], found[0])


def test_a_copy_is_kept_when_the_weights_change():
    model, given = patch(MODELS["llama"]()), inputs()
    out = model(**given)
    with torch.no_grad():
        kept, want = out.logits.clone(), unpatch(model)(**given).logits
    out.loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert torch.equal(kept + 0, want)


def test_a_copy_by_a_function_of_autograd_computes_nothing():
    z = patch(MODELS["llama"]())(**inputs()).logits
    copied = Copy.apply(z, 1)
    assert isinstance(copied, Logits) and copied.computed is None and z.computed is None
    assert copied.grad_fn is not None and copied._base is None and not copied.is_leaf and copied.computed is None


def test_lazy_logits_with_a_hook_have_no_second_derivative():
    model = patch(MODELS["llama"]())
    (g,) = torch.autograd.grad(hooked(model(**inputs()).logits), model.lm_head.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        g.sum().backward()


UNLIKE = {
    "logits written to": lambda model, given: model.lm_head.register_forward_hook(lambda head, x, z: (z.mul_(2), None)[1]),
    "labels of another shape": lambda model, given: given.update(labels=given["labels"].t()),
    "a negative scale": lambda model, given: model.lm_head.register_forward_hook(lambda head, x, z: z * -2),
    "two tanh": lambda model, given: model.lm_head.register_forward_hook(lambda head, x, z: (3 * z.tanh()).tanh()),
}


@pytest.mark.parametrize("unlike", UNLIKE)
def test_what_the_loss_does_not_recognise_is_the_stock_loss(unlike):
    model, given = MODELS["llama"](), inputs()
    UNLIKE[unlike](model, given)
    theirs = result(model, **given)
    same(result(patch(model), **given), theirs)


def test_a_loss_function_of_the_users_own_gets_the_logits():
    model, given = MODELS["llama"](), inputs()
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    with pytest.raises(ValueError, match=r"^patch: model must have the loss ForCausalLMLoss"):
        patch(model)
    del model._loss_function
    patch(model).loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    assert torch.equal(model(**given).loss, unpatch(model)(**given).loss)


# ---- time and memory ----


def shapes_of(monkeypatch, model, given):
    """Return the shapes of the results of all matrix products of a step."""
    seen = []

    def product(a, b, out, add, real=PRODUCTS.product):
        seen.append(tuple(out.shape))
        real(a, b, out, add)

    monkeypatch.setattr(PRODUCTS, "product", product, raising=False)
    result(model, **given)
    return seen


def test_a_frozen_head_costs_no_product_and_the_rest_is_the_same(monkeypatch):
    model, given = MODELS["llama"](), inputs()
    patch(model)
    assert (V, D) in shapes_of(monkeypatch, model, given)
    model.lm_head.weight.requires_grad_(False)
    assert shapes_of(monkeypatch, model, given) == [(16, D)]  # the rows that are not ignored
    mine = result(model, **given)
    assert "lm_head.weight" not in mine[1]
    same(mine, result(unpatch(model), **given))


def largest(model, given):
    """Return the size in bytes of the largest allocation of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result(model, **given)
    return max(size for root in profile.profiler.kineto_results.experimental_event_tree() for size in blocks(root))


def blocks(event):
    if hasattr(event.extra_fields, "alloc_size"):
        yield event.extra_fields.alloc_size
    for child in event.children:
        yield from blocks(child)


@pytest.mark.parametrize("name", ["llama", "gemma2, tied, softcap"])
def test_no_logits_are_ever_whole(name, monkeypatch):
    monkeypatch.setitem(linear_cross_entropy.__kwdefaults__, "budget", 4 * V * 8 * 8)
    model, ids = MODELS[name](), torch.randint(3, V, (64, 8))
    given, logits = {"input_ids": ids, "labels": ids}, 4 * 64 * 8 * V
    assert largest(model, given) >= logits
    for p in model.parameters():
        p.grad = None
    assert largest(patch(model), given) < logits


def test_a_step_calls_no_head(monkeypatch):
    model, given = patch(MODELS["llama"]()), inputs()
    linear, seen = F.linear, []
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: (seen.append(w), linear(x, w, b))[1])
    result(model, **given)
    assert seen and not any(w is model.lm_head.weight for w in seen)
    model(**given).logits.sum()
    assert seen[-1] is model.lm_head.weight


# ---- the model, before, during and after ----


def test_unpatch_restores_the_model_and_its_copies():
    model, given = MODELS["gpt2, tied"](), inputs()
    before, attributes, head = type(model), dict(vars(model)), dict(vars(model.lm_head))
    assert patch(patch(model)) is model and type(model) is not before and isinstance(model, before)
    result(model, **given)
    with pytest.raises(ValueError, match="lie in"):
        model(input_ids=given["input_ids"], labels=given["labels"] + V)
    assert vars(model.lm_head).keys() == head.keys()
    assert unpatch(model) is model and unpatch(model) is model
    assert type(model) is before and vars(model) == attributes and type(model(**given).logits) is torch.Tensor
    with patch(model) as patched:
        assert patched is model and lazy(model(**given))
    assert type(model) is before


def test_only_the_one_model_is_patched():
    one, other = MODELS["llama"](), MODELS["llama"]()
    patch(one)
    assert lazy(one(**inputs())) and not isinstance(other(**inputs()).logits, Logits)


def test_it_is_saved_and_pickled_as_the_stock_model(tmp_path):
    model, given = MODELS["gpt2, tied"](), inputs()
    files = []
    for name in ("stock", "patched"):
        model.save_pretrained(tmp_path / name)
        written, path = io.BytesIO(), tmp_path / name
        torch.save(model, written)
        files.append(
            ({p.name: p.read_bytes() for p in path.iterdir()}, list(model.state_dict()), pickle.loads(pickle.dumps(model)), written)
        )
        patch(model)
    assert files[0][:2] == files[1][:2] and files[0][0]
    assert type(files[1][2]) is type(files[0][2]) is hf.GPT2LMHeadModel and torch.equal(
        files[1][2](**given).logits, model(**given).logits[:]
    )
    assert type(hf.GPT2LMHeadModel.from_pretrained(tmp_path / "patched")) is hf.GPT2LMHeadModel


def test_a_deep_copy_is_patched_and_its_own():
    model, given = patch(MODELS["gpt2, tied"]()), inputs()
    vars(model)["itself"] = [model]
    twin = copy.deepcopy(model)
    assert twin.itself[0] is twin
    assert twin.lm_head.weight is twin.transformer.wte.weight is not model.lm_head.weight
    theirs, mine = result(model, **given), result(twin, **given)
    assert lazy(mine[2])
    same(mine, theirs, 0)
    unpatch(twin)
    assert lazy(model(**given)) and not isinstance(twin(**given).logits, Logits)


def test_compiled_whole_it_is_stock_and_compiled_in_its_body_it_is_patched():
    model, given = MODELS["llama"](), inputs()
    theirs = result(model, **given)
    compiled = torch.compile(patch(model), fullgraph=True, backend="aot_eager")
    loss = compiled(**given).loss
    assert torch.allclose(loss, theirs[0], rtol=TRAINED32) and not isinstance(compiled(**given).logits, Logits)
    model.model.compile(backend="aot_eager")
    mine = result(model, **given)
    assert lazy(mine[2])
    same(mine, theirs)


def test_functional_transforms_go_through():
    model, given = MODELS["llama"](), inputs()
    weights = dict(model.named_parameters())

    def loss(weights):
        return torch.func.functional_call(model, weights, kwargs=given).loss

    want = torch.func.grad(loss)(weights)
    patch(model)
    found = torch.func.grad(loss)(weights)
    assert found.keys() == want.keys() and all(torch.allclose(found[name], want[name], rtol=TRAINED32, atol=FLOAT32) for name in want)


class Adapted(nn.Module):
    """A linear layer with an adapter, as in LoRA."""

    def __init__(self, head):
        super().__init__()
        self.head, self.a, self.b = head, nn.Linear(D, 2, bias=False), nn.Linear(2, V, bias=False)

    def forward(self, x):
        return self.head(x) + self.b(self.a(x))


def test_a_head_that_is_no_linear_is_refused_and_one_that_became_so_warns():
    model, given = MODELS["llama"](), inputs()
    head = model.lm_head
    model.lm_head = Adapted(head)
    theirs = result(model, **given)
    with pytest.raises(TypeError, match=r"^patch: model must have an nn\.Linear as its head; got .*Adapted"):
        patch(model)
    model.lm_head = head
    patch(model).lm_head = Adapted(head)
    model.lm_head.load_state_dict({**model.lm_head.state_dict()})
    with pytest.warns(RuntimeWarning, match="the logits of a patched model are whole, for its head is .*Adapted"):
        mine = result(model, **given)
    assert mine[1].keys() == theirs[1].keys() and not isinstance(mine[2].logits, Logits)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Linear(2, 3), "model must be a transformers.PreTrainedModel; got Linear"),
        (lambda: hf.LlamaModel(hf.LlamaConfig(**SMALL)), "model must have a forward of its class that takes labels; got LlamaModel"),
        (
            lambda: hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=V, d_model=D, d_ff=D, num_layers=1, num_heads=2, d_kv=8)),
            "model must compute its loss by self.loss_function; got T5ForConditionalGeneration",
        ),
    ],
)
def test_another_model_is_refused(make, says):
    with pytest.raises(TypeError, match=f"^patch: {says}"):
        patch(make())


def test_the_example_trains_the_same_model_in_less_memory(capsys, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("finetune_causal_lm")  # imported by its name, because its processes import it too
    found = example.main(steps=4, batch=8, length=64, classes=12000)
    (stock, _, stock_peak), (ours, _, our_peak) = found["stock"], found["patched"]
    # four steps of training in float32 amplify the roundings
    assert max(abs(a - b) for a, b in zip(stock, ours, strict=True)) < 1e-4 and stock[-1] < stock[0] - 0.2
    assert our_peak < stock_peak and "times less" in capsys.readouterr().out
