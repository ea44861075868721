"""`lavt-export quantize`: FP16 and INT8 graphs of the demo bundle, and what the manifest says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lavt_edge.calibration.products import candidates, image_products, int8_macs
from lavt_edge.calibration.quantize import QuantizeOptions, quantize_bundle
from lavt_edge.calibration.sample import DataOptions
from lavt_edge.data.shapes import scene_at
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.errors import BundleError, ExportError
from lavt_edge.export.edits import load_graph
from lavt_edge.export.engines.bundle import build_engines
from lavt_edge.export.engines.options import EngineOptions
from lavt_edge.export.macs import count_macs
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import file_entry, open_bundle, sha256_of
from lavt_edge.runtime.update import update_bundle
from PIL import Image

SAMPLES = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=5, scenes={"train": 24})


@pytest.fixture(scope="module")
def options(root: Path) -> QuantizeOptions:
    return QuantizeOptions(data=DataOptions(dataset="refcoco", root=root, samples=SAMPLES), max_drop=1.5)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    executable = Path(sys.executable).parent / "lavt-export"
    return subprocess.run([str(executable), *map(str, arguments)], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def quantized(demo_bundle: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo bundle with FP16 and INT8 graphs, by the commands."""
    bundle = tmp_path_factory.mktemp("quantized") / "bundle"
    shutil.copytree(demo_bundle, bundle)
    for flags in (["--fp16"], ["--int8", "--max-drop", "1.5"]):
        run = command("quantize", bundle, *flags, "--calibration-data", root, "--samples", str(SAMPLES))
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""  # no progress bars in a pipe
        assert "held-out sentences" in run.stdout
    return bundle


