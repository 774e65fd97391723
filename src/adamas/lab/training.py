"""Training: a loop whose state is small and explicit, so that it continues as if never stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..torch import AdamW
from . import TrainingError, UserError
from .model import MLP, UpdateWatch, loss_of, predict, score_of
from .options import Options

Metrics = dict[str, Any]
Make = Callable[[list[dict[str, Any]]], Optimizer]


@dataclass(frozen=True)
class Dataset:
    """Features and targets, on the training device.

    Targets are int64 classes, or float32 standardized numbers.
    """

    features: Tensor
    targets: Tensor
    validation_features: Tensor
    validation_targets: Tensor


@dataclass
class Position:
    """Where training stands."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done in the next epoch."""
    loss_sum: float = 0.0
    """Of the rows of those steps; so ``correct``."""
    correct: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0


class Trainer:
    """Trains a model on a dataset.

    The order of the batches is a pure function of seed and epoch, the learning rate of the step:
    the weights, the optimizer's state and the position are all there is to save.

    Args:
        model: the model, on the training device.
        data: the dataset.
        options: how to train.
        make: an optimizer of parameter groups, instead of AdamW with the options' own settings.
    """

    def __init__(
        self, model: MLP, data: Dataset, options: Options, make: Make | None = None
    ) -> None:
        self.model = model
        self.data = data
        self.options = options
        self.position = Position()
        self.optimizer = (make or self._adamw)([{"params": list(model.parameters())}])
        self._variance = float(data.targets.double().var(correction=0))

    @property
    def steps_per_epoch(self) -> int:
        """The last batch may be smaller."""
        return math.ceil(len(self.data.features) / self.options.batch_size)

    @property
    def total_steps(self) -> int:
        """Of the whole training."""
        return self.options.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.position.epoch >= self.options.epochs

    def epoch(self) -> Iterator[Metrics | None]:
        """Trains to the end of the epoch; may be left after any step, and begun again there.

        Yields:
            None after each step, then the metrics of the epoch.

        Raises:
            TrainingError: the loss is not finite.
        """
        for batch in self._batches()[self.position.step :]:
            last = self.position.step + 1 == self.steps_per_epoch
            watch = UpdateWatch(self.model) if last else None
            self._step(batch)
            if watch and last:
                yield self._finish_epoch(watch)
            else:
                yield None

    def evaluate(self) -> tuple[float, float]:
        """Loss and score on the validation rows."""
        outputs = predict(self.model, self.data.validation_features)
        targets = self.data.validation_targets
        return float(loss_of(outputs, targets, self.options.label_smoothing)), score_of(
            outputs, targets
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a new trainer needs to continue."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": asdict(self.position),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where another trainer was.

        Raises:
            UserError: the state is of another model or another training.
        """
        try:
            position = Position(**state["position"])
            for name, value in asdict(Position()).items():
                if type(getattr(position, name)) is not type(value):
                    raise TypeError(f"{name} is not {type(value).__name__}")
            if not 0 <= position.step < self.steps_per_epoch or position.epoch < 0:
                raise ValueError(f"there is no step {position.step} in an epoch")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the checkpoint does not fit this run ({reason}): restore the run's own files"
            ) from None
        self.position = position

    def _adamw(self, groups: list[dict[str, Any]]) -> Optimizer:
        options = self.options
        return AdamW(groups, options.lr, options.betas, options.eps, options.weight_decay)

    def _batches(self) -> list[Tensor]:
        rows, epoch = len(self.data.features), self.position.epoch
        order = np.random.default_rng([self.options.seed, epoch + 1]).permutation(rows)
        device = self.data.features.device
        return list(torch.split(torch.from_numpy(order).to(device), self.options.batch_size))

    def _step(self, batch: Tensor) -> None:
        begun = time.perf_counter()
        position, options = self.position, self.options
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        targets = self.data.targets[batch]
        outputs = self.model(self.data.features[batch])
        loss = loss_of(outputs, targets, self.options.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {position.epoch + 1}, step {position.step + 1}: "
                f"it must stay finite; start again with a smaller --lr than {options.lr:g}"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        position.step += 1
        position.loss_sum += value * len(batch)
        if targets.dtype == torch.int64:
            position.correct += int((outputs.argmax(1) == targets).sum())
        seconds = time.perf_counter() - begun
        position.epoch_seconds += seconds
        position.seconds += seconds

    def _learning_rate(self) -> float:
        done = self.position.epoch * self.steps_per_epoch + self.position.step
        return self.options.learning_rate(done, self.total_steps)

    def _finish_epoch(self, watch: UpdateWatch) -> Metrics:
        position, rows = self.position, len(self.data.features)
        updates = [asdict(sizes) for sizes in watch.sizes()]
        begun = time.perf_counter()
        validation_loss, validation_score = self.evaluate()
        if not math.isfinite(validation_loss):
            raise TrainingError(
                f"the validation loss is {validation_loss} after epoch {position.epoch + 1}: "
                f"start again with a smaller --lr than {self.options.lr:g}"
            )
        position.seconds += time.perf_counter() - begun
        train_loss = position.loss_sum / rows
        metrics: Metrics = {
            "epoch": position.epoch + 1,
            "train_loss": train_loss,
            "validation_loss": validation_loss,
            "train_score": self._train_score(train_loss),
            "validation_score": validation_score,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": position.seconds,
            "samples_per_second": rows / position.epoch_seconds,
            "updates": updates,
        }
        self.position = Position(epoch=position.epoch + 1, seconds=position.seconds)
        return metrics

    def _train_score(self, loss: float) -> float:
        if self.data.targets.dtype == torch.int64:
            return self.position.correct / len(self.data.targets)
        return 1 - loss / self._variance if self._variance else float(loss == 0)


def train(
    trainer: Trainer,
    save: Callable[[Metrics | None], None],
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Trainer, Metrics | None], None] = lambda trainer, metrics: None,
    save_seconds: float = 60.0,
) -> bool:
    """Trains until all epochs are done, or until it is told to stop.

    Args:
        trainer: the training to begin or continue.
        save: called with the metrics after each epoch, and with None in between: when told to
            stop, and in long epochs.
        stop: asked after each step.
        progress: called after each step, with the metrics after each epoch.
        save_seconds: between two saves in a long epoch.

    Returns:
        Whether all epochs are done.
    """
    saved = time.monotonic()
    while not trainer.finished:
        for metrics in trainer.epoch():
            stopped = stop()
            if metrics or stopped or time.monotonic() - saved > save_seconds:
                save(metrics)
                saved = time.monotonic()
            progress(trainer, metrics)
            if stopped:
                return trainer.finished
    return True
