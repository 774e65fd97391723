"""The tensors that one call steps, as a table, kept from step to step while nothing moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from ..hyper import Coefficients, Rule
from .kinds import Kind, by_column, types
from .layout import COMPUTE, is_as_stored, lies_like
from .overlap import shared
from .sharding import alike, local, local_like, place_in_whole
from .state import Entry, check_grad
from .threads import threads
from .watch import watch

# The columns of what a step writes, in the order of ``kinds.by_column`` but for the first.
_WRITTEN = (
    native.PARAM,
    native.EXP_AVG,
    native.EXP_AVG_SQ,
    native.MAX_EXP_AVG_SQ,
    native.MASTER,
)
_UNSEEN = -1  # where no gradient lies


class Table:
    """The rows of parameters that lie dense on one device.

    Args:
        entries: the parameters, with states whose tensors lie as ``check_state`` has them.
        kinds: of each group, its formats.

    Attributes:
        entries: the parameters,
        params: their tensors,
        states: and their states.
        kinds: of each parameter, its formats.
        sets: the groups and the types that are computed in, which at equal steps share
            coefficients,
        set_of: and which of these a parameter is of.
        rows: the core's rows; their gradients are those of the last look.
        steps: the parameters' step counts, -1 where there was no gradient,
        even: and whether they are all the same.
        changed: whether rows may be other than when this was last made False.

    Raises:
        ValueError: two of the tensors share memory.
    """

    def __init__(self, entries: list[Entry], kinds: list[Kind]) -> None:
        self.entries = entries
        params = self.params = [e.param for e in entries]
        self.states = [e.state for e in entries]
        self.kinds = [kinds[e.group] for e in entries]
        sets = [(e.group, COMPUTE[e.param.dtype]) for e in entries]
        self.sets = list(dict.fromkeys(sets))
        self._keys = [by_column(p, k) for p, k in zip(params, self.kinds, strict=True)]
        self._watch = watch(params, self.states, self._keys)
        self.steps = np.zeros(len(params), np.int64)
        self.even = self.changed = True
        self.rows = native.table(len(params))
        self._watch.fill(self.rows)
        parts = [local(p) for p in params]
        self.rows[:, native.SIZE] = [p.numel() * (1 + p.is_complex()) for p in parts]
        self.set_of = np.array([self.sets.index(s) for s in sets], np.int64)
        self.rows[:, native.COEFFICIENTS] = self.set_of
        self._types = [types(p, k) for p, k in zip(params, self.kinds, strict=True)]
        self.rows[:, native.TYPES] = self._types
        for row, param in zip(self.rows, params, strict=True):
            if (place := place_in_whole(param)) is not None:
                row[[native.OFFSET, native.RUN, native.STRIDE]] = place
        self._bytes = np.array([p.numel() * p.element_size() for p in parts], np.int64)
        self._lows, self._highs = self._spans(self._keys)
        # For one step: copies of gradients, and which are of another type than their parameter.
        self._copies: dict[int, Tensor] = {}
        self._other: list[int] = []

    def look(self) -> int:
        """Brings the gradients of the rows, and the steps, up to date.

        Returns:
            MOVED of ``native`` where a parameter or its state has moved, and the table is of no
            more use, else 0.

        Raises:
            RuntimeError, TypeError, ValueError: a gradient does not fit its parameter.
        """
        answer = native.MOVED
        try:
            answer = self._look()
        finally:
            if answer:  # it has not got to the end: to the next one, every gradient is another
                self.rows[:, native.GRAD] = _UNSEEN
        return answer

    def _look(self) -> int:
        # Without it torch looks for __torch_function__ at each access to a subclass's gradient.
        with torch._C.DisableTorchFunctionSubclass():
            answer = self._watch.look(self.rows, self.steps, threads())
        if answer & native.MOVED:
            return native.MOVED
        was_even, self.even = self.even, not answer & native.UNEVEN
        self.changed |= not self.even or answer & (native.STRANGE | native.CHANGED) != 0
        if self.even > was_even:
            self.changed = True
            self.rows[:, native.COEFFICIENTS] = self.set_of
        self.forget()
        if answer & native.STRANGE:
            for i in self._watch.which():
                grad = self.grad(i)
                check_grad(self.params[i], grad, self.entries[i].name)
                self._take(i, grad)
        if answer & (native.STRANGE | native.CHANGED):
            for i in np.flatnonzero(self._across(self.rows[:, native.GRAD])).tolist():
                self._copy(i, self.grad(i))
        return 0

    def touch(self) -> None:
        """Tells autograd of the writes of a step of all that have a gradient."""
        self._watch.touch(self.steps)

    def count_on_device(self, steps: Tensor) -> None:
        """Lets a tensor on the device, with an element for each parameter, count the steps."""
        for state, step in zip(self.states, steps.unbind(), strict=True):
            if not _is_at(state["step"], step):  # another plan's watch knows the one that is there
                state["step"] = step
        self._watch = watch(self.params, self.states, self._keys)
        self.set_of = np.arange(len(self.params))  # each has coefficients of its own
        self.rows[:, native.COEFFICIENTS] = self.set_of

    def coefficients(self, hypers: list[Rule], unscale: float, clip: float) -> NDArray[np.float64]:
        """Of the next step: rows of ``hyper.Coefficients``, to which the table's rows point.

        Args:
            hypers: of each group, its hyperparameters.
            unscale: what the gradients are multiplied with first,
            clip: and then.

        Raises:
            ValueError: one of them is too large for the type that the step is computed in.
        """
        kinds = [[number, int(self.steps[0])] for number in range(len(self.sets))]
        if not self.even:
            present = self.steps >= 0
            pairs = np.stack([self.set_of, self.steps], 1)[present]
            distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
            self.rows[:, native.COEFFICIENTS] = 0
            self.rows[present, native.COEFFICIENTS] = inverse.reshape(-1)
            kinds = distinct.tolist()
        found = []
        for number, step in kinds:
            group, compute = self.sets[number]
            found.append(hypers[group].coefficients(step + 1, compute, unscale, clip))
        return np.array(found, np.float64) if found else np.zeros((0, len(Coefficients._fields)))

    def forget(self) -> None:
        """Lets go of what the last look has found of gradients."""
        self._copies.clear()
        self.changed |= bool(self._other)
        for i in self._other:
            self.rows[i, native.TYPES] = self._types[i]
        self._other.clear()

    def grad(self, i: int) -> Tensor:
        """The gradient of a parameter that the last look has found one of."""
        grad = self.params[i].grad
        assert grad is not None, "the look has just found it"
        return grad

    def read(self, i: int) -> Tensor:
        """That gradient as a step reads it: lying as the parameter, or a copy that does."""
        return self._copies[i] if i in self._copies else local(self.grad(i))

    def _take(self, i: int, grad: Tensor) -> None:
        """Lets the core read a gradient of another type, or a copy that lies as the parameter."""
        param = self.params[i]
        dtype = self._read_as(grad, param)
        if dtype != param.dtype:
            self.rows[i, native.TYPES] = types(param, self.kinds[i], dtype)
            self._other.append(i)
        part = local(grad)
        where = alike(grad, param) and is_as_stored(part) and lies_like(part, local(param))
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
            raise shared(self.entries[one].name, self.entries[other].name)
        return lows, highs

    def _across(self, addresses: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which gradients overlap what a step writes."""
        # A piece overlaps if it begins before the gradient's end, but does not end before it.
        sizes = self._bytes.copy()
        for i in self._other:
            sizes[int(i)] = int(self.rows[i, native.SIZE]) * self.grad(i).element_size()
        begun = np.searchsorted(self._lows, addresses + sizes)
        ended = np.searchsorted(self._highs, addresses, "right")
        overlapping: NDArray[np.bool_] = (begun > ended) & (addresses != 0)
        return overlapping


def see_each_other(tables: Sequence[Table]) -> None:
    """Has each copy gradients that lie where another writes; what they write does not overlap."""
    lows = np.concatenate([table._lows for table in tables])
    order = np.argsort(lows)
    highs = np.concatenate([table._highs for table in tables])[order]
    for table in tables:
        table._lows, table._highs = lows[order], highs


def _is_at(count: object, step: Tensor) -> bool:
    return isinstance(count, Tensor) and count.data_ptr() == step.data_ptr()
