"""A picture of results: the image with each mask tinted and outlined, and the sentences below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..errors import ImageError
from .images import ImageLike, to_rgb_array

_Mask: TypeAlias = npt.NDArray[np.bool_]
_Colour: TypeAlias = tuple[int, int, int]

# The first is for a mask alone; a ninth mask has the first again.
_TINTS: tuple[_Colour, ...] = (
    (255, 45, 85),
    (0, 140, 255),
    (255, 190, 0),
    (40, 205, 100),
    (175, 80, 255),
    (0, 215, 225),
    (255, 120, 30),
    (255, 130, 210),
)
_TINT_WEIGHT = 0.42
_BACKGROUND_LIGHT = 192
_OUTLINE = (255, 255, 255)
_OUTLINE_EDGE_LIGHT = 0.5
_CAPTION_INK = (245, 245, 247)
_CAPTION_PAPER = (28, 28, 32)
_SMALLEST_SIDE = 320
_MAX_CHARACTERS = 400
_MAX_LINES = 6
_MAX_SENTENCES = 24


def overlay(image: ImageLike, mask: _Mask, sentence: str) -> Image.Image:
    """Draw a mask, bool (H, W), and its sentence over an image, RGB of the same size.

    The caption is a strip below. An image smaller than 320 pixels is enlarged by a whole factor, for legibility.
    Raises ImageError if the mask has another size than the image.
    """
    return overlay_of(image, [(mask, sentence)])


def overlay_of(image: ImageLike, found: Sequence[tuple[_Mask, str]]) -> Image.Image:
    """`overlay` of several masks, each in its colour, and a legend of their sentences; later masks lie on top."""
    pixels = to_rgb_array(image)
    for mask, _ in found:
        if mask.shape != pixels.shape[:2]:
            raise ImageError(f"the mask is {mask.shape}, the image {pixels.shape[:2]}: both must be (H, W)")
    factor = max(1, _SMALLEST_SIDE // max(pixels.shape[:2]))
    drawn = (_enlarged(pixels, factor).astype(np.uint16) * _BACKGROUND_LIGHT // 256).astype(np.uint8)
    bright = _enlarged(pixels, factor)
    for index, (mask, _) in enumerate(found):
        _draw(drawn, bright, _enlarged(mask.astype(bool), factor), _TINTS[index % len(_TINTS)])
    width = max(drawn.shape[1], _SMALLEST_SIDE)
    said = [sentence if len(found) == 1 or mask.any() else f"(not found) {sentence}" for mask, sentence in found]
    caption = _caption(said, width)
    canvas = Image.new("RGB", (width, drawn.shape[0] + caption.height), _CAPTION_PAPER)
    canvas.paste(Image.fromarray(drawn), ((width - drawn.shape[1]) // 2, 0))
    canvas.paste(caption, (0, drawn.shape[0]))
    return canvas


def _enlarged(array: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    return array.repeat(factor, 0).repeat(factor, 1)


def _draw(drawn: npt.NDArray[np.uint8], bright: npt.NDArray[np.uint8], mask: _Mask, tint: _Colour) -> None:
    """Draws a mask into `drawn`; within masks the image is `bright`, and below it what was tinted before."""
    colour = np.array(tint, np.float32)
    bright[mask] = drawn[mask] = (bright[mask] * (1 - _TINT_WEIGHT) + colour * _TINT_WEIGHT).astype(np.uint8)
    thickness = max(1, round(max(mask.shape) / 400))
    outlined = _grown(mask, thickness)
    drawn[_grown(outlined, thickness) & ~outlined] = colour * _OUTLINE_EDGE_LIGHT
    drawn[outlined & ~mask] = _OUTLINE


def _grown(mask: _Mask, radius: int) -> _Mask:
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


def _caption(sentences: Sequence[str], width: int) -> Image.Image:
    """The sentences below each other; of several each behind a square of its colour."""
    size = min(max(width // 26, 15), 48)
    font = ImageFont.load_default(size)
    margin = size // 2
    indent = 2 * size if len(sentences) > 1 else margin
    lines = [
        (None if line else index, text)
        for index, sentence in enumerate(sentences[:_MAX_SENTENCES])
        for line, text in enumerate(_wrapped(sentence, font, width - indent - margin))
    ]
    if len(sentences) > _MAX_SENTENCES:
        lines.append((None, f"… {len(sentences) - _MAX_SENTENCES} more"))
    line_height = round(size * 1.35)
    strip = Image.new("RGB", (width, line_height * len(lines) + 2 * margin), _CAPTION_PAPER)
    draw = ImageDraw.Draw(strip)
    for row, (index, text) in enumerate(lines):
        top = margin + row * line_height
        if len(sentences) > 1 and index is not None:
            draw.rectangle(
                (margin, top + size // 4, margin + size, top + size // 4 + size), _TINTS[index % len(_TINTS)]
            )
        draw.text((indent, top), text, font=font, fill=_CAPTION_INK)
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
