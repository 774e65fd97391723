"""The multilayer perceptron: its weights, its evaluation, and the sizes of its updates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_ROWS = 4096  # evaluated at once
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 40


class MLP(nn.Module):
    """Linear layers with rectifiers between them.

    Args:
        widths: of the input, the hidden layers and the output.
        seed: of the initial weights, which are He et al.'s (2015); the biases are zero.
    """

    def __init__(self, widths: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in pairwise(widths))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.linear_layers():
            bound = math.sqrt(6 / layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.uniform_(layer.weight, -bound / 10, bound / 10, generator=generator)

    def linear_layers(self) -> Iterator[nn.Linear]:
        """The layers, from input to output."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            yield layer

    def forward(self, features: Tensor) -> Tensor:
        """Rows of features to rows of outputs."""
        *hidden, last = self.layers
        for layer in hidden:
            features = functional.relu(layer(features))
        outputs: Tensor = last(features)
        return outputs


def loss_of(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy where targets are classes, mean squared error where they are numbers."""
    if targets.dtype == torch.int64:
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
    return functional.mse_loss(outputs[:, 0], targets)


@torch.no_grad()
def predict(model: nn.Module, features: Tensor) -> Tensor:
    """The outputs of all rows, in pieces that fit in memory."""
    return torch.cat([model(rows) for rows in torch.split(features, _ROWS)])


def score_of(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy where targets are classes, the coefficient of determination where numbers."""
    if targets.dtype == torch.int64:
        return float((outputs.argmax(1) == targets).double().mean())
    values = targets.double()
    errors = float(((outputs[:, 0].double() - values) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    return 1 - errors / total if total else float(errors == 0)


@dataclass(frozen=True)
class UpdateSizes:
    """log10 of the sizes of the updates that one step made to one layer."""

    name: str
    quantiles: list[float]
    """5, 25, 50, 75 and 95 %; empty if no weight changed."""
    edges: list[float]
    counts: list[int]


class UpdateWatch:
    """Measures one step: remembers the weights before it."""

    def __init__(self, model: MLP) -> None:
        self._model = model
        self._before = _layer_vectors(model)

    def sizes(self) -> list[UpdateSizes]:
        """The sizes of the updates since."""
        after = _layer_vectors(self._model)
        return [
            _update_sizes(f"layer {number}", (new - old).abs())
            for number, (old, new) in enumerate(zip(self._before, after, strict=True), start=1)
        ]


def _layer_vectors(model: MLP) -> list[Tensor]:
    return [
        torch.cat([layer.weight.detach().flatten(), layer.bias.detach()])
        for layer in model.linear_layers()
    ]


def _update_sizes(name: str, updates: Tensor) -> UpdateSizes:
    values: np.ndarray[Any, Any] = updates.cpu().double().numpy()
    changed = values[values > 0]
    if not changed.size:
        return UpdateSizes(name, [], [], [])
    logs = np.log10(changed)
    counts, edges = np.histogram(logs, _BINS)
    return UpdateSizes(
        name, np.quantile(logs, _QUANTILES).tolist(), edges.tolist(), counts.tolist()
    )
