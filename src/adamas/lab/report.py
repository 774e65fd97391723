"""The report of a training run as one self-contained page."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import isfinite, log10, nan
from pathlib import Path

import numpy as np

from . import curves, outcomes, page
from .files import write_text

_MOST_ROWS = 100
_MOST_CONFUSIONS = 8
_MOST_POINTS = 3000


@dataclass(frozen=True)
class LayerUpdates:
    """Sizes of one layer's updates, ``log10(|new - old|)`` of the weights that changed."""

    name: str
    epochs: list[int]
    quantiles: list[list[float]]  # for each epoch at 5, 25, 50, 75 and 95 %
    edges: list[float]  # of the histogram of the last epoch
    counts: list[int]


@dataclass(frozen=True)
class Report:
    """What a report shows."""

    title: str
    classification: bool
    headline: list[tuple[str, str]]  # label, value
    # Each: epoch, train_loss, validation_loss, train_score, validation_score, learning_rate,
    # seconds (since the start), samples_per_second.
    epochs: list[dict[str, float]]
    score_name: str  # "accuracy" or "R²"
    updates: list[LayerUpdates]
    classes: list[str]  # of a classification, else empty
    confusion: list[list[int]]  # a row for each true class
    targets: list[float]  # of a regression, else empty
    predictions: list[float]
    settings: list[tuple[str, str]]


def write_report(path: Path, report: Report) -> None:
    """Writes the page; a file that is there is replaced at once or not at all."""
    write_text(path, report_page(report))


def report_page(report: Report) -> str:
    """The page as HTML."""
    plots: dict[str, page.Figure] = {}
    body = [
        page.cards(report.headline),
        _learning(report, plots),
        _updates(report, plots),
        _confusion(report, plots),
        _residuals(report, plots),
        _settings(report),
    ]
    kind = "regression"
    if report.classification:
        kind = f"classification into {len(report.classes)} classes"
    return page.document(report.title, f"adamas training report, {kind}", body, plots)


def _learning(report: Report, plots: dict[str, page.Figure]) -> str:
    if not report.epochs:
        return page.section("Learning", page.muted("No epoch was finished."))
    panels = [
        _curves(report, plots, "loss", "loss"),
        _curves(report, plots, "score", report.score_name),
    ]
    return page.section(
        "Learning",
        page.key(("second", "training"), ("accent", "validation")),
        _not_finite(report, "training", "train_loss"),
        _not_finite(report, "validation", "validation_loss"),
        page.grid("22rem", panels),
        page.details("All epochs", _epoch_table(report)),
    )


def _curves(report: Report, plots: dict[str, page.Figure], part: str, name: str) -> str:
    title = f"<h3>{escape(name[:1].upper() + name[1:])}</h3>"
    keys = (f"train_{part}", f"validation_{part}")
    if not any(isfinite(epoch.get(key, nan)) for epoch in report.epochs for key in keys):
        return title + page.muted("No value is finite.")
    best = min if part == "loss" else max
    percent = part == "score" and _in_percent(report)
    plots[part] = curves.curves(report.epochs, part, best, percent)
    note = ""
    found = curves.best_epoch(report.epochs, keys[1], best)
    if found:
        value = found[keys[1]]
        text = _score(report, value) if part == "score" else f"{value:.4g}"
        note = page.muted(f"Best validation: {text} in epoch {found['epoch']:,.0f}")
    return title + note + page.plot(part, f"{name} over the epochs")


def _not_finite(report: Report, name: str, key: str) -> str:
    epochs = [e["epoch"] for e in report.epochs if not isfinite(e.get(key, nan))]
    if not epochs:
        return ""
    when = f"in epoch {epochs[0]:,.0f}"
    if len(epochs) > 1:
        when = f"in {len(epochs):,} epochs, first in epoch {epochs[0]:,.0f}"
    return page.alarm(f"The {name} loss is not finite {when}.")


def _score(report: Report, value: float) -> str:
    return f"{100 * value:.1f} %" if _in_percent(report) else f"{value:.4g}"


def _in_percent(report: Report) -> bool:
    return report.score_name == "accuracy"


def _epoch_table(report: Report) -> str:
    score = report.score_name
    headers = (
        *("epoch", "training loss", "validation loss", f"training {score}", f"validation {score}"),
        *("learning rate", "seconds", "samples/s"),
    )
    rows = [
        (
            f"{e['epoch']:,.0f}",
            f"{e.get('train_loss', nan):.4g}",
            f"{e.get('validation_loss', nan):.4g}",
            _score(report, e.get("train_score", nan)),
            _score(report, e.get("validation_score", nan)),
            f"{e.get('learning_rate', nan):.3g}",
            f"{e.get('seconds', nan):.1f}",
            f"{e.get('samples_per_second', nan):,.0f}",
        )
        for e in curves.thin(report.epochs, _MOST_ROWS)
    ]
    note = ""
    if len(report.epochs) > _MOST_ROWS:
        note = page.muted(f"{_MOST_ROWS} of {len(report.epochs):,} epochs, evenly spaced.")
    return note + page.table(headers, rows)


