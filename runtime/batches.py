"""Images and prompts as the image graph takes them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .preprocess import ImageLike, resize, to_rgb_array
from .prompt import Prompt


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


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts (B, words, channels) and word masks (B, words), read-only; `parts` are the arrays they were made of."""

    parts: list[npt.NDArray[np.float32]]
    prompt: npt.NDArray[np.float32]
    word_mask: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        self.prompt.flags.writeable = False
        self.word_mask.flags.writeable = False


def stack(rows: Sequence[Prompt], last: PromptBatch | None) -> PromptBatch:
    """The rows as one batch: `last` again where it was made of the same prompts, so that a device can keep it."""
    prompts, word_masks = [one.prompt for one in rows], [one.word_mask for one in rows]
    parts = prompts + word_masks
    if last is not None and len(last.parts) == len(parts) and all(map(operator.is_, last.parts, parts)):
        return last
    return PromptBatch(parts, np.stack(prompts), np.stack(word_masks))
