"""Comparing optimizers: from what is asked for to races, their tables and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from .. import __version__
from ..text import aligned
from . import TrainingError, UserError
from .arenas import Arena, SurfaceArena, TaskArena
from .comparepage import compare_page, ranked
from .data import DIGITS
from .files import write_text
from .folder import make_folder, next_folder
from .names import typed
from .objective import find_task
from .output import Output
from .process import stop_signals
from .progress import Live
from .race import Race, race, rates
from .racers import Racer
from .run import prepare
from .space import parse_space
from .surfaces import SURFACES

SURFACE_STEPS = 300
TASK_STEPS = 200
SEEDS = 5
FORMAT = "adamas compare 1"
_MOST_SEEDS = 100
_MOST_STEPS = 100_000
_RATES = (1e-30, 1e30)  # whose steps float32 can hold


@dataclass(frozen=True)
class Comparison:
    """What is to be raced, and how."""

    arenas: tuple[Arena, ...]
    racers: tuple[Racer, ...]
    ends: tuple[float, float] | None
    """Of the learning rates that are tried; each arena's own without."""
    seeds: int
    notices: tuple[str, ...] = ()

    @property
    def work(self) -> int:
        """Ticks of all races."""
        each = (len(rates(arena, self.ends)) for arena in self.arenas)
        works = (arena.work(n, self.seeds) for arena, n in zip(self.arenas, each, strict=True))
        return len(self.racers) * sum(works)

    def settings(self) -> list[tuple[str, str]]:
        """How it is raced, in words."""
        swept = {rates(arena, self.ends)[0]: rates(arena, self.ends)[-1] for arena in self.arenas}
        tried = " or ".join(f"{low:g} to {high:g}" for low, high in swept.items())
        return [
            (
                "learning rates",
                f"{tried}, evenly spaced by their logarithm; the best is that where the fewest "
                "seeds diverge, then that of the lowest median final loss, where a billionth of "
                "the loss at the start counts as none, then the fastest",
            ),
            (
                "seeds",
                f"{self.seeds}: starting points on a surface, weights and batches of a training, "
                "whose learning rates are tried on the first",
            ),
            (
                "target",
                "a loss where 0.1 % (of a training 1 %) of the way from the start to the lowest "
                "median of all is left",
            ),
            (
                "numbers",
                "float32, as weights are; a surface's gradients are computed in float64",
            ),
            (
                "other settings",
                "the defaults: momentum 0.9, RMSProp's alpha 0.99, betas 0.9 and 0.999, eps 1e-8; "
                "AdamW's weight decay of 0.01 pulls towards 0, away from most minima",
            ),
            ("software", f"adamas {__version__}, torch {torch.__version__}"),
        ]


def prepare_comparison(
    names: Sequence[str],
    given: Mapping[str, Any],
    what: Mapping[str, Any],
    racers: Sequence[Racer],
    lr: str | None = None,
    steps: int | None = None,
    seeds: int | None = None,
) -> Comparison:
    """Makes a comparison of what was typed; writes nothing.

    Args:
        names: surfaces, "digits" and CSV files; all surfaces and the digits without.
        given: options of trainings, by the names of ``Options``.
        what: ``target``, ``kind`` and ``drop`` of CSV files.
        racers: who races.
        lr: LOW,HIGH, or one number.
        steps: of each run.
        seeds: how many.

    Raises:
        UserError: something of it is unknown or out of its range.
    """
    for option, value, most in (("seeds", seeds, _MOST_SEEDS), ("steps", steps, _MOST_STEPS)):
        if value is not None and not 1 <= value <= most:
            raise UserError(f"--{option} must be from 1 to {most:,}, got {value}")
    ends = None if lr is None else parse_space({"lr": lr}).ranges["lr"]
    if ends is not None and not _RATES[0] <= ends[0] <= ends[1] <= _RATES[1]:
        raise UserError(f"--lr must be from {_RATES[0]:g} to {_RATES[1]:g}, got {lr}")
    arenas: dict[str, Arena] = {}
    notices: list[str] = []
    others = dict(what)  # not used yet
    for name in dict.fromkeys(names or [*SURFACES, DIGITS]):
        if name in SURFACES:
            arenas[name] = SurfaceArena(SURFACES[name], steps or SURFACE_STEPS)
            continue
        path = find_task(name, list(SURFACES))
        if path is None:
            prepared = prepare(path, given)
        else:
            columns = what.get("target"), what.get("kind"), what.get("drop", ())
            prepared = prepare(path, given, *columns)
            notices += prepared.notices
            others.clear()
        if prepared.task.name in arenas:
            raise UserError(
                f"two arenas are called {prepared.task.name!r}: rename one of the files, or leave "
                "one out"
            )
        arenas[prepared.task.name] = TaskArena.of(prepared, steps or TASK_STEPS)
    if others:
        raise UserError(f"{typed(next(iter(others)))} is of a CSV file: give its path, too")
    if given and not any(isinstance(arena, TaskArena) for arena in arenas.values()):
        raise UserError(f"{typed(next(iter(given)))} is of a training: name digits or a CSV file")
    return Comparison(tuple(arenas.values()), tuple(racers), ends, seeds or SEEDS, tuple(notices))


