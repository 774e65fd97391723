"""Stepping on GPUs: Triton kernels over a table of chunks, with the bits of the specification."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch

DEVICES = {"cuda", "xpu"}  # AMD's are "cuda" in torch


def takes(device: torch.device) -> bool:
    """Whether tensors on a device are stepped by the kernels."""
    return device.type in DEVICES and _is_installed()


@cache
def _is_installed() -> bool:
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "adamas steps parameters on a GPU in Triton kernels, and Triton is not installed: until it "
        "is, with `pip install triton`, plain torch operations give the same bits, slowly",
        stacklevel=2,
    )
    return False
