"""The arguments of an operator, for the arrays of every framework. softxent.torch and softxent.jax have the operators."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Call(NamedTuple):
    """What an operator is given, in arrays or numbers; 0.0 stands for none.

    Arrays of rows may have fewer axes than the rows: all rows of an entry then share it. The numbers of the rows are those of
    formula.Numbers.
    """

    z: Any  # logits: the rows, and the classes on one axis
    label: Any = 0.0  # [*rows], of integers; a label that matches no class, or a special one
    off: Any = 0.0  # of the shape of z, or [C]: the truth at every class, in the type of z or the one in which is computed
    v: Any = 0.0  # of the shape of z, a direction of the logits
    total: Any = 0.0  # by which the sum of the losses of its rows is divided
    y: Any = 0.0  # [*rows]: truth at the label
    r: Any = 0.0  # weight of off
    q: Any = 0.0  # twice the coefficient of the z-loss
    g: Any = 0.0  # upstream gradient of the loss
    l: Any = 0.0  # noqa: E741  of lse
    b: Any = 0.0  # of the log-probability of the label
    n: Any = 0.0  # of the entropy


class Static(NamedTuple):
    """What the result of a call depends on beside its arrays."""

    temperature: float = 1.0
    cap: float = math.inf  # of the softcap
    axis: int = -1  # of the classes in the caller's logits
    shards: Any = ()  # how the classes are divided: `torch.processes.Shards`, or names of axes of a mesh; empty if they are not


NUMBERS = ("y", "r", "q", "g", "l", "b", "n")
UPSTREAM = NUMBERS[3:]
OF_CLASSES = ("z", "off", "v")  # the fields with an axis of classes
