"""A bus where there is no GPU: copies over it take its time, and nothing else of the machine."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Seconds until a copy begins that the one before it has not hidden.
_BEGIN = 4e-6


class Bus:
    """Stands for ``torch.cuda`` in what copies between the CPU, as the device, and the host.

    As on a GPU, ordering a copy returns at once, copies of one stream follow each other and those
    of two streams overlap. Nothing is moved, so that no processor and no memory works for the bus:
    what a step costs beside its copies is seen, but not what it loses where DMA takes a part of
    the memory's bandwidth.

    Args:
        rate: bytes a second, in each direction.

    Attributes:
        rate: the same; None moves all bytes, at once.
    """

    def __init__(self, rate: float) -> None:
        self.rate: float | None = rate
        self._streams: list[_Stream] = []

    def Stream(self, device: torch.device) -> _Stream:
        """Another queue of copies."""
        self._streams.append(_Stream())
        return self._streams[-1]

    def Event(self) -> _Event:
        """A point of a queue, once it is recorded."""
        return _Event()

    def current_stream(self, device: torch.device) -> _Stream:
        """That of the CPU's own work, which is done when it returns."""
        return _Stream()

    def stream(self, stream: _Stream) -> _Copies:
        """While entered, what is copied goes through a stream."""
        return _Copies(self, stream)

    def synchronize(self) -> None:
        """Waits until all is copied."""
        _sleep_until(max((stream.free for stream in self._streams), default=0.0))


class _Stream:
    """The time from which it has nothing to do."""

    free = 0.0

    def wait_stream(self, stream: _Stream) -> None:
        self.free = max(self.free, stream.free)

    def wait_event(self, event: _Event) -> None:
        self.free = max(self.free, event.at)

    def work(self, seconds: float) -> None:
        self.free = max(self.free, time.perf_counter()) + seconds


class _Event:
    """The time when a stream has done what it had been given."""

    at = 0.0

    def record(self, stream: _Stream) -> None:
        self.at = stream.free

    def synchronize(self) -> None:
        _sleep_until(self.at)


class _Copies(TorchDispatchMode):
    """Sends copies through a stream of a bus."""

    def __init__(self, bus: Bus, stream: _Stream) -> None:
        super().__init__()
        self._bus, self._stream = bus, stream

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        rate = self._bus.rate
        if rate is None or name not in ("copy_", "_foreach_copy_"):
            return function(*args, **(kwargs or {}))
        if not isinstance(args[0], Tensor):  # many at once: within the device, not over the bus
            self._stream.work(_BEGIN)
            return None
        self._stream.work(_BEGIN + args[0].nbytes / rate)
        if not (kwargs or {}).get("non_blocking", args[2:] == (True,)):
            _sleep_until(self._stream.free)
        return args[0]


def _sleep_until(when: float) -> None:
    left = when - time.perf_counter()
    if left > 0:
        time.sleep(left)
