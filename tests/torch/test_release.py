"""Stepping during backward: the bits of ordinary steps, and no gradient left."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adamas.torch import SGD, Adam, AdamW, release, step_in_backward


class Branching(nn.Module):
    """A network with a tied weight, one that is used now and then, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)
        self.sometimes = nn.Linear(6, 6)
        self.bf16 = nn.Parameter(torch.randn(6, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)

    def forward(self, x: torch.Tensor, other: bool) -> torch.Tensor:
        x = torch.tanh(self.first(torch.tanh(self.first(x)))) * self.bf16 + self.frozen
        return self.last(self.sometimes(x) if other else x)


def run(rule: type[Adam], in_backward: bool, accumulate: int, **options: Any) -> dict[str, Any]:
    model = Branching()
    optimizer = rule(model.named_parameters(), lr=0.05, **options)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)
    stepper = step_in_backward(optimizer, accumulate) if in_backward else None
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    for step in range(10):
        if step == 6:
            saved = optimizer.state_dict()
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
            optimizer.load_state_dict(saved)
        if step == 8 and stepper:
            stepper.remove()
        for part in range(accumulate):
            torch.manual_seed(100 * step + part)
            model(torch.randn(4, 6), other=(step + part) % 3 == 0).square().sum().backward()
        if stepper and step < 8 and accumulate == 1:
            assert all(p.grad is None for p in model.parameters())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert len(calls) == 10
    return model.state_dict() | {
        f"{i}.{key}": torch.as_tensor(value)
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize(
    ("rule", "options"), [(Adam, {"amsgrad": True}), (AdamW, {"weight_decay": 0.1})]
)
def test_the_bits_of_ordinary_steps(
    rule: type[Adam], options: dict[str, Any], accumulate: int
) -> None:
    expected = run(rule, False, accumulate, **options)
    found = run(rule, True, accumulate, **options)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def one_parameter(**options: Any) -> tuple[nn.Parameter, Adam]:
    p = nn.Parameter(torch.ones(2))
    return p, Adam([("weight", p)], lr=0.5, **options)


def test_each_parameter_counts_its_own_backward_passes() -> None:
    p, optimizer = one_parameter()
    step_in_backward(optimizer, accumulate=2)
    for number in range(6):
        assert (number % 2 == 0) == (p.grad is None)
        p.sum().backward()
        if number % 2:
            optimizer.step()
    assert optimizer.state[p]["step"] == 3


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_batch_that_is_thrown_away_does_not_count(accumulate: int, to_none: bool) -> None:
    p, optimizer = one_parameter()
    step_in_backward(optimizer, accumulate)
    q, other = one_parameter()
    for thrown in (False, True, True):
        if thrown:
            (p.sum() * 7).backward()
            optimizer.zero_grad(to_none)
        for part in range(accumulate):
            for one in (p, q):
                (one.sum() * (part + 1)).backward()
            assert (p.grad is None) == (part == accumulate - 1)
        for each in (optimizer, other):
            each.step()
            each.zero_grad()
        assert torch.equal(p, q)


def test_a_backward_that_fails_half_way_does_not_count() -> None:
    p, optimizer = one_parameter()
    step_in_backward(optimizer, accumulate=2)
    earlier = torch.ones(2, requires_grad=True)
    broken = earlier * 1
    broken.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (broken * p).sum().backward()
    for _ in range(2):
        optimizer.zero_grad()
        p.sum().backward()
    assert p.tolist() == [1, 1]
    p.sum().backward()
    assert p.tolist() == [0.5, 0.5]


def twice(p: nn.Parameter, optimizer: Adam) -> None:
    p.sum().backward()


def in_a_checkpoint(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.step()
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        x = checkpoint(lambda x: x * p, x, use_reentrant=True)
    x.sum().backward()


def written_later(p: nn.Parameter, optimizer: Adam) -> None:
    p.grad = torch.zeros(2)
    optimizer.step()


def scaled(p: nn.Parameter, optimizer: Adam) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)


@pytest.mark.parametrize(
    ("spoil", "steps", "message"),
    [
        (twice, 1, r"weight got a gradient again .* before optimizer.step\(\)"),
        (in_a_checkpoint, 2, "weight got a gradient again .*use_reentrant=False"),
        (written_later, 1, "weight has a gradient though backward has stepped it.*FSDP2"),
        (scaled, 1, "gradient scaler"),
    ],
)
def test_nothing_is_stepped_twice_or_scaled(
    spoil: Callable[[nn.Parameter, Adam], None], steps: int, message: str
) -> None:
    p, optimizer = one_parameter()
    step_in_backward(optimizer)
    p.sum().backward()
    with pytest.raises(RuntimeError, match=message):
        spoil(p, optimizer)
    assert optimizer.state[p]["step"] == steps


def test_groups_are_those_of_the_optimizer_now() -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    optimizer = Adam([{"params": [p], "lr": 0.5**i} for i, p in enumerate(params)])
    step_in_backward(optimizer)
    for popped in (False, True):
        if popped:
            optimizer.param_groups.pop(1)
        sum(params).backward()
        optimizer.step()
    assert [optimizer.state[p]["step"] for p in params] == [2, 1, 2]
    assert [p.item() for p in params] == [-1.0, 0.5, 0.5]
    assert params[1].grad is not None


def test_another_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="the optimizer must be adamas's, got AdamW"):
        step_in_backward(torch.optim.AdamW([nn.Parameter(torch.ones(2))]))  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "value"), [("max_grad_norm", 1.0), ("skip_nonfinite", True)])
