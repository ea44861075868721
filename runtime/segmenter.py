"""The object a robot programmer holds: a sentence and an image in, a mask out."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from .._base.callers import warn_caller
from ..errors import BackendError, InputError, PromptError
from .backend import Backend, Placement
from .batches import PromptBatch, in_batches, stack_prompts, text_feeds
from .bundle import Bundle, open_bundle
from .graphs import Graphs, open_graphs
from .images import ImageLike, PreparedImage, Result, check_pixels, prepare, result_of
from .manifest import Manifest
from .prompt import Prompt, PromptCache, TruncationWarning
from .streaming import prepared_ahead

PromptLike: TypeAlias = str | Prompt
PromptLikes: TypeAlias = list[PromptLike] | list[str] | list[Prompt] | tuple[PromptLike, ...]
_Row: TypeAlias = tuple[PreparedImage, Prompt]

_MAX_DYNAMIC_BATCH = 8


class Segmenter:
    """Segments the object that a sentence refers to. Make one with `Segmenter.load`; safe to share between threads.

        from lavt_edge.runtime import Segmenter

        with Segmenter.load("bundle") as segmenter:
            prompt = segmenter.encode("the man in red")
            result = segmenter.segment("photo.jpg", prompt)

    Attributes:
        manifest: what the bundle says about itself.
        precision: of the image graph, such as "fp32".
        device: where the image graph runs: "cpu" or "cuda".
        runtime: what runs it, such as "TensorRT 10.3.0".
        files: the bundle's files that run, of the text and the image graph.
    """

    def __init__(self, bundle: Bundle, graphs: Graphs, prompt_cache: int) -> None:
        self.files = graphs.files
        self.manifest: Manifest = bundle.manifest
        self.precision = graphs.precision
        self._spec = bundle.manifest.input
        self._fingerprint = bundle.fingerprint
        self._tokenizer = bundle.tokenizer()
        self._cache = PromptCache(prompt_cache)
        self._backends: tuple[Backend, Backend] | None = (graphs.text, graphs.image)
        self._stacked: PromptBatch | None = None
        self.device = graphs.image.device
        self.runtime = graphs.image.name

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        prompt_cache: int = 256,
        spinning: bool = False,
    ) -> Segmenter:
        """Load a bundle; its files are verified first.

        Of a folder the best engine that fits this machine is taken: verified ones before unverified ones, then fp16,
        bf16, int8, fp32. It must be for this TensorRT, version and GPU. If none fits, or on the CPU, it is the ONNX
        graph.

        Args:
            path: the bundle's folder, or one of the image graphs (.engine, .onnx) inside it.
            device: "cpu", "cuda", or "auto": CUDA if it can be used, else the CPU; `device` says which.
            threads: threads within an operator on the CPU (None: one per core).
            precision: of the image graph (None: that of the given file or the best engine, else fp32). The text encoder
                has the same if the bundle has one, else fp32.
            prompt_cache: how many encoded sentences are kept (80 bytes per prompt channel each; 0: none).
            spinning: whether ONNX Runtime's threads spin when they have no work. On cores that nothing else needs they
                may start sooner; on shared ones, or right after `encode`, they are in each other's way.

        Warns of an engine that was never compared with its graph (UnverifiedEngineWarning), of one that was built in
        another power mode (PowerModeWarning), and of each that is there and not used (UnusedEngineWarning).

        Raises:
            BundleError: not a bundle, or one that is damaged, incomplete or of another format version.
            BackendError: the backend or the device is not available, or the engine is for another.
        """
        bundle = open_bundle(path)
        graphs = open_graphs(bundle, Placement(device, threads, spinning), precision)
        return cls(bundle, graphs, prompt_cache)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        return self._spec.height, self._spec.width

    def encode(self, sentence: str, *, blank: bool = False) -> Prompt:
        """Encode a sentence, for any number of images. The prompts used last are cached.

        A sentence of more tokens than the model reads is cut, with a TruncationWarning.
        Raises PromptError if it has no word; with `blank` it is taken, as evaluations on published data need.
        """
        return self._encode(sentence, self._open_backends()[0], blank)

    @overload
    def segment(
        self, image: ImageLike, prompt: PromptLike, *, pixels: str = "rgb", orient: bool = True, size: str = "frame"
    ) -> Result: ...

    @overload
    def segment(
        self, image: ImageLike, prompt: PromptLikes, *, pixels: str = "rgb", orient: bool = True, size: str = "frame"
    ) -> list[Result]: ...

    def segment(
        self,
        image: ImageLike,
        prompt: PromptLike | PromptLikes,
        *,
        pixels: str = "rgb",
        orient: bool = True,
        size: str = "frame",
    ) -> Result | list[Result]:
        """What a sentence, or each of several, refers to in an image.

        Args:
            image: what `to_rgb_array` takes: an array, a PIL image, an image file's path, its bytes, or the open file.
            prompt: a sentence or what `encode` made of it; or a list or tuple of these.
            pixels: an array's layout: "rgb", "bgr" (OpenCV's), "rgbx", "bgrx", "grey" or "nv12"; see `to_rgb_array`.
            orient: turn files and PIL images upright, as their EXIF orientation says.
            size: of the results: "frame", the upright image's, or "model", the `input_size`.

        Returns:
            A Result; for a list or tuple a list of Results in the same order.

        Raises:
            ImageError: the image cannot be read, has no pixels, or is an array of another type or shape.
            InputError: another `pixels` or `size`.
            PromptError: a sentence has no word, a prompt comes from another bundle, or the list is empty.
        """
        read = self._reader(pixels, orient, size)
        text, graph = self._open_backends()  # held to the end of this call, whatever is closed meanwhile
        prompts = self._prompts(prompt, text)
        prepared = read(image)
        results = self._results([(prepared, one) for one in prompts], graph)
        return results if isinstance(prompt, (list, tuple)) else results[0]

    def segment_batch(
        self,
        pairs: Iterable[tuple[ImageLike, PromptLike]],
        *,
        pixels: str = "rgb",
        orient: bool = True,
        size: str = "frame",
    ) -> list[Result]:
        """A Result for each (image, prompt), in order, as `segment` gives it: several images in one run of the graph.

        As many as the bundle's batch at once, or 8 if that is dynamic; but a dynamic batch on the CPU is run image by
        image, since ONNX Runtime's means over pixels round otherwise in larger ones, which gain little there. On ONNX
        Runtime results so equal those of `segment` exactly. The arguments are those of `segment`, and so is what it
        raises, before the graph is run.
        """
        read = self._reader(pixels, orient, size)
        text, graph = self._open_backends()
        rows = [(read(image), self._prompts((prompt,), text)[0]) for image, prompt in pairs]
        return self._results(rows, graph, most=1 if graph.device == "cpu" else _MAX_DYNAMIC_BATCH)

    @overload
    def stream(
        self,
        frames: Iterable[ImageLike],
        prompt: PromptLike,
        *,
        pixels: str = "rgb",
        orient: bool = True,
        size: str = "frame",
    ) -> Generator[Result, None, None]: ...

    @overload
    def stream(
        self,
        frames: Iterable[ImageLike],
        prompt: PromptLikes,
        *,
        pixels: str = "rgb",
        orient: bool = True,
        size: str = "frame",
    ) -> Generator[list[Result], None, None]: ...

    def stream(
        self,
        frames: Iterable[ImageLike],
        prompt: PromptLike | PromptLikes,
        *,
        pixels: str = "rgb",
        orient: bool = True,
        size: str = "frame",
    ) -> Generator[Any, None, None]:
        """`segment` on one frame after another; a thread reads and resizes the next frames meanwhile.

        At most two frames are taken ahead, each is read before the next is taken. What a frame, or `frames`, raises is
        raised in that frame's place and ends the stream. Close the generator to stop taking frames.

        Raises PromptError and InputError at once, ImageError at a frame.
        """
        read = self._reader(pixels, orient, size)
        prompts = self._prompts(prompt, self._open_backends()[0])
        return self._stream(prepared_ahead(frames, read), prompts, isinstance(prompt, (list, tuple)))

    def _stream(
        self, frames: Generator[PreparedImage, None, None], prompts: list[Prompt], several: bool
    ) -> Generator[Any, None, None]:
        with closing(frames):
            for prepared in frames:
                results = self._results([(prepared, one) for one in prompts], self._open_backends()[1])
                yield results if several else results[0]

    def encode_graph(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The bare text graph: (B, max_words) twice to the prompt (B, max_words, prompt_channels); B as exported."""
        (prompt,) = self._open_backends()[0].run({"input_ids": input_ids, "attention_mask": attention_mask}, ["prompt"])
        return prompt

    def run_graph(
        self, image: npt.NDArray[np.uint8], prompt: npt.NDArray[np.float32], word_mask: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """The bare image graph: image (B, H, W, 3), prompt and mask to logits (B, 2, H, W); B and size as exported."""
        feeds: dict[str, npt.NDArray[Any]] = {"image": image, "prompt": prompt, "word_mask": word_mask}
        (logits,) = self._open_backends()[1].run(feeds, ["logits"])
        return logits

    def close(self) -> None:
        """Let go of the graphs, the device's memory and the cached prompts; calls in other threads still finish first.

        May be called twice.
        """
        self._backends = None
        self._stacked = None
        self._cache.clear()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        model, spec = self.manifest.model, self._spec
        state = self.device if self._backends else "closed"
        batch = "dynamic" if spec.batch is None else spec.batch
        name = f"{model.get('variant', 'lavt')} {model.get('swin', '')}".strip()
        return f"<Segmenter {name}, {spec.height}x{spec.width}, batch {batch}, {self.precision}, {state}>"

    def _open_backends(self) -> tuple[Backend, Backend]:
        if self._backends is None:
            raise BackendError("the segmenter is closed: load it again with Segmenter.load")
        return self._backends

    def _prompts(self, prompt: PromptLike | PromptLikes, text: Backend) -> list[Prompt]:
        given = prompt if isinstance(prompt, (list, tuple)) else (prompt,)
        if not given:
            raise PromptError("no sentence was given: give at least one")
        prompts = [item if isinstance(item, Prompt) else self._encode(item, text) for item in given]
        for item in prompts:
            if item.fingerprint != self._fingerprint:
                raise PromptError(
                    f"the prompt {item.sentence[:60]!r} comes from another bundle: encode it with this one"
                )
        return prompts

    def _encode(self, sentence: str, text: Backend, blank: bool = False) -> Prompt:
        input_ids, attention_mask, truncated = self._tokenizer.encode(sentence, blank=blank)
        if truncated:
            warn_caller(
                f"the sentence {sentence[:60]!r} is longer than {self._spec.max_words} tokens: the rest is ignored",
                TruncationWarning,
                __package__,
            )

        def compute() -> Prompt:
            # Alone, also if the graph takes several: a prompt does not depend on what is encoded beside it.
            rows = self._spec.batch or 1
            (prompts,) = text.run(text_feeds([input_ids] * rows, [attention_mask] * rows), ["prompt"])
            word_mask = attention_mask.astype(np.float32)
            return Prompt(sentence, prompts[0].copy(), word_mask, truncated, self._fingerprint)

        return self._cache.get(input_ids.tobytes() + attention_mask.tobytes() + bytes([truncated]), sentence, compute)

    def _reader(self, pixels: str, orient: bool, size: str) -> Callable[[ImageLike], PreparedImage]:
        """What makes a PreparedImage, with the height and width that its results shall have."""
        check_pixels(pixels)
        if size not in ("frame", "model"):
            raise InputError(f"size {size!r}: give 'frame' or 'model'")
        height, width = self.input_size

        def read(image: ImageLike) -> PreparedImage:
            prepared = prepare(image, height, width, pixels=pixels, orient=orient)
            return prepared if size == "frame" else replace(prepared, height=height, width=width)

        return read

    def _results(self, rows: list[_Row], graph: Backend, most: int = _MAX_DYNAMIC_BATCH) -> list[Result]:
        return [
            result_of(logits, prompt.sentence, (image.height, image.width))
            for (image, prompt), logits in zip(rows, self._logits(rows, graph, most), strict=False)
        ]

    def _logits(self, rows: list[_Row], graph: Backend, most: int) -> Iterator[npt.NDArray[np.float32]]:
        """Logits (2, H, W) of each prompt on its image, then those of the rows that fill a fixed batch.

        A dynamic batch has `most` rows.
        """
        fixed = self._spec.batch
        size = fixed or min(graph.max_batch or most, most)
        for part in in_batches(rows, size, fill=fixed is not None):
            images, prompts = zip(*part, strict=True)
            batch = self._stacked = stack_prompts(prompts, self._stacked)
            (logits,) = graph.run(batch.feeds([image.pixels for image in images]), ["logits"])
            yield from logits
