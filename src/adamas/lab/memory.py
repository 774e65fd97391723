"""What training a model keeps in memory, by optimizer and format, and what fits here."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import footprint
from ..formats import MASTER_BITS
from . import UserError
from .convert import load
from .folder import RunFolder

DTYPES = ("float32", "bfloat16", "float16")

_UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "T": 12}
_MOST = 10**18  # parameters
_SAFETENSORS = {  # other types are named as they are
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
}
_STATISTICS = ("running_mean", "running_var")  # torch.nn's buffers that no gradient reaches


class Model(NamedTuple):
    """The parameters of a model."""

    title: str
    tensors: list[tuple[tuple[int, ...], str]]
    left_out: int = 0
    """Tensors that are not trained."""


class Measured(NamedTuple):
    """What the choices keep for a model, beside the memory that is free."""

    model: Model
    choices: footprint.Choices
    free: dict[str, int]
    """Bytes, by device."""

    def to_json(self) -> str:
        """All of it in bytes, as a JSON object."""
        lines, baseline, refused = self.choices
        found = {
            "parameters": baseline.elements,
            "tensors": len(self.model.tensors),
            "left_out": self.model.left_out,
            "free": self.free,
            "choices": [
                line._asdict()
                | {
                    "total": line.total,
                    "bytes_a_parameter": line.bytes_a_parameter,
                    "of_baseline": line.total / baseline.total,
                    "fits": {device: line.total <= size for device, size in self.free.items()},
                }
                for line in lines
            ],
            "baseline": baseline.name,
            "refused": refused,
        }
        return json.dumps(found, indent=2)

    def print(self) -> None:
        """Prints a table, and what is to be said about it."""
        console = Console(highlight=False, markup=False, soft_wrap=True)
        lines, baseline, refused = self.choices
        headings, *rows = footprint.cells(lines)
        # So narrow that a terminal of 80 columns has room for it.
        table = Table(title=self.model.title, title_justify="left", title_style="bold")
        table.box, table.padding, table.show_edge = SIMPLE_HEAD, 0, False
        table.add_column(headings[0], no_wrap=True)
        for heading in (*headings[1:], "of torch's", *(f"fits {device}" for device in self.free)):
            table.add_column("\n".join(heading.rsplit(" ", 1)), justify="right")
        for line, row in zip(lines, rows, strict=True):
            fits = [line.total <= size for size in self.free.values()]
            share = f"{line.total / baseline.total:.0%}".replace("%", " %")
            verdicts = ["yes" if fit else "NO" for fit in fits]
            style = "red" if fits and not any(fits) else None
            table.add_row(*row, share, *verdicts, style=style)
        # A narrower one breaks lines, rather than cut numbers.
        whole = Measurement.get(console, console.options.update(width=1000), table).maximum
        console.width = max(console.width, whole)
        console.print(table)
        for device, size in self.free.items():
            console.print(
                f"{size / 1e9:.1f} GB of {device} memory are free; activations come on top"
            )
        if self.model.left_out:
            ending = "s" * (self.model.left_out > 1)
            console.print(f"{self.model.left_out} tensor{ending} left out, which are not trained")
        for moments, reason in refused.items():
            console.print(f"no adamas {moments}: {reason}")


def measure(
    model: str,
    weights: str | None = None,
    gradients: str | None = None,
    master_bits: int | None = None,
    amsgrad: bool = False,
    key: str | None = None,
) -> Measured:
    """Works out what training a model keeps in memory.

    Args:
        model: a count of parameters, a file or a run's folder.
        weights: the dtype to train it in, one of ``DTYPES``; by default its own.
        gradients: theirs; by default the weights'.
        master_bits: of 16-bit weights, as in ``formats.slots``.
        amsgrad: whether the largest second moment is kept too.
        key: where in a file of several things the model's state is.

    Raises:
        UserError: there is no such model, it has no parameters, or they cannot be trained so.
    """
    for option, dtype in (("--weights", weights), ("--gradients", gradients)):
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"{option} must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if master_bits is not None and master_bits not in MASTER_BITS:
        allowed = ", ".join(map(str, MASTER_BITS))
        raise UserError(f"--master-bits must be one of {allowed}, got {master_bits}")
    found = _find(model, weights, key)
    dtypes = sorted({dtype for _, dtype in found.tensors})
    for dtype in dtypes:
        if dtype not in footprint.WEIGHTS:
            raise UserError(
                f"{model} must be of {', '.join(footprint.WEIGHTS)} to be trained, got {dtype}: "
                "say with --weights in which it shall be trained"
            )
    if master_bits is not None and not {"bfloat16", "float16"} & set(dtypes):
        raise UserError(
            f"--master-bits {master_bits} is for 16-bit weights, and these are "
            f"{', '.join(dtypes)}: leave it out, or give --weights bfloat16"
        )
    try:
        choices = footprint.choices(found.tensors, master_bits, amsgrad, gradients)
    except ValueError as error:
        raise UserError(str(error).replace("master_bits", "--master-bits")) from None
    title = f"{found.title}: {choices.baseline.elements:,} parameters of {', '.join(dtypes)}"
    return Measured(found._replace(title=title), choices, free_memory())


def count_of(text: str) -> int | None:
    """The number of parameters that ``7B``, ``124M`` or ``1e9`` says; None where it is no number.

    Raises:
        UserError: it is not a whole number from 1 to 10^18.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:e\+?[0-9]{1,3})?)([KMBT]?)", text, re.IGNORECASE)
    if not match:
        return None
    count = Decimal(match[1]).scaleb(_UNITS[match[2].upper()])
    if not 1 <= count <= _MOST or count % 1:
        raise UserError(
            f"a count of parameters must be a whole number from 1 to 10^18, got {text}: "
            "give one like 124M, 7B or 1e9"
        )
    return int(count)


