"""How the time of a step grows with the number of parameters, from 10^3 to 10^8."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .measure import MemoryLimit, Turn, available_bytes, interleave
from .peers import ADAMW_ACCESSES, CONTENDERS, Problem, reason
from .shapes import Shape, decades, split

TENSOR = 3500
"""Elements of the many small tensors."""

LAYOUTS: dict[str, Callable[[int], tuple[Shape, ...]]] = {
    "one tensor": lambda n: ((n,),),
    f"tensors of {TENSOR}": lambda n: split(n, TENSOR),
}

MEMORY_BOUND = 10**7
"""From here on, at 16 bytes a parameter, few caches hold the tensors: 160 MB."""

FIXED = 10**5
"""Up to here the fixed cost of a step shows."""

_PASSES = 3
_ROUNDS = 3


@dataclass(frozen=True)
class Line:
    """A contender and a layout, to be measured over the sizes."""

    key: str
    layout: str
    largest: int = 10**8

    @property
    def title(self) -> str:
        """What the line shows, in words."""
        return f"{CONTENDERS[self.key].title}, {self.layout}"


_ONE, _MANY = LAYOUTS
_LINES = (
    Line("adamas", _ONE),
    Line("adamas", _MANY),
    Line("torch-fused", _ONE),
    # Beyond, its tens of thousands of tensors would take most of the run.
    Line("torch-fused", _MANY, 10**7),
)


@dataclass(frozen=True)
class Series:
    """The times of one contender in one layout, by size."""

    key: str
    layout: str
    title: str
    parameters: tuple[int, ...]
    milliseconds: tuple[float, ...]
    exponent: float | None
    """The slope of log time over log parameters, from ``MEMORY_BOUND`` on; 1 is linear."""
    fixed_microseconds: float | None
    """What a step takes beside its parameters: the intercept of a line up to ``FIXED``."""


@dataclass(frozen=True)
class Scaling:
    """All series, and the memory limit of the same run."""

    series: tuple[Series, ...]
    bandwidth: float
    """Bytes a second, median."""
    step_bytes: int
    """What a step must move a parameter."""
    note: str = ""

    def limit_milliseconds(self, parameters: int) -> float:
        """The time that the memory limit allows."""
        return parameters * self.step_bytes / self.bandwidth * 1e3


def measure_scaling(
    keys: Collection[str],
    dtype: str = "float32",
    low: int = 3,
    high: int = 8,
    per_decade: int = 10,
    memory: MemoryLimit | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> Scaling:
    """Times a step at sizes from 10^low to 10^high parameters.

    Args:
        keys: the contenders; those other than adamas and torch fused are not measured here.
        dtype: "float32" or "float64".
        low: exponent of the smallest size.
        high: exponent of the largest.
        per_decade: sizes in each decade.
        memory: the measure of the memory limit.
        progress: told what happens.
    """
    memory = memory or MemoryLimit()
    lines = [line for line in _LINES if line.key in keys]
    itemsize = np.dtype(dtype).itemsize
    sizes = decades(low, high, per_decade)
    available = available_bytes()
    # Two layouts hold p and g, four lines hold m and v.
    sizes = [n for n in sizes if available is None or n < sizes[1] or 12 * itemsize * n < available]
    limit = Turn.calibrate(memory.step)
    limits: list[float] = []
    seconds: dict[Line, dict[int, list[float]]] = {line: {} for line in lines}
    failures: dict[Line, str] = {}
    # Each pass visits all sizes in another order, so that a slow minute is no bump in the curve.
    shuffle = random.Random(0).shuffle
    order = list(sizes)
    for number in range(1, _PASSES + 1):
        shuffle(order)
        for n in order:
            progress(f"scaling, pass {number} of {_PASSES}: {n:,} parameters")
            limits.append(limit.take())
            for line, times in _measure_size(n, lines, dtype, failures).items():
                seconds[line].setdefault(n, []).extend(times)
    notes = [f"{line.title} failed: {why}" for line, why in failures.items()]
    if sizes[-1] < 10**high:
        notes.append(f"more than {sizes[-1]:,} parameters do not fit into the free memory")
    return Scaling(
        series=tuple(summarize(line, seconds[line]) for line in lines if line not in failures),
        bandwidth=memory.bytes / float(np.median(limits)),
        step_bytes=ADAMW_ACCESSES * itemsize,
        note="; ".join(notes),
    )


def _measure_size(
    n: int, lines: Iterable[Line], dtype: str, failures: dict[Line, str]
) -> dict[Line, list[float]]:
    problems: dict[tuple[Shape, ...], Problem] = {}
    turns: dict[Line, Turn] = {}
    for line in lines:
        if n > line.largest or line in failures:
            continue
        shapes = LAYOUTS[line.layout](n)
        try:
            if shapes not in problems:
                problems[shapes] = Problem(shapes, dtype)
            turns[line] = Turn.calibrate(CONTENDERS[line.key].build(problems[shapes]).step)
        except Exception as error:
            failures[line] = reason(error)
    return interleave(turns, _ROUNDS, failures)


def summarize(line: Line, seconds: Mapping[int, Sequence[float]]) -> Series:
    """Medians of the samples at each size, the exponent and the fixed cost.

    Args:
        line: what was measured.
        seconds: the samples, by the number of parameters.
    """
    sizes = sorted(seconds)
    n = np.array(sizes, dtype=np.float64)
    t = np.array([np.median(seconds[size]) for size in sizes])
    large, small = n >= MEMORY_BOUND, n <= FIXED
    exponent = fixed = None
    if large.sum() >= 3:
        exponent = float(np.polyfit(np.log(n[large]), np.log(t[large]), 1)[0])
    if small.sum() >= 3:
        # Relative errors count: absolute ones would let the largest size decide the intercept.
        fixed = float(np.polyfit(n[small], t[small], 1, w=1 / t[small])[1]) * 1e6
    milliseconds = tuple((t * 1e3).tolist())
    return Series(line.key, line.layout, line.title, tuple(sizes), milliseconds, exponent, fixed)
