"""Watches what interpreted kernels do with memory, for what would go wrong where programs overlap.

The interpreter runs one program after another, and each as if it were one thread, so that a kernel
that relies on this has the right bits there. Under ``watching`` they run from the last to the first
and each byte remembers who used it, so that these hold:

- An access lies in one tensor's memory, at a multiple of its size, and an address is a multiple of
  what the kernel says that it is.
- What a program writes, no other reads or writes, unless the one passes a barrier and then signals,
  and the other has been signalled. To signal and to be signalled is one atomic operation that
  orders what is before it and after it on the device; no other access to its place is safe.
- What a program has written, it neither reads nor writes again before a barrier, as elements of a
  block may be another thread's each time.

Not found is a thread that writes what another thread of its program has yet to read, which is safe
where what it writes depends on that; an overrun from one tensor into another; and what only other
orders of programs would show. An atomic operation is taken for a barrier, which Triton makes of one
whose result is used; more than one a program, and those that compare, are not followed.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triton._C.libtriton import ir
from triton.runtime import interpreter

ORDERED, OF_PROGRAM = ir.MEM_SEMANTIC.ACQUIRE_RELEASE, ir.MEM_SYNC_SCOPE.CTA
NEVER = -1  # a program that has not signalled: nothing was done in a phase before


class Uses(NamedTuple):
    """Of each byte, the last that have written or read it."""

    program: np.ndarray
    """Its number and 1, or 0 for nobody."""
    phase: np.ndarray
    """How many barriers it had come to."""


class Memory:
    """The memory of tensors during a launch, and the program that runs.

    Args:
        tensors: those on the CPU.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        sizes = dict(sorted(_storages(tensors)))
        self._begins = np.array(list(sizes), np.int64)
        self._ends = self._begins + np.array(list(sizes.values()), np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._ends - self._begins)])
        self._written, self._read, self._atomic = (
            Uses(*(np.zeros(self._firsts[-1], np.int32) for _ in Uses._fields)) for _ in range(3)
        )
        self._unordered = np.zeros(self._firsts[-1], bool)  # read by one that then did not signal
        self._signals: list[int] = []  # of each program its phase when it did
        self._phase, self._signalled = 0, False

    def begin(self) -> None:
        """Another program."""
        self._phase, self._signalled = 0, False
        self._signals.append(NEVER)

    def barrier(self) -> None:
        self._phase += 1

    def signal(self, pointers: Any, mask: Any, ordered: bool) -> None:
        """An atomic operation."""
        at = self._at(pointers, mask)
        self._check_written(at, "changed")
        self._check_read(at, "changed")
        if self._signals[-1] != NEVER:
            _fail("a second atomic operation is not followed")
        if ordered:
            self._signals[-1], self._signalled = self._phase, True
        self._note(self._atomic, at, self._phase - ordered)
        self._phase += 1  # its result comes to all threads

    def read(self, pointers: Any, mask: Any) -> None:
        at = self._at(pointers, mask)
        self._check_written(at, "read")
        self._check_atomic(at, "read")
        read = self._read
        self._unordered[at[self._others(read, at) & ~self._released(read, at)]] = True
        self._note(read, at, self._phase)

    def write(self, pointers: Any, mask: Any) -> None:
        at = self._at(pointers, mask)
        if len(np.unique(at)) != len(at):
            _fail("two elements are written to one place")
        self._check_written(at, "written")
        self._check_atomic(at, "written")
        self._check_read(at, "written")
        self._note(self._written, at, self._phase)

    def _at(self, pointers: Any, mask: Any) -> np.ndarray:
        """Which bytes an access uses."""
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = np.atleast_1d(pointers.data).astype(np.int64)
        addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
        storage = np.searchsorted(self._begins, addresses, "right") - 1
        if (addresses % width).any():
            _fail(f"an address is no multiple of {width}")
        if (storage < 0).any() or (addresses + width > self._ends[storage]).any():
            _fail("an address is outside of all tensors")
        first = self._firsts[storage] + addresses - self._begins[storage]
        return (first[:, None] + np.arange(width)).reshape(-1)

    def _note(self, uses: Uses, at: np.ndarray, phase: int) -> None:
        uses.program[at], uses.phase[at] = len(self._signals), phase

    def _check_written(self, at: np.ndarray, now: str) -> None:
        written = self._written
        if ((written.program[at] == len(self._signals)) & (written.phase[at] == self._phase)).any():
            _fail(f"{now} what another thread may not have written yet")
        if self._in_doubt(written, at):
            _fail(f"{now} what another program may not have written yet")

    def _check_read(self, at: np.ndarray, now: str) -> None:
        if self._unordered[at].any() or self._in_doubt(self._read, at):
            _fail(f"{now} what another program may not have read yet")

    def _check_atomic(self, at: np.ndarray, now: str) -> None:
        if self._in_doubt(self._atomic, at):
            _fail(f"{now} what another program may change yet")

    def _in_doubt(self, uses: Uses, at: np.ndarray) -> bool:
        """Whether other programs' uses may be still to come."""
        certain = self._released(uses, at) & self._signalled
        return bool((self._others(uses, at) & ~certain).any())

    def _others(self, uses: Uses, at: np.ndarray) -> Any:
        return (uses.program[at] != 0) & (uses.program[at] != len(self._signals))

    def _released(self, uses: Uses, at: np.ndarray) -> Any:
        """Whether what was done to bytes was done before a barrier before a signal."""
        return uses.phase[at] < np.array([NEVER, *self._signals])[uses.program[at]]


