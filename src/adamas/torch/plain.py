"""Stepping in plain torch operations: any dtype, layout and device, by the same equations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..equations import RULES
from ..hyper import Coefficients, Hyper, RMSpropHyper, Rule, SGDHyper
from .layout import is_as_stored, is_wrapper
from .recode import State


def step(
    param: Tensor,
    grad: Tensor,
    state: State,
    hyper: Rule,
    unscale: float = 1.0,
    clip: float = 1.0,
    options: dict[str, Any] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One step of one parameter, computed but not yet stored.

    16-bit parameters are computed in float32, as the specification says; complex ones as pairs of
    real numbers, as torch.optim does.

    Args:
        param: the parameter,
        grad: its gradient,
        state: and its state.
        hyper: the hyperparameters.
        unscale: what the gradient is multiplied with first,
        clip: and then.
        options: the parameter group, where autograd shall see its tensors.

    Returns:
        Pairs of a tensor and the value to store in it: the parameter, then its averages.
    """
    averages = [state[key] if key else None for key in hyper.keys]
    p, g = _kept(real(param)), _kept(real(grad))
    kept = [None if average is None else _kept(real(average)) for average in averages]
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    c = hyper.coefficients(state["step"] + 1, str(dtype).rpartition(".")[2], unscale, clip)
    if options is not None:
        c = _recorded(c, _formulas(hyper, options, state["step"] + 1), dtype)
    values = RULES[hyper.rule](p.to(dtype), g.to(dtype), *kept, c, sqrt, maximum)
    for target, value in zip((param, *averages), values, strict=True):
        if target is not None:
            yield target, torch.view_as_complex(value) if target.is_complex() else value


def sqrt(x: Tensor) -> Tensor:
    """The square root, rounded correctly; autograd sees ``torch.sqrt``.

    On the CPU torch's own is not: MKL's vector functions give one in five float32 numbers another
    last bit. The root taken in float64 is near enough to round to the correct float32.
    """
    if x.device.type != "cpu" or (is_wrapper(x) and x.dtype == torch.float64):
        return torch.sqrt(x)
    if x.requires_grad:
        root = torch.sqrt(x)
        return root + (sqrt(x.detach()) - root).nan_to_num(0.0).detach()
    if x.dtype == torch.float32:
        return torch.sqrt(x.double()).float()
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))


def maximum(x: Tensor, y: Tensor | float) -> Tensor:
    """The elementwise maximum, of a tensor or a number, which keeps NaN."""
    return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)


def _kept(tensor: Tensor) -> Tensor:
    """What autograd may save, although the same step overwrites the tensor."""
    return tensor.clone() if torch.is_grad_enabled() else tensor


def _formulas(hyper: Rule, options: dict[str, Any], step: int) -> dict[str, Any]:
    """Of a rule's coefficients, those that may follow from tensors, in terms of the options."""
    lr, decay = options["lr"], options["weight_decay"]
    if isinstance(hyper, SGDHyper):
        momentum = options["momentum"]
        return {
            "beta1": momentum,
            "one_minus_beta1": 1 if step == 1 else 1 - options["dampening"],
            "beta2": momentum if hyper.nesterov else 0,
            "step_size": lr,
            "l2": decay,
        }
    if isinstance(hyper, RMSpropHyper):
        alpha = options["alpha"]
        averages = {"beta1": options["momentum"], "beta2": alpha, "one_minus_beta2": 1 - alpha}
        return averages | {"step_size": lr, "l2": decay}
    assert isinstance(hyper, Hyper), "there are no others"
    (beta1, beta2), decoupled = options["betas"], hyper.decoupled_weight_decay
    return {
        "beta1": beta1,
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "step_size": lr / (1 - beta1**step),
        "denom_scale": (1 - beta2**step) ** -0.5,
        "decay": lr * decay if decoupled else 0.0,
        "l2": 0.0 if decoupled else decay,
    }


def _recorded(c: Coefficients, formulas: dict[str, Any], dtype: torch.dtype) -> Coefficients:
    """The same coefficients; those that follow from tensors do so for autograd too."""
    values = c._asdict()
    for name, formula in formulas.items():
        if isinstance(formula, Tensor):
            # torch rounds the formula otherwise than the rule: it gives the derivative only.
            formula = formula.reshape(()).to(dtype)
            values[name] = torch.full_like(formula, values[name]) + (formula - formula.detach())
    return Coefficients(**values)


def real(tensor: Tensor) -> Tensor:
    """A dense tensor of real numbers, in its own memory: pairs, where the tensor's are complex."""
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    if not is_as_stored(dense):  # which contiguous() may leave so
        dense = torch.empty(dense.shape, dtype=dense.dtype, device=dense.device).copy_(dense)
    return torch.view_as_real(dense) if dense.is_complex() else dense
