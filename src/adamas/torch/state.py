"""One parameter's state: its moments, and what of a parameter can be optimized at all."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import formats
from .home import home, is_home, offloads
from .kinds import Kept, Kind
from .kinds import kept as kept_beside
from .layout import is_as_stored, is_dense, is_wrapper, lies_like
from .overlap import address, overlaps_itself
from .recode import State, as_complex, format_of, recoded
from .sharding import alike, is_sharded, local, local_like, sharded_like


class Entry(NamedTuple):
    """A parameter with its state, what errors call it, and the number of its group."""

    name: str
    group: int
    param: Tensor
    state: State
    keys: formats.Keys
    """Of its group's averages."""


_LAYOUTS = (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]


def zero_state(param: Tensor, kind: Kind) -> State:
    """The state before the first step, its full moments laid out in memory as the parameter is."""
    tensors = {key: _zeros(param, kept, kind) for key, kept in kept_beside(param, kind).items()}
    return {"step": 0} | tensors


def zero_states(params: list[tuple[Tensor, Kind]]) -> list[State]:
    """The states of dense parameters, which are not sharded, before the first step.

    All the tensors are made before their memory, so that they lie side by side: each step looks at
    them, and a thousand of them strewn between their data take half as long again to look at.
    """
    wanted = [kept_beside(param, kind) for param, kind in params]
    states: list[State] = [
        {"step": 0}
        | {key: torch.empty(0, dtype=k.dtype, device=param.device) for key, k in keys.items()}
        for (param, _), keys in zip(params, wanted, strict=True)
    ]
    for (param, _), keys, state in zip(params, wanted, states, strict=True):
        for key, kept in keys.items():
            strides = _strides(param, kept)
            state[key].resize_(math.prod(kept.shape)).as_strided_(kept.shape, strides).zero_()
    return states


def _zeros(param: Tensor, kept: Kept, kind: Kind) -> Tensor:
    if kept.shape == tuple(local(param).shape) and not offloads(param, kind):
        return torch.zeros_like(param, dtype=kept.dtype, requires_grad=False)
    strides = _strides(local(param), kept)
    where = home(param, kind)
    part = torch.empty_strided(kept.shape, strides, dtype=kept.dtype, **where).zero_()
    return sharded_like(part, param) if kept.sharded and is_sharded(param) else part


def _strides(part: Tensor, kept: Kept) -> tuple[int, ...]:
    """How a tensor of a state lies: its elements in the order of the parameter's, if it has them.

    Of two bytes each in a dimension of their own, both of an element are side by side.
    """
    if is_dense(part):
        if kept.shape == tuple(part.shape):
            return part.stride()
        if kept.shape == (*part.shape, 2):
            return (*(2 * stride for stride in part.stride()), 1)
    return torch.empty(kept.shape, device="meta").stride()


def check_trainable(param: Tensor) -> None:
    """Refuses a plain tensor that cannot have a gradient; a frozen Parameter may thaw later."""
    if not (param.requires_grad or param.grad is not None or isinstance(param, torch.nn.Parameter)):
        raise ValueError(
            f"a parameter must need a gradient, got a tensor of shape {tuple(param.shape)} and "
            f"{param.dtype} with requires_grad=False: call .requires_grad_() on it, convert it to "
            "a floating dtype first if it is of whole numbers, or wrap it in torch.nn.Parameter"
        )


def check_param(param: Tensor, name: str) -> None:
    """Raises where a parameter is of a kind that has no step."""
    if param.layout not in _LAYOUTS:
        raise RuntimeError(
            f"{name} must be dense, got layout {param.layout}: convert it with .to_dense()"
        )
    if not (param.is_floating_point() or param.is_complex()):
        raise TypeError(
            f"{name} must be of a floating or complex dtype, got {param.dtype}: an update is not "
            "a whole number; convert it with .float()"
        )
    if overlaps_itself(local(param)):
        raise ValueError(
            f"{name} must have memory for each element, got shape {tuple(local(param).shape)} with "
            f"strides {local(param).stride()}: make it with .contiguous()"
        )


def check_recordable(param: Tensor, state: State, name: str) -> None:
    """Raises where autograd cannot record the change of a parameter or its state."""
    for tensor in (param, *(value for value in state.values() if isinstance(value, Tensor))):
        base = tensor._base if tensor._is_view() else tensor
        if base is not None and base.is_leaf and base.requires_grad:
            raise RuntimeError(
                f"{name} is a leaf that requires a gradient, or a view or state that does, which "
                "cannot be stepped with differentiable=True: pass a copy that autograd records, "
                "as .clone() makes"
            )


def check_grad(param: Tensor, grad: Tensor, name: str) -> None:
    """Raises where a gradient cannot be used to step its parameter."""
    if grad.layout not in _LAYOUTS:
        raise RuntimeError(
            f"adamas does not support sparse gradients, and that of {name} has layout "
            f"{grad.layout}: use torch.optim.SparseAdam or torch.optim.SGD for it, or sparse=False "
            "where it is made"
        )
    if grad.shape != param.shape:
        raise ValueError(
            f"the gradient of {name} must have its shape {tuple(param.shape)}, got "
            f"{tuple(grad.shape)}: call zero_grad() after changing a parameter's data"
        )
    if grad.device != param.device:
        raise RuntimeError(
            f"the gradient of {name} must be on its device {param.device}, got {grad.device}: call "
            "zero_grad() after moving a parameter"
        )
    if grad.is_complex() != param.is_complex():
        raise TypeError(f"the gradient of {name} is {grad.dtype}, but {name} is {param.dtype}")


