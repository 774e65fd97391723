"""The hyperparameters of torch's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
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


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, Tensor | np.ndarray):
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
    """Raises where gradients are to be clipped that autograd sees.

    The norm is found outside of torch, so that the derivative of the factor would be missing.
    """
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
