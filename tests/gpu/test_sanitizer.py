"""What watches the kernels sees what they must not do, and that ``prepare`` does none of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from devices import REAL
from launching import CHUNK, arguments, launch, random
from sanitizer import watching
from torch import nn
from torch.nn.parameter import is_lazy
from triton import language as tl

from adamas.torch.gpu.jit import jit, jit_with

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REAL, reason="watches what is interpreted"),
]

PROGRAMS = 4


@pytest.fixture(autouse=True)
def sanitized() -> None:
    """Instead of the one for all tests: here each test watches what it is to."""


@jit
def pass_on(
    data: tl.tensor, counter: tl.tensor, BARRIER: tl.constexpr, SEM: tl.constexpr,
    SCOPE: tl.constexpr, BY_COUNT: tl.constexpr, LAST: tl.constexpr,
) -> None:  # fmt: skip
    """Each program writes a number, and one of them reads all of them."""
    tl.store(data + tl.program_id(0), tl.program_id(0))
    if BARRIER:
        tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem=SEM, scope=SCOPE)
    if (before if BY_COUNT else tl.program_id(0)) == LAST:
        total = tl.sum(tl.load(data + tl.arange(0, 4)), 0)
        tl.debug_barrier()
        tl.store(data, total)


@jit
def count(
    counter: tl.tensor, FIRST: tl.constexpr, RESULT: tl.constexpr, AGAIN: tl.constexpr
) -> None:
    """One program begins or ends with nothing counted."""
    if FIRST and tl.program_id(0) == 0:
        tl.store(counter, 0)
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1)
    if AGAIN:
        before = tl.atomic_add(counter, 0)
    if (before + 1 if RESULT else tl.load(counter)) == tl.num_programs(0):
        tl.store(counter, 0)


@jit
def look_round(data: tl.tensor, counter: tl.tensor, LAST: tl.constexpr) -> None:
    """Each program reads all numbers, and one of them writes over them."""
    total = tl.sum(tl.load(data + tl.arange(0, 4)), 0)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1) == LAST:
        tl.store(data, total)


@jit
def shift(data: tl.tensor, BARRIER: tl.constexpr) -> None:
    """Writes numbers, and reads them in another order."""
    at = tl.arange(0, 4)
    tl.store(data + at, at)
    if BARRIER:
        tl.debug_barrier()
    tl.store(data + 4 + at, tl.load(data + 3 - at))


@jit
def fill(data: tl.tensor, FIRST: tl.constexpr, STRIDE: tl.constexpr, COUNT: tl.constexpr) -> None:
    """Writes some of eight numbers."""
    at = tl.arange(0, 8)
    tl.store(data + FIRST + at * STRIDE, at, at < COUNT)


@jit_with(do_not_specialize_on_alignment=["anywhere"])
def claim(there: tl.tensor, anywhere: tl.tensor, AHEAD: tl.constexpr) -> None:
    """Says of an address what is true of one that is so many bytes ahead."""
    address = (anywhere.to(tl.int64) + AHEAD).to(tl.pointer_type(tl.int32))
    tl.store(there, tl.load(tl.multiple_of(address, 16)))


def ints(count: int = 8, after: int = 0) -> torch.Tensor:
    return torch.zeros(count + after, dtype=torch.int32)[after:]


PASSED = True, "acq_rel", "gpu"
LATER = PROGRAMS - 1
ALLOWED: dict[str, Callable[[], Any]] = {
    "signalled": lambda: pass_on[PROGRAMS,](ints(), ints(), *PASSED, True, LATER),
    "read before the signal": lambda: look_round[PROGRAMS,](ints(), ints(), LATER),
    "counted, and begun anew": lambda: count[PROGRAMS,](ints(), False, True, False),
    "behind a barrier": lambda: shift[1,](ints(), True),
    "all of it": lambda: fill[1,](ints(), 0, 1, 8),
    "a part": lambda: fill[1,](ints(3), 0, 1, 3),
    "aligned": lambda: claim[1,](ints(), ints(after=3), 4),
}
WROTE, READ, THREAD = (
    f"another {who} may not have {done}"
    for who, done in [("program", "written"), ("program", "read"), ("thread", "written")]
)
FORBIDDEN: dict[str, tuple[Callable[[], Any], str]] = {
    "no barrier": (
        lambda: pass_on[PROGRAMS,](ints(), ints(), False, *PASSED[1:], True, LATER),
        f"read what {WROTE}",
    ),
    "an order of nothing else": (
        lambda: pass_on[PROGRAMS,](ints(), ints(), True, "relaxed", "gpu", True, LATER),
        f"read what {WROTE}",
    ),
    "an order within the program": (
        lambda: pass_on[PROGRAMS,](ints(), ints(), True, "acq_rel", "cta", True, LATER),
        f"read what {WROTE}",
    ),
    "the first to be done": (
        lambda: pass_on[PROGRAMS,](ints(), ints(), *PASSED, True, 0),
        f"written what {READ}",
    ),
    "the last by number": (
        lambda: pass_on[PROGRAMS,](ints(), ints(), *PASSED, False, LATER),
        f"written what {READ}",
    ),
    "written before others read": (
        lambda: look_round[PROGRAMS,](ints(), ints(), 0),
        f"read what {WROTE}",
    ),
    "a counter that one begins": (
        lambda: count[PROGRAMS,](ints(), True, True, False),
        "written what another program may change",
    ),
    "a counter that is read": (
        lambda: count[PROGRAMS,](ints(), False, False, False),
        f"changed what {READ}",
    ),
    "two signals": (lambda: count[PROGRAMS,](ints(), False, True, True), "not followed"),
    "within a program": (lambda: shift[1,](ints(), False), f"read what {THREAD}"),
    "by two programs": (lambda: fill[2,](ints(), 0, 1, 8), f"written what {WROTE}"),
    "twice": (lambda: fill[1,](ints(), 0, 0, 2), "two elements are written to one place"),
    "behind the last": (lambda: fill[1,](ints(7), 0, 1, 8), "outside of all tensors"),
    "before the first": (lambda: fill[1,](ints(), -8, 1, 8), "outside of all tensors"),
    "not aligned": (lambda: claim[1,](ints(), ints(after=2), 4), "no multiple of 16"),
    "a part of an element": (lambda: claim[1,](ints(), ints(after=3), 5), "no multiple of"),
    "a tensor not aligned": (lambda: claim[1,](ints(after=1), ints(after=3), 4), "there begins"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_programs_may_do(name: str) -> None:
    with watching():
        ALLOWED[name]()


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_programs_must_not_do(name: str) -> None:
    run, message = FORBIDDEN[name]
    with watching(), pytest.raises(Exception, match=message):
        run()


@pytest.mark.parametrize(
    "options",
    [
        {"moved": True, "device_steps": True},
        {"moved": True, "norm": True, "grad_scale": 3.0},
        {"moved": True, "norm": True, "device_steps": True, "found_inf": 1.0},
        {"moved": True, "skip_nonfinite": True, "device_steps": True},
    ],
)
def test_programs_of_a_step_do_not_race(options: dict[str, Any]) -> None:
    """What one finds out, all others' part of it, is read once it is there."""
    sizes = 3 * CHUNK + 5, *range(140)
    grads = [random(n, "bfloat16", -2, 3) for n in sizes]
    given = arguments(grads, rows=len(grads))
    given["placed"][0] = torch.tensor([grad.data_ptr() for grad in grads])
    with watching():
        launch(given, multiprocessors=2, **options)


def test_memory_is_whose_it_is_now() -> None:
    """Not of tensors that were there before."""
    room = np.zeros(16, np.int32)
    before = [torch.from_numpy(room[4:6])]
    with watching():
        before.clear()
        fill[1,](torch.from_numpy(room[:8]), 0, 1, 8)
    before = [torch.from_numpy(room)]
    with watching():
        before.clear()
        with pytest.raises(Exception, match="outside of all tensors"):
            fill[1,](torch.from_numpy(room[:7]), 0, 1, 8)


def test_kinds_of_tensors_without_memory_are_none() -> None:
    """Those of others' tests may still be there."""
    lazy = nn.LazyLinear(3)
    with watching():
        fill[1,](ints(), 0, 1, 8)
    assert is_lazy(lazy.weight)
