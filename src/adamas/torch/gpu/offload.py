"""The core as the executor of a table whose parameters are on a device, their state on the host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from itertools import accumulate, compress

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

# Bytes of gradients and weights that come to the host together. A bus of 54 GB/s takes 0.6 ms
# for them, in which the next copies are ordered, some 0.15 ms of Python and as much of the driver;
# and what is not overlapped, bringing the first chunk and sending the last, is little of a model.
CHUNK = 32 << 20
# Elements that a thread steps at a time: so few that all threads end a chunk together.
_GRAIN = 1 << 16

_PLACES = [native.PARAM, native.GRAD]
_LARGEST = 5  # the one of native.step's measures that is no sum


class Offload:
    """A table's chunks, and what brings them to the host, steps them, and sends them back.

    One call of the core steps all of them as they come, in a thread beside the one that orders the
    copies: while a chunk is stepped, the next come down and the last goes up. The host waits for
    gradients, so they may be freed or written over after a step; the current stream waits for the
    weights.

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
        # Which row of the table each of the chunks' is of; and where chunks end, in elements.
        self._of = np.zeros(0, np.int64)
        self._ends: list[int] = []

    def refuse_capture(self) -> None:
        """Raises where a graph is captured, which could not have the host step."""
        if is_capturing(self.device):
            raise RuntimeError(
                "a step with offload='cpu' cannot be captured in a graph, since the host steps: "
                "call step() outside of the capture, or give offload=None"
            )

    def prepare(self) -> None:
        """Does all of a step that can fail.

        The step waits for what the current stream has been given until here, not for kernels of
        other tables.

        Raises:
            RuntimeError: there is no room on the host, or no thread.
        """
        self._lay_out()
        with self._ring.lock:
            self._ring.make_room(self._chunks)
            if len(self._chunks) > 1:
                self._ring.beside.begin()
        self._ring.begin()

    def step(self, coefficients: NDArray[np.float64], measure: bool) -> list[Found]:
        """Steps every parameter that had a gradient at the last look, as prepared; ``cpu.step``.

        No signal cuts it in two. Where the device fails in the midst, some chunks are stepped and
        others are not, as with all work that a device had been given.

        Raises:
            RuntimeError: a copy failed.
        """
        table = self._table
        present = table.steps >= 0
        table.touch()
        measures = np.zeros((len(self._of), native.MEASURES)) if measure else None
        with deferred(), self._ring.lock:
            self._go_round(coefficients, measures)
            native.step(table.rows[:0], coefficients, 1, counts=(table.states, table.steps))
        if measures is None:
            return []
        entries = compress(table.entries, present)
        of_rows = self._gathered(measures)[present]
        return [Found(*entry, row) for entry, row in zip(entries, of_rows, strict=True)]

    def _lay_out(self) -> None:
        """Cuts the table, unless it is cut so already."""
        rows, present = self._table.rows, self._table.steps >= 0
        laid = np.where(present, rows[:, native.TYPES], -1)
        if not np.array_equal(laid, self._laid):
            chunks = self._chunks = chunks_of(rows, present, CHUNK)
            self._targets = [_cut(self._params, [*c.small_params, *c.large_params]) for c in chunks]
            self._of = np.concatenate([self._of[:0], *(chunk.of for chunk in chunks)])
            sizes = [int(chunk.rows[:, native.SIZE].sum()) for chunk in chunks]
            self._ends = list(accumulate(sizes))
            self._laid = laid

    def _placed(self) -> NDArray[np.int64]:
        """The chunks' rows, end to end, as they will be in the ring's buffers."""
        rows = [self._table.rows[:0]]
        for number, chunk in enumerate(self._chunks):
            rows.append(chunk.rows.copy())
            rows[-1][:, _PLACES] += self._ring.address(number)
        placed = np.concatenate(rows)
        placed[:, native.COEFFICIENTS] = self._table.rows[self._of, native.COEFFICIENTS]
        return placed

    def _go_round(
        self, coefficients: NDArray[np.float64], measures: NDArray[np.float64] | None
    ) -> None:
        gate, rows, most = native.Gate(self._ends), self._placed(), threads()

        def step() -> None:
            try:
                native.step(rows, coefficients, most, measures=measures, grain=_GRAIN, gate=gate)
            finally:
                gate.close()

        try:
            if len(self._chunks) < 2:  # nothing to overlap with, so that a thread only takes time
                self._order(gate, step)
                return
            stepped = []
            try:
                stepped.append(self._ring.beside.call(step))
                self._order(gate)
            finally:
                gate.close()
                wait(stepped)
            stepped[0].result()
        finally:
            self._ring.end()

    def _order(self, gate: native.Gate, step: Callable[[], None] = lambda: None) -> None:
        """Orders all copies, and opens the gate to what has come; calls ``step`` then."""
        count, ring = len(self._chunks), self._ring
        for number in range(count + AHEAD + 1):
            came, stepped = number - AHEAD, number - AHEAD - 1
            if number < count:
                self._bring(number)
            if 0 <= came < count:
                ring.wait(came)
                gate.open(came)
                step()
            if stepped >= 0:
                if not gate.wait(stepped):
                    return  # the call has failed, and says why
                ring.send(stepped, self._chunks[stepped], self._targets[stepped])

    def _bring(self, number: int) -> None:
        chunk = self._chunks[number]
        spans = [*chunk.small_grads, *chunk.large_grads]
        grads = {row: _as_bytes(self._table.read(row)) for row in {span.row for span in spans}}
        self._ring.bring(number, chunk, _cut(grads, spans), self._targets[number])

    def _gathered(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the table's rows, what has been found of theirs."""
        of_rows = np.zeros((len(self._table.rows), native.MEASURES))
        np.add.at(of_rows, self._of, measures)
        of_rows[:, _LARGEST] = 0
        np.maximum.at(of_rows[:, _LARGEST], self._of, measures[:, _LARGEST])
        return of_rows


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor, as it lies."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _cut(tensors: dict[int, Tensor] | list[Tensor], spans: list[Span]) -> list[Tensor]:
    return [tensors[span.row][span.start : span.stop] for span in spans]
