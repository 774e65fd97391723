"""What kernels once stepped otherwise than the core."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from devices import assert_same, give, record, set_grad, weights
from torch import nn

from adamas.torch import Adam
from adamas.torch.gpu import executor, launches, prepare
from adamas.torch.gpu.jit import Launcher
from adamas.torch.gpu.launches import Launches
from adamas.torch.gpu.staging import Staging

pytestmark = pytest.mark.gpu


def pair(device: torch.device, **options: Any) -> tuple[Adam, list[nn.Parameter]]:
    params = weights([(5,), (3,)], device)
    return Adam(params, lr=0.1, **options), params


def scale(optimizer: Adam, value: float, found: Any) -> None:
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.grad_scale = torch.tensor([value], device=device)  # type: ignore[attr-defined]
    is_number = isinstance(found, float)
    optimizer.found_inf = found if is_number else torch.tensor([found], device=device)  # type: ignore[attr-defined]


def assert_steps_by_its_gradients(
    optimizer: Adam, params: list[nn.Parameter], others: list[torch.Tensor]
) -> None:
    """Which lie elsewhere than others, of a step before."""
    grad, m = params[0].grad, optimizer.state[params[0]]["exp_avg"]
    assert grad.data_ptr() not in [other.data_ptr() for other in others]
    expected = 0.9 * m + 0.1 * grad
    optimizer.step()
    assert torch.allclose(m, expected)


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("no memory")


def test_the_scale_in_the_statistics(device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device)
        give(params, 0)
        optimizer.step()
        give(params, 1, missing=(0,), scale=8.0)
        scale(optimizer, 8.0, 0)
        optimizer.step()
        yield [round(p.grad_norm, 4) for p in optimizer.statistics().parameters]

    assert_same(scenario, device)


@pytest.mark.parametrize("found", [0, 1])
def test_a_step_without_any_gradient(found: int, device: torch.device) -> None:
    """Its norm is 0, and it may be skipped."""

    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, max_grad_norm=1.0)
        for t in range(2):
            give(params, t, missing=(0, 1) if t else ())
            scale(optimizer, 2.0, found and t)
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


def test_norms_that_are_kept(device: torch.device) -> None:
    """As trainers do, to write them out at the end of an epoch."""
    optimizer, params = pair(device, max_grad_norm=1.0)
    norms = []
    for t in range(3):
        give(params, t)
        optimizer.step()
        norms.append(optimizer.last_grad_norm)
    assert len({float(norm) for norm in norms}) == 3  # type: ignore[arg-type]


def test_the_norm_after_a_step_that_raised(device: torch.device) -> None:
    """Is that of the last one, and so it is where the next is skipped."""

    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, max_grad_norm=1.0)
        give(params, 0)
        optimizer.step()
        yield record(optimizer)
        optimizer.param_groups[0]["lr"] = -1.0
        give(params, 1)
        with pytest.raises(ValueError, match="lr must be"):
            optimizer.step()
        yield record(optimizer)
        optimizer.param_groups[0]["lr"] = 0.1
        scale(optimizer, 1.0, 1)
        optimizer.step()
        yield record(optimizer)

    assert_same(scenario, device)


def test_statistics_after_a_scheduler(device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, max_grad_norm=1.0)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
        give(params, 0)
        optimizer.step()
        optimizer.param_groups[0]["lr"].fill_(0.01)
        yield [round(p.update_norm, 4) for p in optimizer.statistics().parameters]

    assert_same(scenario, device)


def test_a_measured_step_that_is_skipped(device: torch.device) -> None:
    """The core measures the next that is not."""

    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, skip_nonfinite=True)
        for t in range(2):
            give(params, t, scale=math.inf if t else 1.0)
            if t:
                optimizer.measure_next_step()
            optimizer.step()
        yield [round(p.update_norm, 4) for p in optimizer.statistics().parameters]

    assert_same(scenario, device)


def test_found_inf_as_a_number(device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, max_grad_norm=1.0)
        give(params, 0)
        scale(optimizer, 2.0, 1.0)
        optimizer.step()
        yield record(optimizer)

    assert_same(scenario, device)


@pytest.mark.parametrize("count", [2.5, -2.0, [2.0]])
def test_row_34_counts_that_a_trainer_sets(count: Any, device: torch.device) -> None:
    """REGRESSIONS 34: refused where they count nothing, and read in whatever shape."""

    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, capturable=True)
        give(params, 0)
        optimizer.step()
        optimizer.state[params[1]]["step"] = torch.tensor(count, device=device)
        try:
            optimizer.step()
            yield record(optimizer)
        except ValueError as error:
            yield "must have a step" in str(error)

    assert_same(scenario, device)


def test_row_9_a_count_that_a_trainer_sets_to_a_number(device: torch.device) -> None:
    """REGRESSIONS 9: stale after it was set."""

    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, capturable=True)
        give(params, 0)
        optimizer.step()
        optimizer.state[params[0]]["step"] = 10
        optimizer.step()
        yield record(optimizer)

    assert_same(scenario, device)


def test_the_bytes_of_the_state(device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        optimizer, params = pair(device, capturable=True)
        give(params, 0)
        optimizer.step()
        yield optimizer.memory().total.moments

    assert_same(scenario, device)


@pytest.mark.parametrize("norm", [0.0, -1.0])
def test_a_norm_that_nothing_clips_to(norm: float, device: torch.device) -> None:
    """Refused when it is set later, too."""
    for where in (device, torch.device("cpu")):
        optimizer, params = pair(where, max_grad_norm=1.0)
        optimizer.max_grad_norm = norm
        give(params, 0)
        with pytest.raises(ValueError, match="max_grad_norm must be above 0"):
            optimizer.step()


def test_the_norm_beside_a_parameter_that_is_stepped_apart(device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        gaps = nn.Parameter(torch.ones(3, 4, device=device)[:, ::2])
        (p,) = weights([(70,)], device)
        optimizer = Adam([p, gaps], max_grad_norm=1.0)
        give([p, gaps], 0)
        set_grad(p, torch.linspace(0.1, 0.7, 70, dtype=torch.float64).to(device))
        optimizer.step()
        yield record(optimizer)

    assert_same(scenario, device)


@pytest.mark.parametrize("launch", [1, 2, 3])
def test_an_interrupt_does_not_cut_a_step(
    launch: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel steps the float32, another the bfloat16 parameter; the first places gradients."""
    params = weights([(5,), (3,)], device, [torch.float32, torch.bfloat16])
    optimizer = Adam(params, lr=0.1)
    give(params, 0)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    original, launched = Launcher.__call__, [0]

    def interrupted(self: Launcher, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        launched[0] += 1
        if launched[0] == launch:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Launcher, "__call__", interrupted)
    give(params, 1)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # not so in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    finally:
        signal.signal(signal.SIGINT, handler)
    stepped = {not torch.equal(p, was) for p, was in zip(params, before, strict=True)}
    assert len(stepped) == 1
    assert {state["step"] for state in optimizer.state.values()} == {1 + stepped.pop()}


