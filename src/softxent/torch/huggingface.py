"""`patch` makes a causal language model of Hugging Face's transformers compute its loss by `linear_cross_entropy`.

If labels are given, such a model calls its head and then `self.loss_function` on the logits. In a patched model, the head returns lazy
logits (lazy_logits.py). The loss function uses what they are computed from; any other code that reads the logits, in the model or after
it, gets their values. Only the one model is changed: its class is replaced by a subclass.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear

from ..contract import fail
from . import lazy_logits
from .linear import linear_cross_entropy

FN = "patch"


def patch(model: Any) -> Any:
    """Change a causal language model of transformers so that it computes its loss by `linear_cross_entropy`.

    A call with labels returns the same loss and gradients as before, and the logits are never all in memory. `output.logits` are computed
    when they are read, which must be before the weights change. The loss is not computed from them and has no gradient with respect to
    them. Calls without labels, `generate`, saving, pickling and the `state_dict` do not change; a deep copy is patched too. `unpatch`, or
    the end of a `with patch(model):` block, undoes the change.

    Args:
        model: a `transformers.PreTrainedModel` whose head is an `nn.Linear` and whose forward calls `self.loss_function`, ForCausalLMLoss.
            The model may scale its logits or apply a tanh softcap to them. For a model of peft, pass its `get_base_model()`.

    Returns:
        The same model.

    Raises:
        ValueError, TypeError: if the model is of another kind.

    Under torch.compile or a functional transform, and with a head that is quantized or a DTensor, all logits are computed as before. So
    compile the body of the model only: `patch(model).model.compile()`. Under FSDP2, the head must be sharded with the model and not by a
    `fully_shard` of its own. If the head is no nn.Linear after the call, because peft trains it, all logits are computed, with a warning.

    Cost: that of `linear_cross_entropy`.
    """
    if not isinstance(model, Patched):
        _check(model)
        stock: Any = type(model)
        model.__class__ = _class(stock)
    return model


def unpatch(model: Any) -> Any:
    """Undo `patch`.

    Args:
        model: a model. One that is not patched is left as it is.

    Returns:
        The same model.

    Raises:
        TypeError: if the class of the patched model was changed since.
    """
    if isinstance(model, Patched):
        kind: Any = type(model)
        if "stock" not in vars(kind):
            fail("unpatch", "model", "have the class that patch gave it", kind.__name__, TypeError)
        model.__class__ = kind.stock
    return model


def _check(model: Any) -> None:
    known, name = sys.modules.get("transformers.modeling_utils"), type(model).__name__
    if known is None or not isinstance(model, known.PreTrainedModel):
        base = ", such as its get_base_model()" if hasattr(model, "get_base_model") else ""
        fail(FN, "model", f"be a transformers.PreTrainedModel{base}", name, TypeError)
    if "labels" not in inspect.signature(type(model).forward).parameters or "forward" in vars(model):
        fail(FN, "model", "have a forward of its class that takes labels", name, TypeError)
    forwards = [inspect.unwrap(vars(c)["forward"]) for c in type(model).__mro__ if "forward" in vars(c)]
    if not any("loss_function" in f.__code__.co_names for f in forwards):
        fail(FN, "model", "compute its loss by self.loss_function", name, TypeError)
    if not _is_stock(model.loss_function):
        fail(FN, "model", "have the loss ForCausalLMLoss", getattr(model.loss_function, "__name__", model.loss_function))
    why = _unfit(model.get_output_embeddings())
    if why is not None:
        fail(FN, "model", "have an nn.Linear as its head", why, TypeError)


def _is_stock(loss: Any) -> bool:
    return loss is sys.modules["transformers.loss.loss_utils"].ForCausalLMLoss


def _unfit(head: Any) -> str | None:
    """Return why the logits of this head cannot be lazy, or None if they can."""
    if not isinstance(head, Linear) or type(head).forward is not Linear.forward:
        return f"{type(head).__module__}.{type(head).__qualname__}"  # peft has a Linear too
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if isinstance(head, getattr(fsdp, "FSDPModule", ())):
        return "one that is sharded apart from the model"  # and fully_shard frees its weight before the loss
    return "one with another forward than its class's" if "forward" in vars(head) else None


class Patched:
    """A base class of the class of every patched model. `stock` is the class that the model had before."""

    stock: Any

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        unpatch(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(1)  # later protocols only accept the class of the object itself
        make, arguments, *rest = made
        return make, tuple(self.stock if a is type(self) else a for a in arguments), *rest

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin: Any = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin


@functools.cache
def _class(stock: Any) -> Any:
    """Return the class of patched models whose class was `stock`. It has the same name, because transformers reads it."""
    at = list(inspect.signature(stock.forward).parameters).index("labels") - 1
    getter, setter = stock.loss_function.fget, stock.loss_function.fset

    @functools.wraps(stock.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        labels = args[at] if len(args) > at else kwargs.get("labels")
        if labels is None or torch.compiler.is_compiling():
            return stock.forward(self, *args, **kwargs)
        return _lazily(self.get_output_embeddings(), functools.partial(stock.forward, self, *args, **kwargs))

    def loss_function(self: Any) -> Any:
        theirs = getter(self)
        return functools.partial(_loss, theirs) if _is_stock(theirs) else theirs

    named = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {"stock": stock, "forward": forward, "loss_function": property(loss_function, setter), **named}
    return type(stock.__name__, (Patched, stock), members)


def _lazily(head: Any, call: Any) -> Any:
    """Call the model with a head that returns lazy logits."""
    why = _unfit(head)
    if why is not None:
        if not isinstance(getattr(head, "forward", None), functools.partial):  # it is one in a nested call
            warnings.warn(f"patch: the logits of a patched model are whole, for its head is {why}", RuntimeWarning, stacklevel=4)
        return call()
    head.forward = functools.partial(_head, head)
    try:
        return call()
    finally:
        vars(head).pop("forward", None)


def _head(head: Any, x: Tensor) -> Any:
    return lazy_logits.logits(x, head.weight, head.bias)


def _loss(
    stock: Any,
    logits: Any,
    labels: Any,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    shift_labels: Any = None,
    **kwargs: Any,
) -> Any:
    """Compute the loss of transformers' ForCausalLMLoss. Logits and labels of other kinds are passed to `stock`, the original function."""
    source, squash, target = _recognised(logits, labels, vocab_size, shift_labels)
    if source is None or squash is None:
        return stock(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs)
    narrow = source.x.dtype if source.x.dtype in (torch.bfloat16, torch.float16) else None
    with source.casting(source.autocast or narrow):  # with autocast, even to their own type, 16-bit tensors have a float32 loss
        loss = linear_cross_entropy(
            source.x, source.w, target, linear_bias=source.b, ignore_index=ignore_index, softcap=squash[0], temperature=squash[1],
            shift=shift_labels is None, reduction="mean" if num_items_in_batch is None else "sum",
        ).float()  # fmt: skip
    items = num_items_in_batch
    return loss if items is None else loss / (items.to(loss.device) if isinstance(items, Tensor) else items)


def _recognised(logits: Any, labels: Any, vocab_size: int, shift_labels: Any) -> tuple[lazy_logits.Source | None, Any, Any]:
    """Return the source of lazy logits, their softcap and temperature, and the labels [*rows], or None if they are of another kind."""
    none = None, None, None
    if not isinstance(logits, lazy_logits.Logits) or logits.computed is not None or vocab_size != logits.shape[-1]:
        return none
    rows, target = logits.shape[:-1], labels if shift_labels is None else shift_labels
    if target.dtype != torch.int64 or target.numel() != rows.numel() or (shift_labels is None and target.shape != rows):
        return none
    source = logits.source.current()
    return source, source.squash(), target.to(logits.device).reshape(rows)
