"""Parameter groups of a model: which weights decay, and how fast each depth learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..text import aligned

# Whose weights may have several dimensions; those of the other norms have one.
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_HEADINGS = ("group", "decay", "lr", "tensors", "parameters", "names")
_EXAMPLES = 2


class Groups(list[dict[str, Any]]):
    """Parameter groups, as optimizers take them; printed, they are a table.

    The table follows the groups: once an optimizer has them, it shows the optimizer's own decay
    and learning rate, as a scheduler leaves them.
    """

    def __repr__(self) -> str:
        """A line a group: its decay, learning rate, tensors, parameters and first names."""
        lines = [_HEADINGS, *map(_line, self)]
        tensors = sum(len(group["params"]) for group in self)
        lines.append(("total", "", "", f"{tensors:,}", f"{sum(map(_numel, self)):,}", ""))
        return aligned(lines, left=[_HEADINGS.index("group"), _HEADINGS.index("names")])


def decay_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_embeddings: bool = True,
    lr: float | None = None,
    layer_decay: float | None = None,
    depth: Callable[[str], int] | None = None,
) -> Groups:
    """Splits a model's parameters into those that decay and those that do not, and by depth.

    Biases and norms do not decay: parameters with fewer than two dimensions, those with "bias" in
    their own name, and those of ``nn.LayerNorm`` and ``nn.RMSNorm``. All others do. Tied parameters
    come once, under the name that the model gives first; frozen ones are left out.

    With ``layer_decay``, depth d of D learns at ``lr * layer_decay ** (D - d)``. The members of
    ``nn.ModuleList`` and ``nn.Sequential`` are blocks (``blocks.0``, ``layers.11``), those of the
    outer one where they nest, and have depths 1, 2, ... in the model's order. What precedes the
    first block has depth 0, as have embeddings outside of blocks; what lies between two belongs to
    the earlier one; what follows the last, the head, is one deeper. ``print`` shows the outcome.

    Args:
        model: the model.
        weight_decay: of the parameters that decay, at least 0.
        decay_embeddings: whether embeddings decay: weights of ``nn.Embedding`` and
            ``nn.EmbeddingBag``, and parameters with "embed" or "token" in their own name.
        lr: learning rate, that of the head with ``layer_decay``; the optimizer's own if None.
        layer_decay: the learning rate of a depth relative to that of the next, in (0, 1].
        depth: says the depth of a parameter by its name, in place of the rule above.

    Returns:
        A list of groups with named parameters, for ``AdamW(decay_groups(model, 0.1), lr=1e-3)``.

    Raises:
        ValueError: an argument is out of range, no parameter can be trained, or there are no
            blocks to tell the depth by.
        TypeError: ``depth`` does not return whole numbers.

    Source of layer-wise decay: Bao et al. 2021, arXiv 2106.08254.
    """
    _check(weight_decay, lr, layer_decay, depth)
    owners = _owners(model)
    depths = dict.fromkeys(owners, 0)
    if layer_decay is not None:
        depths = _said(depth, owners) if depth else _depths(model, owners)
    groups = Groups()
    for (at, decays), params in _members(owners, depths, decay_embeddings):
        label = "decay" if decays else "no decay"
        group: dict[str, Any] = {
            "name": label if layer_decay is None else f"depth {at}, {label}",
            "params": params,
            "weight_decay": weight_decay if decays else 0.0,
        }
        if lr is not None:
            group["lr"] = lr * (layer_decay or 1.0) ** (max(depths.values()) - at)
        groups.append(group)
    return groups


# Each parameter to train by its first name, with all modules that own it.
_Owners = dict[str, tuple[Tensor, list[nn.Module]]]


def _owners(model: nn.Module) -> _Owners:
    owners: _Owners = {}
    for name, param in model.named_parameters():
        if is_lazy(param):
            raise ValueError(
                f"{name} must have a shape, but is lazy: run the model once before its groups"
            )
        if param.requires_grad:
            owners[name] = (param, [])
    if not owners:
        raise ValueError(
            "the model must have parameters to train, got none: call requires_grad_() on those "
            "that shall learn"
        )
    modules_of = {param: modules for param, modules in owners.values()}
    for module in model.modules():
        for param in module.parameters(recurse=False):
            if param in modules_of:
                modules_of[param].append(module)
    return owners


def _members(
    owners: _Owners, depths: dict[str, int], decay_embeddings: bool
) -> list[tuple[tuple[int, bool], list[tuple[str, Tensor]]]]:
    """Named parameters by depth and whether they decay, the shallow and the decaying first."""
    members: dict[tuple[int, bool], list[tuple[str, Tensor]]] = {}
    for name, (param, modules) in owners.items():
        decays = _decays(name, param, modules, decay_embeddings)
        members.setdefault((depths[name], decays), []).append((name, param))
    return sorted(members.items(), key=lambda item: (item[0][0], not item[0][1]))


def _decays(name: str, param: Tensor, modules: list[nn.Module], decay_embeddings: bool) -> bool:
    if param.dim() < 2 or "bias" in name.rpartition(".")[2]:
        return False
    if any(isinstance(module, _NORMS) for module in modules):
        return False
    return decay_embeddings or not _embeds(name, modules)


def _embeds(name: str, modules: list[nn.Module]) -> bool:
    own = name.rpartition(".")[2]
    return "embed" in own or "token" in own or any(isinstance(m, _EMBEDDINGS) for m in modules)


def _said(depth: Callable[[str], int], owners: _Owners) -> dict[str, int]:
    depths = {name: depth(name) for name in owners}
    for name, at in depths.items():
        if not isinstance(at, int):
            raise TypeError(f"depth must return a whole number, got {at!r} for {name!r}")
    return depths


def _depths(model: nn.Module, owners: _Owners) -> dict[str, int]:
    """The depth of each parameter: see ``decay_groups``."""
    lists = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    blocks = {name: _block(name, lists) for name in owners}
    if not any(blocks.values()):
        raise ValueError(
            "layer_decay needs blocks in an nn.ModuleList or nn.Sequential, and the model has none "
            "to train: pass depth=, which says the depth of a parameter by its name"
        )
    number = {block: i for i, block in enumerate(dict.fromkeys(filter(None, blocks.values())), 1)}
    depths: dict[str, int] = {}
    last = 0
    for name, block in blocks.items():
        last = number.get(block, last) if block else last
        depths[name] = 0 if block is None and _embeds(name, owners[name][1]) else last
    for name in reversed(blocks):
        if blocks[name] is not None:
            break
        if not _embeds(name, owners[name][1]):
            depths[name] = len(number) + 1
    return depths


def _block(name: str, lists: set[str]) -> str | None:
    """The part of a parameter's name that names its block, None where it is in none."""
    parts = name.split(".")
    for i in range(len(parts) - 1):
        if ".".join(parts[:i]) in lists:
            return ".".join(parts[: i + 1])
    return None


