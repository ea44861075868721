"""The roofline, its ceilings on this machine, and the lower bounds that published peaks give for devices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from lavt_edge._base.records import to_plain
from lavt_edge.benchmarks.parts import roofline as roofline_module
from lavt_edge.benchmarks.parts.costs import cost_rows, floor_seconds
from lavt_edge.benchmarks.parts.devices import DEVICES, Device, estimate, find_device
from lavt_edge.benchmarks.parts.roofline import (
    convolution_graph,
    copy_graph,
    measure_ceilings,
    product_graph,
    roofline,
)
from lavt_edge.benchmarks.timing.result import Ceilings, PartBound, TimedPart
from lavt_edge.errors import LavtError
from lavt_edge.runtime.backend import create_session

ROUND = Device("round", "Round figures", 2e12, 4e12, 1e9, 10_000, "https://example.org", "none")


def row(part: str, nbytes: int, seconds: float = 0.0, **macs: int) -> TimedPart:
    return TimedPart(part, sum(macs.values()), macs, nbytes, nbytes // 2, nbytes // 4, seconds)


class TestRoofline:
    def test_the_slower_of_computing_and_moving_is_the_floor(self) -> None:
        rates = {"fp32": 1e9, "int8": 4e9}
        assert floor_seconds({"fp32": 10**9, "int8": 2 * 10**9}, 10**9, rates, 1e9) == (1.5, "compute")
        assert floor_seconds({"int8": 2 * 10**9}, 10**9, rates, 1e9) == (1.0, "memory")
        assert floor_seconds({"fp16": 10**9}, 0, rates, None) == (0.0, "compute")  # no ceiling for it

    def test_efficiency_is_floor_over_time(self) -> None:
        rows = [row("a", 10**6, seconds=0.004, fp32=10**6), row("b", 0, seconds=0.0), row("c", 500, fp32=10**6)]
        a, b, c = roofline(rows, Ceilings(1e9, "fp32", {"fp32": 1e9}, 1e9, 2, "")).parts
        assert (a.floor_seconds, a.bound, a.efficiency) == pytest.approx((0.001, "compute", 0.25))
        assert a.macs_per_byte == 1
        assert (b.floor_seconds, b.efficiency, b.macs_per_byte) == (0, None, None)
        assert (c.efficiency, c.macs_per_byte) == (None, 2000)

    def test_ceilings_are_measured_here(self) -> None:
        ceilings = measure_ceilings(("fp32", "int8"), threads=1)
        assert set(ceilings.by_precision) == {"fp32", "int8"}
        assert all(1e8 < rate < 1e14 for rate in ceilings.by_precision.values())
        assert (ceilings.precision, ceilings.macs_per_second) == ("fp32", ceilings.by_precision["fp32"])
        assert 1e8 < ceilings.bytes_per_second < 1e13
        assert json.loads(json.dumps(to_plain(ceilings)))["threads"] == 1

    def test_an_unknown_precision_is_refused(self) -> None:
        with pytest.raises(ValueError, match="precision 'fp8': give some of fp32, fp16, int8"):
            measure_ceilings(["fp8"])

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_the_product_is_a_product(self, precision: str) -> None:
        model = product_graph(precision, 32)
        session = create_session(model.SerializeToString())
        left = np.random.default_rng(1).uniform(-2, 2, (32, 32)).astype("float16" if precision == "fp16" else "float32")
        constants = {one.name: onnx.numpy_helper.to_array(one).astype(np.float64) for one in model.graph.initializer}
        weight = constants["w"] if precision != "int8" else constants["w"] * constants["w_scale"]
        found, wanted = session.run(None, {"a": left})[0], left.astype(np.float64) @ weight
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.02

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_the_convolution_is_a_convolution(self, precision: str) -> None:
        model = convolution_graph(precision, (1, 16, 5, 6))
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        image = np.random.default_rng(1).uniform(-2, 2, (1, 16, 5, 6)).astype("float32")
        constants = {one.name: onnx.numpy_helper.to_array(one).astype(np.float64) for one in model.graph.initializer}
        weight = constants["w"] if precision != "int8" else constants["w"] * constants["w_scale"][0]
        wanted = torch.nn.functional.conv2d(
            torch.from_numpy(image).double(), torch.from_numpy(weight), padding=1
        ).numpy()
        found = session.run(None, {"a": image})[0]
        step = 20.0 if precision == "int8" else 0.001  # of the result's own quantisation
        assert found.shape == image.shape
        assert abs(found - wanted).max() < step

    def test_ceilings_are_the_better_of_product_and_convolution(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whichever of the two is made slow, the other's rate is the ceiling."""
        made = roofline_module._runner

        def slow_on(axes: int) -> float:
            def runner(model: onnx.ModelProto, array: Any, threads: int | None) -> Callable[[], object]:
                run = made(model, array, threads)
                return (lambda: (time.sleep(0.2), run())) if array.ndim == axes else run

            monkeypatch.setattr(roofline_module, "_runner", runner)
            return measure_ceilings(["fp32"], threads=1).by_precision["fp32"]

        slowest = 9 * 512 * 512 * 900 / 0.2
        assert slow_on(2) > 1.5 * slowest
        assert slow_on(4) > 1.5 * slowest

    @pytest.mark.parametrize("graph", [product_graph("int8", 64), convolution_graph("int8", (1, 16, 8, 8))])
    def test_int8_is_computed_in_integers(self, tmp_path: Path, graph: onnx.ModelProto) -> None:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
        operations = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
        assert not operations & {"MatMul", "Conv"}
        assert any("Integer" in one or "QLinear" in one for one in operations)

    def test_the_copy_touches_every_number(self) -> None:
        session = ort.InferenceSession(copy_graph(5).SerializeToString(), providers=["CPUExecutionProvider"])
        assert session.run(None, {"a": np.arange(5, dtype=np.float32)})[0].tolist() == [0, -1, -2, -3, -4]


