"""What a step takes inside a training loop, where torch's threads have just computed gradients.

    python benchmarks/loop.py [ROUNDS]

Multilayer perceptrons are trained by each optimizer in turn, a few iterations at a time, in one
process. The figures are medians over the rounds: milliseconds of a step, and of an iteration.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from statistics import median

import torch
from torch import nn

from adamas.torch import AdamW

# Widths of the layers, and the batch.
NETWORKS = {
    "1.8M, batch 32": ((784, 1024, 1024, 10), 32),
    "3.8M, batch 16": ((784, 1000, 1000, 1000, 1000, 10), 16),
    "3.8M, batch 128": ((784, 1000, 1000, 1000, 1000, 10), 128),
    "7.9M, batch 8": ((784, 1500, 1500, 1500, 1500, 10), 8),
    "39M, batch 8": ((784, 3500, 3500, 3500, 3500, 10), 8),
}
ITERATIONS = 6  # of a turn, after two that are not timed

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
CONTENDERS: dict[str, Make] = {
    "adamas": AdamW,
    "torch fused": lambda params: torch.optim.AdamW(params, fused=True),
    "torch default": torch.optim.AdamW,
}


def loop(widths: tuple[int, ...], batch: int, make: Make) -> Iterator[tuple[float, float]]:
    """Trains forever; of each iteration the seconds of its step, and all of them."""
    torch.manual_seed(0)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    inputs, labels = torch.randn(batch, widths[0]), torch.randint(0, widths[-1], (batch,))
    optimizer = make(network.parameters())
    while True:
        begin = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        computed = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        yield end - computed, end - begin


def turn(iterations: Iterator[tuple[float, float]]) -> tuple[float, float]:
    """The medians of a turn, in milliseconds."""
    taken = [next(iterations) for _ in range(2 + ITERATIONS)][2:]
    steps, wholes = zip(*taken, strict=True)
    return median(steps) * 1e3, median(wholes) * 1e3


def main(rounds: int = 15) -> None:
    """Prints a line for each network and optimizer."""
    print(f"{'':16} {'':14} {'step':>8} {'of fused':>9} {'iteration':>10}")
    for name, (widths, batch) in NETWORKS.items():
        loops = {key: loop(widths, batch, make) for key, make in CONTENDERS.items()}
        turns = [{key: turn(each) for key, each in loops.items()} for _ in range(rounds)]
        for key in CONTENDERS:
            step, whole = (median(of[key][i] for of in turns) for i in (0, 1))
            ratio = median(of[key][0] / of["torch fused"][0] for of in turns)
            print(f"{name:16} {key:14} {step:8.3f} {ratio:9.3f} {whole:10.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
