"""SGD and RMSprop over NumPy arrays: beside the specification and beside torch's."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from cases import as_dtype, numbers, visible
from test_arrays import views

from adamas import SGD, Adam, AdamW, RMSprop, formats, reference
from adamas.arrays import Optimizer

MAKERS: dict[str, Any] = {
    "SGD": partial(SGD, lr=0.01),
    "momentum": partial(SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "RMSprop": partial(RMSprop, lr=0.01),
    "RMSprop with momentum": partial(RMSprop, lr=0.01, momentum=0.9, weight_decay=0.1),
    "centered": partial(RMSprop, lr=0.01, centered=True, momentum=0.5),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def compact(make: Any) -> tuple[str, ...]:
    """The formats that there are for a rule."""
    return ("float32",) if make.keywords.get("centered") else formats.FORMATS


@makers
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_memory_orders(make: Any, dtype: str) -> None:
    """In the core or by the specification: the same."""
    kinds = ["float32"] if dtype == "float64" else compact(make)
    bits = {"float64": [32], "float32": [32], "bfloat16": [32, 24, 16], "float16": [32, 16]}[dtype]
    for moments, master_bits in product(kinds, bits):
        for name, param, grad in views(dtype):
            kept = {"moments": moments, "master_bits": master_bits}
            optimizer = make({"w": visible(param)}, **kept)
            expected = param.astype(param.dtype.newbyteorder("=")).copy("C")
            state = reference.initial_state(expected, optimizer.hyper, **kept)
            for shift in (0, 3, 5):
                moved = np.roll(grad, shift)
                optimizer.step({"w": visible(moved)})
                expected, state = reference.step(expected, moved, state, optimizer.hyper)
            assert np.array_equal(param, expected), (name, kept)
            saved = optimizer.state_dict()
            for key, value in state.items():
                assert np.array_equal(saved[f"state/w/{key}"], value), (name, kept, key)


FLAGS = (False, True)
DESCENTS = [
    {"momentum": m, "dampening": d, "weight_decay": w, "nesterov": n, "maximize": x}
    for m, d, w, n, x in product((0.0, 0.9), (0.0, 0.3), (0.0, 0.05), FLAGS, FLAGS)
    if not n or (m and not d)
]
ROOTS = [
    {"momentum": m, "weight_decay": w, "centered": c, "maximize": x, "alpha": a}
    for m, w, c, x, a in product((0.0, 0.9), (0.0, 0.05), FLAGS, FLAGS, (0.99, 0.9))
]


@cache
def gradient(t: int, dtype: str) -> np.ndarray:
    return numbers(100 + t, 300, dtype, -6, 1)


@pytest.mark.parametrize(
    ("rule", "options"),
    [*product(["SGD"], DESCENTS), *product(["RMSprop"], ROOTS)],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
@pytest.mark.parametrize(("dtype", "near"), [("float32", 2e-6), ("float64", 1e-14)])
def test_beside_torch(rule: str, options: dict[str, Any], dtype: str, near: float) -> None:
    """200 steps, up to the order of roundings, relative to the largest weight."""
    param = numbers(1, 300, dtype, -3, 1)
    theirs = torch.nn.Parameter(torch.from_numpy(param.copy()))
    ours = {"SGD": SGD, "RMSprop": RMSprop}[rule](param, lr=1e-3, **options)
    other = getattr(torch.optim, rule)([theirs], lr=1e-3, **options)
    for t in range(200):
        grad = gradient(t, dtype)
        theirs.grad = torch.from_numpy(grad)
        ours.step(grad)
        other.step()
    expected = theirs.detach().numpy()
    assert abs(param - expected).max() <= near * abs(expected).max()
    # What torch keeps beside it is called the same.
    saved = {key.rpartition("/")[2] for key in ours.state_dict() if key.startswith("state/")}
    kept = {key for key, value in other.state[theirs].items() if value is not None}
    assert saved == kept | {"step"}


def through_a_file(optimizer: Optimizer) -> Any:
    file = io.BytesIO()
    np.savez(file, **optimizer.state_dict())
    file.seek(0)
    return np.load(file)


@makers
def test_state_through_a_file(make: Any) -> None:
    """A later run goes on bit for bit, in each format."""

    def grads(t: int) -> list[np.ndarray]:
        return [
            numbers(10 + t, 200, "float32", -3, 3),
            as_dtype(60 + t, 200, "float16", -3, 3),
        ]

    for moments in compact(make):
        straight, halted = ([p.copy() for p in grads(99)] for _ in range(2))
        one, two = make(straight, moments=moments), make(halted, moments=moments)
        for t in range(5):
            one.step(grads(t))
            two.step(grads(t))
        three = make(halted, moments=moments)
        three.lr = 99
        three.load_state_dict(through_a_file(two))
        assert three.hyper == one.hyper
        for t in range(5, 9):
            one.step(grads(t))
            three.step(grads(t))
        assert all(np.array_equal(p, q) for p, q in zip(straight, halted, strict=True))
        states = one.state_dict(), three.state_dict()
        assert all(np.array_equal(states[0][key], states[1][key]) for key in states[0])


@makers
def test_moments_are_converted_into_any_format(make: Any) -> None:
    """What is kept stays near when a state is loaded into another."""
    for source, target in product(compact(make), repeat=2):
        param = numbers(1, 200, "float32", -3, 3)
        one, two = make(param, moments=source), make(param.copy(), moments=target)
        for t in range(3):
            one.step(numbers(10 + t, 200, "float32", -1, 1))
        two.load_state_dict(one.state_dict())
        keys = one.hyper.keys
        found, exact = (reference.load_moments(o._state["0"], param, keys) for o in (two, one))
        for x, y in zip(found, exact, strict=True):
            assert (x is None) == (y is None)
            assert x is None or np.linalg.norm(x - y) <= 0.25 * np.linalg.norm(y)


@pytest.mark.parametrize("rule", [SGD, RMSprop])
def test_hyper_between_steps(rule: Any) -> None:
    param = np.ones(1)
    optimizer = rule(param, lr=0.5, momentum=0.5)
    optimizer.step(np.ones(1))
    before = param.copy()
    optimizer.lr = 0.0
    optimizer.step(np.ones(1))
    assert param == before
    optimizer.hyper = replace(optimizer.hyper, momentum=0.9, lr=0.1)
    optimizer.step(np.ones(1))
    assert param < before
    with pytest.raises(ValueError, match="lr must be finite and at least 0, got -1"):
        optimizer.lr = -1
    with pytest.raises(ValueError, match="momentum cannot change between steps"):
        optimizer.hyper = replace(optimizer.hyper, momentum=0.0)
    with pytest.raises(TypeError, match=r"hyper must be a .*Hyper, as .*'s are, got a Hyper"):
        optimizer.hyper = Adam(np.ones(1)).hyper
    assert optimizer.lr == 0.1


BAD_OPTIONS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (SGD, {"momentum": -0.1}, ValueError, "momentum must be finite and at least 0, got -0.1"),
    (SGD, {"momentum": np.nan}, ValueError, "momentum must be finite and at least 0, got nan"),
    (SGD, {"dampening": np.inf}, ValueError, "dampening must be finite, got inf"),
    (SGD, {"nesterov": True}, ValueError, "nesterov=True needs a momentum above 0 and no dampe"),
    (
        SGD,
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        ValueError,
        "nesterov=True needs .* got momentum 0.9 and dampening 0.1",
    ),
    (SGD, {"nesterov": "no"}, TypeError, "nesterov must be True or False, got 'no'"),
    (SGD, {"lr": np.nan}, ValueError, "lr must be finite"),
    (SGD, {"weight_decay": -1}, ValueError, "weight_decay must be finite and at least 0"),
    (SGD, {"moments": "int3"}, ValueError, "moments must be one of"),
    (RMSprop, {"alpha": 1.0}, ValueError, r"alpha must be in \[0, 1\), got 1.0"),
    (RMSprop, {"alpha": np.nan}, ValueError, r"alpha must be in \[0, 1\), got nan"),
    (RMSprop, {"eps": -1e-8}, ValueError, "eps must be finite and at least 0"),
    (RMSprop, {"momentum": "much"}, TypeError, "momentum must be a number, got 'much'"),
    *(
        (
            RMSprop,
            {"centered": True, "moments": moments},
            ValueError,
            f"moments must be 'float32' with centered=True, got '{moments}'",
        )
        for moments in ("bfloat16", "int8", "int4")
    ),
]


@pytest.mark.parametrize(("rule", "options", "error", "message"), BAD_OPTIONS)
def test_bad_options(
    rule: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rule(np.ones(3, "float32"), **options)


@pytest.mark.parametrize("taker", [SGD, RMSprop, Adam])
@pytest.mark.parametrize("giver", [AdamW, partial(SGD, momentum=0.5), RMSprop])
def test_the_state_of_another_rule_is_refused(taker: Any, giver: Any) -> None:
    one, two = giver(np.ones(3)), taker(np.ones(3))
    if one.hyper.name == two.hyper.name:
        return
    before = two.state_dict()
    with pytest.raises(ValueError, match=f"the state is {one.hyper.name}'s, not {two.hyper.name}"):
        two.load_state_dict(one.state_dict())
    assert all(np.array_equal(before[k], v) for k, v in two.state_dict().items())


def test_a_negative_square_is_refused() -> None:
    state = RMSprop(np.ones(3, "float32")).state_dict()
    state["state/0/square_avg"] = np.full(3, -1, "float32")
    with pytest.raises(ValueError, match="square_avg of array '0' must be at least 0"):
        RMSprop(np.ones(3, "float32"), moments="int8").load_state_dict(state)


@makers
def test_nan_and_infinite_gradients_are_not_errors(make: Any) -> None:
    for moments in compact(make):
        param = np.ones(4, "float32")
        optimizer = make(param, moments=moments)
        expected, state = param.copy(), reference.initial_state(param, optimizer.hyper, moments)
        for grad in ([np.nan, np.inf, -np.inf, 1e30], [1, 1, 1, 1], [0, 0, 0, 0]):
            optimizer.step(np.array(grad, "float32"))
            expected, state = reference.step(
                expected, np.array(grad, "float32"), state, optimizer.hyper
            )
        np.testing.assert_array_equal(param, expected)
