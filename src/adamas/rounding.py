"""Rounding to 16 bits: by dithers, and without loss to a weight and what is left of its master.

Whatever loses bits is rounded by a dither, a fixed function of an element's index and the step that
is uniform over either, so that what is lost at one step is made up for at others: the second moment
changes by less than half a quantum a step, and rounding to nearest would freeze it. No random
state, the same on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""Words of 32 bits, or the bits of float32 numbers."""
Floats = NDArray[np.float32]
"""float32 numbers."""

BY_STEP = 2447445413, 3242174889
"""What the two dithers add a step, on 2^32.

The powers of the plastic number's reciprocal, whose multiples fill a square evenly (Roberts 2018,
"The unreasonable effectiveness of quasirandom sequences").
"""
BY_INDEX = 49 << 26, 35 << 26
"""What they add an index: all multiples of 1/64 once in a group, whose fractions are those of all.
"""

NAN = 0x7FC00000
"""The bits of the NaN that is stored."""
INFINITY = 0x7F800000
"""The bits of infinity."""


def dither(index: Words, step: int, other: bool = False) -> Words:
    """Words that are uniform on 2^32 over the indices and over the steps.

    Args:
        index: the elements' positions in the flattened whole tensor.
        step: the step's number, from 1.
        other: the second sequence, which fills a square with the first.
    """
    return index * np.uint32(BY_INDEX[other]) + np.uint32(step * BY_STEP[other] & 0xFFFFFFFF)


def to_bfloat16(x: Floats, index: Words, step: int, other: bool = False) -> NDArray[np.uint16]:
    """The top halves of float32 numbers, rounded by the dither; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = (bits + (dither(index, step, other) >> 16)) >> 16
    return np.where(_is_nan(bits), NAN >> 16, rounded).astype(np.uint16)


def from_bfloat16(halves: NDArray[np.uint16]) -> Floats:
    """float32 numbers of their top halves."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def to_float16(x: Floats, index: Words, step: int) -> NDArray[np.float16]:
    """float32 numbers as float16, rounded by the second dither."""
    bits = x.view(np.int32)
    exponent = np.clip(bits >> 23 & 0xFF, 113, 254)  # below 2^-14, float16 is evenly spaced
    fraction = (dither(index, step, True) >> 19).astype(np.float32) * np.float32(2.0**-13)
    with np.errstate(all="ignore"):
        counts = np.floor(np.abs(x) * float_of((264 - exponent) << 23) + fraction)
        size = counts * float_of((exponent - 10) << 23)
        return np.copysign(np.where(np.isfinite(x), size, np.abs(x)), x).astype(np.float16)


def split(x: Floats, remainder_bits: int, index: Words, step: int) -> tuple[Any, Any]:
    """A bfloat16 weight, rounded half up in size, and the rest of its float32 master beside it.

    Args:
        x: (n,) float32, the master weights.
        remainder_bits: 16, which keep all of it, or 8, the last of which is rounded by the second
            dither.
        index: (n,) the elements' positions, see ``dither``.
        step: the step's number.

    Returns:
        (n,) uint16, the bits of the bfloat16 weights, and (n,) uint16 or uint8.
    """
    bits = np.where(_is_nan(x.view(np.uint32)), np.uint32(NAN), x.view(np.uint32))
    if remainder_bits == 8:
        rounded = bits + (dither(index, step, True) >> 24)
        bits = np.where(_is_nan(bits), bits, rounded)
    weights = (bits + 0x8000 >> 16).astype(np.uint16)
    rest = bits >> (16 - remainder_bits)
    return weights, rest.astype(np.uint16 if remainder_bits == 16 else np.uint8)


def join(weights: NDArray[np.uint16], rest: Any) -> Floats:
    """The float32 master weights of ``split``'s two parts."""
    low = rest.astype(np.uint32) << (0 if rest.dtype == np.uint16 else 8)
    bits = (weights.astype(np.uint32) << 16 | low) - ((low & 0x8000) << 1)
    joined: Floats = bits.astype(np.uint32).view(np.float32)
    return joined


def float_of(bits: Any) -> Any:
    """float32 numbers of their bits, as whole numbers."""
    return np.asarray(bits, np.int32).view(np.float32)


def _is_nan(bits: Any) -> Any:
    return (bits & 0x7FFFFFFF) > INFINITY
