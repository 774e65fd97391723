"""Hugging Face Accelerate: a loop with accumulation, clipping, a schedule, and a resumed run.

Accelerate has no registry of optimizers. The hook-up is the one line that it has for any of them:
``model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)``.
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adamas.torch import AdamW, decay_groups

EPOCHS, BATCH, ACCUMULATED = 16, 32, 2
pixels, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    torch.from_numpy(pixels / 16.0).float(), torch.from_numpy(labels), random_state=0
)
STEPS = EPOCHS * (len(train_x) // (BATCH * ACCUMULATED))


def train(folder: str, first: int, last: int) -> nn.Module:
    """Trains epochs ``first`` to ``last``, from and to the state in a folder; returns the model."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10))
    optimizer = AdamW(decay_groups(model, weight_decay=0.1), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    batches = DataLoader(TensorDataset(train_x, train_y), BATCH, shuffle=True, drop_last=True)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, batches, scheduler)
    if first:
        accelerator.load_state(folder)
    for epoch in range(first, last):
        torch.manual_seed(epoch)  # of the order of the batches
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    accelerator.save_state(folder)
    return accelerator.unwrap_model(model)


def main() -> None:
    """Trains in one go and in two, compares them, and measures on digits it has not seen."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        model = train(folder, 0, EPOCHS)
        train(other, 0, EPOCHS // 2)
        resumed = train(other, EPOCHS // 2, EPOCHS)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), "a resumed run must end with the same bits"
    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    print(f"accuracy on {len(test_y)} unseen digits: {accuracy:.4f}, resumed: the same bits")
    assert accuracy > 0.9, "it did not learn"


if __name__ == "__main__":
    main()
