"""Pixels in and out: images to what the image graph takes, its logits to a mask at the image's own size.

Images are prepared pixel for pixel as in the official evaluation.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import BackendError, ImageError, reason_of

ImageLike: TypeAlias = Image.Image | npt.NDArray[np.uint8] | str | os.PathLike[str]

_JUST_OVER_HALF = np.nextafter(np.float32(0.5), np.float32(1))
# exp(87) is the last power that float32 holds comfortably; the probability is then 1.6e-38.
_LOWEST = np.float32(-87)


def to_rgb_array(image: ImageLike) -> npt.NDArray[np.uint8]:
    """An image as uint8 RGB (H, W, 3).

    Takes a PIL image of any mode, a uint8 RGB array (H, W, 3), or the path of an image file. As in the official
    evaluation, files and PIL images go through `convert("RGB")`: transparency is dropped, EXIF rotation not applied.
    One exception: 16-bit greyscale (modes I;16*, and I with values above 255) is scaled by 255/65535, where
    `convert` would turn all that is above 255 into white.

    Raises:
        ImageError: an unreadable, truncated or empty image, one of more than 2 * PIL.Image.MAX_IMAGE_PIXELS pixels
            (178,956,970, Pillow's decompression bomb limit), or something that is not an image.
    """
    if isinstance(image, np.ndarray):
        return _checked_array(image)
    if isinstance(image, Image.Image):
        return _rgb_from_pil(image, "the image")
    if isinstance(image, (str, os.PathLike)):
        return _read(Path(image))
    raise ImageError(
        f"cannot use {type(image).__name__} as an image: give a PIL image, a uint8 array (H, W, 3), or a path"
    )


def resize(image: Image.Image | npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """An RGB image resized to uint8 (height, width, 3): bilinear, antialiased, ignoring the aspect ratio.

    The same pixels as torchvision's `resize` of a PIL image.
    """
    pil = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    return np.asarray(pil.resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image resized to the graph's input, uint8 (h, w, 3), and the height and width it had."""

    pixels: npt.NDArray[np.uint8]
    height: int
    width: int


def prepare(image: ImageLike, height: int, width: int) -> PreparedImage:
    """Read and resize an image; the result shares no memory with it. Raises ImageError."""
    pixels = to_rgb_array(image)
    return PreparedImage(resize(pixels, height, width), *pixels.shape[:2])


def foreground(
    logits: npt.NDArray[np.float32], height: int, width: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """The object's mask, bool (height, width), and probability, float32 (height, width), from logits (2, h, w).

    softmax((l0, l1))[1] = sigmoid(l1 - l0), so the difference alone is resized: bilinear with half-pixel centres, and
    antialiased if the image is smaller than the logits (a pixel then weighs all the logits it covers).
    The mask is `probability > 0.5`. At equal size it is the argmax of the logits; a tie is background.

    Raises BackendError if a logit is not finite, as it happens when a graph of low precision overflows.
    """
    difference = logits[1] - logits[0]
    if not np.isfinite(difference).all():
        raise BackendError("the model's logits are not finite: use a graph of higher precision, such as fp32")
    if difference.shape != (height, width):
        resized = Image.fromarray(difference).resize((width, height), Image.Resampling.BILINEAR)
        difference = np.asarray(resized)
    mask = difference > 0
    return mask, _sigmoid(difference, mask)


def _sigmoid(x: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """1 / (1 + exp(-x)), over 0.5 exactly where x is positive, however close to zero."""
    probability = np.maximum(x, _LOWEST)
    np.negative(probability, out=probability)
    np.exp(probability, out=probability)
    probability += np.float32(1)
    np.divide(np.float32(1), probability, out=probability)
    return np.maximum(probability, positive * _JUST_OVER_HALF, out=probability)


def _checked_array(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ImageError(f"expected a uint8 RGB array (H, W, 3), found {array.dtype} {array.shape}")
    if array.size == 0:
        raise ImageError(f"the image has no pixels: {array.shape}")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and array.shape[0] * array.shape[1] > 2 * limit:  # which Pillow refuses in a file
        raise ImageError(f"the image {array.shape} has more than {2 * limit} pixels: make it smaller")
    return np.ascontiguousarray(array)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{path} is not a file: give the path of an image")
        with Image.open(path) as image:
            return _rgb_from_pil(image, str(path))
    except FileNotFoundError:
        raise ImageError(f"no such image: {path}") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many classes on damaged files
        raise _unreadable(str(path), error) from error


def _rgb_from_pil(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: {image.width}x{image.height}")
    try:
        if image.mode.startswith("I"):
            image = _eight_bit(image)
        elif image.mode == "La":
            image = image.convert("LA")
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # reading is lazy: a damaged file may show here
        raise _unreadable(name, error) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale scaled to 8 bits, rounded; mode I with 8-bit values is left to `convert`."""
    values = np.asarray(image)
    if image.mode == "I" and values.max() <= 255:
        return image
    scaled = (np.clip(values, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(scaled.astype(np.uint8))


def _unreadable(name: str, error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{name} cannot be read: it is not an image that Pillow knows")
    reason = "it does not fit in memory" if isinstance(error, MemoryError) else reason_of(error)
    return ImageError(f"{name} cannot be read as an image ({reason})")
