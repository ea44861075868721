"""What is asked beside time: where it goes, what bounds it, the lower bound on a device, and layers that diverge."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..._base.exits import needs
from ..._base.progress import Report
from ...errors import LavtError
from ...runtime.bundle import Bundle, open_bundle
from ...runtime.signature import segmenter_signature
from ..peers.process import run_in_subprocess
from ..peers.sides import batch_of, feeds_for
from ..timing.measure import prepare_sides
from ..timing.result import Estimate, Kernels, LayerError, Options, Result, Roofline, SideParts, TextCost, TimedPart


def check(options: Options, *, parts: bool, estimate: str | None, layers: bool, kernels: bool) -> None:
    """Refuses before anything is measured what could not be done afterwards. Raises LavtError."""
    bundle = open_bundle(options.engine)
    for batch in (options.batch, *options.sweep_batch):
        batch_of(bundle, batch)
    if not (parts or layers or kernels or estimate is not None):
        return
    if kernels:
        with needs("rtx"):
            import_module("tensorrt_rtx")
    with needs("export"):  # which counts a graph's costs, on the CPU as for an engine
        import_module(".engine", __package__)
    if layers or kernels or estimate is not None:
        _, precision = image_graph(options.engine)
        if layers and precision == "fp32":
            raise LavtError(
                "--layers compares a graph with the FP32 one: give --engine BUNDLE/segmenter.PRECISION.onnx"
            )
    if estimate is not None:
        from .devices import find_device

        find_device(estimate)


def image_graph(engine: Path) -> tuple[Path, str]:
    """The .onnx of a bundle's image graph, the given one or the FP32 one, and the type of its products.

    Raises LavtError for an engine of TensorRT, or a bundle without the graph.
    """
    bundle = open_bundle(engine)
    if bundle.selected is None:
        return bundle.file("segmenter"), "fp32"
    entry = bundle.manifest.files[bundle.selected]
    if entry.role != "segmenter":
        raise LavtError(f"{engine} is not an .onnx of an image graph: it has no --layers, --kernels or --estimate")
    return bundle.file("segmenter", entry.precision), (entry.precision or "fp32").removesuffix("-cpu")


def add_parts(result: Result, options: Options, report: Report) -> Result:
    """With `parts` of the image graph that was measured; on the CPU also with `roofline` and `text`.

    Raises LavtError, also if ONNX Runtime ran on CUDA: its profile does not hold the device's time.
    """
    side = result.sides[0]
    report("where the time goes")
    if (side.file or "").endswith(".engine"):
        rows = run_in_subprocess(_engine_parts, side.file, options)
        return replace(result, parts=(SideParts(side.name, side.precision or "", rows),))
    if side.device != "cpu":
        raise LavtError("--parts works on the CPU and for engines of TensorRT; give --device cpu, or an .engine")
    path, precision = image_graph(options.engine)
    rows, roofline, text = run_in_subprocess(_parts, path, options)
    return replace(result, parts=(SideParts(side.name, precision, rows),), roofline=roofline, text=text)


def _engine_parts(name: str, options: Options) -> tuple[TimedPart, ...]:
    from .engine import engine_part_times

    bundle = open_bundle(options.engine)
    return engine_part_times(bundle, name, _feeds(bundle, options))


def _parts(path: Path, options: Options) -> tuple[tuple[TimedPart, ...], Roofline, TextCost]:
    from .profile import part_times
    from .roofline import measure_ceilings, roofline

    bundle = open_bundle(options.engine)
    rows, _ = part_times(path, _feeds(bundle, options), options.threads)
    macs = sum((Counter(row.macs_by_precision) for row in rows), Counter[str]())
    ceilings = measure_ceilings([precision for precision, _ in macs.most_common()] or ["fp32"], options.threads)
    tokens = np.ones((bundle.manifest.input.batch or 1, bundle.manifest.input.max_words), np.int64)
    text_feeds = {"input_ids": tokens, "attention_mask": tokens}
    text, _ = part_times(bundle.file("text_encoder"), text_feeds, options.threads)
    sums = {key: sum(getattr(row, key) for row in text) for key in ("seconds", "macs", "bytes", "weight_bytes")}
    return rows, roofline(rows, ceilings), TextCost(**sums)


def add_estimate(result: Result, options: Options, device: str, report: Report) -> Result:
    """With `estimate`, for a device of `devices.DEVICES`. Raises LavtError."""
    path, precision = image_graph(options.engine)
    report(f"lower bound on {device}")
    return replace(result, estimate=run_in_subprocess(_estimate, path, precision, device, options))


def _estimate(path: Path, precision: str, device: str, options: Options) -> Estimate:
    """That of the image graph; the text graph's weights lie in memory beside it."""
    from ...export.engines.options import wanted_graphs
    from .costs import cost_rows
    from .devices import estimate

    text_path = open_bundle(options.engine).file("text_encoder")
    image = estimate(cost_rows(path, options.batch), device, precision)
    text = estimate(cost_rows(text_path), device, dict(wanted_graphs(precision))["text_encoder"])
    needed = image.needed_bytes + text.needed_bytes
    return replace(image, needed_bytes=needed, fits=needed <= image.memory_bytes, text_floor_seconds=text.floor_seconds)


def add_kernels(result: Result, options: Options, report: Report) -> Result:
    """With `kernels`, those of the image graph as TensorRT for RTX compiles it. Raises LavtError."""
    path, precision = image_graph(options.engine)
    report("compiling for a GPU")
    return replace(result, kernels=run_in_subprocess(_kernels, path, precision, options.batch))


def _kernels(path: Path, precision: str, batch: int) -> Kernels:
    from .kernels import measure_kernels

    return measure_kernels(path, precision, batch)


def add_layers(result: Result, options: Options, report: Report) -> Result:
    """With `layers`: the image graph's tensors against FP32's. Raises LavtError if they cannot be compared."""
    path, _ = image_graph(options.engine)
    report("comparing layers")
    reference = open_bundle(options.engine).file("segmenter")
    return replace(result, layers=tuple(run_in_subprocess(_layers, reference, path, options)))


def _layers(reference: Path, other: Path, options: Options) -> list[LayerError]:
    """On the options' own image and sentence: errors, unlike times, depend on them."""
    from ..peers.onnx import BundleSide
    from .layers import compare_layers

    (spec,) = prepare_sides(replace(options, against=(), device="cpu"))
    side = BundleSide(replace(spec, path=open_bundle(options.engine).root))
    return compare_layers(reference, other, side.feeds, options.threads)


def _feeds(bundle: Bundle, options: Options) -> dict[str, Any]:
    """Inputs of the image graph as the manifest has them, which needs no runtime: time does not depend on values."""
    return feeds_for(segmenter_signature(bundle.manifest.input).inputs, batch_of(bundle, options.batch))
