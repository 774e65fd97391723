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

from .. import formats
from ..equations import RULES, gradient
from ..hyper import RMSpropHyper, Rule, SGDHyper
from ..text import aligned
from .hyperparameters import hyper_of
from .plain import maximum, real
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
    """Of the first moment; SGD's is its momentum, and centered RMSprop's the gradient's average. 0
    where the rule has none, as also"""
    exp_avg_sq_norm: float
    """of the second, RMSprop's square_avg."""
    update_norm: float
    """Of the weights before the step less those after it."""
    param_norm: float
    """Of the weights after the step."""
    largest_relative_update: float
    """The largest of an update's size divided by its weight's; weights of 0 do not count."""
    stalled: float
    """The share of weights that an update was too small to change, from 0 to 1. A step measured on
    the CPU knows which had one; else the averages tell, as they are stored, and perhaps rounded."""


class Found(NamedTuple):
    """What a step did to the part of an entry that this process holds."""

    name: str
    group: int
    param: Tensor
    state: State
    keys: formats.Keys
    """Of its averages."""
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
    hypers: Sequence[Rule | dict[str, Any]]
    """Of each group, or its options."""
    unscale: float | Tensor = 1.0
    clip: float | Tensor = 1.0
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
            hyper = given_by if isinstance(given_by, Rule) else hyper_of(given_by)
            grad = entry.param.grad
            given = None if grad is None else local_like(grad, entry.param) * taken.unscale
            before = weights_before(entry, hyper, given, taken.clip)
            found = Found(*entry, columns_of(entry, given, before))
            yield found if taken.group is None else found._replace(group=taken.group)


def columns_of(entry: Entry, grad: Tensor | None, before: Tensor) -> NDArray[np.float64]:
    """The measures of ``native.step`` for one parameter after its step, in torch.

    Args:
        entry: the parameter with its state.
        grad: the part of the gradient that this process holds, unscaled; None if it is gone.
        before: that part of the parameter before the step, as real numbers.
    """
    m, v = (None if x is None else real(x) for x in _moments(entry))
    before, after = real(before), real(trained(entry.param, entry.state))
    update = before.double() - after.double()
    given = None if grad is None else real(grad)
    sums = [_square_sum(tensor, 0.0) for tensor in (m, v, update, after)]
    relative = (update / before.double())[before != 0].abs()
    largest = float(relative.max()) if relative.numel() else 0.0
    moving = _mover(entry, m, given)
    stays = before.to(after.dtype) == after
    stalled = 0 if moving is None else int((stays & (moving != 0)).sum())
    return np.array([_square_sum(given, math.nan), *sums, largest, stalled], np.float64)


def _mover(entry: Entry, m: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """What moves the weights: Adam's m, or the momentum if there is one, or else the gradient."""
    first, second, third = entry.keys
    if second != "square_avg":
        return m if first else grad
    return real(local(entry.state[third])) if third else grad


def _moments(entry: Entry) -> tuple[Any, Any]:
    return decoded(entry.param, entry.state, entry.keys)


def _square_sum(tensor: Tensor | None, otherwise: float) -> float:
    return otherwise if tensor is None else float(tensor.double().square().sum())


def weights_before(
    entry: Entry, hyper: Rule, grad: Tensor | None = None, clip: float | Tensor = 1.0
) -> Tensor:
    """What a parameter was before its last step, to rounding: real numbers in float64.

    The last step is taken once more from zero, with its averages as they are and without decay:
    where it ends is what it subtracted. If it went by the gradient itself, which every rule takes
    by a factor, that is added; NaN, if the gradient is gone.
    """
    c = hyper.coefficients(int(entry.state["step"]), "float64")
    still = c._replace(l2=0.0, decay=0.0, maximize=0.0, **_STILL[hyper.rule])
    after = real(trained(entry.param, entry.state)).double()
    averages = [*_moments(entry), None]
    if hyper.keys[2]:
        averages[2] = local(entry.state[hyper.keys[2]]).to(after.device)
    wide = [None if x is None else real(x).double() for x in averages]
    zero = torch.zeros_like(after)

    def moved(g: Tensor) -> Tensor:
        end: Tensor = RULES[hyper.rule](zero, g, *wide, still, torch.sqrt, maximum)[0]
        return end

    fixed = moved(zero)
    if not _goes_by_gradient(hyper):
        return (after - fixed) / (1 - c.decay)
    if grad is None:
        return torch.full_like(after, math.nan)
    g = gradient(zero, real(grad).double(), c._replace(clip=float(clip)))
    slope = moved(torch.ones_like(zero)) - fixed
    before: Tensor = (after - fixed - slope * g) / (1 + slope * c.l2)
    return before


# What keeps averages as they are.
_STILL = {
    "adam": {"beta1": 1.0, "one_minus_beta1": 0.0, "beta2": 1.0, "one_minus_beta2": 0.0},
    "sgd": {"beta1": 1.0, "one_minus_beta1": 0.0},
    "rmsprop": {"beta1": 1.0, "beta2": 1.0, "one_minus_beta2": 0.0},
}


def _goes_by_gradient(hyper: Rule) -> bool:
    """Whether an update is of the gradient itself, and not of averages alone."""
    if isinstance(hyper, SGDHyper):
        return hyper.nesterov or not hyper.momentum
    return isinstance(hyper, RMSpropHyper) and not hyper.momentum


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
