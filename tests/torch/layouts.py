"""States of Adam in every layout that is read, and the moments that each stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adamas.torch.standins import stand_ins

SHAPES = [(3, 128), (7,)]
STEP = 5
BETAS = (0.9, 0.999)
HYPER: dict[str, Any] = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1}
PLAIN: dict[str, Any] = HYPER | {"betas": BETAS}

State = dict[str, Any]


class Case(NamedTuple):
    """A state dictionary in some optimizer's layout, and what it stands for."""

    saved: State
    source: str
    moments: list[tuple[Tensor, Tensor]]
    decoupled: bool | None
    weight_decay: float = 0.1
    betas: tuple[float, float] = BETAS


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.01


def moments(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    pairs = [(random(shape, i), random(shape, i + 10).square()) for i, shape in enumerate(SHAPES)]
    return [(m.to(dtype), v.to(dtype)) for m, v in pairs]


def saved(group: State, states: list[State]) -> State:
    keys = list(range(len(states)))
    return {"state": dict(enumerate(states)), "param_groups": [group | {"params": keys}]}


def torch_optim(
    rule: Any = torch.optim.Adam, dtype: torch.dtype = torch.float32, **options: Any
) -> Case:
    params = [nn.Parameter(random(shape, i).to(dtype)) for i, shape in enumerate(SHAPES)]
    optimizer = rule(params, **PLAIN, **options)
    for i in range(STEP):
        for p in params:
            p.grad = random(tuple(p.shape), i).to(dtype)
        optimizer.step()
    states = [optimizer.state[p] for p in params]
    found = [(s["exp_avg"].clone(), s["exp_avg_sq"].clone()) for s in states]
    return Case(optimizer.state_dict(), "torch.optim", found, rule is torch.optim.AdamW)


def old_torch() -> Case:
    """An int for a step, and none of the newer options."""
    case = torch_optim()
    group = case.saved["param_groups"][0]
    case.saved["param_groups"] = [{k: group[k] for k in (*PLAIN, "amsgrad", "params")}]
    for state in case.saved["state"].values():
        state["step"] = STEP
    return case._replace(decoupled=None)


def apex(step: Any = STEP, lr: Any = 0.01) -> Case:
    states = [{"exp_avg": m, "exp_avg_sq": v} for m, v in moments()]
    group = PLAIN | {"bias_correction": True, "step": step, "lr": lr}
    return Case(saved(group, states), "apex FusedAdam", moments(), None)


def deepspeed_cpu(dtype: torch.dtype = torch.float32) -> Case:
    states = [{"step": STEP, "exp_avg": m, "exp_avg_sq": v} for m, v in moments(dtype)]
    group = PLAIN | {"bias_correction": True, "amsgrad": False}
    return Case(saved(group, states), "DeepSpeed CPUAdam", moments(dtype), None)


def deepspeed_fused() -> Case:
    """Its kernel is told the step of the group's last parameter, which alone counts."""
    states = [{"step": 0, "exp_avg": m, "exp_avg_sq": v} for m, v in moments()]
    states[-1]["step"] = STEP
    return Case(
        saved(PLAIN | {"bias_correction": True}, states), "DeepSpeed FusedAdam", moments(), None
    )


def coded(shape: tuple[int, ...], block: int, entries: int, seed: int) -> tuple[Tensor, ...]:
    """Codes, their table, a scale each block, and the values, element by element."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    codes = torch.randint(entries, (count,), generator=generator)
    table = torch.rand(entries, generator=generator)
    scales = torch.rand(math.ceil(count / block), generator=generator) + 0.5
    values = [table[code] * scales[i // block] for i, code in enumerate(codes)]
    return codes.to(torch.uint8).view(shape), table, scales, torch.stack(values).view(shape)


def bitsandbytes(bits: int = 8, block: int = 256, wrapped: bool = True) -> Case:
    """Small parameters have 32 bits also where others have 8."""
    states: list[State] = []
    found = []
    shapes = [(3, 1000), (7,)]
    for i, shape in enumerate(shapes):
        state: State = {"step": STEP}
        parts: State = {}
        values = [random(shape, i), random(shape, i + 10).square()]
        for number in (1, 2):
            parts[f"state{number}"] = values[number - 1]
            if bits == 8 and math.prod(shape) > 256:
                names = [f"{part}{number}" for part in ("state", "qmap", "absmax")]
                *coding, values[number - 1] = coded(shape, block, 256, i + number)
                parts |= dict(zip(names, coding, strict=True))
        found.append((values[0], values[1]))
        states.append(state | ({"__bnb_optimizer_quant_state__": parts} if wrapped else parts))
    group = PLAIN | {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
    return Case(saved(group, states), "bitsandbytes", found, True)


STAND_INS = {kind.__name__: kind for kind in reversed(stand_ins())}


def subclass(name: str, shape: tuple[int, ...], **parts: Tensor) -> Tensor:
    made = Tensor._make_wrapper_subclass(STAND_INS[name], shape, dtype=torch.float32)
    for key, part in parts.items():
        setattr(made, key, part)
    return made


def torchao(bits: int | str) -> Case:
    states, found = [], []
    for i, shape in enumerate(SHAPES):
        if i == 1:  # too small to be compact
            plain = {"exp_avg": random(shape, 1), "exp_avg_sq": random(shape, 2).square()}
            states.append(plain | {"step": torch.tensor(5.0)})
            found.append((plain["exp_avg"], plain["exp_avg_sq"]))
            continue
        state: State = {"step": torch.tensor(5.0)}
        for seed, key in enumerate(("exp_avg", "exp_avg_sq", "max_exp_avg_sq")):
            codes, table, scale, values = coded(shape, 128, 16 if bits == 4 else 256, seed)
            parts = {"codes": codes, "scale": scale, "qmap": table}
            if bits == 4:
                flat = codes.view(-1)
                parts["codes"] = flat[::2] * 16 + flat[1::2]
                state[key] = subclass("OptimState4bit", shape, **parts)
            elif bits == 8:
                state[key] = subclass("OptimState8bit", shape, **parts)
            else:
                floats = random(shape, seed).square().to(torch.float8_e4m3fn)
                state[key] = subclass("OptimStateFp8", shape, codes=floats, scale=scale)
                values = floats.float() * scale.repeat_interleave(128).view(shape)
            state[f"_{key}"] = values
        found.append((state.pop("_exp_avg"), state.pop("_exp_avg_sq")))
        del state["_max_exp_avg_sq"]
        states.append(state)
    group = PLAIN | {"lr": torch.tensor(0.01), "amsgrad": False}
    for state in states:
        state.pop("max_exp_avg_sq", None)
    return Case(saved(group, states), "torchao", found, None)


def optimi(release: bool = False, dtype: torch.dtype = torch.float32, **options: Any) -> Case:
    """Its moments are divided by 1 - beta^t already."""
    group: State = HYPER | {
        **{"beta1": 0.9, "beta2": 0.99, "decouple_wd": True, "decouple_lr": False},
        **{"max_lr": None, "kahan_sum": None, "foreach": False, "triton": False},
        **{"gradient_release": release, "setup": True, "step": torch.tensor(5, dtype=torch.int32)},
        **options,
    }
    states, found = [], []
    for m, v in moments(dtype):
        state = {"exp_avg": m, "exp_avg_sq": v, "kahan_comp": None}
        states.append(state | ({"group": group, "step": torch.tensor(5)} if release else {}))
        left = 1 - 0.9**5, 1 - 0.99**5
        found.append(((m.double() * left[0]).float(), (v.double() * left[1]).float()))
    decay = 0.1 / options["max_lr"] if "max_lr" in options else 0.1
    decoupled = options.get("decouple_wd", True) or "max_lr" in options
    return Case(saved(group, states), "optimi", found, decoupled, decay, (0.9, 0.99))


def flashoptim(scales: torch.dtype = torch.float16) -> Case:
    states, found = [], []
    for i, shape in enumerate([(3, 50), (7,)]):
        count = math.prod(shape)
        generator = torch.Generator().manual_seed(i)
        scale = (torch.rand(math.ceil(count / 32), generator=generator) * 0.01).half()
        m = torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
        v = torch.randint(256, shape, generator=generator).to(torch.uint8)
        each = torch.stack([scale[j // 32].float() for j in range(count)]).view(shape)
        u = m.float() / 127
        root = v.float() / 255 * each
        found.append((u / (2 - u.abs()) * each, root * root))
        codes = {"exp_avg::quantized": m, "exp_avg_sq::quantized": v}
        view = scale.view(scales)
        step = torch.tensor(5)
        states.append({"step": step, "exp_avg::scales": view, "exp_avg_sq::scales": view} | codes)
    group = PLAIN | {"initial_lr": 0.01, "master_bytewidth": 3, "quantize": True}
    return Case(saved(group, states), "flashoptim", found, None)


CASES: dict[str, Callable[[], Case]] = {
    "torch": torch_optim,
    "torch foreach": lambda: torch_optim(foreach=True),
    "torch fused": lambda: torch_optim(fused=True),
    "torch amsgrad": lambda: torch_optim(amsgrad=True),
    "torch AdamW": lambda: torch_optim(torch.optim.AdamW),
    "torch bfloat16": lambda: torch_optim(dtype=torch.bfloat16),
    "torch float64": lambda: torch_optim(dtype=torch.float64),
    "torch old": old_torch,
    "apex": apex,
    "apex capturable": lambda: apex(torch.tensor([5], dtype=torch.int32), torch.tensor(0.01)),
    "DeepSpeed CPU": deepspeed_cpu,
    "DeepSpeed CPU bfloat16": lambda: deepspeed_cpu(torch.bfloat16),
    "DeepSpeed fused": deepspeed_fused,
    "bitsandbytes 32": lambda: bitsandbytes(32),
    "bitsandbytes 8": bitsandbytes,
    "bitsandbytes 8 older": lambda: bitsandbytes(block=2048, wrapped=False),
    "torchao 8": lambda: torchao(8),
    "torchao 4": lambda: torchao(4),
    "torchao fp8": lambda: torchao("fp8"),
    "optimi": optimi,
    "optimi Adam": lambda: optimi(decouple_wd=False),
    "optimi decoupled lr": lambda: optimi(decouple_lr=True, max_lr=0.02),
    "optimi coupled, decoupled lr": lambda: optimi(
        decouple_wd=False, decouple_lr=True, max_lr=0.02
    ),
    "optimi bfloat16": lambda: optimi(dtype=torch.bfloat16),
    "optimi release": lambda: optimi(release=True),
    "flashoptim": flashoptim,
    "flashoptim bfloat16": lambda: flashoptim(torch.bfloat16),
}


# Targets. Each parameter has a shape and a moment of its own.


def parameters(names: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(ord(name) - ord("a") + 1)) for name in names}


def of(names: str, named: bool = True, rule: Any = torch.optim.AdamW) -> torch.optim.Optimizer:
    """An optimizer that has stepped; groups with a comma between them."""
    groups = [
        {"params": list(params.items() if named else params.values()), "lr": 0.1 + i}
        for i, params in enumerate(parameters(group) for group in names.split(","))
    ]
    optimizer: torch.optim.Optimizer = rule(groups)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, float(p.numel()))
    optimizer.step()
    return optimizer


def held(result: State) -> str:
    """Which parameter's moment is at each place, by its length; a dash for none."""
    texts = []
    for group in result["param_groups"]:
        states = [result["state"].get(key) for key in group["params"]]
        texts.append("".join(chr(ord("a") - 1 + len(s["exp_avg"])) if s else "-" for s in states))
    return ",".join(texts)
