"""The first layer whose output diverges: a damaged scale is named, a sound graph is not accused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lavt_edge.benchmarks.parts.layers import compare_layers, first_divergence
from lavt_edge.benchmarks.parts.roofline import copy_graph
from lavt_edge.benchmarks.timing.result import LayerError
from lavt_edge.calibration.half import find_islands, to_half
from lavt_edge.calibration.observers import Session, add_range_outputs
from lavt_edge.calibration.products import candidates, find_products
from lavt_edge.calibration.qdq import quantize_products
from lavt_edge.calibration.smoothing import Pair, smooth
from lavt_edge.data.shapes import scene_at
from lavt_edge.errors import BackendError
from lavt_edge.export.edits import LOW, is_float
from lavt_edge.export.macs import count_macs
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.images import resize

Feeds = dict[str, Any]
PAIR = Pair("stage2.block1.norm2/LayerNormalization", "stage2.block1.mlp.fc1/MatMul")


@pytest.fixture(scope="module")
def feeds(demo_bundle: Path) -> Feeds:
    scene = scene_at(0, "val", 1)
    with Segmenter.load(demo_bundle, device="cpu") as segmenter:
        prompt = segmenter.encode(scene.sentences()[0].text)
        image = resize(scene.render(), *segmenter.input_size)
    return {"image": image[None], "prompt": prompt.prompt[None], "word_mask": prompt.word_mask[None]}


@pytest.fixture(scope="module")
def ranges(demo_bundle: Path, feeds: Feeds) -> dict[str, tuple[float, float]]:
    """The range of every tensor on this one input."""
    model = ir.load(demo_bundle / "segmenter.onnx")
    kept = [str(value.name) for node in model.graph for value in node.outputs if is_float(value)]
    names = add_range_outputs(model, kept)
    found = [float(one) for one in Session(model).run(feeds, names)]
    return {name: (found[2 * i], found[2 * i + 1]) for i, name in enumerate(kept)}


@pytest.fixture(scope="module")
def int8(demo_bundle: Path, ranges: dict[str, tuple[float, float]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 graph with FP16 for the rest and one smoothed pair, as `lavt-export quantize` makes them."""
    graph = demo_bundle / "segmenter.onnx"
    model = ir.load(graph)
    products = [one.name for one in candidates(find_products(model, count_macs(graph)), "auto")]
    factor = np.exp(np.random.default_rng(0).uniform(-0.5, 0.5, weight_rows(model)))
    smooth(model, {PAIR: factor})
    low, high = ranges[PAIR.norm]
    quantize_products(model, products, {**ranges, PAIR.norm: (low * 1.6, high * 1.6)}, half=True)
    to_half(model, find_islands(model, ranges))
    path = tmp_path_factory.mktemp("layers") / "int8.onnx"
    ir.save(model, path)
    return path


def weight_rows(model: ir.Model) -> int:
    node = next(node for node in model.graph if node.name == PAIR.product)
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    return int(node.inputs[1].const_value.shape[0])


def damaged(graph: Path, constant: str, factor: float) -> Path:
    """A copy of a graph with one constant multiplied."""
    model = ir.load(graph)
    value = model.graph.initializers[constant]
    assert value.const_value is not None
    array = value.const_value.numpy()
    value.const_value = ir.tensor((array * factor).astype(array.dtype), name=constant)
    path = graph.with_name("damaged.onnx")
    ir.save(model, path)
    return path


def first(rows: list[LayerError]) -> list[str]:
    return [row.node for row in rows if row.first]


