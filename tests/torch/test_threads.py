"""The core's calls run on torch's threads."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os, torch
from adamas.torch import AdamW
torch.set_num_threads(2)
torch.ones(1 << 22).mul_(2)  # torch's threads have begun
before = set(os.listdir("/proc/self/task"))
p = torch.nn.Parameter(torch.ones(1 << 20))
p.grad = torch.ones(1 << 20)
optimizer = AdamW([p])
optimizer.step()
assert set(os.listdir("/proc/self/task")) == before, "threads of its own"
child = os.fork()
if not child:  # which has none of torch's threads, and would wait for them forever
    optimizer.step()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_step_starts_no_threads_beside_torchs_and_needs_none_after_fork() -> None:
    if sys.platform != "linux":
        return
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
