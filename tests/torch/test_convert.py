"""State of other optimizers: read from their layouts, matched, and written for torch.optim."""

from __future__ import annotations

import copy
import io
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from adamas import cli
from adamas.torch import Adam, AdamW, convert_state_dict
from adamas.torch.foreign import stand_ins

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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reads_every_layout(case: Callable[[], Case]) -> None:
    given = case()
    result, report = convert_state_dict(given.saved)
    assert report.source == given.source
    assert (report.parameters, report.stepped) == (2, 2)
    assert report.missing == report.extra == []
    for state, (m, v) in zip(result["state"].values(), given.moments, strict=True):
        assert float(state["step"]) == STEP
        wide = torch.float64 if m.dtype == torch.float64 else torch.float32
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == wide
        assert torch.equal(state["exp_avg"], m.to(wide))
        assert torch.equal(state["exp_avg_sq"], v.to(wide))
    (group,) = result["param_groups"]
    assert group.get("decoupled_weight_decay") == given.decoupled
    assert float(group["lr"]) == pytest.approx(0.01)
    assert group["weight_decay"] == pytest.approx(given.weight_decay)
    assert tuple(group["betas"]) == given.betas
    unknown = [note for note in report.notes if "does not say" in note]
    assert bool(unknown) == (given.decoupled is None)
    params = [nn.Parameter(torch.ones(m.shape, dtype=m.dtype)) for m, _ in given.moments]
    for rule in (Adam, AdamW, torch.optim.Adam, torch.optim.AdamW):
        optimizer = rule(params)
        optimizer.load_state_dict(copy.deepcopy(result))  # torch's takes over the step itself
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert float(optimizer.state[params[0]]["step"]) == STEP + 1


def test_keeps_the_largest_moments_of_amsgrad() -> None:
    given = torch_optim(amsgrad=True).saved
    result, _ = convert_state_dict(given, to="adamas")
    assert result["param_groups"][0]["amsgrad"] is True
    for mine, theirs in zip(result["state"].values(), given["state"].values(), strict=True):
        assert torch.equal(mine["max_exp_avg_sq"], theirs["max_exp_avg_sq"])


def test_what_torch_has_no_place_for_is_named() -> None:
    given = flashoptim().saved
    given["state"][0]["error_bits"] = torch.zeros(3, 50, dtype=torch.int8)
    _, report = convert_state_dict(given)
    assert report.notes[0].startswith("error_bits of 1 parameters was left out")


def test_the_source_is_left_as_it_is() -> None:
    for case in CASES.values():
        given = case().saved
        keys = [sorted(map(str, state)) for state in given["state"].values()]
        groups = [sorted(group) for group in given["param_groups"]]
        convert_state_dict(given, decoupled_weight_decay=True)
        assert keys == [sorted(map(str, state)) for state in given["state"].values()]
        assert groups == [sorted(group) for group in given["param_groups"]]


def test_an_optimizer_that_never_stepped() -> None:
    for case in (torch_optim, apex, bitsandbytes, optimi, flashoptim):
        given = case().saved | {"state": {}}
        result, report = convert_state_dict(given)
        assert (result["state"], report.stepped, report.parameters) == ({}, 0, 2)


def test_the_kind_of_decay_can_be_told() -> None:
    for decoupled in (True, False):
        result, report = convert_state_dict(apex().saved, decoupled_weight_decay=decoupled)
        assert result["param_groups"][0]["decoupled_weight_decay"] is decoupled
        assert report.notes == []


def changed(case: Case, change: Callable[[State], object]) -> State:
    given = case.saved
    change(given)
    return given


def in_state(key: str, value: Any) -> Callable[[State], object]:
    return lambda given: given["state"][0].update({key: value})


def in_group(key: str, value: Any) -> Callable[[State], object]:
    return lambda given: given["param_groups"][0].update({key: value})


def in_wrapped(key: str, value: Any) -> Callable[[State], object]:
    return lambda given: given["state"][0]["__bnb_optimizer_quant_state__"].update({key: value})


