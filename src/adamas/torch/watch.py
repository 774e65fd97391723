"""Whether tensors still lie where they did, asked of torch at each step."""

from __future__ import annotations

import ctypes
import operator
from functools import cache
from itertools import compress
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import formats, native
from .layout import is_as_stored, sizes_and_strides
from .recode import State
from .sharding import alike, dtensor, local


class Watch(Protocol):
    """Sees whether parameters and moments still lie where they did; src/core/watch.hpp."""

    def fill(self, rows: NDArray[np.int64]) -> None:
        """Writes the addresses of parameters and moments."""

    def look(self, rows: NDArray[np.int64], steps: NDArray[np.int64], threads: int) -> int:
        """Writes the gradients' addresses and the step counts; answers what is out of the way."""

    def which(self) -> list[int]:
        """The gradients that were strange at the last look."""

    def touch(self, steps: NDArray[np.int64]) -> None:
        """Tells autograd that the parameters are written whose step is not -1.

        A graph that saved one must not use it.
        """


def watch(params: list[Tensor], states: list[State], moments: list[tuple[str, ...]]) -> Watch:
    """A watch over these parameters and, in their states, the tensors under these keys."""
    exports = _exports()
    if exports is None:
        return PythonWatch(params, states, moments)
    compiled: Watch = native.Watch(exports, params, states, moments, dtensor())
    return compiled


# What the compiled watch asks: a function of torch's C shim, and two that the shim lacks,
# c10::TensorImpl::grad and torch::autograd::impl::bump_version.
_FUNCTIONS = (
    "aoti_torch_get_data_ptr",
    "_ZNK3c1010TensorImpl4gradEv",
    "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
)
_WORD = ctypes.sizeof(ctypes.c_size_t)
_IMPLS = 176, 184, 192  # bytes that a TensorImpl has, from the newest version to the oldest
_INSIDE = 5  # dimensions whose sizes and strides a TensorImpl has in itself
# Of its last words, in the order of struct Description in src/core/watch.hpp.
_SIZES, _STRIDES, _OFFSET, _ELEMENTS, _TYPE, _KEYS = 1, 6, 11, 12, 13, 14


@cache
def _exports() -> tuple[int | None, ...] | None:
    """What ``native.Watch`` has to know of torch, None where this torch is not as it must be."""
    library = ctypes.CDLL(torch._C.__file__)
    try:
        functions = [getattr(library, name) for name in _FUNCTIONS]
        keys_of = torch._C._dispatch_keys
    except AttributeError:
        return None
    with _disable_current_modes():  # which might make other tensors
        return _exports_of(functions, keys_of)


def _exports_of(functions: list[Any], keys_of: Any) -> tuple[int | None, ...] | None:
    one, other = _zeros(1), torch.nn.Parameter(_zeros(1))
    # In a tensor of Python, that of C++: a pointer to what its ``_cdata`` tells. And in that, a
    # pointer to its storage, which is only fetched ahead.
    size = Tensor.__basicsize__
    fields = _words(id(one), one._cdata, size) & _words(id(other), other._cdata, size)
    storages = _words(one._cdata, one.untyped_storage()._cdata)
    # In there, too, its dispatch keys: the last of its words, of which older versions have more.
    both = [(tensor._cdata, keys_of(tensor).raw_repr()) for tensor in (one, other)]
    found = (set.intersection(*(_words(*of, size) for of in both)) for size in _IMPLS)
    keys = next(filter(None, found), set())
    dense = _keys("Dense")
    otherwise = _keys("Python", "PythonTLSSnapshot", "Conjugate", "Negative", "ZeroTensor")
    undefined = _grad_of(one, functions[-2])
    grad = one.grad = _zeros(1)
    alone = len(fields) == len(keys) == 1
    if not alone or not storages or _grad_of(one, functions[-2]) != grad._cdata:
        return None
    described = min(keys) - _KEYS * _WORD
    if not _describes(described):
        return None
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    return min(fields), min(storages), described, dense, otherwise, undefined, *addresses


