"""Calibration on data: what is drawn, what is measured, and that it can be killed, continued and used again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from lavt_edge.calibration import calibrate as calibrate_module
from lavt_edge.calibration.calibrate import calibrate, calibration_key
from lavt_edge.calibration.observers import expose_outputs
from lavt_edge.calibration.record import Calibration, read_calibration
from lavt_edge.calibration.sample import DataOptions, Sample, cases, draw_sample
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.errors import BundleError, DatasetError, ExportError
from lavt_edge.export.edits import load_graph
from lavt_edge.runtime.bundle import Bundle, open_bundle

MINI = Path(__file__).parent / "data" / "refer_mini"
STATE = ".calibration.partial.npz"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refcoco(tmp_path_factory.mktemp("data") / "shapes", seed=5, scenes={"train": 24})


@pytest.fixture(scope="module")
def sample(root: Path) -> Sample:
    return draw_sample(DataOptions(root=root, samples=12))


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def calibration(demo_bundle: Path, sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    copy = tmp_path_factory.mktemp("calibrated") / "bundle"
    shutil.copytree(demo_bundle, copy)
    return calibrate(open_bundle(copy), sample)


class TestSample:
    def test_images_come_in_turns_and_none_is_on_both_sides(self, root: Path) -> None:
        drawn = draw_sample(DataOptions(root=root, samples=40))
        calibrated, held = ([one.target.image_id for one in part] for part in (drawn.calibrated, drawn.held_out))
        assert (len(calibrated), len(held)) == (40, 10)
        assert not set(calibrated) & set(held)
        counts = Counter(calibrated)
        assert len(counts) == 24 - len(set(held))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({one.sentence_id for one in drawn.calibrated}) == 40

    def test_the_seed_decides(self, root: Path) -> None:
        first, again, other = (draw_sample(DataOptions(root=root, samples=12, seed=seed)) for seed in (0, 0, 1))
        assert first.origin == again.origin != other.origin
        assert [s.sentence_id for s in first.calibrated] == [s.sentence_id for s in again.calibrated]

    def test_refcoco_as_it_is_on_disk(self) -> None:
        drawn = draw_sample(DataOptions(dataset="refcoco", root=MINI, samples=4))
        assert drawn.origin["dataset"] == "refcoco"
        assert {one.target.image_path.parent.name for one in drawn.calibrated} == {"train2014"}

    @pytest.mark.parametrize("layout", ["missing", "empty", "other"])
    def test_a_root_that_is_no_data_set_is_one_line(self, layout: str, tmp_path: Path) -> None:
        root = tmp_path / "data"
        if layout != "missing":
            root.mkdir()
        if layout == "other":
            (root / "refcoco").write_text("")
        with pytest.raises(DatasetError) as caught:
            draw_sample(DataOptions(dataset="refcoco", root=root))
        assert str(root) in str(caught.value)
        assert "\n" not in str(caught.value)


class TestMeasurement:
    def test_ranges_and_channels_are_those_of_the_tensors(
        self, calibration: Calibration, sample: Sample, demo_bundle: Path
    ) -> None:
        bundle = open_bundle(demo_bundle)
        tensors = ["stage1.block2.mlp/Gelu", "stage0.block1.norm1/LayerNormalization", "decoder.level0.conv/Conv"]
        found = [run_tensors(bundle, case_feed(bundle, sample, i), tensors) for i in range(len(sample.calibrated))]
        for i, tensor in enumerate(tensors):
            low, high = calibration.ranges["segmenter"][tensor]
            assert low == pytest.approx(min(float(one[i].min()) for one in found), rel=1e-4, abs=1e-5)
            assert high == pytest.approx(max(float(one[i].max()) for one in found), rel=1e-4)
        norms = np.concatenate([one[1].reshape(-1, one[1].shape[-1]) for one in found]).astype(np.float64)
        channels = calibration.channels["stage0.block1.norm1/LayerNormalization"]
        np.testing.assert_allclose(channels.amax, np.abs(norms).max(axis=0), rtol=1e-4)
        square = (norms**2).mean(axis=0)
        np.testing.assert_allclose(channels.square / channels.square.sum(), square / square.sum(), rtol=1e-3)

    def test_histograms_count_every_value(self, calibration: Calibration, sample: Sample, demo_bundle: Path) -> None:
        tensor = "stage1.block2.mlp/Gelu"
        bundle = open_bundle(demo_bundle)
        values = np.concatenate(
            [run_tensors(bundle, case_feed(bundle, sample, i), [tensor])[0].ravel() for i in range(12)]
        )
        histogram = calibration.histograms[tensor]
        assert histogram.counts.sum() == values.size
        assert histogram.high == pytest.approx(float(values.max()), rel=1e-3)
        expected = np.histogram(values, len(histogram.counts), (-histogram.bound, histogram.bound))[0]
        moved = np.abs(np.cumsum(expected) - np.cumsum(histogram.counts)).max()
        assert moved <= 1e-4 * values.size  # rounding at the edges of bins

    def test_of_a_large_sample_a_part_is_counted_and_the_ends_are_those_of_all(
        self, calibration: Calibration, sample: Sample, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibrate_module, "_LEAST_COUNTED", 3)
        seen: list[tuple[int, int]] = []
        partial = calibrate(bundle, sample, lambda *step: seen.append(step))
        assert seen[-1] == (12 + 3, 12 + 3)
        for name, whole in calibration.histograms.items():
            part = partial.histograms[name]
            assert part.bound == whole.bound
            assert max(-part.low, part.high) == pytest.approx(whole.bound, rel=1e-6)
            assert part.counts.sum() == whole.counts.sum() / 4
        assert partial.ranges == calibration.ranges

    def test_no_value_lies_beyond_the_bound_of_its_histogram(self, calibration: Calibration) -> None:
        for tensor, one in calibration.histograms.items():
            assert max(-one.low, one.high) <= one.bound * (1 + 1e-4), tensor

    def test_every_smoothed_norm_was_measured(self, calibration: Calibration) -> None:
        assert calibration.strengths
        assert calibration.strengths.keys() <= calibration.channels.keys()
        assert set(calibration.strengths.values()) <= {i / 10 for i in range(1, 10)}

    def test_a_model_that_is_not_finite_is_refused_by_name(self, bundle: Bundle, sample: Sample) -> None:
        model = load_graph(bundle, "segmenter")
        weight = model.graph.initializers["stage1.block0.mlp.fc1.weight"]
        assert weight.const_value is not None
        array = weight.const_value.numpy().copy()
        array[0, 0] = np.nan
        weight.const_value = ir.tensor(array)
        ir.save(model, bundle.root / "segmenter.onnx")
        bundle._verified.add("segmenter.onnx")
        with pytest.raises(ExportError, match=r"stage1\.block0\.mlp\.fc1/MatMul is not finite"):
            calibrate(bundle, sample)


def case_feed(bundle: Bundle, sample: Sample, i: int) -> dict[str, np.ndarray]:
    (case,) = cases(bundle, sample.calibrated[i : i + 1])
    text = onnxruntime.InferenceSession(str(bundle.file("text_encoder")), providers=["CPUExecutionProvider"])
    mask = case.attention_mask[None]
    (prompt,) = text.run(["prompt"], {"input_ids": case.input_ids[None], "attention_mask": mask})
    return {"image": case.image[None], "prompt": prompt, "word_mask": mask.astype(np.float32)}


def run_tensors(bundle: Bundle, feed: dict[str, np.ndarray], tensors: list[str]) -> list[np.ndarray]:
    model = load_graph(bundle, "segmenter")
    expose_outputs(model, tensors)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(tensors, feed)]


KILLED = """
import os, signal, sys
from pathlib import Path
from lavt_edge.calibration import calibrate as module
from lavt_edge.calibration.sample import DataOptions, draw_sample
from lavt_edge.runtime.bundle import open_bundle
module._SAVE_EVERY = 2
def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
sample = draw_sample(DataOptions(root=Path(sys.argv[2]), samples=12))
module.calibrate(open_bundle(sys.argv[1]), sample, progress)
"""


class TestInterruption:
    def test_killed_in_each_pass_it_goes_on_to_the_same_bytes(
        self, bundle: Bundle, root: Path, sample: Sample, calibration: Calibration
    ) -> None:
        for moment in (5, 12 + 7):
            command = [sys.executable, "-c", KILLED, str(bundle.root), str(root), str(moment)]
            assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
            assert (bundle.root / STATE).is_file()
        begun: list[int] = []
        again = calibrate(bundle, sample, lambda done, total: begun.append(done))
        assert 12 < min(done for done in begun if done > 12) <= 12 + 7
        assert again.to_json() == calibration.to_json()

    def test_a_state_of_other_data_is_not_used(self, bundle: Bundle, root: Path, sample: Sample) -> None:
        other = draw_sample(DataOptions(root=root, samples=3, seed=9))
        calibrate(bundle, other)
        assert (bundle.root / STATE).is_file()
        done: list[int] = []
        short = replace(sample, calibrated=sample.calibrated[:2])
        calibrate(bundle, short, lambda step, total: done.append(step))
        assert done[0] == 0

    @pytest.mark.parametrize("damage", ["no zip", "empty", "array", "done", "text"])
    def test_a_damaged_state_is_begun_again(self, damage: str, bundle: Bundle, sample: Sample) -> None:
        path = bundle.root / STATE
        key = json.dumps(calibration_key(bundle, replace(sample, calibrated=sample.calibrated[:1])), sort_keys=True)
        with path.open("wb") as file:
            if damage == "no zip":
                file.write(b"PK\x03\x04 not really")
            elif damage == "array":
                np.save(file, np.zeros(3))
            elif damage == "done":
                np.savez(file, **{"key": np.array(key), "ranges.done": np.zeros(3)})
            elif damage == "text":
                done = {"ranges.done": np.array(1), "ranges.text_encoder": np.array(["a"])}
                np.savez(file, **{"key": np.array(key), **done})
        short = replace(sample, calibrated=sample.calibrated[:1])
        assert calibrate(bundle, short).histograms


class TestRecord:
    def test_it_reads_back_equal(self, calibration: Calibration, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        path.write_bytes(calibration.to_json())
        again = read_calibration(path)
        assert again is not None
        assert again.to_json() == calibration.to_json()
        assert again.clipped("mse") == calibration.clipped("mse")

    def test_the_key_names_graphs_and_data(self, calibration: Calibration, sample: Sample, demo_bundle: Path) -> None:
        assert calibration.key == calibration_key(open_bundle(demo_bundle), sample)
        assert set(calibration.key["data"]["files"]) == {"refs(unc).p", "instances.json"}

    def test_another_format_version_is_as_good_as_none(self, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        assert read_calibration(path) is None
        path.write_text('{"format_version": 99}')
        assert read_calibration(path) is None

    @pytest.mark.parametrize(
        "damage",
        [
            lambda fields: fields["ranges"]["segmenter"].update(x=[1]),
            lambda fields: fields["ranges"]["segmenter"].update(x=[2, 1]),
            lambda fields: fields["ranges"]["segmenter"].update(x=["0", 1]),
            lambda fields: fields.update(histograms={"x": {"low": 0, "high": 1, "bound": 1, "counts": [1, 2]}}),
            lambda fields: fields.update(histograms={"x": {"low": 0, "high": 1, "bound": 1, "counts": [-1] * 2048}}),
            lambda fields: fields.update(histograms={"x": {"low": 0, "high": 1, "bound": 1, "counts": [0.5] * 2048}}),
            lambda fields: fields.update(histograms={"x": {"low": 0, "high": 1, "bound": 1, "counts": [True] * 2048}}),
            lambda fields: fields.update(histograms={"x": {"low": 0, "high": 1, "bound": 1, "counts": ["1"] * 2048}}),
            lambda fields: fields.update(histograms={"x": {"low": 0, "high": 1, "counts": [1] * 2048}}),
            lambda fields: fields.update(channels={"x": {"amax": [-1], "square": [1]}}),
            lambda fields: fields.update(channels={"x": {"amax": [], "square": [1]}}),
            lambda fields: fields.update(strengths={"x": "much"}),
            lambda fields: fields.update(strengths=3),
            lambda fields: fields.pop("key"),
        ],
    )
    def test_damage_is_one_line_that_names_the_file(self, damage, calibration: Calibration, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        fields = json.loads(calibration.to_json())
        damage(fields)
        path.write_text(json.dumps(fields))
        with pytest.raises(BundleError, match=r"calibration\.json: damaged") as caught:
            read_calibration(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"\xff\xfe", b'{"format_version": 1}', b"[" * 100_000])
    def test_what_is_no_record_is_one_line(self, text: bytes, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        path.write_bytes(text)
        with pytest.raises(BundleError, match=r"calibration\.json"):
            read_calibration(path)
