"""Whether tensors still lie where they did, asked of torch at each step."""

from __future__ import annotations

import ctypes
import operator
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from .layout import sizes_and_strides
from .recode import State
from .sharding import alike, dtensor, local


class Watch(Protocol):
    """Sees whether parameters and moments still lie where they did; src/core/watch.hpp."""

    def fill(self, rows: NDArray[np.int64]) -> None:
        """Writes the addresses of parameters and moments."""

    def look(self, rows: NDArray[np.int64], steps: NDArray[np.int64]) -> int:
        """Writes the gradients' addresses and the step counts; answers what is out of the way."""

    def which(self) -> list[int]:
        """The gradients that were strange at the last look."""


def watch(params: list[Tensor], states: list[State], moments: list[tuple[str, ...]]) -> Watch:
    """A watch over these parameters and, in their states, the tensors under these keys."""
    # torch offers DLPack's exchange API since 2.10.
    exchange_api: object | None = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if exchange_api is None:
        return PythonWatch(params, states, moments)
    compiled: Watch = native.Watch(exchange_api, params, states, moments, _shim(), dtensor())
    return compiled


@cache
def _shim() -> tuple[object, int, int] | None:
    """Torch's C shim for the compiled watch, None where torch does not have it."""
    library = ctypes.CDLL(torch._C.__file__)
    try:
        make_handle: object = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor
        functions = library.aoti_torch_get_data_ptr, library.aoti_torch_delete_tensor_object
    except AttributeError:
        return None
    tells, frees = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    return (make_handle, tells, frees) if tells and frees else None


class PythonWatch:
    """The compiled watch's equal, for torch before 2.10: some microseconds a parameter."""

    def __init__(
        self, params: list[Tensor], states: list[State], moments: list[tuple[str, ...]]
    ) -> None:
        self._params, self._states, self._names = params, states, moments
        self._moments = [self._moments_of(i) for i in range(len(params))]
        self._places = [self._place_all(i) for i in range(len(params))]
        counts = [state.get("step") for state in states]  # a device counts some
        self._counts = [count if isinstance(count, Tensor) else None for count in counts]
        self._which: list[int] = []

    def fill(self, rows: NDArray[np.int64]) -> None:
        """As ``Watch.fill``."""
        for row, (param, *moments) in zip(rows, self._places, strict=True):
            row[native.PARAM] = param[0]
            row[native.EXP_AVG : native.EXP_AVG + len(moments)] = [place[0] for place in moments]

    def look(self, rows: NDArray[np.int64], steps: NDArray[np.int64]) -> int:
        """As ``Watch.look``."""
        answer = 0
        self._which = []
        for i, (param, state) in enumerate(zip(self._params, self._states, strict=True)):
            step = state.get("step")
            same = all(map(operator.is_, self._moments_of(i), self._moments[i]))
            if not same or self._place_all(i) != self._places[i]:
                return native.MOVED
            if self._counts[i] is not None:
                if step is not self._counts[i]:
                    return native.MOVED
                step = 0
            if type(step) is not int or step < 0:
                return native.MOVED
            grad = param.grad
            steps[i] = -1 if grad is None else step
            there = _place(grad)
            if steps[i] != steps[0] or grad is None:
                answer |= native.UNEVEN
            if rows[i, native.GRAD] != there[0]:
                answer |= native.CHANGED
            rows[i, native.GRAD] = there[0]
            if grad is not None and (
                not alike(param, grad)
                or there[1:] != self._places[i][0][1:]
                or grad.is_conj()
                or grad.is_neg()
            ):
                answer |= native.STRANGE
                self._which.append(i)
        return answer

    def which(self) -> list[int]:
        """As ``Watch.which``."""
        return self._which

    def _moments_of(self, i: int) -> list[Tensor | None]:
        return [self._states[i].get(key) for key in self._names[i]]

    def _place_all(self, i: int) -> list[Any]:
        return [_place(tensor) for tensor in (self._params[i], *self._moments_of(i))]


def _place(tensor: Tensor | None) -> tuple[int, Any, Any]:
    tensor = local(tensor)
    if tensor is None or tensor.layout != torch.strided:
        return 0, tensor is None, None
    return tensor.data_ptr(), (tensor.dtype, tensor.device), sizes_and_strides(tensor)
