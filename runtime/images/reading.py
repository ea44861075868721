"""Images of every kind to RGB, and to the image graph's size, pixel for pixel as in the official evaluation."""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from ...errors import ImageError, reason_of
from .layouts import LAYOUTS, Planes, check_pixels, layout_of, planes_of, rgb_of


class _HasArray(Protocol):
    def __array__(self) -> npt.NDArray[Any]: ...


ImageLike: TypeAlias = (
    Image.Image | npt.NDArray[np.uint8] | str | os.PathLike[str] | bytes | bytearray | IO[bytes] | _HasArray
)

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# EXIF's orientation to what turns the image upright (CIPA DC-008, Orientation); 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb_array(image: ImageLike, *, pixels: str = "rgb", orient: bool = True) -> npt.NDArray[np.uint8]:
    """An image as uint8 RGB (H, W, 3), upright.

    Files and PIL images go through `convert("RGB")`, as in the official evaluation: transparency is dropped.
    One exception: 16-bit greyscale (modes I;16*, and I with values above 255) is scaled by 255/65535, where
    `convert` would turn all that is above 255 into white.

    Args:
        image: a PIL image of any mode; the path of an image file, its bytes, or the file opened in binary mode; or a
            uint8 array, or what has an array's interface, such as a torch tensor on the CPU.
        pixels: an array's layout. "rgb": (H, W, 3); "bgr": the same in OpenCV's order; for both, a fourth channel is
            dropped, and (H, W) is grey. "rgbx", "bgrx": (H, W, 4). "grey": (H, W). "nv12": (H * 3/2, W), BT.601 with Y
            from 16 to 235, as OpenCV reads it. Files and PIL images say themselves what they are.
        orient: turn files and PIL images as their EXIF orientation says. The published evaluation does not (False).

    Raises:
        ImageError: an unreadable, truncated or empty image, one of more than 2 * PIL.Image.MAX_IMAGE_PIXELS pixels
            (178,956,970, Pillow's decompression bomb limit), an array of another type or shape, or something that is
            not an image.
        InputError: another `pixels`.
    """
    planes = _open(image, pixels, orient)
    size = planes[0].size
    whole = rgb_of(planes, lambda plane: plane if plane.size == size else plane.resize(size, Image.Resampling.NEAREST))
    return np.array(whole)


def resize(image: Image.Image | npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """An RGB image resized to uint8 (height, width, 3): bilinear, antialiased, ignoring the aspect ratio.

    The same pixels as torchvision's `resize` of a PIL image.
    """
    pil = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    return np.asarray(pil.resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image resized to the graph's input, uint8 (h, w, 3), and the height and width it had.

    If it has a layout, it is a frame as it came, for graphs that take such.
    """

    pixels: npt.NDArray[np.uint8]
    height: int
    width: int
    layout: str | None = None


def prepare(image: ImageLike, height: int, width: int, *, pixels: str = "rgb", orient: bool = True) -> PreparedImage:
    """Read an image, as `to_rgb_array`, and `resize` it; the result shares no memory with it.

    Of NV12 the planes are resized before they become RGB.
    Raises as `to_rgb_array` does.
    """
    planes = _open(image, pixels, orient)
    small = rgb_of(planes, lambda plane: plane.resize((width, height), Image.Resampling.BILINEAR))
    return PreparedImage(np.asarray(small), planes[0].height, planes[0].width)


def as_frame(image: ImageLike, pixels: str = "rgb") -> PreparedImage | None:
    """An array as it is; None if it is an image of another kind. Raises as `to_rgb_array` does."""
    if isinstance(image, (Image.Image, str, os.PathLike, bytes, bytearray)) or not hasattr(image, "__array__"):
        return None
    array = _array_of(image)
    name, height, width = layout_of(array, pixels)
    return PreparedImage(array.reshape(LAYOUTS[name].shape(height, width)), height, width, name)


def _open(image: ImageLike, pixels: str, orient: bool) -> Planes:
    check_pixels(pixels)
    if isinstance(image, Image.Image):
        return _planes_of_pil(image, "the image", orient)
    if isinstance(image, (str, os.PathLike)):
        return _read(os.fsdecode(image), orient)
    if isinstance(image, (bytes, bytearray)):
        return _decode(io.BytesIO(image), "the image", orient)
    if isinstance(image, io.TextIOBase):
        raise ImageError("the image's file is open as text: open it with mode 'rb'")
    if hasattr(image, "__array__"):
        return planes_of(_array_of(image), pixels)
    if hasattr(image, "read"):
        return _decode(image, "the image", orient)
    raise ImageError(
        f"cannot use {type(image).__name__} as an image: give a PIL image, a uint8 array (H, W, 3), a path, or bytes"
    )


def _array_of(image: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(image)
    except Exception as error:  # a tensor on a GPU, for example
        raise ImageError(
            f"cannot make an array of the {type(image).__name__} ({reason_of(error)}): give a uint8 array (H, W, 3)"
        ) from error


def _read(path: str, orient: bool) -> Planes:
    if _URL.match(path):
        raise ImageError(f"{path} is a URL: download it, and give the file's path or its bytes")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path or repr(path)} is not a file: give the path of an image")
    except FileNotFoundError:
        raise ImageError(f"no such image: {path or repr(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise _unreadable(path, error) from error
    return _decode(path, path, orient)


def _decode(file: str | IO[bytes], name: str, orient: bool) -> Planes:
    try:
        with Image.open(file) as image:
            return _planes_of_pil(image, name, orient)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many classes on damaged files
        raise _unreadable(name, error) from error


def _planes_of_pil(image: Image.Image, name: str, orient: bool) -> Planes:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: {image.width}x{image.height}")
    try:
        image.load()  # a TIFF has its orientation applied, and no longer says it
        turn = _UPRIGHT.get(_orientation(image)) if orient else None
        if image.mode.startswith("I"):
            image = _eight_bit(image)
        elif image.mode == "La":
            image = image.convert("LA")
        rgb = image.convert("RGB")
        return (rgb if turn is None else rgb.transpose(turn),)
    except Exception as error:  # reading is lazy: a damaged file may show here
        raise _unreadable(name, error) from error


def _orientation(image: Image.Image) -> Any:
    """EXIF's number; 1 where there is none, or its block is damaged, as other readers have it."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of many classes
        return 1


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
