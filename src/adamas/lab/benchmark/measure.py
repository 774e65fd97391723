"""The measure: contenders take turns, round after round, and each is compared within its round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from .peers import ADAMW_ACCESSES, Contender, Optimizer, Problem, reason
from .shapes import Workload

if TYPE_CHECKING:
    import torch

_Key = TypeVar("_Key")

LIMIT = "memory limit"
"""The key of the memory measurement among the samples of the contenders."""

LIMIT_ELEMENTS = 2**26
"""Elements of the array that measures memory: several times the largest cache."""

DEFINITIONS = (
    "Time: the median over the rounds of one step's time. Spread: the first and third quartile. "
    "Every contender takes its turn in every round, in random order, with untimed steps first; "
    "gradients are fixed; all contenders that step in place share parameters and gradients.",
    "Memory limit: bytes read and written a second by an in-place multiplication of a large array "
    "(torch, all threads), timed in every round as a contender is.",
    "Of the limit: the time that the memory limit allows for the bytes a step must move, divided "
    "by the step's time. Those bytes are 7 elements a parameter: read the parameter, the gradient "
    "and both moments, write the parameter and both moments (28 bytes in float32); 5 for momentum "
    "and RMSprop, 3 for SGD without. It is above 1 where caches hold the tensors or the moments "
    "are smaller.",
    "Ratios are taken within each round, and their median is given, so that they may differ a "
    "little from the quotient of two medians.",
)

_PAUSE = 0.01
"""Seconds of rest before each turn: OpenMP threads of the contender before spin that long, and
would take a core from the next."""

_TURN = 0.02
"""Seconds that the timed steps of a turn last at least, unless that takes too many steps."""

_MAX_STEPS = 200
_SLOW = 0.5
"""A step of more seconds than this is warmed up once and timed once a turn."""

_RESERVE = 2**30
"""Bytes to leave free beside what a contender is expected to need."""


@dataclass(frozen=True)
class Timing:
    """One contender on one workload."""

    key: str
    title: str
    version: str
    note: str = ""
    failure: str | None = None
    """Why there are no figures."""
    milliseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio_fused: float | None = None
    """Its time divided by torch fused's."""
    ratio_limit: float | None = None
    """The time that the memory limit allows, divided by its time."""


@dataclass(frozen=True)
class Result:
    """One workload, all contenders."""

    key: str
    title: str
    parameters: int
    tensors: int
    rounds: int
    bandwidth: float
    """Bytes a second, median."""
    bandwidth_quartiles: tuple[float, float]
    limit_milliseconds: float
    """The time that the memory limit allows for one step of AdamW."""
    timings: tuple[Timing, ...]

    def milliseconds(self, key: str) -> float | None:
        """The time of a contender, or None where it has none."""
        return next((t.milliseconds for t in self.timings if t.key == key), None)


