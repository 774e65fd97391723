"""``adamas.torch.SGD`` and ``RMSprop`` on a device beside the same on the CPU: all bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import assert_same, give, record, weights

from adamas.hyper import Hyper, SGDHyper
from adamas.torch import SGD, RMSprop
from adamas.torch.gpu.sets import set_row

pytestmark = pytest.mark.gpu

SHAPES = [(3,), (0,), (70, 5), ()]
CASES: list[tuple[type[Any], dict[str, Any]]] = [
    (SGD, {}),
    (SGD, {"momentum": 0.9, "dampening": 0.3, "moments": "int8"}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "skip_nonfinite": True}),
    (SGD, {"momentum": 0.9, "moments": "bfloat16", "max_grad_norm": 0.5}),
    (RMSprop, {"moments": "int4", "maximize": True}),
    (RMSprop, {"centered": True, "weight_decay": 0.1, "capturable": True}),
    (RMSprop, {"momentum": 0.9, "moments": "int8", "capturable": True, "max_grad_norm": 0.5}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("scaler", [False, True])
def test_every_bit_is_that_of_the_core(case: int, scaler: bool, device: torch.device) -> None:
    """Of weights of three dtypes, some without gradients; a scaler skips the second step."""
    rule, options = CASES[case]

    def scenario(device: torch.device) -> Iterator[Any]:
        dtypes = torch.float32, torch.float32, torch.bfloat16, torch.float16
        params = weights(SHAPES, device, list(dtypes))
        optimizer = rule(params, lr=0.1, **options)
        for t in range(4):
            give(params, t, missing=(0,) if t == 2 else (), scale=8.0 if scaler else 1.0)
            if scaler:
                optimizer.grad_scale = torch.tensor([8.0], device=device)
                optimizer.found_inf = torch.tensor([float(t == 1)], device=device)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + t)
            optimizer.step()
            yield record(optimizer)

    found = assert_same(scenario, device)
    assert found[-1]["skipped"] == int(scaler)


def test_numbers_that_a_device_cannot_take() -> None:
    """Told before anything is launched."""
    for hyper in (SGDHyper(1e39), Hyper(1e38)):
        with pytest.raises(ValueError, match="exceeds float32: lower it"):
            set_row(hyper, "float32")
        assert set_row(hyper, "float64")[0] == hyper.lr
    with pytest.raises(ValueError, match="exceeds float32: raise it"):
        set_row(SGDHyper(momentum=0.9, dampening=1e39), "float32")
