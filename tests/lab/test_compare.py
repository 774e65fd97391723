"""Races: the surfaces are the known ones, the best learning rate wins, and the theory holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from adamas.lab import UserError
from adamas.lab.arenas import Runs, SurfaceArena, TaskArena, Tick, learning_rates, marks
from adamas.lab.race import Race, choose, quartiles, race
from adamas.lab.racers import RULES, Racer, line_up
from adamas.lab.run import prepare
from adamas.lab.surfaces import SURFACES
from adamas.lab.theory import SCALES, advances, scaled_updates

ADAM = Racer(RULES["adam"])


@pytest.mark.parametrize("name", SURFACES)
def test_minima_are_known(name: str) -> None:
    surface = SURFACES[name]
    losses, slopes = surface.slope(torch.tensor(surface.minima))
    assert losses.dtype == torch.float64
    assert losses.abs().max() < 1e-9  # the minima are written in float32 here
    assert slopes.abs().max() < 1e-3
    box = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)).double()
    ends = torch.tensor(surface.box, dtype=torch.float64)
    points = ends[:, 0] + box * (ends[:, 1] - ends[:, 0])
    losses, slopes = surface.slope(points)
    assert losses.min() > 0
    for k in range(2):
        ends = [points.clone(), points.clone()]
        ends[0][:, k] -= 1e-5
        ends[1][:, k] += 1e-5
        low, high = (surface.slope(end)[0] for end in ends)
        torch.testing.assert_close((high - low) / 2e-5, slopes[:, k], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "point", "loss"),
    [
        ("rosenbrock", (-1.2, 1.0), 24.2),
        ("beale", (0.0, 0.0), 1.5**2 + 2.25**2 + 2.625**2),
        ("himmelblau", (0.0, 0.0), 170.0),
        ("ravine", (0.0, 0.2), 0.5),
        ("ravine", (1.0, 1.2), 500.0),
        ("saddle", (0.0, 0.0), 0.25),
        ("rastrigin", (1.0, 0.0), 1.0),
    ],
)
def test_losses_are_known(name: str, point: tuple[float, float], loss: float) -> None:
    at = torch.tensor(point, dtype=torch.float64)
    assert float(SURFACES[name].slope(at)[0]) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("name", SURFACES)
def test_starts_are_seen_and_the_first_is_classic(name: str) -> None:
    surface = SURFACES[name]
    starts = surface.starts(20)
    assert starts[0].tolist() == list(surface.start)
    assert torch.equal(starts[:7], surface.starts(7))
    assert len(starts.unique(dim=0)) == 20
    for values, (low, high) in zip(starts.T, surface.box, strict=True):
        assert low < values.min()
        assert values.max() < high


def test_learning_rates() -> None:
    assert learning_rates(1e-3, 1.0, 2) == [0.001, 0.0032, 0.01, 0.032, 0.1, 0.32, 1.0]
    assert learning_rates(0.1, 0.1, 4) == [0.1]
    assert learning_rates(0.1, 0.11, 4) == [0.1, 0.11]
    assert learning_rates(0.1, 0.1001, 4) == [0.1]


def test_marks() -> None:
    assert marks(3, 40).tolist() == [0, 1, 2, 3]
    some = marks(400, 25).tolist()
    assert some[:4] == [0, 1, 3, 6]
    assert some[-1] == 400
    assert len(some) == 25


def test_quartiles_are_values() -> None:
    low, median, high = quartiles(np.array([[3.0, math.inf, 1.0, 2.0, math.inf], [5.0] * 5]))
    assert low.tolist() == [2.0, 5.0]
    assert median.tolist() == [3.0, 5.0]
    assert high.tolist() == [math.inf, 5.0]


INF = math.inf


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        # For each learning rate, and each of three seeds: the loss at the start and at the end.
        ([[(8, 4), (8, 4), (8, 4)], [(8, 1), (8, 2), (8, 3)], [(8, 3), (8, 3), (8, 3)]], 1),
        # The median counts, not the luckiest.
        ([[(8, 0.1), (8, 5), (8, 6)], [(8, 2), (8, 2), (8, 2)]], 1),
        # What diverges from a seed is no choice, however low elsewhere; unless all do.
        ([[(8, 2), (8, 2), (8, 2)], [(8, 1), (8, 1), (8, INF)]], 0),
        ([[(8, INF), (8, INF), (8, INF)], [(8, 1), (8, INF), (8, INF)]], 1),
        ([[(8, INF), (8, INF), (8, INF)], [(8, INF), (8, INF), (8, INF)]], 0),
        # Solved is solved, and then the fastest; of equals the smallest.
        ([[(8, 4, 1e-30)] * 3, [(8, 2, 1e-20)] * 3], 1),
        ([[(8, 2)] * 3, [(8, 2)] * 3], 0),
    ],
)
def test_the_best_learning_rate(losses: list[list[tuple[float, ...]]], best: int) -> None:
    assert choose(np.array(losses, dtype=float)) == best


def test_sweep_picks_the_best_of_a_race() -> None:
    arena = SurfaceArena(SURFACES["himmelblau"], 30, per_decade=2)
    racers = line_up("sgd,adam")
    found = race(arena, racers, (1e-3, 1.0), 3)
    for racer, result in zip(racers, found.results, strict=True):
        assert result.swept[result.lrs.index(result.lr)] == result.final[1]
        for lr in result.lrs:
            alone = race(arena, [racer], (lr, lr), 3).results[0]
            assert alone.lr == lr
            assert not alone.at_end
            # Rates that race together in one optimizer do not know of each other.
            assert alone.final[1] == result.swept[result.lrs.index(lr)]
            assert result.final[1] <= alone.final[1] or math.isinf(alone.losses[:, -1].max())


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8", "int4"])
def test_starts_race_alone(moments: str) -> None:
    arena = SurfaceArena(SURFACES["beale"], 30)
    together = arena.run(replace(ADAM, moments=moments), [0.01, 0.1], 5, lambda steps: None)
    fewer = arena.run(replace(ADAM, moments=moments), [0.1], 2, lambda steps: None)
    assert np.array_equal(together.losses[1, :2], fewer.losses[0])
    assert together.paths is not None
    assert fewer.paths is not None
    assert np.array_equal(together.paths[1, :2], fewer.paths[0])
    moved = np.diff(fewer.paths[0], axis=1)
    assert np.allclose(fewer.updates[0][:, 1:], np.sqrt((moved**2).mean(-1)) / 0.1)
    assert fewer.updates[0][:, 1] == pytest.approx(1.0, rel=1e-3)  # Adam's first step is lr


@pytest.mark.parametrize("rule", RULES)
def test_torch_agrees(rule: str) -> None:
    arena = SurfaceArena(SURFACES["rosenbrock"], 50)
    runs = [
        arena.run(Racer(RULES[rule], theirs=theirs), [1e-3], 3, lambda steps: None)
        for theirs in (False, True)
    ]
    assert np.allclose(runs[0].losses, runs[1].losses, rtol=1e-3)


def tasks() -> TaskArena:
    options = {"layers": (8,), "batch_size": 256}
    return TaskArena.of(prepare(None, options), 12)


def test_a_training_races() -> None:
    arena = tasks()
    assert arena.steps == 12
    ticks: list[int] = []
    found = race(arena, [ADAM], (1e-2, 1e-1), 2, ticks.append)
    result = found.results[0]
    assert sum(ticks) == arena.work(3, 2) == 60
    assert result.lrs == [0.01, 0.032, 0.1]
    assert result.losses.shape == (2, len(result.runs.at))
    assert result.losses[0, -1] == result.swept[result.lrs.index(result.lr)]  # the first seed's
    assert result.losses[0, 0] != result.losses[1, 0]
    assert (result.losses[:, -1] < result.losses[:, 0]).all()
    assert result.score is not None
    assert 0 < result.score < 1
    assert (np.diff(result.runs.seconds[0]) > 0).all()
    # The first step of Adam is lr wherever there is a gradient.
    assert (result.runs.updates[0, :, 1] < 1).all()
    assert (result.runs.updates[0, :, 1] > 0.5).all()


def test_a_training_that_diverges() -> None:
    arena = tasks()
    ticks: list[int] = []
    runs = arena.run(Racer(RULES["sgd"]), [1e30], 1, ticks.append)
    assert sum(ticks) == 12
    assert math.isinf(runs.losses[0, 0, -1])
    assert runs.scores is not None
    assert math.isnan(runs.scores[0, 0])
    lost = race(arena, [Racer(RULES["sgd"])], (1e30, 1e30), 1)
    assert lost.to_json()["results"][0]["final_loss"]["median"] is None
    assert lost.to_json()["results"][0]["steps_to_target"] is None


class Given(SurfaceArena):
    """Losses given beforehand."""

    def run(self, racer: Racer, lrs: Sequence[float], seeds: int, tick: Tick) -> Runs:
        losses = {
            "Adam": [[8, 1, 0.5, 0.001], [8, 6, 0.004, 0.001], [8, 7, 6, 0.002]],
            "AdamW": [[8, 1, 0.5, 0.5], [8, 0.0, 0.0, 0.0], [8, 7, 6, 5]],
        }[racer.name]
        values = np.array([losses] * len(lrs), dtype=float)
        at = np.array([0, 10, 20, 30])
        return Runs(at, values, values, np.broadcast_to(at / 100, values.shape))


def test_steps_and_seconds_to_the_target() -> None:
    found = race(Given(SURFACES["saddle"], 30), line_up("adamw,adam"), (1.0, 1.0), 3)
    assert found.target == pytest.approx(0.001 + 1e-3 * 7.999)
    second, first = found.results
    assert [result.racer.name for result in found.ranking] == ["Adam", "AdamW"]
    assert first.reached(found.target) == (30.0, 0.3)
    assert second.reached(found.target) is None  # one of three did
    assert first.final == (0.001, 0.001, 0.002)
    assert Race(found.arena, [second]).to_json()["results"][0]["final_losses"] == [0.5, 0.0, 5.0]


def test_the_same_again() -> None:
    def losses() -> list[np.ndarray]:
        arenas = (SurfaceArena(SURFACES["rastrigin"], 20), tasks())
        races = [race(arena, line_up("rmsprop,adamw"), (0.01, 0.1), 2) for arena in arenas]
        return [result.losses for found in races for result in found.results]

    for one, other in zip(losses(), losses(), strict=True):
        assert np.array_equal(one, other)


def test_line_up() -> None:
    names = [racer.name for racer in line_up()]
    assert names == ["gradient descent", "momentum", "RMSProp", "Adam", "AdamW"]
    names = [racer.name for racer in line_up("adam,sgd", "int8", theirs=True)]
    assert names == [
        "Adam",
        "gradient descent",
        "Adam int8",
        "torch Adam",
        "torch gradient descent",
    ]
    with pytest.raises(UserError, match=r"--rules must be any of sgd, .*; did you mean 'adam'"):
        line_up("adma")


def test_adam_does_not_see_the_scale() -> None:
    assert np.allclose(scaled_updates("adam", eps=0.0), 1, rtol=1e-14)
    assert np.allclose(scaled_updates("adam", eps=1e-3, scale_eps=True), 1, rtol=1e-14)
    assert np.allclose(scaled_updates("adam"), 1, rtol=1e-3)
    assert scaled_updates("adam", eps=1e-3)[0] < 0.1  # beside an eps of their size, gradients count
    for rule in ("sgd", "momentum"):
        assert np.allclose(scaled_updates(rule), SCALES, rtol=1e-12)


def test_adam_moves_both_numbers_alike() -> None:
    even, uneven = advances("adam", 0.02), advances("sgd", 1e-4)
    assert np.allclose(even[:, 0], even[:, 1], atol=1e-6)
    assert even[-1].max() < 0.01
    assert uneven[1, 1] == pytest.approx(0, abs=1e-12)
    assert uneven[-1, 0] > 0.98