@dataclass(frozen=True)
class Turn:
    """How often a contender steps when its turn comes."""

    step: Callable[[], object]
    untimed: int
    timed: int

    @classmethod
    def calibrate(cls, step: Callable[[], object]) -> Turn:
        """Warms a contender up and sees how long it takes."""
        step()
        seconds = min(_seconds(step, 1), _seconds(step, 1))
        if seconds > _SLOW:
            return cls(step, 1, 1)
        timed = min(max(round(_TURN / max(seconds, 1e-9)), 2), _MAX_STEPS)
        return cls(step, max(timed // 4, 2), timed)

    def take(self) -> float:
        """Seconds a step, after a rest and some untimed steps."""
        time.sleep(_PAUSE)
        _seconds(self.step, self.untimed)
        return _seconds(self.step, self.timed)


def _seconds(step: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - start) / times


class MemoryLimit:
    """Multiplies a large array in place, with all of torch's threads."""

    def __init__(self, elements: int = LIMIT_ELEMENTS) -> None:
        import torch

        self._array: torch.Tensor = torch.ones(elements)
        self.bytes = 2 * 4 * elements

    def step(self) -> None:
        """One pass over the array."""
        # Not by 1, and so little beside it that the array never overflows.
        self._array.mul_(1.0000001)


def interleave(
    turns: Mapping[_Key, Turn], rounds: int, failures: dict[_Key, str]
) -> dict[_Key, list[float]]:
    """Gives each contender its turn in each round, in an order that changes from round to round.

    Args:
        turns: the contenders.
        rounds: the number of rounds.
        failures: receives the reason of a contender that raises; it takes no further turn.

    Returns:
        Seconds a step, one figure a round, of each contender that did not fail.
    """
    samples: dict[_Key, list[float]] = {key: [] for key in turns}
    order = list(turns)
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for key in tuple(order):
                try:
                    samples[key].append(turns[key].take())
                except Exception as error:
                    failures[key] = reason(error)
                    order.remove(key)
                    del samples[key]
    finally:
        gc.enable()
    return samples


def measure(
    workload: Workload,
    contenders: Iterable[Contender],
    dtype: str = "float32",
    rounds: int = 15,
    memory: MemoryLimit | None = None,
    unfit: Mapping[str, str] | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> Result:
    """Measures all contenders on one workload.

    A contender that fails, or needs more memory than is free, is reported with its reason.

    Args:
        workload: what to step.
        contenders: what to step it with.
        dtype: "float32" or "float64".
        rounds: turns of each contender.
        memory: the measure of the memory limit.
        unfit: reasons of the contenders that are known to fail, which are not tried.
        progress: told what happens.

    Raises:
        MemoryError: there is no room even for the parameters and gradients.
    """
    memory = memory or MemoryLimit()
    contenders = list(contenders)
    failures = dict(unfit or {})
    turns = {LIMIT: Turn.calibrate(memory.step)}
    itemsize = np.dtype(dtype).itemsize
    _require(2 * workload.parameters * itemsize)
    problem = Problem(workload.shapes, dtype)
    alive: list[Optimizer] = []
    for contender in contenders:
        if contender.key in failures:
            continue
        progress(f"{workload.title}: preparing {contender.title}")
        try:
            _require(round(contender.state * workload.parameters * itemsize))
            optimizer = contender.build(problem)
            turns[contender.key] = Turn.calibrate(optimizer.step)
            alive.append(optimizer)
        except Exception as error:
            failures[contender.key] = reason(error)
    progress(f"{workload.title}: {rounds} rounds of {len(alive)} contenders")
    samples = interleave(turns, rounds, failures)
    return summarize(workload, contenders, samples, failures, memory.bytes, itemsize)


def summarize(
    workload: Workload,
    contenders: Iterable[Contender],
    samples: dict[str, list[float]],
    failures: dict[str, str],
    memory_bytes: int,
    itemsize: int,
) -> Result:
    """Medians, quartiles and ratios of the samples of one workload.

    Args:
        workload: what was stepped.
        contenders: those that were asked for.
        samples: seconds a step, one a round, for each contender and the memory limit.
        failures: the reasons of those that have no samples.
        memory_bytes: what one pass of the memory measurement moves.
        itemsize: bytes of an element of the tensors.
    """
    bandwidth = memory_bytes / np.array(samples[LIMIT])
    element = itemsize * workload.parameters / bandwidth
    fused = np.array(samples["torch-fused"]) if "torch-fused" in samples else None
    timings = []
    for c in contenders:
        if c.key in failures:
            timings.append(Timing(c.key, c.title, c.version, c.note, failures[c.key]))
            continue
        seconds = np.array(samples[c.key])
        low, high = np.quantile(seconds, (0.25, 0.75))
        timings.append(
            Timing(
                key=c.key,
                title=c.title,
                version=c.version,
                note=c.note,
                milliseconds=float(np.median(seconds)) * 1e3,
                quartiles=(float(low) * 1e3, float(high) * 1e3),
                ratio_fused=None if fused is None else float(np.median(seconds / fused)),
                ratio_limit=float(np.median(c.accesses * element / seconds)),
            )
        )
    low, high = np.quantile(bandwidth, (0.25, 0.75))
    return Result(
        key=workload.key,
        title=workload.title,
        parameters=workload.parameters,
        tensors=len(workload.shapes),
        rounds=len(bandwidth),
        bandwidth=float(np.median(bandwidth)),
        bandwidth_quartiles=(float(low), float(high)),
        limit_milliseconds=float(np.median(ADAMW_ACCESSES * element)) * 1e3,
        timings=tuple(timings),
    )


def _require(size: int) -> None:
    available = available_bytes()
    if available is not None and size + _RESERVE > available:
        raise MemoryError(f"needs {size / 1e9:.1f} GB, {available / 1e9:.1f} GB are free")


def available_bytes() -> int | None:
    """Memory that can still be used, as far as the system tells."""
    free = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            free.append(int(most) - int((group / "memory.current").read_text()))
    except OSError:
        pass
    return min(free, default=None)
