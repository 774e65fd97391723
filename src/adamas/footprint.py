"""What training keeps in memory from step to step: weights, gradients and Adam's state.

Beside it there are activations, which depend on the model and the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .formats import FORMATS, slots
from .hyper import Hyper

Tensors = Sequence[tuple[tuple[int, ...], str]]
"""The shape and the dtype of each parameter."""

WEIGHTS = ("float32", "float64", "bfloat16", "float16")
SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}

_HEADINGS = ("weights", "master", "gradients", "moments", "total", "bytes a param")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


class Line(NamedTuple):
    """Bytes that are kept for some parameters."""

    name: str
    """Of the optimizer, or of the group."""
    elements: int = 0
    """Of all the parameters."""
    weights: int = 0
    master: int = 0
    """Master weights, or what they have beyond the weights."""
    gradients: int = 0
    moments: int = 0
    """With their scales."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.master + self.gradients + self.moments

    @property
    def bytes_a_parameter(self) -> float:
        """All of it, by the elements; 0 where there are none."""
        return self.total / self.elements if self.elements else 0.0


def torch_line(
    tensors: Tensors,
    master: bool = False,
    amsgrad: bool = False,
    gradients: str | None = None,
) -> Line:
    """What ``torch.optim.Adam`` keeps, whose moments are of the dtype of what it steps.

    Args:
        tensors: the parameters.
        master: whether it steps float32 copies of those that have 16 bits.
        amsgrad: whether the largest second moment is kept too.
        gradients: their dtype; by default the parameters'.

    Raises:
        ValueError: a dtype is unknown.
    """

    def beside(shape: tuple[int, ...], dtype: str) -> tuple[int, int]:
        copied = master and SIZES[dtype] == 2
        each = SIZES["float32" if copied else dtype]
        return math.prod(shape) * 4 * copied, math.prod(shape) * each * (3 if amsgrad else 2)

    name = "torch, master" if master else "torch"
    return _line(name, tensors, gradients, beside)


def adamas_line(
    tensors: Tensors,
    moments: str = "float32",
    master_bits: int | None = None,
    amsgrad: bool = False,
    gradients: str | None = None,
) -> Line:
    """What adamas keeps; the arguments are those of ``torch_line`` and of ``formats.slots``.

    Raises:
        ValueError: a dtype or a format is unknown, or a dtype cannot have the format.
    """

    def beside(shape: tuple[int, ...], dtype: str) -> tuple[int, int]:
        kept = {"master": 0, "moments": 0}
        for slot in slots(dtype, moments, master_bits, Hyper(amsgrad=amsgrad).keys):
            kind = "master" if slot.key in ("master", "remainder") else "moments"
            kept[kind] += math.prod(slot.shape(shape)) * SIZES[slot.dtype]
        return kept["master"], kept["moments"]

    return _line(f"adamas {moments}", tensors, gradients, beside)


class Choices(NamedTuple):
    """What the optimizers and formats to choose from keep for the same parameters."""

    lines: list[Line]
    baseline: Line
    """The one of ``lines`` to compare with: torch's, with master weights where there are any."""
    refused: dict[str, str]
    """By moment format, why these parameters cannot have it."""


def choices(
    tensors: Tensors,
    master_bits: int | None = None,
    amsgrad: bool = False,
    gradients: str | None = None,
) -> Choices:
    """A line for torch, one for torch with master weights if it differs, and one for each format.

    Raises:
        ValueError: a dtype is unknown, or cannot have so many master bits.
    """
    lines = [torch_line(tensors, False, amsgrad, gradients)]
    if any(SIZES[dtype] == 2 for _, dtype in tensors):
        lines.append(torch_line(tensors, True, amsgrad, gradients))
    baseline, refused = lines[-1], {}
    for moments in FORMATS:
        try:
            lines.append(adamas_line(tensors, moments, master_bits, amsgrad, gradients))
        except ValueError as error:
            if moments == "float32":  # which all dtypes have: it is about something else
                raise
            refused[moments] = str(error)
    return Choices(lines, baseline, refused)


def added_up(name: str, lines: Sequence[Line]) -> Line:
    """The sum of lines."""
    columns = zip(*(line[1:] for line in (Line(""), *lines)), strict=True)
    return Line(name, *map(sum, columns))


def cells(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Headings and lines as texts, their sizes all in the unit that suits the largest."""
    largest = max(line.total for line in lines)
    power = min((len(str(largest)) - 1) // 3, len(_UNITS) - 1)
    whole = len(str(largest)) - 3 * power
    decimals = max(4 - whole, 1) if power else 0
    rows: list[tuple[str, ...]] = [(f"in {_UNITS[power]}", *_HEADINGS)]
    for line in lines:
        sizes = (line.weights, line.master, line.gradients, line.moments, line.total)
        texts = [f"{size / 1000**power:,.{decimals}f}" for size in sizes]
        rows.append((line.name, *texts, f"{line.bytes_a_parameter:.2f}"))
    return rows


def _line(
    name: str,
    tensors: Tensors,
    gradients: str | None,
    beside: Callable[[tuple[int, ...], str], tuple[int, int]],
) -> Line:
    """A line of parameters; ``beside`` says the bytes of one's master weights and moments."""
    parts = []
    for shape, dtype in tensors:
        for what, given in (("weights", dtype), ("gradients", gradients or dtype)):
            if given not in WEIGHTS:
                raise ValueError(f"{what} must be of {', '.join(WEIGHTS)}, got {given!r}")
        n = math.prod(shape)
        master, moments = beside(shape, dtype)
        parts.append(Line("", n, n * SIZES[dtype], master, n * SIZES[gradients or dtype], moments))
    return added_up(name, parts)