def free_memory() -> dict[str, int]:
    """Bytes that can still be had of each device that tells: "CPU", "GPU"."""
    free = {}
    with suppress(OSError, ValueError, AttributeError):
        free["CPU"] = _free_of_system()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # a device that others have for themselves
            free["GPU"] = torch.cuda.mem_get_info()[0]
    return free


def _free_of_system() -> int:
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS does not tell how much is free, only how much there is.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _find(model: str, weights: str | None, key: str | None) -> Model:
    """The parameters that are meant."""
    count, path = count_of(model), Path(model)
    if key is not None and (count is not None or path.is_dir() or path.suffix == ".safetensors"):
        raise UserError(f"--key is for files of torch.save, got {model}: leave it out")
    if count is not None:
        return Model(model, [((count,), weights or "float32")])
    if path.is_dir():
        folder = RunFolder(path)
        folder.load_settings()
        path = folder.model
    elif not path.exists():
        raise UserError(
            f"{model} does not exist, and is no count of parameters either, like 124M, 7B or 1e9: "
            "check the name"
        )
    tensors = list(_of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path, key))
    trained = [
        # A complex number is trained as two real ones.
        ((*shape, 2) if dtype.startswith("complex") else shape, weights or _real(dtype))
        for name, shape, dtype in tensors
        if not name.endswith(_STATISTICS) and not re.match(r"u?int|bool|q", dtype)
    ]
    if not any(0 not in shape for shape, _ in trained):
        raise UserError(
            f"{path} must hold tensors of floating numbers, got {len(tensors)} tensors, none of "
            "them such: give a model's weights"
        )
    return Model(model, trained, len(tensors) - len(trained))


def _of_safetensors(path: Path) -> Iterable[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and dtypes of a file's tensors, from its header alone."""
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                entry = file.get_slice(name)
                code = entry.get_dtype()
                dtype = _SAFETENSORS.get(code) or re.sub("^I", "int", re.sub("^U", "uint", code))
                yield name, tuple(entry.get_shape()), dtype.lower()
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): it must be a whole safetensors file"
        ) from None


def _of_torch(path: Path, key: str | None) -> Iterable[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and dtypes of a state dictionary's tensors; tied ones are one."""
    seen = set()
    for name, tensor in _state_dict(load(path, mmap=True), path, key).items():
        if isinstance(tensor, Tensor):
            place = _place(tensor)
            if place not in seen:
                seen.add(place)
                yield str(name), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _state_dict(content: Any, path: Path, key: str | None) -> Mapping[Any, Any]:
    """The model's state in what a file holds."""
    entries = content if isinstance(content, Mapping) else {}
    if key is not None:
        if not isinstance(entries.get(key), Mapping):
            keys = [name for name, value in entries.items() if isinstance(value, Mapping)]
            raise UserError(f"--key must be one of {keys} in {path}, got {key!r}")
        chosen: Mapping[Any, Any] = entries[key]
        return chosen
    keys = [name for name, value in entries.items() if _has_weights(value)]
    if len(keys) > 1:
        raise UserError(
            f"{path} must hold the state of one model, got those under {keys}: choose one with "
            "--key"
        )
    return entries[keys[0]] if keys else entries


def _has_weights(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(t, Tensor) and t.is_floating_point() for t in value.values()
    )


def _place(tensor: Tensor) -> object:
    if tensor.layout != torch.strided:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _real(dtype: str) -> str:
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
