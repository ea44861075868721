"""The proof of an export: both graphs, end to end on ONNX Runtime, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.logger import G_LOGGER

from ..data.metrics import relative_error
from ..reference.lavt import LAVT, normalise
from ..runtime.tokenizer import SentenceTokenizer

# One word, a phrase, a sentence, and more word pieces than a prompt holds.
SENTENCES = (
    "person",
    "the man in red",
    "woman sitting on the left side of the bench with a dog",
    "the second zebra from the right, half hidden behind the tall grass, looking back over its shoulder at the camera",
)


@dataclass(frozen=True)
class Parity:
    """How far a bundle's outputs are from PyTorch in float64.

    `relative_error` is the largest over the cases of norm(difference) / norm(logits), whole logits; `pixel_agreement`
    the smallest share of mask pixels that are equal.
    """

    relative_error: float
    pixel_agreement: float
    cases: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reference": "PyTorch float64", "backend": "ONNX Runtime"}


def sample_images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Images with content at every scale, one for each sentence, always the same: (cases,H,W,3)"""
    images = []
    for seed in range(len(SENTENCES)):
        rng = np.random.default_rng(seed)
        image: npt.NDArray[np.float64] = np.zeros((3, height, width))
        for cells in (2, 5, 16, 64):
            noise = torch.from_numpy(rng.standard_normal((1, 3, cells, cells)))
            image += torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].numpy()
        image = 127.5 + 40 * image + rng.normal(0, 8, image.shape)
        images.append(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    return np.stack(images)


def measure_parity(
    model: LAVT,
    folder: Path,
    tokenizer: SentenceTokenizer,
    size: tuple[int, int],
    batch: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Runs the bundle in `folder` and `model` on the same images and sentences; `model` is left in float64.

    A static batch is filled with different cases; a free one is run with two, then one.
    """
    images = sample_images(*size)
    tokens = [tokenizer.encode(sentence)[:2] for sentence in SENTENCES]
    ids, masks = (np.stack(part) for part in zip(*tokens, strict=True))
    errors, agreements = [], []
    expected: dict[int, npt.NDArray[np.float64]] = {}
    # The sessions are closed before the float64 model takes their memory.
    outputs = list(_run_bundle(folder, images, ids, masks, batch))
    model.double()
    for case, logits, mask in outputs:
        if case not in expected:
            expected[case] = _run_reference(model, images[case], ids[case], masks[case])
            progress(len(expected), len(images))
        truth = expected[case]
        errors.append(relative_error(logits, truth))
        agreements.append(float(np.mean((truth[1] > truth[0]) == mask.astype(bool))))
    return Parity(max(errors), min(agreements), len(expected))


def _run_bundle(
    folder: Path,
    images: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.int64],
    masks: npt.NDArray[np.int64],
    batch: int | None,
) -> Iterator[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.uint8]]]:
    """(case, logits (2,H,W), mask (H,W)) of every case, at the batch sizes that the graphs take."""
    count = len(images)
    batches = (
        [[0, 1], [2], [3]]
        if batch is None
        else [[(start + i) % count for i in range(batch)] for start in range(0, count, batch)]
    )
    G_LOGGER.module_severity = G_LOGGER.ERROR
    prompts = {}
    with OnnxrtRunner(SessionFromOnnx(str(folder / "text_encoder.onnx"), providers=["cpu"])) as text:
        for number, cases in enumerate(batches):
            prompts[number] = text.infer({"input_ids": ids[cases], "attention_mask": masks[cases]})["prompt"].copy()
    with OnnxrtRunner(SessionFromOnnx(str(folder / "segmenter.onnx"), providers=["cpu"])) as segmenter:
        for number, cases in enumerate(batches):
            feed = {
                "image": images[cases],
                "prompt": prompts[number],
                "word_mask": masks[cases].astype(np.float32),
            }
            outputs = segmenter.infer(feed)
            for i, case in enumerate(cases):
                yield case, outputs["logits"][i].astype(np.float64), outputs["mask"][i].copy()


def _run_reference(
    model: LAVT, image: npt.NDArray[np.uint8], ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    with torch.inference_mode():
        logits = model(
            normalise(torch.from_numpy(image)[None], torch.float64),
            torch.from_numpy(ids)[None],
            torch.from_numpy(mask)[None],
        )
    out: npt.NDArray[np.float64] = logits[0].numpy()
    return out
