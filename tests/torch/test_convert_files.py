"""``adamas convert``: files of checkpoints, good and bad."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from layouts import STAND_INS, State, apex, bitsandbytes, held, of, torch_optim, torchao
from torch import nn

from adamas import cli


@pytest.fixture
def adamas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in an empty folder: its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adamas", *arguments])
        capsys.readouterr()
        status = cli.main()
        return status, *capsys.readouterr()

    return run


Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("bits", [8, 4, "fp8"])
def test_a_file_of_classes_that_are_not_installed(
    bits: int | str, adamas: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {name: ModuleType(name) for name in ("torchao", "torchao.optim")}
    for name, kind in STAND_INS.items():  # where torch.save looks for torchao's classes
        modules[kind.__module__] = ModuleType(kind.__module__)
        setattr(modules[kind.__module__], name, kind)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    given = torchao(bits)
    torch.save(given.saved, "in.pt")
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    assert adamas("convert", "in.pt", "out.pt", "--to", "adamas", "--decoupled")[0] == 0
    result = torch.load("out.pt", weights_only=True)
    for state, (m, v) in zip(result["state"].values(), given.moments, strict=True):
        assert torch.equal(state["exp_avg"], m)
        assert torch.equal(state["exp_avg_sq"], v)


def test_convert_keeps_the_rest_of_a_file(adamas: Run) -> None:
    weights = {"w": torch.ones(3)}
    torch.save({"model": weights, "optimizer": bitsandbytes().saved, "epoch": 3}, "in.pt")
    status, out, err = adamas("convert", "in.pt", "out.pt", "--to", "torch")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "recognised   bitsandbytes",
        "written for  torch",
        "parameters   2, 2 with a state",
        "matched      0 by name, 2 by position",
        "missing      0",
        "extra        0",
        "written      out.pt",
    ]
    result = torch.load("out.pt", weights_only=True)
    assert (result["epoch"], torch.equal(result["model"]["w"], weights["w"])) == (3, True)
    assert adamas("convert", "out.pt", "out.pt")[0] == 0
    again = torch.load("out.pt", weights_only=True)
    for one, other in zip(
        result["optimizer"]["state"].values(), again["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_convert_finds_states_in_lists(adamas: Run) -> None:
    """Lightning's checkpoints have a list of them."""
    first, second = bitsandbytes().saved, torch_optim().saved
    torch.save({"epoch": 3, "optimizer_states": [first], "loops": [{}]}, "one.pt")
    assert adamas("convert", "one.pt", "out.pt")[0] == 0
    result = torch.load("out.pt", weights_only=True)
    assert (result["epoch"], result["loops"]) == (3, [{}])
    assert "exp_avg" in result["optimizer_states"][0]["state"][0]
    torch.save({"optimizer_states": [second, first]}, "two.pt")
    status, _, err = adamas("convert", "two.pt", "out.pt")
    assert status == 2
    assert "['optimizer_states.0', 'optimizer_states.1']: choose one with --key" in err
    assert adamas("convert", "two.pt", "out.pt", "--key", "optimizer_states.1")[0] == 0
    converted = torch.load("out.pt", weights_only=True)["optimizer_states"]
    assert str(converted[0]) == str(torch.load("two.pt")["optimizer_states"][0])
    assert "exp_avg" in converted[1]["state"][0]


def test_convert_matches_with_another_checkpoint(adamas: Run) -> None:
    torch.save(of("abc").state_dict(), "in.pt")
    torch.save({"optim": of("cbd").state_dict()}, "like.pt")
    status, out, err = adamas("convert", "in.pt", "out.pt", "--like=like.pt")
    assert (status, out) == (2, "")
    assert "it lacks ['d'] and has ['a'] beyond them" in err
    status, out, _ = adamas("convert", "in.pt", "out.pt", "--like=like.pt", "--partial")
    assert status == 0
    assert "matched      2 by name, 0 by position\nmissing      1: d\nextra        1: a\n" in out
    assert held(torch.load("out.pt", weights_only=True)) == "cb-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt", "out.pt"], "none.pt does not exist"),
        (["text.pt", "out.pt"], "text.pt cannot be loaded"),
        (["cut.pt", "out.pt"], "cut.pt cannot be loaded"),
        (["code.pt", "out.pt"], "code.pt cannot be loaded, it holds pathlib"),
        (["two.pt", "out.pt"], "got those under ['a', 'b']: choose one with --key"),
        (["model.pt", "out.pt"], "must hold one optimizer's state"),
        (["good.pt", "out.pt", "--key=x"], "--key must be one of ['state', 'param_groups']"),
        (["two.pt", "out.pt", "--key=c"], "'c'"),
        (["zero.pt", "out.pt"], "one rank's part of DeepSpeed's ZeRO"),
        (["sgd.pt", "out.pt"], "sgd.pt: the optimizer's state must be Adam's"),
        (["good.pt", "out.pt", "--to=tf"], "to must be 'torch' or 'adamas', got 'tf'"),
        (["good.pt", "none/out.pt"], "none/out.pt cannot be written"),
        (["good.pt", "out.pt", "--like=text.pt"], "text.pt cannot be loaded"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_written(
    adamas: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    good = torch_optim().saved
    torch.save(good, "good.pt")
    torch.save({"a": good, "b": good}, "two.pt")
    torch.save({"w": torch.ones(2)}, "model.pt")
    torch.save({"optimizer_state_dict": {"zero_stage": 2}}, "zero.pt")
    torch.save(torch_optim_sgd(), "sgd.pt")
    torch.save({"path": Path("x")}, "code.pt")
    Path("text.pt").write_text("hello")
    Path("cut.pt").write_bytes(Path("good.pt").read_bytes()[:3000])
    before = {path.name for path in tmp_path.iterdir()}
    status, out, err = adamas("convert", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def torch_optim_sgd() -> State:
    saved: State = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1).state_dict()
    return saved


def test_a_crash_during_a_save_leaves_the_old_file(
    adamas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(apex().saved, "in.pt")
    Path("out.pt").write_text("old")

    def crash(content: object, file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", crash)
    status, out, err = adamas("convert", "in.pt", "out.pt")
    assert (status, out) == (2, "")
    assert "out.pt cannot be written (No space left on device)" in err
    assert Path("out.pt").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.pt", "out.pt"}


def test_what_is_no_plain_file_stays_what_it_is(adamas: Run, tmp_path: Path) -> None:
    torch.save(of("ab").state_dict(), "in.pt")
    Path("folder").mkdir()
    Path("folder/real.pt").write_text("old")
    Path("link.pt").symlink_to("folder/real.pt")
    Path("loose.pt").symlink_to("folder/new.pt")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link.pt", "loose.pt", "pipe"):
        assert adamas("convert", "in.pt", name)[0] == 0
    assert Path("link.pt").is_symlink()
    assert Path("loose.pt").is_symlink()
    assert Path("pipe").is_fifo()
    piped = io.BytesIO(os.read(reader, 1 << 20))
    os.close(reader)
    for file in ("folder/real.pt", "folder/new.pt", piped):
        assert held(torch.load(file, weights_only=True)) == "ab"
    assert len(list(tmp_path.iterdir())) == 5
