"""How copies and arithmetic of a step with ``offload="cpu"`` overlap, by a clock of their own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adamas import native
from adamas.torch import AdamW, gpu
from adamas.torch.gpu import chunks, offload, ring

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not here")
CHUNK = 4096
DOWN = 1.0  # seconds that a chunk is on its way to the host


class Clock:
    """Stands for ``time``: nothing takes any, but what says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def gates(clock: Clock, seconds: float) -> type[native.Gate]:
    """Of a core that takes so long for a chunk, one after the other, once it has come."""

    class Gate(native.Gate):
        def __init__(self, ends: list[int]) -> None:
            super().__init__(ends)
            self.done: list[float] = []

        def open(self, part: int) -> None:
            self.done.append(max([clock.now, *self.done[-1:]]) + seconds)
            super().open(part)

        def wait(self, part: int) -> bool:
            clock.sleep(max(self.done[part] - clock.now, 0))
            return super().wait(part)

    return Gate


@pytest.mark.parametrize("arithmetic", [0.0, 0.7, 1.0, 1.5])
@pytest.mark.parametrize(
    "shapes", [[(50_000,)], [(320,)] * 150, [(9,)] * 1500], ids=["large", "whole", "small"]
)
def test_a_step_takes_as_long_as_the_longer(
    arithmetic: float, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what no other chunk hides: the first one's way down, the last one's step and way up."""
    monkeypatch.syspath_prepend(FOLDER)
    models: Any = import_module("offload_bus")
    clock = Clock()
    bus = models.Bus(CHUNK / DOWN)
    for module, name, value in (
        (models, "time", clock),
        (ring, "_Host", bus),
        (ring, "_RINGS", {}),
        (native, "Gate", gates(clock, arithmetic * DOWN)),
        (offload, "CHUNK", CHUNK),
        (chunks, "SMALL", 600),
        (gpu, "DEVICES", {"cpu"}),
        (gpu, "_has_triton", lambda: False),
    ):
        monkeypatch.setattr(module, name, value)
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = AdamW(params, offload="cpu")
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        bus.synchronize()
        begin = clock.now
        optimizer.step()
        bus.synchronize()
        took = clock.now - begin
        assert optimizer._plan is not None
        (executor,) = optimizer._plan._away.values()
        count = len(executor._chunks)
        assert count > 20
        down = sum(chunk.size for chunk in executor._chunks) / CHUNK * DOWN
        longer = max(down, count * arithmetic * DOWN)
        assert longer <= took <= longer + (1 + arithmetic + 1) * DOWN
