"""Runs: from a table and options to a trained model in a folder, stopped and resumed at will."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .. import __version__
from . import TrainingError, UserError, columns, target
from .columns import Categorical, Column, Mask, encode_columns, fit_columns
from .data import DIGITS, Table, check_column, drop_columns, listed, read_table
from .folder import FORMAT, RunFolder, TakenError
from .model import MLP
from .options import Options
from .process import threads
from .target import Classes, Target, check_target, fit_target, split, tell_kind
from .training import Dataset, Make, Metrics, Trainer, train

_SMALL_STEP = 10_000_000  # weights times rows

Progress = Callable[[Trainer, Metrics | None], None]


@dataclass(frozen=True)
class Task:
    """What is learnt from which data: all that ``settings.json`` holds beside the options."""

    name: str
    path: str | None
    fingerprint: str
    drop: tuple[str, ...]
    columns: tuple[Column, ...]
    target: Target

    @property
    def text_columns(self) -> set[str]:
        """The columns whose cells are text, whatever they look like in another file."""
        texts = {column.name for column in self.columns if isinstance(column, Categorical)}
        if isinstance(self.target, Classes) and not self.target.numeric:
            texts.add(self.target.name)
        return texts

    def to_json(self) -> dict[str, Any]:
        """The task as plain JSON."""
        return {
            "name": self.name,
            "data": {"path": self.path, "sha256": self.fingerprint, "drop": list(self.drop)},
            "columns": [columns.to_json(column) for column in self.columns],
            "target": target.to_json(self.target),
        }

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Task:
        """A task from the settings of a run.

        Raises:
            UserError: something is missing from them.
        """
        try:
            data = settings["data"]
            return cls(
                settings["name"],
                data["path"],
                data["sha256"],
                tuple(data["drop"]),
                tuple(columns.from_json(column) for column in settings["columns"]),
                target.from_json(settings["target"]),
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"settings.json is damaged (at {error}): restore it") from None


@dataclass(frozen=True)
class Run:
    """A training and its folder."""

    folder: RunFolder
    settings: dict[str, Any]
    task: Task
    trainer: Trainer
    notices: tuple[str, ...] = ()

    def train(self, stop: Callable[[], bool], progress: Progress) -> bool:
        """Trains to the end, or until told to stop; all that was done is saved.

        Returns:
            Whether all epochs are done.

        Raises:
            TrainingError: the loss is not finite, or the folder cannot be written any more.
        """
        try:
            with threads(self.settings["software"]["threads"]):
                return train(self.trainer, self._save, stop, progress)
        except OSError as error:
            raise TrainingError(
                f"{self.folder.path} cannot be written ({error.strerror}): the last save is whole; "
                f"make room, then continue with: {self.folder.resume_command}"
            ) from None

    def _save(self, metrics: Metrics | None) -> None:
        self.folder.save(self.trainer, metrics)


@dataclass(frozen=True)
class Prepared:
    """What a training needs to begin."""

    task: Task
    options: Options
    frame: pd.DataFrame
    training: Mask
    notices: tuple[str, ...]

    def trainer(self) -> Trainer:
        """A trainer at its beginning."""
        return make_trainer(self.task, self.options, self.frame, self.training)


def prepare(
    path: Path | None,
    given: Mapping[str, Any],
    target_name: str | None = None,
    kind: str | None = None,
    drop: tuple[str, ...] = (),
) -> Prepared:
    """Reads the data of a training and checks its options; writes nothing.

    Args:
        path: a CSV file, or None for the digits.
        given: the options that are not to have their defaults, by the names of ``Options``.
        target_name: the column to predict; needed for a CSV file.
        kind: "classification" or "regression" where it is not to be told from the target.
        drop: columns to leave out.

    Raises:
        UserError: the data or an option cannot be used.
    """
    table = read_table(path)
    frame, name = _with_target(table, target_name, drop)
    kind, why = tell_kind(frame[name], kind)
    check_target(frame[name], kind)
    validation = given.get("validation", 0.2)
    share = 1 - validation if 0 < validation < 1 else 0  # what is wrong with it, Options says
    options = Options.complete(given, max(round(len(frame) * share), 1))
    training = split(frame[name], kind, options.validation, options.seed)
    learnt, notices = fit_columns(frame.drop(columns=name), training)
    task = Task(
        table.name,
        None if table.path is None else str(table.path),
        table.fingerprint,
        drop,
        tuple(learnt),
        fit_target(frame[name], kind, training),
    )
    rows = len(table.frame) - len(frame)
    dropped = (f"left out: {rows:,} row(s) without a target",) if rows else ()
    told = f"{kind}: {why}"
    return Prepared(task, options, frame, training, (*table.notices, *dropped, *notices, told))


def start(
    path: Path | None,
    folder: Callable[[str], Path],
    given: Mapping[str, Any],
    target_name: str | None = None,
    kind: str | None = None,
    drop: tuple[str, ...] = (),
) -> Run:
    """Prepares a new run, and makes its folder.

    Args:
        path: as for ``prepare``; so the others.
        folder: where the run shall be, from the data's name.
        given: the options that are not to have their defaults.
        target_name: the column to predict.
        kind: "classification" or "regression".
        drop: columns to leave out.

    Raises:
        UserError: the data, an option or the folder cannot be used; nothing is left behind.
    """
    prepared = prepare(path, given, target_name, kind, drop)
    task, training = prepared.task, prepared.training
    trainer = prepared.trainer()
    settings = {
        "format": FORMAT,
        **task.to_json(),
        "options": prepared.options.to_json(),
        "rows": {"training": int(training.sum()), "validation": int((~training).sum())},
        "software": {
            "adamas": __version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "threads": threads_for(trainer),
        },
    }
    run_folder = _create(lambda: RunFolder(folder(task.name)), settings, trainer)
    return Run(run_folder, settings, task, trainer, prepared.notices)


def resume(path: Path, given: Mapping[str, Any], data: Path | None = None) -> Run:
    """Prepares a run to continue where it was saved.

    Args:
        path: its folder.
        given: options, which must be those that it was started with; epochs may grow where the
            learning rate does not depend on them.
        data: where the CSV file is now, if it has moved.

    Raises:
        UserError: the run cannot be continued; its folder is as it was.
    """
    folder = RunFolder(path)
    settings = folder.load_settings()
    folder.lock()
    try:
        return _resume(folder, settings, given, data)
    except BaseException:
        folder.unlock()
        raise


def _resume(
    folder: RunFolder, settings: dict[str, Any], given: Mapping[str, Any], data: Path | None
) -> Run:
    state = folder.load_checkpoint()
    with folder.damaged(folder.settings):
        task = Task.from_json(settings)
        options = Options.from_json(settings["options"])
        int(settings["software"]["threads"])
    extended = _with_given(options, given)
    if data is None and task.path is not None:
        data = Path(task.path)
    table = read_table(data)
    if table.fingerprint != task.fingerprint:
        raise UserError(
            f"{data or DIGITS} is not the data that the run began with: its content must be "
            "the same; restore it, or start a new run"
        )
    with folder.damaged(folder.settings):
        frame, name = _with_target(table, task.target.name, task.drop)
        if len(frame) != sum(settings["rows"].values()):
            raise UserError(
                f"{folder.path} was begun with {sum(settings['rows'].values()):,} rows, and this "
                f"adamas, which takes words such as NA for words, reads {len(frame):,}: train again"
            )
        training = split(frame[name], task.target.kind, options.validation, options.seed)
        trainer = make_trainer(task, extended, frame, training)
    with folder.damaged(folder.checkpoint):
        trainer.load_state_dict(state)
    try:
        folder.remove_partial_files()
        folder.cut_metrics(trainer.position.epoch)
        if extended != options:
            settings = {**settings, "options": extended.to_json()}
            folder.save_settings(settings)
    except OSError as error:
        raise UserError(
            f"{folder.path} cannot be written ({error.strerror}): a resumed run goes on there; "
            "make room or give the right to write, then resume it again"
        ) from None
    return Run(folder, settings, task, trainer)


def _create(
    folder: Callable[[], RunFolder], settings: dict[str, Any], trainer: Trainer
) -> RunFolder:
    """Makes a run's folder; the next one, if another process has just taken it."""
    run_folder = folder()
    while True:
        try:
            run_folder.create(settings, trainer)
            return run_folder
        except TakenError:
            following = folder()
            if following.path == run_folder.path:
                raise
            run_folder = following


