"""Reading data: a CSV file, or scikit-learn's bundled handwritten digits."""

from __future__ import annotations

import csv
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import UserError
from .names import did_you_mean

DIGITS = "digits"
_DELIMITERS = ",;\t|"
# What stands for no number. In columns of text only an empty cell is missing: others are words.
_UNKNOWN = ("", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NULL", "null", "None")
_NOT_A_NUMBER = ("NaN", "-NaN", "nan", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN")
NO_NUMBER = [*_UNKNOWN, *_NOT_A_NUMBER]
_FIRST_ROWS = 1000


@dataclass(frozen=True)
class Table:
    """Rows of named columns as they were read."""

    name: str
    path: Path | None
    """The file, or None for the digits."""
    fingerprint: str
    """SHA-256 of the content."""
    frame: pd.DataFrame
    """A file's columns are float64 or text; NaN is missing."""
    notices: tuple[str, ...] = ()
    """What was left out and why."""


def read_table(path: Path | None, text: Collection[str] = ()) -> Table:
    """Reads a CSV file, or the digits where there is no path.

    Args:
        path: the file.
        text: columns whose cells are text even if all are numbers.

    Raises:
        UserError: the file cannot be read as a table.
    """
    return _digits() if path is None else _read_csv(path, text)


def _digits() -> Table:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    frame = pd.DataFrame(pixels, columns=names).assign(digit=labels)
    content = frame.to_numpy("<f8").tobytes()
    return Table(DIGITS, None, hashlib.sha256(content).hexdigest(), frame)


def _read_csv(path: Path, texts: Collection[str]) -> Table:
    text, fingerprint = _read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty: a CSV file needs a line of column names, then rows")
    headers = {delimiter: _first_row(path, text, delimiter) for delimiter in _DELIMITERS}
    delimiter = max(headers, key=lambda d: len(headers[d]))
    names = [name.strip() for name in headers[delimiter]]
    _check_names(path, names)
    frame = _parse(path, text, delimiter, [name in texts for name in names])
    if frame.empty:
        raise UserError(f"{path} has column names but no rows: at least one row is needed")
    named = [index for index, name in enumerate(names) if name]
    unnamed = len(names) - len(named)
    frame = frame.iloc[:, named].set_axis([names[index] for index in named], axis=1)
    notices = (f"left out: {unnamed} column(s) without a name",) if unnamed else ()
    return Table(path.stem, path.resolve(), fingerprint, frame, (*notices, *_words(frame)))


def _words(frame: pd.DataFrame) -> Iterator[str]:
    """Notices of cells of text that elsewhere may say that there is nothing."""
    for name in frame.select_dtypes(exclude="number"):
        found = frame[name][frame[name].isin(NO_NUMBER)]
        if len(found):
            yield (
                f"{listed(sorted(set(found)))} in {len(found):,} cell(s) of {str(name)!r} is taken "
                "as a word like any other: leave cells empty where nothing is known"
            )


def _read_text(path: Path) -> tuple[str, str]:
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a CSV file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a CSV file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its rights") from None
    if b"\0" in content:
        raise UserError(f"{path} is not a CSV file: it holds binary data; save it as CSV text")
    try:
        return content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start + 1}): save it as UTF-8 CSV"
        ) from None


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, and the numbers of their last lines."""
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in rows:
            if len(row) > 1 or "".join(row).strip():
                yield rows.line_num, row
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}; save it as CSV text") from None


def _first_row(path: Path, text: str, delimiter: str) -> list[str]:
    return next((row for _, row in _rows(path, text, delimiter)), [])


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise UserError(
            f"{path} has more than one column named {listed(twice)}: "
            "column names must differ; rename or remove one"
        )


def _parse(path: Path, text: str, delimiter: str, as_text: Sequence[bool]) -> pd.DataFrame:
    columns = len(as_text)

    def read(numeric: Collection[int], rows: int | None = None) -> pd.DataFrame:
        missing: dict[Any, Any] = {i: NO_NUMBER if i in numeric else "" for i in range(columns)}
        return pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=0,
            names=list(range(columns)),
            index_col=False,
            dtype={index: float if index in numeric else str for index in range(columns)},
            keep_default_na=False,
            na_values=missing,
            skipinitialspace=True,
            nrows=rows,
        )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            first = read((), _FIRST_ROWS)
            numeric = [
                index
                for index in range(columns)
                if not as_text[index] and not _has_text(first[index])
            ]
            try:
                frame = read(numeric)
                if np.isinf(frame[numeric].to_numpy()).any():
                    raise ValueError  # to be told with the cell as it is written
            except ValueError:  # text further down
                frame = read(())
                for index in numeric:
                    frame[index] = _as_numbers(frame[index])
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        reason = str(error).strip().splitlines()[0].removeprefix("Error tokenizing data. ")
        raise UserError(
            f"{path} is not a table of {columns} columns: {reason.removeprefix('C error: ')}; "
            "every row must have as many cells as the first line"
        ) from None
    if frame[columns - 1].isna().any():  # pandas fills short rows up with missing cells
        for line, row in _rows(path, text, delimiter):
            if len(row) < columns:
                raise UserError(
                    f"{path} is not a table of {columns} columns: line {line} has fewer; "
                    "every row must have as many cells as the first line"
                )
    return frame


def _as_numbers(cells: pd.Series[Any]) -> pd.Series[Any]:
    """A column of cells as they are written, as numbers if all are, and finite."""
    if _has_text(cells):
        return cells
    written = cells.where(~cells.isin(NO_NUMBER))
    found = pd.to_numeric(written).astype(float)
    return written if np.isinf(found).any() else found


def _has_text(cells: pd.Series[Any]) -> bool:
    missing = cells.isna() | cells.isin(NO_NUMBER)
    return bool((pd.to_numeric(cells, errors="coerce").isna() & ~missing).any())


def drop_columns(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The table without some columns.

    Raises:
        UserError: there is no such column.
    """
    for name in names:
        check_column(frame, name, "--drop")
    return frame.drop(columns=list(names))


def check_column(frame: pd.DataFrame, name: str, option: str) -> None:
    """Checks that a column is there.

    Raises:
        UserError: it is not; the message names the nearest one.
    """
    columns = [str(column) for column in frame.columns]
    if name in columns:
        return
    hint = did_you_mean(name, columns)
    raise UserError(f"{option} {name!r} is not a column: it must be one of {listed(columns)}{hint}")


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for a message, the rest counted where there are many."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest
