"""The results of a run as one self-contained page: no network, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, log10

from ..page import (
    Figure,
    axis,
    details,
    document,
    label,
    layout,
    muted,
    plot,
    section,
    table,
    theme,
)
from .measure import DEFINITIONS, Result
from .peers import MINE
from .report import HEADERS, Report, bandwidth_text, cells, number, ranked
from .scaling import FIXED, MEMORY_BOUND, Scaling, Series


def page(report: Report) -> str:
    """The whole page as HTML."""
    figures: dict[str, Figure] = {}
    sections = [_bars_section(report)] if report.bars else []
    for result in report.results:
        figures[f"times-{result.key}"] = _times(result)
        sections.append(_result_section(result))
    if report.scaling:
        figures["scaling-time"] = _growth(report.scaling, per_parameter=False)
        figures["scaling-rate"] = _growth(report.scaling, per_parameter=True)
        sections.append(_scaling_section(report.scaling))
    sections.append(_notes_section(report))
    return document("The step of adamas and its peers", _machine(report), sections, figures)


def _machine(report: Report) -> str:
    found = report.environment
    cores = f"{found.get('cores', '?')} cores"
    parts = (found.get("processor"), cores, report.dtype, found.get("date"))
    return ", ".join(part for part in parts if part)


def _bars_section(report: Report) -> str:
    verdict = {
        True: ' <span class="good">✓ held</span>',
        False: ' <span class="bad">✗ missed</span>',
        None: "not measured",
    }
    rows = [
        (
            escape(bar.text),
            bar.bound,
            ("" if bar.value is None else number(bar.value)) + verdict[bar.holds],
        )
        for bar in report.bars
    ]
    return section("Bars", table(("", "bound", "measured"), rows))


def _result_section(result: Result) -> str:
    rows = [[escape(cell) for cell in cells(timing)] for timing in ranked(result)]
    classes = ("mine" if timing.key in MINE else "" for timing in ranked(result))
    about = f"{result.parameters:,} parameters in {result.tensors} tensors, {result.rounds} rounds"
    note = (
        f"{about}; {bandwidth_text(result)} (dotted line). The lines through the points span the "
        "quartiles; in brackets, the time over torch fused's."
    )
    return section(
        result.title,
        muted(note),
        plot(f"times-{result.key}", f"Time of a step of {result.title}"),
        details("All figures", table(HEADERS, rows, classes)),
    )


def _scaling_section(scaling: Scaling) -> str:
    rows = [
        (escape(s.title), number(s.exponent), number(s.fixed_microseconds)) for s in scaling.series
    ]
    note = (
        "Time of a step, and time a parameter, over the number of parameters. The exponent is the "
        f"slope of log time over log parameters from {MEMORY_BOUND:,} parameters on, where 1 is "
        f"linear; the fixed cost is the intercept of the line up to {FIXED:,}. The dotted line is "
        f"the memory limit, {scaling.bandwidth / 1e9:.1f} GB/s; smaller steps beat it in the "
        "caches."
    )
    return section(
        "Scaling",
        muted(note),
        muted(scaling.note) if scaling.note else "",
        plot("scaling-time", "Time of a step over the number of parameters"),
        plot("scaling-rate", "Time a parameter over the number of parameters"),
        table(("", "exponent", "fixed cost, µs"), rows),
    )


def _notes_section(report: Report) -> str:
    notes = list(DEFINITIONS)
    if report.missing:
        notes.append(f"Not installed: {', '.join(report.missing)}.")
    notes.append("; ".join(f"{key} {value}" for key, value in report.environment.items()))
    return section("How it was measured", *map(muted, notes))


def _times(result: Result) -> Figure:
    """Times and quartiles of one workload, fastest on top, and the memory limit as a line."""
    # Points on a logarithmic axis: the slowest is hundreds of times slower than the fastest.
    timed = [t for t in reversed(ranked(result)) if t.milliseconds and t.quartiles]
    colours = {"torch-fused": theme("rival"), **dict.fromkeys(MINE, theme("accent"))}
    times = [t.milliseconds or 0.0 for t in timed]
    lows, highs = (
        zip(*(t.quartiles or (0.0, 0.0) for t in timed), strict=True) if timed else ((), ())
    )
    labels = [
        number(ms) if t.ratio_fused is None else f"{number(ms)} ({number(t.ratio_fused)})"
        for t, ms in zip(timed, times, strict=True)
    ]
    points = {
        "type": "scatter",
        "mode": "markers+text",
        "y": [label(t.title) for t in timed],
        "x": times,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - ms for high, ms in zip(highs, times, strict=True)],
            "arrayminus": [ms - low for low, ms in zip(lows, times, strict=True)],
            "color": theme("muted"),
            "thickness": 1.5,
            "width": 3,
        },
        # Above the point, where no error bar crosses it.
        "text": labels,
        "textposition": "top center",
        "textfont": {"size": 12},
        "cliponaxis": False,
        "marker": {"size": 11, "color": [colours.get(t.key, theme("peer")) for t in timed]},
        "hovertemplate": "%{y}: %{x:.4g} ms<extra></extra>",
    }
    ends = [log10(ms) for ms in (*times, result.limit_milliseconds)]
    span = max(ends) - min(ends)
    room = 0.2 * span + 0.1
    x = axis(
        "ms a step",
        type="log",
        # On a phone, 0.001 and 0.01 stand upon each other in a fifth of the width.
        dtick=ceil((span + 2 * room) / 4),
        exponentformat="none",
        range=[min(ends) - room, max(ends) + room],
    )
    y = axis("", ticks="outside", tickcolor="rgba(0,0,0,0)", range=[-0.6, len(timed) - 0.2])
    limit = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": result.limit_milliseconds,
        "x1": result.limit_milliseconds,
        "line": {"color": theme("muted"), "width": 1.5, "dash": "dot"},
    }
    figure = layout(70 + 38 * len(timed), xaxis=x, yaxis=y, shapes=[limit])
    return {"data": [points], "layout": figure}


def _growth(scaling: Scaling, per_parameter: bool) -> Figure:
    """Lines of the time of a step, or of the time a parameter, over the parameters."""
    # Two layouts of each contender: a full colour and a pale one.
    colours = {
        "adamas": [theme("accent"), theme("second")],
        "torch-fused": [theme("rival"), theme("rival2")],
    }

    def trace(title: str, n: Sequence[int], ms: Sequence[float], line: Figure) -> Figure:
        y = [t * 1e6 / k for k, t in zip(n, ms, strict=True)] if per_parameter else list(ms)
        unit = "ns a parameter" if per_parameter else "ms"
        title = label(title)
        return {
            "type": "scatter",
            "mode": "lines",
            "name": title,
            "x": list(n),
            "y": y,
            "line": {"width": 2, **line},
            "hovertemplate": f"{title}: %{{y:.3g}} {unit} at %{{x:,}}<extra></extra>",
        }

    traces = [
        trace(s.title, s.parameters, s.milliseconds, {"color": colours[s.key].pop(0)})
        for s in scaling.series
    ]
    sizes = _sizes(scaling.series)
    limit = [scaling.limit_milliseconds(n) for n in sizes]
    traces.append(trace("memory limit", sizes, limit, {"color": theme("muted"), "dash": "dot"}))
    ends = [log10(n) for n in (sizes[0], sizes[-1])] if sizes else [0, 1]
    x = axis(
        "parameters",
        type="log",
        dtick=1,
        exponentformat="power",
        # A little wider than the data, or the last label is left out.
        range=[ends[0] - 0.05, ends[1] + 0.05],
        # Away from the labels of the other axis.
        ticks="outside",
        ticklen=6,
        tickcolor="rgba(0,0,0,0)",
    )
    title = "ns a parameter" if per_parameter else "ms a step"
    y = axis(title, type="log", dtick=1, exponentformat="power")
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
    return {"data": traces, "layout": layout(420, xaxis=x, yaxis=y, showlegend=True, legend=legend)}


def _sizes(series: Iterable[Series]) -> list[int]:
    return sorted({n for s in series for n in s.parameters})
