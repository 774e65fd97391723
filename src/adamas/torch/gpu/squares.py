"""The squared norm of gradients in Triton: ``adamas.norm``, rounded to the same 32 bits.

Each program adds up its chunks; the last one to be done adds up the programs. Their sum is off by
less than 2^-50 of itself, which leaves the 32 bits in doubt about once in a hundred thousand steps.
Then the last program compares the exact sum with the middle between its two neighbours of 32 bits.
"""

from __future__ import annotations

import triton.language as tl

from ... import native
from .elements import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, STORED, load, number, pointer
from .jit import jit
from .kernels import COLUMNS, GRAD_DTYPE

_GRAD, _SIZE = tl.constexpr(native.GRAD), tl.constexpr(native.SIZE)

_LANES = tl.constexpr(512)  # sums that a program keeps, each in two float64
_ADDENDS = tl.constexpr(8)  # squares that are added up before such a sum gets them
ERROR = tl.constexpr(2.0**-50)  # bounds that of the estimate, relative to it: see rounded_sum()

_INFINITY = tl.constexpr(float("inf"))
_LARGE, _LARGE_UNIT = tl.constexpr(2.0**900), tl.constexpr(2.0**64)
SMALL, _SMALL_BITS = tl.constexpr(2.0**-800), tl.constexpr(200)
_SMALL_UNIT = tl.constexpr(2.0**-200)
_CUT = tl.constexpr(1 << 21)  # bits that a float64 of 32 significant ones leaves zero
_FRACTION = tl.constexpr((1 << 52) - 1)
_IMPLICIT = tl.constexpr(1 << 52)
_DIGIT = tl.constexpr(24)  # bits that an exact sum is taken by: 2^38 of them add up in an int64
_DIGIT_BITS = tl.constexpr((1 << 24) - 1)


@jit
def sum_share(
    chunks: tl.tensor,
    n_chunks: tl.tensor,
    unscale: tl.tensor,
    LOOK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
) -> tl.tuple:
    """The sum of the squares of this program's chunks.

    Args:
        chunks: as ``kernels.step_chunk``'s.
        n_chunks: all of them.
        unscale: float32.
        LOOK: whether to look for elements that are not finite.
        ALIGNMENT: of all addresses, in bytes.

    Returns:
        The sum in two float64, and whether an element is not finite.
    """
    high = tl.zeros((_LANES,), tl.float64)
    low = tl.zeros((_LANES,), tl.float64)
    strange = tl.zeros((_LANES,), tl.int32)
    block: tl.constexpr = _LANES * _ADDENDS
    for chunk in range(tl.program_id(0), n_chunks, tl.num_programs(0)):
        grad, size, dtype = _chunk(chunks, chunk)
        whole = size // block * block
        if dtype == FLOAT32:
            high, low, strange = _add_blocks(
                high, low, strange, grad, whole, unscale, LOOK, FLOAT32, ALIGNMENT
            )
        elif dtype == BFLOAT16:
            high, low, strange = _add_blocks(
                high, low, strange, grad, whole, unscale, LOOK, BFLOAT16, ALIGNMENT
            )
        elif dtype == FLOAT16:
            high, low, strange = _add_blocks(
                high, low, strange, grad, whole, unscale, LOOK, FLOAT16, ALIGNMENT
            )
        else:
            high, low, strange = _add_blocks(
                high, low, strange, grad, whole, unscale, LOOK, FLOAT64, ALIGNMENT
            )
        for start in range(whole, size, _LANES):
            x = _read_tail(grad, dtype, start, size, unscale)
            high, low, strange = _add(high, low, strange, x * x, x, LOOK)
    total_high, total_low = total(high, low)
    return total_high, total_low, tl.max(strange, 0)


@jit
def _chunk(chunks: tl.tensor, chunk: tl.tensor) -> tl.tuple:
    """A chunk's gradient, its size, 0 where there is none, and its dtype."""
    row = chunks + chunk * COLUMNS
    grad = tl.load(row + _GRAD)
    size = tl.load(row + _SIZE).to(tl.int32)
    if grad == 0:
        size = 0
    return grad, size, tl.load(row + GRAD_DTYPE).to(tl.int32)


