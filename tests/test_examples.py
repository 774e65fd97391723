"""The examples are run as a reader would run them, each on its own and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.examples

EXAMPLES = Path(__file__).parent.parent / "examples"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# Torch's threads wait by spinning: on a busy machine, two take several times as long as one.
ALONE = {"OMP_NUM_THREADS": "1"}
# What each needs beyond the tests' own packages, and the last line that it prints.
ACCURACY = r"accuracy on 450 unseen digits: 0\.9\d+"
RUNS = {
    "accelerate_loop": ("accelerate", ACCURACY + ", resumed: the same bits"),
    "compiled_loop": ("torch", ACCURACY),
    "functional": ("torch", ACCURACY),
    "huggingface_trainer": ("transformers", r"[23]\.\d+ bits a byte .*; resumed: the same bits"),
    "tensorboard_statistics": ("tensorboard", r"32 curves; " + ACCURACY),
    "lightning_module": ("lightning", ACCURACY + ", resumed: the same bits"),
}


@pytest.mark.parametrize("name", RUNS)
def test_example(name: str, tmp_path: Path) -> None:
    client, last = RUNS[name]
    if find_spec(client) is None:
        pytest.skip(f"needs {client}: pip install '.[examples]'")
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env=os.environ | OFFLINE | ALONE,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(last, result.stdout.strip().splitlines()[-1]), result.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
