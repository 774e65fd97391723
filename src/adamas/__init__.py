"""Adam at the speed of memory, the same bits on every array.

``Adam`` and ``AdamW`` here, and their parents ``SGD`` and ``RMSprop``, step NumPy arrays;
``adamas.torch`` has the same for PyTorch.
"""

from .hyper import Hyper, RMSpropHyper, SGDHyper
from .optimizers import SGD, Adam, AdamW, RMSprop

__version__ = "0.1.0"
__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Hyper",
    "RMSprop",
    "RMSpropHyper",
    "SGDHyper",
    "__version__",
]
