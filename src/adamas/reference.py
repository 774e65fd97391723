"""The specification: one step on one NumPy array. Every backend equals it bit for bit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from . import formats, rounding
from .equations import RULES
from .hyper import Rule

State = dict[str, Any]
"""``step``, a whole number, and the arrays of ``formats.slots``."""
Array = np.ndarray
"""A NumPy array of a dtype that ``initial_state`` takes."""


def compute_type(dtype: np.dtype[Any]) -> str:
    """The type that a step of parameters of this dtype is computed in."""
    return "float64" if _name(dtype) == "float64" else "float32"  # in whatever byte order


def dtype_name(array: Array) -> str:
    """Of an array's numbers; NumPy has no bfloat16, and uint16 stands for its bits."""
    return _name(array.dtype)


@lru_cache(maxsize=64)  # NumPy works a name out anew each time, longer than it adds small arrays
def _name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if dtype.name == "uint16" else dtype.name


def initial_state(
    param: Array, hyper: Rule, moments: str = "float32", master_bits: int | None = None
) -> State:
    """The state before the first step: zero moments, and the parameter as its own master weight.

    Args:
        param: float16, float32, float64, or uint16 for the bits of bfloat16.
        hyper: the hyperparameters.
        moments: the moments' format,
        master_bits: and the master weight's bits; see ``formats.slots``.
    """
    state: State = {"step": 0}
    for slot in formats.slots(dtype_name(param), moments, master_bits, hyper.keys):
        shape, dtype = slot.shape(param.shape), slot.dtype.replace("bfloat16", "uint16")
        alike = shape == param.shape  # then laid out in memory as the parameter is
        state[slot.key] = np.zeros_like(param, dtype) if alike else np.zeros(shape, dtype)
    if "master" in state:
        state["master"][...] = param
    return state


def step(
    param: Array,
    grad: Array,
    state: State,
    hyper: Rule,
    unscale: float = 1.0,
    clip: float = 1.0,
    index: Array | None = None,
) -> tuple[Array, State]:
    """One step of a rule on one array of any shape.

    Args:
        param: the parameter, of the dtypes of ``initial_state``.
        grad: its gradient, of the same shape; of float64 beside that, else of any of the others.
        state: ``initial_state(...)`` or what the step before returned.
        hyper: the hyperparameters.
        unscale: 1 / the scale of the gradient.
        clip: what the unscaled gradient is multiplied with; ``norm.clip_factor``.
        index: each element's in the flattened whole tensor, where the array is a part of it.

    Returns:
        The parameter and the state after the step; the arguments stay as they are.
    """
    t = state["step"] + 1
    c = hyper.coefficients(t, compute_type(param.dtype), unscale, clip)
    where = np.arange(param.size) if index is None else index.reshape(-1)
    where = where.astype(np.uint32)
    keys = hyper.keys
    p, g, (m, v) = _weights(param, state), _numbers(grad), load_moments(state, param, keys)
    w = _numbers(state[keys[2]]) if keys[2] else None
    with np.errstate(all="ignore"):  # overflow and NaN are results here, not events
        p, m, v, w = RULES[hyper.rule](p, g, m, v, w, c, np.sqrt, np.maximum)
        new = {keys[2]: w} | store_moments(m, v, g != 0, state, param, where, t, keys)
        kept, beside = _store_weights(p, param, state, where, t)
    new |= beside
    arrays = {
        key: new[key].view(old.dtype).reshape(old.shape)
        for key, old in state.items()
        if key != "step"
    }
    return kept.astype(param.dtype).reshape(param.shape), {"step": t} | arrays


def _numbers(array: Array) -> Array:
    # flat: before 2.0, NumPy computes with 0-dimensional arrays in float64
    flat = array.reshape(-1)
    if dtype_name(flat) == "bfloat16":
        return rounding.from_bfloat16(flat)
    return flat.astype(compute_type(flat.dtype))


def _weights(param: Array, state: State) -> Array:
    """What is trained: the master weight where there is one, else the parameter."""
    if "master" in state:
        # Where the parameter is not its rounding, somebody has set the parameter anew.
        master, param = _numbers(state["master"]), param.reshape(-1).astype(np.float16)
        with np.errstate(over="ignore"):
            own = master.astype(np.float16).view(np.uint16) == param.view(np.uint16)
        return np.where(own, master, param).astype(np.float32)
    if "remainder" in state:
        return rounding.join(param.reshape(-1), _words(state["remainder"], param))
    return _numbers(param)


def _store_weights(
    p: Array, param: Array, state: State, index: Array, step: int
) -> tuple[Array, State]:
    """The parameter that the model sees, and what is kept beside it."""
    if "master" in state:
        return p.astype(np.float16), {"master": p}
    if "remainder" in state:
        bits = 8 * _words(state["remainder"], param).itemsize
        kept, rest = rounding.split(p, bits, index, step)
        return kept, {"remainder": rest}
    if dtype_name(param) == "bfloat16":
        return rounding.to_bfloat16(p, index, step, other=True), {}
    if dtype_name(param) == "float16":
        return rounding.to_float16(p, index, step), {}
    return p, {}


def load_moments(state: State, param: Array, keys: formats.Keys) -> tuple[Any, Any]:
    """Both moments as numbers, flat, of a state that lies beside an array of param's shape.

    Those that the keys do without are None.
    """
    if "words" not in state:
        m, v = (_numbers(state[key]) if key else None for key in keys[:2])
        return m, v
    words = _words(state["words"], param)
    m, v = formats.Codec(4 * words.itemsize).decode(words, state["scales"])
    return m if keys[0] else None, v if keys[1] else None


def store_moments(
    m: Any,
    v: Any,
    active: Array,
    state: State,
    param: Array,
    index: Array,
    step: int,
    keys: formats.Keys,
) -> State:
    """Both moments in the format of a state, as flat arrays; see ``formats.Codec.encode``.

    A codec keeps both. Where a rule has only the second, the first is zero; where it has only the
    first, the second is its square, so that the first is kept with the precision of both codes.
    """
    if "words" in state:
        codec = formats.Codec(4 * _words(state["words"], param).itemsize)
        m = np.zeros_like(v) if m is None else m
        words, scales = codec.encode(m, m * m if v is None else v, active, index, step)
        return {"words": words, "scales": scales}
    found = {key: x for key, x in zip(keys[:2], (m, v), strict=True) if key}
    return {
        key: rounding.to_bfloat16(x, index, step, other=key == keys[0])
        if state[key].dtype == np.uint16
        else x
        for key, x in found.items()
    }


def _words(array: Array, param: Array) -> Array:
    """Words of one byte or, where the bytes are a dimension of their own, of two; flat."""
    return array.reshape(-1).view("<u2" if array.ndim > param.ndim else "u1")
