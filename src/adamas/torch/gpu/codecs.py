"""Moment formats and split weights in Triton: ``adamas.formats``, name for name.

Everything works on tiles of (groups, 64). Lanes beyond a tensor's end come as zeros, which change
no smallest and no largest value of their group.
"""

from __future__ import annotations

import triton.language as tl

from ... import formats, rounding
from .jit import jit

GROUP = tl.constexpr(formats.GROUP)
NONE, REST_8, REST_16, WHOLE = (tl.constexpr(bits) for bits in (0, 8, 16, 32))  # of masters

_FIRST_BY_STEP, _SECOND_BY_STEP = (tl.constexpr(x) for x in rounding.BY_STEP)
_FIRST_BY_INDEX, _SECOND_BY_INDEX = (tl.constexpr(x) for x in rounding.BY_INDEX)
_LARGEST = tl.constexpr(formats.LARGEST)
_NAN = tl.constexpr(rounding.NAN)
_INFINITY = tl.constexpr(rounding.INFINITY)
_HALF = tl.constexpr(formats.HALF)
_NEGLIGIBLE = tl.constexpr(formats.NEGLIGIBLE)
_LEVEL = tl.constexpr(65535 / 65536)
_SETTLE_8, _SETTLE_4 = tl.constexpr(formats.SETTLE[8]), tl.constexpr(formats.SETTLE[4])
_SLOPE_1, _SLOPE_2, _SLOPE_3 = (tl.constexpr(slope) for slope, _ in formats.CHORDS)
_START_1, _START_2, _START_3 = (tl.constexpr(start) for _, start in formats.CHORDS)
# Added to a number of less than 2^22, it leaves the nearest whole number, ties to even, in the last
# bits of the sum, beside its own.
_ROUNDER = tl.constexpr(1.5 * 2**23)


@jit
def bits_of(x: tl.tensor) -> tl.tensor:
    """The bits of float32 numbers, as signed whole numbers."""
    return x.to(tl.int32, bitcast=True)


@jit
def float_of(bits: tl.tensor) -> tl.tensor:
    """The float32 numbers of these bits."""
    return bits.to(tl.float32, bitcast=True)


@jit
def top_half(half: tl.tensor) -> tl.tensor:
    """The bits of the float32 numbers whose top halves these are."""
    return (half.to(tl.uint32) << 16).to(tl.int32, bitcast=True)


@jit
def first_dither(index: tl.tensor, step: tl.tensor) -> tl.tensor:
    """``rounding.dither``, of 32-bit indices and steps."""
    return index * _FIRST_BY_INDEX + step * _FIRST_BY_STEP


@jit
def second_dither(index: tl.tensor, step: tl.tensor) -> tl.tensor:
    """The same of the other sequence."""
    return index * _SECOND_BY_INDEX + step * _SECOND_BY_STEP


