"""Where NumPy arrays lie in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_LINE = 64  # bytes of a cache line and of the longest vector: memory at its multiples is fastest


def address(array: Array) -> int:
    """Of the first element."""
    first: int = array.__array_interface__["data"][0]
    return first


def is_dense(array: Array) -> bool:
    """Whether the array is one block of native numbers without gaps, in C or Fortran order."""
    flags = array.flags
    return array.dtype.isnative and flags.aligned and (flags.c_contiguous or flags.f_contiguous)


def aligned_zeros_like(array: Array, dtype: str) -> Array:
    """Zeros in the memory order of an array, at the start of a cache line.

    NumPy's own lie 16 bytes behind one, and a step with them takes a third longer.
    """
    size = array.size * np.dtype(dtype).itemsize
    block = np.zeros(size + _LINE, np.uint8)
    start = -address(block) % _LINE
    flat: Array = block[start : start + size].view(dtype)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    return flat.reshape(array.shape, order="F" if fortran else "C")


def span(array: Array) -> tuple[int, int]:
    """The first byte of the array, and the first beyond it."""
    low = high = address(array)
    if array.size:
        reach = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
        low += sum(r for r in reach if r < 0)
        high += sum(r for r in reach if r > 0) + array.itemsize
    return low, high


def overlaps_itself(array: Array) -> bool:
    """Whether two elements of the array may share memory: a stride is within the smaller ones'."""
    reach = array.itemsize
    dims = sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1)
    for stride, size in dims if array.size else ():
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def shared(arrays: Mapping[str, Array]) -> tuple[str, str] | None:
    """Two arrays that have memory in common, or None."""
    spans = sorted((*span(array), name) for name, array in arrays.items())
    begun: list[tuple[int, str]] = []  # those that reach beyond the beginning of the current one
    for low, high, name in spans:
        begun = [(end, other) for end, other in begun if end > low]
        for _, other in begun:
            if np.shares_memory(arrays[name], arrays[other]):
                return other, name
        begun.append((high, name))
    return None


class Spans:
    """The memory of some arrays, to ask whether other memory overlaps it."""

    def __init__(self, arrays: Collection[Array]) -> None:
        spans = np.array([span(array) for array in arrays], np.int64).reshape(-1, 2)
        self._lows, self._highs = np.sort(spans, axis=0).T

    def overlap(self, lows: NDArray[np.int64], highs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of each piece of memory from low to before high, whether an array overlaps it."""
        # An array does if it begins before the piece's end, but does not end before the piece.
        begun = np.searchsorted(self._lows, highs)
        ended = np.searchsorted(self._highs, lows, "right")
        overlapping: NDArray[np.bool_] = begun > ended
        return overlapping
