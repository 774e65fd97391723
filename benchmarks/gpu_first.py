"""What a first step costs with nothing compiled, and what compiles again later, for gpu.py.

    python benchmarks/gpu_first.py DEVICE KEY

runs in a process of its own, whose TRITON_CACHE_DIR is empty, and prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gpu_peers import OURS, Contender, parameters, with_gradients
from torch.optim import Optimizer

from adamas.lab.benchmark.peers import reason
from adamas.lab.benchmark.shapes import Shape, gpt2

# As many tensors as GPT-2 has, so small that compiling is what takes time.
SHAPES = gpt2(layers=12, width=64, vocabulary=1000)
OTHERS: tuple[tuple[Shape, ...], ...] = (
    ((1,),),
    ((63,), (257, 129), ()),
    ((3500,),) * 40,
    ((16,),) * 16,
)
STEPS = 40  # so that the number of the step is a multiple of 16 and of 32, too


@dataclass(frozen=True)
class First:
    """A fresh process with an empty cache."""

    title: str
    seconds: float | None = None
    """Of the first step, its compilation with it; the device has been started before."""
    kernels: int = 0
    """That it compiled."""
    again: dict[str, int] = field(default_factory=dict)
    """What was compiled later, by what had changed."""
    failure: str | None = None


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def compiled() -> int:
    """Kernels in this process's cache: each leaves one file of this kind there."""
    return len(list(Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.ttir")))


def optimizer_of(contender: Contender, shapes: tuple[Shape, ...], device: str) -> Optimizer:
    """A new optimizer over new parameters."""
    return contender.build(with_gradients(*parameters(shapes, contender.weights, device)))


def later(contender: Contender, optimizer: Optimizer, device: str) -> dict[str, int]:
    """Kernels that are compiled when something changes, by what it is."""
    group, found, before = optimizer.param_groups[0], {}, compiled()

    def count(what: str) -> None:
        nonlocal before
        synchronize(device)
        now = compiled()
        found[what], before = now - before, now

    for _ in range(STEPS):
        optimizer.step()
    count("step")
    options = {"lr": (1e-4, 1.0, 16.0), "betas": ((0.8, 0.95),), "eps": (1e-6,)}
    options["weight_decay"] = (0.5,)
    for name, values in options.items():
        for value in values:
            group[name] = value
            optimizer.step()
        count(name)
    for p in group["params"]:
        p.grad = p.grad.clone()
    optimizer.step()
    count("gradients elsewhere")
    for shapes in OTHERS:
        optimizer_of(contender, shapes, device).step()
    count("shapes")
    return found


def measure(key: str, device: str, seconds: float) -> First:
    """A format in a fresh process, within so many seconds."""
    title = OURS[key].title
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TRITON_CACHE_DIR": folder}
        command = [sys.executable, __file__, device, key]
        try:
            run = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=max(seconds, 10)
            )
            if run.returncode:
                lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
                return First(title, failure=lines[-1][:200])
            return First(title, **json.loads(run.stdout.splitlines()[-1]))
        except Exception as error:
            return First(title, failure=reason(error))


def main(device: str, key: str) -> None:
    """Prints what ``First`` has."""
    contender = OURS[key]
    optimizer = optimizer_of(contender, SHAPES, device)
    synchronize(device)
    begin = time.perf_counter()
    optimizer.step()
    synchronize(device)
    seconds, kernels = time.perf_counter() - begin, compiled()
    found = {"seconds": seconds, "kernels": kernels, "again": later(contender, optimizer, device)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
