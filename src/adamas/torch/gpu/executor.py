"""The kernels as the executor of a table of tensors on one device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ... import native
from ...hyper import Coefficients
from ...interrupts import deferred
from ..gradnorm import Wait
from ..hyperparameters import device_row, hyper_of
from ..recode import trained
from ..sharding import local, local_like
from ..state import Entry
from ..statistics import Found, columns_of
from ..table import Table
from . import Outcome, Request, sets
from .guard import Guard
from .launches import Launches, current
from .staging import OUT_OF_PLACE, is_capturing
from .sums import Sums

_UNSCALE = Coefficients._fields.index("unscale")
_APART = (
    "since a graph was captured, this optimizer has got other parameters to step, and counts the "
    "steps elsewhere: replays go on by counts of their own, and correct the bias by them. Capture "
    "the step again"
)
_UNMEASURED = (
    "a step that is captured in a graph cannot be measured, which waits for what it has done: call "
    "measure_next_step() before a step outside of it"
)


class Executor:
    """Steps a table whose tensors lie on one device that is not the CPU.

    Args:
        table: the table.
        clips: whether the host may tell it to clip.

    Attributes:
        device: the device.
        counts: whether the steps are counted on the device.
    """

    def __init__(self, table: Table, clips: bool) -> None:
        self._table = table
        self.device = local(table.params[0]).device
        self._launches = Launches(table.rows, self.device, clips)
        self._set_of = table.set_of
        self._guard: Guard | None = None
        self._sums: Sums | None = None
        self.counts = False

    def prepare(self, coefficients: NDArray[np.float64]) -> None:
        """Does all of ``step`` that can fail, so that tables step together or none of them does."""
        if self._present():
            with current(self.device):
                self._launches.prepare(coefficients, self._table.changed)
            self._table.changed = False

    def step(self, coefficients: NDArray[np.float64], unscale: float, measure: bool) -> list[Found]:
        """Steps every parameter that had a gradient at the last look; as ``cpu.step``."""
        table = self._table
        entries = self._present()
        if not entries:
            return []
        before = [trained(e.param, e.state).clone() for e in entries] if measure else []
        table.touch()
        with deferred():  # all launches and the counts, or none
            self._launches.step(coefficients, table.changed)
            native.step(table.rows[:0], coefficients, 1, counts=(table.states, table.steps))
        table.changed = False
        return list(found(entries, before, unscale))

    def square_sum(self, rows: NDArray[np.bool_], unscale: float) -> Wait:
        """Begins to estimate the sum of the squares of the gradients of the last look.

        Args:
            rows: (tensors,) whose.
            unscale: what they are multiplied with first.

        Returns:
            What waits for the device, and gives the sum and its error.
        """
        table = self._table
        self._sums = self._sums or Sums(self._launches)
        with current(self.device):
            if table.changed:  # and so it stays: which coefficients are whose comes later
                self._launches.place()
            return self._sums(rows, unscale)

    def gradients(self, rows: NDArray[np.bool_]) -> list[Tensor]:
        """Those of the last look that are there, as a step reads them."""
        there = rows & (self._table.steps >= 0)
        return [self._table.read(i) for i in np.flatnonzero(there).tolist()]

    def count(self) -> None:
        """From now on, the device counts the steps, for it may skip some."""
        if is_capturing(self.device):
            raise RuntimeError(OUT_OF_PLACE)
        table = self._table
        guard = self._guarded()
        with current(self.device):
            guard.count([state["step"] for state in table.states], self._set_of)
        table.count_on_device(guard.steps)
        self.counts = True

    def step_guarded(
        self,
        groups: list[dict[str, Any]],
        request: Request,
        outcome: Outcome,
        measure: bool,
    ) -> tuple[list[Found], float | Tensor] | None:
        """As ``step``, with what is to be found out on the device beforehand.

        Args:
            groups: the parameter groups.
            request: what is to be found out.
            outcome: where it goes.
            measure: whether to find out what the step does.

        Returns:
            What was found, and what has unscaled the gradients, on the device; None where it was
            to be measured and was skipped.
        """
        table = self._table
        if measure and is_capturing(self.device):
            raise RuntimeError(_UNMEASURED)
        entries = self._present()
        before = [trained(e.param, e.state).clone() for e in entries] if measure else []
        hypers = coefficients = None
        if self.counts:
            rows = [device_row(groups[group], of, self.device) for group, of in table.sets]
            hypers = np.array(rows)
        else:
            coefficients = table.coefficients([hyper_of(group) for group in groups], 1.0, 1.0)
        table.touch()
        with deferred(), current(self.device):
            self._launch(groups, request, outcome, hypers, coefficients)
            if coefficients is not None:
                native.step(table.rows[:0], coefficients, 1, counts=(table.states, table.steps))
        if measure and self._guarded().skip.item():
            return None
        if not entries:
            return [], 1.0
        first = int(np.argmax(table.steps >= 0)) if self.counts else 0
        unscale = self._launches.coefficients[first, _UNSCALE]
        return list(found(entries, before, unscale)), unscale

    def _launch(
        self,
        groups: list[dict[str, Any]],
        request: Request,
        outcome: Outcome,
        hypers: NDArray[np.float64] | None,
        coefficients: NDArray[np.float64] | None,
    ) -> None:
        table, capturing = self._table, is_capturing(self.device)
        if self._launches.captured and not capturing:
            self._leave_to_graph()
        launches, guard = self._launches, self._guarded()
        graphs = outcome.graphs
        may_part = graphs and self.counts and table.changed and not capturing
        if may_part and graphs.count_elsewhere(table.params, guard.addresses()):
            warnings.warn(_APART, stacklevel=7)  # of who calls the optimizer's step
        if table.changed or capturing:
            launches.bring(table.steps >= 0, capturing)
        if capturing:  # it is replayed whatever becomes of the plan and of the options
            options = [(group["lr"], *group.get("betas", ())) for group in groups]
            told = outcome.results, outcome.last, outcome.skipped
            own = table, launches, guard
            graphs.add(table.params, guard.addresses(), *own, options, request, told)
        if coefficients is not None:
            launches.coefficients = launches.sent(coefficients, launches.coefficients)
        usual = hypers is not None and request.is_plain and _usual(hypers)
        launches.compile(usual)  # before the steps are counted
        guard.run(request, outcome, hypers, capturing)
        table.changed = False
        if self._present():
            launches.launch(guard.skip, usual)

    def _leave_to_graph(self) -> None:
        """Goes on in memory of its own, for replays read what is in this, and write it."""
        table, guard = self._table, self._guarded()
        self._launches = Launches(table.rows, self.device)
        self._sums = None
        self._guard = guard.after(self._launches)
        table.changed = True

    def _guarded(self) -> Guard:
        self._guard = self._guard or Guard(self._launches, len(self._table.rows))
        return self._guard

    def _present(self) -> list[Entry]:
        table = self._table
        return table.entries if table.even else list(compress(table.entries, table.steps >= 0))


def _usual(hypers: NDArray[np.float64]) -> bool:
    """Whether no set of hyperparameters maximizes, or couples its decay; see ``rules.gradient``."""
    coupled = (hypers[:, sets.DECOUPLED] == 0) & (hypers[:, sets.WEIGHT_DECAY] != 0)
    return not (coupled | (hypers[:, sets.MAXIMIZE] != 0)).any()


def found(entries: list[Entry], before: list[Tensor], unscale: float | Tensor) -> Iterator[Found]:
    """What a step has done, worked out from the weights before it."""
    for entry, was in zip(entries, before, strict=False):
        grad = local_like(entry.param.grad, entry.param)
        columns = columns_of(entry, grad * unscale, was)
        yield Found(*entry, columns)
