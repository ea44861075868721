"""`lavt-export frame`: graphs from a camera's bytes to the mask's, against the general path, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.data.metrics import ReferringMetrics
from lavt_edge.data.shapes.scenes import scene_at
from lavt_edge.errors import BundleError, ExportError
from lavt_edge.export import frames
from lavt_edge.export.engines.build import build_engine
from lavt_edge.export.engines.layers import EngineLayer
from lavt_edge.export.engines.options import BuildPlan, EngineOptions
from lavt_edge.export.engines.verify import check_parity, measure_parity, run_frame_graph
from lavt_edge.export.frames import FrameOptions, add_frame_graphs, band
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.backend import OnnxRuntimeBackend
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.images import LAYOUTS, prepare
from lavt_edge.runtime.manifest import Manifest
from lavt_edge.runtime.tensorrt.flavor import find_flavor
from lavt_edge.runtime.tensorrt.record import engine_record
from lavt_edge.runtime.update import update_bundle
from lavt_edge.tests.engine_builds import COMMAND, refused, state, trt
from lavt_edge.tests.runtime_bundle import write_bundle
from lavt_edge.tests.typed_bundle import copy_bundle
from PIL import Image


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(demo_bundle, tmp_path_factory.mktemp("frames") / "bundle")


def noise(options: FrameOptions) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, options.shape, dtype=np.uint8)


SIZES = [
    *((480, 640, "rgb"), (720, 1280, "bgr"), (1080, 1920, "nv12"), (2160, 3840, "bgrx"), (333, 517, "bgr")),
    *((334, 518, "nv12"), (333, 517, "grey"), (333, 517, "rgbx"), (100, 120, "rgb")),
]


def test_every_layout_is_measured() -> None:
    assert {pixels for _, _, pixels in SIZES} == LAYOUTS.keys()


@pytest.mark.parametrize(("height", "width", "pixels"), SIZES)
def test_prepared_bytes_are_those_of_the_general_path(bundle: Path, height: int, width: int, pixels: str) -> None:
    options = FrameOptions(height, width, pixels)
    entry = add_frame_graphs(bundle, options)
    manifest = open_bundle(bundle).manifest
    assert manifest.frames[f"{height}x{width}.{pixels}"] == entry
    frame = noise(options)
    (image,) = OnnxRuntimeBackend(bundle / entry.frame, device="cpu").run({"frame": frame[None]}, ["image"])
    wanted = prepare(frame, manifest.input.height, manifest.input.width, pixels=pixels).pixels
    step = np.abs(image[0].astype(int) - wanted)
    assert step.max() <= 1
    assert (step > 0).mean() <= 0.02
    assert entry.parity["largest_step"] <= 1
    assert 0 <= entry.parity["bytes_differing"] <= 0.02
    assert entry.parity["pixel_agreement"] >= 0.999


def test_masks_of_generated_scenes_at_1080p_keep_their_accuracy(bundle: Path) -> None:
    """Of the first scenes of val; each object once."""
    entry = add_frame_graphs(bundle, FrameOptions(1080, 1920))
    frame_graph, mask_graph = (OnnxRuntimeBackend(bundle / name, device="cpu") for name in (entry.frame, entry.mask))
    general, ours = ReferringMetrics(), ReferringMetrics()
    agreement = []
    with Segmenter.load(bundle, device="cpu") as segmenter:
        for image, target, sentence in scenes_at_1080p(8):
            prompt = segmenter.encode(sentence)
            result = segmenter.segment(image, prompt)
            (prepared,) = frame_graph.run({"frame": image[None]}, ["image"])
            logits = segmenter.run_graph(prepared, prompt.prompt[None], prompt.word_mask[None])
            mask, logit = mask_graph.run({"logits": logits}, ["mask", "logit"])
            np.testing.assert_array_equal(logit[0], logits[0, 1] - logits[0, 0])
            general.update(result.mask, target)
            ours.update(mask[0].astype(bool), target)
            agreement.append((mask[0] == result.mask).mean())
    assert len(agreement) > 20
    assert min(agreement) >= 0.999
    assert general.compute()["mean_iou"] > 50
    assert ours.compute()["mean_iou"] == pytest.approx(general.compute()["mean_iou"], abs=0.05)


def scenes_at_1080p(count: int) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Image, mask and a sentence for each object of the scenes."""
    for number in range(count):
        scene = scene_at(0, "val", number)
        image = np.asarray(Image.fromarray(scene.render()).resize((1920, 1080), Image.Resampling.BILINEAR))
        for index, sentence in {item.object_index: item.text for item in scene.sentences()}.items():
            mask = Image.fromarray(scene.masks()[index]).resize((1920, 1080), Image.Resampling.NEAREST)
            yield image, np.asarray(mask), sentence


