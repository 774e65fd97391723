"""Chunks on a device, and the launches that step them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import native
from ...formats import GROUP
from ...hyper import Coefficients
from . import kernels
from .jit import Launcher
from .rows import CODED, averages_of, bytes_of_groups, types_of
from .staging import OUT_OF_PLACE, SMALL, Staging

# Elements that a program steps, of coded moments and of others: enough to make up for its start.
CODED_CHUNK, CHUNK = 8192, 4096
# Elements that a thread steps at a time: so few that it does not run out of registers, and enough
# coded ones to share what threads have to do together for their group.
_ELEMENTS = 8
_BLOCK = 128  # chunks whose gradients a program places
_ALIGNMENT = 16  # bytes that a thread loads at once
_COLUMNS = kernels.COLUMNS.value
_ADDRESSES = slice(native.PARAM, native.MASTER + 1)
# Coefficients that say what is seldom done to a gradient, and what they are where it is not.
_seldom = itemgetter(*map(Coefficients._fields.index, ("l2", "maximize", "unscale", "clip")))
_NOTHING = 0.0, 0.0, 1.0, 1.0


class Alike(NamedTuple):
    """What the chunks of one launch have in common; the kernel's constants."""

    param: int
    grad: int
    moments: int
    master: int
    rule: int
    averages: int
    """Which of the rule's three there are, in bits from the lowest on."""
    whole: bool
    alignment: int


class Tile(NamedTuple):
    """How a program steps its chunk, as was measured to be fast on an H100."""

    warps: int
    registers: int | None
    """At most so many a thread, where that lets more of them run; for NVIDIA's compiler only."""

    @property
    def groups(self) -> int:
        """Of 64 elements, that are stepped at a time."""
        return _ELEMENTS * 32 * self.warps // GROUP


def _tile(alike: Alike, device: torch.device) -> Tile:
    if alike.moments >= CODED:
        nvidia = device.type == "cuda" and torch.version.hip is None
        return Tile(1, 96 if nvidia else None)
    # Of 16-bit numbers a thread loads twice as many at once: eight warps would not share them well.
    alone = alike.param == native.DTYPES["float32"] and alike.moments == native.MOMENTS["float32"]
    return Tile(8 if alone else 4, None)


class Launch:
    """A launch of ``kernels.step_chunk`` for chunks that are alike."""

    def __init__(self, chunks: Tensor, alike: Alike, step: Launcher) -> None:
        self._chunks, self._count, self._step = chunks, len(chunks), step
        warps, registers = tile = _tile(alike, chunks.device)
        self._options = {"num_warps": warps} | ({"maxnreg": registers} if registers else {})
        *types, whole, alignment = alike
        self._constants = [
            (*types, usual, whole, alignment, tile.groups) for usual in (False, True)
        ]

    def __call__(self, coefficients: Tensor, skip: Tensor, usual: bool) -> None:
        """Steps the chunks; see ``kernels.step_chunk``."""
        arguments = self._chunks, coefficients, skip
        self._step(self._count, arguments, self._constants[usual], **self._options)

    def compile(self, coefficients: Tensor, skip: Tensor, usual: bool) -> None:
        """Compiles what a call launches."""
        arguments = self._chunks, coefficients, skip
        self._step.compile(arguments, self._constants[usual], **self._options)


