"""``adamas memory``: the models that it reads, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tables import mixed_csv
from torch import nn

from adamas import cli
from adamas.lab import UserError
from adamas.lab import memory as module
from adamas.lab.memory import count_of, free_memory

Adamas = Callable[..., tuple[int, str, str]]
TABLE = """\
1000: 1,000 parameters of bfloat16
                                                       bytes a      of fits fits
in kB           weights master gradients moments total   param torch's  CPU  GPU
────────────────────────────────────────────────────────────────────────────────
torch              2.00   0.00      2.00    4.00  8.00    8.00    50 %  yes  yes
torch, master      2.00   4.00      2.00    8.00 16.00   16.00   100 %   NO   NO
adamas float32     2.00   1.00      2.00    8.00 13.00   13.00    81 %   NO   NO
adamas bfloat16    2.00   1.00      2.00    4.00  9.00    9.00    56 %   NO  yes
adamas int8        2.00   1.00      2.00    2.10  7.10    7.10    44 %  yes  yes
adamas int4        2.00   1.00      2.00    1.10  6.10    6.10    38 %  yes  yes
0.0 GB of CPU memory are free; activations come on top
0.0 GB of GPU memory are free; activations come on top
"""


@pytest.fixture
def adamas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Adamas:
    """Runs ``adamas memory`` in a folder of models: its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(module, "free_memory", lambda: {"CPU": 8000, "GPU": 9000})

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adamas", "memory", *arguments])
        capsys.readouterr()
        status = cli.main()
        return status, *capsys.readouterr()

    return run