@pytest.mark.parametrize(("source", "size"), [(1920, 480), (1080, 480), (333, 480), (517, 480), (480, 480), (7, 3)])
def test_weights_are_pillows(source: int, size: int) -> None:
    """Pillow resizes unit vectors, in float, to the columns of the matrix."""
    indices, weights = band(source, size)
    matrix = np.zeros((size, source))
    np.add.at(matrix, (np.arange(size)[:, None], indices), weights)
    units = Image.fromarray(np.eye(source, dtype=np.float32))
    wanted = np.asarray(units.resize((size, source), Image.Resampling.BILINEAR)).T
    np.testing.assert_allclose(matrix, wanted, atol=1e-6)


@pytest.mark.parametrize("pixels", ["rgb", "nv12"])
def test_bytes_are_cast_to_floats_and_from_floats_alone(pixels: str) -> None:
    """TensorRT does not convert between UINT8 and whole numbers or Booleans (NvInfer.h, DataType::kUINT8)."""
    for model in frames.export_models(FrameOptions(48, 64, pixels), (24, 32)):
        casts = [
            {str(node.inputs[0].dtype), str(node.outputs[0].dtype)} for node in model.graph if node.op_type == "Cast"
        ]
        of_bytes = [types for types in casts if "UINT8" in types]
        assert of_bytes
        assert all(types == {"UINT8", "FLOAT"} for types in of_bytes)
        readers = [
            node.op_type for value in model.graph.inputs if str(value.dtype) == "UINT8" for node, _ in value.uses()
        ]
        assert set(readers) <= {"Cast"}


@pytest.mark.parametrize("pixels", ["rgb", "bgrx", "nv12"])
def test_frame_and_mask_of_1080p_are_a_kernel_each_and_move_under_15_mb(tmp_path: Path, pixels: str) -> None:
    """Of the real input size, 480x480; the graphs are the same for every model."""
    pytest.importorskip("tensorrt_rtx")
    flavor, options = find_flavor("tensorrt_rtx"), FrameOptions(1080, 1920, pixels)
    plan = BuildPlan(EngineOptions(targets=("sm86",)), flavor.name, flavor.version, None, ("sm86",), 1, None)
    layers: list[EngineLayer] = []
    for model in frames.export_models(options, (480, 480)):
        frames.save_graph(model, tmp_path / "graph.onnx")
        layers += build_engine(tmp_path / "graph.onnx", plan, flavor).layers
    kernels = [layer for layer in layers if layer.is_kernel]
    moved = sum((layer.moved or 0) + (layer.constants or 0) for layer in layers)
    assert len(kernels) == 2
    assert np.prod(options.shape) + 1080 * 1920 < moved < 15e6