def test_options_set_later_are_refused(option: str, value: Any) -> None:
    p, optimizer = one_parameter()
    step_in_backward(optimizer)
    setattr(optimizer, option, value)
    with pytest.raises(ValueError, match=f"{option}={value} needs the gradients of all"):
        p.sum().backward()
    assert p.tolist() == [1, 1]


def test_a_state_that_has_to_be_made_anew_is_the_optimizers() -> None:
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    here, there = Adam([p], lr=0.1), Adam([q], lr=0.1)
    step_in_backward(here)
    for number in range(4):
        here.param_groups[0]["amsgrad"] = there.param_groups[0]["amsgrad"] = number > 0
        for one in (p, q):
            (one.sum() / (number + 1)).backward()
        here.step()
        there.step()
        there.zero_grad()
    assert torch.equal(p, q)
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(here.state[p][key]))
        for key, value in there.state[q].items()
    )


def test_a_gradient_is_freed_before_the_next_is_made() -> None:
    layers = [nn.Linear(50, 50, bias=False) for _ in range(8)]
    optimizer = Adam(nn.ModuleList(layers).parameters())
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def count(param: torch.Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(param.grad))
        most = max(most, sum(grad() is not None for grad in alive))

    for layer in layers:
        layer.weight.register_post_accumulate_grad_hook(count)
    step_in_backward(optimizer)
    x = torch.randn(3, 50)
    for layer in layers:
        x = layer(x)
    x.sum().backward()
    gc.collect()
    assert len(alive) == 8
    assert most == 1


@pytest.mark.parametrize(
    ("options", "accumulate", "message"),
    [
        ({"max_grad_norm": 1.0}, 1, "max_grad_norm=1.0 needs the gradients of all parameters"),
        ({"skip_nonfinite": True}, 1, "skip_nonfinite=True needs the gradients"),
        ({}, 0, "accumulate must be a whole number of at least 1, got 0"),
        ({}, 1.5, "accumulate must be"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], accumulate: Any, message: str) -> None:
    optimizer = Adam([nn.Parameter(torch.ones(1))], **options)
    with pytest.raises(ValueError, match=message):
        step_in_backward(optimizer, accumulate)
    assert not optimizer._optimizer_step_post_hooks


def test_model_and_optimizer_are_given_back() -> None:
    """Torch would not find a cycle through a parameter's hooks."""
    model = nn.Linear(2, 2)
    optimizer = Adam(model.parameters())
    step_in_backward(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    weight = weakref.ref(model.weight)
    del model, optimizer
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("named", [True, False])
def test_statistics_of_steps_during_backward(named: bool) -> None:
    found = []
    for in_backward in (False, True):
        model = Branching()
        params = [[*model.first.named_parameters()], [*model.last.named_parameters()]]
        groups = [{"params": p if named else [one for _, one in p]} for p in params]
        optimizer = Adam(groups, lr=0.05)
        if in_backward:
            step_in_backward(optimizer)
        for measured in (False, True, True):
            if measured:
                optimizer.measure_next_step()
            torch.manual_seed(1)
            model(torch.randn(4, 6), other=False).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(optimizer.statistics())
    assert found[0].parameters == found[1].parameters
    assert found[0].groups == found[1].groups
    assert len({each.name for each in found[0].parameters}) == 4 - 2 * named


def test_a_gradient_that_is_still_copied_off_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by FSDP2 with CPUOffloadPolicy, in torch before 2.13: the stream there is waited for."""
    param = nn.Parameter(torch.ones(3))
    optimizer = SGD([param], lr=0.5)
    step_in_backward(optimizer)

    def arrive() -> None:
        assert param.grad is not None
        param.grad.fill_(4.0)

    param.device_mesh = SimpleNamespace(device_type="cuda")  # type: ignore[attr-defined]
    stream = SimpleNamespace(synchronize=arrive)
    module = SimpleNamespace(current_stream=lambda: stream)
    monkeypatch.setattr(release, "is_sharded", lambda _: True)
    monkeypatch.setattr(torch, "get_device_module", {"cuda": module}.__getitem__)
    param.sum().backward()
    optimizer.step()
    assert param.tolist() == [-1.0] * 3


def test_an_error_during_backward_names_the_parameter() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = Adam(model.parameters())
    step_in_backward(optimizer)
    optimizer.state[model[1].weight] = {"step": 1, "exp_avg": torch.zeros(3)}
    with pytest.raises(ValueError, match="the state of parameter 2 of group 0 must"):
        model(torch.ones(1, 2)).sum().backward()
