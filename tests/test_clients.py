"""Trainers that others wrote, with adamas's optimizer: the same bits as a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset

from adamas.torch import AdamW, decay_groups

# What the clients warn of is theirs.
pytestmark = [pytest.mark.examples, pytest.mark.filterwarnings("default")]

EPOCHS, BATCH, SIZE, CLASSES = 2, 32, 8, 3
CASES = [(1, None), (1, 0.1), (2, None), (2, 0.1)]
cases = pytest.mark.parametrize(("accumulated", "clip"), CASES)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, CLASSES))


def batches() -> DataLoader[tuple[Tensor, ...]]:
    random = torch.Generator().manual_seed(0)
    data = torch.randn(10 * BATCH, SIZE, generator=random)
    target = torch.randint(CLASSES, (10 * BATCH,), generator=random)
    return DataLoader(TensorDataset(data, target), BATCH)


def adamw(model: nn.Module) -> tuple[AdamW, LinearLR]:
    optimizer = AdamW(model.named_parameters(), lr=1e-2)
    return optimizer, LinearLR(optimizer, total_iters=20)


def plain(accumulated: int, clip: float | None) -> nn.Module:
    model = network()
    optimizer, scheduler = adamw(model)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(batches(), 1):
            (nn.functional.cross_entropy(model(x), y) / accumulated).backward()
            if i % accumulated == 0:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return model


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@cases
def test_accelerate_has_the_bits_of_a_plain_loop(accumulated: int, clip: float | None) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    model = network()
    prepared = accelerator.prepare(model, *adamw(model), batches())
    wrapped, optimizer, scheduler, loader = prepared
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(wrapped):
                accelerator.backward(nn.functional.cross_entropy(wrapped(x), y))
                if clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert_same_bits(model, plain(accumulated, clip))


@cases
def test_lightning_has_the_bits_of_a_plain_loop(accumulated: int, clip: float | None) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer, scheduler = adamw(self)
            schedule = {"scheduler": scheduler, "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    module = Module()
    lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        accumulate_grad_batches=accumulated,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, batches())
    assert_same_bits(module.network, plain(accumulated, clip))


def test_the_trainer_makes_the_same_optimizer_as_it_is_given(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    data = [
        {"input_ids": torch.arange(i, i + 8), "labels": torch.arange(i, i + 8)} for i in range(64)
    ]
    options = {"lr": 1e-2, "betas": (0.8, 0.9)}

    def train(by_name: bool) -> nn.Module:
        transformers.set_seed(0)
        config = transformers.GPT2Config(
            vocab_size=72, n_positions=8, n_embd=8, n_layer=1, n_head=2
        )
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=10,
            weight_decay=0.1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            lr_scheduler_type="linear",
        )
        if by_name:
            hook = {"optimizer_cls_and_kwargs": (AdamW, options)}
        else:
            hook = {"optimizers": (AdamW(decay_groups(model, 0.1), **options), None)}
        transformers.Trainer(model, arguments, train_dataset=data, **hook).train()
        return model

    assert_same_bits(train(by_name=True), train(by_name=False))
