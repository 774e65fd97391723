"""The command line as a whole: what every command belongs to, and what runs the one typed."""

from __future__ import annotations

import sys
from typing import Any

import typer

from . import UserError
from .commands import predict, train, tune
from .tools import bench, compare, convert, explain, memory

app = typer.Typer(
    help="Adam at the speed of memory: train, predict, convert and measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (train, tune, predict, convert, memory, explain, compare, bench):
    app.command()(_command)


def run() -> int:
    """Runs the command that was typed.

    Returns:
        The exit status.

    Raises:
        UserError: the command line is wrong, or what it asks for.
        KeyboardInterrupt: it was stopped before there was anything to save.
    """
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # The class is click's or typer's own, depending on typer's version.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if not message:  # the help was asked for by giving no command, and is printed
            return 2
        raise UserError(f"{message.rstrip('.')}{_typed(error)}: see --help") from None


def _typed(error: Any) -> str:
    """What was typed for the option that is wrong, where the message does not say it."""
    names = [name for name in getattr(getattr(error, "param", None), "opts", ()) if name[0] == "-"]
    found = None
    for typed, following in zip(sys.argv[1:], [*sys.argv[2:], None], strict=True):
        name, equals, value = typed.partition("=")
        if name in names:  # of several, the last counts
            found = value if equals else following
    return "" if found is None or repr(found) in str(error) else f", got {found!r}"
