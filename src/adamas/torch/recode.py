"""States of one moment format turned into another's, by the specification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import formats, rounding
from .kinds import Kind
from .sharding import is_sharded, local, sharded_like

State = dict[str, Any]  # step: int; and the tensors of ``kinds.kept``

_CHUNK = 1 << 22  # elements at a time, a multiple of a group, so that little memory is needed


def format_of(param: Tensor, state: Mapping[str, Any]) -> str:
    """The codec of a state's moments, or "float32" where each is kept by itself."""
    if "words" not in state:
        return "float32"
    part = local(param)
    wide = len(local(state["words"]).shape) > part.dim() + part.is_complex()
    return "int8" if wide else "int4"


def decoded(param: Tensor, state: Mapping[str, Any], keys: formats.Keys) -> tuple[Any, Any]:
    """The moments that this process holds, as numbers of the parameter's shape and on its device.

    Complex parameters' are complex. Those that the keys do without are None.
    """
    part = local(param)
    device = torch.device("cpu") if part.is_meta else part.device
    if "words" not in state:
        m, v = (local(state[key]).to(device) if key else None for key in keys[:2])
        return m, v
    codec = formats.CODECS[format_of(param, state)]
    words = _bytes(local(state["words"])).view(f"<u{codec.bits // 4}")
    scales = _halves(state["scales"])
    shape = (*part.shape, 2) if part.is_complex() else part.shape
    both = np.zeros((2, words.size), np.float32)
    for at, groups in _chunks(words.size):
        both[:, at] = codec.decode(words[at], scales[groups])
    found = [torch.from_numpy(x).reshape(shape).to(device) for x in both]
    first, second = (torch.view_as_complex(x) if part.is_complex() else x for x in found)
    return first if keys[0] else None, second if keys[1] else None


def as_complex(moment: Tensor) -> Tensor:
    """A moment of complex numbers where it is of pairs, as formats below float32 keep them."""
    pairs = moment.is_floating_point() and moment.shape[-1:] == (2,)
    if not pairs:
        return moment
    wide = moment if moment.dtype == torch.float64 else moment.float()
    return torch.view_as_complex(wide.contiguous())


def expanded(state: State, group: Mapping[str, Any], name: str) -> State:
    """A checkpoint's state of Adam with moments in float32, of a parameter that is not at hand.

    Args:
        state: of the whole parameter; without words it stays as it is.
        group: the parameter group, which says the format.
        name: what errors call the parameter.

    Raises:
        ValueError: the words and scales are no state of that format.
    """
    if "words" not in state:
        return state
    moments = group.get("moments")
    codec = formats.CODECS.get(str(moments))
    words, scales = state["words"], state.get("scales")
    if not (
        codec
        and isinstance(words, Tensor)
        and isinstance(scales, Tensor)
        and (words.dtype, scales.dtype) == (torch.uint8, torch.bfloat16)
    ):
        raise ValueError(
            f"the state of {name} must have words of torch.uint8 and scales of torch.bfloat16 in a "
            f"group whose moments are one of {', '.join(formats.CODECS)}, got moments={moments!r}"
        )
    shape = words.shape[:-1] if codec.bits == 8 else words.shape
    groups = -(-shape.numel() // formats.GROUP)
    narrow = codec.bits == 8 and words.shape[-1:] != (2,)
    if narrow or scales.shape != (groups, formats.SCALES):
        raise ValueError(
            f"the state of {name} must have scales of shape {(groups, formats.SCALES)} beside "
            f"words of shape {tuple(words.shape)}, got {tuple(scales.shape)}: the checkpoint is "
            "damaged, or of a part of a sharded parameter"
        )
    formats.check_scales(_halves(scales), f"the scales of {name}")
    kept = {k: v for k, v in state.items() if k not in ("words", "scales")}
    moments = decoded(torch.empty(shape, device="meta"), state, formats.ADAM)
    return kept | dict(zip(formats.ADAM[:2], moments, strict=True))


def trained(param: Tensor, state: Mapping[str, Any]) -> Tensor:
    """The weights that are trained, as far as this process holds them: masters where there are."""
    part = local(param).detach()
    if "master" in state:
        whole = local(state["master"]).to(part.device)
        return torch.where(whole.to(part.dtype) == part, whole, part.to(whole.dtype))
    if "remainder" not in state:
        return part
    rest = _bytes(local(state["remainder"]))
    wide = local(state["remainder"]).dim() > part.dim()
    halves = part.cpu().contiguous().view(torch.int16).numpy().view(np.uint16).reshape(-1)
    joined = rounding.join(halves, rest.view("<u2") if wide else rest)
    return torch.from_numpy(joined).reshape(part.shape).to(part.device)


def recoded(param: Tensor, state: State, kind: Kind, name: str) -> State:
    """The state with its moments in a group's format, as near as that can be.

    Raises:
        ValueError: the state has no moments.
    """
    full = [key for key in kind.keys[:2] if key]
    if "words" not in state and not all(isinstance(state.get(k), Tensor) for k in full):
        return state  # which lacks what the caller will name
    moments = [x for x in decoded(param, state, kind.keys) if x is not None]
    rest = {k: v for k, v in state.items() if k not in (*full, "words", "scales")}
    if kind.moments not in formats.CODECS:
        kept = dict(zip(full, moments, strict=True))
        if is_sharded(param):
            kept = {key: sharded_like(value, param) for key, value in kept.items()}
        return rest | kept
    codec = formats.CODECS[kind.moments]
    real = [torch.view_as_real(x) if x.is_complex() else x for x in moments]
    flat = [x.detach().float().cpu().contiguous().numpy().reshape(-1) for x in real]
    # A codec keeps both: see ``reference.store_moments``.
    m = flat[0] if kind.keys[0] else np.zeros_like(flat[0])
    v = flat[-1] if kind.keys[1] else m * m
    if m.size != local(param).numel() * (1 + param.is_complex()):
        raise ValueError(f"the state of {name} has moments of another shape than its parameter")
    words = np.zeros(m.size, codec.dtype)
    scales = np.zeros((-(-m.size // formats.GROUP), formats.SCALES), np.uint16)
    for at, groups in _chunks(m.size):
        index = np.arange(at.start, at.start + words[at].size, dtype=np.uint32)
        active = np.ones(index.size, np.bool_)
        words[at], scales[groups] = codec.encode(m[at], v[at], active, index, int(state["step"]))
    shape = (*real[0].shape, 2) if codec.bits == 8 else real[0].shape
    stored = torch.from_numpy(words.view(np.uint8)).reshape(shape).to(param.device)
    of_groups = torch.from_numpy(scales.view(np.int16)).view(torch.bfloat16).to(param.device)
    wrapped = sharded_like(stored, param) if is_sharded(param) else stored
    return rest | {"words": wrapped, "scales": of_groups}


def _chunks(size: int) -> Iterator[tuple[slice, slice]]:
    """Elements, and their groups."""
    for start in range(0, size, _CHUNK):
        first = start // formats.GROUP
        yield slice(start, start + _CHUNK), slice(first, first + _CHUNK // formats.GROUP)


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).numpy()


def _halves(scales: Tensor) -> Any:
    return scales.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
