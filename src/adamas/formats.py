"""Moment formats: what is stored of a parameter's state, byte for byte, and both moments' codec."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rounding import BY_STEP, INFINITY, NAN, Floats, Words, dither, float_of

GROUP = 64
"""Consecutive elements of the flattened tensor that share their scales."""
SCALES = 3
"""Of a group: the smallest positive v, the largest v, the largest |u|."""

MOST_STEPS = 1 << 53
"""A state counts fewer: up to there, a float64 has each number."""
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
"""Averages that are never negative."""

LARGEST = 0x7F7F0000
"""The bits of the largest float32 whose last 16 are zero."""
HALF = 0x00400000
"""What one and a half has beside the bits of one."""
NEGLIGIBLE = 0x21800000
"""The bits of 2^-60: a group whose largest |u| is below it keeps m as zero."""


def _scale_dither(index: Words, step: int) -> Any:
    """16 bits for groups, by their first elements' positions."""
    words = (index // GROUP).astype(np.uint32) * np.uint32(BY_STEP[0])
    return (words + np.uint32(step * BY_STEP[1] & 0xFFFFFFFF) >> 16).astype(np.int32)


class Codec(NamedTuple):
    """Both moments of an element in one word of two codes, by groups of 64 with three scales.

    - v is on a grid that is uniform in the bit pattern of float32, so close to logarithmic, from
      the group's smallest positive value to its largest, both rounded outward, to 16 bits or, at 8
      bits a code, to 12, so that the grid seldom moves. Code 0 is zero. The first dither decides
      between neighbours.
    - m is kept as ``u = m / frame``, where frame is near sqrt(v) as stored: a power of two or, at 4
      bits, also one and a half of it. An update can never be blown up by the error of v. u is on a
      grid up to the group's largest |u|, linear at 8 bits and with levels ``k * (k + 8)`` at 4, and
      is rounded to nearest; where the gradient is zero, by the second dither, so that m decays. The
      largest |u| is rounded to 16 bits by the second dither at the group's number, which does not
      come round so soon. Where v is zero, so is m.
    - A word of 16 bits is v's code above m's in two's complement. One of 8 bits is 0 where v is,
      else the number ``17 * code_v + code_m - 8`` of one of 15 codes of v and one of 17 of m.
    """

    bits: int
    """Of one code."""

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """Of the words."""
        return np.uint16 if self.bits == 8 else np.uint8

    @property
    def edge(self) -> int:
        """The bits of float32 that the ends of v's grid have none of."""
        return 20 if self.bits == 8 else 16

    @property
    def levels(self) -> int:
        """Of v, beside zero."""
        return (1 << self.bits) - 1

    @property
    def largest(self) -> int:
        """The level of the largest code of m."""
        return 127 if self.bits == 8 else 8 * (8 + 8)

    def encode(
        self, m: Floats, v: Floats, active: NDArray[np.bool_], index: Words, step: int
    ) -> tuple[Any, Any]:
        """Words and scales of moments.

        A group with an m that is not finite decodes to NaN; an infinite v to the largest number.

        Args:
            m: (n,) float32, the first moment.
            v: (n,) float32, the second, at least 0.
            active: (n,) whether the gradient is not zero.
            index: (n,) the elements' positions, see ``rounding.dither``.
            step: the step's number.

        Returns:
            (n,) words and (groups, 3) uint16, the top halves of float32 numbers.
        """
        first, second = (
            _groups(dither(index, step, other) >> 16).astype(np.float32) * np.float32(2.0**-16)
            for other in (False, True)
        )
        b = _groups(np.minimum(v.view(np.uint32), LARGEST).astype(np.int32))
        positive = b > 0
        edge = (1 << self.edge) - 1
        low = (np.where(positive, b, LARGEST).min(1, keepdims=True) & ~edge) >> 16
        high = np.minimum(b.max(1, keepdims=True) + edge & ~edge, LARGEST) >> 16
        low = np.where(high > 0, low, 0)
        quantum = self._quantum(low, high)
        # A little less than a level to a quantum, so that rounding leaves the last code alone.
        level = (b - (low << 16)).astype(np.float32) * (
            np.float32(65535 / 65536) / quantum.astype(np.float32)
        )
        code_v = np.where(positive, (level + (first + 1)).astype(np.int32), 0)
        frame = self._frame((low << 16) + (code_v - 1) * quantum)
        with np.errstate(all="ignore"):
            power = float_of(0x7F000000 - (frame & INFINITY))
            u = _groups(m) * np.where(frame & HALF, power * np.float32(2 / 3), power)
            u = np.where(positive, u, np.float32(0))
            size = _bits(u) & 0x7FFFFFFF
            most = size.max(1, keepdims=True)
            poisoned = most > LARGEST
            kept = (most >= NEGLIGIBLE) & ~poisoned
            rounded = most + _scale_dither(index[::GROUP], step)[:, None] >> 16
            scale = np.where(kept, rounded, np.where(poisoned, NAN >> 16, 0))
            inverse = np.float32(self.largest) / float_of(np.where(kept, most, INFINITY))
            r = np.where(kept, float_of(size), np.float32(0)) * inverse
        offset = np.where(_groups(active), np.float32(0), second - np.float32(SETTLE[self.bits]))
        code_m = np.maximum(np.rint(self._curve(r) + offset), 0).astype(np.int32)
        code_m = np.where(_bits(u) < 0, -code_m, code_m)
        words = self._pack(code_v, code_m).astype(self.dtype).reshape(-1)[: m.size]
        return words, np.concatenate([low, high, scale], 1).astype(np.uint16)

    def decode(self, words: Any, scales: Any) -> tuple[Floats, Floats]:
        """The moments, (n,) float32 each, of words and scales as ``encode`` returns them."""
        low, high, scale = scales.astype(np.int32).T[:, :, None]
        code_v, code_m = self._unpack(_groups(words.astype(np.int32)))
        grid = (low << 16) + (code_v - 1) * self._quantum(low, high)
        stored = np.where(code_v > 0, grid, 0)
        level = code_m if self.bits == 8 else code_m * (np.abs(code_m) + 8)
        with np.errstate(all="ignore"):
            unit = float_of(scale << 16) / np.float32(self.largest)
            frame = np.where(code_v > 0, float_of(self._frame(grid)), np.float32(0))
            m = level.astype(np.float32) * unit * frame
        return m.reshape(-1)[: words.size], float_of(stored).reshape(-1)[: words.size]

    def _pack(self, code_v: Any, code_m: Any) -> Any:
        if self.bits == 8:
            return code_v << 8 | code_m & 0xFF
        return np.where(code_v > 0, 17 * code_v + code_m - 8, 0)

    def _unpack(self, word: Any) -> tuple[Any, Any]:
        if self.bits == 8:
            return word >> 8, word << 24 >> 24
        code_v = (word + 16) // 17
        return code_v, word - 17 * code_v + 8

    def _frame(self, v_bits: Any) -> Any:
        """The bits of the frame beside numbers of at least 0."""
        return (v_bits >> 1) + 0x1FC00000 & (INFINITY if self.bits == 8 else INFINITY | HALF)

    def _curve(self, r: Floats) -> Floats:
        """The code, not yet rounded, of a level: at 4 bits chords of the inverse of ``k (k + 8)``.

        They are a little high, by what makes up for what rounding takes from updates on average.
        """
        if self.bits == 8:
            return r
        chords = [r * np.float32(slope) + np.float32(start) for slope, start in CHORDS]
        code: Floats = np.minimum(np.minimum(chords[0], chords[1]), chords[2])
        return code

    def _quantum(self, low: Any, high: Any) -> Any:
        """The step of v's grid in bit patterns."""
        steps = self.levels - 1
        return np.maximum((((high - low) << 16) + (steps - 1)) // steps, 1)


SETTLE = {8: 0.5, 4: 0.59375}
"""What the second dither, on [0, 1), is lowered by, by the bits of a code.

One half to round without bias, and more where the curve is high, so that m never grows without a
gradient.
"""
CHORDS = ((1 / 10, 1 / 16), (1 / 15, 99 / 128), (1 / 21, 127 / 64))
"""Slope and start of the lines whose lowest is the curve of m's codes at 4 bits."""

CODECS = {"int8": Codec(8), "int4": Codec(4)}
"""The codecs by the names of their formats."""
FORMATS = ("float32", "bfloat16", *CODECS)
"""What ``moments`` may be."""
MASTER_BITS = (32, 24, 16)
"""What ``master_bits`` may be, beside None."""


class Slot(NamedTuple):
    """An array of a parameter's state: its key, its dtype and how much of it there is."""

    key: str
    """Its name in the state."""
    dtype: str
    """"uint8" for words and remainders, whose bytes are little-endian."""
    width: int = 0
    """Where it is above 0, the last dimension, beside the parameter's own."""
    groups: bool = False
    """Whether it is of shape (groups, 3), not of the parameter's."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the array beside a parameter of this shape."""
        if self.groups:
            return -(-math.prod(shape) // GROUP), SCALES
        return (*shape, self.width) if self.width else shape


Keys = tuple[str, str, str]
"""What a state calls a rule's three averages, "" for those that the rule does without."""
ADAM: Keys = ("exp_avg", "exp_avg_sq", "")
"""Adam's, without AMSGrad."""


def slots(
    dtype: str, moments: str = "float32", master_bits: int | None = None, keys: Keys = ADAM
) -> tuple[Slot, ...]:
    """The arrays of a parameter's state.

    Args:
        dtype: the parameter's: "float32", "float64", "bfloat16" or "float16".
        moments: their format, one of ``FORMATS``; "float32" keeps those of float64 parameters in
            float64.
        master_bits: of the weight that is trained where the parameter has 16 bits, one of
            ``MASTER_BITS``: the parameter is what of it the model sees. By default 32.
        keys: of a rule's three averages, "" for those that it does without; see ``hyper.Rule``.
            The first is signed and the second a square; the third is always kept in full.

    Raises:
        ValueError: a format is unknown, or the dtype cannot have it.
    """
    check(moments, master_bits)
    if dtype == "float64" and moments != "float32":
        raise ValueError(
            f"moments must be 'float32' for parameters of float64, which keeps theirs in float64, "
            f"got {moments!r}: set it so for their group, or use float32 parameters"
        )
    if moments != "float32" and "grad_avg" in keys:
        raise ValueError(
            f"moments must be 'float32' with centered=True, got {moments!r}: it divides by the "
            "small difference of two averages, which is lost where these are rounded"
        )
    full = "float64" if dtype == "float64" else "float32"
    averages = [key for key in keys[:2] if key]
    if moments in CODECS and averages:
        kept = [Slot("words", "uint8", 2 if moments == "int8" else 0)]
        kept += [Slot("scales", "bfloat16", groups=True)]
    else:
        kept = [Slot(key, "bfloat16" if moments == "bfloat16" else full) for key in averages]
    if keys[2]:
        kept.append(Slot(keys[2], full))
    beside = master_beside(dtype, master_bits)
    if beside == 32:
        kept.append(Slot("master", "float32"))
    elif beside:
        kept.append(Slot("remainder", "uint8", 2 if beside == 16 else 0))
    return tuple(kept)


def check(moments: object, master_bits: object) -> None:
    """Raises where these are not of ``FORMATS`` and of ``MASTER_BITS``, or None."""
    if moments not in FORMATS:
        raise ValueError(f"moments must be one of {', '.join(FORMATS)}, got {moments!r}")
    if master_bits is not None and master_bits not in MASTER_BITS:
        raise ValueError(
            f"master_bits must be one of {', '.join(map(str, MASTER_BITS))}, or None for 32, got "
            f"{master_bits!r}"
        )


def master_beside(dtype: str, master_bits: int | None) -> int:
    """Bits kept beside each parameter for its master weight: 0, 8, 16 or 32.

    Raises:
        ValueError: the dtype cannot have so many.
    """
    bits = 32 if master_bits is None else master_bits
    if dtype == "bfloat16":
        return bits - 16
    if dtype != "float16":
        return 0
    if bits == 24:
        raise ValueError(
            "master_bits=24 needs bfloat16 parameters, whose bits are the first of a float32 "
            "number's, and these are float16: use 32 or 16, or train in bfloat16"
        )
    return 32 if bits == 32 else 0


VERSION = 1
"""Of the stored bytes, recorded in checkpoints."""


def check_scales(scales: Any, name: str) -> None:
    """Raises ``ValueError`` where scales are not what an encoder can have written.

    Args:
        scales: (groups, 3) of 16 bits each, the top halves of float32 numbers.
        name: what the error calls their owner.
    """
    low, high, most = np.asarray(scales).view(np.uint16).T
    infinite = INFINITY >> 16
    wrong = (low > high) | (high >= infinite) | (most >= infinite) & (most != NAN >> 16)
    if wrong.any():
        group = int(wrong.argmax())
        bits = ", ".join(f"{int(column[group]):#06x}" for column in (low, high, most))
        raise ValueError(
            f"{name} must be a smallest v, a largest v from there to 0x7f7f and a largest |u| not "
            f"infinite or negative, got {bits} for group {group}: the bytes are damaged, load "
            "another copy"
        )


def _groups(x: Any) -> Any:
    """(groups, 64), padded with the last element, which changes no smallest or largest."""
    return np.pad(x, (0, -x.size % GROUP), "edge").reshape(-1, GROUP)


def _bits(x: Any) -> Any:
    return np.ascontiguousarray(x).view(np.int32)
