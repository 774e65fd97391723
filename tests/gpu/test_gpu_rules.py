"""The kernels of gradient descent and RMSprop against the specification, by equality."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
import torch
from test_gpu_kernels import KINDS, ONE_OF_EACH, REALS, Row, block_of, compare

from adamas import formats
from adamas.hyper import Hyper, RMSpropHyper, Rule, SGDHyper
from adamas.torch.gpu import launches

pytestmark = pytest.mark.gpu

RULES: dict[str, Rule] = {
    "SGD": SGDHyper(0.1),
    "SGD, coupled decay": SGDHyper(0.1, weight_decay=0.1),
    "momentum": SGDHyper(0.1, 0.9),
    "momentum, dampening": SGDHyper(0.1, 0.9, 0.5, weight_decay=0.1),
    "Nesterov": SGDHyper(0.1, 0.9, nesterov=True, maximize=True),
    "RMSprop": RMSpropHyper(0.1),
    "RMSprop, no eps": RMSpropHyper(0.1, 0.9, 0.0, weight_decay=0.1),
    "RMSprop, momentum": RMSpropHyper(0.1, momentum=0.9, maximize=True),
    "centered": RMSpropHyper(0.1, centered=True),
    "centered, momentum": RMSpropHyper(0.1, momentum=0.9, weight_decay=0.1, centered=True),
}
each_rule = pytest.mark.parametrize("name", RULES)


def kept_in_full(name: str) -> bool:
    """Whether the rule has averages that no other format keeps."""
    return "centered" in name


def one_of_each(name: str) -> list[Row]:
    rows = [row._replace(amsgrad=False) for row in ONE_OF_EACH]
    return [row._replace(moments="float32") for row in rows] if kept_in_full(name) else rows


@each_rule
def test_every_rule_with_every_type(name: str, device: torch.device) -> None:
    """With each kind of weight and moments; over the rules, each of these with each gradient.

    Blocks, tails of blocks, both, and nothing at all; some of them misaligned.
    """
    grads = cycle(REALS)
    for _ in range(list(RULES).index(name) % len(REALS)):
        next(grads)
    rows = []
    for i, (dtype, master, moments) in enumerate(KINDS):
        grad = next(grads)
        if moments != "float32" and kept_in_full(name):
            continue
        block = block_of(dtype, moments, device)
        size = (block, block // 2 - 62, block + 65, 0)[i % 4]
        kind = dtype, dtype if dtype == "float64" else grad, moments, master
        rows.append(Row(*kind, False, size, ahead=3 if i % 5 == 2 else 0))
    compare(rows, device, RULES[name])


@each_rule
def test_the_first_steps(name: str, device: torch.device) -> None:
    """From zeros on, where momentum begins."""
    compare(one_of_each(name), device, RULES[name], before=0, steps=2)


@each_rule
@pytest.mark.parametrize(("unscale", "clip"), [(1 / 3, 0.37), (2.0**-140, np.nan)])
def test_gradients_scaled_and_clipped(
    unscale: float, clip: float, name: str, device: torch.device
) -> None:
    scale = float(np.float32(unscale))
    compare(one_of_each(name), device, RULES[name], unscale=scale, clip=clip)


@each_rule
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_gradients_and_weights_that_are_not_finite(
    value: float, name: str, device: torch.device
) -> None:
    def spoil(grad: np.ndarray, t: int) -> np.ndarray:
        half = np.float32(value).view(np.uint32) >> 16
        grad[[3, 40]] = half if grad.dtype == np.uint16 else value
        return grad

    rows = [row._replace(infinite=3) for row in one_of_each(name)]
    compare(rows, device, RULES[name], spoil=spoil)


def test_a_table_of_all_rules(device: torch.device) -> None:
    """Each launched by itself, and Adam with and without AMSGrad among them."""
    hypers = [*RULES.values(), Hyper(0.1)]
    rows = [Row("float32", "float32", "float32", None, False, 70, hyper=hyper) for hyper in hypers]
    compare([*rows, rows[-1]._replace(amsgrad=True), *rows], device)


@pytest.mark.parametrize("moments", formats.FORMATS)
def test_parts_of_a_tensor_round_as_the_whole(
    moments: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several chunks, which begin in the middle of a group or leave out columns."""
    block = block_of("bfloat16", moments, device)
    for name in ("CHUNK", "CODED_CHUNK"):
        monkeypatch.setattr(launches, name, 2 * block)
    rows = [
        Row("bfloat16", "bfloat16", moments, 24, False, 2 * block + 70, place, hyper=RULES[name])
        for place in ((6401, 2**40, 1), (5, 7, 30))
        for name in ("momentum", "RMSprop, momentum")
    ]
    compare(rows, device)


def test_a_variance_is_not_below_zero(device: torch.device) -> None:
    """Of gradients that stay as they are: v less m * m is what rounding leaves of it."""

    def spoil(grad: np.ndarray, t: int) -> np.ndarray:
        return np.linspace(0.1, 1.0, grad.size).astype(grad.dtype)

    rows = [Row("float32", "float32", "float32", None, False, 200)]
    hyper = RMSpropHyper(0.1, alpha=0.1, centered=True)
    compare(rows, device, hyper, before=0, steps=12, spoil=spoil)
