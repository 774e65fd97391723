"""The state beside NumPy arrays: made, saved and loaded, in each of the formats."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import numpy as np

from . import formats, native, reference
from .hyper import Hyper, RMSpropHyper, Rule, SGDHyper
from .memory import Array, aligned_zeros_like, is_dense
from .reference import State
from .rounding import from_bfloat16

VERSION = 1  # of state_dict(); one without its number is older and has moments in float32

_HYPERS: dict[str, type[Rule]] = {kind.rule: kind for kind in (Hyper, SGDHyper, RMSpropHyper)}


class Format(NamedTuple):
    """How the state of all arrays of an optimizer is kept; ``formats.slots`` says what it is."""

    moments: str = "float32"
    master_bits: int | None = None

    def slots(self, param: Array, hyper: Rule) -> tuple[formats.Slot, ...]:
        """Of the arrays beside one."""
        return formats.slots(param.dtype.name, *self, hyper.keys)

    def is_stepped_by_core(self, param: Array) -> bool:
        """Whether the core steps such an array: not where it would count elements otherwise.

        It counts them in memory order; what is rounded by a dither needs C order.
        """
        halves = param.dtype.itemsize == 2
        dithered = self.moments != "float32" or (halves and self.master_bits in (24, 16))
        return is_dense(param) and (param.flags.c_contiguous or not dithered)

    def types(self, param: Array, rule: str, grad: str | None = None) -> int:
        """What the core is told of an array and its gradient's dtype, by default the same."""
        name = param.dtype.name
        beside = formats.master_beside(name, self.master_bits)
        return native.types(name, grad, self.moments, beside, rule)


def plain(array: Array) -> Array:
    """The array itself or, where it is of bfloat16, its bits, which stand for it in ``reference``.

    NumPy has no bfloat16; packages that add it, as ml_dtypes, name it so.
    """
    if array.dtype.name != "bfloat16":
        return array
    return array.view(np.dtype(np.uint16).newbyteorder(array.dtype.byteorder))


def initial_state(param: Array, hyper: Rule, form: Format) -> State:
    """``reference.initial_state``, laid out for the core: in the array's memory order, aligned."""
    state: State = {"step": 0}
    for slot in form.slots(param, hyper):
        state[slot.key] = _zeros(slot, param)
    if "master" in state:
        state["master"][...] = param
    return state


def _zeros(slot: formats.Slot, param: Array) -> Array:
    if slot.groups:
        return aligned_zeros_like(np.empty(slot.shape(param.shape), np.uint16), "uint16")
    if slot.width:  # the bytes of an element side by side, the elements in the array's order
        return aligned_zeros_like(param, f"uint{8 * slot.width}")[..., None].view("uint8")
    return aligned_zeros_like(param, slot.dtype.replace("bfloat16", "uint16"))


def relaid(state: State, param: Array, hyper: Rule, form: Format) -> State:
    """A state laid out as ``initial_state`` does it, as neither files nor copies keep it.

    Master weights of other bits lose the last, or gain zeros; where they lack, the array is theirs.
    """
    fresh = initial_state(param, hyper, form)
    for key in fresh.keys() & state.keys() - {"step"}:
        old, new = state[key], fresh[key]
        if key == "remainder" and old.ndim != new.ndim:  # of 8 bits and of 16, the second the upper
            old, new = (old[..., 1], new) if old.ndim > new.ndim else (old, new[..., 1])
        new[...] = old
    return fresh | {"step": state["step"]}


def flattened(states: Mapping[str, State], hyper: Rule, form: Format) -> dict[str, Array]:
    """What ``state_dict`` returns."""
    bits = 32 if form.master_bits is None else form.master_bits
    flat = {"format": VERSION, "moments": form.moments, "master_bits": bits}
    flat |= {"rule": hyper.rule} | {f"hyper/{name}": v for name, v in asdict(hyper).items()}
    for name, state in states.items():
        flat |= {f"state/{name}/{key}": value for key, value in state.items()}
    return {key: np.array(value) for key, value in flat.items()}


def read(state_dict: Mapping[str, Array]) -> dict[str, Array]:
    """The dictionary, whole in memory.

    Raises:
        ValueError: it is no mapping, or something in it cannot be read.
    """
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


def load_hyper(loaded: Mapping[str, Array]) -> Rule:
    """The hyperparameters of what ``read`` returned; raises ValueError where there are none."""
    rule = str(loaded.get("rule", Hyper.rule))  # older states are Adam's
    if rule not in _HYPERS:
        raise ValueError(
            f"rule must be one of {', '.join(_HYPERS)}, got {rule!r}: the state is damaged or of a "
            "later version, load another copy"
        )
    try:
        kind: Any = _HYPERS[rule]
        values = {field.name: loaded[f"hyper/{field.name}"].tolist() for field in fields(kind)}
        hyper: Rule = kind(**values)
        return hyper
    except KeyError as error:
        raise ValueError(f"the state is not one of adamas's: it has no {error}") from None
    except TypeError as error:
        raise ValueError(f"the state is not one of adamas's: {error}") from None


