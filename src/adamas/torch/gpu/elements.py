"""Elements in memory, in Triton: where they lie, and the numbers that they stand for."""

from __future__ import annotations

import triton.language as tl

from ... import native
from . import codecs
from .jit import jit

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = (tl.constexpr(x) for x in native.DTYPES.values())
# What is loaded for numbers of a dtype, of bfloat16 its bits.
STORED = tl.constexpr((tl.float32, tl.float64, tl.uint16, tl.float16))


@jit
def pointer(address: tl.tensor, T: tl.constexpr, ALIGNMENT: tl.constexpr) -> tl.tensor:
    """A pointer to what lies at an address, which is a multiple of so many bytes."""
    return tl.multiple_of(address.to(tl.pointer_type(T)), ALIGNMENT)


@jit
def load(pointers: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Elements, and zeros beyond the last; None has all of them inside."""
    if inside is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, inside, other=0)


@jit
def number(stored: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """What is computed with: float64, or float32 for all other dtypes."""
    if DTYPE == FLOAT64:
        return stored
    elif DTYPE == BFLOAT16:
        return codecs.from_bfloat16(stored)
    else:
        return stored.to(tl.float32)
