"""Studies: kept, shared between processes and machines, and reported."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
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
from searches import Adamas, best, start, trials

from adamas.lab import UserError, objective
from adamas.lab.options import Options
from adamas.lab.space import DEFAULTS, RANGES, Space, code, command_options, parse_space
from adamas.lab.storage import Storage, parse_url
from adamas.lab.study import Study


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


def stop_in_time(url: str, stop: Callable[[], object]) -> None:
    """Stops the server once there are more trials than now."""
    with import_module("psycopg").connect(url, autocommit=True) as connection:

        def count() -> int:
            return int(connection.execute("select count(*) from trials").fetchone()[0])

        before = count()
        for _ in range(600):
            if count() > before:
                break
            time.sleep(0.1)
        stop()


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
    later = threading.Thread(target=stop_in_time, args=(url, stop))
    later.start()
    status, _, err = adamas("tune", "--resume=two", "--jobs=1", "--trials=1000")
    later.join()
    assert status == 1
    assert "does not answer any more" in err
    assert "what has ended is kept there; continue with: adamas tune --resume two" in err
    assert err.count("\n") == 1
    status, _, err = adamas("tune", "--resume=two")
    assert (status, "cannot be used" in err) == (2, True)
