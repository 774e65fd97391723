"""Where a parameter's state lives: beside it, or in the host's memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import gpu
from .kinds import Kind
from .layout import is_plain
from .sharding import local


def offloads(param: Tensor, kind: Kind) -> bool:
    """Whether a parameter's state lives in the host's memory, away from the parameter.

    What plain operations step, such as views with gaps, keeps its state beside it.
    """
    part = local(param)
    return kind.offload is not None and part.device.type in gpu.DEVICES and is_plain(part)


def home(param: Tensor, kind: Kind) -> dict[str, Any]:
    """Where a parameter's state lives, in the words of torch's constructors of tensors."""
    device = local(param).device
    if offloads(param, kind):
        return {"device": "cpu", "pin_memory": device.type != "cpu"}
    return {"device": device}


def is_home(value: Tensor, param: Tensor, kind: Kind) -> bool:
    """Whether a tensor of a parameter's state lies there."""
    part, device = local(value), local(param).device
    if not offloads(param, kind):
        return part.device == device
    pinned = device.type == "cpu" or not part.numel() or part.is_pinned()
    return part.device.type == "cpu" and pinned
