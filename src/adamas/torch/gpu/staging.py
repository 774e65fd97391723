"""Host memory from which copies to a device run while the host goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OUT_OF_PLACE = (
    "a step that is captured in a graph must find everything in its place: make three steps with "
    "capturable=True and such gradients as it will have before each capture"
)
NO_ROOM = (
    "the graphs captured of late hold all memory that was pinned for them, and none can be pinned "
    "during a capture: capture fewer steps in a graph, and make a step outside of any before the "
    "next capture, which has room for eight steps or more again"
)


SMALL = 4096  # bytes at most of arrays that share a slot,
_SMALL_ONES = 16  # of which it has so many
_STEPS = 8  # at least, that captures find slots for,
_FEW = 4  # and slots of small arrays that they find beside those of large ones


class _Slot:
    """A pinned buffer with places for arrays, and the event after which the device has read all."""

    def __init__(self, size: int, small: int, device: torch.device) -> None:
        self._small = small
        self._room = max(small, 1 << (size - 1).bit_length())  # so that growing tables need few
        self.places = _SMALL_ONES if self._room == small else 1
        room = self._room * self.places
        self._buffer = torch.empty(room, dtype=torch.uint8, device="cpu", pin_memory=True)
        self._array = self._buffer.numpy()
        self._sources: list[Tensor | None] = [None] * self.places
        self.read = torch.get_device_module(device).Event()
        self.filled = 0

    def has_room(self, array: NDArray[Any]) -> bool:
        """Whether an array has room in a place."""
        return self._room >= array.nbytes

    def fits(self, array: NDArray[Any]) -> bool:
        """Whether it has, and places are for arrays of its size."""
        return self.has_room(array) and (self.places > 1) == (array.nbytes <= self._small)

    def fill(self, array: NDArray[Any], target: Tensor) -> Tensor:
        """The next place with an array in it, in the form of a tensor."""
        place, self.filled = self.filled, self.filled + 1
        begin, end = place * self._room, place * self._room + array.nbytes
        self._array[begin:end] = array.reshape(-1).view(np.uint8)
        source = self._sources[place]
        if source is None or source.shape != target.shape or source.dtype != target.dtype:
            source = self._buffer[begin:end].view(target.dtype).view(target.shape)
            self._sources[place] = source
        return source


class Staging:
    """Pinned buffers, used in turn: none is written again before the device has read it.

    What is sent while a graph is captured is read again at each replay, so its buffer is kept; a
    few are made beforehand, for no memory can be pinned during capture.

    Args:
        small: arrays of so many bytes at most, as each step sends, share a buffer.
    """

    def __init__(self, small: int = SMALL) -> None:
        self._small = small
        self._slots: deque[_Slot] = deque()  # full ones, which the device may still read
        self._slot: _Slot | None = None  # of small arrays, with places left
        self._spare: list[_Slot] = []
        self._captured: list[_Slot] = []

    def reserve(self, sizes: Sequence[int], device: torch.device) -> None:
        """Makes buffers for captures, each of whose steps sends arrays of so many bytes."""
        if device.type == "cpu":
            return
        large = [size for size in sizes if size > self._small] * _STEPS
        small = [self._small] * (_FEW if large else _STEPS)
        self._spare = [_Slot(size, self._small, device) for size in [*small, *sorted(large)]]

    def send(self, array: NDArray[Any], target: Tensor) -> None:
        """Copies an array to the device on its current stream, without waiting.

        Args:
            array: contiguous; it may be changed once this has returned.
            target: of its shape and dtype.
        """
        if target.device.type == "cpu":
            target.copy_(torch.from_numpy(array))
            return
        if is_capturing(target.device):
            target.copy_(self._of_capture(array).fill(array, target), non_blocking=True)
            return
        small = array.nbytes <= self._small
        slot = (self._slot if small else None) or self._free(array, target.device)
        source = slot.fill(array, target)
        full = slot.filled == slot.places
        if small:
            self._slot = None if full else slot
        target.copy_(source, non_blocking=True)
        if full:
            slot.read.record()
            self._slots.append(slot)

    def _free(self, array: NDArray[Any], device: torch.device) -> _Slot:
        for _ in range(len(self._slots)):
            slot = self._slots.popleft()
            if slot.fits(array) and slot.read.query():
                slot.filled = 0
                return slot
            self._slots.append(slot)
        return _Slot(array.nbytes, self._small, device)

    def _of_capture(self, array: NDArray[Any]) -> _Slot:
        for slot in self._spare:
            if slot.has_room(array):  # those of large tables take the few numbers sent beside, too
                if slot.filled == slot.places - 1:
                    self._spare.remove(slot)
                self._captured.append(slot)
                return slot
        raise RuntimeError(NO_ROOM if self._captured else OUT_OF_PLACE)


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on a device's current stream goes into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
