"""Moment formats and split weights: the core beside the specification, and what these promise."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import GRADS, WEIGHTS, numbers
from hypothesis import given
from hypothesis import strategies as st

from adamas import Hyper, RMSpropHyper, SGDHyper, formats, native, reference, rounding
from adamas.hyper import Rule

HYPER = Hyper(lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)
RULES: dict[str, Rule] = {
    "adam": Hyper(lr=0.01, weight_decay=0.1),
    "amsgrad": Hyper(lr=0.01, weight_decay=0.1, amsgrad=True),
    "sgd": SGDHyper(lr=0.01, weight_decay=0.1),
    "momentum": SGDHyper(lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
    "rmsprop": RMSpropHyper(lr=0.01, weight_decay=0.1),
    "rmsprop-momentum": RMSpropHyper(lr=0.01, momentum=0.9),
    "centered": RMSpropHyper(lr=0.01, centered=True, momentum=0.9),
}
TAILS = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000, 4099]


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers in a dtype; bfloat16 as its bits, cut off."""
    with np.errstate(over="ignore"):
        return (
            (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else x.astype(dtype)
        )


def row_of(
    param: np.ndarray,
    grad: np.ndarray,
    state: dict[str, Any],
    hyper: Rule,
    master: int | None,
    moments: str,
) -> np.ndarray:
    rows = native.table(1)
    rows[0, native.PARAM], rows[0, native.GRAD] = param.ctypes.data, grad.ctypes.data
    for key, value in state.items():
        if key != "step":
            rows[0, native.column(key, hyper.keys)] = value.ctypes.data
    names = [reference.dtype_name(a) for a in (param, grad)]
    beside = formats.master_beside(names[0], master)
    rows[0, native.TYPES] = native.types(*names, moments, beside, hyper.rule)
    rows[0, native.SIZE] = param.size
    return rows


@cache
def gradient(t: int, size: int, kind: str) -> np.ndarray:
    """Of a step; the same for all that is stepped."""
    return cast(numbers(1000 * t + size, size, "float32", -33, 7, sparse=True), kind)


@pytest.mark.parametrize(
    ("rule", "moments"),
    [
        (rule, moments)
        for rule, moments in itertools.product(RULES, formats.FORMATS)
        if rule != "centered" or moments == "float32"
    ],
)
@pytest.mark.parametrize(("dtype", "master"), WEIGHTS)
def test_core(dtype: str, master: int | None, rule: str, moments: str) -> None:
    hyper = RULES[rule]
    steps = 100 if hyper.rule == "adam" else 20
    for size, kind in zip(TAILS, GRADS * 5, strict=False):
        param = cast(numbers(7, size, "float32", -3, 1), dtype)
        state = reference.initial_state(param, hyper, moments, master)
        expected, after = param, state
        # Of each instruction set.
        owns = {isa: (param.copy(), copy.deepcopy(state)) for isa in native.isas()}
        like = cast(np.zeros(size, np.float32), kind)
        rows = {isa: row_of(p, like, o, hyper, master, moments) for isa, (p, o) in owns.items()}
        for t in range(1, steps + 1):
            grad = gradient(t, size, kind)
            expected, after = reference.step(expected, grad, after, hyper, clip=0.5)
            coefficients = np.array([hyper.coefficients(t, "float32", clip=0.5)])
            for isa, (weights, own) in owns.items():
                rows[isa][0, native.GRAD] = grad.ctypes.data
                native.step(rows[isa], coefficients, 1, isa=isa)
                assert weights.tobytes() == expected.tobytes(), (isa, size, kind, t)
                for key in own.keys() - {"step"}:
                    assert own[key].tobytes() == after[key].tobytes(), (isa, size, kind, t, key)


@pytest.mark.parametrize("codec", formats.CODECS.values(), ids=formats.CODECS)
def test_scales_that_are_made_are_possible(codec: formats.Codec) -> None:
    """Whatever the moments were: zero, denormal, infinite, NaN, the largest."""
    index = np.arange(64, dtype=np.uint32)
    special = np.array([0, 1e-45, 1e-38, 1, 3e38, np.inf, np.nan], np.float32)
    for m, v, step in itertools.product(special, special, (1, 2, 1 << 40)):
        moments = np.full(64, m), np.full(64, v)
        words, scales = codec.encode(*moments, index % 2 == 0, index, step)
        formats.check_scales(scales, "scales")
        codec.decode(words, scales)


@pytest.mark.parametrize("codec", formats.CODECS.values(), ids=formats.CODECS)
def test_without_a_gradient_m_stays_zero_and_keeps_its_sign(codec: formats.Codec) -> None:
    m = np.repeat(np.array([0, 1e-6, -1e-3, 0.1, 1], np.float32), 64)[:256]
    v, index = np.full(256, 0.5, np.float32), np.arange(256, dtype=np.uint32)
    for order in (m, m.reshape(4, 64).T.reshape(-1)):  # a group alike, and of all four
        for step in range(1, 200):
            decoded, _ = codec.decode(*codec.encode(order, v, v < 0, index, step))
            assert not decoded[order == 0].any()
            assert (decoded * order >= 0).all()


@pytest.mark.parametrize("codec", formats.CODECS.values(), ids=formats.CODECS)
@given(
    seed=st.integers(0, 1 << 32),
    binades=st.integers(0, 60),
    bound=st.sampled_from([1e-3, 1.0, 7.27]),
    step=st.integers(1, 1 << 40),
)
def test_an_update_exceeds_its_bound_by_no_more_than_the_quantum(
    codec: formats.Codec, seed: int, binades: int, bound: float, step: int
) -> None:
    """Of |m| / sqrt(v) <= bound: v is off by a step of its grid, m by some half of its own."""
    rng = np.random.default_rng(seed)
    v = np.exp2(rng.uniform(-binades, 0, 128)).astype(np.float32)
    m = (bound * np.sqrt(v) * rng.uniform(-1, 1, 128)).astype(np.float32)
    m[::7] = (bound * np.sqrt(v) * np.sign(m))[::7].astype(np.float32)
    words, scales = codec.encode(m, v, m != 0, np.arange(128, dtype=np.uint32), step)
    decoded = codec.decode(words, scales)
    bits = [x.view(np.uint32).astype(np.int64) for x in (decoded[1], v)]
    low, high = scales.astype(np.int64).T[:2] << 16
    quantum = (high - low) / (codec.levels - 1) + 1
    assert (abs(bits[0] - bits[1]) <= 1.01 * np.repeat(quantum, 64)).all()
    frame = rounding.float_of(codec._frame(bits[0])).astype(np.float64)
    largest = np.repeat((abs(m) / frame).reshape(2, 64).max(1), 64)
    half = {8: 0.5 / 127, 4: 12.5 / 128}[codec.bits] + 2**-7
    assert (abs(decoded[0].astype(np.float64) - m) <= frame * largest * half).all()
    assert largest.max() <= 2 * bound * np.exp2(quantum.max() / (1 << 23))


@pytest.mark.parametrize(
    "group",
    [
        (2, 1, 0),
        (0, 0x7F80, 0),
        (0x7F81, 0x7FFF, 0),
        (0, 0x8001, 0),
        (0, 1, 0x7F80),
        (0, 1, 0x8000),
    ],
)
def test_impossible_scales(group: tuple[int, int, int]) -> None:
    scales = np.zeros((5, 3), np.uint16)
    formats.check_scales(scales, "scales of 'w'")
    formats.check_scales(np.zeros((0, 3), np.uint16), "scales of 'w'")
    scales[3] = group
    for kind in (np.uint16, np.int16):
        with pytest.raises(ValueError, match=r"scales of 'w' must be .* for group 3: the bytes"):
            formats.check_scales(scales.view(kind), "scales of 'w'")
