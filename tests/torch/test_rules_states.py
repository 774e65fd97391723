"""States of SGD and RMSprop: saved, loaded, in other formats, of options that change."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from beside import normal
from otherrules import (
    FORMATS,
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
    run,
    tensors,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from adamas import formats
from adamas.torch import (
    SGD,
    Adam,
    AdamW,
    RMSprop,
    convert_state_dict,
)


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


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_squares_below_zero_are_damaged(moments: str) -> None:
    source = RMSprop(made(torch.float32), moments=moments)
    run(source, range(1))
    state_dict = source.state_dict()
    state_dict["state"][0]["square_avg"].view(-1)[0] = -1
    with pytest.raises(ValueError, match="parameter 0 must have square_avg of at least 0, got -1"):
        RMSprop(made(torch.float32), moments=moments).load_state_dict(state_dict)


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


@pytest.mark.parametrize("flattened", [False, True])
def test_a_distributed_state_dictionary_of_torchs(flattened: bool) -> None:
    """In which SGD has no step; flattened, an empty one."""
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    model = nn.Linear(3, 3)
    theirs = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3)).sum().backward()
    theirs.step()
    theirs.zero_grad()
    saved = get_optimizer_state_dict(model, theirs, options=options)
    twin = copy.deepcopy(model)
    ours = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    set_optimizer_state_dict(twin, ours, saved, options=options)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.state[q]["step"] == 1
        assert torch.equal(ours.state[q]["momentum_buffer"], theirs.state[p]["momentum_buffer"])
