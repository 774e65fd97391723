"""The PyTorch front end: drop-ins for ``torch.optim.Adam`` and ``torch.optim.AdamW``."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "adamas.torch needs PyTorch 2.6 or newer: install it with `pip install 'adamas[torch]'`"
    ) from error

from .convert import Converted, Report, convert_state_dict
from .groups import decay_groups
from .lrrange import LRRange, lr_range_test
from .optimizer import Adam, AdamW
from .release import step_in_backward

__all__ = [
    "Adam",
    "AdamW",
    "Converted",
    "LRRange",
    "Report",
    "convert_state_dict",
    "decay_groups",
    "lr_range_test",
    "step_in_backward",
]
