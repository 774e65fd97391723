"""Adam at the speed of memory, the same bits on every array.

``Adam`` and ``AdamW`` here step NumPy arrays; ``adamas.torch`` has the same two for PyTorch.
"""

from importlib.metadata import version as _version

from .arrays import Adam, AdamW
from .hyper import Hyper

__version__ = _version("adamas")
__all__ = ["Adam", "AdamW", "Hyper", "__version__"]
