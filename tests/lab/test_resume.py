"""Resumed runs: equal those never stopped, and refuse what is not whole."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ADAMAS, GIVEN, STEPS, assert_same, begin, go, no_space, state
from tables import mixed_csv

from adamas.lab import TrainingError, UserError, folder
from adamas.lab.files import partial_path
from adamas.lab.run import resume, start


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What runs leave that were never stopped, by target."""
    path = tmp_path_factory.mktemp("whole")
    states = {}
    for target in ("price", "big"):
        assert go(begin(path, target, target))
        states[target] = state(path / target)
    return states


@pytest.mark.parametrize("target", ["price", "big"])
@pytest.mark.parametrize("steps", [1, 4, 5, 6, 12, 14])
def test_resumed_run_is_the_run_never_stopped(
    tmp_path: Path, whole: dict[str, dict[str, Any]], target: str, steps: int
) -> None:
    assert not go(begin(tmp_path, target=target), steps)
    assert folder.RunFolder(tmp_path / "run").load_checkpoint()["position"]["step"] == steps % STEPS
    assert go(resume(tmp_path / "run", {}))
    assert_same(state(tmp_path / "run"), whole[target])


def test_stopped_at_every_step(tmp_path: Path, whole: dict[str, dict[str, Any]]) -> None:
    go(begin(tmp_path), 1)
    while not go(resume(tmp_path / "run", {}), 1):
        pass
    assert_same(state(tmp_path / "run"), whole["price"])


def test_lost_steps_are_done_again(tmp_path: Path, whole: dict[str, dict[str, Any]]) -> None:
    """Killed after more epochs than the checkpoint knows, and in the middle of writing."""
    go(begin(tmp_path), 7)
    checkpoint = (tmp_path / "run/checkpoint.pt").read_bytes()
    go(resume(tmp_path / "run", {}), 5)
    (tmp_path / "run/checkpoint.pt").write_bytes(checkpoint)
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_l')
    files = folder.RunFolder(tmp_path / "run")
    for file in (files.settings, files.checkpoint, files.metrics, files.model, files.report):
        partial_path(file).write_bytes(checkpoint[:100])
    go(resume(tmp_path / "run", {}))
    assert_same(state(tmp_path / "run"), whole["price"])
    assert not list(files.path.glob("*.partial"))


def test_runs_are_told_apart(tmp_path: Path, whole: dict[str, dict[str, Any]]) -> None:
    """The comparison above can fail: another seed, another run."""
    go(begin(tmp_path, seed=6))
    with pytest.raises(AssertionError):
        assert_same(state(tmp_path / "run"), whole["price"])


def test_constant_schedule_can_be_extended(tmp_path: Path) -> None:
    go(begin(tmp_path, "long", schedule="constant", epochs=4))
    go(begin(tmp_path, "short", schedule="constant", epochs=2))
    go(resume(tmp_path / "short", {"epochs": 4}))
    assert_same(state(tmp_path / "short"), state(tmp_path / "long"))
    settings = [(tmp_path / name / "settings.json").read_text() for name in ("long", "short")]
    assert settings[0] == settings[1]


def test_finished_run(tmp_path: Path) -> None:
    go(begin(tmp_path))
    before = state(tmp_path / "run")
    again = resume(tmp_path / "run", {})
    assert again.trainer.finished
    assert go(again)
    assert_same(state(tmp_path / "run"), before)


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))

    return apply


def foreign_checkpoint(path: Path) -> None:
    torch.save({"model": {}}, path / "run/checkpoint.pt")


def other_model(path: Path) -> None:
    go(begin(path, "other", layers=(9,)), 1)
    os.replace(path / "other/checkpoint.pt", path / "run/checkpoint.pt")


