"""Figures of how a network learned: losses, scores, and the sizes of its updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, floor, isfinite, log10, nan
from typing import TYPE_CHECKING, TypeVar

from .page import Figure, axis, layout, theme

if TYPE_CHECKING:
    from .report import LayerUpdates

Epoch = dict[str, float]
Item = TypeVar("Item")

_MOST_POINTS = 500
_MOST_BANDS = 120


def curves(
    epochs: Sequence[Epoch],
    part: str,
    best: Callable[[Sequence[float]], float],
    percent: bool = False,
) -> Figure:
    """A quantity of training and validation over the epochs; its best validation is ringed.

    Args:
        epochs: the metrics of each epoch.
        part: ``"loss"`` or ``"score"``.
        best: ``min`` or ``max``.
        percent: whether the values are shares.
    """
    shown = thin(epochs, _MOST_POINTS)
    x = [epoch["epoch"] for epoch in shown]
    series = {
        name: [epoch.get(f"{key}_{part}", nan) for epoch in shown]
        for name, key in (("training", "train"), ("validation", "validation"))
    }
    values = [value for line in series.values() for value in line if isfinite(value)]
    # On a linear axis nothing is seen of a loss that falls by more than this.
    logarithmic = part == "loss" and min(values, default=0) > 0 and max(values) > 20 * min(values)
    shape = ".1%" if percent else ".4~g"
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(x) < 25 else "lines",
            "x": x,
            "y": y,
            "line": {"color": theme(colour), "width": width},
            "marker": {"size": 5},
            "hovertemplate": f"{name} %{{y:{shape}}}<extra></extra>",
        }
        for (name, y), colour, width in zip(
            series.items(), ("second", "accent"), (1.75, 2.25), strict=True
        )
    ]
    traces[1]["customdata"] = [_pace(epoch) for epoch in shown]
    traces[1]["hovertemplate"] = f"validation %{{y:{shape}}}<br>%{{customdata}}<extra></extra>"
    found = best_epoch(epochs, f"validation_{part}", best)
    if found:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [found["epoch"]],
                "y": [found[f"validation_{part}"]],
                "marker": {
                    "size": 11,
                    "symbol": "circle-open",
                    "color": theme("accent"),
                    "line": {"width": 2},
                },
                "hoverinfo": "skip",
            }
        )
    y_axis = axis(type="log" if logarithmic else "linear", tickformat="~g")
    if logarithmic:
        # Labels at 1, 2, 5, 10, unless there are decades enough.
        y_axis["dtick"] = "D2" if max(values) < 200 * min(values) else 1
    elif percent:
        y_axis["tickformat"] = (
            ".0%" if max(values, default=0) - min(values, default=0) > 0.05 else ".1%"
        )
    return {
        "data": traces,
        "layout": layout(
            300, hovermode="x unified", hoverdistance=-1, xaxis=_epoch_axis(x), yaxis=y_axis
        ),
        "aspect": 0.8,
    }


def best_epoch(
    epochs: Sequence[Epoch], name: str, best: Callable[[Sequence[float]], float]
) -> Epoch | None:
    """The first epoch in which a quantity is best, if there are two epochs to choose from."""
    finite = [epoch for epoch in epochs if isfinite(epoch.get(name, nan))]
    if len(finite) < 2:
        return None
    value = best([epoch[name] for epoch in finite])
    return next(epoch for epoch in finite if epoch[name] == value)


def _pace(epoch: Epoch) -> str:
    seconds, speed = epoch.get("seconds", nan), epoch.get("samples_per_second", nan)
    parts = [f"after {seconds:.1f} s"] if isfinite(seconds) else []
    return ", ".join(parts + ([f"{speed:,.0f} samples/s"] if isfinite(speed) else []))


def _epoch_axis(epochs: Sequence[float]) -> Figure:
    few = len(epochs) < 8
    room = max(0.02 * (epochs[-1] - epochs[0]), 0.5 if few else 0)
    return axis(
        "epoch",
        range=[epochs[0] - room, epochs[-1] + room],
        tickformat=",d",
        showgrid=False,
        unifiedhovertitle={"text": "epoch %{x}"},
        spikecolor=theme("muted"),
        spikethickness=1,
        **({"tickvals": list(epochs)} if few else {"nticks": 8}),
    )


def thin(items: Sequence[Item], most: int) -> list[Item]:
    """At most that many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def update_range(layers: Sequence[LayerUpdates], rates: Sequence[float]) -> tuple[float, float]:
    """The exponents that the panels of all layers show, so that they compare."""
    low = [q[0] for layer in layers for q in layer.quantiles]
    high = [q[-1] for layer in layers for q in layer.quantiles] + list(rates)
    tails = [
        edge
        for layer in layers
        for pair, count in zip(pairwise(layer.edges), layer.counts, strict=True)
        for edge in pair
        if count
    ]
    low, high, tails = ([v for v in values if isfinite(v)] for values in (low, high, tails))
    ends = low + high + tails
    if not ends:
        return -8.0, 0.0
    # Two decades of the tail: a few roundings of 1e-12 would leave no room to the rest.
    start = max(min(ends), min(low, default=min(ends)) - 2)
    return start - 0.15, max(ends) + 0.15


