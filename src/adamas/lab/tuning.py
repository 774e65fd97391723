"""Searching Adam's hyperparameters: from what is asked for to its best settings in files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console

from . import TrainingError, UserError
from .files import write_text
from .names import typed
from .objective import find_task
from .output import Output
from .process import stop_signals
from .search import Search, StudyFolder, find_folder, of_script, of_training
from .space import Space, Values, code, command_options, parse_space
from .storage import Storage, parse_url, quiet
from .study import Study, difference
from .tuneprogress import TuneDisplay, loss_text
from .tuner import Tuner
from .tunereport import write_report

TRIALS = 30
_STUDY = "adamas"  # the one in a folder's own file


@dataclass(frozen=True)
class Request:
    """What the command was asked for, beside what is searched."""

    trials: int | None = None
    jobs: int | None = None
    storage: str | None = None
    name: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for option, value in (("trials", self.trials), ("jobs", self.jobs)):
            if value is not None and not 1 <= value <= 10**6:
                raise UserError(f"--{option} must be from 1 to 1,000,000, got {value}")
        if self.name is not None and self.storage is None:
            raise UserError(
                f"--name {self.name!r} names a study in a --storage: give that, too, or --out for "
                "the folder of a search"
            )


def jobs_for(request: Request, device: str | None) -> int:
    """How many trials run at once.

    One a processor, but a quarter of all at most: those that run together cannot learn from each
    other. One, where they would share another device.
    """
    if request.jobs is not None:
        return request.jobs
    if device not in (None, "cpu"):
        return 1
    own = hasattr(os, "sched_getaffinity")
    processors = len(os.sched_getaffinity(0)) if own else os.cpu_count() or 1
    return max(min(processors, (request.trials or TRIALS) // 4), 1)


def search_anew(
    what: Mapping[str, Any],
    ranges: Mapping[str, str],
    given: Mapping[str, Any],
    where: Mapping[str, Any],
) -> int:
    """A new search, or the last one again if it is the same and lacks trials.

    Args:
        what: ``task`` or ``script``; for a task ``target``, ``kind`` and ``drop``.
        ranges: as ``parse_space`` takes them.
        given: options of the training, and the seed.
        where: the fields of ``Request``.

    Returns:
        The exit status.

    Raises:
        UserError: something that was asked for cannot be used; nothing is left behind.
        TrainingError: no trial ended well, or the study cannot be reached any more.
    """
    request = Request(**where)
    space = parse_space(ranges)
    jobs = jobs_for(request, given.get("device"))
    if "script" in what:
        others = {**what, **given}
        others.pop("script")
        seed = others.pop("seed", 0)
        if others:
            option = typed(next(iter(others)))
            raise UserError(
                f"--script and {option} exclude each other: a script has its own training; "
                f"leave {option} out"
            )
        return _tune(of_script(what["script"], space, seed), request, jobs, None)
    task = dict(what)
    path = find_task(task.pop("task", None))
    return _tune(of_training(path, given, space, jobs, **task), request, jobs, None)


def search_on(path: Path, where: Mapping[str, Any], fixed: Mapping[str, Any]) -> int:
    """Continues the search of a folder.

    Args:
        path: the folder.
        where: ``trials``, ``jobs`` and ``storage``, where given.
        fixed: what was given that a search keeps.

    Returns:
        The exit status.

    Raises:
        UserError: the search cannot be continued; its folder is as it was.
        TrainingError: no trial ended well, or the study cannot be reached any more.
    """
    if fixed:
        option = typed(next(iter(fixed)))
        raise UserError(
            f"{option} cannot be given with --resume: a search keeps what it began with; "
            f"leave {option} out, or start a new search"
        )
    folder = StudyFolder(path)
    request = _resumed_request(folder, Request(**where))
    folder.lock()
    try:
        stored = folder.load()["search"]
        jobs = jobs_for(request, stored["options"].get("device"))
        return _tune(_resumed_search(folder, jobs), request, jobs, folder)
    finally:
        folder.unlock()


def _resumed_request(folder: StudyFolder, request: Request) -> Request:
    """The request with the storage and the number of trials that a folder's search has.

    Raises:
        UserError: the storage that was given is another one, or it needs a password.
    """
    settings = folder.load()
    stored = settings["storage"]
    url = None if request.storage is None else parse_url(request.storage)
    if url is not None and url.render_as_string(hide_password=True) != stored:
        where = stored or f"the folder's own {folder.database.name}"
        raise UserError(
            f"--storage {url.render_as_string(hide_password=True)!r} is not where the search of "
            f"{folder.path} is: that is {where}; leave --storage out, or give the same"
        )
    if url is None and stored is not None and "***" in stored:
        raise UserError(
            f"the search of {folder.path} is in {stored}, whose password is not kept: give the "
            "URL with --storage"
        )
    return replace(
        request,
        trials=request.trials or settings["trials"],
        storage=request.storage or stored,
        name=None if stored is None else settings["name"],
    )


def _resumed_search(folder: StudyFolder, jobs: int) -> Search:
    """The search of a folder.

    Raises:
        UserError: the folder, its data or its script cannot be used any more.
    """
    settings = folder.load()
    stored, path = settings["search"], settings["path"]
    task, space = stored["task"], Space.from_json(stored["space"])
    if "script" in task:
        return of_script(f"{path}:{task['function']}", space, stored["seed"])
    options = dict(stored["options"], layers=tuple(stored["options"]["layers"]))
    data = None if path is None else Path(path)
    drop = tuple(task["drop"])
    search = of_training(data, options, space, jobs, task["target"], settings["kind"], drop)
    different = difference(stored, search.to_json())
    if different:
        raise UserError(
            f"{folder.path} is of another search ({different}): restore the data that it began "
            "with, or start a new one"
        )
    return search


def _tune(search: Search, request: Request, jobs: int, resumed: StudyFolder | None) -> int:
    """Searches, shows it, and writes what is found.

    Args:
        search: what is searched for.
        request: where and how long.
        jobs: trials at once.
        resumed: the folder to continue, if one was given.

    Returns:
        The exit status.

    Raises:
        UserError: something that was asked for cannot be used; nothing is left behind.
        TrainingError: no trial ended well, or the study cannot be reached any more.
    """
    console = Output()
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    storage = None
    if request.storage is not None:
        storage = Storage(parse_url(request.storage), shared=True)
    tuner = Tuner(search.objective, jobs)
    try:
        with quiet(), stop_signals() as received:
            stop = partial(bool, received)
            names = tuner.load(lambda trace: errors.print(trace.rstrip()), stop)
            search = search.taking(names)
            session = _open(search, request, storage, resumed)
            storage = session.study.storage
            try:
                return session.run(tuner, stop, received, console, errors)
            finally:
                session.folder.unlock()
    finally:
        tuner.close()
        if storage is not None:
            storage.close()


@dataclass
class _Session:
    """One process's part in a search."""

    search: Search
    folder: StudyFolder
    study: Study
    trials: int
    continued: bool

    def run(
        self,
        tuner: Tuner,
        stop: Callable[[], bool],
        received: list[int],
        console: Output,
        errors: Console,
    ) -> int:
        search, study = self.search, self.study
        for notice in search.notices:
            console.print(notice)
        done = f", {study.done} done" if study.done else ""
        begins = "continuing" if self.continued or study.done else "searching"
        names = ", ".join(name for name, (low, high) in search.space.ranges.items() if low < high)
        console.print(
            f"{begins} {search.name}: {names}; {self.trials} trials{done}; in {self.folder.path}"
        )
        with study.storage.kept(f"continue with: {self.resume_command}"):
            with TuneDisplay(console, errors, self.trials, search.score_name) as display:
                finished = tuner.run(study, self.trials, stop, display)
            if study.completed:
                self._write(console)
            if not finished:
                console.tell(f"stopped; to continue: {self.resume_command}")
                return 128 + received[0]
            if study.elsewhere:
                console.print(
                    f"{study.elsewhere} trials still run elsewhere; for what they find: "
                    f"{self.resume_command}"
                )
            if not study.completed:
                raise TrainingError(self._nothing())
            console.check(self.folder.path)
        return 0

    @property
    def resume_command(self) -> str:
        command = self.folder.resume_command
        url = self.study.storage.url
        return f"{command} --storage {self.study.storage.shown!r}" if url.password else command

    def _nothing(self) -> str:
        ended = [trial for trial in self.study.trials if "how" in trial.user_attrs]
        failed = [trial for trial in ended if trial.user_attrs["how"] == "failed"]
        if failed and len(failed) == len(ended):
            return (
                f"all {len(failed)} trials failed, the last with "
                f"{failed[-1].user_attrs['why']}: correct that, then continue with: "
                f"{self.resume_command}"
            )
        return (
            f"none of {len(ended)} trials ended with a finite loss: search smaller learning rates, "
            "such as --lr 1e-6,1e-3"
        )

    def _write(self, console: Console) -> None:
        best, first = self.study.completed[0], self.study.first
        values = self.search.space.values(best.params)
        result = self._result(best, first, values)
        try:
            write_text(self.folder.best, json.dumps(result, indent=2, allow_nan=False) + "\n")
            write_report(self.folder.report, self.search, self.study, result)
        except OSError as error:
            raise TrainingError(
                f"the results in {self.folder.path} cannot be written ({error.strerror}): correct "
                f"that, then write them with: {self.resume_command}"
            ) from None
        name = self.search.score_name
        than = f" (default: {loss_text(first, name)})" if first else ""
        console.print(f"best of {self.study.done} trials: {loss_text(best, name)}{than}")
        if "command" in result:
            console.print(f"to train:  {result['command']}")
        console.print(f"in Python: {result['code']}")
        console.print(f"report:    {self.folder.report}")

    def _result(
        self, best: FrozenTrial, first: FrozenTrial | None, values: Values
    ) -> dict[str, Any]:
        result: dict[str, Any] = {
            "format": "adamas best 1",
            "task": self.search.name,
            "trial": best.number + 1,
            "loss": best.value,
            "score": best.user_attrs.get("score"),
            "hyperparameters": values,
            "default": first and {"loss": first.value, "score": first.user_attrs.get("score")},
            "trials": self.study.done,
        }
        if self.search.command is not None:
            result["command"] = f"{self.search.command} {command_options(values)}"
        result["code"] = code(values)
        return result


