"""The report of a search as one self-contained page: history, importance, slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from . import page
from .files import write_text
from .progress import score_text
from .search import Search
from .space import DEFAULTS
from .study import Study

_MOST_ROWS = 10
_LEAST_TRIALS = 8  # with a loss, to say what mattered


def write_report(path: Path, search: Search, study: Study, result: dict[str, Any]) -> None:
    """Writes the page; a file that is there is replaced at once or not at all."""
    write_text(path, report_page(search, study, result))


def report_page(search: Search, study: Study, result: dict[str, Any]) -> str:
    """The page as HTML.

    Args:
        search: what was searched for.
        study: its trials, one of which has a loss.
        result: what ``best.json`` holds.
    """
    plots: dict[str, page.Figure] = {}
    body = [
        page.cards(_headline(search, study, result)),
        _to_paste(result),
        _history(study, plots),
        _importance(search, study, plots),
        _slices(search, study, plots),
        _best(search, study),
    ]
    subtitle = f"adamas search of hyperparameters, {study.done} trials"
    return page.document(search.name, subtitle, body, plots)


def _headline(search: Search, study: Study, result: dict[str, Any]) -> list[tuple[str, str]]:
    name, default = search.score_name, result["default"]
    cards = [("best loss", f"{result['loss']:.4g}")]
    if default:
        cards.append(("loss of the default", f"{default['loss']:.4g}"))
    if result["score"] is not None:
        cards.append((f"{name} of the best", score_text(name, result["score"])))
        if default:
            cards.append((f"{name} of the default", score_text(name, default["score"])))
    completed = len(study.completed)
    cards += [("trials to the end", f"{completed}"), ("stopped early", f"{study.done - completed}")]
    failed = sum(trial.user_attrs.get("how") == "failed" for trial in study.trials)
    return [*cards, ("failed", f"{failed}")] if failed else cards


def _to_paste(result: dict[str, Any]) -> str:
    lines = [result[name] for name in ("command", "code") if name in result]
    rows = [(f"<code>{escape(line)}</code>",) for line in lines]
    note = page.muted(
        "Of many losses on the same validation rows the lowest is partly luck: a gain that is to "
        "be relied on shows on other rows, or with other seeds."
    )
    return page.section(f"Best settings, of trial {result['trial']}", page.table((), rows), note)


def _history(study: Study, plots: dict[str, page.Figure]) -> str:
    completed = sorted(study.completed, key=lambda trial: trial.number)
    early = [t for t in study.trials if t.state == TrialState.PRUNED and t.intermediate_values]
    last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in early]
    cap = _cap(study)
    lowest = list(accumulate((_loss(trial) for trial in completed), min))
    plots["history"] = {
        "data": [
            _points(early, [t.number + 1 for t in early], last, cap, "peer"),
            _points(
                completed, [t.number + 1 for t in completed], _losses(completed), cap, "accent"
            ),
            {
                "type": "scatter",
                "mode": "lines",
                "x": [trial.number + 1 for trial in completed],
                "y": [min(value, cap) for value in lowest],
                "line": {"color": page.theme("rival"), "width": 2, "shape": "hv"},
                "hoverinfo": "skip",
            },
        ],
        "layout": page.layout(
            300,
            hovermode="closest",
            xaxis=page.axis("trial", tickformat=",d", showgrid=False),
            yaxis=page.axis("loss", tickformat="~g"),
        ),
        "aspect": 0.8,
    }
    return page.section(
        "History",
        page.key(("accent", "loss"), ("peer", "loss where it was stopped"), ("rival", "lowest")),
        page.plot("history", "Loss of each trial, and the lowest so far"),
        _about_cap(cap, [*last, *_losses(completed)]),
    )


def _importance(search: Search, study: Study, plots: dict[str, page.Figure]) -> str:
    found = importance(search, study)
    title = "What mattered"
    if not found:
        few = f"Too few trials to say: {_LEAST_TRIALS} must have a loss, and losses must differ."
        return page.section(title, page.muted(few))
    names = sorted(found, key=lambda name: found[name])
    plots["importance"] = {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "x": [found[name] for name in names],
                "y": [name.replace("_", " ") for name in names],
                "marker": {"color": page.theme("accent"), "line": {"width": 0}},
                "text": [f"{100 * found[name]:.0f} %" for name in names],
                "textposition": "auto",
                "hoverinfo": "skip",
            }
        ],
        "layout": page.layout(
            60 + 36 * len(names),
            bargap=0.35,
            xaxis=page.axis(tickformat=".0%", rangemode="tozero", showgrid=False),
            yaxis=page.axis(showgrid=False),
        ),
    }
    about = page.muted(
        "How much of the order of the trials each hyperparameter explains, within what was tried "
        "(functional ANOVA of a random forest, of the trials that went to the end)."
    )
    return page.section(title, about, page.plot("importance", "Importance of hyperparameters"))


def importance(search: Search, study: Study) -> dict[str, float]:
    """The share of each hyperparameter in the order of the trials, if there are enough of them."""
    trials = study.completed
    names = [name for name, (low, high) in search.space.ranges.items() if low < high]
    losses = np.array(_losses(trials))
    if len(trials) < _LEAST_TRIALS or not names or np.ptp(losses) == 0:
        return {}
    # Of ranks: a loss of a thousand would be all that there is to explain. No weight decay counts
    # as a decade below the least, so that it stands on the same axis.
    values = [_coordinates(search, trial) for trial in trials]
    plain = optuna.create_study()
    for rank, point in zip(np.argsort(np.argsort(losses)), values, strict=True):
        plain.add_trial(
            optuna.trial.create_trial(
                params={name: point[name] for name in names},
                distributions={
                    name: optuna.distributions.FloatDistribution(
                        min(p[name] for p in values) - 1e-9, max(p[name] for p in values) + 1e-9
                    )
                    for name in names
                },
                value=float(rank),
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(plain, evaluator=evaluator))


def _coordinates(search: Search, trial: FrozenTrial) -> dict[str, float]:
    """Where a trial is, as decimal logarithms."""
    point = {}
    for name, value in search.space.values(trial.params).items():
        shown = _shown(search, name, value)
        point[name] = math.log10(shown) if shown > 0 else 0.0
    return point


def _shown(search: Search, name: str, value: float) -> float:
    """A value as it is on a logarithmic axis."""
    if name in ("beta1", "beta2"):
        return 1 - value
    return value or search.space.ranges[name][0] / 10


def _slices(search: Search, study: Study, plots: dict[str, page.Figure]) -> str:
    cap = _cap(study)
    panels = []
    for name, (low, high) in search.space.ranges.items():
        if low < high:
            plots[f"slice-{name}"] = _slice(search, study, name, cap)
            title = f"1 - {name}" if name.startswith("beta") else name.replace("_", " ")
            place = page.plot(f"slice-{name}", f"Loss over {title}")
            panels.append(f"<h3>{escape(title)}</h3>{place}")
    return page.section(
        "Slices",
        page.key(("accent", "trial"), ("rival", "best"), ("second", "default (dotted)")),
        page.grid("17rem", panels),
        _about_cap(cap, _losses(study.completed)),
    )


def _slice(search: Search, study: Study, name: str, cap: float) -> page.Figure:
    trials = study.completed
    x = [_shown(search, name, search.space.values(t.params)[name]) for t in trials]
    default = _shown(search, name, DEFAULTS[name])
    best = _points(trials[:1], x[:1], _losses(trials[:1]), cap, "rival")
    best["marker"]["size"] = 12
    ends = [_shown(search, name, end) for end in search.space.ranges[name]]
    low, high = min(*ends, *x), max(*ends, *x)
    ticks: dict[str, Any] = {"dtick": 1 if high < 1e4 * low else 2, "exponentformat": "power"}
    if name == "weight_decay" and 0 in [search.space.values(t.params)[name] for t in trials]:
        decades = range(math.ceil(math.log10(ends[0])), math.floor(math.log10(high)) + 1)
        ticks = {
            "tickvals": [low, *(10.0**k for k in decades)],
            "ticktext": ["0", *(f"10<sup>{k}</sup>" for k in decades)],
        }
    room = 0.06 * math.log10(high / low)
    span = [math.log10(low) - room, math.log10(high) + room]
    shapes = []
    if low <= default <= high:
        line = {"color": page.theme("second"), "dash": "dot", "width": 1.5}
        ordinate = {"yref": "paper", "y0": 0, "y1": 1}
        shapes = [{"type": "line", "x0": default, "x1": default, "line": line, **ordinate}]
    return {
        "data": [_points(trials, x, _losses(trials), cap, "accent"), best],
        "layout": page.layout(
            230,
            hovermode="closest",
            shapes=shapes,
            xaxis=page.axis(type="log", range=span, showgrid=False, **ticks),
            yaxis=page.axis(tickformat="~g"),
        ),
    }


def _points(
    trials: Sequence[FrozenTrial],
    x: Sequence[float],
    losses: Sequence[float],
    cap: float,
    colour: str,
) -> page.Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": [min(loss, cap) for loss in losses],
        "marker": {
            "size": 8,
            "color": page.theme(colour),
            "symbol": ["circle" if loss <= cap else "triangle-up-open" for loss in losses],
        },
        "customdata": [
            f"trial {trial.number + 1}, loss {loss:.4g}"
            for trial, loss in zip(trials, losses, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _cap(study: Study) -> float:
    """The largest loss that is drawn as it is, so that a bad one does not flatten the others."""
    losses = np.array(_losses(study.completed))
    first = study.first
    middle = max(float(np.quantile(losses, 0.75)), _loss(first) if first else -math.inf)
    lowest = float(losses.min())
    return max(middle + 0.5 * (middle - lowest), lowest + 1e-12)


def _about_cap(cap: float, losses: Sequence[float]) -> str:
    above = sum(loss > cap for loss in losses)
    return page.muted(f"Triangles are losses above {cap:.3g}: {above}.") if above else ""


def _best(search: Search, study: Study) -> str:
    rows = []
    for trial in study.completed[:_MOST_ROWS]:
        score = trial.user_attrs.get("score")
        values = search.space.values(trial.params)
        rows.append(
            (
                f"trial {trial.number + 1}" + (" (default)" if trial is study.first else ""),
                f"{trial.value:.4g}",
                *([] if score is None else [score_text(search.score_name, score)]),
                *(f"{value:.6g}" for value in values.values()),
                f"{trial.user_attrs.get('seconds', math.nan):.1f}",
            )
        )
    names = [name.replace("_", " ") for name in search.space.ranges]
    scores = [search.score_name] if search.score_name else []
    return page.section("The best", page.table(("", "loss", *scores, *names, "seconds"), rows))


def _losses(trials: Sequence[FrozenTrial]) -> list[float]:
    return [_loss(trial) for trial in trials]


def _loss(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
