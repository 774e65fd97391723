"""The cases whose results are kept as hashes: every backend is held to them.

Data are functions of integers, the same with any version of any library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamas import Hyper, RMSpropHyper, SGDHyper, formats, native, reference, rounding
from adamas.hyper import Rule

HASHES = Path(__file__).parent / "hashes.json"
STEPS = 60
# Empty, single, around every vector width, and long enough to be cut into pieces.
SIZES = (1, 0, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1000, 4099)
HYPERS = {kind.rule: kind for kind in (Hyper, SGDHyper, RMSpropHyper)}
WEIGHTS = [("float32", None), ("bfloat16", 32), ("bfloat16", 24), ("bfloat16", 16)]
WEIGHTS += [("float16", 32), ("float16", 16)]
GRADS = ["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Case:
    """A rule with options over a list of flat arrays of one type."""

    name: str
    dtype: str
    options: dict[str, Any] = field(hash=False)
    grad_dtype: str | None = None
    moments: str = "float32"
    master_bits: int | None = None
    rule: str = "adam"

    @cached_property
    def hyper(self) -> Rule:
        return HYPERS[self.rule](**self.options)

    @cached_property
    def types(self) -> int:
        """Those of the core's rows."""
        beside = formats.master_beside(self.dtype, self.master_bits)
        return native.types(self.dtype, self.grad_dtype, self.moments, beside, self.rule)

    def params(self) -> list[np.ndarray]:
        return [as_dtype(1000 + i, n, self.dtype, -3, 1) for i, n in enumerate(SIZES)]

    def initial(self) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """The parameters with their states."""
        return [
            (p, reference.initial_state(p, self.hyper, self.moments, self.master_bits))
            for p in self.params()
        ]

    def grads(self) -> Iterator[list[np.ndarray]]:
        """The gradients of each step: over 40 binades, with exact zeros and denormals."""
        for step in range(STEPS):
            yield _gradients(self.grad_dtype or self.dtype, step)


def _cases() -> Iterator[Case]:
    for dtype, rule, options in product(("float32", "float64"), ("adam", "adamw"), range(8)):
        amsgrad, maximize, decay = options & 1, options & 2, options & 4
        values = {
            "lr": 3e-3,
            "betas": (0.9, 0.95) if maximize else (0.9, 0.999),
            "weight_decay": 0.1 if decay else 0.0,
            "amsgrad": bool(amsgrad),
            "maximize": bool(maximize),
            "decoupled_weight_decay": rule == "adamw",
        }
        name = "-".join(
            [dtype, rule]
            + ["amsgrad"] * bool(amsgrad)
            + ["maximize"] * bool(maximize)
            + ["decay"] * bool(decay)
        )
        yield Case(name, dtype, values)


