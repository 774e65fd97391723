"""TensorBoard: what Adam does to each parameter, written by a hook of the optimizer's step.

``tensorboard --logdir FOLDER`` shows the curves. Every tenth step is measured, within the step.
"""

from __future__ import annotations

import tempfile

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from adamas.torch import AdamW, decay_groups

EVERY, STEPS = 10, 400
pixels, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    torch.from_numpy(pixels / 16.0).float(), torch.from_numpy(labels), random_state=0
)


def log_statistics(optimizer: AdamW, writer: SummaryWriter) -> None:
    """Lets every tenth step write its norms, relative updates and stalled weights."""
    count = 0

    def before(*_: object) -> None:
        if count % EVERY == 0:
            optimizer.measure_next_step()

    def after(*_: object) -> None:
        nonlocal count
        if count % EVERY == 0:
            statistics = optimizer.statistics()
            for measures in (*statistics.parameters, *statistics.groups):
                for what in ("grad_norm", "update_norm", "largest_relative_update", "stalled"):
                    writer.add_scalar(f"{what}/{measures.name}", getattr(measures, what), count)
        count += 1

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 10))
    optimizer = AdamW(decay_groups(model, weight_decay=0.1), lr=3e-3)
    log_statistics(optimizer, writer)
    for _ in range(STEPS):
        rows = torch.randint(len(train_x), (64,))
        nn.functional.cross_entropy(model(train_x[rows]), train_y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(optimizer.statistics())
    writer.flush()
    written = EventAccumulator(folder).Reload().Tags()["scalars"]
    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()

assert "update_norm/0.weight" in written
assert accuracy > 0.9
print(f"{len(written)} curves; accuracy on {len(test_y)} unseen digits: {accuracy:.3f}")
