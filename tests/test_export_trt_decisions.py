"""What `lavt-export trt` decides without TensorRT: plans, progress, memory, the timing cache."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lavt_edge.errors import ExportError
from lavt_edge.export.engines import build, memory
from lavt_edge.export.engines.build import load_timing_cache, save_timing_cache
from lavt_edge.export.engines.layers import EngineLayer
from lavt_edge.export.engines.memory import NetworkLayer, memory_message, needed_bytes, peak_bytes, tensor_bytes
from lavt_edge.export.engines.options import (
    BuildPlan,
    EngineOptions,
    parse_bytes,
    parse_targets,
    plan_build,
    profile_shapes,
    wanted_graphs,
)
from lavt_edge.export.engines.progress import Phases, run_stoppable
from lavt_edge.export.engines.verify import EngineParity, check_parity
from lavt_edge.runtime.manifest import InputSpec
from lavt_edge.runtime.tensorrt.flavor import Flavor
from lavt_edge.runtime.tensorrt.record import CudaDevice
from lavt_edge.tests.engine_records import a_record

ORIN = CudaDevice("Orin", "8.7", shares_memory=True)
FREE = InputSpec(height=480, width=480, batch=None, max_words=20, prompt_channels=8)
KNOWN = ("sm75", "sm80", "sm86", "sm89", "sm120")


def plan(options: EngineOptions, flavor: str = "tensorrt_rtx", device: CudaDevice | None = None) -> BuildPlan:
    root = Path("/data/robot/bundle")
    return plan_build(root, options, FREE, flavor=flavor, version="1.2", device=device, known_targets=KNOWN)


def test_tensorrt_builds_for_the_device_at_hand_and_keeps_its_timings_beside_the_bundle() -> None:
    made = plan(EngineOptions(max_batch=4), "tensorrt", ORIN)
    assert (made.targets, made.max_batch) == ((), 4)
    assert made.timing_cache == Path("/data/robot/bundle.timing-cache")
    assert plan(EngineOptions(timing_cache=Path("mine")), "tensorrt", ORIN).timing_cache == Path("mine")
    assert made.describe() == "TensorRT 1.2 for Orin (sm87), batches of up to 4"


def test_rtx_builds_for_its_targets_and_has_no_timing_cache() -> None:
    assert plan(EngineOptions(targets=("sm89", "sm75"))).targets == ("sm89", "sm75")
    assert plan(EngineOptions()).targets == ("sm80", "sm86", "sm89", "sm120")
    assert plan(EngineOptions()).timing_cache is None
    assert plan(EngineOptions()).max_batch == 1


@pytest.mark.parametrize(
    ("options", "device", "said"),
    [
        (EngineOptions(), None, "no CUDA device here"),
        (EngineOptions(targets=("sm86",)), ORIN, "--compute-capability is for TensorRT for RTX"),
    ],
)
def test_what_tensorrt_cannot_do_is_refused(options: EngineOptions, device: CudaDevice | None, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        plan(options, "tensorrt", device)


def test_int8_takes_the_fp16_text_encoder() -> None:
    assert wanted_graphs("int8") == (("text_encoder", "fp16"), ("segmenter", "int8"))
    assert wanted_graphs("fp16") == (("text_encoder", "fp16"), ("segmenter", "fp16"))


def test_one_profile_covers_batches_of_one_to_the_largest() -> None:
    shapes = profile_shapes({"image": (-1, 480, 480, 3), "fixed": (2, 20)}, 8)
    assert shapes["image"] == ((1, 480, 480, 3), (8, 480, 480, 3), (8, 480, 480, 3))
    assert shapes["fixed"] == ((2, 20),) * 3
    with pytest.raises(ExportError, match="only the batch"):
        profile_shapes({"image": (1, -1, 480, 3)}, 8)


def test_sizes_and_targets_are_read_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("64", "512M", "2G", "2GiB", "1536k", "1mb")] == [
        64 * 2**20,
        512 * 2**20,
        2 * 2**30,
        2 * 2**30,
        1536 * 2**10,
        2**20,
    ]
    assert parse_targets("sm86, 8.9,SM_120,sm86") == ("sm86", "sm89", "sm120")
    for text in ("", "sm", "86,", "sm8x"):
        with pytest.raises(ExportError, match="--compute-capability"):
            parse_targets(text)


def test_nested_phases_make_one_bar() -> None:
    phases = Phases()
    assert phases.now() == ("", 0.0)
    phases.start("Building engine", None, 2)
    phases.start("Optimizing graph", "Building engine", 4)
    phases.step("Optimizing graph", 1)
    assert phases.now() == ("Optimizing graph", 0.25)
    phases.finish("Optimizing graph")
    assert phases.now() == ("Building engine", 0.25)  # never falls
    phases.step("Building engine", 0)
    assert phases.now() == ("Building engine", 0.5)
    phases.start("Timing", "Building engine", 1)
    phases.start("Timing", "Timing", 2)  # TensorRT uses a name again within itself
    phases.step("Timing", 0)
    assert phases.now() == ("Timing", 0.75)
    phases.finish("Timing")
    phases.finish("Timing")
    phases.step("Building engine", 1)
    phases.finish("Building engine")
    assert phases.now() == ("", 1.0)


def test_an_interrupt_stops_the_work_and_waits_for_it() -> None:
    stop, ended = threading.Event(), threading.Event()

    def work() -> None:
        assert stop.wait(60)
        ended.set()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stoppable(work, stop, interrupted)
    assert ended.is_set()


def test_errors_of_the_work_come_back() -> None:
    def work() -> None:
        raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        run_stoppable(work, threading.Event(), lambda: None)
    assert run_stoppable(lambda: 7, threading.Event(), lambda: None) == 7


def test_a_tensor_takes_memory_until_its_last_reader() -> None:
    layers = [
        NetworkLayer(("image",), (("a", 100),)),
        NetworkLayer(("a",), (("b", 10),)),  # a and b: 110, then a is gone
        NetworkLayer(("b",), (("c", 50), ("unread", 60))),  # b, c and unread: 120
        NetworkLayer(("b", "c"), (("d", 1),)),  # b, c and d: 61
    ]
    assert peak_bytes(layers) == 120
    assert peak_bytes([]) == 0
    assert tensor_bytes((-1, 20, 8), "HALF", 4) == 4 * 20 * 8 * 2
    assert needed_bytes(weights=100, activations=30, workspace=5) == 235
    assert needed_bytes(weights=100, activations=30, workspace=5, builder=True) == 235 + memory.BUILDER_BYTES


def test_shared_memory_is_what_linux_can_make_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Jetson CUDA's figure leaves out the page cache and swap."""
    monkeypatch.setattr(memory, "free_device_memory", lambda: 5)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.free_memory(replace(ORIN, shares_memory=False)) == 5
    assert memory.free_memory(ORIN) is None
    lines = ("MemTotal: 7620 kB", "MemFree: 100 kB", "MemAvailable:    3000 kB", "Cached: 2900 kB", "SwapFree:  500 kB")
    (tmp_path / "meminfo").write_text("\n".join(lines) + "\n")
    assert memory.free_memory(ORIN) == 3500 * 1024


