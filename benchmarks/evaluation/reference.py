"""The PyTorch reference as an evaluation asks it: float32, prepared as the published evaluation does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import BackendError, LavtError
from ...export.source import Source
from ...reference import LAVT
from ...reference.lavt import normalise
from ...reference.words import words_tokenizer
from ...runtime.backend import DEVICES
from ...runtime.tokenizer import SentenceTokenizer
from ..peers.pytorch import prepare_torch
from .predictors import ModelRecord, object_masks

Tokens = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class ReferencePredictor:
    """LAVT in PyTorch. `vocabulary` is its tokens in order, or a file of them; `checkpoint` says which weights."""

    def __init__(
        self,
        model: LAVT,
        vocabulary: Path | Sequence[str],
        size: tuple[int, int],
        *,
        checkpoint: str,
        batch: int = 1,
        device: str = "cpu",
        name: str = "lavt",
    ) -> None:
        if not all(32 <= side <= 4096 for side in size):
            raise LavtError(f"image size {size[0]}x{size[1]}: each side must be 32 to 4096 pixels")
        self.name = f"{name}.pytorch"
        self.size = size
        self.is_demo = model.config.swin == "demo"
        self.batch = batch
        self._model = model.float().eval().to(device)
        tokenizer = words_tokenizer(vocabulary, model.config.text)
        self._words = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        self._tokenizer = SentenceTokenizer(tokenizer, model.config.max_words)
        self._checkpoint = checkpoint
        self._device = device

    def describe(self) -> ModelRecord:
        return ModelRecord(
            f"pytorch {self._device}",
            "fp32",
            self._checkpoint,
            files={"tokenizer.json": self._words},
            fusion_heads=tuple(self._model.config.fusion_heads),
        )

    def encode(self, sentence: str) -> Tokens:
        return self._tokenizer.encode(sentence, blank=True)[:2]

    def masks(self, images: npt.NDArray[np.uint8], prompts: Sequence[Tokens]) -> npt.NDArray[np.bool_]:
        return object_masks(self.logits(images, prompts))

    @torch.inference_mode()
    def logits(self, images: npt.NDArray[np.uint8], prompts: Sequence[Tokens]) -> npt.NDArray[np.float32]:
        """Logits (B,2,H,W) of images (B,H,W,3) and as many prompts."""
        ids, word_masks = (torch.from_numpy(np.stack(part)).to(self._device) for part in zip(*prompts, strict=True))
        pixels = normalise(torch.from_numpy(images).to(self._device))
        # cuDNN would round the factors of a float32 convolution to TF32.
        with torch.backends.cudnn.flags(allow_tf32=False):
            logits: Tensor = self._model(pixels, ids, word_masks)
        return logits.cpu().numpy()


def load_reference(
    source: Source,
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> ReferencePredictor:
    """The reference with the weights of `source`, an official checkpoint or the demo model.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        BackendError: an unknown device, or CUDA was asked for and is not there.
        LavtError: an image size out of range.
    """
    if device not in DEVICES:
        raise BackendError(f"unknown device {device!r}: give one of {', '.join(DEVICES)}")
    device = prepare_torch(device, threads)
    return ReferencePredictor(
        source.load(),
        source.vocabulary,
        image_size or source.size,
        checkpoint=source.weights,
        batch=batch_size or 1,
        device=device,
        name="demo" if source.kind == "demo" else source.path.stem,
    )
