"""INT8 where it is fastest: the choice on times that are known, on the CPU's own INT8 kernels, and by the commands."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from lavt_edge._base.timing import Timed
from lavt_edge.calibration import CpuDevice, DataOptions, QuantizeOptions, Tuning, placement, quantize_bundle
from lavt_edge.calibration.evaluator import Figures
from lavt_edge.calibration.placement import Placement, losses_alone, select_int8_groups
from lavt_edge.calibration.products import Product
from lavt_edge.calibration.record import recorded_data
from lavt_edge.calibration.tune import part_of, tune
from lavt_edge.errors import ExportError
from lavt_edge.export.engines import bundle as engine_bundle
from lavt_edge.export.engines import device as engine_device
from lavt_edge.export.engines.build import BuiltEngine
from lavt_edge.export.engines.options import EngineOptions
from lavt_edge.export.rewrites.names import WEIGHTS
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import file_entry, open_bundle
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.runtime.update import update_bundle
from lavt_edge.tests.command_runs import Run
from lavt_edge.tests.engine_builds import state
from lavt_edge.tests.runtime_bundle import CHANNELS, HEIGHT, WIDTH, WORDS, expected_logits, write_bundle
from lavt_edge.tests.runtime_machine import Machine
from lavt_edge.tests.runtime_machine import machine as machine
from lavt_edge.tests.runtime_simulated_cuda import plan
from lavt_edge.tests.test_quantize import root as root  # a fixture
from lavt_edge.tests.test_setup import run
from lavt_edge.tests.typed_bundle import copy_bundle

HAS_CUDA = cuda_device_count() > 0

# Points of mean IoU, and milliseconds, that each group costs in INT8; a graph without takes 10 ms.
COSTS = {
    "stage0.attn.qkv": (0.02, -0.5),
    "stage1.attn.qkv": (0.1, -1.5),
    "stage0.mlp.fc1": (0.0, 0.7),
    "stage1.mlp.fc1": (0.0, 0.3),
    "stage1.merge": (0.3, -0.1),
    "decoder.level0.conv": (0.2, -2.0),
}
PRODUCTS = [Product(f"{group}/{i}", group, WEIGHTS, 10) for group in COSTS for i in range(2)]


class Simulated:
    """A device on which each group's time is known, and which counts what is loaded."""

    def __init__(self, *, together: float = 0.0, **changed: float) -> None:
        self.together = together  # milliseconds more if attention and merging alone are in INT8
        self.milliseconds = {group: changed.get(part_of(group), cost) for group, (_, cost) in COSTS.items()}
        self.loaded = self.most = 0
        self.stop_after: int | None = None

    def time_of(self, products: Sequence[Product]) -> float:
        groups = {product.group for product in products}
        attention = {group for group in COSTS if ".attn." in group or group.endswith(".merge")}
        return 10 + sum(self.milliseconds[group] for group in groups) + self.together * (groups == attention)

    @contextmanager
    def load(self, products: Sequence[Product]) -> Iterator[Timed]:
        device, milliseconds = self, self.time_of(products)

        class Side:
            calls = 0

            def run(self) -> float:
                Side.calls += 1
                if Side.calls == device.stop_after:
                    raise KeyboardInterrupt
                noise = 1 + 0.001 * (Side.calls % 5)  # none of it between sides
                return milliseconds * noise / 1e3

        self.loaded += 1
        self.most = max(self.most, self.loaded)
        try:
            yield Side()
        finally:
            self.loaded -= 1

    def tune(self, max_drop: float, policy: str = "auto") -> tuple[set[str], Tuning]:
        def evaluate(products: Sequence[Product]) -> Figures:
            drop = sum(COSTS[group][0] for group in {product.group for product in products})
            return Figures(8, 70 - drop, drop, 1, drop / 10)

        alone = losses_alone(PRODUCTS, lambda group, _: evaluate([p for p in PRODUCTS if p.group == group]))

        def select(products: Sequence[Product], saved: Mapping[str, float] | None) -> Placement:
            return select_int8_groups(products, alone, evaluate, max_drop, saved=saved)

        chosen, tuning = tune(PRODUCTS, policy, select, evaluate, self.load, max_drop, "a simulated device")
        assert self.loaded == 0
        return {product.group for product in chosen.products}, tuning


