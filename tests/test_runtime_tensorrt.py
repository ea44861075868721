"""Engines on a simulated device: results, memory, copies, graphs and threads."""

import gc
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.errors import BackendError, BundleError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.tensorrt.backend import TensorRTBackend, load_engine
from lavt_edge.runtime.tensorrt.record import engine_record
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH, expected_logits
from lavt_edge.tests.runtime_engines import add_engine
from lavt_edge.tests.runtime_machine import Machine, photo, pretend
from lavt_edge.tests.runtime_machine import bundle as bundle
from lavt_edge.tests.runtime_machine import free as free
from lavt_edge.tests.runtime_machine import machine as machine
from lavt_edge.tests.runtime_machine import pristine as pristine
from lavt_edge.tests.runtime_simulated_cuda import RuntimeCache, plan

SENTENCES = ["the man in red", "a dog", "left zebra", "woman with an umbrella", "the big red bus on the right"]


def backend(bundle: Path, **options: Any) -> TensorRTBackend:
    opened = open_bundle(bundle)
    return load_engine(opened, engine_record(bundle, opened.manifest, "segmenter.fp16.engine"), **options)


def feeds(rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "prompt": rng.standard_normal((rows, 20, 8), dtype=np.float32),
        "word_mask": np.ones((rows, 20), np.float32),
    }


