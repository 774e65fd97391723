"""A thread that works beside the one that steps."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from weakref import finalize

_Calls = SimpleQueue[Callable[[], None] | None]


class Beside:
    """Makes calls in a thread of its own, always the same, which ends with this object.

    The same, for OpenMP begins its threads anew for each new one that computes. An executor of
    Python's would refuse calls once the main thread has ended, though others train on.
    """

    def __init__(self) -> None:
        self._process = 0
        self._calls: _Calls

    def begin(self) -> None:
        """Begins the thread, unless it is there.

        Raises:
            RuntimeError: the system has no room for another one.
        """
        process = os.getpid()
        if self._process == process:  # a fork has none of its parent's threads
            return
        calls: _Calls = SimpleQueue()
        # Nobody is to wait for it where a program ends: it waits for calls.
        threading.Thread(target=_serve, args=(calls,), name="adamas", daemon=True).start()
        finalize(self, calls.put, None).atexit = False
        self._calls, self._process = calls, process

    def call(self, function: Callable[[], object]) -> Future[None]:
        """Has it make a call, after those before; what the call raises, the result will."""
        made: Future[None] = Future()

        def make() -> None:
            try:
                function()
            except BaseException as error:
                made.set_exception(error)
            else:
                made.set_result(None)

        self.begin()
        self._calls.put(make)
        return made


def _serve(calls: _Calls) -> None:
    while (make := calls.get()) is not None:
        make()
        del make  # and what it holds
