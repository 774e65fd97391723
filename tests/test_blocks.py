"""Blocks of groups in the core: whole ones, ones with special groups among others, and tails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import HYPERS, cast

from adamas import formats, native, reference
from adamas.hyper import Rule

GROUP, BLOCK, STEPS = 64, 1024, 4
Gradients = Callable[[np.random.Generator, int, int], np.ndarray]


def plain(random: np.random.Generator, size: int, step: int) -> np.ndarray:
    """No group of which is special."""
    signs = random.choice((-1.0, 1.0), size)
    return np.asarray(signs * np.exp(random.normal(-5, 2, size)), np.float32)


def among(values: tuple[float, ...], groups: slice) -> Gradients:
    """Plain, but that in these groups each of the values has one place at each step."""

    def gradients(random: np.random.Generator, size: int, step: int) -> np.ndarray:
        found = plain(random, size, step)
        whole = found[: size // GROUP * GROUP].reshape(-1, GROUP)[groups]
        for row in whole:
            row[random.choice(GROUP, len(values), replace=False)] = values
        return found

    return gradients


def later(gradients: Gradients, first: int) -> Gradients:
    """Plain before this step."""
    return lambda random, size, step: (gradients if step >= first else plain)(random, size, step)


GRADIENTS: dict[str, Gradients] = {
    "plain": plain,
    "one zero": among((0.0,), slice(20, 21)),
    "zeros in every seventh group": among((0.0, -0.0), slice(3, None, 7)),
    "zeros, later": later(among((0.0,), slice(None, None, 5)), 3),
    "all zero": lambda random, size, step: np.zeros(size, np.float32),
    "squares of zero": among((1e-30, -1e-38, 1e-45), slice(2, None, 9)),
    "huge": among((1e19, -3e38), slice(1, None, 6)),
    "infinite": among((np.inf,), slice(17, 18)),
    "NaN": among((np.nan, 0.0), slice(17, None, 16)),
    "NaN, later": later(among((0.0, np.nan), slice(5, 6)), 2),
    "the last block": among((0.0,), slice(-1, None)),
    "the first block": among((0.0,), slice(0, 16)),
}
SIZES = (BLOCK, 3 * BLOCK, 5 * BLOCK + 1, 4 * BLOCK + 15 * GROUP + 63, 6 * BLOCK - GROUP)
WHOLE = (0, native.LONGEST, 0)
# Shards: from somewhere in the whole, in runs that blocks do not divide.
PLACES = ((192, 1600, 2048), (100, native.LONGEST, 0), (64, 1500, 2048))
# Rule, options, parameter, gradient, master bits.
KINDS: list[tuple[str, dict[str, Any], str, str, int | None]] = [
    ("adam", {"weight_decay": 0.01, "decoupled_weight_decay": True}, "float32", "float32", None),
    ("adam", {"amsgrad": True, "weight_decay": 0.1, "maximize": True}, "float32", "float16", None),
    ("adam", {}, "bfloat16", "bfloat16", 24),
    ("adam", {}, "float16", "float32", 32),
    ("sgd", {"momentum": 0.9, "nesterov": True}, "float32", "float32", None),
    ("rmsprop", {"momentum": 0.5}, "bfloat16", "float32", 16),
    ("adam", {"weight_decay": 0.1}, "bfloat16", "bfloat16", 32),
    ("adam", {}, "bfloat16", "bfloat16", 24),
    ("rmsprop", {}, "bfloat16", "bfloat16", 16),
    ("adam", {}, "bfloat16", "bfloat16", 32),
    ("adam", {}, "bfloat16", "bfloat16", 16),
    ("sgd", {"momentum": 0.9}, "bfloat16", "bfloat16", 24),
]


def told(array: Any) -> bytes:
    """The bits, but for which NaN it is, that processors are free in."""
    array = np.array(array)
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return array.tobytes()


def stepped(
    isa: str,
    measured: bool,
    place: tuple[int, int, int],
    param: np.ndarray,
    grad: np.ndarray,
    state: reference.State,
    hyper: Rule,
    types: int,
) -> np.ndarray | None:
    rows = native.table(1)
    rows[0, [native.PARAM, native.GRAD]] = param.ctypes.data, grad.ctypes.data
    for key in state.keys() - {"step"}:
        rows[0, native.column(key, hyper.keys)] = state[key].ctypes.data
    rows[0, [native.SIZE, native.TYPES]] = param.size, types
    rows[0, [native.OFFSET, native.RUN, native.STRIDE]] = place
    state["step"] += 1
    coefficients = np.array([hyper.coefficients(state["step"])])
    measures = np.zeros((1, native.MEASURES)) if measured else None
    native.step(rows, coefficients, 2, grain=0, isa=isa, measures=measures)
    return measures


@pytest.mark.parametrize("gradients", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("moments", ["int8", "int4", "bfloat16"])
def test_blocks_equal_the_specification(moments: str, gradients: Gradients) -> None:
    # Each kind in whole, and at one of the other places.
    cases = [(*pair, WHOLE) for pair in enumerate(KINDS)]
    cases += [(*pair, PLACES[pair[0] % len(PLACES)]) for pair in enumerate(KINDS)]
    for number, (rule, options, dtype, grad_dtype, bits), place in cases:
        hyper = HYPERS[rule](**options)
        beside = formats.master_beside(dtype, bits)
        types = native.types(dtype, grad_dtype, moments, beside, rule)
        size = SIZES[number % len(SIZES)]
        offset, run, stride = place
        index = offset + np.arange(size) // run * stride + np.arange(size) % run
        random = np.random.default_rng(number)
        param = cast(plain(random, size, 0), dtype)
        state = reference.initial_state(param, hyper, moments, bits)
        cores = {isa: (param.copy(), copy.deepcopy(state)) for isa in native.isas()}
        for step in range(1, STEPS + 1):
            grad = cast(gradients(random, size, step), grad_dtype)
            with np.errstate(all="ignore"):
                param, state = reference.step(param, grad, state, hyper, index=index)
            for isa, (own, kept) in cores.items():
                stepped(isa, step % 2 == 1, place, own, grad, kept, hyper, types)
        for isa, (own, kept) in cores.items():
            assert told(own) == told(param), (rule, dtype, isa)
            for key, value in state.items():
                assert told(kept[key]) == told(value), (rule, dtype, isa, key)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("moments", ["int8", "int4", "bfloat16"])
def test_a_block_is_measured_element_by_element(moments: str, isa: str) -> None:
    hyper = HYPERS["adam"](lr=0.1)
    beside = formats.master_beside("bfloat16", 24)
    types = native.types("bfloat16", "bfloat16", moments, beside, "adam")
    param = cast(np.ones(3 * BLOCK + 5, np.float32), "bfloat16")
    grad = cast(np.arange(param.size, dtype=np.float32) % 2, "bfloat16")  # of every other one
    state = reference.initial_state(param, hyper, moments, 24)
    measures = stepped(isa, True, WHOLE, param, grad, state, hyper, types)
    assert measures is not None
    *_, largest, stalled = measures[0]
    assert largest == pytest.approx(0.1, 1e-2)
    assert stalled == 0
