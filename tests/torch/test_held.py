"""What an optimizer says that it holds in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adamas.footprint import Line
from adamas.torch import Adam, AdamW, step_in_backward


def made(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(s, dtype=dtype)) for s in ((10, 7), (), (0,), (30,))]


def step(optimizer: Adam, params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()


def test_from_the_first_step_on() -> None:
    params = made()
    optimizer = AdamW([{"params": params[:2]}, {"params": params[2:]}])
    assert optimizer.memory().total == Line("total", 101, 404)
    assert not optimizer.state  # looking makes none
    step(optimizer, params[:2])
    held = optimizer.memory()
    assert held.groups == [
        Line("group 0", 71, 284, 0, 284, 568),
        Line("group 1", 30, 120, 0, 0, 0),
    ]
    assert held.total == Line("total", 101, 404, 0, 284, 568)
    assert str(held).splitlines() == [
        "in kB    weights  master  gradients  moments  total  bytes a param",
        "group 0    0.284   0.000      0.284    0.568  1.136          16.00",
        "group 1    0.120   0.000      0.000    0.000  0.120           4.00",
        "total      0.404   0.000      0.284    0.568  1.256          12.44",
    ]
    optimizer.zero_grad()
    assert optimizer.memory().total == Line("total", 101, 404, 0, 0, 568)


@pytest.mark.parametrize(
    ("dtype", "amsgrad", "size", "moments"),
    [
        (torch.float32, True, 4, 12),
        (torch.float64, False, 8, 16),
        (torch.complex64, True, 8, 24),
    ],
)
def test_dtypes(dtype: torch.dtype, amsgrad: bool, size: int, moments: int) -> None:
    params = made(dtype)
    optimizer = Adam(params, amsgrad=amsgrad)
    step(optimizer, params)
    expected = Line("total", 101, 101 * size, 0, 101 * size, 101 * moments)
    assert optimizer.memory().total == expected


def test_masters_and_compact_moments() -> None:
    """By the keys of ``formats.slots``."""
    params = made(torch.bfloat16)
    optimizer = Adam(params)
    optimizer.state[params[0]] = {
        "step": 3,
        "words": torch.zeros(10, 7, 2, dtype=torch.uint8),
        "scales": torch.zeros(2, 3, dtype=torch.bfloat16),
        "remainder": torch.zeros(10, 7, dtype=torch.uint8),
    }
    optimizer.state[params[3]] = {"master": torch.zeros(30), "exp_avg": torch.zeros(30)}
    expected = Line("total", 101, 202, 70 + 120, 0, 140 + 12 + 120)
    assert optimizer.memory().total == expected


def test_gradients_that_are_freed_do_not_count() -> None:
    layer = nn.Linear(8, 4)
    optimizer = AdamW(layer.parameters())
    step_in_backward(optimizer)
    layer(torch.ones(2, 8)).sum().backward()
    assert optimizer.memory().total == Line("total", 36, 144, 0, 0, 288)
