"""Searches: what they find, that nothing of them is lost, and what is said of bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from tables import mixed_csv

from adamas.lab import UserError, objective
from adamas.lab.options import Options
from adamas.lab.space import DEFAULTS, RANGES, Space, code, command_options, parse_space
from adamas.lab.storage import Storage, parse_url
from adamas.lab.study import Study

Adamas = Callable[..., tuple[int, str, str]]

FAST = ("--epochs=1", "--layers=8", "--jobs=1")
# The loss is lowest at lr 0.003; one yield an epoch, which takes a moment.
SCRIPT = """
import math, os, time
from pathlib import Path

def bowl(lr, beta1=0.9):
    return (math.log10(lr) + 2.5) ** 2 + beta1

def epochs(lr, betas, weight_decay):
    for epoch in range(1, 5):
        time.sleep(float(Path("pause").read_text()))
        yield (math.log10(lr) + 2.5) ** 2 + betas[0] + 1 / epoch

def picky(lr):
    if lr != 1e-3:
        raise ValueError("boom")
    return 1.0

def broken(lr):
    raise ValueError("boom")

def dies(lr):
    if lr != 1e-3:
        os.kill(os.getpid(), 9)
    return 1.0

def infinite(lr):
    return math.inf if lr != 1e-3 else 1.0

def nowhere(lr):
    return math.nan

def text(lr):
    return "low"

def together(lr):
    Path(f"worker-{os.getpid()}").touch()
    while len(list(Path().glob("worker-*"))) < 2:
        time.sleep(0.01)
    return lr

def other(lr, momentum):
    return lr

def twice(beta1, betas):
    return beta1

def nothing(size=3):
    return size

made = lambda lr: lr
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "my_train.py"
    path.write_text(SCRIPT)
    (tmp_path / "pause").write_text("0")
    return path


def trials(folder: Path | str) -> list[optuna.trial.FrozenTrial]:
    storage = Storage.of_file(Path(folder) / "study.db")
    study = optuna.load_study(study_name="adamas", storage=storage.rdb)
    found = study.trials
    storage.close()
    return found


def sequence(folder: Path | str) -> list[Any]:
    """What a search has tried and found, without what was lost on the way."""
    return [
        (trial.params, trial.value, trial.intermediate_values)
        for trial in sorted(trials(folder), key=lambda trial: trial.datetime_start or 0)
        if "how" in trial.user_attrs
    ]


def best(folder: Path | str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "best.json").read_text())
    return content


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


