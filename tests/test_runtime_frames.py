"""A camera's frames on a simulated device: one copy in, three engines in a graph, a mask out; streams that overlap."""

from __future__ import annotations

import gc
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.benchmarks.timing.latency import PER_CALL, _Path, measure_split
from lavt_edge.errors import BackendError, ImageError
from lavt_edge.runtime import Segmenter, UnusedEngineWarning
from lavt_edge.runtime.bundle import file_entry
from lavt_edge.runtime.images import LAYOUTS, result_of_frame
from lavt_edge.runtime.manifest import FrameEntry
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH
from lavt_edge.tests.runtime_engines import add_engine
from lavt_edge.tests.runtime_machine import Machine, pretend
from lavt_edge.tests.runtime_machine import bundle as bundle
from lavt_edge.tests.runtime_machine import free as free
from lavt_edge.tests.runtime_machine import machine as machine
from lavt_edge.tests.runtime_machine import pristine as pristine
from lavt_edge.tests.runtime_simulated_cuda import plan

Kind = tuple[int, int, str]
KINDS: list[Kind] = [(60, 90, "bgr"), (60, 90, "nv12"), (31, 47, "rgb")]


def add_frames(root: Path, kinds: list[Kind] = KINDS, **fields: Any) -> Path:
    """Graphs for frames, which are never opened here, and their simulated engines."""
    for height, width, pixels in kinds:
        entry = FrameEntry.named(height, width, pixels)
        manifest = json.loads((root / "lavt.json").read_text())
        for name, role in ((entry.frame, "frame"), (entry.mask, "mask")):
            (root / name).write_bytes(name.encode())
            manifest["files"][name] = vars(file_entry(root / name, role))
        manifest.setdefault("frames", {})[entry.name] = vars(entry)
        (root / "lavt.json").write_text(json.dumps(manifest))
        shape = LAYOUTS[pixels].shape(height, width)
        frame = plan("frame", 1, pixels=pixels, frame=["UINT8", shape, True])
        mask = plan("mask", 1, mask=["UINT8", (height, width), False])
        add_engine(root, entry.frame.replace(".onnx", ".engine"), frame, **fields)
        add_engine(root, entry.mask.replace(".onnx", ".engine"), mask, **fields)
    return root


def shot(kind: Kind, seed: int = 0) -> np.ndarray:
    height, width, pixels = kind
    return np.random.default_rng(seed).integers(0, 256, LAYOUTS[pixels].shape(height, width), dtype=np.uint8)


def general(root: Path) -> Segmenter:
    """The same on ONNX Runtime, which does not use the graphs."""
    segmenter = Segmenter.load(root / "segmenter.onnx", device="cpu", threads=1)
    assert segmenter.frame_sizes == []
    return segmenter


def test_frames_give_what_the_general_path_gives(machine: Machine, bundle: Path) -> None:
    onnx, engine = general(add_frames(bundle)), Segmenter.load(bundle)
    assert engine.frame_sizes == sorted(KINDS)
    prompt = engine.encode("a dog")
    for seed, kind in itertools.product(range(3), KINDS):
        machine.cuda.calls.clear()
        found = engine.segment(shot(kind, seed), prompt, pixels=kind[2])
        assert machine.cuda.calls["compute"] == 3
        wanted = onnx.segment(shot(kind, seed), "a dog", pixels=kind[2])
        assert found.mask.dtype == np.bool_
        assert found.mask.shape == kind[:2]
        assert (found.mask != wanted.mask).mean() < 0.001
        np.testing.assert_allclose(found.probability, wanted.probability, atol=1e-4)
        assert found.score == pytest.approx(wanted.score, abs=1e-3)


