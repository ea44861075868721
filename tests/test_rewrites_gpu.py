"""The layout for GPUs computes what the graph computed before, and leaves the names that calibration knows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lavt_edge.benchmarks.parts.layers import compare_layers
from lavt_edge.calibration.half import emulate_half, find_islands, to_half
from lavt_edge.calibration.products import find_products
from lavt_edge.calibration.qdq import operands
from lavt_edge.export.edits import array_of, is_float, node_names
from lavt_edge.export.macs import count_macs
from lavt_edge.export.rewrites.gpu import is_laid_out, known_ranges, lay_out_for_gpu, without_bias
from lavt_edge.export.rewrites.names import place_of
from lavt_edge.reference import LAVTConfig
from lavt_edge.reference.config import SWIN
from lavt_edge.tests.export_graphs import export_image, image_inputs, run_graph
from lavt_edge.tests.test_rewrites import small_lavt

# Grids that are divisible by the window and that are not, odd ones, and several PWAM heads.
HEADS = (1, 2, 4, 8)
CASES = [((64, 96), (1, 1, 1, 1), 2), ((76, 52), HEADS, None), ((112, 112), (1, 1, 1, 1), None)]
# For one image windows may be gathered ahead of norms.
CASES += [((76, 52), HEADS, 1), ((112, 112), (1, 1, 1, 1), 1), ((110, 110), HEADS, 1)]
# Windows that hold padding are packed: in stages 0 and 1 grids of 30x30 and 15x15.
CASES += [((120, 120), HEADS, 1), ((120, 120), HEADS, None)]


def backbone(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    """The demo model's backbone has one head in stage 0, which keeps some of the rewrite from it."""
    monkeypatch.setitem(SWIN, "demo", replace(SWIN["demo"], num_heads=(heads, 3, 6, 12)))


@pytest.fixture(autouse=True)
def two_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone(monkeypatch, 2)


