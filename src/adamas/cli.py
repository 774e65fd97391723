"""The ``adamas`` command."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

_NEEDED = ("torch", "sklearn", "pandas", "rich", "typer", "plotly", "safetensors")


def main() -> int:
    """Runs the command that was typed.

    Returns:
        The exit status: 0, 1 if it failed, 2 for bad input, 128 and the signal if it was stopped.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        _print(f"the command line needs {', '.join(missing)}: pip install 'adamas[lab]'")
        return 1
    from .lab import TrainingError, UserError, out_of_memory
    from .lab.app import run

    try:
        return run()
    except UserError as error:
        _print(str(error))
        return 2
    except (TrainingError, OSError) as error:
        _print(str(error))
        _drop_output()
        return 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _print("there is not enough memory: choose smaller --layers or --batch-size, or fewer rows")
        return 1
    except KeyboardInterrupt:
        _print("stopped")
        return 130


def _print(message: str) -> None:
    print("adamas: " + " ".join(message.split()), file=sys.stderr)


def _drop_output() -> None:
    """Drops what could not be printed, which Python would try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
