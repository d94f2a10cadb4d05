from typing import Any

from .partials import Array

def isa() -> str: ...
def forward(
    z: Array | None, label: Array, numbers: Array, off: Array | None, transform: tuple[float, float], result: Array, parts: Array | None,
    threads: int = 1,
) -> None: ...  # fmt: skip
def backward(
    z: Array | None, label: Array, numbers: Array, off: Array | None, transform: tuple[float, float], parts: Array, out: Array | None,
    threads: int = 1,
) -> None: ...  # fmt: skip
def fused(
    z: Array | None, label: Array, numbers: Array, off: Array | None, transform: tuple[float, float], out: Array | None, result: Array,
    parts: Array | None, threads: int = 1,
) -> None: ...  # fmt: skip
def curvature(
    z: Array | None, v: Array, label: Array, numbers: Array, off: Array | None, transform: tuple[float, float], gauss_newton: bool,
    out: Array | None, result: Array, threads: int = 1,
) -> None: ...  # fmt: skip
def log_softmax(z: Array | None, scale: Array, transform: tuple[float, float], out: Array | None, threads: int = 1) -> None: ...
def first_outside(label: Array, classes: int, ignore_index: int) -> int: ...
def quick(
    z: int, label: int, dz: int, losses: int, rows: int, cols: int, type: int, ignore: int, y: float, r: float, q: float,
    class_weight: int, off: int, mean: bool, upstream: int, temperature: float, cap: float, threads: int, /,
) -> float | None: ...  # fmt: skip
def buffer(bytes: int) -> Array: ...
def trim() -> None: ...
def bits16(x: Any) -> Array: ...
