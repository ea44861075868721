"""What is asked beside time: where it goes, what bounds it, a device's floor, and layers that differ."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..._base.progress import Report
from ...errors import LavtError
from ...runtime.bundle import open_bundle
from ..peers.process import call_apart
from ..peers.sides import batch_of
from ..timing.measure import Options, prepare_sides

NO_LAYERS = "--layers compares a graph with the FP32 one: give --engine BUNDLE/segmenter.PRECISION.onnx"


def image_graph(engine: Path) -> tuple[Path, str]:
    """The .onnx of a bundle's image graph, the given one or the FP32 one, and its precision.

    Raises LavtError for an engine of TensorRT, or a bundle without the graph.
    """
    bundle = open_bundle(engine)
    if bundle.selected is None:
        return bundle.file("segmenter"), "fp32"
    entry = bundle.manifest.files[bundle.selected]
    if entry.role != "segmenter":
        raise LavtError(f"{engine} is no .onnx of an image graph; its parts and layers cannot be told")
    return bundle.file("segmenter", entry.precision), entry.precision or "fp32"


def add_parts(result: dict[str, Any], options: Options, report: Report) -> None:
    """Fills `parts`, [{"side", "precision", "parts"}], of the image graph that was measured: rows of
    `parts.part_times`, or of `engine_parts.engine_part_times` for an engine of TensorRT. On the CPU also `roofline`,
    {"ceilings", "parts"}, rows of `roofline.roofline`; and `text`, the text graph as one row, once a sentence.

    Raises LavtError, also where ONNX Runtime ran on CUDA, whose profile does not hold the device's time.
    """
    side = result["sides"][0]
    report("where the time goes")
    if (side["file"] or "").endswith(".engine"):
        rows = call_apart(_engine_parts, side["file"], options)
        result["parts"] = [{"side": side["name"], "precision": side["precision"], "parts": rows}]
        return
    if side["device"] != "cpu":
        raise LavtError("--parts is told for the CPU and for engines of TensorRT; give --device cpu, or an .engine")
    path, precision = image_graph(options.engine)
    rows, roof, ceilings, text = call_apart(_parts, path, precision, options)
    result["parts"] = [{"side": side["name"], "precision": precision, "parts": rows}]
    result["roofline"] = {"ceilings": ceilings, "parts": roof}
    result["text"] = text


def _engine_parts(name: str, options: Options) -> list[dict[str, Any]]:
    from .engine import engine_part_times

    return engine_part_times(open_bundle(options.engine), name, _feeds(options))


def _parts(
    path: Path, precision: str, options: Options
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    from .profile import part_times
    from .roofline import measure_ceilings, roofline

    rows = part_times(path, _feeds(options), options.threads)
    found = {one for row in rows for one, count in row["macs_by_precision"].items() if count}
    ceilings = measure_ceilings(sorted(found), options.threads)
    made = ceilings.to_dict()
    by_precision = made["macs_per_second"]
    most = max(found, key=lambda one: sum(row["macs_by_precision"].get(one, 0) for row in rows))
    made.update(macs_per_second=by_precision[most], by_precision=by_precision, precision=precision)
    return rows, roofline(rows, ceilings), made, _text(options)


def _text(options: Options) -> dict[str, Any]:
    """The FP32 text graph's seconds, MACs and bytes, for one sentence."""
    from .profile import part_times

    bundle = open_bundle(options.engine)
    shape = (bundle.manifest.input.batch or 1, bundle.manifest.input.max_words)
    tokens = np.ones(shape, np.int64)
    rows = part_times(
        bundle.file("text_encoder"), {"input_ids": tokens, "attention_mask": tokens.copy()}, options.threads
    )
    summed = ("seconds", "macs", "bytes", "weight_bytes")
    return {key: sum(row[key] for row in rows) for key in summed}


def add_estimate(result: dict[str, Any], options: Options, device: str, report: Report) -> None:
    """Fills `estimate`: the floor of the image graph on a device of `devices.DEVICES`. Raises LavtError."""
    path, precision = image_graph(options.engine)
    report(f"floor on {device}")
    result["estimate"] = call_apart(_estimate, path, precision, device, options)


def _estimate(path: Path, precision: str, device: str, options: Options) -> dict[str, Any]:
    """The floor of the image graph; the text graph's weights lie in memory beside it."""
    from .costs import cost_rows
    from .devices import estimate

    bundle = open_bundle(options.engine)
    known = precision if precision in ("fp32", "fp16") else "int8"
    found = estimate(cost_rows(path, options.batch), device, known).to_dict()
    text = estimate(cost_rows(bundle.file("text_encoder")), device, "fp32" if known == "fp32" else "fp16")
    needed = found["needed_bytes"] + text.needed_bytes
    fits = needed <= found["memory_bytes"]
    return {**found, "needed_bytes": needed, "fits": fits, "text_floor_seconds": text.seconds}


def add_layers(result: dict[str, Any], options: Options, report: Report) -> None:
    """Fills `layers`: the image graph's tensors against the FP32 graph's, as `layers.compare_layers` ranks them.

    Raises LavtError: the FP32 graph itself was given, or the graphs cannot be compared.
    """
    path, precision = image_graph(options.engine)
    if precision == "fp32":
        raise LavtError(NO_LAYERS)
    report("comparing layers")
    result["layers"] = call_apart(_layers, open_bundle(options.engine).file("segmenter"), path, options)


def _layers(reference: Path, other: Path, options: Options) -> list[dict[str, Any]]:
    from .layers import compare_layers

    rows = compare_layers(reference, other, _feeds(options), options.threads)
    # JSON has no infinity: None is a tensor that is not finite, or not zero where the original is.
    return [
        {**row, "relative_error": row["relative_error"] if isfinite(row["relative_error"]) else None} for row in rows
    ]


def _feeds(options: Options) -> dict[str, Any]:
    """Real inputs of the image graph: the options' image and sentence."""
    from ..peers.onnx import BundleSide

    (spec,) = prepare_sides(replace(options, against=(), device="cpu"))
    bundle = open_bundle(options.engine)
    return BundleSide(replace(spec, path=bundle.root, batch=batch_of(bundle, options.batch))).feeds


def check(options: Options, *, estimate: str | None, layers: bool) -> None:
    """Refuses before anything is measured what could not be told afterwards. Raises LavtError."""
    bundle = open_bundle(options.engine)
    for batch in (options.batch, *options.sweep_batch):
        batch_of(bundle, batch)
    if layers or estimate is not None:
        _, precision = image_graph(options.engine)
        if layers and precision == "fp32":
            raise LavtError(NO_LAYERS)
    if estimate is not None:
        from .devices import find_device

        find_device(estimate)