def in_tensor(key: str, value: Any) -> Callable[[State], object]:
    return lambda given: setattr(given["state"][0]["exp_avg"], key, value)


BAD: list[tuple[Any, str]] = [
    ([], "must have 'state' and 'param_groups'"),
    ({"state": {}}, "must have 'state' and 'param_groups'"),
    ({"zero_stage": 2}, "one rank's part of DeepSpeed's ZeRO: gather it first"),
    (torch_optim(torch.optim.RAdam).saved, "must be Adam's, of .*flashoptim, torchao.*got groups"),
    (changed(torch_optim(), in_state("step", 1.5)), "step that is one whole number.*1.5"),
    (changed(torch_optim(), in_state("exp_avg", None)), "must have exp_avg, got the keys"),
    (changed(torch_optim(), in_state("exp_avg", torch.ones(2))), r"exp_avg_sq of exp_avg's shape"),
    (
        changed(torch_optim(), in_state("exp_avg", torch.ones(3, 128, dtype=torch.int64))),
        "exp_avg of a floating dtype, got torch.int64",
    ),
    (
        changed(torch_optim(), in_state("exp_avg_sq", torch.full((3, 128), -1.0))),
        "exp_avg_sq of at least 0, got -1.0",
    ),
    (changed(torch_optim(), in_group("betas", (0.9, 1.5))), r"beta2 must be in \[0, 1\), got 1.5"),
    (changed(torch_optim(), in_group("params", [0, 0])), r"in one group, got \[0\] in more"),
    (changed(torch_optim(), in_group("params", [0])), r"got states \[1\] of none"),
    (changed(torch_optim(), in_group("param_names", ["a"])), "one for each of 2 parameters, got 1"),
    (changed(torch_optim(), lambda g: g["state"].update({0: 3})), "must be a dictionary, got int"),
    (changed(apex(), in_group("bias_correction", False)), "bias_correction must be on, got False"),
    (changed(bitsandbytes(), in_group("betas", (0.9, 0.99, 0.9))), "AdEMAMix"),
    (changed(bitsandbytes(), in_wrapped("state2", None)), "state1 and state2 of Adam"),
    (changed(bitsandbytes(), in_wrapped("qmap1", torch.ones(16))), r"table of 256 values.*\(16,\)"),
    (
        changed(bitsandbytes(), in_wrapped("absmax2", torch.ones(5))),
        r"absmax2, a scale for each 256 or 2048 of 3000 elements, got \(5,\)",
    ),
    (changed(torchao(8), in_tensor("qmap", None)), "table of 256 values for exp_avg, got NoneType"),
    (changed(torchao(4), in_tensor("scale", torch.ones(5))), "blocks of one size, got 384 codes"),
    (changed(flashoptim(), in_state("exp_avg::scales", torch.ones(2))), "exp_avg::scales of 5"),
    (
        changed(flashoptim(), in_state("exp_avg::quantized", torch.ones(3, 50))),
        "exp_avg::quantized of torch.int8, got torch.float32",
    ),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=range(len(BAD)))
