"""Names as they are typed, and mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a message that offers the nearest name, or nothing if none is near.

    Args:
        name: what was typed; capitals do not matter.
        known: what can be.
        cutoff: how near, from 0 to 1.
    """
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, 1, cutoff=cutoff)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def typed(name: str) -> str:
    """How an argument is typed."""
    return {"kind": "--classification or --regression", "task": "a task"}.get(
        name, "--" + name.replace("_", "-")
    )
