"""What a step says it did, measured in the step or worked out after it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adamas.torch import Adam, AdamW, step_in_backward
from adamas.torch.recode import trained

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)


def params(dtype: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = ((3000,), (0,), (), (40, 30))
    made = [nn.Parameter(torch.randn(s, dtype=dtype)) for s in shapes]
    made[0].data[:100] = 0
    return made


def optimizer(rule: type[Adam], made: list[nn.Parameter], **options: Any) -> Adam:
    groups = [{"params": made[:2]}, {"params": made[2:], "lr": 1e-9}]
    return rule(groups, lr=0.01, **options)


def give_grads(made: list[nn.Parameter]) -> None:
    for p in made[:3]:
        p.grad = torch.randn_like(p)
    made[0].grad[100:200] = 0  # which moves no weight, but leaves none behind


def wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def largest_and_stalled(
    before: torch.Tensor, after: torch.Tensor, moment: torch.Tensor
) -> tuple[float, float]:
    old, new, m = (
        torch.view_as_real(t) if t.is_complex() else t for t in map(wide, (before, after, moment))
    )
    relative = ((old - new) / old)[old != 0].abs()
    stalled = int(((old == new) & (m != 0)).sum())
    return float(relative.max()) if relative.numel() else 0.0, stalled / max(before.numel(), 1)


def norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(wide(tensor)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(("rule", "amsgrad"), [(Adam, False), (AdamW, True)])
def test_measures(rule: type[Adam], amsgrad: bool, asked: bool, dtype: torch.dtype) -> None:
    made = params(dtype)
    decay = 0.1 * (rule is AdamW)
    # Such betas let the second moment fall below its largest.
    ours = optimizer(rule, made, amsgrad=amsgrad, weight_decay=decay, betas=(0.9, 0.5))
    for _ in range(3):
        give_grads(made)
        before = [trained(p, ours.state[p]).clone() for p in made]
        if asked:
            ours.measure_next_step()
        ours.step()
    found = ours.statistics()
    assert [m.name for m in found.parameters] == [
        "parameter 0 of group 0",
        "parameter 1 of group 0",
        "parameter 0 of group 1",
    ]
    # Without asking, a weight before the step is only known to the rounding of the one after it.
    loose = 1e-9 if asked else 0.1 if dtype == torch.bfloat16 else 1e-3
    after = [trained(p, ours.state[p]) for p in made]
    for measures, p, new, old in zip(found.parameters, made, after, before, strict=False):
        state = ours.state[p]
        assert measures.elements == p.numel()
        assert measures.grad_norm == pytest.approx(norm(p.grad), rel=1e-9)
        assert measures.exp_avg_norm == pytest.approx(norm(state["exp_avg"]), rel=1e-9)
        assert measures.exp_avg_sq_norm == pytest.approx(norm(state["exp_avg_sq"]), rel=1e-9)
        assert measures.param_norm == pytest.approx(norm(new), rel=1e-9)
        if asked or measures.group == 0:
            assert measures.update_norm == pytest.approx(norm(wide(old) - wide(new)), rel=loose)
        if asked:
            assert measures[-2:] == largest_and_stalled(old, new, state["exp_avg"])
    first, _, still = found.parameters
    assert still.stalled >= (0 if dtype == torch.float64 else 1)  # lr = 1e-9 changes nothing
    assert first.stalled < 0.5
    one, two = found.groups
    assert (one.elements, two.elements) == (3000, 1)
    assert one.grad_norm == pytest.approx(math.hypot(first.grad_norm, 0))
    assert two.stalled == still.stalled
    assert len(str(found).splitlines()) == 1 + 3 + 2


def test_the_largest_relative_update() -> None:
    p, q = nn.Parameter(torch.tensor([2.0, -0.5, 0.0])), nn.Parameter(torch.tensor([4.0]))
    p.grad, q.grad = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0])
    ours = Adam([("weight", p), ("bias", q)], lr=0.1)
    ours.measure_next_step()
    ours.step()
    measures, other = ours.statistics().parameters
    assert measures.name == "weight"
    assert measures.largest_relative_update == pytest.approx(0.2, rel=1e-6)
    assert measures.stalled == 0
    assert other.largest_relative_update == pytest.approx(0.025, rel=1e-6)
    (both,) = ours.statistics().groups
    assert both.largest_relative_update == measures.largest_relative_update


@pytest.mark.parametrize("dtype", DTYPES)
def test_measuring_changes_no_bit(dtype: torch.dtype) -> None:
    here, there = params(dtype), params(dtype)
    one, other = optimizer(AdamW, here, max_grad_norm=1.0), optimizer(AdamW, there)
    other.max_grad_norm = 1.0
    one.grad_scale = other.grad_scale = torch.tensor(4.0)
    for _ in range(3):
        give_grads(here)
        for p, q in zip(here, there, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        one.measure_next_step()
        one.step()
        other.step()
        assert all(torch.equal(p, q) for p, q in zip(here, there, strict=True))
    unscaled = [m.grad_norm for m in one.statistics().parameters]
    assert math.hypot(*unscaled) == pytest.approx(one.last_grad_norm)


def test_each_step_must_be_asked_for() -> None:
    made = params(torch.float32)
    ours = optimizer(Adam, made)
    with pytest.raises(ValueError, match="no statistics before the first step"):
        ours.statistics()
    give_grads(made)
    ours.measure_next_step()
    ours.step()
    exact = ours.statistics()
    assert ours.statistics() is exact
    ours.step()
    assert ours.statistics() is not exact
    ours.zero_grad()
    assert math.isnan(ours.statistics().parameters[0].grad_norm)
    loaded = optimizer(Adam, copy.deepcopy(made))
    loaded.load_state_dict(ours.state_dict())
    assert np.isclose(
        loaded.statistics().groups[0].update_norm, ours.statistics().groups[0].update_norm
    )
    ours.measure_next_step()
    ours.step()
    exact = ours.statistics()
    ours.load_state_dict(loaded.state_dict())
    assert ours.statistics() is not exact


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("kept", ["core", "plain"])
def test_worked_out_by_what_the_step_went_by(kept: str, in_backward: bool) -> None:
    """Not by what the options are now."""
    found = []
    for asked in (True, False):
        made = [nn.Parameter(torch.ones(4, 2)[:, :: 1 + (kept == "plain")]) for _ in range(3)]
        ours = AdamW([{"params": made[:1]}, {"params": made[1:]}], lr=0.25, weight_decay=0.5)
        ours.grad_scale = torch.tensor(4.0)
        if in_backward:
            del ours.grad_scale
            step_in_backward(ours)
        for stepped in (made, made[1:]):
            if asked:
                ours.measure_next_step()
            ours.zero_grad()
            sum((p * torch.full_like(p, 8.0)).sum() for p in stepped).backward()
            ours.step()
        for group in ours.param_groups:
            group |= {"lr": 0.125, "weight_decay": 0.0}
        ours.__dict__.pop("grad_scale", None)
        found.append(ours.statistics())
    measured, worked_out = found
    assert [m.name for m in measured.parameters] == [
        "parameter 0 of group 1",
        "parameter 1 of group 1",
    ]
    for one, other in zip(
        (*measured.parameters, *measured.groups),
        (*worked_out.parameters, *worked_out.groups),
        strict=True,
    ):
        assert one[:3] == other[:3]
        begin = 3 + in_backward  # those gradients are gone
        assert np.allclose(one[begin:], other[begin:], rtol=1e-5)


@pytest.mark.parametrize("where", ["weight", "gradient"])
@pytest.mark.parametrize("place", [0, 150_000, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_is_the_largest_in_the_core_as_beside_it(
    dtype: torch.dtype, place: int, where: str
) -> None:
    found = []
    for gap in (1, 2):
        p = nn.Parameter(torch.ones(300_000, gap, dtype=dtype)[:, 0])
        p.grad = torch.ones_like(p)
        (p.data if where == "weight" else p.grad)[place] = math.nan
        ours = Adam([p])
        ours.measure_next_step()
        ours.step()
        found.append(ours.statistics().parameters[0].largest_relative_update)
    assert all(map(math.isnan, found))


def test_a_first_step_that_was_skipped() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.full_like(p, math.inf)
    ours = Adam([p], skip_nonfinite=True)
    ours.step()
    with pytest.raises(ValueError, match="no statistics before the first step"):
        ours.statistics()


def test_asking_changes_nothing() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    ours = Adam([p])
    with pytest.raises(ValueError, match="no statistics before the first step"):
        ours.statistics()
    assert not ours.state