def test_dequantised_weights_are_no_activations() -> None:
    """An INT8 graph's weights reach their product through DequantizeLinear, at four times their size."""
    FakeTensor = namedtuple("FakeTensor", "name shape dtype")
    kind = namedtuple("Kind", "name")

    class Layer:
        def __init__(self, kind_name: str, inputs: list[str], outputs: list[str]) -> None:
            self.type, self.inputs = kind(kind_name), [FakeTensor(name, (1000,), kind("FLOAT")) for name in inputs]
            self.outputs = [FakeTensor(name, (1000,), kind("FLOAT")) for name in outputs]
            self.num_inputs, self.num_outputs = len(inputs), len(outputs)

        def get_input(self, i: int) -> object:
            return self.inputs[i]

        def get_output(self, i: int) -> object:
            return self.outputs[i]

    class Network:
        layers = (
            Layer("CONSTANT", [], ["weight"]),
            Layer("CONSTANT", [], ["scale"]),
            Layer("DEQUANTIZE", ["weight", "scale"], ["wide"]),
            Layer("SHUFFLE", ["wide"], ["turned"]),
            Layer("MATRIX_MULTIPLY", ["image", "turned"], ["out"]),
        )
        num_layers = len(layers)

        def get_layer(self, i: int) -> Layer:
            return self.layers[i]

    (layer,) = memory.network_layers(Network(), 1)  # type: ignore[arg-type]
    assert layer == NetworkLayer(("image", "turned"), (("out", 4000),))


