"""The proof of an export: both graphs, end to end on ONNX Runtime, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._base.progress import Progress, ignore
from ..data.metrics import relative_error
from ..reference.lavt import LAVT, normalise
from ..runtime.backend import OnnxRuntimeBackend
from .samples import Samples


@dataclass(frozen=True)
class Parity:
    """How far a bundle's outputs are from PyTorch in float64, as the manifest keeps it.

    `relative_error` is the largest over the cases of norm(difference) / norm(logits), whole logits, infinite if any is
    not finite; `pixel_agreement` the smallest share of mask pixels that are equal.
    """

    relative_error: float
    pixel_agreement: float
    cases: int
    reference: str = "PyTorch float64"
    backend: str = "ONNX Runtime"


def measure_parity(
    model: LAVT,
    folder: Path,
    samples: Samples,
    batch: int | None,
    progress: Progress = ignore,
) -> Parity:
    """Runs the bundle in `folder` and `model` on the same images and sentences; `model` is left in float64.

    A static batch is filled with different cases; a dynamic one is run with two, then one.
    """
    errors, agreements = [], []
    expected: dict[int, npt.NDArray[np.float64]] = {}
    # The sessions are closed before the float64 model takes their memory.
    outputs = list(_run_bundle(folder, samples, batch))
    model.double()
    for case, logits, mask in outputs:
        if case not in expected:
            expected[case] = _run_reference(model, samples, case)
            progress(len(expected), len(samples.images))
        truth = expected[case]
        errors.append(relative_error(logits, truth))
        agreements.append(float(np.mean((truth[1] > truth[0]) == mask.astype(bool))))
    return Parity(max(errors), min(agreements), len(expected))


def _run_bundle(
    folder: Path, samples: Samples, batch: int | None
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
    """(case, logits (2,H,W), mask (H,W)) of every case, at the batch sizes that the graphs take."""
    batches = [[0, 1], [2], [3]] if batch is None else samples.batches(batch)
    text = OnnxRuntimeBackend(folder / "text_encoder.onnx", device="cpu")
    prompts = [text.run(samples.text_feeds(cases), ("prompt",))[0] for cases in batches]
    del text
    segmenter = OnnxRuntimeBackend(folder / "segmenter.onnx", device="cpu")
    for cases, prompt in zip(batches, prompts, strict=True):
        yield from zip(cases, *segmenter.run(samples.image_feeds(cases, list(prompt)), ("logits", "mask")), strict=True)


def _run_reference(model: LAVT, samples: Samples, case: int) -> npt.NDArray[np.float64]:
    """Logits (2,H,W) of one case."""
    images, ids, masks = (
        torch.from_numpy(arrays[case])[None] for arrays in (samples.images, samples.input_ids, samples.attention_masks)
    )
    with torch.inference_mode():
        logits: npt.NDArray[np.float64] = model(normalise(images, torch.float64), ids, masks)[0].numpy()
    return logits
