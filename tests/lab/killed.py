"""Kills training processes, and continues them until they are done.

Run as a process of its own by ``test_kill.py``. It imports all that training needs, once, and forks
a child for each training; it has not computed anything by then, so that a child has what a new
process would have after the same imports: no threads, no tensors, no random state, no open files.
What SIGKILL leaves of a child on disk does not depend on how the child began.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch._dynamo  # noqa: F401  which the first optimizer would import

from adamas import cli
from adamas.lab import commands, folder, progress, report, results, run  # noqa: F401
from adamas.lab.files import partial_path

with suppress(ImportError):  # of newer versions, which the first command would import
    import typer._adapters  # noqa: F401

LONGEST = 0.25  # seconds until a kill; a child takes a tenth to read its data and begin
SAVED = ("checkpoint.pt", "model.safetensors")


def fork(arguments: list[str]) -> int:
    """A child that runs the command, silently."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
            sys.argv = ["adamas", *arguments]
            status = cli.main()
    finally:
        os._exit(status)


def ended(child: int) -> int | None:
    """The exit status of a child, the signal's negative if one ended it, None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(child: int, until: Callable[[], bool], pause: float) -> int | None:
    """Waits, and says how the child ended if it did so before."""
    while (status := ended(child)) is None and not until():
        time.sleep(pause)
    return status


Written = tuple[str, int, int]


def written(path: Path) -> set[Written]:
    """The saved files and those that are being written, with what tells them from others."""
    found = set()
    for file in [path / name for name in SAVED] + [partial_path(path / name) for name in SAVED]:
        with suppress(FileNotFoundError):
            status = file.stat()
            found.add((file.name, status.st_ino, status.st_mtime_ns))
    return found


class Killer:
    """Trains runs, and kills the first so many processes that do.

    Args:
        kills: how many.
        seed: of the delays before the kills.
    """

    def __init__(self, kills: int, seed: int) -> None:
        self.left, self.random = kills, random.Random(seed)
        self.counts = {"before training": 0, "in a save": 0, "between saves": 0}

    def complete(self, path: Path, arguments: list[str]) -> None:
        """Trains a run, killed again and again, until it is done."""
        status = None
        while status != 0:
            begun = (path / "checkpoint.pt").exists()
            if not begun and path.exists():
                shutil.rmtree(path)  # as the command says for one that was stopped before
            command = ["--resume", str(path)] if begun else [*arguments, "--out", str(path)]
            child = fork(["train", *command])
            status = self.kill(child, path) if self.left else wait(child, lambda: False, 0.01)
            assert status in (0, -signal.SIGKILL), f"{command} ended with {status}"

    def kill(self, child: int, path: Path) -> int:
        """Kills a child at a random moment; each second one as soon after as it saves."""
        moment, later = self.random.uniform(0, LONGEST), self.random.uniform(0, 0.001)
        moment += time.monotonic()
        before = written(path)
        status = wait(child, lambda: time.monotonic() > moment, 0.001)
        if status is None and self.left % 2:
            status = wait(child, lambda: self.where(path, before) == "in a save", 0.0002)
            time.sleep(later)
        if status is not None:
            return status
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            self.left -= 1
            self.counts[self.where(path, before)] += 1
        return os.waitstatus_to_exitcode(status)

    def where(self, path: Path, before: set[Written]) -> str:
        """Where a child is in its work, by what it has written beyond what was there before."""
        names = {name for name, _, _ in written(path) - before}
        if any(name.endswith(".partial") for name in names):
            return "in a save"
        return "between saves" if names else "before training"


def main() -> None:
    """Trains one run that is not killed, and others until there were enough kills.

    Arguments: the folder of the runs, the number of kills, and those of the command.
    """
    parent, kills, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    gc.freeze()  # what was imported is never garbage: a child that looks for some there copies it
    Killer(0, 0).complete(parent / "whole", arguments)
    killer, runs = Killer(kills, 1), 0
    while killer.left:
        runs += 1
        killer.complete(parent / f"killed-{runs}", arguments)
    gc.unfreeze()  # else nanobind takes what is left at exit for leaked
    (parent / "counts.json").write_text(json.dumps(killer.counts | {"runs": runs}))


if __name__ == "__main__":
    main()
