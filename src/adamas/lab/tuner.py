"""The loop of a search: trials to workers, losses to the study."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Protocol

from optuna import Trial
from optuna.trial import FrozenTrial

from . import TrainingError, UserError
from .objective import Objective
from .space import Values
from .study import Study
from .worker import Ended, Ready, Reported, Unusable, Worker

_PAUSE = 0.2  # seconds until Ctrl-C is seen


class Watcher(Protocol):
    """Who shows a search."""

    def refresh(self, study: Study, running: int) -> None:
        """Takes notice that something has happened, or that time has passed."""

    def ended(self, study: Study, trial: FrozenTrial, values: Values, trace: str) -> None:
        """Takes notice of a trial that is over."""


@dataclass
class _Current:
    """A trial that a worker has."""

    trial: Trial
    values: Values
    epoch: int = 0
    loss: float | None = None
    score: float | None = None
    begun: float = field(default_factory=time.monotonic)


class Tuner:
    """Workers, and the trials that they have.

    Args:
        objective: what a trial is.
        jobs: how many trials run at once.
    """

    def __init__(self, objective: Objective, jobs: int) -> None:
        self._objective = objective
        self._jobs = jobs
        self._loading: list[Worker] = []
        self._idle: list[Worker] = []
        self._busy: dict[Worker, _Current] = {}

    def load(self, show: Callable[[str], None], stop: Callable[[], bool]) -> tuple[str, ...]:
        """Starts the first worker.

        Args:
            show: takes the trace of what the objective raises.
            stop: asked several times a second.

        Returns:
            The hyperparameters that the objective takes.

        Raises:
            UserError: it cannot be loaded.
            KeyboardInterrupt: it was told to stop.
        """
        worker = Worker(self._objective)
        try:
            while not worker.connection.poll(_PAUSE):
                if stop():
                    raise KeyboardInterrupt
            message = worker.receive()
        except EOFError:
            raise UserError(_died(worker)) from None
        except BaseException:
            worker.stop()
            raise
        if isinstance(message, Ready):
            self._idle.append(worker)
            return message.names
        worker.stop()
        assert isinstance(message, Unusable)
        if message.trace:
            show(message.trace)
            raise UserError(f"the script cannot be loaded ({message.why}): correct it")
        raise UserError(message.why)

    def run(self, study: Study, most: int, stop: Callable[[], bool], watcher: Watcher) -> bool:
        """Runs trials until there are enough, or until told to stop.

        Args:
            study: where they are.
            most: how many trials the study is to have.
            stop: asked several times a second.
            watcher: shows it.

        Returns:
            Whether it went on to the end; if not, trials in flight are queued again.
        """
        while True:
            if stop():
                study.give_up()
                return False
            self._begin(study, most)
            if not self._busy and not self._loading:
                return True
            everyone = {w.connection: w for w in [*self._busy, *self._loading]}
            for connection in wait(list(everyone), _PAUSE):
                self._hear(everyone[connection], study, watcher)
            study.beat()
            watcher.refresh(study, len(self._busy))

    def close(self) -> None:
        """Ends the workers."""
        for worker in [*self._busy, *self._idle, *self._loading]:
            worker.stop()

    def _begin(self, study: Study, most: int) -> None:
        """Gives each idle worker a trial, and starts workers for more."""
        while self._idle:
            asked = study.ask(most)
            if asked is None:
                return
            worker = self._idle.pop()
            self._busy[worker] = _Current(*asked)
            worker.begin(asked[1])
        workers = len(self._busy) + len(self._loading)
        left = most - study.done - study.failures - study.elsewhere
        for _ in range(min(self._jobs, left) - workers):
            self._loading.append(Worker(self._objective))

    def _hear(self, worker: Worker, study: Study, watcher: Watcher) -> None:
        try:
            message = worker.receive()
        except EOFError:
            if worker in self._loading:
                self._loading.remove(worker)
                raise TrainingError(_died(worker)) from None
            message = Ended("failed", f"the worker process {worker.stop(1)}")
            self._end(self._busy.pop(worker), message, study, watcher)
            return
        match message:
            case Reported(loss, score):
                current = self._busy[worker]
                current.epoch, current.loss, current.score = current.epoch + 1, loss, score
                worker.go_on(study.report(current.trial, current.epoch, loss))
            case Ended():
                self._idle.append(worker)
                self._end(self._busy.pop(worker), message, study, watcher)
            case Ready():
                self._loading.remove(worker)
                self._idle.append(worker)
            case Unusable(why):
                self._loading.remove(worker)
                worker.stop()
                raise TrainingError(f"the script could be loaded once, and then no more ({why})")

    def _end(self, current: _Current, message: Ended, study: Study, watcher: Watcher) -> None:
        told = {
            "loss": current.loss,
            "score": current.score,
            "epochs": current.epoch,
            "seconds": time.monotonic() - current.begun,
            "why": message.why,
        }
        ended = study.end(current.trial, message.how, told)
        watcher.ended(study, ended, current.values, message.trace)


def _died(worker: Worker) -> str:
    return f"the worker process {worker.stop(1)} while it loaded what is to be tried: correct that"
