from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

def isas() -> list[str]: ...
def environment(name: str) -> str | None: ...
def step(
    rows: NDArray[np.int64],
    coefficients: NDArray[np.float64],
    threads: int,
    grain: int,
    isa: int,
    states: list[dict[str, Any]],
    steps: NDArray[np.int64],
    measures: NDArray[np.float64] | None,
) -> None: ...
def default_floating_point() -> bytes: ...
def restore_floating_point(environment: bytes) -> None: ...
def square_sum(
    rows: NDArray[np.int64], scale: float, threads: int, grain: int, isa: int
) -> tuple[float, float]: ...
def exact_square_sum(
    rows: NDArray[np.int64], scale: float, threads: int, grain: int
) -> list[int]: ...
def identical(one: Iterable[Any], other: list[Any]) -> bool: ...

class Watch:
    def __init__(
        self,
        exchange_api: object,
        params: list[Any],
        states: list[dict[str, Any]],
        moments: list[tuple[str, ...]],
        shim: tuple[object, int, int] | None,
        wrapper: type | None,
    ) -> None: ...
    def fill(self, rows: NDArray[np.int64]) -> None: ...
    def look(self, rows: NDArray[np.int64], steps: NDArray[np.int64]) -> int: ...
    def which(self) -> list[int]: ...
