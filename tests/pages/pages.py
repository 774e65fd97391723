"""The pages that are written, each by a run of a moment, and what is drawn on each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tables import mixed_csv

from adamas import cli
from adamas.lab.space import RANGES

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Opens a file: the page, and a list of what it complains of or asks for beside it.
Visit = Callable[[Path], AbstractContextManager[tuple["Page", list[str]]]]


@dataclass(frozen=True)
class Written:
    """A page: what writes it, and how many lines, bars, points or images each plot draws."""

    write: Callable[[Path], Path]
    drawn: Mapping[str, int]


def command(file: str, *arguments: str) -> Callable[[Path], Path]:
    """What runs ``adamas`` in a folder with a table, where it writes that file."""

    def write(folder: Path) -> Path:
        mixed_csv(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["adamas", *arguments])
            assert cli.main() == 0
        return folder / file

    return write


def benchmark(folder: Path) -> Path:
    """A benchmark of one small workload, and of few sizes."""
    import torch
    from rich.console import Console

    from adamas.lab.benchmark import bench, measure, run, scaling

    few = partial(scaling.measure_scaling, low=3, high=5, per_decade=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "MemoryLimit", lambda: measure.MemoryLimit(1 << 20))
        patch.setattr(run, "measure_scaling", few)
        patch.setattr(measure, "_TURN", 1e-4)
        patch.setattr(scaling, "_PASSES", 1)
        patch.setattr(scaling, "_ROUNDS", 1)
        patch.setattr(measure, "_PAUSE", 0)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # two wait for each other where processors are busy
        try:
            peers = ["torch-fused", "numpy"]
            bench(["100x100"], peers, 2, "float32", folder, True, Console(quiet=True))
        finally:
            torch.set_num_threads(threads)
    return folder / "step.html"


SMALL = ("--epochs=3", "--layers=8", "--out=run")
RACE = ("--steps=30", "--seeds=2", "--lr=1e-2,1e-1", "--layers=8", "--out=run")
TRIALS = ("--trials=10", "--jobs=1", "--epochs=1", "--layers=8", "--out=run")

LEARNING = {"loss": 3, "score": 3, "updates-0": 7, "updates-1": 7}

PAGES = {
    "train, classes": Written(
        command("run/report.html", "train", *SMALL), {**LEARNING, "confusion": 3}
    ),
    "train, numbers": Written(
        command("run/report.html", "train", "mixed.csv", "--target=price", "--drop=big", *SMALL),
        {**LEARNING, "predicted": 2, "residuals": 1},
    ),
    "tune": Written(
        command("run/tune.html", "tune", "mixed.csv", "--target=big", "--drop=price", *TRIALS),
        {"history": 2, "importance": 1, **{f"slice-{name}": 2 for name in RANGES}},
    ),
    # Contours and a path; each curve of two numbers, and what it would be uncorrected.
    "explain": Written(
        command("a.html", "explain", "--problem=ravine", "--weight-decay=0.1", "--html=a.html"),
        {"path": 12 + 1, "m": 4, "v": 4, "step": 2},
    ),
    # Two bands' ends and a median each; no path, as a training has none.
    "compare": Written(
        command("run/compare.html", "compare", "digits", "saddle", *RACE),
        {"path": 0, "loss": 15, "seconds": 15, "updates": 5, "sweep": 5}
        | {"scale": 4, "advance-sgd": 2, "advance-adam": 2},
    ),
    "bench": Written(benchmark, {"times-100x100": 1, "scaling-time": 5, "scaling-rate": 5}),
}
