"""The step as a Triton kernel: one program a chunk of one tensor.

Every operation rounds on its own (``enable_fp_fusion=False`` at the launch, ``div_rn``,
``sqrt_rn``). Nothing that changes from step to step is a compile-time constant.
"""

from __future__ import annotations

import triton.language as tl

from ... import native
from . import codecs
from .jit import jit, jit_with
from .rules import COEFFICIENTS, adam, load_coefficients, load_step

# A chunk's row has the columns of the core's rows, with addresses of its own elements and, in place
# of the types, which a launch has in common, the place of its first element: in the whole tensor,
# where elements lie there as they do here, else in this part of it. Beyond these: its gradient's
# dtype, the row of the table that it is of, and its first element there.
FIRST = tl.constexpr(native.TYPES)
GRAD_DTYPE, ROW, BEGIN = (tl.constexpr(native.COLUMNS + i) for i in range(3))
COLUMNS = tl.constexpr(16)
_PARAM, _GRAD = tl.constexpr(native.PARAM), tl.constexpr(native.GRAD)
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(native.EXP_AVG), tl.constexpr(native.EXP_AVG_SQ)
_MAXIMUM, _MASTER = tl.constexpr(native.MAX_EXP_AVG_SQ), tl.constexpr(native.MASTER)
_SIZE, _SET = tl.constexpr(native.SIZE), tl.constexpr(native.COEFFICIENTS)
_OFFSET, _RUN = tl.constexpr(native.OFFSET), tl.constexpr(native.RUN)
_STRIDE = tl.constexpr(native.STRIDE)

_FLOAT32, _FLOAT64, _BFLOAT16, _FLOAT16 = (tl.constexpr(x) for x in native.DTYPES.values())
_FULL, _HALVES, _INT8, _INT4 = (tl.constexpr(x) for x in native.MOMENTS.values())
_GROUP = codecs.GROUP

# What is loaded for numbers of a dtype, of bfloat16 its bits, and beside them for a master's bytes.
_STORED = tl.constexpr((tl.float32, tl.float64, tl.uint16, tl.float16))
_BESIDE = tl.constexpr((tl.uint8, tl.uint8, tl.uint16, None, tl.float32))


