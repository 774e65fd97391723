"""The ``adamas`` command."""

from __future__ import annotations

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
    from .lab import TrainingError, UserError
    from .lab.commands import run

    try:
        return run()
    except UserError as error:
        _print(str(error))
        return 2
    except (TrainingError, OSError) as error:
        _print(str(error))
        return 1
    except KeyboardInterrupt:
        _print("stopped")
        return 130


def _print(message: str) -> None:
    print("adamas: " + " ".join(message.split()), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