@jit
def decode(
    words: tl.tensor, low: tl.tensor, high: tl.tensor, most: tl.tensor, BITS: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Both moments; ``formats.Codec.decode``.

    Args:
        words: (groups, 64), of 16 or 8 bits.
        low: (groups, 1) uint16, the smallest v,
        high: the largest,
        most: and the largest size of u.
        BITS: 8 or 4.
    """
    word = words.to(tl.int32)
    unit = float_of(top_half(most))
    if BITS == 8:
        code_v = word >> 8
        level = ((word << 24) >> 24).to(tl.float32)
        unit = tl.div_rn(unit, tl.full(unit.shape, 127.0, tl.float32))
    else:
        code_v = ((word + 16) * 241) >> 12  # by 17
        code_m = (word - 17 * code_v).to(tl.float32) + 8.0
        level = code_m * (tl.abs(code_m) + 8.0)
        unit *= 1 / 128
    quantum = _quantum(top_half(low), top_half(high), BITS)
    grid = (top_half(low) - quantum) + code_v * quantum
    positive = code_v > 0
    frame = ((grid >> 1) + 0x1FC00000) & (_INFINITY if BITS == 8 else _INFINITY | _HALF)
    m = level * unit * float_of(tl.where(positive, frame, 0))
    return m, float_of(tl.where(positive, grid, 0))


@jit
def encode(
    m: tl.tensor,
    v: tl.tensor,
    grad: tl.tensor,
    index: tl.tensor,
    group_index: tl.tensor,
    step: tl.tensor,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Words and scales; ``formats.Codec.encode``.

    Args:
        m: (groups, 64) float32,
        v: of the same shape,
        grad: and the gradient as it was given.
        index: (groups or 1, 64) uint32, the elements' positions, as far as the dithers depend on
            them.
        group_index: (groups, 1) uint32, of the groups' first elements.
        step: uint32.
        BITS: 8 or 4.

    Returns:
        Words and three scales of (groups, 1).
    """
    b = tl.minimum(v.to(tl.uint32, bitcast=True), _LARGEST).to(tl.int32)
    positive = b > 0
    edge: tl.constexpr = (1 << (20 if BITS == 8 else 16)) - 1
    # Less one, zero is the largest of all.
    lowest = tl.min((b - 1).to(tl.uint32, bitcast=True), 1, keep_dims=True) + 1
    low = lowest.to(tl.int32, bitcast=True) & ~edge
    high = tl.minimum((tl.max(b, 1, keep_dims=True) + edge) & ~edge, _LARGEST)
    quantum = _quantum(low, high, BITS)
    by_quantum = tl.div_rn(tl.full(quantum.shape, _LEVEL, tl.float32), quantum.to(tl.float32))
    # The dither and one: its top 16 bits behind the exponent of one.
    dither = float_of((((first_dither(index, step) >> 9) & 0x7FFF80) | 0x3F800000).to(tl.int32))
    code_v = ((b - low).to(tl.float32) * by_quantum + dither).to(tl.int32)
    # Of the value on the grid the bits, inverted: then a shift and a sum give the frame.
    grid = (quantum - 1 - low) - code_v * quantum
    by_frame = float_of(((grid >> 1) + 0x5FC00000) & _INFINITY)  # by its power of two
    if BITS == 4:
        by_frame = tl.where((grid & 0x800000) == 0, by_frame, by_frame * (2 / 3))
    u = tl.where(positive, m * by_frame, 0.0)
    most = tl.max(bits_of(u) & 0x7FFFFFFF, 1, keep_dims=True)
    poisoned = most > _LARGEST
    kept = (most >= _NEGLIGIBLE) & (most <= _LARGEST)
    group_dither = (group_index >> 6) * _FIRST_BY_STEP + step * _SECOND_BY_STEP
    rounded = (most + (group_dither >> 16).to(tl.int32)) >> 16
    scale = tl.where(kept, rounded, tl.where(poisoned, _NAN >> 16, 0))
    largest = tl.full(most.shape, 127.0 if BITS == 8 else 128.0, tl.float32)
    # Zero where nothing is kept; of what is not finite it makes NaN, which the maximum below drops.
    inverse = tl.div_rn(largest, float_of(tl.where(kept, most, _INFINITY)))
    rounded_m = bits_of(_code_m(u, inverse, grad, index, step, BITS) + _ROUNDER)
    if BITS == 8:
        words = (tl.where(positive, code_v << 8, 0) | (rounded_m & 0xFF)).to(tl.uint16)
    else:  # the last 8 bits of the rounder are zero
        words = tl.where(positive, 17 * code_v + rounded_m - 8, 0).to(tl.uint8)
    return words, (low >> 16).to(tl.uint16), (high >> 16).to(tl.uint16), scale.to(tl.uint16)


@jit
def _code_m(
    u: tl.tensor,
    inverse: tl.tensor,
    grad: tl.tensor,
    index: tl.tensor,
    step: tl.tensor,
    BITS: tl.constexpr,
) -> tl.tensor:
    """The codes of m, not yet rounded: of u's sign, and by its size."""
    code = tl.abs(u) * inverse
    if BITS == 4:
        shallow = tl.minimum(code * _SLOPE_1 + _START_1, code * _SLOPE_2 + _START_2)
        code = tl.minimum(shallow, code * _SLOPE_3 + _START_3)
    fraction = (second_dither(index, step) >> 16).to(tl.int32).to(tl.float32) * (2.0**-16)
    offset = fraction - (_SETTLE_8 if BITS == 8 else _SETTLE_4)
    code = tl.maximum(tl.where(grad != 0, code, code + offset), 0.0)
    return float_of(bits_of(code) | (bits_of(u) & -0x80000000))


@jit
def _quantum(low: tl.tensor, high: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The step of v's grid, in bit patterns."""
    steps: tl.constexpr = (1 << BITS) - 2
    return tl.maximum((high - low + (steps - 1)) // steps, 1)


@jit
def from_bfloat16(halves: tl.tensor) -> tl.tensor:
    """float32 numbers of their top halves."""
    return float_of(top_half(halves))


@jit
def to_bfloat16(x: tl.tensor, dither: tl.tensor) -> tl.tensor:
    """The top halves of float32 numbers, rounded by a dither; NaN stays NaN."""
    rounded = (x.to(tl.uint32, bitcast=True) + (dither >> 16)) >> 16
    return tl.where(x != x, _NAN >> 16, rounded).to(tl.uint16)


@jit
def to_float16(x: tl.tensor, dither: tl.tensor) -> tl.tensor:
    """float32 numbers as float16, rounded by a dither; ``rounding.to_float16``."""
    size = bits_of(x) & 0x7FFFFFFF
    finite = size < _INFINITY
    exponent = tl.minimum(tl.maximum(size >> 23, 113), 254)
    fraction = (dither >> 19).to(tl.int32).to(tl.float32) * (2.0**-13)
    counts = float_of(tl.where(finite, size, 0)) * float_of((264 - exponent) << 23) + fraction
    whole = counts.to(tl.int32).to(tl.float32) * float_of((exponent - 10) << 23)
    kept = tl.where(finite, bits_of(whole), size)
    return float_of(kept | (bits_of(x) & -0x80000000)).to(tl.float16)


@jit
def join(weights: tl.tensor, rest: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """float32 master weights of bfloat16 ones and the bits that follow; ``rounding.join``."""
    low = rest.to(tl.uint32) << (16 - BITS)
    return float_of(((weights.to(tl.uint32) << 16) | low) - ((low & 0x8000) << 1))


@jit
def split(x: tl.tensor, dither: tl.tensor, BITS: tl.constexpr) -> tuple[tl.tensor, ...]:
    """bfloat16 weights and the bits of their masters that follow; ``rounding.split``."""
    bits = x.to(tl.uint32, bitcast=True)
    if BITS == 8:
        bits += dither >> 24
    bits = tl.where(x != x, _NAN, bits)
    rest = bits >> (16 - BITS)
    return ((bits + 0x8000) >> 16).to(tl.uint16), rest.to(tl.uint8 if BITS == 8 else tl.uint16)
