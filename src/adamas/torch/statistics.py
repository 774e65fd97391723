"""What a step did: norms of gradients, moments, updates and weights, by parameter and group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..equations import adam
from ..hyper import Hyper
from ..text import aligned
from .hyperparameters import hyper_of
from .plain import real
from .recode import State, decoded, trained
from .sharding import local, local_like, shards_of
from .state import Entry

_SUMS = 5  # the first of native.step's measures; then a maximum, then a count
_HEADINGS = (
    "parameter",
    "elements",
    "|gradient|",
    "|exp_avg|",
    "|exp_avg_sq|",
    "|update|",
    "|weight|",
    "largest update/weight",
    "stalled",
)


class Measures(NamedTuple):
    """One parameter's or one group's share in a step; norms are Euclidean."""

    name: str
    """The parameter's name, or which group."""
    group: int
    """The number of its parameter group."""
    elements: int
    """Of the whole parameter, where it is sharded."""
    grad_norm: float
    """Of the gradient, unscaled and before clipping; NaN where it is gone."""
    exp_avg_norm: float
    """Of the first moment."""
    exp_avg_sq_norm: float
    """Of the second moment."""
    update_norm: float
    """Of the weights before the step less those after it."""
    param_norm: float
    """Of the weights after the step."""
    largest_relative_update: float
    """The largest of an update's size divided by its weight's; weights of 0 do not count."""
    stalled: float
    """The share of weights that an update was too small to change, from 0 to 1."""


class Found(NamedTuple):
    """What a step did to the part of an entry that this process holds."""

    name: str
    group: int
    param: Tensor
    state: State
    columns: NDArray[np.float64]
    """The measures of ``native.step``."""


class Statistics:
    """What a step did to each parameter that had a gradient; ``print`` shows it as a table.

    Attributes:
        parameters: a ``Measures`` for each.
        groups: one for each parameter group.
    """

    def __init__(self, found: Sequence[Found]) -> None:
        columns = _over_all(found)
        self.parameters = [
            _finish(f.name, f.group, f.param.numel(), row)
            for f, row in zip(found, columns, strict=True)
        ]
        self.groups = []
        for group in sorted({f.group for f in found}):
            chosen = [i for i, f in enumerate(found) if f.group == group]
            row = columns[chosen].sum(0)
            row[_SUMS] = columns[chosen, _SUMS].max()
            elements = sum(found[i].param.numel() for i in chosen)
            self.groups.append(_finish(f"group {group}", group, elements, row))

    def __str__(self) -> str:
        """A line a parameter, then a line a group."""
        return aligned([_HEADINGS, *map(_cells, (*self.parameters, *self.groups))])


class Taken(NamedTuple):
    """What a step went by, from which what it did can be worked out afterwards."""

    fast: list[Entry]
    steps: NDArray[np.int64]
    """Of each of these its count before the step, -1 where it had no gradient."""
    plain: list[Entry]
    """Those with a gradient that the core has not stepped."""
    hypers: Sequence[Hyper | dict[str, Any]]
    """Of each group, or its options."""
    unscale: float | Tensor = 1.0
    group: int | None = None
    """The number of the entries' group, if it is not their own."""

    def entries(self) -> Iterator[Entry]:
        """Those that had a gradient."""
        yield from compress(self.fast, self.steps >= 0)
        yield from self.plain


class History:
    """What the last step went by and found, in parts where backward has stepped.

    Attributes:
        measuring: whether the next step shall find its statistics.
    """

    def __init__(self) -> None:
        self.measuring = False
        self.clear()

    def clear(self) -> None:
        """Forgets all steps."""
        self._taken: list[Taken] = []
        self._found: list[Found] = []
        self._last: list[Taken] = []
        self._measured: Statistics | None = None

    def add(self, taken: Taken, found: list[Found]) -> None:
        """Keeps a part of a step."""
        self._taken.append(taken)
        self._found += found

    def end(self, groups: list[dict[str, Any]]) -> None:
        """Makes the parts since the last call the last step."""
        found, self._found = self._found, []
        self._last, self._taken = self._taken, []
        self._measured = None
        if self.measuring and found:
            self._measured = Statistics(_sorted(found, groups))
        self.measuring = False

    def statistics(
        self,
        groups: list[dict[str, Any]],
        states: Mapping[Any, Any],
        otherwise: Callable[[], Taken],
    ) -> Statistics:
        """What the last step did: as it has found, or by an extra pass over its states.

        Args:
            groups: the optimizer's parameter groups,
            states: and its states.
            otherwise: gives what stands for the last step where it is unknown, as after loading.

        Raises:
            ValueError: there has been no step.
        """
        if self._measured is not None:
            return self._measured
        if not any(isinstance(s, dict) and s.get("step") for s in states.values()):
            raise ValueError("there are no statistics before the first step: call step() first")
        parts = self._last or [otherwise()]
        return Statistics(_sorted([f for part in parts for f in _recall(part, states)], groups))


