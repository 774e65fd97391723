"""The progress of a training: live on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from .training import Metrics, Trainer

if TYPE_CHECKING:
    from typing_extensions import Self

_REFRESH = 0.1  # seconds
_WIDE = 120  # columns


class Live:
    """A bar that lives while it is entered, where there is a terminal; a context manager.

    Args:
        console: where to print.
        columns: of the bar, in rich's terms.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console = console
        self._bar = Progress(*columns, console=console)
        self._started = False

    def __enter__(self) -> Self:
        """Starts the live display on a terminal."""
        if self._console.is_terminal:
            self._bar.start()
            self._started = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops the live display."""
        if self._started:  # on a terminal that may be gone
            with suppress(OSError):
                self._bar.stop()

    def _print(self, text: str, console: Console | None = None) -> None:
        (console or self._console).print(text, highlight=False, markup=False, soft_wrap=True)


class Display(Live):
    """Shows epoch, loss, validation score, samples a second and time left.

    Args:
        console: where to print.
        score_name: what the score is called.
    """

    def __init__(self, console: Console, score_name: str) -> None:
        wide = console.width >= _WIDE  # else what is told has no room beside a bar
        super().__init__(
            console,
            TextColumn("epoch {task.fields[epoch]}"),
            *([BarColumn()] if wide else []),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn(f"validation {score_name} {{task.fields[score]}}", style="bold cyan"),
            TextColumn("{task.fields[speed]} samples/s" if wide else "{task.fields[speed]}/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._score_name = score_name
        empty: dict[str, Any] = {"epoch": "-", "loss": "-", "score": "-", "speed": "-"}
        self._task = self._bar.add_task("", total=None, **empty)
        self._updated = 0.0
        self._begun: tuple[float, float] | None = None

    def __call__(self, trainer: Trainer, metrics: Metrics | None) -> None:
        """Takes notice of a step, and of the metrics at the end of an epoch."""
        now = time.monotonic()
        if self._console.is_terminal:
            if metrics or now - self._updated > _REFRESH:
                self._updated = now
                self._update(trainer, metrics)
        elif metrics:
            self._print_epoch(trainer, metrics, now)

    def _update(self, trainer: Trainer, metrics: Metrics | None) -> None:
        position, epochs = trainer.position, trainer.options.epochs
        steps = trainer.steps_per_epoch
        fields: dict[str, Any] = {"epoch": f"{min(position.epoch + 1, epochs)}/{epochs}"}
        if metrics:
            fields["score"] = score_text(self._score_name, metrics["validation_score"])
            fields["loss"] = f"{metrics['train_loss']:.4f}"
            fields["speed"] = f"{metrics['samples_per_second']:,.0f}"
        elif position.step:
            rows = position.step * trainer.options.batch_size
            fields["loss"] = f"{position.loss_sum / rows:.4f}"
            fields["speed"] = f"{rows / position.epoch_seconds:,.0f}"
        done = position.epoch * steps + position.step
        self._bar.update(self._task, completed=done, total=epochs * steps, **fields)

    def _print_epoch(self, trainer: Trainer, metrics: Metrics, now: float) -> None:
        epoch, epochs = metrics["epoch"], trainer.options.epochs
        self._begun = self._begun or (epoch, now)
        first, since = self._begun
        left = (
            "-" if epoch == first else f"{(now - since) / (epoch - first) * (epochs - epoch):.0f}"
        )
        self._print(
            f"epoch {epoch}/{epochs}  loss {metrics['train_loss']:.4f}  "
            f"validation {self._score_name} "
            f"{score_text(self._score_name, metrics['validation_score'])}  "
            f"{metrics['samples_per_second']:,.0f} samples/s  {left} s left"
        )


def score_text(name: str, score: float) -> str:
    """A score in words: an accuracy in percent."""
    return f"{score:.1%}".replace("%", " %") if name == "accuracy" else f"{score:.4f}"
