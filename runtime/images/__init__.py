"""Pixels in and out: images to what the image graph takes, its logits to a mask at the image's own size."""

from .layouts import LAYOUTS, Layout, check_pixels, layout_of
from .reading import ImageLike, PreparedImage, prepare, resize, to_rgb_array
from .result import Result, result_of

__all__ = [
    "LAYOUTS",
    "ImageLike",
    "Layout",
    "PreparedImage",
    "Result",
    "check_pixels",
    "layout_of",
    "prepare",
    "resize",
    "result_of",
    "to_rgb_array",
]