def edit_checkpoint(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        state = torch.load(path / "run/checkpoint.pt")
        change(state)
        torch.save(state, path / "run/checkpoint.pt")

    return apply


DAMAGE = {
    "truncated checkpoint": (edit("run/checkpoint.pt", lambda b: b[:-700]), "is damaged"),
    "empty checkpoint": (edit("run/checkpoint.pt", lambda b: b""), "is damaged"),
    "checkpoint of noise": (edit("run/checkpoint.pt", lambda b: b"noise" * 99), "is damaged"),
    "foreign checkpoint": (foreign_checkpoint, "is not of an adamas run"),
    "checkpoint of another model": (other_model, "does not fit this run"),
    "no checkpoint": (lambda p: (p / "run/checkpoint.pt").unlink(), "has no checkpoint.pt"),
    "no settings": (lambda p: (p / "run/settings.json").unlink(), "is not a run"),
    "broken settings": (edit("run/settings.json", lambda b: b[:99]), "is damaged"),
    "foreign settings": (edit("run/settings.json", lambda b: b"{}"), "is not of an adamas run"),
    "lost metrics": (edit("run/metrics.jsonl", lambda b: b""), "lacks epochs"),
    "metrics without updates": (
        edit("run/metrics.jsonl", lambda b: b.replace(b'"updates"', b'"downdates"')),
        "is damaged",
    ),
    "settings of another kind": (
        edit("run/settings.json", lambda b: b.replace(b'"columns": [', b'"columns": [7, ')),
        "is damaged",
    ),
    "checkpoint of other types": (
        lambda p: torch.save({"format": folder.FORMAT, "position": 3}, p / "run/checkpoint.pt"),
        "does not fit|is damaged",
    ),
    "checkpoint of a huge epoch": (
        edit_checkpoint(lambda state: state["position"].update(epoch=10**30)),
        "lacks epochs|is damaged|does not fit",
    ),
    "checkpoint of a position that is text": (
        edit_checkpoint(lambda state: state["position"].update(loss_sum="x")),
        "loss_sum is not float",
    ),
    "checkpoint without optimizer groups": (
        edit_checkpoint(lambda state: state.update(optimizer=[])),
        "is damaged|does not fit",
    ),
    "settings with text for a number": (
        edit("run/settings.json", lambda b: b.replace(b'"scale": ', b'"scale": "x", "more": ')),
        "is damaged",
    ),
    "settings with a number for a name": (
        edit("run/settings.json", lambda b: b.replace(b'"name": "price"', b'"name": 7')),
        "is damaged",
    ),
    "settings with text for a size": (
        edit("run/settings.json", lambda b: b.replace(b'"batch_size": 20', b'"batch_size": "x"')),
        "batch-size must be from 1",
    ),
    "settings with a fraction for a size": (
        edit("run/settings.json", lambda b: b.replace(b'"batch_size": 20', b'"batch_size": 2.5')),
        "batch-size must be from 1",
    ),
    "broken metrics": (edit("run/metrics.jsonl", lambda b: b"x\n" * 9), "is damaged"),
    "other data": (edit("mixed.csv", lambda b: b + b"30,Rome,True,50,no\n"), "is not the data"),
    "no data": (lambda p: (p / "mixed.csv").unlink(), "does not exist"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_resume_refuses_what_is_not_whole(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    go(begin(tmp_path), 7)
    damage(tmp_path)
    before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match=message) as error:
        resume(tmp_path / "run", {})
    assert "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.5}, "--lr 0.5 differs from the run's 0.001"),
        ({"batch_size": 7}, "--batch-size 7 differs"),
        ({"epochs": 9}, "every step of its cosine schedule depends"),
    ],
)
def test_resume_keeps_settings(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    go(begin(tmp_path), 7)
    with pytest.raises(UserError, match=message):
        resume(tmp_path / "run", given)
    resume(tmp_path / "run", GIVEN)


def test_moved_data(tmp_path: Path, whole: dict[str, dict[str, Any]]) -> None:
    go(begin(tmp_path), 7)
    moved = tmp_path / "moved.csv"
    (tmp_path / "mixed.csv").rename(moved)
    go(resume(tmp_path / "run", {}, moved))
    assert_same(state(tmp_path / "run"), whole["price"])


def test_one_process_trains_a_run(tmp_path: Path) -> None:
    go(begin(tmp_path), 7)
    command = [*ADAMAS, "train", "--resume=run"]
    first = resume(tmp_path / "run", {})
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("adamas: run is in use: one process at a time can train a run")
    first.folder.unlock()
    assert go(resume(tmp_path / "run", {}))


def test_disk_full_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, dict[str, Any]]
) -> None:
    current = begin(tmp_path)
    go(current, 7)
    with monkeypatch.context() as patch:
        patch.setattr(folder.torch, "save", no_space)
        with pytest.raises(TrainingError, match="make room, then continue with: adamas train"):
            go(current)
    assert not partial_path(tmp_path / "run/checkpoint.pt").exists()
    current.folder.unlock()
    go(resume(tmp_path / "run", {}))
    assert_same(state(tmp_path / "run"), whole["price"])


def test_disk_full_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, dict[str, Any]]
) -> None:
    """What a kill has left of metrics is to be cut, which takes a file beside them."""
    current = begin(tmp_path)
    go(current, 7)
    current.folder.unlock()
    with open(tmp_path / "run/metrics.jsonl", "a") as metrics:
        metrics.write('{"epoch": 2')
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_atomically", no_space)
        with pytest.raises(UserError, match=r"run cannot be written \(No space left.*resume it"):
            resume(tmp_path / "run", {})
    go(resume(tmp_path / "run", {}))
    assert_same(state(tmp_path / "run"), whole["price"])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_stopped_process_continues(tmp_path: Path, number: int, status: int) -> None:
    """A process stopped by a signal, at whatever step it is."""
    mixed_csv(tmp_path)
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in GIVEN.items()
        if name not in ("layers", "betas", "epochs")
    ]
    command = [*ADAMAS, "train", "mixed.csv", "--target=price", "--epochs=80", *options]
    with subprocess.Popen(
        [*command, "--out=stopped"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                break
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == status
    if number != signal.SIGKILL:
        assert "to continue: adamas train --resume stopped\n" in rest
    assert 3 <= len(folder.RunFolder(tmp_path / "stopped").load_metrics()) < 80
    go(resume(tmp_path / "stopped", {}))
    given = {name: GIVEN[name] for name in ("batch_size", "weight_decay", "seed")}
    go(
        start(
            tmp_path / "mixed.csv",
            lambda name: tmp_path / "whole",
            {**given, "epochs": 80},
            "price",
        )
    )
    assert_same(state(tmp_path / "stopped"), state(tmp_path / "whole"))
