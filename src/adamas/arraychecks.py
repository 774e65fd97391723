"""What an array must be to be stepped in place, and a gradient to go with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import formats
from .arraystate import Format
from .hyper import Rule
from .memory import Array, overlaps_itself, shared

_DTYPES = ("float16", "float32", "float64", "bfloat16")


def check_params(params: dict[str, Any], form: Format, hyper: Rule) -> dict[str, Array]:
    """The arrays, or an error where one cannot be stepped in this format, or two share memory."""
    formats.check(*form)
    if not params:
        raise ValueError("params is empty: pass at least one array to optimize")
    for name, param in params.items():
        if not _is_array(param) or param.dtype.name not in _DTYPES:
            raise TypeError(
                f"array {name!r} must be a NumPy array of float16, float32, float64 or ml_dtypes' "
                f"bfloat16, got {_kind(param)}: convert it with numpy.asarray(..., "
                "dtype=numpy.float32)"
            )
        form.slots(param, hyper)  # raises where its dtype cannot have the format
        check_writeable(name, param)
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


def check_writeable(name: str, param: Array) -> None:
    """Raises where an array cannot be written."""
    if not param.flags.writeable:
        raise ValueError(f"array {name!r} is read-only, and a step writes it in place: pass a copy")


def check_grad(name: str, param: Array, grad: Any) -> None:
    """Raises where it is no gradient of this array."""
    if not _is_array(grad) or not _goes_with(param, grad):
        wide = param.dtype.name == "float64"
        rule = "float64" if wide else "float32, bfloat16 or float16"
        raise TypeError(
            f"the gradient of {name!r} must be an array of {rule} beside its array of "
            f"{param.dtype}, got {_kind(grad)}: convert it with numpy.asarray"
        )
    if grad.shape != param.shape:
        raise ValueError(
            f"the gradient of {name!r} must have its array's shape {param.shape}, got "
            f"{grad.shape}: reshape it"
        )


def _is_array(value: object) -> bool:
    """Whether it is an array whose arithmetic is NumPy's own."""
    return isinstance(value, np.ndarray) and not isinstance(value, (np.ma.MaskedArray, np.matrix))


def _goes_with(param: Array, grad: Array) -> bool:
    if grad.dtype == param.dtype:
        return True
    name = grad.dtype.name
    return name in _DTYPES and (name == "float64") == (param.dtype.name == "float64")


def _kind(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{type(value).__name__} of {dtype}"
