"""Pixels in and out: images to what the image graph takes, its logits to a mask at the image's own size."""

from .coco import coco_dataset, coco_entry, image_files
from .layouts import LAYOUTS, Layout, check_pixels, layout_of
from .reading import ImageLike, PreparedImage, as_frame, prepare, resize, to_rgb_array
from .result import Result, result_of, result_of_frame

__all__ = [
    "LAYOUTS",
    "ImageLike",
    "Layout",
    "PreparedImage",
    "Result",
    "as_frame",
    "check_pixels",
    "coco_dataset",
    "coco_entry",
    "image_files",
    "layout_of",
    "prepare",
    "resize",
    "result_of",
    "result_of_frame",
    "to_rgb_array",
]
