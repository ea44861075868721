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
from ...runtime.batches import stack_prompts
from ...runtime.images import prepare, result_of, to_rgb_array
from ...runtime.prompt import Prompt
from ..peers.onnx import BundleSide
from .result import Overhead

PARTS = ("decode", "preprocess", "text_cold", "text_cached", "copies", "image", "postprocess")
PER_CALL = ("preprocess", "copies", "image", "postprocess")  # of a frame in memory, its sentence being encoded
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Split:
    """Seconds of each round, by part.

    "decode" is a JPEG of the image to RGB; "preprocess" the resize to the input's size; "text_cold" a new sentence,
    tokeniser and text graph, "text_cached" one that was met before; "copies" what puts image and prompt in a batch;
    "image" the image graph, with its copies to a device and back; "postprocess" logits to the mask at the image's
    size. `calls` are whole calls of `Segmenter.segment` with an encoded sentence, the mask read, measured beside their
    parts.
    """

    parts: dict[str, list[float]]
    calls: list[float]

    def overhead(self) -> Overhead:
        image = np.array(self.parts["image"])
        around = np.sum([self.parts[part] for part in PER_CALL if part != "image"], axis=0)
        return Overhead(float(np.median(around)), float(np.median(around / (around + image))))


def measure_split(
    segmenter: Segmenter, image: npt.NDArray[np.uint8], sentence: str, *, warmup: int = 1, rounds: int = 10
) -> Split:
    """Times every part once per round, in the order of a call, after `warmup` rounds. `image` is (H,W,3) RGB.

    The segmenter must have been loaded with `prompt_cache=1`: another sentence then makes this one new again.
    """
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    calls: list[float] = []
    jpeg = _jpeg(image)
    prompt = segmenter.encode(sentence)
    other = "a a" if len(sentence.split()) == 1 else "a"
    rows = [prompt] * (segmenter.manifest.input.batch or 1)
    height, width = image.shape[:2]
    for number in range(-warmup, rounds):
        seconds: dict[str, float] = {}
        pixels = _timed(seconds, "decode", _decode, jpeg)
        prepared = _timed(seconds, "preprocess", prepare, pixels, *segmenter.input_size)
        segmenter.encode(other)
        _timed(seconds, "text_cold", segmenter.encode, sentence)
        _timed(seconds, "text_cached", segmenter.encode, sentence)
        feeds = _timed(seconds, "copies", _feeds, prepared.pixels, rows)
        logits = _timed(seconds, "image", _run, segmenter, feeds)
        _timed(seconds, "postprocess", _mask, logits[0], height, width)
        _timed(seconds, "call", _call, segmenter, image, prompt)
        if number >= 0:
            calls.append(seconds.pop("call"))
            for part, value in seconds.items():
                parts[part].append(value)
    return Split(parts, calls)


def split_call(side: BundleSide, rounds: int) -> Split:
    """`measure_split` of an opened bundle, on the image and the sentence that it is measured with."""
    return measure_split(side.segmenter, side.photo, side.text, rounds=rounds)


def _timed(seconds: dict[str, float], part: str, work: Callable[..., Any], *arguments: Any) -> Any:
    start = time.perf_counter()
    result = work(*arguments)
    seconds[part] = time.perf_counter() - start
    return result


def _decode(jpeg: bytes) -> npt.NDArray[np.uint8]:
    return to_rgb_array(Image.open(io.BytesIO(jpeg)))


def _feeds(pixels: npt.NDArray[np.uint8], rows: list[Prompt]) -> dict[str, npt.NDArray[Any]]:
    return stack_prompts(rows).feeds([pixels] * len(rows))


def _run(segmenter: Segmenter, feeds: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    return segmenter.run_graph(**feeds)


def _mask(logits: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.bool_]:
    return result_of(logits, "", (height, width)).mask


def _call(segmenter: Segmenter, image: npt.NDArray[np.uint8], prompt: Prompt) -> npt.NDArray[np.bool_]:
    return segmenter.segment(image, prompt).mask


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