class Launches:
    """The chunks of rows on their device, and what is launched to step them.

    Nothing here waits for the device, and while nothing moves, what a step sends there is a row of
    coefficients.

    Args:
        rows: (tensors, 12), as the core's, with addresses of the device. It may change from step to
            step.
        device: the device.
        clips: whether some steps may clip, while others need not: all are compiled alike then, so
            that the first one that does need not wait for a compiler.

    Attributes:
        device: the device; on it are
        chunks: (chunks, 16) int64, see ``kernels.step_chunk``,
        of_row: (chunks,) the row of each, on the host,
        placed: (2, tensors) int64, see ``kernels.place_gradients``,
        coefficients: and (sets, 13) float64.
        aligned: whether all addresses are, so that a thread loads several elements at once.
        moved: whether chunks are yet to be told what has come to ``placed``.
        captured: whether a graph has been captured that steps these chunks.
    """

    def __init__(self, rows: NDArray[np.int64], device: torch.device, clips: bool = False) -> None:
        self._rows, self.device, self._clips = rows, device, clips
        self._placed = np.zeros((2, len(rows)), np.int64)
        self._kinds = np.zeros((0, 0), np.int64)
        self.aligned = True
        self._launches: list[Launch] = []
        self.of_row = np.zeros(0, np.int64)
        self._compiled: set[bool] = set()  # what they have been compiled for: usual steps, others
        self._step = Launcher(kernels.step_chunk)
        self._place = Launcher(kernels.place_gradients)
        # A row of coefficients or hyperparameters for each, or fewer numbers.
        self._staging = Staging(small=min(SMALL, 128 << len(rows).bit_length()))
        self.moved = self.captured = False
        self._never = torch.zeros(1, dtype=torch.int32, device=device)
        self.chunks = self.placed = torch.zeros(0, dtype=torch.int64, device=device)
        self.coefficients = torch.zeros(0, dtype=torch.float64, device=device)

    def step(self, coefficients: NDArray[np.float64], changed: bool = True) -> None:
        """Steps all rows that have a gradient, on the device's current stream.

        Args:
            coefficients: (sets, 13), each a ``hyper.Coefficients``; the rows name theirs.
            changed: whether the rows may have changed since the last step.
        """
        with current(self.device):
            usual = self.prepare(coefficients, changed)
            self.launch(self._never, usual)

    def prepare(self, coefficients: NDArray[np.float64], changed: bool) -> bool:
        """Brings all to the device that ``step`` needs, and compiles what it launches.

        Returns:
            Whether it is ``usual``; see ``launch``.
        """
        if changed:
            self.place()
        self.coefficients = self.sent(coefficients, self.coefficients)
        # There are mostly few sets: NumPy would take five times as long to compare them.
        usual = not self._clips and all([_seldom(row) == _NOTHING for row in coefficients.tolist()])
        self.compile(usual)
        return usual

    def launch(self, skip: Tensor, usual: bool) -> None:
        """Steps by the coefficients that are on the device.

        Args:
            skip: int32 there, 1 where nothing is to be done.
            usual: whether they neither scale nor clip, maximize or couple the decay.
        """
        self.compile(usual)
        for launch in self._launches:
            launch(self.coefficients, skip, usual)

    def compile(self, usual: bool) -> None:
        """Compiles all that ``launch`` needs, so that it launches everything or nothing."""
        if usual not in self._compiled:
            for launch in self._launches:
                launch.compile(self.coefficients, self._never, usual)
            self._compiled.add(usual)

    def place(self) -> None:
        """Brings the chunks up to date with the rows."""
        self.bring()
        if self.moved and (count := len(self.chunks)):
            arguments = self.chunks, self.placed, count, len(self._rows)
            self._place(-(-count // _BLOCK), arguments, (_BLOCK,), num_warps=4)
        self.moved = False

    def bring(self, present: NDArray[np.bool_] | None = None, capturing: bool = False) -> None:
        """Sends what chunks are to be told of the rows, and makes them anew where kinds changed.

        Args:
            present: which have a gradient, where that has to be known of empty ones too, which
                have no address: ``placed`` has 1 for them.
            capturing: whether a graph is captured, which then places them itself at each replay.
        """
        rows = self._rows
        placed = rows[:, [native.GRAD, native.COEFFICIENTS]].T
        if present is not None:
            placed[0] = np.where(placed[0] == 0, present, placed[0])
        types_hold = len(self._kinds) and np.array_equal(self._kinds[:, 0], rows[:, native.TYPES])
        if types_hold and np.array_equal(placed, self._placed) and not capturing:
            return
        kinds = _kinds(rows)
        if not np.array_equal(kinds, self._kinds):
            if self.captured:
                raise RuntimeError(OUT_OF_PLACE)
            # New chunks know nothing of what was told to those before.
            self._placed = np.full_like(self._placed, -1)
            self._build(kinds)
        self.captured |= capturing
        placed = np.ascontiguousarray(placed)
        self.placed = self.sent(placed, self.placed)
        self._placed = placed  # only now: what could not be sent is to be sent again
        self.moved = True

    def sent(self, array: NDArray[Any], target: Tensor) -> Tensor:
        """An array on the device: in the memory of ``target``, if it fits there."""
        if target.shape != array.shape:
            target = torch.empty_like(torch.from_numpy(array), device=self.device)
        self._staging.send(array, target)
        return target

    def reserve(self) -> None:
        """Makes room for what is sent while a graph is captured."""
        hypers = 128 * len(self._rows)  # or fewer, where parameters share theirs
        self._staging.reserve([self._placed.nbytes, hypers], self.device)

    def _build(self, kinds: NDArray[np.int64]) -> None:
        rows = self._rows
        order = np.lexsort(kinds.T)
        sizes = np.where(types_of(rows)[:, 2] >= CODED, CODED_CHUNK, CHUNK)[order]
        counts = -(-rows[order, native.SIZE] // sizes)
        of_row, size = np.repeat(order, counts), np.repeat(sizes, counts)
        begin = (np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)) * size
        chunks = np.zeros((len(of_row), _COLUMNS), np.int64)
        chunks[:, : native.COLUMNS] = rows[of_row]
        there = chunks[:, _ADDRESSES] != 0
        chunks[:, _ADDRESSES] += there * (begin[:, None] // 64 * bytes_of_groups(rows)[of_row])
        chunks[:, native.SIZE] = np.minimum(rows[of_row, native.SIZE] - begin, size)
        whole = kinds[of_row, 2] != 0
        chunks[:, kernels.FIRST.value] = begin + np.where(whole, rows[of_row, native.OFFSET], 0)
        chunks[:, kernels.GRAD_DTYPE.value] = types_of(rows)[of_row, 1]
        chunks[:, kernels.ROW.value] = of_row
        chunks[:, kernels.BEGIN.value] = begin
        self.chunks, self.of_row = self.sent(chunks, self.chunks), of_row
        self._kinds = kinds
        self.aligned = bool(kinds[:, -1].all())
        self._launches = list(_launches(kinds[of_row], self.chunks, self._step))
        self._compiled.clear()


def _kinds(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What rows of one launch have in common: types, averages, whether whole, and alignment."""
    addresses = rows[:, _ADDRESSES].copy()
    coded = types_of(rows)[:, 2] >= CODED
    addresses[coded, native.EXP_AVG_SQ] = 0  # scales are read one by one
    aligned = (addresses % _ALIGNMENT == 0).all(1)
    whole = (rows[:, native.SIZE] <= rows[:, native.RUN]) & (rows[:, native.OFFSET] % 64 == 0)
    return np.stack([rows[:, native.TYPES], averages_of(rows), whole, aligned], 1).astype(np.int64)


def _launches(kinds: NDArray[np.int64], chunks: Tensor, step: Launcher) -> Iterator[Launch]:
    """One for each run of equal kinds of chunks."""
    changes = np.flatnonzero((kinds[1:] != kinds[:-1]).any(1)) + 1
    for first, end in pairwise([0, *changes.tolist(), len(kinds)]):
        if end > first:
            _, averages, whole, aligned = kinds[first].tolist()
            types = types_of(kinds[first : first + 1], 0)[0, :5].tolist()
            if not averages & 3:  # there is nothing to be in a format
                types[2] = native.MOMENTS["float32"]
            alignment = _ALIGNMENT if aligned else 1
            alike = Alike._make([*types, averages, bool(whole), alignment])
            yield Launch(chunks[first:end], alike, step)


def current(device: torch.device) -> Any:
    """Makes a device the current one, on whose current stream kernels are launched."""
    module = torch.get_device_module(device)
    if device.type == "cpu" or module.current_device() == device.index:
        return nullcontext()
    return module.device(device)
