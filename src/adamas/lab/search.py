"""A search as it is asked for: of a training or of a script, and the folder that it is in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import UserError
from .files import write_text
from .folder import lock_folder, make_folder, next_folder
from .objective import Objective, ScriptObjective, TrainingObjective
from .options import Options
from .run import prepare
from .space import Space
from .study import FORMAT, difference

# Options of a training that are not searched.
_FIXED = (
    *("layers", "epochs", "batch_size", "schedule", "label_smoothing"),
    *("seed", "device", "validation"),
)


@dataclass(frozen=True)
class Search:
    """What is searched for: what goes into the study, and what is known here alone."""

    name: str
    objective: Objective
    space: Space
    task: dict[str, Any]
    options: dict[str, Any]
    seed: int
    path: str | None
    """Of the data or the script, which may lie elsewhere on another machine."""
    kind: str | None = None
    score_name: str = ""
    epochs: int | None = None
    command: str | None = None
    """That trains, but for what was searched."""
    notices: tuple[str, ...] = ()

    def taking(self, names: tuple[str, ...]) -> Search:
        """The search of what an objective takes."""
        return replace(self, space=self.space.only(names))

    def to_json(self) -> dict[str, Any]:
        """What must be the same for all who take part."""
        content = {
            "format": FORMAT,
            "task": self.task,
            "options": self.options,
            "seed": self.seed,
            "space": self.space.to_json(),
        }
        result: dict[str, Any] = json.loads(json.dumps(content))
        return result


def of_training(
    path: Path | None,
    given: Mapping[str, Any],
    space: Space,
    jobs: int,
    target: str | None = None,
    kind: str | None = None,
    drop: tuple[str, ...] = (),
) -> Search:
    """The search of a training's hyperparameters; the arguments are those of ``prepare``.

    Raises:
        UserError: the data or an option cannot be used.
    """
    prepared = prepare(path, given, target, kind, drop)
    task, options = prepared.task, prepared.options
    fixed = {name: asdict(options)[name] for name in _FIXED}
    parts = ["adamas train"]
    if task.path is not None:
        parts += [shlex.quote(str(path)), f"--target {shlex.quote(task.target.name)}"]
        parts += [f"--drop {shlex.quote(name)}" for name in drop]
        parts += [f"--{kind}"] if kind else []
    usual = asdict(Options.complete({}, int(prepared.training.sum())))
    for name, value in fixed.items():
        if value != usual[name]:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"--{name.replace('_', '-')} {text}")
    return Search(
        name=task.name,
        objective=TrainingObjective(prepared, max(torch.get_num_threads() // jobs, 1)),
        space=space,
        task={
            "name": task.name,
            "sha256": task.fingerprint,
            "target": task.target.name,
            "kind": task.target.kind,
            "drop": list(drop),
        },
        options=fixed,
        seed=options.seed,
        path=task.path,
        kind=kind,
        score_name=task.target.score_name,
        epochs=options.epochs,
        command=" ".join(parts),
        notices=prepared.notices,
    )


def of_script(script: str, space: Space, seed: int) -> Search:
    """The search of what a user's function takes.

    Raises:
        UserError: there is no such script or function.
    """
    objective = ScriptObjective.parse(script)
    name = f"{objective.path.stem}-{objective.function}"
    task = {"script": objective.path.name, "function": objective.function}
    return Search(name, objective, space, task, {}, seed, str(objective.path))


class StudyFolder:
    """The files of a search: ``settings.json``, ``study.db``, and the results.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.database = path / "study.db"
        self.best = path / "best.json"
        self.report = path / "tune.html"
        self.unlock: Callable[[], object] = lambda: None

    @property
    def resume_command(self) -> str:
        """What to type to continue, but for a storage with a password."""
        return f"adamas tune --resume {shlex.quote(str(self.path))}"

    def lock(self) -> None:
        """Keeps other processes from this search.

        Raises:
            TakenError: another process has it.
        """
        self.unlock = lock_folder(self.path, self, "search in a folder")

    def create(self, settings: dict[str, Any]) -> None:
        """Makes the folder.

        Raises:
            UserError: it cannot be made or holds something else.
        """
        try:
            self.unlock = make_folder(self.path, self, "search in a folder", "a search")
            self.save(settings)
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be made a folder ({error.strerror}): choose another"
            ) from None

    def save(self, settings: dict[str, Any]) -> None:
        """Writes the settings."""
        write_text(self.settings, json.dumps(settings, indent=2, allow_nan=False) + "\n")

    def load(self) -> dict[str, Any]:
        """The settings.

        Raises:
            UserError: there are none, or they are not of a search.
        """
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder: give the folder of a search")
        try:
            settings = json.loads(self.settings.read_text(encoding="utf-8"))
            known = settings["search"]["format"] == FORMAT
        except FileNotFoundError:
            raise UserError(
                f"{self.path} is not a search: it has no {self.settings.name}; "
                "give the folder that `adamas tune` wrote"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise UserError(
                f"{self.settings} is not of `adamas tune`, or damaged: it must say {FORMAT!r}; "
                "restore it, or start a new search"
            )
        result: dict[str, Any] = settings
        return result


def find_folder(
    search: Search,
    out: Path | None,
    place: Mapping[str, str | None],
    unfinished: Callable[[Path], bool],
) -> tuple[StudyFolder, bool]:
    """The folder for a search, and whether it is there: where the last one is to be continued.

    Args:
        search: what is searched for.
        out: the folder that was asked for.
        place: the ``storage``, if the study is not in the folder, and its ``name``.
        unfinished: whether the study in a file lacks trials.

    Raises:
        UserError: the folder that was asked for is of another search.
    """
    if out is not None:
        folder = StudyFolder(out)
        if not folder.settings.exists():
            return folder, False
        different = _difference(folder.load(), search, place)
        if different:
            raise UserError(
                f"--out {out} is of another search ({different}): choose another --out, or the same"
            )
        return folder, True
    name = f"tune-{search.name}"
    following = next_folder(name)
    number = int(following.name.rpartition("-")[2])
    last = StudyFolder(following.with_name(f"{name}-{number - 1}"))
    if last.settings.exists():
        # One that is in use or damaged is none to continue.
        with suppress(UserError):
            stored = last.load()
            last.lock()
            try:
                same = not _difference(stored, search, place)
                if same and (place["storage"] is not None or unfinished(last.database)):
                    return last, True
            finally:
                last.unlock()
    return StudyFolder(following), False


def _difference(stored: dict[str, Any], search: Search, place: Mapping[str, str | None]) -> str:
    there = {**stored["search"], **{name: stored[name] for name in place}}
    return difference(there, {**search.to_json(), **place})