@pytest.fixture(scope="module")
def half(demo_bundle: Path, ranges: dict[str, tuple[float, float]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ir.load(demo_bundle / "segmenter.onnx")
    to_half(model, find_islands(model, ranges))
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    ir.save(model, path)
    return path


class TestInt8:
    def test_a_sound_graph_has_no_first_layer(self, demo_bundle: Path, int8: Path, feeds: Feeds) -> None:
        rows = compare_layers(demo_bundle / "segmenter.onnx", int8, feeds, threads=2)
        assert first(rows) == []
        errors = [row.relative_error for row in rows]
        assert errors == sorted(errors, reverse=True)
        assert len(rows) > 300
        assert 0.001 < float(np.median(errors)) < 0.1
        # What smoothing scaled on purpose is no difference; the product behind it is compared again.
        compared = {row.tensor for row in rows}
        assert PAIR.norm not in compared
        assert {PAIR.product, "logits"} <= compared

    @pytest.mark.parametrize(
        ("scale", "factor", "node"),
        [
            ("stage2.block0.mlp/Gelu.scale.fp16", 0.1, "stage2.block0.mlp.fc2/MatMul"),
            ("stage1.block1.attn.proj.weight.scale.fp16", 4.0, "stage1.block1.attn.proj/MatMul"),
            ("decoder.level0.conv.weight.scale.fp16", 0.5, "decoder.level0.conv/Conv"),
            (f"{PAIR.product}.smoothed1.scale.fp16", 3.0, PAIR.product),
        ],
    )
    def test_a_damaged_scale_names_its_product(
        self, demo_bundle: Path, int8: Path, feeds: Feeds, scale: str, factor: float, node: str
    ) -> None:
        rows = compare_layers(demo_bundle / "segmenter.onnx", damaged(int8, scale, factor), feeds, threads=2)
        assert first(rows) == [node]


class TestHalf:
    def test_a_sound_graph_is_within_rounding(self, demo_bundle: Path, half: Path, feeds: Feeds) -> None:
        rows = compare_layers(demo_bundle / "segmenter.onnx", half, feeds, threads=2)
        assert first(rows) == []
        assert 1e-5 < float(np.median([row.relative_error for row in rows])) < 2e-3

    def test_in_bfloat16_rounding_is_eight_times_as_coarse(
        self, demo_bundle: Path, ranges: dict[str, tuple[float, float]], feeds: Feeds, tmp_path: Path
    ) -> None:
        model = ir.load(demo_bundle / "segmenter.onnx")
        to_half(model, find_islands(model, ranges, LOW["bf16"]), LOW["bf16"])
        ir.save(model, tmp_path / "bf16.onnx")
        rows = compare_layers(demo_bundle / "segmenter.onnx", tmp_path / "bf16.onnx", feeds, threads=2)
        assert first(rows) == []
        assert 2e-3 < float(np.median([row.relative_error for row in rows])) < 1.6e-2

    def test_an_overflow_is_found_where_it_happens(self, demo_bundle: Path, half: Path, feeds: Feeds) -> None:
        # In FP32, as ONNX Runtime on a CPU would compute it, nothing overflows here.
        large = damaged(half, "stage1.pwam.mix.bias.fp16", 0.0)
        model = ir.load(large)
        bias = model.graph.initializers["stage1.pwam.mix.bias.fp16"]
        assert bias.shape is not None
        bias.const_value = ir.tensor(np.full([int(str(one)) for one in bias.shape], 65504, np.float16), name=bias.name)
        weight = model.graph.initializers["stage1.pwam.mix.weight.fp16"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(np.full(weight.const_value.shape.numpy(), 6e4, np.float16), name=weight.name)
        ir.save(model, large)
        rows = compare_layers(demo_bundle / "segmenter.onnx", large, feeds, threads=2)
        assert first(rows) == ["stage1.pwam.mix/MatMul"]
        assert rows[0].relative_error is None  # not finite


def test_first_divergence_is_a_jump_beyond_what_came_before() -> None:
    sources: dict[str, set[str]] = {"c": {"a"}}
    assert first_divergence({"a": 0.02, "b": 0.05, "c": 0.06}, sources, 0.03) is None
    assert (
        first_divergence({"a": 0.02, "b": 0.05, "c": 0.08}, sources, 0.03) == "c"
    )  # a product, worse than its operand
    assert first_divergence({"a": 0.02, "b": 0.05, "d": 0.08}, sources, 0.03) is None  # no product
    assert first_divergence({"a": 0.02, "d": 0.5, "c": 9.0}, sources, 0.03) == "d"
    assert first_divergence({"c": 0.08}, {"c": set()}, 0.03) == "c"


def test_what_cannot_be_compared_is_refused(demo_bundle: Path, feeds: Feeds, tmp_path: Path) -> None:
    onnx.save(copy_graph(5), tmp_path / "copy.onnx")
    with pytest.raises(BackendError, match="share no named tensor"):
        compare_layers(demo_bundle / "segmenter.onnx", tmp_path / "copy.onnx", feeds)
    with pytest.raises(BackendError, match="could not be compared"):
        compare_layers(demo_bundle / "segmenter.onnx", demo_bundle / "segmenter.onnx", {})
