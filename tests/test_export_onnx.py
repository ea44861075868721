"""The exported graphs: static, clean, named, cheap, and whole or not at all."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import pytest
import torch
from lavt_edge.calibration.quantize import quantize_bundle
from lavt_edge.errors import ExportError
from lavt_edge.export import ExportOptions, bundle, export_bundle
from lavt_edge.export.edits import save_graph
from lavt_edge.export.macs import count_macs
from lavt_edge.export.rewrites.image_model import ImageModel
from lavt_edge.export.rewrites.text_model import TextModel
from lavt_edge.export.rewrites.words import prompt_channels
from lavt_edge.reference import LAVT, LAVTConfig, TextConfig
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import file_entry, sha256_of
from lavt_edge.runtime.manifest import Manifest
from lavt_edge.tests.base_export import CommandRun
from lavt_edge.tests.export_graphs import CHECKPOINT, export_image, image_inputs, run_graph
from lavt_edge.tests.golden import NO_TEXT, golden_lavt
from polygraphy.backend.onnx import fold_constants
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = LAVTConfig(
    swin="demo",
    window=7,
    fusion_heads=(1, 2, 1, 4),
    text=TextConfig(hidden_size=24, num_layers=2, num_heads=2, intermediate_size=40, max_positions=20),
)
SIZE = (75, 102)  # pads patches, windows and merges
STEPS = ("exporting the text graph", "exporting the image graph", "checking against PyTorch", "writing the manifest")


@pytest.fixture(scope="module")
def small_model() -> LAVT:
    return golden_lavt(SMALL)


# the command on an official file for base (the fixture `base` is in conftest.py)


def test_base_takes_less_than_6_gigabytes(base: CommandRun) -> None:
    assert 1e9 < base.peak < 6e9


def test_base_shows_its_progress_on_a_terminal(base: CommandRun) -> None:
    for step in ("reading official.pth", "exporting the image graph", "checking against PyTorch, case"):
        assert step in base.shown


def test_base_bundle_says_what_was_measured(base: CommandRun) -> None:
    manifest = Manifest.parse_json((base.bundle / "lavt.json").read_text())
    beside = ("macs", "opset", "winograd")
    assert LAVTConfig.from_dict({k: v for k, v in manifest.model.items() if k not in beside}) == LAVTConfig()
    assert manifest.model["winograd"] is False
    assert manifest.checkpoint.name == "official.pth"
    assert manifest.parity["segmenter"]["relative_error"] <= 1e-3
    assert manifest.parity["segmenter"]["pixel_agreement"] >= 0.9995
    assert {name: sha256_of(base.bundle / name) for name in manifest.files} == {
        name: entry.sha256 for name, entry in manifest.files.items()
    }


# the cost


def published_macs(config: LAVTConfig, size: tuple[int, int]) -> float:
    """MACs of the published model's image part, counted by torch while it runs without data."""
    with torch.device("meta"):
        model = LAVT(config).eval()
        inputs = torch.zeros(1, 3, *size), torch.zeros(1, config.text.hidden_size, 20), torch.ones(1, 20, 1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.segment(*inputs)
    return counter.get_total_flops() / 2


def test_base_needs_155_instead_of_197_gmacs(base: CommandRun) -> None:
    published = published_macs(LAVTConfig(swin="base", window=12, text=NO_TEXT), (480, 480))
    image = sum(count_macs(base.bundle / "segmenter.onnx").values())
    text = sum(count_macs(base.bundle / "text_encoder.onnx").values())
    print(f"\nMACs: published {published / 1e9:.2f} G, image graph {image / 1e9:.2f} G, text graph {text / 1e9:.2f} G")
    assert published == pytest.approx(197.29e9, rel=1e-3)
    assert image <= 155.5e9
    manifest = Manifest.parse_json((base.bundle / "lavt.json").read_text())
    assert manifest.model["macs"] == {"segmenter": image, "text_encoder": text}


def test_counted_macs_are_those_that_torch_counts(small_model: LAVT, small_bundle: Path) -> None:
    image_model = ImageModel(small_model.float(), *SIZE)
    with FlopCounterMode(display=False) as counter:
        image_model(*image_inputs(SMALL, SIZE, 1).values())
    assert sum(count_macs(small_bundle / "segmenter.onnx").values()) == counter.get_total_flops() / 2


def test_macs_of_each_kind_of_product() -> None:
    def tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["conv"], "conv", strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        onnx.helper.make_node("MatMul", ["a", "b"], ["matmul"], "matmul"),
        onnx.helper.make_node("Gemm", ["c", "d"], ["gemm"], "gemm", transA=1),
        onnx.helper.make_node("Relu", ["matmul"], ["relu"], "relu"),
    ]
    inputs = [tensor("x", "batch", 4, 9, 7), tensor("w", 6, 2, 3, 3), tensor("a", 5, 2, 3), tensor("b", 3, 4)]
    inputs += [tensor("c", 8, 2), tensor("d", 8, 3)]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in ("conv", "relu", "gemm")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "products", inputs, outputs))
    assert count_macs(model) == {"conv": 6 * 5 * 4 * 2 * 9, "matmul": 5 * 2 * 4 * 3, "gemm": 2 * 3 * 8}


