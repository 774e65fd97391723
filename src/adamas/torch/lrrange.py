"""The learning rate range test: the loss of a model while its learning rate grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from .snapshot import undone

_LEAST_STEPS = 10
_SMOOTHING = 0.8  # of the loss that tells divergence: about the last five steps
_FALLEN = 0.1  # of the loss's whole fall, before which its slope is not looked at
_SAFE = 0.1  # of the learning rate at which the loss diverges
_HEAD = (
    '<meta name="viewport" content="width=device-width">'
    "<style>:root { color-scheme: light dark }</style>"
)
_GREY = "#808590"  # is read on white and on black


@dataclass(frozen=True)
class LRRange:
    """What a range test has found; ``print`` tells it in words."""

    lrs: list[float]
    """Of each step."""
    losses: list[float]
    """Of each step's batch, before the step."""
    suggestion: float | None
    """The learning rate to begin with; None where the loss never fell."""
    steepest: float | None
    """Where the loss fell fastest."""
    diverged: float | None
    """Where it rose out of bounds; None where it did not."""

    def __str__(self) -> str:
        """The suggestion and the reason for it."""
        tested = f"{len(self.lrs)} learning rates from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}"
        end = f"diverged at {self.diverged:.3g}" if self.diverged else "did not diverge"
        if self.suggestion is None:
            return f"no suggestion: the loss never fell at {tested}, and {end}"
        return (
            f"suggested lr {self.suggestion:.3g}: of {tested} the loss fell fastest at "
            f"{self.steepest:.3g}, and {end}"
        )

    def plot(self, path: str | Path) -> None:
        """Writes the losses over the learning rates as one self-contained HTML file.

        Args:
            path: where.

        Raises:
            ImportError: plotly is not installed.
        """
        try:
            from plotly import graph_objects
        except ImportError as error:
            raise ImportError("a plot needs plotly: pip install plotly") from error
        line = {"color": "#1695ab", "width": 2.5}
        figure = graph_objects.Figure(
            graph_objects.Scatter(x=self.lrs, y=self.losses, mode="lines", line=line)
        )
        marks = (
            (self.suggestion, "suggested", "#d9662b", "right"),
            (self.diverged, "diverged", _GREY, "left"),
        )
        for x, name, colour, side in marks:
            if x is not None:
                figure.add_vline(x=x, line_dash="dot", line_color=colour)
                label: dict[str, Any] = {"text": f"{name} {x:.2g}", "font_color": colour}
                place = {"y": 1, "yref": "paper", "xanchor": side, "yanchor": "bottom"}
                figure.add_annotation(x=math.log10(x), showarrow=False, **label, **place)
        # What the loss rises to in the end would hide where it fell.
        start, lowest = self.losses[0], min(self.losses)
        room = max(start - lowest, 1e-3 * abs(start))
        axis = {"gridcolor": "rgba(128,133,144,.3)", "zeroline": False}
        figure.update_xaxes(type="log", title="learning rate", exponentformat="power", **axis)
        top = max(start + room, sorted(self.losses)[len(self.losses) // 2])
        figure.update_yaxes(title="loss", range=[lowest - 0.05 * room, top], **axis)
        clear = "rgba(0,0,0,0)"
        figure.update_layout(
            paper_bgcolor=clear,
            plot_bgcolor=clear,
            font_color=_GREY,
            title=str(self).replace(": ", ":<br>"),
        )
        html = figure.to_html(include_plotlyjs=True, config={"displayModeBar": False})
        Path(path).write_text(html.replace("<head>", f"<head>{_HEAD}", 1), encoding="utf-8")


def lr_range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_of_batch: Callable[[Any], Tensor],
    batches: Iterable[Any],
    *,
    lr_min: float = 1e-7,
    lr_max: float = 10.0,
    steps: int = 100,
    divergence: float = 2.0,
    plot: str | Path | None = None,
) -> LRRange:
    """Trains for some steps while the learning rate grows, and suggests one; all is undone after.

    The learning rate grows by a constant factor each step, from ``lr_min`` to ``lr_max``. Its
    suggestion is the one at which the loss falls fastest for each factor that it grows by, but at
    most a tenth of the one at which the loss diverges: a training meets worse batches than the few
    of a test. The slope at a step is that of a straight line through the losses of the steps around
    it, over the logarithm of the learning rate, so that noise evens out and the place does not lag;
    it is looked at only once a tenth of the whole fall is behind, where batches differ by less.

    Model, optimizer and random states are afterwards bit for bit what they were, in the same
    tensors, also where an exception ends the test: parameters, gradients, buffers and training
    modes; the optimizer's state, hyperparameters and counts; the random states of torch, NumPy and
    Python. While it runs, it keeps a copy of them.

    Args:
        model: the model that is trained.
        optimizer: its optimizer, of any class; groups keep the ratios of their learning rates, and
            ``lr`` means that of the group that has the largest.
        loss_of_batch: gives the loss of a batch as a tensor of one element.
        batches: what it is called with, one after another; begun again at its end, as a list or a
            ``DataLoader`` can be.
        lr_min: the first learning rate, above 0.
        lr_max: the last one, above ``lr_min``.
        steps: how many, at least 10.
        divergence: the test ends where the loss, averaged over about five steps, has risen above
            the lowest so far by more than this many times what it had fallen from the first; or is
            not finite. Above 0.
        plot: where to write the losses over the learning rates, as one HTML file without network;
            needs plotly.

    Returns:
        The learning rates and losses, the suggestion and what it is from; ``print`` tells it.

    Raises:
        ValueError: an argument is out of range, the loss is not finite to begin with or not one
            number, or ``batches`` ends early and cannot begin again.

    Source: Smith 2017, arXiv 1506.01186, section 3.3.
    """
    _check(optimizer, lr_min, lr_max, steps, divergence)
    factor = (lr_max / lr_min) ** (1 / (steps - 1))
    lrs = [lr_min * factor**step for step in range(steps)]
    with undone(model, optimizer), torch.enable_grad():
        losses, diverged = _sweep(optimizer, loss_of_batch, batches, lrs, divergence)
    found = _result(lrs[: len(losses)], losses, diverged)
    if plot is not None:
        found.plot(plot)
    return found


def _sweep(
    optimizer: Optimizer,
    loss_of_batch: Callable[[Any], Tensor],
    batches: Iterable[Any],
    lrs: Sequence[float],
    divergence: float,
) -> tuple[list[float], float | None]:
    """The losses, and the learning rate at which they left their bounds."""
    losses: list[float] = []
    ratios = _ratios(optimizer)
    lowest = smooth = math.inf
    for lr, batch in zip(lrs, _endless(batches), strict=False):
        _set_lr(optimizer, [lr * ratio for ratio in ratios])
        optimizer.zero_grad()
        loss = loss_of_batch(batch)
        value = _value(loss)
        if not math.isfinite(value):
            if not losses:
                raise ValueError(
                    f"the loss is {value} before any step: it must be finite; check model and "
                    "batches"
                )
            return losses, lr
        losses.append(value)
        smooth = value if len(losses) == 1 else _SMOOTHING * smooth + (1 - _SMOOTHING) * value
        lowest = min(lowest, smooth)
        # Where it has not fallen yet, a fall of a tenth is the measure.
        fall = max(losses[0] - lowest, 0.1 * abs(losses[0]))
        if smooth > lowest + divergence * fall:
            return losses, lr
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return losses, None


def _check(
    optimizer: Optimizer, lr_min: float, lr_max: float, steps: int, divergence: float
) -> None:
    if not 0 < lr_min < lr_max < math.inf:
        raise ValueError(
            f"lr_min must be above 0 and below lr_max, got lr_min={lr_min!r} and lr_max={lr_max!r}"
        )
    if steps < _LEAST_STEPS:
        raise ValueError(f"steps must be at least {_LEAST_STEPS}, got {steps!r}")
    if not divergence > 0:
        raise ValueError(f"divergence must be above 0, got {divergence!r}")
    if not all("lr" in group for group in optimizer.param_groups):
        raise ValueError(
            f"{type(optimizer).__name__} has groups without lr: there is nothing to test"
        )


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    count = 0
    while True:
        before = count
        for batch in batches:
            count += 1
            yield batch
        if count == before:
            raise ValueError(
                f"batches ended after {count} and cannot begin again: give at least as many as "
                "steps, or what can be iterated more than once, such as a list or a DataLoader"
            )


def _ratios(optimizer: Optimizer) -> list[float]:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    largest = max(rates)
    return [rate / largest if largest > 0 else 1.0 for rate in rates]


def _set_lr(optimizer: Optimizer, rates: Sequence[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            with torch.no_grad():
                group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _value(loss: Any) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(
            f"loss_of_batch must return a tensor of one element, got {got[:80]}; take its mean"
        )
    return float(loss.detach())


def _result(lrs: list[float], losses: list[float], diverged: float | None) -> LRRange:
    steepest = suggestion = None
    fastest = _fastest_fall(np.array(losses))
    if fastest is not None and min(losses) < losses[0]:
        steepest = lrs[fastest]
        suggestion = steepest if diverged is None else min(steepest, _SAFE * diverged)
    return LRRange(lrs, losses, suggestion, steepest, diverged)


def _fastest_fall(losses: NDArray[np.float64]) -> int | None:
    """The step at which a straight line through those around it falls most, None if none does.

    Only once their height has come down by a tenth of what it will: before, while it is flat, what
    falls is the difference between batches.
    """
    reach = max(len(losses) // 20, 2)
    if len(losses) <= 2 * reach:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(losses, 2 * reach + 1)
    heights, slopes = windows.mean(1), windows @ np.arange(-reach, reach + 1)
    fallen = heights <= heights[0] - _FALLEN * (heights[0] - heights.min())
    if heights.min() >= heights[0] or slopes[fallen].min() >= 0:
        return None
    return reach + int(np.where(fallen, slopes, np.inf).argmin())
