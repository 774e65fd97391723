"""Peak memory of training a deep network with ordinary steps, and with steps during backward.

    python benchmarks/backward_memory.py [LAYERS] [WIDTH]

Each way runs in a process of its own; the figure is the process's largest resident memory, less
that of a process that only imports torch. glibc is told to return large freed blocks at once; by
default it keeps them, and both ways show the same peak.
"""

import json
import os
import resource
import subprocess
import sys


def train(mode: str, layers: int, width: int) -> None:
    """Five steps of a stack of linear layers; prints the peak in MiB."""
    import torch
    from torch import nn

    from adamas.torch import AdamW, step_in_backward

    if mode != "import":
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        optimizer = AdamW(model.parameters())
        if mode == "in backward":
            step_in_backward(optimizer)
        for _ in range(5):
            model(torch.randn(8, width)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)))


def main(layers: int = 24, width: int = 1536) -> None:
    """Prints both peaks, and what theory says of them."""
    peaks = {
        mode: json.loads(
            subprocess.check_output(
                [sys.executable, __file__, mode, str(layers), str(width)],
                env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
            )
        )
        for mode in ("import", "ordinary", "in backward")
    }
    weights = layers * (width + 1) * width * 4 / 2**20
    print(f"{layers} layers of {width} x {width}: {weights:.0f} MiB of weights")
    for mode, copies in (("ordinary", 4.0), ("in backward", 3 + 1 / layers)):
        peak = peaks[mode] - peaks["import"]
        print(f"{mode:12} {peak:6.0f} MiB: {peak / weights:.2f} of it (at least {copies:.2f})")


if __name__ == "__main__":
    if sys.argv[1:2] and not sys.argv[1].isdecimal():
        train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
