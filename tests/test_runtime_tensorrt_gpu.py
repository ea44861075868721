"""Engines on a real GPU, built there: outputs, CUDA graphs, threads, memory. All are `gpu` tests but the first few."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.benchmarks.runs.gpu_check import compare, measure_bundle, summarise
from lavt_edge.errors import BackendError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.backend import OnnxRuntimeBackend
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.runtime.tensorrt.backend import TensorRTBackend
from lavt_edge.runtime.tensorrt.cuda import Cuda
from lavt_edge.runtime.tensorrt.flavor import Flavor, find_flavor
from lavt_edge.runtime.tensorrt.loading import load_engine
from lavt_edge.runtime.tensorrt.record import engine_record
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH, image_graph, text_graph, write_bundle
from lavt_edge.tests.runtime_engines import add_engine, build

on_a_gpu = pytest.mark.skipif(cuda_device_count() == 0, reason="no CUDA device")
FRAMES = 10_000
MAX_BATCH = 3


def flavor_here() -> Flavor:
    try:
        return find_flavor()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a free batch and engines that were built on this GPU."""
    flavor, device = flavor_here(), Cuda().device()
    made = write_bundle(tmp_path_factory.mktemp("gpu") / "bundle", None)
    for role, graph in (("segmenter", image_graph(None)), ("text_encoder", text_graph(None))):
        add_engine(
            made,
            f"{role}.fp32.engine",
            build(graph, flavor, max_batch=MAX_BATCH),
            flavor=flavor.name,
            version=flavor.version,
            gpu=device.name,
            compute_capability=device.compute_capability,
            max_batch=MAX_BATCH,
        )
    return made


def backend(bundle: Path, **options: Any) -> TensorRTBackend:
    opened = open_bundle(bundle)
    return load_engine(opened, engine_record(bundle, opened.manifest, "segmenter.fp32.engine"), **options)


def feeds(rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "prompt": rng.standard_normal((rows, 20, 8), dtype=np.float32),
        "word_mask": np.ones((rows, 20), np.float32),
    }


def resident_bytes() -> int:
    """What this process holds of the host's memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.gpu
@on_a_gpu
def test_engines_agree_with_onnx_runtime(bundle: Path) -> None:
    onnx = OnnxRuntimeBackend(bundle / "segmenter.onnx", device="cpu", threads=1)
    engine = backend(bundle)
    for rows in (1, 2, 3, 5):
        for repeat in range(4):
            given = feeds(rows, seed=10 * rows + repeat)
            found, mask = engine.run(given, ["logits", "mask"])
            (wanted,) = onnx.run(given, ["logits"])
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
            np.testing.assert_array_equal(mask, found.argmax(1))


@pytest.mark.gpu
@on_a_gpu
def test_a_bundle_runs_on_its_engines_from_sentence_to_mask(bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    with Segmenter.load(bundle) as engine, Segmenter.load(bundle / "segmenter.onnx", device="cpu") as onnx:
        assert engine.files == ("text_encoder.fp32.engine", "segmenter.fp32.engine")
        for sentence in ("the man in red", "a dog", "the man in red"):
            found, wanted = engine.segment(image, sentence), onnx.segment(image, sentence)
            np.testing.assert_allclose(found.probability, wanted.probability, atol=0.01)


@pytest.mark.gpu
@on_a_gpu
def test_a_cuda_graph_gives_what_enqueueing_gives(bundle: Path) -> None:
    graph, plain = backend(bundle), backend(bundle, cuda_graphs=False)
    for rows in (1, 1, 1, 1, 2, 2, 2, 1, 1, 1):
        given = feeds(rows, seed=rows)
        found, wanted = graph.run(given, ["logits"])[0], plain.run(given, ["logits"])[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    if flavor_here().name == "tensorrt":
        assert graph.uses_graph
    assert not plain.uses_graph


@pytest.mark.gpu
@on_a_gpu
def test_two_threads_share_an_engine(bundle: Path) -> None:
    shared = backend(bundle)
    cases = [feeds(rows, rows) for rows in (1, 2, 3)]
    wanted = [shared.run(given, ["logits"])[0] for given in cases]

    def work(worker: int) -> None:
        for step in range(200):
            case = (worker + step) % len(cases)
            np.testing.assert_allclose(shared.run(cases[case], ["logits"])[0], wanted[case], rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))


@pytest.mark.gpu
@on_a_gpu
def test_ten_thousand_frames_take_no_more_memory(bundle: Path) -> None:
    cuda = Cuda()
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    with Segmenter.load(bundle) as engine:
        prompt = engine.encode("the man in red")
        first = engine.segment(image, prompt)
        for _ in range(1000):
            engine.segment(image, prompt)
        host, device = resident_bytes(), cuda.free_memory()
        for _ in range(FRAMES):
            last = engine.segment(image, prompt)
        assert resident_bytes() - host < 16 * 2**20
        assert device - cuda.free_memory() < 16 * 2**20
    np.testing.assert_allclose(last.probability, first.probability, atol=1e-4)


@pytest.mark.gpu
@on_a_gpu
def test_closing_gives_the_memory_back(bundle: Path) -> None:
    cuda = Cuda()
    for _ in range(3):  # what CUDA and TensorRT keep for the process
        backend(bundle).run(feeds(), ["logits"])
    free = cuda.free_memory()
    for _ in range(50):
        loaded = backend(bundle)
        loaded.run(feeds(), ["logits"])
        loaded.close()
    assert free - cuda.free_memory() < 16 * 2**20


@pytest.mark.gpu
@on_a_gpu
def test_a_real_device_describes_itself() -> None:
    device = Cuda().device()
    major, minor = map(int, device.compute_capability.split("."))
    assert device.name
    assert device.sm == f"sm{major}{minor}"


@pytest.mark.skipif(cuda_device_count() > 0, reason="a CUDA device is here")
def test_gpu_check_without_a_device_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lavt_edge.benchmarks.runs.gpu_check", "--output", str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: no CUDA device was found: make gpu-check needs a CUDA machine or a Jetson"
    ]
    assert not (tmp_path / "x.json").exists()


def test_gpu_check_counts_what_pytest_reports() -> None:
    report = """<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1">
    <testcase name="a"/><testcase name="b"><failure message="wrong&#10;more"/></testcase>
    <testcase name="c"><skipped message="no TensorRT"/></testcase><testcase name="d"/></testsuite></testsuites>"""
    summary = summarise(list(ElementTree.fromstring(report).iter("testsuite")))
    assert (summary["passed"], summary["failures"], summary["skipped"]) == (2, 1, 1)
    assert summary["problems"] == [
        {"test": "b", "kind": "failure", "message": "wrong"},
        {"test": "c", "kind": "skipped", "message": "no TensorRT"},
    ]


def test_gpu_check_measures_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (row,) = measure_bundle(bundle, rounds=2)
    assert (row["file"], row["precision"], row["verified"]) == ("segmenter.onnx", "fp32", None)
    assert row["relative_error"] < 1e-5
    assert row["pixel_agreement"] > 0.999
    assert row["milliseconds"]["image graph"]["median"] > 0
    add_engine(bundle, "segmenter.fp16.engine", b"ftrt" + bytes(100))
    assert "error" in measure_bundle(bundle, rounds=2)[1]


def test_gpu_check_compares_the_worst_case() -> None:
    wanted = [np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32)] * 2
    found = [wanted[0], wanted[1].copy()]
    found[1][:, 0, 0] = (1, 0)
    figures = compare(found, wanted)
    assert figures["pixel_agreement"] == 15 / 16
    assert figures["relative_error"] == pytest.approx(np.sqrt(2) / 4)
