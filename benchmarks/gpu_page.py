"""The results of gpu.py as one self-contained page; it needs plotly."""

from __future__ import annotations

from html import escape
from math import log10

from gpu_measure import Result, Row
from gpu_peers import FUSED, OURS
from gpu_report import (
    DEFINITIONS,
    Report,
    Table,
    bars_table,
    bits_table,
    first_table,
    number,
    result_table,
)

from adamas.lab.page import (
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


def page(report: Report) -> str:
    """The whole page as HTML."""
    figures: dict[str, Figure] = {}
    sections = [_section(bars_table(report.bars()))]
    for key, result in report.results.items():
        rows = sorted(
            (row for row in result.rows.values() if row.milliseconds),
            key=lambda row: row.milliseconds or 0.0,
        )
        if not rows:
            continue
        figures[f"times-{key}"] = _times(result, rows)
        shown = result_table(result, [row.key for row in rows])
        sections.append(
            section(
                result.workload.title,
                muted(
                    f"{shown.title} (dotted: at that rate, what a step of float32 moves). "
                    "In brackets, the time over torch fused's with float32."
                ),
                plot(f"times-{key}", f"Time of a step of {result.workload.title}"),
                details("All figures", _html(shown)),
            )
        )
    sections += [_section(bits_table(report.verdicts))] if report.verdicts else []
    sections += [_section(first_table(report.firsts))] if report.firsts else []
    sections.append(section("How it was measured", *map(muted, (*DEFINITIONS, *report.lines()))))
    about = "; ".join(f"{k} {v}" for k, v in report.environment.items())
    return document("Steps on a GPU", about, sections, figures)


def _section(shown: Table) -> str:
    return section(shown.title, _html(shown))


def _html(shown: Table) -> str:
    return table(shown.headers, [[escape(cell) for cell in row] for row in shown.rows])


def _times(result: Result, rows: list[Row]) -> Figure:
    """Times of one workload, fastest on top, and the copy's limit for float32 as a line."""
    # Points on a logarithmic axis: the slowest is tens of times slower than the fastest.
    drawn = [(row, row.milliseconds or 0.0) for row in reversed(rows)]
    colours = dict.fromkeys(FUSED.values(), theme("rival")) | dict.fromkeys(OURS, theme("accent"))
    limit = 28 * result.workload.parameters / result.bandwidth * 1e3
    points = {
        "type": "scatter",
        "mode": "markers+text",
        "y": [label(row.title) for row, _ in drawn],
        "x": [ms for _, ms in drawn],
        "text": [f"{number(ms)} ({number(row.of_fused)})" for row, ms in drawn],
        "textposition": "top center",
        "textfont": {"size": 12},
        "cliponaxis": False,
        "marker": {"size": 11, "color": [colours.get(r.key, theme("peer")) for r, _ in drawn]},
        "hovertemplate": "%{y}: %{x:.4g} ms<extra></extra>",
    }
    ends = [log10(ms) for ms in (*(ms for _, ms in drawn), limit)]
    room = 0.2 * (max(ends) - min(ends)) + 0.1
    span = [min(ends) - room, max(ends) + room]
    x = axis("ms a step", type="log", dtick=1, exponentformat="none", range=span)
    y = axis("", ticks="outside", tickcolor="rgba(0,0,0,0)", range=[-0.6, len(drawn) - 0.2])
    line = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": limit,
        "x1": limit,
        "line": {"color": theme("muted"), "width": 1.5, "dash": "dot"},
    }
    figure = layout(70 + 38 * len(drawn), xaxis=x, yaxis=y, shapes=[line])
    return {"data": [points], "layout": figure}
