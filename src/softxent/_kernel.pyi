from typing import Any

from .partials import Array

BLOCK: int
SHORT_ROW: int
SMALL_CALL: int
IGNORED: int
LARGEST: int
LARGEST_LOGIT: int
OUTSIDE: int
DTYPES: dict[str, int]
GIVEN: dict[str, int]
OPS: dict[str, int]

def isa() -> str: ...
def call(
    op: int, z: Any, axis: int, label: Any, numbers: Any, off: Any, transform: tuple[float, float], out: Any, result: Any, parts: Any,
    threads: int, v: Any = None, gauss_newton: bool = False, ignored: int | None = None, tangents: Any = None,
) -> tuple[float, float]: ...  # fmt: skip
def labels(label: Any, classes: int, ignored: int, weight: Any, out: Any = None) -> tuple[int, int, float]: ...
def sum(numbers: Any) -> float: ...
def merge(
    sums: Array, pairs: Array, label: Array, numbers: Array, temperature: float, result: Array, parts: Array, tangents: Array | None = None
) -> None: ...  # fmt: skip
def buffer(bytes: int) -> Array: ...
def trim() -> None: ...
def xla_calls() -> dict[str, object]: ...
def set_xla_threads(threads: int) -> None: ...
def bits16(x: Any) -> Array: ...
