"""Host memory from which copies to a device run while the host goes on."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OUT_OF_PLACE = (
    "a step that is captured in a graph must find everything in its place: make three steps with "
    "capturable=True and such gradients as it will have before each capture"
)


class _Slot:
    """A pinned buffer, and the event after which the device has read it."""

    def __init__(self, size: int, device: torch.device) -> None:
        room = max(4096, 1 << (size - 1).bit_length())  # so that growing tables need few
        self._buffer = torch.empty(room, dtype=torch.uint8, device="cpu", pin_memory=True)
        self._array = self._buffer.numpy()
        self._source: Tensor | None = None
        self.read = torch.get_device_module(device).Event()

    def fits(self, array: NDArray[Any]) -> bool:
        """Whether an array has room."""
        return len(self._array) >= array.nbytes

    def fill(self, array: NDArray[Any], target: Tensor) -> Tensor:
        """The buffer with an array in it, in the form of a tensor."""
        self._array[: array.nbytes] = array.reshape(-1).view(np.uint8)
        source = self._source
        if source is None or source.shape != target.shape or source.dtype != target.dtype:
            source = self._buffer[: array.nbytes].view(target.dtype).view(target.shape)
            self._source = source
        return source


class Staging:
    """Pinned buffers, used in turn: none is written again before the device has read it.

    What is sent while a graph is captured is read again at each replay, so its buffer is kept; a
    few are made beforehand, for no memory can be pinned during capture.
    """

    def __init__(self) -> None:
        self._slots: deque[_Slot] = deque()
        self._spare: list[_Slot] = []
        self._captured: list[_Slot] = []

    def reserve(self, size: int, device: torch.device, count: int = 8) -> None:
        """Makes buffers of so many bytes for captures."""
        if device.type != "cpu":
            self._spare = [_Slot(size, device) for _ in range(count)]

    def send(self, array: NDArray[Any], target: Tensor) -> None:
        """Copies an array to the device on its current stream, without waiting.

        Args:
            array: contiguous; it may be changed once this has returned.
            target: of its shape and dtype.
        """
        if target.device.type == "cpu":
            target.copy_(torch.from_numpy(array))
            return
        capturing = is_capturing(target.device)
        slot = self._of_capture(array) if capturing else self._free(array, target.device)
        target.copy_(slot.fill(array, target), non_blocking=True)
        if not capturing:
            slot.read.record()
            self._slots.append(slot)

    def _free(self, array: NDArray[Any], device: torch.device) -> _Slot:
        for _ in range(len(self._slots)):
            slot = self._slots.popleft()
            if slot.fits(array) and slot.read.query():
                return slot
            self._slots.append(slot)
        return _Slot(array.nbytes, device)

    def _of_capture(self, array: NDArray[Any]) -> _Slot:
        for slot in self._spare:
            if slot.fits(array):
                self._spare.remove(slot)
                self._captured.append(slot)
                return slot
        raise RuntimeError(OUT_OF_PLACE)


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on a device's current stream goes into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
