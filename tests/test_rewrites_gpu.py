"""The layout for GPUs computes what the graph computed before, and leaves the names that calibration knows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lavt_edge.calibration.qdq import operands
from lavt_edge.export.macs import count_macs
from lavt_edge.export.rewrites.gpu import lay_out_for_gpu
from lavt_edge.export.rewrites.names import place_of
from lavt_edge.reference import LAVTConfig
from lavt_edge.tests.export_graphs import export_image, image_inputs, run_graph
from lavt_edge.tests.test_rewrites import small_lavt

# Grids that are divisible by the window and that are not, odd ones, and several PWAM heads.
CASES = [((64, 96), (1, 1, 1, 1), False), ((76, 52), (1, 2, 4, 8), True), ((112, 112), (1, 1, 1, 1), True)]


def random_feed(config: LAVTConfig, size: tuple[int, int], batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    feed = {name: tensor.numpy() for name, tensor in image_inputs(config, size, batch).items()}
    feed["image"] = generator.integers(0, 256, feed["image"].shape, dtype=np.uint8)
    feed["prompt"] = generator.standard_normal(feed["prompt"].shape).astype(np.float32)
    feed["word_mask"][0, 5:] = 0
    return feed


@pytest.mark.parametrize(("size", "heads", "dynamic"), CASES, ids=str)
def test_it_is_the_same_function(
    size: tuple[int, int], heads: tuple[int, int, int, int], dynamic: bool, tmp_path: Path
) -> None:
    lavt = small_lavt(heads).float()
    plain = export_image(lavt, tmp_path / "plain.onnx", size, dynamic_batch=dynamic)
    model = ir.load(plain)
    lay_out_for_gpu(model)
    laid_out = tmp_path / "gpu.onnx"
    ir.save(model, laid_out)
    onnx.checker.check_model(str(laid_out), full_check=True)

    feed = random_feed(lavt.config, size, 2)
    expected, found = run_graph(plain, feed), run_graph(laid_out, feed)
    difference = np.linalg.norm(found["logits"] - expected["logits"]) / np.linalg.norm(expected["logits"])
    assert difference < 2e-5
    # Every product with a weight is there under its name; the interpolation's matrices are gone.
    before, after = count_macs(plain), count_macs(laid_out)
    weighted = {re.sub(r"(taps)\d", r"\1", name) for name in before if place_of(name).kind == "weights"}
    assert weighted <= after.keys()
    assert all(place_of(name).kind == "weights" for name in weighted)
    assert not [name for name in after if "upsampled/" in name]
    assert [name for name in before if "upsampled/" in name]


def test_each_projection_reads_windows_and_each_gather_follows_it(tmp_path: Path) -> None:
    plain = export_image(small_lavt().float(), tmp_path / "plain.onnx", (76, 52))
    model = ir.load(plain)
    lay_out_for_gpu(model)
    projections = [node for node in model.graph if str(node.name).endswith(".attn.proj/MatMul")]
    assert projections
    for product in projections:
        ((bias, _),) = product.outputs[0].uses()
        ((gather, _),) = bias.outputs[0].uses()
        assert (bias.op_type, gather.op_type) == ("Add", "Gather")


def test_products_read_tensors_under_the_names_that_calibration_knows(tmp_path: Path) -> None:
    plain = export_image(small_lavt().float(), tmp_path / "plain.onnx", (76, 52))
    model = ir.load(plain)
    lay_out_for_gpu(model)
    known = {str(value.name) for node in ir.load(plain).graph for value in node.outputs}
    weighted = [str(node.name) for node in model.graph if place_of(str(node.name)).kind == "weights"]
    products = [name for name in weighted if name.endswith(("/MatMul", "/Conv"))]
    assert len(products) > 50
    assert set(operands(model, products)) <= known