@pytest.mark.parametrize(
    ("owner", "name", "options"),
    [
        (Staging, "send", {}),
        (Launches, "compile", {}),
        (Staging, "send", {"max_grad_norm": 1e9}),
        (Launches, "compile", {"max_grad_norm": 1e9}),
        (prepare, "launch", {"max_grad_norm": 1e9}),
        (prepare, "launch", {"capturable": True}),
    ],
)
def test_addresses_that_no_chunk_was_told_are_not_forgotten(
    owner: Any,
    name: str,
    options: dict[str, Any],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where no memory can be pinned, a capture has none left, or a kernel does not compile."""
    optimizer, params = pair(device, **options)
    give(params, 0)
    optimizer.step()

    old = [p.grad for p in params]
    give(params, 1, scale=-1.0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(RuntimeError, match="no memory"):
            optimizer.step()
    assert_steps_by_its_gradients(optimizer, params, old)


def test_addresses_that_a_guarded_step_has_not_told_are_told_by_a_plain_one(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, params = pair(device)
    give(params, 0)
    optimizer.step()
    old = [p.grad for p in params]
    give(params, 1, scale=-1.0)
    scale(optimizer, 1.0, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "launch", refuse)
        with pytest.raises(RuntimeError, match="no memory"):
            optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    assert_steps_by_its_gradients(optimizer, params, old)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1e9}])
def test_chunks_made_for_a_step_that_failed_are_not_taken_for_those_before(
    options: dict[str, Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made anew for addresses that are aligned otherwise, and then nothing is sent."""
    optimizer, params = pair(device, **options)
    give(params, 0)
    optimizer.step()
    first = [p.grad for p in params]
    unaligned = [torch.ones(p.numel() + 1, device=device)[1:].view_as(p) for p in params]
    for p, grad in zip(params, unaligned, strict=True):
        set_grad(p, grad)
    original = Staging.send

    def refuse_addresses(self: Staging, array: Any, target: torch.Tensor) -> None:
        refuse() if array.shape == (2, len(params)) else original(self, array, target)

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "send", refuse_addresses)
        with pytest.raises(RuntimeError, match="no memory"):
            optimizer.step()
    for p, grad in zip(params, first, strict=True):
        set_grad(p, grad)
    assert_steps_by_its_gradients(optimizer, params, unaligned)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"capturable": True}])
def test_row_7_all_is_sent_while_the_device_is_current(
    options: dict[str, Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGRESSIONS 7: else the event after a copy is another device's, and tells nothing of it."""
    depth, sent, original = 0, 0, Staging.send

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        nonlocal depth
        depth += 1
        yield
        depth -= 1

    def send(*arguments: Any) -> None:
        nonlocal sent
        assert depth
        sent += 1
        original(*arguments)

    for module in (executor, launches):
        monkeypatch.setattr(module, "current", current)
    monkeypatch.setattr(Staging, "send", send)
    optimizer, params = pair(device, **options)
    for t in range(2):
        give(params, t)
        optimizer.step()
    assert sent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_between_two_tables(
    number: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits until the other is stepped, too: its state is on the host."""
    params = weights([(5,), (3,)], device)
    optimizer = Adam([{"params": params[0]}, {"params": params[1], "offload": "cpu"}], lr=0.1)
    original = executor.Executor.step

    def step(self: Any, *arguments: Any) -> Any:
        found = original(self, *arguments)
        signal.raise_signal(number)
        return found

    monkeypatch.setattr(executor.Executor, "step", step)
    give(params, 0)
    handler = signal.signal(number, signal.default_int_handler)  # not so in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    finally:
        signal.signal(number, handler)
    assert [int(optimizer.state[p]["step"]) for p in params] == [1, 1]
