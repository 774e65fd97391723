"""Gradients through steps: torch.optim's, with ``differentiable=True``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from beside import RULES, Rule, each_input, for_torch, normal, rules
from torch import Tensor
from torch.testing._internal.common_optimizers import OptimizerInput


def unrolled(rule: Rule, leaves: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """A number that depends on all that came of some steps, which autograd has recorded.

    Args:
        rule: the optimizer.
        leaves: the parameter and its moments at the beginning, and a gradient that enters all.
        options: of the optimizer.
    """
    p = leaves["param"].clone()
    optimizer = rule([p], differentiable=True, **options)
    names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if options.get("amsgrad") else [])]
    optimizer.state[p] = {"step": torch.tensor(10.0, dtype=torch.float64)}
    optimizer.state[p] |= {key: leaves[key].clone() for key in names}
    # Over several steps torch's AMSGrad cannot be differentiated: it changes what autograd saved.
    for t in range(1 if options.get("amsgrad") else 4):
        p.grad = leaves["grad"] * (t - 1.5) + 0.1 * p
        optimizer.step()
    outcome = [p, *(optimizer.state[p][key] for key in names)]
    return sum(((i + 2) * x.sin()).sum() for i, x in enumerate(outcome))


def leaves() -> dict[str, Tensor]:
    made = {
        "param": normal((6,), torch.float64, 1),
        "grad": normal((6,), torch.float64, 2),
        "exp_avg": normal((6,), torch.float64, 3),
        "exp_avg_sq": normal((6,), torch.float64, 4).square() + 0.1,
        "max_exp_avg_sq": normal((6,), torch.float64, 5).square() + 0.1,
    }
    return {key: value.requires_grad_() for key, value in made.items()}


@each_input
def test_gradients_through_steps(name: str, given: OptimizerInput) -> None:
    rule, info = RULES[name]
    options = copy.deepcopy(given.kwargs)
    gradients = []
    for one, own in ((rule, options), (info.optim_cls, for_torch(options))):
        made = leaves()
        used = list(made.values())[: 5 if options.get("amsgrad") else 4]
        gradients.append(torch.autograd.grad(unrolled(one, made, own), used))
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@rules
@pytest.mark.parametrize("option", ["lr", "beta1", "beta2", "weight_decay"])
def test_gradients_with_respect_to_hyperparameters(name: str, option: str) -> None:
    rule, info = RULES[name]
    gradients = []
    for one in (rule, info.optim_cls):
        numbers = {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3}
        given: dict[str, Any] = {
            key: torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()
        }
        given[option].requires_grad_()
        betas = given["beta1"], given["beta2"]
        options = {"lr": given["lr"], "betas": betas, "weight_decay": given["weight_decay"]}
        gradients += torch.autograd.grad(unrolled(one, leaves(), options), given[option])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=0)


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_recorded_hyperparameters_step_by_the_same_bits(
    name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    rule, _ = RULES[name]
    numbers = {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3}
    found = []
    for recorded in (False, True):
        given: dict[str, Any] = {
            key: torch.full(shape, value, dtype=torch.float64, requires_grad=recorded)
            for key, value in numbers.items()
        }
        betas = given["beta1"], given["beta2"]
        stepped = normal((50,), dtype, 1).requires_grad_()
        stepped = stepped.clone() if recorded else stepped
        optimizer = rule(
            [stepped],
            lr=given["lr"],
            betas=betas,
            weight_decay=given["weight_decay"],
            differentiable=recorded,
        )
        for t in range(5):
            stepped.grad = normal((50,), dtype, 10 + t)
            optimizer.step()
        found.append(stepped.detach().clone())
    assert torch.equal(*found)
