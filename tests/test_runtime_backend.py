"""The backend says where it runs, refuses what it cannot run, and never hides that CUDA is not there."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from lavt_edge.data.shapes import scene_at
from lavt_edge.errors import BackendError, BundleError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime import backend as backend_module
from lavt_edge.runtime.backend import OnnxRuntimeBackend
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.runtime.openvino import OpenVINOBackend
from lavt_edge.runtime.signature import check_signature, segmenter_signature, text_signature
from lavt_edge.tests.runtime_bundle import (
    CHANNELS,
    HEIGHT,
    WIDTH,
    WORDS,
    image_graph,
    manifest_for,
    text_graph,
    write_bundle,
)

HAS_CUDA = cuda_device_count() > 0 and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


BACKENDS = {"onnxruntime": OnnxRuntimeBackend, "openvino": OpenVINOBackend}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param)
    return BACKENDS[request.param]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle") / "segmenter.onnx"


def test_cpu_is_named_and_logged(backend: Any, graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lavt_edge"):
        assert backend(graph, device="cpu", threads=1).device == "cpu"
    assert "segmenter.onnx runs on cpu" in caplog.text


def test_a_run_that_is_started_or_timed_gives_what_a_run_gives(backend: Any, graph: Path) -> None:
    loaded, rng = backend(graph, device="cpu", threads=1), np.random.default_rng(0)
    image = rng.integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    prompt = rng.standard_normal((1, WORDS, CHANNELS), dtype=np.float32)
    feeds = {"image": image, "prompt": prompt, "word_mask": np.ones((1, WORDS), np.float32)}
    wanted = loaded.run(feeds, ["logits", "mask"])
    timed, seconds = loaded.run_in_steps(feeds, ["logits", "mask"])
    for found in (loaded.start(feeds, ["logits", "mask"])(), timed):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    assert seconds["image"] > 0
    assert (seconds["copy_in"], seconds["copy_out"]) == (0, 0)


@pytest.mark.skipif(HAS_CUDA, reason="a CUDA device is here")
def test_without_a_gpu_auto_is_the_cpu_and_prints_nothing(graph: Path) -> None:
    code = f"""
from pathlib import Path
from lavt_edge.runtime.backend import OnnxRuntimeBackend
assert OnnxRuntimeBackend(Path({str(graph)!r})).device == "cpu"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.sep)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(HAS_CUDA, reason="a CUDA device is here")
def test_cuda_that_was_asked_for_is_not_replaced(graph: Path) -> None:
    with pytest.raises(BackendError, match="CUDA was asked for and cannot be used"):
        OnnxRuntimeBackend(graph, device="cuda")


