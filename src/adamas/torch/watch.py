"""Whether tensors still lie where they did, asked of torch at each step."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from .layout import sizes_and_strides
from .state import State


class Watch(Protocol):
    """Sees whether parameters and moments still lie where they did; src/core/watch.hpp."""

    def fill(self, rows: NDArray[np.int64]) -> None:
        """Writes the addresses of parameters and moments."""

    def look(self, rows: NDArray[np.int64], steps: NDArray[np.int64]) -> int:
        """Writes the gradients' addresses and the step counts; answers what is out of the way."""

    def which(self) -> list[int]:
        """The gradients that were strange at the last look."""

    def advance(self, steps: NDArray[np.int64]) -> None:
        """Sets the step counts to one more than ``steps``."""


def watch(params: list[Tensor], states: list[State], moments: tuple[str, ...]) -> Watch:
    """A watch over these parameters and, in their states, the tensors under these keys."""
    # torch offers DLPack's exchange API since 2.10.
    exchange_api: object | None = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if exchange_api is None:
        return PythonWatch(params, states, moments)
    compiled: Watch = native.Watch(exchange_api, params, states, moments)
    return compiled


class PythonWatch:
    """The compiled watch's equal, for torch before 2.10: some microseconds a parameter."""

    def __init__(self, params: list[Tensor], states: list[State], moments: tuple[str, ...]) -> None:
        self._params, self._states, self._moments = params, states, moments
        self._places = [self._place_all(p, s) for p, s in zip(params, states, strict=True)]
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
            if self._place_all(param, state) != self._places[i] or type(step) is not int:
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
                there[1:] != self._places[i][0][1:] or grad.is_conj() or grad.is_neg()
            ):
                answer |= native.STRANGE
                self._which.append(i)
        return answer

    def which(self) -> list[int]:
        """As ``Watch.which``."""
        return self._which

    def advance(self, steps: NDArray[np.int64]) -> None:
        """As ``Watch.advance``."""
        for state, step in zip(self._states, steps.tolist(), strict=True):
            if step >= 0:
                state["step"] = step + 1

    def _place_all(self, param: Tensor, state: State) -> list[Any]:
        return [_place(param), *(_place(state.get(key)) for key in self._moments)]


def _place(tensor: Tensor | None) -> tuple[int, Any, Any]:
    if tensor is None or tensor.layout != torch.strided:
        return 0, tensor is None, None
    return tensor.data_ptr(), (tensor.dtype, tensor.device), sizes_and_strides(tensor)
