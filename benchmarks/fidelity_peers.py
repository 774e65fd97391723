"""Moments as installed peers keep them, for fidelity.py: through their own code."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
import torch
from fidelity_shadows import Floats, Shadow
from torch import Tensor


def _padded(x: Floats, block: int) -> Tensor:
    """As a tensor of whole blocks, the last filled up with zeros."""
    return torch.from_numpy(np.pad(x, (0, -x.size % block)))


class Bitsandbytes(NamedTuple):
    """8 bits with dynamic maps, in blocks of 256."""

    functional: Any
    size: float = 2 + 8 / 256

    def start(self, n: int) -> Any:
        """As ``Shadow.start``."""
        return self.write(np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros(n, bool), 0)

    def write(self, m: Floats, v: Floats, active: np.ndarray, step: int) -> Any:
        """As ``Shadow.write``."""
        maps = [self.functional.create_dynamic_map(signed=signed) for signed in (True, False)]
        return m.size, [
            self.functional.quantize_blockwise(_padded(x, 256), code=code, blocksize=256)
            for x, code in zip((m, v), maps, strict=True)
        ]

    def read(self, kept: Any) -> tuple[Floats, Floats]:
        """As ``Shadow.read``."""
        n, pairs = kept
        m, v = (self.functional.dequantize_blockwise(*pair).numpy()[:n] for pair in pairs)
        return m, v


class Torchao(NamedTuple):
    """A state class of torchao's, for both moments."""

    state: Any
    block: int
    size: float

    def start(self, n: int) -> Any:
        """As ``Shadow.start``."""
        return self.write(np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros(n, bool), 0)

    def write(self, m: Floats, v: Floats, active: np.ndarray, step: int) -> Any:
        """As ``Shadow.write``."""
        kept = []
        for x, signed in ((m, True), (v, False)):
            values = _padded(x, self.block)
            kept.append(self.state.zeros(values.shape, signed, self.block).copy_(values))
        return m.size, kept

    def read(self, kept: Any) -> tuple[Floats, Floats]:
        """As ``Shadow.read``."""
        n, pair = kept
        m, v = (x.dequantize().numpy()[:n] for x in pair)
        return m, v


def installed() -> dict[str, Shadow]:
    """What is there, by name."""
    found: dict[str, Shadow] = {}
    with contextlib.suppress(ImportError):
        import bitsandbytes

        name = f"bitsandbytes {bitsandbytes.__version__}, 8-bit"
        found[name] = Bitsandbytes(bitsandbytes.functional)
    with contextlib.suppress(ImportError):
        import torchao
        from torchao.optim.subclass_4bit import OptimState4bit
        from torchao.optim.subclass_8bit import OptimState8bit

        version = torchao.__version__
        found[f"torchao {version}, 8-bit"] = Torchao(OptimState8bit, 256, 2 + 8 / 256)
        found[f"torchao {version}, 4-bit"] = Torchao(OptimState4bit, 128, 1 + 8 / 128)
    return found
