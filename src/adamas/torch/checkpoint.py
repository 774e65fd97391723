"""``state_dict`` in and out, in the form of torch.optim's optimizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import formats
from ..hyper import Rule
from .hyperparameters import NAMES, mark_of, rule_of
from .kinds import Kind, kept, kind_of
from .layout import has_data
from .recode import State, format_of
from .scales import gather, shard
from .sharding import is_sharded, local
from .state import check_state, whole_step

if TYPE_CHECKING:
    from .base import Optimizer

StateDict = dict[str, Any]

# What a load leaves as a group has it; formats and places, since they say how an optimizer keeps
# its states, not what these are.
_APART = ("params", "param_names", "moments", "master_bits", "offload", "format")

_APEX = "apex's FusedAdam without bias correction"
_FOREIGN = {
    "momentum_decay": "NAdam",
    "bias_correction": _APEX,
    "alpha": "AdEMAMix",
    "rho": "Adadelta",
    "lambd": "ASGD",
}

# Wrappers of a model put these into its parameters' names.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def pack(state: Mapping[Any, State], groups: list[dict[str, Any]]) -> StateDict:
    """States by the parameters' positions and groups with positions for parameters.

    Step counts become tensors, as torch.optim keeps them: float32, which is exact to 2^24, and
    float64 beyond. Groups of other formats record their version.
    """
    params = [param for group in groups for param in group["params"]]
    position: dict[int, int] = {}
    for param in params:
        position.setdefault(id(param), len(position))
    packed_state = {
        (position[id(key)] if isinstance(key, Tensor) else key): pack_state(
            value | {"scales": shard(key, value["scales"])}
            if is_sharded(key) and "scales" in value
            else value
        )
        for key, value in state.items()
    }
    packed_groups = [
        {k: v for k, v in group.items() if k != "params"}
        | {"params": [position[id(param)] for param in group["params"]]}
        | ({"format": formats.VERSION} if group.keys() & {"moments", "master_bits"} else {})
        for group in groups
    ]
    return {"state": packed_state, "param_groups": packed_groups}


def pack_state(state: State) -> State:
    """A state with its step count as torch.optim keeps it."""
    step = state.get("step")
    if isinstance(step, Tensor) and step.dtype == torch.int64:  # counted on a device
        step = int(step)
    if not isinstance(step, int):
        return dict(state)
    if step == 0 and not state.keys() & {"square_avg", "words"}:
        # To torch's SGD, a momentum that is there has begun.
        state = {key: value for key, value in state.items() if key != "momentum_buffer"}
    dtype = torch.float32 if step <= 1 << 24 else torch.float64
    return state | {"step": torch.tensor(step, dtype=dtype, device="cpu")}


class Match(NamedTuple):
    """Which parameters of an optimizer found their state in a checkpoint.

    Attributes:
        by_name: how many were matched by their names.
        by_position: how many were matched by their places in the groups.
        missing: those of the optimizer that the checkpoint does not have.
        extra: those of the checkpoint that the optimizer does not have.
    """

    by_name: int
    by_position: int
    missing: list[str]
    extra: list[str]


def unpack(
    optimizer: Optimizer, state_dict: StateDict, strict: bool = True
) -> tuple[dict[Any, State], list[dict[str, Any]], Match]:
    """What ``state_dict`` says, as states by parameter and as parameter groups; all checked.

    Returns:
        Copies in the memory layout of the parameters, and what matched. Moments keep float32 where
        parameters have 16 bits. The optimizer is left as it is; unless strict, so are the states
        of parameters that ``state_dict`` lacks, and all options where it has more groups or fewer.

    Raises:
        ValueError: the state dictionary is foreign, or of another model.
    """
    saved_state, saved_groups = parts(state_dict)
    _check_rule(saved_groups, optimizer.rule)
    _check_foreign(saved_groups, optimizer)
    versions = [group.get("format", formats.VERSION) for group in saved_groups]
    if any(version != formats.VERSION for version in versions):
        raise ValueError(
            f"the state dictionary is of format version {versions[0]}, and this adamas reads "
            f"version {formats.VERSION}: load it with the adamas that saved it, or a newer one"
        )
    groups = optimizer.param_groups
    if strict:
        _check_sizes(saved_groups, groups)
    new_groups = [dict(group) for group in groups]
    if len(groups) == len(saved_groups):
        new_groups = [
            optimizer.complete_group(
                deepcopy({k: v for k, v in saved_groups[i].items() if k not in _APART})
                | {k: group[k] for k in _APART if k in group}
            )
            for i, group in zip(_origins(saved_groups, groups), groups, strict=True)
        ]
    pairs, match = _matches(saved_groups, new_groups, strict)
    states: dict[Any, State] = {}
    for key, param, name, kind in pairs:
        if key is None:
            states |= {param: optimizer.state[param]} if param in optimizer.state else {}
        elif saved_state.get(key):
            states[param] = _unpack_state(saved_state[key], param, kind, name)
    listed = {key for group in saved_groups for key in group["params"]}
    unknown = [key for key in saved_state if isinstance(key, int) and key not in listed]
    if unknown and strict:
        raise ValueError(f"the state dictionary has states {unknown[:5]} of no parameter")
    match.extra.extend(f"state {key}" for key in unknown)
    # Keys that no group lists are a subclass's own; names may stand for positions.
    own = {
        key: deepcopy(value)
        for key, value in saved_state.items()
        if not isinstance(key, int) and key not in listed
    }
    return states | own, new_groups, match


def parts(state_dict: Mapping[str, Any]) -> tuple[Mapping[Any, Any], list[Any]]:
    """The states and the parameter groups of a state dictionary.

    Raises:
        ValueError: it has not both.
    """
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    states = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    if not (
        isinstance(states, Mapping)
        and isinstance(groups, list)
        and all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
    ):
        raise ValueError(
            "the state dictionary must have 'state' and 'param_groups' in the form of "
            f"a torch.optim optimizer's state_dict(), got {type(state_dict).__name__}"
        )
    return states, groups


def _check_rule(saved_groups: list[Any], rule: type[Rule]) -> None:
    """Raises where groups have not the options of a rule, but perhaps another's."""
    own = NAMES[rule.rule]
    mark = mark_of(rule)
    for group in saved_groups:
        if (saved := rule_of(group)) is not rule:
            has = f"with {mark_of(saved)}" if saved and mark in group else f"without {mark}"
            other = f", but {NAMES[saved.rule]}'s: load it there" if saved else ""
            raise ValueError(
                f"the state dictionary has parameter groups {has}: it is not {own}'s{other}"
            )