def test_a_damaged_or_unknown_state(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_state_dict(given)


def test_a_format_that_is_none() -> None:
    with pytest.raises(ValueError, match="to must be 'torch' or 'adamas', got 'tf'"):
        convert_state_dict(torch_optim().saved, to="tf")
    with pytest.raises(TypeError, match="target must be a model"):
        convert_state_dict(torch_optim().saved, [3])


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


MATCHES = [
    # source, target, result, by name, by position, missing, extra
    ("abc", "abc", "abc", 3, 0, [], []),
    ("abc", "cab", "cab", 3, 0, [], []),
    ("abc", "cbd", "cb-", 2, 0, ["d"], ["a"]),
    ("ab,c", "ca,b", "ca,b", 3, 0, [], []),
    ("ab,c", "a,bcd", "a,bc-", 3, 0, ["d"], []),
    ("abc", "ca,b", "ca,b", 3, 0, [], []),
    ("a,b,c", "ca", "ca", 2, 0, [], ["b"]),
    ("abc", "", "", 0, 0, [], ["a", "b", "c"]),
]


@pytest.mark.parametrize("kind", ["optimizer", "state_dict"])
@pytest.mark.parametrize(
    ("source", "target", "result", "by_name", "by_position", "missing", "extra"), MATCHES
)
def test_matches_by_name(
    kind: str,
    source: str,
    target: str,
    result: str,
    by_name: int,
    by_position: int,
    missing: list[str],
    extra: list[str],
) -> None:
    optimizer = of(target) if target else None
    goal: Any = optimizer if kind == "optimizer" else optimizer and optimizer.state_dict()
    given = of(source).state_dict()
    if optimizer is None:
        goal = []
        by_name, result, extra = 0, "", [f"{name}" for name in source]
    if missing or extra:
        with pytest.raises(ValueError, match="strict=False"):
            convert_state_dict(given, goal)
    converted, report = convert_state_dict(given, goal, strict=False)
    assert held(converted) == result
    assert report[4:8] == (by_name, by_position, missing, extra)
    if optimizer is not None:
        optimizer.load_state_dict(converted)


def test_matches_a_model_by_name() -> None:
    model = nn.ParameterDict(parameters("cab"))
    converted, report = convert_state_dict(of("ab,c").state_dict(), model)
    assert held(converted) == "ab,c"
    assert report.by_name == 3
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel names them
    converted, report = convert_state_dict(of("ab,c").state_dict(), wrapped)
    assert report.by_name == 3
    assert converted["param_groups"][1]["param_names"] == ["module.c"]
    own = nn.Module()
    own.my_module = model  # no wrapper, but a name that ends like one
    with pytest.raises(ValueError, match=r"lacks \['my_module.a'"):
        convert_state_dict(of("ab,c").state_dict(), own)
    same = [("a", torch.ones(1)), ("module.a", torch.ones(1))]
    with pytest.raises(ValueError, match=r"a name of its own, got \['a'\] twice"):
        convert_state_dict(of("ab").state_dict(), same)
    assert convert_state_dict(of("cba").state_dict(), parameters("abc").items())[1].by_name == 3
    with pytest.raises(ValueError, match="which of the 2 groups"):
        convert_state_dict(
            of("ab,c").state_dict(), nn.ParameterDict(parameters("abcd")), strict=False
        )


def test_other_groups_keep_their_options() -> None:
    saved = of("abc").state_dict()
    saved["param_groups"][0]["lr"] = 0.7
    converted, report = convert_state_dict(saved, of("ca,b", rule=AdamW))
    assert [group["lr"] for group in converted["param_groups"]] == [0.1, 1.1]
    assert "the target's 2 groups keep their own options" in report.notes
    same_count = convert_state_dict(saved, of("cab", rule=AdamW))[0]
    assert same_count["param_groups"][0]["lr"] == 0.7


def test_matches_by_position_where_names_are_unknown() -> None:
    given = of("abc", named=False).state_dict()
    converted, report = convert_state_dict(given, nn.ParameterDict(parameters("abc")))
    assert (report.by_name, report.by_position) == (0, 3)
    assert converted["param_groups"][0]["param_names"] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"c must have a state of its shape \(3,\), got \(1,\)"):
        convert_state_dict(given, parameters("cba").items())
    report = convert_state_dict(given, list(parameters("abcd").values()), strict=False).report
    assert (report.by_position, report.missing, report.extra) == (3, ["parameter 3"], [])
    report = convert_state_dict(given, of("ab", named=False), strict=False).report
    assert (report.by_position, report.missing, report.extra) == (2, [], ["parameter 2"])
    two = of("ab,c", named=False).state_dict()
    with pytest.raises(ValueError, match=r"2 groups and no names.*give the optimizer"):
        convert_state_dict(two, parameters("abc").items())
    with pytest.raises(ValueError, match=r"as many groups as the state .*, got 3 and 2"):
        convert_state_dict(two, of("a,b,c"))


