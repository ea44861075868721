"""Which engine a bundle runs, on a simulated device: the best that fits, else ONNX Runtime, with the reason."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lavt_edge.errors import BackendError, BundleError
from lavt_edge.runtime import Segmenter, UnusedEngineWarning, UnverifiedEngineWarning, graphs
from lavt_edge.tests.runtime_engines import add_engine
from lavt_edge.tests.runtime_machine import Machine, pretend
from lavt_edge.tests.runtime_machine import bundle as bundle
from lavt_edge.tests.runtime_machine import machine as machine
from lavt_edge.tests.runtime_machine import pristine as pristine
from lavt_edge.tests.runtime_simulated_cuda import plan


def test_the_best_engine_is_verified_first_then_fp16(machine: Machine, bundle: Path) -> None:
    for precision, verified in (("int8", True), ("fp32", True)):
        add_engine(bundle, f"segmenter.{precision}.engine", plan("segmenter", 1), verified=verified)
    assert Segmenter.load(bundle).precision == "fp16"
    assert Segmenter.load(bundle, precision="int8").files == ("text_encoder.fp16.engine", "segmenter.int8.engine")
    add_engine(bundle, "segmenter.fp16.engine", plan("segmenter", 1), verified=False)
    assert Segmenter.load(bundle).precision == "int8"
    add_engine(bundle, "segmenter.int8.engine", plan("segmenter", 1), compute_capability="8.6")
    assert Segmenter.load(bundle).precision == "fp32"
    assert Segmenter.load(bundle, device="cpu").runtime.startswith("ONNX Runtime")


def test_an_unverified_engine_warns_each_time_and_names_the_caller(machine: Machine, bundle: Path) -> None:
    add_engine(bundle, "segmenter.fp16.engine", plan("segmenter", 1), verified=False)
    for path in (bundle, bundle / "segmenter.fp16.engine", bundle):
        with pytest.warns(UnverifiedEngineWarning, match=r"segmenter\.fp16\.engine of .*masks may be wrong") as caught:
            Segmenter.load(path)
        assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    add_engine(bundle, "text_encoder.fp16.engine", plan("text_encoder", 1), verified=False)
    with pytest.warns(UnverifiedEngineWarning, match="text_encoder.fp16.engine and segmenter.fp16.engine of"):
        Segmenter.load(bundle)


REBUILD = "lavt-export trt {bundle} --fp16"
NONE_FITS = "no engine of {bundle} fits this machine: it runs on ONNX Runtime"
ENGINE, TEXT = "segmenter.fp16.engine", "text_encoder.fp16.engine"
ENGINES, GRAPHS = (TEXT, ENGINE), ("text_encoder.onnx", "segmenter.onnx")
HERE = "this machine has Simulated GPU (8.7)"
UNVERIFIED = "masks may be wrong; build on this machine to verify: " + REBUILD


@dataclass(frozen=True)
class Situation:
    """What is changed in a bundle with verified FP16 engines for this machine, what runs then, and the warnings."""

    image: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[str, str] = ENGINES
    warned: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    version: str = "10.3.0"
    load: Mapping[str, Any] = field(default_factory=dict)
    break_up: Callable[[Path, Machine], object] = lambda bundle, machine: None


def unused(reason: str, *more: str) -> tuple[str, ...]:
    return (f"{ENGINE} is not used: {reason}", *(more or (NONE_FITS,)))


def damage(name: str) -> Callable[[Path, Machine], object]:
    return lambda bundle, machine: (bundle / name).write_bytes((bundle / name).read_bytes()[:-1] + b"?")


def no_text_engine(reason: str) -> tuple[str, ...]:
    return (f"{TEXT} is not used, the text encoder runs on ONNX Runtime: {reason}",)


SITUATIONS = {
    "all fits": Situation(),
    "another GPU": Situation(
        {"gpu": "Other GPU"}, runs=GRAPHS, warned=unused(f"{ENGINE} was built for Other GPU (8.7), {HERE}: {REBUILD}")
    ),
    "another compute capability": Situation(
        {"compute_capability": "8.6"},
        runs=GRAPHS,
        warned=unused(f"{ENGINE} was built for Simulated GPU (8.6), {HERE}: {REBUILD}"),
    ),
    "another power mode": Situation(
        {"multiprocessors": 16},
        warned=(
            f"{ENGINE} was built for Simulated GPU with 16 multiprocessors, 8 are on now: it may be slow or fail; set "
            f"the power mode that it was built in (nvpmodel), or build it in this one: {REBUILD}",
        ),
    ),
    "the same power mode": Situation({"multiprocessors": 8}, {"multiprocessors": 8}),
    "another power mode, for every GPU since Ampere": Situation({"multiprocessors": 16, "hardware_compatible": True}),
    "another GPU, for every GPU since Ampere": Situation({"gpu": "Other GPU", "hardware_compatible": True}),
    "an older GPU than Ampere": Situation(
        {"hardware_compatible": True},
        runs=GRAPHS,
        machine={"capability": "7.2"},
        warned=unused(
            f"{ENGINE} was built for compute capability 8.0 or later, this machine has Simulated GPU (7.2): {REBUILD}"
        ),
    ),
    "a newer TensorRT": Situation(
        runs=GRAPHS,
        version="10.13.3",
        warned=unused(f"{ENGINE} was built with TensorRT 10.3.0, this machine has TensorRT 10.13.3: {REBUILD}"),
    ),
    "a newer TensorRT, version compatible": Situation(
        {"version_compatible": True}, {"version_compatible": True}, version="10.13.3"
    ),
    "an older TensorRT, version compatible": Situation(
        {"version_compatible": True},
        runs=GRAPHS,
        version="10.2.0",
        warned=unused(f"{ENGINE} was built with TensorRT 10.3.0, this machine has TensorRT 10.2.0: {REBUILD}"),
    ),
    "a post release of the same TensorRT": Situation(version="10.3.0.post1"),
    "another build of the same release": Situation(version="10.3.0.30"),
    "the header names another version": Situation(
        {"version": "10.4.0"},
        runs=GRAPHS,
        warned=unused(f"{{bundle}}/{ENGINE} was built with 10.3.0.0, lavt.json says 10.4.0: {REBUILD}"),
    ),
    "the file is of another flavour": Situation(
        {"flavor": "tensorrt_rtx", "version": "1.7.1"},
        runs=GRAPHS,
        warned=unused(f"{{bundle}}/{ENGINE} is an engine of TensorRT, lavt.json says TensorRT for RTX: {REBUILD}"),
    ),
    "no TensorRT": Situation(
        runs=GRAPHS,
        break_up=lambda bundle, machine: sys.modules.__setitem__("tensorrt", None),  # type: ignore[arg-type]
        warned=unused(
            f"{ENGINE} needs TensorRT: no TensorRT can be imported (tensorrt: import of tensorrt halted; None in "
            "sys.modules; tensorrt_rtx: import of tensorrt_rtx halted; None in sys.modules): pip install tensorrt, or "
            "tensorrt-rtx-cu13; a Jetson's JetPack brings it"
        ),
    ),
    "the engine is damaged": Situation(
        runs=GRAPHS,
        break_up=damage(ENGINE),
        warned=unused(f"{{bundle}}/{ENGINE} has another SHA-256 than lavt.json says, it was altered: {REBUILD}"),
    ),
    "the graph is newer than the engine": Situation(
        {"onnx_sha256": "0" * 64},
        runs=GRAPHS,
        warned=unused(f"{ENGINE} was built from another segmenter.onnx than the bundle has now: {REBUILD}"),
    ),
    "a malformed record": Situation(
        {"max_batch": "1"},
        runs=GRAPHS,
        warned=unused(f"lavt.json: engines.{ENGINE}.max_batch: expected a whole number, found '1': {REBUILD}"),
    ),
    "never compared with its graph": Situation(
        {"verified": False},
        warned=(f"{ENGINE} of {{bundle}}: outputs were never compared with the graph's, {UNVERIFIED}",),
    ),
    "neither was compared": Situation(
        {"verified": False},
        {"verified": False},
        warned=(f"{TEXT} and {ENGINE} of {{bundle}}: outputs were never compared with the graph's, {UNVERIFIED}",),
    ),
    "the text engine is for another GPU": Situation(
        text={"gpu": "Other GPU"},
        runs=("text_encoder.onnx", ENGINE),
        warned=no_text_engine(f"{TEXT} was built for Other GPU (8.7), {HERE}: {REBUILD}"),
    ),
    "the text engine is damaged": Situation(
        runs=("text_encoder.onnx", ENGINE),
        break_up=damage(TEXT),
        warned=no_text_engine(f"{{bundle}}/{TEXT} has another SHA-256 than lavt.json says, it was altered: {REBUILD}"),
    ),
    "the driver is too old": Situation(
        runs=GRAPHS,
        break_up=lambda bundle, machine: machine.cuda.failing.update(cudaSetDevice=35),
        warned=unused("no usable CUDA device (error 35: simulated failure)"),
    ),
    "out of memory": Situation(
        runs=GRAPHS,
        break_up=lambda bundle, machine: machine.cuda.failing.update(cudaHostAlloc=2),
        warned=unused("out of GPU memory: close other programs, or build the engine with a smaller --max-batch"),
    ),
    "the CPU was asked for": Situation(runs=GRAPHS, load={"device": "cpu"}),
    "another precision was asked for": Situation(runs=GRAPHS, load={"precision": "fp32"}),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_runs_and_what_is_warned_of(name: str, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    situation = SITUATIONS[name]
    machine = pretend(monkeypatch, situation.version, **situation.machine)
    capability = {"compute_capability": situation.machine.get("capability", "8.7")}
    add_engine(bundle, ENGINE, plan("segmenter", 1), **{**capability, **situation.image})
    add_engine(bundle, TEXT, plan("text_encoder", 1), **{**capability, **situation.text})
    situation.break_up(bundle, machine)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        segmenter = Segmenter.load(bundle, threads=1, **situation.load)
    assert segmenter.files == situation.runs
    assert [str(one.message) for one in caught] == [line.format(bundle=bundle) for line in situation.warned]
    assert {Path(one.filename).name for one in caught} <= {Path(__file__).name}
    monkeypatch.undo()


@pytest.mark.parametrize("fields", [{"gpu": "Other GPU"}, {"max_batch": "1"}, {"version": "10.4.0"}])
def test_an_engine_that_is_named_and_does_not_fit_is_refused(
    machine: Machine, bundle: Path, fields: dict[str, Any]
) -> None:
    path = add_engine(bundle, "segmenter.fp16.engine", plan("segmenter", 1), **fields)
    with pytest.raises((BackendError, BundleError)) as caught:
        Segmenter.load(path)
    assert str(caught.value).endswith(f"lavt-export trt {bundle} --fp16")
    assert not machine.tensorrt.deserialised


def test_an_engine_of_a_post_release_is_used(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    pretend(monkeypatch, version="10.13.3.9.post1")
    for role in ("segmenter", "text_encoder"):
        add_engine(bundle, f"{role}.fp16.engine", plan(role, 1, version="10.13.3.9"), version="10.13.3.9.post1")
    assert Segmenter.load(bundle).runtime == "TensorRT 10.13.3.9.post1"


def test_an_engine_of_another_tensorrt(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    machine = pretend(monkeypatch, version="10.13.3")
    with pytest.raises(
        BackendError, match=r"built with TensorRT 10\.3\.0, this machine has TensorRT 10\.13\.3: lavt-export trt"
    ):
        Segmenter.load(bundle / "segmenter.fp16.engine")
    add_engine(bundle, "segmenter.fp16.engine", plan("segmenter", 1), version_compatible=True)
    assert Segmenter.load(bundle).runtime == "TensorRT 10.13.3"
    rtx = plan("segmenter", 1, version="1.7.1")
    rtx = b"vtrt" + rtx[4:16] + len(rtx).to_bytes(8, "little") + rtx[24:]
    add_engine(bundle, "segmenter.fp16.engine", rtx, flavor="tensorrt_rtx", version="1.7.1")
    with pytest.raises(BackendError, match=r"TensorRT for RTX 1\.7\.1, this machine has TensorRT 10\.13\.3"):
        Segmenter.load(bundle / "segmenter.fp16.engine")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="needs TensorRT for RTX: no TensorRT can be imported"):
        Segmenter.load(bundle / "segmenter.fp16.engine")
    assert len(machine.tensorrt.deserialised) == 1  # the version-compatible one


def test_without_a_device_a_bundle_runs_on_onnx_runtime_and_its_engine_does_not(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = pretend(monkeypatch)
    monkeypatch.setattr(graphs, "cuda_device_count", lambda: 0)
    with pytest.warns(UnusedEngineWarning, match="not on its engines: no CUDA device was found"):
        assert Segmenter.load(bundle, threads=1).runtime.startswith("ONNX Runtime")
    machine.cuda.failing["cudaSetDevice"] = 35
    with pytest.raises(BackendError, match="no usable CUDA device"):
        Segmenter.load(bundle / "segmenter.fp16.engine")
    with pytest.raises(BackendError, match="runs on a CUDA device, not on 'cpu'"):
        Segmenter.load(bundle / "segmenter.fp16.engine", device="cpu")


def test_only_the_image_graphs_engine_of_the_asked_precision_can_be_named(machine: Machine, bundle: Path) -> None:
    with pytest.raises(BundleError, match="is the bundle's text_encoder, not an image graph"):
        Segmenter.load(bundle / "text_encoder.fp16.engine")
    with pytest.raises(BundleError, match="is of precision fp16, not int8"):
        Segmenter.load(bundle / "segmenter.fp16.engine", precision="int8")
    shutil.copy(bundle / "segmenter.fp16.engine", bundle / "other.engine")
    with pytest.raises(BundleError, match=r"is not listed in lavt\.json"):
        Segmenter.load(bundle / "other.engine")
