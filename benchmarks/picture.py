"""Draws the README's picture, docs/step.svg, from the results of benchmarks/step.py."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

SHOWN = ("1000x3500", "124m")
OTHER_RULES = ("-sgd", "-momentum", "-rmsprop")  # they do less, and are in the table
WIDTH, ROW, LEFT, PANEL = 880, 26, 168, 96
# Read on white and on black alike.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #6b7280 }
.title { font-weight: 600; fill: #0e7490 } .own { font-weight: 600; fill: #0e7490 }
.bar { fill: #9ca3af } .bar.own { fill: #0e7490 }
"""


def main() -> None:
    """Reads the results that are named on the command line, and writes the picture."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench/step.json")
    results = {r["key"]: r for r in json.loads(source.read_text())["results"]}
    parts, y = [], 8
    for key in SHOWN:
        result = results[key]
        timings = [t for t in result["timings"] if t["milliseconds"]]
        timings = [t for t in timings if not t["key"].endswith(OTHER_RULES)]
        timings.sort(key=lambda t: t["milliseconds"])
        parts.append(
            f'<text x="8" y="{y + 16}"><tspan class="title">{result["title"]}</tspan>'
            " (bars are logarithmic)</text>"
        )
        y += ROW
        shortest = min(t["milliseconds"] for t in timings)
        span = math.log(max(t["milliseconds"] for t in timings) / shortest)
        for timing in timings:
            own = " own" if timing["key"].startswith("adamas") else ""
            share = math.log(timing["milliseconds"] / shortest) / span
            length = 30 + (WIDTH - LEFT - PANEL - 30) * share
            end = LEFT + 16 + length
            name, time = timing["title"], f"{float(format(timing['milliseconds'], '.3g')):g} ms"
            parts += [
                f'<text class="{own}" x="{LEFT}" y="{y + 14}" text-anchor="end">{name}</text>',
                f'<rect class="bar{own}" x="{LEFT + 8}" y="{y + 3}" rx="3" height="14" '
                f'width="{length:.0f}"/>',
                f'<text class="{own}" x="{end:.0f}" y="{y + 14}">{time}</text>',
            ]
            y += 21
        y += 12
    body = "\n".join(parts)
    Path("docs").mkdir(exist_ok=True)
    Path("docs/step.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
        f'aria-label="Milliseconds a step, logarithmic">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
