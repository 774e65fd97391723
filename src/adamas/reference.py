"""The specification: one step on one NumPy array. Every backend equals it bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from .equations import adam
from .hyper import Hyper

State = dict[
    str, Any
]  # step: int; exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq: like the parameter


def compute_type(dtype: np.dtype[Any]) -> str:
    """The type that a step of parameters of this dtype is computed and its moments are kept in."""
    return "float64" if dtype == np.float64 else "float32"


def initial_state(param: np.ndarray, hyper: Hyper) -> State:
    """The state before the first step: zero moments, laid out in memory as the parameter is."""
    names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * hyper.amsgrad
    return {"step": 0} | {name: np.zeros_like(param, compute_type(param.dtype)) for name in names}


def step(
    param: np.ndarray,
    grad: np.ndarray,
    state: State,
    hyper: Hyper,
    unscale: float = 1.0,
    clip: float = 1.0,
) -> tuple[np.ndarray, State]:
    """One step of Adam on one array of any shape.

    Args:
        param: the parameter, float16, float32 or float64.
        grad: its gradient, of the same shape.
        state: ``initial_state(...)`` or what the step before returned.
        hyper: the hyperparameters.
        unscale: 1 / the scale of the gradient.
        clip: what the unscaled gradient is multiplied with; ``norm.clip_factor``.

    Returns:
        The parameter and the state after the step; the arguments stay as they are.
    """
    compute = compute_type(param.dtype)
    t = state["step"] + 1
    c = hyper.coefficients(t, compute, unscale, clip)
    names = [name for name in state if name != "step"]
    # flat: before 2.0, NumPy computes with 0-dimensional arrays in float64
    flat = [a.reshape(-1).astype(compute) for a in (param, grad, *(state[name] for name in names))]
    p, g, m, v, v_max = flat if len(flat) == 5 else (*flat, None)
    with np.errstate(all="ignore"):  # overflow and NaN are results here, not events
        p, *moments = adam(p, g, m, v, v_max, c, np.sqrt, np.maximum)
        p = p.astype(param.dtype)
    new = {name: a.reshape(param.shape) for name, a in zip(names, moments, strict=False)}
    return p.reshape(param.shape), {"step": t} | new