class TestBundle:
    def test_every_file_is_listed_with_its_hash_and_nothing_else_lies_there(self, quantized: Path) -> None:
        files = open_bundle(quantized).manifest.files
        assert {path.name for path in quantized.iterdir()} == {*files, "lavt.json"}
        assert {name: entry.sha256 for name, entry in files.items()} == {
            name: sha256_of(quantized / name) for name in files
        }
        roles = {(entry.role, entry.precision) for entry in files.values()}
        assert {("segmenter", "fp16"), ("text_encoder", "fp16"), ("segmenter", "int8"), ("calibration", None)} <= roles

    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_the_runtime_takes_it_and_the_masks_stay(self, quantized: Path, precision: str) -> None:
        scene = scene_at(9, "val", 3)
        image, sentences = scene.render(), [one.text for one in scene.sentences()[:4]]
        masks = []
        for chosen in ("fp32", precision):
            with Segmenter.load(quantized, precision=chosen, device="cpu") as segmenter:
                assert segmenter.precision == chosen
                masks.append([result.mask for result in segmenter.segment(image, sentences)])
        assert np.mean(np.array(masks[0]) == np.array(masks[1])) > 0.99

    def test_figures_are_in_the_manifest(self, quantized: Path) -> None:
        precisions = open_bundle(quantized).manifest.precisions
        half, int8 = precisions["fp16"]["against_fp32"], precisions["int8"]["against_fp32"]
        assert half["sentences"] == int8["sentences"] == 8
        assert 0 < half["relative_error"] < 0.005
        assert half["pixel_agreement"] >= 0.999
        assert abs(half["drop"]) <= 0.1
        assert half["relative_error"] < int8["relative_error"] < 0.15
        assert int8["drop"] <= 1.5

    def test_fp16_islands_have_their_reasons(self, quantized: Path) -> None:
        islands = open_bundle(quantized).manifest.precisions["fp16"]["islands"]["segmenter"]
        assert islands["stage1.block2.norm1/LayerNormalization"] == "LayerNorm statistics"
        assert islands["stage0.pwam.word_norm/ReduceMean"].startswith("PWAM statistics")
        assert islands["stage0.pwam/Sub"].startswith("PWAM statistics")
        assert islands["decoder/Split"] == islands["decoder/Greater"] == "the mask compares the logits that are put out"
        assert not any(name.endswith(("pwam/Add", "Softmax")) for name in islands)  # -1e4 of a word bias needs no room
        assert not any(name.startswith("decoder.") or ".mlp" in name for name in islands)
        words = open_bundle(quantized).manifest.precisions["fp16"]["islands"]["text_encoder"]
        assert "layer1.fc1/MatMul" not in words

    def test_fp16_weights_take_half_the_room(self, quantized: Path) -> None:
        for role in ("segmenter", "text_encoder"):
            sizes = {}
            for suffix in ("", ".fp16"):
                graph = onnx.load(quantized / f"{role}{suffix}.onnx").graph
                floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
                sizes[suffix] = sum(len(one.raw_data) for one in graph.initializer if one.data_type in floats)
            assert sizes[".fp16"] < 0.53 * sizes[""]

    def test_int8_covers_what_the_manifest_says(self, quantized: Path) -> None:
        about = open_bundle(quantized).manifest.precisions["int8"]
        model = ir.load(quantized / "segmenter.int8.onnx")
        macs = count_macs(quantized / "segmenter.int8.onnx")
        share = int8_macs(model, macs) / sum(macs.values())
        assert share == pytest.approx(about["int8_share"])
        assert share >= 0.9
        groups = about["groups"]
        assert sum(one["macs"] for one in groups if one["int8"]) / sum(macs.values()) == pytest.approx(share)
        errors = [one["relative_error"] for one in groups]
        assert errors == sorted(errors, reverse=True)
        assert {"stage2.mlp.fc1", "decoder.level0.conv", "stage0.attn.values"} <= {one["group"] for one in groups}

    def test_what_must_stay_in_floating_point_does(self, quantized: Path) -> None:
        model = ir.load(quantized / "segmenter.int8.onnx")
        quantised = {
            str(node.name)
            for node in model.graph
            for value in node.inputs
            if value is not None and (made := value.producer()) is not None and made.op_type == "DequantizeLinear"
        }
        assert quantised
        assert not any("word_norm" in name or "query_norm" in name or ".pwam/" in name for name in quantised)
        assert not any(name.startswith(("patch_embed", "decoder/", "decoder.classifier")) for name in quantised)
        assert not any(name.endswith(("/Add", "/Softmax", "/Gelu")) for name in quantised)

    def test_the_chart_has_a_bar_for_each_group(self, quantized: Path) -> None:
        with Image.open(quantized / "segmenter.int8.png") as chart:
            assert chart.height > 20 * len(open_bundle(quantized).manifest.precisions["int8"]["groups"])
            assert len(chart.convert("RGB").getcolors(1 << 16)) > 10

    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_engines_are_built_and_run_their_products_so(self, precision: str, quantized: Path, tmp_path: Path) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is for x86-64")
        bundle = shutil.copytree(quantized, tmp_path / "bundle")
        outcome = build_engines(bundle, EngineOptions(precision=precision, targets=("sm86",)))
        products = outcome.manifest.engines[f"segmenter.{precision}.engine"]["products"]
        assert products["Conv"][precision] == (7 if precision == "fp16" else 6)  # the classifier stays
        assert products["MatMul"][precision] >= 90

    def test_the_calibration_was_made_once(self, quantized: Path, options: QuantizeOptions) -> None:
        steps: list[str] = []
        before = sha256_of(quantized / "calibration.json")
        quantize_bundle(quantized, "fp16", options, replace=True, report=steps.append)
        assert "using the calibration that the bundle holds" in steps
        assert "calibrating" not in steps
        assert sha256_of(quantized / "calibration.json") == before

    def test_again_is_refused_before_any_work(self, quantized: Path, options: QuantizeOptions) -> None:
        with pytest.raises(ExportError, match="has a segmenter of precision int8 already; pass --force"):
            quantize_bundle(quantized, "int8", options)


