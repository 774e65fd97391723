"""The kernels compile for GPUs of two vendors, and each of their operations rounds on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels for GPUs need Triton: pip install triton")
pytestmark = pytest.mark.gpu

KERNELS = {"step_chunk", "place_gradients", "prepare", "add_squares"}


def test_no_operation_is_fused_or_approximate(tmp_path: Path) -> None:
    """In a process that does not interpret them; no GPU is needed."""
    script = Path(__file__).parent / "compiling.py"
    cached = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, **cached}, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert {(one["kernel"], one["target"]) for one in found} == {
        (kernel, target) for kernel in KERNELS for target in (90, "gfx942")
    }
    assert not [one for one in found if one["wrong"] or not one["code"]]