def test_a_frame_is_copied_in_and_its_mask_out_around_one_graph(machine: Machine, bundle: Path) -> None:
    engine = Segmenter.load(add_frames(bundle))
    calls, kind = machine.cuda.calls, KINDS[0]
    engine.segment(shot(kind), "a dog", pixels="bgr")
    captures, allocated = calls["cudaStreamBeginCapture"], calls["cudaHostAlloc"]
    for seed in range(1, 4):
        launches = calls["cudaGraphLaunch"]
        machine.cuda.copied.clear()
        engine.segment(shot(kind, seed), "a dog", pixels="bgr")
        sizes = [60 * 90 * 3, 60 * 90, 4 * HEIGHT * WIDTH]
        assert machine.cuda.copied == ([] if machine.cuda.integrated else sizes)
        assert calls["cudaGraphLaunch"] == launches + 1
    assert calls["cudaStreamBeginCapture"] == captures + 1
    assert calls["cudaHostAlloc"] == allocated


def test_one_segmenter_serves_all(machine: Machine, bundle: Path) -> None:
    """Its engine is loaded once, its stream and buffers are shared."""
    Segmenter.load(add_frames(bundle))
    loaded = [json.loads(data[64:])["role"] for data in machine.tensorrt.deserialised]
    assert sorted(loaded) == ["frame"] * 3 + ["mask"] * 3 + ["segmenter", "text_encoder"]
    assert machine.cuda.calls["cudaStreamCreateWithFlags"] == 2
    assert machine.cuda.calls["cudaHostAlloc"] == 8 + 3 * len(KINDS)


def test_frames_of_another_kind_take_the_general_path(machine: Machine, bundle: Path) -> None:
    engine, frame = Segmenter.load(add_frames(bundle)), shot(KINDS[0])
    prompt = engine.encode("a dog")
    others: list[tuple[np.ndarray, dict[str, str]]] = [
        (frame, {"pixels": "rgb"}),
        (frame[:50], {"pixels": "bgr"}),
        (frame, {"pixels": "bgr", "size": "model"}),
    ]
    for image, options in others:
        machine.cuda.calls.clear()
        engine.segment(image, prompt, **options)  # type: ignore[arg-type]
        assert machine.cuda.calls["compute"] == 1, options
    machine.cuda.calls.clear()
    results = engine.segment(frame, [prompt, prompt], pixels="bgr")
    assert [result.mask.shape for result in results] == [KINDS[0][:2]] * 2
    assert machine.cuda.calls["compute"] == 2
    with pytest.raises(ImageError, match="float64"):
        engine.segment(frame / 255, prompt, pixels="bgr")


def test_a_frame_of_any_strides_is_read_as_it_is(machine: Machine, bundle: Path) -> None:
    engine, frame = Segmenter.load(add_frames(bundle)), shot(KINDS[0])
    strided = np.repeat(frame, 2, axis=1)[:, ::2]
    found, wanted = (engine.segment(image, "a dog", pixels="bgr") for image in (strided, frame))
    np.testing.assert_array_equal(found.logit, wanted.logit)
    np.testing.assert_array_equal(found.mask, wanted.mask)


def test_other_batches_in_between_are_captured_anew(machine: Machine, free: Path) -> None:
    engine, onnx, kind = Segmenter.load(add_frames(free)), general(free), KINDS[2]
    for seed in range(8):
        if seed % 4 == 3:
            engine.segment(shot(kind, seed), ["a dog", "a cat"])
        found = engine.segment(shot(kind, seed), "a dog")
        assert (found.mask != onnx.segment(shot(kind, seed), "a dog").mask).mean() < 0.001
        at_the_models_size = engine.segment(shot(kind, seed), "a dog", size="model")
        np.testing.assert_allclose(at_the_models_size.logit, found.logit, atol=1e-4)


