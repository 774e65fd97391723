"""The command line: what it prints, and its exit status."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tables import mixed_csv

from adamas import cli
from adamas.lab import TrainingError
from adamas.lab.data import read_table
from adamas.lab.output import Output

FAST = ("--epochs=2", "--layers=8")


Adamas = Callable[..., tuple[int, str, str]]


def test_train_resume_predict(adamas: Adamas, tmp_path: Path) -> None:
    mixed_csv(tmp_path)
    status, out, err = adamas("train", "mixed.csv", "--target", "big", "--drop=price", *FAST)
    assert (status, err) == (0, "")
    assert "classification: 'big' holds 2 different texts" in out
    assert out.count("\nepoch ") == 2
    assert "report:     runs/mixed-1/report.html" in out
    assert "to predict: adamas predict runs/mixed-1 data.csv" in out
    names = {"model.safetensors", "checkpoint.pt", "metrics.jsonl", "settings.json", "report.html"}
    assert {path.name for path in Path("runs/mixed-1").iterdir()} == names

    status, out, err = adamas("train", "--resume", "runs/mixed-1")
    assert (status, err) == (0, "")
    assert "runs/mixed-1 is finished: 2 epochs of" in out

    assert adamas("predict", "runs/mixed-1", "mixed.csv", "--out=p.csv")[0] == 0
    status, out, err = adamas("predict", "runs/mixed-1", "mixed.csv")
    assert out == Path("p.csv").read_text()
    assert list(pd.read_csv("p.csv")) == ["big", "probability"]
    assert err.startswith("accuracy ")
    assert err.endswith(" on 120 rows with a target\n")

    adamas("train", "mixed.csv", "--target", "price", *FAST)
    assert Path("runs/mixed-2/report.html").exists()


def test_digits(adamas: Adamas) -> None:
    """The default passes 97 %."""
    status, out, _ = adamas("train")
    assert status == 0
    assert float(out.partition("\nvalidation accuracy ")[2].partition(" %")[0]) >= 97
    read_table(None).frame.drop(columns="digit").to_csv("pixels.csv", index=False)
    status, out, err = adamas("predict", "runs/digits-1", "pixels.csv")
    assert (status, out.count("\n"), err) == (0, 1798, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_output(adamas: Adamas, tmp_path: Path) -> None:
    mixed_csv(tmp_path)
    assert adamas("train", "mixed.csv", "--target=price", "--out=run", *FAST)[0] == 0
    command = [sys.executable, "-m", "adamas.cli", "predict", "run", "mixed.csv"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "adamas: [Errno 28] No space left on device\n"


WORK = {
    "train": (["train", "mixed.csv", "--target=price", *FAST], "report.html"),
    "compare": (["compare", "saddle", "--seeds=1", "--steps=5"], "compare.html"),
    "tune": (["tune", "digits", "--trials=1", "--jobs=1", "--epochs=1", "--layers=8"], "best.json"),
}


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
@pytest.mark.parametrize("command", WORK)
def test_work_goes_on_without_its_output(
    command: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Lost(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    mixed_csv(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments, result = WORK[command]
    monkeypatch.setattr(sys, "argv", ["adamas", *arguments, "--out=run"])
    monkeypatch.setattr(sys, "stdout", Lost())
    assert cli.main() == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"could not be written ({os.strerror(number)})" in told
    assert " in run" in told
    assert (tmp_path / "run" / result).exists()


def test_a_reader_that_has_gone(adamas: Adamas, tmp_path: Path) -> None:
    mixed_csv(tmp_path)
    command = [sys.executable, "-m", "adamas.cli", *WORK["train"][0], "--out=run"]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "could not be written (Broken pipe)" in done.stderr
    assert adamas("train", "--resume", "run")[1].startswith("run is finished")


def test_what_has_to_be_known_is_told_where_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    output = Output()
    output.tell("first")
    output.check("there")
    assert capsys.readouterr() == ("first\n", "")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        output.tell("second")
    output.print("third")  # even if there is one again
    assert capsys.readouterr() == ("", "adamas: second\n")
    with pytest.raises(TrainingError, match=r"\(Broken pipe\).*is in there"):
        output.check("there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.csv", "--target=a"], "none.csv does not exist"),
        (["train", "digit"], "did you mean 'digits'?"),
        (["train", "mixed.csv"], "--target is needed"),
        (["train", "mixed.csv", "--target=Price"], "did you mean 'price'?"),
        (["train", "--epochs=ten"], "Invalid value for '--epochs'"),
        (["train", "--epochs=9", "--epochs=ten"], "'ten'"),
        (["train", "--lr", "1e-3x"], "'1e-3x'"),
        (["train", "--out=" + 300 * "a"], "cannot be made a folder (File name too long)"),
        (["train", "--epoch=1"], "No such option: --epoch"),
        (["train", "--layers=8;8"], "--layers must be whole numbers"),
        (["train", "--betas=0.9"], "betas must be two numbers"),
        (["train", "--betas=0.9,x"], "--betas must be numbers"),
        (["train", "--validation=nan"], "must be a fraction"),
        (["train", "--validation=-inf"], "must be a fraction"),
        (["train", "--layers=1000000000,1000000000"], "must be widths from 1"),
        (["train", "--lr=0"], "lr must be above 0"),
        (["train", "--lr=1e38"], "lr must be at most 1e+30, got 1e+38"),
        (["train", "--classification", "--regression"], "exclude each other"),
        (["train", "--resume=none"], "none is not a folder"),
        (["train", "--resume=.", "--out=x"], "--out cannot be given with --resume"),
        (["train", "--resume=."], "is not a run"),
        (["predict", "none", "mixed.csv"], "none is not a folder"),
        (["predict", "run"], "Missing argument"),
        (["trian"], "No such command 'trian'"),
        (["bench", "--shape=huge", "--no-scaling"], "shapes must be among"),
        (["bench", "--out=mixed.csv"], "--out mixed.csv cannot be made a folder"),
        (["compare", "saddle", "--layers=5"], "--layers is of a training"),
    ],
)
def test_one_line_of_error(
    adamas: Adamas, tmp_path: Path, arguments: list[str], message: str
) -> None:
    mixed_csv(tmp_path)
    status, out, err = adamas(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("adamas: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mixed.csv"]


def test_too_little_memory(adamas: Adamas, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    monkeypatch.setattr(import_module("adamas.lab.run"), "make_trainer", fail)
    status, _, err = adamas("train")
    assert status == 1
    assert err.startswith("adamas: there is not enough memory: choose smaller --layers")
    assert err.count("\n") == 1


def test_help(adamas: Adamas) -> None:
    for arguments in (["--help"], []):
        _, out, err = adamas(*arguments)
        assert "train" in out
        assert err == ""


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("train", "256,128"),
        ("tune", "1e-10,1e-4"),
        ("compare", "all but CSV files"),
        ("memory", "as the weights"),
        ("convert", "as the source says"),
        ("explain", "the problem's"),
    ],
)
def test_help_tells_the_defaults(adamas: Adamas, command: str, default: str) -> None:
    assert f"[default: ({default})]" in adamas(command, "--help")[1]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from adamas.cli import main; main(); print(*sys.modules)"
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "typer" in modules
    assert not {"torch", "pandas", "sklearn", "plotly"} & set(modules)


def test_without_the_extra(adamas: Adamas, monkeypatch: pytest.MonkeyPatch) -> None:
    find = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "typer" else find(name))
    assert adamas("train") == (
        1,
        "",
        "adamas: the command line needs typer: pip install 'adamas[lab]'\n",
    )


def test_bench(adamas: Adamas, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    module = import_module("adamas.lab.benchmark")
    monkeypatch.setattr(module, "bench", lambda *arguments: calls.append(arguments))
    assert adamas("bench", "--shape=1.8m", "--peer=torch", "--rounds=3", "--no-scaling")[0] == 0
    assert calls == [(["1.8m"], ["torch"], 3, "float32", None, False)]
