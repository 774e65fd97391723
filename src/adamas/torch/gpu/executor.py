"""The kernels as the executor of a table of tensors on one device."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import native
from ...hyper import Coefficients
from ..hyperparameters import device_row, hyper_of
from ..recode import trained
from ..sharding import local, local_like
from ..state import Entry
from ..statistics import Found, columns_of
from ..table import Table
from . import Outcome, Request, prepare
from .guard import Guard
from .launches import Launches, current

_UNSCALE = Coefficients._fields.index("unscale")


class Executor:
    """Steps a table whose tensors lie on one device that is not the CPU.

    Args:
        table: the table.

    Attributes:
        device: the device.
        counts: whether the steps are counted on the device.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.device = local(table.params[0]).device
        self._launches = Launches(table.rows, self.device)
        self._set_of = table.set_of
        self._guard: Guard | None = None
        self.counts = False

    def step(self, coefficients: NDArray[np.float64], unscale: float, measure: bool) -> list[Found]:
        """Steps every parameter that had a gradient at the last look; as ``cpu.step``."""
        table = self._table
        entries = self._present()
        if not entries:
            return []
        before = [trained(e.param, e.state).clone() for e in entries] if measure else []
        torch.autograd.graph.increment_version([entry.param for entry in entries])
        self._launches.step(coefficients, table.changed)
        table.changed = False
        native.step(table.rows[:0], coefficients, 1, counts=(table.states, table.steps))
        return list(found(entries, before, unscale))

    def count(self) -> None:
        """From now on, the device counts the steps, for it may skip some."""
        table = self._table
        guard = self._guard = self._guard or Guard(self._launches, len(table.rows))
        guard.count([state["step"] for state in table.states], self._set_of)
        table.count_on_device(guard.steps)
        self.counts = True

    def step_guarded(
        self,
        groups: list[dict[str, Any]],
        request: Request,
        outcome: Outcome,
        measure: bool,
    ) -> tuple[list[Found], float | Tensor]:
        """As ``step``, with what is to be found out on the device beforehand.

        Args:
            groups: the parameter groups.
            request: what is to be found out.
            outcome: where it goes.
            measure: whether to find out what the step does.

        Returns:
            What was found, and what has unscaled the gradients, on the device.
        """
        table, launches = self._table, self._launches
        entries = self._present()
        if not entries:
            return [], 1.0
        before = [trained(e.param, e.state).clone() for e in entries] if measure else []
        hypers = coefficients = None
        if self.counts:
            hypers = np.array([device_row(groups[group], of) for group, of in table.sets])
        else:
            coefficients = table.coefficients([hyper_of(group) for group in groups], 1.0, 1.0)
        torch.autograd.graph.increment_version([entry.param for entry in entries])
        guard = self._guard = self._guard or Guard(launches, len(table.rows))
        with current(launches.device):
            if table.changed or launches.captured:
                launches.place(table.steps >= 0)
                table.changed = False
            if coefficients is not None:
                launches.coefficients = launches.sent(coefficients, launches.coefficients)
            guard.run(request, outcome, hypers)
            launches.launch(guard.skip, hypers is not None and request.is_plain and _usual(hypers))
        if coefficients is not None:
            native.step(table.rows[:0], coefficients, 1, counts=(table.states, table.steps))
        unscale = launches.coefficients[0, _UNSCALE]
        return list(found(entries, before, unscale)), unscale

    def _present(self) -> list[Entry]:
        table = self._table
        return table.entries if table.even else list(compress(table.entries, table.steps >= 0))


def _usual(hypers: NDArray[np.float64]) -> bool:
    """Whether no set of hyperparameters maximizes, or couples its decay; see ``rules.adam``."""
    coupled = (hypers[:, prepare.DECOUPLED] == 0) & (hypers[:, prepare.WEIGHT_DECAY] != 0)
    return not (coupled | (hypers[:, prepare.MAXIMIZE] != 0)).any()


def found(entries: list[Entry], before: list[Tensor], unscale: float | Tensor) -> Iterator[Found]:
    """What a step has done, worked out from the weights before it."""
    for entry, was in zip(entries, before, strict=False):
        grad = local_like(entry.param.grad, entry.param)
        columns = columns_of(entry, grad * unscale, was)
        yield Found(entry.name, entry.group, entry.param, entry.state, columns)