def _check_foreign(saved_groups: list[Any], optimizer: Optimizer) -> None:
    """Raises where groups have options of optimizers whose states look like this one's."""
    known = {key for group in optimizer.param_groups for key in group}  # a wrapper's own, perhaps
    for key, of in _FOREIGN.items():
        for group in saved_groups:
            if key in group and key not in known and not (of == _APEX and group[key]):
                raise ValueError(
                    f"the state dictionary has parameter groups with {key}={group[key]!r}, as {of} "
                    f"has: it is not {NAMES[optimizer.rule.rule]}'s, and would go on otherwise"
                )


def _check_sizes(saved_groups: list[Any], groups: list[dict[str, Any]]) -> None:
    if len(groups) != len(saved_groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_groups)}, this optimizer {len(groups)}; where both know the names of "
            "their parameters, strict=False loads what matches"
        )
    saved_sizes = [len(group["params"]) for group in saved_groups]
    sizes = [len(group["params"]) for group in groups]
    if sizes != saved_sizes:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: {saved_sizes} parameters in its groups, {sizes} here; "
            "strict=False loads what matches"
        )


def origin(numbers: Iterable[int], place: int) -> int:
    """Of the saved groups that a group's parameters were in, the one whose options it takes.

    It is the one that most of them were in, among equals that of the group's own place.
    """
    counts = Counter(numbers)
    return max(counts, key=lambda n: (counts[n], n == place, -n), default=place)


