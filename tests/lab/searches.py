"""What tests of searches share: functions to search, and what a search leaves."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna

from adamas.lab.storage import Storage

Adamas = Callable[..., tuple[int, str, str]]

FAST = ("--epochs=1", "--layers=8", "--jobs=1")
# The loss is lowest at lr 0.003; one yield an epoch, which takes a moment.
SCRIPT = """
import math, os, time
from pathlib import Path

def bowl(lr, beta1=0.9):
    return (math.log10(lr) + 2.5) ** 2 + beta1

def epochs(lr, betas, weight_decay):
    for epoch in range(1, 5):
        time.sleep(float(Path("pause").read_text()))
        yield (math.log10(lr) + 2.5) ** 2 + betas[0] + 1 / epoch

def picky(lr):
    if lr != 1e-3:
        raise ValueError("boom")
    return 1.0

def broken(lr):
    raise ValueError("boom")

def dies(lr):
    if lr != 1e-3:
        os.kill(os.getpid(), 9)
    return 1.0

def infinite(lr):
    return math.inf if lr != 1e-3 else 1.0

def nowhere(lr):
    return math.nan

def text(lr):
    return "low"

def together(lr):
    Path(f"worker-{os.getpid()}").touch()
    while len(list(Path().glob("worker-*"))) < 2:
        time.sleep(0.01)
    return lr

def other(lr, momentum):
    return lr

def twice(beta1, betas):
    return beta1

def nothing(size=3):
    return size

made = lambda lr: lr
"""


def trials(folder: Path | str) -> list[optuna.trial.FrozenTrial]:
    storage = Storage.of_file(Path(folder) / "study.db")
    study = optuna.load_study(study_name="adamas", storage=storage.rdb)
    found = study.trials
    storage.close()
    return found


def sequence(folder: Path | str) -> list[Any]:
    """What a search has tried and found, without what was lost on the way."""
    return [
        (trial.params, trial.value, trial.intermediate_values)
        for trial in sorted(trials(folder), key=lambda trial: trial.datetime_start or 0)
        if "how" in trial.user_attrs
    ]


def best(folder: Path | str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "best.json").read_text())
    return content


def start(*arguments: str, pause: float) -> subprocess.Popen[str]:
    Path("pause").write_text(str(pause))
    return subprocess.Popen(
        [sys.executable, "-m", "adamas.cli", "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(database: Path, ended: int) -> None:
    """Waits until so many trials have ended, and another is in its second epoch."""
    query = (
        "select (select count(*) from trials where state = 'COMPLETE'), (select count(*) from "
        "trial_intermediate_values natural join trials where state = 'RUNNING')"
    )
    for _ in range(1000):
        time.sleep(0.02)
        try:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                complete, reported = connection.execute(query).fetchone()
        except sqlite3.OperationalError:  # it is being made
            continue
        if complete >= ended and reported:
            return
    raise AssertionError(f"{database} never had {ended} trials")
