"""What a step finds out on the device beforehand, beside the same on the CPU: all bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import assert_same, give, numbers, params_of, record, set_grad, weights
from torch import nn

from adamas.torch import Adam, AdamW
from adamas.torch.gpu import launches, prepare
from adamas.torch.gpu.jit import Launcher

pytestmark = pytest.mark.gpu

SHAPES = [(3,), (0,), (70, 5), (), (8, 8), (0,)]


def scaled(optimizer: Adam, scale: float | None, found: float | None) -> None:
    """What ``torch.amp.GradScaler`` sets for the time of a step."""
    device = params_of(optimizer)[0].device
    for name, value in (("grad_scale", scale), ("found_inf", found)):
        if value is not None:
            setattr(optimizer, name, torch.tensor([value], device=device))
        elif hasattr(optimizer, name):
            delattr(optimizer, name)


OPTIONS: dict[str, dict[str, Any]] = {
    "clips": {"max_grad_norm": 0.5},
    "measures": {"max_grad_norm": math.inf},
    "skips": {"skip_nonfinite": True},
    "captures": {"capturable": True},
    "captures, clips, skips": {"capturable": True, "max_grad_norm": 0.5, "skip_nonfinite": True},
}
DTYPES: dict[str, Any] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "mixed": [torch.float32, torch.float16, torch.complex64, torch.float64] + [torch.bfloat16] * 2,
}


PAIRS = [("clips", "mixed"), ("measures", "bfloat16"), ("skips", "float32")]
PAIRS += [("captures", "float64"), ("captures, clips, skips", "mixed")]


@pytest.mark.parametrize(("options", "dtypes"), PAIRS)
def test_guarded_steps(options: str, dtypes: str, device: torch.device) -> None:
    """With gradients that come and go, empty tensors, two groups, and scales, 0 and inf too."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights(SHAPES, device, DTYPES[dtypes])
        groups: list[dict[str, Any]] = [
            {"params": params[:2], "lr": torch.tensor(0.05), "weight_decay": 0.1},
            {"params": params[2:], "betas": (0.8, torch.tensor(0.95)), "amsgrad": True},
        ]
        optimizer = AdamW(groups, lr=torch.tensor(0.1), **OPTIONS[options])
        for t in range(7):
            give(params, t, missing=[(), (0,), (1, 2), (), (4, 5), (), ()][t], scale=3.0)
            if t in (2, 5):
                params[4].grad[1, 1] = math.inf if t == 2 else math.nan
            scales = (3.0, 7.0, None, 3.0, 1e-30, 3.0, 65536.0)
            scaled(optimizer, scales[t], (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, math.inf)[t])
            optimizer.step()
            optimizer.param_groups[0]["lr"].fill_(0.05 / (t + 1))
            yield record(optimizer)

    last = assert_same(scenario, device)[-1]
    assert last["skipped"] == (4 if "skips" in options else 2)


def test_from_one_way_to_count_to_another(device: torch.device) -> None:
    """On the host, on the device and back, from one step to the next, each parameter its own."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights(SHAPES, device, torch.bfloat16)
        optimizer = Adam(params[:5], lr=0.1, weight_decay=0.1, moments="int8")
        for t in range(8):
            give(params, t, missing=[(), (0, 1), (2,)][t % 3])
            optimizer.param_groups[0]["capturable"] = t in (1, 2)
            optimizer.skip_nonfinite = t in (4, 6)
            optimizer.max_grad_norm = 0.5 if t in (2, 3, 4) else None
            scaled(optimizer, 2.0 if t == 7 else None, 0.0 if t in (6, 7) else None)
            if t == 5:
                optimizer.add_param_group({"params": params[5:]})
            if t == 4:
                params[2].grad[0, 0] = math.inf
            optimizer.step()
            yield record(optimizer), float(optimizer.memory().total.gradients)

    assert_same(scenario, device)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_rows_22_to_24_with_a_gradient_scaler(
    options: dict[str, Any], device: torch.device
) -> None:
    """REGRESSIONS 22 to 24: unscaled once, also by the trainer, and steps skipped do not count."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights(SHAPES, device)
        optimizer = AdamW(params, lr=0.1, **options)
        scaler = torch.amp.GradScaler(device.type, init_scale=4.0, growth_interval=3)
        scaler.scale(torch.ones((), device=device))  # which makes the scale
        for t in range(6):
            give(params, t, missing=[(), (0,)][t % 2], scale=4.0)
            if t in (1, 4):
                params[2].grad[0, 0] = math.nan
            if t in (2, 4):
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            yield record(optimizer), scaler.get_scale()

    last, _ = assert_same(scenario, device)[-1]
    assert (last["skipped"], last["step of 2"]) == (2, 4)


