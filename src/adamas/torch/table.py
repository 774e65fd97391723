"""The tensors that the core steps, as its table, kept from step to step while nothing moves."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from .kinds import Kind, by_column, kept, types
from .layout import lies_like
from .overlap import shared
from .recode import State
from .sharding import alike, local, local_like, place_in_whole
from .state import check_grad
from .watch import watch

# The columns of what a step writes, in the order of ``kinds.by_column`` but for the first.
_WRITTEN = (
    native.PARAM,
    native.EXP_AVG,
    native.EXP_AVG_SQ,
    native.MAX_EXP_AVG_SQ,
    native.MASTER,
)


class Table:
    """The rows of parameters that lie dense on the CPU.

    Args:
        params: the parameters.
        states: their states, with tensors that lie as ``check_state`` has them.
        kinds: of each, its formats.
        sets: of each, the number of its set: those of a set share coefficients at equal steps.
        names: of each, what errors call it.

    Attributes:
        states: their states.
        rows: the core's rows; their gradients are those of the last look.
        steps: the parameters' step counts, -1 where there was no gradient.

    Raises:
        ValueError: two of the tensors share memory.
    """

    def __init__(
        self,
        params: list[Tensor],
        states: list[State],
        kinds: list[Kind],
        sets: list[int],
        names: list[str],
    ) -> None:
        self.params, self.states, self._names = params, states, names
        moments = [by_column(kept(p, k)) for p, k in zip(params, kinds, strict=True)]
        self._watch = watch(params, states, moments)
        self.steps = np.zeros(len(params), np.int64)
        self.rows = native.table(len(params))
        self._watch.fill(self.rows)
        parts = [local(p) for p in params]
        self.rows[:, native.SIZE] = [p.numel() * (1 + p.is_complex()) for p in parts]
        self.rows[:, native.COEFFICIENTS] = self.sets = np.array(sets, np.int64)
        self._types = [types(p, k) for p, k in zip(params, kinds, strict=True)]
        self._kinds = kinds
        self.rows[:, native.TYPES] = self._types
        for row, param in zip(self.rows, params, strict=True):
            if (place := place_in_whole(param)) is not None:
                row[[native.OFFSET, native.RUN, native.STRIDE]] = place
        self._bytes = np.array([p.numel() * p.element_size() for p in parts], np.int64)
        self._lows, self._highs = self._spans(moments)
        # For one step: copies of gradients, and which are of another type than their parameter.
        self._copies: dict[int, Tensor] = {}
        self._other: list[int] = []

    def look(self) -> int:
        """Brings the gradients of the rows, and the steps, up to date.

        Returns:
            Bits of ``native``: MOVED where a parameter or its state has moved, and the table is of
            no more use; UNEVEN where the steps are not all the same.

        Raises:
            RuntimeError, TypeError, ValueError: a gradient does not fit its parameter.
        """
        # Without it torch looks for __torch_function__ at each access to a subclass's gradient.
        with torch._C.DisableTorchFunctionSubclass():
            answer = self._watch.look(self.rows, self.steps)
        if answer & native.MOVED:
            return answer
        self.forget()
        if answer & native.STRANGE:
            for i in self._watch.which():
                grad = self._grad(i)
                check_grad(self.params[i], grad, self._names[i])
                self._take(i, grad)
        if answer & (native.STRANGE | native.CHANGED):
            for i in np.flatnonzero(self._across(self.rows[:, native.GRAD])).tolist():
                self._copy(i, self._grad(i))
        return answer

    def forget(self) -> None:
        """Lets go of what the last look has found of gradients."""
        self._copies.clear()
        for i in self._other:
            self.rows[i, native.TYPES] = self._types[i]
        self._other.clear()

    def _grad(self, i: int) -> Tensor:
        grad = self.params[i].grad
        assert grad is not None, "the look has just found it"
        return grad

    def _take(self, i: int, grad: Tensor) -> None:
        """Lets the core read a gradient of another type, or a copy that lies as the parameter."""
        param = self.params[i]
        dtype = self._read_as(grad, param)
        if dtype != param.dtype:
            self.rows[i, native.TYPES] = types(param, self._kinds[i], dtype)
            self._other.append(i)
        where = alike(grad, param) and lies_like(local(grad), local(param))
        if dtype != grad.dtype or not where:
            self._copy(i, grad)

    def _copy(self, i: int, grad: Tensor) -> None:
        dtype = self._read_as(grad, self.params[i])
        grad = local_like(grad, self.params[i])
        dense = grad if grad.layout == torch.strided else grad.to_dense()
        self._copies[i] = torch.empty_like(local(self.params[i]), dtype=dtype).copy_(dense)
        self.rows[i, native.GRAD] = self._copies[i].data_ptr()

    @staticmethod
    def _read_as(grad: Tensor, param: Tensor) -> torch.dtype:
        """The dtype in which the core reads a gradient: its own, or else the parameter's."""
        reals = (torch.float32, torch.bfloat16, torch.float16)
        return grad.dtype if grad.dtype in reals and param.dtype in reals else param.dtype

    def _spans(self, moments: list[tuple[str, ...]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The memory that a step writes: where each piece begins and ends, in order."""
        written = self.rows[:, _WRITTEN]
        sizes = np.zeros_like(written)
        sizes[:, 0] = self._bytes
        for i, (state, keys) in enumerate(zip(self.states, moments, strict=True)):
            for place, key in enumerate(keys, 1):
                if key:
                    part = local(state[key])
                    sizes[i, place] = part.numel() * part.element_size()
        row, column = np.nonzero(written * np.sign(sizes))
        lows = written[row, column]
        order = np.argsort(lows)
        row, column, lows = row[order], column[order], lows[order]
        highs = lows + sizes[row, column]
        for i in np.flatnonzero(highs[:-1] > lows[1:]).tolist():
            one, other = sorted((row[i], row[i + 1]))
            raise shared(self._names[one], self._names[other])
        return lows, highs

    def _across(self, addresses: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which gradients overlap what a step writes."""
        # A piece overlaps if it begins before the gradient's end, but does not end before it.
        sizes = self._bytes.copy()
        for i in self._other:
            sizes[int(i)] = int(self.rows[i, native.SIZE]) * self._grad(i).element_size()
        begun = np.searchsorted(self._lows, addresses + sizes)
        ended = np.searchsorted(self._highs, addresses, "right")
        overlapping: NDArray[np.bool_] = (begun > ended) & (addresses != 0)
        return overlapping
