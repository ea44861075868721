"""The torch-free runtime: masks from a bundle with numpy, Pillow, tokenizers and one inference backend."""

from ..errors import BackendError, BundleError, ImageError, LavtError, PromptError
from .prompt import Prompt, TruncationWarning
from .segmenter import Result, Segmenter
from .tensorrt.record import UnverifiedEngineWarning

__all__ = [
    "BackendError",
    "BundleError",
    "ImageError",
    "LavtError",
    "Prompt",
    "PromptError",
    "Result",
    "Segmenter",
    "TruncationWarning",
    "UnverifiedEngineWarning",
]