def check_state(param: Tensor, state: State, kind: Kind, name: str, counts: bool = False) -> State:
    """A parameter's state as the step needs it: made, moved or turned into another format.

    Args:
        param: the parameter.
        state: its state, empty before the first step.
        kind: its group's formats.
        name: what errors call it.
        counts: whether a tensor on the parameter's device may count its steps.

    Returns:
        Another dictionary if anything had to be, else the same.

    Raises:
        ValueError: the state is of another parameter or another optimizer.
    """
    if not state:
        return zero_state(param, kind)
    wanted = kept_beside(param, kind)
    step = state.get("step")
    # Only such a one as ``gpu.guard`` makes: what others have set is looked at.
    if not (
        counts
        and isinstance(step, Tensor)
        and step.device == param.device
        and (step.dtype, step.dim()) == (torch.int64, 0)
    ):
        step = whole_step(step, name)
    given = dict(state, step=step)
    averages = {key for key in kind.keys[:2] if key}
    needed = {*averages, "words", "scales"}
    if kind.rule == "sgd":  # whose momentum begins with the first gradient after it is switched on
        needed.clear()
        if averages and not any(isinstance(given.get(k), Tensor) for k in (*averages, "words")):
            given["step"] = 0
    of_formats = {"remainder", "master"}
    if averages:  # else a momentum that is switched off stays as it is, in whatever format
        of_formats |= averages | {"words", "scales"}
        if format_of(param, given) != format_of(param, wanted):
            given = recoded(param, given, kind, name)
    checked = {key: value for key, value in given.items() if key not in of_formats}
    for key, kept in wanted.items():
        value = given.get(key)
        if key not in needed and value is None:
            # AMSGrad or momentum was switched on after the first steps; without the rest of a
            # master weight the parameter is all there is of it.
            value = _zeros(param, kept, kind)
        if isinstance(value, Tensor):
            value = _resized(value, kept) if key == "remainder" else _paired(value, kept)
        if not isinstance(value, Tensor) or tuple(local(value).shape) != kept.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the state of {name} must have {key} of shape {kept.shape}, got {got}: "
                "it is of another model or another optimizer"
            )
        if not (is_home(value, param, kind) and _fits(value, param, kept)):
            source, value = value, _zeros(param, kept, kind)
            local(value).copy_(local_like(source, value))
        checked[key] = value
    same = state.keys() == checked.keys() and all(state[key] is checked[key] for key in checked)
    return state if same else checked


def _fits(value: Tensor, param: Tensor, kept: Kept) -> bool:
    """Whether a tensor of a state is of its dtype, and lies as it must."""
    # A wrapper's state is one, too: the subclass makes it.
    own = is_as_stored(local(value)) or (is_wrapper(local(value)) and is_wrapper(local(param)))
    if value.dtype != kept.dtype or not own:
        return False
    if kept.shape != tuple(local(param).shape):
        like = torch.empty_strided(kept.shape, _strides(local(param), kept), device="meta")
        # Pairs of bytes, and scales, are read as numbers of two bytes each.
        aligned = address(local(value)) % 2 == 0
        sharded = kept.sharded and is_sharded(param)
        return aligned and is_sharded(value) == sharded and lies_like(local(value), like)
    if not alike(value, param):
        return False
    value, param = local(value), local(param)
    return lies_like(value, param) or not (is_dense(param) or overlaps_itself(value))


def _resized(remainder: Tensor, kept: Kept) -> Tensor:
    """A master weight's remainder with the bytes that are wanted: the first, or zeros added."""
    part = local(remainder)
    if part.dim() == len(kept.shape) + 1:
        return part[..., 1]
    if part.dim() == len(kept.shape) - 1:
        return torch.stack([torch.zeros_like(part), part], -1)
    return remainder


def _paired(average: Tensor, kept: Kept) -> Tensor:
    """Complex numbers as pairs of real ones, or these as complex ones, whichever are kept."""
    if is_sharded(average) or average.is_complex() == kept.dtype.is_complex:
        return average
    if average.is_complex():
        return torch.view_as_real(average.resolve_conj())
    return as_complex(average)


def whole_step(step: object, name: str) -> int:
    """A step count as an int, from what optimizers and checkpoints keep it in.

    Raises:
        ValueError: it is not one whole number from 0 to 2^53 - 1.
    """
    if type(step) is int and 0 <= step < formats.MOST_STEPS:
        return step
    try:
        value = float(step)  # type: ignore[arg-type]
        if 0 <= value < formats.MOST_STEPS and value == int(value):
            return int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ValueError(
        f"the state of {name} must have a step that is one whole number from 0 to 2^53 - 1, got "
        f"{step!r}"
    )


def check_inference(name: str) -> None:
    """Raises where autograd does not let tensors be written that were made in inference mode."""
    if not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{name} or its state was made in inference mode, and cannot be stepped outside of it: "
            "call step() under torch.inference_mode(), or make a parameter of its .clone()"
        )