@jit_with(do_not_specialize=["count", "rows"])
def place_gradients(
    chunks: tl.tensor, placed: tl.tensor, count: tl.tensor, rows: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Tells chunks where their gradients lie, and which coefficients are theirs.

    Args:
        chunks: (count, 16) int64.
        placed: (2, rows) int64, of the table's rows the gradient's address, 0 for none, and the
            coefficients' index.
        count: of chunks.
        rows: of the table.
        BLOCK: chunks a program.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    chunk = chunks + at.to(tl.int64) * COLUMNS
    row = tl.load(chunk + ROW, inside, other=0)
    dtype = tl.load(chunk + GRAD_DTYPE, inside, other=0)
    size = tl.where(dtype == _FLOAT64, 8, tl.where(dtype == _FLOAT32, 4, 2))
    address = tl.load(placed + row, inside, other=0)
    begin = tl.load(chunk + BEGIN, inside, other=0)
    tl.store(chunk + _GRAD, tl.where(address != 0, address + begin * size, 0), inside)
    tl.store(chunk + _SET, tl.load(placed + rows + row, inside, other=0), inside)


@jit
def step_chunk(
    chunks: tl.tensor,
    coefficients: tl.tensor,
    skip: tl.tensor,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTS: tl.constexpr,
    MASTER: tl.constexpr,
    AMSGRAD: tl.constexpr,
    USUAL: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """Steps one chunk.

    Args:
        chunks: (chunks, 16) int64.
        coefficients: (sets, 13) float64.
        skip: int32, 1 where nothing is to be done.
        PARAM: the parameter's dtype and
        GRAD: its gradient's, numbers of ``native.DTYPES``.
        MOMENTS: their format's number in ``native.MOMENTS``.
        MASTER: bits beside the parameter, as ``native.types`` has them.
        AMSGRAD: whether there is a maximum.
        USUAL: whether ``rules.adam`` may leave out what is seldom used.
        WHOLE: whether elements have the same positions in their whole tensor.
        ALIGNMENT: of all addresses, in bytes.
        GROUPS: of 64 elements that are stepped at a time.
    """
    row = chunks + tl.program_id(0).to(tl.int64) * COLUMNS
    size = tl.load(row + _SIZE).to(tl.int32)
    grad = tl.load(row + _GRAD)
    if (grad == 0) | (tl.load(skip) != 0):
        size = 0
    # What blocks have in common is loaded once: the compiler cannot know that no block writes it.
    addresses = (
        tl.load(row + _PARAM),
        grad,
        tl.load(row + _EXP_AVG),
        tl.load(row + _EXP_AVG_SQ),
        tl.load(row + _MAXIMUM),
        tl.load(row + _MASTER),
    )
    place = (
        tl.load(row + FIRST),
        tl.load(row + _OFFSET),
        tl.load(row + _RUN),
        tl.load(row + _STRIDE),
    )
    of_set = coefficients + tl.load(row + _SET) * COEFFICIENTS
    c = load_coefficients(of_set, tl.float64 if PARAM == _FLOAT64 else tl.float32)
    t = load_step(of_set)
    block: tl.constexpr = GROUPS * _GROUP
    whole_blocks = size // block * block
    for start in range(0, whole_blocks, block):
        _step_block(
            addresses, place, c, t, start, size,
            PARAM, GRAD, MOMENTS, MASTER, AMSGRAD, USUAL, WHOLE, ALIGNMENT, GROUPS, False,
        )  # fmt: skip
    if whole_blocks < size:
        _step_block(
            addresses, place, c, t, whole_blocks, size,
            PARAM, GRAD, MOMENTS, MASTER, AMSGRAD, USUAL, WHOLE, ALIGNMENT, GROUPS, True,
        )  # fmt: skip


@jit
def _step_block(
    addresses: tl.tuple,
    place: tl.tuple,
    c: tl.tuple,
    t: tl.tensor,
    start: tl.tensor,
    size: tl.tensor,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTS: tl.constexpr,
    MASTER: tl.constexpr,
    AMSGRAD: tl.constexpr,
    USUAL: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    GROUPS: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    """Steps the elements of a chunk from ``start`` on, as many as a block has or there are."""
    T: tl.constexpr = tl.float64 if PARAM == _FLOAT64 else tl.float32
    groups = tl.arange(0, GROUPS)[:, None]
    at = start + groups * _GROUP + tl.arange(0, _GROUP)[None, :]
    scales_at = start // _GROUP + groups
    inside = at < size if MASKED else None
    groups_inside = scales_at * _GROUP < size if MASKED else None
    index, group_index = _indices(place, start, at, groups, WHOLE)

    param = _pointer(addresses[0], _STORED[PARAM], ALIGNMENT) + at
    rest_at = _pointer(addresses[5], _BESIDE[MASTER // 8], ALIGNMENT) + at
    stored = _load(param, inside)
    p = _number(stored, stored if MASTER == codecs.NONE else _load(rest_at, inside), PARAM, MASTER)
    g = _load(_pointer(addresses[1], _STORED[GRAD], ALIGNMENT) + at, inside)
    g = _number(g, g, GRAD, codecs.NONE)

    CODED: tl.constexpr = MOMENTS >= _INT8
    BITS: tl.constexpr = 8 if MOMENTS == _INT8 else 4
    KEPT: tl.constexpr = T if MOMENTS == _FULL else (tl.uint8 if MOMENTS == _INT4 else tl.uint16)
    first_at = _pointer(addresses[2], KEPT, ALIGNMENT) + at
    if CODED:
        scales = _pointer(addresses[3], tl.uint16, 2) + 3 * scales_at
        low, high = _load(scales, groups_inside), _load(scales + 1, groups_inside)
        most = _load(scales + 2, groups_inside)
        m, v = codecs.decode(_load(first_at, inside), low, high, most, BITS)
    else:
        second_at = _pointer(addresses[3], KEPT, ALIGNMENT) + at
        m, v = _load(first_at, inside), _load(second_at, inside)
        if MOMENTS == _HALVES:
            m, v = codecs.from_bfloat16(m), codecs.from_bfloat16(v)
    maximum_at = _pointer(addresses[4], T, ALIGNMENT) + at
    v_max = _load(maximum_at, inside) if AMSGRAD else v

    p, m, v, v_max = adam(p, g, m, v, v_max, c, AMSGRAD, USUAL)

    if AMSGRAD:
        tl.store(maximum_at, v_max, inside)
    if CODED:
        words, low, high, most = codecs.encode(m, v, g, index, group_index, t, BITS)
        tl.store(first_at, words, inside)
        _store_scales(addresses[3], low, high, most, scales_at, size, GROUPS)
    else:
        if MOMENTS == _HALVES:
            m = codecs.to_bfloat16(m, codecs.second_dither(index, t))
            v = codecs.to_bfloat16(v, codecs.first_dither(index, t))
        tl.store(first_at, m, inside)
        tl.store(second_at, v, inside)
    if MASTER == codecs.NONE:
        tl.store(param, _rounded(p, index, t, PARAM), inside)
    elif MASTER == codecs.WHOLE:
        tl.store(param, p.to(tl.float16), inside)
        tl.store(rest_at, p, inside)
    else:
        kept, rest = codecs.split(p, codecs.second_dither(index, t), MASTER)
        tl.store(param, kept, inside)
        tl.store(rest_at, rest, inside)


@jit
def _store_scales(
    address: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    most: tl.tensor,
    scales_at: tl.tensor,
    size: tl.tensor,
    GROUPS: tl.constexpr,
) -> None:
    # Packed, for between the threads that find them and those that store them they go by shared
    # memory, and each time is a barrier.
    packed = low.to(tl.int64) | (high.to(tl.int64) << 16) | (most.to(tl.int64) << 32)
    column = tl.arange(0, 4)[None, :]
    three = tl.reshape(packed, (GROUPS,))[:, None] >> (16 * column)
    inside = (column < 3) & (scales_at * _GROUP < size)
    at = _pointer(address, tl.uint16, 2) + 3 * scales_at + column
    tl.store(at, three.to(tl.uint16), inside)


@jit
def _indices(
    place: tl.tuple,
    start: tl.tensor,
    at: tl.tensor,
    groups: tl.tensor,
    WHOLE: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """The positions in the whole tensor of elements and of groups' first ones, to 32 bits."""
    first, offset, run, stride = place
    if WHOLE:
        # The dithers of elements come round after a group.
        index = tl.arange(0, _GROUP)[None, :].to(tl.uint32)
        group_index = (first + start).to(tl.uint32) + (groups * _GROUP).to(tl.uint32)
    else:
        k = first + at
        index = (offset + k // run * stride + k % run).to(tl.uint32)
        k = first + start + groups * _GROUP
        group_index = (offset + k // run * stride + k % run).to(tl.uint32)
    return index, group_index


@jit
def _pointer(address: tl.tensor, T: tl.constexpr, ALIGNMENT: tl.constexpr) -> tl.tensor:
    return tl.multiple_of(address.to(tl.pointer_type(T)), ALIGNMENT)


@jit
def _load(pointers: tl.tensor, inside: tl.tensor) -> tl.tensor:
    if inside is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, inside, other=0)


@jit
def _number(
    stored: tl.tensor, rest: tl.tensor, DTYPE: tl.constexpr, MASTER: tl.constexpr
) -> tl.tensor:
    """What is computed with: the master weight where there is one."""
    if MASTER == codecs.WHOLE:
        # Where the parameter is not its rounding, somebody has set the parameter anew.
        own = rest.to(tl.float16).to(tl.uint16, bitcast=True) == stored.to(tl.uint16, bitcast=True)
        return tl.where(own, rest, stored.to(tl.float32))
    elif MASTER != codecs.NONE:
        return codecs.join(stored, rest, MASTER)
    elif DTYPE == _BFLOAT16:
        return codecs.from_bfloat16(stored)
    elif DTYPE == _FLOAT16:
        return stored.to(tl.float32)
    else:
        return stored


@jit
def _rounded(p: tl.tensor, index: tl.tensor, t: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """A weight without a master, as it is stored."""
    if DTYPE == _BFLOAT16:
        return codecs.to_bfloat16(p, codecs.second_dither(index, t))
    elif DTYPE == _FLOAT16:
        return codecs.to_float16(p, codecs.second_dither(index, t))
    else:
        return p
