"""Which parameters a plan has, and the state of each."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from torch import Tensor

from .home import offloads
from .kinds import Kind
from .layout import is_plain
from .recode import State
from .state import Entry, check_grad, check_param, check_recordable, check_state, zero_states

Groups = list[dict[str, Any]]  # torch's param_groups
States = MutableMapping[Tensor, State]


def name_of(group: dict[str, Any], number: int, i: int) -> str:
    """What errors and statistics call the parameter i of the group of this number."""
    names = group.get("param_names")
    return str(names[i]) if names else f"parameter {i} of group {number}"


def entries_of(groups: Groups, kinds: list[Kind], states: States, counts: bool) -> Iterator[Entry]:
    """Each parameter once that has a gradient, or a state to go on from, with the state it needs.

    Others without a gradient are left alone, whatever they and their states are.
    """
    found: dict[Tensor, tuple[str, int]] = {}
    for number, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            if param not in found and (param.grad is not None or states.get(param)):
                found[param] = name_of(group, number, i), number
    new = [
        (param, kinds[number])
        for param, (_, number) in found.items()
        if not (states.get(param) or offloads(param, kinds[number])) and is_plain(param)
    ]
    made = dict(zip((param for param, _ in new), zero_states(new), strict=True))
    for param, (name, number) in found.items():
        kind = kinds[number]
        given = made[param] if param in made else states.get(param, {})
        if param.grad is None:
            idle = _idle_state(param, given, kind, name, counts)
            if idle is not None:
                yield Entry(name, number, param, idle, kind.keys)
            continue
        check_param(param, name)
        check_grad(param, param.grad, name)
        if kind.differentiable:
            check_recordable(param, states.get(param, {}), name)
        state = check_state(param, given, kind, name, counts)
        yield Entry(name, number, param, state, kind.keys)


def _idle_state(param: Tensor, state: State, kind: Kind, name: str, counts: bool) -> State | None:
    """The state of a parameter without a gradient; None where no step could go on from it."""
    try:
        check_param(param, name)
        return check_state(param, state, kind, name, counts)
    except Exception:  # whatever others have left there
        return None
