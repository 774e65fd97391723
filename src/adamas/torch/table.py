"""The tensors that the core steps, as its table, kept from step to step while nothing moves."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from .layout import COMPUTE, lies_like
from .sharding import alike, local, local_like
from .state import State, check_grad
from .watch import watch

_WRITTEN = (native.PARAM, native.EXP_AVG, native.EXP_AVG_SQ, native.MAX_EXP_AVG_SQ)


class Table:
    """The rows of parameters that lie dense on the CPU.

    Args:
        params: the parameters.
        states: their states, with moments that lie as they do.
        moments: of each, the keys of the moments in its state.
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
        moments: list[tuple[str, ...]],
        sets: list[int],
        names: list[str],
    ) -> None:
        self.params, self.states, self._names = params, states, names
        self._watch = watch(params, states, moments)
        self.steps = np.zeros(len(params), np.int64)
        self.rows = native.table(len(params))
        self._watch.fill(self.rows)
        parts = [local(p) for p in params]
        self.rows[:, native.SIZE] = [p.numel() * (1 + p.is_complex()) for p in parts]
        self.rows[:, native.COEFFICIENTS] = self.sets = np.array(sets, np.int64)
        self.rows[:, native.TYPES] = [native.types(COMPUTE[p.dtype]) for p in params]
        self._bytes = np.array([p.numel() * p.element_size() for p in parts], np.int64)
        self._lows, self._highs = self._spans()
        self._copies: dict[int, Tensor] = {}  # of gradients, for one step

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
                if not self._fits(i, grad):
                    self._copy(i, grad)
        if answer & (native.STRANGE | native.CHANGED):
            for i in np.flatnonzero(self._across(self.rows[:, native.GRAD])).tolist():
                self._copy(i, self._grad(i))
        return answer

    def forget(self) -> None:
        """Lets go of the copies of gradients that the last look has made."""
        self._copies.clear()

    def _grad(self, i: int) -> Tensor:
        grad = self.params[i].grad
        assert grad is not None, "the look has just found it"
        return grad

    def _fits(self, i: int, grad: Tensor) -> bool:
        param = self.params[i]
        return (
            grad.dtype == param.dtype
            and alike(grad, param)
            and lies_like(local(grad), local(param))
        )

    def _copy(self, i: int, grad: Tensor) -> None:
        """Lets the core read a copy that lies as the parameter does."""
        grad = local_like(grad, self.params[i])
        dense = grad if grad.layout == torch.strided else grad.to_dense()
        self._copies[i] = torch.empty_like(local(self.params[i])).copy_(dense)
        self.rows[i, native.GRAD] = self._copies[i].data_ptr()

    def _spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The memory that a step writes: where each piece begins and ends, in order."""
        written = self.rows[:, _WRITTEN]
        row, column = np.nonzero(written * np.sign(self._bytes)[:, None])
        lows = written[row, column]
        order = np.argsort(lows)
        row, lows = row[order], lows[order]
        highs = lows + self._bytes[row]
        for i in np.flatnonzero(highs[:-1] > lows[1:]):
            one, other = sorted((row[i], row[i + 1]))
            raise ValueError(
                f"{self._names[one]} and {self._names[other]} or their states share memory, so a "
                "step would update it twice: pass one of them, or tie them as one Parameter"
            )
        return lows, highs

    def _across(self, addresses: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which gradients overlap what a step writes."""
        # A piece overlaps if it begins before the gradient's end, but does not end before it.
        begun = np.searchsorted(self._lows, addresses + self._bytes)
        ended = np.searchsorted(self._highs, addresses, "right")
        overlapping: NDArray[np.bool_] = (begun > ended) & (addresses != 0)
        return overlapping
