"""The core as the executor of a table whose parameters are on a device, their state on the host."""

from __future__ import annotations

from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import native
from ...interrupts import deferred
from ..sharding import local
from ..statistics import Found
from ..table import Table
from ..threads import threads
from .chunks import Chunk, Span, chunks_of
from .ring import AHEAD, ring_of
from .staging import is_capturing

# Bytes of gradients and weights that are on the host at a time. The bus takes some 1.3 ms for them,
# in which ordering copies and waking threads, some 50 microseconds, is little; and what is not
# overlapped, bringing the first chunk and sending the last, is little of a model.
CHUNK = 32 << 20

_PLACES = [native.PARAM, native.GRAD]
_LARGEST = 5  # the one of native.step's measures that is no sum


class Offload:
    """A table's chunks, and what brings them to the host, steps them, and sends them back.

    While one is stepped, the next come down and the last goes up. The host waits for gradients, so
    they may be freed or written over after a step; the current stream waits for the weights.

    Args:
        table: the table; its rows have the states' addresses on the host.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        params = [local(param) for param in table.params]
        self.device = params[0].device
        self._params = [_as_bytes(param) for param in params]
        self._ring = ring_of(self.device)
        self._laid = np.full(len(params), -2, np.int64)
        self._chunks: list[Chunk] = []
        self._targets: list[list[Tensor]] = []

    def prepare(self) -> None:
        """Does all of a step that can fail.

        Raises:
            RuntimeError: a graph is captured, or there is no room on the host.
        """
        if is_capturing(self.device):
            raise RuntimeError(
                "a step with offload='cpu' cannot be captured in a graph, since the host steps: "
                "call step() outside of the capture, or give offload=None"
            )
        self._lay_out()
        with self._ring.lock:
            self._ring.make_room(self._chunks)

    def step(self, coefficients: NDArray[np.float64], measure: bool) -> list[Found]:
        """Steps every parameter that had a gradient at the last look, as prepared; ``cpu.step``."""
        table = self._table
        present = table.steps >= 0
        table.touch()
        measures = np.zeros((len(table.rows), native.MEASURES)) if measure else None
        with deferred(), self._ring.lock:
            self._go_round(coefficients, measures)
            native.step(table.rows[:0], coefficients, 1, counts=(table.states, table.steps))
        if measures is None:
            return []
        entries = compress(table.entries, present)
        return [Found(*entry, row) for entry, row in zip(entries, measures[present], strict=True)]

    def _lay_out(self) -> None:
        """Cuts the table, unless it is cut so already."""
        rows, present = self._table.rows, self._table.steps >= 0
        laid = np.where(present, rows[:, native.TYPES], -1)
        if np.array_equal(laid, self._laid):
            return
        self._chunks = chunks_of(rows, present, CHUNK)
        self._targets = [
            _cut(self._params, [*chunk.small_params, *chunk.large_params]) for chunk in self._chunks
        ]
        self._laid = laid

    def _go_round(
        self, coefficients: NDArray[np.float64], measures: NDArray[np.float64] | None
    ) -> None:
        count = len(self._chunks)
        self._ring.begin()
        try:
            for number in range(count + AHEAD):
                if number < count:
                    self._bring(number)
                if number >= AHEAD:
                    self._step(number - AHEAD, coefficients, measures)
        finally:
            self._ring.end()

    def _bring(self, number: int) -> None:
        chunk = self._chunks[number]
        spans = [*chunk.small_grads, *chunk.large_grads]
        grads = {row: _as_bytes(self._table.read(row)) for row in {span.row for span in spans}}
        self._ring.bring(number, chunk, _cut(grads, spans), self._targets[number])

    def _step(
        self,
        number: int,
        coefficients: NDArray[np.float64],
        measures: NDArray[np.float64] | None,
    ) -> None:
        chunk = self._chunks[number]
        rows = chunk.rows.copy()
        rows[:, native.COEFFICIENTS] = self._table.rows[chunk.of, native.COEFFICIENTS]
        found = None if measures is None else np.zeros((len(rows), native.MEASURES))
        rows[:, _PLACES] += self._ring.arrived(number)
        native.step(rows, coefficients, threads(), measures=found)
        self._ring.send(number, chunk, self._targets[number])
        if measures is not None and found is not None:
            largest = measures[:, _LARGEST].copy()
            np.maximum.at(largest, chunk.of, found[:, _LARGEST])
            np.add.at(measures, chunk.of, found)
            measures[:, _LARGEST] = largest


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor, as it lies."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _cut(tensors: dict[int, Tensor] | list[Tensor], spans: list[Span]) -> list[Tensor]:
    return [tensors[span.row][span.start : span.stop] for span in spans]
