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


class Launcher:
    """Launches a kernel on one device, going straight to what was compiled of it.

    Triton's own way there looks at every argument and every global constant, and takes ten times as
    long. What it would look for cannot change here: arguments that are whole numbers are not
    specialized, and tensors begin at multiples of 16 bytes.

    Args:
        kernel: what ``jit`` has made.
        warps: of a program.
    """

    def __init__(self, kernel: Any, warps: int) -> None:
        self._kernel, self._warps = kernel, warps
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, programs: int, arguments: tuple[Any, ...], constants: Any = ()) -> None:
        """Launches it on the current stream.

        Args:
            programs: how many.
            arguments: the kernel's.
            constants: those of its arguments that it is compiled for, after the others.
        """
        grid, constants = (programs, 1, 1), tuple(constants)
        if compiled := self._compiled.get(constants):
            compiled[grid](*arguments, *constants)
            return
        made = self._kernel[grid](
            *arguments, *constants, num_warps=self._warps, enable_fp_fusion=False
        )
        self._compiled[constants] = made  # nothing, where Triton interprets
