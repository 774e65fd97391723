"""Moments as each format and each peer keeps them, for fidelity.py."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from adamas import formats, rounding

Floats = np.ndarray


class Shadow(Protocol):
    """Keeps two moments."""

    size: float
    """Bytes a parameter, for both."""

    def start(self, n: int) -> Any:
        """What is kept of n zeros."""

    def write(self, m: Floats, v: Floats, active: np.ndarray, step: int) -> Any:
        """What is kept."""

    def read(self, kept: Any) -> tuple[Floats, Floats]:
        """The moments of it."""


class Coded(NamedTuple):
    """A codec of adamas."""

    codec: formats.Codec
    size: float

    def start(self, n: int) -> Any:
        """As ``Shadow.start``."""
        zeros = np.zeros(n, np.float32)
        return self.write(zeros, zeros, zeros != 0, 0)

    def write(self, m: Floats, v: Floats, active: np.ndarray, step: int) -> Any:
        """As ``Shadow.write``."""
        return self.codec.encode(m, v, active, np.arange(m.size, dtype=np.uint32), step)

    def read(self, kept: Any) -> tuple[Floats, Floats]:
        """As ``Shadow.read``."""
        return self.codec.decode(*kept)


class Halves(NamedTuple):
    """adamas's moments in bfloat16."""

    size: float = 4.0

    def start(self, n: int) -> Any:
        """As ``Shadow.start``."""
        return np.zeros((2, n), np.uint16)

    def write(self, m: Floats, v: Floats, active: np.ndarray, step: int) -> Any:
        """As ``Shadow.write``."""
        index = np.arange(m.size, dtype=np.uint32)
        return rounding.to_bfloat16(m, index, step, True), rounding.to_bfloat16(v, index, step)

    def read(self, kept: Any) -> tuple[Floats, Floats]:
        """As ``Shadow.read``."""
        return rounding.from_bfloat16(kept[0]), rounding.from_bfloat16(kept[1])


class Nearest(NamedTuple):
    """Both moments rounded to nearest: softsign m, and v by its root or on a line without zero."""

    bits: int
    group: int
    root: bool
    size: float

    def start(self, n: int) -> Any:
        """As ``Shadow.start``."""
        return np.zeros((2, n), np.float32)

    def write(self, m: Floats, v: Floats, active: np.ndarray, step: int) -> Any:
        """As ``Shadow.write``; decoded at once."""
        top, levels = 2 ** (self.bits - 1) - 1, 2**self.bits - 1
        x, scale = self._scaled(np.abs(m))
        y = np.rint(2 * x / (1 + x) * top) / top
        first = np.copysign(self._flat(y / (2 - y) * scale, m.size), m)
        x, scale = self._scaled(np.sqrt(v) if self.root else v)
        if self.root:
            second = (np.rint(x * levels) / levels * scale) ** 2
        else:
            second = np.maximum(np.rint(x * (levels + 1)), 1) / (levels + 1) * scale
        return first.astype(np.float32), self._flat(second, v.size).astype(np.float32)

    def read(self, kept: Any) -> tuple[Floats, Floats]:
        """As ``Shadow.read``."""
        return kept[0], kept[1]

    def _scaled(self, x: Floats) -> tuple[Floats, Floats]:
        groups = np.pad(x, (0, -x.size % self.group), "edge").reshape(-1, self.group)
        scale = groups.max(1, keepdims=True)
        return groups / np.where(scale > 0, scale, 1), scale

    @staticmethod
    def _flat(x: Floats, n: int) -> Floats:
        return x.reshape(-1)[:n]


CODECS: dict[str, Shadow] = {
    "bfloat16": Halves(),
    "int8": Coded(formats.CODECS["int8"], 2 + 6 / 64),
    "int4": Coded(formats.CODECS["int4"], 1 + 6 / 64),
    "8-bit softsign, sqrt, nearest": Nearest(8, 32, True, 2 + 4 / 32),
    "4-bit nearest": Nearest(4, 128, False, 1 + 4 / 128),
}


def frozen(shadow: Shadow | None, steps: int = 3000, groups: int = 10) -> float:
    """sqrt(v), on average, of elements whose gradients become 100 times smaller; None: exact."""
    n = 64 * groups
    large = np.arange(n) % 64 == 0
    squares = np.where(large, 1, 1e-4).astype(np.float32)
    v = np.ones(n, np.float32)
    m = np.zeros(n, np.float32)
    kept = shadow.write(m, v, ~large, 0) if shadow else None
    for t in range(1, steps + 1):
        m, v = shadow.read(kept) if shadow else (m, v)
        v = np.float32(0.999) * v + np.float32(0.001) * squares
        kept = shadow.write(m, v, squares > 0, t) if shadow else None
    v = shadow.read(kept)[1] if shadow else v
    return float(np.sqrt(v[~large]).mean())


def inactive(shadow: Shadow, beta1: float, steps: int = 200, groups: int = 10) -> float:
    """How far weights move, beyond exact Adam's, once their gradients are zero; in full updates."""
    n, b1, b2 = 64 * groups, np.float32(beta1), np.float32(0.999)
    stops = np.arange(n) % 2 == 0
    generator = np.random.default_rng(0)
    zeros = np.zeros(n, np.float32)
    states = {"exact": (zeros, zeros), "ours": shadow.read(shadow.start(n))}
    moved = {name: np.zeros(n) for name in states}
    for t in range(1, 100 + steps + 1):
        g = generator.standard_normal(n).astype(np.float32)
        g = np.where(stops & (t > 100), np.float32(0), g)
        for name, (a, b) in states.items():
            m, v = b1 * a + (1 - b1) * g, b2 * b + (1 - b2) * g * g
            if t > 100:
                root = np.sqrt(v / (1 - 0.999**t)) + 1e-8
                moved[name] += m / (1 - beta1**t) / root
            kept = shadow.write(m, v, g != 0, t) if name == "ours" else None
            states[name] = shadow.read(kept) if name == "ours" else (m, v)
    return float(np.abs(moved["ours"] - moved["exact"])[stops].mean())
