"""Figures of a race: losses, steps, learning rates and paths; and of two claims of the theory."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite, log10
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .arenas import SurfaceArena, marks
from .page import Figure, axis, layout, theme
from .race import Race, Result, quartiles
from .racers import Racer
from .surfaces import Surface
from .theory import SCALES, STEEPNESS, advances, scaled_updates

MOST_STARTS = 3  # of a surface, that are shown
_MOST_FRAMES, _ALL_FRAMES = 110, 720  # of a path, of one racer and of all
_MOST_POINTS, _ALL_POINTS = 64, 380  # of a curve, likewise
_GRID = 75  # of a surface, each way
_STILL = 1e-8  # of the largest update; less is not seen
_ROOM = 0.2  # of a surface's box, beside it, for paths that leave it
_LEAST = 1e-12  # of the loss at the start; less is drawn as that
_DASHES = {"float32": "solid", "bfloat16": "dashdot", "int8": "dash", "int4": "dot"}


def colour(racer: Racer) -> str:
    """The name of a racer's colour: that of its rule."""
    return f"rule-{racer.rule.name}"


def stroke(racer: Racer) -> Figure:
    """A racer's line: the format of its moments is in the dashes."""
    width, dash = (2.25, _DASHES[racer.moments]) if not racer.theirs else (1.5, "longdashdot")
    return {"color": theme(colour(racer)), "width": width, "dash": dash}


def race_figures(race: Race) -> dict[str, Figure]:
    """The figures of an arena, by the names of their places."""
    steps = [result.runs.at for result in race.results]
    seconds = [quartiles(result.runs.seconds[0].T)[1] for result in race.results]
    figures = {
        "loss": _losses(race, "step", steps),
        "seconds": _losses(race, "seconds", seconds),
        "updates": _updates(race),
        "sweep": _sweep(race),
    }
    if isinstance(race.arena, SurfaceArena):
        figures["path"] = _path(race, race.arena.surface)
    return figures


def frames(race: Race) -> list[int]:
    """The places of the measurements that a path shows: fewer of each racer where many race."""
    return _places(race, _MOST_FRAMES, _ALL_FRAMES)


def _points(race: Race) -> list[int]:
    return _places(race, _MOST_POINTS, _ALL_POINTS)


