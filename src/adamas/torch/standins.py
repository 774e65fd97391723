"""Classes that checkpoints of other optimizers name, without what defines them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class _StandIn(Tensor):
    """A tensor of a subclass that is not installed: it holds its parts, and computes nothing."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's is a built-in
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{cls.__module__}.{cls.__qualname__} is not installed")


def stand_ins() -> list[Any]:
    """Classes to allow with ``torch.serialization.safe_globals`` where ``torch.load`` reads files.

    They stand for torchao's, whether it is installed or not, and run no code of it.
    """
    folders = ("torchao.optim", "torchao.prototype.low_bit_optim")
    return [
        type(name, (_StandIn,), {"__module__": f"{folder}.{module}", "__qualname__": name})
        for folder in folders
        for module, name in (
            ("subclass_8bit", "OptimState8bit"),
            ("subclass_4bit", "OptimState4bit"),
            ("subclass_fp8", "OptimStateFp8"),
        )
    ]
