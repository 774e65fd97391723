"""SGD and RMSprop: the specification's bits, beside torch.optim, and all that Adam can do."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from beside import inputs, normal
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import OptimizerInput, optim_db

from adamas import formats, reference
from adamas.torch import (
    SGD,
    Adam,
    AdamW,
    RMSprop,
    convert_state_dict,
    gpu,
    lr_range_test,
    step_in_backward,
)
from adamas.torch.base import Optimizer
from adamas.torch.hyperparameters import hyper_of

Rule = type[Optimizer]
Options = dict[str, Any]

RULES: list[tuple[Rule, Any]] = [(SGD, torch.optim.SGD), (RMSprop, torch.optim.RMSprop)]
rules = pytest.mark.parametrize(("ours", "theirs"), RULES, ids=["SGD", "RMSprop"])
CASES: list[tuple[Rule, Options]] = [
    (SGD, {}),
    (SGD, {"weight_decay": 0.1, "maximize": True}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "dampening": 0.5, "maximize": True}),
    (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    (RMSprop, {}),
    (RMSprop, {"alpha": 0.9, "weight_decay": 0.1, "maximize": True, "eps": 1e-4}),
    (RMSprop, {"momentum": 0.9, "weight_decay": 0.1}),
    (RMSprop, {"centered": True}),
    (RMSprop, {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
]
NAMES = [f"{rule.__name__} {','.join(options) or 'default'}" for rule, options in CASES]
cases = pytest.mark.parametrize(("rule", "options"), CASES, ids=NAMES)
# With an average or two to keep, in any format.
KEPT = [CASES[2], CASES[4], CASES[5], CASES[7]]
kept = pytest.mark.parametrize(("rule", "options"), KEPT, ids=[NAMES[i] for i in (2, 4, 5, 7)])
FORMATS = [
    (torch.float32, None),
    (torch.float64, None),
    (torch.bfloat16, 32),
    (torch.bfloat16, 24),
    (torch.bfloat16, 16),
    (torch.float16, 32),
    (torch.float16, 16),
]
each_format = pytest.mark.parametrize("moments", formats.FORMATS)
SHAPES = [(70, 3), (), (0,), (64,)]


def peer(rule: Rule) -> Any:
    return getattr(torch.optim, rule.__name__)


def made(dtype: torch.dtype = torch.float64, shapes: list[Any] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(normal(shape, dtype, i)) for i, shape in enumerate(shapes)]


def params_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        for i, p in enumerate(params_of(optimizer)):
            p.grad = normal(tuple(p.shape), p.dtype, 100 * t + i + 7)
        optimizer.step()


def tensors(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """Of each parameter, itself and its state but for the step."""
    return [
        {"param": p.detach()} | {k: v for k, v in optimizer.state[p].items() if k != "step"}
        for p in params_of(optimizer)
    ]


def assert_agree(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Within rounding, of which a difference of two averages has the most."""
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            rtol = 1e-4 if a[key].dtype in (torch.float32, torch.complex64) else 1e-10
            largest = float(b[key].abs().max()) if b[key].numel() else 0.0
            torch.testing.assert_close(a[key], b[key], rtol=rtol, atol=rtol * largest)


def bits(tensor: Tensor) -> bytes:
    return (
        tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )


def assert_same_bits(one: Optimizer, other: Optimizer) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert {k: bits(v) for k, v in a.items()} == {k: bits(v) for k, v in b.items()}
    steps = [[o.state[p].get("step") for p in params_of(o)] for o in (one, other)]
    assert steps[0] == steps[1]


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


