"""Bias corrections, the same on every processor."""

from __future__ import annotations

from functools import lru_cache

_BITS = 128  # fraction bits of the powers
_ONE = 1 << _BITS


@lru_cache(maxsize=8)  # groups mostly share them
def bias_correction(beta: float, step: int) -> float:
    """``1 - beta^step``, rounded once.

    The power is taken in integers of 128 fraction bits, of the step's last four bits and of the
    others apart. By logarithm and exponential it would differ between processors: glibc's have
    other last bits where there is FMA than where not.

    Args:
        beta: in [0, 1).
        step: its number, counted from 1.
    """
    power = _long_power(beta, step & ~15) * _short_powers(beta)[step & 15] >> _BITS
    return (_ONE - power) / _ONE


@lru_cache(maxsize=8)  # one serves sixteen steps
def _long_power(beta: float, exponent: int) -> int:
    return _power(beta, exponent)


@lru_cache(maxsize=64)
def _short_powers(beta: float) -> tuple[int, ...]:
    return tuple(_power(beta, exponent) for exponent in range(16))


def _power(beta: float, exponent: int) -> int:
    power = _ONE
    squarings = _squarings(beta)
    for bit in range(exponent.bit_length()):
        if exponent >> bit & 1:
            power = power * squarings[bit] >> _BITS
    return power


@lru_cache(maxsize=64)
def _squarings(beta: float) -> tuple[int, ...]:
    """``beta^(2^k)`` in fixed point for each bit of a 64-bit step."""
    numerator, denominator = beta.as_integer_ratio()
    powers = [(numerator << _BITS) // denominator]
    for _ in range(63):
        powers.append(powers[-1] * powers[-1] >> _BITS)
    return tuple(powers)