def _format_cases() -> Iterator[Case]:
    for i, ((dtype, bits), moments) in enumerate(product(WEIGHTS, formats.FORMATS)):
        options = {"lr": 3e-3, "weight_decay": 0.1, "decoupled_weight_decay": i % 2 == 0}
        options["amsgrad"] = i % 3 == 2
        # Of each kind of gradients with each of the others, all but those that older cases have.
        grad = GRADS[(i + i // 4) % 3]
        if (dtype, moments, grad) != ("float32", "float32", "float32"):
            name = "-".join([dtype, *([str(bits)] if bits else []), moments, f"{grad} gradients"])
            yield Case(name, dtype, options, grad, moments, bits)


def _rule_cases() -> Iterator[Case]:
    momentum, alpha = {"momentum": 0.9}, {"alpha": 0.95}
    options: dict[str, dict[str, dict[str, Any]]] = {
        "sgd": {
            "": {},
            "momentum": momentum,
            "nesterov": momentum | {"nesterov": True},
            "dampening": momentum | {"dampening": 0.3},
            "momentum-decay": momentum | {"weight_decay": 0.1},
            "maximize": {"maximize": True},
        },
        "rmsprop": {
            "": alpha,
            "momentum": alpha | momentum,
            "centered": alpha | {"centered": True},
            "centered-momentum": alpha | momentum | {"centered": True},
            "momentum-decay": momentum | {"weight_decay": 0.1},
            "maximize": alpha | {"maximize": True},
        },
    }
    for dtype, (rule, cases) in product(("float32", "float64"), options.items()):
        for name, values in cases.items():
            parts = [dtype, rule] + [name] * bool(name)
            yield Case("-".join(parts), dtype, {"lr": 3e-3} | values, rule=rule)


def _rule_format_cases() -> Iterator[Case]:
    """Each kind of weights with each format, and both with each rule."""
    for (i, (dtype, bits)), (j, moments) in product(enumerate(WEIGHTS), enumerate(formats.FORMATS)):
        rule, grad = ("sgd", "rmsprop")[(i + j) % 2], GRADS[(i + j // 2 + 1) % 3]
        options = {"lr": 3e-3, "weight_decay": 0.1 * (i % 2)}
        if rule == "sgd":
            options |= {"momentum": 0.9, "nesterov": i % 3 == 0}
        else:
            options |= {"momentum": 0.9 * (i % 3 == 0), "centered": moments == "float32"}
        name = "-".join([dtype, *([str(bits)] if bits else []), moments, rule, f"{grad} gradients"])
        yield Case(name, dtype, options, grad, moments, bits, rule)
    name = "bfloat16-24-int8-sgd-without momentum"
    yield Case(name, "bfloat16", {"lr": 3e-3}, "float32", "int8", 24, "sgd")


@cache
def _gradients(dtype: str, step: int) -> list[np.ndarray]:
    return [
        as_dtype(100_000 + 100 * step + i, n, dtype, -33, 7, sparse=True)
        for i, n in enumerate(SIZES)
    ]


def as_dtype(seed: int, count: int, dtype: str, *args: Any, **options: Any) -> np.ndarray:
    """Numbers in any dtype; uint16 holds the bits of bfloat16."""
    if dtype in ("float32", "float64"):
        return numbers(seed, count, dtype, *args, **options)
    return cast(numbers(seed, count, "float32", *args, **options), dtype, seed)


def cast(wide: np.ndarray, dtype: str, step: int = 1) -> np.ndarray:
    """Numbers of float32 in another dtype, bfloat16 rounded by the dithers of a step."""
    with np.errstate(over="ignore"):
        if dtype == "bfloat16":
            return rounding.to_bfloat16(wide, np.arange(wide.size, dtype=np.uint32), step)
        return wide.astype(dtype)


def visible(array: np.ndarray) -> np.ndarray:
    """The array; bits as the bfloat16 of ml_dtypes, without which the test is skipped."""
    if array.dtype.name != "uint16":
        return array
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return array.view(bfloat16 if array.dtype.isnative else bfloat16.newbyteorder())


def numbers(
    seed: int, count: int, dtype: str, low: int, high: int, sparse: bool = False
) -> np.ndarray:
    """Numbers of either sign, their exponents even over [low, high).

    If sparse, one in 8 is zero and one in 64 denormal.
    """
    x = np.arange(count, dtype=np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    sign = 1.0 - 2.0 * (x & np.uint64(1)).astype(np.float64)
    chance = (x >> np.uint64(1)) & np.uint64(63)
    exponent = low + ((x >> np.uint64(8)) % np.uint64(high - low)).astype(np.int64)
    mantissa = 1.0 + (x >> np.uint64(32)).astype(np.float64) / 2.0**32
    if sparse:
        tiny = np.finfo(dtype).minexp - 5
        exponent = np.where(chance == 9, tiny, exponent)
        mantissa = np.where(chance < 8, 0.0, mantissa)
    return np.ldexp(sign * mantissa, exponent).astype(dtype)


def digest(results: list[tuple[np.ndarray, dict[str, Any]]]) -> str:
    """The hash of parameters and moments, bytes in little-endian order."""
    sha = hashlib.sha256()
    for param, state in results:
        for array in (param, *(a for key, a in state.items() if key != "step")):
            little = np.asarray(array).astype(array.dtype.newbyteorder("<"))
            sha.update(little.tobytes())
    return sha.hexdigest()[:32]


def run_reference(case: Case) -> list[tuple[np.ndarray, dict[str, Any]]]:
    results = case.initial()
    for grads in case.grads():
        results = [
            reference.step(p, g, state, case.hyper)
            for (p, state), g in zip(results, grads, strict=True)
        ]
    return results


CASES = list(_cases())
FORMAT_CASES = list(_format_cases())
RULE_CASES = list(_rule_cases())
RULE_FORMAT_CASES = list(_rule_format_cases())
ALL_CASES = [*CASES, *FORMAT_CASES, *RULE_CASES, *RULE_FORMAT_CASES]


def hashes() -> dict[str, str]:
    kept: dict[str, str] = json.loads(HASHES.read_text())
    return kept


if __name__ == "__main__":  # writes the hashes anew; a change of theirs is a change of the contract
    found = {case.name: digest(run_reference(case)) for case in ALL_CASES}
    HASHES.write_text(json.dumps(found, indent=1) + "\n")
