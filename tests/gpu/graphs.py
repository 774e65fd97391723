"""CUDA graphs, and what stands for them where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from adamas.torch import conditions, hyperparameters
from adamas.torch.gpu import executor, jit
from adamas.torch.gpu import staging as of_staging
from adamas.torch.gpu.jit import Launcher
from adamas.torch.gpu.staging import Staging


def capture(work: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """What does again, each time it is called, what ``work`` sends to the device and launches.

    Where there is no GPU, these are written down: their targets and arguments stay as they are.
    """
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay  # type: ignore[no-any-return]
    done: list[Callable[[], Any]] = []
    launch, send = Launcher.__call__, Staging.send

    def record_launch(self: Launcher, *arguments: Any, **options: Any) -> None:
        done.append(partial(launch, self, *arguments, **options))

    def record_send(self: Staging, array: Any, target: Any) -> None:
        done.append(partial(send, self, array.copy(), target))

    with pytest.MonkeyPatch.context() as patch:
        for module in (conditions, executor, jit, of_staging):
            patch.setattr(module, "is_capturing", lambda device: True)
        patch.setattr(Launcher, "__call__", record_launch)
        patch.setattr(Staging, "send", record_send)
        work()

    def replay() -> None:
        for again in done:
            again()

    return replay


@contextmanager
def tensors_on_device(device: torch.device) -> Iterator[None]:
    """Lets kernels read the tensors that hold lr and betas, where the "device" is the CPU, too."""
    original = hyperparameters.device_row

    def row(group: dict[str, Any], compute: str, device: torch.device) -> list[float]:
        values = [group["lr"], *group.get("betas", (0.0, 0.0))]
        where = [v.data_ptr() if isinstance(v, torch.Tensor) else 0 for v in values]
        is_wide = [getattr(v, "dtype", None) == torch.float64 for v in values]
        numbers = [0.0 if at else v for v, at in zip(values, where, strict=True)]
        betas = {"betas": tuple(numbers[1:])} if "betas" in group else {}
        found = original(group | {"lr": numbers[0]} | betas, compute, device)
        whole = [*where, sum(wide << i for i, wide in enumerate(is_wide))]
        return [*found[:-4], *np.array(whole, np.int64).view(np.float64).tolist()]

    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(executor, "device_row", row)
        yield
