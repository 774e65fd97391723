"""The specification, held to the paper's equations in float64."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from cases import numbers
from hypothesis import given
from hypothesis import strategies as st

from adamas import Hyper, reference

STEPS = 3000


def paper(p: float, grads: list[float], hyper: Hyper) -> tuple[float, float, float]:
    """Algorithm 1 of Kingma & Ba, with Loshchilov & Hutter's decay and Reddi's maximum, naively."""
    beta1, beta2 = hyper.betas
    m = v = largest = 0.0
    for t, grad in enumerate(grads, 1):
        g = -grad if hyper.maximize else grad
        if not hyper.decoupled_weight_decay:
            g = g + hyper.weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        largest = max(largest, v)
        m_hat = m / (1 - beta1**t)
        v_hat = (largest if hyper.amsgrad else v) / (1 - beta2**t)
        shrink = hyper.lr * hyper.weight_decay * p if hyper.decoupled_weight_decay else 0.0
        p = p - hyper.lr * m_hat / (math.sqrt(v_hat) + hyper.eps) - shrink
    return p, m, v


@pytest.mark.parametrize(
    ("amsgrad", "maximize", "decoupled", "weight_decay", "betas"),
    list(product(*[(False, True)] * 3, (0.0, 0.05), ((0.9, 0.999), (0.0, 0.95)))),
)
def test_paper(
    amsgrad: bool,
    maximize: bool,
    decoupled: bool,
    weight_decay: float,
    betas: tuple[float, float],
) -> None:
    hyper = Hyper(1e-3, betas, 1e-8, weight_decay, amsgrad, maximize, decoupled)
    grads = numbers(7, STEPS, "float64", -6, 2)
    param = np.array([0.7])
    state = reference.initial_state(param, hyper)
    for grad in grads:
        param, state = reference.step(param, np.array([grad]), state, hyper)
    p, m, v = paper(0.7, grads.tolist(), hyper)
    # The order of the roundings differs, so a few units in the last place of what was summed.
    travelled = max(abs(p), STEPS * hyper.lr)
    assert param[0] == pytest.approx(p, rel=0, abs=8 * 2**-52 * travelled)
    assert state["exp_avg"][0] == pytest.approx(m, rel=64 * 2**-52, abs=8 * 2**-52)
    assert state["exp_avg_sq"][0] == pytest.approx(v, rel=64 * 2**-52)
    assert state["step"] == STEPS


def test_row_12_first_step_is_lr() -> None:
    """The first step has the (1 - beta) factors and their corrections: it is lr * sign(g)."""
    hyper = Hyper(lr=0.5, eps=0.0)
    param, _ = reference.step(
        np.zeros(3), np.array([1e-3, -7.0, 0.0]), reference.initial_state(np.zeros(3), hyper), hyper
    )
    np.testing.assert_allclose(param, [-0.5, 0.5, 0.0], rtol=1e-15)


@given(
    grad=st.floats(-1e10, 1e10).filter(lambda g: abs(g) > 1e-10),
    lr=st.floats(1e-6, 10),
    scale=st.integers(-20, 20),
)
def test_update_does_not_depend_on_the_scale_of_the_loss(
    grad: float, lr: float, scale: int
) -> None:
    hyper = Hyper(lr=lr, eps=0.0)
    results = []
    for factor in (1.0, 2.0**scale):
        param, state = np.zeros(1), reference.initial_state(np.zeros(1), hyper)
        for t in (1.0, -0.5, 0.25):
            param, state = reference.step(param, np.array([grad * t * factor]), state, hyper)
        results.append(param[0])
    assert results[0] == results[1]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 4), (2, 0, 5)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_shapes_and_types(shape: tuple[int, ...], dtype: str) -> None:
    hyper = Hyper(lr=0.1)
    before = np.ones(shape, dtype)
    state = reference.initial_state(before, hyper)
    after, new = reference.step(before, np.full(shape, 2, dtype), state, hyper)
    assert after.shape == shape
    assert after.dtype == dtype
    assert new["exp_avg"].dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(after, np.full(shape, 0.9), rtol=1e-3)
    assert (before == 1).all()
    assert state["step"] == 0


def test_row_16_zero_gradient_with_an_eps_that_underflows() -> None:
    for dtype, eps in product(("float16", "float32", "float64"), (1e-320, 0.0, 1e-8)):
        hyper = Hyper(lr=0.1, eps=eps)
        param = np.ones(4, dtype)
        state = reference.initial_state(param, hyper)
        for _ in range(3):
            param, state = reference.step(param, np.zeros(4, dtype), state, hyper)
        assert (param == 1).all()


def test_row_18_a_small_decay_is_not_lost() -> None:
    """1 - lr * weight_decay rounds to 1 in float32, yet the decay adds up with the update."""
    ulp = 2.0**-24  # of float32 below 1
    lr, weight_decay = 16.4 * ulp, 0.4 / 16.4
    assert np.float32(1) - np.float32(lr * weight_decay) == 1
    ends = []
    for decay in (0.0, weight_decay):
        hyper = Hyper(lr=lr, weight_decay=decay, decoupled_weight_decay=True)
        param = np.full(1, 1 - ulp, "float32")
        state = reference.initial_state(param, hyper)
        for _ in range(1000):
            param, state = reference.step(param, np.ones(1, "float32"), state, hyper)
        ends.append(float(param[0]))
    assert ends[0] - ends[1] == pytest.approx(1000 * ulp, rel=0.01)


def test_row_19_adam_and_adamw_decay_differently() -> None:
    param, grad = np.ones(1), np.full(1, 0.5)
    adam = Hyper(lr=0.1, weight_decay=0.1, eps=0.0)
    adamw = Hyper(lr=0.1, weight_decay=0.1, eps=0.0, decoupled_weight_decay=True)
    coupled, _ = reference.step(param, grad, reference.initial_state(param, adam), adam)
    decoupled, _ = reference.step(param, grad, reference.initial_state(param, adamw), adamw)
    assert coupled[0] == pytest.approx(0.9)  # the decay is in the gradient, which is normalised
    assert decoupled[0] == pytest.approx(0.9 - 0.1 * 0.1)  # of the weight before the step


def test_an_infinite_weight_stays() -> None:
    """As with torch.optim: a mask of -inf does not become NaN where there is no decay."""
    hyper = Hyper()
    param = np.array([-np.inf, 1.0])
    after, _ = reference.step(param, np.zeros(2), reference.initial_state(param, hyper), hyper)
    assert after.tolist() == [-np.inf, 1.0]


@pytest.mark.parametrize("master_bits", [32, 16])
@pytest.mark.parametrize("dtype", ["float16", "uint16", "float32", "float64"])
def test_the_byte_order_does_not_show(dtype: str, master_bits: int) -> None:
    hyper = Hyper(lr=0.01)
    wide = numbers(1, 200, "float32", -2, 2)
    param = (wide.view(np.uint32) >> 16 if dtype == "uint16" else wide).astype(dtype)
    swapped = param.astype(param.dtype.newbyteorder())
    states = [reference.initial_state(p, hyper, "float32", master_bits) for p in (param, swapped)]
    for _ in range(3):
        expected, states[0] = reference.step(param, param, states[0], hyper)
        found, states[1] = reference.step(swapped, swapped, states[1], hyper)
        assert found.dtype == swapped.dtype
        assert np.array_equal(found, expected)
        param, swapped = expected, found
