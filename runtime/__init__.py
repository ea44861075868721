"""The torch-free runtime: masks from a bundle with numpy, Pillow, tokenizers and one inference backend."""

from .._base.exits import run_main
from ..errors import BackendError, BundleError, ImageError, LavtError, PromptError
from .images import Result, coco_dataset, coco_entry, image_files, to_rgb_array
from .prompt import Prompt, TruncationWarning, UnknownWordsWarning
from .segmenter import Segmenter
from .tensorrt.record import PowerModeWarning, UnusedEngineWarning, UnverifiedEngineWarning

__all__ = [
    "BackendError",
    "BundleError",
    "ImageError",
    "LavtError",
    "PowerModeWarning",
    "Prompt",
    "PromptError",
    "Result",
    "Segmenter",
    "TruncationWarning",
    "UnknownWordsWarning",
    "UnusedEngineWarning",
    "UnverifiedEngineWarning",
    "coco_dataset",
    "coco_entry",
    "image_files",
    "run_main",
    "to_rgb_array",
]
