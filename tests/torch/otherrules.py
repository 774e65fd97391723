"""Cases of SGD and RMSprop, and how two optimizers are compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from beside import normal
from torch import Tensor, nn

from adamas import formats
from adamas.torch import (
    SGD,
    RMSprop,
)
from adamas.torch.base import Optimizer

Rule = type[Optimizer]
Options = dict[str, Any]

RULES: list[tuple[Rule, Any]] = [(SGD, torch.optim.SGD), (RMSprop, torch.optim.RMSprop)]
rules = pytest.mark.parametrize(("ours", "theirs"), RULES, ids=["SGD", "RMSprop"])
CASES: list[tuple[Rule, Options]] = [
    (SGD, {}),
    (SGD, {"weight_decay": 0.1, "maximize": True}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "dampening": 0.5, "maximize": True}),
    (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    (RMSprop, {}),
    (RMSprop, {"alpha": 0.9, "weight_decay": 0.1, "maximize": True, "eps": 1e-4}),
    (RMSprop, {"momentum": 0.9, "weight_decay": 0.1}),
    (RMSprop, {"centered": True}),
    (RMSprop, {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
]
NAMES = [f"{rule.__name__} {','.join(options) or 'default'}" for rule, options in CASES]
cases = pytest.mark.parametrize(("rule", "options"), CASES, ids=NAMES)
# With an average or two to keep, in any format.
KEPT = [CASES[2], CASES[4], CASES[5], CASES[7]]
kept = pytest.mark.parametrize(("rule", "options"), KEPT, ids=[NAMES[i] for i in (2, 4, 5, 7)])
FORMATS = [
    (torch.float32, None),
    (torch.float64, None),
    (torch.bfloat16, 32),
    (torch.bfloat16, 24),
    (torch.bfloat16, 16),
    (torch.float16, 32),
    (torch.float16, 16),
]
each_format = pytest.mark.parametrize("moments", formats.FORMATS)
SHAPES = [(70, 3), (), (0,), (64,)]


def peer(rule: Rule) -> Any:
    return getattr(torch.optim, rule.__name__)


def made(dtype: torch.dtype = torch.float64, shapes: list[Any] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(normal(shape, dtype, i)) for i, shape in enumerate(shapes)]


def params_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        for i, p in enumerate(params_of(optimizer)):
            p.grad = normal(tuple(p.shape), p.dtype, 100 * t + i + 7)
        optimizer.step()


def tensors(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """Of each parameter, itself and its state but for the step."""
    return [
        {"param": p.detach()} | {k: v for k, v in optimizer.state[p].items() if k != "step"}
        for p in params_of(optimizer)
    ]


def assert_agree(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Within rounding, of which a difference of two averages has the most."""
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            rtol = 1e-4 if a[key].dtype in (torch.float32, torch.complex64) else 1e-10
            largest = float(b[key].abs().max()) if b[key].numel() else 0.0
            torch.testing.assert_close(a[key], b[key], rtol=rtol, atol=rtol * largest)


def bits(tensor: Tensor) -> bytes:
    return (
        tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )


def assert_same_bits(one: Optimizer, other: Optimizer) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert {k: bits(v) for k, v in a.items()} == {k: bits(v) for k, v in b.items()}
    steps = [[o.state[p].get("step") for p in params_of(o)] for o in (one, other)]
    assert steps[0] == steps[1]
