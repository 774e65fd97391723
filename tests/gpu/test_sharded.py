"""FSDP2's parameters and other DTensors of two processes, stepped by the kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

pytest.importorskip("triton", reason="the kernels for GPUs need Triton: pip install triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed"),
    pytest.mark.skipif(
        "ADAMAS_SANITIZE" not in os.environ, reason="interprets in two processes: make sanitize"
    ),
]

SCENARIOS = ["fsdp2_dithers", "fsdp2_in_backward", "tensor_parallel", "local_tensors_that_move"]
WORKERS = Path(__file__).parent / "interpreted_workers.py"


def test_two_processes_have_the_bits_of_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, WORKERS, tmp_path, json.dumps({"2": SCENARIOS})],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    for rank in range(2):
        found = json.loads((tmp_path / f"2-{rank}.json").read_text())
        assert found == dict.fromkeys(SCENARIOS, "ok"), f"in process {rank}"
