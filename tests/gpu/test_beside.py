"""Parameters whose state is on the host, beside those that kernels step on the same device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from devices import Copied, assert_same, give, weights
from torch import nn

from adamas.torch import AdamW
from adamas.torch.gpu import chunks, offload
from adamas.torch.gpu.executor import Executor
from adamas.torch.gpu.offload import Offload
from adamas.torch.gpu.ring import Ring

pytestmark = pytest.mark.gpu

SHAPES = [(3,), (70, 5), (0,), (33, 64), (2500,)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of a tensor."""
    monkeypatch.setattr(offload, "CHUNK", 4096)
    monkeypatch.setattr(chunks, "SMALL", 600)


def values(param: torch.Tensor) -> np.ndarray:
    return param.detach().cpu().numpy().copy()


@pytest.mark.parametrize("away", [(0,), (1,), (0, 1)])
def test_a_gradient_may_lie_in_a_parameter_of_another_group(
    away: tuple[int, ...], device: torch.device
) -> None:
    def scenario(where: torch.device) -> Iterator[Any]:
        one, other = weights([(64, 64), (64, 64)], where, torch.float32)
        groups: list[dict[str, Any]] = [{"params": [one]}, {"params": [other]}]
        for i in away:
            groups[i]["offload"] = "cpu"
        optimizer = AdamW(groups, lr=0.1)
        for t in range(3):
            give([one, other], t)
            written, read = (one, other) if t % 2 else (other, one)
            read.grad = written.detach()
            optimizer.step()
            yield [values(one), values(other)]

    assert_same(scenario, device)


@pytest.mark.parametrize("away", [(0,), (1,), (0, 1)])
def test_overlapping_parameters_are_refused(away: tuple[int, ...], device: torch.device) -> None:
    whole = nn.Parameter(torch.ones(64, 64, device=device))
    groups: list[dict[str, Any]] = [
        {"params": [whole]},
        {"params": [nn.Parameter(whole.detach()[:3])]},
    ]
    for i in away:
        groups[i]["offload"] = "cpu"
    optimizer = AdamW(groups)
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step()
    assert whole.eq(1).all()
    assert not optimizer.state


@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_gradients_are_clipped_where_they_are(
    unscale: bool, exactly: bool, device: torch.device, copied: Copied
) -> None:
    """Only where their sum is in doubt are they copied before the step."""
    copied.in_doubt(exactly)

    def scenario(where: torch.device) -> Iterator[Any]:
        params = weights(SHAPES, where, torch.float32)
        groups = [{"params": params[::2], "offload": "cpu"}, {"params": params[1::2]}]
        optimizer = AdamW(groups, lr=0.1, max_grad_norm=0.5, moments="int8")
        for t in range(4):
            give(params, t, missing=(0,) if t == 2 else ())
            if unscale:
                optimizer.grad_scale = torch.tensor([8.0], device=where)
            optimizer.step()
            yield [optimizer.last_grad_norm, list(map(values, params))]

    assert_same(scenario, device)
    assert bool(copied.sizes) == exactly


def test_kernels_are_launched_before_the_host_steps_and_not_waited_for(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def telling(kind: Any, then: Callable[..., Any]) -> Callable[..., Any]:
        def tell(*args: Any) -> Any:
            told.append(kind.__name__)
            return then(*args)

        return tell

    for kind, name in ((Ring, "begin"), (Executor, "step"), (Offload, "step")):
        monkeypatch.setattr(kind, name, telling(kind, getattr(kind, name)))
    params = weights(SHAPES, device, torch.float32)
    optimizer = AdamW([{"params": params[:2], "offload": "cpu"}, {"params": params[2:]}])
    give(params, 0)
    optimizer.step()
    assert told == ["Ring", "Executor", "Offload"]
