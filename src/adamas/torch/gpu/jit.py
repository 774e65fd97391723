"""Triton's compiler, typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``: what a kernel is made with, and what it calls."""
    return triton.jit(function)


def jit_with(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """The same with options."""
    made: Callable[[Callable[..., Any]], Any] = triton.jit(**options)
    return made
