"""Which parameters of a state dictionary are which of those that it is converted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checkpoint import bare, parts
from .foreign import Group
from .recode import State, as_complex

Target = (
    torch.nn.Module
    | Optimizer
    | Mapping[str, Any]
    | Iterable[Tensor]
    | Iterable[tuple[str, Tensor]]
)


class Found(NamedTuple):
    """A parameter of the source."""

    name: str
    group: int
    state: State


class Wanted(NamedTuple):
    """A parameter of the target; where the group is None, it is the source's."""

    name: str
    group: int | None
    shape: torch.Size | None
    is_complex: bool = False


class Goal(NamedTuple):
    """All parameters of a target."""

    entries: list[Wanted]
    named: bool
    options: list[Group] | None = None
    """Of its groups, where it has some."""


def named_groups(raw_groups: list[Any]) -> tuple[list[Group], list[str] | None]:
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


def goal_of(target: Target | None, found: list[Found], named: bool) -> Goal:
    """The parameters of a target, by default those found."""
    if target is None:
        return Goal([Wanted(one.name, one.group, None) for one in found], named)
    if isinstance(target, Optimizer):
        return _of_groups(target.param_groups, {})
    if isinstance(target, Mapping) and "param_groups" in target:
        states, groups = parts(target)
        return _of_groups([dict(group) for group in groups], states)
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
    entries = [
        Wanted(names[i] if known else f"parameter {i}", None, param.shape, param.is_complex())
        for i, (_, param) in enumerate(pairs)
    ]
    return Goal(entries, known)


def _of_groups(groups: list[Group], states: Mapping[Any, Any]) -> Goal:
    groups, names = named_groups(groups)
    wanted: list[Wanted] = []
    for number, group in enumerate(groups):
        for param in group["params"]:
            name = names[len(wanted)] if names else f"parameter {len(wanted)}"
            shaped = param if isinstance(param, Tensor) else states.get(param, {}).get("exp_avg")
            is_complex = isinstance(shaped, Tensor) and shaped.is_complex()
            wanted.append(Wanted(name, number, getattr(shaped, "shape", None), is_complex))
    own = ("params", "param_names")
    options = [{key: group[key] for key in group if key not in own} for group in groups]
    return Goal(wanted, names is not None, options)


Pairs = list[tuple[Wanted, Found | None]]


def match(
    wanted: list[Wanted], found: list[Found], groups: int, by_name: bool
) -> tuple[Pairs, list[str]]:
    """Each wanted parameter with the one found for it, and the names of those found for none."""
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
        pairs, extra = _match_by_position(wanted, found, groups)
    pairs = [(entry, _for_complex(one) if entry.is_complex else one) for entry, one in pairs]
    for entry, one in pairs:
        shape = getattr(one.state.get("exp_avg"), "shape", None) if one else None
        if shape is not None and entry.shape is not None and shape != entry.shape:
            raise ValueError(
                f"{entry.name} must have a state of its shape {tuple(entry.shape)}, got "
                f"{tuple(shape)}: the state is of another model, or its parameters are in another "
                "order; where both sides have names, they are matched by these"
            )
    return pairs, extra


def _for_complex(one: Found | None) -> Found | None:
    """The state of a complex parameter, which a source may have kept as pairs of real numbers."""
    if one is None:
        return None
    state = {k: as_complex(v) if isinstance(v, Tensor) else v for k, v in one.state.items()}
    return one._replace(state=state)


def _match_by_position(
    wanted: list[Wanted], found: list[Found], groups: int
) -> tuple[Pairs, list[str]]:
    grouped = {entry.group for entry in wanted if entry.group is not None}
    if grouped and max(grouped) >= groups:
        raise ValueError(
            "the target must have as many groups as the state where the parameters have no names, "
            f"got {max(grouped) + 1} and {groups}"
        )
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
