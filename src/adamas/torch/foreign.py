"""The layouts in which other optimizers keep Adam's state, each read into that of torch.optim.

A layout is known by its own keys, dtypes and attributes: none of these optimizers is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .recode import State, as_complex, expanded
from .state import whole_step

Group = dict[str, Any]

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_BITSANDBYTES_WRAP = "__bnb_optimizer_quant_state__"
_BITSANDBYTES_BLOCKS = (256, 2048)  # now, and before 0.45
_FLASHOPTIM_GROUP = 32
# Its foreach chooses among its own kernels.
_OPTIMI_OPTIONS = frozenset(("beta1", "beta2", "decouple_wd", "decouple_lr", "max_lr", "kahan_sum"))
_OPTIMI_OPTIONS |= {"foreach", "triton", "gradient_release", "setup", "step"}


class Layout(NamedTuple):
    """How one kind of optimizer keeps its state.

    Args:
        name: what a report calls it.
        fits: whether parameter groups and states are of it.
        read_state: a parameter's state with its group and its name, as torch.optim keeps it; what
            it has no place for stays in it under its own key.
        read_group: a parameter group's options, as torch.optim keeps them.
        own: options of a group that only this optimizer has.
    """

    name: str
    fits: Callable[[list[Group], list[State]], bool]
    read_state: Callable[[State, Group, str], State]
    read_group: Callable[[Group], Group] = dict
    own: frozenset[str] = frozenset()


def recognise(groups: list[Group], states: Iterable[State]) -> Layout:
    """The layout of a state dictionary.

    Args:
        groups: its parameter groups.
        states: the states of its parameters.

    Raises:
        ValueError: it is of none that is known.
    """
    stepped = [state for state in states if state]
    for layout in LAYOUTS:
        if layout.fits(groups, stepped):
            return layout
    options = sorted(set().union(*groups) - {"params", "param_names"})
    keys = sorted(set().union(*stepped)) if stepped else []
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(
        f"the optimizer's state must be Adam's, of {known}; got groups with {options} and states "
        f"with {keys}: check that the file is of one of these optimizers"
    )


def _in_every(groups: list[Group], *options: str) -> bool:
    return all(option in group for group in groups for option in options)


def _in_any(mappings: Iterable[Mapping[str, Any]], *keys: str) -> bool:
    return any(key in mapping for mapping in mappings for key in keys)


def _damaged(name: str, rule: str, got: object) -> ValueError:
    return ValueError(
        f"the state of {name} must have {rule}, got {got}: it is damaged, or not Adam's; restore "
        "the checkpoint"
    )


def _read(state: State, group: Group, name: str) -> State:
    """A state whose moments are plain tensors."""
    if "step" not in state and "step" not in group:
        raise _damaged(name, "a step", f"the keys {sorted(state)}")
    step = whole_step(state.get("step", group.get("step")), name)
    moments = {key: state[key] for key in _MOMENTS if state.get(key) is not None}
    for key in _MOMENTS[:2]:
        if key not in moments:
            raise _damaged(name, key, f"the keys {sorted(state)}")
    for key, moment in moments.items():
        if not isinstance(moment, Tensor) or not (
            moment.is_floating_point() or moment.is_complex()
        ):
            got = moment.dtype if isinstance(moment, Tensor) else type(moment).__name__
            raise _damaged(name, f"{key} of a floating dtype", got)
        moments[key] = _widened(moment.detach())
    if any(moment.is_complex() for moment in moments.values()):  # as AMSGrad's maximum always is
        moments = {key: as_complex(moment) for key, moment in moments.items()}
    for key, moment in moments.items():
        if moment.shape != moments["exp_avg"].shape:
            shapes = tuple(moments["exp_avg"].shape), tuple(moment.shape)
            raise _damaged(name, f"{key} of exp_avg's shape {shapes[0]}", shapes[1])
    second = moments["exp_avg_sq"]
    if second.is_floating_point() and bool((second < 0).any()):
        raise _damaged(name, "exp_avg_sq of at least 0", float(second.min()))
    return {k: v for k, v in state.items() if k not in _MOMENTS} | moments | {"step": step}


def _widened(moment: Tensor) -> Tensor:
    """A moment in the dtype that the step needs: what has 16 bits or fewer as float32."""
    if moment.is_complex():
        return moment.to(torch.complex64) if moment.dtype == torch.complex32 else moment
    return moment if moment.dtype in (torch.float32, torch.float64) else moment.float()


def _scaled(values: Tensor, scales: Tensor, block: int) -> Tensor:
    """Float32 values, each times the scale of its block of consecutive ones."""
    flat = values.reshape(-1)
    each = scales.float().repeat_interleave(block)[: flat.numel()]
    return (flat * each).view(values.shape)


def _looked_up(codes: Tensor, table: Any, entries: int, key: str, name: str) -> Tensor:
    """The values that codes stand for."""
    if not isinstance(table, Tensor) or table.shape != (entries,):
        got = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
        raise _damaged(name, f"a table of {entries} values for {key}", got)
    return table.float()[codes.long()]


# bitsandbytes: state1 and state2, in 32 bits, or as codes of a table with a scale each block.


def _read_bitsandbytes(state: State, group: Group, name: str) -> State:
    wrapped = state.get(_BITSANDBYTES_WRAP)
    flat = {k: v for k, v in state.items() if k != _BITSANDBYTES_WRAP}
    flat |= wrapped if isinstance(wrapped, Mapping) else {}
    betas = group.get("betas")
    if isinstance(betas, list | tuple) and len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}: it is AdEMAMix's state")
    used = set(_MOMENTS)
    for number, key in ((1, "exp_avg"), (2, "exp_avg_sq")):
        names = [f"{part}{number}" for part in ("state", "qmap", "absmax")]
        values, table, scales = (flat.get(part) for part in names)
        if not isinstance(values, Tensor):
            raise _damaged(name, f"the tensors state1 and state2 of Adam, {names[0]} too", "none")
        if values.dtype == torch.uint8:
            codes = _looked_up(values, table, 256, names[0], name)
            values = _scaled(codes, *_bitsandbytes_scales(values, scales, names[2], name))
        flat[key] = values
        used.update(names)
    kept = {k: v for k, v in flat.items() if k not in used or k in _MOMENTS}
    return _read(kept, group, name)


def _bitsandbytes_scales(codes: Tensor, scales: Any, key: str, name: str) -> tuple[Tensor, int]:
    """The blocks' scales and the blocks' size, which only their number tells."""
    if isinstance(scales, Tensor) and scales.dim() == 1:
        for block in _BITSANDBYTES_BLOCKS:
            if scales.numel() == math.ceil(codes.numel() / block):
                return scales, block
    got = tuple(scales.shape) if isinstance(scales, Tensor) else "none"
    rule = f"{key}, a scale for each 256 or 2048 of {codes.numel()} elements"
    raise _damaged(name, rule, got)


def _read_bitsandbytes_group(group: Group) -> Group:
    # Its kernels shrink the weights themselves, under the name of Adam too.
    return group | {"amsgrad": False, "decoupled_weight_decay": True}


# torchao: tensor subclasses of codes, a scale each block, and a table where codes are not floats.


def _quantized(value: object) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "codes") and hasattr(value, "scale")


def _fits_torchao(groups: list[Group], states: list[State]) -> bool:
    if any(_quantized(value) for state in states for value in state.values()):
        return True
    # Parameters that are too small stay plain; the groups are those of no torch.optim.
    plain = _in_every(groups, "amsgrad", "betas") and not _in_any(groups, "maximize", "foreach")
    return plain and all(isinstance(group.get("lr"), Tensor) for group in groups)


def _read_torchao(state: State, group: Group, name: str) -> State:
    read = {
        key: _dequantized(value, key, name) if _quantized(value) else value
        for key, value in state.items()
    }
    return _read(read, group, name)


def _dequantized(value: Any, key: str, name: str) -> Tensor:
    codes, scale, shape = value.codes, value.scale, value.shape
    if not (isinstance(codes, Tensor) and isinstance(scale, Tensor) and scale.dim() == 1):
        raise _damaged(name, f"{key} as codes and their scales", type(codes).__name__)
    if codes.dtype == torch.float8_e4m3fn:
        values = codes.float()
    elif codes.numel() * 2 == shape.numel():
        nibbles = torch.stack([codes >> 4, codes & 15], dim=-1)  # the first is the high one
        values = _looked_up(nibbles, getattr(value, "qmap", None), 16, key, name)
    else:
        values = _looked_up(codes, getattr(value, "qmap", None), 256, key, name)
    if values.numel() != shape.numel() or not scale.numel() or values.numel() % scale.numel():
        rule = f"{key} of {shape.numel()} codes in blocks of one size"
        raise _damaged(name, rule, f"{values.numel()} codes and {scale.numel()} scales")
    return _scaled(values, scale, values.numel() // scale.numel()).view(shape)


def _with_plain_lr(group: Group) -> Group:
    lr = group.get("lr")
    return group | {"lr": lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr}


# flashoptim: int8 and uint8 codes with a float16 scale each 32 elements.


def _read_flashoptim(state: State, group: Group, name: str) -> State:
    read = {k: v for k, v in state.items() if "::" not in k}
    for key, dtype, most in (("exp_avg", torch.int8, 127.0), ("exp_avg_sq", torch.uint8, 255.0)):
        codes, scales = state.get(f"{key}::quantized"), state.get(f"{key}::scales")
        if codes is None:
            continue
        if not isinstance(codes, Tensor) or codes.dtype != dtype:
            raise _damaged(name, f"{key}::quantized of {dtype}", getattr(codes, "dtype", "none"))
        blocks = math.ceil(codes.numel() / _FLASHOPTIM_GROUP)
        if not isinstance(scales, Tensor) or scales.shape != (blocks,):
            got = tuple(scales.shape) if isinstance(scales, Tensor) else "none"
            raise _damaged(name, f"{key}::scales of {blocks} values", got)
        # The same 16 bits, by the name of the parameters' own dtype.
        scales = scales.view(torch.float16) if scales.dtype == torch.bfloat16 else scales
        values = codes.float() / most
        if key == "exp_avg":
            values = values / (2.0 - values.abs())
        values = _scaled(values, scales, _FLASHOPTIM_GROUP)
        read[key] = values if key == "exp_avg" else values * values
    return _read(read, group, name)


# optimi: the step in the group, the options apart, and moments that are bias-corrected already.


def _read_optimi(state: State, group: Group, name: str) -> State:
    # With gradient release, the state points to its group; a byte stands for no compensation.
    state = {k: v for k, v in state.items() if k != "group"}
    if state.keys() <= {"step"}:
        return {}
    compensation = state.get("kahan_comp")
    if compensation is None or getattr(compensation, "dtype", None) == torch.uint8:
        state.pop("kahan_comp", None)
    read = _read(state, group, name)
    for key, option in (("exp_avg", "beta1"), ("exp_avg_sq", "beta2")):
        beta = float(group[option])
        left = -math.expm1(read["step"] * math.log(beta)) if beta > 0 else float(read["step"] > 0)
        read[key] = (read[key].double() * left).to(read[key].dtype)
    return read


def _read_optimi_group(group: Group) -> Group:
    decay = group.get("weight_decay", 0.0)
    if group.get("decouple_lr"):
        # Its decay is by lr / max_lr, not by lr.
        decay = decay / group["max_lr"] if group.get("max_lr") else decay
    return group | {
        "betas": (group["beta1"], group.get("beta2")),
        "weight_decay": decay,
        "amsgrad": False,
        "decoupled_weight_decay": bool(group.get("decouple_wd") or group.get("decouple_lr")),
    }


# apex and DeepSpeed: torch's names, with the step in the group or, as an int, in the state.


def _fits_deepspeed_fused(groups: list[Group], states: list[State]) -> bool:
    return _in_every(groups, "bias_correction") and _in_any(states, "step")


def _read_corrected_group(group: Group) -> Group:
    if not group["bias_correction"]:
        raise ValueError(
            "bias_correction must be on, got False: Adam's step here always corrects it; after "
            "some thousand steps both are the same, then set it to True in the file's param_groups"
        )
    return _with_plain_lr(group) | {"amsgrad": False}


def in_the_group(layout: Layout, group: Group, states: list[State]) -> tuple[Group, list[State]]:
    """A group and its states, with the step moved where the layout counts it.

    DeepSpeed's FusedAdam counts the steps of all the parameters of a group in the last one's state.
    """
    steps = [state["step"] for state in states if "step" in state]
    if layout.name != DEEPSPEED_FUSED or not steps:
        return group, states
    largest = max(whole_step(step, "a parameter") for step in steps)
    bare = [{k: v for k, v in state.items() if k != "step"} for state in states]
    return group | {"step": largest}, bare


DEEPSPEED_FUSED = "DeepSpeed FusedAdam"


# The first that fits: those with keys of their own come before those without.
LAYOUTS = (
    Layout(
        "adamas with compact moments",
        lambda groups, states: (
            _in_every(groups, "betas") and (_in_any(states, "words") or _in_any(groups, "moments"))
        ),
        lambda state, group, name: _read(expanded(state, group, name), group, name),
        own=frozenset(("moments", "master_bits", "offload", "format")),
    ),
    Layout(
        "flashoptim",
        lambda groups, states: (
            _in_any(states, "exp_avg::quantized") or _in_every(groups, "betas", "master_bytewidth")
        ),
        _read_flashoptim,
        lambda group: group | {"amsgrad": False},
        frozenset(("master_bytewidth", "quantize")),
    ),
    Layout("torchao", _fits_torchao, _read_torchao, _with_plain_lr),
    Layout(
        "bitsandbytes",
        lambda groups, states: (
            _in_every(groups, "betas")
            and (_in_any(states, "state1", _BITSANDBYTES_WRAP) or _in_every(groups, "t_alpha"))
        ),
        _read_bitsandbytes,
        _read_bitsandbytes_group,
        frozenset(("alpha", "t_alpha", "t_beta3")),
    ),
    Layout(
        "optimi",
        lambda groups, states: _in_every(groups, "beta1", "beta2", "decouple_wd"),
        _read_optimi,
        _read_optimi_group,
        _OPTIMI_OPTIONS,
    ),
    Layout(
        "DeepSpeed CPUAdam",
        lambda groups, states: _in_every(groups, "betas", "bias_correction", "amsgrad"),
        _read,
        _read_corrected_group,
        frozenset(("bias_correction", "step")),
    ),
    Layout(
        DEEPSPEED_FUSED,
        _fits_deepspeed_fused,
        _read,
        _read_corrected_group,
        frozenset(("bias_correction", "step")),
    ),
    Layout(
        "apex FusedAdam",
        lambda groups, states: _in_every(groups, "betas", "bias_correction"),
        _read,
        _read_corrected_group,
        frozenset(("bias_correction", "step")),
    ),
    Layout(
        "torch.optim",
        lambda groups, states: _in_every(groups, "betas", "amsgrad"),
        _read,
    ),
)
