"""What a step costs inside a training loop that ``torch.compile`` has compiled.

    python benchmarks/compiled.py [--device cpu] [--backend inductor] [--layers 74] [--rounds N]

A step is no part of a compiled graph: the graph ends before it, and another may begin behind it.
"inside" is an iteration that is compiled whole, "outside" one whose step is called by the loop,
after a compiled forward and backward; the difference is what breaking the graph costs, beside the
step itself. Medians in microseconds of the host, until the device is done, in turns. Of torch's own
optimizer a part is traced into the graph, and breaks it in its turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from adamas.torch import AdamW

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamas float32": AdamW,
    "adamas int8": partial(AdamW, moments="int8"),
    "int8, clipped": partial(AdamW, moments="int8", max_grad_norm=1.0),
    "torch fused": partial(torch.optim.AdamW, fused=True),
}


def loops(
    options: argparse.Namespace,
    device: torch.device,
    optimizer_of: Callable[[Any], torch.optim.Optimizer],
) -> dict[str, Callable[[], object]]:
    """Iterations of a model, the same but for where the step is called; and the step alone."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(options.layers))).to(device)
    optimizer = optimizer_of(model.parameters())
    x = torch.randn(8, 32, device=device)

    def backward(x: Tensor) -> None:
        model(x).square().mean().backward()

    def iteration(x: Tensor) -> None:
        backward(x)
        optimizer.step()

    compiled_backward, compiled = (
        torch.compile(loop, backend=options.backend) for loop in (backward, iteration)
    )

    def outside() -> None:
        compiled_backward(x)
        optimizer.step()

    return {"inside": lambda: compiled(x), "outside": outside, "step": optimizer.step}


def microseconds(work: Callable[[], object], wait: Callable[[], object], turns: int = 5) -> float:
    """Of one time."""
    wait()
    begin = time.perf_counter()
    for _ in range(turns):
        work()
    wait()
    return (time.perf_counter() - begin) / turns * 1e6


def main() -> None:
    """Prints a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="inductor")
    # Of two parameters: 148 tensors, as GPT-2's.
    parser.add_argument("--layers", type=int, default=74)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    device = torch.device(options.device)
    wait = (lambda: None) if device.type == "cpu" else torch.get_device_module(device).synchronize
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':16} {'inside':>8} {'outside':>8} {'step':>8} {'break':>8}")
    for name, optimizer_of in OPTIMIZERS.items():
        works = loops(options, device, optimizer_of)
        for work in works.values():
            for _ in range(4):
                work()
        rounds = [
            {k: microseconds(w, wait) for k, w in works.items()} for _ in range(options.rounds)
        ]
        medians = [median(of[key] for of in rounds) for key in works]
        broken = median(of["inside"] - of["outside"] for of in rounds)
        print(f"{name:16} " + " ".join(f"{value:8.0f}" for value in [*medians, broken]))


if __name__ == "__main__":
    main()
