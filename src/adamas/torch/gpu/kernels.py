"""The step as a Triton kernel: one program a chunk of one tensor.

Every operation rounds on its own (``enable_fp_fusion=False`` at the launch, ``div_rn``,
``sqrt_rn``). Nothing that changes from step to step is a compile-time constant.
"""

from __future__ import annotations

import triton.language as tl

from ... import native
from . import codecs, rules, storage
from .elements import FLOAT32, FLOAT64, STORED, load, number, pointer
from .jit import jit, jit_with

# A chunk's row has the columns of the core's rows, with addresses of its own elements and, in place
# of the types, which a launch has in common, the place of its first element: in the whole tensor,
# where elements lie there as they do here, else in this part of it. Beyond these: its gradient's
# dtype, the row of the table that it is of, and its first element there.
FIRST = tl.constexpr(native.TYPES)
GRAD_DTYPE, ROW, BEGIN = (tl.constexpr(native.COLUMNS + i) for i in range(3))
COLUMNS = tl.constexpr(16)
_PARAM, _GRAD = tl.constexpr(native.PARAM), tl.constexpr(native.GRAD)
_M, _V, _W = (tl.constexpr(native.EXP_AVG + i) for i in range(3))
_MASTER = tl.constexpr(native.MASTER)
_SIZE, _SET = tl.constexpr(native.SIZE), tl.constexpr(native.COEFFICIENTS)
_OFFSET, _RUN = tl.constexpr(native.OFFSET), tl.constexpr(native.RUN)
_STRIDE = tl.constexpr(native.STRIDE)
_GROUP = codecs.GROUP


@jit_with(do_not_specialize=["count", "rows"])
def place_gradients(
    chunks: tl.tensor, placed: tl.tensor, count: tl.tensor, rows: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Tells chunks where their gradients lie, and which coefficients are theirs.

    Each program tells those whose squares ``squares.sum_share`` has it add up.

    Args:
        chunks: (count, 16) int64.
        placed: (2, rows) int64, of the table's rows the gradient's address, 0 for none, and the
            coefficients' index.
        count: of chunks.
        rows: of the table.
        BLOCK: chunks that a program tells at a time.
    """
    programs = tl.num_programs(0)
    for first in range(tl.program_id(0), count, programs * BLOCK):
        at = first + tl.arange(0, BLOCK) * programs
        inside = at < count
        chunk = chunks + at.to(tl.int64) * COLUMNS
        row = tl.load(chunk + ROW, inside, other=0)
        dtype = tl.load(chunk + GRAD_DTYPE, inside, other=0)
        size = tl.where(dtype == FLOAT64, 8, tl.where(dtype == FLOAT32, 4, 2))
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
    RULE: tl.constexpr,
    AVERAGES: tl.constexpr,
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
        RULE: its number in ``native.RULES``.
        AVERAGES: which of its three there are, in bits from the lowest on.
        USUAL: whether ``rules.gradient`` may leave out what is seldom used.
        WHOLE: whether elements have the same positions in their whole tensor.
        ALIGNMENT: of all addresses, in bytes.
        GROUPS: of 64 elements that are stepped at a time.
    """
    # What blocks have in common is loaded once: the compiler cannot know that no block writes it.
    addresses, place, size, index = _read(chunks + tl.program_id(0).to(tl.int64) * COLUMNS)
    if (addresses[_GRAD] == 0) | (tl.load(skip) != 0):
        size = 0
    T: tl.constexpr = tl.float64 if PARAM == FLOAT64 else tl.float32
    c = rules.load_coefficients(coefficients + index * rules.COEFFICIENTS, T)
    block: tl.constexpr = GROUPS * codecs.GROUP
    whole_blocks = size // block * block
    for start in range(0, whole_blocks, block):
        _step_block(
            addresses, place, c, start, size, PARAM, GRAD, MOMENTS, MASTER, RULE, AVERAGES,
            USUAL, WHOLE, ALIGNMENT, GROUPS, False,
        )  # fmt: skip
    if whole_blocks < size:
        _step_block(
            addresses, place, c, whole_blocks, size, PARAM, GRAD, MOMENTS, MASTER, RULE, AVERAGES,
            USUAL, WHOLE, ALIGNMENT, GROUPS, True,
        )  # fmt: skip


@jit
def _read(row: tl.tensor) -> tl.tuple:
    """A chunk's addresses, its place in the whole tensor, its size and its coefficients' index."""
    addresses = (
        tl.load(row + _PARAM),
        tl.load(row + _GRAD),
        tl.load(row + _M),
        tl.load(row + _V),
        tl.load(row + _W),
        tl.load(row + _MASTER),
    )
    place = (
        tl.load(row + FIRST),
        tl.load(row + _OFFSET),
        tl.load(row + _RUN),
        tl.load(row + _STRIDE),
    )
    return addresses, place, tl.load(row + _SIZE).to(tl.int32), tl.load(row + _SET)


@jit
def _step_block(
    addresses: tl.tuple,
    place: tl.tuple,
    c: tl.tuple,
    start: tl.tensor,
    size: tl.tensor,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENTS: tl.constexpr,
    MASTER: tl.constexpr,
    RULE: tl.constexpr,
    AVERAGES: tl.constexpr,
    USUAL: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    GROUPS: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    """Steps the elements of a chunk from ``start`` on, as many as a block has or there are."""
    T: tl.constexpr = tl.float64 if PARAM == FLOAT64 else tl.float32
    groups = tl.arange(0, GROUPS)[:, None]
    at = start + groups * _GROUP + tl.arange(0, _GROUP)[None, :]
    scales_at = start // _GROUP + groups
    inside = at < size if MASKED else None
    groups_inside = scales_at * _GROUP < size if MASKED else None
    index, group_index = _indices(place, start, at, groups, WHOLE)
    param = pointer(addresses[_PARAM], STORED[PARAM], ALIGNMENT) + at
    rest = pointer(addresses[_MASTER], storage.BESIDE[MASTER // 8], ALIGNMENT) + at
    first, second = storage.moments_at(
        addresses[_M], addresses[_V], at, scales_at, T, MOMENTS, ALIGNMENT
    )
    third = pointer(addresses[_W], T, ALIGNMENT) + at

    p = storage.load_weights(param, rest, inside, PARAM, MASTER)
    g = number(load(pointer(addresses[_GRAD], STORED[GRAD], ALIGNMENT) + at, inside), GRAD)
    m, v = storage.load_moments(p, first, second, inside, groups_inside, MOMENTS, AVERAGES)
    w = load(third, inside) if AVERAGES & 4 else p
    p, m, v, w = rules.step(p, g, m, v, w, c, RULE, AVERAGES, USUAL)
    storage.store_moments(
        m, v, g, first, second, inside, groups_inside, index, group_index, c.step,
        MOMENTS, AVERAGES, GROUPS,
    )  # fmt: skip
    if AVERAGES & 4:
        tl.store(third, w, inside)
    storage.store_weights(p, param, rest, inside, index, c.step, PARAM, MASTER)


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
