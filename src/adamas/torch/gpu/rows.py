"""What the core's rows say in numbers, for executors that cut tensors into pieces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ... import native

CODED = native.MOMENTS["int8"]  # from which on moments are coded
_SIZES = np.array([4, 8, 2, 2])  # bytes of an element, by its dtype's number


def types_of(rows: NDArray[np.int64], column: int = native.TYPES) -> NDArray[np.uint8]:
    """Of each row the bytes of struct Types in src/core/table.hpp."""
    return np.ascontiguousarray(rows[:, column]).view(np.uint8).reshape(-1, 8)


def bytes_of_groups(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each row's six arrays, the bytes of 64 elements."""
    param, grad, moments, master = types_of(rows)[:, :4].T
    compute = np.where(param == native.DTYPES["float64"], 8, 4)
    one = np.select([moments == n for n in native.MOMENTS.values()], [compute, 2, 2, 1])
    scales = moments >= CODED
    columns = [64 * _SIZES[param], 64 * _SIZES[grad], 64 * one, np.where(scales, 6, 64 * one)]
    return np.stack([*columns, 64 * compute, 8 * master.astype(np.int64)], 1)


def averages_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of its rule's three averages each row has, in bits from the lowest on.

    Words and scales lie in the place of the first two, whichever of them the rule has.
    """
    rule = types_of(rows)[:, 4]
    m, v, w = (rows[:, native.EXP_AVG + i] != 0 for i in range(3))
    coded = types_of(rows)[:, 2] >= CODED
    m &= ~(coded & (rule == native.RULES["rmsprop"]))
    v &= rule != native.RULES["sgd"]
    found: NDArray[np.int64] = m + 2 * v + 4 * w
    return found
