"""Training that is killed again and again leaves the bits of training that never was.

One process that has imported everything forks those that train and are killed, as ``killed.py``
says: importing takes seconds, what is to be interrupted a fraction of one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import assert_same, state
from tables import mixed_csv

KILLS = 50
OPTIONS = ["--epochs=100", "--layers=8", "--batch-size=4", "--weight-decay=0.1", "--seed=5"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no kills to survive")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed.py")
    arguments = [mixed_csv(folder), "--target=price", *OPTIONS]
    done = subprocess.run(
        [sys.executable, script, folder, str(KILLS), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_killed_runs_are_the_run_never_killed(runs: Path) -> None:
    whole = runs / "whole"
    killed = sorted(runs.glob("killed-*"))
    assert killed
    for run in killed:
        assert (run / "model.safetensors").read_bytes() == (
            whole / "model.safetensors"
        ).read_bytes()
        assert_same(state(run), state(whole))
        assert (run / "settings.json").read_bytes() == (whole / "settings.json").read_bytes()
        assert {file.name for file in run.iterdir()} == {file.name for file in whole.iterdir()}


def test_kills_were_at_all_moments(runs: Path) -> None:
    """So that the comparison means something: saves were interrupted, and trainings went on."""
    counts = json.loads((runs / "counts.json").read_text())
    count = counts.pop("runs")
    assert sum(counts.values()) == KILLS
    assert counts["in a save"] > 0, counts
    assert counts["between saves"] > 0, counts
    assert count < KILLS, counts
