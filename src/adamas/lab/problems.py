"""Problems of one or two numbers, to watch an optimizer on."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import UserError
from .names import did_you_mean

Array = Any  # numpy.ndarray of float64
Rows = tuple[tuple[float, ...], ...]

BY_HAND = "by hand"
MOST_STEPS = 1000


@dataclass(frozen=True)
class Problem:
    """A loss ``1/2 (p - minimum) . curvature (p - minimum)``, and what disturbs its gradient.

    Data alone, so that a page can compute the same; every product and sum rounds on its own.
    """

    name: str
    about: str
    start: tuple[float, ...]
    minimum: tuple[float, ...]
    curvature: Rows = ()
    """Symmetric; without it there is no loss, and the gradient is only what is added."""
    present: Rows = ()
    """A row for each step, then from the first again: 1 where there is a gradient, 0 where not."""
    added: Rows = ()
    """Likewise: what is added to the gradient."""

    def slope(self, p: Array) -> Array:
        """The loss's gradient."""
        g = np.zeros(len(self.start))
        for column, x in zip(self.curvature, p - np.array(self.minimum), strict=False):
            g = g + np.array(column) * x  # not by a matrix product, whose order of sums is its own
        return g

    def gradient(self, p: Array, step: int) -> Array:
        """What the optimizer is given in a step, counted from 1."""
        g = self.slope(p)
        for rows, join in ((self.present, np.multiply), (self.added, np.add)):
            if rows:
                g = join(g, np.array(rows[(step - 1) % len(rows)]))
        return g

    def loss(self, p: Array) -> float | None:
        """The loss, where there is one."""
        if not self.curvature:
            return None
        total = 0.0
        for x, g in zip(p - np.array(self.minimum), self.slope(p), strict=True):
            total = total + x * g
        return float(0.5 * total)

    def to_json(self) -> dict[str, Any]:
        """The problem as plain JSON."""
        return asdict(self)


def _noise() -> Rows:
    # Python's own generator gives the same numbers in every version; two decimals are exact enough.
    uniform = random.Random(1).random
    return tuple((round(4 * uniform() - 2, 2),) for _ in range(MOST_STEPS))


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "quadratic",
            "One number in a parabola: the gradient is the number itself.",
            start=(1.0,),
            minimum=(0.0,),
            curvature=((1.0,),),
        ),
        Problem(
            "ravine",
            "Two numbers in a valley 25 times steeper across than along. Adam divides each by the "
            "size of its own gradients, so it walks both ways alike.",
            start=(-1.5, 1.0),
            minimum=(0.0, 0.0),
            curvature=((1.0, 0.0), (0.0, 25.0)),
        ),
        Problem(
            "tilted",
            "The same valley turned by 45 degrees. Now both numbers have the steep direction in "
            "them, and no division number by number can tell along from across.",
            start=(-1.5, 0.5),
            minimum=(0.0, 0.0),
            curvature=((13.0, 12.0), (12.0, 13.0)),
        ),
        Problem(
            "noisy",
            "A parabola whose gradient is off by up to 2 each time, as a batch's is. The average m "
            "keeps what gradients agree on.",
            start=(1.0,),
            minimum=(0.0,),
            curvature=((1.0,),),
            added=_noise(),
        ),
        Problem(
            "sparse",
            "Two numbers, the second with a gradient in every fifth step only, as the embedding of "
            "a rare word. In between its m and v fade, and it still moves.",
            start=(-1.5, 1.0),
            minimum=(0.0, 0.0),
            curvature=((1.0, 0.0), (0.0, 1.0)),
            present=((1.0, 1.0), *(((1.0, 0.0),) * 4)),
        ),
    )
}


def find(name: str) -> Problem:
    """The problem of that name.

    Raises:
        UserError: there is none.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    hint = did_you_mean(name, PROBLEMS)
    raise UserError(f"--problem must be one of {', '.join(PROBLEMS)}, got {name!r}{hint}")


def by_hand(gradients: tuple[float, ...]) -> Problem:
    """One number whose gradients are these, whatever it does."""
    rows = tuple((g,) for g in gradients)
    about = "One number with gradients given by hand; after the last comes the first again."
    return Problem(BY_HAND, about, start=(1.0,), minimum=(0.0,), added=rows)
