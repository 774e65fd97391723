"""Trainers run twice, with adamas and with torch.optim, and compared after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.testing._internal.common_optimizers import OptimizerInfo, OptimizerInput, optim_db

from adamas.torch import Adam, AdamW

Rule = Callable[..., Any]
RULES: dict[str, tuple[Rule, OptimizerInfo]] = {
    rule.__name__: (rule, next(info for info in optim_db if info.name == rule.__name__))
    for rule in (Adam, AdamW)
}
rules = pytest.mark.parametrize("name", RULES)

# Relative to a tensor's largest element. Both sides round a weight once a step, and 16 steps'
# roundings of half a unit in the last place add up to some 1e-6 at the very worst.
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-12}
BOUNDS |= {torch.complex64: BOUNDS[torch.float32], torch.complex128: BOUNDS[torch.float64]}
dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: str(dtype)[6:])
STEPS = 16
SHAPES = [(7, 5), (5,), (), (0,), (2, 3, 4, 4)]


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(normal(shape, dtype, i)) for i, shape in enumerate(SHAPES)]


def step(optimizer: Optimizer, t: int) -> None:
    params = (p for group in optimizer.param_groups for p in group["params"])
    for i, p in enumerate(params):
        p.grad = normal(tuple(p.shape), p.dtype, 100 * t + i + 7)
    optimizer.step()


class Record(NamedTuple):
    """Where an optimizer stands: weights and moments, and all that counts exactly."""

    tensors: dict[tuple[int, str], Tensor]
    numbers: list[Any]


def record(optimizer: Optimizer) -> Record:
    tensors, numbers = {}, []
    for group in optimizer.param_groups:
        numbers += [(float(group["lr"]), tuple(map(float, group["betas"])))]
        for p in group["params"]:
            state = optimizer.state[p]
            numbers += [int(state["step"]) if state else 0]
            for key, value in ({"param": p} | state).items():
                if key != "step":
                    tensors[len(numbers), key] = value.detach().clone()
    return Record(tensors, numbers)


def trajectory(optimizer: Optimizer, steps: range = range(STEPS)) -> list[Record]:
    records = []
    for t in steps:
        step(optimizer, t)
        records.append(record(optimizer))
    return records


def assert_agree(ours: list[Record], theirs: list[Record]) -> None:
    """Within the bounds, relative to the largest element so far: cancelling leaves its errors."""
    largest: dict[tuple[int, str], float] = {}
    for t, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
        assert one.numbers == other.numbers
        assert one.tensors.keys() == other.tensors.keys()
        for key, b in other.tensors.items():
            a = one.tensors[key]
            assert a.dtype == b.dtype
            if not b.numel():
                continue
            largest[key] = max(largest.get(key, 0.0), float(b.abs().max()))
            # Where decay is apart, torch rounds the decayed weight once more, in every step.
            bound = BOUNDS[a.dtype] + t * torch.finfo(a.dtype).eps / 2
            assert (a - b).abs().max() <= bound * largest[key], (t, key)


def assert_same_bits(ours: list[Record], others: list[Record]) -> None:
    for one, other in zip(ours, others, strict=True):
        assert one.numbers == other.numbers
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


Both = dict[str, Any]


def both(name: str, make: Callable[[Rule], Both], steps: int = STEPS) -> None:
    """Runs a trainer with adamas and with torch.optim.

    Args:
        name: of the optimizer.
        make: makes the trainer from the optimizer's class: the ``optimizer``, and what is called
            with the number of the step after ``each``.
        steps: how many.
    """
    rule, info = RULES[name]
    runs = []
    for one in (rule, lambda *args, **options: info.optim_cls(*args, **options, foreach=False)):
        trainer = make(one)
        records = []
        for t in range(steps):
            step(trainer["optimizer"], t)
            trainer["each"](t)
            records.append(record(trainer["optimizer"]))
        runs.append(records)
    assert_agree(*runs)


def inputs(info: OptimizerInfo) -> list[OptimizerInput]:
    """Torch's inputs for every device: what only CUDA can do there, adamas does on the CPU."""
    found = [i for device in ("cpu", "cuda", "mps") for i in info.optim_inputs_func(device)]
    return list({i.desc: i for i in found}.values())


def for_torch(options: dict[str, Any]) -> dict[str, Any]:
    """The same for torch on the CPU, where it does not take ``capturable``.

    Tensors become float64: in float32, torch has the bias corrections in float32, too.
    """
    return {key: _wide(value) for key, value in options.items() if key != "capturable"}


def _wide(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_wide, value))
    return value.double() if isinstance(value, Tensor) else value


INPUTS = [(name, i) for name, (_, info) in RULES.items() for i in inputs(info)]
each_input = pytest.mark.parametrize(
    ("name", "given"), INPUTS, ids=[f"{name} {i.desc}" for name, i in INPUTS]
)
