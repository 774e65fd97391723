"""Training: resumed runs equal those never stopped, and what is saved stays whole."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tables import mixed_csv, mixed_frame

from adamas.lab import TrainingError, UserError, folder, run
from adamas.lab.files import partial_path, write_atomically
from adamas.lab.model import MLP, UpdateWatch, score_of
from adamas.lab.options import Options
from adamas.lab.predict import predict_csv
from adamas.lab.results import make_report, write_results
from adamas.lab.run import Run, resume, start
from adamas.lab.target import split
from adamas.lab.training import train

GIVEN: dict[str, Any] = {
    "layers": (8,),
    "epochs": 3,
    "batch_size": 20,
    "betas": (0.8, 0.95),
    "weight_decay": 0.1,
    "seed": 5,
}
STEPS = 5  # an epoch: 96 training rows
CLOCK = ("seconds", "samples_per_second")
ADAMAS = (sys.executable, "-m", "adamas.cli")


def begin(path: Path, out: str = "run", target: str = "price", **given: Any) -> Run:
    data = path / "mixed.csv"
    if not data.exists():
        mixed_csv(path)
    return start(data, lambda name: path / out, {**GIVEN, **given}, target)


def go(current: Run, steps: int | None = None) -> bool:
    """Trains to the end, or for that many steps."""
    left = iter(range(steps)) if steps else iter(range(10**9))

    def stop() -> bool:
        return next(left, None) == (steps or 0) - 1

    return current.train(stop, lambda trainer, metrics: None)


def state(path: Path) -> dict[str, Any]:
    """All that training leaves, but for the clock."""
    files = folder.RunFolder(path)
    content = files.load_checkpoint()
    for name in ("seconds", "epoch_seconds"):
        content["position"].pop(name)
    metrics = [
        {name: value for name, value in epoch.items() if name not in CLOCK}
        for epoch in files.load_metrics()
    ]
    return {**content, "metrics": metrics, "weights": files.load_model()}


def assert_same(one: Any, other: Any) -> None:
    """Equality to the last bit, in nested containers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert set(one) == set(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.numpy().tobytes() == other.numpy().tobytes()
    else:
        assert one == other


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


def test_folder_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--resume"):
        begin(tmp_path)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_one_process_trains_a_run(tmp_path: Path) -> None:
    go(begin(tmp_path), 7)
    command = [*ADAMAS, "train", "--resume=run"]
    first = resume(tmp_path / "run", {})
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("adamas: run is in use: one process at a time can train a run")
    first.folder.unlock()
    assert go(resume(tmp_path / "run", {}))


def test_a_number_taken_meanwhile_is_passed_over(tmp_path: Path) -> None:
    other = begin(tmp_path, "runs/a-1")
    names = iter(("runs/a-1", "runs/a-2"))
    current = start(tmp_path / "mixed.csv", lambda name: tmp_path / next(names), GIVEN, "price")
    assert current.folder.path == tmp_path / "runs/a-2"
    assert other.folder.path.exists()


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    current = begin(tmp_path)
    go(current)
    (tmp_path / "run/report.html").mkdir()
    with pytest.raises(TrainingError, match=r"results in .* cannot be written"):
        write_results(current)


def test_folder_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made a folder"):
        begin(tmp_path, "file/run")


def test_full_disk_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = folder.shutil._ntuple_diskusage(10, 5, 5)  # type: ignore[attr-defined]
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0 MB left: training needs \d+ MB"):
        begin(tmp_path, "a/b")
    assert not (tmp_path / "a").exists()


def no_space(content: object, file: object) -> None:
    raise OSError(28, "No space left on device")


def test_unwritable_folder_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder.torch, "save", no_space)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
        begin(tmp_path, "a/b")
    assert not (tmp_path / "a").exists()


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


