"""The workloads: the shapes of the tensors that one step updates."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """One set of tensors, stepped together."""

    key: str
    """The name on the command line."""
    title: str
    shapes: tuple[Shape, ...]

    @property
    def parameters(self) -> int:
        """The number of elements of all tensors."""
        return sum(prod(shape) for shape in self.shapes)


def mlp(*widths: int) -> tuple[Shape, ...]:
    """Weights and biases of a multilayer perceptron, input width first."""
    layers = zip(widths[1:], widths[:-1], strict=True)
    return tuple(shape for out, into in layers for shape in ((out, into), (out,)))


def gpt2(
    layers: int, width: int, vocabulary: int = 50257, context: int = 1024
) -> tuple[Shape, ...]:
    """The parameters of a GPT-2 (Radford et al. 2019), the output layer tied to the embedding."""
    norm: tuple[Shape, ...] = ((width,), (width,))
    attention: tuple[Shape, ...] = ((3 * width, width), (3 * width,), (width, width), (width,))
    feed_forward: tuple[Shape, ...] = (
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
    )
    block = norm + attention + norm + feed_forward
    return ((vocabulary, width), (context, width), *block * layers, *norm)


def split(parameters: int, size: int) -> tuple[Shape, ...]:
    """Vectors of ``size`` elements, the last one shorter, that hold ``parameters`` in all."""
    whole, rest = divmod(parameters, size)
    return ((size,),) * whole + (((rest,),) if rest else ())


def decades(low: int, high: int, per_decade: int) -> list[int]:
    """Powers of ten from 10^low to 10^high, ``per_decade`` steps between each two."""
    return [round(10 ** (low + i / per_decade)) for i in range((high - low) * per_decade + 1)]


WORKLOADS = {
    w.key: w
    for w in (
        Workload("100x100", "100 tensors of 100", ((100,),) * 100),
        Workload("1000x3500", "1000 tensors of 3500", ((3500,),) * 1000),
        Workload("1.8m", "MLP, 1.8M", mlp(784, 1000, 1000, 10)),
        Workload("30m", "GPT-2-like, 30M", gpt2(layers=6, width=384)),
        Workload("124m", "GPT-2, 124M", gpt2(layers=12, width=768)),
    )
}
