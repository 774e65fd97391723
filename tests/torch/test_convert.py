"""State of other optimizers: read from their layouts, matched, and written for torch.optim."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layouts import (
    CASES,
    STEP,
    Case,
    State,
    apex,
    bitsandbytes,
    flashoptim,
    held,
    of,
    optimi,
    parameters,
    torch_optim,
    torchao,
)
from torch import nn

from adamas.torch import Adam, AdamW, convert_state_dict


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


@pytest.mark.parametrize("shape", [(5,), (3, 2), ()], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8", "int4"])
def test_complex_parameters_of_every_format(
    moments: str, amsgrad: bool, shape: tuple[int, ...]
) -> None:
    """Formats below float32 keep pairs of real numbers: the target says that they are complex."""
    param = nn.Parameter(torch.ones(shape, dtype=torch.complex64))
    ours = Adam([param], moments=moments, amsgrad=amsgrad)
    for i in range(3):
        param.grad = torch.full_like(param, 0.5 + i * 1j)
        ours.step()
    full = Adam([param], amsgrad=amsgrad)
    full.load_state_dict(ours.state_dict())
    targets: list[Any] = [ours, [param]]
    if amsgrad or moments == "float32":  # which show it
        targets.append(None)
    for target in targets:
        result, _ = convert_state_dict(ours.state_dict(), target)
        theirs = torch.optim.Adam([param], amsgrad=amsgrad)
        theirs.load_state_dict(copy.deepcopy(result))
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(theirs.state[param][key], full.state[param][key])
        theirs.step()