def test_diverging_run_stops(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is .* smaller --lr than 1e"):
        go(begin(tmp_path, lr=1e18))


def test_long_epochs_are_saved_in_between(tmp_path: Path) -> None:
    current = begin(tmp_path, epochs=1)
    saves: list[bool] = []
    train(current.trainer, lambda metrics: saves.append(metrics is not None), save_seconds=0)
    assert saves == [False] * (STEPS - 1) + [True]


def test_the_model_is_the_same_file(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        go(begin(tmp_path, name), 3)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0].count(b"__metadata__") == 1


@pytest.mark.parametrize("target", ["price", "big"])
def test_predict_agrees_with_validation(tmp_path: Path, target: str) -> None:
    frame = mixed_frame()
    go(begin(tmp_path, target=target))
    kind = {"price": "regression", "big": "classification"}[target]
    training = split(pd.read_csv(tmp_path / "mixed.csv")[target], kind, 0.2, GIVEN["seed"])
    frame[~training].to_csv(tmp_path / "validation.csv", index=False)
    prediction = predict_csv(tmp_path / "run", tmp_path / "validation.csv")
    last = folder.RunFolder(tmp_path / "run").load_metrics()[-1]
    assert prediction.scored == len(prediction.frame) == (~training).sum() == 24
    assert prediction.score == pytest.approx(last["validation_score"], rel=1e-6)


def test_metrics_are_what_the_report_needs(tmp_path: Path) -> None:
    for target in ("price", "big"):
        current = begin(tmp_path, target, target)
        go(current)
        report = make_report(current)
        assert report.classification == (target == "big")
        assert [epoch["epoch"] for epoch in report.epochs] == [1, 2, 3]
        assert [layer.name for layer in report.updates] == ["layer 1", "layer 2"]
        for layer in report.updates:
            assert layer.epochs == [1, 2, 3]
            assert all(q == sorted(q) and len(q) == 5 for q in layer.quantiles)
            assert len(layer.edges) == len(layer.counts) + 1
        assert sum(map(sum, report.confusion)) == (24 if target == "big" else 0)
        assert len(report.targets) == len(report.predictions) == (24 if target == "price" else 0)
        write_results(current)
        assert (tmp_path / target / "report.html").stat().st_size > 0


def test_update_sizes() -> None:
    model = MLP((3, 2))
    watch = UpdateWatch(model)
    with torch.no_grad():
        next(model.linear_layers()).bias[:] += torch.tensor([0.01, -1.0])
    (sizes,) = watch.sizes()
    assert sum(sizes.counts) == 2
    assert (sizes.edges[0], sizes.edges[-1]) == pytest.approx((-2, 0), abs=1e-6)
    assert sizes.quantiles[2] == pytest.approx(-1, abs=1e-6)


def test_scores() -> None:
    outputs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [1.0, 2.0]])
    assert score_of(outputs, torch.tensor([1, 0, 1, 0])) == 0.75
    values = torch.tensor([0.0, 1.0, 2.0, 5.0])
    assert score_of(outputs, values) == pytest.approx(1 - 16 / 14)


def test_learning_rate_falls_as_a_cosine() -> None:
    options = Options.complete({"lr": 0.1}, 100)
    rates = [options.learning_rate(step, 100) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.0505)
    assert rates[100] == pytest.approx(0.001)
    assert np.all(np.diff(rates) < 0)


def test_failed_write_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def half(file: Any) -> None:
        file.write(b"ne")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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


def test_batches_are_fresh_each_epoch(tmp_path: Path) -> None:
    trainer = begin(tmp_path).trainer
    first = torch.cat(trainer._batches())
    trainer.position.epoch = 1
    second = torch.cat(trainer._batches())
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(96))
    assert first.tolist() != second.tolist()


def test_digits_settings_are_plain_json(tmp_path: Path) -> None:
    current = start(None, lambda name: tmp_path / name, {"epochs": 1})
    settings = json.loads((tmp_path / "digits/settings.json").read_text())
    assert run.Task.from_json(settings) == current.task
    assert Options.from_json(settings["options"]) == current.trainer.options
