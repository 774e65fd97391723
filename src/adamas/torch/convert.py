"""State dictionaries of other Adam optimizers, turned into that of torch.optim's and adamas's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checkpoint import StateDict, bare, pack_state, parts
from .foreign import Group, Layout, in_the_group, recognise
from .hyperparameters import hyper_of
from .recode import State

FORMATS = ("torch", "adamas")

Target = (
    torch.nn.Module
    | Optimizer
    | Mapping[str, Any]
    | Iterable[Tensor]
    | Iterable[tuple[str, Tensor]]
)

_DEFAULTS: Group = {"maximize": False, "capturable": False, "differentiable": False}
_DEFAULTS |= {"foreach": None, "fused": None}
# What peers keep beside the moments, and where it belongs if it is worth keeping.
_ELSEWHERE = {
    "error_bits": "they complete the weights: save these in float32, by get_fp32_model_state_dict",
    "remainder": "it completes the weights: train on with adamas, or save them in float32",
    "master": "it is the weights in float32: train on with adamas, or save it with the model",
    "kahan_comp": "it completes the weights, and is below their precision",
}


class Report(NamedTuple):
    """What a conversion found; printed as a short table.

    Attributes:
        source: the kind of optimizer that the state was recognised as.
        to: the format it was turned into.
        parameters: how many the result has.
        stepped: how many of these have a state.
        by_name: how many were matched by their names.
        by_position: how many were matched by their places in the groups.
        missing: parameters of the target that the source does not have.
        extra: parameters of the source that the target does not have; they were left out.
        notes: what the source does not say, and what of it was left out.
    """

    source: str
    to: str
    parameters: int
    stepped: int
    by_name: int
    by_position: int
    missing: list[str]
    extra: list[str]
    notes: list[str]

    def __str__(self) -> str:
        """The report as a table of two columns."""
        rows = [
            ("recognised", self.source),
            ("written for", self.to),
            ("parameters", f"{self.parameters}, {self.stepped} with a state"),
            ("matched", f"{self.by_name} by name, {self.by_position} by position"),
            ("missing", _listed(self.missing)),
            ("extra", _listed(self.extra)),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<13}{text}" for name, text in rows)


class Converted(NamedTuple):
    """A converted state dictionary and the report of its conversion."""

    state_dict: StateDict
    report: Report


class _Found(NamedTuple):
    """A parameter of the source."""

    name: str
    group: int
    state: State


class _Source(NamedTuple):
    """What a state dictionary holds, in torch.optim's layout."""

    name: str
    params: list[_Found]
    options: list[Group]
    named: bool
    notes: list[str]


class _Wanted(NamedTuple):
    """A parameter of the target; where the group is None, it is the source's."""

    name: str
    group: int | None
    shape: torch.Size | None


def convert_state_dict(
    state_dict: Mapping[str, Any],
    target: Target | None = None,
    *,
    to: str = "torch",
    strict: bool = True,
    decoupled_weight_decay: bool | None = None,
) -> Converted:
    """Turns the state of another Adam optimizer into that of torch.optim's Adam and adamas's.

    The kind of optimizer is recognised from the state: torch.optim, apex's FusedAdam, DeepSpeed's
    CPUAdam and FusedAdam, bitsandbytes in 32 and 8 bits, torchao in 8 and 4 bits, optimi and
    flashoptim. Moments kept in fewer than 32 bits arrive as the float32 that they stand for.

    Args:
        state_dict: what the optimizer's ``state_dict()`` gave; it is left as it is, and the result
            shares the tensors that did not have to change.
        target: whom the result is for: a model, an optimizer, its state dictionary, or parameters
            with or without names. Parameters are matched by name where both sides know the names,
            else by position. Without a target each keeps its place.
        to: "torch" or "adamas", which have one form.
        strict: refuse a source that lacks a parameter of the target or has others. Else those it
            lacks get no state, and the others are left out.
        decoupled_weight_decay: whether the decay is AdamW's. By default as the source says, and
            where it does not, as the class that loads the result has it.

    Returns:
        The state dictionary, and a report of what was recognised, matched and left out.

    Raises:
        ValueError: the source is damaged, of an unknown kind or of other parameters.
        TypeError: the target is of another kind.
    """
    if to not in FORMATS:
        raise ValueError(f"to must be {' or '.join(map(repr, FORMATS))}, got {to!r}")
    source = _read_source(state_dict)
    kept, options = source.params, source.options
    if decoupled_weight_decay is not None:
        options = [o | {"decoupled_weight_decay": decoupled_weight_decay} for o in options]
    wanted, named = _wanted(target, kept, source.named)
    by_name = named and source.named
    pairs, extra = _match(wanted, kept, len(options), by_name)
    missing = [entry.name for entry, one in pairs if one is None]
    if strict and (missing or extra):
        raise ValueError(
            f"the state must be of the target's parameters: it lacks {missing[:5]} and has "
            f"{extra[:5]} beyond them; to convert what matches, give strict=False"
        )
    matched = len(pairs) - len(missing)
    result = _assemble(pairs, options, named)
    report = Report(
        source=source.name,
        to=to,
        parameters=len(pairs),
        stepped=len(result["state"]),
        by_name=matched if by_name else 0,
        by_position=0 if by_name else matched,
        missing=missing,
        extra=extra,
        notes=source.notes + _decay_notes(options),
    )
    return Converted(result, report)


