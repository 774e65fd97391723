"""State dictionaries of other Adam optimizers, turned into that of torch.optim's and adamas's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

from .checkpoint import StateDict, origin, pack_state, parts
from .foreign import Group, Layout, in_the_group, recognise
from .hyperparameters import hyper_of
from .matching import Found, Pairs, Target, goal_of, match, named_groups
from .recode import State

FORMATS = ("torch", "adamas")

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
    """A converted state dictionary and the report of its conversion.

    Attributes:
        state_dict: in torch.optim's form.
        report: what was recognised, matched and left out.
    """

    state_dict: StateDict
    report: Report


class _Source(NamedTuple):
    """What a state dictionary holds, in torch.optim's layout."""

    name: str
    params: list[Found]
    options: list[Group]
    named: bool
    notes: list[str]


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
            else by position. A target with other groups than the source's, which needs names, keeps
            its own options. Without a target each parameter keeps its place.
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
    goal = goal_of(target, kept, source.named)
    by_name = goal.named and source.named
    pairs, extra = match(goal.entries, kept, len(options), by_name)
    missing = [entry.name for entry, one in pairs if one is None]
    if strict and (missing or extra):
        raise ValueError(
            f"the state must be of the target's parameters: it lacks {missing[:5]} and has "
            f"{extra[:5]} beyond them; to convert what matches, give strict=False"
        )
    matched = len(pairs) - len(missing)
    notes = source.notes + _decay_notes(options)
    if goal.options and len(goal.options) != len(options):
        notes.append(f"the target's {len(goal.options)} groups keep their own options")
        options = goal.options
    elif goal.options and by_name:
        found = [
            [one.group for entry, one in pairs if one and entry.group == i]
            for i in range(len(options))
        ]
        options = [options[origin(numbers, place)] for place, numbers in enumerate(found)]
    result = _assemble(pairs, options, goal.named)
    report = Report(
        source=source.name,
        to=to,
        parameters=len(pairs),
        stepped=len(result["state"]),
        by_name=matched if by_name else 0,
        by_position=0 if by_name else matched,
        missing=missing,
        extra=extra,
        notes=notes,
    )
    return Converted(result, report)


def _read_source(state_dict: Mapping[str, Any]) -> _Source:
    if isinstance(state_dict, Mapping) and "zero_stage" in state_dict:
        raise ValueError(
            "the state must be whole, got one rank's part of DeepSpeed's ZeRO: gather it first, "
            "with DeepSpeed's ds_to_universal"
        )
    states, raw_groups = parts(state_dict)
    groups, names = named_groups(raw_groups)
    _check_keys(groups, states)
    layout = recognise(groups, states.values())
    found, options = _read_groups(layout, groups, states, names)
    kept, notes = _drop_foreign(found)
    return _Source(layout.name, kept, options, names is not None, notes)


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
) -> tuple[list[Found], list[Group]]:
    """All parameters with their states in torch.optim's layout, and the groups' options."""
    found: list[Found] = []
    options = []
    for number, raw in enumerate(groups):
        keys = raw["params"]
        group, group_states = in_the_group(layout, raw, [states.get(key) or {} for key in keys])
        for key, state in zip(keys, group_states, strict=True):
            name = names[len(found)] if names else f"parameter {key}"
            read = layout.read_state(dict(state), group, name) if state else {}
            found.append(Found(name, number, read))
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


def _drop_foreign(found: list[Found]) -> tuple[list[Found], list[str]]:
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