def models() -> None:
    weight = nn.Parameter(torch.zeros(10, 7))
    state: dict[str, Any] = {
        "embed": weight,
        "head": weight,
        "norm.weight": torch.zeros(5),
        "norm.running_mean": torch.zeros(5),
        "norm.num_batches_tracked": torch.tensor(3),
        "scale": torch.zeros(()),
    }
    torch.save(state, "model.pt")
    torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": state, "epoch": 3, "seed": torch.zeros(9, dtype=torch.uint8)}, "in.pt")
    torch.save({"model": state, "ema": {"a": torch.zeros(8)}, "step": 1}, "two.pt")
    torch.save({"path": Path("x")}, "code.pt")
    torch.save({"ids": torch.zeros(8, dtype=torch.int64), "none": torch.zeros(0)}, "empty.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"w": torch.zeros(3, 2, dtype=torch.complex64)}, "complex.pt")
    tensors = {name: tensor.detach().clone().bfloat16() for name, tensor in state.items()}
    save_file(tensors | {"ids": torch.zeros(2, dtype=torch.int32)}, "model.safetensors")
    save_file({"w": torch.zeros(8).to(torch.float8_e4m3fn)}, "tiny.safetensors")
    save_file({"w": torch.zeros(8).double(), "b": torch.zeros(2).half()}, "double.safetensors")
    save_file({}, "none.safetensors")
    Path("text.pt").write_text("hello")
    Path("text.safetensors").write_text("hello, this is no safetensors file")
    Path("folder").mkdir()


def test_table(adamas: Adamas) -> None:
    arguments = ("1000", "--weights=bfloat16", "--master-bits=24")
    status, out, err = adamas(*arguments)
    assert (status, err) == (0, "")
    # Columns end at the right, and lines with what fills the table.
    assert [line.rstrip() for line in out.splitlines()] == TABLE.splitlines()


def test_a_narrow_terminal_cuts_no_number(adamas: Adamas, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("1000", "--weights=bfloat16", "--master-bits=24")
    wide = adamas(*arguments)[1].split()
    monkeypatch.setenv("COLUMNS", "40")
    assert adamas(*arguments)[1].split() == wide


def test_json(adamas: Adamas) -> None:
    status, out, err = adamas("1k", "--gradients=bfloat16", "--amsgrad", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    choices = found.pop("choices")
    assert found == {
        "parameters": 1000,
        "tensors": 1,
        "left_out": 0,
        "free": {"CPU": 8000, "GPU": 9000},
        "baseline": "torch",
        "refused": {},
    }
    assert choices[-1] == {
        "name": "adamas int4",
        "elements": 1000,
        "weights": 4000,
        "master": 0,
        "gradients": 2000,
        "moments": 5096,
        "total": 11096,
        "bytes_a_parameter": 11.096,
        "of_baseline": 11096 / 18000,
        "fits": {"CPU": False, "GPU": False},
    }


@pytest.mark.parametrize(
    ("arguments", "parameters", "tensors", "left_out", "weights"),
    [
        (["model.pt"], 76, 3, 2, 304),
        (["old.pt"], 76, 3, 2, 304),
        (["in.pt"], 76, 3, 2, 304),
        (["two.pt", "--key=model"], 76, 3, 2, 304),
        (["two.pt", "--key=ema"], 8, 1, 0, 32),
        (["model.pt", "--weights=float16"], 76, 3, 2, 152),
        (["complex.pt"], 12, 1, 0, 48),
        # No two of a safetensors file share memory; its whole numbers were cast.
        (["model.safetensors"], 147, 5, 2, 294),
        (["tiny.safetensors", "--weights=bfloat16"], 8, 1, 0, 16),
        (["double.safetensors"], 10, 2, 0, 68),
        (["double.safetensors", "--weights=float32"], 10, 2, 0, 40),
    ],
)
def test_files(
    adamas: Adamas,
    arguments: list[str],
    parameters: int,
    tensors: int,
    left_out: int,
    weights: int,
) -> None:
    models()
    status, out, err = adamas(*arguments, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["parameters"], found["tensors"]) == (parameters, tensors)
    assert (found["left_out"], found["choices"][0]["weights"]) == (left_out, weights)


def test_notes(adamas: Adamas) -> None:
    models()
    assert "\n2 tensors left out, which are not trained\n" in adamas("model.pt")[1]
    out = adamas("double.safetensors")[1]
    assert "10 parameters of float16, float64" in out
    for moments in ("bfloat16", "int8", "int4"):
        assert f"\nno adamas {moments}: moments must be 'float32' for parameters of float64" in out
    assert "adamas int8 " not in out


def test_the_tensors_of_a_file_are_not_loaded(adamas: Adamas) -> None:
    """A file of 64 GB that is nearly all holes."""
    n = 1 << 34
    header = {"w": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open("huge.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * n)
    status, out, err = adamas("huge.safetensors", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["parameters"] == n


def test_a_file_of_torch_is_mapped_where_it_can_be(
    adamas: Adamas, monkeypatch: pytest.MonkeyPatch
) -> None:
    models()
    load, mapped = torch.load, []

    def spy(path: Path, **options: Any) -> Any:
        mapped.append(options["mmap"])
        return load(path, **options)

    monkeypatch.setattr(torch, "load", spy)
    assert [adamas(name)[0] for name in ("model.pt", "old.pt")] == [0, 0]
    assert mapped == [True, False]


def test_a_run(adamas: Adamas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed_csv(tmp_path)
    arguments = ("mixed.csv", "--target=price", "--layers=8", "--epochs=1", "--out=run")
    monkeypatch.setattr(sys, "argv", ["adamas", "train", *arguments])
    assert cli.main() == 0
    status, out, err = adamas("run", "--json")
    assert (status, err) == (0, "")
    state = torch.load("run/checkpoint.pt", weights_only=True)["model"]
    assert json.loads(out)["parameters"] == sum(tensor.numel() for tensor in state.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt"], "none.pt does not exist, and is no count of parameters either"),
        (["12x"], "12x does not exist, and is no count of parameters either, like 124M"),
        (["0"], "a count of parameters must be a whole number from 1 to 10^18, got 0"),
        (["1.5"], "must be a whole number from 1 to 10^18, got 1.5"),
        (["1e999B"], "must be a whole number from 1 to 10^18, got 1e999B"),
        (["folder"], "folder is not a run: it has no settings.json"),
        (["text.pt"], "text.pt cannot be loaded"),
        (["code.pt"], "code.pt cannot be loaded, it holds pathlib"),
        (["text.safetensors"], "text.safetensors cannot be read"),
        (["list.pt"], "list.pt must hold tensors of floating numbers, got 0 tensors"),
        (["empty.pt"], "empty.pt must hold tensors of floating numbers, got 2 tensors"),
        (["none.safetensors"], "none.safetensors must hold tensors of floating numbers, got 0"),
        (["two.pt"], "got those under ['model', 'ema']: choose one with --key"),
        (["two.pt", "--key=step"], "--key must be one of ['model', 'ema'] in two.pt, got 'step'"),
        (["model.safetensors", "--key=x"], "--key is for files of torch.save"),
        (["7B", "--key=x"], "--key is for files of torch.save"),
        (["tiny.safetensors"], "must be of float32, float64, bfloat16, float16 to be trained, got"),
        (["7B", "--weights=int8"], "--weights must be one of float32, bfloat16, float16, got"),
        (["7B", "--gradients=int8"], "--gradients must be one of float32, bfloat16, float16, got"),
        (["7B", "--master-bits=24"], "--master-bits 24 is for 16-bit weights, and these are float"),
        (["7B", "--weights=bfloat16", "--master-bits=8"], "--master-bits must be one of 32, 24, 1"),
        (["7B", "--weights=float16", "--master-bits=24"], "--master-bits=24 needs bfloat16"),
    ],
)
def test_one_line_of_error(adamas: Adamas, arguments: list[str], message: str) -> None:
    models()
    status, out, err = adamas(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("adamas: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("124439808", 124439808),
        ("124M", 124 * 10**6),
        ("7B", 7 * 10**9),
        ("7b", 7 * 10**9),
        ("1.5B", 1500 * 10**6),
        ("1e9", 10**9),
        ("6.7E+9", 67 * 10**8),
        ("350k", 350_000),
        ("1T", 10**12),
        ("0.001K", 1),
        ("1000000T", 10**18),
        ("model.pt", None),
        ("7BB", None),
        ("-7B", None),
        ("nan", None),
        ("", None),
    ],
)
def test_counts(text: str, count: int | None) -> None:
    assert count_of(text) == count


@pytest.mark.parametrize("text", ["0", "0.5", "1.2345K", "1e18K", "1000001T"])
def test_bad_counts(text: str) -> None:
    with pytest.raises(UserError, match="whole number from 1 to"):
        count_of(text)


def test_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_memory().get("CPU", 1 << 30) > 1 << 20
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 9))
    assert free_memory()["GPU"] == 5
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert free_memory().get("CPU", 1 << 30) > 1 << 20

    def fail() -> None:
        raise RuntimeError("CUDA error: the device is busy")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    monkeypatch.delattr(module.os, "sysconf_names")  # as on Windows
    assert free_memory() == {}
