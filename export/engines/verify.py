"""A new engine against the graph that it was built from, on the CUDA device that built it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.metrics import pixel_agreement, relative_error
from ...errors import BackendError, ExportError, LavtError
from ...runtime.backend import OnnxRuntimeBackend
from ...runtime.bundle import Bundle
from ...runtime.tensorrt.flavor import Flavor
from ...runtime.tensorrt.record import EngineRecord
from ...runtime.tokenizer import SentenceTokenizer

SENTENCES = ("the red circle", "the large square on the left", "a man in a blue shirt next to the white van")
# Norm of the difference over norm of what the graph gives on ONNX Runtime, and the least share of equal mask pixels.
# TensorRT rounds elsewhere than ONNX Runtime: an INT8 value may fall on the other side.
LIMITS = {"fp32": (1e-3, 0.999), "fp16": (2e-2, 0.99), "int8": (1e-1, 0.98)}

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class EngineParity:
    """An engine's outputs beside those of `reference`, a file of the bundle, and beside the FP32 graph's.

    `pixel_agreement` is the image engine's, None of a text encoder. `graph_against_pytorch` is the bundle's record of
    its FP32 graph.
    """

    relative_error: float
    pixel_agreement: float | None
    against_fp32: float
    cases: int
    reference: str
    backend: str
    graph_against_pytorch: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_parity(parity: EngineParity, record: EngineRecord) -> None:
    """Raises ExportError where the engine is further from its graph than LIMITS of its precision."""
    error, agreement = LIMITS[record.precision]
    pixels = 1.0 if parity.pixel_agreement is None else parity.pixel_agreement
    if not (parity.relative_error <= error and pixels >= agreement):
        raise ExportError(
            f"{record.name} computes something else than {parity.reference}: relative error "
            f"{parity.relative_error:.1e} (limit {error:.0e}), pixel agreement {100 * pixels:.2f} % (limit "
            f"{100 * agreement:g} %); nothing was written"
        )


class UnmeasurableError(Exception):
    """Parity cannot be measured on this machine; the message says why."""


def measure_parity(data: bytes, record: EngineRecord, bundle: Bundle, flavor: Flavor) -> EngineParity:
    """Runs the engine and the bundle's graphs on the same inputs.

    Raises UnmeasurableError where onnxruntime, cuda-python or a graph is missing, ExportError where the engine cannot
    run.
    """
    from ...runtime.tensorrt.backend import TensorRTBackend
    from ...runtime.tensorrt.cuda import Cuda

    output = "prompt" if record.role == "text_encoder" else "logits"
    try:
        cuda = Cuda()
        graph, reference = _results(bundle, record.role, record.precision, output)
        exact = reference if record.precision == "fp32" else _results(bundle, record.role, "fp32", output)[1]
    except LavtError as error:
        raise UnmeasurableError(str(error)) from error
    feeds = _feeds(bundle, record.role)
    try:
        engine = TensorRTBackend(data, record, flavor, cuda)
        try:
            outputs = [engine.run(feed, (output,))[0] for feed in feeds]
        finally:
            engine.close()
    except BackendError as error:
        raise ExportError(f"{record.name} was built and cannot run: {error}") from error
    pytorch = bundle.manifest.parity.get("segmenter", {}).get("relative_error")
    return EngineParity(
        relative_error=max(map(relative_error, outputs, reference)),
        pixel_agreement=min(map(pixel_agreement, outputs, reference)) if output == "logits" else None,
        against_fp32=max(map(relative_error, outputs, exact)),
        cases=len(feeds),
        reference=graph,
        backend="ONNX Runtime",
        graph_against_pytorch=float(pytorch) if isinstance(pytorch, (int, float)) else None,
    )


def _results(bundle: Bundle, role: str, precision: str, output: str) -> tuple[str, list[npt.NDArray[Any]]]:
    """The name of a graph's file, and what it gives for each of the inputs on ONNX Runtime's CPU."""
    file = bundle.file(role, precision)
    graph = OnnxRuntimeBackend(file, device="cpu")
    return file.name, [graph.run(feed, (output,))[0] for feed in _feeds(bundle, role)]


def _feeds(bundle: Bundle, role: str) -> list[Arrays]:
    """The inputs of a graph for each of SENTENCES; prompts are the FP32 text encoder's."""
    spec = bundle.manifest.input
    batch = spec.batch or 1
    text = None if role == "text_encoder" else OnnxRuntimeBackend(bundle.file("text_encoder", "fp32"), device="cpu")
    tokenizer = SentenceTokenizer.from_json(bundle.file("tokenizer").read_bytes(), spec.max_words)
    feeds: list[Arrays] = []
    for i, sentence in enumerate(SENTENCES):
        ids, mask, _ = tokenizer.encode(sentence)
        words: Arrays = {
            "input_ids": np.repeat(ids[None], batch, axis=0),
            "attention_mask": np.repeat(mask[None], batch, axis=0),
        }
        if text is None:
            feeds.append(words)
            continue
        (prompt,) = text.run(words, ("prompt",))
        image = np.repeat(sample_picture(spec.height, spec.width, seed=i)[None], batch, axis=0)
        feeds.append({"image": image, "prompt": prompt, "word_mask": words["attention_mask"].astype(np.float32)})
    return feeds


def sample_picture(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """A picture with smooth ground, sharp edges and a little noise: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    ramp = (x / width + y / height)[..., None] * rng.uniform(20, 90, 3)
    picture = ramp + rng.normal(0, 4, (height, width, 3)) + 40
    for _ in range(4):
        top, left = int(rng.integers(0, height * 3 // 4)), int(rng.integers(0, width * 3 // 4))
        picture[top : top + height // 4, left : left + width // 4] = rng.uniform(0, 255, 3)
    return np.clip(picture, 0, 255).astype(np.uint8)