Export = Callable[..., tuple[LAVTConfig, Path]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A small model's configuration and image graph, exported once; a batch of None is a dynamic one."""
    folder = tmp_path_factory.mktemp("plain")

    @cache
    def exported(
        size: tuple[int, int], heads: tuple[int, int, int, int], batch: int | None, _backbone: object
    ) -> tuple[LAVTConfig, Path]:
        lavt, path = small_lavt(heads).float(), folder / f"{len(list(folder.iterdir()))}.onnx"
        export_image(lavt, path, size, batch=batch or 2, dynamic_batch=batch is None)
        return lavt.config, path

    return lambda size, heads=HEADS, batch=1: exported(size, heads, batch, SWIN["demo"])


def random_feed(config: LAVTConfig, size: tuple[int, int], batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    feed = {name: tensor.numpy() for name, tensor in image_inputs(config, size, batch).items()}
    feed["image"] = generator.integers(0, 256, feed["image"].shape, dtype=np.uint8)
    feed["prompt"] = generator.standard_normal(feed["prompt"].shape).astype(np.float32)
    feed["word_mask"][0, 5:] = 0
    return feed


@pytest.mark.parametrize(("size", "heads", "batch"), CASES, ids=str)
def test_it_is_the_same_function(
    size: tuple[int, int], heads: tuple[int, int, int, int], batch: int | None, tmp_path: Path, export: Export
) -> None:
    config, plain = export(size, heads, batch)
    model = ir.load(plain)
    lay_out_for_gpu(model)
    laid_out = tmp_path / "gpu.onnx"
    ir.save(model, laid_out)
    onnx.checker.check_model(str(laid_out), full_check=True)

    feed = random_feed(config, size, batch or 2)
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


@pytest.mark.parametrize("heads", [1, 2])
def test_gathers_lie_outside_of_projections_where_windows_hold_little_padding(
    heads: int, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 1.5 slots a pixel: 294 for 247 pixels and 98 for 70 in stages 0 and 1, 49 for 20 and for 6 behind them."""
    backbone(monkeypatch, heads)
    _, plain = export((76, 52))
    model = ir.load(plain)
    lay_out_for_gpu(model)
    nodes = {str(node.name): node for node in model.graph}
    projections = [name for name in nodes if name.endswith(".attn.proj/MatMul")]
    assert len(projections) == 12
    for name in projections:
        ((bias, _),) = nodes[name].outputs[0].uses()
        assert [reader.op_type for reader, _ in bias.outputs[0].uses()] == ["Gather"]
        block = name.removesuffix(".attn.proj/MatMul")
        in_slots = name.startswith("stage1.") or (heads > 1 and name.startswith("stage0."))
        assert (f"{block}.attn.qkv/MatMul_3" in nodes) == in_slots
        assert (f"{block}.attn.qkv/Add" in nodes) != in_slots
        source = nodes[f"{block}.norm1/LayerNormalization"].inputs[0].producer()
        assert (source.op_type == "Gather") == in_slots


def test_a_first_block_without_padding_has_all_its_rows_in_slots(export: Export) -> None:
    """Grids of 28x28 and 14x14, windows of 7: what is before the block puts its rows out so, and they stay so."""
    _, path = export((110, 110))
    plain, model = ir.load(path), ir.load(path)
    lay_out_for_gpu(model)
    before, nodes = node_names(plain), node_names(model)
    assert nodes["patch_embed.norm/LayerNormalization"].inputs[0].producer().op_type == "Gather"
    rows, former = (array_of(graph["stage0.merge/Gather"].inputs[1]) for graph in (nodes, before))
    assert sorted(rows) == sorted(former)
    assert (rows != former).any()
    for stage, source in enumerate(("patch_embed.norm/LayerNormalization", "stage0.merge.reduction/MatMul")):
        block = f"stage{stage}.block0"
        assert nodes[f"{block}.norm1/LayerNormalization"].inputs[0].producer() is nodes[source]
        assert source in [value.producer().name for value in nodes[f"{block}/Add"].inputs]
        result = nodes[f"{block}/Add_2"]
        assert [value.producer().op_type for value in result.inputs] == ["Add", "Add"]
        # One gather to the slots of the next block, one to the order of pixels.
        readers = [reader for reader, _ in result.outputs[0].uses()]
        assert [reader.op_type for reader in readers] == ["Gather", "Gather"]
        (after,) = (reader for gather in readers for reader, _ in gather.outputs[0].uses() if reader.op_type != "Add")
        assert after.name == f"stage{stage}.block1.norm1/LayerNormalization"


@pytest.mark.parametrize("batch", [1, None])
def test_windows_that_hold_padding_are_packed_into_fewer(batch: int | None, export: Export) -> None:
    _, path = export((120, 120), batch=batch)
    model = ir.load(path)
    lay_out_for_gpu(model)
    nodes = node_names(model)
    shapes = [list(nodes[f"stage1.block{i}.attn/MatMul"].outputs[0].shape)[1:] for i in range(2)]
    assert shapes == [[6, 3, 51, 51], [7, 3, 55, 55]]  # of 9 windows with 49 slots
    # Blocks that are shifted alike share their mask.
    for stage in (1, 2):
        masks = [nodes[f"stage{stage}.block{i}.attn/Softmax"].inputs[0].producer().inputs[1] for i in range(4)]
        assert masks[0] is masks[2]
        assert masks[1] is masks[3]
        assert masks[0] is not masks[1]


def test_layers_are_compared_row_by_row(export: Export, tmp_path: Path) -> None:
    """Rows of a first block are in the order of slots: the FP32 graph that a typed one is compared with has them so."""
    config, path = export((110, 110))
    model = ir.load(path)
    lay_out_for_gpu(model)
    assert is_laid_out(model)
    assert not is_laid_out(ir.load(path))
    to_half(model, find_islands(model, {}))
    ir.save(model, tmp_path / "half.onnx")
    rows = {row.node: row for row in compare_layers(path, tmp_path / "half.onnx", random_feed(config, (110, 110), 1))}
    for layer in ("patch_embed.norm/LayerNormalization", "stage0.block0/Add_2", "stage1.block0.attn/MatMul_2"):
        assert 0 < (rows[layer].relative_error or 1) < 0.01
    assert not [row.node for row in rows.values() if row.first]


def test_a_large_image_can_be_laid_out(export: Export) -> None:
    """Its rows of heads are more than 65,536, from where on a constant's reshape used to stay a node."""
    _, path = export((832, 704))
    model = ir.load(path)
    lay_out_for_gpu(model)
    assert max(node.outputs[0].shape[1] for node in ir.load(path).graph if node.op_type == "Gather") > 1 << 16
    assert all(node.inputs[1].const_value is not None for node in model.graph if node.op_type == "Gather")


@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_a_norm_carries_the_bias_of_the_product_behind_it(offset: float, size: float) -> None:
    generator = np.random.default_rng(0)
    factor, shift, weight, bias = (generator.normal(size=shape) for shape in (12, 12, (12, 5), 5))
    factor[:3] = (0, 1e-9, -3)  # a channel that the norm leaves out, or all but
    factor *= size
    shift += offset * np.sign(factor)
    x = generator.normal(size=(40, 12)) * 3 + 1
    normed = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    scale, moved, rows = without_bias(factor, shift, weight, bias)
    expected = (normed * factor + shift) @ weight + bias
    np.testing.assert_allclose((normed * scale + moved) @ rows, expected, atol=1e-10)
    assert np.abs(moved - shift).max() <= np.abs(scale).mean() * 1.01


def test_a_channel_that_a_norm_leaves_out_makes_no_weight_large() -> None:
    """INT8 has one scale for all weights."""
    generator = np.random.default_rng(0)
    factor, weight, bias = (
        generator.uniform(0.3, 1, 128),
        generator.normal(0, 0.05, (128, 384)),
        generator.normal(size=384),
    )
    factor[7] = 1e-4
    _, _, rows = without_bias(factor, np.zeros(128), weight, bias)
    assert np.abs(rows).max() < 2.5 * np.abs(weight).max()


@pytest.mark.parametrize("factor", [1.0, 3e3, 1e5])
def test_scores_that_are_far_apart_stay_right_in_16_bits(factor: float, export: Export) -> None:
    """Up to 14,000 and past FP16's largest number: more than the mask takes."""
    size, block = (120, 120), "stage1.block0.attn"
    config, path = export(size)
    plain = ir.load(path)
    weight = plain.graph.initializers[f"{block}.qkv.weight"]
    scale = np.ones(144, np.float32)
    scale[:96] = np.sqrt(factor)  # queries and keys
    weight.const_value = ir.tensor(array_of(weight) * scale, name=weight.name)
    names = [str(value.name) for node in plain.graph for value in node.outputs if is_float(value)]
    model, feed = plain.clone(), random_feed(config, size, 1)
    truth = run_graph(ir.to_proto(plain), feed)["logits"]
    ranges = {name: (float(a.min()), float(a.max())) for name, a in outputs(plain, names, feed).items()}
    lay_out_for_gpu(model, ranges)
    packed = list(node_names(model)[f"{block}/MatMul"].outputs[0].shape)[1] == 6
    assert packed == (factor == 1)
    to_half(model, find_islands(model, known_ranges(model, ranges)))
    emulate_half(model)
    found = run_graph(ir.to_proto(model), feed)["logits"]
    assert np.linalg.norm(found - truth) < 0.05 * np.linalg.norm(truth)


@pytest.mark.parametrize("size", [(76, 52), (120, 120)], ids=str)
def test_known_ranges_bound_what_is_new_and_what_it_was(size: tuple[int, int], export: Export) -> None:
    config, path = export(size)
    plain, model = ir.load(path), ir.load(path)
    lay_out_for_gpu(model)
    nodes = node_names(model)
    before, after = (
        [str(value.name) for node in graph for value in node.outputs if is_float(value)]
        for graph in (plain.graph, model.graph)
    )
    feed = random_feed(config, size, 1)
    ranges = {name: (float(values.min()), float(values.max())) for name, values in outputs(plain, before, feed).items()}
    known = known_ranges(model, ranges)
    products = set(operands(model, [one.name for one in find_products(model, dict.fromkeys(node_names(model), 1))]))
    new = {f"decoder.level{i}.upsampled.taps/MatMul" for i in range(3)}
    new |= {name for name in after if re.search(r"\.attn\.qkv/MatMul(_\d)?$", name)}
    assert len(new) == {76: 3 + 3 * 6 + 6, 120: 3 + 3 * 4 + 8}[size[0]]
    assert known.keys() >= new | products
    assert known.keys() >= {str(node.inputs[0].name) for name, node in nodes.items() if name.endswith("attn/Softmax")}
    found = outputs(model, [name for name in after if name in known], feed)
    for name, values in found.items():
        low, high = known[name]
        scores = re.match(r"(.*\.attn)/(MatMul|Add|Add_2|Softmax)$", name)
        if scores:  # what padding weighs is not bounded, as its values are zero, nor what the mask takes the weight of
            queries, keys = (
                found[str(nodes[f"{scores[1]}/{product}"].inputs[i].name)].any(axis=-1)
                for i, product in enumerate(("MatMul", "MatMul_2"))
            )
            values = values[queries[..., None] & keys[..., None, :] & (found[f"{scores[1]}/Softmax"] > 0)]
        projected = re.match(r"(.*\.attn)(/Reshape_6|\.proj/(MatMul|Add))$", name)
        for reader, _ in nodes[f"{projected[1]}.proj/Add"].outputs[0].uses() if projected else ():
            if reader.op_type == "Gather":  # what padding attends to is left out
                values = values[:, array_of(reader.inputs[1])]
        slack = 1e-4 * (high - low)
        assert low - slack <= values.min() <= values.max() <= high + slack, name
        if "norm1" in name or name.endswith("taps/MatMul"):  # a range that is too wide costs digits in INT8
            assert high - low < 1.6 * (values.max() - values.min()), name


def outputs(model: ir.Model, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in names)
    found = run_graph(ir.to_proto(model), feed)
    return {name: found[name] for name in names}


def test_products_read_tensors_under_the_names_that_calibration_knows(export: Export) -> None:
    _, plain = export((76, 52))
    model = ir.load(plain)
    lay_out_for_gpu(model)
    known = {str(value.name) for node in ir.load(plain).graph for value in node.outputs}
    products = [one.name for one in find_products(model, dict.fromkeys(node_names(model), 1))]
    assert len(products) > 70
    assert set(operands(model, products)) <= known