@pytest.mark.parametrize("to_torch", [False, True])
@cases
def test_checkpoints_go_on_in_both_directions(rule: Rule, options: Options, to_torch: bool) -> None:
    makers = [rule, peer(rule)] if to_torch else [peer(rule), rule]
    started = makers[0](made(), lr=0.01, **options)
    run(started, range(5))
    resumed = makers[1](copy.deepcopy(params_of(started)), lr=0.5)
    resumed.load_state_dict(started.state_dict())
    assert resumed.param_groups[0]["lr"] == 0.01
    beside = peer(rule)(made(), lr=0.01, **options)
    run(beside, range(5))
    run(beside, range(5, 10))
    run(resumed, range(5, 10))
    for p, q in zip(params_of(resumed), params_of(beside), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@each_format
@pytest.mark.parametrize(("dtype", "master_bits"), FORMATS[:1] + FORMATS[2:], ids=str)
@kept
def test_a_resumed_run_has_the_same_bits(
    rule: Rule, options: Options, dtype: torch.dtype, master_bits: int | None, moments: str
) -> None:
    options = options | {"lr": 0.01, "moments": moments, "master_bits": master_bits}
    straight = rule(made(dtype), **options)
    run(straight, range(4))
    buffer = io.BytesIO()
    torch.save(straight.state_dict(), buffer)
    buffer.seek(0)
    resumed = rule(copy.deepcopy(params_of(straight)), **options)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same_bits(resumed, straight)
    copied = copy.deepcopy(straight)
    pickled = pickle.loads(pickle.dumps(straight))
    for optimizer in (straight, resumed, copied, pickled):
        run(optimizer, range(4, 8))
    for other in (resumed, copied, pickled):
        assert_same_bits(other, straight)


@pytest.mark.parametrize(("moments", "bound"), [("bfloat16", 0.01), ("int8", 0.02), ("int4", 0.4)])
@kept
def test_states_change_their_format(
    rule: Rule, options: Options, moments: str, bound: float
) -> None:
    full = rule(made(torch.float32), lr=0.01, **options)
    run(full, range(4))
    lean = rule(copy.deepcopy(params_of(full)), lr=0.01, moments=moments, **options)
    back = rule(copy.deepcopy(params_of(full)), lr=0.01, **options)
    lean.load_state_dict(full.state_dict())
    back.load_state_dict(lean.state_dict())
    for a, b in zip(tensors(back), tensors(full), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert (a[key] - b[key]).abs().sum() <= bound * b[key].abs().sum(), key


@pytest.mark.parametrize("saved", [SGD, RMSprop, AdamW, torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("rule", [SGD, RMSprop, Adam])
def test_states_of_another_rule_are_refused(rule: Rule, saved: Any) -> None:
    source = saved(made(), lr=0.5)
    run(source, range(1))
    names = [{"AdamW": "Adam"}.get(r.__name__, r.__name__) for r in (rule, saved)]
    optimizer = rule(made(), lr=0.25)
    if names[0] == names[1]:
        optimizer.load_state_dict(source.state_dict())
        return
    with pytest.raises(ValueError, match=f"it is not {names[0]}'s, but {names[1]}'s: load it"):
        optimizer.load_state_dict(source.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("foreign", "rule", "error"),
    [
        (torch.optim.ASGD, RMSprop, "lambd=0.0001, as ASGD has: it is not RMSprop's"),
        (torch.optim.ASGD, SGD, "without dampening: it is not SGD's"),
        (torch.optim.Adagrad, SGD, "without dampening: it is not SGD's"),
        (torch.optim.Adadelta, RMSprop, "without alpha: it is not RMSprop's"),
    ],
)
def test_foreign_states_are_refused(foreign: Any, rule: Rule, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        rule(made()).load_state_dict(foreign(made()).state_dict())


def test_only_adams_states_are_converted() -> None:
    source = SGD(made(torch.float32), momentum=0.9, moments="int8")
    run(source, range(1))
    with pytest.raises(ValueError, match="the optimizer's state must be Adam's"):
        convert_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("rule", "options", "lacking", "error"),
    [
        (RMSprop, {}, "square_avg", "lacks square_avg: it is not RMSprop's"),
        (RMSprop, {}, "step", "has no step: it is not RMSprop's"),
        (RMSprop, {"centered": True}, "grad_avg", "lacks grad_avg"),
        (RMSprop, {"moments": "int8"}, "scales", "lacks scales"),
        (SGD, {"momentum": 0.9, "moments": "int8"}, "scales", "scales of torch.bfloat16, got None"),
    ],
)
def test_damaged_states_are_refused(rule: Rule, options: Options, lacking: str, error: str) -> None:
    source = rule(made(torch.float32), **options)
    run(source, range(1))
    state_dict = source.state_dict()
    del state_dict["state"][0][lacking]
    with pytest.raises(ValueError, match=error):
        rule(made(torch.float32), **options).load_state_dict(state_dict)


def test_torchs_sgd_has_no_step_and_perhaps_no_momentum() -> None:
    """A momentum that is there is dampened; None begins with the gradient, as torch's does."""
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    one, other = SGD(made(), **options), torch.optim.SGD(made(), **options)
    for i, p in enumerate(params_of(other)[:2]):
        p.grad = normal(tuple(p.shape), p.dtype, i)
    other.step()
    state_dict = other.state_dict()
    state_dict["state"][3] = {"momentum_buffer": None}
    other.load_state_dict(state_dict)
    one = SGD(copy.deepcopy(params_of(other)), **options)
    one.load_state_dict(state_dict)
    assert [one.state[p].get("step", 0) for p in params_of(one)] == [1, 1, 0, 0]
    for optimizer in (one, other):
        run(optimizer, range(3))
    assert_agree(one, other)


def test_a_skipped_first_step_leaves_torch_a_momentum_to_begin() -> None:
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    ours = SGD(made(), skip_nonfinite=True, **options)
    for p in params_of(ours):
        p.grad = torch.full_like(p, math.nan)
    ours.step()
    theirs, fresh = torch.optim.SGD(made(), **options), torch.optim.SGD(made(), **options)
    theirs.load_state_dict(ours.state_dict())
    again = SGD(made(), **options)
    for optimizer in (theirs, fresh, ours):
        run(optimizer, range(3))
    again.load_state_dict(theirs.state_dict())  # with the count of then
    assert [again.state[p]["step"] for p in params_of(again)] == [1, 1, 1, 1]
    assert_agree(theirs, fresh)
    assert_agree(ours, fresh)


def test_a_momentum_that_is_switched_on_begins_with_the_gradient() -> None:
    one, other = SGD(made(), lr=0.1), torch.optim.SGD(made(), lr=0.1)
    for options in ({}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0}, {"momentum": 0.9}):
        for optimizer in (one, other):
            optimizer.param_groups[0].update(options)
            run(optimizer, range(3))
        assert_agree(one, other)


@kept
@pytest.mark.parametrize("shape", [(5,), (), (3, 2), (0,)])
def test_complex_states_are_pairs_in_bfloat16_and_back(
    rule: Rule, options: Options, shape: tuple[int, ...]
) -> None:
    """What bfloat16 has kept, float32 keeps exactly: so back again all bits are the same."""
    first = rule([nn.Parameter(normal(shape, torch.complex64, 0))], moments="bfloat16", **options)
    run(first, range(3))
    last = first
    for moments in ("float32", "bfloat16"):
        params = copy.deepcopy(params_of(first))
        saved, last = last.state_dict(), rule(params, moments=moments, **options)
        last.load_state_dict(saved)
    assert_same_bits(first, last)


@pytest.mark.parametrize("moments", formats.FORMATS)
def test_a_momentum_that_is_switched_off_and_on_again_goes_on(moments: str) -> None:
    """As torch's does; also through a checkpoint that is written while it is off."""
    params = made(torch.float32), made(torch.float32)
    options = {"lr": 0.1, "momentum": 0.9}
    one, other = SGD(params[0], moments=moments, **options), torch.optim.SGD(params[1], **options)
    for optimizer in (one, other):
        run(optimizer, range(3))
        optimizer.param_groups[0]["momentum"] = 0
        run(optimizer, range(1))
    before = [p.detach().clone() for p in params[0]], [p.detach().clone() for p in params[1]]
    again = SGD(copy.deepcopy(params[0]), moments=moments, **options)
    again.load_state_dict(one.state_dict())
    for optimizer in (one, other, again):
        optimizer.param_groups[0]["momentum"] = 0.9
        for p in params_of(optimizer):
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(map(torch.equal, params[0], params_of(again)))
    # What moves the weights now is the momentum alone.
    for p, q, p0, q0 in zip(*params, *before, strict=True):
        torch.testing.assert_close(p - p0, q - q0, rtol=0.2, atol=0.02)


def test_rmsprop_takes_up_momentum_and_not_a_center() -> None:
    optimizer = RMSprop(made())
    run(optimizer, range(2))
    optimizer.param_groups[0]["momentum"] = 0.9
    run(optimizer, range(2))
    optimizer.param_groups[0]["centered"] = True
    before = copy.deepcopy(tensors(optimizer))
    with pytest.raises(ValueError, match="must have grad_avg of shape"):
        run(optimizer, range(1))
    assert all(
        torch.equal(a["param"], b["param"]) for a, b in zip(before, tensors(optimizer), strict=True)
    )


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
