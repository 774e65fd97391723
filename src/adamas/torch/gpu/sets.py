"""Sets of hyperparameters as the device reads them, which counts its steps; see ``prepare``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ...hyper import Hyper, Rule

# The columns, of 8 bytes each. What a rule calls beta1 and beta2 is in ``hyper``'s classes.
LR, BETA1, BETA2, EPS, WEIGHT_DECAY, DECOUPLED, MAXIMIZE, IS_FLOAT64 = range(8)
# Whether the averages' bias is corrected; and for rules that do not, what of a gradient the
# momentum takes after the first step, which takes all.
CORRECTED, ONE_MINUS_BETA1 = 8, 9
# int64: addresses of tensors on the device that hold the value instead, 0 for none, and which of
# them, in bits from the lowest on, are of float64; others are of float32.
LR_AT, BETA1_AT, BETA2_AT, WIDE = range(10, 14)
COLUMNS = 14


def set_row(
    hyper: Rule, compute: str, addresses: Sequence[int] = (0, 0, 0), wide: int = 0
) -> list[float]:
    """A set's columns.

    Args:
        hyper: the hyperparameters, of which anything stands for those that a tensor holds.
        compute: "float32" or "float64".
        addresses: of tensors that hold lr, beta1 and beta2, 0 for none,
        wide: and which of these are float64, in bits from the lowest on.

    Returns:
        14 numbers, the last four of which have the bits of whole ones.

    Raises:
        ValueError: a coefficient is too large for the compute type.
    """
    whole = np.array([*addresses, wide], np.int64).view(np.float64).tolist()
    return [*_numbers(hyper, compute), *whole]


@lru_cache(maxsize=1024)
def _numbers(hyper: Rule, compute: str) -> tuple[float, ...]:
    for step in 1, 2:  # whose are the largest
        hyper.coefficients(step, compute)  # raises where they exceed the type
    c = hyper.coefficients(2, "float64")
    if isinstance(hyper, Hyper):
        lr, weight_decay, decoupled = hyper.lr, hyper.weight_decay, hyper.decoupled_weight_decay
    else:
        lr, weight_decay, decoupled = c.step_size, c.l2, False
    numbers = lr, c.beta1, c.beta2, c.eps, weight_decay, decoupled, c.maximize
    more = compute == "float64", hyper.rule == Hyper.rule, c.one_minus_beta1
    return tuple(map(float, numbers + more))
