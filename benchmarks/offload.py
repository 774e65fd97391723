"""What a step with ``offload="cpu"`` takes, beside what its bus and its core take alone.

    python benchmarks/offload.py [--device cpu] [--workload 124m] [--rounds N]

"bus" copies as many bytes as a step does, down and up at once; "core" is the same step of weights
that lie on the host. With perfect overlap a step would take as long as the longer of the two. The
figures are medians in milliseconds. ``--device cpu`` tries it out where there is no GPU: then
copies are done by the host, and overlap nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from adamas.lab.benchmark.shapes import WORKLOADS, Shape
from adamas.torch import AdamW, gpu

FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "int8": (torch.float32, {"moments": "int8"}),
    "int4": (torch.float32, {"moments": "int4"}),
    "bfloat16, 24 bits, int8": (torch.bfloat16, {"moments": "int8", "master_bits": 24}),
}


def bus(down: int, up: int, device: torch.device) -> Callable[[], object]:
    """What copies so many bytes to the host, and so many back meanwhile."""
    pin = device.type != "cpu"
    sides = []
    for size in (down, up):
        host = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        sides.append((host, torch.empty(size, dtype=torch.uint8, device=device)))
    (to_host, from_device), (from_host, to_device) = sides
    if device.type == "cpu":
        return lambda: (to_host.copy_(from_device), to_device.copy_(from_host))
    module = torch.get_device_module(device)
    streams = [module.Stream(device) for _ in sides]

    def copy() -> None:
        for stream, (target, source) in zip(
            streams, ((to_host, from_device), (to_device, from_host)), strict=True
        ):
            with module.stream(stream):
                target.copy_(source, non_blocking=True)

    return copy


def step_of(
    dtype: torch.dtype, options: dict[str, Any], device: torch.device, shapes: tuple[Shape, ...]
) -> Callable[[], object]:
    """A step of parameters there; all gradients are the same."""
    params = [nn.Parameter(torch.ones(shape, dtype=dtype, device=device)) for shape in shapes]
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer = AdamW(params, **options)
    optimizer.step()
    return optimizer.step


def milliseconds(work: Callable[[], object], wait: Callable[[], object]) -> float:
    """Of one time, until the device is done."""
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    """Prints a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workload", choices=WORKLOADS, default="124m")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device, host = torch.device(options.device), torch.device("cpu")
    tried = device.type == "cpu"
    wait = (lambda: None) if tried else torch.get_device_module(device).synchronize
    workload = WORKLOADS[options.workload]
    elements = workload.parameters
    threads = torch.get_num_threads()
    print(f"{workload.title}, {device}, {threads} threads, torch {torch.__version__}")
    print(f"{'':24} {'step':>8} {'bus':>8} {'core':>8} {'of the longer':>14}")
    for name, (dtype, formats) in FORMATS.items():
        core = step_of(dtype, formats, host, workload.shapes)
        if tried:  # from here on it stands for a GPU without Triton
            gpu.DEVICES.add("cpu")
        step = step_of(dtype, formats | {"offload": "cpu"}, device, workload.shapes)
        gpu.DEVICES.discard("cpu")
        size = elements * dtype.itemsize
        works = {"step": step, "bus": bus(2 * size, size, device), "core": core}
        for work in works.values():
            milliseconds(work, wait)
        rounds = [
            {k: milliseconds(w, wait) for k, w in works.items()} for _ in range(options.rounds)
        ]
        medians = [median(of[key] for of in rounds) for key in works]
        ratio = median(of["step"] / max(of["bus"], of["core"]) for of in rounds)
        print(f"{name:24} " + " ".join(f"{value:8.3f}" for value in medians) + f" {ratio:14.3f}")


if __name__ == "__main__":
    main()
