"""The hyperparameters of torch's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..formats import Keys
from ..hyper import Hyper, RMSpropHyper, Rule, SGDHyper
from .gpu.sets import set_row

# Of the options of a group, the first of these tells its rule.
MARKS: dict[str, type[Rule]] = {"betas": Hyper, "alpha": RMSpropHyper, "dampening": SGDHyper}
NAMES = {rule.rule: rule().name for rule in MARKS.values()}


def rule_of(group: Mapping[str, Any]) -> type[Rule] | None:
    """The rule that a parameter group's options are of, None where they are of none."""
    for mark, rule in MARKS.items():  # asked at each step
        if mark in group:
            return rule
    return None


def mark_of(rule: type[Rule]) -> str:
    """The option that tells a rule."""
    return next(mark for mark, of in MARKS.items() if of is rule)


def check_rule(group: Mapping[str, Any], rule: type[Rule]) -> None:
    """Raises where a group has options by which it would be taken for another rule's."""
    other = rule_of(group)
    if other not in (rule, None):
        mark = mark_of(other)
        raise ValueError(
            f"{mark} is an option of {NAMES[other.rule]}, got {group[mark]!r} in a group of "
            f"{NAMES[rule.rule]}: leave it out, or use adamas.torch.{NAMES[other.rule]}"
        )


def keys_of(group: Mapping[str, Any]) -> Keys:
    """What states call the averages of a group's rule; its numbers are not looked at."""
    rule: Any = rule_of(group) or Hyper
    return _keys(rule, *[bool(group[option]) for option in rule.structural])


def hyper_of(group: dict[str, Any]) -> Rule:
    """A parameter group's hyperparameters, checked; tensors of one element are numbers."""
    rule: Any = rule_of(group)
    if rule not in (None, Hyper):
        return _other(rule, *[_number(option, group[option]) for option in _options(rule)])
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
    # Each step asks: any() would take twice as long.
    for value in (group["lr"], *group.get("betas", ())):
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
        The columns of ``gpu.sets``.
    """
    values = [group["lr"], *group.get("betas", ())]
    addresses, wide = [0, 0, 0], 0
    for i, value in enumerate(values):
        there = isinstance(value, Tensor) and value.device == device and device.type != "cpu"
        if there and value.numel() == 1 and value.dtype in (torch.float32, torch.float64):
            addresses[i], wide = value.data_ptr(), wide | (value.dtype == torch.float64) << i
            values[i] = 0.0
    here = {"lr": values[0]} | ({"betas": tuple(values[1:])} if "betas" in group else {})
    return set_row(hyper_of(group | here), compute, addresses, wide)


def snapshot(group: dict[str, Any]) -> dict[str, Any]:
    """A group's options, with numbers for tensors, but for those on a device."""
    options = {key: value for key, value in group.items() if key != "params"}
    options["lr"] = _if_here(group["lr"])
    if "betas" in group:
        options["betas"] = tuple(map(_if_here, group["betas"]))
    return options


def _if_here(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value


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


@lru_cache(maxsize=1024)
def _other(rule: Any, *options: float) -> Rule:
    hyper: Rule = rule(*options)
    return hyper


@lru_cache
def _options(rule: Any) -> tuple[str, ...]:
    return tuple(each.name for each in fields(rule))


@lru_cache
def _keys(rule: Any, *structural: bool) -> Keys:
    keys: Keys = rule(**dict(zip(rule.structural, structural, strict=True))).keys
    return keys
