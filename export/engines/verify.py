"""A new engine against the graph that it was built from, on the CUDA device that built it."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.metrics import pixel_agreement, relative_error
from ...errors import BackendError, ExportError, LavtError
from ...runtime.backend import Backend, OnnxRuntimeBackend
from ...runtime.bundle import Bundle
from ...runtime.manifest import GRAPH_ROLES
from ...runtime.tensorrt.flavor import Flavor
from ...runtime.tensorrt.record import EngineRecord
from ..samples import Feeds, make_samples, sample_frame, sample_logits

# Relative error and share of equal mask pixels that an engine must keep against its graph on ONNX Runtime. TensorRT
# rounds at other places than ONNX Runtime: an INT8 value may fall on the other side.
LIMITS = {"fp32": (1e-3, 0.999), "fp16": (2e-2, 0.99), "bf16": (1e-1, 0.98), "int8": (1e-1, 0.98)}
# Of graphs for frames: bytes of 130 or so, of which 2 % differ by 1; a mask of half the pixels, 0.1 % of which differ.
LIMITS |= {"frame": (1.5e-3, 0.0), "mask": (4.5e-2, 0.0)}

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class EngineParity:
    """An engine's outputs beside those of `reference`, a file of the bundle, and beside the FP32 graph's.

    Errors are the largest over the cases of norm(difference) / norm(reference), infinite if any value is not finite.
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


class UnmeasurableError(Exception):
    """Parity cannot be measured on this machine; the message says why."""


@dataclass(frozen=True, eq=False)
class Expected:
    """What an engine should give: the outputs named `output` of its graph, and of the FP32 graph, for each of `feeds`.

    `reference` is the name of the graph's file.
    """

    output: str
    feeds: list[Feeds]
    reference: str
    typed: Arrays
    fp32: Arrays


def verify_engine(data: bytes, record: EngineRecord, bundle: Bundle, flavor: Flavor) -> EngineParity:
    """Runs the engine and the bundle's graphs on the same inputs.

    Raises UnmeasurableError if onnxruntime, cuda-python or a graph is missing, ExportError if the engine cannot run or
    is too far from its graph.
    """
    from ...runtime.tensorrt.backend import TensorRTBackend
    from ...runtime.tensorrt.cuda import Cuda

    try:
        cuda = Cuda()
        expected = (
            run_graphs(bundle, record.role, record.precision)
            if record.role in GRAPH_ROLES
            else run_frame_graph(bundle, record.role, str(record.onnx_file))
        )
    except LavtError as error:
        raise UnmeasurableError(str(error)) from error
    try:
        with closing(TensorRTBackend(data, record, flavor, cuda)) as engine:
            outputs = run_feeds(engine, expected.feeds, expected.output)
    except BackendError as error:
        raise ExportError(f"{record.name} was built and cannot run: {error}") from error
    pytorch = bundle.manifest.parity.get("segmenter", {}).get("relative_error")
    parity = measure_parity(outputs, expected, float(pytorch) if isinstance(pytorch, (int, float)) else None)
    check_parity(parity, record)
    return parity


def run_graphs(bundle: Bundle, role: str, precision: str) -> Expected:
    """The graphs of a role on ONNX Runtime's CPU; image graphs take prompts of the FP32 text encoder.

    Raises BackendError or BundleError if ONNX Runtime or a graph is missing.
    """
    spec = bundle.manifest.input
    tokenizer = bundle.tokenizer()
    samples = make_samples(tokenizer, spec.height, spec.width)
    batches = samples.batches(spec.batch or 1)
    output, feeds = "prompt", [samples.text_feeds(cases) for cases in batches]
    if role == "segmenter":
        prompts = run_feeds(_session(bundle, "text_encoder", "fp32"), feeds, "prompt")
        output, feeds = "logits", [samples.image_feeds(*pair) for pair in zip(batches, map(list, prompts), strict=True)]
    fp32 = run_feeds(_session(bundle, role, "fp32"), feeds, output)
    against = "fp32" if precision == "bf16" else precision  # ONNX Runtime has no bfloat16 on a CPU
    typed = fp32 if against == "fp32" else run_feeds(_session(bundle, role, against), feeds, output)
    return Expected(output, feeds, bundle.file(role, against).name, typed, fp32)


def run_frame_graph(bundle: Bundle, role: str, graph: str) -> Expected:
    """A graph for a camera's frames on ONNX Runtime's CPU. Raises as `run_graphs` does."""
    backend = OnnxRuntimeBackend(bundle.verified(graph), device="cpu")
    (given,) = backend.signature.inputs
    _, *shape = (int(size or 1) for size in given.shape)
    output, make = ("image", sample_frame) if role == "frame" else ("mask", sample_logits)
    feeds: list[Feeds] = [{given.name: make(tuple(shape), seed)[None]} for seed in range(2)]
    outputs = run_feeds(backend, feeds, output)
    return Expected(output, feeds, graph, outputs, outputs)


def _session(bundle: Bundle, role: str, precision: str) -> Backend:
    return OnnxRuntimeBackend(bundle.file(role, precision), device="cpu")


def run_feeds(backend: Backend, feeds: list[Feeds], output: str) -> Arrays:
    """One output of a graph or an engine for each of the feeds."""
    return [backend.run(feed, (output,))[0] for feed in feeds]


def measure_parity(outputs: Arrays, expected: Expected, graph_against_pytorch: float | None = None) -> EngineParity:
    """The parity of an engine's outputs. Raises ExportError if the graphs give values that are not finite."""
    for name, arrays in ((expected.reference, expected.typed), ("the FP32 graph", expected.fp32)):
        if not all(np.isfinite(array).all() for array in arrays):
            raise ExportError(
                f"{name} gives values that are NaN or infinite, so its engine was not compared; nothing was written"
            )
    return EngineParity(
        relative_error=max(map(relative_error, outputs, expected.typed)),
        pixel_agreement=(min(map(pixel_agreement, outputs, expected.typed)) if expected.output == "logits" else None),
        against_fp32=max(map(relative_error, outputs, expected.fp32)),
        cases=len(outputs),
        reference=expected.reference,
        backend="ONNX Runtime",
        graph_against_pytorch=graph_against_pytorch,
    )


def check_parity(parity: EngineParity, record: EngineRecord) -> None:
    """Raises ExportError if the engine is further from its graph than LIMITS of its precision, or is not finite."""
    if not (math.isfinite(parity.relative_error) and math.isfinite(parity.against_fp32)):
        raise ExportError(
            f"{record.name} gives values that are NaN or infinite, {parity.reference} does not; nothing was written"
        )
    error, agreement = LIMITS.get(record.role) or LIMITS[record.precision]
    pixels = 1.0 if parity.pixel_agreement is None else parity.pixel_agreement
    if not (parity.relative_error <= error and pixels >= agreement):
        raise ExportError(
            f"{record.name} differs too much from {parity.reference}: relative error {parity.relative_error:.1e} "
            f"(limit {error:.0e}), pixel agreement {100 * pixels:.2f} % (limit {100 * agreement:g} %); "
            "nothing was written"
        )
