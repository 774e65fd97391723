"""The global norm of gradients that the core reads, over all processes that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from ..norm import rounded_digits, rounded_estimate
from .layout import COMPUTE
from .plain import real
from .sharding import Shards


class Part(NamedTuple):
    """Gradients that are divided between the same processes."""

    shards: Shards | None
    rows: NDArray[np.int64]


def rows_of(grads: Sequence[Tensor]) -> tuple[NDArray[np.int64], list[Tensor]]:
    """Rows for gradients that no table has, and the copies on the CPU that they point to."""
    copies = [real(grad).cpu().contiguous() for grad in grads]
    copies = [c if c.dtype == torch.float64 else c.float() for c in copies]
    rows = native.table(len(copies))
    for row, copy in zip(rows, copies, strict=True):
        row[native.GRAD], row[native.SIZE] = copy.data_ptr(), copy.numel()
        row[native.TYPES] = native.types(COMPUTE[copy.dtype])
    return rows, copies


def squared_norm(parts: Sequence[Part], unscale: float) -> float:
    """The sum of the squares of all gradients times ``unscale``, as ``adamas.norm`` defines it.

    Processes that share a part must all ask, with their parts in the same order.
    """
    threads = torch.get_num_threads()
    total = error = 0.0
    for shards, rows in parts:
        value, bound = native.square_sum(rows, unscale, threads)
        if shards:
            part = torch.tensor([value, bound], dtype=torch.float64)
            value, bound = shards.all_reduce(part).tolist()
            bound += value * 2.0**-52 * shards.size  # of the addition over processes
        total, error = total + value, error + bound + value * 2.0**-52
    # Every process has the same figures here, so all of them go on or none.
    rounded = rounded_estimate(total, error)
    if rounded is not None:
        return rounded
    digits = []
    for shards, rows in parts:
        exact = torch.from_numpy(native.exact_square_sum(rows, unscale, threads))
        digits.append(shards.all_reduce(exact) if shards else exact)
    return rounded_digits(torch.stack(digits).sum(0).numpy())
