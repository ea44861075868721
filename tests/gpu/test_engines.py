"""Engines on a real GPU, built there: outputs, CUDA graphs, threads, memory.

Of the bundle that LAVT_EDGE_GPU_BUNDLE names (on a Jetson, which has no onnx, that is the way), else of a small one.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.errors import BackendError
from lavt_edge.export import EngineOptions, build_engines
from lavt_edge.export.samples import sample_frame
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.backend import OnnxRuntimeBackend
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.cuda import cuda_device_count, free_device_memory
from lavt_edge.runtime.tensorrt.backend import TensorRTBackend, load_engine
from lavt_edge.runtime.tensorrt.cuda import Cuda
from lavt_edge.runtime.tensorrt.flavor import find_flavor
from lavt_edge.runtime.tensorrt.record import engine_record
from lavt_edge.tests.runtime_bundle import write_bundle

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not cuda_device_count(), reason="no CUDA device")]
MAX_BATCH = 3
FRAMES = 10_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with FP32 engines that were built on this GPU."""
    try:
        find_flavor()
    except BackendError as error:
        pytest.skip(str(error))
    made, given = tmp_path_factory.mktemp("gpu") / "bundle", os.environ.get("LAVT_EDGE_GPU_BUNDLE")
    if given:
        shutil.copytree(given, made, ignore=shutil.ignore_patterns("*.engine"))
    else:
        pytest.importorskip("onnx", reason="a bundle is written with onnx; name one with LAVT_EDGE_GPU_BUNDLE")
        write_bundle(made, None)
    dynamic = open_bundle(made).manifest.input.batch is None
    build_engines(made, EngineOptions(precision="fp32", max_batch=MAX_BATCH if dynamic else None))
    return made


def backend(bundle: Path, **options: Any) -> TensorRTBackend:
    opened = open_bundle(bundle)
    return load_engine(opened, engine_record(bundle, opened.manifest, "segmenter.fp32.engine"), **options)


