"""A stream of frames: the same results in order, the next frames prepared meanwhile, errors in their place."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.errors import BackendError, ImageError, PromptError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.streaming import worked_ahead
from lavt_edge.tests.runtime_bundle import write_bundle


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter.load(write_bundle(tmp_path_factory.mktemp("stream") / "bundle"), device="cpu", threads=1)


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40 + seed % 7, 50, 3), dtype=np.uint8)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lavt_edge stream"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert workers() == []


def test_a_stream_gives_what_segment_gives_in_order(segmenter: Segmenter) -> None:
    results = list(segmenter.stream((photo(seed) for seed in range(30)), "a dog"))
    assert len(results) == 30
    for seed, result in enumerate(results):
        wanted = segmenter.segment(photo(seed), "a dog")
        np.testing.assert_array_equal(result.probability, wanted.probability)
        np.testing.assert_array_equal(result.mask, wanted.mask)
        assert result.sentence == "a dog"
    assert list(segmenter.stream([], "a dog")) == []


def test_several_sentences_on_every_frame(segmenter: Segmenter) -> None:
    sentences = ["a dog", "the man in red", "left zebra"]
    for seed, results in enumerate(segmenter.stream([photo(0), photo(1)], sentences)):
        assert [one.sentence for one in results] == sentences
        for one, wanted in zip(results, segmenter.segment(photo(seed), sentences), strict=True):
            np.testing.assert_array_equal(one.mask, wanted.mask)
    for nothing in ([], ()):
        with pytest.raises(PromptError, match="no sentence"):
            segmenter.stream([photo(0)], nothing)


def test_a_tuple_of_sentences_is_several_sentences_like_a_list(segmenter: Segmenter) -> None:
    sentences = ("a dog", segmenter.encode("the man in red"))
    for results in segmenter.stream([photo(0), photo(1)], sentences):
        assert [result.sentence for result in results] == ["a dog", "the man in red"]
    with pytest.raises(PromptError, match="must be text"):
        segmenter.stream([photo(0)], ("a dog", 3))  # type: ignore[call-overload]


def test_the_next_frame_is_prepared_while_this_one_runs(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [threading.Event() for _ in range(4)]
    graph = segmenter._open_graphs().image
    original = graph.run
    running: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for event in taken:
            event.set()
            yield photo(0)

    def run(*feeds: Any) -> list[np.ndarray]:
        running.append(len(running))
        if running[-1] < 2:
            assert taken[running[-1] + 2].wait(60), "the frame after the next was not prepared meanwhile"
        return original(*feeds)

    monkeypatch.setattr(graph, "run", run)
    assert len(list(segmenter.stream(frames(), "a dog"))) == 4


def test_no_more_than_two_frames_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    stream = worked_ahead(items(), lambda number: number, lambda number: lambda: number)
    for number in range(5):
        assert next(stream) == number
        time.sleep(0.05)
        assert len(taken) <= number + 3
    stream.close()


def test_an_error_comes_in_the_place_of_its_frame(segmenter: Segmenter) -> None:
    frames = [photo(0), photo(1), Path("none.jpg"), photo(3)]
    stream = segmenter.stream(frames, "a dog")
    assert next(stream).mask.shape == photo(0).shape[:2]
    assert next(stream).mask.shape == photo(1).shape[:2]
    with pytest.raises(ImageError, match=r"no such image: none\.jpg"):
        next(stream)
    assert list(stream) == []


def test_an_error_of_the_source_comes_after_the_frames_before_it(segmenter: Segmenter) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield photo(0)
        yield photo(1)
        raise OSError("the camera is gone")

    stream = segmenter.stream(frames(), "a dog")
    assert [next(stream).sentence for _ in range(2)] == ["a dog"] * 2
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)
    with pytest.raises(TypeError):
        next(segmenter.stream(5, "a dog"))  # type: ignore[call-overload]


def test_a_wrong_sentence_is_refused_at_once_and_takes_no_frame(segmenter: Segmenter) -> None:
    frames = iter([photo(0)])
    with pytest.raises(PromptError):
        segmenter.stream(frames, "")
    assert next(frames).shape == photo(0).shape


def test_closing_or_forgetting_the_stream_stops_the_thread(segmenter: Segmenter) -> None:
    endless = itertools.repeat(photo(0))
    for stop in ("close", "forget", "break"):
        stream = segmenter.stream(endless, "a dog")
        next(stream)
        assert len(workers()) == 1
        if stop == "close":
            stream.close()
        elif stop == "break":
            for _ in stream:
                break
        del stream
        assert workers() == []


def test_a_frame_may_be_overwritten_once_the_next_is_asked_for(segmenter: Segmenter) -> None:
    buffer = np.empty((24, 32, 3), np.uint8)

    def frames() -> Iterator[np.ndarray]:
        for value in (0, 60, 120, 255):
            buffer[:] = value
            yield buffer

    for value, result in zip((0, 60, 120, 255), segmenter.stream(frames(), "a dog"), strict=True):
        wanted = segmenter.segment(np.full((24, 32, 3), value, np.uint8), "a dog")
        np.testing.assert_array_equal(result.probability, wanted.probability)


def test_a_closed_segmenter_ends_its_streams(tmp_path: Path) -> None:
    segmenter = Segmenter.load(write_bundle(tmp_path / "bundle"), device="cpu", threads=1)
    stream = segmenter.stream(itertools.repeat(photo(0)), "a dog")
    next(stream)
    segmenter.close()
    with pytest.raises(BackendError, match="closed"):
        next(stream)
