"""The global norm of gradients, whose bits do not depend on the order in which it is summed.

The sum of the squares of all elements, each square rounded to float64, is taken exactly and then
rounded once, to 32 bits; the norm is its square root in float64. Order, threads, chunks and shards
cannot show in an exact sum. Rounding it to 32 bits makes it cheap: one pass of ordinary float64
additions is off by less than 2^-45 of it, which leaves those 32 bits in doubt once in thousands of
steps, and only then is a slower, exact pass made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_BITS = 32
_LAST_DIGIT = 1074  # an exact sum's digits count from 2^-1074, the smallest float64


def squared_norm(grads: Iterable[np.ndarray], scale: float = 1.0) -> float:
    """The specification: the sum of the squares of ``scale`` times every element, rounded once.

    Args:
        grads: arrays of float16, float32 or float64 and any shape.
        scale: what each element is multiplied with first, in float64 where it is of float64, else
            in float32.

    Returns:
        A float64 of 32 significant bits; inf or NaN if an element is, or a square overflows.
    """
    squares = []
    with np.errstate(all="ignore"):
        for grad in grads:
            compute = "float64" if grad.dtype == np.float64 else "float32"
            scaled = grad.reshape(-1).astype(compute) * np.full(1, scale, compute)
            squares += (scaled.astype("float64") ** 2).tolist()
    if not all(map(math.isfinite, squares)):
        return float(np.sum(squares))
    return rounded(sum(map(Fraction, squares), Fraction(0)))


def rounded(exact: Fraction) -> float:
    """A number of at least 0, rounded to 32 bits, to even where it is half way."""
    if not exact:
        return 0.0
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length() - _BITS
    if exact / Fraction(2) ** exponent >= 1 << _BITS:
        exponent += 1
    try:
        return math.ldexp(round(exact / Fraction(2) ** exponent), exponent)
    except OverflowError:
        return math.inf


def rounded_estimate(value: float, error: float) -> float | None:
    """What an estimate rounds to, None where numbers within its error round differently."""
    if not math.isfinite(value):
        return value
    if not math.isfinite(error):
        return None
    low, high = _rounded_float(value - error), _rounded_float(value + error)
    return low if low == high else None


def _rounded_float(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    try:
        return math.ldexp(round(math.ldexp(mantissa, _BITS)), exponent - _BITS)
    except OverflowError:
        return math.inf


def rounded_digits(digits: NDArray[np.int64]) -> float:
    """What an exact sum (``native.exact_square_sum``) rounds to."""
    total = sum(int(digit) << 32 * k for k, digit in enumerate(digits))
    return rounded(Fraction(total, 1 << _LAST_DIGIT))


def clip_factor(norm: float, max_norm: float) -> float:
    """What gradients of a norm are multiplied with so that it is at most ``max_norm``, in float64.

    ``max_norm / (norm + 1e-6)``, at most 1; NaN where the norm is.

    Source: torch.nn.utils.clip_grad_norm_.
    """
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1 else factor
