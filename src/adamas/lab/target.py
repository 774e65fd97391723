"""What is predicted: one of some classes, or a number; told from the target column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import UserError
from .columns import Mask, as_text, finite_numbers, level_codes, numbers, scale_of
from .data import listed

FEW = 20
MINIMUM_ROWS = 10
_TOO_LARGE_A_LABEL = 2**53


@dataclass(frozen=True)
class Classes:
    """A target that is one of some classes."""

    kind: ClassVar[str] = "classification"
    score_name: ClassVar[str] = "accuracy"
    name: str
    classes: tuple[str, ...]
    numeric: bool
    """Whether the classes are numbers, of which each has one spelling: 1, 01 and 1.0 are one."""

    @property
    def outputs(self) -> int:
        """The width of the network's last layer."""
        return len(self.classes)

    def encode(self, series: pd.Series[Any]) -> NDArray[np.int64]:
        """The position of each cell's class, -1 where it is none of them."""
        if self.numeric:
            # A cell that is no number is none of the classes, and leaves the others theirs.
            series = labels(pd.to_numeric(series, errors="coerce"))
        return level_codes(as_text(series), self.classes)


@dataclass(frozen=True)
class Value:
    """A target that is a number, standardized."""

    kind: ClassVar[str] = "regression"
    score_name: ClassVar[str] = "R²"
    name: str
    mean: float
    scale: float

    @property
    def outputs(self) -> int:
        """The width of the network's last layer."""
        return 1

    def encode(self, series: pd.Series[Any]) -> NDArray[np.float32]:
        """The standardized numbers, NaN where missing."""
        values = finite_numbers(series, self.name)
        return ((values - self.mean) / self.scale).astype(np.float32)

    def decode(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Numbers from standardized ones."""
        return outputs.astype(np.float64) * self.scale + self.mean


Target = Classes | Value


def tell_kind(series: pd.Series[Any], forced: str | None = None) -> tuple[str, str]:
    """Tells classification from regression.

    Args:
        series: the target, without missing cells.
        forced: the kind that was asked for, if any.

    Returns:
        The kind, and the reason in words.

    Raises:
        UserError: regression was asked for, but the target is not numeric.
    """
    values = numbers(series)
    distinct = series.nunique()
    if forced == Value.kind and values is None:
        raise UserError(
            f"--regression needs a numeric target, but {series.name!r} holds text such as "
            f"{series.iloc[0]!r}; use --classification"
        )
    if forced:
        return forced, "as asked for"
    if values is None:
        return Classes.kind, f"{series.name!r} holds {distinct} different texts"
    whole = bool((values == np.round(values)).all())
    if whole and (distinct == 2 or distinct <= min(FEW, len(series) // 3)):
        return Classes.kind, f"{series.name!r} holds {distinct} different whole numbers"
    what = "whole numbers" if whole else "numbers"
    return Value.kind, f"{series.name!r} holds {distinct} different {what}"


def check_target(series: pd.Series[Any], kind: str) -> None:
    """Checks that a target can be learnt.

    Raises:
        UserError: it is constant, free text, infinite, too short, or a class occurs once.
    """
    name = series.name
    if len(series) < MINIMUM_ROWS:
        raise UserError(
            f"{len(series)} row(s) have a target: at least {MINIMUM_ROWS} are needed to train "
            "and validate; add rows"
        )
    if kind == Value.kind:
        finite_numbers(series, str(name))
    else:
        _check_labels(series, str(name))
    counts = (labels(series) if kind == Classes.kind else series).value_counts()
    if len(counts) == 1:
        raise UserError(
            f"target {name!r} is {str(counts.index[0])!r} in every row: it must have at least two "
            "different values; choose another --target"
        )
    if kind == Classes.kind:
        _check_classes(counts, str(name), numbers(series) is not None)


def _check_labels(series: pd.Series[Any], name: str) -> None:
    if numbers(series) is None:
        return
    values = finite_numbers(series, name)
    if (large := np.abs(values) >= _TOO_LARGE_A_LABEL).any():
        raise UserError(
            f"target {name!r} has the class {values[large][0]:.0f}: numbers that name classes must "
            "be below 2^53, from where on neighbours are one float64; make them text, as with a "
            "letter before, or use --regression"
        )


def _check_classes(counts: pd.Series[int], name: str, numeric: bool) -> None:
    total = int(counts.sum())
    if len(counts) > FEW and len(counts) > total / 4:
        remedy = "use --regression" if numeric else "choose another --target"
        raise UserError(
            f"target {name!r} has {len(counts):,} different values in {total:,} rows: "
            f"classes must repeat; {remedy}"
        )
    once = [str(label) for label in counts.index[counts == 1]]
    if once:
        remedy = "or use --regression" if numeric else "or merge it with another class"
        raise UserError(
            f"class(es) {listed(once, 5)} of target {name!r} occur once: a class needs a row to "
            f"train and one to validate; remove the row, add more, {remedy}"
        )


def labels(series: pd.Series[Any]) -> pd.Series[Any]:
    """The cells as class names; whole numbers have one spelling, however they are written."""
    values = numbers(series)
    if values is None:
        return as_text(series)
    texts = [
        None if np.isnan(v) else str(int(v)) if v.is_integer() else repr(v) for v in values.tolist()
    ]
    return pd.Series(texts, series.index, dtype=object, name=series.name)


def fit_target(series: pd.Series[Any], kind: str, training: Mask) -> Target:
    """Learns the classes from all rows, or the mean and scale from the training rows."""
    name = str(series.name)
    if kind == Classes.kind:
        distinct = labels(series).drop_duplicates()
        as_numbers = numbers(distinct)
        key = distinct if as_numbers is None else pd.Series(as_numbers, distinct.index)
        classes = tuple(str(label) for label in distinct[key.sort_values().index])
        return Classes(name, classes, as_numbers is not None)
    values = finite_numbers(series, name)[training]
    return Value(name, float(values.mean()), scale_of(values))


def split(series: pd.Series[Any], kind: str, fraction: float, seed: int) -> Mask:
    """Chooses the training rows, a pure function of the arguments.

    Each class gives its share to validation, at least one row, and keeps at least one.

    Returns:
        A mask: True for training, False for validation.

    Raises:
        UserError: a part would have fewer than two rows.
    """
    random = np.random.default_rng([seed, 0])
    rows = len(series)
    if kind == Classes.kind:
        codes, _ = pd.factorize(labels(series))
    else:
        codes = np.zeros(rows, np.int64)
    training = np.ones(rows, np.bool_)
    for code in range(int(codes.max()) + 1):
        members = random.permutation(np.flatnonzero(codes == code))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        training[members[:count]] = False
    for part, count in (("training", training.sum()), ("validation", rows - training.sum())):
        if count < 2:
            raise UserError(
                f"--validation {fraction} of {rows} rows leaves {count} for {part}: "
                "each part needs at least 2; choose another fraction or add rows"
            )
    return training


def to_json(target: Target) -> dict[str, Any]:
    """A target as plain JSON."""
    return {"kind": target.kind, **asdict(target)}


def from_json(content: Mapping[str, Any]) -> Target:
    """A target from its JSON."""
    if content["kind"] == Classes.kind:
        return Classes(content["name"], tuple(content["classes"]), content["numeric"])
    return Value(content["name"], content["mean"], content["scale"])
