"""Unscaling, clipping and skipping inside the step: the bits of doing them before it."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adamas import norm
from adamas.torch import Adam, AdamW

SHAPES = ((), (0,), (7,), (5, 3, 2), (4099,), (65, 33))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
KINDS = {
    **{str(dtype): [dtype] * len(SHAPES) for dtype in DTYPES},
    "mixed": [DTYPES[i % len(DTYPES)] for i in range(len(SHAPES))],
}
kinds = pytest.mark.parametrize("dtypes", KINDS.values(), ids=KINDS)


def params(dtypes: list[torch.dtype]) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(s, dtype=d)) for s, d in zip(SHAPES, dtypes, strict=True)]


def give_grads(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    torch.manual_seed(100 + step)
    for i, p in enumerate(params):
        p.grad = None if i == step else torch.randn_like(p) * scale


def numbers(tensor: torch.Tensor) -> np.ndarray:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real.double() if real.dtype == torch.float64 else real.float()).numpy()


def global_norm(params: list[nn.Parameter], scale: float = 1.0) -> float:
    grads = [numbers(p.grad) for p in params if p.grad is not None]
    return math.sqrt(norm.squared_norm(grads, scale))


def multiply_grads(params: list[nn.Parameter], factor: float) -> None:
    """In the type that a step computes with, where 16-bit gradients would be rounded."""
    for p in params:
        if p.grad is not None:
            p.grad = p.grad * torch.tensor(factor, dtype=p.grad.real.dtype)


def same(one: list[nn.Parameter], other: list[nn.Parameter]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize("max_norm", [0.37, 1e9, math.inf])
@pytest.mark.parametrize(
    "dtypes", [KINDS[str(d)] for d in (torch.float32, torch.float64, torch.complex64)]
)
def test_clips_with_the_bits_of_clipping_before(dtypes: list[torch.dtype], max_norm: float) -> None:
    here, there = params(dtypes), params(dtypes)
    ours = AdamW(here, lr=0.1, max_grad_norm=max_norm)
    plain = AdamW(there, lr=0.1)
    for step in range(4):
        give_grads(here, step)
        give_grads(there, step)
        before = [None if p.grad is None else p.grad.clone() for p in here]
        expected = global_norm(there)
        multiply_grads(there, norm.clip_factor(expected, max_norm))
        ours.step()
        plain.step()
        assert ours.last_grad_norm == expected
        assert same(here, there)
        for p, grad in zip(here, before, strict=True):
            assert grad is None or torch.equal(p.grad, grad)


@kinds
def test_clips_as_torch_does(dtypes: list[torch.dtype]) -> None:
    here, there = params(dtypes), params(dtypes)
    ours, theirs = Adam(here, lr=0.1, max_grad_norm=0.5), Adam(there, lr=0.1)
    for step in range(3):
        give_grads(here, step)
        give_grads(there, step)
        total = nn.utils.clip_grad_norm_(there, 0.5)
        ours.step()
        theirs.step()
        assert ours.last_grad_norm == pytest.approx(total.item(), rel=1e-2)
        for p, q in zip(here, there, strict=True):
            assert torch.allclose(p, q, rtol=2e-2, atol=2e-2)


def test_the_norm_knows_no_order_and_no_threads() -> None:
    torch.manual_seed(0)
    whole = torch.randn(300_000) * torch.logspace(-12, 3, 300_000)
    found = set()
    threads = torch.get_num_threads()
    for cut, order, count in ((300_000, 1, 1), (1, -1, 2), (7, 1, 2), (99_999, -1, 1)):
        torch.set_num_threads(count)
        pieces = [whole[:cut], whole[cut:]][::order]
        p = [nn.Parameter(torch.zeros_like(piece)) for piece in pieces]
        for parameter, piece in zip(p, pieces, strict=True):
            parameter.grad = piece.clone()
        optimizer = Adam(p, max_grad_norm=1.0)
        optimizer.step()
        found.add(optimizer.last_grad_norm)
    torch.set_num_threads(threads)
    assert found == {math.sqrt(norm.squared_norm([whole.numpy()]))}


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@kinds
def test_skips_what_is_not_finite(dtypes: list[torch.dtype], bad: float) -> None:
    here, there = params(dtypes), params(dtypes)
    ours, theirs = Adam(here, lr=0.1, skip_nonfinite=True), Adam(there, lr=0.1)
    for step in range(4):
        give_grads(here, 99)
        give_grads(there, 99)
        if step in (0, 2):
            here[-1 - step].grad.view(-1)[-1] = bad
        else:
            theirs.step()
        ours.step()
        assert same(here, there)
    assert ours.skipped_steps == 2
    assert {state["step"] for state in ours.state.values()} == {2}


def test_large_float64_gradients_are_finite_though_their_squares_are_not() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = Adam([p], lr=0.5, skip_nonfinite=True)
    p.grad = torch.full_like(p, 1e200)
    optimizer.step()
    assert (optimizer.skipped_steps, optimizer.last_grad_norm) == (0, math.inf)
    assert p.grad.isfinite().all()


def test_gradients_that_only_unscaling_makes_infinite() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = Adam([p], lr=0.5, skip_nonfinite=True)
    p.grad, optimizer.grad_scale = torch.full_like(p, 1e38), torch.tensor(2.0**-10)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert (p == 1).all()


def test_without_skipping_a_norm_that_is_not_finite_is_as_with_torch() -> None:
    for bad in (math.inf, math.nan):
        p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
        for one in (p, q):
            one.grad = torch.tensor([1.0, bad, 2.0])
        Adam([p], lr=0.5, max_grad_norm=1.0).step()
        nn.utils.clip_grad_norm_([q], 1.0)
        Adam([q], lr=0.5).step()
        assert torch.equal(p.isnan(), q.isnan())
        assert torch.equal(p.nan_to_num(), q.nan_to_num())


def scaled_step(scaler: Any, optimizer: Any, params: list[nn.Parameter], step: int) -> None:
    give_grads(params, 99 + step)
    loss = sum((p * p.grad.clone()).sum() for p in params)
    optimizer.zero_grad()
    scaler.scale(loss).backward()


@pytest.mark.parametrize("init_scale", [2.0**16, 3.7])
def test_row_22_unscales_once_with_the_bits_of_unscaling_before(init_scale: float) -> None:
    kinds = [torch.float32, torch.float64, torch.float32] * 2
    here, there = params(kinds), params(kinds)
    ours = AdamW(here, lr=0.1, max_grad_norm=2.0)
    other = AdamW(there, lr=0.1, max_grad_norm=2.0)
    one, two = (torch.amp.GradScaler("cpu", init_scale=init_scale) for _ in range(2))
    for step in range(3):
        scaled_step(one, ours, here, step)
        scaled_step(two, other, there, step)
        two.unscale_(other)
        for scaler, optimizer in ((one, ours), (two, other)):
            scaler.step(optimizer)
            scaler.update()
        assert ours.last_grad_norm == other.last_grad_norm
        assert same(here, there)
    assert ours.skipped_steps == 0


@pytest.mark.parametrize("explicit", [False, True])
def test_rows_23_and_24_found_inf_is_obeyed_and_not_counted(explicit: bool) -> None:
    here = params([torch.float32] * len(SHAPES))
    before = copy.deepcopy(here)
    optimizer = AdamW(here, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(2):
        scaled_step(scaler, optimizer, here, step)
        if step == 0:
            here[2].grad[3] = math.inf
        if explicit:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == 0:
            assert same(here, before)
            assert scaler.get_scale() == 1.0
    assert optimizer.skipped_steps == 1
    assert {state["step"] for state in optimizer.state.values()} == {1}


def test_a_scaler_that_found_no_gradients() -> None:
    """Torch sums over no devices then, which gives a number."""
    here = params([torch.float32] * len(SHAPES))
    optimizer = Adam(here, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert (optimizer.skipped_steps, len(optimizer.state)) == (0, 0)


def test_row_25_infinite_between_unscaling_and_stepping() -> None:
    here = params([torch.float32] * len(SHAPES))
    before = copy.deepcopy(here)
    optimizer = AdamW(here, lr=0.1, skip_nonfinite=True)
    scaler = torch.amp.GradScaler("cpu")
    scaled_step(scaler, optimizer, here, 0)
    scaler.unscale_(optimizer)
    here[2].grad[3] = math.nan
    scaler.step(optimizer)
    assert same(here, before)
    assert optimizer.skipped_steps == 1


def test_row_26_clips_what_is_unscaled() -> None:
    here, there = params([torch.float32] * len(SHAPES)), params([torch.float32] * len(SHAPES))
    ours, plain = Adam(here, max_grad_norm=1.0), Adam(there, max_grad_norm=1.0)
    give_grads(here, 99, 1024.0)
    give_grads(there, 99)
    ours.grad_scale = torch.tensor(1024.0)
    ours.step()
    plain.step()
    assert ours.last_grad_norm == plain.last_grad_norm
    assert same(here, there)


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan])
def test_bad_norms(wrong: float) -> None:
    with pytest.raises(ValueError, match="max_grad_norm must be above 0, or None"):
        Adam([nn.Parameter(torch.ones(1))], max_grad_norm=wrong)


def test_copies_keep_the_options() -> None:
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    optimizer = AdamW([p], max_grad_norm=0.5, skip_nonfinite=True)
    optimizer.step()
    optimizer.skipped_steps = 3
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (copied.max_grad_norm, copied.skip_nonfinite) == (0.5, True)
        assert (copied.skipped_steps, copied.last_grad_norm) == (3, 1.0)
    old = optimizer.__getstate__()
    del old["max_grad_norm"], old["skipped_steps"]
    optimizer.__setstate__(old)
    assert (optimizer.max_grad_norm, optimizer.skipped_steps) == (None, 0)


@pytest.mark.parametrize(("option", "value"), [("max_grad_norm", 1.0), ("skip_nonfinite", True)])
def test_a_group_has_no_clipping_of_its_own(option: str, value: Any) -> None:
    group = {"params": [torch.nn.Parameter(torch.ones(2))], option: value}
    with pytest.raises(ValueError, match=f"{option} is of all groups together, got {value} in one"):
        AdamW([group])