def _storages(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """Where the memory of tensors and their gradients begins, and how many bytes it has."""
    with torch._C.DisableTorchFunctionSubclass():  # whatever kinds make of it
        for leaf in tensors:
            for tensor in (leaf, leaf.grad):  # which Python need not have seen
                with suppress(RuntimeError, NotImplementedError):  # one without memory
                    if tensor is not None and tensor.device.type == "cpu":
                        storage = tensor.untyped_storage()
                        yield storage.data_ptr(), storage.nbytes()


def _tensors() -> list[Tensor]:
    """All that the collector knows, but for what is computed of others for backward."""
    kinds = _and_below(Tensor)
    with torch._C.DisableTorchFunctionSubclass():
        return [thing for thing in gc.get_objects() if type(thing) in kinds and thing.is_leaf]


def _and_below(kind: type) -> set[type]:
    return {kind}.union(*map(_and_below, kind.__subclasses__()))


def _fail(what: str) -> None:
    """Says what is wrong, and which line of which kernel does it."""
    frame = sys._getframe()
    while "triton" in (file := frame.f_code.co_filename) or file == __file__:
        assert frame.f_back
        frame = frame.f_back
    raise AssertionError(f"{file}:{frame.f_lineno}: {what}")


@contextmanager
def watching() -> Iterator[None]:
    """Lets kernels that are interpreted fail where they do with memory what they should not."""
    memory, before = Memory(), [weakref.ref(tensor) for tensor in _tensors()]
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    change, barrier = builder.create_atomic_rmw, builder.create_barrier
    place, claim = builder.set_grid_idx, interpreter.TensorHandle.set_attr
    run = interpreter.InterpretedFunction.run

    def watched_run(self: Any, *args: Any, **options: Any) -> None:
        nonlocal memory
        there = (tensor for reference in before if (tensor := reference()) is not None)
        memory = Memory([*there, *_tensors()])
        of_any = self.kwargs.get("do_not_specialize_on_alignment") or ()
        for name, arg in zip(self.arg_names, args, strict=False):
            if isinstance(arg, Tensor) and name not in of_any and arg.data_ptr() % 16:
                raise AssertionError(f"{name} begins at no multiple of 16")
        run(self, *args, **options)

    def watched_place(self: Any, x: int, *zeros: int) -> None:
        memory.begin()
        place(self, self.grid_dim[0] - 1 - x, *zeros)

    def watched_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        memory.read(pointers, mask)
        return load(self, pointers, mask, *rest)

    def watched_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.write(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def watched_change(
        self: Any, what: Any, pointers: Any, value: Any, mask: Any, *how: Any
    ) -> Any:
        semantics, scope = how
        memory.signal(pointers, mask, semantics == ORDERED and scope != OF_PROGRAM)
        return change(self, what, pointers, value, mask, *how)

    def watched_barrier(self: Any) -> None:
        memory.barrier()
        barrier(self)

    def watched_claim(self: Any, name: str, value: Any) -> None:
        if name == "tt.divisibility" and (self.data.astype(np.int64) % value).any():
            _fail(f"an address is no multiple of {value[0]}")
        claim(self, name, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", watched_load)
        patch.setattr(builder, "create_masked_store", watched_store)
        patch.setattr(builder, "create_atomic_rmw", watched_change)
        patch.setattr(builder, "create_barrier", watched_barrier)
        patch.setattr(builder, "set_grid_idx", watched_place)
        patch.setattr(interpreter.InterpretedFunction, "run", watched_run)
        patch.setattr(interpreter.TensorHandle, "set_attr", watched_claim)
        gc.freeze()  # what is there now is not looked through again and again
        try:
            yield
        finally:
            gc.unfreeze()
