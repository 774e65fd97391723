"""What a step with ``offload="cpu"`` takes, beside what its bus and its core take alone.

    python benchmarks/offload.py [--bus GB/S] [--threads N] [--workload 124m] [--rounds N]

"bus" copies as many bytes as a step does, down and up at once; "core" is the same step of weights
that lie on the host. With perfect overlap a step would take as long as the longer of the two, and
without any as long as both. The figures are medians in milliseconds. ``--bus`` needs no GPU: copies
over a bus of that rate then only take time, as ``offload_bus.Bus`` says. The step orders them in a
thread of its own beside the core's, so leave that one a processor: ``--threads 1`` on two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import torch
from offload_bus import Bus
from torch import nn

from adamas.lab.benchmark.shapes import WORKLOADS, Shape
from adamas.torch import AdamW, gpu
from adamas.torch.gpu import ring

FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "int8": (torch.float32, {"moments": "int8"}),
    "int4": (torch.float32, {"moments": "int4"}),
    "bfloat16, 24 bits, int8": (torch.bfloat16, {"moments": "int8", "master_bits": 24}),
}


def copies(down: int, up: int, device: torch.device, module: Any) -> Callable[[], object]:
    """What copies so many bytes to the host, and so many back meanwhile."""
    pin = device.type != "cpu"
    sides = []
    for size in (down, up):
        host = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        sides.append((host, torch.empty(size, dtype=torch.uint8, device=device)))
    (to_host, from_device), (from_host, to_device) = sides
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


@contextmanager
def standing_for_a_gpu(bus: Bus) -> Iterator[None]:
    """While entered, the CPU is a device, and the bus moves all bytes, so that buffers fill."""
    rate, bus.rate = bus.rate, None
    gpu.DEVICES.add("cpu")
    yield
    gpu.DEVICES.discard("cpu")
    bus.rate = rate


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
    parser.add_argument("--bus", type=float, metavar="GB/S", help="model one of that rate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workload", choices=WORKLOADS, default="124m")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.bus is not None and not options.bus > 0:
        parser.error(f"--bus must be a rate above 0 GB/s, got {options.bus:g}")
    bus = Bus(options.bus * 1e9) if options.bus else None
    ring._Host = bus or ring._Host
    device, host = torch.device("cpu" if bus else options.device), torch.device("cpu")
    module: Any = bus or torch.get_device_module(device)
    if not bus and (device.type == "cpu" or not module.is_available()):
        parser.error(f"no GPU: torch finds none by {device}; --bus 54 models the bus of an H100")
    where = f"a bus of {options.bus:g} GB/s that only takes time" if bus else device
    workload = WORKLOADS[options.workload]
    elements = workload.parameters
    torch.set_num_threads(options.threads)
    print(f"{workload.title}, {where}, {options.threads} threads, torch {torch.__version__}")
    print(f"{'':24} {'step':>8} {'bus':>8} {'core':>8} {'of the longer':>14} {'of both':>8}")
    for name, (dtype, formats) in FORMATS.items():
        core = step_of(dtype, formats, host, workload.shapes)
        with standing_for_a_gpu(bus) if bus else nullcontext():
            step = step_of(dtype, formats | {"offload": "cpu"}, device, workload.shapes)
        size = elements * dtype.itemsize
        works = {"step": step, "bus": copies(2 * size, size, device, module), "core": core}
        for work in works.values():
            milliseconds(work, module.synchronize)
        rounds = [
            {k: milliseconds(w, module.synchronize) for k, w in works.items()}
            for _ in range(options.rounds)
        ]
        medians = [median(of[key] for of in rounds) for key in works]
        longer = median(of["step"] / max(of["bus"], of["core"]) for of in rounds)
        both = median(of["step"] / (of["bus"] + of["core"]) for of in rounds)
        times = " ".join(f"{value:8.3f}" for value in medians)
        print(f"{name:24} {times} {longer:14.3f} {both:8.3f}")


if __name__ == "__main__":
    main()
