"""Inputs of the text and the image graph: rows put in batches, and what is short of a batch filled."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .prompt import Prompt

MAX_DYNAMIC_BATCH = 8
"""Rows that run at once, if the bundle's batch is dynamic."""

_Row = TypeVar("_Row")
_Array = npt.NDArray[Any]


def in_batches(rows: Sequence[_Row], size: int, *, fill: bool = True) -> Iterator[list[_Row]]:
    """The rows in batches of `size`; with `fill` the last row is repeated until the last batch has that size too."""
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        yield part + [part[-1]] * (size - len(part)) if fill else part


def text_feeds(input_ids: Sequence[_Array], attention_masks: Sequence[_Array]) -> dict[str, _Array]:
    """The text graph's inputs, from token ids and masks (words,), one of each a row."""
    return {"input_ids": np.stack(input_ids), "attention_mask": np.stack(attention_masks)}


def image_feeds(images: Sequence[_Array], prompts: Sequence[_Array], word_masks: Sequence[_Array]) -> dict[str, _Array]:
    """The image graph's inputs, from images (H, W, 3), prompts (words, channels) and word masks (words,)."""
    return {
        "image": np.stack(images),
        "prompt": np.stack(prompts),
        "word_mask": np.stack(word_masks).astype(np.float32),
    }


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts (B, words, channels) and word masks (B, words), read-only; `parts` are the arrays they were made of."""

    parts: list[npt.NDArray[np.float32]]
    prompt: npt.NDArray[np.float32]
    word_mask: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        self.prompt.flags.writeable = False
        self.word_mask.flags.writeable = False

    def feeds(self, images: Sequence[npt.NDArray[np.uint8]]) -> dict[str, _Array]:
        """The image graph's inputs for these prompts, each on its image, (H, W, 3)."""
        stacked = images[0][None] if len(images) == 1 else np.stack(images)
        return {"image": stacked, "prompt": self.prompt, "word_mask": self.word_mask}


def stack_prompts(rows: Sequence[Prompt], last: PromptBatch | None = None) -> PromptBatch:
    """The rows as one batch: `last` again if it was made of the same prompts, so that a device can keep it."""
    prompts, word_masks = [row.prompt for row in rows], [row.word_mask for row in rows]
    parts = prompts + word_masks
    if last is not None and len(last.parts) == len(parts) and all(map(operator.is_, last.parts, parts)):
        return last
    return PromptBatch(parts, np.stack(prompts), np.stack(word_masks))
