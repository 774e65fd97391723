"""Every learning rate scheduler of PyTorch, and averages of weights: the same as torch.optim's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import RULES, STEPS, Both, Rule, both, normal, parameters, rules
from torch import nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

LOSSES = [3.0, 2.0, 2.0, 2.0, 1.9, 1.9, 1.9, 1.9, 1.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


class Halving(lr_scheduler.LRScheduler):
    """One that a user wrote."""

    def get_lr(self) -> list[float]:
        return [group["lr"] / 2 for group in self.optimizer.param_groups]


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LRScheduler": Halving,
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 11], 0.2),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 9, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 0.1, 4, base_momentum=0.7),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, 20, base_momentum=0.6),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, cooldown=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.StepLR(o, 3)], [5]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=6),
}


def test_every_scheduler_of_torch_has_a_case() -> None:
    assert set(lr_scheduler.__all__) <= set(SCHEDULERS)


@rules
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler(name: str, scheduler: str, tensor: bool) -> None:
    """Rates and momenta are the same to the last bit, also if both are saved half-way."""

    def make(rule: Rule) -> Both:
        params = parameters()
        lrs = [torch.tensor(lr, dtype=torch.float64) if tensor else lr for lr in (0.01, 0.05)]
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": lrs[1]}]
        optimizer = rule(groups, lr=lrs[0])
        schedule = [SCHEDULERS[scheduler](optimizer)]

        def each(t: int) -> None:
            plateau = isinstance(schedule[0], lr_scheduler.ReduceLROnPlateau)
            schedule[0].step(*([LOSSES[t]] if plateau else []))
            if t == STEPS // 2:
                saved = copy.deepcopy((optimizer.state_dict(), schedule[0].state_dict()))
                schedule[0] = SCHEDULERS[scheduler](optimizer)
                optimizer.load_state_dict(saved[0])
                schedule[0].load_state_dict(saved[1])

        return {"optimizer": optimizer, "each": each}

    both(name, make)


SCHEDULES = [
    (name, i, make)
    for name, (_, info) in RULES.items()
    for i, make in enumerate(info.scheduler_inputs)
]


@pytest.mark.parametrize(("name", "number", "schedulers"), SCHEDULES)
def test_every_combination_of_schedulers_of_torch(name: str, number: int, schedulers: Any) -> None:
    def make(rule: Rule) -> Both:
        optimizer = rule(parameters(), lr=0.01)
        made = [scheduler(optimizer) for scheduler in schedulers]

        def each(t: int) -> None:
            for scheduler in made:
                plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
                scheduler.step(*([LOSSES[t]] if plateau else []))

        return {"optimizer": optimizer, "each": each}

    both(name, make)


@rules
@pytest.mark.parametrize(
    "average",
    [
        {},
        {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
        {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
        {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()},
    ],
    ids=["swa", "ema", "multi ema", "multi swa"],
)
def test_averaged_models(name: str, average: dict[str, Any]) -> None:
    averaged = []
    rule, info = RULES[name]
    data = normal((3, 8, 6), torch.float64, 0)
    for one in (rule, info.optim_cls):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 1)
        ).double()
        mean = swa_utils.AveragedModel(model, **average)
        optimizer = one(model.parameters(), lr=0.01)
        schedule = swa_utils.SWALR(optimizer, 0.05, anneal_epochs=3)
        for _, batch in itertools.product(range(4), data):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            mean.update_parameters(model)
            schedule.step()
        swa_utils.update_bn(data, mean)
        averaged.append([value.double() for value in mean.state_dict().values()])
    for a, b in zip(*averaged, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
