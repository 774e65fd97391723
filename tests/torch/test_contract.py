"""All that torch.optim.Adam and AdamW promise, by PyTorch's own tables of inputs and errors."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import (
    RULES,
    STEPS,
    Both,
    Rule,
    assert_agree,
    assert_same_bits,
    both,
    dtypes,
    each_input,
    for_torch,
    normal,
    parameters,
    rules,
    step,
    trajectory,
)
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, OptimizerInput

from adamas.torch import Adam, AdamW


@each_input
@dtypes
def test_every_input_of_torch(name: str, given: OptimizerInput, dtype: torch.dtype) -> None:
    """Each input with each of the flags, beside torch's step of that flag."""
    rule, info = RULES[name]
    options = copy.deepcopy(given.kwargs)
    ours = trajectory(rule(parameters(dtype), **options))
    for flag in (None, *info.supported_impls):
        flags = {flag: True} if flag else {"foreach": False}
        if flag == "differentiable":  # in other operations, which autograd knows
            made = [p.clone() for p in parameters(dtype)]
            assert_agree(trajectory(rule(made, **options, **flags)), ours)
            continue
        assert_same_bits(trajectory(rule(parameters(dtype), **options, **flags)), ours)
        refused = isinstance(options.get("lr"), Tensor) or (flag == "fused" and dtype.is_complex)
        if flag is None or not refused:
            theirs = info.optim_cls(parameters(dtype), **for_torch(options), **flags)
            assert_agree(ours, trajectory(theirs))


def test_trajectories_are_told_apart() -> None:
    """The comparison can fail: a beta that differs in the fifth digit, a step that is left out."""
    theirs = trajectory(torch.optim.Adam(parameters()))
    for ours in (
        trajectory(Adam(parameters(), betas=(0.9, 0.99901))),
        trajectory(Adam(parameters()), range(1, STEPS + 1)),
    ):
        with pytest.raises(AssertionError):
            assert_agree(ours, theirs)


# What adamas says to the inputs that torch refuses; to any others, torch's own words.
REFUSED = {
    "Tensor lr must be 1-element": r"lr must be a number or a tensor of one element.*\(2,\)",
    "beta1 should be between 0 and 1": r"beta1 must be in \[0, 1\), got 1.0",
    "weight_decay should > 0": "weight_decay must be finite and at least 0, got -1",
}
# Limits of torch's implementations that adamas does not have.
UNLIMITED = {
    "lr as Tensor doesn't work with foreach & not capturable",
    "betas must be either both floats or both Tensors",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
}
ERRORS = [
    (name, error)
    for name, (_, info) in RULES.items()
    for error in info.optim_error_inputs_func("cpu", torch.float32)
]


@pytest.mark.parametrize(
    ("name", "error"), ERRORS, ids=[f"{name} {e.optimizer_error_input.desc}" for name, e in ERRORS]
)
def test_every_error_of_torch(name: str, error: Any) -> None:
    rule, info = RULES[name]
    given = error.optimizer_error_input
    params = [nn.Parameter(torch.randn(2, 3))] if given.params is None else given.params
    assert error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
    if given.desc in UNLIMITED:
        numbers = {
            key: tuple(map(float, value)) if key == "betas" else float(value)
            for key, value in given.kwargs.items()
            if key != "foreach"
        }
        ours, plain = rule(parameters(), **given.kwargs), rule(parameters(), **numbers)
        assert_same_bits(trajectory(ours), trajectory(plain))
        return
    warns = issubclass(error.error_type, Warning)
    refused = pytest.warns if warns else pytest.raises
    with refused(error.error_type, match=error.error_regex):
        info.optim_cls(params, **given.kwargs)
    with refused(error.error_type, match=REFUSED.get(given.desc, error.error_regex)):
        rule(params, **given.kwargs)


@rules
def test_flags_say_nothing_about_the_bits(name: str) -> None:
    """Torch refuses some of them together; here every step is both, so they do not matter."""
    rule, _ = RULES[name]
    expected = trajectory(rule(parameters()))
    for foreach, fused, capturable in itertools.product((None, False, True), repeat=3):
        optimizer = rule(parameters(), foreach=foreach, fused=fused, capturable=bool(capturable))
        assert_same_bits(trajectory(optimizer), expected)
        (group,) = optimizer.state_dict()["param_groups"]
        assert (group["foreach"], group["fused"]) == (foreach, fused)


def clone(optimizer: Any, way: str) -> Any:
    """The same optimizer on parameters of its own."""
    if way == "deepcopy":
        return copy.deepcopy(optimizer)
    if way == "pickle":
        return pickle.loads(pickle.dumps(optimizer))
    groups = copy.deepcopy([{"params": group["params"]} for group in optimizer.param_groups])
    made = type(optimizer)(groups, lr=7.0)
    made.load_state_dict(optimizer.state_dict())
    return made


@each_input
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies_between_steps(name: str, given: OptimizerInput, way: str) -> None:
    rule, _ = RULES[name]
    straight, halted = (rule(parameters(), **copy.deepcopy(given.kwargs)) for _ in range(2))
    expected = trajectory(straight)
    records = []
    for t in range(STEPS):
        halted = clone(halted, way)
        records += trajectory(halted, range(t, t + 1))
    assert_same_bits(records, expected)


