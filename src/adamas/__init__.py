"""Adam at the speed of memory, the same bits on every array.

``Adam`` and ``AdamW`` here step NumPy arrays; ``adamas.torch`` has the same two for PyTorch.
"""

from .arrays import Adam, AdamW
from .hyper import Hyper

__version__ = "0.1.0"
__all__ = ["Adam", "AdamW", "Hyper", "__version__"]
