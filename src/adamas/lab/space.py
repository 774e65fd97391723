"""What a search may choose: ranges of Adam's hyperparameters, and how a trial picks from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import UserError
from .numbers import parse_numbers

if TYPE_CHECKING:
    from optuna import Trial

Values = dict[str, float]

# Adam's own defaults, those of `adamas train`; the first trial has them.
DEFAULTS: Values = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
RANGES = {
    "lr": (1e-5, 1e-1),
    "beta1": (0.5, 0.99),
    "beta2": (0.9, 0.9999),
    "eps": (1e-10, 1e-4),
    "weight_decay": (1e-4, 1.0),
}
_BETAS = ("beta1", "beta2")
_DECAYS = "decays"  # whether a trial has weight decay; how much is searched where it has
_DIGITS = 3  # of a value, so that what is printed is what was tried


@dataclass(frozen=True)
class Space:
    """Ranges by hyperparameter; one whose ends are equal is fixed.

    All are searched on a logarithmic scale, betas as ``1 - beta``: the distance to 1 is what
    counts. Weight decay is searched as none or one in its range.
    """

    ranges: Mapping[str, tuple[float, float]]

    def only(self, names: Collection[str]) -> Space:
        """The ranges of these hyperparameters alone."""
        return Space({name: ends for name, ends in self.ranges.items() if name in names})

    def suggest(self, trial: Trial) -> Values:
        """The values of a trial, of three digits."""
        values = {}
        for name, (low, high) in self.ranges.items():
            if low == high:
                values[name] = low
            elif name == "weight_decay" and not trial.suggest_categorical(_DECAYS, [True, False]):
                values[name] = 0.0
            else:
                ends = _searched(name, low), _searched(name, high)
                found = trial.suggest_float(_label(name), min(ends), max(ends), log=True)
                values[name] = _original(name, found)
        return values

    def first(self) -> dict[str, Any]:
        """The default hyperparameters as parameters of a trial, as near as the ranges allow."""
        params: dict[str, Any] = {}
        for name, (low, high) in self.ranges.items():
            if low < high:
                value = min(max(DEFAULTS[name], low), high)
                params[_label(name)] = _searched(name, value)
                if name == "weight_decay":
                    params[_DECAYS] = True
        return params

    def values(self, params: Mapping[str, Any]) -> Values:
        """The values of a trial that is over, or as many as it got to."""
        values = {}
        for name, (low, high) in self.ranges.items():
            if low == high:
                values[name] = low
            elif _label(name) in params:
                values[name] = _original(name, params[_label(name)])
            elif name == "weight_decay" and params.get(_DECAYS) is False:
                values[name] = 0.0
        return values

    def to_json(self) -> dict[str, list[float]]:
        """The ranges as plain JSON."""
        return {name: list(ends) for name, ends in self.ranges.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Space:
        """Ranges from their JSON."""
        return cls({name: (float(low), float(high)) for name, (low, high) in content.items()})


def parse_space(given: Mapping[str, str | None]) -> Space:
    """Ranges as they are typed: ``LOW,HIGH``, or one number that fixes the value.

    Raises:
        UserError: a range is empty, or leaves what Adam allows.
    """
    ranges = {}
    for name, default in RANGES.items():
        text = given.get(name)
        ranges[name] = default if text is None else _parse_range(name, text)
    return Space(ranges)


def _parse_range(name: str, text: str) -> tuple[float, float]:
    option = f"--{name.replace('_', '-')}"
    numbers = parse_numbers(option, text, float)
    if len(numbers) not in (1, 2):
        low, high = RANGES[name]
        raise UserError(
            f"{option} must be LOW,HIGH, such as {low:g},{high:g}, or one number that fixes it, "
            f"got {text!r}"
        )
    low, high = numbers[0], numbers[-1]
    if low > high or (len(numbers) == 2 and low == high):
        more = "" if low == high else f", such as {option} {high:g},{low:g}"
        raise UserError(
            f"{option} {text} is an empty range: the low end must be below the high one{more}; "
            "one number alone fixes the value"
        )
    if name in _BETAS:
        rule, inside = "in [0, 1)", low >= 0 and high < 1
    elif name == "lr":
        rule, inside = "finite and above 0", low > 0 and high < float("inf")
    else:
        fixed = low == high  # zero has no place on a logarithmic scale
        rule = "finite and above 0 (to fix it at 0, give 0 alone)"
        inside = (low > 0 or (low == 0 and fixed)) and high < float("inf")
    if not inside:
        raise UserError(f"{option} must be {rule}, got {text}")
    return low, high


def command_options(values: Mapping[str, float]) -> str:
    """Values as options of ``adamas train``."""
    parts = [f"--lr {values['lr']:g}"] if "lr" in values else []
    if all(name in values for name in _BETAS):
        parts.append(f"--betas {values['beta1']:.12g},{values['beta2']:.12g}")
    parts += [
        f"--{name.replace('_', '-')} {values[name]:g}"
        for name in ("eps", "weight_decay")
        if name in values
    ]
    return " ".join(parts)


def code(values: Mapping[str, float]) -> str:
    """Values as a line of Python that makes the optimizer."""
    parts = [f"lr={values['lr']:g}"] if "lr" in values else []
    if any(name in values for name in _BETAS):
        betas = [values.get(name, DEFAULTS[name]) for name in _BETAS]
        parts.append(f"betas=({betas[0]:.12g}, {betas[1]:.12g})")
    parts += [f"{name}={values[name]:g}" for name in ("eps", "weight_decay") if name in values]
    return f"AdamW({', '.join(['params', *parts])})"


def text(values: Mapping[str, float]) -> str:
    """Values on one line."""
    return "  ".join(f"{name} {value:.12g}" for name, value in values.items())


def _label(name: str) -> str:
    return f"one_minus_{name}" if name in _BETAS else name


def _searched(name: str, value: float) -> float:
    return round(1 - value, 12) if name in _BETAS else value


def _original(name: str, found: float) -> float:
    short = float(f"{found:.{_DIGITS}g}")
    return round(1 - short, 12) if name in _BETAS else short
