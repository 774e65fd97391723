"""Adam step by step on a problem of a few numbers: tables, and what they mean in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context
from math import isfinite
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..hyper import Hyper
from . import UserError
from .files import write_text
from .numbers import parse_numbers
from .problems import MOST_STEPS, Problem, by_hand, find
from .trace import Step, trace

_STEPS = 10
_PAGE_STEPS = 60
_FOUR_DIGITS = Context(prec=4, rounding=ROUND_HALF_UP)  # as JavaScript rounds in the page
_LARGEST = 1e100  # of what is typed: its square, and more, is still finite

# Key of a Step, heading, and the hyperparameter without which there is no such column.
COLUMNS = (
    ("p", "p", ""),
    ("g", "g", ""),
    ("decay", "decay", "weight_decay"),
    ("m", "m", ""),
    ("v", "v", ""),
    ("v_max", "max v", "amsgrad"),
    ("m_hat", "m-hat", ""),
    ("v_hat", "v-hat", ""),
    ("step", "step", ""),
    ("update", "update", ""),
    ("new", "new p", ""),
)

WORDS = (
    ("g", "The gradient: the slope of the loss at p. Downhill is against it."),
    (
        "m",
        "A moving average of the gradients, beta1 of the last m and 1 - beta1 of g. What gradients "
        "agree on stays, what changes sign cancels: this is momentum.",
    ),
    (
        "v",
        "The same of squared gradients, with beta2. It tells how large this number's gradients "
        "are, whatever their sign: this is RMSProp's average.",
    ),
    (
        "m-hat, v-hat",
        "Both averages start at 0, so at first they are too small: the first m is only "
        "(1 - beta1) g. Divided by 1 - beta^t, the weight that t gradients have had together, the "
        "first m-hat is g and the first v-hat is g squared. As beta^t fades, so does the "
        "correction.",
    ),
    (
        "step",
        "The effective step lr / (sqrt(v-hat) + eps), the rate that this number has now. Where "
        "gradients are large it is small, where they are small it is large, so each number moves "
        "by about lr, whatever the scale of its gradients. eps keeps the rate finite where all "
        "gradients were 0.",
    ),
    (
        "update",
        "step times m-hat, and AdamW's decay: momentum says where to, RMSProp's division how far. "
        "new p is p - update.",
    ),
    (
        "decay",
        "Pulls a weight to 0. AdamW adds lr weight_decay p to the update, beside the division, so "
        "all weights shrink at the same rate. Adam adds weight_decay p to g instead: it passes "
        "through m, v and the division, and weights with large gradients hardly decay.",
    ),
    (
        "max v",
        "AMSGrad divides by the largest v so far, so that a large gradient is never forgotten and "
        "many small ones after it cannot undo what it said.",
    ),
)


@dataclass(frozen=True)
class Lesson:
    """What is to be explained."""

    problem: Problem
    hyper: Hyper
    steps: int
    page_steps: int
    """At first, in the page."""
    start: tuple[float, ...]

    def table_columns(self) -> list[tuple[str, str]]:
        """Key and heading of each column that says something."""
        return [(key, name) for key, name, of in COLUMNS if not of or getattr(self.hyper, of)]


def prepare(
    hyper: Hyper,
    problem: str | None = None,
    gradients: str | None = None,
    start: str | None = None,
    steps: int | None = None,
) -> Lesson:
    """Makes a lesson of what was typed.

    Args:
        hyper: the hyperparameters.
        problem: its name; the quadratic without it.
        gradients: numbers with commas between them, instead of a problem.
        start: likewise, where to begin.
        steps: how many.

    Raises:
        UserError: something of it is not possible.
    """
    if problem is not None and gradients is not None:
        raise UserError("--problem and --gradients exclude each other: give one of them")
    try:
        hyper.coefficients(1, "float64")  # its bias corrections are the smallest
    except ValueError as error:
        raise UserError(str(error)) from None
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise UserError(f"--steps must be from 1 to {MOST_STEPS}, got {steps}")
    given = None if gradients is None else _typed("--gradients", gradients, "1,0,-2")
    if given is not None and len(given) > MOST_STEPS:
        raise UserError(f"--gradients must be at most {MOST_STEPS} numbers, got {len(given)}")
    chosen = find(problem or "quadratic") if given is None else by_hand(given)
    place = chosen.start
    if start is not None:
        place = _typed("--start", start, ",".join(f"{x:g}" for x in chosen.start))
        if len(place) != len(chosen.start):
            count = len(chosen.start)
            raise UserError(
                f"--start must be {count} number{'s' * (count > 1)} for the problem "
                f"{chosen.name!r}, got {len(place)}"
            )
    default = _STEPS if given is None else len(given)
    page_default = _PAGE_STEPS if given is None else len(given)
    return Lesson(chosen, hyper, steps or default, steps or page_default, place)


def _typed(option: str, text: str, example: str) -> tuple[float, ...]:
    values = parse_numbers(option, text, float, example)
    if not values or not all(abs(value) <= _LARGEST for value in values):  # not: NaN is never
        raise UserError(
            f"{option} must be finite numbers, at least one and none beyond {_LARGEST:g}, such as "
            f"{example}, got {text!r}"
        )
    return values


def number(value: float) -> str:
    """Four digits, in as few characters as they need."""
    rounded = float(_FOUR_DIGITS.create_decimal_from_float(value))
    mantissa, _, exponent = f"{rounded + 0.0:.4g}".partition("e")
    return mantissa + (f"e{int(exponent)}" if exponent else "")


def show(lesson: Lesson, html: Path | None = None) -> None:
    """Prints the steps and what they mean, and writes the page where one is asked for.

    Raises:
        UserError: the page cannot be written.
    """
    if html is not None:
        from .explain_page import explain_page

        try:
            write_text(html, explain_page(lesson))
        except OSError as error:
            raise UserError(
                f"--html {html} cannot be written ({error.strerror}): choose another"
            ) from None
    console = Console(highlight=False, markup=False)
    steps = trace(lesson.problem, lesson.hyper, lesson.steps, lesson.start)
    console.print(f"{lesson.problem.name}: {lesson.problem.about}")
    console.print(_settings(lesson.hyper))
    for index in range(len(lesson.start)):
        # As wide as it has to be: rich would cut digits off to fit a narrow terminal.
        console.print(_table(lesson, steps, index), soft_wrap=True)
        console.print()
    console.print(_words(lesson))
    console.print()
    for line in _remarks(lesson, steps):
        console.print(line)
    if html is not None:
        console.print(f"page: {html}", soft_wrap=True)


def _settings(hyper: Hyper) -> str:
    name = ("Adam", "AdamW")[hyper.decoupled_weight_decay] if hyper.weight_decay else "Adam"
    parts = [f"lr {hyper.lr:g}", "beta1 {:g}, beta2 {:g}".format(*hyper.betas)]
    parts += [f"eps {hyper.eps:g}"]
    parts += [f"weight decay {hyper.weight_decay:g}"] if hyper.weight_decay else []
    return f"{name}{' with AMSGrad' if hyper.amsgrad else ''}: {', '.join(parts)}"


def _table(lesson: Lesson, steps: Sequence[Step], index: int) -> Table:
    """The steps of one of the parameter's numbers."""
    columns = lesson.table_columns()
    rows = [
        (str(step.t), *(number(float(getattr(step, key)[index])) for key, _ in columns))
        for step in steps
    ]
    headings = ("t", *(name for _, name in columns))
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    table = Table(width=sum(widths) + 2 * len(widths) - 2)
    table.box, table.padding, table.show_edge = SIMPLE_HEAD, 0, False
    if len(lesson.start) > 1:
        table.title = f"number {index + 1} of {len(lesson.start)}"
        table.title_justify, table.title_style = "left", "bold"
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _words(lesson: Lesson) -> Table:
    """What each column is, and why."""
    names = {name for _, name in lesson.table_columns()} | {"m-hat, v-hat", "decay"}
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, text in WORDS:
        if name in names:
            grid.add_row(name, text)
    return grid


def _remarks(lesson: Lesson, steps: Sequence[Step]) -> list[str]:
    """What there is to see in these numbers."""
    first, last, beta1 = steps[0], steps[-1], lesson.hyper.betas[0]
    m, m_hat = (number(float(x[0])) for x in (first.m, first.m_hat))
    lines = [f"at t = 1, m is {m}; divided by 1 - {beta1:g}^1 it is m-hat, {m_hat}"]
    end = ", ".join(number(float(x)) for x in last.new)
    line = f"after {last.t} step{'s' * (last.t > 1)}, p is {end}"
    before = lesson.problem.loss(first.p)
    if before is not None and last.loss is not None:
        line += f"; the loss went from {number(before)} to {number(last.loss)}"
    lines.append(line)
    if not all(isfinite(float(x)) for x in last.new):
        lines.append("the numbers grew beyond float64: lower --lr")
    return lines
