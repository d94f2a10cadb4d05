"""The private and unstable interfaces of torch that softxent.torch uses, each with the reason.

tests/test_torch_private.py has a test of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

# ---- which transforms are active ----

# Whether a function that torch.func transforms is running. torch has no public function for that.
transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active

# Whether torch.jit.trace records operators. torch.jit.is_tracing is public, but cannot be compiled.
jit_tracing: Callable[[], bool] = torch._C._is_tracing


def dispatching() -> bool:
    """Whether a mode of torch.utils._python_dispatch, such as that of make_fx, sees the operators."""
    return torch._C._len_torch_dispatch_stack() > 0


def forward_mode() -> bool:
    """Whether forward mode is active: the public dual_level does not say so to those that are called within it."""
    return forward_ad._current_level >= 0


def forward_levels() -> int:
    """Return how many of the active transforms of torch.func are in forward mode; of two, one would return 0."""
    return sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters())


# Whether forward mode records: it does not where a function of autograd is running, whatever the level.
forward_mode_records: Callable[[], bool] = torch._C._is_fwd_grad_enabled


# ---- tensors of torch.func ----

is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
wrapped: Callable[[Tensor], Tensor] = torch._C._functorch.get_unwrapped


def alive(tensors: Sequence[Any]) -> tuple[Any, ...]:
    """Return tensors without the wrappers of transforms that have ended: torch.func.vjp returns a function that is called after that."""
    found: tuple[Any, ...] = unwrap_dead_wrappers(tuple(tensors))
    return found


def apply_unbound(function: Any, *arguments: Any) -> Any:
    """Call a function of autograd where no transform of torch.func is active.

    Function.apply first binds the arguments to a signature, which takes 25 us; this is what it then calls.
    """
    quick: Any = super(Function, function)
    return quick.apply(*alive(arguments))


# ---- batches of upstream gradients: is_grads_batched, and torch.autograd.functional with vectorize ----

is_batch: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor


def level_of_batches() -> int:
    """Return the level of the innermost batch."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def without_batch(t: Tensor, level: int, axis: int = 0) -> Tensor:
    """Return a batch with an ordinary axis in its place. The size is used where t is no batch, which it is."""
    return torch._remove_batch_dim(t, level, 1, axis)


def with_batch(t: Tensor, level: int) -> Tensor:
    """Return a batch whose axis is the first one of t."""
    return torch._add_batch_dim(t, 0, level)


# ---- memory ----


def is_zero(t: Tensor) -> bool:
    """Whether this is a lazy tensor of zeros without memory, as forward mode makes them."""
    found: bool = t._is_zerotensor()
    return found


def version(t: Tensor) -> int:
    """Return how often the tensor was changed in place. A tensor of inference mode has no count."""
    return 0 if t.is_inference() else t._version


# ---- others ----

legacy_reduction: Callable[..., str] = torch.nn._reduction.legacy_get_string  # of the arguments size_average and reduce

subclass_without_memory: Callable[..., Any] = Tensor._make_wrapper_subclass  # for logits that are computed when they are read

without_subclasses: Any = torch._C.DisableTorchFunctionSubclass  # the context in which a subclass calls torch's own functions


def overload(operator: Any) -> Any:
    """Return the operator of torch.library for register_sharding, which takes no custom_op."""
    return operator._opoverload


def process_group(name: str) -> Any:
    """Return the group of processes of this name. An operator of torch.library takes no group."""
    from torch.distributed import distributed_c10d

    resolve: Any = vars(distributed_c10d)["_resolve_process_group"]
    return resolve(name)
