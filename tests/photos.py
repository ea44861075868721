"""Files of photographs that lie on a side, as phones write them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112


def oriented(pixels: np.ndarray, orientation: int, kind: str = "PNG") -> bytes:
    """A file that shows these pixels once it is turned as EXIF says: ImageOps, which readers agree with, turns back."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for method in (None, *Image.Transpose):
        image = Image.fromarray(pixels)
        image = image if method is None else image.transpose(method)
        stream = io.BytesIO()
        image.save(stream, kind, exif=exif)
        with Image.open(io.BytesIO(stream.getvalue())) as again:
            if np.array_equal(np.asarray(ImageOps.exif_transpose(again)), pixels):
                return stream.getvalue()
    raise AssertionError(f"nothing gives orientation {orientation}")
