"""Checkpoint files of other optimizers, turned into those of torch.optim and adamas."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from ..torch.convert import Report, convert_state_dict
from ..torch.standins import stand_ins
from . import UserError, out_of_memory
from .files import write_atomically


def convert_file(
    source: Path,
    out: Path,
    to: str,
    like: Path | None = None,
    key: str | None = None,
    strict: bool = True,
    decoupled_weight_decay: bool | None = None,
) -> Report:
    """Converts the optimizer's state in a file of ``torch.save``; all else in it is copied.

    Args:
        source: the file, which holds a state dictionary or a dictionary with one in it.
        out: where to write it; what is there is replaced only by a whole file.
        to: as in ``adamas.torch.convert_state_dict``, and so are the next but two.
        like: a checkpoint of the optimizer that the result is for, its target.
        key: where in the files' dictionaries the state is, if more than one could be meant.
        strict: refuse a source that lacks parameters of ``like`` or has others.
        decoupled_weight_decay: whether the decay is AdamW's.

    Returns:
        What was recognised and matched.

    Raises:
        UserError: a file cannot be read or written, or its state cannot be converted; then nothing
            was written.
    """
    content = load(source)
    place, state_dict = _find(content, source, key)
    target = _find(load(like), like, key)[1] if like else None
    try:
        converted, report = convert_state_dict(
            state_dict,
            target,
            to=to,
            strict=strict,
            decoupled_weight_decay=decoupled_weight_decay,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from None
    whole = _replaced(content, place, converted)
    try:
        write_atomically(out, lambda file: torch.save(whole, file))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}): choose another"
        ) from None
    return report


def load(path: Path, mmap: bool = False) -> Any:
    """A file of ``torch.save``, of which no code is run.

    Args:
        path: the file.
        mmap: read tensors only when they are looked at, where the file allows it: old ones do not.

    Raises:
        UserError: it is not there, damaged, or holds more than tensors and plain values.
    """
    try:
        with torch.serialization.safe_globals(stand_ins()):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=mmap and is_zipfile(path)
            )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the name") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it holds {named[1]}: save tensors, numbers, texts, lists and dictionaries alone"
            if named
            else "it is damaged or of another program: give a file of torch.save"
        )
        raise UserError(f"{path} cannot be loaded, {reason}") from None
    except (OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".partition(". ")[0]
        raise UserError(
            f"{path} cannot be loaded ({reason}): it must be a whole file of torch.save"
        ) from None


def _find(content: Any, path: Path, key: str | None) -> tuple[tuple[Any, ...], Any]:
    """Where in a file an optimizer's state is, as the keys that lead there, and the state."""
    if key is None and _is_state(content):
        return (), content
    entries = content if isinstance(content, Mapping) else {}
    places: dict[Any, tuple[Any, ...]] = {
        name: (name,) for name, value in entries.items() if _is_state(value)
    }
    for name, value in entries.items():  # Lightning has a list, of one a state
        if isinstance(value, list):
            found = [i for i, each in enumerate(value) if _is_state(each)]
            places |= {name if len(value) == 1 else f"{name}.{i}": (name, i) for i in found}
    if key is not None:
        if key not in places and key not in entries:
            known = list(dict.fromkeys([*entries, *places]))
            raise UserError(f"--key must be one of {known} in {path}, got {key!r}")
        place = places.get(key, (key,))
    elif len(places) == 1:
        place = next(iter(places.values()))
    else:
        shown = list(entries)[:10] or type(content).__name__
        raise UserError(
            f"{path} must hold one optimizer's state, with 'state' and 'param_groups', got "
            + (f"those under {list(places)}: choose one with --key" if places else f"{shown}")
        )
    return place, _at(content, place)


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


def _replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of the content with this value at a place."""
    if not place:
        return value
    key, *rest = place
    inner = _replaced(content[key], tuple(rest), value)
    if isinstance(content, list):
        return [*content[:key], inner, *content[key + 1 :]]
    return dict(content) | {key: inner}


def _is_state(value: Any) -> bool:
    # One rank's part of DeepSpeed's ZeRO has another form, and a message of its own.
    return isinstance(value, Mapping) and (
        ("param_groups" in value and "state" in value) or "zero_stage" in value
    )
