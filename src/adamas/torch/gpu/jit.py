"""Triton's compiler, typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

from .staging import OUT_OF_PLACE, is_capturing

_ONE = 1, 1, 1  # program


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

    def compile(
        self, arguments: tuple[Any, ...], constants: tuple[Any, ...], **options: int
    ) -> None:
        """Compiles it and loads it on the device, which a launch then need not; as ``__call__``.

        Where Triton interprets, there is nothing to compile.

        Raises:
            RuntimeError: a graph is captured, during which nothing can be loaded.
        """
        if constants in self._compiled:
            return
        if is_capturing(arguments[0].device):
            raise RuntimeError(OUT_OF_PLACE)
        made = self._kernel.warmup(
            *arguments, *constants, grid=_ONE, enable_fp_fusion=False, **options
        )
        if made is not None:
            made[_ONE]  # what may fail of loading it, fails now
        self._compiled[constants] = made

    def __call__(
        self, programs: int, arguments: tuple[Any, ...], constants: tuple[Any, ...], **options: int
    ) -> None:
        """Launches it on the current stream.

        Args:
            programs: how many.
            arguments: the kernel's; the first is a tensor.
            constants: those of its arguments that it is compiled for, after the others.
            options: of its compilation, the same with the same constants.
        """
        if constants not in self._compiled:
            self.compile(arguments, constants, **options)
        grid = programs, 1, 1
        if compiled := self._compiled[constants]:
            compiled[grid](*arguments, *constants)
        else:
            self._kernel[grid](*arguments, *constants, enable_fp_fusion=False, **options)
