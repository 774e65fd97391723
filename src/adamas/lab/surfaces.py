"""Classic surfaces of two numbers, to race optimizers on; the least value of each is 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Point = tuple[float, float]


@dataclass(frozen=True)
class Surface:
    """A loss of two numbers, elementwise over tensors of their values."""

    name: str
    about: str
    loss: Callable[[Tensor, Tensor], Tensor]
    minima: tuple[Point, ...]
    start: Point
    spread: float
    """How far from ``start`` the other starting points may lie, in either direction."""
    box: tuple[Point, Point]
    """What there is to see: the ends of x and of y."""

    def starts(self, count: int) -> Tensor:
        """Starting points, (count, 2) in float64: the classic one, then some around it."""
        points = [self.start]
        for seed in range(1, count):
            shift = np.random.default_rng(seed).uniform(-self.spread, self.spread, 2)
            points.append((self.start[0] + shift[0], self.start[1] + shift[1]))
        return torch.tensor(points, dtype=torch.float64)

    def slope(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and gradients at points, (..., 2), in float64."""
        at = points.detach().double().requires_grad_()
        losses = self.loss(at[..., 0], at[..., 1])
        (gradients,) = torch.autograd.grad(losses.sum(), at)
        return losses.detach(), gradients


def _rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _beale(x: Tensor, y: Tensor) -> Tensor:
    terms = (c - x + x * y**k for c, k in ((1.5, 1), (2.25, 2), (2.625, 3)))
    first, second, third = (term**2 for term in terms)
    return first + second + third


def _himmelblau(x: Tensor, y: Tensor) -> Tensor:
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def _ravine(x: Tensor, y: Tensor) -> Tensor:
    return ((x - 1) ** 2 + 1000 * (y - 0.2) ** 2) / 2


def _saddle(x: Tensor, y: Tensor) -> Tensor:
    return (2 * x**2 + (y**2 - 1) ** 2) / 4


def _rastrigin(x: Tensor, y: Tensor) -> Tensor:
    waves = torch.cos(2 * math.pi * x) + torch.cos(2 * math.pi * y)
    return 20 + x**2 + y**2 - 10 * waves


SURFACES = {
    surface.name: surface
    for surface in (
        Surface(
            "rosenbrock",
            "A curved valley: into it is easy, along its flat floor to the minimum is not.",
            _rosenbrock,
            minima=((1.0, 1.0),),
            start=(-1.2, 1.0),
            spread=0.4,
            box=((-2.0, 2.0), (-0.75, 2.25)),
        ),
        Surface(
            "beale",
            "A plain between steep walls: gradients of very different sizes on one way.",
            _beale,
            minima=((3.0, 0.5),),
            start=(0.5, -1.5),
            spread=0.4,
            box=((-1.0, 4.5), (-2.25, 1.5)),
        ),
        Surface(
            "himmelblau",
            "Four minima of the same depth: where a racer ends depends on its first steps.",
            _himmelblau,
            minima=(
                (3.0, 2.0),
                (-2.805118086952745, 3.131312518250573),
                (-3.779310253377747, -3.283185991286170),
                (3.584428340330492, -1.848126526964404),
            ),
            start=(-0.5, -1.0),
            spread=0.5,
            box=((-5.5, 5.5), (-5.0, 5.0)),
        ),
        Surface(
            "ravine",
            "A quadratic 1000 times steeper across than along: what is fast along falls over "
            "across, unless each number has its own step.",
            _ravine,
            minima=((1.0, 0.2),),
            start=(-1.0, 0.8),
            spread=0.3,
            box=((-1.75, 2.0), (-0.9, 1.3)),
        ),
        Surface(
            "saddle",
            "A start beside the ridge of a saddle, where the way down begins with a slope of "
            "almost 0.",
            _saddle,
            minima=((0.0, 1.0), (0.0, -1.0)),
            start=(-1.5, 1e-3),
            spread=2e-3,
            box=((-1.9, 0.9), (-1.4, 1.4)),
        ),
        Surface(
            "rastrigin",
            "A bowl full of dents, each a minimum of its own: only who does not stop at the first "
            "gets far.",
            _rastrigin,
            minima=((0.0, 0.0),),
            start=(-3.4, 2.6),
            spread=0.9,
            box=((-5.0, 5.0), (-4.0, 4.5)),
        ),
    )
}
