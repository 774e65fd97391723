"""A page of races, for the tests that read it and those that open it."""

from __future__ import annotations

import json
import re
from typing import Any

from adamas.lab.arenas import SurfaceArena
from adamas.lab.comparepage import compare_page
from adamas.lab.race import race
from adamas.lab.racers import line_up
from adamas.lab.surfaces import SURFACES

PLACES = ("saddle", "beale")
STEPS = 120


def raced_page() -> str:
    """The page of some surfaces and a whole line-up."""
    racers = line_up(None, "bfloat16,int8,int4", theirs=True)
    arenas = [SurfaceArena(SURFACES[name], STEPS, per_decade=1) for name in PLACES]
    return compare_page([race(a, racers, (0.1, 0.1), 5) for a in arenas], [("seeds", "5")])


def data(html: str) -> dict[str, Any]:
    """The races in a page, read as a browser reads them."""
    text = re.search(r'<script type="application/json" id="race">(.*?)</script>', html, re.S)
    assert text
    return dict(json.loads(text[1])["arenas"])