def test_names_for_keys() -> None:
    """FSDP's and DCP's state dictionaries have the parameters' names for keys."""
    given = of("abc").state_dict()
    keys = dict(enumerate("abc"))
    group = given["param_groups"][0]
    del group["param_names"]
    group["params"] = list("abc")
    given["state"] = {keys[i]: state for i, state in given["state"].items()}
    converted, report = convert_state_dict(given, of("cab"))
    assert held(converted) == "cab"
    assert report.by_name == 3
    alone = convert_state_dict(given).state_dict
    assert alone["param_groups"][0]["param_names"] == ["a", "b", "c"]
    assert held(alone) == "abc"


def test_the_report_is_a_short_table() -> None:
    report = convert_state_dict(of("abcdefgh").state_dict(), of("hz"), strict=False).report
    assert str(report).splitlines() == [
        "recognised   torch.optim",
        "written for  torch",
        "parameters   2, 1 with a state",
        "matched      1 by name, 0 by position",
        "missing      1: z",
        "extra        7: a, b, c, d, e, ...",
    ]


# Partial loads.


@pytest.mark.parametrize(
    ("source", "target", "result", "missing", "extra"),
    [
        ("abc", "abc", "abc", [], []),
        ("abc", "cbd", "cbd", ["d"], ["a"]),
        ("ab,c", "bcd", "bcd", ["d"], ["a"]),
        ("a", "ab,c", "ab,c", ["b", "c"], []),
    ],
)
def test_a_partial_load_by_name(
    source: str, target: str, result: str, missing: list[str], extra: list[str]
) -> None:
    given = of(source).state_dict()
    for state in given["state"].values():
        state["step"] = torch.tensor(7.0)
    optimizer = of(target, rule=AdamW)
    before = copy.deepcopy(optimizer.state_dict())
    if missing or extra:
        with pytest.raises(ValueError, match="strict=False"):
            optimizer.load_state_dict(given)
        assert str(optimizer.state_dict()) == str(before)
    match = optimizer.load_state_dict(given, strict=False)
    assert match == (len(result.replace(",", "")) - len(missing), 0, missing, extra)
    assert held(optimizer.state_dict()) == result
    for group in optimizer.param_groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert optimizer.state[param]["step"] == (1 if name in missing else 7)
    optimizer.step()


def test_a_partial_load_keeps_options_where_groups_differ() -> None:
    optimizer = of("abc", rule=Adam)
    optimizer.load_state_dict(of("ab,c").state_dict(), strict=False)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    two = of("a,bcd", rule=Adam)
    saved = of("ab,c").state_dict()
    saved["param_groups"][1]["lr"] = 0.5
    two.load_state_dict(saved, strict=False)
    assert [group["lr"] for group in two.param_groups] == [0.1, 0.5]


def test_a_partial_load_by_position() -> None:
    optimizer = of("abc", named=False, rule=Adam)
    match = optimizer.load_state_dict(of("ab").state_dict(), strict=False)
    assert match == (0, 2, ["parameter 2"], [])
    match = optimizer.load_state_dict(of("abcd").state_dict(), strict=False)
    assert match == (0, 3, [], ["parameter 3"])
    with pytest.raises(ValueError, match="must have exp_avg of shape"):
        optimizer.load_state_dict(of("bac").state_dict(), strict=False)
    with pytest.raises(ValueError, match="2 parameter groups, this optimizer 1"):
        optimizer.load_state_dict(of("ab,c").state_dict(), strict=False)
    stray = of("abc").state_dict()
    stray["state"][9] = stray["state"][0]
    assert optimizer.load_state_dict(stray, strict=False).extra == ["state 9"]


# Files.