def test_row_25_gradients_that_become_infinite_after_unscaling(device: torch.device) -> None:
    """REGRESSIONS 25: what the scaler has found is what counts; what it has not is stepped."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(70,)], device)
        optimizer = Adam(params, lr=0.1)
        give(params, 0)
        params[0].grad[3] = math.inf
        scaled(optimizer, None, 0.0)
        optimizer.step()
        yield record(optimizer)

    (found,) = assert_same(scenario, device)
    assert (found["skipped"], found["step of 0"]) == (0, 1)


@pytest.mark.parametrize("capturable", [False, True])
def test_row_17_lr_zero(capturable: bool, device: torch.device) -> None:
    """REGRESSIONS 17: no NaN, and no movement."""
    (p,) = weights([(70,)], device)
    before = p.detach().clone()
    optimizer = AdamW([p], lr=torch.tensor(0.0, device=device), capturable=capturable)
    give([p], 0)
    optimizer.step()
    assert torch.equal(p, before)


NORMS = {
    "huge": lambda g: g.double() * 1e180,
    "tiny": lambda g: g.double() * 1e-180,
    "denormal": lambda g: torch.full_like(g, 2.0**-149),
    "zero": torch.zeros_like,
    "one element": lambda g: g * (torch.arange(g.numel()) == 3),
    "a tie of 32 bits": lambda g: torch.where(
        torch.arange(g.numel()) < 2, torch.tensor([1.0, 2.0**-16])[torch.arange(g.numel()) % 2], 0.0
    ),
    "past a tie": lambda g: torch.where(
        torch.arange(g.numel()) < 3,
        torch.tensor([1.0, 2.0**-16, 2.0**-60])[torch.arange(g.numel()) % 3],
        0.0,
    ),
    "overflow": lambda g: g.double() * 1e300,
    "not a number": lambda g: g * math.nan,
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, device: torch.device) -> None:
    """Of large and small gradients, and of sums half way between two of 32 bits."""

    def scenario(device: torch.device) -> Iterator[Any]:
        grad = NORMS[name](numbers((600,), 5))
        param = nn.Parameter(numbers((600,), 6, grad.dtype).to(device))
        optimizer = Adam([param], lr=0.1, max_grad_norm=0.7)
        set_grad(param, grad.to(device))
        for skips in (False, True):
            optimizer.skip_nonfinite = skips
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


@pytest.mark.parametrize("programs", [1024, 2])
def test_the_norm_of_many_chunks(
    programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program each, or few which take several."""
    for name in ("CHUNK", "CODED_CHUNK"):
        monkeypatch.setattr(launches, name, 64)
    monkeypatch.setattr(prepare, "MOST_PROGRAMS", programs)

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(700,), (130,), (65,)], device, [torch.float32, *[torch.bfloat16] * 2])
        optimizer = Adam(params, lr=0.1, max_grad_norm=0.7, skip_nonfinite=True)
        for t in range(2):
            give(params, t)
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


def test_more_parameters_than_a_program_takes(device: torch.device) -> None:
    """Of those that find coefficients, and of chunks those that place gradients."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(1,)] * 131, device)
        optimizer = Adam(params, lr=0.1, capturable=True)
        give(params, 0, missing=(0, 129))
        optimizer.step()
        yield record(optimizer)

    assert_same(scenario, device)


def test_reading_and_setting_what_was_found(device: torch.device) -> None:
    """Counts that a trainer sets go on from there."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(5,)], device)
        optimizer = Adam(params, skip_nonfinite=True)
        for t in range(4):
            give(params, t, scale=math.inf if t % 2 else 1.0)
            optimizer.step()
            if t == 1:
                optimizer.skipped_steps = 10
            yield record(optimizer)
        optimizer.skip_nonfinite = False
        optimizer.step()
        yield record(optimizer)

    assert assert_same(scenario, device)[-1]["skipped"] == 11


def test_a_step_count_may_be_a_tensor_on_the_device(device: torch.device) -> None:
    """REGRESSIONS 34: as torch.optim keeps it with capturable."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(5,), (3,)], device)
        optimizer = Adam(params, capturable=True)
        give(params, 0)
        optimizer.step()
        for t, step in enumerate((torch.tensor(7.0), torch.tensor(9), torch.tensor(11.0).double())):
            optimizer.state[params[1]]["step"] = step.to(device)
            give(params, t)
            optimizer.step()
            yield record(optimizer)

    assert assert_same(scenario, device)[-1]["step of 1"] == 12


def test_row_45_no_step_asks_a_tensor_for_a_number(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGRESSIONS 45: each such question would wait for the device."""
    params = weights([(70,), (0,), (5, 3)], device)
    optimizer = AdamW(params, lr=0.1, max_grad_norm=1.0, skip_nonfinite=True)
    asked: list[str] = []
    monkeypatch.setattr(Launcher, "__call__", lambda *_, **__: None)  # Triton's interpreter asks
    for t in range(4):
        give(params, t, missing=(2,) if t == 2 else ())
        scaled(optimizer, 4.0, 0.0)
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__float__", "__bool__", "__int__", "cpu"):
                patch.setattr(torch.Tensor, name, lambda *_, name=name: asked.append(name))
            optimizer.step()
    assert asked == []
