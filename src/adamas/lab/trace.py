"""Every quantity of Adam's equation, step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..bias import bias_correction
from ..equations import adam
from ..hyper import Hyper
from .problems import Array, Problem


class Step(NamedTuple):
    """What a step computes with and what comes of it, a number for each of the parameter's."""

    t: int
    p: Array
    g: Array
    decay: Array
    """Of the weight: lr * weight_decay * p beside the division, or weight_decay * p within g."""
    m: Array
    v: Array
    v_max: Array
    """The largest v so far with AMSGrad, else v."""
    m_hat: Array
    v_hat: Array
    step: Array
    """lr / (sqrt(v_hat) + eps)."""
    update: Array
    """What the equation takes from p."""
    new: Array
    loss: float | None
    """After the step."""


class _Noted:
    """A parameter that notes what the equation does with it: the equation is not said again."""

    def __init__(self, value: Array) -> None:
        self.value = value
        self.decay = np.zeros_like(value)
        self.update = np.zeros_like(value)

    def __rmul__(self, factor: float) -> Array:
        # Only a weight's decay multiplies it, in one place or the other.
        self.decay = factor * self.value
        return self.decay

    def __sub__(self, update: Array) -> Array:
        self.update = update
        return self.value - update


def trace(problem: Problem, hyper: Hyper, steps: int, start: tuple[float, ...]) -> list[Step]:
    """Steps of Adam in float64, by the specification's equation.

    Args:
        problem: gives the gradients.
        hyper: the hyperparameters.
        steps: how many.
        start: the parameter's numbers before the first.
    """
    found = []
    p = np.array(start, dtype=np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    v_max: Any = np.zeros_like(p) if hyper.amsgrad else None
    with np.errstate(all="ignore"):  # overflow and NaN are results here, not events
        for t in range(1, steps + 1):
            c = hyper.coefficients(t, "float64")
            g = problem.gradient(p, t)
            noted = _Noted(p)
            new, m, v, v_max = adam(noted, g, m, v, v_max, c, np.sqrt, np.maximum)
            largest = v if v_max is None else v_max
            m_hat = m / bias_correction(hyper.betas[0], t)
            v_hat = largest / bias_correction(hyper.betas[1], t)
            step = hyper.lr / (np.sqrt(v_hat) + c.eps)
            values = (p, g, noted.decay, m, v, largest, m_hat, v_hat, step, noted.update, new)
            found.append(Step(t, *values, loss=problem.loss(new)))
            p = new
    return found
