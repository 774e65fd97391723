"""What a parameter group keeps beside each parameter: ``adamas.formats`` in torch's types."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import formats, native
from ..hyper import Hyper
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

# The keys of a state in the order of the columns of the core's rows.
_COLUMNS = (
    ("exp_avg", "words"),
    ("exp_avg_sq", "scales"),
    ("max_exp_avg_sq",),
    ("remainder", "master"),
)
_HALVES = ("bfloat16", "float16")


class Kind(NamedTuple):
    """A parameter group's formats, checked by ``kind_of``."""

    moments: str
    master_bits: int | None
    amsgrad: bool
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
    """A group's formats.

    Raises:
        ValueError: they are unknown, or cannot be differentiated through.
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
    own = group["amsgrad"], group["differentiable"]
    return Kind(moments, group.get("master_bits"), *own, offload)


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
    for slot in formats.slots(
        "float32" if plain else dtype, *kind[:2], Hyper(amsgrad=kind.amsgrad).keys
    ):
        whole = slot.dtype in ("float32", "float64") and slot.key != "master"
        full = torch.float64 if slot.dtype == "float64" else torch.float32
        if whole:
            moment = _COMPLEX.get(param.dtype, param.dtype if param.is_complex() else full)
            found[slot.key] = Kept(moment, tuple(part.shape), True)
        else:
            found[slot.key] = Kept(_TYPES[slot.dtype], slot.shape(real), not slot.groups)
    return found


def by_column(keys: dict[str, Kept]) -> tuple[str, ...]:
    """A state's keys in the order of the columns of the core's rows, "" where there is none."""
    return tuple(next((k for k in names if k in keys), "") for names in _COLUMNS)


def types(param: Tensor, kind: Kind, grad: torch.dtype | None = None) -> int:
    """What the core's rows say of a parameter's types."""
    name = CORE[param.dtype]
    beside = formats.master_beside(name, kind.master_bits)
    return native.types(name, None if grad is None else CORE[grad], kind.moments, beside)


def ordered(param: Tensor, kind: Kind) -> bool:
    """Whether the order of the elements shows: in groups, or in dithers."""
    name = CORE.get(param.dtype, "float32")
    beside = formats.master_beside(name, kind.master_bits)
    return kind.moments != "float32" or (name in _HALVES and beside in (0, 8))
