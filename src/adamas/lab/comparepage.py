"""The page of a comparison: races to watch, their curves and tables, and the theory measured."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from . import page
from .comparefigures import (
    MOST_STARTS,
    advance_figure,
    colour,
    frames,
    paths,
    race_figures,
    scale_figure,
    stroke,
)
from .progress import score_text
from .race import Race
from .racers import Racer
from .theory import scaled_updates

_STYLE = """
:root { --rule-sgd: #6b7078; --rule-momentum: #c2571a; --rule-rmsprop: #8a4fbf;
  --rule-adam: #0b7285; --rule-adamw: #2b7a3d; --hollow: #cfe3e7; }
@media screen and (prefers-color-scheme: dark) { :root { --rule-sgd: #a8adb5;
  --rule-momentum: #f08c4a; --rule-rmsprop: #c39bf0; --rule-adam: #4cc3d9;
  --rule-adamw: #69c77d; --hollow: #2c4a52; } }
.choices { display: flex; flex-wrap: wrap; gap: 0.4rem; margin: 0.5rem 0; }
.choices button { border-radius: 999px; padding: 0.3rem 0.8rem; }
.choices button[aria-pressed=true] { border-color: var(--accent); color: var(--accent);
  font-weight: 600; }
#racers button[aria-pressed=true] { border-color: var(--line); color: var(--text);
  font-weight: inherit; }
#racers button[aria-pressed=false] { opacity: 0.4; text-decoration: line-through; }
#racers svg { vertical-align: middle; margin-right: 0.45rem; }
.player { display: grid; grid-template-columns: auto minmax(0, 1fr) 5.5rem auto; gap: 0.75rem;
  align-items: center; margin: 0.5rem 0; }
.player output { font-variant-numeric: tabular-nums; }
.choose { position: sticky; top: 0; z-index: 2; background: var(--card); padding: 0.25rem 0; }
@media (max-width: 34rem) { .player { grid-template-columns: auto minmax(0, 1fr) auto; }
  .player input { grid-column: 1 / -1; grid-row: 1; }
  .choices button { padding: 0.3rem 0.6rem; } .choose { position: static; } }
@media print { #arena, .player { display: none; } }
"""

_DASH_ARRAYS = {
    "solid": "",
    "dash": "6 4",
    "dot": "2 4",
    "dashdot": "7 3 2 3",
    "longdashdot": "9 3 2 3",
}


def compare_page(races: Sequence[Race], settings: Sequence[tuple[str, str]]) -> str:
    """The page as HTML.

    Args:
        races: those that are over, at least one.
        settings: how they were raced: names and values.
    """
    racers = [result.racer for result in races[0].results]
    figures: dict[str, page.Figure] = {}
    data = {
        "arenas": {
            race.arena.name: {
                "figures": race_figures(race),
                "at": race.results[0].runs.at[frames(race)].tolist(),
                "paths": paths(race),
            }
            for race in races
        },
    }
    body = [
        page.cards([(_first(race), race.ranking[0].racer.name) for race in races]),
        _races(races, racers),
        _standings(races, racers),
        _scale(figures),
        _advance(figures),
        page.section("How it was raced", page.table((), settings, kind="plain")),
    ]
    title = "Adam and its parents in a race"
    subtitle = "adamas comparison of optimizers, each at the best of the learning rates it tried"
    script = (Path(__file__).parent / "compare.js").read_text(encoding="utf-8")
    style = page.CONTROLS + _STYLE
    return page.document(title, subtitle, body, figures, {"race": data}, [script], style)


def _first(race: Race) -> str:
    reached = race.ranking[0].reached(race.target)
    return f"first on {race.arena.name}" + (f", {reached[0]:,.0f} steps" if reached else "")


def _races(races: Sequence[Race], racers: Sequence[Racer]) -> str:
    """What follows the choice of an arena and of racers."""
    seeds = min(len(races[0].results[0].losses), MOST_STARTS)
    starts = "".join(
        f'<option value="{k}">start {k + 1}{" (classic)" if k == 0 else ""}</option>'
        for k in range(seeds)
    )
    player = (
        '<div class="player"><button type="button" id="play">Play</button>'
        '<input type="range" id="frame" min="0" value="0" autocomplete="off" aria-label="step">'
        '<output id="at" for="frame"></output>'
        f'<select id="start" autocomplete="off" aria-label="starting point">{starts}</select></div>'
    )
    watch = (
        '<div id="surface">'
        + page.muted("Each dot is a racer at the same step; the cross marks a minimum.")
        + page.plot("path", "Paths of the racers on the contours of the surface")
        + player
        + "</div>"
    )
    panels = [
        _panel(
            "Loss over the steps",
            "loss",
            "Lower is better: the line is the median of all seeds, the band their middle half, the "
            "dotted line the target.",
        ),
        _panel(
            "Loss over the seconds",
            "seconds",
            "The same by the clock: of gradients and steps, "
            "all starting points together on a surface.",
        ),
        _panel(
            "Effective steps",
            "updates",
            "How far a step moves a number, in learning rates: "
            "Adam's stays near 1 or below whatever the slope, gradient descent's is the slope.",
        ),
        _panel(
            "The choice of the learning rate",
            "sweep",
            "The final loss of each rate that was tried: a wide valley forgives a wrong guess, and "
            "the large dot is the best from which no start diverged.",
        ),
    ]
    return page.section(
        "Watch the race",
        '<div class="choose">'
        + _choices("arena", [_button(r.arena.name) for r in races])
        + "</div>",
        *(_of(race, page.muted(race.arena.about)) for race in races),
        _choices("racers", [_button(racer.name, _swatch(racer)) for racer in racers]),
        watch,
        page.grid("21rem", panels),
        *(_of(race, _table(race)) for race in races),
    )


def _panel(title: str, name: str, about: str) -> str:
    return f"<h3>{escape(title)}</h3>{page.muted(about)}{page.plot(name, title)}"


def _choices(name: str, buttons: Sequence[str]) -> str:
    label = {"arena": "where to race", "racers": "who is shown"}[name]
    about = f'id="{name}" role="group" aria-label="{label}"'
    return f'<div class="choices" {about}>{"".join(buttons)}</div>'


def _button(text: str, before: str = "") -> str:
    return f'<button type="button" aria-pressed="true">{before}{escape(text)}</button>'


def _swatch(racer: Racer) -> str:
    line = stroke(racer)
    dashes = _DASH_ARRAYS[line["dash"]]
    return (
        '<svg width="22" height="4" aria-hidden="true"><line x1="0" x2="22" y1="2" y2="2" '
        f'stroke="var(--{colour(racer)})" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
    )


def _of(race: Race, content: str) -> str:
    """What is shown with its arena alone."""
    return f'<div data-arena="{escape(race.arena.name)}">{content}</div>'


def _table(race: Race) -> str:
    headers, *rows = ranked(race)
    note = f"Steps and seconds are those to a loss of {page.number(race.target)}, the target"
    if any(result.at_end for result in race.results):
        note += "; * is an end of the learning rates that were tried, beyond may be better"
    table = page.table(headers, [[escape(cell) for cell in row] for row in rows], ["mine"])
    return f"<h3>The fastest to the target first</h3>{table}{page.muted(note + '.')}"


def ranked(race: Race) -> list[list[str]]:
    """A race as a table of texts: the headings, then the racers, the fastest first."""
    score = race.arena.score_name
    headings = ["racer", "best lr", "steps", "seconds", "final loss", "middle half"]
    rows = [headings + ([f"validation {score}"] if score else [])]
    for result in race.ranking:
        low, median, high = (
            f"{loss:.3g}" if np.isfinite(loss) else "diverged" for loss in result.final
        )
        reached = result.reached(race.target)
        there = [f"{reached[0]:,.0f}", f"{reached[1]:.2g}"] if reached else ["-", "-"]
        lr = f"{result.lr:g}" + ("*" if result.at_end else "")
        rows.append([result.racer.name, lr, *there, median, f"{low} to {high}"])
        if score:
            known = result.score is not None and np.isfinite(result.score)
            rows[-1].append(score_text(score, result.score or 0.0) if known else "-")
    return rows


def _standings(races: Sequence[Race], racers: Sequence[Racer]) -> str:
    """Steps to the target of every racer everywhere."""
    rows = []
    for index, racer in enumerate(racers):
        row = [escape(racer.name)]
        for race in races:
            reached = race.results[index].reached(race.target)
            fastest = race.ranking[0].reached(race.target)
            first = reached and fastest and reached[0] == fastest[0]
            text = f"{reached[0]:,.0f}" if reached else "-"
            row.append(f'<span class="good">{text}</span>' if first else text)
        rows.append(row)
    headers = ["steps to the target", *(race.arena.name for race in races)]
    about = (
        "No rule wins everywhere: what matters is how seldom one fails. A dash says that the "
        "median run did not get there."
    )
    return page.section("All races at a glance", page.muted(about), page.table(headers, rows))


def _scale(figures: dict[str, page.Figure]) -> str:
    figures["scale"] = scale_figure()
    off = float(np.abs(scaled_updates("adam") - 1).max())
    restored = float(np.abs(scaled_updates("adam", scale_eps=True, eps=1e-3) - 1).max())
    return page.section(
        "The scale of the loss does not matter to Adam",
        page.muted(
            "Each rule gets the same gradients, multiplied by a millionth up to a million: "
            "gradient descent's update grows and shrinks with them, Adam's (as RMSProp's) is a "
            "level line."
        ),
        page.key(
            ("rule-sgd", "gradient descent"),
            ("rule-rmsprop", "RMSProp"),
            ("rule-adam", "Adam (dotted: eps 1e-3)"),
        ),
        page.plot("scale", "Size of an update over the scale of the loss"),
        page.muted(
            f"Measured: with its eps of 1e-8, Adam's update changes by {100 * off:.2g} % at most. "
            "eps is what the scale is seen by: beside gradients that are not far larger it slows "
            "Adam down, as the dotted line shows at the left. Where eps is scaled with the loss, "
            f"the update is the same but for roundings ({restored:.1g})."
        ),
    )


def _advance(figures: dict[str, page.Figure]) -> str:
    parts = []
    for rule, title, lr in (("sgd", "Gradient descent", 1e-4), ("adam", "Adam", 0.02)):
        figures[f"advance-{rule}"] = advance_figure(rule, lr)
        place = page.plot(f"advance-{rule}", f"What is left of the way of two numbers, {title}")
        parts.append(f"<h3>{title}, lr {lr:g}</h3>{place}")
    return page.section(
        "Adam moves every number at the same pace",
        page.muted(
            "Two numbers on their way to 0, one with gradients 10,000 times those of the other: "
            "gradient descent must step for the steep one and leaves the flat one behind, under "
            "Adam one line covers the other."
        ),
        page.key(("accent", "gradients of 1"), ("rival", "gradients of 10,000 (dashed)")),
        page.grid("19rem", parts),
    )
