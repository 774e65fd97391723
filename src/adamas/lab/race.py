"""A race: each racer at its own best learning rate, from every seed, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arenas import Arena, Runs, Tick, Values, learning_rates
from .racers import Racer

_SOLVED = 1e-9  # of the loss at the start: whoever is below is done


@dataclass(frozen=True)
class Result:
    """What one racer did in one arena."""

    racer: Racer
    lrs: list[float]
    swept: list[float]
    """Median final loss of the sweep, for each learning rate."""
    lr: float
    """The best of them."""
    runs: Runs
    """With it, from every seed."""

    @property
    def losses(self) -> Values:
        """(S, N)."""
        losses: Values = self.runs.losses[0]
        return losses

    @property
    def final(self) -> tuple[float, float, float]:
        """The final loss: lower quartile, median and upper quartile of the seeds."""
        low, median, high = quartiles(self.losses[:, -1])
        return float(low), float(median), float(high)

    @property
    def at_end(self) -> bool:
        """Whether the best learning rate is at an end of what was swept, so none can know."""
        return len(self.lrs) > 1 and self.lr in (self.lrs[0], self.lrs[-1])

    def reached(self, target: float) -> tuple[float, float] | None:
        """Median steps and seconds until the loss is at most that, if the median racer gets there.

        Args:
            target: a loss.
        """
        there = self.losses <= target
        first = np.where(there.any(-1), there.argmax(-1), -1)
        steps = np.where(first < 0, inf, self.runs.at[first])
        seconds = np.where(first < 0, inf, self.runs.seconds[0, range(len(first)), first])
        middle = float(quartiles(steps)[1]), float(quartiles(seconds)[1])
        return middle if isfinite(middle[0]) else None

    def to_json(self, target: float) -> dict[str, Any]:
        """What was found, as plain JSON; null where the loss was not finite or not reached."""
        reached = self.reached(target)
        return {
            "racer": self.racer.name,
            "lr": self.lr,
            "sweep": [[lr, _or_none(loss)] for lr, loss in zip(self.lrs, self.swept, strict=True)],
            "final_loss": dict(
                zip(("low", "median", "high"), map(_or_none, self.final), strict=True)
            ),
            "final_losses": [_or_none(loss) for loss in self.losses[:, -1]],
            "steps_to_target": reached and int(reached[0]),
            "seconds_to_target": reached and reached[1],
            **({} if self.score is None else {"score": _or_none(self.score)}),
        }

    @property
    def score(self) -> float | None:
        """The median score on validation rows, where there are any."""
        return None if self.runs.scores is None else float(quartiles(self.runs.scores[0])[1])


@dataclass(frozen=True)
class Race:
    """All racers in one arena."""

    arena: Arena
    results: list[Result]

    @property
    def target(self) -> float:
        """The loss to reach: near the lowest median of all."""
        lowest = min(result.final[1] for result in self.results)
        start = float(np.median(self.results[0].losses[:, 0]))
        return lowest + self.arena.near * (start - lowest) if isfinite(lowest) else 0.0

    @property
    def ranking(self) -> list[Result]:
        """The fastest to the target first, then by final loss."""
        target = self.target

        def key(result: Result) -> tuple[float, float]:
            reached = result.reached(target)
            return (reached[0] if reached else inf), result.final[1]

        return sorted(self.results, key=key)

    def to_json(self) -> dict[str, Any]:
        """What was found, as plain JSON."""
        return {
            "name": self.arena.name,
            "steps": self.arena.steps,
            "target": self.target,
            "results": [result.to_json(self.target) for result in self.results],
        }


def race(
    arena: Arena,
    racers: Sequence[Racer],
    ends: tuple[float, float] | None,
    seeds: int,
    tick: Tick = lambda steps: None,
    begin: Callable[[Racer], object] = lambda racer: None,
) -> Race:
    """Races in one arena.

    Args:
        arena: where.
        racers: who.
        ends: the lowest and the highest learning rate of the sweep; the arena's own without.
        seeds: how many.
        tick: called after each step.
        begin: called before each racer.
    """
    lrs = rates(arena, ends)
    results = []
    for racer in racers:
        begin(racer)
        sweep = arena.run(racer, lrs, min(seeds, arena.sweep_seeds or seeds), tick)
        best = choose(sweep.losses)
        swept = quartiles(sweep.losses[..., -1])[1].tolist()
        runs = arena.run(racer, lrs[best : best + 1], seeds, tick)
        results.append(Result(racer, lrs, swept, lrs[best], runs))
    return Race(arena, results)


def rates(arena: Arena, ends: tuple[float, float] | None) -> list[float]:
    """The learning rates of a sweep, from low to high."""
    return learning_rates(*(ends or arena.ends), arena.per_decade)


def choose(losses: Values) -> int:
    """The best learning rate of a sweep: that of the lowest median final loss.

    Where the fewest seeds diverge, that is. What is below a billionth of the start is solved; of
    those, and of equals, the fastest wins: the lowest mean logarithm of the median loss.

    Args:
        losses: (R, S, N), infinite where they diverged.
    """
    floor = _SOLVED * float(np.median(losses[..., 0]))
    median = np.maximum(quartiles(np.moveaxis(losses, 1, -1))[1], floor)
    with np.errstate(divide="ignore"):
        pace = np.log(median).mean(-1)
    lost = np.isinf(losses[..., -1]).sum(-1)
    keys = list(zip(lost.tolist(), median[:, -1].tolist(), pace.tolist(), strict=True))
    return keys.index(min(keys))


def quartiles(values: NDArray[Any]) -> Values:
    """Of the last axis: lower quartile, median, upper quartile; each is one of the values.

    So infinite ones are no trouble.
    """
    ordered = np.sort(values, axis=-1)
    last = ordered.shape[-1] - 1
    places = [round(share * last) for share in (0.25, 0.5, 0.75)]
    return np.moveaxis(ordered[..., places], -1, 0)


def _or_none(value: float) -> float | None:
    return float(value) if isfinite(value) else None
