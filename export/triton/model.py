"""The model `lavt` on Triton's Python backend: sentences and an image to masks and scores.

`lavt-export triton` copies this file beside the bundle; it needs lavt_edge.runtime in the server's Python, no more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from lavt_edge.errors import ImageError, InputError, PromptError, reason_of
from lavt_edge.runtime import Prompt, Result, Segmenter, to_rgb_array
from PIL import Image

MOST_SENTENCES = 8
MOST_CHARACTERS = 400
MOST_PIXELS = 50_000_000


class TritonPythonModel:
    """One instance, a process of its own; `config.pbtxt` says how many there are."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the bundle beside this file; several instances on a CPU share its cores."""
        config = json.loads(args["model_config"])
        instances = config["instance_group"][0]["count"]
        threads = max(1, len(os.sched_getaffinity(0)) // instances) if instances > 1 else None
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many
        bundle = Path(__file__).parent / "bundle" / config["parameters"]["file"]["string_value"]
        self._segmenter = Segmenter.load(bundle, threads=threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request: those that can be read run as one batch, the others say what is wrong."""
        rows: list[tuple[Any, list[Prompt]]] = []
        refused: dict[int, Exception] = {}
        for i, request in enumerate(requests):
            try:
                rows += self._read(request)
            except Exception as error:
                refused[i] = error
        try:
            results = iter(self._segmenter.segment_batch(rows))
        except Exception as error:
            return [_refusal(refused.get(i, error)) for i in range(len(requests))]
        return [
            _refusal(refused[i]) if i in refused else _answer(request, results) for i, request in enumerate(requests)
        ]

    def finalize(self) -> None:
        """Lets go of the graphs."""
        self._segmenter.close()

    def _read(self, request: Any) -> list[tuple[Any, list[Prompt]]]:
        """Of each image of a request its RGB array (H, W, 3), and its prompts."""
        sentences, files, arrays = (_input(request, name) for name in ("sentences", "image", "array"))
        if (files is None) == (arrays is None):
            raise InputError("give either `image`, a file's bytes, or `array`, RGB (height, width, 3)")
        if not 1 <= sentences.shape[1] <= MOST_SENTENCES:
            raise InputError(f"{sentences.shape[1]} sentences: give 1 to {MOST_SENTENCES} for an image")
        images = [to_rgb_array(image) for image in (arrays if files is None else files[:, 0])]
        if len({image.shape for image in images}) > 1:
            raise InputError("the images of a request differ in size: send a request for each")
        return [(image, [self._encode(text) for text in row]) for image, row in zip(images, sentences, strict=True)]

    def _encode(self, sentence: bytes) -> Prompt:
        text = sentence.decode()
        if len(text) > MOST_CHARACTERS:
            raise PromptError(f"the sentence has {len(text)} characters: give at most {MOST_CHARACTERS}")
        return self._segmenter.encode(text)


def _input(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _answer(request: Any, results: Iterator[Result]) -> Any:
    """The outputs that are asked for, made of this request's results, which are taken from `results`."""
    shape = _input(request, "sentences").shape  # images, sentences
    own = [next(results) for _ in range(shape[0] * shape[1])]
    size = own[0].height, own[0].width
    made = {
        "masks": lambda: np.stack([result.mask for result in own]).reshape(*shape, *size),
        "scores": lambda: np.array([result.score for result in own], np.float32).reshape(shape),
    }
    try:
        tensors = [pb_utils.Tensor(name, made[name]()) for name in request.requested_output_names()]
    except Exception as error:
        return _refusal(error)
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _refusal(error: Exception) -> Any:
    kinds = pb_utils.TritonError
    bad_input = isinstance(error, (ImageError, InputError, PromptError, UnicodeDecodeError))
    return pb_utils.InferenceResponse(
        error=kinds(reason_of(error, 2000), kinds.INVALID_ARG if bad_input else kinds.INTERNAL)
    )
