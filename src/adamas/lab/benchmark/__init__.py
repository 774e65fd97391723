"""Measures a step of adamas, and of every other AdamW installed, against the memory's limit."""

from .bars import Bar
from .report import Report
from .run import bench

__all__ = ["Bar", "Report", "bench"]