def start(*arguments: str, pause: float) -> subprocess.Popen[str]:
    Path("pause").write_text(str(pause))
    return subprocess.Popen(
        [sys.executable, "-m", "adamas.cli", "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(database: Path, ended: int) -> None:
    """Waits until so many trials have ended, and another is in its second epoch."""
    query = (
        "select (select count(*) from trials where state = 'COMPLETE'), (select count(*) from "
        "trial_intermediate_values natural join trials where state = 'RUNNING')"
    )
    for _ in range(1000):
        time.sleep(0.02)
        try:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                complete, reported = connection.execute(query).fetchone()
        except sqlite3.OperationalError:  # it is being made
            continue
        if complete >= ended and reported:
            return
    raise AssertionError(f"{database} never had {ended} trials")


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


def test_another_search(adamas: Adamas, script: Path, tmp_path: Path) -> None:
    """Of a folder or a storage is refused, and leaves it as it was."""
    function = f"--script={script}:bowl"
    few = ("--trials=2", "--jobs=1")
    shared = f"--storage=sqlite:///{tmp_path}/shared.db"
    assert adamas("tune", function, *few, "--out=run")[0] == 0
    assert adamas("tune", function, *few, shared, "--name=one")[0] == 0
    for place in (["--out=run"], [shared, "--name=one"]):
        for changed, message in (
            (["--lr=1e-4,1"], "is of another search (its space lr is [1e-05, 0.1], not [0.0001"),
            (["--seed=1"], "is of another search (its seed is 0, not 1)"),
        ):
            status, _, err = adamas("tune", function, *few, *place, *changed)
            assert status == 2
            assert message in err
    status, _, err = adamas("tune", f"--script={script}:picky", *few, "--out=run")
    assert (status, "its space beta1 is [0.5, 0.99], not null" in err) == (2, True)
    status, _, err = adamas("tune", "--resume=run", shared)
    assert (status, "is not where the search of run is" in err) == (2, True)
    assert len(trials("run")) == 2
    Path("run/study.db").write_bytes(b"rubbish" * 1000)
    status, _, err = adamas("tune", "--resume=run")
    assert (status, "restore the file, or search anew" in err) == (2, True)
    Path("run/settings.json").write_text("{}")
    status, _, err = adamas("tune", "--resume=run")
    assert (status, "is not of `adamas tune`, or damaged" in err) == (2, True)
    Path("mine").mkdir()
    Path("mine/file").touch()
    status, _, err = adamas("tune", function, *few, "--out=mine")
    assert (status, "--out mine is not empty" in err) == (2, True)


def test_machines_share_a_storage(adamas: Adamas, script: Path, tmp_path: Path) -> None:
    shared = f"--storage=sqlite:///{tmp_path}/shared.db"
    function = f"--script={script}:bowl"
    assert adamas("tune", function, shared, "--trials=2", "--jobs=1", "--out=here")[0] == 0
    status, out, _ = adamas("tune", function, shared, "--trials=4", "--jobs=1", "--out=there")
    assert status == 0
    assert "4 trials, 2 done; in there" in out
    assert best("there")["trials"] == 4
    status, out, _ = adamas("tune", "--resume=here", "--trials=4")
    assert "best of 4 trials" in out
    for name, number in (("one", 1), ("one", 1), ("two", 2)):
        arguments = (function, shared, f"--name={name}", "--trials=1", "--jobs=1")
        _, out, _ = adamas("tune", *arguments)
        assert f"in runs/tune-my_train-bowl-{number}\n" in out


def open_study(database: Path, shared: bool) -> Study:
    storage = Storage(parse_url(f"sqlite:///{database}"), shared)
    study = Study(storage, "s", {"format": "adamas study 1"}, Space(RANGES), None, 0)
    study.open()
    return study


def test_trials_of_a_lost_machine_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("adamas.lab.storage")
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    monkeypatch.setattr(module, "_GRACE", 1)
    lost, alive = (open_study(tmp_path / "s.db", True) for _ in range(2))
    asked = lost.ask(9)
    assert asked
    alive.beat()
    assert alive.elsewhere == 1
    time.sleep(2.2)
    alive._beat = 0
    alive.beat()
    assert alive.elsewhere == 0
    again = alive.ask(9)
    assert again
    assert again[1] == asked[1] == DEFAULTS
    assert again[0].user_attrs["retry_of"] == asked[0].number
    for study in (lost, alive):
        study.storage.close()


def test_a_trial_that_is_lost_again_and_again_is_given_up(tmp_path: Path) -> None:
    study = open_study(tmp_path / "s.db", False)
    tried = []
    for _ in range(5):
        asked = study.ask(9)
        assert asked
        tried.append(asked[1])
        study.give_up()
    assert tried[:4] == [DEFAULTS] * 4
    assert tried[4] != DEFAULTS
    study.storage.close()


def test_the_default_is_never_stopped_early(tmp_path: Path) -> None:
    study = open_study(tmp_path / "s.db", False)
    first = study.ask(99)
    assert first
    for _ in range(6):
        asked = study.ask(99)
        assert asked
        for epoch in range(1, 9):
            study.report(asked[0], epoch, 1.0)
        study.end(asked[0], "done", {"loss": 1.0})
    worse = study.ask(99)
    assert worse
    for trial, pruned in ((first[0], False), (worse[0], True)):
        assert any(study.report(trial, epoch, 2.0) for epoch in range(1, 9)) == pruned
    study.storage.close()


def test_space() -> None:
    rows = Options.complete({}, 1000)
    defaults = {"lr": rows.lr, "beta1": rows.betas[0], "beta2": rows.betas[1]}
    assert {**defaults, "eps": rows.eps, "weight_decay": rows.weight_decay} == DEFAULTS
    space = parse_space({"eps": "1e-8", "weight_decay": "0", "lr": "1e-2,1"})
    study = optuna.create_study()
    for _ in range(20):
        trial = study.ask()
        values = space.suggest(trial)
        assert space.values(trial.params) == values
        assert (values["eps"], values["weight_decay"]) == (1e-8, 0)
        assert 1e-2 <= values["lr"] <= 1
        assert 0.9 <= values["beta2"] <= 0.9999
        assert float(f"{values['lr']:g}") == values["lr"]
    assert space.first() == {"lr": 1e-2, "one_minus_beta1": 0.1, "one_minus_beta2": 0.001}
    values = {**DEFAULTS, "beta2": 0.999877}
    options = "--lr 0.001 --betas 0.9,0.999877 --eps 1e-08 --weight-decay 0.01"
    assert command_options(values) == options
    assert code({"beta2": 0.99}) == "AdamW(params, betas=(0.9, 0.99))"


def test_report_says_what_mattered(tmp_path: Path) -> None:
    from adamas.lab.search import Search
    from adamas.lab.tunereport import importance, report_page

    study = open_study(tmp_path / "s.db", False)
    for number in range(16):
        asked = study.ask(99)
        assert asked
        trial, values = asked
        loss = abs(np.log10(values["lr"]) + 2) + 1e-3 * values["beta1"]
        study.report(trial, 1, loss)
        study.end(trial, "pruned" if number == 3 else "done", {"loss": loss})
    path = Path("x.py")
    search = Search("x", objective.ScriptObjective(path, "f"), study.space, {}, {}, 0, None)
    found = importance(search, study)
    assert max(found, key=lambda name: found[name]) == "lr"
    assert sum(found.values()) == pytest.approx(1)
    result = {"trial": 1, "loss": 0.1, "score": None, "default": None, "code": "AdamW(<params>)"}
    page = report_page(search, study, result)
    for text in ("History", "What mattered", "Slices", "The best", "AdamW(&lt;params&gt;)"):
        assert text in page
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="', page)
    study.storage.close()


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


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("adamas.lab.storage"), "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("needs psycopg: pip install 'psycopg[binary]'")):
        parse_url("postgresql://me:secret@host/database")


BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1:]


@pytest.fixture
def postgres() -> Iterator[tuple[str, Callable[[], object]]]:
    """A server of its own on loopback: its URL, and what stops it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed")
    binaries = BINARIES[0].parent
    home = Path(tempfile.mkdtemp(prefix="adamas-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(home, "postgres", "postgres")
        except LookupError:
            home.rmdir()
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")

    def run(program: str, *arguments: str) -> None:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        options: dict[str, Any] = {**quiet, **user, "cwd": home, "check": True, "timeout": 60}
        subprocess.run([binaries / program, *arguments], **options)

    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    data, log = f"-D{home}/data", f"-l{home}/log"
    run("initdb", data, "-Utuner", "-Atrust", "--no-sync")
    server = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c fsync=off"
    run("pg_ctl", data, log, "-w", "-o", server, "start")
    running = [True]

    def stop() -> None:
        if running.pop() if running else False:
            run("pg_ctl", data, "-w", "-mimmediate", "stop")

    try:
        yield f"postgresql://tuner@127.0.0.1:{port}/postgres", stop
    finally:
        stop()
        shutil.rmtree(home)


def test_postgresql(
    adamas: Adamas, script: Path, postgres: tuple[str, Callable[[], object]]
) -> None:
    """Two processes share a study, and one is killed; then the server goes away."""
    url, stop = postgres
    arguments = (f"--script={script}:epochs", f"--storage={url}", "--jobs=1", "--trials=9")
    others = [start(*arguments, f"--out={name}", pause=0.05) for name in ("one", "two")]
    for other in others:
        assert other.wait(60) == 0, other.communicate()
        other.communicate()
    assert best("one")["task"] == "my_train-epochs"
    status, out, err = adamas("tune", "--resume=one", "--jobs=1", "--trials=10")
    assert (status, err) == (0, "")
    done = re.search(r"10 trials, (\d+) done", out)
    assert done
    assert 9 <= int(done[1]) <= 10  # two that begin at the same moment do not see each other

    Path("pause").write_text("0.1")
    later = threading.Timer(1, stop)
    later.start()
    status, _, err = adamas("tune", "--resume=two", "--jobs=1", "--trials=1000")
    later.join()
    assert status == 1
    assert "does not answer any more" in err
    assert "what has ended is kept there; continue with: adamas tune --resume two" in err
    assert err.count("\n") == 1
    status, _, err = adamas("tune", "--resume=two")
    assert (status, "cannot be used" in err) == (2, True)
