"""Runs the same on the device and in the core, and tells whether all bits are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

# One reason for all that is here.
pytest.importorskip("triton", reason="the kernels for GPUs need Triton: pip install triton")

from adamas.torch import Adam, gpu, gradnorm, plan

REAL = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not REAL, reason="means something on a real GPU only")

Scenario = Callable[[torch.device], Iterator[Any]]


class Copied:
    """Sees the gradients that are copied to the host to be added up there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self._patch, self._rows_of = patch, gradnorm.rows_of
        for module in (gradnorm, plan):
            patch.setattr(module, "rows_of", self._count)

    def in_doubt(self, always: bool) -> None:
        """Lets no estimate of their sum be certain."""
        if always:
            self._patch.setattr(gradnorm, "rounded_estimate", lambda *_: None)

    def _count(self, grads: Sequence[Tensor]) -> Any:
        self.sizes += [grad.numel() for grad in grads]
        return self._rows_of(grads)


@contextmanager
def core() -> Iterator[None]:
    """Lets the core step what is on the CPU, as without the ``device`` fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "DEVICES", gpu.DEVICES - {"cpu"})
        yield


def assert_same(scenario: Scenario, device: torch.device) -> list[Any]:
    """Whether all that a run yields is the same on both.

    Args:
        scenario: makes its parameters on a device, steps them, and yields what to compare.
        device: which the kernels step.

    Returns:
        What it has yielded.
    """
    with core():
        expected = list(scenario(torch.device("cpu")))
    found = list(scenario(device))
    assert len(found) == len(expected) > 0
    for t, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_equal(one, other, f"of {t}")
    return found


def assert_equal(one: Any, other: Any, name: str) -> None:
    """Of records: dictionaries, sequences, tensors, and what is equal by itself."""
    if isinstance(other, dict):
        assert one.keys() == other.keys(), name
        for key in other:
            assert_equal(one[key], other[key], f"{key} {name}")
    elif isinstance(other, list | tuple):
        assert len(one) == len(other), name
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{i} {name}")
    elif isinstance(other, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        differing = np.flatnonzero((one != other).reshape(-1))
        assert not differing.size, (name, differing[:5], one.size)
    else:
        assert type(one) is type(other), name
        assert one == other or one != one, (name, one, other)


def bits(tensor: Tensor) -> Any:
    """A tensor's bytes in the order of its elements; all NaNs are one."""
    value = tensor.detach().cpu()
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    value = torch.empty(value.shape, dtype=value.dtype).copy_(value)  # of stride 1
    if value.is_floating_point():
        value = torch.where(value.isnan(), torch.nan, value)
    return value.reshape(-1).view(torch.uint8).numpy().copy()


def params_of(optimizer: Adam) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def record(optimizer: Adam) -> dict[str, Any]:
    """All that a step leaves: weights, states, counts and norms."""
    found: dict[str, Any] = {}
    for i, p in enumerate(params_of(optimizer)):
        state = optimizer.state.get(p, {})
        found[f"weights of {i}"] = bits(p)
        for key, value in state.items():
            found[f"{key} of {i}"] = int(value) if key == "step" else bits(value)
    norm = optimizer.last_grad_norm
    found["norm"] = math.nan if norm is None else float(norm)
    found["skipped"] = int(optimizer.skipped_steps)
    return found


def numbers(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Over 20 binades, with exact zeros, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x = torch.randn(tuple(shape), generator=generator, dtype=wide)
    x = x * 2.0 ** torch.randint(-16, 4, tuple(shape), generator=generator)
    x[torch.rand(tuple(shape), generator=generator) < 0.1] = 0
    return x.to(dtype)


def weights(shapes: Any, device: torch.device, dtypes: Any = torch.float32) -> list[nn.Parameter]:
    """Parameters of these shapes, of one dtype or of each its own."""
    kinds = dtypes if isinstance(dtypes, list | tuple) else [dtypes] * len(shapes)
    return [
        nn.Parameter(numbers(shape, i, dtype).to(device))
        for i, (shape, dtype) in enumerate(zip(shapes, kinds, strict=True))
    ]


def give(params: Sequence[Tensor], t: int, missing: Any = (), scale: float = 1.0) -> None:
    """Gradients of step ``t``, but for those that miss theirs."""
    for i, p in enumerate(params):
        shape, seed = tuple(p.shape), 1000 + 100 * t + i
        p.grad = None if i in missing else (numbers(shape, seed, p.dtype) * scale).to(p.device)


def set_grad(param: Tensor, grad: Tensor) -> None:
    """Whatever its type; torch checks what is assigned, not what a tensor becomes."""
    param.grad = torch.zeros_like(param)
    param.grad.data = grad
