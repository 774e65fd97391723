"""Files that are whole or not there, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file beside its place, makes sure it is on disk, and renames it.

    What a symbolic link names is replaced, not the link; what is there and is no plain file, as a
    device or a pipe, is written to as it is.

    Args:
        path: where the file shall be.
        write: writes the content to the open file.

    Raises:
        OSError: it cannot be written; what was at ``path`` is as it was.
    """
    if path.exists() and not path.is_file():
        content = BytesIO()  # a pipe cannot go back to where it has been
        write(content)
        path.write_bytes(content.getbuffer())
        return
    path = Path(os.path.realpath(path))
    beside = partial_path(path)
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def append_line(path: Path, line: str) -> None:
    """Appends a line and makes sure it is on disk."""
    with open(path, "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def partial_path(path: Path) -> Path:
    """Where a file is written before it is renamed; a killed process may leave it behind."""
    return path.with_name(f".{path.name}.partial")


def _sync_folder(folder: Path) -> None:
    """Makes a rename last; systems where a folder cannot be opened do so by themselves."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
