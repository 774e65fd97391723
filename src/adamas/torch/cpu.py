"""The core as the executor of a table of tensors on the CPU."""

from __future__ import annotations

from itertools import compress

import numpy as np
from numpy.typing import NDArray

from .. import native
from .statistics import Found
from .table import Table
from .threads import threads


def step(table: Table, coefficients: NDArray[np.float64], measure: bool) -> list[Found]:
    """Steps every parameter of a table that had a gradient at the last look.

    Args:
        table: the table.
        coefficients: ``table.coefficients(...)``.
        measure: whether to find out what the step does.

    Returns:
        What was found, if so.
    """
    rows, steps = table.rows, table.steps
    if not table.even:
        rows = rows[steps >= 0]
    table.touch()  # first, while that is still in the caches
    measures = np.zeros((len(rows), native.MEASURES)) if measure else None
    counts = table.states, steps
    native.step(rows, coefficients, threads(), counts=counts, measures=measures)
    if measures is None:
        return []
    entries = compress(table.entries, steps >= 0)
    return [Found(*entry, row) for entry, row in zip(entries, measures, strict=True)]
