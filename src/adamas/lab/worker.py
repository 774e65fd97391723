"""Processes that evaluate trials, so that what a trial does to its process ends with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

from . import UserError
from .objective import DivergedError, Objective
from .space import Values


class Ready(NamedTuple):
    """A worker has loaded its objective."""

    names: tuple[str, ...]


class Reported(NamedTuple):
    """An epoch is over; the worker waits to hear whether to go on."""

    loss: float
    score: float | None


class Ended(NamedTuple):
    """A trial is over."""

    how: Literal["done", "pruned", "diverged", "failed"]
    why: str = ""
    trace: str = ""


class Unusable(NamedTuple):
    """The objective cannot be loaded."""

    why: str
    trace: str


Message = Ready | Reported | Ended | Unusable


class Worker:
    """A process of its own that evaluates one trial after another.

    Args:
        objective: what a trial is.
    """

    def __init__(self, objective: Objective) -> None:
        # A server forks the workers before anything was computed in it, so that each has what a
        # new process has, without importing again; where there is none, new processes do import.
        method = "spawn" if sys.platform == "win32" else "forkserver"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([__name__, "torch._dynamo"])
        self.connection, theirs = context.Pipe()
        # Not a daemon, which could have no children: a script may load its data in processes.
        self.process = context.Process(target=_work, args=(theirs, objective))
        self.process.start()
        theirs.close()

    def begin(self, values: Values) -> None:
        """Begins a trial."""
        self._send(values)

    def go_on(self, prune: bool) -> None:
        """Lets the trial begin its next epoch, or end here."""
        self._send(prune)

    def receive(self) -> Message:
        """What the worker says next.

        Raises:
            EOFError: the process has died.
        """
        try:
            message: Message = self.connection.recv()
        except OSError:
            raise EOFError from None
        return message

    def stop(self, seconds: float = 0) -> str:
        """Ends the process, if it has not ended by itself after so long, and says how it did."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        self.connection.close()
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with status {code}"

    def _send(self, content: Values | bool) -> None:
        with suppress(OSError):  # it has died, which the next receive says
            self.connection.send(content)


def _work(connection: Connection[Any, Any], objective: Objective) -> None:
    """The worker's side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    with suppress(EOFError, OSError):  # of the connection, whose other end is gone
        ready = _load(objective)
        connection.send(ready)
        while isinstance(ready, Ready):
            connection.send(_trial(connection, connection.recv(), objective))


def _load(objective: Objective) -> Ready | Unusable:
    try:
        return Ready(objective.load())
    except UserError as error:
        return Unusable(str(error), "")
    except BaseException as error:
        return Unusable(_line(error), _trace(error))


def _trial(connection: Connection[Any, Any], values: Values, objective: Objective) -> Ended:
    try:
        for loss, score in objective.epochs(values):
            connection.send(Reported(loss, score))
            if connection.recv():
                return Ended("pruned")
    except DivergedError as error:
        return Ended("diverged", str(error))
    except BaseException as error:
        return Ended("failed", _line(error), _trace(error))
    return Ended("done")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _trace(error: BaseException) -> str:
    """The error's trace from where the user's code begins."""
    trace, package = error.__traceback__, os.path.dirname(__file__)
    while trace and trace.tb_next and trace.tb_frame.f_code.co_filename.startswith(package):
        trace = trace.tb_next
    while trace and trace.tb_next and "importlib" in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def _follow(parent: int) -> None:
    """Ends this process with its parent, however long a trial would still take."""
    wait([parent])
    os._exit(1)