def make_trainer(task: Task, options: Options, frame: pd.DataFrame, training: Mask) -> Trainer:
    """A trainer at its beginning.

    Args:
        task: what is learnt.
        options: how.
        frame: the rows.
        training: which of them are for training; the others are for validation.
    """
    return new_trainer(task, options, make_dataset(task, options, frame, training))


def make_dataset(task: Task, options: Options, frame: pd.DataFrame, training: Mask) -> Dataset:
    """The rows as a training needs them; the arguments are those of ``make_trainer``."""
    device = torch.device(options.device)
    if device.type == "cuda":
        # Without these, sums on the device may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    features = torch.from_numpy(encode_columns(task.columns, frame))
    targets = torch.from_numpy(task.target.encode(frame[task.target.name]))
    mask = torch.from_numpy(training)
    parts = (features[mask], targets[mask], features[~mask], targets[~mask])
    return Dataset(*(part.to(device) for part in parts))


def new_trainer(task: Task, options: Options, data: Dataset, make: Make | None = None) -> Trainer:
    """A trainer at its beginning.

    Args:
        task: what is learnt.
        options: how.
        data: from which rows.
        make: the optimizer, if it is not to be AdamW.
    """
    widths = (data.features.shape[1], *options.layers, task.target.outputs)
    return Trainer(MLP(widths, options.seed).to(options.device), data, options, make)


