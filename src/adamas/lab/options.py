"""The options of a training run: their defaults, which follow the data's size, and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from ..hyper import Hyper
from . import UserError

SCHEDULES = ("cosine", "constant")
_MOST_LR = 1e30  # far below what leaves float32
_MOST_WEIGHTS = 2**30
_FLOOR = 0.01  # of the learning rate, at the end of the cosine


@dataclass(frozen=True)
class Options:
    """How to train.

    Raises:
        UserError: an option is out of its range.
    """

    layers: tuple[int, ...]
    epochs: int
    batch_size: int
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    schedule: str
    label_smoothing: float
    seed: int
    device: str
    validation: float

    def __post_init__(self) -> None:
        if self.lr > _MOST_LR:
            raise UserError(f"lr must be at most {_MOST_LR:g}, got {self.lr:g}: choose a lower one")
        try:
            Hyper(self.lr, self.betas, self.eps, self.weight_decay).coefficients(1)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None
        if self.lr == 0:
            raise UserError("lr must be above 0, got 0: with 0 nothing is learnt")
        for name, smallest in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or not smallest <= value < 2**63:
                option = name.replace("_", "-")
                raise UserError(f"{option} must be from {smallest} to 2^63 - 1, got {value}")
        if not all(isinstance(width, int) and 1 <= width <= 16384 for width in self.layers):
            raise UserError(f"layers must be widths from 1 to 16384, got {list(self.layers)}")
        weights = sum(into * out for into, out in pairwise(self.layers))
        if weights > _MOST_WEIGHTS:
            raise UserError(
                f"layers have {weights:,} weights between them: at most {_MOST_WEIGHTS:,} "
                "are allowed; choose smaller or fewer"
            )
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule must be {' or '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label-smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 < self.validation < 1:
            raise UserError(f"validation must be a fraction in (0, 1), got {self.validation}")
        _check_device(self.device)

    @classmethod
    def complete(cls, given: Mapping[str, Any], rows: int) -> Options:
        """The given options, and for the others defaults that suit so many training rows."""
        batch_size = given.get("batch_size") or min(max(2 ** round(math.log2(rows / 40)), 16), 1024)
        steps = math.ceil(rows / max(batch_size, 1))
        defaults: dict[str, Any] = {
            "layers": (256, 128),
            # About 2000 steps, but each row at least 5 times and at most 60.
            "epochs": min(max(round(2000 / steps), 5), 60),
            "batch_size": batch_size,
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "label_smoothing": 0.1,
            "seed": 0,
            "device": "cpu",
            "validation": 0.2,
        }
        return cls(**{**defaults, **given})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Options:
        """Options from ``to_json``."""
        fields: dict[str, Any] = dict(content)
        for name in ("layers", "betas"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """The options as plain JSON."""
        return asdict(self)

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step.

        Args:
            step: steps done before it.
            steps: steps of the whole training.
        """
        if self.schedule == "constant":
            return self.lr
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        return self.lr * (_FLOOR + (1 - _FLOOR) * cosine)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu, cuda or cuda:NUMBER, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA device(s); "
            "use --device cpu"
        )