@pytest.mark.skipif(HAS_CUDA, reason="a CUDA device is here")
def test_cuda_that_fails_to_start_is_reported(
    graph: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    monkeypatch.setattr(backend_module, "cuda_device_count", lambda: 1)
    with caplog.at_level(logging.WARNING, "lavt_edge"):
        assert OnnxRuntimeBackend(graph, device="auto", threads=1).device == "cpu"
    assert "no CUDA" in caplog.text
    with pytest.raises(BackendError, match="cannot be used"):
        OnnxRuntimeBackend(graph, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device, or an ONNX Runtime without CUDA")
def test_cuda_is_used_and_agrees_with_the_cpu(graph: Path) -> None:
    feeds = {
        "image": np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "prompt": np.random.default_rng(1).standard_normal((1, WORDS, CHANNELS), dtype=np.float32),
        "word_mask": np.ones((1, WORDS), np.float32),
    }
    cuda = OnnxRuntimeBackend(graph, device="cuda")
    assert cuda.device == OnnxRuntimeBackend(graph).device == "cuda"
    cpu = OnnxRuntimeBackend(graph, device="cpu")
    np.testing.assert_allclose(cuda.run(feeds, ["logits"])[0], cpu.run(feeds, ["logits"])[0], rtol=1e-5, atol=1e-5)


def test_without_onnxruntime_the_message_names_the_extras(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install lavt-edge\[cpu\], or lavt-edge\[cuda\]"):
        OnnxRuntimeBackend(graph)


def test_options_that_make_no_sense(backend: Any, graph: Path) -> None:
    with pytest.raises(BackendError, match="device 'tpu': give one of"):
        backend(graph, device="tpu")
    for threads in (0, -1, 1.5, True):
        with pytest.raises(BackendError, match="threads must be"):
            backend(graph, threads=threads)


@pytest.mark.parametrize(("given", "wanted"), [({}, "0"), ({"spinning": True}, "1")])
def test_threads_without_work_spin_only_where_that_is_asked_for(
    graph: Path, given: dict[str, bool], wanted: str
) -> None:
    with Segmenter.load(graph.parent, device="cpu", **given) as segmenter:  # type: ignore[arg-type]
        for graph_of in (segmenter._open_graphs().text, segmenter._open_graphs().image):
            settings = graph_of._session.get_session_options()  # type: ignore[attr-defined]
            assert settings.get_session_config_entry("session.intra_op.allow_spinning") == wanted


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_a_damaged_graph_is_one_line(backend: Any, graph: Path, content: bytes | None) -> None:
    graph.write_bytes(graph.read_bytes()[:-200] if content is None else content)
    with pytest.raises(BundleError, match=r"not a graph that (ONNX Runtime|OpenVINO) can load") as caught:
        backend(graph, device="cpu")
    assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit_are_one_line(backend: Any, graph: Path) -> None:
    loaded = backend(graph, device="cpu", threads=1)
    with pytest.raises(BackendError, match=r"segmenter\.onnx could not run") as caught:
        loaded.run({"image": np.zeros((1, 1, 1, 3), np.uint8)}, ["logits"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [1, 3, None])
def test_signatures(backend: Any, tmp_path: Path, batch: int | None) -> None:
    onnx = pytest.importorskip("onnx", reason="writes graphs with onnx")
    spec = manifest_for({}, batch).input
    onnx.save(text_graph(batch), tmp_path / "text.onnx")
    onnx.save(image_graph(batch), tmp_path / "image.onnx")
    text = backend(tmp_path / "text.onnx", device="cpu", threads=1).signature
    image = backend(tmp_path / "image.onnx", device="cpu", threads=1).signature
    check_signature(text, text_signature(spec), "text.onnx")
    check_signature(image, segmenter_signature(spec), "image.onnx")
    with pytest.raises(BundleError, match="expected the input image uint8"):
        check_signature(text, segmenter_signature(spec), "text.onnx")
    other = manifest_for({}, 2).input
    with pytest.raises(BundleError, match=r"expected the input input_ids int64 \(2, 20\), found input_ids int64"):
        check_signature(text, text_signature(other), "text.onnx")
    onnx.save(image_graph(batch, height=HEIGHT + 1), tmp_path / "taller.onnx")
    taller = backend(tmp_path / "taller.onnx", device="cpu", threads=1).signature
    with pytest.raises(BundleError, match="expected the input image"):
        check_signature(taller, segmenter_signature(spec), "taller.onnx")


def test_a_superfluous_input_is_refused() -> None:
    spec = manifest_for({}).input
    expected = text_signature(spec)
    found = type(expected)(inputs=(*expected.inputs, segmenter_signature(spec).inputs[0]), outputs=expected.outputs)
    with pytest.raises(BundleError, match=r"unexpected input image uint8 \(1, 24, 32, 3\)"):
        check_signature(found, expected, "text.onnx")


class TestOpenVINO:
    """What is OpenVINO's alone, and which backend a bundle runs on."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        pytest.importorskip("openvino")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache" / "lavt-edge" / "openvino"

    def test_golden_scenes_within_the_bound_of_float32(self, request: pytest.FixtureRequest) -> None:
        demo_bundle = request.getfixturevalue("demo_bundle")  # not before OpenVINO was found
        scenes = [scene_at(9, "val", i).render() for i in range(4)]
        with (
            Segmenter.load(demo_bundle, device="cpu", backend="openvino") as ours,
            Segmenter.load(demo_bundle, device="cpu", backend="onnxruntime") as reference,
        ):
            assert ours.runtime.startswith("OpenVINO ")
            assert reference.runtime.startswith("ONNX Runtime ")
            for scene in scenes:
                wanted = reference.segment(scene, "the leftmost shape")
                found = ours.segment(scene, "the leftmost shape")
                np.testing.assert_allclose(found.probability, wanted.probability, atol=1e-4)
                assert (found.mask != wanted.mask).mean() <= 1e-4

    def test_compiled_graphs_are_kept_in_the_users_cache(self, graph: Path, cache: Path) -> None:
        OpenVINOBackend(graph)
        kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
        assert kept
        OpenVINOBackend(graph)
        assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept

    @pytest.mark.parametrize(
        ("flags", "warned"),
        [("flags\t: fma avx2", True), ("flags\t: avx2 avx512_vnni", False), ("Features: i8mm", False)],
    )
    def test_int8_that_saturates_is_told(
        self,
        flags: str,
        warned: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        helper = pytest.importorskip("onnx.helper")
        x, y = (helper.make_tensor_value_info(name, 1, [4]) for name in "xy")
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ]
        constants = [helper.make_tensor("scale", 1, [], [0.5]), helper.make_tensor("zero", 2, [], [0])]
        model = helper.make_model(helper.make_graph(nodes, "int8", [x], [y], constants))
        (tmp_path / "int8.onnx").write_bytes(model.SerializeToString())
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
        monkeypatch.setattr("lavt_edge.runtime.openvino._CPU_INFO", tmp_path / "cpuinfo")
        OpenVINOBackend(tmp_path / "int8.onnx")
        assert ("this CPU has no VNNI" in caplog.text) == warned

    def test_float_products_are_not_warned_of(self, graph: Path, caplog: pytest.LogCaptureFixture) -> None:
        OpenVINOBackend(graph)
        assert not caplog.text

    def test_a_device_that_it_does_not_list_is_one_line(self, graph: Path) -> None:
        import openvino

        if openvino.Core().available_devices != ["CPU"]:
            pytest.skip("an Intel GPU or NPU is here")
        for device, name in (("intel-gpu", "GPU"), ("intel-npu", "NPU")):
            with pytest.raises(BackendError, match=rf"OpenVINO lists no {name} here \(CPU\)"):
                Segmenter.load(graph.parent, device=device)

    def test_what_another_thread_frees_leaves_ctrl_c_as_it_was(self, graph: Path) -> None:
        script = (
            "import gc, signal, sys, threading\n"
            "from pathlib import Path\n"
            "from lavt_edge.runtime.openvino import OpenVINOBackend\n"
            "loaded = [OpenVINOBackend(Path(sys.argv[1]))]\n"
            "thread = threading.Thread(target=lambda: (loaded.clear(), gc.collect()))\n"
            "thread.start(), thread.join()\n"
            "signal.raise_signal(signal.SIGINT)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(graph)], capture_output=True, text=True, timeout=300)
        assert done.stderr.endswith("KeyboardInterrupt\n"), done.returncode

    def test_without_it_the_message_names_the_extra(self, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(BackendError, match=r"pip install lavt-edge\[openvino\]"):
            Segmenter.load(graph.parent, backend="openvino")

    def test_where_it_is_alone_it_runs(self, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert Segmenter.load(graph.parent).runtime.startswith("OpenVINO")

    def test_a_backend_that_cannot_be_is_one_line(self, graph: Path) -> None:
        with pytest.raises(BackendError, match="unknown backend 'tflite': give one of onnxruntime, openvino, tensorrt"):
            Segmenter.load(graph.parent, backend="tflite")
        with pytest.raises(BackendError, match="has no engine that runs here: lavt-export trt"):
            Segmenter.load(graph.parent, backend="tensorrt")
        with pytest.raises(BackendError, match=r"segmenter\.onnx does not run on tensorrt"):
            Segmenter.load(graph, backend="tensorrt")
