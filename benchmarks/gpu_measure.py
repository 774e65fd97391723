"""How gpu.py times contenders: in turns, round after round, beside a copy of as many bytes."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpu_first import synchronize
from gpu_peers import FUSED, PEERS, Contender, parameters, with_gradients
from torch import Tensor

from adamas.lab.benchmark.measure import LIMIT, Turn, interleave
from adamas.lab.benchmark.peers import reason
from adamas.lab.benchmark.shapes import WORKLOADS, Shape, Workload, gpt2, mlp

_TURN = 0.02
"""Seconds that the timed steps of a turn last at least, unless that takes too many steps."""

_MAX_STEPS = 100
_SLOW = 0.1
"""A step of more seconds than this is timed once a turn."""

_HOSTED = 3
_MOST_COPIED = 2**31
"""Bytes that a copy reads at most: far more than a cache holds, and little beside the states."""

_LEAST_ROUNDS = 3


def llama(layers: int, width: int, narrow: int, inner: int, vocabulary: int) -> tuple[Shape, ...]:
    """The parameters of a Llama 3.2 of that size, the output layer tied to the embedding."""
    attention = ((width, width), (narrow, width), (narrow, width), (width, width))
    feed_forward = ((inner, width), (inner, width), (width, inner))
    block = (*attention, *feed_forward, (width,), (width,))
    return ((vocabulary, width), *block * layers, (width,))


def workloads(device: str) -> dict[str, Workload]:
    """By their names on the command line; tiny ones where there is no GPU to be measured."""
    if device == "cuda":
        found = (
            WORKLOADS["124m"],
            Workload("3000x3500", "3000 tensors of 3500", ((3500,),) * 3000),
            Workload("llama-1b", "Llama, 1.2B", llama(16, 2048, 512, 8192, 128_256)),
        )
    else:
        found = (
            Workload("124m", "GPT-2, tiny", gpt2(2, 32, 100, 16)),
            Workload("3000x3500", "30 tensors of 35", ((35,),) * 30),
            Workload("llama-1b", "MLP, tiny", mlp(64, 32, 10)),
        )
    return {workload.key: workload for workload in found}


@dataclass(frozen=True)
class Row:
    """One contender on one workload."""

    key: str
    title: str
    version: str
    weights: str
    failure: str | None = None
    """Why there are no figures."""
    milliseconds: float | None = None
    """A step on the host's clock, of many with one wait at their end."""
    quartiles: tuple[float, float] | None = None
    between_events: float | None = None
    """Milliseconds a step on the device's clock, of the same steps."""
    kernels: float | None = None
    """Milliseconds that the device computes a step, gaps left out."""
    host: float | None = None
    """Microseconds until ``step()`` returns, which waits for nothing, on an idle device."""
    megabytes: float | None = None
    """That a step must move."""
    of_limit: float | None = None
    """The time in which the device copies as many bytes, divided by the step's."""
    of_fused: float | None = None
    """The step's time divided by that of torch fused with float32."""
    of_fused_bfloat16: float | None = None
    """The same with bfloat16, for weights of that type."""


