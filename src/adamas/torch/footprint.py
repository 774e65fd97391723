"""What an optimizer holds in memory now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..footprint import Line, added_up, cells
from ..text import aligned
from .recode import State
from .sharding import local

_MASTERS = ("master", "remainder")


class Memory:
    """The bytes of an optimizer's parameters; ``print`` shows them as a table.

    Of sharded parameters it is what this process holds.

    Attributes:
        groups: an ``adamas.footprint.Line`` for each parameter group.
        total: their sum.
    """

    def __init__(self, param_groups: Sequence[dict[str, Any]], states: Mapping[Any, State]) -> None:
        self.groups = [
            added_up(f"group {i}", [_line(p, states.get(p, {})) for p in group["params"]])
            for i, group in enumerate(param_groups)
        ]
        self.total = added_up("total", self.groups)

    def __str__(self) -> str:
        """A line a group, then the total."""
        return aligned(cells([*self.groups, self.total]))


def _line(param: Tensor, state: State) -> Line:
    kept = {"master": 0, "moments": 0}
    for key, value in state.items():
        if isinstance(value, Tensor):
            kept["master" if key in _MASTERS else "moments"] += _size(value)
    gradient = 0 if param.grad is None else _size(param.grad)
    return Line("", local(param).numel(), _size(param), gradients=gradient, **kept)


def _size(tensor: Tensor) -> int:
    part = local(tensor)
    return part.numel() * part.element_size()
