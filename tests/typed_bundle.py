"""Bundles with FP16 and INT8 graphs for the engine tests: typed and quantised as by the command, but not calibrated."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
from lavt_edge.calibration.half import find_islands, to_half
from lavt_edge.calibration.products import candidates, image_products
from lavt_edge.calibration.qdq import quantize_products
from lavt_edge.export.edits import LOW, load_graph
from lavt_edge.export.rewrites.gpu import lay_out_for_gpu
from lavt_edge.runtime.bundle import file_entry, open_bundle
from lavt_edge.runtime.update import update_bundle

ROLES = ("text_encoder", "segmenter")


def copy_bundle(source: Path, target: Path) -> Path:
    """A copy whose files are links to the same data: nothing writes into a bundle's file, files are replaced."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def add_typed_graphs(root: Path) -> None:
    """Adds graphs in 16 bits, and an INT8 image graph with every product that may be quantised; scales are invented."""
    bundle = open_bundle(root)
    models = {}
    for role in ROLES:
        for precision in LOW:
            models[f"{role}.{precision}.onnx"] = load_graph(bundle, role)
            if role == "segmenter":
                lay_out_for_gpu(models[f"{role}.{precision}.onnx"])
    image = load_graph(bundle, "segmenter")
    lay_out_for_gpu(image)
    products = candidates(image_products(bundle, image), "auto")
    ranges = {str(value.name): (-3.0, 3.0) for node in image.graph for value in node.inputs if value is not None}
    quantize_products(image, [one.name for one in products], ranges, half=True)
    models["segmenter.int8.onnx"] = image
    with update_bundle(root) as change:
        entries = {}
        for name, model in models.items():
            role, precision, _ = name.split(".")
            low = LOW.get(precision, LOW["fp16"])
            to_half(model, find_islands(model, {}, low), low)
            ir.save(model, change.new(name))
            entries[name] = file_entry(change.path(name), role, precision)
        change.commit(entries)


def count_nodes(path: Path) -> Counter[str]:
    """How many nodes of each type a graph has."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
