"""Two claims of Adam's theory, measured: indifference to scale, and an even advance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .arenas import Values
from .racers import RULES, Racer
from .surfaces import SURFACES

SCALES = tuple(10.0**k for k in range(-6, 7))
STEEPNESS = 1e4
"""How far apart the gradients of the two numbers are."""
_STEPS = 20
_ADVANCE_STEPS = 100


def scaled_updates(
    rule: str, scales: tuple[float, ...] = SCALES, scale_eps: bool = False, **settings: Any
) -> Values:
    """The size of an update where the loss is scaled, over its size where it is not.

    The update is the 20th, on the gradients that Adam meets in Rosenbrock's valley, in float64.

    Args:
        rule: its name.
        scales: of the loss, and so of each gradient.
        scale_eps: whether eps is scaled, too.
        settings: of the rule.

    Returns:
        A ratio for each scale; 1 says that the scale does not matter.
    """
    gradients = _gradients()

    def size(scale: float) -> float:
        given = {**settings, **({"eps": scale * settings["eps"]} if scale_eps else {})}
        param = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = Racer(RULES[rule]).optimizer([{"params": [param], "lr": 1e-3}], **given)
        for gradient in gradients:
            before = param.detach().clone()
            param.grad = scale * gradient
            optimizer.step()
        return float((param.detach() - before).norm())

    whole = size(1.0)
    return np.array([size(scale) for scale in scales]) / whole


def _gradients() -> list[torch.Tensor]:
    surface = SURFACES["rosenbrock"]
    point = surface.starts(1)[0].requires_grad_()
    optimizer = Racer(RULES["adam"]).optimizer([{"params": [point], "lr": 0.05}])
    gradients = []
    for _ in range(_STEPS):
        point.grad = surface.slope(point)[1]
        gradients.append(point.grad)
        optimizer.step()
    return gradients


def advances(rule: str, lr: float) -> Values:
    """How far two numbers still are from the minimum of a quadratic 10^4 times steeper in one.

    Args:
        rule: its name.
        lr: the learning rate.

    Returns:
        Shares of the distance at the start, (steps + 1, 2), the flat number first.
    """
    curvature = torch.tensor([1.0, STEEPNESS], dtype=torch.float64)
    point = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = Racer(RULES[rule]).optimizer([{"params": [point], "lr": lr}])
    path = [point.tolist()]
    for _ in range(_ADVANCE_STEPS):
        point.grad = curvature * point.detach()
        optimizer.step()
        path.append(point.tolist())
    return np.abs(np.array(path))