def _origins(saved_groups: list[dict[str, Any]], groups: list[dict[str, Any]]) -> list[int]:
    """The ``origin`` of each group; its place where the names do not say who was where."""
    if _names(saved_groups, groups) is None:
        return list(range(len(groups)))
    saved = [map(bare, group["param_names"]) for group in saved_groups]
    group_of = {name: number for number, members in enumerate(saved) for name in members}
    own = [map(bare, group["param_names"]) for group in groups]
    return [
        origin((group_of[name] for name in members if name in group_of), place)
        for place, members in enumerate(own)
    ]


def _matches(
    saved_groups: list[dict[str, Any]], groups: list[dict[str, Any]], strict: bool
) -> tuple[list[tuple[Any, Tensor, str, Kind]], Match]:
    """Which saved state belongs to which parameter, None for none.

    By name where both sides know the names and no two parameters of a side share one, as an
    encoder's and a decoder's may; else by the place in the group.
    """
    keys = list(chain.from_iterable(group["params"] for group in saved_groups))
    params = [(p, kind_of(group)) for group in groups for p in group["params"]]
    both = _names(saved_groups, groups)
    if both is None:
        return _matches_by_position(saved_groups, groups)
    saved_names, names = both
    missing = [name for name in names if name not in set(saved_names)]
    extra = [name for name in saved_names if name not in set(names)]
    if strict and (missing or extra):
        raise ValueError(
            f"the state dictionary is of other parameters than these: it lacks {missing[:5]} and "
            f"has {extra[:5]} beyond them. To load what matches, give strict=False; to match by "
            "position, delete 'param_names' from its param_groups"
        )
    key_of = dict(zip(saved_names, keys, strict=True))
    pairs = [
        (key_of.get(name), param, name, kind)
        for name, (param, kind) in zip(names, params, strict=True)
    ]
    return pairs, Match(len(names) - len(missing), 0, missing, extra)


def _matches_by_position(
    saved_groups: list[dict[str, Any]], groups: list[dict[str, Any]]
) -> tuple[list[tuple[Any, Tensor, str, Kind]], Match]:
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the state dictionary has {len(saved_groups)} parameter groups, this optimizer "
            f"{len(groups)}, and not both know distinct names of their parameters: make the "
            "optimizers with model.named_parameters(), or with as many groups"
        )
    pairs: list[tuple[Any, Tensor, str, Kind]] = []
    missing: list[str] = []
    extra: list[str] = []
    for saved, group in zip(saved_groups, groups, strict=True):
        keys = saved["params"] + [None] * (len(group["params"]) - len(saved["params"]))
        for key, param in zip(keys, group["params"], strict=False):
            name = f"parameter {len(pairs)}"
            pairs.append((key, param, name, kind_of(group)))
            missing.extend([name] if key is None else [])
        extra.extend(f"parameter {key}" for key in saved["params"][len(group["params"]) :])
    return pairs, Match(0, len(pairs) - len(missing), missing, extra)


def _names(*sides: list[dict[str, Any]]) -> list[list[str]] | None:
    """Those of each side's parameters; None unless both know them, and each has its own."""
    if not all("param_names" in group for side in sides for group in side):
        return None
    names = [[bare(name) for group in side for name in group["param_names"]] for side in sides]
    return names if all(of and len(set(of)) == len(of) for of in names) else None


def bare(name: str) -> str:
    """A parameter's name without what wrappers of its model put into it."""
    *modules, last = name.split(".")
    return ".".join([*(part for part in modules if part not in _WRAPPERS), last])


