"""A run's folder: what it holds, and how it stays whole."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from . import UserError, out_of_memory
from .files import append_line, partial_path, write_atomically, write_text
from .training import Metrics, Trainer

if sys.platform != "win32":
    import fcntl

FORMAT = "adamas run 1"
_REPORT_BYTES = 8 << 20  # a report, most of it the plotting library


class TakenError(UserError):
    """The folder for a new run holds something, or another process uses it."""


class RunFolder:
    """The files of a run: ``settings.json``, ``checkpoint.pt``, ``metrics.jsonl``, and the results.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.checkpoint = path / "checkpoint.pt"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.report = path / "report.html"
        self._unlock: Callable[[], object] = lambda: None

    @property
    def resume_command(self) -> str:
        """What to type to continue."""
        return f"adamas train --resume {shlex.quote(str(self.path))}"

    def lock(self) -> None:
        """Keeps other processes from training this run, until this object or the process ends.

        Raises:
            TakenError: another process trains it.
        """
        self._unlock = lock_folder(self.path, self, "train a run")

    def unlock(self) -> None:
        """Lets other processes train this run."""
        self._unlock()

    def create(self, settings: dict[str, Any], trainer: Trainer) -> None:
        """Makes the folder with all files that training needs to write, before it begins.

        Raises:
            UserError: the folder is not empty, cannot be written, or the disk is too full; then
                nothing is left behind.
        """
        made = self._make_folder()
        try:
            self.save_settings(settings)
            write_text(self.metrics, "")
            self.save(trainer, None)
            self.check_space()
        except BaseException as error:
            for file in (self.settings, self.metrics, self.checkpoint, self.model):
                with suppress(OSError):
                    file.unlink()
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            self.unlock()
            if isinstance(error, OSError):
                raise UserError(
                    f"{self.path} cannot be written ({error.strerror}): choose another --out"
                ) from None
            raise

    def check_space(self) -> None:
        """Checks that the disk has room for the files that will be written.

        Raises:
            UserError: it has not.
        """
        # Each file is written beside the one it replaces.
        need = 2 * (self.checkpoint.stat().st_size + self.model.stat().st_size) + _REPORT_BYTES
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise UserError(
                f"the disk of {self.path} has {free / 1e6:,.0f} MB left: training needs "
                f"{need / 1e6:,.0f} MB; free some, or choose another --out"
            )

    def save(self, trainer: Trainer, metrics: Metrics | None) -> None:
        """Saves a training's state, and an epoch's metrics.

        Raises:
            OSError: a file cannot be written; the checkpoint is as it was.
        """
        if metrics:
            # First: a line too many is cut off on resume, one too few would be lost.
            append_line(self.metrics, json.dumps(metrics, allow_nan=False))
        content = {"format": FORMAT, **trainer.state_dict()}
        write_atomically(self.checkpoint, lambda file: torch.save(content, file))
        self.save_model(trainer)

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Writes the settings."""
        write_text(self.settings, json.dumps(settings, indent=2, allow_nan=False) + "\n")

    def save_model(self, trainer: Trainer) -> None:
        """Writes the weights alone, for prediction."""
        weights = {name: t.cpu().contiguous() for name, t in trainer.model.state_dict().items()}
        # One key: of several, safetensors writes the order that a random hash gives.
        note = {"adamas": json.dumps({"format": FORMAT, "epoch": trainer.position.epoch})}
        write_atomically(self.model, lambda file: file.write(save_tensors(weights, note)))

    def load_settings(self) -> dict[str, Any]:
        """The run's settings.

        Raises:
            UserError: there are none, or they are not of a run.
        """
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder: give the folder of a run")
        try:
            settings = json.loads(self.settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.path} is not a run: it has no {self.settings.name}; "
                "give the folder that `adamas train` wrote"
            ) from None
        except (OSError, ValueError) as error:
            raise self._damaged(self.settings, error) from None
        if not isinstance(settings, dict) or settings.get("format") != FORMAT:
            raise UserError(f"{self.settings} is not of an adamas run: it must say {FORMAT!r}")
        return settings

    def load_checkpoint(self) -> dict[str, Any]:
        """The state of the training.

        Raises:
            UserError: there is none, or it is truncated or of another program.
        """
        if not self.checkpoint.exists():
            raise UserError(
                f"{self.path} has no {self.checkpoint.name}: it was stopped before training began; "
                "remove the folder and train again"
            )
        with self.damaged(self.checkpoint):
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{self.checkpoint} is not of an adamas run: restore the run's own")
        return content

    def load_model(self) -> dict[str, torch.Tensor]:
        """The weights.

        Raises:
            UserError: there are none, or they are damaged.
        """
        try:
            return load_tensors(self.model.read_bytes())
        except (OSError, SafetensorError) as error:
            raise self._damaged(self.model, error) from None

    def load_metrics(self) -> list[Metrics]:
        """The metrics of the epochs; a last line that was cut short by a kill is left out."""
        with self.damaged(self.metrics):
            lines = self.metrics.read_bytes().split(b"\n")[:-1]
            return [json.loads(line) for line in lines]

    def cut_metrics(self, epochs: int) -> None:
        """Cuts the metrics back to the epochs that the checkpoint knows.

        Raises:
            UserError: there are fewer.
        """
        with self.damaged(self.metrics):
            content = self.metrics.read_bytes()
            lines = content.split(b"\n")[:-1]
            known = [json.loads(line) for line in lines[:epochs]]
            whole = [metrics["epoch"] for metrics in known if metrics["updates"] is not None]
        if len(whole) != epochs or whole != list(range(1, epochs + 1)):
            raise UserError(
                f"{self.metrics} lacks epochs that the checkpoint knows of ({epochs}): "
                "restore the run's own files"
            )
        kept = b"".join(line + b"\n" for line in lines[:epochs])
        if kept != content:
            write_atomically(self.metrics, lambda file: file.write(kept))

    def remove_partial_files(self) -> None:
        """Removes what a killed process was writing."""
        for file in (self.settings, self.checkpoint, self.metrics, self.model, self.report):
            partial_path(file).unlink(missing_ok=True)

    def _make_folder(self) -> list[Path]:
        """Makes the folder, and returns those that were not there, the innermost first."""
        missing = []
        with suppress(OSError):  # of a name that is too long, as making the folder will say
            missing = [f for f in (self.path, *self.path.parents) if not f.exists()]
        instead = f" --out, or continue a run with --resume {shlex.quote(str(self.path))}"
        self._unlock = make_folder(self.path, self, "train a run", "a run", instead)
        return missing

    @contextmanager
    def damaged(self, file: Path) -> Iterator[None]:
        """Turns whatever fails while a file's content is taken apart into one clear error."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # damage can make any of them
            if out_of_memory(error):
                raise
            raise self._damaged(file, error) from None

    def _damaged(self, file: Path, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return UserError(f"{file} is damaged ({reason}): restore it, or train again")


def lock_folder(path: Path, owner: object, use: str) -> Callable[[], object]:
    """Keeps other processes from a folder, until its owner or this process ends.

    Args:
        path: the folder.
        owner: the object that the lock lives with.
        use: what one process at a time can do, for the message.

    Returns:
        What gives the folder free.

    Raises:
        TakenError: another process has it.
    """
    if sys.platform == "win32":
        return lambda: None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TakenError(
            f"{path} is in use: one process at a time can {use}; "
            "wait until the other has ended, or stop it"
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return lambda: None
    return weakref.finalize(owner, os.close, descriptor)


def make_folder(
    path: Path, owner: object, use: str, name: str, instead: str = ""
) -> Callable[[], object]:
    """Makes an empty folder, and keeps other processes from it as ``lock_folder`` does.

    Args:
        path: the folder, which may be there if it is empty.
        owner: as for ``lock_folder``.
        use: as for ``lock_folder``.
        name: what needs it, for the message; so the next.
        instead: what there is to do beside choosing another.

    Returns:
        What gives the folder free.

    Raises:
        TakenError: it is not empty, or another process has it.
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        unlock = lock_folder(path, owner, use)  # of two that make it at once, one goes on
        occupied = any(path.iterdir())
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be made a folder ({error.strerror}): choose another"
        ) from None
    if occupied:
        unlock()
        raise TakenError(
            f"--out {path} is not empty: {name} needs a new folder; choose another{instead}"
        )
    return unlock


def next_folder(name: str, parent: Path = Path("runs")) -> Path:
    """The first of ``runs/name-1``, ``runs/name-2``, ... that is not there."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
