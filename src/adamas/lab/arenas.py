"""Where racers meet: surfaces of two numbers, and trainings; either runs any optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parameters_to_vector

from . import TrainingError
from .model import loss_of, predict
from .options import Options
from .process import threads
from .racers import Racer
from .run import Prepared, Task, make_dataset, new_trainer, threads_for
from .surfaces import Surface
from .training import Dataset, Metrics, Trainer

Values = NDArray[np.float64]
Tick = Callable[[int], None]
"""Takes notice of steps; may raise, to stop."""

_MOST_MARKS = 25  # measurements of a training, each over many rows
_MOST_ROWS = 1024


@dataclass(frozen=True)
class Runs:
    """What was measured of one racer, for each learning rate and seed; what diverged is infinite.

    With R learning rates, S seeds and N measurements:
    """

    at: NDArray[np.int64]
    """The steps done before each measurement, (N,), from 0."""
    losses: Values
    """(R, S, N)."""
    updates: Values
    """The root mean square of the step before, over its learning rate, (R, S, N); first NaN."""
    seconds: Values
    """Of steps and their gradients so far, (R, S, N)."""
    paths: Values | None = None
    """Of two numbers, (R, S, N, 2)."""
    scores: Values | None = None
    """On validation rows, at the end, (R, S)."""


class Arena(Protocol):
    """A place to race in."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def about(self) -> str:
        """What there is to see, in a sentence."""

    @property
    def steps(self) -> int:
        """Of each run."""

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest learning rate of a sweep, unless others are asked for."""

    @property
    def per_decade(self) -> int:
        """Learning rates of a sweep."""

    @property
    def sweep_seeds(self) -> int | None:
        """Seeds that a sweep is on; all without."""

    @property
    def score_name(self) -> str | None:
        """What the score on validation rows is called, where there is one."""

    @property
    def near(self) -> float:
        """The share of the way from the start to the lowest loss that is left at the target."""

    def work(self, rates: int, seeds: int) -> int:
        """Ticks of a sweep over so many learning rates and of the race after it."""

    def run(self, racer: Racer, lrs: Sequence[float], seeds: int, tick: Tick) -> Runs:
        """Runs a racer with each of the learning rates from each of the seeds."""


@dataclass(frozen=True)
class SurfaceArena:
    """A surface: all learning rates and starting points race at once, in one optimizer.

    Points are float32, as weights are; losses and gradients are computed in float64.
    """

    surface: Surface
    steps: int
    ends: tuple[float, float] = (1e-4, 10.0)
    per_decade: int = 4
    sweep_seeds: int | None = None
    near: float = 1e-3
    score_name: str | None = None

    @property
    def name(self) -> str:
        """The surface's."""
        return self.surface.name

    @property
    def about(self) -> str:
        """The surface's."""
        return self.surface.about

    def work(self, rates: int, seeds: int) -> int:
        """A tick for each step of all."""
        return 2 * self.steps

    def run(self, racer: Racer, lrs: Sequence[float], seeds: int, tick: Tick) -> Runs:
        """Runs a racer from starting points."""
        with threads(1):  # so few numbers gain nothing from a second one
            return self._run(racer, lrs, seeds, tick)

    def _run(self, racer: Racer, lrs: Sequence[float], seeds: int, tick: Tick) -> Runs:
        points = self.surface.starts(seeds).float().repeat(len(lrs), 1, 1)
        gradients = torch.zeros_like(points)
        groups = []
        for lr, row, slopes in zip(lrs, points, gradients, strict=True):
            # A tensor for each start: compact moments share scales within one.
            params = list(row)
            for param, slope in zip(params, slopes, strict=True):
                param.grad = slope
            groups.append({"params": params, "lr": lr})
        optimizer = racer.optimizer(groups)
        shape = (self.steps + 1, len(lrs), seeds)
        losses, seconds = np.empty(shape), np.zeros(shape)
        paths = np.empty((*shape, 2))
        begun = time.perf_counter()
        for step in range(self.steps + 1):
            paths[step] = points.numpy()
            losses[step], slopes = (tensor.numpy() for tensor in self.surface.slope(points))
            seconds[step] = time.perf_counter() - begun
            if step < self.steps:
                gradients.copy_(torch.from_numpy(slopes))
                optimizer.step()
                tick(1)
        moves = np.full(shape, np.nan)
        with np.errstate(all="ignore"):  # what diverges
            moves[1:] = np.sqrt((np.diff(paths, axis=0) ** 2).mean(-1)) / np.array(lrs)[:, None]
        at = np.arange(self.steps + 1)
        return Runs(at, _finite(_last(losses)), _last(moves), _last(seconds), _last(paths))


def _last(values: Values) -> Values:
    """Measurements of (N, R, S, ...) as (R, S, N, ...)."""
    return np.moveaxis(values, 0, 2)


def _finite(losses: Values) -> Values:
    """Losses that are infinite from where one of them was not finite."""
    lost = np.logical_or.accumulate(~np.isfinite(losses), axis=-1)
    return np.where(lost, np.inf, losses)