def _unpack_state(saved: State, param: Tensor, kind: Kind, name: str) -> State:
    rule = NAMES[kind.rule]
    if kind.rule == "sgd" and isinstance(saved, Mapping):
        saved = _counted(saved)
    if not isinstance(saved, Mapping) or "step" not in saved:
        raise ValueError(f"the state of {name} has no step: it is not {rule}'s")
    averages = [key for key in kind.keys[:2] if key]
    coded = "words" in saved and bool(averages)
    needed = ["words", "scales"] if coded else averages
    # SGD's momentum, or AMSGrad's maximum, has not begun where it was switched on since.
    if kind.rule != "sgd" and (lacking := [key for key in needed if key not in saved]):
        raise ValueError(f"the state of {name} lacks {', '.join(lacking)}: it is not {rule}'s")
    own = {*needed, "remainder", "master", kind.keys[2]}
    arrays = {key: value for key, value in saved.items() if key in own}
    # Torch's optimizers carry along what they do not know, in the parameter's type, and step on.
    for key, dtype in (("remainder", torch.uint8), ("master", torch.float32)):
        if getattr(arrays.get(key), "dtype", dtype) != dtype:
            del arrays[key]
    for key, value in arrays.items():
        if isinstance(value, Tensor) and value.shape[: param.dim()] == param.shape:
            arrays[key] = value.detach().clone(memory_format=torch.preserve_format)
    state = {"step": whole_step(saved["step"], name)} | arrays
    if coded:
        state = _check_coded(state, param, kind, name)
    for key in formats.SQUARES:
        _check_not_negative(state.get(key), key, name)
    rest = {k: deepcopy(v) for k, v in saved.items() if k not in own | {"step"}}
    return check_state(param, state, kind, name) | rest


def _check_not_negative(squares: object, key: str, name: str) -> None:
    part = local(squares) if isinstance(squares, Tensor) else None
    if part is None or not has_data(part) or not part.numel():
        return
    numbers = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
    if (numbers < 0).any():
        raise ValueError(
            f"the state of {name} must have {key} of at least 0, got {numbers.min().item()}: it is "
            "damaged, load another copy"
        )


def _counted(saved: Mapping[str, Any]) -> State:
    """SGD's state with its step count; torch's has none, and may have None for a momentum.

    Where torch has stepped on from one that was saved here, its count is of then.
    """
    found = {key: value for key, value in saved.items() if not _is_missing(value)}
    if "momentum_buffer" in found:
        return found | {"step": max(whole_step(found.get("step", 1), "a parameter"), 1)}
    return {"step": 0} | found


def _is_missing(value: object) -> bool:
    """Whether there is none: in torch's flattened state dictionaries an empty one stands for it."""
    return value is None or (isinstance(value, Mapping) and not value)


def _check_coded(state: State, param: Tensor, kind: Kind, name: str) -> State:
    """A state with moments of a codec as this process keeps it, checked.

    Raises:
        ValueError: words or scales are not what an encoder can have written.
    """
    for key, dtype in (("words", torch.uint8), ("scales", torch.bfloat16)):
        value = state.get(key)
        if not isinstance(value, Tensor) or value.dtype != dtype:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the state of {name} must have {key} of {dtype}, got {got}")
    if state["scales"].numel() % formats.SCALES:
        raise ValueError(
            f"the state of {name} must have {formats.SCALES} scales for each group, got shape "
            f"{tuple(state['scales'].shape)}: it is damaged, load another copy"
        )
    state = gather(param, state)
    own = format_of(param, state)
    wanted = kept(param, kind._replace(moments=own, master_bits=None))
    for key in ("words", "scales"):
        shape = tuple(local(state[key]).shape)
        if shape != wanted[key].shape:
            raise ValueError(
                f"the state of {name} must have {key} of shape {wanted[key].shape}, got {shape}: "
                "it is of another model"
            )
    if has_data(state["scales"]):
        halves = state["scales"].detach().cpu().contiguous().view(torch.int16).numpy()
        formats.check_scales(halves.view("uint16"), f"the scales of {name}")
    return state
