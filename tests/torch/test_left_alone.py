"""Parameters without a gradient, which a step leaves alone, whatever they and their states are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adamas.torch import SGD, Adam, AdamW, RMSprop, convert_state_dict


def frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


@pytest.mark.parametrize("rule", [AdamW, SGD, RMSprop])
@pytest.mark.parametrize(
    "param",
    [
        frozen(torch.zeros(8, dtype=torch.uint8)),
        frozen(torch.ones(1).expand(5)),
        frozen(torch.eye(2).to_sparse()),
        frozen(torch.ones(1000)),
    ],
    ids=["whole numbers", "expanded", "sparse", "usual"],
)
def test_a_frozen_one_whose_state_was_asked_for(param: nn.Parameter, rule: type[Any]) -> None:
    """Asking makes an empty one, as in torch.optim, and a step does not fill it."""
    other = nn.Parameter(torch.ones(2))
    optimizer = rule([param, other], lr=0.1)
    for state in ({}, {"tag": "its owner's"}):
        optimizer.state[param].update(state)
        other.grad = torch.ones(2)
        optimizer.step()
        assert optimizer.state[param] == state
    assert optimizer.state[other]["step"] == 2


@pytest.mark.parametrize(
    "replace",
    [
        lambda p: torch.empty(0),
        lambda p: p.to(torch.int8),
        lambda p: torch.ones(7),
        lambda p: torch.ones(1).expand(p.shape),
    ],
    ids=["released", "quantized", "of another shape", "expanded"],
)
def test_one_that_changes_after_its_last_gradient(replace: Callable[[Tensor], Tensor]) -> None:
    first, second = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = Adam([first, second])
    first.grad, second.grad = torch.ones(2, 2), torch.ones(2, 2)
    optimizer.step()
    first.grad = None
    kept = {key: value.clone() for key, value in tensors(optimizer, first).items()}
    first.requires_grad_(False)  # or torch would refuse whole numbers
    first.data = replace(first.data)
    for _ in range(2):
        optimizer.step()
    assert optimizer.state[second]["step"] == 3
    assert all(torch.equal(kept[key], value) for key, value in tensors(optimizer, first).items())
    first.data = torch.ones(2, 2)
    first.grad = torch.ones(2, 2)
    optimizer.step()
    assert optimizer.state[first]["step"] == 2


def tensors(optimizer: Adam, param: nn.Parameter) -> dict[str, Tensor]:
    return {k: v for k, v in optimizer.state[param].items() if isinstance(v, Tensor)}


def test_a_gradient_after_others_is_seen() -> None:
    """Of a parameter that had a state of its owner's, which a step cannot go on from."""
    late, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = AdamW([late, other])
    optimizer.state[late]  # makes an empty one
    for _ in range(2):
        other.grad = torch.ones(2)
        optimizer.step()
    late.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[late]["step"] == 1
    assert optimizer.state[other]["step"] == 3


@pytest.mark.parametrize("state", [{"step": 1, "words": torch.ones(2)}, {"step": 1, "words": 3}])
def test_a_state_that_no_step_knows(state: dict[str, Any]) -> None:
    idle, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = AdamW([idle, other])
    optimizer.state[idle] = state
    for _ in range(2):
        other.grad = torch.ones(2)
        optimizer.step()
    assert optimizer.state[idle] is state


@pytest.mark.parametrize("before", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("after", ["float32", "bfloat16", "int8", "int4"])
def test_a_group_has_one_format(before: str, after: str) -> None:
    """That of those of its parameters, too, that have no gradient when it changes."""
    params = [nn.Parameter(torch.ones(20)) for _ in range(2)]
    optimizer = Adam(params, moments=before)
    for p in params:
        p.grad = torch.ones(20)
    optimizer.step()
    optimizer.param_groups[0]["moments"] = after
    params[1].grad = None
    optimizer.step()
    keys = [set(optimizer.state[p]) for p in params]
    assert keys[0] == keys[1]
    result, _ = convert_state_dict(optimizer.state_dict())
    assert {state["exp_avg"].shape for state in result["state"].values()} == {(20,)}
