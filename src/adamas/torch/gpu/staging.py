"""Host memory from which copies to a device run while the host goes on."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class _Slot(NamedTuple):
    buffer: Tensor  # pinned
    array: NDArray[np.uint8]  # the same memory
    read: Any  # the event after which the device has read it


class Staging:
    """Pinned buffers, used in turn: none is written again before the device has read it."""

    def __init__(self) -> None:
        self._slots: deque[_Slot] = deque()

    def send(self, array: NDArray[Any], target: Tensor) -> None:
        """Copies an array to the device on its current stream, without waiting.

        Args:
            array: contiguous; it may be changed once this has returned.
            target: of its shape and dtype.
        """
        if target.device.type == "cpu":
            target.copy_(torch.from_numpy(array))
            return
        slot = self._free(array.nbytes, target.device)
        slot.array[: array.nbytes] = array.reshape(-1).view(np.uint8)
        source = slot.buffer[: array.nbytes].view(target.dtype).view(target.shape)
        target.copy_(source, non_blocking=True)
        slot.read.record()
        self._slots.append(slot)

    def _free(self, size: int, device: torch.device) -> _Slot:
        for _ in range(len(self._slots)):
            slot = self._slots.popleft()
            if len(slot.array) >= size and slot.read.query():
                return slot
            self._slots.append(slot)
        room = max(4096, 1 << (size - 1).bit_length())  # so that growing tables need few
        buffer = torch.empty(room, dtype=torch.uint8, pin_memory=True)
        return _Slot(buffer, buffer.numpy(), torch.get_device_module(device).Event())
