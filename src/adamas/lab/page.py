"""The shell of every page: one file without network, light and dark, wide, narrow and printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil, isfinite
from typing import Any

Figure = dict[str, Any]

# Whatever a page holds, the browser asks for nothing outside it; plotly draws heatmaps as images.
_POLICY = "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --text: #1c1d1f;
  --muted: #63666d; --line: #e2e3e5; --accent: #0b7285; --second: #66a9b5; --peer: #a3a7ae;
  --rival: #c2571a; --rival2: #e0a07a; --good: #2b7a3d; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #141517; --card: #1c1e21;
  --text: #e8e9eb; --muted: #9da1a8; --line: #33363b; --accent: #4cc3d9; --second: #2b7f8f;
  --peer: #6b7078; --rival: #f08c4a; --rival2: #96592f; --good: #69c77d; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.25rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 0 0 0.15rem; }
h3 { font-size: 0.9rem; font-weight: 600; margin: 0.5rem 0 0.25rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem; margin: 1rem 0; }
p { margin: 0.25rem 0 0.5rem; } .muted { color: var(--muted); font-size: 0.875rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1rem 0; }
.cards div { flex: 1 1 max(8.5rem, calc((100% + 0.75rem) / var(--columns) - 0.8rem));
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.7rem 1rem; display: flex; flex-direction: column-reverse;
  justify-content: flex-end; }
.cards dt { color: var(--muted); font-size: 0.8rem; line-height: 1.35; }
.cards dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.cards dd.long { font-size: 0.95rem; line-height: 1.4; }
.cards div:first-child dd { color: var(--accent); }
.grid { display: grid; gap: 0.5rem 1.5rem; }
.grid > * { min-width: 0; }
.key { display: flex; flex-wrap: wrap; gap: 0.1rem 1.1rem; margin: 0.25rem 0;
  color: var(--muted); font-size: 0.875rem; }
.key i { display: inline-block; width: 1.1rem; height: 0.22rem; border-radius: 2px;
  margin-right: 0.4rem; vertical-align: middle; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th { color: var(--muted); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
  min-width: 8rem; }
td.wide:not(:first-child) { white-space: normal; text-align: left; min-width: 11rem;
  color: var(--muted); }
tr.mine td { color: var(--accent); font-weight: 600; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.names td:nth-child(2), .names th:nth-child(2) { text-align: left; white-space: normal; }
.plain td, .plain th { white-space: normal; text-align: left; min-width: 0; }
.plain td:first-child { color: var(--muted); min-width: 0; width: 40%; }
details { margin-top: 0.5rem; }
summary { cursor: pointer; color: var(--muted); font-size: 0.875rem; }
.plot { min-height: 1px; }
@media (max-width: 34rem) { body { padding: 0.5rem; } section { padding: 0.75rem; }
  .cards { gap: 0.5rem; } .cards div { padding: 0.5rem 0.7rem; }
  .cards dd { font-size: 1.25rem; }
  table { font-size: 0.8rem; } th, td { padding: 0.3rem; }
  th:first-child, td:first-child { min-width: 6.5rem; } }
@media print { :root { --page: #ffffff; } body { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  .plot, .cards div, .grid > div, tr { break-inside: avoid; } }
"""

CONTROLS = """
.switches { display: flex; flex-wrap: wrap; gap: 0.6rem 1.5rem; align-items: center; }
input, select, button { font: inherit; font-size: 0.875rem; color: var(--text);
  accent-color: var(--accent); }
input[type=range] { width: 100%; min-width: 0; height: 1.75rem; margin: 0; }
input[type=number], select, button { background: var(--page); border: 1px solid var(--line);
  border-radius: 6px; padding: 0.25rem 0.5rem; min-width: 0; }
button { cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
[hidden] { display: none !important; }
"""
"""The style of a page that has sliders, menus and buttons."""

# Redrawn when the theme, the medium or the width changes: the figures name colours by the page's
# CSS variables, and the height of a figure with an aspect follows its width.
_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const config = { displayModeBar: false, showTips: false };
function draw_figure(id) {
  const css = getComputedStyle(document.documentElement);
  const themed = (key, value) => value && value.theme
    ? css.getPropertyValue("--" + value.theme).trim() + (value.alpha || "") : value;
  const { data, layout, aspect } = JSON.parse(JSON.stringify(figures[id]), themed);
  const width = document.getElementById(id).clientWidth;
  if (!width) return;
  layout.width = width;
  if (aspect) layout.height = Math.min(layout.height, Math.round(width * aspect));
  Plotly.react(id, data, layout, config);
}
function draw() {
  for (const id of Object.keys(figures)) draw_figure(id);
}
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", draw);
}
addEventListener("resize", () => requestAnimationFrame(draw));
document.addEventListener("toggle", draw, true);
draw();
"""


def document(
    title: str,
    subtitle: str,
    body: Iterable[str],
    figures: Mapping[str, Figure],
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
    style: str = "",
) -> str:
    """A whole page with plots.

    Args:
        title: the title, as text.
        subtitle: a line under it, as text.
        body: the sections, as HTML.
        figures: plotly figures by the name of their place, see :func:`plot`; a figure may have an
            ``aspect``, the largest ratio of its height to its width.
        data: as for :func:`shell`, beside the figures; so the next.
        scripts: run after the figures are drawn.
        style: CSS.
    """
    # Here, since a page that draws for itself needs no plotly and shall not wait for it.
    from plotly.offline import get_plotlyjs

    data = {"figures": figures, **(data or {})}
    return shell(title, subtitle, body, data, (get_plotlyjs(), _SCRIPT, *scripts), style)


def shell(
    title: str,
    subtitle: str,
    body: Iterable[str],
    data: Mapping[str, Any],
    scripts: Iterable[str],
    style: str = "",
) -> str:
    """A whole page with scripts of its own.

    Args:
        title: the title, as text.
        subtitle: a line under it, as text.
        body: the sections, as HTML.
        data: what the scripts read, as JSON in elements of these names.
        scripts: JavaScript, run in turn after the body.
        style: CSS beside that of every page.
    """
    elements = [
        f'<script type="application/json" id="{name}">{embed(value)}</script>\n'
        for name, value in data.items()
    ]
    elements += [f"<script>{script}</script>\n" for script in scripts]
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="muted">{escape(subtitle)}</p>
<noscript><p>The plots need JavaScript.</p></noscript>
{"".join(body)}
{"".join(elements)}</body>
</html>
"""
    # A file name that is no UTF-8 comes as lone surrogates.
    return html.encode(errors="replace").decode()


