"""Gradient descent and RMSprop as specified: beside their equations in float64, and what holds."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from cases import numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from adamas import RMSpropHyper, SGDHyper, formats, reference
from adamas.hyper import Rule

STEPS = 3000
FLAGS = (False, True)


def descent(p: float, grads: list[float], hyper: SGDHyper) -> tuple[float, dict[str, float]]:
    """As torch.optim.SGD's documentation states it, naively."""
    b = 0.0
    for t, grad in enumerate(grads, 1):
        g = (-grad if hyper.maximize else grad) + hyper.weight_decay * p
        if hyper.momentum:
            b = hyper.momentum * b + (1 - hyper.dampening) * g if t > 1 else g
            g = g + hyper.momentum * b if hyper.nesterov else b
        p = p - hyper.lr * g
    return p, {"momentum_buffer": b}


def root_mean_square(
    p: float, grads: list[float], hyper: RMSpropHyper
) -> tuple[float, dict[str, float]]:
    """As torch.optim.RMSprop's documentation states it, naively."""
    v = average = b = 0.0
    for grad in grads:
        g = (-grad if hyper.maximize else grad) + hyper.weight_decay * p
        v = hyper.alpha * v + (1 - hyper.alpha) * g**2
        average = hyper.alpha * average + (1 - hyper.alpha) * g
        size = math.sqrt(v - average**2 if hyper.centered else v)
        b = hyper.momentum * b + g / (size + hyper.eps)
        p = p - hyper.lr * b
    return p, {"square_avg": v, "grad_avg": average, "momentum_buffer": b}


DESCENTS = [
    SGDHyper(1e-3, momentum, dampening, weight_decay, nesterov, maximize)
    for momentum, dampening, weight_decay, nesterov, maximize in product(
        (0.0, 0.9), (0.0, 0.3, -0.5), (0.0, 0.05), FLAGS, FLAGS
    )
    if not nesterov or (momentum and not dampening)
]
ROOTS = [
    RMSpropHyper(1e-3, alpha, 1e-8, weight_decay, momentum, centered, maximize)
    for alpha, weight_decay, momentum, centered, maximize in product(
        (0.99, 0.5), (0.0, 0.05), (0.0, 0.9), FLAGS, FLAGS
    )
]


@pytest.mark.parametrize("hyper", [*DESCENTS, *ROOTS], ids=str)
def test_documentation(hyper: Any) -> None:
    grads = numbers(7, STEPS, "float64", -6, 2)
    param = np.array([0.7])
    state = reference.initial_state(param, hyper)
    for grad in grads:
        param, state = reference.step(param, np.array([grad]), state, hyper)
    naive = descent if hyper.rule == "sgd" else root_mean_square
    p, averages = naive(0.7, grads.tolist(), hyper)
    # The order of the roundings differs, so a few units in the last place of what was summed; a
    # variance that is small beside its terms has lost some of its own.
    near = 2**-52 * (4096 if getattr(hyper, "centered", False) else 64)
    assert param[0] == pytest.approx(p, rel=0, abs=near * max(abs(p), STEPS * hyper.lr))
    assert state.keys() - {"step"} == {key for key in hyper.keys if key}
    for key in state.keys() - {"step"}:
        assert state[key][0] == pytest.approx(averages[key], rel=near, abs=near), key
    assert state["step"] == STEPS


@settings(deadline=None)
@given(
    grad=st.floats(-1e10, 1e10, width=32),
    noise=st.sampled_from([0.0, 1e-7, 1e-3]),
    alpha=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 1 << 32),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_a_centered_step_is_finite(
    grad: float, noise: float, alpha: float, seed: int, dtype: str
) -> None:
    """The variance of gradients that are nearly the same is rounded, but never to below zero."""
    hyper = RMSpropHyper(1e-3, alpha, centered=True, momentum=0.5)
    factors = 1 + noise * np.random.default_rng(seed).uniform(-1, 1, (50, 1))
    param = np.ones(1, dtype)
    state = reference.initial_state(param, hyper)
    for factor in factors:
        param, state = reference.step(param, (grad * factor).astype(dtype), state, hyper)
        assert np.isfinite(param).all()


