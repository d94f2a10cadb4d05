from typing import Any

from .partials import Array

BLOCK: int
SHORT_ROW: int
SMALL_CALL: int
IGNORED: int
LARGEST: int
OUTSIDE: int
DTYPES: dict[str, int]
GIVEN: dict[str, int]

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
def merge(sums: Array, pairs: Array, label: Array, numbers: Array, temperature: float, result: Array, parts: Array) -> None: ...
def first_outside(label: Array, classes: int, ignore_index: int) -> int: ...
def quick(
    z: int, label: int | None, dz: int | None, parts: int | None, outputs: tuple[int | None, ...], count_correct: bool,
    shape: tuple[int, ...], axis: int, z_strides: tuple[int, ...], dz_strides: tuple[int, ...] | None, type: int, ignore: int, y: float,
    r: float, q: float, factors: int | None, samples: tuple[int, int] | None, off: int | None, off_strides: tuple[int, ...] | None,
    wide: bool, mean: bool, upstreams: tuple[tuple[int, int] | None, ...] | None, temperature: float, cap: float, threads: int,
) -> tuple[float, int] | None: ...  # fmt: skip
def buffer(bytes: int) -> Array: ...
def trim() -> None: ...
def xla_calls() -> dict[str, object]: ...
def set_xla_threads(threads: int) -> None: ...
def bits16(x: Any) -> Array: ...