@dataclass(frozen=True)
class TaskArena:
    """A training of ``adamas train``: what is raced is the loss of the training rows.

    A seed is of weights and batches; the sweep is on the first.
    """

    task: Task
    options: Options
    data: Dataset
    ends: tuple[float, float] = (1e-3, 3.2)
    per_decade: int = 2
    sweep_seeds: int | None = 1
    near: float = 1e-2

    @classmethod
    def of(cls, prepared: Prepared, steps: int) -> TaskArena:
        """The arena of a training that is prepared, with whole epochs of about so many steps."""
        task, options = prepared.task, prepared.options
        data = make_dataset(task, options, prepared.frame, prepared.training)
        each = math.ceil(len(data.features) / options.batch_size)
        return cls(task, replace(options, epochs=max(round(steps / each), 1)), data)

    @property
    def name(self) -> str:
        """The data's."""
        return self.task.name

    @property
    def score_name(self) -> str:
        """The target's."""
        return self.task.target.score_name

    @property
    def about(self) -> str:
        """What is trained on what."""
        widths = ", ".join(map(str, self.options.layers)) or "no"
        return (
            f"A network with hidden layers of {widths} on {len(self.data.features):,} rows, "
            f"{self.options.batch_size} a step: the loss is that of the training rows, and the "
            f"learning rate follows a {self.options.schedule} schedule."
        )

    @property
    def steps(self) -> int:
        """Of each training."""
        return new_trainer(self.task, self.options, self.data).total_steps

    def work(self, rates: int, seeds: int) -> int:
        """A tick for each step of each training."""
        return (rates + seeds) * self.steps

    def run(self, racer: Racer, lrs: Sequence[float], seeds: int, tick: Tick) -> Runs:
        """Trains from each seed with each learning rate."""
        runs = [[self._train(racer, lr, seed, tick) for seed in range(seeds)] for lr in lrs]
        losses, updates, seconds = (
            np.array([[getattr(run, name) for run in row] for row in runs])
            for name in ("losses", "updates", "seconds")
        )
        scores = np.array([[run.score for run in row] for row in runs])
        return Runs(runs[0][0].at, losses, updates, seconds, scores=scores)

    def _train(self, racer: Racer, lr: float, seed: int, tick: Tick) -> _Training:
        options = replace(self.options, lr=lr, seed=self.options.seed + seed)
        trainer = new_trainer(self.task, options, self.data, racer.optimizer)
        with threads(threads_for(trainer)):
            return _Training(trainer, tick).run()


class _Training:
    """One training, measured now and then; what is not reached is infinite."""

    def __init__(self, trainer: Trainer, tick: Tick) -> None:
        self.trainer, self.tick = trainer, tick
        self.at = marks(trainer.total_steps, _MOST_MARKS)
        self.losses, self.updates, self.seconds = (
            np.full(len(self.at), value) for value in (np.inf, np.nan, np.nan)
        )
        self.score = np.nan
        rows = len(trainer.data.features)
        self._rows = torch.arange(min(rows, _MOST_ROWS)) * rows // min(rows, _MOST_ROWS)

    def run(self) -> _Training:
        places = {int(step): index for index, step in enumerate(self.at)}
        self._measure(0, 0.0, None)
        done, whole, before = 0, 0.0, self._weights()
        while not self.trainer.finished:
            try:
                for metrics in self.trainer.epoch():
                    done += 1
                    self.tick(1)
                    seconds = whole + self._epoch_seconds(metrics)
                    whole = seconds if metrics else whole
                    if done in places:
                        self._measure(places[done], seconds, before)
                    if done + 1 in places:
                        before = self._weights()
                    if metrics:
                        self.score = metrics["validation_score"]
            except TrainingError:  # it diverged
                self.score = np.nan
                self.tick(self.trainer.total_steps - done)
                break
        return self

    def _weights(self) -> torch.Tensor:
        return parameters_to_vector(self.trainer.model.parameters()).detach()

    def _epoch_seconds(self, metrics: Metrics | None) -> float:
        if metrics is None:
            return self.trainer.position.epoch_seconds
        return float(len(self.trainer.data.features) / metrics["samples_per_second"])

    def _measure(self, place: int, seconds: float, before: torch.Tensor | None) -> None:
        trainer = self.trainer
        outputs = predict(trainer.model, trainer.data.features[self._rows])
        targets = trainer.data.targets[self._rows]
        loss = float(loss_of(outputs, targets, trainer.options.label_smoothing))
        self.losses[place] = loss if np.isfinite(loss) else np.inf
        self.seconds[place] = seconds
        if before is not None:
            lr = trainer.optimizer.param_groups[0]["lr"]
            moved = (self._weights() - before).double()
            self.updates[place] = float(moved.square().mean().sqrt()) / lr


def marks(steps: int, most: int) -> NDArray[np.int64]:
    """At most that many steps from 0 to the last: each one at first, then fewer and fewer."""
    shares = np.linspace(0, 1, most) ** 2
    return np.unique(np.round(steps * shares).astype(np.int64))


def learning_rates(low: float, high: float, per_decade: int) -> list[float]:
    """Learning rates from low to high, evenly spaced by their logarithm, of two digits each."""
    count = max(round((np.log10(high) - np.log10(low)) * per_decade), 0 if low == high else 1) + 1
    return list(dict.fromkeys(float(f"{lr:.2g}") for lr in np.geomspace(low, high, count)))
