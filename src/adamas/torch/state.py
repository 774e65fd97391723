"""One parameter's state: its moments, and what of a parameter can be optimized at all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layout import is_dense, lies_like
from .sharding import alike, local, local_like

State = dict[str, Any]  # step: int; exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq


class Entry(NamedTuple):
    """A parameter with its state, what errors call it, and the number of its group."""

    name: str
    group: int
    param: Tensor
    state: State


_LAYOUTS = (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]
_MOMENT_TYPES = {
    torch.float64: torch.float64,
    torch.complex128: torch.complex128,
    torch.complex64: torch.complex64,
    torch.complex32: torch.complex64,
}


def moment_names(amsgrad: bool) -> tuple[str, ...]:
    """The keys of a parameter's moments, in the order of the equation."""
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg", "exp_avg_sq")


def moment_type(param: Tensor) -> torch.dtype:
    """What a parameter's moments are kept in: float32 also for those of 16 bits."""
    return _MOMENT_TYPES.get(param.dtype, torch.float32)


def zero_moment(param: Tensor) -> Tensor:
    """A moment before the first step, laid out in memory as the parameter is."""
    return torch.zeros_like(param, dtype=moment_type(param), requires_grad=False)


def zero_states(params: list[tuple[Tensor, bool]]) -> list[State]:
    """The states of dense parameters before the first step, with AMSGrad's moment or without.

    All the tensors are made before their memory, so that they lie side by side: each step looks at
    them, and a thousand of them strewn between their data take half as long again to look at.
    """
    states: list[State] = [
        {"step": 0}
        | {
            key: torch.empty(0, dtype=moment_type(param), device=param.device)
            for key in moment_names(amsgrad)
        }
        for param, amsgrad in params
    ]
    for (param, amsgrad), state in zip(params, states, strict=True):
        for key in moment_names(amsgrad):
            state[key].resize_(param.numel()).as_strided_(param.size(), param.stride()).zero_()
    return states


def check_param(param: Tensor, name: str) -> None:
    """Raises where a parameter is of a kind that has no Adam step."""
    if param.layout not in _LAYOUTS:
        raise RuntimeError(
            f"{name} must be dense, got layout {param.layout}: convert it with .to_dense()"
        )
    if not (param.is_floating_point() or param.is_complex()):
        raise TypeError(
            f"{name} must be of a floating or complex dtype, got {param.dtype}: Adam's update is "
            "not a whole number; convert it with .float()"
        )


def check_grad(param: Tensor, grad: Tensor, name: str) -> None:
    """Raises where a gradient cannot be used to step its parameter."""
    if grad.layout not in _LAYOUTS:
        raise RuntimeError(
            f"Adam does not support sparse gradients, and that of {name} has layout {grad.layout}: "
            "use torch.optim.SparseAdam for it, or sparse=False where it is made"
        )
    if grad.shape != param.shape:
        raise ValueError(
            f"the gradient of {name} must have its shape {tuple(param.shape)}, got "
            f"{tuple(grad.shape)}: call zero_grad() after changing a parameter's data"
        )
    if grad.is_complex() != param.is_complex():
        raise TypeError(f"the gradient of {name} is {grad.dtype}, but {name} is {param.dtype}")


def check_state(param: Tensor, state: State, amsgrad: bool, name: str) -> State:
    """A parameter's state as the step needs it: new if there was none, moments laid out like it.

    Returns:
        Another dictionary if anything had to be made or moved, else the same.

    Raises:
        ValueError: the state is of another parameter or another optimizer.
    """
    if not state:
        return {"step": 0} | {key: zero_moment(param) for key in moment_names(amsgrad)}
    checked = dict(state, step=whole_step(state.get("step"), name))
    for key in moment_names(amsgrad):
        moment = state.get(key)
        if key == "max_exp_avg_sq" and moment is None:
            moment = zero_moment(param)  # AMSGrad was switched on after the first steps
        if not isinstance(moment, Tensor) or moment.shape != param.shape:
            got = tuple(moment.shape) if isinstance(moment, Tensor) else type(moment).__name__
            raise ValueError(
                f"the state of {name} must have {key} of shape {tuple(param.shape)}, got {got}: "
                "it is of another model or another optimizer"
            )
        if not _fits(moment, param):
            given, moment = local_like(moment, param), zero_moment(param)
            local(moment).copy_(given)
        checked[key] = moment
    return state if all(state.get(key) is checked[key] for key in checked) else checked


def _fits(moment: Tensor, param: Tensor) -> bool:
    """Whether a moment lies where, and as, its parameter does."""
    if moment.dtype != moment_type(param) or moment.device != param.device:
        return False
    if not alike(moment, param):
        return False
    moment, param = local(moment), local(param)
    return lies_like(moment, param) or not is_dense(param)


def whole_step(step: object, name: str) -> int:
    """A step count as an int, from what optimizers and checkpoints keep it in.

    Raises:
        ValueError: it is not one whole number of at least 0.
    """
    if type(step) is int and step >= 0:
        return step
    try:
        value = float(step)  # type: ignore[arg-type]
        if value >= 0 and value == int(value):
            return int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ValueError(
        f"the state of {name} must have a step that is one whole number of at least 0, got {step!r}"
    )
