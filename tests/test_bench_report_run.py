"""The HTML report of a run that was measured: each name and figure of it stands on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lavt_edge._base.progress import ignore
from lavt_edge.benchmarks.parts.measure import add_estimate, add_layers, add_parts
from lavt_edge.benchmarks.report.format import bytes_text, ms, rate, scaled
from lavt_edge.benchmarks.report.page import page
from lavt_edge.benchmarks.timing.latency import PER_CALL
from lavt_edge.benchmarks.timing.measure import measure
from lavt_edge.benchmarks.timing.result import Options
from lavt_edge.runtime.bundle import file_entry, open_bundle
from lavt_edge.tests.report_pages import read, section_of, text_of
from lavt_edge.tests.runtime_bundle import manifest_for, write_bundle
from onnx import numpy_helper

DAMAGED = "stage0.block0.mlp.fc1/MatMul"


def add_damaged_graph(bundle: Path) -> None:
    """Names the image graph's nodes after parts of the model, and adds it as FP16 with one constant damaged.

    Costs are counted from shapes, which exported graphs hold.
    """
    names = {"pixels": "patch_embed.proj/Div", "colour": DAMAGED, "score": "classifier/MatMul"}
    text = bundle / "text_encoder.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(text)), text)
    files = {text.name: file_entry(text, "text_encoder", "fp32")}
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle / "segmenter.onnx"))
    for node in model.graph.node:
        node.name = names.get(node.output[0], f"decoder.level0/{node.output[0]}")
    for name, precision, factor in (("segmenter.onnx", "fp32", 1.0), ("segmenter.fp16.onnx", "fp16", 1.5)):
        constant = next(one for one in model.graph.initializer if one.name == "projection")
        constant.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(constant), "projection"))
        onnx.save(model, bundle / name)
        files[name] = file_entry(bundle / name, "segmenter", precision)
    manifest = open_bundle(bundle).manifest
    (bundle / "lavt.json").write_text(manifest_for({**manifest.files, **files}, batch=None).to_json())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small bundle's damaged graph, beside one for batches of 1, as `lavt-bench` measures and writes it."""
    folder = tmp_path_factory.mktemp("reported")
    bundle, fixed = write_bundle(folder / "small", batch=None), write_bundle(folder / "fixed", batch=1)
    add_damaged_graph(bundle)
    options = Options(
        bundle / "segmenter.fp16.onnx",
        (str(fixed),),
        rounds=3,
        warmup=0,
        threads=1,
        device="cpu",
        sweep_threads=(1, 2),
        sweep_batch=(2,),
        sweep_rounds=2,
    )
    result = add_parts(measure(options), options, ignore)
    result = add_estimate(result, options, "jetson-orin-nano", ignore)
    result = add_layers(result, options, ignore)
    return dict(json.loads(json.dumps(result.to_dict())))


@pytest.fixture(scope="module")
def shown(result: dict[str, Any]) -> str:
    return page(read(result))


class TestARealRun:
    """The page of what the command measures, so that no form that is invented here hides what is left out."""

    def test_sweeps(self, result: dict[str, Any], shown: str) -> None:
        html = section_of(shown, "Sweeps")
        text, entries = text_of(html), result["sweeps"]
        assert [(one["sweep"], one["name"] == "fixed", "skipped" in one) for one in entries] == [
            *(("threads", False, False), ("threads", True, False)) * 2,
            *(("batch", False, False), ("batch", True, True)),
        ]
        for one in entries:
            if "skipped" in one:
                assert f"{one['name']} with batch 2: {one['skipped']}" in text
                continue
            summary, threads = one["summary"], one["threads"]
            times = f"{ms(summary['median'])} {ms(summary['p90'])} {rate(summary['throughput'])}"
            assert f"{one['name']} {threads} {one['batch']} {times}" in text
            assert f"{one[one['sweep']]}: {rate(summary['throughput'])} images a second" in text  # a dot of the chart
            if "ratio" in one:
                assert f"{one['ratio']:.3f} ({one['low']:.3f}–{one['high']:.3f})" in text
        assert html.count("<circle") == len(entries) - 1

    def test_parts_and_the_text_encoder(self, result: dict[str, Any], shown: str) -> None:
        text = text_of(section_of(shown, "Where the time goes"))
        (side,) = result["parts"]
        assert side["parts"]
        for part in side["parts"]:
            assert part["part"] in text
            assert f"{ms(part['seconds'])}, " in text
        total = sum(part["seconds"] for part in side["parts"])
        assert f"{side['side']}, all parts: {ms(total)}" in text
        assert f"text encoder, once a sentence: {ms(result['text']['seconds'])}" in text

    def test_roofline(self, result: dict[str, Any], shown: str) -> None:
        text, data = text_of(section_of(shown, "Roofline")), result["roofline"]
        assert scaled(data["ceilings"]["macs_per_second"], "MACs/s") in text
        for part in data["parts"]:
            assert f"{100 * part['efficiency']:.0f} % of {ms(part['seconds'])}" in text
            assert f"bound {ms(part['floor_seconds'])}" in text

    def test_the_devices_lower_bound(self, result: dict[str, Any], shown: str) -> None:
        html, found = section_of(shown, "Lower bound on"), result["estimate"]
        text = text_of(html)
        for name in ("name", "label", "note"):
            assert found[name] in text
        assert f'href="{found["source"]}"' in html
        for part in found["parts"]:
            assert f"{part['part']} {ms(part['floor_seconds'])}, {part['bound']}" in text
        assert f"in all: {ms(found['floor_seconds'])}" in text
        assert f"{bytes_text(found['needed_bytes'])} of {bytes_text(found['memory_bytes'])}: it fits" in text

    def test_layers(self, result: dict[str, Any], shown: str) -> None:
        text, rows = text_of(section_of(shown, "Layers against FP32")), result["layers"]
        assert f"output diverges from FP32 is {DAMAGED} (tensor colour, " in text
        for row in rows[:20]:
            assert f"{row['node']} {row['tensor']} {row['relative_error']:.1e}" in text

    def test_a_call(self, result: dict[str, Any], shown: str) -> None:
        text = text_of(section_of(shown, "What a call consists of"))
        for side in result["sides"]:
            assert set(side["split"]) == {*PER_CALL, "decode", "text_cold", "text_cached"}
            for seconds in (*side["split"].values(), side["call"], side["overhead"]["seconds"]):
                assert ms(seconds) in text
            whole = sum(side["split"][step] for step in PER_CALL)
            assert f"{side['name']} steps add up to {ms(whole)} {ms(side['call'])}" in text
            for step in PER_CALL:
                assert f"{ms(side['split'][step])}, {100 * side['split'][step] / whole:.1f} %" in text
