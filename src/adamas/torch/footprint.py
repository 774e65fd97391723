"""What an optimizer holds in memory now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..footprint import Line, added_up, cells
from ..text import aligned
from .home import offloads
from .kinds import kind_of
from .recode import State
from .sharding import local

_MASTERS = ("master", "remainder")


class Memory:
    """The bytes of an optimizer's parameters; ``print`` shows them as a table.

    Of sharded parameters it is what this process holds.

    Attributes:
        groups: an ``adamas.footprint.Line`` for each parameter group.
        total: their sum.
        host: the part of it that ``offload`` keeps in the host's memory.
    """

    def __init__(self, param_groups: Sequence[dict[str, Any]], states: Mapping[Any, State]) -> None:
        self.groups = [
            added_up(f"group {i}", [_line(p, states.get(p, {})) for p in group["params"]])
            for i, group in enumerate(param_groups)
        ]
        self.total = added_up("total", self.groups)
        away = [
            _line(p, states.get(p, {}))._replace(weights=0, gradients=0)
            for group, kind in zip(param_groups, map(kind_of, param_groups), strict=True)
            for p in group["params"]
            if offloads(p, kind) and _is_on_host(states.get(p, {}))
        ]
        self.host = added_up("on the host", away)

    def __str__(self) -> str:
        """A line a group, then the total, and what of it is on the host if anything is."""
        return aligned(cells([*self.groups, self.total, *[self.host] * bool(self.host.total)]))


def _line(param: Tensor, state: State) -> Line:
    kept = {"master": 0, "moments": 0}
    for key, value in state.items():
        if isinstance(value, Tensor) and key != "step":
            kept["master" if key in _MASTERS else "moments"] += _size(value)
    gradient = 0 if param.grad is None else _size(param.grad)
    return Line("", local(param).numel(), _size(param), gradients=gradient, **kept)


def _is_on_host(state: State) -> bool:
    """Not so if ``offload`` has been switched on since the last step."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return all(local(value).device.type == "cpu" for value in tensors)


def _size(tensor: Tensor) -> int:
    part = local(tensor)
    return part.numel() * part.element_size()
