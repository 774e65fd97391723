"""Without a GPU, Triton interprets the kernels: it has to know before it is imported."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from devices import Copied

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device whose parameters the kernels step: without a GPU, the CPU."""
    from adamas.torch import gpu

    if torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.current_device())
        return
    monkeypatch.setattr(gpu, "DEVICES", {*gpu.DEVICES, "cpu"})
    with np.errstate(all="ignore"):  # the interpreter computes in NumPy, which would warn
        yield torch.device("cpu")


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> "Copied":
    """What is copied to the host to be added up there."""
    from devices import Copied

    return Copied(monkeypatch)


@pytest.fixture(autouse=True)
def as_on_a_device() -> Iterator[None]:
    """Overflow and NaN are ordinary results there; the interpreter's NumPy would warn."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def sanitized() -> Iterator[None]:
    """With ADAMAS_SANITIZE in the environment, what kernels do with memory is watched, too."""
    if not os.environ.get("ADAMAS_SANITIZE") or torch.cuda.is_available():
        yield
        return
    from sanitizer import watching

    with watching():
        yield