def _words(address: int, value: int, size: int = _IMPLS[0]) -> set[int]:
    """At which of the first words of an object there is a value, in bytes from its beginning."""
    words = (ctypes.c_size_t * (size // _WORD)).from_address(address)
    return {i * _WORD for i, found in enumerate(words) if found == value}


def _describes(at: int) -> bool:
    """Whether a TensorImpl's words from there on are what ``struct Description`` says."""
    whole = _zeros(3, 5, 7, 2, 4)
    parts = [whole, whole[1, 2, 3], whole.permute(4, 2, 0, 1, 3)[1:, 2], whole.sum()]
    if not all(_is_described(part, _said(part, at)) for part in parts):
        return False
    # Those of more dimensions only now: their numbers are looked up where a word says.
    parts = [whole[:, None, 1:, :, None], whole.new_zeros(0, 2, 1, 3, 1, 4, 5)]
    if not all(_is_described(part, _said(part, at)) for part in parts):
        return False
    others = (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
    types = [_said(whole.to(dtype), at)[_TYPE] & 0xFFFFFFFF for dtype in (whole.dtype, *others)]
    elsewhere = _said(torch.empty(1, device="meta"), at)[_TYPE] >> 16 & 0xFF
    on_cpu = all(kind >> 16 == 0xFF00 for kind in types)  # where no number says which
    return len(set(types)) == len(types) and on_cpu and elsewhere != 0


def _zeros(*shape: int) -> Tensor:
    """Whatever torch makes by default."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _said(tensor: Tensor, at: int) -> list[int]:
    """The words of its TensorImpl from there on."""
    return list((ctypes.c_int64 * (_KEYS + 1)).from_address(tensor._cdata + at))


def _is_described(tensor: Tensor, words: list[int]) -> bool:
    dimensions = tensor.dim()
    if words[0] != dimensions:
        return False
    sizes = words[_SIZES : _SIZES + dimensions]
    strides = words[_STRIDES : _STRIDES + dimensions]
    if dimensions > _INSIDE:
        numbers = list((ctypes.c_int64 * (2 * dimensions)).from_address(words[_SIZES]))
        sizes, strides = numbers[:dimensions], numbers[dimensions:]
    counts = [tensor.storage_offset(), tensor.numel()]
    said = [sizes, strides, words[_OFFSET : _ELEMENTS + 1]]
    return said == [list(tensor.shape), list(tensor.stride()), counts]


def _keys(*names: str) -> int:
    """The bits of dispatch keys."""
    keys = [getattr(torch._C.DispatchKey, name) for name in names]
    return sum(torch._C.DispatchKeySet(key).raw_repr() for key in keys)


def _grad_of(tensor: Tensor, function: Any) -> int:
    """The address of the C++ gradient of a tensor: that of no tensor's where it has none."""
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return ctypes.c_void_p.from_address(function(tensor._cdata)).value or 0


class PythonWatch:
    """The compiled watch's equal in Python: some microseconds a parameter."""

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

    def look(self, rows: NDArray[np.int64], steps: NDArray[np.int64], threads: int) -> int:
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
            if type(step) is not int or not 0 <= step < formats.MOST_STEPS:
                return native.MOVED
            grad = param.grad
            steps[i] = -1 if grad is None else step
            there = _place(grad)
            if steps[i] != steps[0] or grad is None:
                answer |= native.UNEVEN
            if rows[i, native.GRAD] != there[0]:
                answer |= native.CHANGED
            rows[i, native.GRAD] = there[0]
            if grad is not None and (not alike(param, grad) or there[1:] != self._places[i][0][1:]):
                answer |= native.STRANGE
                self._which.append(i)
        return answer

    def which(self) -> list[int]:
        """As ``Watch.which``."""
        return self._which

    def touch(self, steps: NDArray[np.int64]) -> None:
        """As ``Watch.touch``."""
        torch.autograd.graph.increment_version(list(compress(self._params, steps >= 0)))

    def _moments_of(self, i: int) -> list[Tensor | None]:
        return [self._states[i].get(key) for key in self._names[i]]

    def _place_all(self, i: int) -> list[Any]:
        return [_place(tensor) for tensor in (self._params[i], *self._moments_of(i))]


def _place(tensor: Tensor | None) -> tuple[int, Any, Any]:
    tensor = local(tensor)
    if tensor is None or tensor.layout != torch.strided or not is_as_stored(tensor):
        return 0, tensor is None, None
    return tensor.data_ptr(), (tensor.dtype, tensor.device), sizes_and_strides(tensor)