def test_too_little_memory_says_what_to_do() -> None:
    line = memory_message("x.engine", 3 * 2**30, 2**30)
    assert "needs about 3.0 GiB" in line
    assert "1.0 GiB are free" in line
    assert "--max-batch" in line
    assert memory_message("x.engine", 2**20, 2**30).endswith(
        "needs about 1 MiB of device memory to build, 1.0 GiB are free"
    )


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class Config:
    """The part of IBuilderConfig that timing caches take; it knows the cache `good` alone."""

    def __init__(self, timed: bytes = b"") -> None:
        self.cache: Cache | None = Cache(timed)

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return Cache(data) if data in (b"", b"good") else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Cache | None:
        return self.cache


def test_timings_are_kept_and_used_again(tmp_path: Path) -> None:
    path = tmp_path / "bundle.timing-cache"
    save_timing_cache(Config(b"good"), path)  # type: ignore[arg-type]
    assert path.read_bytes() == b"good"
    config = Config()
    load_timing_cache(config, path)  # type: ignore[arg-type]
    assert config.cache is not None
    assert config.cache.data == b"good"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_damaged_timing_cache_costs_time_and_no_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "bundle.timing-cache"
    path.write_bytes(b"of another GPU")
    config = Config(b"unset")
    with caplog.at_level(logging.WARNING):
        load_timing_cache(config, path)  # type: ignore[arg-type]
    assert config.cache is not None
    assert config.cache.data == b""
    assert "made again" in caplog.text
    save_timing_cache(Config(b"good"), tmp_path)  # type: ignore[arg-type]
    assert "cannot be written" in caplog.text


def test_an_engine_far_from_its_graph_is_refused() -> None:
    record = a_record()
    good = EngineParity(1e-3, 0.9995, 2e-3, 3, "segmenter.fp16.onnx", "ONNX Runtime", None)
    check_parity(good, record)
    for bad in (
        replace(good, relative_error=0.03),
        replace(good, pixel_agreement=0.98),
        replace(good, relative_error=np.nan),
    ):
        with pytest.raises(
            ExportError, match="NaN or infinite" if np.isnan(bad.relative_error) else "differs too much"
        ):
            check_parity(bad, record)
    check_parity(replace(good, pixel_agreement=None), record)


def test_builder_and_network_are_gone_when_the_engine_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of the layers loads the engine; on 8 GB the network's weights must not lie beside it."""

    class Held:
        """A builder, a network or a parser."""

    alive: list[weakref.ref[Held]] = []

    def network_from_onnx_path(path: str, strongly_typed: bool) -> tuple[Held, Held, Held]:
        made = Held(), Held(), Held()
        alive.extend(map(weakref.ref, made))
        return made

    def layers(flavor: Flavor, data: bytes) -> list[EngineLayer]:
        assert data == b"engine"
        assert [held() for held in alive] == [None, None, None]
        return []

    trt = SimpleNamespace(
        network_from_onnx_path=network_from_onnx_path,
        engine_bytes_from_network=lambda network, config: b"engine",
        util=SimpleNamespace(),
    )
    module = ModuleType("tensorrt")
    module.ILogger, module.IProgressMonitor = object, object  # type: ignore[attr-defined]
    module.NetworkDefinitionCreationFlag = SimpleNamespace()  # type: ignore[attr-defined]
    polygraphy = build.Polygraphy(trt, None, ZeroDivisionError, contextlib.nullcontext)
    monkeypatch.setattr(build, "import_polygraphy", lambda flavor: polygraphy)
    monkeypatch.setattr(build, "network_layers", lambda network, batch: [])
    monkeypatch.setattr(build, "_configure", lambda *arguments: None)
    monkeypatch.setattr(build, "_layers", layers)
    monkeypatch.setattr(build, "save_timing_cache", lambda config, path: None)
    built = build.build_engine(Path("x.onnx"), plan(EngineOptions()), Flavor("tensorrt", module, "10.3.0"))
    assert (built.data, len(alive)) == (b"engine", 3)
