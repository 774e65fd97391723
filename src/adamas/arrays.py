"""What steps NumPy arrays in place, whatever the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arraystate, native, reference
from .arraychecks import check_grad, check_params, check_writeable
from .arraystate import Format, listed, plain
from .hyper import Coefficients, Rule
from .interrupts import deferred
from .memory import Array, Spans, address
from .reference import State

Arrays = Array | Sequence[Array | None] | Mapping[str, Array | None]

_COMPUTE = ["float32", "float64"]


class Optimizer:
    """Steps NumPy arrays in place by a rule: ``Adam``, ``AdamW``, ``SGD`` or ``RMSprop``.

    Each array has a step count and averages of its own; the equation is the rule's in
    ``adamas.equations``, computed in float32, or in float64 for arrays of that. Arrays that are
    contiguous, in C or Fortran order, are stepped by the core, all in one call; where something is
    rounded by the elements' indices (compact moments, ``master_bits`` of 24 or 16) only those in C
    order. Any others are stepped by the specification itself, to the same bits.

    Args:
        params: the arrays.
        hyper: the rule's hyperparameters,
        moments: what its averages are kept in,
        master_bits: and the weights; all as ``Adam``'s.

    Raises:
        ValueError, TypeError: as ``Adam``.
    """

    def __init__(
        self, params: Arrays, hyper: Rule, moments: str = "float32", master_bits: int | None = None
    ) -> None:
        self._hyper = hyper
        self._format = Format(moments, master_bits)
        self._params = check_params(_named(params), self._format, hyper)
        self._spans = Spans(self._params.values())
        self._adopt(
            {
                name: arraystate.initial_state(param, hyper, self._format)
                for name, param in self._params.items()
            }
        )

    @property
    def hyper(self) -> Any:
        """The hyperparameters; between steps, set it to ``dataclasses.replace(hyper, ...)``."""
        return self._hyper

    @hyper.setter
    def hyper(self, hyper: Rule) -> None:
        if type(hyper) is not type(self._hyper):
            raise TypeError(
                f"hyper must be a {type(self._hyper).__name__}, as {self._hyper.name}'s are, got a "
                f"{type(hyper).__name__}"
            )
        for name in hyper.structural:
            if bool(getattr(hyper, name)) != bool(getattr(self._hyper, name)):
                raise ValueError(f"{name} cannot change between steps: make a new optimizer")
        self._hyper = hyper

    @property
    def lr(self) -> float:
        """The learning rate; may be set between steps."""
        rate: float = self.hyper.lr
        return rate

    @lr.setter
    def lr(self, lr: float) -> None:
        self.hyper = replace(self.hyper, lr=lr)

    def step(self, grads: Arrays) -> None:
        """Steps every array whose gradient is given, or raises before touching any.

        Args:
            grads: in the form of the constructor's ``params``, each of its array's shape and of
                float64 beside that, else of float32, bfloat16 or float16. An array whose gradient
                is None, or missing from a mapping, is left as it is, and its step count too.

        Raises:
            ValueError: a gradient has another shape than its array, or there is no such array.
            TypeError: a gradient is no array, or of another dtype.
        """
        if self._step_alike(grads):
            return
        given = self._check_grads(grads)
        state = self._state  # alive until the end, should another thread load one meanwhile
        others = [name for name in given if name not in self._index]
        with native.default_floating_point() if others else nullcontext():
            stepped = {
                name: reference.step(
                    plain(self._params[name]), plain(given[name]), state[name], self._hyper
                )
                for name in others
            }
        dense = [name for name in given if name in self._index]
        steps = np.array([state[name]["step"] for name in dense], np.int64)
        rows, coefficients, kept = self._table([(name, given[name]) for name in dense], steps)
        # Nothing was touched until here, and nothing can fail from here on.
        with deferred() if others else nullcontext():
            native.step(rows, coefficients, counts=([state[name] for name in dense], steps))
            for name, (param, new) in stepped.items():
                plain(self._params[name])[...] = param
                state[name].update(new)
        del kept  # copies of gradients, that the core has read

    def _step_alike(self, grads: Arrays) -> bool:
        """Steps every array if all gradients lie like theirs, else touches nothing."""
        alike, names = self._alike, self._params
        if alike is None:
            return False
        if isinstance(grads, dict):
            listed = list(grads.values()) if list(grads) == list(names) else []
        elif alike.numbered:
            listed = list(grads) if isinstance(grads, (list, tuple)) else [grads]
        else:
            return False
        rows = alike.rows.copy()
        if not alike.watch.look(listed, rows):
            return False
        lows = rows[:, native.GRAD]
        if self._spans.overlap(lows, lows + alike.sizes).any():
            return False
        steps = np.array([state["step"] for state in alike.states], np.int64)
        coefficients = self._coefficients(rows, steps, alike.wide)
        native.step(rows, coefficients, counts=(alike.states, steps))
        return True

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: not where the arrays lay."""
        made_anew = ("_spans", "_index", "_rows", "_forms", "_alike")
        return {name: value for name, value in vars(self).items() if name not in made_anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled or copied optimizer, over arrays of its own."""
        vars(self).update({"_format": Format()} | state)  # older ones know no formats
        self._spans = Spans(self._params.values())
        # A copy of an array with gaps may have none, and another memory order.
        self._adopt(
            {
                name: arraystate.relaid(kept, self._params[name], self._hyper, self._format)
                for name, kept in self._state.items()
            }
        )

    def state_dict(self) -> dict[str, Array]:
        """What a later run needs to go on, as a flat dictionary: ``numpy.savez(file, **state)``.

        Returns:
            Copies. There are ``format``, the version of this layout, ``moments`` and
            ``master_bits``; ``rule`` and under ``hyper/NAME`` the hyperparameters; under
            ``state/ARRAY/NAME`` each array's step and what torch.optim's optimizer keeps, such as
            exp_avg and exp_avg_sq, or in int8 and int4 the words and scales that stand for them,
            and beside 16 bits master or remainder, the rest of the master weight. ARRAY is the
            array's key in the mapping, or its position. bfloat16 is there as uint16. The arrays
            themselves are not there: keep them too.
        """
        return arraystate.flattened(self._state, self._hyper, self._format)

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Takes over what ``state_dict`` gave, by name, or raises and changes nothing.

        This optimizer's formats stay. Moments in the same one are taken byte for byte, in another
        they are converted, with that one's precision. Load the arrays first: master weights in the
        state go on only where an array is their rounding, and begin as the array where the state
        has none. Where they have other bits, the last are cut off or zero.

        Args:
            state_dict: that dictionary, or what ``numpy.load`` makes of its file; one without
                ``format`` is of a version that had only float32.

        Raises:
            ValueError: the file is truncated, damaged or foreign, or the state is of other arrays
                or of another rule than these.
        """
        loaded = arraystate.read(state_dict)
        hyper = arraystate.load_hyper(loaded)
        if hyper.name != self._hyper.name:
            raise ValueError(
                f"the state is {hyper.name}'s, not {self._hyper.name}'s: load it there"
            )
        states = arraystate.load_states(loaded, self._params, hyper, self._format)
        self._hyper = hyper
        self._adopt(states)

    def _adopt(self, state: dict[str, State]) -> None:
        """Takes the state, and makes the core's rows of the arrays that it takes."""
        self._state = state
        self._forms = {name: _form(param) for name, param in self._params.items()}
        dense = [n for n, p in self._params.items() if self._format.is_stepped_by_core(p)]
        self._index = {name: i for i, name in enumerate(dense)}
        self._rows = native.table(len(dense))
        for row, name in zip(self._rows, dense, strict=True):
            param = self._params[name]
            row[native.PARAM] = address(param)
            for key in state[name].keys() - {"step"}:
                row[native.column(key, self._hyper.keys)] = address(state[name][key])
            row[native.SIZE] = param.size
            row[native.TYPES] = self._format.types(param, self._hyper.rule)
        self._alike = None
        if len(dense) == len(self._params) and _fields_are_known():
            arrays = list(self._params.values())
            itemsize = np.array([param.itemsize for param in arrays], np.int64)
            self._alike = _Alike(
                native.ArrayWatch(arrays, np.ndarray),
                self._rows,
                [state[name] for name in dense],
                self._rows[:, native.SIZE] * itemsize,
                itemsize == 8,
                list(self._params) == [str(i) for i in range(len(arrays))],
            )

    def _check_grads(self, grads: Arrays) -> dict[str, Array]:
        named = _named(grads)
        if named.keys() - self._params.keys() or (
            not isinstance(grads, Mapping) and len(named) != len(self._params)
        ):
            raise ValueError(
                f"got gradients for {listed(named)}, but the arrays are {listed(self._params)}: "
                "pass them in the form of params, None where there is none"
            )
        given = {}
        for name, grad in named.items():
            if grad is None:
                continue
            param = self._params[name]
            check_writeable(name, param)
            if self._forms[name] != _form(param):
                raise ValueError(
                    f"array {name!r} was resized or given another dtype after the optimizer was "
                    "made: make a new one"
                )
            if isinstance(grad, np.generic):  # what arithmetic makes of arrays without dimensions
                grad = np.asarray(grad)
            check_grad(name, param, grad)
            given[name] = grad
        return given

    def _table(
        self, grads: list[tuple[str, Array]], steps: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], list[Array]]:
        """The core's rows and coefficients for these gradients, and what is to be kept for them."""
        readable = [_like(self._params[name], grad) for name, grad in grads]
        rows = self._rows[[self._index[name] for name, _ in grads]]
        rows[:, native.GRAD] = lows = np.array([address(g) for g in readable], np.int64)
        itemsize = np.array([grad.itemsize for grad in readable], np.int64)
        wide = itemsize == 8
        for row, (name, grad) in enumerate(grads):
            if grad.dtype != (param := self._params[name]).dtype:
                rows[row, native.TYPES] = self._format.types(
                    param, self._hyper.rule, grad.dtype.name
                )
        overlap = self._spans.overlap(lows, lows + rows[:, native.SIZE] * itemsize)
        for i in np.flatnonzero(overlap | (lows % itemsize != 0)):
            readable[i] = readable[i].copy("K")
            rows[i, native.GRAD] = address(readable[i])
        return rows, self._coefficients(rows, steps, wide), readable

    def _coefficients(
        self, rows: NDArray[np.int64], steps: NDArray[np.int64], wide: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Those of the next step, of which each row is told its own.

        Arrays computed in one type that are at one step share theirs.
        """
        kinds, rows[:, native.COEFFICIENTS] = _distinct(2 * (steps + 1) + wide)
        coefficients = [self._hyper.coefficients(k // 2, _COMPUTE[k % 2]) for k in kinds]
        return np.array(coefficients, np.float64).reshape(-1, len(Coefficients._fields))


class _Alike(NamedTuple):
    """What a step needs of arrays whose gradients all lie like them."""

    watch: native.ArrayWatch
    rows: NDArray[np.int64]
    states: list[State]
    sizes: NDArray[np.int64]
    """Bytes of each gradient."""
    wide: NDArray[np.bool_]
    """Which are of float64."""
    numbered: bool
    """Whether a list may name them."""


@cache
def _fields_are_known() -> bool:
    """Whether NumPy's arrays have in memory what the compiled watch reads there."""
    probe = np.zeros((4, 6), np.float32)[1:, ::2].T
    probe.flags.writeable = False
    told = address(probe), probe.shape, probe.strides, id(probe.dtype), probe.flags.num
    return bool(native.ArrayWatch.fields(probe) == told)


def _named(arrays: Any) -> dict[str, Any]:
    """The arrays by key or, as strings, by position."""
    if isinstance(arrays, Mapping):
        named = {str(name): array for name, array in arrays.items()}
        if len(named) < len(arrays):
            raise ValueError(f"keys must differ as strings, got {list(arrays)}: rename one")
        return named
    if isinstance(arrays, Sequence):
        return {str(i): array for i, array in enumerate(arrays)}
    return {"0": arrays}


def _form(param: Array) -> tuple[Any, ...]:
    """What changes when an array is resized, or seen as another type."""
    return param.dtype, param.shape, param.strides


def _like(param: Array, grad: Array) -> Array:
    """The gradient in the array's memory order, its numbers in native byte order."""
    if grad.dtype == param.dtype and grad.strides == param.strides:
        return grad
    ordered = [s * param.itemsize for s in grad.strides] == [
        s * grad.itemsize for s in param.strides
    ]
    if ordered and grad.dtype.isnative:
        return grad
    numbers = plain(grad)
    copy = np.empty_like(param, dtype=numbers.dtype.newbyteorder("="))
    copy[...] = numbers
    return copy


def _distinct(numbers: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
    distinct, index = np.unique(numbers, return_inverse=True)
    return distinct.tolist(), index.reshape(-1)
