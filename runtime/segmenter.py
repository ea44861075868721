"""The object a robot programmer holds: a sentence and an image in, a mask out."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import replace
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from .._base.callers import warn_caller
from ..errors import BackendError, InputError, PromptError
from .backend import Backend, Placement
from .batches import MAX_DYNAMIC_BATCH, PromptBatch, in_batches, stack_prompts, text_feeds
from .bundle import Bundle, open_bundle
from .graphs import FrameKind, Graphs, open_graphs
from .images import ImageLike, PreparedImage, Result, as_frame, check_pixels, prepare, result_of, result_of_frame
from .manifest import Manifest
from .prompt import Prompt, PromptCache, TruncationWarning, UnknownWordsWarning
from .streaming import worked_ahead

PromptLike: TypeAlias = str | Prompt
PromptLikes: TypeAlias = list[PromptLike] | list[str] | list[Prompt] | tuple[PromptLike, ...]
_Row: TypeAlias = tuple[PreparedImage, Prompt]


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
        self._graphs: Graphs | None = graphs
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
        backend: str | None = None,
    ) -> Segmenter:
        """Load a bundle; its files are verified first.

        From a folder the best engine that fits this machine is taken: verified ones before unverified ones, then fp16,
        bf16, int8, fp32. It must be for this TensorRT, version and GPU. If none fits, or on the CPU, the ONNX graph is.

        Args:
            path: the bundle's folder, or one of the image graphs (.engine, .onnx) inside it.
            device: "cpu", "cuda", or "auto": CUDA if it can be used, else the CPU; `device` says which. On OpenVINO
                also "intel-gpu" and "intel-npu".
            threads: threads within an operator on the CPU (None: one per core).
            precision: of the image graph (None: that of the given file or the best engine, else fp32). The text encoder
                has the same if the bundle has one, else fp32.
            prompt_cache: how many encoded sentences are kept (80 bytes per prompt channel each; 0: none).
            spinning: whether ONNX Runtime's threads spin when they have no work. On cores that nothing else needs they
                may start sooner; on shared ones, or right after `encode`, they get in each other's way.
            backend: "onnxruntime", "openvino" or "tensorrt". By default an engine if one fits, else ONNX Runtime, or
                OpenVINO if only that is installed or the device is one of its own; `runtime` says which.

        Warns of an engine that was never compared with its graph (UnverifiedEngineWarning), of one that was built in
        another power mode (PowerModeWarning), and of each that is not used (UnusedEngineWarning).

        Raises:
            BundleError: not a bundle, or one that is damaged, incomplete or of another format version.
            BackendError: the backend or the device is not available, or the engine is for another.
        """
        bundle = open_bundle(path)
        graphs = open_graphs(bundle, Placement(device, threads, spinning, backend), precision)
        return cls(bundle, graphs, prompt_cache)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        return self._spec.height, self._spec.width

    @property
    def frame_sizes(self) -> list[FrameKind]:
        """Height, width and layout of the frames that the device takes as they are and gives masks for.

        Those of `lavt-export frame` whose engines run here. `segment` and `stream` use them automatically for arrays of
        that size and layout, one sentence and `size="frame"`; every other image is resized on the CPU. At most 0.1 % of
        a mask's pixels, where the probability is about 0.5, differ from those of the CPU's path.
        """
        return sorted(self._open_graphs().frames)

    def encode(self, sentence: str, *, blank: bool = False) -> Prompt:
        """Encode a sentence, for any number of images. The most recently used prompts are cached.

        A sentence of more tokens than the model reads is cut, with a TruncationWarning. Words that the vocabulary does
        not have are named once, when the sentence is encoded, in an UnknownWordsWarning.
        Raises PromptError if it has no word, or none that the vocabulary has; with `blank` both are taken, as
        evaluations on published data need, and no words are named.
        """
        return self._encode(sentence, self._open_graphs().text, blank)

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
        graphs = self._open_graphs()  # held to the end of this call, whatever is closed meanwhile
        read = self._reader(pixels, orient, size, () if _several(prompt) else graphs.frames)
        prompts = self._prompts(prompt, graphs.text)
        prepared = read(image)
        results = self._start([(prepared, item) for item in prompts], graphs)()
        return results if _several(prompt) else results[0]

    def segment_batch(
        self,
        pairs: Iterable[tuple[ImageLike, PromptLike | PromptLikes]],
        *,
        pixels: str = "rgb",
        orient: bool = True,
        size: str = "frame",
    ) -> list[Result]:
        """A Result for each (image, prompt), in order, as `segment` gives it: several images in one run of the graph.

        Each of several prompts for an image has its own Result. A run takes as many as the bundle's batch, or 8 if that
        is dynamic. On the CPU a dynamic batch is run image by image: larger ones gain little there, and ONNX Runtime
        would round means over pixels otherwise, so that results would not equal those of `segment` exactly.
        Arguments and errors are those of `segment`; all errors in the input come before the graph is run.
        """
        read = self._reader(pixels, orient, size)
        graphs = self._open_graphs()
        rows: list[_Row] = []
        for image, prompt in pairs:
            prepared = read(image)
            rows += [(prepared, item) for item in self._prompts(prompt, graphs.text)]
        return self._start(rows, graphs, most=1 if graphs.image.device == "cpu" else MAX_DYNAMIC_BATCH)()

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

        A GPU starts on the next frame, if it has arrived, before the previous frame's Result is returned, so that it
        runs while mask and probability of that Result are computed. A Result never waits for the next frame.

        At most two frames are taken ahead, each is read before the next is taken. What a frame, or `frames`, raises is
        raised in that frame's place and ends the stream. Close the generator to stop taking frames.

        Raises PromptError and InputError at once, ImageError at a frame.
        """
        graphs, several = self._open_graphs(), _several(prompt)
        read = self._reader(pixels, orient, size, () if several else graphs.frames, keep=True)
        prompts = self._prompts(prompt, graphs.text)
        del graphs

        def start(prepared: PreparedImage) -> Callable[[], Any]:
            finish = self._start([(prepared, item) for item in prompts], self._open_graphs())

            def results() -> Any:
                self._open_graphs()  # a segmenter that was closed meanwhile hands out nothing more
                return finish() if several else finish()[0]

            return results

        return worked_ahead(frames, read, start)

    def encode_graph(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The bare text graph: (B, max_words) twice to the prompt (B, max_words, prompt_channels); B as exported."""
        (prompt,) = self._open_graphs().text.run({"input_ids": input_ids, "attention_mask": attention_mask}, ["prompt"])
        return prompt

    def run_graph(
        self, image: npt.NDArray[np.uint8], prompt: npt.NDArray[np.float32], word_mask: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """The bare image graph: image (B, H, W, 3), prompt and mask to logits (B, 2, H, W); B and size as exported."""
        feeds: dict[str, npt.NDArray[Any]] = {"image": image, "prompt": prompt, "word_mask": word_mask}
        (logits,) = self._open_graphs().image.run(feeds, ["logits"])
        return logits

    def close(self) -> None:
        """Free the graphs, the device's memory and the cached prompts; calls in other threads still finish first.

        May be called twice.
        """
        self._graphs = None
        self._stacked = None
        self._cache.clear()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        model, spec = self.manifest.model, self._spec
        state = self.device if self._graphs else "closed"
        batch = "dynamic" if spec.batch is None else spec.batch
        name = f"{model.get('variant', 'lavt')} {model.get('swin', '')}".strip()
        return f"<Segmenter {name}, {spec.height}x{spec.width}, batch {batch}, {self.precision}, {state}>"

    def _open_graphs(self) -> Graphs:
        if self._graphs is None:
            raise BackendError("the segmenter is closed: load it again with Segmenter.load")
        return self._graphs

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

        unknown, known = ((), True) if blank else self._tokenizer.unknown_words(sentence)
        shown = ", ".join(map(repr, unknown))
        if unknown and not known:
            raise PromptError(f"the model's vocabulary has no word of this sentence ({shown}): say it in other words")

        def compute() -> Prompt:
            if unknown:
                warn_caller(
                    f"the model's vocabulary does not have {shown}, of {sentence[:60]!r}: the mask may miss the object",
                    UnknownWordsWarning,
                    __package__,
                )
            # Alone, also if the graph takes several: a prompt does not depend on what is encoded beside it.
            rows = self._spec.batch or 1
            (prompts,) = text.run(text_feeds([input_ids] * rows, [attention_mask] * rows), ["prompt"])
            word_mask = attention_mask.astype(np.float32)
            return Prompt(sentence, prompts[0].copy(), word_mask, truncated, self._fingerprint, unknown)

        key = input_ids.tobytes() + attention_mask.tobytes() + bytes([truncated]) + repr(unknown).encode()
        return self._cache.get(key, sentence, compute)

    def _reader(
        self, pixels: str, orient: bool, size: str, frames: Collection[FrameKind] = (), *, keep: bool = False
    ) -> Callable[[ImageLike], PreparedImage]:
        """What makes a PreparedImage, with the height and width that its results shall have.

        Arrays that are of `frames` stay as they are, or with `keep` are copied, so that they may be overwritten.
        """
        check_pixels(pixels)
        if size not in ("frame", "model"):
            raise InputError(f"size {size!r}: give 'frame' or 'model'")
        height, width = self.input_size
        frames = frozenset(frames) if size == "frame" else frozenset()

        def read(image: ImageLike) -> PreparedImage:
            frame = as_frame(image, pixels) if frames else None
            if frame is not None and (frame.height, frame.width, frame.layout) in frames:
                return replace(frame, pixels=frame.pixels.copy()) if keep else frame
            prepared = prepare(image, height, width, pixels=pixels, orient=orient)
            return prepared if size == "frame" else replace(prepared, height=height, width=width)

        return read

    def _start(self, rows: list[_Row], graphs: Graphs, most: int = MAX_DYNAMIC_BATCH) -> Callable[[], list[Result]]:
        """Begins to run each prompt on its image; what is returned waits for the Results.

        A dynamic batch has `most` rows, a fixed one is filled.
        """
        if len(rows) == 1 and rows[0][0].layout is not None:
            return self._start_frame(*rows[0], graphs)
        fixed, graph = self._spec.batch, graphs.image
        size = fixed or min(graph.max_batch or most, most)
        parts = list(in_batches(rows, size, fill=fixed is not None))
        started = [graph.start(self._feeds(part), ["logits"]) for part in parts[:1]]

        def finish() -> list[Result]:
            results: list[Result] = []
            for part in parts:
                (logits,) = started.pop()() if started else graph.run(self._feeds(part), ["logits"])
                results += [
                    result_of(pair, prompt.sentence, (image.height, image.width))
                    for (image, prompt), pair in zip(part, logits, strict=True)
                ]
            return results[: len(rows)]

        return finish

    def _start_frame(self, frame: PreparedImage, prompt: Prompt, graphs: Graphs) -> Callable[[], list[Result]]:
        feeds = self._feeds([(frame, prompt)])
        feeds["frame"] = feeds.pop("image")
        chain = graphs.frames[frame.height, frame.width, str(frame.layout)]
        wait = chain.start(feeds, ["mask", "logit"])

        def finish() -> list[Result]:
            mask, logit = wait()
            return [result_of_frame(mask[0], logit[0], prompt.sentence)]

        return finish

    def _feeds(self, part: list[_Row]) -> dict[str, npt.NDArray[Any]]:
        images, prompts = zip(*part, strict=True)
        batch = self._stacked = stack_prompts(prompts, self._stacked)
        return batch.feeds([image.pixels for image in images])


def _several(prompt: PromptLike | PromptLikes) -> bool:
    return isinstance(prompt, (list, tuple))
