"""Columns as numbers: what is learnt from the training rows, and the encoding that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import UserError
from .data import NO_NUMBER, listed

Features = NDArray[np.float32]
Mask = NDArray[np.bool_]

MOST_LEVELS = 100
_LARGEST = 1e100
# Numbers as some write them: 1,234,567 and 1 234,5 and 12 % and $5.
_WRITTEN = r"[-+]?[$€£]?(?:\d+|\d{1,3}(?:[,. '\u00a0\u202f]\d{3})*)(?:[.,]\d+)?\s?[%$€£]?"
LIMIT = 5.0


@dataclass(frozen=True)
class Numeric:
    """Standardized numbers: the median where missing, and a column that says so where needed."""

    kind: ClassVar[str] = "numeric"
    name: str
    median: float
    mean: float
    scale: float
    indicator: bool
    """Whether a second column marks missing cells."""

    @classmethod
    def fit(cls, series: pd.Series[Any], training: Mask) -> Numeric:
        """Learns from the training rows."""
        name = str(series.name)
        values = finite_numbers(series, name)[training]
        missing = np.isnan(values)
        if missing.all():
            return cls(name, 0.0, 0.0, 1.0, False)
        median = float(np.median(values[~missing]))
        filled = np.where(missing, median, values)
        return cls(name, median, float(filled.mean()), scale_of(filled), bool(missing.any()))

    def encode(self, series: pd.Series[Any]) -> Features:
        """One row for each cell: the number, and the indicator if there is one."""
        values = finite_numbers(series, self.name)
        missing = np.isnan(values)
        standard = (np.where(missing, self.median, values) - self.mean) / self.scale
        # A cell far outside what was seen must not outweigh all others.
        standard = np.clip(standard, -LIMIT, LIMIT)
        columns = [standard, missing] if self.indicator else [standard]
        return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Categorical:
    """One column for each level, and one for any other or missing value if training had some."""

    kind: ClassVar[str] = "categorical"
    name: str
    levels: tuple[str, ...]
    other: bool

    @classmethod
    def fit(cls, series: pd.Series[Any], training: Mask) -> Categorical:
        """Learns from the training rows; a level that occurs once there counts as other."""
        values = as_text(series)[training]
        counts = values.value_counts()
        often = counts[counts > 1].sort_index().sort_values(ascending=False, kind="stable")
        levels = tuple(sorted(str(level) for level in often.index[:MOST_LEVELS]))
        return cls(str(series.name), levels, bool((~values.isin(levels)).any()))

    def encode(self, series: pd.Series[Any]) -> Features:
        """One row for each cell, 1 in the column of its level."""
        codes = level_codes(as_text(series), self.levels)
        codes = np.where(codes < 0, len(self.levels), codes)
        eye = np.eye(len(self.levels) + 1, len(self.levels) + self.other, dtype=np.float32)
        features: Features = eye[codes]
        return features


Column = Numeric | Categorical


def fit_columns(frame: pd.DataFrame, training: Mask) -> tuple[list[Column], list[str]]:
    """Learns the encoding of every column.

    Args:
        frame: the columns to learn from, without the target.
        training: which rows are for training.

    Returns:
        The columns, and notices about those left out.

    Raises:
        UserError: a column is free text or has unusable numbers, or no column is left.
    """
    columns: list[Column] = []
    constant: list[str] = []
    for name in frame.columns:
        series = frame[name]
        if series.nunique(dropna=False) < 2:
            constant.append(str(name))
        elif numbers(series) is not None:
            columns.append(Numeric.fit(series, training))
        else:
            _check_not_free_text(as_text(series), str(name))
            columns.append(Categorical.fit(series, training))
    if not columns:
        raise UserError(
            "there is no column to learn from: beside the target, "
            "at least one with more than one value is needed"
        )
    notices = [f"left out, one value only: {listed(constant, 5)}"] if constant else []
    return columns, notices


def encode_columns(columns: Sequence[Column], frame: pd.DataFrame) -> Features:
    """The features of every row, as the columns were learnt.

    Raises:
        UserError: a column is missing, or has text where there were numbers.
    """
    missing = [column.name for column in columns if column.name not in frame]
    if missing:
        raise UserError(
            f"the data lack {len(missing)} column(s) that the model was trained with: "
            f"{listed(missing)}; add them (cells may be empty)"
        )
    return np.concatenate([column.encode(frame[column.name]) for column in columns], axis=1)


def to_json(column: Column) -> dict[str, Any]:
    """A column as plain JSON."""
    return {"kind": column.kind, **asdict(column)}


def from_json(content: Mapping[str, Any]) -> Column:
    """A column from its JSON."""
    fields = {key: value for key, value in content.items() if key != "kind"}
    if content["kind"] == Numeric.kind:
        return Numeric(**fields)
    return Categorical(**{**fields, "levels": tuple(fields["levels"])})


def numbers(series: pd.Series[Any]) -> NDArray[np.float64] | None:
    """The cells as numbers, NaN where missing, or None if one is not a number."""
    if series.dtype == bool:
        return None
    parsed = pd.to_numeric(series, errors="coerce")
    if bool((parsed.isna() & series.notna()).any()):
        return None
    return parsed.to_numpy(np.float64, na_value=np.nan)


def scale_of(values: NDArray[np.float64]) -> float:
    """The standard deviation, 1 where it is 0; of the smallest numbers, too, whose squares are."""
    around = values - values.mean()
    largest = float(np.abs(around).max()) or 1.0
    return float((around / largest).std()) * largest or 1.0


def finite_numbers(series: pd.Series[Any], name: str) -> NDArray[np.float64]:
    """The cells as numbers, NaN where missing.

    Raises:
        UserError: a cell is text, infinite, or too large to compute with.
    """
    values = numbers(series)
    if values is None:
        parsed = pd.to_numeric(series, errors="coerce")
        row = int(np.argmax((parsed.isna() & series.notna()).to_numpy()))
        raise UserError(
            f"column {name!r}, row {row + 1}: {series.iloc[row]!r} is not a number, "
            "but the column must be numeric; correct the cell or leave it empty"
        )
    large = np.abs(values) > _LARGEST
    if large.any():
        row = int(np.argmax(large))
        raise UserError(
            f"column {name!r}, row {row + 1}: {str(series.iloc[row])!r} is infinite or too large; "
            f"numbers must be finite, at most {_LARGEST:g}; correct the cell or leave it empty"
        )
    return values


def as_text(series: pd.Series[Any]) -> pd.Series[Any]:
    """The cells as text without outer spaces; booleans have one spelling, missing stays missing."""
    text = (
        series.astype(object).where(series.notna(), None).map(str, na_action="ignore").str.strip()
    )
    return text.replace({"true": "True", "TRUE": "True", "false": "False", "FALSE": "False"})


def level_codes(text: pd.Series[Any], levels: Sequence[str]) -> NDArray[np.int64]:
    """The position of each cell among the levels, -1 where it is none of them."""
    codes = {level: code for code, level in enumerate(levels)}
    return np.array([codes.get(cell, -1) for cell in text], np.int64)


def _check_not_free_text(text: pd.Series[Any], name: str) -> None:
    present = text.dropna()
    distinct = present.nunique()
    many = distinct > 20 and distinct > len(present) / 4
    wordy = distinct > len(present) / 2 and present.str.count(" ").mean() >= 3
    if not (many or wordy):
        return
    written = present[~present.isin(NO_NUMBER)]
    if len(written) and written.str.fullmatch(_WRITTEN).all():
        raise UserError(
            f"column {name!r} holds numbers such as {written.iloc[0][:40]!r}: they must be written "
            "as 1234567.8, without separators of thousands or signs; or leave it out with "
            f"--drop {name!r}"
        )
    raise UserError(
        f"column {name!r} is free text ({distinct:,} different values in {len(present):,} "
        f"rows, such as {present.iloc[0][:40]!r}): text must be categories that repeat; "
        f"leave it out with --drop {name!r}"
    )
