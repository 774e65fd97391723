"""The norm of gradients as the kernel before a step finds it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import (
    CHUNK,
    DTYPES,
    GRAD_DTYPE,
    arguments,
    expected_norm,
    found_norm,
    launch,
    random,
    same,
    tensor,
)

from adamas import native, norm

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("scale", [None, 1024.0, 3.0])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("float32", -10, 3),
        ("float32", -149, 127),
        ("float32", -149, -130),
        ("float64", -10, 3),
        ("float64", -500, 400),
        ("float64", -600, -500),  # of squares that are denormal or zero
        ("float64", -526, -520),  # whose sum is denormal
        ("bfloat16", -20, 3),
        ("bfloat16", -130, 127),
        ("float16", -24, 14),
    ],
)
def test_the_norm_is_that_of_the_specification(
    dtype: str, low: int, high: int, scale: float | None
) -> None:
    grads = [random(n, dtype, low, high) for n in (0, 1, 511, 4096, 4097, 8193)]
    unscale = 1.0 if scale is None else float(np.float32(1 / scale))
    found = found_norm(grads, grad_scale=scale)
    assert found == expected_norm(grads, unscale)


@pytest.mark.parametrize("multiprocessors", [0, 1, 2, 132])
def test_many_programs_and_dtypes_and_parameters_without_gradients(multiprocessors: int) -> None:
    grads = [random(4000 + 900 * i, dtype, -12, 2) for i, dtype in enumerate(list(DTYPES) * 3)]
    given = arguments(grads)
    given["chunks"][[0, 3, 5], native.GRAD] = 0
    owners = given["chunks"][:, [native.GRAD, GRAD_DTYPE.value + 1]].tolist()
    there = [grads[row] for address, row in owners if address == grads[row].data_ptr()]
    done = launch(given, norm=True, multiprocessors=multiprocessors)
    parts = [g[CHUNK:] for row, g in enumerate(grads) if g.numel() > CHUNK]
    firsts = [g[:CHUNK] for g in there]
    assert done["results"][0].item() == expected_norm(firsts + parts)


@pytest.mark.parametrize("alignment", [1, 16])
def test_alignment_does_not_show(alignment: int) -> None:
    grad = random(9001, "bfloat16", -3, 3)
    grad = grad[1:] if alignment == 1 else grad
    assert found_norm([grad], alignment=alignment) == expected_norm([grad])


def test_no_gradients() -> None:
    assert found_norm([]) == 0.0
    assert found_norm([tensor([])]) == 0.0
    assert found_norm([tensor([0.0, -0.0])]) == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_estimate_is_as_near_as_it_says(dtype: str) -> None:
    """Of numbers that repeat in every lane, where additions round alike, so that errors add up."""
    grads = [tensor(np.repeat(1.3 * 3.0 ** -np.arange(16), 512).tolist(), dtype)] * 5
    done = launch(arguments(grads), norm=True, multiprocessors=1)
    exact = 5 * sum(Fraction(x * x) for x in grads[0].tolist())
    found = sum(map(Fraction, done["partials"][:4, :2].flatten().tolist()))
    assert 0 < abs(found - exact) < exact / 2**51


def test_pairs_keep_what_additions_round_away() -> None:
    grads = [random(511, "float64", -3, 3)] * 60
    done = launch(arguments(grads), norm=True, multiprocessors=1)
    exact = 60 * sum(Fraction(x * x) for x in grads[0].tolist())
    found = sum(map(Fraction, done["partials"][:4, :2].flatten().tolist()))
    assert abs(found - exact) < exact / 2**95


def test_nothing_is_added_beyond_the_last_element() -> None:
    """Where zero times the factor is NaN."""
    assert found_norm([tensor([1.0])], grad_scale=0.0) == math.inf


def roots(total: int) -> list[float]:
    """Numbers of 24 bits whose squares add up to a whole number, the largest first."""
    found = []
    while total:
        root = math.isqrt(total)
        cut = max(0, root.bit_length() - 24)
        root = root >> cut << cut
        found.append(float(root))
        total -= root * root
    return found


def check_beside_the_middle(
    leading: int, beside: int, exponent: int, dtype: str, below: int = 70
) -> None:
    total = ((2 * leading + 1) << below) + beside
    values = [math.ldexp(root, exponent) for root in roots(total)]
    grads = [tensor(values[::2], dtype), tensor(values[1::2], dtype)]
    expected = expected_norm(grads)
    exact = norm.rounded(Fraction(total) * Fraction(4) ** exponent)
    if exponent > -450 or below < 70:  # where no square is rounded
        assert expected == math.sqrt(exact)
    assert found_norm(grads, multiprocessors=1) == expected


@pytest.mark.parametrize("leading", [1 << 31, (1 << 31) + 1, (1 << 32) - 1])
@pytest.mark.parametrize("beside", [0, 1, -1, 1 << 24, -(1 << 24), 1 << 47, -(1 << 49)])
@pytest.mark.parametrize(
    ("exponent", "dtype"), [(-100, "float32"), (50, "float32"), (460, "float64"), (-540, "float64")]
)
def test_sums_half_way_between_two_numbers_and_beside(
    leading: int, beside: int, exponent: int, dtype: str
) -> None:
    check_beside_the_middle(leading, beside, exponent, dtype)


@pytest.mark.parametrize("leading", [1 << 31, (1 << 31) + 1, (1 << 32) - 1])
@pytest.mark.parametrize("beside", [0, 1, -1, 10, -10])
@pytest.mark.parametrize("below", [0, 8, 18])
def test_denormal_sums_half_way_between_two_numbers(leading: int, beside: int, below: int) -> None:
    check_beside_the_middle(leading, beside, -537, "float64", below)


@settings(deadline=None, max_examples=30)
@given(
    leading=st.integers(1 << 31, (1 << 32) - 1),
    beside=st.builds(lambda sign, bits: sign << bits, st.sampled_from([-1, 1]), st.integers(0, 69)),
    exponent=st.integers(-120, 60),
)
def test_sums_near_the_middle_of_any_two_numbers(leading: int, beside: int, exponent: int) -> None:
    with np.errstate(all="ignore"):
        check_beside_the_middle(leading, beside, exponent, "float32")


@pytest.mark.parametrize("tiny", [2.0**-30, 2.0**-60, 2.0**-149])
def test_many_tiny_squares_decide(tiny: float) -> None:
    """Each far below the digit before, but there are many of them, in more than one digit."""
    values = [1.0, 2.0**-16, *[tiny] * 5000]
    assert found_norm([tensor(values)]) == math.sqrt(1 + 2**-31)
    below = [*roots((1 << 100) + (1 << 68) - 5001), *[1.0] * 5000]  # 1 less than the middle
    assert found_norm([tensor(below)]) == 2.0**50


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e152, 1e152) | st.floats(-1e-150, 1e-150), max_size=40))
def test_any_numbers(values: list[float]) -> None:
    with np.errstate(all="ignore"):
        grads = [tensor(values[:9], "float64"), tensor(values[9:], "float64")]
        assert found_norm(grads, multiprocessors=1) == expected_norm(grads)


LARGEST = math.sqrt(np.finfo(np.float64).max)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.0, math.inf], "float32"),
        ([1.0, -math.inf], "float64"),
        ([math.inf, math.nan], "float16"),
        ([math.nan, 1.0], "bfloat16"),
        ([1e160, 1.0], "float64"),
        ([1e160, math.nan], "float64"),
        ([1.3e154, 1.0], "float64"),
        ([1.3e154, 3e153], "float64"),
        ([1.3e154, 1.3e154], "float64"),
        ([LARGEST], "float64"),
        ([LARGEST * (1 - 2**-33)], "float64"),
        ([LARGEST * (1 - 2**-34)] + [1.0] * 5000, "float64"),
    ],
)
def test_not_finite_or_nearly(values: list[float], dtype: str) -> None:
    grads = [tensor([2.0] * 5000, dtype), tensor(values, dtype)]
    for multiprocessors in (0, 1):
        assert same(found_norm(grads, multiprocessors), expected_norm(grads))
