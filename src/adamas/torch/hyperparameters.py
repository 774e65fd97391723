"""The hyperparameters of torch's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hyper import Hyper


def hyper_of(group: dict[str, Any]) -> Hyper:
    """A parameter group's hyperparameters, checked; tensors of one element are numbers."""
    try:
        beta1, beta2 = group["betas"]
    except (TypeError, ValueError):
        raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']!r}") from None
    return _hyper(
        _number("lr", group["lr"]),
        _number("beta1", beta1),
        _number("beta2", beta2),
        _number("eps", group["eps"]),
        _number("weight_decay", group["weight_decay"]),
        group["amsgrad"],
        group["maximize"],
        group["decoupled_weight_decay"],
    )


def on_device(group: dict[str, Any]) -> bool:
    """Whether a hyperparameter is a tensor on a device other than the CPU."""
    for value in (group["lr"], *group["betas"]):  # each step asks: any() would take twice as long
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return True
    return False


def device_row(group: dict[str, Any], compute: str, device: torch.device) -> list[float]:
    """A group's hyperparameters as ``gpu.prepare`` reads them, checked as far as they are here.

    Args:
        group: the parameter group.
        compute: "float32" or "float64".
        device: where these tensors are read; those elsewhere are numbers.

    Returns:
        12 numbers, the last four of which have the bits of whole ones: the addresses of tensors on
        the device that hold lr, beta1 and beta2, 0 for none, and which of these are float64.
    """
    values = [group["lr"], *group["betas"]]
    addresses, wide = [0, 0, 0], 0
    for i, value in enumerate(values):
        there = isinstance(value, Tensor) and value.device == device and device.type != "cpu"
        if there and value.numel() == 1 and value.dtype in (torch.float32, torch.float64):
            addresses[i], wide = value.data_ptr(), wide | (value.dtype == torch.float64) << i
            values[i] = 0.0
    hyper = hyper_of(group | {"lr": values[0], "betas": tuple(values[1:])})
    if max(hyper.lr, hyper.eps, hyper.weight_decay) > _LARGE:
        hyper.coefficients(1, compute)  # which raises where they exceed the type
    whole = np.array([*addresses, wide], np.int64).view(np.float64).tolist()
    numbers = (hyper.lr, *hyper.betas, hyper.eps, hyper.weight_decay)
    flags = hyper.decoupled_weight_decay, hyper.maximize, compute == "float64"
    return [*numbers, *map(float, flags), *whole]


def snapshot(group: dict[str, Any]) -> dict[str, Any]:
    """A group's options, with numbers for tensors, but for those on a device."""
    options = {key: value for key, value in group.items() if key != "params"}
    lr, *betas = (
        value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value
        for value in (group["lr"], *group["betas"])
    )
    return options | {"lr": lr, "betas": tuple(betas)}


_LARGE = 1e15  # beyond which it is worth looking


def _number(name: str, value: Any) -> Any:
    if type(value) is float or not isinstance(value, (Tensor, np.ndarray)):
        return value
    if math.prod(value.shape) != 1:
        raise ValueError(
            f"{name} must be a number or a tensor of one element, got shape {tuple(value.shape)}"
        )
    return value.item()


def check_own(group: dict[str, Any]) -> None:
    """Raises where a group has an option that is of all groups together."""
    for option in ("max_grad_norm", "skip_nonfinite"):
        if option in group:
            raise ValueError(
                f"{option} is of all groups together, got {group[option]!r} in one: give it to the "
                "optimizer itself"
            )


def check_clipping(groups: Iterable[dict[str, Any]], max_grad_norm: float | None) -> None:
    """Raises where gradients cannot be clipped to such a norm, or autograd sees them.

    The norm is found outside of torch, so that the derivative of the factor would be missing.
    """
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm must be above 0, or None for no clipping, got {max_grad_norm!r}"
        )
    if max_grad_norm not in (None, math.inf) and any(group["differentiable"] for group in groups):
        raise ValueError(
            f"max_grad_norm={max_grad_norm!r} cannot be had with differentiable=True, since "
            "autograd would not see what clips: call torch.nn.utils.clip_grad_norm_ before step()"
        )


@lru_cache(maxsize=1024)
def _hyper(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, *options: bool
) -> Hyper:
    return Hyper(lr, (beta1, beta2), eps, weight_decay, *options)
