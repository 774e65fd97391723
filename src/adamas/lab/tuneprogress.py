"""The progress of a search: live on a terminal, one line a trial elsewhere."""

from __future__ import annotations

import time
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import BarColumn, TextColumn

from .progress import Live, score_text
from .space import Values
from .space import text as values_text
from .study import Study

_REFRESH = 0.5  # seconds
_WORDS = {"pruned": "stopped early", "diverged": "diverged", "failed": "failed"}


class TuneDisplay(Live):
    """Shows trials, the best so far and the time left.

    Args:
        console: where to print.
        errors: where to print the traces of trials that fail.
        most: trials of the whole search.
        score_name: what the score is called, if there is one.
    """

    def __init__(self, console: Console, errors: Console, most: int, score_name: str) -> None:
        super().__init__(
            console,
            TextColumn("trial {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("best {task.fields[best]}", style="bold cyan"),
            TextColumn("{task.fields[early]}"),
            TextColumn("{task.fields[running]} running"),
            TextColumn("{task.fields[left]}"),
        )
        self._errors = errors
        self._most, self._score_name = most, score_name
        fields: dict[str, Any] = {"best": "-", "early": "", "running": 0, "left": "-"}
        self._task = self._bar.add_task("", total=most, **fields)
        self._updated = 0.0
        self._begun = time.monotonic()
        self._ended = 0
        self._seen: set[str] = set()

    def refresh(self, study: Study, running: int) -> None:
        """Shows what there is, a few times a second."""
        now = time.monotonic()
        if not self._console.is_terminal or now - self._updated < _REFRESH:
            return
        self._updated = now
        best = study.completed
        early = study.done - len(best)
        self._bar.update(
            self._task,
            completed=study.done + study.failures,
            best=self._best(best[0]) if best else "-",
            early=f"{early} stopped early" if early else "",
            running=running + study.elsewhere,
            left=self._left(study),
        )

    def ended(self, study: Study, trial: FrozenTrial, values: Values, trace: str) -> None:
        """Prints a trial that is over; an error's trace the first time that it comes."""
        self._ended += 1
        why = trial.user_attrs.get("why", "")
        if trace and why not in self._seen:
            self._seen.add(why)
            self._print(trace.rstrip(), self._errors)
        how = trial.user_attrs["how"]
        if how == "failed":
            self._print(
                f"trial {trial.number + 1} failed ({why}) with {values_text(values)}; "
                "the search goes on",
                self._errors,
            )
        if self._console.is_terminal:
            self._updated = 0.0
            return
        result = f"loss {trial.value:.4f}" if how == "done" else _WORDS[how]
        best = study.completed
        self._print(
            f"{study.done + study.failures}/{self._most}  trial {trial.number + 1}  {result}  "
            f"{values_text(values)}  best {self._best(best[0]) if best else '-'}  "
            f"{self._left(study)}"
        )

    def _best(self, trial: FrozenTrial) -> str:
        return loss_text(trial, self._score_name)

    def _left(self, study: Study) -> str:
        if not self._ended:
            return "-"
        rest = max(self._most - study.done - study.failures, 0)
        seconds = (time.monotonic() - self._begun) / self._ended * rest
        return f"{seconds:.0f} s left" if seconds < 600 else f"{seconds / 60:.0f} min left"


def loss_text(trial: FrozenTrial, score_name: str) -> str:
    """A trial's loss, and its score if it has one."""
    text = f"loss {trial.value:.4g}"
    score = trial.user_attrs.get("score")
    return text if score is None else f"{text}, {score_name} {score_text(score_name, score)}"