def embed(value: Any) -> str:
    """JSON that cannot end the script element which it stands in; what is not finite is null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # A "<" stands in strings alone.
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def theme(name: str, alpha: float = 1) -> dict[str, str]:
    """A colour of the page, by the name of its CSS variable, that follows light and dark."""
    # An object, where data has strings: no name in the data is taken for a colour.
    return {"theme": name} if alpha == 1 else {"theme": name, "alpha": f"{round(255 * alpha):02x}"}


def label(text: str, most: int = 60) -> str:
    """Text for a plot, in which plotly would take tags and entities for markup."""
    return escape(clip(text, most), quote=False)


def clip(text: str, most: int) -> str:
    """Text of at most that many characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def section(title: str, *parts: str) -> str:
    """A card with a heading, of parts that are HTML already."""
    return f"<section><h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def muted(text: str) -> str:
    """A quiet paragraph."""
    return f'<p class="muted">{escape(text)}</p>\n'


def alarm(text: str) -> str:
    """A paragraph that is not to be missed."""
    return f'<p class="muted bad">{escape(text)}</p>\n'


def number(value: float) -> str:
    """Three digits or more, with an exponent only where there is no other way."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e12 else f"{value:.3g}"


def plot(name: str, description: str) -> str:
    """The place of a figure; the description is read to those who do not see it."""
    about = f'role="img" aria-label="{escape(description)}"'
    return f'<div class="plot" id="{escape(name)}" {about}></div>'


def grid(least: str, parts: Iterable[str]) -> str:
    """Parts side by side where each has at least that width, else below each other."""
    columns = f"repeat(auto-fit, minmax(min(100%, {least}), 1fr))"
    cells = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div class="grid" style="grid-template-columns: {columns}">{cells}</div>'


def key(*entries: tuple[str, str]) -> str:
    """What the colours of a figure mean: names of colours and their meaning."""
    items = "".join(
        f'<span><i style="background: var(--{colour})"></i>{escape(text)}</span>'
        for colour, text in entries
    )
    return f'<div class="key">{items}</div>'


def cards(entries: Iterable[tuple[str, str]]) -> str:
    """Numbers at a glance: labels and values."""
    items = [
        f"<div><dt>{escape(name)}</dt><dd{long}>{escape(value)}</dd></div>"
        for name, value in entries
        for long in [' class="long"' if len(value) > 12 else ""]
    ]
    rows = max(ceil(len(items) / 5), 1)
    style = f'style="--columns: {ceil(len(items) / rows)}"'
    return f'<dl class="cards" {style}>{"".join(items)}</dl>' if items else ""


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    classes: Iterable[str] = (),
    kind: str = "",
) -> str:
    """A table of cells that are HTML already; its kind and the rows' classes are CSS classes."""
    names = iter(classes)
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    head = f"<thead><tr>{head}</tr></thead>" if headers else ""
    body = "".join(
        f'<tr class="{next(names, "")}">' + "".join(_cell(c) for c in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def _cell(content: str) -> str:
    # Long text wraps; figures never do.
    return f'<td class="wide">{content}</td>' if len(content) > 60 else f"<td>{content}</td>"


def details(summary: str, content: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def layout(height: int, **more: object) -> Figure:
    """The layout that every figure shares."""
    return {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": theme("text"), "size": 13, "family": "system-ui, sans-serif"},
        "hoverlabel": {
            "bgcolor": theme("card"),
            "bordercolor": theme("line"),
            "font": {"color": theme("text"), "family": "system-ui, sans-serif"},
            "align": "left",
            "namelength": -1,
        },
        "showlegend": False,
        "dragmode": False,
        **more,
    }


def axis(title: str = "", **more: object) -> Figure:
    """An axis of the style that every figure shares."""
    # plotly writes powers larger by a quarter.
    size = 9.6 if more.get("exponentformat") == "power" else 12
    return {
        "title": {"text": title, "standoff": 10, "font": {"color": theme("muted"), "size": 12}},
        "tickfont": {"color": theme("muted"), "size": size},
        "automargin": True,
        "gridcolor": theme("line"),
        "linecolor": theme("line"),
        "zeroline": False,
        "fixedrange": True,
        **more,
    }
