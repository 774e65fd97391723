"""Figures of what a network predicts: its confusion matrix, or its residuals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, isfinite, nan

import numpy as np
from numpy.typing import NDArray

from .page import Figure, axis, label, layout, theme

Values = NDArray[np.float64]

_MOST_TEXTS = 24  # classes whose cells have room for a number
_MOST_LABELS = 20


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """The confusion matrix: right ones in one colour, errors in another, by the share of a row."""
    n = len(classes)
    few = n <= _MOST_TEXTS
    names = [label(name, 40) for name in classes]
    right = [[c if i == j else 0 for j, c in enumerate(row)] for i, row in enumerate(counts)]
    wrong = [[c if i != j else 0 for j, c in enumerate(row)] for i, row in enumerate(counts)]
    totals = [max(sum(row), 1) for row in counts]
    empty = {
        "type": "heatmap",
        "z": [[0] * n] * n,
        "colorscale": [[0, theme("line", 0.4)], [1, theme("line", 0.4)]],
        "showscale": False,
        "hoverinfo": "skip",
        **_gaps(few),
    }
    step = ceil(n / _MOST_LABELS)
    small = n > 14
    most = 10 if small else 16
    ticks = {
        "tickvals": list(range(0, n, step)),
        "ticktext": [label(name, most) for name in classes[::step]],
        "showgrid": False,
        "constrain": "domain",
        "ticks": "",
        "tickfont": {"color": theme("muted"), "size": 9 if small else 12},
    }
    wide = any(len(name) > 3 for name in classes)
    x = axis("predicted", range=[-0.5, n - 0.5], tickangle=-45 if wide else 0, **ticks)
    y = axis("true", range=[n - 0.5, -0.5], scaleanchor="x", **ticks)
    return {
        "data": [
            empty,
            _cells(names, right, totals, "accent", few),
            _cells(names, wrong, totals, "rival", few),
        ],
        "layout": layout(min(max(150 + 40 * n, 260), 470 if few else 760), xaxis=x, yaxis=y),
        "aspect": 1.0,
    }


def _gaps(few: bool) -> Figure:
    return {"xgap": 2, "ygap": 2} if few else {}


def _cells(
    names: Sequence[str],
    counts: Sequence[Sequence[int]],
    totals: Sequence[int],
    colour: str,
    few: bool,
) -> Figure:
    def text(i: int, j: int, count: int) -> str:
        share = f"{count:,} of {totals[i]:,} rows, {100 * count / totals[i]:.3g} %"
        return f"true <b>{names[i]}</b><br>predicted <b>{names[j]}</b><br>{share}" if count else ""

    cells = [list(enumerate(row)) for row in counts]
    shares = [[c / totals[i] if c else nan for _, c in row] for i, row in enumerate(cells)]
    # A few errors are pale, but seen.
    most = max((share for row in shares for share in row if isfinite(share)), default=0.0)
    most = max(most, 0.1)
    numbers: Figure = {
        "text": [[f"{count:,}" if count else "" for _, count in row] for row in cells],
        "texttemplate": "%{text}",
        "textfont": {"size": 9 if len(names) > 14 else 12, "color": theme("text")},
    }
    return {
        "type": "heatmap",
        "z": shares,
        "customdata": [[text(i, j, c) for j, c in row] for i, row in enumerate(cells)],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "zmin": -0.25 * most,
        # Half of the colour at most behind a number, so that it can be read.
        "zmax": (2.25 if few else 1) * most,
        "colorscale": [[0, theme("card")], [1, theme(colour)]],
        "showscale": False,
        **_gaps(few),
        **(numbers if few else {}),
    }


def predicted(targets: Values, predictions: Values) -> Figure:
    """Predictions over true values, and the line where they are equal."""
    ends = [
        float(min(targets.min(), predictions.min())),
        float(max(targets.max(), predictions.max())),
    ]
    room = 0.04 * (ends[1] - ends[0]) or 0.5
    ends = [ends[0] - room, ends[1] + room]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": targets.tolist(),
        "y": predictions.tolist(),
        "marker": {
            "size": 6 if len(targets) < 500 else 4,
            "color": theme("accent"),
            "opacity": 0.65 if len(targets) < 500 else 0.4,
        },
        "hovertemplate": "true %{x:.5~g}<br>predicted %{y:.5~g}<extra></extra>",
    }
    equal = {
        "type": "scatter",
        "mode": "lines",
        "x": ends,
        "y": ends,
        "line": {"color": theme("muted"), "width": 1.5, "dash": "dot"},
        "hoverinfo": "skip",
    }
    return {
        "data": [equal, points],
        "layout": layout(
            380,
            hovermode="closest",
            xaxis=axis("true", range=ends, nticks=7),
            yaxis=axis("predicted", range=ends, nticks=7),
        ),
        "aspect": 1.0,
    }


def residuals(errors: Values) -> Figure:
    """The histogram of predicted minus true."""
    # The square root of the number, within what the eye can take in.
    bins = min(max(ceil(len(errors) ** 0.5), 5), 60)
    # Symmetric, so that a bias is seen as one.
    most = float(np.abs(errors).max()) or 1.0
    counts, edges = np.histogram(errors, np.linspace(-most, most, (bins | 1) + 1))
    bars = {
        "type": "bar",
        "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "y": counts.tolist(),
        "width": (0.94 * np.diff(edges)).tolist(),
        "marker": {"color": theme("accent", 0.7), "line": {"width": 0}},
        "customdata": [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)],
        "hovertemplate": "%{customdata}<br>%{y:,} rows<extra></extra>",
    }
    zero = {
        "type": "line",
        "yref": "paper",
        "x0": 0,
        "x1": 0,
        "y0": 0,
        "y1": 1,
        "line": {"color": theme("muted"), "width": 1.5, "dash": "dot"},
    }
    return {
        "data": [bars],
        "layout": layout(
            380,
            bargap=0,
            shapes=[zero],
            hovermode="closest",
            xaxis=axis("predicted minus true", showgrid=False, nticks=7),
            yaxis=axis("rows", rangemode="tozero"),
        ),
        "aspect": 1.0,
    }
