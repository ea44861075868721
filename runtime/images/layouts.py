"""How a frame lies in memory, as cameras and OpenCV give it: one table, and what an array of each layout is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import ImageError, InputError

Planes: TypeAlias = tuple[Image.Image, ...]
"""A frame as images that Pillow resizes: one, RGB or L, or the planes Y, U, V; the first has the frame's size."""


@dataclass(frozen=True)
class Layout:
    """A layout of uint8 frames.

    Attributes:
        channels: of a pixel, side by side; 0 for NV12: a plane Y (H, W), then (H/2, W/2) pairs U, V below it.
        rgb: which channels are red, green and blue; empty for NV12, which YUV_TO_RGB turns to them.
        raw: Pillow's name for it ("" for NV12).
        shown: the array's shape, in words.
    """

    channels: int
    rgb: tuple[int, ...]
    raw: str
    shown: str

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of the array that a frame of this size is."""
        if not self.channels:
            return height * 3 // 2, width
        return (height, width) if self.channels == 1 else (height, width, self.channels)


LAYOUTS = {
    "rgb": Layout(3, (0, 1, 2), "RGB", "(H, W, 3)"),
    "bgr": Layout(3, (2, 1, 0), "BGR", "(H, W, 3)"),
    "rgbx": Layout(4, (0, 1, 2), "RGBX", "(H, W, 4)"),
    "bgrx": Layout(4, (2, 1, 0), "BGRX", "(H, W, 4)"),
    "grey": Layout(1, (0, 0, 0), "L", "(H, W)"),
    "nv12": Layout(0, (), "", "(H * 3/2, W), H and W even"),
}
# Arrays of these many channels are taken for "rgb" and "bgr" too; a fourth channel, such as alpha, is dropped.
_BY_CHANNELS = {("rgb", 4): "rgbx", ("bgr", 4): "bgrx", ("rgb", 1): "grey", ("bgr", 1): "grey"}

# (R, G, B) = YUV_TO_RGB (Y, U, V, 1): ITU-R BT.601, Y from 16 to 235, with OpenCV's factors (COLOR_YUV2RGB_NV12).
YUV_TO_RGB = (
    *(1.164, 0, 1.596, -1.164 * 16 - 1.596 * 128),
    *(1.164, -0.391, -0.813, -1.164 * 16 + (0.391 + 0.813) * 128),
    *(1.164, 2.018, 0, -1.164 * 16 - 2.018 * 128),
)
_AT_LEAST_16 = [max(16, y) for y in range(256)]  # as OpenCV takes a Y that is below black


def check_pixels(pixels: str) -> None:
    """Raises InputError if `pixels` is not in the table."""
    if not isinstance(pixels, str) or pixels not in LAYOUTS:
        raise InputError(f"pixels {pixels!r}: give one of {', '.join(LAYOUTS)}")


def layout_of(array: npt.NDArray[Any], pixels: str = "rgb") -> tuple[str, int, int]:
    """The name of an array's layout, and its frame's height and width.

    For "rgb" and "bgr" the shape decides between three channels, four (the last is dropped), and grey (H, W).

    Raises:
        ImageError: the array is not uint8, or of another shape, has no pixels or more than Pillow allows in a file.
        InputError: `pixels` is not in the table.
    """
    check_pixels(pixels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    channels = array.shape[2] if array.ndim == 3 else 1
    name = _BY_CHANNELS.get((pixels, channels), pixels)
    layout = LAYOUTS[name]
    height, width = array.shape[:2] if array.ndim in (2, 3) else (0, 0)
    if name == "nv12":
        height = height * 2 // 3
    odd = name == "nv12" and width % 2  # an odd height fits no array
    if array.dtype != np.uint8 or array.shape != layout.shape(height, width) or odd:
        wanted = "(H, W, 3), (H, W, 4) or (H, W)" if pixels in ("rgb", "bgr") else layout.shown
        raise ImageError(
            f"expected a uint8 {pixels.upper()} array {wanted}, found {array.dtype} {array.shape}{_mending(array)}"
        )
    if array.size == 0:
        raise ImageError(f"the image has no pixels: {array.shape}")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:
        raise ImageError(f"the image {array.shape} has more than {2 * limit} pixels: make it smaller")
    return name, height, width


def _mending(array: npt.NDArray[Any]) -> str:
    """What makes an array of another type or order an image, to stand behind what was found; or nothing."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        return ": channels go last, give numpy.moveaxis(image, 0, -1)"
    if array.dtype.kind == "f":
        return ": give (image * 255).round().astype('uint8') if it goes from 0 to 1, image.astype('uint8') if to 255"
    return ""


def rgb_of(planes: Planes, resized: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """RGB, after each plane was `resized`, all to one size.

    Resizing goes before the colours: of one channel it is cheaper than of three, and equal for grey.
    """
    first, *chroma = (resized(plane) for plane in planes)
    if not chroma:
        return first.convert("RGB")
    return Image.merge("RGB", [first.point(_AT_LEAST_16), *chroma]).convert("RGB", YUV_TO_RGB)


def planes_of(array: npt.NDArray[Any], pixels: str = "rgb") -> Planes:
    """The planes of an array of a layout. They may share its memory. Raises as `layout_of` does."""
    name, height, width = layout_of(array, pixels)
    if name == "nv12":
        chroma = array[height:].reshape(height // 2, width // 2, 2)
        planes = (array[:height].reshape(height, width), chroma[..., 0], chroma[..., 1])
        return tuple(Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    raw = LAYOUTS[name].raw
    mode = "L" if raw == "L" else "RGB"
    return (Image.frombuffer(mode, (width, height), np.ascontiguousarray(array), "raw", raw, 0, 1),)