def _sorted(found: list[Found], groups: list[dict[str, Any]]) -> list[Found]:
    order = {param: i for i, param in enumerate(p for group in groups for p in group["params"])}
    return sorted(found, key=lambda each: order.get(each.param, len(order)))


def _recall(taken: Taken, states: Mapping[Any, Any]) -> Iterator[Found]:
    for entry in taken.entries():
        entry = entry._replace(state=states.get(entry.param, {}))
        if entry.state.get("step"):
            given_by = taken.hypers[entry.group]
            hyper = given_by if isinstance(given_by, Hyper) else hyper_of(given_by)
            before = weights_before(entry, hyper)
            grad = entry.param.grad
            given = None if grad is None else local_like(grad, entry.param) * taken.unscale
            found = Found(*entry, columns_of(entry, given, before))
            yield found if taken.group is None else found._replace(group=taken.group)


def columns_of(entry: Entry, grad: Tensor | None, before: Tensor) -> NDArray[np.float64]:
    """The measures of ``native.step`` for one parameter after its step, in torch.

    Args:
        entry: the parameter with its state.
        grad: the part of the gradient that this process holds, unscaled; None if it is gone.
        before: that part of the parameter before the step, as real numbers.
    """
    m, v = map(real, decoded(entry.param, entry.state))
    before, after = real(before), real(trained(entry.param, entry.state))
    update = before.double() - after.double()
    sums = [float(tensor.double().square().sum()) for tensor in (m, v, update, after)]
    known = math.nan if grad is None else float(real(grad).double().square().sum())
    relative = (update / before.double())[before != 0].abs()
    largest = float(relative.max()) if relative.numel() else 0.0
    stalled = int(((before.to(after.dtype) == after) & (m != 0)).sum())
    return np.array([known, *sums, largest, stalled], np.float64)


def weights_before(entry: Entry, hyper: Hyper) -> Tensor:
    """What a parameter was before its last step, to rounding: real numbers in float64.

    The last step is taken once more from zero, with its moments as they are and without decay:
    where it ends is what it subtracted.
    """
    c = hyper.coefficients(int(entry.state["step"]), "float64")
    still = {"beta1": 1.0, "one_minus_beta1": 0.0, "beta2": 1.0, "one_minus_beta2": 0.0}
    m, v = decoded(entry.param, entry.state)
    v = local(entry.state["max_exp_avg_sq"]).to(m.device) if hyper.amsgrad else v
    m, v = real(m).double(), real(v).double()
    zero = torch.zeros_like(m)
    without_decay = c._replace(decay=0.0, **still)
    moved, *_ = adam(zero, zero, m, v, None, without_decay, torch.sqrt, torch.maximum)
    after = real(trained(entry.param, entry.state)).double()
    before: Tensor = (after - moved) / (1 - c.decay)
    return before


def _over_all(found: Sequence[Found]) -> NDArray[np.float64]:
    """The columns over all processes that hold parts of the parameters."""
    columns = np.array([f.columns for f in found], np.float64).reshape(-1, _SUMS + 2)
    shards = [shards_of(f.param) for f in found]
    for each in dict.fromkeys(shards):
        if each is not None:
            chosen = [i for i, s in enumerate(shards) if s == each]
            part = columns[chosen]
            columns[chosen] = each.all_reduce(torch.from_numpy(part.copy())).numpy()
            # The least of the negatives is the largest.
            largest = each.all_reduce(torch.from_numpy(-part[:, _SUMS]), least=True)
            columns[chosen, _SUMS] = -largest.numpy()
    return columns


def _finish(name: str, group: int, elements: int, row: NDArray[np.float64]) -> Measures:
    norms = np.sqrt(row[:_SUMS]).tolist()
    largest, stalled = row[_SUMS:].tolist()
    return Measures._make([name, group, elements, *norms, largest, stalled / max(elements, 1)])


def _cells(measures: Measures) -> tuple[str, ...]:
    name, _, elements, *norms, largest, stalled = measures
    numbers = [f"{value:.3g}" for value in (*norms, largest)]
    return (name, f"{elements:,}", *numbers, f"{stalled:.1%}")