def feeds(bundle: Path, rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng, spec = np.random.default_rng(seed), open_bundle(bundle).manifest.input
    rows = spec.batch or rows
    return {
        "image": rng.integers(0, 256, (rows, spec.height, spec.width, 3), dtype=np.uint8),
        "prompt": rng.standard_normal((rows, spec.max_words, spec.prompt_channels), dtype=np.float32),
        "word_mask": np.ones((rows, spec.max_words), np.float32),
    }


def assert_close(logits: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-3) -> None:
    assert np.linalg.norm(logits - wanted) <= tolerance * np.linalg.norm(wanted)


def test_engines_agree_with_onnx_runtime(bundle: Path) -> None:
    onnx, engine = OnnxRuntimeBackend(bundle / "segmenter.onnx", device="cpu"), backend(bundle)
    for rows in (1, 2, 3, 5):
        for repeat in range(4):
            given = feeds(bundle, rows, seed=10 * rows + repeat)
            logits, mask = engine.run(given, ["logits", "mask"])
            (wanted,) = onnx.run(given, ["logits"])
            assert_close(logits, wanted)
            np.testing.assert_array_equal(mask, logits.argmax(1))


def test_a_bundle_runs_on_its_engines_from_sentence_to_mask(bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    with Segmenter.load(bundle) as engine, Segmenter.load(bundle / "segmenter.onnx", device="cpu") as onnx:
        assert engine.files == ("text_encoder.fp32.engine", "segmenter.fp32.engine")
        for sentence in ("the man in red", "a dog", "the man in red"):
            result, wanted = engine.segment(image, sentence), onnx.segment(image, sentence)
            np.testing.assert_allclose(result.probability, wanted.probability, atol=0.01)


def test_a_cuda_graph_gives_what_enqueueing_gives(bundle: Path) -> None:
    graph, plain = backend(bundle), backend(bundle, cuda_graphs=False)
    for step, rows in enumerate((1, 1, 1, 1, 2, 2, 2, 1, 1, 1)):
        given = feeds(bundle, rows, seed=step)
        assert_close(graph.run(given, ["logits"])[0], plain.run(given, ["logits"])[0], 1e-5)
    if find_flavor().name == "tensorrt":
        assert graph._held.graph is not None
    assert plain._held.graph is None


def test_a_camera_s_frames_run_in_one_graph(bundle: Path, tmp_path: Path) -> None:
    """Frame, segmenter and mask, one by one and in a stream, against the general path on the CPU."""
    pytest.importorskip("torch", reason="graphs for frames are made with lavt-edge[export]")
    from lavt_edge.export.frames import FrameOptions, add_frame_graphs

    root = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    add_frame_graphs(root, FrameOptions(120, 160, "bgr"))
    build_engines(root, EngineOptions(precision="fp32", max_batch=open_bundle(root).manifest.input.batch or MAX_BATCH))
    shots = [sample_frame((120, 160, 3), seed) for seed in range(6)]
    with Segmenter.load(root) as engine, Segmenter.load(root / "segmenter.onnx", device="cpu") as onnx:
        assert engine.frame_sizes == [(120, 160, "bgr")]
        prompt = engine.encode("the man in red")
        wanted = [onnx.segment(shot, "the man in red", pixels="bgr") for shot in shots]
        alone = [engine.segment(shot, prompt, pixels="bgr") for shot in shots]
        streamed = list(engine.stream(shots, prompt, pixels="bgr"))
        assert len(streamed) == len(shots)
        for found in (alone, streamed):
            for one, other in zip(found, wanted, strict=True):
                assert_close(one.logit, other.logit, 1e-3)
                assert (one.mask != other.mask).mean() < 0.001
        (chain,) = engine._open_graphs().frames.values()
        if find_flavor().name == "tensorrt":
            assert chain._held.graph is not None  # type: ignore[attr-defined]


def test_two_threads_share_an_engine(bundle: Path) -> None:
    shared = backend(bundle)
    cases = [feeds(bundle, rows, rows) for rows in (1, 2, 3)]
    wanted = [shared.run(given, ["logits"])[0] for given in cases]

    def work(worker: int) -> None:
        for step in range(200):
            case = (worker + step) % len(cases)
            assert_close(shared.run(cases[case], ["logits"])[0], wanted[case], 1e-4)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))


def test_ten_thousand_frames_take_no_more_memory(bundle: Path) -> None:
    """Of this process: other programs may take and free the GPU's memory meanwhile."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    with Segmenter.load(bundle) as engine:
        prompt = engine.encode("the man in red")
        first = engine.segment(image, prompt)
        for _ in range(1000):
            engine.segment(image, prompt)
        before = resident_bytes()
        for _ in range(FRAMES):
            last = engine.segment(image, prompt)
        assert resident_bytes() - before < 512 * FRAMES
    np.testing.assert_allclose(last.probability, first.probability, atol=1e-4)


def test_closing_gives_the_memory_back(bundle: Path) -> None:
    """Fifty loads that each kept their buffers would be seen in what is free, whatever else runs on the GPU."""
    buffers = 0
    for _ in range(3):  # what CUDA and TensorRT keep for the process
        loaded = backend(bundle)
        loaded.run(feeds(bundle), ["logits"])
        buffers = sum(buffer.array.nbytes for buffer in loaded._held.buffers.values())
        loaded.close()
    free, resident, loads = free_device_memory(), resident_bytes(), 50
    for _ in range(loads):
        loaded = backend(bundle)
        loaded.run(feeds(bundle), ["logits"])
        loaded.close()
    weights = (bundle / "segmenter.fp32.engine").stat().st_size
    assert resident_bytes() - resident < loads * buffers / 2
    free_after = free_device_memory()
    assert free is not None
    assert free_after is not None
    assert free - free_after < loads * (buffers + weights) / 2


def resident_bytes() -> int:
    """What this process holds of the host's memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_real_device_describes_itself() -> None:
    device = Cuda().device()
    major, minor = map(int, device.compute_capability.split("."))
    assert device.name
    assert device.sm == f"sm{major}{minor}"
