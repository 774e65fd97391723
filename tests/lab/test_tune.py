"""Searches: what they find, that nothing of them is lost, and what is said of bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
from searches import FAST, Adamas, best, sequence, start, trials, until
from tables import mixed_csv

from adamas.lab.space import DEFAULTS, RANGES, Space


def test_tune_a_training(adamas: Adamas, tmp_path: Path) -> None:
    mixed_csv(tmp_path)
    command = ("mixed.csv", "--target=big", "--drop=price", *FAST)
    status, out, err = adamas("tune", *command, "--trials=3")
    assert (status, err) == (0, "")
    assert out.count(" best loss ") == 3
    assert "searching mixed: lr, beta1, beta2, eps, weight_decay; 3 trials; in runs/tune" in out
    folder = Path("runs/tune-mixed-1")
    names = {"settings.json", "study.db", "best.json", "tune.html"}
    assert {path.name for path in folder.iterdir()} == names

    first = trials(folder)[0]
    assert Space(RANGES).values(first.params) == DEFAULTS
    found = best(folder)
    assert found["loss"] <= found["default"]["loss"] == first.value

    pasted = re.search(r"to train:  adamas (.*)", out)
    assert pasted
    assert "--drop price --layers 8 --epochs 1 --lr " in pasted[1]
    assert adamas(*pasted[1].split())[0] == 0
    metrics = json.loads(Path("runs/mixed-1/metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["validation_loss"] == found["loss"]
    assert metrics["validation_score"] == found["score"]

    status, out, _ = adamas("tune", "--resume=runs/tune-mixed-1", "--trials=4", "--jobs=1")
    assert status == 0
    assert "continuing mixed" in out
    assert "4 trials, 3 done" in out
    assert [trial.params for trial in trials(folder)[:1]] == [first.params]
    assert len(trials(folder)) == 4
    status, out, _ = adamas("tune", *command, "--trials=4")
    assert "in runs/tune-mixed-2" in out  # the first is finished


def test_a_search_that_goes_on_is_the_one_never_stopped(adamas: Adamas, script: Path) -> None:
    function = f"--script={script}:epochs"
    assert adamas("tune", function, "--trials=12", "--jobs=1", "--out=whole")[0] == 0
    assert adamas("tune", function, "--trials=5", "--jobs=1")[0] == 0
    assert adamas("tune", function, "--trials=12", "--jobs=1")[0] == 0
    assert sequence("runs/tune-my_train-epochs-1") == sequence("whole")
    found = best("whole")
    assert found["loss"] < found["default"]["loss"]
    assert set(found["hyperparameters"]) == {"lr", "beta1", "beta2", "weight_decay"}
    assert any(trial.user_attrs["how"] == "pruned" for trial in trials("whole"))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no kills to survive")
def test_killed_and_stopped(adamas: Adamas, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial that has ended is lost; the one in flight is tried again; no process is left."""
    arguments = (f"--script={script}:epochs", "--trials=6", "--jobs=1")
    process = start(*arguments, "--out=run", pause=0.1)
    until(Path("run/study.db"), 1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.communicate(timeout=30)[1] == ""  # the pipe ends with the last process
    before = trials("run")
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]

    def interrupt() -> None:
        until(Path("run/study.db"), 2)
        for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
            assert process.pid
            os.kill(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, out, err = adamas("tune", "--resume=run", "--jobs=1")
    thread.join()
    assert (status, err) == (130, "")
    assert "stopped; to continue: adamas tune --resume run" in out
    assert Path("run/tune.html").exists()
    Path("pause").write_text("0")

    status, out, _ = adamas("tune", "--resume", "run", "--jobs=1")
    assert status == 0
    assert "6 trials, 2 done" in out or "6 trials, 3 done" in out
    assert adamas("tune", *arguments, "--out=whole")[0] == 0
    assert sequence("run") == sequence("whole")
    lost = [trial for trial in trials("run") if trial.state.name == "FAIL"]
    again = [trial.user_attrs.get("retry_of") for trial in trials("run")]
    assert len(lost) == 2
    assert {trial.number for trial in lost} < set(again)


def test_jobs_run_together(adamas: Adamas, script: Path) -> None:
    status, _, _ = adamas("tune", f"--script={script}:together", "--trials=4", "--jobs=2")
    assert status == 0
    assert len(list(Path().glob("worker-*"))) == 2
    assert len(trials("runs/tune-my_train-together-1")) == 4


@pytest.mark.parametrize(
    ("function", "ends", "told", "shown"),
    [
        ("picky", ["done", "failed", "failed"], "trial 2 failed (ValueError: boom) with lr ", 1),
        ("dies", ["done", "failed", "failed"], "trial 2 failed (the worker process was ended", 0),
        ("infinite", ["done", "diverged", "diverged"], "", 0),
    ],
)
def test_trials_that_fail(
    adamas: Adamas, script: Path, function: str, ends: list[str], told: str, shown: int
) -> None:
    """The search goes on; a trace is shown once."""
    arguments = (f"--script={script}:{function}", "--trials=3", "--jobs=1", "--out=run")
    status, out, err = adamas("tune", *arguments)
    assert status == 0
    assert [trial.user_attrs["how"] for trial in trials("run")] == ends
    assert told in err
    assert err.count("Traceback") == shown
    assert "worker.py" not in err
    assert "in Python: AdamW(params, lr=0.001)" in out


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "all 2 trials failed, the last with ValueError: boom: correct that, then"),
        ("text", "text must return a number, its loss (or yield one after each epoch), got 'low'"),
        ("nowhere", "none of 2 trials ended with a finite loss: search smaller learning rates"),
    ],
)
def test_nothing_is_found(adamas: Adamas, script: Path, function: str, message: str) -> None:
    arguments = ("--trials=2", "--jobs=1", "--out=run")
    status, _, err = adamas("tune", f"--script={script}:{function}", *arguments)
    assert status == 1
    assert message in err.splitlines()[-1]