def test_engines_that_are_missing_or_foreign_are_not_used(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    pretend(monkeypatch)
    add_frames(add_frames(bundle, KINDS[:1]), KINDS[2:], gpu="Another GPU")
    with pytest.warns(UnusedEngineWarning, match=r"frames 31x47\.rgb are not used: .* for Another GPU .*trt \S+$"):
        assert Segmenter.load(bundle).frame_sizes == KINDS[:1]
    manifest = json.loads((bundle / "lavt.json").read_text())
    del manifest["files"]["frame.60x90.bgr.engine"]
    (bundle / "lavt.json").write_text(json.dumps(manifest))
    with pytest.warns(UnusedEngineWarning, match=r"frames 60x90\.bgr have no engines .*: lavt-export trt"):
        assert Segmenter.load(bundle).frame_sizes == []


def test_a_logit_that_is_not_finite_is_refused() -> None:
    with pytest.raises(BackendError, match="not finite"):
        result_of_frame(np.zeros((2, 2), np.uint8), np.array([[np.nan]], np.float32), "a dog")


@pytest.mark.parametrize("kind", [KINDS[1], (50, 90, "rgb")], ids=["frame graphs", "general path"])
def test_a_run_in_steps_is_the_run_and_says_what_each_takes(machine: Machine, bundle: Path, kind: Kind) -> None:
    """As lavt-bench --frame shows it: on the device a frame is not prepared, and its mask is there."""
    with Segmenter.load(add_frames(bundle), prompt_cache=1) as engine:
        path = _Path.of(engine, np.zeros((*kind[:2], 3), np.uint8))
        assert (path.takes_frames, path.pixels) == (kind in KINDS, "bgr" if kind in KINDS else "rgb")
        feeds = path.feeds(path.prepare(), [engine.encode("a dog")])
        outputs, seconds = path.run(feeds)
        assert seconds.keys() == {"copy_in", "image", "copy_out"}
        assert min(seconds.values()) > 0
        wanted = engine.segment(path.image, "a dog", pixels=path.pixels)
        np.testing.assert_array_equal(path.mask(outputs), wanted.mask)
        split = measure_split(engine, np.zeros((*kind[:2], 3), np.uint8), "a dog", rounds=2)
        assert {len(values) for values in split.parts.values()} == {2}
        whole = sum(np.array(split.parts[step]) for step in PER_CALL)
        np.testing.assert_allclose(split.overhead().seconds, np.median(whole - split.parts["image"]))


# streams


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "lavt_edge stream"]


@pytest.mark.usefixtures("no_thread_is_left")
@pytest.mark.parametrize("kind", [KINDS[0], (50, 90, "bgr")], ids=["frame graphs", "general path"])
def test_while_a_frame_runs_the_last_is_handed_out_and_the_next_is_prepared(
    machine: Machine, bundle: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, onnx = Segmenter.load(add_frames(bundle)), general(bundle)
    graphs = engine._open_graphs()
    backend: Any = graphs.frames.get(kind, graphs.image)
    execute, synchronize = backend._execute, backend._held.synchronize
    asked = [threading.Event() for _ in range(5)]  # for frame n, or the end; frame n - 1 is prepared then
    events: list[str] = []

    def frames() -> Iterator[np.ndarray]:
        for number in range(4):
            asked[number].set()
            yield shot(kind, number)
        asked[4].set()

    def begun() -> None:
        events.append(f"run {sum(event.startswith('run') for event in events)}")
        execute()

    def waited() -> None:
        number = sum(event.startswith("done") for event in events)
        assert asked[min(number + 2, 4)].wait(60), f"frame {number + 1} was not prepared while {number} ran"
        synchronize()
        events.append(f"done {number}")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "_execute", begun)
        patch.setattr(backend._held, "synchronize", waited)
        for number, result in enumerate(engine.stream(frames(), "a dog", pixels="bgr")):
            assert (result.mask != onnx.segment(shot(kind, number), "a dog", pixels="bgr").mask).mean() < 0.001
            events.append(f"mask {number}")
    assert events == [
        *("run 0", "done 0", "run 1", "mask 0", "done 1", "run 2", "mask 1", "done 2", "run 3", "mask 2", "done 3"),
        "mask 3",
    ]