class _Stopped(Exception):
    """Told to stop."""


class _Display(Live):
    """Shows who races where, and the time left."""

    def __init__(self, console: Console, work: int, received: list[int]) -> None:
        super().__init__(
            console,
            TextColumn("{task.fields[arena]}"),
            BarColumn(),
            TextColumn("{task.fields[racer]}", style="bold cyan"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._received = received
        self._task = self._bar.add_task("", total=work, arena="-", racer="-")

    def begin(self, arena: Arena, racer: Racer) -> None:
        self._bar.update(self._task, arena=arena.name, racer=racer.name)

    def tick(self, steps: int) -> None:
        if self._received:
            raise _Stopped
        self._bar.advance(self._task, steps)


def compare(comparison: Comparison, out: Path | None) -> int:
    """Races, prints a table for each arena, and writes what was found after each.

    Args:
        comparison: what.
        out: the folder to write to; the next of ``runs/compare-NUMBER`` without.

    Returns:
        The exit status.

    Raises:
        UserError: the folder cannot be used; nothing was raced.
        TrainingError: the folder cannot be written any more.
    """
    console = Output()
    folder = _Folder(out or next_folder("compare"), comparison)
    for notice in comparison.notices:
        console.print(notice)
    races: list[Race] = []
    with stop_signals() as received, _Display(console, comparison.work, received) as display:
        try:
            for arena in comparison.arenas:
                watch = display.tick, partial(display.begin, arena)
                how = comparison.racers, comparison.ends, comparison.seeds
                races.append(race(arena, *how, *watch))
                folder.save(races)
                console.print(_table(races[-1]))
                console.print()
        except _Stopped:
            pass
    if len(races) == len(comparison.arenas):
        console.print(f"page: {folder.page}")
        console.check(folder.page)
        return 0
    if races:
        console.tell(
            f"stopped after {len(races)} of {len(comparison.arenas)} races; page: {folder.page}"
        )
    else:
        folder.remove()
        console.tell("stopped before the first race was over: nothing is written")
    return 128 + received[0]


def _table(race: Race) -> str:
    about = f"{race.arena.name}, steps and seconds to a loss of {race.target:.3g}"
    return f"{about}\n{aligned(ranked(race))}"


class _Folder:
    """Where a comparison is written: ``compare.json`` and ``compare.html``."""

    def __init__(self, path: Path, comparison: Comparison) -> None:
        self.page = path / "compare.html"
        self._data = path / "compare.json"
        self._comparison = comparison
        self._unlock = make_folder(path, self, "compare in a folder", "a comparison")
        try:
            self._write([])
        except OSError as error:
            raise UserError(
                f"--out {path} cannot be written ({error.strerror}): choose another"
            ) from None

    def save(self, races: Sequence[Race]) -> None:
        try:
            self._write(races)
            write_text(self.page, compare_page(races, self._comparison.settings()))
        except OSError as error:
            raise TrainingError(
                f"the results in {self.page.parent} cannot be written ({error.strerror}): correct "
                "that, then compare again"
            ) from None

    def remove(self) -> None:
        self._data.unlink()
        self.page.parent.rmdir()

    def _write(self, races: Sequence[Race]) -> None:
        comparison = self._comparison
        content = {
            "format": FORMAT,
            "seeds": comparison.seeds,
            "racers": [racer.name for racer in comparison.racers],
            "races": [race.to_json() for race in races],
        }
        write_text(self._data, json.dumps(content, indent=2, allow_nan=False) + "\n")
