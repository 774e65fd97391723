"""The NumPy front end: Adam and AdamW over arrays, in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import native, reference
from .hyper import Coefficients, Hyper
from .interrupts import deferred
from .memory import Array, Spans, address, aligned_zeros_like, is_dense, overlaps_itself, shared
from .reference import State

Arrays = Array | Sequence[Array | None] | Mapping[str, Array | None]

_COMPUTE = ["float32", "float64"]


class Adam:
    """Adam over NumPy arrays, which it updates in place.

    Each array has a step count and moments of its own; the equation is ``adamas.equations.adam``.
    Arrays of float32 and float64 that are contiguous, in C or Fortran order, are stepped by the
    core, all in one call; any others by the specification itself.

    Args:
        params: an array, or a sequence or mapping of arrays: writable, of float16, float32 or
            float64 and any shape, no two of them sharing memory.
        lr: learning rate, at least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; ``weight_decay * param`` is added to the gradient.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend.

    Raises:
        ValueError: a hyperparameter is out of range, there are no arrays, or an array is read-only
            or shares memory with another.
        TypeError: something is no array, or of another type.

    Source: Kingma & Ba 2015, arXiv 1412.6980; the arguments are torch.optim.Adam's.
    """

    _decoupled_weight_decay = False

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        decoupled = self._decoupled_weight_decay
        self._hyper = Hyper(lr, betas, eps, weight_decay, amsgrad, maximize, decoupled)
        self._params = _check_params(_named(params))
        self._spans = Spans(self._params.values())
        self._adopt({name: _initial_state(p, self._hyper) for name, p in self._params.items()})

    @property
    def hyper(self) -> Hyper:
        """The hyperparameters; between steps, set it to ``dataclasses.replace(hyper, ...)``."""
        return self._hyper

    @hyper.setter
    def hyper(self, hyper: Hyper) -> None:
        for name in ("amsgrad", "decoupled_weight_decay"):
            if getattr(hyper, name) != getattr(self._hyper, name):
                raise ValueError(f"{name} cannot change between steps: make a new optimizer")
        self._hyper = hyper

    @property
    def lr(self) -> float:
        """The learning rate; may be set between steps."""
        return self._hyper.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.hyper = replace(self._hyper, lr=lr)

    def step(self, grads: Arrays) -> None:
        """Steps every array whose gradient is given, or raises before touching any.

        Args:
            grads: in the form of the constructor's ``params``, each of its array's shape and dtype.
                An array whose gradient is None, or missing from a mapping, is left as it is, and
                its step count too.

        Raises:
            ValueError: a gradient has another shape than its array, or there is no such array.
            TypeError: a gradient is no array, or of another dtype.
        """
        given = self._check_grads(grads)
        state = self._state  # alive until the end, should another thread load one meanwhile
        others = [name for name in given if name not in self._index]
        with native.default_floating_point() if others else nullcontext():
            stepped = {
                name: reference.step(self._params[name], given[name], state[name], self._hyper)
                for name in others
            }
        dense = [name for name in given if name in self._index]
        steps = np.array([state[name]["step"] for name in dense], np.int64)
        rows, coefficients, kept = self._table([(name, given[name]) for name in dense], steps)
        # Nothing was touched until here, and nothing can fail from here on.
        with deferred() if others else nullcontext():
            native.step(rows, coefficients, counts=([state[name] for name in dense], steps))
            for name, (param, new) in stepped.items():
                self._params[name][...] = param
                state[name].update(new)
        del kept  # copies of gradients, that the core has read

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: not where the arrays lay."""
        made_anew = ("_spans", "_index", "_rows", "_forms")
        return {name: value for name, value in vars(self).items() if name not in made_anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled or copied optimizer, over arrays of its own."""
        vars(self).update(state)
        self._spans = Spans(self._params.values())
        self._adopt(self._state)

    def state_dict(self) -> dict[str, Array]:
        """What a later run needs to go on, as a flat dictionary: ``numpy.savez(file, **state)``.

        Returns:
            Copies, under ``hyper/NAME`` the hyperparameters and under ``state/ARRAY/NAME`` each
            array's step, exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq. ARRAY is its key in
            the mapping, or its position.
        """
        flat = {f"hyper/{name}": np.array(value) for name, value in asdict(self._hyper).items()}
        for name, state in self._state.items():
            flat |= {f"state/{name}/{key}": np.array(value) for key, value in state.items()}
        return flat

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Takes over what ``state_dict`` gave, by name, or raises and changes nothing.

        Args:
            state_dict: that dictionary, or what ``numpy.load`` makes of its file.

        Raises:
            ValueError: the file is truncated or foreign, or the state is of other arrays or of
                another rule than these.
        """
        loaded = _read(state_dict)
        hyper = _load_hyper(loaded)
        if hyper.decoupled_weight_decay != self._decoupled_weight_decay:
            saved = "AdamW" if hyper.decoupled_weight_decay else "Adam"
            raise ValueError(f"the state is {saved}'s, not {type(self).__name__}'s: load it there")
        self._adopt(_load_states(loaded, self._params, hyper))
        self._hyper = hyper

    def _adopt(self, state: dict[str, State]) -> None:
        """Takes the state, and makes the core's rows of the arrays that it takes."""
        self._state = state
        self._forms = {name: _form(param) for name, param in self._params.items()}
        dense = [n for n, p in self._params.items() if is_dense(p) and p.dtype.name in _COMPUTE]
        self._index = {name: i for i, name in enumerate(dense)}
        self._rows = native.table(len(dense))
        for row, name in zip(self._rows, dense, strict=True):
            param = self._params[name]
            moments = [address(a) for key, a in state[name].items() if key != "step"]
            row[native.PARAM] = address(param)
            row[native.EXP_AVG : native.EXP_AVG + len(moments)] = moments
            row[native.SIZE] = param.size
            row[native.TYPES] = native.types(param.dtype.name)

    def _check_grads(self, grads: Arrays) -> dict[str, Array]:
        named = _named(grads)
        if named.keys() - self._params.keys() or (
            not isinstance(grads, Mapping) and len(named) != len(self._params)
        ):
            raise ValueError(
                f"got gradients for {_listed(named)}, but the arrays are {_listed(self._params)}: "
                "pass them in the form of params, None where there is none"
            )
        given = {}
        for name, grad in named.items():
            if grad is None:
                continue
            param = self._params[name]
            _check_writeable(name, param)
            if self._forms[name] != _form(param):
                raise ValueError(
                    f"array {name!r} was resized or given another dtype after the optimizer was "
                    "made: make a new one"
                )
            if isinstance(grad, np.generic):  # what arithmetic makes of arrays without dimensions
                grad = np.asarray(grad)
            if not _is_array(grad) or grad.dtype != param.dtype:
                raise TypeError(
                    f"the gradient of {name!r} must be an array of {param.dtype}, its array's "
                    f"type, got {_kind(grad)}: convert it with numpy.asarray"
                )
            if grad.shape != param.shape:
                raise ValueError(
                    f"the gradient of {name!r} must have its array's shape {param.shape}, got "
                    f"{grad.shape}: reshape it"
                )
            given[name] = grad
        return given

    def _table(
        self, grads: list[tuple[str, Array]], steps: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], list[Array]]:
        """The core's rows and coefficients for these gradients, and what is to be kept for them."""
        readable = [_like(self._params[name], grad) for name, grad in grads]
        rows = self._rows[[self._index[name] for name, _ in grads]]
        rows[:, native.GRAD] = lows = np.array([address(g) for g in readable], np.int64)
        wide = rows[:, native.TYPES] == native.types("float64")
        itemsize = np.where(wide, 8, 4)
        overlap = self._spans.overlap(lows, lows + rows[:, native.SIZE] * itemsize)
        for i in np.flatnonzero(overlap | (lows % itemsize != 0)):
            readable[i] = readable[i].copy("K")
            rows[i, native.GRAD] = address(readable[i])
        # Arrays of one type and step share their coefficients.
        kinds, rows[:, native.COEFFICIENTS] = _distinct(2 * (steps + 1) + wide)
        coefficients = [self._hyper.coefficients(k // 2, _COMPUTE[k % 2]) for k in kinds]
        table = np.array(coefficients, np.float64).reshape(-1, len(Coefficients._fields))
        return rows, table, readable


class AdamW(Adam):
    """AdamW over NumPy arrays: Adam whose weight decay shrinks the weights themselves.

    The arguments are ``Adam``'s, but ``weight_decay`` is 0.01 by default, and a step subtracts
    ``lr * weight_decay * param`` instead of adding to the gradient.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101; the arguments are torch.optim.AdamW's.
    """

    _decoupled_weight_decay = True

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize)


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


def _check_params(params: dict[str, Any]) -> dict[str, Array]:
    if not params:
        raise ValueError("params is empty: pass at least one array to optimize")
    for name, param in params.items():
        if not _is_array(param) or param.dtype.name not in (
            "float16",
            "float32",
            "float64",
        ):
            raise TypeError(
                f"array {name!r} must be a NumPy array of float16, float32 or float64, got "
                f"{_kind(param)}: convert it with numpy.asarray(..., dtype=numpy.float32)"
            )
        _check_writeable(name, param)
        if overlaps_itself(param):
            raise ValueError(
                f"elements of array {name!r} share memory, so one would be updated twice: pass a "
                "copy"
            )
    if pair := shared(params):
        raise ValueError(
            f"arrays {pair[0]!r} and {pair[1]!r} share memory, so one would be updated twice: pass "
            "the array once, or a copy"
        )
    return params


def _is_array(value: object) -> bool:
    """Whether it is an array whose arithmetic is NumPy's own."""
    return isinstance(value, np.ndarray) and not isinstance(value, (np.ma.MaskedArray, np.matrix))


def _check_writeable(name: str, param: Array) -> None:
    if not param.flags.writeable:
        raise ValueError(f"array {name!r} is read-only, and a step writes it in place: pass a copy")


def _form(param: Array) -> tuple[Any, ...]:
    """What changes when an array is resized, or seen as another type."""
    return param.dtype, param.shape, param.strides


def _like(param: Array, grad: Array) -> Array:
    """The gradient in the array's memory order."""
    if grad.strides == param.strides:
        return grad
    copy = np.empty_like(param)
    copy[...] = grad
    return copy


def _distinct(numbers: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
    distinct, index = np.unique(numbers, return_inverse=True)
    return distinct.tolist(), index.reshape(-1)


def _initial_state(param: Array, hyper: Hyper) -> State:
    zeros = reference.initial_state(param, hyper)
    return {k: v if k == "step" else aligned_zeros_like(v, v.dtype.name) for k, v in zeros.items()}


def _kind(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{type(value).__name__} of {dtype}"


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(map(repr, shown)) + (", ..." if len(names) > len(shown) else "") or "none"


def _read(state_dict: Mapping[str, Array]) -> dict[str, Array]:
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"the state must be a mapping, as state_dict() and numpy.load give, got "
            f"{type(state_dict).__name__}"
        )
    try:
        return {key: np.array(state_dict[key]) for key in state_dict}
    except MemoryError:
        raise
    except Exception as error:  # zip, zlib, pickle and header errors: NumPy raises each its own
        raise ValueError(f"the state is truncated or not one of adamas's: {error}") from error


def _load_hyper(loaded: Mapping[str, Array]) -> Hyper:
    try:
        values = {field.name: loaded[f"hyper/{field.name}"].tolist() for field in fields(Hyper)}
        return Hyper(**values)
    except KeyError as error:
        raise ValueError(f"the state is not one of adamas's: it has no {error}") from None
    except TypeError as error:
        raise ValueError(f"the state is not one of adamas's: {error}") from None


def _load_states(
    loaded: Mapping[str, Array], params: dict[str, Array], hyper: Hyper
) -> dict[str, State]:
    """Each array's state out of the flat dictionary, checked."""
    states = {name: _initial_state(param, hyper) for name, param in params.items()}
    expected = {f"state/{name}/{key}" for name, state in states.items() for key in state}
    found = {key for key in loaded if key.startswith("state/")}
    if expected != found:
        raise ValueError(
            f"the state is of other arrays than these: it lacks {_listed(expected - found)} and "
            f"has {_listed(found - expected)} beyond them"
        )
    for name, state in states.items():
        for key, zero in state.items():
            value = loaded[f"state/{name}/{key}"]
            like = np.array(zero)
            if value.shape != like.shape or value.dtype.kind != like.dtype.kind:
                raise ValueError(
                    f"{key} of array {name!r} must be {like.dtype} of shape {like.shape}, got "
                    f"{value.dtype} of shape {value.shape}: the state is of another model"
                )
            if key == "step":
                state[key] = int(value)
            elif value.dtype != like.dtype:
                raise ValueError(
                    f"{key} of array {name!r} must be {like.dtype}, got {value.dtype}: the state "
                    "is of arrays of another type"
                )
            else:
                zero[...] = value
        if not 0 <= state["step"] < 1 << 53:
            raise ValueError(
                f"step of array {name!r} must be from 0 to 2^53 - 1, got {state['step']}"
            )
    return states