def threads_for(trainer: Trainer) -> int:
    """The threads that suit a training; a resumed run keeps them, as sums depend on their number.

    Steps of a small model gain nothing from a second one, and lose much where others compute.
    """
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    return 1 if weights * trainer.options.batch_size < _SMALL_STEP else torch.get_num_threads()


def _with_target(table: Table, name: str | None, drop: tuple[str, ...]) -> tuple[pd.DataFrame, str]:
    """The rows that have a target, without the columns to leave out, and the target's name."""
    if table.path is None:
        if name not in (None, "digit"):
            raise UserError(f"--target {name!r} is for a CSV file: give its path, too")
        name = "digit"
    if name is None:
        raise UserError(
            f"--target is needed: the column to predict, one of {listed(table.frame.columns)}"
        )
    check_column(table.frame, name, "--target")
    if name in drop:
        raise UserError(f"--drop {name!r} is the target: it cannot be left out; drop others only")
    frame = drop_columns(table.frame, drop)
    return frame[frame[name].notna()].reset_index(drop=True), name


def _with_given(options: Options, given: Mapping[str, Any]) -> Options:
    """The options of a run with the epochs that are asked for."""
    stored = options.to_json()
    for name, value in given.items():
        if value == stored[name]:
            continue
        option = "--" + name.replace("_", "-")
        if name != "epochs":
            raise UserError(
                f"{option} {value} differs from the run's {stored[name]}: a resumed run keeps its "
                f"settings; leave {option} out, or start a new run"
            )
        if options.schedule != "constant":
            raise UserError(
                f"--epochs {value} differs from the run's {options.epochs}: every step of its "
                f"{options.schedule} schedule depends on the number of epochs; start a new run "
                "(with --schedule constant it can be extended)"
            )
        if value < options.epochs:
            raise UserError(
                f"--epochs {value} is fewer than the run's {options.epochs}: a resumed run can "
                "only be extended; give more epochs"
            )
    return Options.from_json({**stored, **given})
