"""Steps that signals do not cut in two."""

from __future__ import annotations

# signal's own functions look for names of what they return, which takes 2 us a time.
import _signal  # type: ignore[import-not-found]
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any


class deferred:
    """Lets signals wait for the end of the block, so that the block is done as a whole.

    Only the main thread gets them, so elsewhere there is nothing to wait for.

    Args:
        signals: which; Ctrl-C's, unless given. Python looks for others as well between any two of
            its own instructions, so a block with many of them had better let all wait.
    """

    __slots__ = "_came", "_handlers", "_inside", "_signals"

    def __init__(self, signals: Iterable[int] = (_signal.SIGINT,)) -> None:
        self._signals = signals

    def __enter__(self) -> None:
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        self._came: dict[int, tuple[Any, ...]] = {}
        self._inside = False
        for number in self._signals:
            handler = _signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                _signal.signal(number, self._keep)
        self._inside = True

    def _keep(self, number: int, *arguments: Any) -> None:
        if self._inside:
            self._came[number] = arguments
        else:  # not all are in place yet, or one that raised has kept others from being put back
            self._handlers[number](number, *arguments)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._handlers:
            return
        self._inside = False
        try:
            for number, handler in self._handlers.items():
                _signal.signal(number, handler)
        finally:
            if self._came:
                self._deliver()

    def _deliver(self) -> None:
        """Calls all handlers, also where one raises."""
        number, arguments = self._came.popitem()
        try:
            self._handlers[number](number, *arguments)
        finally:
            if self._came:
                self._deliver()


def every_signal() -> list[int]:
    """Those that handlers may be set for."""
    return sorted(_signal.valid_signals())
