"""Memory that a step would write twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .layout import has_data


class _Piece(NamedTuple):
    """A tensor that is written, where it begins and ends in the memory of its device."""

    device: str
    low: int
    high: int
    owner: int
    tensor: Tensor


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements of a tensor are the same memory, as those of an expanded one are."""
    if tensor.layout != torch.strided or not tensor.numel():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return bool(np.unique(_offsets(tensor)).size < tensor.numel())
        reach += stride * (size - 1)
    return False


def address(tensor: Tensor) -> int:
    """Where a tensor lies, 0 where it cannot tell."""
    if tensor.layout != torch.strided or not has_data(tensor):
        return 0
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a wrapper of other tensors
        return 0


def refuse_overlap(written: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Raises where two tensors that a step writes share elements.

    Args:
        written: of each parameter, what errors call it, and the tensors that its step writes, none
            of which overlaps itself.

    Raises:
        ValueError: two share memory, or are the same.
    """
    pieces: list[_Piece] = []
    owners: dict[int, int] = {}
    names = [name for name, _ in written]
    for owner, (_, tensors) in enumerate(written):
        for tensor in tensors:
            low = address(tensor)
            if low and tensor.numel():
                span = int(_reach(tensor) + 1) * tensor.element_size()
                pieces.append(_Piece(str(tensor.device), low, low + span, owner, tensor))
            elif not low and owners.setdefault(id(tensor), owner) != owner:
                raise shared(names[owners[id(tensor)]], names[owner])
    pieces.sort(key=lambda piece: piece[:3])
    near: list[_Piece] = []
    end = 0
    for piece in pieces:
        if near and (piece.device != near[0].device or piece.low >= end):
            _refuse_among(near, names)
            near, end = [], 0
        near.append(piece)
        end = max(end, piece.high)
    _refuse_among(near, names)


def shared(one: str, other: str) -> ValueError:
    """The error for two parameters that a step cannot both update."""
    return ValueError(
        f"{one} and {other} or their states share memory, so a step would update it twice: pass "
        "one of them, or tie them as one Parameter"
    )


def _refuse_among(near: list[_Piece], names: Sequence[str]) -> None:
    """Raises where pieces whose spans overlap share an element; columns of a matrix do not."""
    if len(near) < 2:
        return
    unit = min(piece.tensor.element_size() for piece in near)
    places, owners = [], []
    for number, (_, low, _, _, tensor) in enumerate(near):
        size = tensor.element_size()
        starts = low + _offsets(tensor) * size
        places.append(np.add.outer(starts, np.arange(0, size, unit)).reshape(-1) // unit)
        owners.append(np.full(places[-1].size, number))
    place, owner = np.concatenate(places), np.concatenate(owners)
    order = np.argsort(place, kind="stable")
    place, owner = place[order], owner[order]
    for i in np.flatnonzero(place[1:] == place[:-1])[:1].tolist():
        one, other = sorted(near[int(k)].owner for k in owner[i : i + 2])
        raise shared(names[one], names[other])


def _reach(tensor: Tensor) -> int:
    """The last element's distance from the first."""
    return sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _offsets(tensor: Tensor) -> NDArray[np.int64]:
    """Each element's distance from the first."""
    found = np.zeros((), np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = np.add.outer(found, np.arange(size, dtype=np.int64) * stride)
    return found.reshape(-1)
