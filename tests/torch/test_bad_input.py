"""One clear error for each bad input, and everything as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adamas.torch import Adam, AdamW
from adamas.torch.state import check_grad


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


BAD_ARGUMENTS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([parameter(2)], {"lr": -1.0}, ValueError, "lr must be finite and at least 0, got -1.0"),
    ([parameter(2)], {"lr": math.nan}, ValueError, "lr must be finite"),
    (
        [parameter(2)],
        {"lr": torch.tensor([0.1, 0.2])},
        ValueError,
        r"lr must be .* got shape \(2,\)",
    ),
    ([parameter(2)], {"betas": (1.0, 0.9)}, ValueError, r"beta1 must be in \[0, 1\), got 1.0"),
    ([parameter(2)], {"betas": (0.9,)}, ValueError, "betas must be two numbers"),
    ([parameter(2)], {"betas": 0.9}, ValueError, "betas must be two numbers"),
    (
        [parameter(2)],
        {"betas": (torch.tensor([0.9, 0.8]), 0.9)},
        ValueError,
        r"beta1 must be .* got shape \(2,\)",
    ),
    ([parameter(2)], {"eps": -1e-8}, ValueError, "eps must be finite and at least 0"),
    ([parameter(2)], {"weight_decay": -0.1}, ValueError, "weight_decay must be finite"),
    ([{"params": [parameter(2)], "lr": -2.0}], {}, ValueError, "lr must be finite.*got -2.0"),
    ([], {}, ValueError, "empty parameter list"),
    (parameter(2), {}, TypeError, "should be an iterable of Tensors or dicts"),
    ([torch.ones(2)], {}, ValueError, "a parameter must need a gradient, got a tensor of shape"),
    (
        [torch.ones(2, dtype=torch.int64)],
        {},
        ValueError,
        "must need a gradient.*torch.int64.*float",
    ),
    ([parameter(2) * 2], {}, ValueError, "can't optimize a non-leaf Tensor"),
    ([[1.0]], {}, TypeError, "Tensors"),
    ([parameter(2)], {"lr": np.array([0.1, 0.2])}, ValueError, r"lr must be .* got shape \(2,\)"),
    (
        [parameter(2)],
        {"max_grad_norm": 1.0, "differentiable": True},
        ValueError,
        "max_grad_norm=1.0 cannot be had with differentiable=True",
    ),
]


@pytest.mark.parametrize(("params", "options", "error", "message"), BAD_ARGUMENTS)
@pytest.mark.parametrize("rule", [Adam, AdamW])
def test_bad_arguments(
    rule: type[Adam], params: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rule(params, **options)


def test_a_frozen_parameter_is_no_error() -> None:
    """As with torch.optim: it may be thawed later; until then it is skipped."""
    frozen, other = nn.Parameter(torch.ones(2), requires_grad=False), parameter(2)
    quantized = nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False)
    optimizer = Adam([frozen, other, quantized], lr=0.5)
    other.grad = torch.ones(2)
    optimizer.step()
    assert frozen.tolist() == [1, 1]
    frozen.requires_grad_()
    frozen.grad = torch.ones(2)
    optimizer.step()
    assert frozen.tolist() == [0.5, 0.5]
    assert optimizer.state[frozen]["step"] == 1


def test_a_bad_group_is_not_added() -> None:
    optimizer = Adam([parameter(2)])
    with pytest.raises(ValueError, match="lr must be finite"):
        optimizer.add_param_group({"params": [parameter(3)], "lr": math.inf})
    with pytest.raises(ValueError, match="must need a gradient"):
        optimizer.add_param_group({"params": [torch.ones(3)]})
    assert len(optimizer.param_groups) == 1


def sparse(p: nn.Parameter, optimizer: Adam) -> None:
    p.grad = torch.ones_like(p).to_sparse()


def resized(p: nn.Parameter, optimizer: Adam) -> None:
    p.data = torch.ones(2, 2)


def shrunk(p: nn.Parameter, optimizer: Adam) -> None:
    p.data = p.data[:2]


def other_moment(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.state[p]["exp_avg"] = torch.ones(7)


def no_moment(p: nn.Parameter, optimizer: Adam) -> None:
    del optimizer.state[p]["exp_avg_sq"]


def half_a_step(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.state[p]["step"] = 1.5


def step_of_too_many_bits(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.state[p]["step"] = 2**53


def negative_step(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.state[p]["step"] = -1


def negative_lr(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.param_groups[0]["lr"] = -1.0


def shared_moments(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.state[p]["exp_avg_sq"] = optimizer.state[p]["exp_avg"]


def shared_data(p: nn.Parameter, optimizer: Adam) -> None:
    first = optimizer.param_groups[0]["params"][0]
    first.data = p.data.as_strided((4,), (1,))


def shared_state(p: nn.Parameter, optimizer: Adam) -> None:
    p.data = p.data[:2, :1].T[0]
    p.grad = torch.ones_like(p)
    optimizer.state[p] = optimizer.state[optimizer.param_groups[0]["params"][2]]


def expanded(p: nn.Parameter, optimizer: Adam) -> None:
    p.data = p.data[:1].expand(3, 2)


def overlapping(p: nn.Parameter, optimizer: Adam) -> None:
    p.data = p.data.as_strided((3, 2), (1, 1))


def differentiable(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.add_param_group({"params": [parameter(2)], "differentiable": True})
    last = optimizer.param_groups[1]["params"][0]
    last.grad = torch.ones_like(last)


def clipped(p: nn.Parameter, optimizer: Adam) -> None:
    optimizer.add_param_group({"params": [parameter(2)], "differentiable": True})
    optimizer.max_grad_norm = 1.0


def differentiable_view(p: nn.Parameter, optimizer: Adam) -> None:
    view = parameter(2)[:1]
    view.grad = torch.ones_like(view)
    optimizer.add_param_group({"params": [parameter(2)], "differentiable": True})
    optimizer.param_groups[1]["params"] = [view]


BAD_STEPS: list[tuple[Callable[[nn.Parameter, Adam], None], type[Exception], str]] = [
    (sparse, RuntimeError, "does not support sparse gradients, and that of parameter 1 of group 0"),
    (resized, ValueError, r"gradient of parameter 1 of group 0 must have its shape \(2, 2\)"),
    (shrunk, ValueError, r"gradient of parameter 1 of group 0 must have its shape \(2, 2\)"),
    (other_moment, ValueError, r"must have exp_avg of shape \(3, 2\), got \(7,\)"),
    (no_moment, ValueError, r"must have exp_avg_sq of shape \(3, 2\), got NoneType"),
    (half_a_step, ValueError, r"a step that is one whole number from 0 to 2\^53 - 1, got 1.5"),
    (step_of_too_many_bits, ValueError, r"one whole number from 0 to 2\^53 - 1, got 90071992547"),
    (negative_step, ValueError, "got -1"),
    (negative_lr, ValueError, "lr must be finite and at least 0, got -1.0"),
    (shared_moments, ValueError, "share memory"),
    (shared_data, ValueError, "parameter 0 of group 0 and parameter 1 of group 0 .*share memory"),
    (shared_state, ValueError, "parameter 1 of group 0 and parameter 2 of group 0 .*share memory"),
    (
        expanded,
        ValueError,
        r"parameter 1 .* must have memory .* strides \(0, \d\): .*contiguous",
    ),
    (overlapping, ValueError, r"parameter 1 of group 0 must have .* strides \(1, 1\)"),
    (differentiable, RuntimeError, "parameter 0 of group 1 is a leaf .* differentiable=True"),
    (clipped, ValueError, "max_grad_norm=1.0 cannot be had with differentiable=True"),
    (differentiable_view, RuntimeError, "parameter 0 of group 1 is a leaf"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [1, 2], ids=["core", "plain"])
def test_a_bad_step_touches_nothing(
    spoil: Callable[[nn.Parameter, Adam], None],
    error: type[Exception],
    message: str,
    dtype: torch.dtype,
    gap: int,
) -> None:
    second = torch.ones(3, 2 * gap, dtype=dtype)[:, ::gap]
    params = [
        nn.Parameter(torch.ones(4, dtype=dtype)),
        nn.Parameter(second),
        nn.Parameter(torch.ones(2, dtype=dtype)),
    ]
    optimizer = Adam(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    spoil(params[1], optimizer)
    weights = [p.detach().clone() for p in params]
    steps = [optimizer.state[p]["step"] for p in params]
    with pytest.raises(error, match=message):
        optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(params, weights, strict=True))
    assert [optimizer.state[p]["step"] for p in params] == steps


def test_a_gradient_that_stayed_on_another_device() -> None:
    """No address says whose memory it is in; on a real GPU, see ``tests/gpu``."""
    message = "gradient of it must be on its device cpu, got meta: call zero_grad"
    with pytest.raises(RuntimeError, match=message):
        check_grad(torch.ones(2), torch.ones(2, device="meta"), "it")


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.bfloat16)),
        (torch.ones(4, dtype=torch.float64)[::2], torch.ones(4)),
    ],
    ids=["plain", "core"],
)
def test_a_step_too_large_for_one_type_touches_no_other(
    wide: torch.Tensor, narrow: torch.Tensor
) -> None:
    params = [nn.Parameter(wide), nn.Parameter(narrow)]
    optimizer = Adam(params, lr=1e39)
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"step_size = .* exceeds float32"):
        optimizer.step()
    assert all((p == 1).all() for p in params)
    assert [optimizer.state[p]["step"] for p in params] == [0, 0]


def checkpoint(
    rule: Any = torch.optim.Adam, shape: tuple[int, ...] = (3, 2), **options: Any
) -> dict[str, Any]:
    params = [parameter(*shape), parameter(5)]
    optimizer = rule(params, lr=0.01, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved: dict[str, Any] = optimizer.state_dict()
    return saved


def without(saved: dict[str, Any], key: str) -> dict[str, Any]:
    del saved["state"][1][key]
    return saved


def in_group(saved: dict[str, Any], **options: Any) -> dict[str, Any]:
    saved["param_groups"][0] |= options
    return saved


def changed(saved: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    saved["state"][1][key] = value
    return saved


BAD_CHECKPOINTS: list[tuple[Any, str]] = [
    ({}, "must have 'state' and 'param_groups'"),
    ([], "must have 'state' and 'param_groups'"),
    ({"model": {}}, "must have 'state' and 'param_groups'"),
    ({"state": None, "param_groups": []}, "must have 'state' and 'param_groups'"),
    (torch.zeros(3), "must have 'state' and 'param_groups'"),
    (checkpoint(shape=(2, 3)), r"must have exp_avg of shape \(3, 2\), got \(2, 3\).*another model"),
    (checkpoint(torch.optim.SGD, momentum=0.9), "groups without betas: it is not Adam's"),
    (checkpoint(torch.optim.RMSprop), "groups without betas"),
    (checkpoint(torch.optim.Adamax), "lacks exp_avg_sq"),
    (checkpoint(torch.optim.NAdam), "momentum_decay=0.004, .*: it is not Adam's"),
    (in_group(checkpoint(), bias_correction=False), "bias_correction=False, .*: it is not Adam's"),
    (in_group(checkpoint(), alpha=5.0), "alpha=5.0, .*: it is not Adam's"),
    (in_group(checkpoint(), rho=0.9), "rho=0.9, .*: it is not Adam's"),
    (without(checkpoint(), "step"), "the state of parameter 1 has no step"),
    (without(checkpoint(), "exp_avg"), "the state of parameter 1 lacks exp_avg"),
    (changed(checkpoint(), "step", torch.tensor([1.0, 2.0])), "one whole number"),
    (changed(checkpoint(), "step", torch.tensor(math.nan)), "one whole number"),
    (changed(checkpoint(), "exp_avg", 3.0), "got float"),
    (changed(checkpoint(), "exp_avg", torch.ones(4)), r"got \(4,\)"),
]


@pytest.mark.parametrize(("saved", "message"), BAD_CHECKPOINTS)
def test_a_bad_checkpoint_changes_nothing(saved: Any, message: str) -> None:
    params = [parameter(3, 2), parameter(5)]
    optimizer = Adam(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert [optimizer.state[p]["step"] for p in params] == [1, 1]
    optimizer.step()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[1], [1]], "different number of parameter groups: 1, this optimizer 2"),
        (
            [[1]],
            r"doesn't match the size of optimizer's group: \[2\] parameters in its groups, \[1\]",
        ),
    ],
)
def test_a_checkpoint_of_other_groups(groups: list[list[int]], message: str) -> None:
    optimizer = Adam([{"params": [parameter(n) for n in group]} for group in groups])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(checkpoint())


def test_options_that_a_wrapper_has_put_into_the_groups() -> None:
    """As sharpness-aware minimization keeps its own in those of the optimizer that it uses."""
    saved = in_group(checkpoint(), rho=0.9, bias_correction=True)
    optimizer = Adam([{"params": [parameter(3, 2), parameter(5)], "rho": 0.5}])
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["rho"] == 0.9