# Torch's schedulers warn of copied optimizers, its own as well.
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step.*overridden:UserWarning")
def test_a_copied_trainer_holds_together() -> None:
    """A model, its optimizer and its schedule, copied in one: each finds the other's copy."""
    model = nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    trainer = (model, optimizer, lr_scheduler.StepLR(optimizer, 1, 0.5))
    step(optimizer, 0)
    for copied in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        other, its_optimizer, its_schedule = copied
        before = model.weight.detach().clone()
        step(its_optimizer, 1)
        its_schedule.step()
        assert its_optimizer.param_groups[0]["params"][0] is other.weight
        assert its_optimizer.param_groups[0]["lr"] == 0.05
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert not torch.equal(other.weight, before)
        assert torch.equal(model.weight, before)


def test_a_deepcopy_has_all_public_attributes() -> None:
    optimizer = Adam(parameters(), max_grad_norm=2.0, skip_nonfinite=True)
    step(optimizer, 0)
    ours, others = (
        {key: value for key, value in vars(one).items() if not key.startswith("_")}
        for one in (optimizer, copy.deepcopy(optimizer))
    )
    assert ours.keys() == others.keys()
    for key in ("max_grad_norm", "skip_nonfinite", "skipped_steps", "last_grad_norm"):
        assert ours[key] == others[key]


@rules
def test_groups_added_on_the_way(name: str) -> None:
    def make(rule: Rule) -> Both:
        params = parameters()
        optimizer = rule(params[:1], lr=0.02)
        added = iter(
            [
                {"params": params[1:3], "weight_decay": 0.3, "amsgrad": True},
                {"params": params[3], "lr": 0.5},
                {"params": iter(params[4:]), "betas": (0.5, 0.6), "maximize": True, "eps": 1e-3},
            ]
        )

        def each(t: int) -> None:
            if t in (0, 3, 4):
                optimizer.add_param_group(next(added))

        return {"optimizer": optimizer, "each": each}

    both(name, make)


@rules
def test_named_parameters(name: str) -> None:
    """Names are kept in groups and checkpoints, whose groups are torch's to the last key."""
    rule, info = RULES[name]
    states = []
    for one in (rule, info.optim_cls):
        named = [(f"layer.{i}", p) for i, p in enumerate(parameters())]
        optimizer = one(named[:2], lr=0.1)
        optimizer.add_param_group({"params": named[2:], "lr": 0.2, "mine": "kept"})
        step(optimizer, 0)
        optimizer.load_state_dict(optimizer.state_dict())
        states.append(optimizer.state_dict())
        with pytest.raises(ValueError, match=r"with/without names|have names"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        assert optimizer.param_groups[1]["param_names"] == ["layer.2", "layer.3", "layer.4"]
        optimizer.load_state_dict(states[-1])
    ours, theirs = states
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for i, state in theirs["state"].items():
        assert ours["state"][i].keys() == state.keys()
        assert ours["state"][i]["step"].dtype == state["step"].dtype


@rules
@pytest.mark.parametrize(
    "call",
    [lambda o: o.step(), lambda o: o.step(lambda: 1.0), lambda o: o.step(closure=lambda: 1.0)],
    ids=["bare", "positional", "keyword"],
)
@pytest.mark.parametrize("replace", [False, True], ids=["seen", "replaced"])
def test_hooks_see_and_change_what_torchs_do(
    name: str, call: Callable[[Optimizer], Any], replace: bool
) -> None:
    """The order of the calls, what they are given, and that a pre hook may replace it."""
    rule, info = RULES[name]
    logs: list[list[Any]] = []
    for one in (rule, info.optim_cls):
        log: list[Any] = []
        logs.append(log)
        optimizer = one(parameters())

        def before(
            own: Optimizer, args: Any, options: Any, log: list[Any] = log
        ) -> tuple[Any, Any] | None:
            log.append(("before", len(args), sorted(options), len(own.state)))
            return (args[:1], {"closure": lambda: 2.0}) if replace else None

        def after(own: Optimizer, args: Any, options: Any, log: list[Any] = log) -> None:
            log.append(("after", len(args), sorted(options), len(own.state)))

        handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
            register_optimizer_step_pre_hook(lambda o, *_, log=log: log.append(type(o).__name__)),
            register_optimizer_step_post_hook(lambda *_, log=log: log.append("everyone's")),
        ]
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        log.append(call(optimizer))
        for handle in handles:
            handle.remove()
        log.append(call(optimizer))
    assert logs[0] == logs[1]
    assert (2.0 in logs[0]) == replace


@rules
def test_closures(name: str) -> None:
    rule, info = RULES[name]
    losses = []
    for one in (rule, info.optim_cls):
        torch.manual_seed(0)
        model, data = nn.Linear(4, 1).double(), normal((9, 4), torch.float64, 1)
        optimizer = one(model.parameters(), lr=0.1)

        def closure(model: Any = model, data: Tensor = data, own: Any = optimizer) -> Tensor:
            own.zero_grad()
            loss: Tensor = (model(data) - data.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        with torch.no_grad():  # which a closure is to overrule
            losses.append([optimizer.step(closure).item() for _ in range(20)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0] / 2


@rules
def test_optimizers_pickled_before_there_were_these_options(name: str) -> None:
    rule, info = RULES[name]
    for flag in (*info.not_og_supported_flags, "foreach", "fused", "decoupled_weight_decay"):
        optimizer, expected = (rule(parameters(), weight_decay=0.1) for _ in range(2))
        state = optimizer.__getstate__()
        state = state | {"param_groups": [dict(group) for group in state["param_groups"]]}
        for group in state["param_groups"]:
            group.pop(flag, None)
        optimizer.__setstate__(state)
        assert_same_bits(trajectory(optimizer), trajectory(expected))
