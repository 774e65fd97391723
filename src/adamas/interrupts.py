"""Steps that signals do not cut in two."""

from __future__ import annotations

# signal's own functions look for names of what they return, which takes 2 us a time.
import _signal  # type: ignore[import-not-found]
import threading
from types import TracebackType
from typing import Any

# Those that stop a program or tell it something: Ctrl-C, schedulers' and batch systems', alarms.
# Real-time ones are left out, since looking for the handlers of 31 takes a microsecond.
_NAMES = [
    *("INT", "TERM", "HUP", "QUIT", "BREAK", "TSTP", "CONT"),
    *("ALRM", "VTALRM", "PROF", "XCPU", "USR1", "USR2"),
]
_SIGNALS = [getattr(_signal, f"SIG{name}") for name in _NAMES if hasattr(_signal, f"SIG{name}")]


class deferred:
    """Lets signals wait for the end of the block, so that the block is done as a whole.

    Only the main thread gets them, so elsewhere there is nothing to wait for.
    """

    __slots__ = "_came", "_handlers", "_inside"

    def __enter__(self) -> None:
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        self._came: dict[int, tuple[Any, ...]] = {}
        self._inside = False
        for number in _SIGNALS:
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
            self._deliver()

    def _deliver(self) -> None:
        """Calls the handlers of all that have come, also where one raises."""
        if self._came:
            number, arguments = self._came.popitem()
            try:
                self._handlers[number](number, *arguments)
            finally:
                self._deliver()
