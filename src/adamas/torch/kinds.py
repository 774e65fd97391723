"""What a parameter group keeps beside each parameter: ``adamas.formats`` in torch's types."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import formats, native
from .hyperparameters import keys_of, rule_of
from .sharding import local

# What the core computes each dtype in, and takes it for: complex numbers as pairs of real ones.
CORE = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.complex64: "float32",
    torch.complex128: "float64",
}
_TYPES = {"uint8": torch.uint8, "bfloat16": torch.bfloat16, "float32": torch.float32}
_COMPLEX = {torch.complex64: torch.complex64, torch.complex32: torch.complex64}

# Of the core's rows, in order, those of a state's tensors.
_COLUMNS = (native.EXP_AVG, native.EXP_AVG_SQ, native.MAX_EXP_AVG_SQ, native.MASTER)
_HALVES = ("bfloat16", "float16")


class Kind(NamedTuple):
    """A parameter group's rule and formats, checked by ``kind_of``."""

    moments: str
    master_bits: int | None
    rule: str
    keys: formats.Keys
    """Of the rule's averages; see ``hyper.Rule.keys``."""
    differentiable: bool = False
    offload: str | None = None


class Kept(NamedTuple):
    """A tensor of a parameter's state."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the part that this process holds, where the parameter is sharded."""
    sharded: bool
    """Whether it is sharded as the parameter is; scales are not."""


def not_default(**options: Any) -> dict[str, Any]:
    """Those options that are not the default: groups without are torch.optim's to the last key."""
    defaults = {"moments": "float32", "master_bits": None, "offload": None}
    return {key: value for key, value in options.items() if value != defaults[key]}


def kind_of(group: dict[str, Any]) -> Kind:
    """A group's rule and formats.

    Raises:
        ValueError: these are unknown, or cannot be differentiated through.
    """
    moments, offload = group.get("moments", "float32"), group.get("offload")
    formats.check(moments, group.get("master_bits"))
    if group["differentiable"] and moments != "float32":
        raise ValueError(
            f"moments must be 'float32' with differentiable=True, got {moments!r}: rounding has no "
            "derivative"
        )
    if offload not in (None, "cpu"):
        raise ValueError(
            f"offload must be 'cpu' or None, got {offload!r}: 'cpu' keeps the state of parameters "
            "on a GPU in the host's memory, None beside them"
        )
    if group["differentiable"] and offload is not None:
        raise ValueError(
            f"offload must be None with differentiable=True, got {offload!r}: autograd does not "
            "record what the host steps"
        )
    rule = rule_of(group)
    assert rule is not None, "optimizers have groups of their rules"
    own = rule.rule, keys_of(group), group["differentiable"]
    return Kind(moments, group.get("master_bits"), *own, offload)


def is_of(group: dict[str, Any], kind: Kind) -> bool:
    """Whether a group still is of this kind, without checking it; asked at each step."""
    return kind == (
        group.get("moments", "float32"),
        group.get("master_bits"),
        kind.rule,
        keys_of(group),
        group["differentiable"],
        group.get("offload"),
    )


def kept(param: Tensor, kind: Kind) -> dict[str, Kept]:
    """The tensors of a parameter's state, in the order of its keys.

    Raises:
        ValueError: the parameter's dtype cannot have these formats.
    """
    # Differentiable steps keep no master weights: what they round is the parameter, as torch's do.
    dtype = CORE.get(param.dtype, "float32")
    plain = kind.differentiable and dtype in _HALVES
    part = local(param)
    real = (*part.shape, 2) if part.is_complex() else tuple(part.shape)
    found = {}
    stored = "float32" if plain else dtype
    for slot in formats.slots(stored, kind.moments, kind.master_bits, kind.keys):
        whole = slot.dtype in ("float32", "float64") and slot.key != "master"
        full = torch.float64 if slot.dtype == "float64" else torch.float32
        if whole:
            moment = _COMPLEX.get(param.dtype, param.dtype if param.is_complex() else full)
            found[slot.key] = Kept(moment, tuple(part.shape), True)
        else:
            found[slot.key] = Kept(_TYPES[slot.dtype], slot.shape(real), not slot.groups)
    return found


def by_column(param: Tensor, kind: Kind) -> tuple[str, ...]:
    """A state's keys in the order of the columns of the core's rows, "" where there is none."""
    found = {native.column(key, kind.keys): key for key in kept(param, kind)}
    return tuple(found.get(column, "") for column in _COLUMNS)


def types(param: Tensor, kind: Kind, grad: torch.dtype | None = None) -> int:
    """What the core's rows say of a parameter's types."""
    name = CORE[param.dtype]
    beside = formats.master_beside(name, kind.master_bits)
    read = None if grad is None else CORE[grad]
    return native.types(name, read, kind.moments, beside, kind.rule)


def ordered(param: Tensor, kind: Kind) -> bool:
    """Whether the order of the elements shows: in groups, or in dithers."""
    name = CORE.get(param.dtype, "float32")
    beside = formats.master_beside(name, kind.master_bits)
    return kind.moments != "float32" or (name in _HALVES and beside in (0, 8))