def test_engines_of_frames_are_built_beside_the_others_and_go_with_their_graph(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    root = copy_bundle(bundle, tmp_path / "bundle")
    with update_bundle(root) as change:  # of the frames, these two alone
        change.commit({}, lambda old: replace(old, frames={}))
    for pixels in ("rgb", "nv12"):
        add_frame_graphs(root, FrameOptions(64, 96, pixels), replace_existing=True)
    done = trt(root, "--fp32")
    assert done.returncode == 0, done.stderr
    names = {"frame.64x96.rgb.engine", "frame.64x96.nv12.engine", "mask.64x96.engine"}
    built = open_bundle(root)
    assert built.manifest.engines.keys() == names | {"text_encoder.fp32.engine", "segmenter.fp32.engine"}
    for name in names:
        record = engine_record(root, built.manifest, name)
        assert (record.role, record.max_batch, record.onnx_file) == (name.split(".")[0], 1, name[:-6] + "onnx")
        assert built.manifest.files[name].precision is None
        assert record.rebuild == f"lavt-export trt {root}"
        expected = run_frame_graph(built, record.role, str(record.onnx_file))
        check_parity(measure_parity(expected.typed, expected), record)
        changed = [np.roll(array, 2, axis=-2) for array in expected.typed]
        with pytest.raises(ExportError, match=r"differs too much from (frame|mask)\.64x96"):
            check_parity(measure_parity(changed, expected), record)


def test_what_is_there_is_kept_and_what_differs_is_not_written(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = FrameOptions(96, 64)
    add_frame_graphs(bundle, options, replace_existing=True)
    before = state(bundle)
    with pytest.raises(ExportError, match=r"has graphs for frames 96x64\.rgb already; pass --force"):
        add_frame_graphs(bundle, options)

    def nearest(source: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(size)[:, None] * source // size, np.ones((size, 1), np.float32)

    monkeypatch.setattr(frames, "band", nearest)
    with pytest.raises(ExportError, match=r"differ from the general path: .* nothing was written"):
        add_frame_graphs(bundle, FrameOptions(1000, 1200))
    assert state(bundle) == before


def test_layouts_of_a_size_share_the_mask_graph(bundle: Path) -> None:
    for pixels in ("rgb", "bgr"):
        add_frame_graphs(bundle, FrameOptions(64, 96, pixels), replace_existing=True)
    manifest = open_bundle(bundle).manifest
    rgb, bgr = manifest.frames["64x96.rgb"], manifest.frames["64x96.bgr"]
    assert rgb.mask == bgr.mask == "mask.64x96.onnx"
    assert {"frame.64x96.rgb.onnx", "frame.64x96.bgr.onnx", "mask.64x96.onnx"} <= manifest.files.keys()
    assert Manifest.parse_json(manifest.to_json()) == manifest


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in (COMMAND, "frame", *arguments)], capture_output=True, text=True)


def test_the_command_says_what_it_wrote_and_refuses_in_one_line(bundle: Path) -> None:
    done = run(bundle, "--size", "66x98", "--pixels", "nv12")
    assert done.returncode == 0, done.stderr
    assert "frame.66x98.nv12.onnx and mask.66x98.onnx; against the general path" in done.stdout
    before = state(bundle)
    assert "--size '-3': give a number such as 480, or HEIGHTxWIDTH" in refused(run(bundle, "--size", "-3"))
    assert "has graphs for frames 66x98.nv12 already" in refused(run(bundle, "--size", "66x98", "--pixels", "nv12"))
    assert state(bundle) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((1080, 1920, "yuyv"), "--pixels 'yuyv': give one of rgb"),
        ((1081, 1920, "nv12"), "1081x1920: frames in nv12 have even sides"),
        ((0, 0), "each side must be 2 to 16384"),
        ((99999, 2), "each side must be 2 to 16384"),
    ],
)
def test_frames_that_no_camera_gives_are_refused(options: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        FrameOptions(*options)


def test_a_bundle_of_several_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="take 3 images at once, and a frame is one"):
        add_frame_graphs(write_bundle(tmp_path / "bundle", batch=3), FrameOptions(64, 64))


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> str:
    add_frame_graphs(bundle, FrameOptions(64, 96), replace_existing=True)
    return (bundle / "lavt.json").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 1081}, "is an entry for 1081x"),
        ({"height": 1}, "expected 2 to 16384, found 1"),
        ({"frame": "mask.64x96.onnx"}, "no such graph in files"),
        ({"mask": "../mask.onnx"}, "expected a file name"),
        ({"pixels": "yuyv"}, "expected one of rgb, bgr"),
        ({"parity": 3}, "expected an object"),
    ],
)
def test_a_malformed_entry_is_refused(manifest: str, change: dict[str, object], said: str) -> None:
    content = json.loads(manifest)
    content["frames"]["64x96.rgb"].update(change)
    with pytest.raises(BundleError, match=re.escape(said)):
        Manifest.parse(content)
