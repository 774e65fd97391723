"""Prediction with a trained model, from its weights and settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import UserError
from .columns import encode_columns
from .data import read_table
from .folder import RunFolder
from .model import MLP, predict, score_of
from .run import Task
from .target import Classes


@dataclass(frozen=True)
class Prediction:
    """The rows' predictions."""

    frame: pd.DataFrame
    """Class and probability, or value; as many rows as the data, in their order."""
    score_name: str
    score: float | None
    """Where the data have a target."""
    scored: int
    """Rows that have one."""


def predict_csv(run: Path, path: Path) -> Prediction:
    """Predicts the rows of a CSV file.

    Args:
        run: the folder of a run.
        path: a CSV file with the columns that the model was trained with, in any order.

    Raises:
        UserError: the run or the file cannot be used.
    """
    folder = RunFolder(run)
    settings = folder.load_settings()
    with folder.damaged(folder.settings):
        task = Task.from_json(settings)
        model = _load_model(folder, task)
        texts = task.text_columns
    table = read_table(path, texts)
    with folder.damaged(folder.settings):
        features = torch.from_numpy(encode_columns(task.columns, table.frame))
        outputs = predict(model, features)
        score, scored = _score(task, table.frame, outputs)
        return Prediction(_to_frame(task, outputs), task.target.score_name, score, scored)


def _load_model(folder: RunFolder, task: Task) -> MLP:
    weights = folder.load_model()
    layers = [tensor for name, tensor in weights.items() if name.endswith(".weight")]
    try:
        layers = [weights[f"layers.{number}.weight"] for number in range(len(layers))]
        model = MLP([layers[0].shape[1], *(layer.shape[0] for layer in layers)])
        model.load_state_dict(weights)
    except (KeyError, IndexError, RuntimeError):
        raise UserError(
            f"{folder.model} is not of an adamas run: restore the run's own, or train again"
        ) from None
    width = encode_columns(task.columns, _no_rows(task)).shape[1]
    if layers[0].shape[1] != width or layers[-1].shape[0] != task.target.outputs:
        raise UserError(
            f"{folder.model} does not fit {folder.settings.name}: restore the run's own files"
        )
    return model


def _no_rows(task: Task) -> pd.DataFrame:
    return pd.DataFrame({column.name: pd.Series([], dtype=str) for column in task.columns})


def _to_frame(task: Task, outputs: torch.Tensor) -> pd.DataFrame:
    target = task.target
    if isinstance(target, Classes):
        probability, best = outputs.softmax(1).max(1)
        classes = np.array(target.classes, dtype=object)[best.numpy()]
        beside = "probability" if target.name != "probability" else "class_probability"
        return pd.DataFrame({target.name: classes, beside: probability.numpy()})
    return pd.DataFrame({target.name: target.decode(outputs[:, 0].numpy())})


def _score(task: Task, frame: pd.DataFrame, outputs: torch.Tensor) -> tuple[float | None, int]:
    name = task.target.name
    if name not in frame:
        return None, 0
    present = frame[name].notna().to_numpy()
    if not present.any():
        return None, 0
    targets = torch.from_numpy(task.target.encode(frame.loc[present, name]))
    return score_of(outputs[torch.tensor(present)], targets), int(present.sum())
