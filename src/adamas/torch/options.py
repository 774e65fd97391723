"""A parameter group's options, looked at again only where they have become others."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .. import native
from ..hyper import Rule
from .hyperparameters import hyper_of
from .kinds import Kind, is_of


class Options:
    """What a group's options were when a plan was last seen to hold.

    Args:
        group: the parameter group.
        kind: its rule and formats.
    """

    def __init__(self, group: dict[str, Any], kind: Kind) -> None:
        self._kind = kind
        self._keep(group)

    def _keep(self, group: dict[str, Any]) -> None:
        self._keys, self._values = list(group), list(group.values())
        self._may_change = _may_change(group)
        self._hyper: Rule | None = None

    def hold(self, group: dict[str, Any]) -> bool:
        """Whether the group still is of its kind; its numbers may be others than before."""
        same = native.identical(group, self._values) and list(group) == self._keys
        if same and not self._may_change:
            return True
        if not is_of(group, self._kind):  # kept as they were: what is refused once stays so
            return False
        if not same:
            self._keep(group)
        return True

    def hyper(self, group: dict[str, Any]) -> Rule:
        """The group's hyperparameters, checked; to be asked after ``hold``."""
        if self._hyper is not None:
            return self._hyper
        hyper = hyper_of(group)
        if not self._may_change:
            self._hyper = hyper
        return hyper


def _may_change(group: dict[str, Any]) -> bool:
    """Whether a group's numbers may become others while its options stay the same objects."""
    betas = group.get("betas", ())
    if not isinstance(betas, tuple):
        return True
    return any(isinstance(n, Tensor | np.ndarray) for n in (*group.values(), *betas))