class TestChoice:
    def test_what_makes_it_slower_is_left_out(self) -> None:
        groups, tuning = Simulated().tune(max_drop=5)
        assert groups == set(COSTS) - {"stage0.mlp.fc1", "stage1.mlp.fc1"}
        kept = next(one for one in tuning.placements if one.kept)
        assert kept.median_ms == min(one.median_ms for one in tuning.placements)
        assert (kept.median_ms, kept.drop) == (pytest.approx(10 - 4.1, rel=0.01), pytest.approx(0.62))
        usual = next(one for one in tuning.placements if one.placement == "auto")
        assert set(usual.groups) == set(COSTS)
        parts = {one.part: one.ratio for one in tuning.parts}
        assert parts["attn.qkv"] == pytest.approx(0.8)
        assert parts["mlp.fc1"] == pytest.approx(1.1)

    def test_a_budget_that_forbids_the_fastest_takes_the_next(self) -> None:
        groups, tuning = Simulated().tune(max_drop=0.35)
        assert groups == {"stage0.attn.qkv", "stage1.attn.qkv", "decoder.level0.conv"}
        assert all(one.drop <= 0.35 for one in tuning.placements)
        groups, _ = Simulated().tune(max_drop=0.15)
        assert groups == {"stage0.attn.qkv", "stage1.attn.qkv"}

    def test_what_is_faster_together_is_found(self) -> None:
        """As where a GPU has one kernel for attention in INT8: no part of it alone says so."""
        together = Simulated(together=-6, **{"attn.qkv": 0.1, "merge": 0.1, "decoder.conv": -0.5})
        groups, tuning = together.tune(max_drop=5)
        assert groups == {"stage0.attn.qkv", "stage1.attn.qkv", "stage1.merge"}
        assert next(one.placement for one in tuning.placements if one.kept) == "bytes"

    def test_each_set_of_groups_is_measured_once(self) -> None:
        device = Simulated(**{"mlp.fc1": -0.2})
        _, tuning = device.tune(max_drop=5)
        assert [one.placement for one in tuning.placements] == ["none", "auto", "bytes", "decoder"]
        assert device.most == 4

    def test_int8_that_saves_no_time_is_refused(self) -> None:
        slow = Simulated(**{part_of(group): 0.2 for group in COSTS})
        with pytest.raises(ExportError, match=r"saves no time on a simulated device: 10\.0. ms without, 10\.\d\d ms"):
            slow.tune(max_drop=5)

    def test_a_budget_that_nothing_keeps_is_refused(self) -> None:
        with pytest.raises(ExportError, match="no layer group keeps within -1 points"):
            Simulated().tune(max_drop=-1)

    def test_a_stop_frees_the_device(self) -> None:
        device = Simulated()
        device.stop_after = 40
        with pytest.raises(KeyboardInterrupt):
            device.tune(max_drop=5)
        assert device.loaded == 0

    def test_attention_products_are_timed_together(self) -> None:
        assert {part_of(f"stage2.attn.{name}") for name in ("scores", "values")} == {"attn.products"}
        assert part_of("stage0.mlp.fc1") == part_of("stage3.mlp.fc1") == "mlp.fc1"
        assert part_of("decoder.level2.taps") == "decoder.taps"


BUDGET = 1.5
FEW_ROUNDS = """
import lavt_edge.calibration.tune as tune
from lavt_edge.cli import export_main

tune.PART_ROUNDS, tune.ROUNDS = 8, 16
export_main()
"""