def assert_logits(logits: np.ndarray, given: dict[str, np.ndarray]) -> None:
    assert len(logits) == len(given["image"])
    for row, found in enumerate(logits):
        wanted = expected_logits(given["image"][row], given["prompt"][row], given["word_mask"][row])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_bundle_runs_on_its_engines_and_agrees_with_onnx_runtime(machine: Machine, bundle: Path) -> None:
    onnx = Segmenter.load(bundle / "segmenter.onnx", device="cpu", threads=1)
    for path in (bundle, bundle / "segmenter.fp16.engine"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine = Segmenter.load(path)
        assert (engine.device, engine.precision, engine.runtime) == ("cuda", "fp16", "TensorRT 10.3.0")
        assert engine.files == ("text_encoder.fp16.engine", "segmenter.fp16.engine")
        for seed in range(3):
            for sentence in SENTENCES[:3]:
                found, wanted = engine.segment(photo(seed), sentence), onnx.segment(photo(seed), sentence)
                np.testing.assert_allclose(found.probability, wanted.probability, atol=1e-4)
                assert (found.mask != wanted.mask).mean() < 0.001


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_a_free_batch_runs_in_pieces_of_the_profile(machine: Machine, free: Path, rows: int) -> None:
    loaded = backend(free)
    assert loaded.max_batch == 3
    given = feeds(rows)
    logits, mask = loaded.run(given, ["logits", "mask"])
    assert_logits(logits, given)
    np.testing.assert_array_equal(mask, logits.argmax(1))
    (mask_alone,) = loaded.run(given, ["mask"])
    np.testing.assert_array_equal(mask_alone, mask)


def test_many_sentences_are_batched_to_the_profile(machine: Machine, free: Path) -> None:
    engine = Segmenter.load(free)
    onnx = Segmenter.load(free / "segmenter.onnx", device="cpu", threads=1)
    machine.cuda.calls.clear()
    results = engine.segment(photo(), SENTENCES)
    assert machine.cuda.calls["compute"] == len(SENTENCES) + 2  # the text graph five times, the image graph for 3 + 2
    for found, wanted in zip(results, onnx.segment(photo(), SENTENCES), strict=True):
        np.testing.assert_allclose(found.probability, wanted.probability, atol=1e-4)


def test_an_output_is_the_callers_own(machine: Machine, bundle: Path) -> None:
    loaded = backend(bundle)
    (first,) = loaded.run(feeds(seed=0), ["logits"])
    kept = first.copy()
    loaded.run(feeds(seed=1), ["logits"])
    np.testing.assert_array_equal(first, kept)


def test_buffers_are_allocated_once_and_only_what_is_asked_for_comes_back(machine: Machine, bundle: Path) -> None:
    loaded = backend(bundle)
    held = len(machine.cuda.live)
    assert machine.cuda.calls["cudaHostAlloc"] == 5
    assert machine.cuda.calls["cudaMalloc"] == (0 if machine.cuda.integrated else 5)
    image, prompt, word_mask, logits, mask = (HEIGHT * WIDTH * 3, 640, 80, 8 * HEIGHT * WIDTH, HEIGHT * WIDTH)
    for outputs, sizes in ((["logits"], [logits]), (["mask"], [mask]), (["logits", "mask"], [logits, mask])):
        machine.cuda.copied.clear()
        loaded.run(feeds(), outputs)
        assert machine.cuda.copied == ([] if machine.cuda.integrated else [image, prompt, word_mask, *sizes])
    assert machine.cuda.calls["cudaHostAlloc"] == 5
    assert len(machine.cuda.live) == held + 1  # the captured graph


def test_a_prompt_stays_on_the_device_while_it_is_the_same(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    cuda = pretend(monkeypatch).cuda
    engine = Segmenter.load(bundle)
    first, second = engine.encode("the man in red"), engine.encode("a dog")
    image, prompt, word_mask, logits = HEIGHT * WIDTH * 3, 640, 80, 8 * HEIGHT * WIDTH
    everything, without_prompt = [image, prompt, word_mask, logits], [image, logits]
    steps = [(first, everything), (first, without_prompt), ("the man in red", without_prompt), (second, everything)]
    for one, wanted in [*steps, (first, everything), (first, without_prompt)]:
        cuda.copied.clear()
        engine.segment(photo(), one)
        assert cuda.copied == wanted


def test_an_array_that_may_change_is_copied_every_time(machine: Machine, bundle: Path) -> None:
    loaded = backend(bundle)
    given = feeds()
    view = given["prompt"].view()
    view.flags.writeable = False
    for prompt in (given["prompt"], view):
        for scale in (1, 2, 3):
            given["prompt"] *= scale
            assert_logits(loaded.run({**given, "prompt": prompt}, ["logits"])[0], given)


def test_a_failed_call_forgets_what_is_on_the_device(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    cuda = pretend(monkeypatch).cuda
    loaded = backend(bundle)
    given, other = feeds(), feeds(seed=1)
    for array in (*given.values(), *other.values()):
        array.flags.writeable = False
    loaded.run(given, ["logits"])
    for call in ("cudaMemcpyAsync", "cudaStreamSynchronize"):
        cuda.failing[call] = 700
        with pytest.raises(BackendError, match=r"segmenter\.fp16\.engine could not run: CUDA failed"):
            loaded.run(other, ["logits"])
        cuda.failing.clear()
        for case in (other, given):
            assert_logits(loaded.run(case, ["logits"])[0], case)


def test_the_second_call_captures_and_the_next_ones_launch(machine: Machine, free: Path) -> None:
    loaded, calls = backend(free), machine.cuda.calls
    for rows, captures, launches in ((1, 0, 0), (1, 1, 1), (1, 1, 2), (2, 1, 2), (2, 2, 3), (1, 2, 3), (1, 3, 4)):
        given = feeds(rows, seed=captures)
        assert_logits(loaded.run(given, ["logits"])[0], given)
        assert (calls["cudaStreamBeginCapture"], calls["cudaGraphLaunch"]) == (captures, launches)
    assert loaded._held.graph is not None
    plain = backend(free, cuda_graphs=False)
    for _ in range(3):
        np.testing.assert_array_equal(plain.run(given, ["logits"])[0], loaded.run(given, ["logits"])[0])
    assert plain._held.graph is None


def test_what_cannot_be_captured_is_enqueued_with_one_log_line(
    machine: Machine, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine.tensorrt.capturable = False
    loaded = backend(bundle)
    with caplog.at_level(logging.WARNING, "lavt_edge"):
        for seed in range(5):
            given = feeds(seed=seed)
            assert_logits(loaded.run(given, ["logits"])[0], given)
    assert [record.message for record in caplog.records] == [
        "segmenter.fp16.engine runs without a CUDA graph: CUDA failed (error 901: simulated failure)"
    ]
    assert machine.cuda.calls["cudaStreamBeginCapture"] == 1
    assert loaded._held.graph is None


def test_rtx_compiles_its_kernels_once(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = pretend(monkeypatch, "1.7.1")
    machine.tensorrt.become_rtx()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", machine.tensorrt)
    data = plan("segmenter", 1, version="1.7.1")
    data = b"vtrt" + data[4:16] + len(data).to_bytes(8, "little") + data[24:]
    add_engine(bundle, "segmenter.fp16.engine", data, flavor="tensorrt_rtx", version="1.7.1", targets=["sm87"])
    kernels = bundle / "segmenter.fp16.engine.kernels"
    monkeypatch.setattr(RuntimeCache, "compiled", 0)

    def start() -> int:
        loaded = backend(bundle)
        for _ in range(3):
            loaded.run(feeds(), ["logits"])
        loaded.close()
        return RuntimeCache.compiled

    assert start() == 1
    kept = kernels.read_bytes()
    assert kept == RuntimeCache.magic + b"segmenter"
    assert start() == 1  # not again
    kernels.write_bytes(b"of another driver")
    with caplog.at_level(logging.INFO, "lavt_edge"):
        assert start() == 2
    assert "kernels are compiled again" in caplog.text
    assert kernels.read_bytes() == kept
    kernels.unlink()
    kernels.mkdir()  # what cannot be read or written costs time alone
    assert start() == 3
    open_bundle(bundle)


def test_rtx_captures_by_itself_and_says_what_it_thinks_of_an_engine(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine.tensorrt.become_rtx()
    machine.tensorrt.__version__ = "1.7.1"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", machine.tensorrt)
    data = plan("segmenter", 1, version="1.7.1")
    data = b"vtrt" + data[4:16] + len(data).to_bytes(8, "little") + data[24:]
    add_engine(bundle, "segmenter.fp16.engine", data, flavor="tensorrt_rtx", version="1.7.1", targets=["sm86", "sm87"])
    for options, strategy in (({}, "whole"), ({"cuda_graphs": False}, None)):
        loaded = backend(bundle, **options)
        assert loaded.name == "TensorRT for RTX 1.7.1"
        assert loaded._held.engine.strategy == strategy  # type: ignore[union-attr]
        for seed in range(3):
            given = feeds(seed=seed)
            assert_logits(loaded.run(given, ["logits"])[0], given)
        assert machine.cuda.calls["cudaStreamBeginCapture"] == 0
    machine.tensorrt.validity = ["suboptimal", 0]
    with caplog.at_level(logging.WARNING, "lavt_edge"):
        backend(bundle)
    assert "will run slower here" in caplog.text
    machine.tensorrt.deserialised.clear()
    machine.tensorrt.validity = ["invalid", 3]
    with pytest.raises(BackendError, match=r"invalid here \(VERSION_MISMATCH, UNSUPPORTED_CC\): lavt-export trt"):
        backend(bundle)
    assert not machine.tensorrt.deserialised


def test_threads_take_turns(machine: Machine, free: Path) -> None:
    loaded = backend(free)
    cases = [feeds(rows, seed) for seed, rows in enumerate((1, 2, 3, 5, 1, 2, 3, 4))]
    barrier = threading.Barrier(8)

    def work(worker: int) -> None:
        barrier.wait()
        for step in range(10):
            given = cases[(worker + step) % len(cases)]
            assert_logits(loaded.run(given, ["logits"])[0], given)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("how", ["close", "forget"])
def test_the_device_is_freed(machine: Machine, bundle: Path, how: str) -> None:
    engine = Segmenter.load(bundle)
    for _ in range(3):
        engine.segment(photo(), "a dog")
    assert machine.cuda.live
    if how == "close":
        engine.close()
        with pytest.raises(BackendError, match="closed: load it again"):
            engine.segment(photo(), "a dog")
    else:
        del engine
    assert not machine.cuda.live


def test_a_backend_that_is_closed_refuses_to_run(machine: Machine, bundle: Path) -> None:
    loaded = backend(bundle)
    loaded.close()
    loaded.close()
    assert not machine.cuda.live
    with pytest.raises(BackendError, match=r"segmenter\.fp16\.engine is closed"):
        loaded.run(feeds(), ["logits"])


def test_closing_waits_for_the_call_under_way(machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Segmenter.load(bundle)
    prompt = engine.encode("a dog")
    running, go_on = threading.Event(), threading.Event()
    image = engine._open_graphs().image
    original = type(image)._execute

    def slow(self: TensorRTBackend) -> None:
        running.set()
        assert go_on.wait(60)
        original(self)

    monkeypatch.setattr(TensorRTBackend, "_execute", slow)
    del image
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(engine.segment, photo(), prompt)
        assert running.wait(60)
        engine.close()
        assert machine.cuda.live
        go_on.set()
        assert pending.result(timeout=300).mask.shape == (60, 90)
    del pending
    assert not machine.cuda.live


@pytest.mark.parametrize("call", ["cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaSetDevice"])
def test_a_load_that_fails_frees_what_it_had(machine: Machine, bundle: Path, call: str) -> None:
    machine.cuda.failing[call] = 2
    with pytest.raises(BackendError, match=r"out of GPU memory: .*--max-batch") as caught:
        Segmenter.load(bundle / "segmenter.fp16.engine")
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()
    assert not machine.cuda.live


def test_two_hundred_loads_leave_nothing(machine: Machine, bundle: Path) -> None:
    for _ in range(200):
        loaded = backend(bundle)
        loaded.run(feeds(), ["mask"])
        reference = weakref.ref(loaded)
        del loaded
        assert reference() is None
    assert not machine.cuda.live


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda given: given.pop("prompt"), "the input prompt is missing"),
        (lambda given: given.update(other=given["prompt"]), "it has no input other"),
        (lambda given: given.update(prompt=given["prompt"][:, :5]), r"expected the input prompt float32 \(\?, 20, 8\)"),
        (lambda given: given.update(prompt=given["prompt"].astype(np.float64)), "found float64"),
        (lambda given: given.update(prompt=given["prompt"][:1]), "expected the input"),
        (lambda given: given.update({name: array[:0] for name, array in given.items()}), "expected a batch of 3"),
    ],
)
def test_inputs_that_do_not_fit(machine: Machine, free: Path, change: Callable[..., object], problem: str) -> None:
    loaded = backend(free)
    given = feeds(2)
    change(given)
    with pytest.raises(BackendError, match=rf"segmenter\.fp16\.engine could not run: .*{problem}"):
        loaded.run(given, ["logits"])
    with pytest.raises(BackendError, match="it has no output depth"):
        loaded.run(feeds(2), ["depth"])


def test_a_fixed_batch_takes_no_other(machine: Machine, bundle: Path) -> None:
    loaded = backend(bundle)
    assert loaded.max_batch is None
    with pytest.raises(BackendError, match=r"expected a batch of 1, found 2|expected the input"):
        loaded.run(feeds(2), ["logits"])


def test_an_engine_of_another_graph_is_refused(machine: Machine, bundle: Path) -> None:
    path = bundle / "segmenter.fp16.engine"
    for extra, problem in (
        ({"depth": ("FLOAT", (5,), False)}, "unexpected output depth"),
        ({"image": ("FLOAT", (HEIGHT, WIDTH, 3), True)}, "expected the input image uint8"),
        ({"image": ("FP8", (HEIGHT, WIDTH, 3), True)}, "image is of type FP8.*lavt-export trt .* --fp16"),
        ({"image": ("UINT8", (-1, WIDTH, 3), True)}, "only its first dimension may be dynamic"),
    ):
        add_engine(bundle, path.name, plan("segmenter", 1, **extra))  # type: ignore[arg-type]
        with pytest.raises((BundleError, BackendError), match=problem):
            Segmenter.load(path)
        gc.collect()


def test_what_tensorrt_refuses_is_one_line_with_its_reason(machine: Machine, bundle: Path) -> None:
    add_engine(bundle, "segmenter.fp16.engine", plan("segmenter", 1)[:-3])
    with pytest.raises(BackendError) as caught:
        Segmenter.load(bundle / "segmenter.fp16.engine")
    assert str(caught.value) == (
        f"TensorRT could not load segmenter.fp16.engine (the plan is damaged): lavt-export trt {bundle} --fp16"
    )