@pytest.mark.usefixtures("no_thread_is_left")
def test_a_result_never_waits_for_the_next_frame(machine: Machine, bundle: Path) -> None:
    engine, handed = Segmenter.load(add_frames(bundle)), [threading.Event() for _ in range(3)]

    def camera() -> Iterator[np.ndarray]:
        for number in range(3):
            assert number == 0 or handed[number - 1].wait(60)
            yield shot(KINDS[0], number)

    for event, _ in zip(handed, engine.stream(camera(), "a dog", pixels="bgr"), strict=True):
        event.set()


@pytest.mark.usefixtures("no_thread_is_left")
def test_closing_a_stream_half_way_frees_all(machine: Machine, bundle: Path) -> None:
    engine = Segmenter.load(add_frames(bundle))
    frame = shot(KINDS[0])
    for stop in ("stream", "segmenter"):
        stream = engine.stream(itertools.repeat(frame), "a dog", pixels="bgr")
        masks = [next(stream).mask for _ in range(3)]
        assert (masks[0] == masks[2]).all()
        if stop == "segmenter":
            engine.close()
            with pytest.raises(BackendError, match="closed"):
                next(stream)
        stream.close()
    del stream
    gc.collect()
    assert not machine.cuda.live


def test_resources_are_freed_before_what_they_use_in_whatever_order_backends_go(machine: Machine, bundle: Path) -> None:
    engine = Segmenter.load(add_frames(bundle))
    engine.segment(shot(KINDS[0]), "a dog", pixels="bgr")
    graphs = engine._open_graphs()
    image: Any = graphs.image
    image.close()  # the stream and the buffers of all, as when a collector takes them together
    feeds = {"frame": shot(KINDS[0])[None]}
    with pytest.raises(BackendError, match=r"mask\.60x90\.engine is closed"):
        graphs.frames[KINDS[0]].run(feeds, ["mask"])
    del graphs, image
    engine.close()
    gc.collect()
    assert not machine.cuda.live


@pytest.mark.usefixtures("no_thread_is_left")
def test_other_calls_within_a_stream_neither_wait_for_it_nor_spoil_it(machine: Machine, bundle: Path) -> None:
    """The next frame is on the device meanwhile; its outputs are kept before the buffers are used."""
    engine, onnx = Segmenter.load(add_frames(bundle)), general(bundle)
    shots = [shot(KINDS[0], seed) for seed in range(6)]
    for number, result in enumerate(engine.stream(shots, "a dog", pixels="bgr")):
        other = engine.segment(shot(KINDS[1], number), "the man in red", pixels="nv12")
        wanted = onnx.segment(shot(KINDS[1], number), "the man in red", pixels="nv12")
        assert (other.mask != wanted.mask).mean() < 0.001
        wanted = onnx.segment(shots[number], "a dog", pixels="bgr")
        assert (result.mask != wanted.mask).mean() < 0.001
        np.testing.assert_allclose(result.logit, wanted.logit, atol=1e-4)


@pytest.mark.usefixtures("no_thread_is_left")
def test_a_frame_may_be_overwritten_once_the_next_is_asked_for(machine: Machine, bundle: Path) -> None:
    engine, buffer = Segmenter.load(add_frames(bundle)), shot(KINDS[2])

    def frames() -> Iterator[np.ndarray]:
        for value in (0, 60, 120, 255):
            buffer[:] = value
            yield buffer

    for value, result in zip((0, 60, 120, 255), engine.stream(frames(), "a dog"), strict=True):
        np.testing.assert_array_equal(result.logit, engine.segment(np.full_like(buffer, value), "a dog").logit)


def test_a_run_that_fails_is_told_in_its_place(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    cuda = pretend(monkeypatch).cuda
    engine = Segmenter.load(add_frames(bundle))
    stream = engine.stream([shot(KINDS[0], seed) for seed in range(3)], "a dog", pixels="bgr")
    next(stream)
    cuda.failing["cudaStreamSynchronize"] = 700
    with pytest.raises(BackendError, match=r"mask\.60x90\.engine could not run: CUDA failed"):
        next(stream)
    cuda.failing.clear()
    assert engine.segment(shot(KINDS[0]), "a dog", pixels="bgr").mask.shape == (60, 90)
