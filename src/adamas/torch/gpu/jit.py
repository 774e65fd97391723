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
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self, programs: int, arguments: tuple[Any, ...], constants: tuple[Any, ...], **options: int
    ) -> None:
        """Launches it on the current stream.

        Args:
            programs: how many.
            arguments: the kernel's.
            constants: those of its arguments that it is compiled for, after the others.
            options: of its compilation, the same with the same constants.
        """
        grid = programs, 1, 1
        if compiled := self._compiled.get(constants):
            compiled[grid](*arguments, *constants)
            return
        made = self._kernel[grid](*arguments, *constants, enable_fp_fusion=False, **options)
        self._compiled[constants] = made  # nothing, where Triton interprets
