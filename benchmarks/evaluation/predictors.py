"""What an evaluation asks for masks: any model that takes images of one size and sentences."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..._base.records import OPTIONAL
from ...errors import BackendError, LavtError
from ...runtime import Segmenter
from ...runtime.batches import stack_prompts
from ...runtime.prompt import Prompt, TruncationWarning

DYNAMIC_BATCH = 4


@dataclass(frozen=True)
class ModelRecord:
    """Which model gave the results, with the SHA-256 of its weights and files: equal for models of equal masks."""

    runtime: str
    precision: str
    checkpoint: str
    files: Mapping[str, str] | None = field(default=None, metadata=OPTIONAL)
    fusion_heads: tuple[int, ...] | None = field(default=None, metadata=OPTIONAL)


class Predictor(Protocol):
    """A model to evaluate.

    `name` says which, as it goes into a file name; `size` is the height and width of its input, `batch` how many images
    it is given at once. `is_demo` says whether it is of the demo model's architecture, of which nothing is published.
    """

    is_demo: bool
    name: str
    size: tuple[int, int]
    batch: int

    def describe(self) -> ModelRecord: ...

    def encode(self, sentence: str) -> Any:
        """A sentence as `masks` takes it, also one without words, as the published evaluation has it: [CLS] [SEP]."""

    def masks(self, images: npt.NDArray[np.uint8], prompts: Sequence[Any]) -> npt.NDArray[np.bool_]:
        """Masks (B,H,W) of images (B,H,W,3) and as many prompts, at the input's size. B is `batch`."""


class BundlePredictor:
    """A bundle on its runtime.

    `batch` is the bundle's own; if that is dynamic, `batch_size` or DYNAMIC_BATCH.
    Raises LavtError for a `batch_size` that the bundle does not take.
    """

    def __init__(self, segmenter: Segmenter, batch_size: int | None = None, name: str = "bundle") -> None:
        fixed = segmenter.manifest.input.batch
        if None not in (fixed, batch_size) and batch_size != fixed:
            raise LavtError(f"the bundle was exported for batches of {fixed}, not {batch_size}; leave --batch-size out")
        self.name = f"{name}.{segmenter.precision}"
        self.size = segmenter.input_size
        self.batch = fixed or batch_size or DYNAMIC_BATCH
        self.is_demo = segmenter.manifest.model.get("swin") == "demo"
        self._segmenter = segmenter

    def describe(self) -> ModelRecord:
        segmenter, manifest = self._segmenter, self._segmenter.manifest
        names = [*segmenter.files, manifest.find("tokenizer")]
        used = [part for name in names if name for part in (name, *manifest.weights_of(name))]
        files = {name: manifest.files[name].sha256 for name in used}
        runtime = f"{segmenter.runtime} on {segmenter.device}"
        return ModelRecord(runtime, segmenter.precision, manifest.checkpoint.sha256, files=files)

    def encode(self, sentence: str) -> Prompt:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # the published evaluation cuts them as well
            return self._segmenter.encode(sentence, blank=True)

    def masks(self, images: npt.NDArray[np.uint8], prompts: Sequence[Prompt]) -> npt.NDArray[np.bool_]:
        batch = stack_prompts(prompts)
        return object_masks(self._segmenter.run_graph(images, batch.prompt, batch.word_mask))


def load_bundle(
    path: Path, *, batch_size: int | None = None, device: str = "auto", threads: int | None = None
) -> BundlePredictor:
    """The predictor of a bundle, or of an image graph inside one. Raises as `Segmenter.load` and BundlePredictor do."""
    segmenter = Segmenter.load(path, device=device, threads=threads)
    folder = path if path.is_dir() else path.parent
    return BundlePredictor(segmenter, batch_size, folder.resolve().name)


def object_masks(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The argmax of logits (B,2,H,W) as masks (B,H,W); a tie is background.

    Raises BackendError if a logit is not finite: a mask of it would look like a result.
    """
    if not np.isfinite(logits).all():
        raise BackendError("the model's logits are not finite: use a graph of higher precision, such as fp32")
    return np.asarray(logits[:, 1] > logits[:, 0])