def _places(race: Race, most: int, of_all: int) -> list[int]:
    count = len(race.results[0].runs.at)
    some = marks(count - 1, min(most, max(of_all // len(race.results), 12)))
    return [int(place) for place in some]


def paths(race: Race) -> list[list[list[list[float]]]]:
    """Where each racer was from each start: x and y of each frame."""
    some = frames(race)
    return [
        [[_short(path[some, k]) for k in (0, 1)] for path in result.runs.paths[0][:MOST_STARTS]]
        for result in race.results
        if result.runs.paths is not None
    ]


def _short(values: ArrayLike, digits: int = 4) -> list[float]:
    """Values in few characters; what is not finite is null in the page."""
    rounded = [float(f"{value:.{digits}g}") for value in np.asarray(values, dtype=float).tolist()]
    return [int(value) if abs(value) < 1e9 and value.is_integer() else value for value in rounded]


def _losses(race: Race, against: str, places: Sequence[ArrayLike]) -> Figure:
    """The median of the seeds and their middle half, over steps or seconds."""
    some = _points(race)
    start = _start(race)
    traces: list[Figure] = []
    for index, (result, all_x) in enumerate(zip(race.results, places, strict=True)):
        low, median, high = quartiles(np.maximum(result.losses[:, some], _LEAST * start).T)
        clear = theme(colour(result.racer), 0)
        hidden: Figure = {"line": {"width": 0, "color": clear}, "hoverinfo": "skip"}
        fill: Figure = {"fill": "tonexty", "fillcolor": theme(colour(result.racer), 0.14)}
        x = np.asarray(all_x)[some]
        traces += [
            _line(index, x, low, **hidden),
            _line(index, x, high, **hidden, **fill),
            _line(index, x, median, result),
        ]
    # What leaves for good shall not flatten the others.
    seen = [y for y in _values(traces) if y <= 2 * start]
    target = {
        **{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": race.target, "y1": race.target},
        "line": {"color": theme("muted"), "width": 1.5, "dash": "dot"},
    }
    figure = _panel(traces, _over(against), _logarithmic(seen, "loss"))
    figure["layout"]["shapes"] = [target] if race.target > 0 else []
    if against == "seconds":  # each racer has its own
        figure["layout"].update(hovermode="closest", hoverdistance=30)
    return figure


def _start(race: Race) -> float:
    """The median loss at the start."""
    return float(np.median(race.results[0].losses[:, 0]))


def _line(
    index: int, x: ArrayLike, y: ArrayLike, result: Result | None = None, **more: Any
) -> Figure:
    """A curve of a racer; of its results, it has their colour and says whose it is."""
    line: Figure = {"type": "scatter", "mode": "lines", "meta": index}
    if result is not None:
        line["line"] = stroke(result.racer)
        line["hovertemplate"] = f"{result.racer.name} %{{y:.3~g}}<extra></extra>"
    return {**line, "x": _short(x), "y": _short(y, 3), **more}


def _values(traces: Sequence[Figure]) -> list[float]:
    """What is drawn, from bottom to top."""
    return [y for trace in traces for y in trace["y"] if isfinite(y)]


def _over(name: str) -> Figure:
    return axis(
        name,
        showgrid=False,
        tickformat="~g",
        rangemode="tozero",
        nticks=7,
        unifiedhovertitle={"text": f"{name} %{{x}}"},
    )


def _panel(traces: list[Figure], x: Figure, y: Figure) -> Figure:
    """One of the figures side by side."""
    shape = layout(320, hovermode="x unified", hoverdistance=-1, xaxis=x, yaxis=y)
    return {"data": traces, "layout": shape, "aspect": 0.85}


def _logarithmic(values: Sequence[float], title: str) -> Figure:
    """A logarithmic axis for positive values."""
    low, high = log10(min(values, default=1.0)), log10(max(values, default=1.0))
    room = 0.04 * (high - low) or 0.05
    decades = high - low
    if decades < 2:  # labels at 1, 2, 5, 10
        ticks: Figure = {"tickformat": "~g", "dtick": "D2" if decades > 0.2 else "D1"}
    else:
        ticks = {"exponentformat": "power", "dtick": ceil(decades / 7)}
    return axis(title, type="log", range=[low - room, high + room], **ticks)


def _updates(race: Race) -> Figure:
    """The root mean square of an update over its learning rate, the median of the seeds."""
    some = _points(race)[1:]
    traces = []
    for index, result in enumerate(race.results):
        moved = quartiles(result.runs.updates[0][:, some].T)[1]
        y = np.where(moved > 0, moved, np.nan)
        traces.append(_line(index, result.runs.at[some], y, result))
    values = _values(traces)
    seen = [value for value in values if value >= _STILL * max(values)]
    return _panel(traces, _over("step"), _logarithmic(seen, "update / lr"))


def _sweep(race: Race) -> Figure:
    """The median final loss over the learning rate; the best of each racer is larger."""
    start = _start(race)
    traces = []
    for index, result in enumerate(race.results):
        swept = np.array(result.swept)
        y = np.where(swept <= 3 * start, np.maximum(swept, _LEAST * start), np.nan)
        marker = {
            "size": [11 if lr == result.lr else 5 for lr in result.lrs],
            "color": theme(colour(result.racer)),
            "line": {"color": theme("card"), "width": 1},
        }
        hover = f"{result.racer.name}, lr %{{x:.2~g}}<br>loss %{{y:.3~g}}<extra></extra>"
        line = _line(index, result.lrs, y, result, marker=marker, mode="lines+markers")
        traces.append({**line, "hovertemplate": hover})
    x = axis("learning rate", type="log", dtick=1, exponentformat="power", showgrid=False)
    figure = _panel(traces, x, _logarithmic(_values(traces), "final loss"))
    figure["layout"].update(hovermode="closest", hoverdistance=20)
    return figure


def _path(race: Race, surface: Surface) -> Figure:
    """A surface's contours, with a line and a dot for each racer, which the page moves."""
    view = _view(race, surface)
    ends = [np.linspace(*pair, _GRID) for pair in view]
    x, y = torch.meshgrid(*map(torch.from_numpy, ends), indexing="xy")
    losses = surface.loss(x, y).numpy()
    # A floor, as a grid cannot tell how deep a narrow valley is.
    heights = np.log10(losses + 0.01 * np.median(losses))
    contours = {
        "type": "contour",
        **{"x": _short(ends[0]), "y": _short(ends[1])},
        "z": heights.round(2).tolist(),
        "colorscale": [[0, theme("hollow")], [1, theme("card")]],
        "ncontours": 24,
        "line": {"color": theme("peer"), "width": 0.4},
        "showscale": False,
        "hoverinfo": "skip",
    }
    minima = {
        **{"type": "scatter", "mode": "markers"},
        **{"x": [place[0] for place in surface.minima], "y": [p[1] for p in surface.minima]},
        "marker": {"symbol": "x-thin", "size": 9, "line": {"color": theme("text"), "width": 2}},
        "hovertemplate": "minimum<extra></extra>",
    }
    traces = [contours, minima]
    for index, result in enumerate(race.results):
        shared = {"type": "scatter", "x": [], "y": [], "meta": index}
        name = f"{result.racer.name}<extra></extra>"
        head = {
            **{"size": 11, "color": theme(colour(result.racer))},
            "line": {"color": theme("card"), "width": 1.5},
        }
        traces += [
            {**shared, "mode": "lines", "line": stroke(result.racer), "hovertemplate": name},
            {**shared, "mode": "markers", "marker": head, "hovertemplate": name},
        ]
    return {
        "data": traces,
        "layout": layout(
            460,
            hovermode="closest",
            xaxis=axis(range=list(view[0]), showgrid=False, nticks=6),
            yaxis=axis(range=list(view[1]), showgrid=False, nticks=6),
        ),
        "aspect": 0.9,
    }


def _view(race: Race, surface: Surface) -> list[tuple[float, float]]:
    """The ends of x and y: the surface's box, and more where paths that are shown leave it."""
    found = [
        result.runs.paths[0][:MOST_STARTS]
        for result in race.results
        if result.runs.paths is not None
    ]
    places = np.concatenate(found).reshape(-1, 2)
    view = []
    for (low, high), values in zip(surface.box, places.T, strict=True):
        most = _ROOM * (high - low)
        far = values[np.abs(values - (low + high) / 2) < most + (high - low) / 2]
        view.append((float(min(low, far.min())), float(max(high, far.max()))))
    return view


def scale_figure() -> Figure:
    """The size of an update over the loss's scale, on the same gradients."""
    lines: list[tuple[str, str, str, dict[str, Any]]] = [
        ("sgd", "gradient descent", "solid", {}),
        ("rmsprop", "RMSProp", "solid", {}),
        ("adam", "Adam, eps 1e-8", "solid", {}),
        ("adam", "Adam, eps 1e-3", "dot", {"eps": 1e-3}),
    ]
    traces = [
        {
            **{"type": "scatter", "mode": "lines+markers", "x": list(SCALES)},
            "y": _short(scaled_updates(rule, **settings), 6),
            "line": {"color": theme(f"rule-{rule}"), "dash": dash, "width": 2.25},
            "marker": {"size": 5},
            "hovertemplate": f"{name}<br>loss times %{{x}}, update times %{{y:.4~g}}"
            "<extra></extra>",
        }
        for rule, name, dash, settings in lines
    ]
    power = {"type": "log", "dtick": 2, "exponentformat": "power"}
    return {
        "data": traces,
        "layout": layout(
            330,
            hovermode="closest",
            xaxis=axis("loss times", showgrid=False, **power),
            yaxis=axis("update times", **power),
        ),
        "aspect": 0.85,
    }


def advance_figure(rule: str, lr: float) -> Figure:
    """What is left of two numbers' ways over the steps."""
    left = advances(rule, lr)
    traces = [
        {
            **{"type": "scatter", "mode": "lines", "y": _short(100 * left[:, k])},
            "line": {"color": theme(colour), "dash": dash, "width": width},
            "hovertemplate": f"{name}<br>step %{{x}}: %{{y:.3~g}} % left<extra></extra>",
        }
        for k, name, colour, dash, width in (
            (0, "gradients of 1", "accent", "solid", 4),
            (1, f"gradients of {STEEPNESS:,.0f}", "rival", "dash", 2),
        )
    ]
    return {
        "data": traces,
        "layout": layout(
            260,
            hovermode="closest",
            xaxis=axis("step", showgrid=False, nticks=6),
            yaxis=axis("% of the way left", range=[-4, 104]),
        ),
        "aspect": 0.8,
    }
