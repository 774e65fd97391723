"""The kernels compile for GPUs of two vendors, and each of their operations rounds on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adamas import native

pytest.importorskip("triton", reason="the kernels for GPUs need Triton: pip install triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "ADAMAS_SANITIZE" not in os.environ, reason="compiles for half a minute: make sanitize"
    ),
]

KERNELS = {"step_chunk", "place_gradients", "prepare", "add_squares"}
RULE = 4  # among the constants of a step


def test_no_operation_is_fused_or_approximate(tmp_path: Path) -> None:
    """In a process that does not interpret them; no GPU is needed."""
    script = Path(__file__).parent / "compiling.py"
    cached = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, **cached}, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    for target in (90, "gfx942"):
        here = [one for one in found if one["target"] == target]
        assert {one["kernel"] for one in here} == KERNELS
        rules = {one["constants"][RULE] for one in here if one["kernel"] == "step_chunk"}
        assert rules == set(native.RULES.values())
    assert not [one for one in found if one["wrong"] or not one["bytes"]]