@dataclass
class Result:
    """One workload: rows by their contenders' keys, filled heat by heat."""

    workload: Workload
    bandwidth: float = 0.0
    """Bytes read and written a second by copies, median of the first heat."""
    rows: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceTurn(Turn):
    """How often a contender steps when its turn comes, and what its turns have found."""

    device: str = "cuda"
    hosted: int = 1
    """Steps whose own time on the host is taken."""
    host: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    estimate: float = 0.0
    """Seconds that a turn takes."""

    @classmethod
    def on(cls, step: Callable[[], object], device: str) -> DeviceTurn:
        """Warms a contender up and sees how long it takes."""

        def seconds(times: int) -> float:
            synchronize(device)
            begin = time.perf_counter()
            for _ in range(times):
                step()
            synchronize(device)
            return (time.perf_counter() - begin) / times

        seconds(1)
        each = min(seconds(1), seconds(1))
        if each > _SLOW:
            return cls(step, 1, 1, device, 1, estimate=3 * each)
        each = seconds(3)
        timed = min(max(round(_TURN / max(each, 1e-9)), 2), _MAX_STEPS)
        untimed = max(timed // 4, 2)
        return cls(
            step, untimed, timed, device, _HOSTED, estimate=(untimed + timed + _HOSTED) * each
        )

    def take(self) -> float:
        """Seconds a step."""
        for _ in range(self.untimed):
            self.step()
        synchronize(self.device)
        for _ in range(self.hosted):
            begin = time.perf_counter()
            self.step()
            self.host.append(time.perf_counter() - begin)
            synchronize(self.device)
        event = partial(torch.cuda.Event, enable_timing=True)
        marks = [event(), event()] if self.device == "cuda" else []
        begin = time.perf_counter()
        for mark in marks[:1]:
            mark.record()
        for _ in range(self.timed):
            self.step()
        for mark in marks[1:]:
            mark.record()
        synchronize(self.device)
        seconds = (time.perf_counter() - begin) / self.timed
        if marks:
            self.events.append(marks[0].elapsed_time(marks[1]) / 1e3 / self.timed)
        return seconds


def release(device: str) -> None:
    """Gives back what is no longer held."""
    gc.collect()
    if device == "cuda":
        # A device that has stopped raises whatever is asked of it: the rest is still reported.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def allocated(device: str) -> int | None:
    """Bytes of the device's memory that tensors hold; None where nobody counts them."""
    return torch.cuda.memory_allocated() if device == "cuda" else None


class Problem:
    """Weights and gradients of both types, each made when first asked for."""

    def __init__(self, shapes: Sequence[Shape], device: str) -> None:
        self._shapes, self._device = shapes, device
        self._made: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def of(self, weights: str) -> tuple[list[Tensor], list[Tensor]]:
        """Those that all contenders of this type of weights share."""
        if weights not in self._made:
            self._made[weights] = parameters(self._shapes, weights, self._device)
        return self._made[weights]


def copying(workload: Workload, device: str) -> tuple[Callable[[], object], int]:
    """A copy that moves what a step of float32 moves, and the bytes it reads and writes."""
    size = min(14 * workload.parameters, _MOST_COPIED) // 16 * 16
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    return lambda: target.copy_(source), 2 * size


def heat(
    workload: Workload,
    contenders: Iterable[Contender],
    device: str,
    rounds: int,
    seconds: float,
    failures: dict[str, str],
) -> tuple[float, list[Row]]:
    """Times contenders in turns, with torch fused and a copy among them.

    Args:
        workload: what to step.
        contenders: what to step it with.
        device: "cuda" or "cpu".
        rounds: turns of each, at most.
        seconds: that the rounds may take.
        failures: reasons of contenders that are known to fail; receives those found here.

    Returns:
        Bytes a second of the copy, and a row a contender.
    """
    shapes, problem = workload.shapes, Problem(workload.shapes, device)
    taking = {PEERS["torch-fused"].key: PEERS["torch-fused"]}
    for contender in contenders:
        taking[FUSED[contender.weights]] = PEERS[FUSED[contender.weights]]
        taking[contender.key] = contender
    copy, copied = copying(workload, device)
    turns: dict[str, Turn] = {LIMIT: DeviceTurn.on(copy, device)}
    moved: dict[str, int | None] = {}
    for key, contender in taking.items():
        if key in failures:
            continue
        try:
            params = with_gradients(*problem.of(contender.weights))
            before = allocated(device)
            turns[key] = DeviceTurn.on(contender.build(params).step, device)
            after = allocated(device)
            state = None if before is None or after is None else after - before
            moved[key] = contender.step_bytes(shapes, state)
        except Exception as error:
            failures[key] = reason(error)
            release(device)
    a_round = sum(turn.estimate for turn in turns.values() if isinstance(turn, DeviceTurn))
    rounds = min(rounds, max(_LEAST_ROUNDS, int(seconds / max(a_round, 1e-6))))
    samples = {k: np.array(x) for k, x in interleave(turns, rounds, failures).items()}
    bandwidth = copied / samples[LIMIT]
    rows = [row_of(c, turns, samples, moved, bandwidth, failures) for c in taking.values()]
    return float(np.median(bandwidth)), rows


def row_of(
    contender: Contender,
    turns: dict[str, Turn],
    samples: dict[str, np.ndarray],
    moved: dict[str, int | None],
    bandwidth: np.ndarray,
    failures: dict[str, str],
) -> Row:
    """The medians of a contender's samples, and its ratios, which are taken within each round."""
    key = contender.key
    row = Row(key, contender.title, contender.version, contender.weights, failures.get(key))
    turn = turns.get(key)
    if row.failure or key not in samples or not isinstance(turn, DeviceTurn):
        return row
    seconds, size = samples[key], moved[key]

    def beside(weights: str) -> float | None:
        other = samples.get(FUSED[weights])
        return None if other is None else float(np.median(seconds / other))

    low, high = np.quantile(seconds, (0.25, 0.75)) * 1e3
    return replace(
        row,
        milliseconds=float(np.median(seconds)) * 1e3,
        quartiles=(float(low), float(high)),
        between_events=float(np.median(turn.events)) * 1e3 if turn.events else None,
        host=float(np.median(turn.host)) * 1e6,
        megabytes=None if size is None else size / 1e6,
        of_limit=None if size is None else float(np.median(size / bandwidth / seconds)),
        of_fused=beside("float32"),
        of_fused_bfloat16=beside("bfloat16") if contender.weights == "bfloat16" else None,
    )


def kernel_milliseconds(
    contender: Contender, workload: Workload, device: str, times: int = 2
) -> float | None:
    """Milliseconds a step of the device's kernels, copies and fills, by torch's profiler.

    Whoever profiles does so last: later launches would be slower.
    """
    params = with_gradients(*parameters(workload.shapes, contender.weights, device))
    optimizer = contender.build(params)
    optimizer.step()
    synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            optimizer.step()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    busy = ("kernel", "gpu_memcpy", "gpu_memset")
    found = [event["dur"] for event in events if event.get("cat") in busy]
    return sum(found) / times / 1e3 if found else None
