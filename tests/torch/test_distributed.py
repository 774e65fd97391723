"""Sharded and replicated training in real processes: the bits of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")

SCENARIOS = {  # by the number of processes; 2 save what 4 and 1 load
    2: [
        "fsdp2",
        "fsdp2_clipping",
        "fsdp2_dithers",
        "fsdp2_other_rules",
        "fsdp2_statistics",
        "fsdp2_memory",
        "a_norm_in_doubt",
        "a_norm_in_doubt_for_one_process",
        "fsdp2_training",
        "fsdp2_in_backward",
        "tensor_parallel",
        "offloaded_shards",
        "gradients_sharded_otherwise",
        "gradients_to_be_added_up",
        "local_tensors_that_move",
        "ddp",
        "ddp_in_backward",
        "zero_redundancy",
        "save_checkpoint",
        "load_checkpoint",
        "save_compact_checkpoint",
        "load_compact_checkpoint",
    ],
    4: [
        "fsdp2",
        "fsdp2_clipping",
        "offloaded_shards",
        "two_dimensions",
        "load_checkpoint",
        "load_compact_checkpoint",
    ],
    1: ["fsdp2", "load_checkpoint", "load_compact_checkpoint"],
}
WORKERS = Path(__file__).parent / "workers.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, str]]]:
    """What became of each scenario in each process."""
    folder = tmp_path_factory.mktemp("distributed")
    done = subprocess.run(
        [sys.executable, WORKERS, folder, json.dumps(SCENARIOS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = {}
    for world in SCENARIOS:
        files = [folder / f"{world}-{rank}.json" for rank in range(world)]
        found[world] = [
            json.loads(file.read_text()) if file.exists() else {"": done.stdout} for file in files
        ]
    return found


@pytest.mark.parametrize(
    ("world", "scenario"), [(world, name) for world, names in SCENARIOS.items() for name in names]
)
def test_processes(results: dict[int, list[dict[str, str]]], world: int, scenario: str) -> None:
    for rank, result in enumerate(results[world]):
        assert result.get(scenario, "not reached") == "ok", f"in process {rank}"
