"""The global norm of gradients, over all devices and processes that hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from ..norm import rounded_digits, rounded_estimate
from .layout import COMPUTE, has_data
from .plain import real
from .sharding import Shards
from .threads import threads

Wait = Callable[[], tuple[float, float]]
"""Waits for a device, and gives the sum of some squares and what bounds its error."""


class Adder(Protocol):
    """A device that holds gradients of a table, and adds them up where they are."""

    def square_sum(self, rows: NDArray[np.bool_], unscale: float) -> Wait:
        """Begins what ``native.square_sum`` finds of these rows."""

    def gradients(self, rows: NDArray[np.bool_]) -> list[Tensor]:
        """Those of these rows."""


class Part(NamedTuple):
    """Gradients that are divided between the same processes."""

    shards: Shards | None
    rows: NDArray[np.int64]
    """Those that the core reads,"""
    elsewhere: Sequence[tuple[Adder, NDArray[np.bool_]]] = ()
    """and those that devices do: the rows of their tables."""

    def begin(self, unscale: float) -> list[Wait]:
        """Lets all devices add up theirs, each beside the others."""
        return [adder.square_sum(rows, unscale) for adder, rows in self.elsewhere]

    def estimate(self, unscale: float, begun: Sequence[Wait]) -> tuple[float, float]:
        """The sum of the squares of this process's gradients, and what bounds its error.

        Args:
            unscale: what the gradients are multiplied with first.
            begun: what ``begin`` gave.
        """
        value, bound = native.square_sum(self.rows, unscale, threads())
        for wait in begun:
            more, error = wait()
            value, bound = value + more, bound + error + (value + more) * 2.0**-52
        return value, bound

    def digits(self, unscale: float) -> NDArray[np.int64]:
        """The same exactly, see ``native.exact_square_sum``, of copies of what devices hold."""
        grads = [grad for adder, rows in self.elsewhere for grad in adder.gradients(rows)]
        rows, copies = rows_of(grads)
        every = np.concatenate([self.rows, rows])
        found: NDArray[np.int64] = native.exact_square_sum(every, unscale, threads())
        del copies  # whose addresses the rows had
        return found


def divided(
    shards: Sequence[Shards | None],
    read: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    elsewhere: Sequence[tuple[Adder, NDArray[np.int64]]],
) -> list[Part]:
    """Parts of gradients.

    Args:
        shards: between which processes each is divided.
        read: rows that the core reads, and of each the part.
        elsewhere: the same of those that devices hold.
    """
    parts = []
    for i, processes in enumerate(shards):
        rows = np.concatenate([rows[part_of == i] for rows, part_of in read])
        away = [(adder, part_of == i) for adder, part_of in elsewhere if (part_of == i).any()]
        parts.append(Part(processes, rows, away))
    return parts


def rows_of(grads: Sequence[Tensor]) -> tuple[NDArray[np.int64], list[Tensor]]:
    """Rows for gradients that no table has, and the copies on the CPU that they point to.

    Those that have but a shape, whose squares nobody can know, add nothing.
    """
    rows = native.table(len(grads))
    copies = []
    for row, grad in zip(rows, grads, strict=True):
        row[native.TYPES] = native.types("float32")
        if has_data(grad):
            copy = real(grad).cpu().contiguous()
            copy = copy if copy.dtype == torch.float64 else copy.float()
            row[native.GRAD], row[native.SIZE] = copy.data_ptr(), copy.numel()
            row[native.TYPES] = native.types(COMPUTE[copy.dtype])
            copies.append(copy)
    return rows, copies


def squared_norm(parts: Sequence[Part], unscale: float) -> float:
    """The sum of the squares of all gradients times ``unscale``, as ``adamas.norm`` defines it.

    Processes that share a part must all ask, with their parts in the same order.
    """
    values, bounds = [], []
    begun = [part.begin(unscale) for part in parts]
    for part, waits in zip(parts, begun, strict=True):
        value, bound = part.estimate(unscale, waits)
        if part.shards:
            every = part.shards.gather(torch.tensor([value, bound], dtype=torch.float64))
            value, bound = map(_sum, every.T.tolist())
            bound += value * 2.0**-53  # of its rounding
        values.append(value)
        bounds.append(bound)
    total = _sum(values)
    rounded = rounded_estimate(total, _sum(bounds) + total * 2.0**-52)
    # Processes that share a part have the same figures of it, but not those of others, which each
    # has found in its own way: if one of them is in doubt, all of them are.
    if len(parts) > 1 and any(part.shards for part in parts):
        certain = torch.tensor(int(rounded is not None))
        for shards in filter(None, (part.shards for part in parts)):
            certain = shards.all_reduce(certain, least=True)
        rounded = rounded if certain.item() else None
    if rounded is not None:
        return rounded
    digits = []
    for part in parts:
        exact = torch.from_numpy(part.digits(unscale))
        digits.append(part.shards.all_reduce(exact) if part.shards else exact)
    return rounded_digits(torch.stack(digits).sum(0).numpy())


def _sum(values: Sequence[float]) -> float:
    """Exact but for one rounding, whatever their order."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf
