"""What a step costs beyond arithmetic: time in Python, allocations, and sharded parameters.

    python benchmarks/overhead.py [ROUNDS]

Parameters have one element, so the time is that of finding and looking at them. Everything that is
compared runs in turns within one process; the figures are medians, in microseconds a step.
"""

import gc
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from adamas.torch import AdamW


def optimizer(params: list[nn.Parameter], **options: float) -> AdamW:
    """Ours over these parameters, with gradients, after its first step."""
    for p in params:
        p.grad = torch.ones_like(p)
    made = AdamW(params, **options)
    made.step()
    return made


def plain(count: int, size: int = 1) -> list[nn.Parameter]:
    """Parameters of one dimension."""
    return [nn.Parameter(torch.ones(size)) for _ in range(count)]


def sharded(count: int) -> list[nn.Parameter]:
    """The same as DTensors, over a mesh of this one process."""
    mesh = init_device_mesh("cpu", (1,))
    return [nn.Parameter(distribute_tensor(torch.ones(1), mesh, [Shard(0)])) for _ in range(count)]


def times(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median microseconds of each, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    gc.disable()
    for _ in range(rounds):
        for name, step in contenders.items():
            step()
            begin = time.perf_counter()
            for _ in range(5):
                step()
            found[name].append((time.perf_counter() - begin) / 5 * 1e6)
    gc.enable()
    return {name: median(values) for name, values in found.items()}


def leaks(steps: int = 1000) -> tuple[int, int, int]:
    """Objects and bytes that these many steps leave behind, and the most that one step holds."""
    params = plain(100, 10)
    ours = optimizer(params)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    ours.step()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(steps):
        ours.step()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gc.collect()
    return len(gc.get_objects()) - objects, now - before, peak - before


def fused(params: list[nn.Parameter]) -> torch.optim.AdamW:
    """Torch's over these parameters, with gradients, after its first step."""
    for p in params:
        p.grad = torch.ones_like(p)
    made = torch.optim.AdamW(params, fused=True)
    made.step()
    return made


def main(rounds: int = 30) -> None:
    """Prints each figure beside its bar."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=0, world_size=1)
        some = times(
            {
                "1000 fused": fused(plain(1000)).step,
                "1000": optimizer(plain(1000)).step,
                "3000": optimizer(plain(3000)).step,
                "1000 clipped": optimizer(plain(1000), max_grad_norm=1.0).step,
                "500": optimizer(plain(500)).step,
                "500 sharded": optimizer(sharded(500)).step,
            },
            rounds,
        )
        dist.destroy_process_group()
    for name, value in some.items():
        print(f"{name:14} {value:8.0f} us")
    objects, left, held = leaks()
    print(f"1000 of torch fused: {some['1000'] / some['1000 fused']:.3f} (at most 0.25)")
    print(f"3000 of 1000:        {some['3000'] / some['1000']:.2f} (linear: 3)")
    print(f"sharded of plain:    {some['500 sharded'] / some['500']:.2f} (at most 1.5)")
    print(f"1000 steps leave {objects} objects and {left} bytes; one step holds {held} bytes")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
