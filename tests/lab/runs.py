"""What tests of training share: small runs, and all that they leave."""

import sys
from pathlib import Path
from typing import Any

import torch
from tables import mixed_csv

from adamas.lab import folder
from adamas.lab.run import Run, start

GIVEN: dict[str, Any] = {
    "layers": (8,),
    "epochs": 3,
    "batch_size": 20,
    "betas": (0.8, 0.95),
    "weight_decay": 0.1,
    "seed": 5,
}
STEPS = 5  # an epoch: 96 training rows
CLOCK = ("seconds", "samples_per_second")
ADAMAS = (sys.executable, "-m", "adamas.cli")


def begin(path: Path, out: str = "run", target: str = "price", **given: Any) -> Run:
    data = path / "mixed.csv"
    if not data.exists():
        mixed_csv(path)
    return start(data, lambda name: path / out, {**GIVEN, **given}, target)


def go(current: Run, steps: int | None = None) -> bool:
    """Trains to the end, or for that many steps."""
    left = iter(range(steps)) if steps else iter(range(10**9))

    def stop() -> bool:
        return next(left, None) == (steps or 0) - 1

    return current.train(stop, lambda trainer, metrics: None)


def state(path: Path) -> dict[str, Any]:
    """All that training leaves, but for the clock."""
    files = folder.RunFolder(path)
    content = files.load_checkpoint()
    for name in ("seconds", "epoch_seconds"):
        content["position"].pop(name)
    metrics = [
        {name: value for name, value in epoch.items() if name not in CLOCK}
        for epoch in files.load_metrics()
    ]
    return {**content, "metrics": metrics, "weights": files.load_model()}


def assert_same(one: Any, other: Any) -> None:
    """Equality to the last bit, in nested containers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert set(one) == set(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.numpy().tobytes() == other.numpy().tobytes()
    else:
        assert one == other


def no_space(content: object, file: object) -> None:
    raise OSError(28, "No space left on device")
