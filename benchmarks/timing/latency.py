"""Where a bundle's call spends its time: everything around the two graphs, and the graphs themselves."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...runtime import Segmenter
from ...runtime.backend import Backend
from ...runtime.batches import stack_prompts
from ...runtime.images import LAYOUTS, prepare, result_of, result_of_frame, to_rgb_array
from ...runtime.prompt import Prompt
from ..peers.onnx import BundleSide, whatever_words
from .result import Overhead

PER_CALL = ("preprocess", "copy_in", "image", "copy_out", "postprocess")  # a frame in memory, its sentence encoded
PARTS = ("decode", "text_cold", "text_cached", *PER_CALL)
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Split:
    """Seconds of each round, by part.

    "decode" is a JPEG of the image to RGB; "preprocess" the resize to the input's size; "text_cold" a new sentence,
    tokeniser and text graph, "text_cached" one that was met before; "copy_in" what puts image and prompt in a batch and
    on the device; "image" the image graph, or all three where the device takes frames as they are; "copy_out" what
    brings the outputs back; "postprocess" logits to the mask at the image's size. `calls` are whole calls of
    `Segmenter.segment` with an encoded sentence, the mask read, measured beside their parts.
    """

    parts: dict[str, list[float]]
    calls: list[float]

    def overhead(self) -> Overhead:
        image = np.array(self.parts["image"])
        around = np.sum([self.parts[part] for part in PER_CALL if part != "image"], axis=0)
        return Overhead(float(np.median(around)), float(np.median(around / (around + image))))


@whatever_words()
def measure_split(
    segmenter: Segmenter, image: npt.NDArray[np.uint8], sentence: str, *, warmup: int = 1, rounds: int = 10
) -> Split:
    """Times every part once per round, in the order of a call, after `warmup` rounds. `image` is (H,W,3) RGB.

    If the device takes frames of its size but not in RGB, noise of their layout is measured instead. The segmenter must
    have been loaded with `prompt_cache=1`: another sentence then makes this one new again.
    """
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    calls: list[float] = []
    jpeg = _jpeg(image)
    path = _Path.of(segmenter, image)
    prompt = segmenter.encode(sentence)
    other = "a a" if len(sentence.split()) == 1 else "a"
    rows = [prompt] * (1 if path.takes_frames else segmenter.manifest.input.batch or 1)
    for number in range(-warmup, rounds):
        seconds: dict[str, float] = {}
        _timed(seconds, "decode", lambda: to_rgb_array(Image.open(io.BytesIO(jpeg))))
        segmenter.encode(other)
        _timed(seconds, "text_cold", segmenter.encode, sentence)
        _timed(seconds, "text_cached", segmenter.encode, sentence)
        prepared = _timed(seconds, "preprocess", path.prepare)
        feeds = _timed(seconds, "copy_in", path.feeds, prepared, rows)
        outputs, steps = path.run(feeds)
        steps["copy_in"] += seconds["copy_in"]
        seconds |= steps
        _timed(seconds, "postprocess", path.mask, outputs)
        _timed(seconds, "call", lambda: segmenter.segment(path.image, prompt, pixels=path.pixels).mask)
        if number >= 0:
            calls.append(seconds.pop("call"))
            for part in PARTS:
                parts[part].append(seconds[part])
    return Split(parts, calls)


@dataclass(frozen=True)
class _Path:
    """How `Segmenter.segment` takes an image of one size: by the device as it is, or prepared here for the graph."""

    backend: Backend
    image: npt.NDArray[np.uint8]
    pixels: str
    takes_frames: bool
    size: tuple[int, int]
    input_size: tuple[int, int]

    @classmethod
    def of(cls, segmenter: Segmenter, image: npt.NDArray[np.uint8]) -> _Path:
        graphs, size = segmenter._open_graphs(), (image.shape[0], image.shape[1])
        kinds = sorted((kind for kind in graphs.frames if kind[:2] == size), key=lambda kind: kind[2] != "rgb")
        if not kinds:
            return cls(graphs.image, image, "rgb", False, size, segmenter.input_size)
        pixels = kinds[0][2]
        if pixels != "rgb":
            image = np.random.default_rng(0).integers(0, 256, LAYOUTS[pixels].shape(*size), dtype=np.uint8)
        return cls(graphs.frames[kinds[0]], image, pixels, True, size, segmenter.input_size)

    def prepare(self) -> npt.NDArray[np.uint8]:
        return self.image if self.takes_frames else prepare(self.image, *self.input_size).pixels

    def feeds(self, pixels: npt.NDArray[np.uint8], rows: list[Prompt]) -> dict[str, npt.NDArray[Any]]:
        feeds = stack_prompts(rows).feeds([pixels] * len(rows))
        if self.takes_frames:
            feeds["frame"] = feeds.pop("image")
        return feeds

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> tuple[list[npt.NDArray[Any]], dict[str, float]]:
        return self.backend.run_in_steps(feeds, ["mask", "logit"] if self.takes_frames else ["logits"])

    def mask(self, outputs: list[npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        if self.takes_frames:
            return result_of_frame(outputs[0][0], outputs[1][0], "").mask
        return result_of(outputs[0][0], "", self.size).mask


def split_call(side: BundleSide, rounds: int) -> Split:
    """`measure_split` of an opened bundle, on the image and the sentence that it is measured with."""
    return measure_split(side.segmenter, side.photo, side.text, rounds=rounds)


def _timed(seconds: dict[str, float], part: str, work: Callable[..., Any], *arguments: Any) -> Any:
    start = time.perf_counter()
    result = work(*arguments)
    seconds[part] = time.perf_counter() - start
    return result


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
