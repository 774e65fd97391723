"""``adamas compare``: what it writes, what its page holds, and what is said of bad input."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from races import PLACES, STEPS, data, raced_page
from tables import mixed_csv

from adamas.lab.comparefigures import MOST_STARTS
from adamas.lab.surfaces import SURFACES

Adamas = Callable[..., tuple[int, str, str]]

FAST = ("--steps=12", "--seeds=2", "--lr=1e-2,1e-1")


def found(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "compare.json").read_text())
    return content


def test_compare(adamas: Adamas, tmp_path: Path) -> None:
    mixed_csv(tmp_path)
    names = ("saddle", "mixed.csv", "--target=price", "--drop=big", "--layers=8")
    options = (*FAST, "--rules=sgd,adam", "--moments=int8", "--torch")
    status, out, err = adamas("compare", *names, *options)
    assert (status, err) == (0, "")
    assert out.endswith("page: runs/compare-1/compare.html\n")
    folder = "runs/compare-1"
    assert {path.name for path in Path(folder).iterdir()} == {"compare.json", "compare.html"}
    content = found(folder)
    racers = ["gradient descent", "Adam", "Adam int8", "torch gradient descent", "torch Adam"]
    assert content["racers"] == racers
    assert [race["name"] for race in content["races"]] == ["saddle", "mixed"]
    for raced in content["races"]:
        assert f"{raced['name']}, steps and seconds to a loss of {raced['target']:.3g}" in out
        for result in raced["results"]:
            assert result["lr"] in [lr for lr, _ in result["sweep"]]
            assert len(result["final_losses"]) == 2
            row = re.search(
                rf"^{re.escape(result['racer'])}  +{result['lr']:g}\*?  +(\S+)", out, re.M
            )
            assert row
    html = (Path(folder) / "compare.html").read_text(encoding="utf-8")
    for text in (
        "validation R²",
        "Watch the race",
        "at the same pace",
        "scale of the loss",
        *racers,
    ):
        assert text in html
    assert adamas("compare", "saddle", *FAST)[1].endswith("page: runs/compare-2/compare.html\n")


def test_the_same_again(adamas: Adamas) -> None:
    def losses(out: str) -> dict[str, Any]:
        assert (
            adamas(
                "compare",
                "beale",
                "digits",
                "--layers=8",
                "--rules=adam,sgd",
                *FAST,
                f"--out={out}",
            )[0]
            == 0
        )
        text = json.dumps(found(out))
        return dict(
            json.loads(re.sub(r'"seconds_to_target": [^,}]*', '"seconds_to_target": 0', text))
        )

    assert losses("one") == losses("two")


@pytest.fixture(scope="module")
def html() -> str:
    return raced_page()


def test_page(html: str) -> None:
    own = re.sub(r"<script>/\*\*.*?</script>", "", html, count=1, flags=re.DOTALL)
    most = len(html) + len(own) * (len(SURFACES) + 1 - len(PLACES)) / len(PLACES)
    assert most < 6_000_000  # were it of all surfaces and the digits
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|//\w|@import|url\(|<link|<img|\bsrc=", own)
    places = set(re.findall(r'<div class="plot" id="([^"]+)"', html))
    theory = {"scale", "advance-sgd", "advance-adam"}
    arenas = data(html)
    assert list(arenas) == list(PLACES)
    for name, arena in arenas.items():
        assert set(arena["figures"]) | theory == places
        assert f'data-arena="{name}"' in html
        steps = arena["at"]
        assert (steps[0], steps[-1]) == (0, STEPS)
        racers = {trace["meta"] for trace in arena["figures"]["loss"]["data"]}
        assert racers == set(range(len(arena["paths"])))
        for path in arena["paths"]:
            assert len(path) == MOST_STARTS
            assert {len(values) for start in path for values in start} == {len(steps)}
        starts = [[values[0] for values in start] for start in arena["paths"][0]]
        assert starts[0] == list(SURFACES[name].start)


def test_page_where_all_diverge(adamas: Adamas) -> None:
    names = ("digits", "beale", "--layers=8", "--rules=sgd,adam")
    status, out, err = adamas("compare", *names, "--steps=20", "--seeds=3", "--lr=1e30", "--out=x")
    assert (status, err) == (0, "")
    assert re.search(r"gradient descent  +1e\+30  +- +-  +diverged  diverged to diverged", out)
    raced = found("x")["races"]
    assert [race["results"][0]["final_loss"]["median"] for race in raced] == [None, None]
    assert raced[0]["results"][0]["score"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rosenbrok"], "task 'rosenbrok' is unknown: it must be 'rosenbrock', 'beale',"),
        (["rosenbrok"], "or the path of a CSV file; did you mean 'rosenbrock'?"),
        (["digit"], "did you mean 'digits'?"),
        (["none.csv"], "none.csv"),
        (["mixed.csv"], "--target is needed"),
        (["beale", "--target=price"], "--target is of a CSV file: give its path"),
        (["beale", "--regression"], "--classification or --regression is of a CSV file"),
        (["mixed.csv", "./mixed.csv", "--target=big"], "two arenas are called 'mixed': rename"),
        (["mixed.csv", "--target=prize"], "did you mean 'price'?"),
        (["--rules=adamm"], "--rules must be any of sgd, momentum, rmsprop, adam, adamw, with"),
        (["--rules="], "--rules must be any of sgd"),
        (["--moments=int9"], "--moments must be any of bfloat16, int8, int4, with commas between"),
        (["--moments=int9"], "got 'int9'; did you mean 'int8'?"),
        (["--lr=1,1e-3"], "--lr 1,1e-3 is an empty range: the low end must be below the high one"),
        (["--lr=0,1"], "--lr must be finite and above 0, got 0,1"),
        (["--lr=1e-3,1e39"], "--lr must be from 1e-30 to 1e+30, got 1e-3,1e39"),
        (["--lr=low"], "--lr must be numbers with commas between them"),
        (["--seeds=0"], "--seeds must be from 1 to 100, got 0"),
        (["--steps=0"], "--steps must be from 1 to 100,000, got 0"),
        (["--layers=a"], "--layers must be whole numbers"),
        (["digits", "--layers=0"], "layers must be widths from 1"),
        (["mixed.csv", "--target=big", "--classification", "--regression"], "exclude each other"),
        (["beale", "--out=mixed.csv"], "--out mixed.csv cannot be made a folder (File exists)"),
        (["beale", "--out=mixed.csv/x"], "cannot be made a folder (Not a directory): choose"),
        (["beale", "--out=."], "--out . is not empty: a comparison needs a new folder"),
        (["beale", "--out=/proc/x"], "--out /proc/x cannot be made a folder"),
    ],
)
def test_one_line_of_error(
    adamas: Adamas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("nothing shall be raced")

    monkeypatch.setattr(import_module("adamas.lab.compare"), "race", never)
    mixed_csv(tmp_path)
    status, out, err = adamas("compare", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("adamas: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mixed.csv"]


@pytest.mark.parametrize("finished", [0, 1])
def test_stopped(
    adamas: Adamas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    module = import_module("adamas.lab.compare")
    true_race, begun = module.race, []

    def stopping(*arguments: Any) -> Any:
        if len(begun) == finished:
            signal.raise_signal(signal.SIGINT)
        begun.append(arguments)
        return true_race(*arguments)

    monkeypatch.setattr(module, "race", stopping)
    status, out, err = adamas("compare", "beale", "saddle", "ravine", *FAST, "--out=some")
    assert (status, err) == (130, "")
    if finished:
        assert "stopped after 1 of 3 races; page: some/compare.html" in out
        assert [race["name"] for race in found("some")["races"]] == ["beale"]
        assert list(data((tmp_path / "some/compare.html").read_text())) == ["beale"]
    else:
        assert "stopped before the first race was over: nothing is written" in out
        assert not (tmp_path / "some").exists()


def test_a_full_disk(adamas: Adamas, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("adamas.lab.compare")

    def full(path: Path, text: str) -> None:
        if path.suffix == ".html":
            raise OSError(28, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(module, "write_text", full)
    status, _, err = adamas("compare", "beale", *FAST, "--out=some")
    assert status == 1
    assert err == (
        "adamas: the results in some cannot be written (No space left on device): correct that, "
        "then compare again\n"
    )
