"""Bias corrections in Triton: ``adamas.bias.bias_correction``, bit for bit.

Powers of beta are fixed-point numbers of 128 fraction bits, in two halves of 64.
"""

from __future__ import annotations

import triton.language as tl

from .jit import jit

_FRACTION = tl.constexpr((1 << 52) - 1)
_IMPLICIT = tl.constexpr(1 << 52)


@jit
def bias_correction(beta: tl.tensor, step: tl.tensor) -> tl.tensor:
    """``1 - beta^step``, rounded once.

    Args:
        beta: float64, each in [0, 1),
        step: and int64 of the same shape (rows, betas), each at least 1.
    """
    high, low = _fixed_point(beta)
    bits = tl.max(tl.max(step, 1), 0)
    few_high, few_low, no_few, high, low = _power(high, low, step & 15, bits * 0 + 15)
    many_high, many_low, no_many, high, low = _power(high, low, step >> 4, bits >> 4)
    power_high, power_low = _multiply(many_high, many_low, few_high, few_low)
    power_high = tl.where(no_few, many_high, tl.where(no_many, few_high, power_high))
    power_low = tl.where(no_few, many_low, tl.where(no_many, few_low, power_low))
    return _one_minus(power_high, power_low)


@jit
def _power(high: tl.tensor, low: tl.tensor, exponent: tl.tensor, bits: tl.tensor) -> tl.tuple:
    """Powers, and what their bases come to, squared for each bit of ``bits``.

    Returns:
        The halves of the powers; which are one, that has no place in 128 bits; the halves of the
        squares.
    """
    power_high, power_low = high, low
    is_one = exponent >= 0
    while bits > 0:
        more_high, more_low = _multiply(power_high, power_low, high, low)
        taken = (exponent & 1) != 0
        power_high = tl.where(taken, tl.where(is_one, high, more_high), power_high)
        power_low = tl.where(taken, tl.where(is_one, low, more_low), power_low)
        is_one = is_one & (taken == 0)
        high, low = _multiply(high, low, high, low)
        exponent = exponent >> 1
        bits = bits >> 1
    return power_high, power_low, is_one, high, low


@jit
def _fixed_point(beta: tl.tensor) -> tl.tuple:
    """Halves of ``floor(beta * 2^128)``."""
    bits = beta.to(tl.int64, bitcast=True)
    # Zero and denormal numbers are not told apart: they are all far below the last bit.
    mantissa = ((bits & _FRACTION) | _IMPLICIT).to(tl.uint64)
    shift = (bits >> 52) - (1075 - 128)
    left, right = _count(shift), _count(-shift)
    far = shift >= 64
    # In two shifts, for one by all 64 bits is undefined.
    high = tl.where(far, mantissa << _count(shift - 64), (mantissa >> 1) >> (63 - left))
    return high, tl.where(far, 0, (mantissa << left) >> right)


@jit
def _count(shift: tl.tensor) -> tl.tensor:
    """A number of bits by which 64 can be shifted."""
    return tl.minimum(tl.maximum(shift, 0), 63).to(tl.uint64)


@jit
def _multiply(a_high: tl.tensor, a_low: tl.tensor, b_high: tl.tensor, b_low: tl.tensor) -> tl.tuple:
    """The upper 128 bits of the product of 256."""
    across, back = a_high * b_low, a_low * b_high
    middle = tl.umulhi(a_low, b_low) + across
    carry = (middle < across).to(tl.uint64)
    middle += back
    carry += (middle < back).to(tl.uint64)

    across, back = tl.umulhi(a_high, b_low), tl.umulhi(a_low, b_high)
    low = a_high * b_high + carry
    high = tl.umulhi(a_high, b_high) + (low < carry).to(tl.uint64)
    low += across
    high += (low < across).to(tl.uint64)
    low += back
    high += (low < back).to(tl.uint64)
    return high, low


@jit
def _one_minus(high: tl.tensor, low: tl.tensor) -> tl.tensor:
    """float64 of one less this number, rounded to nearest, ties to even."""
    is_one = (high | low) == 0
    high = ~high + (low == 0).to(tl.uint64)
    low = ~low + 1
    exponent = tl.zeros_like(high).to(tl.int64)
    # Betas are at most 1 - 2^-53: of at most 52 leading zeros, fewer than 8 are left, and 56 bits.
    for halving in tl.static_range(3):
        high, low, exponent = _raise(high, low, exponent, 32 >> halving)
    # What is cut off shows in the last bit, below those that a float64 keeps.
    top = (high >> 1) | (high & 1) | (low != 0).to(tl.uint64)
    unit = (exponent + (1023 - 63)) << 52
    rounded = top.to(tl.int64).to(tl.float64) * unit.to(tl.float64, bitcast=True)
    return tl.where(is_one, 1.0, rounded)


@jit
def _raise(high: tl.tensor, low: tl.tensor, exponent: tl.tensor, SHIFT: tl.constexpr) -> tl.tuple:
    """Shifts numbers to the left by so many bits where these are zeros."""
    small = high >> (64 - SHIFT) == 0
    high = tl.where(small, (high << SHIFT) | (low >> (64 - SHIFT)), high)
    return high, tl.where(small, low << SHIFT, low), tl.where(small, exponent - SHIFT, exponent)
