"""A table cut into chunks, each of which passes through a buffer of the host."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import native
from ...formats import GROUP
from .rows import bytes_of_groups

# Arrays smaller than that go through a buffer of the device, all in one copy: a copy of their own
# takes some 10 microseconds to begin, in which the bus moves as much.
SMALL = 1 << 18
_ALIGNMENT = 64  # bytes
_SHORT = 3 * GROUP  # a run of which a cut may leave too little
_STATE = slice(native.EXP_AVG, native.MASTER + 1)


class Span(NamedTuple):
    """A part of a tensor, and its place in the buffer, in bytes."""

    row: int
    """Of the table."""
    start: int
    stop: int
    at: int


class Chunk(NamedTuple):
    """Pieces of tensors that pass through a buffer together.

    The buffer has the small gradients, the small parameters, then all that is large.
    """

    rows: NDArray[np.int64]
    """The core's, a row a piece, whose parameters and gradients are places in the buffer."""
    of: NDArray[np.int64]
    """Their rows of the table."""
    small_grads: list[Span]
    small_params: list[Span]
    large_grads: list[Span]
    large_params: list[Span]
    between: int
    """Where the small parameters begin,"""
    gathered: int
    """and where they end."""
    size: int
    """Bytes of the buffer."""


class _Piece(NamedTuple):
    row: int
    begin: int
    end: int


def chunks_of(rows: NDArray[np.int64], present: NDArray[np.bool_], size: int) -> list[Chunk]:
    """Cuts the tensors of a table, and gathers those that are small.

    Args:
        rows: the table's.
        present: which of them have a gradient.
        size: bytes of a buffer. A chunk has no more, unless it has one piece as small as can be.
    """
    widths = bytes_of_groups(rows)
    chunks: list[Chunk] = []
    pieces: list[_Piece] = []
    room = size
    for i in np.flatnonzero(present & (rows[:, native.SIZE] > 0)).tolist():
        param, grad = (widths[i, [native.PARAM, native.GRAD]] // GROUP).tolist()
        # A piece may be longer by two groups, and is filled up to the alignment.
        most = max((size - 2 * _ALIGNMENT) // (param + grad) // GROUP - 2, 2) * GROUP
        for begin, end in cuts(int(rows[i, native.SIZE]), int(rows[i, native.RUN]), most):
            needed = _aligned((end - begin) * param) + _aligned((end - begin) * grad)
            if needed > room and pieces:
                chunks.append(_chunk(rows, widths, pieces))
                pieces, room = [], size
            pieces.append(_Piece(i, begin, end))
            room -= needed
    return [*chunks, _chunk(rows, widths, pieces)] if pieces else chunks


def cuts(size: int, run: int, most: int) -> Iterator[tuple[int, int]]:
    """Cuts a tensor's elements so that the core's rows can say where each piece lies in the whole.

    Args:
        size: how many elements they are.
        run: how many of them lie one behind the other in the whole tensor.
        most: of a piece, but for another 127, and for 64 short runs; a multiple of 64.

    Returns:
        Where pieces begin and end: at multiples of 64, or at the end. In each are whole runs, or
        parts of at most two, of which the second is not the longer one.
    """
    period = lcm(run, GROUP)
    begin = 0
    while begin < size:
        left = run - begin % run  # of the run
        if period <= most or run < _SHORT:
            end = begin + max(most // period, 1) * period
        elif left > most + GROUP:
            end = begin + most
        else:
            end = begin + _aligned(left, GROUP)
        yield begin, min(end, size)
        begin = end


def place(row: NDArray[np.int64], begin: int) -> tuple[int, int, int]:
    """OFFSET, RUN and STRIDE of a piece of a row."""
    offset, run, stride = row[[native.OFFSET, native.RUN, native.STRIDE]].tolist()
    runs, within = divmod(begin, run)
    first = offset + runs * stride + within
    if not within:
        return first, run, stride
    left = run - within
    # The second run, if there is one, begins where the row's next one does.
    return first, left, left + stride - run if run < native.LONGEST else 0


def _chunk(rows: NDArray[np.int64], widths: NDArray[np.int64], pieces: list[_Piece]) -> Chunk:
    of = np.array([piece.row for piece in pieces], np.int64)
    begin = np.array([piece.begin for piece in pieces], np.int64)
    count = np.array([piece.end - piece.begin for piece in pieces], np.int64)
    own = rows[of]
    own[:, native.SIZE] = count
    there = own[:, _STATE] != 0
    own[:, _STATE] += there * (begin[:, None] // GROUP * widths[of, _STATE])
    for row, piece in zip(own, pieces, strict=True):
        row[[native.OFFSET, native.RUN, native.STRIDE]] = place(rows[piece.row], piece.begin)
    columns = np.array([native.GRAD, native.PARAM])
    element = widths[of][:, columns] // GROUP
    small = (element * count[:, None] < SMALL).all(1)
    spans: list[list[Span]] = []
    ends = []
    at = 0
    for chosen, column in ((small, 0), (small, 1), (~small, 0), (~small, 1)):
        spans.append([])
        for k in np.flatnonzero(chosen).tolist():
            width = int(element[k, column])
            start, stop = width * pieces[k].begin, width * pieces[k].end
            spans[-1].append(Span(pieces[k].row, start, stop, at))
            own[k, columns[column]] = at
            at += _aligned(stop - start)
        ends.append(at)
    small_grads, small_params, large_grads, large_params = spans
    parts = small_grads, small_params, large_grads, large_params
    return Chunk(own, of, *parts, between=ends[0], gathered=ends[1], size=at)


def _aligned(size: int, unit: int = _ALIGNMENT) -> int:
    return -(-size // unit) * unit
