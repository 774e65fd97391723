"""The norm of gradients that are not all on one GPU: each adds up its own where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from devices import Copied, assert_same, give, weights
from launching import random
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from adamas import native
from adamas.torch import AdamW, gradnorm
from adamas.torch.gpu import launches
from adamas.torch.gpu.executor import Executor
from adamas.torch.gpu.sums import total
from adamas.torch.plan import Plan

pytestmark = pytest.mark.gpu

SIZES = (1, 0, 511, 4097, 9001)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of a tensor."""
    monkeypatch.setattr(launches, "CHUNK", 4096)


def executor_of(grads: list[torch.Tensor], device: torch.device) -> Executor:
    """That of parameters that have these gradients; it has looked at them."""
    params = [nn.Parameter(torch.zeros_like(grad, device=device)) for grad in grads]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.to(device)
    optimizer = AdamW(params)
    plan = Plan(optimizer.param_groups, optimizer.state)
    assert plan.look(optimizer.param_groups)
    (executor,) = plan._on_gpu.values()
    return executor


@pytest.mark.parametrize("unscale", [1.0, 1 / 3, 2.0**-20])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", -10, 3),
        ("float32", -149, 127),
        ("float64", -300, 200),
        ("float16", -24, 14),
    ],
)
def test_the_sum_is_within_its_bound(
    dtype: str, low: int, high: int, unscale: float, device: torch.device
) -> None:
    """Of all rows, and of some."""
    grads = [random(n, dtype, low, high) for n in SIZES]
    executor = executor_of(grads, device)
    for chosen in (slice(None), slice(0, None, 2), slice(1, 2)):
        rows = np.zeros(len(SIZES), np.bool_)
        rows[chosen] = True
        exact = Fraction(0)
        for grad in grads[chosen]:
            scaled = grad.numpy().astype("float64" if dtype == "float64" else "float32")
            scaled = scaled * scaled.dtype.type(np.float32(unscale))
            exact += sum(map(Fraction, (scaled.astype("float64") ** 2).tolist()), Fraction(0))
        value, bound = executor.square_sum(rows, float(np.float32(unscale)))()
        assert abs(Fraction(value) - exact) <= Fraction(bound)
        assert bound <= value * 2.0**-50


@pytest.mark.parametrize(
    ("shares", "value"),
    [
        ([[2.0**53, 1.5], [1.0, 0.0]], 2.0**53 + 2),
        ([[math.inf, math.nan], [1.0, 0.0]], math.inf),
        ([[math.nan, math.nan], [math.inf, math.nan]], math.nan),
        ([[0.0, 0.0]], 0.0),
    ],
)
def test_what_programs_have_found(shares: list[list[float]], value: float) -> None:
    found, bound = total(np.array(shares))
    assert np.array_equal(found, value, equal_nan=True)
    assert math.isfinite(bound)


def test_the_error_of_the_smallest_sums_is_not_known() -> None:
    assert total(np.array([[2.0**-900, 0.0]]))[1] == math.inf


@pytest.fixture
def mesh(device: torch.device, tmp_path: Path) -> Iterator[Any]:
    """Of this process alone."""
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
    yield lambda where: init_device_mesh(where.type, (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_sharded_gradients_are_clipped_where_they_are(
    unscale: bool, exactly: bool, device: torch.device, mesh: Any, copied: Copied
) -> None:
    """Some of them, beside whole ones; only where the sum is in doubt are they copied."""
    copied.in_doubt(exactly)

    def scenario(where: torch.device) -> Iterator[Any]:
        plain = weights([(3,), (70, 5), (0,), (8, 8)], where, torch.float32)
        placements = [None, Shard(0), Replicate(), Shard(1)]
        params = [
            p if placed is None else nn.Parameter(distribute_tensor(p.data, mesh(where), [placed]))
            for p, placed in zip(plain, placements, strict=True)
        ]
        optimizer = AdamW(params, lr=0.1, max_grad_norm=0.5, moments="int8")
        for t in range(4):
            give(plain, t, missing=(0,) if t == 2 else ())
            for p, twin, placed in zip(params, plain, placements, strict=True):
                if placed is not None and twin.grad is not None:
                    p.grad = distribute_tensor(twin.grad, mesh(where), [placed])
            if unscale:
                optimizer.grad_scale = torch.tensor([8.0], device=where)
            optimizer.step()
            yield [optimizer.last_grad_norm, [local(p) for p in params]]

    assert_same(scenario, device)
    assert bool(copied.sizes) == exactly


def test_the_first_step_that_clips_compiles_nothing(device: torch.device, mesh: Any) -> None:
    """Where the host tells the device to clip, all steps are compiled for it."""
    param = nn.Parameter(
        distribute_tensor(torch.ones(100, device=device), mesh(device), [Shard(0)])
    )
    optimizer = AdamW([param], max_grad_norm=1.0)
    compiled = []
    for size in (1e-3, 1.0):
        param.grad = torch.full_like(param, size)
        optimizer.step()
        assert optimizer._plan
        (executor,) = optimizer._plan._on_gpu.values()
        compiled.append(executor._launches._compiled.copy())
    assert compiled == [{False}, {False}]


def test_all_devices_begin_before_one_is_waited_for() -> None:
    told = []

    class Device:
        def square_sum(self, rows: Any, unscale: float) -> Any:
            told.append("begun")
            return lambda: told.append("waited") or (4.5, 0.0)

        def gradients(self, rows: Any) -> list[torch.Tensor]:
            raise AssertionError("the sum is exact")

    nothing = native.table(0)
    some = np.ones(1, np.bool_)
    parts = [gradnorm.Part(None, nothing, [(Device(), some)] * 2)] * 2
    assert gradnorm.squared_norm(parts, 1.0) == 18.0
    assert told == ["begun"] * 4 + ["waited"] * 4


def local(param: torch.Tensor) -> np.ndarray:
    whole = param.to_local() if hasattr(param, "to_local") else param
    return whole.detach().cpu().numpy().copy()
