"""What each precision of a bundle keeps: logits and masks against PyTorch's, accuracy, pictures of the worst cases."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image

from ..._base.progress import Progress, Report, ignore
from ...calibration.evaluator import Evaluator, Figures
from ...calibration.half import emulate_half
from ...calibration.observers import Session
from ...calibration.sample import Case, Sample
from ...data.sentences import Sentence
from ...errors import LavtError
from ...export.source import Source
from ...runtime.bundle import Bundle, open_bundle
from ...runtime.overlay import overlay
from ..timing.result import FidelityRow, Overlay

DEFAULT_SENTENCES = 200
DEFAULT_CASES = 4
_OVERLAY_SIDE = 320
_OVERLAY_COLOURS = 96

Masks = list[npt.NDArray[np.bool_]]


class MaskEvaluator(Evaluator):
    """An evaluator that keeps the logit differences and masks (H,W) of what it ran last, one for each case."""

    differences: Sequence[npt.NDArray[Any]]
    masks: Masks

    def _differences(
        self, session: Session, prompts: Sequence[npt.NDArray[Any]], progress: Progress
    ) -> list[npt.NDArray[Any]]:
        differences = super()._differences(session, prompts, progress)
        self._keep(differences)
        return differences

    def refer_to(self, differences: Sequence[npt.NDArray[Any]]) -> None:
        """Takes other differences for the truth than those of the FP32 graph."""
        self._truth = list(differences)
        self.mean_iou = self._mean_iou(self._truth)
        self._keep(differences)

    def _keep(self, differences: Sequence[npt.NDArray[Any]]) -> None:
        self.differences = differences
        self.masks = [difference > 0 for difference in differences]


def measure_fidelity(
    path: Path,
    sentences: Sequence[Sentence],
    *,
    source: Source | None = None,
    precisions: Sequence[str] | None = None,
    cases: int = DEFAULT_CASES,
    report: Report = ignore,
    progress: Progress = ignore,
) -> list[FidelityRow]:
    """A row for each precision of the bundle's image graph, FP32 first, over `sentences`.

    The reference is PyTorch with `source`, which must be the bundle's own weights; without one it is the bundle's FP32
    graph. Two empty masks agree. Each row has overlays of the same `cases`, those on which a precision's mask differs
    most; none if all masks are equal. FP16 is rounded tensor by tensor as a GPU stores it, behind its own text graph.

    Raises:
        LavtError: no sentences, or a precision that the bundle has no graph of.
        BundleError, DatasetError: files are missing or damaged.
    """
    bundle = open_bundle(path)
    names = chosen_precisions(bundle, precisions)
    if not sentences:
        raise LavtError("fidelity needs one sentence or more")
    report("fp32")
    evaluator = MaskEvaluator(bundle, Sample((), sentences, {}), progress)
    masks, graph = {"fp32": evaluator.masks}, evaluator.differences
    truth, against = evaluator.masks, "the FP32 graph"
    if source is not None:
        report("PyTorch")
        evaluator.refer_to(_reference(bundle, source, evaluator.cases, progress))
        truth, against = evaluator.masks, "PyTorch"
    figures = {"fp32": evaluator.compare(graph)}
    for name in names[1:]:
        report(name)
        figures[name] = _figures(evaluator, bundle, name, progress)
        masks[name] = evaluator.masks
    worst = most_disagreed([truth, *masks.values()], cases)  # the same cases in each row, worst first
    return [
        FidelityRow(
            name,
            **vars(figures[name]),
            iou_with_reference=float(np.mean([mask_iou(a, b) for a, b in zip(masks[name], truth, strict=True)])),
            against=against,
            overlays=tuple(_overlay(evaluator, sentences[i].text, i, masks[name][i], truth[i]) for i in worst),
        )
        for name in names
    ]


def _reference(
    bundle: Bundle, source: Source, cases: Sequence[Case], progress: Progress
) -> list[npt.NDArray[np.float32]]:
    """PyTorch's logit differences (H,W) of the cases. Raises LavtError if the weights are not the bundle's."""
    from .reference import load_reference

    if not source.is_of(bundle):
        name = "demo" if source.kind == "demo" else source.path
        raise LavtError(f"{bundle.root} was not exported from the checkpoint {name}; give its own")
    spec = bundle.manifest.input
    predictor = load_reference(source, image_size=(spec.height, spec.width), device="cpu")
    differences = []
    for number, case in enumerate(cases):
        progress(number, len(cases))
        (logits,) = predictor.logits(np.stack([case.image]), [(case.input_ids, case.attention_mask)])
        differences.append(logits[1] - logits[0])
    return differences


def chosen_precisions(bundle: Bundle, wanted: Sequence[str] | None) -> list[str]:
    """FP32, then the other precisions of image graphs in the bundle, or those `wanted`. Raises LavtError."""
    graphs = [entry.precision for entry in bundle.manifest.files.values() if entry.role == "segmenter"]
    present = ["fp32", *sorted(precision for precision in graphs if precision not in (None, "fp32"))]
    unknown = [name for name in wanted or () if name not in present]
    if unknown:
        raise LavtError(f"{bundle.root} has no image graph in {', '.join(unknown)}; it has {', '.join(present)}")
    return present if wanted is None else ["fp32", *(name for name in wanted if name != "fp32")]


def most_disagreed(masks: Sequence[Masks], count: int) -> list[int]:
    """Up to `count` cases by number, worst first, on which one side's mask differs in most pixels from the first's.

    `masks` holds each side's masks (H,W), case by case. Cases without a difference are left out.
    """
    differing = np.max([[np.mean(a != b) for a, b in zip(side, masks[0], strict=True)] for side in masks], axis=0)
    order = np.argsort(-differing, kind="stable")[:count]
    return [int(i) for i in order if differing[i] > 0]


def mask_iou(mask: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """IoU of two masks (H,W), in percent; 100 if both are empty, for then they agree."""
    union = np.count_nonzero(mask | other)
    return 100 * np.count_nonzero(mask & other) / union if union else 100.0


def _figures(evaluator: Evaluator, bundle: Bundle, name: str, progress: Progress) -> Figures:
    path = bundle.file("segmenter", name)
    if name == "int8-cpu":  # made for a CPU's INT8 kernels, so judged with them
        return evaluator.evaluate(ir.load(path), fused=True, progress=progress)
    return evaluate_file(evaluator, bundle, path, text=name == "fp16" and bundle.has("text_encoder", "fp16"))


def _overlay(
    evaluator: Evaluator, sentence: str, case: int, mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]
) -> Overlay:
    picture = overlay(evaluator.cases[case].image, mask, sentence)
    agreement = float(np.mean(mask == truth))
    return Overlay(case, sentence, agreement, mask_iou(mask, truth), png_base64(picture))


def png_base64(picture: Image.Image) -> str:
    """A small PNG, at most 320 pixels wide and in few colours, as base64 text."""
    if picture.width > _OVERLAY_SIDE:
        height = round(picture.height * _OVERLAY_SIDE / picture.width)
        picture = picture.resize((_OVERLAY_SIDE, height), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.convert("RGB").quantize(_OVERLAY_COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode("ascii")


def evaluate_file(evaluator: Evaluator, bundle: Bundle, path: Path, *, text: bool) -> Figures:
    """The figures of an image graph, with FP16 rounded as it is stored; with `text`, behind the FP16 text graph."""
    model, encoder = ir.load(path), ir.load(bundle.file("text_encoder", "fp16")) if text else None
    for graph in filter(None, (model, encoder)):
        emulate_half(graph)
    return evaluator.evaluate(model, text=encoder)