class TestPython:
    """`lavt_edge.calibration` as a program uses it: public names alone."""

    def test_a_bundle_is_quantised(self, demo_bundle: Path, root: Path, tmp_path: Path) -> None:
        from lavt_edge.calibration import DataOptions, QuantizeOptions, quantize_bundle

        bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
        options = QuantizeOptions(policy="decoder", max_drop=5, data=DataOptions("refcoco", root=str(root), samples=4))
        steps: list[str] = []
        result = quantize_bundle(str(bundle), "int8", options, report=steps.append)
        assert result.precision == "int8"
        assert result.figures.sentences == 8
        assert result.figures.drop <= 5
        assert 0.45 < result.int8_share < 0.55
        assert {loss.group for loss in result.ranking} >= {"decoder.level0.conv", "decoder.level1.skip"}
        assert sum(loss.macs for loss in result.ranking if loss.int8) == round(result.int8_share * result.total_macs)
        assert steps[0] == "drawing the sample"
        with Segmenter.load(bundle, precision="int8", device="cpu") as segmenter:
            assert segmenter.precision == "int8"
        with pytest.raises(ExportError, match="precision int8 already"):
            quantize_bundle(bundle, "int8", options)

    def test_importing_the_package_costs_nothing_heavy(self) -> None:
        code = (
            "import sys, lavt_edge.calibration\n"
            "assert 'quantize_bundle' in dir(lavt_edge.calibration)\n"
            "print(*{name.split('.')[0] for name in sys.modules})"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not {"onnx", "onnx_ir", "onnxruntime", "torch", "numpy", "PIL"} & set(run.stdout.split())

    def test_quantising_takes_no_torch(self) -> None:
        """So that a device that times placements needs no more than onnx."""
        code = "import sys\nsys.modules['torch'] = None\nimport lavt_edge.calibration.quantize"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_what_it_does_not_have_is_an_attribute_error(self) -> None:
        import lavt_edge.calibration

        with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
            _ = lavt_edge.calibration.quantise


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "give one of --fp16, --bf16 and --int8"),
            (["--fp16", "--int8"], "give one of --fp16 and --int8"),
            (["--int8", "--method", "best"], "method 'best': give one of mse"),
            (["--int8", "--policy", "all"], "policy 'all': give one of auto"),
            (["--int8", "--rest", "bf16"], "rest 'bf16': give one of fp16"),
            (["--int8", "--samples", "0"], "samples 0: give 1"),
            (["--int8", "--max-drop", "-1"], "max_drop -1.0: give points"),
            (["--int8", "--seed", "-1"], "seed -1: give 0 or more"),
            (["--fp16", "--method", "mse"], "--method is for --int8"),
            (["--int8", "--dataset", "refcocog"], "--dataset needs --calibration-data"),
            (["--fp16", "--calibration-data", "/nowhere"], "/nowhere"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, arguments: list[str], said: str, demo_bundle: Path) -> None:
        run = command("quantize", demo_bundle, *arguments)
        assert run.returncode == 1
        assert said in run.stderr
        assert run.stderr.count("\n") == 1

    def test_what_is_no_bundle_is_one_line(self, tmp_path: Path) -> None:
        run = command("quantize", tmp_path / "none", "--fp16")
        assert (run.returncode, run.stderr.count("\n")) == (1, 1)
        assert "no such bundle" in run.stderr


def test_policies_differ_in_what_they_start_from(demo_bundle: Path) -> None:
    bundle = open_bundle(demo_bundle)
    products = image_products(bundle, load_graph(bundle, "segmenter"))
    total = bundle.manifest.model["macs"]["segmenter"]
    policies = ("decoder", "full", "auto", "bytes")
    share = {policy: sum(one.macs for one in candidates(products, policy)) / total for policy in policies}
    assert 0.45 < share["decoder"] < 0.5
    groups = {one.group for one in candidates(products, "bytes")}
    products_of = {f"stage{i}.attn.{product}" for i in range(4) for product in ("qkv", "scores", "values", "proj")}
    rest = {f"stage{i}.merge" for i in range(3)} | {f"decoder.level{i}.taps" for i in range(3)}
    assert groups == products_of | rest | {"stage3.mlp.fc1", "stage3.mlp.fc2"}
    assert {one.group for one in candidates(products, "bytes", "fp32")} == {
        group for group in groups if not group.endswith((".scores", ".values"))
    }
    assert 0.7 < share["full"] < 0.8
    assert 0.9 < share["auto"] < 0.95  # all but the interpolations