@pytest.fixture
def adamas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in an empty folder: its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adamas", *arguments])
        capsys.readouterr()
        status = cli.main()
        return status, *capsys.readouterr()

    return run


Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("bits", [8, 4, "fp8"])
def test_a_file_of_classes_that_are_not_installed(
    bits: int | str, adamas: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {name: ModuleType(name) for name in ("torchao", "torchao.optim")}
    for name, kind in STAND_INS.items():  # where torch.save looks for torchao's classes
        modules[kind.__module__] = ModuleType(kind.__module__)
        setattr(modules[kind.__module__], name, kind)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    given = torchao(bits)
    torch.save(given.saved, "in.pt")
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    assert adamas("convert", "in.pt", "out.pt", "--to", "adamas", "--decoupled")[0] == 0
    result = torch.load("out.pt", weights_only=True)
    for state, (m, v) in zip(result["state"].values(), given.moments, strict=True):
        assert torch.equal(state["exp_avg"], m)
        assert torch.equal(state["exp_avg_sq"], v)


def test_convert_keeps_the_rest_of_a_file(adamas: Run) -> None:
    weights = {"w": torch.ones(3)}
    torch.save({"model": weights, "optimizer": bitsandbytes().saved, "epoch": 3}, "in.pt")
    status, out, err = adamas("convert", "in.pt", "out.pt", "--to", "torch")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "recognised   bitsandbytes",
        "written for  torch",
        "parameters   2, 2 with a state",
        "matched      0 by name, 2 by position",
        "missing      0",
        "extra        0",
        "written      out.pt",
    ]
    result = torch.load("out.pt", weights_only=True)
    assert (result["epoch"], torch.equal(result["model"]["w"], weights["w"])) == (3, True)
    assert adamas("convert", "out.pt", "out.pt")[0] == 0
    again = torch.load("out.pt", weights_only=True)
    for one, other in zip(
        result["optimizer"]["state"].values(), again["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_convert_finds_states_in_lists(adamas: Run) -> None:
    """Lightning's checkpoints have a list of them."""
    first, second = bitsandbytes().saved, torch_optim().saved
    torch.save({"epoch": 3, "optimizer_states": [first], "loops": [{}]}, "one.pt")
    assert adamas("convert", "one.pt", "out.pt")[0] == 0
    result = torch.load("out.pt", weights_only=True)
    assert (result["epoch"], result["loops"]) == (3, [{}])
    assert "exp_avg" in result["optimizer_states"][0]["state"][0]
    torch.save({"optimizer_states": [second, first]}, "two.pt")
    status, _, err = adamas("convert", "two.pt", "out.pt")
    assert status == 2
    assert "['optimizer_states.0', 'optimizer_states.1']: choose one with --key" in err
    assert adamas("convert", "two.pt", "out.pt", "--key", "optimizer_states.1")[0] == 0
    converted = torch.load("out.pt", weights_only=True)["optimizer_states"]
    assert str(converted[0]) == str(torch.load("two.pt")["optimizer_states"][0])
    assert "exp_avg" in converted[1]["state"][0]


def test_convert_matches_with_another_checkpoint(adamas: Run) -> None:
    torch.save(of("abc").state_dict(), "in.pt")
    torch.save({"optim": of("cbd").state_dict()}, "like.pt")
    status, out, err = adamas("convert", "in.pt", "out.pt", "--like=like.pt")
    assert (status, out) == (2, "")
    assert "it lacks ['d'] and has ['a'] beyond them" in err
    status, out, _ = adamas("convert", "in.pt", "out.pt", "--like=like.pt", "--partial")
    assert status == 0
    assert "matched      2 by name, 0 by position\nmissing      1: d\nextra        1: a\n" in out
    assert held(torch.load("out.pt", weights_only=True)) == "cb-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt", "out.pt"], "none.pt does not exist"),
        (["text.pt", "out.pt"], "text.pt cannot be loaded"),
        (["cut.pt", "out.pt"], "cut.pt cannot be loaded"),
        (["code.pt", "out.pt"], "code.pt cannot be loaded, it holds pathlib"),
        (["two.pt", "out.pt"], "got those under ['a', 'b']: choose one with --key"),
        (["model.pt", "out.pt"], "must hold one optimizer's state"),
        (["good.pt", "out.pt", "--key=x"], "--key must be one of ['state', 'param_groups']"),
        (["two.pt", "out.pt", "--key=c"], "'c'"),
        (["zero.pt", "out.pt"], "one rank's part of DeepSpeed's ZeRO"),
        (["sgd.pt", "out.pt"], "sgd.pt: the optimizer's state must be Adam's"),
        (["good.pt", "out.pt", "--to=tf"], "to must be 'torch' or 'adamas', got 'tf'"),
        (["good.pt", "none/out.pt"], "none/out.pt cannot be written"),
        (["good.pt", "out.pt", "--like=text.pt"], "text.pt cannot be loaded"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_written(
    adamas: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    good = torch_optim().saved
    torch.save(good, "good.pt")
    torch.save({"a": good, "b": good}, "two.pt")
    torch.save({"w": torch.ones(2)}, "model.pt")
    torch.save({"optimizer_state_dict": {"zero_stage": 2}}, "zero.pt")
    torch.save(torch_optim_sgd(), "sgd.pt")
    torch.save({"path": Path("x")}, "code.pt")
    Path("text.pt").write_text("hello")
    Path("cut.pt").write_bytes(Path("good.pt").read_bytes()[:3000])
    before = {path.name for path in tmp_path.iterdir()}
    status, out, err = adamas("convert", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def torch_optim_sgd() -> State:
    saved: State = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1).state_dict()
    return saved


def test_a_crash_during_a_save_leaves_the_old_file(
    adamas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(apex().saved, "in.pt")
    Path("out.pt").write_text("old")

    def crash(content: object, file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", crash)
    status, out, err = adamas("convert", "in.pt", "out.pt")
    assert (status, out) == (2, "")
    assert "out.pt cannot be written (No space left on device)" in err
    assert Path("out.pt").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.pt", "out.pt"}


def test_what_is_no_plain_file_stays_what_it_is(adamas: Run, tmp_path: Path) -> None:
    torch.save(of("ab").state_dict(), "in.pt")
    Path("folder").mkdir()
    Path("folder/real.pt").write_text("old")
    Path("link.pt").symlink_to("folder/real.pt")
    Path("loose.pt").symlink_to("folder/new.pt")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link.pt", "loose.pt", "pipe"):
        assert adamas("convert", "in.pt", name)[0] == 0
    assert Path("link.pt").is_symlink()
    assert Path("loose.pt").is_symlink()
    assert Path("pipe").is_fifo()
    piped = io.BytesIO(os.read(reader, 1 << 20))
    os.close(reader)
    for file in ("folder/real.pt", "folder/new.pt", piped):
        assert held(torch.load(file, weights_only=True)) == "ab"
    assert len(list(tmp_path.iterdir())) == 5


# The peers themselves, where they are installed.


def peer(name: str) -> Any:
    """An installed peer's module, whatever it warns about when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def peer_torchao(kind: str) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("torchao.optim"), kind)
    return lambda params: rule(params, lr=0.01, weight_decay=0.1)


def peer_optimi(kind: str, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("optimi"), kind)
    return lambda params: rule(params, lr=0.01, weight_decay=0.1, betas=BETAS, eps=1e-8, **options)


def peer_bitsandbytes(kind: str) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("bitsandbytes").optim, kind)
    return lambda params: rule(params, lr=0.01, weight_decay=0.1)


def peer_deepspeed() -> Callable[[Any], torch.optim.Optimizer]:
    rule = peer("deepspeed.ops.adam").DeepSpeedCPUAdam
    return lambda params: rule(list(params), lr=0.01, weight_decay=0.1)


def peer_flashoptim(kind: str) -> Callable[[Any], torch.optim.Optimizer]:
    rule = getattr(peer("flashoptim"), kind)
    options = {"quantize": False, "master_weight_bits": None, "fused": False}
    return lambda params: rule(params, lr=0.01, weight_decay=0.1, **options)


PEERS: dict[str, tuple[Callable[[], Any], bool, bool]] = {
    # its constructor, whether its decay is decoupled, whether its moments are exact
    "torchao AdamW8bit": (lambda: peer_torchao("AdamW8bit"), True, False),
    "torchao Adam8bit": (lambda: peer_torchao("Adam8bit"), False, False),
    "torchao AdamW4bit": (lambda: peer_torchao("AdamW4bit"), True, False),
    "torchao AdamWFp8": (lambda: peer_torchao("AdamWFp8"), True, False),
    "optimi AdamW": (lambda: peer_optimi("AdamW"), True, True),
    "optimi Adam": (lambda: peer_optimi("Adam"), False, True),
    "optimi foreach": (lambda: peer_optimi("AdamW", foreach=True), True, True),
    "optimi lr": (lambda: peer_optimi("AdamW", decouple_lr=True, max_lr=0.04), True, True),
    "bitsandbytes AdamW": (lambda: peer_bitsandbytes("AdamW"), True, True),
    "bitsandbytes Adam": (lambda: peer_bitsandbytes("Adam"), True, True),
    "bitsandbytes AdamW8bit": (lambda: peer_bitsandbytes("AdamW8bit"), True, False),
    "bitsandbytes Adam8bit": (lambda: peer_bitsandbytes("Adam8bit"), True, False),
    "DeepSpeed CPUAdam": (peer_deepspeed, True, True),
    "flashoptim AdamW": (lambda: peer_flashoptim("FlashAdamW"), True, True),
    "flashoptim Adam": (lambda: peer_flashoptim("FlashAdam"), False, True),
}


def own_value(state: State, key: str) -> Tensor:
    """A moment as the peer itself reads it."""
    number = {"exp_avg": 1, "exp_avg_sq": 2}[key]
    value: Any = state.get(key, state.get(f"state{number}"))
    if getattr(value, "dtype", None) == torch.uint8:
        value = peer("bitsandbytes.functional").dequantize_blockwise(
            value,
            absmax=state[f"absmax{number}"],
            code=state[f"qmap{number}"],
            blocksize=256,
        )
    if hasattr(value, "materialize"):
        value = value.materialize()
    return value.dequantize() if hasattr(value, "codes") else value


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")
def test_goes_on_as_the_peer_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 20 steps of a peer, ours and its own next step agree; so do moments and torch's."""
    make, decoupled, exact = PEERS[name]
    build = make()
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    shapes = [(80, 64), (7,)]
    model = nn.ParameterList([nn.Parameter(random(shape, i)) for i, shape in enumerate(shapes)])
    twin = [nn.Parameter(p.detach().clone()) for p in model]
    theirs = build(model.parameters())
    decay = 0.1 / 0.04 if name == "optimi lr" else 0.1
    rule = torch.optim.AdamW if decoupled else torch.optim.Adam
    beside = rule(twin, lr=0.01, weight_decay=decay)

    def step(optimizer: torch.optim.Optimizer, params: Any, number: int) -> None:
        for i, p in enumerate(params):
            p.grad = random(tuple(p.shape), 100 * number + i)
        optimizer.step()

    for number in range(20):
        step(theirs, model, number)
        step(beside, twin, number)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    with torch.serialization.safe_globals(stand_ins()):
        given = torch.load(file, weights_only=True)
    result, report = convert_state_dict(given, model)
    assert report.stepped == 2
    states = result["state"].values(), theirs.state.values(), beside.state.values()
    for p, own, q in zip(*states, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            if not name.startswith("optimi"):  # whose moments are bias-corrected
                assert torch.equal(p[key], own_value(own, key)), key
            bound = 1e-4 if exact else 0.6
            assert (p[key] - q[key]).abs().max() <= bound * q[key].abs().max(), key
    ours = [nn.Parameter(p.detach().clone()) for p in model]
    optimizer = (AdamW if decoupled else Adam)(zip("01", ours, strict=True))
    optimizer.load_state_dict(result)
    step(optimizer, ours, 20)
    step(theirs, model, 20)
    for mine, their in zip(ours, model, strict=True):
        assert torch.allclose(mine, their, rtol=1e-4, atol=1e-6)