@jit
def _add_blocks(
    high: tl.tensor,
    low: tl.tensor,
    strange: tl.tensor,
    grad: tl.tensor,
    size: tl.tensor,
    unscale: tl.tensor,
    LOOK: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
) -> tl.tuple:
    """Adds whole blocks of a chunk to the sums."""
    pointers = pointer(grad, STORED[DTYPE], ALIGNMENT) + tl.arange(0, _LANES)
    for start in range(0, size, _LANES * _ADDENDS):
        squares, witness = _add_up(pointers + start, unscale, DTYPE, _ADDENDS)
        high, low, strange = _add(high, low, strange, squares, witness, LOOK)
    return high, low, strange


@jit
def _add_up(
    pointers: tl.tensor, unscale: tl.tensor, DTYPE: tl.constexpr, COUNT: tl.constexpr
) -> tl.tuple:
    """The sum of some squares of each lane, and what is finite only if all elements are."""
    if COUNT == 1:
        x = _scaled(tl.load(pointers), unscale, DTYPE)
        square = x * x
        # That of a float64 may overflow; zero times it is zero or NaN.
        return square, (x * 0.0 if DTYPE == FLOAT64 else square)
    else:
        half: tl.constexpr = COUNT // 2
        left, left_witness = _add_up(pointers, unscale, DTYPE, half)
        right, right_witness = _add_up(pointers + half * _LANES, unscale, DTYPE, half)
        return left + right, left_witness + right_witness


@jit
def _add(
    high: tl.tensor,
    low: tl.tensor,
    strange: tl.tensor,
    squares: tl.tensor,
    witness: tl.tensor,
    LOOK: tl.constexpr,
) -> tl.tuple:
    high, error = _two_sum(high, squares)
    if LOOK:
        strange = tl.where(tl.abs(witness) < _INFINITY, strange, 1)
    return high, low + error, strange


