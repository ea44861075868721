"""What a changed graph costs: its masks on held-out sentences against the truth, and its logits against FP32's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from .._base.progress import Progress, ignore
from ..data.metrics import ReferringMetrics, relative_error
from ..runtime.batches import in_batches
from ..runtime.bundle import Bundle
from .observers import Array, Session
from .passes import image_inputs, load_graph, text_inputs
from .sample import Case, Sample, cases


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

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


class Evaluator:
    """Holds the held-out cases and what FP32 makes of them, and runs other graphs on the same."""

    def __init__(self, bundle: Bundle, sample: Sample, progress: Progress = ignore) -> None:
        spec = bundle.manifest.input
        tokenizer = bundle.tokenizer()
        self._batch = spec.batch or 1
        self.cases: list[Case] = list(cases(sample.held_out, (spec.height, spec.width), tokenizer))
        self._prompts = self.encode(load_graph(bundle, "text_encoder"))
        self._truth = self._differences(load_graph(bundle, "segmenter"), self._prompts, True, progress)
        self.mean_iou = self._mean_iou(self._truth)

    def encode(self, text: ir.Model) -> list[Array]:
        """Each case's prompt (T,P) by a text graph."""
        session, prompts = Session(text), []
        for group in in_batches(self.cases, self._batch):
            prompts += list(session.run(text_inputs(group), ["prompt"])[0])
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
        return self.compare(self._differences(image, prompts[:limit], fused, progress))

    def compare(self, found: Sequence[Array]) -> Figures:
        """The figures of logit differences (H,W) of the first cases."""
        truth = self._truth[: len(found)]
        agreement = np.mean([np.mean((a > 0) == (b > 0)) for a, b in zip(found, truth, strict=True)])
        mean_iou = self._mean_iou(found)
        return Figures(
            len(found), mean_iou, self._mean_iou(truth) - mean_iou, float(agreement), relative_error(found, truth)
        )

    def _differences(self, image: ir.Model, prompts: Sequence[Array], fused: bool, progress: Progress) -> list[Array]:
        """Logit of the object less that of the background, (H,W) for each prompt's case."""
        session, found = Session(image, fused=fused), []
        progress(0, len(prompts))
        for group in in_batches(list(zip(self.cases, prompts, strict=False)), self._batch):
            chosen, rows = zip(*group, strict=True)
            logits = session.run(image_inputs(chosen, rows), ["logits"])[0]
            # A mask of logits that are no numbers would look like a result.
            found += [np.nan_to_num(one[1] - one[0], nan=-np.inf).clip(-1e9, 1e9) for one in logits]
            progress(min(len(found), len(prompts)), len(prompts))
        return found[: len(prompts)]

    def _mean_iou(self, differences: Sequence[Array]) -> float:
        metrics = ReferringMetrics()
        for case, difference in zip(self.cases, differences, strict=False):
            metrics.update(difference > 0, case.target)
        return float(metrics.compute()["mean_iou"])