def _check(weight_decay: float, lr: float | None, layer_decay: float | None, depth: object) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay!r}")
    if lr is not None and not 0 <= lr < math.inf:
        raise ValueError(f"lr must be at least 0, got {lr!r}")
    if layer_decay is None:
        if depth is not None:
            raise ValueError("depth is of use with layer_decay only: pass both, or neither")
        return
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay!r}")
    if lr is None:
        raise ValueError(
            f"layer_decay={layer_decay!r} needs the learning rate of the head: pass lr= to "
            "decay_groups"
        )


def _line(group: dict[str, Any]) -> tuple[str, ...]:
    # An optimizer that has taken a group keeps the names beside the parameters.
    pairs = [("no name", p) if isinstance(p, Tensor) else p for p in group["params"]]
    names = group.get("param_names") or [name for name, _ in pairs]
    more = [f"and {len(names) - _EXAMPLES:,} more"] if len(names) > _EXAMPLES else []
    return (
        group.get("name", ""),
        f"{group['weight_decay']:g}" if "weight_decay" in group else "optimizer's",
        f"{float(group['lr']):.4g}" if "lr" in group else "optimizer's",
        f"{len(names):,}",
        f"{_numel(group):,}",
        ", ".join([*names[:_EXAMPLES], *more]),
    )


def _numel(group: dict[str, Any]) -> int:
    params = group["params"]
    return sum((p if isinstance(p, Tensor) else p[1]).numel() for p in params)
