"""What a finished run gives: the weights, and the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import TrainingError
from .model import predict
from .progress import score_text
from .report import LayerUpdates, Report, write_report
from .run import Run
from .target import Classes, Value
from .training import Metrics

_MOST_POINTS = 5000


def write_results(run: Run) -> None:
    """Writes the model and the report of a run, from what its checkpoint and metrics hold.

    Raises:
        UserError: the metrics are damaged.
        TrainingError: a file cannot be written.
    """
    with run.folder.damaged(run.folder.metrics):
        report = make_report(run)
    try:
        run.folder.save_model(run.trainer)
        write_report(run.folder.report, report)
    except OSError as error:
        raise TrainingError(
            f"the results in {run.folder.path} cannot be written ({error.strerror}): "
            f"correct that, then write them with: {run.folder.resume_command}"
        ) from None


def make_report(run: Run) -> Report:
    """The report's content."""
    metrics = run.folder.load_metrics()
    data, target = run.trainer.data, run.task.target
    outputs = predict(run.trainer.model, data.validation_features).cpu()
    truth = data.validation_targets.cpu()
    confusion: list[list[int]] = []
    targets: list[float] = []
    predictions: list[float] = []
    if isinstance(target, Classes):
        pairs = truth * target.outputs + outputs.argmax(1)
        square = torch.bincount(pairs, minlength=target.outputs**2)
        confusion = square.view(target.outputs, target.outputs).tolist()
    else:
        some = np.unique(np.linspace(0, len(truth) - 1, _MOST_POINTS).round().astype(int))
        targets = target.decode(truth.numpy()[some]).tolist()
        predictions = target.decode(outputs.numpy()[some, 0]).tolist()
    return Report(
        title=run.task.name,
        classification=isinstance(target, Classes),
        headline=_headline(run, metrics),
        epochs=[{k: v for k, v in epoch.items() if k != "updates"} for epoch in metrics],
        score_name=target.score_name,
        updates=_layer_updates(metrics),
        classes=list(target.classes) if isinstance(target, Classes) else [],
        confusion=confusion,
        targets=targets,
        predictions=predictions,
        settings=_settings(run),
    )


def _headline(run: Run, metrics: list[Metrics]) -> list[tuple[str, str]]:
    last, target = metrics[-1], run.task.target
    rows = run.settings["rows"]
    weights = sum(parameter.numel() for parameter in run.trainer.model.parameters())
    scores = [
        (f"{part} {target.score_name}", score_text(target.score_name, last[f"{key}_score"]))
        for part, key in (("validation", "validation"), ("training", "train"))
    ]
    if isinstance(target, Value):
        error = last["validation_loss"] ** 0.5 * target.scale
        scores.append(("validation error (root mean square)", f"{error:.4g}"))
    return [
        *scores,
        ("epochs", f"{len(metrics)}"),
        ("training time", f"{last['seconds']:.1f} s"),
        ("training rows", f"{rows['training']:,}"),
        ("validation rows", f"{rows['validation']:,}"),
        ("weights", f"{weights:,}"),
    ]


def _layer_updates(metrics: list[Metrics]) -> list[LayerUpdates]:
    layers: list[LayerUpdates] = []
    for series in zip(*(epoch["updates"] for epoch in metrics), strict=True):
        measured = [
            (epoch["epoch"], sizes)
            for epoch, sizes in zip(metrics, series, strict=True)
            if sizes["quantiles"]
        ]
        if measured:
            last = measured[-1][1]
            layers.append(
                LayerUpdates(
                    name=last["name"],
                    epochs=[epoch for epoch, _ in measured],
                    quantiles=[sizes["quantiles"] for _, sizes in measured],
                    edges=last["edges"],
                    counts=last["counts"],
                )
            )
    return layers


def _settings(run: Run) -> list[tuple[str, str]]:
    settings: dict[str, Any] = run.settings
    data = run.task.path or f"{run.task.name} (scikit-learn)"
    rows = {"data": data, "target": run.task.target.name, "kind": run.task.target.kind}
    if run.task.drop:
        rows["columns left out"] = ", ".join(run.task.drop)
    for name, value in {**settings["options"], **settings["software"]}.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        rows[name.replace("_", " ")] = text
    return list(rows.items())
