"""Stepping on copies: what the core or the kernels take, but not where or as it lies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..hyper import Rule
from . import gpu
from .kinds import CORE, Kind, kept, ordered, types
from .layout import has_data
from .plain import real
from .recode import State
from .sharding import local, place_in_whole
from .threads import threads


def needed(param: Tensor, kind: Kind) -> bool:
    """Whether plain operations cannot step a parameter, since they know no formats."""
    halves = param.dtype in (torch.bfloat16, torch.float16)
    return not kind.differentiable and (halves or ordered(param, kind))


def step(
    param: Tensor,
    grad: Tensor,
    state: State,
    kind: Kind,
    hyper: Rule,
    unscale: float,
    clip: float,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One step of one parameter, computed but not yet stored; as ``plain.step``.

    Args:
        param: the parameter.
        grad: the part of its gradient that this process holds,
        state: and of its state.
        kind: its formats.
        hyper: the hyperparameters.
        unscale: what the gradient is multiplied with first,
        clip: and then.
    """
    keys = list(kept(param, kind))
    part = local(param)
    targets = [part, *(state[key] for key in keys)]
    if not has_data(part):
        yield from zip(targets, targets, strict=True)
        return
    device = part.device if gpu.takes(part.device) else torch.device("cpu")
    copies = [real(each.detach()).to(device).contiguous().clone() for each in targets]
    read = real(grad.detach()).to(device)
    if read.dtype not in CORE or copies[0].dtype == torch.float64:
        read = read.to(copies[0].dtype)
    elif read.dtype == torch.float64:
        read = read.float()
    read = read.contiguous()
    rows = native.table(1)
    columns = [native.PARAM, *(native.column(key, kind.keys) for key in keys)]
    rows[0, columns] = [c.data_ptr() for c in copies]
    rows[0, native.GRAD], rows[0, native.SIZE] = read.data_ptr(), copies[0].numel()
    rows[0, native.TYPES] = types(param, kind, read.dtype)
    if (place := place_in_whole(param)) is not None:
        rows[0, [native.OFFSET, native.RUN, native.STRIDE]] = place
    compute = "float64" if copies[0].dtype == torch.float64 else "float32"
    coefficients = hyper.coefficients(state["step"] + 1, compute, unscale, clip)
    table = np.array([coefficients], np.float64)
    if gpu.takes(device):
        from .gpu.launches import Launches

        Launches(rows, device).step(table)
    else:
        native.step(rows, table, threads())
    for target, copy in zip(targets, copies, strict=True):
        yield target, torch.view_as_complex(copy) if target.is_complex() else copy