def test_the_cpus_own_int8(quantized: Path, options: QuantizeOptions, tmp_path: Path) -> None:
    bundle = shutil.copytree(quantized, tmp_path / "bundle")
    outcome = quantize_bundle(bundle, "int8", replace(options, rest="fp32", policy="decoder"))
    assert outcome.precision == "int8-cpu"
    assert outcome.manifest.files["segmenter.int8-cpu.onnx"].precision == "int8-cpu"
    assert abs(outcome.figures.drop) <= options.max_drop
    assert outcome.figures.pixel_agreement > 0.99
    graph = onnx.load(bundle / "segmenter.int8-cpu.onnx").graph
    types = {one.name: one.data_type for one in graph.initializer}
    zeros = {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT8}
    assert onnx.TensorProto.FLOAT16 not in types.values()
    with Segmenter.load(bundle, precision="int8-cpu", device="cpu") as segmenter:
        assert segmenter.segment(scene_at(9, "val", 3).render(), "the leftmost shape").mask.shape == (240, 240)


@pytest.mark.parametrize("damage", ["role", "histogram", "norm", "width", "bytes"])
def test_a_calibration_that_is_of_another_graph_is_made_again(
    damage: str, quantized: Path, options: QuantizeOptions, tmp_path: Path
) -> None:
    bundle = shutil.copytree(quantized, tmp_path / "bundle")
    path, steps = bundle / "calibration.json", []
    fields = json.loads(path.read_text())
    if damage == "role":
        del fields["ranges"]["segmenter"]
    elif damage == "histogram":
        fields["histograms"].popitem()
    elif damage == "norm":
        fields["strengths"]["x"] = 0.5
    elif damage == "width":
        next(iter(fields["channels"].values()))["amax"] = [1.0]
    path.write_bytes(b"{" if damage == "bytes" else json.dumps(fields).encode())
    manifest = open_bundle(bundle).manifest
    entry = file_entry(path, "calibration")
    listed = replace(manifest, files={**manifest.files, "calibration.json": entry})
    (bundle / "lavt.json").write_text(listed.to_json())
    with suppress(KeyboardInterrupt):
        quantize_bundle(bundle, "fp16", options, replace=True, report=lambda step: stop_at(step, steps))
    assert "calibrating" in steps


def stop_at(step: str, steps: list[str]) -> None:
    """Notes the steps, and stops where calibration begins: what is tested is whether it does."""
    steps.append(step)
    if step == "calibrating":
        raise KeyboardInterrupt


class TestBundleUpdate:
    def test_a_folder_that_was_replaced_meanwhile_is_left_alone(self, demo_bundle: Path, tmp_path: Path) -> None:
        bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
        other = shutil.copytree(demo_bundle, tmp_path / "other")

        def change() -> None:
            with update_bundle(bundle) as update:
                path = update.new("extra.bin")
                path.write_bytes(b"of the old bundle")
                entry = file_entry(path, "report")
                bundle.rename(tmp_path / "away")
                other.rename(bundle)
                update.commit({"extra.bin": entry})

        with pytest.raises(BundleError, match="was replaced by another command meanwhile"):
            change()
        assert {path.name for path in bundle.iterdir()} == {path.name for path in demo_bundle.iterdir()}

    def test_a_second_writer_is_told_to_wait(self, demo_bundle: Path, tmp_path: Path) -> None:
        bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
        code = (
            "import sys, pathlib, lavt_edge.runtime.update as u\nwith u.update_bundle(pathlib.Path(sys.argv[1])): pass"
        )
        with update_bundle(bundle):
            run = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True)
        assert "another command is changing this bundle" in run.stderr
        assert subprocess.run([sys.executable, "-c", code, str(bundle)]).returncode == 0

    def test_an_error_leaves_the_bundle_as_it_was(self, demo_bundle: Path, tmp_path: Path) -> None:
        bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
        before = {path.name: path.read_bytes() for path in bundle.iterdir()}

        def fail() -> None:
            with update_bundle(bundle) as change:
                change.new("extra.bin").write_bytes(b"half")
                raise OSError(28, "No space left on device")

        with pytest.raises(BundleError, match="cannot be written"):
            fail()
        assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