def _read_source(state_dict: Mapping[str, Any]) -> _Source:
    if isinstance(state_dict, Mapping) and "zero_stage" in state_dict:
        raise ValueError(
            "the state must be whole, got one rank's part of DeepSpeed's ZeRO: gather it first, "
            "with DeepSpeed's ds_to_universal"
        )
    states, raw_groups = parts(state_dict)
    groups, names = _named(raw_groups)
    _check_keys(groups, states)
    layout = recognise(groups, states.values())
    found, options = _read_groups(layout, groups, states, names)
    kept, notes = _drop_foreign(found)
    return _Source(layout.name, kept, options, names is not None, notes)


def _named(raw_groups: list[Any]) -> tuple[list[Group], list[str] | None]:
    """The groups, and their parameters' names: FSDP's state dictionaries have them for keys."""
    groups = [dict(group) for group in raw_groups]
    keys = list(chain.from_iterable(group["params"] for group in groups))
    if keys and all(isinstance(key, str) for key in keys):
        return groups, keys
    if not keys or not all("param_names" in group for group in groups):
        return groups, None
    names = list(chain.from_iterable(group["param_names"] for group in groups))
    if len(names) != len(keys):
        raise ValueError(
            f"param_names must be one for each of {len(keys)} parameters, got {len(names)}: the "
            "state dictionary is damaged"
        )
    return groups, names


def _check_keys(groups: list[Group], states: Mapping[Any, Any]) -> None:
    keys = list(chain.from_iterable(group["params"] for group in groups))
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise ValueError(f"each parameter must be in one group, got {twice[:5]} in more")
    if unknown := [key for key in states if key not in set(keys)]:
        raise ValueError(
            f"each state must be of a parameter of a group, got states {unknown[:5]} of none: the "
            "state dictionary is damaged"
        )
    for key, state in states.items():
        if not isinstance(state, Mapping):
            raise ValueError(
                f"the state of parameter {key} must be a dictionary, got {type(state).__name__}"
            )


def _read_groups(
    layout: Layout, groups: list[Group], states: Mapping[Any, State], names: list[str] | None
) -> tuple[list[_Found], list[Group]]:
    """All parameters with their states in torch.optim's layout, and the groups' options."""
    found: list[_Found] = []
    options = []
    for number, raw in enumerate(groups):
        keys = raw["params"]
        group, group_states = in_the_group(layout, raw, [states.get(key) or {} for key in keys])
        for key, state in zip(keys, group_states, strict=True):
            name = names[len(found)] if names else f"parameter {key}"
            read = layout.read_state(dict(state), group, name) if state else {}
            found.append(_Found(name, number, read))
        options.append(_options(layout, group))
    return found, options


def _options(layout: Layout, group: Group) -> Group:
    """A group's options as torch.optim's, checked; ``decoupled_weight_decay`` only if known."""
    dropped = layout.own | {"params", "param_names"}
    read = layout.read_group(group)
    options = _DEFAULTS | {key: value for key, value in read.items() if key not in dropped}
    lacking = [key for key in ("lr", "betas", "eps", "weight_decay") if key not in options]
    if lacking:
        raise ValueError(f"each group must have {', '.join(lacking)}, got {sorted(group)}")
    hyper_of({"decoupled_weight_decay": False} | options)
    return options


def _drop_foreign(found: list[_Found]) -> tuple[list[_Found], list[str]]:
    """The states without what torch.optim has no place for, and notes of what that was."""
    places = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    counts = Counter(key for one in found for key in one.state if key not in places)
    notes = [
        f"{key} of {count} parameters was left out"
        + (f": {_ELSEWHERE[key]}" if key in _ELSEWHERE else "")
        for key, count in sorted(counts.items())
    ]
    kept = [
        one._replace(state={key: value for key, value in one.state.items() if key in places})
        for one in found
    ]
    return kept, notes


def _decay_notes(options: list[Group]) -> list[str]:
    unknown = any(o["weight_decay"] and "decoupled_weight_decay" not in o for o in options)
    text = (
        "the source does not say whether its weight decay is decoupled: AdamW will take it as "
        "decoupled, Adam as not"
    )
    return [text] if unknown else []