@pytest.fixture(scope="module")
def tuned(demo_bundle: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle whose INT8 graph was tuned for this CPU by the command, and what that said."""
    bundle = tmp_path_factory.mktemp("tuned") / "bundle"
    shutil.copytree(demo_bundle, bundle)
    options = ("--int8", "--rest", "fp32", "--tune", "--policy", "decoder", "--max-drop", str(BUDGET), "--samples", "8")
    command = ("quantize", bundle, *options, "--calibration-data", root)
    done = run(sys.executable, "-c", FEW_ROUNDS, *command, timeout=600)
    if "INT8 saves no time on ONNX Runtime" in done.stderr:
        pytest.skip("this CPU is no faster in INT8")
    assert done.returncode == 0, done.stderr
    return bundle, done.stdout


class TestCpu:
    """The CPU's own INT8 kernels: real times, of which only their order is asserted."""

    def test_the_fastest_within_the_budget_is_kept(self, tuned: tuple[Path, str]) -> None:
        bundle, said = tuned
        about = open_bundle(bundle).manifest.precisions["int8-cpu"]
        record = about["tuned"]
        placements = {one["placement"]: one for one in record["placements"]}
        (kept,) = (one for one in placements.values() if one["kept"])
        within = [one["median_ms"] for one in placements.values() if one["drop"] <= BUDGET]
        assert kept["median_ms"] == min(within)
        assert kept["drop"] == about["against_fp32"]["drop"] <= about["max_drop"] == BUDGET
        assert set(kept["groups"]) == {one["group"] for one in about["groups"] if one["int8"]}
        assert {"none", "decoder"} <= placements.keys()
        assert placements["none"]["groups"] == []
        assert (record["device"], record["rounds"]) == ("ONNX Runtime on the CPU", 16)
        assert {"decoder.skip", "decoder.taps", "decoder.conv"} == {one["part"] for one in record["parts"]}
        for one in placements.values():
            first, third = one["quartiles_ms"]
            assert 0 < first <= one["median_ms"] <= third
        assert "kept" in said
        assert f"{kept['median_ms']:.2f}" in said
        with Segmenter.load(bundle, precision="int8-cpu", device="cpu") as segmenter:
            assert segmenter.precision == "int8-cpu"

    def test_a_stop_leaves_the_bundle_as_it_was(
        self, tuned: tuple[Path, str], root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, _ = tuned
        monkeypatch.setattr("lavt_edge.calibration.tune.PART_ROUNDS", 2)
        before = state(bundle)

        def stop(step: str) -> None:
            if step.endswith(" placements"):
                raise KeyboardInterrupt

        data = DataOptions(dataset="refcoco", root=root, samples=8)
        options = QuantizeOptions(rest="fp32", policy="decoder", max_drop=5, data=data)
        with pytest.raises(KeyboardInterrupt):
            quantize_bundle(bundle, "int8", options, device=CpuDevice(), replace=True, report=stop)
        assert state(bundle) == before


def test_a_placement_is_timed_on_tensorrt(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of a graph is built, run for its logits, and freed; TensorRT's build is a stand-in."""
    bundle = write_bundle(tmp_path / "bundle", 1)
    built: list[Path] = []

    def build(graph: Path, *_: object, **__: object) -> BuiltEngine:
        built.append(graph)
        return BuiltEngine(plan("segmenter", 1), [], 0.0)

    monkeypatch.setattr(engine_device, "build_engine", build)
    monkeypatch.setattr(engine_bundle, "find_device", machine.cuda.described)
    device = engine_device.EngineDevice(bundle, EngineOptions(precision="int8"))
    assert device.name.startswith("TensorRT 10.3.0 on ")
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    prompt, words = np.ones((1, WORDS, CHANNELS), np.float32), np.ones((1, WORDS), np.float32)
    with device.load(tmp_path / "segmenter.int8.onnx") as engine:
        (logits,) = engine.run({"image": image, "prompt": prompt, "word_mask": words}, ("logits",))
    np.testing.assert_allclose(logits[0], expected_logits(image[0], prompt[0], words[0]))
    assert built == [tmp_path / "segmenter.int8.onnx"]


class SleepingDevice:
    """Takes a graph without INT8 for slow, and the others for faster the more of their products are in INT8."""

    name = "a sleeping device"

    def __init__(self, *_: object) -> None: ...

    @contextmanager
    def load(self, graph: Path) -> Iterator[SleepingDevice]:
        nodes = onnx.load(graph).graph.node
        self.seconds = 0.008 / (1 + sum(node.op_type == "DequantizeLinear" for node in nodes))
        sleeping = SleepingDevice()
        sleeping.seconds = self.seconds
        yield sleeping

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]], outputs: Sequence[str]) -> list[object]:
        assert feeds["image"].ndim == 4
        assert outputs == ("logits",)
        time.sleep(self.seconds)
        return []


