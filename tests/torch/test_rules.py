"""SGD and RMSprop: the specification's bits, beside torch.optim, and all that Adam can do."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from beside import inputs, normal
from numpy.typing import NDArray
from otherrules import (
    CASES,
    FORMATS,
    NAMES,
    RULES,
    Options,
    Rule,
    assert_agree,
    assert_same_bits,
    cases,
    each_format,
    kept,
    made,
    params_of,
    peer,
    rules,
    run,
)
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import OptimizerInput, optim_db

from adamas import reference
from adamas.torch import (
    SGD,
    RMSprop,
    gpu,
    lr_range_test,
    step_in_backward,
)
from adamas.torch.hyperparameters import hyper_of


@rules
def test_constructors_and_groups_are_those_of_torch(ours: Rule, theirs: Any) -> None:
    mine = inspect.signature(ours).parameters
    for name, wanted in inspect.signature(theirs).parameters.items():
        assert (mine[name].default, mine[name].kind) == (wanted.default, wanted.kind), name
    here, there = ours(made()), theirs(made())
    assert list(here.defaults.items()) == list(there.defaults.items())
    assert here.param_groups[0].keys() == there.param_groups[0].keys()


@pytest.mark.parametrize(
    ("rule", "options", "error"),
    [
        (SGD, {"lr": -1.0}, "lr must be finite and at least 0, got -1.0"),
        (SGD, {"momentum": -0.5}, "momentum must be finite and at least 0, got -0.5"),
        (SGD, {"nesterov": True}, "needs a momentum above 0 and no dampening, got momentum 0.0"),
        (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "and dampening 0.1"),
        (SGD, {"lr": torch.tensor([1e-3, 1e-3])}, "a tensor of one element"),
        (SGD, {"moments": "int2"}, "moments must be one of"),
        (SGD, {"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
        (RMSprop, {"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1.0"),
        (RMSprop, {"eps": -1.0}, "eps must be finite and at least 0"),
        (RMSprop, {"momentum": -1.0}, "momentum must be finite and at least 0"),
        (RMSprop, {"centered": True, "moments": "int8"}, "'float32' with centered=True"),
        (RMSprop, {"differentiable": True, "moments": "int8"}, "with differentiable=True"),
    ],
)
def test_bad_options(rule: Rule, options: Options, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        rule(made(torch.float32), **options)


@pytest.mark.parametrize(
    ("rule", "option", "error"),
    [
        (SGD, {"betas": (0.9, 0.9)}, "betas is an option of Adam, got .* in a group of SGD"),
        (SGD, {"alpha": 0.9}, "alpha is an option of RMSprop"),
        (RMSprop, {"betas": (0.9, 0.9)}, "in a group of RMSprop: leave it out"),
    ],
)
def test_a_group_cannot_be_of_another_rule(rule: Rule, option: Options, error: str) -> None:
    optimizer = rule(made())
    with pytest.raises(ValueError, match=error):
        optimizer.add_param_group({"params": made()} | option)
    assert len(optimizer.param_groups) == 1


INPUTS = [
    (r, i) for r, _ in RULES for info in optim_db if info.name == r.__name__ for i in inputs(info)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    ("rule", "given"), INPUTS, ids=[f"{r.__name__} {i.desc}" for r, i in INPUTS]
)
def test_steps_as_torch_does(rule: Rule, given: OptimizerInput, dtype: torch.dtype) -> None:
    options = {k: v for k, v in given.kwargs.items() if k != "capturable"}
    one = rule(made(dtype), **copy.deepcopy(given.kwargs))
    other = peer(rule)(made(dtype), **copy.deepcopy(options), foreach=False)
    for t in range(16):
        for optimizer in (one, other):
            run(optimizer, range(t, t + 1))
        assert_agree(one, other)


def as_array(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(np.uint16)
    return tensor.detach().numpy()


@each_format
@pytest.mark.parametrize(("dtype", "master_bits"), FORMATS, ids=str)
@cases
def test_has_the_bits_of_the_specification(
    rule: Rule, options: Options, dtype: torch.dtype, master_bits: int | None, moments: str
) -> None:
    if moments != "float32" and (dtype == torch.float64 or options.get("centered")):
        pytest.skip("kept in full")
    optimizer = rule(made(dtype), lr=0.01, moments=moments, master_bits=master_bits, **options)
    # Some lie transposed, which the core steps on copies where the order shows.
    first = params_of(optimizer)[0]
    first.data = first.data.T.contiguous().T
    hyper = hyper_of(optimizer.param_groups[0])
    weights = [as_array(p).copy() for p in params_of(optimizer)]
    states = [reference.initial_state(w, hyper, moments, master_bits) for w in weights]
    for t in range(50):
        run(optimizer, range(t, t + 1))
        for i, p in enumerate(params_of(optimizer)):
            found = reference.step(weights[i], as_array(p.grad), states[i], hyper)
            weights[i], states[i] = found
    for p, weight, state in zip(params_of(optimizer), weights, states, strict=True):
        assert as_array(p).tobytes() == weight.tobytes()
        assert optimizer.state[p].keys() == state.keys()
        for key in state.keys() - {"step"}:
            assert as_array(optimizer.state[p][key]).tobytes() == state[key].tobytes(), key
        assert optimizer.state[p]["step"] == 50


def scheduled(make: Callable[..., Any]) -> torch.optim.Optimizer:
    optimizer = make(made(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=8)
    for t in range(8):
        run(optimizer, range(t, t + 1))
        schedule.step()
    return optimizer


def grouped(make: Callable[..., Any]) -> torch.optim.Optimizer:
    """Groups of their own options, a later one, a parameter without gradients for a while."""
    first, *others = made()
    optimizer = make([{"params": [first], "weight_decay": 0.1}, {"params": others[:2]}], lr=0.01)
    run(optimizer, range(2))
    optimizer.add_param_group({"params": others[2:], "lr": 0.1, "momentum": 0.5})
    for p in params_of(optimizer)[1:]:
        p.grad = None
    optimizer.step()
    run(optimizer, range(2, 4))
    return optimizer


def with_closure(make: Callable[..., Any]) -> torch.optim.Optimizer:
    optimizer = make(made(), lr=torch.tensor(0.01, dtype=torch.float64), maximize=True)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -sum((p.square().sum() for p in params_of(optimizer)), start=torch.tensor(0.0))
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == sorted(losses)
    return optimizer


def strided(make: Callable[..., Any]) -> torch.optim.Optimizer:
    """Transposed, and with gaps, which plain operations step."""
    params = [nn.Parameter(normal((6, 8), torch.float64, i)) for i in range(2)]
    params[0].data, params[1].data = params[0].data.T, params[1].data[:, ::2]
    optimizer = make(params, lr=0.01, weight_decay=0.1)
    run(optimizer, range(4))
    return optimizer


@pytest.mark.parametrize("trainer", [scheduled, grouped, with_closure, strided])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
@rules
def test_trainers_beside_torch(ours: Rule, theirs: Any, trainer: Any, options: Options) -> None:
    one, other = (
        trainer(lambda params, make=make, **own: make(params, **options | own))
        for make in (ours, theirs)
    )
    assert_agree(one, other)


@kept
def test_clips_and_skips_inside_the_step(rule: Rule, options: Options) -> None:
    ours = rule(made(), lr=0.01, max_grad_norm=0.5, skip_nonfinite=True, **options)
    before = rule(made(), lr=0.01, **options)
    for t in range(4):
        for optimizer in (ours, before):
            for i, p in enumerate(params_of(optimizer)):
                p.grad = normal(tuple(p.shape), p.dtype, 10 * t + i)
        torch.nn.utils.clip_grad_norm_(params_of(before), 0.5)
        for optimizer in (ours, before):
            optimizer.step()
    params_of(ours)[0].grad = torch.full((70, 3), math.nan, dtype=torch.float64)
    ours.step()
    assert ours.skipped_steps == 1
    for p, q in zip(params_of(ours), params_of(before), strict=True):
        torch.testing.assert_close(p, q)


@kept
def test_a_gradient_scaler_is_unscaled_inside_the_step(rule: Rule, options: Options) -> None:
    ours, plain = (rule(made(torch.float32), lr=0.01, **options) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(3):
        for optimizer, by in ((ours, 1024.0), (plain, 1.0)):
            for i, p in enumerate(params_of(optimizer)):
                p.grad = by * normal(tuple(p.shape), p.dtype, 10 * t + i)
        scaler.scale(torch.ones(()))
        scaler.step(ours)
        scaler.update()
        plain.step()
    assert_same_bits(ours, plain)


def unrolled(make: Any, leaves: list[Tensor], options: Options) -> Tensor:
    """A number that depends on all that came of some steps, which autograd has recorded.

    Args:
        make: the optimizer's class.
        leaves: the parameter, a gradient that enters all, and what stands for the averages.
        options: of the optimizer.
    """
    param = leaves[0].clone()
    optimizer = make([param], differentiable=True, **options)
    averages = [key for key in hyper_of(optimizer.param_groups[0]).keys if key]
    begun = {key: leaf.clone() for key, leaf in zip(averages, leaves[2:], strict=False)}
    optimizer.state[param] = {"step": torch.tensor(10.0, dtype=torch.float64)} | begun
    # Over several steps torch's centered one cannot be differentiated: it changes what is saved.
    for t in range(1 if options.get("centered") else 4):
        param.grad = leaves[1] * (t - 1.5) + 0.1 * param
        optimizer.step()
    outcome = [param, *(optimizer.state[param][key] for key in averages)]
    return sum(((i + 2) * x.sin()).sum() for i, x in enumerate(outcome))


def leaves(options: Options) -> list[Tensor]:
    """Those of ``unrolled``; of two averages that of the square is the second where it is so."""
    made = [normal((6,), torch.float64, i) for i in range(1, 6)]
    squares = made[2].square() + 0.1, made[3].square() + 1.1
    if options.get("centered"):
        made[2:4] = made[2].sin(), squares[1]
    else:
        made[2] = squares[0]
    return [leaf.requires_grad_() for leaf in made]


@cases
def test_gradients_through_steps(rule: Rule, options: Options) -> None:
    gradients = []
    for make in (rule, peer(rule)):
        used = leaves(options)
        outcome = unrolled(make, used, options)
        gradients.append(torch.autograd.grad(outcome, used, allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("option", ["lr", "momentum", "weight_decay", "dampening", "alpha"])
@cases
def test_gradients_with_respect_to_hyperparameters(
    rule: Rule, options: Options, option: str
) -> None:
    values = {"lr": 0.02, "weight_decay": 0.3} | options
    if option not in values:
        pytest.skip("not among these options")

    def outcome(value: Any) -> Tensor:
        return unrolled(rule, leaves(options), values | {option: value})

    value = torch.tensor(values[option], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(outcome(value), value)
    near = 1e-6
    slope = (outcome(values[option] + near) - outcome(values[option] - near)) / (2 * near)
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)


@kept
def test_stepping_in_backward_has_the_same_bits(rule: Rule, options: Options) -> None:
    models = [nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = (rule(m.parameters(), lr=0.01, moments="int8", **options) for m in models)
    step_in_backward(one)
    for t in range(3):
        for model, optimizer in zip(models, (one, other), strict=True):
            model(normal((5, 6), torch.float32, t)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same_bits(one, other)


@pytest.mark.parametrize("moments", ["float32", "int8"])
@cases
def test_statistics(rule: Rule, options: Options, moments: str) -> None:
    """As the step finds them, and as they are worked out after it."""
    if options.get("centered") and moments != "float32":
        pytest.skip("kept in full")
    found = []
    for asked in (True, False):
        optimizer = rule(
            made(torch.float32), lr=0.05, moments=moments, max_grad_norm=2.0, **options
        )
        run(optimizer, range(3))
        if asked:
            optimizer.measure_next_step()
        run(optimizer, range(3, 4))
        found.append(optimizer.statistics().groups[0])
        first, second, _ = hyper_of(optimizer.param_groups[0]).keys
        assert (found[-1].exp_avg_norm > 0) == bool(first)
        assert (found[-1].exp_avg_sq_norm > 0) == bool(second)
    asked, worked_out = found
    assert worked_out.grad_norm == pytest.approx(asked.grad_norm)
    loose = 1e-3 if moments == "float32" else 0.1
    assert worked_out.update_norm == pytest.approx(asked.update_norm, rel=loose)
    assert worked_out.param_norm == pytest.approx(asked.param_norm)
    assert asked.stalled == pytest.approx(worked_out.stalled, abs=0.02)


def test_without_gradients_an_update_by_them_is_unknown() -> None:
    optimizer = SGD(made())
    run(optimizer, range(1))
    optimizer.zero_grad()
    total = optimizer.statistics().groups[0]
    assert math.isnan(total.update_norm)
    assert not math.isnan(total.param_norm)


@pytest.mark.parametrize(
    ("rule", "options", "moments", "size"),
    [
        (SGD, {}, "int8", 0),
        (SGD, {"momentum": 0.9}, "float32", 4 * 64),
        (SGD, {"momentum": 0.9}, "int8", 2 * 64 + 6),
        (RMSprop, {}, "bfloat16", 2 * 64),
        (RMSprop, {"momentum": 0.9}, "int4", 64 + 6 + 4 * 64),
        (RMSprop, {"centered": True}, "float32", 8 * 64),
    ],
)
def test_memory(rule: Rule, options: Options, moments: str, size: int) -> None:
    optimizer = rule(made(torch.float32, [(64,)]), moments=moments, **options)
    run(optimizer, range(1))
    assert optimizer.memory().total.moments == size


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU stand for a GPU without Triton."""
    monkeypatch.setattr(gpu, "DEVICES", {"cpu"})
    monkeypatch.setattr(gpu, "_has_triton", lambda: False)


@each_format
@pytest.mark.parametrize("case", [0, 2, 5, 7], ids=lambda i: NAMES[i])
def test_offloaded_states_have_the_same_bits(as_gpu: None, case: int, moments: str) -> None:
    rule, options = CASES[case]
    options = options | {"lr": 0.01, "moments": moments}
    here, away = (rule(made(torch.bfloat16), offload=o, **options) for o in (None, "cpu"))
    for optimizer in (here, away):
        run(optimizer, range(3))
    assert_same_bits(here, away)


@kept
def test_a_range_of_learning_rates(rule: Rule, options: Options) -> None:
    """All is put back bit for bit."""
    model = nn.Linear(4, 1)
    optimizer = rule(model.parameters(), moments="int8", **options)
    run(optimizer, range(2))
    before = copy.deepcopy(optimizer)

    def loss_of_batch(batch: Tensor) -> Tensor:
        return (model(batch) - 3.0).square().mean()

    found = lr_range_test(model, optimizer, loss_of_batch, [normal((8, 4), torch.float32, 1)])
    assert found.suggestion is not None
    assert_same_bits(optimizer, before)
