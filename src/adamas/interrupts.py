"""Steps that Ctrl-C does not cut in two."""

from __future__ import annotations

# signal's own functions look for names of what they return, which takes 2 us a time.
import _signal  # type: ignore[import-not-found]
import threading
from types import TracebackType
from typing import Any


class deferred:
    """Lets Ctrl-C wait for the end of the block, so that the block is done as a whole.

    Only the main thread gets it, so elsewhere there is nothing to wait for.
    """

    __slots__ = "_came", "_handler"

    def __enter__(self) -> None:
        handler = _signal.getsignal(_signal.SIGINT)
        waits = callable(handler) and threading.current_thread() is threading.main_thread()
        self._handler = handler if waits else None
        if waits:
            self._came: list[Any] = []
            _signal.signal(_signal.SIGINT, self._keep)

    def _keep(self, *arguments: Any) -> None:
        self._came.append(arguments)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handler is None:
            return
        _signal.signal(_signal.SIGINT, self._handler)
        if self._came:
            self._handler(*self._came[-1])
