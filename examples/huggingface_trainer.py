"""Hugging Face Trainer: a small GPT-2 learns to write like Python's library, and a resumed run.

``optimizers=(optimizer, scheduler)`` takes an optimizer that is made. Where the Trainer shall make
it, its registry takes names of its own only, and one line does for every other optimizer:
``Trainer(..., optimizer_cls_and_kwargs=(AdamW, {"lr": 2e-3}))``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from adamas.torch import AdamW, decay_groups

STEPS, LENGTH = 160, 64
Rows = list[dict[str, torch.Tensor]]


def read_source() -> tuple[Rows, Rows]:
    """A module of the standard library as rows of bytes: nine tenths to learn from, one not."""
    text = torch.tensor(list(Path(argparse.__file__).read_bytes()))
    rows = [{"input_ids": row, "labels": row} for row in text.split(LENGTH)[:-1]]
    return rows[: len(rows) * 9 // 10], rows[len(rows) * 9 // 10 :]


def train(folder: str, rows: tuple[Rows, Rows], resume: str | None = None) -> Trainer:
    """Trains a model made from its configuration, with a checkpoint halfway and at the end."""
    set_seed(0)
    size = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
    groups = decay_groups(model, weight_decay=0.1, decay_embeddings=False)
    if resume is None:
        print(groups)
    optimizer = AdamW(groups, lr=6e-3, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS)
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        save_steps=STEPS // 2,
        per_device_train_batch_size=16,
        max_grad_norm=1.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, None, *rows, optimizers=(optimizer, scheduler))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main() -> None:
    """Trains in one go and on from the middle, compares them, and measures on unseen text."""
    rows = read_source()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        trainer = train(folder, rows)
        resumed = train(other, rows, resume=f"{folder}/checkpoint-{STEPS // 2}")
    for one, two in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two), "a resumed run must end with the same bits"
    bits = trainer.evaluate()["eval_loss"] / math.log(2)
    print(f"{bits:.3f} bits a byte of unseen text, where 8 is a guess; resumed: the same bits")
    assert bits < 4, "it did not learn"


if __name__ == "__main__":
    main()