def _wanted(target: Target | None, found: list[_Found], named: bool) -> tuple[list[_Wanted], bool]:
    """The parameters of a target, and whether their names are known."""
    if target is None:
        return [_Wanted(one.name, one.group, None) for one in found], named
    if isinstance(target, Optimizer):
        return _wanted_groups(target.param_groups, {})
    if isinstance(target, Mapping) and "param_groups" in target:
        states, groups = parts(target)
        return _wanted_groups([dict(group) for group in groups], states)
    if isinstance(target, torch.nn.Module):
        target = target.named_parameters()
    items: list[Any] = list(target.items() if isinstance(target, Mapping) else target)
    pairs = [item if isinstance(item, tuple) else (None, item) for item in items]
    if not all(len(pair) == 2 and isinstance(pair[1], Tensor) for pair in pairs):
        raise TypeError(
            "target must be a model, an optimizer, its state dictionary, or parameters with or "
            f"without names, got {type(target).__name__}"
        )
    names = [name for name, _ in pairs]
    known = all(isinstance(name, str) for name in names)
    return [
        _Wanted(names[i] if known else f"parameter {i}", None, param.shape)
        for i, (_, param) in enumerate(pairs)
    ], known


def _wanted_groups(groups: list[Group], states: Mapping[Any, Any]) -> tuple[list[_Wanted], bool]:
    groups, names = _named(groups)
    wanted: list[_Wanted] = []
    for number, group in enumerate(groups):
        for param in group["params"]:
            name = names[len(wanted)] if names else f"parameter {len(wanted)}"
            shaped = param if isinstance(param, Tensor) else states.get(param, {}).get("exp_avg")
            wanted.append(_Wanted(name, number, getattr(shaped, "shape", None)))
    return wanted, names is not None


Pairs = list[tuple[_Wanted, _Found | None]]


def _match(
    wanted: list[_Wanted], found: list[_Found], groups: int, by_name: bool
) -> tuple[Pairs, list[str]]:
    """Each wanted parameter with the one found for it, and the names of those found for none."""
    grouped = {entry.group for entry in wanted if entry.group is not None}
    if grouped and max(grouped) >= groups:
        raise ValueError(
            f"the target must have as many groups as the state, got {max(grouped) + 1} and {groups}"
        )
    if by_name:
        place = {bare(one.name): one for one in found}
        goals = {bare(entry.name) for entry in wanted}
        for names in ([one.name for one in found], [entry.name for entry in wanted]):
            if twice := [name for name, n in Counter(map(bare, names)).items() if n > 1]:
                raise ValueError(
                    f"each parameter must have a name of its own, got {twice[:5]} twice: delete "
                    "'param_names' from param_groups to match by position"
                )
        pairs: Pairs = [(entry, place.get(bare(entry.name))) for entry in wanted]
        extra = [one.name for name, one in place.items() if name not in goals]
    else:
        pairs, extra = _match_by_position(wanted, found, groups, bool(grouped))
    for entry, one in pairs:
        shape = getattr(one.state.get("exp_avg"), "shape", None) if one else None
        if shape is not None and entry.shape is not None and shape != entry.shape:
            raise ValueError(
                f"{entry.name} must have a state of its shape {tuple(entry.shape)}, got "
                f"{tuple(shape)}: the state is of another model, or its parameters are in another "
                "order; where both sides have names, they are matched by these"
            )
    return pairs, extra


def _match_by_position(
    wanted: list[_Wanted], found: list[_Found], groups: int, grouped: bool
) -> tuple[Pairs, list[str]]:
    if not grouped and groups > 1:
        raise ValueError(
            f"the state has {groups} groups and no names, so that a model's parameters cannot be "
            "matched with it: give the optimizer as the target"
        )
    pairs: Pairs = []
    extra = []
    for number in range(groups):
        mine = [entry for entry in wanted if (entry.group or 0) == number]
        theirs = [one for one in found if one.group == number]
        for entry, one in zip_longest(mine, theirs):
            if entry is None:
                extra.append(one.name)
            else:
                pairs.append((entry, one))
    return pairs, extra


def _assemble(pairs: Pairs, options: list[Group], named: bool) -> StateDict:
    """A state dictionary of torch.optim's form, with its parameters numbered in its order."""
    members: list[Pairs] = [[] for _ in options]
    for entry, one in pairs:
        group = entry.group if entry.group is not None else one.group if one else None
        if group is None and len(options) > 1:
            raise ValueError(
                f"{entry.name} is missing, and which of the {len(options)} groups it is of is "
                "unknown: give the optimizer as the target"
            )
        members[group or 0].append((entry, one))
    states: dict[int, State] = {}
    groups: list[Group] = []
    number = 0
    for mine, option in zip(members, options, strict=True):
        names = {"param_names": [entry.name for entry, _ in mine]} if named else {}
        groups.append(option | names | {"params": list(range(number, number + len(mine)))})
        for _, one in mine:
            if one and one.state:
                states[number] = pack_state(one.state)
            number += 1
    return {"state": states, "param_groups": groups}


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)}: {shown}{', ...' if len(names) > 5 else ''}" if names else "0"
