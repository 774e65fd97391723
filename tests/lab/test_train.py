"""Training: resumed runs equal those never stopped, and what is saved stays whole."""

import errno
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from runs import GIVEN, STEPS, begin, go, no_space
from tables import mixed_frame

from adamas.lab import TrainingError, UserError, folder, run
from adamas.lab.files import write_atomically
from adamas.lab.model import MLP, UpdateWatch, score_of
from adamas.lab.options import Options
from adamas.lab.predict import predict_csv
from adamas.lab.progress import Display
from adamas.lab.results import make_report, write_results
from adamas.lab.run import start
from adamas.lab.target import split
from adamas.lab.training import train


def test_folder_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--resume"):
        begin(tmp_path)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]


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


def test_unwritable_folder_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder.torch, "save", no_space)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
        begin(tmp_path, "a/b")
    assert not (tmp_path / "a").exists()


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


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_has_room_for_all_that_is_told(width: int, tmp_path: Path) -> None:
    told = io.StringIO()
    console = Console(width=width, force_terminal=True, file=told, legacy_windows=False)
    current = begin(tmp_path, target="big")
    with Display(console, "accuracy") as display:
        current.train(lambda: False, display)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told.getvalue())
    last = text.replace("\r", "\n").rstrip().splitlines()[-1]
    assert re.fullmatch(
        r"epoch 3/3 .*loss \d\.\d{4} validation accuracy \d+\.\d % [\d,]+( samples)?/s "
        r"\d:\d\d:\d\d left",
        last.strip(),
    )
    assert ("samples" in last) == (width > 80)


def test_a_terminal_that_goes_away_leaves_the_streams_as_they_were(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        there = True

        def isatty(self) -> bool:
            return self.there

        def write(self, text: str) -> int:
            if not self.there:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(text)

    terminal, before = Terminal(), (sys.stdout, sys.stderr)
    with Display(Console(file=terminal, force_interactive=True), "accuracy"):
        assert sys.stderr is not before[1]
        terminal.there = False
    assert (sys.stdout, sys.stderr) == before