def load_states(
    loaded: Mapping[str, Array], params: Mapping[str, Array], hyper: Rule, form: Format
) -> dict[str, State]:
    """Each array's state out of what ``read`` returned, in this format whatever it was saved in.

    Raises:
        ValueError: the state is in no known format, of other arrays, or damaged.
    """
    saved = _saved_format(loaded)
    slots = {name: _saved_slots(name, param, hyper, saved) for name, param in params.items()}
    _check_keys(loaded, slots)
    states = {}
    for name, param in params.items():
        found: State = {"step": _checked_step(loaded[f"state/{name}/step"], name)}
        for slot in slots[name]:
            if f"state/{name}/{slot.key}" in loaded:
                found[slot.key] = _checked(loaded[f"state/{name}/{slot.key}"], slot, param, name)
        if saved.moments != form.moments:
            like = initial_state(param, hyper, form)
            found |= _recoded(found, param, like, hyper.keys)
        states[name] = relaid(found, param, hyper, form)
    return states


def _saved_format(loaded: Mapping[str, Array]) -> Format:
    if "format" not in loaded:
        return Format()
    version = loaded["format"].tolist()
    if version != VERSION:
        raise ValueError(
            f"the state's format must be {VERSION}, got {version!r}: load it with the version of "
            "adamas that saved it"
        )
    try:
        saved = Format(loaded["moments"].tolist(), loaded["master_bits"].tolist())
        formats.check(*saved)
    except KeyError as error:
        raise ValueError(f"the state is not one of adamas's: it has no {error}") from None
    except ValueError as error:
        raise ValueError(f"{error}: the state is damaged, load another copy") from None
    return saved


def _saved_slots(name: str, param: Array, hyper: Rule, saved: Format) -> tuple[formats.Slot, ...]:
    try:
        return saved.slots(param, hyper)
    except ValueError as error:
        raise ValueError(
            f"the state is of arrays of another type than array {name!r}: {error}"
        ) from None


def _check_keys(loaded: Mapping[str, Array], slots: Mapping[str, tuple[formats.Slot, ...]]) -> None:
    """The keys must be these slots'; master weights may lack, which begin as the arrays then."""
    allowed = {f"state/{name}/{slot.key}" for name, kept in slots.items() for slot in kept}
    allowed |= {f"state/{name}/step" for name in slots}
    needed = {key for key in allowed if key.rpartition("/")[2] not in ("master", "remainder")}
    found = {key for key in loaded if key.startswith("state/")}
    if needed - found or found - allowed:
        raise ValueError(
            f"the state is of other arrays than these: it lacks {listed(needed - found)} and "
            f"has {listed(found - allowed)} beyond them"
        )


def _checked(value: Array, slot: formats.Slot, param: Array, name: str) -> Array:
    """An array of a state, or ValueError where it is not as its slot says."""
    dtype = np.dtype(slot.dtype.replace("bfloat16", "uint16"))
    _check_array(value, slot.key, dtype, slot.shape(param.shape), name)
    if value.dtype != dtype:
        raise ValueError(
            f"{slot.key} of array {name!r} must be {dtype}, got {value.dtype}: the state is of "
            "arrays of another type"
        )
    if slot.groups:
        formats.check_scales(value, f"{slot.key} of array {name!r}")
    if slot.key in formats.SQUARES:
        squares = from_bfloat16(value) if slot.dtype == "bfloat16" else value
        if (squares < 0).any():
            raise ValueError(
                f"{slot.key} of array {name!r} must be at least 0, got {np.nanmin(squares)}: the "
                "state is damaged, load another copy"
            )
    return value


def _checked_step(value: Array, name: str) -> int:
    _check_array(value, "step", np.dtype(np.int64), (), name)
    if not 0 <= value < formats.MOST_STEPS:
        raise ValueError(f"step of array {name!r} must be from 0 to 2^53 - 1, got {value}")
    return int(value)


def _check_array(
    value: Array, key: str, dtype: np.dtype[Any], shape: tuple[int, ...], name: str
) -> None:
    if value.shape != shape or value.dtype.kind != dtype.kind:
        raise ValueError(
            f"{key} of array {name!r} must be {dtype} of shape {shape}, got {value.dtype} of "
            f"shape {value.shape}: the state is of another model"
        )


def _recoded(found: State, param: Array, like: State, keys: formats.Keys) -> State:
    """The moments of a state in the format of another's, as of the step that was the last."""
    index = np.arange(param.size).astype(np.uint32)
    # Converting is arithmetic too, and the same in whatever mode the thread is.
    with native.default_floating_point(), np.errstate(all="ignore"):
        m, v = reference.load_moments(found, param, keys)
        v = None if v is None else v + 0  # so that a negative zero is zero in its bits
        active = np.ones(param.size, np.bool_)
        new = reference.store_moments(m, v, active, like, param, index, found["step"], keys)
    return {key: a.view(like[key].dtype).reshape(like[key].shape) for key, a in new.items()}


def listed(names: Collection[str]) -> str:
    """The first of some names, for errors."""
    shown = sorted(names)[:5]
    return ", ".join(map(repr, shown)) + (", ..." if len(names) > len(shown) else "") or "none"