def _open(
    search: Search, request: Request, storage: Storage | None, resumed: StudyFolder | None
) -> _Session:
    """Finds or makes the folder, and opens the study in it or in the storage."""
    name = _STUDY
    if storage is not None:
        name = request.name or search.name
    shown = storage.shown if storage else None

    def study_in(place: Storage) -> Study:
        return Study(place, name, search.to_json(), search.space, search.epochs, search.seed)

    def unfinished(file: Path) -> bool:
        place = Storage.of_file(file)
        try:
            study = study_in(place)
            study.open()
            return study.done < (request.trials or TRIALS)
        finally:
            place.close()

    study = None
    if storage is not None:  # before a folder is made
        study = study_in(storage)
        with storage.kept("start again when it does"):
            study.open()
    folder, there = (
        (resumed, True)
        if resumed
        else (find_folder(search, request.out, {"storage": shown, "name": name}, unfinished))
    )
    trials = request.trials or TRIALS
    settings: dict[str, Any] = {
        "search": search.to_json(),
        "path": search.path,
        "kind": search.kind,
        "storage": shown,
        "name": name,
        "trials": trials,
    }
    if there:
        stored = folder.load()
        if not resumed:
            folder.lock()
        settings["trials"] = request.trials or stored["trials"]
        folder.save(settings)
    else:
        folder.create(settings)
    if study is None:
        study = study_in(Storage.of_file(folder.database))
        study.open()
    return _Session(search, folder, study, settings["trials"], there)
