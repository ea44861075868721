"""What is asked beside time: where it goes, what bounds it, a device's floor, and layers that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import LavtError
from ..runtime.bundle import open_bundle
from .measure import Options, prepare_sides
from .peers import batch_of
from .peers_process import call_apart

Report = Callable[[str], None]
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
    """Fills `parts`, [{"side", "precision", "parts"}], and `roofline`, {"ceilings", "parts"}, of the image graph on the
    CPU: rows of `parts.part_times` and `roofline.roofline`. Raises LavtError."""
    path, precision = image_graph(options.engine)
    report("where the time goes")
    rows, roof, ceilings = call_apart(_parts, path, precision, options)
    result["parts"] = [{"side": result["sides"][0]["name"], "precision": precision, "parts": rows}]
    result["roofline"] = {"ceilings": ceilings, "parts": roof}


def _parts(
    path: Path, precision: str, options: Options
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    from .parts import part_times
    from .roofline import measure_ceilings, roofline

    rows = part_times(path, _feeds(options), options.threads)
    found = {one for row in rows for one, count in row["macs_by_precision"].items() if count}
    ceilings = measure_ceilings(sorted(found), options.threads)
    made = ceilings.to_dict()
    by_precision = made["macs_per_second"]
    most = max(found, key=lambda one: sum(row["macs_by_precision"].get(one, 0) for row in rows))
    made.update(macs_per_second=by_precision[most], by_precision=by_precision, precision=precision)
    return rows, roofline(rows, ceilings), made


def add_estimate(result: dict[str, Any], options: Options, device: str, report: Report) -> None:
    """Fills `estimate`: the floor of the image graph on a device of `devices.DEVICES`. Raises LavtError."""
    path, precision = image_graph(options.engine)
    report(f"floor on {device}")
    result["estimate"] = call_apart(_estimate, path, precision, device)


def _estimate(path: Path, precision: str, device: str) -> dict[str, Any]:
    from .devices import estimate
    from .part_costs import cost_rows

    known = precision if precision in ("fp32", "fp16") else "int8"
    return estimate(cost_rows(path), device, known).to_dict()


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

    return compare_layers(reference, other, _feeds(options), options.threads)


def _feeds(options: Options) -> dict[str, Any]:
    """Real inputs of the image graph: the options' image and sentence."""
    from .peers_onnx import BundleSide

    (spec,) = prepare_sides(replace(options, against=(), device="cpu"))
    folder = options.engine if options.engine.is_dir() else options.engine.parent
    batch = batch_of(open_bundle(folder), options.batch)
    return BundleSide(replace(spec, path=folder, batch=batch)).feeds


def check(options: Options, *, estimate: str | None, layers: bool, parts: bool) -> None:
    """Refuses before anything is measured what could not be told afterwards. Raises LavtError."""
    if layers or parts or estimate is not None:
        _, precision = image_graph(options.engine)
        if layers and precision == "fp32":
            raise LavtError(NO_LAYERS)
    if estimate is not None:
        from .devices import find_device

        find_device(estimate)
