"""Which engine a bundle runs, on a simulated device: the best that fits, else ONNX Runtime, with the reason."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from lavt_edge.errors import BackendError, BundleError
from lavt_edge.runtime import Segmenter, UnverifiedEngineWarning, graphs
from lavt_edge.tests.runtime_engines import add_engine
from lavt_edge.tests.runtime_machine import Machine, photo, pretend
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


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": "10.4.0"}, "was built with 10.3.0.0, lavt.json says 10.4.0"),
        ({"flavor": "tensorrt_rtx", "version": "1.7.1"}, "is an engine of TensorRT, lavt.json says TensorRT for RTX"),
        ({"gpu": "Other GPU"}, "was built for Other GPU (8.7), this machine has Simulated GPU (8.7)"),
        ({"multiprocessors": 16}, "was built for Simulated GPU with 16 multiprocessors, not 8, this machine has"),
        ({"compute_capability": "8.6"}, "was built for Simulated GPU (8.6), this machine has Simulated GPU (8.7)"),
        ({"onnx_sha256": "0" * 64}, "was built from another segmenter.onnx than the bundle has now"),
        ({"max_batch": "1"}, "engines.segmenter.fp16.engine.max_batch is missing or malformed"),
    ],
)
def test_a_bundle_whose_engine_does_not_fit_runs_on_onnx_runtime(
    machine: Machine, bundle: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], reason: str
) -> None:
    path = add_engine(bundle, "segmenter.fp16.engine", plan("segmenter", 1), **fields)
    with caplog.at_level(logging.WARNING, "lavt_edge"):
        assert Segmenter.load(bundle, threads=1).runtime.startswith("ONNX Runtime")
    messages = [record.message for record in caplog.records]
    assert any(reason in message and f"lavt-export trt {bundle} --fp16" in message for message in messages)
    with pytest.raises((BackendError, BundleError)) as caught:
        Segmenter.load(path)
    assert reason in str(caught.value)
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


def test_a_text_engine_that_does_not_fit_leaves_the_text_to_onnx_runtime(
    machine: Machine, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_engine(bundle, "text_encoder.fp16.engine", plan("text_encoder", 1), compute_capability="7.2")
    with caplog.at_level(logging.WARNING, "lavt_edge"):
        engine = Segmenter.load(bundle, threads=1)
    assert engine.files == ("text_encoder.onnx", "segmenter.fp16.engine")
    assert "the text encoder runs on ONNX Runtime" in caplog.text
    assert engine.segment(photo(), "a dog").mask.shape == (60, 90)


def test_without_a_device_a_bundle_runs_on_onnx_runtime_and_its_engine_does_not(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = pretend(monkeypatch)
    monkeypatch.setattr(graphs, "cuda_device_count", lambda: 0)
    with caplog.at_level(logging.INFO, "lavt_edge"):
        assert Segmenter.load(bundle, threads=1).runtime.startswith("ONNX Runtime")
    assert "no CUDA device was found" in caplog.text
    machine.cuda.failing["cudaSetDevice"] = 35
    with pytest.raises(BackendError, match="no usable CUDA device"):
        Segmenter.load(bundle / "segmenter.fp16.engine")
    with pytest.raises(BackendError, match="runs on a CUDA device, not on 'cpu'"):
        Segmenter.load(bundle / "segmenter.fp16.engine", device="cpu")


def test_only_the_image_graphs_engine_of_the_asked_precision_can_be_named(machine: Machine, bundle: Path) -> None:
    with pytest.raises(BundleError, match="is the bundle's text_encoder, no image graph"):
        Segmenter.load(bundle / "text_encoder.fp16.engine")
    with pytest.raises(BundleError, match="is of precision fp16, not int8"):
        Segmenter.load(bundle / "segmenter.fp16.engine", precision="int8")
    shutil.copy(bundle / "segmenter.fp16.engine", bundle / "other.engine")
    with pytest.raises(BundleError, match=r"is not listed in lavt\.json"):
        Segmenter.load(bundle / "other.engine")
