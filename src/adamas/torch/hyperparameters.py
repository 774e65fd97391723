"""The hyperparameters of torch's parameter groups."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from ..hyper import Hyper


def hyper_of(group: dict[str, Any]) -> Hyper:
    """A parameter group's hyperparameters, checked; tensors of one element count as numbers."""
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
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(
            f"{name} must be a number or a tensor of one element, got shape {tuple(value.shape)}"
        )
    return value.item()


@lru_cache(maxsize=1024)
def _hyper(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, *options: bool
) -> Hyper:
    return Hyper(lr, (beta1, beta2), eps, weight_decay, *options)