@jit
def _scaled(stored: tl.tensor, unscale: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """Unscaled elements, as float64."""
    if DTYPE == FLOAT64:
        return stored * unscale.to(tl.float64)
    else:
        return (number(stored, DTYPE) * unscale).to(tl.float64)


@jit
def _read(
    grad: tl.tensor, at: tl.tensor, inside: tl.tensor, unscale: tl.tensor, DTYPE: tl.constexpr
) -> tl.tensor:
    return _scaled(load(pointer(grad, STORED[DTYPE], 1) + at, inside), unscale, DTYPE)


@jit
def _read_tail(
    grad: tl.tensor, dtype: tl.tensor, start: tl.tensor, size: tl.tensor, unscale: tl.tensor
) -> tl.tensor:
    """Unscaled elements from one on, and zeros beyond the last."""
    at = start + tl.arange(0, _LANES)
    inside = at < size
    x = tl.zeros((_LANES,), tl.float64)
    if dtype == FLOAT32:
        x = _read(grad, at, inside, unscale, FLOAT32)
    elif dtype == BFLOAT16:
        x = _read(grad, at, inside, unscale, BFLOAT16)
    elif dtype == FLOAT16:
        x = _read(grad, at, inside, unscale, FLOAT16)
    else:
        x = _read(grad, at, inside, unscale, FLOAT64)
    # Also where a scale that is not finite has made NaN of them.
    return tl.where(inside, x, 0.0)


@jit
def _two_sum(a: tl.tensor, b: tl.tensor) -> tl.tuple:
    """A sum and its error, exact (Knuth)."""
    rounded = a + b
    part = rounded - a
    return rounded, (a - (rounded - part)) + (b - part)


@jit
def total(high: tl.tensor, low: tl.tensor) -> tl.tuple:
    """The sum of pairs whose second parts are far below the first, as such a pair.

    Each first part is cut at the same bit, so high that above it they add up without rounding: the
    order does not show. What lies below is at most 2^-41 of the sum, for up to 1024 pairs.
    """
    plain = tl.sum(high, 0)
    finite = plain < _INFINITY
    large = plain >= _LARGE
    up, down = tl.where(large, _LARGE_UNIT, 1.0), tl.where(large, 1 / _LARGE_UNIT, 1.0)
    scaled = tl.where(finite, plain * down, 1.0)
    exponent = scaled.to(tl.int64, bitcast=True) >> 52
    cut = ((exponent + 2) << 52).to(tl.float64, bitcast=True)
    above = (high * down + cut) - cut
    below = (high * down - above) + low * down
    first, second = _two_sum(tl.sum(above, 0), tl.sum(below, 0))
    return tl.where(finite, first * up, plain), tl.where(finite, second * up, 0.0)


@jit
def rounded_sum(
    chunks: tl.tensor, n_chunks: tl.tensor, unscale: tl.tensor, high: tl.tensor, low: tl.tensor
) -> tl.tensor:
    """The sum of all squares, rounded to 32 bits; ``adamas.norm.rounded_estimate``.

    Of its error, in units of 2^-53 of the sum, adding up 8 squares leaves 3; all that is kept in
    pairs less than 1; the two additions here 2. It is taken for 8.

    Args:
        chunks: as ``sum_share``'s, as are
        n_chunks: and
        unscale: these.
        high: the ``total`` of what all programs have found, in two float64,
        low: the second.
    """
    small = high < SMALL
    up = tl.where(small, 1 / _SMALL_UNIT, 1.0)
    error = high * up * ERROR
    lower = _round_bits(high * up + (low * up - error))
    upper = _round_bits(high * up + (low * up + error))
    if (lower != upper) & (high < _INFINITY):
        shift = tl.where(small, _SMALL_BITS, 0)
        lower = _decide(chunks, n_chunks, unscale, lower, shift)
    rounded = lower.to(tl.float64, bitcast=True) * tl.where(small, _SMALL_UNIT, 1.0)
    return tl.where(high < _INFINITY, rounded, high)


@jit
def _round_bits(x: tl.tensor) -> tl.tensor:
    """The bits of a number of at least 0, rounded to 32 significant ones, ties upwards.

    Only of bounds, which are not reached: where one is half way, the sum is not.
    """
    return (x.to(tl.int64, bitcast=True) + _CUT // 2) & -_CUT


@jit
def _decide(
    chunks: tl.tensor, n_chunks: tl.tensor, unscale: tl.tensor, lower: tl.tensor, shift: tl.tensor
) -> tl.tensor:
    """Which of two neighbours of 32 bits the exact sum rounds to, the lower or the one after it.

    The sum less the middle between them is taken digit by digit, from the largest on, until the
    digits to come cannot change its sign. Most sums need one pass, exact ties at the most as many
    as there are digits.

    Args:
        chunks: as ``sum_share``'s, as are
        n_chunks: and
        unscale: these.
        lower: the bits of the lower neighbour, times two to the
        shift: of this.
    """
    middle = lower + _CUT // 2
    last = (middle >> 52) - (1075 + 8) - shift  # the last bit of the digit is worth 2^last
    difference = -(((middle & _FRACTION) | _IMPLICIT) << 8)
    mask = tl.full((), -1, tl.int64)
    rest = tl.full((), 1, tl.int64)
    doubtful = lower == lower
    while doubtful:
        digit, rest, count = _sum_digits(chunks, n_chunks, unscale, last, mask)
        difference += digit
        # What follows is less than one in the last bit for each element.
        doubtful = (difference < 0) & (difference + count > 0) & (rest != 0)
        difference = tl.where(doubtful, difference << _DIGIT, difference)
        last = tl.where(doubtful, last - _DIGIT, last)
        mask = tl.full((), _DIGIT_BITS, tl.int64)
    odd = ((lower // _CUT) & 1) != 0
    above = (difference > 0) | ((difference == 0) & ((rest != 0) | odd))
    return tl.where(above, lower + _CUT, lower)


@jit
def _sum_digits(
    chunks: tl.tensor, n_chunks: tl.tensor, unscale: tl.tensor, last: tl.tensor, mask: tl.tensor
) -> tl.tuple:
    """The exact sum of one digit of each square.

    Args:
        chunks: as ``sum_share``'s, as are
        n_chunks: and
        unscale: these.
        last: the digit's last bit is worth two to the power of this,
        mask: and has ones for its bits.

    Returns:
        The sum; what is not 0 if there are further digits; and the number of elements.
    """
    digits = tl.zeros((_LANES,), tl.int64)
    rest = tl.zeros((_LANES,), tl.int64)
    count = tl.zeros((), tl.int64)
    for chunk in range(0, n_chunks):
        grad, size, dtype = _chunk(chunks, chunk)
        for start in range(0, size, _LANES):
            x = _read_tail(grad, dtype, start, size, unscale)
            bits = (x * x).to(tl.int64, bitcast=True)
            exponent = (bits >> 52) & 0x7FF
            mantissa = (bits & _FRACTION) | tl.where(exponent > 0, _IMPLICIT, 0)
            shift = tl.maximum(exponent, 1) - 1075 - last
            left = tl.minimum(tl.maximum(shift, 0), 63)
            right = tl.minimum(tl.maximum(-shift, 0), 63)
            digits += ((mantissa << left) >> right) & mask
            rest |= mantissa - ((mantissa >> right) << right)
        count += size
    return tl.sum(digits, 0), tl.max(rest, 0), count
