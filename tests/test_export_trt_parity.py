"""The parity check of a new engine, run for real: engines that stand in for TensorRT's, on a simulated device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.errors import ExportError
from lavt_edge.export.engines.verify import (
    EngineParity,
    UnmeasurableError,
    check_parity,
    measure_parity,
    run_feeds,
    run_graphs,
    verify_engine,
)
from lavt_edge.export.samples import SENTENCES, make_samples
from lavt_edge.runtime.backend import OnnxRuntimeBackend
from lavt_edge.runtime.bundle import Bundle, open_bundle
from lavt_edge.runtime.tensorrt.flavor import find_flavor
from lavt_edge.runtime.tokenizer import SentenceTokenizer
from lavt_edge.tests import runtime_simulated_cuda
from lavt_edge.tests.engine_records import a_record
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH, WORDS, expected_logits, write_bundle
from lavt_edge.tests.runtime_machine import Machine
from lavt_edge.tests.runtime_machine import machine as machine
from lavt_edge.tests.runtime_simulated_cuda import plan
from lavt_edge.tests.typed_bundle import add_typed_graphs, copy_bundle


@pytest.fixture(params=[1, 3, None], ids=["batch 1", "batch 3", "dynamic"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return open_bundle(write_bundle(tmp_path / "bundle", request.param))


def verify(bundle: Bundle, role: str = "segmenter", precision: str = "fp32") -> EngineParity:
    """Of an engine that computes the bundle's graph of a role, as it was just built."""
    batch = bundle.manifest.input.batch
    record = a_record(name=f"{role}.{precision}.engine", role=role, precision=precision, max_batch=batch or 1)
    return verify_engine(plan(role, batch), record, bundle, find_flavor())


@pytest.mark.parametrize("role", ["text_encoder", "segmenter"])
def test_an_engine_that_computes_its_graph_passes(machine: Machine, bundle: Bundle, role: str) -> None:
    parity = verify(bundle, role)
    assert parity.relative_error == parity.against_fp32 < 1e-5
    assert parity.pixel_agreement == (None if role == "text_encoder" else pytest.approx(1, abs=1e-3))
    assert parity.reference == f"{role}.onnx"
    assert parity.graph_against_pytorch == 1e-6
    assert parity.cases * (bundle.manifest.input.batch or 1) >= len(SENTENCES)
    assert machine.cuda.calls["compute"] == parity.cases


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits: logits * 1.01, "differs too much from segmenter.onnx: relative error 1.0e-02"),
        (lambda logits: logits[::-1], "pixel agreement 0"),
        (lambda logits: np.where(logits == logits.max(), np.nan, logits), "gives values that are NaN or infinite"),
        (lambda logits: logits * np.float32(np.inf), "NaN or infinite, segmenter.onnx does not; nothing was written"),
    ],
    ids=["too far", "other classes", "NaN", "infinite"],
)
def test_an_engine_that_computes_something_else_is_refused(
    machine: Machine,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[np.ndarray], np.ndarray],
    said: str,
) -> None:
    monkeypatch.setattr(runtime_simulated_cuda, "expected_logits", lambda *inputs: change(expected_logits(*inputs)))
    with pytest.raises(ExportError, match=said) as refused:
        verify(bundle)
    assert str(refused.value).startswith("segmenter.fp32.engine ")


def test_an_engine_that_cannot_run_is_refused(machine: Machine, bundle: Bundle) -> None:
    machine.cuda.failing["cudaStreamSynchronize"] = runtime_simulated_cuda.OUT_OF_MEMORY
    with pytest.raises(ExportError, match=r"segmenter\.fp32\.engine was built and cannot run: .*out of GPU memory"):
        verify(bundle)


def test_parity_cannot_be_measured_without_the_graph(machine: Machine, bundle: Bundle) -> None:
    with pytest.raises(UnmeasurableError, match="no segmenter of precision fp16"):
        verify(bundle, precision="fp16")


def test_parity_cannot_be_measured_without_cuda(machine: Machine, bundle: Bundle) -> None:
    machine.cuda.failing["cudaSetDevice"] = 100
    with pytest.raises(UnmeasurableError, match="no usable CUDA device"):
        verify(bundle)


def test_a_typed_graph_is_compared_case_by_case(demo_bundle: Path, tmp_path: Path) -> None:
    """FP16 graphs of the demo model; ONNX Runtime is the stand-in engine, and its worst case counts."""
    root = copy_bundle(demo_bundle, tmp_path / "bundle")
    add_typed_graphs(root)
    bundle, record = open_bundle(root), a_record()
    expected = run_graphs(bundle, "segmenter", "fp16")
    outputs = run_feeds(OnnxRuntimeBackend(bundle.file("segmenter", "fp16"), device="cpu"), expected.feeds, "logits")
    parity = measure_parity(outputs, expected)
    assert (parity.relative_error, parity.pixel_agreement, parity.cases) == (0, 1, len(SENTENCES))
    assert (parity.reference, parity.graph_against_pytorch) == ("segmenter.fp16.onnx", None)
    assert 0 < parity.against_fp32 < 0.02
    check_parity(parity, record)
    outputs[2] = outputs[2] * 1.5
    worst = measure_parity(outputs, expected)
    assert worst.relative_error == pytest.approx(0.5)
    with pytest.raises(ExportError, match="relative error 5"):
        check_parity(worst, record)
    outputs[2] = np.full_like(outputs[2], np.nan)
    broken = measure_parity(outputs, expected)
    assert broken.relative_error == math.inf
    with pytest.raises(ExportError, match="NaN or infinite"):
        check_parity(broken, record)
    with pytest.raises(ExportError, match=r"segmenter.fp16.onnx gives values that are NaN or infinite"):
        measure_parity(outputs, replace(expected, typed=outputs))


def test_samples_differ_and_fill_batches() -> None:
    class Words(SentenceTokenizer):
        """One that numbers its sentences."""

        def __init__(self) -> None:
            self.count = 0

        def encode(self, sentence: str) -> tuple[np.ndarray, np.ndarray, bool]:
            self.count += 1
            return np.full(WORDS, self.count), np.ones(WORDS, np.int64), False

    samples = make_samples(Words(), HEIGHT, WIDTH)
    assert {(image.shape, image.dtype.name) for image in samples.images} == {((HEIGHT, WIDTH, 3), "uint8")}
    assert len(samples.images) == len(SENTENCES)
    assert min(image.std() for image in samples.images) > 20
    assert len({image.tobytes() for image in samples.images}) == len(SENTENCES)
    assert samples.batches(1) == [[0], [1], [2], [3]]
    assert samples.batches(3) == [[0, 1, 2], [3, 0, 1]]
    assert samples.batches(6) == [[0, 1, 2, 3, 0, 1]]
    feeds = samples.image_feeds([3, 0], [np.zeros((WORDS, 8), np.float32)] * 2)
    np.testing.assert_array_equal(feeds["image"], np.stack([samples.images[3], samples.images[0]]))
    assert samples.text_feeds([3, 0])["input_ids"][:, 0].tolist() == [4, 1]