class TestDevices:
    @pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)
    def test_figures_are_dense_consistent_and_have_a_source(self, device: Device) -> None:
        assert device.source.startswith("https://")
        assert "nvidia.com" in device.source
        assert device.fp16_flops is not None
        assert device.int8_ops is not None
        # Published figures are rounded to whole TOPS; INT8 runs at twice the rate of FP16.
        assert device.int8_ops / device.fp16_flops == pytest.approx(2, abs=0.1)
        assert "sparse" in device.note  # says what became of the figure on the box

    def test_the_four_devices_are_there(self) -> None:
        wanted = {"jetson-orin-nano": 8, "jetson-orin-nx": 16, "jetson-agx-orin": 64, "jetson-thor": 128}
        assert {device.key: device.memory // 10**9 for device in DEVICES} == wanted
        assert find_device("jetson-agx-orin").int8_ops == 85e12

    def test_each_product_counts_at_the_rate_of_its_type(self) -> None:
        found = estimate([row("a", 1000, int8=2 * 10**9, fp16=10**9, fp32=10**9), row("b", 4000)], ROUND, "int8")
        # 2e9 MACs at 2e12 a second, and twice 1e9 at 1e12: FP32 counts as FP16.
        assert found.parts[0] == PartBound("a", pytest.approx(0.003), "compute")
        assert found.parts[1] == PartBound("b", pytest.approx(4e-6), "memory")
        assert found.floor_seconds == pytest.approx(0.003004)

    def test_a_graph_of_another_precision_says_what_if(self) -> None:
        rows = [row("a", 8000, fp32=10**9)]
        assert [estimate(rows, ROUND, one).needed_bytes for one in ("fp32", "fp16", "int8")] == [6000, 3000, 1500]
        fp16, int8 = estimate(rows, ROUND, "fp16"), estimate(rows, ROUND, "int8")
        assert (fp16.floor_seconds, int8.floor_seconds) == pytest.approx((1e-3, 5e-4))

    def test_memory_is_weights_and_the_fullest_moment(self) -> None:
        rows = [row("a", 8000, fp16=1), row("b", 4000, fp16=1)]
        found = estimate(rows, ROUND, "fp16")
        assert (found.needed_bytes, found.fits) == (4000 + 2000 + 2000, True)
        assert not estimate(rows, replace(ROUND, memory=7999), "fp16").fits

    def test_what_is_not_published_sets_no_floor(self) -> None:
        bare = replace(ROUND, int8_ops=None, bandwidth=None)
        assert estimate([row("a", 1000, int8=10**9)], bare, "int8").floor_seconds == 0

    def test_the_demo_on_a_jetson(self, demo_bundle: Path) -> None:
        rows = cost_rows(demo_bundle / "segmenter.onnx")
        found = {device.key: estimate(rows, device, "fp16") for device in DEVICES}
        # At least all MACs at the full rate, and no part less than that.
        assert found["jetson-orin-nano"].floor_seconds >= sum(one.macs for one in rows) / 8.5e12
        assert (
            found["jetson-thor"].floor_seconds
            < found["jetson-agx-orin"].floor_seconds
            < found["jetson-orin-nano"].floor_seconds
        )
        assert all(one.fits for one in found.values())
        made = json.loads(json.dumps(to_plain(found["jetson-thor"])))
        assert "not a promise" in made["label"]
        assert made["floor_seconds"] == pytest.approx(sum(one["floor_seconds"] for one in made["parts"]))

    def test_mistakes_name_the_choices(self) -> None:
        with pytest.raises(LavtError, match="unknown device 'jetson-nano': give one of jetson-orin-nano, "):
            estimate([], "jetson-nano", "fp16")
        with pytest.raises(LavtError, match="precision 'fp8': give one of fp32, fp16, bf16, int8"):
            estimate([], "jetson-thor", "fp8")
