from typing import Any

from .partials import Array

def isa() -> str: ...
def forward(
    z: Array | None, label: Array, truth: Array, off: Array | None, result: Array, parts: Array | None, threads: int = 1
) -> None: ...
def backward(z: Array | None, label: Array, truth: Array, off: Array | None, parts: Array, out: Array | None, threads: int = 1) -> None: ...
def fused(
    z: Array | None,
    label: Array,
    truth: Array,
    off: Array | None,
    out: Array | None,
    result: Array,
    parts: Array | None,
    threads: int = 1,
) -> None: ...
def first_outside(label: Array, classes: int, ignore_index: int) -> int: ...
def bits16(x: Any) -> Array: ...
