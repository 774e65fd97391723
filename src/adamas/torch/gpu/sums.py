"""The squares of gradients that are not all on one GPU: each adds up its own, the host the rest."""

from __future__ import annotations

import math

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from ..gradnorm import Wait
from .guard import multiprocessors
from .jit import Launcher, jit_with
from .launches import Launches
from .prepare import MOST_PROGRAMS, PER_MULTIPROCESSOR, WARPS
from .squares import ERROR, SMALL, sum_share


class Sums:
    """Adds up the squares of the gradients of some rows.

    Args:
        launches: what knows where they are.
    """

    def __init__(self, launches: Launches) -> None:
        self._launches, self._add = launches, Launcher(add_squares)
        self._programs = min(PER_MULTIPROCESSOR * multiprocessors(launches.device), MOST_PROGRAMS)
        self._chosen: dict[bytes, Tensor] = {}
        self._of_row = launches.of_row

    def __call__(self, rows: NDArray[np.bool_], unscale: float) -> Wait:
        """Begins to find the sum, and what bounds its error; see ``native.square_sum``.

        Args:
            rows: (tensors,) which. Those without a gradient add nothing.
            unscale: what the gradients are multiplied with first.

        Returns:
            What waits for the device, and gives both.
        """
        launches = self._launches
        chunks = launches.chunks if rows.all() else launches.chunks[self._of(rows)]
        if not len(chunks):
            return lambda: (0.0, 0.0)
        shares = torch.zeros((self._programs, 2), dtype=torch.float64, device=launches.device)
        factor = torch.full((1,), unscale, dtype=torch.float32, device=launches.device)
        programs = min(len(chunks), self._programs)
        arguments = chunks, factor, shares, len(chunks)
        self._add(programs, arguments, (16 if launches.aligned else 1,), num_warps=WARPS)
        return lambda: total(shares.cpu().numpy())

    def _of(self, rows: NDArray[np.bool_]) -> Tensor:
        """The numbers of their chunks, on the device."""
        of_row = self._launches.of_row
        if of_row is not self._of_row:  # they were made anew
            self._chosen.clear()
            self._of_row = of_row
        key = rows.tobytes()
        if key not in self._chosen:
            numbers = torch.from_numpy(np.flatnonzero(rows[of_row]))
            self._chosen[key] = numbers.to(self._launches.device)
        return self._chosen[key]


def total(shares: NDArray[np.float64]) -> tuple[float, float]:
    """The sum of what programs have found, and what bounds its error.

    Args:
        shares: (programs, 2), each a sum in two numbers.
    """
    plain = float(shares[:, 0].sum())
    if not math.isfinite(plain):
        return plain, 0.0
    value = math.fsum(shares.reshape(-1).tolist())
    # Below SMALL, some of the error is below the smallest number.
    known = value >= SMALL.value or not value
    return value, value * ERROR.value if known else math.inf


@jit_with(do_not_specialize=["n_chunks"])
def add_squares(
    chunks: tl.tensor,
    unscale: tl.tensor,
    shares: tl.tensor,
    n_chunks: tl.tensor,
    ALIGNMENT: tl.constexpr,
) -> None:
    """Writes down the sum of this program's share of the squares, in two float64.

    Args:
        chunks: as ``kernels.step_chunk``'s.
        unscale: float32, what the gradients are multiplied with first.
        shares: (programs, 2) float64.
        n_chunks: how many there are.
        ALIGNMENT: of all addresses, in bytes.
    """
    high, low, _ = sum_share(chunks, n_chunks, tl.load(unscale), False, ALIGNMENT)
    mine = shares + 2 * tl.program_id(0)
    tl.store(mine, high)
    tl.store(mine + 1, low)
