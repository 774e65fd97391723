"""The PyTorch front end: drop-ins for ``torch.optim``'s Adam, AdamW, SGD and RMSprop."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "adamas.torch needs PyTorch 2.6 or newer: install it with `pip install 'adamas[torch]'`"
    ) from error

from .convert import Converted, Report, convert_state_dict
from .groups import decay_groups
from .lrrange import LRRange, lr_range_test
from .optimizer import SGD, Adam, AdamW, RMSprop
from .release import step_in_backward

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Converted",
    "LRRange",
    "RMSprop",
    "Report",
    "convert_state_dict",
    "decay_groups",
    "lr_range_test",
    "step_in_backward",
]
