"""Lightning: a module with adamas's optimizer, a schedule, clipping and a resumed run.

Its command line takes any optimizer by its import path: ``fit --optimizer adamas.torch.AdamW``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adamas.torch import AdamW, decay_groups

EPOCHS, BATCH = 12, 32
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
pixels, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    torch.from_numpy(pixels / 16.0).float(), torch.from_numpy(labels), random_state=0
)


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = AdamW(decay_groups(self, weight_decay=0.1), lr=5e-3)
        steps = EPOCHS * (len(train_x) // BATCH)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def fit(epochs: int, save: Path, resume: Path | None = None) -> Digits:
    """Trains to an epoch, from a checkpoint if there is one, and writes another."""
    model = Digits()
    trainer = lightning.Trainer(max_epochs=epochs, gradient_clip_val=1.0, **QUIET)
    # The same batches in each epoch: an order drawn anew would differ in a resumed run.
    batches = DataLoader(TensorDataset(train_x, train_y), BATCH, drop_last=True)
    trainer.fit(model, batches, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(save, weights_only=False)
    return model


def main() -> None:
    """Trains in one go and in two, compares them, and measures on digits it has not seen."""
    with tempfile.TemporaryDirectory() as folder:
        model = fit(EPOCHS, Path(folder, "whole.ckpt"))
        fit(EPOCHS // 2, Path(folder, "half.ckpt"))
        resumed = fit(EPOCHS, Path(folder, "rest.ckpt"), resume=Path(folder, "half.ckpt"))
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), "a resumed run must end with the same bits"
    accuracy = (model.network(test_x).argmax(1) == test_y).float().mean().item()
    print(f"accuracy on {len(test_y)} unseen digits: {accuracy:.4f}, resumed: the same bits")
    assert accuracy > 0.9, "it did not learn"


if __name__ == "__main__":
    main()
