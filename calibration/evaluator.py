"""What a changed graph costs: its masks on held-out sentences against the truth, and its logits against FP32's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._base.progress import Progress, ignore
from ..data.metrics import ReferringMetrics
from ..export.edits import load_graph
from ..runtime.batches import in_batches
from ..runtime.bundle import Bundle
from .observers import Array, Session
from .sample import Case, Sample, cases, image_inputs, text_inputs


@dataclass(frozen=True)
class Figures:
    """What graphs keep of the FP32 graphs' accuracy, over held-out sentences."""

    sentences: int
    mean_iou: float
    """Mean IoU with the true masks, in percent."""
    drop: float
    """Points of mean IoU lost against FP32."""
    pixel_agreement: float
    """The share of mask pixels that are FP32's, 0 to 1."""
    relative_error: float
    """norm(difference) / norm(FP32) of the logits of the object less those of the background."""


class Evaluator:
    """Holds the held-out cases and what FP32 makes of them, and runs other graphs on the same."""

    def __init__(self, bundle: Bundle, sample: Sample, progress: Progress = ignore) -> None:
        self._batch = bundle.manifest.input.batch or 1
        self.cases: list[Case] = list(cases(bundle, sample.held_out))
        self._prompts = self.encode(load_graph(bundle, "text_encoder"))
        self._truth = self._differences(Session(load_graph(bundle, "segmenter")), self._prompts, progress)
        self.mean_iou = self._mean_iou(self._truth)

    def feeds(self) -> dict[str, Array]:
        """The image graph's inputs for the first cases, as many as a batch has."""
        first = next(in_batches(list(zip(self.cases, self._prompts, strict=True)), self._batch))
        return image_inputs(*zip(*first, strict=True))

    def encode(self, text: ir.Model) -> list[Array]:
        """Each case's prompt (T,P) by a text graph."""
        session, prompts = Session(text), []
        for batch in in_batches(self.cases, self._batch):
            prompts += list(session.run(text_inputs(batch), ["prompt"])[0])
        return prompts[: len(self.cases)]

    def evaluate(
        self,
        image: ir.Model,
        *,
        text: ir.Model | None = None,
        fused: bool = False,
        limit: int | None = None,
        progress: Progress = ignore,
    ) -> Figures:
        """What an image graph makes of the cases, with the prompts of FP32 or of a text graph; see `Session`.

        `limit` takes the first cases alone.
        """
        prompts = self._prompts if text is None else self.encode(text)
        return self.compare(self._differences(Session(image, fused=fused), prompts[:limit], progress))

    def compare(self, differences: Sequence[Array]) -> Figures:
        """The figures of logit differences (H,W) of the first cases."""
        truth = self._truth[: len(differences)]
        pairs = list(zip(differences, truth, strict=True))
        squares = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in pairs)
        norm = sum(float((b.astype(np.float64) ** 2).sum()) for b in truth)
        agreement = float(np.mean([np.mean((a > 0) == (b > 0)) for a, b in pairs]))
        mean_iou = self._mean_iou(differences)
        error = (squares / norm) ** 0.5 if norm else 0.0
        return Figures(len(differences), mean_iou, self._mean_iou(truth) - mean_iou, agreement, error)

    def _differences(self, session: Session, prompts: Sequence[Array], progress: Progress) -> list[Array]:
        """Logit of the object less that of the background, (H,W) for each prompt's case."""
        differences: list[Array] = []
        progress(0, len(prompts))
        for batch in in_batches(list(zip(self.cases, prompts, strict=False)), self._batch):
            (logits,) = session.run(image_inputs(*zip(*batch, strict=True)), ["logits"])
            # A mask of logits that are no numbers would look like a result.
            differences += list(np.nan_to_num(logits[:, 1] - logits[:, 0], nan=-np.inf).clip(-1e9, 1e9))
            progress(min(len(differences), len(prompts)), len(prompts))
        return differences[: len(prompts)]

    def _mean_iou(self, differences: Sequence[Array]) -> float:
        metrics = ReferringMetrics()
        for case, difference in zip(self.cases, differences, strict=False):
            metrics.update(difference > 0, case.target)
        return float(metrics.compute()["mean_iou"])
