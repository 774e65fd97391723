"""Buffers of the host through which chunks go between a device and the host, in a ring."""

from __future__ import annotations

from contextlib import nullcontext
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .beside import Beside
from .chunks import Chunk, Span

# Chunks that are brought ahead of the one that is waited for, so that copies never wait for the
# host to order the next; as many again may be stepped, or on their way back.
AHEAD = 2
_SLOTS = 2 * AHEAD


def ring_of(device: torch.device) -> Ring:
    """A device's ring, which all that step its tensors share."""
    ring = _RINGS.get(device)
    if ring is None:
        ring = _RINGS[device] = Ring(device)
    return ring


class Ring:
    """Buffers used in turn, and a stream of copies for each direction.

    On the CPU, which stands for a device where there is none, copies are done when they return.

    Attributes:
        lock: to be held while chunks go round.
        beside: a thread for what is done meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        on_host = device.type == "cpu"
        self._torch: Any = _Host if on_host else torch.get_device_module(device)
        self._device, self._pinned = device, not on_host
        self.lock = Lock()
        self.beside = Beside()
        self._down, self._up = self._torch.Stream(device), self._torch.Stream(device)
        self._buffers: list[Tensor] = []
        self._arrived = [self._torch.Event() for _ in range(_SLOTS)]
        self._left = [self._torch.Event() for _ in range(_SLOTS)]
        self._gathered = self._scattered = torch.empty(0, dtype=torch.uint8, device=device)

    def make_room(self, chunks: list[Chunk]) -> None:
        """Has buffers for these chunks from now on.

        Memory that is let go of here may still be copied from: torch's allocators see to it that
        it is not used again before.
        """
        size = max((chunk.size for chunk in chunks), default=0)
        small = max((chunk.gathered for chunk in chunks), default=0)
        if not self._buffers or len(self._buffers[0]) < size:
            room: dict[str, Any] = {"device": "cpu", "pin_memory": self._pinned}
            self._buffers = [torch.empty(size, dtype=torch.uint8, **room) for _ in range(_SLOTS)]
        if len(self._gathered) < small:
            with self._torch.stream(self._down):  # whose memory it is
                self._gathered = torch.empty(small, dtype=torch.uint8, device=self._device)
            with self._torch.stream(self._up):
                self._scattered = torch.empty_like(self._gathered)

    def begin(self) -> None:
        """Lets copies follow what the current stream has been given."""
        self._down.wait_stream(self._torch.current_stream(self._device))

    def end(self) -> None:
        """Lets the current stream go on once all is copied.

        So gradients may be freed and weights used after that, as after any other step.
        """
        current = self._torch.current_stream(self._device)
        current.wait_stream(self._down)
        current.wait_stream(self._up)

    def bring(self, number: int, chunk: Chunk, grads: list[Tensor], params: list[Tensor]) -> None:
        """Begins to copy a chunk to the host, once what was in its buffer before has left.

        Args:
            number: of the chunk.
            chunk: which it is.
            grads: its gradients on the device, small before large, as bytes,
            params: and its parameters.
        """
        at = number % _SLOTS
        buffer = self._buffers[at]
        self._down.wait_event(self._left[at])
        with self._torch.stream(self._down):
            if chunk.gathered:
                parts = _parts(self._gathered, [*chunk.small_grads, *chunk.small_params])
                few, rest = len(chunk.small_grads), len(chunk.small_params)
                torch._foreach_copy_(parts, [*grads[:few], *params[:rest]])
                buffer[: chunk.gathered].copy_(self._gathered[: chunk.gathered], non_blocking=True)
            for spans, tensors in (
                (chunk.large_grads, grads[len(chunk.small_grads) :]),
                (chunk.large_params, params[len(chunk.small_params) :]),
            ):
                for part, tensor in zip(_parts(buffer, spans), tensors, strict=True):
                    part.copy_(tensor, non_blocking=True)
            self._arrived[at].record(self._down)

    def address(self, number: int) -> int:
        """Where a chunk will be on the host."""
        return self._buffers[number % _SLOTS].data_ptr()

    def wait(self, number: int) -> None:
        """Waits until a chunk is on the host."""
        self._arrived[number % _SLOTS].synchronize()

    def send(self, number: int, chunk: Chunk, params: list[Tensor]) -> None:
        """Begins to copy a chunk's parameters back to the device."""
        at = number % _SLOTS
        buffer = self._buffers[at]
        few = len(chunk.small_params)
        with self._torch.stream(self._up):
            if few:
                small = slice(chunk.between, chunk.gathered)
                self._scattered[small].copy_(buffer[small], non_blocking=True)
                torch._foreach_copy_(params[:few], _parts(self._scattered, chunk.small_params))
            for part, tensor in zip(_parts(buffer, chunk.large_params), params[few:], strict=True):
                tensor.copy_(part, non_blocking=True)
            self._left[at].record(self._up)


_RINGS: WeakValueDictionary[torch.device, Ring] = WeakValueDictionary()


def _parts(buffer: Tensor, spans: list[Span]) -> list[Tensor]:
    """The bytes of spans, by one call for all: they lie one behind the other."""
    sizes = []
    end = spans[0].at if spans else 0
    start = end
    for span in spans:
        sizes += [span.at - end, span.stop - span.start]
        end = span.at + sizes[-1]
    parts: Any = torch.split(buffer[start:end], sizes)
    return list(parts[1::2]) if spans else []


class _Done:
    """A stream or an event of the host, where nothing is under way."""

    def __init__(self, device: torch.device | None = None) -> None:
        pass

    def wait_stream(self, stream: _Done) -> None:
        pass

    def wait_event(self, event: _Done) -> None:
        pass

    def record(self, stream: _Done) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Host:
    """What ``torch.cuda`` is for a GPU."""

    Stream = Event = current_stream = _Done
    stream = nullcontext
