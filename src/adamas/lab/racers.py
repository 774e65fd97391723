"""Who races: update rules, each in adamas's own formats and as torch has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from .. import formats
from .. import torch as own
from . import UserError
from .names import did_you_mean


@dataclass(frozen=True)
class Rule:
    """An update rule: the class that both libraries have for it, and its settings."""

    name: str
    title: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    moments: bool = True
    """Whether it keeps any."""


RULES = {
    rule.name: rule
    for rule in (
        Rule("sgd", "gradient descent", "SGD", moments=False),
        Rule("momentum", "momentum", "SGD", {"momentum": 0.9}),
        Rule("rmsprop", "RMSProp", "RMSprop"),
        Rule("adam", "Adam", "Adam"),
        Rule("adamw", "AdamW", "AdamW"),
    )
}


@dataclass(frozen=True)
class Racer:
    """A rule with its moments in a format, or as torch.optim has it."""

    rule: Rule
    moments: str = "float32"
    theirs: bool = False
    """Whether torch's."""

    @property
    def name(self) -> str:
        """What it is called, in one line."""
        if self.theirs:
            return f"torch {self.rule.title}"
        return self.rule.title + ("" if self.moments == "float32" else f" {self.moments}")

    def optimizer(self, groups: Iterable[dict[str, Any]], **settings: Any) -> Optimizer:
        """An optimizer at its beginning.

        Args:
            groups: parameters with their lr.
            settings: more than the rule's own.
        """
        given = {**self.rule.settings, **settings}
        if self.theirs:
            return _made(getattr(torch.optim, self.rule.kind), groups, given)
        if self.moments != "float32":
            given["moments"] = self.moments
        return _made(getattr(own, self.rule.kind), groups, given)


def _made(kind: Any, groups: Iterable[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    made: Optimizer = kind(list(groups), **settings)
    return made


def line_up(
    rules: str | None = None, moments: str | None = None, theirs: bool = False
) -> list[Racer]:
    """The racers of what was typed.

    Args:
        rules: names with commas between them; all rules without.
        moments: formats likewise, raced beside float32 by every rule that keeps moments.
        theirs: whether torch's race, too.

    Raises:
        UserError: a rule or a format is unknown.
    """
    chosen = [RULES[name] for name in _names("--rules", rules, list(RULES))]
    more = [name for name in formats.FORMATS if name != "float32"]
    packed = _names("--moments", moments, more) if moments is not None else []
    racers = [Racer(rule) for rule in chosen]
    racers += [Racer(rule, name) for rule in chosen for name in packed if rule.moments]
    return racers + [Racer(rule, theirs=True) for rule in chosen if theirs]


def _names(option: str, text: str | None, known: Sequence[str]) -> list[str]:
    """The names that were typed, each once; all of them where nothing was."""
    if text is None:
        return list(known)
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise UserError(
                f"{option} must be any of {', '.join(known)}, with commas between them, got "
                f"{name!r}{did_you_mean(name, known)}"
            )
    return names
