"""The global norm: the exact sum of squares, whoever adds it up and in whatever order."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from cases import numbers
from hypothesis import given
from hypothesis import strategies as st

from adamas import native, norm

SIZES = (0, 1, 31, 32, 33, 2047, 2048, 2049, 5000)


def rows(arrays: list[np.ndarray]) -> np.ndarray:
    table = native.table(len(arrays))
    for row, array in zip(table, arrays, strict=True):
        row[native.GRAD] = array.ctypes.data
        row[native.SIZE] = array.size
        row[native.TYPES] = native.types(array.dtype.name)
    return table


def arrays(dtype: str, low: int = -33, high: int = 7) -> list[np.ndarray]:
    return [numbers(7 + i, n, dtype, low, high, sparse=True) for i, n in enumerate(SIZES)]


@pytest.mark.parametrize("scale", [1.0, 2.0**-16, 1 / 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_core_agrees_with_the_specification(dtype: str, scale: float) -> None:
    grads = arrays(dtype)
    expected = norm.squared_norm(grads, scale)
    table = rows(grads)
    for isa in native.isas():
        for threads, grain in ((1, 1 << 15), (2, 100), (3, 4096)):
            value, error = native.square_sum(table, scale, threads, grain=grain, isa=isa)
            assert abs(value - expected) <= error + expected * 2**-32
            assert error < expected * 2**-43
            assert norm.rounded_estimate(value, error) == expected
            digits = native.exact_square_sum(table, scale, threads, grain=grain)
            assert norm.rounded_digits(digits) == expected


@given(st.lists(st.floats(0, 1e150) | st.floats(0, 1e-150), max_size=40), st.randoms())
def test_exact_whatever_the_order_and_the_parts(values: list[float], random: object) -> None:
    array = np.array(values)
    expected = norm.squared_norm([array])
    digits = native.exact_square_sum(rows([array]))
    assert norm.rounded_digits(digits) == expected
    random.shuffle(values)
    parts = [np.array(values[:7]), np.array(values[7:])]
    assert norm.squared_norm(parts) == expected
    assert norm.rounded_digits(sum(native.exact_square_sum(rows([p])) for p in parts)) == expected


@pytest.mark.parametrize(
    ("value", "count", "grain"),
    [(0.1, 2048, 1 << 15), (0.1, 300_000, 1), (1 / 3, 3_000_000, 1 << 22)],
    ids=["a block", "many pieces", "many blocks"],
)
def test_an_estimate_is_as_near_as_it_says(value: float, count: int, grain: int) -> None:
    """Of equal numbers, whose additions all round alike, so that errors add up."""
    table = rows([array := np.full(count, value, np.float32)])
    exact = count * Fraction(float(array[0]) ** 2)
    digits = native.exact_square_sum(table)
    assert sum(int(digit) << 32 * k for k, digit in enumerate(digits)) == exact * 2**1074
    for isa in native.isas():
        found, error = native.square_sum(table, 1.0, 1, grain=grain, isa=isa)
        assert 0 < abs(Fraction(found) - exact) <= error


@pytest.mark.parametrize("values", [[7e153], [9.4e153, 1, 1], [1.34e154], [1e154, 1e154]])
def test_sums_near_the_largest_number(values: list[float]) -> None:
    array = np.array(values)
    table = rows([array])
    expected = norm.squared_norm([array])
    for isa in native.isas():
        value, error = native.square_sum(table, 1.0, 1, isa=isa)
        assert error <= value * 2**-43
        assert norm.rounded_estimate(value, error) in (expected, None)
    assert norm.rounded_digits(native.exact_square_sum(table)) == expected


def test_an_error_without_bound_leaves_a_finite_sum_undecided() -> None:
    assert norm.rounded_estimate(1.0, math.inf) is None
    assert norm.rounded_estimate(math.inf, math.inf) == math.inf


def test_a_sum_that_an_estimate_cannot_round() -> None:
    """Half way between two numbers of 32 bits, and a little beside."""
    for tiny, expected in ((0.0, 1.0), (2.0**-30, 1.0 + 2.0**-31)):
        grads = [np.array([1.0, 2.0**-16, tiny], np.float32)]
        grads[0] = np.append(grads[0], np.float32(0))
        exact = Fraction(1) + Fraction(1, 2**32) + Fraction(tiny) ** 2
        assert norm.rounded(exact) == expected
        assert norm.rounded_estimate(*native.square_sum(rows(grads))) is None
        assert norm.rounded_digits(native.exact_square_sum(rows(grads))) == expected
        assert norm.squared_norm(grads) == expected


@pytest.mark.parametrize("side", [-1, 1])
def test_an_estimate_near_the_middle_of_two_numbers(side: int) -> None:
    beside = 1.0 + 2.0**-32 + side * 2.0**-50
    assert norm.rounded_estimate(beside, 2.0**-49) is None
    assert norm.rounded_estimate(beside, 2.0**-51) == norm.rounded(Fraction(beside))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_not_finite(dtype: str, bad: float) -> None:
    grads = arrays(dtype)
    grads[-1][4321] = bad
    value, error = native.square_sum(rows(grads))
    expected = math.inf if math.isinf(bad) else math.nan
    for found in (value, norm.rounded_estimate(value, error), norm.squared_norm(grads)):
        assert str(found) == str(expected)


@pytest.mark.parametrize(
    ("exact", "expected"),
    [
        (Fraction(0), 0.0),
        (Fraction(1, 3), 0xAAAAAAAB / 2**33),
        (Fraction(2**33 - 1), 2.0**33),
        (Fraction(2**33 + 1), 2.0**33),
        (Fraction(2**33 + 3), 2.0**33 + 4),
        (Fraction(1, 2**1074), 2.0**-1074),
        (Fraction(2) ** 1024, math.inf),
    ],
)
def test_rounded(exact: Fraction, expected: float) -> None:
    assert norm.rounded(exact) == expected


@pytest.mark.parametrize(
    ("value", "max_norm", "expected"),
    [(0.0, 1.0, 1.0), (2.0, 1.0, 1 / (2 + 1e-6)), (0.5, 1.0, 1.0), (math.inf, 1.0, 0.0)],
)
def test_clip_factor(value: float, max_norm: float, expected: float) -> None:
    assert norm.clip_factor(value, max_norm) == expected
    assert math.isnan(norm.clip_factor(math.nan, max_norm))


def test_the_empty_table() -> None:
    assert native.square_sum(rows([])) == (0.0, 0.0)
    assert norm.rounded_digits(native.exact_square_sum(rows([]))) == 0.0
    assert norm.squared_norm([]) == 0.0


def test_at_the_ends_of_float64() -> None:
    largest = 1.7976931348623157e308
    assert norm.rounded_estimate(largest, 0.0) == math.inf == norm.rounded(Fraction(largest))
    for value in (math.nan, -math.nan, math.inf):  # not asked for, but a gradient may change
        native.exact_square_sum(rows([np.array([value])]))
