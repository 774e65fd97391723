"""Whether a device's steps have the specification's bits, for gpu.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamas import Hyper, reference
from adamas.lab.benchmark.peers import reason
from adamas.torch import AdamW

STEPS = 8
# Around a group of 64, and around what one program of a kernel takes.
SIZES = (1, 63, 64, 65, 3500, 100_003, 0)
LESS = 10_007  # of the longest, where little time is to be taken


@dataclass(frozen=True)
class Case:
    """A format over weights of one type."""

    weights: str
    moments: str
    master_bits: int | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        """In words."""
        master = f", {self.master_bits} bits" if self.master_bits else ""
        more = "".join(f", {name}" for name in self.options)
        return f"{self.weights} weights{master}, {self.moments} moments{more}"


CASES = (
    *(Case("float32", moments) for moments in ("float32", "bfloat16", "int8", "int4")),
    Case("bfloat16", "int8", 24),
    Case("bfloat16", "int4", 24),
    Case("bfloat16", "bfloat16", 16),
    Case("bfloat16", "float32", 32),
    # The first eight are those that are timed; these complete them.
    Case("bfloat16", "int8", 32),
    Case("bfloat16", "int4", 16),
    Case("bfloat16", "bfloat16", 24),
    Case("float16", "float32", 32),
    Case("float16", "int4", 32),
    Case("float16", "int8", 16),
    Case("float64", "float32"),
    Case("float32", "float32", None, {"amsgrad": True}),
    Case("float32", "int8", None, {"maximize": True}),
)
QUICK = 8


@dataclass(frozen=True)
class Verdict:
    """What a case came to."""

    title: str
    compared: int = 0
    """Elements of weights and states."""
    differing: int = 0
    where: str = ""
    """The first that differs."""
    failure: str | None = None

    @property
    def holds(self) -> bool:
        """Whether all was compared and is equal."""
        return self.failure is None and not self.differing and self.compared > 0


def numbers(size: int, dtype: torch.dtype, seed: int, sparse: bool) -> Tensor:
    """Numbers of either sign over 40 binades; if sparse, some are zero and some denormal."""
    random = np.random.default_rng(seed)
    low, high = (-33, 7) if sparse else (-3, 1)
    x = np.ldexp(random.uniform(-2, 2, size), random.integers(low, high, size))
    if sparse:
        chance = random.random(size)
        x = np.where(chance < 1 / 8, 0.0, np.where(chance > 63 / 64, x * 2.0**-110, x))
    return torch.from_numpy(x).to(dtype)


def made(dtype: torch.dtype, longest: int) -> list[Tensor]:
    """Weights: of odd sizes, one that is misaligned, and one that lies transposed."""
    sizes = [min(size, longest) for size in SIZES]
    found = [numbers(size, dtype, i, False) for i, size in enumerate(sizes)]
    found.append(numbers(1001, dtype, 50, False)[1:])
    found.append(numbers(37 * 65, dtype, 51, False).view(65, 37).t())
    return found


def placed(tensor: Tensor, device: str) -> Tensor:
    """A copy that lies in memory as the tensor does, with what is before it."""
    offset = tensor.storage_offset()
    whole = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device=device)
    return whole.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor for the specification, bfloat16 as its bits."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray = tensor.numpy()
    return array


def differing(tensor: Tensor, array: np.ndarray) -> int:
    """How many elements have other bytes."""
    ours, theirs = as_array(tensor), np.ascontiguousarray(array)
    if ours.shape != theirs.shape or ours.dtype.itemsize != theirs.dtype.itemsize:
        return max(ours.size, theirs.size)
    width = ours.dtype.itemsize
    pair = [x.reshape(-1).view(np.uint8).reshape(-1, width) for x in (ours, theirs)]
    return int((pair[0] != pair[1]).any(1).sum())


def compare(case: Case, device: str, longest: int) -> Verdict:
    """Steps the same parameters on the device and by the specification."""
    start = made(getattr(torch, case.weights), longest)
    params = [nn.Parameter(placed(x, device)) for x in start]
    given = {"lr": 3e-3, "weight_decay": 0.1} | case.options
    optimizer = AdamW(params, moments=case.moments, master_bits=case.master_bits, **given)
    hyper = Hyper(decoupled_weight_decay=True, **given)
    kept = [as_array(x).copy() for x in start]
    states = [reference.initial_state(x, hyper, case.moments, case.master_bits) for x in kept]
    for t in range(STEPS):
        # As a schedule has it: another rate each step.
        lr = 3e-3 * (t + 1) / STEPS
        optimizer.param_groups[0]["lr"] = lr
        hyper = Hyper(decoupled_weight_decay=True, **(given | {"lr": lr}))
        for i, p in enumerate(params):
            grad = numbers(p.numel(), p.dtype, 1000 * (t + 1) + i, True).view(p.shape)
            p.grad = grad.to(device)
            kept[i], states[i] = reference.step(kept[i], as_array(grad), states[i], hyper)
        optimizer.step()
    return verdict(case, params, optimizer, kept, states)


def verdict(
    case: Case,
    params: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    kept: list[np.ndarray],
    states: list[dict[str, Any]],
) -> Verdict:
    """Compares weights and states, byte for byte."""
    compared, wrong, where = 0, 0, ""
    for p, array, state in zip(params, kept, states, strict=True):
        own = optimizer.state[p]
        pairs = {"weights": (p, array)}
        pairs |= {k: (own.get(k), x) for k, x in state.items() if k != "step" and p.numel()}
        for key, (tensor, expected) in pairs.items():
            count = expected.size if tensor is None else differing(tensor, expected)
            compared += expected.size
            wrong += count
            if count and not where:
                where = f"{key} of shape {tuple(p.shape)}: {count} of {expected.size}"
    return Verdict(case.title, compared, wrong, where)


def check(device: str, quick: bool) -> Iterator[Verdict]:
    """The verdicts of all cases, or of the first few, as they come."""
    for case in CASES[:QUICK] if quick else CASES:
        try:
            yield compare(case, device, LESS if quick else max(SIZES))
        except Exception as error:
            yield Verdict(case.title, failure=reason(error))
