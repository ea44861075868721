"""Sides that run a bundle on its runtime, and a bare graph on ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ...runtime import Segmenter, UnknownWordsWarning
from ...runtime.backend import OnnxRuntimeBackend
from ...runtime.batches import image_feeds
from ...runtime.bundle import open_bundle
from ...runtime.images import resize, to_rgb_array
from .sides import SideInfo, SideSpec, batch_of, feeds_for, image_size

NOISE_SIZE = (480, 640)


def photo(spec: SideSpec) -> npt.NDArray[np.uint8]:
    """The image that is measured on, uint8 (H,W,3): the given one, or noise of the given size, else of NOISE_SIZE.

    Raises ImageError.
    """
    if spec.image is not None:
        return to_rgb_array(spec.image)
    return np.random.default_rng(0).integers(0, 256, (*(spec.frame or NOISE_SIZE), 3), dtype=np.uint8)


@contextmanager
def whatever_words() -> Iterator[None]:
    """Names no words that the vocabulary does not have: how long a call takes does not depend on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)
        yield


class BundleSide:
    """A bundle's image graph, as its runtime picks it for this machine."""

    @whatever_words()
    def __init__(self, spec: SideSpec) -> None:
        assert spec.path is not None
        batch = batch_of(open_bundle(spec.path), spec.batch)
        self.segmenter = segmenter = Segmenter.load(spec.path, device=spec.device, threads=spec.threads, prompt_cache=1)
        size, file = segmenter.input_size, segmenter.files[-1]
        self.about = SideInfo(segmenter.precision, size, batch, segmenter.device, segmenter.runtime, file)
        self.photo, self.text = photo(spec), spec.text
        prompt = segmenter.encode(spec.text)
        row = resize(self.photo, *size), prompt.prompt, prompt.word_mask
        self.feeds = image_feeds(*([part] * batch for part in row))

    def run(self) -> object:
        return self.segmenter.run_graph(**self.feeds)


class OnnxSide:
    """A graph on ONNX Runtime: `spec.plain`, else `spec.path`. The plain export takes normalised floats."""

    def __init__(self, spec: SideSpec) -> None:
        path = spec.plain or spec.path
        assert path is not None
        self._backend = backend = OnnxRuntimeBackend(path, device=spec.device, threads=spec.threads)
        self._feeds = feeds_for(backend.signature.inputs, spec.batch)
        outputs = [tensor.name for tensor in backend.signature.outputs]
        self._outputs = ["logits"] if "logits" in outputs else outputs
        precision = spec.precision if spec.plain else _precision(path.name)
        self.about = SideInfo(precision, image_size(self._feeds), spec.batch, backend.device, backend.name)

    def run(self) -> object:
        return self._backend.run(self._feeds, self._outputs)


def _precision(file: str) -> str:
    """As bundles name their graphs, NAME.PRECISION.onnx; a graph without one is taken for fp32."""
    parts = file.split(".")
    return parts[-2] if len(parts) > 2 else "fp32"
