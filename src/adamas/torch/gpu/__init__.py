"""Stepping on GPUs: Triton kernels over a table of chunks, with the bits of the specification."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEVICES = {"cuda", "xpu"}  # AMD's are "cuda" in torch
OLDEST = [3, 6]  # Triton


class Request(NamedTuple):
    """What a step is to find out beforehand; ``torch.amp.GradScaler`` gives the first two."""

    grad_scale: Tensor | None
    """Of one float32: what the gradients are multiplied with."""
    found_inf: Tensor | None
    """Of one float32: not 0 where the step is to be skipped."""
    max_grad_norm: float | None
    skip_nonfinite: bool
    captures: bool
    """Whether what a group's options say may change on the device."""

    @property
    def is_plain(self) -> bool:
        """Whether nothing is to be done to the gradients."""
        return self.grad_scale is None and self.max_grad_norm is None


class Needs(NamedTuple):
    """What a request takes."""

    counts: bool = False
    """Only the device can know the number of the step."""
    norms: bool = False
    """All gradients are to be looked at."""


def needs(request: Request | None) -> Needs:
    """What a request takes; None takes nothing."""
    if request is None:
        return Needs()
    counts = request.captures or request.skip_nonfinite or request.found_inf is not None
    return Needs(counts, request.max_grad_norm is not None or request.skip_nonfinite)


class Graphs:
    """What captured steps read and write, which has to live as long as graphs may."""

    def __init__(self) -> None:
        self.used: list[Any] = []
        self._counts: dict[int, int] = {}

    def add(self, params: list[Tensor], counts: list[int], *used: Any) -> None:
        """Keeps what a captured step uses.

        Args:
            params: what it steps,
            counts: and the addresses at which it counts their steps.
            *used: what it reads and writes, or what holds that.
        """
        self.used += [params, *used]  # and so these remain the only ones with their ``id``
        self._counts.update(zip(map(id, params), counts, strict=True))

    def count_elsewhere(self, params: list[Tensor], counts: list[int]) -> bool:
        """Whether the last captured step of some parameter counts it at another address."""
        last = map(self._counts.get, map(id, params), counts)
        return any(found != count for found, count in zip(last, counts, strict=True))

    def __len__(self) -> int:
        """Nothing was captured where it is 0."""
        return len(self.used)


class Outcome(NamedTuple):
    """Where a step tells what it found out, on the device."""

    results: Tensor
    """(2,) float64: the norm, and what clips to it, of the last step that was not skipped."""
    last: Tensor
    """The same of the step before."""
    skipped: Tensor
    """int64: how many steps were."""
    graphs: Graphs
    """That were captured of such steps."""


def takes(device: torch.device) -> bool:
    """Whether tensors on a device are stepped by the kernels."""
    return device.type in DEVICES and _has_triton()


@cache
def _has_triton() -> bool:
    """Whether there is a Triton for which the kernels were written; if not, it says so once."""
    try:
        import triton

        found = f"Triton {triton.__version__}"
        numbers = [int(number) for number in triton.__version__.split(".")[:2]]
    except (ImportError, ValueError) as error:
        found, numbers = f"none that can be used ({error})", []
    if numbers >= OLDEST:
        return True
    warnings.warn(
        f"adamas steps parameters on a GPU in kernels for Triton {'.'.join(map(str, OLDEST))} or "
        f"newer, and found {found}: until a newer one is installed, as newer versions of PyTorch "
        "bring it, plain torch operations and the core on copies step them, slowly",
        stacklevel=2,
    )
    return False
