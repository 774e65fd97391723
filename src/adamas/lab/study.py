"""A search for hyperparameters as trials in a database, none of which is lost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna import Trial
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from . import UserError
from .space import Space, Values
from .storage import HEARTBEAT, Storage, again, quiet

FORMAT = "adamas study 1"
_SETTINGS = "adamas"
_FIRST = "default"
_RETRY_OF, _RETRIES = "retry_of", "retries"
_MOST_RETRIES = 3
_STARTUP = 8  # random trials before the model of the losses
_WARMUP = 0.25  # of the epochs, before a trial may be pruned


@dataclass
class Study:
    """Trials of one search.

    Args:
        storage: where they are.
        name: the study's, there.
        search: what is searched for, as JSON: the same for all who take part.
        space: what a trial chooses from.
        epochs: of a trial, if that is known.
        seed: of the choices.
    """

    storage: Storage
    name: str
    search: dict[str, Any]
    space: Space
    epochs: int | None
    seed: int
    failures: int = 0
    """Trials that failed here; they are not counted as done by whoever continues."""
    _running: dict[int, Trial] = field(default_factory=dict)
    _beat: float = -math.inf

    def open(self) -> None:
        """Makes the study, or continues it; trials that were lost in the middle are queued again.

        Raises:
            UserError: the study of that name is of another search.
        """
        again(self._create)
        if not self.storage.shared:  # the folder's lock says that nobody else runs any
            for trial in self._in_state(TrialState.RUNNING):
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._requeue()
        if not any(t.user_attrs.get(_FIRST) and t.state != TrialState.FAIL for t in self.trials):
            self._study.enqueue_trial(self.space.first(), user_attrs={_FIRST: True})

    def _create(self) -> None:
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=5, n_warmup_steps=math.ceil(_WARMUP * (self.epochs or 8))
        )
        self._study = optuna.create_study(
            storage=self.storage.rdb,
            study_name=self.name,
            direction="minimize",
            pruner=pruner,
            load_if_exists=True,
        )
        stored = self._study.user_attrs.get(_SETTINGS)
        if stored is None and not self.trials:
            self._study.set_user_attr(_SETTINGS, self.search)
        else:
            self._check(stored)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, the oldest first."""
        return self._study.get_trials(deepcopy=False)

    @property
    def completed(self) -> list[FrozenTrial]:
        """Those that have a loss, the best first."""
        done = self._in_state(TrialState.COMPLETE)
        return sorted(done, key=lambda trial: (trial.value, trial.number))

    @property
    def done(self) -> int:
        """How many have ended, well or early."""
        return len(self._in_state(TrialState.COMPLETE, TrialState.PRUNED))

    @property
    def elsewhere(self) -> int:
        """How many run on other machines."""
        running = self._in_state(TrialState.RUNNING)
        return sum(trial.number not in self._running for trial in running)

    @property
    def first(self) -> FrozenTrial | None:
        """The trial of the default hyperparameters, if it has ended well."""
        found = (trial for trial in self.completed if trial.user_attrs.get(_FIRST))
        return next(found, None)

    def ask(self, most: int) -> tuple[Trial, Values] | None:
        """Begins a trial, unless enough are done or running.

        Args:
            most: trials of the whole study.
        """
        running = len(self._in_state(TrialState.RUNNING))
        if self.done + running + self.failures >= most:
            return None
        # A sampler for each trial: a study that is continued chooses what it would have chosen.
        seed = np.random.SeedSequence([self.seed, self.done + running]).generate_state(1)[0]
        with quiet():
            self._study.sampler = optuna.samplers.TPESampler(
                seed=int(seed), n_startup_trials=_STARTUP, constant_liar=True
            )
            trial = self._study.ask()
        self._running[trial.number] = trial
        if self.storage.shared:  # one that has never told that it is alive is never missed
            self.storage.rdb.record_heartbeat(trial._trial_id)
        return trial, self.space.suggest(trial)

    def report(self, trial: Trial, epoch: int, loss: float) -> bool:
        """Takes a loss after an epoch, and says whether the trial is to end here."""
        trial.report(loss, epoch)
        return epoch != self.epochs and not trial.user_attrs.get(_FIRST) and trial.should_prune()

    def end(self, trial: Trial, how: str, attributes: dict[str, Any]) -> FrozenTrial:
        """Takes a trial's end.

        Args:
            trial: the trial.
            how: "done", "pruned", "diverged" or "failed".
            attributes: what else is to be known of it, ``loss`` among it if it is done.
        """
        loss = attributes.pop("loss", None)
        for name, value in {**attributes, "how": how}.items():
            trial.set_user_attr(name, value)
        state = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(how, TrialState.PRUNED)
        self._running.pop(trial.number)
        self.failures += how == "failed"
        values = loss if state == TrialState.COMPLETE else None
        return self._study.tell(trial, values, state)

    def give_up(self) -> None:
        """Queues the trials that run here again, for whoever continues."""
        for number in list(self._running):
            self._running.pop(number)
            self._study.tell(number, state=TrialState.FAIL)
        self._requeue()

    def beat(self) -> None:
        """Tells that the trials here are alive, and queues again those of machines that are not."""
        now = time.monotonic()
        if not self.storage.shared or now - self._beat < HEARTBEAT:
            return
        self._beat = now
        for trial in self._running.values():
            self.storage.rdb.record_heartbeat(trial._trial_id)
        with quiet():
            fail_stale_trials(self._study)
        self._requeue()

    def _requeue(self) -> None:
        """Queues each trial again that failed by no fault of its own."""
        trials = self.trials
        queued = {trial.user_attrs.get(_RETRY_OF) for trial in trials}
        for trial in trials:
            retries = trial.user_attrs.get(_RETRIES, 0)
            lost = trial.state == TrialState.FAIL and "how" not in trial.user_attrs
            if lost and trial.number not in queued and retries < _MOST_RETRIES:
                params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                known = {_RETRY_OF: trial.number, _RETRIES: retries + 1}
                if trial.user_attrs.get(_FIRST):
                    known[_FIRST] = True
                self._study.enqueue_trial(params, user_attrs=known)

    def _in_state(self, *states: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state in states]

    def _check(self, stored: Any) -> None:
        where = f"study {self.name!r} in {self.storage.shown}"
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise UserError(
                f"{where} is not of `adamas tune`: choose another --name, or another --storage"
            )
        different = difference(stored, self.search)
        if different:
            raise UserError(
                f"{where} is of another search ({different}): give the same, or another --name"
            )


def difference(stored: dict[str, Any], given: dict[str, Any], path: Sequence[str] = ()) -> str:
    """The first difference of two JSON objects in words, or nothing."""
    for name in sorted({*stored, *given}):
        there, here = stored.get(name), given.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            found = difference(there, here, (*path, name))
            if found:
                return found
        elif json.dumps(there) != json.dumps(here):
            what = " ".join((*path, name)).replace("_", " ")
            return f"its {what} is {_short(there)}, not {_short(here)}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
