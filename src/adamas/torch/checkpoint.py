"""``state_dict`` in and out, in the form of torch.optim.Adam's."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .state import State, check_state, moment_names, whole_step

if TYPE_CHECKING:
    from .optimizer import Adam

StateDict = dict[str, Any]

# Wrappers of a model put these before its parameters' names.
_PREFIXES = ("module.", "_orig_mod.")


def pack(state: Mapping[Any, State], groups: list[dict[str, Any]]) -> StateDict:
    """States by the parameters' positions and groups with positions for parameters.

    Step counts become tensors, as torch.optim keeps them: float32, which is exact to 2^24, and
    float64 beyond.
    """
    params = [param for group in groups for param in group["params"]]
    position: dict[int, int] = {}
    for param in params:
        position.setdefault(id(param), len(position))
    packed_state = {
        (position[id(key)] if isinstance(key, Tensor) else key): _pack_state(value)
        for key, value in state.items()
    }
    packed_groups = [
        {k: v for k, v in group.items() if k != "params"}
        | {"params": [position[id(param)] for param in group["params"]]}
        for group in groups
    ]
    return {"state": packed_state, "param_groups": packed_groups}


def _pack_state(state: State) -> State:
    step = state.get("step")
    if not isinstance(step, int):
        return dict(state)
    dtype = torch.float32 if step <= 1 << 24 else torch.float64
    return state | {"step": torch.tensor(step, dtype=dtype)}


def unpack(optimizer: Adam, state_dict: StateDict) -> tuple[dict[Any, State], list[dict[str, Any]]]:
    """What ``state_dict`` says, as states by parameter and as parameter groups; all checked.

    Returns:
        Copies in the memory layout of the parameters. Moments keep float32 where parameters have
        16 bits. The optimizer is left as it is.

    Raises:
        ValueError: the state dictionary is foreign, or of another model.
    """
    saved_groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    saved_state = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    if not (
        isinstance(saved_state, Mapping)
        and isinstance(saved_groups, list)
        and all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in saved_groups)
    ):
        raise ValueError(
            "the state dictionary must have 'state' and 'param_groups' in the form of "
            f"torch.optim.Adam's state_dict(), got {type(state_dict).__name__}"
        )
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if not all("betas" in group for group in saved_groups):
        raise ValueError(
            "the state dictionary has parameter groups without betas: it is not Adam's"
        )
    groups = optimizer.param_groups
    if len(groups) != len(saved_groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_groups)}, this optimizer {len(groups)}"
        )
    sizes = [len(group["params"]) for group in groups]
    if sizes != saved_sizes:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: {saved_sizes} parameters in its groups, {sizes} here"
        )
    new_groups = [
        optimizer.complete_group(
            deepcopy({k: v for k, v in saved.items() if k not in ("params", "param_names")})
            | {k: group[k] for k in ("params", "param_names") if k in group}
        )
        for saved, group in zip(saved_groups, groups, strict=True)
    ]
    states: dict[Any, State] = {}
    known: set[Any] = set()
    for key, param, name, amsgrad in _matches(saved_groups, new_groups):
        known.add(key)
        if saved_state.get(key):
            states[param] = _unpack_state(saved_state[key], param, amsgrad, name)
    if unknown := [key for key in saved_state if isinstance(key, int) and key not in known]:
        raise ValueError(f"the state dictionary has states {unknown[:5]} of no parameter")
    extra = {k: deepcopy(v) for k, v in saved_state.items() if not isinstance(k, int)}
    return states | extra, new_groups


def _matches(
    saved_groups: list[dict[str, Any]], groups: list[dict[str, Any]]
) -> list[tuple[Any, Tensor, str, bool]]:
    """Which saved state belongs to which parameter: by name where both sides know the names."""
    keys = list(chain.from_iterable(group["params"] for group in saved_groups))
    params = [(p, group["amsgrad"]) for group in groups for p in group["params"]]
    saved_names, names = _names(saved_groups), _names(groups)
    if saved_names is None or names is None:
        return [
            (key, param, f"parameter {i}", amsgrad)
            for i, (key, (param, amsgrad)) in enumerate(zip(keys, params, strict=True))
        ]
    if set(saved_names) != set(names):
        missing, unexpected = set(names) - set(saved_names), set(saved_names) - set(names)
        raise ValueError(
            "the state dictionary is of other parameters than these: it lacks "
            f"{sorted(missing)[:5]} and has {sorted(unexpected)[:5]} beyond them. To match by "
            "position, delete 'param_names' from its param_groups"
        )
    key_of = dict(zip(saved_names, keys, strict=True))
    return [
        (key_of[name], param, name, amsgrad)
        for name, (param, amsgrad) in zip(names, params, strict=True)
    ]


def _names(groups: list[dict[str, Any]]) -> list[str] | None:
    if not all("param_names" in group for group in groups):
        return None
    names = list(chain.from_iterable(group["param_names"] for group in groups))
    return [_bare(name) for name in names]


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.replace(prefix, "")
    return name


def _unpack_state(saved: State, param: Tensor, amsgrad: bool, name: str) -> State:
    if not isinstance(saved, Mapping) or "step" not in saved:
        raise ValueError(f"the state of {name} has no step: it is not Adam's")
    needed = moment_names(amsgrad)
    if lacking := [key for key in needed if key not in saved]:
        raise ValueError(f"the state of {name} lacks {', '.join(lacking)}: it is not Adam's")
    moments = {key: value for key, value in saved.items() if key in needed}
    for key, value in moments.items():
        if isinstance(value, Tensor) and value.shape == param.shape:
            moments[key] = value.detach().clone(memory_format=torch.preserve_format)
    rest = {k: deepcopy(v) for k, v in saved.items() if k != "step" and k not in moments}
    state = {"step": whole_step(saved["step"], name)} | moments
    return check_state(param, state, amsgrad, name) | rest