@pytest.mark.parametrize("moments", formats.FORMATS)
@settings(deadline=None)
@given(
    alpha=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    binades=st.integers(0, 60),
    seed=st.integers(0, 1 << 32),
)
def test_rmsprop_never_blows_up(moments: str, alpha: float, binades: int, seed: int) -> None:
    """A step is at most ``lr / sqrt(1 - alpha)``, whatever a format lost of the average."""
    hyper = RMSpropHyper(1.0, alpha)
    rng = np.random.default_rng(seed)
    param = np.zeros(128, "float32")
    state = reference.initial_state(param, hyper, moments)
    for _ in range(10):
        grad = np.exp2(rng.uniform(-binades, 0, 128)) * rng.choice([-1, 0, 1], 128)
        before = param
        param, state = reference.step(param, grad.astype("float32"), state, hyper)
        bound = abs(before) * 2**-23 + (1 + 1e-5) / math.sqrt(1 - alpha)
        assert (abs(param - before) <= bound).all()


@pytest.mark.parametrize(
    ("moments", "once", "largest", "trained"),
    [("int8", 0.006, 0.015, 0.01), ("int4", 0.12, 0.5, 0.2)],
)
@pytest.mark.parametrize("seed", range(3))
def test_momentum_in_codes(
    moments: str, once: float, largest: float, trained: float, seed: int
) -> None:
    """How far both codes of a word are off the momentum, and its steps off exact ones."""
    rng = np.random.default_rng(seed)
    index, codec = np.arange(6400, dtype=np.uint32), formats.CODECS[moments]
    wide = np.exp2(rng.uniform(-20, 0, 6400)) * rng.choice([-1, 1], 6400)
    for m in (rng.standard_normal(6400), rng.standard_t(2, 6400), wide):
        exact = m.astype("float32")
        found, _ = codec.decode(*codec.encode(exact, exact * exact, exact != 0, index, 1))
        assert np.linalg.norm(found - exact) <= once * np.linalg.norm(exact)
        assert (abs(found - exact) <= largest * abs(exact)).all()
    hyper: Rule = SGDHyper(0.01, momentum=0.9)
    params = [np.zeros(6400, "float32") for _ in range(2)]
    states = [reference.initial_state(params[0], hyper, kept) for kept in (moments, "float32")]
    for _ in range(60):
        grad = (rng.standard_t(3, 6400) + 0.1).astype("float32")
        for i in range(2):
            params[i], states[i] = reference.step(params[i], grad, states[i], hyper)
    found, exact = params
    assert np.linalg.norm(found - exact) <= trained * np.linalg.norm(exact)
    assert found.mean() == pytest.approx(exact.mean(), rel=trained / 4)


@pytest.mark.parametrize("moments", formats.FORMATS)
def test_a_constant_gradient_leads_to_the_momentum_of_a_geometric_sum(moments: str) -> None:
    """In any format its error does not add up: it stays near ``g / (1 - momentum)``."""
    hyper = SGDHyper(0.0, momentum=0.9)
    grad = numbers(1, 640, "float32", -4, 4)
    param = np.zeros_like(grad)
    state = reference.initial_state(param, hyper, moments)
    for _ in range(200):
        param, state = reference.step(param, grad, state, hyper)
    m, _ = reference.load_moments(state, param, hyper.keys)
    far = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.1, "int4": 0.9}[moments]
    assert (abs(m - 10 * grad) <= far * abs(10 * grad)).all()


@pytest.mark.parametrize("moments", formats.FORMATS)
@pytest.mark.parametrize("hyper", [SGDHyper(), SGDHyper(weight_decay=0.1)], ids=["", "decay"])
def test_descent_without_momentum_keeps_nothing(hyper: Rule, moments: str) -> None:
    param = np.ones(3, "float32")
    assert reference.initial_state(param, hyper, moments) == {"step": 0}
    _, state = reference.step(param, param, {"step": 0}, hyper)
    assert state == {"step": 1}
