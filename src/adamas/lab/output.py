"""Standard output of commands whose work is in files, which goes on where nobody reads along."""

from __future__ import annotations

import errno
import os
from typing import Any

import typer
from rich.console import Console

from . import TrainingError


class Output(Console):
    """Standard output that may be lost, by a full disk or a reader that has gone."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, soft_wrap=True)
        self._lost = ""  # why

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints while it can."""
        if self._lost:
            return
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._lost = error.strerror or str(error)

    def tell(self, text: str) -> None:
        """Prints what has to be known, on standard error where standard output is lost."""
        self.print(text)
        if self._lost:
            typer.echo(f"adamas: {text}", err=True)

    def check(self, result: object) -> None:
        """Raises where it was lost, once all is done.

        Args:
            result: the file or folder that has all of it.

        Raises:
            TrainingError: it was.
        """
        if self._lost:
            raise TrainingError(
                f"standard output could not be written ({self._lost}); all was done without it, "
                f"and is in {result}"
            )

    def on_broken_pipe(self) -> None:
        """Leaves it to ``print``: rich would end the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
