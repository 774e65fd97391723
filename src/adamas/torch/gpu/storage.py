"""What a step reads and writes beside gradients, in Triton: as ``adamas.reference`` does."""

from __future__ import annotations

import triton.language as tl

from ... import native
from . import codecs
from .elements import BFLOAT16, FLOAT16, load, number, pointer
from .jit import jit

# What is loaded for a master's bytes, by how many there are beside a parameter.
BESIDE = tl.constexpr((tl.uint8, tl.uint8, tl.uint16, None, tl.float32))
_FULL, _HALVES, _INT8, _INT4 = (tl.constexpr(x) for x in native.MOMENTS.values())


@jit
def load_weights(
    param: tl.tensor, rest: tl.tensor, inside: tl.tensor, PARAM: tl.constexpr, MASTER: tl.constexpr
) -> tl.tensor:
    """What is trained: the master weight where there is one, else the parameter."""
    stored = load(param, inside)
    if MASTER == codecs.NONE:
        return number(stored, PARAM)
    elif MASTER == codecs.WHOLE:
        # Where the parameter is not its rounding, somebody has set the parameter anew.
        p = load(rest, inside)
        own = p.to(tl.float16).to(tl.uint16, bitcast=True) == stored.to(tl.uint16, bitcast=True)
        return tl.where(own, p, stored.to(tl.float32))
    else:
        return codecs.join(stored, load(rest, inside), MASTER)


@jit
def store_weights(
    p: tl.tensor,
    param: tl.tensor,
    rest: tl.tensor,
    inside: tl.tensor,
    index: tl.tensor,
    t: tl.tensor,
    PARAM: tl.constexpr,
    MASTER: tl.constexpr,
) -> None:
    """The parameter that the model sees, and what is kept beside it."""
    dither = codecs.second_dither(index, t)
    if MASTER == codecs.WHOLE:
        tl.store(param, p.to(tl.float16), inside)
        tl.store(rest, p, inside)
    elif MASTER != codecs.NONE:
        kept, low = codecs.split(p, dither, MASTER)
        tl.store(param, kept, inside)
        tl.store(rest, low, inside)
    elif PARAM == BFLOAT16:
        tl.store(param, codecs.to_bfloat16(p, dither), inside)
    elif PARAM == FLOAT16:
        tl.store(param, codecs.to_float16(p, dither), inside)
    else:
        tl.store(param, p, inside)


@jit
def moments_at(
    first: tl.tensor,
    second: tl.tensor,
    at: tl.tensor,
    scales_at: tl.tensor,
    T: tl.constexpr,
    MOMENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
) -> tl.tuple:
    """Pointers to both moments, or to words and the first of each group's scales."""
    if MOMENTS >= _INT8:
        words = pointer(first, tl.uint16 if MOMENTS == _INT8 else tl.uint8, ALIGNMENT) + at
        return words, pointer(second, tl.uint16, 2) + 3 * scales_at
    else:
        KEPT: tl.constexpr = tl.uint16 if MOMENTS == _HALVES else T
        return pointer(first, KEPT, ALIGNMENT) + at, pointer(second, KEPT, ALIGNMENT) + at


@jit
def load_moments(
    p: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    inside: tl.tensor,
    groups_inside: tl.tensor,
    MOMENTS: tl.constexpr,
    AVERAGES: tl.constexpr,
) -> tl.tuple:
    """Both moments as numbers, of what ``moments_at`` points to; p where there is none."""
    if MOMENTS >= _INT8:
        low, high = load(second, groups_inside), load(second + 1, groups_inside)
        most = load(second + 2, groups_inside)
        bits: tl.constexpr = 8 if MOMENTS == _INT8 else 4
        return codecs.decode(load(first, inside), low, high, most, bits)
    else:
        m = _load_moment(first, inside, MOMENTS) if AVERAGES & 1 else p
        v = _load_moment(second, inside, MOMENTS) if AVERAGES & 2 else p
        return m, v


@jit
def _load_moment(pointers: tl.tensor, inside: tl.tensor, MOMENTS: tl.constexpr) -> tl.tensor:
    stored = load(pointers, inside)
    return codecs.from_bfloat16(stored) if MOMENTS == _HALVES else stored


@jit
def store_moments(
    m: tl.tensor,
    v: tl.tensor,
    grad: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    inside: tl.tensor,
    groups_inside: tl.tensor,
    index: tl.tensor,
    group_index: tl.tensor,
    t: tl.tensor,
    MOMENTS: tl.constexpr,
    AVERAGES: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """Both moments in their format.

    A codec keeps both. Where a rule has only the second, the first is zero; where it has only the
    first, the second is its square.
    """
    if MOMENTS >= _INT8:
        m = m if AVERAGES & 1 else tl.zeros_like(v)
        v = v if AVERAGES & 2 else m * m
        bits: tl.constexpr = 8 if MOMENTS == _INT8 else 4
        words, low, high, most = codecs.encode(m, v, grad, index, group_index, t, bits)
        tl.store(first, words, inside)
        _store_scales(second, low, high, most, groups_inside, GROUPS)
    else:
        if AVERAGES & 1:
            _store_moment(first, m, codecs.second_dither(index, t), inside, MOMENTS)
        if AVERAGES & 2:
            _store_moment(second, v, codecs.first_dither(index, t), inside, MOMENTS)


@jit
def _store_moment(
    pointers: tl.tensor,
    moment: tl.tensor,
    dither: tl.tensor,
    inside: tl.tensor,
    MOMENTS: tl.constexpr,
) -> None:
    kept = codecs.to_bfloat16(moment, dither) if MOMENTS == _HALVES else moment
    tl.store(pointers, kept, inside)


@jit
def _store_scales(
    pointers: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    most: tl.tensor,
    inside: tl.tensor,
    GROUPS: tl.constexpr,
) -> None:
    # Packed, for between the threads that find them and those that store them they go by shared
    # memory, and each time is a barrier.
    packed = low.to(tl.int64) | (high.to(tl.int64) << 16) | (most.to(tl.int64) << 32)
    column = tl.arange(0, 4)[None, :]
    three = tl.reshape(packed, (GROUPS,))[:, None] >> (16 * column)
    kept = column < 3 if inside is None else (column < 3) & inside
    tl.store(pointers + column, three.to(tl.uint16), kept)