# the shape of the graphs

GRAPHS = ["small text_encoder", "small segmenter", "base text_encoder", "base segmenter"]


@pytest.fixture(scope="module", params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> Path:
    """An exported graph: of a small model with a free batch and padding everywhere, or of base."""
    size, name = request.param.split()
    bundle = request.getfixturevalue("base").bundle if size == "base" else request.getfixturevalue("small_bundle")
    return Path(bundle / f"{name}.onnx")


def test_graph_is_static_but_for_the_batch(graph: Path) -> None:
    model = onnx.load(graph)
    used = {node.op_type for node in model.graph.node}
    assert not used & {"ScatterND", "ScatterElements", "NonZero", "Loop", "If", "Scan", "Shape", "Size", "Expand"}
    assert not used & {"Range", "ConstantOfShape", "Identity", "Resize", "Slice", "Where"}
    assert not model.functions
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Reshape":
            assert node.input[1] in constants, node.name
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    for value in [*inferred.input, *inferred.output, *inferred.value_info]:
        dims = value.type.tensor_type.shape.dim
        free = [i for i, dim in enumerate(dims) if not dim.HasField("dim_value")]
        assert free in ([], [0]), value.name


def test_nodes_carry_the_place_of_their_module(graph: Path, request: pytest.FixtureRequest) -> None:
    nodes = onnx.load(graph, load_external_data=False).graph.node
    assert max(Counter(node.name for node in nodes).values()) == 1
    small = request.getfixturevalue("small_model")
    if "small" in request.node.callspec.id:
        module: nn.Module = TextModel(small) if graph.stem == "text_encoder" else ImageModel(small, *SIZE)
        places = {name for name, _ in module.named_modules() if name}
        for node in nodes:
            place, op = node.name.split("/")
            assert op.partition("_")[0] == node.op_type
            assert place in places | {"graph"}
    elif graph.stem == "segmenter":
        assert {"stage2.block5.attn.qkv/MatMul", "stage2.block17.mlp.fc2/MatMul"} <= {node.name for node in nodes}
    outside = [node.op_type for node in nodes if node.name.startswith("graph/")]
    # The text graph's word bias, made once for all layers, and the parting of the prompt among the stages.
    assert outside == (["Cast", "Sub", "Mul", "Unsqueeze"] if graph.stem == "text_encoder" else ["Split"])


def test_no_optimizer_finds_a_node_to_remove(graph: Path) -> None:
    model = onnx.load(graph)
    before = Counter(node.op_type for node in model.graph.node)

    def is_unchanged(nodes: Any) -> bool:
        return Counter(node.op_type for node in nodes) == before

    graph_ir = ir.from_proto(model)
    for remove in (passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass()):
        remove(graph_ir)
        assert is_unchanged(graph_ir.graph), remove
    onnxscript.optimizer.optimize_ir(graph_ir)
    assert is_unchanged(graph_ir.graph)
    assert is_unchanged(fold_constants(model).graph.node)


def test_bytes_are_made_of_floats_alone(small_bundle: Path) -> None:
    """TensorRT casts UINT8 from and to floats; from booleans only in some versions."""
    made = {}
    for node in ir.load(small_bundle / "segmenter.onnx").graph:
        if node.op_type == "Cast" and ir.DataType.UINT8 in (node.inputs[0].dtype, node.outputs[0].dtype):
            made[node.name] = (node.inputs[0].dtype, node.outputs[0].dtype)
    assert made == {
        "patch_embed/Cast": (ir.DataType.UINT8, ir.DataType.FLOAT),
        "decoder/Cast_2": (ir.DataType.FLOAT, ir.DataType.UINT8),
    }


@pytest.mark.parametrize("opset", [18, 19])
def test_older_opsets_compute_the_same(small_model: LAVT, small_bundle: Path, tmp_path: Path, opset: int) -> None:
    path = export_image(small_model.float(), tmp_path / "segmenter.onnx", SIZE, dynamic_batch=True, opset=opset)
    assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [opset]
    rng = np.random.default_rng(0)
    feed = {
        "image": rng.integers(0, 256, (3, *SIZE, 3), dtype=np.uint8),
        "prompt": rng.standard_normal((3, 20, prompt_channels(SMALL)), dtype=np.float32),
        "word_mask": np.ones((3, 20), np.float32),
    }
    found, expected = run_graph(path, feed), run_graph(small_bundle / "segmenter.onnx", feed)
    difference = np.linalg.norm(found["logits"] - expected["logits"]) / np.linalg.norm(expected["logits"])
    assert difference < 2e-5


def test_winograd_products_compute_the_same(small_model: LAVT, small_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "winograd"
    export_small(folder, small_model.float(), winograd=True)
    bundle = folder / "bundle"
    manifest = Manifest.parse_json((bundle / "lavt.json").read_text())
    assert manifest.model["winograd"] is True
    assert manifest.parity["segmenter"]["relative_error"] < 2e-5
    kernels = [node for node in onnx.load(bundle / "segmenter.onnx").graph.node if node.op_type == "Conv"]
    assert {node.name.split("/")[0] for node in kernels} == {f"decoder.level{i}.skip" for i in range(3)} | {
        "decoder.classifier"
    }
    with pytest.raises(ExportError, match=r"exported with --winograd, for CPUs in FP32: export it again without"):
        quantize_bundle(bundle, "fp16")


def test_large_weights_lie_beside_the_graph_and_run(small_bundle: Path, tmp_path: Path) -> None:
    inside = small_bundle / "text_encoder.onnx"
    graph_path, data_path = save_graph(ir.load(inside), tmp_path / "text_encoder.onnx", external_bytes=1000)
    assert data_path.name == "text_encoder.onnx.data"
    assert graph_path.stat().st_size < 100_000 < data_path.stat().st_size
    ids = np.arange(40, dtype=np.int64).reshape(2, 20)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    assert np.array_equal(run_graph(graph_path, feed)["prompt"], run_graph(inside, feed)["prompt"])
    assert count_macs(graph_path) == count_macs(inside)


# whole or not at all


def export_small(folder: Path, model: LAVT, **options: Any) -> list[str]:
    """Exports to `folder`/bundle; the steps that were reported."""
    steps: list[str] = []
    settings = ExportOptions(**{"size": SIZE, "batch": None, **options})
    export_bundle(model, folder / "bundle", CHECKPOINT, options=settings, report=steps.append)
    return steps


KILLED = """
import sys
from pathlib import Path
from lavt_edge.export import ExportOptions, export_bundle
from lavt_edge.tests import test_export_onnx as tests

export_bundle(
    tests.golden_lavt(tests.SMALL), Path(sys.argv[1]), tests.CHECKPOINT, options=ExportOptions(tests.SIZE, batch=None),
    report=lambda step: print(step, flush=True),
)
"""


def kill_at(step: str, bundle: Path) -> None:
    """Starts an export and kills it when it reports `step`."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(bundle)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as lines:
        assert any(line.startswith(step) for line in lines), f"{step} was never reported"
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def small_bundle(small_model: LAVT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole export of the small model, after others to the same place were killed."""
    folder = tmp_path_factory.mktemp("small")
    for step in (STEPS[1], STEPS[3]):
        kill_at(step, folder / "bundle")
        assert not (folder / "bundle").exists()
    assert any(folder.iterdir())  # what the killed left
    steps = export_small(folder, small_model)
    assert [step for step in STEPS if any(said.startswith(step) for said in steps)] == list(STEPS)
    return folder / "bundle"


def test_a_killed_export_leaves_no_bundle_and_the_next_clears_up(small_bundle: Path) -> None:
    assert [path.name for path in small_bundle.parent.iterdir()] == ["bundle"]
    with Segmenter.load(small_bundle, device="cpu") as segmenter:
        assert segmenter.segment(np.zeros((50, 60, 3), np.uint8), "the red circle").mask.shape == (50, 60)


def test_an_export_over_tolerance_leaves_nothing(
    small_model: LAVT, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(_module: nn.Module, _inputs: object, _outputs: object, path: Path, _options: object) -> dict[str, Any]:
        return {path.name: file_entry(shutil.copyfile(small_bundle / path.name, path), path.stem, "fp32")}

    monkeypatch.setattr(bundle, "_export", exported)  # the same graphs again
    with pytest.raises(ExportError, match=r"differ from PyTorch by .* \(relative, tolerance 1e-12\)") as caught:
        export_small(tmp_path, small_model.float(), tolerance=1e-12)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_an_existing_output_is_refused_before_any_work(small_model: LAVT, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("mine")
    steps: list[str] = []
    with pytest.raises(ExportError, match="bundle exists already"):
        export_bundle(small_model, tmp_path / "bundle", CHECKPOINT, report=steps.append)
    assert steps == []
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "mine"]


def test_an_output_that_cannot_be_written_is_one_line(small_model: LAVT, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written") as caught:
        export_small(tmp_path / "file", small_model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (31, 480)}, "image size 31x480: each side must be 32 to 4096"),
        ({"size": (480, 4097)}, "image size 480x4097"),
        ({"size": (32, 32)}, "image size 32x32: the last stage needs two pixels"),
        ({"batch": 0}, "batch 0: give 1 to 64, or 'dynamic'"),
        ({"batch": 65}, "batch 65"),
        ({"opset": 17}, "opset 17: give 18, 19 or 20"),
        ({"opset": 21}, "opset 21"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportOptions(**options)
