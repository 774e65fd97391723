"""Measures a step of adamas, and of every other AdamW installed, against the memory's limit."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bars import Bar
    from .report import Report
    from .run import bench

__all__ = ["Bar", "Report", "bench"]

_HOMES = {"Bar": "bars", "Report": "report", "bench": "run"}


def __getattr__(name: str) -> Any:
    # When they are asked for, since they need rich and plotly: the measure and its workloads do
    # not, and are used where neither is installed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
