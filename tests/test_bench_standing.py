"""The standing comparison of `make bench`: what it measures, and docs/benchmarks.md, which only it writes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir
import pytest
from lavt_edge._base.cache import cache_folder
from lavt_edge._base.records import from_plain, to_plain
from lavt_edge._base.timing import Summary
from lavt_edge.benchmarks.report.standing import (
    PLAIN,
    FrameCost,
    GpuGraph,
    Model,
    Part,
    PartTime,
    Side,
    Standing,
    markdown,
)
from lavt_edge.benchmarks.runs import standing
from lavt_edge.benchmarks.runs.frames import SIZES
from lavt_edge.benchmarks.runs.standing import (
    INT8,
    NAMES,
    REWRITTEN,
    WINOGRAD,
    measure_subject,
    merge_previous,
    ratios_of,
    write_standing,
)
from lavt_edge.benchmarks.runs.subjects import INT8_FILE, Subject, add_int8, make_bundle, winograd_bundle
from lavt_edge.benchmarks.timing.machine import Cpu, Machine
from lavt_edge.benchmarks.timing.result import FidelityFigures, Memory
from lavt_edge.calibration import sample
from lavt_edge.calibration.products import int8_macs
from lavt_edge.calibration.sample import DataOptions
from lavt_edge.data.shapes.cached import SEED, generator_version
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.errors import LavtError
from lavt_edge.export.macs import count_macs
from lavt_edge.export.source import open_source
from lavt_edge.runtime.bundle import open_bundle

DOCS = Path(__file__).parent.parent / "docs"


def side(name: str, seconds: list[float]) -> Side:
    median = sorted(seconds)[len(seconds) // 2]
    return Side(
        name=name,
        precision="fp32",
        size=(480, 480),
        runtime="ONNX Runtime 1.24",
        seconds=tuple(seconds),
        summary=Summary(median, 1.1 * median, 1.2 * median, 1 / median),
        memory=Memory(1_500_000_000, None, None),
    )


def standing_result(ratio: float = 0.7) -> Standing:
    rounds = [1 + 0.001 * i for i in range(8)]
    sides = (
        side(REWRITTEN, [ratio * seconds for seconds in rounds]),
        side(WINOGRAD, [0.6 * seconds for seconds in rounds]),
        side(INT8, [0.46 * seconds for seconds in rounds]),
        side(PLAIN, rounds),
        side(NAMES["openvino-plain"], [0.9 * seconds for seconds in rounds]),
        side(NAMES["openvino"], [0.63 * seconds for seconds in rounds]),
        side(NAMES["openvino-int8"], [0.36 * seconds for seconds in rounds]),
    )
    model = Model(
        name="base, window 12",
        weights="random",
        size=(480, 480),
        rounds=8,
        calibrated_on=2,
        int8_policy="full",
        sides=sides,
        ratios=ratios_of(sides),
        targets=standing.TARGETS,
        parts=(
            Part("stage2.mlp", {REWRITTEN: PartTime(0.3, 40_000_000_000)}),
            Part(
                "decoder.level0",
                {REWRITTEN: PartTime(0.1, 60_000_000_000), WINOGRAD: PartTime(0.05, 30_000_000_000)},
            ),
        ),
        accuracy=(FidelityFigures("int8-cpu", 520, 90.12, 0.34, 0.99912, 0.0123, 98.2, "PyTorch"),),
        frames=(FrameCost((1080, 1920), False, 0.0041, 0.05, 0.0072),),
        gpu=(
            GpuGraph("plain export, FP16", "TensorRT", 197_000_000_000, 391, 1_768_000_000, 232_000_000),
            GpuGraph("FP16", "TensorRT", 153_000_000_000, 276, 1_427_000_000, 256_000_000),
        ),
        warnings=("PyTorch | eager was left out:\nno torch",),
    )
    machine = Machine(
        cpu=Cpu("Example", ("avx2",), 4, 2, None, True, None, None, None),
        threads=2,
        memory_bytes=24_000_000_000,
        gpu=None,
        jetson=None,
        system="Linux 6",
        python="3.11",
        versions={"torch": "2.15"},
        load=0.1,
    )
    return Standing(standing.FORMAT_VERSION, "2026-01-02", 31.4, machine, (model,), ("a warning",))


class TestMarkdown:
    def test_every_side_has_its_time_and_its_ratio_with_an_interval(self) -> None:
        lines = markdown(standing_result()).splitlines()
        for one in standing_result().models[0].sides:
            (line,) = [line for line in lines if line.startswith(f"| {one.name} | ONNX Runtime")]
            assert f"{1e3 * one.summary.median:.1f}" in line
            assert one.name == PLAIN or re.search(r"0\.\d{3} \(0\.\d{3}–0\.\d{3}\)", line)

    def test_openvino_is_set_against_openvino(self) -> None:
        lines = markdown(standing_result()).splitlines()
        (line,) = [line for line in lines if "| OpenVINO, plain export | 0.7" in line]
        assert line.startswith("| OpenVINO, rewritten | OpenVINO, plain export | 0.700 (")

    def test_targets_are_judged_and_a_miss_is_said(self) -> None:
        text = markdown(standing_result())
        assert re.search(r"rewritten over plain export \| 0\.78 \| 0\.700 .* \| met \|", text)
        assert re.search(r"INT8 over plain export \| 0\.45 \| 0\.460 .* \| missed", text)
        assert re.search(
            r"rewritten over plain export \| 0\.78 \| 0\.790 .* \| missed", markdown(standing_result(0.79))
        )

    def test_a_target_whose_side_was_left_out_says_so(self) -> None:
        given = standing_result()
        assert markdown(replace(given, models=(replace(given.models[0], ratios=()),))).count("| not measured |") == len(
            standing.TARGETS
        )

    def test_every_row_of_a_table_has_the_columns_of_its_head(self) -> None:
        block: list[int] = []
        for line in markdown(standing_result()).splitlines():
            if line.startswith("|"):
                block.append(len(re.findall(r"(?<!\\)\|", line)))
                assert block[-1] == block[0], line
            else:
                block = []

    def test_parts_have_their_time_share_and_macs_and_add_up(self) -> None:
        text = markdown(standing_result())
        assert "| decoder.level0 | 100.0 | 25.0 % | 60.00 | 50.0 | 100.0 % | 30.00 |" in text
        assert "| stage2.mlp | 300.0 | 75.0 % | 40.00 | – | – | – |" in text
        assert "| all | 400.0 | 100.0 % | 100.00 | 50.0 | 100.0 % | 30.00 |" in text

    def test_accuracy_machine_and_warnings_are_in_it(self) -> None:
        text = markdown(standing_result())
        for shown in (
            "over 520 sentences",
            "| int8-cpu | 90.12 | +0.34 |",
            "avx2",
            "torch 2.15",
            "- a warning",
            "2026-01-02",
        ):
            assert shown in text
        assert "- base, window 12: PyTorch \\| eager was left out: no torch" in text

    def test_frames_have_what_they_cost_beside_the_graph(self) -> None:
        assert "| 1920x1080 | no | 4.1 | 7.2 | 50.0 |" in markdown(standing_result())

    def test_a_gpu_has_its_kernels_and_bytes_beside_the_plain_exports(self) -> None:
        text = markdown(standing_result())
        assert "| plain export, FP16 | 197.0 | 391 | 1768 | 232 | 2000 | 1.000 |" in text
        assert "| FP16 | 153.0 | 276 | 1427 | 256 | 1683 | 0.842 |" in text

    def test_it_is_written_from_the_json_beside_it(self, tmp_path: Path) -> None:
        text = write_standing(standing_result(), tmp_path)
        written = json.loads((tmp_path / "benchmarks.json").read_text())
        assert written == to_plain(standing_result())
        read = from_plain(Standing, written)
        assert (tmp_path / "benchmarks.md").read_text(encoding="utf-8") == text == markdown(read)


@pytest.mark.parametrize("folder", [DOCS, DOCS / "avx2"], ids=lambda folder: folder.name)
def test_the_docs_are_the_rendering_of_what_was_measured(folder: Path) -> None:
    measured = json.loads((folder / "benchmarks.json").read_bytes())
    assert (folder / "benchmarks.md").read_text(encoding="utf-8") == markdown(from_plain(Standing, measured))
    assert to_plain(from_plain(Standing, measured)) == measured
    base, demo = measured["models"]
    assert base["size"] == [480, 480]
    assert base["accuracy"] is None  # of random weights
    assert min(row["sentences"] for row in demo["accuracy"]) >= 500


def test_one_model_measured_again_leaves_the_other(tmp_path: Path) -> None:
    both = standing_result()
    demo = replace(both.models[0], name="demo model")
    write_standing(replace(both, models=(both.models[0], demo)), tmp_path)
    again = standing_result(0.6)
    merged = merge_previous(again, tmp_path)
    assert merged.models == (again.models[0], demo)
    assert merged.minutes == pytest.approx(62.8)
    other = replace(again, machine=replace(again.machine, cpu=replace(again.machine.cpu, model="Another")))
    with pytest.raises(LavtError, match="of another format, machine or versions"):
        merge_previous(other, tmp_path)
    with pytest.raises(LavtError, match="of another format, machine or versions"):
        merge_previous(replace(again, format=standing.FORMAT_VERSION + 1), tmp_path)
    (tmp_path / "benchmarks.json").write_text("{}")
    with pytest.raises(LavtError, match="cannot be kept"):
        merge_previous(again, tmp_path)


def test_ratios_are_over_the_plain_export_and_openvinos_own() -> None:
    pairs = {(one.name, one.against): one.ratio for one in standing_result().models[0].ratios}
    assert {against for _, against in pairs} == {PLAIN, NAMES["openvino-plain"], INT8}
    assert pairs[NAMES["openvino-int8"], INT8] == pytest.approx(0.36 / 0.46)
    assert pairs[REWRITTEN, PLAIN] == pytest.approx(0.7)
    assert pairs[NAMES["openvino"], NAMES["openvino-plain"]] == pytest.approx(0.7)
    assert len(pairs) == 9
    assert all(one.low <= one.ratio <= one.high for one in standing_result().models[0].ratios)


def test_of_random_weights_every_product_with_a_weight_is_in_int8(demo_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    data = write_refcoco(tmp_path / "shapes", seed=5, scenes={"train": 3})
    add_int8(root, DataOptions(dataset="refcoco", root=data, samples=2))
    assert open_bundle(root).has("segmenter", "int8-cpu")
    macs = count_macs(root / "segmenter.onnx")
    assert int8_macs(ir.load(root / INT8_FILE), macs) / sum(macs.values()) > 0.7


def test_the_demo_model_is_made_and_measured_in_two_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "MAX_HELD_OUT", 2)
    for split, scenes in (("train", 12), ("val", 2)):  # the generated data, but little of it
        data = cache_folder() / f"shapes-{generator_version()}-seed{SEED}-{split}"
        write_refcoco(data, seed=SEED, scenes={split: scenes})
    subject, root = Subject("demo model", rounds=2, samples=4, sentences=3, frames=1, threads=1), tmp_path / "bundle"
    make_bundle(subject, root)
    weights = open_source(None)
    for folder in (root, winograd_bundle(root)):
        bundle = open_bundle(folder)
        assert weights.is_of(bundle)
        assert bundle.manifest.model["winograd"] is (folder != root)
    assert open_bundle(root).manifest.files[INT8_FILE].precision == "int8-cpu"
    macs = count_macs(root / "segmenter.onnx")
    assert int8_macs(ir.load(root / INT8_FILE), macs) > 0
    assert sum(count_macs(winograd_bundle(root) / "segmenter.onnx").values()) < sum(macs.values())

    monkeypatch.setitem(NAMES, "tensorrt-plain", "TensorRT, plain export")  # not to be had on a CPU
    steps: list[str] = []
    model = measure_subject(subject, root, ["onnx-plain", "tensorrt-plain"], steps.append)
    assert "measuring, round 5 of 5" in steps
    assert (model.weights, model.size, model.rounds, model.int8_policy) == ("demo", weights.size, 2, "auto")
    assert [(side.name, side.precision, len(side.seconds)) for side in model.sides] == [
        (REWRITTEN, "fp32", 2),
        (WINOGRAD, "fp32", 2),
        (INT8, "int8-cpu", 2),
        (PLAIN, "fp32", 2),
    ]
    assert all(min(side.seconds) > 0 for side in model.sides)
    assert any(warning.startswith("TensorRT, plain export was left out: ") for warning in model.warnings)
    assert [(ratio.name, ratio.against) for ratio in model.ratios] == [
        (name, PLAIN) for name in (REWRITTEN, WINOGRAD, INT8)
    ]
    assert all(ratio.low <= ratio.ratio <= ratio.high for ratio in model.ratios)
    assert {name for part in model.parts for name in part.sides} == {REWRITTEN, WINOGRAD}
    whole = {name: [part.sides[name] for part in model.parts] for name in (REWRITTEN, WINOGRAD)}
    assert sum(part.macs for part in whole[REWRITTEN]) == sum(macs.values())
    assert all(sum(part.seconds for part in parts) > 0 for parts in whole.values())
    assert model.frames is not None
    assert [(cost.size, cost.opencv) for cost in model.frames] == [
        (size, cv2) for size in SIZES for cv2 in (True, False)
    ]
    assert all(min(cost.preprocess, cost.image, cost.postprocess) > 0 for cost in model.frames)
    assert model.accuracy is not None
    exact, int8 = model.accuracy
    assert (exact.name, exact.sentences, exact.against, int8.name) == ("fp32", 3, "PyTorch", "int8-cpu")
    assert exact.relative_error < 1e-4 < int8.relative_error < 1
    assert exact.pixel_agreement > 0.999
    if find_spec("tensorrt_rtx"):  # for x86-64
        assert model.gpu is not None
        plain, half, int8_graph = model.gpu
        assert (plain.name, half.name, int8_graph.name) == ("plain export, FP16", "FP16", "INT8, `bytes`")
        assert plain.macs > half.macs == int8_graph.macs
        assert min(graph.kernels for graph in model.gpu) > 50
        assert half.moved_bytes + half.constant_bytes < plain.moved_bytes + plain.constant_bytes
        assert int8_graph.constant_bytes < half.constant_bytes
        assert "TensorRT for RTX" in plain.compiler
    standing_of_it = replace(standing_result(), models=(model,))
    text = write_standing(standing_of_it, tmp_path)
    assert f"## Demo model, {model.size[0]}x{model.size[1]}" in text
    assert from_plain(Standing, json.loads((tmp_path / "benchmarks.json").read_bytes())) == standing_of_it

    (root / INT8_FILE).write_bytes(b"no graph")
    with pytest.raises(LavtError, match=INT8_FILE):  # a peer may be missing, a graph of ours not
        measure_subject(subject, root, ["onnx-plain"], steps.append)
