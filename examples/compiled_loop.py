"""torch.compile: the model's forward and backward pass are compiled, the step is one call as it is.

There is nothing to compile in the step: it is one call of compiled code already. Compile what it
steps, the model, and leave ``optimizer.step()`` outside.
"""

from __future__ import annotations

import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from adamas.torch import AdamW, decay_groups

EPOCHS, BATCH = 20, 64


def network() -> nn.Module:
    """A network for 8 by 8 pixels, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10))


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Trains with a learning rate that warms up and falls, and with clipped gradients."""
    optimizer = AdamW(decay_groups(model, weight_decay=0.1), lr=5e-3)
    batches = len(x) // BATCH
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=EPOCHS * batches)
    order = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        # Batches of one size: another size would be compiled anew.
        for rows in torch.randperm(len(x), generator=order)[: batches * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def main() -> None:
    """Trains a compiled network, and measures on digits it has not seen."""
    pixels, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        torch.from_numpy(pixels / 16.0).float(), torch.from_numpy(labels), random_state=0
    )
    model = network()
    print(decay_groups(model, weight_decay=0.1))
    compiled = torch.compile(model)
    began = time.perf_counter()
    train(compiled, train_x, train_y)
    print(f"{time.perf_counter() - began:.1f} s, compiling included")
    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    print(f"accuracy on {len(test_y)} unseen digits: {accuracy:.4f}")
    assert accuracy > 0.9, "it did not learn"


if __name__ == "__main__":
    main()
