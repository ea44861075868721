"""Images and sentences, always the same, on which two computations of a model are compared; no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..runtime.batches import image_feeds, text_feeds
from ..runtime.tokenizer import SentenceTokenizer

# One word, a phrase, a sentence, and more word pieces than a prompt holds.
SENTENCES = (
    "person",
    "the man in red",
    "woman sitting on the left side of the bench with a dog",
    "the second zebra from the right, half hidden behind the tall grass, looking back over its shoulder at the camera",
)

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Samples:
    """Cases, each an image uint8 (H,W,3) and a sentence: its token ids and their mask, int64 (T,)."""

    images: list[npt.NDArray[np.uint8]]
    input_ids: list[npt.NDArray[np.int64]]
    attention_masks: list[npt.NDArray[np.int64]]

    def batches(self, size: int) -> list[list[int]]:
        """The cases by number in batches of one size, the last filled from the beginning."""
        count = len(self.images)
        return [[(start + i) % count for i in range(size)] for start in range(0, count, size)]

    def text_feeds(self, cases: Sequence[int]) -> Feeds:
        """The text graph's inputs for a batch of cases."""
        return text_feeds([self.input_ids[i] for i in cases], [self.attention_masks[i] for i in cases])

    def image_feeds(self, cases: Sequence[int], prompts: Sequence[npt.NDArray[Any]]) -> Feeds:
        """The image graph's inputs for a batch of cases and their prompts (T,P)."""
        return image_feeds([self.images[i] for i in cases], prompts, [self.attention_masks[i] for i in cases])


def make_samples(tokenizer: SentenceTokenizer, height: int, width: int) -> Samples:
    """A case for each of SENTENCES."""
    tokens = [tokenizer.encode(sentence) for sentence in SENTENCES]
    images = [sample_image(height, width, seed) for seed in range(len(SENTENCES))]
    return Samples(images, [ids for ids, _, _ in tokens], [mask for _, mask, _ in tokens])


def sample_image(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """An image with content at every scale: uint8 (height,width,3)."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 127.5)
    for cells in (2, 5, 16, 64):
        noise = rng.standard_normal((3, cells, cells)).astype(np.float32)
        layers = [Image.fromarray(layer).resize((width, height), Image.Resampling.BILINEAR) for layer in noise]
        image += 40 * np.stack([np.asarray(layer) for layer in layers], axis=-1)
    image += rng.normal(0, 8, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def sample_frame(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.uint8]:
    """A camera's frame, uint8 of this shape: (height,width,channels), or (height,width) of grey and NV12."""
    height, width, *channels = shape
    image = sample_image(height, width, seed)
    return image[..., np.arange(channels[0]) % 3] if channels else image[..., 0]


def sample_logits(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Logits with regions of every size: float32 of this shape, (2,height,width)."""
    _, height, width = shape
    values = sample_image(height, width, seed)[..., :2].transpose(2, 0, 1).astype(np.float32)
    return (values - np.float32(127.5)) / np.float32(16)