def test_what_failed_is_tried_again(adamas: Adamas, script: Path) -> None:
    arguments = (f"--script={script}:broken", "--trials=2", "--jobs=1", "--out=run")
    assert adamas("tune", *arguments)[0] == 1
    script.write_text("def broken(lr): return lr")
    status, out, _ = adamas("tune", "--resume=run", "--jobs=1")
    assert status == 0
    assert "best of 2 trials" in out
    assert best("run")["default"]["loss"] == 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "task 'digit' is unknown: it must be 'digits' or the path of a CSV file; did"),
        (["digit"], "did you mean 'digits'?"),
        (["mixed"], "did you mean 'mixed.csv'?"),
        (["none.csv"], "none.csv does not exist"),
        (["mixed.csv"], "--target is needed"),
        (["--lr=0.1,0.01"], "--lr 0.1,0.01 is an empty range: the low end must be below the high"),
        (["--lr=0.1,0.01"], "one, such as --lr 0.01,0.1"),
        (["--lr=0.1,0.1"], "--lr 0.1,0.1 is an empty range"),
        (["--lr=0,1"], "--lr must be finite and above 0, got 0,1"),
        (["--lr=1,2,3"], "--lr must be LOW,HIGH"),
        (["--lr="], "--lr must be LOW,HIGH"),
        (["--lr=a,b"], "--lr must be numbers"),
        (["--lr=nan"], "--lr must be finite"),
        (["--beta1=0.5,1"], "--beta1 must be in [0, 1), got 0.5,1"),
        (["--weight-decay=0,1"], "--weight-decay must be finite and above 0 (to fix it at 0, giv"),
        (["--eps=-1"], "--eps must be finite and above 0"),
        (["--trials=0"], "--trials must be from 1 to 1,000,000, got 0"),
        (["--jobs=0"], "--jobs must be from 1 to 1,000,000, got 0"),
        (["--epochs=0"], "epochs must be from 1"),
        (["--name=a"], "--name 'a' names a study in a --storage"),
        (["--script=none.py:f"], "none.py does not exist: give the path of a Python script"),
        (["--script=my_train.py"], "--script must be FILE.py:FUNCTION, such as my_train.py:obj"),
        (["--script=.:f"], "cannot be read"),
        (["--script=mixed.csv:f"], "mixed.csv is not Python"),
        (["--script=my_train.py:picki"], "has no function 'picki': it has 'bowl', 'epochs'"),
        (["--script=my_train.py:picki"], "did you mean 'picky'?"),
        (["--script=my_train.py:SCRIPT"], "my_train.py has no function 'SCRIPT'"),
        (["--script=my_train.py:other"], "takes 'momentum', which is not searched: its parameters"),
        (["--script=my_train.py:twice"], "takes betas twice"),
        (["--script=my_train.py:nothing"], "takes nothing to search"),
        (["digits", "--script=my_train.py:bowl"], "--script and a task exclude each other"),
        (["--epochs=2", "--script=my_train.py:bowl"], "--script and --epochs exclude each other"),
        (["--storage=nowhere"], "--storage 'nowhere' is no URL of a database: it must be such as"),
        (["--storage=oops://a:secret@b/c"], "--storage 'oops://a@b/c' names a kind of database"),
        (["--storage=postgresql://me:secret@127.0.0.1:1/a"], "me:***@127.0.0.1:1/a cannot be used"),
        (["--storage=sqlite:///none/a.db"], "cannot be used (unable to open database file)"),
        (["--resume=none"], "none is not a folder: give the folder of a search"),
        (["--resume=."], "is not a search: it has no settings.json"),
        (["--resume=.", "--lr=1,2"], "--lr cannot be given with --resume"),
        (["digits", "--resume=."], "a task cannot be given with --resume"),
        (["--classification", "--regression"], "exclude each other"),
    ],
)
def test_bad_input(adamas: Adamas, script: Path, arguments: list[str], message: str) -> None:
    mixed_csv(script.parent)
    before = sorted(script.parent.iterdir())
    status, out, err = adamas("tune", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "secret" not in err
    assert err.startswith("adamas: ")
    assert err.count("\n") == 1
    left = [path for path in script.parent.iterdir() if path.name != "__pycache__"]
    assert sorted(left) == before


def test_a_script_that_cannot_be_loaded(adamas: Adamas, script: Path) -> None:
    script.write_text("import nosuchmodule\ndef f(lr): pass")
    status, out, err = adamas("tune", f"--script={script}:f")
    assert (status, out) == (2, "")
    assert 'my_train.py", line 1, in <module>' in err
    assert "the script cannot be loaded (ModuleNotFoundError: No module named" in err
    assert not Path("runs").exists()


def test_live_progress(adamas: Adamas, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    status, out, _ = adamas("tune", f"--script={script}:bowl", "--trials=2", "--jobs=1")
    assert status == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert re.search(r"trial 2/2 .* best loss .* 0 s left", plain)


def test_without_optuna(adamas: Adamas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("adamas.lab.commands"), "find_spec", lambda name: None)
    assert adamas("tune") == (
        2,
        "",
        "adamas: adamas tune needs optuna: pip install 'adamas[lab]'\n",
    )