def layer_updates(
    layer: LayerUpdates, epochs: Sequence[Epoch], ends: tuple[float, float]
) -> Figure:
    """Bands of quantiles over the epochs, and beside them the histogram of the last one."""
    rates = {epoch["epoch"]: epoch.get("learning_rate", 0.0) for epoch in epochs}
    shown = thin(list(zip(layer.epochs, layer.quantiles, strict=True)), _MOST_BANDS)
    seen = [epoch for epoch, _ in shown]
    x: list[float] = list(seen)
    if len(shown) == 1:
        # A band has a width.
        shown, x = shown * 3, [x[0] - 0.3, x[0], x[0] + 0.3]
    lines = [[round(quantiles[k], 3) for _, quantiles in shown] for k in range(5)]
    rate = [_log(rates.get(epoch, 0.0)) for epoch, _ in shown]

    def line(y: Sequence[float], colour: Figure, width: float, **more: object) -> Figure:
        style = {"color": colour, "width": width}
        return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": style, **more}

    def band(low: Sequence[float], high: Sequence[float]) -> list[Figure]:
        fill = {"fill": "tonexty", "fillcolor": theme("accent", 0.2)}
        none = theme("accent", 0)
        return [line(low, none, 0, hoverinfo="skip"), line(high, none, 0, hoverinfo="skip", **fill)]

    hover = [f"epoch {epoch:,}<br>{_quantile_text(q)}" for epoch, q in shown]
    median = line(
        lines[2], theme("accent"), 2, customdata=hover, hovertemplate="%{customdata}<extra></extra>"
    )
    limit = line(rate, theme("rival"), 1.5, hoverinfo="skip")
    limit["line"]["dash"] = "dot"
    pairs = list(pairwise(layer.edges))
    total = max(sum(layer.counts), 1)
    shares = [100 * count / total for count in layer.counts]
    histogram = {
        "type": "bar",
        "orientation": "h",
        "xaxis": "x2",
        "y": [(low + high) / 2 for low, high in pairs],
        "x": shares,
        "width": [high - low for low, high in pairs],
        "marker": {"color": theme("accent", 0.55), "line": {"width": 0}},
        "customdata": [
            f"last epoch<br>{power(low)} to {power(high)}<br>{share:.2g} % of the updates"
            for (low, high), share in zip(pairs, shares, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    ticks = range(ceil(ends[0]), floor(ends[1]) + 1, max(1, ceil((ends[1] - ends[0]) / 7)))
    return {
        "data": [*band(lines[0], lines[4]), *band(lines[1], lines[3]), limit, median, histogram],
        "layout": layout(
            230,
            hovermode="closest",
            hoverdistance=100,
            bargap=0,
            xaxis={**_epoch_axis(seen), "domain": [0, 0.72]},
            xaxis2=axis(
                "last epoch", domain=[0.76, 1], tickvals=[0], ticktext=[" "], showgrid=False
            ),
            yaxis=axis(
                range=list(ends),
                tickvals=list(ticks),
                ticktext=[f"10<sup>{tick}</sup>" for tick in ticks],
            ),
        ),
    }


def _log(value: float) -> float:
    return log10(value) if value > 0 else nan


def power(exponent: float) -> str:
    """The number of that decimal logarithm, for a plot."""
    if not isfinite(exponent):
        return "?"
    mantissa, shift = f"{10 ** (exponent - floor(exponent)):.1e}".split("e")
    return f"{mantissa}·10<sup>{floor(exponent) + int(shift)}</sup>"


def _quantile_text(quantiles: Sequence[float]) -> str:
    names = ("5 % below", "25 % below", "median", "25 % above", "5 % above")
    rows = [f"{name} {power(q)}" for name, q in zip(names, quantiles, strict=True)]
    return "<br>".join(reversed(rows))
