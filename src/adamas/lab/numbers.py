"""Numbers of the command line."""

from __future__ import annotations

from typing import Any

from . import UserError


def parse_numbers(
    option: str, text: str, kind: type[int] | type[float], example: str = ""
) -> tuple[Any, ...]:
    """Numbers with commas between them.

    Args:
        option: the option's name, for the error.
        text: what was typed.
        kind: of the numbers.
        example: of what may be typed, for the error.

    Raises:
        UserError: something between the commas is not a number.
    """
    try:
        return tuple(kind(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        example = example or ("256,128" if kind is int else "0.9,0.999")
        raise UserError(
            f"{option} must be {'whole ' if kind is int else ''}numbers with commas between them, "
            f"such as {example}, got {text!r}"
        ) from None