class TestTrt:
    def test_the_engine_is_of_the_tuned_graph(
        self, demo_bundle: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is for x86-64")
        bundle = copy_bundle(demo_bundle, tmp_path / "bundle")
        quantize_bundle(bundle, "fp16", QuantizeOptions(data=DataOptions(samples=4)))
        monkeypatch.setattr(engine_device, "EngineDevice", SleepingDevice)
        monkeypatch.setattr(placement, "RANKING_MACS", 1)  # on 4 sentences
        options = ("--flavor", "tensorrt_rtx", "--compute-capability", "sm86", "--int8", "--tune", "--max-drop", "4")
        code, said, error = command("lavt-export", "trt", bundle, *options)
        assert code == 0, error
        assert "a sleeping device" in said
        manifest = open_bundle(bundle).manifest
        about = manifest.precisions["int8"]
        assert (about["tuned"]["device"], about["max_drop"]) == ("a sleeping device", 4)
        assert about["against_fp32"]["drop"] <= 4
        assert about["data"]["samples"] == 4  # the bundle's own calibration
        digest = manifest.files["segmenter.int8.onnx"].sha256
        assert manifest.engines["segmenter.int8.engine"]["onnx_sha256"] == digest

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("quantize", "--fp16", "--tune"), "--tune is for --int8"),
            (("trt", "--fp16", "--tune"), "--tune is for --int8"),
            (("trt", "--int8", "--max-drop", "1"), "--max-drop needs --tune"),
        ],
    )
    def test_what_cannot_be_is_one_line(
        self, arguments: tuple[str, ...], said: str, demo_bundle: Path, command: Run
    ) -> None:
        name, *options = arguments
        code, _, error = command("lavt-export", name, demo_bundle, *options)
        assert (code, error.count("\n")) == (1, 1)
        assert said in error

    @pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
    @pytest.mark.parametrize("name", ["quantize", "trt"])
    def test_without_a_gpu_it_is_refused_before_any_work(self, name: str, demo_bundle: Path, command: Run) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is for x86-64")
        before = state(demo_bundle)
        code, _, error = command("lavt-export", name, demo_bundle, "--int8", "--tune")
        assert (code, error.count("\n")) == (1, 1)
        assert "there is no CUDA device here: run this on the device" in error
        assert state(demo_bundle) == before


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"dataset": "shapes", "samples": 4, "seed": 3}, DataOptions(samples=4, seed=3)),
        ({"dataset": "shapes", "samples": "many"}, DataOptions()),
        ({"dataset": "shapes", "samples": 1e300}, DataOptions()),
        ([1], DataOptions()),
        ({"dataset": "refcoco", "samples": 4, "seed": 0}, "is of refcoco: run lavt-export quantize .* --tune"),
    ],
)
def test_the_data_of_a_calibration_is_taken_again(
    key: object, said: DataOptions | str, demo_bundle: Path, tmp_path: Path
) -> None:
    root = copy_bundle(demo_bundle, tmp_path / "bundle")
    assert recorded_data(open_bundle(root)) == DataOptions()
    empty: dict[str, object] = {"ranges": {}, "channels": {}, "strengths": {}, "histograms": {}}
    with update_bundle(root) as change:
        path = change.new("calibration.json")
        path.write_text(json.dumps({"format_version": 1, "key": {"data": key}, **empty}))
        change.commit({"calibration.json": file_entry(path, "calibration")})
    if isinstance(said, DataOptions):
        assert recorded_data(open_bundle(root)) == said
    else:
        with pytest.raises(ExportError, match=said):
            recorded_data(open_bundle(root))