def _updates(report: Report, plots: dict[str, page.Figure]) -> str:
    layers = [layer for layer in report.updates if layer.quantiles]
    if not layers:
        return page.section("Updates", page.muted("No weight has changed."))
    rates = [e.get("learning_rate", 0.0) for e in report.epochs]
    ends = curves.update_range(layers, [log10(rate) for rate in rates if 0 < rate < np.inf])
    panels = []
    for index, layer in enumerate(layers):
        plots[f"updates-{index}"] = curves.layer_updates(layer, report.epochs, ends)
        title = f"<h3>{escape(page.clip(layer.name, 60))}</h3>"
        panels.append(
            title + page.plot(f"updates-{index}", f"Sizes of the updates of {layer.name}")
        )
    return page.section(
        "Updates",
        page.muted(
            "How far one step moves a weight: about the learning rate where the gradients of many "
            "steps agree, and much less where they cancel; a band that lies far below the learning "
            "rate, or falls away from it, is a layer with little left to learn."
        ),
        page.key(
            ("accent", "median, middle half and 5 to 95 %"),
            ("rival", "learning rate (dotted)"),
        ),
        page.grid("17rem", panels),
    )


def _confusion(report: Report, plots: dict[str, page.Figure]) -> str:
    classes, counts = report.classes, report.confusion
    if not classes or not counts:
        return ""
    plots["confusion"] = outcomes.confusion(classes, counts)
    errors = sorted(
        (
            (count, i, j)
            for i, row in enumerate(counts)
            for j, count in enumerate(row)
            if count and i != j
        ),
        key=lambda found: (-found[0], found[1:]),
    )
    rows = [
        (
            escape(page.clip(classes[i], 30)),
            escape(page.clip(classes[j], 30)),
            f"{count:,}",
            f"{100 * count / sum(counts[i]):.1f} %",
        )
        for count, i, j in errors[:_MOST_CONFUSIONS]
    ]
    most = page.muted("No error.")
    if rows:
        most = page.table(("true", "predicted", "rows", "share"), rows, kind="names")
    title = "Most frequent errors" if len(errors) > len(rows) else "Errors"
    wrong, total = sum(count for count, _, _ in errors), sum(map(sum, counts))
    return page.section(
        "Confusion matrix",
        page.muted(
            f"{wrong:,} of {total:,} validation rows are classified wrongly. The stronger a "
            "colour, the larger the share of the true class."
        ),
        page.key(("accent", "right"), ("rival", "wrong")),
        page.grid(
            "21rem" if len(classes) <= 24 else "100%",
            [
                page.plot("confusion", "Confusion matrix: true class by predicted class"),
                f"<h3>{title}</h3>{most}" + page.details("Each class", _class_table(report)),
            ],
        ),
    )


def _class_table(report: Report) -> str:
    counts = report.confusion
    found = [sum(row[j] for row in counts) for j in range(len(report.classes))]
    rows = [
        (
            escape(page.clip(name, 30)),
            f"{sum(counts[k]):,}",
            _share(counts[k][k], sum(counts[k])),
            _share(counts[k][k], found[k]),
        )
        for k, name in enumerate(report.classes)
    ]
    return page.table(("class", "rows", "recall", "precision"), rows)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _residuals(report: Report, plots: dict[str, page.Figure]) -> str:
    if not report.targets:
        return ""
    pairs = np.array([report.targets, report.predictions], dtype=float)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(pairs[1] - pairs[0])
    if not finite.any():
        return page.section("Predictions", page.muted("No prediction is finite."))
    targets, predictions = pairs[:, finite]
    errors = predictions - targets
    some = curves.thin(range(len(errors)), _MOST_POINTS)
    plots["predicted"] = outcomes.predicted(targets[some], predictions[some])
    plots["residuals"] = outcomes.residuals(errors)
    low, middle, high = np.quantile(errors, [0.25, 0.5, 0.75])
    lost = len(finite) - len(errors)
    return page.section(
        "Predictions",
        page.muted(
            f"Half of the predictions are off by {page.number(low)} to {page.number(high)}, the "
            f"median is off by {page.number(middle)}. On the dotted line a prediction is right."
        ),
        page.alarm(f"Not finite: {lost:,} of {len(finite):,} predictions.") if lost else "",
        page.grid(
            "21rem",
            [
                page.plot("predicted", "Predictions over true values"),
                page.plot("residuals", "Histogram of predicted minus true"),
            ],
        ),
    )


def _settings(report: Report) -> str:
    rows = [(escape(name), escape(value)) for name, value in report.settings]
    if not rows:
        return ""
    half = (len(rows) + 1) // 2 if len(rows) > 8 else len(rows)
    tables = [page.table((), part, kind="plain") for part in (rows[:half], rows[half:]) if part]
    return page.section("Settings", page.grid("20rem", tables))
