"""A picture of a result: the image with the mask tinted and outlined, and the sentence below."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..errors import ImageError
from .images import ImageLike, to_rgb_array

_TINT = np.array([255, 45, 85], np.float32)
_TINT_WEIGHT = 0.42
_BACKGROUND_LIGHT = 192
_OUTLINE = (255, 255, 255)
_OUTLINE_EDGE = (150, 0, 40)
_CAPTION_INK = (245, 245, 247)
_CAPTION_PAPER = (28, 28, 32)
_SMALLEST_SIDE = 320
_MAX_CHARACTERS = 400
_MAX_LINES = 6


def overlay(image: ImageLike, mask: npt.NDArray[np.bool_], sentence: str) -> Image.Image:
    """Draw a mask, bool (H, W), and its sentence over an image, RGB of the same size.

    The caption is a strip below. An image smaller than 320 pixels is enlarged by a whole factor, for legibility.
    Raises ImageError if the mask has another size than the image.
    """
    pixels = to_rgb_array(image)
    if mask.shape != pixels.shape[:2]:
        raise ImageError(f"the mask is {mask.shape}, the image {pixels.shape[:2]}: both must be (H, W)")
    factor = max(1, _SMALLEST_SIDE // max(mask.shape))
    picture = _drawn(pixels.repeat(factor, 0).repeat(factor, 1), mask.astype(bool).repeat(factor, 0).repeat(factor, 1))
    width = max(picture.width, _SMALLEST_SIDE)
    caption = _caption(sentence, width)
    canvas = Image.new("RGB", (width, picture.height + caption.height), _CAPTION_PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    canvas.paste(caption, (0, picture.height))
    return canvas


def _drawn(pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> Image.Image:
    drawn = (pixels.astype(np.uint16) * _BACKGROUND_LIGHT // 256).astype(np.uint8)
    drawn[mask] = (pixels[mask] * (1 - _TINT_WEIGHT) + _TINT * _TINT_WEIGHT).astype(np.uint8)
    thickness = max(1, round(max(mask.shape) / 400))
    outlined = _grown(mask, thickness)
    drawn[_grown(outlined, thickness) & ~outlined] = _OUTLINE_EDGE
    drawn[outlined & ~mask] = _OUTLINE
    return Image.fromarray(drawn)


def _grown(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """The mask with a border of `radius` pixels: an octagon, by steps to four and to eight neighbours in turn."""
    for step in range(radius):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        across = grown.copy() if step % 2 else mask
        grown[:, 1:] |= across[:, :-1]
        grown[:, :-1] |= across[:, 1:]
        mask = grown
    return mask


def _caption(sentence: str, width: int) -> Image.Image:
    size = min(max(width // 26, 15), 48)
    font = ImageFont.load_default(size)
    margin = size // 2
    lines = _wrapped(sentence, font, width - 2 * margin)
    line_height = round(size * 1.35)
    strip = Image.new("RGB", (width, line_height * len(lines) + 2 * margin), _CAPTION_PAPER)
    draw = ImageDraw.Draw(strip)
    for index, line in enumerate(lines):
        draw.text((margin, margin + index * line_height), line, font=font, fill=_CAPTION_INK)
    return strip


def _wrapped(sentence: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The sentence in lines of at most `width` pixels; a word that is wider is broken, and a very long text cut."""
    text = " ".join(sentence[: 4 * _MAX_CHARACTERS].split())
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + "…"
    lines = [""]
    for word in text.split(" "):
        if font.getlength(f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines.append("")
        for character in word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    lines = [line for line in lines if line] or [" "]
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1].rstrip("…") + "…"]
    return lines
