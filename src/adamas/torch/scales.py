"""Scales of codecs in checkpoints, where a parameter is sharded.

A process keeps scales of the groups of its own part. In a checkpoint they are a tensor that is
sharded as the parameter is, so that whoever reads it may shard it otherwise: by groups where each
row of the part is of whole groups, else by elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import formats
from .recode import State, format_of
from .sharding import is_sharded, local, local_like, sharded_like


def shard(param: Any, scales: Tensor) -> Tensor:
    """A process's scales as a part of a sharded tensor."""
    part = local(param)
    if _by_rows(param):
        from torch.distributed.tensor import DTensor

        own, width = (each.shape[1:].numel() // formats.GROUP for each in (part, param))
        shape = torch.Size([param.shape[0], width, formats.SCALES])
        stride = (width * formats.SCALES, formats.SCALES, 1)
        rows: Tensor = DTensor.from_local(
            scales.view(part.shape[0], own, formats.SCALES),
            param.device_mesh,
            param.placements,
            run_check=False,
            shape=shape,
            stride=stride,
        )
        return rows
    each = scales.repeat_interleave(formats.GROUP, 0)[: part.numel()]
    return sharded_like(each.reshape(*part.shape, formats.SCALES), param)


def gather(param: Tensor, state: State) -> State:
    """A state of a checkpoint with the scales of this process's groups.

    Where elements of a group bring different scales, it is encoded anew.
    """
    words, scales = state["words"], state["scales"]
    part = local(param)
    if is_sharded(param):
        words = sharded_like(local_like(words, param), param)
        own = scales.dim() == 2 and scales.shape != (*param.shape, formats.SCALES)
        scales = scales if own and not is_sharded(scales) else local_like(scales, param)
    else:
        words, scales = local_like(words, param), local_like(scales, param)
    if scales.shape != (*part.shape, formats.SCALES):
        return state | {"words": words, "scales": scales.reshape(-1, formats.SCALES).contiguous()}
    each = scales.reshape(-1, formats.SCALES).cpu().contiguous()
    each = each.view(torch.int16).numpy().view(np.uint16)
    padded = np.pad(each, ((0, -len(each) % formats.GROUP), (0, 0)), "edge")
    groups = padded.reshape(-1, formats.GROUP, formats.SCALES)
    found = np.ascontiguousarray(groups[:, 0])
    state = state | {"words": words}
    mixed = np.flatnonzero((groups != groups[:, :1]).any((1, 2)))
    if mixed.size:
        _encode_anew(param, state, groups, mixed, found)
    return state | {"scales": torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)}


def _encode_anew(param: Tensor, state: State, groups: Any, mixed: Any, found: Any) -> None:
    """Groups whose elements have scales of their own, in place."""
    codec = formats.CODECS[format_of(param, state)]
    stored = local(state["words"])
    words = stored.cpu().reshape(-1).numpy().view(f"<u{codec.bits // 4}")
    for i in mixed.tolist():
        at = slice(i * formats.GROUP, (i + 1) * formats.GROUP)
        own = words[at]
        # Each element is decoded as the only one of a group that it fills.
        spread = np.repeat(own, formats.GROUP)
        m, v = codec.decode(spread, groups[i, : own.size])
        m, v = m[:: formats.GROUP].copy(), v[:: formats.GROUP].copy()
        index = np.arange(own.size, dtype=np.uint32) + np.uint32(at.start)
        active = np.ones(own.size, np.bool_)
        words[at], found[i : i + 1] = codec.encode(m, v, active, index, int(state["step"]))
    stored.copy_(torch.from_numpy(words.view(np.uint8)).view(stored.shape))


def _by_rows(param: Any) -> bool:
    """Whether each row of a process's part is of whole groups."""
    part = local(param)
    if param.dim() < 2 or part.is_complex():
        return False
    whole, own = param.shape[1:].numel(), part.shape[1:].numel()
    if own == whole:
        return own > 0 and own % formats.GROUP == 0
    return param.dim() == 2 and whole > 0 and not (own % formats.GROUP or whole % formats.GROUP)
