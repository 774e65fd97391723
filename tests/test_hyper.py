"""Hyperparameters and coefficients."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adamas import Hyper, RMSpropHyper, SGDHyper
from adamas.hyper import Rule, bias_correction

BAD = [
    ({"lr": -1e-3}, ValueError, "lr must be finite and at least 0, got -0.001"),
    ({"lr": math.nan}, ValueError, "lr must be finite"),
    ({"lr": math.inf}, ValueError, "lr must be finite"),
    ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
    ({"lr": None}, TypeError, "lr must be a number, got None"),
    ({"betas": (1.5, 0.9)}, ValueError, r"beta1 must be in \[0, 1\), got 1.5"),
    ({"betas": (0.9, 1.0)}, ValueError, r"beta2 must be in \[0, 1\), got 1.0"),
    ({"betas": (-0.1, 0.9)}, ValueError, r"beta1 must be in \[0, 1\), got -0.1"),
    ({"betas": (0.9, math.nan)}, ValueError, "beta2 must be in"),
    ({"betas": 0.9}, ValueError, "betas must be two numbers"),
    ({"betas": (0.9,)}, ValueError, "betas must be two numbers"),
    ({"betas": (0.9, 0.99, 0.999)}, ValueError, "betas must be two numbers"),
    ({"eps": -1e-8}, ValueError, "eps must be finite and at least 0"),
    ({"eps": math.inf}, ValueError, "eps must be finite"),
    ({"weight_decay": -1.0}, ValueError, "weight_decay must be finite and at least 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_values(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Hyper(**options)


def test_defaults_are_those_of_the_paper() -> None:
    assert asdict(Hyper()) == {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "maximize": False,
        "decoupled_weight_decay": False,
    }


@settings(deadline=None)
@given(
    beta=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from((0.9, 0.95, 0.999, 0.9999))),
    step=st.one_of(st.integers(1, 300), st.sampled_from((1000, 4097))),
)
def test_bias_correction_is_rounded_once(beta: float, step: int) -> None:
    exact = 1 - Fraction(beta) ** step
    assert bias_correction(beta, step) == float(exact)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1 - 2**-53])
def test_row_10_steps_beyond_every_small_counter(beta: float) -> None:
    found = [bias_correction(beta, t) for t in (1, 255, 256, 257, 2048, 2049, 65537, 2**24 + 1)]
    assert found == sorted(found)
    assert all(0 < x <= 1 for x in found)
    assert bias_correction(beta, 2**53) == pytest.approx(
        -math.expm1(2**53 * math.log(beta)) if beta else 1.0
    )


def test_row_14_step_counts_from_one() -> None:
    with pytest.raises(ValueError, match="step must count from 1, got 0"):
        Hyper().coefficients(0)


def test_row_15_betas_keep_their_precision() -> None:
    c = Hyper().coefficients(1)
    assert c.beta2 == pytest.approx(0.999, rel=6e-8)
    assert c.one_minus_beta2 == pytest.approx(0.001, rel=6e-8)


def test_coefficients() -> None:
    hyper = Hyper(0.1, (0.5, 0.75), 1e-3, 0.25)
    exact = hyper.coefficients(2, "float64")
    assert exact.step_size == 0.1 / 0.75
    assert exact.denom_scale == 1 / math.sqrt(1 - 0.75**2)
    assert (exact.l2, exact.decay) == (0.25, 0.0)
    decoupled = Hyper(0.1, (0.5, 0.75), 1e-3, 0.25, decoupled_weight_decay=True)
    assert decoupled.coefficients(2, "float64").decay == 0.1 * 0.25
    assert decoupled.coefficients(2, "float64").l2 == 0


def test_coefficients_of_descent() -> None:
    plain = SGDHyper(0.1, weight_decay=0.25, maximize=True).coefficients(3, "float64")
    assert (plain.step_size, plain.l2, plain.maximize) == (0.1, 0.25, 1)
    assert (plain.beta1, plain.beta2, plain.decay) == (0, 0, 0)
    damped = SGDHyper(0.1, 0.75, dampening=0.5)
    assert [damped.coefficients(t, "float64").one_minus_beta1 for t in (1, 2, 9)] == [1, 0.5, 0.5]
    assert damped.coefficients(2, "float64").beta2 == 0
    assert SGDHyper(0.1, 0.75, nesterov=True).coefficients(2, "float64").beta2 == 0.75


def test_coefficients_of_rmsprop() -> None:
    c = RMSpropHyper(0.1, 0.75, 1e-3, 0.25, 0.5).coefficients(3, "float64")
    assert (c.beta1, c.beta2, c.one_minus_beta2) == (0.5, 0.75, 0.25)
    assert (c.step_size, c.eps, c.l2, c.decay) == (0.1, 1e-3, 0.25, 0)
    assert RMSpropHyper(eps=0).coefficients(1).eps == 2.0**-149


@settings(deadline=None)
@given(
    hyper=st.sampled_from(
        (
            Hyper(eps=1e-300, weight_decay=0.1),
            Hyper(decoupled_weight_decay=True, weight_decay=0.1, maximize=True),
            Hyper(lr=1e38),  # too large for float32 at the first three steps
            SGDHyper(momentum=0.9, dampening=0.5),
            RMSpropHyper(momentum=0.9, lr=0.1),
        )
    ),
    asked=st.lists(
        st.tuples(
            st.sampled_from((1, 2, 3, 15, 16, 17, 40)),
            st.sampled_from(("float32", "float64")),
            st.sampled_from((1.0, 0.5, 0.0, -0.0)),
            st.sampled_from((1.0, 0.25)),
        ),
        min_size=2,
        max_size=12,
    ),
)
@example(Hyper(lr=1e38), [(40, "float32", 1.0, 1.0), (2, "float32", 1.0, 1.0)])
def test_coefficients_do_not_depend_on_those_before(
    hyper: Rule, asked: list[tuple[int, str, float, float]]
) -> None:
    def answer(of: Rule, ask: tuple[int, str, float, float]) -> object:
        try:
            return repr(of.coefficients(*ask))  # where -0 is not 0
        except ValueError as error:
            return str(error)

    one = replace(hyper)
    for ask in asked:
        assert answer(one, ask) == answer(replace(hyper), ask)


def test_defaults_are_those_of_torch() -> None:
    for hyper, name in ((SGDHyper(), "SGD"), (RMSpropHyper(), "RMSprop")):
        theirs = getattr(torch.optim, name)([torch.zeros(1)]).defaults
        assert asdict(hyper) == {key: theirs[key] for key in asdict(hyper)}
        assert hyper.name == name


@pytest.mark.parametrize(
    ("hyper", "keys"),
    [
        (SGDHyper(), ("", "", "")),
        (SGDHyper(momentum=0.9), ("momentum_buffer", "", "")),
        (RMSpropHyper(), ("", "square_avg", "")),
        (RMSpropHyper(momentum=0.9), ("", "square_avg", "momentum_buffer")),
        (RMSpropHyper(centered=True), ("grad_avg", "square_avg", "")),
    ],
    ids=str,
)
def test_averages(hyper: Rule, keys: tuple[str, str, str]) -> None:
    assert hyper.keys == keys


def test_a_coefficient_too_large_for_float32() -> None:
    hyper = Hyper(lr=1e39)
    assert hyper.coefficients(1, "float64").step_size > 1e39
    with pytest.raises(ValueError, match=r"step_size = .* exceeds float32: lower it"):
        hyper.coefficients(1)
    assert Hyper(lr=3e38).coefficients(100).step_size == pytest.approx(3e38, rel=1e-3)


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_factors_of_gradients_may_be_infinite(compute: str) -> None:
    c = Hyper().coefficients(1, compute, math.inf, math.inf)
    assert (c.unscale, c.clip) == (math.inf, math.inf)


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_a_coefficient_beyond_its_type_is_named(compute: str) -> None:
    with pytest.raises(ValueError, match=f"step_size = inf exceeds {compute}: lower it"):
        Hyper(lr=1e308).coefficients(1, compute)


@pytest.mark.parametrize(("dampening", "remedy"), [(1e39, "raise"), (-1e39, "lower")])
def test_a_dampening_too_large_for_float32(dampening: float, remedy: str) -> None:
    """It counts from the second step on."""
    hyper = SGDHyper(momentum=0.9, dampening=dampening)
    assert hyper.coefficients(1).one_minus_beta1 == 1
    assert hyper.coefficients(2, "float64").one_minus_beta1 == 1 - dampening
    with pytest.raises(ValueError, match=f"one_minus_beta1 = .* exceeds float32: {remedy} it"):
        hyper.coefficients(2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 10**400}, ValueError, "lr must be finite, got a number beyond float64"),
        ({"amsgrad": "False"}, TypeError, "amsgrad must be True or False, got 'False'"),
    ],
)
def test_numbers_and_flags_that_are_none(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Hyper(**options)  # type: ignore[arg-type]
